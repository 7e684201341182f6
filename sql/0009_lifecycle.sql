-- 0009_lifecycle.sql - containers, recordings, main keys, roots, destruction, freezing: tables, and what their functions share.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------- containers

ALTER TABLE resources
    ADD COLUMN security text NOT NULL DEFAULT 'standard' CHECK (security IN ('standard', 'zero-trust')),
    ADD CONSTRAINT resources_zero_trust CHECK (security = 'standard' OR kind = 'meeting');
COMMENT ON COLUMN resources.security IS 'zero-trust: this server keeps the membership and no key';

CREATE TABLE recordings (
    org_id uuid NOT NULL,
    recording_id uuid NOT NULL,
    resource_id uuid NOT NULL,
    type text NOT NULL CHECK (type IN ('recording', 'transcript')),
    key_id uuid NOT NULL,
    generation integer NOT NULL CHECK (generation >= 1),
    blob bytea CHECK (octet_length(blob) = 61),
    iv bytea CHECK (octet_length(iv) = 12),
    aad text CHECK (octet_length(aad) <= 256),
    loc text CHECK (octet_length(loc) <= 4096),
    tag text CHECK (octet_length(tag) <= 64),
    creator text NOT NULL CHECK (octet_length(creator) BETWEEN 1 AND 256),
    created_at timestamptz(3) NOT NULL,
    expires_at timestamptz(3),
    destroyed_at timestamptz(3),
    PRIMARY KEY (org_id, recording_id),
    FOREIGN KEY (org_id, resource_id) REFERENCES resources,
    FOREIGN KEY (org_id, key_id) REFERENCES content_keys,
    CHECK ((blob IS NULL) = (destroyed_at IS NOT NULL))
);
ALTER TABLE recordings ALTER COLUMN blob SET STORAGE PLAIN;
CREATE INDEX recordings_anywhere ON recordings (recording_id);
CREATE INDEX recordings_of ON recordings (org_id, resource_id, created_at, recording_id);
CREATE INDEX recordings_due ON recordings (expires_at) WHERE destroyed_at IS NULL AND expires_at IS NOT NULL;
COMMENT ON TABLE recordings IS 'Recordings and transcripts of containers, each with a key of its own';
COMMENT ON COLUMN recordings.org_id IS 'Organisation';
COMMENT ON COLUMN recordings.recording_id IS 'Id in URIs, and the object of its blob';
COMMENT ON COLUMN recordings.resource_id IS 'The container';
COMMENT ON COLUMN recordings.type IS 'recording or transcript';
COMMENT ON COLUMN recordings.key_id IS 'The container''s key that its message is encrypted to';
COMMENT ON COLUMN recordings.generation IS 'Of the wrapping key';
COMMENT ON COLUMN recordings.blob IS 'Its own key, wrapped as content keys are; NULL: destroyed';
COMMENT ON COLUMN recordings.iv IS 'Of the file (node-scr); NULL: destroyed';
COMMENT ON COLUMN recordings.aad IS 'Of the file, as the message has it';
COMMENT ON COLUMN recordings.loc IS 'Where the file lies';
COMMENT ON COLUMN recordings.tag IS 'Of the file';
COMMENT ON COLUMN recordings.creator IS 'The user who made it';
COMMENT ON COLUMN recordings.created_at IS 'When';
COMMENT ON COLUMN recordings.expires_at IS 'From then on it counts as destroyed; NULL: never';
COMMENT ON COLUMN recordings.destroyed_at IS 'When its key was removed';
CREATE TRIGGER recordings_stay BEFORE DELETE OR TRUNCATE ON recordings FOR EACH STATEMENT EXECUTE FUNCTION never();

-- ---------------------------------------------------------------------------------------------------- keys above keys

-- What wraps an organisation's wrapping keys: a root of the installation, a main key of its own, or, for those of a month
-- of expiry, a period key.  wrapping_keys.root_id names it; a wrapping key whose own wrapping was removed is destroyed.
ALTER TABLE roots DROP CONSTRAINT roots_state_check;
ALTER TABLE roots ADD COLUMN changed_at timestamptz(3), ADD COLUMN destroyed_at timestamptz(3),
    ADD CONSTRAINT roots_state_check CHECK (state IN ('added', 'verified', 'active', 'retired', 'destroyed'));
COMMENT ON COLUMN roots.state IS 'added, verified: the next one; active: new wrapping keys are wrapped by it; retired: nothing new; destroyed';
COMMENT ON COLUMN roots.changed_at IS 'Since when it is in this state';
COMMENT ON COLUMN roots.destroyed_at IS 'When it was destroyed in the HSM';

ALTER TABLE wrapping_keys ALTER COLUMN wrapped DROP NOT NULL;
ALTER TABLE wrapping_keys
    ADD COLUMN month date CHECK (month = date_trunc('month', month)),
    ADD COLUMN destroyed_at timestamptz(3),
    ADD CONSTRAINT wrapping_keys_destroyed CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL));
CREATE UNIQUE INDEX wrapping_keys_of_month ON wrapping_keys (org_id, month) WHERE month IS NOT NULL;
CREATE INDEX wrapping_keys_under ON wrapping_keys (root_id) WHERE destroyed_at IS NULL;
COMMENT ON COLUMN wrapping_keys.generation IS '1, 2, ...; which one is current: organisations.generation';
COMMENT ON COLUMN wrapping_keys.root_id IS 'What it is wrapped by: a root, a main key, a period key';
COMMENT ON COLUMN wrapping_keys.wrapped IS 'AES key wrap of the 32 bytes; NULL: destroyed';
COMMENT ON COLUMN wrapping_keys.month IS 'It wraps only what expires in this month, and is destroyed with it; NULL: an ordinary one';
COMMENT ON COLUMN wrapping_keys.destroyed_at IS 'When it was destroyed';

CREATE TABLE period_keys (
    org_id uuid NOT NULL,
    month date NOT NULL CHECK (month = date_trunc('month', month)),
    key_id uuid NOT NULL UNIQUE,
    kcv bytea NOT NULL CHECK (octet_length(kcv) = 8),
    created_at timestamptz(3) NOT NULL,
    destroyed_at timestamptz(3),
    PRIMARY KEY (org_id, month)
);
COMMENT ON TABLE period_keys IS 'Keys in the HSM that are destroyed when a month of expiry is over: with one of them all that only it opened is gone from every backup';
COMMENT ON COLUMN period_keys.org_id IS 'Whose';
COMMENT ON COLUMN period_keys.month IS 'First day of the month';
COMMENT ON COLUMN period_keys.key_id IS 'Its id in the HSM';
COMMENT ON COLUMN period_keys.kcv IS 'Check value';
COMMENT ON COLUMN period_keys.created_at IS 'Since when';
COMMENT ON COLUMN period_keys.destroyed_at IS 'When it was destroyed in the HSM';

CREATE TABLE import_pairs (
    org_id uuid PRIMARY KEY REFERENCES organisations,
    pair_id uuid NOT NULL UNIQUE,
    public_key bytea,
    created_at timestamptz(3) NOT NULL
);
COMMENT ON TABLE import_pairs IS 'RSA pairs in the HSM that main keys are sent to';
COMMENT ON COLUMN import_pairs.org_id IS 'Organisation';
COMMENT ON COLUMN import_pairs.pair_id IS 'Id in the HSM';
COMMENT ON COLUMN import_pairs.public_key IS 'DER SubjectPublicKeyInfo; NULL: not made yet';
COMMENT ON COLUMN import_pairs.created_at IS 'Since when';

CREATE TABLE main_keys (
    org_id uuid NOT NULL REFERENCES organisations,
    main_key_id uuid NOT NULL,
    state text NOT NULL CHECK (state IN ('IMPORTING', 'PENDING', 'ACTIVE', 'DEACTIVATED', 'REVOKED', 'DISABLED', 'RETIRED', 'DELETED', 'REMOVEDCLEAN')),
    source text NOT NULL DEFAULT 'UPLOAD',
    kcv bytea CHECK (octet_length(kcv) = 8),
    created_at timestamptz(3) NOT NULL,
    state_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, main_key_id)
);
CREATE INDEX main_keys_anywhere ON main_keys (main_key_id);
-- One key of an organisation is in force, and a locked one stays in force.
CREATE UNIQUE INDEX main_keys_in_force ON main_keys (org_id) WHERE state IN ('ACTIVE', 'REVOKED', 'DISABLED');
COMMENT ON TABLE main_keys IS 'Customers'' own main keys (protocol section 5)';
COMMENT ON COLUMN main_keys.org_id IS 'Organisation';
COMMENT ON COLUMN main_keys.main_key_id IS 'Id in URIs and in the HSM';
COMMENT ON COLUMN main_keys.state IS 'usageState; IMPORTING: written down before the HSM is asked, shown to nobody';
COMMENT ON COLUMN main_keys.source IS 'Where it came from';
COMMENT ON COLUMN main_keys.kcv IS 'Check value';
COMMENT ON COLUMN main_keys.created_at IS 'When it was imported';
COMMENT ON COLUMN main_keys.state_at IS 'stateUpdatedOn';
CREATE TRIGGER main_keys_stay BEFORE DELETE OR TRUNCATE ON main_keys FOR EACH STATEMENT EXECUTE FUNCTION never();

ALTER TABLE organisations
    DROP CONSTRAINT organisations_state_check,
    ADD CONSTRAINT organisations_state_check CHECK (state IN ('active', 'suspended', 'destroyed')),
    ADD COLUMN main_key_id uuid,
    ADD COLUMN locked integer;
-- In steps: functions that take a row of it stand in the way of a default in the same command.
UPDATE organisations SET locked = 0;
ALTER TABLE organisations ALTER COLUMN locked SET DEFAULT 0, ALTER COLUMN locked SET NOT NULL,
    ADD CONSTRAINT organisations_locked_check CHECK (locked IN (0, 405005, 405006));
COMMENT ON COLUMN organisations.state IS 'suspended: every request is refused; destroyed: so are its keys';
COMMENT ON COLUMN organisations.main_key_id IS 'What wraps its wrapping keys; NULL: the active root';
COMMENT ON COLUMN organisations.locked IS '405005: its main key is revoked, 405006: disabled; every request for its keys is answered so';

-- ---------------------------------------------------------------------------------------------------- long work

CREATE TABLE rotations (
    org_id uuid NOT NULL,
    rotation_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('root', 'wrapping_key')),
    to_id text NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done')),
    total bigint NOT NULL,
    done bigint NOT NULL DEFAULT 0,
    cursor_org uuid,
    cursor_id uuid,
    started_at timestamptz(3) NOT NULL,
    ended_at timestamptz(3),
    PRIMARY KEY (org_id, rotation_id)
);
CREATE UNIQUE INDEX rotations_running ON rotations (org_id, kind) WHERE state = 'running';
COMMENT ON TABLE rotations IS 'Re-wrapping under way and done: of wrapping keys under a new root (nil organisation), of an organisation''s keys under a new wrapping key';
COMMENT ON COLUMN rotations.org_id IS 'Nil: all wrapping keys under the root';
COMMENT ON COLUMN rotations.rotation_id IS 'Id';
COMMENT ON COLUMN rotations.kind IS 'root or wrapping_key';
COMMENT ON COLUMN rotations.to_id IS 'The new root''s id, or the new generation';
COMMENT ON COLUMN rotations.state IS 'running or done';
COMMENT ON COLUMN rotations.total IS 'How many there were at the start';
COMMENT ON COLUMN rotations.done IS 'How many are re-wrapped';
COMMENT ON COLUMN rotations.cursor_org IS 'Up to here all are done';
COMMENT ON COLUMN rotations.cursor_id IS 'Likewise';
COMMENT ON COLUMN rotations.started_at IS 'When it began';
COMMENT ON COLUMN rotations.ended_at IS 'When it ended';

CREATE TABLE destructions (
    org_id uuid NOT NULL,
    destruction_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('key', 'resource', 'recording', 'organisation')),
    target uuid NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'undone', 'done')),
    approval_id uuid,
    requested_by text NOT NULL,
    created_at timestamptz(3) NOT NULL,
    due_at timestamptz(3) NOT NULL,
    ended_at timestamptz(3),
    certificate_id uuid,
    PRIMARY KEY (org_id, destruction_id)
);
CREATE UNIQUE INDEX destructions_waiting ON destructions (org_id, kind, target) WHERE state = 'waiting';
CREATE INDEX destructions_due ON destructions (due_at) WHERE state = 'waiting';
COMMENT ON TABLE destructions IS 'Destruction by command: it waits, and can be undone until then';
COMMENT ON COLUMN destructions.org_id IS 'Organisation';
COMMENT ON COLUMN destructions.destruction_id IS 'Id';
COMMENT ON COLUMN destructions.kind IS 'Of what';
COMMENT ON COLUMN destructions.target IS 'Which';
COMMENT ON COLUMN destructions.state IS 'waiting; undone; done';
COMMENT ON COLUMN destructions.approval_id IS 'Who agreed to it: approvals';
COMMENT ON COLUMN destructions.requested_by IS 'Who asked for it';
COMMENT ON COLUMN destructions.created_at IS 'When';
COMMENT ON COLUMN destructions.due_at IS 'When it is done, unless undone';
COMMENT ON COLUMN destructions.ended_at IS 'When it was done or undone';
COMMENT ON COLUMN destructions.certificate_id IS 'What proves it';

CREATE TABLE certificates (
    org_id uuid NOT NULL,
    certificate_id uuid NOT NULL,
    text text NOT NULL,
    note text,
    created_at timestamptz(3) NOT NULL,
    signed_at timestamptz(3),
    PRIMARY KEY (org_id, certificate_id)
);
CREATE INDEX certificates_unsigned ON certificates (created_at) WHERE signed_at IS NULL;
COMMENT ON TABLE certificates IS 'Certificates of destruction: written with the deed, signed by the keeper right after';
COMMENT ON COLUMN certificates.org_id IS 'Organisation';
COMMENT ON COLUMN certificates.certificate_id IS 'Id';
COMMENT ON COLUMN certificates.text IS 'What was destroyed, when, why, by whom approved, under which wrapping keys';
COMMENT ON COLUMN certificates.note IS 'The text as a signed note (C2SP), by the audit key';
COMMENT ON COLUMN certificates.created_at IS 'When';
COMMENT ON COLUMN certificates.signed_at IS 'When it was signed';
CREATE TRIGGER certificates_stay BEFORE DELETE OR TRUNCATE ON certificates FOR EACH STATEMENT EXECUTE FUNCTION never();

CREATE TABLE freezes (
    org_id uuid NOT NULL,
    freeze_id uuid NOT NULL,
    scope text NOT NULL CHECK (scope IN ('resource', 'user', 'purpose', 'service', 'org')),
    target text NOT NULL,
    until timestamptz(3) NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, scope, target)
);
COMMENT ON TABLE freezes IS 'What is not released for a while: 405006';
COMMENT ON COLUMN freezes.org_id IS 'Organisation; nil: a service or purpose everywhere';
COMMENT ON COLUMN freezes.freeze_id IS 'Id';
COMMENT ON COLUMN freezes.scope IS 'resource, user, purpose, service, org';
COMMENT ON COLUMN freezes.target IS 'Which: id, subject, name; of org its id';
COMMENT ON COLUMN freezes.until IS 'Until when';
COMMENT ON COLUMN freezes.created_by IS 'Which officer';
COMMENT ON COLUMN freezes.created_at IS 'Since when';
