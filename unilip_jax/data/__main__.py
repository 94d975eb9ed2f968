"""The command `unilip data`: a first look at own images (look), or the conversion of large sets."""

import sys

from unilip_jax.common import errors

if __name__ == "__main__":
  if sys.argv[1:2] == ["look"]:
    from unilip_jax.data.own import look_command

    errors.run_command(lambda: look_command.main(sys.argv[2:]))
  else:
    from unilip_jax.data.prepare import __main__ as prepare

    prepare.run_command()
