#!/usr/bin/env bash
# run.sh - breaks a running server in every way that can be thought of, and checks that it kept its promises.
#
#   tests/faults/run.sh [--short] [--kills N] [--seed S] [--env FILE] [--only CHECK]...
#
#   --short     40 kills and shorter outages: what tests/run.sh does
#   --kills N   how many processes are killed under load, and how many at steps of the lifecycle (500)
#   --seed S    repeats the choices of another run
#   --env FILE  DIR/env of a quickstart instance to break (protocol section 11); without it one is made, and removed
#   --only CHECK  one of the functions below instead of all
#
# KMS_BUILD_DIR names a finished plain build; the one that dies at places by name (--enable-faults) is made here, unless
# KMS_FAULTS_DIR names one or KMS_BUILD_DIR's is one.  Every check is a line "ok" or "FAIL"; the last line counts them.
set -u
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)

kills=500 short=false seed= env_file= only=()
while [ $# -gt 0 ]; do
    case $1 in
    --short) short=true kills=40 ;;
    --kills) kills=$2 && shift ;;
    --seed) seed=$2 && shift ;;
    --env) env_file=$2 && shift ;;
    --only) only+=("$2") && shift ;;
    *)
        sed -n '4,12s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
    shift
done
[ -n "$seed" ] || seed=$((($(date +%s) ^ $$) % 32768))
RANDOM=$seed
echo "seed $seed, $kills kills"

work=$(mktemp -d /tmp/kms-faults.XXXXXX)
chmod 755 "$work"
# Daemons would leave a core file where they were started.
cd "$work" || exit 1
passed=0 failed=0 skipped=0
storms=() mounts=() own_kmsd= journal=

ok() { passed=$((passed + 1)) && echo "ok   $*"; }
fail() { failed=$((failed + 1)) && echo "FAIL $*"; }
skip() { skipped=$((skipped + 1)) && echo "skip $*"; }
# claim TEXT COMMAND...: the command must succeed.
claim() {
    local text=$1
    shift
    if "$@"; then ok "$text"; else fail "$text"; fi
}
is() { [ "$1" "$2" "$3" ]; }

# wait_for SECONDS COMMAND...
wait_for() {
    local until=$((SECONDS + $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

# --- the instance ---

finish() {
    local p m
    for p in "${storms[@]}" $own_kmsd; do kill -KILL "$p" 2>/dev/null; done
    [ -n "$env_file" ] || "$top/kms/quickstart.sh" --stop --dir "$dir" >>"$work/quickstart.log" 2>&1
    for m in "${mounts[@]}"; do umount "$m" 2>/dev/null; done
    if [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]; then rm -rf "$work"; else echo "logs, journals and the instance: $work"; fi
}

if [ -z "${KMS_BUILD_DIR:-}" ]; then
    export KMS_BUILD_DIR=$work/build
    mkdir "$KMS_BUILD_DIR" && (
        [ -x "$top/configure" ] || (cd "$top" && ./autogen.sh)
        cd "$KMS_BUILD_DIR" && "$top/configure" -q && make -s -j"$(nproc)" kms/kmsd kms/kmsctl kms/kms-client hsm/hsmd
    ) >"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" && exit 1; }
fi
make -s -C "$KMS_BUILD_DIR" tests/faults/storm >>"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" && exit 1; }
storm=$KMS_BUILD_DIR/tests/faults/storm

dir=$work/instance
[ -z "$env_file" ] || dir=$(cd "$(dirname "$env_file")" && pwd -P)
trap finish EXIT
trap 'exit 1' INT TERM

# Starts again what is not running, and waits until all is well.  A killed PostgreSQL needs a moment to let go of its memory.
revive() {
    local try
    for try in 1 2 3 4 5 6 7 8; do
        "$top/kms/quickstart.sh" --detach --dir "$dir" >>"$work/quickstart.log" 2>&1 </dev/null && return 0
        sleep 0.5
    done
    tail -n 5 "$work/quickstart.log"
    return 1
}
revive || { echo "FAIL the instance does not start" && echo "0 passed, 1 failed" && exit 1; }
set -a
# shellcheck disable=SC1091
. "$dir/env"
set +a

is_ready() { curl -fsS -m 5 "$KMS_METRICS_URL/readyz" >/dev/null 2>&1; }
healthy() { wait_for "${1:-60}" is_ready; }
kmsd_pid() { cat "$KMSD_PID_FILE" 2>/dev/null; }
hsmd_pid() { cat "$HSMD_PID_FILE" 2>/dev/null; }
postmaster() { head -n 1 "$POSTGRES_DATA/postmaster.pid" 2>/dev/null; }
# of PARENT COMM: its children of that name
of() { [ -z "$1" ] || pgrep -P "$1" -x "$2"; }
workers() { of "$(kmsd_pid)" kmsd-worker; }
keeper() { of "$(kmsd_pid)" kmsd-keeper; }
custodians() { [ -z "$(hsmd_pid)" ] || pgrep -P "$(hsmd_pid)"; }
backends() { [ -z "$(postmaster)" ] || pgrep -P "$(postmaster)" -f 'postgres: kms_'; }
gone() { [ -z "$1" ] || ! kill -0 "$1" 2>/dev/null || grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -d "$KMS_DATABASE_URL" -c "$1" </dev/null; }

# One principal that comes from nowhere each time: a channel and a key.
"$KMS_CLIENT" token --subject faults-probe >"$work/probe.token"
probe() { "$KMS_CLIENT" key create --no-state --timeout 10 --token-file "$work/probe.token" >"$work/probe.out" 2>&1 </dev/null; }
probe_fails_with() { ! probe && { grep -q "$1" "$work/probe.out" || { cat "$work/probe.out" && false; }; }; }

# --- storms: traffic with a journal ---

# start_storm NAME WORKERS [OPTION...]: in the background until stop_storm; sets journal.
start_storm() {
    journal=$work/$1
    mkdir -p "$journal"
    "$storm" run --journal "$journal" --workers "$2" --seconds 36000 --seed "$seed" "${@:3}" >>"$journal.out" 2>&1 &
    storm_pid=$!
    storms+=("$storm_pid")
    wait_for 20 flows || echo "     no traffic in $journal"
}
flows() { [ "$(cat "$journal"/w* 2>/dev/null | grep -c '^A')" -gt 20 ]; }
stop_storm() {
    kill -TERM "$storm_pid" 2>/dev/null
    wait "$storm_pid" 2>/dev/null
    cat "$journal.out"
}
# mark: from here on; count CONDITION: how many lines of the journals since then, with $1..$4 as storm.c has them, and op.
declare -A since
mark() {
    local f
    for f in "$journal"/w*; do since[$f]=$(wc -l <"$f"); done
}
count() {
    local f n=0
    for f in "$journal"/w*; do
        n=$((n + $(awk -v from="${since[$f]:-0}" "\$1 == \"Q\" { op[\$2] = \$3 } NR > from && ($1) { n++ } END { print n + 0 }" "$f")))
    done
    echo "$n"
}
# What must not be while commits are impossible: a success of anything that is recorded.
successes='$1 == "A" && int($3 / 100) == 2 && op[$2] != "P"'
# An answer of HTTP's own is for whose channel is not in the worker's memory; the errorCode follows.
unavailable='$1 == "H" && $3 == 503 || $4 =='
# Those of a storm that are under way may have no true answer for long; then somebody new must ask.
says_unavailable() { [ "$(count "$unavailable $1")" -gt 0 ] || probe_fails_with 503; }
flowing() { [ "$(count "$successes")" -gt 20 ]; }
# recovers TEXT: traffic flows again by itself.
recovers() {
    mark
    claim "$1" wait_for 60 flowing
}

# check_storm NAME: the journal against server and audit log; its claims are counted.
check_storm() {
    local out=$work/$1.check
    sql "COPY (SELECT request_id, verdict, action, coalesce(array_to_string(key_ids, ','), '') FROM kms.entries
         WHERE request_id LIKE '$1-w%') TO STDOUT WITH (DELIMITER ' ')" >"$work/$1.entries"
    "$storm" check --journal "$work/$1" --entries "$work/$1.entries" >"$out" 2>&1
    sed "/ passed, /d; s/^\(ok  \|FAIL\) /\1 $1: /" "$out" | head -n 60
    passed=$((passed + $(grep -c '^ok ' "$out")))
    failed=$((failed + $(grep -c '^FAIL ' "$out")))
    grep -q ' passed, ' "$out" || fail "$1: the check itself broke off"
}

# --- kills ---

one_of() {
    local list=("$@")
    [ $# -eq 0 ] || echo "${list[RANDOM % $#]}"
}
declare -A killed
kill_one() {
    local d=$((RANDOM % 100)) what pid='' again=false sig=KILL
    if [ $d -lt 22 ]; then
        what=worker pid=$(one_of $(workers))
    elif [ $d -lt 32 ]; then
        what=keeper pid=$(keeper)
    elif [ $d -lt 47 ]; then
        what=custodian pid=$(one_of $(custodians))
    elif [ $d -lt 62 ]; then
        what=backend pid=$(one_of $(backends))
    elif [ $d -lt 71 ]; then
        what=kmsd pid=$(kmsd_pid) again=true
    elif [ $d -lt 79 ]; then
        what=hsmd pid=$(hsmd_pid) again=true
    elif [ $d -lt 86 ]; then
        what=postmaster pid=$(postmaster) again=true
    elif [ $d -lt 93 ]; then
        what=SIGTERM pid=$(kmsd_pid) again=true sig=TERM
    else
        what=SIGHUP pid=$(kmsd_pid) sig=HUP
    fi
    [ -n "$pid" ] && kill -$sig "$pid" 2>/dev/null || return 1
    killed[$what]=$((${killed[$what]:-0} + 1))
    if $again; then
        # Started again only when it is really gone: a drain may take a while.
        wait_for 40 gone "$pid"
        revive || fail "after $what was killed, the instance does not start again"
    fi
}

storm_of_kills() {
    local n=0 what list='' begun=$SECONDS
    start_storm kills 4
    while [ $n -lt "$kills" ]; do
        sleep "0.$((RANDOM % 9 + 1))"
        kill_one && n=$((n + 1))
    done
    for what in "${!killed[@]}"; do list+=" $what ${killed[$what]}"; done
    echo "     $n kills in $((SECONDS - begun)) s:$list"
    revive
    claim "kills: the server is well again by itself" healthy 60
    recovers "kills: and answers"
    stop_storm
    check_storm kills
}

# --- outages ---

# PostgreSQL stopped, as an administrator would.
database_stopped() {
    local pm
    pm=$(postmaster)
    kill -INT "$pm"
    wait_for 30 gone "$pm"
    sleep 0.5
    mark
    sleep 10
    claim "database stopped: requests are answered with 503" says_unavailable 503003
    claim "database stopped: nothing succeeds" is "$(count "$successes")" -eq 0
    claim "database stopped: /readyz says so" eval '! is_ready'
    revive
    recovers "database stopped: recovers"
}

# The whole of PostgreSQL stands still: connections are open and say nothing.
database_frozen() {
    local pids
    pids="$(postmaster) $(pgrep -P "$(postmaster)")"
    # shellcheck disable=SC2086
    kill -STOP $pids
    sleep 0.3
    mark
    sleep 8
    claim "database frozen: new requests are answered with 503" says_unavailable 503003
    claim "database frozen: nothing succeeds" is "$(count "$successes")" -eq 0
    # shellcheck disable=SC2086
    kill -CONT $pids
    recovers "database frozen: recovers"
}

hsm_stopped() {
    local pid mixed=$journal mixed_pid=$storm_pid
    start_storm pings 2 --pings
    pid=$(hsmd_pid)
    kill -TERM "$pid"
    wait_for 20 gone "$pid"
    sleep 0.5
    mark
    journal=$mixed
    mark
    sleep 8
    claim "hsmd stopped: what needs it is answered with 503" says_unavailable 503002
    claim "hsmd stopped: no key is released" is "$(count "$successes && op[\$2] == \"T\"")" -eq 0
    journal=$work/pings
    claim "hsmd stopped: channels that are open go on" is "$(count '$1 == "A" && $3 == 200')" -gt 10
    claim "hsmd stopped: and miss nothing" is "$(count '$1 ~ /[XNHE]/ || $1 == "A" && $3 != 200')" -eq 0
    stop_storm >/dev/null
    journal=$mixed storm_pid=$mixed_pid
    revive
    recovers "hsmd stopped: recovers"
}

hsm_frozen() {
    local pids
    pids="$(hsmd_pid) $(custodians)"
    # shellcheck disable=SC2086
    kill -STOP $pids
    sleep 0.3
    mark
    sleep 9
    claim "hsmd frozen: the deadline answers with 503" says_unavailable 503002
    claim "hsmd frozen: no key is released" is "$(count "$successes && op[\$2] == \"T\"")" -eq 0
    # shellcheck disable=SC2086
    kill -CONT $pids
    recovers "hsmd frozen: recovers"
}

# A commit that no standby confirms is not durable: nobody may be told that it is (pitfalls B6).
standby_lost() {
    local hold=6 cancelled
    $short || hold=50
    sql "ALTER SYSTEM SET synchronous_standby_names = 'nosuch'" && sql 'SELECT pg_reload_conf()' >/dev/null
    sleep 1
    mark
    sleep $((hold / 2))
    # Who is cancelled in that wait commits all the same, with a warning.
    cancelled=$(sql "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'kms_worker'")
    sleep $((hold / 2))
    claim "standby lost: commits were waiting and were cancelled ($cancelled)" is "$cancelled" -gt 0
    claim "standby lost: no false success" is "$(count "$successes")" -eq 0
    sql 'ALTER SYSTEM RESET synchronous_standby_names' && sql 'SELECT pg_reload_conf()' >/dev/null
    recovers "standby lost: recovers"
}

# mount_small DIR BYTES: a file system that is soon full.
mount_small() {
    mkdir -p "$1"
    [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o "size=$2,mode=0700,uid=$(stat -c %u "$POSTGRES_DATA"),gid=$(stat -c %g "$POSTGRES_DATA")" none "$1" 2>/dev/null &&
        mounts+=("$1")
}

used_up() {
    mark
    sleep 1
    is "$(count "$successes")" -eq 0
}
disk_full() {
    local size
    size=$(($(sql "SELECT pg_table_size('kms.entries')") + 24 * 1048576))
    if ! mount_small "$work/small" "$size"; then
        skip "disk full: only who may mount can try it"
        return
    fi
    sql "CREATE TABLESPACE small LOCATION '$work/small'"
    sql 'ALTER TABLE kms.entries SET TABLESPACE small'
    cat /dev/zero >"$work/small/filler" 2>/dev/null
    # PostgreSQL extends a busy table by many pages at a time: what it has of these is used up first.
    wait_for 30 used_up
    mark
    sleep 4
    claim "disk full: requests are answered with 503" says_unavailable 503003
    claim "disk full: nothing succeeds" is "$(count "$successes")" -eq 0
    rm "$work/small/filler"
    recovers "disk full: recovers"
    sql 'ALTER TABLE kms.entries SET TABLESPACE pg_default' && sql 'DROP TABLESPACE small'
}

# PostgreSQL panics when its log cannot grow.
wal_full() {
    local wal=$POSTGRES_DATA/pg_wal pm
    pm=$(postmaster)
    if ! mount_small "$work/wal" $(($(du -sb "$wal" | cut -f1) + 40 * 1048576)); then
        skip "transaction log full: only who may mount can try it"
        return
    fi
    kill -INT "$pm"
    wait_for 30 gone "$pm"
    cp -a "$wal/." "$work/wal/" && mv "$wal" "$wal.old" && ln -s "$work/wal" "$wal" && chown -h postgres: "$wal"
    revive
    recovers "transaction log full: (before)"
    cat /dev/zero >"$work/wal/filler" 2>/dev/null
    wait_for 120 gone "$(postmaster)"
    sleep 1
    mark
    sleep 6
    claim "transaction log full: requests are answered with 503" says_unavailable 503003
    claim "transaction log full: nothing succeeds" is "$(count "$successes")" -eq 0
    rm "$work/wal/filler"
    revive
    recovers "transaction log full: recovers"
    pm=$(postmaster)
    kill -INT "$pm"
    wait_for 30 gone "$pm"
    rm "$wal" && mkdir -m 700 "$wal" && cp -a "$work/wal/." "$wal/" && chown -R --reference="$POSTGRES_DATA" "$wal" && rm -rf "$wal.old"
    revive
    recovers "transaction log full: (moved back)"
}

# --- reloads under load ---

nothing_missed='$1 ~ /[XNHE]/ || $1 == "A" && $3 >= 500'

certificate_reload() {
    local i before after port=${KMS_URL##*:}
    serial() { openssl s_client -connect "127.0.0.1:$port" </dev/null 2>/dev/null | openssl x509 -noout -serial; }
    if [ ! -e "$dir/pki/ca.key" ]; then
        skip "certificate reload: this instance keeps its CA elsewhere"
        return
    fi
    before=$(serial)
    mark
    for i in 1 2 3 4 5 6; do
        openssl x509 -req -in "$dir/pki/tls.csr" -extfile "$dir/pki/tls.ext" -CA "$dir/pki/ca.pem" -CAkey "$dir/pki/ca.key" \
            -set_serial "0x1$(openssl rand -hex 15)" -sha256 -days 30 2>/dev/null | cat - "$dir/pki/ca.pem" >"$dir/pki/tls.pem.new"
        mv "$dir/pki/tls.pem.new" "$dir/pki/tls.pem"
        kill -HUP "$(kmsd_pid)"
        sleep 0.4
    done
    after=$(serial)
    claim "certificate reload: the new one is used" is "$before" != "$after"
    claim "certificate reload: no connection is dropped, no request fails" is "$(count "$nothing_missed")" -eq 0
}

wrong_configuration() {
    cp -p "$dir/kms.conf" "$work/kms.conf"
    printf '\n[limits]\nconnections = many\n' >>"$dir/kms.conf"
    mark
    kill -HUP "$(kmsd_pid)"
    sleep 2
    claim "wrong configuration: it is said" eval '"$KMSCTL" --json status | grep -q "\"reload_failed\":true"'
    claim "wrong configuration: the old one serves on" eval 'flowing && [ "$(count "$nothing_missed")" -eq 0 ]'
    cp -p "$work/kms.conf" "$dir/kms.conf"
    kill -HUP "$(kmsd_pid)"
    claim "wrong configuration: a right one is taken" wait_for 10 eval '"$KMSCTL" --json status | grep -q "\"reload_failed\":false"'
}

restarts() { curl -fsS -m 5 "$KMS_METRICS_URL/metrics" | awk '/^kms_process_restarts_total / { print $2 }'; }
# A worker that has no handlers yet must not die of a reload, one that has must not die of ^C, which a terminal sends to
# all; and a refusal that is being signed while its key's name is read anew still comes.
early_signals() {
    local before p i
    before=$(restarts)
    kill -9 "$(workers | head -n 1)"
    for i in $(seq 40); do
        kill -HUP "$(kmsd_pid)"
        curl -fsS -m 10 --cacert "$KMS_CA_FILE" -o /dev/null "$KMS_URL/encryption/api/v1/kms/messages" \
            -d "{\"destination\":\"kms://$KMS_DOMAIN\",\"kmsMessages\":[\"x\"]}" 2>>"$work/early.out" && echo >>"$work/early.ok"
    done
    for p in $(workers); do kill -INT "$p"; done
    claim "early signals: well again" healthy
    claim "early signals: nothing died but what was killed" is "$(restarts)" -eq $((before + 1))
    claim "early signals: garbage is answered meanwhile" is "$(wc -l <"$work/early.ok")" -ge 38
}

# --- strangers ---

slow_clients() {
    local i t worst=0
    "$storm" slow --journal "$work" --workers 200 --seconds 12 >"$work/slow.out" 2>&1 &
    storms+=($!)
    sleep 3
    for i in 1 2 3 4 5 6; do
        t=$(date +%s%N)
        probe || { worst=99999 && cat "$work/probe.out"; }
        t=$((($(date +%s%N) - t) / 1000000))
        [ $t -le $worst ] || worst=$t
        sleep 0.5
    done
    wait "${storms[-1]}"
    claim "slow clients: a good one is served beside 200 of them (slowest: $worst ms)" is "$worst" -lt 2000
    claim "slow clients: they are sent away ($(tail -n 1 "$work/slow.out"))" grep -qE 'slow: .* [1-9][0-9]* closed' "$work/slow.out"
}

hsm_items() { "$KMSCTL" --json hsm status | jq '[.items[]] | add'; }
garbage() {
    local before after
    mkdir -p "$work/garbage"
    before=$(hsm_items)
    claim "garbage: 1,000 messages are refused with signatures" "$storm" garbage --journal "$work/garbage" --workers 1000
    sleep 0.2
    after=$(hsm_items)
    claim "garbage: and cost the HSM $((after - before)) operations" is $((after - before)) -lt 50
}

ticks() {
    local p n=0
    for p in $(workers); do n=$((n + $(awk '{ print $14 + $15 }' "/proc/$p/stat"))); done
    echo $n
}
out_of_files() {
    local p before after lines
    if [ "$(id -u)" -ne 0 ]; then
        skip "no file descriptors left: only root can take them from a running process"
        return
    fi
    for p in $(workers); do prlimit --pid "$p" --nofile=$(($(find "/proc/$p/fd" -mindepth 1 | wc -l) + 3)): ; done
    "$storm" slow --journal "$work" --workers 60 --seconds 5 >"$work/files.out" 2>&1 &
    storms+=($!)
    sleep 1
    lines=$(wc -l <"$dir/log/kmsd.log")
    before=$(ticks)
    sleep 3
    after=$(ticks)
    claim "no file descriptors left: no busy loop ($((after - before)) ticks in 3 s)" is $((after - before)) -lt 100
    claim "no file descriptors left: no flood of log lines" is $(($(wc -l <"$dir/log/kmsd.log") - lines)) -lt 200
    wait "${storms[-1]}"
    for p in $(workers); do prlimit --pid "$p" --nofile=65536: 2>/dev/null || prlimit --pid "$p" --nofile=1024:; done
    claim "no file descriptors left: afterwards clients are served" wait_for 15 probe
}

# --- SIGTERM, drain, a log that is full ---

end_kmsd() {
    local pid
    pid=$(kmsd_pid)
    [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null
    wait_for 40 gone "$pid"
}
# own_kmsd LOG: one that is our child, so that its exit status can be seen.
start_own_kmsd() {
    end_kmsd
    "$KMS_BUILD_DIR/kms/kmsd" --config "$dir/kms.conf" 2>>"$1" >/dev/null </dev/null &
    own_kmsd=$!
    healthy 60
}
end_own_kmsd() {
    kill -TERM "$own_kmsd" 2>/dev/null
    wait "$own_kmsd"
    own_status=$?
    own_kmsd=
}

terminated_under_load() {
    local i rounds=3 lost=0 bad=0 kmsd
    $short || rounds=30
    for i in $(seq $rounds); do
        mkdir -p "$work/term$i"
        start_own_kmsd "$dir/log/kmsd.log" || fail "SIGTERM under load: kmsd is not ready"
        kmsd=$own_kmsd
        "$storm" drain --journal "$work/term$i" --workers 48 --pid "$kmsd" >"$work/term$i.out" 2>&1 || {
            lost=$((lost + 1))
            tail -n 3 "$work/term$i.out"
        }
        end_own_kmsd
        [ $own_status -eq 0 ] || bad=$((bad + 1))
    done
    claim "SIGTERM under load, $rounds times: what was sent before is answered" is $lost -eq 0
    claim "SIGTERM under load: exit status 0" is $bad -eq 0
    revive
    check_storm term1
}

log_full() {
    start_own_kmsd /dev/full
    claim "log on a full disk: clients are served" probe
    end_own_kmsd
    claim "log on a full disk: ends with status 0" is "$own_status" -eq 0
    revive
}

drained() {
    local mixed=$journal
    start_storm drained 4
    mark
    "$KMSCTL" drain >/dev/null
    sleep 1.5
    claim "kmsctl drain: no request is lost" is "$(count '$1 == "X"')" -eq 0
    claim "kmsctl drain: /readyz says so" eval '! is_ready'
    claim "kmsctl drain: who connects is refused at once" eval '! timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/${KMS_URL##*:}" 2>/dev/null'
    claim "kmsctl drain: no new client is served" eval '! timeout 2 "$KMS_CLIENT" ping --no-state --token-file "$work/probe.token" >/dev/null 2>&1'
    # Its workers wait for a server that takes nobody.
    # shellcheck disable=SC2046
    { kill -KILL $(pgrep -P "$storm_pid") "$storm_pid" && wait "$storm_pid"; } 2>/dev/null
    journal=$mixed
    end_kmsd
    revive
    claim "kmsctl drain: after a restart all is as before" probe
}

# --- what needs no load ---

# After a broken connection an operation is run again: the answer must be that of the record, whatever has changed since.
run_again() {
    local said
    said=$(psql -X -q -A -t -d "$KMS_DATABASE_URL" 2>&1 <<'END'
BEGIN;
CREATE TEMP TABLE said (first integer, second integer) ON COMMIT DROP;
DO $$
DECLARE
    c record;
    op uuid := gen_random_uuid();
    v1 integer;
    v2 integer;
BEGIN
    SELECT h.org_id, h.channel_id, h.subject, k.key_id, k.resource_id INTO STRICT c
      FROM kms.channels h JOIN kms.content_keys k ON k.org_id = h.org_id
     WHERE h.kind = 'user' AND h.expires_at > clock_timestamp() AND k.resource_id IS NOT NULL AND k.blob IS NOT NULL
       AND NOT EXISTS (SELECT FROM kms.authorizations a
                        WHERE a.org_id = k.org_id AND a.resource_id = k.resource_id AND a.grantee = h.subject)
     LIMIT 1;
    SELECT verdict INTO v1 FROM kms.keys_release(ARRAY[op], ARRAY[c.org_id], ARRAY[c.channel_id], ARRAY['again'], ARRAY[''],
        ARRAY[c.key_id], ARRAY[NULL]::text[], ARRAY[false]);
    INSERT INTO kms.authorizations (org_id, authorization_id, resource_id, kind, grantee, granted_by, created_at)
        VALUES (c.org_id, gen_random_uuid(), c.resource_id, 'user', c.subject, 'faults', clock_timestamp());
    SELECT verdict INTO v2 FROM kms.keys_release(ARRAY[op], ARRAY[c.org_id], ARRAY[c.channel_id], ARRAY['again'], ARRAY[''],
        ARRAY[c.key_id], ARRAY[NULL]::text[], ARRAY[false]);
    INSERT INTO said VALUES (v1, v2);
END $$;
SELECT first, second FROM said;
ROLLBACK;
END
    )
    claim "an operation that is run again is answered as its record says ($said)" is "$said" = '403001|403001'
}

confined() {
    local p bad=0
    for p in $(workers) $(keeper) $(custodians) $(kmsd_pid); do
        grep -q '^CoreDumping:[[:space:]]*0' "/proc/$p/status" || bad=1
    done
    claim "no process dumps core" is $bad -eq 0
    bad=0
    for p in $(workers) $(keeper) $(custodians); do
        awk '/^Max core file size/ { exit !($5 == 0 && $6 == 0) }' "/proc/$p/limits" 2>/dev/null || { bad=1 && echo "     $p may"; }
        # Who is not dumpable belongs to root in /proc, whoever he is.
        [ "$(stat -c %u "/proc/$p/fd")" -eq 0 ] || { bad=1 && echo "     $p is dumpable"; }
    done
    claim "none that has keys may dump core" is $bad -eq 0
    bad=0
    for p in $(workers) $(keeper); do
        grep -q '^Seccomp:[[:space:]]*2' "/proc/$p/status" || bad=1
        [ "$(awk '/^VmLck/ { print $2 }' "/proc/$p/status")" -gt 0 ] || bad=1
    done
    claim "workers and keeper are confined by seccomp and have locked memory" is $bad -eq 0
}

secrets() {
    local patterns=$work/patterns n found
    cat "$work"/*/secrets 2>/dev/null | sort -u | grep . >"$patterns"
    [ ! -s "$dir/pin" ] || cat "$dir/pin" >>"$patterns"
    cat "$work/probe.token" >>"$patterns"
    n=$(wc -l <"$patterns")
    found=$(grep -a -F -l -f "$patterns" "$dir"/log/* "$(dirname "$POSTGRES_DATA")"/log "$work/quickstart.log" "$work"/*.out 2>/dev/null)
    claim "none of $n keys and tokens is in a log${found:+: $found}" test -z "$found"
    # They would be found if they were there.
    head -n 1 "$patterns" >"$work/sample"
    claim "(the search finds what is there)" grep -q -a -F -f "$patterns" "$work/sample"
    found=$(find "$work" "$dir" -xdev -type f \( -name core -o -name 'core.[0-9]*' \) 2>/dev/null)
    claim "there is no core file${found:+: $found}" test -z "$found"
}

# --- the steps of the lifecycle, by name ---

# The other scripts have instances of their own, of a build whose keeper dies where it is told to: one for all of them.
faults_dir=${KMS_FAULTS_DIR:-}
with_faults() { grep -q '^#define KMS_FAULTS 1' "$1/config.h" 2>/dev/null; }
make_faults() {
    [ -z "$faults_dir" ] || return 0
    faults_dir=$KMS_BUILD_DIR
    ! with_faults "$faults_dir" || return 0
    faults_dir=$work/build-faults
    mkdir -p "$faults_dir" && (
        cd "$faults_dir" && "$top/configure" -q --enable-faults CFLAGS="-O1 -g" &&
            make -s -j"$(nproc)" kms/kmsd kms/kmsctl kms/kms-client hsm/hsmd
    ) >"$faults_dir.log" 2>&1 || { tail -n 20 "$faults_dir.log" && return 1; }
}
# script NAME OPTION...: its checks are counted.
script() {
    local out=$work/$1.out
    if ! make_faults; then
        fail "$1: there is no build with --enable-faults"
        return
    fi
    ( # where our instance is would lead its commands here
        # shellcheck disable=SC2046
        unset $(sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p' "$dir/env")
        KMS_BUILD_DIR=$faults_dir exec "$here/$1.sh" "${@:2}"
    ) >"$out" 2>&1 </dev/null
    sed "/ passed, /d; s/^\(ok  \|FAIL\) /\1 $1: /" "$out"
    passed=$((passed + $(grep -c '^ok ' "$out")))
    failed=$((failed + $(grep -c '^FAIL ' "$out")))
    grep -q ' passed, ' "$out" || fail "$1: broke off"
}
lifecycle() {
    if $short; then script lifecycle --short --seed "$seed"; else script lifecycle --kills "$kills" --seed "$seed"; fi
}
rotation() { script rotation; }
main_keys() { script main_keys; }

# --- the run ---

outages=(database_stopped database_frozen hsm_stopped hsm_frozen standby_lost disk_full wal_full certificate_reload
    wrong_configuration)
others=(early_signals slow_clients garbage out_of_files terminated_under_load log_full drained run_again)
# What the last two do and lifecycle does not: more keys to move, reads beside it without a pause, a node that lacks a new root.
steps=(lifecycle)
$short || steps+=(rotation main_keys)
wanted() { [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }

main() {
    confined
    ! wanted storm_of_kills || storm_of_kills
    local check started=false
    for check in "${outages[@]}"; do
        wanted "$check" || continue
        if $short && [ "$check" = wal_full ]; then continue; fi
        $started || start_storm outages 4
        started=true
        "$check"
    done
    if $started; then
        stop_storm
        check_storm outages
    fi
    for check in "${others[@]}"; do
        ! wanted "$check" || "$check"
    done
    confined
    secrets
    for check in "${steps[@]}"; do
        ! wanted "$check" || "$check"
    done
    skip "a step of the clock: needs libfaketime in every process; durations are on the monotonic clock by design"

    echo "seed $seed, $skipped skipped, $SECONDS s"
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
# One line, so that an edit of this file does not change a run.
main; exit
