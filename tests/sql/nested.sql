-- Authorisation through nested resources: r0 is open to who is on r1, r1 to who is on r2, ...
BEGIN;
\ir fixture.psql
SELECT plan(36);

SELECT is(pg_temp.resource('alice', 'r' || i), 0, 'resource r' || i) FROM generate_series(0, 9) i;
SELECT is(pg_temp.grant_resource('alice', 'r' || i, 'r' || i + 1), 0, format('r%s is open to r%s', i, i + 1)) FROM generate_series(0, 8) i;
SELECT is(pg_temp.keys('alice', '{k}'), 0);
SELECT is((pg_temp.bind('alice', 'k', 'r0')).verdict, 0);

SELECT is(pg_temp.get('bob', 'k'), 403001, 'on none of them');
SELECT is(pg_temp.grant_user('alice', 'r9', 'bob'), 0);
SELECT is(pg_temp.get('bob', 'k'), 403001, 'nine grants away: too far');
SELECT is(pg_temp.grant_user('alice', 'r8', 'bob'), 0);
SELECT is(pg_temp.get('bob', 'k'), 0, 'eight grants away');
SELECT is((pg_temp.entry()).path, ARRAY(SELECT pg_temp.id('r' || i) FROM generate_series(1, 8) i), 'the way is on record');
SELECT ok((SELECT count(*) = 1 FROM pg_temp.list('bob', 'r0') WHERE verdict = 0 AND key = pg_temp.id('k')), 'the resource''s keys likewise');
SELECT is((pg_temp.ask('resource_get', 'bob', jsonb_build_object('resource', pg_temp.id('r0')))).verdict, 0, 'and the resource');

-- The shortest way.
SELECT is(pg_temp.grant_resource('alice', 'r0', 'r8'), 0);
SELECT is(pg_temp.get('bob', 'k'), 0);
SELECT is((pg_temp.entry()).path, ARRAY[pg_temp.id('r8')], 'the shortest way is taken');

-- Cycles.
SELECT is(pg_temp.grant_resource('alice', 'r3', 'r0'), 0);
SELECT is(pg_temp.grant_resource('alice', 'r0', 'r0'), 0);
SELECT is(pg_temp.get('carol', 'k'), 403001, 'a cycle ends');

-- A destroyed resource opens nothing.
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('r8');
SELECT is(pg_temp.get('bob', 'k'), 403001, 'a resource past its time opens nothing');

SELECT * FROM finish();
ROLLBACK;
