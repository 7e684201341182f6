/* jwe.c - compact JWE: A256GCM, with the key given (dir), wrapped by RSA-OAEP, or agreed (ECDH-ES).
 */
#include "proto/jwe.h"

#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <stdbool.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/jose.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/kdf.h"

#define CEK_LEN      32
#define ECDH_ES      "ECDH-ES"
#define EPK_JSON_MAX 160
#define EK_MIN       256 /* RSA-2048 */
#define IV_B64_LEN   B64URL_LEN(JWE_IV_LEN)
#define TAG_B64_LEN  B64URL_LEN(JWE_TAG_LEN)

static const char *const alg_names[] = {
    [JWE_DIR] = "dir",
    [JWE_RSA_OAEP] = "RSA-OAEP",
    [JWE_RSA_OAEP_256] = "RSA-OAEP-256",
};

/*
 * One context each way for the life of the process, which has one thread: making one costs more
 * than sealing a message. A key is in them only while a call lasts, see gcm_forget.
 */
static EVP_CIPHER_CTX *gcm_sealing, *gcm_opening;

static int
gcm_ready(void)
{
    static const unsigned char zero[CEK_LEN];
    EVP_CIPHER *gcm = NULL;
    int r = KMS_ERR_NOMEM;

    if (gcm_opening != NULL)
        return KMS_OK;
    if ((gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL)) == NULL ||
        (gcm_sealing = EVP_CIPHER_CTX_new()) == NULL ||
        (gcm_opening = EVP_CIPHER_CTX_new()) == NULL ||
        EVP_EncryptInit_ex(gcm_sealing, gcm, NULL, zero, NULL) != 1 ||
        EVP_DecryptInit_ex(gcm_opening, gcm, NULL, zero, NULL) != 1)
        goto out;
    r = KMS_OK;
out:
    EVP_CIPHER_free(gcm); /* the contexts hold their own references */
    if (r != KMS_OK) {
        EVP_CIPHER_CTX_free(gcm_sealing);
        EVP_CIPHER_CTX_free(gcm_opening);
        gcm_sealing = gcm_opening = NULL;
        ERR_clear_error();
    }
    return r;
}

/*
 * The first round keys of AES-256 are the key itself.  Setting another key writes over all that was
 * made of it, and is much cheaper than freeing the context.
 */
static void
gcm_forget(EVP_CIPHER_CTX *ctx)
{
    static const unsigned char zero[CEK_LEN];

    if (EVP_CipherInit_ex(ctx, NULL, NULL, zero, NULL, -1) == 1)
        return;
    EVP_CIPHER_CTX_free(gcm_sealing);
    EVP_CIPHER_CTX_free(gcm_opening);
    gcm_sealing = gcm_opening = NULL;
}

/* In place: p holds len bytes of ciphertext and then of plaintext, which is genuine only if this
 * returns KMS_OK. */
static int
gcm_open(const struct jwe *jwe, const unsigned char cek[CEK_LEN], unsigned char *p, size_t len)
{
    unsigned char tag[JWE_TAG_LEN];
    OSSL_PARAM params[2];
    int n, r;

    if ((r = gcm_ready()) != KMS_OK)
        return r;
    memcpy(tag, jwe->tag, sizeof(tag));
    params[0] = OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, sizeof(tag));
    params[1] = OSSL_PARAM_construct_end();
    r = KMS_ERR_INTERNAL;
    if (EVP_DecryptInit_ex2(gcm_opening, NULL, cek, jwe->iv, params) == 1 &&
        EVP_DecryptUpdate(gcm_opening, NULL, &n, (const unsigned char *)jwe->aad,
                          (int)jwe->aad_len) == 1 &&
        (len == 0 || EVP_DecryptUpdate(gcm_opening, p, &n, p, (int)len) == 1))
        r = EVP_DecryptFinal_ex(gcm_opening, p + len, &n) == 1 ? KMS_OK : KMS_ERR_CRYPTO;
    gcm_forget(gcm_opening);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

static int
gcm_seal(const unsigned char cek[CEK_LEN], const unsigned char iv[JWE_IV_LEN], const char *aad,
         size_t aad_len, const void *plain, size_t len, unsigned char *out,
         unsigned char tag[JWE_TAG_LEN])
{
    OSSL_PARAM params[2];
    int n, r;

    if ((r = gcm_ready()) != KMS_OK)
        return r;
    params[0] = OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, JWE_TAG_LEN);
    params[1] = OSSL_PARAM_construct_end();
    r = KMS_ERR_INTERNAL;
    if (EVP_EncryptInit_ex2(gcm_sealing, NULL, cek, iv, NULL) == 1 &&
        EVP_EncryptUpdate(gcm_sealing, NULL, &n, (const unsigned char *)aad, (int)aad_len) == 1 &&
        (len == 0 || EVP_EncryptUpdate(gcm_sealing, out, &n, plain, (int)len) == 1) &&
        EVP_EncryptFinal_ex(gcm_sealing, out + len, &n) == 1 &&
        EVP_CIPHER_CTX_get_params(gcm_sealing, params) == 1)
        r = KMS_OK;
    gcm_forget(gcm_sealing);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

/* The five parts of a compact message, and no sixth. */
static int
split(const char *part[5], size_t part_len[5], const char *compact, size_t len)
{
    const char *end = compact + len, *dot;
    int i;

    for (i = 0; i < 5; i++) {
        dot = memchr(compact, '.', (size_t)(end - compact));
        if ((dot == NULL) != (i == 4))
            return KMS_ERR_SYNTAX;
        part[i] = compact;
        part_len[i] = (size_t)((dot == NULL ? end : dot) - compact);
        compact = dot == NULL ? end : dot + 1;
    }
    return KMS_OK;
}

/* What stands beside and behind the header, of a jwe whose alg is known. */
static int
read_parts(struct jwe *jwe, const char *part[5], const size_t part_len[5])
{
    int r;

    jwe->aad = part[0];
    jwe->aad_len = part_len[0];
    jwe->ek_len = B64URL_BYTES(part_len[1]);
    if (jwe->alg == JWE_DIR ? part_len[1] != 0 : jwe->ek_len < EK_MIN || jwe->ek_len > JWE_EK_MAX)
        return KMS_ERR_LENGTH;
    if (part_len[2] != IV_B64_LEN || part_len[4] != TAG_B64_LEN)
        return KMS_ERR_LENGTH;
    if (part_len[3] % 4 == 1)
        return KMS_ERR_SYNTAX;
    jwe->ciphertext = part[3];
    jwe->ciphertext_len = part_len[3];
    if ((r = b64url_decode(jwe->ek, part[1], part_len[1])) != KMS_OK ||
        (r = b64url_decode(jwe->iv, part[2], part_len[2])) != KMS_OK ||
        (r = b64url_decode(jwe->tag, part[4], part_len[4])) != KMS_OK)
        return r;
    return KMS_OK;
}

int
jwe_parse(struct jwe *jwe, const char *compact, size_t len)
{
    struct jose_header h;
    const char *part[5];
    size_t part_len[5], i;
    int r;

    if (len > JWE_MAX)
        return KMS_ERR_LENGTH;
    if ((r = split(part, part_len, compact, len)) != KMS_OK ||
        (r = jose_header_parse(&h, part[0], part_len[0],
                               JOSE_ALG | JOSE_ENC | JOSE_KID | JOSE_TYP | JOSE_CTY)) != KMS_OK)
        return r;
    if (!(h.seen & JOSE_ALG) || !(h.seen & JOSE_ENC))
        return KMS_ERR_HEADER;
    for (i = 0; i < sizeof(alg_names) / sizeof(alg_names[0]); i++)
        if (strcmp(h.alg, alg_names[i]) == 0)
            break;
    if (i == sizeof(alg_names) / sizeof(alg_names[0]) || strcmp(h.enc, "A256GCM") != 0)
        return KMS_ERR_ALGORITHM;
    jwe->alg = (enum jwe_alg)i;
    memcpy(jwe->kid, h.kid, sizeof(jwe->kid));
    return read_parts(jwe, part, part_len);
}

int
jwe_open(const struct jwe *jwe, const unsigned char cek[32], struct buf *plain)
{
    size_t len = B64URL_BYTES(jwe->ciphertext_len);
    unsigned char *p;
    int r;

    if ((r = buf_reserve(plain, len)) != KMS_OK)
        return r;
    /* Behind what the buffer counts, so that nobody sees it before its tag was right. */
    p = plain->data + plain->len;
    if ((r = b64url_decode(p, jwe->ciphertext, jwe->ciphertext_len)) == KMS_OK)
        r = gcm_open(jwe, cek, p, len);
    if (r == KMS_OK)
        plain->len += len;
    else
        OPENSSL_cleanse(p, len);
    plain->data[plain->len] = '\0';
    return r;
}

static bool
plain_or_none(const char *text, size_t max)
{
    return text == NULL || jose_is_plain(text, strlen(text), max);
}

/* Appends the encoded header, and says where in the buffer it stands.  epk: JSON, or NULL. */
static int
put_header(struct buf *out, size_t *at, size_t *at_len, const char *alg, const char *kid,
           const char *cty, const char *epk)
{
    /* The longest: {"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"...","cty":"...","epk":...} */
    char json[96 + JOSE_KID_MAX + JOSE_VALUE_MAX + EPK_JSON_MAX], *p = json;

    if (!plain_or_none(kid, JOSE_KID_MAX) || !plain_or_none(cty, JOSE_VALUE_MAX))
        return KMS_ERR_HEADER;
    p = stpcpy(stpcpy(p, "{\"alg\":\""), alg);
    p = stpcpy(p, "\",\"enc\":\"A256GCM\"");
    if (kid != NULL)
        p = stpcpy(stpcpy(stpcpy(p, ",\"kid\":\""), kid), "\"");
    if (cty != NULL)
        p = stpcpy(stpcpy(stpcpy(p, ",\"cty\":\""), cty), "\"");
    if (epk != NULL)
        p = stpcpy(stpcpy(p, ",\"epk\":"), epk);
    *p++ = '}';
    *at = out->len;
    *at_len = B64URL_LEN((size_t)(p - json));
    return b64url_put(out, json, (size_t)(p - json));
}

/* Everything behind the header and the encrypted key, both of which are in the buffer. */
static int
put_sealed(struct buf *out, size_t header, size_t header_len, const unsigned char cek[CEK_LEN],
           const void *plain, size_t len)
{
    unsigned char iv[JWE_IV_LEN], tag[JWE_TAG_LEN], *raw;
    char *p;
    int r;

    if (len > INT_MAX / 2)
        return KMS_ERR_LENGTH;
    if ((r = buf_reserve(out, IV_B64_LEN + B64URL_LEN(len) + TAG_B64_LEN + 3)) != KMS_OK)
        return r;
    if (RAND_bytes(iv, sizeof(iv)) != 1)
        return KMS_ERR_INTERNAL;
    p = (char *)out->data + out->len;
    *p++ = '.';
    b64url_encode(p, iv, sizeof(iv));
    p += IV_B64_LEN;
    *p++ = '.';
    /*
     * The ciphertext first stands at the end of the room that its base64url will take: encoding it
     * towards the front never writes over a byte that it has still to read.
     */
    raw = (unsigned char *)p + B64URL_LEN(len) - len;
    if ((r = gcm_seal(cek, iv, (const char *)out->data + header, header_len, plain, len, raw,
                      tag)) != KMS_OK)
        return r;
    b64url_encode(p, raw, len);
    p += B64URL_LEN(len);
    *p++ = '.';
    b64url_encode(p, tag, sizeof(tag));
    p += TAG_B64_LEN;
    *p = '\0';
    out->len = (size_t)(p - (char *)out->data);
    return KMS_OK;
}

int
jwe_seal_dir(struct buf *out, const char *kid, const unsigned char key[32], const void *plain,
             size_t len)
{
    size_t before = out->len, header, header_len;
    int r;

    if ((r = put_header(out, &header, &header_len, alg_names[JWE_DIR], kid, NULL, NULL)) !=
            KMS_OK ||
        (r = buf_putc(out, '.')) != KMS_OK ||
        (r = put_sealed(out, header, header_len, key, plain, len)) != KMS_OK)
        buf_truncate(out, before);
    return r;
}

static EVP_PKEY_CTX *
oaep_new(EVP_PKEY *key, enum jwe_alg alg, int (*init)(EVP_PKEY_CTX *))
{
    const EVP_MD *md = alg == JWE_RSA_OAEP ? EVP_sha1() : EVP_sha256();
    EVP_PKEY_CTX *ctx;

    if ((ctx = EVP_PKEY_CTX_new(key, NULL)) != NULL && init(ctx) == 1 &&
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) == 1 &&
        EVP_PKEY_CTX_set_rsa_oaep_md(ctx, md) == 1 && EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, md) == 1)
        return ctx;
    EVP_PKEY_CTX_free(ctx);
    return NULL;
}

static int
seal_rsa(struct buf *out, const char *kid, const char *cty, enum jwe_alg alg, EVP_PKEY *to,
         const void *plain, size_t len)
{
    unsigned char cek[CEK_LEN], ek[JWE_EK_MAX];
    size_t before = out->len, header, header_len, ek_len = sizeof(ek);
    EVP_PKEY_CTX *ctx = NULL;
    int r;

    if (alg == JWE_DIR || !EVP_PKEY_is_a(to, "RSA"))
        return KMS_ERR_ALGORITHM;
    if (EVP_PKEY_get_size(to) < EK_MIN || EVP_PKEY_get_size(to) > JWE_EK_MAX)
        return KMS_ERR_KEY;
    if ((ctx = oaep_new(to, alg, EVP_PKEY_encrypt_init)) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    if (RAND_priv_bytes(cek, sizeof(cek)) != 1 ||
        EVP_PKEY_encrypt(ctx, ek, &ek_len, cek, sizeof(cek)) != 1) {
        r = KMS_ERR_INTERNAL;
        goto out;
    }
    if ((r = put_header(out, &header, &header_len, alg_names[alg], kid, cty, NULL)) != KMS_OK ||
        (r = buf_putc(out, '.')) != KMS_OK || (r = b64url_put(out, ek, ek_len)) != KMS_OK ||
        (r = put_sealed(out, header, header_len, cek, plain, len)) != KMS_OK)
        buf_truncate(out, before);
out:
    OPENSSL_cleanse(cek, sizeof(cek));
    EVP_PKEY_CTX_free(ctx);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

int
jwe_seal_rsa(struct buf *out, const char *kid, enum jwe_alg alg, EVP_PKEY *to, const void *plain,
             size_t len)
{
    return seal_rsa(out, kid, NULL, alg, to, plain, len);
}

int
jwe_open_rsa(const struct jwe *jwe, EVP_PKEY *priv, struct buf *plain)
{
    unsigned char cek[JWE_EK_MAX];
    size_t cek_len = sizeof(cek);
    EVP_PKEY_CTX *ctx;
    int r;

    if (jwe->alg == JWE_DIR || !EVP_PKEY_is_a(priv, "RSA"))
        return KMS_ERR_ALGORITHM;
    if ((ctx = oaep_new(priv, jwe->alg, EVP_PKEY_decrypt_init)) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    /* Bad padding and a key of another length go on with a random key, and fail at the tag like any
     * other. */
    if (EVP_PKEY_decrypt(ctx, cek, &cek_len, jwe->ek, jwe->ek_len) != 1 || cek_len != CEK_LEN) {
        if (RAND_priv_bytes(cek, CEK_LEN) != 1) {
            r = KMS_ERR_INTERNAL;
            goto out;
        }
    }
    r = jwe_open(jwe, cek, plain);
out:
    OPENSSL_cleanse(cek, sizeof(cek));
    EVP_PKEY_CTX_free(ctx);
    ERR_clear_error();
    return r;
}

/* ECDH-ES: the content encryption key is agreed between a fresh key pair and the receiver's. */

static int
agree(unsigned char cek[CEK_LEN], EVP_PKEY *mine, EVP_PKEY *peer)
{
    unsigned char shared[32];
    int r;

    /* In direct agreement the name that goes into the derivation is that of enc. */
    if ((r = ecdh_shared(shared, mine, peer)) == KMS_OK)
        r = concat_kdf_sha256(cek, CEK_LEN, shared, sizeof(shared), "A256GCM", NULL, 0, NULL, 0);
    OPENSSL_cleanse(shared, sizeof(shared));
    return r;
}

static bool
is_p256(EVP_PKEY *key)
{
    char group[32];

    return EVP_PKEY_is_a(key, "EC") &&
           EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) == 1 &&
           strcmp(group, SN_X9_62_prime256v1) == 0;
}

static int
seal_ecdh(struct buf *out, const char *kid, const char *cty, EVP_PKEY *to, const void *plain,
          size_t len)
{
    size_t before = out->len, header, header_len;
    struct buf epk = BUF_INIT;
    unsigned char cek[CEK_LEN];
    EVP_PKEY *mine = NULL;
    json_t *jwk = NULL;
    int r;

    if ((mine = ecdh_generate()) == NULL || (jwk = jwk_from_public(mine)) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    if ((r = kms_json_put(&epk, jwk)) != KMS_OK || (r = agree(cek, mine, to)) != KMS_OK)
        goto out;
    if (epk.len > EPK_JSON_MAX) {
        r = KMS_ERR_INTERNAL;
        goto out;
    }
    if ((r = put_header(out, &header, &header_len, ECDH_ES, kid, cty, buf_str(&epk))) != KMS_OK ||
        (r = buf_putc(out, '.')) != KMS_OK || /* no encrypted key */
        (r = put_sealed(out, header, header_len, cek, plain, len)) != KMS_OK)
        buf_truncate(out, before);
out:
    OPENSSL_cleanse(cek, sizeof(cek));
    EVP_PKEY_free(mine);
    json_decref(jwk);
    buf_release(&epk);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

int
jwe_seal_to(struct buf *out, EVP_PKEY *to, const char *kid, const char *cty, const void *plain,
            size_t len)
{
    if (EVP_PKEY_is_a(to, "RSA"))
        return seal_rsa(out, kid, cty, JWE_RSA_OAEP_256, to, plain, len);
    return is_p256(to) ? seal_ecdh(out, kid, cty, to, plain, len) : KMS_ERR_ALGORITHM;
}

/* The header of an ECDH-ES message: as others, but for epk, which is an object. */
static int
read_ecdh_header(EVP_PKEY **epk, const char *text, size_t len)
{
    static const char *const strings[] = {"alg", "enc", "kid", "typ", "cty"};
    struct buf json = BUF_INIT;
    json_t *header = NULL, *value;
    const char *name, *s;
    size_t i;
    int r;

    if (B64URL_BYTES(len) > JOSE_HEADER_MAX)
        return KMS_ERR_LENGTH;
    if ((r = b64url_get(&json, text, len)) != KMS_OK ||
        (r = kms_json_parse(&header, buf_str(&json), json.len)) != KMS_OK)
        goto out;
    json_object_foreach(header, name, value)
    {
        for (i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
            if (strcmp(name, strings[i]) == 0)
                break;
        if (i < sizeof(strings) / sizeof(strings[0]) ? !json_is_string(value)
                                                     : strcmp(name, "epk") != 0) {
            r = KMS_ERR_HEADER;
            goto out;
        }
    }
    if (kms_json_str(header, "alg", JOSE_VALUE_MAX, &s) != KMS_OK || strcmp(s, ECDH_ES) != 0 ||
        kms_json_str(header, "enc", JOSE_VALUE_MAX, &s) != KMS_OK || strcmp(s, "A256GCM") != 0)
        r = KMS_ERR_ALGORITHM;
    else
        r = jwk_get_p256(epk, json_object_get(header, "epk"));
out:
    json_decref(header);
    buf_release(&json);
    return r;
}

static int
open_ecdh(const char *compact, size_t len, EVP_PKEY *priv, struct buf *plain)
{
    struct jwe jwe = {.alg = JWE_DIR};
    unsigned char cek[CEK_LEN];
    EVP_PKEY *epk = NULL;
    const char *part[5];
    size_t part_len[5];
    int r;

    if (len > JWE_MAX)
        return KMS_ERR_LENGTH;
    if ((r = split(part, part_len, compact, len)) != KMS_OK ||
        (r = read_parts(&jwe, part, part_len)) != KMS_OK ||
        (r = read_ecdh_header(&epk, part[0], part_len[0])) != KMS_OK)
        return r;
    if ((r = agree(cek, priv, epk)) == KMS_OK)
        r = jwe_open(&jwe, cek, plain);
    OPENSSL_cleanse(cek, sizeof(cek));
    EVP_PKEY_free(epk);
    return r;
}

int
jwe_open_to(const char *compact, size_t len, EVP_PKEY *priv, struct buf *plain)
{
    struct jwe jwe;
    int r;

    if (is_p256(priv))
        return open_ecdh(compact, len, priv, plain);
    if ((r = jwe_parse(&jwe, compact, len)) != KMS_OK)
        return r;
    return jwe_open_rsa(&jwe, priv, plain);
}
