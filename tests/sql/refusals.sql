-- Refusals that never came to the state, organisations by name, counted wraps, and the check of the server.
BEGIN;
\ir fixture.psql
SELECT plan(17);

SET LOCAL ROLE kms_worker;
SELECT lives_ok($$ SELECT kms.refusals_record(ARRAY[pg_temp.id('o1'), pg_temp.id('o2')], ARRAY[pg_temp.id('acme'), NULL], ARRAY[pg_temp.id('channel alice'), NULL],
    '{r1,NULL}', '{phone,NULL}', '{alice,NULL}', '{key.get,request}', '{429001,400001}', ARRAY[pg_temp.id('space'), NULL]) $$, 'two refusals');
RESET ROLE;
SELECT results_eq($$ SELECT org_id, op_id, verdict, action, subject, client_id, channel_id, resource_id, request_id FROM named_entries ORDER BY entry_id DESC LIMIT 2 $$,
    $$ VALUES ('00000000-0000-0000-0000-000000000000'::uuid, pg_temp.id('o2'), 400001, 'request', NULL, NULL, NULL::uuid, NULL::uuid, NULL),
              (pg_temp.id('acme'), pg_temp.id('o1'), 429001, 'key.get', 'alice', 'phone', pg_temp.id('channel alice'), pg_temp.id('space'), 'r1') $$,
    'each in its log: the organisation''s, or the installation''s');
CREATE TEMP TABLE before AS SELECT pg_temp.entries() AS entries, pg_temp.fence() AS fence;
SELECT lives_ok($$ SELECT kms.refusals_record(ARRAY[pg_temp.id('o2'), pg_temp.id('o3')], '{NULL,NULL}', '{NULL,NULL}', '{NULL,NULL}', '{NULL,NULL}', '{NULL,NULL}',
    '{request,request}', '{400001,400001}', '{NULL,NULL}') $$, 'one of them again');
SELECT is(pg_temp.entries(), (SELECT entries + 1 FROM before), 'is not recorded again');
SELECT is(pg_temp.fence(), (SELECT fence + 1 FROM before), 'but waits for the standbys');

SET LOCAL ROLE kms_worker;
SELECT results_eq($$ SELECT n, org, state, generation, root, wrapped FROM kms.orgs_get('{umbrella,none,acme,umbrella}') $$,
    $$ VALUES (1, pg_temp.id('umbrella'), 'active', 1, pg_temp.id('root'), pg_temp.bytes(40)), (2, NULL, NULL, NULL, NULL, NULL),
              (3, pg_temp.id('acme'), 'active', 1, pg_temp.id('root'), pg_temp.bytes(40)), (4, pg_temp.id('umbrella'), 'active', 1, pg_temp.id('root'), pg_temp.bytes(40)) $$,
    'organisations by name, in order');
SELECT lives_ok($$ SELECT kms.wraps_add(ARRAY[pg_temp.id('acme'), pg_temp.id('umbrella'), pg_temp.id('acme'), pg_temp.id('none')], '{1,1,1,1}', '{5,7,6,1}') $$, 'wraps');
SELECT lives_ok($$ SELECT kms.wraps_add(ARRAY[pg_temp.id('acme')], '{1}', '{-3}') $$, 'nobody counts down');
RESET ROLE;
SELECT results_eq('SELECT wraps FROM kms.wrapping_keys ORDER BY wraps', 'VALUES (7::bigint), (11)', 'are added up');

CREATE TEMP TABLE checked (j jsonb);
GRANT INSERT ON checked TO kms_worker;
SET LOCAL ROLE kms_worker;
INSERT INTO checked SELECT kms.server_check();
RESET ROLE;
SELECT results_eq('SELECT k FROM checked, jsonb_object_keys(j) k ORDER BY k COLLATE "C"',
    $$ VALUES ('data_checksums'), ('data_sync_retry'), ('fsync'), ('full_page_writes'), ('in_recovery'), ('log_parameter_max_length_on_error'),
              ('now'), ('read_only'), ('schema'), ('synchronous_commit') $$, 'what the daemon asks of the server');
SELECT ok((j ->> 'schema')::integer = (SELECT max(number) FROM kms.schema_migrations) AND j -> 'read_only' = 'false' AND j -> 'in_recovery' = 'false'
          AND j ->> 'data_checksums' = 'on', 'and the answers') FROM checked;
SELECT throws_ok($$ SELECT kms.wraps_add('{}', '{1}', '{}') $$, '22023', NULL, 'unequal arrays are an error');

SELECT throws_ok($$ SELECT kms.refusals_record(ARRAY[gen_random_uuid()], '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{key.get}', '{0}', '{NULL}') $$, '22023', NULL,
    'what was done is not recorded this way');

-- Services are no people.
SELECT lives_ok($$ SELECT kms.refusals_record(ARRAY[pg_temp.id('o5'), pg_temp.id('o6')], '{NULL,NULL}', '{NULL,NULL}', '{r,r}', '{NULL,c}', '{spiffe://bot,alice}', '{key.get,key.get}', '{429001,429001}', '{NULL,NULL}',
    '{service,NULL}') $$);
SELECT ok(e.kind = 'service' AND e.subject = 'spiffe://bot' AND e.person IS NULL, 'a service''s name stays') FROM kms.entries e WHERE op_id = pg_temp.id('o5');
SELECT ok(e.kind IS NULL AND e.subject IS NULL AND e.person IS NOT NULL, 'a person''s does not') FROM kms.entries e WHERE op_id = pg_temp.id('o6');
SELECT throws_ok($$ SELECT kms.refusals_record(ARRAY[gen_random_uuid()], '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{x}', '{key.get}', '{403001}', '{NULL}', '{keeper}') $$, '22023', NULL, 'nobody else');

SELECT * FROM finish();
ROLLBACK;
