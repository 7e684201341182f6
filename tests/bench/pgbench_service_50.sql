-- pgbench_service_50.sql - one call of service_release for 50 random keys, as kms_worker: the same keys as pgbench_release_50.
--   pgbench -n -M prepared -f pgbench_service_50.sql -D resources=100000 -D keys=10 -D channels=1000   (as seeded)
\set s random(0, 9)
\set c random(0, :channels - 1)
\set rounds :resources / :channels
SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id, created, expires, bound, resource, service, purpose, matter,
       public_key, cursor, why
  FROM kms.service_release(
       ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 50)),
       array_fill(md5('service channel' || :s)::uuid, ARRAY[50]),
       array_fill('request'::text, ARRAY[50]),
       array_fill('client'::text, ARRAY[50]),
       array_fill('key.get'::text, ARRAY[50]),
       ARRAY(SELECT md5('key' || (:c::int + :channels::int * floor(random() * :rounds::int)) || '.' || floor(random() * :keys::int))::uuid
               FROM generate_series(1, 50)),
       array_fill('indexing'::text, ARRAY[50]),
       array_fill(NULL::uuid, ARRAY[50]),
       array_fill(NULL::bigint, ARRAY[50]),
       array_fill(NULL::bigint, ARRAY[50]),
       array_fill(NULL::integer, ARRAY[50]),
       array_fill(NULL::bytea, ARRAY[50]),
       100);
