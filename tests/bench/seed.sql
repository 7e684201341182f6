-- seed.sql - fills a migrated, empty database so that the pgbench scripts beside it find what they ask for.
--
--   psql -v resources=100000 -v keys=10 -v users=5 -v channels=1000 -f seed.sql     (as a superuser)
--
-- One organisation; CHANNELS users, each with a channel; RESOURCES resources with KEYS bound keys each and USERS users
-- authorised, of whom user r % CHANNELS is one.  Ids are made from numbers by md5, so that scripts can name them:
-- 'org', 'channel' || j, 'resource' || r, 'key' || r || '.' || k.  Blobs are of the right length and open nothing.
-- A service "bench" may have everything for every purpose, and has the channels 'service channel' || j; "limited" likewise with
-- a breadth and 'limited channel' || j; the matter 'matter' covers user0.

\set ON_ERROR_STOP on
\if :{?resources}
\else
\set resources 10000
\endif
\if :{?keys}
\else
\set keys 10
\endif
\if :{?users}
\else
\set users 5
\endif
\if :{?channels}
\else
\set channels 1000
\endif

BEGIN;
-- Row by row checks of foreign keys would take most of the time.
SET LOCAL session_replication_role = replica;
SET LOCAL synchronous_commit = off;
SET LOCAL work_mem = '256MB';
SET LOCAL search_path = kms, pg_catalog;

INSERT INTO kms.organisations (org_id, name, generation, created_at)
VALUES (md5('org')::uuid, 'bench', 1, now());
INSERT INTO kms.wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
VALUES (md5('org')::uuid, 1, md5('root')::uuid, decode(repeat('00', 40), 'hex'), decode(repeat('00', 8), 'hex'), now());

INSERT INTO kms.channels (org_id, channel_id, kind, subject, client_id, generation, blob, created_at, expires_at)
SELECT md5('org')::uuid, md5('channel' || j)::uuid, 'user', 'user' || j || '@bench.example', 'client' || j, 1,
       decode(repeat('01', 61), 'hex'), now(), now() + interval '1 year'
  FROM generate_series(0, :channels - 1) AS j;

UPDATE kms.installation SET generation = 1;
INSERT INTO kms.wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
VALUES (nobody(), 1, md5('root')::uuid, decode(repeat('00', 40), 'hex'), decode(repeat('00', 8), 'hex'), now());
INSERT INTO kms.services (org_id, service, identity, purposes, kinds, rate, breadth, created_at)
SELECT nobody(), s.name, 'spiffe://bench.example/' || s.name, '{indexing,dlp,ediscovery,archival}', '{space,meeting,file,whiteboard,calendar}',
       0, s.breadth, now()
  FROM (VALUES ('bench', 0), ('limited', 1000000)) AS s(name, breadth);
INSERT INTO kms.service_orgs SELECT md5('org')::uuid, s.service, now() FROM kms.services s;
INSERT INTO kms.purposes
SELECT md5('org')::uuid, p, true, now() FROM unnest('{indexing,dlp,ediscovery,archival}'::text[]) AS p;
INSERT INTO kms.channels (org_id, channel_id, kind, subject, client_id, generation, blob, created_at, expires_at, key_thumb,
                          cert_issuer, cert_serial)
SELECT nobody(), md5(CASE s.service WHEN 'bench' THEN 'service' ELSE s.service END || ' channel' || j)::uuid, 'service', s.service,
       'client', 1, decode(repeat('01', 61), 'hex'), now(), now() + interval '1 year', sha256('key'), sha256('ca'), '\x01'
  FROM kms.services s, generate_series(0, 9) AS j;

-- Their pseudonyms, which a trigger would have made.
SELECT count(kms.person_of(c.org_id, c.kind, c.subject)) AS people FROM kms.channels c \gset
UPDATE kms.channels c SET person = p.person, client = kms.hmac128(p.inner_key, p.outer_key, 'client ' || c.client_id)
  FROM kms.persons p WHERE p.org_id = c.org_id AND p.realm = c.kind AND p.subject = c.subject;

INSERT INTO kms.resources (org_id, resource_id, creator, created_at)
SELECT md5('org')::uuid, md5('resource' || r)::uuid, 'user' || r % :channels || '@bench.example', now()
  FROM generate_series(0, :resources - 1) AS r;

INSERT INTO kms.authorizations (org_id, authorization_id, resource_id, kind, grantee, granted_by, created_at)
SELECT md5('org')::uuid, md5('authorization' || r || '.' || u)::uuid, md5('resource' || r)::uuid, 'user',
       'user' || (r + u * 7) % :channels || '@bench.example', 'user' || r % :channels || '@bench.example', now()
  FROM generate_series(0, :resources - 1) AS r, generate_series(0, :users - 1) AS u
    ON CONFLICT DO NOTHING;

INSERT INTO kms.content_keys (org_id, key_id, generation, blob, creator, client_id, created_at, expires_at, resource_id, bound_at,
                              bound_xact)
SELECT md5('org')::uuid, md5('key' || r || '.' || k)::uuid, 1, decode(repeat('01', 61), 'hex'),
       'user' || r % :channels || '@bench.example', 'client' || r % :channels, now(), NULL, md5('resource' || r)::uuid,
       now() - k * interval '1 minute', 1 + r % 500
  FROM generate_series(0, :resources - 1) AS r, generate_series(0, :keys - 1) AS k;

INSERT INTO kms.matters
SELECT m.org_id, m.matter_id, m.name, m.custodians, m.window_from, m.window_to, m.kinds, m.expires_at, NULL,
       sha256(convert_to(matter_text(m), 'UTF8')), m.state, m.opened_by, m.opened_at, now(), NULL
  FROM (SELECT (ROW(md5('org')::uuid, md5('matter')::uuid, 'bench', '{user0@bench.example}', now() - interval '1 year',
                    now() + interval '1 year', '{space}', now() + interval '1 year', NULL, sha256(''), 'open', 'root(0)', now(), NULL,
                    NULL)::kms.matters).*) AS m;
INSERT INTO kms.approvals (org_id, approval_id, action, args, state, needed, requested_by, requested_uid, created_at, expires_at, decided_at)
SELECT m.org_id, m.matter_id, 'matter.open', '{}', 'done', 2, m.opened_by, 0, m.opened_at, m.opened_at + interval '3 days', now()
  FROM kms.matters m;
COMMIT;
VACUUM ANALYZE kms.services, kms.service_orgs, kms.purposes, kms.matters;
VACUUM ANALYZE kms.persons, kms.organisations, kms.wrapping_keys, kms.channels, kms.resources, kms.authorizations, kms.content_keys;
CHECKPOINT;
