-- Resources: made as a whole or not at all; shown to who is authorised.
BEGIN;
\ir fixture.psql
SELECT plan(51);

SELECT is(pg_temp.keys('alice', '{k1,k2,k3,k4,k5}'), 0);
SELECT is(pg_temp.keys('bob', '{b1}'), 0);
SELECT is(pg_temp.keys('alice.desk', '{d1}'), 0);

CREATE FUNCTION pg_temp.make(who text, args jsonb, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('resource_create', who, jsonb_build_object('auths', '[]'::jsonb, 'keys', '[]'::jsonb, 'anonymous', 0, 'bound_ms', 5000) || args, op) $$;
CREATE FUNCTION pg_temp.ids(VARIADIC names text[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_agg(pg_temp.id(n) ORDER BY i) FROM unnest(names) WITH ORDINALITY AS x(n, i) $$;

CREATE TEMP TABLE made AS
    SELECT * FROM pg_temp.make('alice', jsonb_build_object('auths', pg_temp.users('bob', 'alice', 'carol', 'bob'),
        'keys', pg_temp.ids('k2', 'k1'), 'anonymous', 2, 'ttl_ms', 60000), 'op1');
SELECT is(verdict, 0, 'made') FROM made;
SELECT is((result ->> 'expires')::bigint, (result ->> 'created')::bigint + 60000, 'with a ttl') FROM made;
SELECT is(result -> 'keys', pg_temp.ids('k2', 'k1'), 'keys as they were asked') FROM made;
SELECT results_eq($$ SELECT a ->> 'kind', a ->> 'grantee', a ->> 'expires' = result ->> 'expires', a ->> 'created' = result ->> 'created',
                            a ->> 'resource' = result ->> 'resource', a ->> 'id' IS NOT NULL
                       FROM made, jsonb_array_elements(result -> 'authorizations') WITH ORDINALITY x(a, i) ORDER BY i $$,
    $$ VALUES ('user', 'alice', NULL, true, true, true), ('user', 'bob', NULL, true, true, true), ('user', 'carol', NULL, true, true, true),
              ('anonymous', NULL, true, true, true, true), ('anonymous', NULL, true, true, true, true) $$,
    'the caller first and once, then who was named, once, then the anonymous');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = (SELECT (result ->> 'resource')::uuid FROM made) AND expires_at = bound_at + interval '5 s'),
          2::bigint, 'both keys are bound, each until it may not encrypt any more');
SELECT ok(e.action = 'resource.create' AND e.key_ids = ARRAY[pg_temp.id('k2'), pg_temp.id('k1')] AND e.resource_id = (made.result ->> 'resource')::uuid
          AND e.detail = made.result, 'on record, with the answer') FROM made, pg_temp.entry() e;
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, (SELECT count(*) FROM kms.resources) AS resources;
SELECT is((SELECT result FROM pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k2', 'k1')), 'op1')), (SELECT result FROM made),
          'the same operation again: the same answer');
SELECT is(pg_temp.entries(), (SELECT entries FROM before), 'no entry');
SELECT is((SELECT count(*) FROM kms.resources), (SELECT resources FROM before), 'no second resource');

-- All or nothing.
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k3', 'none')))).verdict, 404001, 'an unknown key');
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k3', 'b1')))).verdict, 403002, 'another''s key');
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k3', 'd1')))).verdict, 403003, 'another client''s key');
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k3', 'k1')))).verdict, 409001, 'a bound key');
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k3', 'k3')))).verdict, 409001, 'a key twice');
SELECT is((pg_temp.make('eve', jsonb_build_object('keys', pg_temp.ids('k3')))).verdict, 403001, 'another organisation''s key');
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('k3'), 'auths', pg_temp.users('bob') || pg_temp.through('none')))).verdict,
          404001, 'a grantee that does not exist');
SELECT is((pg_temp.entry()).detail ->> 'why', 'an authId names a resource that does not exist', 'with a reason');
SELECT is((SELECT resource_id FROM kms.content_keys WHERE key_id = pg_temp.id('k3')), NULL, 'the good key stayed unbound');
SELECT is((SELECT count(*) FROM kms.resources), (SELECT resources FROM before), 'nothing was made');
SELECT is(pg_temp.entries(), (SELECT entries + 7 FROM before), 'seven refusals on record');
SELECT is(pg_temp.keys('alice', '{late}', unbound_ms => 1), 0);
SELECT ok(pg_sleep(0.01) IS NOT NULL);
SELECT is((pg_temp.make('alice', jsonb_build_object('keys', pg_temp.ids('late')))).verdict, 404001, 'a key that was not bound in time');

-- Two items that want one key.
CREATE TEMP TABLE two AS SELECT * FROM kms.resource_create(ARRAY[gen_random_uuid(), gen_random_uuid()], array_fill(pg_temp.id('acme'), ARRAY[2]),
    array_fill(pg_temp.id('channel alice'), ARRAY[2]), '{a,b}', '{phone,phone}',
    array_fill(jsonb_build_object('keys', pg_temp.ids('k3', 'k4')), ARRAY[2]));
SELECT results_eq('SELECT n, verdict FROM two', 'VALUES (1, 0), (2, 409001)', 'later items see earlier ones');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE bound_at IS NOT NULL AND expires_at IS NULL), 2::bigint, 'without bound_ms the keys encrypt for ever');

SELECT is((pg_temp.make('alice', '{}')).result ->> 'expires', NULL, 'no ttl: for ever');
SELECT is((pg_temp.make('alice', jsonb_build_object('auths', pg_temp.through('none')))).verdict, 404001);
SELECT is(pg_temp.resource('bob', 'space'), 0);
SELECT is((pg_temp.make('alice', jsonb_build_object('auths', pg_temp.through('space')))).verdict, 0,
          'open to who is on a resource that the caller is not on');

-- Showing.
CREATE FUNCTION pg_temp.see(who text, resource uuid, args jsonb DEFAULT '{}') RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('resource_get', who, jsonb_build_object('resource', resource) || args) $$;
CREATE TEMP TABLE r AS SELECT (result ->> 'resource')::uuid AS id, result FROM made;
SELECT ok(s.verdict = 0 AND s.result -> 'resource' = r.result -> 'resource' AND s.result -> 'expires' = r.result -> 'expires'
          AND s.result -> 'created' = r.result -> 'created' AND jsonb_array_length(s.result -> 'authorizations') = 5
          AND s.result -> 'authorizations' @> (r.result -> 'authorizations'), 'shown as it was made') FROM r, pg_temp.see('bob', r.id) s;
SELECT ok((s.result -> 'keys') @> pg_temp.ids('k1', 'k2') AND jsonb_array_length(s.result -> 'keys') = 2, 'with its keys') FROM r, pg_temp.see('bob', r.id) s;
SELECT is((pg_temp.entry()).detail, NULL, 'the record of a look has no copy of it');
SELECT is((pg_temp.see('mallory', r.id)).verdict, 403001, 'not to others') FROM r;
SELECT is((pg_temp.see('eve', r.id)).verdict, 403001, 'not to another organisation') FROM r;
SELECT is((pg_temp.see('bob', pg_temp.id('none'))).verdict, 404001, 'unknown');
SELECT is((pg_temp.see('mallory', r.id, '{"behalf":"bob","officer":true}')).verdict, 0, 'to an officer as who is authorised') FROM r;
SELECT is((pg_temp.entry()).on_behalf, 'bob', 'both on record');
SELECT is((pg_temp.see('mallory', r.id, '{"behalf":"bob","officer":false}')).verdict, 403004, 'not to who is none') FROM r;
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT min(authorization_id::text) FROM kms.authorizations WHERE kind = 'anonymous')), 0);
SELECT is((pg_temp.see('anon', r.id)).verdict, 403001, 'not to who is anonymous') FROM r;
SELECT is((pg_temp.make('anon', '{}')).verdict, 403001, 'who makes none either');
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = (SELECT id FROM r);
SELECT is((pg_temp.see('bob', r.id)).verdict, 410001, 'past its ttl: destroyed') FROM r;
SELECT is((pg_temp.see('mallory', r.id)).verdict, 403001, 'which others do not learn') FROM r;

-- Kinds.
SELECT is(pg_temp.ask('resource_create', 'alice', '{"auths":[],"kind":"meeting"}', 'kind1')::text IS NOT NULL, true);
SELECT is(result ->> 'kind', 'meeting', 'a meeting') FROM pg_temp.ask('resource_create', 'alice', '{"auths":[],"kind":"meeting"}', 'kind1');
SELECT is((pg_temp.ask('resource_get', 'alice', jsonb_build_object('resource', r.resource_id))).result ->> 'kind', 'meeting', 'shown as one') FROM kms.resources r WHERE kind = 'meeting';
SELECT is(result ->> 'kind', 'space', 'without a kind: a space') FROM pg_temp.ask('resource_create', 'alice', '{"auths":[]}');
SELECT is(verdict, 400002, 'no such kind') FROM pg_temp.ask('resource_create', 'alice', '{"auths":[],"kind":"zoo"}');

SELECT * FROM finish();
ROLLBACK;
