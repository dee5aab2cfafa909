# SeaweedFS: master, volume server, filer and S3 gateway in one process.
# shellcheck shell=bash

s3_launch() {
    local weed_port
    weed_port=$(port "$port_weed")
    mkdir -p "$dir/s3/data"
    cat >"$dir/s3/s3.json" <<CONF
{"identities": [{
  "name": "vecmill",
  "credentials": [{"accessKey": "$s3_access_key", "secretKey": "$s3_secret_key"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]
}]}
CONF
    # volume.max=0: as many volumes as the disk has room for; they grow as they fill, 64 MB at most.
    # Short raft timers: a master with no peers has nobody to wait for, and the defaults cost 13 s after a kill.
    launch s3 "$weed" -logtostderr=true server -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$dir/s3/data" \
        -master.port="$weed_port" -master.port.grpc=$((weed_port + 1)) \
        -volume.port=$((weed_port + 2)) -volume.port.grpc=$((weed_port + 3)) \
        -filer.port=$((weed_port + 4)) -filer.port.grpc=$((weed_port + 5)) \
        -s3 -s3.port="$(port "$port_s3")" -s3.port.grpc=$((weed_port + 6)) \
        -s3.port.https="$(port "$port_s3_tls")" -s3.cert.file="$dir/tls/server.pem" -s3.key.file="$dir/tls/server.key" \
        -s3.port.iceberg=0 -s3.port.lance=0 -s3.iam=false -s3.config="$dir/s3/s3.json" \
        -master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=0 \
        -master.heartbeatInterval=20ms -master.electionTimeout=100ms
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

s3_env() {
    cat <<ENV
export VECMILL_S3_ENDPOINT=http://127.0.0.1:$(port "$port_s3")
export VECMILL_S3_BUCKET=vecmill
export AWS_ACCESS_KEY_ID=$s3_access_key
export AWS_SECRET_ACCESS_KEY=$s3_secret_key
export AWS_REGION=us-east-1
export VECMILL_TEST_S3_TLS=https://127.0.0.1:$(port "$port_s3_tls")
export VECMILL_TEST_TLS_DIR=$dir/tls
ENV
}
