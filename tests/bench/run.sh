#!/usr/bin/env bash
# Measures the server and prints each figure as a ratio within this one run, on this one machine.
#
#   tests/bench/run.sh [--short] [--env FILE] [--keep]
#
#   --short   a few seconds for each figure: that it works, not what it is worth
#   --env     a running development instance (kms/quickstart.sh --detach); else one of its own is made and thrown away
#
# A ratio that misses what it must reach is said so; in the short form only a measurement that fails is a failure, since
# two seconds on a busy machine prove nothing.  Last line: "N passed, N failed".
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
seconds=10 short=0 env_file=
while [ $# -gt 0 ]; do
    case $1 in
    --short) short=1 seconds=3 ;;
    --env) env_file=${2:?--env needs a file} && shift ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) echo "tests/bench/run.sh: what is \"$1\"? see --help" >&2 && exit 2 ;;
    esac
    shift
done

ulimit -n "$(ulimit -Hn)" # idle connections
work=$(mktemp -d /tmp/kms-bench.XXXXXX)
chmod 755 "$work"
cleanup() {
    [ -n "$env_file" ] || "$top/kms/quickstart.sh" --stop --dir "$work/kms" >/dev/null 2>&1
    rm -rf "$work"
}
trap cleanup EXIT

# Figures are of what ships: an optimised build.
build=${KMS_BUILD_DIR:-$work/build}
if [ ! -f "$build/Makefile" ]; then
    [ -x "$top/configure" ] || (cd "$top" && ./autogen.sh) >/dev/null 2>&1
    mkdir -p "$build" && (cd "$build" && "$top/configure" -q) || exit 1
fi
make -s -C "$build" -j"$(nproc)" all tests/bench/load tests/bench/bench_jose tests/bench/bench_hsm >"$work/make.log" 2>&1 || {
    tail -20 "$work/make.log"
    exit 1
}
export KMS_BUILD_DIR=$build
# shellcheck disable=SC1090
if [ -n "$env_file" ]; then
    . "$env_file"
else
    "$top/kms/quickstart.sh" --detach --dir "$work/kms" >"$work/quickstart.log" 2>&1 || {
        tail -20 "$work/quickstart.log"
        exit 1
    }
    . "$work/kms/env"
fi
export SOFTHSM2_CONF

passed=0 failed=0
# figure NAME VALUE MUST [less]: prints and judges one.
figure() {
    local ok=1
    if [ -z "$2" ]; then
        echo "FAIL $1: not measured"
        failed=$((failed + 1))
        return
    fi
    if [ "${4:-}" = less ]; then awk "BEGIN { exit !($2 <= $3) }" || ok=0; else awk "BEGIN { exit !($2 >= $3) }" || ok=0; fi
    printf '%-34s %10s   (must be at %s %s)%s\n' "$1" "$2" "$([ "${4:-}" = less ] && echo most || echo least)" "$3" \
        "$([ $ok = 1 ] || echo "   MISSED")"
    if [ $ok = 1 ] || [ $short = 1 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
ratio() { [ -n "${1:-}" ] && [ -n "${2:-}" ] && awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }

load_output() {
    "$build/tests/bench/load" --url "$KMS_URL" --domain "$KMS_DOMAIN" --ca "$KMS_CA_FILE" --token-key "$KMS_TOKEN_KEY_FILE" \
        --token-kid "$KMS_TOKEN_KID" --issuer "$KMS_TOKEN_ISSUER" --audience "$KMS_TOKEN_AUDIENCE" --org "$KMS_ORG" \
        --seconds "$seconds" "$@" 2>>"$work/load.log"
}
load() { load_output "$@" | sed -n 's|^messages/s ||p'; }

# pgbench with the same SQL functions, called with the same arrays, as the workers' role.  The socket is PostgreSQL's own
# user's; the role is taken on by SET ROLE, which costs nothing in the measured calls.
pgbin=$(pg_config --bindir 2>/dev/null)
[ -x "$pgbin/pgbench" ] || pgbin=$(dirname "$(find /usr/lib/postgresql -name pgbench 2>/dev/null | sort -V | tail -1)")
sql() { psql -X -q -v ON_ERROR_STOP=1 -At "$KMS_DATABASE_URL" "$@"; }
bench_db() { # SCRIPT CLIENTS: transactions a second
    "$pgbin/pgbench" -n -M prepared -f "$1" -c "$2" -j 2 -T "$seconds" "$KMS_DATABASE_URL" 2>>"$work/pgbench.log" |
        tee -a "$work/pgbench.log" | sed -n 's/^tps = \([0-9.]*\).*/\1/p'
}

# What the calls are about: the keys that the load itself made, in ready arrays, so that pgbench measures the function alone.
prepare_db() {
    sql <<END
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE TABLE bench.batch (size int, n int, orgs uuid[], channels uuid[], requests text[], clients text[], keys uuid[],
    behalf text[], officers boolean[], PRIMARY KEY (size, n));
INSERT INTO bench.batch
SELECT size, n, array_fill(c.org_id, ARRAY[size]), array_fill(c.channel_id, ARRAY[size]),
       array_fill('bench-1'::text, ARRAY[size]), array_fill('bench'::text, ARRAY[size]),
       ARRAY(SELECT k.key_id FROM (SELECT * FROM kms.content_keys WHERE creator = 'bench' AND resource_id IS NOT NULL LIMIT 2000) k
              WHERE n > 0 ORDER BY random() LIMIT size),
       array_fill(NULL::text, ARRAY[size]), array_fill(false, ARRAY[size])
  FROM (SELECT * FROM kms.channels WHERE subject = 'bench' AND expires_at > now() + interval '10 minutes' LIMIT 1) c,
       (VALUES (1), (50)) s(size), generate_series(1, 64) n;
GRANT USAGE ON SCHEMA bench TO kms_worker;
GRANT SELECT ON bench.batch TO kms_worker;
CREATE TABLE bench.fresh (n int PRIMARY KEY, org uuid, channel uuid, generation int, blob bytea);
INSERT INTO bench.fresh
SELECT 1, b.orgs[1], b.channels[1], o.generation, (SELECT blob FROM kms.content_keys WHERE blob IS NOT NULL LIMIT 1)
  FROM bench.batch b JOIN kms.organisations o ON o.org_id = b.orgs[1] WHERE size = 1 AND n = 1;
GRANT SELECT ON bench.fresh TO kms_worker;
ANALYZE bench.batch;
END
    [ "$(sql -c 'SELECT count(*) FROM bench.batch WHERE cardinality(keys) = size')" = 128 ]
}
for size in 50 1; do
    cat >"$work/release_$size.sql" <<END
\set n random(1, 64)
SELECT count(r.blob) FROM bench.batch b, LATERAL kms.keys_release(ARRAY(SELECT gen_random_uuid() FROM generate_series(1, $size)),
    b.orgs, b.channels, b.requests, b.clients, b.keys, b.behalf, b.officers) r WHERE b.size = $size AND b.n = :n;
END
done
cat >"$work/create_10.sql" <<'END'
SELECT r.verdict FROM bench.fresh f, LATERAL kms.keys_create(ARRAY[gen_random_uuid()], ARRAY[f.org], ARRAY[f.channel],
    ARRAY['bench-1'], ARRAY['bench'], ARRAY[f.generation], array_fill(1, ARRAY[10]),
    ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 10)), array_fill(f.blob, ARRAY[10]), 3600000) r WHERE f.n = 1;
END

echo "Each figure is a ratio within this run ($seconds s a measurement, $(nproc) cores)."

jose=$("$build/tests/bench/bench_jose" 2>>"$work/load.log" | sed -n 's/^jose.open_seal_ratio //p')
figure jose.open_seal_ratio "$jose" 2.5 less

# The load first: it makes the keys that pgbench then asks for.
release_50=$(load --mode release --connections 4 --messages 50 --keys 2000)
release_1=$(load --mode release --connections 32 --messages 1 --keys 200)
create_10=$(load --mode create --connections 32 --messages 1)
if prepare_db; then
    pg_50=$(bench_db "$work/release_50.sql" 4)
    pg_1=$(bench_db "$work/release_1.sql" 32)
    pg_create=$(bench_db "$work/create_10.sql" 32)
else
    echo "the keys for pgbench could not be prepared"
fi
pg_50_keys=$(awk "BEGIN { print ${pg_50:-0} * 50 }")
printf '%-34s %10s /s, pgbench %s /s\n' "release, 50 a POST, 4 connections" "${release_50:-?}" "$pg_50_keys"
printf '%-34s %10s /s, pgbench %s /s\n' "release, 1 a POST, 32 connections" "${release_1:-?}" "${pg_1:-?}"
printf '%-34s %10s /s, pgbench %s /s\n' "create 10, 32 connections" "${create_10:-?}" "${pg_create:-?}"
figure release_50.of_pgbench "$(ratio "$release_50" "$pg_50_keys")" 0.35
figure release_1.of_pgbench "$(ratio "$release_1" "$pg_1")" 0.5
figure create_10.of_pgbench "$(ratio "$create_10" "$pg_create")" 0.35

# A service beside a user: the same keys over the same connections, turn by turn (load.c).  Registered by the owner of the
# database, since how two officers do it is no matter of speed; one of them with a breadth, so that resources are counted.
add_services() {
    local name
    for name in bench-service bench-limited; do
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/$name.key" -out "$work/$name.csr" -subj "/CN=$name" &&
            printf '%s\n' "subjectAltName=URI:spiffe://bench.example/$name" extendedKeyUsage=clientAuth >"$work/$name.ext" &&
            openssl x509 -req -in "$work/$name.csr" -CA "$KMS_SERVICE_CA_FILE" -CAkey "$KMS_SERVICE_CA_KEY_FILE" -CAcreateserial \
                -CAserial "$work/serial" -days 2 -extfile "$work/$name.ext" -out "$work/$name.pem" || return 1
    done 2>>"$work/openssl.log"
    sql 2>>"$work/load.log" <<END
INSERT INTO kms.services (org_id, service, identity, purposes, kinds, rate, breadth, created_at)
SELECT kms.nobody(), s.name, 'spiffe://bench.example/' || s.name, '{indexing}', '{space}', 0, s.breadth, now()
  FROM (VALUES ('bench-service', 0), ('bench-limited', 1000000)) s(name, breadth) ON CONFLICT DO NOTHING;
INSERT INTO kms.service_orgs SELECT o.org_id, s.name, now()
  FROM kms.organisations o, (VALUES ('bench-service'), ('bench-limited')) s(name) WHERE o.name = '$KMS_ORG' ON CONFLICT DO NOTHING;
INSERT INTO kms.purposes SELECT o.org_id, 'indexing', true, now() FROM kms.organisations o WHERE o.name = '$KMS_ORG'
    ON CONFLICT (org_id, purpose) DO UPDATE SET enabled = true;
-- Both are planned by what is there now, not by what there was when the tables were small.
ANALYZE kms.channels, kms.services, kms.resources, kms.authorizations, kms.content_keys, kms.entries;
END
}
# Workers, their database sessions, hsmd.
server_pids() {
    echo $(pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-worker) $(pgrep -P "$(cat "$HSMD_PID_FILE")") \
        $(sql -c "SELECT pid FROM pg_stat_activity WHERE usename = 'kms_worker'") | tr ' ' ,
}
compare() { # NAME WHAT SERVICE LOAD-OPTIONS...: a figure
    local name=$1 what=$2 service=$3 rounds=20 seconds=0.5
    shift 3
    [ $short = 0 ] || rounds=6
    load_output --mode service --rounds $rounds --keys 2000 --pids "$(server_pids)" --cert "$work/$service.pem" --key "$work/$service.key" "$@" >"$work/$name.txt"
    got() { sed -n "s|^$1 ||p" "$work/$name.txt"; }
    printf '%-34s %10s /s, to a user %s /s; of the server %s and %s us each\n' "$what" "$(got service/s)" "$(got user/s)" "$(got service.us)" \
        "$(got user.us)"
    figure "$name" "$(got service.cost)" 1.15 less
}
if add_services; then
    compare service_50.cost "to a service, 50 a POST" bench-service --connections 4 --messages 50
    compare service_50_breadth.cost "the same, with a breadth" bench-limited --connections 4 --messages 50
    compare service_1.cost "to a service, 1 a POST" bench-service --connections 32 --messages 1
    compare service_1_breadth.cost "the same, with a breadth" bench-limited --connections 32 --messages 1
else
    figure service_50.cost "" 1.15 less
fi

# Channels: against what the same token gives to hsmd's client and nobody else.
channels=$(load --mode channel --connections 8 --messages 1)
hsm_alone() { (cd "$build" && tests/bench/bench_hsm 2>>"$work/load.log") | tee "$work/hsm.txt" | sed -n 's/^hsm.rsa_pairs_per_second //p'; }
hsm=$(hsm_alone)
[ -n "$hsm" ] || hsm=$(hsm_alone) # its own deadlines may pass on a machine that is busy with other things
printf '%-34s %10s /s, the HSM alone %s /s\n' "channels, 8 connections" "${channels:-?}" "${hsm:-?}"
figure channel.of_hsm "$(ratio "$channels" "$hsm")" 0.7
sed -n 's/^hsm.unwrap_ratio /hsm.unwrap_ratio /p' "$work/hsm.txt"

# The log.
short_option=
[ $short = 0 ] || short_option=--short
if [ -n "$env_file" ]; then instance=$env_file; else instance=$work/kms/env; fi
"$here/log.sh" --env "$instance" $short_option >"$work/log.txt" 2>>"$work/load.log"
value() { sed -n "s/^$1 //p" "$work/log.txt"; }
printf '%-34s %10s /s (made up)\n' "log, signing a backlog" "$(value log.catching_up_per_second)"
figure log.sequencing_percent "$(value log.sequencing_percent)" 10 less
figure log.proof_ms "$(value log.proof_ms)" 50 less
figure log.proof_hashes "$(value log.proof_hashes)" "$(value log.proof_hashes_wanted)" less
figure log.verify_per_second "$(value log.verify_per_second)" 200000

# Memory: fresh workers, then idle TLS connections, spread over them as they come.
kill -HUP "$(cat "$KMSD_PID_FILE")"
workers() { pgrep -P "$(cat "$KMSD_PID_FILE")" -x kmsd-worker; }
rss() { for p in $(workers); do awk '/^VmRSS/ { print $2 }' "/proc/$p/status"; done | awk '{ s += $1 } END { print s }'; }
count=$(workers | wc -l)
idle=1000
before=$(rss)
"$build/tests/bench/load" --url "$KMS_URL" --domain "$KMS_DOMAIN" --ca "$KMS_CA_FILE" --token-key "$KMS_TOKEN_KEY_FILE" \
    --token-kid "$KMS_TOKEN_KID" --issuer "$KMS_TOKEN_ISSUER" --audience "$KMS_TOKEN_AUDIENCE" --org "$KMS_ORG" \
    --mode idle --connections $idle --seconds 5 >"$work/idle.txt" 2>>"$work/load.log" &
pid=$!
for _ in $(seq 100); do
    grep -q '^idle' "$work/idle.txt" && break
    sleep 0.2
done
during=$(rss)
wait $pid
if grep -q '^idle' "$work/idle.txt" && [ "${count:-0}" -gt 0 ]; then
    printf '%-34s %10s KiB after the load, %s workers\n' "resident memory" "$before" "$count"
    figure worker_mib "$(awk "BEGIN { printf \"%.1f\", $before / $count / 1024 }")" 24 less
    figure idle_connection_kib "$(awk "BEGIN { printf \"%.1f\", ($during - $before) / $idle }")" 24 less
else
    figure idle_connection_kib "" 24 less
fi
# Rotation; late, as it leaves ten thousand organisations behind.
"$here/rotation.sh" --env "$instance" $short_option >"$work/rotation.txt" 2>>"$work/load.log"
value() { sed -n "s/^$1 //p" "$work/rotation.txt"; }
printf '%-34s %10s /s, alone %s /s\n' "release beside re-wrapping" "$(value rotation.releases_beside)" "$(value rotation.releases_alone)"
figure rotation.keys_per_second "$(value rotation.keys_per_second)" 900
figure rotation.slower_percent "$(value rotation.slower_percent)" 20 less
printf '%-34s %10s organisations\n' "a new root of" "$(value rotation.organisations)"
figure rotation.root_seconds "$(value rotation.root_seconds)" 120 less
# A main key is revoked; after the new root, which would wait a while for the second node that was here.
"$here/revocation.sh" --env "$instance" $short_option >"$work/revocation.txt" 2>>"$work/load.log"
value() { sed -n "s/^$1 //p" "$work/revocation.txt"; }
printf '%-34s %10s s until the answer, %s rounds, two nodes gave %s keys\n' "a main key is revoked" "$(value revocation.answered)" \
    "$(value revocation.rounds)" "$(value revocation.releases)"
figure revocation.seconds "$(value revocation.seconds)" 1 less
figure revocation.after_answer "$(value revocation.after_answer)" 0 less
[ $failed = 0 ] || tail -5 "$work/load.log"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
