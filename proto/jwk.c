/* jwk.c - JSON Web Keys to OpenSSL's keys and back. */
#include "proto/jwk.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"

#define COORD_LEN    32                  /* of a P-256 point */
#define POINT_LEN    (1 + 2 * COORD_LEN) /* 0x04, x, y */
#define ED25519_LEN  32
#define RSA_BITS_MIN 2048
#define RSA_BITS_MAX 4096
#define RSA_LEN_MAX  (RSA_BITS_MAX / 8)
#define RSA_E_MIN    65537

static int
get_string(const json_t *jwk, const char *name, size_t max, const char **out)
{
    int r = kms_json_str(jwk, name, max, out);

    return r == KMS_ERR_NOT_FOUND ? KMS_ERR_MEMBER : r;
}

/* A member of exactly len bytes. */
static int
get_octets(const json_t *jwk, const char *name, unsigned char *out, size_t len)
{
    const char *text;
    int r;

    if ((r = get_string(jwk, name, B64URL_LEN(len), &text)) != KMS_OK)
        return r;
    if (strlen(text) != B64URL_LEN(len))
        return KMS_ERR_MEMBER;
    return b64url_decode(out, text, strlen(text));
}

/* A Base64urlUInt (RFC 7518 section 2) of at most RSA_LEN_MAX bytes: no leading zero. */
static int
get_number(const json_t *jwk, const char *name, BIGNUM **out)
{
    unsigned char bytes[RSA_LEN_MAX];
    const char *text;
    size_t len;
    int r;

    if ((r = get_string(jwk, name, B64URL_LEN(RSA_LEN_MAX), &text)) != KMS_OK)
        return r;
    len = B64URL_BYTES(strlen(text));
    if (len == 0)
        return KMS_ERR_MEMBER;
    if ((r = b64url_decode(bytes, text, strlen(text))) != KMS_OK)
        return r;
    if (bytes[0] == 0)
        return KMS_ERR_MEMBER;
    return (*out = BN_bin2bn(bytes, (int)len, NULL)) == NULL ? KMS_ERR_NOMEM : KMS_OK;
}

/* Whoever sends a private key where a public one belongs has given it away; it must not come to be
 * used. */
bool
jwk_has_private(const json_t *jwk)
{
    static const char *const names[] = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"};
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (json_object_get(jwk, names[i]) != NULL)
            return true;
    return false;
}

/* An EVP_PKEY of the type from the parameters, checked as a public key is if thorough. */
static int
key_make(EVP_PKEY **out, const char *type, OSSL_PARAM_BLD *bld, bool thorough)
{
    OSSL_PARAM *params = NULL;
    EVP_PKEY_CTX *ctx = NULL, *check = NULL;
    EVP_PKEY *key = NULL;
    int r = KMS_ERR_NOMEM;

    if ((params = OSSL_PARAM_BLD_to_param(bld)) == NULL ||
        (ctx = EVP_PKEY_CTX_new_from_name(NULL, type, NULL)) == NULL)
        goto out;
    if (EVP_PKEY_fromdata_init(ctx) != 1 ||
        EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_PUBLIC_KEY, params) != 1) {
        r = KMS_ERR_KEY; /* off the curve */
        goto out;
    }
    if ((check = EVP_PKEY_CTX_new(key, NULL)) == NULL)
        goto out;
    /* For RSA with random witnesses: a crooked modulus may pass one time and not the next, a good
     * one always does. */
    if (thorough && EVP_PKEY_public_check(check) != 1) {
        r = KMS_ERR_KEY;
        goto out;
    }
    *out = key;
    key = NULL; /* the caller's now */
    r = KMS_OK;
out:
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(check);
    EVP_PKEY_CTX_free(ctx);
    OSSL_PARAM_free(params);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

/*
 * CVE-2017-15361: that library's primes are k * M + (65537^a mod M), M the product of the first
 * primes, so that modulo each small prime its moduli are powers of 65537.  A good modulus is so for
 * all of these primes by a chance of less than 2^-27.
 */
static bool
is_roca(const BIGNUM *n)
{
    static const unsigned char primes[] = {
        3,  5,  7,  11, 13, 17,  19,  23,  29,  31,  37,  41,  43,  47,  53,  59,  61,  67,  71,
        73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    };
    unsigned rest, power, p;
    size_t i;

    for (i = 0; i < sizeof(primes); i++) {
        p = primes[i];
        rest = (unsigned)BN_mod_word(n, p);
        power = 1;
        while (power != rest) {
            power = power * (65537 % p) % p;
            if (power == 1)
                return false;
        }
    }
    return true;
}

/* Modulus and exponent, which are the caller's in every case. */
static int
get_rsa_numbers(BIGNUM **n, BIGNUM **e, const json_t *jwk)
{
    int r;

    if ((r = get_number(jwk, "n", n)) != KMS_OK || (r = get_number(jwk, "e", e)) != KMS_OK)
        return r;
    if (BN_num_bits(*n) < RSA_BITS_MIN || BN_num_bits(*n) > RSA_BITS_MAX || !BN_is_odd(*n) ||
        !BN_is_odd(*e) || BN_num_bits(*e) > 64 || BN_get_word(*e) < RSA_E_MIN || is_roca(*n))
        return KMS_ERR_KEY;
    return KMS_OK;
}

static int
get_rsa(EVP_PKEY **out, const json_t *jwk, bool thorough)
{
    BIGNUM *n = NULL, *e = NULL;
    OSSL_PARAM_BLD *bld = NULL;
    int r;

    if ((r = get_rsa_numbers(&n, &e, jwk)) != KMS_OK)
        goto out;
    if ((bld = OSSL_PARAM_BLD_new()) == NULL ||
        OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_N, n) != 1 ||
        OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_E, e) != 1) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    r = key_make(out, "RSA", bld, thorough);
out:
    OSSL_PARAM_BLD_free(bld);
    BN_free(n);
    BN_free(e);
    return r;
}

/* Ours is the form of the point, so neither a compressed one nor the one at infinity can be said.
 */
static int
get_p256(EVP_PKEY **out, const json_t *jwk, bool thorough)
{
    unsigned char point[POINT_LEN] = {POINT_CONVERSION_UNCOMPRESSED};
    OSSL_PARAM_BLD *bld;
    int r;

    if ((r = get_octets(jwk, "x", point + 1, COORD_LEN)) != KMS_OK ||
        (r = get_octets(jwk, "y", point + 1 + COORD_LEN, COORD_LEN)) != KMS_OK)
        return r;
    if ((bld = OSSL_PARAM_BLD_new()) == NULL ||
        OSSL_PARAM_BLD_push_utf8_string(bld, OSSL_PKEY_PARAM_GROUP_NAME, "P-256", 0) != 1 ||
        OSSL_PARAM_BLD_push_octet_string(bld, OSSL_PKEY_PARAM_PUB_KEY, point, sizeof(point)) != 1)
        r = KMS_ERR_NOMEM;
    else
        r = key_make(out, "EC", bld, thorough);
    OSSL_PARAM_BLD_free(bld);
    return r;
}

static int
get_ed25519(EVP_PKEY **out, const json_t *jwk, bool thorough)
{
    unsigned char pub[ED25519_LEN];
    int r;

    if ((r = get_octets(jwk, "x", pub, sizeof(pub))) != KMS_OK)
        return r;
    if ((*out = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, pub, sizeof(pub))) == NULL) {
        ERR_clear_error();
        return KMS_ERR_NOMEM;
    }
    return KMS_OK;
}

static const struct kind {
    const char *kty;
    const char *crv; /* NULL: it has none */
    int (*get)(EVP_PKEY **out, const json_t *jwk, bool thorough);
    const char *members[4]; /* required, in the order of RFC 7638; NULL ends them */
} kinds[] = {
    {"RSA", NULL, get_rsa, {"e", "kty", "n", NULL}},
    {"EC", "P-256", get_p256, {"crv", "kty", "x", "y"}},
    {"OKP", "Ed25519", get_ed25519, {"crv", "kty", "x", NULL}},
};

static int
kind_find(const struct kind **out, const json_t *jwk)
{
    const char *kty, *crv;
    size_t i;
    int r;

    if ((r = get_string(jwk, "kty", 64, &kty)) != KMS_OK)
        return r;
    for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(kty, kinds[i].kty) == 0)
            break;
    if (i == sizeof(kinds) / sizeof(kinds[0]))
        return KMS_ERR_ALGORITHM;
    if (kinds[i].crv != NULL) {
        if ((r = get_string(jwk, "crv", 64, &crv)) != KMS_OK)
            return r;
        if (strcmp(crv, kinds[i].crv) != 0)
            return KMS_ERR_ALGORITHM;
    }
    *out = &kinds[i];
    return KMS_OK;
}

static int
get_public(EVP_PKEY **out, const json_t *jwk, bool thorough)
{
    const struct kind *kind;
    int r;

    *out = NULL;
    if ((r = kind_find(&kind, jwk)) != KMS_OK)
        return r;
    return jwk_has_private(jwk) ? KMS_ERR_MEMBER : kind->get(out, jwk, thorough);
}

int
jwk_get_public(EVP_PKEY **out, const json_t *jwk)
{
    return get_public(out, jwk, true);
}

int
jwk_get_checked(EVP_PKEY **out, const json_t *jwk)
{
    return get_public(out, jwk, false);
}

int
jwk_get_p256(EVP_PKEY **out, const json_t *jwk)
{
    const struct kind *kind;
    int r;

    *out = NULL;
    if ((r = kind_find(&kind, jwk)) != KMS_OK)
        return r;
    if (kind->get != get_p256)
        return KMS_ERR_ALGORITHM;
    return jwk_has_private(jwk) ? KMS_ERR_MEMBER : get_p256(out, jwk, true);
}

int
jwk_get_oct(struct secret **out, const json_t *jwk)
{
    struct secret *key;
    const char *kty;
    int r;

    *out = NULL;
    if ((r = get_string(jwk, "kty", 64, &kty)) != KMS_OK)
        return r;
    if (strcmp(kty, "oct") != 0)
        return KMS_ERR_ALGORITHM;
    if ((key = secret_new()) == NULL)
        return KMS_ERR_NOMEM;
    if ((r = get_octets(jwk, "k", key->b, SECRET_LEN)) != KMS_OK) {
        secret_free(key);
        return r;
    }
    *out = key;
    return KMS_OK;
}

/* Sets a member to the base64url of bytes; what stood on the stack is wiped, for it may be a key.
 */
static bool
set_octets(json_t *jwk, const char *name, const unsigned char *p, size_t len)
{
    char text[B64URL_LEN(RSA_LEN_MAX)];
    bool ok;

    if (len > RSA_LEN_MAX)
        return false;
    b64url_encode(text, p, len);
    ok = json_object_set_new(jwk, name, json_stringn(text, B64URL_LEN(len))) == 0;
    OPENSSL_cleanse(text, sizeof(text));
    return ok;
}

static bool
set_text(json_t *jwk, const char *name, const char *text)
{
    return json_object_set_new(jwk, name, json_string(text)) == 0;
}

json_t *
jwk_from_rsa(const unsigned char *n, size_t n_len, const unsigned char *e, size_t e_len)
{
    json_t *jwk;

    for (; n_len > 0 && *n == 0; n_len--)
        n++;
    for (; e_len > 0 && *e == 0; e_len--)
        e++;
    if ((jwk = json_object()) != NULL && set_text(jwk, "kty", "RSA") &&
        set_octets(jwk, "n", n, n_len) && set_octets(jwk, "e", e, e_len))
        return jwk;
    json_decref(jwk);
    return NULL;
}

static json_t *
from_rsa(EVP_PKEY *key)
{
    unsigned char n_bytes[RSA_LEN_MAX], e_bytes[RSA_LEN_MAX];
    BIGNUM *n = NULL, *e = NULL;
    json_t *jwk = NULL;

    if (EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_RSA_N, &n) == 1 &&
        EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_RSA_E, &e) == 1 &&
        BN_num_bytes(n) <= RSA_LEN_MAX && BN_num_bytes(e) <= RSA_LEN_MAX) {
        BN_bn2bin(n, n_bytes);
        BN_bn2bin(e, e_bytes);
        jwk = jwk_from_rsa(n_bytes, (size_t)BN_num_bytes(n), e_bytes, (size_t)BN_num_bytes(e));
    }
    BN_free(n);
    BN_free(e);
    return jwk;
}

static json_t *
from_p256(EVP_PKEY *key)
{
    unsigned char x[COORD_LEN], y[COORD_LEN];
    BIGNUM *bx = NULL, *by = NULL;
    json_t *jwk = NULL;
    char group[32];

    /* By the coordinates: how the key would encode its point is the key's own affair. */
    if (EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) != 1 ||
        strcmp(group, SN_X9_62_prime256v1) != 0 ||
        EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_EC_PUB_X, &bx) != 1 ||
        EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_EC_PUB_Y, &by) != 1 ||
        BN_bn2binpad(bx, x, sizeof(x)) != COORD_LEN || BN_bn2binpad(by, y, sizeof(y)) != COORD_LEN)
        goto out;
    if ((jwk = json_object()) != NULL && set_text(jwk, "kty", "EC") &&
        set_text(jwk, "crv", "P-256") && set_octets(jwk, "x", x, sizeof(x)) &&
        set_octets(jwk, "y", y, sizeof(y)))
        goto out;
    json_decref(jwk);
    jwk = NULL;
out:
    BN_free(bx);
    BN_free(by);
    return jwk;
}

static json_t *
from_ed25519(EVP_PKEY *key)
{
    unsigned char pub[ED25519_LEN];
    size_t len = sizeof(pub);
    json_t *jwk;

    if (EVP_PKEY_get_raw_public_key(key, pub, &len) != 1 || len != sizeof(pub))
        return NULL;
    if ((jwk = json_object()) != NULL && set_text(jwk, "kty", "OKP") &&
        set_text(jwk, "crv", "Ed25519") && set_octets(jwk, "x", pub, sizeof(pub)))
        return jwk;
    json_decref(jwk);
    return NULL;
}

json_t *
jwk_from_public(EVP_PKEY *key)
{
    json_t *jwk = NULL;

    if (EVP_PKEY_is_a(key, "RSA"))
        jwk = from_rsa(key);
    else if (EVP_PKEY_is_a(key, "EC"))
        jwk = from_p256(key);
    else if (EVP_PKEY_is_a(key, "ED25519"))
        jwk = from_ed25519(key);
    if (jwk == NULL)
        ERR_clear_error();
    return jwk;
}

json_t *
jwk_from_oct(const char *kid, const unsigned char key[SECRET_LEN])
{
    json_t *jwk;

    if ((jwk = json_object()) != NULL && (kid == NULL || set_text(jwk, "kid", kid)) &&
        set_text(jwk, "kty", "oct") && set_octets(jwk, "k", key, SECRET_LEN))
        return jwk;
    json_decref(jwk);
    return NULL;
}

/* Whether a required member has the one spelling that it can have; kty and crv were looked at by
 * kind_find. */
static int
check_member(const json_t *jwk, const char *name)
{
    unsigned char octets[COORD_LEN];
    BIGNUM *n = NULL;
    int r;

    if (strcmp(name, "kty") == 0 || strcmp(name, "crv") == 0)
        return KMS_OK;
    if (strcmp(name, "n") != 0 && strcmp(name, "e") != 0)
        return get_octets(jwk, name, octets, sizeof(octets));
    r = get_number(jwk, name, &n);
    BN_free(n);
    return r;
}

int
jwk_check_public(const json_t *jwk)
{
    BIGNUM *n = NULL, *e = NULL;
    const struct kind *kind;
    size_t i;
    int r;

    if ((r = kind_find(&kind, jwk)) != KMS_OK)
        return r;
    if (jwk_has_private(jwk))
        return KMS_ERR_MEMBER;
    for (i = 0; i < 4 && kind->members[i] != NULL; i++)
        if ((r = check_member(jwk, kind->members[i])) != KMS_OK)
            return r;
    if (kind->get == get_rsa)
        r = get_rsa_numbers(&n, &e, jwk);
    BN_free(n);
    BN_free(e);
    return r;
}

/* Of the text of the members: whether they make a good key is not asked here, for OpenSSL answers
 * that at leisure. */
int
jwk_thumbprint(unsigned char out[JWK_THUMBPRINT_LEN], const json_t *jwk)
{
    struct buf text = BUF_INIT;
    const struct kind *kind;
    json_t *sorted = NULL;
    const char *name;
    size_t i;
    int r;

    if ((r = kind_find(&kind, jwk)) != KMS_OK)
        return r;
    if ((sorted = json_object()) == NULL)
        return KMS_ERR_NOMEM;
    for (i = 0; i < 4 && (name = kind->members[i]) != NULL; i++) {
        if ((r = check_member(jwk, name)) != KMS_OK)
            goto out;
        if (json_object_set(sorted, name, json_object_get(jwk, name)) != 0) {
            r = KMS_ERR_NOMEM;
            goto out;
        }
    }
    if ((r = kms_json_put(&text, sorted)) == KMS_OK)
        SHA256(text.data, text.len, out);
out:
    json_decref(sorted);
    buf_release(&text);
    return r;
}

int
jwk_thumbprint_key(unsigned char out[JWK_THUMBPRINT_LEN], EVP_PKEY *key)
{
    json_t *jwk = jwk_from_public(key);
    int r = jwk == NULL ? KMS_ERR_ALGORITHM : jwk_thumbprint(out, jwk);

    json_decref(jwk);
    return r;
}
