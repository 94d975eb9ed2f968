#!/usr/bin/env bash
# The whole pipeline at tiny size on a CPU, with no download: renders scenes, trains stage 1 and stage 2,
# evaluates, writes report.html. Safe to run twice: it continues. Undo: rm -r demo
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage="usage: bash launch/demo.sh [--workdir=DIR] [--images=FOLDER|photos] [--steps1=N] [--steps2=N] [-- FLAGS]
  --images   train on the images of a folder in place of rendered scenes; it holds train/ and test/.
             'photos' makes one from photographs that matplotlib ships
  --steps1   updates of stage 1, --steps2 of stage 2 (default: the configs')
  --         further flags of unilip_jax.main for both stages, e.g. --config.seed=1"
workdir=demo
images="" flags1=() flags2=() more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --workdir=*) workdir="${1#*=}" ;;
    --images=*) images="${1#*=}" ;;
    --steps1=*) flags1+=("--config.total_steps=${1#*=}") ;;
    --steps2=*) flags2+=("--config.total_steps=${1#*=}") ;;
    --) shift; more=("$@"); break ;;
    --help) echo "$usage"; exit 0 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift
done

bash launch/setup.sh
run() { echo "+ $*"; "$@"; }
python=.venv/bin/python
if [ "$images" = photos ]; then
  images="$workdir/photos"
  run "$python" launch/photo_crops.py --out="$images"
fi
if [ -n "$images" ]; then
  more+=("--config.data.train=(('folder','$images/train',1.0),)"
         "--config.eval.sets=(('images','native','folder','$images/test'),)")
fi

run "$python" -m unilip_jax.main --config=configs/stage1.py:tiny --workdir="$workdir/stage1" \
  "${flags1[@]}" "${more[@]}"
run "$python" -m unilip_jax.main --config=configs/stage2.py:tiny --workdir="$workdir/stage2" \
  --config.init_from="$workdir/stage1" "${flags2[@]}" "${more[@]}"
for stage in stage1 stage2; do
  run "$python" -m unilip_jax.main --config="configs/$stage.py:tiny" --workdir="$workdir/$stage" \
    --mode=eval "${more[@]}"
done
run "$python" -m unilip_jax.report --workdir="$workdir/stage2" --compare="$workdir/stage1"
echo "the report: $workdir/stage2/report.html"
