#!/usr/bin/env bash
# The reproduction of UniLIP at 1b, step by step: weights, data, six stages, scores, report, export.
# Each step can be stopped and run again: it continues. Read docs/data.md first: GPT-Image-Edit-1.5M and
# ShareGPT-4o-Image are downloaded and unpacked by hand into downloads/, ImageNet's validation tars into
# data/imagenet-val.
#   bash launch/train_1b.sh [--dry_run] [--only=STEP[,STEP...]] [--topology=v5e:16x16] [-- FLAGS]
# Steps: weights data stage1 stage2 stage448 gen1 gen2 gen3 export. FLAGS go to every stage, for example
# --config.mesh.fsdp=16. --topology gives each stage the batch and rates that pay there (pod_batches.json). Planned
# on v6e:8x8 with the recipe's batch (docs/scaling.md): the six stages take 134, 334, 232, 58, 276 and 46 chip
# hours. Several hosts: start the stages with launch/tpu_*.sh or gpu_*.sh.
# Undo: rm -r weights data runs exports
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. launch/common.sh

opt=([only]="weights,data,stage1,stage2,stage448,gen1,gen2,gen3,export" [topology]="")
parse "$@"
wanted() { case ",${opt[only]}," in *",$1,"*) echo "# $1" ;; *) return 1 ;; esac; }
import() { run unilip convert import --source="$1" --out="$2"; }
# train STAGE START: trains a stage in runs/STAGE, from the weights START.
train() {
  local flags=()
  [ -z "${opt[topology]}" ] || mapfile -t flags < <(python3 launch/pod_batches.py "configs/$1.py:1b" "${opt[topology]}")
  flags=(--config.init_from="$2" ${flags[@]+"${flags[@]}"} ${rest[@]+"${rest[@]}"})
  [ -z "$dry_run" ] || check_run --config="configs/$1.py:1b" "${flags[@]}"
  run unilip train --config="configs/$1.py:1b" --workdir="runs/$1" "${flags[@]}"
}

[ -n "$dry_run" ] || bash launch/setup.sh
PATH="$PWD/.venv/bin:$PATH"

if wanted weights; then  # about 5 GB; docs/weights.md says where the perceptual networks are
  import hf://OpenGVLab/InternVL3-1B weights/internvl3-1b
  import hf://mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers weights/dc-ae-f32c32-sana-1.1
  import hf://Efficient-Large-Model/Sana_600M_512px_diffusers weights/sana-600m
  import downloads/perceptual weights/perceptual
fi
if wanted data; then  # tars are read as they are; these two sets are lists and folders
  for set in Short-Caption Long-Caption JourneyDB; do
    run hf download "BLIP3o/BLIP3o-Pretrain-$set" --repo-type dataset --local-dir "data/BLIP3o-Pretrain-$set"
  done
  run hf download BLIP3o/BLIP3o-60k --repo-type dataset --local-dir data/BLIP3o-60k
  run unilip data gpt_image_edit --source=downloads/GPT-Image-Edit-1.5M --out=data/GPT-Image-Edit-1.5M
  run unilip data sharegpt4o --source=downloads/ShareGPT-4o-Image --out=data/ShareGPT-4o-Image
fi
start=weights/internvl3-1b,weights/dc-ae-f32c32-sana-1.1
if wanted stage1; then train stage1 "$start"; fi
if wanted stage2; then train stage2 runs/stage1; fi
if wanted stage448; then train stage448 runs/stage2; fi
if wanted gen1; then train gen1 "$start,weights/sana-600m,runs/stage448"; fi
if wanted gen2; then train gen2 runs/gen1; fi
if wanted gen3; then train gen3 runs/gen2; fi
if wanted export; then  # scores, one report of all stages, and the folder that PyTorch reads
  run unilip eval --config=configs/stage448.py:1b --workdir=runs/stage448
  run unilip report --workdir=runs/gen3 --compare=runs/gen2,runs/gen1,runs/stage448,runs/stage2,runs/stage1
  run unilip convert export --checkpoint=runs/gen3 --format=unilip --out=exports/unilip-1b
fi
