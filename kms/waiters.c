/* waiters.c - requests that wait for one answer. */
#include "kms/waiters.h"

#include <stdlib.h>

#include "kms/req.h"
#include "proto/err.h"

#define FIRST_ROOM 8

int
waiters_add(struct waiters *ws, uint64_t req)
{
    if (ws->n == WAITERS_MAX)
        return KMS_ERR_UNAVAILABLE;
    if (ws->n == ws->cap) {
        size_t cap = ws->cap == 0 ? FIRST_ROOM : ws->cap * 2;
        uint64_t *more = realloc(ws->ids, cap * sizeof(*more));

        if (more == NULL)
            return KMS_ERR_UNAVAILABLE;
        ws->ids = more;
        ws->cap = cap;
    }
    ws->ids[ws->n++] = req;
    return KMS_ERR_AGAIN;
}

void
waiters_wake(struct waiters *ws, struct worker *w)
{
    struct waiters all = *ws;
    size_t i;

    *ws = (struct waiters)WAITERS_INIT;
    for (i = 0; i < all.n; i++)
        req_wake(w, all.ids[i]);
    free(all.ids);
}

void
waiters_release(struct waiters *ws)
{
    free(ws->ids);
    *ws = (struct waiters)WAITERS_INIT;
}
