# Background processes with pid files in the folder `$dir`: NAME.pid holds "PID START-TIME", NAME.log its output.
# shellcheck shell=bash

# Prints a live process's start time in clock ticks since boot; with its pid it names one process for ever.
# A zombie counts as dead: in a container nobody may reap it.
start_time() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The name, in parentheses, may hold blanks: count the fields behind it.
    read -ra stat <<<"${stat##*) }"
    [[ ${stat[0]} != [ZX] ]] && printf '%s\n' "${stat[19]}"
}

# Sets `pid` and succeeds if the process that `launch` started still runs; a recycled pid does not count.
alive() {
    local started now
    read -r pid started 2>/dev/null <"$dir/$1.pid" && now=$(start_time "$pid") && [[ $now == "$started" ]]
}

# launch NAME COMMAND...: in a session of its own, so that it outlives this script and a Ctrl-C in its terminal.
launch() {
    local name=$1
    shift
    rm -f "$dir/$name.pid"
    setsid "$root/infra/lib/become" "$dir/$name.pid" "$@" </dev/null >>"$dir/$name.log" 2>&1 &
    # Else bash reports its end.
    disown
    # Whoever asks next whether it is alive must find the file.
    while [[ ! -e $dir/$name.pid ]] && start_time $! >/dev/null; do sleep 0.01; done
}

# halt NAME SECONDS: SIGTERM, then SIGKILL after that many seconds; 0 is SIGKILL at once. Returns when it is gone.
halt() {
    local pid deadline=$((SECONDS + $2))
    if alive "$1"; then
        (($2 == 0)) || kill -TERM "$pid"
        while alive "$1" && ((SECONDS < deadline)); do sleep 0.05; done
        # The whole process group: Erlang's helpers must not outlive their VM.
        if alive "$1"; then kill -KILL -- "-$pid"; fi
        while alive "$1"; do sleep 0.02; done
    fi
    rm -f "$dir/$1.pid"
}

# wait_ready NAME DEADLINE PROBE...: until the probe succeeds; at the deadline (of $SECONDS) or when the process
# ends, prints the end of its log and fails.
wait_ready() {
    local name=$1 deadline=$2 pid why=
    shift 2
    until "$@"; do
        alive "$name" || why="ended before it was ready"
        ((SECONDS < deadline)) || why="was not ready in time"
        if [[ $why ]]; then
            say "$name $why; the end of $dir/$name.log:"
            tail -n 30 "$dir/$name.log" >&2
            return 1
        fi
        sleep 0.1
    done
}
