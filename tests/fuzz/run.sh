#!/bin/sh
# Builds every fuzz target with clang, AddressSanitizer and UBSan, and runs each for a while.
#
# usage: tests/fuzz/run.sh [SECONDS [TARGET...]]      SECONDS for each target, default 10; TARGET: fuzz_http, ...
#
# FUZZ_BUILD names a build directory to use and keep (default: a temporary one); CC the compiler (default clang).  Inputs that
# break a target are kept, and their place is printed.  Last line: "N passed, N failed"; exit status 0 only if none failed.
set -u

seconds=${1:-10}
[ $# -gt 0 ] && shift
source=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/kms-fuzz.XXXXXX") || exit 1
build=${FUZZ_BUILD:-$work/build}
keep=no
trap '[ $keep = yes ] || rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

targets=$*
if [ -z "$targets" ]; then
    for file in "$source"/tests/fuzz/fuzz_*.c; do
        targets="$targets $(basename "$file" .c)"
    done
fi

[ -x "$source/configure" ] || "$source/autogen.sh" || exit 1
mkdir -p "$build" || exit 1
if [ ! -f "$build/Makefile" ]; then
    echo "Configuring $build"
    (cd "$build" && CC=${CC:-clang} "$source/configure" --enable-developer --enable-fuzzers) \
        >"$work/configure.log" 2>&1 || { tail -20 "$work/configure.log"; exit 1; }
fi

# seed TARGET NAME: standard input becomes a first input of the target
seed() {
    mkdir -p "$work/seeds/$1"
    cat >"$work/seeds/$1/$2"
}

id=0f8fad5b-d9cb-469f-a165-70867728950e
client='"client":{"clientId":"c","credential":{"bearer":"t","onBehalfOf":"bob"}},"requestId":"r-1"'
x=gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0
y=SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps

# The first two bytes of these say where the input is split.
printf '\0\020GET /encryption/api/v1/kms/bob HTTP/1.1\r\nHost: h\r\n\r\n' | seed fuzz_http get
printf '\0\040POST /x?y HTTP/1.1\r\nHost: h:1\r\nContent-Length: 2\r\nContent-Type: a/b\r\n\r\n{}' |
    seed fuzz_http post
printf '\0\001\r\nGET https://h/ HTTP/1.0\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n' |
    seed fuzz_http absolute
printf '\0\100OPTIONS * HTTP/1.1\r\nHost: [::1]\r\nExpect: 100-continue\r\n\r\n' | seed fuzz_http options
printf '\0\050PUT /%%61 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n' |
    seed fuzz_http chunked

n=0
for uri in /ecdhe /ping /keys "/keys/$id" "kms://kms.example.org/resources/$id/keys" \
    "/resources/$id/authorizations?authId=kms%3A%2F%2Fkms.example.org%2Fresources%2F$id" \
    "/authorizations/$id" "/purposes/d%6cp/keys" "/matters/$id/keys" "/resources/$id/releases" "/resources/$id/recordings" "/recordings/$id" /publicKey "/cmk/$id" default "$id" 2026-11-22T13:55:00.000Z 2024-02-29T23:59:59+01:30; do
    n=$((n + 1))
    printf %s "$uri" | seed fuzz_uri $n
done

n=0
while read -r members; do
    n=$((n + 1))
    printf '{%s,%s}' "$client" "$members" | seed fuzz_msg $n
    printf '{%s,%s}' "$client" "$members" | seed fuzz_json $n
done <<EOF
"method":"create","uri":"/ecdhe","jwk":{"kty":"EC","crv":"P-256","x":"$x","y":"$y"}
"method":"delete","uri":"/ecdhe/$id"
"method":"update","uri":"/ping"
"method":"create","uri":"/keys","count":10
"method":"update","uri":"/keys/$id","resourceUri":"/resources/$id"
"method":"retrieve","uri":"kms://kms.example.org/keys/$id"
"method":"create","uri":"/resources","authIds":["a"],"userIds":["/resources/$id"],"keyUris":["/keys/$id"],"ttl":9
"method":"retrieve","uri":"/resources/$id/keys","boundAfter":"2026-11-22T13:55:00Z","boundBefore":"x","count":3
"method":"create","uri":"/authorizations","resourceUri":"/resources/$id","anonymous":2,"authIds":["b"]
"method":"delete","uri":"/authorizations","resourceUri":"/resources/$id","userIds":["b","\ud83d\udd11"]
"method":"delete","uri":"/resources/$id/authorizations?authId=b","x":"\u0000\ud800"
"method":"retrieve","uri":"/resources/$id/keys","purpose":"ediscovery","matter":"$id","cursor":"AAAA"
"method":"retrieve","uri":"/purposes/indexing/keys","count":9,"purpose":"indexing"
"method":"retrieve","uri":"/matters/$id/keys","matter":"$id","cursor":"$x"
"method":"create","uri":"/resources","kind":"whiteboard","client":{"credential":{"jwk":{},"proof":"a.b.c"}}
"method":"retrieve","uri":"/resources/$id/releases"
"method":"create","uri":"/resources","kind":"meeting","security":"zero-trust","count":2
"method":"create","uri":"/resources/$id/keys","count":1
"method":"create","uri":"/resources/$id/recordings","type":"transcript","loc":"x:y"
"method":"update","uri":"/recordings/$id","tag":"AAAAAAAAAAAAAAAAAAAAAA"
"method":"create","uri":"/cmk","assignedOrgId":"o","customerMasterKey":"AAAA"
"method":"update","uri":"default","assignedOrgId":"o","keyState":"active"
"method":"update","uri":"/cmk/$id","assignedOrgId":"o","keyState":"Revoked"
EOF

printf '{"kty":"EC","crv":"P-256","x":"%s","y":"%s","kid":"k"}' $x $y | seed fuzz_jwk ec
printf '{"kty":"oct","k":"%s"}' $x | seed fuzz_jwk oct
printf '{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}' | seed fuzz_jwk okp
printf '{"kty":"RSA","n":"%s","e":"AQAB"}' $x$x$x$x$x$x$x$x | seed fuzz_jwk rsa
printf '\001{"aud":"kms://kms.example.org","iat":1795355700,"jti":"j","cnf":"%s","exp":1795355800,"nbf":1}' \
    dGhlIGVwaGVtZXJhbCBrZXkncyB0aHVtYnByaW50IDE | seed fuzz_proof claims
printf '\002eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.e30.%s%s' $x $y | seed fuzz_proof proof
if openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/key.pem" -subj /CN=dlp \
    -addext subjectAltName=URI:spiffe://example.org/dlp -outform DER -out "$work/cert.der" 2>"$work/openssl.log"; then
    { printf '\000'; cat "$work/cert.der"; } | seed fuzz_proof certificate
    printf '\003{"kty":"EC","crv":"P-256","x":"%s","y":"%s","x5c":["%s"]}' $x $y \
        "$(openssl base64 -A -in "$work/cert.der")" | seed fuzz_proof x5c
    # of the very key: its point is the last 64 bytes of the public key in DER
    point() { openssl pkey -in "$work/key.pem" -pubout -outform DER | tail -c 64 | "$@" | openssl base64 -A | tr '+/' '-_' | tr -d =; }
    printf '\003{"kty":"EC","crv":"P-256","x":"%s","y":"%s","x5c":["%s"]}' "$(point head -c 32)" "$(point tail -c 32)" \
        "$(openssl base64 -A -in "$work/cert.der")" | seed fuzz_proof whole
fi
# {"alg":"ECDH-ES","enc":"A256GCM","epk":{...}}
header=$(printf '{"alg":"ECDH-ES","enc":"A256GCM","epk":{"kty":"EC","crv":"P-256","x":"%s","y":"%s"}}' $x $y |
    openssl base64 -A | tr '+/' '-_' | tr -d =)
printf '\004%s..AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA' "$header" | seed fuzz_proof ecdh
# {"alg":"dir","enc":"A256GCM","kid":"k"} and {"alg":"ES256","kid":"k"}
printf 'eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiayJ9..AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA' |
    seed fuzz_jwe dir
printf 'eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.e30.%s%s' $x $y | seed fuzz_jws es256

passed=0
failed=0
for target in $targets; do
    mkdir -p "$work/seeds/$target" "$work/corpus/$target" "$work/found/$target"
    log=$work/$target.log
    if ! make -C "$build" "tests/fuzz/$target" >"$log" 2>&1; then
        echo "FAIL $target: does not build"
        tail -20 "$log"
    elif "$build/tests/fuzz/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 \
        -print_final_stats=1 -artifact_prefix="$work/found/$target/" \
        "$work/corpus/$target" "$work/seeds/$target" >"$log" 2>&1; then
        echo "ok   $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs"
        passed=$((passed + 1))
        continue
    else
        echo "FAIL $target: see $log and $work/found/$target"
        grep -E 'ERROR|SUMMARY|runtime error' "$log"
    fi
    keep=yes
    failed=$((failed + 1))
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
