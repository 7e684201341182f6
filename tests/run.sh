#!/usr/bin/env bash
# The one test command, for people and for CI: installs what a fresh Debian 12 lacks, builds, and runs every suite.
#
#   tests/run.sh              everything
#   tests/run.sh SUITE ...    some of: build unit clang format sql admin log destruction rows purposes clients restore faults fuzz bench valgrind
#   tests/run.sh --list       what there is
#
# Each suite brings its own PostgreSQL, SoftHSM token and ports, and ends with a line "N passed, N failed"; so does this.
# KMS_TEST_DIR keeps builds and logs there instead of a new directory under /tmp.  KMS_TEST_JOBS: for how many processors;
# else as many as there are.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
# The longest first, so that none is left to run alone at the end.
suites=(build faults purposes clients unit log sql admin destruction rows clang restore valgrind fuzz explain format bench)
case "${1:-}" in
-h | --help)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
--list)
    printf '%s\n' "${suites[@]}"
    exit 0
    ;;
esac
[ $# -gt 0 ] && suites=("$@")

# What builds, and what only the tests need.
packages=(gcc make autoconf automake pkg-config libssl-dev libjansson-dev libevent-dev libpq-dev
    libcurl4-openssl-dev libinih-dev libp11-kit-dev libseccomp-dev libsystemd-dev
    postgresql-15 softhsm2 openssl curl ca-certificates
    git clang clang-format libclang-rt-14-dev libcriterion-dev libcjose-dev postgresql-15-pgtap
    libtap-parser-sourcehandler-pgtap-perl opensc valgrind jq xz-utils procps util-linux)
missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
command -v node >/dev/null && command -v npm >/dev/null || missing+=(nodejs npm)
if [ ${#missing[@]} -gt 0 ]; then
    echo "Installing: ${missing[*]}"
    sudo=
    if [ "$(id -u)" != 0 ]; then
        sudo=$(command -v sudo) || {
            echo "These packages are missing, and only root can install them: apt-get install ${missing[*]}"
            exit 1
        }
    fi
    export DEBIAN_FRONTEND=noninteractive
    { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } >/tmp/kms-test-packages.$$ 2>&1 || {
        tail -20 /tmp/kms-test-packages.$$
        exit 1
    }
    rm -f /tmp/kms-test-packages.$$
fi

dir=${KMS_TEST_DIR:-$(mktemp -d /tmp/kms-test.XXXXXX)}
mkdir -p "$dir/logs"
chmod 755 "$dir"
jobs=${KMS_TEST_JOBS:-$(nproc)}
passed=0 failed=0
broken=()

# Suites find the plain build (what is shipped) and the developer build (sanitizers) here.
export KMS_BUILD_DIR="$dir/build" KMS_DEVELOPER_DIR="$dir/developer"

configured() { # DIR ARGS...: a build directory, configured once
    local d=$1
    shift
    ( # side by side, but one at a time
        flock 9
        [ -x "$top/configure" ] && [ "$top/configure" -nt "$top/configure.ac" ] || (cd "$top" && ./autogen.sh)
    ) 9>"$dir/configure.lock" || return 1
    [ -f "$d/Makefile" ] || { mkdir -p "$d" && (cd "$d" && "$top/configure" -q "$@"); }
}

# The numbers of an automake run: every test program is one, each of its cases is counted by its own summary.
check_counts() { # LOGDIR: prints "P F"
    cat "$1"/*.log 2>/dev/null | awk '
        /Synthesis: Tested:/ { gsub(/[|:]/, " ")
            for (i = 1; i < NF; i++) { if ($i == "Passing") p += $(i + 1)
                if ($i == "Failing") f += $(i + 1); if ($i == "Crashing") f += $(i + 1) } }
        END { printf "%d %d\n", p, f }'
}

suite_build() {
    configured "$KMS_BUILD_DIR" CFLAGS="-O2 -g -Werror" && make -s -C "$KMS_BUILD_DIR" -j"$jobs" all || return 1
    configured "$KMS_DEVELOPER_DIR" --enable-developer && make -s -C "$KMS_DEVELOPER_DIR" -j"$jobs" all || return 1
    make -s -C "$KMS_BUILD_DIR" install DESTDIR="$dir/install" >/dev/null || return 1
    (cd "$KMS_BUILD_DIR" && make -s dist >/dev/null && mkdir -p "$dir/dist" && tar -xJf kms-server-*.tar.xz -C "$dir/dist") || return 1
    echo "4 passed, 0 failed"
}
suite_unit() {
    configured "$KMS_DEVELOPER_DIR" --enable-developer || return 1
    local r=0 n
    make -s -C "$KMS_DEVELOPER_DIR" -j"$jobs" check || r=1
    n=$(check_counts "$KMS_DEVELOPER_DIR/tests/unit")
    [ $r = 0 ] || grep -lE '^(FAIL|ERROR)|Failing: [1-9]|Crashing: [1-9]' "$KMS_DEVELOPER_DIR"/tests/unit/*.log | while read -r l; do echo "== $l"; tail -40 "$l"; done
    set -- $n
    [ "$1" -gt 0 ] || r=1
    [ $r = 0 ] || [ "$2" -gt 0 ] || set -- "$1" 1
    echo "$1 passed, $2 failed"
    return $r
}
suite_clang() {
    configured "$dir/clang" --enable-developer CC=clang && make -s -C "$dir/clang" -j"$jobs" all || return 1
    echo "1 passed, 0 failed"
}
suite_format() {
    local p=0 f=0 bad
    bad=$(cd "$top" && git ls-files '*.c' '*.h' | xargs -r clang-format --dry-run 2>&1 | grep -c 'warning: code should be') || true
    if [ "$bad" = 0 ]; then p=$((p + 1)); else f=$((f + 1)); echo "clang-format would change $bad places; run: make format"; fi
    # One door for JSON from outside; jansson's other loaders and its lax flags stay out.
    bad=$(cd "$top" && git grep -nE 'json_load|JSON_ALLOW_NUL|JSON_DISABLE_EOF_CHECK' -- kms proto sql | grep -v '^proto/json.c:')
    if [ -z "$bad" ]; then p=$((p + 1)); else f=$((f + 1)); echo "JSON is read by proto/json.c alone:"; echo "$bad"; fi
    # The three folders know nothing of each other, nor of kms/.
    bad=$(cd "$top" && { git grep -nE '#include "(kms|hsm|sql)/' -- proto; git grep -nE '#include "(kms|sql)/' -- hsm; git grep -nE '#include "proto/' -- hsm sql | grep -v '"proto/err.h"'; git grep -nE '#include "(kms|hsm)/' -- sql; } )
    if [ -z "$bad" ]; then p=$((p + 1)); else f=$((f + 1)); echo "Folders that must not know each other:"; echo "$bad"; fi
    echo "$p passed, $f failed"
    [ $f = 0 ]
}
script() { [ -x "$here/$1/run.sh" ] && "$here/$1/run.sh" "${@:2}"; }
suite_sql() { script sql; }
suite_admin() { script admin; }
suite_log() { script log --short; }
suite_explain() { script explain; }
suite_destruction() { script destruction; }
suite_rows() { script rows --short; }
suite_purposes() { script purposes --short; }
suite_clients() { script clients; }
suite_restore() { script restore; }
suite_faults() { script faults --short; }
suite_fuzz() { script fuzz 5; }
suite_valgrind() { script valgrind; }
suite_bench() { script bench --short; }

for s in "${suites[@]}"; do
    declare -F "suite_$s" >/dev/null || { echo "no suite $s; see --list"; exit 2; }
done
run() { # SUITE: its output, exit status and seconds go to files
    local begun=$SECONDS
    "suite_$1" >"$dir/logs/$1.log" 2>&1
    echo "$? $((SECONDS - begun))" >"$dir/logs/$1.end"
}
tell() { # SUITE: what became of it
    local s=$1 log=$dir/logs/$1.log line p f status seconds
    read -r status seconds <"$dir/logs/$s.end"
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -1)
    p=$(echo "${line:-0 passed}" | sed 's/ passed.*//')
    f=$(echo "${line:-x, 0 failed}" | sed 's/.*, \([0-9]*\) failed.*/\1/')
    # A suite that counts nothing, or fails without saying so, has failed.
    if [ "$status" != 0 ] && [ "$f" = 0 ] || [ -z "$line" ]; then f=$((f + 1)); fi
    echo "=== $s"
    if [ "$f" -gt 0 ]; then
        broken+=("$s")
        tail -n 60 "$log"
    elif [ "$s" = bench ]; then
        grep -vE '^$' "$log" | tail -n 40
    fi
    passed=$((passed + p)) failed=$((failed + f))
    echo "    $p passed, $f failed, $seconds s"
}

# What the others need comes first, and what measures has the machine to itself.  The rest mostly waits, for a time to pass or a
# process to come back: half as many again side by side as there are processors.
wanted() { [[ " ${suites[*]} " == *" $1 "* ]]; }
alone=(bench)
if wanted build; then run build && tell build; fi
declare -A running=()
collect() { # waits until one of those under way has ended
    local s
    wait -n
    for s in "${!running[@]}"; do
        if ! kill -0 "${running[$s]}" 2>/dev/null; then
            unset "running[$s]"
            tell "$s"
        fi
    done
}
for s in "${suites[@]}"; do
    [[ " build ${alone[*]} " != *" $s "* ]] || continue
    while [ ${#running[@]} -ge $((jobs + jobs / 2)) ]; do collect; done
    rm -f "$dir/logs/$s.end"
    run "$s" &
    running[$s]=$!
done
while [ ${#running[@]} -gt 0 ]; do collect; done
for s in "${alone[@]}"; do
    if wanted "$s"; then run "$s" && tell "$s"; fi
done
[ ${#broken[@]} = 0 ] || echo "Failed: ${broken[*]}; logs: $dir/logs"
[ ${#broken[@]} -gt 0 ] || [ -n "${KMS_TEST_DIR:-}" ] || rm -rf "$dir"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
