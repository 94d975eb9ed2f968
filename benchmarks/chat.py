"""Measures answers of the language model, prefill and decode, in JAX and by transformers' `generate`.

  python -m benchmarks.chat [--size=tiny] [--batch_sizes=1,8] [--prompt=256] [--new=128] [--dtype=float32]
  python -m benchmarks.chat --size=1b --dtype=bfloat16 --compile            # one 80 GB GPU

Both sides read the same random token ids without a pad, take the likeliest token, and generate exactly
`new` tokens; no token stops them. JAX runs the program of UniLIP.chat (prefill, and a loop over a cache).
PyTorch runs Qwen2ForCausalLM.generate with its dynamic cache, and with --compile also with its static cache
and torch.compile, as transformers does it. Prefill is the time to the first token. Writes
benchmarks/results/chat_<size>_<dtype>_<device>.json.
"""

import functools

import jax
import numpy as np
import torch

from benchmarks import harness, pair
from unilip_jax.sampling import text as text_sampling

_NEVER = -1  # no token has this id


def _jax_answer(both: pair.Pair, tokens: np.ndarray, new: int):
  model, params = both.network(), {"llm": both.params["llm"]}

  @functools.partial(jax.jit)
  def answer(params, tokens, mask):
    logits, cache = model.answer_prefill(params, tokens, mask, _NEVER)
    return text_sampling.decode(
        lambda t, valid, c: model.answer_step(params, t, valid, c), logits, cache,
        max_new_tokens=new, stop=_NEVER, seed=0)

  mask = np.ones(tokens.shape, np.bool_)
  return lambda: jax.device_get(answer(params, tokens, mask))[0]


def _torch_answer(both: pair.Pair, tokens: np.ndarray, new: int, cache: str):
  ids = torch.from_numpy(tokens.astype(np.int64)).to(both.device)
  mask = torch.ones_like(ids)
  options = {} if cache == "dynamic" else {"cache_implementation": "static"}

  @torch.inference_mode()
  def run():
    out = both.torch_model.llm.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None,
        pad_token_id=0, **options)
    return out[:, ids.shape[1]:].cpu().numpy()

  return run


def main() -> None:
  parser = pair.arguments(__doc__, "1,8")
  parser.add_argument("--prompt", type=int, default=256, help="tokens")
  parser.add_argument("--new", type=int, default=128, help="tokens")
  args = parser.parse_args()
  both = pair.make(args)
  caches = {"transformers": "dynamic"} | ({"transformers, static": "static"} if args.compile else {})
  rows = []
  for batch_size in map(int, args.batch_sizes.split(",")):
    tokens = np.random.default_rng(0).integers(
        0, both.dims.llm.vocab, (batch_size, args.prompt)).astype(np.int32)
    seconds = {}
    for new in (1, args.new):
      makers = {"unilip_jax": functools.partial(_jax_answer, both, tokens, new)} | {
          name: functools.partial(_torch_answer, both, tokens, new, cache)
          for name, cache in caches.items()}
      seconds[new], errors = harness.measure(makers, repeats=args.repeats, clock=both.clock)
      what, work = (("to the first token", args.prompt) if new == 1 else
                    (f"{new} new tokens", new))
      rows += harness.compared(f"{what}, batch {batch_size}", seconds[new], errors,
                               work=batch_size * work, unit="tokens/s")
    # Of each token after the first: the total time without the time to the first.
    decode = {name: [(total - np.median(seconds[1][name])) / (args.new - 1) for total in values]
              for name, values in seconds[args.new].items() if name in seconds[1]}
    rows += harness.compared(f"decode alone, batch {batch_size}", decode, {}, work=batch_size,
                             unit="tokens/s")
  harness.write(
      f"benchmarks/results/chat_{args.size}_{args.dtype}_{harness.label()}{args.suffix}.json", "chat",
      vars(args) | {"clock": both.clock.__name__}, rows)


if __name__ == "__main__":
  main()
