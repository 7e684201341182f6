#!/usr/bin/env bash
# lifecycle.sh - kills the keeper at every step of rotation, import, activation, revocation and destruction, again and again.
#
#   tests/faults/lifecycle.sh [--short] [--kills N] [--seed S]
#
#   --short     each place once
#   --kills N   until so many have died (500); at which of its places an action dies, and how often at each, is chosen at random
#   --seed S    repeats the choices of another run
#
# KMS_BUILD_DIR names a finished build that was configured with --enable-faults (kms/fault.h).  A round is: the root, a wrapping
# key, an organisation with a main key of its own that is then destroyed, commands, keys that end with their month, the old root.
# After each kill all keys are read; after each action every key that was not destroyed is what it was, every destroyed one is
# gone, nothing is half done, and the token holds those keys that it should and no other; after each round all that is stored is
# opened, from a backup.  Every check is a line "ok" or "FAIL"; the last line counts them.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)
. "$top/tests/lib/postgres.sh"
kills=500 short=false seed=
while [ $# -gt 0 ]; do
    case $1 in
    --short) short=true ;;
    --kills) kills=$2 && shift ;;
    --seed) seed=$2 && shift ;;
    *)
        sed -n '4,8s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
    shift
done
[ -n "$seed" ] || seed=$((($(date +%s) ^ $$) % 32768))
RANDOM=$seed
echo "seed $seed"

# The places of each action.  cmk.asked is in a worker, all others are in the keeper.
wk=(rotation.wrapping_key.made rotation.wrapping_key.added rotation.reseal.done rotation.reseal.stored)
root=(rotation.root.naming rotation.root.made rotation.root.sealed rotation.root.opened rotation.root.advanced
    rotation.rewrap.done rotation.rewrap.stored rotation.check.opened rotation.check.done rotation.root.retired)
cmk=(cmk.asked cmk.job.taken cmk.pair.made cmk.import.made cmk.move.one cmk.move.made cmk.job.stored cmk.forgotten cmk.destroy.done
    cmk.destroy.noted)
month=(destroy.period.made destroy.key.made destroy.reseal.made destroy.reseal.stored destroy.period.gone destroy.certificate.signed)
command=(destroy.command.done destroy.certificate.signed destroy.org.forgotten)
all=("${wk[@]}" "${root[@]}" "${cmk[@]}" "${month[@]}" "${command[@]}" rotation.root.destroyed)
missing=$(grep -hoE 'FAULT\("[a-z_.]*"\)' "$top"/kms/*.c | sed 's/.*"\(.*\)".*/\1/' | grep -vxF -f <(printf '%s\n' "${all[@]}"))

work=$(mktemp -d /tmp/kms-faults-lifecycle.XXXXXX)
chmod 755 "$work"
cd "$work" || exit 1
mkdir "$work/died" "$work/left"
KMS_FAULT=$(printf '%s,' "${all[@]}")
export KMS_FAULT KMS_FAULT_DIR=$work/died
# died/PLACE: absent where it is armed, empty where it has killed, "off" else.
for p in "${all[@]}"; do echo off >"$work/died/$p"; done
touch "$work/kills" "$work/reads" "$work/wrong"
passed=0 failed=0 watcher=
ok() { passed=$((passed + 1)) && echo "ok   $*"; }
bad() { failed=$((failed + 1)) && echo "FAIL $*"; }
is() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: \"$2\", not \"$3\""; fi; }
finish() {
    [ -z "$watcher" ] || { kill "$watcher" && wait "$watcher"; } 2>/dev/null
    "$top/kms/quickstart.sh" --stop --dir "$work/kms" >/dev/null 2>&1
    if [ "$failed" = 0 ]; then rm -rf "$work"; else echo "left for a look: $work"; fi
}
trap finish EXIT
is "every place in the source is in a list here" "$missing" ""

"$top/kms/quickstart.sh" --detach --dir "$work/kms" >"$work/quickstart.log" 2>&1 || {
    tail -20 "$work/quickstart.log"
    echo "0 passed, 1 failed"
    exit 1
}
set -a
# shellcheck disable=SC1091
. "$work/kms/env"
set +a
bin=$(pg_bindir)
kmsctl=$(sed -n 's/^exec \([^ ]*kmsctl\) .*/\1/p' "$KMSCTL")
token_pin=$(cat "$work/kms/pin")
module=$(sed -n 's/^module *= *//p' "$work/kms/kms.conf")
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" "${@/#/-c}"; } # STATEMENT...
owner() { sql "SET ROLE kms_owner" "SET search_path = kms, pg_catalog" "$1" >/dev/null; }
wait_for() { # SECONDS SQL: until that is true
    local until=$((SECONDS + $1))
    until [ "$(sql "SELECT $2" 2>"$work/sql.log")" = t ]; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.2
    done
}
# The admin socket goes with the keeper, and comes again with the next; with the same op it is done once.
ctl() {
    local op
    op=$(cat /proc/sys/kernel/random/uuid)
    for _ in $(seq 100); do
        "$KMSCTL" --json --op "$op" "$@" 2>"$work/ctl.log" && return
        grep -qE '503|reached|closed|connect|answer' "$work/ctl.log" || break
        sleep 0.2
    done
    cat "$work/ctl.log" >&2
    return 1
}
agree() { # COMMAND...: asked for by one officer, approved by another
    local id
    id=$(ctl "$@" | jq -r 'select(.state == "pending") | .approval') || return 1
    [ -n "$id" ] || return 0
    for _ in $(seq 100); do
        "$KMSCTL_OFFICER2" --json approvals approve "$id" >/dev/null 2>"$work/ctl.log"
        [ "$(sql "SELECT state FROM kms.approvals WHERE approval_id = '$id'")" = "done" ] && return
        sleep 0.2
    done
    cat "$work/ctl.log" >&2
    return 1
}
# as USER ORG ARGUMENT...
as() {
    [ -s "$work/token-$1-$2" ] || "$KMS_CLIENT" token --subject "$1" --org "$2" --expires-in 86400 >"$work/token-$1-$2"
    "$KMS_CLIENT" --json --token-file "$work/token-$1-$2" --state "$work/state-$1-$2" "${@:3}"
}
values() { as "$1" "$2" resource keys "$3" | jq -S '[.. | objects | select(has("jwk")) | [.uri, .jwk.k]] | sort'; }
uri_of() { jq -r '.. | .resource? // empty | .uri? // empty' | head -1; }
keys_of() { jq -r '.. | .keys? // empty | .[]?.uri? // empty'; }
id_of() { echo "${1##*/}"; }

# --- what is to stay, and what is gone ---

space=$(as alice "$KMS_ORG" resource create --kind meeting --count 50 | uri_of)
for _ in 1 2 3; do as alice "$KMS_ORG" recording create "$space" >/dev/null; done
values alice "$KMS_ORG" "$space" >"$work/before"
is "keys to begin with" "$(jq length "$work/before")" 50
if [ "$failed" -gt 0 ]; then
    echo "$passed passed, $failed failed"
    exit 1
fi
gone=()

kept() {
    values alice "$KMS_ORG" "$space" >"$work/now" 2>"$work/why"
    cmp -s "$work/before" "$work/now" &&
        [ "$(as alice "$KMS_ORG" recording list "$space" | jq '[.. | objects | select(has("message"))] | length')" = 3 ]
}
# Reads all keys all the time, and after each kill, which it counts then; a place that has some left is armed again.  A worker
# that dies takes its connections with it: who had one asks again.
watch_over() {
    local f p n try fired
    while :; do
        fired=()
        for f in "$work"/died/*; do
            [ ! -e "$f" ] || [ -s "$f" ] || fired+=("${f##*/}")
        done
        for try in 1 2 3; do
            "$KMS_CLIENT" --json --token-file "$work/token-alice-$KMS_ORG" --state "$work/state-watch" resource keys "$space" \
                >"$work/answer" 2>"$work/watch.log" && break
            grep -qE '[45][0-9]{5}' "$work/watch.log" && break
        done
        jq -S '[.. | objects | select(has("jwk")) | [.uri, .jwk.k]] | sort' "$work/answer" >"$work/watched" 2>>"$work/watch.log"
        if cmp -s "$work/before" "$work/watched"; then echo "${fired[*]}" >>"$work/reads"; else
            { date && echo "try $try, after ${fired[*]}" && cat "$work/watch.log"; } >>"$work/wrong"
        fi
        for p in "${fired[@]}"; do
            echo "$p" >>"$work/kills"
            # Another keeper takes a job over ten seconds after the last word of one that died, and a move that was not stored
            # is tried again in a minute: here nobody else is there, so there is no need to wait.
            [[ $p != cmk.* ]] || sql "UPDATE kms.main_key_jobs SET claimed_until = clock_timestamp() WHERE claimed_until > clock_timestamp()"
            [[ $p != destroy.* ]] || sql "UPDATE kms.reseals SET next_at = clock_timestamp() WHERE next_at > clock_timestamp() + interval '4 seconds'"
            n=$(($(cat "$work/left/$p") - 1))
            echo $n >"$work/left/$p"
            if [ $n -gt 0 ]; then rm "$work/died/$p"; else echo off >"$work/died/$p"; fi
        done
        sleep 0.2
    done
}
# Of the destroyed ones the last and some others: refused, and no row has a blob.
all_gone() {
    local k list
    [ ${#gone[@]} -gt 0 ] || return 0
    list=$(printf "'%s'," "${gone[@]##*/}")
    [ "$(sql "SELECT count(*) FROM kms.content_keys WHERE key_id IN (${list%,}) AND blob IS NOT NULL")" = 0 ] || return 1
    for k in "${gone[@]: -3}"; do
        ! as alice "$KMS_ORG" key get "$k" >/dev/null 2>"$work/why" && grep -qE '41000|40400' "$work/why" || return 1
    done
}
half="EXISTS (SELECT FROM kms.main_key_jobs)
    OR EXISTS (SELECT FROM kms.main_keys WHERE state = 'IMPORTING')
    OR EXISTS (SELECT FROM kms.rotations WHERE state = 'running')
    OR EXISTS (SELECT FROM kms.roots WHERE state IN ('added', 'verified', 'leaving', 'destroying'))
    OR EXISTS (SELECT FROM kms.period_keys WHERE kcv IS NULL OR (ended_at IS NOT NULL AND destroyed_at IS NULL))
    OR EXISTS (SELECT FROM kms.destructions WHERE state = 'waiting')
    OR EXISTS (SELECT FROM kms.certificates WHERE note IS NULL)
    OR EXISTS (SELECT FROM kms.wrapping_keys w WHERE w.destroyed_at IS NOT NULL AND w.wrapped IS NOT NULL)
    OR EXISTS (SELECT FROM kms.reseals)
    OR EXISTS (SELECT FROM kms.wrapping_keys w WHERE w.destroyed_at IS NULL AND w.root_id <> kms.root_active()
        AND NOT EXISTS (SELECT FROM kms.main_keys m WHERE m.main_key_id = w.root_id AND m.state IN ('ACTIVE', 'REVOKED', 'DISABLED'))
        AND NOT EXISTS (SELECT FROM kms.period_keys p WHERE p.key_id = w.root_id AND p.destroyed_at IS NULL))"
# arm PLACE...: the keeper dies there next time; without --short as often as chance will have it.
armed=()
arm() {
    local n
    for p; do
        n=1
        $short || n=$((RANDOM % 8))
        [ $n -gt 0 ] || continue
        armed+=("$p")
        echo $n >"$work/left/$p"
        rm -f "$work/died/$p"
    done
    begun=$(wc -l <"$work/kills")
}
# Places that an action did not come by, or not so often, are let alone, and the watcher is awaited.
disarm() {
    local p again=true
    while $again; do
        again=false
        for p in "${armed[@]}"; do
            echo 0 >"$work/left/$p"
            (set -C && echo off >"$work/died/$p") 2>/dev/null
            [ -s "$work/died/$p" ] || again=true
        done
        ! $again || sleep 0.1
    done
    armed=()
}
# Which keys are in the token, and which are to be there.
in_token() {
    pkcs11-tool --module "$module" --login --pin "$token_pin" --list-objects --type secrkey 2>/dev/null | sed -n 's/^ *ID: *//p' | sort
}
to_be_there() {
    sql "SELECT replace(x.id::text, '-', '') FROM (SELECT root_id AS id FROM kms.roots WHERE state <> 'destroyed'
        UNION ALL SELECT main_key_id FROM kms.main_keys WHERE destroyed_at IS NULL
        UNION ALL SELECT key_id FROM kms.period_keys WHERE destroyed_at IS NULL) x" | sort
}
# What an action must leave behind.
settle() {
    local n
    wait_for 240 "NOT ($half)"
    disarm
    n=$(($(wc -l <"$work/kills") - begun))
    if ! wait_for 120 "NOT ($half)"; then
        bad "$1: something is half done"
        sql "SELECT * FROM kms.rotations WHERE state = 'running'" "SELECT * FROM kms.reseals LIMIT 3" >&2
    fi
    if kept; then ok "$1, killed $n times: every key is what it was"; else bad "$1: keys are not what they were: $(head -c 300 "$work/why")"; fi
    if all_gone; then ok "$1: what is destroyed is gone"; else bad "$1: what is destroyed is there: $(head -c 300 "$work/why")"; fi
    is "$1: what the token holds" "$(in_token)" "$(to_be_there)"
    echo "     $SECONDS s"
}

# --- the actions ---

do_wrapping_key() {
    local now
    now=$(sql "SELECT generation FROM kms.organisations WHERE name = '$KMS_ORG'")
    arm "${wk[@]}"
    ctl wrapping-key rotate "$KMS_ORG" >/dev/null || bad "wrapping-key rotate"
    wait_for 240 "generation > $now AND EXISTS (SELECT FROM kms.rotations r WHERE r.org_id = o.org_id AND r.to_id = o.generation::text AND r.state = 'done')
        FROM kms.organisations o WHERE name = '$KMS_ORG'" || bad "the wrapping key's rotation does not end"
    settle "wrapping key"
}
do_root() {
    local old
    old=$(sql "SELECT kms.root_active()")
    arm "${root[@]}"
    old_root=$old
    agree root rotate || bad "root rotate"
    wait_for 240 "kms.root_active() <> '$old' AND (SELECT state = 'retired' FROM kms.roots WHERE root_id = '$old')" || bad "the root's rotation does not end"
    old_root_since=$SECONDS
    settle "root"
}
# Workers remember a wrapping key for a minute, which is why an old root cannot be destroyed for two.
do_root_destroy() {
    local old=$old_root
    while [ $((SECONDS - old_root_since)) -lt 65 ]; do sleep 1; done
    arm rotation.root.destroyed
    sql "UPDATE kms.roots SET changed_at = changed_at - interval '3 minutes' WHERE root_id = '$old'"
    agree root destroy "$old" || bad "root destroy"
    wait_for 120 "(SELECT state = 'destroyed' FROM kms.roots WHERE root_id = '$old')" || bad "the old root is not destroyed"
    settle "old root"
}
settled() { wait_for 120 "NOT EXISTS (SELECT FROM kms.main_key_jobs)" || bad "a job does not end: $1"; }
# An organisation of its own, with a main key from import to deletion; at the end it is destroyed.
do_main_key() {
    local org=byok-$1 mine theirs key pem=$work/public.pem
    ctl org add "$org" >/dev/null || bad "org add"
    theirs=$(as eve "$org" resource create --kind meeting --count 10 | uri_of)
    values eve "$org" "$theirs" >"$work/theirs"
    is "another organisation's keys" "$(jq length "$work/theirs")" 10
    mine=$(sql "SELECT jsonb_build_object('assignedOrgId', org_id) FROM kms.organisations WHERE name = '$org'")
    "$KMS_CLIENT" token --subject admin --org "$org" --role id_full_admin --expires-in 86400 >"$work/token-admin-$org"
    arm "${cmk[@]}"
    for _ in $(seq 20); do
        as admin "$org" request retrieve /publicKey "$mine" 2>"$work/why" | jq -r '.. | .publicKey? // empty' |
            sed 's/-----BEGIN PUBLIC KEY-----/&\n/; s/-----END/\n&/' | sed '/^$/d' | fold -w 64 >"$pem" && grep -q BEGIN "$pem" && break
        sleep 0.5
    done
    settled pair
    openssl rand 32 | openssl pkeyutl -encrypt -pubin -inkey "$pem" -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -out "$work/key.enc" || bad "openssl"
    agree cmk import "$org" "$work/key.enc" || bad "cmk import"
    settled import
    key=$(sql "SELECT m.main_key_id FROM kms.main_keys m JOIN kms.organisations o USING (org_id) WHERE o.name = '$org' AND m.state = 'PENDING'")
    agree cmk activate "$org" "$key" || bad "cmk activate"
    settled activation
    is "all of it is under its main key" "$(sql "SELECT string_agg(DISTINCT w.root_id::text, ' ') FROM kms.wrapping_keys w JOIN kms.organisations o USING (org_id) WHERE o.name = '$org'")" "$key"
    values eve "$org" "$theirs" | cmp -s "$work/theirs" && ok "and opens" || bad "what is under a main key does not open"
    ctl cmk revoke "$org" >/dev/null || bad "cmk revoke"
    as eve "$org" resource keys "$theirs" >/dev/null 2>"$work/why"
    is "revoked: refused" "$(grep -o 405005 "$work/why" | head -1)" 405005
    agree cmk activate "$org" "$key" || bad "cmk activate again"
    values eve "$org" "$theirs" | cmp -s "$work/theirs" && ok "active again: it opens" || bad "what was revoked does not open again"
    agree cmk delete "$org" || bad "cmk delete"
    settled deletion
    sql "UPDATE kms.main_keys SET used_until = used_until - interval '3 minutes', state_at = state_at - interval '3 minutes'"
    wait_for 120 "NOT EXISTS (SELECT FROM kms.main_keys WHERE destroyed_at IS NULL)" || bad "a main key does not leave the HSM"
    values eve "$org" "$theirs" | cmp -s "$work/theirs" && ok "back under the root: it opens" || bad "what is back under the root does not open"
    settle "main key"

    arm "${command[@]}"
    local doomed
    doomed=$(as alice "$KMS_ORG" resource create --count 2)
    agree resource destroy "$(id_of "$(uri_of <<<"$doomed")")" >/dev/null || bad "resource destroy"
    agree org destroy "$org" >/dev/null || bad "org destroy"
    wait_for 120 "NOT EXISTS (SELECT FROM kms.destructions WHERE state = 'waiting')" || bad "a command is not done"
    mapfile -t -O ${#gone[@]} gone < <(keys_of <<<"$doomed")
    as eve "$org" resource keys "$theirs" >/dev/null 2>&1 && bad "a destroyed organisation's keys are there"
    is "nothing of it opens" "$(sql "SELECT count(*) FROM kms.wrapping_keys w JOIN kms.organisations o USING (org_id) WHERE o.name = '$org' AND w.wrapped IS NOT NULL")" 0
    settle "commands"
}
# Keys that end in a month of their own, far enough away from other rounds', which then is over.
do_month() {
    local days=$((20 + 40 * $1)) early ending
    arm "${month[@]}"
    early=$(as alice "$KMS_ORG" key create | grep -o "kms://[^\"]*/keys/[0-9a-f-]*" | head -n 1)
    ending=$(as alice "$KMS_ORG" resource create --kind meeting --count 5 --ttl $((days * 86400)))
    as alice "$KMS_ORG" key bind "$early" "$(uri_of <<<"$ending")" >/dev/null || bad "key bind"
    wait_for 120 "generation >= 1000000000 FROM kms.content_keys WHERE key_id = '$(id_of "$early")'" || bad "a key that ends is not under its month's"
    is "what ends opens until then" "$(values alice "$KMS_ORG" "$(uri_of <<<"$ending")" | jq length)" 6
    owner "CREATE OR REPLACE FUNCTION wall() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RETURN clock_timestamp() + interval ''$((days + 40)) days''; END'"
    wait_for 60 "bool_or(held) FROM kms.clocks" || bad "the keeper does not notice that the clock has jumped"
    agree retention confirm-clock || bad "confirming the clock"
    wait_for 180 "NOT EXISTS (SELECT FROM kms.period_keys WHERE destroyed_at IS NULL AND month < date_trunc('month', kms.wall()))" ||
        bad "the month's period key is still there"
    mapfile -t -O ${#gone[@]} gone < <(echo "$early" && keys_of <<<"$ending")
    # What the sweep had not come to when the month ended is under the present month's until it comes.
    wait_for 120 "NOT EXISTS (SELECT FROM kms.content_keys WHERE blob IS NOT NULL AND resource_id = '$(id_of "$(uri_of <<<"$ending")")')" ||
        bad "what ended with the month is still there"
    wait_for 60 "NOT ($half)" || bad "the month is half done"
    owner "CREATE OR REPLACE FUNCTION wall() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RETURN clock_timestamp(); END'"
    settle "month"
}

# --- the run ---

watch_over &
watcher=$!
round=0
while :; do
    round=$((round + 1))
    do_root
    do_wrapping_key
    do_main_key $round
    do_month $round
    do_root_destroy
    "$bin/pg_dump" -Fc -f "$work/dump" "$KMS_DATABASE_URL"
    out=$("$kmsctl" restore check --backup "$work/dump" --sample 10000 --config "$work/kms/kms.conf" --json 2>"$work/why")
    is "round $round: all that is stored opens" "$? $(jq -c '[.good, .keys == .keys_tried, .recordings, .destroyed]' <<<"$out")" "0 [true,true,3,0]"
    dead=$(wc -l <"$work/kills")
    echo "     $dead kills after $SECONDS s"
    if $short || [ "$dead" -ge "$kills" ] || [ "$failed" -gt 0 ]; then break; fi
done
kill $watcher && wait $watcher 2>/dev/null
watcher=
is "all keys were read $(wc -l <"$work/reads") times, after each of $(wc -w <"$work/reads") kills, and were what they are" "$(cat "$work/wrong")" ""
for p in $(printf '%s\n' "${all[@]}" | sort -u); do
    n=$(grep -cxF "$p" "$work/kills")
    if [ "$n" -gt 0 ]; then ok "killed at $p: $n"; else bad "never killed at $p"; fi
done
is "the server is ready" "$("$KMSCTL" --json status | jq -r .ready)" true
$short || [ "$failed" -gt 0 ] || is "as many kills as were asked for" "$((dead >= kills))" 1
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
