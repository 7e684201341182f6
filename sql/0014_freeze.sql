-- 0014_freeze.sql - freezing: what officers keep from being released for a while, at once and on every node.
--
-- A freeze is a row.  Who writes one has policy_lock(), so releases that began before it have ended when it is answered, and
-- those that come later see it in release_gate().  One that is over means nothing, and is swept.  While there is none, a
-- release asks one empty table, once a call (freezes_hold()).

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------- the gate

CREATE OR REPLACE FUNCTION release_gate(p_org uuid, p_locked integer, p_subject text, p_purpose text, p_service text, p_resource uuid)
RETURNS integer LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_locked <> 0 THEN
        RETURN p_locked;
    ELSIF EXISTS (SELECT FROM freezes f
                   WHERE f.org_id IN (p_org, nobody()) AND f.until > clock_timestamp()
                     AND f.target = CASE f.scope WHEN 'org' THEN p_org::text WHEN 'resource' THEN p_resource::text
                                                 WHEN 'user' THEN p_subject WHEN 'purpose' THEN p_purpose
                                                 WHEN 'service' THEN p_service END) THEN
        RETURN 405006;
    END IF;
    RETURN 0;
END $$;

ALTER FUNCTION rule_of(integer, text) RENAME TO rule_of_code;
CREATE FUNCTION rule_of(p_verdict integer, p_kind text, OUT rule text, OUT otherwise text) LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF p_verdict = 405006 THEN
        rule := 'officers had frozen it for a while (its organisation, resource, user, purpose or service), or the organisation''s main key is disabled';
        otherwise := 'a request after the freeze (kmsctl freeze list; officers end one by kmsctl thaw), or the main key made active again';
    ELSIF p_verdict = 403004 AND coalesce(p_kind, 'user') NOT IN ('operator', 'keeper') THEN
        rule := 'to ask on behalf of another needs the compliance role in the token, only for retrieving, and only within the officer''s own organisation; '
            || 'main keys need the administrator role, and the caller''s own organisation in assignedOrgId';
        otherwise := 'that role in the token, and something of the caller''s own organisation';
    ELSE
        SELECT r.rule, r.otherwise INTO rule, otherwise FROM kms.rule_of_code(p_verdict, p_kind) r;
    END IF;
END $$;
COMMENT ON FUNCTION rule_of IS 'What an errorCode means, to a user or a service, and what would have had to be different';

-- ---------------------------------------------------------------------------------------------------- officers act

CREATE FUNCTION freeze_target(p_args jsonb, p_org uuid) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE p_args ->> 'scope' WHEN 'org' THEN p_org::text ELSE p_args ->> 'target' END;
COMMENT ON FUNCTION freeze_target IS 'freezes.target of arguments that were found right: an organisation is named, and stored by its id';

CREATE FUNCTION control_check_freeze(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now bigint := ms(clock_timestamp());
    v_members text[] := CASE p_action WHEN 'freeze' THEN '{scope,target,until,*,org}' WHEN 'thaw' THEN '{scope,target,*,org}' END;
    v_missing text;
    v_org uuid;
    a jsonb;
    c checked;
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
    ELSIF jsonb_typeof(a -> 'scope') <> 'string' OR a ->> 'scope' <> ALL ('{resource,user,purpose,service,org}') THEN
        c.why := 'scope is resource, user, purpose, service or org';
        RETURN c;
    ELSIF jsonb_typeof(a -> 'target') <> 'string' OR octet_length(a ->> 'target') NOT BETWEEN 1 AND 256 THEN
        c.why := 'target is a text of 1 to 256 bytes';
        RETURN c;
    ELSIF p_action = 'freeze' AND arg_integer(a -> 'until', v_now + 1000, v_now + 7776000000) IS NULL THEN
        c.why := 'until is a time within the next 90 days';
        RETURN c;
    ELSIF a ? 'org' AND a ->> 'scope' = 'org' AND a ->> 'org' <> a ->> 'target' THEN
        c.why := 'target is the organisation; org is not needed';
        RETURN c;
    ELSIF a ->> 'scope' = 'user' AND NOT a ? 'org' THEN
        c.why := 'org is missing: whose user it is';
        RETURN c;
    END IF;
    IF a ? 'org' OR a ->> 'scope' = 'org' THEN
        SELECT o.org_id INTO v_org FROM organisations o WHERE o.name = coalesce(a ->> 'org', a ->> 'target');
        IF NOT FOUND THEN
            c.verdict := 404001;
            c.why := 'no organisation of this name';
            RETURN c;
        END IF;
        c.org := v_org;
        a := a - CASE a ->> 'scope' WHEN 'org' THEN 'org' ELSE '' END;
    END IF;
    CASE a ->> 'scope'
    WHEN 'resource' THEN
        IF arg_uuid(a -> 'target') IS NULL THEN
            c.why := 'target is a resource''s id';
            RETURN c;
        END IF;
        a := a || jsonb_build_object('target', arg_uuid(a -> 'target'));
        SELECT r.org_id INTO c.org FROM resources r
         WHERE r.resource_id = arg_uuid(a -> 'target') AND (v_org IS NULL OR r.org_id = v_org) LIMIT 1;
        IF NOT FOUND THEN
            c.org := coalesce(v_org, nobody());
            c.verdict := 404001;
            c.why := 'no such resource';
            RETURN c;
        END IF;
        a := a - 'org';
    WHEN 'purpose' THEN
        IF a ->> 'target' <> ALL (all_purposes()) THEN
            c.why := 'purposes are: ' || array_to_string(all_purposes(), ', ');
            RETURN c;
        END IF;
    WHEN 'service' THEN
        IF NOT EXISTS (SELECT FROM services s WHERE s.org_id = nobody() AND s.service = a ->> 'target') THEN
            c.verdict := 404001;
            c.why := 'no service of this name';
            RETURN c;
        END IF;
    ELSE    -- a user is whoever has this id in tokens; he need not have come yet
    END CASE;
    IF p_action = 'thaw' AND NOT EXISTS (
        SELECT FROM freezes f WHERE f.org_id = c.org AND f.scope = a ->> 'scope' AND f.target = freeze_target(a, c.org)
                                AND f.until > clock_timestamp()) THEN
        c.verdict := 409002;
        c.why := 'it is not frozen' || CASE WHEN EXISTS (
            SELECT FROM freezes f WHERE f.scope = a ->> 'scope' AND f.target = freeze_target(a, c.org) AND f.until > clock_timestamp())
            THEN ' so: kmsctl freeze list tells of which organisation it is' ELSE '' END;
        RETURN c;
    END IF;
    c.verdict := 0;
    c.args := a;
    RETURN c;
END $$;
COMMENT ON FUNCTION control_check_freeze IS 'control_check() for freezing';

-- Counted outside of any lock, for who is about to freeze.
CREATE FUNCTION freeze_impact(p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_scope text := p_args ->> 'scope';
    v_target text := p_args ->> 'target';
    v_orgs uuid[];
    v_kinds text[] := all_kinds();
    v_services jsonb;
    v_resources bigint;
    v_keys bigint;
    v_users bigint;
    v_channels bigint;
    v_resource resources;
BEGIN
    v_orgs := CASE WHEN p_org <> nobody() THEN ARRAY[p_org]
                   WHEN v_scope = 'service' THEN ARRAY(SELECT x.org_id FROM service_orgs x WHERE x.service = v_target)
                   ELSE ARRAY(SELECT p.org_id FROM purposes p WHERE p.purpose = v_target AND p.enabled) END;
    CASE v_scope
    WHEN 'service' THEN
        SELECT s.kinds INTO v_kinds FROM services s WHERE s.org_id = nobody() AND s.service = v_target;
        v_services := jsonb_build_array(v_target);
    WHEN 'purpose' THEN
        SELECT coalesce(jsonb_agg(DISTINCT s.service), '[]') INTO v_services
          FROM services s JOIN service_orgs x ON x.service = s.service
         WHERE s.state = 'active' AND v_target = ANY (s.purposes) AND x.org_id = ANY (v_orgs);
        v_kinds := ARRAY(SELECT DISTINCT k FROM services s CROSS JOIN unnest(s.kinds) k WHERE v_services ? s.service);
    WHEN 'resource' THEN
        SELECT r.* INTO v_resource FROM resources r WHERE r.org_id = p_org AND r.resource_id = v_target::uuid;
        v_services := services_with(p_org, NULL, v_resource.kind);
    WHEN 'org' THEN
        v_services := services_with(p_org, NULL, NULL);
    ELSE
        v_services := '[]';
    END CASE;
    WITH it AS MATERIALIZED (
        SELECT r.org_id, r.resource_id FROM resources r
         WHERE r.org_id = ANY (v_orgs) AND r.kind = ANY (v_kinds) AND r.destroyed_at IS NULL
           AND CASE v_scope WHEN 'resource' THEN r.resource_id = v_resource.resource_id
                            WHEN 'user' THEN r.resource_id IN (SELECT a.resource_id FROM authorizations a
                                 WHERE a.org_id = p_org AND a.kind = 'user' AND a.grantee = v_target)
                            ELSE true END)
    SELECT (SELECT count(*) FROM it),
           (SELECT count(*) FROM it JOIN content_keys k ON k.org_id = it.org_id AND k.resource_id = it.resource_id AND k.blob IS NOT NULL),
           CASE v_scope WHEN 'user' THEN 1 WHEN 'purpose' THEN 0 WHEN 'service' THEN 0 ELSE
               (SELECT count(*) FROM (SELECT DISTINCT a.org_id, a.grantee FROM it
                  JOIN authorizations a ON a.org_id = it.org_id AND a.resource_id = it.resource_id AND a.kind = 'user') u) END
      INTO v_resources, v_keys, v_users;
    -- Who is here at this moment.
    SELECT count(*) INTO v_channels FROM channels c
     WHERE c.expires_at > clock_timestamp()
       AND CASE v_scope WHEN 'user' THEN c.org_id = p_org AND c.kind = 'user' AND c.subject = v_target
                        WHEN 'org' THEN c.org_id = p_org
                        WHEN 'service' THEN c.kind = 'service' AND c.subject = v_target
                        WHEN 'purpose' THEN c.kind = 'service' AND v_services ? c.subject
                        ELSE c.org_id = p_org AND c.kind = 'user' AND c.subject IN (SELECT a.grantee FROM authorizations a
                             WHERE a.org_id = p_org AND a.resource_id = v_resource.resource_id AND a.kind = 'user') END;
    RETURN jsonb_strip_nulls(jsonb_build_object('organisations', org_names(v_orgs), 'services', v_services, 'resources', v_resources,
        'keys', v_keys, 'users', v_users, 'channels', v_channels,
        'open_to_resources', CASE v_scope WHEN 'resource' THEN (SELECT count(*) FROM authorizations a
            WHERE a.org_id = p_org AND a.resource_id = v_resource.resource_id AND a.kind = 'resource') END,
        'frozen_until', (SELECT ms(f.until) FROM freezes f
                          WHERE f.org_id = p_org AND f.scope = v_scope AND f.target = freeze_target(p_args, p_org) AND f.until > clock_timestamp())));
END $$;
COMMENT ON FUNCTION freeze_impact IS 'What a freeze would keep back';

CREATE FUNCTION control_do_freeze(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before timestamptz;
    c checked;
    d deed := ROW(0, '{}', NULL, NULL, NULL);
BEGIN
    c := control_check_freeze(p_action, p_args);
    IF c.verdict <> 0 THEN
        RETURN ROW(c.verdict, jsonb_build_object('why', c.why), NULL, NULL, NULL)::deed;
    END IF;
    SELECT f.until INTO v_before FROM freezes f
     WHERE f.org_id = c.org AND f.scope = c.args ->> 'scope' AND f.target = freeze_target(c.args, c.org) AND f.until > v_now;
    IF p_action = 'freeze' THEN
        INSERT INTO freezes AS f (org_id, freeze_id, scope, target, until, created_by, created_at)
        VALUES (c.org, gen_random_uuid(), c.args ->> 'scope', freeze_target(c.args, c.org), ms_to_time((c.args ->> 'until')::bigint), '', v_now)
            ON CONFLICT (org_id, scope, target) DO UPDATE SET until = excluded.until, freeze_id = excluded.freeze_id, created_by = '',
                created_at = excluded.created_at
        RETURNING jsonb_build_object('freeze', f.freeze_id, 'until', ms(f.until)) INTO d.result;
    ELSE
        DELETE FROM freezes f
         WHERE f.org_id = c.org AND f.scope = c.args ->> 'scope' AND f.target = freeze_target(c.args, c.org)
        RETURNING jsonb_build_object('freeze', f.freeze_id) INTO d.result;
    END IF;
    IF v_before IS NOT NULL THEN
        d.result := d.result || jsonb_build_object('frozen_until', ms(v_before));
    END IF;
    IF c.args ->> 'scope' = 'user' THEN
        d.result := d.result || jsonb_build_object('person', (person_of(c.org, 'user', c.args ->> 'target')).person);
    ELSIF c.args ->> 'scope' = 'resource' THEN
        d.resource := (c.args ->> 'target')::uuid;
    END IF;
    RETURN d;
END $$;
COMMENT ON FUNCTION control_do_freeze IS 'control_do() for freezing; the caller holds policy_lock()';

CREATE FUNCTION control_about_freeze(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
    SELECT control_about_policy(p_org, p_action, p_args) || coalesce((
        SELECT jsonb_object_agg(e.key, e.value)
          FROM jsonb_each(CASE jsonb_typeof(p_args) WHEN 'object' THEN p_args ELSE '{}' END) e
         WHERE (e.key IN ('scope', 'until') OR e.key = 'target' AND p_args ->> 'scope' IN ('resource', 'purpose', 'service', 'org'))
           AND jsonb_typeof(e.value) IN ('string', 'number') AND e.value #>> '{}' ~ '^[A-Za-z0-9._:-]{1,128}$'), '{}')
$$;
COMMENT ON FUNCTION control_about_freeze IS 'control_about() for freezing: of a user the scope alone, his pseudonym comes with the deed';

-- Before all other words there are.
ALTER FUNCTION control_check(text, jsonb) RENAME TO control_check_others;
ALTER FUNCTION control_about(uuid, text, jsonb) RENAME TO control_about_others;
ALTER FUNCTION control_do(text, jsonb) RENAME TO control_do_others;

CREATE FUNCTION control_check(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE WHEN p_action IN ('freeze', 'thaw') THEN RETURN control_check_freeze(p_action, p_args);
         ELSE RETURN control_check_others(p_action, p_args); END CASE;
END $$;
COMMENT ON FUNCTION control_check IS 'Are these the arguments of this action, and could it be done now?';

CREATE FUNCTION control_about(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE WHEN p_action IN ('freeze', 'thaw') THEN RETURN control_about_freeze(p_org, p_action, p_args);
         ELSE RETURN control_about_others(p_org, p_action, p_args); END CASE;
END $$;
COMMENT ON FUNCTION control_about IS 'What an entry says about an action''s arguments: no people, no free text';

CREATE FUNCTION control_do(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
BEGIN
    CASE WHEN p_action IN ('freeze', 'thaw') THEN RETURN control_do_freeze(p_action, p_args);
         ELSE RETURN control_do_others(p_action, p_args); END CASE;
END $$;
COMMENT ON FUNCTION control_do IS 'Does it; the caller holds policy_lock()';

CREATE FUNCTION freeze_act(op uuid, action text, args jsonb, actor text, uid bigint)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF action IS NULL OR action NOT IN ('freeze', 'thaw') THEN
        RAISE EXCEPTION 'unknown action' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT x.verdict, x.result INTO STRICT verdict, result FROM control_act(op, action, args, actor, uid, 1) x;
    -- A deed knows nothing of who does it.
    IF action = 'freeze' AND verdict = 0 THEN
        UPDATE freezes f SET created_by = actor WHERE f.freeze_id = (result ->> 'freeze')::uuid AND f.created_by = '';
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION freeze_act IS 'control_act() for freezing, which one officer does; the row gets his name';

-- ---------------------------------------------------------------------------------------------------- officers look

CREATE FUNCTION freeze_preview(args jsonb) RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    c checked;
BEGIN
    c := control_check_freeze('freeze', args);
    verdict := c.verdict;
    result := CASE c.verdict WHEN 0 THEN c.args || jsonb_build_object('impact', freeze_impact(c.args, c.org))
                   ELSE jsonb_build_object('why', c.why) END;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION freeze_preview IS 'What the action freeze of these arguments would keep back, or why it would be refused';

CREATE FUNCTION freezes_list(org_name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN $1 IS NOT NULL AND log_org($1) IS NULL THEN NULL ELSE
           (SELECT coalesce(jsonb_agg(jsonb_build_object('org_name', o.name, 'scope', f.scope,
                       'target', CASE f.scope WHEN 'org' THEN o.name ELSE f.target END, 'until', ms(f.until),
                       'created_by', f.created_by, 'created', ms(f.created_at)) ORDER BY f.until, f.scope, f.target), '[]')
              FROM freezes f LEFT JOIN organisations o ON o.org_id = f.org_id
             WHERE f.until > clock_timestamp() AND ($1 IS NULL OR o.name = $1 OR f.org_id = nobody())) END
$$;
COMMENT ON FUNCTION freezes_list IS 'What is frozen now, of an organisation and everywhere (NULL: all), what ends first first; NULL: no such organisation';

-- ---------------------------------------------------------------------------------------------------- what is over

ALTER FUNCTION approvals_expire() RENAME TO approvals_expire_only;
CREATE FUNCTION approvals_expire() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    -- What ended means nothing already; who freezes the same anew just now keeps his row.
    DELETE FROM freezes f WHERE (f.org_id, f.scope, f.target) IN (
        SELECT x.org_id, x.scope, x.target FROM freezes x WHERE x.until <= clock_timestamp() FOR UPDATE SKIP LOCKED);
    RETURN approvals_expire_only();
END $$;
COMMENT ON FUNCTION approvals_expire IS 'Ends what nobody approved in time; how many.  Sweeps freezes that are over';
REVOKE EXECUTE ON FUNCTION approvals_expire_only FROM kms_keeper;

GRANT EXECUTE ON FUNCTION freeze_act, freeze_preview, freezes_list, approvals_expire TO kms_keeper;
