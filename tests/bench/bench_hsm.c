/*
 * bench_hsm.c - what hsmd and its socket cost, against the same operations straight from the
 * PKCS#11 module.
 *
 * Prints, each on a line of its own:
 *   hsm.unwrap_ratio R           unwraps a second through the client in batches of 50, as a part of
 * what one process gets from the module by direct calls (custody = token, SoftHSM)
 *   hsm.rsa_pairs_per_second N   RSA openings and signatures, one of each, with all sessions busy
 *   hsm.rewraps_per_second N     wrapping keys from one root to another, hsm.reseals_per_second N
 *                                content keys from one wrapping key to another, each proved
 *   hsm.imports_per_second N     main keys, one after the other, hsm.forget_ms N a revocation
 * and the absolute figures behind them.
 */
#include <dlfcn.h>
#include <event2/event.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <p11-kit/pkcs11.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hsm/blob.h"
#include "proto/err.h"
#include "tests/faults/hsmd_fixture.h"

#define BATCH      50
#define RUN_MS     2500
#define ROUNDS     3
#define IN_FLIGHT  4 /* batches under way: what a few busy workers have */
#define RSA_FLIGHT 16
#define RSA_BITS   3072 /* as an installation has it */

static struct fixture fixture;
static struct ask ask;
static unsigned char object[HSM_ID_LEN] = {9};

static void __attribute__((noreturn)) die(const char *what)
{
    fprintf(stderr, "bench_hsm: %s\n", what);
    fixture_release(&fixture);
    exit(1);
}

/* --- straight from the module: its own process, as hsmd's would be --- */

static CK_OBJECT_HANDLE
find_root(CK_FUNCTION_LIST *f, CK_SESSION_HANDLE session)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof(class)},
                               {CKA_ID, ask.wk.root, sizeof(ask.wk.root)}};
    CK_OBJECT_HANDLE root = 0;
    CK_ULONG n = 0;

    if (f->C_FindObjectsInit(session, template, 2) != CKR_OK ||
        f->C_FindObjects(session, &root, 1, &n) != CKR_OK || n != 1)
        die("no root key");
    f->C_FindObjectsFinal(session);
    return root;
}

static double
direct_rate(int ms)
{
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &no, sizeof(no)},       {CKA_DECRYPT, &yes, sizeof(yes)},
        {CKA_ENCRYPT, &yes, sizeof(yes)},
    };
    CK_MECHANISM wrap = {CKM_AES_KEY_WRAP, NULL, 0};
    CK_C_GetFunctionList get;
    CK_FUNCTION_LIST *f;
    CK_SLOT_ID slots[8];
    CK_ULONG slots_n = 8, out_len;
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE key;
    unsigned char pin[] = FIXTURE_PIN, wrapped[HSM_WRAPPED_LEN], aad[BLOB_AAD_LEN], out[64];
    void *module = dlopen(getenv("P11SHIM_MODULE"), RTLD_NOW | RTLD_LOCAL);
    unsigned long n = 0;
    long start;

    if (module == NULL)
        die("no module");
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL || get(&f) != CKR_OK || f->C_Initialize(NULL) != CKR_OK ||
        f->C_GetSlotList(CK_TRUE, slots, &slots_n) != CKR_OK ||
        f->C_OpenSession(slots[0], CKF_SERIAL_SESSION, NULL, NULL, &session) != CKR_OK ||
        f->C_Login(session, CKU_USER, pin, sizeof(pin) - 1) != CKR_OK)
        die("no session");
    memcpy(wrapped, ask.wk.wrapped, sizeof(wrapped));
    if (f->C_UnwrapKey(session, &wrap, find_root(f, session), wrapped, sizeof(wrapped), template, 5,
                       &key) != CKR_OK)
        die("the wrapping key does not unwrap");
    blob_aad(&ask.wk, HSM_CONTENT_KEY, object, aad);
    for (start = fixture_now(); fixture_now() - start < ms;)
        for (int i = 0; i < BATCH; i++, n++) {
            unsigned char *blob = ask.blob[i];
            CK_GCM_PARAMS gcm = {blob + 1, 12, 96, aad, sizeof(aad), 128};
            CK_MECHANISM mechanism = {CKM_AES_GCM, &gcm, sizeof(gcm)};

            out_len = sizeof(out);
            if (f->C_DecryptInit(session, &mechanism, key) != CKR_OK ||
                f->C_Decrypt(session, blob + 13, 48, out, &out_len) != CKR_OK)
                die("direct unwrap failed");
        }
    return (double)n * 1000 / (double)(fixture_now() - start);
}

/* In a child: the module must not see the parent's state, nor leave any there. */
static double
direct(void)
{
    double rate = 0;
    int fds[2];
    pid_t pid;

    if (pipe(fds) != 0 || (pid = fork()) < 0)
        die("no child");
    if (pid == 0) {
        rate = direct_rate(RUN_MS);
        _exit(write(fds[1], &rate, sizeof(rate)) == sizeof(rate) ? 0 : 1);
    }
    close(fds[1]);
    if (read(fds[0], &rate, sizeof(rate)) != sizeof(rate))
        die("no figure from the child");
    close(fds[0]);
    waitpid(pid, NULL, 0);
    return rate;
}

/* --- through hsmd --- */

static unsigned long done, under_way;
static long until;

static void batch_start(void);

static void
unwrap_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
          const unsigned char *blob)
{
    if (err != KMS_OK)
        die("unwrap failed");
    done++;
    under_way--;
    if (index == BATCH - 1 && fixture_now() < until)
        batch_start();
}

static void
batch_start(void)
{
    for (unsigned i = 0; i < BATCH; i++, under_way++)
        if (hsm_unwrap(ask.h, &ask.wk, HSM_CONTENT_KEY, object, ask.blob[i], unwrap_cb, NULL, 1,
                       i) != KMS_OK)
            die("unwrap refused");
}

static void
run(void)
{
    while (under_way > 0)
        event_base_loop(ask.base, EVLOOP_ONCE);
}

static double
through_hsmd(unsigned in_flight)
{
    long start = fixture_now();

    done = 0;
    until = start + RUN_MS;
    for (unsigned i = 0; i < in_flight; i++) {
        batch_start();
        event_base_loop(ask.base, EVLOOP_NONBLOCK); /* a frame each */
    }
    run();
    return (double)done * 1000 / (double)(fixture_now() - start);
}

static unsigned char ek[HSM_RSA_MAX];
static size_t ek_len;

static void pair_start(void);

static void
sign_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    if (err != KMS_OK)
        die("signature failed");
    done++;
    under_way--;
    if (fixture_now() < until)
        pair_start();
}

static void
open_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    static const unsigned char digest[32] = {1};

    if (err != KMS_OK || hsm_sign_pss(ask.h, digest, sign_cb, NULL, 1, 0) != KMS_OK)
        die("opening failed");
}

static void
pair_start(void)
{
    under_way++;
    if (hsm_oaep_open(ask.h, HSM_OAEP_SHA1, ek, ek_len, open_cb, NULL, 1, 0) != KMS_OK)
        die("opening refused");
}

static double
rsa_pairs(void)
{
    long start = fixture_now();

    done = 0;
    until = start + RUN_MS;
    for (unsigned i = 0; i < RSA_FLIGHT; i++)
        pair_start();
    run();
    return (double)done * 1000 / (double)(fixture_now() - start);
}

static void
make_ek(void)
{
    const struct hsm_info *info = hsm_get_info(ask.h);
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    BIGNUM *n = BN_bin2bn(info->static_n, (int)info->static_n_len, NULL);
    BIGNUM *e = BN_bin2bn(info->static_e, (int)info->static_e_len, NULL);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    unsigned char cek[32] = {7};
    OSSL_PARAM *params;
    EVP_PKEY *key = NULL;

    OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_N, n);
    OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_E, e);
    params = OSSL_PARAM_BLD_to_param(build);
    if (EVP_PKEY_fromdata_init(ctx) != 1 ||
        EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_PUBLIC_KEY, params) != 1)
        die("no public key");
    EVP_PKEY_CTX_free(ctx);
    ctx = EVP_PKEY_CTX_new(key, NULL);
    ek_len = sizeof(ek);
    if (EVP_PKEY_encrypt_init(ctx) != 1 ||
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) != 1 ||
        EVP_PKEY_encrypt(ctx, ek, &ek_len, cek, sizeof(cek)) != 1)
        die("no ciphertext");
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(key);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(build);
    BN_free(n);
    BN_free(e);
}

/* --- keys that come and go --- */

#define MOVES   256
#define IMPORTS 20

static unsigned char second_root[HSM_ID_LEN];
static struct hsm_wrapping_key second;

static void moves_start(bool wrapping_keys);

static void
move_done(int err, unsigned index, bool wrapping_keys)
{
    if (err != KMS_OK)
        die("a key was not moved");
    done++;
    under_way--;
    if (index == MOVES - 1 && fixture_now() < until)
        moves_start(wrapping_keys);
}

static void
rewrap_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    move_done(err, index, true);
}

static void
reseal_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
          const unsigned char *blob)
{
    move_done(err, index, false);
}

static void
moves_start(bool wrapping_keys)
{
    for (unsigned i = 0; i < MOVES; i++, under_way++)
        if ((wrapping_keys ? hsm_rewrap(ask.h, ask.wk.wrapped, ask.wk.root, second_root, rewrap_cb,
                                        NULL, 1, i)
                           : hsm_reseal(ask.h, &ask.wk, &second, HSM_CONTENT_KEY, object,
                                        ask.blob[i % BATCH], reseal_cb, NULL, 1, i)) != KMS_OK)
            die("a move was refused");
}

static double
moves(bool wrapping_keys)
{
    long start = fixture_now();

    done = 0;
    until = start + RUN_MS;
    for (int i = 0; i < 2; i++) {
        moves_start(wrapping_keys);
        event_base_loop(ask.base, EVLOOP_NONBLOCK);
    }
    run();
    return (double)done * 1000 / (double)(fixture_now() - start);
}

/* What a customer sends: a key of his to the import pair. */
static size_t
main_key_sealed(unsigned char out[HSM_RSA_MAX])
{
    const unsigned char *der = ask.bytes[0];
    EVP_PKEY *key = d2i_PUBKEY(NULL, &der, (long)ask.len[0]);
    EVP_PKEY_CTX *ctx = key != NULL ? EVP_PKEY_CTX_new(key, NULL) : NULL;
    unsigned char main_key[HSM_KEY_LEN] = {5};
    size_t len = HSM_RSA_MAX;

    if (ctx == NULL || EVP_PKEY_encrypt_init(ctx) != 1 ||
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) != 1 ||
        EVP_PKEY_CTX_set_rsa_oaep_md(ctx, EVP_sha256()) != 1 ||
        EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, EVP_sha256()) != 1 ||
        EVP_PKEY_encrypt(ctx, out, &len, main_key, sizeof(main_key)) != 1)
        die("no main key");
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(key);
    return len;
}

static void
life(void)
{
    unsigned char sealed[HSM_RSA_MAX], id[HSM_ID_LEN] = {1};
    size_t len;
    long start;

    if (ask_import_pair(&ask, id) != KMS_OK)
        die("no import pair");
    len = main_key_sealed(sealed);
    start = fixture_now();
    for (unsigned i = 0; i < IMPORTS; i++) {
        unsigned char key[HSM_ID_LEN] = {2, (unsigned char)i};

        if (ask_import(&ask, key, id, false, sealed, len) != KMS_OK)
            die("an import failed");
    }
    printf("hsm.imports_per_second %.1f\n", IMPORTS * 1000.0 / (double)(fixture_now() - start));
    start = fixture_now();
    for (unsigned i = 0; i < IMPORTS; i++) {
        unsigned char key[HSM_ID_LEN] = {3, (unsigned char)i};

        if (ask_key_new(&ask, HSM_PERIOD, key) != KMS_OK)
            die("a period key was not made");
    }
    printf("hsm.period_keys_per_second %.1f\n", IMPORTS * 1000.0 / (double)(fixture_now() - start));
    start = fixture_now();
    for (unsigned i = 0; i < IMPORTS; i++)
        if (ask_forget(&ask, ask.wk.org) != KMS_OK)
            die("a key was not forgotten");
    printf("hsm.forget_ms %.1f\n", (double)(fixture_now() - start) / IMPORTS);
    start = fixture_now();
    for (unsigned i = 0; i < IMPORTS; i++) {
        unsigned char key[HSM_ID_LEN] = {3, (unsigned char)i};

        if (ask_key_destroy(&ask, HSM_PERIOD, key) != KMS_OK)
            die("a period key was not destroyed");
    }
    printf("hsm.destroys_per_second %.1f\n", IMPORTS * 1000.0 / (double)(fixture_now() - start));
}

static double
larger(double a, double b)
{
    return a > b ? a : b;
}

int
main(void)
{
    struct hsm_wrapping_key keep;
    double one = 0, single = 0, many = 0, rsa = 0, rewraps = 0, reseals = 0;

    fixture_init(&fixture, false, "");
    fixture_start(&fixture);
    ask_init(&ask, &fixture, 30000);
    if (ask_init_keys(&ask, RSA_BITS) != KMS_OK)
        die(ask.text);
    ask_init_token(&ask);
    ask_begin(&ask, BATCH);
    for (unsigned i = 0; i < BATCH; i++)
        if (hsm_generate(ask.h, &ask.wk, HSM_CONTENT_KEY, object, ask_key_cb, &ask, 1, i) != KMS_OK)
            die("no keys");
    ask_wait(&ask);
    make_ek();
    second = ask.wk;
    if (hsm_id_new(ask.h, second_root) != KMS_OK ||
        ask_key_new(&ask, HSM_ROOT, second_root) != KMS_OK || ask_wrapping_key(&ask) != KMS_OK)
        die("no second root");
    keep = ask.wk;
    ask.wk = second;
    second = keep;
    second.generation = 2;
    /* In turns, the best of each: other work on the machine hits all alike. */
    for (int i = 0; i < ROUNDS; i++) {
        one = larger(one, direct());
        single = larger(single, through_hsmd(1));
        many = larger(many, through_hsmd(IN_FLIGHT));
        rsa = larger(rsa, rsa_pairs());
        rewraps = larger(rewraps, moves(true));
        reseals = larger(reseals, moves(false));
    }
    printf("hsm.unwrap_direct_per_second %.0f\n", one);
    printf("hsm.unwrap_one_batch_per_second %.0f\n", single);
    printf("hsm.unwrap_per_second %.0f\n", many);
    printf("hsm.unwrap_ratio %.2f\n", many / one);
    printf("hsm.rsa_pairs_per_second %.0f\n", rsa);
    printf("hsm.rewraps_per_second %.0f\n", rewraps);
    printf("hsm.reseals_per_second %.0f\n", reseals);
    life();
    ask_release(&ask);
    fixture_release(&fixture);
    return 0;
}
