-- Matters: opened by one officer, approved by others for exactly the text that they were shown.
BEGIN;
\ir fixture.psql
\ir officers.psql
SELECT * FROM no_plan();

SELECT pg_temp.keys('alice', '{k1,k2,k3,k4}') AS x \gset
SELECT pg_temp.resource('alice', 'space', pg_temp.users('bob', 'carol'), '{k1,k2,k3}') AS x \gset
SELECT pg_temp.resource('alice', 'other', '[]', '{k4}') AS x \gset
UPDATE kms.content_keys SET bound_at = '2026-01-01' WHERE key_id = pg_temp.id('k1');
UPDATE kms.content_keys SET bound_at = '2026-02-01' WHERE key_id = pg_temp.id('k2');
UPDATE kms.content_keys SET bound_at = '2026-03-01' WHERE key_id = pg_temp.id('k3');
CREATE FUNCTION pg_temp.at(t timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT kms.ms(t) $$;
CREATE FUNCTION pg_temp.matter(more jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('org', 'acme', 'name', 'Doe v. Acme', 'custodians', '["bob","nobody yet","bob"]'::jsonb, 'from', pg_temp.at('2026-01-01Z'), 'to', pg_temp.at('2026-03-01Z'),
        'kinds', '["space","file"]'::jsonb, 'expires', pg_temp.now_ms() + 86400000) || more $$;
CREATE FUNCTION pg_temp.state(id uuid) RETURNS text LANGUAGE sql AS $$ SELECT kms.matter_show(id) ->> 'state' $$;

CREATE TEMP TABLE bad (more jsonb, verdict integer, why text);
INSERT INTO bad VALUES
    ('{"org":"none"}', 404001, 'organisation'), ('{"org":null}', 400002, 'org is missing'), ('{"name":""}', 400002, 'name is a text'), ('{"name":"a\nb"}', 400002, 'name is a text'),
    (jsonb_build_object('name', repeat('n', 257)), 400002, 'name is a text'), ('{"custodians":[]}', 400002, 'custodians is a list'), ('{"custodians":"bob"}', 400002, 'custodians is a list'),
    ('{"custodians":[""]}', 400002, 'custodians is'), (jsonb_build_object('custodians', (SELECT jsonb_agg('u' || i) FROM generate_series(1, 1001) i)), 400002, '1 to 1000'),
    ('{"kinds":["room"]}', 400002, 'space, meeting, file, whiteboard, calendar'), ('{"from":-1}', 400002, 'milliseconds'), ('{"from":"yesterday"}', 400002, 'milliseconds'),
    ('{"from":5,"to":5}', 400002, 'from the earlier'), ('{"expires":1}', 400002, 'in the future'), ('{"expires":9e99}', 400002, 'in the future'), ('{"sealed_until":"never"}', 400002, 'sealed_until'),
    (jsonb_build_object('matter', gen_random_uuid()), 404001, 'no such matter'), ('{"hold":true}', 400002, 'members are: org, name, custodians, from, to, kinds, expires, sealed_until');
SELECT ok(x.verdict = b.verdict AND x.result ->> 'why' LIKE '%' || b.why || '%', format('%s: %s %s', left(b.more::text, 60), x.verdict, x.result)) FROM bad b, LATERAL pg_temp.act('matter.open', pg_temp.matter(b.more)) x;
SELECT is((SELECT count(*) FROM kms.matters) + (SELECT count(*) FROM kms.approvals), 0::bigint, 'nothing of that was stored');

-- From the proposal to the end.
SELECT (pg_temp.act('matter.open', pg_temp.matter(), op => 'open')).result AS p \gset
SELECT :'p'::jsonb ->> 'approval' AS id \gset
SELECT is(:'p'::jsonb #>> '{args,matter}', :'id', 'a matter and its approval have one id');
SELECT is((:'p'::jsonb -> 'impact') - 'text_sha256', jsonb_build_object('organisations', '["acme"]'::jsonb, 'services', '[]'::jsonb, 'matter', :'id'::text, 'matter_state', 'pending', 'ediscovery', false, 'compliance', 'role',
    'resources', 1, 'keys', 2, 'users', 3, 'custodians', 2, 'custodians_on_nothing', 1), 'whom it touches: keys bound within [from, to) of resources with a custodian');
SELECT ok(:'p'::jsonb ->> 'text' LIKE E'matter %\norganisation %\nname "Doe v. Acme"\ncustodians ["bob","nobody yet"]\nkinds ["file","space"]\nfrom 1767225600000\nto 1772323200000\nexpires %\nsealed no\nopened by "officer1(1)"\n', 'its text');
SELECT is(:'p'::jsonb #>> '{impact,text_sha256}', encode(sha256(convert_to(:'p'::jsonb ->> 'text', 'UTF8')), 'hex'), 'the report has its hash');
SELECT is(:'p'::jsonb ->> 'hash', encode(sha256(convert_to('approval ' || :'id' || E'\nmatter.open\n' || (:'p'::jsonb ->> 'text') || (:'p'::jsonb -> 'impact')::text, 'UTF8')), 'hex'), 'and what is approved is a hash of both');
SELECT is((pg_temp.act('matter.open', pg_temp.matter(), op => 'open')).result ->> 'approval', :'id', 'the same operation: the same matter');
SELECT is((SELECT count(*) FROM kms.matters), 1::bigint, 'one');
SELECT is(pg_temp.state(:'id'), 'pending', 'it waits');
SELECT ok(m ->> 'hash' = :'p'::jsonb #>> '{impact,text_sha256}' AND (m ->> 'unchanged')::boolean AND m #>> '{approval,state}' = 'pending' AND m -> 'custodians' = '["bob","nobody yet"]', 'shown') FROM kms.matter_show(:'id') m;
SELECT is(kms.matter_show(gen_random_uuid()), NULL, 'an unknown one is not');
SELECT is((pg_temp.approve(:'id', 1)).verdict, 403004, 'nobody approves his own');
SELECT is((pg_temp.approve(:'id', 2)).verdict, 409002, 'nor unseen');
SELECT is((pg_temp.approve(:'id', 2, kms.matter_show(:'id') ->> 'hash')).verdict, 409002, 'the text''s hash alone says nothing of whom it touches');
SELECT is((pg_temp.approve(:'id', 2, :'p'::jsonb ->> 'hash', op => 'yes')).result ->> 'state', 'done', 'approved');
SELECT is(pg_temp.state(:'id'), 'open', 'open');
SELECT ok(m.approved_at IS NOT NULL AND kms.matter_holds(m, clock_timestamp()), 'and it holds') FROM kms.matters m;
SELECT is((SELECT array_agg(e.action ORDER BY e.entry_id) FROM kms.entries e WHERE e.matter_id = :'id' AND e.verdict = 0), '{approval.request,approval.approve,matter.open}', 'its entries name it');
SELECT is((SELECT count(*) FROM kms.entries e WHERE e.kind = 'operator' AND (e.detail::text ~ 'bob|nobody yet|Doe|officer[0-9]' OR e.subject IS NOT NULL)), 0::bigint, 'and no person');
SELECT is((SELECT array_agg(p.subject ORDER BY p.subject) FROM kms.entries e CROSS JOIN jsonb_array_elements_text(e.detail -> 'custodians') c JOIN kms.persons p ON p.org_id = e.org_id AND p.person = c::uuid
            WHERE e.action = 'matter.open' AND e.verdict = 0), '{bob,"nobody yet"}', 'custodians are there by pseudonym');
SELECT throws_ok(s, '42501', NULL, 'its text is for ever: ' || s) FROM unnest(ARRAY['UPDATE kms.matters SET custodians = ''{alice}''', 'UPDATE kms.matters SET expires_at = expires_at + interval ''1 day''', 'DELETE FROM kms.matters',
    'UPDATE kms.matters SET state = ''pending''']) s;
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'id'::text))).result ->> 'state', 'done', 'closed at once');
SELECT is(pg_temp.state(:'id'), 'closed');
SELECT ok(NOT kms.matter_holds(m, clock_timestamp()), 'it holds no more') FROM kms.matters m;
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'id'::text))).verdict, 0, 'twice is once');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', gen_random_uuid()))).verdict, 404001, 'unknown');
SELECT is((pg_temp.act('matter.open', pg_temp.matter(jsonb_build_object('matter', :'id'::text)))).verdict, 409002, 'it does not open again');

-- Changed behind everybody's back between the look and the vote: whoever looked has not seen this.
SELECT pg_temp.propose('matter.open', pg_temp.matter()) AS id \gset
SELECT pg_temp.look(:'id') ->> 'hash' AS hash \gset
SET LOCAL session_replication_role = replica;
UPDATE kms.matters SET custodians = '{alice}' WHERE matter_id = :'id';
SET LOCAL session_replication_role = origin;
SELECT is((pg_temp.approve(:'id')).verdict, 409002, 'another text than he looked at');
SELECT is((pg_temp.approve(:'id', 2, :'hash')).verdict, 409002, 'by hash as well');
SELECT isnt(pg_temp.look(:'id') ->> 'hash', :'hash', 'a second look shows the new one');
SELECT ok(NOT (kms.matter_show(:'id') ->> 'unchanged')::boolean, 'matter show says that it was changed');
SELECT is((pg_temp.approve(:'id')).verdict, 409002, 'which is not what was asked for');
SELECT is((SELECT state FROM kms.approvals WHERE approval_id = :'id'), 'failed', 'and ends it');
SELECT is(pg_temp.state(:'id'), 'rejected', 'unopened');

-- Rejected, taken back, closed while it waits, too late.
SELECT pg_temp.propose('matter.open', pg_temp.matter()) AS id \gset
SELECT is((pg_temp.reject(:'id', 2)).verdict, 0, 'rejected');
SELECT is(pg_temp.state(:'id'), 'rejected');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'id'::text))).verdict, 409002, 'nothing to close');
SELECT pg_temp.propose('matter.open', pg_temp.matter()) AS id \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'id'::text), 3)).verdict, 0, 'closed before it was open');
SELECT is((SELECT state FROM kms.approvals WHERE approval_id = :'id'), 'rejected', 'which rejects it');
SELECT is((pg_temp.approve(:'id')).verdict, 409002, 'nobody opens it any more');
SELECT is(pg_temp.state(:'id'), 'closed');
SELECT pg_temp.propose('matter.open', pg_temp.matter()) AS id \gset
SET LOCAL session_replication_role = replica;
UPDATE kms.approvals SET expires_at = now() WHERE state = 'pending';
SET LOCAL session_replication_role = origin;
SELECT is(kms.approvals_expire(), 1, 'nobody approved it in time');
SELECT is(pg_temp.state(:'id'), 'rejected');
SELECT pg_temp.propose('matter.open', pg_temp.matter(jsonb_build_object('expires', pg_temp.now_ms() + 300))) AS id \gset
SELECT pg_temp.look(:'id') IS NULL AS x \gset
SELECT pg_sleep(0.31) AS x \gset
SELECT is((pg_temp.approve(:'id')).verdict, 400002, 'its own time was over before it was approved');
SELECT is(pg_temp.state(:'id'), 'rejected');

-- As many as the rule for matters says.
SELECT is((pg_temp.act('setting.set', '{"name":"approvals.matter","value":"3"}')).verdict, 0, 'three for a matter');
SELECT pg_temp.propose('matter.open', pg_temp.matter(jsonb_build_object('sealed_until', pg_temp.now_ms() + 1000, 'expires', pg_temp.now_ms() + 2000))) AS id \gset
SELECT pg_temp.look(:'id', u) IS NULL AS x FROM generate_series(2, 2) u \gset
SELECT pg_temp.look(:'id', 3) IS NULL AS x \gset
SELECT is((pg_temp.approve(:'id', 2)).result ->> 'state', 'pending', 'one other is not enough');
SELECT is((pg_temp.approve(:'id', 2)).verdict, 403004, 'nor is he twice');
SELECT is(pg_temp.state(:'id'), 'pending');
SELECT is((pg_temp.approve(:'id', 3)).result ->> 'state', 'done', 'two are');
SELECT is(pg_temp.state(:'id'), 'open');
SELECT is((SELECT array_agg(m ->> 'matter') FROM jsonb_array_elements(kms.matter_list('acme', 'open')) m), ARRAY[:'id'], 'the list of what is open');
SELECT is((pg_temp.act('purpose.enable', '{"org":"acme","purpose":"ediscovery"}')).result ->> 'needed', '2', 'other actions have their own rule');
SELECT pg_sleep(greatest(0, ((kms.matter_show(:'id') ->> 'expires')::bigint - pg_temp.now_ms() + 1) / 1000.0)) AS x \gset
SELECT is(pg_temp.state(:'id'), 'expired', 'its time is over');
SELECT ok(NOT kms.matter_holds(m, clock_timestamp()), 'it holds no more') FROM kms.matters m WHERE matter_id = :'id';
SELECT is((jsonb_array_length(kms.matter_list(NULL, 'open')), jsonb_array_length(kms.matter_list(NULL, 'expired')), jsonb_array_length(kms.matter_list('acme', NULL)), jsonb_array_length(kms.matter_list('umbrella', NULL)))::text, '(0,1,7,0)', 'lists');
SELECT is(kms.matter_list('none', NULL), NULL, 'of nobody');
SELECT is((pg_temp.act('matter.close', jsonb_build_object('matter', :'id'::text))).verdict, 0, 'an expired one can be closed');

SELECT * FROM finish();
ROLLBACK;
