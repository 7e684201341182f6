-- Services: many keys at once.  Lists, walks and their cursors, how many resources they may see, and what is on record.
BEGIN;
\ir fixture.psql
\ir services.psql
SELECT plan(106);

-- Keys k1 to k8 of two spaces and a file in one organisation, e1 and e2 in another; bound by transactions 11 to 18, and 14 and 20.
SELECT pg_temp.installation(), pg_temp.service('bot', orgs => '{acme,umbrella}'), pg_temp.service('one'), pg_temp.service('files', kinds => '{file}'), pg_temp.service('narrow', breadth => 1),
    pg_temp.service('wide', breadth => 2, orgs => '{acme,umbrella}'), pg_temp.service('vault', public_key => '{"kty":"EC"}') \g /dev/null
SELECT is((SELECT verdict FROM pg_temp.open(s)), 0) FROM unnest('{bot,one,files,narrow,wide,vault}'::text[]) s;
SELECT pg_temp.enable('acme', 'indexing', 'dlp', 'ediscovery', 'archival'), pg_temp.enable('umbrella', 'indexing') \g /dev/null
SELECT is(pg_temp.keys('alice', '{k1,k2,k3,k4,k5,k6,k7,k8,u1}'), 0), is(pg_temp.resource('alice', 's1', pg_temp.users('bob'), '{k1,k2,k5}'), 0), is(pg_temp.resource('alice', 's2', keys => '{k3,k4}'), 0),
    is(pg_temp.resource('alice', 'f1', keys => '{k6,k7,k8}'), 0), is(pg_temp.keys('eve', '{e1,e2}'), 0), is(pg_temp.resource('eve', 'x1', keys => '{e1,e2}'), 0), is(pg_temp.resource('alice', 'empty'), 0);
SELECT pg_temp.kind('f1', 'file') \g /dev/null
UPDATE kms.content_keys k SET bound_xact = x.xact, bound_at = to_timestamp(x.xact)
  FROM (SELECT 'k' || i AS name, 10 + i AS xact FROM generate_series(1, 8) i UNION ALL VALUES ('e1', 14), ('e2', 20)) x WHERE k.key_id = pg_temp.id(x.name);
CREATE TEMP TABLE names AS SELECT n AS name, pg_temp.id(n) AS key FROM unnest('{k1,k2,k3,k4,k5,k6,k7,k8,e1,e2}'::text[]) n;
-- An answer in words: keys by name in their order, or the verdict.  Its cursor stays in "last".
CREATE TEMP TABLE last (cursor bytea);
CREATE FUNCTION pg_temp.walk(who text, action text DEFAULT 'purpose.keys', target text DEFAULT NULL, purpose text DEFAULT 'indexing', matter text DEFAULT NULL, after bigint DEFAULT NULL,
    before bigint DEFAULT NULL, count integer DEFAULT NULL, go_on boolean DEFAULT false, op text DEFAULT NULL, max_keys integer DEFAULT 100)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v text;
    c bytea;
BEGIN
    SELECT string_agg(coalesce(x.name, CASE WHEN r.verdict = 0 THEN '-' ELSE concat_ws(' ', r.verdict::text, r.why) END), ' ' ORDER BY r.o), (array_agg(r.cursor))[1] INTO v, c
      FROM pg_temp.serve(who, action, target, purpose, matter, after, before, count, CASE WHEN go_on THEN (SELECT cursor FROM last) END, op, max_keys) WITH ORDINALITY
           AS r(n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id, created, expires, bound, resource, service, purpose, matter, public_key, cursor, why, o)
      LEFT JOIN names x ON x.key = r.key;
    DELETE FROM last;
    INSERT INTO last VALUES (c);
    RETURN v;
END $$;
-- Entries of the last call: organisation, action, resource, keys.
CREATE TEMP TABLE mark AS SELECT 0::bigint AS entry;
CREATE FUNCTION pg_temp.logged() RETURNS text LANGUAGE sql AS $$
    WITH e AS (SELECT e.* FROM kms.entries e WHERE e.entry_id > (SELECT entry FROM mark)), m AS (UPDATE mark SET entry = (SELECT max(entry_id) FROM kms.entries))
    SELECT string_agg(concat_ws(' ', coalesce((SELECT o.name FROM kms.organisations o WHERE o.org_id = e.org_id), 'nil'), e.verdict::text,
               (SELECT string_agg(x.name, ' ' ORDER BY k.n) FROM unnest(e.key_ids) WITH ORDINALITY k(id, n) JOIN names x ON x.key = k.id)), '; ' ORDER BY e.entry_id) FROM e $$;
SELECT pg_temp.logged() \g /dev/null

-- A walk through all that a service may see, over organisations.
SELECT is(pg_temp.walk('bot'), 'k1 k2 k3 ' || (SELECT string_agg(name, ' ' ORDER BY key) FROM names WHERE name IN ('k4', 'e1')) || ' k5 k6 k7 k8 e2', 'all, in the order of binding, of both organisations');
SELECT alike(pg_temp.logged(), 'nil 0; acme 0 k1 k2 k5; acme 0 k3 k4; % e1 e2%', 'the walk on record, and each resource in its own log');
SELECT is(pg_temp.walk('bot', go_on => true), '-', 'nothing more');
SELECT is(pg_temp.logged(), 'nil 0', 'on record');
SELECT is(pg_temp.walk('bot', count => 3), 'k1 k2 k3'), is(pg_temp.walk('bot', count => 4, go_on => true), (SELECT string_agg(name, ' ' ORDER BY key) FROM names WHERE name IN ('k4', 'e1')) || ' k5 k6'),
    is(pg_temp.walk('bot', count => 4, go_on => true), 'k7 k8 e2', 'in pages'), is(pg_temp.walk('bot', count => 4, go_on => true), '-'), is(pg_temp.walk('bot', count => 4, go_on => true), '-', 'its end stays its end');
UPDATE kms.content_keys SET bound_xact = 21 WHERE key_id = pg_temp.id('k3');
SELECT is(pg_temp.walk('bot', go_on => true), 'k3', 'what is bound later comes later');
UPDATE kms.content_keys SET bound_xact = 13 WHERE key_id = pg_temp.id('k3');
SELECT is(pg_temp.walk('one'), 'k1 k2 k3 k4 k5 k6 k7 k8', 'only its organisations');
SELECT is(pg_temp.walk('one', after => 12000, before => 15000), 'k2 k3 k4', 'bound in a time');
SELECT is(pg_temp.walk('files'), 'k6 k7 k8', 'only its kinds');
SELECT ok((SELECT cursor FROM last) IS NOT NULL AND octet_length((SELECT cursor FROM last)) = 32, 'a cursor');
SELECT is(pg_temp.walk('files', purpose => 'archival', go_on => true), '400002 the cursor does not belong to this walk', 'is good for its purpose only');
SELECT is(pg_temp.walk('files', count => 2), 'k6 k7'), is(pg_temp.walk('one', go_on => true), '400002 the cursor does not belong to this walk', 'for its service only');
SELECT is(pg_temp.walk('files', count => 2), 'k6 k7'), is(pg_temp.walk('files', 'resource.keys', 'f1', go_on => true), '400002 the cursor does not belong to this walk', 'for this walk only');
SELECT is((SELECT verdict FROM pg_temp.serve('files', 'purpose.keys', cursor => '\x00')), 400002, 'too short');
SELECT is(pg_temp.walk('bot', purpose => 'archival'), 'k1 k2 k3 k4 k5 k6 k7 k8', 'where its purpose is enabled');
SELECT is(pg_temp.walk('bot', purpose => 'dlp'), '403005 this walk is not for this purpose'), is(pg_temp.walk('bot', purpose => 'ediscovery'), '403005 this walk is not for this purpose'),
    is(pg_temp.walk('bot', purpose => NULL), '403005 the request names no purpose'), is(pg_temp.walk('bot', purpose => 'transcoding'), '403005 the service is not registered for this purpose'),
    is(pg_temp.walk('bot', purpose => 'x'), '403005 the purpose is unknown');
UPDATE kms.organisations SET state = 'suspended' WHERE name = 'umbrella';
SELECT is(pg_temp.walk('bot'), 'k1 k2 k3 k4 k5 k6 k7 k8', 'a suspended organisation is left out');
UPDATE kms.organisations SET state = 'suspended';
SELECT is(pg_temp.walk('bot'), '403001 the organisation is suspended', 'when all are');
UPDATE kms.organisations SET state = 'active';
UPDATE kms.purposes SET enabled = false WHERE purpose = 'archival';
SELECT is(pg_temp.walk('bot', purpose => 'archival'), '403005 the organisation has not enabled this purpose', 'enabled nowhere');
UPDATE kms.purposes SET enabled = true;
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('s2');
UPDATE kms.content_keys SET blob = NULL, destroyed_at = now() WHERE key_id = pg_temp.id('k7');
SELECT is(pg_temp.walk('one'), 'k1 k2 k5 k6 k8', 'what is destroyed is left out');
UPDATE kms.resources SET expires_at = NULL WHERE resource_id = pg_temp.id('s2');
UPDATE kms.content_keys SET blob = pg_temp.bytes(61), destroyed_at = NULL WHERE key_id = pg_temp.id('k7');
UPDATE kms.content_keys SET bound_xact = pg_current_xact_id()::text::bigint WHERE key_id IN (pg_temp.id('k2'), pg_temp.id('k8'));
SELECT is(pg_temp.walk('one'), 'k1 k3 k4 k5 k6 k7', 'what may not have been committed yet is not passed');
SELECT is(pg_temp.walk('one', 'resource.keys', 'f1'), 'k6 k7', 'nor of a resource');
UPDATE kms.content_keys SET bound_xact = CASE key_id WHEN pg_temp.id('k2') THEN 12 ELSE 18 END WHERE key_id IN (pg_temp.id('k2'), pg_temp.id('k8'));
SELECT is((SELECT array_agg(DISTINCT public_key) FROM pg_temp.serve('vault', 'purpose.keys', purpose => 'archival')), ARRAY['{"kty":"EC"}'::jsonb], 'an archiver''s key is with each');

-- Of one resource: forward for indexing and archival, the latest ones for the others.
SELECT pg_temp.logged() \g /dev/null
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', count => 2), 'k1 k2'), is(pg_temp.walk('one', 'resource.keys', 's1', count => 2, go_on => true), 'k5'), is(pg_temp.walk('one', 'resource.keys', 's1', go_on => true), '-', 'a walk');
SELECT is(pg_temp.logged(), 'acme 0 k1 k2; acme 0 k5; acme 0', 'one entry each');
UPDATE kms.content_keys SET bound_at = clock_timestamp() - interval '1 h' * substr(name, 2)::integer FROM names WHERE key = key_id AND org_id = pg_temp.id('acme');
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', 'dlp'), 'k5 k2 k1', 'a list, in the order of the times');
SELECT is((SELECT cursor FROM last), NULL, 'without a cursor');
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', 'dlp', count => 2), 'k2 k1', 'the latest'), is(pg_temp.walk('one', 'resource.keys', 's1', 'dlp', max_keys => 2), '413001', 'too many'),
    is((SELECT verdict FROM pg_temp.serve('one', 'resource.keys', 's1', 'dlp', cursor => pg_temp.bytes(32))), 400002, 'no walk, no cursor');
INSERT INTO kms.settings VALUES (pg_temp.id('acme'), 'dlp.age', (2.5 * 3600000)::bigint::text, now());
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', 'dlp'), 'k2 k1', 'what is too old is left out'), is(pg_temp.walk('one', 'resource.keys', 's2', 'dlp'), '-', 'or all');
SELECT is(pg_temp.walk('one', 'resource.keys', 'empty'), '-'), is(pg_temp.walk('one', 'resource.keys', 'none'), '404001'), is(pg_temp.walk('one', 'resource.keys', 'x1'), '403005 the service is not registered for this organisation'),
    is(pg_temp.walk('files', 'resource.keys', 's1'), '403005 the service is not registered for this kind of resource');
UPDATE kms.resources SET expires_at = now() - interval '1 s' WHERE resource_id = pg_temp.id('s2');
SELECT is(pg_temp.walk('one', 'resource.keys', 's2'), '410001', 'past its time');
UPDATE kms.resources SET expires_at = NULL WHERE resource_id = pg_temp.id('s2');

-- Under a matter.
SELECT pg_temp.matter('m1', '{bob,dora}', window_from => now() - interval '3 h 30 min', window_to => now()), pg_temp.matter('m2', '{alice}', kinds => '{file}'), pg_temp.matter('m3', '{alice}', state => 'closed'),
    pg_temp.matter('m4', '{alice}', org => 'umbrella') \g /dev/null
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', 'ediscovery', 'm1'), 'k2 k1', 'keys of its time only'), is(pg_temp.walk('one', 'resource.keys', 's2', 'ediscovery', 'm1'), '403007 the matter does not cover this resource'),
    is(pg_temp.walk('one', 'resource.keys', 's1', 'ediscovery'), '403007 ediscovery needs a matter'), is(pg_temp.walk('one', 'resource.keys', 's1', 'ediscovery', 'm4'), '403007 the matter is unknown, not approved, closed or expired');
SELECT pg_temp.logged() \g /dev/null
SELECT is(pg_temp.walk('one', 'matter.keys', purpose => NULL, matter => 'm1'), 'k1 k2', 'a walk of a matter');
SELECT is(pg_temp.logged(), 'acme 0; acme 0 k1 k2', 'on record');
SELECT is((SELECT array_agg(DISTINCT (matter_id, purpose)::text) FROM (SELECT * FROM kms.entries ORDER BY entry_id DESC LIMIT 2) e), ARRAY[(pg_temp.id('m1'), 'ediscovery')::text], 'under its matter');
SELECT is(pg_temp.walk('one', 'matter.keys', purpose => NULL, matter => 'm1', go_on => true), '-'), is(pg_temp.walk('one', 'matter.keys', purpose => 'ediscovery', matter => 'm2', count => 2), 'k6 k7', 'by its kinds'),
    is(pg_temp.walk('one', 'matter.keys', purpose => 'ediscovery', matter => 'm2', go_on => true), 'k8'), is(pg_temp.walk('one', 'matter.keys', purpose => 'ediscovery', matter => 'm1', go_on => true), '400002 the cursor does not belong to this walk', 'each matter its own cursors'),
    is(pg_temp.walk('one', 'matter.keys', purpose => 'indexing', matter => 'm1'), '403005 this walk is not for this purpose'), is(pg_temp.walk('one', 'matter.keys', purpose => NULL, matter => 'm3'), '403007 the matter is unknown, not approved, closed or expired'),
    is(pg_temp.walk('one', 'matter.keys', purpose => NULL, matter => 'none'), '403007 the matter is unknown, not approved, closed or expired'),
    is(pg_temp.walk('one', 'matter.keys', purpose => NULL, matter => 'm4'), '403005 the service is not registered for this organisation'), is(pg_temp.walk('bot', 'matter.keys', purpose => NULL, matter => 'm4'), '403005 the organisation has not enabled this purpose');

-- Run again: the same keys, whatever has come since.
SELECT is(pg_temp.walk('bot', count => 5, op => 'w1'), 'k1 k2 k3 ' || (SELECT string_agg(name, ' ' ORDER BY key) FROM names WHERE name IN ('k4', 'e1')));
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence, cursor FROM last;
UPDATE kms.content_keys SET bound_xact = 1 WHERE key_id = pg_temp.id('k8');
UPDATE kms.purposes SET enabled = false WHERE org_id = pg_temp.id('umbrella');
SELECT is(pg_temp.walk('bot', count => 5, op => 'w1'), 'k1 k2 k3 ' || (SELECT string_agg(name, ' ' ORDER BY key) FROM names WHERE name IN ('k4', 'e1')), 'the same answer');
SELECT is(pg_temp.entries() - entries, 0::bigint, 'no new entries'), is(pg_temp.fence() - fence, 1::bigint, 'waits for the standbys'), is((SELECT cursor FROM last), cursor, 'and the same cursor') FROM before;
UPDATE kms.purposes SET enabled = true;
UPDATE kms.content_keys SET bound_xact = 18 WHERE key_id = pg_temp.id('k8');
SELECT throws_ok($$ SELECT pg_temp.walk('bot', purpose => 'archival', op => 'w1') $$, '22023', NULL, 'the id belongs to its first use');
RESET ROLE;
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', count => 2, op => 'w2'), 'k1 k2');
SELECT is(pg_temp.walk('one', 'resource.keys', 's1', count => 3, op => 'w2'), 'k1 k2', 'of a resource likewise');

-- Breadth: distinct resources in an hour.
SELECT is(pg_temp.sget('narrow', 'k1'), '0'), is(pg_temp.sget('narrow', 'k2'), '0', 'another key of the same resource'), is(pg_temp.sget('narrow', 'k3'), '429001 the service may not see so many different resources in an hour', 'another resource'),
    is(pg_temp.sget('narrow', 'none'), '404001', 'which is judged last');
SELECT ok(e.verdict = 429001 AND e.org_id = pg_temp.id('acme') AND e.resource_id = pg_temp.id('s2'), 'on record') FROM kms.entries e WHERE e.verdict = 429001;
SELECT is(pg_temp.walk('narrow', 'resource.keys', 's2'), '429001 the service may not see so many different resources in an hour'), is(pg_temp.walk('narrow', 'resource.keys', 's1'), 'k1 k2 k5');
SELECT is(pg_temp.walk('narrow'), 'k1 k2', 'a walk goes as far as it may'), is(pg_temp.walk('narrow', go_on => true), '429001 the service may not see so many different resources in an hour', 'and no farther');
UPDATE kms.service_seen SET seen_at = seen_at - interval '64 min 55 s';
SELECT is(pg_temp.sget('narrow', 'k3'), '429001 the service may not see so many different resources in an hour', 'within the hour of the last release');
UPDATE kms.service_seen SET seen_at = seen_at - interval '10 s';
SELECT is(pg_temp.sget('narrow', 'k3'), '0', 'an hour later'), is(pg_temp.sget('narrow', 'k1'), '429001 the service may not see so many different resources in an hour', 'and the other way round');
-- In one batch: as many as fit, in order; what was refused for other reasons does not count.
CREATE FUNCTION pg_temp.batch(who text, VARIADIC keys text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v text;
    n integer := cardinality(keys);
BEGIN
    SET LOCAL ROLE kms_worker;
    SELECT string_agg(r.n || ':' || r.verdict, ' ' ORDER BY r.n) INTO v FROM kms.service_release(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, n)), array_fill(pg_temp.id('channel ' || who), ARRAY[n]),
        array_fill('r'::text, ARRAY[n]), array_fill('c'::text, ARRAY[n]), array_fill('key.get'::text, ARRAY[n]), ARRAY(SELECT pg_temp.id(k) FROM unnest(keys) k), array_fill('indexing'::text, ARRAY[n]),
        array_fill(NULL::uuid, ARRAY[n]), array_fill(NULL::bigint, ARRAY[n]), array_fill(NULL::bigint, ARRAY[n]), array_fill(NULL::integer, ARRAY[n]), array_fill(NULL::bytea, ARRAY[n]), 100) r;
    RESET ROLE;
    RETURN v;
END $$;
SELECT is(pg_temp.batch('wide', 'u1', 'k1', 'e1', 'k2', 'k6', 'e2', 'k7'), '1:403005 2:0 3:0 4:0 5:429001 6:0 7:429001', 'in one batch as many as fit');
SELECT is(pg_temp.batch('wide', 'k1', 'e1'), '1:0 2:0', 'those again');
SELECT is((SELECT count(*) FROM kms.service_seen WHERE service = 'wide'), 2::bigint);
UPDATE kms.service_seen SET seen_at = now() - interval '3 h';
DO $$ BEGIN PERFORM kms.sweep(100); END $$;
SELECT is((SELECT count(*) FROM kms.service_seen), 0::bigint, 'the sweeper forgets');
-- A call looks at 20,000 keys at most: it comes back without one, and its cursor goes on.
SELECT pg_temp.tamper($$ INSERT INTO kms.content_keys (org_id, key_id, generation, blob, creator, client_id, created_at, resource_id, bound_at, bound_xact)
    SELECT pg_temp.id('acme'), gen_random_uuid(), 1, pg_temp.bytes(61), 'alice', 'phone', now(), pg_temp.id('s1'), now(), 2 FROM generate_series(1, 20500) $$) \g /dev/null
UPDATE kms.content_keys SET bound_xact = 3 WHERE key_id = pg_temp.id('k7');
SELECT is(pg_temp.walk('files', count => 1000), '-'), is(pg_temp.walk('files', count => 1000, go_on => true), 'k7 k6 k8', 'far apart'), is(pg_temp.walk('files', go_on => true), '-');
SELECT throws_ok($$ SELECT pg_temp.walk('one', 'key.create') $$, '22023', NULL, 'no other action');

SELECT * FROM finish();
ROLLBACK;
