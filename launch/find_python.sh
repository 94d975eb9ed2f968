#!/usr/bin/env bash
# Prints the path of a Python of 3.11 or newer that makes environments: one that is installed, else 3.12, which uv
# installs into .uv/ of the repository. Images of TPU VMs have 3.10. Progress goes to standard error. Safe to run
# twice: what is there is taken. Undo: rm -r .uv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_version=0.13.9
able() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; }

for name in python3 python3.12 python3.13 python3.11; do
  if able "$name"; then
    command -v "$name"
    exit
  fi
done
export UV_PYTHON_INSTALL_DIR="$PWD/.uv/python" UV_PYTHON_PREFERENCE=only-managed
uv="$(command -v uv || echo .uv/bin/uv)"
{
  echo "python3 is $(python3 -V 2>&1 || true); 3.11 or newer is needed: installing 3.12 into .uv by uv"
  [ -x "$uv" ] || python3 -m pip install --quiet --target .uv "uv==$uv_version"
  "$uv" python install 3.12
} >&2
"$uv" python find 3.12
