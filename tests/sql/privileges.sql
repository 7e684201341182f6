-- "No record, no key": what the daemon's roles can do, and what nobody can.
BEGIN;
\ir fixture.psql

-- What each role may execute: this list and nothing else.
CREATE TEMP TABLE allowed (role name, functions name[]);
INSERT INTO allowed VALUES
    ('kms_worker', '{authorizations_create,authorizations_delete,authorizations_list,channel_create,channel_delete,channels_check,channels_open,keys_bind,keys_create,
                     keys_release,main_key_act,mint_under,orgs_get,recording_create,recording_delete,recording_get,recording_update,recordings_list,refusals_record,
                     resource_create,resource_get,resource_keys,resource_keys_create,resource_releases,server_check,service_channel_create,service_release,wraps_add}'),
    ('kms_keeper', '{admin_record,approval_approve,approval_list,approval_reject,approval_show,approvals_expire,audit_tail,canary_alert,canary_list,canary_raise,
                     canary_told,certificate_list,certificate_show,certificate_signed,certificates_revoked,check_next,clock_show,clock_tick,control_act,destroy_work,
                     destruction_list,destruction_waiting,destructions_do,explain,freeze_act,freeze_preview,freezes_list,generations_unneeded,key_show,log_checkpoint_add,
                     log_cosign,log_due,log_entries,log_find,log_hashes,log_nodes_get,log_notes,log_sequence,log_show,log_strays,log_stream_done,log_stream_next,
                     main_key_end,main_key_gone,main_key_work,main_keys_list,matter_list,matter_report,matter_show,month_key_add,node_forgot,node_root,node_turn,org_add,
                     org_set_state,org_show,orgs_get,orgs_list,period_made,period_renew,person_erase,purposes_list,reseal_begin,reseal_done,reseal_next,reseal_store,resource_show,
                     retention_preview,rewrap_next,rewrap_store,root_add,root_get,root_rotation_advance,root_rotation_end,root_rotation_made,root_rotation_name,roots_list,
                     rotation_problem,rotations_status,server_check,service_show,services_list,settings_list,stats,sweep,token_keys,wrapping_key_add,wrapping_keys_due}');
CREATE TEMP TABLE tables AS
    SELECT c.oid, c.oid::regclass AS name, c.relkind FROM pg_class c WHERE c.relnamespace = 'kms'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'p', 'S');

SELECT plan(26 + (SELECT count(*)::integer * 2 * 2 FROM tables WHERE relkind = 'r'));

SELECT is((SELECT array_agg(p.proname ORDER BY p.proname) FROM pg_proc p WHERE p.pronamespace = 'kms'::regnamespace AND has_function_privilege(role, p.oid, 'EXECUTE')),
          (SELECT array_agg(f ORDER BY f) FROM unnest(functions) f), role || ' may execute its own functions only') FROM allowed;
SELECT is_empty($$ SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                    WHERE p.pronamespace = 'kms'::regnamespace AND a.grantee = 0 $$, 'no function is everybody''s');
SELECT is_empty($$ SELECT p.proname FROM pg_proc p, allowed a WHERE p.pronamespace = 'kms'::regnamespace AND p.proname = ANY (a.functions)
                      AND NOT (p.prosecdef AND p.proconfig @> ARRAY['search_path=pg_catalog, kms, pg_temp']) $$,
                'what a role executes runs as the owner, with a search path of its own');
SELECT is_empty($$ SELECT p.proname FROM pg_proc p, unnest(p.proconfig) s WHERE p.pronamespace = 'kms'::regnamespace AND p.prosecdef
                      AND s LIKE 'search_path=%' AND s <> 'search_path=pg_catalog, kms, pg_temp' $$, 'never another one');
SELECT is_empty($$ SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'kms'::regnamespace AND p.prosecdef AND pg_get_functiondef(p.oid) ~* '\mexecute\M (?!function)' $$,
                'none builds statements from text');
SELECT is((SELECT array_agg(DISTINCT p.proowner::regrole::text) FROM pg_proc p WHERE p.pronamespace = 'kms'::regnamespace), '{kms_owner}', 'one owner of functions');
SELECT is((SELECT array_agg(DISTINCT c.relowner::regrole::text) FROM pg_class c WHERE c.relnamespace = 'kms'::regnamespace), '{kms_owner}', 'and of tables');
SELECT ok(NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls OR rolcanlogin), 'who is no superuser and cannot log in')
  FROM pg_roles WHERE rolname = 'kms_owner';
SELECT ok(NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls) AND rolcanlogin, rolname || ' logs in and is nothing else')
  FROM pg_roles WHERE rolname IN ('kms_worker', 'kms_keeper');
SELECT is_empty($$ SELECT FROM pg_auth_members WHERE member IN ('kms_worker'::regrole, 'kms_keeper'::regrole) $$, 'they belong to no other role');
SELECT is_empty($$ SELECT t.name, r.role, p FROM tables t, allowed r, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
                    WHERE t.relkind <> 'S' AND (has_table_privilege(r.role, t.oid, p)
                       OR (p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(r.role, t.oid, p))) $$, 'no right on any table or column');
SELECT is_empty($$ SELECT t.name, r.role FROM tables t, allowed r, unnest('{USAGE,SELECT,UPDATE}'::text[]) p
                    WHERE t.relkind = 'S' AND has_sequence_privilege(r.role, t.oid, p) $$, 'no right on any sequence');
SELECT is_empty($$ SELECT r.role, n.nspname FROM allowed r, pg_namespace n WHERE has_schema_privilege(r.role, n.oid, 'CREATE') AND n.nspname !~ '^pg_temp' $$,
                'no schema to make anything in');
SELECT is_empty($$ SELECT r.role FROM allowed r WHERE has_database_privilege(r.role, current_database(), 'CREATE, TEMPORARY') $$, 'nor the database');

-- Tried, not only looked up.
CREATE FUNCTION pg_temp.tries(role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role);
    EXECUTE statement;
    RESET ROLE;
    RETURN 'done';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END $$;
SELECT is(pg_temp.tries(a.role, format('SELECT * FROM %s', t.name)), '42501', format('%s cannot read %s', a.role, t.name)) FROM allowed a, tables t WHERE t.relkind = 'r';
SELECT is(pg_temp.tries(a.role, format('DELETE FROM %s', t.name)), '42501', format('%s cannot write %s', a.role, t.name)) FROM allowed a, tables t WHERE t.relkind = 'r';
SELECT is(pg_temp.tries('kms_worker', 'SELECT kms.sweep(1)'), '42501', 'a worker is no keeper');
SELECT is(pg_temp.tries('kms_keeper', 'SELECT kms.channels_open(''{}'')'), '42501', 'a keeper is no worker');
SELECT is(pg_temp.tries(role, 'CREATE TABLE public.mine (i integer)'), '42501', role || ' makes no table') FROM allowed;
SELECT is(pg_temp.tries(role, 'CREATE TEMP TABLE mine (i integer)'), '42501', role || ' makes no temporary table') FROM allowed;

-- What not even the owner does by accident.
SELECT is(pg_temp.tries('kms_owner', s), '42501', 'the owner cannot: ' || s)
  FROM unnest(ARRAY['UPDATE kms.entries SET verdict = 0', 'DELETE FROM kms.entries', 'TRUNCATE kms.entries', 'DELETE FROM kms.wrapping_keys']) s;

SELECT * FROM finish();
ROLLBACK;
