#!/bin/bash
# quickstart.sh - a complete throw-away server in one directory, and a walk through its main job.
#
# Private PostgreSQL on a Unix socket, a SoftHSM token, a CA, a token issuer, hsmd, kmsd.  For trying and for tests: the
# token's PIN and the issuer's key lie in the directory, and nothing is backed up.

set -eu -o pipefail
umask 077

usage() {
    cat <<'END'
usage: quickstart.sh [--once | --detach | --stop] [--dir DIR] [--port N]

Starts a complete key management server in one directory and walks through its main job.
Without an option it stays in the foreground until interrupted.

  --once     leave after the walk-through; exit status 0 only if every step did what it says
  --detach   start what is not running, return when the server is ready, leave it running
  --stop     end the server of this directory
  --dir DIR  default: the user's state directory (~/.local/state/kms-quickstart)
  --port N   of the HTTPS listener; 0, the default, takes a free one and keeps it

KMS_BUILD_DIR names a build tree to use, so that nothing is built here.
END
}

# --- what is asked for ---

# What a shell knows of another instance (DIR/env) is not for this one.
unset KMS_URL KMS_DOMAIN KMS_CA_FILE KMS_ADMIN_SOCKET KMS_DATABASE_URL KMS_METRICS_URL KMS_TOKEN KMS_TOKEN_KEY_FILE KMS_TOKEN_KID \
    KMS_TOKEN_ISSUER KMS_TOKEN_AUDIENCE KMS_ORG KMS_ORG2 KMS_ORG_BYOK KMSCTL KMSCTL_OFFICER2 KMS_CLIENT SOFTHSM2_CONF

source_dir=$(cd "$(dirname "$0")/.." && pwd -P)
mode=foreground
dir=${XDG_STATE_HOME:-${HOME:-/root}/.local/state}/kms-quickstart
port=0

say() { printf '%s\n' "$*"; }
step() { printf '==> %s\n' "$*"; }
die() {
    printf 'quickstart: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --once) mode=once ;;
    --detach) mode=detach ;;
    --stop) mode=stop ;;
    --dir=*) dir=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dir | --port)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        if [ "$1" = --dir ]; then dir=$2; else port=$2; fi
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done
case $port in
'' | *[!0-9]*) die "--port: \"$port\" is not a number" ;;
esac
[ "$port" -le 65535 ] || die "--port: $port is more than 65535"
case $dir in
/*) ;;
*) dir=$PWD/$dir ;;
esac
case $dir in
*[!A-Za-z0-9/._@%+=:,-]*) die "--dir: choose a path of letters, digits and /._@%+=:,- only; it stands in shell and configuration files" ;;
esac

root=false
[ "$(id -u)" -ne 0 ] || root=true
domain=kms.quickstart.test

# --- small helpers ---

# alive PIDFILE NAME: is the process that wrote the file still there, and still that program?
alive() {
    local pid name
    [ -s "$1" ] && read -r pid <"$1" && [ -r "/proc/$pid/comm" ] && read -r name <"/proc/$pid/comm" &&
        [ "$name" = "$2" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"
}

# wait_for SECONDS COMMAND...
wait_for() {
    local until=$((SECONDS + $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

# traversable DIR: may every user reach what is in it?
traversable() {
    local d=$1
    while :; do
        [ "$(($(stat -c 0%a "$d") & 1))" -eq 1 ] || return 1
        [ "$d" != / ] || return 0
        d=$(dirname "$d")
    done
}

# as_postgres COMMAND...: PostgreSQL refuses to run as root.
as_postgres() {
    if $root; then
        (cd / && exec setpriv --reuid=postgres --regid=postgres --init-groups "$@" 9>&-)
    else
        "$@" 9>&-
    fi
}

# write FILE: from standard input, whole or not at all.
write() {
    cat >"$1.new"
    mv "$1.new" "$1"
}

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

# --- packages ---

install_missing() {
    local missing=() lib
    need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
    need openssl openssl
    need setpriv util-linux
    need softhsm2-util softhsm2
    [ -n "$(postgres_bin)" ] || missing+=(postgresql)
    if [ -z "${KMS_BUILD_DIR:-}" ]; then
        need gcc gcc
        need make make
        need autoconf autoconf
        need automake automake
        need pkg-config pkg-config
        for lib in libssl:libssl-dev jansson:libjansson-dev libevent_openssl:libevent-dev libpq:libpq-dev \
            libcurl:libcurl4-openssl-dev inih:libinih-dev p11-kit-1:libp11-kit-dev libseccomp:libseccomp-dev \
            libsystemd:libsystemd-dev; do
            pkg-config --exists "${lib%%:*}" 2>/dev/null || missing+=("${lib##*:}")
        done
        [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    fi
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! $root || ! command -v apt-get >/dev/null; then
        die "these packages are missing; as root: apt-get install --no-install-recommends ${missing[*]}"
    fi
    step "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$dir/log/apt.log" 2>&1 </dev/null ||
        die "apt-get failed; see $dir/log/apt.log"
}

# The newest PostgreSQL's programs, wherever the distribution keeps them.
postgres_bin() {
    local d
    d=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
    if [ -n "$d" ] && [ -x "$d/initdb" ]; then
        printf %s "$d"
    elif d=$(command -v initdb); then
        dirname "$d"
    fi
}

softhsm_module() {
    local f
    for f in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so \
        /usr/local/lib/softhsm/libsofthsm2.so; do
        if [ -e "$f" ]; then
            printf %s "$f"
            return
        fi
    done
    die "libsofthsm2.so was not found"
}

# --- building ---

build() {
    local programs="kms/kmsd kms/kmsctl kms/kms-client hsm/hsmd"
    if [ -n "${KMS_BUILD_DIR:-}" ]; then
        build_dir=$(cd "$KMS_BUILD_DIR" && pwd -P)
        for p in $programs; do
            [ -x "$build_dir/$p" ] || die "KMS_BUILD_DIR has no $p"
        done
        return
    fi
    build_dir=$dir/build
    # A tree that was configured in place can only be built there.
    [ ! -e "$source_dir/config.status" ] || build_dir=$source_dir
    step "building (log: $dir/log/build.log)"
    (
        [ -x "$source_dir/configure" ] || (cd "$source_dir" && ./autogen.sh)
        mkdir -p "$build_dir"
        cd "$build_dir"
        [ -e Makefile ] || "$source_dir/configure" --prefix="$dir/installed"
        # shellcheck disable=SC2086
        make -j"$(nproc)" $programs
    ) >"$dir/log/build.log" 2>&1 </dev/null || {
        tail -n 20 "$dir/log/build.log" >&2
        die "the build failed; see $dir/log/build.log"
    }
}

# --- the second officer: another user id that we can run kmsctl as ---

choose_officer2() {
    local gid subuid
    gid=$(id -g)
    officer2_uid=
    if $root; then
        officer2_uid=$(id -u nobody)
        officer2_as="setpriv --reuid=$officer2_uid --regid=$(id -g nobody) --clear-groups"
        officer2_note="# Runs kmsctl as nobody."
        return
    fi
    # With our group he can reach the admin socket.
    if sudo -n -u nobody -g "#$gid" true >/dev/null 2>&1; then
        officer2_uid=$(id -u nobody)
        # shellcheck disable=SC2016
        officer2_as="sudo -n -u nobody -g '#$gid' env KMS_ADMIN_SOCKET=\"\$KMS_ADMIN_SOCKET\""
        officer2_note="# Runs kmsctl as nobody, by sudo."
        return
    fi
    subuid=$(sed -n "s/^$(id -un):\([0-9]*\):[1-9].*/\1/p" /etc/subuid 2>/dev/null | head -n 1)
    officer2_as="unshare --map-users=$subuid,0,1 --map-groups=$gid,0,1 --setuid 0"
    # shellcheck disable=SC2086
    if [ -n "$subuid" ] && $officer2_as true >/dev/null 2>&1; then
        officer2_uid=$subuid
        officer2_note="# Runs kmsctl as $subuid, one of our subordinate user ids."
        return
    fi
    officer2_note="# No other user id could be had here (root, sudo, newuidmap): it is the first officer, and one is enough."
}

# --- the places, chosen once and then kept ---

# Sockets have short paths (107 bytes) and must be reachable by the second officer and, as root, by the user that PostgreSQL
# runs as; where DIR is not fit for that they go below /tmp.
choose_places() {
    local fit=true
    if [ -s "$dir/places" ]; then
        # shellcheck disable=SC1091
        . "$dir/places"
        if [ -d "$run" ] && [ -d "$outside" ]; then
            return
        fi
        [ -e "$outside" ] || [ ! -e "$dir/initialised" ] || die "$outside is gone, and with it the database; remove $dir"
    fi
    if [ -n "$officer2_uid" ]; then
        chmod 711 "$dir"
        traversable "$dir" || fit=false
    fi
    run=$dir/run
    outside=$dir
    if ! $fit || [ ${#run} -gt 60 ]; then
        run=$(mktemp -d /tmp/kms-XXXXXX)
        chmod 711 "$run"
    fi
    $fit || outside=$(mktemp -d /var/tmp/kms-quickstart-XXXXXX)
    mkdir -p "$run" "$outside"
    [ -z "$officer2_uid" ] || chmod 711 "$run" "$outside"
    printf 'run=%s\noutside=%s\n' "$run" "$outside" | write "$dir/places"
}

free_port() {
    local p
    for _ in $(seq 100); do
        p=$((20000 + RANDOM % 12000))
        if ! (: <"/dev/tcp/127.0.0.1/$p") 2>/dev/null && [ "$p" != "${1:-}" ]; then
            printf %s "$p"
            return
        fi
    done
    die "no free port was found"
}

choose_ports() {
    if [ -s "$dir/ports" ]; then
        # shellcheck disable=SC1091
        . "$dir/ports"
        [ "$port" -eq 0 ] || https_port=$port
    else
        https_port=$port
        [ "$port" -ne 0 ] || https_port=$(free_port)
        metrics_port=$(free_port "$https_port")
    fi
    printf 'https_port=%s\nmetrics_port=%s\n' "$https_port" "$metrics_port" | write "$dir/ports"
}

set_names() {
    pg_root=$outside/postgres
    pg_data=$pg_root/data
    pg_run=$run/pg
    pg_bin=$(postgres_bin)
    database=postgresql://kms_admin@${pg_run//\//%2F}/kms
    admin_socket=$run/admin.sock
    kmsctl=$dir/bin/kmsctl
    client=$dir/bin/kms-client
    kmsd_pid=$dir/kmsd.pid
    hsmd_pid=$dir/hsmd.pid
    export SOFTHSM2_CONF=$dir/softhsm2.conf
}

# --- PostgreSQL ---

postgres_running() {
    as_postgres "$pg_bin/pg_ctl" -D "$pg_data" status >/dev/null 2>&1 &&
        psql -X -q -d "${database%/kms}/postgres" -c 'SELECT 1' >/dev/null 2>&1
}

start_postgres() {
    if [ ! -e "$pg_data/PG_VERSION" ] || [ ! -e "$pg_root/made" ]; then
        step "making a private PostgreSQL cluster in $pg_data"
        rm -rf "$pg_root"
        mkdir -p "$pg_root"
        if $root; then chown postgres: "$pg_root"; fi
        as_postgres "$pg_bin/initdb" -D "$pg_data" -U kms_admin -A trust -E UTF8 --locale=C -k >"$dir/log/initdb.log" 2>&1 ||
            die "initdb failed; see $dir/log/initdb.log"
        # Only its own socket, in a folder that only its user can enter, so trust is enough.
        as_postgres sh -c "cat >>'$pg_data/postgresql.conf'" <<END
listen_addresses = ''
unix_socket_directories = '$pg_run'
log_line_prefix = '%m [%p] %u '
log_parameter_max_length_on_error = 0
END
        touch "$pg_root/made"
    fi
    if postgres_running; then
        return
    fi
    step "starting PostgreSQL"
    mkdir -p "$pg_run"
    chmod 700 "$pg_run"
    if $root; then chown postgres: "$pg_run"; fi
    # One that was killed has children which need a moment to notice, and until then its successor refuses to start.
    wait_for 30 as_postgres "$pg_bin/pg_ctl" -D "$pg_data" -l "$pg_root/log" -w -t 60 start </dev/null ||
        die "PostgreSQL did not start; see $pg_root/log"
}

make_database() {
    if [ -z "$(psql -X -A -t -d "${database%/kms}/postgres" -c "SELECT 1 FROM pg_database WHERE datname = 'kms'")" ]; then
        psql -X -q -d "${database%/kms}/postgres" -c 'CREATE DATABASE kms' </dev/null
    fi
    "$build_dir/kms/kmsctl" database migrate --url "$database" >"$dir/log/migrate.log" 2>&1 </dev/null || {
        cat "$dir/log/migrate.log" >&2
        die "the schema could not be brought to this version; for a new server remove $dir"
    }
    # The rules ask for two officers as well, and a single one could never change that.
    [ -n "$officer2_uid" ] || psql -X -q -d "$database" -c "INSERT INTO kms.settings (org_id, name, value, changed_at)
        SELECT '00000000-0000-0000-0000-000000000000', n, '1', now() FROM unnest('{approvals,approvals.matter}'::text[]) n
            ON CONFLICT DO NOTHING" </dev/null
}

# --- token, certificates, issuer: made once ---

make_token() {
    if [ -e "$dir/softhsm/made" ]; then
        return
    fi
    step "making a SoftHSM token"
    rm -rf "$dir/softhsm"
    mkdir -p "$dir/softhsm/tokens"
    write "$SOFTHSM2_CONF" <<END
directories.tokendir = $dir/softhsm/tokens
objectstore.backend = file
log.level = ERROR
END
    # Arguments can be seen by others; hsmd itself reads the PIN from a file only.
    openssl rand -hex 16 | write "$dir/pin"
    softhsm2-util --init-token --free --label kms --so-pin "$(openssl rand -hex 16)" --pin "$(cat "$dir/pin")" \
        >"$dir/log/softhsm.log" 2>&1 || die "softhsm2-util failed; see $dir/log/softhsm.log"
    touch "$dir/softhsm/made"
}

# ca NAME SUBJECT: a CA of its own.
make_ca() {
    openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days 3650 -keyout "$dir/pki/$1.key" -out "$dir/pki/$1.pem.new" \
        -subj "/O=KMS quickstart/CN=$2" -addext 'basicConstraints=critical,CA:TRUE' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' 2>>"$dir/log/openssl.log"
    mv "$dir/pki/$1.pem.new" "$dir/pki/$1.pem"
}

make_pki() {
    local der
    mkdir -p "$dir/pki"
    [ -e "$dir/pki/ca.pem" ] || {
        step "making certificates and a token issuer"
        make_ca ca 'development CA'
    }
    [ -e "$dir/pki/service-ca.pem" ] || make_ca service-ca 'development CA of cloud services'
    if [ ! -e "$dir/pki/tls.pem" ]; then
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/pki/tls.key" -out "$dir/pki/tls.csr" \
            -subj "/CN=$domain" 2>>"$dir/log/openssl.log"
        printf '%s\n' "subjectAltName=DNS:$domain,DNS:localhost,IP:127.0.0.1,IP:::1" 'extendedKeyUsage=serverAuth' \
            'keyUsage=critical,digitalSignature' 'basicConstraints=critical,CA:FALSE' >"$dir/pki/tls.ext"
        issue -req -in "$dir/pki/tls.csr" -extfile "$dir/pki/tls.ext" >"$dir/pki/tls.leaf"
        cat "$dir/pki/tls.leaf" "$dir/pki/ca.pem" | write "$dir/pki/tls.pem"
    fi
    if [ ! -e "$dir/pki/keys.json" ]; then
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$dir/pki/issuer.pem"
        # The point is the last 64 bytes of the public key's DER.
        der=$dir/pki/issuer.point
        openssl pkey -in "$dir/pki/issuer.pem" -pubout -outform DER | tail -c 64 >"$der"
        printf '{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"quickstart","x":"%s","y":"%s"}]}\n' \
            "$(head -c 32 "$der" | base64url)" "$(tail -c 32 "$der" | base64url)" | write "$dir/pki/keys.json"
    fi
}

# issue OPTION...: a certificate under the CA, to standard output.
issue() {
    openssl x509 "$@" -CA "$dir/pki/ca.pem" -CAkey "$dir/pki/ca.key" -set_serial "0x$(openssl rand -hex 16 | sed 's/^./1/')" \
        -sha256 -days 825 2>>"$dir/log/openssl.log"
}

# The static key lives in the token; its certificate is made from its public half alone, before kmsd first runs.
make_static_certificate() {
    if [ -e "$dir/pki/static.pem" ]; then
        return
    fi
    step "making the keys in the token, and the static key's certificate"
    "$build_dir/kms/kmsctl" hsm init --hsm-socket "$run/hsmd.sock" --timeout 120 --json >"$dir/log/hsm-init.json" \
        2>>"$dir/log/hsmd.log" </dev/null || die "hsmd could not make its keys; see $dir/log/hsmd.log"
    sed 's/.*"static_public_key":"\([^"]*\)".*/\1/; s/\\n/\n/g' "$dir/log/hsm-init.json" | sed '/^$/d' >"$dir/pki/static.pub"
    printf '%s\n' "subjectAltName=DNS:$domain" 'basicConstraints=critical,CA:FALSE' \
        'keyUsage=critical,digitalSignature,keyEncipherment' >"$dir/pki/static.ext"
    issue -new -force_pubkey "$dir/pki/static.pub" -subj "/CN=$domain" -extfile "$dir/pki/static.ext" >"$dir/pki/static.leaf" ||
        die "the static key's certificate was not made; see $dir/log/openssl.log"
    cat "$dir/pki/static.leaf" "$dir/pki/ca.pem" | write "$dir/pki/static.pem"
}

# --- configuration ---

make_config() {
    local group='' approvals=2 officers
    officers=$(id -u)
    group=$(id -gn)
    if $root; then group=$(id -gn nobody); fi
    if [ -n "$officer2_uid" ]; then
        officers="$officers $officer2_uid"
    else
        # There is nobody else here who could agree.
        approvals=1
    fi
    write "$dir/kms.conf" <<END
# Made by quickstart.sh, each time anew; kms.conf(5) explains every setting.
[kms]
domain = $domain
listen = 127.0.0.1:$https_port
node = quickstart
pid_file = $kmsd_pid
static_certificate = $dir/pki/static.pem

[tls]
certificate = $dir/pki/tls.pem
key = $dir/pki/tls.key

[services]
ca = $dir/pki/service-ca.pem

[admin]
socket = $admin_socket
group = $group
officers = $officers
auditors = $(id -u)
approvals = $approvals

[metrics]
listen = 127.0.0.1:$metrics_port

[database]
worker_url = postgresql://kms_worker@${pg_run//\//%2F}/kms
keeper_url = postgresql://kms_keeper@${pg_run//\//%2F}/kms

[hsm]
socket = $run/hsmd.sock

[token]
issuer = https://issuer.quickstart.test
audience = kms.quickstart
key_set_file = $dir/pki/keys.json
# Test tokens may be good for long.
max_lifetime = 0

[keys]
# To see what officers destroy go without waiting a week for it.
waiting = 5s

[lifetimes]
# To see a resource end without waiting a minute for it.
ttl_min = 2s

# One client here stands for many: no limits by user or address.
[limits]
rate_subject = 0
rate_open = 0
connections_source = 10000

[hsmd]
module = $(softhsm_module)
token = kms
pin_file = $dir/pin
socket = $run/hsmd.sock
pid_file = $hsmd_pid
END
}

# A tool that knows its server, as one word.
make_tool() {
    write "$1" <<END
#!/bin/sh
# Made by quickstart.sh: $(basename "$1") for the server in $dir.
export KMS_ADMIN_SOCKET="\${KMS_ADMIN_SOCKET:-$admin_socket}"
export KMS_URL="\${KMS_URL:-https://127.0.0.1:$https_port}" KMS_DOMAIN="\${KMS_DOMAIN:-$domain}"
export KMS_CA_FILE="\${KMS_CA_FILE:-$dir/pki/ca.pem}" KMS_ORG="\${KMS_ORG:-acme}"
export KMS_TOKEN_KEY_FILE="\${KMS_TOKEN_KEY_FILE:-$dir/pki/issuer.pem}" KMS_TOKEN_KID="\${KMS_TOKEN_KID:-quickstart}"
export KMS_TOKEN_ISSUER="\${KMS_TOKEN_ISSUER:-https://issuer.quickstart.test}"
export KMS_TOKEN_AUDIENCE="\${KMS_TOKEN_AUDIENCE:-kms.quickstart}"
exec $2 "\$@"
END
    chmod 755 "$1"
}

make_tools() {
    mkdir -p "$dir/bin"
    make_tool "$kmsctl" "$build_dir/kms/kmsctl"
    make_tool "$client" "$build_dir/kms/kms-client"
    officer2=$kmsctl
    [ -n "$officer2_uid" ] || return 0
    # The second officer needs a copy that he can reach.
    cp "$build_dir/kms/kmsctl" "$run/kmsctl.new"
    chmod 755 "$run/kmsctl.new"
    mv "$run/kmsctl.new" "$run/kmsctl"
    officer2=$dir/bin/kmsctl-officer2
    make_tool "$officer2" "$officer2_as $run/kmsctl"
}

make_env() {
    write "$dir/env" <<END
# Made by quickstart.sh: what is where.
KMS_URL=https://127.0.0.1:$https_port
KMS_DOMAIN=$domain
KMS_CA_FILE=$dir/pki/ca.pem
KMS_ORG=acme
KMS_ORG2=globex
KMS_ORG_BYOK=initech
KMS_TOKEN_KEY_FILE=$dir/pki/issuer.pem
KMS_TOKEN_KID=quickstart
KMS_TOKEN_ISSUER=https://issuer.quickstart.test
KMS_TOKEN_AUDIENCE=kms.quickstart
KMS_SERVICE_CA_FILE=$dir/pki/service-ca.pem
KMS_SERVICE_CA_KEY_FILE=$dir/pki/service-ca.key
KMS_ADMIN_SOCKET=$admin_socket
KMSCTL=$kmsctl
KMS_CLIENT=$client
$officer2_note
KMSCTL_OFFICER2=$officer2
KMS_DATABASE_URL=$database
KMS_METRICS_URL=http://127.0.0.1:$metrics_port
KMSD_PID_FILE=$kmsd_pid
HSMD_PID_FILE=$hsmd_pid
POSTGRES_DATA=$pg_data
SOFTHSM2_CONF=$SOFTHSM2_CONF
END
    chmod 600 "$dir/env"
}

# --- hsmd and kmsd ---

# daemon NAME COMMAND...: in its own session, holding none of our descriptors.
daemon() {
    local name=$1
    shift
    setsid "$@" >>"$dir/log/$name.log" 2>&1 </dev/null 9>&- &
    daemon_pid=$!
}

start_hsmd() {
    if alive "$hsmd_pid" hsmd; then
        return
    fi
    step "starting hsmd"
    daemon hsmd "$build_dir/hsm/hsmd" --config "$dir/kms.conf" --foreground
    wait_for 15 alive "$hsmd_pid" hsmd || {
        tail -n 5 "$dir/log/hsmd.log" >&2
        die "hsmd did not start; see $dir/log/hsmd.log"
    }
}

is_ready() { "$kmsctl" --timeout 5 --json status 2>/dev/null | grep -q '"ready":true'; }

# There is nothing to wait for once the kmsd that we have started is gone.
is_ready_or_gone() { is_ready || { [ -n "$daemon_pid" ] && ! kill -0 "$daemon_pid"; }; }

start_kmsd() {
    daemon_pid=
    if ! alive "$kmsd_pid" kmsd; then
        step "starting kmsd on 127.0.0.1:$https_port"
        daemon kmsd "$build_dir/kms/kmsd" --config "$dir/kms.conf"
    fi
    { wait_for 60 is_ready_or_gone && is_ready; } || {
        tail -n 5 "$dir/log/kmsd.log" >&2
        "$kmsctl" status >&2 || true
        die "kmsd did not become ready; see $dir/log/kmsd.log"
    }
}

# end PIDFILE NAME SECONDS: ask it to end, wait, insist.
end() {
    local pid
    alive "$1" "$2" || return 0
    read -r pid <"$1"
    kill -TERM "$pid" 2>/dev/null || return 0
    wait_for "$3" not_alive "$1" "$2" || kill -KILL "$pid" 2>/dev/null || true
}
not_alive() { ! alive "$1" "$2"; }

start_all() {
    start_postgres
    make_database
    start_hsmd
    start_kmsd
}

stop_all() {
    end "$kmsd_pid" kmsd 45
    end "$hsmd_pid" hsmd 10
    if [ -e "$pg_data/postmaster.pid" ]; then
        as_postgres "$pg_bin/pg_ctl" -D "$pg_data" -m fast -w -t 60 stop >/dev/null 2>&1 </dev/null || true
    fi
}

make_orgs() {
    local have name
    have=$("$kmsctl" --json org list)
    for name in acme globex initech; do
        case $have in
        *"\"$name\""*) ;;
        *)
            step "adding the organisation $name"
            "$kmsctl" org add "$name" >/dev/null
            ;;
        esac
    done
}

# --- the walk-through ---

# as USER COMMAND...: kms-client with that user's token and channel.
as() {
    local user=$1
    shift
    "$client" "$@" --token-file "$dir/walk/$user.token" --state "$dir/walk/$user.channel" --client-id "$user-laptop"
}

tell() { printf '\n%s\n' "$*"; }
shows() { sed 's/^/    /'; }
failed() { die "the walk-through failed: $*"; }

walk() {
    local key resource text status user
    rm -rf "$dir/walk"
    mkdir -p "$dir/walk"
    text="The meeting is at noon. ($(date '+%F %T'))"

    say
    say "A walk through the main job, with real messages. Everything between client and server is encrypted"
    say "inside TLS once more, on a channel between the two: a service that relays it cannot read it."

    for user in alice bob; do
        "$client" token --subject "$user" >"$dir/walk/$user.token" || failed "no token for $user"
    done

    tell "1. Alice opens a channel: her client checks the server's static key by its certificate, and both agree on a key."
    as alice channel open | shows || failed "Alice has no channel"

    tell "2. She asks for two keys. Each is 32 bytes of the HSM's randomness, and is stored wrapped only."
    as alice key create --count 2 --quiet >"$dir/walk/keys" || failed "no keys"
    [ "$(wc -l <"$dir/walk/keys")" -eq 2 ] || failed "not two keys"
    shows <"$dir/walk/keys"
    key=$(head -n 1 "$dir/walk/keys")

    tell "3. She makes a resource, a conversation for example, and binds the first key to it. Only she is authorised on it."
    resource=$(as alice resource create --key-uri "$key" --quiet) || failed "no resource"
    resource=$(printf '%s\n' "$resource" | head -n 1)
    say "$resource" | shows

    tell "4. She encrypts a message with that key. The server never sees the message."
    printf %s "$text" >"$dir/walk/message"
    as alice encrypt "$key" "$dir/walk/message" >"$dir/walk/jwe" || failed "not encrypted"
    say "$(cut -c 1-100 "$dir/walk/jwe")..." | shows

    tell "5. Bob has the encrypted message and asks for the key. He is not authorised, so he is refused, and that is recorded."
    status=0
    as bob decrypt "$dir/walk/jwe" >"$dir/walk/bob" 2>"$dir/walk/refusal" || status=$?
    shows <"$dir/walk/refusal"
    if [ "$status" -ne 1 ] || [ -s "$dir/walk/bob" ]; then
        failed "Bob was not refused (status $status)"
    fi

    tell "6. Alice authorises Bob on the resource."
    as alice resource grant "$resource" bob | shows || failed "Bob was not authorised"

    tell "7. Now Bob gets the key, and reads:"
    as bob decrypt "$dir/walk/jwe" >"$dir/walk/bob" || failed "Bob got no key"
    shows <"$dir/walk/bob"
    say
    cmp -s "$dir/walk/message" "$dir/walk/bob" || failed "Bob reads something else than Alice wrote"

    tell "8. kmsd, hsmd and PostgreSQL are ended and started again: all that counts is in the database and in the token."
    stop_all
    if alive "$kmsd_pid" kmsd || alive "$hsmd_pid" hsmd || postgres_running; then
        failed "something is still running"
    fi
    start_all

    tell "9. Bob reads again, on the channel that he had:"
    : >"$dir/walk/bob"
    cp "$dir/walk/bob.channel" "$dir/walk/bob.channel.before"
    as bob decrypt "$dir/walk/jwe" >"$dir/walk/bob" || failed "Bob got no key after the restart"
    shows <"$dir/walk/bob"
    say
    cmp -s "$dir/walk/message" "$dir/walk/bob" || failed "Bob reads something else after the restart"
    cmp -s "$dir/walk/bob.channel" "$dir/walk/bob.channel.before" || failed "Bob's channel did not survive"

    tell "10. Every release and every refusal is in the organisation's log, written in the same transaction:"
    "$kmsctl" audit tail acme --limit 12 >"$dir/walk/audit" || failed "no log"
    shows <"$dir/walk/audit"
    grep -q 403001 "$dir/walk/audit" || failed "Bob's refusal is not in the log"

    walk_service "$key" "$resource"
    walk_meeting
    walk_main_key
    walk_freeze "$resource"
    walk_destruction
    walk_log
}

# A scanner of the cloud service wants the key; two officers decide.  A name is never used again, so each walk has its own.
walk_service() {
    local key=$1 resource=$2 service identity request pending status
    service=dlp-scanner-$(date +%s)
    identity=https://services.example/$service

    tell "11. A service of the cloud, which looks for leaked data, gets a certificate of the services' CA."
    say "It is not registered here, so it gets no further than that:"
    make_service_certificate "$identity"
    as_service channel open 2>"$dir/walk/refusal" && failed "an unknown service got a channel"
    shows <"$dir/walk/refusal"
    grep -q 403006 "$dir/walk/refusal" || failed "the unknown service was refused for another reason"

    tell "12. An officer registers it, for data loss prevention (dlp) in spaces of acme. That opens something up, so it waits:"
    officer1 service add "$service" --identity "$identity" --purpose dlp --org acme --kind space >"$dir/walk/approval" ||
        failed "not registered"
    shows <"$dir/walk/approval"
    second_agrees "$dir/walk/approval"

    # An earlier walk has turned it on.
    officer1 purpose disable acme dlp >"$dir/walk/out" 2>&1 || true

    tell "13. Now it has a channel, but acme lets nobody scan: the purpose dlp is off there, as all are at first."
    as_service channel open | shows || failed "the service has no channel"
    as_service key get "$key" --purpose dlp >"$dir/walk/scan" 2>"$dir/walk/refusal" && failed "dlp is off, and the service got a key"
    shows <"$dir/walk/refusal"
    grep -q 403005 "$dir/walk/refusal" || failed "the service was refused for another reason"

    tell "14. Why? kmsctl tells, from the log and the present state:"
    request=$("$kmsctl" --json audit tail acme --limit 5 | sed -n 's/.*"request":"\([^"]*\)".*/\1/p' | tail -n 1)
    "$kmsctl" explain "$request" >"$dir/walk/explained" || failed "not explained"
    shows <"$dir/walk/explained"

    tell "15. The first officer asks for dlp to be turned on in acme. Nobody can agree to what he asked for himself."
    officer1 purpose enable acme dlp >"$dir/walk/approval" || failed "the purpose could not be asked for"
    pending=$(sed -n 's/^approval  *//p' "$dir/walk/approval")
    status=0
    if [ -n "$officer2_uid" ]; then
        officer1 approvals approve "$pending" >"$dir/walk/own" 2>&1 || status=$?
        shows <"$dir/walk/own"
        [ "$status" -eq 1 ] || failed "an officer approved his own proposal"
        say
        say "The second one is shown what it touches, and agrees to just that:"
        officer2 approvals show "$pending" | shows
    fi
    second_agrees "$dir/walk/approval"

    tell "16. The same request as before, on the same channel, and the scanner is served. Purpose and service are on record."
    as_service key get "$key" --purpose dlp >"$dir/walk/scan" || failed "the service got no key"
    shows <"$dir/walk/scan"

    tell "17. It gets keys for dlp, and for nothing else:"
    as_service key get "$key" --purpose ediscovery >"$dir/walk/scan" 2>"$dir/walk/refusal" && failed "a purpose that was not agreed to"
    shows <"$dir/walk/refusal"
    say
    say "Alice can see who has looked:"
    as alice resource releases "$resource" >"$dir/walk/releases" || failed "no receipts"
    shows <"$dir/walk/releases"
    grep -q "$service" "$dir/walk/releases" || failed "the service is not among the receipts"
}

# A container with a key of its own, and a recording with another.
walk_meeting() {
    local meeting

    tell "18. A meeting is a container: made with its key in one request, and open to Bob as well."
    as alice resource create --kind meeting --count 1 --auth-id bob --quiet >"$dir/walk/meeting" || failed "no meeting"
    shows <"$dir/walk/meeting"
    meeting=$(head -n 1 "$dir/walk/meeting")

    tell "19. A recorder asks for a recording of it. That has a key of its own, in a message that only the meeting's key opens."
    say "The file is encrypted where it was made, and may lie anywhere:"
    as alice recording create "$meeting" --quiet >"$dir/walk/recording" || failed "no recording"
    printf 'An hour of film. (%s)\n' "$(date '+%F %T')" >"$dir/walk/film"
    as alice recording seal "$(cat "$dir/walk/recording")" "$dir/walk/film" --loc "file://$dir/walk/film.sealed" \
        >"$dir/walk/film.sealed" || failed "the recording was not sealed"
    shows <"$dir/walk/recording"
    say "$(od -An -tx1 -N24 -w24 "$dir/walk/film.sealed" | cut -c 2-) ..." | shows
    ! grep -q film "$dir/walk/film.sealed" || failed "the recording is not encrypted"

    tell "20. Bob opens it:"
    as bob recording open "$(cat "$dir/walk/recording")" >"$dir/walk/film.bob" || failed "Bob could not open the recording"
    shows <"$dir/walk/film.bob"
    cmp -s "$dir/walk/film" "$dir/walk/film.bob" || failed "Bob sees something else than was recorded"
}

# The organisation initech brings a key of its own.
walk_main_key() {
    local key main status

    tell "21. The organisation initech brings its own main key: 32 bytes, encrypted to a key whose private half is in the HSM."
    say "Officers import it:"
    officer1 cmk public-key initech >"$dir/walk/import.pem" || failed "no key to encrypt to"
    openssl rand 32 | openssl pkeyutl -encrypt -pubin -inkey "$dir/walk/import.pem" -out "$dir/walk/main.key" \
        -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 || failed "the main key was not encrypted"
    officer1 cmk import initech "$dir/walk/main.key" >"$dir/walk/approval" || failed "the main key could not be imported"
    second_agrees "$dir/walk/approval"
    main=$(main_key PENDING)
    [ -n "$main" ] || failed "the main key is not there"

    tell "22. Activated, it takes the place of the server's root: all that initech has is wrapped under it."
    officer1 cmk activate initech "$main" >"$dir/walk/approval" || failed "the main key could not be activated"
    second_agrees "$dir/walk/approval"
    [ "$(main_key ACTIVE)" = "$main" ] || failed "the main key is not active"
    "$kmsctl" cmk list initech | grep "$main" | shows
    "$client" token --subject ivan --org initech >"$dir/walk/ivan.token" || failed "no token for Ivan"
    key=$(as ivan key create --quiet) && as ivan resource create --key-uri "$key" --quiet >"$dir/walk/ivan" || failed "Ivan has no key"

    tell "23. It is revoked: one officer, at once, on every node. Nobody gets a key of initech any more."
    officer1 cmk revoke initech >"$dir/walk/revoked" || failed "the main key was not revoked"
    status=0
    as ivan key get "$key" >"$dir/walk/out" 2>"$dir/walk/refusal" || status=$?
    shows <"$dir/walk/refusal"
    { [ "$status" -eq 1 ] && grep -q 405005 "$dir/walk/refusal"; } || failed "Ivan was not refused by the revoked main key"

    tell "24. Activated again, which officers must agree to, it is as before. Then initech goes back to the server's root."
    officer1 cmk activate initech "$main" >"$dir/walk/approval" || failed "the main key could not be activated again"
    second_agrees "$dir/walk/approval"
    as ivan key get "$key" | sed -n 1p | shows || failed "Ivan got no key after the main key was activated again"
    officer1 cmk default initech >"$dir/walk/approval" || failed "initech could not go back"
    second_agrees "$dir/walk/approval"
    as ivan key get "$key" >"$dir/walk/out" || failed "Ivan got no key after initech went back"
}

main_key() { "$kmsctl" cmk list initech | sed -n "s/^\([0-9a-f-]*\)  *$1 .*/\1/p" | head -n 1; }

# Stop first, look later.
walk_freeze() { # RESOURCE
    local status=0

    tell "25. Something seems wrong. An officer freezes the conversation, and is shown what that keeps back:"
    officer1 freeze resource "$1" --for 2h >"$dir/walk/frozen" || failed "it was not frozen"
    sed -n '/^impact/,/^$/p' "$dir/walk/frozen" | sed '/^$/d' | shows
    as bob decrypt "$dir/walk/jwe" >"$dir/walk/bob" 2>"$dir/walk/refusal" || status=$?
    shows <"$dir/walk/refusal"
    { [ "$status" -eq 1 ] && grep -q 405006 "$dir/walk/refusal"; } || failed "Bob was not refused by the freeze"

    tell "26. It was nothing. One command thaws it, and Bob reads:"
    officer1 thaw resource "$1" >"$dir/walk/thawed" || failed "it was not thawed"
    as bob decrypt "$dir/walk/jwe" >"$dir/walk/bob" || failed "Bob got no key after the thaw"
    shows <"$dir/walk/bob"
    say
}

# What is destroyed stays destroyed, and that can be proved.
walk_destruction() {
    local recording status=0
    recording=$(cat "$dir/walk/recording")

    tell "27. The recording is to be destroyed. Officers agree, then it waits, and one of them can undo it (here for 5 s):"
    officer1 recording destroy "$recording" >"$dir/walk/approval" || failed "it could not be asked for"
    second_agrees "$dir/walk/approval"
    say
    "$kmsctl" destruction list acme | shows
    wait_for 30 destroyed "${recording##*/}" || failed "it was not destroyed"

    tell "28. It is destroyed. The file still lies there, and nobody opens it:"
    as bob recording open "$recording" "$dir/walk/film.sealed" >"$dir/walk/film.bob" 2>"$dir/walk/refusal" || status=$?
    shows <"$dir/walk/refusal"
    { [ "$status" -eq 1 ] && [ ! -s "$dir/walk/film.bob" ]; } || failed "Bob opened what was destroyed"

    tell "29. A certificate says what was destroyed, when, by whom, and is verified with the log's public key alone:"
    "$kmsctl" audit key acme >"$dir/walk/acme.vkey" || failed "no key of the log"
    "$kmsctl" certificate verify "$dir/walk/certificate" --key "$dir/walk/acme.vkey" >"$dir/walk/verified" ||
        failed "the certificate is not genuine"
    shows <"$dir/walk/verified"
}

# destroyed ID: and the certificate of it is signed.
destroyed() {
    local certificate
    certificate=$("$kmsctl" destruction list acme --state "done" | sed -n "s/.* $1 .* \([0-9a-f-]*\)\$/\1/p") &&
        [ -n "$certificate" ] && "$kmsctl" certificate show "$certificate" --out "$dir/walk/certificate"
}

# Whoever owns the log could change it, but not without being found out.
walk_log() {
    local log=$dir/walk/log entry

    tell "30. The log is a Merkle tree under signed checkpoints. It is exported, and verified with the public key alone:"
    rm -rf "$log" "$log.changed"
    "$kmsctl" audit key acme >"$dir/walk/acme.vkey" || failed "no key of the log"
    wait_for 30 exported "$log" || failed "the log was not exported"
    "$kmsctl" audit verify "$log" --key "$dir/walk/acme.vkey" >"$dir/walk/verified" || failed "the log is not intact"
    shows <"$dir/walk/verified"

    tell "31. Somebody changes one entry: the scanner's refusal becomes a release. The verifier says which:"
    cp -R "$log" "$log.changed"
    entry=$(grep -rlE '"verdict":403005' "$log.changed/tile/entries" | head -n 1)
    [ -n "$entry" ] || failed "the refusal is not in the export"
    sed -i 's/"verdict":403005/"verdict":000000/' "$entry"
    if "$kmsctl" audit verify "$log.changed" --key "$dir/walk/acme.vkey" >"$dir/walk/verified" 2>&1; then
        failed "nobody noticed"
    fi
    shows <"$dir/walk/verified"
}

officer1() { "$kmsctl" "$@"; }
officer2() { "$officer2" "$@"; }

# second_agrees FILE: FILE is what the proposal printed.  Where one officer is enough, it is done already.
second_agrees() {
    local id
    [ -n "$officer2_uid" ] || return 0
    id=$(sed -n 's/^approval  *//p' "$1")
    say
    say "The second officer agrees:"
    officer2 approvals approve "$id" >"$dir/walk/agreed" || failed "the second officer could not agree"
    sed -n '/^state/p;/^done/p' "$dir/walk/agreed" | tail -n 1 | shows
}

exported() {
    "$kmsctl" audit export "$1" acme >"$dir/walk/exported" 2>&1 && grep -rqE '"verdict":403005' "$1/tile/entries"
}

make_service_certificate() { # IDENTITY
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/walk/service.key" \
        -subj "/CN=scanner" -out "$dir/walk/service.csr" 2>/dev/null &&
        printf 'subjectAltName=URI:%s\nextendedKeyUsage=clientAuth\n' "$1" >"$dir/walk/service.ext" &&
        openssl x509 -req -in "$dir/walk/service.csr" -CA "$dir/pki/service-ca.pem" -CAkey "$dir/pki/service-ca.key" \
            -set_serial "0x$(openssl rand -hex 8)" -days 30 -extfile "$dir/walk/service.ext" \
            -out "$dir/walk/service.pem" 2>/dev/null || failed "no certificate for the service"
}

# as_service COMMAND...: kms-client as the scanner, over mutual TLS.
as_service() {
    "$client" "$@" --cert "$dir/walk/service.pem" --key "$dir/walk/service.key" --state "$dir/walk/service.channel" \
        --client-id scanner-1
}

summary() {
    cat <<END

The server runs:
  HTTPS        https://127.0.0.1:$https_port   (CA: $dir/pki/ca.pem)
  metrics      http://127.0.0.1:$metrics_port/metrics
  tools        $kmsctl
               $client
  environment  $dir/env
  logs         $dir/log, $pg_root/log
END
}

# --- main ---

if [ "$mode" = stop ] && [ ! -d "$dir" ]; then
    die "there is no server in $dir"
fi
mkdir -p "$dir/log"
# One at a time in a directory; released when this script ends, not when its servers do.
exec 9>"$dir/lock"
if command -v flock >/dev/null && ! flock -w 300 9; then
    die "another quickstart.sh is busy in $dir"
fi

if [ "$mode" = stop ]; then
    [ -s "$dir/places" ] || die "there is no server in $dir"
    choose_officer2
    choose_places
    set_names
    stop_all
    say "ended; start it again with: $0 --detach --dir $dir"
    exit 0
fi

install_missing
choose_officer2
[ -n "$officer2_uid" ] || say "There is no second user id to be had here, so one officer decides alone (approvals = 1)."
choose_places
choose_ports
set_names
build
make_token
make_pki
make_config
was_running=false
if alive "$kmsd_pid" kmsd; then was_running=true; fi
make_tools
make_env
start_postgres
make_database
start_hsmd
make_static_certificate
start_kmsd
make_orgs
touch "$dir/initialised"

case $mode in
detach)
    summary
    say
    say "End it with: $0 --stop --dir $dir"
    ;;
once)
    walk
    if $was_running; then
        tell "Every step did what it says. The server is left running, as it was."
    else
        stop_all
        tell "Every step did what it says. The server is ended; its data stay in $dir"
    fi
    ;;
foreground)
    trap 'say; step "ending"; trap - INT TERM; stop_all; exit 0' INT TERM
    walk
    tell "Every step did what it says."
    summary
    say
    say "Interrupt (^C) to end it."
    exec 9>&-
    while alive "$kmsd_pid" kmsd; do
        sleep 1 &
        wait $! || true
    done
    say "kmsd has ended; see $dir/log/kmsd.log"
    stop_all
    exit 1
    ;;
esac
