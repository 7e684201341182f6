/*
 * rsa.c - operations of the RSA keys and of the audit key.
 *
 * Opening RSA-OAEP must tell nobody whether the padding was right (RFC 7516 11.5): not by its
 * result, and not by its time.  So whatever comes, one private operation on a well-formed number is
 * done in the token, the random key is ready beforehand, and which of the two leaves is chosen
 * without a branch.  The raw operation is the first choice: it cannot fail for what a caller sent,
 * so its errors are the token's, and the padding is checked here in constant time; a module's own
 * check takes another path, and another time, when it fails.
 */
/* OpenSSL 3.0 has its constant-time padding check only under the name that it deprecates. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "hsm/token.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <string.h>

#include "proto/err.h"

static const EVP_MD *
hash_md(enum hsm_oaep hash)
{
    return hash == HSM_OAEP_SHA256 ? EVP_sha256() : EVP_sha1();
}

/* 0xff where a == b, else 0, without a branch. */
static unsigned char
mask_equal(size_t a, size_t b)
{
    size_t d = a ^ b;

    return (unsigned char)(((d | (0 - d)) >> (sizeof(d) * 8 - 1)) - 1);
}

/* out = good == 0xff ? yes : out */
static void
choose(unsigned char good, unsigned char out[HSM_KEY_LEN], const unsigned char yes[HSM_KEY_LEN])
{
    for (size_t i = 0; i < HSM_KEY_LEN; i++)
        out[i] = (unsigned char)((yes[i] & good) | (out[i] & ~good));
}

/* The private operation by itself: any code but CKR_OK is the token's fault.  em has the modulus'
 * length. */
static int
raw_decrypt(struct token *t, const struct rsa_key *key, unsigned char *in, unsigned char *em)
{
    CK_MECHANISM mechanism = {CKM_RSA_X_509, NULL, 0};
    CK_ULONG len = key->n_len;

    if (!CALL(t, C_DecryptInit, t->session, &mechanism, key->handle) ||
        !CALL(t, C_Decrypt, t->session, in, key->n_len, em, &len) || len > key->n_len)
        return KMS_ERR_UNAVAILABLE;
    if (len < key->n_len) { /* a module that drops leading zeros */
        memmove(em + key->n_len - len, em, len);
        memset(em, 0, key->n_len - len);
    }
    return KMS_OK;
}

/* *n: the length of what was sealed, negative where the padding is wrong. */
static int
raw_open(struct token *t, const struct rsa_key *key, enum hsm_oaep hash, unsigned char *in,
         unsigned char plain[HSM_RSA_MAX], int *n)
{
    unsigned char em[HSM_RSA_MAX] = {0};
    int err, len = (int)key->n_len;

    if ((err = raw_decrypt(t, key, in, em)) == KMS_OK) {
        *n = RSA_padding_check_PKCS1_OAEP_mgf1(plain, len, em, len, len, NULL, 0, hash_md(hash),
                                               hash_md(hash));
        ERR_clear_error();
    }
    OPENSSL_cleanse(em, sizeof(em));
    return err;
}

static int
open_raw(struct token *t, const struct rsa_key *key, enum hsm_oaep hash, unsigned char *in,
         unsigned char *good, unsigned char out[HSM_KEY_LEN])
{
    unsigned char plain[HSM_RSA_MAX] = {0};
    int err, n;

    if ((err = raw_open(t, key, hash, in, plain, &n)) == KMS_OK) {
        *good = mask_equal((size_t)n, HSM_KEY_LEN);
        memcpy(out, plain, HSM_KEY_LEN);
    }
    OPENSSL_cleanse(plain, sizeof(plain));
    return err;
}

static int
open_native(struct token *t, const struct rsa_key *key, enum hsm_oaep hash, unsigned char *in,
            unsigned char *good, unsigned char out[HSM_KEY_LEN])
{
    CK_RSA_PKCS_OAEP_PARAMS params = {
        .hashAlg = hash == HSM_OAEP_SHA256 ? CKM_SHA256 : CKM_SHA_1,
        .mgf = hash == HSM_OAEP_SHA256 ? CKG_MGF1_SHA256 : CKG_MGF1_SHA1,
        .source = CKZ_DATA_SPECIFIED,
    };
    CK_MECHANISM mechanism = {CKM_RSA_PKCS_OAEP, &params, sizeof(params)};
    unsigned char plain[HSM_RSA_MAX] = {0};
    CK_ULONG len = sizeof(plain);

    if (!CALL(t, C_DecryptInit, t->session, &mechanism, key->handle))
        return KMS_ERR_UNAVAILABLE;
    CALL(t, C_Decrypt, t->session, in, key->n_len, plain, &len);
    *good = mask_equal(t->rv, CKR_OK) & mask_equal(len, HSM_KEY_LEN);
    memcpy(out, plain, HSM_KEY_LEN);
    OPENSSL_cleanse(plain, sizeof(plain));
    /* Was it the padding or the token?  Asked after every one alike, so that the question tells
     * nothing. */
    return canary_sings(t, false) ? KMS_OK : KMS_ERR_UNAVAILABLE;
}

int
rsa_oaep_open(struct token *t, enum hsm_oaep hash, const unsigned char *ek, size_t ek_len,
              unsigned char cek[HSM_KEY_LEN])
{
    unsigned char in[HSM_RSA_MAX] = {0}, opened[HSM_KEY_LEN];
    unsigned char fits, good = 0;
    const struct rsa_key *key = &t->static_key;
    bool own = hash == HSM_OAEP_SHA256 ? t->can.oaep_sha256 : t->can.oaep_sha1;
    int err;

    if (RAND_bytes(cek, HSM_KEY_LEN) != 1)
        return KMS_ERR_UNAVAILABLE;
    /* The modulus is public, so this comparison may show; the token is to be given something to
     * work on all the same. */
    fits = ek_len == key->n_len && memcmp(ek, key->n, ek_len) < 0 ? 0xff : 0;
    if (fits)
        memcpy(in, ek, ek_len);
    else
        in[key->n_len - 1] = 2;
    if (own && (t->setup->oaep_token || !t->can.raw_rsa))
        err = open_native(t, key, hash, in, &good, opened);
    else
        err = open_raw(t, key, hash, in, &good, opened);
    if (err == KMS_OK)
        choose(good & fits, cek, opened);
    OPENSSL_cleanse(opened, sizeof(opened));
    return err;
}

/* Wrong padding is told here: who imports is an administrator, and is told what was wrong. */
int
rsa_open_main_key(struct token *t, const struct rsa_key *key, const unsigned char *ek,
                  size_t ek_len, unsigned char out[HSM_KEY_LEN], size_t *len)
{
    unsigned char in[HSM_RSA_MAX] = {0}, plain[HSM_RSA_MAX] = {0};
    int err, n = -1;

    if (ek_len != key->n_len || memcmp(ek, key->n, ek_len) >= 0)
        return KMS_ERR_CRYPTO;
    memcpy(in, ek, ek_len);
    if ((err = raw_open(t, key, HSM_OAEP_SHA256, in, plain, &n)) == KMS_OK) {
        if (n < 0)
            err = KMS_ERR_CRYPTO;
        else if (n != 16 && n != HSM_KEY_LEN)
            err = KMS_ERR_LENGTH;
        else
            memcpy(out, plain, *len = (size_t)n);
    }
    OPENSSL_cleanse(plain, sizeof(plain));
    return err;
}

static EVP_PKEY *
public_half(const struct rsa_key *k)
{
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    BIGNUM *n = BN_bin2bn(k->n, (int)k->n_len, NULL);
    BIGNUM *e = BN_bin2bn(k->e, (int)k->e_len, NULL);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    OSSL_PARAM *params = NULL;
    EVP_PKEY *key = NULL;

    if (build != NULL && n != NULL && e != NULL && ctx != NULL &&
        OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_N, n) &&
        OSSL_PARAM_BLD_push_BN(build, OSSL_PKEY_PARAM_RSA_E, e) &&
        (params = OSSL_PARAM_BLD_to_param(build)) != NULL && EVP_PKEY_fromdata_init(ctx) == 1 &&
        EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_PUBLIC_KEY, params) != 1)
        key = NULL;
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(build);
    EVP_PKEY_CTX_free(ctx);
    BN_free(n);
    BN_free(e);
    return key;
}

int
rsa_public_der(const struct rsa_key *key, unsigned char *der, size_t max, size_t *len)
{
    EVP_PKEY *public = public_half(key);
    int n = public != NULL ? i2d_PUBKEY(public, NULL) : -1;

    if (n > 0 && (size_t)n <= max)
        *len = (size_t)i2d_PUBKEY(public, &der);
    EVP_PKEY_free(public);
    return n > 0 && (size_t)n <= max ? KMS_OK : KMS_ERR_INTERNAL;
}

int
rsa_seal(const struct rsa_key *k, enum hsm_oaep hash, const unsigned char in[HSM_KEY_LEN],
         unsigned char ek[HSM_RSA_MAX])
{
    EVP_PKEY *key = public_half(k);
    EVP_PKEY_CTX *ctx = key != NULL ? EVP_PKEY_CTX_new(key, NULL) : NULL;
    size_t len = HSM_RSA_MAX;
    int err = KMS_ERR_INTERNAL;

    if (ctx != NULL && EVP_PKEY_encrypt_init(ctx) == 1 &&
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) == 1 &&
        EVP_PKEY_CTX_set_rsa_oaep_md(ctx, hash_md(hash)) == 1 &&
        EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, hash_md(hash)) == 1 &&
        EVP_PKEY_encrypt(ctx, ek, &len, in, HSM_KEY_LEN) == 1 && len == k->n_len)
        err = KMS_OK;
    ERR_clear_error();
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(key);
    return err;
}

int
rsa_probe(struct token *t, const struct rsa_key *key, enum hsm_oaep hash, bool raw)
{
    unsigned char known[HSM_KEY_LEN], ek[HSM_RSA_MAX], back[HSM_KEY_LEN], good = 0;
    int err = KMS_ERR_UNAVAILABLE;

    if (RAND_bytes(known, sizeof(known)) == 1 && rsa_seal(key, hash, known, ek) == KMS_OK)
        err = raw ? open_raw(t, key, hash, ek, &good, back)
                  : open_native(t, key, hash, ek, &good, back);
    if (err == KMS_OK && (!good || memcmp(back, known, sizeof(known)) != 0))
        err = KMS_ERR_CRYPTO;
    return err;
}

bool
rsa_canary_sings(struct token *t)
{
    return rsa_probe(t, &t->static_key, HSM_OAEP_SHA1, t->can.raw_rsa) == KMS_OK;
}

int
rsa_sign_pss(struct token *t, const unsigned char digest[32], unsigned char *sig, size_t *len)
{
    CK_RSA_PKCS_PSS_PARAMS params = {.hashAlg = CKM_SHA256, .mgf = CKG_MGF1_SHA256, .sLen = 32};
    CK_MECHANISM mechanism = {CKM_RSA_PKCS_PSS, &params, sizeof(params)};
    unsigned char in[32];
    CK_ULONG n = HSM_RSA_MAX;

    memcpy(in, digest, sizeof(in));
    if (!CALL(t, C_SignInit, t->session, &mechanism, t->static_key.handle) ||
        !CALL(t, C_Sign, t->session, in, sizeof(in), sig, &n) || n != t->static_key.n_len)
        return KMS_ERR_UNAVAILABLE;
    *len = n;
    return KMS_OK;
}

/* An entry that cannot be verified must not be signed: what the token says is checked. */
int
audit_sign(struct token *t, const unsigned char *msg, size_t len, unsigned char sig[64])
{
    CK_MECHANISM mechanism = {CKM_EDDSA, NULL, 0};
    unsigned char in[FRAME_AUDIT_MAX];
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, t->audit_public, 32);
    CK_ULONG n = 64;
    int err = KMS_ERR_UNAVAILABLE;

    memcpy(in, msg, len);
    if (md != NULL && key != NULL && CALL(t, C_SignInit, t->session, &mechanism, t->audit_key) &&
        CALL(t, C_Sign, t->session, in, len, sig, &n) && n == 64 &&
        EVP_DigestVerifyInit(md, NULL, NULL, NULL, key) == 1 &&
        EVP_DigestVerify(md, sig, 64, in, len) == 1)
        err = KMS_OK;
    ERR_clear_error();
    EVP_MD_CTX_free(md);
    EVP_PKEY_free(key);
    return err;
}
