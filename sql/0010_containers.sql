-- 0010_containers.sql - containers and what is recorded in them: zero-trust meetings, keys minted and bound in one step, rotation
-- when somebody is taken away, recordings with keys of their own; and the gate that every request for keys passes.
--
-- Whoever releases takes policy_share(), always and first: an organisation is locked, and something frozen, when those who began
-- before have ended, and nobody who begins later gets through.
--
-- The order of judgement: who asks; 403010, to everybody, when it is about keys of a zero-trust meeting; authorisation; the gate
-- (405005, 405006); what is destroyed (410001).
-- Rows of recordings are locked after those of resources, authorisations and keys.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------- zero-trust

-- What the functions judge, the tables keep as well: there is no key and no recording of a zero-trust meeting.
CREATE FUNCTION zero_trust_holds_nothing() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    IF (SELECT r.security FROM resources r WHERE r.org_id = NEW.org_id AND r.resource_id = NEW.resource_id) = 'zero-trust' THEN
        RAISE EXCEPTION 'a zero-trust meeting has no keys and no recordings here' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION zero_trust_holds_nothing IS 'Trigger: nothing that could open a zero-trust meeting gets into a table';
CREATE TRIGGER recordings_of_standard BEFORE INSERT OR UPDATE OF resource_id ON recordings FOR EACH ROW
    EXECUTE FUNCTION zero_trust_holds_nothing();
CREATE TRIGGER resources_same_security BEFORE UPDATE OF security ON resources FOR EACH ROW
    WHEN (OLD.security IS DISTINCT FROM NEW.security) EXECUTE FUNCTION never();

CREATE OR REPLACE FUNCTION key_bound() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    IF (SELECT r.security FROM resources r WHERE r.org_id = NEW.org_id AND r.resource_id = NEW.resource_id) = 'zero-trust' THEN
        RAISE EXCEPTION 'a zero-trust meeting has no keys here' USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.bound_xact := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION key_bound IS 'Trigger: notes which transaction bound a key; to a zero-trust meeting none can be';

CREATE FUNCTION resource_code(p_resource uuid) RETURNS integer LANGUAGE sql STABLE
RETURN coalesce((SELECT CASE r.security WHEN 'zero-trust' THEN 403010 ELSE 403001 END FROM resources r
                  WHERE r.resource_id = p_resource LIMIT 1), 404001);
COMMENT ON FUNCTION resource_code IS 'What to say about a resource, whosever it is, to who is not authorised: unknown, his no, or nobody''s';

-- ---------------------------------------------------------------------------------------------------- the gate

CREATE FUNCTION freezes_hold(p_now timestamptz) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM freezes f WHERE f.until > p_now);
END $$;
COMMENT ON FUNCTION freezes_hold IS 'Is anything frozen?  Asked once a call: while nothing is, items are not looked up';

CREATE FUNCTION release_gate(p_org uuid, p_locked integer, p_subject text, p_purpose text, p_service text, p_resource uuid)
RETURNS integer LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN p_locked;
END $$;
COMMENT ON FUNCTION release_gate IS
    'Is this open to who is authorised?  0, 405005, 405006.  p_subject: the caller, p_resource: NULL where there is none; called when the organisation is locked or something is frozen';

CREATE FUNCTION gate_now(p_org uuid, p_subject text, p_resource uuid, p_now timestamptz) RETURNS integer LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_locked integer;
BEGIN
    SELECT o.locked INTO v_locked FROM organisations o WHERE o.org_id = p_org;
    IF v_locked <> 0 OR freezes_hold(p_now) THEN
        RETURN release_gate(p_org, v_locked, p_subject, NULL, NULL, p_resource);
    END IF;
    RETURN 0;
END $$;
COMMENT ON FUNCTION gate_now IS 'The gate for one request of a user';

CREATE FUNCTION gate_again(p_org uuid, p_channel uuid, p_resource uuid) RETURNS integer LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN gate_now(p_org, (SELECT c.subject FROM channels c WHERE c.org_id = p_org AND c.channel_id = p_channel), p_resource, clock_timestamp());
END $$;
COMMENT ON FUNCTION gate_again IS
    'The gate for what was run before: it is answered as its record says, but nothing leaves what is locked or frozen by now';

CREATE FUNCTION gate_reason(p_gate integer) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE p_gate WHEN 0 THEN 0 WHEN 405005 THEN 23 ELSE 24 END;
COMMENT ON FUNCTION gate_reason IS 'The reason (release_code) that a gate gives';

CREATE OR REPLACE FUNCTION release_code(p_reason integer) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_reason = 0 THEN 0 ELSE (ARRAY[
    499001, 403006, 403005, 403005, 403005, 404001, 403005, 403005, 403005, 403001,
    403007, 403007, 403007, 403007, 403005, 403005, 410001, 429001, 413001, 400002, 403005,
    403010, 405005, 405006])[p_reason] END;

CREATE OR REPLACE FUNCTION release_why(p_reason integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
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
    'this walk is not for this purpose',                                        -- 21
    'the meeting is a zero-trust one: this server holds no key of it',          -- 22
    'the organisation''s main key is revoked',                                  -- 23
    'the organisation''s main key is disabled, or this is frozen'               -- 24
    ])[p_reason] END;

-- ---------------------------------------------------------------------------------------------------- small parts

CREATE FUNCTION generation_current(p_org uuid, p_generation integer) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM organisations o WHERE o.org_id = p_org AND o.generation = p_generation);
END $$;
COMMENT ON FUNCTION generation_current IS 'Are new keys wrapped under this one?';

CREATE FUNCTION active_key(p_org uuid, p_resource uuid) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_key uuid;
BEGIN
    SELECT k.key_id INTO v_key FROM content_keys k
     WHERE k.org_id = p_org AND k.resource_id = p_resource AND k.blob IS NOT NULL
     ORDER BY k.bound_at DESC, k.key_id DESC LIMIT 1;
    RETURN v_key;
END $$;
COMMENT ON FUNCTION active_key IS 'The key of a resource that was bound last and is there; NULL: it has none';

CREATE FUNCTION last_bound(p_org uuid, p_resource uuid) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_last timestamptz(3);
BEGIN
    SELECT k.bound_at INTO v_last FROM content_keys k
     WHERE k.org_id = p_org AND k.resource_id = p_resource
     ORDER BY k.bound_at DESC, k.key_id DESC LIMIT 1;
    RETURN v_last;
END $$;
COMMENT ON FUNCTION last_bound IS 'When the key of a resource that was bound last was bound; NULL: it had none';

-- Clocks of nodes differ, and who waited for a lock has looked at his clock before: time goes on nevertheless.
CREATE FUNCTION next_bound(p_org uuid, p_resource uuid, p_now timestamptz, p_after boolean DEFAULT false) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN greatest(p_now, last_bound(p_org, p_resource)
        + CASE WHEN p_after THEN interval '1 millisecond' ELSE interval '0' END);
END $$;
COMMENT ON FUNCTION next_bound IS 'When a key that is bound now is bound: not before those that are; p_after: after them all, so that it is the active one';

-- What is open to a resource, and who is taken away there loses with it.
CREATE INDEX authorizations_of_resources ON authorizations (org_id, grantee) WHERE kind = 'resource';

-- nested_path() the other way.
CREATE FUNCTION opened_to(p_org uuid, p_resource uuid, p_now timestamptz) RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_all uuid[] := ARRAY[p_resource];
    v_first integer := 1;       -- of those reached last
    v_found uuid[];
BEGIN
    FOR depth IN 1 .. 8 LOOP
        -- One by one, whatever the planner knows of the tables.
        SELECT array_agg(DISTINCT r.resource_id) INTO v_found
          FROM unnest(v_all[v_first:]) AS l(node)
         CROSS JOIN LATERAL (
               SELECT x.resource_id FROM authorizations x WHERE x.org_id = p_org AND x.kind = 'resource' AND x.grantee = l.node::text OFFSET 0) a
         CROSS JOIN LATERAL (
               SELECT x.resource_id FROM resources x
                WHERE x.org_id = p_org AND x.resource_id = a.resource_id AND x.destroyed_at IS NULL AND (x.expires_at IS NULL OR x.expires_at > p_now)
                LIMIT 1) r
         WHERE r.resource_id <> ALL (v_all);
        v_first := cardinality(v_all) + 1;
        EXIT WHEN v_found IS NULL OR v_first > 10000;
        v_all := v_all || v_found;
    END LOOP;
    RETURN v_all[2:];
END $$;
COMMENT ON FUNCTION opened_to IS 'The resources that are open to this one, directly or through others, within eight grants';

-- More than a thousand would be too much for one request: those that were rotated longest ago are left as they are.
CREATE FUNCTION rotated_with(p_org uuid, p_resource uuid, p_nested boolean, p_now timestamptz, OUT resources uuid[], OUT remaining bigint)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    SELECT coalesce(array_agg(x.id ORDER BY x.n) FILTER (WHERE x.n <= 1000), '{}'), count(*) FILTER (WHERE x.n > 1000) INTO resources, remaining
      FROM (SELECT i.id, row_number() OVER (ORDER BY i.id <> p_resource, last_bound(p_org, i.id) DESC, i.id) AS n
              FROM unnest(p_resource || CASE WHEN p_nested THEN opened_to(p_org, p_resource, p_now) ELSE '{}' END) AS i(id)
             WHERE active_key(p_org, i.id) IS NOT NULL) x;
END $$;
COMMENT ON FUNCTION rotated_with IS 'The resources that get a new key when somebody is taken away from this one: itself first, and what is open to it';

CREATE FUNCTION minted_now(p_org uuid, p_new jsonb) RETURNS boolean LANGUAGE sql STABLE
RETURN NOT EXISTS (SELECT FROM jsonb_array_elements(p_new) k
                    WHERE generation_current(p_org, (k ->> 'generation')::integer) IS NOT TRUE);
COMMENT ON FUNCTION minted_now IS 'Are all these new keys wrapped under the current generation?';

CREATE FUNCTION bind_minted(c call, p_resource uuid, p_new jsonb, p_bound timestamptz, p_bound_ms bigint) RETURNS uuid[]
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO content_keys (org_id, key_id, generation, blob, creator, client_id, created_at, expires_at, resource_id, bound_at)
    SELECT c.org, (k ->> 'id')::uuid, (k ->> 'generation')::integer, decode(k ->> 'blob', 'hex'), c.subject,
           coalesce(c.client, ''), c.at, p_bound + p_bound_ms * interval '1 millisecond', p_resource, p_bound
      FROM jsonb_array_elements(p_new) k;
    RETURN (SELECT coalesce(array_agg((k ->> 'id')::uuid ORDER BY n), '{}') FROM jsonb_array_elements(p_new) WITH ORDINALITY AS x(k, n));
END $$;
COMMENT ON FUNCTION bind_minted IS 'Stores new keys ({"id","blob","generation"}) bound to a resource; their ids';

CREATE TABLE authorizations_past (
    org_id uuid NOT NULL,
    resource_id uuid NOT NULL,
    kind text NOT NULL,
    grantee text NOT NULL,
    removed_at timestamptz(3) NOT NULL
);
CREATE INDEX authorizations_past_of ON authorizations_past (org_id, resource_id);
COMMENT ON TABLE authorizations_past IS 'Authorisations that were taken away while their organisation had an open matter: what it held it goes on to hold';
COMMENT ON COLUMN authorizations_past.org_id IS 'Organisation';
COMMENT ON COLUMN authorizations_past.resource_id IS 'On what';
COMMENT ON COLUMN authorizations_past.kind IS 'user or resource';
COMMENT ON COLUMN authorizations_past.grantee IS 'Who';
COMMENT ON COLUMN authorizations_past.removed_at IS 'Until when';
CREATE FUNCTION authorizations_removed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    INSERT INTO authorizations_past (org_id, resource_id, kind, grantee, removed_at)
    SELECT g.org_id, g.resource_id, g.kind, g.grantee, clock_timestamp() FROM gone g
     WHERE g.kind IN ('user', 'resource') AND EXISTS (SELECT FROM matters m WHERE m.org_id = g.org_id AND m.state = 'open');
    RETURN NULL;
END $$;
COMMENT ON FUNCTION authorizations_removed IS 'Trigger: nobody ends a matter''s hold by taking away whom it is about';
CREATE TRIGGER authorizations_gone AFTER DELETE ON authorizations REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION authorizations_removed();

-- As nested_path(), but of whoever was on it since then, and through what has come to its end as well.
CREATE FUNCTION hold_reaches(p_org uuid, p_resource uuid, p_users text[], p_since timestamptz) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_all uuid[] := ARRAY[p_resource];
    v_first integer := 1;       -- of those reached last
    v_found uuid[];
BEGIN
    FOR depth IN 0 .. 8 LOOP
        -- One by one, whatever the planner knows of the tables.
        IF EXISTS (SELECT FROM unnest(v_all[v_first:]) AS l(node) CROSS JOIN unnest(p_users) AS u(name)
                    CROSS JOIN LATERAL (
                          SELECT FROM authorizations a WHERE a.org_id = p_org AND a.resource_id = l.node AND a.kind = 'user' AND a.grantee = u.name OFFSET 0) x)
           OR EXISTS (SELECT FROM unnest(v_all[v_first:]) AS l(node)
                        JOIN authorizations_past a ON a.org_id = p_org AND a.resource_id = l.node AND a.kind = 'user' AND a.grantee = ANY (p_users)
                         AND a.removed_at >= p_since) THEN
            RETURN true;
        END IF;
        SELECT array_agg(DISTINCT x.node) INTO v_found FROM (
            SELECT y.grantee::uuid AS node FROM unnest(v_all[v_first:]) AS l(node)
             CROSS JOIN LATERAL (SELECT a.grantee FROM authorizations a WHERE a.org_id = p_org AND a.resource_id = l.node AND a.kind = 'resource' OFFSET 0) y
            UNION ALL
            SELECT a.grantee::uuid FROM unnest(v_all[v_first:]) AS l(node)
              JOIN authorizations_past a ON a.org_id = p_org AND a.resource_id = l.node AND a.kind = 'resource' AND a.removed_at >= p_since) x
         WHERE x.node <> ALL (v_all);
        v_first := cardinality(v_all) + 1;
        EXIT WHEN v_found IS NULL;
        IF v_first > 10000 THEN     -- too much to look through: the safe side
            RETURN true;
        END IF;
        v_all := v_all || v_found;
    END LOOP;
    RETURN false;
END $$;
COMMENT ON FUNCTION hold_reaches IS 'Was one of these on this resource at any time since then, himself or through others?';

CREATE FUNCTION hold_of(p_org uuid, p_resource uuid, p_at timestamptz, p_now timestamptz) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_matter uuid;
BEGIN
    -- Wider than what a matter releases: who was on it when the matter was opened counts, and through another resource, and who made it.
    SELECT m.matter_id INTO v_matter
      FROM resources r JOIN matters m ON m.org_id = r.org_id AND r.kind = ANY (m.kinds) AND m.state = 'open'
     WHERE r.org_id = p_org AND r.resource_id = p_resource AND p_at >= m.window_from AND p_at < m.window_to
       AND matter_holds(m, p_now)
       AND (r.creator = ANY (m.custodians) OR hold_reaches(p_org, p_resource, m.custodians, m.approved_at))
     ORDER BY m.expires_at DESC, m.matter_id LIMIT 1;
    RETURN v_matter;
END $$;
COMMENT ON FUNCTION hold_of IS 'The open matter that holds what was bound or recorded at that time: it is not destroyed; NULL: none';

-- ---------------------------------------------------------------------------------------------------- rules

CREATE OR REPLACE FUNCTION setting_default(p_name text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE p_name
    WHEN 'compliance' THEN 'role'              -- role | matter: what onBehalfOf needs
    WHEN 'dlp.age' THEN '86400000'             -- ms: how old a binding dlp may see
    WHEN 'rotate.removal' THEN 'off'           -- off | on: a resource gets a new key when an authorisation is taken away
    WHEN 'retention.recording' THEN '0'        -- ms: when a recording is destroyed; 0: never
    WHEN 'retention.transcript' THEN '0'       -- likewise
    WHEN 'approvals' THEN '2'                  -- installation: officers that an action needs, who asks for it included
    WHEN 'approvals.matter' THEN '2'           -- installation: likewise, for a matter
    WHEN 'approvals.lifetime' THEN '259200000' -- installation, ms: how long an action waits for them
END;

CREATE OR REPLACE FUNCTION setting_why(p_name text, p_value text, p_installation boolean) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_number bigint := arg_integer(to_jsonb(p_value), 0, 999999999999999);
BEGIN
    IF p_name IS NULL OR setting_default(p_name) IS NULL THEN
        RETURN 'settings are: of an organisation compliance, dlp.age, rotate.removal, retention.recording, retention.transcript; '
            || 'of the installation approvals, approvals.matter, approvals.lifetime';
    ELSIF p_installation <> (p_name LIKE 'approvals%') THEN
        RETURN CASE WHEN p_installation THEN 'compliance, dlp.age, rotate.removal, retention.recording and retention.transcript belong to an organisation'
                    ELSE 'approvals, approvals.matter and approvals.lifetime belong to the installation, not to an organisation' END;
    ELSIF p_value IS NULL THEN
        RETURN 'value is missing';
    END IF;
    RETURN CASE
        WHEN p_name = 'compliance' AND p_value NOT IN ('role', 'matter') THEN 'compliance is role or matter'
        WHEN p_name = 'dlp.age' AND coalesce(v_number NOT BETWEEN 60000 AND 315360000000, true)
            THEN 'dlp.age is milliseconds: 60000 (a minute) to 315360000000 (ten years)'
        WHEN p_name = 'rotate.removal' AND p_value NOT IN ('off', 'on') THEN 'rotate.removal is off or on'
        WHEN p_name LIKE 'retention.%' AND coalesce(v_number <> 0 AND v_number NOT BETWEEN 60000 AND 3155760000000, true)
            THEN p_name || ' is milliseconds: 60000 (a minute) to 3155760000000 (a hundred years), or 0: for ever'
        WHEN p_name IN ('approvals', 'approvals.matter') AND coalesce(v_number NOT BETWEEN 1 AND 16, true)
            THEN p_name || ' is how many officers: 1 to 16'
        WHEN p_name = 'approvals.lifetime' AND coalesce(v_number NOT BETWEEN 60000 AND 7776000000, true)
            THEN 'approvals.lifetime is milliseconds: 60000 (a minute) to 7776000000 (90 days)' END;
END $$;

CREATE OR REPLACE FUNCTION setting_opens(p_name text, p_before text, p_after text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_name = 'compliance' THEN p_before <> p_after AND p_after = 'role'
            WHEN p_name = 'rotate.removal' THEN p_before <> p_after AND p_after = 'off'
            -- To destroy earlier, or at all, is what several must agree to.
            WHEN p_name IN ('retention.recording', 'retention.transcript')
                THEN p_after <> '0' AND (p_before = '0' OR p_after::bigint < p_before::bigint)
            WHEN p_name IN ('dlp.age', 'approvals.lifetime') THEN p_after::bigint > p_before::bigint
            ELSE p_after::bigint < p_before::bigint END;
COMMENT ON FUNCTION setting_opens IS 'Does this change allow more than before, or destroy more?';

CREATE OR REPLACE FUNCTION settings_list(org_name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN log_org($1) IS NOT NULL THEN
           (SELECT jsonb_agg(jsonb_build_object('name', n.name, 'value', coalesce(s.value, setting_default(n.name), 'on'),
                       'default', s.value IS NULL, 'changed', ms(s.changed_at)) ORDER BY n.name)
              FROM unnest(CASE WHEN $1 IS NULL THEN ARRAY['approvals', 'approvals.matter', 'approvals.lifetime', 'audit.stream']
                               ELSE ARRAY['compliance', 'dlp.age', 'rotate.removal', 'retention.recording', 'retention.transcript'] END) AS n(name)
              LEFT JOIN settings s ON s.org_id = log_org($1) AND s.name = n.name) END
$$;

-- ---------------------------------------------------------------------------------------------------- keys
-- As before, with the gate, and nothing for zero-trust meetings.

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
    v_frozen boolean;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(generations));
    PERFORM check_lengths(cardinality(key_items), cardinality(key_ids), cardinality(key_blobs));
    IF unbound_ms IS NULL OR unbound_ms <= 0 THEN
        RAISE EXCEPTION 'unbound_ms must be positive' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM policy_share();
    v_frozen := freezes_hold(v_now);

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
                        WHEN (o.locked <> 0 OR v_frozen) AND release_gate(i.org, o.locked, NULL, NULL, NULL, NULL) <> 0
                            THEN release_gate(i.org, o.locked, NULL, NULL, NULL, NULL)
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
    PERFORM policy_share();
    -- What freezes_hold() asks stands in the statement: a call of its own is a tenth of a release.
    RETURN QUERY
    WITH found AS (
        SELECT i.n::integer AS n, i.op, i.org, i.channel, i.request, i.client, i.key, i.officer,
               c.channel_id IS NOT NULL AS open, o.state, o.locked, c.kind, c.subject, c.person,
               CASE WHEN c.client_id = i.client THEN c.client END AS client_pseudonym,
               nullif(i.behalf, c.subject) AS behalf,
               coalesce(i.behalf, c.subject) AS who,
               k.key_id, k.blob, k.generation, k.creator, k.client_id, k.created_at, k.expires_at, k.bound_at,
               k.resource_id, r.kind AS resource_kind, r.security,
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
                    WHEN f.security = 'zero-trust' THEN 403010
                    -- Unbound: its creator with the same client, while it may be bound.
                    WHEN f.resource_id IS NULL AND f.creator = f.who AND f.kind = 'user' THEN
                        CASE WHEN f.behalf IS NULL AND f.client_id IS DISTINCT FROM f.client THEN 403003
                             WHEN f.expires_at <= v_now THEN 404001
                             WHEN p.matter = nobody() THEN 403007
                             WHEN (f.locked <> 0 OR EXISTS (SELECT FROM freezes x WHERE x.until > v_now))
                                 AND release_gate(f.org, f.locked, f.subject, NULL, NULL, NULL) <> 0
                                 THEN release_gate(f.org, f.locked, f.subject, NULL, NULL, NULL)
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
                    WHEN (f.locked <> 0 OR EXISTS (SELECT FROM freezes x WHERE x.until > v_now))
                        AND release_gate(f.org, f.locked, f.subject, NULL, NULL, f.resource_id) <> 0
                        THEN release_gate(f.org, f.locked, f.subject, NULL, NULL, f.resource_id)
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
        -- What was run before is answered as its record says, whatever has changed since; but nothing leaves what is locked or frozen.
        SELECT j.n, j.org, j.key_id, j.blob, j.generation, j.creator, j.client_id, j.created_at, j.expires_at, j.bound_at,
               j.resource_id,
               CASE WHEN x.said = 0 AND (j.locked <> 0 OR EXISTS (SELECT FROM freezes x WHERE x.until > v_now)) AND release_gate(j.org, j.locked, j.subject, NULL, NULL, j.resource_id) <> 0
                    THEN release_gate(j.org, j.locked, j.subject, NULL, NULL, j.resource_id)
                    WHEN x.said = 0 AND j.blob IS NULL THEN 410001 ELSE x.said END AS verdict
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

CREATE OR REPLACE FUNCTION keys_bind(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], keys uuid[],
    resources uuid[], bound_ms bigint)
RETURNS SETOF released
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_lifetime interval := nullif(bound_ms, 0) * interval '1 millisecond';
    v_caller record;
    v_key record;
    v_resource record;
    v_entry entries;
    v_verdict integer;
    v_path uuid[];
    v_code integer;
    v_gate integer;
    v_bound timestamptz(3);
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(keys), cardinality(resources));
    PERFORM policy_share();
    -- Not while somebody is taken away: who waits here may be the one, and is judged after.
    PERFORM FROM kms.resources r JOIN (SELECT DISTINCT i.org, i.id FROM unnest(orgs, resources) AS i(org, id)) i
        ON r.org_id = i.org AND r.resource_id = i.id ORDER BY r.org_id, r.resource_id FOR SHARE OF r;
    PERFORM FROM content_keys k JOIN (SELECT DISTINCT i.org, i.id FROM unnest(orgs, keys) AS i(org, id)) i
        ON k.org_id = i.org AND k.key_id = i.id ORDER BY k.org_id, k.key_id FOR NO KEY UPDATE OF k;

    FOR i IN 1 .. cardinality(ops) LOOP
        v_path := NULL;
        v_entry := first_run(orgs[i], ops[i], 'key.bind', channels[i], resources[i], ARRAY[keys[i]]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            v_verdict := CASE v_entry.verdict WHEN 0 THEN gate_again(orgs[i], channels[i], resources[i]) ELSE v_entry.verdict END;
        ELSE
            SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
            SELECT * INTO v_key FROM content_keys k WHERE k.org_id = orgs[i] AND k.key_id = keys[i];
            SELECT * INTO v_resource FROM kms.resources r WHERE r.org_id = orgs[i] AND r.resource_id = resources[i];
            v_code := resource_code(resources[i]);
            IF v_caller.verdict <> 0 THEN
                v_verdict := v_caller.verdict;
            ELSIF v_caller.kind <> 'user' THEN
                v_verdict := 403001;
            ELSIF v_code = 403010 THEN
                v_verdict := v_code;
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
                v_gate := gate_now(orgs[i], v_caller.subject, resources[i], v_now);
                IF v_path IS NULL THEN
                    v_verdict := v_code;
                ELSIF v_gate <> 0 THEN
                    v_verdict := v_gate;
                ELSIF v_resource.destroyed_at IS NOT NULL OR v_resource.expires_at <= v_now OR v_key.blob IS NULL THEN
                    v_verdict := 410001;
                ELSE
                    v_verdict := 0;
                    v_bound := next_bound(orgs[i], resources[i], v_now);
                    UPDATE content_keys k
                       SET resource_id = resources[i], bound_at = v_bound, expires_at = v_bound + v_lifetime
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

DROP FUNCTION judge_resource(uuid, uuid, text, text, text, boolean, timestamptz);
CREATE FUNCTION judge_resource(p_org uuid, p_resource uuid, p_kind text, p_subject text, p_behalf text,
    p_officer boolean, p_now timestamptz, p_about text DEFAULT 'members', OUT verdict integer, OUT path uuid[], OUT expires_at timestamptz,
    OUT matter uuid, OUT kind text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_behalf text := nullif(p_behalf, p_subject);
    v_resource record;
    v_code integer := resource_code(p_resource);
BEGIN
    verdict := 0;
    IF v_behalf IS NOT NULL AND p_officer IS NOT TRUE THEN
        verdict := 403004;
        RETURN;
    END IF;
    SELECT r.resource_id AS id, r.expires_at, r.destroyed_at, r.kind, r.security INTO v_resource
      FROM resources r WHERE r.org_id = p_org AND r.resource_id = p_resource;
    path := path_to(p_org, p_resource, CASE WHEN v_behalf IS NULL THEN p_kind ELSE 'user' END,
        coalesce(v_behalf, p_subject), p_now);
    IF p_about = 'keys' AND v_code = 403010 THEN
        verdict := v_code;
        RETURN;
    ELSIF path IS NULL THEN
        verdict := CASE WHEN v_code = 404001 THEN v_code
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
        RETURN;
    ELSIF p_about <> 'members' AND v_code <> 403010 THEN
        verdict := gate_now(p_org, p_subject, p_resource, p_now);
    END IF;
    IF verdict <> 0 THEN
        RETURN;
    ELSIF v_resource.destroyed_at IS NOT NULL OR v_resource.expires_at <= p_now THEN
        verdict := 410001;
    END IF;
END $$;
COMMENT ON FUNCTION judge_resource IS
    'May this principal have to do with this resource?  p_about: keys (403010, the gate), resource (the gate), members; matter: under which an officer may, NULL: needs none';

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
    v_last timestamptz(3);
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(resources), cardinality(after), cardinality(before), cardinality(counts),
        cardinality(behalf), cardinality(officers));
    PERFORM policy_share();
    FOR i IN 1 .. cardinality(ops) LOOP
        v_path := NULL;
        v_keys := NULL;
        v_matter := NULL;
        v_entry := first_run(orgs[i], ops[i], 'resource.keys', channels[i], resources[i]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            v_verdict := CASE v_entry.verdict WHEN 0 THEN gate_again(orgs[i], channels[i], resources[i]) ELSE v_entry.verdict END;
            v_keys := v_entry.key_ids;
        ELSE
            SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
            v_verdict := v_caller.verdict;
            -- Each statement sees what others have done by then.  Who is taken away after he was judged must not get the key that is
            -- made so that he has it not (do_authorizations_delete): nothing is released that was bound after this look.
            v_last := last_bound(orgs[i], resources[i]);
            IF v_verdict = 0 THEN
                SELECT * INTO v_judged FROM judge_resource(orgs[i], resources[i], v_caller.kind, v_caller.subject,
                    behalf[i], officers[i], v_now, 'keys');
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
                         WHERE k.org_id = orgs[i] AND k.resource_id = resources[i] AND k.bound_at <= v_last
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

CREATE FUNCTION resource_keys_create(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[],
    generations integer[], key_items integer[], key_ids uuid[], key_blobs bytea[], resources uuid[], bound_ms bigint)
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
    v_bound timestamptz(3);
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(generations), cardinality(resources));
    PERFORM check_lengths(cardinality(key_items), cardinality(key_ids), cardinality(key_blobs));
    IF EXISTS (SELECT FROM generate_series(1, cardinality(ops)) i WHERE i <> ALL (key_items)) THEN
        RAISE EXCEPTION 'an item without keys' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM policy_share();
    -- One after the other: each binds after those before it, and nobody who is being taken away.
    PERFORM FROM kms.resources r JOIN (SELECT DISTINCT i.org, i.id FROM unnest(orgs, resources) AS i(org, id)) i
        ON r.org_id = i.org AND r.resource_id = i.id ORDER BY r.org_id, r.resource_id FOR NO KEY UPDATE OF r;

    FOR i IN 1 .. cardinality(ops) LOOP
        v_path := NULL;
        v_keys := NULL;
        v_entry := first_run(orgs[i], ops[i], 'resource.keys.create', channels[i], resources[i]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            v_verdict := CASE v_entry.verdict WHEN 0 THEN gate_again(orgs[i], channels[i], resources[i]) ELSE v_entry.verdict END;
            v_keys := v_entry.key_ids;
        ELSE
            SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
            v_verdict := v_caller.verdict;
            IF v_verdict = 0 AND v_caller.kind <> 'user' THEN
                v_verdict := 403001;
            ELSIF v_verdict = 0 THEN
                SELECT * INTO v_judged FROM judge_resource(orgs[i], resources[i], v_caller.kind, v_caller.subject, NULL, false,
                    v_now, 'keys');
                v_verdict := v_judged.verdict;
                v_path := v_judged.path;
            END IF;
            IF v_verdict = 0 AND generation_current(orgs[i], generations[i]) IS NOT TRUE THEN
                v_verdict := -1;
            ELSIF v_verdict = 0 THEN
                v_bound := next_bound(orgs[i], resources[i], v_now, true);
                SELECT array_agg(k.id ORDER BY k.n) INTO v_keys
                  FROM unnest(key_items, key_ids) WITH ORDINALITY AS k(item, id, n) WHERE k.item = i;
                INSERT INTO content_keys (org_id, key_id, generation, blob, creator, client_id, created_at, expires_at, resource_id,
                                          bound_at)
                SELECT orgs[i], k.id, generations[i], k.blob, v_caller.subject, coalesce(clients[i], ''), v_now,
                       v_bound + nullif(bound_ms, 0) * interval '1 millisecond', resources[i], v_bound
                  FROM unnest(key_items, key_ids, key_blobs) AS k(item, id, blob) WHERE k.item = i;
            END IF;
            IF v_verdict >= 0 THEN
                PERFORM record_entry(orgs[i], ops[i], 'resource.keys.create', v_verdict, v_caller.kind, v_caller.subject, NULL,
                    clients[i], channels[i], resources[i], v_keys, v_path, requests[i], NULL);
            END IF;
        END IF;
        IF v_verdict = 0 THEN
            RETURN QUERY
                SELECT i, 0, k.key_id, k.blob, k.generation, w.root_id, w.wrapped, k.org_id, k.creator, k.client_id,
                       ms(k.created_at), ms(k.expires_at), ms(k.bound_at), k.resource_id
                  FROM unnest(v_keys) WITH ORDINALITY AS u(id, at)
                  JOIN content_keys k ON k.org_id = orgs[i] AND k.key_id = u.id AND k.blob IS NOT NULL
                  JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
                 ORDER BY u.at;
            CONTINUE WHEN FOUND;
            v_verdict := 410001;    -- run again so late that they are destroyed
        END IF;
        RETURN NEXT ROW(i, v_verdict, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::released;
    END LOOP;
END $$;
COMMENT ON FUNCTION resource_keys_create IS 'Stores new keys bound to resources: the first of them is rotated so';

-- ---------------------------------------------------------------------------------------------------- resources

CREATE OR REPLACE FUNCTION resource_json(p_org uuid, p_resource uuid) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT jsonb_build_object('resource', r.resource_id, 'kind', r.kind, 'security', r.security, 'created', ms(r.created_at),
        'expires', ms(r.expires_at), 'active', active_key(r.org_id, r.resource_id),
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
    v_security text := coalesce(c.args ->> 'security', 'standard');
    v_new jsonb := coalesce(c.args -> 'new_keys', '[]');
    v_gate integer := 0;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, NULL);
    END IF;
    IF v_kind NOT IN ('space', 'meeting', 'file', 'whiteboard', 'calendar') THEN
        RETURN refused(400002, 'kind is space, meeting, file, whiteboard or calendar', NULL);
    ELSIF v_security NOT IN ('standard', 'zero-trust') THEN
        RETURN refused(400002, 'security is standard or zero-trust', NULL);
    ELSIF v_security = 'zero-trust' AND v_kind <> 'meeting' THEN
        RETURN refused(400002, 'security zero-trust is for kind meeting', NULL);
    END IF;
    SELECT coalesce(array_agg(x.id::uuid ORDER BY x.n), '{}') INTO v_keys
      FROM jsonb_array_elements_text(coalesce(c.args -> 'keys', '[]')) WITH ORDINALITY AS x(id, n);
    IF v_security = 'standard' THEN
        v_gate := gate_now(c.org, c.subject, NULL, c.at);
    ELSIF cardinality(v_keys) > 0 OR v_new <> '[]' THEN
        RETURN refused(403010, NULL, NULL);
    END IF;
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
        ELSIF v_gate <> 0 THEN
            RETURN refused(v_gate, NULL, NULL);
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

    IF v_gate <> 0 THEN
        RETURN refused(v_gate, NULL, NULL);
    ELSIF NOT minted_now(c.org, v_new) THEN
        RETURN refused(-1, NULL, NULL);
    END IF;

    INSERT INTO resources (org_id, resource_id, creator, created_at, expires_at, kind, security)
    VALUES (c.org, v_id, c.subject, c.at, v_until, v_kind, v_security);
    v_granted := grant_all(c, v_id, v_until,
        jsonb_build_array(jsonb_build_object('kind', 'user', 'grantee', c.subject)) || v_auths,
        (c.args ->> 'anonymous')::integer);
    UPDATE content_keys k SET resource_id = v_id, bound_at = c.at, expires_at = v_keys_until
     WHERE k.org_id = c.org AND k.key_id = ANY (v_keys);
    v_keys := v_keys || bind_minted(c, v_id, v_new, c.at, nullif((c.args ->> 'bound_ms')::bigint, 0));
    RETURN ROW(0, jsonb_build_object('resource', v_id, 'kind', v_kind, 'security', v_security, 'created', ms(c.at),
        'expires', ms(v_until), 'keys', to_jsonb(v_keys), 'active', active_key(c.org, v_id), 'authorizations', v_granted),
        v_id, v_keys, '{}'::uuid[], NULL)::outcome;
END $$;

CREATE OR REPLACE FUNCTION do_resource_get(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_resource uuid := (c.args ->> 'resource')::uuid;
    v_behalf text := nullif(c.args ->> 'behalf', c.subject);
    j record;
BEGIN
    IF c.kind <> 'user' THEN
        RETURN refused(403001, NULL, v_resource);
    END IF;
    SELECT * INTO j FROM judge_resource(c.org, v_resource, c.kind, c.subject, v_behalf, (c.args ->> 'officer')::boolean, c.at,
        'resource');
    IF j.verdict <> 0 THEN
        RETURN refused(j.verdict, NULL, v_resource, j.path, v_behalf);
    END IF;
    RETURN ROW(0, resource_json(c.org, v_resource), v_resource, NULL, j.path, v_behalf)::outcome;
END $$;

CREATE OR REPLACE FUNCTION do_authorizations_delete(c call) RETURNS outcome LANGUAGE plpgsql AS $$
DECLARE
    v_resource uuid := (c.args ->> 'resource')::uuid;
    v_id uuid := (c.args ->> 'authorization')::uuid;
    v_ids uuid[];
    v_asked bigint;
    v_list jsonb;
    v_new jsonb := coalesce(c.args -> 'new_keys', '[]');
    v_keys uuid[];
    v_locked integer;
    v_rotated uuid[] := '{}';
    v_remaining bigint;
    v_other uuid;
    o outcome;
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
    -- Keys that who is removed never had, here and in what he was let into by this.  Without one so far there is nothing that he
    -- could have.  An anonymous one is let into nothing else.
    IF setting(c.org, 'rotate.removal') = 'on' THEN
        SELECT x.resources, x.remaining INTO v_rotated, v_remaining FROM rotated_with(c.org, v_resource, EXISTS (
            SELECT FROM unnest(v_ids) AS i(id)
             CROSS JOIN LATERAL (SELECT a.kind FROM authorizations a WHERE a.org_id = c.org AND a.authorization_id = i.id LIMIT 1) a
             WHERE a.kind <> 'anonymous'), c.at) x;
        IF cardinality(v_rotated) > 0 THEN
            SELECT x.locked INTO v_locked FROM organisations x WHERE x.org_id = c.org;
            IF v_locked <> 0 THEN       -- nothing can be minted
                RETURN refused(v_locked, NULL, v_resource, j.path);
            ELSIF jsonb_array_length(v_new) < cardinality(v_rotated) THEN
                o := refused(-2, NULL, v_resource);
                o.result := jsonb_build_object('keys', cardinality(v_rotated));
                RETURN o;
            ELSIF NOT minted_now(c.org, v_new) THEN
                RETURN refused(-1, NULL, v_resource);
            END IF;
            -- Locked already (each_item), but what was opened since.
            FOR v_other IN SELECT u.id FROM unnest(v_rotated) AS u(id) ORDER BY u.id LOOP
                PERFORM FROM resources r WHERE r.org_id = c.org AND r.resource_id = v_other FOR NO KEY UPDATE;
            END LOOP;
            FOR i IN 1 .. cardinality(v_rotated) LOOP
                v_keys := v_keys || bind_minted(c, v_rotated[i], jsonb_build_array(v_new -> (i - 1)),
                    next_bound(c.org, v_rotated[i], c.at, true), nullif((c.args ->> 'bound_ms')::bigint, 0));
            END LOOP;
        END IF;
    END IF;
    WITH gone AS (
        DELETE FROM authorizations a
         WHERE a.org_id = c.org AND a.authorization_id = ANY (v_ids)
        RETURNING a.*)
    SELECT jsonb_agg(authorization_json(g::authorizations, j.expires_at) ORDER BY array_position(v_ids, g.authorization_id))
      INTO v_list FROM gone g;
    RETURN ROW(0, jsonb_build_object('resource', v_resource, 'authorizations', v_list)
            || CASE WHEN v_keys IS NULL THEN '{}' ELSE jsonb_build_object('rotated', cardinality(v_keys)) END
            || CASE WHEN v_rotated[1] = v_resource THEN jsonb_build_object('active', v_keys[1]) ELSE '{}' END
            || CASE WHEN v_remaining > 0 THEN jsonb_build_object('not_rotated', v_remaining) ELSE '{}' END,
        v_resource, v_keys, j.path, NULL)::outcome;
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
    v_rotates boolean;
    v_lock record;
    v_own uuid[];
    c call;
    o outcome;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(args));
    PERFORM policy_share();
    IF p_changes THEN
        -- All rows that the items contend for, in order: two calls that cross do not deadlock.  Where a removal rotates, what is open
        -- to the resource gets keys as well, and nothing new is opened to it meanwhile.
        v_rotates := p_action IN ('resource.create', 'authorization.create', 'authorization.delete')
            AND EXISTS (SELECT FROM unnest(orgs) AS i(org) WHERE setting(i.org, 'rotate.removal') = 'on');
        FOR v_lock IN
            SELECT x.org, x.id, bool_or(x.own) AS own FROM (
                SELECT i.org, coalesce(a.resource_id, (i.args ->> 'resource')::uuid) AS id, true AS own
                  FROM unnest(orgs, args) AS i(org, args)
                  LEFT JOIN authorizations a
                    ON a.org_id = i.org AND a.authorization_id = (i.args ->> 'authorization')::uuid
                UNION ALL
                SELECT i.org, y.id, true
                  FROM unnest(orgs, args) AS i(org, args)
                  LEFT JOIN authorizations a
                    ON a.org_id = i.org AND a.authorization_id = (i.args ->> 'authorization')::uuid
                 CROSS JOIN LATERAL unnest(opened_to(i.org, coalesce(a.resource_id, (i.args ->> 'resource')::uuid), v_now)) AS y(id)
                 WHERE v_rotates AND p_action = 'authorization.delete'
                UNION ALL
                SELECT i.org, (g.a ->> 'grantee')::uuid, false
                  FROM unnest(orgs, args) AS i(org, args)
                 CROSS JOIN LATERAL jsonb_array_elements(coalesce(i.args -> 'auths', '[]')) AS g(a)
                 WHERE v_rotates AND p_action <> 'authorization.delete' AND g.a ->> 'kind' = 'resource') x
             WHERE x.id IS NOT NULL
             GROUP BY x.org, x.id ORDER BY x.org, x.id
        LOOP
            IF v_lock.own THEN
                PERFORM FROM resources r WHERE r.org_id = v_lock.org AND r.resource_id = v_lock.id FOR NO KEY UPDATE;
            ELSE
                PERFORM FROM resources r WHERE r.org_id = v_lock.org AND r.resource_id = v_lock.id FOR SHARE;
            END IF;
        END LOOP;
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
        v_own := NULL;
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
        -- Below zero: nothing was done, it comes again.
        IF NOT v_again AND o.verdict >= 0 THEN
            IF p_action = 'authorization.delete' AND cardinality(o.keys) > 0 THEN
                -- What was rotated with it has entries of its own, as every key stands in one of its resource.
                FOR v_lock IN
                    SELECT k.resource_id AS id, array_agg(k.key_id) AS keys
                      FROM unnest(o.keys) AS u(id)
                     CROSS JOIN LATERAL (
                           SELECT x.key_id, x.resource_id FROM content_keys x WHERE x.org_id = orgs[i] AND x.key_id = u.id LIMIT 1) k
                     GROUP BY k.resource_id ORDER BY k.resource_id
                LOOP
                    IF v_lock.id = o.resource THEN
                        v_own := v_lock.keys;
                    ELSE
                        PERFORM record_entry(orgs[i], part_op(ops[i], v_lock.id), 'resource.keys.create', 0, v_caller.kind,
                            v_caller.subject, NULL, clients[i], channels[i], v_lock.id, v_lock.keys, NULL, requests[i],
                            jsonb_build_object('removal', o.resource));
                    END IF;
                END LOOP;
                o.keys := v_own;
            END IF;
            PERFORM record_entry(orgs[i], ops[i], p_action, o.verdict, v_caller.kind, v_caller.subject, o.behalf,
                clients[i], channels[i], o.resource, o.keys, o.path, requests[i],
                CASE WHEN p_changes OR o.verdict <> 0 THEN o.result END, NULL, v_matter);
        END IF;
        verdict := o.verdict;
        result := o.result;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION resource_create IS
    'Makes resources; args: auths, keys, anonymous, ttl_ms, bound_ms, kind, security, new_keys';
COMMENT ON FUNCTION authorizations_delete IS
    'Takes grants away; args: authorization, or resource and auths; new_keys, bound_ms: for resources that must be rotated';

CREATE OR REPLACE FUNCTION resource_show(id uuid, actor text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_row record;
BEGIN
    SELECT r.*, o.name AS org_name INTO v_row
      FROM resources r JOIN organisations o ON o.org_id = r.org_id WHERE r.resource_id = id;
    PERFORM record_admin(coalesce(v_row.org_id, nobody()), gen_random_uuid(), actor, 'resource.show',
        CASE WHEN v_row.resource_id IS NULL THEN 404001 ELSE 0 END, NULL, id);
    IF v_row.resource_id IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN jsonb_build_object('resource', id, 'org', v_row.org_id, 'org_name', v_row.org_name, 'creator', v_row.creator,
        'kind', v_row.kind, 'security', v_row.security,
        'created', ms(v_row.created_at), 'expires', ms(v_row.expires_at), 'destroyed', ms(v_row.destroyed_at),
        'keys', (SELECT count(*) FROM content_keys k WHERE k.org_id = v_row.org_id AND k.resource_id = id),
        'active', active_key(v_row.org_id, id),
        'recordings', (SELECT count(*) FROM recordings m WHERE m.org_id = v_row.org_id AND m.resource_id = id AND m.blob IS NOT NULL),
        'authorizations', (SELECT coalesce(jsonb_agg(authorization_json(a, v_row.expires_at)
                                               ORDER BY a.created_at, a.authorization_id), '[]')
                             FROM authorizations a WHERE a.org_id = v_row.org_id AND a.resource_id = id));
END $$;

-- ---------------------------------------------------------------------------------------------------- recordings

CREATE FUNCTION recording_gone(m recordings, p_now timestamptz) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- What a matter holds beyond its time is there, not destroyed.
    RETURN m.blob IS NULL OR coalesce(m.expires_at <= p_now AND hold_of(m.org_id, m.resource_id, m.created_at, p_now) IS NULL, false);
END $$;
COMMENT ON FUNCTION recording_gone IS 'Is a recording destroyed, or past its time?';

-- The message is for a key of the container that is there: when the one it was made for is destroyed, for the active one.
CREATE FUNCTION recording_key(m recordings) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM FROM content_keys k WHERE k.org_id = m.org_id AND k.key_id = m.key_id AND k.blob IS NOT NULL;
    RETURN CASE WHEN FOUND THEN m.key_id ELSE active_key(m.org_id, m.resource_id) END;
END $$;
COMMENT ON FUNCTION recording_key IS 'The container''s key that a recording''s message is encrypted to; NULL: the container has none';

CREATE FUNCTION recording_json(p_org uuid, p_recording uuid) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT jsonb_build_object('recording', m.recording_id, 'type', m.type, 'resource', m.resource_id, 'loc', m.loc, 'tag', m.tag,
               'iv', encode(m.iv, 'hex'), 'aad', m.aad, 'created', ms(m.created_at), 'expires', ms(m.expires_at),
               'key', k.key_id, 'blob', encode(m.blob, 'hex'), 'generation', m.generation, 'root', w.root_id,
               'wrapped', encode(w.wrapped, 'hex'), 'key_blob', encode(k.blob, 'hex'), 'key_generation', k.generation,
               'key_root', v.root_id, 'key_wrapped', encode(v.wrapped, 'hex'))
      FROM recordings m
      JOIN wrapping_keys w ON w.org_id = m.org_id AND w.generation = m.generation
      JOIN content_keys k ON k.org_id = m.org_id AND k.key_id = recording_key(m)
      JOIN wrapping_keys v ON v.org_id = k.org_id AND v.generation = k.generation
     WHERE m.org_id = p_org AND m.recording_id = p_recording AND m.blob IS NOT NULL);
COMMENT ON FUNCTION recording_json IS 'A recording, and what opens its key and that of its container; NULL: not there any more';

-- What each action does, after the judgement; only the answer has anything that opens, the entry has ids.
CREATE FUNCTION do_recording(p_action text, c call, m recordings, p_behalf text, OUT verdict integer, OUT result jsonb,
    OUT keys uuid[], OUT detail jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    v_retention bigint;
    v_ids uuid[];
    v_key uuid;
BEGIN
    verdict := 0;
    CASE p_action
    WHEN 'recording.create' THEN
        v_key := active_key(c.org, m.resource_id);
        IF v_key IS NULL THEN
            verdict := 409002;
            result := '{"why":"the container has no key that its recordings could be encrypted to"}';
            RETURN;
        ELSIF generation_current(c.org, (c.args ->> 'generation')::integer) IS NOT TRUE THEN
            verdict := -1;
            RETURN;
        END IF;
        v_retention := setting(c.org, 'retention.' || (c.args ->> 'type'))::bigint;
        INSERT INTO recordings (org_id, recording_id, resource_id, type, key_id, generation, blob, iv, aad, loc, creator, created_at,
                                expires_at)
        VALUES (c.org, m.recording_id, m.resource_id, c.args ->> 'type', v_key, (c.args ->> 'generation')::integer,
                decode(c.args ->> 'blob', 'hex'), decode(c.args ->> 'iv', 'hex'), c.args ->> 'aad', c.args ->> 'loc', c.subject, c.at,
                c.at + nullif(v_retention, 0) * interval '1 millisecond');

    WHEN 'recording.update' THEN
        v_key := active_key(c.org, m.resource_id);
        IF v_key IS NULL THEN
            verdict := 409002;
            result := '{"why":"the container has no key that its recordings could be encrypted to"}';
            RETURN;
        END IF;
        UPDATE recordings x
           SET key_id = v_key, loc = CASE WHEN c.args ? 'loc' THEN c.args ->> 'loc' ELSE x.loc END,
               tag = CASE WHEN c.args ? 'tag' THEN c.args ->> 'tag' ELSE x.tag END
         WHERE x.org_id = c.org AND x.recording_id = m.recording_id;

    WHEN 'recording.get' THEN
        v_key := recording_key(m);
        IF v_key IS NULL THEN
            verdict := 410001;
            RETURN;
        END IF;

    WHEN 'recording.list' THEN
        SELECT array_agg(x.recording_id ORDER BY x.created_at, x.recording_id), array_agg(DISTINCT x.key) INTO v_ids, keys
          FROM (SELECT y.recording_id, y.created_at, z.key
                  FROM recordings y CROSS JOIN LATERAL (SELECT recording_key(y) AS key OFFSET 0) z
                 WHERE y.org_id = c.org AND y.resource_id = m.resource_id AND y.blob IS NOT NULL AND NOT recording_gone(y, c.at)
                   AND z.key IS NOT NULL
                   -- To an officer under a matter: those of its time.
                   AND (p_behalf IS NULL OR officer_matter(c.org, p_behalf, (SELECT r.kind FROM resources r
                            WHERE r.org_id = c.org AND r.resource_id = m.resource_id), (SELECT k.bound_at FROM content_keys k
                            WHERE k.org_id = c.org AND k.key_id = z.key), c.at) IS DISTINCT FROM nobody())
                 ORDER BY y.created_at, y.recording_id LIMIT (c.args ->> 'max')::integer + 1) x;
        IF cardinality(v_ids) > (c.args ->> 'max')::integer THEN
            verdict := 413001;
            keys := NULL;
            RETURN;
        END IF;
        detail := CASE WHEN v_ids IS NOT NULL THEN jsonb_build_object('recordings', v_ids) END;
        result := recordings_json(c.org, detail);
        RETURN;

    WHEN 'recording.delete' THEN
        IF hold_of(c.org, m.resource_id, m.created_at, c.at) IS NOT NULL THEN
            verdict := 409002;
            result := '{"why":"an open matter holds it: it can be deleted when the matter is closed"}';
            RETURN;
        END IF;
        UPDATE recordings x SET blob = NULL, iv = NULL, aad = NULL, loc = NULL, tag = NULL, destroyed_at = c.at
         WHERE x.org_id = c.org AND x.recording_id = m.recording_id;
        result := recording_end(c.org, m.recording_id);
        detail := jsonb_build_object('recording', m.recording_id, 'type', m.type);
        RETURN;
    END CASE;
    keys := ARRAY[v_key];
    result := recording_json(c.org, m.recording_id);
    detail := jsonb_build_object('recording', m.recording_id, 'type', result -> 'type');
END $$;
COMMENT ON FUNCTION do_recording IS 'One request about recordings, judged already; m: the recording, or a new one''s id and container';

CREATE FUNCTION recordings_json(p_org uuid, p_detail jsonb) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_build_object('recordings', (
    SELECT coalesce(jsonb_agg(x.r ORDER BY x.n) FILTER (WHERE x.r IS NOT NULL), '[]')
      FROM (SELECT recording_json(p_org, i.id::uuid) AS r, i.n
              FROM jsonb_array_elements_text(coalesce(p_detail -> 'recordings', '[]')) WITH ORDINALITY AS i(id, n)) x));
COMMENT ON FUNCTION recordings_json IS 'The recordings that an entry names';

CREATE FUNCTION recording_end(p_org uuid, p_recording uuid) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT jsonb_build_object('recording', m.recording_id, 'type', m.type, 'resource', m.resource_id, 'created', ms(m.created_at),
                   'destroyed', ms(m.destroyed_at))
          FROM recordings m WHERE m.org_id = p_org AND m.recording_id = p_recording);
COMMENT ON FUNCTION recording_end IS 'What is left of a recording that was deleted';

CREATE FUNCTION each_recording(p_action text, ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_new boolean := p_action = 'recording.create';
    v_list boolean := p_action = 'recording.list';
    v_entry entries;
    v_caller record;
    v_judged record;
    v_done record;
    v_recording uuid;       -- NULL: a list
    v_resource uuid;
    v_behalf text;
    v_matter uuid;
    v_path uuid[];
    v_keys uuid[];
    v_detail jsonb;
    v_key uuid;
    m recordings;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(args));
    PERFORM policy_share();
    IF p_action IN ('recording.create', 'recording.update', 'recording.delete') THEN
        PERFORM FROM resources r
          WHERE (r.org_id, r.resource_id) IN (
                SELECT i.org, coalesce(x.resource_id, (i.args ->> 'resource')::uuid)
                  FROM unnest(orgs, args) AS i(org, args)
                  LEFT JOIN recordings x ON x.org_id = i.org AND x.recording_id = (i.args ->> 'recording')::uuid)
          ORDER BY r.org_id, r.resource_id FOR SHARE;
        PERFORM FROM recordings x
          WHERE (x.org_id, x.recording_id) IN (SELECT i.org, (i.args ->> 'recording')::uuid FROM unnest(orgs, args) AS i(org, args))
          ORDER BY x.org_id, x.recording_id FOR NO KEY UPDATE;
    END IF;

    FOR i IN 1 .. cardinality(ops) LOOP
        n := i;
        verdict := 0;
        result := NULL;
        v_path := NULL;
        v_keys := NULL;
        v_matter := NULL;
        m := NULL;
        v_recording := CASE WHEN v_list THEN NULL ELSE (args[i] ->> CASE WHEN v_new THEN 'id' ELSE 'recording' END)::uuid END;
        v_resource := CASE WHEN v_list OR v_new THEN (args[i] ->> 'resource')::uuid END;
        v_behalf := CASE WHEN p_action IN ('recording.get', 'recording.list') THEN args[i] ->> 'behalf' END;
        v_detail := CASE WHEN v_recording IS NOT NULL THEN jsonb_build_object('recording', v_recording) END;

        v_entry := first_run(orgs[i], ops[i], p_action, channels[i], v_resource);
        IF v_entry.op_id IS NOT NULL THEN
            IF (v_entry.detail ->> 'recording')::uuid IS DISTINCT FROM v_recording THEN
                RAISE EXCEPTION 'this operation id was used for something else' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            PERFORM touch_fence();
            verdict := CASE v_entry.verdict WHEN 0 THEN gate_again(orgs[i], channels[i], coalesce(v_resource,
                (SELECT x.resource_id FROM recordings x WHERE x.org_id = orgs[i] AND x.recording_id = v_recording))) ELSE v_entry.verdict END;
            IF verdict <> 0 THEN
                result := CASE WHEN v_entry.detail ? 'why' THEN jsonb_build_object('why', v_entry.detail -> 'why') END;
            ELSIF v_list THEN
                result := recordings_json(orgs[i], v_entry.detail);
            ELSIF p_action = 'recording.delete' THEN
                result := recording_end(orgs[i], v_recording);
            ELSE
                result := recording_json(orgs[i], v_recording);
                verdict := CASE WHEN result IS NULL THEN 410001 ELSE 0 END;     -- destroyed since
            END IF;
            RETURN NEXT;
            CONTINUE;
        END IF;

        IF NOT v_new AND NOT v_list THEN
            SELECT x.* INTO m FROM recordings x WHERE x.org_id = orgs[i] AND x.recording_id = v_recording;
            v_resource := m.resource_id;
        END IF;
        SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
        verdict := v_caller.verdict;
        v_behalf := nullif(v_behalf, v_caller.subject);
        IF verdict = 0 AND v_caller.kind <> 'user' THEN
            verdict := 403001;
        ELSIF verdict = 0 AND v_new AND (args[i] ->> 'type' IN ('recording', 'transcript')) IS NOT TRUE THEN
            verdict := 400002;
            result := '{"why":"type is recording or transcript"}';
        ELSIF verdict = 0 AND octet_length(args[i] ->> 'loc') > 4096 THEN
            verdict := 400002;
            result := '{"why":"loc is at most 4096 bytes"}';
        ELSIF verdict = 0 AND octet_length(args[i] ->> 'tag') > 64 THEN
            verdict := 400002;
            result := '{"why":"tag is at most 64 bytes"}';
        ELSIF verdict = 0 THEN
            -- An unknown recording's id stands in for its container's: the same work for both.
            SELECT * INTO v_judged FROM judge_resource(orgs[i], coalesce(v_resource, v_recording), v_caller.kind, v_caller.subject,
                v_behalf, (args[i] ->> 'officer')::boolean, v_now, 'keys');
            v_matter := v_judged.matter;
            IF v_resource IS NULL AND v_judged.verdict <> 403004 THEN
                verdict := CASE WHEN NOT EXISTS (SELECT FROM recordings x WHERE x.recording_id = v_recording) THEN 404001
                                WHEN v_behalf IS NOT NULL THEN 403004 ELSE 403001 END;
            ELSE
                verdict := v_judged.verdict;
                v_path := v_judged.path;
            END IF;
            IF verdict = 0 AND m.recording_id IS NOT NULL THEN
                IF recording_gone(m, v_now) THEN
                    verdict := 410001;
                ELSIF v_matter IS NOT NULL THEN
                    v_matter := officer_matter(orgs[i], v_behalf, v_judged.kind, (SELECT k.bound_at FROM content_keys k
                        WHERE k.org_id = orgs[i] AND k.key_id = recording_key(m)), v_now);
                    verdict := CASE WHEN v_matter = nobody() THEN 403007 ELSE 0 END;
                END IF;
            END IF;
            IF verdict = 0 THEN
                IF v_new THEN
                    m.recording_id := v_recording;
                END IF;
                m.resource_id := v_resource;
                SELECT * INTO v_done FROM do_recording(p_action, ROW(ops[i], orgs[i], channels[i], clients[i], v_caller.kind,
                    v_caller.subject, args[i], v_now)::call, m, v_behalf);
                verdict := v_done.verdict;
                result := v_done.result;
                v_keys := v_done.keys;
                IF verdict = 0 THEN
                    v_detail := v_done.detail;
                END IF;
            END IF;
        END IF;
        IF verdict = 403007 THEN
            result := jsonb_build_object('why', officer_why());
        END IF;
        IF verdict >= 0 THEN
            IF verdict <> 0 AND result IS NOT NULL THEN
                v_detail := coalesce(v_detail, '{}') || result;
            END IF;
            PERFORM record_entry(orgs[i], ops[i], p_action, verdict, v_caller.kind, v_caller.subject, v_behalf, clients[i],
                channels[i], v_resource, v_keys, v_path, requests[i], v_detail, NULL, CASE WHEN verdict = 0 THEN v_matter END);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION each_recording IS 'Runs all items of a call about recordings, and records each';

CREATE FUNCTION recording_create(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_recording('recording.create', $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION recording_create IS 'Makes recordings; args: resource, type, loc, id, blob, generation, iv, aad';

CREATE FUNCTION recording_update(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_recording('recording.update', $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION recording_update IS 'Changes recordings, whose messages are then for the active key; args: recording, loc, tag';

CREATE FUNCTION recording_get(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_recording('recording.get', $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION recording_get IS 'Releases recordings; args: recording, behalf, officer';

CREATE FUNCTION recordings_list(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_recording('recording.list', $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION recordings_list IS 'Releases the recordings of containers; args: resource, max, behalf, officer';

CREATE FUNCTION recording_delete(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$ SELECT * FROM each_recording('recording.delete', $1, $2, $3, $4, $5, $6) $$;
COMMENT ON FUNCTION recording_delete IS 'Destroys the keys of recordings; args: recording';

-- ---------------------------------------------------------------------------------------------------- services
-- As before, with the gate, and nothing of zero-trust meetings.  What a gate closes is left out of walks.

CREATE OR REPLACE FUNCTION service_walk(p_n integer, p_op uuid, p_channel uuid, p_request text, p_action text, p_target uuid,
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
    v_frozen boolean := freezes_hold(p_now);
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
    SELECT o.state, g.service IS NOT NULL AS served, p.enabled, setting(o.org_id, 'dlp.age')::bigint AS dlp_age,
           CASE WHEN o.locked <> 0 OR v_frozen
                THEN release_gate(o.org_id, o.locked, NULL, v_purpose, s.service, r.resource_id) ELSE 0 END AS gate INTO v_rules
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
            WHEN r.security = 'zero-trust' THEN 22
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
            WHEN v_rules.gate <> 0 THEN gate_reason(v_rules.gate)
            WHEN r.destroyed_at IS NOT NULL OR r.expires_at <= p_now THEN 17
            ELSE 0 END;
        IF v_reason = 0 AND v_org IS NULL THEN
            SELECT array_agg(g.org_id ORDER BY g.org_id) FILTER (WHERE p.enabled AND o.state = 'active' AND t.gate = 0),
                   CASE WHEN count(*) = 0 THEN 7 WHEN NOT bool_or(coalesce(p.enabled, false)) THEN 8
                        WHEN NOT bool_or(coalesce(p.enabled, false) AND o.state = 'active') THEN 10
                        WHEN NOT bool_or(coalesce(p.enabled, false) AND o.state = 'active' AND t.gate = 0)
                            THEN gate_reason(max(t.gate) FILTER (WHERE p.enabled AND o.state = 'active')) ELSE 0 END
              INTO v_orgs, v_reason
              FROM service_orgs g
              JOIN organisations o ON o.org_id = g.org_id
              LEFT JOIN purposes p ON p.org_id = g.org_id AND p.purpose = v_purpose
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN o.locked <> 0 OR v_frozen
                               THEN release_gate(o.org_id, o.locked, NULL, v_purpose, s.service, NULL) ELSE 0 END AS gate OFFSET 0) t
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
                               AND d.security = 'standard' AND d.kind = ANY (s.kinds) AND k.bound_at >= v_from AND k.bound_at < v_to
                               AND (m.matter_id IS NULL OR (d.kind = ANY (m.kinds) AND EXISTS (
                                        SELECT FROM authorizations a
                                         WHERE a.org_id = k.org_id AND a.resource_id = k.resource_id AND a.kind = 'user'
                                           AND a.grantee = ANY (m.custodians))))
                               AND (NOT v_frozen OR release_gate(k.org_id, 0, NULL, v_purpose, s.service, k.resource_id) = 0) AS fits
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
        -- A key destroyed, locked or frozen since is not in the answer, though it is in the record: the safe side.
        RETURN QUERY
            SELECT p_n, 0, k.key_id, k.blob, k.generation, w.root_id, w.wrapped, k.org_id, k.creator, k.client_id,
                   ms(k.created_at), ms(k.expires_at), ms(k.bound_at), k.resource_id, s.service, v_purpose, v_matter,
                   s.public_key, v_cursor, NULL::text
              FROM unnest(v_key_orgs, v_keys) AS u(org, id)
              JOIN content_keys k ON k.org_id = u.org AND k.key_id = u.id AND k.blob IS NOT NULL
              JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
              JOIN organisations o ON o.org_id = k.org_id AND o.locked = 0
               AND (NOT v_frozen OR release_gate(k.org_id, o.locked, NULL, v_purpose, s.service, k.resource_id) = 0)
             ORDER BY CASE WHEN v_walk THEN k.bound_xact END, CASE WHEN NOT v_walk THEN k.bound_at END, k.key_id;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    RETURN NEXT ROW(p_n, v_verdict, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, s.service,
        v_purpose, v_matter, NULL, v_cursor, v_why)::service_released;
END $$;

CREATE OR REPLACE FUNCTION service_release(ops uuid[], channels uuid[], requests text[], clients text[], actions text[], targets uuid[],
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
              LEFT JOIN LATERAL (
                   SELECT x.channel_id, x.subject, x.client, x.cert_issuer, x.cert_serial FROM channels x
                    WHERE x.org_id = nobody() AND x.channel_id = d.channel AND x.kind = 'service' AND x.expires_at > v_now
                    LIMIT 1) c ON true
              LEFT JOIN LATERAL (
                   SELECT x.service, x.state, x.purposes, x.kinds, x.breadth, x.public_key FROM services x
                    WHERE x.org_id = nobody() AND x.service = c.subject LIMIT 1) s ON true
        ), found AS MATERIALIZED (
            SELECT i.n::integer AS n, i.op, i.channel, i.request, i.key, i.purpose,
                   CASE WHEN i.purpose = 'ediscovery' THEN i.matter END AS matter,
                   w.service, k.org_id, k.key_id, k.blob, k.generation, k.creator, k.client_id, k.created_at, k.expires_at, k.bound_at,
                   k.resource_id, r.kind, r.security,
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
                   SELECT x.kind, x.security, x.destroyed_at, x.expires_at FROM resources x
                    WHERE x.org_id = k.org_id AND x.resource_id = k.resource_id LIMIT 1) r ON true
        ), rules AS MATERIALIZED (
            SELECT d.org_id, d.service, d.purpose, o.state, o.locked, g.service IS NOT NULL AS served, p.enabled,
                   CASE WHEN d.purpose = 'dlp' THEN dlp_since(d.org_id, v_now) END AS since
              FROM (SELECT DISTINCT f.org_id, f.service, f.purpose FROM found f
                     WHERE f.org_id IS NOT NULL AND f.service IS NOT NULL AND f.purpose IS NOT NULL) d
             CROSS JOIN LATERAL (SELECT x.state, x.locked FROM organisations x WHERE x.org_id = d.org_id LIMIT 1) o
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
                        WHEN f.security = 'zero-trust' THEN 22
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
                        WHEN (u.locked <> 0 OR EXISTS (SELECT FROM freezes x WHERE x.until > v_now))    -- as in keys_release()
                            AND release_gate(f.org_id, u.locked, NULL, f.purpose, f.service, f.resource_id) <> 0
                            THEN gate_reason(release_gate(f.org_id, u.locked, NULL, f.purpose, f.service, f.resource_id))
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
                        WHEN (x.e).verdict = 0 AND y.gate <> 0 THEN y.gate
                        WHEN (x.e).verdict = 0 AND j.blob IS NULL THEN 410001 ELSE (x.e).verdict END AS verdict,
                   CASE WHEN (x.e).op_id IS NULL THEN release_why(j.reason) ELSE (x.e).detail ->> 'why' END AS why
              FROM judged j
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN (SELECT count(*) FROM recorded) < cardinality(ops)
                               THEN first_run(coalesce(j.org_id, nobody()), j.op, 'key.get', j.channel, NULL, ARRAY[j.key])
                          END AS e OFFSET 0) x
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN (x.e).verdict = 0
                               THEN release_gate(j.org_id, (SELECT o.locked FROM organisations o WHERE o.org_id = j.org_id), NULL, j.purpose,
                                        (x.e).subject, j.resource_id) END AS gate OFFSET 0) y
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

-- ---------------------------------------------------------------------------------------------------- alarms, explanations

CREATE OR REPLACE FUNCTION canary_note(e entries) RETURNS text LANGUAGE sql STABLE
RETURN CASE WHEN e.verdict = 0 AND cardinality(e.key_ids) > 0
             AND e.action IN ('key.get', 'resource.keys', 'purpose.keys', 'matter.keys', 'recording.get', 'recording.list') THEN coalesce(
    (SELECT c.note FROM canaries c WHERE c.org_id = e.org_id AND c.resource_id = e.resource_id AND c.created_at <= e.at),
    (SELECT c.note FROM canaries_past c WHERE c.org_id = e.org_id AND c.resource_id = e.resource_id
        AND c.created_at <= e.at AND c.removed_at > e.at LIMIT 1)) END;

CREATE OR REPLACE FUNCTION say_action(e entries) RETURNS text LANGUAGE sql STABLE
RETURN CASE e.action
    WHEN 'channel.create' THEN 'to open a channel'
    WHEN 'channel.delete' THEN 'to end a channel'
    WHEN 'ping' THEN 'whether the server is there'
    WHEN 'key.create' THEN 'for ' || CASE WHEN cardinality(e.key_ids) > 1 THEN cardinality(e.key_ids) || ' new keys' ELSE 'a new key' END
    WHEN 'key.bind' THEN 'to bind key ' || coalesce(e.key_ids[1]::text, '?') || ' to resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'key.get' THEN 'for key ' || coalesce(e.key_ids[1]::text, '?')
    WHEN 'resource.create' THEN 'to make a resource'
    WHEN 'resource.get' THEN 'for resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'resource.keys' THEN 'for the keys of resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'resource.keys.create' THEN 'for a new key of resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'resource.releases' THEN 'who got keys of resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'purpose.keys' THEN 'for the next keys of all resources that it may see'
    WHEN 'matter.keys' THEN 'for the next keys of a matter'
    WHEN 'authorization.create' THEN 'to authorise others on resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'authorization.list' THEN 'who is authorised on resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'authorization.delete' THEN 'to take authorisations away'
    WHEN 'recording.create' THEN 'for a new recording of resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'recording.update' THEN 'to change recording ' || coalesce(e.detail ->> 'recording', '?')
    WHEN 'recording.get' THEN 'for recording ' || coalesce(e.detail ->> 'recording', '?')
    WHEN 'recording.list' THEN 'for the recordings of resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'recording.delete' THEN 'to destroy recording ' || coalesce(e.detail ->> 'recording', '?')
    WHEN 'cmk.public_key' THEN 'for the public key to which a main key is encrypted'
    WHEN 'cmk.create' THEN 'to bring in a main key'
    WHEN 'cmk.list' THEN 'for the organisation''s main keys'
    WHEN 'cmk.update' THEN 'to change the state of a main key'
    WHEN 'cmk.delete' THEN 'to go back to the server''s own root and delete the main keys'
    ELSE 'for ' || e.action END;

-- The rules for recordings, in the order in which each_recording judges.
CREATE FUNCTION recording_checks(e entries, p_name text, p_behalf text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_checks jsonb := org_check(e);
    v_now timestamptz := clock_timestamp();
    v_gets boolean := e.action IN ('recording.get', 'recording.list');
    v_id uuid := CASE WHEN e.action NOT IN ('recording.create', 'recording.list') THEN arg_uuid(e.detail -> 'recording') END;
    v_elsewhere text;
    v_gone timestamptz;
    v_as entries;
    m recordings;
    r resources;
    k content_keys;
    w matters;
BEGIN
    SELECT * INTO r FROM resources x WHERE x.org_id = e.org_id AND x.resource_id = e.resource_id;
    SELECT * INTO m FROM recordings x WHERE x.org_id = e.org_id AND x.recording_id = v_id;
    IF e.kind = 'anonymous' THEN
        RETURN v_checks || check_of('anonymous', 403001, false, false,
            'an anonymous authorisation retrieves the keys of its resource and nothing else, no recordings', 'a user''s token');
    END IF;
    IF e.behalf_person IS NOT NULL OR e.verdict = 403004 THEN
        SELECT o.name INTO v_elsewhere FROM organisations o
         WHERE o.org_id <> e.org_id
           AND o.org_id IN (SELECT x.org_id FROM recordings x WHERE x.recording_id = v_id
                            UNION ALL SELECT x.org_id FROM resources x WHERE x.resource_id = e.resource_id);
        v_checks := v_checks || check_of('behalf', 403004, e.verdict <> 403004, NULL,
            CASE WHEN e.verdict <> 403004 THEN 'the token had the compliance role, which may ask on behalf of others'
                 WHEN v_elsewhere IS NOT NULL THEN format('what was asked for belongs to another organisation, %s', v_elsewhere)
                 WHEN NOT v_gets THEN 'onBehalfOf is for retrieving only'
                 ELSE 'the token had not the role that it takes' END,
            'the compliance role in the token, a retrieval, and something of the officer''s own organisation');
    END IF;
    IF v_id IS NOT NULL THEN
        SELECT o.name INTO v_elsewhere FROM recordings x JOIN organisations o ON o.org_id = x.org_id
         WHERE x.recording_id = v_id AND x.org_id <> e.org_id LIMIT 1;
        v_checks := v_checks || check_of('recording', CASE WHEN v_elsewhere IS NULL THEN 404001 ELSE 403001 END,
            coalesce(m.created_at <= e.at, false), m.recording_id IS NOT NULL,
            CASE WHEN v_elsewhere IS NOT NULL THEN format('the recording belongs to another organisation, %s', v_elsewhere)
                 WHEN m.recording_id IS NULL THEN 'no recording has this id'
                 ELSE format('the %s was made at %s by %s', m.type, say_time(m.created_at), m.creator) END,
            CASE WHEN v_elsewhere IS NULL THEN 'the id of a recording that exists' ELSE 'a token of that organisation' END);
    END IF;
    IF r.security = 'zero-trust' THEN
        RETURN v_checks || check_of('security', 403010, false, false,
            'the meeting is a zero-trust one: there is no key of it here, and no recording', 'a meeting of standard security');
    ELSIF e.resource_id IS NOT NULL AND r.resource_id IS NULL THEN
        SELECT o.name INTO v_elsewhere FROM resources x JOIN organisations o ON o.org_id = x.org_id
         WHERE x.resource_id = e.resource_id LIMIT 1;
        v_checks := v_checks || check_of('resource', CASE WHEN v_elsewhere IS NULL THEN 404001 ELSE 403001 END, false, false,
            CASE WHEN v_elsewhere IS NULL THEN 'no resource has this id' ELSE format('the resource belongs to another organisation, %s', v_elsewhere) END,
            CASE WHEN v_elsewhere IS NULL THEN 'the id of a resource that exists' ELSE 'a token of that organisation' END);
    ELSIF r.resource_id IS NOT NULL THEN
        v_checks := v_checks || authorised_check(e, 'user', CASE WHEN e.behalf_person IS NOT NULL THEN p_behalf ELSE p_name END);
    END IF;
    IF e.behalf_person IS NOT NULL AND (e.matter_id IS NOT NULL OR e.verdict = 403007) THEN
        SELECT * INTO w FROM matters x WHERE x.org_id = e.org_id AND x.matter_id = e.matter_id;
        IF w.matter_id IS NULL THEN
            v_checks := v_checks || check_of('compliance', 403007, false, NULL,
                format('officers of this organisation ask on behalf of others only under a matter, and no open, approved matter covered %s and this',
                    coalesce(p_behalf, 'the person')),
                'an open matter with this custodian and kind, whose window holds the time when the key of the message was bound');
        ELSE
            SELECT * INTO k FROM content_keys x WHERE x.org_id = e.org_id AND x.key_id = e.key_ids[1] AND e.action = 'recording.get';
            v_as := e;
            v_as.action := CASE WHEN k.key_id IS NOT NULL THEN 'key.get' ELSE e.action END;    -- the window is that of the message's key
            v_checks := v_checks || matter_checks(v_as, w, k, r.kind);
        END IF;
    END IF;
    v_checks := v_checks || gone_check(e, r, NULL);
    IF m.recording_id IS NOT NULL THEN
        v_gone := least(m.destroyed_at, CASE WHEN m.destroyed_at IS NOT NULL OR e.verdict = 410001 THEN m.expires_at END);
        v_checks := v_checks || check_of('recording.there', 410001, coalesce(v_gone > e.at, true) OR e.verdict = 0, coalesce(v_gone > v_now, true),
            CASE WHEN v_gone > e.at OR v_gone IS NULL OR e.verdict = 0 THEN 'the recording was there'
                 WHEN v_gone = m.expires_at THEN format('the time that the organisation keeps a %s was over at %s', m.type, say_time(v_gone))
                 ELSE format('the %s was destroyed at %s', m.type, say_time(v_gone)) END,
            'a request before that; what is destroyed does not come back',
            CASE WHEN v_gone > e.at AND v_gone <= v_now THEN format('The %s was destroyed at %s.', m.type, say_time(v_gone)) END);
    END IF;
    RETURN v_checks;
END $$;
COMMENT ON FUNCTION recording_checks IS 'The rules for recordings, as they were for an entry';

ALTER FUNCTION user_checks(entries, text, text) RENAME TO user_checks_other;
COMMENT ON FUNCTION user_checks_other IS 'The rules for users, but of recordings and main keys';
CREATE FUNCTION user_checks(e entries, p_name text, p_behalf text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN CASE WHEN e.action LIKE 'recording.%' THEN recording_checks(e, p_name, p_behalf)
                WHEN e.action LIKE 'cmk.%' THEN org_check(e)       -- of a role, which only the token says
                ELSE user_checks_other(e, p_name, p_behalf) END;
END $$;
COMMENT ON FUNCTION user_checks IS 'The rules for users, as they were for an entry';

GRANT EXECUTE ON FUNCTION resource_keys_create, recording_create, recording_update, recording_get, recordings_list, recording_delete
    TO kms_worker;
