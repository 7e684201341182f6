-- New keys: stored, recorded, and never made twice.
BEGIN;
\ir fixture.psql
SELECT plan(21);

SELECT is(pg_temp.keys('alice', '{k1,k2,k3}'), 0, 'a user gets keys');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE org_id = pg_temp.id('acme') AND creator = 'alice' AND client_id = 'phone'
              AND generation = 1 AND blob = pg_temp.bytes(61) AND resource_id IS NULL
              AND expires_at = created_at + interval '60 s' AND key_id = ANY (ARRAY[pg_temp.id('k1'), pg_temp.id('k2'), pg_temp.id('k3')])),
          3::bigint, 'three rows with what was given');
SELECT ok(action = 'key.create' AND verdict = 0 AND subject = 'alice' AND cardinality(key_ids) = 3 AND key_ids @> ARRAY[pg_temp.id('k2')],
          'one entry names all') FROM pg_temp.entry();

-- Several items in one call, each judged by itself.
CREATE TEMP TABLE answers AS SELECT * FROM kms.keys_create(
    ARRAY[pg_temp.id('o1'), pg_temp.id('o2'), pg_temp.id('o3'), pg_temp.id('o4'), pg_temp.id('o5')],
    ARRAY[pg_temp.id('acme'), pg_temp.id('acme'), pg_temp.id('umbrella'), pg_temp.id('acme'), pg_temp.id('acme')],
    ARRAY[pg_temp.id('channel alice'), pg_temp.id('none'), pg_temp.id('channel eve'), pg_temp.id('channel bob'), pg_temp.id('channel bob')],
    '{r1,r2,r3,NULL,r5}', '{phone,phone,phone,"",pad}', '{1,1,1,1,9}',
    '{1,2,3,3,4,5}', ARRAY[pg_temp.id('m1'), pg_temp.id('m2'), pg_temp.id('m3'), pg_temp.id('m3b'), pg_temp.id('m4'), pg_temp.id('m5')],
    ARRAY[pg_temp.bytes(61, '01'), pg_temp.bytes(61, '02'), pg_temp.bytes(61, '03'), pg_temp.bytes(61, '3b'), pg_temp.bytes(61, '04'), pg_temp.bytes(61, '05')],
    5000);
SELECT results_eq('SELECT n, verdict FROM answers', 'VALUES (1, 0), (2, 499001), (3, 0), (4, 0), (5, -1)', 'rows in order, each its own verdict');
SELECT ok(bool_and(CASE WHEN verdict = 0 THEN expires = created + 5000 ELSE expires IS NULL AND created IS NULL END), 'times for what was done')
  FROM answers;
SELECT results_eq($$ SELECT org_id, key_id, blob, creator, client_id FROM kms.content_keys WHERE expires_at < now() + interval '30 s' ORDER BY blob $$,
    $$ VALUES (pg_temp.id('acme'), pg_temp.id('m1'), pg_temp.bytes(61, '01'), 'alice', 'phone'),
              (pg_temp.id('umbrella'), pg_temp.id('m3'), pg_temp.bytes(61, '03'), 'eve', 'phone'),
              (pg_temp.id('acme'), pg_temp.id('m4'), pg_temp.bytes(61, '04'), 'bob', ''),
              (pg_temp.id('umbrella'), pg_temp.id('m3b'), pg_temp.bytes(61, '3b'), 'eve', 'phone') $$, 'each key to its owner');
SELECT results_eq($$ SELECT op_id, verdict FROM kms.entries WHERE action = 'key.create' ORDER BY entry_id OFFSET 1 $$,
    $$ VALUES (pg_temp.id('o1'), 0), (pg_temp.id('o2'), 499001), (pg_temp.id('o3'), 0), (pg_temp.id('o4'), 0) $$,
    'an entry for each, refusals included, but none for a stale wrapping key');

-- Replays.
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence, (SELECT count(*) FROM kms.content_keys) AS keys;
CREATE TEMP TABLE again AS SELECT * FROM kms.keys_create(
    ARRAY[pg_temp.id('o1'), pg_temp.id('o2'), pg_temp.id('o6')],
    array_fill(pg_temp.id('acme'), ARRAY[3]),
    ARRAY[pg_temp.id('channel alice'), pg_temp.id('none'), pg_temp.id('channel bob')],
    '{r1,r2,r6}', '{phone,phone,phone}', '{1,1,1}',
    '{1,2,3}', ARRAY[pg_temp.id('m1'), pg_temp.id('m2'), pg_temp.id('m6')], array_fill(pg_temp.bytes(61), ARRAY[3]), 5000);
SELECT results_eq('SELECT n, verdict FROM again', 'VALUES (1, 0), (2, 499001), (3, 0)', 'done before, refused before, new: each its answer');
SELECT is((SELECT (created, expires)::text FROM again WHERE n = 1), (SELECT (created, expires)::text FROM answers WHERE n = 1),
          'done before: the same times');
SELECT is((SELECT count(*) FROM kms.content_keys), (SELECT keys + 1 FROM before), 'one new key');
SELECT is(pg_temp.entries(), (SELECT entries + 1 FROM before), 'one new entry');
SELECT is(pg_temp.fence(), (SELECT fence + 1 FROM before), 'the fence is written');
SELECT is((SELECT blob FROM kms.content_keys WHERE key_id = pg_temp.id('m1')), pg_temp.bytes(61, '01'), 'the first key stays as it is');

SELECT is(pg_temp.resource('alice', 'space', anonymous => 1), 0);
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT authorization_id::text FROM kms.authorizations WHERE kind = 'anonymous')), 0);
SELECT is(pg_temp.keys('anon', '{a1}'), 403001, 'who is anonymous gets no keys of his own');
SELECT is_empty($$ SELECT FROM kms.content_keys WHERE key_id = pg_temp.id('a1') $$, 'and none is stored');

SELECT throws_ok($$ SELECT pg_temp.keys('alice', '{k1}') $$, '23505', NULL, 'a key id that is there already is an error');
SELECT throws_ok($$ SELECT * FROM kms.keys_create('{}', '{}', '{}', '{}', '{}', '{}', '{1}', '{}', '{}', 1000) $$, '22023', NULL, 'unequal arrays are an error');
SELECT throws_ok($$ SELECT * FROM kms.keys_create('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', NULL) $$, '22023', NULL, 'a lifetime is needed');
SELECT is_empty($$ SELECT * FROM kms.keys_create('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1000) $$, 'nothing asked, nothing answered');

SELECT * FROM finish();
ROLLBACK;
