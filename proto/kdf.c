/* kdf.c - ECDH on P-256 and HKDF-SHA-256, by OpenSSL. */
#include "proto/kdf.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "proto/err.h"

#define SHARED_LEN   32 /* an x coordinate of P-256 */
#define HKDF_LEN_MAX (255 * 32)
#define STACK_DEPTH  16384 /* more than OpenSSL's calls below us take */

EVP_PKEY *
ecdh_generate(void)
{
    EVP_PKEY *key;

    if ((key = EVP_EC_gen("P-256")) == NULL)
        ERR_clear_error();
    return key;
}

/*
 * OpenSSL's HMAC leaves the key that it gives out in frames of the stack, which stay as they are
 * until something else is called that deep.
 */
static void __attribute__((noinline)) wipe_dead_stack(void)
{
    unsigned char dead[STACK_DEPTH];

    OPENSSL_cleanse(dead, sizeof(dead));
}

int
ecdh_channel_key(struct secret **out, EVP_PKEY *mine, EVP_PKEY *peer)
{
    static const unsigned char zero[SHARED_LEN];
    unsigned char shared[SHARED_LEN];
    size_t shared_len = sizeof(shared);
    struct secret *key = NULL;
    EVP_PKEY_CTX *ctx = NULL;
    int r;

    *out = NULL;
    if ((ctx = EVP_PKEY_CTX_new(mine, NULL)) == NULL || (key = secret_new()) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    if (EVP_PKEY_derive_init(ctx) != 1 || EVP_PKEY_derive_set_peer(ctx, peer) != 1 ||
        EVP_PKEY_derive(ctx, shared, &shared_len) != 1 || shared_len != SHARED_LEN ||
        CRYPTO_memcmp(shared, zero, SHARED_LEN) == 0) {
        r = KMS_ERR_KEY;
        goto out;
    }
    if ((r = hkdf_sha256(key->b, SECRET_LEN, shared, SHARED_LEN, NULL, 0, NULL, 0)) != KMS_OK)
        goto out;
    *out = key;
    key = NULL; /* the caller's now */
out:
    secret_free(key);
    OPENSSL_cleanse(shared, sizeof(shared));
    EVP_PKEY_CTX_free(ctx);
    wipe_dead_stack();
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

/* OSSL_PARAM has no const, and does not write. */
static OSSL_PARAM
octets(const char *name, const unsigned char *p, size_t len)
{
    union {
        const unsigned char *in;
        unsigned char *out;
    } u = {p};

    return OSSL_PARAM_construct_octet_string(name, u.out, len);
}

int
hkdf_sha256(unsigned char *out, size_t out_len, const unsigned char *ikm, size_t ikm_len,
            const unsigned char *salt, size_t salt_len, const unsigned char *info, size_t info_len)
{
    static const unsigned char none[1];
    char digest[] = "SHA256";
    OSSL_PARAM params[5], *p = params;
    EVP_KDF_CTX *ctx = NULL;
    EVP_KDF *kdf;
    int r = KMS_ERR_NOMEM;

    if (out_len == 0 || out_len > HKDF_LEN_MAX)
        return KMS_ERR_LENGTH;
    *p++ = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0);
    *p++ = octets(OSSL_KDF_PARAM_KEY, ikm == NULL ? none : ikm, ikm_len);
    if (salt != NULL && salt_len > 0)
        *p++ = octets(OSSL_KDF_PARAM_SALT, salt, salt_len);
    if (info != NULL && info_len > 0)
        *p++ = octets(OSSL_KDF_PARAM_INFO, info, info_len);
    *p = OSSL_PARAM_construct_end();
    if ((kdf = EVP_KDF_fetch(NULL, "HKDF", NULL)) == NULL || (ctx = EVP_KDF_CTX_new(kdf)) == NULL)
        goto out;
    r = EVP_KDF_derive(ctx, out, out_len, params) == 1 ? KMS_OK : KMS_ERR_INTERNAL;
out:
    EVP_KDF_CTX_free(ctx); /* wipes its copy of ikm */
    EVP_KDF_free(kdf);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}
