#!/usr/bin/env bash
# GPU machines that you reach by ssh, without a scheduler. One action a call:
#   bash launch/gpu_ssh.sh setup --hosts=a,b            copies the committed code to each, installs
#   bash launch/gpu_ssh.sh run   --hosts=a,b --name=N --config=configs/stage2.py:1b --workdir=gs://B/stage2
#                                [-- FLAGS]             starts one process on each, in the background
#   bash launch/gpu_ssh.sh watch (the same options)     restarts it until it has finished
#   bash launch/gpu_ssh.sh status | logs | stop --hosts=a,b --name=N     stop: saves and ends. Undo of run
# Options:
#   --hosts      in order; the first coordinates, and the others must reach its --port
#   --port       of the coordinator (default 8476)
#   --name       of the run; its log is run/NAME/log on each host
#   --folder     of the code on each host (default unilip_jax, in the home folder)
#   --config, --workdir (gs://, or a folder that all hosts share), and -- with flags of unilip_jax.main
#   --plan       a plan.json: mesh, batch and remat as planned
#   --restarts   of watch, at most (default 100)
#   --dry_run    prints what would run, one command a line, and runs nothing
# Safe to repeat: setup installs only changes, run does nothing if the run is running.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action="${1:-}"
[ $# -eq 0 ] || shift
opt=([hosts]="" [port]=8476 [name]="" [folder]=unilip_jax [config]="" [workdir]="" [plan]="" [restarts]=100)
case "$action" in --help | -h | "") usage; exit 0 ;; esac
parse "$@"
read_plan
need hosts
IFS=, read -ra hosts <<< "${opt[hosts]}"
ssh=(timeout 30m ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15)
at() { run "${ssh[@]}" "$1" "cd ${opt[folder]} && ${3:-}bash launch/host_run.sh $2"; }
at_each() { local host; for host in "${hosts[@]}"; do at "$host" "$1"; done; }

setup() {
  local host archive=/tmp/unilip_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  for host in "${hosts[@]}"; do
    run timeout 30m scp -o BatchMode=yes -o ConnectTimeout=20 "$archive" "$host:"
    run "${ssh[@]}" "$host" "mkdir -p ${opt[folder]} && tar -xzf unilip_jax.tar.gz -C ${opt[folder]} && ACCELERATOR=cuda bash ${opt[folder]}/launch/setup.sh"
  done
}

start() {
  need name
  flags_of_training
  local i
  for i in "${!hosts[@]}"; do
    at "${hosts[$i]}" "start run/${opt[name]} $(quoted "${training[@]}" --coordinator="${hosts[0]#*@}:${opt[port]}" \
      --process_count="${#hosts[@]}" --process_index="$i")" ". launch/gpu.env && "
  done
}

# For keep_running.
ready() { true; }
log_of_first() { at "${hosts[0]}" "log run/${opt[name]}"; }
ends() {
  local host state states=" "
  for host in "${hosts[@]}"; do
    state="$("${ssh[@]}" "$host" "cd ${opt[folder]} && bash launch/host_run.sh status run/${opt[name]}")" || state=unreachable
    states+="$state "
  done
  verdict "$states"
}

case "$action" in
  setup) setup ;;
  run) start; echo "# undo: bash launch/gpu_ssh.sh stop --hosts=${opt[hosts]} --name=${opt[name]}" ;;
  watch)
    if [ -n "$dry_run" ]; then
      start
      echo "# then status, every 60 s; at most ${opt[restarts]} times: the same again, unless finished or failed"
    else
      need name
      keep_running
    fi ;;
  status) need name; at_each "status run/${opt[name]}" ;;
  logs) need name; at_each "log run/${opt[name]}" ;;
  stop) need name; at_each "stop run/${opt[name]}" ;;
  *) fail "no action $action: setup, run, watch, status, logs, stop" ;;
esac
