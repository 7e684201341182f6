-- pgbench_release_1.sql - one call of keys_release for one random key that the caller may have, as kms_worker.
--   pgbench -n -M prepared -f pgbench_release_1.sql -D resources=100000 -D keys=10 -D channels=1000   (as seeded)
\set c random(0, :channels - 1)
\set r :c + :channels * random(0, :resources / :channels - 1)
\set k random(0, :keys - 1)
SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id, created, expires, bound, resource
  FROM kms.keys_release(
       ARRAY[gen_random_uuid()],
       ARRAY[md5('org')::uuid],
       ARRAY[md5('channel' || :c)::uuid],
       ARRAY['request'],
       ARRAY['client' || :c],
       ARRAY[md5('key' || :r || '.' || :k)::uuid],
       ARRAY[NULL::text],
       ARRAY[false]);
