# suite_races.sh - two at the same time: who is first wins, the other gets the right answer.  Part of run.sh.

sql postgres -c "CREATE DATABASE races TEMPLATE fresh"
sql races -f "$here/races.psql" >/dev/null

# first STATEMENT [SECONDS]: runs it in a transaction that stays open for half a second; returns when it has done its work.
first() {
    (sql races >"$dir/first" 2>&1 <<SQL
BEGIN;
SET application_name = 'first';
$1;
SELECT pg_sleep(${2:-0.5}) \gset
COMMIT;
SQL
    ) &
    first_pid=$!
    for _ in $(seq 100); do
        [ -n "$(sql races -c "SELECT 1 FROM pg_stat_activity WHERE application_name = 'first' AND query LIKE '%pg_sleep%' AND state = 'active'")" ] && return
        sleep 0.02
    done
    fail "the first transaction did not start: $(cat "$dir/first")"
}
# second STATEMENT: meanwhile; then waits for both.  Its output, and the first's, are in $second and $first.
second() {
    second=$(sql races -v VERBOSITY=sqlstate -c "$1" 2>&1)
    wait $first_pid
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
is "and then goes with that key" "$(sql races -c "SELECT kms.sweep(10)")" '{"keys": 2, "channels": 0, "resources": 1, "unbound_keys": 0}'
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

# Many calls that cross: the same few rows in any order.  Locks are taken in one order, so nobody dies of a deadlock.
sql races -c "UPDATE kms.organisations SET generation = 1 WHERE name = 'acme'"
sql races -c "SELECT race.keys('alice', ARRAY(SELECT 'x' || i FROM generate_series(1, 400) i))" >/dev/null
sql races -c "CREATE TABLE race.spaces AS SELECT i, race.resource('alice') AS id FROM generate_series(1, 6) i"
cat >"$dir/cross.sql" <<'SQL'
\set from random(1, 395)
\set what random(1, 5)
\if :what <= 2
SELECT race.bind('alice', ARRAY(SELECT 'x' || i FROM generate_series(:from, :from + 5) i ORDER BY random()), ARRAY(SELECT id FROM race.spaces ORDER BY random()));
\elif :what = 3
SELECT verdict FROM race.ask('authorizations_create', 'alice', VARIADIC ARRAY(SELECT race.users(id, 'u' || (random() * 3)::int, 'u' || (random() * 3)::int) FROM race.spaces ORDER BY random()));
\elif :what = 4
SELECT verdict FROM race.ask('authorizations_delete', 'alice', VARIADIC ARRAY(SELECT race.users(id, 'u' || (random() * 3)::int) FROM race.spaces ORDER BY random()));
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
     WHERE e.verdict = 0 AND e.action IN ('key.bind', 'resource.create') AND c.resource_id IS DISTINCT FROM e.resource_id")" 0
is "every bound key has such an entry" "$(sql races -c "
    SELECT count(*) FROM kms.content_keys c WHERE c.resource_id IS NOT NULL AND NOT EXISTS (SELECT FROM kms.entries e
     WHERE e.resource_id = c.resource_id AND e.verdict = 0 AND e.action IN ('key.bind', 'resource.create') AND c.key_id = ANY (e.key_ids))")" 0
sql postgres -c "DROP DATABASE races"
