#!/usr/bin/env bash
# A live server's decisions explained; reports of matters with their proofs; receipts; alarms of canaries.
#
#   tests/explain/run.sh [--short]
#
# tests/sql/explain.sql has a case for each verdict; here are those that the whole server can bring about.  Starts a server of its own
# and ends it.  KMS_BUILD_DIR names a build tree to use.  Ends with a line "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
case "${1:-}" in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

work=$(mktemp -d /tmp/kms-explain-test.XXXXXX)
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
# check NAME STATUS COMMAND...: it leaves with that status; its output is in $out, what it complains of in $err.
check() {
    local name=$1 want=$2 got=0
    shift 2
    out=$(timeout 120 "$@" 2>"$work/err" </dev/null) || got=$?
    err=$(cat "$work/err")
    if [ "$got" -eq "$want" ]; then ok; else bad "$name: status $got, not $want: $(head -c 300 <<<"$err") $(tail -c 300 <<<"$out")"; fi
}
is() { if [ "$2" = "$3" ]; then ok; else bad "$1: \"$2\", not \"$3\""; fi; }
# has NAME TEXT WORDS...: each is in it, however its lines are broken.
has() {
    local name=$1 flat w
    flat=$(tr -s ' \n' ' ' <<<"$2")
    shift 2
    for w; do
        if [[ $flat == *"$w"* ]]; then ok; else bad "$name: no \"$w\" in: $flat"; fi
    done
}
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
ctl=$KMSCTL org=$KMS_ORG
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" "$@"; }
for u in alice bob olga; do
    "$KMS_CLIENT" token --subject $u --org "$org" $([ $u = olga ] && echo "--role spark.kms_orgagent") >"$work/$u"
done
as() { "$KMS_CLIENT" "${@:2}" --token-file "$work/$1" --state "$work/state-$1"; }
service() { "$KMS_CLIENT" "${@:2}" --cert "$work/$1.pem" --key "$work/$1.key" --state "$work/state-$1"; }
# The last request in a log: its request id.
last() { "$ctl" audit tail ${1-"$org"} --json --limit 20 | jq -r '[.entries[] | select(.request)] | last | .request'; }
explain() { check "explain of $1" 0 "$ctl" explain "$2"; }
# agreed COMMAND...: an officer asks for it, the second agrees; the approval's id is printed.
agreed() {
    local id
    id=$("$ctl" --json "$@" 2>"$work/err" | jq -r .approval)
    "$KMSCTL_OFFICER2" approvals approve "$id" >"$work/agreed" 2>&1 || bad "$*: $(cat "$work/err" "$work/agreed")"
    echo "$id"
}
certificate() { # NAME
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/$1.key" -subj "/CN=$1" -out "$work/$1.csr" 2>/dev/null &&
        printf 'subjectAltName=URI:spiffe://cloud.example/%s\nextendedKeyUsage=clientAuth\n' "$1" >"$work/$1.ext" &&
        openssl x509 -req -in "$work/$1.csr" -CA "$KMS_SERVICE_CA_FILE" -CAkey "$KMS_SERVICE_CA_KEY_FILE" -set_serial "0x$(openssl rand -hex 8)" \
            -days 2 -extfile "$work/$1.ext" -out "$work/$1.pem" 2>/dev/null
}

# --- users ---

key=$(as alice key create --quiet | head -n 1)
as alice resource create --key-uri "$key" --quiet >"$work/resource"
resource=$(head -n 1 "$work/resource")
id=${resource##*/}
as alice key get "$key" >/dev/null
explain "a release" "$(last)"
has "a release" "$out" 'Entry ' " of the log of $org" 'the user "alice" of '"$org" "\"alice\" was authorised on resource $id directly" 'wrapping key of generation 1' 'root key' 'Released: one key.'
as bob key get "$key" >/dev/null 2>&1 && bad "bob has the key"
refused=$(last)
explain "a refusal" "$refused"
has "a refusal" "$out" 'the user "bob"' 'neither directly nor through another resource' 'errorCode 403001; nothing was released' 'It would have taken an authorisation of "bob" on the resource'
as alice resource grant "$resource" bob >/dev/null
explain "a refusal, later" "$refused"
has "what has changed" "$out" 'Since then' '"bob" is authorised on the resource now (granted by alice at'
space=$(as bob resource create --auth-id carol --quiet | head -n 1)
as alice resource grant "$resource" "$space" >/dev/null
"$KMS_CLIENT" token --subject carol --org "$org" >"$work/carol"
as carol key get "$key" >/dev/null || bad "carol has no key"
explain "a nested release" "$(last)"
has "a nested release" "$out" "through another resource: authorised on ${space##*/}, which $id is open to"
as olga key get "$key" --on-behalf-of alice >/dev/null || bad "olga has no key"
explain "an officer's release" "$(last)"
has "an officer's release" "$out" 'the user "olga"' 'as an officer on behalf of "alice"' 'compliance role'
as bob key get "$key" --on-behalf-of alice >/dev/null 2>&1 && bad "bob is no officer"
explain "who is no officer" "$(last)"
has "who is no officer" "$out" 403004 'the token had not the role'
"$KMS_CLIENT" token --subject alice --org "$org" --expires-in -100 >"$work/late"
"$KMS_CLIENT" channel open --token-file "$work/late" --no-state >/dev/null 2>&1 && bad "an expired token is good"

# --- what is asked for ---

check "an unknown request" 1 "$ctl" explain no-such-request
has "an unknown request" "$err" "no log has a request id, an entry's number or an operation id that is this"
check "an unknown entry" 1 "$ctl" explain 987654321
check "nothing" 2 "$ctl" explain
entry=$("$ctl" audit tail "$org" --json --limit 50 | jq ".entries[] | select(.request == \"$refused\") | .entry")
op=$("$ctl" audit tail "$org" --json --limit 50 | jq -r ".entries[] | select(.request == \"$refused\") | .op")
explain "an entry" "$entry"
has "an entry" "$out" "Entry $entry of" 403001
explain "an operation" "$op"
has "an operation" "$out" "Entry $entry of"
check "facts for programs" 0 "$ctl" explain "$refused" --json
is "facts" "$(jq -c '.[0].entries[0] | [.verdict, .who.name, .decided, .keys[0].generation, (.rules | length > 0)]' <<<"$out")" '[403001,"bob","authorised",1,true]'
check "an operator's call" 0 "$ctl" explain "$("$ctl" audit tail --json --limit 5 | jq .entries[-1].entry)"
has "an operator's call" "$out" 'on the admin socket'

# --- services ---

certificate scanner
service scanner channel open >/dev/null 2>&1 && bad "an unknown service has a channel"
explain "an unknown service" "$("$ctl" audit tail --json --limit 50 | jq -r '[.entries[] | select(.verdict == 403006)] | last | .entry')"
has "an unknown service" "$out" 'spiffe://cloud.example/scanner' 'no service of this identity is registered' 'kmsctl service add'
agreed service add scanner --identity spiffe://cloud.example/scanner --purpose dlp,indexing,ediscovery --org "$org" --kind space,meeting >/dev/null
service scanner key get "$key" --purpose dlp >/dev/null 2>&1 && bad "dlp is off"
off=$(last)
explain "a purpose that is off" "$off"
has "a purpose that is off" "$out" 'the service "scanner"' 'spiffe://cloud.example/scanner' 'proven by mutual TLS' 'under the purpose "dlp"' "$org has never switched dlp on" 'kmsctl purpose enable' 403005
agreed purpose enable "$org" dlp >/dev/null
service scanner key get "$key" --purpose dlp >/dev/null || bad "no key for dlp"
served=$(last)
explain "a release to a service" "$served"
has "a release to a service" "$out" 'it is registered for dlp' "$org is one of its organisations" "$org had dlp switched on since" 'in the last 24 hours' 'Released: one key.'
service scanner key create >/dev/null 2>&1 && bad "a service makes keys"
explain "a service that wants to make a key" "$(last '')"
has "a service that wants to make a key" "$out" 403005 'services retrieve keys and do nothing else'
explain "the refusal, later" "$off"
has "the refusal, later" "$out" 'Since then' "$org has dlp switched on since"
service scanner key get "$key" --purpose archival >/dev/null 2>&1 && bad "archival is not its purpose"
explain "another purpose" "$(last)"
has "another purpose" "$out" 'it is registered for dlp, ediscovery and indexing, not for archival'
"$ctl" purpose disable "$org" dlp >/dev/null || bad "dlp stays on"
explain "the release, later" "$served"
has "the release, later" "$out" "$org had dlp switched on" "$org has dlp switched off since"
agreed purpose enable "$org" dlp >/dev/null
agreed purpose enable "$org" indexing >/dev/null
for i in 1 2 3; do
    k=$(as alice key create --quiet | head -n 1)
    as alice resource create --key-uri "$k" --quiet >/dev/null
done
if service scanner purpose keys indexing --count 50 >"$work/walk" 2>&1; then
    explain "a walk" "$(last)"
    has "a walk" "$out" 'One request, in 5 entries' 'stands in entries of the organisations' 'for the next keys of all resources' 'Released: one key.' 'under the purpose "indexing"'
else
    bad "no walk: $(cat "$work/walk")"
fi

# --- matters ---

agreed purpose enable "$org" ediscovery >/dev/null
service scanner key get "$key" --purpose ediscovery >/dev/null 2>&1 && bad "ediscovery without a matter"
explain "no matter" "$(last)"
has "no matter" "$out" 403007 'the request named no matter'
day() { date -u -d "$1" +%Y-%m-%d; }
"$ctl" --json matter open "$org" "Case 7" --custodian alice --from "$(day '-1 day')" --to "$(day '+2 days')" --expires 12h --kind space >"$work/opened" 2>"$work/err" || bad "no matter: $(cat "$work/err")"
approval=$(jq -r .approval "$work/opened")
matter=$(jq -r '.args.matter // .approval' "$work/opened")
service scanner key get "$key" --purpose ediscovery --matter "$matter" >/dev/null 2>&1 && bad "a matter that waits"
pending=$(last)
explain "a matter that waits" "$pending"
has "a matter that waits" "$out" 403007 'matter "Case 7" was not approved yet' 'kmsctl matter approve'
"$KMSCTL_OFFICER2" approvals approve "$approval" >"$work/agreed" 2>&1 || bad "not approved: $(cat "$work/agreed")"
explain "the refusal, later" "$pending"
has "the refusal, later" "$out" 'Matter "Case 7" was approved at'
service scanner key get "$key" --purpose ediscovery --matter "$matter" >/dev/null || bad "no key under the matter"
under=$(last)
explain "a release under a matter" "$under"
has "a release under a matter" "$out" 'under the matter "Case 7"' 'its custodian alice is authorised on the resource' "inside the matter's window"
service scanner resource keys "$resource" --purpose ediscovery --matter "$matter" >/dev/null || bad "no keys under the matter"

"$ctl" audit key "$org" >"$work/vkey"
check "matter report" 0 "$ctl" matter report "$matter" --out "$work/report"
has "matter report" "$out" 'Case 7' 'scanner' "${key##*/}" "$id" 'Released:' 'Refused:' 403007 'agreed by' 'proven to be in the log'
is "an entry has its proof" "$(ls "$work/report" | grep -c '^entry-[0-9]*\.proof$')" 3
for f in "$work"/report/entry-*.proof; do
    check "a proof is verified" 0 "$ctl" audit verify "$f" --key "$work/vkey"
    has "a proof is of the matter" "$out" "\"matter\":\"$matter\""
    check "not with another log's key" 1 "$ctl" audit verify "$f" --key "$("$ctl" audit key "$KMS_ORG2")"
done
check "matter report for programs" 0 "$ctl" matter report "$matter" --json
is "what it has" "$(jq -c '[.name, .unchanged, (.entries | length), ([.entries[] | select(.verdict == 0) | .keys[]] | length), ([.entries[].proof | startswith("c2sp.org/tlog-proof@v1")] | all), (.approval.votes | length)]' <<<"$out")" \
    '["Case 7",true,3,2,true,2]'
check "of an unknown matter" 1 "$ctl" matter report 11111111-2222-4333-8444-555555555555
has "of an unknown matter" "$err" 'no matter has this id'
"$ctl" matter close "$matter" >/dev/null || bad "the matter stays open"
explain "a release under a closed matter" "$under"
has "a release under a closed matter" "$out" 'Matter "Case 7" was closed at'
service scanner key get "$key" --purpose ediscovery --matter "$matter" >/dev/null 2>&1 && bad "a closed matter"
explain "a closed matter" "$(last)"
has "a closed matter" "$out" 'matter "Case 7" was closed at'

# --- receipts ---

out=$(as alice resource releases "$resource" --json) || bad "no receipts"
is "who got keys" "$(jq -c '[.releases[] | [.by, .name, .purpose, .matter.name]]' <<<"$out")" \
    '[["service","scanner","ediscovery","Case 7"],["service","scanner","ediscovery","Case 7"],["service","scanner","indexing",null],["service","scanner","dlp",null],["officer","olga",null,null]]'
"$KMS_CLIENT" token --subject mallory --org "$org" >"$work/mallory"
as mallory resource releases "$resource" >/dev/null 2>&1 && bad "receipts for strangers"

# --- canaries ---

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=collector.example" \
    -addext "subjectAltName=DNS:collector.example" -keyout "$work/collector.key" -out "$work/collector.pem" 2>/dev/null
chmod 644 "$work/collector.pem"
port=$((20000 + RANDOM % 20000))
node "$top/tests/log/receiver.mjs" $port "$work/collector.pem" "$work/collector.key" "$work/syslog" >"$work/receiver.out" 2>&1 &
receiver=$!
wait_until 10 grep -q ready "$work/receiver.out"
printf '[audit]\nsyslog = 127.0.0.1:%s\nsyslog_name = collector.example\nsyslog_ca = %s\n' $port "$work/collector.pem" >>"$work/server/kms.conf"
"$ctl" reload >/dev/null
sleep 1
keeper() { pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-keeper; }
kill -9 "$(keeper)"
wait_until 30 "$ctl" status --json

canary=$(as alice key create --quiet | head -n 1)
trap_=$(as alice resource create --key-uri "$canary" --auth-id bob --quiet | head -n 1)
"$ctl" canary add "${trap_##*/}" --note "a lure; nobody reads it" >/dev/null || bad "no canary"
sleep 0.1
lines() { cat "$work"/server/log/kmsd* | grep 'ALARM: keys of a canary were retrieved'; }
alarms() { lines | sed -n 's/.* entry=\([0-9]*\).*/\1/p' | sort -u; }
metric() { curl -s "$KMS_METRICS_URL/metrics" | sed -n 's/^kms_canary_retrievals_total //p'; }
alerts() { grep '^<105>1 .* kmsd - canary - ' "$work/syslog" | sed 's/^.* kmsd - canary - //' | jq -r .entry | sort -u; }
n_is() { [ "$("$1" | wc -l)" = "$2" ]; }
as bob key get "$canary" >/dev/null || bad "a canary's key works as usual"
if wait_until 20 n_is alarms 1; then ok; else bad "one alarm in the log: $(lines)"; fi
has "the line says what" "$(lines)" 'level=error' "resource=${trap_##*/}" 'a lure; nobody reads it' "request_id=$(last)" "who=$(sql -c "SELECT person FROM kms.persons WHERE subject = 'bob' AND org_id <> '00000000-0000-0000-0000-000000000000'")"
if wait_until 20 n_is alerts 1; then ok; else bad "one alert to the collector: $(tail -n 3 "$work/syslog")"; fi
is "the metric" "$(metric)" 1
service scanner key get "$canary" --purpose dlp >/dev/null || bad "a canary's key works for services"
as mallory key get "$canary" >/dev/null 2>&1 && bad "mallory has the canary's key"
if wait_until 20 n_is alarms 2; then ok; else bad "two alarms"; fi
has "a service by its name" "$(lines)" 'who=scanner'
# Retrievals while keepers die: one alarm each, none lost, none twice.
for i in 1 2 3 4 5 6; do
    as bob key get "$canary" >/dev/null || bad "retrieval $i"
    kill -9 "$(keeper)" 2>/dev/null
    [ $((i % 2)) = 0 ] || sleep 1.2
done
if wait_until 60 n_is alarms 8; then ok; else bad "alarms after crashes: $(alarms | wc -l), not 8"; fi
if wait_until 60 n_is alerts 8; then ok; else bad "alerts after crashes: $(alerts | wc -l), not 8"; fi
sleep 2
is "the metric after crashes" "$(metric)" 8
is "one alarm an entry" "$(sql -c "SELECT count(*), count(DISTINCT entry_id), count(told_at) FROM kms.canary_alarms")" '8|8|8'
is "and the entries are those" "$(alarms | tr '\n' ' ')" "$(sql -c "SELECT e.entry_id FROM kms.entries e WHERE e.resource_id = '${trap_##*/}' AND e.action = 'key.get' AND e.verdict = 0" | sort -u | tr '\n' ' ')"
"$ctl" canary remove "${trap_##*/}" >/dev/null || bad "the canary stays"
as bob key get "$canary" >/dev/null
sleep 3
is "none after it was removed" "$(alarms | wc -l)" 8

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
