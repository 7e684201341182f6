/*
 * test_vectors_cjose.c - cjose as an oracle, both ways: what we seal and sign it opens and
 * verifies, and the other way round.
 *
 * This program does not call kms_json_init: cjose gives back what jansson allocated with plain
 * free.
 */
#include <cjose/cjose.h>
#include <openssl/ec.h>
#include <openssl/rsa.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))
#define KID     "kms://kms.example.org/ecdhe/5e1aa1d2-8a1b-4c8a-9c1a-6b9f7c3c0001"

/* One length of a block, one less, one more, and a few that a message has. */
static const size_t lengths[] = {1, 2, 3, 15, 16, 17, 31, 32, 33, 255, 600, 4096, 70000};

static unsigned char text[70000];

static void
setup(void)
{
    size_t i;

    for (i = 0; i < sizeof(text); i++)
        text[i] = (unsigned char)(i * 7 + i / 256);
}

TestSuite(cjose, .init = setup);

/* cjose's own: it forgets a byte at each ECDH-ES message.  LeakSanitizer asks for this by its name.
 */
const char *__lsan_default_suppressions(void);
const char *
__lsan_default_suppressions(void)
{
    return "leak:libcjose\n";
}

static cjose_header_t *
header(const char *alg, const char *enc)
{
    cjose_header_t *h = cjose_header_new(NULL);

    cr_assert_not_null(h);
    cr_assert(cjose_header_set(h, "alg", alg, NULL));
    if (enc != NULL)
        cr_assert(cjose_header_set(h, "enc", enc, NULL));
    cr_assert(cjose_header_set(h, "kid", KID, NULL));
    return h;
}

static cjose_jwk_t *
import_jwk(const char *json)
{
    cjose_err err = {0};
    cjose_jwk_t *jwk = cjose_jwk_import(json, strlen(json), &err);

    cr_assert_not_null(jwk, "%s", err.message);
    return jwk;
}

/* An octet key for both. */
static cjose_jwk_t *
oct_key(unsigned char key[32])
{
    char json[128], k[B64URL_LEN(32) + 1] = "";
    size_t i;

    for (i = 0; i < 32; i++)
        key[i] = (unsigned char)(i * 5 + 1);
    b64url_encode(k, key, 32);
    snprintf(json, sizeof(json), "{\"kty\":\"oct\",\"k\":\"%s\"}", k);
    return import_jwk(json);
}

/* An RSA or EC key pair for both: its private JWK is written here, cjose reads it. */
static cjose_jwk_t *
pair(const char *json, EVP_PKEY **priv)
{
    json_t *tree = json_loads(json, 0, NULL);

    cr_assert_not_null(tree);
    *priv = private_from_jwk(tree);
    json_decref(tree);
    return import_jwk(json);
}

static cjose_jwk_t *
rsa_pair(EVP_PKEY **priv)
{
    json_t *data = data_load("jwe_rsa.json");
    char *json = json_dumps(json_object_get(data, "key"), 0);
    cjose_jwk_t *jwk = pair(json, priv);

    free(json);
    json_decref(data);
    return jwk;
}

/* RFC 7515 appendix A.3. */
static cjose_jwk_t *
ec_pair(EVP_PKEY **priv)
{
    return pair("{\"kty\":\"EC\",\"crv\":\"P-256\","
                "\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\","
                "\"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\","
                "\"d\":\"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI\"}",
                priv);
}

static void
cjose_opens(const struct buf *compact, const cjose_jwk_t *jwk, const void *want, size_t len)
{
    cjose_err err = {0};
    cjose_jwe_t *jwe;
    uint8_t *plain;
    size_t plain_len;

    jwe = cjose_jwe_import(buf_str(compact), compact->len, &err);
    cr_assert_not_null(jwe, "length %zu: %s", len, err.message);
    plain = cjose_jwe_decrypt(jwe, jwk, &plain_len, &err);
    cr_assert_not_null(plain, "length %zu: %s", len, err.message);
    cr_expect_eq(plain_len, len);
    cr_expect_eq(memcmp(plain, want, len), 0);
    free(plain);
    cjose_jwe_release(jwe);
}

Test(cjose, opens_what_we_seal_under_a_channel_key)
{
    unsigned char key[32];
    cjose_jwk_t *jwk = oct_key(key);
    struct buf compact = BUF_INIT;
    size_t i;

    for (i = 0; i < N(lengths); i++) {
        buf_reset(&compact);
        cr_assert_eq(jwe_seal_dir(&compact, KID, key, text, lengths[i]), KMS_OK);
        cjose_opens(&compact, jwk, text, lengths[i]);
    }
    buf_release(&compact);
    cjose_jwk_release(jwk);
}

Test(cjose, seals_under_a_channel_key_what_we_open)
{
    unsigned char key[32];
    cjose_jwk_t *jwk = oct_key(key);
    struct buf plain = BUF_INIT;
    cjose_header_t *h = header("dir", "A256GCM");
    cjose_jwe_t *theirs;
    struct jwe jwe;
    char *compact;
    size_t i;

    for (i = 0; i < N(lengths); i++) {
        theirs = cjose_jwe_encrypt(jwk, h, text, lengths[i], NULL);
        cr_assert_not_null(theirs);
        compact = cjose_jwe_export(theirs, NULL);
        cr_assert_eq(jwe_parse(&jwe, compact, strlen(compact)), KMS_OK);
        cr_expect_str_eq(jwe.kid, KID);
        buf_reset(&plain);
        cr_assert_eq(jwe_open(&jwe, key, &plain), KMS_OK);
        cr_expect_eq(plain.len, lengths[i]);
        cr_expect_eq(memcmp(plain.data, text, lengths[i]), 0);
        free(compact);
        cjose_jwe_release(theirs);
    }
    buf_release(&plain);
    cjose_header_release(h);
    cjose_jwk_release(jwk);
}

Test(cjose, opens_every_message_of_ours_and_of_node_jose)
{
    json_t *rows = data_load("jwe_dir.json"), *row;
    struct buf compact = BUF_INIT;
    char json[128];
    cjose_jwk_t *jwk;
    size_t i;

    json_array_foreach(rows, i, row)
    {
        snprintf(json, sizeof(json), "{\"kty\":\"oct\",\"k\":\"%s\"}", text_of(row, "k"));
        jwk = import_jwk(json);
        buf_reset(&compact);
        cr_assert_eq(buf_puts(&compact, text_of(row, "compact")), KMS_OK);
        cjose_opens(&compact, jwk, text_of(row, "plain"), strlen(text_of(row, "plain")));
        cjose_jwk_release(jwk);
    }
    buf_release(&compact);
    json_decref(rows);
}

/* cjose has RSA-OAEP, with SHA-1, and no RSA-OAEP-256. */
Test(cjose, rsa_oaep_goes_both_ways)
{
    EVP_PKEY *priv;
    cjose_jwk_t *jwk = rsa_pair(&priv);
    cjose_header_t *h = header("RSA-OAEP", "A256GCM");
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    cjose_jwe_t *theirs;
    struct jwe jwe;
    char *their_text;
    size_t i;

    for (i = 0; i < N(lengths); i++) {
        buf_reset(&compact);
        buf_reset(&plain);
        cr_assert_eq(jwe_seal_rsa(&compact, KID, JWE_RSA_OAEP, priv, text, lengths[i]), KMS_OK);
        cjose_opens(&compact, jwk, text, lengths[i]);

        theirs = cjose_jwe_encrypt(jwk, h, text, lengths[i], NULL);
        cr_assert_not_null(theirs);
        their_text = cjose_jwe_export(theirs, NULL);
        cr_assert_eq(jwe_parse(&jwe, their_text, strlen(their_text)), KMS_OK);
        cr_assert_eq(jwe_open_rsa(&jwe, priv, &plain), KMS_OK);
        cr_expect_eq(plain.len, lengths[i]);
        cr_expect_eq(memcmp(plain.data, text, lengths[i]), 0);
        free(their_text);
        cjose_jwe_release(theirs);
    }
    buf_release(&compact);
    buf_release(&plain);
    cjose_header_release(h);
    cjose_jwk_release(jwk);
    EVP_PKEY_free(priv);
}

/* ECDH-ES on P-256, as archivers get it. */
Test(cjose, ecdh_es_goes_both_ways)
{
    EVP_PKEY *priv;
    cjose_jwk_t *jwk = ec_pair(&priv);
    cjose_header_t *h = header("ECDH-ES", "A256GCM");
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    cjose_err err = {0}; /* it writes to it even where nothing fails */
    cjose_jwe_t *theirs;
    char *their_text;
    size_t i;

    for (i = 0; i < N(lengths); i++) {
        buf_reset(&compact);
        buf_reset(&plain);
        cr_assert_eq(jwe_seal_to(&compact, priv, KID, "jwk+json", text, lengths[i]), KMS_OK);
        cjose_opens(&compact, jwk, text, lengths[i]);

        theirs = cjose_jwe_encrypt(jwk, h, text, lengths[i], &err);
        cr_assert_not_null(theirs, "%s", err.message);
        their_text = cjose_jwe_export(theirs, NULL);
        cr_assert_eq(jwe_open_to(their_text, strlen(their_text), priv, &plain), KMS_OK, "%s",
                     their_text);
        cr_expect_eq(plain.len, lengths[i]);
        cr_expect_eq(memcmp(plain.data, text, lengths[i]), 0);
        free(their_text);
        cjose_jwe_release(theirs);
    }
    buf_release(&compact);
    buf_release(&plain);
    cjose_header_release(h);
    cjose_jwk_release(jwk);
    EVP_PKEY_free(priv);
}

static void
signatures_both_ways(enum jws_alg alg, const char *name, cjose_jwk_t *jwk, EVP_PKEY *key)
{
    cjose_header_t *h = header(name, NULL);
    struct buf compact = BUF_INIT, payload = BUF_INIT;
    cjose_err err = {0};
    cjose_jws_t *theirs;
    const char *their_text;
    struct jws jws;
    size_t i;

    for (i = 0; i < N(lengths); i++) {
        buf_reset(&compact);
        buf_reset(&payload);
        cr_assert_eq(jws_sign(&compact, alg, KID, NULL, key, text, lengths[i]), KMS_OK);
        theirs = cjose_jws_import(buf_str(&compact), compact.len, &err);
        cr_assert_not_null(theirs, "%s: %s", name, err.message);
        cr_expect(cjose_jws_verify(theirs, jwk, &err), "%s: %s", name, err.message);
        cjose_jws_release(theirs);

        theirs = cjose_jws_sign(jwk, h, text, lengths[i], &err);
        cr_assert_not_null(theirs, "%s: %s", name, err.message);
        cr_assert(cjose_jws_export(theirs, &their_text, &err));
        cr_assert_eq(jws_parse(&jws, their_text, strlen(their_text)), KMS_OK);
        cr_expect_eq(jws_verify(&jws, key), KMS_OK, "%s", name);
        cr_expect_eq(jws_payload(&jws, &payload), KMS_OK);
        cr_expect_eq(payload.len, lengths[i]);
        cr_expect_eq(memcmp(payload.data, text, lengths[i]), 0);
        cjose_jws_release(theirs);
    }
    buf_release(&compact);
    buf_release(&payload);
    cjose_header_release(h);
    cjose_jwk_release(jwk);
    EVP_PKEY_free(key);
}

Test(cjose, ps256_goes_both_ways)
{
    EVP_PKEY *key;
    cjose_jwk_t *jwk = rsa_pair(&key);

    signatures_both_ways(JWS_PS256, "PS256", jwk, key);
}

Test(cjose, rs256_goes_both_ways)
{
    EVP_PKEY *key;
    cjose_jwk_t *jwk = rsa_pair(&key);

    signatures_both_ways(JWS_RS256, "RS256", jwk, key);
}

Test(cjose, es256_goes_both_ways)
{
    EVP_PKEY *key;
    cjose_jwk_t *jwk = ec_pair(&key);

    signatures_both_ways(JWS_ES256, "ES256", jwk, key);
}
