#!/usr/bin/env bash
# Makes the pretrained weights of Shapes: trains every stage at tiny size (hours on two CPU cores, minutes
# on a GPU) and writes each stage's weights to unilip_jax/shapes/weights.
# Safe to stop and to run again: it continues. Undo: git checkout unilip_jax/shapes/weights
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage="usage: bash launch/shapes_weights.sh [--workdir=DIR] [--only=NAME[,NAME...]] [-- FLAGS]
  --workdir  where the runs are written (default: runs/shapes)
  --only     of mllm llm dcae stage1 stage2 decoder tower sana gen1 gen2 refine widen gen3 rl_nft, in this
             order; default all
  --         further flags of unilip_jax.main for every stage, e.g. --config.seed=1"

workdir=runs/shapes
only=mllm,llm,dcae,stage1,stage2,decoder,tower,sana,gen1,gen2,refine,widen,gen3,rl_nft
while [ $# -gt 0 ]; do
  case "$1" in
    --workdir=*) workdir="${1#*=}" ;;
    --only=*) only="${1#*=}" ;;
    --) shift; break ;;
    --help | -h) echo "$usage"; exit 0 ;;
    *) echo "shapes_weights.sh: unknown option $1"$'\n'"$usage" >&2; exit 2 ;;
  esac
  shift
done
common=("--config.data.render_dir=$workdir/data" --config.checkpoint_every_steps=200
  --config.keep_checkpoints=1 --config.log_every_steps=50 "$@")
run() { printf '+'; printf ' %q' "$@"; echo; "$@"; }

# stage NAME CONFIG OVER MODULES FLAGS: trains CONFIG to its end and publishes MODULES ("": all that
# train) as shapes:NAME, which the included weights OVER complete.
stage() {
  local name="$1" config="$2" over="$3" modules="$4"
  shift 4
  wanted "$name" || return 0
  train "$name" "$config" "$@"
  run "$python" -m experiments.publish --run="$workdir/$name" --name="$name" --over="$over" \
    --modules="$modules"
}
wanted() { case ",$only," in *",$1,"*) ;; *) return 1 ;; esac; }
train() {  # NAME CONFIG FLAGS
  local name="$1" config="$2"
  shift 2
  run "$python" -m unilip_jax.main --config="configs/$config.py:tiny" --workdir="$workdir/$name" \
    "${common[@]}" "$@"
}

# Huge pages for large arrays: without them a quarter of a CPU step is memory allocation.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
bash launch/setup.sh
python=.venv/bin/python
scenes="--config.data.train=(('shapes','train',1.0,{'count':32768}),)"
edits="--config.data.edit=(('shapes','train',1.0,{'count':32768}),)"
many="(('shapes','train',1.0,{'count':131072}),)"

dcae_latents="--config.data.latents_dir=$workdir/latents_dcae"
# Matrix multiplications in bfloat16 where the processor has units for them, and micro-batches that fit its
# caches better.
fast=(--config.float32_matmul_precision=bfloat16 --config.grad_accum_steps=4)
unilip_latents="--config.data.latents_dir=$workdir/latents_unilip"

stage mllm tiny_mllm "" "" "$scenes" --config.total_steps=5000 --config.eval.every_steps=500
# The LLM alone, on more scenes: by then it has memorised the questions about the first ones.
if wanted llm; then
  train llm tiny_mllm "--config.data.train=$many" "${fast[@]}" \
    --config.init_from=shapes:mllm --config.total_steps=7000 --config.eval.every_steps=1000 \
    --config.optimizer.warmup_steps=100 "--config.param_rules=(('^(vision_tower|mlp1)/',{'train':False}),)"
  run "$python" -m experiments.publish --run="$workdir/llm" --name=mllm --update
fi
stage dcae tiny_dcae "" "" "$scenes" --config.total_steps=1500 --config.eval.every_steps=500
stage stage1 stage1 mllm "" "$scenes" --config.total_steps=1000 --config.eval.every_steps=500
stage stage2 stage2 mllm "" "$scenes" --config.total_steps=1500 --config.eval.every_steps=500
# The decoder alone, for longer: the latents, which later stages learn, do not change.
if wanted decoder; then
  train decoder stage2 "$scenes" --config.init_from=shapes:stage2 --config.total_steps=13500 \
    --config.eval.every_steps=1500 --config.optimizer.end_lr=1e-5 --config.loss.distill=0.0 --config.gan.weight=0.0 \
    "--config.param_rules=(('^(vision_tower|mlp1|latent_head)/',{'train':False}),)"
  run "$python" -m experiments.publish --run="$workdir/decoder" --name=stage2 --update
fi
# Then all modules at the decoder's rate, with less distillation: latents must tell circles from squares.
if wanted tower; then
  train tower stage2 "--config.data.train=$many" --config.init_from=shapes:stage2 --config.total_steps=3600 \
    --config.eval.every_steps=1200 --config.optimizer.lr=6e-4 --config.optimizer.end_lr=1e-5 \
    --config.loss.distill=0.05 --config.gan.weight=0.0 \
    "--config.param_rules=(('^(vision_tower|mlp1)/',{'lr':1.0}),)"
  run "$python" -m experiments.publish --run="$workdir/tower" --name=stage2 --update
fi
stage sana tiny_sana "" dit "$scenes" "$dcae_latents" --config.total_steps=400
stage gen1 gen1 stage2,sana "" "$scenes" "$dcae_latents" "${fast[@]}" --config.total_steps=1500 \
  --config.generate.noise_samples_per_image=2 --config.eval.every_steps=250
stage gen2 gen2 stage2 "" "$scenes" "$edits" "$unilip_latents" --config.total_steps=13000 \
  --config.eval.every_steps=1000
# By then layouts are right and shapes are not: training times with less noise.
if wanted refine; then
  train refine gen2 "$scenes" "$edits" "$unilip_latents" "${fast[@]}" --config.init_from=shapes:gen2 \
    --config.total_steps=5500 --config.eval.every_steps=1000 --config.optimizer.warmup_steps=100 \
    --config.generate.timestep_shift=1.5 --config.optimizer.end_lr=2e-5 --config.ema_decay=0.995
  run "$python" -m experiments.publish --run="$workdir/refine" --name=gen2 --update
fi
# More scenes, and more prompts than edits, whose scores are higher by then.
if wanted widen; then
  train widen gen2 "--config.data.train=$many" "--config.data.edit=$many" --config.data.edit_share=0.25 \
    "$unilip_latents" "${fast[@]}" --config.init_from=shapes:gen2 --config.total_steps=2400 \
    --config.eval.every_steps=1200 --config.optimizer.warmup_steps=100 --config.generate.timestep_shift=2.0 \
    --config.optimizer.end_lr=2e-5 --config.ema_decay=0.995
  run "$python" -m experiments.publish --run="$workdir/widen" --name=gen2 --update
fi
paraphrased="(('shapes','train',3.0,{'count':8192,'paraphrased':True}),('shapes','train',1.0,{'count':131072}))"
stage gen3 gen3 stage2 "" "--config.data.train=$paraphrased" "--config.data.edit=$paraphrased" "$unilip_latents" \
  "${fast[@]}" --config.total_steps=2500 --config.eval.every_steps=1500
stage rl_nft rl_nft gen3 dit --config.float32_matmul_precision=bfloat16
