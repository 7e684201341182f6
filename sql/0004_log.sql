-- 0004_log.sql - the log that proves it: entries without names, in a tree, under signed checkpoints.
--
-- Entries are written as before, in the transaction of what they record.  A trigger replaces people by pseudonyms on the
-- way in, so that no function can forget to.  log_sequence() then gives each committed entry its place: its leaf, a canonical
-- JSON text (entry_leaf), is hashed, and the hash is kept beside the entry's number in log_leaves.  The tree itself is the
-- keeper's work: it appends the new hashes to the last tree that it signed and signs the result, so that nothing done to
-- these tables makes it sign a tree that does not continue what it signed before.  sql/README.md has the interface.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------- people

CREATE TABLE persons (
    org_id uuid NOT NULL,
    realm text NOT NULL,
    subject text NOT NULL,
    person uuid NOT NULL,
    inner_key bytea NOT NULL CHECK (octet_length(inner_key) = 64),
    outer_key bytea NOT NULL CHECK (octet_length(outer_key) = 64),
    created_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, realm, subject)
);
CREATE INDEX persons_by_pseudonym ON persons (org_id, person);
COMMENT ON TABLE persons IS 'Who is behind the pseudonyms in entries; to destroy a row is to erase the person from the log';
COMMENT ON COLUMN persons.org_id IS 'Organisation; nil: the installation''s own log';
COMMENT ON COLUMN persons.realm IS 'Whose names: user (the identity provider''s), operator (this machine''s), anonymous, unknown';
COMMENT ON COLUMN persons.subject IS 'The name';
COMMENT ON COLUMN persons.person IS 'The pseudonym: HMAC-SHA-256 of realm and name under the key, its first 16 bytes';
COMMENT ON COLUMN persons.inner_key IS 'The person''s random key, prepared as HMAC''s inner pad';
COMMENT ON COLUMN persons.outer_key IS 'And as its outer pad';
COMMENT ON COLUMN persons.created_at IS 'When first seen';

CREATE FUNCTION hmac128(p_inner bytea, p_outer bytea, p_text text) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(substr(sha256(p_outer || sha256(p_inner || convert_to(p_text, 'UTF8'))), 1, 16), 'hex')::uuid;
COMMENT ON FUNCTION hmac128 IS 'HMAC-SHA-256 (RFC 2104), its first 16 bytes';

CREATE FUNCTION person_of(p_org uuid, p_realm text, p_subject text) RETURNS persons LANGUAGE plpgsql AS $$
DECLARE
    p persons;
    k bytea;
BEGIN
    SELECT * INTO p FROM persons x WHERE x.org_id = p_org AND x.realm = p_realm AND x.subject = p_subject;
    IF FOUND THEN
        RETURN p;
    END IF;
    -- 32 bytes of the server's strong randomness: a random UUID has 122 bits of it.
    k := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
        || decode(repeat('00', 32), 'hex');
    p.inner_key := k;
    p.outer_key := k;
    FOR i IN 0 .. 63 LOOP
        p.inner_key := set_byte(p.inner_key, i, get_byte(k, i) # 54);
        p.outer_key := set_byte(p.outer_key, i, get_byte(k, i) # 92);
    END LOOP;
    INSERT INTO persons (org_id, realm, subject, person, inner_key, outer_key)
    VALUES (p_org, p_realm, p_subject, hmac128(p.inner_key, p.outer_key, 'person ' || p_realm || ' ' || p_subject),
            p.inner_key, p.outer_key)
        ON CONFLICT DO NOTHING;
    -- Ours, or that of who was quicker.
    SELECT * INTO STRICT p FROM persons x WHERE x.org_id = p_org AND x.realm = p_realm AND x.subject = p_subject;
    RETURN p;
END $$;
COMMENT ON FUNCTION person_of IS 'A person''s row, made when he is first seen';

ALTER TABLE entries
    ADD COLUMN person uuid,
    ADD COLUMN behalf_person uuid,
    ADD COLUMN client uuid,
    ADD COLUMN xact bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN entries.subject IS 'Who, when it is no person: an anonymous authorisation, the keeper, a service.  People: NULL, see person';
COMMENT ON COLUMN entries.on_behalf IS 'For writing only: always NULL, see behalf_person';
COMMENT ON COLUMN entries.client_id IS 'For writing only: always NULL, see client';
COMMENT ON COLUMN entries.person IS 'Who: a pseudonym, see persons';
COMMENT ON COLUMN entries.behalf_person IS 'As whom an officer asked: a pseudonym';
COMMENT ON COLUMN entries.client IS 'With which client: HMAC-SHA-256 of its id under the person''s key, its first 16 bytes';
COMMENT ON COLUMN entries.xact IS 'The transaction that wrote it: what is sequenced goes by it, since only it says what is still to come';

-- People in a detail: grantees of authorisations.
CREATE FUNCTION without_names(p_org uuid, p_detail jsonb) RETURNS jsonb LANGUAGE sql VOLATILE
RETURN jsonb_set(p_detail, '{authorizations}', (
    SELECT coalesce(jsonb_agg(
               CASE WHEN a ->> 'kind' = 'user'
                    THEN jsonb_set(a, '{grantee}', to_jsonb((person_of(p_org, 'user', a ->> 'grantee')).person))
                    ELSE a END ORDER BY n), '[]')
      FROM jsonb_array_elements(p_detail -> 'authorizations') WITH ORDINALITY AS x(a, n)));
COMMENT ON FUNCTION without_names IS 'A detail with pseudonyms for people';

CREATE FUNCTION with_names(p_org uuid, p_detail jsonb) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_set(p_detail, '{authorizations}', (
    SELECT coalesce(jsonb_agg(
               CASE WHEN a ->> 'kind' = 'user'
                    THEN jsonb_set(a, '{grantee}', coalesce((SELECT to_jsonb(p.subject) FROM persons p
                             WHERE p.org_id = p_org AND p.person = (a ->> 'grantee')::uuid), a -> 'grantee'))
                    ELSE a END ORDER BY n), '[]')
      FROM jsonb_array_elements(p_detail -> 'authorizations') WITH ORDINALITY AS x(a, n)));
COMMENT ON FUNCTION with_names IS 'The other way, as far as the people are known';

CREATE FUNCTION entry_without_names() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    p persons;
BEGIN
    IF NEW.kind IN ('anonymous', 'keeper', 'service') THEN
        IF NEW.client_id IS NOT NULL THEN
            p := person_of(NEW.org_id, NEW.kind, coalesce(NEW.subject, ''));
        END IF;
    ELSIF NEW.subject IS NOT NULL THEN
        p := person_of(NEW.org_id, CASE WHEN coalesce(NEW.kind, 'user') = 'user' THEN 'user' ELSE 'operator' END, NEW.subject);
        NEW.person := p.person;
        NEW.subject := NULL;
    ELSIF NEW.person IS NOT NULL THEN
        SELECT * INTO p FROM persons x WHERE x.org_id = NEW.org_id AND x.person = NEW.person;
    ELSIF NEW.client_id IS NOT NULL THEN
        p := person_of(NEW.org_id, 'unknown', '');
    END IF;
    IF NEW.client_id IS NOT NULL THEN
        NEW.client := hmac128(p.inner_key, p.outer_key, 'client ' || NEW.client_id);
        NEW.client_id := NULL;
    END IF;
    IF NEW.on_behalf IS NOT NULL THEN
        NEW.behalf_person := (person_of(NEW.org_id, 'user', NEW.on_behalf)).person;
        NEW.on_behalf := NULL;
    END IF;
    IF NEW.detail ? 'authorizations' THEN
        NEW.detail := without_names(NEW.org_id, NEW.detail);
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION entry_without_names IS 'Trigger: puts pseudonyms where an entry names people';

-- What was there before the log: rewritten once, before any of it is sequenced.
ALTER TABLE entries DISABLE TRIGGER entries_append_only;
DO $$
DECLARE
    e record;
    p persons;
BEGIN
    FOR e IN SELECT DISTINCT x.org_id, CASE WHEN x.kind IN ('anonymous', 'keeper', 'service') THEN x.kind
                    WHEN x.subject IS NULL THEN 'unknown'
                    WHEN coalesce(x.kind, 'user') = 'user' THEN 'user' ELSE 'operator' END AS realm,
                    coalesce(x.subject, '') AS subject
               FROM entries x WHERE x.subject IS NOT NULL OR x.client_id IS NOT NULL
    LOOP
        p := person_of(e.org_id, e.realm, e.subject);
    END LOOP;
    FOR e IN SELECT DISTINCT x.org_id, x.on_behalf FROM entries x WHERE x.on_behalf IS NOT NULL LOOP
        p := person_of(e.org_id, 'user', e.on_behalf);
    END LOOP;
    UPDATE entries x
       SET person = CASE WHEN q.realm IN ('user', 'operator') THEN q.person END,
           subject = CASE WHEN q.realm NOT IN ('user', 'operator') THEN x.subject END,
           client = CASE WHEN x.client_id IS NOT NULL THEN hmac128(q.inner_key, q.outer_key, 'client ' || x.client_id) END,
           client_id = NULL
      FROM persons q
     WHERE (x.subject IS NOT NULL OR x.client_id IS NOT NULL) AND q.org_id = x.org_id AND q.subject = coalesce(x.subject, '')
       AND q.realm = CASE WHEN x.kind IN ('anonymous', 'keeper', 'service') THEN x.kind
                          WHEN x.subject IS NULL THEN 'unknown'
                          WHEN coalesce(x.kind, 'user') = 'user' THEN 'user' ELSE 'operator' END;
    UPDATE entries x SET behalf_person = (person_of(x.org_id, 'user', x.on_behalf)).person, on_behalf = NULL
     WHERE x.on_behalf IS NOT NULL;
    UPDATE entries x SET detail = without_names(x.org_id, x.detail) WHERE x.detail ? 'authorizations';
END $$;
ALTER TABLE entries ENABLE TRIGGER entries_append_only;
ALTER TABLE entries ALTER COLUMN xact SET DEFAULT pg_current_xact_id()::text::bigint;
CREATE INDEX entries_in_order ON entries (xact, entry_id);
CREATE TRIGGER entries_without_names BEFORE INSERT ON entries FOR EACH ROW
    WHEN (NEW.subject IS NOT NULL OR NEW.client_id IS NOT NULL OR NEW.on_behalf IS NOT NULL OR NEW.detail ? 'authorizations')
    EXECUTE FUNCTION entry_without_names();

-- A channel's row has the pseudonyms that its entries will carry: the functions that write most entries copy them.
ALTER TABLE channels ADD COLUMN person uuid, ADD COLUMN client uuid;
COMMENT ON COLUMN channels.person IS 'The pseudonym of its subject, when that is a person';
COMMENT ON COLUMN channels.client IS 'The pseudonym of its client';

CREATE FUNCTION channel_pseudonyms() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    p persons := person_of(NEW.org_id, NEW.kind, NEW.subject);
BEGIN
    NEW.person := CASE WHEN NEW.kind = 'user' THEN p.person END;
    NEW.client := hmac128(p.inner_key, p.outer_key, 'client ' || NEW.client_id);
    RETURN NEW;
END $$;
COMMENT ON FUNCTION channel_pseudonyms IS 'Trigger: computes a new channel''s pseudonyms once';
CREATE TRIGGER channels_pseudonyms BEFORE INSERT ON channels FOR EACH ROW WHEN (NEW.kind IN ('user', 'anonymous'))
    EXECUTE FUNCTION channel_pseudonyms();
DO $$
BEGIN
    PERFORM person_of(c.org_id, c.kind, c.subject) FROM (SELECT DISTINCT x.org_id, x.kind, x.subject FROM channels x) c;
END $$;
UPDATE channels c SET person = CASE WHEN c.kind = 'user' THEN p.person END,
                      client = hmac128(p.inner_key, p.outer_key, 'client ' || c.client_id)
  FROM persons p WHERE p.org_id = c.org_id AND p.realm = c.kind AND p.subject = c.subject;

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
    RETURN QUERY
    WITH found AS (
        SELECT i.n::integer AS n, i.op, i.org, i.channel, i.request, i.client, i.key, i.officer,
               c.channel_id IS NOT NULL AS open, o.state, c.kind, c.subject, c.person,
               CASE WHEN c.client_id = i.client THEN c.client END AS client_pseudonym,
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
        -- With pseudonyms from the channel's row, so that the trigger has nothing to do.
        INSERT INTO entries (org_id, at, op_id, verdict, action, kind, subject, on_behalf, client_id, person, client,
                             channel_id, resource_id, key_ids, path, request_id)
        SELECT j.org, v_now, j.op, j.verdict, 'key.get', j.kind, CASE WHEN j.person IS NULL THEN j.subject END, j.behalf,
               CASE WHEN j.client_pseudonym IS NULL THEN j.client END, j.person, j.client_pseudonym, j.channel,
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

-- A repeated operation is answered with the names that it was answered with at first.
CREATE OR REPLACE FUNCTION first_run(p_org uuid, p_op uuid, p_action text, p_channel uuid, p_resource uuid DEFAULT NULL,
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
    IF e.detail ? 'authorizations' THEN
        e.detail := with_names(e.org_id, e.detail);
    END IF;
    RETURN e;
END $$;

-- ---------------------------------------------------------------------------------------------------- leaves

-- Inlined by the planner.  A member that is NULL is absent; a later version adds members, always absent from old entries.
CREATE FUNCTION entry_leaf(e entries) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN '{"v":1,"org":"' || e.org_id || '","entry":' || e.entry_id
    || ',"at":' || (date_part('epoch', e.at) * 1000000)::bigint
    || ',"op":"' || e.op_id::text || '","action":' || to_json(e.action)::text || ',"verdict":' || e.verdict
    || coalesce(',"kind":' || to_json(e.kind)::text, '')
    || coalesce(',"person":"' || e.person::text || '"', '')
    || coalesce(',"subject":' || to_json(e.subject)::text, '')
    || coalesce(',"behalf":"' || e.behalf_person::text || '"', '')
    || coalesce(',"client":"' || e.client::text || '"', '')
    || coalesce(',"channel":"' || e.channel_id::text || '"', '')
    || coalesce(',"resource":"' || e.resource_id::text || '"', '')
    || CASE WHEN e.key_ids IS NULL THEN ''
            WHEN cardinality(e.key_ids) <= 512 THEN ',"keys":' || array_to_json(e.key_ids)::text
            ELSE ',"keys":{"count":' || cardinality(e.key_ids) || ',"sha256":"'
                 || encode(sha256(convert_to(array_to_string(e.key_ids, ','), 'UTF8')), 'hex') || '"}' END
    || coalesce(',"path":' || array_to_json(e.path)::text, '')
    || coalesce(',"request":' || to_json(e.request_id)::text, '')
    || CASE WHEN e.detail IS NULL THEN ''
            WHEN octet_length(e.detail::text) <= 32768 THEN ',"detail":' || e.detail::text
            ELSE ',"detail":{"bytes":' || octet_length(e.detail::text) || ',"sha256":"'
                 || encode(sha256(convert_to(e.detail::text, 'UTF8')), 'hex') || '"}' END
    || '}';
COMMENT ON FUNCTION entry_leaf IS 'An entry as its leaf in the log: canonical JSON, see kms/LOG.md';

CREATE FUNCTION leaf_hash(p_leaf text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256('\x00'::bytea || convert_to(p_leaf, 'UTF8'));
COMMENT ON FUNCTION leaf_hash IS 'RFC 9162 section 2.1.1: SHA-256(0x00 || leaf)';

CREATE TABLE log_cursor (
    org_id uuid PRIMARY KEY,
    xact bigint NOT NULL,
    entry_id bigint NOT NULL
);
COMMENT ON TABLE log_cursor IS 'One row: all entries up to here, by (xact, entry_id), have their place';
COMMENT ON COLUMN log_cursor.org_id IS 'Nil';
COMMENT ON COLUMN log_cursor.xact IS 'Of the last one';
COMMENT ON COLUMN log_cursor.entry_id IS 'Of the last one';
INSERT INTO log_cursor VALUES ('00000000-0000-0000-0000-000000000000', -1, 0);

CREATE TABLE log_stream (
    org_id uuid PRIMARY KEY,
    xact bigint NOT NULL,
    entry_id bigint NOT NULL
);
COMMENT ON TABLE log_stream IS 'One row: up to where the syslog collector has got the entries, by (xact, entry_id)';
COMMENT ON COLUMN log_stream.org_id IS 'Nil';
COMMENT ON COLUMN log_stream.xact IS 'Of the last one';
COMMENT ON COLUMN log_stream.entry_id IS 'Of the last one';
INSERT INTO log_stream VALUES ('00000000-0000-0000-0000-000000000000', -1, 0);

CREATE TABLE logs (
    org_id uuid PRIMARY KEY,
    size bigint NOT NULL CHECK (size >= signed_size),
    signed_size bigint NOT NULL DEFAULT 0 CHECK (signed_size >= 0),
    signed_at timestamptz(3)
) WITH (fillfactor = 50);
COMMENT ON TABLE logs IS 'One log for each organisation, and the installation''s own';
COMMENT ON COLUMN logs.org_id IS 'Organisation; nil: the installation''s own';
COMMENT ON COLUMN logs.size IS 'How many leaves it has';
COMMENT ON COLUMN logs.signed_size IS 'How many the last checkpoint has';
COMMENT ON COLUMN logs.signed_at IS 'When that was signed';

-- Runs of leaves, each as long as what was sequenced together but never over the border of a tile: rows are only ever
-- added, and an entry costs about forty bytes.
CREATE TABLE log_leaves (
    org_id uuid NOT NULL,
    first bigint NOT NULL CHECK (first >= 0),
    last_entry bigint NOT NULL,
    entry_ids bigint[] NOT NULL,
    hashes bytea NOT NULL,
    PRIMARY KEY (org_id, first),
    CHECK (octet_length(hashes) = 32 * cardinality(entry_ids)),
    CHECK (first / 256 = (first + cardinality(entry_ids) - 1) / 256)
);
CREATE INDEX log_leaves_by_entry ON log_leaves (org_id, last_entry);
ALTER TABLE log_leaves ALTER COLUMN hashes SET STORAGE EXTERNAL;
COMMENT ON TABLE log_leaves IS 'Which entry is which leaf, and the leaves'' hashes';
COMMENT ON COLUMN log_leaves.org_id IS 'Whose log';
COMMENT ON COLUMN log_leaves.first IS 'Index of its first leaf';
COMMENT ON COLUMN log_leaves.last_entry IS 'The highest of entry_ids';
COMMENT ON COLUMN log_leaves.entry_ids IS 'The entries, in order';
COMMENT ON COLUMN log_leaves.hashes IS 'Of each, 32 bytes';

CREATE TABLE log_nodes (
    org_id uuid NOT NULL,
    level integer NOT NULL CHECK (level BETWEEN 1 AND 7),
    index bigint NOT NULL CHECK (index >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (org_id, level, index)
);
COMMENT ON TABLE log_nodes IS 'Nodes of the trees whose height is a multiple of eight, as tiles hold them; the leaves are in log_leaves';
COMMENT ON COLUMN log_nodes.org_id IS 'Whose log';
COMMENT ON COLUMN log_nodes.level IS 'Height / 8';
COMMENT ON COLUMN log_nodes.index IS 'From the left';
COMMENT ON COLUMN log_nodes.hash IS 'The node';

CREATE TABLE log_checkpoints (
    org_id uuid NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    peaks bytea NOT NULL,
    note text NOT NULL,
    vkey text NOT NULL,
    first_at timestamptz(3) NOT NULL,
    at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, size)
);
COMMENT ON TABLE log_checkpoints IS 'Signed checkpoints; while a log does not grow its last one is signed again and replaced';
COMMENT ON COLUMN log_checkpoints.org_id IS 'Whose log';
COMMENT ON COLUMN log_checkpoints.size IS 'Leaves';
COMMENT ON COLUMN log_checkpoints.root IS 'Root of the tree';
COMMENT ON COLUMN log_checkpoints.peaks IS 'What the keeper goes on from: the roots of its complete subtrees, the smallest first';
COMMENT ON COLUMN log_checkpoints.note IS 'The note';
COMMENT ON COLUMN log_checkpoints.vkey IS 'Who signed it';
COMMENT ON COLUMN log_checkpoints.first_at IS 'When this size was first signed';
COMMENT ON COLUMN log_checkpoints.at IS 'When this note was';

CREATE TABLE log_cosigned (
    org_id uuid NOT NULL,
    size bigint NOT NULL,
    witness text NOT NULL,
    cosigned_at timestamptz(3) NOT NULL,
    note text NOT NULL,
    PRIMARY KEY (org_id, size, witness, cosigned_at)
);
COMMENT ON TABLE log_cosigned IS 'Checkpoints that a witness has cosigned, as they were then';
COMMENT ON COLUMN log_cosigned.org_id IS 'Whose log';
COMMENT ON COLUMN log_cosigned.size IS 'Leaves';
COMMENT ON COLUMN log_cosigned.witness IS 'The witness''s verifier key';
COMMENT ON COLUMN log_cosigned.cosigned_at IS 'When he says he did';
COMMENT ON COLUMN log_cosigned.note IS 'The note with both signatures';

-- One root for one size, for ever.
CREATE FUNCTION checkpoint_stays() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (NEW.org_id, NEW.size, NEW.root, NEW.peaks, NEW.first_at) IS DISTINCT FROM
       (OLD.org_id, OLD.size, OLD.root, OLD.peaks, OLD.first_at) THEN
        RAISE EXCEPTION 'a checkpoint may be signed again, not changed' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION checkpoint_stays IS 'Trigger: of a checkpoint only the signature may change';
CREATE TRIGGER log_checkpoints_stay BEFORE DELETE OR TRUNCATE ON log_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER log_checkpoints_same BEFORE UPDATE ON log_checkpoints FOR EACH ROW EXECUTE FUNCTION checkpoint_stays();
CREATE TRIGGER log_cosigned_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_cosigned
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER log_leaves_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_leaves
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER log_nodes_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_nodes
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER logs_stay BEFORE DELETE OR TRUNCATE ON logs FOR EACH STATEMENT EXECUTE FUNCTION never();

-- ---------------------------------------------------------------------------------------------------- the keeper's work

CREATE FUNCTION log_sequence(lim integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_cursor log_cursor;
    v_end bigint;
    v_done integer;
    v_xact bigint;
    v_entry bigint;
BEGIN
    -- Held by the session: one keeper at a time, until its connection ends.
    IF NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.granted
                      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                      AND l.classid = hashtextextended('kms.log', 0) >> 32 & 4294967295
                      AND l.objid = hashtextextended('kms.log', 0) & 4294967295)
       AND NOT pg_try_advisory_lock(hashtextextended('kms.log', 0)) THEN
        RETURN -1;
    END IF;
    -- Whatever has a lower transaction id has ended: nothing is still to come before it.
    v_end := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    SELECT * INTO STRICT v_cursor FROM log_cursor;
    IF v_end < v_cursor.xact THEN
        RAISE EXCEPTION 'transaction ids have gone back from % to %: was this database restored from a dump?',
            v_cursor.xact, v_end
            USING HINT = 'Stop the server and move the cluster''s transaction ids on: pg_resetwal --epoch';
    END IF;
    WITH fresh AS MATERIALIZED (
        SELECT e.org_id, e.entry_id, e.xact, leaf_hash(entry_leaf(e)) AS hash
          FROM entries e
         WHERE (e.xact, e.entry_id) > (v_cursor.xact, v_cursor.entry_id) AND e.xact < v_end
         ORDER BY e.xact, e.entry_id LIMIT lim
    ), placed AS (
        SELECT f.*, coalesce(l.size, 0) + row_number() OVER (PARTITION BY f.org_id ORDER BY f.xact, f.entry_id) - 1 AS i
          FROM fresh f LEFT JOIN logs l ON l.org_id = f.org_id
    ), runs AS (
        INSERT INTO log_leaves (org_id, first, last_entry, entry_ids, hashes)
        SELECT p.org_id, min(p.i), max(p.entry_id), array_agg(p.entry_id ORDER BY p.i), string_agg(p.hash, '' ORDER BY p.i)
          FROM placed p GROUP BY p.org_id, p.i / 256
    ), sized AS (
        INSERT INTO logs AS l (org_id, size)
        SELECT p.org_id, max(p.i) + 1 FROM placed p GROUP BY p.org_id
            ON CONFLICT (org_id) DO UPDATE SET size = excluded.size
    )
    SELECT count(*), (array_agg(f.xact ORDER BY f.xact DESC, f.entry_id DESC))[1],
           (array_agg(f.entry_id ORDER BY f.xact DESC, f.entry_id DESC))[1]
      INTO v_done, v_xact, v_entry FROM fresh f;
    IF v_done > 0 THEN
        UPDATE log_cursor SET xact = v_xact, entry_id = v_entry;
    END IF;
    RETURN v_done;
END $$;
COMMENT ON FUNCTION log_sequence IS 'Gives entries their places, in the order of their transactions; -1: another keeper does';

CREATE FUNCTION log_due(burst bigint, busy_ms bigint, idle_ms bigint, lim integer)
RETURNS TABLE (org uuid, size bigint, signed_size bigint, signed_root bytea, peaks bytea, note text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
        SELECT l.org_id, l.size, l.signed_size, c.root, c.peaks, c.note
          FROM logs l LEFT JOIN log_checkpoints c ON c.org_id = l.org_id AND c.size = l.signed_size
         WHERE l.signed_at IS NULL OR l.size - l.signed_size >= burst
            OR (l.size > l.signed_size AND l.signed_at <= v_now - busy_ms * interval '1 millisecond')
            OR l.signed_at <= v_now - idle_ms * interval '1 millisecond'
         ORDER BY l.signed_at NULLS FIRST LIMIT lim;
END $$;
COMMENT ON FUNCTION log_due IS 'Logs that want a checkpoint, and their last one';

CREATE FUNCTION log_hashes(org uuid, first bigint, lim integer)
RETURNS TABLE (first_leaf bigint, hashes bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT l.first, l.hashes FROM log_leaves l
         WHERE l.org_id = log_hashes.org AND l.first + 256 > log_hashes.first AND l.first >= log_hashes.first / 256 * 256
           AND l.first < log_hashes.first + lim AND l.first + octet_length(l.hashes) / 32 > log_hashes.first
         ORDER BY l.first;
END $$;
COMMENT ON FUNCTION log_hashes IS 'The runs that hold these leaves'' hashes';

CREATE FUNCTION log_checkpoint_add(org uuid, size bigint, root bytea, peaks bytea, note text, vkey text, levels integer[],
    indexes bigint[], hashes bytea[])
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_log logs;
    v_root bytea;
BEGIN
    PERFORM check_lengths(cardinality(levels), cardinality(indexes), cardinality(hashes));
    SELECT l.* INTO v_log FROM logs l WHERE l.org_id = log_checkpoint_add.org FOR NO KEY UPDATE;
    IF NOT FOUND OR log_checkpoint_add.size > v_log.size THEN
        RETURN 404001;
    END IF;
    SELECT c.root INTO v_root FROM log_checkpoints c WHERE c.org_id = v_log.org_id AND c.size = log_checkpoint_add.size;
    IF FOUND AND v_root <> log_checkpoint_add.root THEN
        RETURN 409002;
    ELSIF log_checkpoint_add.size < v_log.signed_size THEN
        RETURN 0;       -- another keeper was quicker
    END IF;
    INSERT INTO log_nodes (org_id, level, index, hash)
    SELECT v_log.org_id, n.level, n.index, n.hash FROM unnest(levels, indexes, hashes) AS n(level, index, hash)
        ON CONFLICT DO NOTHING;
    INSERT INTO log_checkpoints AS c (org_id, size, root, peaks, note, vkey, first_at, at)
    VALUES (v_log.org_id, log_checkpoint_add.size, log_checkpoint_add.root, log_checkpoint_add.peaks,
            log_checkpoint_add.note, log_checkpoint_add.vkey, v_now, v_now)
        ON CONFLICT (org_id, size) DO UPDATE SET note = excluded.note, vkey = excluded.vkey, at = excluded.at;
    UPDATE logs l SET signed_size = log_checkpoint_add.size, signed_at = v_now WHERE l.org_id = v_log.org_id;
    RETURN 0;
END $$;
COMMENT ON FUNCTION log_checkpoint_add IS
    'Stores a signed checkpoint and the nodes that became complete with it; 409002: another root was signed for this size';

-- ---------------------------------------------------------------------------------------------------- looking

CREATE FUNCTION log_org(p_name text) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_org uuid := nobody();
BEGIN
    IF p_name IS NOT NULL THEN
        SELECT o.org_id INTO v_org FROM organisations o WHERE o.name = p_name;
    END IF;
    RETURN v_org;
END $$;
COMMENT ON FUNCTION log_org IS 'Whose log is meant: an organisation''s, or the installation''s own (NULL); NULL: unknown';

CREATE FUNCTION log_show(org_name text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_org uuid := log_org(log_show.org_name);
BEGIN
    RETURN (SELECT jsonb_build_object('org', v_org, 'org_name', log_show.org_name, 'size', coalesce(l.size, 0),
                'signed_size', coalesce(l.signed_size, 0), 'signed', ms(l.signed_at), 'note', c.note, 'vkey', c.vkey,
                'checkpoints', (SELECT count(*) FROM log_checkpoints x WHERE x.org_id = v_org),
                'cosigned', (SELECT count(*) FROM log_cosigned x WHERE x.org_id = v_org))
              FROM (SELECT 1) one LEFT JOIN logs l ON l.org_id = v_org
              LEFT JOIN log_checkpoints c ON c.org_id = l.org_id AND c.size = l.signed_size
             WHERE v_org IS NOT NULL);
END $$;
COMMENT ON FUNCTION log_show IS 'A log: its size and its last checkpoint; NULL: no such organisation';

CREATE FUNCTION log_notes(org uuid, after bigint, lim integer) RETURNS TABLE (size bigint, note text, vkey text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- All of a size together: a page ends between two sizes.
    RETURN QUERY
        WITH page AS (SELECT c.size, c.note, c.vkey FROM log_checkpoints c
                       WHERE c.org_id = log_notes.org AND c.size > log_notes.after ORDER BY c.size LIMIT lim)
        SELECT x.size, x.note, x.vkey
          FROM (SELECT g.size, g.note, g.vkey, g.cosigned_at, g.witness
                  FROM (SELECT y.*, (SELECT p.vkey FROM page p WHERE p.size = y.size) AS vkey FROM log_cosigned y
                         WHERE y.org_id = log_notes.org AND y.size IN (SELECT p.size FROM page p)) g
                UNION ALL SELECT p.size, p.note, p.vkey, NULL, NULL FROM page p) x
         ORDER BY x.size, x.cosigned_at NULLS LAST, x.witness;
END $$;
COMMENT ON FUNCTION log_notes IS 'Checkpoints of sizes above a number, cosigned ones first';

CREATE FUNCTION log_nodes_get(org uuid, level integer, first bigint, lim integer) RETURNS TABLE (index bigint, hash bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT n.index, n.hash FROM log_nodes n
         WHERE n.org_id = log_nodes_get.org AND n.level = log_nodes_get.level AND n.index >= log_nodes_get.first
           AND n.index < log_nodes_get.first + lim
         ORDER BY n.index;
END $$;
COMMENT ON FUNCTION log_nodes_get IS 'Nodes of level 1 and above';

CREATE FUNCTION log_entries(org uuid, first bigint, lim integer) RETURNS TABLE (index bigint, entry bigint, leaf text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT l.first + u.n - 1, u.id, entry_leaf(e)
          FROM log_leaves l CROSS JOIN LATERAL unnest(l.entry_ids) WITH ORDINALITY AS u(id, n)
          LEFT JOIN entries e ON e.org_id = l.org_id AND e.entry_id = u.id
         WHERE l.org_id = log_entries.org AND l.first >= log_entries.first / 256 * 256
           AND l.first < log_entries.first + lim
           AND l.first + u.n - 1 >= log_entries.first AND l.first + u.n - 1 < log_entries.first + lim
         ORDER BY 1;
END $$;
COMMENT ON FUNCTION log_entries IS 'Leaves, made anew from the entries; leaf NULL: the entry is gone';

CREATE FUNCTION log_find(org uuid, entry bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_index bigint;
BEGIN
    SELECT l.first + array_position(l.entry_ids, entry) - 1 INTO v_index
      FROM log_leaves l
     WHERE l.org_id = log_find.org AND l.last_entry >= log_find.entry AND log_find.entry = ANY (l.entry_ids)
     ORDER BY l.last_entry LIMIT 1;
    RETURN v_index;
END $$;
COMMENT ON FUNCTION log_find IS 'Which leaf an entry is; NULL: none yet';

CREATE FUNCTION log_strays(org uuid, lim integer) RETURNS TABLE (entry bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_cursor log_cursor;
BEGIN
    SELECT * INTO STRICT v_cursor FROM log_cursor;
    RETURN QUERY
        SELECT e.entry_id FROM entries e
         WHERE e.org_id = log_strays.org AND (e.xact, e.entry_id) <= (v_cursor.xact, v_cursor.entry_id)
           AND NOT EXISTS (SELECT FROM log_leaves l CROSS JOIN LATERAL unnest(l.entry_ids) AS u(id)
                            WHERE l.org_id = log_strays.org AND u.id = e.entry_id AND l.last_entry >= e.entry_id)
         ORDER BY e.entry_id LIMIT lim;
END $$;
COMMENT ON FUNCTION log_strays IS 'Entries that should have a place and have none: put in behind the server''s back';

CREATE FUNCTION log_stream_next(lim integer)
RETURNS TABLE (xact bigint, entry bigint, at_us bigint, verdict integer, action text, leaf text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_from log_stream;
    v_to log_cursor;
BEGIN
    SELECT * INTO STRICT v_from FROM log_stream;
    SELECT * INTO STRICT v_to FROM log_cursor;
    RETURN QUERY
        SELECT e.xact, e.entry_id, (date_part('epoch', e.at) * 1000000)::bigint, e.verdict, e.action, entry_leaf(e)
          FROM entries e
         WHERE (e.xact, e.entry_id) > (v_from.xact, v_from.entry_id) AND (e.xact, e.entry_id) <= (v_to.xact, v_to.entry_id)
         ORDER BY e.xact, e.entry_id LIMIT lim;
END $$;
COMMENT ON FUNCTION log_stream_next IS 'Entries that have their place and that the collector has not got';

CREATE FUNCTION log_stream_done(xact bigint, entry bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    UPDATE log_stream s SET xact = log_stream_done.xact, entry_id = log_stream_done.entry
     WHERE (s.xact, s.entry_id) < (log_stream_done.xact, log_stream_done.entry);
END $$;
COMMENT ON FUNCTION log_stream_done IS 'The collector has got all up to here';

CREATE FUNCTION log_cosign(op uuid, org uuid, size bigint, witness text, at_ms bigint, note text, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_before record;
BEGIN
    SELECT * INTO v_before FROM done_before(org, op, 'audit.cosign');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
    ELSIF NOT EXISTS (SELECT FROM log_checkpoints c WHERE c.org_id = org AND c.size = log_cosign.size) THEN
        verdict := 404001;
        result := jsonb_build_object('why', 'no checkpoint of this size was signed');
        PERFORM record_admin(org, op, actor, 'audit.cosign', verdict, result);
    ELSE
        INSERT INTO log_cosigned (org_id, size, witness, cosigned_at, note)
        VALUES (org, size, witness, ms_to_time(at_ms), note) ON CONFLICT DO NOTHING;
        verdict := 0;
        result := jsonb_build_object('size', size, 'witness', witness, 'cosigned', at_ms);
        PERFORM record_admin(org, op, actor, 'audit.cosign', 0, result);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION log_cosign IS 'Keeps a checkpoint that a witness has cosigned; who calls has verified it';

CREATE FUNCTION person_erase(op uuid, org_name text, subject text, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_org uuid := log_org(org_name);
    v_before record;
    v_person uuid;
    v_channels integer;
BEGIN
    SELECT * INTO v_before FROM done_before(coalesce(v_org, nobody()), op, 'person.erase');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
        RETURN NEXT;
        RETURN;
    END IF;
    DELETE FROM persons p WHERE p.org_id = v_org AND p.subject = person_erase.subject AND p.realm IN ('user', 'operator')
    RETURNING p.person INTO v_person;
    IF v_person IS NULL THEN
        verdict := 404001;
        result := jsonb_build_object('why', 'nobody of this name is known to that log');
        PERFORM record_admin(coalesce(v_org, nobody()), op, actor, 'person.erase', verdict, result);
    ELSE
        -- A channel would tie the pseudonym to the name for another hour.
        DELETE FROM channels c WHERE c.org_id = v_org AND c.kind = 'user' AND c.subject = person_erase.subject;
        GET DIAGNOSTICS v_channels = ROW_COUNT;
        verdict := 0;
        result := jsonb_build_object('person', v_person, 'channels', v_channels);
        PERFORM record_admin(v_org, op, actor, 'person.erase', 0, result);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION person_erase IS 'Destroys a person''s name and key: nobody can tell any more whose the entries are';

CREATE OR REPLACE FUNCTION audit_tail(org_name text, after bigint, lim integer) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_org uuid := log_org(audit_tail.org_name);
BEGIN
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
                   'subject', coalesce(t.subject, p.subject), 'behalf', b.subject,
                   'person', t.person, 'behalf_person', t.behalf_person, 'client', t.client, 'channel', t.channel_id,
                   'resource', t.resource_id, 'keys', t.key_ids, 'path', t.path, 'request', t.request_id))
               || CASE WHEN t.detail IS NULL THEN '{}'
                       WHEN t.detail ? 'authorizations' THEN jsonb_build_object('detail', with_names(t.org_id, t.detail))
                       ELSE jsonb_build_object('detail', t.detail) END
          FROM tail t
          LEFT JOIN persons p ON p.org_id = t.org_id AND p.person = t.person
          LEFT JOIN persons b ON b.org_id = t.org_id AND b.person = t.behalf_person
         ORDER BY t.entry_id;
END $$;

GRANT EXECUTE ON FUNCTION log_sequence, log_due, log_hashes, log_checkpoint_add, log_show, log_notes, log_nodes_get, log_entries,
    log_find, log_strays, log_stream_next, log_stream_done, log_cosign, person_erase TO kms_keeper;
