-- explain(): each verdict told in its essential words; receipts, canaries, the report of a matter.
BEGIN;
\ir fixture.psql
SELECT no_plan();

-- What explain says of the last entry (or of the one given), all of it in one text.
CREATE FUNCTION pg_temp.explained(p_entry bigint DEFAULT NULL) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_entry bigint := coalesce(p_entry, (SELECT max(entry_id) FROM kms.entries));
    j jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    j := kms.explain(v_entry::text);
    RESET ROLE;
    RETURN (SELECT e FROM jsonb_array_elements(j) h, jsonb_array_elements(h -> 'entries') e
             WHERE (e ->> 'entry')::bigint = v_entry AND h ->> 'matched' = 'entry');
END $$;
CREATE FUNCTION pg_temp.told(p_entry bigint DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
    SELECT (SELECT string_agg(s.value, ' ' ORDER BY s.key) FROM jsonb_each_text(x.j -> 'said') s)
        || ' | ' || coalesce((SELECT string_agg(t, ' ') FROM jsonb_array_elements_text(x.j -> 'since') t), '')
      FROM (SELECT pg_temp.explained(p_entry) AS j) x $$;
-- The last entry has all of these words; the text is shown when it has not.
CREATE FUNCTION pg_temp.tells(what text, VARIADIC words text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_told text := coalesce(pg_temp.told(), 'NOTHING');
    v_missing text[];
BEGIN
    SELECT array_agg(w) INTO v_missing FROM unnest(words) w WHERE strpos(lower(v_told), lower(w)) = 0;
    RETURN ok(v_missing IS NULL, what) || CASE WHEN v_missing IS NOT NULL THEN E'\n# missing: ' || v_missing::text || E'\n# ' || v_told ELSE '' END;
END $$;
CREATE TEMP TABLE kept (name text PRIMARY KEY, entry bigint);
CREATE FUNCTION pg_temp.keep(name text) RETURNS void LANGUAGE sql AS $$ INSERT INTO kept SELECT name, max(entry_id) FROM kms.entries $$;
-- What is said now of an entry that was kept.
CREATE FUNCTION pg_temp.since(name text) RETURNS text LANGUAGE sql AS $$ SELECT pg_temp.told((SELECT k.entry FROM kept k WHERE k.name = since.name)) $$;

-- ------------------------------------------------------------------------------------------------ users

DO $$ BEGIN
    PERFORM pg_temp.keys('alice', '{k1,k2,k3}');
    PERFORM pg_temp.keys('alice', '{loose}');
    PERFORM pg_temp.resource('alice', 'r', keys => '{k1,k2}');
    PERFORM pg_temp.resource('bob', 'space', pg_temp.users('carol'));
    PERFORM pg_temp.resource('bob', 'meeting', pg_temp.through('space'));
    PERFORM pg_temp.resource('alice', 'board', pg_temp.through('meeting'), '{k3}');
END $$;

SELECT is(pg_temp.get('alice', 'k1'), 0, 'released');
SELECT pg_temp.keep('alice');
SELECT pg_temp.tells('a release', 'the user "alice" of acme', 'with client "phone"', 'for key ' || pg_temp.id('k1'), 'on channel ' || pg_temp.id('channel alice'),
    'request req', '"alice" was authorised on resource ' || pg_temp.id('r') || ' directly', 'Allowed: ', 'the organisation acme was active',
    'wrapping key of generation 1', 'root key ' || pg_temp.id('root'), 'Released: one key.');
SELECT is(pg_temp.get('carol', 'k3'), 0, 'released through two resources');
SELECT pg_temp.tells('a release by way of others', 'through 2 other resources', 'authorised on ' || pg_temp.id('space'),
    ', which ' || pg_temp.id('meeting') || ' is open to, which ' || pg_temp.id('board') || ' is open to.');
SELECT is(pg_temp.get('alice', 'loose'), 0, 'released to its creator');
SELECT pg_temp.tells('an unbound key', 'As the creator of the key, which was not bound', 'it is the client that made the key');
SELECT is(pg_temp.get('mallory', 'k1', 'alice', true), 0, 'released to an officer');
SELECT pg_temp.tells('an officer', 'the user "mallory" of acme', 'as an officer on behalf of "alice"', 'compliance role', '"alice" was authorised on resource');

SELECT is(pg_temp.get('bob', 'k1'), 403001, 'refused');
SELECT pg_temp.keep('bob');
SELECT pg_temp.tells('403001', '"bob" was not authorised on resource ' || pg_temp.id('r') || ': neither directly nor through another resource',
    'Refused with errorCode 403001; nothing was released', 'It would have taken an authorisation of "bob" on the resource', 'generation 1');
DO $$ BEGIN PERFORM pg_temp.grant_user('alice', 'r', 'bob'); END $$;
SELECT matches(pg_temp.since('bob'), '"bob" is authorised on the resource now \(granted by alice at ', 'what has changed since: a grant');
SELECT is((pg_temp.ask('authorizations_delete', 'bob', jsonb_build_object('resource', pg_temp.id('r'), 'auths', pg_temp.users('alice')))).verdict, 0, 'a removal');
SELECT matches(pg_temp.since('alice'), '"alice" is no longer authorised on the resource: removed by bob at .* \(entry [0-9]+\)', 'what has changed since: a removal');
DO $$ BEGIN PERFORM pg_temp.grant_user('bob', 'r', 'alice'); END $$;

SELECT is(pg_temp.get('eve', 'k1'), 403001, 'another organisation');
SELECT pg_temp.tells('403001 of another organisation', 'of umbrella', 'belongs to another organisation, acme', 'a token of that organisation');
SELECT is(pg_temp.get('mallory', 'loose'), 403002, 'not the creator');
SELECT pg_temp.tells('403002', 'belongs to its creator alone', 'it was made by alice', 'a request by alice');
SELECT is(pg_temp.get('alice.desk', 'loose'), 403003, 'not the client');
SELECT pg_temp.tells('403003', 'for the client that made it', 'another client made the key', 'a request by the client that made the key');
SELECT is(pg_temp.get('mallory', 'k1', 'alice', false), 403004, 'no officer');
SELECT pg_temp.tells('403004', 'compliance role', 'the token had not the role', 'on behalf of "alice"');
SELECT is(pg_temp.get('eve', 'k1', 'bob', true), 403004, 'an officer of another organisation');
SELECT pg_temp.tells('403004 of another organisation', 'belongs to another organisation, acme');
SELECT is(pg_temp.get('alice', 'nothing'), 404001, 'unknown');
SELECT pg_temp.tells('404001', 'no key has this id', 'Nothing is known of it here', 'the id of a key that exists');
SELECT is((pg_temp.bind('alice', 'k1', 'board')).verdict, 409001, 'bound already');
SELECT pg_temp.tells('409001', 'to bind key ' || pg_temp.id('k1') || ' to resource ' || pg_temp.id('board'), 'a key is bound once',
    'was bound to resource ' || pg_temp.id('r') || ' at 20', 'a key that is not bound yet');
SELECT is((SELECT min(l.verdict) FROM pg_temp.list('alice', 'r', max_keys => 1) l), 413001, 'too many');
SELECT pg_temp.tells('413001', 'more than one answer may hold', 'a smaller request');
SELECT is((SELECT count(*)::integer FROM pg_temp.list('alice', 'r')), 2, 'two keys');
SELECT pg_temp.tells('keys of a resource', '2 keys: ', 'for the keys of resource ' || pg_temp.id('r'), 'Released: 2 keys.', '(bound 20');

DO $$ BEGIN
    SET LOCAL session_replication_role = replica;
    DELETE FROM kms.channels WHERE channel_id = pg_temp.id('channel carol');
    SET LOCAL session_replication_role = origin;
END $$;
SELECT is(pg_temp.get('carol', 'k3'), 499001, 'no channel');
SELECT pg_temp.tells('499001', 'the channel is not known', 'which had ended', 'a new channel', 'somebody on a channel that "carol" had opened');

-- An organisation suspended, a resource destroyed, a person erased.
DO $$ BEGIN
    SET LOCAL ROLE kms_keeper;
    PERFORM kms.org_set_state(gen_random_uuid(), 'acme', 'suspended', 'root(0)');
    RESET ROLE;
END $$;
SELECT pg_temp.tells('an operator', 'root(0), on the admin socket', 'asked for org.suspend', 'Done.');
SELECT is(pg_temp.get('alice', 'k1'), 403001, 'suspended');
SELECT pg_temp.keep('suspended');
SELECT pg_temp.tells('403001 while suspended', 'the organisation acme was suspended', 'the organisation resumed');
SELECT matches(pg_temp.since('alice'), 'The organisation acme has been suspended', 'what has changed since: a suspension');
DO $$ BEGIN
    SET LOCAL ROLE kms_keeper;
    PERFORM kms.org_set_state(gen_random_uuid(), 'acme', 'active', 'root(0)');
    RESET ROLE;
END $$;
SELECT matches(pg_temp.since('suspended'), 'The organisation acme has been resumed', 'and resumed');
DO $$ BEGIN
    PERFORM pg_temp.keys('alice', '{k9}');
    PERFORM pg_temp.resource('alice', 'doomed', keys => '{k9}');
END $$;
SELECT is(pg_temp.get('alice', 'k9'), 0, 'before');
SELECT pg_temp.keep('doomed');
UPDATE kms.content_keys SET blob = NULL, destroyed_at = clock_timestamp() WHERE key_id = pg_temp.id('k9');
UPDATE kms.resources SET destroyed_at = clock_timestamp() WHERE resource_id = pg_temp.id('doomed');
SELECT pg_sleep(0.01);
SELECT is(pg_temp.get('alice', 'k9'), 410001, 'destroyed');
SELECT pg_temp.tells('410001', 'it was destroyed', 'was destroyed at 20', 'what is destroyed does not come back');
SELECT matches(pg_temp.since('doomed'), 'Released: one key.*The (key|resource) was destroyed at', 'what has changed since: a destruction');

-- An anonymous authorisation.
SELECT is(pg_temp.resource('alice', 'open', anonymous => 1), 0, 'an anonymous authorisation');
SELECT is(pg_temp.channel('anon', kind => 'anonymous', subject => (SELECT authorization_id::text FROM kms.authorizations WHERE kind = 'anonymous')), 0, 'its channel');
SELECT is((pg_temp.ask('resource_get', 'anon', jsonb_build_object('resource', pg_temp.id('open')))).verdict, 403001, 'retrieves keys only');
SELECT pg_temp.tells('403001 of an anonymous one', 'whoever holds the bearer token of the anonymous authorisation', 'granted by alice', 'retrieves the keys of its resource and nothing else');

-- What is refused before the state is asked.
CREATE FUNCTION pg_temp.refuse(p_verdict integer, p_kind text DEFAULT NULL, p_subject text DEFAULT 'alice') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    SET LOCAL ROLE kms_worker;
    PERFORM kms.refusals_record(ARRAY[gen_random_uuid()], ARRAY[CASE WHEN p_kind IS NULL THEN pg_temp.id('acme') END], ARRAY[NULL::uuid], ARRAY['early ' || p_verdict], ARRAY['phone'],
        ARRAY[p_subject], ARRAY['key.get'], ARRAY[p_verdict], ARRAY[NULL::uuid], ARRAY[p_kind]);
    RESET ROLE;
END $$;
CREATE FUNCTION pg_temp.early(p_verdict integer, p_kind text, VARIADIC words text[]) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_temp.refuse(p_verdict, p_kind, CASE p_kind WHEN 'service' THEN 'scanner' ELSE 'alice' END);
    RETURN pg_temp.tells(p_verdict || ' before the state is asked' || coalesce(' of a ' || p_kind, ''), VARIADIC words || ARRAY['Refused with errorCode ' || p_verdict]);
END $$;
SELECT pg_temp.early(400001, NULL, 'cannot be read', '"alice"');
SELECT pg_temp.early(400002, NULL, 'missing or wrong');
SELECT pg_temp.early(400003, NULL, 'algorithm');
SELECT pg_temp.early(401001, NULL, 'valid access token');
SELECT pg_temp.early(401001, 'service', 'the service "scanner"', 'certificate or its proof', 'fresh proof');
SELECT pg_temp.early(401002, NULL, 'had expired', 'refreshed');
SELECT pg_temp.early(403005, 'service', 'only under a purpose');
SELECT pg_temp.early(403006, 'service', 'no service "scanner" is registered', 'kmsctl service add');
SELECT pg_temp.early(403009, NULL, 'belongs to the principal that created it', 'own');
SELECT pg_temp.early(403010, NULL, 'zero-trust');
SELECT pg_temp.early(405005, NULL, 'main key is revoked');
SELECT pg_temp.early(405006, NULL, 'main key is disabled');
SELECT pg_temp.early(429001, NULL, 'more requests than', 'later');
SELECT pg_temp.early(503001, NULL, 'too much to do');
SELECT pg_temp.early(503002, NULL, 'HSM');
SELECT pg_temp.early(503003, NULL, 'database');
SET LOCAL ROLE kms_keeper;
SELECT is((SELECT verdict FROM kms.org_add(gen_random_uuid(), 'acme', pg_temp.id('other'), 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 'root(0)')), 409002, 'twice');
RESET ROLE;
SELECT pg_temp.tells('409002', 'Here: an organisation of this name exists', 'does not fit the state');
SELECT is_empty($$ SELECT c FROM unnest('{400001,400002,400003,401001,401002,403001,403002,403003,403004,403005,403006,403007,403009,403010,404001,405005,405006,409001,
    409002,410001,413001,429001,499001,503001,503002,503003}'::integer[]) c, unnest('{user,service,operator}'::text[]) k, kms.rule_of(c, k) r
    WHERE r.rule LIKE 'errorCode%' OR r.rule IS NULL OR r.otherwise IS NULL $$, 'every code has its rule and its otherwise');

-- ------------------------------------------------------------------------------------------------ services

DO $$ BEGIN
    INSERT INTO kms.wrapping_keys VALUES (kms.nobody(), 1, pg_temp.id('root'), pg_temp.bytes(40), pg_temp.bytes(8), 0, clock_timestamp());
    UPDATE kms.installation SET generation = 1;
    INSERT INTO kms.services (org_id, service, identity, purposes, kinds, rate, breadth, created_at)
    SELECT kms.nobody(), s, 'spiffe://test/' || s, '{indexing,dlp,ediscovery}', '{space,meeting}', 0, CASE s WHEN 'narrow' THEN 1 ELSE 0 END, clock_timestamp() - interval '1 day'
      FROM unnest('{scanner,retiree,narrow}'::text[]) s;
    INSERT INTO kms.service_orgs SELECT pg_temp.id('acme'), s, clock_timestamp() - interval '1 day' FROM unnest('{scanner,retiree,narrow}'::text[]) s;
END $$;
CREATE FUNCTION pg_temp.service_channel(s text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v integer;
BEGIN
    SET LOCAL ROLE kms_worker;
    SELECT verdict INTO v FROM kms.service_channel_create(ARRAY[gen_random_uuid()], ARRAY['open ' || s], ARRAY['scan'], ARRAY[pg_temp.id('channel ' || s)], ARRAY['spiffe://test/' || s],
        ARRAY[pg_temp.bytes(32)], ARRAY[pg_temp.bytes(32)], ARRAY['\x0badcafe'::bytea], ARRAY[pg_temp.now_ms() + 3600000], ARRAY[NULL::bytea], ARRAY[pg_temp.bytes(61)], ARRAY[1], 3600000);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.serve(s text, target text, purpose text, matter text DEFAULT NULL, action text DEFAULT 'key.get', request text DEFAULT NULL) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v integer;
BEGIN
    SET LOCAL ROLE kms_worker;
    SELECT max(verdict) INTO v FROM kms.service_release(ARRAY[gen_random_uuid()], ARRAY[pg_temp.id('channel ' || s)], ARRAY[coalesce(request, 'serve')], ARRAY['scan'], ARRAY[action],
        ARRAY[pg_temp.id(target)], ARRAY[purpose], ARRAY[pg_temp.id(matter)], ARRAY[NULL::bigint], ARRAY[NULL::bigint], ARRAY[NULL::integer], ARRAY[NULL::bytea], 100);
    RESET ROLE;
    RETURN v;
END $$;
CREATE FUNCTION pg_temp.switch(p text, p_on boolean, p_at timestamptz DEFAULT clock_timestamp()) RETURNS void LANGUAGE sql AS $$
    INSERT INTO kms.purposes VALUES (pg_temp.id('acme'), p, p_on, p_at)
        ON CONFLICT (org_id, purpose) DO UPDATE SET enabled = excluded.enabled, changed_at = excluded.changed_at $$;

SELECT is(pg_temp.service_channel('unheard'), 403006, 'no such service');
SELECT pg_temp.tells('403006 of a channel', 'only services that officers have registered', 'no service of this identity is registered');
SELECT is(pg_temp.service_channel('scanner'), 0, 'a channel');
SELECT pg_temp.tells('a channel of a service', 'the service "scanner"', 'identity spiffe://test/scanner', 'serial number 0badcafe', 'mutual TLS', 'to open a channel');
SELECT is(pg_temp.service_channel('retiree') + pg_temp.service_channel('narrow'), 0, 'more channels');
SELECT is(pg_temp.serve('scanner', 'k1', NULL), 403005, 'no purpose');
SELECT pg_temp.tells('403005 without a purpose', 'naming no purpose', 'the request names no purpose', 'identity spiffe://test/scanner', 'proven by mutual TLS', 'Services are authorised on nothing');
SELECT is(pg_temp.serve('scanner', 'k1', 'archival'), 403005, 'not its purpose');
SELECT pg_temp.tells('403005 not registered for', 'under the purpose "archival"', 'not registered for this purpose', 'it is registered for indexing, dlp and ediscovery, not for archival',
    'a registration of the service for the purpose archival');
SELECT is(pg_temp.serve('scanner', 'k1', 'mining'), 403005, 'no such purpose');
SELECT pg_temp.tells('403005 unknown purpose', 'the purpose is unknown');
SELECT is(pg_temp.serve('scanner', 'k1', 'dlp'), 403005, 'off');
SELECT pg_temp.keep('off');
SELECT pg_temp.tells('403005 off in the organisation', 'the organisation has not enabled this purpose', 'acme has never switched dlp on', 'kmsctl purpose enable');
SELECT pg_temp.switch('dlp', true);
SELECT matches(pg_temp.since('off'), 'acme has dlp switched on since 20', 'what has changed since: switched on');
SELECT is(pg_temp.serve('scanner', 'k1', 'dlp'), 0, 'released');
SELECT pg_temp.keep('served');
SELECT pg_temp.tells('a release to a service', 'has been registered since', 'it is registered for dlp', 'acme is one of its organisations', 'acme had dlp switched on since',
    'the resource is of kind space', 'dlp sees what was bound in the last 24 hours', 'Released: one key.', 'root key ' || pg_temp.id('root'));
SELECT is(pg_temp.serve('scanner', 'nothing', 'dlp'), 404001, 'unknown');
SELECT pg_temp.tells('404001 of a service', 'nothing here has the id');
DO $$ BEGIN
    PERFORM pg_temp.keys('alice', '{old,filed}');
    PERFORM pg_temp.resource('alice', 'attic', keys => '{old}');
    PERFORM pg_temp.resource('alice', 'file', keys => '{filed}');
    UPDATE kms.content_keys SET bound_at = clock_timestamp() - interval '3 days' WHERE key_id = pg_temp.id('old');
    UPDATE kms.resources SET kind = 'file' WHERE resource_id = pg_temp.id('file');
END $$;
SELECT is(pg_temp.serve('scanner', 'old', 'dlp'), 403005, 'too old');
SELECT pg_temp.tells('403005 too old for dlp', 'bound too long ago for dlp', 'the key was bound at 20', '3 days before it was asked for', 'in the last 24 hours', 'a longer dlp.age');
SELECT is(pg_temp.serve('scanner', 'filed', 'dlp'), 403005, 'not its kind');
SELECT pg_temp.tells('403005 of a kind', 'the resource is of kind file, the service sees space and meeting', 'a registration of the service for the kind file');
SELECT is(pg_temp.serve('scanner', 'loose', 'dlp'), 403005, 'unbound');
SELECT pg_temp.tells('403005 unbound', 'not bound to a resource');
SELECT is(pg_temp.serve('scanner', 'k9', 'dlp'), 410001, 'destroyed');
SELECT pg_temp.tells('410001 of a service', 'was destroyed at 20');
DO $$ BEGIN
    PERFORM pg_temp.keys('eve', '{theirs}');
    PERFORM pg_temp.resource('eve', 'lair', keys => '{theirs}');
END $$;
SELECT is(pg_temp.serve('scanner', 'theirs', 'dlp'), 403005, 'not its organisation');
SELECT pg_temp.tells('403005 of an organisation', 'umbrella is not one of its organisations', 'a registration of the service for umbrella');
UPDATE kms.organisations SET state = 'suspended' WHERE name = 'acme';
SELECT is(pg_temp.serve('scanner', 'k1', 'dlp'), 403001, 'suspended');
SELECT pg_temp.tells('403001 of a service', 'the organisation is suspended');
UPDATE kms.organisations SET state = 'active' WHERE name = 'acme';
SELECT is(pg_temp.serve('narrow', 'k1', 'dlp'), 0, 'one resource');
SELECT is(pg_temp.serve('narrow', 'k3', 'dlp'), 429001, 'another');
SELECT pg_temp.tells('429001 of a service', 'so many different resources in an hour', '1 different resources an hour', 'breadth');
UPDATE kms.services SET state = 'retired', retired_at = clock_timestamp() WHERE service = 'retiree';
SELECT is(pg_temp.serve('retiree', 'k1', 'dlp'), 403006, 'retired');
SELECT pg_temp.tells('403006 retired', 'the service is retired', 'service "retiree" was retired at', 'a service that is not retired');

-- Switched off, and what officers did by the log.
SELECT pg_temp.switch('dlp', false);
SELECT matches(pg_temp.since('served'), 'acme had dlp switched on;.*acme has dlp switched off since', 'what has changed since: switched off');
SELECT is(pg_temp.serve('scanner', 'k1', 'dlp'), 403005, 'off again');
SELECT pg_temp.tells('403005 switched off', 'acme had dlp switched off since 20');
SELECT pg_temp.switch('dlp', true);

-- Matters.
SELECT pg_temp.switch('ediscovery', true, clock_timestamp() - interval '1 hour');
CREATE FUNCTION pg_temp.matter(p_name text, p_state text, p_custodians text[] DEFAULT '{alice}', p_kinds text[] DEFAULT '{space}', p_from interval DEFAULT '-1 day',
    p_to interval DEFAULT '1 day', p_expires interval DEFAULT '1 day', p_sealed interval DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    m kms.matters;
BEGIN
    m := ROW(pg_temp.id('acme'), pg_temp.id(p_name), p_name, p_custodians, v_now + p_from, v_now + p_to, p_kinds, v_now + p_expires, v_now + p_sealed, pg_temp.bytes(32), p_state,
        'ann(1)', v_now - interval '2 hours', CASE WHEN p_state IN ('open', 'closed') THEN v_now - interval '1 hour' END, CASE p_state WHEN 'closed' THEN v_now - interval '1 minute' END);
    m.text_sha256 := sha256(convert_to(kms.matter_text(m), 'UTF8'));
    INSERT INTO kms.matters VALUES (m.*);
    IF m.approved_at IS NOT NULL THEN
        INSERT INTO kms.approvals (org_id, approval_id, action, args, state, needed, requested_by, requested_uid, created_at, expires_at, decided_at)
        VALUES (m.org_id, m.matter_id, 'matter.open', '{}', 'done', 2, m.opened_by, 1, m.opened_at, v_now + interval '1 day', m.approved_at);
    END IF;
END $$;
SELECT pg_temp.matter('case', 'open');
SELECT pg_temp.matter('sealed', 'open', p_sealed => '1 hour');
SELECT pg_temp.matter('pending', 'pending');
SELECT pg_temp.matter('rejected', 'rejected');
SELECT pg_temp.matter('closed', 'closed');
SELECT pg_temp.matter('expired', 'open', p_expires => '-1 second');
SELECT pg_temp.matter('others', 'open', '{carol}');
SELECT pg_temp.matter('kinds', 'open', p_kinds => '{meeting}');
SELECT pg_temp.matter('window', 'open', p_from => '-9 days', p_to => '-8 days');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery'), 403007, 'no matter');
SELECT pg_temp.tells('403007 without a matter', 'ediscovery needs a matter', 'the request named no matter');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'unknown'), 403007, 'unknown matter');
SELECT pg_temp.tells('403007 unknown', 'this organisation has no matter');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'pending'), 403007, 'pending');
SELECT pg_temp.tells('403007 pending', 'matter "pending" was not approved yet', 'kmsctl matter approve');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'rejected'), 403007, 'rejected');
SELECT pg_temp.tells('403007 rejected', 'matter "rejected" was never approved');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'closed'), 403007, 'closed');
SELECT pg_temp.tells('403007 closed', 'matter "closed" was closed at 20');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'expired'), 403007, 'expired');
SELECT pg_temp.tells('403007 expired', 'matter "expired" had expired at 20');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'others'), 403007, 'no custodian');
SELECT pg_temp.tells('403007 no custodian', 'none of its custodians (carol) is authorised on the resource');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'kinds'), 403007, 'not its kind');
SELECT pg_temp.tells('403007 of a kind', 'the resource is of kind space, the matter covers meeting');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'window'), 403007, 'outside');
SELECT pg_temp.tells('403007 of the window', 'outside the matter''s window from 20');
SELECT is(pg_temp.serve('scanner', 'k1', 'ediscovery', 'case', request => 'under the case'), 0, 'released');
SELECT pg_temp.keep('case');
SELECT pg_temp.tells('a release under a matter', 'under the matter "case"', 'matter "case" was approved at', 'its custodian alice is authorised', 'inside the matter''s window', 'Released: one key.');
SELECT is(pg_temp.serve('scanner', 'k2', 'ediscovery', 'sealed'), 0, 'released under seal');
UPDATE kms.matters SET state = 'closed', closed_at = clock_timestamp() WHERE name = 'case';
SELECT matches(pg_temp.since('case'), 'Matter "case" was closed at', 'what has changed since: closed');

-- Whole resources and walks.  Each of the reasons that service_release knows is told.
CREATE FUNCTION pg_temp.walk(s text, action text, purpose text, target text DEFAULT NULL, matter text DEFAULT NULL, p_cursor bytea DEFAULT NULL, request text DEFAULT NULL,
    max_keys integer DEFAULT 100) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v integer;
BEGIN
    SET LOCAL ROLE kms_worker;
    SELECT max(verdict) INTO v FROM kms.service_release(ARRAY[gen_random_uuid()], ARRAY[pg_temp.id('channel ' || s)], ARRAY[coalesce(request, 'walk')], ARRAY['scan'], ARRAY[action],
        ARRAY[pg_temp.id(target)], ARRAY[purpose], ARRAY[pg_temp.id(matter)], ARRAY[NULL::bigint], ARRAY[NULL::bigint], ARRAY[NULL::integer], ARRAY[p_cursor], max_keys);
    RESET ROLE;
    RETURN v;
END $$;
SELECT is(pg_temp.walk('scanner', 'resource.keys', 'dlp', 'r'), 0, 'a resource''s keys');
SELECT pg_temp.tells('a resource''s keys to a service', 'for the keys of resource ' || pg_temp.id('r'), 'Released: 2 keys.', 'older keys are left out');
SELECT is(pg_temp.walk('scanner', 'resource.keys', 'dlp', 'attic'), 0, 'a resource with old keys');
SELECT pg_temp.tells('none of them', 'Done: there was no key to answer');
SELECT is(pg_temp.walk('scanner', 'resource.keys', 'dlp', 'r', max_keys => 1), 413001, 'too many');
SELECT pg_temp.tells('413001 of a service', 'more than one answer may hold');
SELECT is(pg_temp.walk('scanner', 'resource.keys', 'dlp', 'nothing'), 404001, 'no resource');
SELECT pg_temp.tells('404001 of a resource', 'nothing here has the id');
SELECT is(pg_temp.walk('scanner', 'resource.keys', 'dlp', 'doomed'), 410001, 'destroyed');
SELECT pg_temp.tells('410001 of a resource', 'the resource was destroyed at 20');
SELECT is(pg_temp.walk('scanner', 'purpose.keys', 'dlp'), 403005, 'dlp does not walk');
SELECT pg_temp.tells('403005 of a walk', 'dlp may not walk all resources', 'the purpose indexing or archival');
SELECT is(pg_temp.walk('scanner', 'matter.keys', 'indexing', matter => 'case'), 403005, 'indexing does not walk matters');
SELECT pg_temp.tells('403005 of a matter''s walk', 'indexing does not walk matters');
SELECT is(pg_temp.walk('scanner', 'matter.keys', NULL, matter => 'closed'), 403007, 'a closed matter');
SELECT pg_temp.tells('403007 of a walk', 'matter "closed" was closed at');
SELECT pg_temp.switch('indexing', true);
SELECT is(pg_temp.walk('scanner', 'purpose.keys', 'indexing', p_cursor => pg_temp.bytes(32)), 400002, 'a cursor of another walk');
SELECT pg_temp.tells('400002', 'the cursor does not belong to this walk');
SELECT is(pg_temp.walk('scanner', 'purpose.keys', 'indexing', request => 'the walk'), 0, 'a walk');
SELECT pg_temp.tells('a walk', 'for the next keys of all resources', 'it is registered for indexing');
SELECT is(pg_temp.walk('unheard', 'purpose.keys', 'indexing'), 499001, 'no channel');
SELECT pg_temp.tells('499001 of a service', 'a new channel');

-- An officer of an organisation that wants a matter for it.
INSERT INTO kms.settings VALUES (pg_temp.id('acme'), 'compliance', 'matter', clock_timestamp() - interval '1 hour');
SELECT is(pg_temp.get('mallory', 'k1', 'bob', true), 403007, 'no matter covers bob');
SELECT pg_temp.tells('403007 of an officer', 'on behalf of "bob"', 'officers of this organisation ask on behalf of others only under a matter', 'covered bob');
SELECT is(pg_temp.get('mallory', 'k1', 'alice', true), 0, 'one covers alice');
SELECT pg_temp.tells('an officer under a matter', 'under the matter "sealed"', 'alice is one of its custodians', 'inside the matter''s window');

-- ------------------------------------------------------------------------------------------------ looking up

CREATE FUNCTION pg_temp.explain(what text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    j := kms.explain(what);
    RESET ROLE;
    RETURN j;
END $$;
SELECT is(pg_temp.explain('nothing of the kind'), NULL, 'unknown');
SELECT is(pg_temp.explain(gen_random_uuid()::text), NULL, 'unknown, though it looks like an operation');
SELECT is(pg_temp.explain('99999999999999'), NULL, 'unknown, though it looks like a number');
SELECT is(pg_temp.explain('under the case') #>> '{0,matched}', 'request', 'by its request id');
SELECT is((pg_temp.explain('under the case') #>> '{0,entries,0,entry}')::bigint, (SELECT entry FROM kept WHERE name = 'case'), 'and it is the right one');
SELECT is((pg_temp.explain((SELECT op_id::text FROM kms.entries e, kept k WHERE k.name = 'case' AND e.entry_id = k.entry)) #>> '{0,entries,0,entry}')::bigint,
          (SELECT entry FROM kept WHERE name = 'case'), 'by its operation id');
SELECT is(jsonb_typeof(pg_temp.explained((SELECT entry FROM kept WHERE name = 'case')) #> '{keys,0,generation}'), 'number', 'facts stand beside the words');
DO $$ BEGIN
    SET LOCAL ROLE kms_keeper;
    PERFORM kms.person_erase(gen_random_uuid(), 'acme', 'bob', 'root(0)');
    RESET ROLE;
END $$;
SELECT matches(pg_temp.since('bob'), 'a person who was erased from the log \(pseudonym .*The channel has ended.*Who asked has been erased', 'an erased person has no name');

-- ------------------------------------------------------------------------------------------------ receipts

CREATE FUNCTION pg_temp.receipts(who text, resource text, op text DEFAULT NULL) RETURNS pg_temp.answer LANGUAGE sql AS $$
    SELECT pg_temp.ask('resource_releases', who, jsonb_build_object('resource', pg_temp.id(resource)), op) $$;
SELECT is((SELECT jsonb_agg(jsonb_build_object('by', r -> 'by', 'name', r -> 'name', 'purpose', r -> 'purpose', 'matter', r #> '{matter,name}', 'keys', jsonb_array_length(r -> 'keys')))
             FROM jsonb_array_elements((pg_temp.receipts('alice', 'r')).result -> 'releases') r),
          '[{"by": "service", "name": "scanner", "purpose": "dlp", "matter": null, "keys": 2}, {"by": "service", "name": "scanner", "purpose": "ediscovery", "matter": "case", "keys": 1}, {"by": "service", "name": "narrow", "purpose": "dlp", "matter": null, "keys": 1},
            {"by": "service", "name": "scanner", "purpose": "dlp", "matter": null, "keys": 1}, {"by": "officer", "name": "mallory", "purpose": null, "matter": null, "keys": 1}]',
          'who got keys of it, the last first; what is under seal is not there');
SELECT is((pg_temp.entry()).action || (pg_temp.entry()).verdict, 'resource.releases0', 'it is an entry');
DO $$ BEGIN
    SET LOCAL session_replication_role = replica;
    UPDATE kms.matters SET sealed_until = clock_timestamp() - interval '1 second' WHERE name = 'sealed';
    SET LOCAL session_replication_role = origin;
END $$;
SELECT is(jsonb_array_length((pg_temp.receipts('alice', 'r', 'again')).result -> 'releases'), 7, 'when the seal is over it is');
SELECT is((SELECT count(*)::integer FROM kms.entries WHERE op_id = pg_temp.id('again')), 1, 'one entry');
SELECT is(jsonb_array_length((pg_temp.receipts('alice', 'r', 'again')).result -> 'releases'), 7, 'asked again');
SELECT is((SELECT count(*)::integer FROM kms.entries WHERE op_id = pg_temp.id('again')), 1, 'still one');
SELECT is((pg_temp.receipts('mallory', 'r')).verdict, 403001, 'not to who is not authorised');
SELECT is((pg_temp.receipts('alice', 'nothing')).verdict, 404001, 'nor of what does not exist');
SELECT is((pg_temp.receipts('eve', 'r')).verdict, 403001, 'nor to another organisation');
SELECT is((pg_temp.receipts('anon', 'open')).verdict, 403001, 'nor to anonymous ones');
INSERT INTO people VALUES ('scanner', kms.nobody(), 'scan');
SELECT is((pg_temp.receipts('scanner', 'r')).verdict, 403005, 'nor to services');
SELECT is((pg_temp.receipts('alice', 'doomed')).verdict, 410001, 'nor of what is destroyed');
SELECT is((pg_temp.receipts('bob.gone', 'r')).verdict, 499001, 'nor without a channel') FROM (SELECT 1) x WHERE EXISTS (SELECT FROM people WHERE name = 'bob.gone');
SELECT is((pg_temp.receipts('alice', 'board')).result, '{"releases": []}', 'none but a user''s own');

-- ------------------------------------------------------------------------------------------------ canaries

-- All that was written is looked at as if it had its place.
CREATE FUNCTION pg_temp.raise(batch integer DEFAULT 1000, lim integer DEFAULT 16) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
BEGIN
    UPDATE kms.log_cursor SET xact = pg_current_xact_id()::text::bigint, entry_id = (SELECT max(entry_id) FROM kms.entries);
    SET LOCAL ROLE kms_keeper;
    j := kms.canary_raise(batch, lim);
    RESET ROLE;
    RETURN j;
END $$;
SELECT is(pg_temp.raise() -> 'total', '0', 'no canaries, no alarms');
INSERT INTO kms.canaries VALUES (pg_temp.id('acme'), pg_temp.id('board'), 'nobody reads this', clock_timestamp());
SELECT pg_sleep(0.005);
SELECT is(pg_temp.raise(), '{"more": false, "total": 0, "alarms": []}', 'what was retrieved before is no alarm');
SELECT is(pg_temp.get('alice', 'k3') + pg_temp.serve('scanner', 'k3', 'dlp'), 0, 'two retrievals');
SELECT is(pg_temp.get('mallory', 'k3'), 403001, 'and a refusal');
SELECT is((SELECT count(*)::integer FROM pg_temp.list('alice', 'board')), 1, 'and a list');
SELECT is((SELECT jsonb_agg(jsonb_build_array(a -> 'kind', a -> 'note')) FROM jsonb_array_elements(pg_temp.raise(2) -> 'alarms') a),
          '[["user", "nobody reads this"], ["service", "nobody reads this"]]', 'raised, a few entries at a time');
SELECT is(pg_temp.raise() -> 'total', '3', 'and the rest');
SELECT is(jsonb_array_length(pg_temp.raise() -> 'alarms'), 3, 'until they are told they are told again');
SELECT is((SELECT a ->> 'who' FROM jsonb_array_elements(pg_temp.raise() -> 'alarms') a WHERE a ->> 'kind' = 'service'), 'scanner', 'a service by its name');
SELECT is((SELECT count(*)::integer FROM jsonb_array_elements(pg_temp.raise() -> 'alarms') a JOIN kms.persons p ON p.person::text = a ->> 'who' AND p.subject = 'alice'), 2, 'a person by the pseudonym');
DO $$
DECLARE
    v bigint[] := (SELECT array_agg((a ->> 'entry')::bigint) FROM jsonb_array_elements(pg_temp.raise() -> 'alarms') a);
BEGIN
    SET LOCAL ROLE kms_keeper;
    PERFORM kms.canary_told(v);
    RESET ROLE;
END $$;
SELECT is(pg_temp.raise(), '{"more": false, "total": 3, "alarms": []}', 'then no more');
SELECT is(pg_temp.get('alice', 'k3'), 0, 'once more');
DELETE FROM kms.canaries;
SELECT is(pg_temp.get('alice', 'k3'), 0, 'and after it was removed');
SELECT is(jsonb_array_length(pg_temp.raise() -> 'alarms'), 1, 'what was retrieved before its removal is an alarm, the other is none');
SELECT is((SELECT count(*)::integer FROM kms.entries e WHERE kms.canary_alert(e.xact, e.entry_id) IS NOT NULL), 4, 'the collector is told of the same');
SELECT is((SELECT kms.canary_alert(e.xact, e.entry_id) ->> 'note' FROM kms.entries e JOIN kms.canary_alarms a USING (org_id, entry_id) LIMIT 1), 'nobody reads this', 'with the note');

-- ------------------------------------------------------------------------------------------------ the report of a matter

CREATE FUNCTION pg_temp.report(matter text, after bigint DEFAULT 0, lim integer DEFAULT 100) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    j jsonb;
BEGIN
    SET LOCAL ROLE kms_keeper;
    j := kms.matter_report(pg_temp.id(matter), after, lim);
    RESET ROLE;
    RETURN j;
END $$;
SELECT is(pg_temp.report('unknown'), NULL, 'an unknown matter');
SELECT is(pg_temp.report('case') ->> 'state', 'closed', 'the matter itself');
SELECT is((SELECT jsonb_agg(jsonb_build_array(e -> 'by', e -> 'who', e -> 'behalf', e -> 'verdict', jsonb_array_length(e -> 'keys'), e -> 'kind')) FROM jsonb_array_elements(pg_temp.report('sealed') -> 'entries') e),
          '[["service", "scanner", null, 0, 1, "space"], ["officer", "mallory", "alice", 0, 1, "space"]]', 'what was released under it');
SELECT is((SELECT jsonb_agg(e -> 'verdict') FROM jsonb_array_elements(pg_temp.report('window') -> 'entries') e), '[403007]', 'and what was refused');
SELECT is(jsonb_array_length(pg_temp.report('sealed', lim => 1) -> 'entries'), 1, 'page by page');
SELECT is((SELECT e ->> 'by' FROM jsonb_array_elements(pg_temp.report('sealed', (pg_temp.report('sealed', lim => 1) #>> '{entries,0,entry}')::bigint) -> 'entries') e), 'officer', 'the next page');

SELECT * FROM finish();
ROLLBACK;
