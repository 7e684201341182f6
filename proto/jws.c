/* jws.c - compact JWS: verifying, and signing with the private key here or elsewhere. */
#include "proto/jws.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/jose.h"

#define P256_LEN    32 /* of r, and of s */
#define ED25519_LEN 64
#define PSS_SALT    32

static const char *const alg_names[] = {
    [JWS_PS256] = "PS256",
    [JWS_RS256] = "RS256",
    [JWS_ES256] = "ES256",
    [JWS_EDDSA] = "EdDSA",
};

int
jws_parse(struct jws *jws, const char *compact, size_t len)
{
    const char *end = compact + len, *first, *second;
    struct jose_header h;
    size_t sig_len, i;
    int r;

    if (len > JWE_MAX)
        return KMS_ERR_LENGTH;
    if ((first = memchr(compact, '.', len)) == NULL ||
        (second = memchr(first + 1, '.', (size_t)(end - first - 1))) == NULL ||
        memchr(second + 1, '.', (size_t)(end - second - 1)) != NULL)
        return KMS_ERR_SYNTAX;
    if ((r = jose_header_parse(&h, compact, (size_t)(first - compact),
                               JOSE_ALG | JOSE_KID | JOSE_TYP | JOSE_CTY | JOSE_X5T |
                                   JOSE_X5T_S256)) != KMS_OK)
        return r;
    if (!(h.seen & JOSE_ALG))
        return KMS_ERR_HEADER;
    for (i = 0; i < sizeof(alg_names) / sizeof(alg_names[0]); i++)
        if (strcmp(h.alg, alg_names[i]) == 0)
            break;
    if (i == sizeof(alg_names) / sizeof(alg_names[0]))
        return KMS_ERR_ALGORITHM;
    jws->alg = (enum jws_alg)i;
    memcpy(jws->kid, h.kid, sizeof(jws->kid));
    memcpy(jws->typ, h.typ, sizeof(jws->typ));
    jws->input = compact;
    jws->input_len = (size_t)(second - compact);
    jws->payload = first + 1;
    jws->payload_len = (size_t)(second - first - 1);
    if (jws->payload_len % 4 == 1)
        return KMS_ERR_SYNTAX;
    sig_len = (size_t)(end - second - 1);
    jws->sig_len = B64URL_BYTES(sig_len);
    if (sig_len == 0 || jws->sig_len > JWS_SIG_MAX)
        return KMS_ERR_LENGTH;
    return b64url_decode(jws->sig, second + 1, sig_len);
}

static bool
fits(enum jws_alg alg, EVP_PKEY *key)
{
    char group[32];

    switch (alg) {
    case JWS_PS256:
    case JWS_RS256:
        return EVP_PKEY_is_a(key, "RSA");
    case JWS_ES256:
        return EVP_PKEY_is_a(key, "EC") &&
               EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) == 1 &&
               strcmp(group, SN_X9_62_prime256v1) == 0;
    case JWS_EDDSA:
        return EVP_PKEY_is_a(key, "ED25519");
    }
    return false;
}

/* The one length that a signature by key has in a JWS. */
static size_t
signature_len(enum jws_alg alg, EVP_PKEY *key)
{
    switch (alg) {
    case JWS_ES256:
        return 2 * P256_LEN;
    case JWS_EDDSA:
        return ED25519_LEN;
    default:
        return (size_t)EVP_PKEY_get_size(key);
    }
}

/* RFC 7518 section 3.5: MGF1 with the same hash, a salt as long as the hash. */
static bool
set_padding(EVP_PKEY_CTX *ctx, enum jws_alg alg)
{
    switch (alg) {
    case JWS_PS256:
        return EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING) == 1 &&
               EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, EVP_sha256()) == 1 &&
               EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, PSS_SALT) == 1;
    case JWS_RS256:
        return EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) == 1;
    default:
        return true;
    }
}

/* r || s, as JOSE has it, to the DER that OpenSSL takes.  *der is OPENSSL_free'd by the caller. */
static int
ecdsa_to_der(unsigned char **der, size_t *der_len, const unsigned char raw[2 * P256_LEN])
{
    ECDSA_SIG *sig = NULL;
    BIGNUM *r = NULL, *s = NULL;
    int n = -1;

    if ((sig = ECDSA_SIG_new()) != NULL && (r = BN_bin2bn(raw, P256_LEN, NULL)) != NULL &&
        (s = BN_bin2bn(raw + P256_LEN, P256_LEN, NULL)) != NULL && ECDSA_SIG_set0(sig, r, s) == 1) {
        r = s = NULL; /* sig's now */
        n = i2d_ECDSA_SIG(sig, der);
    }
    BN_free(r);
    BN_free(s);
    ECDSA_SIG_free(sig);
    if (n <= 0)
        return KMS_ERR_NOMEM;
    *der_len = (size_t)n;
    return KMS_OK;
}

static int
ecdsa_from_der(unsigned char raw[2 * P256_LEN], const unsigned char *der, size_t der_len)
{
    ECDSA_SIG *sig;
    int r = KMS_ERR_INTERNAL;

    if ((sig = d2i_ECDSA_SIG(NULL, &der, (long)der_len)) != NULL &&
        BN_bn2binpad(ECDSA_SIG_get0_r(sig), raw, P256_LEN) == P256_LEN &&
        BN_bn2binpad(ECDSA_SIG_get0_s(sig), raw + P256_LEN, P256_LEN) == P256_LEN)
        r = KMS_OK;
    ECDSA_SIG_free(sig);
    return r;
}

int
jws_verify(const struct jws *jws, EVP_PKEY *key)
{
    const unsigned char *sig = jws->sig;
    size_t sig_len = jws->sig_len;
    unsigned char *der = NULL;
    EVP_PKEY_CTX *pctx;
    EVP_MD_CTX *ctx = NULL;
    int r;

    if (!fits(jws->alg, key))
        return KMS_ERR_ALGORITHM;
    if (sig_len != signature_len(jws->alg, key))
        return KMS_ERR_CRYPTO;
    if (jws->alg == JWS_ES256) {
        if ((r = ecdsa_to_der(&der, &sig_len, sig)) != KMS_OK)
            goto out;
        sig = der;
    }
    if ((ctx = EVP_MD_CTX_new()) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    if (EVP_DigestVerifyInit(ctx, &pctx, jws->alg == JWS_EDDSA ? NULL : EVP_sha256(), NULL, key) !=
            1 ||
        !set_padding(pctx, jws->alg)) {
        r = KMS_ERR_INTERNAL;
        goto out;
    }
    r = EVP_DigestVerify(ctx, sig, sig_len, (const unsigned char *)jws->input, jws->input_len) == 1
            ? KMS_OK
            : KMS_ERR_CRYPTO;
out:
    EVP_MD_CTX_free(ctx);
    OPENSSL_free(der);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

int
jws_payload(const struct jws *jws, struct buf *out)
{
    return b64url_get(out, jws->payload, jws->payload_len);
}

static int
put_header(struct buf *out, enum jws_alg alg, const char *kid, const char *typ)
{
    /* The longest: {"alg":"PS256","kid":"...","typ":"..."} */
    char json[64 + JOSE_KID_MAX + JOSE_VALUE_MAX], *p = json;

    if ((kid != NULL && !jose_is_plain(kid, strlen(kid), JOSE_KID_MAX)) ||
        (typ != NULL && !jose_is_plain(typ, strlen(typ), JOSE_VALUE_MAX)))
        return KMS_ERR_HEADER;
    p = stpcpy(stpcpy(stpcpy(p, "{\"alg\":\""), alg_names[alg]), "\"");
    if (kid != NULL)
        p = stpcpy(stpcpy(stpcpy(p, ",\"kid\":\""), kid), "\"");
    if (typ != NULL)
        p = stpcpy(stpcpy(stpcpy(p, ",\"typ\":\""), typ), "\"");
    *p++ = '}';
    return b64url_put(out, json, (size_t)(p - json));
}

int
jws_begin(struct buf *out, enum jws_alg alg, const char *kid, const char *typ, const void *payload,
          size_t len, unsigned char digest[32])
{
    size_t before = out->len;
    int r;

    if ((r = put_header(out, alg, kid, typ)) != KMS_OK || (r = buf_putc(out, '.')) != KMS_OK ||
        (r = b64url_put(out, payload, len)) != KMS_OK) {
        buf_truncate(out, before);
        return r;
    }
    SHA256(out->data + before, out->len - before, digest);
    return KMS_OK;
}

int
jws_end(struct buf *out, const unsigned char *sig, size_t sig_len)
{
    int r;

    if ((r = buf_reserve(out, 1 + B64URL_LEN(sig_len))) != KMS_OK ||
        (r = buf_putc(out, '.')) != KMS_OK)
        return r;
    return b64url_put(out, sig, sig_len);
}

int
jws_sign(struct buf *out, enum jws_alg alg, const char *kid, const char *typ, EVP_PKEY *key,
         const void *payload, size_t len)
{
    unsigned char digest[32], raw[2 * P256_LEN], sig[JWS_SIG_MAX];
    size_t before = out->len, sig_len = sizeof(sig);
    EVP_PKEY_CTX *pctx;
    EVP_MD_CTX *ctx = NULL;
    int r;

    if (!fits(alg, key))
        return KMS_ERR_ALGORITHM;
    if (EVP_PKEY_get_size(key) > JWS_SIG_MAX)
        return KMS_ERR_KEY;
    if ((r = jws_begin(out, alg, kid, typ, payload, len, digest)) != KMS_OK)
        return r;
    if ((ctx = EVP_MD_CTX_new()) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    if (EVP_DigestSignInit(ctx, &pctx, alg == JWS_EDDSA ? NULL : EVP_sha256(), NULL, key) != 1 ||
        !set_padding(pctx, alg) ||
        EVP_DigestSign(ctx, sig, &sig_len, out->data + before, out->len - before) != 1) {
        r = KMS_ERR_KEY; /* most likely it has no private half */
        goto out;
    }
    if (alg == JWS_ES256) {
        if ((r = ecdsa_from_der(raw, sig, sig_len)) == KMS_OK)
            r = jws_end(out, raw, sizeof(raw));
    } else {
        r = jws_end(out, sig, sig_len);
    }
out:
    EVP_MD_CTX_free(ctx);
    if (r != KMS_OK) {
        buf_truncate(out, before);
        ERR_clear_error();
    }
    return r;
}
