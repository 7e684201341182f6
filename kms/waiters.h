/*
 * waiters.h - requests that wait for one answer, by their ids: each may be gone when it comes.
 */
#ifndef KMS_WAITERS_H
#define KMS_WAITERS_H

#include <stddef.h>
#include <stdint.h>

struct worker;

#define WAITERS_MAX 16384 /* for one answer; whoever comes later is told to come again */

struct waiters {
    uint64_t *ids; /* owned */
    size_t n, cap;
};

#define WAITERS_INIT                                                                               \
    {                                                                                              \
        NULL, 0, 0                                                                                 \
    }

/* KMS_ERR_AGAIN: req_wake follows.  KMS_ERR_UNAVAILABLE: too many wait, or no memory. */
int waiters_add(struct waiters *ws, uint64_t req);
/* Wakes all, and forgets them.  Who asks again meanwhile waits anew, in ws, which may even be freed
 * meanwhile. */
void waiters_wake(struct waiters *ws, struct worker *w);
/* Forgets all without a word. */
void waiters_release(struct waiters *ws);

#endif
