#!/usr/bin/env bash
# TPU slices on GKE through XPK (pip install xpk), from your own machine. One action a call:
#   bash launch/tpu_gke.sh cluster --cluster=C --topology=v5e:4x4 --project=P --zone=Z [--capacity=spot]
#   bash launch/tpu_gke.sh image   --image=REGISTRY/NAME:TAG        builds launch/Dockerfile.tpu and pushes it
#   bash launch/tpu_gke.sh run     --cluster=C --name=N --image=... --topology=... --project=P --zone=Z
#                                  --config=configs/stage2.py:1b --workdir=gs://B/stage2 [-- FLAGS]
#   bash launch/tpu_gke.sh wait    --cluster=C --name=N ...   until it has finished; exit status 0 then
#   bash launch/tpu_gke.sh status | logs | stop --cluster=C --name=N ...   stop: undo of run
#   bash launch/tpu_gke.sh delete  --cluster=C ...                         undo of cluster
# Options (environment in brackets):
#   --cluster    of GKE; --name: of the workload
#   --topology   v4, v5e, v5p or v6e and the grid of chips; *2 for two slices, e.g. v5e:16x16*2
#   --project    [PROJECT]      --zone [ZONE]
#   --capacity   spot (default), on-demand, flex, or reservation=NAME
#   --image      of the container, in a registry that the cluster reads
#   --config, --workdir, and -- with further flags of unilip_jax.main
#   --plan       a plan.json: topology, mesh, batch and remat as planned
#   --batch      pod (default): the topology's, with scaled rates, where that pays (pod_batches.json), or recipe
#   --restarts   after preemption or the loss of a host, at most (default 100)
#   --wait       minutes of the action wait (default 10080)
#   --dry_run    prints what would run, one command a line, and runs nothing
# Safe to repeat: XPK completes a cluster that exists; run does nothing if a workload of that name exists.
# Kubernetes restarts a workload when a host ends with status 75 or by a signal. unilip_jax.main ends with 75
# after SIGTERM, or when it has lost another host.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action="${1:-}"
[ $# -eq 0 ] || shift
opt=([cluster]="" [name]="" [topology]="" [project]="${PROJECT:-}" [zone]="${ZONE:-}" [capacity]=spot
  [image]="" [config]="" [workdir]="" [plan]="" [batch]=pod [restarts]=100 [wait]=10080)
case "$action" in --help | -h | "") usage; exit 0 ;; esac
parse "$@"
read_plan

where() {
  need cluster project zone
  where=("--cluster=${opt[cluster]}" "--project=${opt[project]}" "--zone=${opt[zone]}")
}
size() {
  need topology
  tpu_names "${opt[topology]}"
  size=("--tpu-type=$accelerator" "--num-slices=$slices")
}
credentials() {  # kubectl then uses this cluster; XPK makes regional ones
  run gcloud container clusters get-credentials "${opt[cluster]}" "--project=${opt[project]}" "--region=${opt[zone]%-*}"
}

case "$action" in
  cluster)
    where; size
    case "${opt[capacity]}" in
      spot | on-demand | flex | reservation=?*) ;;
      *) fail "--capacity=${opt[capacity]}: choose spot, on-demand, flex or reservation=NAME" ;;
    esac
    run xpk cluster create "${where[@]}" "${size[@]}" "--${opt[capacity]}"
    echo "# undo: bash launch/tpu_gke.sh delete ${where[*]}" ;;
  image)
    need image
    run docker build --platform=linux/amd64 --file=launch/Dockerfile.tpu --tag="${opt[image]}" .
    run docker push "${opt[image]}"
    echo "# undo: docker rmi ${opt[image]}, and delete it in the registry" ;;
  run)
    where; size; need name image
    need config workdir
    need_bucket
    flags_of_training
    credentials
    unless kubectl get jobset "${opt[name]}" -- \
      xpk workload create "${where[@]}" --workload="${opt[name]}" "${size[@]}" --docker-image="${opt[image]}" \
      --max-restarts="${opt[restarts]}" --restart-on-exit-codes=75 --termination-grace-period-seconds=120 \
      --command="$(quoted python -m unilip_jax.main "${training[@]}" --multihost)"
    echo "# undo: bash launch/tpu_gke.sh stop --name=${opt[name]} ${where[*]}" ;;
  wait)
    where; need name
    run xpk workload list "${where[@]}" --wait-for-job-completion="${opt[name]}" --timeout=$((60 * opt[wait])) ;;
  status) where; run xpk workload list "${where[@]}" ${opt[name]:+"--filter-by-job=${opt[name]}"} ;;
  logs)
    where; need name; credentials
    run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=${opt[name]}" --prefix --tail=50 --max-log-requests=64 ;;
  stop)
    where; need name; credentials
    unless_absent kubectl get jobset "${opt[name]}" -- xpk workload delete "${where[@]}" --workload="${opt[name]}" ;;
  delete) where; run xpk cluster delete "${where[@]}" ;;
  *) fail "no action $action: cluster, image, run, wait, status, logs, stop, delete" ;;
esac
