#!/usr/bin/env bash
# log.sh - figures of the audit log: sequencing, proofs, verifying.  Part of run.sh, or alone.
#
#   tests/bench/log.sh --env FILE [--short]
#
#   log.sequencing_percent   of one core that the keeper, its database sessions and hsmd take at 2,000 entries a second
#   log.proof_ms             an inclusion proof from a tree of 10 million leaves (median), the start of kmsctl included.
#                            The leaves are made up: hashes written into the database by its superuser, then signed by the keeper
#   log.proof_hashes         its size
#   log.verify_per_second    entries a second of kmsctl audit verify on one core, of an export that is made up (mklog.mjs)
#
# KMS_BUILD_DIR names an optimised build.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
seconds=20 leaves=10000000 exported=500000 env_file=
while [ $# -gt 0 ]; do
    case $1 in
    --short) seconds=6 leaves=300000 exported=100000 ;;
    --env) env_file=${2:?} && shift ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) echo "log.sh: what is \"$1\"? see --help" >&2 && exit 2 ;;
    esac
    shift
done
[ -r "$env_file" ] || {
    echo "log.sh: --env names a running instance" >&2
    exit 2
}
set -a
# shellcheck disable=SC1090
. "$env_file"
set +a
work=$(mktemp -d /tmp/kms-bench-log.XXXXXX)
trap 'rm -rf "$work"' EXIT
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" "$@"; }
json() { "$KMSCTL" audit key "$1" --json; }
wait_signed() { # ORG SECONDS
    local until=$((SECONDS + $2))
    until json "$1" | jq -e '.size > 0 and .size == .signed_size' >/dev/null; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.5
    done
}

# --- sequencing ---

id=$("$KMSCTL" org show "$KMS_ORG" --json | jq -r .org)
keeper=$(pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-keeper)
ticks() { # of all processes given
    for p; do sed 's/.*) //' "/proc/$p/stat" 2>/dev/null; done | awk '{ s += $12 + $13 } END { print s + 0 }'
}
pids() { echo "$keeper" $(sql -c "SELECT pid FROM pg_stat_activity WHERE usename = 'kms_keeper'") $(pgrep -P "$(cat "$HSMD_PID_FILE")"); }
feed() { # 2,000 a second, 200 at a time, by the clock
    cat <<END
SET ROLE kms_worker;
END
    for _ in $(seq $((seconds * 10))); do
        cat <<END
SELECT kms.refusals_record(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 200)), array_fill('$id'::uuid, ARRAY[200]),
    array_fill(gen_random_uuid(), ARRAY[200]), array_fill(gen_random_uuid()::text, ARRAY[200]), array_fill('phone'::text, ARRAY[200]),
    array_fill('user1'::text, ARRAY[200]), array_fill('key.get'::text, ARRAY[200]), array_fill(403001, ARRAY[200]),
    ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 200)));
SELECT pg_sleep(greatest(0, (extract(epoch FROM clock_timestamp()) * 10)::numeric % 1 * -0.1 + 0.1));
END
    done
}
measured=$(pids)
# shellcheck disable=SC2086
before=$(ticks $measured)
was=$(sql -c "SELECT size FROM kms.logs WHERE org_id = '$id'")
start=$(date +%s.%N)
feed | sql >/dev/null
sleep 1
# shellcheck disable=SC2086
after=$(ticks $measured)
end=$(date +%s.%N)
now=$(sql -c "SELECT size FROM kms.logs WHERE org_id = '$id'")
awk -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" -v s="$(awk "BEGIN { print $end - $start }")" -v n=$((now - ${was:-0})) 'BEGIN {
    printf "log.sequencing_rate %.0f\n", n / s
    # Brought to exactly 2,000 a second.
    printf "log.sequencing_percent %.2f\n", t / hz / s * 100 * 2000 / (n / s) }'

# --- a proof from a large tree ---

org=bench-log-$$
"$KMSCTL" org add "$org" >/dev/null && wait_signed "$org" 20 || exit 1
id=$("$KMSCTL" org show "$org" --json | jq -r .org)
entry=$("$KMSCTL" audit tail "$org" --json | jq '.entries[0].entry')
sql >/dev/null <<END
SET session_replication_role = replica;
SET synchronous_commit = off;
BEGIN;
INSERT INTO kms.log_leaves (org_id, first, last_entry, entry_ids, hashes)
SELECT '$id', min(i), max(i) + 1000000000, array_agg(i + 1000000000 ORDER BY i), string_agg(sha256(int8send(i)), '' ORDER BY i)
  FROM generate_series(1::bigint, $leaves - 1) i GROUP BY i / 256;
UPDATE kms.logs SET size = $leaves WHERE org_id = '$id';
COMMIT;
END
start=$(date +%s.%N)
wait_signed "$org" 600 || exit 1
echo "log.catching_up_per_second $(awk "BEGIN { printf \"%.0f\", $leaves / ($(date +%s.%N) - $start) }")"
"$KMSCTL" audit prove "$entry" "$org" >"$work/proof" || exit 1
# Half of them are quicker: what a busy machine does to a few does not count.
for _ in $(seq 31); do
    start=$(date +%s%N)
    "$KMSCTL" audit prove "$entry" "$org" >"$work/proof" || exit 1
    echo $(($(date +%s%N) - start))
done | sort -n | awk 'NR == 16 { printf "log.proof_ms %.1f\n", $1 / 1000000 }'
echo "log.proof_hashes $(awk '/^index/ { on = 1; next } on && /^$/ { exit } on { n++ } END { print n }' "$work/proof")"
echo "log.proof_hashes_wanted $(awk "BEGIN { n = 0; for (k = 1; k < $leaves; k *= 2) n++; print n }")"

# --- verifying ---

node "$here/mklog.mjs" "$work/log" $exported >"$work/vkey" || exit 1
"$KMSCTL" audit verify "$work/log" --key "$work/vkey" >/dev/null || exit 1
TIMEFORMAT='%U %S'
cpu=$({ time "$KMSCTL" audit verify "$work/log" --key "$work/vkey" >/dev/null; } 2>&1 | awk '{ print $1 + $2 }')
echo "log.verify_per_second $(awk "BEGIN { printf \"%.0f\", $exported / $cpu }")"
