/*
 * channel.h - channels in a worker's memory: a cache of what the database has, keys in locked
 * memory.
 *
 * The database decides whether a channel lives (every SQL call checks it), so a channel deleted on
 * another node is dead here as well, cached or not.
 */
#ifndef KMS_CHANNEL_H
#define KMS_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/jwt.h"
#include "proto/secret.h"
#include "proto/uri.h"

struct channels;
struct worker;

/* Who may be at the other end of a channel. */
enum principal {
    PRINCIPAL_USER,
    PRINCIPAL_ANONYMOUS, /* an anonymous authorisation's bearer */
    PRINCIPAL_SERVICE
};
/* As the database has it; static. */
const char *principal_name(enum principal p);

/* Whose a channel is. */
struct channel_owner {
    enum principal kind;
    const char *org_name;    /* "" for services */
    const char *subject;     /* a user's id, an authorisation's, a service's name */
    const char *client;      /* the clientId it was made with */
    const char *identity;    /* of a service's certificate; else NULL */
    unsigned char thumb[32]; /* of its key */
    int rate;                /* its requests a second; 0: any */
};

struct channel {
    struct channel *hash_next;
    struct channel *older, *newer; /* by use */
    unsigned refs;                 /* requests that hold it; the cache itself is one */
    struct uuid id;
    struct uuid org;            /* nil for services */
    struct channel_owner owner; /* its strings are owned */
    struct secret *key;         /* owned */
    int64_t since;              /* ms, monotonic: when it was made or read */
    int64_t expires;            /* ms since 1970 */
    char *kid;                  /* owned: kms://DOMAIN/ecdhe/ID */
};

struct channels *channels_new(struct worker *w, size_t max);
void channels_free(struct channels *cs);

/*
 * KMS_OK: *out, a reference (channel_put).  KMS_ERR_AGAIN: req_wake(id) follows, ask again.
 * KMS_ERR_NOT_FOUND: no such channel, or its time is over.  KMS_ERR_UNAVAILABLE: the database or
 * the HSM is away.  KMS_ERR_CRYPTO: what is stored does not open.
 */
int channels_get(struct channels *cs, const struct uuid *id, uint64_t req, struct channel **out);
void channel_put(struct channels *cs, struct channel *c);

/* Into the cache, right after it was made; strings are copied, the key is taken over.  Losing it to
 * a lack of memory is harmless. */
void channels_add(struct channels *cs, const struct uuid *id, const struct uuid *org,
                  const struct channel_owner *owner, struct secret **key, int64_t expires);
/* Forgets it: deleted, or the database says it is gone. */
void channels_drop(struct channels *cs, const struct uuid *id);

#endif
