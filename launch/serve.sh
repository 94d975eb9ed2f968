#!/usr/bin/env bash
# Serves a checkpoint over HTTP and as a page: unilip serve in .venv-serve, an environment with the packages of
# .venv but gradio and the older Pillow that it needs. Safe to run twice. Undo: rm -r .venv-serve
#   bash launch/serve.sh --checkpoint=runs/gen3 [options of unilip serve]
set -euo pipefail
from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then
  echo "usage: bash launch/serve.sh --checkpoint=DIR [options of unilip serve, see --help]" >&2
  exit 2
fi

[ -x .venv/bin/python ] || bash launch/setup.sh
environment=.venv-serve
stamp="$(cksum < requirements-serve.txt)"
if [ ! -f "$environment/stamp" ] || [ "$(cat "$environment/stamp")" != "$stamp" ]; then
  echo "installing gradio into $environment (about 0.3 GB); pip will name a conflict about Pillow, which is expected:"
  echo "gradio takes an older one than .venv, whose own stays as it is"
  .venv/bin/python -m venv "$environment"
  site='import sysconfig; print(sysconfig.get_path("purelib"))'
  .venv/bin/python -c "$site" > "$("$environment/bin/python" -c "$site")/packages_of_venv.pth"
  "$environment/bin/python" -m pip install --disable-pip-version-check --requirement requirements-serve.txt
  echo "$stamp" > "$environment/stamp"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python="$PWD/$environment/bin/python"
cd "$from"
exec "$python" -m unilip_jax.serve "$@"
