-- Containers: keys minted and bound in one step, the active key, rotation on removal, zero-trust meetings, the gate.
BEGIN;
\ir fixture.psql
\ir services.psql
\ir officers.psql
SELECT plan(140);

CREATE FUNCTION pg_temp.new_keys(VARIADIC names text[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('id', pg_temp.id(n), 'blob', repeat('CD', 61), 'generation', 1) ORDER BY i), '[]')
      FROM unnest(names) WITH ORDINALITY AS x(n, i) $$;
CREATE FUNCTION pg_temp.ids(VARIADIC names text[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_agg(pg_temp.id(n) ORDER BY i) FROM unnest(names) WITH ORDINALITY AS x(n, i) $$;
-- A container of this name.
CREATE FUNCTION pg_temp.container(who text, name text, args jsonb DEFAULT '{}', op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE plpgsql AS $$
DECLARE
    a pg_temp.answer;
BEGIN
    a := pg_temp.ask('resource_create', who, jsonb_build_object('auths', '[]'::jsonb, 'kind', 'meeting', 'bound_ms', 5000) || args, op);
    IF a.verdict = 0 THEN
        PERFORM pg_temp.tamper(format('UPDATE kms.content_keys SET resource_id = %L WHERE resource_id = %L', pg_temp.id(name), a.result ->> 'resource'));
        PERFORM pg_temp.tamper(format('UPDATE kms.authorizations SET resource_id = %L WHERE resource_id = %L', pg_temp.id(name), a.result ->> 'resource'));
        PERFORM pg_temp.tamper(format('UPDATE kms.resources SET resource_id = %L WHERE resource_id = %L', pg_temp.id(name), a.result ->> 'resource'));
    END IF;
    RETURN a;
END $$;
CREATE FUNCTION pg_temp.rotate(who text, resource text, VARIADIC names text[]) RETURNS SETOF kms.released LANGUAGE plpgsql AS $$
DECLARE
    p people;
BEGIN
    SELECT * INTO STRICT p FROM people WHERE name = who;
    SET LOCAL ROLE kms_worker;
    RETURN QUERY SELECT * FROM kms.resource_keys_create(ARRAY[coalesce((current_setting('test.op', true))::uuid, gen_random_uuid())], ARRAY[p.org],
        ARRAY[pg_temp.id('channel ' || who)], '{req}', ARRAY[p.client], '{1}', array_fill(1, ARRAY[cardinality(names)]),
        ARRAY(SELECT pg_temp.id(n) FROM unnest(names) n), array_fill(pg_temp.bytes(61), ARRAY[cardinality(names)]), ARRAY[pg_temp.id(resource)], 5000);
    RESET ROLE;
END $$;
CREATE FUNCTION pg_temp.remove(who text, resource text, grantee text, args jsonb DEFAULT '{}', op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('authorizations_delete', who, jsonb_build_object('resource', pg_temp.id(resource), 'auths', pg_temp.users(grantee), 'bound_ms', 5000) || args, op) $$;
CREATE FUNCTION pg_temp.active(who text, resource text) RETURNS text LANGUAGE sql AS $$
    SELECT (pg_temp.ask('resource_get', who, jsonb_build_object('resource', pg_temp.id(resource)))).result ->> 'active' $$;

-- ------------------------------------------------------------------ a container with its key
CREATE TEMP TABLE made AS SELECT * FROM pg_temp.container('alice', 'meeting', jsonb_build_object('new_keys', pg_temp.new_keys('m1'), 'auths', pg_temp.users('bob', 'carol')), 'make');
SELECT is(verdict, 0, 'a meeting with its own key, in one request') FROM made;
SELECT is(result -> 'keys', pg_temp.ids('m1'), 'its key') FROM made;
SELECT is(result ->> 'active', pg_temp.id('m1')::text, 'which is active') FROM made;
SELECT is((result ->> 'kind') || ' ' || (result ->> 'security'), 'meeting standard', 'a meeting, not zero-trust') FROM made;
SELECT ok(k.creator = 'alice' AND k.client_id = 'phone' AND kms.ms(k.bound_at) = (made.result ->> 'created')::bigint AND k.created_at = k.bound_at
          AND k.expires_at = k.bound_at + interval '5 s' AND k.bound_xact IS NOT NULL AND k.blob = pg_temp.bytes(61, 'cd'), 'bound from the start')
  FROM made, kms.content_keys k WHERE k.key_id = pg_temp.id('m1');
SELECT ok(e.action = 'resource.create' AND e.key_ids = ARRAY[pg_temp.id('m1')] AND e.detail = made.result, 'on record') FROM made, pg_temp.entry() e;
SELECT is((pg_temp.container('alice', 'none', jsonb_build_object('new_keys', pg_temp.new_keys('m1')), 'make')).result, (SELECT result FROM made), 'the same operation again: the same answer');
SELECT is(pg_temp.get('bob', 'm1'), 0, 'who is on it has its key');
SELECT is(pg_temp.get('mallory', 'm1'), 403001, 'nobody else');
SELECT is(pg_temp.keys('alice', '{k1,k2}'), 0);
SELECT is((pg_temp.container('alice', 'both', jsonb_build_object('keys', pg_temp.ids('k1'), 'new_keys', pg_temp.new_keys('n1', 'n2')))).result -> 'keys', pg_temp.ids('k1', 'n1', 'n2'),
          'keys that there were, then new ones');
CREATE TEMP TABLE before AS SELECT (SELECT count(*) FROM kms.resources) AS resources, (SELECT count(*) FROM kms.content_keys) AS keys, pg_temp.entries() AS entries;
SELECT is((pg_temp.container('alice', 'x', jsonb_build_object('new_keys', jsonb_set(pg_temp.new_keys('s1', 's2'), '{1,generation}', '2')), 'stale')).verdict, -1, 'a key of another generation: again');
SELECT is((SELECT count(*) FROM kms.resources) + (SELECT count(*) FROM kms.content_keys) + pg_temp.entries(), (SELECT resources + keys + entries FROM before), 'nothing was done, nothing recorded');
SELECT is((pg_temp.container('alice', 'x', jsonb_build_object('new_keys', pg_temp.new_keys('s1')), 'stale')).verdict, 0, 'and then it is done');
SELECT is((pg_temp.container('alice', 'x', jsonb_build_object('new_keys', pg_temp.new_keys('y1'), 'auths', pg_temp.through('none')))).verdict, 404001, 'all or nothing');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE key_id = pg_temp.id('y1')), 0::bigint, 'no key');

-- ------------------------------------------------------------------ rotation
SELECT results_eq($$ SELECT n, verdict, key, blob, generation, org, user_id, client_id, expires - bound, resource FROM pg_temp.rotate('bob', 'meeting', 'm2') $$,
    $$ VALUES (1, 0, pg_temp.id('m2'), pg_temp.bytes(61), 1, pg_temp.id('acme'), 'bob', 'phone', 5000::bigint, pg_temp.id('meeting')) $$, 'a new key for the meeting');
SELECT is(pg_temp.active('alice', 'meeting'), pg_temp.id('m2')::text, 'is the active one');
SELECT is((SELECT bound_at FROM kms.content_keys WHERE key_id = pg_temp.id('m2')) > (SELECT bound_at FROM kms.content_keys WHERE key_id = pg_temp.id('m1')), true, 'bound after the other');
SELECT is((SELECT array_agg(key) FROM pg_temp.list('carol', 'meeting')), ARRAY[pg_temp.id('m1'), pg_temp.id('m2')], 'the old one can still be had');
SELECT set_config('test.op', pg_temp.id('rotation')::text, true) \gset
SELECT is((SELECT array_agg(key) FROM pg_temp.rotate('alice', 'meeting', 'm4', 'm3')), ARRAY[pg_temp.id('m4'), pg_temp.id('m3')], 'several at once, as given');
SELECT ok(e.action = 'resource.keys.create' AND e.key_ids = ARRAY[pg_temp.id('m4'), pg_temp.id('m3')] AND e.resource_id = pg_temp.id('meeting') AND e.subject = 'alice'
          AND e.path = '{}', 'on record') FROM pg_temp.entry() e;
SELECT is((SELECT array_agg(key) FROM pg_temp.rotate('alice', 'meeting', 'm4', 'm3')), ARRAY[pg_temp.id('m4'), pg_temp.id('m3')], 'again: the same, made once');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('meeting')), 4::bigint, 'four keys');
SELECT set_config('test.op', '', true) \gset
SELECT set_config('test.op', NULL, true) \gset
CREATE OR REPLACE FUNCTION pg_temp.rotates(who text, resource text, name text DEFAULT NULL) RETURNS integer LANGUAGE sql AS $$
    SELECT verdict FROM (SELECT set_config('test.op', gen_random_uuid()::text, true)) o, LATERAL pg_temp.rotate(who, resource, coalesce(name, gen_random_uuid()::text)) $$;
SELECT is(pg_temp.rotates('mallory', 'meeting'), 403001, 'not by who is not authorised');
SELECT is(pg_temp.rotates('alice', 'none'), 404001, 'an unknown one');
SELECT is(pg_temp.rotates('eve', 'meeting'), 403001, 'nor from another organisation');
SELECT is((pg_temp.entry()).key_ids, NULL, 'nothing was made');
SELECT is((pg_temp.ask('authorizations_create', 'alice', jsonb_build_object('resource', pg_temp.id('meeting'), 'auths', '[]'::jsonb, 'anonymous', 1))).verdict, 0);
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT authorization_id::text FROM kms.authorizations WHERE kind = 'anonymous')), 0);
SELECT is(pg_temp.rotates('anon', 'meeting'), 403001, 'nor by who is anonymous');
UPDATE kms.organisations SET generation = 2 WHERE name = 'acme';
SELECT is(pg_temp.rotates('alice', 'meeting'), -1, 'a stale generation');
SELECT is((pg_temp.entry()).action, 'resource.keys.create', 'is not recorded');
UPDATE kms.organisations SET generation = 1 WHERE name = 'acme';
SELECT is(pg_temp.resource('alice', 'brief', ttl_ms => 1), 0);
SELECT ok(pg_sleep(0.01) IS NOT NULL);
SELECT is(pg_temp.rotates('alice', 'brief'), 410001, 'what is destroyed gets no key');
-- A clock behind the one that bound the last key.
SELECT pg_temp.tamper(format('UPDATE kms.content_keys SET bound_at = clock_timestamp() + interval ''1 hour'' WHERE key_id = %L', pg_temp.id('m3')));
SELECT is(pg_temp.rotates('alice', 'meeting', 'm5'), 0);
SELECT is(pg_temp.active('alice', 'meeting'), pg_temp.id('m5')::text, 'the last one made is active, whatever the clocks say');
SELECT is((pg_temp.bind('alice', 'k2', 'meeting')).verdict, 0);
SELECT is((SELECT bound_at FROM kms.content_keys WHERE key_id = pg_temp.id('k2')) >= (SELECT bound_at FROM kms.content_keys WHERE key_id = pg_temp.id('m5')), true,
          'and a key bound later is not bound before it');
SELECT is((pg_temp.container('alice', 'bare')).result -> 'active', 'null'::jsonb, 'without keys none is active');

-- ------------------------------------------------------------------ rotation on removal
SELECT is((pg_temp.remove('alice', 'both', 'alice')).verdict, 0, 'switched off: no key is made');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('both')), 3::bigint, 'as many as before');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"rotate.removal","value":"yes"}')).result ->> 'why', 'rotate.removal is off or on');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"rotate.removal","value":"on"}')).result ->> 'state', 'done', 'switched on by one');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"rotate.removal","value":"off"}')).result ->> 'state', 'pending', 'not off');
CREATE TEMP TABLE counts AS SELECT pg_temp.entries() AS entries;
SELECT is((pg_temp.remove('alice', 'meeting', 'bob', op => 'out')).verdict, -2, 'who removes must bring a key');
SELECT is(pg_temp.entries(), (SELECT entries FROM counts), 'nothing recorded');
SELECT is(pg_temp.get('bob', 'm5'), 0, 'nothing done');
SELECT is((pg_temp.remove('alice', 'meeting', 'bob', jsonb_build_object('new_keys', jsonb_set(pg_temp.new_keys('r1'), '{0,generation}', '7')), 'out')).verdict, -1, 'not of another generation');
CREATE TEMP TABLE removed AS SELECT * FROM pg_temp.remove('alice', 'meeting', 'bob', jsonb_build_object('new_keys', pg_temp.new_keys('r1')), 'out');
SELECT ok(verdict = 0 AND jsonb_array_length(result -> 'authorizations') = 1 AND result ->> 'active' = pg_temp.id('r1')::text, 'with the key it is done') FROM removed;
SELECT ok(e.action = 'authorization.delete' AND e.key_ids = ARRAY[pg_temp.id('r1')] AND e.detail = removed.result AND e.resource_id = pg_temp.id('meeting'), 'both on record')
  FROM removed, pg_temp.entry() e;
SELECT is((pg_temp.remove('alice', 'meeting', 'bob', jsonb_build_object('new_keys', pg_temp.new_keys('r1')), 'out')).result, (SELECT result FROM removed), 'again: the same');
SELECT is(pg_temp.active('carol', 'meeting'), pg_temp.id('r1')::text, 'the active key is new');
SELECT is(pg_temp.get('bob', 'r1'), 403001, 'who was removed cannot have it');
SELECT is(pg_temp.get('carol', 'r1'), 0, 'who stayed can');
SELECT is((pg_temp.remove('alice', 'bare', 'alice')).verdict, 0, 'where there was no key none is needed');
SELECT is((pg_temp.remove('carol', 'meeting', 'carol', jsonb_build_object('new_keys', pg_temp.new_keys('r2')))).verdict, 0, 'who leaves');
SELECT is(pg_temp.get('carol', 'r2'), 403001, 'cannot have the key that he brought');
SELECT is((pg_temp.remove('alice', 'meeting', 'nobody')).verdict, 404001, 'no key for a removal that is refused');
SELECT is(pg_temp.rotates('bob', 'meeting'), 403001, 'who was removed rotates nothing');
-- What is open to it loses him as well.
SELECT is(array_agg((pg_temp.container('alice', c.name, jsonb_build_object('new_keys', c.keys, 'auths', c.auths))).verdict), '{0,0,0,0,0}', 'a room, what is open to it, and what is open to that')
  FROM (VALUES ('room', pg_temp.new_keys('w1'), pg_temp.users('bob', 'carol')), ('call', pg_temp.new_keys('w2'), pg_temp.through('room')),
               ('board', pg_temp.new_keys('w3'), pg_temp.through('call')), ('empty', '[]', pg_temp.through('room')),
               ('apart', pg_temp.new_keys('w5'), pg_temp.users('bob'))) c(name, keys, auths);
SELECT is(pg_temp.get('bob', 'w3'), 0, 'he is let into the last');
SELECT is(a::text, ROW(-2, '{"keys": 3}'::jsonb)::text, 'who takes him out of the room brings a key for each that has one')
  FROM (SELECT r.verdict, r.result FROM pg_temp.remove('alice', 'room', 'bob', op => 'room') r) a;
SELECT is((pg_temp.remove('alice', 'room', 'bob', jsonb_build_object('new_keys', pg_temp.new_keys('x1', 'x2')), 'room')).verdict, -2, 'not fewer');
SELECT ok(r.verdict = 0 AND r.result -> 'rotated' = '3' AND r.result ->> 'active' = pg_temp.id('x1')::text, 'then it is done')
  FROM pg_temp.remove('alice', 'room', 'bob', jsonb_build_object('new_keys', pg_temp.new_keys('x1', 'x2', 'x3', 'x4')), 'room') r;
SELECT is((SELECT array_agg(e.action || ' ' || cardinality(e.key_ids) || ' ' || k.resource_id ORDER BY e.entry_id = (pg_temp.entry()).entry_id DESC, k.resource_id)
             FROM (SELECT * FROM kms.entries WHERE key_ids && ARRAY[pg_temp.id('x1'), pg_temp.id('x2'), pg_temp.id('x3')] AND verdict = 0) e
             JOIN kms.content_keys k ON k.key_id = e.key_ids[1] AND k.resource_id = e.resource_id),
    'authorization.delete 1 ' || pg_temp.id('room') || (SELECT array_agg('resource.keys.create 1 ' || x ORDER BY x) FROM unnest(ARRAY[pg_temp.id('call'), pg_temp.id('board')]) x),
    'each on record with its own key');
SELECT is((SELECT array_agg(pg_temp.active('alice', c) IN (pg_temp.id('x1')::text, pg_temp.id('x2')::text, pg_temp.id('x3')::text)) FROM unnest('{room,call,board}'::text[]) c),
    '{t,t,t}', 'each has a new one');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE key_id = pg_temp.id('x4')), 0::bigint, 'one too many is not stored');
SELECT is((SELECT array_agg(pg_temp.get('bob', k)) FROM unnest('{x1,x2,x3}'::text[]) k), '{403001,403001,403001}', 'none is his');
SELECT is((SELECT array_agg(pg_temp.get('carol', k)) FROM unnest('{w3,x1,x2,x3}'::text[]) k), '{0,0,0,0}', 'and who stayed has them all');
SELECT ok(pg_temp.active('alice', 'empty') IS NULL AND pg_temp.active('alice', 'apart') = pg_temp.id('w5')::text, 'what has no key, and what is not open to it, stays');
SELECT is((pg_temp.remove('alice', 'call', 'alice', op => 'x')).result -> 'keys', '2', 'from the middle: itself and what is behind it');

-- ------------------------------------------------------------------ zero-trust
SELECT is((pg_temp.container('alice', 'x', '{"security":"secret"}')).verdict, 400002, 'no such security');
SELECT is((pg_temp.container('alice', 'x', '{"security":"zero-trust","kind":"space"}')).verdict, 400002, 'zero-trust is for meetings');
SELECT is((pg_temp.container('alice', 'x', jsonb_build_object('security', 'zero-trust', 'new_keys', pg_temp.new_keys('z1')))).verdict, 403010, 'no new key');
SELECT is(pg_temp.keys('alice', '{z2,z3}'), 0);
SELECT is((pg_temp.container('alice', 'x', jsonb_build_object('security', 'zero-trust', 'keys', pg_temp.ids('z2')))).verdict, 403010, 'no key');
CREATE TEMP TABLE zero AS SELECT * FROM pg_temp.container('alice', 'zero', jsonb_build_object('security', 'zero-trust', 'auths', pg_temp.users('bob')));
SELECT ok(verdict = 0 AND result ->> 'security' = 'zero-trust' AND result -> 'keys' = '[]' AND result -> 'active' = 'null', 'made without') FROM zero;
SELECT is((pg_temp.ask('resource_get', 'bob', jsonb_build_object('resource', pg_temp.id('zero')))).result ->> 'security', 'zero-trust', 'shown to who is on it');
SELECT is(pg_temp.grant_user('bob', 'zero', 'carol'), 0, 'members come');
SELECT is((pg_temp.ask('authorizations_list', 'carol', jsonb_build_object('resource', pg_temp.id('zero')))).verdict, 0, 'are listed');
SELECT is((pg_temp.remove('alice', 'zero', 'carol')).verdict, 0, 'and go, without a key');
SELECT is((pg_temp.ask('resource_releases', 'alice', jsonb_build_object('resource', pg_temp.id('zero')))).result, '{"releases":[]}', 'nobody got anything');
SELECT is(pg_temp.rotates(who, 'zero'), 403010, who || ' gets no key made') FROM unnest('{alice,mallory,eve}'::text[]) who;
SELECT is((SELECT verdict FROM pg_temp.list(who, 'zero')), 403010, who || ' gets none') FROM unnest('{alice,mallory,eve}'::text[]) who;
SELECT is((SELECT verdict FROM pg_temp.list('mallory', 'zero', behalf => 'alice', officer => true)), 403010, 'nor does an officer');
SELECT is((pg_temp.bind('alice', 'z3', 'zero')).verdict, 403010, 'none is bound');
SELECT is((pg_temp.ask('recording_create', who, jsonb_build_object('resource', pg_temp.id('zero'), 'type', 'recording', 'id', gen_random_uuid(), 'blob', repeat('ab', 61),
    'generation', 1, 'iv', repeat('ab', 12), 'aad', 'a'))).verdict, 403010, who || ' records nothing') FROM unnest('{alice,mallory}'::text[]) who;
SELECT is((pg_temp.ask('recordings_list', 'alice', jsonb_build_object('resource', pg_temp.id('zero'), 'max', 10))).verdict, 403010, 'there are no recordings');
SELECT is(pg_temp.get('alice', 'zero'), 404001, 'its id is no key''s');
-- Services, whatever they may.
SELECT is(pg_temp.installation(), 0);
SELECT pg_temp.service('all', '{indexing,dlp,ediscovery,archival,transcoding}');
SELECT pg_temp.service('few', '{dlp}', '{umbrella}');
SELECT pg_temp.enable('acme', 'indexing', 'dlp', 'ediscovery', 'archival', 'transcoding');
SELECT is((pg_temp.open('all')).verdict + (pg_temp.open('few')).verdict, 0);
SELECT pg_temp.matter('case', '{alice}');
SELECT is((SELECT verdict::text || ' ' || why FROM pg_temp.serve('all', 'resource.keys', 'zero', p, 'case')), '403010 the meeting is a zero-trust one: this server holds no key of it', p)
  FROM unnest('{indexing,dlp,ediscovery,archival,transcoding,none}'::text[]) p;
SELECT is((SELECT verdict FROM pg_temp.serve('few', 'resource.keys', 'zero')), 403010, 'whoever asks');
SELECT is((SELECT count(*) FROM pg_temp.serve('all', 'purpose.keys', count => 1000) WHERE resource = pg_temp.id('zero')), 0::bigint, 'walks do not meet it');
-- Not even by hand.
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('zero')), 0::bigint, 'no key row');
SELECT throws_ok($$ UPDATE kms.content_keys SET resource_id = pg_temp.id('zero'), bound_at = now() WHERE key_id = pg_temp.id('z3') $$, '42501', NULL, 'the owner cannot bind one');
SELECT throws_ok($$ INSERT INTO kms.recordings SELECT org_id, gen_random_uuid(), pg_temp.id('zero'), 'recording', key_id, 1, blob, pg_temp.bytes(12), 'a', NULL, NULL, 'x', now()
                      FROM kms.content_keys WHERE key_id = pg_temp.id('m1') $$, '42501', NULL, 'nor store a recording');
SELECT throws_ok($$ UPDATE kms.resources SET security = 'standard' WHERE resource_id = pg_temp.id('zero') $$, '42501', NULL, 'nor make it a standard one');
SELECT throws_ok($$ UPDATE kms.resources SET security = 'zero-trust' WHERE resource_id = pg_temp.id('meeting') $$, '42501', NULL, 'nor the other way');
SELECT pg_temp.tamper(format('UPDATE kms.content_keys SET resource_id = %L, bound_at = now() WHERE key_id = %L', pg_temp.id('zero'), pg_temp.id('z3')));
SELECT is(pg_temp.get('alice', 'z3'), 403010, 'and if it did, nobody had it');
SELECT is(pg_temp.get('mallory', 'z3'), 403010, 'nobody');
SELECT is(pg_temp.sget('all', 'z3'), '403010 the meeting is a zero-trust one: this server holds no key of it', 'no service either');

-- ------------------------------------------------------------------ the gate
SELECT is(pg_temp.keys('alice', '{u1,u2}'), 0);
UPDATE kms.organisations SET locked = 405005 WHERE name = 'acme';
SELECT is(pg_temp.get('alice', 'm1'), 405005, 'a locked organisation''s keys');
SELECT is(pg_temp.get('mallory', 'm1'), 403001, 'authorisation is judged first');
SELECT is(pg_temp.get('alice', 'none'), 404001, 'and what is unknown stays so');
SELECT is(pg_temp.get('alice', 'u1'), 405005, 'unbound ones too');
SELECT is(pg_temp.get('mallory', 'u1'), 403002, 'which are another''s');
SELECT is(pg_temp.keys('alice', '{u3}'), 405005, 'none is made');
SELECT is((pg_temp.bind('alice', 'u1', 'meeting')).verdict, 405005, 'none bound');
SELECT is((pg_temp.bind('bob', 'u1', 'meeting')).verdict, 403002, 'by its creator only');
SELECT is((SELECT verdict FROM pg_temp.list('alice', 'meeting')), 405005, 'none listed');
SELECT is((SELECT verdict FROM pg_temp.list('alice', 'brief')), 405005, 'not even that it is destroyed is said');
SELECT is(pg_temp.rotates('alice', 'meeting'), 405005, 'none rotated');
SELECT is((pg_temp.container('alice', 'x')).verdict, 405005, 'no container is made');
SELECT is((pg_temp.container('bob', 'x', jsonb_build_object('keys', pg_temp.ids('u1')))).verdict, 403002, 'nor by who has no right to the key');
SELECT is((pg_temp.container('alice', 'z', '{"security":"zero-trust"}')).verdict, 0, 'but one that needs no key is');
SELECT is((pg_temp.ask('resource_get', 'alice', jsonb_build_object('resource', pg_temp.id('zero')))).verdict, 0, 'and shown');
SELECT is((pg_temp.ask('resource_get', 'alice', jsonb_build_object('resource', pg_temp.id('meeting')))).verdict, 405005, 'others are not');
SELECT is(pg_temp.grant_user('alice', 'meeting', 'dave'), 0, 'members come');
SELECT is((pg_temp.remove('alice', 'meeting', 'dave')).verdict, 405005, 'they do not go where a key would have to be made');
SELECT is(pg_temp.sget('all', 'm1'), '405005 the organisation''s main key is revoked', 'services');
SELECT is((SELECT verdict FROM pg_temp.serve('all', 'resource.keys', 'meeting')), 405005, 'and their lists');
SELECT is((SELECT verdict FROM pg_temp.serve('all', 'purpose.keys')), 405005, 'and walks');
SELECT is(pg_temp.sget('few', 'm1', 'dlp'), '403005 the service is not registered for this organisation', 'who may not anyway is told so');
UPDATE kms.organisations SET locked = 405006 WHERE name = 'acme';
SELECT is(pg_temp.get('alice', 'm1'), 405006, 'disabled');
UPDATE kms.organisations SET locked = 0 WHERE name = 'acme';
SELECT is(pg_temp.get('alice', 'm1', op => 'once'), 0, 'and open again');
UPDATE kms.organisations SET locked = 405005 WHERE name = 'acme';
SELECT is(pg_temp.get('alice', 'm1', op => 'once'), 405005, 'what was run before does not get through either');

SELECT * FROM finish();
ROLLBACK;
