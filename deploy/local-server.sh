#!/usr/bin/env bash
# A mixer server of one's own in the background: local-server.sh up [flags of samix serve] | down
# Its process id and log stand in runs/up. `make serve-local` and `make stop-local` call this.
set -euo pipefail
cd "$(dirname "$0")/.."

state=runs/up
pid_file=$state/server.pid
log=$state/server.log
ready_s=60
drain_s=40 # samix serve gives up after its exit_timeout_s of 30

command_of() {
    if [ -r "/proc/$1/cmdline" ]; then tr '\0' ' ' <"/proc/$1/cmdline"; else ps -p "$1" -o args= || true; fi
}

# The number may belong to another process by now, for example after a restart of the machine.
is_server() {
    case $(command_of "$1" 2>/dev/null) in *samix*" serve "*) kill -0 "$1" 2>/dev/null ;; *) false ;; esac
}

# Prints the id of the running server; a file left by one that is gone is removed.
running_pid() {
    local pid
    pid=$(cat "$pid_file" 2>/dev/null) || return 1
    is_server "$pid" && echo "$pid" && return
    echo "removed $pid_file: the server it names (process ${pid:-unknown}) is gone" >&2
    rm -f "$pid_file"
    return 1
}

ready_line() { grep -m 1 '^ready ' "$log"; }

# Waits up to $1 seconds until the command that follows succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

up() {
    local pid
    if pid=$(running_pid); then
        echo "a mixer server already runs (process $pid); make stop-local stops it"
        ready_line || echo "it is not ready yet, see $log"
        return
    fi
    mkdir -p "$state"
    : >"$log" # here rather than by the server: its predecessor's ready line must be gone before we look for one
    nohup .venv/bin/samix serve --mixers mixers "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$pid_file"
    # shellcheck disable=SC2064 # expanded now: pid is gone when the script ends
    trap "abandon $pid" EXIT
    within "$ready_s" is_settled "$pid" || true
    if ! ready_line; then
        echo "error: the mixer server ended, or was not ready after $ready_s s; the end of $log:" >&2
        tail -n 5 "$log" >&2
        return 1
    fi
    trap - EXIT
    echo "make stop-local stops it; log: $log"
}

abandon() {
    kill "$1" 2>/dev/null || true
    rm -f "$pid_file"
}

is_settled() { ready_line >/dev/null || ! kill -0 "$1" 2>/dev/null; }

down() {
    local pid
    if ! pid=$(running_pid); then
        echo "no mixer server runs"
        return
    fi
    echo "asking process $pid to answer what it accepted and stop"
    kill -TERM "$pid"
    if ! within "$drain_s" has_gone "$pid"; then
        echo "error: process $pid still runs after $drain_s s; see $log, and kill -KILL $pid to end it" >&2
        return 1
    fi
    rm -f "$pid_file"
    if tail -n 20 "$log" | grep -q ' stopped drained=True'; then
        echo "drained and stopped"
    else
        echo "stopped, but not everything accepted was answered; see $log" >&2
        return 1
    fi
}

has_gone() { ! is_server "$1"; }

case ${1:-} in
up | down) "$@" ;;
*)
    echo "usage: $0 up [flags of samix serve] | down" >&2
    exit 2
    ;;
esac
