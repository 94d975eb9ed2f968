#!/usr/bin/env bash
# TPU slices by queued resources, from your own machine. One action a call:
#   bash launch/tpu_queue.sh create --name=N --topology=v5e:4x4 --project=P --zone=Z [--capacity=spot]
#   bash launch/tpu_queue.sh setup  --name=N ...     waits for the slice; copies the committed code, installs
#   bash launch/tpu_queue.sh run    --name=N ... --config=configs/stage2.py:1b --workdir=gs://B/stage2 [-- FLAGS]
#   bash launch/tpu_queue.sh watch  (the options of create and run)   restarts the run until it has finished,
#                                   and creates the slice again when it is preempted
#   bash launch/tpu_queue.sh status | logs | stop --name=N ...    stop: all hosts save and end. Undo of run
#   bash launch/tpu_queue.sh delete --name=N ...                  undo of create
# Options (environment in brackets):
#   --name       of the queued resource and its nodes
#   --topology   v4, v5e, v5p or v6e and the grid of chips; *2 for two slices, e.g. v5e:16x16*2
#   --project    [PROJECT]      --zone [ZONE]
#   --capacity   spot (default), reserved, on-demand, or flex with --hours (at most 168)
#   --service_account  whose rights the hosts have on gs://; default: the project's
#   --python     of the hosts, 3.11 or newer; default: launch/find_python.sh, which installs 3.12 where there is none
#   --config, --workdir, and -- with further flags of unilip_jax.main
#   --plan       a plan.json: topology, mesh, batch and remat as planned
#   --batch      pod (default): the topology's, with scaled rates, where that pays (pod_batches.json), or recipe
#   --wait       minutes to wait for a slice (default 1440)
#   --restarts   of watch, at most (default 100)
#   --dry_run    prints what would run, one command a line, and runs nothing
# Safe to repeat: create does nothing if the request exists, run nothing if the run is running.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action="${1:-}"
[ $# -eq 0 ] || shift
opt=([name]="" [topology]="" [project]="${PROJECT:-}" [zone]="${ZONE:-}" [capacity]=spot [hours]=24
  [service_account]="" [python]="" [config]="" [workdir]="" [plan]="" [batch]=pod [wait]=1440 [restarts]=100)
case "$action" in --help | -h | "") usage; exit 0 ;; esac
parse "$@"
read_plan
need name project zone
queue=(gcloud compute tpus queued-resources)
where=("--project=${opt[project]}" "--zone=${opt[zone]}")
describe=("${queue[@]}" describe "${opt[name]}" "${where[@]}")
state=("${describe[@]}" "--format=value(state.state)")
on_all() { on_hosts --worker=all "$1"; }
on_hosts() {
  run timeout 30m "${queue[@]}" ssh "${opt[name]}" "${where[@]}" --node=all "$1" --batch-size=all --command="$2"
}

create() {
  need topology
  tpu_names "${opt[topology]}"
  local command=("${queue[@]}") flags=()
  case "${opt[capacity]}" in
    spot | reserved) flags=("--${opt[capacity]}") ;;
    on-demand) ;;
    flex)
      command=(gcloud alpha compute tpus queued-resources)
      flags=(--provisioning-model=flex-start "--max-run-duration=${opt[hours]}h") ;;
    *) fail "--capacity=${opt[capacity]}: choose spot, reserved, on-demand or flex" ;;
  esac
  [ "$slices" = 1 ] && flags+=("--node-id=${opt[name]}") \
    || flags+=("--node-count=$slices" "--node-prefix=${opt[name]}")
  [ -z "${opt[service_account]}" ] || flags+=("--service-account=${opt[service_account]}")
  unless "${describe[@]}" -- "${command[@]}" create "${opt[name]}" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${flags[@]}" --async
}

# await_slice: waits until the slice is active; fails if the request has failed or the slice was preempted.
await_slice() {
  quoted "${state[@]}"
  [ -z "$dry_run" ] || { echo "# ... every 30 s until it prints ACTIVE, for at most ${opt[wait]} minutes"; return; }
  local end=$((SECONDS + 60 * opt[wait])) now
  while true; do
    now="$("${state[@]}")" || now=unreachable
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) echo "${opt[name]} is $now" >&2; return 1 ;;
    esac
    [ "$SECONDS" -lt "$end" ] || { echo "${opt[name]} is $now after ${opt[wait]} minutes" >&2; return 1; }
    echo "${opt[name]} is $now; $(((end - SECONDS) / 60)) minutes left"
    sleep 30
  done
}

setup() {
  await_slice &&
  run git archive --format=tar.gz --output=/tmp/unilip_jax.tar.gz HEAD &&
  run timeout 30m "${queue[@]}" scp /tmp/unilip_jax.tar.gz "${opt[name]}:" "${where[@]}" \
    --node=all --worker=all --batch-size=all &&
  on_all "mkdir -p unilip_jax && tar -xzf unilip_jax.tar.gz -C unilip_jax && ACCELERATOR=tpu ${opt[python]:+PYTHON=$(quoted "${opt[python]}") }bash unilip_jax/launch/setup.sh"
}

start() {
  need config workdir
  need_bucket
  flags_of_training
  on_all "bash unilip_jax/launch/host_run.sh start run/${opt[name]} $(quoted "${training[@]}" --multihost)"
}

# For keep_running.
ends() {
  local text
  text="$(timeout 5m "${queue[@]}" ssh "${opt[name]}" "${where[@]}" --node=all --worker=all --batch-size=all \
    --command="bash unilip_jax/launch/host_run.sh status run/${opt[name]}" 2> /dev/null)" || text=unreachable
  verdict "$(echo "$text" | grep -Ex 'running|absent|unreachable|[0-9]+' || echo unreachable)"
}
log_of_first() { on_hosts --worker=0 "bash unilip_jax/launch/host_run.sh log run/${opt[name]}"; }
ready() {
  case "$("${state[@]}" || echo absent)" in
    ACTIVE) ;;
    absent) create && setup ;;
    FAILED | SUSPEND*) delete && create && setup ;;
    *) setup ;;
  esac
}

watch() {
  need config workdir
  need_bucket
  flags_of_training
  if [ -z "$dry_run" ]; then
    keep_running
    return
  fi
  quoted "${state[@]}"
  echo "# unless that prints ACTIVE: delete the request or slice if there is one, create it again, set it up:"
  delete; create; setup
  echo "# then:"
  start
  echo "# then status, every 60 s; at most ${opt[restarts]} times: all of it again, unless finished or failed"
}

delete() { unless_absent "${describe[@]}" -- "${queue[@]}" delete "${opt[name]}" "${where[@]}" --force --quiet; }

case "$action" in
  create) create; echo "# undo: bash launch/tpu_queue.sh delete --name=${opt[name]} ${where[*]}" ;;
  setup) setup ;;
  run) start; echo "# undo: bash launch/tpu_queue.sh stop --name=${opt[name]} ${where[*]}" ;;
  watch) watch ;;
  status) run "${describe[@]}"; on_all "bash unilip_jax/launch/host_run.sh status run/${opt[name]}" ;;
  logs) on_all "bash unilip_jax/launch/host_run.sh log run/${opt[name]}" ;;
  stop) on_all "bash unilip_jax/launch/host_run.sh stop run/${opt[name]}" ;;
  delete) delete ;;
  *) fail "no action $action: create, setup, run, watch, status, logs, stop, delete" ;;
esac
