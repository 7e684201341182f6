#!/usr/bin/env bash
# How long a revoked main key goes on giving keys, on two nodes: one database, one hsmd, two kmsd.
#
#   tests/bench/revocation.sh --env FILE [--short]
#
# FILE describes a running development instance (quickstart.sh's DIR/env); the second node is started beside it and ended.
# Clients ask both nodes for keys without end, singly and many at once, while kmsctl cmk revoke runs.  Prints "NAME VALUE" lines, of
# the worst of the rounds:
#
#   revocation.seconds       from the call of kmsctl until the last key came, on either node
#   revocation.answered      from the call of kmsctl until its answer
#   revocation.after_answer  clients (four a round) that got keys by a request that was sent after the answer
#   revocation.releases      keys that came in all rounds
#   revocation.rounds        that were measured
set -u -o pipefail
env_file= rounds=5
while [ $# -gt 0 ]; do
    case $1 in
    --short) rounds=2 ;;
    --env) env_file=${2:?--env needs a file} && shift ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
    shift
done
[ -n "$env_file" ] || exit 2
set -a
# shellcheck disable=SC1090
. "$env_file"
set +a
build=${KMS_BUILD_DIR:-.}
work=$(mktemp -d /tmp/kms-bench-revocation.XXXXXX)
chmod 711 "$work"
second= # its process
cleanup() {
    # shellcheck disable=SC2046
    kill $second $(jobs -p) 2>/dev/null
    [ -z "$second" ] || wait "$second" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT

# An action that takes another officer.
agree() {
    local id
    id=$("$KMSCTL" --json "$@" | jq -r 'select(.state == "pending") | .approval') || return 1
    [ -z "$id" ] || "$KMSCTL_OFFICER2" --json approvals approve "$id" >/dev/null
}
main_key() { "$KMSCTL" --json cmk list "$KMS_ORG_BYOK" | jq -r ".main_keys[] | select(.state == \"$1\") | .main_key" | head -n 1; }
wait_for() { # COMMAND...
    local _
    for _ in $(seq 300); do
        "$@" && return
        sleep 0.1
    done
    echo "in vain: $*" >&2
    return 1
}

# --- the second node: the first one's configuration with places of its own ---

free_port() { perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'; }
pid=$(cat "$KMSD_PID_FILE")
config=$(tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n '/^--config$/{n;p;}')
port=$(free_port)
awk -v home="$work" -v port="$port" -v metrics="$(free_port)" '
    /^\[/ { section = $0 }
    section == "[kms]" && /^listen *=/ { $0 = "listen = 127.0.0.1:" port }
    section == "[kms]" && /^node *=/ { $0 = "node = second" }
    section == "[kms]" && /^pid_file *=/ { $0 = "pid_file = " home "/kmsd.pid" }
    section == "[admin]" && /^socket *=/ { $0 = "socket = " home "/a.sock" }
    section == "[metrics]" && /^listen *=/ { $0 = "listen = 127.0.0.1:" metrics }
    { print }' "$config" >"$work/kms.conf"
"$(readlink "/proc/$pid/exe")" --config "$work/kms.conf" >"$work/log" 2>&1 &
second=$!
second_ready() { "$KMSCTL" --socket "$work/a.sock" --json status 2>/dev/null | jq -e .ready >/dev/null; }
wait_for second_ready || {
    tail -5 "$work/log" >&2
    exit 1
}

# --- a main key ---

main=$(main_key REVOKED) # of a run that was interrupted
[ -z "$main" ] || agree cmk activate "$KMS_ORG_BYOK" "$main" || exit 1
has_main_key() { [ -n "$(main_key "$1")" ]; }
"$KMSCTL" cmk public-key "$KMS_ORG_BYOK" >"$work/import.pem" || exit 1
openssl rand 32 | openssl pkeyutl -encrypt -pubin -inkey "$work/import.pem" -out "$work/main.key" \
    -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 || exit 1
agree cmk import "$KMS_ORG_BYOK" "$work/main.key" && wait_for has_main_key PENDING || exit 1
main=$(main_key PENDING)

# --- rounds ---

load() { # NAME URL MESSAGES
    "$build/tests/bench/load" --mode closing --connections 2 --messages "$3" --keys 200 --seconds 1 --url "$2" --domain "$KMS_DOMAIN" \
        --ca "$KMS_CA_FILE" --token-key "$KMS_TOKEN_KEY_FILE" --token-kid "$KMS_TOKEN_KID" --issuer "$KMS_TOKEN_ISSUER" \
        --audience "$KMS_TOKEN_AUDIENCE" --org "$KMS_ORG_BYOK" >"$work/load.$1"
}
begun() { [ "$(cat "$work"/load.* 2>/dev/null | grep -c '^begun')" = 4 ]; }
is_active() { [ "$(main_key ACTIVE)" = "$main" ]; }
for round in $(seq $rounds); do
    agree cmk activate "$KMS_ORG_BYOK" "$main" && wait_for is_active || exit 1
    rm -f "$work"/load.*
    loads=
    for n in 1 50; do
        load "first.$n" "$KMS_URL" $n &
        loads="$loads $!"
        load "second.$n" "https://127.0.0.1:$port" $n &
        loads="$loads $!"
    done
    wait_for begun || exit 1
    sleep 0.5
    called=$(date +%s.%N)
    "$KMSCTL" cmk revoke "$KMS_ORG_BYOK" >"$work/revoked" || exit 1
    answered=$(date +%s.%N)
    for n in $loads; do wait "$n" || exit 1; done
    if grep -h '^code' "$work"/load.* | grep -qv ' 405005$'; then
        echo "round $round: keys were refused for another reason: $(grep -h '^code' "$work"/load.* | sort -u)" >&2
        exit 1
    fi
    # The worst of the nodes.
    cat "$work"/load.* | awk -v called="$called" -v answered="$answered" '
        /^last.came/ && $2 > came { came = $2 }
        /^last.sent/ && $2 > answered { late++ }
        /^released/ { n += $2 }
        END { printf "%.4f %.4f %d %d\n", came - called, answered - called, late, n }'
done >"$work/rounds"
worst() { cut -d' ' -f"$1" "$work/rounds" | sort -g | tail -n 1; }
sum() { awk "{ s += \$$1 } END { print s + 0 }" "$work/rounds"; }
echo "revocation.rounds $(wc -l <"$work/rounds")"
echo "revocation.releases $(sum 4)"
echo "revocation.answered $(worst 2)"
echo "revocation.seconds $(worst 1)"
echo "revocation.after_answer $(sum 3)"
agree cmk activate "$KMS_ORG_BYOK" "$main" && wait_for is_active && agree cmk default "$KMS_ORG_BYOK"
