# suite_races.sh - two at the same time: who is first wins, the other gets the right answer.  Part of run.sh.

sql postgres -c "CREATE DATABASE races TEMPLATE fresh"
sql races -f "$here/races.psql" >/dev/null

# first STATEMENT [SECONDS]: runs it in a transaction that stays open until the second one waits for it or is through, or for so
# long; returns when it has done its work.
first() {
    local hold="\\! until [ -e '$dir/go' ]; do sleep 0.01; done"
    [ $# -lt 2 ] || hold="SELECT pg_sleep($2) \gset"
    rm -f "$dir/go"
    (sql races >"$dir/first" 2>&1 <<SQL
BEGIN;
SET application_name = 'first';
$1;
SELECT true AS held \gset
$hold
COMMIT;
SQL
    ) &
    first_pid=$!
    for _ in $(seq 500); do
        [ -n "$(sql races -c "SELECT 1 FROM pg_stat_activity WHERE application_name = 'first' AND (query LIKE '%pg_sleep%' AND state = 'active'
                              OR query LIKE '%AS held%' AND state = 'idle in transaction')")" ] && return
        sleep 0.02
    done
    fail "the first transaction did not start: $(cat "$dir/first")"
}
# second STATEMENT: meanwhile; then waits for both.  Its output, and the first's, are in $second and $first.
second() {
    local pid
    PGAPPNAME=second sql races -v VERBOSITY=sqlstate -c "$1" >"$dir/second" 2>&1 &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ -z "$(sql races -c "SELECT 1 FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'")" ]; do
        sleep 0.02
    done
    touch "$dir/go"
    wait $pid $first_pid
    second=$(cat "$dir/second")
    first=$(cat "$dir/first")
}
race() { # WHAT FIRST SECOND WANT_FIRST WANT_SECOND
    first "$2"
    second "$3"
    is "$1 (first)" "$first" "$4"
    is "$1 (second)" "$second" "$5"
}

r1=$(sql races -c "SELECT race.resource('alice')")
r2=$(sql races -c "SELECT race.resource('alice')")
sql races -c "SELECT race.keys('alice', '{k1,k2,k3,k4,k5,k6}')" >/dev/null
race "one key to two resources" "SELECT race.bind('alice', '{k1}', '{$r1}')" "SELECT race.bind('alice', '{k1}', '{$r2}')" 0 409001
is "it is bound to the first" "$(sql races -c "SELECT resource_id FROM kms.content_keys WHERE key_id = race.id('k1')")" "$r1"
race "one key to one resource twice" "SELECT race.bind('alice', '{k2}', '{$r1}')" "SELECT race.bind('alice', '{k2}', '{$r1}')" 0 0
race "one key, bound and taken into a new resource" "SELECT race.bind('alice', '{k3}', '{$r1}')" \
    "SELECT verdict FROM race.ask('resource_create', 'alice', jsonb_build_object('keys', jsonb_build_array(race.id('k3'))))" 0 409001

grant="SELECT result -> 'authorizations' -> 0 ->> 'id' FROM race.ask('authorizations_create', 'alice', race.users('$r1', 'carol'))"
first "$grant"
second "$grant"
is "one user granted twice at once is one authorisation" "$first" "$second"
is "and one row" "$(sql races -c "SELECT count(*) FROM kms.authorizations WHERE grantee = 'carol'")" 1
remove="SELECT verdict FROM race.ask('authorizations_delete', 'alice', race.users('$r1', 'carol'))"
race "one authorisation removed twice" "$remove" "$remove" 0 404001

sql races -c "SELECT verdict FROM race.ask('authorizations_create', 'alice', race.users('$r1', 'bob'))" >/dev/null
race "who is being removed grants" "SELECT verdict FROM race.ask('authorizations_delete', 'alice', race.users('$r1', 'bob'))" \
    "SELECT verdict FROM race.ask('authorizations_create', 'bob', race.users('$r1', 'mallory'))" 0 403001

# The same operation, while its first run is not committed yet: again later, and then the first's answer.
race "an operation beside its own first run: keys" "SELECT race.keys('alice', '{o1}', 'op1')" "SELECT race.keys('alice', '{o1}', 'op1')" 0 "ERROR:  40001"
is "run again" "$(sql races -c "SELECT race.keys('alice', '{o1}', 'op1')")" 0
race "an operation beside its own first run: bind" "SELECT race.bind('alice', '{k4}', '{$r1}', 'op2')" "SELECT race.bind('alice', '{k4}', '{$r1}', 'op2')" 0 0
race "an operation beside its own first run: release" "SELECT race.get('alice', 'k1', 'op3')" "SELECT race.get('alice', 'k1', 'op3')" 0 0
is "one entry each" "$(sql races -c "SELECT count(*) FROM kms.entries WHERE op_id IN (race.id('op1'), race.id('op21'), race.id('op3'))")" 3

# The sweeper against everybody.
race "two sweepers" "SELECT kms.sweep(10) ->> 'keys'" "SELECT kms.sweep(10) ->> 'keys'" 0 0
r3=$(sql races -c "SELECT race.resource('alice', '{k5}', 1500)")
first "SELECT race.bind('alice', '{k6}', '{$r3}')" 2.5
sleep 1.6
second "SELECT kms.sweep(10)"
is "a resource that is just being bound to is left for the next round" "$(printf '%s' "$second" | grep -o '"resources": 0')" '"resources": 0'
is "and then goes with that key" "$(sql races -c "SELECT kms.sweep(10)")" '{"keys": 2, "proofs": 0, "channels": 0, "resources": 1, "recordings": 0, "unbound_keys": 0}'
is "no key of a destroyed resource keeps its blob" "$(sql races -c "SELECT count(*) FROM kms.content_keys WHERE resource_id = '$r3' AND blob IS NOT NULL")" 0
r4=$(sql races -c "SELECT race.resource('alice', '{}', 1)")
sleep 0.01
race "a grant beside the destruction" "SELECT kms.sweep(10) ->> 'resources'" "SELECT verdict FROM race.ask('authorizations_create', 'alice', race.users('$r4', 'bob'))" 1 410001

# The keeper's own.
add="(gen_random_uuid(), race.id('acme'), 2, race.id('root'), race.bytes(40), race.bytes(8), 'keeper')"
race "two nodes renew a wrapping key" "SELECT verdict FROM kms.wrapping_key_add$add" "SELECT verdict FROM kms.wrapping_key_add$add" 0 409002
is "two generations" "$(sql races -c "SELECT count(*) FROM kms.wrapping_keys")" 2
race "two nodes record a root" "SELECT kms.root_add(race.id('root'), race.bytes(8), race.bytes(40), race.bytes(61), 'keeper')" \
    "SELECT kms.root_add(race.id('root2'), race.bytes(8), race.bytes(40), race.bytes(61), 'keeper')" 0 409002
race "two organisations of one name" "SELECT verdict FROM kms.org_add(gen_random_uuid(), 'new', race.id('n1'), 1, race.id('root'), race.bytes(40), race.bytes(8), 'root')" \
    "SELECT verdict FROM kms.org_add(gen_random_uuid(), 'new', race.id('n2'), 1, race.id('root'), race.bytes(40), race.bytes(8), 'root')" 0 409002

sql races -c "UPDATE kms.organisations SET generation = 1 WHERE name = 'acme'"

# Officers.
propose() { sql races -c "SELECT race.propose($1)"; }
state() { sql races -c "SELECT state || ' ' || (SELECT count(*) FROM kms.approval_votes v WHERE v.approval_id = a.approval_id) FROM kms.approvals a WHERE approval_id = '$1'"; }
id=$(propose "'purpose.enable', '{\"org\":\"acme\",\"purpose\":\"dlp\"}', 2, 3")
race "two officers approve at once what one of them would do for" "SELECT race.approve('$id', 2)" "SELECT race.approve('$id', 3)" "0 done" 409002
is "it was done once" "$(state "$id") $(sql races -c "SELECT count(*) FROM kms.entries WHERE action = 'purpose.enable' AND verdict = 0")" "done 2 1"
id=$(propose "'purpose.enable', '{\"org\":\"acme\",\"purpose\":\"indexing\"}', 2, 3, 4")
race "two officers approve at once what needs both" "SELECT race.approve('$id', 2)" "SELECT race.approve('$id', 3)" "0 pending" "0 done"
is "three votes" "$(state "$id")" "done 3"
id=$(propose "'purpose.enable', '{\"org\":\"acme\",\"purpose\":\"archival\"}', 2, 3, 4")
race "one officer under two names at once" "SELECT race.approve('$id', 2, 'bea')" "SELECT race.approve('$id', 2, 'bob')" "0 pending" 403004
is "one vote of his" "$(state "$id")" "pending 2"
reject="SELECT verdict FROM kms.approval_reject(gen_random_uuid(), '$id', 'officer', 4, NULL)"
race "an approval before a rejection" "SELECT race.approve('$id', 3)" "$reject" "0 done" 409002
is "it is done" "$(state "$id")" "done 3"
id=$(propose "'purpose.enable', '{\"org\":\"acme\",\"purpose\":\"transcoding\"}', 2, 3")
reject="SELECT verdict FROM kms.approval_reject(gen_random_uuid(), '$id', 'officer', 4, NULL)"
race "a rejection before an approval" "$reject" "SELECT race.approve('$id', 3)" 0 409002
is "it is not done" "$(state "$id") $(sql races -c "SELECT count(*) FROM kms.purposes WHERE purpose = 'transcoding'")" "rejected 1 0"
soon() { sql races -c "SET session_replication_role = replica" -c "UPDATE kms.approvals SET expires_at = clock_timestamp() + interval '$2' WHERE approval_id = '$1'"; }
id=$(propose "'purpose.enable', '{\"org\":\"acme\",\"purpose\":\"transcoding\"}', 2, 3")
soon "$id" 1s
first "SELECT race.approve('$id', 2)" 1.5
sleep 1
second "SELECT kms.approvals_expire()"
is "who votes in time is not swept away" "$first $second $(state "$id")" "0 done 0 done 2"
id=$(propose "'audit.suspend', '{}', 2, 3")
soon "$id" 0s
race "an approval beside its expiry" "SELECT kms.approvals_expire()" "SELECT race.approve('$id', 2)" 1 409002
is "it has expired" "$(state "$id")" "expired 1"
id=$(propose "'audit.suspend', '{}', 2, 3")
race "an operation beside its own first run: approve" "SELECT race.approve('$id', 2, 'officer', 'vote')" "SELECT race.approve('$id', 2, 'officer', 'vote')" "0 done" "0 done"
race "an operation beside its own first run: propose" "SELECT race.act('key.destroy', jsonb_build_object('key', race.id('k1')), 'ask')" \
    "SELECT race.act('key.destroy', jsonb_build_object('key', race.id('k1')), 'ask')" 0 "ERROR:  40001"
is "run again" "$(sql races -c "SELECT race.act('key.destroy', jsonb_build_object('key', race.id('k1')), 'ask')")" 0

# What is looked at is changed meanwhile.
id=$(propose "'service.add', race.service('scan'), 2, 3")
race "two registrations of one name" "SELECT race.approve('$id', 2)" "SELECT race.act('service.add', race.service('scan', 7))" "0 done" 0
id=$(propose "'service.change', race.service('scan', 2), 2, 3")
id2=$(propose "'service.change', race.service('scan', 3), 2, 3")
race "two changes of what both officers saw" "SELECT race.approve('$id', 2)" "SELECT race.approve('$id2', 3)" "0 done" 409002
is "the first holds" "$(sql races -c "SELECT rate FROM kms.services WHERE service = 'scan'")" 2
id=$(propose "'matter.open', race.matter('one'), 2, 3")
close="SELECT race.act('matter.close', jsonb_build_object('matter', '$id'))"
race "a matter approved, then closed at once" "SELECT race.approve('$id', 2)" "$close" "0 done" 0
is "it is closed" "$(sql races -c "SELECT kms.matter_show('$id') ->> 'state'")" closed
id=$(propose "'matter.open', race.matter('two'), 2, 3")
close="SELECT race.act('matter.close', jsonb_build_object('matter', '$id'))"
race "a matter closed while it is being approved" "$close" "SELECT race.approve('$id', 2)" 0 409002
is "it never opened" "$(sql races -c "SELECT (kms.matter_show('$id') ->> 'state') || ' ' || (SELECT count(*) FROM kms.entries WHERE action = 'matter.open' AND verdict = 0 AND matter_id = '$id')")" "closed 0"

# A change of rules waits for the releases under the old ones, and those after it for the change.
first "SELECT kms.policy_share()" 2
second "SET lock_timeout = '100ms'; SELECT race.act('purpose.disable', '{\"org\":\"acme\",\"purpose\":\"dlp\"}')"
is "a purpose is not turned off while somebody releases" "$second" "ERROR:  55P03"
race "somebody releases while a purpose is turned off" "SELECT race.act('purpose.disable', '{\"org\":\"acme\",\"purpose\":\"dlp\"}')" \
    "SELECT kms.policy_share(); SELECT enabled FROM kms.purposes WHERE purpose = 'dlp'" 0 "
f"

# Destruction, without a waiting period, against who binds.
sql races -c "SELECT kms.destruction_waiting(0)" >/dev/null
r5=$(sql races -c "SELECT race.resource('alice')")
sql races -c "SELECT race.keys('alice', '{d1,d2,d3}')" -c "SELECT race.bind('alice', '{d1}', '{$r5}')" >/dev/null
id=$(propose "'resource.destroy', jsonb_build_object('resource', '$r5'), 2, 3")
race "a key is bound to what is being destroyed" "SELECT race.approve('$id', 2)" "SELECT race.bind('alice', '{d2}', '{$r5}')" "0 done" 410001
r6=$(sql races -c "SELECT race.resource('alice')")
id=$(propose "'resource.destroy', jsonb_build_object('resource', '$r6'), 2, 3")
race "what a key is being bound to is destroyed" "SELECT race.bind('alice', '{d3}', '{$r6}')" "SELECT race.approve('$id', 2)" 0 "0 done"
is "nothing of either is left" "$(sql races -c "SELECT count(*), count(k.blob) FROM kms.content_keys k WHERE resource_id IN ('$r5', '$r6')")" "2|0"
is "and each is on record" "$(sql races -c "SELECT count(*) FROM kms.entries e CROSS JOIN unnest(e.key_ids) WHERE e.action = 'resource.destroy' AND e.kind = 'operator' AND e.resource_id IN ('$r5', '$r6')")" 2

# Keys that are made against who is taken away, and against each other.
sql races -c "INSERT INTO kms.settings VALUES (race.id('acme'), 'rotate.removal', 'on', now())"
r7=$(sql races -c "SELECT race.resource('alice')")
sql races -c "SELECT race.rotate('alice', '{e0}', '{$r7}')" -c "SELECT race.keys('bob', '{e1,e2}')" >/dev/null
in="SELECT verdict FROM race.ask('authorizations_create', 'alice', race.users('$r7', 'bob'))"
out() { echo "SELECT verdict FROM race.ask('authorizations_delete', 'alice', race.users('$r7', 'bob') || jsonb_build_object('new_keys', jsonb_build_array(race.new_key('$1'))))"; }
sql races -c "$in" >/dev/null
race "who is being taken away binds a key" "$(out e3)" "SELECT race.bind('bob', '{e1}', '{$r7}')" 0 403001
sql races -c "$in" >/dev/null
race "who has just bound a key is taken away" "SELECT race.bind('bob', '{e1}', '{$r7}')" "$(out e4)" 0 0
is "the active key is not his" "$(sql races -c "SELECT race.active('$r7', 'e0', 'e1', 'e3', 'e4')")" e4
sql races -c "$in" >/dev/null
race "who is being taken away makes a key" "$(out e5)" "SELECT race.rotate('bob', '{e6}', '{$r7}')" 0 403001
sql races -c "$in" >/dev/null
race "who has just made a key is taken away" "SELECT race.rotate('bob', '{e6}', '{$r7}')" "$(out e7)" 0 0
is "the active key is not his either" "$(sql races -c "SELECT race.active('$r7', 'e5', 'e6', 'e7')")" e7
race "two make a key" "SELECT race.rotate('alice', '{e8}', '{$r7}')" "SELECT race.rotate('alice', '{e9}', '{$r7}')" 0 0
is "the second is active" "$(sql races -c "SELECT race.active('$r7', 'e8', 'e9')")" e9
race "an operation beside its own first run: a key is made" "SELECT race.rotate('alice', '{e10}', '{$r7}', 'ro')" "SELECT race.rotate('alice', '{e10}', '{$r7}', 'ro')" 0 0
is "one entry and one key" "$(sql races -c "SELECT (SELECT count(*) FROM kms.entries WHERE op_id = race.id('ro1')) + (SELECT count(*) FROM kms.content_keys WHERE key_id = race.id('e10'))")" 2

# The same through what is open to it.
r9=$(sql races -c "SELECT race.resource('alice')")
r10=$(sql races -c "SELECT race.resource('alice')")
opened() { echo "SELECT verdict FROM race.ask('authorizations_create', 'alice', jsonb_build_object('resource', '$1', 'auths', jsonb_build_array(jsonb_build_object('kind', 'resource', 'grantee', '$r7'))))"; }
both() { echo "SELECT verdict FROM race.ask('authorizations_delete', 'alice', race.users('$r7', 'bob') || jsonb_build_object('new_keys', jsonb_build_array(race.new_key('$1'), race.new_key('$2'))))"; }
sql races -c "SELECT race.rotate('alice', '{f0}', '{$r9}')" -c "SELECT race.rotate('alice', '{f9}', '{$r10}')" -c "$(opened "$r9")" -c "$in" >/dev/null
race "who is being taken out of a space makes a key of what is open to it" "$(both f1 f2)" "SELECT race.rotate('bob', '{f3}', '{$r9}')" 0 403001
sql races -c "$in" >/dev/null
race "who has just made a key of what is open to a space is taken out of that" "SELECT race.rotate('bob', '{f3}', '{$r9}')" "$(both f4 f5)" 0 0
is "the active key is not his there" "$(sql races -c "SELECT race.active('$r9', 'f0', 'f2', 'f3', 'f5')")" f5
sql races -c "$in" >/dev/null
race "something is opened to a space while somebody is taken out" "$(opened "$r10")" "$(both f6 f7)" 0 -2
race "and the other way" "SELECT verdict FROM race.ask('authorizations_delete', 'alice', race.users('$r7', 'bob') || jsonb_build_object('new_keys', jsonb_build_array(race.new_key('f6'), race.new_key('f7'), race.new_key('f8'))))" \
    "$(opened "$r10")" 0 0
sql races -c "DELETE FROM kms.settings WHERE name = 'rotate.removal'"

# Recordings against destruction, and against who holds them.
sql races -c "SELECT race.record('alice', '$r7', v) FROM unnest('{v1,v2}'::text[]) v" >/dev/null
forget() { echo "SELECT verdict FROM race.ask('recording_delete', 'alice', jsonb_build_object('recording', race.id('$1')))"; }
race "one recording deleted twice" "$(forget v1)" "$(forget v1)" 0 410001
race "a recording changed while it is deleted" "$(forget v2)" "SELECT verdict FROM race.ask('recording_update', 'alice', jsonb_build_object('recording', race.id('v2'), 'loc', 'x'))" 0 410001
is "nothing of it is left" "$(sql races -c "SELECT num_nonnulls(blob, iv, aad, loc, tag) FROM kms.recordings WHERE recording_id = race.id('v2')")" 0
sql races -c "SELECT race.record('alice', '$r7', 'v3')" >/dev/null
id=$(propose "'matter.open', race.matter('hold') || '{\"custodians\":[\"alice\"],\"to\":99999999999999}', 2, 3")
race "a recording deleted while a matter is opened that holds it" "SELECT race.approve('$id', 2)" "$(forget v3)" "0 done" 409002
close="SELECT race.act('matter.close', jsonb_build_object('matter', '$id'))"
race "and while it is closed" "$close" "$(forget v3)" 0 0
id=$(propose "'resource.destroy', jsonb_build_object('resource', '$r7'), 2, 3")
race "a recording of what is being destroyed" "SELECT race.approve('$id', 2)" "SELECT race.record('alice', '$r7', 'v4')" "0 done" 410001

# An organisation is locked when nobody releases any more.
r8=$(sql races -c "SELECT race.resource('alice')")
sql races -c "SELECT race.rotate('alice', '{g1}', '{$r8}')" >/dev/null
lock="SELECT kms.policy_lock(); UPDATE kms.organisations SET locked = 405005"
first "SELECT race.get('alice', 'g1')" 2
second "SET lock_timeout = '100ms'; $lock"
is "not while a key is released" "$first $second" "0 ERROR:  55P03"
for what in "race.get('alice', 'g1')" "race.keys('alice', '{g2}')" "race.rotate('alice', '{g3}', '{$r8}')" "race.record('alice', '$r8', 'g4')"; do
    race "locked beside $what" "$lock" "SELECT $what" "" 405005
    sql races -c "UPDATE kms.organisations SET locked = 0"
done

# Services: rules, breadth, proofs and certificates against each other.
sql races -c "SELECT kms.wrapping_key_add(gen_random_uuid(), kms.nobody(), 1, race.id('root'), race.bytes(40), race.bytes(8), 'keeper')" -c "SELECT race.scanner('walker')" \
    -c "SELECT race.scanner('narrow', 1)" >/dev/null
sql races -c "SELECT race.keys('alice', '{b1,b2,b3}')" >/dev/null
s1=$(sql races -c "SELECT race.resource('alice', '{b1}')")
s2=$(sql races -c "SELECT race.resource('alice', '{b2}')")
off="SELECT race.act('purpose.disable', '{\"org\":\"acme\",\"purpose\":\"indexing\"}')"
first "SELECT race.sget('walker', 'b1')" 2
second "SET lock_timeout = '100ms'; $off"
is "a purpose stays on while a key is released under it" "$first $second" "0 ERROR:  55P03"
race "a release that begins while its purpose is turned off" "$off" "SELECT race.sget('walker', 'b1')" 0 403005
sql races -c "UPDATE kms.purposes SET enabled = true"
race "breadth: two resources at once where one more may be" "SELECT race.sget('narrow', 'b1')" "SELECT race.sget('narrow', 'b2')" 0 429001
race "breadth: a resource twice at once" "SELECT race.sget('narrow', 'b1')" "SELECT race.sget('narrow', 'b1')" 0 0
race "an operation beside its own first run: release to a service" "SELECT race.sget('walker', 'b1', 'so1')" "SELECT race.sget('walker', 'b1', 'so1')" 0 0
is "one entry" "$(sql races -c "SELECT count(*) FROM kms.entries WHERE op_id = race.id('so1')")" 1
race "an operation beside its own first run: a walk" "SELECT count(*) FROM race.serve('walker', 'purpose.keys', NULL, 2, NULL, 'so2')" \
    "SELECT count(*) FROM race.serve('walker', 'purpose.keys', NULL, 2, NULL, 'so2')" 2 "ERROR:  40001"
is "run again" "$(sql races -c "SELECT count(*) FROM race.serve('walker', 'purpose.keys', NULL, 2, NULL, 'so2')")" 2
race "one proof twice at once" "SELECT race.open('walker', 'j1', 'p1')" "SELECT race.open('walker', 'j1', 'p2')" 0 401001
revoke="SELECT kms.certificates_revoked(ARRAY[sha256('ca')], ARRAY['r1'::bytea], 'crl', 'keeper')"
race "a certificate is revoked while a channel is opened with it" "SELECT race.open('walker', NULL, 'p3', 'r1')" "$revoke" 0 1
is "the channel is gone" "$(sql races -c "SELECT found FROM kms.channels_open(ARRAY[race.id('channel p3')])")" f
race "a channel is opened while its certificate is revoked" "${revoke/r1/r2}" "SELECT race.open('walker', NULL, 'p4', 'r2')" 1 401001

# Walks against binds: what commits late is not passed over, and nothing comes twice.
# To the walk's present end.
catch_up() {
    for _ in $(seq 200); do
        [ "$(sql races -c "SELECT race.follow('walker', 500)")" = 0 ] && return
    done
    fail "the walk does not end"
}
catch_up
walked=$(sql races -c "SELECT count(*) FROM race.walked")
is "a walk has seen every key that is bound and there" "$walked" "$(sql races -c "SELECT count(*) FROM kms.content_keys k JOIN kms.resources r USING (org_id, resource_id)
    WHERE k.blob IS NOT NULL AND r.destroyed_at IS NULL AND (r.expires_at IS NULL OR r.expires_at > now())")"
sql races -c "SELECT race.keys('alice', '{w1,w2}')" >/dev/null
first "SELECT race.bind('alice', '{w1}', '{$s1}')" 1
second "SELECT race.bind('alice', '{w2}', '{$s1}'); SELECT race.follow('walker')"
is "what was bound later waits for what was bound sooner" "$(echo $second)" "0 0"
is "then both come" "$(sql races -c "SELECT race.follow('walker')")" 2
is "in their order" "$(sql races -c "SELECT string_agg(CASE key WHEN race.id('w1') THEN 'w1' ELSE 'w2' END, ' ' ORDER BY ctid) FROM race.walked WHERE key IN (race.id('w1'), race.id('w2'))")" "w1 w2"
cat >"$dir/bind.sql" <<'SQL'
\set key random(1, 2000000000)
\set ms random(0, 40)
BEGIN;
SELECT race.keys('alice', ARRAY['y' || :client_id || '.' || :key, 'z' || :client_id || '.' || :key]);
SELECT race.bind('alice', ARRAY['y' || :client_id || '.' || :key, 'z' || :client_id || '.' || :key], ARRAY[:s1, :s2]::uuid[]);
\sleep :ms ms
COMMIT;
SQL
sql races -c "DELETE FROM race.walked"
"$(pg_bindir)/pgbench" -n -c 8 -j 1 -T 4 -D s1="'$s1'" -D s2="'$s2'" -f "$dir/bind.sql" "$(pg_url "$dir" races)" >"$dir/bind.log" 2>&1 &
binders=$!
while kill -0 $binders 2>/dev/null; do sql races -c "SELECT race.follow('walker', 7)" >/dev/null; done
wait $binders
is "binders: no error" "$? $(grep -c ERROR "$dir/bind.log")" "0 0"
catch_up
is "a walk beside many binds: each key once" "$(sql races -c "SELECT count(*) - count(DISTINCT key) FROM race.walked")" 0
is "and all of them" "$(sql races -c "SELECT count(*) FROM race.walked")" "$(sql races -c "SELECT sum(cardinality(e.key_ids)) FROM kms.entries e
    WHERE e.action = 'key.bind' AND e.verdict = 0 AND e.entry_id > (SELECT max(entry_id) FROM kms.entries WHERE key_ids = ARRAY[race.id('w2')] AND action = 'key.bind')")"

# Main keys: who releases ends before a key is revoked; who comes after sees it; wrapping keys are moved all or not at all.
sql races -c "SELECT race.main_key('PENDING')" >/dev/null
sql races -c "SELECT race.become('ACTIVE', 'activate')" >/dev/null
job=$(sql races -c "SELECT race.job()")
next=3     # two nodes made the second
sql races -c "UPDATE kms.organisations SET generation = 2 WHERE name = 'acme'"
add="SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), race.id('acme'), $next, race.id('root'), race.bytes(40), race.bytes(8), 'keeper')"
race "a wrapping key is renewed beside an activation" "$add" "SELECT race.moved('$job')" 0 -1
is "none has moved" "$(sql races -c "SELECT count(*) FROM kms.wrapping_keys WHERE root_id = race.id('main key')")" 0
job=$(sql races -c "SELECT race.job()")
next=$((next + 1))
add="SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), race.id('acme'), $next, race.id('root'), race.bytes(40), race.bytes(8), 'keeper')"
race "an activation beside a renewal under the root" "SELECT race.moved('$job')" "$add" 0 409002
is "all have moved" "$(sql races -c "SELECT count(*) FROM kms.wrapping_keys WHERE org_id = race.id('acme') AND root_id <> race.id('main key')")" 0
race "a job ended twice" "SELECT race.moved('$job')" "SELECT race.moved('$job')" 0 0
race "a release beside a revocation" "SELECT race.get('alice', 'k1')" "SELECT race.become('REVOKED')" 0 0
race "a revocation beside a release" "SELECT race.become('ACTIVE')" "SELECT race.become('REVOKED')" 0 0
race "whoever waits for a revocation sees it" "SELECT race.become('ACTIVE')" "SELECT race.get('alice', 'k1')" 0 0
race "and a release that came meanwhile" "SELECT race.become('REVOKED')" "SELECT race.get('alice', 'k1')" 0 405005
first "SELECT race.get('alice', 'k1')" 1
began=$(date +%s%N)
second "SELECT race.become('ACTIVE')"
[ $((($(date +%s%N) - began) / 1000000)) -gt 500 ] && pass || fail "a change waits for the releases that began before it"
race "two open it at once" "SELECT race.become('DISABLED')" "SELECT race.become('REVOKED')" 0 0
sql races -c "SELECT race.become('ACTIVE')" -c "UPDATE kms.organisations SET locked = 0, generation = 1" >/dev/null

# Many calls that cross: the same few rows in any order.  Locks are taken in one order, so nobody dies of a deadlock.
sql races -c "SELECT race.keys('alice', ARRAY(SELECT 'x' || i FROM generate_series(1, 400) i))" >/dev/null
sql races -c "CREATE TABLE race.spaces AS SELECT i, race.resource('alice') AS id FROM generate_series(1, 6) i"
cat >"$dir/cross.sql" <<'SQL'
\set from random(1, 395)
\set what random(1, 6)
\set new random(1, 2000000000)
\if :what <= 2
SELECT race.bind('alice', ARRAY(SELECT 'x' || i FROM generate_series(:from, :from + 5) i ORDER BY random()), ARRAY(SELECT id FROM race.spaces ORDER BY random()));
\elif :what = 3
SELECT verdict FROM race.ask('authorizations_create', 'alice', VARIADIC ARRAY(SELECT race.users(id, 'u' || (random() * 3)::int, 'u' || (random() * 3)::int) FROM race.spaces ORDER BY random()));
\elif :what = 4
SELECT verdict FROM race.ask('authorizations_delete', 'alice', VARIADIC ARRAY(SELECT race.users(id, 'u' || (random() * 3)::int) FROM race.spaces ORDER BY random()));
\elif :what = 5
SELECT race.rotate('alice', ARRAY(SELECT 'n' || :client_id || '.' || :new || '.' || i FROM race.spaces), ARRAY(SELECT id FROM race.spaces ORDER BY random()));
\else
SELECT race.resource('alice', ARRAY(SELECT 'x' || i FROM generate_series(:from, :from + 3) i ORDER BY random()));
SELECT kms.wraps_add(array_agg(o), array_agg(1), array_agg(1)) FROM (SELECT org_id AS o FROM kms.organisations ORDER BY random()) x;
\endif
SQL
out=$("$(pg_bindir)/pgbench" -n -c 10 -j 2 -T 4 -f "$dir/cross.sql" "$(pg_url "$dir" races)" 2>&1)
is "crossing calls: no error" "$? $(printf '%s\n' "$out" | grep -c ERROR)" "0 0"
printf '%s\n' "$out" | grep ERROR | head -n 3
sleep 1 # for the statistics
is "crossing calls: no deadlock" "$(sql races -c "SELECT deadlocks FROM pg_stat_database WHERE datname = 'races'")" 0
is "no authorisation twice" "$(sql races -c "SELECT count(*) FROM (SELECT FROM kms.authorizations GROUP BY resource_id, grantee HAVING count(*) > 1) x")" 0
is "every key that an entry says was bound is bound there" "$(sql races -c "
    SELECT count(*) FROM kms.entries e CROSS JOIN unnest(e.key_ids) k JOIN kms.content_keys c ON c.org_id = e.org_id AND c.key_id = k
     WHERE e.verdict = 0 AND e.action IN ('key.bind', 'resource.create', 'resource.keys.create', 'authorization.delete') AND c.resource_id IS DISTINCT FROM e.resource_id")" 0
is "every bound key has such an entry" "$(sql races -c "
    SELECT count(*) FROM kms.content_keys c WHERE c.resource_id IS NOT NULL AND NOT EXISTS (SELECT FROM kms.entries e
     WHERE e.resource_id = c.resource_id AND e.verdict = 0 AND e.action IN ('key.bind', 'resource.create', 'resource.keys.create', 'authorization.delete') AND c.key_id = ANY (e.key_ids))")" 0
sql postgres -c "DROP DATABASE races"
