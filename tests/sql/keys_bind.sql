-- Binding: once, by who made the key, to what he may use.
BEGIN;
\ir fixture.psql
SELECT plan(36);

SELECT is(pg_temp.keys('alice', '{k1,k2,k3,k4}'), 0);
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob')), 0);
SELECT is(pg_temp.resource('bob', 'other'), 0);
SELECT is(pg_temp.resource('alice', 'second'), 0);

SELECT is((pg_temp.bind('alice', 'none', 'space')).verdict, 404001, 'unknown key');
SELECT is((pg_temp.bind('eve', 'k1', 'space')).verdict, 403001, 'another organisation''s key');
SELECT is((pg_temp.bind('bob', 'k1', 'space')).verdict, 403002, 'another user''s key');
SELECT is((pg_temp.bind('alice', 'k1', 'space', client => 'other')).verdict, 403003, 'another client');
SELECT is((pg_temp.bind('alice', 'k1', 'none')).verdict, 404001, 'unknown resource');
SELECT is((pg_temp.bind('alice', 'k1', 'other')).verdict, 403001, 'not authorised on the resource');
SELECT is((SELECT resource_id FROM kms.content_keys WHERE key_id = pg_temp.id('k1')), NULL, 'all refusals left it unbound');

SELECT ok(r.verdict = 0 AND r.key = pg_temp.id('k1') AND r.resource = pg_temp.id('space') AND r.bound IS NOT NULL
          AND r.expires = r.bound + 1000000 AND r.user_id = 'alice' AND r.blob = pg_temp.bytes(61) AND r.wrapped = pg_temp.bytes(40), 'bound')
  FROM pg_temp.bind('alice', 'k1', 'space', op => 'op1') r;
SELECT ok(e.action = 'key.bind' AND e.verdict = 0 AND e.key_ids = ARRAY[pg_temp.id('k1')] AND e.resource_id = pg_temp.id('space') AND e.path = '{}',
          'on record') FROM pg_temp.entry() e;
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, k.* FROM kms.content_keys k WHERE key_id = pg_temp.id('k1');
SELECT ok(r.verdict = 0 AND r.bound = kms.ms(b.bound_at), 'the same operation again answers the same')
  FROM before b, pg_temp.bind('alice', 'k1', 'space', op => 'op1') r;
SELECT is(pg_temp.entries(), (SELECT entries FROM before), 'without an entry');
SELECT ok(r.verdict = 0 AND r.bound = kms.ms(b.bound_at) AND r.expires = kms.ms(b.expires_at), 'bound again to the same: the key as it is')
  FROM before b, pg_temp.bind('alice', 'k1', 'space', 5) r;
SELECT is(pg_temp.entries(), (SELECT entries + 1 FROM before), 'with an entry');
SELECT is((pg_temp.bind('alice', 'k1', 'second')).verdict, 409001, 'bound to another: refused');
SELECT is((pg_temp.bind('alice', 'k1', 'none')).verdict, 409001, 'whether that exists or not');
SELECT is((pg_temp.bind('bob', 'k1', 'space')).verdict, 403002, 'and only its creator learns so');
SELECT is((pg_temp.bind('alice', 'k2', 'space', 0)).expires, NULL, 'bound for ever');
SELECT is((pg_temp.bind('alice', 'k3', 'space', NULL)).expires, NULL, 'likewise');

-- Several in one call: later ones see earlier ones.
SELECT results_eq($$ SELECT n, verdict, resource FROM kms.keys_bind(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 3)),
        array_fill(pg_temp.id('acme'), ARRAY[3]), array_fill(pg_temp.id('channel alice'), ARRAY[3]), '{a,b,c}', '{phone,phone,phone}',
        array_fill(pg_temp.id('k4'), ARRAY[3]), ARRAY[pg_temp.id('space'), pg_temp.id('second'), pg_temp.id('space')], 1000) $$,
    $$ VALUES (1, 0, pg_temp.id('space')), (2, 409001, NULL), (3, 0, pg_temp.id('space')) $$, 'one key, three items');

-- Time over.
SELECT is(pg_temp.keys('alice', '{late}', unbound_ms => 1), 0);
SELECT is(pg_temp.keys('alice', '{k5}'), 0);
SELECT is(pg_temp.resource('alice', 'brief', pg_temp.users('bob'), ttl_ms => 1), 0);
SELECT ok(pg_sleep(0.01) IS NOT NULL);
SELECT is((pg_temp.bind('alice', 'late', 'space')).verdict, 404001, 'not bound in time');
SELECT is((pg_temp.bind('alice', 'k5', 'brief')).verdict, 410001, 'to a destroyed resource, by who was authorised');
SELECT is(pg_temp.keys('carol', '{c1}'), 0);
SELECT is((pg_temp.bind('carol', 'c1', 'brief')).verdict, 403001, 'to a destroyed resource, by somebody else');

-- Through nesting, and for who is anonymous.
SELECT is(pg_temp.grant_resource('bob', 'other', 'space'), 0);
SELECT is((pg_temp.bind('alice', 'k5', 'other')).verdict, 0, 'authorised through nesting');
SELECT is((pg_temp.entry()).path, ARRAY[pg_temp.id('space')], 'the way is on record');
SELECT is((SELECT verdict FROM kms.keys_bind(ARRAY[gen_random_uuid()], ARRAY[pg_temp.id('acme')], ARRAY[pg_temp.id('none')], '{r}', '{c}',
    ARRAY[pg_temp.id('k1')], ARRAY[pg_temp.id('space')], 1)), 499001, 'no channel');
SELECT is_empty($$ SELECT op_id FROM kms.entries GROUP BY org_id, op_id HAVING count(*) > 1 $$, 'one entry an operation');

SELECT * FROM finish();
ROLLBACK;
