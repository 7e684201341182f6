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

CREATE TABLE service_breadths (
    org_id uuid NOT NULL CHECK (org_id = '00000000-0000-0000-0000-000000000000'),
    service text NOT NULL,
    seen integer NOT NULL,
    PRIMARY KEY (org_id, service)
) WITH (fillfactor = 50);
COMMENT ON TABLE service_breadths IS 'No service with a breadth has seen more lately than it says here: counted anew when that does not suffice';
COMMENT ON COLUMN service_breadths.org_id IS 'Nil';
COMMENT ON COLUMN service_breadths.service IS 'Service';
COMMENT ON COLUMN service_breadths.seen IS 'At most so many resources';

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

-- Not in SQL: what is not inlined there is planned anew in every statement.
CREATE FUNCTION certificate_revoked(p_issuer bytea, p_serial bytea) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM revoked_certificates r
         WHERE r.org_id = nobody() AND r.serial = p_serial
           AND r.issuer IN (p_issuer, '\x0000000000000000000000000000000000000000000000000000000000000000'));
END $$;
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

CREATE FUNCTION matter_holds(m matters, p_now timestamptz) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    -- What approves a matter has its id: one that says it is open without that, or while that still waits, is not.
    RETURN m.state = 'open' AND m.approved_at IS NOT NULL AND m.expires_at > p_now
       AND m.text_sha256 = sha256(convert_to(matter_text(m), 'UTF8'))
       AND EXISTS (SELECT FROM approvals a
                    WHERE a.org_id = m.org_id AND a.approval_id = m.matter_id AND a.action = 'matter.open'
                      AND a.state = 'done');
END $$;
COMMENT ON FUNCTION matter_holds IS 'Open, approved, not expired, and still the text that was approved';

CREATE FUNCTION officer_matter(p_org uuid, p_user text, p_kind text, p_bound timestamptz, p_now timestamptz,
    p_resource uuid DEFAULT NULL, p_after timestamptz DEFAULT NULL, p_before timestamptz DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_matter uuid;
BEGIN
    IF NOT EXISTS (SELECT FROM settings s WHERE s.org_id = p_org AND s.name = 'compliance' AND s.value = 'matter') THEN
        RETURN NULL;        -- setting_default() says "role"
    ELSIF p_kind IS NOT NULL THEN
        SELECT m.matter_id INTO v_matter FROM matters m
         WHERE m.org_id = p_org AND p_user = ANY (m.custodians) AND p_kind = ANY (m.kinds)
           AND (p_bound IS NULL OR (p_bound >= m.window_from AND p_bound < m.window_to))
           AND matter_holds(m, p_now)
         ORDER BY (p_resource IS NOT NULL AND EXISTS (
                      SELECT FROM content_keys k
                       WHERE k.org_id = p_org AND k.resource_id = p_resource
                         AND k.bound_at >= greatest(m.window_from, p_after) AND k.bound_at < least(m.window_to, p_before)
                         AND k.blob IS NOT NULL)) DESC,
               m.expires_at DESC, m.matter_id
         LIMIT 1;
    END IF;
    RETURN coalesce(v_matter, nobody());
END $$;
COMMENT ON FUNCTION officer_matter IS
    'Under which matter an officer may ask as this user, the one that expires last; NULL: needs none here, nil: none covers it';

CREATE FUNCTION officer_why() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 'the organisation requires an open matter that covers this for onBehalfOf, and there is none';
COMMENT ON FUNCTION officer_why IS 'Why an officer is refused with 403007';

-- ---------------------------------------------------------------------------------------------------- breadth

-- One at a time, until its transaction's end.  The rows themselves are counted only when the bound from before does not suffice.
CREATE FUNCTION breadth_take(p_service text, p_breadth integer, p_new integer, p_now timestamptz) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_seen integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('kms.breadth ' || p_service, 0));
    SELECT b.seen INTO v_seen FROM service_breadths b WHERE b.org_id = nobody() AND b.service = p_service;
    IF v_seen IS NULL OR v_seen + p_new > p_breadth THEN
        SELECT count(*) INTO v_seen
          FROM (SELECT FROM service_seen s
                 WHERE s.service = p_service AND s.seen_at > p_now - interval '65 minutes' LIMIT p_breadth) x;
    END IF;
    INSERT INTO service_breadths AS b (org_id, service, seen)
    VALUES (nobody(), p_service, v_seen + least(p_new, p_breadth - v_seen))
        ON CONFLICT (org_id, service) DO UPDATE SET seen = excluded.seen;
    RETURN p_breadth - v_seen;
END $$;
COMMENT ON FUNCTION breadth_take IS 'How many resources that are new to it a service may see now, when it wants to see so many';

CREATE FUNCTION unseen_of(p_service text, p_orgs uuid[], p_resources uuid[], p_now timestamptz) RETURNS uuid[]
LANGUAGE sql VOLATILE
RETURN (SELECT coalesce(array_agg(u.resource ORDER BY u.first), '{}')
          FROM (SELECT x.org, x.resource, min(x.n) AS first
                  FROM unnest(p_orgs, p_resources) WITH ORDINALITY AS x(org, resource, n) GROUP BY 1, 2) u
         WHERE NOT EXISTS (SELECT FROM service_seen s
                            WHERE s.org_id = u.org AND s.service = p_service AND s.resource_id = u.resource
                              AND s.seen_at > p_now - interval '65 minutes'));
COMMENT ON FUNCTION unseen_of IS 'Which of these resources it has not seen lately, in their order; volatile: it sees what others have done meanwhile';

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

CREATE FUNCTION part_op(p_op uuid, p_resource uuid) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(substr(sha256(uuid_send(p_op) || uuid_send(p_resource)), 1, 16), 'hex')::uuid;
COMMENT ON FUNCTION part_op IS 'The operation id of a walk''s entry about one resource';

-- Walks go forward by (bound_xact, key_id).  Only transactions that had all ended before are passed, so that nothing that
-- commits late is ever behind the cursor.  A call looks at some 20,000 keys at most: an answer may be short, or empty, and its
-- cursor still go on; where it stays as it was the walk has caught up.
CREATE FUNCTION service_walk(p_n integer, p_op uuid, p_channel uuid, p_request text, p_action text, p_target uuid,
    p_purpose text, p_matter uuid, p_after bigint, p_before bigint, p_count integer, p_cursor bytea, p_max_keys integer,
    p_now timestamptz)
RETURNS SETOF service_released LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_purpose text := coalesce(p_purpose, CASE p_action WHEN 'matter.keys' THEN 'ediscovery' END);
    v_matter uuid := CASE WHEN v_purpose = 'ediscovery' THEN p_matter END;
    v_walk boolean := p_action <> 'resource.keys' OR v_purpose IN ('indexing', 'archival');
    v_count integer := least(greatest(coalesce(nullif(p_count, 0), 100), 1), 1000);
    v_reason integer := 0;
    v_verdict integer;
    v_why text;
    v_channel record;
    s services;
    m matters;
    r resources;
    v_org uuid;                 -- of the resource or the matter
    v_orgs uuid[];              -- all that the walk goes through
    v_rules record;
    v_from timestamptz := coalesce(ms_to_time(p_after), '-infinity');
    v_to timestamptz := coalesce(ms_to_time(p_before), 'infinity');
    v_bind bytea;               -- what makes a cursor this walk's own
    v_cursor bytea;
    v_xact bigint := 0;
    v_key uuid := nobody();
    v_end bigint;
    v_looked integer;
    v_total integer := 0;
    v_entry entries;
    x record;
    -- The keys to release.
    v_key_orgs uuid[] := '{}';
    v_keys uuid[] := '{}';
    v_xacts bigint[] := '{}';
    v_resources uuid[] := '{}';
    v_unseen uuid[];
    v_left integer;
    v_at integer;
BEGIN
    SELECT c.client, c.subject, certificate_revoked(c.cert_issuer, c.cert_serial) AS revoked INTO v_channel
      FROM channels c
     WHERE c.org_id = nobody() AND c.channel_id = p_channel AND c.kind = 'service' AND c.expires_at > p_now;
    SELECT y.* INTO s FROM services y WHERE y.org_id = nobody() AND y.service = v_channel.subject;
    CASE p_action
        WHEN 'resource.keys' THEN
            SELECT y.* INTO r FROM resources y WHERE y.resource_id = p_target LIMIT 1;
            v_org := r.org_id;
            SELECT y.* INTO m FROM matters y WHERE y.org_id = v_org AND y.matter_id = v_matter;
        WHEN 'matter.keys' THEN
            SELECT y.* INTO m FROM matters y WHERE y.matter_id = v_matter LIMIT 1;
            v_org := m.org_id;
        WHEN 'purpose.keys' THEN
            NULL;
        ELSE
            RAISE EXCEPTION 'unknown action' USING ERRCODE = 'invalid_parameter_value';
    END CASE;
    SELECT o.state, g.service IS NOT NULL AS served, p.enabled, setting(o.org_id, 'dlp.age')::bigint AS dlp_age INTO v_rules
      FROM organisations o
      LEFT JOIN service_orgs g ON g.org_id = o.org_id AND g.service = s.service
      LEFT JOIN purposes p ON p.org_id = o.org_id AND p.purpose = v_purpose
     WHERE o.org_id = v_org;

    v_entry := first_run(coalesce(v_org, nobody()), p_op, p_action, p_channel, r.resource_id);
    IF v_entry.op_id IS NOT NULL THEN
        IF v_entry.verdict = 0 AND (v_entry.purpose, v_entry.matter_id) IS DISTINCT FROM (v_purpose, v_matter) THEN
            RAISE EXCEPTION 'this operation id was used for something else' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        PERFORM touch_fence();
        v_verdict := v_entry.verdict;
        -- Its channel may be gone by now, but not whom it was and how he gets his keys.
        SELECT y.* INTO s FROM services y WHERE y.org_id = nobody() AND y.service = v_entry.subject;
        v_why := v_entry.detail ->> 'why';
        v_cursor := decode(v_entry.detail ->> 'cursor', 'hex');
        IF v_verdict = 0 AND p_action = 'resource.keys' THEN
            v_keys := coalesce(v_entry.key_ids, '{}');
            v_key_orgs := array_fill(v_org, ARRAY[cardinality(v_keys)]);
        ELSIF v_verdict = 0 THEN
            SELECT coalesce(array_agg(e.org_id ORDER BY t.n, k.n), '{}'), coalesce(array_agg(k.id ORDER BY t.n, k.n), '{}')
              INTO v_key_orgs, v_keys
              FROM jsonb_array_elements(coalesce(v_entry.detail -> 'parts', '[]')) WITH ORDINALITY AS t(part, n)
              JOIN entries e ON e.org_id = coalesce((t.part ->> 'org')::uuid, v_org)
                            AND e.op_id = part_op(p_op, (t.part ->> 'resource')::uuid)
             CROSS JOIN LATERAL unnest(e.key_ids) WITH ORDINALITY AS k(id, n);
        END IF;
    ELSE
        v_reason := CASE
            WHEN v_channel.subject IS NULL OR v_channel.revoked THEN 1
            WHEN s.state IS DISTINCT FROM 'active' THEN 2
            WHEN v_purpose IS NULL THEN 3
            WHEN v_purpose <> ALL (s.purposes) THEN
                CASE WHEN v_purpose IN ('indexing', 'dlp', 'ediscovery', 'archival', 'transcoding') THEN 5 ELSE 4 END
            WHEN (p_action = 'purpose.keys' AND v_purpose NOT IN ('indexing', 'archival'))
                OR (p_action = 'matter.keys' AND v_purpose <> 'ediscovery') THEN 21
            WHEN p_action = 'resource.keys' AND v_org IS NULL THEN 6
            WHEN p_action = 'matter.keys' AND v_org IS NULL THEN 12
            WHEN v_org IS NOT NULL AND v_rules.served IS NOT TRUE THEN 7
            WHEN v_org IS NOT NULL AND v_rules.enabled IS NOT TRUE THEN 8
            WHEN r.kind <> ALL (s.kinds) THEN 9
            WHEN v_rules.state <> 'active' THEN 10
            WHEN v_purpose = 'ediscovery' AND v_matter IS NULL THEN 11
            WHEN v_purpose = 'ediscovery' AND matter_holds(m, p_now) IS NOT TRUE THEN 12
            WHEN v_purpose = 'ediscovery' AND p_action = 'resource.keys' AND (r.kind = ANY (m.kinds) AND EXISTS (
                     SELECT FROM authorizations a
                      WHERE a.org_id = v_org AND a.resource_id = r.resource_id AND a.kind = 'user'
                        AND a.grantee = ANY (m.custodians))) IS NOT TRUE THEN 13
            WHEN r.destroyed_at IS NOT NULL OR r.expires_at <= p_now THEN 17
            ELSE 0 END;
        IF v_reason = 0 AND v_org IS NULL THEN
            SELECT array_agg(g.org_id ORDER BY g.org_id) FILTER (WHERE p.enabled AND o.state = 'active'),
                   CASE WHEN count(*) = 0 THEN 7 WHEN NOT bool_or(coalesce(p.enabled, false)) THEN 8
                        WHEN NOT bool_or(coalesce(p.enabled, false) AND o.state = 'active') THEN 10 ELSE 0 END
              INTO v_orgs, v_reason
              FROM service_orgs g
              JOIN organisations o ON o.org_id = g.org_id
              LEFT JOIN purposes p ON p.org_id = g.org_id AND p.purpose = v_purpose
             WHERE g.service = s.service;
        ELSE
            v_orgs := ARRAY[v_org];
        END IF;
        IF v_walk AND s.service IS NOT NULL AND v_purpose IS NOT NULL THEN
            v_bind := substr(sha256(convert_to(s.service || '|' || p_action || '|' || v_purpose || '|'
                || coalesce(coalesce(r.resource_id, m.matter_id)::text, ''), 'UTF8')), 1, 8);
        END IF;
        IF v_reason = 0 AND p_cursor IS NOT NULL THEN
            IF v_walk AND octet_length(p_cursor) = 32 AND substr(p_cursor, 25) = v_bind THEN
                v_xact := ('x' || encode(substr(p_cursor, 1, 8), 'hex'))::bit(64)::bigint;
                v_key := encode(substr(p_cursor, 9, 16), 'hex')::uuid;
            ELSE
                v_reason := 20;
            END IF;
        END IF;

        IF v_reason = 0 THEN
            IF v_purpose = 'ediscovery' THEN
                v_from := greatest(v_from, m.window_from);
                v_to := least(v_to, m.window_to);
            ELSIF v_purpose = 'dlp' THEN
                v_from := greatest(v_from, p_now - v_rules.dlp_age * interval '1 millisecond');
            END IF;
            -- Of a snapshot before those that the keys are read by: the safe side.
            v_end := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
            IF NOT v_walk THEN
                -- One more than may be, to see that there are more.
                SELECT coalesce(array_agg(k.key_id), '{}') INTO v_keys
                  FROM (SELECT q.key_id FROM content_keys q
                         WHERE q.org_id = v_org AND q.resource_id = p_target AND q.bound_at >= v_from AND q.bound_at < v_to
                           AND q.blob IS NOT NULL
                         ORDER BY q.bound_at DESC, q.key_id DESC
                         LIMIT coalesce(nullif(p_count, 0), p_max_keys + 1)) k;
                IF cardinality(v_keys) > p_max_keys THEN
                    v_reason := 19;
                    v_keys := '{}';
                END IF;
                v_key_orgs := array_fill(v_org, ARRAY[cardinality(v_keys)]);
                v_resources := array_fill(p_target, ARRAY[cardinality(v_keys)]);
            ELSIF p_action = 'resource.keys' THEN
                SELECT coalesce(array_agg(k.key_id ORDER BY k.bound_xact, k.key_id), '{}'),
                       coalesce(array_agg(k.bound_xact ORDER BY k.bound_xact, k.key_id), '{}')
                  INTO v_keys, v_xacts
                  FROM (SELECT q.bound_xact, q.key_id FROM content_keys q
                         WHERE q.org_id = v_org AND q.resource_id = p_target AND q.bound_at >= v_from AND q.bound_at < v_to
                           AND q.blob IS NOT NULL AND (q.bound_xact, q.key_id) > (v_xact, v_key) AND q.bound_xact < v_end
                         ORDER BY q.bound_xact, q.key_id LIMIT v_count) k;
                v_key_orgs := array_fill(v_org, ARRAY[cardinality(v_keys)]);
                v_resources := array_fill(p_target, ARRAY[cardinality(v_keys)]);
                IF cardinality(v_keys) > 0 THEN
                    v_xact := v_xacts[cardinality(v_keys)];
                    v_key := v_keys[cardinality(v_keys)];
                END IF;
            ELSE
                LOOP
                    v_looked := 0;
                    FOR x IN
                        SELECT k.org_id, k.key_id, k.bound_xact, k.resource_id,
                               k.blob IS NOT NULL AND d.destroyed_at IS NULL AND (d.expires_at IS NULL OR d.expires_at > p_now)
                               AND d.kind = ANY (s.kinds) AND k.bound_at >= v_from AND k.bound_at < v_to
                               AND (m.matter_id IS NULL OR (d.kind = ANY (m.kinds) AND EXISTS (
                                        SELECT FROM authorizations a
                                         WHERE a.org_id = k.org_id AND a.resource_id = k.resource_id AND a.kind = 'user'
                                           AND a.grantee = ANY (m.custodians)))) AS fits
                          FROM (SELECT z.* FROM unnest(v_orgs) AS o(org)
                                 CROSS JOIN LATERAL (
                                       SELECT q.org_id, q.key_id, q.bound_xact, q.resource_id, q.blob, q.bound_at
                                         FROM content_keys q
                                        WHERE q.org_id = o.org AND (q.bound_xact, q.key_id) > (v_xact, v_key)
                                          AND q.bound_xact < v_end
                                        ORDER BY q.bound_xact, q.key_id LIMIT v_count) z
                                 ORDER BY z.bound_xact, z.key_id LIMIT v_count) k
                          JOIN resources d ON d.org_id = k.org_id AND d.resource_id = k.resource_id
                         ORDER BY k.bound_xact, k.key_id
                    LOOP
                        v_looked := v_looked + 1;
                        v_xact := x.bound_xact;
                        v_key := x.key_id;
                        IF x.fits THEN
                            v_key_orgs := v_key_orgs || x.org_id;
                            v_keys := v_keys || x.key_id;
                            v_xacts := v_xacts || x.bound_xact;
                            v_resources := v_resources || x.resource_id;
                            EXIT WHEN cardinality(v_keys) = v_count;
                        END IF;
                    END LOOP;
                    v_total := v_total + v_looked;
                    EXIT WHEN cardinality(v_keys) = v_count OR v_looked < v_count OR v_total >= 20000;
                END LOOP;
            END IF;

            IF s.breadth > 0 AND cardinality(v_keys) > 0 THEN
                v_unseen := unseen_of(s.service, v_key_orgs, v_resources, p_now);
                IF cardinality(v_unseen) > 0 THEN
                    v_left := breadth_take(s.service, s.breadth, cardinality(v_unseen), p_now);
                    v_unseen := unseen_of(s.service, v_key_orgs, v_resources, p_now);
                    IF cardinality(v_unseen) > v_left THEN
                        -- As far as it may go; the cursor stands there.
                        v_at := array_position(v_resources, v_unseen[v_left + 1]) - 1;
                        IF v_at = 0 THEN
                            v_reason := 18;
                        ELSE
                            v_xact := v_xacts[v_at];
                            v_key := v_keys[v_at];
                        END IF;
                        v_keys := v_keys[:v_at];
                        v_key_orgs := v_key_orgs[:v_at];
                        v_resources := v_resources[:v_at];
                    END IF;
                END IF;
                PERFORM note_seen(v_key_orgs, array_fill(s.service, ARRAY[cardinality(v_keys)]), v_resources, p_now)
                  WHERE cardinality(v_keys) > 0;
            END IF;
        END IF;

        v_verdict := release_code(v_reason);
        v_why := release_why(v_reason);
        IF v_walk AND v_reason = 0 THEN
            v_cursor := int8send(v_xact) || uuid_send(v_key) || v_bind;
        END IF;
        INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, client, channel_id, resource_id, key_ids,
                             request_id, purpose, matter_id, detail)
        VALUES (coalesce(v_org, nobody()), p_now, p_op, v_verdict, p_action,
            CASE WHEN v_channel.subject IS NOT NULL THEN 'service' END, v_channel.subject, v_channel.client, p_channel,
            r.resource_id, CASE WHEN p_action = 'resource.keys' AND cardinality(v_keys) > 0 THEN v_keys END, p_request,
            CASE WHEN v_reason <> 4 THEN v_purpose END, v_matter,
            nullif(jsonb_strip_nulls(jsonb_build_object('why', v_why, 'cursor', encode(v_cursor, 'hex'), 'parts',
                CASE WHEN p_action <> 'resource.keys' AND cardinality(v_keys) > 0 THEN
                    (SELECT jsonb_agg(CASE WHEN v_org IS NULL THEN jsonb_build_object('org', t.org, 'resource', t.resource)
                                           ELSE jsonb_build_object('resource', t.resource) END ORDER BY t.first)
                       FROM (SELECT u.org, u.resource, min(u.n) AS first
                               FROM unnest(v_key_orgs, v_resources) WITH ORDINALITY AS u(org, resource, n) GROUP BY 1, 2) t)
                END)), '{}'))
        ON CONFLICT (org_id, op_id) DO NOTHING;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'this operation was done in the meantime' USING ERRCODE = 'serialization_failure';
        END IF;
        IF p_action <> 'resource.keys' AND cardinality(v_keys) > 0 THEN
            -- Each resource in its organisation's log; the entry above says which.
            INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, client, channel_id, resource_id, key_ids,
                                 request_id, purpose, matter_id)
            SELECT t.org, p_now, part_op(p_op, t.resource), 0, p_action, 'service', s.service, v_channel.client, p_channel,
                   t.resource, t.keys, p_request, v_purpose, v_matter
              FROM (SELECT u.org, u.resource, array_agg(u.key ORDER BY u.n) AS keys, min(u.n) AS first
                      FROM unnest(v_key_orgs, v_resources, v_keys) WITH ORDINALITY AS u(org, resource, key, n)
                     GROUP BY u.org, u.resource) t
             ORDER BY t.first;
        END IF;
    END IF;

    IF v_verdict = 0 AND cardinality(v_keys) > 0 THEN
        -- A key destroyed since is not in the answer, though it is in the record: the safe side.
        RETURN QUERY
            SELECT p_n, 0, k.key_id, k.blob, k.generation, w.root_id, w.wrapped, k.org_id, k.creator, k.client_id,
                   ms(k.created_at), ms(k.expires_at), ms(k.bound_at), k.resource_id, s.service, v_purpose, v_matter,
                   s.public_key, v_cursor, NULL::text
              FROM unnest(v_key_orgs, v_keys) AS u(org, id)
              JOIN content_keys k ON k.org_id = u.org AND k.key_id = u.id AND k.blob IS NOT NULL
              JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
             ORDER BY CASE WHEN v_walk THEN k.bound_xact END, CASE WHEN NOT v_walk THEN k.bound_at END, k.key_id;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    RETURN NEXT ROW(p_n, v_verdict, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, s.service,
        v_purpose, v_matter, NULL, v_cursor, v_why)::service_released;
END $$;
COMMENT ON FUNCTION service_walk IS 'service_release for one request that may have many keys';

-- What only some requests need is asked by functions of its own: each table in a statement costs all calls of it time.
CREATE FUNCTION seen_at(p_org uuid, p_service text, p_resource uuid) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT s.seen_at FROM service_seen s
             WHERE s.org_id = p_org AND s.service = p_service AND s.resource_id = p_resource);
END $$;
COMMENT ON FUNCTION seen_at IS 'When a service with a breadth last got a key of this resource, to five minutes';

CREATE FUNCTION note_seen(p_orgs uuid[], p_services text[], p_resources uuid[], p_now timestamptz) RETURNS integer
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO service_seen AS s (org_id, service, resource_id, seen_at)
    SELECT DISTINCT u.org, u.service, u.resource, p_now FROM unnest(p_orgs, p_services, p_resources) AS u(org, service, resource)
     ORDER BY u.org, u.service, u.resource
        ON CONFLICT (org_id, service, resource_id) DO UPDATE SET seen_at = excluded.seen_at
           WHERE s.seen_at <= excluded.seen_at - interval '5 minutes';
    RETURN cardinality(p_orgs);
END $$;
COMMENT ON FUNCTION note_seen IS 'Notes that services with a breadth get keys of these resources';

CREATE FUNCTION dlp_since(p_org uuid, p_now timestamptz) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN p_now - setting(p_org, 'dlp.age')::bigint * interval '1 millisecond';
END $$;
COMMENT ON FUNCTION dlp_since IS 'The oldest binding that dlp may see';

CREATE FUNCTION service_key(p_service text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT s.public_key FROM services s WHERE s.org_id = nobody() AND s.service = p_service);
END $$;
COMMENT ON FUNCTION service_key IS 'What a service''s keys are to be encrypted to; NULL: they are not';

CREATE FUNCTION matter_held(p_org uuid, p_matter uuid, p_now timestamptz) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT matter_holds(m, p_now) FROM matters m WHERE m.org_id = p_org AND m.matter_id = p_matter);
END $$;
COMMENT ON FUNCTION matter_held IS 'matter_holds, of a matter by its id';

CREATE FUNCTION matter_reason(p_org uuid, p_matter uuid, p_resource uuid, p_kind text, p_bound timestamptz) RETURNS integer
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT CASE WHEN (p_kind = ANY (m.kinds) AND EXISTS (
                                  SELECT FROM authorizations a
                                   WHERE a.org_id = p_org AND a.resource_id = p_resource AND a.kind = 'user'
                                     AND a.grantee = ANY (m.custodians))) IS NOT TRUE THEN 13
                        WHEN (p_bound >= m.window_from AND p_bound < m.window_to) IS NOT TRUE THEN 14
                        ELSE 0 END
              FROM matters m WHERE m.org_id = p_org AND m.matter_id = p_matter);
END $$;
COMMENT ON FUNCTION matter_reason IS 'Why a matter does not cover this key; 0: it does';

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
        cardinality(before), cardinality(counts), cardinality(cursors)), policy_share();
    IF cardinality(ops) = 0 THEN
        RETURN;
    END IF;
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
            SELECT d.channel,
                   c.channel_id IS NOT NULL AND NOT EXISTS (
                       -- As certificate_revoked, whose call would cost as much as all the rest of this.
                       SELECT FROM revoked_certificates r
                        WHERE r.org_id = nobody() AND r.serial = c.cert_serial
                          AND r.issuer IN (c.cert_issuer, '\x0000000000000000000000000000000000000000000000000000000000000000'))
                       AS open,
                   c.client, s.service, s.state, s.purposes, s.kinds, s.breadth, s.public_key
              FROM (SELECT DISTINCT u.channel FROM unnest(channels) AS u(channel)) d
              LEFT JOIN LATERAL (
                   SELECT x.channel_id, x.subject, x.client, x.cert_issuer, x.cert_serial
                     -- By its key alone: there is an index by time as well.
                     FROM (SELECT * FROM channels y WHERE y.org_id = nobody() AND y.channel_id = d.channel LIMIT 1) x
                    WHERE x.kind = 'service' AND x.expires_at > v_now) c ON true
              LEFT JOIN LATERAL (
                   SELECT x.service, x.state, x.purposes, x.kinds, x.breadth, x.public_key FROM services x
                    WHERE x.org_id = nobody() AND x.service = c.subject LIMIT 1) s ON true
        ), found AS MATERIALIZED (
            SELECT i.n::integer AS n, i.op, i.channel, i.request, i.key, i.purpose,
                   CASE WHEN i.purpose = 'ediscovery' THEN i.matter END AS matter,
                   w.service, k.org_id, k.key_id, k.blob, k.generation, k.creator, k.client_id, k.created_at, k.expires_at, k.bound_at,
                   k.resource_id, r.kind,
                   -- No look at it for who has no breadth.
                   w.breadth > 0 AS limited,
                   CASE WHEN w.breadth > 0 THEN seen_at(k.org_id, w.service, k.resource_id) END AS seen_at,
                   r.destroyed_at IS NOT NULL OR r.expires_at <= v_now OR k.blob IS NULL AS gone
              FROM unnest(ops, channels, requests, targets, purposes, matters) WITH ORDINALITY
                   AS i(op, channel, request, key, purpose, matter, n)
              LEFT JOIN who w ON w.channel = i.channel
              LEFT JOIN LATERAL (
                   SELECT x.org_id, x.key_id, x.blob, x.generation, x.creator, x.client_id, x.created_at, x.expires_at, x.bound_at,
                          x.resource_id
                     FROM content_keys x WHERE x.key_id = i.key LIMIT 1) k ON true
              LEFT JOIN LATERAL (
                   SELECT x.kind, x.destroyed_at, x.expires_at FROM resources x
                    WHERE x.org_id = k.org_id AND x.resource_id = k.resource_id LIMIT 1) r ON true
        ), rules AS MATERIALIZED (
            SELECT d.org_id, d.service, d.purpose, o.state, g.service IS NOT NULL AS served, p.enabled,
                   CASE WHEN d.purpose = 'dlp' THEN dlp_since(d.org_id, v_now) END AS since
              FROM (SELECT DISTINCT f.org_id, f.service, f.purpose FROM found f
                     WHERE f.org_id IS NOT NULL AND f.service IS NOT NULL AND f.purpose IS NOT NULL) d
             CROSS JOIN LATERAL (SELECT x.state FROM organisations x WHERE x.org_id = d.org_id LIMIT 1) o
              LEFT JOIN LATERAL (
                   SELECT x.service FROM service_orgs x WHERE x.org_id = d.org_id AND x.service = d.service LIMIT 1) g ON true
              LEFT JOIN LATERAL (
                   SELECT x.enabled FROM purposes x WHERE x.org_id = d.org_id AND x.purpose = d.purpose LIMIT 1) p ON true
        ), held AS MATERIALIZED (
            SELECT d.org_id, d.matter, matter_held(d.org_id, d.matter, v_now) AS holds
              FROM (SELECT DISTINCT f.org_id, f.matter FROM found f WHERE f.matter IS NOT NULL AND f.org_id IS NOT NULL) d
        ), judged AS MATERIALIZED (
            SELECT f.n, f.op, f.channel, f.request, f.key, f.purpose, f.matter, f.service, w.client, w.public_key, f.org_id,
                   f.key_id, f.blob, f.generation, f.creator, f.client_id, f.created_at, f.expires_at, f.bound_at, f.resource_id,
                   f.limited AND coalesce(f.seen_at <= v_now - interval '65 minutes', true) AS unseen,
                   f.limited AND coalesce(f.seen_at <= v_now - interval '5 minutes', true) AS note,
                   CASE WHEN w.open IS NOT TRUE THEN 1
                        WHEN w.state IS DISTINCT FROM 'active' THEN 2
                        WHEN f.purpose IS NULL THEN 3
                        WHEN f.purpose <> ALL (w.purposes) THEN
                            CASE WHEN f.purpose IN ('indexing', 'dlp', 'ediscovery', 'archival', 'transcoding') THEN 5 ELSE 4 END
                        WHEN f.key_id IS NULL THEN 6
                        WHEN u.served IS NOT TRUE THEN 7
                        WHEN u.enabled IS NOT TRUE THEN 8
                        WHEN f.kind <> ALL (w.kinds) THEN 9
                        WHEN u.state <> 'active' THEN 10
                        WHEN f.purpose = 'ediscovery' AND f.matter IS NULL THEN 11
                        WHEN f.purpose = 'ediscovery' AND h.holds IS NOT TRUE THEN 12
                        WHEN f.purpose = 'ediscovery' AND c.reason <> 0 THEN c.reason
                        WHEN f.purpose = 'dlp' AND f.bound_at < u.since THEN 15
                        WHEN f.resource_id IS NULL THEN 16
                        WHEN f.gone THEN 17
                        WHEN v_over AND f.limited AND coalesce(f.seen_at <= v_now - interval '65 minutes', true) THEN 18
                        ELSE 0 END AS reason
              FROM found f
              LEFT JOIN who w ON w.channel = f.channel
              LEFT JOIN rules u ON u.org_id = f.org_id AND u.service = f.service AND u.purpose = f.purpose
              LEFT JOIN held h ON h.org_id = f.org_id AND h.matter = f.matter
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN h.holds THEN matter_reason(f.org_id, f.matter, f.resource_id, f.kind, f.bound_at) END AS reason
                   OFFSET 0) c
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
        ), noted AS (
            SELECT note_seen(array_agg(j.org_id), array_agg(j.service), array_agg(j.resource_id), v_now) AS n FROM judged j
             WHERE j.reason = 0 AND j.note AND (SELECT g.yes FROM go g) HAVING count(*) > 0
        ), answered AS (
            -- What was run before is answered as its record says, whatever has changed since.
            SELECT j.n, j.org_id, j.key_id, j.blob, j.generation, j.creator, j.client_id, j.created_at, j.expires_at,
                   j.bound_at, j.resource_id, j.purpose, j.matter,
                   -- Its channel may be gone by now, but not whom it was and how he gets his keys.
                   CASE WHEN (x.e).op_id IS NULL THEN j.service ELSE (x.e).subject END AS service,
                   CASE WHEN (x.e).op_id IS NULL THEN j.public_key
                        ELSE service_key((x.e).subject)
                   END AS public_key,
                   CASE WHEN (x.e).op_id IS NULL THEN release_code(j.reason)
                        WHEN (x.e).verdict = 0 AND j.blob IS NULL THEN 410001 ELSE (x.e).verdict END AS verdict,
                   CASE WHEN (x.e).op_id IS NULL THEN release_why(j.reason) ELSE (x.e).detail ->> 'why' END AS why
              FROM judged j
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN (SELECT count(*) FROM recorded) < cardinality(ops)
                               THEN first_run(coalesce(j.org_id, nobody()), j.op, 'key.get', j.channel, NULL, ARRAY[j.key])
                          END AS e OFFSET 0) x
             WHERE (SELECT g.yes FROM go g) AND (SELECT count(*) FROM noted) >= 0    -- what nobody reads is not run
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
            SELECT s.service, s.breadth, count(DISTINCT (k.org_id, k.resource_id))::integer AS unseen
              FROM unnest(channels, targets) AS i(channel, key)
              JOIN channels c ON c.org_id = nobody() AND c.channel_id = i.channel AND c.kind = 'service'
              JOIN services s ON s.org_id = nobody() AND s.service = c.subject AND s.breadth > 0
              JOIN content_keys k ON k.key_id = i.key AND k.resource_id IS NOT NULL
             WHERE NOT EXISTS (SELECT FROM service_seen e
                                WHERE e.org_id = k.org_id AND e.service = s.service AND e.resource_id = k.resource_id
                                  AND e.seen_at > v_now - interval '65 minutes')
             GROUP BY s.service, s.breadth ORDER BY s.service
        LOOP
            v_over := breadth_take(v_limited.service, v_limited.breadth, v_limited.unseen, v_now) < v_limited.unseen OR v_over;
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

-- ---------------------------------------------------------------------------------------------------- users and officers
-- As before, but: services are refused; an officer may need a matter; a resource has a kind.

DROP FUNCTION judge_resource(uuid, uuid, text, text, text, boolean, timestamptz);
CREATE FUNCTION judge_resource(p_org uuid, p_resource uuid, p_kind text, p_subject text, p_behalf text,
    p_officer boolean, p_now timestamptz, OUT verdict integer, OUT path uuid[], OUT expires_at timestamptz,
    OUT matter uuid, OUT kind text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_behalf text := nullif(p_behalf, p_subject);
    v_resource record;
BEGIN
    verdict := 0;
    IF v_behalf IS NOT NULL AND p_officer IS NOT TRUE THEN
        verdict := 403004;
        RETURN;
    END IF;
    SELECT r.resource_id AS id, r.expires_at, r.destroyed_at, r.kind INTO v_resource
      FROM resources r WHERE r.org_id = p_org AND r.resource_id = p_resource;
    path := path_to(p_org, p_resource, CASE WHEN v_behalf IS NULL THEN p_kind ELSE 'user' END,
        coalesce(v_behalf, p_subject), p_now);
    IF path IS NULL THEN
        verdict := CASE WHEN NOT EXISTS (SELECT FROM resources r WHERE r.resource_id = p_resource) THEN 404001
                        WHEN v_resource.id IS NULL AND v_behalf IS NOT NULL THEN 403004
                        ELSE 403001 END;
        RETURN;
    END IF;
    expires_at := v_resource.expires_at;
    kind := v_resource.kind;
    IF v_behalf IS NOT NULL THEN
        matter := officer_matter(p_org, v_behalf, kind, NULL, p_now);
    END IF;
    IF matter = nobody() THEN
        verdict := 403007;
    ELSIF v_resource.destroyed_at IS NOT NULL OR v_resource.expires_at <= p_now THEN
        verdict := 410001;
    END IF;
END $$;
COMMENT ON FUNCTION judge_resource IS 'May this principal have to do with this resource?  matter: under which an officer may, NULL: needs none';

CREATE OR REPLACE FUNCTION keys_create(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
    generations integer[], key_items integer[], key_ids uuid[], key_blobs bytea[], unbound_ms bigint)
RETURNS TABLE (n integer, verdict integer, created bigint, expires bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_until timestamptz(3) := v_now + unbound_ms * interval '1 millisecond';
    v_verdicts integer[];
    v_kinds text[];
    v_subjects text[];
    v_persons uuid[];
    v_known text[];             -- the channels' clients, and their pseudonyms
    v_pseudonyms uuid[];
    v_times timestamptz[];      -- when it was done before; NULL: new
    v_new integer;
    v_written integer;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(generations));
    PERFORM check_lengths(cardinality(key_items), cardinality(key_ids), cardinality(key_blobs));
    IF unbound_ms IS NULL OR unbound_ms <= 0 THEN
        RAISE EXCEPTION 'unbound_ms must be positive' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT array_agg(j.verdict ORDER BY j.n), array_agg(j.kind ORDER BY j.n), array_agg(j.subject ORDER BY j.n),
           array_agg(j.person ORDER BY j.n), array_agg(j.client_id ORDER BY j.n), array_agg(j.client ORDER BY j.n),
           array_agg(j.at ORDER BY j.n), count(*) FILTER (WHERE j.at IS NULL AND j.verdict >= 0)
      INTO v_verdicts, v_kinds, v_subjects, v_persons, v_known, v_pseudonyms, v_times, v_new
      FROM (SELECT i.n, c.kind, c.subject, c.person, c.client_id, c.client, e.at,
                   CASE WHEN e.op_id IS NOT NULL THEN (first_run(i.org, i.op, 'key.create', i.channel)).verdict
                        WHEN c.channel_id IS NULL THEN 499001
                        WHEN c.kind = 'service' THEN 403005
                        WHEN o.org_id IS NULL THEN 401001
                        WHEN o.state <> 'active' OR c.kind <> 'user' THEN 403001
                        WHEN o.generation IS DISTINCT FROM i.generation THEN -1
                        ELSE 0 END AS verdict
              FROM unnest(ops, orgs, channels, generations) WITH ORDINALITY AS i(op, org, channel, generation, n)
              LEFT JOIN channels c ON c.org_id = i.org AND c.channel_id = i.channel AND c.expires_at > v_now
              LEFT JOIN organisations o ON o.org_id = i.org
              LEFT JOIN entries e ON e.org_id = i.org AND e.op_id = i.op) j;

    IF v_new > 0 THEN
        INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, client_id, person, client,
                             channel_id, key_ids, request_id)
        SELECT i.org, v_now, i.op, i.verdict, 'key.create', i.kind,
               CASE WHEN i.person IS NULL THEN i.subject END, CASE WHEN i.client IS DISTINCT FROM i.known OR i.pseudonym IS NULL THEN i.client END,
               i.person, CASE WHEN i.client = i.known THEN i.pseudonym END, i.channel,
               CASE WHEN i.verdict = 0 THEN
                   (SELECT array_agg(k.id ORDER BY k.id) FROM unnest(key_items, key_ids) AS k(item, id) WHERE k.item = i.n)
               END, i.request
          FROM unnest(ops, orgs, channels, requests, clients, v_verdicts, v_kinds, v_subjects, v_persons, v_known,
                      v_pseudonyms, v_times) WITH ORDINALITY
               AS i(op, org, channel, request, client, verdict, kind, subject, person, known, pseudonym, done, n)
         WHERE i.done IS NULL AND i.verdict >= 0
         ORDER BY i.n
            ON CONFLICT (org_id, op_id) DO NOTHING;
        GET DIAGNOSTICS v_written = ROW_COUNT;
        IF v_written < v_new THEN
            RAISE EXCEPTION 'this operation was done in the meantime' USING ERRCODE = 'serialization_failure';
        END IF;

        INSERT INTO content_keys (org_id, key_id, generation, blob, creator, client_id, created_at, expires_at)
        SELECT orgs[k.item], k.id, generations[k.item], k.blob, v_subjects[k.item], coalesce(clients[k.item], ''),
               v_now, v_until
          FROM unnest(key_items, key_ids, key_blobs) AS k(item, id, blob)
         WHERE v_verdicts[k.item] = 0 AND v_times[k.item] IS NULL;
    END IF;
    IF cardinality(array_remove(v_times, NULL)) > 0 THEN
        PERFORM touch_fence();
    END IF;

    RETURN QUERY
        SELECT i.n::integer, i.verdict,
               CASE WHEN i.verdict = 0 THEN ms(coalesce(i.done, v_now)) END,
               CASE WHEN i.verdict = 0 THEN ms(coalesce(i.done, v_now)) + unbound_ms END
          FROM unnest(v_verdicts, v_times) WITH ORDINALITY AS i(verdict, done, n)
         ORDER BY i.n;
END $$;

CREATE OR REPLACE FUNCTION keys_release(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], keys uuid[],
    behalf text[], officers boolean[])
RETURNS SETOF released
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(keys), cardinality(behalf), cardinality(officers));
    IF cardinality(array_remove(behalf, NULL)) > 0 THEN
        PERFORM policy_share();     -- officers may need a matter
    END IF;
    RETURN QUERY
    WITH found AS (
        SELECT i.n::integer AS n, i.op, i.org, i.channel, i.request, i.client, i.key, i.officer,
               c.channel_id IS NOT NULL AS open, o.state, c.kind, c.subject, c.person,
               CASE WHEN c.client_id = i.client THEN c.client END AS client_pseudonym,
               nullif(i.behalf, c.subject) AS behalf,
               coalesce(i.behalf, c.subject) AS who,
               k.key_id, k.blob, k.generation, k.creator, k.client_id, k.created_at, k.expires_at, k.bound_at,
               k.resource_id, r.kind AS resource_kind,
               r.destroyed_at IS NOT NULL OR r.expires_at <= v_now OR k.blob IS NULL AS gone
          FROM unnest(ops, orgs, channels, requests, clients, keys, behalf, officers) WITH ORDINALITY
               AS i(op, org, channel, request, client, key, behalf, officer, n)
          LEFT JOIN channels c ON c.org_id = i.org AND c.channel_id = i.channel AND c.expires_at > v_now
          LEFT JOIN organisations o ON o.org_id = i.org
          LEFT JOIN content_keys k ON k.org_id = i.org AND k.key_id = i.key
          LEFT JOIN resources r ON r.org_id = k.org_id AND r.resource_id = k.resource_id
    ), judged AS (
        SELECT f.*, p.path, p.matter,
               CASE WHEN NOT f.open THEN 499001
                    WHEN f.kind = 'service' THEN 403005
                    WHEN f.state IS NULL THEN 401001
                    WHEN f.state <> 'active' THEN 403001
                    WHEN f.behalf IS NOT NULL AND f.officer IS NOT TRUE THEN 403004
                    -- Unbound: its creator with the same client, while it may be bound.
                    WHEN f.resource_id IS NULL AND f.creator = f.who AND f.kind = 'user' THEN
                        CASE WHEN f.behalf IS NULL AND f.client_id IS DISTINCT FROM f.client THEN 403003
                             WHEN f.expires_at <= v_now THEN 404001
                             WHEN p.matter = nobody() THEN 403007
                             WHEN f.gone THEN 410001
                             ELSE 0 END
                    -- Unknown and not authorised take one way, so that they take one time.  A resource's id is no key's,
                    -- though a path to it was found.
                    WHEN p.path IS NULL OR f.key_id IS NULL THEN
                        CASE WHEN NOT EXISTS (SELECT FROM content_keys x WHERE x.key_id = f.key) THEN 404001
                             WHEN f.key_id IS NULL AND f.behalf IS NOT NULL THEN 403004
                             WHEN f.key_id IS NOT NULL AND f.resource_id IS NULL AND f.kind = 'user' THEN 403002
                             ELSE 403001 END
                    WHEN p.matter = nobody() THEN 403007
                    WHEN f.gone THEN 410001
                    ELSE 0 END AS verdict
          FROM found f
          LEFT JOIN authorizations d
            ON f.kind = 'user' AND d.org_id = f.org AND d.resource_id = coalesce(f.resource_id, f.key)
           AND d.kind = 'user' AND d.grantee = f.who
         CROSS JOIN LATERAL (
               -- Searched in vain for another's unbound key too: it takes the time of one that does not exist.
               SELECT CASE WHEN NOT f.open OR (f.resource_id IS NULL AND f.creator = f.who AND f.kind = 'user') THEN NULL
                           WHEN d.authorization_id IS NOT NULL THEN '{}'
                           WHEN f.kind = 'user' THEN nested_path(f.org, coalesce(f.resource_id, f.key), f.who, v_now)
                           ELSE path_to(f.org, coalesce(f.resource_id, f.key), f.kind, f.subject, v_now)
                      END AS path,
                      CASE WHEN f.behalf IS NOT NULL AND f.officer AND f.key_id IS NOT NULL
                           THEN officer_matter(f.org, f.who, f.resource_kind, f.bound_at, v_now) END AS matter OFFSET 0) p
    ), recorded AS (
        -- With pseudonyms from the channel's row, so that the trigger has nothing to do.
        INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, on_behalf, client_id, person, client,
                             channel_id, resource_id, key_ids, path, request_id, matter_id, detail)
        SELECT j.org, v_now, j.op, j.verdict, 'key.get', j.kind, CASE WHEN j.person IS NULL THEN j.subject END, j.behalf,
               CASE WHEN j.client_pseudonym IS NULL THEN j.client END, j.person, j.client_pseudonym, j.channel,
               j.resource_id, ARRAY[j.key], j.path, j.request, CASE WHEN j.verdict = 0 THEN j.matter END,
               CASE WHEN j.verdict = 403007 THEN jsonb_build_object('why', officer_why()) END
          FROM judged j
         ORDER BY j.n
            ON CONFLICT (org_id, op_id) DO NOTHING
        RETURNING 1
    ), fenced AS (
        UPDATE fence SET touched = touched + 1
         WHERE org_id = nobody() AND (SELECT count(*) FROM recorded) < cardinality(ops)
    ), answered AS (
        -- What was run before is answered as its record says, whatever has changed since.
        SELECT j.n, j.org, j.key_id, j.blob, j.generation, j.creator, j.client_id, j.created_at, j.expires_at, j.bound_at,
               j.resource_id,
               CASE WHEN x.said = 0 AND j.blob IS NULL THEN 410001 ELSE x.said END AS verdict
          FROM judged j
         CROSS JOIN LATERAL (
               SELECT CASE WHEN (SELECT count(*) FROM recorded) = cardinality(ops) THEN j.verdict
                           ELSE (first_run(j.org, j.op, 'key.get', j.channel, NULL, ARRAY[j.key])).verdict
                      END AS said OFFSET 0) x
    )
    SELECT j.n, j.verdict, w.key_id, w.blob, w.generation, w.root_id, w.wrapped, w.org_id, w.creator, w.client_id,
           ms(w.created_at), ms(w.expires_at), ms(w.bound_at), w.resource_id
      FROM answered j
      LEFT JOIN LATERAL (
           SELECT j.key_id, j.blob, j.generation, x.root_id, x.wrapped, x.org_id, j.creator, j.client_id, j.created_at,
                  j.expires_at, j.bound_at, j.resource_id
             FROM wrapping_keys x
            WHERE x.org_id = j.org AND x.generation = j.generation AND j.verdict = 0) w ON true
     ORDER BY j.n;
END $$;

CREATE OR REPLACE FUNCTION resource_keys(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
    resources uuid[], after bigint[], before bigint[], counts integer[], behalf text[], officers boolean[],
    max_keys integer)
RETURNS SETOF released
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_caller record;
    v_judged record;
    v_entry entries;
    v_verdict integer;
    v_path uuid[];
    v_keys uuid[];
    v_matter matters;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(resources), cardinality(after), cardinality(before), cardinality(counts),
        cardinality(behalf), cardinality(officers));
    IF cardinality(array_remove(behalf, NULL)) > 0 THEN
        PERFORM policy_share();
    END IF;
    FOR i IN 1 .. cardinality(ops) LOOP
        v_path := NULL;
        v_keys := NULL;
        v_matter := NULL;
        v_entry := first_run(orgs[i], ops[i], 'resource.keys', channels[i], resources[i]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            v_verdict := v_entry.verdict;
            v_keys := v_entry.key_ids;
        ELSE
            SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
            v_verdict := v_caller.verdict;
            IF v_verdict = 0 THEN
                SELECT * INTO v_judged FROM judge_resource(orgs[i], resources[i], v_caller.kind, v_caller.subject,
                    behalf[i], officers[i], v_now);
                v_verdict := v_judged.verdict;
                v_path := v_judged.path;
            END IF;
            IF v_verdict = 0 THEN
                IF v_judged.matter IS NOT NULL THEN
                    -- Of those that cover the resource rather one whose time has keys of it.
                    SELECT m.* INTO STRICT v_matter FROM matters m
                     WHERE m.org_id = orgs[i]
                       AND m.matter_id = officer_matter(orgs[i], behalf[i], v_judged.kind, NULL, v_now, resources[i],
                               ms_to_time(after[i]), ms_to_time(before[i]));
                END IF;
                -- One more than may be, to see that there are more.
                SELECT array_agg(x.key_id) INTO v_keys
                  FROM (SELECT k.key_id FROM content_keys k
                         WHERE k.org_id = orgs[i] AND k.resource_id = resources[i]
                           AND k.bound_at >= coalesce(ms_to_time(after[i]), '-infinity')
                           AND k.bound_at < coalesce(ms_to_time(before[i]), 'infinity')
                           AND (v_matter.matter_id IS NULL
                                OR (k.bound_at >= v_matter.window_from AND k.bound_at < v_matter.window_to))
                           AND k.blob IS NOT NULL
                         ORDER BY k.bound_at DESC, k.key_id DESC
                         LIMIT coalesce(counts[i], max_keys + 1)) x;
                IF cardinality(v_keys) > max_keys THEN
                    v_verdict := 413001;
                    v_keys := NULL;
                END IF;
            END IF;
            PERFORM record_entry(orgs[i], ops[i], 'resource.keys', v_verdict, v_caller.kind, v_caller.subject,
                nullif(behalf[i], v_caller.subject), clients[i], channels[i], resources[i], v_keys, v_path, requests[i],
                CASE WHEN v_verdict = 403007 THEN jsonb_build_object('why', officer_why()) END, NULL,
                CASE WHEN v_verdict = 0 THEN v_matter.matter_id END);
        END IF;
        IF v_verdict = 0 AND v_keys IS NOT NULL THEN
            -- A key swept since is not in the answer, though it is in the record: the safe side.
            RETURN QUERY
                SELECT i, 0, k.key_id, k.blob, k.generation, w.root_id, w.wrapped, k.org_id, k.creator, k.client_id,
                       ms(k.created_at), ms(k.expires_at), ms(k.bound_at), k.resource_id
                  FROM unnest(v_keys) AS u(id)
                  JOIN content_keys k ON k.org_id = orgs[i] AND k.key_id = u.id AND k.blob IS NOT NULL
                  JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
                 ORDER BY k.bound_at, k.key_id;
            CONTINUE WHEN FOUND;
        END IF;
        RETURN NEXT ROW(i, v_verdict, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::released;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION resource_json(p_org uuid, p_resource uuid) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT jsonb_build_object('resource', r.resource_id, 'kind', r.kind, 'created', ms(r.created_at), 'expires', ms(r.expires_at),
        'keys', coalesce((SELECT jsonb_agg(k.key_id ORDER BY k.bound_at, k.key_id) FROM content_keys k
                           WHERE k.org_id = r.org_id AND k.resource_id = r.resource_id AND k.blob IS NOT NULL), '[]'),
        'authorizations', coalesce((SELECT jsonb_agg(authorization_json(a, r.expires_at)
                                               ORDER BY a.created_at, a.authorization_id)
                                      FROM authorizations a
                                     WHERE a.org_id = r.org_id AND a.resource_id = r.resource_id), '[]'))
      FROM resources r WHERE r.org_id = p_org AND r.resource_id = p_resource);

CREATE OR REPLACE FUNCTION do_resource_create(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid := gen_random_uuid();
    v_until timestamptz(3) := c.at + (c.args ->> 'ttl_ms')::bigint * interval '1 millisecond';
    v_keys_until timestamptz(3) := c.at + nullif((c.args ->> 'bound_ms')::bigint, 0) * interval '1 millisecond';
    v_keys uuid[];
    v_key record;
    v_auths jsonb := coalesce(c.args -> 'auths', '[]');
    v_granted jsonb;
    v_found boolean;
    v_kind text := coalesce(c.args ->> 'kind', 'space');
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, NULL);
    END IF;
    IF v_kind NOT IN ('space', 'meeting', 'file', 'whiteboard', 'calendar') THEN
        RETURN refused(400002, 'kind is space, meeting, file, whiteboard or calendar', NULL);
    END IF;
    SELECT coalesce(array_agg(x.id::uuid ORDER BY x.n), '{}') INTO v_keys
      FROM jsonb_array_elements_text(coalesce(c.args -> 'keys', '[]')) WITH ORDINALITY AS x(id, n);
    FOR i IN 1 .. cardinality(v_keys) LOOP
        SELECT k.creator, k.client_id, k.resource_id, k.expires_at, k.destroyed_at INTO v_key
          FROM content_keys k WHERE k.org_id = c.org AND k.key_id = v_keys[i];
        IF NOT FOUND THEN
            v_found := EXISTS (SELECT FROM content_keys k WHERE k.key_id = v_keys[i]);
            RETURN refused(CASE WHEN v_found THEN 403001 ELSE 404001 END,
                CASE WHEN NOT v_found THEN 'keyUris names a key that does not exist' END, NULL);
        ELSIF v_key.creator <> c.subject THEN
            RETURN refused(403002, 'keyUris names a key of another user', NULL);
        ELSIF v_key.client_id IS DISTINCT FROM coalesce(c.client, '') THEN
            RETURN refused(403003, 'keyUris names a key of another client', NULL);
        ELSIF v_key.resource_id IS NOT NULL THEN
            RETURN refused(409001, 'keyUris names a key that is bound already', NULL);
        ELSIF v_key.expires_at <= c.at THEN
            RETURN refused(404001, 'keyUris names a key that was not bound in time', NULL);
        ELSIF v_key.destroyed_at IS NOT NULL THEN
            RETURN refused(410001, 'keyUris names a key that was destroyed', NULL);
        ELSIF v_keys[i] = ANY (v_keys[:i - 1]) THEN
            RETURN refused(409001, 'keyUris names a key twice', NULL);
        END IF;
    END LOOP;
    IF NOT grantees_exist(c, v_auths) THEN
        RETURN refused(404001, 'an authId names a resource that does not exist', NULL);
    END IF;

    INSERT INTO resources (org_id, resource_id, creator, created_at, expires_at, kind)
    VALUES (c.org, v_id, c.subject, c.at, v_until, v_kind);
    v_granted := grant_all(c, v_id, v_until,
        jsonb_build_array(jsonb_build_object('kind', 'user', 'grantee', c.subject)) || v_auths,
        (c.args ->> 'anonymous')::integer);
    UPDATE content_keys k SET resource_id = v_id, bound_at = c.at, expires_at = v_keys_until
     WHERE k.org_id = c.org AND k.key_id = ANY (v_keys);
    RETURN ROW(0, jsonb_build_object('resource', v_id, 'kind', v_kind, 'created', ms(c.at), 'expires', ms(v_until),
        'keys', to_jsonb(v_keys), 'authorizations', v_granted), v_id, v_keys, '{}'::uuid[], NULL)::outcome;
END $$;

CREATE OR REPLACE FUNCTION each_item(p_action text, p_changes boolean, ops uuid[], orgs uuid[], channels uuid[], requests text[],
    clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_entry entries;
    v_caller record;
    v_again boolean;
    v_matter uuid;
    c call;
    o outcome;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(args));
    IF EXISTS (SELECT FROM unnest(args) AS a WHERE a ->> 'behalf' IS NOT NULL) THEN
        PERFORM policy_share();     -- officers may need a matter
    END IF;
    IF p_changes THEN
        -- All rows that the items contend for, in order: two calls that cross do not deadlock.
        PERFORM FROM resources r
          WHERE (r.org_id, r.resource_id) IN (
                SELECT i.org, coalesce(a.resource_id, (i.args ->> 'resource')::uuid)
                  FROM unnest(orgs, args) AS i(org, args)
                  LEFT JOIN authorizations a
                    ON a.org_id = i.org AND a.authorization_id = (i.args ->> 'authorization')::uuid)
          ORDER BY r.org_id, r.resource_id FOR NO KEY UPDATE;
        PERFORM FROM content_keys k
          WHERE (k.org_id, k.key_id) IN (
                SELECT i.org, x.id::uuid FROM unnest(orgs, args) AS i(org, args),
                       jsonb_array_elements_text(coalesce(i.args -> 'keys', '[]')) AS x(id))
          ORDER BY k.org_id, k.key_id FOR NO KEY UPDATE;
        PERFORM FROM kms.channels t
          WHERE (t.org_id, t.channel_id) IN (
                SELECT i.org, (i.args ->> 'channel')::uuid FROM unnest(orgs, args) AS i(org, args))
          ORDER BY t.org_id, t.channel_id FOR UPDATE;
    END IF;

    FOR i IN 1 .. cardinality(ops) LOOP
        v_entry := first_run(orgs[i], ops[i], p_action, channels[i]);
        v_again := v_entry.op_id IS NOT NULL;
        v_matter := NULL;
        n := i;
        IF v_again THEN
            PERFORM touch_fence();
            IF p_changes THEN
                verdict := v_entry.verdict;
                result := v_entry.detail;
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now, p_action = 'channel.delete');
        IF v_caller.verdict <> 0 THEN
            o := refused(v_caller.verdict, NULL, (args[i] ->> 'resource')::uuid);
        ELSE
            c := ROW(ops[i], orgs[i], channels[i], clients[i], v_caller.kind, v_caller.subject, args[i], v_now);
            CASE p_action
                WHEN 'resource.create' THEN o := do_resource_create(c);
                WHEN 'resource.get' THEN o := do_resource_get(c);
                WHEN 'authorization.create' THEN o := do_authorizations_create(c);
                WHEN 'authorization.list' THEN o := do_authorizations_list(c);
                WHEN 'authorization.delete' THEN o := do_authorizations_delete(c);
                WHEN 'channel.delete' THEN o := do_channel_delete(c);
                WHEN 'resource.releases' THEN o := do_resource_releases(c);
            END CASE;
            IF o.verdict = 403007 THEN
                o.result := jsonb_build_object('why', officer_why());
            ELSIF o.verdict = 0 AND o.behalf IS NOT NULL THEN
                v_matter := officer_matter(orgs[i], o.behalf, (SELECT r.kind FROM resources r
                    WHERE r.org_id = orgs[i] AND r.resource_id = o.resource), NULL, v_now);
            END IF;
        END IF;
        IF NOT v_again THEN
            PERFORM record_entry(orgs[i], ops[i], p_action, o.verdict, v_caller.kind, v_caller.subject, o.behalf,
                clients[i], channels[i], o.resource, o.keys, o.path, requests[i],
                CASE WHEN p_changes OR o.verdict <> 0 THEN o.result END, NULL, v_matter);
        END IF;
        verdict := o.verdict;
        result := o.result;
        RETURN NEXT;
    END LOOP;
END $$;

-- ---------------------------------------------------------------------------------------------------- the keeper
-- As before, for the installation too; and the sweeper knows proofs.

CREATE OR REPLACE FUNCTION wrapping_key_add(op uuid, org uuid, generation integer, root uuid, wrapped bytea, kcv bytea, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    v_current integer;      -- NULL: no such organisation
BEGIN
    IF org = nobody() THEN
        SELECT t.generation INTO v_current FROM installation t WHERE t.org_id = org FOR NO KEY UPDATE;
    ELSE
        SELECT o.generation INTO v_current FROM organisations o WHERE o.org_id = org FOR NO KEY UPDATE;
    END IF;
    SELECT * INTO v_before FROM done_before(CASE WHEN v_current IS NULL THEN nobody() ELSE org END, op, 'wrapping_key.add');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
    ELSIF v_current IS NULL THEN
        verdict := 404001;
        result := jsonb_build_object('why', 'no such organisation');
        PERFORM record_admin(nobody(), op, actor, 'wrapping_key.add', verdict, result);
    ELSIF generation IS DISTINCT FROM v_current + 1 THEN
        verdict := 409002;
        result := jsonb_build_object('why', 'not the next generation; another node was quicker', 'generation', v_current);
        PERFORM record_admin(org, op, actor, 'wrapping_key.add', verdict, result);
    ELSE
        INSERT INTO wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
        VALUES (org, generation, root, wrapped, kcv, v_now);
        IF org = nobody() THEN
            UPDATE installation t SET generation = v_current + 1 WHERE t.org_id = org;
        ELSE
            UPDATE organisations o SET generation = v_current + 1 WHERE o.org_id = org;
        END IF;
        verdict := 0;
        result := jsonb_build_object('generation', generation, 'root', root);
        PERFORM record_admin(org, op, actor, 'wrapping_key.add', 0, result);
    END IF;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION wrapping_keys_due(max_age_ms bigint, max_wraps bigint)
RETURNS TABLE (org uuid, org_name text, generation integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT o.org_id, o.name, o.generation
          FROM (SELECT x.org_id, x.name, x.generation FROM organisations x
                UNION ALL SELECT t.org_id, '', t.generation FROM installation t) o
          LEFT JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation
         WHERE o.generation = 0
            OR w.created_at <= clock_timestamp() - max_age_ms * interval '1 millisecond' OR w.wraps >= max_wraps
         ORDER BY o.name;
END $$;
COMMENT ON FUNCTION wrapping_keys_due IS
    'Whose current wrapping key is too old or was used too often; the installation (nil, "") is among them, at once while it has none';

CREATE OR REPLACE FUNCTION sweep(batch integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_channels integer;
    v_proofs integer;
    v_unbound integer;
    v_resources integer := 0;
    v_keys integer := 0;
    v_due record;
    v_destroyed uuid[];
    v_left boolean;
BEGIN
    IF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION 'batch must be positive' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One sweeper on all nodes; whoever comes second has nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('kms.sweep', 0)) THEN
        RETURN jsonb_build_object('channels', 0, 'unbound_keys', 0, 'resources', 0, 'keys', 0, 'proofs', 0);
    END IF;

    -- What is due is a CTE each time: a subquery with LIMIT and FOR UPDATE may be run again and again by a join, and then takes
    -- more than a batch.
    -- Channels ten minutes late, so that a slow answer still finds the channel that it goes to.
    WITH due AS MATERIALIZED (
        SELECT x.org_id, x.channel_id FROM channels x WHERE x.expires_at < v_now - interval '10 minutes'
         ORDER BY x.expires_at LIMIT batch FOR UPDATE SKIP LOCKED)
    DELETE FROM channels c USING due d WHERE c.org_id = d.org_id AND c.channel_id = d.channel_id;
    GET DIAGNOSTICS v_channels = ROW_COUNT;
    WITH due AS MATERIALIZED (
        SELECT x.org_id, x.jti_hash FROM service_proofs x WHERE x.expires_at < v_now
         ORDER BY x.expires_at LIMIT batch FOR UPDATE SKIP LOCKED)
    DELETE FROM service_proofs p USING due d WHERE p.org_id = d.org_id AND p.jti_hash = d.jti_hash;
    GET DIAGNOSTICS v_proofs = ROW_COUNT;
    WITH due AS MATERIALIZED (
        SELECT x.org_id, x.service, x.resource_id FROM service_seen x WHERE x.seen_at < v_now - interval '2 hours'
         ORDER BY x.seen_at LIMIT batch FOR UPDATE SKIP LOCKED)
    DELETE FROM service_seen s USING due d
     WHERE s.org_id = d.org_id AND s.service = d.service AND s.resource_id = d.resource_id;

    WITH due AS MATERIALIZED (
        SELECT x.org_id, x.key_id FROM content_keys x WHERE x.resource_id IS NULL AND x.expires_at <= v_now
         ORDER BY x.expires_at LIMIT batch FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM content_keys k USING due d WHERE k.org_id = d.org_id AND k.key_id = d.key_id
        RETURNING k.org_id, k.key_id
    ), recorded AS (
        INSERT INTO entries (org_id, op_id, verdict, action, kind, subject, key_ids)
        SELECT g.org_id, gen_random_uuid(), 0, 'key.expire', 'keeper', 'keeper', array_agg(g.key_id ORDER BY g.key_id)
          FROM gone g GROUP BY g.org_id
    )
    SELECT count(*) INTO v_unbound FROM gone;

    -- A resource with very many keys takes several rounds; it counts as destroyed since its time was over anyway.
    FOR v_due IN
        SELECT r.org_id, r.resource_id FROM resources r
         WHERE r.destroyed_at IS NULL AND r.expires_at IS NOT NULL AND r.expires_at <= v_now
         ORDER BY r.expires_at LIMIT batch FOR UPDATE SKIP LOCKED
    LOOP
        WITH due AS MATERIALIZED (
            SELECT x.key_id FROM content_keys x
             WHERE x.org_id = v_due.org_id AND x.resource_id = v_due.resource_id AND x.blob IS NOT NULL
             ORDER BY x.key_id LIMIT batch - v_keys FOR UPDATE
        ), gone AS (
            UPDATE content_keys k SET blob = NULL, destroyed_at = v_now
              FROM due d WHERE k.org_id = v_due.org_id AND k.key_id = d.key_id
            RETURNING k.key_id)
        SELECT array_agg(g.key_id ORDER BY g.key_id) INTO v_destroyed FROM gone g;
        v_keys := v_keys + coalesce(cardinality(v_destroyed), 0);
        v_left := EXISTS (SELECT FROM content_keys x WHERE x.org_id = v_due.org_id
                             AND x.resource_id = v_due.resource_id AND x.blob IS NOT NULL);
        IF NOT v_left THEN
            UPDATE resources r SET destroyed_at = v_now
             WHERE r.org_id = v_due.org_id AND r.resource_id = v_due.resource_id;
            v_resources := v_resources + 1;
        END IF;
        PERFORM record_admin(v_due.org_id, gen_random_uuid(), 'keeper', 'resource.destroy', 0,
            CASE WHEN v_left THEN jsonb_build_object('more', true) END, v_due.resource_id, v_destroyed);
        EXIT WHEN v_keys >= batch;
    END LOOP;
    RETURN jsonb_build_object('channels', v_channels, 'unbound_keys', v_unbound, 'resources', v_resources, 'keys', v_keys,
        'proofs', v_proofs);
END $$;

GRANT EXECUTE ON FUNCTION channels_open, service_channel_create, refusals_record, service_release TO kms_worker;
GRANT EXECUTE ON FUNCTION certificates_revoked TO kms_keeper;
GRANT USAGE ON TYPE service_released TO kms_worker;
