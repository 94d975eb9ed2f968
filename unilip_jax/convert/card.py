"""README.md of an export: what it is, how it is loaded, how it was trained, its scores."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from etils import epath

from unilip_jax.common import json_file
from unilip_jax.training import origin
from unilip_jax.weights import orbax_io

NAME = "README.md"
_MARK = "Exported by unilip_jax"

_CARD = """---
library_name: {library}
tags: [unilip]
---

# UniLIP weights

{mark} (format {fmt}).

| folder | module | parameters | dtype |
|---|---|---|---|
{rows}

## Loading

{loading}
{origin}
## Licence

That of the weights it was made from; see their model cards.
"""
_TRAINING = """## Training

`{command}`

{steps:,} steps, {seconds:,} seconds of training; exported on {machine}.

{scores}<details><summary>config</summary>

```json
{config}
```

</details>
"""
_NO_SCORES = """## Scores

None are stored with these weights.

"""
_PIPELINE = """In PyTorch, with diffusers, transformers and this folder's own code: `pipeline_unilip.py`,
`connector/unilip_connector.py` and `vae/unilip_decoder.py`. `trust_remote_code=True` runs
it: read it first.

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(".", custom_pipeline="pipeline_unilip", trust_remote_code=True)
image = pipe("a red circle").images[0]
image = pipe("make the red circle green", image=image).images[0]
```

Elsewhere give this folder's path instead of `"."`; `custom_pipeline` may be left out. To pass the model
on, copy this folder: `pipe.save_pretrained` leaves the code out. `comfyui_unilip` holds nodes for ComfyUI:
copy it into `custom_nodes`, and this folder into `models/unilip`.
"""
_LOADING = {
    "diffusers": _PIPELINE,
    "unilip": """The layout is that of the published UniLIP (`UniLIP_InternVLForCausalLM`).
With unilip_jax, in this folder:

```
python -m unilip_jax.convert import --source=. --out=../weights
python -m unilip_jax.infer generate --checkpoint=../weights --prompts "a red circle" --out=../samples
```
""",
    "components": """{code}`unilip` holds what no library has a class for, under a UniLIP folder's names.
With unilip_jax, in this folder:

```
python -m unilip_jax.convert import --source=. --out=../weights
```
"""}
# {folder of an export as components: (import, how it is loaded)}
_CLASSES = {
    "mllm_hf": ("from transformers import InternVLForConditionalGeneration",
                'mllm = InternVLForConditionalGeneration.from_pretrained("mllm_hf")'),
    "dit/transformer": ("from diffusers import SanaTransformer2DModel",
                        'dit = SanaTransformer2DModel.from_pretrained("dit", subfolder="transformer")'),
    "vae": ("from diffusers import AutoencoderDC", 'vae = AutoencoderDC.from_pretrained("vae")')}


def is_export(folder: epath.Path) -> bool:
  """Returns whether a folder was written by an export, so that another may replace it."""
  file = folder / NAME
  return file.exists() and _MARK in file.read_text()


def text(
    path: str, model: Mapping[str, Any], fmt: str, rows: Sequence[tuple[str, str, int, str]]) -> str:
  """Returns the card.

  Args:
    path: of the weights.
    model: their model.json.
    fmt: of the export.
    rows: (folder, module, parameters, dtype) of what was written.
  """
  run = _run_of(path)
  if run is not None:
    trained = _training(origin.describe_run(run), run)
  elif "origin" in model:
    trained = _training(model["origin"], None)
  else:
    # Of a local folder only its name: nobody else has that path.
    names = [source if "://" in source else source.rstrip("/").rpartition("/")[2]
             for source in model.get("source", ())]
    trained = "\n".join(["## Origin", "", *(f"- {name}" for name in names), "", _NO_SCORES])
  return _CARD.format(
      library="transformers" if fmt == "unilip" else "diffusers", mark=_MARK, fmt=fmt,
      rows="\n".join(f"| {folder or '.'} | {name} | {count:,} | {dtype} |"
                     for folder, name, count, dtype in rows),
      loading=_LOADING[fmt].format(code=_code({row[0] for row in rows})), origin=trained)


def _code(folders: set[str]) -> str:
  """Returns Python that loads the folders for which transformers and diffusers have classes; "" without."""
  known = [lines for folder, lines in _CLASSES.items() if folder in folders]
  if not known:
    return ""
  return "\n".join(["```python", *(line for lines in zip(*known) for line in lines), "```", "", ""])


def _training(how: Mapping[str, Any], run: epath.Path | None) -> str:
  scores, when = how.get("scores", {}), "the last evaluation while training"
  if run is not None and (run / "results.json").exists():
    results = json_file.read(run / "results.json", remedy="evaluate the run again, or delete the file",
                             kinds={"metrics": dict})
    scores, when = results["metrics"], f"results.json, step {results['step']}"
  lines = [f"## Scores ({when})", "", "| metric | value |", "|---|---|", *(
      f"| {k} | {v:.4f} |" if isinstance(v, float) else f"| {k} | {v} |"
      for k, v in sorted(scores.items())), "", ""]
  return _TRAINING.format(
      **{key: how[key] for key in ("command", "steps", "seconds", "machine")},
      scores="\n".join(lines) if scores else _NO_SCORES, config=json.dumps(how["config"], indent=1))


def _run_of(path: str) -> epath.Path | None:
  """Returns the workdir of a run's weights if it contains what a card needs, otherwise None."""
  folder = orbax_io.absolute(path)
  if folder.parent.name == "checkpoints":
    folder = folder.parent.parent
  has = (folder / "checkpoints").exists() and (folder / "config.json").exists()
  return folder if has else None
