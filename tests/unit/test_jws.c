/* test_jws.c - compact JWS: the algorithm is the key's, the signature has its one form, and nothing
 * else is taken. */
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))
#define KID     "kms://kms.example.org/keys/static"

static const enum jws_alg algs[] = {JWS_PS256, JWS_RS256, JWS_ES256, JWS_EDDSA};

static EVP_PKEY *
generate(enum jws_alg alg)
{
    switch (alg) {
    case JWS_ES256:
        return EVP_EC_gen("P-256");
    case JWS_EDDSA:
        return EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    default:
        return EVP_RSA_gen(2048);
    }
}

TestSuite(jws, .init = kms_json_init);

Test(jws, headers_are_taken_or_refused_with_their_code)
{
    static const struct {
        const char *name, *header;
        int want;
    } rows[] = {
        {"as we write it", "{\"alg\":\"PS256\",\"kid\":\"" KID "\"}", KMS_OK},
        {"an access token's", "{\"typ\":\"at+jwt\",\"alg\":\"ES256\",\"kid\":\"1\"}", KMS_OK},
        {"with a certificate's digests",
         "{\"typ\":\"JWT\",\"alg\":\"RS256\",\"x5t\":\"AA\",\"x5t#S256\":\"AA\"}", KMS_OK},
        {"EdDSA", "{\"alg\":\"EdDSA\",\"cty\":\"JWT\"}", KMS_OK},
        {"no alg", "{\"kid\":\"1\"}", KMS_ERR_HEADER},
        {"none", "{\"alg\":\"none\"}", KMS_ERR_ALGORITHM},
        {"None", "{\"alg\":\"None\"}", KMS_ERR_ALGORITHM},
        {"NONE", "{\"alg\":\"NONE\"}", KMS_ERR_ALGORITHM},
        {"empty alg", "{\"alg\":\"\"}", KMS_ERR_ALGORITHM},
        {"HS256", "{\"alg\":\"HS256\"}", KMS_ERR_ALGORITHM},
        {"HS256 with a space", "{\"alg\":\" HS256\"}", KMS_ERR_ALGORITHM},
        {"PS384", "{\"alg\":\"PS384\"}", KMS_ERR_ALGORITHM},
        {"ES512", "{\"alg\":\"ES512\"}", KMS_ERR_ALGORITHM},
        {"ES256K", "{\"alg\":\"ES256K\"}", KMS_ERR_ALGORITHM},
        {"ps256", "{\"alg\":\"ps256\"}", KMS_ERR_ALGORITHM},
        {"PS256 with a space", "{\"alg\":\"PS256 \"}", KMS_ERR_ALGORITHM},
        {"enc", "{\"alg\":\"PS256\",\"enc\":\"A256GCM\"}", KMS_ERR_HEADER},
        {"jwk", "{\"alg\":\"ES256\",\"jwk\":{\"kty\":\"EC\"}}", KMS_ERR_HEADER},
        {"jku", "{\"alg\":\"ES256\",\"jku\":\"https://x/\"}", KMS_ERR_HEADER},
        {"x5c", "{\"alg\":\"ES256\",\"x5c\":[\"AA\"]}", KMS_ERR_HEADER},
        {"x5u", "{\"alg\":\"ES256\",\"x5u\":\"https://x/\"}", KMS_ERR_HEADER},
        {"crit", "{\"alg\":\"ES256\",\"crit\":[\"exp\"],\"exp\":1}", KMS_ERR_HEADER},
        {"b64", "{\"alg\":\"ES256\",\"b64\":true}", KMS_ERR_HEADER},
        {"b64 with crit", "{\"alg\":\"ES256\",\"b64\":false,\"crit\":[\"b64\"]}", KMS_ERR_HEADER},
        {"an unknown member", "{\"alg\":\"ES256\",\"x\":\"y\"}", KMS_ERR_HEADER},
        {"alg twice", "{\"alg\":\"ES256\",\"alg\":\"ES256\"}", KMS_ERR_DUPLICATE},
        {"not an object", "\"alg\"", KMS_ERR_SYNTAX},
    };
    struct buf compact = BUF_INIT;
    struct jws jws;
    size_t i;
    int r;

    for (i = 0; i < N(rows); i++) {
        buf_reset(&compact);
        cr_assert_eq(b64url_put(&compact, rows[i].header, strlen(rows[i].header)), KMS_OK);
        cr_assert_eq(buf_puts(&compact, ".e30.AAAA"), KMS_OK);
        r = jws_parse(&jws, buf_str(&compact), compact.len);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
    }
    buf_release(&compact);
}

/* eyJhbGciOiJQUzI1NiJ9 is {"alg":"PS256"}. */
Test(jws, there_are_three_parts_of_the_right_form)
{
    static const struct {
        const char *name, *text;
        int want;
    } rows[] = {
        {"three parts", "eyJhbGciOiJQUzI1NiJ9.e30.AAAA", KMS_OK},
        {"an empty payload", "eyJhbGciOiJQUzI1NiJ9..AAAA", KMS_OK},
        {"no signature", "eyJhbGciOiJQUzI1NiJ9.e30.", KMS_ERR_LENGTH},
        {"two parts", "eyJhbGciOiJQUzI1NiJ9.e30", KMS_ERR_SYNTAX},
        {"one part", "eyJhbGciOiJQUzI1NiJ9", KMS_ERR_SYNTAX},
        {"four parts", "eyJhbGciOiJQUzI1NiJ9.e30.AAAA.", KMS_ERR_SYNTAX},
        {"nothing", "", KMS_ERR_SYNTAX},
        {"dots", "..", KMS_ERR_SYNTAX},
        {"a padded header", "eyJhbGciOiJQUzI1NiJ9=.e30.AAAA", KMS_ERR_SYNTAX},
        {"a space in front", " eyJhbGciOiJQUzI1NiJ9.e30.AAAA", KMS_ERR_SYNTAX},
        {"a payload of a length that cannot be", "eyJhbGciOiJQUzI1NiJ9.e30AA.AAAA", KMS_ERR_SYNTAX},
        {"a padded signature", "eyJhbGciOiJQUzI1NiJ9.e30.AA==", KMS_ERR_SYNTAX},
        {"left-over bits in the signature", "eyJhbGciOiJQUzI1NiJ9.e30.AAB", KMS_ERR_SYNTAX},
        {"a newline behind", "eyJhbGciOiJQUzI1NiJ9.e30.AAAA\n", KMS_ERR_SYNTAX},
        {"JSON serialisation", "{\"payload\":\"e30\",\"signatures\":[]}", KMS_ERR_SYNTAX},
    };
    char text[1024] = "eyJhbGciOiJQUzI1NiJ9.e30.";
    struct jws jws;
    size_t i, head = strlen(text);
    int r;

    for (i = 0; i < N(rows); i++) {
        r = jws_parse(&jws, rows[i].text, strlen(rows[i].text));
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
    }
    memset(text + head, 'A', sizeof(text) - head);
    cr_expect_eq(jws_parse(&jws, text, head + B64URL_LEN(512)), KMS_OK);
    cr_expect_eq(jws_parse(&jws, text, head + B64URL_LEN(513)), KMS_ERR_LENGTH);
}

Test(jws, what_is_signed_verifies_and_what_was_changed_does_not)
{
    static const char payload[] = "{\"status\":200}";
    struct buf compact = BUF_INIT, out = BUF_INIT;
    EVP_PKEY *key, *other;
    struct jws jws;
    size_t i, at;
    char was;
    int r;

    for (i = 0; i < N(algs); i++) {
        key = generate(algs[i]);
        other = generate(algs[i]);
        buf_reset(&compact);
        buf_reset(&out);
        cr_assert_eq(jws_sign(&compact, algs[i], KID, "JWT", key, payload, strlen(payload)),
                     KMS_OK);
        cr_assert_eq(jws_parse(&jws, buf_str(&compact), compact.len), KMS_OK);
        cr_expect_eq(jws.alg, algs[i]);
        cr_expect_str_eq(jws.kid, KID);
        cr_expect_str_eq(jws.typ, "JWT");
        cr_expect_eq(jws_verify(&jws, key), KMS_OK);
        cr_expect_eq(jws_payload(&jws, &out), KMS_OK);
        cr_expect_str_eq(buf_str(&out), payload);
        cr_expect_eq(jws_verify(&jws, other), KMS_ERR_CRYPTO);
        for (at = 0; at < compact.len; at++) {
            was = (char)compact.data[at];
            if (was == '.')
                continue;
            compact.data[at] = was == 'A' ? 'Q' : 'A';
            if ((r = jws_parse(&jws, buf_str(&compact), compact.len)) == KMS_OK)
                r = jws_verify(&jws, key);
            cr_assert_neq(r, KMS_OK, "algorithm %d at %zu", (int)algs[i], at);
            compact.data[at] = (unsigned char)was;
        }
        cr_expect_eq(ERR_peek_error(), 0);
        EVP_PKEY_free(key);
        EVP_PKEY_free(other);
    }
    buf_release(&compact);
    buf_release(&out);
}

Test(jws, a_key_of_another_kind_is_another_algorithm)
{
    EVP_PKEY *rsa = generate(JWS_PS256), *p256 = generate(JWS_ES256), *ed = generate(JWS_EDDSA),
             *p384 = EVP_EC_gen("P-384"), *x25519 = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    const struct {
        enum jws_alg alg;
        EVP_PKEY *key;
        bool fits;
    } rows[] = {
        {JWS_PS256, rsa, true},   {JWS_PS256, p256, false},   {JWS_PS256, ed, false},
        {JWS_RS256, rsa, true},   {JWS_RS256, p256, false},   {JWS_RS256, ed, false},
        {JWS_ES256, p256, true},  {JWS_ES256, rsa, false},    {JWS_ES256, ed, false},
        {JWS_ES256, p384, false}, {JWS_EDDSA, ed, true},      {JWS_EDDSA, rsa, false},
        {JWS_EDDSA, p256, false}, {JWS_EDDSA, x25519, false},
    };
    struct buf out = BUF_INIT;
    struct jws jws = {.input = "a.b", .input_len = 3, .sig_len = 64};
    size_t i;

    for (i = 0; i < N(rows); i++) {
        jws.alg = rows[i].alg;
        cr_expect_eq(jws_verify(&jws, rows[i].key),
                     rows[i].fits ? KMS_ERR_CRYPTO : KMS_ERR_ALGORITHM, "row %zu", i);
        cr_expect_eq(jws_sign(&out, rows[i].alg, NULL, NULL, rows[i].key, "", 0),
                     rows[i].fits ? KMS_OK : KMS_ERR_ALGORITHM, "row %zu", i);
    }
    EVP_PKEY_free(rsa);
    EVP_PKEY_free(p256);
    EVP_PKEY_free(ed);
    EVP_PKEY_free(p384);
    EVP_PKEY_free(x25519);
    buf_release(&out);
}

/* An RS256 signature is none in PS256, nor the other way round: one key is good for both. */
Test(jws, one_rsa_key_does_not_mix_its_two_algorithms_up)
{
    EVP_PKEY *rsa = generate(JWS_PS256);
    struct buf compact = BUF_INIT;
    struct jws jws;
    size_t i;

    for (i = 0; i < 2; i++) {
        buf_reset(&compact);
        cr_assert_eq(jws_sign(&compact, algs[i], NULL, NULL, rsa, "x", 1), KMS_OK);
        cr_assert_eq(jws_parse(&jws, buf_str(&compact), compact.len), KMS_OK);
        jws.alg = algs[1 - i];
        cr_expect_eq(jws_verify(&jws, rsa), KMS_ERR_CRYPTO);
    }
    EVP_PKEY_free(rsa);
    buf_release(&compact);
}

Test(jws, a_signature_has_exactly_the_length_of_its_kind)
{
    EVP_PKEY *key;
    struct buf compact = BUF_INIT;
    struct jws jws;
    size_t i, len;

    for (i = 0; i < N(algs); i++) {
        key = generate(algs[i]);
        buf_reset(&compact);
        cr_assert_eq(jws_sign(&compact, algs[i], NULL, NULL, key, "x", 1), KMS_OK);
        cr_assert_eq(jws_parse(&jws, buf_str(&compact), compact.len), KMS_OK);
        len = jws.sig_len;
        cr_expect_eq(len, algs[i] == JWS_ES256 || algs[i] == JWS_EDDSA ? 64 : 256);
        jws.sig[len] = 0;
        jws.sig_len = len + 1;
        cr_expect_eq(jws_verify(&jws, key), KMS_ERR_CRYPTO, "a zero behind");
        jws.sig_len = len - 1;
        cr_expect_eq(jws_verify(&jws, key), KMS_ERR_CRYPTO, "one byte short");
        memmove(jws.sig + 1, jws.sig, len);
        jws.sig[0] = 0;
        jws.sig_len = len + 1;
        cr_expect_eq(jws_verify(&jws, key), KMS_ERR_CRYPTO, "a zero in front");
        jws.sig_len = 0;
        cr_expect_eq(jws_verify(&jws, key), KMS_ERR_CRYPTO, "none");
        EVP_PKEY_free(key);
    }
    buf_release(&compact);
}

/* RFC 7518 section 3.5: as long as the hash. */
Test(jws, a_pss_salt_has_32_bytes)
{
    static const int salts[] = {0, 20, 31, 32, 33, 64, 222};
    EVP_PKEY *rsa = generate(JWS_PS256);
    struct buf text = BUF_INIT;
    struct jws jws = {.alg = JWS_PS256};
    unsigned char digest[32];
    size_t i;

    cr_assert_eq(jws_begin(&text, JWS_PS256, KID, NULL, "x", 1, digest), KMS_OK);
    jws.input = buf_str(&text);
    jws.input_len = text.len;
    for (i = 0; i < N(salts); i++) {
        EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(rsa, NULL);

        EVP_PKEY_sign_init(ctx);
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING);
        EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256());
        EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, salts[i]);
        jws.sig_len = sizeof(jws.sig);
        cr_assert_eq(EVP_PKEY_sign(ctx, jws.sig, &jws.sig_len, digest, sizeof(digest)), 1);
        cr_expect_eq(jws_verify(&jws, rsa), salts[i] == 32 ? KMS_OK : KMS_ERR_CRYPTO, "salt of %d",
                     salts[i]);
        EVP_PKEY_CTX_free(ctx);
    }
    EVP_PKEY_free(rsa);
    buf_release(&text);
}

/* As it is done with the HSM: the digest goes out, the signature comes back. */
Test(jws, the_two_halves_of_signing_make_a_whole)
{
    EVP_PKEY *rsa = generate(JWS_PS256);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(rsa, NULL);
    struct buf out = BUF_INIT;
    unsigned char digest[32], want[32], sig[256];
    size_t sig_len = sizeof(sig);
    struct jws jws;

    cr_assert_eq(buf_puts(&out, "before "), KMS_OK);
    cr_assert_eq(jws_begin(&out, JWS_PS256, KID, NULL, "{}", 2, digest), KMS_OK);
    SHA256(out.data + 7, out.len - 7, want);
    cr_expect_eq(memcmp(digest, want, sizeof(want)), 0);
    EVP_PKEY_sign_init(ctx);
    EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING);
    EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256());
    EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, 32);
    cr_assert_eq(EVP_PKEY_sign(ctx, sig, &sig_len, digest, sizeof(digest)), 1);
    cr_assert_eq(jws_end(&out, sig, sig_len), KMS_OK);
    cr_assert_eq(jws_parse(&jws, buf_str(&out) + 7, out.len - 7), KMS_OK);
    cr_expect_eq(jws_verify(&jws, rsa), KMS_OK);
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(rsa);
    buf_release(&out);
}

Test(jws, a_failure_to_sign_leaves_the_buffer_as_it_was)
{
    EVP_PKEY *key = generate(JWS_ES256), *public;
    json_t *jwk = jwk_from_public(key);
    struct buf out = BUF_INIT;
    unsigned char digest[32];

    cr_assert_eq(jwk_get_public(&public, jwk), KMS_OK);
    cr_assert_eq(buf_puts(&out, "kept"), KMS_OK);
    cr_expect_eq(jws_sign(&out, JWS_ES256, NULL, NULL, public, "x", 1), KMS_ERR_KEY);
    cr_expect_eq(jws_sign(&out, JWS_ES256, "a\"b", NULL, key, "x", 1), KMS_ERR_HEADER);
    cr_expect_eq(jws_begin(&out, JWS_PS256, NULL, "a\nb", "x", 1, digest), KMS_ERR_HEADER);
    cr_expect_str_eq(buf_str(&out), "kept");
    cr_expect_eq(ERR_peek_error(), 0);
    json_decref(jwk);
    EVP_PKEY_free(key);
    EVP_PKEY_free(public);
    buf_release(&out);
}

Test(jws, the_examples_of_the_rfcs_verify_or_are_refused)
{
    json_t *rows = data_load("rfc_jws.json"), *row;
    struct jws jws;
    EVP_PKEY *key;
    size_t i;

    json_array_foreach(rows, i, row)
    {
        const char *compact = text_of(row, "compact");
        int r = jws_parse(&jws, compact, strlen(compact));

        if (strcmp(text_of(row, "want"), "good") != 0) {
            cr_expect_eq(r, KMS_ERR_ALGORITHM, "%s", text_of(row, "name"));
            continue;
        }
        cr_assert_eq(r, KMS_OK, "%s", text_of(row, "name"));
        cr_assert_eq(jwk_get_public(&key, json_object_get(row, "key")), KMS_OK);
        cr_expect_eq(jws_verify(&jws, key), KMS_OK, "%s", text_of(row, "name"));
        EVP_PKEY_free(key);
    }
    json_decref(rows);
}
