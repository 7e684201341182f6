-- 0003_keeper_functions.sql - what the keeper may do: organisations and their wrapping keys, the root's proof, the
-- sweeper, figures, and what operators look at.
--
-- Where a function takes an operation id it may be run again with it.  sql/README.md has the interface.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

CREATE FUNCTION record_admin(p_org uuid, p_op uuid, p_actor text, p_action text, p_verdict integer, p_detail jsonb,
    p_resource uuid DEFAULT NULL, p_keys uuid[] DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM record_entry(p_org, p_op, p_action, p_verdict, CASE WHEN p_actor = 'keeper' THEN 'keeper' ELSE 'operator' END,
        p_actor, NULL, NULL, NULL, p_resource, p_keys, NULL, NULL, p_detail);
END $$;
COMMENT ON FUNCTION record_admin IS 'Writes an entry about what an operator or the keeper has done';

CREATE FUNCTION done_before(p_org uuid, p_op uuid, p_action text, OUT seen boolean, OUT verdict integer, OUT result jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    v_action text;
BEGIN
    SELECT e.verdict, e.detail, e.action INTO verdict, result, v_action FROM entries e
     WHERE e.org_id IN (p_org, nobody()) AND e.op_id = p_op;
    seen := FOUND;
    IF seen AND v_action <> p_action THEN
        RAISE EXCEPTION 'this operation id was used for something else' USING ERRCODE = 'invalid_parameter_value';
    ELSIF seen THEN
        PERFORM touch_fence();
    END IF;
END $$;
COMMENT ON FUNCTION done_before IS 'The answer of an operation''s first run';

-- ---------------------------------------------------------------------------------------------------- organisations

CREATE FUNCTION org_json(o organisations) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_build_object('name', o.name, 'org', o.org_id, 'state', o.state, 'generation', o.generation,
    'created', ms(o.created_at));
COMMENT ON FUNCTION org_json IS 'An organisation as operators see it';

CREATE FUNCTION org_add(op uuid, name text, org uuid, generation integer, root uuid, wrapped bytea, kcv bytea, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    v_row organisations;
BEGIN
    SELECT * INTO v_before FROM done_before(org, op, 'org.add');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
    ELSIF name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$' OR generation <> 1 THEN
        verdict := 400002;
        result := jsonb_build_object('why', 'a name is a letter or digit, then up to 127 letters, digits, dots, dashes, underscores');
        PERFORM record_admin(nobody(), op, actor, 'org.add', verdict, result || jsonb_build_object('name', left(name, 256)));
    ELSE
        INSERT INTO organisations AS o (org_id, name, generation, created_at) VALUES (org, name, generation, v_now)
            ON CONFLICT ON CONSTRAINT organisations_name_key DO NOTHING RETURNING o.* INTO v_row;
        IF FOUND THEN
            INSERT INTO wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
            VALUES (org, generation, root, wrapped, kcv, v_now);
            verdict := 0;
            result := org_json(v_row);
            PERFORM record_admin(org, op, actor, 'org.add', 0, result);
        ELSE
            verdict := 409002;
            result := jsonb_build_object('why', 'an organisation of this name exists');
            PERFORM record_admin(nobody(), op, actor, 'org.add', verdict, result || jsonb_build_object('name', name));
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION org_add IS 'A new organisation with its first wrapping key';

CREATE FUNCTION orgs_list() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT coalesce(jsonb_agg(org_json(o) ORDER BY o.name), '[]') FROM organisations o
$$;
COMMENT ON FUNCTION orgs_list IS 'All organisations, by name';

CREATE FUNCTION org_show(name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT org_json(o) || jsonb_build_object(
               'keys', (SELECT count(*) FROM content_keys k WHERE k.org_id = o.org_id),
               'resources', (SELECT count(*) FROM resources r WHERE r.org_id = o.org_id),
               'authorizations', (SELECT count(*) FROM authorizations a WHERE a.org_id = o.org_id),
               'channels', (SELECT count(*) FROM channels c WHERE c.org_id = o.org_id AND c.expires_at > clock_timestamp()),
               'entries', (SELECT count(*) FROM entries e WHERE e.org_id = o.org_id),
               'wrapping_keys', (SELECT jsonb_agg(jsonb_build_object('generation', w.generation, 'root', w.root_id,
                                            'kcv', encode(w.kcv, 'hex'), 'wraps', w.wraps, 'created', ms(w.created_at))
                                        ORDER BY w.generation)
                                   FROM wrapping_keys w WHERE w.org_id = o.org_id))
      FROM organisations o WHERE o.name = $1
$$;
COMMENT ON FUNCTION org_show IS 'One organisation, counted exactly: an operator can wait; NULL: unknown';

CREATE FUNCTION org_set_state(op uuid, name text, state text, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_before record;
    v_row organisations;
    v_action text := CASE state WHEN 'active' THEN 'org.resume' ELSE 'org.suspend' END;
BEGIN
    IF state IS NULL OR state NOT IN ('active', 'suspended') THEN
        RAISE EXCEPTION 'unknown state' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT o.* INTO v_row FROM organisations o WHERE o.name = org_set_state.name FOR NO KEY UPDATE;
    SELECT * INTO v_before FROM done_before(coalesce(v_row.org_id, nobody()), op, v_action);
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
    ELSIF v_row.org_id IS NULL THEN
        verdict := 404001;
        result := jsonb_build_object('why', 'no organisation of this name');
        PERFORM record_admin(nobody(), op, actor, v_action, verdict, result || jsonb_build_object('name', left(org_set_state.name, 256)));
    ELSE
        UPDATE organisations o SET state = org_set_state.state WHERE o.org_id = v_row.org_id RETURNING o.* INTO v_row;
        verdict := 0;
        result := org_json(v_row);
        PERFORM record_admin(v_row.org_id, op, actor, v_action, 0, result);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION org_set_state IS 'Suspends or resumes an organisation';

-- ---------------------------------------------------------------------------------------------------- keys of keys

CREATE FUNCTION wrapping_key_add(op uuid, org uuid, generation integer, root uuid, wrapped bytea, kcv bytea, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    v_row organisations;
BEGIN
    SELECT o.* INTO v_row FROM organisations o WHERE o.org_id = org FOR NO KEY UPDATE;
    SELECT * INTO v_before FROM done_before(coalesce(v_row.org_id, nobody()), op, 'wrapping_key.add');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
    ELSIF v_row.org_id IS NULL THEN
        verdict := 404001;
        result := jsonb_build_object('why', 'no such organisation');
        PERFORM record_admin(nobody(), op, actor, 'wrapping_key.add', verdict, result);
    ELSIF generation IS DISTINCT FROM v_row.generation + 1 THEN
        verdict := 409002;
        result := jsonb_build_object('why', 'not the next generation; another node was quicker', 'generation', v_row.generation);
        PERFORM record_admin(org, op, actor, 'wrapping_key.add', verdict, result);
    ELSE
        INSERT INTO wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at)
        VALUES (org, generation, root, wrapped, kcv, v_now);
        UPDATE organisations o SET generation = v_row.generation + 1 WHERE o.org_id = org;
        verdict := 0;
        result := jsonb_build_object('generation', generation, 'root', root);
        PERFORM record_admin(org, op, actor, 'wrapping_key.add', 0, result);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION wrapping_key_add IS 'The next generation, current from now on';

CREATE FUNCTION wrapping_keys_due(max_age_ms bigint, max_wraps bigint)
RETURNS TABLE (org uuid, org_name text, generation integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT o.org_id, o.name, o.generation
          FROM organisations o
          JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation
         WHERE w.created_at <= clock_timestamp() - max_age_ms * interval '1 millisecond' OR w.wraps >= max_wraps
         ORDER BY o.name;
END $$;
COMMENT ON FUNCTION wrapping_keys_due IS 'Whose current wrapping key is too old or was used too often';

CREATE FUNCTION root_get()
RETURNS TABLE (root uuid, kcv bytea, sentinel bytea, wrapped bytea, state text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT r.root_id, r.kcv, r.sentinel, r.wrapped, r.state FROM roots r WHERE r.org_id = nobody()
         ORDER BY r.created_at;
END $$;
COMMENT ON FUNCTION root_get IS 'The installation''s root keys, and what proves them';

CREATE FUNCTION root_add(root uuid, kcv bytea, wrapped bytea, sentinel bytea, actor text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_active uuid;
    v_verdict integer := 0;
BEGIN
    INSERT INTO roots (org_id, root_id, kcv, wrapped, sentinel, created_at)
    VALUES (nobody(), root, kcv, wrapped, sentinel, clock_timestamp())
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT r.root_id INTO v_active FROM roots r WHERE r.org_id = nobody() AND r.state = 'active';
        IF v_active = root THEN
            PERFORM touch_fence();
            RETURN 0;
        END IF;
        v_verdict := 409002;
    END IF;
    PERFORM record_admin(nobody(), gen_random_uuid(), actor, 'root.add', v_verdict, jsonb_build_object('root', root));
    RETURN v_verdict;
END $$;
COMMENT ON FUNCTION root_add IS 'Records the root key that all nodes must hold; the first one wins';

-- ---------------------------------------------------------------------------------------------------- operators look

CREATE FUNCTION key_show(id uuid, actor text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_row record;
BEGIN
    SELECT k.*, o.name AS org_name INTO v_row
      FROM content_keys k JOIN organisations o ON o.org_id = k.org_id WHERE k.key_id = id;
    PERFORM record_admin(coalesce(v_row.org_id, nobody()), gen_random_uuid(), actor, 'key.show',
        CASE WHEN v_row.key_id IS NULL THEN 404001 ELSE 0 END, NULL, v_row.resource_id, ARRAY[id]);
    IF v_row.key_id IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN jsonb_build_object('key', id, 'org', v_row.org_id, 'org_name', v_row.org_name, 'generation', v_row.generation,
        'creator', v_row.creator, 'client', v_row.client_id, 'created', ms(v_row.created_at),
        'expires', ms(v_row.expires_at), 'resource', v_row.resource_id, 'bound', ms(v_row.bound_at),
        'destroyed', ms(v_row.destroyed_at));
END $$;
COMMENT ON FUNCTION key_show IS 'All about a key but the key; NULL: unknown';

CREATE FUNCTION resource_show(id uuid, actor text) RETURNS jsonb
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
        'created', ms(v_row.created_at), 'expires', ms(v_row.expires_at), 'destroyed', ms(v_row.destroyed_at),
        'keys', (SELECT count(*) FROM content_keys k WHERE k.org_id = v_row.org_id AND k.resource_id = id),
        'authorizations', (SELECT coalesce(jsonb_agg(authorization_json(a, v_row.expires_at)
                                               ORDER BY a.created_at, a.authorization_id), '[]')
                             FROM authorizations a WHERE a.org_id = v_row.org_id AND a.resource_id = id));
END $$;
COMMENT ON FUNCTION resource_show IS 'All about a resource; NULL: unknown';

CREATE FUNCTION audit_tail(org_name text, after bigint, lim integer) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_org uuid := nobody();
BEGIN
    IF audit_tail.org_name IS NOT NULL THEN
        SELECT o.org_id INTO v_org FROM organisations o WHERE o.name = audit_tail.org_name;
    END IF;
    RETURN QUERY
        WITH tail AS (
            (SELECT * FROM entries x WHERE x.org_id = v_org AND coalesce(after, 0) = 0
              ORDER BY x.entry_id DESC LIMIT lim)
            UNION ALL
            (SELECT * FROM entries x WHERE x.org_id = v_org AND x.entry_id > after AND after <> 0
              ORDER BY x.entry_id LIMIT lim)
        )
        SELECT jsonb_strip_nulls(jsonb_build_object('entry', t.entry_id, 'org', t.org_id, 'org_name', audit_tail.org_name,
                   'at', ms(t.at), 'op', t.op_id, 'action', t.action, 'verdict', t.verdict, 'kind', t.kind,
                   'subject', t.subject, 'behalf', t.on_behalf, 'client', t.client_id, 'channel', t.channel_id,
                   'resource', t.resource_id, 'keys', t.key_ids, 'path', t.path, 'request', t.request_id))
               || CASE WHEN t.detail IS NULL THEN '{}' ELSE jsonb_build_object('detail', t.detail) END
          FROM tail t ORDER BY t.entry_id;
END $$;
COMMENT ON FUNCTION audit_tail IS
    'Entries after a number, or the last ones (0), of an organisation''s log, or of the installation''s own (NULL)';

CREATE FUNCTION admin_record(op uuid, actor text, action text, verdict integer, detail jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_before record;
BEGIN
    SELECT * INTO v_before FROM done_before(nobody(), op, action);
    IF NOT v_before.seen THEN
        PERFORM record_admin(nobody(), op, actor, action, verdict, detail);
    END IF;
END $$;
COMMENT ON FUNCTION admin_record IS 'An admin call, in the installation''s log';

-- ---------------------------------------------------------------------------------------------------- the keeper's jobs

CREATE FUNCTION sweep(batch integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_channels integer;
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
        RETURN jsonb_build_object('channels', 0, 'unbound_keys', 0, 'resources', 0, 'keys', 0);
    END IF;

    -- Ten minutes late, so that a slow answer still finds the channel that it goes to.
    DELETE FROM channels c USING (
        SELECT x.org_id, x.channel_id FROM channels x WHERE x.expires_at < v_now - interval '10 minutes'
         ORDER BY x.expires_at LIMIT batch FOR UPDATE SKIP LOCKED) d
     WHERE c.org_id = d.org_id AND c.channel_id = d.channel_id;
    GET DIAGNOSTICS v_channels = ROW_COUNT;

    WITH due AS (
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
        WITH gone AS (
            UPDATE content_keys k SET blob = NULL, destroyed_at = v_now
             WHERE k.org_id = v_due.org_id AND k.key_id IN (
                   SELECT x.key_id FROM content_keys x
                    WHERE x.org_id = v_due.org_id AND x.resource_id = v_due.resource_id AND x.blob IS NOT NULL
                    ORDER BY x.key_id LIMIT batch - v_keys FOR UPDATE)
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
    RETURN jsonb_build_object('channels', v_channels, 'unbound_keys', v_unbound, 'resources', v_resources, 'keys', v_keys);
END $$;
COMMENT ON FUNCTION sweep IS 'Removes what is past its time, at most a batch of each kind, and records what it destroyed';

CREATE FUNCTION row_estimate(p_table regclass) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_estimate bigint;
    v_count bigint;
BEGIN
    SELECT c.reltuples::bigint INTO v_estimate FROM pg_class c WHERE c.oid = p_table;
    IF v_estimate < 10000 THEN
        -- Never analysed, or small: then the count is cheap, and the limit makes sure of that.
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s LIMIT 20000) x', p_table) INTO v_count;
        RETURN v_count;
    END IF;
    RETURN v_estimate;
END $$;
COMMENT ON FUNCTION row_estimate IS 'About how many rows a table has';

CREATE FUNCTION stats() RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    RETURN jsonb_build_object(
        'organisations', row_estimate('kms.organisations'),
        'suspended', (SELECT count(*) FROM organisations o WHERE o.state = 'suspended'),
        'wrapping_keys', row_estimate('kms.wrapping_keys'),
        'keys', row_estimate('kms.content_keys'),
        'resources', row_estimate('kms.resources'),
        'authorizations', row_estimate('kms.authorizations'),
        'channels', row_estimate('kms.channels'),
        'entries', row_estimate('kms.entries'),
        'oldest_wrapping_key', (SELECT ms(min(w.created_at)) FROM organisations o
                                  JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation),
        'most_wraps', (SELECT max(w.wraps) FROM organisations o
                         JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation),
        'bytes', pg_database_size(current_database()));
END $$;
COMMENT ON FUNCTION stats IS 'Figures for operators; of large tables the planner''s estimate';

GRANT EXECUTE ON FUNCTION org_add, orgs_list, org_show, org_set_state, wrapping_key_add, wrapping_keys_due, root_get,
    root_add, key_show, resource_show, audit_tail, admin_record, sweep, stats TO kms_keeper;
