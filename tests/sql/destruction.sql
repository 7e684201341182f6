-- Destruction: the waiting period, holds, months and their keys, certificates, the clock, previews.
BEGIN;
\ir fixture.psql
\ir officers.psql
SELECT plan(219);

SET search_path = public, kms;
-- The sweeper will be long past these.
UPDATE kms.channels SET expires_at = now() + interval '100 years';

-- Another clock, in milliseconds from the right one.
CREATE TEMP TABLE shift (ms bigint);
INSERT INTO shift VALUES (0);
GRANT SELECT ON shift TO PUBLIC;
CREATE OR REPLACE FUNCTION kms.wall() RETURNS timestamptz LANGUAGE plpgsql AS $$
BEGIN
    RETURN clock_timestamp() + (SELECT s.ms FROM pg_temp.shift s) * interval '1 millisecond';
END $$;
CREATE FUNCTION pg_temp.days(n numeric) RETURNS void LANGUAGE sql AS $$ UPDATE shift SET ms = n * 86400000 $$;
CREATE FUNCTION pg_temp.sweep() RETURNS text LANGUAGE sql AS $$
    SELECT format('%s resources, %s keys, %s recordings', j ->> 'resources', j ->> 'keys', j ->> 'recordings') FROM kms.sweep(1000) j $$;
CREATE FUNCTION pg_temp.gone(key text) RETURNS boolean LANGUAGE sql AS $$ SELECT blob IS NULL FROM kms.content_keys WHERE key_id = pg_temp.id(key) $$;
CREATE FUNCTION pg_temp.destroy(kind text, what text, uid bigint DEFAULT 1) RETURNS pg_temp.ruling LANGUAGE sql AS $$
    SELECT pg_temp.agree(kind || '.destroy', jsonb_build_object(kind, CASE kind WHEN 'org' THEN what ELSE pg_temp.id(what)::text END)) $$;
CREATE FUNCTION pg_temp.last(what text) RETURNS text LANGUAGE sql AS $$ SELECT text FROM kms.certificates WHERE text LIKE '%' || what || '%' ORDER BY created_at DESC LIMIT 1 $$;
CREATE FUNCTION pg_temp.work(ahead boolean DEFAULT false) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    j := kms.destroy_work(pg_temp.id('node'), ahead, 100);
    RESET ROLE;
    RETURN j;
END $$;
-- All that a keeper does in the HSM, with bytes that say what they are of.
CREATE FUNCTION pg_temp.keep(ahead boolean DEFAULT false) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
    x jsonb;
    v_moved integer := 0;
BEGIN
    PERFORM kms.node_turn(pg_temp.id('node'), 'here');
    FOR i IN 1 .. 6 LOOP
        j := pg_temp.work(ahead AND i < 3);
        UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second';
        FOR x IN SELECT jsonb_array_elements(j -> 'make') LOOP
            PERFORM kms.period_made((x ->> 'key')::uuid, substr(sha256(convert_to(x ->> 'key', 'UTF8')), 1, 8));
        END LOOP;
        FOR x IN SELECT jsonb_array_elements(j -> 'keys') LOOP
            PERFORM kms.month_key_add((x ->> 'org')::uuid, (x ->> 'period')::uuid, pg_temp.bytes(40, '77'), pg_temp.bytes(8, '77'));
        END LOOP;
        FOR x IN SELECT jsonb_array_elements(j -> 'reseal') LOOP
            v_moved := v_moved + kms.reseal_done(ARRAY[(x ->> 'org')::uuid], ARRAY[(x ->> 'object')::uuid], ARRAY[x ->> 'kind'], ARRAY[decode(x ->> 'blob', 'hex')],
                ARRAY[(x ->> 'generation')::integer], ARRAY[(x ->> 'to_generation')::integer], ARRAY[pg_temp.bytes(61, 'cd')]);
        END LOOP;
        FOR x IN SELECT jsonb_array_elements(j -> 'destroy') LOOP
            PERFORM kms.node_forgot(pg_temp.id('node'), (x ->> 'key')::uuid);
        END LOOP;
        FOR x IN SELECT jsonb_array_elements(j -> 'forget') LOOP
            PERFORM kms.node_forgot(pg_temp.id('node'), (x #>> '{}')::uuid);
        END LOOP;
    END LOOP;
    RETURN v_moved;
END $$;

-- ------------------------------------------------------------------------------------------------ the waiting period
SELECT is(pg_temp.keys('alice', '{k1,k2,k3,k4,k5,k6,k7,k8,k9,u1}'), 0);
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob'), '{k1,k2}'), 0);
SELECT is(pg_temp.resource('alice', 'brief', pg_temp.users('bob'), '{k3}', ttl_ms => 3600000), 0);
SELECT is(pg_temp.resource('alice', 'held', pg_temp.users('bob'), '{k4}', ttl_ms => 3600000), 0);
SELECT kms.destruction_waiting(604800000);
SELECT is((pg_temp.act('key.destroy', jsonb_build_object('key', pg_temp.id('k1')))).result ->> 'state', 'pending', 'one officer does not do');
SELECT pg_temp.reject(((SELECT approval_id FROM kms.approvals WHERE state = 'pending'))) IS NULL AS x \gset
SELECT (pg_temp.destroy('key', 'k1')).result -> 'result' ->> 'destruction' AS one \gset
SELECT is(pg_temp.get('bob', 'k1'), 0, 'it waits, and is there until then');
SELECT ok(x ->> 'state' = 'waiting' AND x ->> 'kind' = 'key' AND (x ->> 'due')::bigint - (x ->> 'created')::bigint = 604800000 AND x ->> 'approval' IS NOT NULL, 'for a week')
  FROM jsonb_array_elements(kms.destruction_list('acme', 'waiting')) x;
SELECT is((pg_temp.destroy('key', 'k1')).verdict, 409002, 'once at a time');
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', pg_temp.id('none')))).verdict, 404001, 'what was never asked for cannot be undone');
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', :'one'::uuid), 3)).result ->> 'state', 'done', 'any officer undoes it, at once');
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', :'one'::uuid), 3)).verdict, 409002, 'once');
SELECT pg_temp.days(8);
SELECT is(kms.destructions_do(100) ->> 'done', '0', 'what was undone is not done');
SELECT is(pg_temp.gone('k1'), false, 'it is there');
SELECT pg_temp.days(0);
SELECT (pg_temp.destroy('key', 'k1')).result -> 'result' ->> 'destruction' AS one \gset
SELECT pg_temp.days(6.9);
SELECT is(kms.destructions_do(100) ->> 'done', '0', 'not before its time');
SELECT pg_temp.days(7.1);
SET LOCAL ROLE kms_keeper;
SELECT is(kms.destructions_do(100) ->> 'done', '1', 'when the time is over');
RESET ROLE;
SELECT is((pg_temp.get('bob', 'k1'), pg_temp.get('bob', 'k2'))::text, '(410001,0)', 'that key alone');
SELECT ok(e.kind = 'keeper' AND e.key_ids = ARRAY[pg_temp.id('k1')] AND e.resource_id = pg_temp.id('space') AND e.detail ->> 'destruction' = :'one', 'on record')
  FROM kms.entries e WHERE e.action = 'key.destroy' AND e.kind = 'keeper';
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', :'one'::uuid))).verdict, 409002, 'then nothing brings it back');
SELECT ok(d.state = 'done' AND c.text LIKE 'kms destruction certificate 1
certificate ' || c.certificate_id || '
organisation ' || d.org_id || '
time %
why command
destruction ' || d.destruction_id || '
approval ' || d.approval_id || '
requested %
approved %
approved %
keys 1 %
key ' || d.target || '
under 1 abababababababab - ' || pg_temp.id('root') || ' kept
', 'its certificate says what, why, who, and under which key') FROM kms.destructions d JOIN kms.certificates c USING (certificate_id) WHERE d.destruction_id = :'one';
SELECT is((SELECT count(*) FROM regexp_matches(pg_temp.last('why command'), 'officer', 'g')), 0::bigint, 'officers by pseudonym');
SELECT is((SELECT count(DISTINCT p.subject) FROM kms.persons p, regexp_matches(pg_temp.last('why command'), '(?:requested|approved) ([0-9a-f-]{36})', 'g') m
            WHERE p.person = m[1]::uuid AND p.org_id = pg_temp.id('acme')), 2::bigint, 'that stand for two people');
SELECT is((SELECT encode(sha256(convert_to(c.text, 'UTF8')), 'hex') FROM kms.certificates c), (SELECT detail ->> 'sha256' FROM kms.entries WHERE action = 'certificate.add'), 'an entry has its hash');
SELECT pg_temp.days(0);

-- ------------------------------------------------------------------------------------------------ holds
SELECT (pg_temp.agree('matter.open', jsonb_build_object('org', 'acme', 'name', 'case', 'custodians', jsonb_build_array('bob'), 'from', pg_temp.now_ms() - 86400000,
    'to', pg_temp.now_ms() + 86400000, 'kinds', jsonb_build_array('space'), 'expires', pg_temp.now_ms() + 30 * 86400000::bigint))).result ->> 'approval' AS matter \gset
SELECT is((pg_temp.destroy('resource', 'space')).result ->> 'why', 'matter ' || :'matter' || ' holds it: it can be destroyed when that matter is closed', 'what a matter holds is not destroyed, and says so');
SELECT is((pg_temp.destroy('key', 'k2')).verdict, 409002, 'nor a key of it');
SELECT is((pg_temp.destroy('org', 'acme')).verdict, 409002, 'nor the organisation');
SELECT is((pg_temp.destroy('key', 'u1')).verdict, 0, 'what no matter covers is');
SELECT pg_temp.days(0.1);
-- The mails of others in the same time: nobody whom the matter names.
SELECT is(pg_temp.keys('carol', '{o1}'), 0);
SELECT is(pg_temp.resource('carol', 'others', keys => '{o1}', ttl_ms => 3600000), 0);
SELECT is(pg_temp.sweep(), '1 resources, 1 keys, 0 recordings', 'past its time: what is not held');
SELECT is((pg_temp.gone('o1'), pg_temp.gone('k3'), pg_temp.gone('k4'))::text, '(t,f,f)', 'that and no other');
SELECT is((SELECT count(*) FROM kms.resources WHERE held_by = :'matter'::uuid), 2::bigint, 'two are held');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'resource.held' AND matter_id = :'matter'::uuid AND resource_id IN (pg_temp.id('brief'), pg_temp.id('held'))), 2::bigint, 'on record, with the matter');
SELECT is(pg_temp.sweep(), '0 resources, 0 keys, 0 recordings', 'they are not looked at again and again');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'resource.held'), 2::bigint, 'nor recorded');
SELECT ok(x -> 'figures' ->> 'held' = '2' AND x -> 'held' -> 0 ->> 'matter' = :'matter' AND x -> 'held' -> 0 ->> 'keys' = '2' AND x -> 'held' -> 0 ->> 'name' = 'case', 'the preview tells which matter holds what')
  FROM jsonb_array_elements(kms.retention_preview('acme', NULL, 100) -> 'organisations') x;
-- A key that was bound outside of the matter's time is not held, though its resource is.
SELECT is(pg_temp.keys('alice', '{out}'), 0);
UPDATE kms.content_keys SET resource_id = pg_temp.id('brief'), bound_at = clock_timestamp() - interval '2 days' WHERE key_id = pg_temp.id('out');
UPDATE kms.resources SET held_by = NULL WHERE resource_id = pg_temp.id('brief');
SELECT is(pg_temp.sweep(), '0 resources, 1 keys, 0 recordings', 'of a resource that is held goes what is not');
SELECT is((pg_temp.gone('out'), pg_temp.gone('k3'))::text, '(t,f)', 'the one outside of its time');
-- What waited already when the matter came.
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'matter'))).verdict, 0, 'closed');
SELECT is((pg_temp.destroy('resource', 'space')).verdict, 0, 'now it can be destroyed');
SELECT (pg_temp.agree('matter.open', jsonb_build_object('org', 'acme', 'name', 'another', 'custodians', jsonb_build_array('bob'), 'from', pg_temp.now_ms() - 86400000,
    'to', pg_temp.now_ms() + 86400000, 'kinds', jsonb_build_array('space'), 'expires', pg_temp.now_ms() + 30 * 86400000::bigint))).result ->> 'approval' AS matter2 \gset
SELECT pg_temp.days(8);
SELECT is(kms.destructions_do(100) ->> 'done', '1', 'the key that nobody holds');
SELECT is((SELECT x ->> 'held_by' FROM jsonb_array_elements(kms.destruction_list('acme', 'waiting')) x), :'matter2', 'the other one waits for the matter');
SELECT is(kms.destructions_do(100) ->> 'done', '0', 'still');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'destruction.held'), 1::bigint, 'which is recorded once');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'matter2'))).verdict, 0, 'closed');
SELECT is(kms.destructions_do(100) ->> 'done', '1', 'and goes on when it is closed');
SELECT is((pg_temp.gone('k2'), (SELECT destroyed_at IS NOT NULL FROM kms.resources WHERE resource_id = pg_temp.id('space')))::text, '(t,t)', 'all of it');
SELECT is(pg_temp.sweep(), '2 resources, 2 keys, 0 recordings', 'and so does what was past its time');
SELECT is((SELECT count(*) FROM kms.holds), 0::bigint, 'nothing is held');
SELECT ok(pg_temp.last('why ttl') ~ 'resources 2 [0-9a-f]{64}\n(resource [0-9a-f-]{36}\n){2}keys 2 [0-9a-f]{64}\n(key [0-9a-f-]{36}\n){2}under 1 ', 'certified in one run');
SELECT is((SELECT encode(sha256(convert_to(string_agg(k || E'\n', '' ORDER BY k), 'UTF8')), 'hex') FROM unnest(ARRAY[pg_temp.id('k3')::text, pg_temp.id('k4')::text]) k),
          substring(pg_temp.last('why ttl') FROM '\nkeys 2 ([0-9a-f]{64})'), 'the hash of ids can be made by anybody');
SELECT pg_temp.days(0);

-- ------------------------------------------------------------------------------------------------ months
SELECT kms.node_turn(pg_temp.id('node'), 'here') IS NULL AS x \gset
SELECT is((pg_temp.work() ->> 'lead')::boolean, true, 'this keeper leads');
SELECT is((kms.destroy_work(pg_temp.id('node2'), false, 100)) -> 'reseal', NULL, 'another has nothing to move');
DELETE FROM kms.reseals;
SELECT is(pg_temp.keys('alice', '{m1,m2,m3}'), 0);
SELECT is(pg_temp.resource('alice', 'quarter', pg_temp.users('bob'), '{m1}', ttl_ms => 90 * 86400000::bigint), 0);
SELECT is(pg_temp.resource('alice', 'forever', pg_temp.users('bob'), '{m2}'), 0);
SELECT is(pg_temp.resource('alice', 'century', pg_temp.users('bob'), '{m3}', ttl_ms => 36500 * 86400000::bigint), 0);
SELECT results_eq($$ SELECT object_id FROM kms.reseals $$, $$ VALUES (pg_temp.id('m1')) $$, 'what ends within ten years is to be moved');
SELECT ok(j -> 'reseal' = '[]' AND jsonb_array_length(j -> 'make') = 1 AND j -> 'keys' = '[]', 'first a period key is needed') FROM pg_temp.work() j;
SELECT is((SELECT count(*) FROM kms.period_keys WHERE kcv IS NULL), 1::bigint, 'its id is written down before the HSM is asked');
UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second';
SELECT is(pg_temp.keep(), 1, 'then it is moved');
SELECT ok(k.generation = kms.month_generation(kms.month_first(r.expires_at)) AND k.blob = pg_temp.bytes(61, 'cd') AND w.month = kms.month_first(r.expires_at) AND w.wraps = 1 AND w.root_id = p.key_id
          AND p.month = w.month AND p.org_id = kms.nobody(), 'under its organisation''s key of that month, under the one period key of it')
  FROM kms.content_keys k JOIN kms.resources r USING (org_id, resource_id) JOIN kms.wrapping_keys w USING (org_id, generation) JOIN kms.period_keys p ON p.key_id = w.root_id
 WHERE k.key_id = pg_temp.id('m1');
SELECT is(pg_temp.get('bob', 'm1'), 0, 'it is released as before');
SELECT is((SELECT count(*) FROM kms.reseals), 0::bigint, 'nothing is left to move');
SELECT is((SELECT generation FROM kms.organisations WHERE org_id = pg_temp.id('acme')), 1, 'the current generation is what it was');
SELECT is((SELECT count(*) FROM kms.wrapping_keys_due(3600000, 1000) d WHERE d.org = pg_temp.id('acme')), 0::bigint, 'and the next one is not due');
SELECT is(kms.reseal_done(ARRAY[pg_temp.id('acme')], ARRAY[pg_temp.id('m1')], '{key}', ARRAY[pg_temp.bytes(61)], '{1}', ARRAY[kms.month_generation(kms.month_first(now() + interval '90 days'))],
          ARRAY[pg_temp.bytes(61, 'ee')]), 0, 'what is no longer as it was is not stored');
-- Keys made for it are wrapped so from the start.
SET LOCAL ROLE kms_worker;
SELECT ok(m.generation > 1000000000 AND m.wrapped = pg_temp.bytes(40, '77'), 'a worker gets the key of the month: by its resource')
  FROM kms.mint_under(ARRAY[pg_temp.id('acme')], ARRAY[pg_temp.id('quarter')], ARRAY[NULL::bigint], ARRAY[NULL::text]) m;
SELECT ok(m.generation > 1000000000, 'or by how long it is to last')
  FROM kms.mint_under(ARRAY[pg_temp.id('acme')], ARRAY[NULL::uuid], ARRAY[90 * 86400000::bigint], ARRAY[NULL::text]) m;
SELECT is(array_agg(m.generation ORDER BY m.n), '{NULL,NULL,NULL}', 'else the ordinary one: it lasts for ever, that month has none yet, the other organisation has none')
  FROM kms.mint_under(ARRAY[pg_temp.id('acme'), pg_temp.id('acme'), pg_temp.id('umbrella')], ARRAY[pg_temp.id('forever'), NULL, NULL], ARRAY[NULL, 400 * 86400000::bigint, 90 * 86400000::bigint],
       ARRAY[NULL, NULL, NULL]::text[]) m;
RESET ROLE;
SELECT is((kms.generation_current(pg_temp.id('acme'), kms.month_generation(kms.month_first(now() + interval '90 days'))), kms.generation_current(pg_temp.id('acme'), 1000000001),
           kms.generation_current(pg_temp.id('umbrella'), kms.month_generation(kms.month_first(now() + interval '90 days'))))::text, '(t,f,f)', 'what is wrapped so is taken');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE key_id = pg_temp.id('m4')), 0::bigint);
SELECT (pg_temp.ask('resource_create', 'alice', jsonb_build_object('auths', '[]'::jsonb, 'anonymous', 0, 'bound_ms', 1000, 'ttl_ms', 90 * 86400000::bigint, 'new_keys', jsonb_build_array(
    jsonb_build_object('id', pg_temp.id('m4'), 'blob', encode(pg_temp.bytes(61), 'hex'), 'generation', kms.month_generation(kms.month_first(now() + interval '90 days'))))))).verdict AS verdict \gset
SELECT is(:verdict, 0, 'minted under the month');
SELECT is((SELECT count(*) FROM kms.reseals), 0::bigint, 'it need not be moved');
SELECT is((SELECT generation FROM kms.content_keys WHERE key_id = pg_temp.id('m4')), kms.month_generation(kms.month_first(now() + interval '90 days')), 'it is where it belongs');
-- Ahead.
SELECT pg_temp.keep(true) >= 0 AS x \gset
SELECT is((SELECT count(*) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme') AND month IS NOT NULL), 2::bigint, 'the next month''s is made ahead');
SELECT pg_temp.keep(true) >= 0 AS x \gset
SELECT is((SELECT count(*) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme') AND month IS NOT NULL), 2::bigint, 'not all that will ever be');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"retention.recording","value":"86400000"}')).result ->> 'state', 'pending', 'a retention needs two');
INSERT INTO kms.settings VALUES (pg_temp.id('acme'), 'retention.recording', (86400000::bigint * 365)::text, now());
SELECT pg_temp.keep(true) >= 0 AS x \gset
SELECT ok(EXISTS (SELECT FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme') AND month = kms.month_first(now() + interval '365 days')), 'where there is a retention, before anything is recorded');

-- The month is over: one is held, the other not.
SELECT (pg_temp.agree('matter.open', jsonb_build_object('org', 'acme', 'name', 'third', 'custodians', jsonb_build_array('bob'), 'from', pg_temp.now_ms() - 86400000,
    'to', pg_temp.now_ms() + 86400000, 'kinds', jsonb_build_array('space'), 'expires', pg_temp.now_ms() + 3000 * 86400000::bigint))).result ->> 'approval' AS matter \gset
SELECT to_char(now() + interval '90 days', 'YYYY-MM') AS month \gset
SELECT key_id AS period FROM kms.period_keys WHERE month = kms.month_first(now() + interval '90 days') \gset
SELECT pg_temp.days(90.1);
SELECT pg_temp.sweep() AS x \gset
SELECT is((pg_temp.gone('m1'), pg_temp.gone('m4'))::text, '(f,t)', 'one is held, the other not');
SELECT pg_temp.keep() AS x \gset
SELECT is((SELECT ended_at FROM kms.period_keys WHERE key_id = :'period'), NULL, 'the month is not over');
SELECT pg_temp.days(125);
SELECT is(kms.generation_current(pg_temp.id('acme'), kms.month_generation(kms.month_first(now() + interval '90 days'))), false, 'nothing new is wrapped under a month that is over');
SELECT is(pg_temp.keep(), 1, 'what is held is moved');
SELECT is((SELECT generation FROM kms.content_keys WHERE key_id = pg_temp.id('m1')), kms.month_generation(kms.month_first(now() + interval '125 days')), 'to the present month');
SELECT ok(p.ended_at IS NOT NULL AND p.destroyed_at IS NOT NULL, 'then the period key goes') FROM kms.period_keys p WHERE key_id = :'period';
SELECT is((SELECT count(*) FROM kms.wrapping_keys WHERE root_id = :'period' AND (wrapped IS NOT NULL OR destroyed_at IS NULL)), 0::bigint, 'with all that it wrapped');
SELECT ok(pg_temp.last('why month') LIKE '%month ' || :'month' || '
period-key ' || :'period' || ' ________________ destroyed
node %', 'the certificate says so');
SELECT is((SELECT count(*) FROM kms.certificates WHERE text LIKE '%why month%' AND org_id = pg_temp.id('acme')), 1::bigint, 'the organisation has one of its own');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'matter'))).verdict, 0, 'closed');
SELECT is(pg_temp.sweep(), '1 resources, 1 keys, 0 recordings', 'what was held goes');
SELECT ok(pg_temp.last('why ttl') LIKE '%under ' || kms.month_generation(kms.month_first(now() + interval '125 days')) || ' 7777777777777777 ' || to_char(now() + interval '125 days', 'YYYY-MM') || '%kept%', 'certified with its month''s key');
SELECT pg_temp.days(0);
DELETE FROM kms.clocks;

-- A main key of its own: no months.
SELECT is(pg_temp.keys('eve', '{e1,e2}'), 0);
SELECT is(pg_temp.resource('eve', 'eves', keys => '{e1}', ttl_ms => 40 * 86400000::bigint), 0);
SELECT pg_temp.keep() AS x \gset
SELECT ok(generation > 1000000000, 'under its month') FROM kms.content_keys WHERE key_id = pg_temp.id('e1');
UPDATE kms.organisations SET main_key_id = pg_temp.id('main') WHERE org_id = pg_temp.id('umbrella');
SELECT is(kms.generation_current(pg_temp.id('umbrella'), kms.month_generation(kms.month_first(now() + interval '40 days'))), false, 'an organisation with a main key of its own has everything under that');
SELECT pg_temp.keep() AS x \gset
SELECT is((SELECT generation FROM kms.content_keys WHERE key_id = pg_temp.id('e1')), 1, 'what was under a month is moved');
SELECT is((SELECT count(*) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('umbrella') AND month IS NOT NULL AND wrapped IS NOT NULL), 0::bigint, 'and the month''s key is removed');
SELECT is((SELECT count(*) FROM kms.entries WHERE org_id = pg_temp.id('umbrella') AND action = 'wrapping_key.destroy'), 1::bigint, 'on record');
UPDATE kms.organisations SET main_key_id = NULL WHERE org_id = pg_temp.id('umbrella');
-- Back under the root: another key with that month's number, while somebody may have the one that was removed in hand?
SELECT kms.reseal_ask(pg_temp.id('umbrella'), pg_temp.id('e1'), 'key', 1, now() + interval '40 days') IS NULL AS x \gset
SELECT is(pg_temp.keep(true), 0, 'what was removed does not come back at once');
SELECT month_generation(month) AS month FROM kms.wrapping_keys WHERE org_id = pg_temp.id('umbrella') AND month = kms.month_first(now() + interval '40 days') \gset
SELECT is(kms.month_key_add(pg_temp.id('umbrella'), p.key_id, pg_temp.bytes(40, '78'), pg_temp.bytes(8, '78')), 409002, 'nor by a keeper that was slow')
  FROM kms.period_keys p WHERE kms.month_generation(p.month) = :month;
SELECT is((SELECT wrapped FROM kms.wrapping_keys WHERE org_id = pg_temp.id('umbrella') AND generation = :month), NULL, 'it is not there');
UPDATE kms.wrapping_keys SET destroyed_at = destroyed_at - interval '25 hours' WHERE org_id = pg_temp.id('umbrella') AND generation = :month;
UPDATE kms.reseals SET next_at = clock_timestamp() - interval '1 second';
SELECT is(pg_temp.keep(), 1, 'a day later it does');
-- Back to an ordinary generation, which is not the current one any more when it arrives.
UPDATE kms.organisations SET generation = 2 WHERE org_id = pg_temp.id('umbrella');
SELECT is(kms.reseal_done(ARRAY[pg_temp.id('umbrella')], ARRAY[pg_temp.id('e1')], '{key}', ARRAY[k.blob], ARRAY[k.generation], '{1}', ARRAY[pg_temp.bytes(61)]), 0, 'nothing is moved to a generation that was left')
  FROM kms.content_keys k WHERE k.key_id = pg_temp.id('e1');
UPDATE kms.organisations SET generation = 1 WHERE org_id = pg_temp.id('umbrella');
SELECT is(kms.reseal_done(ARRAY[pg_temp.id('umbrella')], ARRAY[pg_temp.id('e1')], '{key}', ARRAY[k.blob], ARRAY[k.generation], '{1}', ARRAY[pg_temp.bytes(61)]), 1, 'to the current one it is')
  FROM kms.content_keys k WHERE k.key_id = pg_temp.id('e1');

-- ------------------------------------------------------------------------------------------------ recordings and their retention
SELECT is(pg_temp.keys('alice', '{r1}'), 0);
SELECT is(pg_temp.resource('alice', 'call', pg_temp.users('bob'), '{r1}'), 0);
DELETE FROM kms.retention_changes;
INSERT INTO kms.recordings (org_id, recording_id, resource_id, type, key_id, generation, blob, iv, aad, creator, created_at, expires_at)
SELECT pg_temp.id('acme'), pg_temp.id('rec' || i), pg_temp.id('call'), CASE WHEN i < 3 THEN 'recording' ELSE 'transcript' END, pg_temp.id('r1'), 1, pg_temp.bytes(61), pg_temp.bytes(12), 'x', 'alice',
       now() - interval '10 days', CASE WHEN i < 3 THEN now() + interval '355 days' END FROM generate_series(1, 3) i;
SELECT is((SELECT count(*) FROM kms.reseals), 2::bigint, 'those that end are moved');
SELECT is(pg_temp.keep(), 2);
SELECT is((SELECT count(*) FROM kms.recordings WHERE generation > 1000000000), 2::bigint, 'under their month');
UPDATE kms.settings SET value = '604800000' WHERE name = 'retention.recording';
SELECT is(pg_temp.sweep(), '0 resources, 0 keys, 2 recordings', 'a shorter retention is for what is there');
SELECT ok(blob IS NULL AND iv IS NULL AND aad IS NULL AND destroyed_at IS NOT NULL, 'nothing is left') FROM kms.recordings WHERE recording_id = pg_temp.id('rec1');
SELECT is((SELECT blob IS NULL FROM kms.recordings WHERE recording_id = pg_temp.id('rec3')), false, 'transcripts have their own');
SELECT ok(pg_temp.last('why retention') ~ 'recordings 2 [0-9a-f]{64}\n(recording [0-9a-f-]{36}\n){2}under 1', 'certified');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'recording.destroy' AND kind = 'keeper'), 2::bigint, 'on record');
SELECT is((pg_temp.destroy('recording', 'rec3')).verdict, 0, 'one by command');
SELECT pg_temp.days(8);
SELECT is(kms.destructions_do(100) ->> 'done', '1', 'is done');
SELECT is((SELECT blob IS NULL FROM kms.recordings WHERE recording_id = pg_temp.id('rec3')), true, 'gone');
SELECT pg_temp.days(0);
-- A key that was bound before a matter's time, and that the message of a held recording is encrypted to.
INSERT INTO kms.recordings (org_id, recording_id, resource_id, type, key_id, generation, blob, iv, aad, creator, created_at)
VALUES (pg_temp.id('acme'), pg_temp.id('rec4'), pg_temp.id('call'), 'transcript', pg_temp.id('r1'), 1, pg_temp.bytes(61), pg_temp.bytes(12), 'x', 'alice', now());
SET LOCAL session_replication_role = replica;
UPDATE kms.content_keys SET bound_at = now() - interval '5 days' WHERE key_id = pg_temp.id('r1');
SET LOCAL session_replication_role = origin;
SELECT (pg_temp.agree('matter.open', jsonb_build_object('org', 'acme', 'name', 'fourth', 'custodians', jsonb_build_array('bob'), 'from', pg_temp.now_ms() - 86400000,
    'to', pg_temp.now_ms() + 86400000, 'kinds', jsonb_build_array('space'), 'expires', pg_temp.now_ms() + 30 * 86400000::bigint))).result ->> 'approval' AS matter \gset
SELECT is((pg_temp.destroy('key', 'r1')).result ->> 'why', 'matter ' || :'matter' || ' holds it: it can be destroyed when that matter is closed', 'a held recording holds the key of its message');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'matter'))).verdict, 0, 'closed');
SELECT (pg_temp.destroy('key', 'r1')).result -> 'result' ->> 'destruction' AS one \gset
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', :'one'::uuid))).verdict, 0, 'then it can be destroyed');

-- Whom a matter is about is taken away, or what he was on it through: what it holds it goes on to hold.
SELECT is(pg_temp.keys('alice', '{h1,h2,h3}'), 0);
SELECT is(pg_temp.resource('alice', 'room', pg_temp.users('bob'), ttl_ms => 3600000), 0);
SELECT is(pg_temp.resource('alice', 'talk', pg_temp.through('room'), '{h1}', ttl_ms => 2 * 86400000), 0);
SELECT is(pg_temp.resource('alice', 'chat', pg_temp.users('bob'), '{h2}', ttl_ms => 86400000), 0);
SELECT is(pg_temp.resource('alice', 'file', pg_temp.through('chat'), '{h3}', ttl_ms => 86400000), 0);
SELECT (pg_temp.agree('matter.open', jsonb_build_object('org', 'acme', 'name', 'fifth', 'custodians', jsonb_build_array('bob'), 'from', pg_temp.now_ms() - 86400000,
    'to', pg_temp.now_ms() + 86400000, 'kinds', jsonb_build_array('space'), 'expires', pg_temp.now_ms() + 30 * 86400000::bigint))).result ->> 'approval' AS matter \gset
INSERT INTO kms.recordings (org_id, recording_id, resource_id, type, key_id, generation, blob, iv, aad, creator, created_at)
VALUES (pg_temp.id('acme'), pg_temp.id('rec5'), pg_temp.id('chat'), 'transcript', pg_temp.id('h2'), 1, pg_temp.bytes(61), pg_temp.bytes(12), 'x', 'alice', now());
SELECT is((pg_temp.ask('authorizations_delete', 'alice', jsonb_build_object('resource', pg_temp.id('chat'), 'auths', pg_temp.users('bob'), 'bound_ms', 0))).verdict, 0, 'bob is taken away');
SELECT is((pg_temp.ask('authorizations_delete', 'alice', jsonb_build_object('resource', pg_temp.id('file'), 'auths', pg_temp.through('chat'), 'bound_ms', 0))).verdict, 0, 'and what he was there through');
SELECT is((pg_temp.ask('recording_delete', 'alice', jsonb_build_object('recording', pg_temp.id('rec5')))).verdict, 409002, 'nobody deletes a recording then');
SELECT pg_temp.days(3);
SELECT is(pg_temp.sweep(), '1 resources, 0 keys, 0 recordings', 'nor is anything destroyed, but the room without keys');
SELECT is((pg_temp.gone('h1'), pg_temp.gone('h2'), pg_temp.gone('h3'))::text, '(f,f,f)', 'not what was open to the room, either');
SELECT is((SELECT count(*) FROM kms.authorizations_past), 2::bigint, 'it is remembered');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'matter'))).verdict, 0, 'closed');
SELECT is(pg_temp.sweep(), '3 resources, 3 keys, 1 recordings', 'then it goes');
SELECT is((SELECT count(*) FROM kms.authorizations_past), 0::bigint, 'and so does what was remembered');
SELECT pg_temp.days(0);

-- A resource with so many keys that nobody could wait for it: in steps, and gone at the first.
CREATE OR REPLACE FUNCTION kms.destruction_step() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 2;
SELECT is(pg_temp.keys('alice', '{v1,v2,v3,v4,v5,w1,w2,w3}'), 0);
SELECT is(pg_temp.resource('alice', 'large', pg_temp.users('bob'), '{v1,v2,v3,v4,v5}'), 0);
SELECT (pg_temp.destroy('resource', 'large')).result -> 'result' ->> 'destruction' AS one \gset
SELECT pg_temp.days(8);
SELECT is(kms.destructions_do(100)::text, '{"done": 0, "more": true}', 'two of five');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('large') AND blob IS NOT NULL), 3::bigint, 'three are left');
SELECT is((SELECT max(pg_temp.get('bob', k)) || ' ' || min(pg_temp.get('bob', k)) FROM unnest('{v1,v2,v3,v4,v5}'::text[]) k), '410001 410001', 'that nobody gets');
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', :'one'::uuid))).verdict, 409002, 'nor brings back');
SELECT is((kms.destructions_do(100), kms.destructions_do(100))::text, '("{""done"": 0, ""more"": true}","{""done"": 1, ""more"": false}")', 'then the others');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('large') AND blob IS NOT NULL), 0::bigint, 'all of them');
SELECT is((SELECT count(*) FROM kms.certificates WHERE text LIKE '%destruction ' || :'one' || '%'), 3::bigint, 'each step has its certificate');
SELECT pg_temp.days(0);
SELECT kms.destruction_waiting(0);
SELECT is(pg_temp.resource('alice', 'large at once', pg_temp.users('bob'), '{w1,w2,w3}'), 0);
SELECT is((pg_temp.destroy('resource', 'large at once')).verdict, 0, 'without a waiting period the first step is at once');
SELECT is((SELECT count(blob) FROM kms.content_keys WHERE resource_id = pg_temp.id('large at once')), 1::bigint);
SELECT is(kms.destructions_do(100)::text, '{"done": 1, "more": false}', 'and the others follow');
SELECT is((SELECT count(blob) FROM kms.content_keys WHERE resource_id = pg_temp.id('large at once')), 0::bigint, 'all');
SELECT kms.destruction_waiting(604800000);
CREATE OR REPLACE FUNCTION kms.destruction_step() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 5000;

-- ------------------------------------------------------------------------------------------------ the clock
SELECT is(pg_temp.keys('alice', '{t1,t2}', unbound_ms => 86400000::bigint * 20), 0);
SELECT is(pg_temp.resource('alice', 'month', keys => '{t1}', ttl_ms => 30 * 86400000::bigint), 0);
SET LOCAL ROLE kms_keeper;
SELECT is((kms.clock_tick(pg_temp.id('boot'), 1000) ->> 'held')::boolean, false, 'the first one has nothing to compare with');
RESET ROLE;
SELECT pg_temp.days(31);
SELECT is((pg_temp.sweep(), kms.sweep(1000) ->> 'unbound_keys')::text, '("0 resources, 0 keys, 0 recordings",0)', 'the clock jumps: nothing is destroyed early, before a keeper has noticed');
SELECT is((kms.clock_tick(pg_temp.id('boot'), 11000) ->> 'held')::boolean, true, 'he notices');
SELECT is((pg_temp.sweep(), kms.destructions_do(100) ->> 'done')::text, '("0 resources, 0 keys, 0 recordings",0)', 'still');
SELECT is((kms.clock_tick(pg_temp.id('reboot'), 100) ->> 'held')::boolean, true, 'a restart does not help');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'clock.ahead'), 1::bigint, 'on record once');
SELECT pg_temp.days(0);
SELECT is((kms.clock_tick(pg_temp.id('boot'), 21000) ->> 'held')::boolean, false, 'it is set right again');
SELECT pg_temp.days(31);
SELECT is((kms.clock_tick(pg_temp.id('boot'), 21000 + 31 * 86400000::bigint) ->> 'held')::boolean, false, 'a month that went by is none that was skipped');
SELECT is(pg_temp.sweep(), '1 resources, 1 keys, 0 recordings', 'and is destroyed in');
SELECT is((pg_temp.act('clock.confirm', '{}')).verdict, 409002, 'nothing is to be confirmed');
SELECT pg_temp.days(71);
SELECT is((kms.clock_tick(pg_temp.id('boot'), 22000 + 31 * 86400000::bigint) ->> 'held')::boolean, true, 'ahead again');
SELECT is((pg_temp.act('clock.confirm', '{}')).result ->> 'state', 'pending', 'one officer cannot say that the clock is right');
SELECT is((SELECT (pg_temp.look(approval_id), (pg_temp.approve(approval_id)).verdict)::text ~ ',0\)$' FROM kms.approvals WHERE action = 'clock.confirm'), true, 'two can');
SELECT is((kms.clock_tick(pg_temp.id('boot'), 23000 + 31 * 86400000::bigint) ->> 'held')::boolean, false, 'then it is');
SELECT pg_temp.days(0);
DELETE FROM kms.clocks;

-- A jump of hours: nothing of it is believed while somebody looks on.
CREATE FUNCTION pg_temp.tick(boot text, seconds numeric) RETURNS interval LANGUAGE sql AS $$
    SELECT justify_hours(date_trunc('minute', make_interval(secs => ((j ->> 'now')::bigint - (j ->> 'trusted')::bigint) / 1000.0 + 30)))
      FROM kms.clock_tick(pg_temp.id(boot), (seconds * 1000)::bigint) j $$;
SELECT is(pg_temp.keys('alice', '{t3,t4,t5}'), 0);
SELECT is(pg_temp.resource('alice', 'hours', keys => '{t3}', ttl_ms => 4 * 3600000), 0);
SELECT is(pg_temp.tick('boot', 1000), '0');
SELECT is(pg_temp.tick('other', 5), '0');
SELECT pg_temp.days(5 / 24.0);
SELECT is(pg_temp.tick('boot', 1002), '5 hours', 'five hours in two seconds');
SELECT is(pg_temp.sweep(), '0 resources, 0 keys, 0 recordings', 'destroy nothing early');
SELECT is((pg_temp.tick('third', 1), pg_temp.sweep())::text, '(05:00:00,"0 resources, 0 keys, 0 recordings")', 'nor when another node starts');
SELECT is(pg_temp.tick('other', 7 + 3600 * 2), '2 hours 55 minutes', 'what goes by counts, and an hour in a day more');
SELECT is((pg_temp.act('clock.confirm', '{}')).result ->> 'state', 'pending', 'officers may say that the clock is right');
SELECT pg_temp.days(0);
SELECT is(pg_temp.tick('boot', 1004), '0', 'it is set right again');
SELECT is(pg_temp.sweep(), '0 resources, 0 keys, 0 recordings', 'nothing is destroyed by that');
-- A clock that was wrong when something was made.
SELECT pg_temp.days(-365);
SELECT is(pg_temp.tick('boot', 1010), '0', 'the clock is set back');
SELECT is(pg_temp.resource('alice', 'meanwhile', keys => '{t4}', ttl_ms => 86400000), 0);
UPDATE kms.resources SET expires_at = kms.wall() + interval '30 days' WHERE resource_id = pg_temp.id('meanwhile');
SELECT pg_temp.days(0);
SELECT is((pg_temp.tick('other', 7 + 3600 * 2 + 6), pg_temp.tick('boot', 1012))::text, '("365 days","365 days")', 'and right again: a year that did not go by');
SELECT is(pg_temp.sweep(), '0 resources, 0 keys, 0 recordings', 'what was made meanwhile is not past its time');
UPDATE kms.resources SET expires_at = NULL WHERE resource_id = pg_temp.id('meanwhile');
-- A keeper's clock that jumps helps nobody either.
DELETE FROM kms.clocks;
SELECT is(pg_temp.tick('boot', 1000), '0');
SELECT is(pg_temp.tick('boot', 1000 + 86400 * 3650), '0', 'ten years by a node''s clock alone');
SELECT pg_temp.days(2);
SELECT is((pg_temp.tick('boot', 1002 + 86400 * 3650), pg_temp.sweep())::text, '("2 days","0 resources, 0 keys, 0 recordings")', 'do not make room for two days of the database''s');
SELECT pg_temp.days(0);
-- All nodes were down for a while.
DELETE FROM kms.clocks;
SELECT is(pg_temp.tick('boot', 1000), '0');
SELECT pg_temp.days(0.5);
SELECT is(pg_temp.tick('boot again', 10), '0', 'half a day without any node went by');
SELECT pg_temp.days(1.5);
SELECT is((pg_temp.tick('and again', 10))::text, '1 day', 'a day and a half in two parts: somebody must say so');
SELECT pg_temp.days(0);
DELETE FROM kms.clocks;

-- ------------------------------------------------------------------------------------------------ an organisation
SELECT is(pg_temp.keys('eve', '{e3}'), 0);
SELECT is(pg_temp.resource('eve', 'last', keys => '{e3}'), 0);
SELECT pg_temp.keep() AS x \gset
SELECT (pg_temp.destroy('org', 'umbrella')).result -> 'result' ->> 'destruction' AS org \gset
SELECT is(pg_temp.get('eve', 'e3'), 0, 'it waits');
SELECT (pg_temp.agree('cmk.public_key', '{"org":"umbrella"}')).result ->> 'job' AS job \gset
SELECT is((SELECT count(*) FROM kms.main_key_jobs WHERE org_id = pg_temp.id('umbrella')), 1::bigint, 'somebody is about to bring in a main key');
SELECT pg_temp.days(8);
SELECT is(kms.destructions_do(1)::text, '{"done": 0, "more": true}', 'its time is over');
SELECT is((SELECT count(*) FROM kms.main_key_jobs WHERE org_id = pg_temp.id('umbrella')), 0::bigint, 'that is over as well');
SELECT is((pg_temp.act('cmk.public_key', '{"org":"umbrella"}')).verdict, 404001, 'and does not begin again');
SELECT is((pg_temp.get('eve', 'e3'), (SELECT org FROM kms.orgs_get('{umbrella}')), (SELECT count(*) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('umbrella') AND wrapped IS NOT NULL))::text, '(499001,,0)', 'at once nothing of it opens');
SELECT is((SELECT verdict FROM kms.org_set_state(gen_random_uuid(), 'umbrella', 'active', 'root')), 409002, 'and nobody resumes it');
SELECT is((pg_temp.act('destruction.undo', jsonb_build_object('destruction', :'org'))).verdict, 409002, 'nor undoes it');
SELECT (SELECT max(kms.destructions_do(1)::text) FROM generate_series(1, 6)) IS NULL AS x \gset
SELECT is((SELECT count(*) FROM kms.content_keys WHERE org_id = pg_temp.id('umbrella') AND blob IS NOT NULL), 0::bigint, 'then its rows are cleared');
SELECT is((SELECT state FROM kms.destructions WHERE kind = 'organisation'), 'waiting', 'it is done when every node has forgotten it');
SELECT pg_temp.keep() AS x \gset
SELECT is(kms.destructions_do(1) ->> 'done', '1', 'done');
SELECT ok(c.text ~ 'why organisation\ndestruction [^\n]*\napproval [^\n]*\nrequested [^\n]*\n(approved [^\n]*\n){2}resources 2 [^\n]*\nkeys 2 [^\n]*\nwrapping-keys [0-9]+ [^\n]*\n(wrapping-key [^\n]* destroyed\n)+$', 'certified')
  FROM kms.certificates c JOIN kms.destructions d USING (certificate_id) WHERE d.kind = 'organisation';
SELECT is((pg_temp.destroy('org', 'umbrella')).verdict, 409002, 'once');
SELECT is((SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), pg_temp.id('umbrella'), o.generation + 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper')), 404001, 'it gets no wrapping key')
  FROM kms.organisations o WHERE o.name = 'umbrella';

-- ------------------------------------------------------------------------------------------------ certificates, previews
SELECT is((SELECT count(*) FROM kms.certificates WHERE octet_length(text) > 4096), 0::bigint, 'each can be signed');
SELECT certificate_id AS cert, org_id AS org FROM kms.certificates ORDER BY created_at LIMIT 1 \gset
SET LOCAL ROLE kms_keeper;
SELECT is(kms.certificate_signed(:'org', :'cert', 'another text' || E'\n\nsigned'), false, 'a note of another text is not taken');
SELECT is(kms.certificate_signed(:'org', :'cert', (kms.certificate_show(:'cert') ->> 'text') || E'\nsigned\n'), true, 'its note is');
SELECT is(kms.certificate_signed(:'org', :'cert', (kms.certificate_show(:'cert') ->> 'text') || E'\nsigned again\n'), false, 'once');
RESET ROLE;
SELECT throws_ok($$ UPDATE kms.certificates SET text = 'nothing was destroyed' $$, '42501', NULL, 'it never changes');
SELECT throws_ok($$ UPDATE kms.certificates SET note = 'x' WHERE note IS NOT NULL $$, '42501', NULL, 'nor does its signature');
SELECT throws_ok($$ DELETE FROM kms.certificates $$, '42501', NULL, 'it stays');
SELECT is(jsonb_array_length(kms.certificate_list('acme', 3)), 3, 'the last ones');
SELECT is(kms.certificate_list('none', 3), NULL, 'no such organisation');
SELECT is(kms.retention_preview('none', NULL, 3), NULL, 'nor its preview');
SELECT pg_temp.days(1);
DELETE FROM kms.retention_days;
INSERT INTO kms.retention_days VALUES (pg_temp.id('acme'), (kms.wall() AT TIME ZONE 'UTC')::date - 1, '{"resources":7,"keys":0,"recordings":0,"commands":0,"held":0}');
SELECT is(x -> 'yesterday' ->> 'resources', '7', 'the preview says what yesterday''s said') FROM jsonb_array_elements(kms.retention_preview('acme', NULL, 10) -> 'organisations') x;
SELECT is((SELECT count(*) FROM kms.retention_days WHERE org_id = pg_temp.id('acme')), 2::bigint, 'and keeps its own');

-- ------------------------------------------------------------------------------------------------ what does not work in the HSM
SELECT kms.month_ask(pg_temp.id('acme'), '2099-01-01') ->> 'period' AS period \gset
SELECT ok(kms.period_renew(:'period'), 'a period key that does not work gets another id');
SELECT ok(NOT kms.period_renew(:'period'), 'once');
SELECT kms.period_made(:'period', '\x0102030405060708');
SELECT ok(bool_and(kcv IS NULL), 'a keeper that made the old one after all is too late') FROM kms.period_keys WHERE month = '2099-01-01';
SELECT kms.month_ask(pg_temp.id('acme'), '2099-01-01') ->> 'period' AS renewed \gset
SELECT isnt(:'renewed'::uuid, :'period'::uuid, 'the new id is asked for');
SELECT kms.period_made(:'renewed', '\x0102030405060708');
SELECT ok(NOT kms.period_renew(:'renewed'), 'one that was made stays');
SELECT is((SELECT key_id FROM kms.period_keys WHERE month = '2099-01-01'), :'renewed'::uuid, 'under its id');

SELECT * FROM finish();
ROLLBACK;
