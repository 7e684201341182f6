-- 0006_release.sql - releases to services: their channels, the one function that decides, their walks, how many
-- resources they may see; officers under matters; the kind of a resource.
--
-- service_release() is the only way in which a service gets a key.  It takes policy_share() first and then reads the rules in
-- statements of their own: a change of rules waits for the releases that began before it, and those after it see it.
-- sql/README.md has the interface.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------- tables

-- What a service with a breadth has seen lately.  A row is renewed at most once in five minutes and counts for an hour after
-- that: never less than the resources of any one hour, and hardly a write for what is seen again and again.
CREATE TABLE service_seen (
    org_id uuid NOT NULL,
    service text NOT NULL,
    resource_id uuid NOT NULL,
    seen_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, service, resource_id)
) WITH (fillfactor = 80);
CREATE INDEX service_seen_lately ON service_seen (service, seen_at);
CREATE INDEX service_seen_due ON service_seen (seen_at);
COMMENT ON TABLE service_seen IS 'Which resources a service with a breadth has got keys of in the last hour';
COMMENT ON COLUMN service_seen.org_id IS 'The resource''s organisation';
COMMENT ON COLUMN service_seen.service IS 'Service';
COMMENT ON COLUMN service_seen.resource_id IS 'Resource';
COMMENT ON COLUMN service_seen.seen_at IS 'When it last got one, to five minutes';

CREATE INDEX channels_of_services ON channels (subject, cert_serial) WHERE kind = 'service';

-- A service's entry carries its channel's pseudonym of the client, so that the trigger has nothing to do.
CREATE OR REPLACE FUNCTION channel_pseudonyms() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    p persons := person_of(NEW.org_id, NEW.kind, NEW.subject);
BEGIN
    NEW.person := CASE WHEN NEW.kind = 'user' THEN p.person END;
    NEW.client := hmac128(p.inner_key, p.outer_key, 'client ' || NEW.client_id);
    RETURN NEW;
END $$;
DROP TRIGGER channels_pseudonyms ON channels;
CREATE TRIGGER channels_pseudonyms BEFORE INSERT ON channels FOR EACH ROW EXECUTE FUNCTION channel_pseudonyms();
DROP TRIGGER entries_without_names ON entries;
CREATE TRIGGER entries_without_names BEFORE INSERT ON entries FOR EACH ROW
    WHEN ((NEW.subject IS NOT NULL AND NEW.kind IS DISTINCT FROM 'service') OR NEW.client_id IS NOT NULL
          OR NEW.on_behalf IS NOT NULL OR NEW.detail ? 'authorizations')
    EXECUTE FUNCTION entry_without_names();

DROP FUNCTION record_entry(uuid, uuid, text, integer, text, text, text, text, uuid, uuid, uuid[], uuid[], text, jsonb);
CREATE FUNCTION record_entry(p_org uuid, p_op uuid, p_action text, p_verdict integer, p_kind text, p_subject text,
    p_behalf text, p_client text, p_channel uuid, p_resource uuid, p_keys uuid[], p_path uuid[], p_request text,
    p_detail jsonb, p_purpose text DEFAULT NULL, p_matter uuid DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO entries (org_id, op_id, verdict, action, kind, subject, on_behalf, client_id, channel_id, resource_id,
                         key_ids, path, request_id, detail, purpose, matter_id)
    VALUES (p_org, p_op, p_verdict, p_action, p_kind, p_subject, p_behalf, p_client, p_channel, p_resource,
            p_keys, p_path, p_request, p_detail, p_purpose, p_matter)
    ON CONFLICT (org_id, op_id) DO NOTHING;
    IF NOT FOUND THEN
        -- Its first run has committed since we looked: run again, then it is seen.
        RAISE EXCEPTION 'this operation was done in the meantime' USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
COMMENT ON FUNCTION record_entry IS 'Writes one entry';

-- ---------------------------------------------------------------------------------------------------- certificates, channels

CREATE FUNCTION certificate_revoked(p_issuer bytea, p_serial bytea) RETURNS boolean LANGUAGE sql STABLE
RETURN EXISTS (SELECT FROM revoked_certificates r
                WHERE r.org_id = nobody() AND r.serial = p_serial
                  AND r.issuer IN (p_issuer, '\x0000000000000000000000000000000000000000000000000000000000000000'));
COMMENT ON FUNCTION certificate_revoked IS 'Is this certificate on record as good no more?';

DROP FUNCTION caller(uuid, uuid, timestamptz);
CREATE FUNCTION caller(p_org uuid, p_channel uuid, p_now timestamptz, p_services boolean DEFAULT false,
    OUT verdict integer, OUT kind text, OUT subject text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_state text;
    v_issuer bytea;
    v_serial bytea;
BEGIN
    SELECT c.kind, c.subject, c.cert_issuer, c.cert_serial INTO kind, subject, v_issuer, v_serial
      FROM channels c WHERE c.org_id = p_org AND c.channel_id = p_channel AND c.expires_at > p_now;
    IF NOT FOUND THEN
        verdict := 499001;
        RETURN;
    ELSIF kind = 'service' THEN
        verdict := CASE WHEN certificate_revoked(v_issuer, v_serial) THEN 499001
                        WHEN NOT EXISTS (SELECT FROM services s
                                          WHERE s.org_id = nobody() AND s.service = subject AND s.state = 'active') THEN 403006
                        WHEN p_services THEN 0 ELSE 403005 END;
        RETURN;
    END IF;
    SELECT o.state INTO v_state FROM organisations o WHERE o.org_id = p_org;
    verdict := CASE WHEN v_state IS NULL THEN 401001 WHEN v_state <> 'active' THEN 403001 ELSE 0 END;
END $$;
COMMENT ON FUNCTION caller IS 'The checks that every request on a channel goes through, and whose channel it is; services are refused unless p_services';

CREATE OR REPLACE FUNCTION channels_check(orgs uuid[], channels uuid[])
RETURNS TABLE (n integer, verdict integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    PERFORM check_lengths(cardinality(orgs), cardinality(channels));
    RETURN QUERY
        SELECT i.n::integer, c.verdict
          FROM unnest(orgs, channels) WITH ORDINALITY AS i(org, channel, n),
               LATERAL caller(i.org, i.channel, v_now, true) AS c
         ORDER BY i.n;
END $$;

DROP FUNCTION channels_open(uuid[]);
CREATE FUNCTION channels_open(ids uuid[])
RETURNS TABLE (n integer, found boolean, org uuid, org_name text, kind text, subject text, client text, blob bytea,
    generation integer, root uuid, wrapped bytea, expires bigint, identity text, thumb bytea, rate integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
        SELECT i.n::integer, w.org_id IS NOT NULL, w.org_id,
               CASE WHEN w.org_id IS NOT NULL THEN coalesce(o.name, '') END, c.kind, c.subject, c.client_id, c.blob,
               w.generation, w.root_id, w.wrapped, ms(c.expires_at), s.identity, c.key_thumb, s.rate
          FROM unnest(ids) WITH ORDINALITY AS i(id, n)
          LEFT JOIN (channels c
                     LEFT JOIN organisations o ON o.org_id = c.org_id
                     LEFT JOIN services s ON c.kind = 'service' AND s.org_id = nobody() AND s.service = c.subject
                                         AND s.state = 'active'
                     JOIN wrapping_keys w ON w.org_id = c.org_id AND w.generation = c.generation)
            ON c.channel_id = i.id AND c.expires_at > v_now
           AND CASE WHEN c.kind = 'service' THEN s.service IS NOT NULL AND NOT certificate_revoked(c.cert_issuer, c.cert_serial)
                    ELSE o.org_id IS NOT NULL END
         ORDER BY i.n;
END $$;
COMMENT ON FUNCTION channels_open IS 'What is needed to read messages on these channels, whosever they are';

CREATE OR REPLACE FUNCTION orgs_get(names text[])
RETURNS TABLE (n integer, org uuid, state text, generation integer, root uuid, wrapped bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT i.n::integer, w.org_id, CASE WHEN w.org_id IS NOT NULL THEN coalesce(o.state, 'active') END, w.generation,
               w.root_id, w.wrapped
          FROM unnest(names) WITH ORDINALITY AS i(name, n)
          LEFT JOIN organisations o ON o.name = i.name
          LEFT JOIN installation t ON i.name = '' AND t.org_id = nobody()
          LEFT JOIN wrapping_keys w ON w.org_id = coalesce(o.org_id, t.org_id)
                                   AND w.generation = coalesce(o.generation, t.generation)
         ORDER BY i.n;
END $$;
COMMENT ON FUNCTION orgs_get IS
    'Organisations by name, each with its current wrapping key; the name "": the installation itself; org NULL: unknown';

CREATE FUNCTION service_channel_create(ops uuid[], requests text[], clients text[], channels uuid[], identities text[],
    thumbs bytea[], issuers bytea[], serials bytea[], not_after bigint[], jti_hashes bytea[], blobs bytea[],
    generations integer[], lifetime_ms bigint)
RETURNS TABLE (n integer, verdict integer, created bigint, expires bigint, service text, rate integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_until timestamptz(3);
    v_generation integer;
    v_entry entries;
    v_why text;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(requests), cardinality(clients), cardinality(channels),
        cardinality(identities), cardinality(thumbs), cardinality(issuers), cardinality(serials), cardinality(not_after),
        cardinality(jti_hashes), cardinality(blobs), cardinality(generations));
    IF lifetime_ms IS NULL OR lifetime_ms <= 0 THEN
        RAISE EXCEPTION 'lifetime_ms must be positive' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM policy_share();
    SELECT t.generation INTO STRICT v_generation FROM installation t WHERE t.org_id = nobody();
    FOR i IN 1 .. cardinality(ops) LOOP
        n := i;
        verdict := 0;
        created := NULL;
        expires := NULL;
        service := NULL;
        rate := NULL;
        v_why := NULL;
        v_entry := first_run(nobody(), ops[i], 'channel.create', channels[i]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            verdict := v_entry.verdict;
            IF verdict = 0 THEN
                created := (v_entry.detail ->> 'created')::bigint;
                expires := (v_entry.detail ->> 'expires')::bigint;
                service := v_entry.subject;
                SELECT s.rate INTO rate FROM services s WHERE s.org_id = nobody() AND s.service = v_entry.subject;
            END IF;
            RETURN NEXT;
            CONTINUE;
        END IF;
        -- Before the proof is used up: whoever is told so comes again with it.
        IF v_generation = 0 OR generations[i] IS DISTINCT FROM v_generation THEN
            verdict := -1;
            RETURN NEXT;
            CONTINUE;
        END IF;
        v_until := least(v_now + lifetime_ms * interval '1 millisecond', ms_to_time(not_after[i]));
        IF certificate_revoked(issuers[i], serials[i]) THEN
            verdict := 401001;
            v_why := 'the certificate is revoked';
        ELSIF v_until IS NULL OR v_until <= v_now THEN
            verdict := 401001;
            v_why := 'the certificate has expired';
        ELSIF jti_hashes[i] IS NOT NULL THEN
            -- A proof is good for 300 seconds before and after its time.
            INSERT INTO service_proofs (org_id, jti_hash, expires_at)
            VALUES (nobody(), jti_hashes[i], v_now + interval '15 minutes') ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
                verdict := 401001;
                v_why := 'the proof was used before';
            END IF;
        END IF;
        IF verdict = 0 THEN
            SELECT s.service, s.rate INTO service, rate FROM services s WHERE s.identity = identities[i] AND s.state = 'active';
            IF NOT FOUND THEN
                verdict := 403006;
                v_why := 'no service of this identity is registered';
            ELSE
                created := ms(v_now);
                expires := ms(v_until);
                INSERT INTO kms.channels (org_id, channel_id, kind, subject, client_id, generation, blob, created_at, expires_at,
                                          key_thumb, cert_issuer, cert_serial)
                VALUES (nobody(), channels[i], 'service', service, coalesce(clients[i], ''), generations[i], blobs[i], v_now,
                        v_until, thumbs[i], issuers[i], serials[i]);
            END IF;
        END IF;
        PERFORM record_entry(nobody(), ops[i], 'channel.create', verdict, 'service', coalesce(service, identities[i]), NULL,
            nullif(clients[i], ''), channels[i], NULL, NULL, NULL, requests[i],
            jsonb_strip_nulls(jsonb_build_object('created', created, 'expires', expires, 'identity', identities[i],
                'certificate', encode(serials[i], 'hex'), 'issuer', encode(issuers[i], 'hex'), 'why', v_why,
                'proven', CASE WHEN jti_hashes[i] IS NULL THEN 'tls' ELSE 'proof' END)));
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION service_channel_create IS 'Opens channels of services; who calls has verified certificate and proof';

CREATE FUNCTION certificates_revoked(issuers bytea[], serials bytea[], source text, actor text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_new record;
    v_channels integer;
    v_count integer := 0;
BEGIN
    PERFORM check_lengths(cardinality(issuers), cardinality(serials));
    -- A list is read again and again and seldom has news: then nobody is made to wait.
    IF NOT EXISTS (SELECT FROM unnest(issuers, serials) AS x(issuer, serial)
                    WHERE NOT EXISTS (SELECT FROM revoked_certificates r
                                       WHERE r.org_id = nobody() AND r.issuer = x.issuer AND r.serial = x.serial)) THEN
        RETURN 0;
    END IF;
    PERFORM policy_lock();
    FOR v_new IN
        INSERT INTO revoked_certificates AS r (org_id, issuer, serial, source, revoked_at)
        SELECT DISTINCT nobody(), x.issuer, x.serial, certificates_revoked.source, v_now
          FROM unnest(issuers, serials) AS x(issuer, serial)
            ON CONFLICT DO NOTHING
        RETURNING r.issuer, r.serial
    LOOP
        DELETE FROM channels c
         WHERE c.kind = 'service' AND c.cert_serial = v_new.serial
           AND (c.cert_issuer = v_new.issuer OR v_new.issuer = decode(repeat('00', 32), 'hex'));
        GET DIAGNOSTICS v_channels = ROW_COUNT;
        PERFORM record_admin(nobody(), gen_random_uuid(), actor, 'certificate.revoke', 0,
            jsonb_build_object('certificate', encode(v_new.serial, 'hex'), 'issuer', encode(v_new.issuer, 'hex'),
                'source', certificates_revoked.source, 'channels', v_channels));
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION certificates_revoked IS
    'Takes certificates of services for good no more and ends their channels; how many were new.  An issuer of 32 zero bytes: any';

DROP FUNCTION refusals_record(uuid[], uuid[], uuid[], text[], text[], text[], text[], integer[], uuid[]);
CREATE FUNCTION refusals_record(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
    subjects text[], actions text[], verdicts integer[], targets uuid[], kinds text[] DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET jit = off AS $$
DECLARE
    v_written integer;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(subjects), cardinality(actions), cardinality(verdicts), cardinality(targets),
        coalesce(cardinality(kinds), cardinality(ops)));
    IF 1 > ANY (verdicts) THEN
        RAISE EXCEPTION 'a refusal has an errorCode' USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM unnest(kinds) k WHERE k NOT IN ('user', 'anonymous', 'service')) THEN
        RAISE EXCEPTION 'unknown kind of principal' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO entries (org_id, op_id, verdict, action, kind, subject, client_id, channel_id, resource_id, request_id)
    SELECT coalesce(i.org, nobody()), i.op, i.verdict, i.action, i.kind, i.subject, i.client, i.channel, i.target,
           i.request
      FROM unnest(ops, orgs, channels, requests, clients, subjects, actions, verdicts, targets, kinds) WITH ORDINALITY
           AS i(op, org, channel, request, client, subject, action, verdict, target, kind, n)
     ORDER BY i.n
        ON CONFLICT (org_id, op_id) DO NOTHING;
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written < cardinality(ops) THEN
        PERFORM touch_fence();
    END IF;
END $$;
COMMENT ON FUNCTION refusals_record IS 'Records what was refused before the state was asked';

-- ---------------------------------------------------------------------------------------------------- matters

CREATE FUNCTION matter_holds(m matters, p_now timestamptz) RETURNS boolean LANGUAGE sql STABLE
RETURN m.state = 'open' AND m.approved_at IS NOT NULL AND m.expires_at > p_now
   AND m.text_sha256 = sha256(convert_to(matter_text(m), 'UTF8'));
COMMENT ON FUNCTION matter_holds IS 'Open, approved, not expired, and still the text that was approved';

-- ---------------------------------------------------------------------------------------------------- breadth

CREATE FUNCTION breadth_lock(p_service text) RETURNS void LANGUAGE sql VOLATILE
RETURN pg_advisory_xact_lock(hashtextextended('kms.breadth ' || p_service, 0));
COMMENT ON FUNCTION breadth_lock IS 'One at a time decides whether a service may see resources that are new to it';

CREATE FUNCTION breadth_left(p_service text, p_breadth integer, p_now timestamptz) RETURNS integer LANGUAGE sql VOLATILE
RETURN p_breadth - (SELECT count(*) FROM (
    SELECT FROM service_seen s WHERE s.service = p_service AND s.seen_at > p_now - interval '65 minutes' LIMIT p_breadth) x)::integer;
COMMENT ON FUNCTION breadth_left IS 'How many more resources it may see now; for who has breadth_lock(), since it is volatile: a new snapshot';

-- ---------------------------------------------------------------------------------------------------- releases

CREATE TYPE service_released AS (
    n integer, verdict integer, key uuid, blob bytea, generation integer, root uuid, wrapped bytea, org uuid,
    user_id text, client_id text, created bigint, expires bigint, bound bigint, resource uuid, service text, purpose text,
    matter uuid, public_key jsonb, cursor bytea, why text
);
COMMENT ON TYPE service_released IS 'As released, and under what; public_key: what to encrypt the key to; cursor: where the walk goes on';

-- Why not, by number.  NULL: the code says it.
CREATE FUNCTION release_code(p_reason integer) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_reason = 0 THEN 0 ELSE (ARRAY[
    499001, 403006, 403005, 403005, 403005, 404001, 403005, 403005, 403005, 403001,
    403007, 403007, 403007, 403007, 403005, 403005, 410001, 429001, 413001, 400002, 403005])[p_reason] END;
COMMENT ON FUNCTION release_code IS 'A reason''s errorCode';

CREATE FUNCTION release_why(p_reason integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_reason = 0 THEN NULL ELSE (ARRAY[
    NULL,                                                                       -- 1  no such channel
    'the service is retired',                                                   -- 2
    'the request names no purpose',                                             -- 3
    'the purpose is unknown',                                                   -- 4
    'the service is not registered for this purpose',                           -- 5
    NULL,                                                                       -- 6  unknown object
    'the service is not registered for this organisation',                      -- 7
    'the organisation has not enabled this purpose',                            -- 8
    'the service is not registered for this kind of resource',                  -- 9
    'the organisation is suspended',                                            -- 10
    'ediscovery needs a matter',                                                -- 11
    'the matter is unknown, not approved, closed or expired',                   -- 12
    'the matter does not cover this resource',                                  -- 13
    'the key was bound outside the time that the matter covers',                -- 14
    'the key was bound too long ago for dlp',                                   -- 15
    'the key is not bound to a resource',                                       -- 16
    NULL,                                                                       -- 17 destroyed
    'the service may not see so many different resources in an hour',           -- 18
    NULL,                                                                       -- 19 too many keys
    'the cursor does not belong to this walk',                                  -- 20
    'this walk is not for this purpose'])[p_reason] END;                        -- 21
COMMENT ON FUNCTION release_why IS 'A reason in words';

-- The usual case, single keys, is one statement and no loop, as keys_release is.  What services, organisations and matters
-- say is looked up once for all items that share them.
CREATE FUNCTION service_release(ops uuid[], channels uuid[], requests text[], clients text[], actions text[], targets uuid[],
    purposes text[], matters uuid[], after bigint[], before bigint[], counts integer[], cursors bytea[], max_keys integer)
RETURNS SETOF service_released
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_sure boolean := false;    -- breadth was counted
    v_over boolean := false;    -- and does not suffice
    v_limited record;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(channels), cardinality(requests), cardinality(clients),
        cardinality(actions), cardinality(targets), cardinality(purposes), cardinality(matters), cardinality(after),
        cardinality(before), cardinality(counts), cardinality(cursors));
    IF cardinality(ops) = 0 THEN
        RETURN;
    END IF;
    PERFORM policy_share();
    IF 'key.get' <> ANY (actions) THEN
        -- Walks are no part of a batch.
        FOR i IN 1 .. cardinality(ops) LOOP
            IF actions[i] = 'key.get' THEN
                RETURN QUERY
                    SELECT i, r.verdict, r.key, r.blob, r.generation, r.root, r.wrapped, r.org, r.user_id, r.client_id, r.created,
                           r.expires, r.bound, r.resource, r.service, r.purpose, r.matter, r.public_key, r.cursor, r.why
                      FROM service_release(ops[i:i], channels[i:i], requests[i:i], clients[i:i], actions[i:i], targets[i:i],
                               purposes[i:i], matters[i:i], after[i:i], before[i:i], counts[i:i], cursors[i:i], max_keys) r;
            ELSE
                RETURN QUERY
                    SELECT * FROM service_walk(i, ops[i], channels[i], requests[i], actions[i], targets[i], purposes[i],
                        matters[i], after[i], before[i], counts[i], cursors[i], max_keys, v_now);
            END IF;
        END LOOP;
        RETURN;
    END IF;

    LOOP
        RETURN QUERY
        WITH who AS MATERIALIZED (
            SELECT d.channel, c.channel_id IS NOT NULL AND NOT certificate_revoked(c.cert_issuer, c.cert_serial) AS open,
                   c.client, s.service, s.state, s.purposes, s.kinds, s.breadth, s.public_key
              FROM (SELECT DISTINCT u.channel FROM unnest(channels) AS u(channel)) d
              LEFT JOIN channels c
                ON c.org_id = nobody() AND c.channel_id = d.channel AND c.kind = 'service' AND c.expires_at > v_now
              LEFT JOIN services s ON s.org_id = nobody() AND s.service = c.subject
        ), found AS MATERIALIZED (
            SELECT i.n::integer AS n, i.op, i.channel, i.request, i.key, i.purpose,
                   CASE WHEN i.purpose = 'ediscovery' THEN i.matter END AS matter,
                   w.open, w.client, w.service, w.state, w.purposes, w.kinds, w.breadth, w.public_key,
                   k.org_id, k.key_id, k.blob, k.generation, k.creator, k.client_id, k.created_at, k.expires_at, k.bound_at,
                   k.resource_id, r.kind,
                   r.destroyed_at IS NOT NULL OR r.expires_at <= v_now OR k.blob IS NULL AS gone
              FROM unnest(ops, channels, requests, targets, purposes, matters) WITH ORDINALITY
                   AS i(op, channel, request, key, purpose, matter, n)
              LEFT JOIN who w ON w.channel = i.channel
              LEFT JOIN LATERAL (SELECT x.* FROM content_keys x WHERE x.key_id = i.key LIMIT 1) k ON true
              LEFT JOIN resources r ON r.org_id = k.org_id AND r.resource_id = k.resource_id
        ), rules AS MATERIALIZED (
            SELECT d.org_id, d.service, d.purpose, o.state, g.service IS NOT NULL AS served, p.enabled,
                   CASE WHEN d.purpose = 'dlp' THEN
                       v_now - setting(d.org_id, 'dlp.age')::bigint * interval '1 millisecond' END AS since
              FROM (SELECT DISTINCT f.org_id, f.service, f.purpose FROM found f
                     WHERE f.org_id IS NOT NULL AND f.service IS NOT NULL AND f.purpose IS NOT NULL) d
              JOIN organisations o ON o.org_id = d.org_id
              LEFT JOIN service_orgs g ON g.org_id = d.org_id AND g.service = d.service
              LEFT JOIN purposes p ON p.org_id = d.org_id AND p.purpose = d.purpose
        ), held AS MATERIALIZED (
            SELECT m.org_id, m.matter_id, m.custodians, m.kinds, m.window_from, m.window_to, matter_holds(m, v_now) AS holds
              FROM (SELECT DISTINCT f.org_id, f.matter FROM found f WHERE f.matter IS NOT NULL AND f.org_id IS NOT NULL) d
              JOIN matters m ON m.org_id = d.org_id AND m.matter_id = d.matter
        ), judged AS MATERIALIZED (
            SELECT f.*, e.seen_at, f.breadth > 0 AND coalesce(e.seen_at <= v_now - interval '65 minutes', true) AS unseen,
                   CASE WHEN f.open IS NOT TRUE THEN 1
                        WHEN f.state IS DISTINCT FROM 'active' THEN 2
                        WHEN f.purpose IS NULL THEN 3
                        WHEN f.purpose <> ALL (f.purposes) THEN
                            CASE WHEN f.purpose IN ('indexing', 'dlp', 'ediscovery', 'archival', 'transcoding') THEN 5 ELSE 4 END
                        WHEN f.key_id IS NULL THEN 6
                        WHEN u.served IS NOT TRUE THEN 7
                        WHEN u.enabled IS NOT TRUE THEN 8
                        WHEN f.kind <> ALL (f.kinds) THEN 9
                        WHEN u.state <> 'active' THEN 10
                        WHEN f.purpose = 'ediscovery' AND f.matter IS NULL THEN 11
                        WHEN f.purpose = 'ediscovery' AND h.holds IS NOT TRUE THEN 12
                        WHEN f.purpose = 'ediscovery' AND (f.kind = ANY (h.kinds) AND EXISTS (
                                 SELECT FROM authorizations a
                                  WHERE a.org_id = f.org_id AND a.resource_id = f.resource_id AND a.kind = 'user'
                                    AND a.grantee = ANY (h.custodians))) IS NOT TRUE THEN 13
                        WHEN f.purpose = 'ediscovery' AND (f.bound_at >= h.window_from AND f.bound_at < h.window_to) IS NOT TRUE
                            THEN 14
                        WHEN f.purpose = 'dlp' AND f.bound_at < u.since THEN 15
                        WHEN f.resource_id IS NULL THEN 16
                        WHEN f.gone THEN 17
                        WHEN v_over AND coalesce(e.seen_at <= v_now - interval '65 minutes', true) THEN 18
                        ELSE 0 END AS reason
              FROM found f
              LEFT JOIN rules u ON u.org_id = f.org_id AND u.service = f.service AND u.purpose = f.purpose
              LEFT JOIN held h ON h.org_id = f.org_id AND h.matter_id = f.matter
              -- No look at it for who has no breadth.
              LEFT JOIN service_seen e ON e.org_id = f.org_id AND e.service = CASE WHEN f.breadth > 0 THEN f.service END
               AND e.resource_id = f.resource_id
        ), go AS MATERIALIZED (
            -- Who would see a resource that is new to him must be counted first: then nothing is done yet.
            SELECT v_sure OR NOT EXISTS (SELECT FROM judged j WHERE j.reason = 0 AND j.unseen) AS yes
        ), recorded AS (
            INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, client, channel_id, resource_id, key_ids,
                                 request_id, detail, purpose, matter_id)
            SELECT coalesce(j.org_id, nobody()), v_now, j.op, release_code(j.reason), 'key.get',
                   CASE WHEN j.service IS NOT NULL THEN 'service' END, j.service, j.client, j.channel, j.resource_id,
                   ARRAY[j.key], j.request,
                   CASE WHEN release_why(j.reason) IS NOT NULL THEN jsonb_build_object('why', release_why(j.reason)) END,
                   CASE WHEN j.reason <> 4 THEN j.purpose END, j.matter
              FROM judged j
             WHERE (SELECT g.yes FROM go g)
             ORDER BY j.n
                ON CONFLICT (org_id, op_id) DO NOTHING
            RETURNING 1
        ), fenced AS (
            UPDATE fence SET touched = touched + 1
             WHERE org_id = nobody() AND (SELECT g.yes FROM go g) AND (SELECT count(*) FROM recorded) < cardinality(ops)
        ), charged AS (
            INSERT INTO service_seen AS s (org_id, service, resource_id, seen_at)
            SELECT DISTINCT j.org_id, j.service, j.resource_id, v_now FROM judged j
             WHERE j.reason = 0 AND j.breadth > 0 AND coalesce(j.seen_at <= v_now - interval '5 minutes', true)
               AND (SELECT g.yes FROM go g)
             ORDER BY j.org_id, j.service, j.resource_id
                ON CONFLICT (org_id, service, resource_id) DO UPDATE SET seen_at = excluded.seen_at
                   WHERE s.seen_at < excluded.seen_at
        ), answered AS (
            -- What was run before is answered as its record says, whatever has changed since.
            SELECT j.*,
                   CASE WHEN (x.e).op_id IS NULL THEN release_code(j.reason)
                        WHEN (x.e).verdict = 0 AND j.blob IS NULL THEN 410001 ELSE (x.e).verdict END AS verdict,
                   CASE WHEN (x.e).op_id IS NULL THEN release_why(j.reason) ELSE (x.e).detail ->> 'why' END AS why
              FROM judged j
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN (SELECT count(*) FROM recorded) < cardinality(ops)
                               THEN first_run(coalesce(j.org_id, nobody()), j.op, 'key.get', j.channel, NULL, ARRAY[j.key])
                          END AS e OFFSET 0) x
             WHERE (SELECT g.yes FROM go g)
        )
        SELECT j.n, j.verdict, w.key_id, w.blob, w.generation, w.root_id, w.wrapped, w.org_id, w.creator, w.client_id,
               ms(w.created_at), ms(w.expires_at), ms(w.bound_at), w.resource_id, j.service, j.purpose, j.matter,
               CASE WHEN w.key_id IS NOT NULL THEN j.public_key END, NULL::bytea, j.why
          FROM answered j
          LEFT JOIN LATERAL (
               SELECT j.key_id, j.blob, j.generation, x.root_id, x.wrapped, x.org_id, j.creator, j.client_id, j.created_at,
                      j.expires_at, j.bound_at, j.resource_id
                 FROM wrapping_keys x
                WHERE x.org_id = j.org_id AND x.generation = j.generation AND j.verdict = 0) w ON true
         ORDER BY j.n;
        EXIT WHEN FOUND;

        -- Some would see resources that are new to them.  One at a time, and counted by a statement that sees what the
        -- one before has done.
        v_sure := true;
        FOR v_limited IN
            SELECT s.service, s.breadth, count(DISTINCT (k.org_id, k.resource_id)) AS unseen
              FROM unnest(channels, targets) AS i(channel, key)
              JOIN channels c ON c.org_id = nobody() AND c.channel_id = i.channel AND c.kind = 'service'
              JOIN services s ON s.org_id = nobody() AND s.service = c.subject AND s.breadth > 0
              JOIN content_keys k ON k.key_id = i.key AND k.resource_id IS NOT NULL
             WHERE NOT EXISTS (SELECT FROM service_seen e
                                WHERE e.org_id = k.org_id AND e.service = s.service AND e.resource_id = k.resource_id
                                  AND e.seen_at > v_now - interval '65 minutes')
             GROUP BY s.service, s.breadth ORDER BY s.service
        LOOP
            PERFORM breadth_lock(v_limited.service);
            v_over := v_over OR v_limited.unseen > breadth_left(v_limited.service, v_limited.breadth, v_now);
        END LOOP;
        IF v_over AND cardinality(ops) > 1 THEN
            -- Some of them fit: each by itself.
            FOR i IN 1 .. cardinality(ops) LOOP
                RETURN QUERY
                    SELECT i, r.verdict, r.key, r.blob, r.generation, r.root, r.wrapped, r.org, r.user_id, r.client_id, r.created,
                           r.expires, r.bound, r.resource, r.service, r.purpose, r.matter, r.public_key, r.cursor, r.why
                      FROM service_release(ops[i:i], channels[i:i], requests[i:i], clients[i:i], actions[i:i], targets[i:i],
                               purposes[i:i], matters[i:i], after[i:i], before[i:i], counts[i:i], cursors[i:i], max_keys) r;
            END LOOP;
            RETURN;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION service_release IS 'Decides about everything that services ask for, and releases keys to them, each with its record';

GRANT EXECUTE ON FUNCTION channels_open, service_channel_create, refusals_record, service_release TO kms_worker;
GRANT EXECUTE ON FUNCTION certificates_revoked TO kms_keeper;
GRANT USAGE ON TYPE service_released TO kms_worker;
