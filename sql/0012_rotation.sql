-- 0012_rotation.sql - rotation without downtime: roots (add, verify, switch, re-wrap, check, retire, destroy) and wrapping
-- keys, whose older generations' keys are moved to the new one in the background.
--
-- Whoever reads a key reads a row that opens as it stands: rows are changed one whole version to another, by compare-and-swap
-- on what they were, and what the older version names (root, generation) stays until nothing can name it any more.
--
-- A root rotation is a row of rotations; how far it is can be told from it and the new root's row:
--     no id yet -> 'name' -> no such root yet -> 'make' -> added, verified -> 'wait' -> active -> 'rewrap' -> 'check' -> done
-- The id is written down before the HSM is asked for a key of that id.  Every keeper tells that it is there (node_turn) and
-- which roots its node's token opens; one of them at a time, which holds the lease, does the rest.
--
-- An organisation's rotation begins when its new generation is current, with one moment alone (policy_lock): so nobody who
-- read the older generation is still writing, and one walk over its keys by id finds all that there are.  Keys of a month of
-- expiry stay where they are.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- leaving: nothing new, and what it wraps is on its way to the active one; retired: nothing needs it, and that was tried;
-- destroying: it goes from each node's token.
ALTER TABLE roots DROP CONSTRAINT roots_state_check,
    ADD CONSTRAINT roots_state_check CHECK (state IN ('added', 'verified', 'active', 'leaving', 'retired', 'destroying', 'destroyed'));
COMMENT ON COLUMN roots.state IS
    'added, verified: the next one; active: new wrapping keys are wrapped by it; leaving: its wrapping keys are being re-wrapped; retired: nothing needs it; destroying, destroyed';

CREATE TABLE nodes (
    org_id uuid NOT NULL,
    node_id uuid NOT NULL,
    node text NOT NULL CHECK (octet_length(node) <= 256),
    started_at timestamptz(3) NOT NULL,
    seen_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, node_id)
);
COMMENT ON TABLE nodes IS 'Keepers that run, one a node; alive are those that said so in the last minute and a half: a keeper that keeps dying is started every half minute, and its workers serve meanwhile';
COMMENT ON COLUMN nodes.org_id IS 'Nil';
COMMENT ON COLUMN nodes.node_id IS 'The same each time that this node''s keeper starts';
COMMENT ON COLUMN nodes.node IS 'The node''s name';
COMMENT ON COLUMN nodes.started_at IS 'Since when it runs';
COMMENT ON COLUMN nodes.seen_at IS 'When it last said so';

CREATE TABLE root_nodes (
    org_id uuid NOT NULL,
    root_id uuid NOT NULL,
    node_id uuid NOT NULL,
    opened boolean NOT NULL,
    gone boolean NOT NULL,
    why text CHECK (octet_length(why) <= 256),
    at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, root_id, node_id),
    FOREIGN KEY (org_id, root_id) REFERENCES roots,
    FOREIGN KEY (org_id, node_id) REFERENCES nodes ON DELETE CASCADE
);
COMMENT ON TABLE root_nodes IS 'What nodes have found of a root in their token';
COMMENT ON COLUMN root_nodes.org_id IS 'Nil';
COMMENT ON COLUMN root_nodes.root_id IS 'The root';
COMMENT ON COLUMN root_nodes.node_id IS 'The node';
COMMENT ON COLUMN root_nodes.opened IS 'It opened the root''s sentinel';
COMMENT ON COLUMN root_nodes.gone IS 'It proved that the root is not in its token any more';
COMMENT ON COLUMN root_nodes.why IS 'Why it could not';
COMMENT ON COLUMN root_nodes.at IS 'When';

CREATE TABLE keeper_lease (
    org_id uuid PRIMARY KEY,
    node_id uuid,
    until timestamptz(3) NOT NULL
);
COMMENT ON TABLE keeper_lease IS 'One row: which keeper rotates; calls of a keeper go over several connections, so this is no advisory lock';
COMMENT ON COLUMN keeper_lease.org_id IS 'Nil';
COMMENT ON COLUMN keeper_lease.node_id IS 'Which';
COMMENT ON COLUMN keeper_lease.until IS 'From then on another may';
INSERT INTO keeper_lease VALUES (nobody(), NULL, '-infinity');

ALTER TABLE rotations
    DROP CONSTRAINT rotations_state_check,
    ADD CONSTRAINT rotations_state_check CHECK (state IN ('running', 'done', 'stopped')),
    ADD COLUMN begun boolean NOT NULL DEFAULT false,
    ADD COLUMN counted boolean NOT NULL DEFAULT false,
    ADD COLUMN part text NOT NULL DEFAULT 'keys' CHECK (part IN ('keys', 'recordings')),
    ADD COLUMN found bigint NOT NULL DEFAULT 0,
    ADD COLUMN stored bigint NOT NULL DEFAULT 0,
    ADD COLUMN moved_at timestamptz(3),
    ADD COLUMN next_at timestamptz(3),
    ADD COLUMN problem text CHECK (octet_length(problem) <= 1024);
CREATE INDEX rotations_to_do ON rotations (started_at, rotation_id) WHERE state = 'running';
CREATE INDEX rotations_ended ON rotations (ended_at) WHERE state <> 'running';
COMMENT ON COLUMN rotations.to_id IS 'The new root''s id, empty until one is chosen; or the new generation';
COMMENT ON COLUMN rotations.state IS 'running, done; stopped: given up before the switch';
COMMENT ON COLUMN rotations.total IS 'How many there were at the start, once they are counted';
COMMENT ON COLUMN rotations.cursor_org IS 'Not used';
COMMENT ON COLUMN rotations.cursor_id IS 'Up to here this walk is done; NULL: from the first';
COMMENT ON COLUMN rotations.begun IS 'Since it was asked for, nobody can write under an older generation any more';
COMMENT ON COLUMN rotations.counted IS 'total is known';
COMMENT ON COLUMN rotations.part IS 'Where the walk is: first content keys, then recordings';
COMMENT ON COLUMN rotations.found IS 'What this walk has come across';
COMMENT ON COLUMN rotations.stored IS 'And could move';
COMMENT ON COLUMN rotations.moved_at IS 'When something was moved last';
COMMENT ON COLUMN rotations.next_at IS 'Not before then; NULL: at once';
COMMENT ON COLUMN rotations.problem IS 'Why it does not go on; NULL: it does';

ALTER TABLE wrapping_keys ADD COLUMN replace_at timestamptz(3), ADD COLUMN unneeded_at timestamptz(3);
COMMENT ON COLUMN wrapping_keys.replace_at IS 'When an officer asked for the next generation; NULL: nobody, or it is there';
COMMENT ON COLUMN wrapping_keys.unneeded_at IS 'Since when nothing is wrapped under it any more';
CREATE INDEX wrapping_keys_asked_for ON wrapping_keys (org_id, generation) WHERE replace_at IS NOT NULL;
CREATE INDEX wrapping_keys_parent ON wrapping_keys (root_id, org_id, generation) WHERE destroyed_at IS NULL;
DROP INDEX wrapping_keys_under;

-- Whoever puts a wrapping key under a root holds the root's row until his end: the switch to another waits for him.
CREATE FUNCTION wrapping_key_parent() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_state text;
BEGIN
    SELECT r.state INTO v_state FROM roots r WHERE r.org_id = nobody() AND r.root_id = NEW.root_id FOR SHARE;
    IF FOUND AND v_state <> 'active' THEN
        RAISE EXCEPTION 'root % takes no more wrapping keys: it is %', NEW.root_id, v_state USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION wrapping_key_parent IS 'Trigger: of the roots only the active one gets wrapping keys';
CREATE TRIGGER wrapping_keys_parent_new BEFORE INSERT ON wrapping_keys FOR EACH ROW EXECUTE FUNCTION wrapping_key_parent();
CREATE TRIGGER wrapping_keys_parent_other BEFORE UPDATE OF root_id ON wrapping_keys FOR EACH ROW
    WHEN (OLD.root_id IS DISTINCT FROM NEW.root_id) EXECUTE FUNCTION wrapping_key_parent();

-- ---------------------------------------------------------------------------------------------------- nodes

CREATE FUNCTION node_alive(n nodes) RETURNS boolean LANGUAGE sql STABLE
RETURN n.seen_at > clock_timestamp() - interval '90 seconds';
COMMENT ON FUNCTION node_alive IS 'Has it said lately that it is there?';

CREATE FUNCTION root_rotation_phase(r rotations) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_state text;
BEGIN
    IF r.to_id = '' THEN
        RETURN 'name';
    END IF;
    SELECT x.state INTO v_state FROM roots x WHERE x.org_id = nobody() AND x.root_id = r.to_id::uuid;
    RETURN CASE WHEN v_state IS NULL THEN 'make' WHEN v_state <> 'active' THEN 'wait'
        WHEN EXISTS (SELECT FROM roots x JOIN wrapping_keys w ON w.root_id = x.root_id AND w.destroyed_at IS NULL
                      WHERE x.org_id = nobody() AND x.state = 'leaving') THEN 'rewrap' ELSE 'check' END;
END $$;
COMMENT ON FUNCTION root_rotation_phase IS 'What comes next: name, make, wait, rewrap, check';

CREATE FUNCTION root_rotation_waits(p_root uuid) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT coalesce(jsonb_agg(jsonb_build_object('node', n.node, 'seen', ms(n.seen_at), 'why', coalesce(x.why, 'has not tried yet')) ORDER BY n.node, n.node_id), '[]')
          FROM nodes n LEFT JOIN root_nodes x ON x.org_id = n.org_id AND x.root_id = p_root AND x.node_id = n.node_id
         WHERE n.org_id = nobody() AND node_alive(n) AND NOT coalesce(x.opened, false));
COMMENT ON FUNCTION root_rotation_waits IS 'Nodes that are alive and have not opened this root''s sentinel';

CREATE FUNCTION node_turn(node uuid, name text, fresh boolean DEFAULT false) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_lead boolean;
    r rotations;
BEGIN
    INSERT INTO nodes AS n (org_id, node_id, node, started_at, seen_at) VALUES (nobody(), node, name, v_now, v_now)
        ON CONFLICT (org_id, node_id) DO UPDATE SET seen_at = excluded.seen_at, node = excluded.node,
            started_at = CASE WHEN fresh THEN excluded.started_at ELSE n.started_at END;
    IF fresh THEN       -- its token may be another by now
        DELETE FROM root_nodes x WHERE x.org_id = nobody() AND x.node_id = node;
    END IF;
    -- One that lasts longer than it can was given before the clock was put back: nobody is to wait for hours.
    UPDATE keeper_lease l SET node_id = node, until = v_now + interval '15 seconds'
     WHERE l.org_id = nobody() AND (l.node_id = node OR l.until <= v_now OR l.until > v_now + interval '16 seconds');
    v_lead := FOUND;
    IF v_lead THEN
        DELETE FROM nodes n WHERE n.org_id = nobody() AND n.seen_at < v_now - interval '1 hour';
    END IF;
    SELECT x.* INTO r FROM rotations x WHERE x.org_id = nobody() AND x.kind = 'root' AND x.state = 'running';
    RETURN jsonb_build_object('lead', v_lead, 'active', root_active(),
        'open', (SELECT coalesce(jsonb_agg(jsonb_build_object('root', x.root_id, 'wrapped', encode(x.wrapped, 'hex'), 'sentinel', encode(x.sentinel, 'hex'))), '[]')
                   FROM roots x WHERE x.org_id = nobody() AND x.state IN ('added', 'verified')
                    AND NOT EXISTS (SELECT FROM root_nodes y WHERE y.org_id = x.org_id AND y.root_id = x.root_id AND y.node_id = node AND y.opened)),
        'destroy', (SELECT coalesce(jsonb_agg(x.root_id), '[]')
                      FROM roots x WHERE x.org_id = nobody() AND x.state IN ('destroying', 'destroyed')
                       AND NOT EXISTS (SELECT FROM root_nodes y WHERE y.org_id = x.org_id AND y.root_id = x.root_id AND y.node_id = node AND y.gone)),
        'rotation', CASE WHEN r.rotation_id IS NOT NULL THEN jsonb_build_object('rotation', r.rotation_id, 'to', r.to_id,
            'phase', root_rotation_phase(r)) END,
        'replace', v_lead AND EXISTS (SELECT FROM wrapping_keys w WHERE w.replace_at IS NOT NULL),
        'keys', v_lead AND EXISTS (SELECT FROM rotations x WHERE x.kind = 'wrapping_key' AND x.state = 'running'
                                      AND (x.next_at IS NULL OR x.next_at <= v_now)));
END $$;
COMMENT ON FUNCTION node_turn IS
    'A keeper says that it is there (fresh: it has just started), and hears what is to be done: roots to open or to destroy in its token; the rest is for the one that leads';

CREATE FUNCTION node_root(node uuid, root uuid, opened boolean, gone boolean, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_state text;
BEGIN
    SELECT r.state INTO v_state FROM roots r WHERE r.org_id = nobody() AND r.root_id = root FOR NO KEY UPDATE;
    IF NOT FOUND OR NOT EXISTS (SELECT FROM nodes n WHERE n.org_id = nobody() AND n.node_id = node) THEN
        RETURN;
    END IF;
    INSERT INTO root_nodes AS x (org_id, root_id, node_id, opened, gone, why, at) VALUES (nobody(), root, node, opened, gone, left(why, 200), v_now)
        ON CONFLICT (org_id, root_id, node_id) DO UPDATE SET opened = excluded.opened, gone = excluded.gone, why = excluded.why, at = excluded.at;
    -- Who was away then does it when he is back; until then his token has it, and he is not served a word of it.
    IF v_state = 'destroying' AND gone AND NOT EXISTS (
           SELECT FROM nodes n WHERE n.org_id = nobody() AND node_alive(n)
              AND NOT EXISTS (SELECT FROM root_nodes x WHERE x.org_id = n.org_id AND x.root_id = root AND x.node_id = n.node_id AND x.gone)) THEN
        UPDATE roots r SET state = 'destroyed', changed_at = v_now, destroyed_at = v_now WHERE r.org_id = nobody() AND r.root_id = root;
        PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'root.destroyed', 0, jsonb_build_object('root', root,
            'nodes', (SELECT jsonb_agg(DISTINCT n.node) FROM root_nodes x JOIN nodes n ON n.org_id = x.org_id AND n.node_id = x.node_id
                       WHERE x.org_id = nobody() AND x.root_id = root AND x.gone)));
    END IF;
END $$;
COMMENT ON FUNCTION node_root IS 'What a node found of a root in its token; the last one to have destroyed it ends that';

-- ---------------------------------------------------------------------------------------------------- the next root

CREATE FUNCTION rotation_problem(rotation uuid, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    UPDATE rotations r SET problem = left(why, 1000)
     WHERE r.rotation_id = rotation AND r.state = 'running' AND r.problem IS DISTINCT FROM left(why, 1000);
END $$;
COMMENT ON FUNCTION rotation_problem IS 'Why a rotation does not go on, for whoever looks at it; NULL: it does';

CREATE FUNCTION root_rotation_name(rotation uuid, was text, root uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    UPDATE rotations r SET to_id = root::text
     WHERE r.org_id = nobody() AND r.rotation_id = rotation AND r.kind = 'root' AND r.state = 'running' AND r.to_id = was
       AND NOT EXISTS (SELECT FROM roots x WHERE x.org_id = nobody() AND x.root_id::text IN (was, root::text));
    RETURN (SELECT r.to_id FROM rotations r WHERE r.org_id = nobody() AND r.rotation_id = rotation);
END $$;
COMMENT ON FUNCTION root_rotation_name IS 'Writes the new root''s id down before there is such a key, or another in place of one that was not made; the id that it has';

CREATE FUNCTION root_rotation_made(rotation uuid, root uuid, kcv bytea, wrapped bytea, sentinel bytea) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
BEGIN
    PERFORM FROM rotations r WHERE r.org_id = nobody() AND r.rotation_id = rotation AND r.state = 'running' AND r.to_id = root::text FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 409002;
    END IF;
    INSERT INTO roots (org_id, root_id, state, kcv, wrapped, sentinel, created_at, changed_at)
    VALUES (nobody(), root, 'added', kcv, wrapped, sentinel, v_now, v_now) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        UPDATE rotations r SET problem = NULL WHERE r.org_id = nobody() AND r.rotation_id = rotation;
        PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'root.add', 0, jsonb_build_object('root', root));
    ELSE
        PERFORM touch_fence();
    END IF;
    RETURN 0;
END $$;
COMMENT ON FUNCTION root_rotation_made IS 'The next root is in a token, and this is what proves it to all nodes';

CREATE FUNCTION root_rotation_advance(rotation uuid) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_waits jsonb;
    v_from uuid;
    v_total bigint;
    r rotations;
    n roots;
BEGIN
    SELECT x.* INTO r FROM rotations x WHERE x.org_id = nobody() AND x.rotation_id = rotation AND x.state = 'running' AND x.to_id <> '' FOR UPDATE;
    SELECT x.* INTO n FROM roots x WHERE x.org_id = nobody() AND x.root_id = nullif(r.to_id, '')::uuid FOR UPDATE;
    IF n.root_id IS NULL OR n.state NOT IN ('added', 'verified') THEN
        RETURN jsonb_build_object('state', n.state, 'waits', '[]'::jsonb);
    END IF;
    v_waits := root_rotation_waits(n.root_id);
    IF v_waits <> '[]' OR NOT EXISTS (SELECT FROM nodes x WHERE x.org_id = nobody() AND node_alive(x)) THEN
        UPDATE rotations x SET problem = left('the new root is not in every node''s token: ' || (
                   SELECT string_agg((w ->> 'node') || ': ' || (w ->> 'why'), '; ') FROM jsonb_array_elements(v_waits) w), 1000)
         WHERE x.org_id = nobody() AND x.rotation_id = rotation
           AND v_now > n.created_at + interval '10 seconds';     -- they are given a moment before it is called a problem
        RETURN jsonb_build_object('state', n.state, 'waits', v_waits);
    END IF;
    UPDATE rotations x SET problem = NULL WHERE x.org_id = nobody() AND x.rotation_id = rotation;
    IF n.state = 'added' THEN
        UPDATE roots x SET state = 'verified', changed_at = v_now WHERE x.org_id = nobody() AND x.root_id = n.root_id;
        PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'root.verify', 0, jsonb_build_object('root', n.root_id,
            'nodes', (SELECT jsonb_agg(x.node ORDER BY x.node) FROM nodes x WHERE x.org_id = nobody() AND node_alive(x))));
        RETURN jsonb_build_object('state', 'verified', 'waits', '[]'::jsonb);
    END IF;

    -- The switch: from here on nothing new goes under the old one (wrapping_key_parent).
    v_from := root_active();
    UPDATE roots x SET state = 'leaving', changed_at = v_now WHERE x.org_id = nobody() AND x.state = 'active';
    UPDATE roots x SET state = 'active', changed_at = v_now WHERE x.org_id = nobody() AND x.root_id = n.root_id;
    SELECT count(*) INTO v_total FROM wrapping_keys w
     WHERE w.destroyed_at IS NULL AND w.root_id IN (SELECT x.root_id FROM roots x WHERE x.org_id = nobody() AND x.state = 'leaving');
    UPDATE rotations x SET total = v_total, counted = true, begun = true WHERE x.org_id = nobody() AND x.rotation_id = rotation;
    PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'root.switch', 0,
        jsonb_build_object('from', v_from, 'to', n.root_id, 'wrapping_keys', v_total));
    RETURN jsonb_build_object('state', 'active', 'waits', '[]'::jsonb);
END $$;
COMMENT ON FUNCTION root_rotation_advance IS
    'Added becomes verified when every node that is alive has opened it, and verified active; else who has not, and why';

-- ---------------------------------------------------------------------------------------------------- wrapping keys under it

CREATE FUNCTION rewrap_next(after_org uuid, after_generation integer, lim integer)
RETURNS TABLE (org uuid, generation integer, root uuid, wrapped bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT w.org_id, w.generation, w.root_id, w.wrapped
          FROM (SELECT x.root_id FROM roots x WHERE x.org_id = nobody() AND x.state = 'leaving') l
         CROSS JOIN LATERAL (
               SELECT y.* FROM wrapping_keys y
                WHERE y.root_id = l.root_id AND y.destroyed_at IS NULL AND (y.org_id, y.generation) > (after_org, after_generation)
                ORDER BY y.org_id, y.generation LIMIT lim) w
         ORDER BY w.org_id, w.generation LIMIT lim;
END $$;
COMMENT ON FUNCTION rewrap_next IS 'Wrapping keys that are under a root that is left, after this one';

CREATE FUNCTION rewrap_store(rotation uuid, root uuid, orgs uuid[], generations integer[], befores bytea[], afters bytea[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_count integer;
BEGIN
    PERFORM check_lengths(cardinality(orgs), cardinality(generations), cardinality(befores), cardinality(afters));
    PERFORM FROM wrapping_keys w
      WHERE (w.org_id, w.generation) IN (SELECT i.org, i.generation FROM unnest(orgs, generations) AS i(org, generation))
      ORDER BY w.org_id, w.generation FOR NO KEY UPDATE;
    UPDATE wrapping_keys w SET root_id = root, wrapped = i.after
      FROM unnest(orgs, generations, befores, afters) AS i(org, generation, before, after)
     WHERE w.org_id = i.org AND w.generation = i.generation AND w.wrapped = i.before
       AND w.root_id IN (SELECT x.root_id FROM roots x WHERE x.org_id = nobody() AND x.state = 'leaving');
    GET DIAGNOSTICS v_count = ROW_COUNT;
    UPDATE rotations r SET done = r.done + v_count, moved_at = clock_timestamp()
     WHERE r.org_id = nobody() AND r.rotation_id = rotation AND v_count > 0;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION rewrap_store IS 'Puts those that are as they were under the new root; how many';

CREATE FUNCTION check_next(after_org uuid, after_generation integer, lim integer)
RETURNS TABLE (org uuid, generation integer, root uuid, wrapped bytea, channel boolean, object uuid, blob bytea)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_from uuid;
BEGIN
    -- Nothing is given to look at but what is to be checked.
    IF NOT EXISTS (SELECT FROM rotations r WHERE r.org_id = nobody() AND r.kind = 'root' AND r.state = 'running') THEN
        RETURN;
    END IF;
    FOR org, generation, root, wrapped IN
        SELECT w.org_id, w.generation, w.root_id, w.wrapped FROM wrapping_keys w
         WHERE w.destroyed_at IS NULL AND (w.org_id, w.generation) > (after_org, after_generation)
           AND EXISTS (SELECT FROM roots r WHERE r.org_id = nobody() AND r.root_id = w.root_id)
         ORDER BY w.org_id, w.generation LIMIT lim
    LOOP
        -- From a random place on; from the last one back, if that finds none near.  In the order of the primary key, with
        -- ranges in place of "org_id =": else the index of ids alone would do for the order, and that has all organisations'.
        v_from := gen_random_uuid();
        SELECT false, s.key_id, s.blob INTO channel, object, blob
          FROM (SELECT k.* FROM content_keys k WHERE (k.org_id, k.key_id) >= (org, v_from) ORDER BY k.org_id, k.key_id LIMIT 50) s
         WHERE s.org_id = org AND s.generation = check_next.generation AND s.blob IS NOT NULL LIMIT 1;
        IF NOT FOUND THEN
            SELECT false, k.key_id, k.blob INTO channel, object, blob FROM content_keys k
             WHERE k.org_id >= org AND k.org_id <= org AND k.generation = check_next.generation AND k.blob IS NOT NULL
             ORDER BY k.org_id DESC, k.key_id DESC LIMIT 1;
        END IF;
        IF NOT FOUND THEN
            SELECT false, k.recording_id, k.blob INTO channel, object, blob FROM recordings k
             WHERE k.org_id = org AND k.generation = check_next.generation AND k.blob IS NOT NULL LIMIT 1;
        END IF;
        IF NOT FOUND THEN
            SELECT true, k.channel_id, k.blob INTO channel, object, blob FROM channels k
             WHERE k.org_id = org AND k.generation = check_next.generation LIMIT 1;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION check_next IS
    'While a root is rotated: wrapping keys under roots, after this one, each with something that only it opens (a key, a recording''s, a channel''s; NULL: there is nothing)';

CREATE FUNCTION root_rotation_end(rotation uuid, opened bigint, failed bigint, why text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_left jsonb;
    r rotations;
BEGIN
    SELECT x.* INTO r FROM rotations x WHERE x.org_id = nobody() AND x.rotation_id = rotation AND x.state = 'running' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN true;
    ELSIF failed > 0 THEN
        UPDATE rotations x SET problem = left(format('%s of %s generations did not open: %s; the old root stays', failed, opened + failed, why), 1000)
         WHERE x.org_id = nobody() AND x.rotation_id = rotation;
        RETURN false;
    ELSIF root_rotation_phase(r) <> 'check' THEN
        RETURN false;
    END IF;
    WITH gone AS (
        UPDATE roots x SET state = 'retired', changed_at = v_now WHERE x.org_id = nobody() AND x.state = 'leaving' RETURNING x.root_id)
    SELECT coalesce(jsonb_agg(g.root_id), '[]') INTO v_left FROM gone g;
    UPDATE rotations x SET state = 'done', ended_at = v_now, problem = NULL WHERE x.org_id = nobody() AND x.rotation_id = rotation;
    PERFORM record_admin(nobody(), gen_random_uuid(), 'keeper', 'root.retire', 0,
        jsonb_build_object('roots', v_left, 'to', r.to_id, 'wrapping_keys', r.done, 'opened', opened));
    RETURN true;
END $$;
COMMENT ON FUNCTION root_rotation_end IS 'Every generation was tried: the root that was left is retired, unless something did not open';

-- ---------------------------------------------------------------------------------------------------- keys under wrapping keys

CREATE OR REPLACE FUNCTION wrapping_key_add(op uuid, org uuid, generation integer, root uuid, wrapped bytea, kcv bytea, actor text)
RETURNS TABLE (verdict integer, result jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_before record;
    v_current integer;      -- NULL: no such organisation
    v_main_key uuid;
    v_why text;
BEGIN
    IF org = nobody() THEN
        SELECT t.generation INTO v_current FROM installation t WHERE t.org_id = org FOR NO KEY UPDATE;
    ELSE
        SELECT o.generation, o.main_key_id INTO v_current, v_main_key FROM organisations o
         WHERE o.org_id = org AND o.state <> 'destroyed' FOR NO KEY UPDATE;
    END IF;
    SELECT * INTO v_before FROM done_before(CASE WHEN v_current IS NULL THEN nobody() ELSE org END, op, 'wrapping_key.add');
    IF v_before.seen THEN
        verdict := v_before.verdict;
        result := v_before.result;
        RETURN NEXT;
        RETURN;
    END IF;
    verdict := 409002;
    IF v_current IS NULL THEN
        verdict := 404001;
        v_why := 'no such organisation';
    ELSIF generation IS DISTINCT FROM v_current + 1 THEN
        v_why := 'not the next generation; another node was quicker';
    ELSIF v_main_key IS NOT NULL AND root <> v_main_key OR v_main_key IS NULL AND EXISTS (SELECT FROM main_keys m WHERE m.main_key_id = root) THEN
        v_why := 'the organisation''s main key was changed meanwhile';
    ELSIF EXISTS (SELECT FROM roots r WHERE r.org_id = nobody() AND r.root_id = root AND r.state <> 'active') THEN
        v_why := 'the root was changed meanwhile';
    ELSE
        verdict := 0;
    END IF;
    IF verdict <> 0 THEN
        result := jsonb_strip_nulls(jsonb_build_object('why', v_why, 'generation', v_current));
        PERFORM record_admin(CASE WHEN v_current IS NULL THEN nobody() ELSE org END, op, actor, 'wrapping_key.add', verdict, result);
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO wrapping_keys (org_id, generation, root_id, wrapped, kcv, created_at) VALUES (org, generation, root, wrapped, kcv, v_now);
    UPDATE wrapping_keys w SET replace_at = NULL WHERE w.org_id = org AND w.replace_at IS NOT NULL;
    IF org = nobody() THEN
        UPDATE installation t SET generation = wrapping_key_add.generation WHERE t.org_id = org;
    ELSE
        UPDATE organisations o SET generation = wrapping_key_add.generation WHERE o.org_id = org;
        INSERT INTO rotations AS x (org_id, rotation_id, kind, to_id, total, started_at)
        VALUES (org, gen_random_uuid(), 'wrapping_key', generation::text, 0, v_now)
            ON CONFLICT (org_id, kind) WHERE state = 'running' DO UPDATE
                SET to_id = excluded.to_id, total = 0, done = 0, counted = false, begun = false, part = 'keys', cursor_id = NULL, found = 0,
                    stored = 0, next_at = NULL, problem = NULL;
    END IF;
    result := jsonb_build_object('generation', generation, 'root', root);
    PERFORM record_admin(org, op, actor, 'wrapping_key.add', 0, result);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION wrapping_key_add IS 'The next generation, current from now on; what is under older ones is moved to it in the background';

CREATE OR REPLACE FUNCTION wrapping_keys_due(max_age_ms bigint, max_wraps bigint)
RETURNS TABLE (org uuid, org_name text, generation integer, parent uuid)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT o.org_id, o.name, o.generation, o.main_key_id
          FROM (SELECT x.org_id, x.name, x.generation, x.main_key_id FROM organisations x WHERE x.state <> 'destroyed' AND x.locked = 0
                UNION ALL SELECT t.org_id, '', t.generation, NULL FROM installation t) o
          LEFT JOIN wrapping_keys w ON w.org_id = o.org_id AND w.generation = o.generation
         WHERE o.generation = 0 OR w.replace_at IS NOT NULL
            OR w.created_at <= clock_timestamp() - max_age_ms * interval '1 millisecond' OR w.wraps >= max_wraps
         ORDER BY o.name;
END $$;
COMMENT ON FUNCTION wrapping_keys_due IS
    'Whose current wrapping key is too old, was used too often or is to be replaced, and under what the next one belongs (NULL: the root); the installation (nil, "") is among them, at once while it has none';

CREATE FUNCTION older_generations(p_org uuid) RETURNS integer[] LANGUAGE sql STABLE
RETURN ARRAY(SELECT w.generation FROM wrapping_keys w JOIN organisations o ON o.org_id = w.org_id
              WHERE w.org_id = p_org AND w.generation <> o.generation AND w.month IS NULL AND w.destroyed_at IS NULL AND w.unneeded_at IS NULL
              ORDER BY w.generation);
COMMENT ON FUNCTION older_generations IS 'Generations of an organisation whose keys are to be moved: neither current nor of a month, nor gone';

CREATE FUNCTION reseal_begin(seconds integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_count integer;
BEGIN
    -- Alone for a moment, once for all that came since the last time.
    IF NOT EXISTS (SELECT FROM rotations r WHERE r.kind = 'wrapping_key' AND r.state = 'running' AND NOT r.begun
                      AND r.started_at <= clock_timestamp() - seconds * interval '1 second') THEN
        RETURN 0;
    END IF;
    PERFORM policy_lock();
    UPDATE rotations r SET begun = true WHERE r.kind = 'wrapping_key' AND r.state = 'running' AND NOT r.begun;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION reseal_begin IS 'Lets rotations begin, when the first of them has waited so long: whoever writes under an older generation has ended; how many';

CREATE FUNCTION reseal_next(lim integer)
RETURNS TABLE (rotation uuid, org uuid, part text, object uuid, generation integer, root uuid, wrapped bytea, blob bytea,
    to_generation integer, to_root uuid, to_wrapped bytea, scanned uuid, more boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_scan integer := lim * 20;
    v_old integer[];
    v_from uuid;
    v_mine uuid[];
    v_seen integer;
    v_found integer := 0;
    v_last uuid;
    r rotations;
    t wrapping_keys;
BEGIN
    UPDATE rotations x SET counted = true, total = x.done
         + (SELECT count(*) FROM content_keys k WHERE k.org_id = x.org_id AND k.blob IS NOT NULL AND k.generation = ANY (older_generations(x.org_id)))
         + (SELECT count(*) FROM recordings k WHERE k.org_id = x.org_id AND k.blob IS NOT NULL AND k.generation = ANY (older_generations(x.org_id)))
     WHERE (x.org_id, x.rotation_id) IN (SELECT y.org_id, y.rotation_id FROM rotations y
                                          WHERE y.kind = 'wrapping_key' AND y.state = 'running' AND y.begun AND NOT y.counted
                                          ORDER BY y.started_at, y.rotation_id LIMIT 100);
    -- Whose main key is locked has to wait: nothing of it may be opened.
    SELECT x.* INTO r FROM rotations x JOIN organisations o ON o.org_id = x.org_id
     WHERE x.kind = 'wrapping_key' AND x.state = 'running' AND x.begun AND (x.next_at IS NULL OR x.next_at <= v_now)
       AND o.locked = 0 AND o.state <> 'destroyed'
     ORDER BY x.started_at, x.rotation_id LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT w.* INTO STRICT t FROM wrapping_keys w JOIN organisations o ON o.org_id = w.org_id AND o.generation = w.generation WHERE w.org_id = r.org_id;
    v_old := older_generations(r.org_id);
    v_from := coalesce(r.cursor_id, '00000000-0000-0000-0000-000000000000');
    rotation := r.rotation_id;
    org := r.org_id;
    part := r.part;
    -- In the order of the primary key: the index of ids alone has all organisations' (see check_next).  A walk ends as soon as
    -- it has found enough, so it is not to be sorted; how far it got is asked for only when it did not.
    IF r.part = 'keys' THEN
        v_mine := ARRAY(
            SELECT s.key_id
              FROM (SELECT k.org_id, k.key_id, k.generation = ANY (v_old) AND k.blob IS NOT NULL AS mine FROM content_keys k
                     WHERE (k.org_id, k.key_id) > (r.org_id, v_from) AND k.org_id <= r.org_id ORDER BY k.org_id, k.key_id LIMIT v_scan) s
             WHERE s.mine ORDER BY s.org_id, s.key_id LIMIT lim + 1);
        IF cardinality(v_mine) <= lim THEN
            SELECT count(*), (array_agg(s.key_id ORDER BY s.key_id DESC))[1] INTO v_seen, v_last
              FROM (SELECT k.key_id FROM content_keys k
                     WHERE (k.org_id, k.key_id) > (r.org_id, v_from) AND k.org_id <= r.org_id ORDER BY k.org_id, k.key_id LIMIT v_scan) s;
        END IF;
    ELSE
        v_mine := ARRAY(
            SELECT s.recording_id
              FROM (SELECT k.org_id, k.recording_id, k.generation = ANY (v_old) AND k.blob IS NOT NULL AS mine FROM recordings k
                     WHERE (k.org_id, k.recording_id) > (r.org_id, v_from) AND k.org_id <= r.org_id ORDER BY k.org_id, k.recording_id LIMIT v_scan) s
             WHERE s.mine ORDER BY s.org_id, s.recording_id LIMIT lim + 1);
        IF cardinality(v_mine) <= lim THEN
            SELECT count(*), (array_agg(s.recording_id ORDER BY s.recording_id DESC))[1] INTO v_seen, v_last
              FROM (SELECT k.recording_id FROM recordings k
                     WHERE (k.org_id, k.recording_id) > (r.org_id, v_from) AND k.org_id <= r.org_id ORDER BY k.org_id, k.recording_id LIMIT v_scan) s;
        END IF;
    END IF;
    more := cardinality(v_mine) > lim OR v_seen = v_scan;
    IF cardinality(v_mine) > lim THEN
        v_last := v_mine[lim];
    END IF;
    scanned := v_last;
    to_generation := t.generation;
    to_root := t.root_id;
    to_wrapped := t.wrapped;
    FOR object, generation, root, wrapped, blob IN
        SELECT k.key_id, k.generation, w.root_id, w.wrapped, k.blob
          FROM content_keys k JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
         WHERE r.part = 'keys' AND (k.org_id, k.key_id) > (r.org_id, v_from) AND (k.org_id, k.key_id) <= (r.org_id, v_last)
           AND k.generation = ANY (v_old) AND k.blob IS NOT NULL
        UNION ALL
        SELECT k.recording_id, k.generation, w.root_id, w.wrapped, k.blob
          FROM recordings k JOIN wrapping_keys w ON w.org_id = k.org_id AND w.generation = k.generation
         WHERE r.part = 'recordings' AND (k.org_id, k.recording_id) > (r.org_id, v_from) AND (k.org_id, k.recording_id) <= (r.org_id, v_last)
           AND k.generation = ANY (v_old) AND k.blob IS NOT NULL
    LOOP
        v_found := v_found + 1;
        RETURN NEXT;
    END LOOP;
    IF v_found = 0 THEN
        object := NULL;
        RETURN NEXT;
    END IF;
END $$;
COMMENT ON FUNCTION reseal_next IS
    'What is to be moved next to its organisation''s current wrapping key, and how far that gets; one row without an object: nothing up to there';

CREATE FUNCTION reseal_store(rotation uuid, org uuid, part text, scanned uuid, more boolean, objects uuid[], befores bytea[],
    generations integer[], to_generation integer, afters bytea[], failed integer) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_count integer := 0;
    r rotations;
BEGIN
    PERFORM check_lengths(cardinality(objects), cardinality(befores), cardinality(generations), cardinality(afters));
    -- Whoever has a key's row locked goes on with it; it is come across again.
    IF cardinality(objects) = 0 THEN
        NULL;
    ELSIF part = 'keys' THEN
        WITH mine AS MATERIALIZED (
            SELECT k.key_id, i.after FROM unnest(objects, befores, generations, afters) AS i(object, before, generation, after)
              JOIN content_keys k ON k.org_id = org AND k.key_id = i.object AND k.generation = i.generation AND k.blob = i.before
             ORDER BY k.key_id FOR NO KEY UPDATE OF k SKIP LOCKED)
        UPDATE content_keys k SET generation = to_generation, blob = m.after FROM mine m WHERE k.org_id = org AND k.key_id = m.key_id;
        GET DIAGNOSTICS v_count = ROW_COUNT;
    ELSE
        WITH mine AS MATERIALIZED (
            SELECT k.recording_id, i.after FROM unnest(objects, befores, generations, afters) AS i(object, before, generation, after)
              JOIN recordings k ON k.org_id = org AND k.recording_id = i.object AND k.generation = i.generation AND k.blob = i.before
             ORDER BY k.recording_id FOR NO KEY UPDATE OF k SKIP LOCKED)
        UPDATE recordings k SET generation = to_generation, blob = m.after FROM mine m WHERE k.org_id = org AND k.recording_id = m.recording_id;
        GET DIAGNOSTICS v_count = ROW_COUNT;
    END IF;
    IF v_count > 0 THEN
        UPDATE wrapping_keys w SET wraps = w.wraps + v_count WHERE w.org_id = org AND w.generation = to_generation;
    END IF;
    SELECT x.* INTO r FROM rotations x WHERE x.org_id = org AND x.rotation_id = rotation FOR UPDATE;
    IF r.state <> 'running' OR r.to_id <> to_generation::text THEN      -- another generation is current by now
        RETURN jsonb_build_object('stored', v_count, 'state', r.state);
    END IF;
    r.done := r.done + v_count;
    r.found := r.found + cardinality(objects) + failed;
    r.stored := r.stored + v_count;
    r.problem := NULL;
    r.next_at := NULL;
    IF r.part <> part THEN
        NULL;                               -- another keeper is further on
    ELSIF more THEN
        r.cursor_id := scanned;
    ELSIF part = 'keys' THEN
        r.part := 'recordings';
        r.cursor_id := NULL;
    ELSE
        IF r.found = r.stored THEN          -- all that there was, and there is nothing new (reseal_begin)
            r.state := 'done';
            r.ended_at := v_now;
        ELSIF r.stored = 0 THEN
            r.problem := format('%s keys could not be moved: they do not open, or somebody holds them', r.found);
            r.next_at := v_now + interval '10 minutes';
        END IF;
        r.part := 'keys';
        r.cursor_id := NULL;
        r.found := 0;
        r.stored := 0;
    END IF;
    UPDATE rotations x SET done = r.done, total = greatest(x.total, r.done), found = r.found, stored = r.stored, part = r.part, cursor_id = r.cursor_id,
           state = r.state, ended_at = r.ended_at, problem = r.problem, next_at = r.next_at,
           moved_at = CASE WHEN v_count > 0 THEN v_now ELSE x.moved_at END
     WHERE x.org_id = org AND x.rotation_id = rotation;
    IF r.state = 'done' THEN
        PERFORM record_admin(org, gen_random_uuid(), 'keeper', 'wrapping_key.rotated', 0, jsonb_build_object('generation', to_generation, 'keys', r.done));
    END IF;
    RETURN jsonb_build_object('stored', v_count, 'state', r.state);
END $$;
COMMENT ON FUNCTION reseal_store IS
    'Moves those that are as they were, and the walk on; at its end it is done, unless something was left: then it goes round again';

CREATE FUNCTION generations_unneeded() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
DECLARE
    v_count integer;
BEGIN
    -- Channels live for an hour under the generation of their first message.
    WITH gone AS (
        UPDATE wrapping_keys w SET unneeded_at = clock_timestamp()
         WHERE (w.org_id, w.generation) IN (
               SELECT x.org_id, x.generation FROM wrapping_keys x JOIN organisations o ON o.org_id = x.org_id
                WHERE x.generation < o.generation AND x.month IS NULL AND x.destroyed_at IS NULL AND x.unneeded_at IS NULL
                  AND EXISTS (SELECT FROM rotations r WHERE r.org_id = x.org_id AND r.kind = 'wrapping_key' AND r.state = 'done'
                                 AND r.to_id::integer > x.generation AND r.ended_at < clock_timestamp() - interval '1 minute')
                  AND NOT EXISTS (SELECT FROM rotations r WHERE r.org_id = x.org_id AND r.kind = 'wrapping_key' AND r.state = 'running')
                  AND NOT EXISTS (SELECT FROM channels c WHERE c.org_id = x.org_id AND c.generation = x.generation)
                LIMIT 1000)
        RETURNING w.org_id, w.generation),
         recorded AS (
        INSERT INTO entries (org_id, op_id, verdict, action, kind, subject, detail)
        SELECT g.org_id, gen_random_uuid(), 0, 'wrapping_key.unneeded', 'keeper', 'keeper', jsonb_build_object('generations', jsonb_agg(g.generation ORDER BY g.generation))
          FROM gone g GROUP BY g.org_id)
    SELECT count(*) INTO v_count FROM gone;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION generations_unneeded IS 'Marks generations that nothing is wrapped under any more; how many';

-- ---------------------------------------------------------------------------------------------------- officers look

CREATE FUNCTION roots_list() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('root', r.root_id, 'state', r.state, 'created', ms(r.created_at), 'changed', ms(r.changed_at),
                   'destroyed', ms(r.destroyed_at), 'kcv', encode(r.kcv, 'hex'),
                   'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.root_id = r.root_id AND w.destroyed_at IS NULL),
                   'nodes', (SELECT coalesce(jsonb_agg(jsonb_build_object('node', n.node, 'opened', x.opened, 'gone', x.gone, 'why', x.why, 'at', ms(x.at))
                                                 ORDER BY n.node), '[]')
                               FROM root_nodes x JOIN nodes n ON n.org_id = x.org_id AND n.node_id = x.node_id
                              WHERE x.org_id = r.org_id AND x.root_id = r.root_id AND node_alive(n))) ORDER BY r.root_id), '[]')
      FROM roots r WHERE r.org_id = nobody()
$$;
COMMENT ON FUNCTION roots_list IS 'All roots that there were, and what nodes have found of them';

CREATE FUNCTION rotation_json(r rotations) RETURNS jsonb LANGUAGE sql STABLE
RETURN jsonb_strip_nulls(jsonb_build_object('rotation', r.rotation_id, 'kind', r.kind, 'to', r.to_id, 'state', r.state,
    'org_name', (SELECT o.name FROM organisations o WHERE o.org_id = r.org_id),
    'total', r.total, 'done', r.done, 'started', ms(r.started_at), 'moved', ms(r.moved_at), 'ended', ms(r.ended_at), 'problem', r.problem));
COMMENT ON FUNCTION rotation_json IS 'A rotation as officers see it';

CREATE FUNCTION rotations_status() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object('now', ms(clock_timestamp()), 'active', root_active(),
        'root', (SELECT rotation_json(r) || jsonb_build_object('phase', root_rotation_phase(r), 'waits', CASE root_rotation_phase(r)
                            WHEN 'wait' THEN root_rotation_waits(r.to_id::uuid) ELSE '[]' END)
                   FROM rotations r WHERE r.org_id = nobody() AND r.kind = 'root' AND r.state = 'running'),
        'wrapping_keys', (SELECT jsonb_build_object('organisations', count(*), 'asked', (SELECT count(*) FROM wrapping_keys w LEFT JOIN organisations o ON o.org_id = w.org_id
                                                                                                WHERE w.replace_at IS NOT NULL AND coalesce(o.locked, 0) = 0), 'waiting', count(*) FILTER (WHERE NOT r.counted),
                                     'problems', count(*) FILTER (WHERE r.problem IS NOT NULL),
                                     'total', coalesce(sum(r.total), 0), 'done', coalesce(sum(r.done), 0), 'started', ms(min(r.started_at)))
                            FROM rotations r WHERE r.kind = 'wrapping_key' AND r.state = 'running'),
        'running', (SELECT coalesce(jsonb_agg(rotation_json(x) ORDER BY x.started_at, x.rotation_id), '[]')
                      FROM (SELECT r.* FROM rotations r WHERE r.kind = 'wrapping_key' AND r.state = 'running'
                             ORDER BY r.started_at, r.rotation_id LIMIT 20) x),
        'ended', (SELECT coalesce(jsonb_agg(rotation_json(x) ORDER BY x.ended_at DESC), '[]')
                    FROM (SELECT r.* FROM rotations r WHERE r.state <> 'running' ORDER BY r.ended_at DESC LIMIT 10) x),
        'nodes', (SELECT coalesce(jsonb_agg(jsonb_build_object('node', n.node, 'seen', ms(n.seen_at), 'leads', n.node_id = l.node_id) ORDER BY n.node, n.node_id), '[]')
                    FROM nodes n CROSS JOIN keeper_lease l WHERE n.org_id = nobody() AND node_alive(n)))
$$;
COMMENT ON FUNCTION rotations_status IS 'How far rotations are';

-- ---------------------------------------------------------------------------------------------------- officers act

CREATE FUNCTION control_check_root(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_member text := CASE p_action WHEN 'root.rotate' THEN '' WHEN 'root.retire' THEN 'root' WHEN 'root.destroy' THEN 'root'
                                   WHEN 'wrapping_key.rotate' THEN 'org' END;
    a jsonb;
    v_count bigint;
    v_rotation rotations;
    r roots;
    c checked;
BEGIN
    c := ROW(400002, 'no such action', nobody(), NULL, true);
    IF v_member IS NULL OR jsonb_typeof(coalesce(p_args, '{}')) <> 'object' THEN
        RETURN c;
    END IF;
    a := jsonb_strip_nulls(coalesce(p_args, '{}'));
    c.args := a;
    IF EXISTS (SELECT FROM jsonb_object_keys(a) k WHERE k <> v_member) THEN
        c.why := CASE v_member WHEN '' THEN 'it has no arguments' ELSE 'members are: ' || v_member END;
        RETURN c;
    END IF;
    SELECT x.* INTO v_rotation FROM rotations x WHERE x.org_id = nobody() AND x.kind = 'root' AND x.state = 'running';
    IF p_action = 'wrapping_key.rotate' THEN
        IF a ? 'org' THEN
            SELECT o.org_id INTO c.org FROM organisations o WHERE o.name = a ->> 'org' AND o.state <> 'destroyed';
            IF NOT FOUND THEN
                c.org := nobody();
                c.verdict := 404001;
                c.why := 'no organisation of this name';
                RETURN c;
            END IF;
        END IF;
        c.verdict := 0;
        RETURN c;
    ELSIF p_action = 'root.rotate' THEN
        c.at_once := false;
        c.verdict := 409002;
        IF v_rotation.rotation_id IS NOT NULL THEN
            c.why := 'a rotation of the root is under way already';
        ELSIF root_active() IS NULL THEN
            c.why := 'there is no root yet: kmsctl hsm init';
        ELSE
            c.verdict := 0;
        END IF;
        RETURN c;
    END IF;

    c.at_once := p_action = 'root.retire';
    IF arg_uuid(a -> 'root') IS NULL THEN
        c.why := 'root is the id of one: kmsctl root list';
        RETURN c;
    END IF;
    a := jsonb_build_object('root', arg_uuid(a -> 'root'));
    c.args := a;
    SELECT x.* INTO r FROM roots x WHERE x.org_id = nobody() AND x.root_id = arg_uuid(a -> 'root');
    IF NOT FOUND AND NOT (p_action = 'root.retire' AND v_rotation.to_id IS NOT DISTINCT FROM a ->> 'root') THEN
        c.verdict := 404001;
        c.why := 'no such root';
        RETURN c;
    END IF;
    SELECT count(*) INTO v_count FROM wrapping_keys w WHERE w.root_id = r.root_id AND w.destroyed_at IS NULL;
    c.verdict := 409002;
    c.why := CASE
        WHEN r.state = 'active' THEN 'this is the active root: rotate first'
        WHEN r.state = 'leaving' THEN format('%s wrapping keys are still under this root, or it was not tried yet whether all opens without it; the rotation retires it when that is done', v_count)
        WHEN r.state IN ('destroying', 'destroyed') THEN 'this root is destroyed already'
        WHEN p_action = 'root.retire' AND r.state = 'retired' THEN 'this root is retired already'
        WHEN p_action = 'root.destroy' AND r.state <> 'retired' THEN 'this root is not retired'
        WHEN p_action = 'root.destroy' AND v_count > 0 THEN format('%s wrapping keys are still under this root', v_count)
        WHEN p_action = 'root.destroy' AND r.changed_at > clock_timestamp() - interval '2 minutes' THEN
            'this root was retired a moment ago, and nodes remember wrapping keys under it for a minute: try again in two' END;
    IF c.why IS NULL THEN
        c.verdict := 0;
    END IF;
    RETURN c;
END $$;
COMMENT ON FUNCTION control_check_root IS 'control_check() for roots and wrapping keys';

CREATE FUNCTION impact_facts_root(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN jsonb_strip_nulls(jsonb_build_object('organisations', '[]'::jsonb, 'services', '[]'::jsonb, 'active', root_active(),
        'state', (SELECT r.state FROM roots r WHERE r.org_id = nobody() AND r.root_id = arg_uuid(p_args -> 'root')),
        'wrapping_keys', (SELECT count(*) FROM wrapping_keys w
                           WHERE w.destroyed_at IS NULL AND w.root_id = coalesce(arg_uuid(p_args -> 'root'), root_active()))));
END $$;
COMMENT ON FUNCTION impact_facts_root IS 'impact_facts() for roots: the wrapping keys under it';

CREATE FUNCTION control_do_root(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz(3) := clock_timestamp();
    v_count integer;
    c checked;
    d deed := ROW(0, '{}', NULL, NULL, NULL);
BEGIN
    c := control_check_root(p_action, p_args);
    IF c.verdict <> 0 THEN
        RETURN ROW(c.verdict, jsonb_build_object('why', c.why), NULL, NULL, NULL)::deed;
    END IF;
    CASE p_action
    WHEN 'root.rotate' THEN
        INSERT INTO rotations (org_id, rotation_id, kind, to_id, total, started_at) VALUES (nobody(), gen_random_uuid(), 'root', '', 0, v_now)
        RETURNING jsonb_build_object('rotation', rotation_id, 'from', root_active()) INTO d.result;
    WHEN 'root.retire' THEN     -- one that never became active
        UPDATE roots r SET state = 'retired', changed_at = v_now WHERE r.org_id = nobody() AND r.root_id = arg_uuid(c.args -> 'root');
        UPDATE rotations r SET state = 'stopped', ended_at = v_now
         WHERE r.org_id = nobody() AND r.kind = 'root' AND r.state = 'running' AND r.to_id = c.args ->> 'root';
        d.result := jsonb_build_object('root', c.args -> 'root');
    WHEN 'root.destroy' THEN    -- node_root() tells when it is
        UPDATE roots r SET state = 'destroying', changed_at = v_now WHERE r.org_id = nobody() AND r.root_id = arg_uuid(c.args -> 'root');
        d.result := jsonb_build_object('root', c.args -> 'root');
    WHEN 'wrapping_key.rotate' THEN
        UPDATE wrapping_keys w SET replace_at = v_now
          FROM (SELECT o.org_id, o.generation FROM organisations o WHERE o.state <> 'destroyed' AND (c.org = nobody() OR o.org_id = c.org)
                UNION ALL SELECT t.org_id, t.generation FROM installation t WHERE c.org = nobody()) o
         WHERE w.org_id = o.org_id AND w.generation = o.generation AND w.replace_at IS NULL;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        d.result := jsonb_build_object('wrapping_keys', v_count);
    END CASE;
    RETURN d;
END $$;
COMMENT ON FUNCTION control_do_root IS 'control_do() for roots and wrapping keys; the keeper does what is in the HSM';

CREATE FUNCTION control_about_root(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
    SELECT control_about_policy(p_org, p_action, p_args)
        || CASE WHEN arg_uuid(p_args -> 'root') IS NULL THEN '{}' ELSE jsonb_build_object('root', p_args -> 'root') END
$$;
COMMENT ON FUNCTION control_about_root IS 'control_about() for roots';

CREATE OR REPLACE FUNCTION control_check(p_action text, p_args jsonb) RETURNS checked LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN control_check_cmk(p_action, p_args);
    WHEN 'root', 'wrapping_key' THEN RETURN control_check_root(p_action, p_args);
    ELSE RETURN control_check_policy(p_action, p_args);
    END CASE;
END $$;

CREATE OR REPLACE FUNCTION impact_facts(p_action text, p_args jsonb, p_org uuid) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN impact_facts_cmk(p_action, p_args, p_org);
    WHEN 'root', 'wrapping_key' THEN RETURN impact_facts_root(p_action, p_args, p_org);
    ELSE RETURN impact_facts_policy(p_action, p_args, p_org);
    END CASE;
END $$;

CREATE OR REPLACE FUNCTION control_about(p_org uuid, p_action text, p_args jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN control_about_cmk(p_org, p_action, p_args);
    WHEN 'root', 'wrapping_key' THEN RETURN control_about_root(p_org, p_action, p_args);
    ELSE RETURN control_about_policy(p_org, p_action, p_args);
    END CASE;
END $$;

CREATE OR REPLACE FUNCTION control_do(p_action text, p_args jsonb) RETURNS deed LANGUAGE plpgsql AS $$
BEGIN
    CASE split_part(p_action, '.', 1)
    WHEN 'cmk' THEN RETURN control_do_cmk(p_action, p_args);
    WHEN 'root', 'wrapping_key' THEN RETURN control_do_root(p_action, p_args);
    ELSE RETURN control_do_policy(p_action, p_args);
    END CASE;
END $$;

GRANT EXECUTE ON FUNCTION node_turn, node_root, rotation_problem, root_rotation_name, root_rotation_made, root_rotation_advance, rewrap_next,
    rewrap_store, check_next, root_rotation_end, reseal_begin, reseal_next, reseal_store, generations_unneeded, roots_list, rotations_status
    TO kms_keeper;
