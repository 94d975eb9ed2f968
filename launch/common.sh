#!/usr/bin/env bash
# Shared by the launch scripts: sourced, never run. Options, dry runs, the training command, TPU names.
set -euo pipefail

dry_run=""
devices=""         # their number, where a script knows it and no topology
declare -A opt=()  # every option of the script, with its default: parse takes no other
rest=()            # the arguments after --, for unilip_jax.main

fail() { echo "$(basename "$0"): $*" >&2; exit 2; }
quoted() {  # a command as it can be pasted into a shell
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
    line+=" $word"
  done
  echo "${line:1}"
}
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

# run COMMAND...: prints it, and runs it unless this is a dry run.
run() {
  quoted "$@"
  [ -n "$dry_run" ] || "$@"
}

# unless CHECK... -- COMMAND...: runs the command where the check fails. A dry run prints both.
unless() {
  local check=()
  while [ "$1" != -- ]; do check+=("$1"); shift; done
  shift
  echo "$(quoted "${check[@]}") > /dev/null 2>&1 || $(quoted "$@")"
  [ -n "$dry_run" ] || "${check[@]}" > /dev/null 2>&1 || "$@"
}

# unless_absent CHECK... -- COMMAND...: runs the command where the check succeeds. A dry run prints both.
unless_absent() {
  local check=()
  while [ "$1" != -- ]; do check+=("$1"); shift; done
  shift
  echo "! $(quoted "${check[@]}") > /dev/null 2>&1 || $(quoted "$@")"
  [ -n "$dry_run" ] || ! "${check[@]}" > /dev/null 2>&1 || "$@"
}

# parse ARGUMENTS...: --key=value into opt, --dry_run, and the arguments after -- into rest.
parse() {
  local key
  while [ $# -gt 0 ]; do
    case "$1" in
      --dry_run) dry_run=yes ;;
      --help | -h) usage; exit 0 ;;
      --) shift; rest=("$@"); return ;;
      --*=*)
        key="${1%%=*}"; key="${key#--}"
        [ -n "${opt[$key]+known}" ] || fail "no option --$key; there are: $(known)"
        opt[$key]="${1#*=}" ;;
      *) fail "cannot read $1; options are --key=value ($(known)), --dry_run, and -- before training flags" ;;
    esac
    shift
  done
}
known() { printf '%s\n' "${!opt[@]}" | sort | sed 's/^/--/' | tr '\n' ' '; }

# need KEY...: options that must not be empty.
need() {
  local key
  for key in "$@"; do [ -n "${opt[$key]}" ] || fail "--$key=... is needed (--help explains)"; done
}

# read_plan: takes topology and training flags from --plan=plan.json (unilip_jax.main --mode=plan); options win.
read_plan() {
  [ -n "${opt[plan]:-}" ] || return 0
  [ -f "${opt[plan]}" ] || fail "--plan=${opt[plan]}: no such file"
  local line text flags=()
  text="$(python3 "$(dirname "${BASH_SOURCE[0]}")/plan_flags.py" "${opt[plan]}")"
  while IFS= read -r line; do
    case "$line" in
      topology=*) [ -n "${opt[topology]-no}" ] || opt[topology]="${line#*=}" ;;
      *) flags+=("$line") ;;
    esac
  done <<< "$text"
  rest=("${flags[@]}" ${rest[@]+"${rest[@]}"})
}

# check_run ARGUMENTS...: fails for an unknown topology, config, field or value (launch/check_run.py).
check_run() {
  local python message here
  here="$(dirname "${BASH_SOURCE[0]}")"
  python="$here/../.venv/bin/python"
  [ -x "$python" ] || python=python3
  message="$("$python" "$here/check_run.py" "$@" 2>&1)" || fail "$message"
  [ -z "$message" ] || echo "$message" >&2
}

# pod_batch: the batch of a stage on its topology with the rates that follow (pod_batches.json), into rest, and
# a line about it into note. Scripts with --batch; a plan and --config.batch_size win.
pod_batch() {
  local text flag flags
  case "${opt[batch]:-recipe}" in
    pod) ;;
    recipe) return ;;
    *) fail "--batch=${opt[batch]}: choose pod or recipe" ;;
  esac
  [ -z "${opt[plan]}" ] || return 0
  for flag in ${rest[@]+"${rest[@]}"}; do
    case "$flag" in --config.batch_size=*) return ;; esac
  done
  text="$(python3 "$(dirname "${BASH_SOURCE[0]}")/pod_batches.py" "${opt[config]}" "${opt[topology]}" 2>&1)" || fail "$text"
  [ -n "$text" ] || return 0
  note="# ${opt[config]} on ${opt[topology]}: a larger batch than the recipe's, with scaled rates (docs/training.md); --batch=recipe keeps the recipe's"
  mapfile -t flags <<< "$text"
  rest=("${flags[@]}" ${rest[@]+"${rest[@]}"})
}

# shellcheck disable=SC2034  # for the scripts that source this
# flags_of_training: the arguments of unilip_jax.main, into the array training. A dry run checks them, for
# $devices if that is set.
flags_of_training() {
  need config workdir
  local note=""
  pod_batch
  training=("--config=${opt[config]}" "--workdir=${opt[workdir]}" ${rest[@]+"${rest[@]}"})
  [ -z "$dry_run" ] \
    || check_run ${devices:+"--devices=$devices"} ${opt[topology]:+"--topology=${opt[topology]}"} "${training[@]}"
  [ -z "$note" ] || echo "$note"
}

# verdict STATES: the state of a run, from those that host_run.sh status prints on its hosts.
verdict() {
  local state result=finished
  for state in $1; do
    case "$state" in
      running) echo running; return ;;
      0) ;;
      1 | 2) result=failed ;;
      *) [ "$result" = failed ] || result=again ;;  # 75, a signal, never started, out of reach
    esac
  done
  echo "$result"
}

# keep_running: restarts the run until it has finished. The script defines the functions ready (there are hosts to
# start on), start, ends (prints a verdict) and log_of_first.
keep_running() {
  local try
  for ((try = 0; try <= opt[restarts]; try++)); do
    [ "$try" = 0 ] || { echo "${opt[name]}: stopped or lost, restart $try of ${opt[restarts]}"; sleep 60; }
    ready || continue
    case "$(ends)" in running | finished) ;; *) start || continue ;; esac
    while true; do
      case "$(ends)" in
        running) sleep 60 ;;
        finished) echo "${opt[name]}: finished"; return ;;
        failed) log_of_first; fail "${opt[name]} failed: see the log above, and those of the other hosts" ;;
        *) break ;;
      esac
    done
  done
  fail "${opt[name]} did not finish within ${opt[restarts]} restarts"
}

need_bucket() {
  case "${opt[workdir]}" in
    gs://*) ;;
    *) fail "--workdir=${opt[workdir]}: hosts share no disk here; give a gs:// path" ;;
  esac
}

# shellcheck disable=SC2034  # for the scripts that source this
# tpu_names TOPOLOGY: of v5e:4x4, v5e:16x16*2 (two slices) and the like, into accelerator (gcloud's and
# xpk's name), slices and runtime.
tpu_names() {
  local kind="${1%%:*}" grid="${1#*:}" chips=1 side
  [[ "$1" =~ ^[a-z0-9]+:[0-9]+(x[0-9]+){1,2}(\*[1-9][0-9]*)?$ ]] \
    || fail "--topology=$1: expected e.g. v5e:4x4, v6e:8x8, v5p:4x4x4, v5e:16x16*2 for two slices"
  slices=1
  case "$grid" in *\**) slices="${grid#*\*}"; grid="${grid%\**}" ;; esac
  for side in ${grid//x/ }; do chips=$((chips * side)); done
  case "$kind" in  # v4 and v5p are named by TensorCores, two a chip
    v5e) accelerator="v5litepod-$chips"; runtime=v2-alpha-tpuv5-lite ;;
    v6e) accelerator="v6e-$chips"; runtime=v2-alpha-tpuv6e ;;
    v5p) accelerator="v5p-$((2 * chips))"; runtime=v2-alpha-tpuv5 ;;
    v4) accelerator="v4-$((2 * chips))"; runtime=tpu-ubuntu2204-base ;;
    *) fail "--topology=$1: kinds are v4, v5e, v5p, v6e" ;;
  esac
  check_run "--topology=$1"
}
