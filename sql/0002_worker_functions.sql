-- 0002_worker_functions.sql - what a worker may do to the state: one function for each thing.
--
-- sql/README.md has the interface.  Each function that the roles may call is SECURITY DEFINER, with its own search
-- path; the others are internal, run as whoever calls them and may be executed by the owner alone.
--
-- Locks are taken in one order everywhere, each sort by (organisation, id): resources, authorisations, keys, channels.
-- A statement after the lock sees what the one before it has waited for (READ COMMITTED), so judge after locking.
--
-- Planner settings: each call touches a few rows of large tables, so the one right plan is nested loops over indexes.
-- The functions say so instead of trusting estimates: a plan that was made while a table was small stays in a worker's
-- session for a long time.
--
-- Verdicts: 0 done; else the errorCode of protocol.md, section 6; -1 the wrapping key's generation is not current.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------- small parts

-- Inlined by the planner, hence without a search path of their own.
CREATE FUNCTION ms(t timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN (pg_catalog.date_part('epoch', t) * 1000)::bigint;
COMMENT ON FUNCTION ms IS 'Milliseconds since 1970';

CREATE FUNCTION ms_to_time(ms bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN pg_catalog.to_timestamp(ms / 1000.0::double precision);
COMMENT ON FUNCTION ms_to_time IS 'The other way';

CREATE FUNCTION nobody() RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '00000000-0000-0000-0000-000000000000'::uuid;
COMMENT ON FUNCTION nobody IS 'The nil organisation: the installation itself';

CREATE FUNCTION check_lengths(VARIADIC lengths integer[]) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    FOR i IN 1 .. cardinality(lengths) LOOP
        IF lengths[i] IS DISTINCT FROM lengths[1] OR lengths[i] IS NULL THEN
            RAISE EXCEPTION 'argument array % is NULL or not as long as the first', i
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION check_lengths IS 'All arrays have one length, or an error';

CREATE FUNCTION touch_fence() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE fence SET touched = touched + 1 WHERE org_id = nobody();
END $$;
COMMENT ON FUNCTION touch_fence IS 'Makes this transaction one that writes, so that its commit waits for the standbys';

CREATE FUNCTION record_entry(p_org uuid, p_op uuid, p_action text, p_verdict integer, p_kind text, p_subject text,
    p_behalf text, p_client text, p_channel uuid, p_resource uuid, p_keys uuid[], p_path uuid[], p_request text,
    p_detail jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO entries (org_id, op_id, verdict, action, kind, subject, on_behalf, client_id, channel_id, resource_id,
                         key_ids, path, request_id, detail)
    VALUES (p_org, p_op, p_verdict, p_action, p_kind, p_subject, p_behalf, p_client, p_channel, p_resource,
            p_keys, p_path, p_request, p_detail)
    ON CONFLICT (org_id, op_id) DO NOTHING;
    IF NOT FOUND THEN
        -- Its first run has committed since we looked: run again, then it is seen.
        RAISE EXCEPTION 'this operation was done in the meantime' USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
COMMENT ON FUNCTION record_entry IS 'Writes one entry';

-- Whoever could have an operation's answer for something else could have a key without its record.
CREATE FUNCTION first_run(p_org uuid, p_op uuid, p_action text, p_channel uuid, p_resource uuid DEFAULT NULL,
    p_keys uuid[] DEFAULT NULL)
RETURNS entries LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    e entries;
BEGIN
    SELECT x.* INTO e FROM entries x WHERE x.org_id = p_org AND x.op_id = p_op;
    IF FOUND AND (e.action <> p_action OR e.channel_id IS DISTINCT FROM p_channel
                  OR (p_resource IS NOT NULL AND e.resource_id IS DISTINCT FROM p_resource)
                  OR (p_keys IS NOT NULL AND e.key_ids IS DISTINCT FROM p_keys)) THEN
        RAISE EXCEPTION 'this operation id was used for something else' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN e;
END $$;
COMMENT ON FUNCTION first_run IS 'The entry of an operation''s first run, NULLs when there is none; volatile: it sees entries of the same statement';

-- ---------------------------------------------------------------------------------------------------- who is asking

CREATE FUNCTION caller(p_org uuid, p_channel uuid, p_now timestamptz,
    OUT verdict integer, OUT kind text, OUT subject text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_state text;
BEGIN
    SELECT c.kind, c.subject INTO kind, subject
      FROM channels c WHERE c.org_id = p_org AND c.channel_id = p_channel AND c.expires_at > p_now;
    IF NOT FOUND THEN
        verdict := 499001;
        RETURN;
    END IF;
    SELECT o.state INTO v_state FROM organisations o WHERE o.org_id = p_org;
    verdict := CASE WHEN v_state IS NULL THEN 401001 WHEN v_state <> 'active' THEN 403001 ELSE 0 END;
END $$;
COMMENT ON FUNCTION caller IS 'The checks that every request on a channel goes through, and whose channel it is';

CREATE FUNCTION nested_path(p_org uuid, p_resource uuid, p_subject text, p_now timestamptz)
RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    nodes uuid[] := ARRAY[p_resource];  -- all that were reached, nearest first
    parents integer[] := ARRAY[0];      -- for each, from which of them
    first integer := 1;                 -- of those reached last
    found uuid[];
    found_from integer[];
    at integer;
    path uuid[] := '{}';
BEGIN
    FOR depth IN 1 .. 8 LOOP
        -- What those reached last are open to.  A destroyed resource opens nothing.
        SELECT array_agg(x.node ORDER BY x.i, x.node), array_agg(x.i::integer ORDER BY x.i, x.node)
          INTO found, found_from
          FROM (SELECT DISTINCT ON (g.resource_id) g.resource_id AS node, l.i + first - 1 AS i
                  FROM unnest(nodes[first:]) WITH ORDINALITY AS l(node, i)
                  JOIN authorizations a
                    ON a.org_id = p_org AND a.resource_id = l.node AND a.kind = 'resource'
                  JOIN resources g
                    ON g.org_id = p_org AND g.resource_id = a.grantee::uuid
                   AND g.destroyed_at IS NULL AND (g.expires_at IS NULL OR g.expires_at > p_now)
                 WHERE g.resource_id <> ALL (nodes)
                 ORDER BY g.resource_id, l.i) x;
        first := cardinality(nodes) + 1;
        -- The second condition bounds what a stranger can make us search.
        IF found IS NULL OR first > 10000 THEN
            RETURN NULL;
        END IF;
        nodes := nodes || found;
        parents := parents || found_from;
        SELECT f.i + first - 1 INTO at
          FROM unnest(found) WITH ORDINALITY AS f(node, i)
          JOIN authorizations a
            ON a.org_id = p_org AND a.resource_id = f.node AND a.kind = 'user' AND a.grantee = p_subject
         ORDER BY f.i LIMIT 1;
        IF at IS NOT NULL THEN
            WHILE at > 1 LOOP
                path := nodes[at] || path;
                at := parents[at];
            END LOOP;
            RETURN path;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION nested_path IS
    'The resources between this one and the nearest that the user is on, breadth first; NULL: none within eight grants';

CREATE FUNCTION path_to(p_org uuid, p_resource uuid, p_kind text, p_subject text, p_now timestamptz)
RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_kind = 'anonymous' THEN
        PERFORM FROM authorizations a
          WHERE a.org_id = p_org AND a.authorization_id = p_subject::uuid AND a.kind = 'anonymous'
            AND a.resource_id = p_resource;
        RETURN CASE WHEN FOUND THEN '{}'::uuid[] END;
    END IF;
    PERFORM FROM authorizations a
      WHERE a.org_id = p_org AND a.resource_id = p_resource AND a.kind = 'user' AND a.grantee = p_subject;
    IF FOUND THEN
        RETURN '{}';
    END IF;
    RETURN nested_path(p_org, p_resource, p_subject, p_now);
END $$;
COMMENT ON FUNCTION path_to IS 'NULL: not authorised; {}: directly; else the resources passed through';

-- ---------------------------------------------------------------------------------------------------- channels

CREATE FUNCTION channel_create(ops uuid[], orgs uuid[], requests text[], clients text[], channels uuid[], kinds text[],
    subjects text[], blobs bytea[], generations integer[], lifetime_ms bigint)
RETURNS TABLE (n integer, verdict integer, created bigint, expires bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_until timestamptz(3);
    v_org uuid;
    v_resource uuid;
    v_entry entries;
    v_state record;
BEGIN
    PERFORM kms.check_lengths(cardinality(ops), cardinality(orgs), cardinality(requests), cardinality(clients),
        cardinality(channels), cardinality(kinds), cardinality(subjects), cardinality(blobs), cardinality(generations));
    IF lifetime_ms IS NULL OR lifetime_ms <= 0 THEN
        RAISE EXCEPTION 'lifetime_ms must be positive' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR i IN 1 .. cardinality(ops) LOOP
        n := i;
        verdict := 0;
        created := NULL;
        expires := NULL;
        v_org := orgs[i];
        v_until := v_now + lifetime_ms * interval '1 millisecond';
        v_resource := NULL;
        IF kinds[i] = 'anonymous' THEN
            -- The token names the organisation; the channel key is wrapped for it, so it must be the right one.
            SELECT a.org_id, a.resource_id, least(v_until, r.expires_at) INTO v_org, v_resource, v_until
              FROM authorizations a JOIN resources r ON r.org_id = a.org_id AND r.resource_id = a.resource_id
             WHERE a.authorization_id = subjects[i]::uuid AND a.kind = 'anonymous'
               AND (orgs[i] IS NULL OR a.org_id = orgs[i])
               AND r.destroyed_at IS NULL AND (r.expires_at IS NULL OR r.expires_at > v_now);
            IF NOT FOUND THEN
                v_org := orgs[i];
                verdict := 401001;
            END IF;
        ELSIF kinds[i] IS DISTINCT FROM 'user' THEN
            RAISE EXCEPTION 'unknown kind of principal' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        v_org := coalesce(v_org, nobody());

        v_entry := first_run(v_org, ops[i], 'channel.create', channels[i]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            verdict := v_entry.verdict;
            created := (v_entry.detail ->> 'created')::bigint;
            expires := (v_entry.detail ->> 'expires')::bigint;
            RETURN NEXT;
            CONTINUE;
        END IF;

        IF verdict = 0 THEN
            SELECT o.state, o.generation INTO v_state FROM organisations o WHERE o.org_id = v_org;
            IF NOT FOUND THEN
                verdict := 401001;
            ELSIF v_state.state <> 'active' THEN
                verdict := 403001;
            ELSIF v_state.generation IS DISTINCT FROM generations[i] THEN
                verdict := -1;
                RETURN NEXT;
                CONTINUE;
            ELSE
                created := ms(v_now);
                expires := ms(v_until);
                INSERT INTO kms.channels (org_id, channel_id, kind, subject, client_id, generation, blob, created_at,
                                          expires_at)
                VALUES (v_org, channels[i], kinds[i], subjects[i], coalesce(clients[i], ''), generations[i], blobs[i],
                        v_now, v_until);
            END IF;
        END IF;
        PERFORM record_entry(v_org, ops[i], 'channel.create', verdict, kinds[i], subjects[i], NULL, clients[i],
            channels[i], v_resource, NULL, NULL, requests[i],
            CASE WHEN verdict = 0 THEN jsonb_build_object('created', created, 'expires', expires) END);
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION channel_create IS 'Opens channels';

CREATE FUNCTION channels_open(ids uuid[])
RETURNS TABLE (n integer, found boolean, org uuid, org_name text, kind text, subject text, client text, blob bytea,
    generation integer, root uuid, wrapped bytea, expires bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
        SELECT i.n::integer, w.org_id IS NOT NULL, w.org_id, o.name, c.kind, c.subject, c.client_id, c.blob,
               w.generation, w.root_id, w.wrapped, ms(c.expires_at)
          FROM unnest(ids) WITH ORDINALITY AS i(id, n)
          LEFT JOIN (channels c JOIN organisations o ON o.org_id = c.org_id
                     JOIN wrapping_keys w ON w.org_id = c.org_id AND w.generation = c.generation)
            ON c.channel_id = i.id AND c.expires_at > v_now
         ORDER BY i.n;
END $$;
COMMENT ON FUNCTION channels_open IS 'What is needed to read messages on these channels, whosever they are';

CREATE FUNCTION channels_check(orgs uuid[], channels uuid[])
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
               LATERAL caller(i.org, i.channel, v_now) AS c
         ORDER BY i.n;
END $$;
COMMENT ON FUNCTION channels_check IS 'The common checks alone';

-- ---------------------------------------------------------------------------------------------------- keys

CREATE TYPE released AS (
    n integer, verdict integer, key uuid, blob bytea, generation integer, root uuid, wrapped bytea, org uuid,
    user_id text, client_id text, created bigint, expires bigint, bound bigint, resource uuid
);
COMMENT ON TYPE released IS 'A verdict, and for 0 the key and the wrapping key that opens it';

-- The new keys of all items go in by one statement.
CREATE FUNCTION keys_create(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
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
           array_agg(j.at ORDER BY j.n), count(*) FILTER (WHERE j.at IS NULL AND j.verdict >= 0)
      INTO v_verdicts, v_kinds, v_subjects, v_times, v_new
      FROM (SELECT i.n, c.kind, c.subject, e.at,
                   CASE WHEN e.op_id IS NOT NULL THEN (first_run(i.org, i.op, 'key.create', i.channel)).verdict
                        WHEN c.channel_id IS NULL THEN 499001
                        WHEN o.org_id IS NULL THEN 401001
                        WHEN o.state <> 'active' OR c.kind <> 'user' THEN 403001
                        WHEN o.generation IS DISTINCT FROM i.generation THEN -1
                        ELSE 0 END AS verdict
              FROM unnest(ops, orgs, channels, generations) WITH ORDINALITY AS i(op, org, channel, generation, n)
              LEFT JOIN channels c ON c.org_id = i.org AND c.channel_id = i.channel AND c.expires_at > v_now
              LEFT JOIN organisations o ON o.org_id = i.org
              LEFT JOIN entries e ON e.org_id = i.org AND e.op_id = i.op) j;

    IF v_new > 0 THEN
        INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, client_id, channel_id, key_ids, request_id)
        SELECT i.org, v_now, i.op, i.verdict, 'key.create', i.kind, i.subject, i.client, i.channel,
               CASE WHEN i.verdict = 0 THEN
                   (SELECT array_agg(k.id ORDER BY k.id) FROM unnest(key_items, key_ids) AS k(item, id) WHERE k.item = i.n)
               END, i.request
          FROM unnest(ops, orgs, channels, requests, clients, v_verdicts, v_kinds, v_subjects, v_times) WITH ORDINALITY
               AS i(op, org, channel, request, client, verdict, kind, subject, done, n)
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
COMMENT ON FUNCTION keys_create IS 'Stores new unbound keys';

-- One statement and no loop: items are judged by joins; only who is not authorised directly costs a search.
CREATE FUNCTION keys_release(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], keys uuid[],
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
    RETURN QUERY
    WITH found AS (
        SELECT i.n::integer AS n, i.op, i.org, i.channel, i.request, i.client, i.key, i.officer,
               c.channel_id IS NOT NULL AS open, o.state, c.kind, c.subject,
               nullif(i.behalf, c.subject) AS behalf,
               coalesce(i.behalf, c.subject) AS who,
               k.key_id, k.blob, k.generation, k.creator, k.client_id, k.created_at, k.expires_at, k.bound_at,
               k.resource_id,
               r.destroyed_at IS NOT NULL OR r.expires_at <= v_now OR k.blob IS NULL AS gone
          FROM unnest(ops, orgs, channels, requests, clients, keys, behalf, officers) WITH ORDINALITY
               AS i(op, org, channel, request, client, key, behalf, officer, n)
          LEFT JOIN channels c ON c.org_id = i.org AND c.channel_id = i.channel AND c.expires_at > v_now
          LEFT JOIN organisations o ON o.org_id = i.org
          LEFT JOIN content_keys k ON k.org_id = i.org AND k.key_id = i.key
          LEFT JOIN resources r ON r.org_id = k.org_id AND r.resource_id = k.resource_id
    ), judged AS (
        SELECT f.*, p.path,
               CASE WHEN NOT f.open THEN 499001
                    WHEN f.state IS NULL THEN 401001
                    WHEN f.state <> 'active' THEN 403001
                    WHEN f.behalf IS NOT NULL AND f.officer IS NOT TRUE THEN 403004
                    -- Unbound: its creator with the same client, while it may be bound.
                    WHEN f.resource_id IS NULL AND f.creator = f.who AND f.kind = 'user' THEN
                        CASE WHEN f.behalf IS NULL AND f.client_id IS DISTINCT FROM f.client THEN 403003
                             WHEN f.expires_at <= v_now THEN 404001
                             ELSE 0 END
                    -- Unknown and not authorised take one way, so that they take one time.  A resource's id is no key's,
                    -- though a path to it was found.
                    WHEN p.path IS NULL OR f.key_id IS NULL THEN
                        CASE WHEN NOT EXISTS (SELECT FROM content_keys x WHERE x.key_id = f.key) THEN 404001
                             WHEN f.key_id IS NULL AND f.behalf IS NOT NULL THEN 403004
                             WHEN f.key_id IS NOT NULL AND f.resource_id IS NULL AND f.kind = 'user' THEN 403002
                             ELSE 403001 END
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
                      END AS path OFFSET 0) p
    ), recorded AS (
        INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, on_behalf, client_id, channel_id,
                             resource_id, key_ids, path, request_id)
        SELECT j.org, v_now, j.op, j.verdict, 'key.get', j.kind, j.subject, j.behalf, j.client, j.channel,
               j.resource_id, ARRAY[j.key], j.path, j.request
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
COMMENT ON FUNCTION keys_release IS 'Releases keys, each with its record';

CREATE FUNCTION keys_bind(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], keys uuid[],
    resources uuid[], bound_ms bigint)
RETURNS SETOF released
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_until timestamptz(3) := v_now + nullif(bound_ms, 0) * interval '1 millisecond';
    v_caller record;
    v_key record;
    v_resource record;
    v_entry entries;
    v_verdict integer;
    v_path uuid[];
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(keys), cardinality(resources));
    PERFORM FROM kms.resources r JOIN (SELECT DISTINCT i.org, i.id FROM unnest(orgs, resources) AS i(org, id)) i
        ON r.org_id = i.org AND r.resource_id = i.id ORDER BY r.org_id, r.resource_id FOR KEY SHARE OF r;
    PERFORM FROM content_keys k JOIN (SELECT DISTINCT i.org, i.id FROM unnest(orgs, keys) AS i(org, id)) i
        ON k.org_id = i.org AND k.key_id = i.id ORDER BY k.org_id, k.key_id FOR NO KEY UPDATE OF k;

    FOR i IN 1 .. cardinality(ops) LOOP
        v_path := NULL;
        v_entry := first_run(orgs[i], ops[i], 'key.bind', channels[i], resources[i], ARRAY[keys[i]]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            v_verdict := v_entry.verdict;
        ELSE
            SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
            SELECT * INTO v_key FROM content_keys k WHERE k.org_id = orgs[i] AND k.key_id = keys[i];
            SELECT * INTO v_resource FROM kms.resources r WHERE r.org_id = orgs[i] AND r.resource_id = resources[i];
            IF v_caller.verdict <> 0 THEN
                v_verdict := v_caller.verdict;
            ELSIF v_caller.kind <> 'user' THEN
                v_verdict := 403001;
            ELSIF v_key.key_id IS NULL THEN
                v_verdict := CASE WHEN EXISTS (SELECT FROM content_keys k WHERE k.key_id = keys[i])
                    THEN 403001 ELSE 404001 END;
            ELSIF v_key.creator <> v_caller.subject THEN
                v_verdict := 403002;
            ELSIF v_key.client_id IS DISTINCT FROM coalesce(clients[i], '') THEN
                v_verdict := 403003;
            ELSIF v_key.resource_id <> resources[i] THEN
                v_verdict := 409001;
            ELSIF v_key.resource_id IS NULL AND v_key.expires_at <= v_now THEN
                v_verdict := 404001;
            ELSE
                v_path := path_to(orgs[i], resources[i], v_caller.kind, v_caller.subject, v_now);
                IF v_path IS NULL THEN
                    v_verdict := CASE WHEN EXISTS (SELECT FROM kms.resources r WHERE r.resource_id = resources[i])
                        THEN 403001 ELSE 404001 END;
                ELSIF v_resource.destroyed_at IS NOT NULL OR v_resource.expires_at <= v_now OR v_key.blob IS NULL THEN
                    v_verdict := 410001;
                ELSE
                    v_verdict := 0;
                    UPDATE content_keys k
                       SET resource_id = resources[i], bound_at = v_now, expires_at = v_until
                     WHERE k.org_id = orgs[i] AND k.key_id = keys[i] AND k.resource_id IS NULL;
                END IF;
            END IF;
            PERFORM record_entry(orgs[i], ops[i], 'key.bind', v_verdict, v_caller.kind, v_caller.subject, NULL,
                clients[i], channels[i], resources[i], ARRAY[keys[i]], v_path, requests[i], NULL);
        END IF;
        IF v_verdict = 0 THEN
            RETURN QUERY
                SELECT i, 0, k.key_id, k.blob, k.generation, w.root_id, w.wrapped, k.org_id, k.creator, k.client_id,
                       ms(k.created_at), ms(k.expires_at), ms(k.bound_at), k.resource_id
                  FROM content_keys k
                  JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
                 WHERE k.org_id = orgs[i] AND k.key_id = keys[i] AND k.blob IS NOT NULL;
            IF NOT FOUND THEN
                v_verdict := 410001;    -- run again so late that the sweeper was quicker
            END IF;
        END IF;
        IF v_verdict <> 0 THEN
            RETURN NEXT ROW(i, v_verdict, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::released;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION keys_bind IS 'Binds unbound keys to resources, for good';

CREATE FUNCTION resource_keys(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
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
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(resources), cardinality(after), cardinality(before), cardinality(counts),
        cardinality(behalf), cardinality(officers));
    FOR i IN 1 .. cardinality(ops) LOOP
        v_path := NULL;
        v_keys := NULL;
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
                -- One more than may be, to see that there are more.
                SELECT array_agg(x.key_id) INTO v_keys
                  FROM (SELECT k.key_id FROM content_keys k
                         WHERE k.org_id = orgs[i] AND k.resource_id = resources[i]
                           AND k.bound_at >= coalesce(ms_to_time(after[i]), '-infinity')
                           AND k.bound_at < coalesce(ms_to_time(before[i]), 'infinity')
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
                NULL);
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
COMMENT ON FUNCTION resource_keys IS 'Releases the keys of resources, each answer with its record';

CREATE FUNCTION judge_resource(p_org uuid, p_resource uuid, p_kind text, p_subject text, p_behalf text,
    p_officer boolean, p_now timestamptz, OUT verdict integer, OUT path uuid[], OUT expires_at timestamptz)
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
    SELECT r.resource_id AS id, r.expires_at, r.destroyed_at INTO v_resource
      FROM resources r WHERE r.org_id = p_org AND r.resource_id = p_resource;
    path := path_to(p_org, p_resource, CASE WHEN v_behalf IS NULL THEN p_kind ELSE 'user' END,
        coalesce(v_behalf, p_subject), p_now);
    IF path IS NULL THEN
        verdict := CASE WHEN NOT EXISTS (SELECT FROM resources r WHERE r.resource_id = p_resource) THEN 404001
                        WHEN v_resource.id IS NULL AND v_behalf IS NOT NULL THEN 403004
                        ELSE 403001 END;
    ELSIF v_resource.destroyed_at IS NOT NULL OR v_resource.expires_at <= p_now THEN
        verdict := 410001;
    END IF;
    expires_at := v_resource.expires_at;
END $$;
COMMENT ON FUNCTION judge_resource IS 'May this principal have to do with this resource?';

-- ---------------------------------------------------------------------------------------------------- cold functions
-- Each is a do_ function for one request, run by each_item for all of a call.

CREATE TYPE call AS (
    op uuid, org uuid, channel uuid, client text, kind text, subject text, args jsonb, at timestamptz
);
COMMENT ON TYPE call IS 'One request that passed the common checks';

CREATE TYPE outcome AS (
    verdict integer, result jsonb, resource uuid, keys uuid[], path uuid[], behalf text
);
COMMENT ON TYPE outcome IS 'What came of it; result of a refusal: NULL or {"why": text}';

CREATE FUNCTION refused(verdict integer, why text, resource uuid, path uuid[] DEFAULT NULL, behalf text DEFAULT NULL)
RETURNS outcome LANGUAGE sql IMMUTABLE
RETURN ROW(verdict, CASE WHEN why IS NOT NULL THEN jsonb_build_object('why', why) END, resource, NULL, path, behalf)::outcome;
COMMENT ON FUNCTION refused IS 'A refusal';

CREATE FUNCTION authorization_json(a authorizations, expires timestamptz) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_build_object('id', a.authorization_id, 'kind', a.kind, 'grantee', a.grantee, 'created', ms(a.created_at),
    'expires', CASE WHEN a.kind = 'anonymous' THEN ms(expires) END, 'resource', a.resource_id);
COMMENT ON FUNCTION authorization_json IS 'An authorisation as answers have it';

CREATE FUNCTION grantees_exist(c call, p_auths jsonb) RETURNS boolean LANGUAGE sql STABLE
RETURN NOT EXISTS (
    SELECT FROM jsonb_array_elements(p_auths) x
     WHERE x ->> 'kind' = 'resource'
       AND NOT EXISTS (SELECT FROM resources r
                        WHERE r.org_id = (c).org AND r.resource_id = (x ->> 'grantee')::uuid
                          AND r.destroyed_at IS NULL AND (r.expires_at IS NULL OR r.expires_at > (c).at)));
COMMENT ON FUNCTION grantees_exist IS 'Is each resource there that is to be granted access?';

CREATE FUNCTION grant_all(c call, p_resource uuid, p_expires timestamptz, p_auths jsonb, p_anonymous integer)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_auth record;
    v_row authorizations;
    v_list jsonb := '[]';
BEGIN
    FOR v_auth IN
        SELECT y.kind, y.grantee
          FROM (SELECT x.a ->> 'kind' AS kind,
                       CASE WHEN x.a ->> 'kind' = 'resource' THEN (x.a ->> 'grantee')::uuid::text
                            ELSE x.a ->> 'grantee' END AS grantee, min(x.n) AS n
                  FROM jsonb_array_elements(p_auths) WITH ORDINALITY AS x(a, n)
                 GROUP BY 1, 2) y
         ORDER BY y.n
    LOOP
        INSERT INTO authorizations AS a (org_id, authorization_id, resource_id, kind, grantee, granted_by, created_at)
        VALUES (c.org, gen_random_uuid(), p_resource, v_auth.kind, v_auth.grantee, c.subject, c.at)
            ON CONFLICT (org_id, resource_id, kind, grantee) DO NOTHING
        RETURNING a.* INTO v_row;
        IF NOT FOUND THEN
            SELECT a.* INTO STRICT v_row FROM authorizations a
             WHERE a.org_id = c.org AND a.resource_id = p_resource AND a.kind = v_auth.kind
               AND a.grantee = v_auth.grantee;
        END IF;
        v_list := v_list || authorization_json(v_row, p_expires);
    END LOOP;
    FOR i IN 1 .. coalesce(p_anonymous, 0) LOOP
        INSERT INTO authorizations AS a (org_id, authorization_id, resource_id, kind, grantee, granted_by, created_at)
        VALUES (c.org, gen_random_uuid(), p_resource, 'anonymous', NULL, c.subject, c.at)
        RETURNING a.* INTO v_row;
        v_list := v_list || authorization_json(v_row, p_expires);
    END LOOP;
    RETURN v_list;
END $$;
COMMENT ON FUNCTION grant_all IS 'Grants; returns the authorisations in the order asked, then the anonymous ones';

-- A resource as answers have it.
CREATE FUNCTION resource_json(p_org uuid, p_resource uuid) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT jsonb_build_object('resource', r.resource_id, 'created', ms(r.created_at), 'expires', ms(r.expires_at),
        'keys', coalesce((SELECT jsonb_agg(k.key_id ORDER BY k.bound_at, k.key_id) FROM content_keys k
                           WHERE k.org_id = r.org_id AND k.resource_id = r.resource_id AND k.blob IS NOT NULL), '[]'),
        'authorizations', coalesce((SELECT jsonb_agg(authorization_json(a, r.expires_at)
                                               ORDER BY a.created_at, a.authorization_id)
                                      FROM authorizations a
                                     WHERE a.org_id = r.org_id AND a.resource_id = r.resource_id), '[]'))
      FROM resources r WHERE r.org_id = p_org AND r.resource_id = p_resource);
COMMENT ON FUNCTION resource_json IS 'A resource as answers have it';

CREATE FUNCTION do_resource_create(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid := gen_random_uuid();
    v_until timestamptz(3) := c.at + (c.args ->> 'ttl_ms')::bigint * interval '1 millisecond';
    v_keys_until timestamptz(3) := c.at + nullif((c.args ->> 'bound_ms')::bigint, 0) * interval '1 millisecond';
    v_keys uuid[];
    v_key record;
    v_auths jsonb := coalesce(c.args -> 'auths', '[]');
    v_granted jsonb;
    v_found boolean;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, NULL);
    END IF;
    SELECT coalesce(array_agg(x.id::uuid ORDER BY x.n), '{}') INTO v_keys
      FROM jsonb_array_elements_text(coalesce(c.args -> 'keys', '[]')) WITH ORDINALITY AS x(id, n);
    FOR i IN 1 .. cardinality(v_keys) LOOP
        SELECT k.creator, k.client_id, k.resource_id, k.expires_at INTO v_key
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
        ELSIF v_keys[i] = ANY (v_keys[:i - 1]) THEN
            RETURN refused(409001, 'keyUris names a key twice', NULL);
        END IF;
    END LOOP;
    IF NOT grantees_exist(c, v_auths) THEN
        RETURN refused(404001, 'an authId names a resource that does not exist', NULL);
    END IF;

    INSERT INTO resources (org_id, resource_id, creator, created_at, expires_at)
    VALUES (c.org, v_id, c.subject, c.at, v_until);
    v_granted := grant_all(c, v_id, v_until,
        jsonb_build_array(jsonb_build_object('kind', 'user', 'grantee', c.subject)) || v_auths,
        (c.args ->> 'anonymous')::integer);
    UPDATE content_keys k SET resource_id = v_id, bound_at = c.at, expires_at = v_keys_until
     WHERE k.org_id = c.org AND k.key_id = ANY (v_keys);
    RETURN ROW(0, jsonb_build_object('resource', v_id, 'created', ms(c.at), 'expires', ms(v_until),
        'keys', to_jsonb(v_keys), 'authorizations', v_granted), v_id, v_keys, '{}'::uuid[], NULL)::outcome;
END $$;
COMMENT ON FUNCTION do_resource_create IS 'One resource, with its grants and keys: all or nothing';

CREATE FUNCTION do_resource_get(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_resource uuid := (c.args ->> 'resource')::uuid;
    v_behalf text := nullif(c.args ->> 'behalf', c.subject);
    j record;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, v_resource);
    END IF;
    SELECT * INTO j FROM judge_resource(c.org, v_resource, c.kind, c.subject, v_behalf, (c.args ->> 'officer')::boolean, c.at);
    IF j.verdict <> 0 THEN
        RETURN refused(j.verdict, NULL, v_resource, j.path, v_behalf);
    END IF;
    RETURN ROW(0, resource_json(c.org, v_resource), v_resource, NULL, j.path, v_behalf)::outcome;
END $$;
COMMENT ON FUNCTION do_resource_get IS 'A resource, to who is authorised';

CREATE FUNCTION do_authorizations_create(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_resource uuid := (c.args ->> 'resource')::uuid;
    v_auths jsonb := coalesce(c.args -> 'auths', '[]');
    j record;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, v_resource);
    END IF;
    SELECT * INTO j FROM judge_resource(c.org, v_resource, c.kind, c.subject, NULL, false, c.at);
    IF j.verdict <> 0 THEN
        RETURN refused(j.verdict, NULL, v_resource, j.path);
    END IF;
    IF NOT grantees_exist(c, v_auths) THEN
        RETURN refused(404001, 'an authId names a resource that does not exist', v_resource, j.path);
    END IF;
    RETURN ROW(0, jsonb_build_object('resource', v_resource, 'authorizations',
        grant_all(c, v_resource, j.expires_at, v_auths, (c.args ->> 'anonymous')::integer)), v_resource, NULL, j.path,
        NULL)::outcome;
END $$;
COMMENT ON FUNCTION do_authorizations_create IS 'Grants: all or nothing';

CREATE FUNCTION do_authorizations_list(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_resource uuid := (c.args ->> 'resource')::uuid;
    v_behalf text := nullif(c.args ->> 'behalf', c.subject);
    v_kind text := c.args -> 'auth' ->> 'kind';
    v_grantee text := c.args -> 'auth' ->> 'grantee';
    v_list jsonb;
    j record;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, v_resource);
    END IF;
    SELECT * INTO j FROM judge_resource(c.org, v_resource, c.kind, c.subject, v_behalf, (c.args ->> 'officer')::boolean, c.at);
    IF j.verdict <> 0 THEN
        RETURN refused(j.verdict, NULL, v_resource, j.path, v_behalf);
    END IF;
    IF v_kind = 'resource' THEN
        v_grantee := v_grantee::uuid::text;
    END IF;
    SELECT coalesce(jsonb_agg(authorization_json(a, j.expires_at) ORDER BY a.created_at, a.authorization_id), '[]') INTO v_list
      FROM authorizations a
     WHERE a.org_id = c.org AND a.resource_id = v_resource
       AND (v_kind IS NULL OR (a.kind = v_kind AND a.grantee = v_grantee));
    RETURN ROW(0, jsonb_build_object('resource', v_resource, 'authorizations', v_list), v_resource, NULL, j.path,
        v_behalf)::outcome;
END $$;
COMMENT ON FUNCTION do_authorizations_list IS 'Who is authorised on a resource';

CREATE FUNCTION do_authorizations_delete(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_resource uuid := (c.args ->> 'resource')::uuid;
    v_id uuid := (c.args ->> 'authorization')::uuid;
    v_ids uuid[];
    v_asked bigint;
    v_list jsonb;
    j record;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, v_resource);
    END IF;
    IF v_id IS NOT NULL THEN
        SELECT a.resource_id INTO v_resource FROM authorizations a WHERE a.org_id = c.org AND a.authorization_id = v_id;
    END IF;
    -- An unknown authorisation's id stands in for its resource's: the same work for both.
    SELECT * INTO j FROM judge_resource(c.org, coalesce(v_resource, v_id), c.kind, c.subject, NULL, false, c.at);
    IF v_id IS NOT NULL AND v_resource IS NULL THEN
        RETURN refused(CASE WHEN EXISTS (SELECT FROM authorizations a WHERE a.authorization_id = v_id)
            THEN 403001 ELSE 404001 END, NULL, NULL);
    END IF;
    IF j.verdict <> 0 THEN
        RETURN refused(j.verdict, NULL, v_resource, j.path);
    END IF;
    IF v_id IS NOT NULL THEN
        v_ids := ARRAY[v_id];
    ELSE
        SELECT array_agg(x.authorization_id ORDER BY x.n), count(*) INTO v_ids, v_asked
          FROM (SELECT a.authorization_id, y.n
                  FROM (SELECT g.a ->> 'kind' AS kind,
                               CASE WHEN g.a ->> 'kind' = 'resource' THEN (g.a ->> 'grantee')::uuid::text
                                    ELSE g.a ->> 'grantee' END AS grantee, min(g.n) AS n
                          FROM jsonb_array_elements(coalesce(c.args -> 'auths', '[]')) WITH ORDINALITY AS g(a, n)
                         GROUP BY 1, 2) y
                  LEFT JOIN authorizations a
                    ON a.org_id = c.org AND a.resource_id = v_resource AND a.kind = y.kind AND a.grantee = y.grantee) x;
        IF v_asked = 0 OR array_position(v_ids, NULL) IS NOT NULL THEN
            RETURN refused(404001, 'who is named is not authorised', v_resource, j.path);
        END IF;
    END IF;
    WITH gone AS (
        DELETE FROM authorizations a
         WHERE a.org_id = c.org AND a.authorization_id = ANY (v_ids)
        RETURNING a.*)
    SELECT jsonb_agg(authorization_json(g::authorizations, j.expires_at) ORDER BY array_position(v_ids, g.authorization_id))
      INTO v_list FROM gone g;
    RETURN ROW(0, jsonb_build_object('resource', v_resource, 'authorizations', v_list), v_resource, NULL, j.path,
        NULL)::outcome;
END $$;
COMMENT ON FUNCTION do_authorizations_delete IS 'Takes authorisations away: all or nothing';

CREATE FUNCTION do_channel_delete(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_target uuid := (c.args ->> 'channel')::uuid;
BEGIN
    -- Many may hold one anonymous bearer: none of them may end another's channel.
    DELETE FROM channels t
     WHERE t.org_id = c.org AND t.channel_id = v_target
       AND (t.channel_id = c.channel OR (c.kind = 'user' AND t.kind = 'user' AND t.subject = c.subject));
    IF NOT FOUND THEN
        RETURN refused(CASE WHEN EXISTS (SELECT FROM channels t WHERE t.channel_id = v_target)
            THEN 403001 ELSE 404001 END, NULL, NULL);
    END IF;
    RETURN ROW(0, c.args, NULL, NULL, NULL, NULL)::outcome;
END $$;
COMMENT ON FUNCTION do_channel_delete IS 'Ends one of the caller''s channels';

CREATE FUNCTION each_item(p_action text, p_changes boolean, ops uuid[], orgs uuid[], channels uuid[], requests text[],
    clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_entry entries;
    v_caller record;
    v_again boolean;
    c call;
    o outcome;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(args));
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
        SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
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
            END CASE;
        END IF;
        IF NOT v_again THEN
            PERFORM record_entry(orgs[i], ops[i], p_action, o.verdict, v_caller.kind, v_caller.subject, o.behalf,
                clients[i], channels[i], o.resource, o.keys, o.path, requests[i],
                CASE WHEN p_changes OR o.verdict <> 0 THEN o.result END);
        END IF;
        verdict := o.verdict;
        result := o.result;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION each_item IS 'Runs one do_ function for all items of a call, and records each';

CREATE FUNCTION resource_create(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_item('resource.create', true, $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION resource_create IS 'Makes resources; args: auths, keys, anonymous, ttl_ms, bound_ms';

CREATE FUNCTION resource_get(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_item('resource.get', false, $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION resource_get IS 'Shows resources; args: resource, behalf, officer';

CREATE FUNCTION authorizations_create(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_item('authorization.create', true, $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION authorizations_create IS 'Grants; args: resource, auths, anonymous';

CREATE FUNCTION authorizations_list(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_item('authorization.list', false, $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION authorizations_list IS 'Lists grants; args: resource, auth, behalf, officer';

CREATE FUNCTION authorizations_delete(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_item('authorization.delete', true, $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION authorizations_delete IS 'Takes grants away; args: authorization, or resource and auths';

CREATE FUNCTION channel_delete(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], targets uuid[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_item('channel.delete', true, $1, $2, $3, $4, $5,
       ARRAY(SELECT jsonb_build_object('channel', t.id) FROM unnest($6) WITH ORDINALITY AS t(id, n) ORDER BY t.n)) $$;
COMMENT ON FUNCTION channel_delete IS 'Ends channels';

-- ---------------------------------------------------------------------------------------------------- the rest

CREATE FUNCTION refusals_record(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
    subjects text[], actions text[], verdicts integer[], targets uuid[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET jit = off AS $$
DECLARE
    v_written integer;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(subjects), cardinality(actions), cardinality(verdicts), cardinality(targets));
    IF 1 > ANY (verdicts) THEN
        RAISE EXCEPTION 'a refusal has an errorCode' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO entries (org_id, op_id, verdict, action, subject, client_id, channel_id, resource_id, request_id)
    SELECT coalesce(i.org, nobody()), i.op, i.verdict, i.action, i.subject, i.client, i.channel, i.target, i.request
      FROM unnest(ops, orgs, channels, requests, clients, subjects, actions, verdicts, targets) WITH ORDINALITY
           AS i(op, org, channel, request, client, subject, action, verdict, target, n)
     ORDER BY i.n
        ON CONFLICT (org_id, op_id) DO NOTHING;
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written < cardinality(ops) THEN
        PERFORM touch_fence();
    END IF;
END $$;
COMMENT ON FUNCTION refusals_record IS 'Records what was refused before the state was asked';

CREATE FUNCTION orgs_get(names text[])
RETURNS TABLE (n integer, org uuid, state text, generation integer, root uuid, wrapped bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT i.n::integer, o.org_id, o.state, w.generation, w.root_id, w.wrapped
          FROM unnest(names) WITH ORDINALITY AS i(name, n)
          LEFT JOIN (organisations o JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation)
            ON o.name = i.name
         ORDER BY i.n;
END $$;
COMMENT ON FUNCTION orgs_get IS 'Organisations by name, each with its current wrapping key; org NULL: unknown';

CREATE FUNCTION wraps_add(orgs uuid[], generations integer[], wraps bigint[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    PERFORM check_lengths(cardinality(orgs), cardinality(generations), cardinality(wraps));
    PERFORM FROM wrapping_keys w
      WHERE (w.org_id, w.generation) IN (SELECT i.org, i.generation FROM unnest(orgs, generations) AS i(org, generation))
      ORDER BY w.org_id, w.generation FOR NO KEY UPDATE;
    UPDATE wrapping_keys w SET wraps = w.wraps + i.wraps
      FROM (SELECT x.org, x.generation, sum(greatest(x.wraps, 0))::bigint AS wraps
              FROM unnest(orgs, generations, wraps) AS x(org, generation, wraps) GROUP BY 1, 2) i
     WHERE w.org_id = i.org AND w.generation = i.generation;
END $$;
COMMENT ON FUNCTION wraps_add IS 'Counts uses of wrapping keys';

CREATE FUNCTION server_check() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object(
        'schema', (SELECT coalesce(max(number), 0) FROM schema_migrations),
        'in_recovery', pg_is_in_recovery(),
        'read_only', current_setting('transaction_read_only')::boolean,
        'fsync', current_setting('fsync'),
        'full_page_writes', current_setting('full_page_writes'),
        'synchronous_commit', current_setting('synchronous_commit'),
        'data_sync_retry', current_setting('data_sync_retry'),
        'data_checksums', current_setting('data_checksums'),
        'log_parameter_max_length_on_error', current_setting('log_parameter_max_length_on_error'),
        'now', ms(clock_timestamp()))
$$;
COMMENT ON FUNCTION server_check IS 'What the daemon must know of the server before it trusts its commits';

GRANT EXECUTE ON FUNCTION channel_create, channels_open, channels_check, channel_delete, keys_create, keys_release,
    keys_bind, resource_keys, resource_create, resource_get, authorizations_create, authorizations_list,
    authorizations_delete, refusals_record, wraps_add TO kms_worker;
GRANT EXECUTE ON FUNCTION orgs_get, server_check TO kms_worker, kms_keeper;
GRANT USAGE ON TYPE released TO kms_worker;
