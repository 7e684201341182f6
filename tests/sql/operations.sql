-- Operation ids: one belongs to what it was first used for.  Else a worker that was taken over could have a key without
-- its record, by asking under the id of something that was allowed.
BEGIN;
\ir fixture.psql
SELECT plan(22);

SELECT is(pg_temp.keys('alice', '{k1,k2,u1}', op => 'made'), 0);
SELECT is(pg_temp.resource('alice', 'space', keys => '{k1,k2}'), 0);
SELECT is(pg_temp.resource('alice', 'other', anonymous => 1), 0);
SELECT is(pg_temp.keys('bob', '{b1,b2}'), 0);
SELECT is(pg_temp.resource('bob', 'bobs', keys => '{b1}'), 0);

SELECT is(pg_temp.get('alice', 'k1', op => 'released'), 0);
SELECT throws_ok($$ SELECT pg_temp.get('alice', 'k2', op => 'released') $$, '22023', NULL, 'not for another key, even one that is the caller''s');
SELECT throws_ok($$ SELECT pg_temp.get('alice', 'b1', op => 'released') $$, '22023', NULL, 'nor for one that is not');
SELECT throws_ok($$ SELECT pg_temp.get('bob', 'k1', op => 'released') $$, '22023', NULL, 'nor on another channel');
SELECT throws_ok($$ SELECT pg_temp.get('alice', 'k1', op => 'made') $$, '22023', NULL, 'nor for another action');
SELECT throws_ok($$ SELECT * FROM kms.keys_release(array_fill(pg_temp.id('twice'), ARRAY[2]), array_fill(pg_temp.id('acme'), ARRAY[2]),
    array_fill(pg_temp.id('channel alice'), ARRAY[2]), '{r,r}', '{phone,phone}', ARRAY[pg_temp.id('k1'), pg_temp.id('k2')], '{NULL,NULL}', '{f,f}') $$,
    '22023', NULL, 'nor twice in one call');
SELECT throws_ok($$ SELECT pg_temp.keys('bob', '{x}', op => 'made') $$, '22023', NULL, 'new keys: another channel');

SELECT is((pg_temp.bind('alice', 'u1', 'space', op => 'bound')).verdict, 0);
SELECT throws_ok($$ SELECT pg_temp.bind('alice', 'b1', 'space', op => 'bound') $$, '22023', NULL, 'bind: another key');
SELECT throws_ok($$ SELECT pg_temp.bind('alice', 'u1', 'other', op => 'bound') $$, '22023', NULL, 'bind: another resource');

SELECT is((SELECT count(*) FROM pg_temp.list('alice', 'space', op => 'listed')), 3::bigint);
SELECT throws_ok($$ SELECT pg_temp.list('alice', 'bobs', op => 'listed') $$, '22023', NULL, 'keys of a resource: another resource');
SELECT is(pg_temp.keys('alice', '{k9}'), 0);
SELECT is((pg_temp.bind('alice', 'k9', 'space')).verdict, 0);
SELECT is((SELECT count(*) FROM pg_temp.list('alice', 'space', op => 'listed')), 3::bigint, 'run again: the keys that are on record, and no newer one');

SELECT throws_ok($$ SELECT pg_temp.ask('resource_get', 'alice', jsonb_build_object('resource', pg_temp.id('space')), op => 'listed') $$, '22023', NULL, 'cold functions: another action');
SELECT throws_ok($$ SELECT pg_temp.channel('dave', op => 'made') $$, '22023', NULL, 'channels: another action');

SELECT * FROM finish();
ROLLBACK;
