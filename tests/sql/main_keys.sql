-- Customers' main keys: states, the lock of an organisation, jobs of keepers, officers (0011_main_keys.sql).
BEGIN;
\ir fixture.psql
\ir officers.psql
SELECT * FROM no_plan();

INSERT INTO kms.roots (org_id, root_id, kcv, wrapped, sentinel, created_at)
VALUES (kms.nobody(), pg_temp.id('root'), pg_temp.bytes(8), pg_temp.bytes(40), pg_temp.bytes(61), now());
SELECT pg_temp.keys('alice', '{k1,k2}') \gset
SELECT pg_temp.resource('alice', 'space', pg_temp.users('bob'), '{k1}') \gset

CREATE FUNCTION pg_temp.cmk(action text, args jsonb DEFAULT '{}', who text DEFAULT 'alice', op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('main_key_act', who, jsonb_build_object('action', action, 'admin', true, 'assigned', 'acme') || args, op) $$;
CREATE FUNCTION pg_temp.work(me text DEFAULT 'keeper', since bigint DEFAULT NULL) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    v := kms.main_key_work(pg_temp.id(me), since);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.ends(job jsonb, args jsonb, verdict integer DEFAULT 0) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v integer;
BEGIN
    SET LOCAL ROLE kms_keeper;
    v := kms.main_key_end((job ->> 'org')::uuid, (job ->> 'op')::uuid, verdict, args);
    RESET ROLE;
    RETURN v;
END $$;
-- As if the HSM had re-wrapped them.
CREATE FUNCTION pg_temp.moved(job jsonb, fill text DEFAULT 'cd') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('to', job -> 'to', 'moved', coalesce((SELECT jsonb_agg(jsonb_build_object('generation', w -> 'generation',
        'root', w -> 'root', 'before', w -> 'wrapped', 'after', repeat(fill, 40))) FROM jsonb_array_elements(job -> 'wrapping_keys') w), '[]')) $$;
CREATE FUNCTION pg_temp.main_key(n integer DEFAULT 1) RETURNS uuid LANGUAGE sql AS $$
    SELECT m.main_key_id FROM kms.main_keys m WHERE m.state <> 'IMPORTING' ORDER BY m.created_at, m.change OFFSET n - 1 LIMIT 1 $$;
CREATE FUNCTION pg_temp.state(n integer DEFAULT 1) RETURNS text LANGUAGE sql AS $$
    SELECT m.state FROM kms.main_keys m WHERE m.main_key_id = pg_temp.main_key(n) $$;
CREATE FUNCTION pg_temp.become(state text, n integer DEFAULT 1, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.cmk('cmk.update', jsonb_build_object('main_key', pg_temp.main_key(n), 'state', state), op => op) $$;
-- All jobs, done.
CREATE FUNCTION pg_temp.finish_jobs(fill text DEFAULT 'cd') RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
    n integer := 0;
BEGIN
    LOOP
        j := pg_temp.work() -> 'jobs' -> 0;
        EXIT WHEN j IS NULL;
        PERFORM pg_temp.ends(j, CASE j ->> 'kind' WHEN 'pair' THEN '{"public_key":"3000"}' WHEN 'import' THEN '{"kcv":"0102030405060708"}'
                                ELSE pg_temp.moved(j, fill) END);
        n := n + 1;
    END LOOP;
    RETURN n;
END $$;

-- Who may.
SELECT is((pg_temp.cmk('cmk.list', '{"admin":false}')).verdict, 403004, 'without the role: refused');
SELECT is((pg_temp.cmk('cmk.list', '{"assigned":"umbrella"}')).verdict, 403004, 'another organisation: refused');
SELECT is((pg_temp.cmk('cmk.list', jsonb_build_object('assigned', pg_temp.id('umbrella')))).verdict, 403004, 'by its id as well');
SELECT is((pg_temp.entry()).verdict, 403004, 'which is on record');
SELECT is((pg_temp.cmk('cmk.list', jsonb_build_object('assigned', upper(pg_temp.id('acme')::text)))).result, '{"main_keys":[]}', 'one''s own, by its id');
SELECT is((pg_temp.cmk('cmk.list')).verdict, 0, 'or its name');

-- The pair, then a main key.
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"00"}')).verdict, 409002, 'nothing can be imported without a pair');
SELECT pg_temp.cmk('cmk.public_key', op => 'broken') \gset
SELECT pg_temp.work() AS broken \gset
SELECT is(pg_temp.ends(:'broken'::jsonb #> '{jobs,0}', '{"why":"it does not work","broken":true}', 502001), 0, 'what does not work in the HSM is refused');
SELECT is((pg_temp.cmk('cmk.public_key', op => 'broken')).verdict, 502001, 'and the user told to ask again');
SELECT is((pg_temp.cmk('cmk.public_key', op => 'pair')).result, '{"waiting":true}', 'the pair is to be made');
SELECT is((pg_temp.cmk('cmk.public_key', op => 'pair')).result, '{"waiting":true}', 'asking again makes no second job');
SELECT is((SELECT count(*) FROM kms.main_key_jobs), 1::bigint, 'there is one');
SELECT pg_temp.work() AS w \gset
SELECT is(:'w'::jsonb #>> '{jobs,0,kind}', 'pair', 'the keeper gets it');
SELECT is(pg_temp.work('other') -> 'jobs', '[]', 'and no other');
SELECT isnt(:'w'::jsonb #>> '{jobs,0,pair}', :'broken'::jsonb #>> '{jobs,0,pair}', 'under another id than what did not work');
SELECT is(pg_temp.ends(:'broken'::jsonb #> '{jobs,0}', '{"public_key":"3002"}'), 404001, 'a keeper that made it after all is too late');
SELECT is(pg_temp.ends(:'w'::jsonb #> '{jobs,0}', '{"public_key":"3001"}'), 0, 'it is made');
SELECT is(pg_temp.ends(:'w'::jsonb #> '{jobs,0}', '{"why":"it does not work","broken":true}', 502001), 404001, 'a slower keeper to which it was broken is not told that it may be destroyed');
SELECT is((pg_temp.cmk('cmk.public_key', op => 'pair')).result, '{"public_key":"3001"}', 'and answered');
SELECT is((pg_temp.entry()).action, 'cmk.public_key', 'and on record');
SELECT is((pg_temp.cmk('cmk.public_key')).result, '{"public_key":"3001"}', 'the next one gets the same at once');
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"aabb","allow_128":true}', op => 'c1')).result, '{"waiting":true}', 'an import waits');
SELECT is((pg_temp.cmk('cmk.list')).result, '{"main_keys":[]}', 'what is being imported is shown to nobody');
SELECT is((pg_temp.work() #> '{jobs,0}') - 'org'::text - 'op'::text - 'main_key'::text - 'pair'::text, '{"kind":"import","ciphertext":"aabb","allow_128":true,"to":null,"wrapping_keys":[]}',
          'the keeper gets what to import');
SELECT is(pg_temp.finish_jobs(), 1, 'it is imported');
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"aabb","allow_128":true}', op => 'c1')).result #>> '{main_keys,0,state}', 'PENDING', 'and PENDING');
SELECT is((pg_temp.entry()).detail -> 'main_key', to_jsonb(pg_temp.main_key()), 'on record with its id');

-- Refused by the HSM, or given up: nothing was changed.
SELECT pg_temp.cmk('cmk.create', '{"ciphertext":"ff"}', op => 'c2') \gset
SELECT is(pg_temp.ends(pg_temp.work() #> '{jobs,0}', '{"why":"does not open"}', 400002), 0, 'an import fails');
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"ff"}', op => 'c2'))::text, '(1,400002,"{""why"": ""does not open""}")', 'with its reason');
SELECT pg_temp.cmk('cmk.create', '{"ciphertext":"ee"}', op => 'c3') \gset
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"ee","give_up":true}', op => 'c3')).verdict, 502001, 'another is given up');
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"ee"}', op => 'c3')).verdict, 502001, 'for ever');
SELECT is(jsonb_array_length((pg_temp.cmk('cmk.list')).result -> 'main_keys'), 1, 'neither is there');
SELECT is(pg_temp.work() -> 'destroy', '[]', 'what they left in the HSM is left alone at first');
UPDATE kms.main_keys SET state_at = state_at - interval '1 minute' WHERE state = 'IMPORTING';
SELECT is(jsonb_array_length(pg_temp.work() -> 'destroy'), 2, 'then it goes');

-- Every transition.
CREATE TEMP TABLE steps (before text, after text, how text);
INSERT INTO steps SELECT b, a, CASE
    WHEN (b, a) IN (('PENDING', 'ACTIVE'), ('DEACTIVATED', 'ACTIVE'), ('ACTIVE', 'DEACTIVATED')) THEN 'move'
    WHEN (b, a) IN (('PENDING', 'DELETED'), ('PENDING', 'REMOVEDCLEAN'), ('ACTIVE', 'DISABLED'), ('ACTIVE', 'REVOKED'), ('DISABLED', 'ACTIVE'), ('DISABLED', 'REVOKED'),
                    ('REVOKED', 'ACTIVE'), ('DEACTIVATED', 'RETIRED'), ('DEACTIVATED', 'DELETED')) THEN 'now' END
  FROM unnest('{PENDING,ACTIVE,DEACTIVATED,REVOKED,DISABLED,RETIRED,DELETED,REMOVEDCLEAN}'::text[]) b,
       unnest('{PENDING,RECOVERING,ACTIVE,DEACTIVATED,REVOKED,REENCRYPTING,DISABLED,RETIRED,DELETED,REMOVEDCLEAN,REMOVEDDIRTY}'::text[]) a;
CREATE FUNCTION pg_temp.judged(p_before text, p_after text) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v kms.main_key_plan;
BEGIN
    UPDATE kms.main_keys m SET state = p_before WHERE m.main_key_id = pg_temp.main_key();
    v := kms.main_key_judge(pg_temp.id('acme'), 'cmk.update', pg_temp.main_key(), p_after);
    UPDATE kms.main_keys m SET state = 'PENDING' WHERE m.main_key_id = pg_temp.main_key();
    RETURN v.verdict || ' ' || coalesce(v.how, '-');
END $$;
SELECT is(pg_temp.judged(before, lower(after)), coalesce('0 ' || how, '409002 -'), before || ' to ' || after) FROM steps;
SELECT is((pg_temp.cmk('cmk.update', jsonb_build_object('main_key', gen_random_uuid(), 'state', 'ACTIVE'))).verdict, 404001, 'an unknown one');

-- Activation moves all wrapping keys, or none.
INSERT INTO kms.wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
SELECT pg_temp.id('acme'), g, pg_temp.id('root'), pg_temp.bytes(40, 'e' || g), pg_temp.bytes(8), now() FROM generate_series(2, 3) g;
UPDATE kms.organisations SET generation = 3 WHERE name = 'acme';
SELECT is((pg_temp.become('Active', op => 'a1')).result, '{"waiting":true}', 'activation waits for the HSM');
SELECT is(pg_temp.state(), 'PENDING', 'nothing has changed');
SELECT pg_temp.work() #> '{jobs,0}' AS j \gset
SELECT is(jsonb_array_length(:'j'::jsonb -> 'wrapping_keys'), 3, 'all three wrapping keys are to be moved');
SELECT is(pg_temp.ends(:'j'::jsonb, pg_temp.moved(jsonb_set(:'j'::jsonb, '{wrapping_keys}', (:'j'::jsonb -> 'wrapping_keys') - 1::integer))), -1, 'one is missing: not done');
SELECT is(pg_temp.ends(:'j'::jsonb, pg_temp.moved(jsonb_set(:'j'::jsonb, '{wrapping_keys,0,wrapped}', to_jsonb(repeat('00', 40))))), -1, 'one is another meanwhile: not done');
INSERT INTO kms.wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
VALUES (pg_temp.id('acme'), 4, pg_temp.id('root'), pg_temp.bytes(40, 'e4'), pg_temp.bytes(8), now());
UPDATE kms.organisations SET generation = 4 WHERE name = 'acme';
SELECT is(pg_temp.ends(:'j'::jsonb, pg_temp.moved(:'j'::jsonb)), -1, 'one was added meanwhile: not done');
SELECT is((SELECT count(*) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme') AND root_id = pg_temp.id('root')), 4::bigint, 'none has moved');
SELECT is(pg_temp.finish_jobs(), 1, 'planned anew, it is done');
SELECT is((pg_temp.become('active', op => 'a1')).result #>> '{main_keys,0,state}', 'ACTIVE', 'ACTIVE');
SELECT is((SELECT array_agg(DISTINCT root_id) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme')), ARRAY[pg_temp.main_key()], 'all are under the main key');
SELECT is((SELECT root_id FROM kms.wrapping_keys WHERE org_id = pg_temp.id('umbrella')), pg_temp.id('root'), 'nobody else''s are');
SELECT is((pg_temp.become('ACTIVE')).verdict, 409002, 'it is active already');
SELECT is((SELECT parent FROM kms.wrapping_keys_due(0, 1) WHERE org_name = 'acme'), pg_temp.main_key(), 'the next wrapping key belongs under it');
SELECT is((SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), pg_temp.id('acme'), 5, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper')), 409002,
          'one under the root is refused');
SELECT is((SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), pg_temp.id('acme'), 5, pg_temp.main_key(), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper')), 0,
          'one under the main key is taken');
SELECT is((SELECT verdict FROM kms.wrapping_key_add(gen_random_uuid(), pg_temp.id('umbrella'), 2, pg_temp.main_key(), pg_temp.bytes(40), pg_temp.bytes(8), 'keeper')), 409002,
          'but not another organisation''s');

-- Revoked, disabled: the organisation is locked, to those who would get a key.
SELECT is(pg_temp.get('bob', 'k1'), 0, 'bob gets his key');
SELECT (pg_temp.work() ->> 'change')::bigint AS change \gset
SELECT is((pg_temp.become('REVOKED')).result #>> '{main_keys,0,state}', 'REVOKED', 'revoked at once');
SELECT is(pg_temp.get('bob', 'k1'), 405005, 'no key');
SELECT is(pg_temp.get('mallory', 'k1'), 403001, 'a stranger hears that he is one');
SELECT is(pg_temp.keys('alice', '{k9}', generation => 5), 405005, 'none is made');
SELECT is((pg_temp.bind('alice', 'k2', 'space')).verdict, 405005, 'nor bound');
SELECT is((SELECT max(verdict) FROM pg_temp.list('bob', 'space')), 405005, 'nor listed');
SELECT is(pg_temp.work(since => :change) -> 'forget', jsonb_build_array(pg_temp.main_key()), 'keepers forget it');
SELECT is(pg_temp.work(since => :change + 1) -> 'forget', '[]', 'once');
SELECT is(pg_temp.work() -> 'forget', jsonb_build_array(pg_temp.main_key()), 'or when they begin');
SELECT is((pg_temp.cmk('cmk.default')).verdict, 409002, 'the root does not open it');
SELECT is((pg_temp.cmk('cmk.delete')).verdict, 409002, 'nor is it deleted');
SELECT is((pg_temp.become('DISABLED')).verdict, 409002, 'nor disabled');
SELECT is((pg_temp.become('ACTIVE')).verdict, 0, 'opened again');
SELECT is(pg_temp.get('bob', 'k1'), 0, 'bob gets his key');
SELECT is((pg_temp.become('DISABLED')).verdict, 0, 'disabled');
SELECT is(pg_temp.get('bob', 'k1'), 405006, 'no key');
SELECT is((pg_temp.become('REVOKED')).verdict, 0, 'then revoked');
SELECT is(pg_temp.get('bob', 'k1'), 405005, 'no key');

-- A second one does not take the place of one that is locked, but of one that is active.
SELECT pg_temp.cmk('cmk.create', '{"ciphertext":"aacc"}') \gset
SELECT pg_temp.finish_jobs() \gset
SELECT is((pg_temp.become('ACTIVE', 2)).verdict, 409002, 'not in the place of a revoked one');
SELECT pg_temp.become('ACTIVE') \gset
SELECT is((pg_temp.become('ACTIVE', 2)).verdict, 0, 'in that of an active one');
SELECT pg_temp.become('REVOKED') \gset
SELECT is(pg_temp.finish_jobs(), 1, 'which was revoked before it was done');
SELECT is(pg_temp.state(1) || pg_temp.state(2), 'REVOKEDPENDING', 'so it was not');
SELECT is((pg_temp.entry()).verdict, 409002, 'as the record says');
SELECT pg_temp.become('ACTIVE') \gset
SELECT pg_temp.become('ACTIVE', 2) \gset
SELECT is(pg_temp.finish_jobs('ce'), 1, 'now it is');
SELECT is(pg_temp.state(1) || pg_temp.state(2), 'DEACTIVATEDACTIVE', 'in its place');
SELECT is((SELECT array_agg(DISTINCT root_id) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme')), ARRAY[pg_temp.main_key(2)], 'all are under it');
SELECT is((pg_temp.become('DELETED')).verdict, 0, 'the first is deleted');
SELECT is(pg_temp.work() -> 'destroy' @> jsonb_build_array(jsonb_build_object('main_key', pg_temp.main_key(1))), false, 'it stays in the HSM while workers may remember it');
UPDATE kms.main_keys SET used_until = used_until - interval '3 minutes' WHERE main_key_id = pg_temp.main_key(1);
SELECT is(pg_temp.work() -> 'destroy' @> jsonb_build_array(jsonb_build_object('main_key', pg_temp.main_key(1))), true, 'then it leaves it');
UPDATE kms.wrapping_keys SET root_id = pg_temp.main_key(1) WHERE org_id = pg_temp.id('acme') AND generation = 2;
SELECT is(pg_temp.work() -> 'destroy' @> jsonb_build_array(jsonb_build_object('main_key', pg_temp.main_key(1))), false, 'but never while a wrapping key needs it');
UPDATE kms.wrapping_keys SET root_id = pg_temp.main_key(2) WHERE org_id = pg_temp.id('acme') AND generation = 2;
SET LOCAL ROLE kms_keeper;
SELECT count(kms.main_key_gone((d ->> 'org')::uuid, (d ->> 'main_key')::uuid)) FROM jsonb_array_elements(kms.main_key_work(pg_temp.id('keeper'), NULL) -> 'destroy') d \gset
RESET ROLE;
SELECT is(pg_temp.work() -> 'destroy', '[]', 'it is gone');
SELECT is((pg_temp.entry()).action, 'cmk.destroy', 'on record');

-- Back to the root; all removed.
SELECT is((pg_temp.cmk('cmk.default', op => 'd1')).result, '{"waiting":true}', 'back to the root');
SELECT is(pg_temp.finish_jobs('cf'), 1, 'done');
SELECT is((SELECT array_agg(DISTINCT root_id) FROM kms.wrapping_keys WHERE org_id = pg_temp.id('acme')), ARRAY[pg_temp.id('root')], 'all are under it');
SELECT is(pg_temp.state(2), 'DEACTIVATED', 'the main key is not in force');
SELECT is((pg_temp.cmk('cmk.default')).verdict, 0, 'again: nothing to do');
SELECT pg_temp.become('ACTIVE', 2) \gset
SELECT pg_temp.finish_jobs('ca') \gset
SELECT is((pg_temp.cmk('cmk.delete', op => 'x1')).result, '{"waiting":true}', 'deleting an active one moves first');
SELECT is(pg_temp.finish_jobs('cb'), 1, 'done');
SELECT is((pg_temp.cmk('cmk.delete', op => 'x1')).verdict, 0, 'answered');
SELECT is(pg_temp.state(2), 'DELETED', 'deleted');
SELECT is((SELECT (main_key_id, locked)::text FROM kms.organisations WHERE name = 'acme'), '(,0)', 'nothing is left of it');
SELECT is(pg_temp.get('bob', 'k1'), 0, 'bob gets his key');
SELECT pg_temp.cmk('cmk.create', '{"ciphertext":"aadd"}') \gset
SELECT pg_temp.finish_jobs() \gset
SELECT is((pg_temp.cmk('cmk.delete')).result #>> '{main_keys,0,state}', 'REMOVEDCLEAN', 'a pending one is removed');

-- Jobs that nobody ended.
SELECT pg_temp.cmk('cmk.create', '{"ciphertext":"aaee"}', op => 'late') \gset
SELECT pg_temp.cmk('cmk.create', '{"ciphertext":"aaef"}', op => 'second') \gset
UPDATE kms.main_key_jobs SET created_at = created_at + interval '1 second' WHERE op_id = pg_temp.id('second');
SELECT is(jsonb_array_length(pg_temp.work() -> 'jobs'), 1, 'one of an organisation at a time');
UPDATE kms.main_key_jobs SET claimed_until = now() - interval '1 second';
SELECT is(pg_temp.work('other') #>> '{jobs,0,ciphertext}', 'aaee', 'another keeper takes over');
UPDATE kms.main_key_jobs SET until = now() - interval '1 second' WHERE encode(ciphertext, 'hex') = 'aaee';
SELECT pg_temp.work('other') \gset
SELECT is((pg_temp.cmk('cmk.create', '{"ciphertext":"aaee"}', op => 'late')).verdict, 502001, 'what is too late is given up');
SELECT is(pg_temp.finish_jobs(), 1, 'and the next one done');
SELECT is(pg_temp.ends(jsonb_build_object('org', pg_temp.id('acme'), 'op', pg_temp.id('late')), '{}'), 404001, 'there is no such job any more');

UPDATE kms.main_keys SET destroyed_at = now() WHERE state IN ('IMPORTING', 'DELETED', 'REMOVEDCLEAN');
SELECT is(pg_temp.work() -> 'destroy', '[]', 'what was given up is out of the HSM');
UPDATE kms.main_keys SET state_at = state_at - interval '1 minute' WHERE state = 'IMPORTING';
SELECT is(pg_temp.ends(jsonb_build_object('org', pg_temp.id('acme'), 'op', pg_temp.id('late')),
              (SELECT jsonb_build_object('main_key', main_key_id) FROM kms.main_keys WHERE state = 'IMPORTING' ORDER BY created_at DESC LIMIT 1)), 404001, 'until it is imported late');
SELECT is(jsonb_array_length(pg_temp.work() -> 'destroy'), 1, 'then it goes again');
SELECT is(pg_temp.ends(jsonb_build_object('org', pg_temp.id('acme'), 'op', pg_temp.id('second')), '{"kcv":"00"}'), 0, 'a job that was done may be ended again');

-- Officers: two open, one closes.
CREATE FUNCTION pg_temp.arg(VARIADIC more text[] DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"org":"acme"}'::jsonb || jsonb_object(more) $$;
SELECT is((pg_temp.act('cmk.paint', pg_temp.arg())).verdict, 400002, 'no such action');
SELECT is((pg_temp.act('cmk.revoke', pg_temp.arg('force', 'yes'))).verdict, 400002, 'an unknown member');
SELECT is((pg_temp.act('cmk.revoke', '{"org":"nowhere"}')).verdict, 404001, 'no such organisation');
SELECT is((pg_temp.act('cmk.revoke', pg_temp.arg())).verdict, 409002, 'nothing to revoke');
SELECT is((pg_temp.act('cmk.import', pg_temp.arg('ciphertext', 'xyz'))).verdict, 400002, 'no ciphertext');
SELECT is((pg_temp.act('cmk.public_key', pg_temp.arg())).result ->> 'public_key', '3001', 'the public key is no secret');
SELECT is((pg_temp.act('cmk.import', pg_temp.arg('ciphertext', 'aabb'))).result ->> 'state', 'pending', 'an import waits for another officer');
SELECT is((SELECT count(*) FROM kms.main_key_jobs), 0::bigint, 'nothing happens before');
SELECT is((pg_temp.agree('cmk.import', pg_temp.arg('ciphertext', repeat('aabc', 8)))).result #> '{result,job}' IS NOT NULL, true, 'with two there is a job');
SELECT is(pg_temp.finish_jobs(), 1, 'which is done');
SELECT is((SELECT e.kind FROM kms.entries e ORDER BY e.entry_id DESC LIMIT 1), 'keeper', 'and recorded');
SELECT m.main_key_id AS mk FROM kms.main_keys m WHERE m.state = 'PENDING' ORDER BY change DESC LIMIT 1 \gset
SELECT is((pg_temp.agree('cmk.activate', pg_temp.arg('main_key', :'mk'))).result ->> 'state', 'done', 'activation, by two');
SELECT is(pg_temp.finish_jobs('da'), 1, 'is done');
SELECT is((SELECT state FROM kms.main_keys WHERE main_key_id = :'mk'), 'ACTIVE', 'active');
SELECT is((pg_temp.act('cmk.disable', pg_temp.arg())).result ->> 'state', 'done', 'one officer disables');
SELECT is(pg_temp.get('bob', 'k1'), 405006, 'no key');
SELECT is((pg_temp.act('cmk.revoke', pg_temp.arg())).result ->> 'main_key', :'mk', 'or revokes');
SELECT is(pg_temp.get('bob', 'k1'), 405005, 'no key');
SELECT is((pg_temp.entry()).verdict, 405005, 'on record');
SELECT is((pg_temp.agree('cmk.delete', pg_temp.arg())).verdict, 409002, 'a revoked one is not deleted');
SELECT is((pg_temp.agree('cmk.activate', pg_temp.arg('main_key', :'mk'))).result ->> 'state', 'done', 'two open it again');
SELECT is(pg_temp.get('bob', 'k1'), 0, 'bob gets his key');
SELECT is((pg_temp.agree('cmk.deactivate', pg_temp.arg())).result ->> 'state', 'done', 'back to the root');
SELECT is(pg_temp.finish_jobs('db'), 1, 'is done');
SELECT is((pg_temp.agree('cmk.delete', pg_temp.arg('main_key', :'mk'))).result ->> 'state', 'done', 'one is deleted');
SELECT is((pg_temp.agree('cmk.delete', pg_temp.arg())).result ->> 'state', 'done', 'and all the others');
SELECT is((SELECT count(*) FROM kms.main_keys WHERE state NOT IN ('DELETED', 'REMOVEDCLEAN', 'IMPORTING')), 0::bigint, 'none is left');
SELECT is_empty($$ SELECT FROM kms.entries e WHERE e.detail::text LIKE '%aabcaabcaabc%' $$,
                'no entry has what was imported');

SELECT * FROM finish();
ROLLBACK;
