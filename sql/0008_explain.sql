-- 0008_explain.sql - what can be known afterwards: receipts for users, reports of matters, alarms of canaries, and the whole
-- of a decision in plain words.
--
-- An explanation is made of the log and of the state, of nothing else.  The log says what was judged and when; most rows of
-- the state say since when they are as they are, so what held then can be told from what holds now.  Where the log has a
-- sentence of its own (detail.why), that is what decided.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- What an explanation and a report start from; all but the first cover few entries.  Who sends the same request id for ever
-- harms nobody: his entries stand in order behind one hash.
CREATE INDEX entries_of_request ON entries (hashtextextended(request_id, 0), entry_id) WHERE request_id IS NOT NULL;
CREATE INDEX entries_of_matter ON entries (org_id, matter_id, entry_id) WHERE matter_id IS NOT NULL;
CREATE INDEX entries_of_officers ON entries (org_id, entry_id) WHERE kind = 'operator';
CREATE INDEX entries_of_channels ON entries (org_id, channel_id) WHERE action = 'channel.create' AND verdict = 0;
CREATE INDEX entries_of_removals ON entries (org_id, resource_id, entry_id)
    WHERE action = 'authorization.delete' AND verdict = 0;

-- ---------------------------------------------------------------------------------------------------- receipts

CREATE FUNCTION releases_of(p_org uuid, p_resource uuid, p_now timestamptz, lim integer) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'by', CASE WHEN x.kind = 'service' THEN 'service' ELSE 'officer' END,
               'name', coalesce(x.subject, p.subject, x.person::text), 'purpose', x.purpose, 'date', ms(x.at),
               'keys', to_jsonb(x.key_ids),
               'matter', CASE WHEN x.matter_id IS NOT NULL THEN jsonb_build_object('id', x.matter_id, 'name', x.matter_name) END)
               ORDER BY x.at DESC, x.entry_id DESC), '[]')
      FROM (SELECT e.*, m.name AS matter_name
              FROM entries e
              LEFT JOIN matters m ON m.org_id = e.org_id AND m.matter_id = e.matter_id
             WHERE e.org_id = p_org AND e.resource_id = p_resource AND e.verdict = 0
               AND (e.kind = 'service' OR e.behalf_person IS NOT NULL)
               AND cardinality(e.key_ids) > 0
               AND (m.sealed_until IS NULL OR m.sealed_until <= p_now)
             ORDER BY e.at DESC, e.entry_id DESC LIMIT lim) x
      LEFT JOIN persons p ON p.org_id = x.org_id AND p.person = x.person);
COMMENT ON FUNCTION releases_of IS 'Which services and officers got keys of a resource, the last first; what is under seal is left out';

CREATE FUNCTION resource_releases(ops uuid[], orgs uuid[], channels uuid[], requests text[], clients text[], args jsonb[])
RETURNS TABLE (n integer, verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_entry entries;
    v_caller record;
    v_judged record;
    v_resource uuid;
    v_path uuid[];
BEGIN
    PERFORM check_lengths(cardinality(ops), cardinality(orgs), cardinality(channels), cardinality(requests),
        cardinality(clients), cardinality(args));
    FOR i IN 1 .. cardinality(ops) LOOP
        n := i;
        result := NULL;
        v_path := NULL;
        v_resource := (args[i] ->> 'resource')::uuid;
        v_entry := first_run(orgs[i], ops[i], 'resource.releases', channels[i], v_resource);
        SELECT * INTO v_caller FROM caller(orgs[i], channels[i], v_now);
        verdict := v_caller.verdict;
        IF verdict = 0 AND v_caller.kind <> 'user' THEN
            verdict := CASE v_caller.kind WHEN 'service' THEN 403005 ELSE 403001 END;
        ELSIF verdict = 0 THEN
            SELECT * INTO v_judged FROM judge_resource(orgs[i], v_resource, v_caller.kind, v_caller.subject, NULL, false, v_now);
            verdict := v_judged.verdict;
            v_path := v_judged.path;
        END IF;
        IF verdict = 0 THEN
            result := jsonb_build_object('releases', releases_of(orgs[i], v_resource, v_now, 1000));
        END IF;
        IF v_entry.op_id IS NOT NULL THEN
            PERFORM touch_fence();
        ELSE
            PERFORM record_entry(orgs[i], ops[i], 'resource.releases', verdict, v_caller.kind, v_caller.subject, NULL,
                clients[i], channels[i], v_resource, NULL, v_path, requests[i], NULL);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION resource_releases IS 'Receipts, to who is authorised; args: resource';
GRANT EXECUTE ON FUNCTION resource_releases TO kms_worker;

-- ---------------------------------------------------------------------------------------------------- canaries

-- An alarm is for what was a canary when it was retrieved, though it be none by the time we look.
CREATE TABLE canaries_past (
    org_id uuid NOT NULL,
    resource_id uuid NOT NULL,
    note text NOT NULL,
    created_at timestamptz(3) NOT NULL,
    removed_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, resource_id, removed_at)
);
COMMENT ON TABLE canaries_past IS 'Canaries that were removed';
COMMENT ON COLUMN canaries_past.org_id IS 'Organisation';
COMMENT ON COLUMN canaries_past.resource_id IS 'Resource';
COMMENT ON COLUMN canaries_past.note IS 'What its alarms said';
COMMENT ON COLUMN canaries_past.created_at IS 'Since when it was one';
COMMENT ON COLUMN canaries_past.removed_at IS 'Until when';

CREATE FUNCTION canary_removed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    INSERT INTO canaries_past VALUES (OLD.org_id, OLD.resource_id, OLD.note, OLD.created_at, clock_timestamp());
    RETURN OLD;
END $$;
COMMENT ON FUNCTION canary_removed IS 'Trigger: keeps the time in which a resource was a canary';
CREATE TRIGGER canaries_kept BEFORE DELETE ON canaries FOR EACH ROW EXECUTE FUNCTION canary_removed();

CREATE TABLE canary_cursor (
    org_id uuid PRIMARY KEY,
    xact bigint NOT NULL,
    entry_id bigint NOT NULL,
    raised bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE canary_cursor IS 'One row: up to where the entries were looked through for canaries, by (xact, entry_id)';
COMMENT ON COLUMN canary_cursor.org_id IS 'Nil';
COMMENT ON COLUMN canary_cursor.xact IS 'Of the last one';
COMMENT ON COLUMN canary_cursor.entry_id IS 'Of the last one';
COMMENT ON COLUMN canary_cursor.raised IS 'How many alarms there were, ever';
INSERT INTO canary_cursor SELECT c.org_id, c.xact, c.entry_id FROM log_cursor c;

CREATE TABLE canary_alarms (
    org_id uuid NOT NULL,
    entry_id bigint NOT NULL,
    note text NOT NULL,
    raised_at timestamptz(3) NOT NULL,
    told_at timestamptz(3),
    PRIMARY KEY (org_id, entry_id)
);
CREATE INDEX canary_alarms_untold ON canary_alarms (entry_id) WHERE told_at IS NULL;
COMMENT ON TABLE canary_alarms IS 'One for each entry that released keys of a canary';
COMMENT ON COLUMN canary_alarms.org_id IS 'Organisation';
COMMENT ON COLUMN canary_alarms.entry_id IS 'The entry';
COMMENT ON COLUMN canary_alarms.note IS 'The canary''s note then';
COMMENT ON COLUMN canary_alarms.raised_at IS 'When';
COMMENT ON COLUMN canary_alarms.told_at IS 'When it was in a keeper''s log; NULL: it is still to be';

CREATE FUNCTION canary_note(e entries) RETURNS text LANGUAGE sql STABLE
RETURN CASE WHEN e.verdict = 0 AND cardinality(e.key_ids) > 0
             AND e.action IN ('key.get', 'resource.keys', 'purpose.keys', 'matter.keys') THEN coalesce(
    (SELECT c.note FROM canaries c WHERE c.org_id = e.org_id AND c.resource_id = e.resource_id AND c.created_at <= e.at),
    (SELECT c.note FROM canaries_past c WHERE c.org_id = e.org_id AND c.resource_id = e.resource_id
        AND c.created_at <= e.at AND c.removed_at > e.at LIMIT 1)) END;
COMMENT ON FUNCTION canary_note IS 'The note of the canary whose keys this entry released; NULL: there was none';

-- No names of people: alarms go where entries go.
CREATE FUNCTION canary_json(e entries, p_note text) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_strip_nulls(jsonb_build_object('alarm', 'canary retrieved', 'org', e.org_id,
    'org_name', (SELECT o.name FROM organisations o WHERE o.org_id = e.org_id), 'resource', e.resource_id, 'note', p_note,
    'who', coalesce(e.subject, e.person::text), 'kind', e.kind, 'behalf', e.behalf_person, 'purpose', e.purpose,
    'matter', e.matter_id, 'keys', cardinality(e.key_ids), 'request', e.request_id, 'entry', e.entry_id, 'op', e.op_id,
    'at', ms(e.at)));
COMMENT ON FUNCTION canary_json IS 'An alarm as it is told';

CREATE FUNCTION canary_raise(batch integer, lim integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_from canary_cursor;
    v_to log_cursor;
    v_new bigint := 0;
    v_seen bigint := 0;
    v_xact bigint;
    v_entry bigint;
BEGIN
    SELECT * INTO STRICT v_to FROM log_cursor;
    SELECT * INTO STRICT v_from FROM canary_cursor;
    IF (v_from.xact, v_from.entry_id) < (v_to.xact, v_to.entry_id) THEN
        -- Only when there is something to do: an idle server writes nothing.
        SELECT * INTO STRICT v_from FROM canary_cursor FOR NO KEY UPDATE;
        IF NOT EXISTS (SELECT FROM canaries) AND NOT EXISTS (SELECT FROM canaries_past) THEN
            v_xact := v_to.xact;
            v_entry := v_to.entry_id;
        ELSE
            WITH fresh AS MATERIALIZED (
                SELECT e.org_id, e.entry_id, e.xact, canary_note(e) AS note
                  FROM entries e
                 WHERE (e.xact, e.entry_id) > (v_from.xact, v_from.entry_id)
                   AND (e.xact, e.entry_id) <= (v_to.xact, v_to.entry_id)
                 ORDER BY e.xact, e.entry_id LIMIT batch
            ), raised AS (
                INSERT INTO canary_alarms (org_id, entry_id, note, raised_at)
                SELECT f.org_id, f.entry_id, f.note, clock_timestamp() FROM fresh f WHERE f.note IS NOT NULL
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM raised), count(*), (array_agg(f.xact ORDER BY f.xact DESC, f.entry_id DESC))[1],
                   (array_agg(f.entry_id ORDER BY f.xact DESC, f.entry_id DESC))[1]
              INTO v_new, v_seen, v_xact, v_entry FROM fresh f;
        END IF;
        IF v_xact IS NOT NULL THEN
            UPDATE canary_cursor SET xact = v_xact, entry_id = v_entry, raised = raised + v_new;
        END IF;
    END IF;
    RETURN jsonb_build_object('total', v_from.raised + v_new, 'more', v_seen = batch,
        'alarms', (SELECT coalesce(jsonb_agg(x.alarm ORDER BY x.entry_id), '[]')
                     FROM (SELECT a.entry_id, canary_json(e, a.note) AS alarm
                             FROM canary_alarms a JOIN entries e ON e.org_id = a.org_id AND e.entry_id = a.entry_id
                            WHERE a.told_at IS NULL ORDER BY a.entry_id LIMIT lim) x));
END $$;
COMMENT ON FUNCTION canary_raise IS 'Raises an alarm for each entry with a place that released keys of a canary; returns those that are still to be told';

CREATE FUNCTION canary_told(entries bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE canary_alarms a SET told_at = clock_timestamp() WHERE a.told_at IS NULL AND a.entry_id = ANY (entries);
END $$;
COMMENT ON FUNCTION canary_told IS 'These alarms are in a keeper''s log';

CREATE FUNCTION canary_alert(xact bigint, entry bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_entry entries;
    v_note text;
BEGIN
    IF NOT EXISTS (SELECT FROM canaries) AND NOT EXISTS (SELECT FROM canaries_past) THEN
        RETURN NULL;
    END IF;
    SELECT e.* INTO v_entry FROM entries e WHERE e.xact = canary_alert.xact AND e.entry_id = canary_alert.entry;
    v_note := canary_note(v_entry);
    RETURN CASE WHEN v_note IS NOT NULL THEN canary_json(v_entry, v_note) END;
END $$;
COMMENT ON FUNCTION canary_alert IS 'The alarm that goes with an entry; NULL: none';
GRANT EXECUTE ON FUNCTION canary_raise, canary_told, canary_alert TO kms_keeper;

-- ---------------------------------------------------------------------------------------------------- saying things

CREATE FUNCTION say_time(t timestamptz) RETURNS text LANGUAGE sql STABLE
RETURN to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') || 'Z';
COMMENT ON FUNCTION say_time IS 'A time for people, in UTC';

CREATE FUNCTION say_span(ms bigint) RETURNS text LANGUAGE sql IMMUTABLE
RETURN CASE WHEN ms >= 172800000 AND ms % 86400000 = 0 THEN ms / 86400000 || ' days'
            WHEN ms >= 7200000 AND ms % 3600000 = 0 THEN ms / 3600000 || ' hours'
            WHEN ms >= 172800000 THEN trim_scale(round(ms / 86400000.0, 1)) || ' days'
            WHEN ms >= 7200000 THEN trim_scale(round(ms / 3600000.0, 1)) || ' hours'
            WHEN ms >= 120000 THEN ms / 60000 || ' minutes'
            ELSE trim_scale(round(ms / 1000.0, 1)) || ' seconds' END;
COMMENT ON FUNCTION say_span IS 'A length of time for people';

CREATE FUNCTION say_list(items text[]) RETURNS text LANGUAGE sql IMMUTABLE
RETURN CASE WHEN cardinality(items) > 1
            THEN array_to_string(items[:cardinality(items) - 1], ', ') || ' and ' || items[cardinality(items)]
            ELSE coalesce(items[1], 'none') END;
COMMENT ON FUNCTION say_list IS 'A list for people';

-- For every errorCode there is: the rule, and what would have had to be different.
CREATE FUNCTION rule_of(p_verdict integer, p_kind text, OUT rule text, OUT otherwise text) LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_service boolean := p_kind = 'service';
BEGIN
    CASE p_verdict
    WHEN 0 THEN
        rule := 'every rule allowed it';
    WHEN 400001 THEN
        rule := 'what cannot be read as a message or as JSON is refused';
        otherwise := 'a well-formed message';
    WHEN 400002 THEN
        rule := 'a member of the request was missing or wrong';
        otherwise := 'a request as the protocol has it; the answer''s reason named the member';
    WHEN 400003 THEN
        rule := 'the request used an algorithm that is not supported';
        otherwise := 'an algorithm that the protocol allows';
    WHEN 401001 THEN
        rule := CASE WHEN v_service THEN 'a service must prove who it is: its certificate or its proof was missing, bad, expired or revoked, or the proof had been used before'
                     ELSE 'who asks must present a valid access token of an organisation that is known here; it was missing or not valid' END;
        otherwise := CASE WHEN v_service THEN 'a valid certificate under the services'' CA, and behind a relay a fresh proof'
                          ELSE 'a valid access token of a known organisation' END;
    WHEN 401002 THEN
        rule := 'the access token had expired';
        otherwise := 'a token that is still good: the client should have refreshed it';
    WHEN 403001 THEN
        rule := 'only who is authorised on the resource gets at it';
        otherwise := 'an authorisation on the resource, or on one that it is open to';
    WHEN 403002 THEN
        rule := 'a key that is not bound belongs to its creator alone';
        otherwise := 'a request by the user who made the key; or the key bound to a resource on which the user is authorised';
    WHEN 403003 THEN
        rule := 'a key that is not bound is for the client that made it';
        otherwise := 'a request by the client that made the key; or the key bound to a resource';
    WHEN 403004 THEN
        rule := CASE WHEN p_kind IN ('operator', 'keeper') THEN 'the caller''s user has not the role that this call of the admin socket needs, or decides about his own proposal'
                     ELSE 'to ask on behalf of another needs the compliance role in the token, only for retrieving, and only within the officer''s own organisation' END;
        otherwise := CASE WHEN p_kind IN ('operator', 'keeper') THEN 'a user with that role: see [admin] in the configuration'
                          ELSE 'the compliance role, a retrieval, and something of the officer''s own organisation' END;
    WHEN 403005 THEN
        rule := CASE WHEN v_service THEN 'a service gets keys only under a purpose that it is registered for, of organisations and kinds it is registered for, where the organisation has switched the purpose on, and does nothing but retrieve'
                     ELSE 'the purpose is not allowed' END;
        otherwise := 'a purpose that service and organisation both have, and a request to retrieve';
    WHEN 403006 THEN
        rule := 'only services that officers have registered get anything';
        otherwise := 'a registration of this identity (kmsctl service add, approved by another officer)';
    WHEN 403007 THEN
        rule := CASE WHEN v_service THEN 'ediscovery gets keys only under a matter that is approved, open, not expired, and covers the key'
                     ELSE 'the organisation lets officers ask on behalf of others only under an open matter that covers what is asked for' END;
        otherwise := 'an open matter that covers it: custodian, kind of resource, and the time when the key was bound';
    WHEN 403009 THEN
        rule := 'a channel belongs to the principal that created it';
        otherwise := 'a channel of the caller''s own';
    WHEN 403010 THEN
        rule := 'the container is a zero-trust one: this server holds no key of it and releases none, to nobody';
        otherwise := 'a container of standard security';
    WHEN 404001 THEN
        rule := 'what was asked for does not exist, or not any more';
        otherwise := 'the id of something that exists; a key that was not bound in time is gone';
    WHEN 405005 THEN
        rule := 'the organisation''s main key is revoked: nothing can be opened until it is active again';
        otherwise := 'the main key made active again by the organisation''s administrator';
    WHEN 405006 THEN
        rule := 'the organisation''s main key is disabled: nothing can be opened until it is active again';
        otherwise := 'the main key made active again by the organisation''s administrator';
    WHEN 409001 THEN
        rule := 'a key is bound once, to one resource, for ever; this one was bound already';
        otherwise := 'a key that is not bound yet';
    WHEN 409002 THEN
        rule := 'what was asked for does not fit the state that it was in';
        otherwise := 'another state, or another request';
    WHEN 410001 THEN
        rule := 'it was destroyed: its time was over, or officers destroyed it';
        otherwise := 'a request before that; what is destroyed does not come back';
    WHEN 413001 THEN
        rule := 'there is more than one answer may hold';
        otherwise := 'a smaller request: count, boundAfter or boundBefore';
    WHEN 429001 THEN
        rule := CASE WHEN v_service THEN 'the service asked for more than it may in its time: requests a second (rate), or different resources an hour (breadth)'
                     ELSE 'the caller sent more requests than anybody may in that time' END;
        otherwise := CASE WHEN v_service THEN 'fewer requests, or a registration with a higher rate or breadth' ELSE 'a later request' END;
    WHEN 499001 THEN
        rule := 'the channel is not known: it has expired, was deleted, or its certificate or registration has ended';
        otherwise := 'a new channel: the client must create one and ask again';
    WHEN 503001 THEN
        rule := 'the server had too much to do; nothing was changed';
        otherwise := 'a later request';
    WHEN 503002 THEN
        rule := 'the HSM could not be reached; nothing was changed';
        otherwise := 'an HSM that answers: see kmsctl status';
    WHEN 503003 THEN
        rule := 'the database could not be reached; nothing was changed';
        otherwise := 'a database that answers: see kmsctl status';
    ELSE
        rule := 'errorCode ' || p_verdict;
        otherwise := 'see the protocol, section 6';
    END CASE;
END $$;
COMMENT ON FUNCTION rule_of IS 'What an errorCode means, to a user or a service, and what would have had to be different';

CREATE FUNCTION say_action(e entries) RETURNS text LANGUAGE sql STABLE
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
    WHEN 'resource.releases' THEN 'who got keys of resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'purpose.keys' THEN 'for the next keys of all resources that it may see'
    WHEN 'matter.keys' THEN 'for the next keys of a matter'
    WHEN 'authorization.create' THEN 'to authorise others on resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'authorization.list' THEN 'who is authorised on resource ' || coalesce(e.resource_id::text, '?')
    WHEN 'authorization.delete' THEN 'to take authorisations away'
    ELSE 'for ' || e.action END;
COMMENT ON FUNCTION say_action IS 'What an entry''s request asked, in words';

-- ---------------------------------------------------------------------------------------------------- checks

-- A rule that was looked at: held: did it hold then (NULL: cannot be told from what is left); holds: does it now.
CREATE FUNCTION check_of(p_rule text, p_verdict integer, p_held boolean, p_holds boolean, p_text text, p_otherwise text,
    p_since text DEFAULT NULL)
RETURNS jsonb LANGUAGE sql IMMUTABLE
RETURN jsonb_build_array(jsonb_build_object('rule', p_rule, 'code', p_verdict, 'held', p_held, 'holds', p_holds,
    'text', p_text, 'otherwise', p_otherwise, 'since', p_since));
COMMENT ON FUNCTION check_of IS 'One rule of an explanation';

CREATE FUNCTION org_check(e entries, OUT checks jsonb) LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_org organisations;
    v_last text;
    v_held boolean;
BEGIN
    checks := '[]';
    SELECT * INTO v_org FROM organisations o WHERE o.org_id = e.org_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT x.action INTO v_last FROM entries x
     WHERE x.org_id = e.org_id AND x.kind = 'operator' AND x.entry_id < e.entry_id
       AND x.action IN ('org.suspend', 'org.resume') AND x.verdict = 0
     ORDER BY x.entry_id DESC LIMIT 1;
    v_held := v_last IS DISTINCT FROM 'org.suspend';
    checks := check_of('organisation', 403001, v_held, v_org.state = 'active',
        format('the organisation %s was %s', v_org.name, CASE WHEN v_held THEN 'active' ELSE 'suspended: all its requests are refused' END),
        'the organisation resumed (kmsctl org resume)',
        CASE WHEN v_held AND v_org.state <> 'active' THEN format('The organisation %s has been suspended.', v_org.name)
             WHEN NOT v_held AND v_org.state = 'active' THEN format('The organisation %s has been resumed.', v_org.name) END);
END $$;
COMMENT ON FUNCTION org_check IS 'Was its organisation active when an entry was made?';

CREATE FUNCTION matter_checks(e entries, m matters, p_key content_keys, p_kind text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_checks jsonb := '[]';
    v_who text[];
    v_who_then text[];
BEGIN
    IF m.matter_id IS NULL THEN
        RETURN check_of('matter', 403007, false, false,
            CASE WHEN e.matter_id IS NULL THEN 'the request named no matter' ELSE format('this organisation has no matter %s', e.matter_id) END,
            'an open matter of the organisation, named in the request');
    END IF;
    v_checks := v_checks || check_of('matter.approved', 403007, m.approved_at IS NOT NULL AND m.approved_at <= e.at,
        m.approved_at IS NOT NULL,
        CASE WHEN m.approved_at <= e.at THEN format('matter "%s" was approved at %s', m.name, say_time(m.approved_at))
             WHEN m.state = 'rejected' THEN format('matter "%s" was never approved: officers rejected it', m.name)
             ELSE format('matter "%s" was not approved yet', m.name) END,
        'the matter approved before (kmsctl matter approve)',
        CASE WHEN m.approved_at > e.at THEN format('Matter "%s" was approved at %s.', m.name, say_time(m.approved_at)) END);
    v_checks := v_checks || check_of('matter.open', 403007, coalesce(m.closed_at > e.at, m.state <> 'closed'), m.state = 'open',
        CASE WHEN m.closed_at <= e.at THEN format('matter "%s" was closed at %s', m.name, say_time(m.closed_at))
             ELSE format('matter "%s" was not closed', m.name) END,
        'a matter that is still open; what is closed is not opened again',
        CASE WHEN m.closed_at > e.at THEN format('Matter "%s" was closed at %s.', m.name, say_time(m.closed_at)) END);
    v_checks := v_checks || check_of('matter.expiry', 403007, m.expires_at > e.at, m.expires_at > v_now,
        format('matter "%s" %s at %s', m.name, CASE WHEN m.expires_at > e.at THEN 'expires' ELSE 'had expired' END, say_time(m.expires_at)),
        'a matter that has not expired',
        CASE WHEN m.expires_at > e.at AND m.expires_at <= v_now THEN format('Matter "%s" expired at %s.', m.name, say_time(m.expires_at)) END);
    IF e.resource_id IS NULL THEN
        RETURN v_checks;
    END IF;
    SELECT array_agg(a.grantee ORDER BY a.grantee), array_agg(a.grantee ORDER BY a.grantee) FILTER (WHERE a.created_at <= e.at)
      INTO v_who, v_who_then
      FROM authorizations a
     WHERE a.org_id = e.org_id AND a.resource_id = e.resource_id AND a.kind = 'user' AND a.grantee = ANY (m.custodians);
    IF e.behalf_person IS NULL THEN
        v_checks := v_checks || check_of('matter.custodian', 403007, v_who_then IS NOT NULL, v_who IS NOT NULL,
            CASE WHEN v_who_then IS NOT NULL THEN format('its custodian%s authorised on the resource',
                          CASE WHEN cardinality(v_who_then) > 1 THEN 's ' || say_list(v_who_then) || ' are' ELSE ' ' || v_who_then[1] || ' is' END)
                 ELSE format('none of its custodians (%s) is authorised on the resource', say_list(m.custodians[:10])) END,
            'a matter that names somebody who is authorised on this resource');
    ELSE
        SELECT array_agg(p.subject) INTO v_who FROM persons p WHERE p.org_id = e.org_id AND p.person = e.behalf_person;
        v_checks := v_checks || check_of('matter.custodian', 403007, v_who[1] = ANY (m.custodians), v_who[1] = ANY (m.custodians),
            format('%s %s one of its custodians', coalesce(v_who[1], 'the person'), CASE WHEN v_who[1] = ANY (m.custodians) THEN 'is' ELSE 'is not' END),
            'a matter that names the person on whose behalf was asked');
    END IF;
    v_checks := v_checks || check_of('matter.kind', 403007, p_kind = ANY (m.kinds), p_kind = ANY (m.kinds),
        format('the resource is of kind %s, the matter covers %s', p_kind, say_list(m.kinds)),
        format('a matter that covers the kind %s', p_kind));
    IF p_key.bound_at IS NOT NULL AND e.action = 'key.get' THEN
        v_checks := v_checks || check_of('matter.window', 403007,
            p_key.bound_at >= m.window_from AND p_key.bound_at < m.window_to,
            p_key.bound_at >= m.window_from AND p_key.bound_at < m.window_to,
            format('the key was bound at %s, %s the matter''s window from %s to %s', say_time(p_key.bound_at),
                CASE WHEN p_key.bound_at >= m.window_from AND p_key.bound_at < m.window_to THEN 'inside' ELSE 'outside' END,
                say_time(m.window_from), say_time(m.window_to)),
            'a matter whose window holds the time when the key was bound');
    END IF;
    RETURN v_checks;
END $$;
COMMENT ON FUNCTION matter_checks IS 'The rules of a matter, as they were for an entry';

-- The rules for services, in the order in which service_release judges.
CREATE FUNCTION service_checks(e entries) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_checks jsonb := '[]';
    v_now timestamptz := clock_timestamp();
    s services;
    r resources;
    k content_keys;
    m matters;
    v_org organisations;
    v_served timestamptz;
    v_on purposes;
    v_changed timestamptz;
    v_age bigint;
    v_age_set timestamptz;
    v_walk boolean := e.action IN ('purpose.keys', 'matter.keys');
    v_held boolean;
    v_text text;
BEGIN
    SELECT * INTO s FROM services x WHERE x.service = e.subject;
    SELECT * INTO v_org FROM organisations o WHERE o.org_id = e.org_id;
    SELECT * INTO r FROM resources x WHERE x.org_id = e.org_id AND x.resource_id = e.resource_id;
    IF e.action = 'key.get' THEN
        SELECT * INTO k FROM content_keys x WHERE x.org_id = e.org_id AND x.key_id = e.key_ids[1];
    END IF;
    SELECT * INTO m FROM matters x WHERE x.org_id = e.org_id AND x.matter_id = e.matter_id;
    -- Its registration may have been replaced since.
    SELECT max(x.at) INTO v_changed FROM entries x
     WHERE x.org_id = nobody() AND x.kind = 'operator' AND x.entry_id > e.entry_id AND x.action = 'service.change'
       AND x.verdict = 0 AND x.detail ->> 'service' = e.subject;

    IF s.service IS NULL THEN
        RETURN check_of('registered', 403006, false, false, format('no service "%s" is registered', e.subject),
            'a registration (kmsctl service add, approved by another officer)');
    END IF;
    v_checks := v_checks || check_of('registered', 403006, coalesce(s.retired_at > e.at, true), s.state = 'active',
        CASE WHEN s.retired_at <= e.at THEN format('service "%s" was retired at %s', s.service, say_time(s.retired_at))
             ELSE format('service "%s" has been registered since %s', s.service, say_time(s.created_at)) END,
        'a service that is not retired; a retired name is never used again',
        CASE WHEN s.retired_at > e.at THEN format('The service "%s" was retired at %s.', s.service, say_time(s.retired_at)) END);
    v_held := e.purpose = ANY (s.purposes);
    v_checks := v_checks || check_of('purpose', 403005,
        CASE WHEN e.purpose IS NULL THEN false
             WHEN v_changed IS NOT NULL THEN CASE WHEN e.verdict = 0 THEN true END
             ELSE v_held END, coalesce(v_held, false),
        CASE WHEN e.purpose IS NULL THEN 'the request named no purpose'
             WHEN e.purpose NOT IN ('indexing', 'dlp', 'ediscovery', 'archival', 'transcoding') THEN format('there is no purpose "%s"', e.purpose)
             WHEN v_held THEN format('it is registered for %s', e.purpose)
             ELSE format('it is registered for %s, not for %s', say_list(s.purposes), e.purpose) END,
        format('a registration of the service for the purpose%s', coalesce(' ' || e.purpose, '')),
        CASE WHEN v_changed IS NOT NULL THEN format('The registration of "%s" was changed, last at %s; what is said of it here is how it is now.', s.service, say_time(v_changed)) END);
    IF e.action = 'purpose.keys' THEN
        v_checks := v_checks || check_of('walk', 403005, e.purpose IN ('indexing', 'archival'), e.purpose IN ('indexing', 'archival'),
            format('%s may %swalk all resources', e.purpose, CASE WHEN e.purpose IN ('indexing', 'archival') THEN '' ELSE 'not ' END),
            'the purpose indexing or archival; others ask for one resource');
    ELSIF e.action = 'matter.keys' THEN
        v_checks := v_checks || check_of('walk', 403005, coalesce(e.purpose, 'ediscovery') = 'ediscovery', coalesce(e.purpose, 'ediscovery') = 'ediscovery',
            CASE WHEN coalesce(e.purpose, 'ediscovery') = 'ediscovery' THEN 'ediscovery walks matters' ELSE e.purpose || ' does not walk matters' END,
            'the purpose ediscovery');
    END IF;
    IF NOT v_walk AND (e.org_id = nobody() OR (r.resource_id IS NULL AND k.key_id IS NULL)) THEN
        v_checks := v_checks || check_of('target', 404001, false, r.resource_id IS NOT NULL OR k.key_id IS NOT NULL,
            'nothing here has the id that was asked for', 'the id of a key or resource that exists');
    END IF;
    IF v_org.org_id IS NULL THEN
        IF e.action = 'matter.keys' THEN
            RETURN v_checks || matter_checks(e, m, k, NULL);
        END IF;
        RETURN v_checks;
    END IF;

    SELECT x.created_at INTO v_served FROM service_orgs x WHERE x.org_id = e.org_id AND x.service = s.service;
    v_checks := v_checks || check_of('organisation.served', 403005,
        CASE WHEN v_changed IS NOT NULL AND v_served IS NULL THEN CASE WHEN e.verdict = 0 THEN true END
             ELSE coalesce(v_served <= e.at, false) END, v_served IS NOT NULL,
        CASE WHEN v_served <= e.at OR (v_served IS NULL AND e.verdict = 0) THEN format('%s is one of its organisations', v_org.name)
             WHEN v_served > e.at THEN format('%s was not one of its organisations then', v_org.name)
             ELSE format('%s is not one of its organisations', v_org.name) END,
        format('a registration of the service for %s', v_org.name),
        CASE WHEN v_served > e.at THEN format('The service "%s" was registered for %s at %s.', s.service, v_org.name, say_time(v_served))
             WHEN v_served IS NULL AND e.verdict = 0 THEN format('The service "%s" is no longer registered for %s.', s.service, v_org.name) END);

    SELECT * INTO v_on FROM purposes x WHERE x.org_id = e.org_id AND x.purpose = e.purpose;
    v_held := CASE WHEN v_on.purpose IS NULL THEN false
                   WHEN v_on.changed_at <= e.at THEN v_on.enabled
                   WHEN e.verdict = 0 THEN true
                   ELSE purpose_was_on(e.org_id, e.purpose, e.entry_id) END;
    v_checks := v_checks || check_of('purpose.on', 403005, v_held, coalesce(v_on.enabled, false),
        CASE WHEN v_on.purpose IS NULL THEN format('%s has never switched %s on', v_org.name, coalesce(e.purpose, 'this purpose'))
             WHEN v_on.changed_at <= e.at THEN format('%s had %s switched %s since %s', v_org.name, e.purpose,
                      CASE WHEN v_on.enabled THEN 'on' ELSE 'off' END, say_time(v_on.changed_at))
             ELSE format('%s had %s switched %s', v_org.name, e.purpose, CASE WHEN v_held THEN 'on' ELSE 'off' END) END,
        format('the purpose switched on in %s (kmsctl purpose enable, approved by another officer)', v_org.name),
        CASE WHEN v_on.changed_at > e.at THEN format('%s has %s switched %s since %s.', v_org.name, e.purpose,
                  CASE WHEN v_on.enabled THEN 'on' ELSE 'off' END, say_time(v_on.changed_at)) END);
    IF r.resource_id IS NOT NULL THEN
        v_held := r.kind = ANY (s.kinds);
        v_checks := v_checks || check_of('kind', 403005,
            CASE WHEN v_changed IS NOT NULL THEN CASE WHEN e.verdict = 0 THEN true END ELSE v_held END, v_held,
            format('the resource is of kind %s, the service sees %s', r.kind, say_list(s.kinds)),
            format('a registration of the service for the kind %s', r.kind));
    END IF;
    v_checks := v_checks || org_check(e);
    IF coalesce(e.purpose, CASE e.action WHEN 'matter.keys' THEN 'ediscovery' END) = 'ediscovery' THEN
        v_checks := v_checks || matter_checks(e, m, k, r.kind);
    ELSIF e.purpose = 'dlp' THEN
        v_age := setting(e.org_id, 'dlp.age')::bigint;
        SELECT x.changed_at INTO v_age_set FROM settings x WHERE x.org_id = e.org_id AND x.name = 'dlp.age';
        v_text := CASE WHEN v_age_set > e.at THEN format('How old a binding dlp may see was changed at %s.', say_time(v_age_set)) END;
        IF k.bound_at IS NOT NULL THEN
            v_held := k.bound_at >= e.at - v_age * interval '1 millisecond';
            v_checks := v_checks || check_of('dlp.age', 403005,
                CASE WHEN v_age_set > e.at THEN CASE WHEN e.verdict = 0 THEN true END ELSE v_held END,
                k.bound_at >= v_now - v_age * interval '1 millisecond',
                format('the key was bound at %s, %s before it was asked for; dlp sees what was bound in the last %s', say_time(k.bound_at),
                    say_span(ms(e.at) - ms(k.bound_at)), say_span(v_age)),
                format('a key bound less than %s ago, or a longer dlp.age of the organisation (kmsctl org set)', say_span(v_age)), v_text);
        ELSIF e.action = 'resource.keys' THEN
            v_checks := v_checks || check_of('dlp.age', NULL, true, true,
                format('dlp sees what was bound in the last %s; older keys are left out', say_span(v_age)), NULL, v_text);
        END IF;
    END IF;
    IF k.key_id IS NOT NULL THEN
        v_held := k.bound_at IS NOT NULL AND k.bound_at <= e.at;
        v_checks := v_checks || check_of('bound', 403005, v_held, k.bound_at IS NOT NULL,
            CASE WHEN v_held THEN 'the key is bound to a resource' ELSE 'the key was not bound to a resource: it is its creator''s alone' END,
            'the key bound to a resource',
            CASE WHEN k.bound_at > e.at THEN format('The key was bound at %s.', say_time(k.bound_at)) END);
    END IF;
    v_checks := v_checks || gone_check(e, r, k);
    IF e.verdict = 429001 THEN
        v_checks := v_checks || check_of('limits', 429001, false, NULL,
            format('the service may send %s and retrieve from %s',
                CASE WHEN s.rate = 0 THEN 'any number of requests' ELSE s.rate || ' requests a second' END,
                CASE WHEN s.breadth = 0 THEN 'any number of resources' ELSE s.breadth || ' different resources an hour' END),
            'fewer requests, or a registration with a higher rate or breadth');
    END IF;
    RETURN v_checks;
END $$;
COMMENT ON FUNCTION service_checks IS 'The rules for services, as they were for an entry';

CREATE FUNCTION purpose_was_on(p_org uuid, p_purpose text, p_entry bigint) RETURNS boolean LANGUAGE sql STABLE
RETURN (SELECT x.action = 'purpose.enable' FROM entries x
         WHERE x.org_id = p_org AND x.kind = 'operator' AND x.entry_id < p_entry AND x.verdict = 0
           AND x.action IN ('purpose.enable', 'purpose.disable')
           AND x.detail ->> 'purpose' = p_purpose
         ORDER BY x.entry_id DESC LIMIT 1);
COMMENT ON FUNCTION purpose_was_on IS 'Had an organisation switched a purpose on before an entry?  By the log; NULL: it does not say';

CREATE FUNCTION gone_check(e entries, r resources, k content_keys) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_gone timestamptz := least(r.destroyed_at, r.expires_at, k.destroyed_at);
    v_what text := CASE WHEN k.destroyed_at IS NOT NULL AND k.destroyed_at = least(r.destroyed_at, r.expires_at, k.destroyed_at)
                        THEN 'key' ELSE 'resource' END;
BEGIN
    IF r.resource_id IS NULL AND k.key_id IS NULL THEN
        RETURN '[]'::jsonb;
    END IF;
    -- A key that a repeated request finds destroyed is refused though its record says done.
    RETURN check_of('there', 410001, coalesce(v_gone > e.at, true) OR (e.verdict = 0), coalesce(v_gone > v_now, true),
        CASE WHEN v_gone <= e.at THEN format('the %s was destroyed at %s', v_what, say_time(v_gone))
             ELSE format('the %s was there', CASE WHEN k.key_id IS NOT NULL THEN 'key' ELSE 'resource' END) END,
        'a request before that; what is destroyed does not come back',
        CASE WHEN v_gone > e.at AND v_gone <= v_now THEN format('The %s was destroyed at %s.', v_what, say_time(v_gone)) END);
END $$;
COMMENT ON FUNCTION gone_check IS 'Was it there when an entry was made?';

-- Whether somebody was authorised: the entry has the path.  What has become of it since: authorisations and removals.
CREATE FUNCTION authorised_check(e entries, p_kind text, p_name text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_path uuid[];
    v_auth authorizations;
    v_gone entries;
    v_since text;
    v_by text;
    v_who text := coalesce('"' || p_name || '"', 'the caller');
BEGIN
    -- Another rule came first, or there is nothing to be authorised on.
    IF e.resource_id IS NULL OR (e.path IS NULL AND e.verdict <> 403001) THEN
        RETURN '[]'::jsonb;
    END IF;
    IF p_name IS NOT NULL THEN
        v_path := path_to(e.org_id, e.resource_id, p_kind, p_name, v_now);
    END IF;
    IF e.path IS NULL AND v_path IS NOT NULL THEN
        SELECT * INTO v_auth FROM authorizations a
         WHERE a.org_id = e.org_id AND a.resource_id = coalesce(v_path[cardinality(v_path)], e.resource_id) AND a.kind = 'user' AND a.grantee = p_name;
        v_since := format('%s is authorised on the resource now%s%s.', v_who,
            CASE WHEN cardinality(v_path) > 0 THEN ', through resource ' || say_list(v_path::text[]) ELSE '' END,
            CASE WHEN v_auth.created_at > e.at AND cardinality(v_path) = 0
                 THEN ' (granted by ' || v_auth.granted_by || ' at ' || say_time(v_auth.created_at) || ')' ELSE '' END);
    ELSIF e.path IS NOT NULL AND v_path IS NULL AND p_name IS NOT NULL THEN
        SELECT x.* INTO v_gone FROM entries x
         WHERE x.org_id = e.org_id AND x.resource_id = coalesce(e.path[cardinality(e.path)], e.resource_id)
           AND x.action = 'authorization.delete' AND x.verdict = 0 AND x.entry_id > e.entry_id
           AND with_names(x.org_id, x.detail) -> 'authorizations' @> jsonb_build_array(jsonb_build_object('grantee', p_name))
         ORDER BY x.entry_id LIMIT 1;
        SELECT p.subject INTO v_by FROM persons p WHERE p.org_id = v_gone.org_id AND p.person = v_gone.person;
        v_since := format('%s is no longer authorised on the resource%s.', v_who,
            CASE WHEN v_gone.entry_id IS NOT NULL
                 THEN format(': removed by %s at %s (entry %s)', coalesce(v_by, 'an erased person'), say_time(v_gone.at), v_gone.entry_id)
                 ELSE '' END);
    END IF;
    RETURN check_of('authorised', 403001, e.path IS NOT NULL, v_path IS NOT NULL,
        CASE WHEN e.path IS NULL THEN format('%s was not authorised on resource %s: neither directly nor through another resource',
                      v_who, e.resource_id)
             WHEN cardinality(e.path) = 0 THEN format('%s was authorised on resource %s directly', v_who, e.resource_id)
             ELSE format('%s was authorised on resource %s through %s: authorised on %s%s', v_who, e.resource_id,
                      CASE cardinality(e.path) WHEN 1 THEN 'another resource' ELSE cardinality(e.path) || ' other resources' END,
                      e.path[cardinality(e.path)],
                      (SELECT string_agg(format(', which %s is open to', x.r), '' ORDER BY x.i DESC)
                         FROM unnest(ARRAY[e.resource_id] || e.path[:cardinality(e.path) - 1]) WITH ORDINALITY AS x(r, i))) END,
        'an authorisation of ' || v_who || ' on the resource, or on one that it is open to', v_since);
END $$;
COMMENT ON FUNCTION authorised_check IS 'By which path somebody was authorised when an entry was made';

-- The rules for users and anonymous authorisations.
CREATE FUNCTION user_checks(e entries, p_name text, p_behalf text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_checks jsonb;
    r resources;
    k content_keys;
    p persons;
    m matters;
    v_who text := CASE WHEN e.behalf_person IS NOT NULL THEN p_behalf ELSE p_name END;
    v_held boolean;
    v_set timestamptz;
    v_elsewhere text;
    v_compliance text;
BEGIN
    v_checks := org_check(e);
    SELECT * INTO r FROM resources x WHERE x.org_id = e.org_id AND x.resource_id = e.resource_id;
    SELECT * INTO k FROM content_keys x WHERE x.org_id = e.org_id AND x.key_id = e.key_ids[1] AND e.action IN ('key.get', 'key.bind');
    SELECT * INTO p FROM persons x WHERE x.org_id = e.org_id AND x.person = e.person;
    IF e.behalf_person IS NOT NULL OR e.verdict = 403004 THEN
        SELECT o.name INTO v_elsewhere FROM content_keys x JOIN organisations o ON o.org_id = x.org_id
         WHERE x.key_id = e.key_ids[1] AND x.org_id <> e.org_id;
        v_checks := v_checks || check_of('behalf', 403004, e.verdict <> 403004, NULL,
            CASE WHEN e.verdict <> 403004 THEN 'the token had the compliance role, which may ask on behalf of others'
                 WHEN v_elsewhere IS NOT NULL THEN format('what was asked for belongs to another organisation, %s', v_elsewhere)
                 WHEN e.action NOT IN ('key.get', 'resource.get', 'resource.keys', 'authorization.list') THEN 'onBehalfOf is for retrieving only'
                 ELSE 'the token had not the role that it takes' END,
            'the compliance role in the token, a retrieval, and something of the officer''s own organisation');
    END IF;
    IF e.kind = 'anonymous' AND e.action NOT IN ('key.get', 'resource.keys', 'channel.delete', 'channel.create', 'ping') THEN
        RETURN v_checks || check_of('anonymous', 403001, false, false,
            'an anonymous authorisation retrieves the keys of its resource and nothing else', 'a user''s token');
    END IF;
    IF e.action IN ('key.get', 'key.bind') AND e.key_ids IS NOT NULL THEN
        SELECT o.name INTO v_elsewhere FROM content_keys x JOIN organisations o ON o.org_id = x.org_id
         WHERE x.key_id = e.key_ids[1] AND x.org_id <> e.org_id;
        v_checks := v_checks || check_of('key', CASE WHEN v_elsewhere IS NULL THEN 404001 ELSE 403001 END,
            CASE WHEN k.key_id IS NULL THEN CASE WHEN e.verdict = 0 THEN true ELSE false END
                 ELSE k.created_at <= e.at AND (k.bound_at <= e.at OR coalesce(k.bound_at > e.at, k.expires_at > e.at)) END,
            k.key_id IS NOT NULL,
            CASE WHEN v_elsewhere IS NOT NULL THEN format('the key belongs to another organisation, %s', v_elsewhere)
                 WHEN k.key_id IS NULL AND e.verdict = 0 THEN 'the key existed'
                 WHEN k.key_id IS NULL THEN 'no key has this id; or it was not bound in time, and is gone'
                 WHEN k.bound_at IS NULL AND k.expires_at <= e.at THEN format('the key was not bound in time: it could be until %s', say_time(k.expires_at))
                 ELSE format('the key was made at %s by %s', say_time(k.created_at), k.creator) END,
            CASE WHEN v_elsewhere IS NULL THEN 'the id of a key that exists, in time' ELSE 'a token of that organisation' END,
            CASE WHEN k.key_id IS NULL AND e.verdict = 0 THEN 'The key was never bound and is gone.' END);
        IF k.key_id IS NOT NULL AND (e.action = 'key.bind' OR e.resource_id IS NULL) THEN
            v_held := k.creator = v_who;
            v_checks := v_checks || check_of('creator', 403002, v_held, v_held,
                format('the key %s; it was made by %s', CASE WHEN e.action = 'key.bind' THEN 'was to be bound' ELSE 'was not bound' END, k.creator),
                format('a request by %s', k.creator),
                CASE WHEN e.action = 'key.get' AND k.bound_at > e.at THEN format('The key was bound to resource %s at %s.', k.resource_id, say_time(k.bound_at)) END);
            IF e.behalf_person IS NULL AND p.person IS NOT NULL AND e.client IS NOT NULL THEN
                v_held := e.client = hmac128(p.inner_key, p.outer_key, 'client ' || k.client_id);
                v_checks := v_checks || check_of('client', 403003, v_held, v_held,
                    CASE WHEN v_held THEN 'it is the client that made the key' ELSE 'another client made the key' END,
                    'a request by the client that made the key');
            END IF;
        END IF;
        IF e.action = 'key.bind' AND k.key_id IS NOT NULL THEN
            v_held := k.resource_id IS NULL OR k.resource_id = e.resource_id OR k.bound_at > e.at;
            v_checks := v_checks || check_of('unbound', 409001, v_held, k.resource_id IS NULL,
                CASE WHEN v_held THEN 'the key was not bound elsewhere'
                     ELSE format('the key was bound to resource %s at %s', k.resource_id, say_time(k.bound_at)) END,
                'a key that is not bound yet');
        END IF;
    END IF;
    IF e.resource_id IS NOT NULL THEN
        IF r.resource_id IS NULL THEN
            SELECT o.name INTO v_elsewhere FROM resources x JOIN organisations o ON o.org_id = x.org_id
             WHERE x.resource_id = e.resource_id;
            v_checks := v_checks || check_of('resource', CASE WHEN v_elsewhere IS NULL THEN 404001 ELSE 403001 END, false, false,
                CASE WHEN v_elsewhere IS NULL THEN 'no resource has this id' ELSE format('the resource belongs to another organisation, %s', v_elsewhere) END,
                CASE WHEN v_elsewhere IS NULL THEN 'the id of a resource that exists' ELSE 'a token of that organisation' END);
        ELSE
            v_checks := v_checks || authorised_check(e, CASE WHEN e.behalf_person IS NOT NULL THEN 'user' ELSE coalesce(e.kind, 'user') END, v_who);
        END IF;
    END IF;
    v_compliance := setting(e.org_id, 'compliance');
    IF e.behalf_person IS NOT NULL AND (v_compliance = 'matter' OR e.matter_id IS NOT NULL OR e.verdict = 403007) THEN
        SELECT x.changed_at INTO v_set FROM settings x WHERE x.org_id = e.org_id AND x.name = 'compliance';
        SELECT * INTO m FROM matters x WHERE x.org_id = e.org_id AND x.matter_id = e.matter_id;
        IF m.matter_id IS NOT NULL THEN
            v_checks := v_checks || matter_checks(e, m, k, r.kind);
        ELSIF v_set <= e.at OR e.verdict = 403007 THEN
            v_checks := v_checks || check_of('compliance', 403007, e.verdict <> 403007, NULL,
                CASE WHEN e.verdict = 403007 THEN format('officers of this organisation ask on behalf of others only under a matter, and no open, approved matter covered %s and this', coalesce(p_behalf, 'the person'))
                     ELSE 'officers of this organisation ask on behalf of others only under a matter' END,
                'an open matter with this custodian and kind, whose window holds the time when the key was bound');
        END IF;
        IF v_set > e.at THEN
            v_checks := v_checks || check_of('compliance.changed', NULL, true, true,
                'whether officers need a matter was decided by the setting of that time', NULL,
                format('What officers need to ask on behalf of others was changed at %s: %s.', say_time(v_set), v_compliance));
        END IF;
    END IF;
    v_checks := v_checks || gone_check(e, r, k);
    RETURN v_checks;
END $$;
COMMENT ON FUNCTION user_checks IS 'The rules for users, as they were for an entry';

-- ---------------------------------------------------------------------------------------------------- explain

-- Keys of an entry, and those above them.
CREATE FUNCTION entry_keys(e entries, lim integer) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('key', x.id, 'known', k.key_id IS NOT NULL, 'creator', k.creator,
               'created', ms(k.created_at), 'bound', ms(k.bound_at), 'resource', k.resource_id, 'destroyed', ms(k.destroyed_at),
               'generation', k.generation, 'wrapping_key_created', ms(w.created_at), 'current_generation', o.generation,
               'root', w.root_id, 'root_state', t.state)) ORDER BY x.i), '[]')
      FROM unnest(e.key_ids[:lim]) WITH ORDINALITY AS x(id, i)
      LEFT JOIN content_keys k ON k.org_id = e.org_id AND k.key_id = x.id
      LEFT JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
      LEFT JOIN organisations o ON o.org_id = k.org_id
      LEFT JOIN roots t ON t.root_id = w.root_id AND t.org_id IN (nobody(), k.org_id));
COMMENT ON FUNCTION entry_keys IS 'What is known of an entry''s keys, but not the keys';

CREATE FUNCTION say_keys(e entries, p_keys jsonb) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_text text := '';
    v_n integer := coalesce(cardinality(e.key_ids), 0);
    w record;
BEGIN
    IF v_n = 0 THEN
        RETURN NULL;
    END IF;
    v_text := CASE WHEN v_n = 1 THEN 'Key ' ELSE v_n || ' keys: ' END
        || (SELECT string_agg((x.k ->> 'key') || CASE WHEN x.k ? 'bound' AND v_n > 1 THEN ' (bound ' || say_time(ms_to_time((x.k ->> 'bound')::bigint)) || ')' ELSE '' END,
                       ', ' ORDER BY x.i)
              FROM jsonb_array_elements(p_keys) WITH ORDINALITY AS x(k, i) WHERE x.i <= 10)
        || CASE WHEN v_n > 10 THEN format(' and %s more', v_n - 10) ELSE '' END || '.';
    FOR w IN SELECT DISTINCT (x.k ->> 'generation')::integer AS generation, x.k ->> 'root' AS root, x.k ->> 'root_state' AS state,
                    (x.k ->> 'wrapping_key_created')::bigint AS made
               FROM jsonb_array_elements(p_keys) AS x(k) WHERE x.k ? 'generation' ORDER BY 1
    LOOP
        v_text := v_text || format(' %s wrapped by the organisation''s wrapping key of generation %s (made %s), and that by the root key %s in the HSM%s.',
            CASE WHEN v_n = 1 THEN 'It is' ELSE 'They are' END, w.generation, say_time(ms_to_time(w.made)), w.root,
            CASE WHEN w.state = 'active' THEN ', the active one' WHEN w.state IS NOT NULL THEN ', which is ' || w.state ELSE '' END);
    END LOOP;
    IF NOT p_keys @> '[{"known":true}]' THEN
        v_text := v_text || ' Nothing is known of ' || CASE WHEN v_n = 1 THEN 'it' ELSE 'them' END || ' here.';
    END IF;
    RETURN v_text;
END $$;
COMMENT ON FUNCTION say_keys IS 'An entry''s keys in words';

-- One entry: its facts, the rules that were looked at, what came out, what has changed since.
CREATE FUNCTION explain_entry(e entries) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_person persons;
    v_behalf persons;
    v_channel channels;
    v_opened entries;
    v_org text;
    v_checks jsonb := '[]';
    v_keys jsonb;
    v_who jsonb;
    v_rule record;
    v_decided jsonb;
    v_why text := e.detail ->> 'why';
    v_since jsonb := '[]';
    v_leaf bigint;
    v_said jsonb;
    v_name text;
    v_opener text;
    v_identity text;
    v_authorised text;
    v_matter text;
    v_current integer;
    v_releases boolean := e.action IN ('key.get', 'resource.keys', 'purpose.keys', 'matter.keys');
BEGIN
    SELECT * INTO v_person FROM persons p WHERE p.org_id = e.org_id AND p.person = e.person;
    SELECT * INTO v_behalf FROM persons p WHERE p.org_id = e.org_id AND p.person = e.behalf_person;
    SELECT o.name, o.generation INTO v_org, v_current FROM organisations o WHERE o.org_id = e.org_id;
    SELECT m.name INTO v_matter FROM matters m WHERE m.org_id = e.org_id AND m.matter_id = e.matter_id;
    IF e.channel_id IS NOT NULL THEN
        SELECT * INTO v_channel FROM channels c WHERE c.channel_id = e.channel_id;
        SELECT x.* INTO v_opened FROM entries x
         WHERE x.org_id IN (e.org_id, nobody()) AND x.action = 'channel.create' AND x.verdict = 0 AND x.channel_id = e.channel_id
         LIMIT 1;
        SELECT coalesce(v_opened.subject, p.subject) INTO v_opener
          FROM (SELECT 1) one LEFT JOIN persons p ON p.org_id = v_opened.org_id AND p.person = v_opened.person;
    END IF;

    -- Who.
    v_name := coalesce(e.subject, v_person.subject);
    v_identity := coalesce(v_opened.detail ->> 'identity', e.detail ->> 'identity',
        CASE WHEN e.kind = 'service' THEN (SELECT s.identity FROM services s WHERE s.service = e.subject) END);
    v_who := jsonb_strip_nulls(jsonb_build_object('kind', e.kind, 'name', v_name, 'person', e.person, 'erased',
        CASE WHEN e.person IS NOT NULL AND v_person.person IS NULL THEN true END, 'client', e.client, 'identity', v_identity,
        'certificate', coalesce(v_opened.detail, e.detail) ->> 'certificate', 'issuer', coalesce(v_opened.detail, e.detail) ->> 'issuer',
        'proven', coalesce(v_opened.detail, e.detail) ->> 'proven', 'behalf', v_behalf.subject, 'behalf_person', e.behalf_person));
    v_said := jsonb_build_object('who',
        CASE e.kind
        WHEN 'service' THEN format('the service "%s"%s%s%s', v_name,
             coalesce(', by its certificate with the identity ' || v_identity, ''),
             coalesce(', serial number ' || (v_who ->> 'certificate'), ''),
             CASE v_who ->> 'proven' WHEN 'proof' THEN ', proven behind a relay by x5c and proof'
                  WHEN 'tls' THEN ', proven by mutual TLS' ELSE '' END)
        WHEN 'anonymous' THEN format('whoever holds the bearer token of the anonymous authorisation %s%s', v_name,
             coalesce((SELECT ' (granted by ' || a.granted_by || ' at ' || say_time(a.created_at) || ')' FROM authorizations a
                        WHERE a.org_id = e.org_id AND a.authorization_id::text = v_name), ', which is gone'))
        WHEN 'keeper' THEN 'the server itself'
        WHEN 'operator' THEN format('%s, on the admin socket', coalesce(v_name, 'an erased person (pseudonym ' || e.person || ')'))
        ELSE CASE WHEN v_name IS NOT NULL THEN format('%s"%s"%s, by the access token', CASE WHEN e.kind = 'user' THEN 'the user ' ELSE '' END,
                            v_name, coalesce(' of ' || v_org, ''))
                  WHEN e.person IS NOT NULL THEN format('a person who was erased from the log (pseudonym %s)', e.person)
                  WHEN v_opened.entry_id IS NOT NULL THEN format('somebody on a channel that %s had opened', coalesce('"' || v_opener || '"', 'a person erased since'))
                  ELSE 'somebody who did not show who he is' END
             || CASE WHEN e.behalf_person IS NOT NULL THEN format(', as an officer on behalf of %s',
                          coalesce('"' || v_behalf.subject || '"', 'an erased person (pseudonym ' || e.behalf_person || ')')) ELSE '' END
             || coalesce(', with client ' || CASE WHEN v_channel.client = e.client THEN '"' || v_channel.client_id || '"' ELSE 'pseudonym ' || e.client END, '')
        END);

    -- What.
    v_said := v_said || jsonb_build_object('asked', format('At %s asked %s%s%s%s%s%s.', say_time(e.at), say_action(e),
        CASE WHEN e.kind IN ('operator', 'keeper') THEN coalesce((SELECT ' (' || string_agg(d.key || ' ' || d.value, ', ' ORDER BY d.key) || ')'
                 FROM jsonb_each_text(CASE jsonb_typeof(e.detail) WHEN 'object' THEN e.detail END) d
                WHERE d.key <> 'why' AND d.value !~ '^[\[{]' AND octet_length(d.value) <= 128), '') ELSE '' END,
        CASE WHEN e.purpose IS NOT NULL THEN format(', under the purpose "%s"', e.purpose)
             WHEN e.kind = 'service' AND v_releases THEN ', naming no purpose' ELSE '' END,
        CASE WHEN e.matter_id IS NOT NULL THEN format(', under the matter %s', coalesce('"' || v_matter || '" (' || e.matter_id || ')', e.matter_id::text)) ELSE '' END,
        CASE WHEN e.channel_id IS NOT NULL THEN format(', on channel %s%s', e.channel_id,
                 coalesce(' (opened ' || say_time(coalesce(v_channel.created_at, ms_to_time((v_opened.detail ->> 'created')::bigint)))
                          || ', good until ' || say_time(coalesce(v_channel.expires_at, ms_to_time((v_opened.detail ->> 'expires')::bigint))) || ')',
                          CASE WHEN e.verdict = 499001 THEN ', which nobody opened here' ELSE '' END)
                 || CASE WHEN e.verdict = 499001 AND v_opened.entry_id IS NOT NULL THEN ', which had ended' ELSE '' END)
             ELSE '' END,
        coalesce(', as request ' || e.request_id, '')));

    -- The rules.
    IF e.kind = 'service' AND v_releases THEN
        v_checks := service_checks(e);
        v_authorised := 'Services are authorised on nothing: registration, purpose and the organisation''s rules decide.';
    ELSIF e.kind IN ('user', 'anonymous') AND e.channel_id IS NOT NULL THEN
        v_checks := user_checks(e, v_name, v_behalf.subject);
        v_authorised := (SELECT upper(left(x.c ->> 'text', 1)) || substr(x.c ->> 'text', 2) || '.'
                           FROM jsonb_array_elements(v_checks) AS x(c) WHERE x.c ->> 'rule' = 'authorised');
        IF v_authorised IS NULL AND e.action = 'key.get' AND e.verdict = 0 THEN
            v_authorised := 'As the creator of the key, which was not bound to a resource yet.';
        ELSIF v_authorised IS NULL AND e.path = '{}' THEN
            v_authorised := 'As who made it.';
        END IF;
    END IF;
    IF e.kind = 'service' AND e.verdict = 403005 AND NOT v_releases THEN
        v_checks := check_of('retrieving', 403005, false, false, 'the service wanted something else than keys of resources',
            'a user''s token: services retrieve keys and do nothing else');
    END IF;
    SELECT * INTO v_rule FROM rule_of(e.verdict, e.kind);
    -- What decided: the first rule of that errorCode that did not hold; else one of which it cannot be told.
    SELECT x.c INTO v_decided FROM jsonb_array_elements(v_checks) WITH ORDINALITY AS x(c, i)
     WHERE (x.c ->> 'code')::integer = e.verdict AND e.verdict <> 0 AND (x.c -> 'held') <> 'true'
     ORDER BY (x.c -> 'held') = 'null', x.i LIMIT 1;
    IF e.verdict = 0 THEN
        v_said := v_said || jsonb_build_object('rule', CASE WHEN v_checks = '[]' THEN NULL ELSE
            (SELECT 'Allowed: ' || string_agg(x.c ->> 'text', '; ' ORDER BY x.i) || '.'
               FROM jsonb_array_elements(v_checks) WITH ORDINALITY AS x(c, i)
              WHERE x.c ->> 'rule' <> 'authorised') END);
    ELSE
        v_said := v_said || jsonb_build_object('rule', format('%s%s.', upper(left(v_rule.rule, 1)) || substr(v_rule.rule, 2),
                CASE WHEN v_why IS NOT NULL THEN '. Here: ' || rtrim(v_why, '.')
                          || CASE WHEN v_decided IS NOT NULL AND (v_decided -> 'held') = 'false' THEN ' (' || (v_decided ->> 'text') || ')' ELSE '' END
                     WHEN (v_decided -> 'held') = 'false' THEN '. Here: ' || (v_decided ->> 'text')
                     WHEN v_decided IS NOT NULL THEN '. Most likely: ' || (v_decided ->> 'text')
                     ELSE '' END),
            'otherwise', format('It would have taken %s.', coalesce(v_decided ->> 'otherwise', v_rule.otherwise)));
    END IF;

    -- Keys and outcome.
    v_keys := entry_keys(e, 100);
    v_leaf := log_find(e.org_id, e.entry_id);
    v_said := v_said || jsonb_build_object('authorisation', v_authorised, 'keys', say_keys(e, v_keys),
        'outcome', CASE
            WHEN e.verdict = 0 AND e.org_id = nobody() AND v_releases THEN
                'Done: what it got stands in entries of the organisations'' logs, one for each resource; with none, there was nothing new.'
            WHEN e.verdict = 0 AND v_releases THEN
                CASE coalesce(cardinality(e.key_ids), 0) WHEN 0 THEN 'Done: there was no key to answer.'
                     WHEN 1 THEN 'Released: one key.' ELSE format('Released: %s keys.', cardinality(e.key_ids)) END
            WHEN e.verdict = 0 THEN 'Done.'
            ELSE format('Refused with errorCode %s; nothing was released or changed.', e.verdict) END);

    -- Since then.
    SELECT coalesce(jsonb_agg(x.c -> 'since' ORDER BY x.i), '[]') INTO v_since
      FROM jsonb_array_elements(v_checks) WITH ORDINALITY AS x(c, i) WHERE x.c ->> 'since' IS NOT NULL;
    IF e.channel_id IS NOT NULL AND v_channel.channel_id IS NULL AND e.verdict <> 499001
       AND e.action <> 'channel.delete' AND (e.action <> 'channel.create' OR e.verdict = 0) THEN
        v_since := v_since || to_jsonb('The channel has ended.'::text);
    ELSIF v_channel.expires_at <= v_now AND e.verdict <> 499001 THEN
        v_since := v_since || to_jsonb(format('The channel expired at %s.', say_time(v_channel.expires_at)));
    END IF;
    IF v_keys @> '[{"known":true}]' AND v_current > (SELECT min((x.k ->> 'generation')::integer) FROM jsonb_array_elements(v_keys) AS x(k)) THEN
        v_since := v_since || to_jsonb(format('New keys of the organisation are wrapped under generation %s; these stay under theirs.', v_current));
    END IF;
    IF v_who ? 'erased' THEN
        v_since := v_since || to_jsonb('Who asked has been erased from the log.'::text);
    END IF;

    RETURN jsonb_build_object('entry', e.entry_id, 'org', e.org_id, 'org_name', v_org, 'at', ms(e.at), 'op', e.op_id,
            'request', e.request_id, 'action', e.action, 'verdict', e.verdict, 'who', v_who, 'purpose', e.purpose,
            'matter', CASE WHEN e.matter_id IS NOT NULL THEN jsonb_build_object('id', e.matter_id, 'name', v_matter) END,
            'channel', CASE WHEN e.channel_id IS NOT NULL THEN jsonb_build_object('id', e.channel_id, 'open', coalesce(v_channel.expires_at > v_now, false),
                'created', coalesce(ms(v_channel.created_at), (v_opened.detail ->> 'created')::bigint),
                'expires', coalesce(ms(v_channel.expires_at), (v_opened.detail ->> 'expires')::bigint)) END,
            'resource', (SELECT jsonb_build_object('id', r.resource_id, 'kind', r.kind, 'creator', r.creator, 'created', ms(r.created_at),
                             'expires', ms(r.expires_at), 'destroyed', ms(r.destroyed_at))
                           FROM resources r WHERE r.org_id = e.org_id AND r.resource_id = e.resource_id))
        || jsonb_build_object('path', to_jsonb(e.path), 'keys', v_keys, 'key_count', coalesce(cardinality(e.key_ids), 0), 'why', v_why,
            'leaf', v_leaf, 'signed', v_leaf < (SELECT l.signed_size FROM logs l WHERE l.org_id = e.org_id),
            'detail', CASE WHEN e.detail ? 'authorizations' THEN with_names(e.org_id, e.detail) ELSE e.detail END,
            'rules', v_checks, 'decided', v_decided ->> 'rule', 'said', jsonb_strip_nulls(v_said), 'since', v_since);
END $$;
COMMENT ON FUNCTION explain_entry IS 'All about one entry';

CREATE FUNCTION explain(what text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_entry bigint := CASE WHEN what ~ '^[0-9]{1,18}$' THEN what::bigint END;
    v_op uuid := CASE WHEN what ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN what::uuid END;
BEGIN
    -- A client chooses its request ids: one may look like an entry's number, and may come twice.
    RETURN (
        WITH orgs AS (SELECT nobody() AS org_id UNION ALL SELECT o.org_id FROM organisations o),
        hits AS (
            (SELECT 'request' AS matched, e.* FROM entries e
              WHERE hashtextextended(e.request_id, 0) = hashtextextended(what, 0) AND e.request_id = what
              ORDER BY e.entry_id DESC LIMIT 2000)
            UNION ALL
            SELECT 'entry', e.* FROM orgs o JOIN entries e ON e.org_id = o.org_id AND e.entry_id = v_entry WHERE v_entry IS NOT NULL
            UNION ALL
            SELECT 'operation', e.* FROM orgs o JOIN entries e ON e.org_id = o.org_id AND e.op_id = v_op WHERE v_op IS NOT NULL
        ), seeds AS (
            SELECT DISTINCT ON (h.matched, h.xact, h.channel_id, h.action, h.walk) h.*
              FROM (SELECT x.*, CASE WHEN x.action IN ('purpose.keys', 'matter.keys') THEN x.request_id ELSE x.entry_id::text END AS walk
                      FROM hits x) h
             ORDER BY h.matched, h.xact, h.channel_id, h.action, h.walk, h.entry_id
        ), last AS (
            SELECT s.* FROM seeds s ORDER BY s.entry_id DESC LIMIT 20
        )
        SELECT jsonb_agg(jsonb_build_object('matched', l.matched, 'entries', (
                   -- What one request wrote: the entries of a walk stand in several logs, and carry its request id.
                   SELECT coalesce(jsonb_agg(explain_entry(x::entries) ORDER BY x.entry_id), '[]')
                     FROM (SELECT e.* FROM entries e
                            WHERE e.entry_id = l.entry_id AND e.org_id = l.org_id
                            UNION ALL
                           (SELECT e.* FROM entries e
                             WHERE l.action IN ('purpose.keys', 'matter.keys') AND e.request_id = l.request_id
                               AND e.xact = l.xact AND e.channel_id = l.channel_id AND e.action = l.action AND e.entry_id <> l.entry_id
                             ORDER BY e.entry_id LIMIT 200)) x)) ORDER BY l.entry_id)
          FROM last l);
END $$;
COMMENT ON FUNCTION explain IS 'The requests that a request id, an entry''s number or an operation id stands for, each with its entries explained; NULL: none';
GRANT EXECUTE ON FUNCTION explain TO kms_keeper;

-- ---------------------------------------------------------------------------------------------------- matters

CREATE FUNCTION matter_report(id uuid, after bigint, lim integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    m matters;
BEGIN
    SELECT * INTO m FROM matters x WHERE x.matter_id = matter_report.id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN matter_show(m.matter_id) || jsonb_build_object(
        'entries', (SELECT coalesce(jsonb_agg(jsonb_build_object('entry', x.entry_id, 'at', ms(x.at), 'action', x.action,
                               'verdict', x.verdict, 'by', CASE WHEN x.kind = 'service' THEN 'service' ELSE 'officer' END,
                               'who', coalesce(x.subject, p.subject, x.person::text), 'behalf', coalesce(b.subject, x.behalf_person::text),
                               'purpose', x.purpose, 'resource', x.resource_id, 'kind', r.kind, 'keys', coalesce(to_jsonb(x.key_ids), '[]'),
                               'request', x.request_id, 'index', log_find(x.org_id, x.entry_id)) ORDER BY x.entry_id), '[]')
                      FROM (SELECT e.* FROM entries e
                             WHERE e.org_id = m.org_id AND e.matter_id = m.matter_id AND e.entry_id > after
                               AND e.kind IS DISTINCT FROM 'operator' AND (e.verdict <> 0 OR cardinality(e.key_ids) > 0)
                             ORDER BY e.entry_id LIMIT lim) x
                      LEFT JOIN persons p ON p.org_id = x.org_id AND p.person = x.person
                      LEFT JOIN persons b ON b.org_id = x.org_id AND b.person = x.behalf_person
                      LEFT JOIN resources r ON r.org_id = x.org_id AND r.resource_id = x.resource_id));
END $$;
COMMENT ON FUNCTION matter_report IS 'A matter, and entries of releases and refusals under it after a number; NULL: unknown';
GRANT EXECUTE ON FUNCTION matter_report TO kms_keeper;
