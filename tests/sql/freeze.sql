-- Freezing and thawing (0014_freeze.sql).
BEGIN;
\ir fixture.psql
\ir officers.psql
\ir services.psql
SELECT * FROM no_plan();

SELECT pg_temp.keys('alice', '{f1,f2,f3}') \gset
SELECT pg_temp.resource('alice', 'frozen room', pg_temp.users('bob'), '{f1}') \gset
SELECT pg_temp.resource('alice', 'other room', pg_temp.users('bob', 'carol'), '{f2}') \gset

CREATE FUNCTION pg_temp.does(action text, args jsonb, uid bigint, op text DEFAULT NULL) RETURNS pg_temp.ruling LANGUAGE plpgsql AS $$
DECLARE
    v pg_temp.ruling;
BEGIN
    SET LOCAL ROLE kms_keeper;
    SELECT * INTO v FROM kms.freeze_act(coalesce(pg_temp.id(op), gen_random_uuid()), action, args, pg_temp.actor(uid), uid);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.freeze(scope text, target text, org text DEFAULT NULL, ms bigint DEFAULT 3600000, uid bigint DEFAULT 1, op text DEFAULT NULL)
RETURNS pg_temp.ruling LANGUAGE sql AS $$
    SELECT pg_temp.does('freeze', jsonb_build_object('scope', scope, 'target', target, 'org', org, 'until', pg_temp.now_ms() + ms), uid, op) $$;
CREATE FUNCTION pg_temp.thaw(scope text, target text, org text DEFAULT NULL, uid bigint DEFAULT 2) RETURNS integer LANGUAGE sql AS $$
    SELECT (pg_temp.does('thaw', jsonb_build_object('scope', scope, 'target', target, 'org', org), uid)).verdict $$;
CREATE FUNCTION pg_temp.frozen(org text DEFAULT NULL) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    v := kms.freezes_list(org);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.preview(args jsonb) RETURNS pg_temp.ruling LANGUAGE plpgsql AS $$
DECLARE
    v pg_temp.ruling;
BEGIN
    SET LOCAL ROLE kms_keeper;
    SELECT * INTO v FROM kms.freeze_preview(args);
    RESET ROLE;
    RETURN v;
END $$;

-- What is asked for.
SELECT is((pg_temp.freeze(s, t, o, m)).verdict, v, format('%s %s of %s for %s ms: %s', s, t, o, m, v)) FROM (VALUES
    ('planet', 'x', NULL, 3600000, 400002), ('user', 'bob', NULL, 3600000, 400002), ('user', 'bob', 'nobody', 3600000, 404001),
    ('resource', 'no id', NULL, 3600000, 400002), ('resource', pg_temp.id('no such')::text, NULL, 3600000, 404001),
    ('resource', pg_temp.id('frozen room')::text, 'umbrella', 3600000, 404001), ('purpose', 'curiosity', NULL, 3600000, 400002),
    ('service', 'nobody', NULL, 3600000, 404001), ('org', 'nobody', NULL, 3600000, 404001), ('org', 'acme', 'umbrella', 3600000, 400002),
    ('org', 'acme', NULL, 0, 400002), ('org', 'acme', NULL, 7776060000, 400002), ('user', repeat('x', 257), 'acme', 3600000, 400002)) x(s, t, o, m, v);
SELECT is(pg_temp.frozen(), '[]', 'nothing of that was done');
SELECT is(pg_temp.thaw('org', 'acme'), 409002, 'what is not frozen cannot be thawed');

-- The report first.
SELECT is(((pg_temp.preview(jsonb_build_object('scope', 'resource', 'target', pg_temp.id('other room'), 'until', pg_temp.now_ms() + 60000))).result -> 'impact')
              - 'services'::text - 'open_to_resources'::text, '{"keys":1,"users":3,"channels":4,"resources":1,"organisations":["acme"]}', 'of a resource');
SELECT is((pg_temp.preview(jsonb_build_object('scope', 'user', 'target', 'bob', 'org', 'acme', 'until', pg_temp.now_ms() + 60000))).result #> '{impact,resources}', '2', 'of a user');
SELECT is((pg_temp.preview('{"scope":"user","target":"bob","org":"acme"}')).verdict, 400002, 'of nothing that could be done');
SELECT is(pg_temp.frozen(), '[]', 'looking freezes nothing');

-- A resource.
SELECT is((pg_temp.get('bob', 'f1', op => 'before'), (SELECT count(*) FROM pg_temp.list('bob', 'frozen room', op => 'listed') WHERE key IS NOT NULL))::text, '(0,1)', 'released');
SELECT is(pg_temp.get('bob', 'f1'), 0, 'before: released');
SELECT pg_temp.freeze('resource', pg_temp.id('frozen room')::text, op => 'fr') AS r \gset
SELECT is((pg_temp.entry()).action, 'freeze', 'on record');
SELECT is((pg_temp.entry()).resource_id, pg_temp.id('frozen room'), 'with the resource');
SELECT is((pg_temp.frozen() -> 0) ->> 'created_by', 'officer1(1)', 'one officer does it, at once');
SELECT is((pg_temp.frozen() -> 0) ->> 'target', pg_temp.id('frozen room')::text, 'listed');
SELECT is(jsonb_array_length(pg_temp.frozen('acme')) || ' ' || jsonb_array_length(pg_temp.frozen('umbrella')), '1 0', 'of its organisation');
SELECT is((pg_temp.freeze('resource', pg_temp.id('frozen room')::text, op => 'fr')).result ->> 'state', 'done', 'run again: the same answer');
SELECT is(jsonb_array_length(pg_temp.frozen()), 1, 'and nothing new');
SELECT is(pg_temp.get('bob', 'f1'), 405006, 'not released');
SELECT is((pg_temp.entry()).verdict, 405006, 'which is on record');
SELECT is(pg_temp.get('mallory', 'f1'), 403001, 'who is not authorised learns nothing of it');
SELECT is((SELECT min(l.verdict) FROM pg_temp.list('bob', 'frozen room') l), 405006, 'nor in a list');
SELECT is((pg_temp.bind('alice', 'f3', 'frozen room')).verdict, 405006, 'nothing is bound to it');
SELECT is(pg_temp.get('bob', 'f2'), 0, 'another one is released');
SELECT is(pg_temp.keys('alice', '{f4}'), 0, 'keys are made');
SELECT is((pg_temp.freeze('resource', pg_temp.id('frozen room')::text, ms => 7200000)).result ? 'frozen_until', true, 'frozen for longer');
SELECT is((pg_temp.get('bob', 'f1', op => 'before'), (SELECT count(*) FROM pg_temp.list('bob', 'frozen room', op => 'listed') WHERE key IS NOT NULL))::text, '(405006,0)', 'nor does anything leave that was released before, and is run again');
SELECT is(jsonb_array_length(pg_temp.frozen()), 1, 'is the same freeze');
SELECT is(pg_temp.thaw('resource', upper(pg_temp.id('frozen room')::text)), 0, 'thawed, by another officer');
SELECT is((pg_temp.entry()).action, 'thaw', 'on record');
SELECT is(pg_temp.get('bob', 'f1'), 0, 'released again');

-- A user.
SELECT is((pg_temp.freeze('user', 'bob', 'acme')).verdict, 0, 'a user is frozen');
SELECT ok((pg_temp.entry()).detail ? 'person' AND (pg_temp.entry()).detail::text !~ 'bob', 'his name is in no entry, his pseudonym is');
SELECT is(pg_temp.get('bob', 'f1'), 405006, 'he gets nothing');
SELECT is(pg_temp.get('bob', 'f2'), 405006, 'of nothing');
SELECT is(pg_temp.get('alice', 'f1'), 0, 'others do');
SELECT is(pg_temp.thaw('user', 'bob'), 400002, 'whose user must be said');
SELECT is(pg_temp.thaw('user', 'bob', 'umbrella'), 409002, 'rightly');
SELECT is(pg_temp.thaw('user', 'bob', 'acme'), 0, 'thawed');
SELECT is(pg_temp.get('bob', 'f1'), 0, 'he gets it again');

-- An organisation.
SELECT is((pg_temp.freeze('org', 'acme')).verdict, 0, 'an organisation is frozen');
SELECT is((pg_temp.frozen() -> 0) ->> 'target', 'acme', 'listed by its name');
SELECT is(pg_temp.get('alice', 'f1'), 405006, 'nobody gets anything');
SELECT is(pg_temp.keys('alice', '{f5}'), 405006, 'nor are keys made');
SELECT is((pg_temp.ask('resource_create', 'alice', '{"auths":[],"anonymous":0,"ttl_ms":null,"bound_ms":1000000,"keys":[]}')).verdict, 405006, 'nor resources');
SELECT is(pg_temp.keys('eve', '{e1}'), 0, 'another organisation goes on');
SELECT is(pg_temp.get('eve', 'e1'), 0, 'as before');

-- Services and purposes, of one organisation or everywhere.
SELECT pg_temp.thaw('org', 'acme') \gset
SELECT pg_temp.installation() \gset
SELECT pg_temp.service('indexer', '{indexing,archival}') \gset
SELECT pg_temp.service('archiver', '{archival}') \gset
SELECT pg_temp.enable('acme', 'indexing', 'archival') \gset
SELECT (pg_temp.open('indexer')).verdict + (pg_temp.open('archiver')).verdict AS opened \gset
SELECT is(pg_temp.sget('indexer', 'f1'), '0', 'a service gets a key');
SELECT is((pg_temp.freeze('service', 'indexer')).verdict, 0, 'a service is frozen everywhere');
SELECT is((pg_temp.frozen('acme') -> 0) -> 'org_name', 'null', 'listed with each organisation');
SELECT ok(pg_temp.sget('indexer', 'f1') LIKE '405006%', 'it gets nothing');
SELECT ok(pg_temp.sget('indexer', 'f1', 'archival') LIKE '405006%', 'for no purpose');
SELECT is(pg_temp.sget('archiver', 'f1', 'archival'), '0', 'another does');
SELECT is(pg_temp.get('bob', 'f1'), 0, 'and users');
SELECT is(pg_temp.thaw('service', 'indexer', 'acme'), 409002, 'thawed as it was frozen');
SELECT is(pg_temp.thaw('service', 'indexer'), 0, 'everywhere');
SELECT is((pg_temp.freeze('purpose', 'archival', 'acme')).verdict, 0, 'a purpose is frozen in one organisation');
SELECT ok(pg_temp.sget('archiver', 'f1', 'archival') LIKE '405006%', 'nobody gets anything for it');
SELECT ok((SELECT min(w.verdict) FROM pg_temp.serve('archiver', 'purpose.keys', NULL, 'archival') w) = 405006, 'nor by a walk');
SELECT is(pg_temp.sget('indexer', 'f1'), '0', 'for another, one does');
SELECT is(pg_temp.thaw('purpose', 'archival', 'acme'), 0, 'thawed');
SELECT is(pg_temp.sget('archiver', 'f1', 'archival'), '0', 'one gets it again');
SELECT is(pg_temp.sget('indexer', 'f1', op => 'served'), '0', 'so does the other');
UPDATE kms.content_keys SET bound_xact = 1 WHERE key_id = pg_temp.id('f1');     -- of a transaction that has ended
SELECT is((SELECT count(*) FROM pg_temp.serve('archiver', 'purpose.keys', NULL, 'archival', op => 'walked') WHERE key = pg_temp.id('f1')), 1::bigint, 'and so does a walk');
SELECT is((pg_temp.freeze('resource', pg_temp.id('frozen room')::text)).verdict, 0, 'a resource is frozen');
SELECT ok(pg_temp.sget('indexer', 'f1') LIKE '405006%', 'for services too');
SELECT ok(pg_temp.sget('indexer', 'f1', op => 'served') LIKE '405006%', 'and what was served before, and is run again');
SELECT is((SELECT count(*) FROM pg_temp.serve('archiver', 'purpose.keys', NULL, 'archival', op => 'walked') WHERE key = pg_temp.id('f1')), 0::bigint, 'also of a walk');
SELECT is(pg_temp.thaw('resource', pg_temp.id('frozen room')::text), 0, 'thawed');
SELECT is((pg_temp.freeze('org', 'acme')).verdict, 0, 'frozen again');

-- What is over means nothing, and is swept.
UPDATE kms.freezes SET until = clock_timestamp() - interval '1 ms';
SELECT is(pg_temp.get('alice', 'f1'), 0, 'released when it is over');
SELECT is(pg_temp.frozen(), '[]', 'and not listed');
SELECT is(pg_temp.thaw('org', 'acme'), 409002, 'nor thawed');
SELECT is(pg_temp.keys('alice', '{f6}'), 0, 'keys are made again');
SET LOCAL ROLE kms_keeper;
SELECT kms.approvals_expire() \gset
RESET ROLE;
SELECT is((SELECT count(*) FROM kms.freezes), 0::bigint, 'swept');

SELECT ok((kms.rule_of(405006, 'user')).rule ~ 'frozen', 'an explanation says so');
SELECT is((kms.rule_of(410001, 'user')).rule, (kms.rule_of_code(410001, 'user')).rule, 'others are as they were');
SELECT is((pg_temp.act('cmk.default', '{"org":"nobody"}')).verdict, 404001, 'other words go where they went');
SELECT * FROM finish();
ROLLBACK;
