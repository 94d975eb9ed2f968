"""Measures the server under 16 clients against a plain loop over `UniLIP`, and compares all results.

  python -m benchmarks.serve_load [--requests=1000] [--clients=16] [--checkpoint=shapes:gen3]

The server is a process of its own on loopback; the clients are threads with the official openai package.
Of ten requests four generate, three edit and three ask. Then the same requests run one after another with
`UniLIP` in this process. Every image and answer is compared with that of the loop. Writes
benchmarks/results/serve_load_<device>.json.
"""

import argparse
import base64
import concurrent.futures
import dataclasses
import io
import re
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import openai
from PIL import Image

from benchmarks import harness
from unilip_jax import UniLIP
from unilip_jax.serve import uploads

_COLOURS, _SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")
_KINDS = ("generate",) * 4 + ("edit",) * 3 + ("chat",) * 3
_SOURCES = 16  # images to edit and to ask about
_ADDRESS = re.compile(r"serving .* on (http://\S+)")


@dataclasses.dataclass(frozen=True)
class Request:
  """One request: its kind, text, seed and image."""

  kind: str
  text: str
  seed: int
  image: np.ndarray | None


def make_requests(count: int, sources: list[np.ndarray]) -> list[Request]:
  """Makes a fixed mix of requests."""
  rng, requests = np.random.default_rng(0), []
  for i in range(count):
    colour, shape = rng.choice(_COLOURS), rng.choice(_SHAPES)
    kind = _KINDS[i % len(_KINDS)]
    text = {"generate": f"a {colour} {shape}", "edit": f"add a {colour} {shape}",
            "chat": f"What colour is the {shape}?"}[kind]
    image = None if kind == "generate" else sources[int(rng.integers(len(sources)))]
    requests.append(Request(kind, text, int(rng.integers(2**32)), image))
  return requests


def ask_server(client: openai.OpenAI, request: Request) -> np.ndarray | str:
  """Sends one request; returns its image or answer."""
  png = None if request.image is None else uploads.encode(request.image)
  if request.kind == "chat":
    url = f"data:image/png;base64,{uploads.as_base64(png)}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]
    done = client.chat.completions.create(
        model="unilip", messages=[{"role": "user", "content": content}], max_tokens=32, temperature=0)
    return done.choices[0].message.content
  extra = {"seed": request.seed}
  done = (client.images.generate(model="unilip", prompt=request.text, extra_body=extra) if png is None else
          client.images.edit(model="unilip", prompt=request.text, image=png, extra_body=extra))
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(done.data[0].b64_json))))


def ask_model(model: UniLIP, request: Request) -> np.ndarray | str:
  """Runs one request with UniLIP."""
  if request.kind == "chat":
    return model.chat(request.image, request.text, max_new_tokens=32)
  if request.kind == "edit":
    return model.edit(request.image, request.text, seed=request.seed, output="array")
  return model.generate(request.text, seed=request.seed, output="array")


def _compare(requests: list[Request], served: list[Any], looped: list[Any]) -> dict[str, Any]:
  images = [(s, l) for r, s, l in zip(requests, served, looped) if r.kind != "chat"]
  answers = [(s, l) for r, s, l in zip(requests, served, looped) if r.kind == "chat"]
  differences = [int(np.abs(s.astype(int) - l).max()) for s, l in images]
  return {"images": len(images), "images_equal": sum(d == 0 for d in differences),
          "images_within_1": sum(d <= 1 for d in differences), "largest_difference": max(differences),
          "answers": len(answers), "answers_equal": sum(s == l for s, l in answers)}


def _start(args: argparse.Namespace) -> tuple[subprocess.Popen, str]:
  """Starts the server; returns (process, address) when it has compiled."""
  server = subprocess.Popen(
      [sys.executable, "-m", "unilip_jax.serve", f"--checkpoint={args.checkpoint}", f"--dtype={args.dtype}",
       f"--batch_size={args.batch_size}", "--port=0", "--page=no", "--steps=20"],
      stderr=subprocess.PIPE, text=True)
  for line in server.stderr:
    print(line, end="", file=sys.stderr)
    if match := _ADDRESS.search(line):
      threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop it
      return server, match[1]
  raise ValueError("the server did not start")


def _serve(args: argparse.Namespace, requests: list[Request]) -> tuple[list[Any], np.ndarray, float]:
  """Returns (results, seconds of each request, seconds of all)."""
  server, address = _start(args)
  latencies = np.zeros(len(requests))
  try:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as client:
      def run(i):
        begin = time.perf_counter()
        result = ask_server(client, requests[i])
        latencies[i] = time.perf_counter() - begin
        return result

      for kind in dict.fromkeys(_KINDS):  # programs of lengths that the start did not compile
        for size in (1, 2, 4, args.batch_size):
          same = [i for i, r in enumerate(requests) if r.kind == kind][:size]
          with concurrent.futures.ThreadPoolExecutor(size) as pool:
            list(pool.map(run, same))
      begin = time.perf_counter()
      with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
        results = list(pool.map(run, range(len(requests))))
      return results, latencies, time.perf_counter() - begin
  finally:
    server.terminate()
    server.wait(60)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--checkpoint", default="shapes:gen3")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--requests", type=int, default=1000)
  parser.add_argument("--clients", type=int, default=16)
  parser.add_argument("--batch_size", type=int, default=8)
  args = parser.parse_args()
  model = UniLIP.load(args.checkpoint, args.dtype)
  sources = [model.generate(f"a {_COLOURS[i % 4]} {_SHAPES[i // 4]}", seed=i, output="array")
             for i in range(_SOURCES)]
  requests = make_requests(args.requests, sources)
  served, latencies, seconds = _serve(args, requests)
  for request in requests[:len(_KINDS)]:
    ask_model(model, request)  # compiles
  begin = time.perf_counter()
  looped = [ask_model(model, request) for request in requests]
  loop_seconds = time.perf_counter() - begin
  rows = [harness.row("server, 16 clients" if args.clients == 16 else f"server, {args.clients} clients",
                      [len(requests) / seconds], "requests/s", True) | _compare(requests, served, looped),
          harness.row("loop over UniLIP", [len(requests) / loop_seconds], "requests/s", True),
          harness.row("server / loop", [loop_seconds / seconds], "×", True)]
  for kind in dict.fromkeys(_KINDS):
    own = latencies[[r.kind == kind for r in requests]]
    rows.append(harness.row(f"latency, {kind}", own, "s") | {"p99": float(np.percentile(own, 99))})
  harness.write(f"benchmarks/results/serve_load_{harness.label()}.json", "serve_load", vars(args), rows)


if __name__ == "__main__":
  main()
