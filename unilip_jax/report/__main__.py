"""Writes DIR/report.html: curves, image grids and tables of a run, or a comparison of several.

  python -m unilip_jax.report --workdir=DIR [--compare=DIR2,DIR3]
"""

import argparse
from collections.abc import Sequence

from unilip_jax.common import command_options, errors, paths


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; imports the report's libraries once the options are read."""
  parser = argparse.ArgumentParser(
      prog="unilip report", description=__doc__, formatter_class=command_options.Help)
  parser.add_argument("--workdir", required=True, type=command_options.path,
                      help="folder of the run, local or gs://; the report is written there")
  parser.add_argument("--compare", default="", help="comma-separated workdirs to show next to it")
  args = parser.parse_args(argv)
  from unilip_jax.report import page

  print(page.write(args.workdir, paths.split(args.compare)))


if __name__ == "__main__":
  errors.run_command(main)
