/*
 * token.h - one custodian's hold on one PKCS#11 token: module, login, session, and the keys found
 * in it.
 *
 * Single-threaded, single-part operations, one session.  Every call of the module goes through
 * CALL, which leaves its name and code behind for the log.  Functions return KMS_OK or one of three
 * errors, which are all that the custodian needs to know:
 *
 *   KMS_ERR_CRYPTO       the token refused, and what it was given may be the reason; only a canary
 * can tell KMS_ERR_UNAVAILABLE  the token refused what it must not refuse KMS_ERR_NOT_FOUND    no
 * such key
 */
#ifndef HSM_TOKEN_H
#define HSM_TOKEN_H

#include <p11-kit/pkcs11.h>
#include <stdbool.h>
#include <stddef.h>

#include "hsm/frame.h"
#include "hsm/hsm.h"
#include "hsm/setup.h"

#define TOKEN_KEKS_MAX 2048 /* roots, main and period keys: HSMs are slow with many objects */
#define GCM_NONCE_LEN  12
#define GCM_TAG_LEN    16

/* How the token treats the nonce of an AES-GCM encryption. */
enum nonce_habit {
    NONCE_UNKNOWN,
    NONCE_OURS,   /* it uses the one it is given */
    NONCE_ITS,    /* it writes its own over ours */
    NONCE_ZEROED, /* it wants a zeroed buffer and writes its own */
};

/* What the probes found (probe.c). */
struct token_can {
    CK_MECHANISM_TYPE wrap; /* the number that means RFC 3394 here */
    bool wrap_proven;       /* by its known answer; else by a round trip only */
    bool gcm;
    enum nonce_habit nonce;
    bool raw_rsa; /* CKM_RSA_X_509 by the static key */
    bool oaep_sha1, oaep_sha256;
    bool pss;
    bool eddsa;
    bool rsa_generate, aes_generate;
    /* RSA-OAEP-SHA-256 unwraps an AES key in the token; asked when a main key is first imported. */
    enum { NOT_ASKED, ABLE, UNABLE } oaep_unwrap;
};

/* An AES key in the token that wraps others: a root, a main or a period key. */
struct kek {
    unsigned char id[HSM_ID_LEN];
    CK_OBJECT_HANDLE handle;
    enum hsm_kind kind;
    unsigned char kcv[HSM_KCV_LEN]; /* of roots */
};

/* An RSA pair in the token. */
struct rsa_key {
    CK_OBJECT_HANDLE handle; /* of the private half; 0: none */
    unsigned char id[HSM_ID_LEN];
    unsigned char n[HSM_RSA_MAX], e[8];
    size_t n_len, e_len;
};

struct token {
    const struct setup *setup;
    CK_FUNCTION_LIST *f;
    CK_SLOT_ID slot;
    CK_TOKEN_INFO info;
    CK_SESSION_HANDLE anchor;  /* keeps the login; nothing else is done with it */
    CK_SESSION_HANDLE session; /* 0: none */
    const char *call;          /* the last call and what it returned */
    CK_RV rv;
    char trouble[128]; /* why token_open or keys_make failed, for people */
    struct token_can can;
    /* Resolved for this session; handles die with it. */
    struct kek keks[TOKEN_KEKS_MAX]; /* roots first, oldest first */
    unsigned keks_n, roots_n;
    bool looked;                /* since this was unset, keks is as the token is */
    const struct kek *root;     /* the current one, NULL: none yet */
    struct rsa_key static_key;  /* handle 0: none yet */
    CK_OBJECT_HANDLE audit_key; /* 0: none */
    unsigned char audit_id[HSM_ID_LEN];
    unsigned char audit_public[32];
    CK_OBJECT_HANDLE
    known_key; /* session object with the value of RFC 3394 4.6; 0: not allowed here */
    /* The canary: something that must work whatever a caller sends (probe.c). */
    CK_OBJECT_HANDLE canary, canary_root;
    unsigned char canary_wrapped[HSM_WRAPPED_LEN];
    unsigned char canary_nonce[GCM_NONCE_LEN], canary_ct[HSM_KEY_LEN + GCM_TAG_LEN];
    unsigned char last_nonce[GCM_NONCE_LEN]; /* that the token made */
    unsigned long churn; /* session objects made and destroyed: modules leak them */
};

#define CALL(t, function, ...)                                                                     \
    ((t)->call = #function, ((t)->rv = (t)->f->function(__VA_ARGS__)) == CKR_OK)
/* Logs the last call's name and code. */
void token_complain(const struct token *t, const char *what);

/*
 * Loads the module, finds the token by its label, logs in, probes, resolves the keys.  READY or
 * EMPTY: it can be worked with.  Any other state: t->trouble says why, and the process should end.
 */
enum frame_state token_open(struct token *t, const struct setup *setup);
/* Logout and C_Finalize; the module stays mapped (unloading crashes some). */
void token_close(struct token *t);
/* Steps of recovery.  Handles and the session objects of before are void afterwards. */
int token_new_session(struct token *t);
/* KMS_ERR_UNAVAILABLE with *state PIN_REFUSED or PIN_LOCKED where that was it. */
int token_login_again(struct token *t, enum frame_state *state);

/* probe.c: before the keys are resolved; and what needs the static key.  KMS_ERR_CONFIG: unfit,
 * t->trouble says why. */
int probe_token(struct token *t);
int probe_static_key(struct token *t);
/* Makes this session's canary.  KMS_OK, KMS_ERR_UNAVAILABLE. */
int canary_new(struct token *t);
/* Whether the token does for us what it did before.  full: the root too. */
bool canary_sings(struct token *t, bool full);

/* keys.c: fills keks, static_key and audit_key.  KMS_OK, KMS_ERR_UNAVAILABLE. */
int keys_resolve(struct token *t);
/* keks alone. */
int keks_resolve(struct token *t);
/* The key of this id is looked for anew before it is used again; of a root, at once. */
int keks_forget(struct token *t, const unsigned char id[HSM_ID_LEN]);
/* Makes and proves what is missing; then keys_resolve is due.  rsa_bits 0: as set up.  Else
 * t->trouble says why not. */
int keys_make(struct token *t, unsigned rsa_bits);
/* A new wrapping key under this one, proved by a round trip. */
int keys_new_wrapping_key(struct token *t, CK_OBJECT_HANDLE kek,
                          unsigned char wrapped[HSM_WRAPPED_LEN], unsigned char kcv[HSM_KCV_LEN]);
/* The key check value of a key that may wrap.  Zero where the token does not let us: see
 * hsm/README.md. */
int keys_kcv(struct token *t, CK_OBJECT_HANDLE key, unsigned char kcv[HSM_KCV_LEN]);
/* The root, main or period key of this id, which is looked for in the token once since `looked` was
 * unset.  Borrowed until keks are resolved.  KMS_OK, KMS_ERR_NOT_FOUND, KMS_ERR_UNAVAILABLE. */
int keys_kek(struct token *t, const unsigned char id[HSM_ID_LEN], const struct kek **out);
void keys_to_info(const struct token *t, struct hsm_info *info);

/* The parts that keys.c and life.c share. */
struct found {
    CK_OBJECT_HANDLE handle;
    unsigned char id[HSM_ID_LEN];
};
const char *keys_label(enum hsm_kind kind);
/* The objects of a kind (and id, if not NULL) whose CKA_ID has our length, by id.  class: the
 * kind's own (keys_class), or CKO_PUBLIC_KEY. */
int keys_find(struct token *t, enum hsm_kind kind, CK_OBJECT_CLASS class, const unsigned char *id,
              struct found *out, unsigned max, unsigned *n);
CK_OBJECT_CLASS keys_class(enum hsm_kind kind);
/* A key that could leave the token is none of ours, whatever its label says. */
bool keys_is_kept(struct token *t, CK_OBJECT_HANDLE key);
/* Makes a root, main or period key, of the token or of this session only; true as CALL is.  Where
 * its value comes from: */
struct kek_source {
    enum { KEK_GENERATED, KEK_GIVEN, KEK_UNWRAPPED } how;
    const unsigned char *bytes; /* given: the key; unwrapped: RSA-OAEP-SHA-256 of it */
    size_t len;
    CK_OBJECT_HANDLE pair; /* unwrapped */
};
bool kek_make(struct token *t, CK_SESSION_HANDLE session, enum hsm_kind kind,
              const unsigned char id[HSM_ID_LEN], bool lasting, const struct kek_source *from,
              CK_OBJECT_HANDLE *key);
/* Proves that it wraps, unwraps and stays the same. */
int kek_prove(struct token *t, CK_OBJECT_HANDLE key, unsigned char kcv[HSM_KCV_LEN]);
/* A new pair; proving it is the caller's. */
bool pair_make(struct token *t, CK_SESSION_HANDLE rw, enum hsm_kind kind,
               const unsigned char id[HSM_ID_LEN], CK_ULONG bits, CK_OBJECT_HANDLE *public,
               CK_OBJECT_HANDLE *private);
void pair_destroy(struct token *t, CK_SESSION_HANDLE rw, CK_OBJECT_HANDLE public,
                  CK_OBJECT_HANDLE private);
/* Handle, id and public half of a private key. */
int rsa_key_read(struct token *t, const struct found *f, struct rsa_key *out);

/*
 * life.c: keys that come and go.  Besides the codes above: KMS_ERR_STATE, KMS_ERR_LIMIT (the token
 * refuses to make or destroy it, and may be right), and those of hsm_import.
 */
int life_key_new(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN],
                 unsigned char kcv[HSM_KCV_LEN]);
int life_key_destroy(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN]);
int life_list(struct token *t, enum hsm_kind kind, const unsigned char after[HSM_ID_LEN],
              struct frame_answer *a);
int life_import_pair(struct token *t, const unsigned char id[HSM_ID_LEN], unsigned bits,
                     struct frame_answer *a);
int life_import(struct token *t, const unsigned char id[HSM_ID_LEN],
                const unsigned char pair[HSM_ID_LEN], bool allow_128, const unsigned char *ek,
                size_t len, unsigned char kcv[HSM_KCV_LEN]);
int life_rewrap(struct token *t, const unsigned char from[HSM_ID_LEN],
                const unsigned char to[HSM_ID_LEN], const unsigned char wrapped[HSM_WRAPPED_LEN],
                unsigned char out[HSM_WRAPPED_LEN]);

/* What an unwrapped key may do. */
enum key_use {
    USE_SEAL,
    USE_SEAL_AND_WRAP,
    USE_MOVE, /* to be wrapped by another, and nothing else: modules want it extractable for that */
    USE_READ
};
/* An RFC 3394 blob into a session object.  KMS_OK, KMS_ERR_CRYPTO. */
int token_unwrap_key(struct token *t, CK_OBJECT_HANDLE root,
                     const unsigned char wrapped[HSM_WRAPPED_LEN], enum key_use use,
                     CK_OBJECT_HANDLE *key);
void token_destroy(struct token *t, CK_OBJECT_HANDLE object);
/* A new AES-256 session key that can be wrapped. */
int token_generate_key(struct token *t, CK_OBJECT_HANDLE *key);
int token_wrap_key(struct token *t, CK_OBJECT_HANDLE root, CK_OBJECT_HANDLE key,
                   unsigned char wrapped[HSM_WRAPPED_LEN]);
int token_random(struct token *t, unsigned char *p, size_t len);

/* AES-256-GCM of 32 bytes in the token.  nonce: out for seal.  out of seal: ciphertext and tag. */
int token_seal(struct token *t, CK_OBJECT_HANDLE key, const unsigned char *aad, size_t aad_len,
               const unsigned char in[HSM_KEY_LEN], unsigned char nonce[GCM_NONCE_LEN],
               unsigned char out[HSM_KEY_LEN + GCM_TAG_LEN]);
int token_open_sealed(struct token *t, CK_OBJECT_HANDLE key, const unsigned char *aad,
                      size_t aad_len, const unsigned char nonce[GCM_NONCE_LEN],
                      const unsigned char in[HSM_KEY_LEN + GCM_TAG_LEN],
                      unsigned char out[HSM_KEY_LEN]);

/* rsa.c.  Always fills cek; KMS_ERR_UNAVAILABLE says nothing about the padding. */
int rsa_oaep_open(struct token *t, enum hsm_oaep hash, const unsigned char *ek, size_t ek_len,
                  unsigned char cek[HSM_KEY_LEN]);
/* A main key, RSA-OAEP-SHA-256, by a raw operation.  KMS_ERR_CRYPTO: does not open;
 * KMS_ERR_LENGTH: neither 16 nor 32 bytes. */
int rsa_open_main_key(struct token *t, const struct rsa_key *key, const unsigned char *ek,
                      size_t ek_len, unsigned char out[HSM_KEY_LEN], size_t *len);
int rsa_sign_pss(struct token *t, const unsigned char digest[32], unsigned char *sig, size_t *len);
/* Opens a ciphertext whose plaintext is known: whether the static key still works. */
bool rsa_canary_sings(struct token *t);
/* By one mechanism, for the probe: KMS_OK if the token does it right. */
int rsa_probe(struct token *t, const struct rsa_key *key, enum hsm_oaep hash, bool raw);
/* 32 bytes to this key, as a caller would seal them.  KMS_OK, KMS_ERR_INTERNAL. */
int rsa_seal(const struct rsa_key *key, enum hsm_oaep hash, const unsigned char in[HSM_KEY_LEN],
             unsigned char ek[HSM_RSA_MAX]);
/* DER SubjectPublicKeyInfo. */
int rsa_public_der(const struct rsa_key *key, unsigned char *der, size_t max, size_t *len);
int audit_sign(struct token *t, const unsigned char *msg, size_t len, unsigned char sig[64]);
/* The check value of a public key: the first 8 bytes of its SHA-256. */
void public_kcv(const unsigned char *p, size_t len, unsigned char kcv[HSM_KCV_LEN]);

#endif
