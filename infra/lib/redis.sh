# Redis with no persistence: it is a limiter and a cache, and tests want a kill to empty it.
# shellcheck shell=bash

redis_launch() {
    mkdir -p "$dir/redis"
    # noeviction: a limiter whose keys vanish under pressure says yes where it must say no.
    cat >"$dir/redis/redis.conf" <<CONF
bind 127.0.0.1
port $(port "$port_redis")
tls-port $(port "$port_rediss")
tls-cert-file $dir/tls/server.pem
tls-key-file $dir/tls/server.key
tls-ca-cert-file $dir/tls/ca.pem
tls-auth-clients $([[ $client_certificates == required ]] && echo yes || echo no)
requirepass $redis_password
$(redis_users)
dir $dir/redis
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
CONF
    launch redis redis-server "$dir/redis/redis.conf"
}

redis_ready() {
    local answer
    answer=$(REDISCLI_AUTH=$redis_password timeout 5 redis-cli -h 127.0.0.1 -p "$(port "$port_redis")" ping 2>/dev/null) &&
        [[ $answer == PONG ]]
}

# redis_stop [SECONDS BEFORE SIGKILL]
redis_stop() { halt redis "${1-10}"; }

redis_remove() { rm -rf "${dir:?}/redis"; }

# redis_env [ROLE]
redis_env() {
    local role
    case ${1-} in
        gateway | worker) redis_url VECMILL_ "vecmill-$1" "$(role_secret redis "$1")" ;;
        # A producer has no business there.
        ?*) ;;
        "")
            redis_url VECMILL_ "" "$redis_password"
            echo "export VECMILL_TEST_REDISS_URL=rediss://:$redis_password@127.0.0.1:$(port "$port_rediss")/0"
            for role in gateway worker; do
                redis_url "$(test_prefix "$role")" "vecmill-$role" "$(role_secret redis "$role")"
            done
            ;;
    esac
}

# redis_url PREFIX USER PASSWORD
redis_url() { echo "export $1REDIS_URL=redis://$2:$3@127.0.0.1:$(port "$port_redis")/0"; }
