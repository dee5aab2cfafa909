# A script's run: a folder for its servers and whatever else it writes. All of it goes when the script ends, and also
# when it is killed. What belongs to the run is seen from its TMPDIR, which programs hand on to what they start and which
# brings what they leave behind into the folder.
# shellcheck shell=bash

# open_run NAME: makes the folder, $dir, and sees to its end. Of a run that failed the logs stay if $keep_logs is set.
open_run() {
    # A run within a test's is part of it.
    local parent=${VECMILL_TEST_DIR:-$root/target}
    mkdir -p "$parent"
    dir=$(mktemp -d "$parent/$1.XXXXXX")
    mkdir "$dir/tmp"
    trap close_run EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # Before anything is started: from here on a kill leaves nothing.
    launch guard "$root/infra/guard" "$dir" $$ "$(start_time $$)"
}

# Makes what is started from here on part of the run. Not to be called before cargo builds: it may start a compiler
# cache, which serves others too.
join_run() { export TMPDIR=$dir/tmp; }

close_run() {
    local status=$? pid
    # A second Ctrl-C must not leave servers behind.
    trap '' HUP INT TERM
    # What clears up is no part of it.
    unset TMPDIR
    clear_run
    halt guard 0
    if ((status == 0)) || [[ ! ${keep_logs-} ]]; then
        remove_run
    else
        rm -rf "$dir/tmp"
        say "the servers' logs are in $dir"
    fi
}

# Kills every process of the run in $dir, and removes its servers and theirs that it started in folders below.
clear_run() {
    local pids servers none=0 deadline=$((SECONDS + 60))
    # Twice none: a process has no environment for a moment while it becomes another program.
    while ((none < 2 && SECONDS < deadline)); do
        mapfile -t pids < <(grep -lzsF "TMPDIR=$dir/" /proc/[0-9]*/environ | cut -d / -f 3)
        if ((${#pids[@]} > 0)); then
            none=0
            # Some have ended meanwhile.
            kill -KILL "${pids[@]}" 2>/dev/null || true
        else
            none=$((none + 1))
        fi
        sleep 0.1
    done
    # What is known by its pid file: some servers write over their environment. And their ports and data elsewhere.
    while read -r servers; do
        "$root/infra/services" remove "${servers%/*}" rabbitmq redis s3 postgres 2>/dev/null || true
    done < <(find "$dir" -name port-base -type f)
}

remove_run() {
    local deadline=$((SECONDS + 30))
    # Who was killed a moment ago may still be at a last write.
    until rm -rf "$dir" 2>/dev/null || ((SECONDS >= deadline)); do sleep 0.1; done
}
