/*
 * scr.c - Secure Content Resources: their JSON, and AES-256-GCM over whole files.
 */
#include "kms/scr.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"

#define SCR_TEXT_MAX 4096
#define TURN         (1 << 20) /* bytes for one call of OpenSSL, whose lengths are ints */

/* Exactly len bytes in base64url. */
static int
get_bytes(unsigned char *out, size_t len, const json_t *from, const char *name)
{
    const char *text;
    int r = kms_json_str(from, name, SCR_TEXT_MAX, &text);

    if (r != KMS_OK)
        return r;
    if (strlen(text) != B64URL_LEN(len) || b64url_decode(out, text, strlen(text)) != KMS_OK)
        return KMS_ERR_MEMBER;
    return KMS_OK;
}

static int
get_text(struct buf *out, const json_t *from, const char *name)
{
    const char *text;
    int r = kms_json_str(from, name, SCR_TEXT_MAX, &text);

    return r == KMS_OK ? buf_puts(out, text) : r;
}

static int
get_members(struct scr *scr, const json_t *from)
{
    const char *enc;
    int r;

    if (kms_json_str(from, "enc", 64, &enc) != KMS_OK)
        return KMS_ERR_MEMBER;
    if (strcmp(enc, "A256GCM") != 0)
        return KMS_ERR_ALGORITHM;
    if ((scr->key = secret_new()) == NULL)
        return KMS_ERR_NOMEM;
    if ((r = get_bytes(scr->key->b, SECRET_LEN, from, "key")) != KMS_OK ||
        (r = get_bytes(scr->iv, SCR_IV_LEN, from, "iv")) != KMS_OK ||
        (r = get_text(&scr->aad, from, "aad")) != KMS_OK)
        return r == KMS_ERR_NOT_FOUND ? KMS_ERR_MEMBER : r;
    if ((r = get_text(&scr->loc, from, "loc")) != KMS_OK && r != KMS_ERR_NOT_FOUND)
        return r;
    r = get_bytes(scr->tag, SCR_TAG_LEN, from, "tag");
    scr->has_tag = r == KMS_OK;
    return r == KMS_ERR_NOT_FOUND ? KMS_OK : r;
}

int
scr_parse(struct scr *scr, const char *json, size_t len)
{
    json_t *tree;
    int r;

    memset(scr, 0, sizeof(*scr));
    if ((r = kms_json_parse(&tree, json, len)) != KMS_OK)
        return r;
    r = get_members(scr, tree);
    json_decref(tree);
    return r;
}

void
scr_release(struct scr *scr)
{
    secret_free(scr->key);
    buf_release(&scr->aad);
    buf_release(&scr->loc);
    OPENSSL_cleanse(scr, sizeof(*scr));
}

/* The file in place; the tag is neither looked at nor made here.  NULL: something failed. */
static EVP_CIPHER_CTX *
run(const struct scr *scr, int encrypt, unsigned char *data, size_t len)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int n, ok;

    ok = ctx != NULL &&
         EVP_CipherInit_ex(ctx, EVP_aes_256_gcm(), NULL, scr->key->b, scr->iv, encrypt) == 1 &&
         EVP_CipherUpdate(ctx, NULL, &n, scr->aad.data, (int)scr->aad.len) == 1;
    while (ok && len > 0) {
        size_t some = len < TURN ? len : TURN;

        ok = EVP_CipherUpdate(ctx, data, &n, data, (int)some) == 1;
        data += some;
        len -= some;
    }
    if (ok)
        return ctx;
    EVP_CIPHER_CTX_free(ctx);
    ERR_clear_error();
    return NULL;
}

int
scr_seal(struct scr *scr, unsigned char *data, size_t len)
{
    unsigned char last[16];
    EVP_CIPHER_CTX *ctx;
    int n;

    if (scr->has_tag)
        return KMS_ERR_STATE;
    if ((ctx = run(scr, 1, data, len)) == NULL)
        return KMS_ERR_INTERNAL;
    scr->has_tag = EVP_CipherFinal_ex(ctx, last, &n) == 1 &&
                   EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, SCR_TAG_LEN, scr->tag) == 1;
    EVP_CIPHER_CTX_free(ctx);
    return scr->has_tag ? KMS_OK : KMS_ERR_INTERNAL;
}

int
scr_open(const struct scr *scr, unsigned char *data, size_t len)
{
    unsigned char last[16], tag[SCR_TAG_LEN];
    EVP_CIPHER_CTX *ctx;
    bool genuine;
    int n;

    if (!scr->has_tag)
        return KMS_ERR_STATE;
    memcpy(tag, scr->tag, sizeof(tag));
    ctx = run(scr, 0, data, len);
    genuine = ctx != NULL &&
              EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, SCR_TAG_LEN, tag) == 1 &&
              EVP_CipherFinal_ex(ctx, last, &n) == 1;
    EVP_CIPHER_CTX_free(ctx);
    if (genuine)
        return KMS_OK;
    ERR_clear_error();
    if (len > 0)
        OPENSSL_cleanse(data, len);
    return KMS_ERR_CRYPTO;
}
