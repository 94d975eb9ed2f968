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
  *) echo "usage: bash launch/setup.sh [--dev]" >&2; exit 2 ;;
esac

case "${ACCELERATOR:-cpu}" in
  cpu) extra="" ;;
  tpu) extra="[tpu]" ;;
  cuda) extra="[cuda13]" ;;
  *) echo "ACCELERATOR=${ACCELERATOR}: choose cpu, tpu or cuda" >&2; exit 2 ;;
esac

python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "$python is $("$python" --version 2>&1); set PYTHON to a Python 3.11 or newer" >&2
  exit 1
fi

stamp="$(cat "${files[@]}" | cksum | tr ' ' -)-${extra}"
if [ -f ".venv/stamp-${files[-1]}" ] && [ "$(cat ".venv/stamp-${files[-1]}")" = "$stamp" ]; then
  exit 0
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "installing ${files[-1]} into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "${files[-1]}"
if [ -n "$extra" ]; then
  version="$(sed -n 's/^jax==//p' requirements.txt)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "jax${extra}==${version}"
fi
echo "$stamp" > ".venv/stamp-${files[-1]}"
