#!/usr/bin/env bash
# run.sh - backups of database and token, and whether they open together: kmsctl backup, kmsctl restore check.
#
#   tests/restore/run.sh
#
# KMS_BUILD_DIR names a finished build.  It makes a server of its own, backs it up in every format, and then loses it: the last
# checks have a copy of the token and the backup, as after a fire.  Every check is a line "ok" or "FAIL"; the last line counts them.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)
. "$top/tests/lib/postgres.sh"

work=$(mktemp -d /tmp/kms-restore-test.XXXXXX)
chmod 755 "$work"
cd "$work" || exit 1
mkdir "$work/tmp"
chmod 1777 "$work/tmp"
export TMPDIR=$work/tmp
passed=0 failed=0
ok() { passed=$((passed + 1)) && echo "ok   $*"; }
bad() { failed=$((failed + 1)) && echo "FAIL $*"; }
is() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: \"$2\", not \"$3\""; fi; }
has() { if grep -qE -- "$3" <<<"$2"; then ok "$1"; else bad "$1: \"$(head -c 600 <<<"$2")\" has no \"$3\""; fi; }
hsmds=()
finish() {
    for p in "${hsmds[@]}"; do kill "$p" 2>/dev/null; done
    TMPDIR=/tmp "$top/kms/quickstart.sh" --stop --dir "$work/kms" >/dev/null 2>&1
    if [ "$failed" = 0 ]; then rm -rf "$work"; else echo "left for a look: $work"; fi
}
trap finish EXIT

TMPDIR=/tmp "$top/kms/quickstart.sh" --detach --dir "$work/kms" >"$work/quickstart.log" 2>&1 || {
    tail -20 "$work/quickstart.log"
    echo "0 passed, 1 failed"
    exit 1
}
set -a
# shellcheck disable=SC1091
. "$work/kms/env"
set +a
ctl=$(sed -n 's/^exec \([^ ]*kmsctl\) .*/\1/p' "$KMSCTL")
bin=$(pg_bindir)
KMS_TOKEN=$("$KMS_CLIENT" token --subject alice --org "$KMS_ORG")
export KMS_TOKEN
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" -c "$1"; }
client() { "$KMS_CLIENT" --json --state "$work/state" "$@"; }
wait_for() { # SECONDS SQL: until that is true
    local until=$((SECONDS + $1))
    until [ "$(sql "SELECT $2")" = t ]; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.2
    done
}
# restore BACKUP [OPTION...]: by the configuration of the server, on standard output JSON; $status
restore() {
    local b=$1
    shift
    "$ctl" restore check --backup "$b" --config "$work/kms/kms.conf" --json "$@" 2>"$work/err"
    status=$?
}
leftovers() { find "$work/tmp" -mindepth 1 -maxdepth 1 | wc -l; }

# --- something to back up: two generations, keys and recordings ---

resource=$(client resource create --kind meeting --count 30 | jq -r '.. | .resource? // empty | .uri? // empty' | head -1)
for _ in 1 2 3; do client recording create "$resource" >/dev/null; done
"$KMSCTL" --json wrapping-key rotate "$KMS_ORG" >/dev/null
wait_for 60 "(SELECT count(*) = 2 FROM kms.wrapping_keys w JOIN kms.organisations o USING (org_id) WHERE o.name = '$KMS_ORG' AND w.generation < 1000000000)" ||
    bad "the wrapping key was not replaced"
client resource rotate "$resource" --count 30 >/dev/null
generations=$(sql "SELECT count(*) FROM kms.wrapping_keys WHERE destroyed_at IS NULL")

out=$("$KMSCTL" backup --check --hsm-socket "$work/kms/run/hsmd.sock")
is "backup --check: all keys are there" $? 0
has "backup tells how for SoftHSM" "$out" 'cp -a TOKENDIR'
out=$("$KMSCTL" backup --check --hsm-socket "$work/kms/run/hsmd.sock" --json)
is "backup --json" "$(jq -r '.whole, ([.keys[] | select(.kind == "root")] | length)' <<<"$out" | paste -sd' ')" "true 1"

"$bin/pg_dump" -Fc -f "$work/kms.dump" "$KMS_DATABASE_URL"
"$bin/pg_dump" -f "$work/plain.sql" "$KMS_DATABASE_URL"
gzip -k "$work/plain.sql"
"$bin/pg_dump" -Fd -f "$work/directory" "$KMS_DATABASE_URL"
"$bin/pg_basebackup" -c fast -D "$work/base" -d "${KMS_DATABASE_URL%/*}/postgres"
"$bin/pg_basebackup" -c fast -Ft -z -D "$work/tars" -d "${KMS_DATABASE_URL%/*}/postgres"
cp -a "$work/kms/softhsm" "$work/token-copy" && diff -r "$work/kms/softhsm" "$work/token-copy" >/dev/null || bad "the token's copy is not like it"

# --- every format ---

out=$(restore "$work/kms.dump" --sample 5 --out "$work/report"; echo "$status")
is "a custom dump opens" "$(tail -1 <<<"$out")" 0
json=$(head -1 <<<"$out")
is "of every generation" "$(jq .generations <<<"$json")" "$((generations + 1))"
is "with all that was tried" "$(jq -c '[.good, .keys == .keys_tried, .keys >= 5, .recordings >= 3, .failed]' <<<"$json")" '[true,true,true,true,0]'
key=$("$KMSCTL" audit key)
out=$("$ctl" restore verify "$work/report" --key "$key" 2>&1)
is "the report is signed" $? 0
has "and says what it is of" "$out" "^backup-sha256 $(sha256sum <"$work/kms.dump" | cut -d' ' -f1)$"
is "and its list is the one that was written" "$(sed -n 's/^list-sha256 //p' "$work/report")" "$(sha256sum <"$work/report.list" | cut -d' ' -f1)"
sed 's/^sample 5 /sample 6 /' "$work/report" >"$work/forged"
"$ctl" restore verify "$work/forged" --key "$key" >/dev/null 2>&1
is "a changed report is not genuine" $? 1
"$ctl" restore check --backup "$work/kms.dump" --config "$work/kms/kms.conf" --out "$work/report" >/dev/null 2>&1
is "a report is never overwritten" $? 2
for b in plain.sql.gz directory base tars; do
    out=$(restore "$work/$b"; echo "$status")
    is "$b opens" "$(tail -1 <<<"$out") $(head -1 <<<"$out" | jq -c '[.good, .failed]')" "0 [true,0]"
done
is "nothing is left behind" "$(leftovers)" 0

# --- what is not a backup, or not a whole one ---

restore /etc/passwd >/dev/null
is "a file that is no backup" $status 1
head -c 20000 "$work/kms.dump" >"$work/half.dump"
restore "$work/half.dump" >/dev/null
is "half a dump" $status 1
printf x >>"$work/base/base/1/PG_VERSION"
restore "$work/base" >/dev/null
is "a base backup that was changed" $status 1
has "is told by its manifest" "$(cat "$work/err")" 'not what pg_basebackup wrote'
# One wrapping key is another's.
first=$(sql "SELECT encode(w.wrapped, 'hex') FROM kms.wrapping_keys w JOIN kms.organisations o USING (org_id) WHERE o.name = '$KMS_ORG' AND w.generation = 2")
second=$(sql "SELECT encode(w.wrapped, 'hex') FROM kms.wrapping_keys w JOIN kms.organisations o USING (org_id) WHERE o.name = '$KMS_ORG2' AND w.generation = 1")
sed "s/$first/$second/" "$work/plain.sql" >"$work/swapped.sql"
out=$(restore "$work/swapped.sql"; echo "$status")
is "a wrapping key that was swapped does not open" "$(tail -1 <<<"$out")" 1
has "and is named" "$(head -1 <<<"$out" | jq -r .report)" "^failed $KMS_ORG generation 2: 0 of [0-9]+"
is "the others do" "$(head -1 <<<"$out" | jq .failed)" 1
is "nothing is left behind after failures" "$(leftovers)" 0

# --- whoever is killed leaves nothing behind ---

"$ctl" restore check --backup "$work/kms.dump" --config "$work/kms/kms.conf" >/dev/null 2>&1 &
killed=$!
for _ in $(seq 100); do
    ls "$work"/tmp/kms-restore.*/data/postmaster.pid >/dev/null 2>&1 && break
    sleep 0.05
done
kill -9 $killed
wait $killed 2>/dev/null
for _ in $(seq 300); do
    [ "$(leftovers)" != 0 ] || break
    sleep 0.1
done
is "killed in the middle: the throw-away server is gone" "$(leftovers)" 0

# --- after the fire: a copy of the token, the dump, and no server ---

"$top/kms/quickstart.sh" --stop --dir "$work/kms" >/dev/null 2>&1
mv "$work/kms/softhsm" "$work/lost"
# start_hsmd NAME TOKENDIR: its socket is $work/NAME.sock
start_hsmd() {
    printf '%s\n' "directories.tokendir = $2" "objectstore.backend = file" "log.level = ERROR" >"$work/$1.softhsm"
    sed -n '/^\[hsmd\]/,$p' "$work/kms/kms.conf" | sed "s,^socket = .*,socket = $work/$1.sock,; s,^pid_file = .*,pid_file = $work/$1.pid," >"$work/$1.conf"
    SOFTHSM2_CONF=$work/$1.softhsm "$(dirname "$ctl")/../hsm/hsmd" --config "$work/$1.conf" --foreground >"$work/$1.log" 2>&1 &
    hsmds+=($!)
    for _ in $(seq 100); do
        [ ! -S "$work/$1.sock" ] || break
        sleep 0.1
    done
}
start_hsmd copy "$work/token-copy/tokens"
out=$("$ctl" restore check --backup "$work/kms.dump" --hsm-socket "$work/copy.sock" --json 2>"$work/err"; echo $?)
is "the copy of the token opens the dump, without any server" "$(tail -1 <<<"$out") $(head -1 <<<"$out" | jq -c '[.good, .failed]')" "0 [true,0]"
mkdir "$work/other"
printf '%s\n' "directories.tokendir = $work/other" "objectstore.backend = file" >"$work/init.softhsm"
SOFTHSM2_CONF=$work/init.softhsm softhsm2-util --init-token --free --label kms --pin "$(cat "$work/kms/pin")" --so-pin 12345678 >/dev/null 2>&1 ||
    bad "no other token could be made"
start_hsmd other "$work/other"
"$ctl" hsm init --hsm-socket "$work/other.sock" >/dev/null 2>&1
out=$("$ctl" restore check --backup "$work/kms.dump" --hsm-socket "$work/other.sock" --json 2>"$work/err"; echo $?)
is "another token opens nothing" "$(tail -1 <<<"$out") $(head -1 <<<"$out" | jq -c '[.good, .keys, .recordings]')" "1 [false,0,0]"
has "and why is told" "$(head -1 <<<"$out" | jq -r .report)" 'the key that wraps it is not in the token'
is "nothing is left behind at the end" "$(leftovers)" 0

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
