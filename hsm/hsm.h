/*
 * hsm.h - what the rest of the server may ask of hsmd, asynchronously, over its Unix socket.
 *
 * hsmd is the only process that loads the PKCS#11 module.  Here is the client side: a handle on a
 * libevent loop that connects, greets, and reconnects by itself.  Each call is one item; items of a
 * kind that are handed in during one turn of the loop travel in one frame, and answers come back by
 * (id, index), in any order, never from inside the call. Every item is answered exactly once: with
 * its result, with an error, or at its deadline.
 *
 * Keys passed to a callback are borrowed and wiped when it returns.
 */
#ifndef HSM_HSM_H
#define HSM_HSM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct event_base;
struct hsm;

#define HSM_KEY_LEN     32
#define HSM_WRAPPED_LEN 40 /* a wrapping key under its root: RFC 3394 */
#define HSM_BLOB_LEN    61 /* format 1 | nonce 12 | ciphertext 32 | tag 16; see hsm/README.md */
#define HSM_ID_LEN      16
#define HSM_KCV_LEN     8 /* key check value, see hsm/README.md */
#define HSM_RSA_MAX     512

/* The keys that stay in the token.  Each has an id, its CKA_ID. */
enum hsm_kind {
    HSM_ROOT = 1, /* AES, wraps wrapping keys */
    HSM_MAIN,     /* AES, likewise: a customer's own, imported */
    HSM_PERIOD,   /* AES, likewise: to be destroyed when its time is over; see hsm/README.md */
    HSM_IMPORT,   /* RSA: main keys are sent to it */
    HSM_STATIC,
    HSM_AUDIT,
};

/*
 * A wrapping key as the database keeps it.  hsmd is stateless about it: every item names it whole,
 * hsmd caches the unwrapped session object.
 */
struct hsm_wrapping_key {
    unsigned char root[HSM_ID_LEN]; /* the root, main or period key that wraps it */
    unsigned char org[HSM_ID_LEN];
    uint32_t generation;
    unsigned char wrapped[HSM_WRAPPED_LEN];
};

/* What a blob holds; part of its additional data, with the organisation, the id and the generation.
 */
enum hsm_purpose { HSM_CONTENT_KEY = 1, HSM_CHANNEL_KEY = 2, HSM_SENTINEL = 3 };

enum hsm_oaep { HSM_OAEP_SHA1 = 1, HSM_OAEP_SHA256 = 2 };

/* err: KMS_OK, KMS_ERR_UNAVAILABLE (hsmd or the token is away), KMS_ERR_TIMEOUT, KMS_ERR_CRYPTO
 * (does not open: wrong key, moved or damaged), KMS_ERR_NOT_FOUND (the token works, and this key is
 * not in it), KMS_ERR_LIMIT (queue full), KMS_ERR_PROTOCOL. Pointers are NULL unless err is KMS_OK;
 * blob is NULL for hsm_unwrap, key is NULL for hsm_wrap: the caller has them. */
typedef void hsm_key_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
                        const unsigned char *blob);
typedef void hsm_bytes_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p,
                          size_t len);
typedef void hsm_wrapping_key_cb(void *ctx, uint64_t id, int err,
                                 const unsigned char root[HSM_ID_LEN],
                                 const unsigned char wrapped[HSM_WRAPPED_LEN],
                                 const unsigned char kcv[HSM_KCV_LEN]);

/*
 * What a connection is for.  hsmd has two doors, of which workers of kmsd can open one only (see
 * hsm/README.md, "Who may do what"); what another role is for is answered with KMS_ERR_DENIED.
 */
enum hsm_role {
    HSM_USE,    /* hsm_generate, hsm_wrap, hsm_unwrap, hsm_oaep_open, hsm_sign_pss, hsm_random,
                   hsm_status */
    HSM_MANAGE, /* everything */
};
/* hsmd's other door is at its socket's path with this after it. */
#define HSM_MANAGE_SUFFIX ".manage"

/*
 * Connects in the background; never blocks.  path: hsmd's socket; copied.  deadline_ms: for each
 * item, from its hand-over. NULL: no memory.
 */
struct hsm *hsm_new(struct event_base *base, const char *path, enum hsm_role role, int deadline_ms);
/* Answers what is under way with KMS_ERR_UNAVAILABLE, closes, frees.  Not from inside a callback.
 * NULL is fine. */
void hsm_free(struct hsm *h);

/* Greeted, and the token is logged in, and root and static key are there. */
bool hsm_ready(const struct hsm *h);
/* Called whenever hsm_ready changes. */
void hsm_on_change(struct hsm *h, void (*cb)(void *ctx, bool ready), void *ctx);

/* What the greeting said; borrowed, until the next change.  Lengths 0 before the first greeting. */
struct hsm_info {
    unsigned char root[HSM_ID_LEN]; /* the root that new wrapping keys go under */
    bool has_root;
    unsigned char static_n[HSM_RSA_MAX]; /* big-endian modulus of the static key */
    size_t static_n_len;
    unsigned char static_e[8];
    size_t static_e_len;
    unsigned char audit_public[32]; /* Ed25519; valid when has_audit */
    bool has_audit;
    bool oaep_sha256_native; /* false: hsmd does the padding after a raw RSA operation in the token
                              */
};
const struct hsm_info *hsm_get_info(const struct hsm *h);

/*
 * The items.  KMS_OK: the callback will come.  KMS_ERR_LIMIT (too many under way), KMS_ERR_NOMEM:
 * it will not.
 */
/* A new key of HSM randomness: the callback gets both the key and its blob. */
int hsm_generate(struct hsm *h, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
                 const unsigned char object[HSM_ID_LEN], hsm_key_cb *cb, void *ctx, uint64_t id,
                 unsigned index);
/* Wraps a key of the caller's (a channel's): the callback gets its blob. */
int hsm_wrap(struct hsm *h, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
             const unsigned char object[HSM_ID_LEN], const unsigned char key[HSM_KEY_LEN],
             hsm_key_cb *cb, void *ctx, uint64_t id, unsigned index);
int hsm_unwrap(struct hsm *h, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
               const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN],
               hsm_key_cb *cb, void *ctx, uint64_t id, unsigned index);
/*
 * RSA-OAEP by the static key: 32 bytes.  Wrong padding or length gives 32 random bytes and KMS_OK,
 * in the same time (RFC 7516 section 11.5): an error here always means that the HSM did not answer.
 */
int hsm_oaep_open(struct hsm *h, enum hsm_oaep hash, const unsigned char *ek, size_t ek_len,
                  hsm_bytes_cb *cb, void *ctx, uint64_t id, unsigned index);
/* RSASSA-PSS (SHA-256, MGF1 SHA-256, salt 32) by the static key over a SHA-256 digest. */
int hsm_sign_pss(struct hsm *h, const unsigned char digest[32], hsm_bytes_cb *cb, void *ctx,
                 uint64_t id, unsigned index);
/* Ed25519 by the audit key over up to 4096 bytes. */
int hsm_sign_audit(struct hsm *h, const void *msg, size_t len, hsm_bytes_cb *cb, void *ctx,
                   uint64_t id, unsigned index);
/* Randomness of the HSM, at most 1024 bytes. */
int hsm_random(struct hsm *h, size_t len, hsm_bytes_cb *cb, void *ctx, uint64_t id, unsigned index);

/* Administration: the keeper only.  A new wrapping key under the current root, made and proved
 * inside the HSM. */
int hsm_wrapping_key_new(struct hsm *h, hsm_wrapping_key_cb *cb, void *ctx, uint64_t id);
/* Makes what is missing of root, static (rsa_bits; 0: as hsmd is configured) and audit key; the
 * callback gets the status (as below), or with an error the reason as a text.  Its deadline is two
 * minutes at least: HSMs take long for RSA keys. */
int hsm_init(struct hsm *h, unsigned rsa_bits, hsm_bytes_cb *cb, void *ctx, uint64_t id);
/* A JSON object (text): module, token, state, what the token can do, keys with ids and check
 * values, sessions, counters. */
int hsm_status(struct hsm *h, hsm_bytes_cb *cb, void *ctx, uint64_t id);

/*
 * Administration of the keys that stay in the token: the keeper only.  Their ids are the caller's,
 * who writes an id down before he asks: so each of these may be asked again, after whatever crash,
 * with the same result, and nothing is answered before it was proved.  hsm_forget and
 * hsm_key_destroy are this hsmd's; other nodes' are to be asked by their own kmsd.  Further errors:
 * KMS_ERR_STATE (not so: see each), KMS_ERR_LIMIT (the token works, and refuses to make or to
 * destroy the key), KMS_ERR_KEY (what is there under this id does not work, or can leave the token:
 * a crash leaves such things in SoftHSM; destroy it if it was never used, or take another id).
 */
/* An id for a root, which must be younger than all others: 48 bits of milliseconds, later than the
 * current root's, then random.  KMS_OK, KMS_ERR_INTERNAL. */
int hsm_id_new(const struct hsm *h, unsigned char id[HSM_ID_LEN]);
/*
 * Makes the root or period key with this id, if it is not there, and proves it; the callback gets
 * its check value.  KMS_ERR_STATE: there are two of this id, or a root that is not older.  A new
 * root is not used until wrapping keys name it: hsm_info's root stays the oldest.
 */
int hsm_key_new(struct hsm *h, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN],
                hsm_bytes_cb *cb, void *ctx, uint64_t id);
/*
 * Destroys a root, main, period or import key and proves that it is gone: every custodian drops
 * what it held of it and finds nothing any more; what used it before is refused, while the token
 * works.  KMS_OK also when it was gone already; p NULL.  KMS_ERR_STATE: it is the only root, or the
 * one that the configuration names.
 */
int hsm_key_destroy(struct hsm *h, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN],
                    hsm_bytes_cb *cb, void *ctx, uint64_t id);
/*
 * Every custodian drops all wrapping keys that are wrapped by this key, or are of this
 * organisation, and the handle; KMS_OK when all have, p NULL.  What was handed over before may
 * still be done, so refuse first, then forget.
 */
int hsm_forget(struct hsm *h, const unsigned char key_or_org[HSM_ID_LEN], hsm_bytes_cb *cb,
               void *ctx, uint64_t id);

#define HSM_LIST_MAX 64
struct hsm_listed {
    unsigned char id[HSM_ID_LEN];
    unsigned char kcv[HSM_KCV_LEN];
    bool fit; /* false: it can leave the token, does not work, or another one has the same id */
};
/* Borrowed; by id; more: ask again, after the last one. */
typedef void hsm_list_cb(void *ctx, uint64_t id, int err, const struct hsm_listed *keys, size_t n,
                         bool more);
/* The token's keys of this kind that come after this id; after NULL: from the first. */
int hsm_list(struct hsm *h, enum hsm_kind kind, const unsigned char *after, hsm_list_cb *cb,
             void *ctx, uint64_t id);

/* The public half (DER SubjectPublicKeyInfo) of the import pair with this id, which is made if it
 * is not there.  rsa_bits 0: as hsmd is configured.  Two minutes at least, as hsm_init. */
int hsm_import_pair(struct hsm *h, const unsigned char key[HSM_ID_LEN], unsigned rsa_bits,
                    hsm_bytes_cb *cb, void *ctx, uint64_t id);
/*
 * A customer's main key, RSA-OAEP-SHA-256 to the import pair's public half, becomes a token object
 * with this id; the callback gets its check value.  256 bits, or 128 where that is allowed.
 * KMS_ERR_CRYPTO: does not open.  KMS_ERR_LENGTH: opens, and has no such length.
 * KMS_ERR_NOT_FOUND: no such pair.  KMS_ERR_STATE: another key has this id.  KMS_ERR_ALGORITHM: the
 * token has no way to open it.
 */
int hsm_import(struct hsm *h, const unsigned char key[HSM_ID_LEN],
               const unsigned char pair[HSM_ID_LEN], bool allow_128,
               const unsigned char *ciphertext, size_t len, hsm_bytes_cb *cb, void *ctx,
               uint64_t id);

/* As hsm_wrapping_key_new, under this root, main or period key.  Many at once travel together. */
int hsm_wrapping_key_new_under(struct hsm *h, const unsigned char parent[HSM_ID_LEN],
                               hsm_wrapping_key_cb *cb, void *ctx, uint64_t id);
/*
 * The same wrapping key wrapped by another root, main or period key; the callback gets the 40
 * bytes, which were proved to be the same key.  Its blobs and its check value stay as they are.
 */
int hsm_rewrap(struct hsm *h, const unsigned char wrapped[HSM_WRAPPED_LEN],
               const unsigned char from[HSM_ID_LEN], const unsigned char to[HSM_ID_LEN],
               hsm_bytes_cb *cb, void *ctx, uint64_t id, unsigned index);
/* The same content or channel key under another wrapping key: the callback gets the new blob, which
 * was opened once; key is NULL. */
int hsm_reseal(struct hsm *h, const struct hsm_wrapping_key *from,
               const struct hsm_wrapping_key *to, enum hsm_purpose purpose,
               const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN],
               hsm_key_cb *cb, void *ctx, uint64_t id, unsigned index);

#endif
