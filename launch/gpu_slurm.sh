#!/usr/bin/env bash
# GPU nodes by SLURM, from a login node, in a checkout that all nodes share. One action a call:
#   bash launch/gpu_slurm.sh setup                                installs into .venv (or use --container)
#   bash launch/gpu_slurm.sh run --name=N --nodes=2 --config=configs/stage2.py:1b --workdir=DIR [-- FLAGS]
#   bash launch/gpu_slurm.sh status | logs | stop --name=N        stop: saves and ends. Undo of run
# Options:
#   --name       of the job; its log is run/NAME.log
#   --nodes      how many (default 1)        --gpus  on each (default 8)
#   --cpus       cores of each node for decoding (default 64)
#   --hours      time limit of one job (default 24): the run saves before it and queues again
#   --sbatch     further options of sbatch, e.g. --sbatch="--partition=gpu --account=me"
#   --container  an image for srun (pyxis), built from launch/Dockerfile.cuda; default: .venv
#   --config, --workdir (a shared file system, or gs://), and -- with further flags of unilip_jax.main
#   --plan       a plan.json: mesh, batch and remat as planned
#   --restarts   after preemption, a time limit or the loss of a node, at most (default 100)
#   --dry_run    prints what would run, one command a line, and runs nothing
# Safe to repeat: run does nothing if a job of that name is queued or runs.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action="${1:-}"
[ $# -eq 0 ] || shift
opt=([name]="" [nodes]=1 [gpus]=8 [cpus]=64 [hours]=24 [sbatch]="" [container]="" [config]="" [workdir]=""
  [plan]="" [restarts]=100)
case "$action" in --help | -h | "") usage; exit 0 ;; esac
parse "$@"
read_plan
read -ra further <<< "${opt[sbatch]}"

case "$action" in
  setup) run env ACCELERATOR=cuda bash launch/setup.sh ;;
  run)
    need name
    devices=$((opt[nodes] * opt[gpus]))
    flags_of_training
    run mkdir -p run
    run rm -f "run/${opt[name]}.stop"
    # SIGTERM reaches the training itself (no B:), three minutes before the time limit.
    unless bash -c "squeue --me --noheader --name=${opt[name]@Q} | grep -q ." -- \
      sbatch --job-name="${opt[name]}" --nodes="${opt[nodes]}" --ntasks-per-node=1 --gpus-per-node="${opt[gpus]}" \
      --cpus-per-task="${opt[cpus]}" --time="${opt[hours]}:00:00" --signal=TERM@180 --requeue --open-mode=append \
      --output="run/${opt[name]}.log" ${further[@]+"${further[@]}"} \
      --export="ALL,UNILIP_RESTARTS=${opt[restarts]},UNILIP_CONTAINER=${opt[container]}" \
      launch/gpu_slurm_job.sh "${training[@]}"
    echo "# undo: bash launch/gpu_slurm.sh stop --name=${opt[name]}" ;;
  status) need name; run squeue --me --name="${opt[name]}" ;;
  logs) need name; run tail -n 50 "run/${opt[name]}.log" ;;
  stop)
    need name
    run touch "run/${opt[name]}.stop"  # keeps it from queueing again
    run scancel --me --name="${opt[name]}" --state=PENDING
    run scancel --me --name="${opt[name]}" --signal=TERM ;;
  *) fail "no action $action: setup, run, status, logs, stop" ;;
esac
