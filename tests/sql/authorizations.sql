-- Authorisations: granted, listed, taken away.
BEGIN;
\ir fixture.psql
SELECT plan(48);

CREATE FUNCTION pg_temp.grant_all(who text, resource text, args jsonb, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('authorizations_create', who, jsonb_build_object('resource', pg_temp.id(resource)) || args, op) $$;
CREATE FUNCTION pg_temp.show(who text, resource text, args jsonb DEFAULT '{}') RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('authorizations_list', who, jsonb_build_object('resource', pg_temp.id(resource)) || args) $$;
CREATE FUNCTION pg_temp.remove(who text, args jsonb, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('authorizations_delete', who, args, op) $$;
CREATE FUNCTION pg_temp.who_is(a pg_temp.answer) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(coalesce(x ->> 'grantee', x ->> 'kind'), ' ' ORDER BY n)
      FROM jsonb_array_elements((a).result -> 'authorizations') WITH ORDINALITY AS y(x, n) $$;
CREATE FUNCTION pg_temp.by_name(resource text, VARIADIC names text[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('resource', pg_temp.id(resource), 'auths', pg_temp.users(VARIADIC names)) $$;

SELECT is(pg_temp.resource('alice', 'space'), 0);
SELECT is(pg_temp.resource('alice', 'board', pg_temp.through('space')), 0);
SELECT is(pg_temp.resource('carol', 'hers'), 0);

-- Granting.
CREATE TEMP TABLE granted AS SELECT * FROM pg_temp.grant_all('alice', 'space',
    jsonb_build_object('auths', pg_temp.users('carol', 'alice', 'bob', 'carol'), 'anonymous', 1), 'op1');
SELECT is(pg_temp.who_is(ROW(n, verdict, result)::pg_temp.answer), 'carol alice bob anonymous', 'in the order asked, once each, then the anonymous one') FROM granted;
SELECT is((SELECT count(*) FROM kms.authorizations WHERE resource_id = pg_temp.id('space')), 4::bigint, 'who was there is not doubled');
SELECT is(result -> 'authorizations' -> 1 ->> 'id', (SELECT authorization_id::text FROM kms.authorizations WHERE resource_id = pg_temp.id('space') AND grantee = 'alice'),
          'but answered as he is') FROM granted;
SELECT ok(e.action = 'authorization.create' AND e.resource_id = pg_temp.id('space') AND e.detail = g.result, 'on record') FROM granted g, pg_temp.entry() e;
SELECT is((pg_temp.grant_all('alice', 'space', '{"anonymous":5}', 'op1')).result, g.result, 'the same operation again: the same answer') FROM granted g;
SELECT is((SELECT count(*) FROM kms.authorizations WHERE resource_id = pg_temp.id('space')), 4::bigint, 'and nothing more');
SELECT is((pg_temp.grant_all('mallory', 'space', jsonb_build_object('auths', pg_temp.users('mallory')))).verdict, 403001, 'nobody lets himself in');
SELECT is((pg_temp.grant_all('eve', 'space', jsonb_build_object('auths', pg_temp.users('eve')))).verdict, 403001, 'nor another organisation');
SELECT is((pg_temp.grant_all('alice', 'none', jsonb_build_object('auths', pg_temp.users('bob')))).verdict, 404001, 'unknown resource');
SELECT is((pg_temp.grant_all('alice', 'space', jsonb_build_object('auths', pg_temp.users('dave') || pg_temp.through('none')))).verdict, 404001, 'unknown grantee');
SELECT is_empty($$ SELECT FROM kms.authorizations WHERE grantee = 'dave' $$, 'all or nothing');
SELECT is((pg_temp.grant_all('bob', 'board', jsonb_build_object('auths', pg_temp.users('dave')))).verdict, 0, 'who is authorised through nesting may grant');
SELECT is((pg_temp.entry()).path, ARRAY[pg_temp.id('space')], 'and how he could is on record');

-- Listing.
SELECT is(pg_temp.who_is(pg_temp.show('bob', 'space')) ~ '^alice .*bob', true, 'in order of granting');
SELECT is(pg_temp.who_is(pg_temp.show('bob', 'space', '{"auth":{"kind":"user","grantee":"carol"}}')), 'carol', 'one');
SELECT is((pg_temp.show('bob', 'space', '{"auth":{"kind":"user","grantee":"dave"}}')).result -> 'authorizations', '[]', 'one that is not there');
SELECT is(pg_temp.who_is(pg_temp.show('bob', 'board', jsonb_build_object('auth', pg_temp.through('space') -> 0))), pg_temp.id('space')::text, 'a resource');
SELECT is(pg_temp.who_is(pg_temp.show('bob', 'board',
    jsonb_build_object('auth', jsonb_build_object('kind', 'resource', 'grantee', upper(pg_temp.id('space')::text))))), pg_temp.id('space')::text, 'however it is written');
SELECT is((pg_temp.show('mallory', 'space')).verdict, 403001, 'not to others');
SELECT is((pg_temp.show('mallory', 'space', '{"behalf":"bob","officer":true}')).verdict, 0, 'to an officer');
SELECT is((pg_temp.show('mallory', 'space', '{"behalf":"bob"}')).verdict, 403004, 'not to who is none');
SELECT is((pg_temp.show('bob', 'none')).verdict, 404001, 'unknown');

-- Taking away.
SELECT is((pg_temp.remove('bob', pg_temp.by_name('space', 'carol', 'dave'))).verdict, 404001, 'one of two is not there');
SELECT is(pg_temp.get('carol', 'x'), 404001);
SELECT is((SELECT count(*) FROM kms.authorizations WHERE resource_id = pg_temp.id('space')), 4::bigint, 'all or nothing');
SELECT is((pg_temp.remove('mallory', pg_temp.by_name('space', 'carol'))).verdict, 403001, 'not by others');
SELECT is((pg_temp.remove('bob', jsonb_build_object('resource', pg_temp.id('space'), 'auths', '[]'::jsonb))).verdict, 404001, 'nobody named');
SELECT is(pg_temp.who_is(pg_temp.remove('bob', pg_temp.by_name('space', 'carol', 'alice', 'carol'), 'op2')), 'carol alice', 'removed, in the order asked');
SELECT ok(e.action = 'authorization.delete' AND jsonb_array_length(e.detail -> 'authorizations') = 2, 'on record') FROM pg_temp.entry() e;
SELECT is(pg_temp.who_is(pg_temp.remove('bob', pg_temp.by_name('space', 'carol', 'alice'), 'op2')), 'carol alice', 'the same operation again: the same answer');
SELECT is((pg_temp.remove('bob', pg_temp.by_name('space', 'carol'))).verdict, 404001, 'a new one: not there any more');
SELECT is((pg_temp.show('alice', 'space')).verdict, 403001, 'alice is out');
SELECT is((pg_temp.remove('bob', jsonb_build_object('authorization', authorization_id))).verdict, 0, 'by id, an anonymous one')
  FROM kms.authorizations WHERE kind = 'anonymous' AND resource_id = pg_temp.id('space');
SELECT is((pg_temp.remove('bob', jsonb_build_object('authorization', pg_temp.id('none')))).verdict, 404001, 'by id, unknown');
SELECT is((pg_temp.remove('bob', jsonb_build_object('authorization', authorization_id))).verdict, 403001, 'by id, on a resource of others')
  FROM kms.authorizations WHERE resource_id = pg_temp.id('hers');
SELECT is((pg_temp.remove('eve', jsonb_build_object('authorization', authorization_id))).verdict, 403001, 'by id, of another organisation')
  FROM kms.authorizations WHERE resource_id = pg_temp.id('hers');
SELECT is(pg_temp.who_is(pg_temp.remove('bob', jsonb_build_object('resource', pg_temp.id('board'), 'auths', pg_temp.through('space')))), pg_temp.id('space')::text,
          'through nesting, the very nesting');
SELECT is((pg_temp.show('bob', 'board')).verdict, 403001, 'so that bob is out');
SELECT is(pg_temp.who_is(pg_temp.remove('bob', pg_temp.by_name('space', 'bob'))), 'bob', 'himself');
SELECT is((pg_temp.show('bob', 'space')).verdict, 403001, 'and is out');

-- Anonymous, and past its time.
SELECT is(pg_temp.resource('carol', 'brief', anonymous => 1), 0);
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT authorization_id::text FROM kms.authorizations WHERE kind = 'anonymous')), 0);
SELECT ok((pg_temp.grant_all('anon', 'brief', '{}')).verdict = 403001 AND (pg_temp.show('anon', 'brief')).verdict = 403001
          AND (pg_temp.remove('anon', pg_temp.by_name('brief', 'carol'))).verdict = 403001, 'who is anonymous does none of it');
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('brief');
SELECT ok((pg_temp.grant_all('carol', 'brief', '{}')).verdict = 410001 AND (pg_temp.show('carol', 'brief')).verdict = 410001
          AND (pg_temp.remove('carol', pg_temp.by_name('brief', 'carol'))).verdict = 410001, 'past its time: destroyed');
SELECT is_empty($$ SELECT op_id FROM kms.entries GROUP BY org_id, op_id HAVING count(*) > 1 $$, 'one entry an operation');

SELECT * FROM finish();
ROLLBACK;
