-- The keeper's functions: organisations, wrapping keys, the root, what operators look at.
BEGIN;
\ir fixture.psql
SELECT plan(59);

CREATE FUNCTION pg_temp.add(name text, op text DEFAULT NULL) RETURNS TABLE (verdict integer, result jsonb) LANGUAGE sql AS $$
    SELECT * FROM kms.org_add(coalesce(pg_temp.id(op), gen_random_uuid()), name, pg_temp.id(name), 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'root') $$;
CREATE FUNCTION pg_temp.next(org text, generation integer, op text DEFAULT NULL) RETURNS integer LANGUAGE sql AS $$
    SELECT verdict FROM kms.wrapping_key_add(coalesce(pg_temp.id(op), gen_random_uuid()), pg_temp.id(org), generation, pg_temp.id('root'), pg_temp.bytes(40, '02'),
        pg_temp.bytes(8, '02'), 'keeper') $$;
SET LOCAL ROLE kms_keeper;
SELECT results_eq($$ SELECT verdict, result ->> 'name', result ->> 'org', result ->> 'state', (result ->> 'generation')::integer FROM pg_temp.add('new', 'op1') $$,
    $$ VALUES (0, 'new', pg_temp.id('new')::text, 'active', 1) $$, 'an organisation is added');
SELECT is((SELECT verdict FROM pg_temp.add('new')), 409002, 'a name is taken once');
SELECT is((SELECT verdict FROM pg_temp.add('new', 'op1')), 0, 'the same operation again: the same answer');
SELECT is((SELECT verdict FROM pg_temp.add(n)), 400002, format('no name: %L', regexp_replace(left(n, 10), '\s', '?'))) FROM unnest(ARRAY['', '-a', 'a b', 'a/b', repeat('a', 129), E'a\n']) n;
SELECT is((SELECT verdict FROM pg_temp.add(n)), 0, format('a name: %s', left(n, 10))) FROM unnest(ARRAY['A', '0.a_b-c', repeat('a', 128)]) n;
RESET ROLE;
SELECT is((SELECT count(*) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('new') AND generation = 1 AND wraps = 0), 1::bigint, 'with its first wrapping key');
SELECT ok(e.action = 'org.add' AND e.verdict = 0 AND e.kind = 'operator' AND e.subject = 'root', 'on record in its own log')
  FROM named_entries e WHERE e.org_id = pg_temp.id('new');
SELECT is((SELECT count(*) FROM kms.entries WHERE org_id = kms.nobody() AND action = 'org.add' AND verdict = 409002), 1::bigint, 'a refusal in the installation''s');
SET LOCAL ROLE kms_keeper;
SELECT is((SELECT array_agg(o ->> 'name' ORDER BY i) FROM jsonb_array_elements(kms.orgs_list()) WITH ORDINALITY x(o, i) WHERE length(o ->> 'name') > 2 AND length(o ->> 'name') < 100),
          '{0.a_b-c,acme,new,umbrella}', 'all by name');

-- States.
SELECT is((SELECT verdict FROM kms.org_set_state(pg_temp.id('op2'), 'acme', 'suspended', 'root')), 0, 'suspended');
SELECT is((SELECT verdict FROM kms.org_set_state(pg_temp.id('op3'), 'acme', 'active', 'root')), 0, 'resumed');
SELECT is((SELECT result ->> 'state' FROM kms.org_set_state(pg_temp.id('op2'), 'acme', 'suspended', 'root')), 'suspended', 'an old operation again: its answer');
SELECT is(kms.org_show('acme') ->> 'state', 'active', 'and nothing else');
SELECT is((SELECT verdict FROM kms.org_set_state(gen_random_uuid(), 'none', 'active', 'root')), 404001, 'unknown');
SELECT throws_ok($$ SELECT * FROM kms.org_set_state(gen_random_uuid(), 'acme', 'gone', 'root') $$, '22023', NULL, 'no such state');
SELECT is(kms.org_show('none'), NULL, 'unknown: nothing to show');

-- Wrapping keys.
SELECT results_eq($$ SELECT org, org_name, generation FROM kms.wrapping_keys_due(3600000, 1000) $$, $$ VALUES ('00000000-0000-0000-0000-000000000000'::uuid, '', 0) $$, 'the installation has none yet');
SELECT is(verdict, 0, 'its first one') FROM kms.wrapping_key_add(gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper');
SELECT is(verdict, 409002, 'once') FROM kms.wrapping_key_add(gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper');
SELECT is_empty($$ SELECT FROM kms.wrapping_keys_due(3600000, 1000) $$, 'none is due');
SELECT is((SELECT count(*) FROM kms.wrapping_keys_due(0, 1000)), 7::bigint, 'by age');
RESET ROLE;
SELECT lives_ok($$ SELECT kms.wraps_add(ARRAY[pg_temp.id('acme')], '{1}', '{1000}') $$);
SET LOCAL ROLE kms_keeper;
SELECT results_eq($$ SELECT org, org_name, generation FROM kms.wrapping_keys_due(3600000, 1000) $$, $$ VALUES (pg_temp.id('acme'), 'acme', 1) $$, 'by use');
SELECT is(pg_temp.next('acme', 3), 409002, 'no generation is left out');
SELECT is(pg_temp.next('acme', 2, 'op4'), 0, 'the next one');
SELECT is(pg_temp.next('acme', 2), 409002, 'once');
SELECT is(pg_temp.next('acme', 2, 'op4'), 0, 'the same operation again');
SELECT is(pg_temp.next('none', 2), 404001, 'unknown organisation');
SELECT is_empty($$ SELECT FROM kms.wrapping_keys_due(3600000, 1000) $$, 'it counts anew');
SELECT is((SELECT generation FROM kms.orgs_get('{acme}')), 2, 'and is current');
RESET ROLE;
SELECT is(pg_temp.keys('alice', '{old}'), -1, 'no key goes under the old one');
SELECT is(pg_temp.keys('alice', '{k1}', generation => 2), 0, 'but under the new one');
SELECT is(pg_temp.keys('eve', '{e1}'), 0, 'other organisations have theirs');
SELECT is((SELECT count(*) FROM kms.channels_open(ARRAY[pg_temp.id('channel alice')]) WHERE found AND generation = 1), 1::bigint, 'what was wrapped before stays good');

-- The root.
SET LOCAL ROLE kms_keeper;
SELECT is_empty('SELECT * FROM kms.root_get()', 'no root is recorded');
SELECT is(kms.root_add(pg_temp.id('root'), pg_temp.bytes(8), pg_temp.bytes(40), pg_temp.bytes(61), 'keeper'), 0, 'the first node records its own');
SELECT is(kms.root_add(pg_temp.id('root'), pg_temp.bytes(8), pg_temp.bytes(40), pg_temp.bytes(61), 'keeper'), 0, 'again: nothing new');
SELECT is(kms.root_add(pg_temp.id('other'), pg_temp.bytes(8), pg_temp.bytes(40), pg_temp.bytes(61), 'keeper'), 409002, 'another is refused');
SELECT results_eq('SELECT root, kcv, sentinel, wrapped, state FROM kms.root_get()',
    $$ VALUES (pg_temp.id('root'), pg_temp.bytes(8), pg_temp.bytes(61), pg_temp.bytes(40), 'active') $$, 'what proves it');

-- Looking.
RESET ROLE;
SELECT is(pg_temp.channel('alice.3', generation => 2), 0);
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob'), '{k1}'), 0);
CREATE TEMP TABLE shown (k jsonb, r jsonb, none jsonb);
GRANT INSERT, SELECT ON shown TO kms_keeper;
SET LOCAL ROLE kms_keeper;
INSERT INTO shown SELECT kms.key_show(pg_temp.id('k1'), 'root') AS k, kms.resource_show(pg_temp.id('space'), 'root') AS r, kms.key_show(pg_temp.id('none'), 'root') AS none;
SELECT ok(k ->> 'creator' = 'alice' AND k ->> 'org_name' = 'acme' AND k ->> 'resource' = pg_temp.id('space')::text AND NOT k ? 'blob'
          AND NOT k::text LIKE '%ababab%', 'a key, without the key') FROM shown;
SELECT ok((r ->> 'keys')::integer = 1 AND jsonb_array_length(r -> 'authorizations') = 2, 'a resource') FROM shown;
SELECT ok(none IS NULL, 'unknown') FROM shown;
RESET ROLE;
SELECT is((SELECT count(*) FROM named_entries WHERE action IN ('key.show', 'resource.show') AND subject = 'root'), 3::bigint, 'who looked is on record');
SET LOCAL ROLE kms_keeper;
SELECT lives_ok($$ SELECT kms.admin_record(pg_temp.id('op7'), 'root', 'log.level', 0, '{"level":"debug"}') FROM generate_series(1, 2) $$, 'admin calls are recorded');
SELECT results_eq($$ SELECT t ->> 'action', t -> 'detail' FROM kms.audit_tail(NULL, 0, 1) t $$, $$ VALUES ('log.level', '{"level":"debug"}'::jsonb) $$, 'the installation''s log, its last entry');
SELECT is((SELECT count(*) FROM kms.audit_tail('acme', 0, 5)), 5::bigint, 'the last five of an organisation''s');
SELECT results_eq($$ SELECT (t ->> 'entry')::bigint FROM kms.audit_tail('acme', (SELECT min((u ->> 'entry')::bigint) FROM kms.audit_tail('acme', 0, 5) u), 2) t $$,
    $$ SELECT (t ->> 'entry')::bigint FROM kms.audit_tail('acme', 0, 4) t LIMIT 2 $$, 'those after a number');
SELECT is_empty($$ SELECT kms.audit_tail('none', 0, 5) $$, 'of an unknown one: nothing');
SELECT ok((s ->> 'keys')::integer = 2 AND (s ->> 'resources')::integer = 1 AND (s ->> 'organisations')::integer = 6 AND (s ->> 'suspended')::integer = 0,
          'figures') FROM kms.stats() s;
SELECT ok((o ->> 'keys')::integer = 1 AND (o ->> 'resources')::integer = 1 AND jsonb_array_length(o -> 'wrapping_keys') = 2, 'figures of one') FROM kms.org_show('acme') o;
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
