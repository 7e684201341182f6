/*
 * life.c - keys of the token that come and go: roots and period keys by id, imported main keys, and
 * wrapping keys on their way from one to another; and how they end.
 *
 * The ids are the caller's, and he may have died over an earlier try.  So what is there already is
 * proved like what was just made, and used; what does not prove itself is never answered.
 */
#include "hsm/token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

#include "hsm/log.h"
#include "proto/err.h"

#define FEW 8

/* A session that can write to the token; the caller closes it. */
static int
write_begin(struct token *t, CK_SESSION_HANDLE *rw)
{
    return CALL(t, C_OpenSession, t->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, rw)
               ? KMS_OK
               : KMS_ERR_LIMIT;
}

static void
write_end(struct token *t, CK_SESSION_HANDLE rw)
{
    CK_RV rv = t->rv;
    const char *call = t->call;

    CALL(t, C_CloseSession, rw);
    t->rv = rv;
    t->call = call;
}

static int
find_one(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN], struct found *out,
         unsigned *n)
{
    struct found found[FEW];
    int err = keys_find(t, kind, keys_class(kind), id, found, FEW, n);

    if (err == KMS_OK && *n > 0)
        *out = found[0];
    if (err == KMS_OK && *n > 1)
        return KMS_ERR_STATE;
    return err;
}

/* What does not work while the token does was left behind by a crash of the token's.  It is never
 * used; but whether it ever was, and may be destroyed, only the caller knows. */
static int
unless_broken(struct token *t, int err)
{
    return err == KMS_ERR_UNAVAILABLE && canary_sings(t, true) ? KMS_ERR_KEY : err;
}

/* The key that is in the token under this id now, however it came there.  Not found: KMS_OK, and
 * *n is 0. */
static int
kek_existing(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN], unsigned *n,
             unsigned char kcv[HSM_KCV_LEN])
{
    struct found f;
    int err;

    if ((err = find_one(t, kind, id, &f, n)) != KMS_OK || *n == 0)
        return err;
    if (!keys_is_kept(t, f.handle))
        return unless_broken(t, KMS_ERR_UNAVAILABLE);
    return unless_broken(t, kek_prove(t, f.handle, kcv));
}

/* Makes a lasting key and proves it as whoever comes later will find it.  Ours is destroyed again
 * where it does not prove itself, or somebody else made one of this id meanwhile. */
static int
kek_add(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN],
        const struct kek_source *from, unsigned char kcv[HSM_KCV_LEN])
{
    CK_SESSION_HANDLE rw;
    CK_OBJECT_HANDLE key;
    unsigned n = 0;
    int err;

    if (t->keks_n >= TOKEN_KEKS_MAX)
        return KMS_ERR_LIMIT;
    if ((err = write_begin(t, &rw)) != KMS_OK)
        return err;
    if (!kek_make(t, rw, kind, id, true, from, &key)) {
        err = KMS_ERR_LIMIT;
    } else if ((err = kek_existing(t, kind, id, &n, kcv)) != KMS_OK || n == 0) {
        err = err == KMS_OK || err == KMS_ERR_KEY ? KMS_ERR_UNAVAILABLE : err;
        t->f->C_DestroyObject(rw, key);
    }
    write_end(t, rw);
    if (err == KMS_OK && kind == HSM_ROOT)
        return keks_resolve(t);
    return err; /* the others are looked for when they are named */
}

int
life_key_new(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN],
             unsigned char kcv[HSM_KCV_LEN])
{
    static const struct kek_source generated = {.how = KEK_GENERATED};
    unsigned n;
    int err;

    if ((err = kek_existing(t, kind, id, &n, kcv)) != KMS_OK || n > 0)
        return err;
    if (kind == HSM_ROOT && (err = keks_resolve(t)) != KMS_OK)
        return err;
    /* The oldest root is the one that new wrapping keys go under unless they say otherwise: a new
     * one must not take its place by its id. */
    if (kind == HSM_ROOT && t->roots_n > 0 &&
        memcmp(t->keks[t->roots_n - 1].id, id, HSM_ID_LEN) > 0)
        return KMS_ERR_STATE;
    return kek_add(t, kind, id, &generated, kcv);
}

/* --- the end of a key --- */

/* Takes away every object of this kind and id, in whatever state they are. */
static int
take_away(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN])
{
    const CK_OBJECT_CLASS classes[] = {keys_class(kind), CKO_PUBLIC_KEY};
    struct found found[FEW];
    CK_SESSION_HANDLE rw;
    unsigned n;
    int err;

    if ((err = write_begin(t, &rw)) != KMS_OK)
        return err;
    for (int c = 0; err == KMS_OK && c < (kind == HSM_IMPORT ? 2 : 1); c++) {
        if ((err = keys_find(t, kind, classes[c], id, found, FEW, &n)) != KMS_OK)
            break;
        /* Another custodian does the same now: an object that cannot be destroyed may be gone
         * already.  What counts is what is found afterwards. */
        for (unsigned i = 0; i < n; i++)
            CALL(t, C_DestroyObject, rw, found[i].handle);
        if ((err = keys_find(t, kind, classes[c], id, found, FEW, &n)) == KMS_OK && n > 0)
            err = KMS_ERR_LIMIT;
    }
    write_end(t, rw);
    return err;
}

/* The handle that this custodian has used for it; 0: none. */
static CK_OBJECT_HANDLE
handle_of(const struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN])
{
    for (unsigned i = 0; i < t->keks_n; i++)
        if (t->keks[i].kind == kind && memcmp(t->keks[i].id, id, HSM_ID_LEN) == 0)
            return t->keks[i].handle;
    return 0;
}

/* Without a root nothing could be used any more. */
static bool
is_last_root(const struct token *t, const unsigned char id[HSM_ID_LEN])
{
    return handle_of(t, HSM_ROOT, id) != 0 &&
           (t->roots_n == 1 || (t->setup->has_root && memcmp(t->setup->root, id, HSM_ID_LEN) == 0));
}

/*
 * That nothing is found is what the token says; that the handle from before opens nothing is what
 * it does.  A device that is dead opens nothing either, so the canary has the last word.
 */
int
life_key_destroy(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN])
{
    unsigned char wrapped[HSM_WRAPPED_LEN], kcv[HSM_KCV_LEN];
    CK_OBJECT_HANDLE old = handle_of(t, kind, id), key;
    struct found f;
    unsigned n;
    int err;

    if (kind == HSM_ROOT && (err = keks_resolve(t)) != KMS_OK)
        return err;
    if (kind == HSM_ROOT && is_last_root(t, id))
        return KMS_ERR_STATE;
    if (old == 0 && kind != HSM_IMPORT && find_one(t, kind, id, &f, &n) == KMS_OK && n > 0)
        old = f.handle;
    if (old != 0 && keys_new_wrapping_key(t, old, wrapped, kcv) != KMS_OK)
        old = 0; /* gone, or it never worked */
    if ((err = take_away(t, kind, id)) != KMS_OK || (err = keks_forget(t, id)) != KMS_OK)
        return err;
    if (old != 0 && token_unwrap_key(t, old, wrapped, USE_SEAL, &key) == KMS_OK) {
        log_error("token: a key that was destroyed still works", "label", keys_label(kind), NULL);
        token_destroy(t, key);
        return KMS_ERR_UNAVAILABLE;
    }
    if (t->root != NULL && t->root->handle != t->canary_root && canary_new(t) != KMS_OK)
        return KMS_ERR_UNAVAILABLE;
    return canary_sings(t, true) ? KMS_OK : KMS_ERR_UNAVAILABLE;
}

/* --- what there is --- */

int
life_list(struct token *t, enum hsm_kind kind, const unsigned char after[HSM_ID_LEN],
          struct frame_answer *a)
{
    static const unsigned char zero[HSM_ID_LEN];
    static struct found found[TOKEN_KEKS_MAX];
    bool all = memcmp(after, zero, sizeof(zero)) == 0;
    unsigned n;
    int err;

    a->u.list.n = 0;
    a->u.list.more = false;
    if ((err = keys_find(t, kind, keys_class(kind), NULL, found, TOKEN_KEKS_MAX, &n)) != KMS_OK)
        return err;
    for (unsigned i = 0; i < n; i++) {
        struct hsm_listed *l = &a->u.list.keys[a->u.list.n];
        struct rsa_key pair;

        if (!all && memcmp(found[i].id, after, HSM_ID_LEN) <= 0)
            continue;
        if (a->u.list.n == HSM_LIST_MAX) {
            a->u.list.more = true;
            break;
        }
        memset(l, 0, sizeof(*l));
        memcpy(l->id, found[i].id, HSM_ID_LEN);
        l->fit = keys_is_kept(t, found[i].handle) &&
                 (i == 0 || memcmp(found[i - 1].id, l->id, HSM_ID_LEN) != 0) &&
                 (i + 1 == n || memcmp(found[i + 1].id, l->id, HSM_ID_LEN) != 0);
        if (kind <= HSM_PERIOD) {
            if (keys_kcv(t, found[i].handle, l->kcv) != KMS_OK)
                l->fit = false;
        } else if (kind == HSM_AUDIT) {
            public_kcv(t->audit_public, sizeof(t->audit_public), l->kcv);
        } else if (rsa_key_read(t, &found[i], &pair) == KMS_OK) {
            public_kcv(pair.n, pair.n_len, l->kcv);
        } else {
            l->fit = false;
        }
        a->u.list.n++;
    }
    return KMS_OK;
}

/* --- import --- */

static int
pair_existing(struct token *t, const unsigned char id[HSM_ID_LEN], struct rsa_key *out)
{
    struct found f;
    unsigned n;
    int err;

    if ((err = find_one(t, HSM_IMPORT, id, &f, &n)) != KMS_OK)
        return err;
    if (n == 0)
        return KMS_ERR_NOT_FOUND;
    if (!keys_is_kept(t, f.handle))
        return unless_broken(t, KMS_ERR_UNAVAILABLE);
    return unless_broken(t, rsa_key_read(t, &f, out));
}

/* A temporary key that came to the pair; KMS_ERR_CRYPTO: it did not come. */
static int
unwrap_temporary(struct token *t, const struct rsa_key *pair, const unsigned char *ek, size_t len,
                 CK_OBJECT_HANDLE *key)
{
    const struct kek_source from = {KEK_UNWRAPPED, ek, len, pair->handle};

    if (!kek_make(t, t->session, HSM_MAIN, pair->id, false, &from, key))
        return KMS_ERR_CRYPTO;
    t->churn++;
    return KMS_OK;
}

/* Whether this key of the token is the one that we know: it wraps something that we can unwrap. */
static bool
is_known(struct token *t, CK_OBJECT_HANDLE kek, const unsigned char known[HSM_KEY_LEN])
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    unsigned char wrapped[HSM_WRAPPED_LEN], plain[HSM_WRAPPED_LEN];
    CK_OBJECT_HANDLE key;
    bool ok = false;
    int n;

    if (ctx != NULL && token_generate_key(t, &key) == KMS_OK) {
        EVP_CIPHER_CTX_set_flags(ctx, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
        ok = token_wrap_key(t, kek, key, wrapped) == KMS_OK &&
             EVP_DecryptInit_ex(ctx, EVP_aes_256_wrap(), NULL, known, NULL) == 1 &&
             EVP_DecryptUpdate(ctx, plain, &n, wrapped, sizeof(wrapped)) == 1 && n == HSM_KEY_LEN;
        token_destroy(t, key);
    }
    EVP_CIPHER_CTX_free(ctx);
    OPENSSL_cleanse(plain, sizeof(plain));
    return ok;
}

/* By doing it, with a key of ours: modules that know another hash only say so in many ways. */
static bool
can_unwrap(struct token *t, const struct rsa_key *pair)
{
    unsigned char known[HSM_KEY_LEN], ek[HSM_RSA_MAX];
    CK_OBJECT_HANDLE key;

    if (t->can.oaep_unwrap == NOT_ASKED && RAND_bytes(known, sizeof(known)) == 1 &&
        rsa_seal(pair, HSM_OAEP_SHA256, known, ek) == KMS_OK) {
        t->can.oaep_unwrap = UNABLE;
        if (unwrap_temporary(t, pair, ek, pair->n_len, &key) == KMS_OK) {
            if (is_known(t, key, known))
                t->can.oaep_unwrap = ABLE;
            token_destroy(t, key);
        }
    }
    OPENSSL_cleanse(known, sizeof(known));
    return t->can.oaep_unwrap == ABLE;
}

static int
pair_prove(struct token *t, const struct rsa_key *pair)
{
    if (can_unwrap(t, pair) || rsa_probe(t, pair, HSM_OAEP_SHA256, true) == KMS_OK)
        return KMS_OK;
    return canary_sings(t, true) ? KMS_ERR_ALGORITHM : KMS_ERR_UNAVAILABLE;
}

int
life_import_pair(struct token *t, const unsigned char id[HSM_ID_LEN], unsigned bits,
                 struct frame_answer *a)
{
    struct rsa_key pair;
    CK_SESSION_HANDLE rw;
    CK_OBJECT_HANDLE public, private;
    int err;

    if (bits == 0)
        bits = t->setup->rsa_bits;
    if (bits < 2048 || bits > HSM_RSA_MAX * 8 || bits % 8 != 0)
        return KMS_ERR_LENGTH;
    if ((err = pair_existing(t, id, &pair)) == KMS_ERR_NOT_FOUND) {
        if ((err = write_begin(t, &rw)) != KMS_OK)
            return err;
        if (!pair_make(t, rw, HSM_IMPORT, id, bits, &public, &private))
            err = KMS_ERR_LIMIT;
        else if ((err = pair_existing(t, id, &pair)) != KMS_OK ||
                 (err = pair_prove(t, &pair)) != KMS_OK)
            pair_destroy(t, rw, public, private);
        write_end(t, rw);
    } else if (err == KMS_OK) {
        err = pair_prove(t, &pair);
    }
    if (err == KMS_OK)
        err = rsa_public_der(&pair, a->u.bytes.b, FRAME_PUBLIC_MAX, &a->u.bytes.len);
    return err;
}

/*
 * First into the session: so it is known to be a key of the right length, and its check value is,
 * before anything lasts; and whoever asks again, after a crash, is told from whoever uses an id
 * twice.
 */
static int
import_from(struct token *t, const unsigned char id[HSM_ID_LEN], const struct kek_source *from,
            bool allow_128, unsigned char kcv[HSM_KCV_LEN])
{
    static const unsigned char zero[HSM_KCV_LEN];
    unsigned char lasting[HSM_KCV_LEN];
    CK_OBJECT_HANDLE key;
    CK_ULONG len = 0;
    CK_ATTRIBUTE a = {CKA_VALUE_LEN, &len, sizeof(len)};
    unsigned n;
    int err;

    if (!kek_make(t, t->session, HSM_MAIN, id, false, from, &key))
        return from->how == KEK_UNWRAPPED ? KMS_ERR_CRYPTO : KMS_ERR_LIMIT;
    t->churn++;
    if (!CALL(t, C_GetAttributeValue, t->session, key, &a, 1))
        err = KMS_ERR_UNAVAILABLE;
    else if (len != HSM_KEY_LEN && !(allow_128 && len == 16))
        err = KMS_ERR_LENGTH;
    else
        err = kek_prove(t, key, kcv);
    token_destroy(t, key);
    if (err != KMS_OK || (err = kek_existing(t, HSM_MAIN, id, &n, lasting)) != KMS_OK)
        return err;
    if (n == 0 && (err = kek_add(t, HSM_MAIN, id, from, lasting)) != KMS_OK)
        return err;
    /* Where the token gives no check values an id that is taken cannot be told to be the same key.
     */
    if (memcmp(kcv, lasting, HSM_KCV_LEN) != 0 || (n > 0 && memcmp(kcv, zero, HSM_KCV_LEN) == 0))
        return KMS_ERR_STATE;
    return KMS_OK;
}

int
life_import(struct token *t, const unsigned char id[HSM_ID_LEN],
            const unsigned char pair_id[HSM_ID_LEN], bool allow_128, const unsigned char *ek,
            size_t len, unsigned char kcv[HSM_KCV_LEN])
{
    struct kek_source from = {.how = KEK_GIVEN};
    unsigned char bare[HSM_KEY_LEN];
    struct rsa_key pair;
    int err;

    if ((err = pair_existing(t, pair_id, &pair)) != KMS_OK)
        return err;
    if (len != pair.n_len)
        return KMS_ERR_CRYPTO;
    if (can_unwrap(t, &pair)) {
        from = (struct kek_source){KEK_UNWRAPPED, ek, len, pair.handle};
        return import_from(t, id, &from, allow_128, kcv);
    }
    if ((err = rsa_open_main_key(t, &pair, ek, len, bare, &from.len)) == KMS_OK) {
        from.bytes = bare;
        err = import_from(t, id, &from, allow_128, kcv);
    }
    OPENSSL_cleanse(bare, sizeof(bare));
    return err;
}

/* --- from one key to another --- */

/* Wraps what was wrapped by one key by the other.  The same there and back is the proof: key wrap
 * has no randomness. */
static int
move(struct token *t, CK_OBJECT_HANDLE from, CK_OBJECT_HANDLE to,
     const unsigned char wrapped[HSM_WRAPPED_LEN], unsigned char out[HSM_WRAPPED_LEN])
{
    CK_OBJECT_HANDLE key;
    int err;

    if ((err = token_unwrap_key(t, from, wrapped, USE_MOVE, &key)) != KMS_OK)
        return err;
    err = token_wrap_key(t, to, key, out);
    token_destroy(t, key);
    return err;
}

int
life_rewrap(struct token *t, const unsigned char from_id[HSM_ID_LEN],
            const unsigned char to_id[HSM_ID_LEN], const unsigned char wrapped[HSM_WRAPPED_LEN],
            unsigned char out[HSM_WRAPPED_LEN])
{
    unsigned char back[HSM_WRAPPED_LEN];
    const struct kek *kek;
    CK_OBJECT_HANDLE from, to;
    int err;

    /* To the second first: looking for one may move the others, but handles stay. */
    if ((err = keys_kek(t, to_id, &kek)) != KMS_OK)
        return err;
    to = kek->handle;
    if ((err = keys_kek(t, from_id, &kek)) != KMS_OK)
        return err;
    from = kek->handle;
    if ((err = move(t, from, to, wrapped, out)) != KMS_OK ||
        (err = move(t, to, from, out, back)) != KMS_OK)
        return err;
    return memcmp(back, wrapped, sizeof(back)) == 0 ? KMS_OK : KMS_ERR_UNAVAILABLE;
}
