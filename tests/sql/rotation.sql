-- Rotation: roots, wrapping keys, what is moved and what is left where it is.
BEGIN;
\ir fixture.psql
\ir officers.psql
SELECT plan(160);

CREATE FUNCTION pg_temp.turn(node text, fresh boolean DEFAULT false) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    v := kms.node_turn(pg_temp.id(node), node, fresh);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.found(node text, root uuid, opened boolean, gone boolean DEFAULT false, why text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    SET LOCAL ROLE kms_keeper;
    PERFORM kms.node_root(pg_temp.id(node), root, opened, gone, why);
    RESET ROLE;
END $$;
CREATE FUNCTION pg_temp.nil() RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT '00000000-0000-0000-0000-000000000000'::uuid $$;
-- The root's rotation as the keeper that leads sees it.
CREATE FUNCTION pg_temp.rotation() RETURNS uuid LANGUAGE sql AS $$ SELECT rotation_id FROM kms.rotations WHERE kind = 'root' AND state = 'running' $$;
CREATE FUNCTION pg_temp.phase() RETURNS text LANGUAGE sql AS $$ SELECT kms.rotations_status() #>> '{root,phase}' $$;
CREATE FUNCTION pg_temp.advance() RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v jsonb;
    v_rotation uuid := pg_temp.rotation();
BEGIN
    SET LOCAL ROLE kms_keeper;
    v := kms.root_rotation_advance(v_rotation);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.made(root text) RETURNS integer LANGUAGE sql AS $$
    SELECT kms.root_rotation_made(pg_temp.rotation(), pg_temp.id(root), pg_temp.bytes(8), pg_temp.bytes(40, '05'), pg_temp.bytes(61, '05')) $$;
-- One batch of the re-wrapping: each gets the bytes that p_fill names.
CREATE FUNCTION pg_temp.rewrap(to_root text, lim integer DEFAULT 100, p_fill text DEFAULT '77') RETURNS integer LANGUAGE sql AS $$
    SELECT kms.rewrap_store(pg_temp.rotation(), pg_temp.id(to_root), array_agg(n.org), array_agg(n.generation), array_agg(n.wrapped), array_agg(pg_temp.bytes(40, p_fill)))
      FROM kms.rewrap_next(pg_temp.nil(), 0, lim) n $$;
CREATE FUNCTION pg_temp.next_key(org text, generation integer, root text DEFAULT 'root') RETURNS integer LANGUAGE sql AS $$
    SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), pg_temp.id(org), generation, pg_temp.id(root), pg_temp.bytes(40, '02'), pg_temp.bytes(8, '02'), 'keeper') $$;
-- One batch of the re-sealing; some may fail.
CREATE FUNCTION pg_temp.reseal(lim integer DEFAULT 100, failing uuid DEFAULT NULL) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    CREATE TEMP TABLE batch ON COMMIT DROP AS SELECT * FROM kms.reseal_next(lim);
    SELECT kms.reseal_store(b.rotation, b.org, b.part, b.scanned, b.more,
               coalesce(array_agg(b.object) FILTER (WHERE b.object <> coalesce(failing, pg_temp.nil())), '{}'),
               coalesce(array_agg(b.blob) FILTER (WHERE b.object <> coalesce(failing, pg_temp.nil())), '{}'),
               coalesce(array_agg(b.generation) FILTER (WHERE b.object <> coalesce(failing, pg_temp.nil())), '{}'), b.to_generation,
               coalesce(array_agg(pg_temp.bytes(61, 'cc')) FILTER (WHERE b.object <> coalesce(failing, pg_temp.nil())), '{}'),
               count(*) FILTER (WHERE b.object = failing)::integer)
      INTO v FROM batch b GROUP BY b.rotation, b.org, b.part, b.scanned, b.more, b.to_generation;
    DROP TABLE batch;
    RESET ROLE;
    RETURN v;
END $$;
GRANT TEMPORARY ON DATABASE :DBNAME TO kms_keeper;

-- A root, two nodes.
SET LOCAL ROLE kms_keeper;
SELECT is(kms.root_add(pg_temp.id('root'), pg_temp.bytes(8), pg_temp.bytes(40), pg_temp.bytes(61), 'keeper'), 0, 'a root is recorded');
SELECT is(verdict, 0, 'the installation has a wrapping key')
  FROM kms.wrapping_key_add(gen_random_uuid(), pg_temp.nil(), 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper');
RESET ROLE;
SELECT is(pg_temp.turn('n1') -> 'lead', 'true', 'one keeper leads');
SELECT is(pg_temp.turn('n2') -> 'lead', 'false', 'and no other');
SELECT is(pg_temp.turn('n1') ->> 'active', pg_temp.id('root')::text, 'which root is active');
SELECT is(pg_temp.turn('n1') -> 'rotation', 'null', 'nothing to rotate');
UPDATE kms.keeper_lease SET until = clock_timestamp();
SELECT is(pg_temp.turn('n2') -> 'lead', 'true', 'another leads when the first is gone');
SELECT is(pg_temp.turn('n1') -> 'lead', 'false');
UPDATE kms.keeper_lease SET until = clock_timestamp() + interval '3 hours';
SELECT is(pg_temp.turn('n1') -> 'lead', 'true', 'nobody leads for hours because the clock was put back');
SELECT is(pg_temp.turn('n2') -> 'lead', 'false', 'and one leads');
UPDATE kms.keeper_lease SET until = clock_timestamp();
SELECT is(pg_temp.turn('n2') -> 'lead', 'true', 'until it is gone');

-- Officers.
SELECT is((pg_temp.act('root.rotate', '{"x":1}')).verdict, 400002, 'no arguments');
SELECT is((pg_temp.act('root.retire', '{}')).verdict, 400002, 'which root?');
SELECT is((pg_temp.act('root.retire', jsonb_build_object('root', pg_temp.id('none')))).verdict, 404001, 'no such root');
SELECT is((pg_temp.act('root.retire', jsonb_build_object('root', pg_temp.id('root')))).verdict, 409002, 'not the active one');
SELECT is((pg_temp.act('root.destroy', jsonb_build_object('root', pg_temp.id('root')))).verdict, 409002, 'nor is it destroyed');
SELECT is((pg_temp.act('root.none', '{}')).verdict, 400002, 'no such action');
SELECT is((pg_temp.act('root.rotate', '{}')).result ->> 'state', 'pending', 'one officer alone does not rotate');
SELECT is(pg_temp.rotation(), NULL, 'and nothing happens');
SELECT is((pg_temp.act('root.rotate', '{}', 3)).verdict, 409002, 'once');
SELECT ok(pg_temp.look((SELECT approval_id FROM kms.approvals WHERE action = 'root.rotate')) -> 'impact' @> '{"wrapping_keys":3}', 'the report: three wrapping keys');
SELECT is((pg_temp.approve((SELECT approval_id FROM kms.approvals WHERE action = 'root.rotate'))).result ->> 'state', 'done', 'two do');
SELECT is((pg_temp.act('root.rotate', '{}', 3)).verdict, 409002, 'not while one is under way');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'root.rotate' AND verdict = 0), 1::bigint, 'on record');

-- Name, make.
SELECT is(pg_temp.phase(), 'name');
SET LOCAL ROLE kms_keeper;
SELECT is(kms.root_rotation_name(r.rotation, '', pg_temp.id('first')), pg_temp.id('first')::text, 'an id is written down') FROM (SELECT (kms.rotations_status() #>> '{root,rotation}')::uuid AS rotation) r;
SELECT is(kms.root_rotation_name(r.rotation, '', pg_temp.id('second')), pg_temp.id('first')::text, 'who comes later gets the same') FROM (SELECT (kms.rotations_status() #>> '{root,rotation}')::uuid AS rotation) r;
SELECT is(kms.root_rotation_name(r.rotation, pg_temp.id('first')::text, pg_temp.id('new')), pg_temp.id('new')::text, 'one that could not be made is replaced') FROM (SELECT (kms.rotations_status() #>> '{root,rotation}')::uuid AS rotation) r;
RESET ROLE;
SELECT is(pg_temp.phase(), 'make');
SELECT is(pg_temp.made('other'), 409002, 'not another one');
SELECT is(pg_temp.made('new'), 0, 'made');
SELECT is(pg_temp.made('new'), 0, 'again: the same');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('new')), 'added');
SET LOCAL ROLE kms_keeper;
SELECT is(kms.root_rotation_name(r.rotation, pg_temp.id('new')::text, pg_temp.id('x')), pg_temp.id('new')::text, 'its id stays') FROM (SELECT (kms.rotations_status() #>> '{root,rotation}')::uuid AS rotation) r;
RESET ROLE;

-- Every node opens it first.
SELECT is(pg_temp.phase(), 'wait');
SELECT is(jsonb_array_length(pg_temp.turn('n1') -> 'open'), 1, 'each node is asked to open it');
SELECT is(jsonb_array_length(pg_temp.advance() -> 'waits'), 2, 'both have not');
SELECT is(pg_temp.found('n1', pg_temp.id('new'), true)::text, '');
SELECT is(pg_temp.turn('n1') -> 'open', '[]', 'once');
SELECT is(jsonb_array_length(pg_temp.turn('n1', true) -> 'open'), 1, 'and again when it has started anew');
SELECT is(pg_temp.found('n1', pg_temp.id('new'), true)::text, '');
SELECT is(pg_temp.found('n2', pg_temp.id('new'), false, why => 'its token does not hold this root')::text, '');
SELECT is(pg_temp.advance() #>> '{waits,0,why}', 'its token does not hold this root', 'one that cannot blocks it');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('new')), 'added');
UPDATE kms.roots SET created_at = created_at - interval '1 minute' WHERE root_id = pg_temp.id('new');
SELECT is(pg_temp.advance() ->> 'state', 'added');
SELECT matches(kms.rotations_status() #>> '{root,problem}', 'n2: its token does not hold this root', 'and everybody is told');
SELECT is(pg_temp.next_key('acme', 2, 'new'), 409002, 'nothing goes under it yet');

-- It can be given up until it is active.
SAVEPOINT before;
SELECT is((pg_temp.act('root.retire', jsonb_build_object('root', pg_temp.id('new')))).verdict, 0, 'given up at once');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('new')), 'retired');
SELECT is(pg_temp.rotation(), NULL, 'with its rotation');
SELECT is(kms.root_active(), pg_temp.id('root'), 'the old one stays');
ROLLBACK TO before;
-- A node that is gone does not block it.
UPDATE kms.nodes SET seen_at = seen_at - interval '91 seconds' WHERE node = 'n2';
SELECT is(pg_temp.advance() ->> 'state', 'verified', 'a node that is gone does not count');
ROLLBACK TO before;
SELECT is(pg_temp.found('n2', pg_temp.id('new'), true)::text, '');
SELECT is(pg_temp.advance() ->> 'state', 'verified', 'verified by all');
SELECT is(kms.root_active(), pg_temp.id('root'), 'not active yet');
SELECT is(pg_temp.turn('n3') ->> 'lead', 'false', 'a node that comes now');
SELECT is(pg_temp.advance() ->> 'state', 'verified', 'is waited for');
SELECT is(pg_temp.found('n3', pg_temp.id('new'), true)::text, '');
SELECT is(pg_temp.advance() ->> 'state', 'active', 'the switch');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('root')), 'leaving');
SELECT is(pg_temp.phase(), 'rewrap');
SELECT is((kms.rotations_status() #>> '{root,total}')::integer, 3, 'three wrapping keys to move');
SELECT is((pg_temp.act('root.retire', jsonb_build_object('root', pg_temp.id('new')))).verdict, 409002, 'it cannot be given up any more');
SELECT is((pg_temp.act('root.retire', jsonb_build_object('root', pg_temp.id('root')))).verdict, 409002, 'and the old one is needed');
SELECT is(pg_temp.next_key('acme', 2), 409002, 'nothing new under the old one');
SELECT throws_ok(format($$ SELECT kms.org_add(gen_random_uuid(), 'late', gen_random_uuid(), 1, %L, pg_temp.bytes(40), pg_temp.bytes(8), 'x') $$, pg_temp.id('root')), '55000', NULL, 'nor an organisation');
SAVEPOINT switched;
UPDATE kms.wrapping_keys SET root_id = pg_temp.id('new') WHERE org_id = pg_temp.id('acme');
SELECT throws_ok(format($$ UPDATE kms.wrapping_keys SET root_id = %L WHERE org_id = %L $$, pg_temp.id('root'), pg_temp.id('acme')), '55000', NULL, 'nor back');
ROLLBACK TO switched;
SELECT is(pg_temp.next_key('acme', 2, 'new'), 0, 'but under the new one');

-- Wrapping keys move.
SELECT is((SELECT count(*) FROM kms.rewrap_next(pg_temp.nil(), 0, 2)), 2::bigint, 'in batches');
SELECT is((SELECT count(*) FROM kms.rewrap_next(pg_temp.id('umbrella'), 1, 100)), (SELECT count(*) FROM kms.wrapping_keys WHERE root_id = pg_temp.id('root') AND org_id > pg_temp.id('umbrella')), 'after one');
SELECT is(kms.rewrap_store(pg_temp.rotation(), pg_temp.id('new'), ARRAY[pg_temp.id('acme')], '{1}', ARRAY[pg_temp.bytes(40, '99')], ARRAY[pg_temp.bytes(40, '88')]), 0, 'not one that is another by now');
SELECT is(pg_temp.rewrap('new', 1), 1, 'one');
SELECT is(pg_temp.phase(), 'rewrap');
-- What is under a main key is none of the root's business.
INSERT INTO kms.main_keys (org_id, main_key_id, state, created_at, state_at) VALUES (pg_temp.id('umbrella'), pg_temp.id('main'), 'ACTIVE', now(), now());
UPDATE kms.wrapping_keys SET root_id = pg_temp.id('main'), wrapped = pg_temp.bytes(40, '66') WHERE org_id = pg_temp.id('umbrella');
SELECT is(pg_temp.rewrap('new'), (SELECT 1), 'the rest');
SELECT is((SELECT array_agg(wrapped ORDER BY org_id) = array_fill(pg_temp.bytes(40, '77'), '{2}') FROM kms.wrapping_keys WHERE generation = 1 AND root_id = pg_temp.id('new')), true, 'as they were made');
SELECT is((SELECT wrapped FROM kms.wrapping_keys WHERE org_id = pg_temp.id('umbrella')), pg_temp.bytes(40, '66'), 'a customer''s own stay');
SELECT is((kms.rotations_status() #>> '{root,done}')::integer, 2, 'counted');

-- The check.
SELECT is(pg_temp.phase(), 'check');
SELECT is(pg_temp.channel('alice.new', generation => 2), 0);
SELECT is(pg_temp.keys('alice', '{k1,k2}', generation => 2), 0);
SELECT results_eq($$ SELECT generation, root, channel, object IS NOT NULL, blob FROM kms.check_next(pg_temp.id('acme'), 0, 2) WHERE org = pg_temp.id('acme') $$,
    $$ VALUES (1, pg_temp.id('new'), true, true, pg_temp.bytes(61)), (2, pg_temp.id('new'), false, true, pg_temp.bytes(61)) $$, 'of each generation a key, or a channel');
SELECT is((SELECT count(*) FROM kms.check_next(pg_temp.nil(), 0, 100)), 3::bigint, 'of the installation too, none of what is under a main key');
SELECT is((SELECT blob FROM kms.check_next(pg_temp.nil(), 0, 1)), NULL, 'where there is nothing: nothing');
SET LOCAL ROLE kms_keeper;
SELECT is(kms.root_rotation_end((kms.rotations_status() #>> '{root,rotation}')::uuid, 2, 1, 'organisation x'), false, 'something did not open');
RESET ROLE;
SELECT matches(kms.rotations_status() #>> '{root,problem}', '1 of 3 generations did not open: organisation x', 'it is told');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('root')), 'leaving', 'the old root stays');
SELECT is(kms.root_rotation_end(pg_temp.rotation(), 3, 0, ''), true, 'all opens');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('root')), 'retired', 'then it is retired');
SELECT is(pg_temp.rotation(), NULL, 'done');
SELECT is_empty('SELECT * FROM kms.check_next(pg_temp.nil(), 0, 100)', 'who asks without a rotation is given nothing');
SELECT is((SELECT array_agg(action ORDER BY entry_id) FROM kms.entries WHERE org_id = pg_temp.nil() AND kind = 'keeper' AND action LIKE 'root.%'), '{root.add,root.add,root.verify,root.switch,root.retire}', 'each step is on record');

-- The end of the old one.
SELECT is((pg_temp.act('root.destroy', jsonb_build_object('root', pg_temp.id('root')))).verdict, 409002, 'not at once');
UPDATE kms.roots SET changed_at = changed_at - interval '3 minutes' WHERE root_id = pg_temp.id('root');
SELECT is((pg_temp.agree('root.destroy', jsonb_build_object('root', pg_temp.id('root')))).result ->> 'state', 'done', 'by two officers');
SELECT is(pg_temp.turn('n1') -> 'destroy', jsonb_build_array(pg_temp.id('root')), 'each node does it');
SELECT is(pg_temp.found('n1', pg_temp.id('root'), false, true)::text, '');
SELECT is(pg_temp.turn('n1') -> 'destroy', '[]', 'once');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('root')), 'destroying');
SELECT is(pg_temp.found('n2', pg_temp.id('root'), false, true)::text, '');
SELECT is(pg_temp.found('n3', pg_temp.id('root'), false, false, 'busy')::text, '');
SELECT is((SELECT state FROM kms.roots WHERE root_id = pg_temp.id('root')), 'destroying');
SELECT is(pg_temp.found('n3', pg_temp.id('root'), false, true)::text, '');
SELECT ok(state = 'destroyed' AND destroyed_at IS NOT NULL, 'with the last one it is gone') FROM kms.roots WHERE root_id = pg_temp.id('root');
SELECT is(pg_temp.turn('n4') -> 'destroy', jsonb_build_array(pg_temp.id('root')), 'a node that comes later does it too');
SELECT is((SELECT r ->> 'state' FROM jsonb_array_elements(kms.roots_list()) r WHERE r ->> 'root' = pg_temp.id('root')::text), 'destroyed', 'and it stays on the list');

-- What is needed is not destroyed.
UPDATE kms.roots SET state = 'retired', changed_at = changed_at - interval '3 minutes', destroyed_at = NULL WHERE root_id = pg_temp.id('root');
SET LOCAL session_replication_role = replica;
UPDATE kms.wrapping_keys SET root_id = pg_temp.id('root') WHERE org_id = pg_temp.id('acme') AND generation = 1;
SET LOCAL session_replication_role = origin;
SELECT matches((pg_temp.act('root.destroy', jsonb_build_object('root', pg_temp.id('root')))).result ->> 'why', '1 wrapping keys are still under', 'while one wrapping key is under it');
UPDATE kms.wrapping_keys SET root_id = pg_temp.id('new') WHERE org_id = pg_temp.id('acme') AND generation = 1;

-- Wrapping keys by command.
SELECT is((pg_temp.act('wrapping_key.rotate', '{"org":"none"}')).verdict, 404001);
SELECT is((pg_temp.act('wrapping_key.rotate', '{"org":"acme"}')).result -> 'wrapping_keys', '1', 'asked for');
SELECT is(pg_temp.turn('n2') -> 'replace', 'true', 'the keeper hears of it');
SELECT results_eq('SELECT org, generation, parent FROM kms.wrapping_keys_due(3600000, 1000)', $$ VALUES (pg_temp.id('acme'), 2, NULL::uuid) $$, 'it is due');
SELECT is(pg_temp.next_key('acme', 3, 'new'), 0, 'and made');
SELECT is_empty('SELECT FROM kms.wrapping_keys_due(3600000, 1000)', 'once');
SELECT is((pg_temp.act('wrapping_key.rotate', '{}')).result -> 'wrapping_keys', '3', 'of all, and of the installation');
UPDATE kms.organisations SET locked = 405005 WHERE org_id = pg_temp.id('umbrella');
SELECT is((SELECT count(*) FROM kms.wrapping_keys_due(3600000, 1000)), 2::bigint, 'not of who is locked');
UPDATE kms.organisations SET locked = 0;
UPDATE kms.wrapping_keys SET replace_at = NULL;

-- Those of months are none of it.
INSERT INTO kms.wrapping_keys (org_id, generation, root_id, wrapped, kcv, month, created_at) VALUES (pg_temp.id('acme'), 1000000004, pg_temp.id('period'), pg_temp.bytes(40), pg_temp.bytes(8), '2031-01-01', now());
SELECT is(pg_temp.next_key('acme', 4, 'new'), 0, 'the next one');
SELECT is((SELECT generation FROM kms.organisations WHERE org_id = pg_temp.id('acme')), 4, 'counts on');

-- Keys move: k1, k2 under 2, m under the month's, old under 1, gone destroyed.
INSERT INTO kms.content_keys (org_id, key_id, generation, blob, creator, client_id, created_at, expires_at, destroyed_at)
SELECT pg_temp.id('acme'), pg_temp.id(k), g, b, 'alice', 'phone', now(), now() + interval '1 day', d
  FROM (VALUES ('m', 1000000004, pg_temp.bytes(61), NULL::timestamptz), ('old', 1, pg_temp.bytes(61), NULL), ('gone', 1, NULL, now()), ('new', 4, pg_temp.bytes(61), NULL)) v(k, g, b, d);
SELECT is((SELECT count(*) FROM kms.rotations WHERE kind = 'wrapping_key' AND state = 'running'), 1::bigint, 'one rotation, of the last generation');
SELECT is(pg_temp.turn('n2') -> 'keys', 'true', 'there is work');
SELECT is_empty('SELECT * FROM kms.reseal_next(10)', 'not before nobody writes under the older ones');
SELECT is(kms.reseal_begin(60), 0, 'it may wait for others');
SELECT is(kms.reseal_begin(0), 1, 'and begins');
SELECT is((SELECT array_agg(object::text ORDER BY object::text) FROM kms.reseal_next(10)), (SELECT array_agg(pg_temp.id(k)::text ORDER BY pg_temp.id(k)::text) FROM unnest('{k1,k2,old}'::text[]) k), 'all of older generations');
SELECT is((kms.rotations_status() #>> '{wrapping_keys,total}')::integer, 3, 'counted');
SELECT is((SELECT count(*) FROM kms.reseal_next(2) WHERE object IS NOT NULL AND more), 2::bigint, 'in batches');
SELECT is(pg_temp.reseal(2) -> 'stored', '2');
SELECT is((kms.rotations_status() #>> '{wrapping_keys,done}')::integer, 2);
SELECT is(pg_temp.reseal(2) -> 'stored', '1', 'from there on');
SELECT is((SELECT array_agg(generation) FROM (SELECT generation FROM kms.content_keys WHERE key_id IN (pg_temp.id('k1'), pg_temp.id('k2'), pg_temp.id('old')) AND blob = pg_temp.bytes(61, 'cc')) x), '{4,4,4}', 'each with its new blob');
SELECT is((SELECT blob = pg_temp.bytes(61) AND generation = 1000000004 FROM kms.content_keys WHERE key_id = pg_temp.id('m')), true, 'a month''s stays');
SELECT is((SELECT blob IS NULL FROM kms.content_keys WHERE key_id = pg_temp.id('gone')), true, 'what is destroyed stays so');
SELECT is(pg_temp.reseal() ->> 'state', 'done', 'recordings: there are none');
SELECT is((SELECT wraps FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme') AND generation = 4), 3::bigint, 'they count as wraps');
SELECT ok(e.action = 'wrapping_key.rotated' AND e.kind = 'keeper' AND e.detail @> '{"generation":4,"keys":3}', 'on record')
  FROM kms.entries e WHERE e.org_id = pg_temp.id('acme') ORDER BY entry_id DESC LIMIT 1;
SELECT is((pg_temp.release('alice', 'k1')).blob, pg_temp.bytes(61, 'cc'), 'whoever asks gets the new one');
SELECT is((pg_temp.release('alice', 'k1')).generation, 4, 'under its generation');

-- Generations that nothing needs.
SELECT is(kms.generations_unneeded(), 0, 'not at once');
UPDATE kms.rotations SET ended_at = ended_at - interval '2 minutes' WHERE kind = 'wrapping_key';
SELECT is(kms.generations_unneeded(), 1, 'one: channels are under two others');
SELECT is((SELECT array_agg(generation) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme') AND unneeded_at IS NOT NULL), '{3}');
DELETE FROM kms.channels WHERE org_id = pg_temp.id('acme') AND generation = 1;
SELECT is(kms.generations_unneeded(), 1, 'when they have ended, the next');

-- A key that changes under the keeper's hands; one that does not open.
SELECT is(pg_temp.channel('alice.4', generation => 4), 0);
SELECT is(pg_temp.next_key('acme', 5, 'new'), 0);
SELECT is(kms.reseal_begin(0), 1);
SELECT is(kms.reseal_store(rotation, org, part, scanned, more, ARRAY[object], ARRAY[pg_temp.bytes(61, '11')], ARRAY[generation], to_generation, ARRAY[pg_temp.bytes(61, 'dd')], 0) -> 'stored', '0', 'not what is another by now')
  FROM (SELECT * FROM kms.reseal_next(1) LIMIT 1) n;
SELECT is((SELECT count(*) FROM kms.content_keys WHERE blob = pg_temp.bytes(61, 'dd')), 0::bigint);
SELECT is((SELECT count(*) FROM generate_series(1, 3) WHERE pg_temp.reseal(100) ->> 'state' = 'done'), 0::bigint, 'it is left over, so the walk is walked again');
SELECT is(pg_temp.reseal(100) ->> 'state', 'done', 'and nothing is left');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE org_id = pg_temp.id('acme') AND generation = 5), 4::bigint);
SELECT is(pg_temp.next_key('acme', 6, 'new'), 0);
SELECT is(kms.reseal_begin(0), 1);
SELECT is(pg_temp.reseal(100, pg_temp.id('k1')) -> 'stored', '3', 'one does not open');
SELECT is(pg_temp.reseal(100) -> 'stored', '0', 'recordings');
SELECT is(pg_temp.reseal(100, pg_temp.id('k1')) -> 'stored', '0', 'still not');
SELECT is(pg_temp.reseal(100) ->> 'state', 'running');
SELECT ok(problem LIKE '1 keys could not be moved%' AND next_at > clock_timestamp() + interval '5 minutes', 'it is told, and tried again later') FROM kms.rotations WHERE kind = 'wrapping_key' AND state = 'running';
SELECT is_empty('SELECT * FROM kms.reseal_next(10)', 'not all the time');
UPDATE kms.rotations SET next_at = NULL;
UPDATE kms.organisations SET locked = 405005 WHERE org_id = pg_temp.id('acme');
SELECT is_empty('SELECT * FROM kms.reseal_next(10)', 'nor while its main key is locked');
UPDATE kms.organisations SET locked = 0;

-- The next generation takes it over.
SELECT is(pg_temp.next_key('acme', 7, 'new'), 0);
SELECT is((SELECT count(*) FROM kms.rotations WHERE org_id = pg_temp.id('acme') AND state = 'running' AND to_id = '7' AND NOT begun), 1::bigint, 'one rotation an organisation');
SELECT is(kms.reseal_begin(0), 1);
SELECT is(pg_temp.reseal(100) -> 'stored', '4');
SELECT is(pg_temp.reseal(100) ->> 'state', 'done');

SELECT * FROM finish();
ROLLBACK;
