#!/usr/bin/env bash
# What rotation costs: retrievals while keys are re-wrapped in the background, and the time that a new root takes.
#
#   tests/bench/rotation.sh --env FILE [--short]
#
# FILE describes a running development instance (quickstart.sh's DIR/env).  Prints "NAME VALUE" lines.
set -u -o pipefail
env_file= seconds=2 rounds=8 keys=40000 organisations=10000
while [ $# -gt 0 ]; do
    case $1 in
    --short) seconds=1 rounds=2 keys=10000 organisations=500 ;;
    --env) env_file=${2:?--env needs a file} && shift ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
    shift
done
[ -n "$env_file" ] || exit 2
set -a
# shellcheck disable=SC1090
. "$env_file"
set +a
build=${KMS_BUILD_DIR:-.}
work=$(mktemp -d /tmp/kms-bench-rotation.XXXXXX)
trap 'rm -rf "$work"' EXIT

sql() { psql -X -q -v ON_ERROR_STOP=1 -At "$KMS_DATABASE_URL" "$@"; }
load() {
    "$build/tests/bench/load" --url "$KMS_URL" --domain "$KMS_DOMAIN" --ca "$KMS_CA_FILE" --token-key "$KMS_TOKEN_KEY_FILE" \
        --token-kid "$KMS_TOKEN_KID" --issuer "$KMS_TOKEN_ISSUER" --audience "$KMS_TOKEN_AUDIENCE" --org "$KMS_ORG2" "$@"
}
wait_for() { # SECONDS SQL: until that is true
    local until=$((SECONDS + $1))
    until [ "$(sql -c "SELECT $2")" = t ]; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.1
    done
}
# An action that takes another officer.
agree() {
    local id
    id=$("$KMSCTL" --json "$@" | jq -r 'select(.state == "pending") | .approval') || return 1
    [ -z "$id" ] || "$KMSCTL_OFFICER2" --json approvals approve "$id" >/dev/null
}

# --- retrievals beside the re-wrapping of their organisation's keys ---

# The turns of one load, alone and beside: its keys are among those that are moved.  Of an organisation that nothing else has
# made keys in, so that they are not more than are needed.  Held and let go on, turn by turn, so that
# whatever else the machine does meets both alike.
org="(SELECT org_id FROM kms.organisations WHERE name = '$KMS_ORG2')"
running="org_id = $org AND kind = 'wrapping_key' AND state = 'running'"
moved() { sql -c "SELECT coalesce(max(done), 0) FROM kms.rotations WHERE $running"; }
turn() { # alone|beside begin|end
    local now was n=0
    case $1.$2 in
    alone.begin) # a batch that was under way when it was told to wait lets it go on: until that is over for a while
        while [ "$n" -lt 15 ]; do
            if [ "$(sql -c "SELECT count(*) FROM kms.rotations WHERE $running AND coalesce(next_at, now()) <= now()")" = 0 ]; then
                n=$((n + 1))
            else
                sql -c "UPDATE kms.rotations SET next_at = now() + interval '1 hour' WHERE $running" || return 1
                n=0
            fi
            sleep 0.1
        done
        ;;
    alone.end)
        [ "$(moved)" = "$(cat "$work/held")" ] && return
        echo "keys were re-wrapped while they were to wait" >&2
        return 1
        ;;
    beside.begin)
        [ -s "$work/rounds" ] || "$KMSCTL" wrapping-key rotate "$KMS_ORG2" >/dev/null || return 1
        was=$(moved)
        sql -c "UPDATE kms.rotations SET next_at = NULL WHERE $running" || return 1
        wait_for 60 "EXISTS (SELECT FROM kms.rotations WHERE $running AND done > $was)" || return 1
        sleep 0.5 # what it is behind at first it makes up for
        ;;
    beside.end)
        was=$(cut -d' ' -f1 "$work/begun")
        now=$(moved)
        if [ "$now" -le "$was" ]; then
            echo "nothing was re-wrapped in this turn: it was over, and more keys are needed, or a batch took longer than the turn" >&2
            return 1
        fi
        echo "$now $(date +%s%N) $(cat "$work/begun")" | awk '{ print ($1 - $3) * 1e9 / ($2 - $4) }' >>"$work/rounds"
        return
        ;;
    esac
    [ "$1" = beside ] && echo "$(moved) $(date +%s%N)" >"$work/begun" || moved >"$work/held"
}
export org running work
{ echo '#!/usr/bin/env bash' && declare -f sql moved wait_for turn && echo 'turn "$@"'; } >"$work/turn"
chmod +x "$work/turn"

for _ in $(seq 60); do
    [ "$(sql -c "SELECT count(*) >= $keys FROM kms.content_keys WHERE org_id = $org AND blob IS NOT NULL")" = f ] || break
    load --mode create --connections 8 --messages 1 --seconds 1 >/dev/null
done
# Half a million entries and all these keys came within seconds: what autovacuum and the checkpointer would do about that within a
# minute, in the middle of a measurement of seconds.
sql -c "VACUUM (ANALYZE)" -c CHECKPOINT
: >"$work/rounds"
load --mode beside --connections 4 --messages 50 --keys 2000 --seconds "$seconds" --rounds $rounds --turn "$work/turn" >"$work/beside" || exit 1
value() { sed -n "s|^$1 ||p" "$work/beside"; }
echo "rotation.rounds $(wc -l <"$work/rounds")"
echo "rotation.releases_alone $(value alone/s)"
echo "rotation.releases_beside $(value beside/s)"
echo "rotation.keys_per_second $(sort -g "$work/rounds" | awk '{ v[NR] = $1 } END { if (NR) printf "%.0f", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }')"
echo "rotation.slower_percent $(value slower)"
sql -c "UPDATE kms.rotations SET next_at = NULL WHERE $running"
wait_for 600 "NOT EXISTS (SELECT FROM kms.rotations WHERE $running)" || exit 1

# --- a new root ---

# Organisations by calls of the admin socket, some connections at once.
add_organisations() {
    perl -e '
        use strict; use warnings; use Socket;
        my ($path, $from, $to) = @ARGV;
        socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
        connect($s, sockaddr_un($path)) or die "connect: $!";
        select($s); $| = 1; select(STDOUT);
        for my $i ($from .. $to) {
            print $s qq({"jsonrpc":"2.0","id":$i,"method":"org.add","params":{"name":"bench-$i"}}\n);
            my $answer = <$s>;
            die $answer if !defined $answer || $answer =~ /"error"/ && $answer !~ /409002/;
        }' "$KMS_ADMIN_SOCKET" "$1" "$2"
}
pids=
for part in 0 1 2 3; do
    add_organisations $((part * organisations / 4 + 1)) $(((part + 1) * organisations / 4)) &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid" || exit 1; done
count=$(sql -c "SELECT count(*) FROM kms.organisations")
last=$(sql -c "SELECT coalesce(max(ended_at), '-infinity') FROM kms.rotations WHERE kind = 'root' AND state = 'done'")
agree root rotate || exit 1
wait_for 600 "EXISTS (SELECT FROM kms.rotations WHERE kind = 'root' AND state = 'done' AND ended_at > '$last')" || exit 1
echo "rotation.organisations $count"
echo "rotation.root_seconds $(sql -c "SELECT round(extract(epoch FROM ended_at - started_at), 1) FROM kms.rotations
                                       WHERE kind = 'root' AND state = 'done' ORDER BY ended_at DESC LIMIT 1")"
