-- Releases: to whom, and each on record.
BEGIN;
\ir fixture.psql
SELECT plan(63);

-- Unbound keys.
SELECT is(pg_temp.keys('alice', '{u1,k1,k2}'), 0);
SELECT ok(r.verdict = 0 AND r.key = pg_temp.id('u1') AND r.blob = pg_temp.bytes(61) AND r.generation = 1 AND r.root = pg_temp.id('root')
          AND r.wrapped = pg_temp.bytes(40) AND r.org = pg_temp.id('acme') AND r.user_id = 'alice' AND r.client_id = 'phone'
          AND r.expires = r.created + 60000 AND r.bound IS NULL AND r.resource IS NULL, 'an unbound key to its creator, complete')
  FROM pg_temp.release('alice', 'u1') r;
SELECT is(pg_temp.get('alice', 'u1', client => 'other'), 403003, 'not with another client');
SELECT is(pg_temp.get('alice.desk', 'u1'), 403003, 'nor on a channel of another client');
SELECT is(pg_temp.get('bob', 'u1'), 403002, 'not to another user');
SELECT is(pg_temp.get('eve', 'u1'), 403001, 'not to another organisation');
SELECT ok(r.key IS NULL AND r.blob IS NULL AND r.wrapped IS NULL AND r.org IS NULL AND r.user_id IS NULL AND r.created IS NULL
          AND r.resource IS NULL, 'a refusal comes with nothing')
  FROM pg_temp.release('bob', 'u1') r;
SELECT is(pg_temp.get('alice', 'no such key'), 404001, 'an unknown key');
SELECT is(pg_temp.keys('alice', '{short}', unbound_ms => 1), 0);
SELECT ok(pg_sleep(0.01) IS NOT NULL);
SELECT is(pg_temp.get('alice', 'short'), 404001, 'a key that was not bound in time');

-- Bound keys.
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob'), '{k1,k2}'), 0, 'a resource for alice and bob');
SELECT ok(r.verdict = 0 AND r.bound = r.expires - 1000000 AND r.resource = pg_temp.id('space') AND r.user_id = 'alice', 'a bound key to its creator')
  FROM pg_temp.release('alice', 'k1') r;
SELECT is(pg_temp.get('bob', 'k1'), 0, 'to who is authorised');
SELECT is(pg_temp.get('alice.desk', 'k1'), 0, 'whatever the client');
SELECT is(pg_temp.get('mallory', 'k1'), 403001, 'not to who is not');
SELECT is(pg_temp.get('alice', 'space'), 404001, 'a resource''s id is no key''s, though she is authorised on it');
SELECT is(pg_temp.get('mallory', 'space'), 404001);
SELECT is(pg_temp.get('eve', 'k1'), 403001, 'not to another organisation');
SELECT is(pg_temp.channel('bob.umbrella', 'umbrella', subject => 'bob'), 0, 'somebody of the same name elsewhere');
SELECT is(pg_temp.get('bob.umbrella', 'k1'), 403001, 'is somebody else');
SELECT is((SELECT (pg_temp.ask('authorizations_delete', 'alice', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('bob')))).verdict), 0,
          'bob is removed');
SELECT is(pg_temp.get('bob', 'k1'), 403001, 'and gets nothing from then on');

-- The record.
SELECT is(pg_temp.get('alice', 'k1', op => 'op1'), 0);
SELECT ok(e.org_id = pg_temp.id('acme') AND e.op_id = pg_temp.id('op1') AND e.verdict = 0 AND e.action = 'key.get' AND e.kind = 'user'
          AND e.subject = 'alice' AND e.on_behalf IS NULL AND e.client_id = 'phone' AND e.channel_id = pg_temp.id('channel alice')
          AND e.resource_id = pg_temp.id('space') AND e.key_ids = ARRAY[pg_temp.id('k1')] AND e.path = '{}' AND e.request_id = 'req',
          'who, what, when, by which way') FROM pg_temp.entry() e;
SELECT is(pg_temp.get('mallory', 'k1', op => 'op2'), 403001);
SELECT ok(e.op_id = pg_temp.id('op2') AND e.verdict = 403001 AND e.subject = 'mallory' AND e.key_ids = ARRAY[pg_temp.id('k1')] AND e.path IS NULL,
          'refusals too') FROM pg_temp.entry() e;
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence;
SELECT is(pg_temp.get('alice', 'k1', op => 'op1'), 0, 'the same operation is answered again');
SELECT is(pg_temp.entries(), (SELECT entries FROM before), 'without a second entry');
SELECT is(pg_temp.fence(), (SELECT fence + 1 FROM before), 'but with a commit that waits');
SELECT is((SELECT (pg_temp.ask('authorizations_create', 'alice', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('mallory')))).verdict), 0,
          'mallory is let in');
SELECT is(pg_temp.get('mallory', 'k1', op => 'op2'), 403001, 'but what was refused before stays refused');
SELECT is((SELECT (pg_temp.ask('authorizations_delete', 'alice', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('mallory')))).verdict), 0);

-- One call, many items; each by itself.
CREATE TEMP TABLE many AS SELECT * FROM kms.keys_release(
    ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 6)),
    ARRAY[pg_temp.id('acme'), pg_temp.id('acme'), pg_temp.id('umbrella'), pg_temp.id('acme'), pg_temp.id('nowhere'), pg_temp.id('acme')],
    ARRAY[pg_temp.id('channel alice'), pg_temp.id('channel mallory'), pg_temp.id('channel eve'), pg_temp.id('channel alice'), pg_temp.id('channel alice'), pg_temp.id('channel alice')],
    '{1,2,3,4,5,NULL}', '{phone,phone,phone,phone,phone,NULL}',
    ARRAY[pg_temp.id('k2'), pg_temp.id('k2'), pg_temp.id('k2'), pg_temp.id('k2'), pg_temp.id('k2'), pg_temp.id('u1')],
    array_fill(NULL::text, ARRAY[6]), array_fill(false, ARRAY[6]));
SELECT results_eq('SELECT n, verdict, key FROM many',
    $$ VALUES (1, 0, pg_temp.id('k2')), (2, 403001, NULL), (3, 403001, NULL), (4, 0, pg_temp.id('k2')), (5, 499001, NULL), (6, 403003, NULL) $$,
    'in order, each its own');
SELECT is(pg_temp.entries(), (SELECT entries + 2 + 6 FROM before), 'six items, six entries');
SELECT is((SELECT array_agg(request_id ORDER BY entry_id) FROM (SELECT * FROM kms.entries ORDER BY entry_id DESC LIMIT 6) x),
          '{1,2,3,4,5,NULL}', 'in order');

-- On behalf of others.
SELECT is(pg_temp.get('bob', 'k1', behalf => 'alice'), 403004, 'onBehalfOf needs the role');
SELECT is(pg_temp.get('bob', 'k1', behalf => 'alice', officer => true), 0, 'with it the other is judged');
SELECT ok(e.subject = 'bob' AND e.on_behalf = 'alice', 'the record names both') FROM pg_temp.entry() e;
SELECT is(pg_temp.get('alice', 'k1', behalf => 'mallory', officer => true), 403001, 'not what the other may not have');
SELECT is(pg_temp.get('bob', 'u1', behalf => 'alice', officer => true), 0, 'unbound: as its creator, whatever the client');
SELECT is(pg_temp.get('bob', 'u1', behalf => 'carol', officer => true), 403002, 'unbound: not as another');
SELECT is(pg_temp.get('alice', 'k1', behalf => 'alice'), 0, 'on behalf of oneself needs no role');
SELECT is((pg_temp.entry()).on_behalf, NULL, 'and is nothing special');
SELECT is(pg_temp.get('alice.desk', 'u1', behalf => 'alice', officer => true), 403003, 'on behalf of oneself: the client''s rule holds');
SELECT is(pg_temp.get('eve', 'k1', behalf => 'alice', officer => true), 403004, 'an officer of another organisation');
SELECT is(pg_temp.get('eve', 'no such key', behalf => 'alice', officer => true), 404001, 'an officer and an unknown key');
SELECT is(pg_temp.get('bob', 'k1', behalf => 'alice', officer => NULL), 403004, 'unknown whether officer: no officer');

-- Anonymous.
SELECT is(pg_temp.resource('carol', 'public', keys => '{}', anonymous => 2), 0);
SELECT is(pg_temp.keys('carol', '{p1,p2}'), 0);
SELECT is((pg_temp.bind('carol', 'p1', 'public')).verdict, 0);
SELECT is(pg_temp.channel('anon', kind => 'anonymous',
    subject => (SELECT min(authorization_id::text) FROM kms.authorizations WHERE kind = 'anonymous')), 0);
SELECT is(pg_temp.get('anon', 'p1'), 0, 'who is anonymous gets the keys of that resource');
SELECT ok(e.kind = 'anonymous' AND e.path = '{}', 'on record as what he is') FROM pg_temp.entry() e;
SELECT is(pg_temp.get('anon', 'k1'), 403001, 'no other');
SELECT is(pg_temp.get('anon', 'p2'), 403001, 'nor an unbound one');
SELECT is(pg_temp.get('anon', 'p1', behalf => 'carol', officer => false), 403004, 'nor on behalf of anybody');
DELETE FROM kms.authorizations WHERE authorization_id::text = (SELECT subject FROM kms.channels WHERE kind = 'anonymous');
SELECT is(pg_temp.get('anon', 'p1'), 403001, 'nor after the authorisation was removed');

-- Time over.
SELECT is(pg_temp.keys('alice', '{t1}'), 0);
SELECT is(pg_temp.resource('alice', 'brief', pg_temp.users('bob'), '{t1}', ttl_ms => 20), 0, 'a resource with a ttl');
SELECT ok(pg_sleep(0.03) IS NOT NULL);
SELECT is(pg_temp.get('bob', 't1'), 410001, 'past it: destroyed, to who is authorised');
SELECT is(pg_temp.get('mallory', 't1'), 403001, 'to others it says nothing');

SELECT * FROM finish();
ROLLBACK;
