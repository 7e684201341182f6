-- 0007_control.sql - what officers decide: approvals by several of them, and what they approve: purposes, services, rules,
-- matters, destruction on command.
--
-- control_act() is the one way in.  What closes or harms nobody is done at once; what opens up or destroys is stored as an approval
-- with the report of what it touches, and is done with the last vote that it needs, in that vote's transaction.  Who is
-- who goes by the uid.  A vote is for a report: one that no longer says what is so does not count.
--
-- Locks, in this order: the approval's row; what is counted for the report, without any; policy_lock(); facts of the report, rows.  So
-- nobody who releases waits while something is counted, and what was judged cannot change before it is done.
--
-- No person's name and no free text gets into an entry: control_about() is all of the arguments that an entry shows.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- What may change of an approval is how it ended, once.
CREATE FUNCTION approval_stays() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (NEW.org_id, NEW.approval_id, NEW.action, NEW.args, NEW.needed, NEW.requested_by, NEW.requested_uid, NEW.created_at,
        NEW.expires_at) IS DISTINCT FROM
       (OLD.org_id, OLD.approval_id, OLD.action, OLD.args, OLD.needed, OLD.requested_by, OLD.requested_uid, OLD.created_at,
        OLD.expires_at) OR OLD.state <> 'pending'
    THEN
        RAISE EXCEPTION 'an approval is decided once, and never changed' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION approval_stays IS 'Trigger: an approval''s text never changes, nor how it ended';
CREATE TRIGGER approvals_same BEFORE UPDATE ON approvals FOR EACH ROW EXECUTE FUNCTION approval_stays();
CREATE TRIGGER approval_votes_stay BEFORE DELETE OR TRUNCATE ON approval_votes FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER services_stay BEFORE DELETE OR TRUNCATE ON services FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE INDEX approvals_pending ON approvals (expires_at) WHERE state = 'pending';

-- ---------------------------------------------------------------------------------------------------- small parts

CREATE FUNCTION arg_uuid(p_value jsonb) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_typeof(p_value) = 'string' AND p_value #>> '{}' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
            THEN (p_value #>> '{}')::uuid END;
COMMENT ON FUNCTION arg_uuid IS 'An argument that is an id; NULL: it is none';

CREATE FUNCTION arg_integer(p_value jsonb, p_min bigint, p_max bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_typeof(p_value) IN ('number', 'string') AND p_value #>> '{}' ~ '^(0|[1-9][0-9]{0,17})$'
            THEN CASE WHEN (p_value #>> '{}')::bigint BETWEEN p_min AND p_max THEN (p_value #>> '{}')::bigint END END;
COMMENT ON FUNCTION arg_integer IS 'An argument that is a whole number of this range; NULL: it is none';

CREATE FUNCTION arg_texts(p_value jsonb, p_max integer) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_list text[];
BEGIN
    IF jsonb_typeof(p_value) IS DISTINCT FROM 'array' OR jsonb_array_length(p_value) NOT BETWEEN 1 AND p_max
       OR EXISTS (SELECT FROM jsonb_array_elements(p_value) e WHERE jsonb_typeof(e) <> 'string'
                     OR octet_length(e #>> '{}') NOT BETWEEN 1 AND 256) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(DISTINCT e COLLATE "C" ORDER BY e COLLATE "C") INTO v_list FROM jsonb_array_elements_text(p_value) e;
    RETURN v_list;
END $$;
COMMENT ON FUNCTION arg_texts IS 'An argument that is a list of 1 to p_max texts of 1 to 256 bytes, sorted, each once; NULL: it is none';

CREATE FUNCTION all_purposes() RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY['indexing', 'dlp', 'ediscovery', 'archival', 'transcoding'];
COMMENT ON FUNCTION all_purposes IS 'Purposes that there are';
CREATE FUNCTION all_kinds() RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY['space', 'meeting', 'file', 'whiteboard', 'calendar'];
COMMENT ON FUNCTION all_kinds IS 'Kinds of resources that there are';

CREATE FUNCTION setting_why(p_name text, p_value text, p_installation boolean) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_number bigint := arg_integer(to_jsonb(p_value), 0, 999999999999999);
BEGIN
    IF p_name IS NULL OR setting_default(p_name) IS NULL THEN
        RETURN 'settings are: of an organisation compliance, dlp.age; of the installation approvals, approvals.matter, approvals.lifetime';
    ELSIF p_installation <> (p_name LIKE 'approvals%') THEN
        RETURN CASE WHEN p_installation THEN 'compliance and dlp.age belong to an organisation'
                    ELSE 'approvals, approvals.matter and approvals.lifetime belong to the installation, not to an organisation' END;
    ELSIF p_value IS NULL THEN
        RETURN 'value is missing';
    END IF;
    RETURN CASE
        WHEN p_name = 'compliance' AND p_value NOT IN ('role', 'matter') THEN 'compliance is role or matter'
        WHEN p_name = 'dlp.age' AND coalesce(v_number NOT BETWEEN 60000 AND 315360000000, true)
            THEN 'dlp.age is milliseconds: 60000 (a minute) to 315360000000 (ten years)'
        WHEN p_name IN ('approvals', 'approvals.matter') AND coalesce(v_number NOT BETWEEN 1 AND 16, true)
            THEN p_name || ' is how many officers: 1 to 16'
        WHEN p_name = 'approvals.lifetime' AND coalesce(v_number NOT BETWEEN 60000 AND 7776000000, true)
            THEN 'approvals.lifetime is milliseconds: 60000 (a minute) to 7776000000 (90 days)' END;
END $$;
COMMENT ON FUNCTION setting_why IS 'Why this is no setting, or no value of it, and what would be; NULL: it is one';

CREATE FUNCTION setting_opens(p_name text, p_before text, p_after text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE p_name WHEN 'compliance' THEN p_before <> p_after AND p_after = 'role'
                   WHEN 'dlp.age' THEN p_after::bigint > p_before::bigint
                   WHEN 'approvals.lifetime' THEN p_after::bigint > p_before::bigint
                   ELSE p_after::bigint < p_before::bigint END;
COMMENT ON FUNCTION setting_opens IS 'Does this change allow more than before?';

CREATE FUNCTION public_key_why(p_key jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(p_key) <> 'object' THEN
        RETURN 'public_key is a JWK';
    ELSIF p_key ?| ARRAY['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k'] THEN
        RETURN 'public_key is a private or secret key: replace that key, and send the public one';
    ELSIF EXISTS (SELECT FROM jsonb_each(p_key) e WHERE e.key <> ALL ('{kty,n,e,crv,x,y,kid,use,alg}') OR jsonb_typeof(e.value) <> 'string'
                     OR octet_length(e.value #>> '{}') > 1366) THEN
        RETURN 'public_key''s members are kty, n, e or crv, x, y, and kid, use, alg: all text';
    ELSIF p_key ->> 'use' <> 'enc' THEN
        RETURN 'public_key is not for encryption: use is not enc';
    ELSIF p_key ->> 'kty' = 'RSA' AND p_key ->> 'n' ~ '^[A-Za-z0-9_-]+$' AND length(p_key ->> 'n') >= 342 AND p_key ->> 'e' ~ '^[A-Za-z0-9_-]{1,12}$'
          AND coalesce(p_key ->> 'alg', 'RSA-OAEP-256') = 'RSA-OAEP-256' AND NOT p_key ?| ARRAY['crv', 'x', 'y'] THEN
        RETURN NULL;
    ELSIF p_key ->> 'kty' = 'EC' AND p_key ->> 'crv' = 'P-256' AND p_key ->> 'x' ~ '^[A-Za-z0-9_-]{43}$'
          AND p_key ->> 'y' ~ '^[A-Za-z0-9_-]{43}$' AND coalesce(p_key ->> 'alg', 'ECDH-ES') = 'ECDH-ES'
          AND NOT p_key ?| ARRAY['n', 'e'] THEN
        RETURN NULL;
    END IF;
    RETURN 'public_key is RSA of at least 2048 bits (alg RSA-OAEP-256) or EC on P-256 (alg ECDH-ES)';
END $$;
COMMENT ON FUNCTION public_key_why IS 'Why keys cannot be given to this key; NULL: they can';

-- ---------------------------------------------------------------------------------------------------- arguments

CREATE TYPE checked AS (verdict integer, why text, org uuid, args jsonb, at_once boolean);
COMMENT ON TYPE checked IS 'What control_check found: whose log, the arguments in one form, is it done at once';

CREATE FUNCTION control_check(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_members text[];
    v_missing text;
    a jsonb;
    v_org organisations;
    v_service services;
    v_names text[];
    v_matter matters;
    v_key content_keys;
    v_resource resources;
    v_org_id uuid;
    v_value text;
    v_end bigint := 253402300799999;    -- the year 9999
    c checked;
BEGIN
    c := ROW(0, NULL, nobody(), NULL, true);
    v_members := CASE p_action      -- those before the star must be there
        WHEN 'purpose.enable' THEN '{org,purpose,*}' WHEN 'purpose.disable' THEN '{org,purpose,*}'
        WHEN 'service.add' THEN '{service,identity,purposes,orgs,kinds,rate,breadth,*,public_key}'
        WHEN 'service.change' THEN '{service,identity,purposes,orgs,kinds,rate,breadth,*,public_key}'
        WHEN 'service.retire' THEN '{service,*}' WHEN 'certificate.revoke' THEN '{serial,*,issuer}'
        WHEN 'matter.open' THEN '{org,name,custodians,from,to,kinds,expires,*,sealed_until,matter}'
        WHEN 'matter.close' THEN '{matter,*}'
        WHEN 'canary.add' THEN '{resource,*,note}' WHEN 'canary.remove' THEN '{resource,*}'
        WHEN 'setting.set' THEN '{name,value,*,org}'
        WHEN 'key.destroy' THEN '{key,*}' WHEN 'resource.destroy' THEN '{resource,*}'
        WHEN 'audit.suspend' THEN '{*}' WHEN 'audit.resume' THEN '{*}' END;
    IF v_members IS NULL THEN
        RETURN ROW(400002, 'no such action', nobody(), NULL, true)::checked;
    ELSIF jsonb_typeof(coalesce(p_args, '{}')) <> 'object' THEN
        RETURN ROW(400002, 'the arguments are no object', nobody(), NULL, true)::checked;
    END IF;
    a := jsonb_strip_nulls(coalesce(p_args, '{}'));
    c.args := a;
    c.verdict := 400002;    -- until it is found to be right
    SELECT m INTO v_missing FROM unnest(v_members[:array_position(v_members, '*') - 1]) m WHERE NOT a ? m LIMIT 1;
    IF v_missing IS NOT NULL THEN
        c.why := v_missing || ' is missing';
        RETURN c;
    ELSIF EXISTS (SELECT FROM jsonb_object_keys(a) k WHERE k <> ALL (v_members)) THEN
        c.why := 'members are: ' || array_to_string(array_remove(array_remove(v_members, '*'), 'matter'), ', ');
        RETURN c;
    END IF;

    IF a ? 'org' THEN
        SELECT o.* INTO v_org FROM organisations o WHERE o.name = a ->> 'org';
        IF NOT FOUND THEN
            c.verdict := 404001;
            c.why := 'no organisation of this name';
            RETURN c;
        END IF;
        c.org := v_org.org_id;
    END IF;
    IF a ? 'purpose' AND a ->> 'purpose' <> ALL (all_purposes()) THEN
        c.why := 'purposes are: ' || array_to_string(all_purposes(), ', ');
        RETURN c;
    END IF;
    IF a ? 'purposes' THEN
        v_names := arg_texts(a -> 'purposes', 5);
        IF v_names IS NULL OR NOT v_names <@ all_purposes() THEN
            c.why := 'purposes is a list of: ' || array_to_string(all_purposes(), ', ');
            RETURN c;
        END IF;
        a := a || jsonb_build_object('purposes', v_names);
    END IF;
    IF a ? 'kinds' THEN
        v_names := arg_texts(a -> 'kinds', 5);
        IF v_names IS NULL OR NOT v_names <@ all_kinds() THEN
            c.why := 'kinds is a list of: ' || array_to_string(all_kinds(), ', ');
            RETURN c;
        END IF;
        a := a || jsonb_build_object('kinds', v_names);
    END IF;

    CASE split_part(p_action, '.', 1)
    WHEN 'purpose' THEN
        c.at_once := p_action = 'purpose.disable';
        IF NOT c.at_once AND EXISTS (SELECT FROM purposes p WHERE p.org_id = c.org AND p.purpose = a ->> 'purpose' AND p.enabled) THEN
            c.verdict := 409002;
            c.why := 'this purpose is on already';
            RETURN c;
        END IF;

    WHEN 'service' THEN
        SELECT s.* INTO v_service FROM services s WHERE s.org_id = nobody() AND s.service = a ->> 'service';
        IF p_action = 'service.retire' THEN
            IF v_service.service IS NULL THEN
                c.verdict := 404001;
                c.why := 'no service of this name';
                RETURN c;
            END IF;
        ELSE
            c.at_once := false;
            IF jsonb_typeof(a -> 'service') <> 'string' OR a ->> 'service' !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$' THEN
                c.why := 'a name is a letter or digit, then up to 127 letters, digits, dots, dashes, underscores';
                RETURN c;
            ELSIF jsonb_typeof(a -> 'identity') <> 'string' OR a ->> 'identity' !~ '^[a-z][a-z0-9+.-]*:[!-~]+$'
                  OR octet_length(a ->> 'identity') > 512 THEN
                c.why := 'identity is the URI in its certificates'' subjectAltName, at most 512 characters';
                RETURN c;
            ELSIF arg_integer(a -> 'rate', 0, 1000000) IS NULL THEN
                c.why := 'rate is requests a second: 0 (no limit) to 1000000';
                RETURN c;
            ELSIF arg_integer(a -> 'breadth', 0, 1000000000) IS NULL THEN
                c.why := 'breadth is distinct resources an hour: 0 (no limit) to 1000000000';
                RETURN c;
            ELSIF a ? 'public_key' AND public_key_why(a -> 'public_key') IS NOT NULL THEN
                c.why := public_key_why(a -> 'public_key');
                RETURN c;
            END IF;
            v_names := arg_texts(a -> 'orgs', 10000);
            IF v_names IS NULL THEN
                c.why := 'orgs is a list of organisations'' names';
                RETURN c;
            ELSIF EXISTS (SELECT FROM unnest(v_names) n WHERE NOT EXISTS (SELECT FROM organisations o WHERE o.name = n)) THEN
                c.verdict := 404001;
                c.why := 'orgs names an organisation that does not exist';
                RETURN c;
            END IF;
            a := a || jsonb_build_object('orgs', v_names, 'rate', arg_integer(a -> 'rate', 0, 1000000),
                                         'breadth', arg_integer(a -> 'breadth', 0, 1000000000));
            IF p_action = 'service.add' AND v_service.service IS NOT NULL THEN
                c.verdict := 409002;
                c.why := 'a service of this name ' || CASE v_service.state WHEN 'active' THEN 'exists'
                                                           ELSE 'existed: names are not used again' END;
                RETURN c;
            ELSIF p_action = 'service.change' AND v_service.service IS NULL THEN
                c.verdict := 404001;
                c.why := 'no service of this name';
                RETURN c;
            ELSIF p_action = 'service.change' AND v_service.state <> 'active' THEN
                c.verdict := 409002;
                c.why := 'this service is retired, for ever';
                RETURN c;
            ELSIF EXISTS (SELECT FROM services s WHERE s.identity = a ->> 'identity' AND s.state = 'active'
                             AND s.service <> a ->> 'service') THEN
                c.verdict := 409002;
                c.why := 'another service has this identity';
                RETURN c;
            END IF;
        END IF;

    WHEN 'certificate' THEN
        v_value := lower(replace(a ->> 'serial', ':', ''));
        v_value := repeat('0', length(v_value) % 2) || v_value;
        v_value := coalesce(nullif(regexp_replace(v_value, '^(00)+', ''), ''), '00');
        IF jsonb_typeof(a -> 'serial') <> 'string' OR v_value !~ '^([0-9a-f]{2}){1,64}$' THEN
            c.why := 'serial is the certificate''s serial number, hexadecimal, at most 64 bytes';
            RETURN c;
        ELSIF a ? 'issuer' AND (jsonb_typeof(a -> 'issuer') <> 'string' OR lower(a ->> 'issuer') !~ '^[0-9a-f]{64}$') THEN
            c.why := 'issuer is the SHA-256 of the issuer''s name in DER, hexadecimal; absent: any issuer';
            RETURN c;
        END IF;
        a := a || jsonb_build_object('serial', v_value, 'issuer', coalesce(lower(a ->> 'issuer'), repeat('0', 64)));

    WHEN 'matter' THEN
        IF p_action = 'matter.close' OR a ? 'matter' THEN
            SELECT m.* INTO v_matter FROM matters m WHERE m.matter_id = arg_uuid(a -> 'matter');
            IF NOT FOUND THEN
                c.verdict := 404001;
                c.why := 'no such matter';
                RETURN c;
            END IF;
            c.org := v_matter.org_id;
        END IF;
        IF p_action = 'matter.close' THEN
            IF v_matter.state = 'rejected' THEN
                c.verdict := 409002;
                c.why := 'this matter was rejected';
                RETURN c;
            END IF;
        ELSE
            c.at_once := false;
            v_names := arg_texts(a -> 'custodians', 1000);
            IF jsonb_typeof(a -> 'name') <> 'string' OR octet_length(a ->> 'name') NOT BETWEEN 1 AND 256 OR a ->> 'name' ~ '[\x01-\x1f\x7f]' THEN
                c.why := 'name is a text of 1 to 256 bytes';
                RETURN c;
            ELSIF v_names IS NULL THEN
                c.why := 'custodians is a list of 1 to 1000 user ids';
                RETURN c;
            ELSIF arg_integer(a -> 'from', 0, v_end) IS NULL OR arg_integer(a -> 'to', 0, v_end) IS NULL
                  OR (a ->> 'from')::bigint >= (a ->> 'to')::bigint THEN
                c.why := 'from and to are milliseconds since 1970, from the earlier';
                RETURN c;
            ELSIF coalesce(arg_integer(a -> 'expires', 0, v_end), 0) <= ms(v_now) THEN
                c.why := 'expires is milliseconds since 1970, in the future';
                RETURN c;
            ELSIF a ? 'sealed_until' AND arg_integer(a -> 'sealed_until', 0, v_end) IS NULL THEN
                c.why := 'sealed_until is milliseconds since 1970';
                RETURN c;
            ELSIF a ? 'matter' AND (v_matter.state <> 'pending' OR v_matter.text_sha256 <> sha256(convert_to(matter_text(v_matter), 'UTF8'))) THEN
                c.verdict := 409002;
                c.why := CASE v_matter.state WHEN 'pending' THEN 'this matter''s text is not what was asked for'
                                             ELSE 'this matter does not wait for approval any more' END;
                RETURN c;
            END IF;
            a := a || jsonb_build_object('custodians', v_names, 'from', (a ->> 'from')::bigint, 'to', (a ->> 'to')::bigint,
                                         'expires', (a ->> 'expires')::bigint);
            IF a ? 'sealed_until' THEN
                a := a || jsonb_build_object('sealed_until', (a ->> 'sealed_until')::bigint);
            END IF;
        END IF;

    WHEN 'key' THEN
        c.at_once := false;
        SELECT k.* INTO v_key FROM content_keys k WHERE k.key_id = arg_uuid(a -> 'key');
        IF NOT FOUND THEN
            c.verdict := 404001;
            c.why := 'no such key';
            RETURN c;
        END IF;
        c.org := v_key.org_id;
        IF v_key.blob IS NULL THEN
            c.verdict := 409002;
            c.why := 'this key is destroyed already';
            RETURN c;
        END IF;
        a := jsonb_build_object('key', v_key.key_id);

    WHEN 'resource', 'canary' THEN
        c.at_once := p_action <> 'resource.destroy';
        SELECT r.* INTO v_resource FROM resources r WHERE r.resource_id = arg_uuid(a -> 'resource');
        IF NOT FOUND THEN
            c.verdict := 404001;
            c.why := 'no such resource';
            RETURN c;
        END IF;
        c.org := v_resource.org_id;
        a := a || jsonb_build_object('resource', v_resource.resource_id);
        IF p_action <> 'canary.remove' AND v_resource.destroyed_at IS NOT NULL THEN
            c.verdict := 409002;
            c.why := 'this resource is destroyed already';
            RETURN c;
        ELSIF p_action = 'canary.remove' AND NOT EXISTS (SELECT FROM canaries x WHERE x.org_id = c.org AND x.resource_id = v_resource.resource_id) THEN
            c.verdict := 404001;
            c.why := 'this resource is no canary';
            RETURN c;
        ELSIF a ? 'note' AND (jsonb_typeof(a -> 'note') <> 'string' OR octet_length(a ->> 'note') > 1024) THEN
            c.why := 'note is a text of at most 1024 bytes';
            RETURN c;
        END IF;

    WHEN 'setting' THEN
        v_value := CASE WHEN jsonb_typeof(a -> 'value') IN ('string', 'number') THEN a ->> 'value' END;
        c.why := setting_why(a ->> 'name', v_value, NOT a ? 'org');
        IF c.why IS NOT NULL THEN
            RETURN c;
        END IF;
        a := a || jsonb_build_object('value', v_value);
        c.at_once := NOT setting_opens(a ->> 'name', setting(c.org, a ->> 'name'), v_value);

    WHEN 'audit' THEN
        c.at_once := p_action = 'audit.resume';
        IF NOT c.at_once AND setting(nobody(), 'audit.stream') = 'suspended' THEN
            c.verdict := 409002;
            c.why := 'the stream is suspended already';
            RETURN c;
        END IF;
    END CASE;

    c.verdict := 0;
    c.args := a;
    RETURN c;
END $$;
COMMENT ON FUNCTION control_check IS 'Are these the arguments of this action, and could it be done now?';

-- ---------------------------------------------------------------------------------------------------- reports

CREATE FUNCTION org_names(p_orgs uuid[]) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT coalesce(jsonb_agg(o.name ORDER BY o.name COLLATE "C"), '[]') FROM organisations o WHERE o.org_id = ANY (p_orgs));
COMMENT ON FUNCTION org_names IS 'Organisations'' names, sorted';

CREATE FUNCTION services_with(p_org uuid, p_purpose text, p_kind text) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT coalesce(jsonb_agg(s.service ORDER BY s.service COLLATE "C"), '[]')
          FROM services s JOIN service_orgs x ON x.service = s.service AND x.org_id = p_org
         WHERE s.state = 'active' AND (p_purpose IS NULL OR p_purpose = ANY (s.purposes))
           AND (p_kind IS NULL OR p_kind = ANY (s.kinds))
           AND (p_purpose IS NOT NULL OR EXISTS (SELECT FROM purposes p WHERE p.org_id = p_org AND p.enabled AND p.purpose = ANY (s.purposes))));
COMMENT ON FUNCTION services_with IS 'Active services that may see this organisation, for a purpose (NULL: any that is on) and kind (NULL: any)';

CREATE FUNCTION service_json(s services) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_build_object('service', s.service, 'identity', s.identity, 'state', s.state, 'purposes', s.purposes,
    'orgs', (SELECT coalesce(jsonb_agg(o.name ORDER BY o.name COLLATE "C"), '[]') FROM service_orgs x
               JOIN organisations o ON o.org_id = x.org_id WHERE x.service = s.service),
    'kinds', s.kinds, 'rate', s.rate, 'breadth', s.breadth, 'public_key', s.public_key,
    'created', ms(s.created_at), 'retired', ms(s.retired_at));
COMMENT ON FUNCTION service_json IS 'A service as operators see it';

-- Exact counts take their time in a large organisation: outside of policy_lock().
CREATE FUNCTION impact_counts(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_orgs uuid[] := ARRAY[p_org];
    v_kinds text[] := all_kinds();
    v_matter matters;
    v_resource uuid;
    v_from timestamptz;
    v_to timestamptz;
    v_resources bigint := 0;
    v_keys bigint := 0;
    v_users bigint := 0;
    v_more jsonb := '{}';
BEGIN
    IF p_action IN ('key.destroy', 'resource.destroy') THEN
        v_resource := (p_args ->> 'resource')::uuid;
        v_keys := 1;
        IF p_action = 'key.destroy' THEN
            SELECT k.resource_id INTO v_resource FROM content_keys k WHERE k.org_id = p_org AND k.key_id = (p_args ->> 'key')::uuid;
        ELSE
            SELECT count(*) INTO v_keys FROM content_keys k WHERE k.org_id = p_org AND k.resource_id = v_resource AND k.blob IS NOT NULL;
        END IF;
        v_resources := (v_resource IS NOT NULL)::integer;
        SELECT count(*) INTO v_users FROM authorizations a WHERE a.org_id = p_org AND a.resource_id = v_resource AND a.kind = 'user';
        v_more := jsonb_build_object('open_to_resources', (SELECT count(*) FROM authorizations a
            WHERE a.org_id = p_org AND a.resource_id = v_resource AND a.kind = 'resource'));
    ELSIF p_action = 'matter.open' THEN
        SELECT m.* INTO v_matter FROM matters m WHERE m.org_id = p_org AND m.matter_id = (p_args ->> 'matter')::uuid;
        WITH covered AS MATERIALIZED (
            SELECT r.resource_id FROM resources r
             WHERE r.org_id = p_org AND r.destroyed_at IS NULL AND r.kind = ANY (v_matter.kinds)
               AND r.resource_id IN (SELECT a.resource_id FROM authorizations a WHERE a.org_id = p_org AND a.kind = 'user'
                                        AND a.grantee = ANY (v_matter.custodians)))
        SELECT (SELECT count(*) FROM covered),
               (SELECT count(*) FROM covered c JOIN content_keys k ON k.org_id = p_org AND k.resource_id = c.resource_id
                 WHERE k.blob IS NOT NULL AND k.bound_at >= v_matter.window_from AND k.bound_at < v_matter.window_to),
               (SELECT count(DISTINCT a.grantee) FROM covered c
                  JOIN authorizations a ON a.org_id = p_org AND a.resource_id = c.resource_id AND a.kind = 'user')
          INTO v_resources, v_keys, v_users;
        v_more := jsonb_build_object('custodians', cardinality(v_matter.custodians), 'custodians_on_nothing',
            (SELECT count(*) FROM unnest(v_matter.custodians) u WHERE NOT EXISTS (
                 SELECT FROM authorizations a WHERE a.org_id = p_org AND a.kind = 'user' AND a.grantee = u)));
    ELSIF p_action = 'setting.set' AND p_args ->> 'name' = 'dlp.age' THEN
        -- What the change alone would show.
        v_from := v_now - (p_args ->> 'value')::bigint * interval '1 millisecond';
        v_to := v_now - setting(p_org, 'dlp.age')::bigint * interval '1 millisecond';
        WITH shown AS MATERIALIZED (
            SELECT k.resource_id FROM content_keys k
             WHERE k.org_id = p_org AND k.blob IS NOT NULL
               AND k.bound_at > v_from AND k.bound_at <= v_to),
             seen AS MATERIALIZED (SELECT DISTINCT s.resource_id FROM shown s)
        SELECT (SELECT count(*) FROM seen), (SELECT count(*) FROM shown),
               (SELECT count(DISTINCT a.grantee) FROM seen s
                  JOIN authorizations a ON a.org_id = p_org AND a.resource_id = s.resource_id AND a.kind = 'user')
          INTO v_resources, v_keys, v_users;
    ELSIF p_action <> 'audit.suspend' AND NOT (p_action = 'setting.set' AND p_org = nobody()) THEN
        -- All that these organisations have of these kinds.
        IF p_args ? 'orgs' THEN
            v_orgs := ARRAY(SELECT o.org_id FROM organisations o WHERE o.name IN (SELECT jsonb_array_elements_text(p_args -> 'orgs')));
            v_kinds := ARRAY(SELECT jsonb_array_elements_text(p_args -> 'kinds'));
        END IF;
        SELECT count(*) INTO v_resources FROM resources r
         WHERE r.org_id = ANY (v_orgs) AND r.kind = ANY (v_kinds) AND r.destroyed_at IS NULL;
        SELECT count(*) INTO v_keys FROM content_keys k JOIN resources r ON r.org_id = k.org_id AND r.resource_id = k.resource_id
         WHERE r.org_id = ANY (v_orgs) AND r.kind = ANY (v_kinds) AND r.destroyed_at IS NULL AND k.blob IS NOT NULL;
        SELECT count(*) INTO v_users FROM (
            SELECT DISTINCT a.org_id, a.grantee FROM authorizations a
              JOIN resources r ON r.org_id = a.org_id AND r.resource_id = a.resource_id
             WHERE a.kind = 'user' AND r.org_id = ANY (v_orgs) AND r.kind = ANY (v_kinds) AND r.destroyed_at IS NULL) x;
    END IF;
    RETURN jsonb_build_object('resources', v_resources, 'keys', v_keys, 'users', v_users) || v_more;
END $$;
COMMENT ON FUNCTION impact_counts IS 'How much an action would touch';

CREATE FUNCTION impact_facts(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_matter matters;
    v_service services;
    v_resource resources;
    v_facts jsonb;
BEGIN
    v_facts := jsonb_build_object('organisations', org_names(ARRAY[p_org]), 'services', '[]'::jsonb);
    CASE p_action
    WHEN 'purpose.enable' THEN
        v_facts := v_facts || jsonb_build_object('services', services_with(p_org, p_args ->> 'purpose', NULL));
    WHEN 'service.add', 'service.change' THEN
        SELECT s.* INTO v_service FROM services s WHERE s.org_id = nobody() AND s.service = p_args ->> 'service';
        v_facts := jsonb_build_object('organisations', p_args -> 'orgs', 'services', jsonb_build_array(p_args ->> 'service'),
            'before', CASE WHEN v_service.service IS NOT NULL THEN service_json(v_service) END,
            -- Which of its purposes would work at once, where.
            'open', (SELECT coalesce(jsonb_agg(o.name || ' ' || p.purpose ORDER BY o.name COLLATE "C", p.purpose), '[]')
                       FROM organisations o JOIN purposes p ON p.org_id = o.org_id AND p.enabled
                      WHERE p_args -> 'orgs' ? o.name AND p_args -> 'purposes' ? p.purpose));
    WHEN 'matter.open' THEN
        SELECT m.* INTO v_matter FROM matters m WHERE m.org_id = p_org AND m.matter_id = (p_args ->> 'matter')::uuid;
        v_facts := v_facts || jsonb_build_object('services', services_with(p_org, 'ediscovery', NULL),
            'matter', v_matter.matter_id, 'matter_state', v_matter.state,
            'text_sha256', encode(sha256(convert_to(matter_text(v_matter), 'UTF8')), 'hex'),
            'ediscovery', EXISTS (SELECT FROM purposes p WHERE p.org_id = p_org AND p.purpose = 'ediscovery' AND p.enabled),
            'compliance', setting(p_org, 'compliance'));
    WHEN 'setting.set' THEN
        v_facts := v_facts || jsonb_build_object('before', setting(p_org, p_args ->> 'name'), 'after', p_args ->> 'value',
            'services', CASE p_args ->> 'name' WHEN 'dlp.age' THEN services_with(p_org, 'dlp', NULL) ELSE '[]' END);
    WHEN 'key.destroy', 'resource.destroy' THEN
        SELECT r.* INTO v_resource FROM resources r
         WHERE r.org_id = p_org
           AND r.resource_id = CASE p_action WHEN 'resource.destroy' THEN (p_args ->> 'resource')::uuid
                ELSE (SELECT k.resource_id FROM content_keys k WHERE k.org_id = p_org AND k.key_id = (p_args ->> 'key')::uuid) END;
        v_facts := v_facts || jsonb_build_object('resource', v_resource.resource_id, 'kind', v_resource.kind,
            'services', CASE WHEN v_resource.resource_id IS NULL THEN '[]' ELSE services_with(p_org, NULL, v_resource.kind) END,
            'destroyed', v_resource.destroyed_at IS NOT NULL);
        IF p_action = 'key.destroy' THEN
            v_facts := v_facts || jsonb_build_object('destroyed', NOT EXISTS (SELECT FROM content_keys k
                WHERE k.org_id = p_org AND k.key_id = (p_args ->> 'key')::uuid AND k.blob IS NOT NULL));
        END IF;
    WHEN 'audit.suspend' THEN
        v_facts := v_facts || jsonb_build_object('stream', coalesce(setting(nobody(), 'audit.stream'), 'on'));
    END CASE;
    RETURN jsonb_strip_nulls(v_facts);
END $$;
COMMENT ON FUNCTION impact_facts IS 'What an action would touch, and how things stand now';

CREATE FUNCTION impact_same(p_a jsonb, p_b jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE
RETURN NOT EXISTS (
    SELECT FROM jsonb_each(p_a) a FULL JOIN jsonb_each(p_b) b ON a.key = b.key
     WHERE CASE WHEN jsonb_typeof(a.value) = 'number' AND jsonb_typeof(b.value) = 'number'
                THEN abs((a.value #>> '{}')::numeric - (b.value #>> '{}')::numeric) * 20 > (a.value #>> '{}')::numeric
                ELSE a.value IS DISTINCT FROM b.value END);
COMMENT ON FUNCTION impact_same IS 'Do two reports say the same: all but counts exactly, counts within 5 % of the first';

-- ---------------------------------------------------------------------------------------------------- records

CREATE FUNCTION record_control(p_org uuid, p_op uuid, p_actor text, p_action text, p_verdict integer, p_detail jsonb,
    p_resource uuid DEFAULT NULL, p_keys uuid[] DEFAULT NULL, p_matter uuid DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO entries (org_id, op_id, verdict, action, kind, subject, resource_id, key_ids, matter_id, detail)
    VALUES (p_org, p_op, p_verdict, p_action, CASE WHEN p_actor = 'keeper' THEN 'keeper' ELSE 'operator' END, p_actor,
            p_resource, p_keys, p_matter, p_detail)
    ON CONFLICT (org_id, op_id) DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this operation was done in the meantime' USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
COMMENT ON FUNCTION record_control IS 'Writes one entry about what an officer or the keeper has done';

CREATE FUNCTION control_about(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_about jsonb;
BEGIN
    -- Refused arguments come through here as well: only what looks like an id, a name of ours or a figure.
    SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') INTO v_about
      FROM jsonb_each(CASE jsonb_typeof(p_args) WHEN 'object' THEN p_args ELSE '{}' END) e
     WHERE (e.key = ANY ('{org,purpose,service,matter,key,resource,serial,issuer,value,from,to,expires,sealed_until,rate,breadth}')
            OR (e.key = 'name' AND p_action = 'setting.set'))
       AND jsonb_typeof(e.value) IN ('string', 'number') AND e.value #>> '{}' ~ '^[A-Za-z0-9._:-]{1,128}$';
    RETURN v_about;
END $$;
COMMENT ON FUNCTION control_about IS 'What an entry says about an action''s arguments: no people, no free text';

CREATE FUNCTION control_details(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_about jsonb := control_about(p_org, p_action, p_args);
BEGIN
    IF p_args ? 'identity' THEN
        v_about := v_about || jsonb_build_object('identity', p_args -> 'identity', 'purposes', p_args -> 'purposes', 'orgs', p_args -> 'orgs',
            'kinds', p_args -> 'kinds');
        IF p_args ? 'public_key' THEN
            v_about := v_about || jsonb_build_object('public_key_sha256',
                encode(sha256(convert_to((p_args -> 'public_key')::text, 'UTF8')), 'hex'));
        END IF;
    ELSIF p_args ? 'custodians' THEN
        v_about := v_about || jsonb_build_object('kinds', p_args -> 'kinds', 'custodians',
            (SELECT jsonb_agg((person_of(p_org, 'user', c)).person) FROM jsonb_array_elements_text(p_args -> 'custodians') c));
    END IF;
    RETURN v_about;
END $$;
COMMENT ON FUNCTION control_details IS 'The same for arguments that were found right: with pseudonyms for custodians';

CREATE FUNCTION deed_op(p_op uuid) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(substr(sha256(uuid_send(p_op) || convert_to('deed', 'UTF8')), 1, 16), 'hex')::uuid;
COMMENT ON FUNCTION deed_op IS 'The operation id of what is done together with the vote of that operation';

-- ---------------------------------------------------------------------------------------------------- approvals

CREATE FUNCTION approval_hash(a approvals, p_impact jsonb) RETURNS text LANGUAGE sql STABLE
RETURN encode(sha256(convert_to('approval ' || a.approval_id || E'\n' || a.action || E'\n'
    || coalesce((SELECT matter_text(m) FROM matters m
                  WHERE a.action = 'matter.open' AND m.org_id = a.org_id AND m.matter_id = a.approval_id), a.args::text || E'\n')
    || p_impact::text, 'UTF8')), 'hex');
COMMENT ON FUNCTION approval_hash IS 'What an approval is for: SHA-256 of the action, its arguments or the matter''s text, and the report';

-- The rule of today counts when it asks for more than that of the day when it was asked for.
CREATE FUNCTION approval_needed(a approvals) RETURNS integer LANGUAGE sql STABLE
RETURN CASE a.state WHEN 'pending' THEN greatest(a.needed,
    setting(nobody(), CASE a.action WHEN 'matter.open' THEN 'approvals.matter' ELSE 'approvals' END)::integer) ELSE a.needed END;
COMMENT ON FUNCTION approval_needed IS 'How many officers it needs';

CREATE FUNCTION approval_json(a approvals, p_impact jsonb, p_now jsonb DEFAULT NULL) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_build_object('approval', a.approval_id, 'action', a.action, 'args', a.args,
           'state', CASE WHEN a.state = 'pending' AND a.expires_at <= clock_timestamp() THEN 'expired' ELSE a.state END,
           'needed', approval_needed(a), 'requested_by', a.requested_by, 'created', ms(a.created_at), 'expires', ms(a.expires_at),
           'votes', (SELECT coalesce(jsonb_agg(jsonb_build_object('officer', v.officer, 'at', ms(v.at))
                            || CASE WHEN p_now IS NOT NULL AND v.uid <> a.requested_uid AND NOT impact_same(v.impact, p_now) THEN '{"stale":true}'::jsonb ELSE '{}' END
                            ORDER BY v.at, v.uid), '[]')
                       FROM approval_votes v WHERE v.org_id = a.org_id AND v.approval_id = a.approval_id))
    || CASE WHEN a.org_id <> nobody() THEN jsonb_build_object('org_name', (SELECT o.name FROM organisations o WHERE o.org_id = a.org_id)) ELSE '{}' END
    || CASE WHEN a.decided_at IS NOT NULL THEN jsonb_build_object('decided', ms(a.decided_at)) ELSE '{}' END
    || CASE WHEN a.result IS NOT NULL THEN jsonb_build_object('result', a.result) ELSE '{}' END
    || CASE WHEN p_impact IS NOT NULL THEN jsonb_build_object('impact', p_impact, 'hash', approval_hash(a, p_impact)) ELSE '{}' END
    || CASE WHEN p_impact IS NOT NULL AND a.action = 'matter.open' THEN jsonb_build_object('text',
            (SELECT matter_text(m) FROM matters m WHERE m.org_id = a.org_id AND m.matter_id = a.approval_id)) ELSE '{}' END;
COMMENT ON FUNCTION approval_json IS 'An approval as officers see it; p_impact NULL: without the report; p_now: votes for another one are called stale';

CREATE FUNCTION approval_end(a approvals, p_state text, p_result jsonb) RETURNS approvals LANGUAGE plpgsql AS $$
BEGIN
    UPDATE approvals x SET state = p_state, decided_at = clock_timestamp(), result = p_result
     WHERE x.org_id = a.org_id AND x.approval_id = a.approval_id RETURNING x.* INTO a;
    IF a.action = 'matter.open' AND p_state <> 'done' THEN
        UPDATE matters m SET state = 'rejected' WHERE m.org_id = a.org_id AND m.matter_id = a.approval_id AND m.state = 'pending';
    END IF;
    RETURN a;
END $$;
COMMENT ON FUNCTION approval_end IS 'Ends it; a matter that is not opened is rejected with it';

-- ---------------------------------------------------------------------------------------------------- deeds

CREATE TYPE deed AS (verdict integer, result jsonb, resource uuid, keys uuid[], matter uuid);
COMMENT ON TYPE deed IS 'What came of an action; result: what is answered and recorded, of a refusal {"why"}';

CREATE FUNCTION control_do(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    c checked;
    d deed := ROW(0, '{}', NULL, NULL, NULL);
    v_count integer;
    v_before services;
    v_service text := p_args ->> 'service';
BEGIN
    -- Anew, for only now nothing can change any more.
    c := control_check(p_action, p_args);
    IF c.verdict <> 0 THEN
        RETURN ROW(c.verdict, jsonb_build_object('why', c.why), NULL, NULL, NULL)::deed;
    END IF;
    CASE p_action
    WHEN 'purpose.enable', 'purpose.disable' THEN
        INSERT INTO purposes AS p (org_id, purpose, enabled, changed_at)
        VALUES (c.org, c.args ->> 'purpose', p_action = 'purpose.enable', v_now)
            ON CONFLICT (org_id, purpose) DO UPDATE SET enabled = excluded.enabled, changed_at = excluded.changed_at
                WHERE p.enabled <> excluded.enabled;
        d.result := jsonb_build_object('enabled', p_action = 'purpose.enable');

    WHEN 'service.add', 'service.change' THEN
        SELECT s.* INTO v_before FROM services s WHERE s.org_id = nobody() AND s.service = v_service;
        INSERT INTO services AS s (org_id, service, identity, purposes, kinds, rate, breadth, public_key, created_at)
        VALUES (nobody(), v_service, c.args ->> 'identity', ARRAY(SELECT jsonb_array_elements_text(c.args -> 'purposes')),
                ARRAY(SELECT jsonb_array_elements_text(c.args -> 'kinds')), (c.args ->> 'rate')::integer,
                (c.args ->> 'breadth')::integer, c.args -> 'public_key', v_now)
            ON CONFLICT (org_id, service) DO UPDATE SET identity = excluded.identity, purposes = excluded.purposes,
                kinds = excluded.kinds, rate = excluded.rate, breadth = excluded.breadth, public_key = excluded.public_key;
        DELETE FROM service_orgs x WHERE x.service = v_service
            AND NOT EXISTS (SELECT FROM organisations o WHERE o.org_id = x.org_id AND c.args -> 'orgs' ? o.name);
        INSERT INTO service_orgs (org_id, service, created_at)
        SELECT o.org_id, v_service, v_now FROM organisations o WHERE c.args -> 'orgs' ? o.name ORDER BY o.org_id
            ON CONFLICT DO NOTHING;
        -- Who came with another identity has to come again.
        IF v_before.identity <> c.args ->> 'identity' THEN
            DELETE FROM channels x WHERE x.org_id = nobody() AND x.kind = 'service' AND x.subject = v_service;
        END IF;

    WHEN 'service.retire' THEN
        UPDATE services s SET state = 'retired', retired_at = v_now
         WHERE s.org_id = nobody() AND s.service = v_service AND s.state = 'active';
        DELETE FROM channels x WHERE x.org_id = nobody() AND x.kind = 'service' AND x.subject = v_service;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        d.result := jsonb_build_object('channels', v_count);

    WHEN 'certificate.revoke' THEN
        INSERT INTO revoked_certificates (org_id, issuer, serial, source, revoked_at)
        VALUES (nobody(), decode(c.args ->> 'issuer', 'hex'), decode(c.args ->> 'serial', 'hex'), 'officer', v_now)
            ON CONFLICT DO NOTHING;
        DELETE FROM channels x WHERE x.org_id = nobody() AND x.kind = 'service' AND x.cert_serial = decode(c.args ->> 'serial', 'hex')
            AND (c.args ->> 'issuer' = repeat('0', 64) OR x.cert_issuer = decode(c.args ->> 'issuer', 'hex'));
        GET DIAGNOSTICS v_count = ROW_COUNT;
        d.result := jsonb_build_object('channels', v_count);

    WHEN 'matter.open' THEN
        d.matter := (c.args ->> 'matter')::uuid;
        UPDATE matters m SET state = 'open', approved_at = v_now WHERE m.org_id = c.org AND m.matter_id = d.matter
        RETURNING jsonb_build_object('matter', m.matter_id, 'text_sha256', encode(m.text_sha256, 'hex')) INTO STRICT d.result;

    WHEN 'matter.close' THEN
        d.matter := (c.args ->> 'matter')::uuid;
        UPDATE matters m SET state = 'closed', closed_at = v_now
         WHERE m.org_id = c.org AND m.matter_id = d.matter AND m.state IN ('pending', 'open');
        d.result := jsonb_build_object('matter', d.matter);

    WHEN 'canary.add' THEN
        d.resource := (c.args ->> 'resource')::uuid;
        INSERT INTO canaries (org_id, resource_id, note, created_at) VALUES (c.org, d.resource, coalesce(c.args ->> 'note', ''), v_now)
            ON CONFLICT (org_id, resource_id) DO UPDATE SET note = excluded.note;

    WHEN 'canary.remove' THEN
        d.resource := (c.args ->> 'resource')::uuid;
        DELETE FROM canaries x WHERE x.org_id = c.org AND x.resource_id = d.resource;

    WHEN 'setting.set' THEN
        d.result := jsonb_build_object('before', setting(c.org, c.args ->> 'name'), 'after', c.args ->> 'value');
        INSERT INTO settings AS s (org_id, name, value, changed_at) VALUES (c.org, c.args ->> 'name', c.args ->> 'value', v_now)
            ON CONFLICT (org_id, name) DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at
                WHERE s.value <> excluded.value;

    WHEN 'audit.suspend', 'audit.resume' THEN
        INSERT INTO settings AS s (org_id, name, value, changed_at)
        VALUES (nobody(), 'audit.stream', CASE p_action WHEN 'audit.suspend' THEN 'suspended' ELSE 'on' END, v_now)
            ON CONFLICT (org_id, name) DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at
                WHERE s.value <> excluded.value;

    WHEN 'key.destroy' THEN
        d.keys := ARRAY[(c.args ->> 'key')::uuid];
        UPDATE content_keys k SET blob = NULL, destroyed_at = v_now WHERE k.org_id = c.org AND k.key_id = d.keys[1] AND k.blob IS NOT NULL
        RETURNING k.resource_id INTO d.resource;
        IF NOT FOUND THEN   -- the sweeper was quicker
            RETURN ROW(409002, '{"why":"this key is destroyed already"}', NULL, NULL, NULL)::deed;
        END IF;

    WHEN 'resource.destroy' THEN
        d.resource := (c.args ->> 'resource')::uuid;
        -- Waits for who is binding a key to it, and lets nobody begin.
        PERFORM FROM resources r WHERE r.org_id = c.org AND r.resource_id = d.resource AND r.destroyed_at IS NULL FOR UPDATE;
        IF NOT FOUND THEN
            RETURN ROW(409002, '{"why":"this resource is destroyed already"}', NULL, NULL, NULL)::deed;
        END IF;
        WITH gone AS (
            UPDATE content_keys k SET blob = NULL, destroyed_at = v_now
             WHERE k.org_id = c.org AND k.key_id IN (
                   SELECT x.key_id FROM content_keys x WHERE x.org_id = c.org AND x.resource_id = d.resource AND x.blob IS NOT NULL
                    ORDER BY x.key_id FOR UPDATE)
            RETURNING k.key_id)
        SELECT array_agg(g.key_id ORDER BY g.key_id) INTO d.keys FROM gone g;
        UPDATE resources r SET destroyed_at = v_now WHERE r.org_id = c.org AND r.resource_id = d.resource;
        d.result := jsonb_build_object('keys', coalesce(cardinality(d.keys), 0));
    END CASE;
    RETURN d;
END $$;
COMMENT ON FUNCTION control_do IS 'Does it; the caller holds policy_lock()';

CREATE FUNCTION approval_fulfil(a approvals, p_op uuid, p_actor text, p_hash text) RETURNS approvals LANGUAGE plpgsql AS $$
DECLARE
    d deed := control_do(a.action, a.args);
BEGIN
    PERFORM record_control(a.org_id, deed_op(p_op), p_actor, a.action, d.verdict,
        control_details(a.org_id, a.action, a.args) || jsonb_build_object('approval', a.approval_id, 'hash', p_hash) || d.result,
        d.resource, d.keys, coalesce(d.matter, CASE a.action WHEN 'matter.open' THEN a.approval_id END));
    RETURN approval_end(a, CASE d.verdict WHEN 0 THEN 'done' ELSE 'failed' END,
        CASE d.verdict WHEN 0 THEN d.result ELSE d.result || jsonb_build_object('verdict', d.verdict) END);
END $$;
COMMENT ON FUNCTION approval_fulfil IS 'Does what was approved; the caller holds the approval''s row and policy_lock()';

-- ---------------------------------------------------------------------------------------------------- the calls

CREATE FUNCTION control_before(p_op uuid, p_actions text[], OUT seen boolean, OUT verdict integer, OUT result jsonb) LANGUAGE plpgsql AS $$
DECLARE
    e entries;
    a approvals;
BEGIN
    -- In every log, for what it was about may be gone since.
    SELECT x.* INTO e FROM (SELECT nobody() AS org_id UNION ALL SELECT o.org_id FROM organisations o) l
     CROSS JOIN LATERAL (SELECT y.* FROM entries y WHERE y.org_id = l.org_id AND y.op_id = p_op LIMIT 1) x LIMIT 1;
    seen := FOUND;
    IF NOT seen THEN
        RETURN;
    ELSIF e.action <> ALL (p_actions) THEN
        RAISE EXCEPTION 'this operation id was used for something else' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM touch_fence();
    verdict := e.verdict;
    IF verdict <> 0 THEN
        result := jsonb_build_object('why', e.detail -> 'why');
        RETURN;
    END IF;
    SELECT x.* INTO a FROM approvals x WHERE x.org_id = e.org_id AND x.approval_id = arg_uuid(e.detail -> 'approval');
    IF NOT FOUND THEN
        result := e.detail || '{"state":"done"}';
        RETURN;
    END IF;
    result := approval_json(a, (SELECT v.impact FROM approval_votes v WHERE v.org_id = a.org_id AND v.approval_id = a.approval_id
                                 ORDER BY v.at DESC, v.uid LIMIT 1));
    IF a.state = 'failed' AND (e.detail ->> 'votes')::integer >= (e.detail ->> 'needed')::integer THEN
        verdict := (a.result ->> 'verdict')::integer;
        result := jsonb_build_object('why', a.result -> 'why');
    END IF;
END $$;
COMMENT ON FUNCTION control_before IS 'The answer of an operation''s first run';

CREATE FUNCTION control_act(op uuid, action text, args jsonb, actor text, uid bigint, floor integer)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    c checked;
    d deed;
    a approvals;
    v_impact jsonb;
    v_hash text;
    v_other uuid;
    v_matter matters;
BEGIN
    IF uid IS NULL OR actor IS NULL OR floor IS NULL OR floor < 1 THEN
        RAISE EXCEPTION 'who acts, and how many are needed?' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO v_before FROM control_before(op, ARRAY[action, 'approval.request', 'control']);
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
        RETURN NEXT;
        RETURN;
    END IF;
    c := control_check(action, args);
    IF c.verdict = 0 AND action = 'matter.open' AND c.args ? 'matter' THEN
        c.verdict := 400002;    -- whose id is ours to choose
        c.why := 'members are: org, name, custodians, from, to, kinds, expires, sealed_until';
    END IF;
    IF c.verdict = 0 AND c.at_once THEN
        IF action = 'matter.close' THEN
            SELECT x.* INTO a FROM approvals x
             WHERE x.org_id = c.org AND x.approval_id = (c.args ->> 'matter')::uuid AND x.state = 'pending' FOR UPDATE;
        END IF;
        PERFORM policy_lock();
        c := control_check(action, args);
    END IF;
    IF c.verdict = 0 AND c.at_once THEN
        d := control_do(action, c.args);
        c.verdict := d.verdict;
        c.why := d.result ->> 'why';
        IF d.verdict = 0 THEN
            IF a.approval_id IS NOT NULL THEN
                a := approval_end(a, 'rejected', '{"why":"the matter was closed"}');
                PERFORM record_control(c.org, deed_op(op), actor, 'approval.reject', 0,
                    jsonb_build_object('approval', a.approval_id, 'action', a.action), NULL, NULL, d.matter);
            END IF;
            verdict := 0;
            result := control_details(c.org, action, c.args) || d.result;
            PERFORM record_control(c.org, op, actor, action, 0, result, d.resource, d.keys, d.matter);
            result := result || '{"state":"done"}';
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    IF c.verdict = 0 AND action <> 'matter.open' THEN
        SELECT x.approval_id INTO v_other FROM approvals x
         WHERE x.org_id = c.org AND x.state = 'pending' AND x.expires_at > v_now AND x.action = control_act.action AND x.args = c.args LIMIT 1;
        IF FOUND THEN
            c.verdict := 409002;
            c.why := 'the same waits for approval already: ' || v_other;
        END IF;
    END IF;
    IF c.verdict <> 0 THEN
        verdict := c.verdict;
        result := jsonb_build_object('why', c.why);
        PERFORM record_control(coalesce(c.org, nobody()), op, actor, CASE WHEN c.args IS NULL THEN 'control' ELSE action END, verdict,
            control_about(c.org, action, c.args) || result);
        RETURN NEXT;
        RETURN;
    END IF;

    a.org_id := c.org;
    a.approval_id := gen_random_uuid();
    a.action := action;
    IF action = 'matter.open' THEN
        -- A matter and what approves it have one id.
        v_matter := ROW(c.org, a.approval_id, c.args ->> 'name', ARRAY(SELECT jsonb_array_elements_text(c.args -> 'custodians')),
            ms_to_time((c.args ->> 'from')::bigint), ms_to_time((c.args ->> 'to')::bigint),
            ARRAY(SELECT jsonb_array_elements_text(c.args -> 'kinds')), ms_to_time((c.args ->> 'expires')::bigint),
            ms_to_time((c.args ->> 'sealed_until')::bigint), NULL, 'pending', actor, v_now, NULL, NULL);
        v_matter.text_sha256 := sha256(convert_to(matter_text(v_matter), 'UTF8'));
        INSERT INTO matters SELECT v_matter.*;
        c.args := c.args || jsonb_build_object('matter', a.approval_id);
    END IF;
    INSERT INTO approvals AS x (org_id, approval_id, action, args, needed, requested_by, requested_uid, created_at, expires_at)
    VALUES (a.org_id, a.approval_id, a.action, c.args, greatest(floor, setting(nobody(),
                CASE action WHEN 'matter.open' THEN 'approvals.matter' ELSE 'approvals' END)::integer), actor, uid, v_now,
            v_now + setting(nobody(), 'approvals.lifetime')::bigint * interval '1 millisecond')
    RETURNING x.* INTO a;
    v_impact := impact_counts(action, a.args, a.org_id);
    IF a.needed = 1 THEN
        PERFORM policy_lock();
    END IF;
    v_impact := v_impact || impact_facts(action, a.args, a.org_id);
    v_hash := approval_hash(a, v_impact);
    INSERT INTO approval_looks (org_id, approval_id, uid, impact, at) VALUES (a.org_id, a.approval_id, uid, v_impact, v_now);
    INSERT INTO approval_votes (org_id, approval_id, uid, officer, impact, at)
    VALUES (a.org_id, a.approval_id, uid, actor, v_impact, v_now);
    PERFORM record_control(a.org_id, op, actor, 'approval.request', 0, control_details(a.org_id, action, a.args)
        || jsonb_build_object('approval', a.approval_id, 'action', action, 'hash', v_hash, 'votes', 1, 'needed', a.needed),
        (a.args ->> 'resource')::uuid, CASE WHEN a.args ? 'key' THEN ARRAY[(a.args ->> 'key')::uuid] END, (a.args ->> 'matter')::uuid);
    IF a.needed = 1 THEN
        a := approval_fulfil(a, op, actor, v_hash);
    END IF;
    verdict := CASE a.state WHEN 'failed' THEN (a.result ->> 'verdict')::integer ELSE 0 END;
    result := CASE a.state WHEN 'failed' THEN jsonb_build_object('why', a.result -> 'why') ELSE approval_json(a, v_impact, v_impact) END;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION control_act IS 'Does what an officer asks for, or stores it until enough of them agree';

CREATE FUNCTION approval_list(state text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT coalesce(jsonb_agg(l.j ORDER BY l.created_at DESC, l.approval_id), '[]')
      FROM (SELECT approval_json(a, NULL) AS j, a.created_at, a.approval_id FROM approvals a
             WHERE $1 IS NULL OR $1 = CASE WHEN a.state = 'pending' AND a.expires_at <= clock_timestamp() THEN 'expired' ELSE a.state END
             ORDER BY a.created_at DESC LIMIT 10000) l
$$;
COMMENT ON FUNCTION approval_list IS 'Approvals in this state (NULL: any), the newest first, without reports';

CREATE FUNCTION approval_show(id uuid, actor text, uid bigint) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    a approvals;
    v_impact jsonb;
    v_waits boolean;
BEGIN
    SELECT x.* INTO a FROM approvals x WHERE x.approval_id = approval_show.id;
    IF NOT FOUND THEN
        PERFORM record_control(nobody(), gen_random_uuid(), approval_show.actor, 'approval.show', 404001,
            jsonb_build_object('approval', approval_show.id));
        RETURN NULL;
    END IF;
    v_waits := a.state = 'pending' AND a.expires_at > v_now;
    IF v_waits THEN
        v_impact := impact_counts(a.action, a.args, a.org_id) || impact_facts(a.action, a.args, a.org_id);
        INSERT INTO approval_looks (org_id, approval_id, uid, impact, at)
        VALUES (a.org_id, a.approval_id, approval_show.uid, v_impact, v_now)
            ON CONFLICT ON CONSTRAINT approval_looks_pkey DO UPDATE SET impact = excluded.impact, at = excluded.at;
    ELSE
        SELECT v.impact INTO v_impact FROM approval_votes v WHERE v.org_id = a.org_id AND v.approval_id = a.approval_id
         ORDER BY v.at DESC, v.uid LIMIT 1;
    END IF;
    PERFORM record_control(a.org_id, gen_random_uuid(), approval_show.actor, 'approval.show', 0,
        jsonb_build_object('approval', a.approval_id, 'action', a.action, 'hash', approval_hash(a, v_impact)), NULL, NULL,
        (a.args ->> 'matter')::uuid);
    RETURN approval_json(a, v_impact, CASE WHEN v_waits THEN v_impact END);
END $$;
COMMENT ON FUNCTION approval_show IS 'An approval with the report as of now, noted as what this officer was shown; NULL: unknown';

CREATE FUNCTION approval_expire(a approvals) RETURNS approvals LANGUAGE plpgsql AS $$
BEGIN
    PERFORM record_control(a.org_id, gen_random_uuid(), 'keeper', 'approval.expire', 0,
        jsonb_build_object('approval', a.approval_id, 'action', a.action), NULL, NULL, (a.args ->> 'matter')::uuid);
    RETURN approval_end(a, 'expired', NULL);
END $$;
COMMENT ON FUNCTION approval_expire IS 'Ends an approval that nobody gave in time';

CREATE FUNCTION approval_approve(op uuid, id uuid, hash text, actor text, uid bigint)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    a approvals;
    v_impact jsonb;         -- as of now
    v_looked jsonb;         -- what he agrees to
    v_vote jsonb;           -- what he agreed to before
    v_votes integer;
    v_needed integer;
    v_why text;
BEGIN
    IF uid IS NULL OR actor IS NULL THEN
        RAISE EXCEPTION 'who agrees?' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Whoever votes waits for who is voting.
    SELECT x.* INTO a FROM approvals x WHERE x.approval_id = id FOR UPDATE;
    SELECT * INTO v_before FROM control_before(op, '{approval.approve}');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT v.impact INTO v_vote FROM approval_votes v WHERE v.org_id = a.org_id AND v.approval_id = a.approval_id AND v.uid = approval_approve.uid;
    verdict := 409002;
    IF a.approval_id IS NULL THEN
        verdict := 404001;
        v_why := 'no such approval';
    ELSIF a.state = 'pending' AND a.expires_at <= clock_timestamp() THEN
        a := approval_expire(a);
        v_why := 'it has expired; ask for it again';
    ELSIF a.state <> 'pending' THEN
        v_why := CASE a.state WHEN 'done' THEN 'it is done already' WHEN 'rejected' THEN 'it was rejected'
                              WHEN 'expired' THEN 'it has expired; ask for it again' ELSE 'it could not be done; ask for it again' END;
    ELSIF uid = a.requested_uid THEN
        verdict := 403004;
        v_why := 'nobody approves what he has asked for; another officer must';
    ELSIF hash IS NULL AND NOT EXISTS (SELECT FROM approval_looks l WHERE l.org_id = a.org_id AND l.approval_id = a.approval_id AND l.uid = approval_approve.uid) THEN
        v_why := 'look at it first';
    ELSE
        v_impact := impact_counts(a.action, a.args, a.org_id);
        PERFORM policy_lock();
        v_impact := v_impact || impact_facts(a.action, a.args, a.org_id);
        IF hash IS NULL THEN
            SELECT l.impact INTO v_looked FROM approval_looks l WHERE l.org_id = a.org_id AND l.approval_id = a.approval_id AND l.uid = approval_approve.uid;
        ELSIF lower(hash) = approval_hash(a, v_impact) THEN
            v_looked := v_impact;
        ELSE
            -- A report that he or another officer was shown.
            SELECT s.impact INTO v_looked FROM (
                SELECT l.impact FROM approval_looks l WHERE l.org_id = a.org_id AND l.approval_id = a.approval_id
                UNION SELECT v.impact FROM approval_votes v WHERE v.org_id = a.org_id AND v.approval_id = a.approval_id) s
             WHERE approval_hash(a, s.impact) = lower(hash) LIMIT 1;
        END IF;
        IF v_looked IS NULL THEN
            v_why := 'this is not the hash of a report on it; look again';
        ELSIF NOT impact_same(v_looked, v_impact) THEN
            v_why := 'the facts have changed; look again';
        ELSIF impact_same(v_vote, v_impact) AND v_vote IS NOT NULL THEN
            verdict := 403004;
            v_why := 'you have approved it already; another officer must';
        ELSE
            verdict := 0;
        END IF;
    END IF;
    IF verdict <> 0 THEN
        result := jsonb_build_object('why', v_why);
        PERFORM record_control(coalesce(a.org_id, nobody()), op, actor, 'approval.approve', verdict,
            jsonb_strip_nulls(jsonb_build_object('approval', id, 'action', a.action)) || result, NULL, NULL, (a.args ->> 'matter')::uuid);
        RETURN NEXT;
        RETURN;
    END IF;

    INSERT INTO approval_votes AS v (org_id, approval_id, uid, officer, impact, at)
    VALUES (a.org_id, a.approval_id, uid, actor, v_looked, v_now)
        ON CONFLICT ON CONSTRAINT approval_votes_pkey DO UPDATE SET officer = excluded.officer, impact = excluded.impact, at = excluded.at;
    -- Who asked for it asked for what it does; others agreed to a report.
    SELECT count(*) FILTER (WHERE v.uid = a.requested_uid OR impact_same(v.impact, v_impact)) INTO v_votes
      FROM approval_votes v WHERE v.org_id = a.org_id AND v.approval_id = a.approval_id;
    v_needed := approval_needed(a);
    PERFORM record_control(a.org_id, op, actor, 'approval.approve', 0, control_details(a.org_id, a.action, a.args)
        || jsonb_build_object('approval', a.approval_id, 'action', a.action, 'hash', approval_hash(a, v_looked), 'votes', v_votes, 'needed', v_needed),
        (a.args ->> 'resource')::uuid, CASE WHEN a.args ? 'key' THEN ARRAY[(a.args ->> 'key')::uuid] END, (a.args ->> 'matter')::uuid);
    IF v_votes >= v_needed THEN
        a := approval_fulfil(a, op, actor, approval_hash(a, v_looked));
    END IF;
    IF a.state = 'failed' THEN
        verdict := (a.result ->> 'verdict')::integer;
        result := jsonb_build_object('why', a.result -> 'why');
    ELSE
        result := approval_json(a, v_looked, CASE a.state WHEN 'pending' THEN v_impact END);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION approval_approve IS 'An officer''s vote for what he was shown; with the last one that it needs it is done';

CREATE FUNCTION approval_reject(op uuid, id uuid, actor text, uid bigint, why text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_before record;
    a approvals;
    v_why text;
BEGIN
    IF uid IS NULL OR actor IS NULL THEN
        RAISE EXCEPTION 'who rejects?' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT x.* INTO a FROM approvals x WHERE x.approval_id = id FOR UPDATE;
    SELECT * INTO v_before FROM control_before(op, '{approval.reject}');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
        RETURN NEXT;
        RETURN;
    END IF;
    verdict := 409002;
    IF a.approval_id IS NULL THEN
        verdict := 404001;
        v_why := 'no such approval';
    ELSIF octet_length(why) > 1024 THEN
        verdict := 400002;
        v_why := 'why is at most 1024 bytes';
    ELSIF a.state = 'pending' AND a.expires_at <= clock_timestamp() THEN
        a := approval_expire(a);
        v_why := 'it has expired';
    ELSIF a.state <> 'pending' THEN
        v_why := CASE a.state WHEN 'done' THEN 'it is done already' WHEN 'rejected' THEN 'it was rejected already'
                              WHEN 'expired' THEN 'it has expired' ELSE 'it could not be done' END;
    ELSE
        verdict := 0;
    END IF;
    PERFORM record_control(coalesce(a.org_id, nobody()), op, actor, 'approval.reject', verdict,
        jsonb_strip_nulls(jsonb_build_object('approval', id, 'action', a.action, 'why', v_why)), NULL, NULL, (a.args ->> 'matter')::uuid);
    IF verdict = 0 THEN
        a := approval_end(a, 'rejected', jsonb_strip_nulls(jsonb_build_object('by', actor, 'why', why)));
        result := approval_json(a, NULL);
    ELSE
        result := jsonb_build_object('why', v_why);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION approval_reject IS 'Any officer''s no ends it; who asked for it takes it back so';

CREATE FUNCTION approvals_expire() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    a approvals;
    v_count integer := 0;
BEGIN
    -- Who is voting on it just now decides; it expires the next time.
    FOR a IN SELECT x.* FROM approvals x WHERE x.state = 'pending' AND x.expires_at <= clock_timestamp()
              ORDER BY x.expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    LOOP
        a := approval_expire(a);
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION approvals_expire IS 'Ends what nobody approved in time; how many';

-- ---------------------------------------------------------------------------------------------------- officers look

CREATE FUNCTION purposes_list(org_name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN $1 IS NOT NULL AND log_org($1) IS NULL THEN NULL ELSE
           (SELECT coalesce(jsonb_agg(jsonb_build_object('org_name', o.name, 'purpose', u.purpose, 'enabled', coalesce(p.enabled, false),
                       'changed', ms(p.changed_at), 'services', services_with(o.org_id, u.purpose, NULL))
                   ORDER BY o.name COLLATE "C", u.n), '[]')
              FROM organisations o CROSS JOIN unnest(all_purposes()) WITH ORDINALITY AS u(purpose, n)
              LEFT JOIN purposes p ON p.org_id = o.org_id AND p.purpose = u.purpose
             WHERE $1 IS NULL OR o.name = $1) END
$$;
COMMENT ON FUNCTION purposes_list IS 'Purposes of an organisation (NULL: of all), on or off, and who has them; NULL: no such organisation';

CREATE FUNCTION services_list() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT coalesce(jsonb_agg(service_json(s) ORDER BY s.service COLLATE "C"), '[]') FROM services s
$$;
COMMENT ON FUNCTION services_list IS 'All services, retired ones too';

CREATE FUNCTION service_show(name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT service_json(s) || jsonb_build_object(
               'channels', (SELECT count(*) FROM channels c WHERE c.org_id = nobody() AND c.kind = 'service' AND c.subject = s.service
                               AND c.expires_at > clock_timestamp()),
               'open', (SELECT coalesce(jsonb_agg(jsonb_build_object('org_name', o.name, 'purpose', p.purpose)
                                            ORDER BY o.name COLLATE "C", p.purpose), '[]')
                          FROM service_orgs x JOIN organisations o ON o.org_id = x.org_id
                          JOIN purposes p ON p.org_id = x.org_id AND p.enabled AND p.purpose = ANY (s.purposes)
                         WHERE x.service = s.service AND s.state = 'active'))
      FROM services s WHERE s.org_id = nobody() AND s.service = $1
$$;
COMMENT ON FUNCTION service_show IS 'A service, and what it may do where; NULL: unknown';

CREATE FUNCTION settings_list(org_name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN log_org($1) IS NOT NULL THEN
           (SELECT jsonb_agg(jsonb_build_object('name', n.name, 'value', coalesce(s.value, setting_default(n.name), 'on'),
                       'default', s.value IS NULL, 'changed', ms(s.changed_at)) ORDER BY n.name)
              FROM unnest(CASE WHEN $1 IS NULL THEN ARRAY['approvals', 'approvals.matter', 'approvals.lifetime', 'audit.stream']
                               ELSE ARRAY['compliance', 'dlp.age'] END) AS n(name)
              LEFT JOIN settings s ON s.org_id = log_org($1) AND s.name = n.name) END
$$;
COMMENT ON FUNCTION settings_list IS 'Rules of an organisation, or of the installation (NULL); NULL: no such organisation';

CREATE FUNCTION matter_list(org_name text, state text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN $1 IS NOT NULL AND log_org($1) IS NULL THEN NULL ELSE
           (SELECT coalesce(jsonb_agg(jsonb_build_object('matter', m.matter_id, 'org_name', o.name, 'name', m.name,
                       'state', m.now, 'custodians', cardinality(m.custodians), 'opened_by', m.opened_by,
                       'opened', ms(m.opened_at), 'expires', ms(m.expires_at)) ORDER BY m.opened_at DESC, m.matter_id), '[]')
              FROM (SELECT x.*, CASE WHEN x.state = 'open' AND x.expires_at <= clock_timestamp() THEN 'expired' ELSE x.state END AS now
                      FROM matters x) m
              JOIN organisations o ON o.org_id = m.org_id
             WHERE ($1 IS NULL OR o.name = $1) AND ($2 IS NULL OR m.now = $2)) END
$$;
COMMENT ON FUNCTION matter_list IS 'Matters of an organisation (NULL: of all) in a state (NULL: any), the newest first; NULL: no such organisation';

CREATE FUNCTION matter_show(id uuid) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object('matter', m.matter_id, 'org', m.org_id, 'org_name', o.name, 'name', m.name, 'custodians', m.custodians,
               'from', ms(m.window_from), 'to', ms(m.window_to), 'kinds', m.kinds, 'expires', ms(m.expires_at),
               'sealed_until', ms(m.sealed_until), 'opened_by', m.opened_by, 'opened', ms(m.opened_at),
               'state', CASE WHEN m.state = 'open' AND m.expires_at <= clock_timestamp() THEN 'expired' ELSE m.state END,
               'approved', ms(m.approved_at), 'closed', ms(m.closed_at), 'text', matter_text(m), 'hash', encode(m.text_sha256, 'hex'),
               'unchanged', m.text_sha256 = sha256(convert_to(matter_text(m), 'UTF8')),
               'approval', (SELECT approval_json(a, NULL) FROM approvals a WHERE a.org_id = m.org_id AND a.approval_id = m.matter_id))
      FROM matters m JOIN organisations o ON o.org_id = m.org_id WHERE m.matter_id = $1
$$;
COMMENT ON FUNCTION matter_show IS 'All about a matter; NULL: unknown';

CREATE FUNCTION canary_list(org_name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN $1 IS NOT NULL AND log_org($1) IS NULL THEN NULL ELSE
           (SELECT coalesce(jsonb_agg(jsonb_build_object('resource', c.resource_id, 'org_name', o.name, 'note', c.note, 'created', ms(c.created_at))
                   ORDER BY o.name COLLATE "C", c.created_at, c.resource_id), '[]')
              FROM canaries c JOIN organisations o ON o.org_id = c.org_id WHERE $1 IS NULL OR o.name = $1) END
$$;
COMMENT ON FUNCTION canary_list IS 'Canaries of an organisation (NULL: of all); NULL: no such organisation';

-- ---------------------------------------------------------------------------------------------------- organisations

-- As before, but releases that began before it end before it, and those after it see it: on every node, when it returns.
CREATE OR REPLACE FUNCTION org_set_state(op uuid, name text, state text, actor text)
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
    PERFORM policy_lock();
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

-- ---------------------------------------------------------------------------------------------------- the stream

-- Suspended: the collector gets nothing until it is resumed, and then all from where it was.  The log itself goes on.
CREATE OR REPLACE FUNCTION log_stream_next(lim integer)
RETURNS TABLE (xact bigint, entry bigint, at_us bigint, verdict integer, action text, leaf text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_from log_stream;
    v_to log_cursor;
BEGIN
    IF setting(nobody(), 'audit.stream') = 'suspended' THEN
        RETURN;
    END IF;
    SELECT * INTO STRICT v_from FROM log_stream;
    SELECT * INTO STRICT v_to FROM log_cursor;
    RETURN QUERY
        SELECT e.xact, e.entry_id, (date_part('epoch', e.at) * 1000000)::bigint, e.verdict, e.action, entry_leaf(e)
          FROM entries e
         WHERE (e.xact, e.entry_id) > (v_from.xact, v_from.entry_id) AND (e.xact, e.entry_id) <= (v_to.xact, v_to.entry_id)
         ORDER BY e.xact, e.entry_id LIMIT lim;
END $$;

GRANT EXECUTE ON FUNCTION control_act, approval_list, approval_show, approval_approve, approval_reject, approvals_expire, purposes_list,
    services_list, service_show, settings_list, matter_list, matter_show, canary_list TO kms_keeper;
