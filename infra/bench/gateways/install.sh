# The usual gateways that ours are compared with: FastAPI from PyPI, Nginx and its Lua from Debian's packages, unpacked into
# `$scratch` and not installed.
# shellcheck shell=bash

install_peers() {
    local package packages=(nginx libnginx-mod-http-lua libnginx-mod-http-ndk lua-resty-core lua-resty-lrucache lua-cjson
        libluajit2-5.1-2 libpcre3)
    mkdir -p "$scratch"
    if ! cmp --silent infra/bench/gateways/requirements.txt "$scratch/venv/requirements.txt"; then
        rm -rf "$scratch/venv"
        python3 -m venv "$scratch/venv" || die "needs Python's venv (Debian: python3-venv)"
        "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check --requirement infra/bench/gateways/requirements.txt
        cp infra/bench/gateways/requirements.txt "$scratch/venv/"
    fi
    [[ ! -x $scratch/nginx/usr/sbin/nginx ]] || return 0
    rm -rf "$scratch/debs" && mkdir "$scratch/debs"
    (cd "$scratch/debs" && apt-get download -q "${packages[@]}" >/dev/null) || die "needs apt, for Debian's nginx"
    for package in "$scratch"/debs/*.deb; do dpkg -x "$package" "$scratch/nginx"; done
}
