"""README.md of an export: what it is, how it is loaded, how it was trained and how it scored."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from etils import epath

from experiments import publish
from unilip_jax.data import text as text_lib
from unilip_jax.weights import language, orbax_io

NAME = "README.md"
_MARK = "Exported by unilip_jax"

_FRONT = """---
library_name: {library}
tags: [unilip]
---
"""
_LOAD = {
    "unilip": """The layout is that of the published UniLIP (`UniLIP_InternVLForCausalLM`). With unilip_jax:

```
python -m unilip_jax.convert import --source=THIS_FOLDER --out=weights/mine
python -m unilip_jax.infer generate --checkpoint=weights/mine --prompts "a red circle" --out=samples
```
""",
    "components": """```python
from transformers import InternVLForConditionalGeneration
from diffusers import AutoencoderDC, SanaTransformer2DModel
mllm = InternVLForConditionalGeneration.from_pretrained("mllm_hf")
dit = SanaTransformer2DModel.from_pretrained("dit", subfolder="transformer")
vae = AutoencoderDC.from_pretrained("vae")
```

`unilip` holds what no library has a class for (latent head, queries, connector, projector) under the
names of a UniLIP folder. `python -m unilip_jax.convert import --source=THIS_FOLDER --out=…` reads all.
"""}


def is_export(folder: epath.Path) -> bool:
  """Whether a folder was written by an export, so that another may replace it."""
  file = folder / NAME
  return file.exists() and _MARK in file.read_text()


def text(
    path: str, model: Mapping[str, Any], files: Sequence[Any], modules: Any, fmt: str) -> str:
  """The card.

  Args:
    path: of the weights.
    model: their model.json.
    files: layouts.File that were written.
    modules: with `.counts` {module: parameters} and `.dtype(module)`.
    fmt: of the export.
  """
  library = "transformers" if fmt == "unilip" else "diffusers"
  lines = [_FRONT.format(library=library), "# UniLIP weights", "",
           f"{_MARK} (format {fmt}).", "", "| folder | module | parameters | dtype |",
           "|---|---|---|---|"]
  lines += [f"| {file.folder or '.'} | {name} | {modules.counts[name]:,} | {modules.dtype(name)} |"
            for file in files for name in file.tables]
  lines += ["", "## Loading", "", _LOAD[fmt]]
  run = _run_of(path)
  if run is not None:
    lines += _training(publish.origin(str(run)), run)
  elif "origin" in model:
    lines += _training(model["origin"], None)
  else:
    # Of a local folder, its name: nobody else has that path.
    names = [source if "://" in source else source.rstrip("/").rpartition("/")[2]
             for source in model.get("source", ())]
    lines += ["## Origin", "", *(f"- {name}" for name in names), ""]
  lines += ["## Licence", "", "That of the weights it was made from; see their model cards."]
  return "\n".join(lines) + "\n"


def _training(origin: Mapping[str, Any], run: epath.Path | None) -> list[str]:
  lines = ["## Training", "", f"`{origin['command']}`", "",
           f"{origin['steps']:,} steps, {origin['seconds']:,} seconds of training; exported on "
           f"{origin['machine']}.", ""]
  scores, when = dict(origin.get("scores", {})), "the last evaluation while training"
  results = None if run is None else run / "results.json"
  if results is not None and results.exists():
    found = json.loads(results.read_text())
    scores, when = found["metrics"], f"results.json, step {found['step']}"
  if scores:
    lines += [f"## Scores ({when})", "", "| metric | value |", "|---|---|"]
    lines += [f"| {k} | {v:.4f} |" if isinstance(v, float) else f"| {k} | {v} |"
              for k, v in sorted(scores.items())]
    lines.append("")
  return [*lines, "<details><summary>config</summary>", "", "```json",
          json.dumps(origin["config"], indent=1), "```", "", "</details>", ""]


def _run_of(path: str) -> epath.Path | None:
  """The workdir of a run's weights that has all that a card tells of it."""
  folder = orbax_io.absolute(path)
  if folder.parent.name == "checkpoints":
    folder = folder.parent.parent
  has = (folder / "checkpoints").exists() and (folder / "config.json").exists()
  return folder if has else None


def tokenizer_file(path: str, model: Mapping[str, Any]) -> epath.Path | None:
  """tokenizer.json of imported weights, or of the run that weights are from; None without."""
  found = language.language_of(path, model)
  return None if found is None else text_lib.tokenizer_file(found[0])
