-- 0011_main_keys.sql - customers' own main keys (protocol section 5): their states, the lock of an organisation, and the work
-- in the HSM that goes with them.
--
-- What needs no HSM is done at once, in the transaction that records it: disabling, revoking, opening again, removing.
-- What does is written down as a job, which a keeper of any node takes, does in the HSM and ends by main_key_end(): there the
-- change is made whole and recorded, or not at all.  Until then nothing has changed, so a job can be given up at any moment.
--
-- An organisation's wrapping keys are moved by compare-and-swap: main_key_end() takes what was re-wrapped only if it is
-- every wrapping key that there is, each from what it is now; else the job is planned anew.  wrapping_key_add() takes new
-- ones only under what the organisation's are under.  Those of a month of expiry stay under their period key, which is to
-- destroy them.
--
-- Locks, in this order: policy_lock(), the organisation's row, the job's, main_keys.  Whoever releases holds policy_share(): so a
-- key that is revoked is revoked on every node when the answer says so.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

CREATE SEQUENCE main_key_change;
ALTER TABLE main_keys
    ADD COLUMN change bigint NOT NULL DEFAULT 0,
    ADD COLUMN used_until timestamptz(3),
    ADD COLUMN destroyed_at timestamptz(3);
COMMENT ON COLUMN main_keys.change IS 'Number of its last change: they are made under policy_lock(), so whoever has seen one has seen those before it';
COMMENT ON COLUMN main_keys.used_until IS 'When wrapping keys were last moved away from it; NULL: never in use';
COMMENT ON COLUMN main_keys.destroyed_at IS 'Since when it is known to be gone from the HSM';
CREATE INDEX main_keys_changed ON main_keys (change);
CREATE INDEX main_keys_ended ON main_keys (state_at) WHERE destroyed_at IS NULL AND state IN ('IMPORTING', 'DELETED', 'REMOVEDCLEAN');

CREATE TABLE main_key_jobs (
    org_id uuid NOT NULL REFERENCES organisations,
    op_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('pair', 'import', 'move')),
    action text NOT NULL,
    main_key_id uuid,
    state text,
    pair_id uuid,
    ciphertext bytea CHECK (octet_length(ciphertext) <= 512),
    allow_128 boolean NOT NULL DEFAULT false,
    actor_kind text NOT NULL CHECK (actor_kind IN ('user', 'keeper')),
    actor text NOT NULL,
    client_id text,
    channel_id uuid,
    request_id text,
    created_at timestamptz(3) NOT NULL,
    until timestamptz(3) NOT NULL,
    claimed_by uuid,
    claimed_until timestamptz(3),
    PRIMARY KEY (org_id, op_id),
    CHECK ((kind = 'import') = (ciphertext IS NOT NULL))
);
CREATE INDEX main_key_jobs_in_order ON main_key_jobs (org_id, created_at, op_id);
COMMENT ON TABLE main_key_jobs IS 'What keepers are to do in the HSM for main keys; a job is gone when it has ended, its entry tells how';
COMMENT ON COLUMN main_key_jobs.org_id IS 'Organisation';
COMMENT ON COLUMN main_key_jobs.op_id IS 'Operation id of its entry';
COMMENT ON COLUMN main_key_jobs.kind IS 'pair: make the RSA pair; import: a main key; move: re-wrap all wrapping keys';
COMMENT ON COLUMN main_key_jobs.action IS 'Of its entry';
COMMENT ON COLUMN main_key_jobs.main_key_id IS 'import: the new one''s id; cmk.update: which is changed; else NULL';
COMMENT ON COLUMN main_key_jobs.state IS 'cmk.update: what it is to become';
COMMENT ON COLUMN main_key_jobs.pair_id IS 'The RSA pair in the HSM';
COMMENT ON COLUMN main_key_jobs.ciphertext IS 'The main key, encrypted to the pair';
COMMENT ON COLUMN main_key_jobs.allow_128 IS 'May the main key have 128 bits only?';
COMMENT ON COLUMN main_key_jobs.actor_kind IS 'user; keeper: for officers, who have an entry of their own';
COMMENT ON COLUMN main_key_jobs.actor IS 'The user; or keeper';
COMMENT ON COLUMN main_key_jobs.client_id IS 'The user''s client';
COMMENT ON COLUMN main_key_jobs.channel_id IS 'The user''s channel';
COMMENT ON COLUMN main_key_jobs.request_id IS 'The user''s request';
COMMENT ON COLUMN main_key_jobs.created_at IS 'Since when it waits';
COMMENT ON COLUMN main_key_jobs.until IS 'From then on it is given up';
COMMENT ON COLUMN main_key_jobs.claimed_by IS 'The keeper that works on it';
COMMENT ON COLUMN main_key_jobs.claimed_until IS 'From then on another one may';

-- ---------------------------------------------------------------------------------------------------- states

-- The root that stands in for a main key.
CREATE FUNCTION root_active() RETURNS uuid LANGUAGE sql STABLE
RETURN (SELECT r.root_id FROM roots r WHERE r.org_id = nobody() AND r.state = 'active');
COMMENT ON FUNCTION root_active IS 'The root that new wrapping keys are wrapped by';

CREATE TYPE main_key_plan AS (verdict integer, why text, how text, state text);
COMMENT ON TYPE main_key_plan IS 'What a request comes to; how: now, pair, import, move; state: what the key becomes';

CREATE FUNCTION main_key_judge(p_org uuid, p_action text, p_key uuid, p_state text) RETURNS main_key_plan LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    k main_keys;
    v_force main_keys;      -- the one in force
    v_pair import_pairs;
    v_to text := upper(p_state);
    v_count bigint;
    p main_key_plan;
BEGIN
    p := ROW(0, NULL, 'now', NULL);
    SELECT m.* INTO v_force FROM main_keys m WHERE m.org_id = p_org AND m.state IN ('ACTIVE', 'REVOKED', 'DISABLED');
    IF p_action IN ('cmk.public_key', 'cmk.create') THEN
        SELECT i.* INTO v_pair FROM import_pairs i WHERE i.org_id = p_org;
        IF p_action = 'cmk.public_key' THEN
            p.how := CASE WHEN v_pair.public_key IS NULL THEN 'pair' ELSE 'now' END;
        ELSIF v_pair.public_key IS NULL THEN
            p := ROW(409002, 'there is no public key yet that a main key could be encrypted to: retrieve /publicKey', NULL, NULL);
        ELSE
            SELECT count(*) INTO v_count FROM main_keys m WHERE m.org_id = p_org AND m.destroyed_at IS NULL;
            p := CASE WHEN v_count >= 32
                      THEN ROW(409002, 'there are 32 main keys of this organisation in the HSM: delete those that are not needed', NULL, NULL)
                      ELSE ROW(0, NULL, 'import', 'PENDING') END;
        END IF;
    ELSIF p_action = 'cmk.update' THEN
        SELECT m.* INTO k FROM main_keys m WHERE m.org_id = p_org AND m.main_key_id = p_key AND m.state <> 'IMPORTING';
        IF NOT FOUND THEN
            RETURN ROW(404001, 'no such main key', NULL, NULL)::main_key_plan;
        ELSIF v_to = 'ACTIVE' AND k.state IN ('PENDING', 'DEACTIVATED') THEN
            -- One that is locked stays in force until it is opened again.
            p := CASE WHEN v_force.state IN ('REVOKED', 'DISABLED')
                      THEN ROW(409002, 'the main key in force is ' || lower(v_force.state), NULL, NULL)
                      ELSE ROW(0, NULL, 'move', 'ACTIVE') END;
        ELSIF v_to = 'ACTIVE' AND k.state IN ('REVOKED', 'DISABLED')
              OR v_to IN ('DISABLED', 'REVOKED') AND k.state = 'ACTIVE'
              OR v_to = 'REVOKED' AND k.state = 'DISABLED'
              OR v_to IN ('RETIRED', 'DELETED') AND k.state = 'DEACTIVATED' THEN
            p.state := v_to;
        ELSIF v_to = 'DEACTIVATED' AND k.state = 'ACTIVE' THEN
            p := ROW(0, NULL, 'move', v_to);
        ELSIF v_to IN ('DELETED', 'REMOVEDCLEAN') AND k.state = 'PENDING' THEN
            p.state := 'REMOVEDCLEAN';
        ELSE
            p := ROW(409002, 'a main key that is ' || k.state || ' cannot become ' || v_to, NULL, NULL);
        END IF;
    ELSIF p_action IN ('cmk.default', 'cmk.delete') THEN
        IF v_force.state IN ('REVOKED', 'DISABLED') THEN
            p := ROW(409002, 'the main key in force is ' || lower(v_force.state), NULL, NULL);
        ELSIF v_force.state = 'ACTIVE' THEN
            p := ROW(0, NULL, 'move', 'DEACTIVATED');
        END IF;
    ELSIF p_action <> 'cmk.list' THEN
        RAISE EXCEPTION 'unknown action' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN p;
END $$;
COMMENT ON FUNCTION main_key_judge IS 'May this be done as things stand, and how';

CREATE FUNCTION main_key_become(p_org uuid, p_key uuid, p_state text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
BEGIN
    UPDATE main_keys m
       SET state = p_state, state_at = v_now, change = nextval('main_key_change'),
           used_until = CASE WHEN m.state = 'ACTIVE' AND p_state NOT IN ('REVOKED', 'DISABLED') THEN v_now ELSE m.used_until END
     WHERE m.org_id = p_org AND m.main_key_id = p_key;
    IF p_state IN ('ACTIVE', 'REVOKED', 'DISABLED') THEN
        UPDATE organisations o
           SET main_key_id = p_key, locked = CASE p_state WHEN 'REVOKED' THEN 405005 WHEN 'DISABLED' THEN 405006 ELSE 0 END
         WHERE o.org_id = p_org;
    END IF;
END $$;
COMMENT ON FUNCTION main_key_become IS 'A main key''s next state, and what that means for its organisation; the caller holds policy_lock()';

CREATE FUNCTION main_key_remove(p_org uuid) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    v_keys uuid[];
    v_key uuid;
BEGIN
    v_keys := ARRAY(SELECT m.main_key_id FROM main_keys m
                     WHERE m.org_id = p_org AND m.state IN ('PENDING', 'DEACTIVATED', 'RETIRED') ORDER BY m.main_key_id);
    FOREACH v_key IN ARRAY v_keys LOOP
        PERFORM main_key_become(p_org, v_key, CASE m.state WHEN 'PENDING' THEN 'REMOVEDCLEAN' ELSE 'DELETED' END)
           FROM main_keys m WHERE m.org_id = p_org AND m.main_key_id = v_key;
    END LOOP;
    RETURN v_keys;
END $$;
COMMENT ON FUNCTION main_key_remove IS 'Removes all that are not in force; the keeper takes them out of the HSM';

CREATE FUNCTION main_key_now(p_org uuid, p_action text, p_key uuid, p_state text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_detail jsonb := '{}';
BEGIN
    IF p_action = 'cmk.update' THEN
        SELECT jsonb_build_object('main_key', m.main_key_id, 'before', m.state, 'state', p_state) INTO v_detail
          FROM main_keys m WHERE m.org_id = p_org AND m.main_key_id = p_key;
        PERFORM main_key_become(p_org, p_key, p_state);
    ELSIF p_action = 'cmk.delete' THEN
        v_detail := jsonb_build_object('main_keys', main_key_remove(p_org));
    END IF;
    RETURN v_detail;
END $$;
COMMENT ON FUNCTION main_key_now IS 'Does what needs no HSM, and tells what an entry says of it; the caller holds policy_lock() and the organisation''s row';

CREATE FUNCTION main_keys_json(p_org uuid, p_first uuid DEFAULT NULL) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT coalesce(jsonb_agg(jsonb_build_object('main_key', m.main_key_id, 'state', m.state, 'source', m.source,
                   'created', ms(m.created_at), 'updated', ms(m.state_at)) || CASE WHEN m.kcv IS NULL THEN '{}' ELSE
                       jsonb_build_object('kcv', encode(m.kcv, 'hex')) END
                   ORDER BY m.main_key_id IS NOT DISTINCT FROM p_first DESC, m.state_at DESC, m.main_key_id), '[]')
          FROM (SELECT x.* FROM main_keys x WHERE x.org_id = p_org AND x.state <> 'IMPORTING'
                 ORDER BY x.main_key_id IS NOT DISTINCT FROM p_first DESC, x.state_at DESC, x.main_key_id LIMIT 500) m);
COMMENT ON FUNCTION main_keys_json IS 'An organisation''s main keys, p_first first, then the last changed';

CREATE FUNCTION main_key_answer(p_org uuid, p_action text, p_detail jsonb) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_action = 'cmk.public_key' THEN
        RETURN (SELECT jsonb_build_object('public_key', encode(i.public_key, 'hex')) FROM import_pairs i WHERE i.org_id = p_org);
    ELSIF p_action = 'cmk.create' THEN      -- the new one alone
        RETURN jsonb_build_object('main_key', p_detail -> 'main_key', 'main_keys', (
            SELECT jsonb_agg(e) FROM jsonb_array_elements(main_keys_json(p_org, arg_uuid(p_detail -> 'main_key'))) e
             WHERE e ->> 'main_key' = p_detail ->> 'main_key'));
    END IF;
    RETURN jsonb_build_object('main_keys', main_keys_json(p_org, arg_uuid(p_detail -> 'main_key')));
END $$;
COMMENT ON FUNCTION main_key_answer IS 'What is answered to a request that was done';

-- ---------------------------------------------------------------------------------------------------- jobs

CREATE FUNCTION main_key_job(p_org uuid, p_op uuid, p_action text, p_plan main_key_plan, p_key uuid, p_ciphertext bytea,
    p_allow_128 boolean, p_actor_kind text, p_actor text, p_client text, p_channel uuid, p_request text, p_lifetime interval)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_pair uuid;
    v_key uuid := p_key;
BEGIN
    -- Ids first: whatever breaks from here on, what is in the HSM under them is known to be ours.
    IF p_plan.how = 'pair' THEN
        INSERT INTO import_pairs (org_id, pair_id, created_at) VALUES (p_org, gen_random_uuid(), v_now) ON CONFLICT (org_id) DO NOTHING;
    ELSIF p_plan.how = 'import' THEN
        v_key := gen_random_uuid();
        INSERT INTO main_keys (org_id, main_key_id, state, created_at, state_at) VALUES (p_org, v_key, 'IMPORTING', v_now, v_now);
    END IF;
    IF p_plan.how <> 'move' THEN
        SELECT i.pair_id INTO STRICT v_pair FROM import_pairs i WHERE i.org_id = p_org;
    END IF;
    INSERT INTO main_key_jobs (org_id, op_id, kind, action, main_key_id, state, pair_id, ciphertext, allow_128, actor_kind, actor,
                               client_id, channel_id, request_id, created_at, until)
    VALUES (p_org, p_op, p_plan.how, p_action, v_key, p_plan.state, v_pair,
            CASE p_plan.how WHEN 'import' THEN p_ciphertext END, coalesce(p_allow_128, false),
            p_actor_kind, p_actor, p_client, p_channel, p_request, v_now, v_now + p_lifetime);
END $$;
COMMENT ON FUNCTION main_key_job IS 'Writes down what a keeper is to do';

CREATE FUNCTION main_key_close(j main_key_jobs, p_verdict integer, p_detail jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM main_key_jobs x WHERE x.org_id = j.org_id AND x.op_id = j.op_id;
    PERFORM record_entry(j.org_id, j.op_id, j.action, p_verdict, j.actor_kind, j.actor, NULL, j.client_id, j.channel_id, NULL, NULL,
        NULL, j.request_id, p_detail);
END $$;
COMMENT ON FUNCTION main_key_close IS 'Ends a job with its entry';

CREATE FUNCTION main_key_act(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_entry entries;
    v_caller record;
    v_action text;
    v_key uuid;
    v_detail jsonb;
    o organisations;
    j main_key_jobs;
    p main_key_plan;
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(args));
    FOR i IN 1 .. cardinality(ops) LOOP
        n := i;
        result := NULL;
        v_action := args[i] ->> 'action';
        v_key := arg_uuid(args[i] -> 'main_key');
        v_entry := first_run(orgs[i], ops[i], v_action, channels[i]);
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
            verdict := v_entry.verdict;
            result := CASE verdict WHEN 0 THEN main_key_answer(orgs[i], v_action, v_entry.detail)
                                   ELSE jsonb_build_object('why', v_entry.detail -> 'why') END;
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT x.* INTO j FROM main_key_jobs x WHERE x.org_id = orgs[i] AND x.op_id = ops[i];
        IF FOUND AND (j.action <> v_action OR j.channel_id <> channels[i]) THEN
            RAISE EXCEPTION 'this operation id was used for something else' USING ERRCODE = 'invalid_parameter_value';
        ELSIF FOUND AND NOT coalesce((args[i] ->> 'give_up')::boolean, false) THEN
            verdict := 0;
            result := '{"waiting":true}';
            RETURN NEXT;
            CONTINUE;
        ELSIF FOUND THEN
            SELECT x.* INTO j FROM main_key_jobs x WHERE x.org_id = orgs[i] AND x.op_id = ops[i] FOR UPDATE;
            IF NOT FOUND THEN   -- it ended in this moment
                RAISE EXCEPTION 'this operation was done in the meantime' USING ERRCODE = 'serialization_failure';
            END IF;
            verdict := 502001;
            result := '{"why":"the HSM has not answered in time; nothing was changed"}';
            PERFORM main_key_close(j, verdict, result);
            RETURN NEXT;
            CONTINUE;
        END IF;

        SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
        verdict := v_caller.verdict;
        p := NULL;
        IF verdict = 0 AND (v_caller.kind <> 'user' OR NOT coalesce((args[i] ->> 'admin')::boolean, false)) THEN
            verdict := 403004;
            result := '{"why":"main keys need the administrator role"}';
        ELSIF verdict = 0 THEN
            SELECT x.* INTO o FROM organisations x WHERE x.org_id = orgs[i];
            IF (args[i] ->> 'assigned') IS DISTINCT FROM o.name AND lower(args[i] ->> 'assigned') IS DISTINCT FROM o.org_id::text THEN
                verdict := 403004;
                result := '{"why":"assignedOrgId is not your organisation"}';
            END IF;
        END IF;
        v_detail := coalesce(result, '{}');
        IF verdict = 0 THEN
            IF v_action <> 'cmk.list' THEN
                PERFORM policy_lock();
                PERFORM FROM organisations x WHERE x.org_id = orgs[i] FOR NO KEY UPDATE;
            END IF;
            p := main_key_judge(orgs[i], v_action, v_key, args[i] ->> 'state');
            verdict := p.verdict;
            IF verdict <> 0 THEN
                result := jsonb_build_object('why', p.why);
                v_detail := result || CASE WHEN v_key IS NULL THEN '{}' ELSE jsonb_build_object('main_key', v_key) END;
            ELSIF p.how = 'now' THEN
                v_detail := main_key_now(orgs[i], v_action, v_key, p.state);
                result := main_key_answer(orgs[i], v_action, v_detail);
            ELSE
                PERFORM main_key_job(orgs[i], ops[i], v_action, p, v_key, decode(args[i] ->> 'ciphertext', 'hex'),
                    (args[i] ->> 'allow_128')::boolean, 'user', v_caller.subject, clients[i], channels[i], requests[i], '2 minutes');
                result := '{"waiting":true}';
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        PERFORM record_entry(orgs[i], ops[i], v_action, verdict, v_caller.kind, v_caller.subject, NULL, clients[i], channels[i],
            NULL, NULL, NULL, requests[i], v_detail);
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION main_key_act IS
    'What administrators ask about main keys; args: action, admin, assigned, main_key, state, ciphertext, allow_128; {"waiting"}: ask again, or give_up';
GRANT EXECUTE ON FUNCTION main_key_act TO kms_worker;

CREATE FUNCTION main_key_work(me uuid, since bigint) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_to uuid;
    v_change bigint;
    v_forget jsonb;
    v_jobs jsonb := '[]';
    v_destroy jsonb;
    j main_key_jobs;
BEGIN
    SELECT coalesce(max(m.change), 0) INTO v_change FROM main_keys m;
    SELECT coalesce(jsonb_agg(m.main_key_id), '[]') INTO v_forget FROM main_keys m
     WHERE m.change > coalesce(since, v_change) AND m.change <= v_change AND m.state <> 'ACTIVE'
        OR since IS NULL AND m.state IN ('REVOKED', 'DISABLED');

    -- Those of an organisation one after the other, each by one keeper.
    FOR j IN SELECT x.* FROM main_key_jobs x
              WHERE NOT EXISTS (SELECT FROM main_key_jobs e
                                 WHERE e.org_id = x.org_id AND (e.created_at, e.op_id) < (x.created_at, x.op_id))
                AND (x.claimed_by IS NULL OR x.claimed_by = me OR x.claimed_until <= v_now)
              ORDER BY x.created_at LIMIT 16 FOR UPDATE SKIP LOCKED
    LOOP
        IF j.until <= v_now THEN
            PERFORM main_key_close(j, 502001, '{"why":"the HSM has not answered in time; nothing was changed"}');
            CONTINUE;
        END IF;
        UPDATE main_key_jobs x SET claimed_by = me, claimed_until = v_now + interval '5 seconds'
         WHERE x.org_id = j.org_id AND x.op_id = j.op_id;
        v_to := CASE WHEN j.kind = 'move' THEN CASE WHEN j.action = 'cmk.update' AND j.state = 'ACTIVE' THEN j.main_key_id
                                                    ELSE root_active() END END;
        v_jobs := v_jobs || jsonb_build_array(jsonb_build_object('org', j.org_id, 'op', j.op_id, 'kind', j.kind, 'main_key', j.main_key_id,
            'pair', j.pair_id, 'ciphertext', encode(j.ciphertext, 'hex'), 'allow_128', j.allow_128, 'to', v_to,
            'wrapping_keys', (SELECT coalesce(jsonb_agg(jsonb_build_object('generation', w.generation, 'root', w.root_id,
                                         'wrapped', encode(w.wrapped, 'hex')) ORDER BY w.generation), '[]')
                                FROM wrapping_keys w
                               WHERE j.kind = 'move' AND w.org_id = j.org_id AND w.month IS NULL AND w.destroyed_at IS NULL
                                 AND w.root_id <> v_to)));
    END LOOP;

    -- Out of the HSM when nobody can have a wrapping key under it in hand any more: workers remember those for a minute.
    SELECT coalesce(jsonb_agg(jsonb_build_object('org', d.org_id, 'main_key', d.main_key_id)), '[]') INTO v_destroy
      FROM (SELECT m.org_id, m.main_key_id FROM main_keys m
             WHERE m.destroyed_at IS NULL AND m.state IN ('IMPORTING', 'DELETED', 'REMOVEDCLEAN')
               AND CASE m.state WHEN 'IMPORTING' THEN m.state_at < v_now - interval '30 seconds'
                        ELSE m.used_until IS NULL OR m.used_until < v_now - interval '2 minutes' END
               AND NOT EXISTS (SELECT FROM main_key_jobs x WHERE x.org_id = m.org_id AND x.main_key_id = m.main_key_id)
               AND NOT EXISTS (SELECT FROM wrapping_keys w WHERE w.root_id = m.main_key_id AND w.destroyed_at IS NULL)
             ORDER BY m.state_at LIMIT 16) d;
    RETURN jsonb_build_object('change', v_change, 'forget', v_forget, 'jobs', v_jobs, 'destroy', v_destroy);
END $$;
COMMENT ON FUNCTION main_key_work IS 'What a keeper is to do for main keys: what to forget since a change (NULL: it has just begun), jobs that it has now, keys to destroy';

CREATE FUNCTION main_key_end(org uuid, op uuid, verdict integer, args jsonb) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_to uuid;
    v_all integer;
    v_moved integer;
    v_detail jsonb;
    v_force uuid;
    j main_key_jobs;
    p main_key_plan;
BEGIN
    PERFORM policy_lock();
    PERFORM FROM organisations o WHERE o.org_id = org FOR NO KEY UPDATE;
    SELECT x.* INTO j FROM main_key_jobs x WHERE x.org_id = org AND x.op_id = op FOR UPDATE;
    IF NOT FOUND AND verdict = 0 AND EXISTS (SELECT FROM entries e WHERE e.org_id = org AND e.op_id = op AND e.verdict = 0) THEN
        PERFORM touch_fence();      -- this is its second run
        RETURN 0;
    ELSIF NOT FOUND THEN
        -- What it may have put into the HSM since it was given up has to leave it.
        UPDATE main_keys m SET destroyed_at = NULL
         WHERE m.org_id = org AND m.main_key_id = arg_uuid(args -> 'main_key') AND m.state = 'IMPORTING';
        RETURN 404001;
    ELSIF verdict <> 0 THEN
        IF (args ->> 'broken')::boolean AND j.kind = 'pair' THEN    -- whoever asks next has another id; this one is nobody's any more
            UPDATE import_pairs i SET pair_id = gen_random_uuid() WHERE i.org_id = org AND i.pair_id = j.pair_id AND i.public_key IS NULL
                RETURNING i.pair_id INTO v_to;
            UPDATE main_key_jobs x SET pair_id = v_to WHERE x.org_id = org AND x.pair_id = j.pair_id AND v_to IS NOT NULL;
        END IF;
        PERFORM main_key_close(j, verdict, jsonb_build_object('why', args -> 'why')
            || CASE WHEN j.main_key_id IS NULL OR j.kind = 'import' THEN '{}' ELSE jsonb_build_object('main_key', j.main_key_id) END);
        RETURN 0;
    ELSIF j.kind = 'pair' THEN
        UPDATE import_pairs i SET public_key = decode(args ->> 'public_key', 'hex')
         WHERE i.org_id = org AND i.pair_id = j.pair_id AND i.public_key IS NULL;
        PERFORM main_key_close(j, 0, jsonb_build_object('pair', j.pair_id));
        RETURN 0;
    ELSIF j.kind = 'import' THEN
        UPDATE main_keys m SET kcv = decode(args ->> 'kcv', 'hex') WHERE m.org_id = org AND m.main_key_id = j.main_key_id;
        PERFORM main_key_become(org, j.main_key_id, 'PENDING');
        PERFORM main_key_close(j, 0, jsonb_build_object('main_key', j.main_key_id, 'state', 'PENDING', 'kcv', args -> 'kcv'));
        RETURN 0;
    END IF;

    -- As things stand now; where they stand otherwise than when it was asked, so it is refused.
    p := main_key_judge(org, j.action, j.main_key_id, j.state);
    IF p.verdict <> 0 OR p.how <> 'move' THEN
        PERFORM main_key_close(j, CASE p.verdict WHEN 0 THEN 409002 ELSE p.verdict END,
            jsonb_build_object('why', coalesce(p.why, 'another change was quicker'), 'main_key', j.main_key_id));
        RETURN 0;
    END IF;
    v_to := CASE WHEN j.action = 'cmk.update' AND j.state = 'ACTIVE' THEN j.main_key_id ELSE root_active() END;
    SELECT count(*) INTO v_all FROM wrapping_keys w
     WHERE w.org_id = org AND w.month IS NULL AND w.destroyed_at IS NULL AND w.root_id <> v_to;
    SELECT count(*) INTO v_moved FROM jsonb_to_recordset(args -> 'moved') AS x(generation integer, root uuid, before text, after text)
      JOIN wrapping_keys w ON w.org_id = org AND w.generation = x.generation AND w.wrapped = decode(x.before, 'hex') AND w.root_id = x.root
     WHERE w.month IS NULL AND w.destroyed_at IS NULL AND w.root_id <> v_to AND length(x.after) = 80;
    IF v_to IS DISTINCT FROM arg_uuid(args -> 'to') OR v_all <> v_moved OR v_all <> jsonb_array_length(args -> 'moved') THEN
        RETURN -1;
    END IF;
    UPDATE wrapping_keys w SET root_id = v_to, wrapped = decode(x.after, 'hex')
      FROM jsonb_to_recordset(args -> 'moved') AS x(generation integer, after text)
     WHERE w.org_id = org AND w.generation = x.generation;
    SELECT m.main_key_id INTO v_force FROM main_keys m WHERE m.org_id = org AND m.state = 'ACTIVE';
    v_detail := jsonb_build_object('wrapping_keys', v_all, 'to', v_to);
    IF v_force IS NOT NULL THEN
        PERFORM main_key_become(org, v_force, 'DEACTIVATED');
        v_detail := v_detail || jsonb_build_object('from', v_force);
    END IF;
    IF v_to = j.main_key_id THEN
        v_detail := v_detail || jsonb_build_object('main_key', v_to, 'state', 'ACTIVE',
            'before', (SELECT m.state FROM main_keys m WHERE m.org_id = org AND m.main_key_id = v_to));
        PERFORM main_key_become(org, v_to, 'ACTIVE');
    ELSE
        UPDATE organisations o SET main_key_id = NULL, locked = 0 WHERE o.org_id = org;
        v_detail := v_detail || jsonb_build_object('main_key', v_force, 'state', 'DEACTIVATED');
        IF j.action = 'cmk.delete' THEN
            v_detail := v_detail || jsonb_build_object('main_keys', main_key_remove(org));
        END IF;
    END IF;
    PERFORM main_key_close(j, 0, v_detail);
    RETURN 0;
END $$;
COMMENT ON FUNCTION main_key_end IS
    'Ends a job as the HSM has done it, or with why it could not (broken: what is under the id that it was to make does not work): 0; -1: the wrapping keys are others meanwhile, plan anew; 404001: it was given up';

CREATE FUNCTION main_key_gone(org uuid, main_key uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    UPDATE main_keys m SET destroyed_at = clock_timestamp()
     WHERE m.org_id = org AND m.main_key_id = main_key AND m.destroyed_at IS NULL AND m.state IN ('IMPORTING', 'DELETED', 'REMOVEDCLEAN');
    IF FOUND THEN
        PERFORM record_admin(org, gen_random_uuid(), 'keeper', 'cmk.destroy', 0, jsonb_build_object('main_key', main_key));
    END IF;
END $$;
COMMENT ON FUNCTION main_key_gone IS 'A main key is proved to be out of the HSM';

CREATE FUNCTION main_keys_list(org_name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object('org_name', o.name, 'org', o.org_id, 'locked', o.locked, 'main_key', o.main_key_id,
               'main_keys', main_keys_json(o.org_id), 'jobs', (SELECT count(*) FROM main_key_jobs j WHERE j.org_id = o.org_id),
               'public_key', (SELECT encode(i.public_key, 'hex') FROM import_pairs i WHERE i.org_id = o.org_id),
               'last', (SELECT jsonb_build_object('op', e.op_id, 'action', e.action, 'verdict', e.verdict, 'why', e.detail -> 'why')
                          FROM entries e WHERE e.org_id = o.org_id AND e.action LIKE 'cmk.%' AND e.kind = 'keeper'
                         ORDER BY e.entry_id DESC LIMIT 1))
      FROM organisations o WHERE o.name = $1
$$;
COMMENT ON FUNCTION main_keys_list IS 'Main keys of an organisation, and what waits; NULL: no such organisation';
GRANT EXECUTE ON FUNCTION main_key_work, main_key_end, main_key_gone, main_keys_list TO kms_keeper;

-- ---------------------------------------------------------------------------------------------------- new wrapping keys

CREATE OR REPLACE FUNCTION wrapping_key_add(op uuid, org uuid, generation integer, root uuid, wrapped bytea, kcv bytea, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    v_current integer;      -- NULL: no such organisation
    v_main_key uuid;
BEGIN
    IF org = nobody() THEN
        SELECT t.generation INTO v_current FROM installation t WHERE t.org_id = org FOR NO KEY UPDATE;
    ELSE
        SELECT o.generation, o.main_key_id INTO v_current, v_main_key FROM organisations o WHERE o.org_id = org FOR NO KEY UPDATE;
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
    ELSIF v_main_key IS NOT NULL AND root <> v_main_key OR v_main_key IS NULL AND EXISTS (SELECT FROM main_keys m WHERE m.main_key_id = root) THEN
        verdict := 409002;
        result := jsonb_build_object('why', 'the organisation''s main key was changed meanwhile');
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

DROP FUNCTION wrapping_keys_due(bigint, bigint);
CREATE FUNCTION wrapping_keys_due(max_age_ms bigint, max_wraps bigint)
RETURNS TABLE (org uuid, org_name text, generation integer, parent uuid)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT o.org_id, o.name, o.generation, o.main_key_id
          FROM (SELECT x.org_id, x.name, x.generation, x.main_key_id FROM organisations x WHERE x.state <> 'destroyed'
                UNION ALL SELECT t.org_id, '', t.generation, NULL FROM installation t) o
          LEFT JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation
         WHERE o.generation = 0
            OR w.created_at <= clock_timestamp() - max_age_ms * interval '1 millisecond' OR w.wraps >= max_wraps
         ORDER BY o.name;
END $$;
COMMENT ON FUNCTION wrapping_keys_due IS
    'Whose current wrapping key is too old or was used too often, and under what the next one belongs (NULL: the root); the installation (nil, "") is among them, at once while it has none';
GRANT EXECUTE ON FUNCTION wrapping_keys_due TO kms_keeper;

-- ---------------------------------------------------------------------------------------------------- officers

-- What officers may call: by the first word of the action.  Another file adds a word of its own to each of these.
ALTER FUNCTION control_check(text, jsonb) RENAME TO control_check_policy;
ALTER FUNCTION impact_facts(text, jsonb, uuid) RENAME TO impact_facts_policy;
ALTER FUNCTION control_about(uuid, text, jsonb) RENAME TO control_about_policy;
ALTER FUNCTION control_do(text, jsonb) RENAME TO control_do_policy;

-- Of main keys: which request of protocol section 5 an action is.
CREATE FUNCTION cmk_request(p_action text, p_args jsonb, OUT action text, OUT main_key uuid, OUT state text) LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_action = 'cmk.import' THEN 'cmk.create'
                WHEN p_action = 'cmk.delete' AND NOT p_args ? 'main_key' OR p_action IN ('cmk.default', 'cmk.public_key') THEN p_action
                ELSE 'cmk.update' END,
           arg_uuid(p_args -> 'main_key'),
           CASE p_action WHEN 'cmk.activate' THEN 'ACTIVE' WHEN 'cmk.disable' THEN 'DISABLED' WHEN 'cmk.revoke' THEN 'REVOKED'
                         WHEN 'cmk.deactivate' THEN 'DEACTIVATED' WHEN 'cmk.retire' THEN 'RETIRED' WHEN 'cmk.delete' THEN 'DELETED' END
$$;
COMMENT ON FUNCTION cmk_request IS 'An officer''s action as a request about main keys';

CREATE FUNCTION control_check_cmk(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_members text[] := CASE p_action WHEN 'cmk.import' THEN '{org,ciphertext,*,allow_128}' WHEN 'cmk.activate' THEN '{org,main_key,*}'
        WHEN 'cmk.disable' THEN '{org,*,main_key}' WHEN 'cmk.revoke' THEN '{org,*,main_key}' WHEN 'cmk.deactivate' THEN '{org,*,main_key}'
        WHEN 'cmk.retire' THEN '{org,main_key,*}' WHEN 'cmk.delete' THEN '{org,*,main_key}' WHEN 'cmk.default' THEN '{org,*}'
        WHEN 'cmk.public_key' THEN '{org,*}' END;
    v_missing text;
    a jsonb;
    r record;
    c checked;
    p main_key_plan;
BEGIN
    c := ROW(400002, 'no such action', nobody(), NULL, true);
    IF v_members IS NULL OR jsonb_typeof(coalesce(p_args, '{}')) <> 'object' THEN
        RETURN c;
    END IF;
    a := jsonb_strip_nulls(coalesce(p_args, '{}'));
    c.args := a;
    SELECT m INTO v_missing FROM unnest(v_members[:array_position(v_members, '*') - 1]) m WHERE NOT a ? m LIMIT 1;
    IF v_missing IS NOT NULL THEN
        c.why := v_missing || ' is missing';
        RETURN c;
    ELSIF EXISTS (SELECT FROM jsonb_object_keys(a) k WHERE k <> ALL (v_members)) THEN
        c.why := 'members are: ' || array_to_string(array_remove(v_members, '*'), ', ');
        RETURN c;
    ELSIF a ? 'main_key' AND arg_uuid(a -> 'main_key') IS NULL THEN
        c.why := 'main_key is an id';
        RETURN c;
    ELSIF a ? 'allow_128' AND jsonb_typeof(a -> 'allow_128') <> 'boolean' THEN
        c.why := 'allow_128 is true or false';
        RETURN c;
    ELSIF a ? 'ciphertext' AND (jsonb_typeof(a -> 'ciphertext') <> 'string' OR a ->> 'ciphertext' !~ '^([0-9a-f]{2})+$'
                               OR length(a ->> 'ciphertext') > 1024) THEN
        c.why := 'ciphertext is the main key, encrypted to the public key (RSA-OAEP with SHA-256): hexadecimal, at most 512 bytes';
        RETURN c;
    END IF;
    SELECT o.org_id INTO c.org FROM organisations o WHERE o.name = a ->> 'org' AND o.state <> 'destroyed';
    IF NOT FOUND THEN
        c.org := nobody();
        c.verdict := 404001;
        c.why := 'no organisation of this name';
        RETURN c;
    END IF;
    IF p_action IN ('cmk.disable', 'cmk.revoke', 'cmk.deactivate') AND NOT a ? 'main_key' THEN
        -- The one in force; its id is part of what is agreed to.
        a := a || coalesce((SELECT jsonb_build_object('main_key', m.main_key_id) FROM main_keys m
                             WHERE m.org_id = c.org AND m.state IN ('ACTIVE', 'REVOKED', 'DISABLED')), '{}');
        IF NOT a ? 'main_key' THEN
            c.verdict := 409002;
            c.why := 'this organisation has no main key in force';
            RETURN c;
        END IF;
    END IF;
    c.at_once := p_action IN ('cmk.disable', 'cmk.revoke', 'cmk.public_key');
    c.args := a;
    SELECT * INTO r FROM cmk_request(p_action, a);
    p := main_key_judge(c.org, r.action, r.main_key, r.state);
    c.verdict := p.verdict;
    c.why := p.why;
    RETURN c;
END $$;
COMMENT ON FUNCTION control_check_cmk IS 'control_check() for main keys';

CREATE FUNCTION impact_facts_cmk(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r record;
BEGIN
    SELECT * INTO r FROM cmk_request(p_action, p_args);
    RETURN jsonb_strip_nulls(jsonb_build_object('organisations', org_names(ARRAY[p_org]), 'services', services_with(p_org, NULL, NULL),
        'in_force', (SELECT m.main_key_id || ' ' || m.state FROM main_keys m WHERE m.org_id = p_org AND m.state IN ('ACTIVE', 'REVOKED', 'DISABLED')),
        'before', (SELECT m.state FROM main_keys m WHERE m.org_id = p_org AND m.main_key_id = r.main_key), 'after', r.state,
        'kcv', (SELECT encode(m.kcv, 'hex') FROM main_keys m WHERE m.org_id = p_org AND m.main_key_id = r.main_key),
        'main_keys', (SELECT count(*) FROM main_keys m WHERE m.org_id = p_org AND m.state IN ('PENDING', 'ACTIVE', 'DEACTIVATED', 'RETIRED')),
        'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.org_id = p_org AND w.month IS NULL AND w.destroyed_at IS NULL),
        'ciphertext_sha256', CASE WHEN p_args ? 'ciphertext' THEN encode(sha256(decode(p_args ->> 'ciphertext', 'hex')), 'hex') END));
END $$;
COMMENT ON FUNCTION impact_facts_cmk IS 'impact_facts() for main keys';

CREATE FUNCTION control_do_cmk(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
DECLARE
    c checked;
    r record;
    p main_key_plan;
    v_op uuid := gen_random_uuid();
BEGIN
    c := control_check_cmk(p_action, p_args);
    IF c.verdict <> 0 THEN
        RETURN ROW(c.verdict, jsonb_build_object('why', c.why), NULL, NULL, NULL)::deed;
    END IF;
    PERFORM FROM organisations o WHERE o.org_id = c.org FOR NO KEY UPDATE;
    SELECT * INTO r FROM cmk_request(p_action, c.args);
    p := main_key_judge(c.org, r.action, r.main_key, r.state);
    IF p.verdict <> 0 THEN
        RETURN ROW(p.verdict, jsonb_build_object('why', p.why), NULL, NULL, NULL)::deed;
    ELSIF p.how = 'now' THEN
        RETURN ROW(0, main_key_now(c.org, r.action, r.main_key, p.state)
            || CASE r.action WHEN 'cmk.public_key' THEN main_key_answer(c.org, r.action, '{}') ELSE '{}' END, NULL, NULL, NULL)::deed;
    END IF;
    PERFORM main_key_job(c.org, v_op, r.action, p, r.main_key, decode(c.args ->> 'ciphertext', 'hex'), (c.args ->> 'allow_128')::boolean,
        'keeper', 'keeper', NULL, NULL, NULL, '10 minutes');
    RETURN ROW(0, jsonb_build_object('job', v_op), NULL, NULL, NULL)::deed;
END $$;
COMMENT ON FUNCTION control_do_cmk IS 'control_do() for main keys: at once, or by a job, whose entry follows';

CREATE FUNCTION control_about_cmk(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
    SELECT control_about_policy(p_org, p_action, p_args)
        || CASE WHEN arg_uuid(p_args -> 'main_key') IS NULL THEN '{}' ELSE jsonb_build_object('main_key', p_args -> 'main_key') END
$$;
COMMENT ON FUNCTION control_about_cmk IS 'control_about() for main keys';

CREATE FUNCTION control_check(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN control_check_cmk(p_action, p_args);
    ELSE RETURN control_check_policy(p_action, p_args);
    END CASE;
END $$;
COMMENT ON FUNCTION control_check IS 'Are these the arguments of this action, and could it be done now?';

CREATE FUNCTION impact_facts(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN impact_facts_cmk(p_action, p_args, p_org);
    ELSE RETURN impact_facts_policy(p_action, p_args, p_org);
    END CASE;
END $$;
COMMENT ON FUNCTION impact_facts IS 'What an action would touch, and how things stand now';

CREATE FUNCTION control_about(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN control_about_cmk(p_org, p_action, p_args);
    ELSE RETURN control_about_policy(p_org, p_action, p_args);
    END CASE;
END $$;
COMMENT ON FUNCTION control_about IS 'What an entry says about an action''s arguments: no people, no free text';

CREATE FUNCTION control_do(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN control_do_cmk(p_action, p_args);
    ELSE RETURN control_do_policy(p_action, p_args);
    END CASE;
END $$;
COMMENT ON FUNCTION control_do IS 'Does it; the caller holds policy_lock()';
