-- Services: their channels, and what the one function that decides gives them of single keys.
BEGIN;
\ir fixture.psql
\ir services.psql
SELECT plan(115);

-- ------------------------------------------------------------------------------------------------ channels
SELECT pg_temp.service('bot', rate => 50), pg_temp.service('old'), pg_temp.service('vault', public_key => '{"kty":"RSA"}') \g /dev/null
SELECT is((SELECT verdict FROM pg_temp.open('bot')), -1, 'the installation has no wrapping key yet');
SELECT is((SELECT org FROM kms.orgs_get('{""}')), NULL, 'which is told by its name');
SELECT results_eq($$ SELECT org, org_name, generation FROM kms.wrapping_keys_due(86400000, 1000) $$, $$ VALUES (pg_temp.nil(), '', 0) $$, 'so it is due');
SELECT is(pg_temp.installation(), 0, 'its first one');
SELECT is_empty($$ SELECT * FROM kms.wrapping_keys_due(86400000, 1000) $$, 'is due no more');
SELECT results_eq($$ SELECT n, org, state, generation, root, wrapped FROM kms.orgs_get('{acme,""}') $$,
    $$ VALUES (1, pg_temp.id('acme'), 'active', 1, pg_temp.id('root'), pg_temp.bytes(40)), (2, pg_temp.nil(), 'active', 1, pg_temp.id('root'), pg_temp.bytes(40)) $$, 'and found by the name ""');
SELECT is((SELECT org_id FROM kms.entries WHERE action = 'wrapping_key.add'), pg_temp.nil(), 'on record');

SELECT is((SELECT verdict FROM pg_temp.open('bot', generation => 2, jti => 'j0')), -1, 'a generation that is not current');
SELECT is((SELECT count(*) FROM kms.service_proofs), 0::bigint, 'does not use up the proof');
SELECT ok(o.verdict = 0 AND o.expires = o.created + 3600000 AND o.service = 'bot' AND o.rate = 50, 'a channel of an hour') FROM pg_temp.open('bot', jti => 'j0', op => 'c1') o;
SELECT ok(e.org_id = pg_temp.nil() AND e.action = 'channel.create' AND e.kind = 'service' AND e.subject = 'bot' AND e.verdict = 0 AND e.client_id IS NULL AND e.client IS NOT NULL
          AND e.person IS NULL AND e.detail @> '{"proven":"proof","identity":"spiffe://bench.example/bot"}', 'on record in the installation''s log') FROM kms.entries e WHERE op_id = pg_temp.id('c1');
SELECT ok(o.verdict = 0 AND o.service = 'bot' AND o.rate = 50 AND o.expires = (SELECT (detail ->> 'expires')::bigint FROM kms.entries WHERE op_id = pg_temp.id('c1')), 'run again: the same answer')
  FROM pg_temp.open('bot', jti => 'j0', op => 'c1') o;
SELECT is((SELECT count(*) FROM kms.entries WHERE op_id = pg_temp.id('c1')), 1::bigint, 'and no more on record');
SELECT is((SELECT verdict FROM pg_temp.open('bot.2', jti => 'j0')), 401001, 'a proof is good once');
SELECT is((SELECT verdict FROM pg_temp.open('bot.2', jti => 'j1', serial => 's2')), 0, 'another one');
SELECT is((SELECT verdict FROM pg_temp.open('bot.3')), 0, 'by TLS there is none');
SELECT is((pg_temp.entry()).detail ->> 'proven', 'tls', 'which is on record');
SELECT ok(o.expires - o.created BETWEEN 4000 AND 5000, 'no longer than the certificate') FROM pg_temp.open('bot.4', not_after_ms => pg_temp.now_ms() + 5000) o;
SELECT is((SELECT verdict FROM pg_temp.open('bot.5', not_after_ms => pg_temp.now_ms() - 1)), 401001, 'an expired one');
SELECT is((SELECT verdict FROM pg_temp.open('nobody.1', 'stranger', jti => 'j9')), 403006, 'who is not registered');
SELECT ok(e.subject = 'spiffe://bench.example/stranger' AND e.kind = 'service' AND e.verdict = 403006, 'on record by his identity') FROM pg_temp.entry() e;
SELECT is((SELECT count(*) FROM kms.service_proofs WHERE jti_hash = pg_temp.hash('j9')), 1::bigint, 'his proof is used up as well');
SELECT is((SELECT verdict FROM pg_temp.open('old')), 0), is((SELECT verdict FROM pg_temp.open('old.2', serial => 's7')), 0);
SELECT is((SELECT verdict FROM pg_temp.open('vault')), 0);
SET LOCAL ROLE kms_worker;
SELECT results_eq($$ SELECT found, org, org_name, kind, subject, client, generation, identity, thumb, rate FROM kms.channels_open(ARRAY[pg_temp.id('channel bot'), pg_temp.id('channel alice')]) $$,
    $$ VALUES (true, pg_temp.nil(), '', 'service', 'bot', 'svc', 1, 'spiffe://bench.example/bot', pg_temp.hash('key s1'), 50),
              (true, pg_temp.id('acme'), 'acme', 'user', 'alice', 'phone', 1, NULL, NULL, NULL) $$, 'a service''s channel and a user''s');
SELECT results_eq($$ SELECT verdict FROM kms.channels_check(ARRAY[pg_temp.nil()], ARRAY[pg_temp.id('channel bot')]) $$, 'VALUES (0)', 'a service may ping');
RESET ROLE;

-- What users do is not for services.
INSERT INTO people SELECT 'bot', pg_temp.nil(), 'svc' UNION ALL SELECT 'old', pg_temp.nil(), 'svc';
SELECT is(pg_temp.keys('alice', '{k1,k2,k3,u1}'), 0), is(pg_temp.resource('alice', 'space', pg_temp.users('bob'), '{k1,k2}'), 0), is(pg_temp.resource('carol', 'other'), 0);
SELECT is(pg_temp.keys('bot', '{x1}'), 403005, 'no keys.create'), is(pg_temp.get('bot', 'k1'), 403005, 'no users'' key.get'), is((pg_temp.bind('bot', 'u1', 'space')).verdict, 403005, 'no bind'),
    is((SELECT verdict FROM pg_temp.list('bot', 'space')), 403005, 'no users'' resource.keys'),
    is((pg_temp.ask('resource_create', 'bot', '{"auths":[],"keys":[]}')).verdict, 403005, 'no resource'),
    is((pg_temp.ask('resource_get', 'bot', jsonb_build_object('resource', pg_temp.id('space')))).verdict, 403005),
    is((pg_temp.ask('authorizations_list', 'bot', jsonb_build_object('resource', pg_temp.id('space')))).verdict, 403005),
    is((pg_temp.ask('authorizations_create', 'bot', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('bot')))).verdict, 403005, 'no grant'),
    is((pg_temp.ask('authorizations_delete', 'bot', jsonb_build_object('resource', pg_temp.id('space'), 'auths', pg_temp.users('bob')))).verdict, 403005);
SELECT ok(e.kind = 'service' AND e.subject = 'bot' AND e.org_id = pg_temp.nil() AND e.verdict = 403005, 'refused on record') FROM pg_temp.entry() e;

-- ------------------------------------------------------------------------------------------------ single keys, in the order of judgement
SELECT is(pg_temp.sget('bot', 'k1', NULL), '403005 the request names no purpose');
SELECT is(pg_temp.sget('bot', 'k1', 'mining'), '403005 the purpose is unknown');
SELECT is((pg_temp.entry()).purpose, NULL, 'whose name is not on record');
SELECT is(pg_temp.sget('bot', 'k1', 'transcoding'), '403005 the service is not registered for this purpose', 'known, and off');
SELECT is(pg_temp.sget('bot', 'none'), '404001', 'an unknown key');
SELECT ok(e.org_id = pg_temp.nil() AND e.verdict = 404001 AND e.key_ids = ARRAY[pg_temp.id('none')], 'in the installation''s log') FROM pg_temp.entry() e;
SELECT is(pg_temp.sget('bot', 'k1'), '403005 the organisation has not enabled this purpose', 'all are off at first');
SELECT ok(e.org_id = pg_temp.id('acme') AND e.verdict = 403005 AND e.kind = 'service' AND e.subject = 'bot' AND e.purpose = 'indexing' AND e.resource_id = pg_temp.id('space')
          AND e.detail = '{"why":"the organisation has not enabled this purpose"}', 'in the organisation''s log') FROM pg_temp.entry() e;
SELECT pg_temp.enable('acme', 'indexing', 'dlp', 'ediscovery', 'archival'), pg_temp.service('far', orgs => '{umbrella}'), pg_temp.service('files', kinds => '{file}') \g /dev/null
SELECT is((SELECT verdict FROM pg_temp.open('far')), 0), is((SELECT verdict FROM pg_temp.open('files')), 0);
SELECT is(pg_temp.sget('far', 'k1'), '403005 the service is not registered for this organisation');
SELECT is(pg_temp.sget('files', 'k1'), '403005 the service is not registered for this kind of resource');
SELECT ok(r.verdict = 0 AND r.key = pg_temp.id('k1') AND r.blob = pg_temp.bytes(61) AND r.generation = 1 AND r.root = pg_temp.id('root') AND r.wrapped = pg_temp.bytes(40)
          AND r.org = pg_temp.id('acme') AND r.user_id = 'alice' AND r.client_id = 'phone' AND r.bound IS NOT NULL AND r.resource = pg_temp.id('space') AND r.service = 'bot'
          AND r.purpose = 'indexing' AND r.matter IS NULL AND r.public_key IS NULL AND r.cursor IS NULL AND r.why IS NULL, 'a key, complete')
  FROM pg_temp.serve('bot', 'key.get', 'k1', op => 'g1') r;
SELECT ok(e.org_id = pg_temp.id('acme') AND e.verdict = 0 AND e.action = 'key.get' AND e.kind = 'service' AND e.subject = 'bot' AND e.person IS NULL AND e.client_id IS NULL AND e.client IS NOT NULL
          AND e.channel_id = pg_temp.id('channel bot') AND e.resource_id = pg_temp.id('space') AND e.key_ids = ARRAY[pg_temp.id('k1')] AND e.request_id = 'req'
          AND e.purpose = 'indexing' AND e.matter_id IS NULL AND e.detail IS NULL, 'with its record') FROM kms.entries e WHERE op_id = pg_temp.id('g1');
SELECT is((SELECT client FROM kms.entries WHERE op_id = pg_temp.id('g1')), (SELECT client FROM kms.channels WHERE channel_id = pg_temp.id('channel bot')), 'and the client''s pseudonym');
SELECT is((SELECT public_key FROM pg_temp.serve('vault', 'key.get', 'k1', 'archival')), '{"kty":"RSA"}', 'whoever has a public key gets it encrypted');
SELECT is(pg_temp.sget('bot', 'u1'), '403005 the key is not bound to a resource');
UPDATE kms.organisations SET state = 'suspended' WHERE name = 'acme';
SELECT is(pg_temp.sget('bot', 'k1'), '403001 the organisation is suspended');
SELECT is(pg_temp.sget('files', 'k1'), '403005 the service is not registered for this kind of resource', 'which is said before that');
UPDATE kms.organisations SET state = 'active' WHERE name = 'acme';
UPDATE kms.purposes SET enabled = false WHERE purpose = 'indexing';
SELECT is(pg_temp.sget('bot', 'k1'), '403005 the organisation has not enabled this purpose', 'off again');
UPDATE kms.purposes SET enabled = true WHERE purpose = 'indexing';

-- dlp: the age is the organisation's.
SELECT is(pg_temp.sget('bot', 'k1', 'dlp'), '0', 'just bound');
UPDATE kms.content_keys SET bound_at = clock_timestamp() - interval '24 h 1 s' WHERE key_id = pg_temp.id('k1');
SELECT is(pg_temp.sget('bot', 'k1', 'dlp'), '403005 the key was bound too long ago for dlp', 'by default a day');
INSERT INTO kms.settings VALUES (pg_temp.id('acme'), 'dlp.age', '90000000', now());
SELECT is(pg_temp.sget('bot', 'k1', 'dlp'), '0', 'set to 25 hours');
SELECT is(pg_temp.sget('bot', 'u1', 'dlp'), '403005 the key is not bound to a resource');

-- ediscovery.
SELECT pg_temp.matter('m1', '{bob}', window_from => now() - interval '30 h', window_to => now() - interval '1 h') \g /dev/null
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery'), '403007 ediscovery needs a matter');
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', 'none'), '403007 the matter is unknown, not approved, closed or expired', 'unknown');
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', 'm1'), '0', 'a custodian''s, in its window');
SELECT ok(e.matter_id = pg_temp.id('m1') AND e.purpose = 'ediscovery', 'on record') FROM pg_temp.entry() e;
SELECT is((SELECT matter FROM pg_temp.serve('bot', 'key.get', 'k1', 'ediscovery', 'm1')), pg_temp.id('m1'), 'and in the answer');
SELECT is(pg_temp.sget('bot', 'k2', 'ediscovery', 'm1'), '403007 the key was bound outside the time that the matter covers');
UPDATE kms.content_keys k SET bound_at = m.window_from FROM kms.matters m WHERE k.key_id = pg_temp.id('k2');
SELECT is(pg_temp.sget('bot', 'k2', 'ediscovery', 'm1'), '0', 'its beginning is in');
UPDATE kms.content_keys k SET bound_at = m.window_to FROM kms.matters m WHERE k.key_id = pg_temp.id('k2');
SELECT is(pg_temp.sget('bot', 'k2', 'ediscovery', 'm1'), '403007 the key was bound outside the time that the matter covers', 'its end is not');
SELECT pg_temp.matter('m2', '{mallory}'), pg_temp.matter('m3', '{alice}', org => 'umbrella'), pg_temp.matter('m4', '{alice}', state => 'pending', approved => false),
    pg_temp.matter('m5', '{alice}', state => 'closed'), pg_temp.matter('m6', '{alice}', expires => '-1 s'), pg_temp.matter('m7', '{alice}', kinds => '{file,meeting}'),
    pg_temp.matter('m8', '{alice}', approved => false), pg_temp.matter('m9', '{alice}', state => 'rejected', approved => false) \g /dev/null
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', 'm2'), '403007 the matter does not cover this resource', 'another custodian');
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', m), '403007 the matter is unknown, not approved, closed or expired', 'of another organisation, pending, closed, expired, not approved, rejected')
  FROM unnest('{m3,m4,m5,m6,m8,m9}'::text[]) m;
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', 'm7'), '403007 the matter does not cover this resource', 'another kind');
SELECT is(pg_temp.sget('bot', 'u1', 'ediscovery', 'm1'), '403007 the matter does not cover this resource', 'an unbound key belongs to no custodian');
-- Whose resource it is by nesting only is not covered.
SELECT is(pg_temp.keys('carol', '{n1}'), 0), is((pg_temp.bind('carol', 'n1', 'other')).verdict, 0), is(pg_temp.grant_resource('carol', 'other', 'space'), 0);
SELECT is(pg_temp.sget('bot', 'n1', 'ediscovery', 'm1'), '403007 the matter does not cover this resource', 'custodians are those authorised directly');
-- Edited after its approval, behind the server's back.
SELECT throws_ok($$ UPDATE kms.matters SET custodians = '{mallory,alice}' WHERE name = 'm2' $$, '42501', NULL, 'the trigger knows');
SELECT pg_temp.tamper($$ UPDATE kms.matters SET custodians = '{mallory,alice}' WHERE name = 'm2' $$) \g /dev/null
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', 'm2'), '403007 the matter is unknown, not approved, closed or expired', 'the hash knows without it');
SELECT pg_temp.tamper($$ UPDATE kms.matters SET expires_at = expires_at + interval '3 s' WHERE name = 'm1' $$) \g /dev/null
SELECT is(pg_temp.sget('bot', 'k1', 'ediscovery', 'm1'), '403007 the matter is unknown, not approved, closed or expired', 'a later end');

-- Destroyed.
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('other');
SELECT is(pg_temp.sget('bot', 'n1'), '410001', 'past its time');
UPDATE kms.resources SET expires_at = NULL WHERE resource_id = pg_temp.id('other');
UPDATE kms.content_keys SET blob = NULL, destroyed_at = now() WHERE key_id = pg_temp.id('n1');
SELECT is(pg_temp.sget('bot', 'n1'), '410001', 'destroyed');

-- Run again.
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence;
SELECT is(pg_temp.sget('vault', 'k1', 'archival', op => 'v1'), '0');
UPDATE kms.purposes SET enabled = false;
UPDATE kms.channels SET expires_at = now() - interval '1 s' WHERE channel_id = pg_temp.id('channel vault');
SELECT ok(r.verdict = 0 AND r.key = pg_temp.id('k1') AND r.service = 'vault' AND r.public_key = '{"kty":"RSA"}', 'the first answer, whatever has changed since; never bare')
  FROM pg_temp.serve('vault', 'key.get', 'k1', 'archival', op => 'v1') r;
SELECT is(pg_temp.entries(), (SELECT entries + 1 FROM before), 'one entry');
SELECT is(pg_temp.fence(), (SELECT fence + 1 FROM before), 'that waits for the standbys');
SELECT is(pg_temp.sget('vault', 'k1', 'archival'), '499001', 'anew: the channel is gone');
SELECT is(pg_temp.sget('bot', 'k2', op => 'v2'), '403005 the organisation has not enabled this purpose');
UPDATE kms.purposes SET enabled = true;
SELECT is(pg_temp.sget('bot', 'k2', op => 'v2'), '403005 the organisation has not enabled this purpose', 'a refusal stays one');
SELECT throws_ok($$ SELECT pg_temp.sget('bot', 'k1', op => 'v2') $$, '22023', NULL, 'the id belongs to its first use');
RESET ROLE;

-- A batch: each by itself, in order.
SELECT results_eq($$ SELECT n, verdict, key FROM kms.service_release(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 5)),
        ARRAY[pg_temp.id('channel bot'), pg_temp.id('channel files'), pg_temp.id('channel none'), pg_temp.id('channel bot'), pg_temp.id('channel old')], array_fill('r'::text, ARRAY[5]),
        array_fill('c'::text, ARRAY[5]), array_fill('key.get'::text, ARRAY[5]), ARRAY[pg_temp.id('k1'), pg_temp.id('k1'), pg_temp.id('k1'), pg_temp.id('none'), pg_temp.id('k2')],
        '{indexing,indexing,indexing,dlp,archival}', array_fill(NULL::uuid, ARRAY[5]), array_fill(NULL::bigint, ARRAY[5]), array_fill(NULL::bigint, ARRAY[5]),
        array_fill(NULL::integer, ARRAY[5]), array_fill(NULL::bytea, ARRAY[5]), 100) $$,
    $$ VALUES (1, 0, pg_temp.id('k1')), (2, 403005, NULL), (3, 499001, NULL), (4, 404001, NULL), (5, 0, pg_temp.id('k2')) $$, 'five of three services');

-- ------------------------------------------------------------------------------------------------ retired, revoked, expired
UPDATE kms.services SET state = 'retired', retired_at = now() WHERE service = 'old';
SELECT is(pg_temp.sget('old', 'k1'), '403006 the service is retired');
SELECT is((SELECT found FROM kms.channels_open(ARRAY[pg_temp.id('channel old')])), false, 'its channels are not found');
SELECT is((SELECT verdict FROM kms.channels_check(ARRAY[pg_temp.nil()], ARRAY[pg_temp.id('channel old')])), 403006);
SELECT is((SELECT verdict FROM pg_temp.open('old.3')), 403006, 'it opens none');
SELECT is(kms.certificates_revoked(ARRAY[pg_temp.hash('ca'), pg_temp.hash('ca')], ARRAY[convert_to('s2', 'UTF8'), convert_to('s99', 'UTF8')], 'crl', 'keeper'), 2, 'two certificates are revoked');
SELECT is((SELECT detail ->> 'channels' FROM kms.entries WHERE action = 'certificate.revoke' AND detail ->> 'certificate' = encode(convert_to('s2', 'UTF8'), 'hex')), '1', 'each on record, with the channels it ended');
SELECT is((SELECT found FROM kms.channels_open(ARRAY[pg_temp.id('channel bot.2')])), false, 'that channel is dead');
SELECT is(kms.certificates_revoked(ARRAY[pg_temp.hash('ca')], ARRAY[convert_to('s2', 'UTF8')], 'crl', 'keeper'), 0, 'the same list again is no news');
SELECT is((SELECT verdict FROM pg_temp.open('bot.6', serial => 's2')), 401001, 'and opens none'), is((SELECT verdict FROM pg_temp.open('bot.6', serial => 's2', issuer => 'other ca')), 0, 'another CA''s of that number does');
INSERT INTO kms.revoked_certificates VALUES (pg_temp.nil(), decode(repeat('00', 32), 'hex'), convert_to('s1', 'UTF8'), 'officer', now());
SELECT is(pg_temp.sget('bot', 'k1'), '499001', 'revoked, whoever issued it: a channel that is still there is dead');
SELECT is((SELECT found FROM kms.channels_open(ARRAY[pg_temp.id('channel bot')])), false);
SELECT is((SELECT verdict FROM kms.channels_check(ARRAY[pg_temp.nil()], ARRAY[pg_temp.id('channel bot')])), 499001);
SELECT is((SELECT verdict FROM kms.channel_delete(ARRAY[gen_random_uuid()], ARRAY[pg_temp.nil()], ARRAY[pg_temp.id('channel bot.6')], '{r}', '{svc}', ARRAY[pg_temp.id('channel far')])), 403001, 'a service ends no other''s channel');
SELECT is((SELECT verdict FROM kms.channel_delete(ARRAY[gen_random_uuid()], ARRAY[pg_temp.nil()], ARRAY[pg_temp.id('channel bot.6')], '{r}', '{svc}', ARRAY[pg_temp.id('channel bot.6')])), 0, 'but its own');
DO $$ BEGIN PERFORM kms.sweep(100); END $$;
UPDATE kms.service_proofs SET expires_at = now() - interval '1 s' WHERE jti_hash = pg_temp.hash('j0');
UPDATE kms.channels SET expires_at = now() - interval '11 min' WHERE channel_id = pg_temp.id('channel far');
SELECT is((j ->> 'proofs') || (j ->> 'channels'), '11', 'the sweeper removes proofs and channels of services') FROM kms.sweep(100) j;

SELECT * FROM finish();
ROLLBACK;
