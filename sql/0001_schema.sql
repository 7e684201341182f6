-- 0001_schema.sql - roles, tables and what guards them.
--
-- Who may what: kms_owner (no login) owns everything and is whom the functions run as; kms_worker and kms_keeper
-- log in and may execute functions, nothing else.  So "no record, no key" is the database's own promise.
--
-- Every primary key starts with the organisation.  The nil organisation is the installation itself.
-- Invariants rest on unique constraints and row locks under READ COMMITTED.

DO $$
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database''s encoding is %, it must be UTF8', current_setting('server_encoding');
    END IF;
END $$;

-- Roles belong to the cluster: they may be there already, or another database's migration may make them now.
DO $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT * FROM (VALUES ('kms_owner', 'NOLOGIN'), ('kms_worker', 'LOGIN'), ('kms_keeper', 'LOGIN')) v(name, how)
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = r.name);
        BEGIN
            EXECUTE format('CREATE ROLE %I %s NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', r.name, r.how);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
    IF NOT pg_has_role(current_user, 'kms_owner', 'MEMBER') THEN
        EXECUTE format('GRANT kms_owner TO %I', current_user);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO kms_worker, kms_keeper', current_database());
    -- The database is ours alone; without this anybody who may connect may make temporary tables.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END $$;

CREATE SCHEMA kms AUTHORIZATION kms_owner;
SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE USAGE ON TYPES FROM PUBLIC;
REVOKE ALL ON SCHEMA kms FROM PUBLIC;
GRANT USAGE ON SCHEMA kms TO kms_worker, kms_keeper;
COMMENT ON SCHEMA kms IS 'Key management server: sql/README.md';

CREATE TABLE schema_migrations (
    number integer PRIMARY KEY CHECK (number > 0),
    name text NOT NULL,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE schema_migrations IS 'Which migrations this database has; written by sql/migrate.c';
COMMENT ON COLUMN schema_migrations.number IS 'The migration''s number';
COMMENT ON COLUMN schema_migrations.name IS 'Its file''s name';
COMMENT ON COLUMN schema_migrations.sha256 IS 'Of its text: an applied migration must never change';
COMMENT ON COLUMN schema_migrations.applied_at IS 'When it was applied';

CREATE TABLE organisations (
    org_id uuid PRIMARY KEY CHECK (org_id <> '00000000-0000-0000-0000-000000000000'),
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
    generation integer NOT NULL CHECK (generation >= 1),
    created_at timestamptz(3) NOT NULL
);
COMMENT ON TABLE organisations IS 'Whose keys these are';
COMMENT ON COLUMN organisations.org_id IS 'Id; never the nil one, which stands for the installation';
COMMENT ON COLUMN organisations.name IS 'What tokens call it';
COMMENT ON COLUMN organisations.state IS 'suspended: every request is refused';
COMMENT ON COLUMN organisations.generation IS 'Its current wrapping key; new keys are wrapped under no other';
COMMENT ON COLUMN organisations.created_at IS 'Since when';

CREATE TABLE roots (
    org_id uuid NOT NULL,
    root_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'retired')),
    kcv bytea NOT NULL CHECK (octet_length(kcv) = 8),
    wrapped bytea NOT NULL CHECK (octet_length(wrapped) = 40),
    sentinel bytea NOT NULL CHECK (octet_length(sentinel) = 61),
    created_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, root_id)
);
CREATE UNIQUE INDEX roots_active ON roots (org_id) WHERE state = 'active';
COMMENT ON TABLE roots IS 'Root keys in the HSM, by name; a node proves that it holds the same one by opening the sentinel';
COMMENT ON COLUMN roots.org_id IS 'Nil: the installation''s';
COMMENT ON COLUMN roots.root_id IS 'The root''s id in the HSM';
COMMENT ON COLUMN roots.state IS 'At most one is active';
COMMENT ON COLUMN roots.kcv IS 'Check value of the sentinel''s wrapping key';
COMMENT ON COLUMN roots.wrapped IS 'The sentinel''s wrapping key, wrapped by this root';
COMMENT ON COLUMN roots.sentinel IS 'A blob under that wrapping key: organisation nil, generation 0, object = root_id';
COMMENT ON COLUMN roots.created_at IS 'Since when';

-- wraps is counted up all the time: room on the page keeps those updates out of the index.
CREATE TABLE wrapping_keys (
    org_id uuid NOT NULL REFERENCES organisations,
    generation integer NOT NULL CHECK (generation >= 1),
    root_id uuid NOT NULL,
    wrapped bytea NOT NULL CHECK (octet_length(wrapped) = 40),
    kcv bytea NOT NULL CHECK (octet_length(kcv) = 8),
    wraps bigint NOT NULL DEFAULT 0 CHECK (wraps >= 0),
    created_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, generation)
) WITH (fillfactor = 50);
COMMENT ON TABLE wrapping_keys IS 'Keys that wrap content keys and channel keys; no generation is ever deleted';
COMMENT ON COLUMN wrapping_keys.org_id IS 'Organisation';
COMMENT ON COLUMN wrapping_keys.generation IS '1, 2, ...; the highest is current';
COMMENT ON COLUMN wrapping_keys.root_id IS 'The root that it is wrapped by';
COMMENT ON COLUMN wrapping_keys.wrapped IS 'AES key wrap of the 32 bytes';
COMMENT ON COLUMN wrapping_keys.kcv IS 'Check value';
COMMENT ON COLUMN wrapping_keys.wraps IS 'How often it has wrapped, as far as the workers have told';
COMMENT ON COLUMN wrapping_keys.created_at IS 'Since when';

CREATE TABLE resources (
    org_id uuid NOT NULL REFERENCES organisations,
    resource_id uuid NOT NULL,
    creator text NOT NULL CHECK (octet_length(creator) BETWEEN 1 AND 256),
    created_at timestamptz(3) NOT NULL,
    expires_at timestamptz(3),
    destroyed_at timestamptz(3),
    PRIMARY KEY (org_id, resource_id)
);
CREATE INDEX resources_anywhere ON resources (resource_id);
CREATE INDEX resources_due ON resources (expires_at) WHERE destroyed_at IS NULL AND expires_at IS NOT NULL;
COMMENT ON TABLE resources IS 'What keys are bound to: a space, a meeting, a file; never deleted, so that 410 can be told from 404';
COMMENT ON COLUMN resources.org_id IS 'Organisation';
COMMENT ON COLUMN resources.resource_id IS 'Id in URIs';
COMMENT ON COLUMN resources.creator IS 'The user who made it';
COMMENT ON COLUMN resources.created_at IS 'When';
COMMENT ON COLUMN resources.expires_at IS 'From then on it counts as destroyed; NULL: never';
COMMENT ON COLUMN resources.destroyed_at IS 'When the sweeper had destroyed the last of its keys';

-- No foreign key to wrapping_keys: each key made would lock the one row that all share.  keys_create takes the
-- organisation's current generation only, and generations are never deleted.
CREATE TABLE content_keys (
    org_id uuid NOT NULL,
    key_id uuid NOT NULL,
    generation integer NOT NULL CHECK (generation >= 1),
    blob bytea CHECK (octet_length(blob) = 61),
    creator text NOT NULL CHECK (octet_length(creator) BETWEEN 1 AND 256),
    client_id text NOT NULL CHECK (octet_length(client_id) <= 512),
    created_at timestamptz(3) NOT NULL,
    expires_at timestamptz(3),
    resource_id uuid,
    bound_at timestamptz(3),
    destroyed_at timestamptz(3),
    PRIMARY KEY (org_id, key_id),
    FOREIGN KEY (org_id, resource_id) REFERENCES resources,
    CHECK ((resource_id IS NULL) = (bound_at IS NULL)),
    CHECK (resource_id IS NOT NULL OR expires_at IS NOT NULL),
    CHECK ((blob IS NULL) = (destroyed_at IS NOT NULL))
);
ALTER TABLE content_keys ALTER COLUMN blob SET STORAGE PLAIN;
CREATE INDEX content_keys_anywhere ON content_keys (key_id);
CREATE INDEX content_keys_bound ON content_keys (org_id, resource_id, bound_at, key_id) WHERE resource_id IS NOT NULL;
CREATE INDEX content_keys_unbound_due ON content_keys (expires_at) WHERE resource_id IS NULL;
COMMENT ON TABLE content_keys IS 'Content keys, each wrapped under its organisation''s wrapping key';
COMMENT ON COLUMN content_keys.org_id IS 'Organisation';
COMMENT ON COLUMN content_keys.key_id IS 'Id in URIs';
COMMENT ON COLUMN content_keys.generation IS 'Of the wrapping key';
COMMENT ON COLUMN content_keys.blob IS 'AES-256-GCM of the 32 bytes: format, nonce, ciphertext, tag.  NULL: destroyed';
COMMENT ON COLUMN content_keys.creator IS 'The user who asked for it';
COMMENT ON COLUMN content_keys.client_id IS 'With which client';
COMMENT ON COLUMN content_keys.created_at IS 'When';
COMMENT ON COLUMN content_keys.expires_at IS 'Unbound: until when it may be bound.  Bound: until when it may encrypt, NULL: for ever';
COMMENT ON COLUMN content_keys.resource_id IS 'What it is bound to; set once';
COMMENT ON COLUMN content_keys.bound_at IS 'Since when';
COMMENT ON COLUMN content_keys.destroyed_at IS 'When its blob was removed';

CREATE TABLE authorizations (
    org_id uuid NOT NULL,
    authorization_id uuid NOT NULL,
    resource_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('user', 'resource', 'anonymous')),
    grantee text CHECK (octet_length(grantee) BETWEEN 1 AND 256),
    granted_by text NOT NULL CHECK (octet_length(granted_by) BETWEEN 1 AND 256),
    created_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, authorization_id),
    FOREIGN KEY (org_id, resource_id) REFERENCES resources,
    UNIQUE (org_id, resource_id, kind, grantee),
    CHECK ((kind = 'anonymous') = (grantee IS NULL)),
    CHECK (kind <> 'resource' OR grantee ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')
);
CREATE INDEX authorizations_anywhere ON authorizations (authorization_id);
COMMENT ON TABLE authorizations IS 'Who is authorised on which resource; they outlive their resource, for 410 is told to nobody else';
COMMENT ON COLUMN authorizations.org_id IS 'Organisation';
COMMENT ON COLUMN authorizations.authorization_id IS 'Id in URIs';
COMMENT ON COLUMN authorizations.resource_id IS 'On what';
COMMENT ON COLUMN authorizations.kind IS 'user; resource: whoever is authorised on that one; anonymous: whoever holds its bearer token';
COMMENT ON COLUMN authorizations.grantee IS 'The user''s id, or the resource''s as text; NULL: anonymous';
COMMENT ON COLUMN authorizations.granted_by IS 'The user who granted it';
COMMENT ON COLUMN authorizations.created_at IS 'When';

CREATE TABLE channels (
    org_id uuid NOT NULL,
    channel_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('user', 'anonymous')),
    subject text NOT NULL CHECK (octet_length(subject) BETWEEN 1 AND 256),
    client_id text NOT NULL CHECK (octet_length(client_id) <= 512),
    generation integer NOT NULL CHECK (generation >= 1),
    blob bytea NOT NULL CHECK (octet_length(blob) = 61),
    created_at timestamptz(3) NOT NULL,
    expires_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, channel_id)
);
ALTER TABLE channels ALTER COLUMN blob SET STORAGE PLAIN;
CREATE INDEX channels_anywhere ON channels (channel_id);
CREATE INDEX channels_due ON channels (expires_at);
COMMENT ON TABLE channels IS 'Ephemeral keys that clients talk under; good on every node until they end';
COMMENT ON COLUMN channels.org_id IS 'Organisation';
COMMENT ON COLUMN channels.channel_id IS 'Id in the key''s URI';
COMMENT ON COLUMN channels.kind IS 'What sort of principal: user, or anonymous (by an anonymous authorisation)';
COMMENT ON COLUMN channels.subject IS 'The user''s id, or the authorisation''s';
COMMENT ON COLUMN channels.client_id IS 'The client that made it';
COMMENT ON COLUMN channels.generation IS 'Of the wrapping key';
COMMENT ON COLUMN channels.blob IS 'The channel key, wrapped as content keys are';
COMMENT ON COLUMN channels.created_at IS 'When';
COMMENT ON COLUMN channels.expires_at IS 'Until when';

-- No foreign keys: an entry must be writable whatever it speaks of.
CREATE TABLE entries (
    org_id uuid NOT NULL,
    entry_id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    op_id uuid NOT NULL,
    verdict integer NOT NULL CHECK (verdict >= 0),
    action text NOT NULL,
    kind text,
    subject text,
    on_behalf text,
    client_id text,
    channel_id uuid,
    resource_id uuid,
    key_ids uuid[],
    path uuid[],
    request_id text,
    detail jsonb,
    PRIMARY KEY (org_id, entry_id),
    UNIQUE (org_id, op_id)
);
COMMENT ON TABLE entries IS 'The audit log: appended in the transaction of what it records, never changed';
COMMENT ON COLUMN entries.org_id IS 'Organisation; nil: the installation''s own log';
COMMENT ON COLUMN entries.entry_id IS 'Ascending; there may be gaps';
COMMENT ON COLUMN entries.at IS 'When';
COMMENT ON COLUMN entries.op_id IS 'Operation id, chosen by the caller: the same operation is never done twice';
COMMENT ON COLUMN entries.verdict IS '0: done; else the errorCode of the refusal';
COMMENT ON COLUMN entries.action IS 'channel.create, key.get, ...: kms_op_name() in proto/msg.h, and the keeper''s own';
COMMENT ON COLUMN entries.kind IS 'What sort of principal: user, anonymous, operator, keeper; NULL: not known';
COMMENT ON COLUMN entries.subject IS 'Who; NULL: not known';
COMMENT ON COLUMN entries.on_behalf IS 'As whom an officer asked (onBehalfOf)';
COMMENT ON COLUMN entries.client_id IS 'With which client';
COMMENT ON COLUMN entries.channel_id IS 'On which channel';
COMMENT ON COLUMN entries.resource_id IS 'The resource spoken of';
COMMENT ON COLUMN entries.key_ids IS 'The keys spoken of: made, released, refused, destroyed';
COMMENT ON COLUMN entries.path IS 'How the subject was authorised: {} directly, else the resources passed through';
COMMENT ON COLUMN entries.request_id IS 'The client''s requestId';
COMMENT ON COLUMN entries.detail IS 'What else belongs to it; of a change: the answer that was given';

CREATE TABLE fence (
    org_id uuid PRIMARY KEY,
    touched bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE fence IS 'One row, written when an operation is run again: the answer must wait for the standbys as the first did';
COMMENT ON COLUMN fence.org_id IS 'Nil';
COMMENT ON COLUMN fence.touched IS 'How often';
INSERT INTO fence VALUES ('00000000-0000-0000-0000-000000000000');

CREATE FUNCTION never() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% of %.% is not allowed, not even to its owner', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
COMMENT ON FUNCTION never() IS 'Trigger: guards what must never change';

CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER wrapping_keys_stay BEFORE DELETE OR TRUNCATE ON wrapping_keys
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER resources_stay BEFORE DELETE OR TRUNCATE ON resources
    FOR EACH STATEMENT EXECUTE FUNCTION never();
CREATE TRIGGER roots_stay BEFORE DELETE OR TRUNCATE ON roots
    FOR EACH STATEMENT EXECUTE FUNCTION never();
