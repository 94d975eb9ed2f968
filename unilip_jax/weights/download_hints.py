"""Explains what to download and how to convert it when weights are absent (docs/weights.md)."""

import difflib
import os

from unilip_jax.common import paths, registry

_STAGES = ("stage1", "stage2", "stage448", "gen1", "gen2", "gen3", "reca", "few_step")
_PYTORCH_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# (substring of the folder's name, description, --source, usual --out); the first match wins.
_SOURCES = (
    ("internvl3-2b",
     "CLIP tower, mlp1, language model and tokenizer of the 3B model (InternVL3-2B, 4.2 GB)",
     "hf://OpenGVLab/InternVL3-2B", "weights/internvl3-2b"),
    ("internvl3",
     "CLIP tower, mlp1, language model and tokenizer of the 1B model (InternVL3-1B, 1.9 GB; the -hf "
     "repository loads too)",
     "hf://OpenGVLab/InternVL3-1B", "weights/internvl3-1b"),
    ("dc-ae",
     "pixel decoder and encoder (DC-AE f32c32 sana-1.1, 1.2 GB)",
     "hf://mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "weights/dc-ae-f32c32-sana-1.1"),
    ("sana-1600m",
     "diffusion transformer of the 3B model (SANA 1.6B, 3.2 to 6.4 GB)",
     "hf://Efficient-Large-Model/Sana_1600M_512px_diffusers", "weights/sana-1600m"),
    ("sana",
     "diffusion transformer of the 1B model (SANA 0.6B, 1.2 to 2.4 GB)",
     "hf://Efficient-Large-Model/Sana_600M_512px_diffusers", "weights/sana-600m"),
    ("perceptual",
     "perceptual networks: torchvision's vgg16-397923af.pth (528 MB) and "
     "convnext_small-0c510722.pth (192 MB) from https://download.pytorch.org/models/, LPIPS' "
     "vgg.pth (7 kB) from https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1), "
     "all three in one folder; with alexnet-owt-7be5be79.pth (233 MB) and alex.pth, or "
     "squeezenet1_1-b8a52dc0.pth (5 MB) and squeeze.pth, from the same places LPIPS on these too",
     "downloads/perceptual", "weights/perceptual"),
    ("inception",
     "Inception-v3 of the Fréchet inception distance: pt_inception-2015-12-05-6726825d.pth (91 MB) from "
     "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights; torchvision's has other weights",
     "downloads/pt_inception-2015-12-05-6726825d.pth", "weights/inception"),
    ("unilip-3b",
     "the complete published UniLIP of 3B (kanashi6/UniLIP-3B)",
     "hf://kanashi6/UniLIP-3B", "weights/unilip-3b"),
    ("unilip",
     "the complete published UniLIP of 1B (kanashi6/UniLIP-1B); 1b_unilip.pth and 2b_unilip.pth, the "
     "tokenizers alone, load too",
     "hf://kanashi6/UniLIP-1B", "weights/unilip-1b"),
)


def missing_weights_message(path: str) -> str:
  """Explains what to download and run when `path` holds no weights in the format of this package."""
  if _is_pytorch(path):
    return (f"{path} holds PyTorch files; convert them once (docs/weights.md):\n\n"
            f"  python -m unilip_jax.convert import --source={path} --out=weights/NAME\n\n"
            "Then pass that folder.")
  name = str(path).rstrip("/").rpartition("/")[2].lower()
  near = _nearest(str(path))
  lines = [f"no weights at {path}" + (f"; did you mean {near}?" if near else ""), ""]
  if name in _STAGES:
    lines += ["They are those of an earlier stage; train it first (:tiny, :1b and :3b are its sizes):", "",
              f"  python -m unilip_jax.main --config=configs/{name}.py:1b --workdir={path}"]
  elif matches := [s for s in _SOURCES if s[0] in name]:
    _, description, source, out = matches[0]
    lines += [
        f"They are the {description}.",
        "Download and convert them once (docs/weights.md):", "",
        f"  python -m unilip_jax.convert import --source={source} --out={path or out}"]
  elif "weights" not in str(path).split("/"):
    return (f"{lines[0]}\n"
            "Expected the workdir of a run, imported weights (docs/weights.md) or shapes:NAME")
  else:
    lines += ["Expected the workdir of a run, or imported weights (docs/weights.md):", ""]
    lines += [f"  python -m unilip_jax.convert import --source={source} --out={out}"
              for _, _, source, out in _SOURCES]
  if name not in _STAGES:
    lines += [
        "", "Without a network: download the files on another machine and pass their folder as --source.",
        "A size of `:tiny` (configs/stage2.py:tiny) runs without any download; --config.init_from= "
        "starts from random weights."]
  return "\n".join(lines)


def _nearest(path: str) -> str:
  """Returns what a mistyped path is likely to mean: included weights or a folder near it; "" if neither."""
  if "/" not in path:
    for prefix in registry.names("weights"):
      try:
        registry.find("weights", prefix)(path)
        return f"{prefix}:{path}"
      except FileNotFoundError:  # no weights of that name
        continue
  parent, _, name = path.rstrip("/").rpartition("/")
  if paths.is_remote(path) or not os.path.isdir(parent or "."):
    return ""
  folders = [item.name for item in os.scandir(parent or ".") if item.is_dir()]
  near = difflib.get_close_matches(name, folders, n=1, cutoff=0.75)
  return os.path.join(parent, near[0]) if near else ""


def _is_pytorch(path: str) -> bool:
  """Tells whether `path` holds PyTorch files or a diffusers pipeline."""
  folder = paths.path(path)
  if not folder.is_dir():
    return folder.suffix in _PYTORCH_SUFFIXES and folder.exists()
  return (folder / "transformer").is_dir() or any(
      p.suffix in _PYTORCH_SUFFIXES for p in folder.iterdir())
