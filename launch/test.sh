#!/usr/bin/env bash
# Lint, shellcheck and every test but those that opt in (marks fullsize and thorough). Sets up .venv by itself.
#   bash launch/test.sh [arguments of pytest]      e.g.  bash launch/test.sh tests/models -k decoder
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Some images forbid Python to keep compiled modules: each of a hundred processes would compile JAX's again.
unset PYTHONDONTWRITEBYTECODE
bash launch/setup.sh --dev
# Compiled programs are kept: a second run takes a fraction of the first.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/unilip_jax/test_xla}"

# On two cores a third worker computes while tests wait for processes to end.
workers="${TEST_WORKERS:-3}"

set -x
.venv/bin/ruff check .
.venv/bin/shellcheck -x launch/*.sh .ci/run
.venv/bin/python -m pytest -m "not fullsize and not thorough" -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
