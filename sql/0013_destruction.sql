-- 0013_destruction.sql - destruction: by time to live, retention and command, with its waiting period; legal holds; keys that fall
-- due together; certificates; and a clock that nobody can hurry.
--
-- What is destroyed loses its blob at once.  So that no old backup opens it either, what expires in one month is wrapped
-- under a wrapping key of its organisation and that month, all of which are wrapped by one key in the HSM, the period key.
-- When the month is over what a matter still holds is moved on, the wrapped copies are removed, and each node destroys the
-- period key and proves it.  An organisation with a main key of its own has no such keys: its main key is what it can destroy.
--
-- Keys of a month have generations of their own (month_generation), which are never an organisation's current one.  What came to be
-- under another generation than it should (reseals) the keeper moves, by compare-and-swap on generation and blob.
--
-- The time that counts is destruction_time(): it goes on as the keepers' monotonic clocks do, and never ahead of the database's
-- clock.  When that is set ahead it follows slowly, an hour in a day; by more than a day, not before an officer confirms the clock.
-- When it is set back so is the time that counts: what was made in between gets the time that it was promised.
--
-- Each run and each deed writes its certificates unsigned in its own transaction; the keeper has them signed.
--
-- Locks, in this order: policy_lock() where an organisation or a command is carried out or a month ends (policy_share() elsewhere),
-- the destruction's row, resources, wrapping_keys, keys, recordings, reseals.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

ALTER TABLE period_keys ALTER COLUMN kcv DROP NOT NULL, ADD COLUMN ended_at timestamptz(3);
COMMENT ON COLUMN period_keys.key_id IS 'Its id in the HSM, written down before the HSM is asked for it';
COMMENT ON COLUMN period_keys.kcv IS 'Check value; NULL: not made yet';
COMMENT ON COLUMN period_keys.ended_at IS 'Since when nothing is under it any more: it goes from each node''s token';

ALTER TABLE resources ADD COLUMN held_by uuid;
ALTER TABLE recordings ADD COLUMN held_by uuid;
COMMENT ON COLUMN resources.held_by IS 'The matter that kept it when its time was over; NULL: none has';
COMMENT ON COLUMN recordings.held_by IS 'Likewise';
DROP INDEX resources_due;
DROP INDEX recordings_due;
CREATE INDEX resources_due ON resources (expires_at) WHERE destroyed_at IS NULL AND expires_at IS NOT NULL AND held_by IS NULL;
CREATE INDEX resources_held ON resources (org_id, held_by) WHERE held_by IS NOT NULL;
CREATE INDEX recordings_due ON recordings (expires_at) WHERE destroyed_at IS NULL AND expires_at IS NOT NULL AND held_by IS NULL;
CREATE INDEX recordings_held ON recordings (org_id, held_by) WHERE held_by IS NOT NULL;
CREATE INDEX content_keys_of_month ON content_keys (generation, org_id, key_id) WHERE generation >= 1000000000 AND blob IS NOT NULL;
CREATE INDEX recordings_of_month ON recordings (generation, org_id, recording_id) WHERE generation >= 1000000000 AND blob IS NOT NULL;

CREATE TABLE holds (
    org_id uuid NOT NULL,
    matter_id uuid NOT NULL,
    since timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, matter_id)
);
COMMENT ON TABLE holds IS 'Matters that keep what would have been destroyed';
COMMENT ON COLUMN holds.org_id IS 'Organisation';
COMMENT ON COLUMN holds.matter_id IS 'Matter';
COMMENT ON COLUMN holds.since IS 'Since when';

CREATE TABLE reseals (
    org_id uuid NOT NULL,
    object_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('key', 'recording')),
    next_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, object_id)
);
CREATE INDEX reseals_in_order ON reseals (next_at, org_id, object_id);
COMMENT ON TABLE reseals IS 'Keys under another wrapping key than that of their month: the keeper moves them';
COMMENT ON COLUMN reseals.org_id IS 'Organisation';
COMMENT ON COLUMN reseals.object_id IS 'The key, or the recording whose key it is';
COMMENT ON COLUMN reseals.kind IS 'Which of them';
COMMENT ON COLUMN reseals.next_at IS 'Not before then';

CREATE TABLE retention_changes (
    org_id uuid NOT NULL,
    type text NOT NULL,
    cursor_id uuid NOT NULL,
    PRIMARY KEY (org_id, type)
);
COMMENT ON TABLE retention_changes IS 'Retention periods that were changed: recordings get their new end, up to the cursor they have it';
COMMENT ON COLUMN retention_changes.org_id IS 'Organisation';
COMMENT ON COLUMN retention_changes.type IS 'recording or transcript';
COMMENT ON COLUMN retention_changes.cursor_id IS 'Up to here it is done';

CREATE TABLE retention_days (
    org_id uuid NOT NULL,
    day date NOT NULL,
    figures jsonb NOT NULL,
    PRIMARY KEY (org_id, day)
);
COMMENT ON TABLE retention_days IS 'What each day''s first preview said';
COMMENT ON COLUMN retention_days.org_id IS 'Organisation';
COMMENT ON COLUMN retention_days.day IS 'Day, UTC';
COMMENT ON COLUMN retention_days.figures IS 'Its figures (preview_figures)';

CREATE TABLE clocks (
    org_id uuid NOT NULL,
    boot_id uuid NOT NULL,
    uptime_ms bigint NOT NULL,
    trusted_at timestamptz(3) NOT NULL,
    seen_at timestamptz(3) NOT NULL,
    held boolean NOT NULL DEFAULT false,
    forgiven interval NOT NULL DEFAULT '0',
    PRIMARY KEY (org_id, boot_id)
);
COMMENT ON TABLE clocks IS 'How much time has gone by, as far as the monotonic clocks of nodes can tell';
COMMENT ON COLUMN clocks.org_id IS 'Nil';
COMMENT ON COLUMN clocks.boot_id IS 'A node since it was started: the kernel''s id';
COMMENT ON COLUMN clocks.uptime_ms IS 'Its clock since then, that goes on while it sleeps';
COMMENT ON COLUMN clocks.trusted_at IS 'What time it was then, at least';
COMMENT ON COLUMN clocks.seen_at IS 'And by the database''s clock';
COMMENT ON COLUMN clocks.held IS 'The database''s clock is ahead by more than a day: nothing is destroyed by it';
COMMENT ON COLUMN clocks.forgiven IS 'How much time was taken to have gone by while no keeper could tell; less by an hour in a day';

CREATE TABLE forgotten (
    org_id uuid NOT NULL,
    node_id uuid NOT NULL,
    object_id uuid NOT NULL,
    at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, node_id, object_id),
    FOREIGN KEY (org_id, node_id) REFERENCES nodes ON DELETE CASCADE
);
COMMENT ON TABLE forgotten IS 'What nodes have done away with: a period key in their token, what their custodians held of an organisation';
COMMENT ON COLUMN forgotten.org_id IS 'Nil';
COMMENT ON COLUMN forgotten.node_id IS 'The node';
COMMENT ON COLUMN forgotten.object_id IS 'The period key''s id, or the organisation''s';
COMMENT ON COLUMN forgotten.at IS 'When';

ALTER TABLE destructions ADD COLUMN looked_at timestamptz(3), ADD COLUMN held_by uuid, ADD COLUMN begun_at timestamptz(3), ADD COLUMN cursor_id uuid;
COMMENT ON COLUMN destructions.looked_at IS 'When it was last tried';
COMMENT ON COLUMN destructions.held_by IS 'The matter that held it then';
COMMENT ON COLUMN destructions.begun_at IS 'Of an organisation: since when it is gone, and its rows are being cleared';
COMMENT ON COLUMN destructions.cursor_id IS 'Up to here they are';
CREATE INDEX destructions_to_try ON destructions (coalesce(looked_at, due_at)) WHERE state = 'waiting';
CREATE TRIGGER destructions_stay BEFORE DELETE OR TRUNCATE ON destructions FOR EACH STATEMENT EXECUTE FUNCTION never();

-- ---------------------------------------------------------------------------------------------------- time

CREATE FUNCTION wall() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN clock_timestamp();
END $$;
COMMENT ON FUNCTION wall IS 'The clock that says what is past its time; tests put another in its place';

CREATE FUNCTION destruction_time() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN least(wall(), (SELECT max(c.trusted_at) FROM clocks c WHERE c.org_id = nobody()));
END $$;
COMMENT ON FUNCTION destruction_time IS 'What time it is, for what is destroyed by it';

CREATE FUNCTION clock_tick(boot uuid, uptime_ms bigint) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := wall();
    v_trusted timestamptz(3);
    v_forgiven interval;
    v_before timestamptz(3);
    v_step interval;        -- how much time has gone by since the last one, whoever's that was
    v_was boolean;
    v_alone boolean;
    v_ahead interval;
    v_held boolean;
    c clocks;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('kms.clock', 0));
    SELECT max(x.trusted_at), bool_or(x.held), max(x.forgiven), bool_and(x.seen_at < v_now - interval '1 minute')
      INTO v_trusted, v_was, v_forgiven, v_alone FROM clocks x WHERE x.org_id = nobody();
    SELECT x.* INTO c FROM clocks x WHERE x.org_id = nobody() AND x.boot_id = boot;
    -- The first one ever has nothing to compare with.
    v_before := v_trusted;
    v_trusted := coalesce(greatest(v_trusted, c.trusted_at + greatest(uptime_ms - c.uptime_ms, 0) * interval '1 millisecond'), v_now);
    v_step := coalesce(v_trusted - v_before, interval '0');
    v_forgiven := greatest(coalesce(v_forgiven, interval '0') - v_step / 24, interval '0');
    v_ahead := v_now - v_trusted;
    IF v_ahead < interval '0' THEN
        -- Set back: the others' clocks go back with it.
        UPDATE clocks x SET trusted_at = x.trusted_at + v_ahead WHERE x.org_id = nobody() AND x.boot_id <> boot;
        v_trusted := v_now;
    ELSIF c.boot_id IS NULL AND v_alone AND v_ahead + v_forgiven <= interval '1 day' THEN
        -- A node was started, and none was there: so long they were away.  A clock that is set ahead at each start, again and
        -- again, is found out: a day is forgiven, and an hour more in each day.
        v_trusted := v_now;
        v_forgiven := v_forgiven + v_ahead;
    ELSIF v_ahead <= interval '1 day' THEN
        v_trusted := v_trusted + least(v_ahead, v_step / 24);
    END IF;
    v_held := v_now - v_trusted > interval '1 day';
    UPDATE clocks x SET held = v_held WHERE x.org_id = nobody() AND x.held <> v_held;
    INSERT INTO clocks AS x (org_id, boot_id, uptime_ms, trusted_at, seen_at, held, forgiven)
    VALUES (nobody(), boot, uptime_ms, v_trusted, v_now, v_held, v_forgiven)
        ON CONFLICT (org_id, boot_id) DO UPDATE SET uptime_ms = excluded.uptime_ms, trusted_at = excluded.trusted_at, seen_at = excluded.seen_at,
            held = excluded.held;
    UPDATE clocks x SET forgiven = v_forgiven WHERE x.org_id = nobody() AND x.forgiven <> v_forgiven;
    DELETE FROM clocks x WHERE x.org_id = nobody() AND x.boot_id <> boot AND x.trusted_at < v_trusted - interval '30 days';
    IF v_held <> coalesce(v_was, false) THEN
        PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', CASE WHEN v_held THEN 'clock.ahead' ELSE 'clock.back' END, 0,
            jsonb_build_object('now', ms(v_now), 'trusted', ms(v_trusted)));
    END IF;
    RETURN jsonb_build_object('now', ms(v_now), 'trusted', ms(v_trusted), 'held', v_held);
END $$;
COMMENT ON FUNCTION clock_tick IS 'A keeper''s monotonic clock beside the database''s; held: the latter is ahead by more than a day, and nothing is destroyed by it';

CREATE FUNCTION clock_show() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object('now', ms(wall()), 'trusted', (SELECT ms(max(c.trusted_at)) FROM clocks c WHERE c.org_id = nobody()),
               'held', coalesce((SELECT bool_or(c.held) FROM clocks c WHERE c.org_id = nobody()), false), 'used', ms(destruction_time()))
$$;
COMMENT ON FUNCTION clock_show IS 'By which time things are destroyed';

CREATE FUNCTION day_text(p_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN to_char(p_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');
COMMENT ON FUNCTION day_text IS 'A time as RFC 3339 has it';

-- ---------------------------------------------------------------------------------------------------- months

CREATE FUNCTION month_first(p_at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN date_trunc('month', p_at AT TIME ZONE 'UTC')::date;
COMMENT ON FUNCTION month_first IS 'The first day of its month, UTC';

CREATE FUNCTION month_generation(p_month date) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1000000000 + date_part('year', p_month)::integer * 12 + date_part('month', p_month)::integer - 1;
COMMENT ON FUNCTION month_generation IS 'The generation of a month''s wrapping key: far from those that are counted';

-- What is kept beyond its month goes with the present one; what lives longer than ten years is wrapped as what lives for ever.
CREATE FUNCTION month_of(p_org uuid, p_expires timestamptz, p_now timestamptz) RETURNS date LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_expires IS NULL OR p_expires > p_now + interval '10 years'
       OR NOT EXISTS (SELECT FROM organisations o WHERE o.org_id = p_org AND o.main_key_id IS NULL AND o.state <> 'destroyed') THEN
        RETURN NULL;
    END IF;
    RETURN month_first(greatest(p_expires, p_now));
END $$;
COMMENT ON FUNCTION month_of IS 'Under which month''s wrapping key belongs what expires then; NULL: under the ordinary one';

-- A generation that ends is refused here an hour and more before it goes (period_end): nobody writes under it then.
CREATE OR REPLACE FUNCTION generation_current(p_org uuid, p_generation integer) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_generation < 1000000000 THEN
        RETURN EXISTS (SELECT FROM organisations o WHERE o.org_id = p_org AND o.generation = p_generation);
    END IF;
    RETURN EXISTS (SELECT FROM organisations o JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = p_generation
                    WHERE o.org_id = p_org AND o.main_key_id IS NULL AND o.state <> 'destroyed'
                      AND w.destroyed_at IS NULL AND w.month >= month_first(wall()));
END $$;
COMMENT ON FUNCTION generation_current IS 'Are new keys wrapped under this one: the organisation''s current, or that of a month that is not over?';

CREATE FUNCTION mint_under(orgs uuid[], resources uuid[], untils bigint[], types text[])
RETURNS TABLE (n integer, verdict integer, generation integer, root uuid, wrapped bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := wall();
BEGIN
    PERFORM check_lengths(cardinality(orgs), cardinality(resources), cardinality(untils), cardinality(types));
    RETURN QUERY
        SELECT i.n::integer, CASE resource_code(i.resource) WHEN 403010 THEN 403010 ELSE 0 END, w.generation, w.root_id, w.wrapped
          FROM unnest(orgs, resources, untils, types) WITH ORDINALITY AS i(org, resource, until, type, n)
          LEFT JOIN kms.resources r ON r.org_id = i.org AND r.resource_id = i.resource
         CROSS JOIN LATERAL (
               SELECT least(r.expires_at, v_now + nullif(i.until, 0) * interval '1 millisecond',
                   v_now + CASE WHEN i.type IN ('recording', 'transcript')
                       THEN nullif(setting(i.org, 'retention.' || i.type)::bigint, 0) END * interval '1 millisecond') AS expires OFFSET 0) e
          LEFT JOIN wrapping_keys w ON w.org_id = i.org AND w.generation = month_generation(month_of(i.org, e.expires, v_now))
                                   AND w.destroyed_at IS NULL
         ORDER BY i.n;
END $$;
COMMENT ON FUNCTION mint_under IS
    'The wrapping key of the month in which a new key will expire: with its resource, in so many ms, with its type''s retention; generation NULL: the ordinary one. 403010: not even made, it is for a zero-trust meeting';

CREATE FUNCTION reseal_ask(p_org uuid, p_object uuid, p_kind text, p_generation integer, p_expires timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_month date := month_of(p_org, p_expires, wall());
BEGIN
    IF p_generation IS DISTINCT FROM month_generation(v_month) AND (v_month IS NOT NULL OR p_generation >= 1000000000) THEN
        INSERT INTO reseals (org_id, object_id, kind, next_at) VALUES (p_org, p_object, p_kind, clock_timestamp()) ON CONFLICT DO NOTHING;
    END IF;
END $$;
COMMENT ON FUNCTION reseal_ask IS 'Asks the keeper to move a key, if it is not where it belongs';

CREATE OR REPLACE FUNCTION key_bound() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_security text;
    v_expires timestamptz(3);
BEGIN
    SELECT r.security, r.expires_at INTO v_security, v_expires FROM resources r WHERE r.org_id = NEW.org_id AND r.resource_id = NEW.resource_id;
    IF v_security = 'zero-trust' THEN
        RAISE EXCEPTION 'a zero-trust meeting has no keys here' USING ERRCODE = 'insufficient_privilege';
    END IF;
    NEW.bound_xact := pg_current_xact_id()::text::bigint;
    IF v_expires IS NOT NULL OR NEW.generation >= 1000000000 THEN
        PERFORM reseal_ask(NEW.org_id, NEW.key_id, 'key', NEW.generation, v_expires);
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION key_bound IS 'Trigger: notes which transaction bound a key, and whether it must be moved to its month''s wrapping key; to a zero-trust meeting none can be';

CREATE FUNCTION recording_ends() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    -- No later than its container.
    PERFORM reseal_ask(NEW.org_id, NEW.recording_id, 'recording', NEW.generation,
        least(NEW.expires_at, (SELECT r.expires_at FROM resources r WHERE r.org_id = NEW.org_id AND r.resource_id = NEW.resource_id)));
    RETURN NULL;
END $$;
COMMENT ON FUNCTION recording_ends IS 'Trigger: a recording''s key belongs under the wrapping key of its month';
CREATE TRIGGER recordings_end AFTER INSERT OR UPDATE OF expires_at ON recordings FOR EACH ROW WHEN (NEW.blob IS NOT NULL) EXECUTE FUNCTION recording_ends();

CREATE FUNCTION retention_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
BEGIN
    INSERT INTO retention_changes (org_id, type, cursor_id) VALUES (NEW.org_id, substr(NEW.name, 11), nobody())
        ON CONFLICT (org_id, type) DO UPDATE SET cursor_id = nobody();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION retention_changed IS 'Trigger: a new retention period is for the recordings that are there as well';
CREATE TRIGGER settings_retention AFTER INSERT OR UPDATE ON settings FOR EACH ROW WHEN (NEW.name LIKE 'retention.%') EXECUTE FUNCTION retention_changed();

-- ---------------------------------------------------------------------------------------------------- holds

CREATE FUNCTION holds_on(p_org uuid, p_resource uuid, p_now timestamptz) RETURNS matters[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_list matters[];
BEGIN
    IF NOT EXISTS (SELECT FROM matters m WHERE m.org_id = p_org AND m.state = 'open') THEN
        RETURN '{}';
    END IF;
    -- Whom hold_of() means.
    SELECT array_agg(m ORDER BY m.expires_at DESC, m.matter_id) INTO v_list
      FROM resources r JOIN matters m ON m.org_id = r.org_id AND r.kind = ANY (m.kinds) AND m.state = 'open'
     WHERE r.org_id = p_org AND r.resource_id = p_resource AND matter_holds(m, p_now)
       AND (r.creator = ANY (m.custodians) OR hold_reaches(p_org, p_resource, m.custodians, m.approved_at));
    RETURN coalesce(v_list, '{}');
END $$;
COMMENT ON FUNCTION holds_on IS 'Open matters that cover a resource, whatever their time is about';

CREATE FUNCTION held_at(p_matters matters[], p_at timestamptz) RETURNS uuid LANGUAGE sql STABLE
RETURN (SELECT m.matter_id FROM unnest(p_matters) m WHERE p_at >= m.window_from AND p_at < m.window_to LIMIT 1);
COMMENT ON FUNCTION held_at IS 'Which of these matters holds what was bound or recorded then; NULL: none';

CREATE FUNCTION target_held(p_org uuid, p_kind text, p_target uuid, p_now timestamptz) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_matters matters[];
    v_matter uuid;
BEGIN
    CASE p_kind
    WHEN 'key' THEN
        SELECT hold_of(k.org_id, k.resource_id, k.bound_at, p_now) INTO v_matter FROM content_keys k
         WHERE k.org_id = p_org AND k.key_id = p_target AND k.resource_id IS NOT NULL;
        IF v_matter IS NULL THEN    -- nor the key that the message of a held recording is encrypted to
            SELECT hold_of(m.org_id, m.resource_id, m.created_at, p_now) INTO v_matter FROM content_keys k
              JOIN recordings m ON m.org_id = k.org_id AND m.resource_id = k.resource_id AND m.blob IS NOT NULL
             WHERE k.org_id = p_org AND k.key_id = p_target AND k.blob IS NOT NULL AND recording_key(m) = k.key_id
               AND hold_of(m.org_id, m.resource_id, m.created_at, p_now) IS NOT NULL LIMIT 1;
        END IF;
    WHEN 'recording' THEN
        SELECT hold_of(m.org_id, m.resource_id, m.created_at, p_now) INTO v_matter FROM recordings m
         WHERE m.org_id = p_org AND m.recording_id = p_target;
    WHEN 'resource' THEN
        v_matters := holds_on(p_org, p_target, p_now);
        IF cardinality(v_matters) > 0 THEN
            SELECT x.matter INTO v_matter FROM (
                SELECT held_at(v_matters, k.bound_at) AS matter FROM content_keys k
                 WHERE k.org_id = p_org AND k.resource_id = p_target AND k.blob IS NOT NULL
                UNION ALL SELECT held_at(v_matters, m.created_at) FROM recordings m
                 WHERE m.org_id = p_org AND m.resource_id = p_target AND m.blob IS NOT NULL) x
             WHERE x.matter IS NOT NULL LIMIT 1;
        END IF;
    WHEN 'organisation' THEN
        SELECT m.matter_id INTO v_matter FROM matters m WHERE m.org_id = p_org AND matter_holds(m, p_now) ORDER BY m.expires_at DESC LIMIT 1;
    END CASE;
    RETURN v_matter;
END $$;
COMMENT ON FUNCTION target_held IS 'The open matter that stands in the way of destroying this; NULL: none';

-- ---------------------------------------------------------------------------------------------------- certificates

CREATE TYPE destroyed AS (org uuid, certificate uuid, kind text, id uuid, generation integer);
COMMENT ON TYPE destroyed IS 'Something that was destroyed, and on which certificate it belongs';

CREATE FUNCTION certified_ids(p_kind text, p_ids uuid[], p_list boolean) RETURNS text LANGUAGE sql STABLE
RETURN CASE WHEN p_ids IS NULL THEN '' ELSE p_kind || 's ' || cardinality(p_ids) || ' '
    || encode(sha256(convert_to((SELECT string_agg(i || E'\n', '' ORDER BY i) FROM unnest(p_ids) i), 'UTF8')), 'hex') || E'\n'
    || CASE WHEN p_list THEN (SELECT string_agg(p_kind || ' ' || i || E'\n', '' ORDER BY i) FROM unnest(p_ids) i) ELSE '' END END;
COMMENT ON FUNCTION certified_ids IS 'How many, SHA-256 of their sorted ids each ended by a line feed, and the ids when they are few';

CREATE FUNCTION certified_officers(p_org uuid, p_approval uuid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_text text := '';
    a approvals;
    v record;
BEGIN
    SELECT x.* INTO a FROM approvals x WHERE x.org_id = p_org AND x.approval_id = p_approval;
    IF FOUND THEN
        v_text := format(E'approval %s\nrequested %s %s\n', a.approval_id, (person_of(p_org, 'operator', a.requested_by)).person, day_text(a.created_at));
        FOR v IN SELECT x.officer, x.at FROM approval_votes x
                  WHERE x.org_id = p_org AND x.approval_id = p_approval ORDER BY x.at, x.uid LIMIT 16
        LOOP
            v_text := v_text || format(E'approved %s %s\n', (person_of(p_org, 'operator', v.officer)).person, day_text(v.at));
        END LOOP;
    END IF;
    RETURN v_text;
END $$;
COMMENT ON FUNCTION certified_officers IS 'Who agreed, by the pseudonyms that entries of this log have for them';

-- The signer takes no more than 4096 bytes: ids are listed while they are few, and counted in any case.
CREATE FUNCTION certify(p_org uuid, p_certificate uuid, p_now timestamptz, p_why text, p_more text, p_gone destroyed[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_list boolean := cardinality(p_gone) <= 24;
    v_text text;
    v_under text;
BEGIN
    SELECT string_agg(format(E'under %s %s %s %s %s\n', w.generation, encode(w.kcv, 'hex'), coalesce(to_char(w.month, 'YYYY-MM'), '-'), w.root_id,
                             CASE WHEN w.destroyed_at IS NULL THEN 'kept' ELSE 'destroyed' END), '' ORDER BY w.generation)
      INTO v_under
      FROM (SELECT x.* FROM wrapping_keys x WHERE x.org_id = p_org AND x.generation IN (SELECT g.generation FROM unnest(p_gone) g)
             ORDER BY x.generation LIMIT 10) w;
    v_text := format(E'kms destruction certificate 1\ncertificate %s\norganisation %s\ntime %s\nwhy %s\n', p_certificate, p_org, day_text(p_now), p_why)
        || p_more;
    SELECT v_text || coalesce(string_agg(certified_ids(x.kind, x.ids, v_list), '' ORDER BY x.kind DESC), '') INTO v_text
      FROM (SELECT g.kind, array_agg(g.id) AS ids FROM unnest(p_gone) g GROUP BY g.kind) x;
    v_text := v_text || coalesce(v_under, '');
    INSERT INTO certificates (org_id, certificate_id, text, created_at) VALUES (p_org, p_certificate, v_text, p_now);
    PERFORM record_admin(p_org, gen_random_uuid(), 'keeper', 'certificate.add', 0, jsonb_build_object('certificate', p_certificate,
        'sha256', encode(sha256(convert_to(v_text, 'UTF8')), 'hex'), 'why', p_why));
END $$;
COMMENT ON FUNCTION certify IS 'Writes a certificate, unsigned, and its entry with its hash';

CREATE FUNCTION certificate_stays() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (NEW.org_id, NEW.certificate_id, NEW.text, NEW.created_at) IS DISTINCT FROM (OLD.org_id, OLD.certificate_id, OLD.text, OLD.created_at)
       OR OLD.note IS NOT NULL THEN
        RAISE EXCEPTION 'a certificate is signed once, and never changed' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION certificate_stays IS 'Trigger: what may change of a certificate is that it gets its signature';
CREATE TRIGGER certificates_same BEFORE UPDATE ON certificates FOR EACH ROW EXECUTE FUNCTION certificate_stays();

CREATE FUNCTION certificate_signed(org uuid, certificate uuid, note text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_hash text;
BEGIN
    UPDATE certificates c SET note = certificate_signed.note, signed_at = clock_timestamp()
     WHERE c.org_id = org AND c.certificate_id = certificate AND c.signed_at IS NULL AND left(certificate_signed.note, length(c.text) + 1) = c.text || E'\n';
    IF FOUND THEN
        v_hash := encode(sha256(convert_to(certificate_signed.note, 'UTF8')), 'hex');
        PERFORM record_admin(org, gen_random_uuid(), 'keeper', 'certificate.sign', 0, jsonb_build_object('certificate', certificate, 'sha256', v_hash));
    END IF;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION certificate_signed IS 'Stores a certificate as the signed note; false: it has one, or this is no note of it';

CREATE FUNCTION certificate_list(org_name text, lim integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN $1 IS NOT NULL AND log_org($1) IS NULL THEN NULL ELSE
           (SELECT coalesce(jsonb_agg(jsonb_build_object('certificate', c.certificate_id, 'org_name', o.name, 'created', ms(c.created_at),
                       'signed', ms(c.signed_at), 'why', substring(c.text FROM '\nwhy ([^\n]*)')) ORDER BY c.created_at DESC, c.certificate_id), '[]')
              FROM (SELECT x.* FROM certificates x WHERE $1 IS NULL OR x.org_id = log_org($1) ORDER BY x.created_at DESC LIMIT $2) c
              LEFT JOIN organisations o ON o.org_id = c.org_id) END
$$;
COMMENT ON FUNCTION certificate_list IS 'The last certificates of an organisation (NULL: of all), the newest first; NULL: no such organisation';

CREATE FUNCTION certificate_show(id uuid) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object('certificate', c.certificate_id, 'org', c.org_id, 'org_name', o.name, 'created', ms(c.created_at), 'signed', ms(c.signed_at),
               'text', c.text, 'note', c.note, 'entry', (SELECT e.entry_id FROM entries e
                   WHERE e.org_id = c.org_id AND e.action = 'certificate.add' AND e.detail ->> 'certificate' = c.certificate_id::text LIMIT 1))
      FROM certificates c LEFT JOIN organisations o ON o.org_id = c.org_id WHERE c.certificate_id = $1
$$;
COMMENT ON FUNCTION certificate_show IS 'A certificate; note NULL: not signed yet; NULL: unknown';
CREATE INDEX certificates_anywhere ON certificates (certificate_id);
CREATE INDEX certificates_newest ON certificates (org_id, created_at DESC);
CREATE INDEX entries_of_certificates ON entries (org_id, (detail ->> 'certificate')) WHERE action = 'certificate.add';

-- ---------------------------------------------------------------------------------------------------- deeds

-- The caller has the resource's row locked.  What a matter holds stays, and the keys that its recordings are encrypted to.
CREATE FUNCTION destroy_resource(p_org uuid, p_resource uuid, p_now timestamptz, p_certificate uuid, p_limit integer,
    OUT gone destroyed[], OUT keys uuid[], OUT recordings uuid[], OUT left_over boolean, OUT matter uuid)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    v_matters matters[] := holds_on(p_org, p_resource, p_now);
    v_kept uuid[] := '{}';
    v_more destroyed[];
BEGIN
    IF cardinality(v_matters) > 0 THEN
        SELECT coalesce(array_agg(DISTINCT recording_key(m)), '{}') INTO v_kept FROM kms.recordings m
         WHERE m.org_id = p_org AND m.resource_id = p_resource AND m.blob IS NOT NULL AND held_at(v_matters, m.created_at) IS NOT NULL;
    END IF;
    WITH due AS MATERIALIZED (
        SELECT x.key_id FROM content_keys x
         WHERE x.org_id = p_org AND x.resource_id = p_resource AND x.blob IS NOT NULL
           AND (cardinality(v_matters) = 0 OR (held_at(v_matters, x.bound_at) IS NULL AND x.key_id <> ALL (v_kept)))
         ORDER BY x.key_id LIMIT p_limit FOR UPDATE),
         done AS (
        UPDATE content_keys k SET blob = NULL, destroyed_at = p_now FROM due d WHERE k.org_id = p_org AND k.key_id = d.key_id
        RETURNING k.key_id, k.generation)
    SELECT array_agg(ROW(p_org, p_certificate, 'key', d.key_id, d.generation)::destroyed), array_agg(d.key_id ORDER BY d.key_id) INTO gone, keys FROM done d;
    WITH due AS MATERIALIZED (
        SELECT x.recording_id FROM kms.recordings x
         WHERE x.org_id = p_org AND x.resource_id = p_resource AND x.blob IS NOT NULL
           AND (cardinality(v_matters) = 0 OR held_at(v_matters, x.created_at) IS NULL)
         ORDER BY x.recording_id LIMIT p_limit FOR UPDATE),
         done AS (
        UPDATE kms.recordings m SET blob = NULL, iv = NULL, aad = NULL, loc = NULL, tag = NULL, destroyed_at = p_now, held_by = NULL
          FROM due d WHERE m.org_id = p_org AND m.recording_id = d.recording_id
        RETURNING m.recording_id, m.generation)
    SELECT array_agg(ROW(p_org, p_certificate, 'recording', d.recording_id, d.generation)::destroyed), array_agg(d.recording_id ORDER BY d.recording_id)
      INTO v_more, recordings FROM done d;
    left_over := EXISTS (SELECT FROM content_keys x WHERE x.org_id = p_org AND x.resource_id = p_resource AND x.blob IS NOT NULL)
        OR EXISTS (SELECT FROM kms.recordings x WHERE x.org_id = p_org AND x.resource_id = p_resource AND x.blob IS NOT NULL);
    IF left_over AND cardinality(v_matters) > 0 THEN
        matter := target_held(p_org, 'resource', p_resource, p_now);
    END IF;
    gone := coalesce(gone, '{}') || coalesce(v_more, '{}');
    IF NOT left_over THEN
        UPDATE resources r SET destroyed_at = p_now, held_by = NULL WHERE r.org_id = p_org AND r.resource_id = p_resource;
        gone := gone || ROW(p_org, p_certificate, 'resource', p_resource, NULL)::destroyed;
    END IF;
END $$;
COMMENT ON FUNCTION destroy_resource IS 'Destroys what is in a resource, at most p_limit keys and recordings; matter: which one keeps what is left over';

CREATE FUNCTION destroy_detail(p_certificate uuid, p_recordings uuid[]) RETURNS jsonb LANGUAGE sql IMMUTABLE
RETURN jsonb_build_object('certificate', p_certificate)
    || CASE WHEN p_recordings IS NULL THEN '{}' ELSE jsonb_build_object('recordings', p_recordings) END;
COMMENT ON FUNCTION destroy_detail IS 'What an entry says of a destruction besides keys and resource';

CREATE FUNCTION hold_note(p_org uuid, p_matter uuid, p_kind text, p_target uuid, p_now timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO holds (org_id, matter_id, since) VALUES (p_org, p_matter, p_now) ON CONFLICT DO NOTHING;
    PERFORM record_control(p_org, gen_random_uuid(), 'keeper', p_kind || '.held', 0, jsonb_build_object(p_kind, p_target, 'matter', p_matter),
        CASE WHEN p_kind = 'resource' THEN p_target END, NULL, p_matter);
END $$;
COMMENT ON FUNCTION hold_note IS 'Records that a matter keeps what would have been destroyed';

CREATE OR REPLACE FUNCTION sweep(batch integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_now timestamptz(3) := destruction_time();
    v_channels integer;
    v_proofs integer;
    v_unbound integer;
    v_resources integer := 0;
    v_keys integer := 0;
    v_recordings integer := 0;
    v_due record;
    v_gone destroyed[] := '{}';
    v_why jsonb := '{}';            -- certificate -> [why, organisation]
    v_certificates jsonb := '{}';   -- why and organisation -> certificate
    v_certificate uuid;
    v_matter uuid;
    v_count integer;
    v_period interval;
    v_ids uuid[];
    v_did record;
    v_hold holds;
    v_change retention_changes;
BEGIN
    IF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION 'batch must be positive' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One sweeper on all nodes; whoever comes second has nothing to do.  Nor is there while it is changed what is to be destroyed
    -- (control_do): a matter is open, and a retention longer, when all that was judged before is gone, and the rest stays.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('kms.sweep', 0)) THEN
        RETURN jsonb_build_object('channels', 0, 'unbound_keys', 0, 'resources', 0, 'keys', 0, 'recordings', 0, 'proofs', 0);
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

    WITH due AS MATERIALIZED (
        SELECT x.ctid FROM authorizations_past x WHERE NOT EXISTS (SELECT FROM matters m WHERE m.org_id = x.org_id AND m.state = 'open')
         LIMIT batch FOR UPDATE SKIP LOCKED)
    DELETE FROM authorizations_past p USING due d WHERE p.ctid = d.ctid;

    -- What a matter kept is due again when the matter has ended.
    FOR v_hold IN SELECT x.* FROM holds x LOOP
        CONTINUE WHEN EXISTS (SELECT FROM matters m WHERE m.org_id = v_hold.org_id AND m.matter_id = v_hold.matter_id AND matter_holds(m, v_now));
        WITH due AS MATERIALIZED (
            SELECT x.org_id, x.resource_id FROM resources x WHERE x.org_id = v_hold.org_id AND x.held_by = v_hold.matter_id
             LIMIT batch FOR NO KEY UPDATE SKIP LOCKED)
        UPDATE resources r SET held_by = NULL FROM due d WHERE r.org_id = d.org_id AND r.resource_id = d.resource_id;
        WITH due AS MATERIALIZED (
            SELECT x.org_id, x.recording_id FROM recordings x WHERE x.org_id = v_hold.org_id AND x.held_by = v_hold.matter_id
             LIMIT batch FOR NO KEY UPDATE SKIP LOCKED)
        UPDATE recordings m SET held_by = NULL FROM due d WHERE m.org_id = d.org_id AND m.recording_id = d.recording_id;
        DELETE FROM holds x WHERE x.org_id = v_hold.org_id AND x.matter_id = v_hold.matter_id
            AND NOT EXISTS (SELECT FROM resources r WHERE r.org_id = v_hold.org_id AND r.held_by = v_hold.matter_id)
            AND NOT EXISTS (SELECT FROM recordings m WHERE m.org_id = v_hold.org_id AND m.held_by = v_hold.matter_id);
    END LOOP;

    -- A resource with very many keys takes several rounds; it counts as destroyed since its time was over anyway.
    FOR v_due IN
        SELECT r.org_id, r.resource_id FROM resources r
         WHERE r.destroyed_at IS NULL AND r.expires_at IS NOT NULL AND r.expires_at <= v_now AND r.held_by IS NULL
         ORDER BY r.expires_at LIMIT batch FOR UPDATE SKIP LOCKED
    LOOP
        v_certificate := coalesce((v_certificates ->> ('ttl ' || v_due.org_id))::uuid, gen_random_uuid());
        SELECT * INTO v_did FROM destroy_resource(v_due.org_id, v_due.resource_id, v_now, v_certificate, batch - v_keys);
        IF cardinality(v_did.gone) > 0 THEN
            v_certificates := v_certificates || jsonb_build_object('ttl ' || v_due.org_id, v_certificate);
            v_why := v_why || jsonb_build_object(v_certificate::text, jsonb_build_array('ttl', v_due.org_id));
            v_gone := v_gone || v_did.gone;
            v_keys := v_keys + coalesce(cardinality(v_did.keys), 0);
            v_recordings := v_recordings + coalesce(cardinality(v_did.recordings), 0);
            v_resources := v_resources + (NOT v_did.left_over)::integer;
            PERFORM record_admin(v_due.org_id, gen_random_uuid(), 'keeper', 'resource.destroy', 0, destroy_detail(v_certificate, v_did.recordings)
                || CASE WHEN v_did.left_over THEN '{"more":true}'::jsonb ELSE '{}' END, v_due.resource_id, v_did.keys);
        END IF;
        EXIT WHEN v_keys >= batch;
        IF v_did.matter IS NOT NULL THEN
            UPDATE resources r SET held_by = v_did.matter WHERE r.org_id = v_due.org_id AND r.resource_id = v_due.resource_id;
            PERFORM hold_note(v_due.org_id, v_did.matter, 'resource', v_due.resource_id, v_now);
        END IF;
    END LOOP;

    -- A retention period that was changed is for what is there as well; until that is done nothing of it is destroyed.
    FOR v_change IN SELECT x.* FROM retention_changes x ORDER BY x.org_id, x.type LIMIT 16 FOR UPDATE SKIP LOCKED LOOP
        v_period := nullif(setting(v_change.org_id, 'retention.' || v_change.type)::bigint, 0) * interval '1 millisecond';
        SELECT max(s.recording_id::text)::uuid, count(*) INTO v_certificate, v_count FROM (
            SELECT m.recording_id FROM recordings m WHERE m.org_id = v_change.org_id AND m.recording_id > v_change.cursor_id ORDER BY m.recording_id LIMIT batch * 10) s;
        UPDATE recordings m SET expires_at = m.created_at + v_period
         WHERE m.org_id = v_change.org_id AND m.recording_id > v_change.cursor_id AND m.recording_id <= v_certificate AND m.type = v_change.type AND m.blob IS NOT NULL
           AND m.expires_at IS DISTINCT FROM m.created_at + v_period;
        IF v_count < batch * 10 THEN
            DELETE FROM retention_changes x WHERE x.org_id = v_change.org_id AND x.type = v_change.type;
        ELSE
            UPDATE retention_changes x SET cursor_id = v_certificate WHERE x.org_id = v_change.org_id AND x.type = v_change.type;
        END IF;
    END LOOP;

    FOR v_due IN
        SELECT m.org_id, m.recording_id, m.resource_id, m.created_at, m.generation FROM recordings m
         WHERE m.destroyed_at IS NULL AND m.expires_at IS NOT NULL AND m.expires_at <= v_now AND m.held_by IS NULL
           AND NOT EXISTS (SELECT FROM retention_changes x WHERE x.org_id = m.org_id AND x.type = m.type)
         ORDER BY m.expires_at LIMIT batch FOR UPDATE SKIP LOCKED
    LOOP
        v_matter := hold_of(v_due.org_id, v_due.resource_id, v_due.created_at, v_now);
        IF v_matter IS NOT NULL THEN
            UPDATE recordings m SET held_by = v_matter WHERE m.org_id = v_due.org_id AND m.recording_id = v_due.recording_id;
            PERFORM hold_note(v_due.org_id, v_matter, 'recording', v_due.recording_id, v_now);
            CONTINUE;
        END IF;
        v_certificate := coalesce((v_certificates ->> ('retention ' || v_due.org_id))::uuid, gen_random_uuid());
        v_certificates := v_certificates || jsonb_build_object('retention ' || v_due.org_id, v_certificate);
        v_why := v_why || jsonb_build_object(v_certificate::text, jsonb_build_array('retention', v_due.org_id));
        UPDATE recordings m SET blob = NULL, iv = NULL, aad = NULL, loc = NULL, tag = NULL, destroyed_at = v_now
         WHERE m.org_id = v_due.org_id AND m.recording_id = v_due.recording_id;
        v_gone := v_gone || ROW(v_due.org_id, v_certificate, 'recording', v_due.recording_id, v_due.generation)::destroyed;
        v_recordings := v_recordings + 1;
        PERFORM record_admin(v_due.org_id, gen_random_uuid(), 'keeper', 'recording.destroy', 0,
            jsonb_build_object('recording', v_due.recording_id, 'certificate', v_certificate), v_due.resource_id);
    END LOOP;

    PERFORM certify((x.value ->> 1)::uuid, x.key::uuid, v_now, x.value ->> 0, '', ARRAY(SELECT g FROM unnest(v_gone) g WHERE g.certificate = x.key::uuid))
       FROM jsonb_each(v_why) x;
    RETURN jsonb_build_object('channels', v_channels, 'unbound_keys', v_unbound, 'resources', v_resources, 'keys', v_keys,
        'recordings', v_recordings, 'proofs', v_proofs);
END $$;
COMMENT ON FUNCTION sweep IS 'Removes what is past its time and held by no matter, at most a batch of each kind, and certifies what it destroyed';

CREATE FUNCTION destruction_step() RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 5000;
COMMENT ON FUNCTION destruction_step IS 'How many keys of a resource are destroyed in one transaction, while all who release wait';

CREATE FUNCTION destroy_target(d destructions, p_now timestamptz, p_certificate uuid,
    OUT verdict integer, OUT why text, OUT keys uuid[], OUT resource uuid, OUT more boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    v_gone destroyed[] := '{}';
    v_recordings uuid[];
    r record;
    v_more text;
BEGIN
    verdict := 0;
    more := false;
    CASE d.kind
    WHEN 'key' THEN
        UPDATE content_keys k SET blob = NULL, destroyed_at = p_now WHERE k.org_id = d.org_id AND k.key_id = d.target AND k.blob IS NOT NULL
        RETURNING k.resource_id, ARRAY[ROW(d.org_id, p_certificate, 'key', k.key_id, k.generation)::destroyed] INTO resource, v_gone;
        keys := CASE WHEN FOUND THEN ARRAY[d.target] END;
    WHEN 'recording' THEN
        PERFORM FROM resources x JOIN recordings m ON m.org_id = x.org_id AND m.resource_id = x.resource_id
          WHERE m.org_id = d.org_id AND m.recording_id = d.target FOR SHARE OF x;
        UPDATE recordings m SET blob = NULL, iv = NULL, aad = NULL, loc = NULL, tag = NULL, destroyed_at = p_now, held_by = NULL
         WHERE m.org_id = d.org_id AND m.recording_id = d.target AND m.blob IS NOT NULL
        RETURNING m.resource_id, ARRAY[ROW(d.org_id, p_certificate, 'recording', m.recording_id, m.generation)::destroyed], ARRAY[m.recording_id]
             INTO resource, v_gone, v_recordings;
    WHEN 'resource' THEN
        -- Waits for who is binding a key to it, and lets nobody begin.
        PERFORM FROM resources x WHERE x.org_id = d.org_id AND x.resource_id = d.target AND (x.destroyed_at IS NULL OR d.begun_at IS NOT NULL) FOR UPDATE;
        IF FOUND THEN
            resource := d.target;
            SELECT * INTO r FROM destroy_resource(d.org_id, d.target, p_now, p_certificate, destruction_step());
            v_gone := r.gone;
            keys := r.keys;
            v_recordings := r.recordings;
            more := r.left_over;
            IF more THEN        -- nobody gets anything of it from now on, nor undoes it
                UPDATE resources x SET destroyed_at = p_now WHERE x.org_id = d.org_id AND x.resource_id = d.target AND x.destroyed_at IS NULL;
                UPDATE destructions x SET begun_at = p_now WHERE x.org_id = d.org_id AND x.destruction_id = d.destruction_id AND x.begun_at IS NULL;
            END IF;
        END IF;
    END CASE;
    IF cardinality(coalesce(v_gone, '{}')) = 0 THEN
        verdict := 409002;
        why := 'it is destroyed already';
        RETURN;
    END IF;
    v_more := format(E'destruction %s\n', d.destruction_id) || certified_officers(d.org_id, d.approval_id);
    PERFORM certify(d.org_id, p_certificate, p_now, 'command', v_more, v_gone);
    IF d.due_at > d.created_at OR d.begun_at IS NOT NULL THEN     -- else the entry of the approval says it
        PERFORM record_control(d.org_id, gen_random_uuid(), 'keeper', d.kind || '.destroy', 0, destroy_detail(p_certificate, v_recordings)
            || jsonb_build_object('destruction', d.destruction_id, 'approval', d.approval_id) || CASE WHEN more THEN '{"more":true}'::jsonb ELSE '{}' END,
            resource, keys, NULL);
    END IF;
END $$;
COMMENT ON FUNCTION destroy_target IS
    'Carries out what waited: a key, a recording, a resource (more: as much of it as at once, again), and certifies it; the caller holds policy_lock() the first time';

-- All at once is that nothing of it opens any more; its rows follow, as many as there are.
CREATE FUNCTION destroy_organisation(d destructions, p_now timestamptz, p_batch integer) RETURNS destructions LANGUAGE plpgsql AS $$
DECLARE
    v_last uuid;
    v_seen integer;
    v_certificate uuid := gen_random_uuid();
    v_text text;
    v_id uuid;
BEGIN
    IF d.begun_at IS NULL THEN
        UPDATE organisations o SET state = 'destroyed' WHERE o.org_id = d.org_id;
        UPDATE wrapping_keys w SET wrapped = NULL, destroyed_at = p_now WHERE w.org_id = d.org_id AND w.destroyed_at IS NULL;
        DELETE FROM channels c WHERE c.org_id = d.org_id;
        DELETE FROM reseals x WHERE x.org_id = d.org_id;
        DELETE FROM retention_changes x WHERE x.org_id = d.org_id;
        DELETE FROM service_orgs x WHERE x.org_id = d.org_id;
        UPDATE rotations x SET state = 'stopped', ended_at = p_now WHERE x.org_id = d.org_id AND x.state = 'running';
        UPDATE purposes p SET enabled = false, changed_at = p_now WHERE p.org_id = d.org_id AND p.enabled;
        PERFORM main_key_close(j, 409002, '{"why":"the organisation is destroyed"}') FROM main_key_jobs j WHERE j.org_id = d.org_id;
        FOR v_id IN SELECT m.main_key_id FROM main_keys m WHERE m.org_id = d.org_id AND m.state NOT IN ('IMPORTING', 'DELETED', 'REMOVEDCLEAN') ORDER BY 1 LOOP
            PERFORM main_key_become(d.org_id, v_id, 'DELETED');
        END LOOP;
        UPDATE destructions x SET begun_at = p_now, cursor_id = nobody() WHERE x.org_id = d.org_id AND x.destruction_id = d.destruction_id RETURNING x.* INTO d;
        PERFORM record_control(d.org_id, gen_random_uuid(), 'keeper', 'org.destroy', 0, jsonb_build_object('destruction', d.destruction_id,
            'approval', d.approval_id, 'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.org_id = d.org_id)));
        RETURN d;
    END IF;
    IF d.cursor_id IS NOT NULL THEN
        SELECT max(s.key_id::text)::uuid, count(*) INTO v_last, v_seen
          FROM (SELECT k.key_id FROM content_keys k WHERE k.org_id = d.org_id AND k.key_id > d.cursor_id ORDER BY k.key_id LIMIT p_batch) s;
        UPDATE content_keys k SET blob = NULL, destroyed_at = d.begun_at
         WHERE k.org_id = d.org_id AND k.key_id > d.cursor_id AND k.key_id <= v_last AND k.blob IS NOT NULL;
        IF v_seen < p_batch THEN
            UPDATE recordings m SET blob = NULL, iv = NULL, aad = NULL, loc = NULL, tag = NULL, destroyed_at = d.begun_at, held_by = NULL
             WHERE m.org_id = d.org_id AND m.blob IS NOT NULL;
            UPDATE resources r SET destroyed_at = d.begun_at, held_by = NULL WHERE r.org_id = d.org_id AND r.destroyed_at IS NULL;
        END IF;
        UPDATE destructions x SET cursor_id = CASE WHEN v_seen = p_batch THEN v_last END
         WHERE x.org_id = d.org_id AND x.destruction_id = d.destruction_id RETURNING x.* INTO d;
        RETURN d;
    END IF;
    -- Every node that runs has dropped what it held of it.
    IF EXISTS (SELECT FROM nodes n WHERE n.org_id = nobody() AND node_alive(n)
                  AND NOT EXISTS (SELECT FROM forgotten f WHERE f.org_id = nobody() AND f.node_id = n.node_id AND f.object_id = d.org_id)) THEN
        RETURN d;
    END IF;
    v_text := format(E'destruction %s\n', d.destruction_id) || certified_officers(d.org_id, d.approval_id);
    SELECT v_text || certified_ids('resource', (SELECT array_agg(r.resource_id) FROM resources r WHERE r.org_id = d.org_id AND r.destroyed_at = d.begun_at), false)
        || certified_ids('recording', (SELECT array_agg(m.recording_id) FROM recordings m WHERE m.org_id = d.org_id AND m.destroyed_at = d.begun_at), false)
        || certified_ids('key', (SELECT array_agg(k.key_id) FROM content_keys k WHERE k.org_id = d.org_id AND k.destroyed_at = d.begun_at), false)
      INTO v_text;
    v_text := v_text || (SELECT format(E'wrapping-keys %s %s\n', count(*),
            encode(sha256(convert_to(string_agg(w.generation || ' ' || encode(w.kcv, 'hex') || E'\n', '' ORDER BY w.generation), 'UTF8')), 'hex'))
                           FROM wrapping_keys w WHERE w.org_id = d.org_id)
        || coalesce((SELECT string_agg(format(E'wrapping-key %s %s %s %s destroyed\n', x.generation, encode(x.kcv, 'hex'), coalesce(to_char(x.month, 'YYYY-MM'), '-'), x.root_id),
                                       '' ORDER BY x.created_at DESC)
                       FROM (SELECT w.* FROM wrapping_keys w WHERE w.org_id = d.org_id ORDER BY w.created_at DESC, w.generation DESC LIMIT 8) x), '');
    PERFORM certify(d.org_id, v_certificate, p_now, 'organisation', v_text, '{}');
    UPDATE destructions x SET state = 'done', ended_at = p_now, certificate_id = v_certificate
     WHERE x.org_id = d.org_id AND x.destruction_id = d.destruction_id RETURNING x.* INTO d;
    RETURN d;
END $$;
COMMENT ON FUNCTION destroy_organisation IS 'The next step of an organisation''s end; the caller holds policy_lock() for the first';

-- What a matter holds is asked about once a minute, and at once when that matter has ended.
CREATE FUNCTION destruction_may(d destructions, p_now timestamptz) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN d.held_by IS NULL OR NOT coalesce(d.looked_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp(), false)
        OR NOT EXISTS (SELECT FROM matters m WHERE m.org_id = d.org_id AND m.matter_id = d.held_by AND matter_holds(m, p_now));
END $$;
COMMENT ON FUNCTION destruction_may IS 'Is it time to look at this command again?';

CREATE FUNCTION destructions_do(batch integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_now timestamptz(3) := destruction_time();
    v_done integer := 0;
    v_more boolean := false;
    v_alone boolean;
    v_matter uuid;
    v_certificate uuid;
    d destructions;
    x record;
BEGIN
    v_alone := EXISTS (SELECT FROM destructions y WHERE y.state = 'waiting' AND y.due_at <= v_now AND y.begun_at IS NULL AND destruction_may(y, v_now));
    IF v_alone THEN
        -- Whoever releases now has ended before it is destroyed.
        PERFORM policy_lock();
        v_more := EXISTS (SELECT FROM destructions y WHERE y.state = 'waiting' AND y.begun_at IS NOT NULL AND y.held_by IS NULL
                             AND (y.kind <> 'organisation' OR y.cursor_id IS NOT NULL));
    ELSE
        PERFORM policy_share();
    END IF;
    -- What has begun, the rows of an organisation that is gone or of a large resource, goes on beside who releases.
    FOR d IN SELECT y.* FROM destructions y WHERE y.state = 'waiting' AND y.due_at <= v_now AND (y.begun_at IS NULL) = v_alone AND destruction_may(y, v_now)
              ORDER BY coalesce(y.looked_at, y.due_at) LIMIT 16 FOR UPDATE SKIP LOCKED
    LOOP
        v_matter := CASE WHEN d.kind <> 'organisation' OR d.begun_at IS NULL THEN target_held(d.org_id, d.kind, d.target, v_now) END;
        UPDATE destructions y SET looked_at = clock_timestamp(), held_by = v_matter WHERE y.org_id = d.org_id AND y.destruction_id = d.destruction_id;
        IF v_matter IS NOT NULL THEN
            IF d.held_by IS DISTINCT FROM v_matter THEN
                PERFORM record_control(d.org_id, gen_random_uuid(), 'keeper', 'destruction.held', 0,
                    jsonb_build_object('destruction', d.destruction_id, 'matter', v_matter), NULL, NULL, v_matter);
            END IF;
            CONTINUE;
        ELSIF d.kind = 'organisation' THEN
            d := destroy_organisation(d, v_now, batch);
            v_more := v_more OR d.cursor_id IS NOT NULL;
            v_done := v_done + (d.state = 'done')::integer;
            EXIT;   -- others need not wait for its rows
        END IF;
        v_certificate := gen_random_uuid();
        SELECT * INTO x FROM destroy_target(d, v_now, v_certificate);
        v_more := v_more OR x.more;
        EXIT WHEN x.more;
        UPDATE destructions y SET state = CASE WHEN x.verdict = 0 THEN 'done' ELSE 'undone' END, ended_at = v_now,
               certificate_id = CASE WHEN x.verdict = 0 THEN v_certificate END
         WHERE y.org_id = d.org_id AND y.destruction_id = d.destruction_id;
        v_done := v_done + 1;
    END LOOP;
    RETURN jsonb_build_object('done', v_done, 'more', v_more OR v_done = 16);
END $$;
COMMENT ON FUNCTION destructions_do IS 'Carries out commands whose waiting period is over and that no matter holds; an organisation''s in steps of a batch of rows';

-- ---------------------------------------------------------------------------------------------------- the keeper's work


-- Its place is not taken again at once: somebody may have the one that was there in hand, and would store under the new one's number.
CREATE FUNCTION month_left_lately(p_org uuid, p_generation integer) RETURNS boolean LANGUAGE sql VOLATILE
RETURN EXISTS (SELECT FROM wrapping_keys w WHERE w.org_id = p_org AND w.generation = p_generation AND w.destroyed_at > clock_timestamp() - interval '1 day');
COMMENT ON FUNCTION month_left_lately IS 'Was this wrapping key of a month removed within a day?';

CREATE FUNCTION month_ask(p_org uuid, p_month date) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    p period_keys;
BEGIN
    IF month_left_lately(p_org, month_generation(p_month)) THEN
        RETURN NULL;
    END IF;
    INSERT INTO period_keys (org_id, month, key_id, created_at) VALUES (nobody(), p_month, gen_random_uuid(), clock_timestamp()) ON CONFLICT DO NOTHING;
    SELECT x.* INTO STRICT p FROM period_keys x WHERE x.org_id = nobody() AND x.month = p_month;
    RETURN CASE WHEN p.ended_at IS NULL THEN jsonb_build_object('org', p_org, 'month', to_char(p_month, 'YYYY-MM'), 'generation', month_generation(p_month),
        'period', p.key_id, 'made', p.kcv IS NOT NULL) END;
END $$;
COMMENT ON FUNCTION month_ask IS 'What a keeper needs to make a month''s wrapping key; the period key''s id is written down; NULL: there is to be none';

CREATE FUNCTION month_holds(p_generation integer, p_org uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM content_keys k WHERE k.generation = p_generation AND k.generation >= 1000000000 AND k.blob IS NOT NULL
                      AND (p_org IS NULL OR k.org_id = p_org))
        OR EXISTS (SELECT FROM recordings m WHERE m.generation = p_generation AND m.generation >= 1000000000 AND m.blob IS NOT NULL
                      AND (p_org IS NULL OR m.org_id = p_org));
END $$;
COMMENT ON FUNCTION month_holds IS 'Is anything under a month''s wrapping keys (of one organisation, or NULL of all)?';

CREATE FUNCTION month_clear(p_generation integer, p_org uuid, p_limit integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO reseals (org_id, object_id, kind, next_at)
    SELECT x.* FROM (
        (SELECT k.org_id, k.key_id, 'key', clock_timestamp() FROM content_keys k
          WHERE k.generation = p_generation AND k.generation >= 1000000000 AND k.blob IS NOT NULL AND (p_org IS NULL OR k.org_id = p_org) LIMIT p_limit)
        UNION ALL
        (SELECT m.org_id, m.recording_id, 'recording', clock_timestamp() FROM recordings m
          WHERE m.generation = p_generation AND m.generation >= 1000000000 AND m.blob IS NOT NULL AND (p_org IS NULL OR m.org_id = p_org) LIMIT p_limit)) x
        ON CONFLICT DO NOTHING;
END $$;
COMMENT ON FUNCTION month_clear IS 'Has what is under a month''s wrapping keys moved (of one organisation, or NULL of all)';

CREATE FUNCTION month_end(p_generation integer, p_org uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF month_holds(p_generation, p_org) THEN
        RETURN false;
    END IF;
    -- Whoever was told that it takes new keys (generation_current), or moves one there, has ended then; and it is looked at again.
    PERFORM policy_lock();
    IF month_holds(p_generation, p_org) THEN
        RETURN false;
    END IF;
    IF p_org IS NULL THEN       -- nor is another one being added (month_key_add)
        PERFORM FROM period_keys p WHERE p.org_id = nobody() AND month_generation(p.month) = p_generation FOR UPDATE;
    END IF;
    UPDATE wrapping_keys w SET wrapped = NULL, destroyed_at = clock_timestamp()
     WHERE w.generation = p_generation AND w.month IS NOT NULL AND w.destroyed_at IS NULL AND (p_org IS NULL OR w.org_id = p_org);
    RETURN true;
END $$;
COMMENT ON FUNCTION month_end IS 'Removes a month''s wrapping keys (of one organisation, or NULL of all) when nothing is under them, and then holds policy_lock()';

CREATE FUNCTION destroy_work(node uuid, ahead boolean, lim integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    v_at timestamptz(3) := clock_timestamp();
    v_now timestamptz(3) := destruction_time();
    v_result jsonb;
    v_moves jsonb := '[]';
    v_wanted jsonb := '{}';     -- organisation and month -> what month_ask() says
    v_ask jsonb;
    v_left jsonb := '[]';       -- months that cannot end yet
    v_month date;
    v_generation integer;
    q record;
    o organisations;
    w wrapping_keys;
    t wrapping_keys;
BEGIN
    -- For every node: what it is to do away with.  A node that starts does it all again, which costs little.
    v_result := jsonb_build_object(
        'destroy', (SELECT coalesce(jsonb_agg(jsonb_build_object('month', to_char(x.month, 'YYYY-MM'), 'key', x.key_id)), '[]') FROM period_keys x
                     WHERE x.org_id = nobody() AND x.ended_at > v_at - interval '400 days'
                       AND NOT EXISTS (SELECT FROM forgotten f WHERE f.org_id = nobody() AND f.node_id = node AND f.object_id = x.key_id)),
        'forget', (SELECT coalesce(jsonb_agg(x.org_id), '[]') FROM destructions x
                    WHERE x.kind = 'organisation' AND x.begun_at > v_at - interval '7 days'
                      AND NOT EXISTS (SELECT FROM forgotten f WHERE f.org_id = nobody() AND f.node_id = node AND f.object_id = x.org_id)));
    IF NOT EXISTS (SELECT FROM keeper_lease l WHERE l.org_id = nobody() AND l.node_id = node AND l.until > v_at) THEN
        RETURN v_result || '{"lead":false}';
    END IF;

    IF NOT ahead THEN
        -- Months that are over, and those of an organisation that has got a main key of its own: it has everything under that.
        FOR q IN (SELECT x.month, month_generation(x.month) AS generation, NULL::uuid AS org, x.key_id FROM period_keys x
                   WHERE x.org_id = nobody() AND x.ended_at IS NULL AND x.month + interval '1 month' + interval '1 hour' < v_now AT TIME ZONE 'UTC')
                 UNION ALL
                 (SELECT x.month, x.generation, x.org_id, NULL FROM organisations y JOIN wrapping_keys x ON x.org_id = y.org_id
                   WHERE y.main_key_id IS NOT NULL AND y.locked = 0 AND x.month IS NOT NULL AND x.destroyed_at IS NULL LIMIT 16)
        LOOP
            IF NOT month_end(q.generation, q.org) THEN
                v_left := v_left || jsonb_build_array(jsonb_build_object('generation', q.generation, 'org', q.org));
                CONTINUE;
            ELSIF q.org IS NULL THEN
                UPDATE period_keys x SET ended_at = v_at WHERE x.org_id = nobody() AND x.month = q.month;
                PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'period.end', 0, jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'key', q.key_id));
            ELSE
                PERFORM record_admin(q.org, gen_random_uuid(), 'keeper', 'wrapping_key.destroy', 0, jsonb_build_object('generation', q.generation, 'month', to_char(q.month, 'YYYY-MM')));
            END IF;
            v_result := v_result || '{"again":true}';
        END LOOP;
        IF v_result ? 'again' THEN
            RETURN v_result || '{"lead":true}';     -- everybody waits for our end
        END IF;
        PERFORM month_clear((x ->> 'generation')::integer, (x ->> 'org')::uuid, 1000) FROM jsonb_array_elements(v_left) x;
    END IF;

    FOR q IN SELECT r.org_id, r.object_id, r.kind FROM reseals r WHERE r.next_at <= v_at ORDER BY r.next_at, r.org_id, r.object_id LIMIT lim LOOP
        SELECT x.* INTO o FROM organisations x WHERE x.org_id = q.org_id;
        SELECT x.generation, x.blob, month_of(q.org_id, x.expires, v_now) AS month INTO t.generation, t.wrapped, v_month FROM (
            SELECT k.generation, k.blob, r.expires_at AS expires FROM content_keys k LEFT JOIN resources r ON r.org_id = k.org_id AND r.resource_id = k.resource_id
             WHERE q.kind = 'key' AND k.org_id = q.org_id AND k.key_id = q.object_id AND k.blob IS NOT NULL
            UNION ALL
            SELECT m.generation, m.blob, least(m.expires_at, r.expires_at) FROM recordings m JOIN resources r ON r.org_id = m.org_id AND r.resource_id = m.resource_id
             WHERE q.kind = 'recording' AND m.org_id = q.org_id AND m.recording_id = q.object_id AND m.blob IS NOT NULL) x;
        v_generation := coalesce(month_generation(v_month), CASE WHEN t.generation >= 1000000000 THEN o.generation ELSE t.generation END);
        IF t.generation IS NULL OR t.generation = v_generation THEN
            DELETE FROM reseals r WHERE r.org_id = q.org_id AND r.object_id = q.object_id;
            CONTINUE;
        END IF;
        SELECT x.* INTO w FROM wrapping_keys x WHERE x.org_id = q.org_id AND x.generation = v_generation AND x.destroyed_at IS NULL;
        v_ask := NULL;
        IF NOT FOUND AND v_month IS NOT NULL THEN
            v_ask := month_ask(q.org_id, v_month);
            v_wanted := v_wanted || CASE WHEN v_ask IS NULL THEN '{}' ELSE jsonb_build_object(q.org_id || to_char(v_month, ' YYYY-MM'), v_ask) END;
        END IF;
        UPDATE reseals r SET next_at = v_at + CASE WHEN o.locked <> 0 OR w.generation IS NULL AND v_ask IS NULL THEN interval '10 minutes' WHEN w.generation IS NULL THEN interval '3 seconds'
            ELSE interval '1 minute' END WHERE r.org_id = q.org_id AND r.object_id = q.object_id;
        CONTINUE WHEN w.generation IS NULL OR o.locked <> 0;
        v_moves := v_moves || coalesce((SELECT jsonb_build_array(jsonb_build_object('org', q.org_id, 'object', q.object_id, 'kind', q.kind,
                'blob', encode(t.wrapped, 'hex'), 'generation', x.generation, 'root', x.root_id, 'wrapped', encode(x.wrapped, 'hex'),
                'to_generation', w.generation, 'to_root', w.root_id, 'to_wrapped', encode(w.wrapped, 'hex')))
              FROM wrapping_keys x WHERE x.org_id = q.org_id AND x.generation = t.generation AND x.destroyed_at IS NULL), '[]');
    END LOOP;

    IF ahead THEN
        -- Where something ends with a month, more will end with the next; and what is recorded today ends when its retention says.
        FOR q IN SELECT x.org_id, x.month FROM (
                     SELECT y.org_id, (y.month + interval '1 month')::date AS month FROM wrapping_keys y
                      WHERE y.month >= month_first(v_now) AND y.destroyed_at IS NULL AND y.month IS NOT NULL
                        AND EXISTS (SELECT FROM content_keys k WHERE k.generation = y.generation AND k.generation >= 1000000000 AND k.org_id = y.org_id AND k.blob IS NOT NULL)
                     UNION
                     SELECT s.org_id, month_first(v_now + s.value::bigint * interval '1 millisecond' + n.n * interval '1 month')
                       FROM settings s CROSS JOIN generate_series(0, 1) AS n(n) WHERE s.name LIKE 'retention.%' AND s.value <> '0') x
                  JOIN organisations y ON y.org_id = x.org_id AND y.main_key_id IS NULL AND y.state <> 'destroyed'
                 WHERE x.month < v_now + interval '10 years'
                   AND NOT EXISTS (SELECT FROM wrapping_keys z WHERE z.org_id = x.org_id AND z.generation = month_generation(x.month) AND z.destroyed_at IS NULL)
                 ORDER BY x.month, x.org_id LIMIT lim
        LOOP
            v_ask := month_ask(q.org_id, q.month);
            v_wanted := v_wanted || CASE WHEN v_ask IS NULL THEN '{}' ELSE jsonb_build_object(q.org_id || to_char(q.month, ' YYYY-MM'), v_ask) END;
        END LOOP;
        PERFORM preview_keep(v_now);
    END IF;
    RETURN v_result || jsonb_build_object('lead', true, 'reseal', v_moves,
        'make', (SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('month', x.value -> 'month', 'key', x.value -> 'period')), '[]') FROM jsonb_each(v_wanted) x WHERE x.value ->> 'made' = 'false'),
        'keys', (SELECT coalesce(jsonb_agg(x.value), '[]') FROM jsonb_each(v_wanted) x WHERE x.value ->> 'made' = 'true'),
        'sign', (SELECT coalesce(jsonb_agg(jsonb_build_object('org', x.org_id, 'certificate', x.certificate_id, 'text', x.text)), '[]')
                   FROM (SELECT c.* FROM certificates c WHERE c.signed_at IS NULL ORDER BY c.created_at LIMIT 32) x));
END $$;
COMMENT ON FUNCTION destroy_work IS
    'What a keeper is to do for destruction: period keys and organisations to do away with (every node); and the one that leads: keys to make and to move, certificates to sign';

CREATE FUNCTION period_made(key uuid, kcv bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_month date;
BEGIN
    UPDATE period_keys p SET kcv = period_made.kcv WHERE p.org_id = nobody() AND p.key_id = key AND p.kcv IS NULL AND p.ended_at IS NULL RETURNING p.month INTO v_month;
    IF FOUND THEN
        PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'period.add', 0,
            jsonb_build_object('month', to_char(v_month, 'YYYY-MM'), 'key', key, 'kcv', encode(kcv, 'hex')));
    END IF;
END $$;
COMMENT ON FUNCTION period_made IS 'A period key is in the HSM';

CREATE FUNCTION period_renew(key uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    UPDATE period_keys p SET key_id = gen_random_uuid() WHERE p.org_id = nobody() AND p.key_id = key AND p.kcv IS NULL AND p.ended_at IS NULL;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION period_renew IS 'Another id for a period key that does not work; true: nothing is or ever will be under the old one, which may be destroyed';

CREATE FUNCTION month_key_add(org uuid, period uuid, wrapped bytea, kcv bytea) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_month date;
BEGIN
    PERFORM FROM organisations o WHERE o.org_id = org AND o.main_key_id IS NULL AND o.state <> 'destroyed' FOR SHARE;
    IF NOT FOUND THEN
        RETURN 409002;
    END IF;
    SELECT p.month INTO v_month FROM period_keys p WHERE p.org_id = nobody() AND p.key_id = period AND p.ended_at IS NULL AND p.kcv IS NOT NULL FOR SHARE;
    IF NOT FOUND THEN
        RETURN 409002;
    END IF;
    -- One that was removed has nothing under it, so its place can be taken again.
    INSERT INTO wrapping_keys AS w (org_id, generation, root_id, wrapped, kcv, created_at, month)
    VALUES (org, month_generation(v_month), period, wrapped, kcv, clock_timestamp(), v_month)
        ON CONFLICT (org_id, generation) DO UPDATE SET root_id = excluded.root_id, wrapped = excluded.wrapped, kcv = excluded.kcv, wraps = 0,
            created_at = excluded.created_at, destroyed_at = NULL WHERE w.destroyed_at IS NOT NULL AND NOT month_left_lately(org, w.generation);
    IF NOT FOUND THEN
        RETURN 409002;
    END IF;
    PERFORM record_admin(org, gen_random_uuid(), 'keeper', 'wrapping_key.add', 0,
        jsonb_build_object('generation', month_generation(v_month), 'root', period, 'month', to_char(v_month, 'YYYY-MM')));
    RETURN 0;
END $$;
COMMENT ON FUNCTION month_key_add IS 'An organisation''s wrapping key of a month; 409002: there is one, or must be none';

CREATE FUNCTION reseal_done(orgs uuid[], objects uuid[], kinds text[], befores bytea[], generations integer[], to_generations integer[], afters bytea[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_count integer := 0;
    v_rows integer;
    i record;
BEGIN
    PERFORM check_lengths(cardinality(orgs), cardinality(objects), cardinality(kinds), cardinality(befores), cardinality(generations),
        cardinality(to_generations), cardinality(afters));
    -- No generation is left (reseal_begin) or removed (month_end) between our look at it and our end.
    PERFORM policy_share();
    PERFORM FROM wrapping_keys w
      WHERE (w.org_id, w.generation) IN (SELECT x.org, x.generation FROM unnest(orgs, to_generations) AS x(org, generation))
      ORDER BY w.org_id, w.generation FOR NO KEY UPDATE;
    FOR i IN SELECT x.* FROM unnest(orgs, objects, kinds, befores, generations, to_generations, afters) AS x(org, object, kind, before, generation, to_generation, after)
              ORDER BY x.kind, x.org, x.object
    LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM wrapping_keys w JOIN organisations o ON o.org_id = w.org_id
                                   WHERE w.org_id = i.org AND w.generation = i.to_generation AND w.destroyed_at IS NULL
                                     AND (w.month IS NOT NULL OR w.generation = o.generation));
        -- Whoever has its row locked goes on with it: it comes again, and so does what has another generation meanwhile.
        IF i.kind = 'key' THEN
            PERFORM FROM content_keys k WHERE k.org_id = i.org AND k.key_id = i.object FOR NO KEY UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            UPDATE content_keys k SET generation = i.to_generation, blob = i.after
             WHERE k.org_id = i.org AND k.key_id = i.object AND k.generation = i.generation AND k.blob = i.before;
        ELSE
            PERFORM FROM recordings m WHERE m.org_id = i.org AND m.recording_id = i.object FOR NO KEY UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            UPDATE recordings m SET generation = i.to_generation, blob = i.after
             WHERE m.org_id = i.org AND m.recording_id = i.object AND m.generation = i.generation AND m.blob = i.before;
        END IF;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        IF v_rows > 0 THEN
            DELETE FROM reseals r WHERE r.org_id = i.org AND r.object_id = i.object;
            UPDATE wrapping_keys w SET wraps = w.wraps + 1 WHERE w.org_id = i.org AND w.generation = i.to_generation;
            v_count := v_count + v_rows;
        END IF;
    END LOOP;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION reseal_done IS 'Stores keys under the wrapping key where they belong, if they are still what they were; how many';

CREATE FUNCTION node_forgot(node uuid, object uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_nodes text;
    p period_keys;
    w wrapping_keys;
BEGIN
    INSERT INTO forgotten (org_id, node_id, object_id, at)
    SELECT nobody(), n.node_id, object, v_now FROM nodes n WHERE n.org_id = nobody() AND n.node_id = node ON CONFLICT DO NOTHING;
    SELECT x.* INTO p FROM period_keys x WHERE x.org_id = nobody() AND x.key_id = object AND x.ended_at IS NOT NULL AND x.destroyed_at IS NULL FOR NO KEY UPDATE;
    -- A node that is away does it when it is back.
    IF NOT FOUND OR EXISTS (SELECT FROM nodes n WHERE n.org_id = nobody() AND node_alive(n)
                               AND NOT EXISTS (SELECT FROM forgotten f WHERE f.org_id = nobody() AND f.node_id = n.node_id AND f.object_id = object)) THEN
        RETURN;
    END IF;
    UPDATE period_keys x SET destroyed_at = v_now WHERE x.org_id = nobody() AND x.month = p.month;
    SELECT coalesce(string_agg(format(E'node %s\n', y.node), '' ORDER BY y.node), '') INTO v_nodes
      FROM (SELECT DISTINCT encode(sha256(convert_to(n.node, 'UTF8')), 'hex') AS node FROM forgotten f JOIN nodes n ON n.org_id = f.org_id AND n.node_id = f.node_id
             WHERE f.org_id = nobody() AND f.object_id = object LIMIT 16) y;
    v_nodes := format(E'month %s\nperiod-key %s %s destroyed\n', to_char(p.month, 'YYYY-MM'), p.key_id, coalesce(encode(p.kcv, 'hex'), '-')) || v_nodes;
    FOR w IN SELECT x.* FROM wrapping_keys x WHERE x.month = p.month AND x.root_id = p.key_id ORDER BY x.org_id LOOP
        PERFORM certify(w.org_id, gen_random_uuid(), v_now, 'month',
            v_nodes || format(E'wrapping-key %s %s %s %s destroyed\n', w.generation, encode(w.kcv, 'hex'), to_char(w.month, 'YYYY-MM'), w.root_id), '{}');
    END LOOP;
    PERFORM certify(nobody(), gen_random_uuid(), v_now, 'month', v_nodes
        || format(E'wrapping-keys %s\n', (SELECT count(*) FROM wrapping_keys x WHERE x.month = p.month AND x.root_id = p.key_id)), '{}');
END $$;
COMMENT ON FUNCTION node_forgot IS 'A node proved that a period key is not in its token, or dropped an organisation''s keys; with the last node a month is certified';

CREATE FUNCTION destruction_waiting(ms bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_before text := setting(nobody(), 'destruction.waiting');
BEGIN
    IF ms IS NULL OR ms < 0 THEN
        RAISE EXCEPTION 'a waiting period is not negative' USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_before IS DISTINCT FROM ms::text THEN
        INSERT INTO settings AS s (org_id, name, value, changed_at) VALUES (nobody(), 'destruction.waiting', ms::text, clock_timestamp())
            ON CONFLICT (org_id, name) DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at;
        PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'setting.set', 0, jsonb_strip_nulls(jsonb_build_object('name', 'destruction.waiting',
            'value', ms::text, 'before', v_before)));
    END IF;
END $$;
COMMENT ON FUNCTION destruction_waiting IS 'The waiting period of the configuration, as a keeper has read it';

-- ---------------------------------------------------------------------------------------------------- previews

CREATE FUNCTION preview_items(p_org uuid, p_until timestamptz)
RETURNS TABLE (org uuid, why text, kind text, id uuid, due timestamptz, type text, keys bigint, recordings bigint, held_keys bigint, held_recordings bigint, matter uuid)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_matters matters[];
    r record;
BEGIN
    -- Those that a matter has kept already apart: so both have an index.
    FOR r IN SELECT x.org_id, x.resource_id, x.expires_at FROM (
                 SELECT y.* FROM resources y WHERE y.destroyed_at IS NULL AND y.expires_at IS NOT NULL AND y.expires_at <= p_until AND y.held_by IS NULL
                 UNION ALL SELECT y.* FROM resources y WHERE y.held_by IS NOT NULL AND y.destroyed_at IS NULL AND y.expires_at <= p_until) x
               JOIN organisations o ON o.org_id = x.org_id AND o.state <> 'destroyed'
              WHERE p_org IS NULL OR x.org_id = p_org
    LOOP
        v_matters := holds_on(r.org_id, r.resource_id, v_now);
        SELECT r.org_id, 'ttl', 'resource', r.resource_id, r.expires_at, NULL, k.n, m.n, k.held, m.held, coalesce(k.matter, m.matter)
          INTO org, why, kind, id, due, type, keys, recordings, held_keys, held_recordings, matter
          FROM (SELECT count(*) AS n, count(held_at(v_matters, y.bound_at)) AS held, (array_agg(held_at(v_matters, y.bound_at)) FILTER (WHERE held_at(v_matters, y.bound_at) IS NOT NULL))[1] AS matter
                  FROM content_keys y WHERE y.org_id = r.org_id AND y.resource_id = r.resource_id AND y.blob IS NOT NULL) k,
               (SELECT count(*) AS n, count(held_at(v_matters, y.created_at)) AS held, (array_agg(held_at(v_matters, y.created_at)) FILTER (WHERE held_at(v_matters, y.created_at) IS NOT NULL))[1] AS matter
                  FROM kms.recordings y WHERE y.org_id = r.org_id AND y.resource_id = r.resource_id AND y.blob IS NOT NULL) m;
        RETURN NEXT;
    END LOOP;
    RETURN QUERY
        SELECT x.org_id, 'retention', 'recording', x.recording_id, x.expires_at::timestamptz, x.type, 0::bigint, 1::bigint, 0::bigint,
               (h.matter IS NOT NULL)::integer::bigint, h.matter
          FROM (SELECT y.* FROM kms.recordings y WHERE y.destroyed_at IS NULL AND y.expires_at IS NOT NULL AND y.expires_at <= p_until AND y.held_by IS NULL
                UNION ALL SELECT y.* FROM kms.recordings y WHERE y.held_by IS NOT NULL AND y.destroyed_at IS NULL AND y.expires_at <= p_until) x
          JOIN organisations o ON o.org_id = x.org_id AND o.state <> 'destroyed'
          JOIN resources c ON c.org_id = x.org_id AND c.resource_id = x.resource_id AND (c.expires_at IS NULL OR c.expires_at > p_until)
         CROSS JOIN LATERAL (SELECT hold_of(x.org_id, x.resource_id, x.created_at, v_now) AS matter OFFSET 0) h
         WHERE p_org IS NULL OR x.org_id = p_org;
    RETURN QUERY
        SELECT d.org_id, 'command', d.kind, d.target, d.due_at::timestamptz, NULL::text,
               CASE d.kind WHEN 'key' THEN 1 WHEN 'resource' THEN (SELECT count(*) FROM content_keys k WHERE k.org_id = d.org_id AND k.resource_id = d.target AND k.blob IS NOT NULL)
                    WHEN 'organisation' THEN (SELECT count(*) FROM content_keys k WHERE k.org_id = d.org_id AND k.blob IS NOT NULL) ELSE 0 END,
               CASE d.kind WHEN 'recording' THEN 1 WHEN 'resource' THEN (SELECT count(*) FROM kms.recordings m WHERE m.org_id = d.org_id AND m.resource_id = d.target AND m.blob IS NOT NULL)
                    WHEN 'organisation' THEN (SELECT count(*) FROM kms.recordings m WHERE m.org_id = d.org_id AND m.blob IS NOT NULL) ELSE 0 END,
               0::bigint, 0::bigint, target_held(d.org_id, d.kind, d.target, v_now)
          FROM destructions d WHERE d.state = 'waiting' AND d.due_at <= p_until AND (p_org IS NULL OR d.org_id = p_org);
END $$;
COMMENT ON FUNCTION preview_items IS 'What is due by then, and what of it a matter holds';

CREATE FUNCTION preview_by_org(p_org uuid, p_until timestamptz) RETURNS TABLE (org uuid, figures jsonb) LANGUAGE sql STABLE AS $$
    SELECT i.org, jsonb_build_object(
           'resources', count(*) FILTER (WHERE i.kind = 'resource' AND i.matter IS NULL),
           'keys', coalesce(sum(CASE WHEN i.why = 'command' AND i.matter IS NOT NULL THEN 0 ELSE i.keys - i.held_keys END), 0),
           'recordings', coalesce(sum(CASE WHEN i.why = 'command' AND i.matter IS NOT NULL THEN 0 ELSE i.recordings - i.held_recordings END), 0),
           'commands', count(*) FILTER (WHERE i.why = 'command' AND i.matter IS NULL),
           'held', count(*) FILTER (WHERE i.matter IS NOT NULL))
      FROM preview_items(p_org, p_until) i GROUP BY GROUPING SETS ((i.org), ())
$$;
COMMENT ON FUNCTION preview_by_org IS 'How much is due by then, and how much of it stays, of each organisation that has anything; NULL: of all together';

CREATE FUNCTION preview_figures(p_org uuid, p_until timestamptz) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT b.figures FROM preview_by_org(p_org, p_until) b WHERE b.org IS NULL);
COMMENT ON FUNCTION preview_figures IS 'How much is due by then, and how much of it stays';

CREATE FUNCTION tonight(p_now timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (date_trunc('day', p_now AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC';
COMMENT ON FUNCTION tonight IS 'The next midnight, UTC';

CREATE FUNCTION preview_none() RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN jsonb '{"resources":0,"keys":0,"recordings":0,"commands":0,"held":0}';
COMMENT ON FUNCTION preview_none IS 'The figures of an organisation of which nothing is due';

CREATE FUNCTION preview_keep(p_now timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM organisations o WHERE o.state <> 'destroyed'
                  AND NOT EXISTS (SELECT FROM retention_days d WHERE d.org_id = o.org_id AND d.day = (p_now AT TIME ZONE 'UTC')::date)) THEN
        INSERT INTO retention_days (org_id, day, figures)
        SELECT o.org_id, (p_now AT TIME ZONE 'UTC')::date, coalesce(b.figures, preview_none())
          FROM organisations o LEFT JOIN preview_by_org(NULL, tonight(p_now)) b ON b.org = o.org_id
         WHERE o.state <> 'destroyed' AND NOT EXISTS (SELECT FROM retention_days d WHERE d.org_id = o.org_id AND d.day = (p_now AT TIME ZONE 'UTC')::date)
            ON CONFLICT DO NOTHING;
    END IF;
    DELETE FROM retention_days d WHERE d.day < (p_now AT TIME ZONE 'UTC')::date - 400;
END $$;
COMMENT ON FUNCTION preview_keep IS 'Keeps the day''s first figures of each organisation';

CREATE FUNCTION retention_preview(org_name text, until bigint, lim integer) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := destruction_time();
    v_until timestamptz(3) := coalesce(ms_to_time(until), tonight(v_now));
    v_today date := (v_now AT TIME ZONE 'UTC')::date;
    v_org uuid;
BEGIN
    IF org_name IS NOT NULL THEN
        SELECT o.org_id INTO v_org FROM organisations o WHERE o.name = org_name;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    PERFORM preview_keep(v_now);
    RETURN jsonb_build_object('now', ms(v_now), 'until', ms(v_until), 'clock', clock_show(),
        'organisations', (SELECT coalesce(jsonb_agg(x.j ORDER BY x.name), '[]') FROM (
            SELECT o.name, jsonb_build_object('org_name', o.name, 'figures', coalesce(b.figures, preview_none()),
                       'yesterday', (SELECT d.figures FROM retention_days d WHERE d.org_id = o.org_id AND d.day = v_today - 1),
                       'today', (SELECT d.figures FROM retention_days d WHERE d.org_id = o.org_id AND d.day = v_today),
                       'destroyed', (SELECT count(*) FROM certificates c WHERE c.org_id = o.org_id AND c.created_at > v_now - interval '1 day'),
                       'held', (SELECT coalesce(jsonb_agg(jsonb_build_object('matter', h.matter, 'name', m.name, 'resources', h.resources, 'keys', h.keys, 'recordings', h.recordings) ORDER BY h.matter), '[]')
                                  FROM (SELECT i.matter, count(*) FILTER (WHERE i.kind = 'resource') AS resources, sum(i.held_keys) AS keys, sum(i.held_recordings) AS recordings
                                          FROM preview_items(o.org_id, v_until) i WHERE b.figures -> 'held' <> '0' AND i.matter IS NOT NULL GROUP BY i.matter) h
                                  JOIN matters m ON m.org_id = o.org_id AND m.matter_id = h.matter)) AS j
              FROM organisations o LEFT JOIN preview_by_org(v_org, v_until) b ON b.org = o.org_id
             WHERE o.state <> 'destroyed' AND (v_org IS NULL OR o.org_id = v_org)) x
            WHERE v_org IS NOT NULL OR x.j -> 'figures' <> preview_none()
               OR jsonb_typeof(x.j -> 'yesterday') = 'object' AND x.j -> 'yesterday' <> preview_none()
               OR x.j -> 'destroyed' <> '0'),
        'items', (SELECT coalesce(jsonb_agg(y.j), '[]') FROM (
            SELECT jsonb_strip_nulls(jsonb_build_object('org_name', o.name, 'why', i.why, 'kind', i.kind, 'id', i.id, 'due', ms(i.due), 'type', i.type,
                       'keys', i.keys, 'recordings', i.recordings, 'held_keys', i.held_keys, 'held_recordings', i.held_recordings, 'matter', i.matter)) AS j
              FROM preview_items(v_org, v_until) i JOIN organisations o ON o.org_id = i.org ORDER BY i.due, i.id LIMIT lim) y),
        'months', (SELECT coalesce(jsonb_agg(jsonb_build_object('month', to_char(p.month, 'YYYY-MM'), 'key', p.key_id, 'kcv', encode(p.kcv, 'hex'),
                               'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.month = p.month AND w.destroyed_at IS NULL)) ORDER BY p.month), '[]')
                     FROM period_keys p WHERE p.org_id = nobody() AND p.ended_at IS NULL AND p.month + interval '1 month' <= v_until AT TIME ZONE 'UTC'));
END $$;
COMMENT ON FUNCTION retention_preview IS 'What will be destroyed until then (NULL: tonight''s midnight), what matters hold, and the figures of yesterday; NULL: no such organisation';

CREATE FUNCTION destruction_json(d destructions) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_strip_nulls(jsonb_build_object('destruction', d.destruction_id, 'org_name', (SELECT o.name FROM organisations o WHERE o.org_id = d.org_id),
    'kind', d.kind, 'target', d.target, 'state', d.state, 'approval', d.approval_id, 'requested_by', d.requested_by, 'created', ms(d.created_at),
    'due', ms(d.due_at), 'ended', ms(d.ended_at), 'certificate', d.certificate_id, 'begun', ms(d.begun_at), 'held_by', CASE d.state WHEN 'waiting' THEN
        target_held(d.org_id, d.kind, d.target, clock_timestamp()) END));
COMMENT ON FUNCTION destruction_json IS 'A command to destroy, as officers see it; held_by: the matter that stands in its way now';

CREATE FUNCTION destruction_list(org_name text, state text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT CASE WHEN $1 IS NOT NULL AND log_org($1) IS NULL THEN NULL ELSE
           (SELECT coalesce(jsonb_agg(destruction_json(x) ORDER BY x.due_at, x.destruction_id), '[]')
              FROM (SELECT d.* FROM destructions d WHERE ($1 IS NULL OR d.org_id = log_org($1)) AND ($2 IS NULL OR d.state = $2)
                     ORDER BY d.created_at DESC LIMIT 1000) x) END
$$;
COMMENT ON FUNCTION destruction_list IS 'Commands to destroy (org_name NULL: of all, state NULL: any); NULL: no such organisation';

-- ---------------------------------------------------------------------------------------------------- officers

ALTER FUNCTION control_check(text, jsonb) RENAME TO control_check_other;
ALTER FUNCTION impact_facts(text, jsonb, uuid) RENAME TO impact_facts_other;
ALTER FUNCTION impact_counts(text, jsonb, uuid) RENAME TO impact_counts_other;
ALTER FUNCTION control_about(uuid, text, jsonb) RENAME TO control_about_other;
ALTER FUNCTION control_do(text, jsonb) RENAME TO control_do_other;

CREATE FUNCTION destroys(p_action text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN p_action IN ('key.destroy', 'resource.destroy', 'recording.destroy', 'org.destroy', 'destruction.undo', 'clock.confirm');
COMMENT ON FUNCTION destroys IS 'Is this action about destruction?';

CREATE FUNCTION control_check_destruction(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_member text := CASE p_action WHEN 'key.destroy' THEN 'key' WHEN 'resource.destroy' THEN 'resource' WHEN 'recording.destroy' THEN 'recording'
                                   WHEN 'org.destroy' THEN 'org' WHEN 'destruction.undo' THEN 'destruction' END;
    v_id uuid;
    v_gone boolean;
    v_matter uuid;
    v_kind text;
    a jsonb;
    d destructions;
    c checked;
BEGIN
    c := ROW(400002, NULL, nobody(), NULL, false);
    IF jsonb_typeof(coalesce(p_args, '{}')) <> 'object' THEN
        c.why := 'the arguments are no object';
        RETURN c;
    END IF;
    a := jsonb_strip_nulls(coalesce(p_args, '{}'));
    c.args := a;
    IF v_member IS NOT NULL AND NOT a ? v_member THEN
        c.why := v_member || ' is missing';
        RETURN c;
    ELSIF EXISTS (SELECT FROM jsonb_object_keys(a) k WHERE k IS DISTINCT FROM v_member) THEN
        c.why := coalesce('members are: ' || v_member, 'it has no arguments');
        RETURN c;
    END IF;
    v_id := arg_uuid(a -> v_member);
    c.verdict := 404001;
    CASE p_action
    WHEN 'clock.confirm' THEN
        c.verdict := CASE WHEN destruction_time() < wall() - interval '1 minute' THEN 0 ELSE 409002 END;
        c.why := CASE c.verdict WHEN 0 THEN NULL ELSE 'the clock is not in question: nothing waits for it' END;
        RETURN c;
    WHEN 'destruction.undo' THEN
        SELECT x.* INTO d FROM destructions x WHERE x.destruction_id = v_id;
        IF NOT FOUND THEN
            c.why := 'no such destruction';
            RETURN c;
        END IF;
        c.org := d.org_id;
        c.args := jsonb_build_object('destruction', v_id);
        c.at_once := true;
        c.verdict := CASE WHEN d.state = 'waiting' AND d.begun_at IS NULL THEN 0 ELSE 409002 END;
        c.why := CASE WHEN c.verdict = 0 THEN NULL WHEN d.state = 'undone' THEN 'it was undone already' ELSE 'it is done: nothing brings it back' END;
        RETURN c;
    WHEN 'org.destroy' THEN
        SELECT o.org_id, o.state = 'destroyed' INTO v_id, v_gone FROM organisations o WHERE o.name = a ->> 'org';
        c.why := 'no organisation of this name';
        c.org := coalesce(v_id, nobody());
        v_kind := 'organisation';
    WHEN 'key.destroy' THEN
        SELECT k.org_id, k.blob IS NULL INTO c.org, v_gone FROM content_keys k WHERE k.key_id = v_id;
        c.why := 'no such key';
    WHEN 'resource.destroy' THEN
        SELECT r.org_id, r.destroyed_at IS NOT NULL INTO c.org, v_gone FROM resources r WHERE r.resource_id = v_id;
        c.why := 'no such resource';
    WHEN 'recording.destroy' THEN
        SELECT m.org_id, m.blob IS NULL INTO c.org, v_gone FROM recordings m WHERE m.recording_id = v_id;
        c.why := 'no such recording';
    END CASE;
    IF v_gone IS NULL THEN
        c.org := coalesce(c.org, nobody());
        RETURN c;
    END IF;
    v_kind := coalesce(v_kind, v_member);
    IF v_kind <> 'organisation' THEN
        c.args := jsonb_build_object(v_member, v_id);
    END IF;
    c.verdict := 409002;
    v_matter := target_held(c.org, v_kind, v_id, clock_timestamp());
    SELECT x.* INTO d FROM destructions x WHERE x.org_id = c.org AND x.kind = v_kind AND x.target = v_id AND x.state = 'waiting';
    c.why := CASE
        WHEN v_gone THEN 'this ' || v_kind || ' is destroyed already'
        WHEN d.destruction_id IS NOT NULL THEN 'this waits to be destroyed already: ' || d.destruction_id || ', at ' || day_text(d.due_at)
        WHEN v_matter IS NOT NULL THEN 'matter ' || v_matter || ' holds it: it can be destroyed when that matter is closed' END;
    IF c.why IS NULL THEN
        c.verdict := 0;
    END IF;
    RETURN c;
END $$;
COMMENT ON FUNCTION control_check_destruction IS 'control_check() for destruction';

CREATE FUNCTION impact_facts_destruction(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_facts jsonb := jsonb_build_object('waiting', coalesce(setting(nobody(), 'destruction.waiting'), '604800000'));
BEGIN
    CASE p_action
    WHEN 'key.destroy', 'resource.destroy' THEN
        RETURN impact_facts_other(p_action, p_args, p_org) || v_facts;
    WHEN 'recording.destroy' THEN
        RETURN v_facts || jsonb_build_object('organisations', org_names(ARRAY[p_org]), 'services', '[]'::jsonb) || (
            SELECT jsonb_build_object('resource', m.resource_id, 'type', m.type, 'destroyed', m.blob IS NULL) FROM recordings m
             WHERE m.org_id = p_org AND m.recording_id = arg_uuid(p_args -> 'recording'));
    WHEN 'org.destroy' THEN
        RETURN v_facts || jsonb_build_object('organisations', org_names(ARRAY[p_org]), 'services', services_with(p_org, NULL, NULL), 'org', p_org,
            'before', (SELECT o.state FROM organisations o WHERE o.org_id = p_org),
            'main_key', (SELECT coalesce(o.main_key_id::text, 'none') FROM organisations o WHERE o.org_id = p_org));
    WHEN 'clock.confirm' THEN
        -- To the day: what officers look at stands still for a while.
        RETURN jsonb_build_object('organisations', '[]'::jsonb, 'services', '[]'::jsonb, 'clock', to_char(wall() AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
            'trusted', (SELECT to_char(max(x.trusted_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD') FROM clocks x WHERE x.org_id = nobody()));
    ELSE
        RETURN v_facts;
    END CASE;
END $$;
COMMENT ON FUNCTION impact_facts_destruction IS 'impact_facts() for destruction';

CREATE FUNCTION impact_counts(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE p_action
    WHEN 'recording.destroy' THEN
        RETURN (SELECT jsonb_build_object('resources', 1, 'keys', 0, 'recordings', 1, 'users', (SELECT count(*) FROM authorizations a
                           WHERE a.org_id = p_org AND a.resource_id = m.resource_id AND a.kind = 'user'))
                  FROM recordings m WHERE m.org_id = p_org AND m.recording_id = arg_uuid(p_args -> 'recording'));
    WHEN 'clock.confirm' THEN       -- what would be destroyed at once
        RETURN (SELECT f - 'commands' - 'held' || '{"users":0}' FROM preview_figures(NULL, wall()) f);
    WHEN 'resource.destroy' THEN
        RETURN impact_counts_other(p_action, p_args, p_org) || jsonb_build_object('recordings', (SELECT count(*) FROM recordings m
            WHERE m.org_id = p_org AND m.resource_id = arg_uuid(p_args -> 'resource') AND m.blob IS NOT NULL));
    WHEN 'org.destroy' THEN
        RETURN impact_counts_other(p_action, '{}', p_org) || jsonb_build_object(
            'recordings', (SELECT count(*) FROM recordings m WHERE m.org_id = p_org AND m.blob IS NOT NULL),
            'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.org_id = p_org AND w.destroyed_at IS NULL));
    ELSE
        RETURN impact_counts_other(p_action, p_args, p_org);
    END CASE;
END $$;
COMMENT ON FUNCTION impact_counts IS 'How much an action would touch';

CREATE FUNCTION control_do_destruction(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_waiting bigint := coalesce(setting(nobody(), 'destruction.waiting'), '604800000')::bigint;
    c checked;
    a approvals;
    d destructions;
    x record;
    v_certificate uuid := gen_random_uuid();
BEGIN
    c := control_check_destruction(p_action, p_args);
    IF c.verdict <> 0 THEN
        RETURN ROW(c.verdict, jsonb_build_object('why', c.why), NULL, NULL, NULL)::deed;
    END IF;
    CASE p_action
    WHEN 'clock.confirm' THEN
        -- The next tick begins anew with what the clock says.
        DELETE FROM clocks t WHERE t.org_id = nobody();
        RETURN ROW(0, jsonb_build_object('clock', ms(wall())), NULL, NULL, NULL)::deed;
    WHEN 'destruction.undo' THEN
        UPDATE destructions t SET state = 'undone', ended_at = v_now
         WHERE t.org_id = c.org AND t.destruction_id = arg_uuid(c.args -> 'destruction') AND t.state = 'waiting' AND t.begun_at IS NULL RETURNING t.* INTO d;
        IF NOT FOUND THEN
            RETURN ROW(409002, '{"why":"it is done: nothing brings it back"}', NULL, NULL, NULL)::deed;
        END IF;
        RETURN ROW(0, jsonb_build_object('destruction', d.destruction_id, 'kind', d.kind, 'target', d.target),
            CASE d.kind WHEN 'resource' THEN d.target END, CASE d.kind WHEN 'key' THEN ARRAY[d.target] END, NULL)::deed;
    ELSE
        NULL;
    END CASE;
    -- The one that has just got its last vote: no two are of the same action and arguments.
    SELECT t.* INTO a FROM approvals t WHERE t.org_id = c.org AND t.state = 'pending' AND t.action = p_action AND t.args = c.args ORDER BY t.created_at DESC LIMIT 1;
    INSERT INTO destructions (org_id, destruction_id, kind, target, approval_id, requested_by, created_at, due_at)
    VALUES (c.org, gen_random_uuid(), CASE split_part(p_action, '.', 1) WHEN 'org' THEN 'organisation' ELSE split_part(p_action, '.', 1) END,
            CASE p_action WHEN 'org.destroy' THEN c.org ELSE arg_uuid(c.args -> split_part(p_action, '.', 1)) END,
            a.approval_id, coalesce(a.requested_by, 'keeper'), v_now, v_now + v_waiting * interval '1 millisecond') RETURNING * INTO d;
    IF v_waiting > 0 OR d.kind = 'organisation' THEN
        RETURN ROW(0, jsonb_build_object('destruction', d.destruction_id, 'due', ms(d.due_at)), CASE d.kind WHEN 'resource' THEN d.target END,
            CASE d.kind WHEN 'key' THEN ARRAY[d.target] END, NULL)::deed;
    END IF;
    SELECT * INTO x FROM destroy_target(d, v_now, v_certificate);
    IF x.more THEN
        RETURN ROW(0, jsonb_build_object('destruction', d.destruction_id, 'due', ms(d.due_at), 'certificate', v_certificate, 'keys', coalesce(cardinality(x.keys), 0)),
            x.resource, x.keys, NULL)::deed;
    END IF;
    UPDATE destructions t SET state = CASE x.verdict WHEN 0 THEN 'done' ELSE 'undone' END, ended_at = v_now, certificate_id = CASE x.verdict WHEN 0 THEN v_certificate END
     WHERE t.org_id = d.org_id AND t.destruction_id = d.destruction_id;
    RETURN ROW(x.verdict, CASE x.verdict WHEN 0 THEN jsonb_build_object('destruction', d.destruction_id, 'certificate', v_certificate,
        'keys', coalesce(cardinality(x.keys), 0)) ELSE jsonb_build_object('why', x.why) END, x.resource, x.keys, NULL)::deed;
END $$;
COMMENT ON FUNCTION control_do_destruction IS 'control_do() for destruction: it waits; at once where there is no waiting period';

CREATE FUNCTION control_about_destruction(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
    SELECT control_about_other(p_org, p_action, p_args)
        || CASE WHEN arg_uuid(p_args -> 'recording') IS NULL THEN '{}' ELSE jsonb_build_object('recording', p_args -> 'recording') END
        || CASE WHEN arg_uuid(p_args -> 'destruction') IS NULL THEN '{}' ELSE jsonb_build_object('destruction', p_args -> 'destruction') END
$$;
COMMENT ON FUNCTION control_about_destruction IS 'control_about() for destruction';

CREATE FUNCTION control_check(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF destroys(p_action) THEN
        RETURN control_check_destruction(p_action, p_args);
    END IF;
    RETURN control_check_other(p_action, p_args);
END $$;
COMMENT ON FUNCTION control_check IS 'Are these the arguments of this action, and could it be done now?';

CREATE FUNCTION impact_facts(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF destroys(p_action) THEN
        RETURN impact_facts_destruction(p_action, p_args, p_org);
    END IF;
    RETURN impact_facts_other(p_action, p_args, p_org);
END $$;
COMMENT ON FUNCTION impact_facts IS 'What an action would touch, and how things stand now';

CREATE FUNCTION control_about(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF destroys(p_action) THEN
        RETURN control_about_destruction(p_org, p_action, p_args);
    END IF;
    RETURN control_about_other(p_org, p_action, p_args);
END $$;
COMMENT ON FUNCTION control_about IS 'What an entry says about an action''s arguments: no people, no free text';

CREATE FUNCTION control_do(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
BEGIN
    IF destroys(p_action) THEN
        RETURN control_do_destruction(p_action, p_args);
    ELSIF p_action IN ('matter.open', 'setting.set') THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('kms.sweep', 0));    -- the sweep that runs has ended, the next one sees it
    END IF;
    RETURN control_do_other(p_action, p_args);
END $$;
COMMENT ON FUNCTION control_do IS 'Does it; the caller holds policy_lock()';

-- ---------------------------------------------------------------------------------------------------- organisations

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
          LEFT JOIN organisations o ON o.name = i.name AND o.state <> 'destroyed'
          LEFT JOIN installation t ON i.name = '' AND t.org_id = nobody()
          LEFT JOIN wrapping_keys w ON w.org_id = coalesce(o.org_id, t.org_id)
                                   AND w.generation = coalesce(o.generation, t.generation)
         ORDER BY i.n;
END $$;

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
    ELSIF v_row.state = 'destroyed' THEN
        verdict := 409002;
        result := jsonb_build_object('why', 'this organisation is destroyed');
        PERFORM record_admin(v_row.org_id, op, actor, v_action, verdict, result);
    ELSE
        UPDATE organisations o SET state = org_set_state.state WHERE o.org_id = v_row.org_id RETURNING o.* INTO v_row;
        verdict := 0;
        result := org_json(v_row);
        PERFORM record_admin(v_row.org_id, op, actor, v_action, 0, result);
    END IF;
    RETURN NEXT;
END $$;

GRANT EXECUTE ON FUNCTION mint_under TO kms_worker;
GRANT EXECUTE ON FUNCTION clock_tick, clock_show, destructions_do, destroy_work, period_made, period_renew, month_key_add, reseal_done, node_forgot, destruction_waiting,
    certificate_signed, certificate_list, certificate_show, retention_preview, destruction_list TO kms_keeper;
