#!/usr/bin/env bash
# The whole pipeline at tiny size on a CPU, with no download: renders scenes, trains stage 1 and stage 2,
# evaluates, writes report.html. Safe to run twice: it continues. Undo: rm -r demo
set -euo pipefail
from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage="usage: bash launch/demo.sh [--workdir=DIR] [--images=FOLDER|photos] [--steps1=N] [--steps2=N] [-- FLAGS]
  --workdir  where everything is written (default: \$DEMO, else demo in the repository)
  --images   train on the images of a folder in place of rendered scenes; it holds train/ and test/.
             'photos' makes one from photographs that scikit-learn and matplotlib ship
  --steps1   updates of stage 1, --steps2 of stage 2 (default: the configs')
  --         further flags of unilip_jax.main for both stages, e.g. --config.seed=1"

absolute() {  # a path as seen from where the caller stands
  case "$1" in
    /* | *://*) echo "$1" ;;
    \~/*) echo "$HOME/${1:2}" ;;
    *) echo "$from/$1" ;;
  esac
}
fail() { echo "$*" >&2; exit 2; }
run() { printf '+'; printf ' %q' "$@"; echo; "$@"; }

workdir="${DEMO:+$(absolute "$DEMO")}"
images=""
stage1=(--config=configs/stage1.py:tiny) stage2=(--config=configs/stage2.py:tiny)
while [ $# -gt 0 ]; do
  case "$1" in
    --workdir=*) workdir="$(absolute "${1#*=}")" ;;
    --images=photos) images=photos ;;
    --images=*) images="$(absolute "${1#*=}")" ;;
    --steps1=*) stage1+=("--config.total_steps=${1#*=}") ;;
    --steps2=*) stage2+=("--config.total_steps=${1#*=}") ;;
    --) shift; break ;;
    --help | -h) echo "$usage"; exit 0 ;;
    *) fail "demo.sh does not know $1"$'\n'"$usage" ;;
  esac
  shift
done
workdir="${workdir:-demo}"
for part in train test; do
  case "$images" in "" | photos | *://*) continue ;; esac
  [ -d "$images/$part" ] || fail "--images: no folder $images/$part; put images to $part on there"
done

bash launch/setup.sh
python=.venv/bin/python
if [ "$images" = photos ]; then
  images="$workdir/photos"
  # scikit-learn is no requirement of the package: it is here for its two photographs.
  run "$python" -m pip install --quiet --disable-pip-version-check \
    "$(grep '^scikit-learn==' requirements-dev.txt)"
  run "$python" launch/photo_crops.py --out="$images"
fi
if [ -n "$images" ]; then
  set -- "--config.data.train=(('folder','$images/train',1.0),)" \
    "--config.eval.sets=(('images','native','folder','$images/test'),)" \
    "--config.sample_set=('reconstruct','folder','$images/test')" "$@"
fi
stage1+=(--workdir="$workdir/stage1" "$@")
stage2+=(--workdir="$workdir/stage2" --config.init_from="$workdir/stage1" "$@")

run "$python" -m unilip_jax.main "${stage1[@]}"
run "$python" -m unilip_jax.main "${stage2[@]}"
run "$python" -m unilip_jax.main "${stage1[@]}" --mode=eval
run "$python" -m unilip_jax.main "${stage2[@]}" --mode=eval
run "$python" -m unilip_jax.report --workdir="$workdir/stage2" --compare="$workdir/stage1"
echo "the report: $workdir/stage2/report.html"
