-- All keys of a resource, or some.
BEGIN;
\ir fixture.psql
SELECT plan(27);

SELECT is(pg_temp.keys('alice', '{k1,k2,k3,k4,k5,u1}'), 0);
SELECT is(pg_temp.resource('alice', 'space', pg_temp.users('bob'), '{k1,k2,k3,k4,k5}', anonymous => 1), 0);
SELECT is(pg_temp.resource('alice', 'empty'), 0);
-- Bound at 1000, 2000, ... milliseconds.
UPDATE kms.content_keys k SET bound_at = to_timestamp(i)
  FROM generate_series(1, 5) i WHERE k.key_id = pg_temp.id('k' || i);
CREATE FUNCTION pg_temp.names(who text, after bigint DEFAULT NULL, before bigint DEFAULT NULL, count integer DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(coalesce((SELECT 'k' || i FROM generate_series(1, 5) i WHERE pg_temp.id('k' || i) = l.key), verdict::text), ' ' ORDER BY o)
      FROM pg_temp.list(who, 'space', after, before, count) WITH ORDINALITY
           AS l(n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id, created, expires, bound, resource, o) $$;

SELECT is(pg_temp.names('bob'), 'k1 k2 k3 k4 k5', 'all, in order of binding');
SELECT ok(e.action = 'resource.keys' AND e.verdict = 0 AND cardinality(e.key_ids) = 5 AND e.resource_id = pg_temp.id('space'), 'one entry names all')
  FROM pg_temp.entry() e;
SELECT ok(bool_and(n = 1 AND verdict = 0 AND blob = pg_temp.bytes(61) AND wrapped = pg_temp.bytes(40) AND user_id = 'alice'
          AND bound IS NOT NULL AND resource = pg_temp.id('space')), 'each complete') FROM pg_temp.list('bob', 'space');
SELECT is(pg_temp.names('bob', after => 2000), 'k2 k3 k4 k5', 'boundAfter is inclusive');
SELECT is(pg_temp.names('bob', before => 4000), 'k1 k2 k3', 'boundBefore is exclusive');
SELECT is(pg_temp.names('bob', 2000, 4000), 'k2 k3', 'both');
SELECT is(pg_temp.names('bob', 2001, 3999), 'k3', 'to the millisecond');
SELECT is(pg_temp.names('bob', count => 2), 'k4 k5', 'count: the most recently bound');
SELECT is((pg_temp.entry()).key_ids @> ARRAY[pg_temp.id('k4'), pg_temp.id('k5')] AND cardinality((pg_temp.entry()).key_ids) = 2, true,
          'only what is released is on record');
SELECT is(pg_temp.names('bob', before => 4000, count => 2), 'k2 k3', 'of the window');
SELECT results_eq($$ SELECT verdict, key FROM pg_temp.list('bob', 'space', after => 9000) $$, 'VALUES (0, NULL::uuid)', 'none in the window: done, no key');
SELECT results_eq($$ SELECT verdict, key FROM pg_temp.list('alice', 'empty') $$, 'VALUES (0, NULL::uuid)', 'none at all: likewise');
SELECT results_eq($$ SELECT verdict, key FROM pg_temp.list('bob', 'space', max_keys => 4) $$, 'VALUES (413001, NULL::uuid)', 'more than may be');
SELECT is((pg_temp.entry()).verdict, 413001, 'which is recorded');
SELECT is((SELECT count(*) FROM pg_temp.list('bob', 'space', max_keys => 5)), 5::bigint, 'just as many as may be');
SELECT results_eq($$ SELECT verdict, key FROM pg_temp.list('mallory', 'space') $$, 'VALUES (403001, NULL::uuid)', 'not authorised');
SELECT results_eq($$ SELECT verdict, key FROM pg_temp.list('eve', 'space') $$, 'VALUES (403001, NULL::uuid)', 'another organisation');
SELECT results_eq($$ SELECT verdict, key FROM pg_temp.list('bob', 'none') $$, 'VALUES (404001, NULL::uuid)', 'unknown');
SELECT results_eq($$ SELECT DISTINCT verdict FROM pg_temp.list('mallory', 'space', behalf => 'bob', officer => true) $$, 'VALUES (0)', 'an officer');
SELECT results_eq($$ SELECT DISTINCT verdict FROM pg_temp.list('mallory', 'space', behalf => 'bob') $$, 'VALUES (403004)', 'no officer');
SELECT results_eq($$ SELECT DISTINCT verdict FROM pg_temp.list('eve', 'space', behalf => 'bob', officer => true) $$, 'VALUES (403004)', 'another''s officer');
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT authorization_id::text FROM kms.authorizations WHERE kind = 'anonymous')), 0);
SELECT is((SELECT count(*) FROM pg_temp.list('anon', 'space') WHERE key IS NOT NULL), 5::bigint, 'who is anonymous');
SELECT is((SELECT verdict FROM pg_temp.list('anon', 'empty')), 403001, 'there and nowhere else');

SELECT * FROM finish();
ROLLBACK;
