/* kdf.c - ECDH on P-256, HKDF and the Concat KDF with SHA-256, by OpenSSL. */
#include "proto/kdf.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"

#define SHARED_LEN   32 /* an x coordinate of P-256 */
#define HKDF_LEN_MAX (255 * 32)
#define KDF_INFO_MAX 4096  /* of apu, of apv */
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
ecdh_shared(unsigned char out[32], EVP_PKEY *mine, EVP_PKEY *peer)
{
    static const unsigned char zero[SHARED_LEN];
    size_t len = SHARED_LEN;
    EVP_PKEY_CTX *ctx;
    int r = KMS_OK;

    if ((ctx = EVP_PKEY_CTX_new(mine, NULL)) == NULL)
        r = KMS_ERR_NOMEM;
    /* 0: not checked once more, which would cost as much as the agreement. */
    else if (EVP_PKEY_derive_init(ctx) != 1 || EVP_PKEY_derive_set_peer_ex(ctx, peer, 0) != 1 ||
             EVP_PKEY_derive(ctx, out, &len) != 1 || len != SHARED_LEN ||
             CRYPTO_memcmp(out, zero, SHARED_LEN) == 0)
        r = KMS_ERR_KEY;
    EVP_PKEY_CTX_free(ctx);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

int
ecdh_channel_key(struct secret **out, EVP_PKEY *mine, EVP_PKEY *peer)
{
    unsigned char shared[SHARED_LEN];
    struct secret *key;
    int r;

    *out = NULL;
    if ((key = secret_new()) == NULL)
        return KMS_ERR_NOMEM;
    if ((r = ecdh_shared(shared, mine, peer)) == KMS_OK)
        r = hkdf_sha256(key->b, SECRET_LEN, shared, SHARED_LEN, NULL, 0, NULL, 0);
    if (r == KMS_OK) {
        *out = key;
        key = NULL; /* the caller's now */
    }
    secret_free(key);
    OPENSSL_cleanse(shared, sizeof(shared));
    wipe_dead_stack();
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

/* A length of 32 bits before the bytes, as OtherInfo has it. */
static int
put_counted(struct buf *out, const void *p, size_t len)
{
    unsigned char be[4] = {(unsigned char)(len >> 24), (unsigned char)(len >> 16),
                           (unsigned char)(len >> 8), (unsigned char)len};
    int r;

    if ((r = buf_put(out, be, sizeof(be))) == KMS_OK && len > 0)
        r = buf_put(out, p, len);
    return r;
}

int
concat_kdf_sha256(unsigned char *out, size_t out_len, const unsigned char *z, size_t z_len,
                  const char *alg, const unsigned char *apu, size_t apu_len,
                  const unsigned char *apv, size_t apv_len)
{
    unsigned char bits[4] = {(unsigned char)(out_len >> 21), (unsigned char)(out_len >> 13),
                             (unsigned char)(out_len >> 5), (unsigned char)(out_len << 3)};
    char digest[] = "SHA256";
    struct buf info = BUF_INIT;
    EVP_KDF_CTX *ctx = NULL;
    OSSL_PARAM params[4];
    EVP_KDF *kdf = NULL;
    int r;

    if (out_len == 0 || out_len > HKDF_LEN_MAX || apu_len > KDF_INFO_MAX || apv_len > KDF_INFO_MAX)
        return KMS_ERR_LENGTH;
    if ((r = put_counted(&info, alg, strlen(alg))) != KMS_OK ||
        (r = put_counted(&info, apu, apu_len)) != KMS_OK ||
        (r = put_counted(&info, apv, apv_len)) != KMS_OK ||
        (r = buf_put(&info, bits, sizeof(bits))) != KMS_OK)
        goto out;
    params[0] = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0);
    params[1] = octets(OSSL_KDF_PARAM_KEY, z, z_len);
    params[2] = octets(OSSL_KDF_PARAM_INFO, info.data, info.len);
    params[3] = OSSL_PARAM_construct_end();
    if ((kdf = EVP_KDF_fetch(NULL, "SSKDF", NULL)) == NULL ||
        (ctx = EVP_KDF_CTX_new(kdf)) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    r = EVP_KDF_derive(ctx, out, out_len, params) == 1 ? KMS_OK : KMS_ERR_INTERNAL;
out:
    EVP_KDF_CTX_free(ctx); /* wipes its copy of z */
    EVP_KDF_free(kdf);
    buf_release(&info);
    wipe_dead_stack();
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}
