/*
 * test_hsmd.c - real hsmds on fresh SoftHSM tokens, asked through the client library, and what they
 * do when the token, the module, the peer or the operator does not do what they should.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <event2/event.h>
#include <grp.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hsm/frame.h"
#include "kms/harden.h"
#include "proto/err.h"
#include "tests/faults/hsmd_fixture.h"

#define DEADLINE 10000
#define NOBODY   65534

static struct fixture f;
static struct ask a;
static const unsigned char object[HSM_ID_LEN] = {1, 2, 3};
static const unsigned char zero_key[HSM_KEY_LEN];

static void
stop(void)
{
    ask_release(&a);
    fixture_release(&f);
}

/* hsmd ends and starts again with other settings; the client finds it by itself. */
static void
restart(bool shim, const char *settings)
{
    fixture_stop(&f, SIGTERM);
    ask_idle(&a, 100);
    cr_assert(ask_ready(&a, false, 5000), "the client hears of the end");
    fixture_configure(&f, shim, settings);
    fixture_start(&f);
}

static bool
status_has(const char *text)
{
    cr_assert_eq(ask_status(&a), KMS_OK);
    return strstr(a.text, text) != NULL;
}

/* false: not within so many milliseconds. */
static bool
status_comes(const char *text, int ms)
{
    long until = fixture_now() + ms;

    while (!status_has(text) && fixture_now() < until)
        ask_idle(&a, 50);
    return status_has(text);
}

/* Up to a client that is greeted.  The token is empty. */
static void
start(bool shim, const char *settings)
{
    fixture_init(&f, shim, settings);
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(status_comes("\"state\": \"empty\"", 10000), "%s", a.text);
}

/* Every custodian is up: after the keys were made those that did not make them are replaced. */
static void
all_work(void)
{
    long until = fixture_now() + 10000;
    int wanted, working;

    do {
        cr_assert_eq(ask_status(&a), KMS_OK);
        cr_assert_eq(sscanf(strstr(a.text, "\"wanted\""), "\"wanted\": %d, \"working\": %d",
                            &wanted, &working),
                     2);
        ask_idle(&a, 20);
    } while (working < wanted && fixture_now() < until);
    cr_assert_eq(working, wanted, "%s", a.text);
}

/* Up to keys and a wrapping key. */
static void
start_with_keys(bool shim, const char *settings)
{
    start(shim, settings);
    ask_init_token(&a);
    ask_idle(&a, 50);
    all_work();
}

static void
generate(void)
{
    cr_assert_eq(ask_generate(&a, &a.wk, HSM_CONTENT_KEY, object), KMS_OK);
    cr_assert_arr_neq(a.key[0], zero_key, HSM_KEY_LEN);
}

/* Generates, then unwraps what came: the whole way works. */
static void
assert_works(const char *when)
{
    unsigned char key[HSM_KEY_LEN], blob[HSM_BLOB_LEN];

    cr_assert_eq(ask_generate(&a, &a.wk, HSM_CONTENT_KEY, object), KMS_OK, "%s", when);
    memcpy(key, a.key[0], sizeof(key));
    memcpy(blob, a.blob[0], sizeof(blob));
    memset(a.key[0], 0, HSM_KEY_LEN);
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_OK, "%s", when);
    cr_assert_arr_eq(a.key[0], key, HSM_KEY_LEN, "%s", when);
}

static EVP_PKEY *
static_public(void)
{
    const struct hsm_info *info = hsm_get_info(a.h);
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    BIGNUM *n = BN_bin2bn(info->static_n, (int)info->static_n_len, NULL);
    BIGNUM *e = BN_bin2bn(info->static_e, (int)info->static_e_len, NULL);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    OSSL_PARAM *params;
    EVP_PKEY *key = NULL;

    OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_N, n);
    OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_E, e);
    params = OSSL_PARAM_BLD_to_param(build);
    cr_assert_eq(EVP_PKEY_fromdata_init(ctx), 1);
    cr_assert_eq(EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_PUBLIC_KEY, params), 1);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(build);
    EVP_PKEY_CTX_free(ctx);
    BN_free(n);
    BN_free(e);
    return key;
}

/* RSA-OAEP as OpenSSL makes it; padding and label may be wrong ones. */
static size_t
encrypt(const char *hash, int padding, const char *label, const unsigned char *cek, size_t len,
        unsigned char ek[HSM_RSA_MAX])
{
    EVP_PKEY *key = static_public();
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(key, NULL);
    size_t out = HSM_RSA_MAX;

    cr_assert_eq(EVP_PKEY_encrypt_init(ctx), 1);
    cr_assert_eq(EVP_PKEY_CTX_set_rsa_padding(ctx, padding), 1);
    if (padding == RSA_PKCS1_OAEP_PADDING) {
        cr_assert_eq(EVP_PKEY_CTX_set_rsa_oaep_md_name(ctx, hash, NULL), 1);
        cr_assert_eq(EVP_PKEY_CTX_set_rsa_mgf1_md_name(ctx, hash, NULL), 1);
        if (label != NULL)
            cr_assert_eq(
                EVP_PKEY_CTX_set0_rsa_oaep_label(ctx, OPENSSL_strdup(label), (int)strlen(label)),
                1);
    }
    cr_assert_eq(EVP_PKEY_encrypt(ctx, ek, &out, cek, len), 1);
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(key);
    return out;
}

/* --- what it is for --- */

Test(hsmd, makes_keys_once_and_finds_them_again)
{
    char first[sizeof(a.text)];
    const char *keys;

    start(false, "");
    cr_assert(status_comes("\"state\": \"empty\"", 10000), "%s", a.text);
    cr_assert_not(hsm_ready(a.h));
    cr_assert_eq(ask_wrapping_key(&a), KMS_ERR_NOT_FOUND, "there is no root yet");
    ask_init_token(&a);
    cr_assert(status_has("\"gcm_nonce\": \"ours\""));
    cr_assert(status_has("\"wrap_is_rfc3394\": true"));
    cr_assert_not_null(keys = strstr(a.text, "\"keys\""));
    strcpy(first, keys);
    *strstr(first, "\"sessions\"") = '\0';
    cr_assert_eq(ask_init_keys(&a, 0), KMS_OK);
    cr_assert_not_null(strstr(a.text, first), "a second init makes nothing");
    restart(false, "sessions = 1");
    cr_assert(ask_ready(&a, true, 10000));
    cr_assert(status_has(first), "ids and check values are the same after a restart");
    stop();
}

Test(hsmd, generates_wraps_and_unwraps_also_after_a_restart)
{
    unsigned char key[HSM_KEY_LEN], blob[HSM_BLOB_LEN], mine[HSM_KEY_LEN] = {42};

    start_with_keys(false, "");
    generate();
    memcpy(key, a.key[0], sizeof(key));
    memcpy(blob, a.blob[0], sizeof(blob));
    cr_assert_eq(blob[0], 1);
    generate();
    cr_assert_arr_neq(a.key[0], key, sizeof(key));
    cr_assert_arr_neq(a.blob[0] + 1, blob + 1, 12, "a nonce of its own");
    cr_assert_eq(ask_wrap(&a, &a.wk, HSM_CHANNEL_KEY, object, mine), KMS_OK);
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CHANNEL_KEY, object, a.blob[0]), KMS_OK);
    cr_assert_arr_eq(a.key[0], mine, sizeof(mine));
    restart(false, "");
    cr_assert(ask_ready(&a, true, 10000));
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    cr_assert_arr_eq(a.key[0], key, sizeof(key));
    stop();
}

Test(hsmd, refuses_a_blob_that_was_moved)
{
    unsigned char blob[HSM_BLOB_LEN], other[HSM_ID_LEN] = {9};
    struct hsm_wrapping_key wk;

    start_with_keys(false, "");
    generate();
    memcpy(blob, a.blob[0], sizeof(blob));
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, other, blob), KMS_ERR_CRYPTO, "object");
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CHANNEL_KEY, object, blob), KMS_ERR_CRYPTO, "purpose");
    wk = a.wk;
    wk.org[0]++;
    cr_assert_eq(ask_unwrap(&a, &wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_CRYPTO, "org");
    wk = a.wk;
    wk.generation++;
    cr_assert_eq(ask_unwrap(&a, &wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_CRYPTO, "generation");
    wk = a.wk;
    wk.wrapped[7] ^= 1;
    cr_assert_eq(ask_unwrap(&a, &wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_CRYPTO, "wrapped");
    wk = a.wk;
    wk.root[15] ^= 1;
    cr_assert_eq(ask_unwrap(&a, &wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_NOT_FOUND, "root");
    wk = a.wk;
    cr_assert_eq(ask_wrapping_key(&a), KMS_OK);
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_CRYPTO,
                 "another wrapping key");
    cr_assert_eq(ask_unwrap(&a, &wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    stop();
}

Test(hsmd, refuses_a_blob_with_any_bit_flipped)
{
    unsigned char blob[HSM_BLOB_LEN];
    unsigned bits = HSM_BLOB_LEN * 8;

    start_with_keys(false, "");
    generate();
    memcpy(blob, a.blob[0], sizeof(blob));
    ask_begin(&a, bits);
    for (unsigned i = 0; i < bits; i++) {
        blob[i / 8] ^= (unsigned char)(1 << i % 8);
        cr_assert_eq(hsm_unwrap(a.h, &a.wk, HSM_CONTENT_KEY, object, blob, ask_key_cb, &a, 1, i),
                     KMS_OK);
        blob[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    ask_wait(&a);
    for (unsigned i = 0; i < bits; i++)
        cr_assert_eq(a.err[i], KMS_ERR_CRYPTO, "bit %u", i);
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    cr_assert_eq(fixture_logged(&f, "trouble"), 0, "bad blobs are no fault of the token's");
    stop();
}

Test(hsmd, answers_each_item_of_large_batches_by_its_index)
{
    static unsigned char keys[ASK_MAX][HSM_KEY_LEN], blobs[ASK_MAX][HSM_BLOB_LEN];
    unsigned char id[HSM_ID_LEN] = {0};

    start_with_keys(false, "");
    ask_begin(&a, ASK_MAX);
    for (unsigned i = 0; i < ASK_MAX; i++) {
        id[0] = (unsigned char)i;
        cr_assert_eq(hsm_generate(a.h, &a.wk, HSM_CONTENT_KEY, id, ask_key_cb, &a, 1, i), KMS_OK);
    }
    ask_wait(&a);
    memcpy(keys, a.key, sizeof(keys));
    memcpy(blobs, a.blob, sizeof(blobs));
    ask_begin(&a, ASK_MAX);
    for (unsigned i = 0; i < ASK_MAX; i++) {
        id[0] = (unsigned char)(i % 7 == 3 ? i + 1 : i); /* some are asked for under a wrong id */
        cr_assert_eq(hsm_unwrap(a.h, &a.wk, HSM_CONTENT_KEY, id, blobs[i], ask_key_cb, &a, 1, i),
                     KMS_OK);
    }
    ask_wait(&a);
    for (unsigned i = 0; i < ASK_MAX; i++) {
        cr_assert_eq(a.err[i], i % 7 == 3 ? KMS_ERR_CRYPTO : KMS_OK, "item %u", i);
        if (i % 7 != 3)
            cr_assert_arr_eq(a.key[i], keys[i], HSM_KEY_LEN, "item %u", i);
    }
    stop();
}

/* RFC 7516 11.5: what is wrong with a ciphertext shows in nothing but a key that nobody knows. */
static void
assert_oaep(enum hsm_oaep hash)
{
    const char *name = hash == HSM_OAEP_SHA256 ? "SHA256" : "SHA1";
    const char *other = hash == HSM_OAEP_SHA256 ? "SHA1" : "SHA256";
    unsigned char cek[40], ek[HSM_RSA_MAX + 8] = {0}, once[HSM_KEY_LEN];
    size_t len;
    struct {
        const char *name;
        const char *hash;
        int padding;
        const char *label;
        size_t cek_len;
        int cut; /* bytes less of the ciphertext; negative: more */
    } bad[] = {
        {"another hash", other, RSA_PKCS1_OAEP_PADDING, NULL, 32, 0},
        {"a label", name, RSA_PKCS1_OAEP_PADDING, "label", 32, 0},
        {"PKCS #1 1.5", name, RSA_PKCS1_PADDING, NULL, 32, 0},
        {"a short key", name, RSA_PKCS1_OAEP_PADDING, NULL, 31, 0},
        {"a long key", name, RSA_PKCS1_OAEP_PADDING, NULL, 33, 0},
        {"no key", name, RSA_PKCS1_OAEP_PADDING, NULL, 0, 0},
        {"a byte short", name, RSA_PKCS1_OAEP_PADDING, NULL, 32, 1},
        {"a byte long", name, RSA_PKCS1_OAEP_PADDING, NULL, 32, -1},
        {"nothing", name, RSA_PKCS1_OAEP_PADDING, NULL, 32, 256},
    };

    RAND_bytes(cek, sizeof(cek));
    len = encrypt(name, RSA_PKCS1_OAEP_PADDING, NULL, cek, 32, ek);
    cr_assert_eq(ask_oaep(&a, hash, ek, len), KMS_OK);
    cr_assert_eq(a.len[0], 32);
    cr_assert_arr_eq(a.bytes[0], cek, 32);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        len = encrypt(bad[i].hash, bad[i].padding, bad[i].label, cek, bad[i].cek_len, ek);
        len = (size_t)((int)len - bad[i].cut);
        for (int again = 0; again < 2; again++) {
            cr_assert_eq(ask_oaep(&a, hash, ek, len), KMS_OK, "%s", bad[i].name);
            cr_assert_eq(a.len[0], 32, "%s", bad[i].name);
            cr_assert_arr_neq(a.bytes[0], cek, 32, "%s", bad[i].name);
            if (again)
                cr_assert_arr_neq(a.bytes[0], once, 32, "%s: never twice the same", bad[i].name);
            memcpy(once, a.bytes[0], 32);
        }
    }
    memset(ek, 0xff, sizeof(ek));
    cr_assert_eq(ask_oaep(&a, hash, ek, 256), KMS_OK, "a number beyond the modulus");
    memset(ek, 0, sizeof(ek));
    cr_assert_eq(ask_oaep(&a, hash, ek, 256), KMS_OK, "nought");
    cr_assert_eq(fixture_logged(&f, "trouble"), 0, "bad padding is no fault of the token's");
    cr_assert_eq(fixture_logged(&f, "gone"), 0);
}

Test(hsmd, opens_oaep_with_both_hashes_and_tells_nothing_of_bad_ones)
{
    start_with_keys(false, "");
    cr_assert(status_has("\"rsa_raw\": true"));
    cr_assert_not(hsm_get_info(a.h)->oaep_sha256_native);
    assert_oaep(HSM_OAEP_SHA1);
    assert_oaep(HSM_OAEP_SHA256);
    stop();
}

Test(hsmd, opens_oaep_by_the_token_itself_where_it_is_told_to)
{
    start(true, "oaep = token");
    fixture_control(&f, "oaep-sha256");
    restart(true, "oaep = token");
    ask_init_token(&a);
    cr_assert(status_has("\"rsa_oaep_sha256\": true"));
    cr_assert(hsm_get_info(a.h)->oaep_sha256_native);
    assert_oaep(HSM_OAEP_SHA1);
    assert_oaep(HSM_OAEP_SHA256);
    stop();
}

Test(hsmd, opens_oaep_by_the_token_where_it_does_no_raw_rsa)
{
    start(true, "");
    fixture_control(&f, "oaep-sha256\nno 3");
    restart(true, "");
    ask_init_token(&a);
    cr_assert(status_has("\"rsa_raw\": false"));
    assert_oaep(HSM_OAEP_SHA1);
    assert_oaep(HSM_OAEP_SHA256);
    stop();
}

Test(hsmd, signs_pss_that_openssl_verifies)
{
    unsigned char digest[32];
    EVP_PKEY_CTX *ctx;
    EVP_PKEY *key;

    start_with_keys(false, "");
    RAND_bytes(digest, sizeof(digest));
    cr_assert_eq(ask_pss(&a, digest), KMS_OK);
    cr_assert_eq(a.len[0], 256);
    key = static_public();
    ctx = EVP_PKEY_CTX_new(key, NULL);
    cr_assert_eq(EVP_PKEY_verify_init(ctx), 1);
    cr_assert_eq(EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING), 1);
    cr_assert_eq(EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256()), 1);
    cr_assert_eq(EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, 32), 1);
    cr_assert_eq(EVP_PKEY_verify(ctx, a.bytes[0], a.len[0], digest, sizeof(digest)), 1);
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(key);
    stop();
}

Test(hsmd, signs_audit_messages_that_openssl_verifies)
{
    static unsigned char msg[4096];
    const size_t lengths[] = {1, 100, 4096};

    start_with_keys(false, "");
    RAND_bytes(msg, sizeof(msg));
    cr_assert(hsm_get_info(a.h)->has_audit);
    for (size_t i = 0; i < 3; i++) {
        EVP_MD_CTX *md = EVP_MD_CTX_new();
        EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL,
                                                    hsm_get_info(a.h)->audit_public, 32);

        cr_assert_eq(ask_audit(&a, msg, lengths[i]), KMS_OK);
        cr_assert_eq(a.len[0], 64);
        cr_assert_eq(EVP_DigestVerifyInit(md, NULL, NULL, NULL, key), 1);
        cr_assert_eq(EVP_DigestVerify(md, a.bytes[0], 64, msg, lengths[i]), 1);
        EVP_MD_CTX_free(md);
        EVP_PKEY_free(key);
    }
    cr_assert_eq(ask_audit(&a, msg, sizeof(msg) + 1), KMS_ERR_LIMIT);
    stop();
}

Test(hsmd, gives_randomness)
{
    unsigned char first[1024];

    start_with_keys(false, "");
    cr_assert_eq(ask_random(&a, 1024), KMS_OK);
    cr_assert_eq(a.len[0], 1024);
    memcpy(first, a.bytes[0], sizeof(first));
    cr_assert_eq(ask_random(&a, 1024), KMS_OK);
    cr_assert_arr_neq(a.bytes[0], first, sizeof(first));
    cr_assert_eq(ask_random(&a, 1025), KMS_ERR_LIMIT);
    stop();
}

Test(hsmd, custody_in_the_process_makes_the_same_blobs)
{
    unsigned char key[HSM_KEY_LEN], blob[HSM_BLOB_LEN];

    start_with_keys(false, "");
    generate();
    memcpy(key, a.key[0], sizeof(key));
    memcpy(blob, a.blob[0], sizeof(blob));
    restart(false, "custody = process\ncustody_seconds = 1");
    cr_assert(ask_ready(&a, true, 10000));
    cr_assert(status_has("\"custody\": \"process\""));
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    cr_assert_arr_eq(a.key[0], key, sizeof(key));
    generate();
    memcpy(key, a.key[0], sizeof(key));
    memcpy(blob, a.blob[0], sizeof(blob));
    ask_idle(&a, 2500); /* the wrapping key's time is over: it is fetched anew */
    assert_works("after its time");
    blob[20] ^= 1;
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_CRYPTO);
    blob[20] ^= 1;
    restart(false, "");
    cr_assert(ask_ready(&a, true, 10000));
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    cr_assert_arr_eq(a.key[0], key, sizeof(key));
    stop();
}

/* --- who may talk, and how --- */

/* A connection of one's own, past the client library. */
static int
raw_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timeval patience = {.tv_sec = 5};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(address.sun_path, f.socket);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    return fd;
}

/* Whether the peer closes; what it sends before is passed over. */
static bool
is_closed(int fd)
{
    unsigned char b[4096];
    ssize_t n;

    while ((n = read(fd, b, sizeof(b))) > 0)
        ;
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

Test(hsmd, turns_away_other_users)
{
    int status;
    pid_t pid;

    if (geteuid() != 0)
        cr_skip_test("needs root, to be somebody else");
    start_with_keys(false, "");
    /* Wide open on purpose: it is hsmd that must refuse. */
    cr_assert_eq(chmod(f.dir, 0755), 0);
    cr_assert_eq(chmod(f.socket, 0666), 0);
    if ((pid = fork()) == 0) {
        unsigned char b;
        int fd;

        if (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0 ||
            (fd = raw_connect()) < 0)
            _exit(2);
        _exit(read(fd, &b, 1) == 0 ? 0 : 1); /* not even a greeting */
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    cr_assert_eq(fixture_logged(&f, "may not connect"), 1);
    assert_works("for the one who may");
    restart(false, "allow_user = 65534");
    chmod(f.socket, 0666);
    if ((pid = fork()) == 0) {
        unsigned char b;
        int fd;

        if (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0 ||
            (fd = raw_connect()) < 0)
            _exit(2);
        _exit(read(fd, &b, 1) == 1 ? 0 : 1);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0, "the one whom the configuration names is greeted");
    stop();
}

/* What a worker of kmsd has: whatever makes, moves or destroys a key, or signs for the log, is not
 * for it. */
Test(hsmd, lets_nobody_manage_keys_who_only_uses_them)
{
    static const enum hsm_kind kinds[] = {HSM_ROOT, HSM_MAIN, HSM_PERIOD, HSM_IMPORT};
    unsigned char digest[32] = {1}, blob[HSM_BLOB_LEN], ciphertext[384] = {2};
    struct hsm_wrapping_key wk;
    struct ask *worker = calloc(1, sizeof(*worker));
    const struct hsm_info *info;

    start_with_keys(false, "");
    wk = a.wk;
    info = hsm_get_info(a.h);
    ask_init_as(worker, &f, HSM_USE, 5000);
    cr_assert(ask_ready(worker, true, 5000));
    cr_expect_eq(ask_generate(worker, &wk, HSM_CONTENT_KEY, object), KMS_OK);
    memcpy(blob, worker->blob[0], sizeof(blob));
    cr_expect_eq(ask_unwrap(worker, &wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    cr_expect_eq(ask_wrap(worker, &wk, HSM_CHANNEL_KEY, object, digest), KMS_OK);
    cr_expect_eq(ask_oaep(worker, HSM_OAEP_SHA256, ciphertext, sizeof(ciphertext)), KMS_OK);
    cr_expect_eq(ask_pss(worker, digest), KMS_OK);
    cr_expect_eq(ask_random(worker, 16), KMS_OK);
    cr_expect_eq(ask_status(worker), KMS_OK);

    cr_expect_eq(ask_audit(worker, "a checkpoint", 12), KMS_ERR_DENIED);
    cr_expect_eq(ask_wrapping_key(worker), KMS_ERR_DENIED);
    cr_expect_eq(ask_init_keys(worker, 0), KMS_ERR_DENIED);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        /* others come by import */
        if (kinds[i] == HSM_ROOT || kinds[i] == HSM_PERIOD)
            cr_expect_eq(ask_key_new(worker, kinds[i], object), KMS_ERR_DENIED);
        cr_expect_eq(ask_key_destroy(worker, kinds[i], info->root), KMS_ERR_DENIED);
        cr_expect_eq(ask_list(worker, kinds[i]), KMS_ERR_DENIED);
    }
    cr_expect_eq(ask_forget(worker, wk.org), KMS_ERR_DENIED);
    cr_expect_eq(ask_import_pair(worker, object), KMS_ERR_DENIED);
    cr_expect_eq(ask_import(worker, object, object, true, ciphertext, sizeof(ciphertext)),
                 KMS_ERR_DENIED);
    cr_expect_eq(ask_wrapping_key_under(worker, info->root), KMS_ERR_DENIED);
    cr_expect_eq(ask_rewrap(worker, &wk, info->root), KMS_ERR_DENIED);
    cr_expect_eq(ask_reseal(worker, &wk, &wk, HSM_CONTENT_KEY, object, blob), KMS_ERR_DENIED);
    /* and nothing of that was done */
    cr_expect_eq(ask_list(&a, HSM_ROOT), KMS_OK);
    cr_expect_eq(a.listed_n, 1);
    cr_expect_eq(ask_unwrap(&a, &wk, HSM_CONTENT_KEY, object, blob), KMS_OK);
    ask_release(worker);
    free(worker);
    stop();
}

/* The door opens to the kind of socket that a worker's filter refuses, and to no other. */
Test(hsmd, has_a_door_that_a_worker_cannot_come_through)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int status, ends[2];
    pid_t pid;

    start_with_keys(false, "");
    cr_assert_lt(
        snprintf(address.sun_path, sizeof(address.sun_path), "%s" HSM_MANAGE_SUFFIX, f.socket),
        (int)sizeof(address.sun_path));
    if ((pid = fork()) == 0) {
        int fd;

        if ((fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) < 0 ||
            connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
            _exit(1); /* the check is one */
        if (harden_worker() != KMS_OK)
            _exit(2);
        if (socket(AF_UNIX, SOCK_SEQPACKET, 0) >= 0 || errno != EPERM)
            _exit(3);
        if (socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) >= 0 ||
            errno != EPERM)
            _exit(4);
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0 || errno != EPERM)
            _exit(5);
        for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++)
            if ((fd = socket(AF_UNIX, type, 0)) < 0 ||
                connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ||
                errno != EPROTOTYPE)
                _exit(6);
        _exit(raw_connect() >= 0 ? 0 : 7);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0, "%d", WEXITSTATUS(status));
    stop();
}

/* A worker that fell takes all the connections that there are, and keeps them. */
Test(hsmd, leaves_room_for_who_manages)
{
    struct ask *keeper = calloc(1, sizeof(*keeper));
    int fds[300];

    start_with_keys(false, "");
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        cr_assert_geq(fds[i] = raw_connect(), 0);
    cr_assert(is_closed(fds[sizeof(fds) / sizeof(fds[0]) - 1]), "there is no end of them");
    ask_init(keeper, &f, DEADLINE);
    cr_expect(ask_ready(keeper, true, 5000));
    cr_expect_eq(ask_list(keeper, HSM_ROOT), KMS_OK);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        close(fds[i]);
    ask_release(keeper);
    free(keeper);
    stop();
}

Test(hsmd, makes_its_socket_for_its_user_only)
{
    char door[160];
    struct stat st;

    start(false, "");
    cr_assert_eq(stat(f.socket, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    snprintf(door, sizeof(door), "%s" HSM_MANAGE_SUFFIX, f.socket);
    cr_assert_eq(stat(door, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    stop();
}

Test(hsmd, ends_the_connection_that_sent_no_frame_and_no_other)
{
    unsigned char b[FRAME_HEAD_LEN + 256];
    struct frame_head h = {.type = FRAME_UNWRAP, .count = 1, .seq = 1, .deadline_ms = 1000};
    int fd;

    start_with_keys(false, "");
    for (int i = 0; i < 64; i++) {
        cr_assert_geq(fd = raw_connect(), 0);
        RAND_bytes(b, sizeof(b));
        b[0] |= 1; /* no length of ours */
        cr_assert_gt(send(fd, b, sizeof(b), MSG_NOSIGNAL), 0);
        cr_assert(is_closed(fd), "noise");
        close(fd);
    }
    /* A right head with a wrong item. */
    h.len = (uint32_t)(FRAME_HEAD_LEN + frame_item_size(FRAME_UNWRAP, FRAME_REQUEST_WAY));
    memset(b, 0, sizeof(b));
    frame_head_put(&h, FRAME_REQUEST_WAY, b);
    cr_assert_geq(fd = raw_connect(), 0);
    cr_assert_eq(send(fd, b, h.len, MSG_NOSIGNAL), (ssize_t)h.len);
    cr_assert(is_closed(fd), "no purpose");
    close(fd);
    /* Half a frame, and nothing more: it waits, and nobody else does. */
    cr_assert_geq(fd = raw_connect(), 0);
    cr_assert_eq(send(fd, b, 40, MSG_NOSIGNAL), 40);
    assert_works("beside all that");
    close(fd);
    stop();
}

Test(hsmd, does_not_start_twice_on_one_socket)
{
    char program[] = "hsm/hsmd", config[] = "--config", foreground[] = "-f";
    char *argv[] = {program, config, f.config, foreground, NULL};
    int status;
    pid_t pid;

    start_with_keys(false, "");
    if (getenv("HSMD") != NULL)
        argv[0] = getenv("HSMD");
    if ((pid = fork()) == 0) {
        close(STDERR_FILENO);
        execv(argv[0], argv);
        _exit(127);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_works("for the first");
    stop();
}

/* --- what heals --- */

Test(hsmd, answers_all_when_its_custodians_are_killed)
{
    pid_t pids[8];
    unsigned n;

    start_with_keys(true, "");
    fixture_control(&f, "C_EncryptInit delay 20");
    ask_begin(&a, 100);
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(hsm_generate(a.h, &a.wk, HSM_CONTENT_KEY, object, ask_key_cb, &a, 1, i),
                     KMS_OK);
    ask_idle(&a, 200);
    cr_assert_eq(n = fixture_custodians(&f, pids, 8), 2);
    fixture_control(&f, "");
    for (unsigned i = 0; i < n; i++)
        kill(pids[i], SIGKILL);
    ask_wait(&a);
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(a.err[i], KMS_OK, "item %u: %d", i, a.err[i]);
    cr_assert(status_comes("\"working\": 2", 10000));
    stop();
}

Test(hsmd, is_found_again_after_it_was_killed)
{
    pid_t pids[8];

    start_with_keys(false, "");
    generate();
    fixture_stop(&f, SIGKILL);
    cr_assert(ask_ready(&a, false, 5000));
    cr_assert_neq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_OK);
    unlink(f.socket); /* so that fixture_start sees the new one */
    fixture_start(&f);
    cr_assert(ask_ready(&a, true, 10000));
    assert_works("after the restart");
    cr_assert_leq(fixture_custodians(&f, pids, 8), 2);
    stop();
}

Test(hsmd, keeps_deadlines_when_the_module_hangs)
{
    long start_at;
    struct ask quick;

    start_with_keys(true, "call_timeout = 1");
    generate();
    ask_init(&quick, &f, 700);
    cr_assert(ask_ready(&quick, true, 5000));
    quick.wk = a.wk;
    fixture_control(&f, "C_Decrypt hang");
    start_at = fixture_now();
    cr_assert_eq(ask_unwrap(&quick, &quick.wk, HSM_CONTENT_KEY, object, a.blob[0]),
                 KMS_ERR_TIMEOUT);
    cr_assert_leq(fixture_now() - start_at, 1500);
    fixture_control(&f, "");
    cr_assert(status_comes("\"killed\": 1", 5000), "%s", a.text);
    assert_works("after the hang");
    ask_release(&quick);
    stop();
}

Test(hsmd, kills_a_custodian_that_hangs_and_gives_its_work_to_another)
{
    start_with_keys(true, "call_timeout = 1\nsessions = 1");
    generate();
    fixture_control(&f, "C_Decrypt hang-once");
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_OK);
    cr_assert(status_has("\"killed\": 1"));
    stop();
}

Test(hsmd, refuses_only_the_item_that_kills_custodians)
{
    static unsigned char blobs[10][HSM_BLOB_LEN];
    unsigned char id[HSM_ID_LEN] = {0};

    start_with_keys(true, "");
    ask_begin(&a, 10);
    for (unsigned i = 0; i < 10; i++) {
        id[0] = i == 6 ? 0xee : 1;
        hsm_generate(a.h, &a.wk, HSM_CONTENT_KEY, id, ask_key_cb, &a, 1, i);
    }
    ask_wait(&a);
    memcpy(blobs, a.blob, sizeof(blobs));
    fixture_control(&f, "poison ee");
    ask_begin(&a, 10);
    for (unsigned i = 0; i < 10; i++) {
        id[0] = i == 6 ? 0xee : 1;
        hsm_unwrap(a.h, &a.wk, HSM_CONTENT_KEY, id, blobs[i], ask_key_cb, &a, 1, i);
    }
    ask_wait(&a);
    for (unsigned i = 0; i < 10; i++)
        cr_assert_eq(a.err[i], i == 6 ? KMS_ERR_UNAVAILABLE : KMS_OK, "item %u", i);
    cr_assert(status_has("\"died\": 2"));
    stop();
}

struct fault {
    char name[40];
    char rule[48];
};

ParameterizedTestParameters(hsmd, mends_what_a_module_says_or_loses)
{
    static struct fault rows[] = {
        {"sessions lost", "lose-sessions"},
        {"session closed", "C_DecryptInit once b0"},
        {"session handle invalid", "C_EncryptInit once b3"},
        {"device error", "C_Encrypt once 30"},
        {"device error at the end", "C_Decrypt once 30"},
        {"key handle invalid", "C_EncryptInit once 60"},
        {"object handle invalid", "C_UnwrapKey once 82"},
        {"not logged in", "C_GenerateRandom once 101"},
        {"operation active", "C_EncryptInit once 90"},
        {"general error", "C_Decrypt once 5"},
        {"signing fails", "C_Sign once 6"},
        {"dies", "C_Encrypt die-once"},
    };

    return cr_make_param_array(struct fault, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct fault *row, hsmd, mends_what_a_module_says_or_loses)
{
    unsigned char digest[32] = {1};

    start_with_keys(true, "sessions = 1");
    generate();
    fixture_control(&f, row->rule);
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_OK, "%s",
                 row->name);
    assert_works(row->name);
    cr_assert_eq(ask_wrapping_key(&a), KMS_OK, "%s", row->name);
    assert_works(row->name);
    cr_assert_eq(ask_pss(&a, digest), KMS_OK, "%s", row->name);
    stop();
}

Test(hsmd, heals_when_the_token_comes_back)
{
    long start_at;

    start_with_keys(true, "");
    generate();
    fixture_control(&f, "absent");
    /* Whoever asks first may wait for the recovery to be tried; then it is known. */
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_ERR_UNAVAILABLE);
    cr_assert(ask_ready(&a, false, 10000));
    cr_assert(status_comes("\"state\": \"absent\"", 10000));
    start_at = fixture_now();
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_ERR_UNAVAILABLE);
    cr_assert_leq(fixture_now() - start_at, 1000, "at once, not at the deadline");
    fixture_control(&f, "");
    cr_assert(ask_ready(&a, true, 15000));
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_OK);
    stop();
}

Test(hsmd, notices_that_the_token_went_while_nobody_asked)
{
    start_with_keys(true, "");
    fixture_control(&f, "absent");
    cr_assert(ask_ready(&a, false, 15000));
    stop();
}

Test(hsmd, waits_for_a_token_that_is_not_there_at_the_start)
{
    fixture_init(&f, true, "");
    fixture_control(&f, "absent");
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(status_comes("no token has this label", 10000), "%s", a.text);
    cr_assert_eq(ask_init_keys(&a, 0), KMS_ERR_UNAVAILABLE);
    cr_assert_str_eq(a.text, "absent");
    fixture_control(&f, "");
    cr_assert(status_comes("\"state\": \"empty\"", 15000));
    ask_init_token(&a);
    assert_works("once it is there");
    stop();
}

/* --- the PIN --- */

Test(hsmd, tries_a_refused_pin_once_only)
{
    fixture_init(&f, true, "sessions = 4");
    fixture_pin(&f, "9999");
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(status_comes("\"state\": \"pin-refused\"", 10000), "%s", a.text);
    ask_idle(&a, 3000);
    cr_assert_eq(fixture_calls(&f, "C_Login"), 1);
    cr_assert_eq(ask_random(&a, 1), KMS_ERR_UNAVAILABLE);
    cr_assert_eq(fixture_logged(&f, "the PIN was refused"), 1);
    cr_assert_eq(fixture_logged(&f, "9999"), 0, "no PIN in the log");
    fixture_pin(&f, FIXTURE_PIN);
    kill(f.hsmd, SIGHUP);
    cr_assert(status_comes("\"working\": 4", 10000), "%s", a.text);
    cr_assert_eq(fixture_calls(&f, "C_Login"), 5);
    stop();
}

Test(hsmd, a_pin_that_goes_bad_stops_new_logins_and_not_those_who_are_in)
{
    pid_t pids[8];
    unsigned logins;

    start_with_keys(true, "sessions = 2");
    cr_assert(status_comes("\"working\": 2", 10000));
    logins = fixture_calls(&f, "C_Login");
    fixture_pin(&f, "9999");
    cr_assert_eq(fixture_custodians(&f, pids, 8), 2);
    kill(pids[0], SIGKILL);
    cr_assert(status_comes("\"state\": \"pin-refused\"", 10000));
    ask_idle(&a, 1000);
    cr_assert_eq(fixture_calls(&f, "C_Login"), logins + 1);
    assert_works("by the one that is logged in");
    stop();
}

Test(hsmd, does_not_log_in_where_one_wrong_pin_would_lock_the_token)
{
    fixture_init(&f, true, "");
    fixture_control(&f, "pin-flag 20000"); /* CKF_USER_PIN_FINAL_TRY */
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(status_comes("\"state\": \"pin-locked\"", 10000), "%s", a.text);
    cr_assert_eq(fixture_calls(&f, "C_Login"), 0);
    stop();
}

Test(hsmd, does_not_take_a_pin_that_others_may_read)
{
    fixture_init(&f, true, "");
    chmod(f.pin_file, 0604);
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(status_comes("chmod o=", 10000), "%s", a.text);
    cr_assert_eq(fixture_calls(&f, "C_Login"), 0);
    stop();
}

/* --- tokens that are not like SoftHSM --- */

ParameterizedTestParameters(hsmd, works_with_nonces_of_the_tokens_own)
{
    static struct fault rows[] = {{"its own", "nonce its"},
                                  {"its own, into zeros", "nonce zeroed"}};

    return cr_make_param_array(struct fault, rows, 2);
}

ParameterizedTest(struct fault *row, hsmd, works_with_nonces_of_the_tokens_own)
{
    char want[64];

    fixture_init(&f, true, "");
    fixture_control(&f, row->rule);
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    ask_init_token(&a);
    snprintf(want, sizeof(want), "\"gcm_nonce\": \"%s\"", row->name);
    cr_assert(status_has(want), "%s", a.text);
    assert_works(row->name);
    generate();
    /* What the token wrote is in the blob: another that does as it is told opens it. */
    fixture_control(&f, "");
    restart(true, "");
    cr_assert(ask_ready(&a, true, 10000));
    cr_assert_eq(ask_unwrap(&a, &a.wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_OK);
    stop();
}

ParameterizedTestParameters(hsmd, refuses_tokens_that_would_give_keys_away)
{
    static struct fault rows[] = {{"always the same", "nonce constant"},
                                  {"not told", "nonce hidden"},
                                  {"anew for each object", "nonce counter"}};

    return cr_make_param_array(struct fault, rows, 3);
}

ParameterizedTest(struct fault *row, hsmd, refuses_tokens_that_would_give_keys_away)
{
    fixture_init(&f, true, "");
    fixture_control(&f, row->rule);
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(status_comes("\"state\": \"unfit\"", 10000), "%s: %s", row->name, a.text);
    cr_assert_not_null(strstr(a.text, "custody = process"), "%s", a.text);
    cr_assert_eq(ask_init_keys(&a, 0), KMS_ERR_UNAVAILABLE);
    restart(true, "custody = process");
    ask_init_token(&a);
    assert_works("with its own AES-GCM");
    stop();
}

Test(hsmd, refuses_a_token_that_begins_to_repeat_its_nonce)
{
    start_with_keys(true, "sessions = 1");
    generate();
    fixture_control(&f, "nonce constant");
    cr_assert_eq(ask_generate(&a, &a.wk, HSM_CONTENT_KEY, object), KMS_OK, "the first of its kind");
    cr_assert_neq(ask_generate(&a, &a.wk, HSM_CONTENT_KEY, object), KMS_OK);
    cr_assert(status_comes("\"state\": \"unfit\"", 10000));
    stop();
}

Test(hsmd, goes_on_without_what_is_not_needed)
{
    fixture_init(&f, true, "");
    /* No EdDSA; no object of a known value may be made. */
    fixture_control(&f, "no 1057\nC_CreateObject return 40");
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    ask_init_token(&a);
    cr_assert(status_has("\"eddsa\": false"));
    cr_assert(status_has("\"wrap_is_rfc3394\": false"));
    cr_assert_not(hsm_get_info(a.h)->has_audit);
    cr_assert_eq(ask_audit(&a, "x", 1), KMS_ERR_NOT_FOUND);
    assert_works("all the same");
    stop();
}

Test(hsmd, does_not_take_another_key_wrap_for_rfc_3394)
{
    fixture_init(&f, true, "");
    fixture_control(&f, "no 2109");
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    /* SoftHSM's 0x210a is RFC 5649, whose wrapped form of 32 bytes differs: it must not pass for
     * RFC 3394. */
    cr_assert(status_comes("\"state\": \"unfit\"", 10000), "%s", a.text);
    cr_assert_not_null(strstr(a.text, "AES key wrap"), "%s", a.text);
    stop();
}

Test(hsmd, says_so_when_there_are_too_few_sessions)
{
    fixture_init(&f, true, "sessions = 1");
    fixture_control(&f, "sessions 2");
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert_eq(ask_init_keys(&a, 0), KMS_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(a.text, "C_OpenSession: 0xb1"), "%s", a.text);
    fixture_control(&f, "sessions 3");
    ask_init_token(&a);
    assert_works("with three");
    stop();
}

Test(hsmd, replaces_worn_custodians_and_drops_nothing)
{
    start_with_keys(false, "recycle = 100\nsessions = 1");
    for (int i = 0; i < 150; i++) {
        cr_assert_eq(ask_wrapping_key(&a), KMS_OK, "%d", i);
        assert_works("while they are replaced");
    }
    cr_assert_not(status_has("\"replaced\": 0"));
    cr_assert(status_has("\"died\": 0"));
    stop();
}

Test(hsmd, gives_back_what_fits_its_cache_and_what_does_not)
{
    static struct hsm_wrapping_key first;

    start_with_keys(false, "sessions = 1\ncall_timeout = 20");
    generate();
    first = a.wk;
    /* More wrapping keys than are held: the same one under many names. */
    for (unsigned round = 0; round < 5; round++) {
        ask_begin(&a, ASK_MAX);
        for (unsigned i = 0; i < ASK_MAX; i++) {
            struct hsm_wrapping_key wk = first;

            wk.generation = 2 + round * ASK_MAX + i;
            hsm_wrap(a.h, &wk, HSM_CONTENT_KEY, object, zero_key, ask_key_cb, &a, 1, i);
        }
        ask_wait(&a);
        for (unsigned i = 0; i < ASK_MAX; i++)
            cr_assert_eq(a.err[i], KMS_OK);
    }
    assert_works("with the first, that had to go");
    stop();
}

/* --- the program --- */

Test(hsmd, check_config_tells_every_error)
{
    char program[] = "hsm/hsmd", config[] = "--config", check[] = "--check-config", text[8192];
    char *argv[] = {program, config, f.config, check, NULL};
    int fds[2], status;
    size_t len = 0;
    ssize_t n;
    pid_t pid;

    fixture_init(&f, false, "sessions = 65\ncustody = elsewhere\nroot = 12\ntoken = twice");
    if (getenv("HSMD") != NULL)
        argv[0] = getenv("HSMD");
    for (int round = 0; round < 2; round++) {
        cr_assert_eq(pipe(fds), 0);
        if ((pid = fork()) == 0) {
            dup2(fds[1], STDERR_FILENO);
            execv(argv[0], argv);
            _exit(127);
        }
        close(fds[1]);
        for (len = 0; (n = read(fds[0], text + len, sizeof(text) - 1 - len)) > 0; len += (size_t)n)
            ;
        text[len] = '\0';
        close(fds[0]);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 2, "%s", text);
        if (round == 0) {
            cr_assert_not_null(strstr(text, "sessions: 65 is out of range; write 1 to 64"), "%s",
                               text);
            cr_assert_not_null(strstr(text, "token: was given in line 3 already"), "%s", text);
            fixture_configure(&f, false, "custody = elsewhere\nroot = 12");
        }
    }
    cr_assert_not_null(strstr(text, "custody: \"elsewhere\" is neither; write token or process"),
                       "%s", text);
    cr_assert_not_null(strstr(text, "root: \"12\" is no CKA_ID"), "%s", text);
    fixture_release(&f);
}

Test(hsmd, ends_cleanly_and_takes_its_socket_along)
{
    int status;

    start_with_keys(false, "");
    status = fixture_stop(&f, SIGTERM);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_neq(access(f.socket, F_OK), 0);
    cr_assert_eq(fixture_logged(&f, "ERROR: "), 0, "nothing for the sanitizers");
    stop();
}
