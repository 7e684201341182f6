-- Channels: made, opened, checked, ended.
BEGIN;
\ir fixture.psql
SELECT plan(42);

SELECT is(pg_temp.channel('dave'), 0, 'a user gets a channel');
SELECT ok(channel_id = pg_temp.id('channel dave') AND kind = 'user' AND subject = 'dave' AND client_id = 'phone'
          AND verdict = 0 AND action = 'channel.create' AND request_id = 'req', 'and there is a record of it')
  FROM pg_temp.entry();
SELECT is(pg_temp.channel('nobody', 'no such organisation'), 401001, 'an unknown organisation gets none');
SELECT is((pg_temp.entry()).verdict, 401001, 'and that is recorded as well');
SELECT is(pg_temp.entries(), (SELECT count(DISTINCT op_id) FROM kms.entries), 'one entry an operation');

-- Replays.
SELECT is(pg_temp.channel('frank', op => 'op1'), 0, 'first run');
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence;
SELECT is(pg_temp.channel('frank', op => 'op1'), 0, 'the same operation again is not done twice');
SELECT is(pg_temp.entries(), (SELECT entries FROM before), 'and not recorded twice');
SELECT is(pg_temp.fence(), (SELECT fence + 1 FROM before), 'but it writes, so that its commit waits for the standbys');
SELECT is((SELECT (created, expires)::text FROM kms.channel_create(ARRAY[pg_temp.id('op1')], ARRAY[pg_temp.id('acme')], '{req}',
              '{phone}', ARRAY[pg_temp.id('channel frank')], '{user}', '{frank}', ARRAY[pg_temp.bytes(61)], '{1}', 999)),
          (SELECT (kms.ms(created_at), kms.ms(expires_at))::text FROM kms.channels WHERE channel_id = pg_temp.id('channel frank')),
          'its times are the first run''s');

-- A stale wrapping key.
CREATE TEMP TABLE before2 AS SELECT pg_temp.entries() AS entries;
SELECT is(pg_temp.channel('gina', generation => 7), -1, 'a wrapping key that is not current: -1');
SELECT is(pg_temp.entries(), (SELECT entries FROM before2), 'nothing is recorded');
SELECT is_empty($$ SELECT FROM kms.channels WHERE channel_id = pg_temp.id('channel gina') $$, 'nothing is made');
SELECT is(pg_temp.channel('gina'), 0, 'with the current one it works');

-- Opening.
SELECT results_eq($$ SELECT n, found, org, org_name, kind, subject, client, blob, generation, root, wrapped
                       FROM kms.channels_open(ARRAY[pg_temp.id('none'), pg_temp.id('channel alice'), pg_temp.id('channel eve')]) $$,
    $$ VALUES (1, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
              (2, true, pg_temp.id('acme'), 'acme', 'user', 'alice', 'phone', pg_temp.bytes(61), 1, pg_temp.id('root'), pg_temp.bytes(40)),
              (3, true, pg_temp.id('umbrella'), 'umbrella', 'user', 'eve', 'phone', pg_temp.bytes(61), 1, pg_temp.id('root'), pg_temp.bytes(40)) $$,
    'channels of any organisation are opened, in order; unknown ones are not found');
SELECT is(pg_temp.channel('late', lifetime_ms => 1), 0, 'a channel that ends at once');
SELECT ok(pg_sleep(0.01) IS NOT NULL);
SELECT is((SELECT found FROM kms.channels_open(ARRAY[pg_temp.id('channel late')])), false, 'is not found any more');
SELECT is(pg_temp.keys('late', '{x}'), 499001, 'and resets who uses it');
SELECT is((pg_temp.entry()).subject, NULL, 'whose it was is not recorded: it is not known');

-- The check of a ping.
SELECT results_eq($$ SELECT n, verdict FROM kms.channels_check(
        ARRAY[pg_temp.id('acme'), pg_temp.id('umbrella'), pg_temp.id('acme')],
        ARRAY[pg_temp.id('channel alice'), pg_temp.id('channel alice'), pg_temp.id('none')]) $$,
    $$ VALUES (1, 0), (2, 499001), (3, 499001) $$, 'a ping: a channel is good in its own organisation only');
SELECT is((SELECT verdict FROM kms.org_set_state(gen_random_uuid(), 'acme', 'suspended', 'tester')), 0, 'suspended');
SELECT is((SELECT verdict FROM kms.channels_check(ARRAY[pg_temp.id('acme')], ARRAY[pg_temp.id('channel alice')])), 403001,
          'a suspended organisation''s channels are refused');
SELECT is(pg_temp.channel('hugo'), 403001, 'and it gets no new ones');
SELECT is(pg_temp.keys('alice', '{x}'), 403001, 'nor keys');
SELECT is(pg_temp.get('alice', 'x'), 403001, 'nor any key back');
SELECT is((SELECT verdict FROM kms.org_set_state(gen_random_uuid(), 'acme', 'active', 'tester')), 0, 'resumed');
SELECT is(pg_temp.keys('alice', '{x}'), 0, 'all works again');

-- Anonymous channels.
SELECT is(pg_temp.resource('alice', 'space', anonymous => 1, ttl_ms => 5000), 0, 'a resource with an anonymous authorisation');
CREATE TEMP TABLE anon AS SELECT authorization_id AS id FROM kms.authorizations WHERE kind = 'anonymous';
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT id::text FROM anon)), 0, 'opens a channel');
SELECT is((SELECT c.expires_at FROM kms.channels c WHERE c.kind = 'anonymous'),
          (SELECT r.expires_at FROM kms.resources r WHERE r.resource_id = pg_temp.id('space')), 'that ends with the resource');
SELECT is(pg_temp.channel('anon2', 'umbrella', kind => 'anonymous', subject => (SELECT id::text FROM anon)), 401001,
          'not in another organisation');
SELECT is(pg_temp.channel('anon3', kind => 'anonymous', subject => pg_temp.id('none')::text), 401001, 'not one that does not exist');

-- Ending.
CREATE FUNCTION pg_temp.ends(who text, target text, op text DEFAULT NULL) RETURNS integer LANGUAGE sql AS $$
    SELECT verdict FROM people p, kms.channel_delete(ARRAY[coalesce(pg_temp.id(op), gen_random_uuid())], ARRAY[p.org],
        ARRAY[pg_temp.id('channel ' || who)], '{req}', ARRAY[p.client], ARRAY[pg_temp.id('channel ' || target)])
     WHERE p.name = who $$;
SELECT is(pg_temp.ends('bob', 'alice'), 403001, 'nobody ends another''s channel');
SELECT is(pg_temp.ends('bob', 'none'), 404001, 'an unknown one is not found');
SELECT is(pg_temp.ends('eve', 'alice'), 403001, 'nor does another organisation');
SELECT is(pg_temp.ends('alice.desk', 'alice'), 0, 'one''s own from another channel');
SELECT is(pg_temp.get('alice', 'x'), 499001, 'it is dead from then on');
SELECT is(pg_temp.ends('alice.desk', 'alice.desk', 'op9'), 0, 'the very channel one speaks on');
SELECT is(pg_temp.ends('alice.desk', 'alice.desk', 'op9'), 0, 'the same operation again answers the same, though the channel is gone');
SELECT is(pg_temp.ends('alice.desk', 'alice.desk'), 499001, 'a new operation does not');
SELECT throws_ok($$ SELECT * FROM kms.channels_check(ARRAY[pg_temp.id('acme')], '{}') $$, '22023', NULL, 'arrays of unequal length are refused');

SELECT * FROM finish();
ROLLBACK;
