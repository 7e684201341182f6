-- pgbench_release_50.sql - one call of keys_release for 50 random keys that the caller may have, as kms_worker.
--   pgbench -n -M prepared -f pgbench_release_50.sql -D resources=100000 -D keys=10 -D channels=1000   (as seeded)
\set c random(0, :channels - 1)
\set rounds :resources / :channels
SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id, created, expires, bound, resource
  FROM kms.keys_release(
       ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 50)),
       array_fill(md5('org')::uuid, ARRAY[50]),
       array_fill(md5('channel' || :c)::uuid, ARRAY[50]),
       array_fill('request'::text, ARRAY[50]),
       array_fill('client' || :c, ARRAY[50]),
       ARRAY(SELECT md5('key' || (:c::int + :channels::int * floor(random() * :rounds::int)) || '.' || floor(random() * :keys::int))::uuid
               FROM generate_series(1, 50)),
       array_fill(NULL::text, ARRAY[50]),
       array_fill(false, ARRAY[50]));
