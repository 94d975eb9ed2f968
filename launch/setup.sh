#!/usr/bin/env bash
# Makes .venv in the repository root and installs the package into it (pip install -e .) with the pinned
# requirements. Safe to run twice: it installs again only when pyproject.toml or the requirements have changed.
# Undo: rm -r .venv
#   bash launch/setup.sh [--dev]            --dev adds what tests and benchmarks need
#   ACCELERATOR=cpu|tpu|cuda                adds JAX's package for the accelerator; default cpu
#   PYTHON=python3.12                       Python 3.11 or newer; default: one that is there, else 3.12 by uv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=(pyproject.toml requirements.txt)
case "${1:-}" in
  "") ;;
  --dev) files+=(requirements-dev.txt) ;;
  *) echo "usage: bash launch/setup.sh [--dev]     see launch/README.md" >&2; exit 2 ;;
esac

case "${ACCELERATOR:-cpu}" in
  cpu) extra="" ;;
  tpu) extra="[tpu]" ;;
  cuda) extra="[cuda13]" ;;
  *) echo "ACCELERATOR=${ACCELERATOR}: choose cpu, tpu or cuda" >&2; exit 2 ;;
esac

python=.venv/bin/python
if [ -n "${PYTHON:-}" ] && [ -x "$python" ] && [ "$("$PYTHON" -V)" != "$("$python" -V)" ]; then
  echo ".venv has $("$python" -V), PYTHON is $("$PYTHON" -V): rm -r .venv to make it again" >&2
  exit 1
fi
stamp="$(cat "${files[@]}" | cksum | tr ' ' -)-${extra}"
stamp_file=".venv/stamp-package${1:-}"
if [ -x "$python" ] && [ -f "$stamp_file" ] && [ "$(cat "$stamp_file")" = "$stamp" ]; then
  exit 0
fi
if ! { [ -x "$python" ] && "$python" -m pip --version > /dev/null 2>&1; }; then  # absent or incomplete
  base="${PYTHON:-$(bash launch/find_python.sh)}"
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$base is $("$base" -V 2>&1): set PYTHON to a Python of 3.11 or newer" >&2
    exit 1
  fi
  "$base" -m venv .venv
fi
packages=(--editable .)
[ -z "${1:-}" ] || packages+=(--requirement requirements-dev.txt)
[ -z "$extra" ] || packages+=("jax${extra}==$(sed -n 's/^jax==//p' requirements.txt)")
# Status 0: all pinned packages are installed, for each of which pip would print a line.
is_installed='import importlib.metadata as m, re, sys
pins = [p for f in sys.argv[1:] for p in re.findall(r"(?m)^([\w.-]+).*?==([^\s;#]+)", open(f).read())]
sys.exit(any(m.version(name).partition("+")[0] != version for name, version in pins))'
size="about 1 GB on disk"
[ -z "${1:-}" ] || size="some GB on disk, most of it PyTorch"
[ "$extra" != "[cuda13]" ] || size="$size, and some GB of CUDA"
echo "installing into .venv: ${packages[*]}"
if [ -z "$extra" ] && "$python" -c "$is_installed" "${files[@]:1}" 2> /dev/null; then
  packages+=(--quiet)
else
  echo "($size; minutes, as fast as the network: pip prints each package)"
fi
# Python compiles a module when it is first imported, and most never are; unless it may not keep the result.
[ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || packages+=(--no-compile)
"$python" -m pip install --disable-pip-version-check --progress-bar on "${packages[@]}"
echo "$stamp" > "$stamp_file" && echo "installed; next: source .venv/bin/activate"
