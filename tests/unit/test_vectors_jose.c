/*
 * test_vectors_jose.c - whole messages and keys of others: Wycheproof's JOSE files and RFC 7520.
 * Most use algorithms that this server does not have: for those the right result is to refuse.
 */
#include <openssl/err.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "proto/jwt.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

static void
setup(void)
{
    kms_json_init();
    cr_assert_neq(secret_heap_init(65536), KMS_ERR_NOMEM);
}

TestSuite(vectors, .init = setup);

/* The member of a compact message's header, read leniently: only to know what a vector is about. */
static void
header_says(char *out, size_t max, const char *compact, const char *name)
{
    struct buf json = BUF_INIT;
    json_t *v = NULL;

    *out = '\0';
    if (b64url_get(&json, compact, strcspn(compact, ".")) == KMS_OK &&
        (v = json_loadb(buf_str(&json), json.len, 0, NULL)) != NULL &&
        json_is_string(json_object_get(v, name)))
        snprintf(out, max, "%s", json_string_value(json_object_get(v, name)));
    json_decref(v);
    buf_release(&json);
}

/* A group's key or keys as a set, as a verifier gets it. */
static int
set_of(struct jwks **set, const json_t *group)
{
    const json_t *have = json_object_get(group, "public");
    struct buf text = BUF_INIT;
    json_t *wrapped = NULL;
    int r;

    if (have == NULL)
        have = json_object_get(group, "private");
    if (json_object_get(have, "keys") == NULL)
        have = wrapped = json_pack("{s[O]}", "keys", have);
    cr_assert_eq(kms_json_put(&text, have), KMS_OK);
    r = jwks_parse(set, buf_str(&text), text.len);
    json_decref(wrapped);
    buf_release(&text);
    return r;
}

static bool
ours(const char *alg)
{
    return strcmp(alg, "PS256") == 0 || strcmp(alg, "RS256") == 0 || strcmp(alg, "ES256") == 0 ||
           strcmp(alg, "EdDSA") == 0;
}

/* Two of a JWS and its key: taken if it is valid and of our algorithms, refused in every other
 * case. */
static void
jws_file(const char *name, size_t want_taken, size_t want_refused)
{
    json_t *file = vectors_load(name), *group, *test;
    size_t g, t, taken = 0, refused = 0;
    const char *compact;
    struct jwks *set;
    struct jws jws;
    char alg[64];
    int r;

    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            int id = (int)json_integer_value(json_object_get(test, "tcId"));

            if (!json_is_string(json_object_get(test, "jws")))
                continue; /* JSON serialisation, or a JWE */
            compact = text_of(test, "jws");
            header_says(alg, sizeof(alg), compact, "alg");
            if ((r = set_of(&set, group)) == KMS_OK &&
                (r = jws_parse(&jws, compact, strlen(compact))) == KMS_OK)
                r = jwks_verify(set, &jws);
            if (strcmp(text_of(test, "result"), "valid") == 0 && ours(alg)) {
                cr_expect_eq(r, KMS_OK, "%s %d: %s", name, id, kms_strerror(r));
                taken++;
            } else {
                cr_expect_neq(r, KMS_OK, "%s %d: %s", name, id, text_of(test, "comment"));
                refused++;
            }
            jwks_free(set);
        }
    }
    cr_expect_geq(taken, want_taken, "%s: %zu taken", name, taken);
    cr_expect_geq(refused, want_refused, "%s: %zu refused", name, refused);
    json_decref(file);
}

/* Cases 357, 367 and 370 of the signature file are one message, called valid and invalid: it is
 * HS256, and refused. */
Test(vectors, wycheproof_jws_are_taken_or_refused)
{
    NEED_VECTORS();
    jws_file("wycheproof/json_web_signature_test.json", 15, 360);
    jws_file("wycheproof/json_web_key_test.json", 1, 24);
    jws_file("wycheproof/json_web_crypto_test.json", 2, 44);
}

static bool
can_open(const struct jwe *jwe, const json_t *key, struct buf *plain)
{
    struct secret *oct = NULL;
    EVP_PKEY *priv = NULL;
    int r = KMS_ERR_KEY;

    if (jwe->alg == JWE_DIR) {
        if ((r = jwk_get_oct(&oct, key)) == KMS_OK)
            r = jwe_open(jwe, oct->b, plain);
    } else if (strcmp(text_of(key, "kty"), "RSA") == 0) {
        priv = private_from_jwk(key);
        r = jwe_open_rsa(jwe, priv, plain);
    }
    secret_free(oct);
    EVP_PKEY_free(priv);
    return r == KMS_OK;
}

static void
jwe_file(const char *name, size_t want_opened, size_t want_refused)
{
    json_t *file = vectors_load(name), *group, *test;
    struct buf plain = BUF_INIT, want = BUF_INIT;
    size_t g, t, opened = 0, refused = 0;
    const char *compact;
    char alg[64], enc[64];
    struct jwe jwe;
    bool mine, ok;

    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            int id = (int)json_integer_value(json_object_get(test, "tcId"));

            if (!json_is_string(json_object_get(test, "jwe")))
                continue; /* JSON serialisation, or a JWS */
            compact = text_of(test, "jwe");
            header_says(alg, sizeof(alg), compact, "alg");
            header_says(enc, sizeof(enc), compact, "enc");
            mine = strcmp(enc, "A256GCM") == 0 &&
                   (strcmp(alg, "dir") == 0 || strcmp(alg, "RSA-OAEP") == 0 ||
                    strcmp(alg, "RSA-OAEP-256") == 0);
            buf_reset(&plain);
            ok = jwe_parse(&jwe, compact, strlen(compact)) == KMS_OK &&
                 can_open(&jwe, json_object_get(group, "private"), &plain);
            if (mine && strcmp(text_of(test, "result"), "valid") == 0) {
                cr_expect(ok, "%s %d", name, id);
                buf_reset(&want);
                put_hex(&want, text_of(test, "pt"));
                cr_expect_eq(plain.len, want.len);
                cr_expect_eq(memcmp(plain.data, want.data, want.len), 0, "%s %d", name, id);
                opened++;
            } else {
                cr_expect(!ok, "%s %d: %s", name, id, text_of(test, "comment"));
                refused++;
            }
        }
    }
    cr_expect_geq(opened, want_opened, "%s: %zu opened", name, opened);
    cr_expect_geq(refused, want_refused, "%s: %zu refused", name, refused);
    json_decref(file);
    buf_release(&plain);
    buf_release(&want);
}

/* RSA-OAEP and RSA-OAEP-256 with A256GCM, and figure 92 of RFC 7520. */
Test(vectors, wycheproof_jwe_are_opened_or_refused)
{
    NEED_VECTORS();
    jwe_file("wycheproof/json_web_encryption_test.json", 3, 130);
    jwe_file("wycheproof/json_web_crypto_test.json", 0, 30);
}

Test(vectors, rfc_7520_keys_are_read_or_refused)
{
    static const struct {
        const char *name;
        int want;
    } rows[] = {
        {"3_1.ec_public_key", KMS_ERR_ALGORITHM}, /* P-521 */
        {"3_2.ec_private_key", KMS_ERR_ALGORITHM},
        {"3_3.rsa_public_key", KMS_OK},
        {"3_4.rsa_private_key", KMS_ERR_MEMBER},
        {"3_5.symmetric_key_mac_computation", KMS_ERR_ALGORITHM},
        {"3_6.symmetric_key_encryption", KMS_ERR_ALGORITHM},
    };
    char path[128];
    struct secret *oct;
    EVP_PKEY *key;
    json_t *jwk, *again;
    size_t i;
    int r;

    NEED_VECTORS();
    for (i = 0; i < N(rows); i++) {
        snprintf(path, sizeof(path), "rfc7520/jwk/%s.json", rows[i].name);
        jwk = vectors_load(path);
        r = jwk_get_public(&key, jwk);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        if (r == KMS_OK) {
            again = jwk_from_public(key);
            cr_expect_str_eq(text_of(again, "n"), text_of(jwk, "n"));
            cr_expect_str_eq(text_of(again, "e"), text_of(jwk, "e"));
            json_decref(again);
        }
        EVP_PKEY_free(key);
        if (i >= 4) {
            /* both have 32 bytes */
            cr_expect_eq(jwk_get_oct(&oct, jwk), KMS_OK, "%s", rows[i].name);
            secret_free(oct);
        }
        json_decref(jwk);
    }
}

static const char *
compact_of(const json_t *file)
{
    return json_string_value(json_object_get(json_object_get(file, "output"), "compact"));
}

Test(vectors, rfc_7520_signatures_verify_or_are_refused)
{
    static const struct {
        const char *name;
        bool good;
    } rows[] = {
        {"4_1.rsa_v15_signature", true},
        {"4_2.rsa-pss_signature", false}, /* PS384 */
        {"4_3.ecdsa_signature", false},   /* ES512 */
        {"4_4.hmac-sha2_integrity_protection", false},
        {"4_5.signature_with_detached_content", false},
        {"4_6.protecting_specific_header_fields", false}, /* no compact form */
        {"4_7.protecting_content_only", false},           /* no compact form */
        {"4_8.multiple_signatures", false},               /* no compact form */
    };
    struct buf payload = BUF_INIT;
    const char *compact;
    char path[128];
    struct jws jws;
    EVP_PKEY *key;
    json_t *file, *jwk;
    size_t i;
    int r;

    NEED_VECTORS();
    for (i = 0; i < N(rows); i++) {
        snprintf(path, sizeof(path), "rfc7520/jws/%s.json", rows[i].name);
        file = vectors_load(path);
        compact = compact_of(file);
        if (compact == NULL) {
            cr_expect(!rows[i].good, "%s", rows[i].name);
            json_decref(file);
            continue;
        }
        r = jws_parse(&jws, compact, strlen(compact));
        cr_expect_eq(r == KMS_OK, rows[i].good, "%s: %s", rows[i].name, kms_strerror(r));
        if (r == KMS_OK) {
            jwk = json_object_get(json_object_get(file, "input"), "key");
            key = private_from_jwk(jwk);
            cr_expect_eq(jws_verify(&jws, key), KMS_OK, "%s", rows[i].name);
            cr_expect_eq(jws_payload(&jws, &payload), KMS_OK);
            cr_expect_str_eq(buf_str(&payload), text_of(json_object_get(file, "input"), "payload"));
            EVP_PKEY_free(key);
        }
        json_decref(file);
    }
    buf_release(&payload);
}

Test(vectors, rfc_7520_messages_open_or_are_refused)
{
    static const struct {
        const char *name;
        int want; /* of jwe_parse */
    } rows[] = {
        {"5_1.key_encryption_using_rsa_v15_and_aes-hmac-sha2", KMS_ERR_ALGORITHM},
        {"5_2.key_encryption_using_rsa-oaep_with_aes-gcm", KMS_OK},
        {"5_3.key_wrap_using_pbes2-aes-keywrap_with-aes-cbc-hmac-sha2", KMS_ERR_HEADER},
        {"5_4.key_agreement_with_key_wrapping_using_ecdh-es_and_aes-keywrap_with_aes-gcm",
         KMS_ERR_HEADER},
        {"5_5.key_agreement_using_ecdh-es_with_aes-cbc-hmac-sha2", KMS_ERR_HEADER},
        {"5_6.direct_encryption_using_aes-gcm", KMS_ERR_ALGORITHM}, /* A128GCM */
        {"5_7.key_wrap_using_aes-gcm_keywrap_with_aes-cbc-hmac-sha2", KMS_ERR_HEADER},
        {"5_8.key_wrap_using_aes-keywrap_with_aes-gcm", KMS_ERR_ALGORITHM},
        {"5_9.compressed_content", KMS_ERR_HEADER},
        /* 5.10 to 5.13 have no compact form. */
    };
    struct buf plain = BUF_INIT;
    const char *compact;
    char path[160];
    struct jwe jwe;
    json_t *file, *input;
    EVP_PKEY *key;
    size_t i;
    int r;

    NEED_VECTORS();
    for (i = 0; i < N(rows); i++) {
        snprintf(path, sizeof(path), "rfc7520/jwe/%s.json", rows[i].name);
        file = vectors_load(path);
        input = json_object_get(file, "input");
        compact = compact_of(file);
        cr_assert_not_null(compact, "%s", rows[i].name);
        r = jwe_parse(&jwe, compact, strlen(compact));
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        if (r == KMS_OK) {
            key = private_from_jwk(json_object_get(input, "key"));
            cr_expect_eq(jwe_open_rsa(&jwe, key, &plain), KMS_OK, "%s", rows[i].name);
            cr_expect_str_eq(buf_str(&plain), text_of(input, "plaintext"));
            EVP_PKEY_free(key);
        }
        json_decref(file);
    }
    buf_release(&plain);
}
