/*
 * test_hsm_keys.c - keys of the token that come and go, on real hsmds: made by id, imported,
 * re-wrapped, forgotten, destroyed, and all of that with a kill at every step.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dlfcn.h>
#include <event2/event.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <p11-kit/pkcs11.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hsm/frame.h"
#include "proto/err.h"
#include "tests/faults/hsmd_fixture.h"

#define DEADLINE 10000

static struct fixture f;
static struct ask a;
static const unsigned char object[HSM_ID_LEN] = {1, 2, 3};
static const unsigned char pair_id[HSM_ID_LEN] = {'p', 'a', 'i', 'r'};
static const unsigned char main_id[HSM_ID_LEN] = {'m', 'a', 'i', 'n'};
static const unsigned char period_id[HSM_ID_LEN] = {'2', '0', '2', '6', '-', '1', '1'};
static const unsigned char no_id[HSM_ID_LEN] = {0xff};

static void
stop(void)
{
    cr_assert_eq(fixture_logged(&f, "ERROR: "), 0, "nothing for the sanitizers");
    ask_release(&a);
    fixture_release(&f);
}

static void
start(bool shim, const char *settings, const char *control)
{
    fixture_init(&f, shim, settings);
    fixture_control(&f, control);
    fixture_start(&f);
    ask_init(&a, &f, DEADLINE);
    cr_assert(ask_ready(&a, false, 10000));
    ask_init_token(&a);
}

/* hsmd is gone, by whatever: another one. */
static void
revive(void)
{
    fixture_stop(&f, SIGKILL);
    ask_idle(&a, 50);
    cr_assert(ask_ready(&a, false, 5000));
    unlink(f.socket);
    fixture_start(&f);
    cr_assert(ask_ready(&a, true, 15000), "hsmd is back");
}

/* A content key under this wrapping key; a.key[0] and a.blob[0] have it. */
static void
generate(const struct hsm_wrapping_key *wk, const char *what)
{
    cr_assert_eq(ask_generate(&a, wk, HSM_CONTENT_KEY, object), KMS_OK, "%s", what);
    cr_assert_eq(ask_unwrap(&a, wk, HSM_CONTENT_KEY, object, a.blob[0]), KMS_OK, "%s", what);
}

static int
opens(const struct hsm_wrapping_key *wk, const unsigned char blob[HSM_BLOB_LEN])
{
    return ask_unwrap(&a, wk, HSM_CONTENT_KEY, object, blob);
}

static bool
is_listed(enum hsm_kind kind, const unsigned char id[HSM_ID_LEN], bool fit)
{
    cr_assert_eq(ask_list(&a, kind), KMS_OK);
    for (unsigned i = 0; i < a.listed_n; i++)
        if (memcmp(a.listed[i].id, id, HSM_ID_LEN) == 0)
            return a.listed[i].fit == fit;
    return false;
}

static bool
is_gone(enum hsm_kind kind, const unsigned char id[HSM_ID_LEN])
{
    return !is_listed(kind, id, true) && !is_listed(kind, id, false);
}

/* The check value as anybody can compute it who knows the key: RFC 3394 4.6's data, wrapped. */
static void
software_kcv(const unsigned char *key, size_t len, unsigned char kcv[HSM_KCV_LEN])
{
    static const unsigned char data[] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                         0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
                                         0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07,
                                         0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f};
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    unsigned char out[48];
    int n;

    EVP_CIPHER_CTX_set_flags(ctx, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
    cr_assert_eq(EVP_EncryptInit_ex(ctx, len == 32 ? EVP_aes_256_wrap() : EVP_aes_128_wrap(), NULL,
                                    key, NULL),
                 1);
    cr_assert_eq(EVP_EncryptUpdate(ctx, out, &n, data, sizeof(data)), 1);
    memcpy(kcv, out, HSM_KCV_LEN);
    EVP_CIPHER_CTX_free(ctx);
}

/* To the import pair that a.bytes[0] has the public half of. */
struct sealing {
    unsigned char der[FRAME_PUBLIC_MAX];
    size_t der_len;
    unsigned char ek[HSM_RSA_MAX + 8];
    size_t len;
};

static void
make_pair(struct sealing *s)
{
    cr_assert_eq(ask_import_pair(&a, pair_id), KMS_OK);
    memcpy(s->der, a.bytes[0], s->der_len = a.len[0]);
}

static void
seal(struct sealing *s, const char *hash, int padding, const char *label, const unsigned char *in,
     size_t n)
{
    const unsigned char *der = s->der;
    EVP_PKEY *key = d2i_PUBKEY(NULL, &der, (long)s->der_len);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(key, NULL);

    s->len = HSM_RSA_MAX;
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
    cr_assert_eq(EVP_PKEY_encrypt(ctx, s->ek, &s->len, in, n), 1);
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(key);
}

/* As a customer does it. */
static void
seal_right(struct sealing *s, const unsigned char *in, size_t n)
{
    seal(s, "SHA256", RSA_PKCS1_OAEP_PADDING, NULL, in, n);
}

static int
import(const unsigned char id[HSM_ID_LEN], bool allow_128, const struct sealing *s)
{
    return ask_import(&a, id, pair_id, allow_128, s->ek, s->len);
}

/* --- by id --- */

Test(hsm_keys, makes_roots_and_period_keys_by_id_once)
{
    unsigned char root[HSM_ID_LEN], kcv[HSM_KCV_LEN], first[HSM_ID_LEN];
    struct hsm_wrapping_key old, under_root, under_period;

    start(false, "", "");
    old = a.wk;
    memcpy(first, hsm_get_info(a.h)->root, HSM_ID_LEN);
    cr_assert_eq(hsm_id_new(a.h, root), KMS_OK);
    cr_assert_gt(memcmp(root, first, HSM_ID_LEN), 0);
    cr_assert_eq(ask_key_new(&a, HSM_ROOT, root), KMS_OK);
    cr_assert_eq(a.len[0], HSM_KCV_LEN);
    memcpy(kcv, a.bytes[0], sizeof(kcv));
    cr_assert_eq(ask_key_new(&a, HSM_ROOT, root), KMS_OK, "again, as after a crash");
    cr_assert_arr_eq(a.bytes[0], kcv, sizeof(kcv));
    cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK);
    cr_assert_arr_neq(a.bytes[0], kcv, sizeof(kcv));
    cr_assert_arr_eq(hsm_get_info(a.h)->root, first, HSM_ID_LEN, "it is not used by itself");
    for (int i = 0; i < 4; i++) { /* each custodian knows it */
        cr_assert_eq(ask_wrapping_key_under(&a, root), KMS_OK);
        cr_assert_arr_eq(a.wk.root, root, HSM_ID_LEN);
        generate(&a.wk, "under the new root");
    }
    under_root = a.wk;
    cr_assert_eq(ask_wrapping_key_under(&a, period_id), KMS_OK);
    under_period = a.wk;
    generate(&under_period, "under a period key");
    generate(&old, "under the old root");
    cr_assert_eq(ask_wrapping_key_under(&a, no_id), KMS_ERR_NOT_FOUND);
    revive();
    generate(&under_root, "after a restart");
    generate(&under_period, "after a restart");
    cr_assert_eq(ask_list(&a, HSM_ROOT), KMS_OK);
    cr_assert_eq(a.listed_n, 2);
    cr_assert_arr_eq(a.listed[0].id, first, HSM_ID_LEN);
    cr_assert_arr_eq(a.listed[1].id, root, HSM_ID_LEN);
    cr_assert_arr_eq(a.listed[1].kcv, kcv, sizeof(kcv));
    cr_assert(a.listed[0].fit && a.listed[1].fit);
    first[0] = 0;
    cr_assert_eq(ask_key_new(&a, HSM_ROOT, first), KMS_ERR_STATE, "would be the oldest");
    cr_assert(is_gone(HSM_ROOT, first));
    stop();
}

Test(hsm_keys, lists_many_by_pages)
{
    unsigned char id[HSM_ID_LEN] = {0};
    long start_at;

    start(false, "", "");
    for (unsigned i = 0; i < HSM_LIST_MAX + 2; i++) {
        id[0] = (unsigned char)(i * 37);
        id[1] = 7;
        cr_assert_eq(ask_key_new(&a, HSM_PERIOD, id), KMS_OK);
    }
    start_at = fixture_now();
    cr_assert_eq(ask_list(&a, HSM_PERIOD), KMS_OK);
    cr_assert_leq(fixture_now() - start_at, 3000);
    cr_assert_eq(a.listed_n, HSM_LIST_MAX + 2);
    for (unsigned i = 0; i < a.listed_n; i++) {
        cr_assert(a.listed[i].fit);
        if (i > 0)
            cr_assert_gt(memcmp(a.listed[i].id, a.listed[i - 1].id, HSM_ID_LEN), 0);
    }
    cr_assert_eq(ask_list(&a, HSM_STATIC), KMS_OK);
    cr_assert_eq(a.listed_n, 1);
    cr_assert_eq(ask_list(&a, HSM_AUDIT), KMS_OK);
    cr_assert_eq(a.listed_n, 1);
    cr_assert_eq(ask_list(&a, HSM_MAIN), KMS_OK);
    cr_assert_eq(a.listed_n, 0);
    stop();
}

/* --- import --- */

struct way {
    char name[40];
    int shim;
    char control[32];
};

ParameterizedTestParameters(hsm_keys, imports_main_keys)
{
    static struct way rows[] = {
        {"raw RSA, checked in hsmd", 0, ""},
        {"unwrapped by the token", 1, "oaep-sha256"},
        {"by a token without raw RSA", 1, "oaep-sha256\nno 3"},
    };

    return cr_make_param_array(struct way, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct way *w, hsm_keys, imports_main_keys)
{
    unsigned char key[HSM_KEY_LEN + 8], kcv[HSM_KCV_LEN], id[HSM_ID_LEN] = {9};
    struct sealing s, again;
    struct hsm_wrapping_key wk;
    struct {
        const char *name, *hash;
        int padding;
        const char *label;
        size_t n;
        int cut, want;
    } bad[] = {
        {"another hash", "SHA1", RSA_PKCS1_OAEP_PADDING, NULL, 32, 0, KMS_ERR_CRYPTO},
        {"a label", "SHA256", RSA_PKCS1_OAEP_PADDING, "label", 32, 0, KMS_ERR_CRYPTO},
        {"PKCS #1 1.5", "SHA256", RSA_PKCS1_PADDING, NULL, 32, 0, KMS_ERR_CRYPTO},
        {"a byte short", "SHA256", RSA_PKCS1_OAEP_PADDING, NULL, 32, 1, KMS_ERR_CRYPTO},
        {"a byte long", "SHA256", RSA_PKCS1_OAEP_PADDING, NULL, 32, -1, KMS_ERR_CRYPTO},
        {"128 bits", "SHA256", RSA_PKCS1_OAEP_PADDING, NULL, 16, 0, KMS_ERR_LENGTH},
        {"192 bits", "SHA256", RSA_PKCS1_OAEP_PADDING, NULL, 24, 0, KMS_ERR_LENGTH},
    };

    start(w->shim, "", w->control);
    cr_assert_eq(ask_import(&a, main_id, pair_id, false, object, 16), KMS_ERR_NOT_FOUND, "no pair");
    make_pair(&s);
    make_pair(&again);
    cr_assert_eq(s.der_len, again.der_len);
    cr_assert_arr_eq(s.der, again.der, s.der_len, "made once");
    RAND_bytes(key, sizeof(key));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        seal(&s, bad[i].hash, bad[i].padding, bad[i].label, key, bad[i].n);
        s.len = (size_t)((int)s.len - bad[i].cut);
        cr_assert_eq(import(main_id, false, &s), bad[i].want, "%s: %s", w->name, bad[i].name);
    }
    cr_assert(is_gone(HSM_MAIN, main_id), "nothing of all that was kept");
    seal_right(&s, key, 32);
    cr_assert_eq(import(main_id, false, &s), KMS_OK, "%s", w->name);
    software_kcv(key, 32, kcv);
    cr_assert_arr_eq(a.bytes[0], kcv, sizeof(kcv), "it is that key");
    cr_assert(is_listed(HSM_MAIN, main_id, true), "sensitive, and does not leave the token");
    cr_assert_eq(import(main_id, false, &s), KMS_OK, "again, as after a crash");
    seal_right(&s, key + 8, 32);
    cr_assert_eq(import(main_id, false, &s), KMS_ERR_STATE, "another key under this id");
    cr_assert_eq(ask_wrapping_key_under(&a, main_id), KMS_OK);
    wk = a.wk;
    generate(&wk, w->name);
    seal_right(&s, key, 16);
    cr_assert_eq(import(id, true, &s), KMS_OK, "128 bits where they are allowed");
    software_kcv(key, 16, kcv);
    cr_assert_arr_eq(a.bytes[0], kcv, sizeof(kcv));
    cr_assert_eq(ask_wrapping_key_under(&a, id), KMS_OK);
    generate(&a.wk, "under 128 bits");
    cr_assert_eq(fixture_logged(&f, "trouble"), 0, "bad ciphertexts are no fault of the token's");
    revive();
    generate(&wk, "after a restart");
    stop();
}

Test(hsm_keys, says_so_when_the_token_has_no_way_to_import)
{
    start(true, "oaep = token", "");
    fixture_control(&f, "no 3");
    cr_assert_eq(ask_import_pair(&a, pair_id), KMS_ERR_ALGORITHM);
    cr_assert(is_gone(HSM_IMPORT, pair_id), "no pair is left that cannot be used");
    stop();
}

/* --- from one to another --- */

Test(hsm_keys, rewraps_in_batches_and_blobs_stay)
{
    static unsigned char blobs[ASK_MAX][HSM_BLOB_LEN];
    static struct hsm_wrapping_key wks[ASK_MAX];
    unsigned char root[HSM_ID_LEN], old[HSM_ID_LEN];
    const unsigned n = 300;

    start(false, "", "");
    memcpy(old, a.wk.root, HSM_ID_LEN);
    hsm_id_new(a.h, root);
    cr_assert_eq(ask_key_new(&a, HSM_ROOT, root), KMS_OK);
    for (unsigned i = 0; i < n; i++) {
        cr_assert_eq(ask_wrapping_key(&a), KMS_OK);
        wks[i] = a.wk;
        wks[i].generation = i;
    }
    ask_begin(&a, n);
    for (unsigned i = 0; i < n; i++)
        hsm_generate(a.h, &wks[i], HSM_CONTENT_KEY, object, ask_key_cb, &a, 1, i);
    ask_wait(&a);
    memcpy(blobs, a.blob, sizeof(blobs));
    ask_begin(&a, n);
    wks[7].wrapped[3] ^= 1;
    for (unsigned i = 0; i < n; i++)
        hsm_rewrap(a.h, wks[i].wrapped, i == 9 ? no_id : old, i == 11 ? no_id : root, ask_bytes_cb,
                   &a, 1, i);
    ask_wait(&a);
    for (unsigned i = 0; i < n; i++) {
        int want = i == 7 ? KMS_ERR_CRYPTO : i == 9 || i == 11 ? KMS_ERR_NOT_FOUND : KMS_OK;

        cr_assert_eq(a.err[i], want, "item %u: %d", i, a.err[i]);
        if (want != KMS_OK)
            continue;
        cr_assert_eq(a.len[i], HSM_WRAPPED_LEN);
        cr_assert_arr_neq(a.bytes[i], wks[i].wrapped, HSM_WRAPPED_LEN);
        memcpy(wks[i].wrapped, a.bytes[i], HSM_WRAPPED_LEN);
        memcpy(wks[i].root, root, HSM_ID_LEN);
    }
    for (unsigned i = 0; i < n; i++)
        if (i != 7 && i != 9 && i != 11)
            cr_assert_eq(opens(&wks[i], blobs[i]), KMS_OK, "item %u", i);
    cr_assert_eq(fixture_logged(&f, "trouble"), 0);
    stop();
}

Test(hsm_keys, reseals_in_batches_and_only_what_opens)
{
    static unsigned char keys[ASK_MAX][HSM_KEY_LEN], blobs[ASK_MAX][HSM_BLOB_LEN];
    struct hsm_wrapping_key from, to;
    const unsigned n = 300;

    start(false, "", "");
    from = a.wk;
    cr_assert_eq(ask_wrapping_key(&a), KMS_OK);
    to = a.wk;
    to.generation = 2;
    ask_begin(&a, n);
    for (unsigned i = 0; i < n; i++)
        hsm_generate(a.h, &from, HSM_CONTENT_KEY, object, ask_key_cb, &a, 1, i);
    ask_wait(&a);
    memcpy(keys, a.key, sizeof(keys));
    memcpy(blobs, a.blob, sizeof(blobs));
    blobs[5][20] ^= 1;
    ask_begin(&a, n);
    for (unsigned i = 0; i < n; i++)
        hsm_reseal(a.h, &from, &to, i == 6 ? HSM_CHANNEL_KEY : HSM_CONTENT_KEY, object, blobs[i],
                   ask_key_cb, &a, 1, i);
    ask_wait(&a);
    memcpy(blobs, a.blob, sizeof(blobs));
    for (unsigned i = 0; i < n; i++)
        cr_assert_eq(a.err[i], i == 5 || i == 6 ? KMS_ERR_CRYPTO : KMS_OK, "item %u", i);
    for (unsigned i = 0; i < n; i += 50) {
        cr_assert_eq(opens(&to, blobs[i]), KMS_OK);
        cr_assert_arr_eq(a.key[0], keys[i], HSM_KEY_LEN, "the same key");
        cr_assert_eq(opens(&from, blobs[i]), KMS_ERR_CRYPTO, "of the new generation only");
    }
    to.root[0] ^= 1;
    cr_assert_eq(ask_reseal(&a, &to, &from, HSM_CONTENT_KEY, object, blobs[0]), KMS_ERR_NOT_FOUND);
    stop();
}

/* --- the end --- */

Test(hsm_keys, destroys_a_period_key_and_all_under_it)
{
    unsigned char blob[HSM_BLOB_LEN], other_blob[HSM_BLOB_LEN];
    struct hsm_wrapping_key other, wk;

    start(false, "sessions = 3", "");
    other = a.wk;
    generate(&other, "under the root");
    memcpy(other_blob, a.blob[0], sizeof(other_blob));
    cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK);
    cr_assert_eq(ask_wrapping_key_under(&a, period_id), KMS_OK);
    wk = a.wk;
    wk.org[0] = 7;
    generate(&wk, "under the period key");
    memcpy(blob, a.blob[0], sizeof(blob));
    ask_begin(&a, 200); /* every custodian holds it */
    for (unsigned i = 0; i < 200; i++)
        hsm_unwrap(a.h, &wk, HSM_CONTENT_KEY, object, blob, ask_key_cb, &a, 1, i);
    ask_wait(&a);
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_OK);
    cr_assert_eq(a.len[0], 0);
    for (unsigned i = 0; i < 20; i++)
        cr_assert_eq(opens(&wk, blob), KMS_ERR_NOT_FOUND);
    cr_assert_eq(ask_rewrap(&a, &wk, other.root), KMS_ERR_NOT_FOUND);
    cr_assert(is_gone(HSM_PERIOD, period_id));
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_OK, "again, as after a crash");
    cr_assert_eq(opens(&other, other_blob), KMS_OK);
    cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK, "a new one of that id");
    cr_assert_eq(opens(&wk, blob), KMS_ERR_CRYPTO, "is another key");
    revive();
    cr_assert_eq(opens(&wk, blob), KMS_ERR_CRYPTO);
    cr_assert_eq(opens(&other, other_blob), KMS_OK);
    cr_assert_eq(fixture_logged(&f, "trouble"), 0);
    stop();
}

Test(hsm_keys, rotates_the_root)
{
    unsigned char blob[HSM_BLOB_LEN], root[HSM_ID_LEN], old[HSM_ID_LEN];
    struct hsm_wrapping_key wk, was;
    pid_t pids[8];

    start(false, "", "");
    was = wk = a.wk;
    memcpy(old, wk.root, HSM_ID_LEN);
    generate(&wk, "under the old root");
    memcpy(blob, a.blob[0], sizeof(blob));
    cr_assert_eq(ask_key_destroy(&a, HSM_ROOT, old), KMS_ERR_STATE, "it is the only one");
    hsm_id_new(a.h, root);
    cr_assert_eq(ask_key_new(&a, HSM_ROOT, root), KMS_OK);
    cr_assert_eq(ask_rewrap(&a, &wk, root), KMS_OK);
    memcpy(wk.wrapped, a.bytes[0], HSM_WRAPPED_LEN);
    memcpy(wk.root, root, HSM_ID_LEN);
    cr_assert_eq(opens(&wk, blob), KMS_OK);
    cr_assert_eq(ask_key_destroy(&a, HSM_ROOT, old), KMS_OK);
    cr_assert_arr_eq(hsm_get_info(a.h)->root, root, HSM_ID_LEN, "told before the answer");
    cr_assert(hsm_ready(a.h));
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(opens(&wk, blob), KMS_OK);
        cr_assert_eq(opens(&was, blob), KMS_ERR_NOT_FOUND);
        cr_assert_eq(ask_wrapping_key(&a), KMS_OK);
        cr_assert_arr_eq(a.wk.root, root, HSM_ID_LEN, "new ones go under the new root");
    }
    cr_assert_eq(fixture_custodians(&f, pids, 8), 2);
    cr_assert_eq(fixture_logged(&f, "trouble"), 0, "the canary moved as well");
    cr_assert_eq(ask_key_destroy(&a, HSM_ROOT, root), KMS_ERR_STATE, "it is the only one");
    revive();
    cr_assert_eq(opens(&wk, blob), KMS_OK);
    cr_assert_eq(opens(&was, blob), KMS_ERR_NOT_FOUND);
    stop();
}

Test(hsm_keys, does_not_destroy_the_root_that_the_configuration_names)
{
    char setting[64] = "root = ";
    unsigned char root[HSM_ID_LEN], old[HSM_ID_LEN];

    start(false, "", "");
    memcpy(old, a.wk.root, HSM_ID_LEN);
    hsm_id_new(a.h, root);
    cr_assert_eq(ask_key_new(&a, HSM_ROOT, root), KMS_OK);
    for (int i = 0; i < HSM_ID_LEN; i++)
        snprintf(setting + 7 + 2 * i, 3, "%02x", root[i]);
    fixture_configure(&f, false, setting);
    revive();
    cr_assert_eq(ask_key_destroy(&a, HSM_ROOT, root), KMS_ERR_STATE);
    cr_assert_eq(ask_key_destroy(&a, HSM_ROOT, old), KMS_OK);
    stop();
}

Test(hsm_keys, destroys_import_pairs_and_main_keys)
{
    unsigned char key[HSM_KEY_LEN];
    struct sealing s;

    start(false, "", "");
    make_pair(&s);
    RAND_bytes(key, sizeof(key));
    seal_right(&s, key, 32);
    cr_assert_eq(import(main_id, false, &s), KMS_OK);
    cr_assert_eq(ask_wrapping_key_under(&a, main_id), KMS_OK);
    generate(&a.wk, "under the main key");
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, main_id), KMS_OK, "no period key has this id");
    cr_assert_eq(opens(&a.wk, a.blob[0]), KMS_OK, "so nothing happened");
    cr_assert_eq(ask_key_destroy(&a, HSM_MAIN, main_id), KMS_OK);
    cr_assert_eq(opens(&a.wk, a.blob[0]), KMS_ERR_NOT_FOUND);
    cr_assert_eq(ask_key_destroy(&a, HSM_IMPORT, pair_id), KMS_OK);
    cr_assert(is_gone(HSM_IMPORT, pair_id));
    cr_assert_eq(import(main_id, false, &s), KMS_ERR_NOT_FOUND, "nobody opens it any more");
    stop();
}

Test(hsm_keys, does_not_call_gone_what_is_not_or_what_cannot_be_seen)
{
    struct hsm_wrapping_key wk;
    unsigned char blob[HSM_BLOB_LEN];

    start(true, "", "");
    cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK);
    cr_assert_eq(ask_wrapping_key_under(&a, period_id), KMS_OK);
    wk = a.wk;
    generate(&wk, "under the period key");
    memcpy(blob, a.blob[0], sizeof(blob));
    fixture_control(&f, "ghosts");
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_ERR_LIMIT, "a token that lies");
    fixture_control(&f, "C_DestroyObject return 1b");
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_ERR_LIMIT, "one that refuses");
    fixture_control(&f, "absent");
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_ERR_UNAVAILABLE,
                 "one that is away");
    cr_assert_eq(opens(&wk, blob), KMS_ERR_UNAVAILABLE, "and not NOT_FOUND");
    cr_assert(ask_ready(&a, false, 15000));
    fixture_control(&f, "");
    cr_assert(ask_ready(&a, true, 15000));
    cr_assert_eq(opens(&wk, blob), KMS_OK, "nothing was lost");
    cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_OK);
    cr_assert_eq(opens(&wk, blob), KMS_ERR_NOT_FOUND);
    stop();
}

/* --- what does not work --- */

/* Puts an object under this id that is none of hsmd's making.  In a child: the module must leave
 * nothing in this process. */
static void
put_object(const unsigned char id[HSM_ID_LEN], bool kept, bool wraps)
{
    CK_BBOOL yes = CK_TRUE, sensitive = kept, extractable = !kept, may_wrap = wraps;
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    unsigned char copy[HSM_ID_LEN], value[HSM_KEY_LEN] = {3}, pin[] = FIXTURE_PIN;
    char label[] = "kms-period";
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)},
        {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &yes, sizeof(yes)},
        {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &sensitive, sizeof(sensitive)},
        {CKA_EXTRACTABLE, &extractable, sizeof(extractable)},
        {CKA_WRAP, &may_wrap, sizeof(may_wrap)},
        {CKA_UNWRAP, &may_wrap, sizeof(may_wrap)},
        {CKA_LABEL, label, strlen(label)},
        {CKA_ID, copy, sizeof(copy)},
        {CKA_VALUE, value, sizeof(value)},
    };
    CK_FUNCTION_LIST *module;
    CK_C_GetFunctionList get;
    CK_SLOT_ID slots[8];
    CK_ULONG n = 8;
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE key;
    int status;
    pid_t pid;

    memcpy(copy, id, sizeof(copy));
    if ((pid = fork()) == 0) {
        void *library = dlopen(getenv("P11SHIM_MODULE"), RTLD_NOW | RTLD_LOCAL);

        if (library == NULL)
            _exit(1);
        *(void **)&get = dlsym(library, "C_GetFunctionList");
        if (get == NULL || get(&module) != CKR_OK || module->C_Initialize(NULL) != CKR_OK ||
            module->C_GetSlotList(CK_TRUE, slots, &n) != CKR_OK ||
            module->C_OpenSession(slots[0], CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL,
                                  &session) != CKR_OK ||
            module->C_Login(session, CKU_USER, pin, sizeof(pin) - 1) != CKR_OK ||
            module->C_CreateObject(session, template, sizeof(template) / sizeof(template[0]),
                                   &key) != CKR_OK)
            _exit(1);
        _exit(0);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0, "the object is there");
}

Test(hsm_keys, does_not_use_what_a_crash_or_somebody_else_left)
{
    struct {
        const char *name;
        int objects;
        bool kept, wraps;
        int want;
    } rows[] = {
        {"it does not work", 1, true, false, KMS_ERR_KEY},
        {"it can leave the token", 1, false, true, KMS_ERR_KEY},
        {"there are two", 2, true, true, KMS_ERR_STATE},
    };

    start(false, "", "");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (int k = 0; k < rows[i].objects; k++)
            put_object(period_id, rows[i].kept, rows[i].wraps);
        cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), rows[i].want, "%s", rows[i].name);
        cr_assert_neq(ask_wrapping_key_under(&a, period_id), KMS_OK, "%s", rows[i].name);
        cr_assert(is_listed(HSM_PERIOD, period_id, false), "%s", rows[i].name);
        cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_OK, "%s", rows[i].name);
        cr_assert(is_gone(HSM_PERIOD, period_id), "%s", rows[i].name);
        cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK, "%s", rows[i].name);
        cr_assert_eq(ask_wrapping_key_under(&a, period_id), KMS_OK, "%s", rows[i].name);
        generate(&a.wk, rows[i].name);
        cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, period_id), KMS_OK, "%s", rows[i].name);
    }
    stop();
}

/* --- forgetting --- */

ParameterizedTestParameters(hsm_keys, forgets_in_every_custodian_before_it_says_so)
{
    static struct way rows[] = {
        {"in the token", 1, "sessions = 3"},
        {"in the process", 1, "sessions = 3\ncustody = process"},
    };

    return cr_make_param_array(struct way, rows, 2);
}

ParameterizedTest(struct way *w, hsm_keys, forgets_in_every_custodian_before_it_says_so)
{
    struct hsm_wrapping_key wk, other;
    unsigned char blob[HSM_BLOB_LEN], other_blob[HSM_BLOB_LEN];
    unsigned before;

    start(true, w->control, "");
    other = a.wk;
    other.org[0] = 9;
    generate(&other, w->name);
    memcpy(other_blob, a.blob[0], sizeof(other_blob));
    cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK);
    cr_assert_eq(ask_wrapping_key_under(&a, period_id), KMS_OK);
    wk = a.wk;
    wk.org[0] = 7;
    generate(&wk, w->name);
    memcpy(blob, a.blob[0], sizeof(blob));
    fixture_control(&f, "C_UnwrapKey watch");
    for (int round = 0; round < 3; round++) {
        const unsigned char *id = round == 0 ? period_id : round == 1 ? wk.org : other.org;

        for (int i = 0; i < 2; i++) { /* the second time nobody has to fetch anything */
            before = fixture_calls(&f, "C_UnwrapKey");
            ask_begin(&a, 300);
            for (unsigned k = 0; k < 300; k++)
                hsm_unwrap(a.h, k % 2 ? &wk : &other, HSM_CONTENT_KEY, object,
                           k % 2 ? blob : other_blob, ask_key_cb, &a, 1, k);
            ask_wait(&a);
            for (unsigned k = 0; k < 300; k++)
                cr_assert_eq(a.err[k], KMS_OK);
        }
        cr_assert_leq(fixture_calls(&f, "C_UnwrapKey") - before, 3, "they are held");
        cr_assert_eq(ask_forget(&a, id), KMS_OK);
        before = fixture_calls(&f, "C_UnwrapKey");
        for (unsigned k = 0; k < 12; k++)
            cr_assert_eq(round == 2 ? opens(&other, other_blob) : opens(&wk, blob), KMS_OK);
        cr_assert_geq(fixture_calls(&f, "C_UnwrapKey") - before, 1, "and not any more");
    }
    stop();
}

Test(hsm_keys, forgets_even_where_a_custodian_hangs)
{
    long start_at;

    start(true, "call_timeout = 1\nsessions = 2", "");
    generate(&a.wk, "before");
    fixture_control(&f, "C_Decrypt hang-once");
    hsm_unwrap(a.h, &a.wk, HSM_CONTENT_KEY, object, a.blob[0], ask_key_cb, &a, 1, 1);
    ask_idle(&a, 100);
    start_at = fixture_now();
    a.wanted = 2;
    a.got = 0;
    cr_assert_eq(hsm_forget(a.h, a.wk.root, ask_bytes_cb, &a, 1), KMS_OK);
    ask_wait(&a);
    cr_assert_eq(a.err[0], KMS_OK);
    cr_assert_eq(a.err[1], KMS_OK, "and what hung was given to another");
    cr_assert_leq(fixture_now() - start_at, 4000);
    stop();
}

/* --- kills at every step --- */

enum crash_op { CRASH_NEW, CRASH_IMPORT, CRASH_PAIR, CRASH_REWRAP, CRASH_RESEAL, CRASH_DESTROY };

struct crash {
    char name[16];
    int op;
    int all; /* hsmd goes too: its caller has to ask again */
    int stride;
};

ParameterizedTestParameters(hsm_keys, survives_a_kill_between_any_two_calls)
{
    static struct crash rows[] = {
        {"new", CRASH_NEW, 0, 1},         {"new", CRASH_NEW, 1, 3},
        {"import", CRASH_IMPORT, 0, 1},   {"import", CRASH_IMPORT, 1, 5},
        {"pair", CRASH_PAIR, 0, 1},       {"pair", CRASH_PAIR, 1, 3},
        {"rewrap", CRASH_REWRAP, 0, 1},   {"rewrap", CRASH_REWRAP, 1, 3},
        {"reseal", CRASH_RESEAL, 0, 1},   {"reseal", CRASH_RESEAL, 1, 3},
        {"destroy", CRASH_DESTROY, 0, 1}, {"destroy", CRASH_DESTROY, 1, 3},
    };

    return cr_make_param_array(struct crash, rows, sizeof(rows) / sizeof(rows[0]));
}

struct victim {
    struct hsm_wrapping_key under_root, under_period, to;
    unsigned char root_blob[HSM_BLOB_LEN], period_blob[HSM_BLOB_LEN];
    struct sealing s;
};

static int
crash_ask(const struct crash *c, const struct victim *v)
{
    switch (c->op) {
    case CRASH_NEW:
        return ask_key_new(&a, HSM_PERIOD, main_id);
    case CRASH_IMPORT:
        return import(main_id, false, &v->s);
    case CRASH_PAIR:
        return ask_import_pair(&a, main_id);
    case CRASH_REWRAP:
        return ask_rewrap(&a, &v->under_root, period_id);
    case CRASH_RESEAL:
        return ask_reseal(&a, &v->under_root, &v->to, HSM_CONTENT_KEY, object, v->root_blob);
    default:
        return ask_key_destroy(&a, HSM_PERIOD, period_id);
    }
}

/* What must be true now that it was answered. */
static void
crash_check(const struct crash *c, struct victim *v, const char *when)
{
    struct hsm_wrapping_key wk = v->under_root;

    switch (c->op) {
    case CRASH_NEW:
        cr_assert(is_listed(HSM_PERIOD, main_id, true), "%s", when);
        cr_assert_eq(ask_wrapping_key_under(&a, main_id), KMS_OK, "%s", when);
        break;
    case CRASH_IMPORT:
        cr_assert(is_listed(HSM_MAIN, main_id, true), "%s", when);
        cr_assert_eq(ask_wrapping_key_under(&a, main_id), KMS_OK, "%s", when);
        break;
    case CRASH_PAIR:
        cr_assert(is_listed(HSM_IMPORT, main_id, true), "%s", when);
        break;
    case CRASH_REWRAP:
        memcpy(wk.wrapped, a.bytes[0], HSM_WRAPPED_LEN);
        memcpy(wk.root, period_id, HSM_ID_LEN);
        cr_assert_eq(opens(&wk, v->root_blob), KMS_OK, "%s", when);
        break;
    case CRASH_RESEAL:
        cr_assert_eq(opens(&v->to, a.blob[0]), KMS_OK, "%s", when);
        break;
    default:
        cr_assert_eq(opens(&v->under_period, v->period_blob), KMS_ERR_NOT_FOUND, "%s", when);
        cr_assert(is_gone(HSM_PERIOD, period_id), "%s", when);
        break;
    }
    cr_assert_eq(opens(&v->under_root, v->root_blob), KMS_OK, "%s: nothing else is lost", when);
}

/* As it was before. */
static void
crash_undo(const struct crash *c, struct victim *v)
{
    if (c->op == CRASH_NEW)
        cr_assert_eq(ask_key_destroy(&a, HSM_PERIOD, main_id), KMS_OK);
    if (c->op == CRASH_IMPORT)
        cr_assert_eq(ask_key_destroy(&a, HSM_MAIN, main_id), KMS_OK);
    if (c->op == CRASH_PAIR)
        cr_assert_eq(ask_key_destroy(&a, HSM_IMPORT, main_id), KMS_OK);
    if (c->op == CRASH_DESTROY || c->op == CRASH_REWRAP) {
        cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK);
        cr_assert_eq(ask_wrapping_key_under(&a, period_id), KMS_OK);
        v->under_period = a.wk;
        generate(&v->under_period, "the next one");
        memcpy(v->period_blob, a.blob[0], HSM_BLOB_LEN);
    }
}

ParameterizedTest(struct crash *c, hsm_keys, survives_a_kill_between_any_two_calls)
{
    unsigned char key[HSM_KEY_LEN];
    static struct victim v;
    char rule[32], when[80], once[160];
    bool hit = true;
    int n, err;

    start(true, "sessions = 1", "");
    v.under_root = a.wk;
    generate(&v.under_root, "root");
    memcpy(v.root_blob, a.blob[0], HSM_BLOB_LEN);
    cr_assert_eq(ask_wrapping_key(&a), KMS_OK);
    v.to = a.wk;
    v.to.generation = 2;
    make_pair(&v.s);
    RAND_bytes(key, sizeof(key));
    seal_right(&v.s, key, sizeof(key));
    cr_assert_eq(ask_key_new(&a, HSM_PERIOD, period_id), KMS_OK);
    crash_undo(&(struct crash){.op = CRASH_DESTROY}, &v);
    snprintf(once, sizeof(once), "%s.once", f.control);
    for (n = 1; hit; n += c->stride) {
        snprintf(rule, sizeof(rule), "any %s %d", c->all ? "die-all" : "die", n);
        snprintf(when, sizeof(when), "%s, %s", c->name, rule);
        fixture_control(&f, rule);
        err = crash_ask(c, &v);
        hit = access(once, F_OK) == 0;
        fixture_control(&f, "");
        cr_assert(err == KMS_OK || err == KMS_ERR_UNAVAILABLE, "%s: %d", when, err);
        if (hit && c->all) {
            cr_assert_eq(err, KMS_ERR_UNAVAILABLE, "%s", when);
            revive();
        }
        /* Not answered: whatever came of it, asking again is right. */
        for (int tries = 0; err != KMS_OK && tries < 20; tries++) {
            cr_assert(ask_ready(&a, true, 15000));
            if ((err = crash_ask(c, &v)) != KMS_OK)
                ask_idle(&a, 100);
        }
        cr_assert_eq(err, KMS_OK, "%s: %d", when, err);
        crash_check(c, &v, when);
        crash_undo(c, &v);
    }
    cr_assert_gt(n, 4, "%s: there were steps", c->name);
    stop();
}

/* SoftHSM writes the token's own file at each login: killed over that, it loses the whole token. */
static void
all_logged_in(void)
{
    long until = fixture_now() + 10000;
    int wanted, working;

    do {
        cr_assert_eq(ask_status(&a), KMS_OK);
        cr_assert_eq(sscanf(strstr(a.text, "\"wanted\""), "\"wanted\": %d, \"working\": %d",
                            &wanted, &working),
                     2);
        if (working < wanted)
            ask_idle(&a, 10);
    } while (working < wanted && fixture_now() < until);
    cr_assert_eq(working, wanted);
}

/* Processes die in the middle of a call, too, and of a file. */
Test(hsm_keys, survives_kills_at_any_moment)
{
    unsigned char ids[64][HSM_ID_LEN] = {{0}}, key[HSM_KEY_LEN];
    struct hsm_wrapping_key wks[64];
    unsigned made = 0, kills = 0;
    struct sealing s;
    pid_t pids[8];

    srandom(4);
    start(false, "", "");
    make_pair(&s);
    RAND_bytes(key, sizeof(key));
    seal_right(&s, key, sizeof(key));
    for (unsigned i = 0; i < 40; i++) {
        bool imported = i % 2 == 1;
        int err = KMS_ERR_UNAVAILABLE;

        all_logged_in();
        RAND_bytes(ids[made], HSM_ID_LEN);
        a.wanted = 1;
        a.got = 0;
        if (imported)
            hsm_import(a.h, ids[made], pair_id, false, s.ek, s.len, ask_bytes_cb, &a, 1);
        else
            hsm_key_new(a.h, HSM_PERIOD, ids[made], ask_bytes_cb, &a, 1);
        event_base_loop(a.base, EVLOOP_NONBLOCK);
        fixture_sleep((int)(random() % 40));
        if (i % 5 == 4) {
            fixture_stop(&f, SIGKILL);
            kills++;
        } else {
            unsigned n = fixture_custodians(&f, pids, 8);

            for (unsigned k = 0; k < n; k++, kills++)
                kill(pids[k], SIGKILL);
        }
        ask_wait(&a);
        err = a.err[0];
        if (i % 5 == 4)
            revive();
        for (int tries = 0; err != KMS_OK && tries < 30; tries++) {
            cr_assert(ask_ready(&a, true, 15000));
            if (err == KMS_ERR_KEY) /* what is there was left behind, and never answered */
                cr_assert_eq(ask_key_destroy(&a, imported ? HSM_MAIN : HSM_PERIOD, ids[made]),
                             KMS_OK);
            err = imported ? import(ids[made], false, &s) : ask_key_new(&a, HSM_PERIOD, ids[made]);
            if (err != KMS_OK)
                ask_idle(&a, 100);
        }
        cr_assert_eq(err, KMS_OK, "round %u: %d", i, err);
        /* What is handed to two that are dead already is refused. */
        for (int tries = 0; tries < 20; tries++) {
            if ((err = ask_wrapping_key_under(&a, ids[made])) != KMS_ERR_UNAVAILABLE)
                break;
            ask_idle(&a, 50);
        }
        cr_assert_eq(err, KMS_OK, "round %u: %d", i, err);
        wks[made++] = a.wk;
    }
    cr_assert_geq(kills, 40);
    revive();
    for (unsigned i = 0; i < made; i++)
        generate(&wks[i], "what was answered lasts");
    cr_assert_eq(ask_list(&a, HSM_PERIOD), KMS_OK);
    cr_assert_eq(a.listed_n, 20, "and nothing is there twice");
    cr_assert_eq(ask_list(&a, HSM_MAIN), KMS_OK);
    cr_assert_eq(a.listed_n, 20);
    for (unsigned i = 0; i < a.listed_n; i++)
        cr_assert(a.listed[i].fit);
    for (unsigned i = 0; i < made; i++) {
        enum hsm_kind kind = i % 2 == 1 ? HSM_MAIN : HSM_PERIOD;

        cr_assert_eq(ask_key_destroy(&a, kind, ids[i]), KMS_OK);
    }
    cr_assert_eq(ask_list(&a, HSM_MAIN), KMS_OK);
    cr_assert_eq(a.listed_n, 0);
    stop();
}

/* --- an hsmd from before there was all this --- */

Test(hsm_keys, asks_an_older_hsmd_nothing_that_it_does_not_know)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct frame_hello hello = {.version = FRAME_VERSION, .ready = true};
    size_t len = FRAME_HEAD_LEN + frame_item_size(FRAME_HELLO, FRAME_ANSWER_WAY);
    struct frame_head head = {.len = (uint32_t)len, .type = FRAME_HELLO, .count = 1};
    unsigned char b[2048];
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;

    snprintf(f.socket, sizeof(f.socket), "/tmp/test_hsm_keys.%d", (int)getpid());
    strcpy(address.sun_path, f.socket);
    cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(listener, 1), 0);
    ask_init_as(&a, &f, HSM_USE, DEADLINE);
    ask_idle(&a, 50);
    cr_assert_geq(fd = accept(listener, NULL, NULL), 0);
    frame_head_put(&head, FRAME_ANSWER_WAY, b);
    frame_hello_put(&hello, b + FRAME_HEAD_LEN);
    cr_assert_eq(send(fd, b, len, 0), (ssize_t)len);
    cr_assert(ask_ready(&a, true, 5000));
    cr_assert_eq(ask_forget(&a, object), KMS_ERR_PROTOCOL);
    cr_assert_eq(recv(fd, b, sizeof(b), MSG_DONTWAIT), -1, "nothing was sent");
    cr_assert(hsm_ready(a.h), "and the connection stays");
    ask_release(&a);
    close(fd);
    close(listener);
    unlink(f.socket);
}
