# RabbitMQ, one node, with an Erlang port mapper (epmd) of its own.
# shellcheck shell=bash

rabbitmq_launch() {
    local home=$dir/rabbitmq verify=verify_none demand=false
    [[ $client_certificates != required ]] || verify=verify_peer demand=true
    mkdir -p "$home"
    [[ -s $home/.erlang.cookie ]] || { secret >"$home/.erlang.cookie" && chmod 0400 "$home/.erlang.cookie"; }
    # Users and what they may do are taken in at each start.
    rabbitmq_definitions >"$home/definitions.json"
    # One key a line.
    cat >"$home/rabbitmq.conf" <<CONF
listeners.tcp.default = 127.0.0.1:$(port "$port_amqp")
listeners.ssl.default = 127.0.0.1:$(port "$port_amqps")
ssl_options.cacertfile = $dir/tls/ca.pem
ssl_options.certfile = $dir/tls/server.pem
ssl_options.keyfile = $dir/tls/server.key
ssl_options.verify = $verify
ssl_options.fail_if_no_peer_cert = $demand
load_definitions = $home/definitions.json
# Several instances share a small machine. The write-ahead log is held in memory up to its size.
vm_memory_high_watermark.absolute = 512MB
raft.wal_max_size_bytes = 64000000
CONF
    echo '[].' >"$home/enabled_plugins"
    # Left to itself, the broker starts a port mapper that outlives it.
    alive epmd || launch epmd epmd -address 127.0.0.1 -port "$(port "$port_epmd")"
    # RUNNING_UNDER_SYSTEMD: exec the VM itself, with no shell between it and our signals.
    # +sbwt none: idle schedulers sleep rather than spin.
    launch rabbitmq env HOME="$home" RABBITMQ_NODENAME="vecmill-$port_base@localhost" \
        ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$(port "$port_epmd")" RABBITMQ_DIST_PORT="$(port "$port_dist")" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none" \
        RABBITMQ_CONF_ENV_FILE="$home/none" RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
        RABBITMQ_CONFIG_FILES="$home/none" RABBITMQ_ADVANCED_CONFIG_FILE="$home/none" \
        RABBITMQ_GENERATED_CONFIG_DIR="$home/config" RABBITMQ_SCHEMA_DIR="$home/schema" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" RABBITMQ_PID_FILE="$home/broker.pid" \
        RABBITMQ_MNESIA_BASE="$home/data" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_LOGS=- \
        RUNNING_UNDER_SYSTEMD=true "$rabbitmq_server"
}

# The listener opens last, after users and queues are recovered; a broker answers the protocol header with a method
# frame (type 1, channel 0).
rabbitmq_ready() (
    exec 3<>"/dev/tcp/127.0.0.1/$(port "$port_amqp")" || return 1
    printf 'AMQP\0\0\11\1' >&3
    [[ $(timeout 5 head -c 3 <&3 | od -An -tx1) == " 01 00 00" ]]
) 2>/dev/null

# rabbitmq_stop [SECONDS BEFORE SIGKILL]
rabbitmq_stop() {
    halt rabbitmq "${1-30}"
    halt epmd 0
}

rabbitmq_remove() { rm -rf "${dir:?}/rabbitmq"; }

# rabbitmq_env [ROLE]
rabbitmq_env() {
    local role
    if [[ ${1-} ]]; then
        rabbitmq_urls VECMILL_ "" "vecmill-$1" "$(role_secret amqp "$1")"
    else
        rabbitmq_urls VECMILL_ VECMILL_TEST_ vecmill "$amqp_password"
        for role in "${program_roles[@]}" ops; do
            rabbitmq_urls "$(test_prefix "$role")" "" "vecmill-$role" "$(role_secret amqp "$role")"
        done
    fi
}

# rabbitmq_urls PREFIX [PREFIX OF THE ONE OVER TLS] USER PASSWORD
rabbitmq_urls() {
    printf 'export %sAMQP_URL=amqp://%s:%s@127.0.0.1:%s/%%2f\n' "$1" "$3" "$4" "$(port "$port_amqp")"
    [[ ! $2 ]] || printf 'export %sAMQPS_URL=amqps://%s:%s@127.0.0.1:%s/%%2f\n' "$2" "$3" "$4" "$(port "$port_amqps")"
}
