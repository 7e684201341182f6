-- The sweeper: what is past its time goes, on record, and no more than a batch.
BEGIN;
\ir fixture.psql
SELECT plan(26);

CREATE FUNCTION pg_temp.sweep(batch integer DEFAULT 1000) RETURNS text LANGUAGE sql AS $$
    SELECT format('%s channels, %s unbound keys, %s resources, %s keys', j ->> 'channels', j ->> 'unbound_keys', j ->> 'resources', j ->> 'keys') FROM kms.sweep(batch) j $$;
SELECT is(pg_temp.keys('alice', '{k1,k2,k3,k4,k5,u1,u2,u3}'), 0);
SELECT is(pg_temp.keys('eve', '{e1}'), 0);
SELECT is(pg_temp.resource('alice', 'brief', pg_temp.users('bob'), '{k1,k2,k3}', ttl_ms => 60000), 0);
SELECT is(pg_temp.resource('alice', 'lasting', pg_temp.users('bob'), '{k4}'), 0);
SELECT is(pg_temp.resource('alice', 'longer', pg_temp.users('bob'), '{k5}', ttl_ms => 120000), 0);
SELECT is(pg_temp.sweep(), '0 channels, 0 unbound keys, 0 resources, 0 keys', 'nothing is past its time');

-- Channels, ten minutes late.
UPDATE kms.channels SET expires_at = now() - interval '9 min' WHERE channel_id = pg_temp.id('channel bob');
UPDATE kms.channels SET expires_at = now() - interval '11 min' WHERE channel_id = pg_temp.id('channel carol');
SET LOCAL ROLE kms_keeper;
SELECT is(pg_temp.sweep(), '1 channels, 0 unbound keys, 0 resources, 0 keys', 'a channel goes ten minutes after its end');
RESET ROLE;
SELECT is((SELECT count(*) FROM kms.channels WHERE channel_id IN (pg_temp.id('channel bob'), pg_temp.id('channel carol'))), 1::bigint, 'not sooner');

-- Unbound keys, in batches, each on record.
UPDATE kms.content_keys SET expires_at = now() - interval '1 s' WHERE key_id IN (pg_temp.id('u1'), pg_temp.id('u2'), pg_temp.id('e1'));
SELECT is(pg_temp.sweep(2), '0 channels, 2 unbound keys, 0 resources, 0 keys', 'a batch of keys that nobody bound');
SELECT is(pg_temp.sweep(2), '0 channels, 1 unbound keys, 0 resources, 0 keys', 'and the rest');
SELECT is((SELECT array_agg(k ORDER BY k) FROM kms.entries e, unnest(e.key_ids) k WHERE e.action = 'key.expire'),
          (SELECT array_agg(k ORDER BY k) FROM unnest(ARRAY[pg_temp.id('u1'), pg_temp.id('u2'), pg_temp.id('e1')]) k), 'all on record');
SELECT is((SELECT DISTINCT org_id FROM kms.entries e WHERE e.action = 'key.expire' AND pg_temp.id('e1') = ANY (key_ids)), pg_temp.id('umbrella'), 'in the right log');
SELECT results_eq($$ SELECT key_id FROM kms.content_keys WHERE resource_id IS NULL $$, $$ VALUES (pg_temp.id('u3')) $$, 'the one in time is still there');

-- Resources.
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('brief');
SELECT is(pg_temp.sweep(2), '0 channels, 0 unbound keys, 0 resources, 2 keys', 'two of the resource''s three keys');
SELECT is((SELECT destroyed_at FROM kms.resources WHERE resource_id = pg_temp.id('brief')), NULL, 'it is not finished');
SELECT ok(e.action = 'resource.destroy' AND cardinality(e.key_ids) = 2 AND e.resource_id = pg_temp.id('brief') AND e.kind = 'keeper' AND e.detail @> '{"more":true}', 'on record')
  FROM kms.entries e WHERE e.action = 'resource.destroy' ORDER BY e.entry_id DESC LIMIT 1;
SELECT is(pg_temp.sweep(2), '0 channels, 0 unbound keys, 1 resources, 1 keys', 'the third, and the resource');
SELECT is(pg_temp.sweep(2), '0 channels, 0 unbound keys, 0 resources, 0 keys', 'that is all');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('brief') AND blob IS NULL AND destroyed_at IS NOT NULL), 3::bigint, 'their blobs are gone');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE blob IS NOT NULL AND resource_id IN (pg_temp.id('lasting'), pg_temp.id('longer'))), 2::bigint, 'no others');
SELECT is(pg_temp.get('alice', 'k1'), 410001, 'destroyed, to who was authorised');
SELECT is(pg_temp.get('mallory', 'k1'), 403001, 'and not to others');
SELECT is((SELECT verdict FROM pg_temp.list('alice', 'brief')), 410001, 'the resource as well');
SELECT is(pg_temp.get('alice', 'k4'), 0, 'others are as they were');
SELECT is(pg_temp.keys('alice', '{x}'), 0);
SELECT throws_ok('SELECT kms.sweep(0)', '22023', NULL, 'a batch has at least one');

SELECT * FROM finish();
ROLLBACK;
