"""Folders of imported weights, and what to say when one is absent.

A folder holds

  model.json   {"format": 1, "modules": {name: dimensions}, "source": …, "dtypes": {name: dtype}}
  params/      {name: nested dict of float32 arrays}, an orbax tree

model.json is written last (local folders are renamed into place whole), so that a folder that has
one is complete. Local and gs:// paths.
"""

from collections.abc import Iterable, Mapping
import json
from typing import Any

from etils import epath

from unilip_jax import orbax_io, presets

FORMAT = 1
_MODEL = "model.json"
_PARAMS = "params"

# (substring of the wanted folder's name, what it is, --source, usual --out); the first match wins.
_SOURCES = (
    ("internvl3-2b",
     "CLIP tower and mlp1 of the 3B model (InternVL3-2B, 4.2 GB)",
     "hf://OpenGVLab/InternVL3-2B", "weights/internvl3-2b"),
    ("internvl3",
     "CLIP tower and mlp1 of the 1B model (InternVL3-1B, 1.9 GB; the -hf repository loads too)",
     "hf://OpenGVLab/InternVL3-1B", "weights/internvl3-1b"),
    ("dc-ae",
     "pixel decoder and encoder (DC-AE f32c32 sana-1.1, 1.2 GB)",
     "hf://mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "weights/dc-ae-f32c32-sana-1.1"),
    ("perceptual",
     "perceptual networks: torchvision's vgg16-397923af.pth (528 MB) and "
     "convnext_small-0c510722.pth (192 MB) from https://download.pytorch.org/models/, LPIPS' "
     "vgg.pth (7 kB) from https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1), "
     "all three in one folder",
     "downloads/perceptual", "weights/perceptual"),
    ("unilip",
     "a published UniLIP tokenizer (kanashi6/UniLIP-1B or UniLIP-3B; 1b_unilip.pth and "
     "2b_unilip.pth load too)",
     "hf://kanashi6/UniLIP-1B", "weights/unilip-1b"),
)


def save_weights(
    folder: epath.PathLike,
    modules: Mapping[str, Any],
    dims: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
  """Writes a folder of weights; after a failure there is none, or the former one.

  Args:
    folder: local or gs:// path.
    modules: {name: nested dict of arrays}.
    dims: {name: JSON-ready dimensions}, the same names.
    extra: more entries of model.json.
    overwrite: replace a folder that is already there.

  Raises:
    ValueError: if names and dimensions differ, or the folder exists and `overwrite` is False.
  """
  if set(modules) != set(dims):
    raise ValueError(f"modules {sorted(modules)} and their dimensions {sorted(dims)} differ")
  final = epath.Path(folder).expanduser()
  if final.exists() and any(final.iterdir()):
    if not overwrite:
      raise ValueError(f"{final} is not empty; choose another folder or pass --overwrite")
    if not (final / _MODEL).exists():
      raise ValueError(f"{final} holds no {_MODEL}, so it is not a folder of weights: not replaced")
  model = {"format": FORMAT, "modules": dict(dims), **(extra or {})}
  # Object stores have no rename: there, orbax' own atomic write and model.json last do the same.
  remote = "://" in str(final)
  target = final if remote else final.with_name(final.name + ".tmp")
  if target.exists():
    target.rmtree()
  target.mkdir(parents=True)
  orbax_io.write_tree(target / _PARAMS, dict(modules))
  (target / _MODEL).write_text(json.dumps(model, indent=2))
  if not remote:
    if final.exists():
      final.rmtree()
    target.rename(final)


def load_weights(
    folder: epath.PathLike, names: Iterable[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a folder that `save_weights` wrote.

  Args:
    folder: local or gs:// path.
    names: modules to read; None reads all.

  Returns:
    ({name: nested dict of numpy arrays}, model.json).

  Raises:
    FileNotFoundError: if there is no such folder, saying what to download.
    ValueError: if the folder is of a newer format or lacks one of `names`.
  """
  folder = epath.Path(folder).expanduser()
  model = read_model(folder)
  if names is not None:
    names = list(names)
    absent = sorted(set(names) - set(model["modules"]))
    if absent:
      raise ValueError(f"{folder} lacks {absent}; it holds {sorted(model['modules'])}")
  return dict(orbax_io.read_tree(folder / _PARAMS, names)), model


def read_model(folder: epath.PathLike) -> dict[str, Any]:
  """model.json of a folder.

  Raises:
    FileNotFoundError: if there is none, saying what to download.
    ValueError: if it is of another format.
  """
  path = epath.Path(folder).expanduser() / _MODEL
  if not path.exists():
    raise FileNotFoundError(missing_weights_message(str(folder)))
  model = json.loads(path.read_text())
  if model.get("format") != FORMAT:
    raise ValueError(f"{path}: format {model.get('format')!r}; this version reads {FORMAT}")
  return model


def saved_shapes(folder: epath.PathLike) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the arrays in a folder, without reading them."""
  return orbax_io.saved_shapes(epath.Path(folder).expanduser() / _PARAMS)


def module_dims(model: Mapping[str, Any]) -> dict[str, Any]:
  """{module: JSON-ready dimensions} of a model.json, where a run's says `tokenizer` for four."""
  dims = dict(model["modules"])
  if "tokenizer" in dims:
    tokenizer = presets.from_json(presets.TokenizerDims, dims.pop("tokenizer"))
    dims.update(split_tokenizer(tokenizer))
  return dims


def split_tokenizer(dims: presets.TokenizerDims) -> dict[str, Any]:
  """The tokenizer's dimensions by module, JSON-ready."""
  return {
      "vision_tower": presets.to_json(dims.vit),
      "mlp1": {"in_width": 4 * dims.vit.width, "width": dims.llm_width},
      "latent_head": {
          "depth": dims.latent_depth, "width": dims.llm_width, "channels": dims.latent_channels},
      "decoder": presets.to_json(dims.decoder)}


def tokenizer_dims(model: Mapping[str, Any]) -> presets.TokenizerDims:
  """The tokenizer that a model.json describes.

  Raises:
    ValueError: if it lacks one of the four modules.
  """
  dims = module_dims(model)
  absent = [name for name in ("vision_tower", "mlp1", "latent_head", "decoder") if name not in dims]
  if absent:
    raise ValueError(f"these weights are no whole tokenizer: they lack {', '.join(absent)} and "
                     f"hold {', '.join(sorted(dims))}")
  return presets.TokenizerDims(
      vit=presets.from_json(presets.VitDims, dims["vision_tower"]),
      llm_width=dims["mlp1"]["width"],
      latent_depth=dims["latent_head"]["depth"],
      decoder=presets.from_json(presets.DcaeDims, dims["decoder"]))


def unilip_dims(model: Mapping[str, Any]) -> presets.UnilipDims | None:
  """The whole model that a model.json describes; None where it describes a part alone."""
  dims = model["modules"]
  if not {"llm", "connector", "dit"} <= set(dims) or "generate" not in model:
    return None
  return presets.UnilipDims(
      tokenizer=tokenizer_dims(model),
      llm=presets.from_json(presets.LlmDims, dims["llm"]),
      connector=presets.from_json(presets.ConnectorDims, dims["connector"]),
      dit=presets.from_json(presets.DitDims, dims["dit"]),
      factor=model["generate"]["factor"])


def missing_weights_message(path: str) -> str:
  """What to download and run when no weights are at `path`."""
  name = str(path).rstrip("/").rpartition("/")[2].lower()
  wanted = [s for s in _SOURCES if s[0] in name]
  lines = [f"no weights at {path}", ""]
  if wanted:
    _, what, source, out = wanted[0]
    lines += [
        f"They are the {what}.",
        "Download and convert them once (docs/weights.md):", "",
        f"  python -m unilip_jax.convert import --source={source} --out={path or out}"]
  else:
    lines += ["Expected there: the workdir of a run, or imported weights (docs/weights.md):", ""]
    lines += [f"  python -m unilip_jax.convert import --source={source} --out={out}"
              for _, _, source, out in _SOURCES]
  lines += [
      "",
      "Without a network: download the files elsewhere and give their folder as --source.",
      "A size of `:tiny` (configs/stage2.py:tiny) runs without any download; "
      "--config.init_from= starts from random weights."]
  return "\n".join(lines)
