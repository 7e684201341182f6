#!/usr/bin/env bash
# The audit log of a live server: export, verify, prove; tampering; crashes; idle checkpoints; witnesses; erasing a person.
#
#   tests/log/run.sh [--short]
#
# In full: 1,000 tamperings and 200 crashes; with --short 150 and 20.  Starts a server of its own and ends it.  KMS_BUILD_DIR names a
# build tree to use.  Ends with a line "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
exports=700 databases=400 crashes=200
case "${1:-}" in
--short) exports=100 databases=50 crashes=20 ;;
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

work=$(mktemp -d /tmp/kms-log-test.XXXXXX)
chmod 711 "$work"
passed=0 failed=0
finish() {
    [ -z "${receiver:-}" ] || kill "$receiver" 2>/dev/null
    "$top/kms/quickstart.sh" --stop --dir "$work/server" >/dev/null 2>&1
    if [ -s "$work/server/places" ]; then
        # shellcheck disable=SC1091
        . "$work/server/places"
        # shellcheck disable=SC2154
        rm -rf "$run" "$outside"
    fi
    if [ "$failed" -eq 0 ]; then rm -rf "$work"; else echo "left for a look: $work"; fi
}
trap finish EXIT
trap 'exit 1' INT TERM
ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
# check NAME STATUS COMMAND...: it leaves with that status; its output is in $out.
check() {
    local name=$1 want=$2 got=0
    shift 2
    out=$(timeout 300 "$@" 2>"$work/err" </dev/null) || got=$?
    if [ "$got" -eq "$want" ]; then ok; else bad "$name: status $got, not $want: $(head -c 300 "$work/err") $(tail -c 300 <<<"$out")"; fi
}
is() { if [ "$2" = "$3" ]; then ok; else bad "$1: \"$2\", not \"$3\""; fi; }
has() { if grep -Eq -- "$3" <<<"$2"; then ok; else bad "$1: \"$(head -c 300 <<<"$2")\" has no \"$3\""; fi; }
lacks() { if grep -Eq -- "$3" <<<"$2"; then bad "$1: has \"$3\""; else ok; fi; }
wait_until() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.3
    done
}

"$top/kms/quickstart.sh" --detach --dir "$work/server" >"$work/quickstart.log" 2>&1 || {
    cat "$work/quickstart.log"
    echo "0 passed, 1 failed"
    exit 1
}
set -a
# shellcheck disable=SC1091
. "$work/server/env"
set +a
ctl=$KMSCTL
org=$KMS_ORG
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" "$@"; }
log() { "$ctl" audit key "${1:-$org}" --json; }
# All that was written to a log is under a checkpoint.  In this order, and of this log alone: asking is an entry too, of the
# installation's.
settled() { [ "$(unplaced "${1:-$org}")" = 0 ] && log "${1:-$org}" | jq -e '.note != null and .size == .signed_size and .size > 0'; }
unplaced() {
    sql -c "SELECT count(*) FROM kms.entries e JOIN kms.organisations o ON o.org_id = e.org_id, kms.log_cursor c
             WHERE o.name = '$1' AND (e.xact, e.entry_id) > (c.xact, c.entry_id)"
}

# --- traffic: a user's, and a flood of refusals as the workers record them ---

"$KMS_CLIENT" token --subject alice --org "$org" >"$work/alice"
"$KMS_CLIENT" token --subject bob --org "$org" >"$work/bob"
as() { "$KMS_CLIENT" "${@:2}" --token-file "$work/$1" --state "$work/state-$1"; }
key=$(as alice key create --quiet | head -n 1)
as alice resource create --key-uri "$key" --quiet >/dev/null
as alice key get "$key" >/dev/null
as bob key get "$key" >/dev/null 2>&1 && bad "bob may not have the key"
id=$("$ctl" org show "$org" --json | jq -r .org)
flood() {
    sql >/dev/null <<END
SET ROLE kms_worker;
SELECT kms.refusals_record(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, $1)), array_fill('$id'::uuid, ARRAY[$1]),
    array_fill(NULL::uuid, ARRAY[$1]), ARRAY(SELECT 'request ' || i FROM generate_series(1, $1) i), array_fill('phone'::text, ARRAY[$1]),
    ARRAY(SELECT 'user' || i % 7 FROM generate_series(1, $1) i), array_fill('key.get'::text, ARRAY[$1]), array_fill(403001, ARRAY[$1]),
    ARRAY(SELECT gen_random_uuid() FROM generate_series(1, $1)));
END
}
for n in 150 300 70 260 500 333; do
    flood $n
    sleep 1.5
done
wait_until 30 settled || bad "the log is not under a checkpoint in half a minute"

# --- export, verify, prove ---

"$ctl" audit key "$org" >"$work/vkey"
check "export" 0 "$ctl" audit export "$work/log" "$org"
check "verify" 0 "$ctl" audit verify "$work/log" --key "$work/vkey"
has "verify says so" "$out" ': intact: [0-9]+ entries under [0-9]+ checkpoints'
check "verify needs a key" 2 "$ctl" audit verify "$work/log"
check "verify of nothing" 3 "$ctl" audit verify "$work/none" --key "$work/vkey"
check "verify with another log's key" 1 "$ctl" audit verify "$work/log" --key "$("$ctl" audit key "$KMS_ORG2")"
check "verify works offline" 0 env -i unshare -rn "$(sed -n 's/^exec \([^ ]*\) .*/\1/p' "$ctl")" audit verify "$work/log" --key "$(cat "$work/vkey")"
check "check" 0 "$ctl" audit check "$org"
check "check of the installation's log" 0 "$ctl" audit check
entry=$("$ctl" audit tail "$org" --limit 3 --json | jq '.entries[0].entry')
check "show" 0 "$ctl" audit show "$entry" "$org"
check "show of none" 1 "$ctl" audit show 999999999 "$org"
check "prove" 0 "$ctl" audit prove "$entry" "$org" --out "$work/proof"
check "a proof is verified" 0 "$ctl" audit verify "$work/proof" --key "$work/vkey"
sed -i '3s/.*/index 3/' "$work/proof"
check "a wrong one is not" 1 "$ctl" audit verify "$work/proof" --key "$work/vkey"
lacks "no name in the export" "$(cat "$work"/log/tile/entries/*/* "$work"/log/tile/entries/[0-9]* 2>/dev/null)" '"(alice|bob|user[0-9]|phone)"'
cp "$work/log/checkpoint" "$work/kept"
flood 40
wait_until 30 settled
check "export what is new" 0 "$ctl" audit export "$work/log" "$org" --json
is "only that" "$(jq .new <<<"$out")" 40
check "verify again" 0 "$ctl" audit verify "$work/log" --key "$work/vkey" --checkpoint "$work/kept"
cp -r "$work/log" "$work/old"
flood 10
wait_until 30 settled
"$ctl" audit export "$work/log" "$org" >/dev/null
check "an old export is whole by itself" 0 "$ctl" audit verify "$work/old" --key "$work/vkey"
check "but not for who kept a newer checkpoint" 1 "$ctl" audit verify "$work/old" --key "$work/vkey" --checkpoint "$work/log/checkpoint"
has "what is cut off is said" "$out" '^cut off'

# --- witnesses ---

node "$here/witness.mjs" key "$work/witness.pem" >"$work/witnesses"
chmod 644 "$work/witnesses"
"$ctl" audit key "$org" --json | jq -j .note >"$work/note"
node "$here/witness.mjs" cosign "$work/witness.pem" "$work/note" >"$work/cosigned"
check "an unknown witness is not taken" 1 "$ctl" audit cosign "$work/cosigned" "$org"
printf '[audit]\nwitnesses = %s\n' "$work/witnesses" >>"$work/server/kms.conf"
"$ctl" reload >/dev/null
sleep 1
check "a witness's cosignature is kept" 0 "$ctl" audit cosign "$work/cosigned" "$org"
sed 's/^\(— witness[^ ]* .\{20\}\)./\1x/' "$work/cosigned" >"$work/forged"
check "a forged one is not" 1 "$ctl" audit cosign "$work/forged" "$org"
check "nor one without the log's signature" 1 "$ctl" audit cosign <(grep -v "^— kms" "$work/cosigned") "$org"
wait_until 30 settled
rm -rf "$work/fresh"
"$ctl" audit export "$work/fresh" "$org" >/dev/null
has "it is in the export" "$(cat "$work/fresh/checkpoints")" '^— witness\.example\.org/w1 '
check "which is still whole" 0 "$ctl" audit verify "$work/fresh" --key "$work/vkey"

# --- a person is erased ---

as bob key get "$key" >/dev/null 2>&1
has "the log knows bob" "$("$ctl" audit tail "$org" --limit 1000)" ' bob '
check "erase bob" 0 "$ctl" person erase "$org" bob
check "nobody twice" 1 "$ctl" person erase "$org" bob
lacks "the log knows nobody of that name" "$("$ctl" audit tail "$org" --limit 1000)" ' bob '
wait_until 30 settled
check "and is whole" 0 "$ctl" audit check "$org"
"$ctl" audit export "$work/log" "$org" >/dev/null
check "its export too" 0 "$ctl" audit verify "$work/log" --key "$work/vkey"

# --- syslog ---

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=collector.example" \
    -addext "subjectAltName=DNS:collector.example" -keyout "$work/collector.key" -out "$work/collector.pem" 2>/dev/null
chmod 644 "$work/collector.pem"
port=$((20000 + RANDOM % 20000))
receiver=
receive() {
    node "$here/receiver.mjs" $port "$work/collector.pem" "$work/collector.key" "$work/syslog" >"$work/receiver.out" 2>&1 &
    receiver=$!
    wait_until 10 grep -q ready "$work/receiver.out"
}
sed -i "s|^witnesses = .*|&\nsyslog = 127.0.0.1:$port\nsyslog_name = collector.example\nsyslog_ca = $work/collector.pem|" "$work/server/kms.conf"
check "the configuration is right" 0 "$ctl" config check "$work/server/kms.conf"
"$ctl" reload >/dev/null
sleep 1
kill -9 "$(pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-keeper)" # a new keeper takes it
wait_until 30 "$ctl" status --json
flood 100
sleep 2
is "without a collector nothing is sent" "$("$ctl" status --json | jq -c .audit.syslog.connected)" false
receive
# What was sent, by (organisation, entry), against what there is.
got() { sed -n 's/^<1[01][08]>1 [-0-9]*T[0-9:.]*Z [^ ]* kmsd - [^ ]* - //p' "$work/syslog" | jq -r 'select(.entry) | "\(.org) \(.entry)"' | sort -u; }
want() { sql -c "SELECT org_id || ' ' || entry_id FROM kms.entries" | sort -u; }
complete() { [ "$(want | sha256sum)" = "$(got | sha256sum)" ]; }
if wait_until 60 complete; then ok; else bad "the collector has $(got | wc -l) of $(want | wc -l) entries"; fi
kill $receiver
for n in 60 300 20; do
    flood $n
    sleep 0.7
done
receive
sleep 1
kill -9 "$(pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-keeper)"
flood 10
if wait_until 90 complete; then ok; else bad "after breaks the collector has $(got | wc -l) of $(want | wc -l) entries"; fi
lacks "every message is well formed" "$(cat "$work/syslog")" '^BROKEN|^[^<]'
has "leaves are sent as they are" "$(grep -c -F -x -f <(sql -c "SELECT kms.entry_leaf(e) FROM kms.entries e ORDER BY entry_id DESC LIMIT 50") <(sed 's/^<[0-9]*>1 .* kmsd - [^ ]* - //' "$work/syslog" | sort -u))" '^50$'
flood 1
checkpointed() { grep -q ' kmsd - checkpoint - {"checkpoint":' "$work/syslog"; }
if wait_until 30 checkpointed; then ok; else bad "checkpoints are sent too"; fi
kill $receiver

# --- a quiet log is signed again within a minute ---

wait_until 30 settled

time_of() { log | jq -r .note | sed -n 's/^time //p'; }
before=$(time_of)
start=$SECONDS
newer() { [ "$(time_of)" -gt "$before" ]; }
if wait_until 62 newer; then ok; else bad "a quiet log had no new checkpoint for $((SECONDS - start)) s"; fi
is "of the same size" "$(log | jq '.size == .signed_size')" true

# --- tampering ---

"$ctl" audit export "$work/log" "$org" >/dev/null
tampered=$(node "$here/tamper.mjs" export "$work/log" "$work/vkey" $exports "${SEED:-$RANDOM}" 2>&1)
tail -n 20 <<<"$tampered"
has "tampering with an export" "$(tail -n 1 <<<"$tampered")" "^$exports found, 0 missed$"
tampered=$(node "$here/tamper.mjs" database "$org" $databases "${SEED:-$RANDOM}" 2>/dev/null)
tail -n 20 <<<"$tampered"
has "tampering with the database" "$(tail -n 1 <<<"$tampered")" "^$databases found, 0 missed$"

# The keeper does not sign what does not continue what it signed.
if wait_until 30 settled; then ok; else bad "the log went on after the tampering"; fi
sql -c "SET session_replication_role = replica" -c "UPDATE kms.log_leaves SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1) WHERE org_id = '$id' AND first = 0" \
    -c "UPDATE kms.log_checkpoints SET root = sha256(root), note = replace(note, '1', '2') WHERE org_id = '$id' AND size = (SELECT signed_size FROM kms.logs WHERE org_id = '$id')"
flood 5
alarmed() { "$ctl" status --json | jq -e --arg id "$id" '.audit.alarm // "" | startswith($id)'; }
if wait_until 30 alarmed; then ok; else bad "the keeper signs on over a changed checkpoint"; fi
# Put back as it was: from the export, whose newest checkpoint is the one that was changed.
size=$(sed -n 2p "$work/log/checkpoint")
sql -c "SET session_replication_role = replica" -c "UPDATE kms.log_leaves SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1) WHERE org_id = '$id' AND first = 0" \
    -v note="$(cat "$work/log/checkpoint")
" -v root="$(sed -n 3p "$work/log/checkpoint")" -v size="$size" >/dev/null 2>&1
sql -v note="$(cat "$work/log/checkpoint"; echo)" -v root="$(sed -n 3p "$work/log/checkpoint")" -v size="$size" <<END
SET session_replication_role = replica;
UPDATE kms.log_checkpoints SET root = decode(:'root', 'base64'), note = :'note' || E'\n' WHERE org_id = '$id' AND size = :size;
END
if wait_until 30 settled; then ok; else bad "the log does not go on when it is put right: $("$ctl" status --json | jq -c .audit)"; fi
check "and it is whole" 0 "$ctl" audit check "$org"

# --- crashes: of the keeper, of hsmd, of PostgreSQL, under load ---

keeper() { pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-keeper || pgrep -P "$(cat "$KMSD_PID_FILE")" | tail -n 1; }
(while :; do
    as alice key get "$key" >/dev/null 2>&1
    flood $((RANDOM % 80 + 1)) 2>/dev/null
    sleep 0.1
done) &
load=$!
for i in $(seq $crashes); do
    case $((RANDOM % 4)) in
    0 | 1) kill -9 "$(keeper)" 2>/dev/null ;;
    2) kill -9 $(pgrep -P "$(cat "$HSMD_PID_FILE")" | head -n 1) 2>/dev/null ;;
    3)
        # A backend that dies takes all of them down: PostgreSQL recovers from its log.
        kill -9 $(pgrep -P "$(head -n 1 "$POSTGRES_DATA/postmaster.pid")" -f 'kms_keeper' | head -n 1) 2>/dev/null
        ;;
    esac
    sleep "0.$((RANDOM % 9 + 1))"
    [ $((i % 10)) != 0 ] || wait_until 60 "$ctl" status --json
done
kill $load 2>/dev/null
wait $load 2>/dev/null
if wait_until 90 settled; then ok; else bad "the log is not under a checkpoint after $crashes crashes: $(log) $("$ctl" status --json | jq -c .audit)"; fi
check "check after $crashes crashes" 0 "$ctl" audit check "$org"
has "is silent" "$(wc -l <<<"$out")" '^1$'
check "export after them" 0 "$ctl" audit export "$work/log" "$org"
check "verify after them" 0 "$ctl" audit verify "$work/log" --key "$work/vkey"
has "is silent too" "$(wc -l <<<"$out")" '^1$'
is "each entry has one place" "$(sql -c "SELECT count(*), count(DISTINCT u.id) = count(*), count(*) = (SELECT count(*) FROM kms.entries WHERE org_id = '$id') FROM kms.log_leaves l, unnest(l.entry_ids) u(id) WHERE org_id = '$id'" | cut -d'|' -f2-)" "t|t"
is "one root a size" "$(sql -c "SELECT count(*) FROM (SELECT size FROM kms.log_checkpoints WHERE org_id = '$id' GROUP BY size HAVING count(DISTINCT root) > 1) x")" 0

echo "$passed passed, $failed failed"
[ $failed = 0 ]
