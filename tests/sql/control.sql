-- What several officers must agree to: approvals, and what they approve but matters (matters.sql).
BEGIN;
\ir fixture.psql
\ir officers.psql
SELECT * FROM no_plan();

SELECT pg_temp.keys('alice', '{k1,k2,k3,k4,k5,k6,u1,u2}') \gset
SELECT pg_temp.resource('alice', 'space', pg_temp.users('bob', 'carol'), '{k1,k2,k3}') \gset
SELECT pg_temp.resource('alice', 'other', '[]', '{k4,k5}') \gset
SELECT pg_temp.resource('alice', 'inner', pg_temp.through('space'), '{k6}') \gset
CREATE FUNCTION pg_temp.service(name text, VARIADIC purposes text[] DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('service', name, 'identity', 'spiffe://example.org/' || name, 'purposes', purposes, 'orgs', '["acme"]'::jsonb,
        'kinds', '["space"]'::jsonb, 'rate', 100, 'breadth', 1000) $$;
-- A channel as service_channel_create makes it.
CREATE FUNCTION pg_temp.service_channel(name text, service text, issuer text DEFAULT '11', serial text DEFAULT '0a') RETURNS void LANGUAGE sql AS $$
    INSERT INTO kms.channels (org_id, channel_id, kind, subject, client_id, generation, blob, created_at, expires_at, key_thumb, cert_issuer, cert_serial)
    VALUES (kms.nobody(), pg_temp.id(name), 'service', service, '', 1, pg_temp.bytes(61), now(), now() + interval '1 hour', pg_temp.bytes(32),
            pg_temp.bytes(32, issuer), decode(serial, 'hex')) $$;
CREATE FUNCTION pg_temp.channels() RETURNS text[] LANGUAGE sql AS $$
    SELECT coalesce(array_agg(n ORDER BY n), '{}') FROM unnest('{c1,c2,c3,c4}'::text[]) n JOIN kms.channels c ON c.channel_id = pg_temp.id(n) $$;

-- What is no action, or not with these arguments: nothing is stored, and the reason says what would be right.
CREATE TEMP TABLE bad (action text, args jsonb, verdict integer, why text);
INSERT INTO bad VALUES
    ('purpose.destroy', '{}', 400002, 'no such action'),
    (NULL, '{}', 400002, 'no such action'),
    ('purpose.enable', '[]', 400002, 'no object'),
    ('purpose.enable', '{"org":"acme"}', 400002, 'purpose is missing'),
    ('purpose.enable', '{"org":null,"purpose":"dlp"}', 400002, 'org is missing'),
    ('purpose.enable', '{"org":"none","purpose":"dlp"}', 404001, 'organisation'),
    ('purpose.enable', '{"org":"acme","purpose":"reading"}', 400002, 'indexing, dlp, ediscovery, archival, transcoding'),
    ('purpose.enable', '{"org":"acme","purpose":{"a":1}}', 400002, 'purposes are'),
    ('purpose.enable', '{"org":"acme","purpose":"dlp","force":true}', 400002, 'members are: org, purpose'),
    ('service.add', pg_temp.service('s') - 'rate', 400002, 'rate is missing'),
    ('service.add', pg_temp.service('s') || '{"purposes":[]}', 400002, 'purposes is a list of: indexing'),
    ('service.add', pg_temp.service('s') || '{"purposes":["dlp","reading"]}', 400002, 'purposes is a list'),
    ('service.add', pg_temp.service('s') || '{"purposes":"dlp"}', 400002, 'purposes is a list'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"kinds":["room"]}', 400002, 'kinds is a list of: space, meeting'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"kinds":[1]}', 400002, 'kinds is a list'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"orgs":[]}', 400002, 'orgs is a list'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"orgs":["acme","none"]}', 404001, 'orgs names'),
    ('service.add', pg_temp.service('-s', 'dlp'), 400002, 'a name is'),
    ('service.add', pg_temp.service(repeat('s', 129), 'dlp'), 400002, 'a name is'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"service":7}', 400002, 'a name is'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"identity":"no uri"}', 400002, 'identity is the URI'),
    ('service.add', pg_temp.service('s', 'dlp') || jsonb_build_object('identity', 'a:' || repeat('b', 511)), 400002, 'identity is the URI'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"rate":-1}', 400002, 'rate is requests a second'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"rate":1.5}', 400002, 'rate is'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"rate":1000001}', 400002, 'rate is'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"breadth":"many"}', 400002, 'breadth is distinct resources'),
    ('service.add', pg_temp.service('s', 'dlp') || '{"public_key":"pem"}', 400002, 'public_key is a JWK'),
    ('service.add', pg_temp.service('s', 'dlp') || jsonb_build_object('public_key', jsonb_build_object('kty', 'EC', 'crv', 'P-256', 'x', repeat('x', 43), 'y', repeat('y', 43), 'd', repeat('d', 43))),
        400002, 'private'),
    ('service.add', pg_temp.service('s', 'dlp') || jsonb_build_object('public_key', jsonb_build_object('kty', 'EC', 'crv', 'P-384', 'x', repeat('x', 64), 'y', repeat('y', 64))), 400002, '2048'),
    ('service.add', pg_temp.service('s', 'dlp') || jsonb_build_object('public_key', jsonb_build_object('kty', 'RSA', 'n', repeat('n', 171), 'e', 'AQAB')), 400002, '2048'),
    ('service.add', pg_temp.service('s', 'dlp') || jsonb_build_object('public_key', jsonb_build_object('kty', 'oct', 'k', 'AAAA')), 400002, 'secret'),
    ('service.add', pg_temp.service('s', 'dlp') || jsonb_build_object('public_key', jsonb_build_object('kty', 'RSA', 'n', repeat('n', 342), 'e', 'AQAB', 'use', 'sig')), 400002, 'not for encryption'),
    ('service.change', pg_temp.service('s', 'dlp'), 404001, 'no service'),
    ('service.retire', '{"service":"s"}', 404001, 'no service'),
    ('certificate.revoke', '{"serial":"xyz"}', 400002, 'hexadecimal'),
    ('certificate.revoke', '{"serial":""}', 0, ''),     -- number 0
    ('certificate.revoke', jsonb_build_object('serial', repeat('11', 65)), 400002, '64 bytes'),
    ('certificate.revoke', '{"serial":"11","issuer":"22"}', 400002, 'SHA-256'),
    ('setting.set', '{"name":"dlp.age","value":"60000"}', 400002, 'belong to an organisation'),
    ('setting.set', '{"name":"audit.stream","value":"on"}', 400002, 'settings are'),
    ('setting.set', '{"org":"acme","name":"approvals","value":"3"}', 400002, 'belong to the installation'),
    ('setting.set', '{"org":"acme","name":"colour","value":"red"}', 400002, 'compliance, dlp.age, rotate.removal, retention.recording, retention.transcript; of the installation approvals'),
    ('setting.set', '{"org":"acme","name":"compliance","value":"both"}', 400002, 'role or matter'),
    ('setting.set', '{"org":"acme","name":"dlp.age","value":"59999"}', 400002, '60000'),
    ('setting.set', '{"org":"acme","name":"dlp.age","value":"315360000001"}', 400002, 'ten years'),
    ('setting.set', '{"org":"acme","name":"dlp.age","value":"1h"}', 400002, 'milliseconds'),
    ('setting.set', '{"org":"acme","name":"dlp.age","value":["60000"]}', 400002, 'value is missing'),
    ('setting.set', '{"name":"approvals","value":"0"}', 400002, '1 to 16'),
    ('setting.set', '{"name":"approvals.matter","value":"17"}', 400002, '1 to 16'),
    ('setting.set', '{"name":"approvals.lifetime","value":"59999"}', 400002, '90 days'),
    ('setting.set', '{"name":"approvals.lifetime","value":"7776000001"}', 400002, '90 days'),
    ('canary.add', '{"resource":"space"}', 404001, 'no such resource'),
    ('canary.add', jsonb_build_object('resource', pg_temp.id('space'), 'note', repeat('n', 1025)), 400002, 'note is'),
    ('canary.remove', jsonb_build_object('resource', pg_temp.id('space')), 404001, 'no canary'),
    ('key.destroy', jsonb_build_object('key', pg_temp.id('none')), 404001, 'no such key'),
    ('key.destroy', '{"key":7}', 404001, 'no such key'),
    ('resource.destroy', jsonb_build_object('resource', pg_temp.id('none')), 404001, 'no such resource'),
    ('audit.suspend', '{"why":"tired"}', 400002, 'members are: ');
DELETE FROM bad WHERE verdict = 0;
SELECT ok(x.verdict = b.verdict AND x.result ->> 'why' LIKE '%' || b.why || '%', format('%s %s: %s %s', b.action, left(b.args::text, 60), x.verdict, x.result))
  FROM bad b, LATERAL pg_temp.act(b.action, b.args) x;
SELECT is_empty('SELECT FROM kms.approvals', 'nothing of that was stored');
SELECT is((SELECT count(*) FROM kms.entries WHERE verdict > 0 AND kind = 'operator'), (SELECT count(*) FROM bad), 'all of it is on record');
SELECT is((SELECT count(*) FROM kms.entries e WHERE verdict > 0 AND kind = 'operator' AND e.detail::text LIKE '%"d":%'), 0::bigint, 'no private key got there');
SELECT throws_ok($$ SELECT * FROM kms.control_act(gen_random_uuid(), 'audit.suspend', '{}', 'x', NULL, 2) $$, '22023', NULL, 'nobody in particular does nothing');
SELECT throws_ok($$ SELECT * FROM kms.control_act(gen_random_uuid(), 'audit.suspend', '{}', 'x', 1, 0) $$, '22023', NULL, 'nor for no officers');

-- A purpose is proposed by one, and enabled by another who has looked.
SELECT (pg_temp.act('purpose.enable', '{"org":"acme","purpose":"dlp"}', op => 'enable')).result AS p \gset
SELECT :'p'::jsonb ->> 'approval' AS id \gset
SELECT is(:'p'::jsonb - '{approval,created,expires,hash,votes}'::text[], '{"action":"purpose.enable","args":{"org":"acme","purpose":"dlp"},"org_name":"acme","state":"pending","needed":2,
    "requested_by":"officer1(1)","impact":{"organisations":["acme"],"services":[],"resources":3,"keys":6,"users":3}}', 'what is proposed says whom it touches');
SELECT is(:'p'::jsonb #>> '{votes,0,officer}', 'officer1(1)', 'who asks has voted');
SELECT ok(:'p'::jsonb ->> 'hash' ~ '^[0-9a-f]{64}$', 'a hash');
SELECT is((:'p'::jsonb ->> 'expires')::bigint - (:'p'::jsonb ->> 'created')::bigint, 259200000::bigint, 'it waits three days');
SELECT is((pg_temp.act('purpose.enable', '{"org":"acme","purpose":"dlp"}', op => 'enable')).result ->> 'approval', :'id', 'the same operation: the same approval');
SELECT throws_ok($$ SELECT pg_temp.act('purpose.enable', '{"org":"acme","purpose":"dlp"}', op => 'enable') FROM pg_temp.approve(gen_random_uuid(), op => 'enable') $$, '22023', NULL, 'an operation id is for one thing');
SELECT is((pg_temp.act('purpose.enable', '{"org":"acme","purpose":"dlp"}', 3)).verdict, 409002, 'the same thing waits once');
SELECT is((SELECT count(*) FROM kms.purposes), 0::bigint, 'nothing is on yet');
SELECT is((pg_temp.approve(:'id', 1)).verdict, 403004, 'nobody approves his own');
SELECT is((pg_temp.approve(:'id', 1, name => 'another')).verdict, 403004, 'nor under another name: the uid counts');
SELECT is((pg_temp.approve(:'id', 2)).result ->> 'why', 'look at it first', 'nor what he has not looked at');
SELECT is((pg_temp.approve(:'id', 2, repeat('0', 64))).verdict, 409002, 'nor what nobody was shown');
SELECT is((pg_temp.approve(gen_random_uuid(), 2)).verdict, 404001, 'nor what is not there');
SELECT is(pg_temp.look(gen_random_uuid()), NULL, 'nobody can look at that either');
SELECT is(pg_temp.look(:'id') -> 'impact', :'p'::jsonb -> 'impact', 'he looks');
SELECT is((pg_temp.approve(:'id', 2, op => 'yes')).result ->> 'state', 'done', 'and agrees');
SELECT ok((SELECT enabled FROM kms.purposes WHERE purpose = 'dlp'), 'it is on');
SELECT is((pg_temp.approve(:'id', 2, op => 'yes')).result ->> 'state', 'done', 'the same operation: the same answer');
SELECT is((pg_temp.approve(:'id', 2)).verdict, 409002, 'once is enough');
SELECT is((pg_temp.approve(:'id', 3)).verdict, 409002, 'and too late for others');
SELECT is((pg_temp.reject(:'id', 3)).verdict, 409002, 'and for a no');
SELECT is((pg_temp.act('purpose.enable', '{"org":"acme","purpose":"dlp"}')).verdict, 409002, 'what is on cannot be proposed');
SELECT results_eq($$ SELECT action, verdict, subject, detail ->> 'approval' FROM named_entries WHERE org_id = pg_temp.id('acme') AND detail ? 'approval' AND verdict = 0 ORDER BY entry_id $$,
    format($$ VALUES ('approval.request', 0, 'officer1(1)', %1$L), ('approval.show', 0, 'officer2(2)', %1$L), ('approval.approve', 0, 'officer2(2)', %1$L), ('purpose.enable', 0, 'officer2(2)', %1$L) $$, :'id'),
    'each step is an entry of the organisation''s log');
SELECT results_eq(format($$ SELECT action, verdict FROM kms.entries WHERE detail ->> 'approval' = %L AND verdict > 0 ORDER BY entry_id $$, :'id'),
    $$ VALUES ('approval.approve', 403004), ('approval.approve', 403004), ('approval.approve', 409002), ('approval.approve', 409002), ('approval.approve', 409002), ('approval.approve', 409002), ('approval.reject', 409002) $$, 'refusals too');
SELECT is((SELECT count(*) FROM kms.entries e WHERE e.kind = 'operator' AND (e.detail::text ~ 'officer[0-9]' OR e.subject IS NOT NULL)), 0::bigint, 'no entry names an officer');
SELECT is((pg_temp.act('purpose.disable', '{"org":"acme","purpose":"dlp"}')).result ->> 'state', 'done', 'off is done at once');
SELECT ok(NOT (SELECT enabled FROM kms.purposes WHERE purpose = 'dlp'), 'it is off');
SELECT is((pg_temp.act('purpose.disable', '{"org":"acme","purpose":"dlp"}')).verdict, 0, 'off is off');
SELECT is((pg_temp.agree('purpose.enable', '{"org":"acme","purpose":"dlp"}')).verdict, 0, 'on again');
SELECT is((SELECT jsonb_agg(x ->> 'purpose') FROM jsonb_array_elements(kms.purposes_list('acme')) x WHERE (x ->> 'enabled')::boolean), '["dlp"]', 'the list says so');
SELECT is(jsonb_array_length(kms.purposes_list(NULL)), 10, 'all of all organisations');
SELECT is(kms.purposes_list('none'), NULL, 'an unknown organisation');

-- A report that is no longer true.
SELECT pg_temp.propose('purpose.enable', '{"org":"acme","purpose":"indexing"}') AS id \gset
SELECT pg_temp.look(:'id') ->> 'hash' AS hash \gset
SELECT is(pg_temp.resource('bob', 'more'), 0);
SELECT is((pg_temp.approve(:'id')).result ->> 'why', 'the facts have changed; look again', 'counts changed by more than 5 %');
SELECT is((pg_temp.approve(:'id', 2, :'hash')).verdict, 409002, 'the old report''s hash does not help');
SELECT isnt(pg_temp.look(:'id') ->> 'hash', :'hash', 'another report, another hash');
SELECT is((pg_temp.approve(:'id')).verdict, 0, 'then he may agree');
SELECT pg_temp.propose('purpose.enable', '{"org":"acme","purpose":"archival"}') AS id \gset
SELECT is((pg_temp.approve(:'id', 2, (SELECT hash FROM (SELECT pg_temp.look(:'id', 3) ->> 'hash' AS hash) x))).verdict, 0, 'a hash that a colleague was shown will do');
SELECT ok(kms.impact_same('{"a":100,"b":["x"]}', '{"a":105,"b":["x"]}') AND NOT kms.impact_same('{"a":100,"b":["x"]}', '{"a":106,"b":["x"]}')
          AND kms.impact_same('{"a":100}', '{"a":95}') AND NOT kms.impact_same('{"a":100}', '{"a":94}') AND NOT kms.impact_same('{"a":0}', '{"a":1}')
          AND NOT kms.impact_same('{"b":["x"]}', '{"b":["x","y"]}') AND NOT kms.impact_same('{}', '{"a":0}') AND NOT kms.impact_same('{"a":1}', '{"a":"1"}'), 'the same within 5 %');

-- Three are needed: a vote for an old report does not count, and may be given anew.
SELECT pg_temp.propose('purpose.enable', '{"org":"acme","purpose":"transcoding"}', 1, 3) AS id \gset
SELECT pg_temp.look(:'id', u) IS NULL AS x FROM generate_series(3, 4) u;
SELECT pg_temp.look(:'id', 2) IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id', 2)).result ->> 'state', 'pending', 'two of three');
SELECT is((pg_temp.approve(:'id', 2)).verdict, 403004, 'the same again is no third');
SELECT is((pg_temp.approve(:'id', 2, name => 'other')).verdict, 403004, 'nor is his other name');
SELECT is(pg_temp.resource('bob', 'more2'), 0);
SELECT is((pg_temp.approve(:'id', 3)).verdict, 409002, 'facts changed: the third must look again');
SELECT is(jsonb_path_query_array(pg_temp.look(:'id', 3), '$.votes[*] ? (@.stale == true).officer'), '["officer2(2)"]', 'and the second one''s vote is stale');
SELECT is((pg_temp.approve(:'id', 3)).result ->> 'state', 'pending', 'so this is the second again');
SELECT (pg_temp.look(:'id', 2)) IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id', 2)).result ->> 'state', 'done', 'until he has looked again too');
SELECT is((SELECT count(*) FROM kms.approval_votes WHERE approval_id = :'id'), 3::bigint, 'three votes');

-- No.
SELECT pg_temp.propose('audit.suspend', '{}') AS id \gset
SELECT is((pg_temp.reject(:'id', 3, 'why should we?', op => 'no')).result ->> 'state', 'rejected', 'any officer can say no');
SELECT is((pg_temp.reject(:'id', 3, op => 'no')).result ->> 'state', 'rejected', 'the same operation');
SELECT is((pg_temp.reject(:'id', 3)).verdict, 409002, 'once');
SELECT is((pg_temp.approve(:'id', 2)).verdict, 409002, 'and it is over');
SELECT is((SELECT result ->> 'why' FROM kms.approvals WHERE approval_id = :'id'), 'why should we?', 'the reason is kept');
SELECT is((SELECT count(*) FROM kms.entries WHERE detail::text LIKE '%should%'), 0::bigint, 'not in the log');
SELECT pg_temp.propose('audit.suspend', '{}') AS id \gset
SELECT is((pg_temp.reject(:'id', 1)).verdict, 0, 'who asked may take it back');
SELECT is((pg_temp.reject(gen_random_uuid(), 1)).verdict, 404001, 'unknown');

-- Too late.
SELECT pg_temp.propose('audit.suspend', '{}') AS id \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
SET LOCAL session_replication_role = replica;
UPDATE kms.approvals SET expires_at = now() WHERE state = 'pending';
SET LOCAL session_replication_role = origin;
SELECT is((SELECT x ->> 'state' FROM jsonb_array_elements(kms.approval_list('expired')) x), 'expired', 'its time is over');
SELECT is((pg_temp.approve(:'id')).verdict, 409002, 'nobody approves it');
SELECT is((SELECT state FROM kms.approvals WHERE approval_id = :'id'), 'expired', 'it has ended so');
SELECT pg_temp.propose('audit.suspend', '{}') AS id \gset
SET LOCAL session_replication_role = replica;
UPDATE kms.approvals SET expires_at = now() WHERE state = 'pending';
SET LOCAL session_replication_role = origin;
SELECT is(kms.approvals_expire(), 1, 'the sweeper ends what nobody looks at');
SELECT is(kms.approvals_expire(), 0, 'once');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'approval.expire' AND kind = 'keeper'), 2::bigint, 'on record');

-- What is decided stays so.
SELECT throws_ok(s, '42501', NULL, 'not even its owner: ' || s) FROM unnest(ARRAY['UPDATE kms.approvals SET state = ''pending'', decided_at = NULL', 'UPDATE kms.approvals SET args = ''{}''',
    'UPDATE kms.approvals SET needed = 1', 'DELETE FROM kms.approvals', 'DELETE FROM kms.approval_votes', 'DELETE FROM kms.services', 'TRUNCATE kms.approval_votes']) s;

-- Services.
SELECT is((pg_temp.agree('service.add', pg_temp.service('scan', 'dlp', 'indexing'))).verdict, 0, 'a service is registered');
SELECT ok(s ->> 'state' = 'active' AND s -> 'purposes' = '["dlp","indexing"]' AND s -> 'orgs' = '["acme"]' AND s -> 'open' = '[{"org_name":"acme","purpose":"dlp"},{"org_name":"acme","purpose":"indexing"}]', 'and may do what is on')
  FROM kms.service_show('scan') s;
SELECT is(kms.service_show('none'), NULL, 'another one is not there');
SELECT is((pg_temp.act('service.add', pg_temp.service('scan', 'dlp'))).verdict, 409002, 'a name is taken once');
SELECT is((pg_temp.act('service.add', pg_temp.service('scan2', 'dlp') || '{"identity":"spiffe://example.org/scan"}')).verdict, 409002, 'an identity likewise');
SELECT (pg_temp.service_channel('c1', 'scan'), pg_temp.service_channel('c2', 'scan', serial => '0b'), pg_temp.service_channel('c3', 'scan', '22', '0b'), pg_temp.service_channel('c4', 'else', serial => '0b')) AS x \gset
-- Two changes wait; the second was proposed for what is no longer so.
SELECT pg_temp.propose('service.change', pg_temp.service('scan', 'dlp') || '{"rate":5,"orgs":["umbrella","acme"]}') AS id \gset
SELECT pg_temp.propose('service.change', pg_temp.service('scan', 'indexing')) AS id2 \gset
SELECT is(pg_temp.look(:'id') #> '{impact,before,rate}', '100', 'a change shows what was before');
SELECT pg_temp.look(:'id2') IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id')).verdict, 0, 'changed');
SELECT ok(s -> 'orgs' = '["acme","umbrella"]' AND s -> 'purposes' = '["dlp"]' AND (s ->> 'rate')::integer = 5, 'it is') FROM kms.service_show('scan') s;
SELECT is(pg_temp.channels(), '{c1,c2,c3,c4}', 'its channels stay');
SELECT is((pg_temp.approve(:'id2')).verdict, 409002, 'the other must be looked at again');
SELECT pg_temp.reject(:'id2') \gset
SELECT is((pg_temp.act('certificate.revoke', jsonb_build_object('serial', '00:0B', 'issuer', repeat('22', 32)))).result ->> 'channels', '1', 'a certificate is revoked');
SELECT is(pg_temp.channels(), '{c1,c2,c4}', 'its channel is gone');
SELECT is((pg_temp.act('certificate.revoke', '{"serial":"b"}')).result ->> 'channels', '2', 'of whatever issuer');
SELECT is(pg_temp.channels(), '{c1}', 'all of that number');
SELECT set_eq($$ SELECT encode(issuer, 'hex') AS issuer, encode(serial, 'hex') AS serial, source FROM kms.revoked_certificates $$,
    $$ VALUES (repeat('22', 32), '0b', 'officer'), (repeat('00', 32), '0b', 'officer') $$, 'they are on the list');
SELECT is((pg_temp.agree('service.change', pg_temp.service('scan', 'dlp') || '{"identity":"spiffe://example.org/new"}')).verdict, 0, 'another identity');
SELECT is(pg_temp.channels(), '{}', 'ends the channels of the old one');
SELECT pg_temp.service_channel('c1', 'scan') \gset
SELECT is((pg_temp.act('service.retire', '{"service":"scan"}')).result ->> 'channels', '1', 'retired at once');
SELECT is(pg_temp.channels(), '{}', 'with its channels');
SELECT is((pg_temp.act('service.retire', '{"service":"scan"}')).verdict, 0, 'twice is once');
SELECT is((pg_temp.act('service.change', pg_temp.service('scan', 'dlp'))).verdict, 409002, 'for ever');
SELECT ok((pg_temp.act('service.add', pg_temp.service('scan', 'dlp'))).result ->> 'why' LIKE '%not used again', 'and its name with it');
SELECT is((pg_temp.agree('service.add', pg_temp.service('scan2', 'dlp') || '{"identity":"spiffe://example.org/new"}' || jsonb_build_object('public_key',
    jsonb_build_object('kty', 'EC', 'crv', 'P-256', 'x', repeat('x', 43), 'y', repeat('y', 43), 'kid', 'a')))).verdict, 0, 'its identity is free again; with a public key');
SELECT is((SELECT jsonb_agg(s ->> 'service') FROM jsonb_array_elements(kms.services_list()) s), '["scan","scan2"]', 'the list has both');
-- Approved, but no longer possible: facts that the report does not show.
SELECT pg_temp.propose('service.add', pg_temp.service('a', 'dlp') || '{"identity":"x:y"}') AS id \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
SELECT is((pg_temp.agree('service.add', pg_temp.service('b', 'dlp') || '{"identity":"x:y"}')).verdict, 0);
SELECT is((pg_temp.approve(:'id', op => 'late')).verdict, 409002, 'another was quicker');
SELECT is((SELECT (state, result ->> 'why')::text FROM kms.approvals WHERE approval_id = :'id'), '(failed,"another service has this identity")', 'it has failed');
SELECT is((pg_temp.approve(:'id', op => 'late')).result ->> 'why', 'another service has this identity', 'the same operation: the same answer');
SELECT is((SELECT count(*) FROM kms.entries WHERE action = 'service.add' AND verdict = 409002 AND detail ? 'approval'), 1::bigint, 'on record');

-- Rules: what tightens is done at once.
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"compliance","value":"matter"}')).result ->> 'state', 'done', 'compliance needs a matter');
SELECT is(kms.setting(pg_temp.id('acme'), 'compliance'), 'matter');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"compliance","value":"role"}')).result ->> 'state', 'pending', 'the way back opens');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"dlp.age","value":3600000}')).result ->> 'state', 'done', 'a shorter age');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"dlp.age","value":"3600000"}')).result ->> 'state', 'done', 'the same age');
SELECT is((pg_temp.act('setting.set', '{"org":"acme","name":"dlp.age","value":"86400000"}')).result ->> 'state', 'pending', 'a longer one');
SELECT is((pg_temp.act('setting.set', '{"name":"approvals","value":"3"}')).result ->> 'state', 'done', 'more officers');
SELECT is((pg_temp.act('setting.set', '{"name":"approvals","value":"2"}')).result ->> 'needed', '3', 'fewer: those many must agree');
SELECT (x ->> 'approval') AS id FROM jsonb_array_elements(kms.approval_list('pending')) x WHERE x -> 'args' ->> 'name' = 'dlp.age' \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id')).result ->> 'state', 'pending', 'what waited for two waits for three');
SELECT pg_temp.look(:'id', 3) IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id', 3)).result ->> 'state', 'done', 'now it is done');
SELECT is((pg_temp.act('setting.set', '{"name":"approvals.lifetime","value":"60000"}')).result ->> 'state', 'done', 'shorter');
SELECT pg_temp.propose('audit.suspend', '{}') AS x \gset
SELECT is((SELECT (expires_at - created_at)::text FROM kms.approvals ORDER BY created_at DESC LIMIT 1), '00:01:00', 'it counts from then on');
SELECT is((SELECT jsonb_object_agg(x ->> 'name', x ->> 'value') FROM jsonb_array_elements(kms.settings_list(NULL)) x),
    '{"approvals":"3","approvals.matter":"2","approvals.lifetime":"60000","audit.stream":"on"}', 'the installation''s rules');
SELECT is((SELECT jsonb_object_agg(x ->> 'name', x ->> 'value') FROM jsonb_array_elements(kms.settings_list('umbrella')) x), '{"compliance":"role","dlp.age":"86400000","rotate.removal":"off","retention.recording":"0","retention.transcript":"0"}', 'an organisation''s');
SELECT is(kms.settings_list('none'), NULL, 'an unknown one''s');
DELETE FROM kms.settings;
SELECT is((pg_temp.act('setting.set', '{"name":"approvals","value":"1"}', floor => 1)).result ->> 'state', 'pending', 'one officer is not enough while the rule says two');
SELECT (x ->> 'approval') AS id FROM jsonb_array_elements(kms.approval_list('pending')) x WHERE x -> 'args' = '{"name":"approvals","value":"1"}' \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id')).verdict, 0, 'two may say so');
SELECT is((pg_temp.act('purpose.enable', '{"org":"umbrella","purpose":"dlp"}', floor => 2)).result ->> 'state', 'pending', 'the configuration''s floor still holds');
SELECT is((pg_temp.act('purpose.enable', '{"org":"umbrella","purpose":"indexing"}', floor => 1, op => 'alone')).result ->> 'state', 'done', 'without one, one is enough');
SELECT is((pg_temp.act('purpose.enable', '{"org":"umbrella","purpose":"indexing"}', floor => 1, op => 'alone')).result ->> 'state', 'done', 'the same operation');
SELECT is((SELECT count(*) FROM kms.entries WHERE org_id = pg_temp.id('umbrella') AND action = 'purpose.enable' AND verdict = 0), 1::bigint, 'once');
DELETE FROM kms.settings;

-- The stream.
SELECT is((pg_temp.reject((x ->> 'approval')::uuid)).verdict, 0) FROM jsonb_array_elements(kms.approval_list('pending')) x WHERE x ->> 'action' = 'audit.suspend';
UPDATE kms.log_cursor SET xact = 9000000000000000000;
SELECT isnt_empty('SELECT * FROM kms.log_stream_next(10)', 'the collector gets entries');
SELECT is((pg_temp.agree('audit.suspend', '{}')).result ->> 'state', 'done', 'the stream is suspended');
SELECT is_empty('SELECT * FROM kms.log_stream_next(10)', 'the collector gets nothing');
SELECT is((pg_temp.act('audit.suspend', '{}')).verdict, 409002, 'once');
SELECT is((pg_temp.act('audit.resume', '{}')).result ->> 'state', 'done', 'resumed at once');
SELECT isnt_empty('SELECT * FROM kms.log_stream_next(10)', 'it goes on');
SELECT is((SELECT value FROM kms.settings WHERE name = 'audit.stream'), 'on');

-- Canaries.
SELECT is((pg_temp.act('canary.add', jsonb_build_object('resource', pg_temp.id('space'), 'note', 'look who reads'))).verdict, 0, 'a canary');
SELECT is((pg_temp.act('canary.add', jsonb_build_object('resource', pg_temp.id('space'), 'note', 'another note'))).verdict, 0, 'its note changes');
SELECT is(kms.canary_list('acme') #>> '{0,note}', 'another note');
SELECT is((jsonb_array_length(kms.canary_list(NULL)), jsonb_array_length(kms.canary_list('umbrella')))::text, '(1,0)', 'one');
SELECT is(kms.canary_list('none'), NULL, 'of nobody');
SELECT ok(e.action = 'canary.add' AND e.org_id = pg_temp.id('acme') AND e.resource_id = pg_temp.id('space') AND e.detail::text NOT LIKE '%note%', 'on record without its note') FROM pg_temp.entry() e;
SELECT is((pg_temp.act('canary.remove', jsonb_build_object('resource', pg_temp.id('space')))).verdict, 0, 'removed');
SELECT is(kms.canary_list(NULL), '[]', 'gone');

-- Destruction, without a waiting period; destruction.sql has those.
SELECT kms.destruction_waiting(0);
SELECT is(pg_temp.get('bob', 'k1'), 0, 'a key opens');
SELECT pg_temp.propose('key.destroy', jsonb_build_object('key', pg_temp.id('k1'))) AS id \gset
SELECT is(pg_temp.look(:'id') -> 'impact', jsonb_build_object('organisations', '["acme"]'::jsonb, 'services', '["b","scan2"]'::jsonb, 'keys', 1, 'resources', 1, 'users', 3, 'open_to_resources', 0,
    'resource', pg_temp.id('space'), 'kind', 'space', 'destroyed', false, 'waiting', '0'), 'what goes with it');
SELECT is(pg_temp.get('bob', 'k1'), 0, 'still');
SELECT is((pg_temp.approve(:'id', op => 'destroy')).verdict, 0, 'destroyed');
SELECT ok(e.action = 'key.destroy' AND e.kind = 'operator' AND e.key_ids = ARRAY[pg_temp.id('k1')] AND e.resource_id = pg_temp.id('space') AND e.detail ->> 'approval' = :'id', 'on record, with the key') FROM pg_temp.entry() e;
SELECT is((SELECT (blob IS NULL, destroyed_at IS NOT NULL)::text FROM kms.content_keys WHERE key_id = pg_temp.id('k1')), '(t,t)', 'nothing is left of it');
SELECT is((pg_temp.get('bob', 'k1'), pg_temp.get('alice', 'k1'), pg_temp.get('carol', 'k2'), pg_temp.get('mallory', 'k1'))::text, '(410001,410001,0,403001)', 'who was authorised is told; others go on');
SELECT is((SELECT count(*) FROM pg_temp.list('bob', 'space')), 2::bigint, 'it is no longer among the resource''s keys');
SELECT is((pg_temp.approve(:'id', op => 'destroy')).result ->> 'state', 'done', 'the same operation: the same answer');
SELECT is((pg_temp.act('key.destroy', jsonb_build_object('key', pg_temp.id('k1')))).verdict, 409002, 'once');
SELECT pg_temp.propose('resource.destroy', jsonb_build_object('resource', pg_temp.id('space'))) AS id \gset
SELECT is(pg_temp.look(:'id') -> 'impact' ->> 'keys', '2', 'the two that are left');
SELECT is(pg_temp.get('bob', 'k6'), 0, 'who is in the space may enter what is open to it');
SELECT is((pg_temp.approve(:'id')).verdict, 0, 'destroyed');
SELECT ok(e.action = 'resource.destroy' AND e.key_ids @> ARRAY[pg_temp.id('k2'), pg_temp.id('k3')] AND cardinality(e.key_ids) = 2 AND e.resource_id = pg_temp.id('space'), 'on record, with its keys') FROM pg_temp.entry() e;
SELECT is((pg_temp.get('bob', 'k2'), pg_temp.get('bob', 'k3'), (SELECT verdict FROM pg_temp.list('carol', 'space')),
           (pg_temp.ask('resource_get', 'bob', jsonb_build_object('resource', pg_temp.id('space')))).verdict, (pg_temp.bind('bob', 'u9', 'space')).verdict, pg_temp.grant_user('bob', 'space', 'mallory'))::text,
          '(410001,410001,410001,410001,404001,410001)', 'all of it');
SELECT is((pg_temp.get('alice', 'k4'), pg_temp.get('bob', 'k6'))::text, '(0,403001)', 'others go on; it opens nothing any more');
SELECT is((SELECT count(*) FROM kms.content_keys WHERE resource_id = pg_temp.id('space') AND blob IS NOT NULL), 0::bigint, 'nothing is left');
SELECT is((pg_temp.act('resource.destroy', jsonb_build_object('resource', pg_temp.id('space')))).verdict, 409002, 'once');
SELECT is((pg_temp.act('canary.add', jsonb_build_object('resource', pg_temp.id('space')))).verdict, 409002, 'nothing to watch');
-- One that nobody has bound yet.
SELECT is((pg_temp.agree('key.destroy', jsonb_build_object('key', pg_temp.id('u1')))).verdict, 0, 'an unbound key is destroyed');
SELECT is((pg_temp.get('alice', 'u1'), (pg_temp.bind('alice', 'u1', 'other')).verdict, pg_temp.resource('alice', 'new', keys => '{u1}'))::text, '(410001,410001,410001)', 'nobody can use it');
SELECT is((SELECT count(*) FROM kms.entries WHERE verdict = 0 AND kind = 'user' AND pg_temp.id('u1') = ANY (key_ids) AND action <> 'key.create'), 0::bigint, 'and no entry says that it was released');
-- Gone since it was proposed.
SELECT pg_temp.propose('key.destroy', jsonb_build_object('key', pg_temp.id('u2'))) AS id \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
DELETE FROM kms.content_keys WHERE key_id = pg_temp.id('u2');
SELECT is((pg_temp.approve(:'id')).verdict, 409002, 'what the sweeper took meanwhile: look again');

-- Lists.
SELECT is((SELECT array_agg(DISTINCT x ->> 'state' ORDER BY x ->> 'state') FROM jsonb_array_elements(kms.approval_list(NULL)) x), '{done,expired,failed,pending,rejected}', 'all that ever was');
SELECT is((SELECT count(*) FROM jsonb_array_elements(kms.approval_list('done')) x WHERE x ? 'impact' OR NOT x ? 'votes'), 0::bigint, 'with votes, without reports');

SELECT * FROM finish();
ROLLBACK;
