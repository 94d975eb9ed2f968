#!/usr/bin/env bash
# Runs the complete pipeline at tiny size on a CPU, without any download. Stage 1, stage 2, gen1, gen2, gen3 and
# reward training train for a minute or two, each from the included weights of the stage before it. The result
# reconstructs, chats, generates in four steps and edits, and is scored automatically. The last lines are the
# table of its scores and the path of the report.
# Safe to run twice: it continues. Undo: rm -r demo
set -euo pipefail
from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usual_steps=60,40,40,25,50,20
usage="usage: bash launch/demo.sh [--workdir=DIR] [--steps=S1,S2,G1,G2,G3,RL] [--images=FOLDER|sample_photos] [--serve] [--full] [-- FLAGS]
  --workdir  where everything is written (default: \$DEMO, else demo in the repository)
  --steps    updates of stage 1, stage 2, gen1, gen2, gen3 and reward training (default: $usual_steps)
  --images   train only the two reconstruction stages, on the images of a folder that has train/ and
             test/; 'sample_photos' makes such a folder from photographs in scikit-learn and matplotlib.
             --steps then has two numbers (default: those of the configs)
  --serve    afterwards serve the result as a page beside the included weights: http://127.0.0.1:8000/ui
             (installs gradio into .venv-serve)
  --full     the paper's ablations in miniature, hours: see python -m experiments.ablation --help
  --         further flags of unilip_jax.main for every stage, e.g. --config.seed=1"

absolute() {  # a path relative to the caller's folder
  case "$1" in
    /* | *://*) echo "$1" ;;
    \~/*) echo "$HOME/${1:2}" ;;
    *) echo "$from/$1" ;;
  esac
}
fail() { echo "$*" >&2; exit 2; }
run() { printf '+'; printf ' %q' "$@"; echo; "$@"; }

workdir="${DEMO:+$(absolute "$DEMO")}"
images="" steps="" full="" serve=""
while [ $# -gt 0 ]; do
  case "$1" in
    --workdir=*) workdir="$(absolute "${1#*=}")" ;;
    --images=sample_photos) images=sample_photos ;;
    --images=*) images="$(absolute "${1#*=}")" ;;
    --steps=*) steps="${1#*=}" ;;
    --full) full=yes ;;
    --serve) serve=yes ;;
    --) shift; break ;;
    --help | -h) echo "$usage"; exit 0 ;;
    *) fail "demo.sh: unknown option $1"$'\n'"$usage" ;;
  esac
  shift
done
workdir="${workdir:-demo}"
[ -z "$serve" ] || [ -z "$images$full" ] || fail "--serve serves rl_nft, which --images and --full do not train"
for part in train test; do
  case "$images" in "" | sample_photos | *://*) continue ;; esac
  [ -d "$images/$part" ] || fail "--images: no folder $images/$part; put images to $part on there"
done
[ -n "$steps$images" ] || steps="$usual_steps"
IFS=, read -r -a counts <<< "$steps"
[ -n "$images" ] || [ ${#counts[@]} -eq 6 ] || fail "--steps=$steps: give six numbers, one a stage"

# Huge pages for large arrays: without them a quarter of a CPU step is memory allocation.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
# As in launch/test.sh: kept modules spare each of the commands below two seconds.
unset PYTHONDONTWRITEBYTECODE
bash launch/setup.sh
python=.venv/bin/python
if [ -n "$full" ]; then
  run "$python" -m experiments.ablation --workdir="$workdir/full" "$@"
  exit
fi
if [ "$images" = sample_photos ]; then
  images="$workdir/sample_photos"
  # scikit-learn is no requirement of the package: only its two photographs are used.
  run "$python" -m pip install --disable-pip-version-check \
    "$(grep '^scikit-learn==' requirements-dev.txt)"
  run "$python" launch/photo_crops.py --out="$images"
fi

# Seconds of 100 updates on two CPU cores, and of compiling and scoring a stage: estimates, which the pace of the
# stages before corrects.
declare -A rate=([stage1]=85 [stage2]=175 [gen1]=140 [gen2]=170 [gen3]=80 [rl_nft]=450 [showcase]=0) usual=()
fixed=40
stages=() begin=$SECONDS expected=0

# plan NAME:UPDATES...: what `progress` counts.
plan() {
  local pair
  for pair in "$@"; do
    stages+=("${pair%%:*}")
    usual[${pair%%:*}]=$((fixed + ${pair#*:} * rate[${pair%%:*}] / 100))
  done
}

# progress NAME: prints "stage k of n" and the minutes left.
progress() {
  local i k=0 left=0 elapsed=$((SECONDS - begin))
  for i in "${!stages[@]}"; do
    [ "${stages[$i]}" != "$1" ] || k=$((i + 1))
    [ "$k" = 0 ] || left=$((left + ${usual[${stages[$i]}]}))
  done
  # A stage that was complete takes seconds, which say nothing about the pace.
  [ $((4 * elapsed)) -le "$expected" ] || [ "$expected" = 0 ] || left=$((left * elapsed / expected))
  expected=$((expected + ${usual[$1]}))
  echo "== stage $k of ${#stages[@]}: $1; about $(((left + 59) / 60)) minutes left"
}

# stage NAME STEPS FLAGS: trains configs/NAME.py from the weights of its init_from.
stage() {
  local name="$1" count="$2"
  shift 2
  progress "$name"
  run "$python" -m unilip_jax.main --config="configs/$name.py:tiny" --workdir="$workdir/$name" \
    ${count:+"--config.total_steps=$count"} "$@"
}
if [ -n "$images" ]; then
  plan "stage1:${counts[0]:-300}" "stage2:${counts[1]:-300}"
  set -- "--config.data.train=(('folder','$images/train',1.0),)" \
    "--config.eval.sets=(('images','native','folder','$images/test'),)" \
    "--config.sample_set=('reconstruct','folder','$images/test')" "$@"
  stage stage1 "${counts[0]:-}" "$@"
  stage stage2 "${counts[1]:-}" --config.init_from="$workdir/stage1" "$@"
  run "$python" -m unilip_jax.report --workdir="$workdir/stage2" --compare="$workdir/stage1"
  echo "the report: $workdir/stage2/report.html"
  exit
fi

plan "stage1:${counts[0]}" "stage2:${counts[1]}" "gen1:${counts[2]}" "gen2:${counts[3]}" "gen3:${counts[4]}" \
  "rl_nft:${counts[5]}" showcase:0
# Scores before and after training, on as many scenes as a few minutes allow.
set -- "--config.data.render_dir=$workdir/shapes" --config.eval.max_examples=96 \
  --config.eval.every_steps=100000 --config.sample_every_steps=0 "$@"
# Matrix multiplications in bfloat16 where the processor has units for them.
if grep -qw amx_bf16 /proc/cpuinfo 2> /dev/null; then
  set -- --config.float32_matmul_precision=bfloat16 "$@"
fi
pairs="('pairs','flow_t2i','shapes','test'),('edit_pairs','flow_edit','shapes','test')"
prompts="('t2i','t2i','shapes','test'),('edits','edits','shapes','test')"
paraphrases="('paraphrases','t2i','shapes','test',{'paraphrased':True})"
both="(('shapes','train',1.0,{'count':2048,'paraphrased':True}),('shapes','train',1.0))"
gentle=(--config.optimizer.lr=1e-4 --config.optimizer.end_lr=2e-5 --config.optimizer.warmup_steps=5
  --config.ema_decay=0.9 --config.batch_size=32 --config.grad_accum_steps=2)
stage stage1 "${counts[0]}" "$@"
# Few updates need a lower rate than the config's, which first damages the included weights. So does gen3.
stage stage2 "${counts[1]}" --config.gan.weight=0.0 --config.optimizer.lr=3e-5 --config.optimizer.end_lr=1e-6 \
  --config.optimizer.warmup_steps=5 --config.ema_decay=0.9 "$@"
stage gen1 "${counts[2]}" --config.grad_accum_steps=4 "$@"
# Losses only: images fit their prompts after thousands of updates.
stage gen2 "${counts[3]}" --config.grad_accum_steps=4 "--config.eval.sets=($pairs)" "$@"
stage gen3 "${counts[4]}" "${gentle[@]}" "--config.data.train=$both" "--config.data.edit=$both" \
  "--config.eval.sets=($prompts,$paraphrases)" "$@"
# Scores are of images in four steps, which reward training lifts most. So few updates keep their rate.
stage rl_nft "${counts[5]}" --config.sample.steps=4 --config.optimizer.end_lr=2e-4 --config.ema_decay=0.9 \
  "--config.eval.sets=($prompts,('unseen','t2i','shapes','unseen'))" "$@"
progress showcase
run "$python" -m experiments.showcase --checkpoint="$workdir/rl_nft" --workdir="$workdir/rl_nft" --steps=4 \
  --guidance=1 --compare=shapes:gen3
run "$python" -m unilip_jax.report --workdir="$workdir/rl_nft" \
  --compare="$workdir/gen3,$workdir/gen2,$workdir/gen1,$workdir/stage2,$workdir/stage1"
run "$python" -m unilip_jax.evals shapes --checkpoint="$workdir/rl_nft" --out="$workdir/rl_nft/scores" \
  --dtype=float32 --steps=4 --guidance=1
echo "the report: $workdir/rl_nft/report.html"
if [ -n "$serve" ]; then
  run bash launch/serve.sh --checkpoint="$workdir/rl_nft" --model_name=demo --compare=shapes:gen3 \
    --compare_name=included --dtype=float32 --batch_size=2 --page=yes
fi
