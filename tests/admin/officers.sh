# shellcheck shell=bash disable=SC2154
# Part of run.sh: roles, the entry of every call, and what officers decide.
#
# Every role is a user id of its own, which only root can take on.  The instance's configuration names them.

# as_user USER COMMAND...: kmsctl as that user, who can reach the socket by its group.
cat >"$work/as_user" <<END
#!/bin/sh
user=\$1
shift
exec setpriv --reuid="\$user" --regid=$(id -g nobody) --clear-groups "$work/kmsctl" --socket "$KMS_ADMIN_SOCKET" "\$@"
END
chmod 755 "$work/as_user"
as_user() { "$work/as_user" "$@"; }
# roles SETTING...: lines of [admin], taken by a reload.
roles() {
    local was line
    was=$("$ctl" --json status | jq -r .reloaded)
    cp "$work/kms.conf.roles" "$server/kms.conf"
    for line in "$@"; do
        sed -i "/^${line%% *} = /d; /^\[admin\]$/a $line" "$server/kms.conf"
    done
    sleep 1 # reloads are told by the second
    "$ctl" reload >/dev/null
    wait_until 10 reloaded "$was"
    sleep 0.3 # the keeper reads it for itself
}
of() { jq -r "$2" <<<"$1"; }
db() { psql -X -q -A -t -d "$KMS_DATABASE_URL" -c "$1"; }

cp "$server/kms.conf" "$work/kms.conf.roles"
roles "operators = bin" "officers = 0 nobody games" "auditors = 0 @sys"
# In the table: who has which role.  daemon has none.
declare -A user_of=([operator]=bin [officer]=games [auditor]=sys [none]=daemon)

# --- who may call what: every command by every role, and an entry either way ---

none=00000000-0000-4000-8000-000000000000
openssl ecparam -name prime256v1 -genkey -noout -out "$work/archive.key" 2>/dev/null
openssl pkey -in "$work/archive.key" -pubout -out "$work/archive.pub"
chmod 644 "$work/archive.pub" "$work/archive.key"
echo nothing >"$work/note.txt"
chmod 644 "$work/note.txt"
mkdir -m 777 "$work/exports"

# command | roles: o(perator) f(officer) a(uditor) | the action of its entry.  %u: the user.  What is allowed may still fail
# for what it is about, which is nothing that exists.
table() {
    cat <<END
status|ofa|status
hsm status|ofa|hsm.status
hsm init|o|hsm.init
org list|ofa|org.list
org show acme|ofa|org.show
org add a%%b|o|org.add
org suspend no-such-org|o|org.suspend
org resume no-such-org|o|org.resume
org set acme dlp.age=1h%u|f|
org set no-such-org compliance=matter|f|setting.set
org get acme|ofa|setting.list
rule set approvals.none=1|f|setting.set
rule list|ofa|setting.list
key show $none|ofa|key.show
key destroy $none|f|key.destroy
recording destroy $none|f|recording.destroy
org destroy nobody-is-this|f|org.destroy
destruction undo $none|f|destruction.undo
destruction list|ofa|destruction.list
retention preview|ofa|retention.preview
retention clock|ofa|clock.show
retention confirm-clock|f|clock.confirm
certificate list|ofa|certificate.list
certificate show $none|ofa|certificate.show
resource show $none|ofa|resource.show
resource destroy $none|f|resource.destroy
audit tail|fa|audit.tail
audit key|ofa|audit.log
audit show 1|fa|audit.find
audit prove 1|fa|audit.find
audit export $work/exports/%u|fa|audit.notes
audit check|fa|audit.notes
audit cosign $work/note.txt|a|audit.cosign
audit resume|f|audit.resume
person erase acme no-such-person|f|person.erase
purpose enable acme no-such-purpose|f|purpose.enable
purpose disable acme archival|f|purpose.disable
purpose list|ofa|purpose.list
service add x --identity nonsense --purpose dlp --org acme|f|service.add
service retire no-such-service|f|service.retire
service list|ofa|service.list
service show no-such-service|ofa|service.show
service revoke-certificate zz|f|certificate.revoke
matter open no-such-org x --custodian a --from 2026-01-01 --to 2026-02-01 --expires 1d|f|matter.open
matter show $none|ofa|matter.show
matter report $none|fa|matter.report
matter list|ofa|matter.list
matter close $none|f|matter.close
approvals list|ofa|approval.list
approvals show $none|ofa|approval.show
approvals approve $none|f|approval.approve
approvals reject $none|f|approval.reject
canary add $none|f|canary.add
canary remove $none|f|canary.remove
canary list|ofa|canary.list
freeze org no-such-org --for 1h --dry-run|f|freeze.preview
freeze list|ofa|freeze.list
thaw org no-such-org|f|thaw
explain no-such-request|fa|explain
log level|o|log.level
reload|o|reload
END
}
since=$(db "SELECT clock_timestamp()")
declare -a expected=()
cells=0
while IFS='|' read -r command allowed action <&3; do
    for role in operator officer auditor none; do
        user=${user_of[$role]}
        letter=$(sed 's/operator/o/; s/officer/f/; s/auditor/a/; s/none/-/' <<<$role)
        # shellcheck disable=SC2086
        as_user "$user" ${command//%u/$user} >"$work/out" 2>"$work/err" </dev/null
        status=$?
        cells=$((cells + 1))
        [ -n "$action" ] || { ok; continue; } # a usage error: never sent
        # These ask which log it is first.
        [[ $role != none || $action != audit.@(find|notes|cosign) ]] || action=audit.log
        if [[ $allowed == *$letter* ]]; then
            lacks "$role may: $command" "$(cat "$work/err")" 'this takes the role'
            if [ $status -le 1 ] || [[ $command == audit\ check* ]]; then ok; else bad "$role: $command: status $status: $(cat "$work/err")"; fi
            expected+=("$user $action allowed")
        else
            has "$role may not: $command" "$(cat "$work/err")" 'this takes the role .*not named in \[admin\] .*\(403004\)'
            if [ $status -eq 1 ] || [ $status -eq 3 ]; then ok; else bad "$role: $command: status $status"; fi
            expected+=("$user $action refused")
        fi
    done
done 3< <(table)
entries=$(db "SELECT left(p.subject, strpos(p.subject, '(') - 1) || ' ' || e.action || ' '
                  || CASE WHEN e.verdict = 403004 AND e.detail ? 'uid' THEN 'refused' ELSE 'allowed' END
                FROM kms.entries e JOIN kms.persons p ON p.org_id = e.org_id AND p.person = e.person
               WHERE e.at >= '$since' AND e.kind = 'operator'")
is "each cell has its entry" "$(comm -23 <(printf '%s\n' "${expected[@]}" | sort -u) <(sort -u <<<"$entries"))" ""
# Nobody did what he may not: no entry says allowed where none is expected.
is "and no entry is of a call that was refused" "$(comm -13 <(printf '%s\n' "${expected[@]}" | sort -u) \
    <(grep -v ' audit\.\(log\|tiles\|entries\|strays\|tail\|notes\) ' <<<"$entries" | sort -u) | grep -v '^root ')" ""
if [ $cells -ge 180 ]; then ok; else bad "only $cells cells"; fi

as_user daemon reload 2>"$work/err"
has "a refusal tells role and setting" "$(cat "$work/err")" 'the role operator; your user is not named in \[admin\] operators'
as_user bin audit tail 2>"$work/err"
has "a refusal tells both roles" "$(cat "$work/err")" 'the role officer or auditor; your user is not named in \[admin\] officers or auditors'
as_user sys --json purpose enable acme dlp >"$work/out" 2>/dev/null
is "a refusal in JSON" "$(jq -r .error.code "$work/out")" 403004

# --- root is no officer by being root; a role that is taken away is gone for open connections too ---

cat >"$work/twice.pl" <<'END'
use strict; use warnings; use Socket; use IO::Handle;
my ($path, $line, $between) = @ARGV;
socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; connect($s, sockaddr_un($path)) or die; $s->autoflush(1);
for my $i (1, 2) { print $s "$line\n"; my $answer = <$s>; print $answer; if ($i == 1) { system("bash", "-c", $between); } }
END
export -f roles reloaded wait_until
export ctl server work
answers=$(perl "$work/twice.pl" "$KMS_ADMIN_SOCKET" '{"jsonrpc":"2.0","id":1,"method":"audit.tail"}' \
    'roles "operators = bin" "officers = nobody games" "auditors = sys" >&2')
is "root who is named may; on the same connection he may not when he is named no more" "$(jq -r '.error.code // 0' <<<"$answers" | paste -sd,)" 0,403004
check "root is no officer by himself" 1 "$ctl" purpose enable acme dlp
has "root is no officer by himself" "$err" 403004
check "but an operator" 0 "$ctl" log level
roles "operators = bin" "officers = 0 nobody games" "auditors = 0 @sys"

# --- entries: pages of one log are one reading, an op hides nothing, lines that are no calls are told ---

reads() {
    db "SELECT count(*) FROM kms.entries e JOIN kms.persons p ON p.org_id = e.org_id AND p.person = e.person
         WHERE e.action = '$1' AND p.subject = 'root(0)'"
}
before=$(reads audit.entries)
check "export" 0 "$ctl" audit export "$work/export-acme" acme
is "pages of an export have one entry" "$(($(reads audit.entries) - before))" 1
before=$(reads audit.tail)
op=$(cat /proc/sys/kernel/random/uuid)
for i in 1 2 3; do "$ctl" --op "$op" audit tail acme >/dev/null; done
is "each reading has an entry, with the same op too" "$(($(reads audit.tail) - before))" 3
before=$(reads admin.call)
call 'hello' >/dev/null
call '{"jsonrpc":"2.0","id":1,"method":"org.fly"}' >/dev/null
is "lines that are no calls have entries" "$(($(reads admin.call) - before))" 2
# Names of people and free texts are not in entries.
as_user games person erase acme a-person-of-that-name >/dev/null 2>&1
is "whom nobody may name is not named" "$(db "SELECT count(*) FROM kms.entries WHERE detail::text LIKE '%a-person-of-that-name%'")" 0

# No entry, no answer; but what must work without the database does.
db "REVOKE EXECUTE ON FUNCTION kms.admin_record FROM kms_keeper"
check "what cannot be recorded is not told" 1 "$ctl" org list
has "what cannot be recorded is not told" "$err" 'the audit log cannot be written'
check "status is, without its entry" 0 "$ctl" status
db "GRANT EXECUTE ON FUNCTION kms.admin_record TO kms_keeper"
check "told again" 0 "$ctl" org list

# --- two officers ---

first() { "$ctl" "$@"; }                # root
second() { "$KMSCTL_OFFICER2" "$@"; }   # nobody
third() { as_user games "$@"; }
# gives NAME: runs the rest, one line of JSON; what waits has its id in $id.
proposal() {
    out=$("$@" --json 2>"$work/err")
    id=$(jq -r .approval <<<"$out")
}
is_on() { [ "$("$ctl" --json purpose list acme | jq -r --arg p "$1" '.[] | select(.purpose == $p) | .enabled')" = true ]; }

check "an action waits" 0 "$ctl" purpose enable acme indexing
has "it says that nothing is done" "$out" 'nothing is done yet: 1 more officer must agree'
has "it shows what it touches" "$out" '^ +resources +[0-9]+$'
id=$(sed -n 's/.*approvals approve \([0-9a-f-]*\)$/\1/p' <<<"$out")
if is_on indexing; then bad "it is on before anybody agreed"; else ok; fi
check "the same twice" 1 "$ctl" purpose enable acme indexing
has "the same twice" "$err" "409002"
check "what waits is listed" 0 "$ctl" approvals list
has "what waits is listed" "$out" "^$id +purpose.enable +acme +pending"
check "his own" 1 "$ctl" approvals approve "$id"
has "his own" "$err" '403004'
check "by an auditor" 1 "$work/as_user" sys approvals approve "$id"
check "a wrong hash" 1 "$KMSCTL_OFFICER2" approvals approve "$id" --hash "$(printf '0%.0s' $(seq 64))"
has "a wrong hash" "$err" 'not the hash'
check "by another, who has not looked" 0 "$KMSCTL_OFFICER2" approvals approve "$id"
has "he is shown what it is" "$out" '^impact$'
has "and it is done" "$out" '^done: 2 of 2 officers'
if is_on indexing; then ok; else bad "it is not on when the second officer agreed"; fi
check "again" 1 "$KMSCTL_OFFICER2" approvals approve "$id"
has "again" "$err" 'done already'
check "disable needs nobody" 0 "$ctl" purpose disable acme indexing --json
is_json "disable --json" "$out"
if is_on indexing; then bad "it is still on"; else ok; fi

proposal first purpose enable acme indexing
is "a proposal in JSON" "$(of "$out" '[.state, .needed, (.votes | length), (.hash | length), .requested_by] | join(" ")')" 'pending 2 1 64 root(0)'
hash=$(of "$out" .hash)
check "by its hash alone" 0 "$KMSCTL_OFFICER2" approvals approve "$id" --hash "$hash" --json
is "by its hash alone" "$(jq -r .state <<<"$out")" done
is_json "approve --json" "$out"
"$ctl" purpose disable acme indexing >/dev/null

# On a terminal he is shown it and asked.
proposal first purpose enable acme indexing
tty() { script -qec "$KMSCTL_OFFICER2 approvals approve $id" /dev/null; }
out=$(echo n | tty)
has "on a terminal: no" "$out" 'approve this\? \[y/N\]'
if is_on indexing; then bad "no was taken for yes"; else ok; fi
out=$(echo y | tty)
has "on a terminal: yes" "$out" 'done: 2 of 2'

# --- rejected, withdrawn, expired ---

proposal first purpose enable acme archival
check "reject" 0 "$KMSCTL_OFFICER2" approvals reject "$id" --why "not without a contract"
check "it is rejected" 0 "$ctl" approvals show "$id" --json
is "it is rejected, and why" "$(of "$out" '[.state, .result.why] | join(" ")')" 'rejected not without a contract'
check "approve what was rejected" 1 "$work/as_user" games approvals approve "$id"
has "approve what was rejected" "$err" 'rejected'
check "reject it again" 1 "$ctl" approvals reject "$id"
proposal first purpose enable acme archival
check "take back one's own" 0 "$ctl" approvals reject "$id"
proposal first purpose enable acme archival
expire() { db "SET session_replication_role = replica; UPDATE kms.approvals SET created_at = created_at - interval '5 days', expires_at = clock_timestamp() - interval '1 second' WHERE approval_id = '$1'"; }
expire "$id"
check "what has expired" 1 "$KMSCTL_OFFICER2" approvals approve "$id"
has "what has expired" "$err" 'expired'
proposal first purpose enable acme archival
expire "$id"
is_expired() { [ "$(db "SELECT state FROM kms.approvals WHERE approval_id = '$id'")" = expired ]; }
if wait_until 25 is_expired; then ok; else bad "nobody ends what has expired"; fi
check "list --state" 0 "$ctl" approvals list --state expired
has "list --state" "$out" "^$id"
lacks "what waits is without it" "$("$ctl" approvals list)" "$id"
if is_on archival; then bad "something opened that nobody approved"; else ok; fi

# --- the facts have changed ---

proposal first purpose enable "$org" indexing
second approvals show "$id" >/dev/null
for i in 1 2 3; do as_alice resource create --key-uri "$(as_alice key create --quiet | head -n 1)" --quiet >/dev/null; done
check "facts that have changed" 1 "$KMSCTL_OFFICER2" approvals approve "$id"
has "facts that have changed" "$err" 'the facts have changed; look again'
check "nor by the old hash" 1 "$KMSCTL_OFFICER2" approvals approve "$id" --hash "$(of "$out" .hash)"
check "look again" 0 "$KMSCTL_OFFICER2" approvals show "$id" --json
is "the report is of now" "$(of "$out" .impact.resources)" 4
check "then it can be approved" 0 "$KMSCTL_OFFICER2" approvals approve "$id"

# --- rules ---

check "rule list" 0 "$ctl" rule list
has "rule list: durations for people" "$out" '^approvals.lifetime +3d'
check "a stricter rule needs nobody" 0 "$ctl" rule set approvals=3 --json
is "a stricter rule needs nobody" "$(of "$out" .state)" done
proposal first rule set approvals=2
is "a looser one needs as many as the rule says" "$(of "$out" '[.state, .needed] | join(" ")')" 'pending 3'
check "the second" 0 "$KMSCTL_OFFICER2" approvals approve "$id"
has "the second is not enough" "$out" '1 more officer must agree'
check "the second twice" 1 "$KMSCTL_OFFICER2" approvals approve "$id"
has "the second twice" "$err" '403004'
check "the third" 0 "$work/as_user" games approvals approve "$id"
has "the third" "$out" 'done: 3 of 3'
is "the rule holds" "$("$ctl" --json rule list | jq -r '.[] | select(.name == "approvals") | .value')" 2
proposal first rule set approvals=1
second approvals approve "$id" >/dev/null
proposal first purpose enable globex indexing
is "no rule goes below [admin] approvals" "$(of "$out" '[.state, .needed] | join(" ")')" 'pending 2'
first approvals reject "$id" >/dev/null
check "several settings" 0 "$ctl" org set acme compliance=matter dlp.age=12h --json
is "several settings are an array" "$(of "$out" '[.[].state] | join(",")')" 'done,done'
check "org get" 0 "$ctl" org get acme
has "org get: durations for people" "$out" '^dlp.age +12h'
proposal first org set acme dlp.age=48h
is "a longer age opens" "$(of "$out" .state)" pending
check "it is shown as people write it" 0 "$KMSCTL_OFFICER2" approvals show "$id"
has "it is shown as people write it" "$out" '^ +after +2d$'
first approvals reject "$id" >/dev/null
check "no duration" 2 "$ctl" org set acme dlp.age=soon
has "no duration" "$err" 'not a duration; write 24h'
check "no value" 2 "$ctl" org set acme compliance
check "no such setting" 1 "$ctl" org set acme colour=red
has "no such setting" "$err" '400002'
check "--op with several" 2 "$ctl" --op "$op" org set acme compliance=role dlp.age=1h

# --- services ---

check "service add lacks something" 2 "$ctl" service add crm --identity urn:x
has "service add lacks something" "$err" 'needs --purpose'
check "a private key is not sent" 2 "$ctl" service add crm --identity urn:test:crm --purpose archival --org acme --public-key "$work/archive.key"
has "a private key is not sent" "$err" 'private key'
check "a rate that is none" 2 "$ctl" service add crm --identity urn:test:crm --purpose dlp --org acme --rate many
proposal first service add crm --identity urn:test:crm --purpose archival,dlp --org acme --org globex --public-key "$work/archive.pub"
is "a service" "$(of "$out" '.args | [.service, (.orgs | join(",")), (.kinds | length), .rate, .breadth, .public_key.crv] | join(" ")')" 'crm acme,globex 5 100 1000 P-256'
check "is none before it is approved" 1 "$ctl" service show crm
check "approve it" 0 "$KMSCTL_OFFICER2" approvals approve "$id"
check "service show" 0 "$ctl" service show crm
has "service show" "$out" '^identity +urn:test:crm'
check "service list" 0 "$ctl" service list
has "service list" "$out" '^crm +active'
check "service change of nothing" 2 "$ctl" service change crm
proposal first service change crm --rate 7 --public-key none
is "what is not named stays" "$(of "$out" '.args | [.identity, (.purposes | join(",")), .rate, .breadth, (.public_key // "none")] | join(" ")')" 'urn:test:crm archival,dlp 7 1000 none'
second approvals approve "$id" >/dev/null
is "it is changed" "$("$ctl" --json service show crm | jq -r .rate)" 7
check "revoke a certificate" 0 "$ctl" service revoke-certificate 00:AB:cd
check "service retire" 0 "$ctl" service retire crm
is "it is retired" "$("$ctl" --json service show crm | jq -r .state)" retired
check "its name is not used again" 1 "$ctl" service add crm --identity urn:test:crm2 --purpose dlp --org acme
has "its name is not used again" "$err" '409002'

# --- matters ---

check "matter open lacks something" 2 "$ctl" matter open acme Case --custodian bob --from 2026-01-01 --to 2026-02-01
has "matter open lacks something" "$err" 'needs --expires'
for date in 2026-02-30 2026-13-01 yesterday 2026-01-01T25:00:00Z 2026-01-01T10:00:00 12h 1969-12-31 2026-01-01x; do
    check "no date: $date" 2 "$ctl" matter open acme Case --custodian bob --from "$date" --to 2026-02-01 --expires 1d
done
check "a window that ends before it begins" 1 "$ctl" matter open acme Case --custodian bob --from 2026-03-01 --to 2026-02-01 --expires 1d
proposal first matter open acme 'Case 7' --custodian bob,carol --custodian dave --from 2026-01-01 --to 2026-02-01T12:30:00.5+02:00 --expires 30d --sealed-until 2030-01-01
is "a matter" "$(of "$out" '.args | [(.custodians | join(",")), .from, .to, .sealed_until] | join(" ")')" 'bob,carol,dave 1767225600000 1769941800500 1893456000000'
check "matter show" 0 "$ctl" matter show "$id" --json
is "it waits" "$(of "$out" .state)" pending
check "matter approve shows its text" 0 "$KMSCTL_OFFICER2" matter approve "$id"
has "matter approve shows its text" "$out" 'custodians \["bob",'
has "it is approved" "$out" 'done: 2 of 2'
check "matter list" 0 "$ctl" matter list acme --state open
has "matter list" "$out" "^$id"
check "matter close" 0 "$ctl" matter close "$id"
is "it is closed" "$("$ctl" --json matter show "$id" | jq -r .state)" closed
proposal first purpose enable globex dlp
check "what is no matter" 1 "$KMSCTL_OFFICER2" matter approve "$id"
has "what is no matter" "$err" '404001'
first approvals reject "$id" >/dev/null

# --- canaries, destruction, the stream ---

check "canary add" 0 "$ctl" canary add "$resource" --note 'nobody opens this'
check "canary list" 0 "$ctl" canary list "$org"
has "canary list" "$out" "^${resource##*/} .*nobody opens this"
check "canary remove" 0 "$ctl" canary remove "$resource"
check "canary remove again" 1 "$ctl" canary remove "$resource"
doomed=$(as_alice key create --count 2 --quiet)
tomb=$(as_alice resource create --key-uri "$(sed -n 1p <<<"$doomed")" --quiet | head -n 1)
# gone KEY: is it refused, after the waiting period of five seconds and the keeper's next look?
gone() {
    for _ in $(seq 150); do as_alice key get "$1" >/dev/null 2>"$work/err" || return 0; sleep 0.1; done
    return 1
}
proposal first key destroy "$(sed -n 2p <<<"$doomed")"
if as_alice key get "$(sed -n 2p <<<"$doomed")" >/dev/null 2>&1; then ok; else bad "a key is gone before two agreed"; fi
second approvals approve "$id" >/dev/null
check "what waits" 0 "$ctl" --json destruction list "$org"
waits=$(jq -r '.[0].destruction' <<<"$out")
if as_alice key get "$(sed -n 2p <<<"$doomed")" >/dev/null 2>&1; then ok; else bad "a key is gone before its waiting period is over"; fi
check "undo it" 0 "$ctl" destruction undo "$waits"
check "undo it again" 1 "$ctl" destruction undo "$waits"
proposal first key destroy "$(sed -n 2p <<<"$doomed")"
second approvals approve "$id" >/dev/null
if gone "$(sed -n 2p <<<"$doomed")"; then has "a destroyed key" "$(cat "$work/err")" 410; else bad "a destroyed key is handed out"; fi
cert=$("$ctl" --json destruction list "$org" --state done | jq -r '.[-1].certificate')
for _ in $(seq 50); do "$ctl" certificate show "$cert" --out "$work/cert" 2>/dev/null && break; sleep 0.2; done
"$ctl" audit key "$org" >"$work/vkey"
check "its certificate" 0 "$ctl" certificate verify "$work/cert" --key "$work/vkey"
has "its certificate says what" "$out" "^key $(sed -n 2p <<<"$doomed" | sed 's|.*/||')"
sed 's/^keys 1/keys 2/' "$work/cert" >"$work/forged"
check "a certificate that was changed" 1 "$ctl" certificate verify "$work/forged" --key "$work/vkey"
check "preview" 0 "$ctl" retention preview "$org"
has "preview" "$out" 'commands of officers'
check "the clock" 0 "$ctl" retention clock
check "nothing to confirm" 1 "$ctl" retention confirm-clock
check "destroy it again" 1 "$ctl" key destroy "$(sed -n 2p <<<"$doomed")"
proposal first resource destroy "$tomb"
is "what it destroys is told" "$(of "$out" .impact.keys)" 1
second approvals approve "$id" >/dev/null
if gone "$(sed -n 1p <<<"$doomed")"; then ok; else bad "a key of a destroyed resource is handed out"; fi
proposal first audit suspend
is "audit suspend waits" "$(of "$out" .state)" pending
second approvals approve "$id" >/dev/null
is "the stream is suspended" "$("$ctl" --json rule list | jq -r '.[] | select(.name == "audit.stream") | .value')" suspended
check "audit resume" 0 "$ctl" audit resume
is "an officer's log of decisions is whole" "$(db "SELECT count(*) FROM kms.approvals a WHERE a.state = 'done' AND a.needed > (SELECT count(DISTINCT v.uid) FROM kms.approval_votes v WHERE v.approval_id = a.approval_id)")" 0

cp "$work/kms.conf.roles" "$server/kms.conf"
"$ctl" reload >/dev/null
