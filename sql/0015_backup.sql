-- 0015_backup.sql - what must be kept together with the database: the keys in the token that something in it needs.

SET LOCAL ROLE kms_owner;
SET LOCAL search_path = kms, pg_catalog, pg_temp;

CREATE FUNCTION token_keys() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, kms, pg_temp AS $$
    SELECT jsonb_build_object(
        'database', current_database(), 'bytes', pg_database_size(current_database()),
        'postgresql', current_setting('server_version'),
        'migration', (SELECT max(m.number) FROM schema_migrations m),
        'organisations', (SELECT count(*) FROM organisations o WHERE o.state <> 'destroyed'),
        'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.destroyed_at IS NULL),
        'keys', (SELECT coalesce(jsonb_agg(jsonb_build_object('kind', k.kind, 'id', k.id, 'state', k.state, 'org_name', o.name, 'kcv', k.kcv,
                                               'wrapping_keys', (SELECT count(*) FROM wrapping_keys w WHERE w.root_id = k.id AND w.destroyed_at IS NULL))
                                           ORDER BY k.kind DESC, o.name COLLATE "C", k.id), '[]')
                   FROM (SELECT 'root' AS kind, r.root_id AS id, r.state, NULL::uuid AS org_id, NULL AS kcv FROM roots r
                          WHERE r.state NOT IN ('destroying', 'destroyed')
                         UNION ALL
                         SELECT 'main', m.main_key_id, m.state, m.org_id, encode(m.kcv, 'hex') FROM main_keys m
                          WHERE m.state IN ('PENDING', 'ACTIVE', 'DEACTIVATED', 'REVOKED', 'DISABLED', 'RETIRED')
                         UNION ALL
                         SELECT 'period', p.key_id, to_char(p.month, 'YYYY-MM'), p.org_id, encode(p.kcv, 'hex') FROM period_keys p
                          WHERE p.destroyed_at IS NULL AND p.ended_at IS NULL AND p.kcv IS NOT NULL
                         UNION ALL
                         SELECT 'import', i.pair_id, 'pair', i.org_id, NULL FROM import_pairs i WHERE i.public_key IS NOT NULL) k
                   LEFT JOIN organisations o ON o.org_id = k.org_id))
$$;
COMMENT ON FUNCTION token_keys IS 'The keys in the token that this database needs, and what a backup of it is about';
GRANT EXECUTE ON FUNCTION token_keys TO kms_keeper;
