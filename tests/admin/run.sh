#!/usr/bin/env bash
# Administration against a live server: kmsctl, the admin socket itself, metrics, quickstart.
#
#   tests/admin/run.sh               starts a server of its own, and ends it
#   tests/admin/run.sh --env FILE    uses the one that FILE describes (quickstart.sh's DIR/env); leaves out what would break it
#
# KMS_BUILD_DIR names a build tree to use.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
own=true
case "${1:-}" in
--env)
    own=false
    env_file=$2
    ;;
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

work=$(mktemp -d /tmp/kms-admin-test.XXXXXX)
chmod 711 "$work"
passed=0
failed=0
finish() {
    if $own; then
        "$top/kms/quickstart.sh" --stop --dir "$work/server" >/dev/null 2>&1
        if [ -s "$work/server/places" ]; then
            # shellcheck disable=SC1091
            . "$work/server/places"
            # shellcheck disable=SC2154
            rm -rf "$run" "$outside"
        fi
    fi
    if [ "$failed" -eq 0 ]; then rm -rf "$work"; else echo "left for a look: $work"; fi
}
trap finish EXIT

ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}

# check NAME STATUS COMMAND...: it leaves with that status; its output is in $out, $err.
check() {
    local name=$1 want=$2 got=0
    shift 2
    timeout 60 "$@" >"$work/out" 2>"$work/err" </dev/null || got=$?
    out=$(cat "$work/out")
    err=$(cat "$work/err")
    if [ "$got" -eq "$want" ]; then ok; else bad "$name: status $got, not $want: $(head -c 300 "$work/err")"; fi
}
# has NAME TEXT PATTERN
has() {
    if grep -Eq -- "$3" <<<"$2"; then ok; else bad "$1: \"$(head -c 300 <<<"$2")\" has no \"$3\""; fi
}
lacks() {
    if grep -Eq -- "$3" <<<"$2"; then bad "$1: has \"$3\""; else ok; fi
}
# is NAME GOT WANTED
is() {
    if [ "$2" = "$3" ]; then ok; else bad "$1: \"$2\", not \"$3\""; fi
}
# is_json NAME TEXT: exactly one line of JSON
is_json() {
    if [ "$(wc -l <<<"$2")" -eq 1 ] && jq -e . >/dev/null 2>&1 <<<"$2"; then ok; else bad "$1: is not one line of JSON: $(head -c 200 <<<"$2")"; fi
}
wait_until() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.2
    done
}

if $own; then
    "$top/kms/quickstart.sh" --detach --dir "$work/server" >"$work/quickstart.log" 2>&1 || {
        cat "$work/quickstart.log"
        echo "0 passed, 1 failed"
        exit 1
    }
    env_file=$work/server/env
fi
set -a
# shellcheck disable=SC1090
. "$env_file"
set +a
server=$(dirname "$env_file")
ctl=$KMSCTL
binary=$(sed -n 's/^exec \([^ ]*\) .*/\1/p' "$ctl")

# raw SECONDS: sends standard input as it is, prints what comes back until the server closes or the time is over.
raw() {
    perl -e '
        use strict; use warnings; use Socket;
        my ($path, $seconds) = @ARGV;
        local $/; my $input = <STDIN>;
        socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
        connect($s, sockaddr_un($path)) or die "connect: $!";
        $SIG{PIPE} = "IGNORE";
        my $end = time + $seconds; my $sent = 0; my $out = "";
        vec(my $fd = "", fileno($s), 1) = 1;
        $s->blocking(0) if eval { require IO::Handle; 1 };
        while (time < $end) {
            my ($r, $w) = ($fd, $sent < length $input ? $fd : undef);
            select($r, $w, undef, 0.2);
            if ($sent < length $input) {
                my $n = syswrite($s, $input, 65536, $sent);
                $sent += $n if defined $n;
                $sent = length $input if !defined $n && !$!{EAGAIN};
            }
            my $n = sysread($s, my $chunk, 65536);
            if (defined $n) { last if $n == 0; $out .= $chunk; print $chunk; $| = 1; }
            last if $ENV{LINES_WANTED} && ($out =~ tr/\n//) >= $ENV{LINES_WANTED};
        }' "$KMS_ADMIN_SOCKET" "$1"
}
# call LINE: one line there, one line back
call() { printf '%s\n' "$1" | LINES_WANTED=1 raw 15; }
code_of() { jq -r '.error.code' <<<"$1" 2>/dev/null; }

# --- status ---

check "status" 0 "$ctl" status
has "status is for people" "$out" '^ready$'
has "status shows workers" "$out" '^WORKER +PID +STATE'
check "status --json" 0 "$ctl" status --json
is_json "status --json" "$out"
is "status: ready" "$(jq -r .ready <<<"$out")" true
is "status: the root is proven" "$(jq -r .keeper.root_state <<<"$out")" proven
is "status: every worker serves" "$(jq -r '[.workers[].state] | unique | join(",")' <<<"$out")" serving
check "an option before the command" 0 "$ctl" --json status

# --- organisations ---

org=test-$$-$RANDOM
check "org add" 0 "$ctl" org add "$org"
has "org add for people" "$out" "^name +$org$"
check "org add again" 1 "$ctl" org add "$org"
has "org add again tells why" "$err" '409002'
check "org add again --json" 1 "$ctl" org add "$org" --json
is "the error is JSON too" "$(jq -r .error.code <<<"$out")" 409002
check "org add of a bad name" 1 "$ctl" org add 'a b'
has "org add of a bad name" "$err" 400002
check "org add of an option-like name" 1 "$ctl" org add -- -x
op=$(cat /proc/sys/kernel/random/uuid)
check "org add with an op" 0 "$ctl" --json --op "$op" org add "$org-op"
first=$out
check "org add with the same op" 0 "$ctl" --json --op "$op" org add "$org-op"
is "the same op answers the same" "$out" "$first"
check "org list" 0 "$ctl" org list
has "org list has it" "$out" "^$org +"
check "org list --json" 0 "$ctl" org list --json
is_json "org list --json" "$out"
is "org list --json has it once" "$(jq "[.[] | select(.name == \"$org\")] | length" <<<"$out")" 1
check "org show" 0 "$ctl" org show "$org"
has "org show has wrapping keys" "$out" 'GENERATION'
check "org show --json" 0 "$ctl" org show "$org" --json
is "org show --json" "$(jq -r .name <<<"$out")" "$org"
check "org show of none" 1 "$ctl" org show no-such-org
has "org show of none" "$err" 404001
check "org suspend" 0 "$ctl" org suspend "$org"
is "it is suspended" "$("$ctl" --json org show "$org" | jq -r .state)" suspended
check "org suspend again" 0 "$ctl" org suspend "$org"
check "org resume" 0 "$ctl" org resume "$org"
is "it is active" "$("$ctl" --json org show "$org" | jq -r .state)" active
check "org suspend of none" 1 "$ctl" org suspend no-such-org
has "org suspend of none" "$err" 404001

# --- a key, a resource, a user who is locked out ---

"$KMS_CLIENT" token --subject alice --org "$org" >"$work/token"
as_alice() { "$KMS_CLIENT" "$@" --token-file "$work/token" --state "$work/state"; }
key=$(as_alice key create --quiet | head -n 1)
resource=$(as_alice resource create --key-uri "$key" --quiet | head -n 1)
has "a key was made" "$key" '^kms://'
check "key show" 0 "$ctl" key show "$key"
has "key show names the creator" "$out" '^creator +alice'
has "key show has human times" "$out" '^created +20[0-9-]+ [0-9:]+Z \('
check "key show --json by id" 0 "$ctl" key show "${key##*/}" --json
is "key show --json" "$(jq -r .key <<<"$out")" "${key##*/}"
lacks "key show shows no key" "$out" '"(k|blob|wrapped)":'
check "key show of none" 1 "$ctl" key show 00000000-0000-4000-8000-000000000000
check "key show of nonsense" 1 "$ctl" key show nonsense
check "resource show" 0 "$ctl" resource show "$resource"
has "resource show has authorisations" "$out" 'alice'
check "resource show --json" 0 "$ctl" resource show "$resource" --json
is "resource show --json" "$(jq -r .keys <<<"$out")" 1
check "resource show of none" 1 "$ctl" resource show 00000000-0000-4000-8000-000000000000
"$ctl" org suspend "$org" >/dev/null
refusal=$(as_alice key get "$key" 2>&1 >/dev/null)
has "a suspended organisation is refused" "$refusal" 403
"$ctl" org resume "$org" >/dev/null
if as_alice key get "$key" >/dev/null 2>&1; then ok; else bad "a resumed organisation is served"; fi

check "freeze --dry-run" 0 "$ctl" freeze resource "$resource" --for 1h --dry-run
has "the impact is shown" "$out" '^  keys +1'
if as_alice key get "$key" >/dev/null 2>&1; then ok; else bad "a dry run freezes"; fi
check "freeze" 0 "$ctl" freeze resource "$resource" --for 1h --json
is "freeze --json has the impact" "$(jq -r '.state + " " + (.impact.keys | tostring)' <<<"$out")" "done 1"
has "what is frozen is refused" "$(as_alice key get "$key" 2>&1 >/dev/null)" 405006
check "freeze list" 0 "$ctl" freeze list
has "freeze list" "$out" "^resource +${resource##*/} +$org "
check "thaw" 0 "$ctl" thaw resource "$resource"
if as_alice key get "$key" >/dev/null 2>&1; then ok; else bad "what is thawed is released"; fi
check "thaw again" 1 "$ctl" thaw resource "$resource"
check "freeze for how long" 2 "$ctl" freeze resource "$resource"
check "a user is somebody's" 2 "$ctl" freeze user alice --for 1h
has "a user is somebody's" "$err" '--org NAME'
check "not for so long" 2 "$ctl" freeze org "$org" --for 91d

# --- the keeper's jobs are begun here and looked at later, since they come round only now and then ---

sql() { psql -X -q -A -t -d "$KMS_DATABASE_URL" -c "$1"; }
if $own; then
    sql "UPDATE kms.wrapping_keys w SET created_at = w.created_at - interval '100 days' FROM kms.organisations o
          WHERE o.org_id = w.org_id AND o.name = '$org-op'"
    due_since=$SECONDS
    as_alice key create --count 3 --quiet >"$work/unbound"
    sql "UPDATE kms.content_keys k SET expires_at = clock_timestamp() - interval '1 minute' FROM kms.organisations o
          WHERE o.org_id = k.org_id AND o.name = '$org' AND k.resource_id IS NULL"
fi

# --- audit ---

check "audit tail of an organisation" 0 "$ctl" audit tail "$org"
has "audit tail has the refusal" "$out" '403001'
has "audit tail has the operator" "$out" 'org\.suspend'
check "audit tail --json" 0 "$ctl" audit tail "$org" --json --limit 3
is_json "audit tail --json" "$out"
is "audit tail --limit" "$(jq '.entries | length' <<<"$out")" 3
check "audit tail of all" 0 "$ctl" audit tail
check "audit tail --limit nonsense" 2 "$ctl" audit tail --limit 0
timeout 5 "$ctl" audit tail "$org" --json --follow --limit 2 >"$work/follow" &
follower=$!
sleep 1.5
"$ctl" org suspend "$org" >/dev/null
"$ctl" org resume "$org" >/dev/null
wait $follower
is "audit tail --follow tells each entry once" "$(sed 1,2d "$work/follow" | jq -r 'select(.kind != "keeper") | .action' | paste -sd,)" org.suspend,org.resume

# --- the token ---

check "hsm status" 0 "$ctl" hsm status
has "hsm status has the public key" "$out" 'BEGIN PUBLIC KEY'
check "hsm status --json" 0 "$ctl" hsm status --json
is_json "hsm status --json" "$out"
pem=$(jq -r .static_public_key <<<"$out")
if openssl pkey -pubin -noout <<<"$pem" 2>/dev/null; then ok; else bad "static_public_key is no PEM key"; fi
check "hsm init where all is there" 0 "$ctl" hsm init --json
is "hsm init touches nothing" "$(jq -r .static_public_key <<<"$out")" "$pem"
check "hsm init --bits nonsense" 2 "$ctl" hsm init --bits 1024

# --- log level, reload ---

before=$("$ctl" --json log level | jq -r .level)
check "log level debug" 0 "$ctl" log level debug
is "log level" "$("$ctl" --json log level | jq -r .level)" debug
check "log level of none" 1 "$ctl" log level loud
"$ctl" log level "$before" >/dev/null
reloaded() { [ "$("$ctl" --json status | jq -r .reloaded)" != "$1" ]; }
was=$("$ctl" --json status | jq -r .reloaded)
sleep 1
check "reload" 0 "$ctl" reload
if wait_until 10 reloaded "$was"; then ok; else bad "reload was not done"; fi
is "ready after a reload" "$("$ctl" --json status | jq -r .ready)" true

# --- usage ---

check "no command" 2 "$ctl"
check "no such command" 2 "$ctl" make coffee
has "no such command" "$err" 'no command "make coffee"'
check "half a command" 2 "$ctl" org
check "an argument too few" 2 "$ctl" org add
check "an argument too many" 2 "$ctl" org add a b
check "an option that it does not take" 2 "$ctl" org add a --exit
check "no such option" 2 "$ctl" --colour status
check "--timeout nonsense" 2 "$ctl" --timeout x status
check "--op nonsense" 2 "$ctl" --op x status
check "--help" 0 "$ctl" --help
has "--help" "$out" 'Exit status'
check "--help of a command" 0 "$ctl" audit tail --help
has "--help of a command" "$out" '--follow'
check "--version" 0 "$ctl" --version
check "no socket there" 3 "$ctl" --socket "$work/none" status
has "no socket there tells what to do" "$err" 'is kmsd running'
check "no server behind the socket" 3 "$ctl" --socket "$work" status

# --- the socket's path ---

printf '[admin]\nsocket = %s\n[token]\nissuer = x\n' "$KMS_ADMIN_SOCKET" >"$work/part.conf"
check "--config" 0 env -u KMS_ADMIN_SOCKET "$binary" --config "$work/part.conf" status
check "--config of none" 2 env -u KMS_ADMIN_SOCKET "$binary" --config "$work/none.conf" status
check "the environment" 0 env KMS_ADMIN_SOCKET="$KMS_ADMIN_SOCKET" "$binary" status

# --- configuration, completion ---

check "config sample" 0 "$ctl" config sample
is "the committed sample" "$out" "$(cat "$top/kms/kms.conf.sample")"
check "completion bash" 0 "$ctl" completion bash
is "the committed completion" "$out" "$(cat "$top/kms/kmsctl.bash")"
completed=$(bash -c '. "$1"; COMP_WORDS=(kmsctl org s); COMP_CWORD=2; _kmsctl; echo "${COMPREPLY[@]}"' - "$top/kms/kmsctl.bash")
is "completion of words" "$completed" "show suspend set"
# What kmsctl can do is in its help, its man page and its completion, and nothing else is.
check "--help has every command" 0 "$ctl" --help
commands=$(sed -n 's/^  \([a-z][a-z-]*\( [a-z][a-z-]*\)\{0,1\}\).*/\1/p' <<<"$out" | sort)
documented=$(sed -n '/^\.SH COMMANDS/,/^\.SH TIMES/{/^\.T[PQ]/{n;p}}' "$top/kms/kmsctl.8" |
    sed 's/^\.[A-Z]* //; s/\\f[A-Z]//g; s/\\-/-/g; s/"//g; s/ *, */\n/g' |
    sed -n 's/^\([a-z][a-z-]*\( [a-z][a-z-]*\)\{0,1\}\).*/\1/p' | sort)
is "commands and the man page" "$(diff <(echo "$commands") <(echo "$documented"))" ""
completed=$({
    sed -n 's/^    \([a-z-]*\)) set -- \(.*\) ;;/\1 \2/p' "$top/kms/kmsctl.bash" | awk '{ for (i = 2; i <= NF; i++) print $1, $i }'
    sed -n 's/^    "") set -- \(.*\) ;;/\1/p' "$top/kms/kmsctl.bash" | tr ' ' '\n' | grep -vxFf <(cut -sd' ' -f1 <<<"$commands" | sort -u)
} | sort)
is "commands and the completion" "$(diff <(echo "$commands") <(echo "$completed"))" ""
undocumented=
while read -r command; do
    # shellcheck disable=SC2086
    for option in $("$ctl" $command --help | sed -n 's/^  \(--[a-z-]*\).*/\1/p'); do
        grep -qF -- "${option//-/\\-}" "$top/kms/kmsctl.8" || undocumented+=" $command $option"
    done
done <<<"$commands"
is "each command's options and the man page" "$undocumented" ""
check "--help of a group" 0 "$ctl" root --help
has "--help of a group" "$out" 'root rotate'
lacks "--help of a group has no other" "$out" 'cmk'
if [ -r "$server/kms.conf" ]; then
    # Whatever is in the server's configuration, kmsctl finds the socket in it.
    check "--config of the server" 0 env -u KMS_ADMIN_SOCKET "$binary" --config "$server/kms.conf" status
    check "config check" 0 "$ctl" config check "$server/kms.conf"
    check "config check --json" 0 "$ctl" config check "$server/kms.conf" --json
    is_json "config check --json" "$out"
    sed 's/^domain = .*/domain = UPPER/' "$server/kms.conf" >"$work/wrong.conf"
    check "config check of a wrong one" 1 "$ctl" config check "$work/wrong.conf"
    has "config check tells file and line" "$err" 'wrong.conf:[0-9]+: \[kms\] domain: "UPPER"'
fi

# --- the database ---

check "database status" 0 "$ctl" database status --url "$KMS_DATABASE_URL"
check "database status --json" 0 "$ctl" database status --url "$KMS_DATABASE_URL" --json
is_json "database status --json" "$out"
check "database migrate, once more" 0 "$ctl" database migrate --url "$KMS_DATABASE_URL"
check "database migrate --json, once more" 0 "$ctl" database migrate --url "$KMS_DATABASE_URL" --json
is_json "database migrate --json" "$out"
check "database migrate by the environment" 0 env KMS_DATABASE_URL="$KMS_DATABASE_URL" "$binary" database migrate
check "database migrate without a server" 3 "$ctl" database migrate --url "host=$work dbname=kms"
for i in 1 2 3; do "$ctl" database migrate --url "$KMS_DATABASE_URL" >"$work/migrate.$i" 2>&1 & done
together=0
for job in $(jobs -p); do wait "$job" || together=1; done
is "three migrations at once" "$together" 0

# --- who may ---

if [ "$(id -u)" -eq 0 ]; then
    check "the second officer" 0 "$KMSCTL_OFFICER2" status
    cp "$binary" "$work/kmsctl"
    chmod 755 "$work/kmsctl"
    stranger() {
        setpriv --reuid=daemon --regid="$(id -gn nobody)" --clear-groups "$work/kmsctl" --socket "$KMS_ADMIN_SOCKET" "$@"
    }
    export -f stranger
    export work KMS_ADMIN_SOCKET
    check "a uid that is not named" 1 bash -c 'stranger reload'
    has "a uid that is not named" "$err" '403004'
    check "nor may it change anything" 1 bash -c 'stranger org suspend acme'
    check "a uid that may not even connect" 3 setpriv --reuid=daemon --regid=daemon --clear-groups \
        "$work/kmsctl" --socket "$KMS_ADMIN_SOCKET" status
    check "the refusals are entries" 0 "$ctl" audit tail --json --limit 40
    is "the refusals are entries" "$(jq -r '[.entries[] | select(.verdict == 403004 and (.subject | startswith("daemon("))) | .action] | unique | join(",")' <<<"$out")" \
        org.suspend,reload
    if $own; then
        # shellcheck source=tests/admin/officers.sh
        . "$here/officers.sh"
    fi
else
    echo "not root: what several user ids are needed for is left out (tests/admin/officers.sh)"
fi

# --- the socket itself: lines that are no calls ---

r() { printf '{"jsonrpc":"2.0","id":1,"method":"log.level"%s}' "${1:-}"; }
is "not JSON" "$(code_of "$(call 'hello')")" -32700
is "an empty line" "$(code_of "$(call '')")" -32700
is "a member twice" "$(code_of "$(call '{"jsonrpc":"2.0","id":1,"id":2,"method":"status"}')")" -32700
is "a batch" "$(code_of "$(call "[$(r)]")")" -32600
is "no version" "$(code_of "$(call '{"id":1,"method":"status"}')")" -32600
is "another version" "$(code_of "$(call '{"jsonrpc":"1.0","id":1,"method":"status"}')")" -32600
is "no method" "$(code_of "$(call '{"jsonrpc":"2.0","id":1}')")" -32600
is "a method that is a number" "$(code_of "$(call '{"jsonrpc":"2.0","id":1,"method":7}')")" -32600
is "an id that is an object" "$(code_of "$(call '{"jsonrpc":"2.0","id":{},"method":"status"}')")" -32600
is "no such method" "$(code_of "$(call '{"jsonrpc":"2.0","id":1,"method":"org.fly"}')")" -32601
is "params that are an array" "$(code_of "$(call "$(r ',"params":[]')")")" -32602
is "an op that is no UUID" "$(code_of "$(call "$(r ',"params":{"op":"x"}')")")" -32602
is "a level that is a number" "$(code_of "$(call "$(r ',"params":{"level":3}')")")" -32602
is "a deep value" "$(code_of "$(call "$(printf '{"a":%.0s' $(seq 40))$(printf '}%.0s' $(seq 40))")")" -32700
is "an unpaired surrogate" "$(code_of "$(call "$(r ',"params":{"level":"\ud800"}')")")" -32700
has "a right line" "$(call "$(r)")" '"result"'
is "the id is echoed: a string" "$(call '{"jsonrpc":"2.0","id":"x y","method":"log.level"}' | jq -r .id)" 'x y'
is "the id is echoed: null" "$(call '{"jsonrpc":"2.0","id":null,"method":"log.level"}' | jq -r .id)" null
both=$(printf '%s\n%s\n' "$(r)" '{"jsonrpc":"2.0","id":2,"method":"org.list"}' | LINES_WANTED=2 raw 10 | jq -r .id | paste -sd,)
is "two calls in one write, answered in order" "$both" 1,2
quiet=$(printf '%s\n%s\n' '{"jsonrpc":"2.0","method":"log.level"}' '{"jsonrpc":"2.0","id":2,"method":"log.level"}' | LINES_WANTED=1 raw 10 | jq -r .id)
is "a notification is answered by nothing" "$quiet" 2
long=$({ head -c 70000 /dev/zero | tr '\0' ' '; printf '%s\n' "$(r)"; } | raw 10)
is "a line too long" "$(code_of "$long")" -32600
is "a line too long ends the connection" "$(wc -l <<<"$long")" 1
long=$(head -c 1000000 /dev/zero | tr '\0' 'x' | raw 10)
is "a long line without an end" "$(code_of "$long")" -32600
just=$({ printf '{"jsonrpc":"2.0","id":1,"method":"log.level"%s}\n' "$(head -c 65000 /dev/zero | tr '\0' ' ')"; } | LINES_WANTED=1 raw 10)
has "a line that is just not too long" "$just" '"result"'
head -c 100000 /dev/urandom | raw 5 >/dev/null
printf '{"jsonrpc' | raw 1 >/dev/null
began=$SECONDS
printf '{"jsonrpc' | raw 20 >/dev/null
if [ $((SECONDS - began)) -ge 8 ] && [ $((SECONDS - began)) -le 14 ]; then ok; else bad "half a line is given up after ten seconds, not $((SECONDS - began))"; fi

# --- many clients ---

for i in 1 2 3 4 5 6 7 8; do "$ctl" --json org list >"$work/many.$i" & done
wait
same=true
for i in 2 3 4 5 6 7 8; do cmp -s "$work/many.1" "$work/many.$i" || same=false; done
is "eight clients at once" $same true
for i in $(seq 40); do raw 4 </dev/null >/dev/null & done
sleep 1
check "a client beyond the limit waits, and is served" 0 "$ctl" --timeout 20 status
wait

# --- health and metrics ---

http() { curl -s -o "$work/body" -w '%{http_code}' --max-time 10 "$@"; }
is "livez" "$(http "$KMS_METRICS_URL/livez")" 200
is "readyz" "$(http "$KMS_METRICS_URL/readyz")" 200
is "metrics" "$(http "$KMS_METRICS_URL/metrics")" 200
wrong=$(awk '
    /^# HELP / { help[$3] = 1; next }
    /^# TYPE / { type[$3] = $4; if (!($3 in help)) print "no HELP " $3; if ($3 in done) print "twice " $3; done[$3] = 1; next }
    /^#/ { print "odd comment " $0; next }
    { name = $1; sub(/[{].*/, "", name); family = name
      if (!(family in type)) sub(/_(bucket|sum|count)$/, "", family)
      if (!(family in type)) print "no TYPE " name
      if ($1 ~ /[{]/ && $0 !~ /^[a-z0-9_]+[{]([a-z]+="[^"]*",?)+[}] -?[0-9.e+-]+$/) print "malformed " $0
      if ($1 !~ /[{]/ && $0 !~ /^[a-z0-9_]+ -?[0-9.e+-]+$/) print "malformed " $0
      if (($0) in seen) print "double " $0; seen[$0] = 1 }' "$work/body")
is "metrics are well formed" "$wrong" ""
has "metrics count messages" "$(cat "$work/body")" '^kms_messages_total\{worker="0"\} [0-9]+'
has "metrics have memory of each worker" "$(cat "$work/body")" '^kms_process_resident_memory_bytes\{process="worker 0"\} [1-9]'
has "metrics say that the root is proven" "$(cat "$work/body")" '^kms_root_proven 1$'
lacks "metrics name no organisation" "$(cat "$work/body")" "$org"
is "another path" "$(http "$KMS_METRICS_URL/")" 404
is "another method" "$(http -X POST "$KMS_METRICS_URL/metrics")" 405

# --- what breaks the server: on our own only ---

if $own; then
    # Keys that nobody bound are gone, and that is an entry.
    swept() { "$ctl" --json audit tail "$org" --limit 1000 | jq -e '.entries[] | select(.action == "key.expire") | .keys | length == 3'; }
    if wait_until 20 swept; then ok; else bad "unbound keys past their time were not swept"; fi
    check "a swept key" 1 "$ctl" key show "$(head -n 1 "$work/unbound")"
    http "$KMS_METRICS_URL/metrics" >/dev/null
    has "metrics count what was swept" "$(cat "$work/body")" '^kms_swept_total\{what="unbound_keys"\} 3$'
    # An organisation whose wrapping key was too old has a new one.
    renewed() { [ "$("$ctl" --json org show "$org-op" | jq -r .generation)" = 2 ]; }
    if wait_until $((due_since + 75 - SECONDS)) renewed; then ok; else bad "a wrapping key that was due was not replaced"; fi

    # A token that does not open the sentinel is not the one that this database's keys are under.
    flip() { sql "UPDATE kms.roots SET sentinel = set_byte(sentinel, 30, get_byte(sentinel, 30) # 1)"; }
    root_is() { [ "$("$ctl" --json status | jq -r .keeper.root_state)" = "$1" ]; }
    flip
    kill -9 "$("$ctl" --json status | jq -r .keeper.pid)"
    sleep 0.5
    if wait_until 20 root_is wrong; then ok; else bad "a wrong root was not noticed"; fi
    is "a node with a wrong root is not ready" "$(http "$KMS_METRICS_URL/readyz")" 503
    check "org add under a wrong root" 1 "$ctl" org add "$org-none"
    has "org add under a wrong root" "$err" "does not hold the database's root key"
    flip
    if wait_until 20 root_is proven; then ok; else bad "the root that is right again was not noticed"; fi

    # A worker that dies is started again.
    restarts=$("$ctl" --json status | jq -r .restarts)
    kill -9 "$("$ctl" --json status | jq -r '.workers[0].pid')"
    recovered() { "$ctl" --json status | jq -e ".ready and .restarts == $((restarts + 1))"; }
    if wait_until 20 recovered; then ok; else bad "a worker that was killed did not come back"; fi
    # So is the keeper, with the socket that kmsctl knows.
    kill -9 "$("$ctl" --json status | jq -r .keeper.pid)"
    sleep 0.5
    recovered() { "$ctl" --json status | jq -e ".ready and .restarts == $((restarts + 2))"; }
    if wait_until 20 recovered; then ok; else bad "the keeper that was killed did not come back"; fi

    # A wrong configuration is refused, and the old one goes on.
    cp "$server/kms.conf" "$work/kms.conf"
    echo 'nonsense' >>"$server/kms.conf"
    "$ctl" reload >/dev/null
    refused() { [ "$("$ctl" --json status | jq -r .reload_failed)" = true ]; }
    if wait_until 10 refused; then ok; else bad "a wrong configuration was not refused"; fi
    is "it goes on with the old one" "$("$ctl" --json status | jq -r .ready)" true
    cp "$work/kms.conf" "$server/kms.conf"
    "$ctl" reload >/dev/null
    mended() { [ "$("$ctl" --json status | jq -r .reload_failed)" = false ]; }
    if wait_until 10 mended; then ok; else bad "the mended configuration was not taken"; fi

    # Without hsmd the server says so, and comes back with it.
    kill -9 "$(cat "$HSMD_PID_FILE")"
    unready() { [ "$(http "$KMS_METRICS_URL/readyz")" = 503 ] && grep -q HSM "$work/body"; }
    if wait_until 15 unready; then ok; else bad "readyz does not say that hsmd is away"; fi
    is "livez without hsmd" "$(http "$KMS_METRICS_URL/livez")" 200
    check "org add without hsmd" 1 "$ctl" org add "$org-none"
    has "org add without hsmd" "$err" '503002'
    check "hsm status without hsmd" 1 "$ctl" hsm status
    check "quickstart --detach starts what is down" 0 "$top/kms/quickstart.sh" --detach --dir "$server"
    is "the organisation is still there" "$("$ctl" --json org show "$org" | jq -r .state)" active

    # Without PostgreSQL as well.
    kill -9 "$(head -n 1 "$POSTGRES_DATA/postmaster.pid")"
    unready() { [ "$(http "$KMS_METRICS_URL/readyz")" = 503 ] && grep -q database "$work/body"; }
    if wait_until 15 unready; then ok; else bad "readyz does not say that the database is away"; fi
    check "org list without the database" 1 "$ctl" org list
    has "org list without the database" "$err" '503003'
    check "log level without the database" 0 "$ctl" log level info
    check "quickstart --detach starts PostgreSQL" 0 "$top/kms/quickstart.sh" --detach --dir "$server"

    # Draining: no new connections, then the end.
    check "drain" 0 "$ctl" drain
    drained() { [ "$(http --cacert "$KMS_CA_FILE" "$KMS_URL/encryption/api/v1/kms/x")" = 000 ]; }
    if wait_until 10 drained; then ok; else bad "a draining server takes connections"; fi
    is "a draining server is not ready" "$(http "$KMS_METRICS_URL/readyz")" 503
    is "status says so" "$("$ctl" --json status | jq -r .draining)" true
    pid=$(cat "$KMSD_PID_FILE")
    check "drain --exit" 0 "$ctl" drain --exit
    gone() { ! kill -0 "$pid"; }
    if wait_until 40 gone; then ok; else bad "drain --exit does not end the server"; fi
    check "then there is no server" 3 "$ctl" status
    check "quickstart --detach starts it again" 0 "$top/kms/quickstart.sh" --detach --dir "$server"
    check "quickstart --stop" 0 "$top/kms/quickstart.sh" --stop --dir "$server"
    is "no sanitizer has anything to say" "$(grep -hE 'ERROR: [A-Z][a-z]+Sanitizer|runtime error:' "$server"/log/*.log)" ""
    check "quickstart --stop of none" 1 "$top/kms/quickstart.sh" --stop --dir "$work/none"
    check "quickstart with a wrong port" 1 "$top/kms/quickstart.sh" --detach --dir "$work/x" --port 65536
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
