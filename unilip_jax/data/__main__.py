"""The command `unilip data`: a first look at own images (look), or the conversion of large sets."""

import sys

from unilip_jax.common import errors

COMMANDS = ("look", "blip3o", "gpt_image_edit", "sharegpt4o", "imagenet", "json_lines", "merge", "check")


def main(arguments: list[str]) -> None:
  """Runs the command that the first argument names; exits with status 2 for none or an unknown one."""
  name = arguments[0] if arguments else ""
  if name == "look":
    from unilip_jax.data.own import look_command

    errors.run_command(lambda: look_command.main(arguments[1:]))
  elif name in COMMANDS or name.startswith("-"):
    from unilip_jax.data.prepare import __main__ as prepare

    prepare.run_command()
  else:
    what = f"unknown command {name!r}" if name else "no command"
    print(f"error: unilip data: {what}; choose {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main(sys.argv[1:])
