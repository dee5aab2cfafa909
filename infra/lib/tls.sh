# Certificates of the private servers: an authority of the folder's own, and what it signs. Its key is thrown away.
# shellcheck shell=bash

# Makes $dir/tls/ca.pem, and server.pem with server.key for 127.0.0.1 and localhost, once.
make_certificates() {
    local tls=$dir/tls
    [[ ! -s $tls/server.pem ]] || return 0
    rm -rf "$tls"
    mkdir "$tls"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=Vecmill test authority' \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$tls/ca.key" -out "$tls/ca.pem" 2>"$tls/log"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=localhost' \
        -keyout "$tls/server.key" -out "$tls/server.csr" 2>>"$tls/log"
    openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial -days 3650 \
        -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth,clientAuth") -out "$tls/server.new" 2>>"$tls/log"
    rm "$tls/ca.key" "$tls/server.csr"
    mv "$tls/server.new" "$tls/server.pem"
}
