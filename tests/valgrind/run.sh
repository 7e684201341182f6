#!/usr/bin/env bash
# run.sh - memcheck on unit tests and on a whole kmsd under load: no error, and nothing definitely lost.
#
#   tests/valgrind/run.sh
#
# ASan runs all unit tests already; here are those that are quick, with what ASan does not see: reads of memory that was never
# written.  KMS_BUILD_DIR names a finished plain build.  The last line is "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)
work=$(mktemp -d /tmp/kms-valgrind.XXXXXX)
chmod 755 "$work"
passed=0 failed=0 kmsd=
ok() { passed=$((passed + 1)) && echo "ok   $*"; }
fail() { failed=$((failed + 1)) && echo "FAIL $*"; }

dir=$work/instance
finish() {
    [ -z "$kmsd" ] || kill -KILL "$kmsd" 2>/dev/null
    [ ! -e "$dir/places" ] || "$top/kms/quickstart.sh" --stop --dir "$dir" >>"$work/quickstart.log" 2>&1
    if [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]; then rm -rf "$work"; else echo "logs: $work"; fi
}
trap finish EXIT
trap 'exit 1' INT TERM

if [ -z "${KMS_BUILD_DIR:-}" ]; then
    export KMS_BUILD_DIR=$work/build
    mkdir "$KMS_BUILD_DIR"
    { [ -x "$top/configure" ] || (cd "$top" && ./autogen.sh); } && (cd "$KMS_BUILD_DIR" && "$top/configure" -q) || exit 1
fi
programs=(kms/kmsd kms/kmsctl kms/kms-client hsm/hsmd tests/faults/storm)
# Program, and which of its tests; signing with fresh RSA keys takes minutes here, the search for keys reads all memory.
tests=(b64: json: kdf: kms: frame: 'jwe:*change_anywhere*' 'jwe:*headers_are*' 'jwe:*five_parts*' 'jwe:*small_header*'
    'jwk:*are_taken_or_refused*' 'jwk:*one_spelling*' 'jwt:*claims*' 'uri:*takes_an_authid*' 'uri:uuid/*' 'http:*names_the_parts*' 'http:*an_*'
    'msg:*tells_bad_strings*' 'msg:*takes_lists*' 'msg:answer/*')
for t in "${tests[@]}"; do programs+=("tests/unit/test_${t%%:*}"); done
make -s -C "$KMS_BUILD_DIR" -j"$(nproc)" $(printf '%s\n' "${programs[@]}" | sort -u) >"$work/build.log" 2>&1 || {
    tail -n 20 "$work/build.log"
    echo "0 passed, 1 failed"
    exit 1
}

# Valgrind 3.19 takes glibc's __memmove_chk for __memcpy_chk: they are one function.
cat >"$work/suppressions" <<'END'
{
   memmove_is_memcpy
   Memcheck:Overlap
   fun:__memcpy_chk
}
END
memcheck() { # LOG COMMAND...: becomes the command
    exec valgrind --trace-children=yes --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
        --suppressions="$work/suppressions" --log-file="$1.%p" "${@:2}"
}
# Every process must have come to its summary, and that must be clean.
clean() { # LOG
    local f bad=0
    for f in "$1".[0-9]*; do
        grep -q 'ERROR SUMMARY: 0 errors' "$f" && ! grep -q 'definitely lost: [1-9]' "$f" && continue
        bad=1
        grep -vE 'WARNING: unhandled|You may be able|Read the file|Nevertheless|it at http' "$f" | head -n 40
    done
    return $bad
}

# --- unit tests ---

run_test() { # PROGRAM:PATTERN
    local name=${1%%:*} pattern=${1#*:} log args=(-j1)
    log=$work/$(echo "$1" | tr -dc a-z0-9_)
    [ -z "$pattern" ] || args+=(--filter "$pattern")
    (memcheck "$log" "$KMS_BUILD_DIR/tests/unit/test_$name" "${args[@]}") >"$log.out" 2>&1
    if grep -qE 'Tested: [1-9].*Failing: 0 .*Crashing: 0' "$log.out" && clean "$log"; then
        echo "ok   $name $pattern $(grep -o 'Tested: [0-9]*' "$log.out")"
    else
        echo "FAIL $name $pattern"
        tail -n 5 "$log.out"
    fi
}
export -f run_test memcheck clean
export work
# One for each processor; each says one line.
printf '%s\0' "${tests[@]}" | xargs -0 -P "$(nproc)" -I{} bash -c 'run_test "$1"' _ {} | tee "$work/tests.out"
passed=$((passed + $(grep -c '^ok' "$work/tests.out")))
failed=$((failed + $(grep -c '^FAIL' "$work/tests.out")))

# --- kmsd: parent, workers, keeper; traffic, a reload, a lost database connection, and the end ---

if ! "$top/kms/quickstart.sh" --detach --dir "$dir" >"$work/quickstart.log" 2>&1; then
    fail "the instance does not start"
    tail -n 5 "$work/quickstart.log"
else
    set -a
    # shellcheck disable=SC1091
    . "$dir/env"
    set +a
    kill -TERM "$(cat "$KMSD_PID_FILE")"
    for _ in $(seq 200); do [ -e "$KMSD_PID_FILE" ] && sleep 0.1; done
    memcheck "$work/kmsd" "$KMS_BUILD_DIR/kms/kmsd" --config "$dir/kms.conf" >"$work/kmsd.out" 2>&1 </dev/null &
    kmsd=$!
    for _ in $(seq 300); do curl -fsS "$KMS_METRICS_URL/readyz" >/dev/null 2>&1 && break || sleep 0.2; done
    mkdir "$work/memcheck" "$work/garbage"
    "$KMS_BUILD_DIR/tests/faults/storm" run --journal "$work/memcheck" --workers 3 --seconds 8 >"$work/storm.out" 2>&1 &
    storm=$!
    sleep 4
    kill -HUP "$kmsd"
    psql -X -q -d "$KMS_DATABASE_URL" -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kms_worker' LIMIT 2" >/dev/null
    wait $storm
    "$KMS_BUILD_DIR/tests/faults/storm" garbage --journal "$work/garbage" --workers 100 >>"$work/storm.out" 2>&1 &&
        ok "kmsd refuses garbage" || fail "kmsd does not refuse garbage"
    psql -X -q -d "$KMS_DATABASE_URL" -c "COPY (SELECT request_id, verdict, action, coalesce(array_to_string(key_ids, ','), '')
        FROM kms.entries WHERE request_id LIKE 'memcheck-w%') TO STDOUT WITH (DELIMITER ' ')" >"$work/entries"
    if "$KMS_BUILD_DIR/tests/faults/storm" check --journal "$work/memcheck" --entries "$work/entries" >"$work/check.out" 2>&1; then
        ok "kmsd keeps its promises:$(sed -n '1s/^ *\([0-9]* requests\).*/ \1/p' "$work/check.out")"
    else
        fail "kmsd does not keep its promises"
        cat "$work/check.out"
    fi
    kill -TERM "$kmsd"
    wait "$kmsd" && ok "kmsd ends with status 0" || fail "kmsd ends with status $?"
    kmsd=
    if clean "$work/kmsd"; then ok "kmsd: $(ls "$work"/kmsd.[0-9]* | wc -l) processes, no error, nothing lost"; else fail "kmsd: memory"; fi
fi

echo "$SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
