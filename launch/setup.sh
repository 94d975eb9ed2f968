#!/usr/bin/env bash
# Makes .venv in the repository root with the pinned requirements. Safe to run twice: it installs again
# only when the requirements have changed. Undo: rm -r .venv
#   bash launch/setup.sh [--dev]          ACCELERATOR=cpu|tpu|cuda     PYTHON=python3.11
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=(requirements.txt)
case "${1:-}" in
  "") ;;
  --dev) files+=(requirements-dev.txt) ;;
  *) echo "usage: bash launch/setup.sh [--dev]     see launch/README.md" >&2; exit 2 ;;
esac
file="requirements${1:+-dev}.txt"

case "${ACCELERATOR:-cpu}" in
  cpu) extra="" ;;
  tpu) extra="[tpu]" ;;
  cuda) extra="[cuda13]" ;;
  *) echo "ACCELERATOR=${ACCELERATOR}: choose cpu, tpu or cuda" >&2; exit 2 ;;
esac

ours=.venv/bin/python
if [ -n "${PYTHON:-}" ] && [ -x "$ours" ] && [ "$("$PYTHON" -V)" != "$("$ours" -V)" ]; then
  echo ".venv is of $("$ours" -V), PYTHON is $("$PYTHON" -V): rm -r .venv to make it anew" >&2
  exit 1
fi
stamp="$(cat "${files[@]}" | cksum | tr ' ' -)-${extra}"
if [ -x "$ours" ] && [ -f ".venv/stamp-$file" ] && [ "$(cat ".venv/stamp-$file")" = "$stamp" ]; then
  exit 0
fi
if ! { [ -x "$ours" ] && "$ours" -m pip --version > /dev/null 2>&1; }; then  # absent, or half made
  python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" -V 2>&1): set PYTHON to a Python of 3.11 or newer" >&2
    exit 1
  fi
  "$python" -m venv .venv
fi
echo "installing $file into .venv"
"$ours" -m pip install --quiet --disable-pip-version-check -r "$file"
if [ -n "$extra" ]; then
  version="$(sed -n 's/^jax==//p' requirements.txt)"
  "$ours" -m pip install --quiet --disable-pip-version-check "jax${extra}==${version}"
fi
echo "$stamp" > ".venv/stamp-$file"
