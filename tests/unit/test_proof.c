/* test_proof.c - how a service proves who it is: certificate chains in a jwk, proofs, and what is
 * read out of a certificate. */
#include <criterion/criterion.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jws.h"
#include "proto/proof.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))
#define AUD     "kms://kms.example.org"
#define NOW     INT64_C(1795355700)

static const unsigned char cnf[32] = "the ephemeral key's thumbprint 1";

TestSuite(proof, .init = kms_json_init);

/* A certificate of key, self-signed, with a subjectAltName as OpenSSL's configuration writes it. */
static X509 *
certificate(EVP_PKEY *key, const char *san)
{
    X509 *cert = X509_new();
    X509_EXTENSION *ext;

    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 0x1234);
    X509_gmtime_adj(X509_getm_notBefore(cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
                               (const unsigned char *)"a service", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    X509_set_pubkey(cert, key);
    if (san != NULL) {
        ext = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, san);
        cr_assert_not_null(ext);
        X509_add_ext(cert, ext, -1);
        X509_EXTENSION_free(ext);
    }
    cr_assert_neq(X509_sign(cert, key, EVP_sha256()), 0);
    return cert;
}

/* The jwk of a chain: the certificate of key, and n - 1 others. */
static json_t *
jwk_with_chain(EVP_PKEY *key, int n)
{
    STACK_OF(X509) *chain = sk_X509_new_null();
    EVP_PKEY *other = EVP_EC_gen("P-256");
    json_t *jwk;
    int i;

    for (i = 0; i < n; i++)
        sk_X509_push(chain, certificate(i == 0 ? key : other, "URI:spiffe://example.org/dlp"));
    jwk = x5c_make(chain);
    cr_assert_not_null(jwk);
    x5c_free(chain);
    EVP_PKEY_free(other);
    return jwk;
}

Test(proof, chains_of_one_to_five_certificates_are_taken_leaf_first)
{
    EVP_PKEY *keys[] = {EVP_EC_gen("P-256"), EVP_RSA_gen(2048)};
    STACK_OF(X509) * chain;
    json_t *jwk;
    size_t i;
    int n;

    for (i = 0; i < N(keys); i++) {
        for (n = 1; n <= 6; n++) {
            jwk = jwk_with_chain(keys[i], n);
            cr_expect_eq(x5c_parse(&chain, jwk), n <= 5 ? KMS_OK : KMS_ERR_LENGTH, "%d", n);
            cr_expect_eq(chain != NULL, n <= 5);
            if (chain != NULL) {
                cr_expect_eq(sk_X509_num(chain), n);
                cr_expect_eq(EVP_PKEY_eq(X509_get0_pubkey(sk_X509_value(chain, 0)), keys[i]), 1);
            }
            x5c_free(chain);
            json_decref(jwk);
        }
        EVP_PKEY_free(keys[i]);
    }
    cr_expect_eq(ERR_peek_error(), 0);
}

/* The first certificate of a jwk, changed in one of these ways. */
static json_t *
spoiled(const json_t *x5c, const char *how)
{
    const char *text = json_string_value(json_array_get(x5c, 0));
    struct buf der = BUF_INIT, out = BUF_INIT;
    json_t *item = NULL;

    b64_get(&der, text, strlen(text));
    if (strcmp(how, "base64url") == 0) {
        b64url_put(&out, der.data, der.len);
        buf_putc(&out, '_');
    } else if (strcmp(how, "white space") == 0) {
        buf_putf(&out, "%.64s\n%s", text, text + 64);
    } else if (strcmp(how, "something behind it") == 0) {
        buf_putc(&der, '\0');
        b64_put(&out, der.data, der.len);
    } else if (strcmp(how, "cut off") == 0) {
        b64_put(&out, der.data, der.len - 1);
    } else if (strcmp(how, "PEM") == 0) {
        buf_putf(&out, "-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n", text);
    } else if (strcmp(how, "too long") == 0) {
        while (der.len <= 8192 + 3)
            buf_putc(&der, '\0');
        b64_put(&out, der.data, der.len);
    } else if (strcmp(how, "a number") == 0) {
        item = json_integer(1);
    }
    if (item == NULL)
        item = json_string(buf_str(&out)); /* "empty" as well */
    buf_release(&der);
    buf_release(&out);
    return item;
}

Test(proof, a_certificate_is_standard_base64_of_one_der_and_nothing_else)
{
    static const struct {
        const char *how;
        int want;
    } rows[] = {
        {"base64url", KMS_ERR_SYNTAX},
        {"white space", KMS_ERR_SYNTAX},
        {"something behind it", KMS_ERR_SYNTAX},
        {"cut off", KMS_ERR_SYNTAX},
        {"PEM", KMS_ERR_SYNTAX},
        {"too long", KMS_ERR_LENGTH},
        {"a number", KMS_ERR_MEMBER},
        {"empty", KMS_ERR_LENGTH},
    };
    EVP_PKEY *key = EVP_EC_gen("P-256");
    STACK_OF(X509) * chain;
    json_t *jwk, *x5c;
    size_t i, at;

    for (i = 0; i < N(rows); i++) {
        for (at = 0; at < 2; at++) {
            jwk = jwk_with_chain(key, 2);
            x5c = json_object_get(jwk, "x5c");
            json_array_set_new(x5c, at, spoiled(x5c, rows[i].how));
            cr_expect_eq(x5c_parse(&chain, jwk), rows[i].want, "%s at %zu", rows[i].how, at);
            cr_expect_null(chain);
            cr_expect_eq(ERR_peek_error(), 0);
            json_decref(jwk);
        }
    }
    EVP_PKEY_free(key);
}

Test(proof, a_jwk_is_public_and_its_certificate_s_own)
{
    EVP_PKEY *key = EVP_EC_gen("P-256"), *other = EVP_EC_gen("P-256"), *rsa = EVP_RSA_gen(2048);
    json_t *jwk = jwk_with_chain(key, 1), *theirs = jwk_with_chain(other, 1),
           *rsa_jwk = jwk_with_chain(rsa, 1), *copy;
    STACK_OF(X509) * chain;
    unsigned char thumb[32], again[32];

    copy = json_copy(jwk);
    json_object_set(copy, "x5c", json_object_get(theirs, "x5c"));
    cr_expect_eq(x5c_parse(&chain, copy), KMS_ERR_MEMBER, "another's certificate");
    json_object_set(copy, "x5c", json_object_get(rsa_jwk, "x5c"));
    cr_expect_eq(x5c_parse(&chain, copy), KMS_ERR_MEMBER, "one of another kind of key");
    json_object_del(copy, "x5c");
    cr_expect_eq(x5c_parse(&chain, copy), KMS_ERR_MEMBER, "none");
    json_object_set_new(copy, "x5c", json_array());
    cr_expect_eq(x5c_parse(&chain, copy), KMS_ERR_MEMBER, "an empty chain");
    json_object_set(copy, "x5c", json_array_get(json_object_get(jwk, "x5c"), 0));
    cr_expect_eq(x5c_parse(&chain, copy), KMS_ERR_MEMBER, "a string");
    json_decref(copy);

    copy = json_copy(jwk);
    json_object_set_new(copy, "d", json_string("870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"));
    cr_expect_eq(x5c_parse(&chain, copy), KMS_ERR_MEMBER, "a private key");
    cr_expect_eq(service_jwk_thumbprint(thumb, copy), KMS_ERR_MEMBER, "a private key");
    json_decref(copy);

    cr_assert_eq(service_jwk_thumbprint(thumb, jwk), KMS_OK);
    cr_assert_eq(x5c_parse(&chain, jwk), KMS_OK);
    cr_assert_eq(cert_key_thumbprint(again, sk_X509_value(chain, 0)), KMS_OK);
    cr_expect_arr_eq(thumb, again, 32);
    x5c_free(chain);
    json_object_del(jwk, "x5c");
    json_object_set_new(jwk, "kid", json_string("anything"));
    cr_assert_eq(service_jwk_thumbprint(again, jwk), KMS_OK);
    cr_expect_arr_eq(thumb, again, 32, "x5c and kid do not matter");
    json_decref(jwk);
    json_decref(theirs);
    json_decref(rsa_jwk);
    EVP_PKEY_free(key);
    EVP_PKEY_free(other);
    EVP_PKEY_free(rsa);
}

Test(proof, keys_of_other_kinds_prove_nothing)
{
    EVP_PKEY *ed = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), *weak = EVP_RSA_gen(1024),
             *p384 = EVP_EC_gen("P-384"), *good = EVP_EC_gen("P-256");
    json_t *jwk = jwk_with_chain(good, 1), *ed_jwk = jwk_from_public(ed),
           *weak_jwk = jwk_from_public(weak);
    json_t *oct = json_pack("{s:s,s:s}", "kty", "oct", "k", "AAAA");
    json_t *empty = json_object();
    STACK_OF(X509) * chain;
    struct buf out = BUF_INIT;
    unsigned char thumb[32];
    X509 *cert;

    json_object_set(ed_jwk, "x5c", json_object_get(jwk, "x5c"));
    json_object_set(weak_jwk, "x5c", json_object_get(jwk, "x5c"));
    json_object_set(oct, "x5c", json_object_get(jwk, "x5c"));
    json_object_set(empty, "x5c", json_object_get(jwk, "x5c"));
    cr_expect_eq(x5c_parse(&chain, ed_jwk), KMS_ERR_ALGORITHM);
    cr_expect_eq(x5c_parse(&chain, weak_jwk), KMS_ERR_KEY);
    cr_expect_eq(x5c_parse(&chain, oct), KMS_ERR_ALGORITHM);
    cr_expect_eq(x5c_parse(&chain, empty), KMS_ERR_MEMBER);
    cr_expect_eq(service_jwk_thumbprint(thumb, ed_jwk), KMS_ERR_ALGORITHM);
    cr_expect_eq(service_jwk_thumbprint(thumb, oct), KMS_ERR_ALGORITHM);
    cr_expect_eq(service_jwk_thumbprint(thumb, empty), KMS_ERR_MEMBER);
    cr_expect_eq(proof_make(&out, ed, AUD, cnf, NOW, "1"), KMS_ERR_ALGORITHM);
    cr_expect_eq(proof_make(&out, weak, AUD, cnf, NOW, "1"), KMS_ERR_KEY);
    cr_expect_eq(proof_make(&out, p384, AUD, cnf, NOW, "1"), KMS_ERR_ALGORITHM);
    cert = certificate(p384, NULL);
    cr_expect_eq(cert_key_thumbprint(thumb, cert), KMS_ERR_ALGORITHM);
    X509_free(cert);
    cert = certificate(weak, NULL);
    cr_expect_eq(cert_key_thumbprint(thumb, cert), KMS_ERR_ALGORITHM);
    X509_free(cert);
    cr_expect_eq(ERR_peek_error(), 0);
    json_decref(jwk);
    json_decref(ed_jwk);
    json_decref(weak_jwk);
    json_decref(oct);
    json_decref(empty);
    EVP_PKEY_free(ed);
    EVP_PKEY_free(weak);
    EVP_PKEY_free(p384);
    EVP_PKEY_free(good);
    buf_release(&out);
}

Test(proof, what_is_made_verifies_and_names_its_jti)
{
    EVP_PKEY *keys[] = {EVP_EC_gen("P-256"), EVP_RSA_gen(2048), EVP_RSA_gen(4096)};
    EVP_PKEY *other = EVP_EC_gen("P-256");
    unsigned char cnf2[32] = {1};
    char jti[PROOF_JTI_MAX + 1];
    struct buf proof = BUF_INIT;
    size_t i;

    for (i = 0; i < N(keys); i++) {
        buf_reset(&proof);
        cr_assert_eq(proof_make(&proof, keys[i], AUD, cnf, NOW, "once-1"), KMS_OK);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf, NOW), KMS_OK);
        cr_expect_str_eq(jti, "once-1");
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf, NOW + 300), KMS_OK);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf, NOW - 300), KMS_OK);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf, NOW + 301),
                     KMS_ERR_EXPIRED);
        cr_expect_str_empty(jti);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf, NOW - 301),
                     KMS_ERR_EARLY);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD "x", cnf, NOW),
                     KMS_ERR_AUDIENCE);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf2, NOW), KMS_ERR_MEMBER,
                     "another ephemeral key's");
        cr_expect_eq(proof_verify(jti, buf_str(&proof), other, AUD, cnf, NOW),
                     i == 0 ? KMS_ERR_CRYPTO : KMS_ERR_ALGORITHM);
        proof.data[proof.len - 30] ^= 1;
        cr_expect_neq(proof_verify(jti, buf_str(&proof), keys[i], AUD, cnf, NOW), KMS_OK);
        cr_expect_str_empty(jti);
        cr_expect_eq(ERR_peek_error(), 0);
        EVP_PKEY_free(keys[i]);
    }
    EVP_PKEY_free(other);
    buf_release(&proof);
}

#define CNF    "dGhlIGVwaGVtZXJhbCBrZXkncyB0aHVtYnByaW50IDE"
#define CLAIMS "\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"" CNF "\""

Test(proof, every_claim_is_judged)
{
    static const struct {
        const char *payload;
        int want;
    } rows[] = {
        {"{" CLAIMS "}", KMS_OK},
        {"{" CLAIMS ",\"iss\":\"dlp\",\"sub\":\"dlp\",\"x\":{}}", KMS_OK},
        {"{" CLAIMS ",\"exp\":1795355701}", KMS_OK},
        {"{" CLAIMS ",\"exp\":1795355700}", KMS_ERR_EXPIRED},
        {"{" CLAIMS ",\"exp\":\"never\"}", KMS_ERR_MEMBER},
        {"{" CLAIMS ",\"nbf\":1795355700}", KMS_OK},
        {"{" CLAIMS ",\"nbf\":1795355701}", KMS_ERR_EARLY},
        {"{" CLAIMS ",\"jti\":\"k\"}", KMS_ERR_DUPLICATE},
        {"{" CLAIMS ",\"\\u006ati\":\"k\"}", KMS_ERR_DUPLICATE},
        {"{\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"" CNF "\"}", KMS_ERR_MEMBER},
        {"{\"aud\":[\"" AUD "\"],\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_MEMBER},
        {"{\"aud\":\"KMS://kms.example.org\",\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_AUDIENCE},
        {"{\"aud\":\"" AUD "/\",\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_AUDIENCE},
        {"{\"aud\":\"" AUD "\",\"jti\":\"j\",\"cnf\":\"" CNF "\"}", KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700.0,\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":\"1795355700\",\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":-1,\"jti\":\"j\",\"cnf\":\"" CNF "\"}", KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700000,\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_EARLY},
        {"{\"aud\":\"" AUD "\",\"iat\":9223372036854775807,\"jti\":\"j\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_EARLY},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"cnf\":\"" CNF "\"}", KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":7,\"cnf\":\"" CNF "\"}", KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"a\\nb\",\"cnf\":\"" CNF "\"}",
         KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"j\"}", KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"" CNF "=\"}",
         KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"j\",\"cnf\":\"\"}", KMS_ERR_MEMBER},
        {"{\"aud\":\"" AUD "\",\"iat\":1795355700,\"jti\":\"j\",\"cnf\":{\"jkt\":\"" CNF "\"}}",
         KMS_ERR_MEMBER},
        {"[]", KMS_ERR_MEMBER},
        {"", KMS_ERR_SYNTAX},
        {"{" CLAIMS "}x", KMS_ERR_SYNTAX},
    };
    EVP_PKEY *key = EVP_EC_gen("P-256");
    char jti[PROOF_JTI_MAX + 1];
    struct buf proof = BUF_INIT;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        buf_reset(&proof);
        cr_assert_eq(
            jws_sign(&proof, JWS_ES256, NULL, NULL, key, rows[i].payload, strlen(rows[i].payload)),
            KMS_OK);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), key, AUD, cnf, NOW), rows[i].want, "%s",
                     rows[i].payload);
        cr_expect_str_eq(jti, rows[i].want == KMS_OK ? "j" : "");
    }
    EVP_PKEY_free(key);
    buf_release(&proof);
}

Test(proof, a_jti_has_up_to_128_bytes)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    char jti[PROOF_JTI_MAX + 1], text[PROOF_JTI_MAX + 2];
    struct buf proof = BUF_INIT;
    size_t n;

    for (n = PROOF_JTI_MAX; n <= PROOF_JTI_MAX + 1; n++) {
        memset(text, 'j', n);
        text[n] = '\0';
        buf_reset(&proof);
        cr_assert_eq(proof_make(&proof, key, AUD, cnf, NOW, text), KMS_OK);
        cr_expect_eq(proof_verify(jti, buf_str(&proof), key, AUD, cnf, NOW),
                     n == PROOF_JTI_MAX ? KMS_OK : KMS_ERR_MEMBER);
        cr_expect_str_eq(jti, n == PROOF_JTI_MAX ? text : "");
    }
    EVP_PKEY_free(key);
    buf_release(&proof);
}

Test(proof, the_algorithm_is_the_key_s_and_a_header_brings_no_key)
{
    static const struct {
        const char *header;
        int want;
    } rows[] = {
        {"{\"alg\":\"ES256\",\"kid\":\"kms://else.where/x\"}", KMS_ERR_CRYPTO},
        {"{\"alg\":\"ES256\",\"typ\":\"JWT\"}", KMS_ERR_CRYPTO},
        {"{\"alg\":\"ES256\",\"typ\":\"jwt\"}", KMS_ERR_CRYPTO},
        {"{\"alg\":\"ES256\",\"typ\":\"at+jwt\"}", KMS_ERR_HEADER},
        {"{\"alg\":\"ES256\",\"typ\":\"dpop+jwt\"}", KMS_ERR_HEADER},
        {"{\"alg\":\"PS256\"}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"RS256\"}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"EdDSA\"}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"none\"}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"HS256\"}", KMS_ERR_ALGORITHM},
        {"{}", KMS_ERR_HEADER},
        {"{\"alg\":\"ES256\",\"jwk\":{}}", KMS_ERR_HEADER},
        {"{\"alg\":\"ES256\",\"x5c\":[]}", KMS_ERR_HEADER},
        {"{\"alg\":\"ES256\",\"jku\":\"https://x\"}", KMS_ERR_HEADER},
        {"{\"alg\":\"ES256\",\"crit\":[\"b64\"],\"b64\":false}", KMS_ERR_HEADER},
        {"{\"alg\":\"ES256\",\"alg\":\"ES256\"}", KMS_ERR_DUPLICATE},
    };
    EVP_PKEY *key = EVP_EC_gen("P-256"), *rsa = EVP_RSA_gen(2048);
    char jti[PROOF_JTI_MAX + 1];
    struct buf proof = BUF_INIT;
    unsigned char zero[64] = {0};
    size_t i;

    for (i = 0; i < N(rows); i++) {
        buf_reset(&proof);
        b64url_put(&proof, rows[i].header, strlen(rows[i].header));
        buf_puts(&proof, ".");
        b64url_put(&proof, "{" CLAIMS "}", strlen("{" CLAIMS "}"));
        buf_puts(&proof, ".");
        b64url_put(&proof, zero, sizeof(zero));
        cr_expect_eq(proof_verify(jti, buf_str(&proof), key, AUD, cnf, NOW), rows[i].want, "%s",
                     rows[i].header);
    }
    cr_expect_eq(proof_verify(jti, "", key, AUD, cnf, NOW), KMS_ERR_SYNTAX);
    cr_expect_eq(proof_verify(jti, "a.b", key, AUD, cnf, NOW), KMS_ERR_SYNTAX);

    buf_reset(&proof); /* by the right key, with the wrong padding */
    cr_assert_eq(
        jws_sign(&proof, JWS_RS256, NULL, NULL, rsa, "{" CLAIMS "}", strlen("{" CLAIMS "}")),
        KMS_OK);
    cr_expect_eq(proof_verify(jti, buf_str(&proof), rsa, AUD, cnf, NOW), KMS_ERR_ALGORITHM);
    cr_expect_eq(ERR_peek_error(), 0);
    EVP_PKEY_free(key);
    EVP_PKEY_free(rsa);
    buf_release(&proof);
}

Test(proof, the_hash_of_a_jti_is_over_certificate_and_jti)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *a = certificate(key, NULL), *b = certificate(key, "URI:x:y");
    unsigned char text[34], want[32], got[32], other[32];
    unsigned int n;

    X509_digest(a, EVP_sha256(), text, &n);
    memcpy(text + 32, "ab", 2);
    SHA256(text, sizeof(text), want);
    cr_assert_eq(proof_jti_hash(got, a, "ab"), KMS_OK);
    cr_expect_arr_eq(got, want, 32);
    cr_assert_eq(proof_jti_hash(other, a, "ac"), KMS_OK);
    cr_expect_arr_neq(got, other, 32);
    cr_assert_eq(proof_jti_hash(other, b, "ab"), KMS_OK);
    cr_expect_arr_neq(got, other, 32);
    X509_free(a);
    X509_free(b);
    EVP_PKEY_free(key);
}

Test(proof, the_identity_is_the_one_san_uri)
{
    static const struct {
        const char *san, *identity;
        int want;
    } rows[] = {
        {"URI:spiffe://example.org/dlp", "spiffe://example.org/dlp", KMS_OK},
        {"URI:urn:example:dlp", "urn:example:dlp", KMS_OK},
        {"DNS:dlp.example.org,URI:https://dlp.example.org/", "https://dlp.example.org/", KMS_OK},
        {"URI:kms+svc.1-a:x", "kms+svc.1-a:x", KMS_OK},
        {NULL, "", KMS_ERR_MEMBER},
        {"DNS:dlp.example.org", "", KMS_ERR_MEMBER},
        {"URI:urn:a:b,URI:urn:a:c", "", KMS_ERR_MEMBER},
        {"URI:urn:a:b,URI:urn:a:b", "", KMS_ERR_MEMBER},
        {"URI:noscheme", "", KMS_ERR_SYNTAX},
        {"URI:Urn:a:b", "", KMS_ERR_SYNTAX},
        {"URI:1urn:a", "", KMS_ERR_SYNTAX},
        {"URI:urn:", "", KMS_ERR_SYNTAX},
        {"URI:\\://x", "", KMS_ERR_SYNTAX},
        {"URI:urn:a b", "", KMS_ERR_SYNTAX},
    };
    EVP_PKEY *key = EVP_EC_gen("P-256");
    char identity[CERT_IDENTITY_MAX + 1];
    X509 *cert;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        cert = certificate(key, rows[i].san);
        cr_expect_eq(cert_identity(identity, cert), rows[i].want, "%s", rows[i].san);
        cr_expect_str_eq(identity, rows[i].identity);
        X509_free(cert);
    }
    cr_expect_eq(ERR_peek_error(), 0);
    EVP_PKEY_free(key);
}

/* A SAN of one URI of these very bytes. */
static X509 *
with_uri(EVP_PKEY *key, const char *uri, size_t len)
{
    X509 *cert = certificate(key, NULL);
    GENERAL_NAMES *names = sk_GENERAL_NAME_new_null();
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *s = ASN1_IA5STRING_new();

    ASN1_STRING_set(s, uri, (int)len);
    GENERAL_NAME_set0_value(name, GEN_URI, s);
    sk_GENERAL_NAME_push(names, name);
    cr_assert_eq(X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, 0), 1);
    GENERAL_NAMES_free(names);
    return cert;
}

Test(proof, an_identity_is_text_to_its_end)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    char identity[CERT_IDENTITY_MAX + 1], long_one[CERT_IDENTITY_MAX + 2];
    X509 *cert = with_uri(key, "urn:dlp\0urn:evil", 16);

    cr_expect_eq(cert_identity(identity, cert), KMS_ERR_SYNTAX);
    X509_free(cert);
    cert = with_uri(key, "urn:dl\xc3\xa4", 8);
    cr_expect_eq(cert_identity(identity, cert), KMS_ERR_SYNTAX);
    X509_free(cert);
    memset(long_one, 'a', sizeof(long_one));
    memcpy(long_one, "urn:", 4);
    cert = with_uri(key, long_one, CERT_IDENTITY_MAX);
    cr_expect_eq(cert_identity(identity, cert), KMS_OK);
    cr_expect_eq(strlen(identity), CERT_IDENTITY_MAX);
    X509_free(cert);
    cert = with_uri(key, long_one, CERT_IDENTITY_MAX + 1);
    cr_expect_eq(cert_identity(identity, cert), KMS_ERR_LENGTH);
    X509_free(cert);
    cert = certificate(key, "URI:urn:a:b"); /* and a second extension of the kind */
    X509_add_ext(cert, X509_get_ext(cert, 0), -1);
    cr_expect_eq(cert_identity(identity, cert), KMS_ERR_MEMBER);
    cr_expect_str_empty(identity);
    X509_free(cert);
    EVP_PKEY_free(key);
}

Test(proof, serial_issuer_and_end_are_as_the_certificate_has_them)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = certificate(key, NULL);
    unsigned char serial[CERT_SERIAL_MAX], issuer[32], want[32], *der = NULL;
    BIGNUM *big = BN_new();
    size_t len;
    int64_t ms;
    int n;

    cr_assert_eq(cert_serial(serial, &len, cert), KMS_OK);
    cr_assert_eq(len, 2);
    cr_expect_arr_eq(serial, "\x12\x34", 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 0);
    cr_assert_eq(cert_serial(serial, &len, cert), KMS_OK);
    cr_expect(len == 1 && serial[0] == 0);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 0x80);
    cr_assert_eq(cert_serial(serial, &len, cert), KMS_OK);
    cr_expect(len == 1 && serial[0] == 0x80, "without the octet of its sign");
    ASN1_INTEGER_set(X509_get_serialNumber(cert), -1);
    cr_expect_eq(cert_serial(serial, &len, cert), KMS_ERR_SYNTAX);
    BN_set_bit(big, 511);
    BN_to_ASN1_INTEGER(big, X509_get_serialNumber(cert));
    cr_expect_eq(cert_serial(serial, &len, cert), KMS_OK);
    cr_expect_eq(len, 64);
    BN_set_bit(big, 512);
    BN_to_ASN1_INTEGER(big, X509_get_serialNumber(cert));
    cr_expect_eq(cert_serial(serial, &len, cert), KMS_ERR_LENGTH);

    n = i2d_X509_NAME(X509_get_issuer_name(cert), &der);
    SHA256(der, (size_t)n, want);
    cr_assert_eq(cert_issuer_hash(issuer, cert), KMS_OK);
    cr_expect_arr_eq(issuer, want, 32);

    ASN1_TIME_set_string_X509(X509_getm_notAfter(cert), "20261122135500Z");
    cr_assert_eq(cert_not_after(&ms, cert), KMS_OK);
    cr_expect_eq(ms, INT64_C(1795355700000));
    ASN1_TIME_set_string_X509(X509_getm_notAfter(cert), "99991231235959Z");
    cr_assert_eq(cert_not_after(&ms, cert), KMS_OK);
    cr_expect_eq(ms, INT64_C(253402300799000));
    OPENSSL_free(der);
    BN_free(big);
    X509_free(cert);
    EVP_PKEY_free(key);
}
