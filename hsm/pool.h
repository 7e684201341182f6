/*
 * pool.h - the custodians: started, watched, fed, killed and replaced.
 *
 * Each is a process of its own that holds the token through the vendor's module (custodian.c).  The
 * supervisor never calls the module, so nothing that the module does can hold it up.
 */
#ifndef HSM_POOL_H
#define HSM_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "hsm/frame.h"
#include "hsm/setup.h"

struct event_base;
struct pool;

#define POOL_MAX 64

/* One frame of a client on its way through the custodians, whole or in parts. */
struct request {
    enum frame_type type;
    unsigned count;
    const unsigned char *items; /* as they came */
    unsigned parts;             /* in the pool still; the pool's */
    unsigned done;              /* of what every custodian does: how many did; the pool's */
    int err;                    /* likewise: what one of them said against it */
    bool over;                  /* the client was answered: what comes back is thrown away */
};

/* Items first.. of r were answered: `count` answers at p, then text.  p NULL: none of them will be,
 * for err. */
typedef void pool_answer_cb(struct request *r, unsigned first, unsigned count, int err,
                            const unsigned char *p, const unsigned char *text, size_t text_len);
/* No part of an over request is in the pool any more. */
typedef void pool_released_cb(struct request *r);
/* The greeting or the state changed. */
typedef void pool_change_cb(void *ctx);

struct pool_settings {
    const struct setup *setup; /* borrowed */
    unsigned custodians;
    int call_ms; /* how long one part may take */
    int self_fd; /* of this program's file, to be executed */
    pool_answer_cb *answer;
    pool_released_cb *released;
    pool_change_cb *change;
    void *ctx;
};

/* NULL: no memory. */
struct pool *pool_new(struct event_base *base, const struct pool_settings *s);
/* Sends the custodians home; waits for them, and kills those that do not go. */
void pool_free(struct pool *p);

/* KMS_OK: answers will come, later.  KMS_ERR_UNAVAILABLE: the token is away.  KMS_ERR_LIMIT: too
 * much waits. */
int pool_add(struct pool *p, struct request *r);
/* r is over: takes back what no custodian has yet.  `released` may be called before this returns.
 */
void pool_drop(struct pool *p, struct request *r);

/* Replaces all custodians, one after the other, with a fresh login: also the way on after a refused
 * PIN. */
void pool_renew(struct pool *p);

struct pool_counters {
    unsigned long started, died, killed, replaced, refused;
};

const struct frame_hello *pool_hello(const struct pool *p);
const char *pool_state(const struct pool *p);
/* The newest custodian's report, JSON; "" before the first. */
const char *pool_text(const struct pool *p);
unsigned pool_working(const struct pool *p);
unsigned pool_waiting(const struct pool *p); /* items */
const struct pool_counters *pool_counters(const struct pool *p);

#endif
