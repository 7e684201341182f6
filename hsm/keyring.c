/*
 * keyring.c - a bounded, least-recently-used set of unwrapped wrapping keys.
 *
 * A key is found again only under the whole of what named it, wrapped bytes included: nobody gets
 * at a wrapping key by its organisation and generation alone.
 */
#include "hsm/keyring.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#include "hsm/blob.h"
#include "hsm/log.h"
#include "proto/err.h"

#define BUCKETS 1024

struct held_key {
    LIST_ENTRY(held_key) bucket;
    TAILQ_ENTRY(held_key) use; /* head: used last */
    struct hsm_wrapping_key wk;
    CK_OBJECT_HANDLE handle; /* custody = token */
    unsigned char *bare;     /* custody = process: owned, in the secure heap */
    time_t until;            /* of a bare one, monotonic */
};

struct keyring {
    struct token *t;
    unsigned n;
    TAILQ_HEAD(held_keys, held_key) use;
    LIST_HEAD(, held_key) buckets[BUCKETS];
    EVP_CIPHER_CTX *cipher;
};

static time_t
monotonic(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

struct keyring *
keyring_new(struct token *t)
{
    struct keyring *k = OPENSSL_zalloc(sizeof(*k));

    if (k == NULL)
        return NULL;
    k->t = t;
    TAILQ_INIT(&k->use);
    if ((k->cipher = EVP_CIPHER_CTX_new()) == NULL) {
        OPENSSL_free(k);
        return NULL;
    }
    return k;
}

/* destroy: the token still has the session object. */
static void
drop(struct keyring *k, struct held_key *h, bool destroy)
{
    LIST_REMOVE(h, bucket);
    TAILQ_REMOVE(&k->use, h, use);
    k->n--;
    if (h->bare != NULL)
        OPENSSL_secure_clear_free(h->bare, HSM_KEY_LEN);
    else if (destroy)
        token_destroy(k->t, h->handle);
    OPENSSL_free(h);
}

void
keyring_forget(struct keyring *k)
{
    while (!TAILQ_EMPTY(&k->use))
        drop(k, TAILQ_FIRST(&k->use), false);
}

void
keyring_drop(struct keyring *k, const unsigned char kek_or_org[HSM_ID_LEN])
{
    struct held_key *h, *next;

    for (h = TAILQ_FIRST(&k->use); h != NULL; h = next) {
        next = TAILQ_NEXT(h, use);
        if (memcmp(h->wk.root, kek_or_org, HSM_ID_LEN) == 0 ||
            memcmp(h->wk.org, kek_or_org, HSM_ID_LEN) == 0)
            drop(k, h, true);
    }
}

void
keyring_expire(struct keyring *k)
{
    struct held_key *h, *next;
    time_t now = monotonic();

    for (h = TAILQ_FIRST(&k->use); h != NULL; h = next) {
        next = TAILQ_NEXT(h, use);
        if (h->bare != NULL && h->until <= now)
            drop(k, h, true);
    }
}

void
keyring_free(struct keyring *k)
{
    if (k == NULL)
        return;
    keyring_forget(k);
    EVP_CIPHER_CTX_free(k->cipher);
    OPENSSL_free(k);
}

/* Wrapped bytes are ciphertext: any of them spread well. */
static unsigned
bucket_of(const struct hsm_wrapping_key *wk)
{
    return ((unsigned)wk->wrapped[0] << 8 | wk->wrapped[1]) % BUCKETS;
}

static bool
is_same(const struct hsm_wrapping_key *a, const struct hsm_wrapping_key *b)
{
    return a->generation == b->generation && memcmp(a->root, b->root, HSM_ID_LEN) == 0 &&
           memcmp(a->org, b->org, HSM_ID_LEN) == 0 &&
           memcmp(a->wrapped, b->wrapped, HSM_WRAPPED_LEN) == 0;
}

/* Unwraps, reads, and leaves nothing in the token. */
static int
take_out(struct keyring *k, const struct kek *root, struct held_key *h)
{
    CK_OBJECT_HANDLE key;
    CK_ATTRIBUTE value = {CKA_VALUE, NULL, HSM_KEY_LEN};
    int err;

    if ((value.pValue = h->bare = OPENSSL_secure_zalloc(HSM_KEY_LEN)) == NULL ||
        !CRYPTO_secure_allocated(h->bare))
        return KMS_ERR_NOMEM;
    if ((err = token_unwrap_key(k->t, root->handle, h->wk.wrapped, USE_READ, &key)) != KMS_OK)
        return err;
    if (!CALL(k->t, C_GetAttributeValue, k->t->session, key, &value, 1) ||
        value.ulValueLen != HSM_KEY_LEN)
        err = KMS_ERR_UNAVAILABLE;
    token_destroy(k->t, key);
    h->until = monotonic() + (time_t)k->t->setup->custody_seconds;
    return err;
}

static int
hold(struct keyring *k, const struct hsm_wrapping_key *wk, struct held_key **out)
{
    const struct kek *root;
    struct held_key *h;
    int err;

    if ((err = keys_kek(k->t, wk->root, &root)) != KMS_OK)
        return err;
    if (k->n >= KEYRING_MAX)
        drop(k, TAILQ_LAST(&k->use, held_keys), true);
    if ((h = OPENSSL_zalloc(sizeof(*h))) == NULL)
        return KMS_ERR_NOMEM;
    h->wk = *wk;
    if (k->t->setup->custody_process)
        err = take_out(k, root, h);
    else
        err = token_unwrap_key(k->t, root->handle, wk->wrapped, USE_SEAL, &h->handle);
    if (err != KMS_OK) {
        OPENSSL_secure_clear_free(h->bare, HSM_KEY_LEN);
        OPENSSL_free(h);
        return err;
    }
    LIST_INSERT_HEAD(&k->buckets[bucket_of(wk)], h, bucket);
    TAILQ_INSERT_HEAD(&k->use, h, use);
    k->n++;
    *out = h;
    return KMS_OK;
}

int
keyring_get(struct keyring *k, const struct hsm_wrapping_key *wk, struct held_key **out)
{
    struct held_key *h;

    LIST_FOREACH(h, &k->buckets[bucket_of(wk)], bucket)
    if (is_same(&h->wk, wk))
        break;
    if (h != NULL && h->bare != NULL && h->until <= monotonic()) {
        drop(k, h, true);
        h = NULL;
    }
    if (h == NULL)
        return hold(k, wk, out);
    if (h != TAILQ_FIRST(&k->use)) {
        TAILQ_REMOVE(&k->use, h, use);
        TAILQ_INSERT_HEAD(&k->use, h, use);
    }
    *out = h;
    return KMS_OK;
}

/* custody = process: the same as token_seal. */
static int
own_seal(struct keyring *k, const struct held_key *h, const unsigned char aad[BLOB_AAD_LEN],
         const unsigned char in[HSM_KEY_LEN], unsigned char nonce[GCM_NONCE_LEN],
         unsigned char out[HSM_KEY_LEN + GCM_TAG_LEN])
{
    int n, ok;

    ok = RAND_bytes(nonce, GCM_NONCE_LEN) == 1 &&
         EVP_EncryptInit_ex(k->cipher, EVP_aes_256_gcm(), NULL, h->bare, nonce) == 1 &&
         EVP_EncryptUpdate(k->cipher, NULL, &n, aad, BLOB_AAD_LEN) == 1 &&
         EVP_EncryptUpdate(k->cipher, out, &n, in, HSM_KEY_LEN) == 1 &&
         EVP_EncryptFinal_ex(k->cipher, out + HSM_KEY_LEN, &n) == 1 &&
         EVP_CIPHER_CTX_ctrl(k->cipher, EVP_CTRL_AEAD_GET_TAG, GCM_TAG_LEN, out + HSM_KEY_LEN) == 1;
    EVP_CIPHER_CTX_reset(k->cipher); /* wipes the key's schedule */
    return ok ? KMS_OK : KMS_ERR_NOMEM;
}

static int
own_open(struct keyring *k, const struct held_key *h, const unsigned char aad[BLOB_AAD_LEN],
         const unsigned char nonce[GCM_NONCE_LEN],
         const unsigned char in[HSM_KEY_LEN + GCM_TAG_LEN], unsigned char out[HSM_KEY_LEN])
{
    unsigned char plain[HSM_KEY_LEN], tag[GCM_TAG_LEN];
    int n, ok;

    memcpy(tag, in + HSM_KEY_LEN, sizeof(tag));
    ok = EVP_DecryptInit_ex(k->cipher, EVP_aes_256_gcm(), NULL, h->bare, nonce) == 1 &&
         EVP_DecryptUpdate(k->cipher, NULL, &n, aad, BLOB_AAD_LEN) == 1 &&
         EVP_DecryptUpdate(k->cipher, plain, &n, in, HSM_KEY_LEN) == 1 &&
         EVP_CIPHER_CTX_ctrl(k->cipher, EVP_CTRL_AEAD_SET_TAG, sizeof(tag), tag) == 1 &&
         EVP_DecryptFinal_ex(k->cipher, plain, &n) == 1;
    EVP_CIPHER_CTX_reset(k->cipher);
    if (ok)
        memcpy(out, plain, HSM_KEY_LEN);
    OPENSSL_cleanse(plain, sizeof(plain));
    return ok ? KMS_OK : KMS_ERR_CRYPTO;
}

int
keyring_seal(struct keyring *k, const struct held_key *h, enum hsm_purpose purpose,
             const unsigned char object[HSM_ID_LEN], const unsigned char key[HSM_KEY_LEN],
             unsigned char blob[HSM_BLOB_LEN])
{
    unsigned char aad[BLOB_AAD_LEN], *nonce = blob + 1, *sealed = nonce + GCM_NONCE_LEN;

    blob_aad(&h->wk, purpose, object, aad);
    blob[0] = BLOB_FORMAT;
    if (h->bare != NULL)
        return own_seal(k, h, aad, key, nonce, sealed);
    return token_seal(k->t, h->handle, aad, sizeof(aad), key, nonce, sealed);
}

int
keyring_open(struct keyring *k, const struct held_key *h, enum hsm_purpose purpose,
             const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN],
             unsigned char key[HSM_KEY_LEN])
{
    unsigned char aad[BLOB_AAD_LEN];
    const unsigned char *nonce = blob + 1, *sealed = nonce + GCM_NONCE_LEN;

    if (blob[0] != BLOB_FORMAT)
        return KMS_ERR_CRYPTO;
    blob_aad(&h->wk, purpose, object, aad);
    if (h->bare != NULL)
        return own_open(k, h, aad, nonce, sealed, key);
    return token_open_sealed(k->t, h->handle, aad, sizeof(aad), nonce, sealed, key);
}
