# Postgres, for a signer that is not alone on its database. Only where it is asked for by name.
# shellcheck shell=bash

postgres_bin() { printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1; }

# It refuses to run as root. As root it runs as the user that Debian's package makes, who may not look into the folders
# of root: then its data lies elsewhere, and $dir/postgres leads there.
as_postgres=()
((EUID != 0)) || as_postgres=(setpriv --reuid=postgres --regid=postgres --clear-groups)

postgres_launch() {
    local bin home
    bin=$(postgres_bin)
    if [[ ! -e $dir/postgres ]]; then
        postgres_remove
        if ((EUID == 0)); then
            # The link first: whoever cuts this short leaves nothing that is not found.
            ln -s "$(mktemp -u /tmp/vecmill-postgres.XXXXXX)" "$dir/postgres.new"
            home=$(readlink "$dir/postgres.new")
        else
            home=$dir/postgres.new
        fi
        mkdir -m 0700 "$home"
        install -m 0600 /dev/null "$home/password"
        printf '%s\n' "$postgres_password" >"$home/password"
        ((EUID != 0)) || chown -R postgres:postgres "$home"
        # C: names are compared by their bytes, as SQLite does.
        (cd / && "${as_postgres[@]}" "$bin/initdb" --pgdata "$home/data" --username vecmill --pwfile "$home/password" \
            --auth scram-sha-256 --encoding UTF8 --locale C --no-sync) >"$dir/postgres.log" 2>&1 ||
            die "Postgres could not be set up; see $dir/postgres.log"
        rm "$home/password"
        # It takes a key only from a file of its own.
        install -m 0600 "$dir/tls/server.key" "$dir/tls/server.pem" "$home/data/"
        ((EUID != 0)) || chown postgres:postgres "$home/data/server.key" "$home/data/server.pem"
        mv -T "$dir/postgres.new" "$dir/postgres"
    fi
    # A socket in a folder that only its owner sees would do too, but the signer is told to use TCP and TLS.
    (cd / && launch postgres "${as_postgres[@]}" "$bin/postgres" -D "$(readlink -f "$dir/postgres")/data" \
        -c listen_addresses=127.0.0.1 -c port="$(port "$port_postgres")" -c unix_socket_directories= \
        -c ssl=on -c ssl_cert_file=server.pem -c ssl_key_file=server.key -c max_connections=200 -c shared_buffers=32MB)
}

postgres_ready() {
    timeout 5 "$(postgres_bin)/pg_isready" --quiet --host 127.0.0.1 --port "$(port "$port_postgres")" --dbname postgres
}

# postgres_stop [SECONDS BEFORE SIGKILL]: SIGTERM would wait for every client to leave.
postgres_stop() {
    local pid child children=()
    alive postgres || return 0
    # Each is a session of its own.
    mapfile -t children < <(pgrep -P "$pid")
    ((${1-10} == 0)) || kill -INT "$pid"
    halt postgres "${1-10}"
    for child in "${children[@]}"; do
        kill -KILL "$child" 2>/dev/null || true
        while start_time "$child" >/dev/null; do sleep 0.02; done
    done
    # All of it is gone; it would take a process that nobody has reaped yet for one that runs.
    rm -f "$dir/postgres/data/postmaster.pid"
}

postgres_remove() {
    local home
    for home in "${dir:?}/postgres" "$dir/postgres.new"; do rm -rf "$(readlink -f "$home")" "$home"; done
}

# postgres_env: the tests' alone.
postgres_env() {
    echo "export VECMILL_TEST_POSTGRES_URL=postgres://vecmill:$postgres_password@127.0.0.1:$(port "$port_postgres")/postgres"
}
