# One block of TCP ports for each instance folder `$dir`, picked once and kept in $dir/port-base.
# shellcheck shell=bash

# Ports of a block, by offset. 32 apart leaves room.
port_block=32
port_amqp=0 port_dist=1 port_epmd=2 port_redis=3 port_s3=4 port_weed=5 # and the six after it
# Used by `infra/up` for the programs.
port_signer=12 port_worker=13 port_gateway=18
# The servers over TLS, beside their plain ports.
port_amqps=14 port_rediss=15 port_s3_tls=16
port_postgres=17

port() { echo $((port_base + $1)); }

# Below Linux's range for outgoing connections (32768 up), so that a stopped server's port stays free for its return.
pick_ports() {
    local claims=/tmp/vecmill-ports-$UID claim offset
    if [[ -s $dir/port-base ]]; then
        port_base=$(<"$dir/port-base")
        return
    fi
    # A link in `claims` keeps two folders apart even while neither has its servers up; it is void once its folder
    # is gone or was made anew.
    [[ -d $claims ]] || mkdir -m 0700 "$claims" 2>/dev/null || [[ -d $claims ]]
    while true; do
        port_base=$((12000 + RANDOM % 625 * port_block))
        claim=$claims/$port_base
        [[ ! -e $claim || $(readlink "$claim") == "$dir" ]] && rm -f "$claim"
        ln -s -T "$dir" "$claim" 2>/dev/null || continue
        for ((offset = 0; offset < port_block; offset++)); do
            # Something listens there.
            (exec 3<>"/dev/tcp/127.0.0.1/$((port_base + offset))") 2>/dev/null && continue 2
        done
        echo "$port_base" >"$dir/port-base"
        return
    done
}
