#!/usr/bin/env bash
# SLURM runs this on the first node of a job. It starts one task on each node, which uses all its GPUs, and queues
# the job again when the run was stopped or has lost a node. gpu_slurm.sh submits it with the flags of
# unilip_jax.main.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is run by sbatch, see launch/gpu_slurm.sh}"
# shellcheck source=launch/gpu.env
. launch/gpu.env

command=(.venv/bin/python)
container=()
if [ -n "${UNILIP_CONTAINER:-}" ]; then
  command=(python)
  container=("--container-image=$UNILIP_CONTAINER" "--container-mounts=$PWD:$PWD" "--container-workdir=$PWD")
fi
status=0
# When a node is lost, the other tasks print which one and end by themselves: srun waits for that.
srun --kill-on-bad-exit=0 --wait=300 ${container[@]+"${container[@]}"} \
  "${command[@]}" -m unilip_jax.main "$@" --multihost || status=$?

restarts="${SLURM_RESTART_COUNT:-0}"
echo "$(date -u +%FT%TZ) ended with status $status, restarts so far: $restarts"
case "$status" in
  0 | 1 | 2) exit "$status" ;;  # finished, or an error that would come again
esac
if [ -f "run/$SLURM_JOB_NAME.stop" ]; then
  echo "stopped on request"
elif [ "$restarts" -lt "${UNILIP_RESTARTS:-100}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
else
  echo "not queued again: ${UNILIP_RESTARTS:-100} restarts are used up" >&2
  exit "$status"
fi
