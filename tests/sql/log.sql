-- The log: pseudonyms instead of names, leaves, places, checkpoints, erasing a person.
BEGIN;
\ir fixture.psql
SELECT * FROM no_plan();

CREATE FUNCTION pg_temp.sequence(lim integer DEFAULT 1000) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v integer;
BEGIN
    SET LOCAL ROLE kms_keeper;
    v := kms.log_sequence(lim);
    RESET ROLE;
    RETURN v;
END $$;

-- No names.
SELECT is(pg_temp.keys('alice', '{k1}'), 0);
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob', 'carol'), '{k1}'), 0);
SELECT is(pg_temp.get('bob', 'k1'), 0);
SELECT is(pg_temp.get('bob', 'k1', client => 'tablet'), 0, 'with another client than the channel''s');
SELECT is(pg_temp.get('mallory', 'k1'), 403001);
SELECT is(pg_temp.get('mallory', 'k1', behalf => 'carol', officer => true), 0);
SELECT is_empty($$ SELECT * FROM kms.entries WHERE subject IS NOT NULL AND kind IS DISTINCT FROM 'anonymous' AND kind IS DISTINCT FROM 'keeper' $$, 'no entry has a subject''s name');
SELECT is_empty($$ SELECT * FROM kms.entries WHERE client_id IS NOT NULL OR on_behalf IS NOT NULL $$, 'nor a client''s or another''s');
SELECT is_empty($$ SELECT * FROM kms.entries e, unnest('{alice,bob,carol,mallory,phone,tablet,tester}'::text[]) n WHERE kms.entry_leaf(e) ~ ('"' || n || '"') $$, 'nor has a leaf');
SELECT is((pg_temp.named(e)).on_behalf, 'carol', 'but who is known is looked up') FROM kms.entries e WHERE behalf_person IS NOT NULL;
SELECT is((SELECT count(DISTINCT person) FROM named_entries WHERE subject = 'bob'), 1::bigint, 'one pseudonym a person');
SELECT is((SELECT count(DISTINCT client) FROM named_entries WHERE subject = 'bob'), 2::bigint, 'and one a client');
SELECT is((SELECT count(DISTINCT person) FROM kms.persons WHERE subject IN ('alice', 'bob', 'carol', 'mallory')), 4::bigint, 'different people, different ones');
SELECT is(pg_temp.channel('alice.umbrella', 'umbrella'), 0);
SELECT is((SELECT count(DISTINCT person) FROM kms.persons WHERE subject = 'alice'), 2::bigint, 'and another in another organisation');
SELECT is((pg_temp.ask('authorizations_create', 'alice', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('dave')), 'grant')).result
              -> 'authorizations' -> 0 ->> 'grantee', 'dave');
SELECT isnt((SELECT e.detail -> 'authorizations' -> 0 ->> 'grantee' FROM kms.entries e WHERE e.op_id = pg_temp.id('grant')), 'dave', 'no name in a detail');
SELECT is((pg_temp.ask('authorizations_create', 'alice', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('dave')), 'grant')).result
              -> 'authorizations' -> 0 ->> 'grantee', 'dave', 'though the same operation is answered with it again');
-- RFC 4231, test case 2, its first 16 bytes.
SELECT is(kms.hmac128(decode(rpad(string_agg(lpad(to_hex(get_byte(k, i) # 54), 2, '0'), '' ORDER BY i), 128, '36'), 'hex'),
                      decode(rpad(string_agg(lpad(to_hex(get_byte(k, i) # 92), 2, '0'), '' ORDER BY i), 128, '5c'), 'hex'),
                      'what do ya want for nothing?'), '5bdcc146-bf60-754e-6a04-2426089575c7'::uuid, 'HMAC-SHA-256')
  FROM (VALUES ('Jefe'::bytea)) v(k), generate_series(0, 3) i GROUP BY k;

-- Leaves.
SELECT is(kms.leaf_hash(''), decode('6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d', 'hex'), 'RFC 6962''s hash of an empty leaf');
SELECT is((kms.entry_leaf(e)::jsonb ->> 'op')::uuid, e.op_id, 'a leaf is JSON') FROM pg_temp.entry() e;
-- Each column is under the hash, or cannot be changed without one that is.
CREATE TEMP TABLE other AS SELECT * FROM kms.entries WHERE action = 'key.get' AND verdict = 0 LIMIT 1;
CREATE FUNCTION pg_temp.changes(name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    a text;
    b text;
    v text := CASE (SELECT data_type FROM information_schema.columns WHERE table_schema = 'kms' AND table_name = 'entries' AND column_name = name)
              WHEN 'uuid' THEN 'gen_random_uuid()' WHEN 'text' THEN quote_literal('x') WHEN 'integer' THEN '7' WHEN 'bigint' THEN '77'
              WHEN 'jsonb' THEN quote_literal('{"x":1}') WHEN 'ARRAY' THEN 'ARRAY[gen_random_uuid()]' ELSE 'now() - interval ''1 day''' END;
BEGIN
    SELECT kms.entry_leaf(ROW(o.*)::kms.entries) INTO a FROM other o;
    EXECUTE format('UPDATE other SET %I = %s', name, v);
    SELECT kms.entry_leaf(ROW(o.*)::kms.entries) INTO b FROM other o;
    RETURN a IS DISTINCT FROM b;
END $$;
SELECT ok(pg_temp.changes(column_name), 'a leaf has ' || column_name) FROM information_schema.columns
 WHERE table_schema = 'kms' AND table_name = 'entries' AND column_name NOT IN ('xact', 'client_id', 'on_behalf') ORDER BY ordinal_position;
SELECT ok(octet_length(kms.entry_leaf(ROW(o.*)::kms.entries)) < 65536, 'a leaf fits its bundle, whatever it speaks of')
  FROM (SELECT e.org_id, e.entry_id, e.at, e.op_id, 0, repeat('a', 64), 'user', repeat(E'\u0001', 256), NULL::text, NULL::text, e.channel_id, e.resource_id,
               (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 512)), (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 8)),
               repeat(E'\u0001', 256), jsonb_build_object('x', repeat('x', 32000)), e.person, e.person, e.client, 0::bigint, 'transcoding'::text, e.op_id FROM pg_temp.entry() e) o;
SELECT matches(kms.entry_leaf(ROW(o.*)::kms.entries), '"keys":\{"count":513,"sha256":"[0-9a-f]{64}"\}', 'many keys are a hash')
  FROM (SELECT e.org_id, e.entry_id, e.at, e.op_id, 0, 'a', 'user', NULL::text, NULL::text, NULL::text, e.channel_id, e.resource_id,
               (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 513)), NULL::uuid[], NULL::text, NULL::jsonb, e.person, e.person, e.client, 0::bigint, NULL::text, NULL::uuid FROM pg_temp.entry() e) o;

-- Places: what a transaction under way has written waits for its end, as this one's entries do.
SELECT is(pg_temp.sequence(), 0, 'what is not committed has no place');
SET LOCAL session_replication_role = replica;
UPDATE kms.entries SET xact = 1;
SET LOCAL session_replication_role = origin;
CREATE TEMP TABLE n AS SELECT count(*)::integer AS n FROM kms.entries;
SELECT is(pg_temp.sequence(10), 10, 'at most so many');
SELECT is(pg_temp.sequence(), n - 10, 'then the rest') FROM n;
SELECT is(pg_temp.sequence(), 0, 'then nothing');
SELECT is((SELECT sum(size)::integer FROM kms.logs), n, 'each has a place') FROM n;
SELECT is_empty($$ SELECT e.org_id, e.entry_id FROM kms.entries e EXCEPT SELECT l.org_id, u.id FROM kms.log_leaves l, unnest(l.entry_ids) u(id) $$, 'every one');
SELECT is_empty($$ SELECT * FROM (SELECT l.*, lead(first) OVER (PARTITION BY org_id ORDER BY first) AS next FROM kms.log_leaves l) x WHERE next <> first + cardinality(entry_ids) $$, 'without a gap');
SELECT is_empty($$ SELECT * FROM kms.log_leaves l, unnest(l.entry_ids) WITH ORDINALITY u(id, n) JOIN kms.entries e ON e.entry_id = u.id
                    WHERE substr(l.hashes, (u.n - 1)::integer * 32 + 1, 32) <> kms.leaf_hash(kms.entry_leaf(e)) $$, 'with its hash');
SELECT is((SELECT kms.log_find(org_id, entry_id) FROM pg_temp.entry()), (SELECT size - 1 FROM kms.logs WHERE org_id = (SELECT org_id FROM pg_temp.entry())), 'and is found');

-- What cannot be changed.
SELECT throws_ok(s, '42501', NULL, 'not even by the owner: ' || s) FROM unnest(ARRAY['DELETE FROM kms.log_leaves', 'UPDATE kms.log_leaves SET first = 7',
    'DELETE FROM kms.log_checkpoints', 'DELETE FROM kms.logs']) s;

-- Erasing a person.
CREATE TEMP TABLE leaves AS SELECT e.entry_id, kms.entry_leaf(e) AS leaf FROM kms.entries e;
SET LOCAL ROLE kms_keeper;
SELECT is((SELECT verdict FROM kms.person_erase(gen_random_uuid(), 'acme', 'nobody', 'root')), 404001, 'who is unknown cannot be erased');
SELECT is((SELECT verdict FROM kms.person_erase(gen_random_uuid(), 'acme', 'bob', 'root')), 0, 'bob is erased');
SELECT is((SELECT count(*) FROM kms.audit_tail('acme', 0, 1000) t WHERE t ->> 'subject' = 'bob'), 0::bigint, 'nobody tells any more what he did');
RESET ROLE;
SELECT is_empty($$ SELECT * FROM kms.entries e JOIN leaves l USING (entry_id) WHERE kms.entry_leaf(e) <> l.leaf $$, 'and every leaf is what it was');
SELECT is((SELECT count(*) FROM kms.persons WHERE subject = 'bob' AND org_id = pg_temp.id('acme')), 0::bigint, 'name and key are gone');
SELECT is(pg_temp.get('bob', 'k1'), 499001, 'his channel too');
SELECT * FROM finish();
ROLLBACK;
