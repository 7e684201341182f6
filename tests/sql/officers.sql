-- Officers who ask on behalf of others, where the organisation requires a matter for it.
BEGIN;
\ir fixture.psql
\ir services.psql
SELECT plan(48);

SELECT is(pg_temp.keys('alice', '{k1,k2,k3,u1}'), 0), is(pg_temp.resource('alice', 's1', pg_temp.users('bob'), '{k1,k2,k3}'), 0);
UPDATE kms.content_keys k SET bound_at = to_timestamp(i * 1000) FROM generate_series(1, 3) i WHERE k.key_id = pg_temp.id('k' || i);
SELECT pg_temp.matter('early', '{bob}', window_to => to_timestamp(2000), expires => '1 h') \g /dev/null
CREATE FUNCTION pg_temp.officer(key text, behalf text DEFAULT 'bob') RETURNS integer LANGUAGE sql AS $$ SELECT pg_temp.get('mallory', key, behalf, true) $$;
CREATE FUNCTION pg_temp.cold(function text, officer boolean DEFAULT true, behalf text DEFAULT 'bob', resource text DEFAULT 's1') RETURNS integer LANGUAGE sql AS $$
    SELECT (pg_temp.ask(function, 'mallory', jsonb_build_object('resource', pg_temp.id(resource), 'behalf', behalf, 'officer', officer))).verdict $$;

-- By default the role suffices.
SELECT is(pg_temp.officer('k1'), 0), is(pg_temp.officer('k3'), 0), is(pg_temp.cold('resource_get'), 0), is(pg_temp.cold('authorizations_list'), 0), is((SELECT count(*) FROM pg_temp.list('mallory', 's1', behalf => 'bob', officer => true)), 3::bigint);
SELECT is((SELECT count(*) FROM kms.entries WHERE matter_id IS NOT NULL), 0::bigint, 'under no matter');
INSERT INTO kms.settings VALUES (pg_temp.id('umbrella'), 'compliance', 'matter', now());
SELECT is(pg_temp.officer('k3'), 0, 'another organisation''s rule');

INSERT INTO kms.settings VALUES (pg_temp.id('acme'), 'compliance', 'matter', now());
SELECT is(pg_temp.officer('k1'), 0, 'covered');
SELECT ok(e.matter_id = pg_temp.id('early') AND e.on_behalf = 'bob' AND e.subject = 'mallory' AND e.purpose IS NULL, 'by which matter is on record') FROM pg_temp.entry() e;
SELECT is(pg_temp.officer('k2'), 403007, 'bound when the matter''s time was over');
SELECT ok(e.matter_id IS NULL AND e.detail ->> 'why' LIKE '%requires an open matter%', 'no matter on record, but why') FROM pg_temp.entry() e;
SELECT is(pg_temp.officer('k1', 'alice'), 403007, 'no custodian'), is(pg_temp.officer('k1', 'carol'), 403001, 'who is not authorised anyway'), is(pg_temp.officer('none'), 404001, 'unknown'), is(pg_temp.officer('u1', 'alice'), 403007, 'an unbound key');
SELECT is(pg_temp.get('mallory', 'k1', 'bob', false), 403004, 'the role is needed as well');
SELECT is(pg_temp.get('bob', 'k3'), 0, 'for himself'), is(pg_temp.get('bob', 'k3', 'bob', true), 0, 'on behalf of himself');
SELECT is((SELECT count(*) FROM kms.entries WHERE verdict = 403007), 3::bigint, 'refusals on record');

SELECT is(pg_temp.cold('resource_get'), 0);
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('early'), 'on record');
SELECT is(pg_temp.cold('authorizations_list'), 0);
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('early'), 'on record');
SELECT is(pg_temp.cold('resource_get', behalf => 'alice'), 403007), is(pg_temp.cold('authorizations_list', behalf => 'alice'), 403007), is(pg_temp.cold('resource_get', false), 403004);
SELECT is((SELECT count(*) FROM kms.entries WHERE verdict = 403007 AND detail ->> 'why' IS NULL), 0::bigint, 'all with the reason');
SELECT results_eq($$ SELECT key FROM pg_temp.list('mallory', 's1', behalf => 'bob', officer => true) $$, $$ VALUES (pg_temp.id('k1')) $$, 'of a resource the keys of its time');
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('early'), 'on record');
SELECT results_eq($$ SELECT verdict FROM pg_temp.list('mallory', 's1', behalf => 'alice', officer => true) $$, 'VALUES (403007)', 'nobody covered');

-- Several: the one that expires last, of those that have keys.
SELECT pg_temp.matter('late', '{bob,alice}', window_from => to_timestamp(2000), expires => '3 h'), pg_temp.matter('later', '{bob}', window_from => to_timestamp(9000), expires => '4 h'),
    pg_temp.matter('file', '{bob}', kinds => '{file}', expires => '9 h') \g /dev/null
SELECT is(pg_temp.officer('k3'), 0);
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('late'));
SELECT is(pg_temp.officer('k1'), 0);
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('early'));
SELECT is(pg_temp.cold('resource_get'), 0);
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('later'));
SELECT results_eq($$ SELECT key FROM pg_temp.list('mallory', 's1', behalf => 'bob', officer => true) $$, $$ VALUES (pg_temp.id('k2')), (pg_temp.id('k3')) $$, 'a list is of one of them');
SELECT is((pg_temp.entry()).matter_id, pg_temp.id('late'));
SELECT results_eq($$ SELECT key FROM pg_temp.list('mallory', 's1', before => 1500000, behalf => 'bob', officer => true) $$, $$ VALUES (pg_temp.id('k1')) $$, 'of one that has what is asked for');

-- Whatever ends a matter ends this.
UPDATE kms.matters SET state = 'closed', closed_at = now() WHERE name = 'late';
SELECT is(pg_temp.officer('k3'), 403007, 'closed');
SELECT pg_temp.tamper($$ UPDATE kms.matters SET window_to = '2099-01-01' WHERE name = 'early' $$) \g /dev/null
SELECT is(pg_temp.officer('k3'), 403007, 'changed behind the server''s back'), is(pg_temp.officer('k1'), 403007, 'it covers nothing any more');
SELECT pg_temp.matter('forced', '{bob}') \g /dev/null
SELECT is(pg_temp.officer('k3'), 0);
SELECT pg_temp.tamper(format('UPDATE kms.approvals SET state = ''pending'', decided_at = NULL WHERE approval_id = %L', pg_temp.id('forced'))) \g /dev/null
SELECT is(pg_temp.officer('k3'), 403007, 'open, though its approval waits');
SELECT pg_temp.tamper(format('DELETE FROM kms.approvals WHERE approval_id = %L', pg_temp.id('forced'))) \g /dev/null
SELECT is(pg_temp.officer('k3'), 403007, 'open, though nobody was asked');
-- Destroyed is said to who may know it.
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('s1');
SELECT is(pg_temp.officer('k1'), 403007, 'and not to him');

SELECT * FROM finish();
ROLLBACK;
