/*
 * req.h - one KMS message on its way: from the compact JOSE that came in to the one that goes out.
 *
 * A request is one struct that moves through named steps (enum req_state); req.c has the switch
 * that runs them, top to bottom. A step finishes, goes on, or says what it waits for; whoever
 * answers (state.c, hsmd, tokens, ...) wakes the request by its id, since it may be gone.  The
 * client may leave at any time: the request still ends its way, for what it changed is changed.
 */
#ifndef KMS_REQ_H
#define KMS_REQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "hsm/hsm.h"
#include "kms/channel.h"
#include "proto/buf.h"
#include "proto/jwe.h"
#include "proto/jwt.h"
#include "proto/msg.h"
#include "proto/secret.h"

struct service_cert;
struct worker;

enum req_state {
    REQ_ROUTE,   /* what key is it for? */
    REQ_CHANNEL, /* db, hsmd: the channel's key, unless it is in memory */
    REQ_STATIC,  /* hsmd: the content encryption key of an ephemeral key request */
    REQ_OPEN,    /* decrypt, parse, check */
    REQ_WHO,     /* tokens: the bearer's identity; or the service's certificate */
    REQ_ADMIT,   /* may this principal use this channel, and so often? */
    REQ_ORG,     /* db: the organisation's wrapping key, unless it is in memory */
    REQ_MONTH,   /* db: that of the month in which what is made will end */
    REQ_MINT,    /* hsmd: new keys, wrapped */
    REQ_STATE,   /* db: authorised, done, recorded */
    REQ_UNWRAP,  /* hsmd: the content keys */
    REQ_ENCLOSE, /* each as a JWE to the service's own key, some in a turn */
    REQ_BEARERS, /* hsmd: signatures of anonymous bearers */
    REQ_RECORD,  /* db: the record of a refusal that never came to REQ_STATE */
    REQ_ALIVE,   /* db: that refusal's channel may have been deleted on another node */
    REQ_WRITE,   /* the answer's text */
    REQ_SIGN,    /* hsmd: the signature of an answer that no channel can carry */
    REQ_SEAL,    /* encrypt, hand over */
};

/* A key as SQL released it (kms.released in sql/README.md). */
struct released {
    struct uuid key;
    struct hsm_wrapping_key wk;
    unsigned char blob[HSM_BLOB_LEN];
    char *user_id, *client_id;       /* owned */
    int64_t created, expires, bound; /* ms; INT64_MIN: none */
    bool has_resource;
    struct uuid resource;
    struct secret *secret; /* owned; NULL until it was unwrapped, and again once it is in jwe */
    struct buf jwe;        /* owned: for services with a key of their own */
};

/* What a release to a service says besides the keys. */
struct service_release {
    char *service, *purpose; /* owned */
    bool has_matter;
    struct uuid matter;
    unsigned char cursor[KMS_CURSOR_MAX]; /* where a walk goes on */
    size_t cursor_len;                    /* 0: no walk */
    EVP_PKEY *to;                         /* owned: keys go enclosed to this, never bare; or NULL */
    char *to_kid;                         /* owned; or NULL */
    bool unfit;                           /* there is such a key, and it cannot be used */
    size_t enclosed;                      /* how many keys are */
};

/* A key made for this request. */
struct minted {
    struct uuid id;
    unsigned char blob[HSM_BLOB_LEN];
    struct secret *secret; /* owned */
};

/* Who sent a message, as far as the connection tells.  Of a post, which outlives its requests. */
struct peer {
    char address[64];
    X509 *leaf;                      /* what cert lives in; NULL with it */
    const struct service_cert *cert; /* of its TLS certificate; NULL: none that counts, */
    const char *why;                 /* for this reason, where it showed one */
};

/* A recording, and what its message is made of. */
struct recording {
    const json_t *json;    /* borrowed from the request's result */
    size_t own, container; /* of its keys in released: its own, and that which the message is for */
    unsigned char iv[JWE_IV_LEN];
};

/* An anonymous authorisation's bearer under way. */
struct bearer {
    struct uuid authorization;
    struct buf token; /* owned */
};

struct req {
    TAILQ_ENTRY(req) entry; /* in state.c's queue while it waits for the database */
    struct req *hash_next;
    uint64_t id;      /* its name in logs and in the queues of others */
    struct worker *w; /* borrowed */
    uint64_t post;    /* whose message it is, */
    unsigned index;   /* and which */
    enum req_state state;
    struct uuid op;          /* operation id: one for all tries */
    int64_t started;         /* microseconds, monotonic */
    int64_t queued;          /* likewise: since when it waits in state.c */
    const struct peer *peer; /* borrowed from the post */

    char *text; /* owned: the message as it came; gone after REQ_OPEN */
    size_t text_len;
    struct jwe jwe;          /* borrows from text */
    struct channel *channel; /* a reference; NULL: came to the static key */
    struct secret *cek;      /* owned: of an ephemeral key request */
    struct kms_request msg;  /* owned */
    char *request_id;        /* owned: as text, for records and logs; NULL: none */
    bool parsed;
    struct jwt_identity
        who; /* of services: subject is the name, or the identity before it is known */
    enum principal kind;
    struct service_cert *cert; /* owned: of a service that asks for a channel */
    unsigned char jti_hash[32];
    bool has_jti; /* it came with a proof */
    int rate;     /* of the service, as its new channel has it */

    struct uuid org;
    struct hsm_wrapping_key wk; /* the organisation's current one, when the op mints */
    struct uuid new_channel;
    struct secret *new_channel_key; /* owned */
    unsigned char new_channel_blob[HSM_BLOB_LEN];
    EVP_PKEY *new_channel_pair; /* owned */
    struct minted *minted;      /* owned */
    unsigned n_minted;
    struct released *released; /* owned */
    size_t n_released;
    struct recording *recordings; /* owned */
    size_t n_recordings;
    unsigned rotates;             /* how many keys SQL wants made beside a removal */
    unsigned char iv[JWE_IV_LEN]; /* of a new recording's file, */
    char aad[KMS_DATE_LEN + 1];   /* and what is authenticated with it: a date, as node-scr does */
    struct service_release release;
    json_t *result;           /* owned: of a cold function */
    int64_t created, expires; /* ms */
    struct bearer *bearers;   /* owned */
    unsigned n_bearers;

    unsigned waiting; /* items that hsmd owes */
    int failed;       /* the first of their errors */
    bool waits;       /* a keeper works for it (kms/mainkey_req.h) */
    int tries;        /* of REQ_ORG, after a stale wrapping key */
    int code;         /* KMS_CODE_OK, or the errorCode to refuse with */
    const char *why;  /* static text, or NULL */
    char *why_owned;  /* owned text that why may point to */
    bool unreadable;  /* answered by the one signed refusal */
    bool recorded;
    struct buf plain; /* owned: the request's plaintext, later the answer's */
    struct buf out;   /* owned: the answer as JOSE */
};

/* What became of a message, for the post that it came in. */
enum req_outcome {
    REQ_ANSWERED,
    REQ_UNAVAILABLE, /* nothing changed, and no key to answer with */
    REQ_UNKNOWN,     /* nobody knows what changed: no answer may be given */
};

/* Starts one; it ends by a call of post_answer (kms/post.h).  text is taken over.  KMS_ERR_NOMEM:
 * it never started. */
int req_new(struct worker *w, uint64_t post, unsigned index, char *text, size_t len,
            const struct peer *peer);

/* NULL: it is gone. */
struct req *req_find(struct worker *w, uint64_t id);

/* What it waited for has come. */
void req_wake(struct worker *w, uint64_t id);

/* The database has answered (state.c); the result is in the struct. */
void req_state_done(struct req *rq, int err, int verdict);

/* How many are under way. */
size_t req_count(const struct worker *w);

#endif
