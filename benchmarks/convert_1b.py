"""Imports and exports a UniLIP of published 1B size with random weights: time, peak memory, bit-equality.

  python -m benchmarks.convert_1b [--scratch=DIR] [--size=1b|3b] [--out=FILE]

The folder is built by the classes of transformers and diffusers at the published dimensions, bfloat16, in
shards of 1 GB. Every command runs in a process of its own, whose peak resident memory is measured; it
must stay below 1.25 × the largest shard + the target, and that of UniLIP.load below 1.25 × the weights.
Needs 12 GB of disk (3b: 25 GB), which is freed.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import harness

_SHARD = 1_000_000_000
_BOUND = 1.25
_CONVERT = [sys.executable, "-m", "unilip_jax.convert"]
_THIS = [sys.executable, "-m", "benchmarks.convert_1b"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--scratch", default=tempfile.gettempdir(), help="where the folders are written")
  parser.add_argument("--size", default="1b", choices=["1b", "3b"])
  parser.add_argument("--out", default="benchmarks/results/convert_1b_cpu.json")
  parser.add_argument("--build", help=argparse.SUPPRESS)  # parts that run in processes of their own
  parser.add_argument("--compare", nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.build:
    build(args.size, pathlib.Path(args.build))
    return
  if args.compare:
    print(_assert_bit_equal(*map(pathlib.Path, args.compare)))
    return
  pathlib.Path(args.scratch).mkdir(parents=True, exist_ok=True)
  root = pathlib.Path(tempfile.mkdtemp(prefix="convert_", dir=args.scratch))
  try:
    rows, settings = measure(args.size, root)
  finally:
    shutil.rmtree(root)
  harness.write(args.out, "convert_1b", settings, rows)


def measure(size: str, root: pathlib.Path):
  """Returns (rows, settings) of import, export and loading."""
  source, imported, back = root / "source", root / "imported", root / "back"
  _run([*_THIS, f"--size={size}", f"--build={source}"])
  shards = [p.stat().st_size for p in source.glob("*.safetensors")]
  output = subprocess.run([*_CONVERT, "inspect", str(source)], check=True, text=True,
                        capture_output=True).stdout
  counts = [line.strip() for line in output.splitlines() if "published" in line]
  if len(counts) != 9 or not all("equal" in line for line in counts):
    raise SystemExit("parameter counts differ from the published ones:\n" + output)
  rows = []
  for name, command, target in (
      ("import", ["import", f"--source={source}", f"--out={imported}"], sum(shards)),
      ("export, unilip", ["export", f"--checkpoint={imported}", "--format=unilip",
                          "--dtype=source", f"--out={back}"], sum(shards))):
    seconds, peak = _run([*_CONVERT, *command])
    bound = _BOUND * max(shards) + target
    if peak > bound:
      raise SystemExit(f"{name}: {peak / 1e9:.2f} GB at the peak, more than {bound / 1e9:.2f} GB")
    rows += [harness.row(f"{name}, time", [seconds], "s"),
             harness.row(f"{name}, peak memory", [peak / 1e9], "GB"),
             harness.row(f"{name}, bound on memory", [bound / 1e9], "GB")]
  tensors = int(subprocess.run(
      [*_THIS, "--compare", str(source), str(back)], check=True, text=True, stdout=subprocess.PIPE).stdout)
  script = ("from unilip_jax import UniLIP; import sys; m = UniLIP.load(sys.argv[1]); "
            "print(m.image_size)")
  seconds, peak = _run([sys.executable, "-c", script, str(imported)])
  bound = _BOUND * sum(shards)
  if peak > bound:
    raise SystemExit(f"UniLIP.load: {peak / 1e9:.2f} GB at the peak, more than {bound / 1e9:.2f} GB")
  rows += [harness.row("UniLIP.load in bfloat16, time", [seconds], "s"),
           harness.row("UniLIP.load in bfloat16, peak memory", [peak / 1e9], "GB"),
           harness.row("UniLIP.load in bfloat16, bound on memory", [bound / 1e9], "GB")]
  return rows, {"size": size, "source_gb": sum(shards) / 1e9, "largest_shard_gb": max(shards) / 1e9,
                "shards": len(shards), "tensors": tensors, "round_trip": "bit-equal",
                "parameters": counts}


def _run(command: list[str]) -> tuple[float, int]:
  """Runs a process; returns (seconds, peak resident bytes). Its output is shown only if it fails."""
  print("+", " ".join(command), flush=True)
  start = time.perf_counter()
  with tempfile.TemporaryFile() as output:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                               env=os.environ | {"JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      output.seek(0)
      raise SystemExit(f"failed ({process.returncode}):\n{output.read().decode()[-4000:]}")
  seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024  # Linux counts in KiB
  # A process inherits the peak of the one that started it: this one has to stay small.
  if usage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
    raise SystemExit(f"{peak / 1e9:.2f} GB may be this benchmark's own peak, not the command's")
  print(f"  {seconds:.0f} s, {peak / 1e9:.2f} GB", flush=True)
  return seconds, peak


def _assert_bit_equal(source: pathlib.Path, back: pathlib.Path) -> int:
  """Compares every tensor's bits; returns their number."""
  from safetensors import safe_open
  import torch

  def opened(folder):
    files = [safe_open(p, "pt") for p in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118

  exported, source_files = opened(back), opened(source)
  if exported.keys() != source_files.keys():
    raise SystemExit(f"names differ: {sorted(exported.keys() ^ source_files.keys())[:8]}")
  for name, file in source_files.items():
    a, b = file.get_tensor(name), exported[name].get_tensor(name)
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(
        a.view(torch.int16), b.view(torch.int16)):
      raise SystemExit(f"{name} differs after import and export")
  return len(source_files)


def build(size: str, folder: pathlib.Path) -> None:
  """Writes the folder, tensor by tensor; random bits with a tame exponent."""
  from safetensors import torch as safetensors_torch
  import torch

  shapes, config = _shapes(size)
  folder.mkdir(parents=True)
  rng, part, parts, nbytes = np.random.default_rng(0), {}, [], 0
  for name, shape in shapes.items():
    bits = rng.integers(0, 2**16, shape, np.uint16)
    bits = (bits & 0x80FF) | 0x3C00  # ± 0.0078 … 0.031
    tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    if part and nbytes + bits.nbytes > _SHARD:
      parts.append(part)
      safetensors_torch.save_file(part, folder / f"{len(parts)}.part", metadata={"format": "pt"})
      part, nbytes = {}, 0
    part[name], nbytes = tensor, nbytes + bits.nbytes
  parts.append(part)
  safetensors_torch.save_file(part, folder / f"{len(parts)}.part", metadata={"format": "pt"})
  weight_map = {}
  for i, names in enumerate(parts, 1):
    final = f"model-{i:05d}-of-{len(parts):05d}.safetensors"
    (folder / f"{i}.part").rename(folder / final)
    weight_map |= dict.fromkeys(names, final)
  (folder / "model.safetensors.index.json").write_text(
      json.dumps({"metadata": {}, "weight_map": weight_map}))
  (folder / "config.json").write_text(json.dumps(config))
  _write_tokenizer(folder)


def _shapes(size: str):
  """Returns ({published name: shape}, config.json), from the libraries' classes on torch's meta device."""
  import diffusers
  import torch
  from torch import nn
  import transformers
  from transformers.models.qwen2 import modeling_qwen2

  llm, dit = {
      "1b": (dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                  num_attention_heads=14, num_key_value_heads=2), (28, 36, 32, 16, 72)),
      "3b": (dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                  num_attention_heads=12, num_key_value_heads=2), (20, 70, 32, 20, 112))}[size]
  llm |= dict(vocab_size=151_677, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=False,
              model_type="qwen2")
  width, layers, heads, dim, cross, cross_dim = llm["hidden_size"], *dit
  head = lambda wide, out: nn.Sequential(
      nn.LayerNorm(wide), nn.Linear(wide, out), nn.GELU(), nn.Linear(out, out))
  with torch.device("meta"):
    causal = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**llm))
    connector = modeling_qwen2.Qwen2Model(
        transformers.Qwen2Config(**llm | {"num_hidden_layers": 6}))
    del connector.embed_tokens
    modules = {
        "model.language_model": causal.model, "model.llm_connector": connector,
        "model.projector": nn.Linear(width, 2304),
        "model.dit": diffusers.SanaTransformer2DModel(
            num_layers=layers, num_attention_heads=heads, attention_head_dim=dim,
            num_cross_attention_heads=cross, cross_attention_head_dim=cross_dim,
            cross_attention_dim=heads * dim, caption_channels=2304, sample_size=16, patch_size=1,
            in_channels=32, out_channels=32, mlp_ratio=2.5),
        "model.vae_decoder.decoder": diffusers.AutoencoderDC(
            encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3,) * 6,
            encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            downsample_block_type="Conv", upsample_block_type="interpolate").decoder,
        "model.multi_modal_projector": head(4096, width),
        "model.vae_decoder.down_mlp": head(width, 32),
        **{f"model.vae_decoder.down_blocks.{i}.mlp": head(width, width) for i in range(3)}}
  shapes = {f"{prefix}.{name}": tuple(value.shape)
            for prefix, module in modules.items() for name, value in module.state_dict().items()}
  shapes |= _internvit() | {"lm_head.weight": (151_677, width),
                            "model.latent_queries": (1, 256, width)}
  vision = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                intermediate_size=4096, patch_size=14, image_size=448, layer_norm_eps=1e-6)
  return shapes, {
      "model_type": "unilip_internvl", "n_query": 256, "connect_layer": 6, "text_config": llm,
      "vision_config": vision, "unilip_factor": 10.6 if size == "1b" else 9.5,
      "dit_path": f"Efficient-Large-Model/Sana_{'600' if size == '1b' else '1600'}M_512px_diffusers",
      "vae_path": "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"}


def _internvit() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of InternVL's original tower, whose class comes with its repository."""
  tower = "model.vision_tower."
  shapes = {
      f"{tower}embeddings.class_embedding": (1, 1, 1024),
      f"{tower}embeddings.position_embedding": (1, 1025, 1024),
      f"{tower}embeddings.patch_embedding.weight": (1024, 3, 14, 14),
      f"{tower}embeddings.patch_embedding.bias": (1024,)}
  for i in range(24):
    layer = f"{tower}encoder.layers.{i}."
    for name, out, width in (("attn.qkv", 3072, 1024), ("attn.proj", 1024, 1024),
                             ("mlp.fc1", 4096, 1024), ("mlp.fc2", 1024, 4096)):
      shapes |= {f"{layer}{name}.weight": (out, width), f"{layer}{name}.bias": (out,)}
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1", "ls2"):
      shapes[f"{layer}{name}"] = (1024,)
  return shapes


def _write_tokenizer(folder: pathlib.Path) -> None:
  """Writes a small tokenizer with the special tokens that an export needs."""
  import tokenizers

  from unilip_jax.data import text

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
  tokenizer.add_special_tokens([text.PAD, text.TURN_START, text.TURN_END, text.IMAGE_START, text.IMAGE_END,
                           text.IMAGE_SLOT])
  tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
  main()
