#!/usr/bin/env bash
# Starts, checks and stops a run on one host: in the background, with log, exit status and process id in DIR.
# The scripts for several hosts call it on each of them; nothing here needs a cluster.
#   bash launch/host_run.sh start DIR [flags of unilip_jax.main ...]   does nothing if it is running
#   bash launch/host_run.sh status DIR     prints running, absent, or the exit status
#   bash launch/host_run.sh log DIR [LINES]
#   bash launch/host_run.sh stop DIR       the run saves and ends, on every host of it. Undo of start.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action="${1:-}" dir="${2:-}"
[ -n "$dir" ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
shift 2
alive() { [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2> /dev/null; }

case "$action" in
  start)
    mkdir -p "$dir"
    exec 9> "$dir/lock"
    flock -n 9 || { echo "$(hostname): runs already"; exit 0; }  # held by what runs, for as long as it does
    rm -f "$dir/status" "$dir/pid"
    python="${PYTHON:-.venv/bin/python}"
    {
      echo "$(date -u +%FT%TZ) $(hostname):$(printf ' %q' "$python" -m unilip_jax.main "$@")"
      # shellcheck disable=SC2016  # expanded by the shell that is started
      setsid nohup bash -c '"$@" & pid=$!; echo "$pid" > "$0/pid"; wait "$pid" || status=$?; echo "${status:-0}" > "$0/status.new"; mv "$0/status.new" "$0/status"' \
        "$dir" "$python" -m unilip_jax.main "$@"
    } >> "$dir/log" 2>&1 < /dev/null &
    echo "$(hostname): started" ;;
  status)
    if [ -f "$dir/status" ]; then cat "$dir/status"; elif alive; then echo running; else echo absent; fi ;;
  log) tail -n "${1:-50}" "$dir/log" ;;
  stop)
    if alive; then kill -TERM "$(cat "$dir/pid")"; echo "$(hostname): asked to save and end"
    else echo "$(hostname): runs nothing"; fi ;;
  *) echo "host_run.sh: no action $action: start, status, log, stop" >&2; exit 2 ;;
esac
