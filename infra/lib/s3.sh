# SeaweedFS: master, volume server, filer and S3 gateway in one process.
# shellcheck shell=bash

s3_launch() {
    local weed_port jwt part tls=$dir/tls closed=()
    weed_port=$(port "$port_weed")
    mkdir -p "$dir/s3/data"
    s3_identities >"$dir/s3/s3.json"
    # S3's port is the one door. What stands behind it asks nobody who they are unless it is told to, and a request that some program
    # here is talked into must find nothing there: the filer has no HTTP, objects on the volume server want a token that only its
    # neighbours can make, and the master's HTTP and all gRPC want a certificate of this folder's authority.
    jwt=$(secret)
    closed=(WEED_JWT_SIGNING_KEY="$jwt" WEED_JWT_SIGNING_READ_KEY="$jwt" WEED_JWT_FILER_SIGNING_KEY="$jwt"
        WEED_JWT_FILER_SIGNING_READ_KEY="$jwt" WEED_GRPC_CA="$tls/ca.pem" WEED_HTTPS_MASTER_CA="$tls/ca.pem")
    for part in GRPC_MASTER GRPC_VOLUME GRPC_FILER GRPC_S3 GRPC_CLIENT HTTPS_MASTER; do
        closed+=("WEED_${part}_CERT=$tls/server.pem" "WEED_${part}_KEY=$tls/server.key")
    done
    # Each bucket takes seven volumes, which grow as they fill, 64 MB at most: as many as tests have buckets, whatever room the disk has.
    # Short raft timers: a master with no peers has nobody to wait for, and the defaults cost 13 s after a kill.
    # By the environment: others see arguments.
    (
        export "${closed[@]}"
        launch s3 "$weed" -logtostderr=true server -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$dir/s3/data" \
            -master.port="$weed_port" -master.port.grpc=$((weed_port + 1)) \
            -volume.port=$((weed_port + 2)) -volume.port.grpc=$((weed_port + 3)) \
            -filer.port=$((weed_port + 4)) -filer.port.grpc=$((weed_port + 5)) -filer.disableHttp \
            -s3 -s3.port="$(port "$port_s3")" -s3.port.grpc=$((weed_port + 6)) \
            -s3.port.https="$(port "$port_s3_tls")" -s3.cert.file="$tls/server.pem" -s3.key.file="$tls/server.key" \
            -s3.port.iceberg=0 -s3.port.lance=0 -s3.iam=false -s3.config="$dir/s3/s3.json" \
            -master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=10000 \
            -master.heartbeatInterval=20ms -master.electionTimeout=100ms
    )
}

# s3_call METHOD KEY [FILE]: prints the status of one signed request. The keys go by a file: others see arguments.
s3_call() {
    curl --silent --noproxy '*' --max-time 10 --output /dev/null --write-out '%{http_code}' \
        --config "$dir/s3/curl.conf" --aws-sigv4 aws:amz:us-east-1:s3 \
        --request "$1" ${3+--upload-file "$3"} "http://127.0.0.1:$(port "$port_s3")/vecmill$2"
}

# Ready is: the bucket is there (409: it was already), and an object can be written, read and deleted.
s3_ready() {
    echo "user = \"$s3_access_key:$s3_secret_key\"" >"$dir/s3/curl.conf"
    [[ $(s3_call PUT "") == @(200|409) && $(s3_call PUT /.ready "$dir/port-base") == 200 &&
        $(s3_call GET /.ready) == 200 && $(s3_call DELETE /.ready) == 204 ]]
}

# On SIGTERM weed waits 15 s for a stream to itself: it is killed, stop or kill. What it acknowledged is with the kernel: a kill loses none of it.
s3_stop() {
    halt s3 0
    # weed ties these to its ports, in /tmp whatever TMPDIR says, and a killed one leaves them.
    local offset
    for offset in 1 3 5 6; do rm -f /tmp/seaweedfs-*-grpc-$(($(port "$port_weed") + offset)).sock; done
    rm -f "/tmp/seaweedfs-filer-$(($(port "$port_weed") + 4)).sock" "/tmp/seaweedfs-s3-$(port "$port_s3").sock"
}

s3_remove() { rm -rf "${dir:?}/s3"; }

# s3_env [ROLE]
s3_env() {
    local role
    if [[ ${1-} ]]; then
        s3_keys "" "$(role_secret s3-key "$1")" "$(role_secret s3-secret "$1")"
    else
        s3_keys "" "$s3_access_key" "$s3_secret_key"
        for role in "${program_roles[@]}" producer-of-one; do
            s3_keys "$(test_prefix "$role")" "$(role_secret s3-key "$role")" "$(role_secret s3-secret "$role")"
        done
    fi
    cat <<ENV
export VECMILL_S3_ENDPOINT=http://127.0.0.1:$(port "$port_s3")
export VECMILL_S3_BUCKET=vecmill
export AWS_REGION=us-east-1
export VECMILL_TEST_S3_TLS=https://127.0.0.1:$(port "$port_s3_tls")
export VECMILL_TEST_TLS_DIR=$dir/tls
ENV
}

# s3_keys PREFIX ID SECRET
s3_keys() { printf 'export %sAWS_ACCESS_KEY_ID=%s\nexport %sAWS_SECRET_ACCESS_KEY=%s\n' "$1" "$2" "$1" "$3"; }
