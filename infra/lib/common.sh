# Shared by the scripts of this folder: where things lie, and how they speak.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# What `infra/install` puts here is versioned by its path or a stamp: deleting it costs one download.
tools=$root/target/infra
weed=$tools/seaweedfs/bin/weed
tokenizer_dir=$tools/qwen3-tokenizer
# Debian's /usr/sbin/rabbitmq-server switches to the system's own user and data: this is the script below it.
rabbitmq_server=/usr/lib/rabbitmq/bin/rabbitmq-server
# Where cargo leaves the programs.
release_dir=${CARGO_TARGET_DIR:-$root/target}/release

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$(basename "$0"): $*"
    exit 1
}

# For a script whose settings are variables: to --help it says what stands at its head, and ends; so it does to anything else,
# which it does not know.
takes_no_arguments() {
    [[ $# == 0 ]] && return
    awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$0"
    [[ $* == --help || $* == -h ]] && exit 0
    say "$(basename "$0"): takes no arguments"
    exit 2
}

# What numbers were measured on.
print_machine() {
    echo "machine: $(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo), load $(cut -d' ' -f1 /proc/loadavg), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"
}

# A secret for one private instance, safe in a URL and in any configuration file.
secret() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }
