# suite_months.sh - a month ends, sweeps and commands destroy, while others write: nothing that is there is under a key that is gone.
# Part of run.sh; uses what suite_races.sh defines.

sql postgres -c "CREATE DATABASE races TEMPLATE fresh"
sql races -f "$here/races.psql" >/dev/null
sql races >/dev/null <<'SQL'
CREATE TABLE race.clock (shift interval);
INSERT INTO race.clock VALUES ('0');
GRANT USAGE ON SCHEMA race TO kms_owner;
GRANT SELECT ON race.clock TO kms_owner;
CREATE OR REPLACE FUNCTION kms.wall() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RETURN clock_timestamp() + (SELECT shift FROM race.clock); END';
-- One turn of the keeper that leads, who makes what is asked for; his HSM takes a moment.
CREATE FUNCTION race.turn() RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
BEGIN
    PERFORM kms.node_turn(race.id('node'), 'here');
    j := kms.destroy_work(race.id('node'), false, 100);
    PERFORM kms.period_made((x ->> 'key')::uuid, race.bytes(8)) FROM jsonb_array_elements(j -> 'make') x;
    PERFORM kms.month_key_add((x ->> 'org')::uuid, (x ->> 'period')::uuid, race.bytes(40), race.bytes(8)) FROM jsonb_array_elements(j -> 'keys') x;
    RETURN j;
END $$;
CREATE FUNCTION race.store(j jsonb) RETURNS bigint LANGUAGE sql AS $$
    SELECT coalesce(sum(kms.reseal_done(ARRAY[(x ->> 'org')::uuid], ARRAY[(x ->> 'object')::uuid], ARRAY[x ->> 'kind'], ARRAY[decode(x ->> 'blob', 'hex')],
        ARRAY[(x ->> 'generation')::integer], ARRAY[(x ->> 'to_generation')::integer], ARRAY[race.bytes(61)])), 0) FROM jsonb_array_elements(j -> 'reseal') x $$;
CREATE FUNCTION race.turns(n integer DEFAULT 6) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    moved bigint := 0;
BEGIN
    FOR i IN 1 .. n LOOP
        UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second';
        moved := moved + race.store(race.turn());
    END LOOP;
    RETURN moved;
END $$;
CREATE FUNCTION race.month(after interval DEFAULT '0') RETURNS integer LANGUAGE sql AS $$ SELECT kms.month_generation(kms.month_first(kms.wall() + after)) $$;
CREATE FUNCTION race.past(months integer DEFAULT 1) RETURNS void LANGUAGE sql AS $$
    UPDATE race.clock SET shift = ((date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => months) + interval '61 minutes') AT TIME ZONE 'UTC') - now() $$;
-- A resource that ends, with a key that is wrapped under a month from the start, as a worker makes it.
CREATE FUNCTION race.ends(key text, ttl interval, generation integer) RETURNS integer LANGUAGE sql AS $$
    SELECT verdict FROM race.ask('resource_create', 'alice', jsonb_build_object('auths', race.users(NULL, 'bob') -> 'auths', 'bound_ms', 1000, 'ttl_ms', (extract(epoch FROM ttl) * 1000)::bigint,
        'new_keys', jsonb_build_array(race.new_key(key) || jsonb_build_object('generation', generation)))) $$;
CREATE FUNCTION race.lost() RETURNS bigint LANGUAGE sql AS $$
    SELECT (SELECT count(*) FROM kms.content_keys k JOIN kms.wrapping_keys w USING (org_id, generation) WHERE k.blob IS NOT NULL AND w.wrapped IS NULL)
         + (SELECT count(*) FROM kms.recordings k JOIN kms.wrapping_keys w USING (org_id, generation) WHERE k.blob IS NOT NULL AND w.wrapped IS NULL) $$;
CREATE FUNCTION race.ended(generation integer) RETURNS text LANGUAGE sql AS $$
    SELECT CASE WHEN p.ended_at IS NULL THEN 'not' ELSE 'ended' END FROM kms.period_keys p WHERE kms.month_generation(p.month) = generation $$;
SELECT kms.destruction_waiting(0);
UPDATE kms.channels SET expires_at = now() + interval '10 years';
SQL
lost() { is "$1: nothing that is there is under a key that is gone" "$(sql races -c "SELECT race.lost()")" 0; }

# A period key and a wrapping key of this month and of the next: by keys that end then.
sql races -c "SELECT race.ends('a1', '1 minute', 1), race.ends('a2', '1 month', 1)" -c "SELECT race.turns()" >/dev/null
this=$(sql races -c "SELECT race.month()")
is "both are under their months" "$(sql races -c "SELECT count(*) FROM kms.content_keys WHERE generation >= $this AND key_id IN (race.id('a1'), race.id('a2'))")" 2

# Who was told that the month takes new keys, and is slow, while the clock goes past its end.
first "SELECT race.ends('b1', '1 minute', $this)" 2
sql races -c "SELECT race.past()" >/dev/null
sql races -c "UPDATE kms.resources SET expires_at = now() + interval '10 years' WHERE resource_id = (SELECT resource_id FROM kms.content_keys WHERE key_id = race.id('a1'))"
sql races -c "SELECT race.turns()" >/dev/null
second "SELECT race.turns(1)"
is "made beside the end of its month" "$first" 0
lost "made beside the end of its month"
race "too late for it" "SELECT race.turns(1) >= 0" "SELECT race.ends('b2', '1 minute', $this)" t -1
sql races -c "SELECT race.turns()" >/dev/null
is "then the month ends" "$(sql races -c "SELECT race.ended($this)")" ended
lost "after the end"
race "a month that has ended, and a clock that goes back" "UPDATE race.clock SET shift = '0'" "SELECT race.ends('b3', '1 minute', $this)" "" -1
is "no key is made for it again" "$(sql races -c "SELECT race.ends('b4', '1 minute', 1), race.turns()" -c "SELECT generation FROM kms.content_keys WHERE key_id = race.id('b4')" | tail -n 1)" 1
lost "back"

# What is kept by a matter, and what is moved there, in any order with the end of the month.
next=$(sql races -c "SELECT race.month('1 month')")
sql races -c "SELECT race.ends('c' || i, '1 month', $next) FROM generate_series(1, 4) i" >/dev/null
is "four under the next month" "$(sql races -c "SELECT count(*) FROM kms.content_keys WHERE generation = $next AND key_id IN (SELECT race.id('c' || i) FROM generate_series(1, 4) i)")" 4
sql races -c "SELECT race.past(2)" >/dev/null
id=$(propose "'matter.open', race.matter('keep') || '{\"to\":99999999999999}', 2, 3")
first "SELECT race.approve('$id', 2)"
second "SELECT kms.sweep(100) ->> 'keys'"
is "a matter that is opened beside a sweep keeps what it covers" "$first $second" "0 done 0"
job=$(sql races -c "UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second'" -c "SELECT race.turn()" -c "UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second'" -c "SELECT race.turn()" | tail -n 1)
sql races -c "UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second'"
first "SELECT race.store('$job')"
second "SELECT race.turns(2)"
is "moved away beside the end" "$((first + second > 0))" 1
lost "moved away beside the end"
sql races -c "SELECT race.turns()" >/dev/null
is "what the matter keeps has moved, and that month has ended" "$(sql races -c "SELECT race.ended($next) || ' ' || count(*) FROM kms.content_keys
    WHERE key_id IN (SELECT race.id('c' || i) FROM generate_series(1, 4) i) AND blob IS NOT NULL AND generation = race.month()")" "ended 4"
lost "kept"

# A move to a month that ends before it arrives.
now=$(sql races -c "SELECT race.month()")
sql races -c "SELECT race.act('matter.close', jsonb_build_object('matter', '$id'))" >/dev/null
sql races -c "SELECT race.ends('d1', '1 minute', 1)" >/dev/null
job=$(sql races -c "UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second'" -c "SELECT race.turn()" | tail -n 1)
sql races -c "UPDATE kms.resources SET expires_at = NULL WHERE resource_id = (SELECT resource_id FROM kms.content_keys WHERE key_id = race.id('d1'))" -c "SELECT kms.sweep(100)" \
    -c "SELECT race.past(3)" >/dev/null
sql races -c "SELECT race.turns()" >/dev/null
is "the month has ended" "$(sql races -c "SELECT race.ended($now)")" ended
is "what comes late is not stored" "$(sql races -c "SELECT race.store('$job')")" 0
lost "late"

# A matter that is open when it says so: what a sweep has looked at is gone by then, or stays.
sql races -c "UPDATE race.clock SET shift = '0'" -c "SELECT race.ends('e1', '1 second', 1)" -c "SELECT pg_sleep(1.1)" >/dev/null
id=$(propose "'matter.open', race.matter('late') || '{\"to\":99999999999999}', 2, 3")
first "SELECT kms.sweep(100) ->> 'keys'"
second "SELECT race.approve('$id', 2); SELECT blob IS NULL FROM kms.content_keys WHERE key_id = race.id('e1')"
is "a matter that is opened beside a sweep has what is there" "$first $(printf %s "$second" | tr '\n' ' ')" "1 0 done t"
sql races -c "SELECT race.act('matter.close', jsonb_build_object('matter', '$id'))" >/dev/null

# Two keepers at once: moves one way and the other, over the same keys.
sql races -c "SELECT race.ends('f' || i, '1 month', 1) FROM generate_series(1, 40) i" -c "SELECT race.turns(2)" >/dev/null
cat >"$dir/move.sql" <<'SQL'
SET search_path = kms, pg_catalog, pg_temp;
UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second' WHERE object_id IN (SELECT object_id FROM kms.reseals FOR UPDATE SKIP LOCKED);
SELECT race.store(kms.destroy_work(race.id('node'), false, 10));
SELECT kms.sweep(5);
SELECT kms.reseal_ask(org_id, key_id, 'key', 1, now() + CASE WHEN random() < 0.5 THEN interval '1 month' END) FROM kms.content_keys WHERE blob IS NOT NULL ORDER BY random() LIMIT 3;
SELECT race.get('bob', 'f' || (1 + random() * 39)::integer);
SQL
sql races -c "SELECT kms.node_turn(race.id('node'), 'here')" >/dev/null
out=$("$(pg_bindir)/pgbench" -n -c 6 -j 2 -T 3 -f "$dir/move.sql" "$(pg_url "$dir" races)" 2>&1)
is "keepers that cross: no error" "$? $(printf '%s\n' "$out" | grep -c ERROR)" "0 0"
printf '%s\n' "$out" | grep ERROR | head -n 3
lost "keepers that cross"

# Commands that wait for a matter do not stop everybody, again and again.
id=$(propose "'matter.open', race.matter('long') || '{\"to\":99999999999999}', 2, 3")
sql races -c "SELECT kms.destruction_waiting(60000)" >/dev/null
idd=$(propose "'key.destroy', jsonb_build_object('key', race.id('f1')), 2, 3")
sql races -c "SELECT race.approve('$idd', 2)" -c "SELECT race.approve('$id', 2)" -c "UPDATE race.clock SET shift = '2 minutes'" >/dev/null
is "a command waits for a matter" "$(sql races -c "SELECT kms.destructions_do(100)" -c "SELECT held_by IS NOT NULL FROM kms.destructions WHERE target = race.id('f1')" | tail -n 1)" t
first "SELECT kms.policy_share()" 2
second "SET lock_timeout = '100ms'; SELECT kms.destructions_do(100) ->> 'done'"
is "and those who release do not wait for it" "$second" 0
is "it is done when the matter is closed" "$(sql races -c "SELECT race.act('matter.close', jsonb_build_object('matter', '$id'))" -c "SELECT kms.destructions_do(100) ->> 'done'" | tr '\n' ' ')" "0 1 "
sql postgres -c "DROP DATABASE races"
