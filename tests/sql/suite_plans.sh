# suite_plans.sh - at a million keys every statement of the hot functions goes by an index.  Part of run.sh.
#
# auto_explain tells the plans that really ran, inside the functions: there must be no sequential scan of a large table,
# and no scan that reads many rows to throw them away.

sql postgres -c "CREATE DATABASE plans TEMPLATE fresh"
sql plans -v resources=100000 -v keys=10 -v users=2 -v channels=1000 -f "$top/tests/bench/seed.sql"
is "a million keys" "$(sql plans -c "SELECT count(*) FROM kms.content_keys")" 1000000
sql plans <<'SQL'
INSERT INTO kms.entries (org_id, op_id, verdict, action) SELECT md5('org')::uuid, gen_random_uuid(), 0, 'key.get' FROM generate_series(1, 50000);
-- A few unbound keys; one resource that is open to another.
SELECT verdict FROM kms.keys_create(ARRAY[gen_random_uuid()], ARRAY[md5('org')::uuid], ARRAY[md5('channel0')::uuid], '{r}', '{client0}', '{1}', array_fill(1, ARRAY[20]),
    ARRAY(SELECT md5('new' || i)::uuid FROM generate_series(1, 20) i), array_fill(decode(repeat('01', 61), 'hex'), ARRAY[20]), 3600000) \gset
VACUUM ANALYZE kms.entries;
SQL

# plan NAME STATEMENT: runs it and looks at every plan inside.
plan() {
    sql plans >"$dir/plan" 2>&1 <<SQL
SET client_min_messages = log;
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_analyze = on;
SET auto_explain.log_timing = off;
BEGIN;
$2;
ROLLBACK;
SQL
    # What is under a "never executed" node costs nothing.
    is "$1: runs" "$(grep -c ERROR "$dir/plan")" 0
    is "$1: no sequential scan" "$(grep -E 'Seq Scan on (content_keys|resources|authorizations|channels|entries)' "$dir/plan" | grep -vc 'never executed')" 0
    is "$1: no scan reads many rows" "$(grep -oE '(rows=|Rows Removed by [A-Za-z ]*: )[0-9]{4,}' <(sed 's/(cost=[^)]*)//' "$dir/plan") | head -n 3)" ""
    if grep -qE "Index|Insert on" "$dir/plan"; then pass; else fail "$1: no plan was seen at all"; fi
}
common="ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 50)), array_fill(md5('org')::uuid, ARRAY[50]), array_fill(md5('channel7')::uuid, ARRAY[50]),
    array_fill('r'::text, ARRAY[50]), array_fill('client7'::text, ARRAY[50])"
one="ARRAY[gen_random_uuid()], ARRAY[md5('org')::uuid], ARRAY[md5('channel7')::uuid], '{r}', '{client7}'"
one0="ARRAY[gen_random_uuid()], ARRAY[md5('org')::uuid], ARRAY[md5('channel0')::uuid], '{r}', '{client0}'"

plan "keys_release, 50 authorised" "SELECT count(*) FROM kms.keys_release($common,
    ARRAY(SELECT md5('key' || (7 + 1000 * i) || '.' || i % 10)::uuid FROM generate_series(1, 50) i), array_fill(NULL::text, ARRAY[50]), array_fill(false, ARRAY[50]))"
plan "keys_release, 50 not authorised or unknown" "SELECT count(*) FROM kms.keys_release($common,
    ARRAY(SELECT md5('key' || (8 + 1000 * (i % 25)) || '.' || i)::uuid FROM generate_series(1, 50) i), array_fill(NULL::text, ARRAY[50]), array_fill(false, ARRAY[50]))"
plan "keys_release, through nesting" "INSERT INTO kms.authorizations SELECT org_id, gen_random_uuid(), md5('resource8')::uuid, 'resource', md5('resource7')::uuid::text, 'x', now()
    FROM kms.organisations; SELECT count(*) FROM kms.keys_release($one, ARRAY[md5('key8.1')::uuid], '{NULL}', '{f}')"
plan "keys_release, one" "SELECT count(*) FROM kms.keys_release($one, ARRAY[md5('key7.1')::uuid], '{NULL}', '{f}')"
plan "keys_create" "SELECT count(*) FROM kms.keys_create($one, '{1}', array_fill(1, ARRAY[10]), ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 10)),
    array_fill(decode(repeat('01', 61), 'hex'), ARRAY[10]), 3600000)"
plan "keys_bind" "SELECT count(*) FROM kms.keys_bind($one0, ARRAY[md5('new1')::uuid], ARRAY[md5('resource0')::uuid], 1000)"
sv() { # COUNT ACTION PURPOSE TARGETS [COUNTS] [CHANNEL] [MATTER]
    echo "SELECT count(*) FROM kms.service_release(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, $1)), array_fill(md5('${6:-service} channel7')::uuid, ARRAY[$1]), array_fill('r'::text, ARRAY[$1]),
        array_fill('c'::text, ARRAY[$1]), array_fill('$2'::text, ARRAY[$1]), $4, array_fill('$3'::text, ARRAY[$1]), array_fill(${7:-NULL::uuid}, ARRAY[$1]), array_fill(NULL::bigint, ARRAY[$1]),
        array_fill(NULL::bigint, ARRAY[$1]), array_fill(${5:-NULL}::integer, ARRAY[$1]), array_fill(NULL::bytea, ARRAY[$1]), 100)"
}
some="ARRAY(SELECT md5('key' || (7 + 1000 * i) || '.' || i % 10)::uuid FROM generate_series(1, 50) i)"
for p in indexing dlp archival; do plan "service_release, 50 keys, $p" "$(sv 50 key.get $p "$some")"; done
plan "service_release, 50 keys, ediscovery" "$(sv 50 key.get ediscovery "$some" NULL service "md5('matter')::uuid")"
plan "service_release, 50 keys with a breadth" "$(sv 50 key.get indexing "$some" NULL limited)"
plan "service_release, 50 keys, channels unknown" "$(sv 50 key.get indexing "$some" NULL no)"
plan "service_release, a resource's keys" "$(sv 1 resource.keys indexing "ARRAY[md5('resource7')::uuid]")"
plan "service_release, a resource's keys, dlp" "$(sv 1 resource.keys dlp "ARRAY[md5('resource7')::uuid]")"
plan "service_release, a walk" "$(sv 1 purpose.keys indexing "'{NULL}'" 100)"
plan "service_release, a walk with a breadth" "$(sv 1 purpose.keys indexing "'{NULL}'" 100 limited)"
plan "service_channel_create" "SELECT count(*) FROM kms.service_channel_create(ARRAY[gen_random_uuid()], '{r}', '{c}', ARRAY[gen_random_uuid()], '{spiffe://bench.example/bench}', ARRAY[sha256('k')],
    ARRAY[sha256('ca')], '{s}', '{32503680000000}', ARRAY[sha256('j')], ARRAY[decode(repeat('01', 61), 'hex')], '{1}', 3600000)"
plan "channels_open, services'" "SELECT count(*) FROM kms.channels_open(ARRAY(SELECT md5('service channel' || i)::uuid FROM generate_series(0, 9) i))"
plan "resource_keys" "SELECT count(*) FROM kms.resource_keys($one, ARRAY[md5('resource7')::uuid], '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{f}', 100)"
plan "resource_keys, in a window" "SELECT count(*) FROM kms.resource_keys($one, ARRAY[md5('resource7')::uuid], '{1000}', '{2000000000000}', '{3}', '{NULL}', '{f}', 100)"
plan "channel_create" "SELECT count(*) FROM kms.channel_create(ARRAY[gen_random_uuid()], ARRAY[md5('org')::uuid], '{r}', '{c}', ARRAY[gen_random_uuid()], '{user}', '{u}',
    ARRAY[decode(repeat('01', 61), 'hex')], '{1}', 3600000)"
plan "channels_open" "SELECT count(*) FROM kms.channels_open(ARRAY(SELECT md5('channel' || i)::uuid FROM generate_series(1, 50) i))"
plan "channels_check" "SELECT count(*) FROM kms.channels_check(array_fill(md5('org')::uuid, ARRAY[50]), ARRAY(SELECT md5('channel' || i)::uuid FROM generate_series(1, 50) i))"
plan "channel_delete" "SELECT count(*) FROM kms.channel_delete($one, ARRAY[md5('channel7')::uuid])"
plan "resource_create" "SELECT count(*) FROM kms.resource_create($one0, ARRAY[jsonb_build_object('keys', jsonb_build_array(md5('new2')::uuid, md5('new3')::uuid),
    'auths', jsonb_build_array(jsonb_build_object('kind', 'user', 'grantee', 'u'), jsonb_build_object('kind', 'resource', 'grantee', md5('resource7')::uuid)))])"
plan "resource_create, with new keys" "SELECT count(*) FROM kms.resource_create($one0, ARRAY[jsonb_build_object('kind', 'meeting', 'bound_ms', 1000, 'new_keys',
    jsonb_build_array(jsonb_build_object('id', gen_random_uuid(), 'blob', repeat('01', 61), 'generation', 1)))])"
plan "resource_keys_create" "SELECT count(*) FROM kms.resource_keys_create($one, '{1}', '{1}', ARRAY[gen_random_uuid()], ARRAY[decode(repeat('01', 61), 'hex')], ARRAY[md5('resource7')::uuid], 1000)"
recording="jsonb_build_object('resource', md5('resource7')::uuid, 'type', 'recording', 'blob', repeat('01', 61), 'generation', 1, 'iv', repeat('01', 12), 'aad', 'a')"
record="INSERT INTO kms.recordings SELECT org_id, md5('recording' || i)::uuid, resource_id, 'recording', key_id, 1, blob, '\\x010101010101010101010101', 'a', NULL, NULL, 'x', now(), now() + i * interval '1 s'
    FROM kms.content_keys, generate_series(1, 20) i WHERE key_id = md5('key7.1')::uuid"
plan "recording_create" "SELECT count(*) FROM kms.recording_create($one, ARRAY[$recording || jsonb_build_object('id', gen_random_uuid())])"
plan "recording_get" "$record; SELECT count(*) FROM kms.recording_get($one, ARRAY[jsonb_build_object('recording', md5('recording1')::uuid)])"
plan "recording_update" "$record; SELECT count(*) FROM kms.recording_update($one, ARRAY[jsonb_build_object('recording', md5('recording1')::uuid, 'loc', 'x')])"
plan "recordings_list" "$record; SELECT count(*) FROM kms.recordings_list($one, ARRAY[jsonb_build_object('resource', md5('resource7')::uuid, 'max', 100)])"
plan "recording_delete" "$record; SELECT count(*) FROM kms.recording_delete($one, ARRAY[jsonb_build_object('recording', md5('recording1')::uuid)])"
plan "resource_get" "SELECT count(*) FROM kms.resource_get($one, ARRAY[jsonb_build_object('resource', md5('resource7')::uuid)])"
plan "authorizations_create" "SELECT count(*) FROM kms.authorizations_create($one, ARRAY[jsonb_build_object('resource', md5('resource7')::uuid,
    'auths', jsonb_build_array(jsonb_build_object('kind', 'user', 'grantee', 'u')))])"
plan "authorizations_list" "SELECT count(*) FROM kms.authorizations_list($one, ARRAY[jsonb_build_object('resource', md5('resource7')::uuid)])"
plan "authorizations_delete" "SELECT count(*) FROM kms.authorizations_delete($one, ARRAY[jsonb_build_object('resource', md5('resource7')::uuid,
    'auths', jsonb_build_array(jsonb_build_object('kind', 'user', 'grantee', 'user7@bench.example')))])"
plan "authorizations_delete, by id" "SELECT count(*) FROM kms.authorizations_delete($one, ARRAY[jsonb_build_object('authorization', md5('authorization7.0')::uuid)])"
plan "authorizations_delete, with a new key" "INSERT INTO kms.settings VALUES (md5('org')::uuid, 'rotate.removal', 'on', now()); SELECT count(*) FROM kms.authorizations_delete($one,
    ARRAY[jsonb_build_object('authorization', md5('authorization7.0')::uuid, 'new_keys', jsonb_build_array(jsonb_build_object('id', gen_random_uuid(), 'blob', repeat('01', 61), 'generation', 1)))])"
plan "refusals_record" "SELECT kms.refusals_record(ARRAY[gen_random_uuid()], '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{request}', '{400001}', '{NULL}')"
plan "orgs_get" "SELECT count(*) FROM kms.orgs_get('{bench,none}')"
plan "sweep" "UPDATE kms.content_keys SET expires_at = now() WHERE key_id = md5('new4')::uuid; UPDATE kms.resources SET expires_at = now() WHERE resource_id = md5('resource9')::uuid;
    SELECT kms.sweep(100)"
plan "audit_tail" "SELECT count(*) FROM kms.audit_tail('bench', 0, 20)"
plan "key_show" "SELECT kms.key_show(md5('key7.1')::uuid, 'root')"
plan "resource_show" "SELECT kms.resource_show(md5('resource7')::uuid, 'root')"
