-- Recordings of containers: each with a key of its own, a message for a key of the container, an end, and what holds it.
BEGIN;
\ir fixture.psql
\ir services.psql
\ir officers.psql
SELECT plan(96);

CREATE FUNCTION pg_temp.record(who text, name text, resource text DEFAULT 'meeting', args jsonb DEFAULT '{}', op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('recording_create', who, jsonb_build_object('resource', pg_temp.id(resource), 'type', 'recording', 'id', pg_temp.id(name), 'blob', repeat('EE', 61),
        'generation', 1, 'iv', repeat('0A', 12), 'aad', '2026-01-01T00:00:00.000Z') || args, op) $$;
CREATE FUNCTION pg_temp.change(who text, name text, args jsonb DEFAULT '{}', op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('recording_update', who, jsonb_build_object('recording', pg_temp.id(name)) || args, op) $$;
CREATE FUNCTION pg_temp.show(who text, name text, behalf text DEFAULT NULL, officer boolean DEFAULT false, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('recording_get', who, jsonb_build_object('recording', pg_temp.id(name), 'behalf', behalf, 'officer', officer), op) $$;
CREATE FUNCTION pg_temp.shows(who text, resource text DEFAULT 'meeting', max integer DEFAULT 100, behalf text DEFAULT NULL, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('recordings_list', who, jsonb_build_object('resource', pg_temp.id(resource), 'max', max, 'behalf', behalf, 'officer', behalf IS NOT NULL), op) $$;
CREATE FUNCTION pg_temp.forget(who text, name text, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('recording_delete', who, jsonb_build_object('recording', pg_temp.id(name)), op) $$;
CREATE FUNCTION pg_temp.names(a pg_temp.answer, VARIADIC names text[]) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(n, ' ' ORDER BY x.i), a.verdict::text) FROM jsonb_array_elements(a.result -> 'recordings') WITH ORDINALITY AS x(r, i)
      JOIN unnest(names) n ON pg_temp.id(n)::text = x.r ->> 'recording' $$;

SELECT is(pg_temp.keys('alice', '{c1,c2,o1}'), 0);
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob')), 0);
SELECT is(pg_temp.resource('alice', 'meeting', pg_temp.through('space'), '{c1}'), 0);
SELECT is(pg_temp.resource('alice', 'empty'), 0);
UPDATE kms.resources SET kind = 'meeting' WHERE resource_id = pg_temp.id('meeting');

-- ------------------------------------------------------------------ made
CREATE TEMP TABLE made AS SELECT * FROM pg_temp.record('alice', 'r1', args => '{"loc":"https://files.example/1"}', op => 'make');
SELECT is(verdict, 0, 'a recording') FROM made;
SELECT is(result - 'created', jsonb_build_object('recording', pg_temp.id('r1'), 'type', 'recording', 'resource', pg_temp.id('meeting'), 'loc', 'https://files.example/1', 'tag', NULL,
    'iv', repeat('0a', 12), 'aad', '2026-01-01T00:00:00.000Z', 'expires', NULL, 'key', pg_temp.id('c1'), 'blob', repeat('ee', 61), 'generation', 1, 'root', pg_temp.id('root'),
    'wrapped', repeat('ab', 40), 'key_blob', repeat('ab', 61), 'key_generation', 1, 'key_root', pg_temp.id('root'), 'key_wrapped', repeat('ab', 40)), 'with all that its message takes') FROM made;
SELECT ok(e.action = 'recording.create' AND e.subject = 'alice' AND e.resource_id = pg_temp.id('meeting') AND e.key_ids = ARRAY[pg_temp.id('c1')] AND e.path = '{}'
          AND e.detail = jsonb_build_object('recording', pg_temp.id('r1'), 'type', 'recording'), 'on record, by ids alone') FROM pg_temp.entry() e;
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence;
SELECT is((pg_temp.record('alice', 'r1', args => '{"loc":"https://files.example/1"}', op => 'make')).result, (SELECT result FROM made), 'the same operation again: the same answer');
SELECT is(pg_temp.entries() || ' ' || pg_temp.fence(), (SELECT entries || ' ' || fence + 1 FROM before), 'no entry, and it waits for the standbys');
SELECT throws_ok($$ SELECT pg_temp.record('alice', 'other', op => 'make') $$, '22023', 'this operation id was used for something else', 'an operation is good for one recording');
SELECT throws_ok($$ SELECT pg_temp.record('alice', 'r1', 'space', op => 'make') $$, '22023', NULL, 'of one container');
SELECT is((pg_temp.record('alice', 'x', args => '{"type":"film"}')).verdict, 400002, 'no such type');
SELECT is((pg_temp.record('alice', 'x', args => '{"type":null}')).result ->> 'why', 'type is recording or transcript', 'nor none');
SELECT is((pg_temp.record('alice', 'x', args => jsonb_build_object('loc', repeat('x', 4097)))).verdict, 400002, 'too long a place');
SELECT is((pg_temp.record('alice', 'x', args => '{"generation":2}', op => 'stale')).verdict, -1, 'a stale generation');
SELECT is((SELECT count(*) FROM kms.entries WHERE op_id = pg_temp.id('stale')), 0::bigint, 'is not recorded');
SELECT is((pg_temp.record('alice', 'x', 'empty')).verdict, 409002, 'a container without a key');
SELECT is((pg_temp.entry()).detail, jsonb_build_object('recording', pg_temp.id('x'), 'why', 'the container has no key that its recordings could be encrypted to'), 'why not is on record');
SELECT is((pg_temp.record('mallory', 'x')).verdict, 403001, 'a stranger');
SELECT is((pg_temp.record('alice', 'x', 'none')).verdict, 404001, 'an unknown container');
SELECT is((pg_temp.record('eve', 'x')).verdict, 403001, 'another organisation''s');
SELECT is((SELECT count(*) FROM kms.recordings), 1::bigint, 'refused is not made');
SELECT is((pg_temp.record('bob', 't1', args => '{"type":"transcript"}')).verdict, 0, 'who is authorised through the space makes one');
SELECT is((pg_temp.entry()).path, ARRAY[pg_temp.id('space')], 'by that path');

-- ------------------------------------------------------------------ had
SELECT is((pg_temp.show('bob', 'r1', op => 'show')).result, (SELECT result FROM made), 'who is authorised through the space has it');
SELECT ok(e.action = 'recording.get' AND e.resource_id = pg_temp.id('meeting') AND e.key_ids = ARRAY[pg_temp.id('c1')] AND e.detail ->> 'recording' = pg_temp.id('r1')::text, 'on record')
  FROM pg_temp.entry() e;
SELECT is((pg_temp.show('bob', 'r1', op => 'show')).verdict, 0, 'run again');
SELECT throws_ok($$ SELECT pg_temp.show('bob', 't1', op => 'show') $$, '22023', NULL, 'not for another one');
SELECT is((pg_temp.show('mallory', 'r1')).verdict, 403001, 'a stranger');
SELECT is((pg_temp.show('alice', 'none')).verdict, 404001, 'an unknown one');
SELECT is((pg_temp.show('eve', 'r1')).verdict, 403001, 'another organisation''s');
SELECT is((pg_temp.show('eve', 'r1', 'bob', true)).verdict, 403004, 'not for its officer');
SELECT is((pg_temp.show('mallory', 'r1', 'bob')).verdict, 403004, 'on behalf of somebody without the role');
SELECT is((pg_temp.show('mallory', 'r1', 'bob', true)).verdict, 0, 'with it');
SELECT ok(e.subject = 'mallory' AND e.on_behalf = 'bob', 'both on record') FROM pg_temp.entry() e;
SELECT is(pg_temp.names(pg_temp.shows('alice', op => 'list'), 'r1', 't1'), 'r1 t1', 'all of a container, by time');
SELECT ok(e.action = 'recording.list' AND e.key_ids = ARRAY[pg_temp.id('c1')] AND e.detail = jsonb_build_object('recordings', ARRAY[pg_temp.id('r1'), pg_temp.id('t1')]), 'on record')
  FROM pg_temp.entry() e;
SELECT is((pg_temp.shows('alice', 'space')).result, '{"recordings":[]}', 'none');
SELECT is((pg_temp.entry()).detail, NULL, 'names none');
SELECT is((pg_temp.shows('alice', max => 1)).verdict, 413001, 'more than may be');
SELECT is((pg_temp.shows('alice', max => 2)).verdict, 0, 'as many as may be');
SELECT is((pg_temp.shows('mallory')).verdict, 403001, 'not to strangers');
SELECT is((pg_temp.shows('alice', 'none')).verdict, 404001, 'nor of nothing');
SELECT is(pg_temp.installation(), 0);
SELECT pg_temp.service('svc');
SELECT is((pg_temp.open('svc')).verdict, 0);
INSERT INTO people VALUES ('svc', pg_temp.nil(), 'svc');
SELECT is((pg_temp.show('svc', 'r1')).verdict, 403005, 'services have none');
SELECT is((pg_temp.record('svc', 'x')).verdict, 403005, 'and make none');
INSERT INTO kms.canaries VALUES (pg_temp.id('acme'), pg_temp.id('meeting'), 'bait', now() - interval '1 h');
SELECT is((pg_temp.show('bob', 'r1')).verdict, 0);
SELECT is((SELECT kms.canary_note(e) FROM kms.entries e ORDER BY entry_id DESC LIMIT 1), 'bait', 'that of a canary raises an alarm');

-- ------------------------------------------------------------------ changed
SELECT is((pg_temp.bind('alice', 'c2', 'meeting')).verdict, 0, 'a new active key');
SELECT is((pg_temp.show('bob', 'r1')).result ->> 'key', pg_temp.id('c1')::text, 'messages stay as they are');
CREATE TEMP TABLE changed AS SELECT * FROM pg_temp.change('bob', 'r1', '{"tag":"dGFn"}', 'change');
SELECT ok(verdict = 0 AND result ->> 'tag' = 'dGFn' AND result ->> 'loc' = 'https://files.example/1' AND result ->> 'key' = pg_temp.id('c2')::text, 'until they are changed: for the active key') FROM changed;
SELECT ok(e.action = 'recording.update' AND e.key_ids = ARRAY[pg_temp.id('c2')] AND e.detail = jsonb_build_object('recording', pg_temp.id('r1'), 'type', 'recording'), 'on record') FROM pg_temp.entry() e;
SELECT is((pg_temp.change('bob', 'r1', '{"tag":"dGFn"}', 'change')).result, (SELECT result FROM changed), 'run again');
SELECT is((pg_temp.change('bob', 'r1', '{"loc":"there"}')).result - 'created', (SELECT result - 'created' || '{"loc":"there"}' FROM changed), 'another place');
SELECT is((pg_temp.change('bob', 'r1', '{"loc":null}')).result -> 'loc', 'null', 'or none');
SELECT is((pg_temp.change('bob', 'r1', jsonb_build_object('tag', repeat('x', 65)))).verdict, 400002, 'too long a tag');
SELECT is((pg_temp.change('mallory', 'r1')).verdict, 403001, 'a stranger');
SELECT is((pg_temp.change('alice', 'none')).verdict, 404001, 'an unknown one');
UPDATE kms.content_keys SET blob = NULL, destroyed_at = now() WHERE key_id = pg_temp.id('c1');
SELECT is((pg_temp.show('bob', 't1')).result ->> 'key', pg_temp.id('c2')::text, 'when its message''s key is destroyed it is for the active one');

-- ------------------------------------------------------------------ officers under matters
INSERT INTO kms.settings VALUES (pg_temp.id('acme'), 'compliance', 'matter', now());
SELECT is((pg_temp.show('mallory', 'r1', 'bob', true)).verdict, 403007, 'an officer needs a matter');
SELECT pg_temp.matter('old', '{bob}', window_to => '2001-01-01');
SELECT is((pg_temp.show('mallory', 'r1', 'bob', true)).verdict, 403007, 'which covers the key that it is under');
SELECT is((pg_temp.shows('mallory', behalf => 'bob')).result, '{"recordings":[]}', 'others are left out');
SELECT pg_temp.matter('now', '{bob}');
SELECT is((pg_temp.show('mallory', 'r1', 'bob', true)).verdict, 0, 'then he has it');
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('now'), 'under that matter');
SELECT is(pg_temp.names(pg_temp.shows('mallory', behalf => 'bob'), 'r1', 't1'), 'r1 t1', 'and the list');

-- ------------------------------------------------------------------ deleted, and held
SELECT is((pg_temp.forget('alice', 'r1')).result ->> 'why', 'an open matter holds it: it can be deleted when the matter is closed', 'held: through the space');
SELECT is((pg_temp.entry()).verdict, 409002, 'and that is on record');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', pg_temp.id('now')))).verdict, 0, 'closed');
SELECT is((pg_temp.forget('mallory', 'r1')).verdict, 403001, 'a stranger deletes nothing');
CREATE TEMP TABLE gone AS SELECT * FROM pg_temp.forget('bob', 'r1', 'forget');
SELECT ok(verdict = 0 AND result ->> 'type' = 'recording' AND (result ->> 'destroyed')::bigint >= (result ->> 'created')::bigint, 'deleted') FROM gone;
SELECT ok(e.action = 'recording.delete' AND e.resource_id = pg_temp.id('meeting') AND e.detail = jsonb_build_object('recording', pg_temp.id('r1'), 'type', 'recording'), 'on record')
  FROM pg_temp.entry() e;
SELECT is((SELECT num_nulls(blob, iv, aad, loc, tag) FROM kms.recordings WHERE recording_id = pg_temp.id('r1')), 5, 'nothing of it is left');
SELECT is((pg_temp.forget('bob', 'r1', 'forget')).result, (SELECT result FROM gone), 'run again');
SELECT is((pg_temp.forget('bob', 'r1')).verdict, 410001, 'it is gone');
SELECT is((pg_temp.show('alice', 'r1')).verdict, 410001, 'for everybody');
SELECT is((pg_temp.change('alice', 'r1')).verdict, 410001, 'for good');
SELECT is((pg_temp.show('mallory', 'r1')).verdict, 403001, 'which strangers are not told');
SELECT is((pg_temp.show('bob', 'r1', op => 'show')).verdict, 410001, 'what was run before has it no more');
SELECT is(pg_temp.names(pg_temp.shows('alice'), 'r1', 't1'), 't1', 'and it has left the list');

-- ------------------------------------------------------------------ retention
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"retention.recording","value":"59999"}')).verdict, 400002, 'less than a minute');
SELECT is((pg_temp.agree('setting.set', '{"org":"acme","name":"retention.recording","value":"60000"}')).result ->> 'state', 'done', 'two agree on a minute');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"retention.recording","value":"120000"}')).result ->> 'state', 'done', 'longer needs one');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"retention.recording","value":"90000"}')).result ->> 'state', 'pending', 'shorter two');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"retention.recording","value":"0"}')).result ->> 'state', 'done', 'for ever one');
SELECT is((pg_temp.agree('setting.set', '{"org":"acme","name":"retention.recording","value":"60000"}')).result ->> 'state', 'done');
CREATE TEMP TABLE kept AS SELECT * FROM pg_temp.record('alice', 'r2');
SELECT is((result ->> 'expires')::bigint - (result ->> 'created')::bigint, 60000::bigint, 'a recording has its time') FROM kept;
SELECT pg_sleep(0.002) \gset
SELECT is((pg_temp.record('alice', 't2', args => '{"type":"transcript"}')).result -> 'expires', 'null', 'transcripts have theirs');
UPDATE kms.recordings SET expires_at = now() - interval '1 s' WHERE recording_id = pg_temp.id('r2');
SELECT is((pg_temp.show('alice', 'r2')).verdict, 410001, 'then it counts as destroyed');
SELECT is(pg_temp.names(pg_temp.shows('alice'), 'r2', 't1', 't2'), 't1 t2', 'and is in no list');
SELECT pg_temp.matter('later', '{alice}');
SELECT is((pg_temp.show('alice', 'r2')).verdict, 0, 'but what is held is there');
SELECT is(pg_temp.names(pg_temp.shows('alice'), 'r2', 't1', 't2'), 't1 r2 t2', 'and in lists');

-- ------------------------------------------------------------------ with the container
UPDATE kms.organisations SET locked = 405006 WHERE name = 'acme';
SELECT is((pg_temp.show('alice', 't1')).verdict, 405006, 'a locked organisation''s');
SELECT is((pg_temp.show('mallory', 't1')).verdict, 403001, 'to who is authorised');
UPDATE kms.organisations SET locked = 0 WHERE name = 'acme';
UPDATE kms.resources SET destroyed_at = now() WHERE resource_id = pg_temp.id('meeting');
SELECT is((pg_temp.show('alice', 't1')).verdict, 410001, 'with the container its recordings are gone');
SELECT is((pg_temp.record('alice', 'x')).verdict, 410001, 'and no more are made');
SELECT * FROM finish();
ROLLBACK;
