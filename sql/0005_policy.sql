-- 0005_policy.sql - what is agreed about services: purposes, registrations, matters, rules, approvals.  Tables only, and
-- the small parts that the functions of 0006 and later share.
--
-- Nothing here is cached anywhere: who releases a key reads these rows in the transaction of the release.  Who changes
-- them takes policy_lock() first, who releases takes policy_share(): a change waits for the releases that began under the old
-- rules, and those that begin later see the new ones, on every node.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

CREATE FUNCTION policy_lock() RETURNS void LANGUAGE sql VOLATILE
RETURN pg_advisory_xact_lock(hashtextextended('kms.policy', 0));
COMMENT ON FUNCTION policy_lock IS 'Alone until the transaction''s end: nobody releases under rules that it changes';
CREATE FUNCTION policy_share() RETURNS void LANGUAGE sql VOLATILE
RETURN pg_advisory_xact_lock_shared(hashtextextended('kms.policy', 0));
COMMENT ON FUNCTION policy_share IS 'Rules stay as they are until the transaction''s end; take it in a statement before the one that reads them';

-- ---------------------------------------------------------------------------------------------------- resources, keys

ALTER TABLE resources ADD COLUMN kind text NOT NULL DEFAULT 'space'
    CHECK (kind IN ('space', 'meeting', 'file', 'whiteboard', 'calendar'));
COMMENT ON COLUMN resources.kind IS 'What sort of container: space, meeting, file, whiteboard, calendar';

-- Services walk keys in the order of the transactions that bound them: nothing that commits late is passed over.
ALTER TABLE content_keys ADD COLUMN bound_xact bigint;
COMMENT ON COLUMN content_keys.bound_xact IS 'The transaction that bound it; 0: before there were walks';
UPDATE content_keys SET bound_xact = 0 WHERE resource_id IS NOT NULL;
CREATE INDEX content_keys_walk ON content_keys (org_id, bound_xact, key_id) WHERE bound_xact IS NOT NULL;
CREATE FUNCTION key_bound() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.bound_xact := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION key_bound IS 'Trigger: notes which transaction bound a key';
CREATE TRIGGER content_keys_bound_new BEFORE INSERT ON content_keys FOR EACH ROW
    WHEN (NEW.resource_id IS NOT NULL) EXECUTE FUNCTION key_bound();
CREATE TRIGGER content_keys_bound_now BEFORE UPDATE OF resource_id ON content_keys FOR EACH ROW
    WHEN (OLD.resource_id IS NULL AND NEW.resource_id IS NOT NULL) EXECUTE FUNCTION key_bound();

-- ---------------------------------------------------------------------------------------------------- the installation

-- Channels of services belong to no organisation: their keys are wrapped by the installation's own wrapping key.
ALTER TABLE wrapping_keys DROP CONSTRAINT wrapping_keys_org_id_fkey;
CREATE TABLE installation (
    org_id uuid PRIMARY KEY CHECK (org_id = '00000000-0000-0000-0000-000000000000'),
    generation integer NOT NULL DEFAULT 0 CHECK (generation >= 0)
);
COMMENT ON TABLE installation IS 'One row: what organisations have, and the installation has too';
COMMENT ON COLUMN installation.org_id IS 'Nil';
COMMENT ON COLUMN installation.generation IS 'Its current wrapping key; 0: none yet, the keeper makes it at its start';
INSERT INTO installation (org_id) VALUES ('00000000-0000-0000-0000-000000000000');

-- ---------------------------------------------------------------------------------------------------- services

CREATE TABLE services (
    org_id uuid NOT NULL CHECK (org_id = '00000000-0000-0000-0000-000000000000'),
    service text NOT NULL CHECK (service ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
    identity text NOT NULL CHECK (identity ~ '^[a-z][a-z0-9+.-]*:[!-~]+$' AND octet_length(identity) <= 512),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'retired')),
    purposes text[] NOT NULL CHECK (purposes <@ ARRAY['indexing', 'dlp', 'ediscovery', 'archival', 'transcoding']
                                    AND cardinality(purposes) > 0),
    kinds text[] NOT NULL CHECK (kinds <@ ARRAY['space', 'meeting', 'file', 'whiteboard', 'calendar']
                                 AND cardinality(kinds) > 0),
    rate integer NOT NULL CHECK (rate BETWEEN 0 AND 1000000),
    breadth integer NOT NULL CHECK (breadth BETWEEN 0 AND 1000000000),
    public_key jsonb,
    created_at timestamptz(3) NOT NULL,
    retired_at timestamptz(3),
    PRIMARY KEY (org_id, service),
    CHECK ((state = 'retired') = (retired_at IS NOT NULL))
);
CREATE UNIQUE INDEX services_identity ON services (identity) WHERE state = 'active';
COMMENT ON TABLE services IS 'Cloud services that may ask for keys; a name is never used again';
COMMENT ON COLUMN services.org_id IS 'Nil: services serve many organisations';
COMMENT ON COLUMN services.service IS 'Name';
COMMENT ON COLUMN services.identity IS 'The SAN URI of its certificates under the services'' CA';
COMMENT ON COLUMN services.state IS 'retired: nothing is released to it, for ever';
COMMENT ON COLUMN services.purposes IS 'Which purposes it may use';
COMMENT ON COLUMN services.kinds IS 'Which kinds of resources it may see';
COMMENT ON COLUMN services.rate IS 'Requests a second; 0: no limit';
COMMENT ON COLUMN services.breadth IS 'Distinct resources an hour; 0: no limit';
COMMENT ON COLUMN services.public_key IS 'A public JWK: it gets keys as JWE to this, never bare';
COMMENT ON COLUMN services.created_at IS 'Since when';
COMMENT ON COLUMN services.retired_at IS 'Until when';

CREATE TABLE service_orgs (
    org_id uuid NOT NULL REFERENCES organisations,
    service text NOT NULL,
    created_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, service)
);
CREATE INDEX service_orgs_by_service ON service_orgs (service);
COMMENT ON TABLE service_orgs IS 'Which organisations a service may see';
COMMENT ON COLUMN service_orgs.org_id IS 'Organisation';
COMMENT ON COLUMN service_orgs.service IS 'Service';
COMMENT ON COLUMN service_orgs.created_at IS 'Since when';

CREATE TABLE purposes (
    org_id uuid NOT NULL REFERENCES organisations,
    purpose text NOT NULL CHECK (purpose IN ('indexing', 'dlp', 'ediscovery', 'archival', 'transcoding')),
    enabled boolean NOT NULL,
    changed_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, purpose)
);
COMMENT ON TABLE purposes IS 'What an organisation lets services do; what is not here is off';
COMMENT ON COLUMN purposes.org_id IS 'Organisation';
COMMENT ON COLUMN purposes.purpose IS 'Purpose (protocol section 8)';
COMMENT ON COLUMN purposes.enabled IS 'On or off';
COMMENT ON COLUMN purposes.changed_at IS 'Since when';

CREATE TABLE service_proofs (
    org_id uuid NOT NULL CHECK (org_id = '00000000-0000-0000-0000-000000000000'),
    jti_hash bytea NOT NULL CHECK (octet_length(jti_hash) = 32),
    expires_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, jti_hash)
);
CREATE INDEX service_proofs_due ON service_proofs (expires_at);
COMMENT ON TABLE service_proofs IS 'Proofs that were used, until they are too old to be used again';
COMMENT ON COLUMN service_proofs.org_id IS 'Nil';
COMMENT ON COLUMN service_proofs.jti_hash IS 'SHA-256 of the certificate''s SHA-256 and the jti';
COMMENT ON COLUMN service_proofs.expires_at IS 'When the row may go';

CREATE TABLE revoked_certificates (
    org_id uuid NOT NULL CHECK (org_id = '00000000-0000-0000-0000-000000000000'),
    issuer bytea NOT NULL CHECK (octet_length(issuer) = 32),
    serial bytea NOT NULL CHECK (octet_length(serial) BETWEEN 1 AND 64),
    source text NOT NULL CHECK (source IN ('crl', 'officer')),
    revoked_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, issuer, serial)
);
COMMENT ON TABLE revoked_certificates IS 'Certificates of services that are good no more; their channels are dead as well';
COMMENT ON COLUMN revoked_certificates.org_id IS 'Nil';
COMMENT ON COLUMN revoked_certificates.issuer IS 'SHA-256 of the issuer''s name in DER; 32 zero bytes: any issuer';
COMMENT ON COLUMN revoked_certificates.serial IS 'The serial number''s magnitude, big-endian, without leading zeros';
COMMENT ON COLUMN revoked_certificates.source IS 'A revocation list, or a call on the admin socket';
COMMENT ON COLUMN revoked_certificates.revoked_at IS 'When we learned it';

ALTER TABLE channels DROP CONSTRAINT channels_kind_check;
ALTER TABLE channels
    ADD COLUMN key_thumb bytea CHECK (octet_length(key_thumb) = 32),
    ADD COLUMN cert_issuer bytea CHECK (octet_length(cert_issuer) = 32),
    ADD COLUMN cert_serial bytea CHECK (octet_length(cert_serial) BETWEEN 1 AND 64),
    ADD CONSTRAINT channels_kind_check CHECK (kind IN ('user', 'anonymous', 'service')),
    ADD CONSTRAINT channels_of_services CHECK ((kind = 'service') = (key_thumb IS NOT NULL)
        AND (key_thumb IS NULL) = (cert_issuer IS NULL) AND (key_thumb IS NULL) = (cert_serial IS NULL)
        AND (kind = 'service') = (org_id = '00000000-0000-0000-0000-000000000000'));
COMMENT ON COLUMN channels.kind IS 'What sort of principal: user, anonymous (by an anonymous authorisation), service';
COMMENT ON COLUMN channels.subject IS 'The user''s id, or the authorisation''s, or the service''s name';
COMMENT ON COLUMN channels.key_thumb IS 'A service''s: RFC 7638 thumbprint (SHA-256) of its certificate''s public key';
COMMENT ON COLUMN channels.cert_issuer IS 'A service''s: SHA-256 of the certificate''s issuer name in DER';
COMMENT ON COLUMN channels.cert_serial IS 'A service''s: the certificate''s serial number, as in revoked_certificates';

-- ---------------------------------------------------------------------------------------------------- matters

CREATE TABLE matters (
    org_id uuid NOT NULL REFERENCES organisations,
    matter_id uuid NOT NULL,
    name text NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 256),
    custodians text[] NOT NULL CHECK (cardinality(custodians) BETWEEN 1 AND 1000),
    window_from timestamptz(3) NOT NULL,
    window_to timestamptz(3) NOT NULL,
    kinds text[] NOT NULL CHECK (kinds <@ ARRAY['space', 'meeting', 'file', 'whiteboard', 'calendar']
                                 AND cardinality(kinds) > 0),
    expires_at timestamptz(3) NOT NULL,
    sealed_until timestamptz(3),
    text_sha256 bytea NOT NULL CHECK (octet_length(text_sha256) = 32),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'open', 'rejected', 'closed')),
    opened_by text NOT NULL,
    opened_at timestamptz(3) NOT NULL,
    approved_at timestamptz(3),
    closed_at timestamptz(3),
    PRIMARY KEY (org_id, matter_id),
    CHECK (window_from < window_to)
);
CREATE INDEX matters_anywhere ON matters (matter_id);
COMMENT ON TABLE matters IS 'What eDiscovery is for: whose keys, of which time, until when';
COMMENT ON COLUMN matters.org_id IS 'Organisation';
COMMENT ON COLUMN matters.matter_id IS 'Id in requests';
COMMENT ON COLUMN matters.name IS 'Its name among people';
COMMENT ON COLUMN matters.custodians IS 'Users: a resource is covered that one of them is authorised on';
COMMENT ON COLUMN matters.window_from IS 'Keys bound from then on (inclusive)';
COMMENT ON COLUMN matters.window_to IS 'Keys bound before then (exclusive)';
COMMENT ON COLUMN matters.kinds IS 'Kinds of resources that are covered';
COMMENT ON COLUMN matters.expires_at IS 'From then on it covers nothing';
COMMENT ON COLUMN matters.sealed_until IS 'Until then receipts do not show what was released under it; NULL: they do';
COMMENT ON COLUMN matters.text_sha256 IS 'SHA-256 of its text (matter_text): what was approved';
COMMENT ON COLUMN matters.state IS 'pending: waits for approval; open; rejected; closed';
COMMENT ON COLUMN matters.opened_by IS 'The officer who asked for it';
COMMENT ON COLUMN matters.opened_at IS 'When';
COMMENT ON COLUMN matters.approved_at IS 'When the last approval that it needed came';
COMMENT ON COLUMN matters.closed_at IS 'When it was closed';

-- What may change is its state.  Its text is what was approved; the release compares the hash as well.
CREATE FUNCTION matter_stays() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (NEW.org_id, NEW.matter_id, NEW.name, NEW.custodians, NEW.window_from, NEW.window_to, NEW.kinds, NEW.expires_at,
        NEW.sealed_until, NEW.text_sha256, NEW.opened_by, NEW.opened_at) IS DISTINCT FROM
       (OLD.org_id, OLD.matter_id, OLD.name, OLD.custodians, OLD.window_from, OLD.window_to, OLD.kinds, OLD.expires_at,
        OLD.sealed_until, OLD.text_sha256, OLD.opened_by, OLD.opened_at)
       OR (OLD.state, NEW.state) NOT IN (('pending', 'open'), ('pending', 'rejected'), ('pending', 'closed'), ('open', 'closed'))
    THEN
        RAISE EXCEPTION 'a matter is approved, rejected or closed, never changed' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION matter_stays IS 'Trigger: a matter''s text never changes';
CREATE TRIGGER matters_same BEFORE UPDATE ON matters FOR EACH ROW EXECUTE FUNCTION matter_stays();
CREATE TRIGGER matters_stay BEFORE DELETE OR TRUNCATE ON matters FOR EACH STATEMENT EXECUTE FUNCTION never();

CREATE FUNCTION matter_text(m matters) RETURNS text LANGUAGE sql STABLE
RETURN 'matter ' || m.matter_id || E'\norganisation ' || m.org_id || E'\nname ' || to_json(m.name)::text
    || E'\ncustodians ' || to_json(m.custodians)::text || E'\nkinds ' || to_json(m.kinds)::text
    || E'\nfrom ' || ms(m.window_from) || E'\nto ' || ms(m.window_to) || E'\nexpires ' || ms(m.expires_at)
    || E'\nsealed ' || coalesce(ms(m.sealed_until)::text, 'no') || E'\nopened by ' || to_json(m.opened_by)::text || E'\n';
COMMENT ON FUNCTION matter_text IS 'A matter''s text, line by line: what officers are shown, and what its hash is over';

-- ---------------------------------------------------------------------------------------------------- rules, approvals

CREATE TABLE settings (
    org_id uuid NOT NULL,
    name text NOT NULL,
    value text NOT NULL,
    changed_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, name)
);
COMMENT ON TABLE settings IS 'Rules that differ from their defaults (setting_default)';
COMMENT ON COLUMN settings.org_id IS 'Organisation; nil: the installation''s';
COMMENT ON COLUMN settings.name IS 'Which';
COMMENT ON COLUMN settings.value IS 'Its value, in the form that setting_default documents';
COMMENT ON COLUMN settings.changed_at IS 'Since when';

CREATE FUNCTION setting_default(p_name text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE p_name
    WHEN 'compliance' THEN 'role'              -- role | matter: what onBehalfOf needs
    WHEN 'dlp.age' THEN '86400000'             -- ms: how old a binding dlp may see
    WHEN 'approvals' THEN '2'                  -- installation: officers that an action needs, who asks for it included
    WHEN 'approvals.matter' THEN '2'           -- installation: likewise, for a matter
    WHEN 'approvals.lifetime' THEN '259200000' -- installation, ms: how long an action waits for them
END;
COMMENT ON FUNCTION setting_default IS 'All settings there are, with what holds when nothing was set; NULL: no such setting';

CREATE FUNCTION setting(p_org uuid, p_name text) RETURNS text LANGUAGE sql STABLE
RETURN coalesce((SELECT s.value FROM settings s WHERE s.org_id = p_org AND s.name = p_name), setting_default(p_name));
COMMENT ON FUNCTION setting IS 'What holds now';

CREATE TABLE approvals (
    org_id uuid NOT NULL,
    approval_id uuid NOT NULL,
    action text NOT NULL,
    args jsonb NOT NULL,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'rejected', 'expired', 'failed')),
    needed integer NOT NULL CHECK (needed >= 1),
    requested_by text NOT NULL,
    requested_uid bigint NOT NULL,
    created_at timestamptz(3) NOT NULL,
    expires_at timestamptz(3) NOT NULL,
    decided_at timestamptz(3),
    result jsonb,
    PRIMARY KEY (org_id, approval_id),
    CHECK ((state = 'pending') = (decided_at IS NULL))
);
CREATE INDEX approvals_anywhere ON approvals (approval_id);
COMMENT ON TABLE approvals IS 'Actions that need several officers';
COMMENT ON COLUMN approvals.org_id IS 'Organisation that it is about; nil: the installation';
COMMENT ON COLUMN approvals.approval_id IS 'Id';
COMMENT ON COLUMN approvals.action IS 'purpose.enable, service.add, matter.open, ...: sql/README.md';
COMMENT ON COLUMN approvals.args IS 'What exactly; never changed';
COMMENT ON COLUMN approvals.state IS 'pending; done; rejected; expired; failed: approved, but it could no longer be done';
COMMENT ON COLUMN approvals.needed IS 'How many different officers, who asked for it included';
COMMENT ON COLUMN approvals.requested_by IS 'Who asked for it';
COMMENT ON COLUMN approvals.requested_uid IS 'His uid: who is who goes by this';
COMMENT ON COLUMN approvals.created_at IS 'When';
COMMENT ON COLUMN approvals.expires_at IS 'Until when it waits';
COMMENT ON COLUMN approvals.decided_at IS 'When it ended';
COMMENT ON COLUMN approvals.result IS 'What came of it';
CREATE TRIGGER approvals_stay BEFORE DELETE OR TRUNCATE ON approvals FOR EACH STATEMENT EXECUTE FUNCTION never();

CREATE TABLE approval_looks (
    org_id uuid NOT NULL,
    approval_id uuid NOT NULL,
    uid bigint NOT NULL,
    impact jsonb NOT NULL,
    at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, approval_id, uid),
    FOREIGN KEY (org_id, approval_id) REFERENCES approvals
);
COMMENT ON TABLE approval_looks IS 'The impact report that an officer was last shown: an approval is for that and no other';
COMMENT ON COLUMN approval_looks.org_id IS 'Organisation';
COMMENT ON COLUMN approval_looks.approval_id IS 'Action';
COMMENT ON COLUMN approval_looks.uid IS 'Officer';
COMMENT ON COLUMN approval_looks.impact IS 'The report';
COMMENT ON COLUMN approval_looks.at IS 'When he was shown it';

CREATE TABLE approval_votes (
    org_id uuid NOT NULL,
    approval_id uuid NOT NULL,
    uid bigint NOT NULL,
    officer text NOT NULL,
    impact jsonb NOT NULL,
    at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, approval_id, uid),
    FOREIGN KEY (org_id, approval_id) REFERENCES approvals
);
COMMENT ON TABLE approval_votes IS 'Who has agreed to an action, the one who asked for it included';
COMMENT ON COLUMN approval_votes.org_id IS 'Organisation';
COMMENT ON COLUMN approval_votes.approval_id IS 'Action';
COMMENT ON COLUMN approval_votes.uid IS 'Officer';
COMMENT ON COLUMN approval_votes.officer IS 'His name then';
COMMENT ON COLUMN approval_votes.impact IS 'The report that he agreed to';
COMMENT ON COLUMN approval_votes.at IS 'When';

CREATE TABLE canaries (
    org_id uuid NOT NULL,
    resource_id uuid NOT NULL,
    note text NOT NULL CHECK (octet_length(note) <= 1024),
    created_at timestamptz(3) NOT NULL,
    PRIMARY KEY (org_id, resource_id),
    FOREIGN KEY (org_id, resource_id) REFERENCES resources
);
COMMENT ON TABLE canaries IS 'Resources that nobody has a reason to open: a retrieval raises an alarm and works as usual';
COMMENT ON COLUMN canaries.org_id IS 'Organisation';
COMMENT ON COLUMN canaries.resource_id IS 'Resource';
COMMENT ON COLUMN canaries.note IS 'What the alarm says';
COMMENT ON COLUMN canaries.created_at IS 'Since when';

-- ---------------------------------------------------------------------------------------------------- entries

ALTER TABLE entries ADD COLUMN purpose text, ADD COLUMN matter_id uuid;
COMMENT ON COLUMN entries.subject IS 'Who, when it is no person: an anonymous authorisation, the keeper, a service''s name.  People: NULL, see person';
COMMENT ON COLUMN entries.purpose IS 'A service''s request: for which purpose';
COMMENT ON COLUMN entries.matter_id IS 'Under which matter';

-- What services and officers got of a resource: receipts, reports, and whether a service's resource is a new one.
CREATE INDEX entries_of_releases ON entries (org_id, resource_id, at)
    WHERE verdict = 0 AND (kind = 'service' OR behalf_person IS NOT NULL);

CREATE OR REPLACE FUNCTION entry_leaf(e entries) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
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
    || coalesce(',"purpose":' || to_json(e.purpose)::text, '')
    || coalesce(',"matter":"' || e.matter_id::text || '"', '')
    || CASE WHEN e.detail IS NULL THEN ''
            WHEN octet_length(e.detail::text) <= 32768 THEN ',"detail":' || e.detail::text
            ELSE ',"detail":{"bytes":' || octet_length(e.detail::text) || ',"sha256":"'
                 || encode(sha256(convert_to(e.detail::text, 'UTF8')), 'hex') || '"}' END
    || '}';

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
                   'resource', t.resource_id, 'keys', t.key_ids, 'path', t.path, 'request', t.request_id, 'purpose', t.purpose,
                   'matter', t.matter_id))
               || CASE WHEN t.detail IS NULL THEN '{}'
                       WHEN t.detail ? 'authorizations' THEN jsonb_build_object('detail', with_names(t.org_id, t.detail))
                       ELSE jsonb_build_object('detail', t.detail) END
          FROM tail t
          LEFT JOIN persons p ON p.org_id = t.org_id AND p.person = t.person
          LEFT JOIN persons b ON b.org_id = t.org_id AND b.person = t.behalf_person
         ORDER BY t.entry_id;
END $$;
