-- pgbench_create_10.sql - one call of keys_create for one request of 10 keys, as kms_worker.
--   pgbench -n -M prepared -f pgbench_create_10.sql -D channels=1000   (as seeded)
\set c random(0, :channels - 1)
SELECT n, verdict, created, expires
  FROM kms.keys_create(
       ARRAY[gen_random_uuid()],
       ARRAY[md5('org')::uuid],
       ARRAY[md5('channel' || :c)::uuid],
       ARRAY['request'],
       ARRAY['client'],
       ARRAY[1],
       array_fill(1, ARRAY[10]),
       ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 10)),
       array_fill(decode(repeat('01', 61), 'hex'), ARRAY[10]),
       3600000);
