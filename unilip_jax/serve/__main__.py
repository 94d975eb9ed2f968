"""Serves a checkpoint over HTTP with OpenAI's API, and as a page.

  python -m unilip_jax.serve --checkpoint=DIR [--lora DIR ...] [--compare=DIR] [--port=8000]

Routes: /v1/images/generations, /v1/images/edits, /v1/chat/completions, /v1/models, /health, /metrics, and
the page at /ui if gradio is installed. Programs are compiled before the first request, and kept on disk.
SIGTERM and Ctrl-C finish what was accepted. Without --host the server listens on this machine alone. See
docs/serving.md. JAX is imported after the options are checked.
"""

import argparse
import importlib.util
import os
import socket
import sys

from unilip_jax.common import arguments, command_options, errors, rectangles
from unilip_jax.configs import base
from unilip_jax.serve import options

_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_REMEDY = ("pip install -r requirements-serve.txt, or bash launch/serve.sh …, which keeps an environment "
           "of its own")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="unilip serve", description=__doc__, formatter_class=command_options.Help)
  add, limits, offer = parser.add_argument, options.Limits(), options.Offer()
  add("--checkpoint", required=True, type=command_options.path,
      help="workdir, step folder, imported weights or shapes:NAME; local or gs://")
  add("--lora", nargs="+", default=[], metavar="PATH[:WEIGHT]",
      help="adapters on top of --checkpoint: runs that trained them, or folders of PEFT or diffusers")
  add("--compare", default="", type=command_options.optional_path,
      help="a second checkpoint, for the page's comparison and as a model of the API")
  add("--model_name", default="unilip", help="id of the checkpoint in the API")
  add("--compare_name", default="unilip-compare", help="id of the second checkpoint")
  add("--aliases", default="", help="further names of the first, comma-separated, for clients that have a "
      "fixed one, e.g. gpt-image-1,dall-e-2")
  add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every network")
  add("--port", type=command_options.integer(0), default=8000, help="to listen on; 0 takes a free one")
  add("--key_from_environment", default="", metavar="NAME",
      help="environment variable with the key that requests must bring; default: none is asked for")
  add("--dtype", default="bfloat16", choices=("bfloat16", "float32"),
      help="of the computation and of the weights in memory")
  add("--int8", action="store_true", help="keep large matrices in int8")
  add("--batch_size", type=command_options.integer(1), default=8,
      help="rows that run at once; programs are compiled for it and each smaller power of two")
  add("--steps", default=",".join(map(str, offer.steps)),
      help="numbers of steps that requests may choose; the first unless they do")
  add("--sizes", default="", metavar="HEIGHTxWIDTH,…",
      help="sizes of images that requests may choose besides the model's square, e.g. 336x588,588x336; one "
      "program each. The API writes them as WIDTHxHEIGHT. An edit without a size takes the nearest shape")
  add("--guidance", type=float, default=offer.guidance,
      help="strength of the prompt unless a request chooses")
  add("--warm_up", default="default", choices=("all", "default", "none"),
      help="compile before the first request: all numbers of steps, the default one, or nothing")
  add("--queue", type=command_options.integer(1), default=limits.queue,
      help="images and answers that wait for the device; further requests get 429")
  add("--max_body_mb", type=command_options.integer(1), default=limits.body_bytes >> 20,
      help="MiB of a request")
  add("--max_pixels", type=command_options.integer(1), default=limits.pixels,
      help="pixels of an image that is sent")
  add("--max_prompt_tokens", type=command_options.integer(1), default=limits.prompt_tokens,
      help="tokens of a conversation with its image")
  add("--max_new_tokens", type=command_options.integer(1), default=limits.new_tokens,
      help="tokens of an answer")
  add("--max_tiles", type=command_options.integer(1), default=offer.max_tiles,
      help="tiles that an image of a conversation is cut into, at most")
  add("--timeout", type=float, default=limits.seconds, help="seconds from a request to its answer")
  add("--grace", type=float, default=60.0, help="seconds that accepted requests get after SIGTERM")
  add("--compilation_cache", default=base.COMPILATION_CACHE, type=command_options.optional_path,
      help='folder of compiled programs; "" keeps none')
  add("--page", default="auto", choices=("auto", "yes", "no"),
      help="the page at /ui: if gradio is installed, in any case, or not")
  return parser


def _limits(args: argparse.Namespace) -> options.Limits:
  body = args.max_body_mb << 20
  return options.Limits(
      queue=args.queue, body_bytes=body, open_bytes=4 * body, pixels=args.max_pixels,
      prompt_tokens=args.max_prompt_tokens, new_tokens=min(args.max_new_tokens, 16384),
      seconds=arguments.number("timeout", args.timeout, 0.0, open_below=True))


def _offer(args: argparse.Namespace) -> options.Offer:
  try:
    steps = tuple(dict.fromkeys(int(part) for part in args.steps.split(",")))
  except ValueError:
    raise ValueError(f"--steps={args.steps}: give numbers separated by commas") from None
  for number in steps:
    arguments.integer("steps", number, 1, 1000)
  guidance = arguments.number("guidance", args.guidance, 0.0, options.Offer().max_guidance)
  sizes = tuple(rectangles.parse("--sizes", part) for part in args.sizes.split(",") if part)
  return options.Offer(steps, guidance, max_tiles=args.max_tiles, sizes=sizes,
                       aliases=tuple(name for name in args.aliases.split(",") if name))


def _key(args: argparse.Namespace) -> str:
  """Reads the key; it never is an argument, which every user of the machine could see."""
  name = args.key_from_environment
  key = os.environ.get(name, "").strip() if name else ""
  if name and not key:
    raise ValueError(f"--key_from_environment={name}: the environment has no such variable, or it is empty")
  if not key and args.host not in _LOOPBACK:
    print(f"--host={args.host} without --key_from_environment: everybody who reaches this address can use "
          "the model", file=sys.stderr)
  return key


def _has_page(args: argparse.Namespace) -> bool:
  """Returns whether the page is served; checks the packages."""
  missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
  if missing:
    raise ValueError(f"the server needs {', '.join(missing)}: {_REMEDY}")
  if args.page == "no":
    return False
  if importlib.util.find_spec("gradio") is not None:
    return True
  if args.page == "yes":
    raise ValueError(f"the page needs gradio: {_REMEDY}")
  print(f"no page at /ui: it needs gradio ({_REMEDY})", file=sys.stderr)
  return False


def _check_address(host: str, port: int) -> None:
  """Checks that the server can listen there, before weights are read and programs are compiled."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, arguments.integer("--port", port, 0, 65535), type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, protocol) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
      probe.bind(address)
  except OSError as error:
    raise ValueError(f"--host={host} --port={port}: {error.strerror or error}. Choose another address or "
                     "port (0 takes a free one), or end what listens there") from error


def main(argv: list[str] | None = None) -> None:
  """Serves until a signal."""
  args = _parser().parse_args(argv)
  arguments.number("grace", args.grace, 0.0)
  names = [args.model_name] + [args.compare_name] * bool(args.compare)
  if len(set(names)) < len(names) or not all(names):
    raise ValueError("--model_name and --compare_name must differ and not be empty")
  limits, offer, key, page = _limits(args), _offer(args), _key(args), _has_page(args)
  _check_address(args.host, args.port)
  _serve(args, names, limits, offer, key, page)


def _serve(
    args: argparse.Namespace, names: list[str], limits: options.Limits, offer: options.Offer, key: str,
    page: bool) -> None:
  """Loads, compiles and serves."""
  from absl import flags, logging

  from unilip_jax.infer import model, rows
  from unilip_jax.sampling import sampler
  from unilip_jax.serve import app as app_lib
  from unilip_jax.serve import server, service

  flags.FLAGS.mark_as_parsed()  # argparse read the command line; else absl's first line is a warning
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  sizes = [2**i for i in range(args.batch_size.bit_length()) if 2**i < args.batch_size] + [args.batch_size]
  paths = [args.checkpoint] + [args.compare] * bool(args.compare)
  models = {name: rows.Rows(model.UniLIP.load(
      path, args.dtype, batch_size=args.batch_size, int8=args.int8, adapters=adapters,
      compilation_cache=args.compilation_cache), sizes)
      for name, path, adapters in zip(names, paths, (args.lora, ()))}
  for one in models.values():
    for size in offer.sizes:
      rectangles.check("--sizes", size, one.model.image_size, one.model.tokenizer_dims.vit.pixels_per_token)
    try:
      one.check(sampler.Options(offer.steps[0], offer.guidance))
    except ValueError as error:
      raise ValueError(f"{error}: start the server with --steps=4,2,1 --guidance=1") from None
  served = service.Service(models, limits, offer)
  app = app_lib.make_app(served, key)
  if page:
    from unilip_jax.serve import page as page_lib

    app = page_lib.mount(app, served, key)
  if args.warm_up != "none":
    logging.info("compiling; programs are kept in %s", args.compilation_cache or "memory alone")
    steps = offer.steps if args.warm_up == "all" else offer.steps[:1]
    served.engine.warm_up(steps, offer.guidance, offer.sizes, page=page)
  server.Server(app, served, host=args.host, port=args.port, grace=args.grace, page=page).run()


if __name__ == "__main__":
  errors.run_command(main)
