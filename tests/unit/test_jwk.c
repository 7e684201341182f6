/* test_jwk.c - JSON Web Keys: which are taken, which are refused, and that they come out as they
 * went in. */
#include <criterion/criterion.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/rsa.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/kdf.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

/* RFC 7517 appendix A.1 and RFC 7638 section 3.1; RFC 8037 appendix A.2. */
#define RFC_N                                                                                      \
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECP" \
    "ebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY" \
    "368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0f" \
    "M4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
#define RFC_X  "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4"
#define RFC_Y  "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
#define RFC_ED "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"

/* Made for this test: modulo each prime up to 167 it is a power of 65537. */
#define ROCA_N                                                                                     \
    "_IkbSmpQ30201mo6R0aaTYzbMF_dLhYJbjaqsNG8UtkjDZd-4iVxWUcgdx-MqBgRZtIodnL98gIqlvsaFKD5538bEDzf" \
    "FYKw6rR30mQVR5xl3J9QP2Ovg70FYeYhHHDPSZUjmcSq6sE33Hb7DxejAH5iqgod-f14nGU5OCsFN-Za_7IpdjGpkvDO" \
    "WDUFxq8HWNVWPass0x7jFRKIYsM6T7d061JI20CvchWDcNJpqaWuZY8z_juJC5P0SLOlqjyBT0Jty7OU-za7LUIPD4gI" \
    "CxCj1rKqBeEasnFZRXlegilFGr2B8gft2qrcUsoMksHUpLFXj3c3HFE1YwC_EDFRZw"
#define RSA1024_N                                                                                  \
    "x8cIcA657wS4f0ARreK6Nv-QspIH1duIpKH6DhZNbXX7FxQxg4TyjCwJGG8TVYSXy9IBGyjVZnvrwU077Wi7Y6emNJCh" \
    "2-kGzLWuPDwcqZkYXyrkuRFQ27pPvySWZs1UGwfd-vmNypxaP5SZ1QAlCowQTjDC6Ib0503dAGEnNsk"

#define P256(x, y) "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"" x "\",\"y\":\"" y "\"}"
#define RSA(n, e)  "{\"kty\":\"RSA\",\"n\":\"" n "\",\"e\":\"" e "\"}"
#define OKP(x)     "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"" x "\"}"

static void
setup(void)
{
    kms_json_init();
    cr_assert_neq(secret_heap_init(65536), KMS_ERR_NOMEM);
}

TestSuite(jwk, .init = setup);

static json_t *
parse(const char *text)
{
    json_t *v;

    cr_assert_eq(kms_json_parse(&v, text, strlen(text)), KMS_OK, "%s", text);
    return v;
}

Test(jwk, public_keys_are_taken_or_refused_with_their_code)
{
    static const struct {
        const char *name, *text;
        int want;
    } rows[] = {
        {"RSA", RSA(RFC_N, "AQAB"), KMS_OK},
        {"P-256", P256(RFC_X, RFC_Y), KMS_OK},
        {"P-256 with x = 0, which is on the curve",
         P256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
              "ZkhceA4vg9ckM71dhKBrtlQcKvMdrocXKL-FahdPk_Q"),
         KMS_OK},
        {"Ed25519", OKP(RFC_ED), KMS_OK},
        {"members that do not matter",
         "{\"kty\":\"OKP\",\"kid\":\"k\",\"use\":\"sig\",\"crv\":\"Ed25519\",\"x\":\"" RFC_ED "\"}",
         KMS_OK},
        {"no kty", "{\"crv\":\"P-256\",\"x\":\"" RFC_X "\",\"y\":\"" RFC_Y "\"}", KMS_ERR_MEMBER},
        {"kty in another case", "{\"kty\":\"rsa\",\"n\":\"" RFC_N "\",\"e\":\"AQAB\"}",
         KMS_ERR_ALGORITHM},
        {"kty no string", "{\"kty\":1}", KMS_ERR_MEMBER},
        {"oct", "{\"kty\":\"oct\",\"k\":\"" RFC_X "\"}", KMS_ERR_ALGORITHM},
        {"P-384", "{\"kty\":\"EC\",\"crv\":\"P-384\",\"x\":\"" RFC_X "\",\"y\":\"" RFC_Y "\"}",
         KMS_ERR_ALGORITHM},
        {"secp256k1",
         "{\"kty\":\"EC\",\"crv\":\"secp256k1\",\"x\":\"" RFC_X "\",\"y\":\"" RFC_Y "\"}",
         KMS_ERR_ALGORITHM},
        {"X25519", "{\"kty\":\"OKP\",\"crv\":\"X25519\",\"x\":\"" RFC_ED "\"}", KMS_ERR_ALGORITHM},
        {"no crv", "{\"kty\":\"EC\",\"x\":\"" RFC_X "\",\"y\":\"" RFC_Y "\"}", KMS_ERR_MEMBER},
        {"no y", "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"" RFC_X "\"}", KMS_ERR_MEMBER},
        {"x and y exchanged", P256(RFC_Y, RFC_X), KMS_ERR_KEY},
        {"zeros",
         P256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
              "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
         KMS_ERR_KEY},
        {"x = p",
         P256("_____wAAAAEAAAAAAAAAAAAAAAD_______________8",
              "ZkhceA4vg9ckM71dhKBrtlQcKvMdrocXKL-FahdPk_Q"),
         KMS_ERR_KEY},
        {"empty coordinates: infinity", P256("", ""), KMS_ERR_MEMBER},
        {"an empty y: compressed", P256(RFC_X, ""), KMS_ERR_MEMBER},
        {"a y of one byte", P256(RFC_X, "Ag"), KMS_ERR_MEMBER},
        {"x of 31 bytes", P256("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7A", RFC_Y),
         KMS_ERR_MEMBER},
        {"x of 33 bytes", P256("ADCgQkzSHClEg4otdckrN-duog2fAIk6O07uijwKr-w-", RFC_Y),
         KMS_ERR_MEMBER},
        {"x padded", P256(RFC_X "=", RFC_Y), KMS_ERR_MEMBER},
        {"left-over bits in x", P256("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D5", RFC_Y),
         KMS_ERR_SYNTAX},
        {"standard base64 in y", P256(RFC_X, "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFy+"),
         KMS_ERR_SYNTAX},
        {"x a number", "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":1,\"y\":\"" RFC_Y "\"}",
         KMS_ERR_MEMBER},
        {"EC with its private half",
         "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"" RFC_X "\",\"y\":\"" RFC_Y
         "\",\"d\":\"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE\"}",
         KMS_ERR_MEMBER},
        {"RSA with a prime", "{\"kty\":\"RSA\",\"n\":\"" RFC_N "\",\"e\":\"AQAB\",\"p\":\"AQ\"}",
         KMS_ERR_MEMBER},
        {"RSA of 1024 bits", RSA(RSA1024_N, "AQAB"), KMS_ERR_KEY},
        {"RSA with ROCA's mark", RSA(ROCA_N, "AQAB"), KMS_ERR_KEY},
        {"e = 1", RSA(RFC_N, "AQ"), KMS_ERR_KEY},
        {"e = 3", RSA(RFC_N, "Aw"), KMS_ERR_KEY},
        {"e = 65535", RSA(RFC_N, "__8"), KMS_ERR_KEY},
        {"e = 65538", RSA(RFC_N, "AQAC"), KMS_ERR_KEY},
        {"e of 9 bytes", RSA(RFC_N, "AQAAAAAAAAAB"), KMS_ERR_KEY},
        {"e empty", RSA(RFC_N, ""), KMS_ERR_MEMBER},
        {"e with a surplus zero", RSA(RFC_N, "AAEAAQ"), KMS_ERR_MEMBER},
        {"n with a surplus zero", RSA("AA" RFC_N, "AQAB"), KMS_ERR_MEMBER},
        {"n even", RSA("g" RSA1024_N RSA1024_N "A", "AQAB"), KMS_ERR_KEY},
        {"n missing", "{\"kty\":\"RSA\",\"e\":\"AQAB\"}", KMS_ERR_MEMBER},
        {"n of 6144 bits", RSA(RFC_N "AA" RFC_N "AA" RFC_N, "AQAB"), KMS_ERR_MEMBER},
        {"Ed25519 of 31 bytes", OKP("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHUQ"), KMS_ERR_MEMBER},
    };
    EVP_PKEY *key;
    json_t *jwk;
    size_t i;
    int r, want;

    for (i = 0; i < N(rows); i++) {
        jwk = parse(rows[i].text);
        r = jwk_get_public(&key, jwk);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        cr_expect_eq(key != NULL, r == KMS_OK, "%s", rows[i].name);
        EVP_PKEY_free(key);
        r = jwk_get_checked(&key, jwk);
        cr_expect_eq(r, rows[i].want, "%s, checked before: %s", rows[i].name, kms_strerror(r));
        cr_expect_eq(key != NULL, r == KMS_OK, "%s", rows[i].name);
        /* No point is made there, so none is found off the curve. */
        want = json_object_get(jwk, "x") != NULL && rows[i].want == KMS_ERR_KEY ? KMS_OK
                                                                                : rows[i].want;
        r = jwk_check_public(jwk);
        cr_expect_eq(r, want, "%s, not made: %s", rows[i].name, kms_strerror(r));
        cr_expect_eq(ERR_peek_error(), 0, "%s leaves an error behind", rows[i].name);
        EVP_PKEY_free(key);
        json_decref(jwk);
    }
}

Test(jwk, a_channel_takes_p256_and_nothing_else)
{
    static const struct {
        const char *text;
        int want;
    } rows[] = {
        {P256(RFC_X, RFC_Y), KMS_OK},
        {RSA(RFC_N, "AQAB"), KMS_ERR_ALGORITHM},
        {OKP(RFC_ED), KMS_ERR_ALGORITHM},
        {"{\"kty\":\"oct\",\"k\":\"" RFC_X "\"}", KMS_ERR_ALGORITHM},
        {"{}", KMS_ERR_MEMBER},
    };
    EVP_PKEY *key;
    json_t *jwk;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        jwk = parse(rows[i].text);
        cr_expect_eq(jwk_get_p256(&key, jwk), rows[i].want, "%s", rows[i].text);
        EVP_PKEY_free(key);
        json_decref(jwk);
    }
}

Test(jwk, octet_keys_have_exactly_32_bytes_and_live_in_locked_memory)
{
    static const struct {
        const char *name, *text;
        int want;
    } rows[] = {
        {"32 bytes", "{\"kty\":\"oct\",\"k\":\"" RFC_X "\"}", KMS_OK},
        {"31 bytes", "{\"kty\":\"oct\",\"k\":\"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7A\"}",
         KMS_ERR_MEMBER},
        {"33 bytes", "{\"kty\":\"oct\",\"k\":\"ADCgQkzSHClEg4otdckrN-duog2fAIk6O07uijwKr-w-\"}",
         KMS_ERR_MEMBER},
        {"empty", "{\"kty\":\"oct\",\"k\":\"\"}", KMS_ERR_MEMBER},
        {"no k", "{\"kty\":\"oct\"}", KMS_ERR_MEMBER},
        {"not base64url", "{\"kty\":\"oct\",\"k\":\"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D+\"}",
         KMS_ERR_SYNTAX},
        {"EC", P256(RFC_X, RFC_Y), KMS_ERR_ALGORITHM},
    };
    struct secret *key;
    json_t *jwk;
    size_t i;
    int r;

    for (i = 0; i < N(rows); i++) {
        jwk = parse(rows[i].text);
        r = jwk_get_oct(&key, jwk);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        if (r == KMS_OK) {
            cr_expect_eq(key->b[0], 0x30);
            cr_expect_eq(key->b[31], 0x3e);
            cr_expect(CRYPTO_secure_allocated(key));
        } else {
            cr_expect_null(key);
        }
        secret_free(key);
        json_decref(jwk);
    }
}

Test(jwk, public_keys_come_out_as_they_went_in)
{
    static const char *const rows[] = {RSA(RFC_N, "AQAB"), P256(RFC_X, RFC_Y), OKP(RFC_ED)};
    json_t *jwk, *again;
    EVP_PKEY *key;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        jwk = parse(rows[i]);
        cr_assert_eq(jwk_get_public(&key, jwk), KMS_OK);
        again = jwk_from_public(key);
        cr_expect(json_equal(jwk, again), "%s", rows[i]);
        json_decref(jwk);
        json_decref(again);
        EVP_PKEY_free(key);
    }
}

Test(jwk, a_generated_private_key_comes_out_as_its_public_half)
{
    EVP_PKEY *mine = ecdh_generate(), *rsa = EVP_RSA_gen(2048), *again;
    EVP_PKEY *keys[] = {mine, rsa};
    json_t *jwk;
    size_t i;

    for (i = 0; i < N(keys); i++) {
        jwk = jwk_from_public(keys[i]);
        cr_assert_not_null(jwk);
        cr_expect_null(json_object_get(jwk, "d"));
        cr_assert_eq(jwk_get_public(&again, jwk), KMS_OK);
        cr_expect_eq(EVP_PKEY_eq(keys[i], again), 1);
        EVP_PKEY_free(again);
        EVP_PKEY_free(keys[i]);
        json_decref(jwk);
    }
}

Test(jwk, other_kinds_of_key_do_not_come_out)
{
    EVP_PKEY *p384 = EVP_EC_gen("P-384"), *x25519 = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");

    cr_expect_null(jwk_from_public(p384));
    cr_expect_null(jwk_from_public(x25519));
    EVP_PKEY_free(p384);
    EVP_PKEY_free(x25519);
}

Test(jwk, leading_zeros_of_a_modulus_are_dropped)
{
    static const unsigned char n[] = {0, 0, 0xc0, 1}, e[] = {0, 1, 0, 1};
    json_t *jwk = jwk_from_rsa(n, sizeof(n), e, sizeof(e));

    cr_expect_str_eq(json_string_value(json_object_get(jwk, "n")), "wAE");
    cr_expect_str_eq(json_string_value(json_object_get(jwk, "e")), "AQAB");
    json_decref(jwk);
}

Test(jwk, a_content_key_names_itself_first)
{
    static const unsigned char key[SECRET_LEN] = {1, 2, 3};
    struct buf text = BUF_INIT;
    json_t *jwk = jwk_from_oct("kms://d/keys/1", key), *bare = jwk_from_oct(NULL, key);

    cr_assert_eq(kms_json_put(&text, jwk), KMS_OK);
    cr_expect_str_eq(buf_str(&text), "{\"kid\":\"kms://d/keys/1\",\"kty\":\"oct\",\"k\":"
                                     "\"AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}");
    cr_expect_null(json_object_get(bare, "kid"));
    json_decref(jwk);
    json_decref(bare);
    buf_release(&text);
}

Test(jwk, thumbprints_are_those_of_the_rfcs)
{
    static const struct {
        const char *name, *text, *want;
    } rows[] = {
        {"RFC 7638 section 3.1",
         "{\"kid\":\"2011-04-29\",\"alg\":\"RS256\",\"n\":\"" RFC_N
         "\",\"e\":\"AQAB\",\"kty\":\"RSA\"}",
         "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
        {"RFC 8037 appendix A.3", OKP(RFC_ED), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
        /* The same by node-jose 2.2.0. */
        {"P-256", P256(RFC_X, RFC_Y), "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"},
    };
    unsigned char digest[JWK_THUMBPRINT_LEN];
    char text[B64URL_LEN(JWK_THUMBPRINT_LEN) + 1] = "";
    json_t *jwk;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        jwk = parse(rows[i].text);
        cr_assert_eq(jwk_thumbprint(digest, jwk), KMS_OK, "%s", rows[i].name);
        b64url_encode(text, digest, sizeof(digest));
        cr_expect_str_eq(text, rows[i].want, "%s: %s", rows[i].name, text);
        json_decref(jwk);
    }
}

Test(jwk, only_the_one_spelling_of_a_key_has_a_thumbprint)
{
    static const struct {
        const char *text;
        int want;
    } rows[] = {
        {"{\"kty\":\"oct\",\"k\":\"" RFC_X "\"}", KMS_ERR_ALGORITHM},
        {"{\"kty\":\"EC\",\"crv\":\"P-384\",\"x\":\"" RFC_X "\",\"y\":\"" RFC_Y "\"}",
         KMS_ERR_ALGORITHM},
        {P256(RFC_X "=", RFC_Y), KMS_ERR_MEMBER},
        {P256("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D5", RFC_Y), KMS_ERR_SYNTAX},
        {RSA("AA" RFC_N, "AQAB"), KMS_ERR_MEMBER},
        {RSA(RFC_N, "AAEAAQ"), KMS_ERR_MEMBER},
        {"{\"kty\":\"RSA\",\"n\":\"" RFC_N "\"}", KMS_ERR_MEMBER},
        {"{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":1}", KMS_ERR_MEMBER},
        {"{}", KMS_ERR_MEMBER},
    };
    unsigned char digest[JWK_THUMBPRINT_LEN];
    json_t *jwk;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        jwk = parse(rows[i].text);
        cr_expect_eq(jwk_thumbprint(digest, jwk), rows[i].want, "%s", rows[i].text);
        json_decref(jwk);
    }
}

Test(secret, the_heap_says_so_when_it_is_full)
{
    struct secret *s[64];
    size_t n = 0;

    cr_assert_neq(secret_heap_init(1024), KMS_ERR_NOMEM);
    while (n < N(s) && (s[n] = secret_new()) != NULL)
        n++;
    cr_expect_gt(n, 8);
    cr_expect_lt(n, 64, "1024 bytes hold no 64 secrets");
    cr_expect_null(secret_from((const unsigned char *)"0123456789abcdef0123456789abcdef"));
    while (n > 0)
        secret_free(s[--n]);
    s[0] = secret_from((const unsigned char *)"0123456789abcdef0123456789abcdef");
    cr_expect_not_null(s[0], "what was freed can be had again");
    secret_free(s[0]);
    secret_free(NULL);
}

Test(secret, there_is_none_without_the_heap)
{
    cr_expect_null(secret_new());
}
