/*
 * state.h - the SQL functions as calls of a request, gathered: what one turn of the loop turns up
 * travels as one call.
 *
 * Requests that want the same function wait in a queue; when a database connection is free, up to
 * STATE_BATCH of them go out as the elements of one call's arrays, share its round trip and its
 * commit, and each gets its own verdict.  Under load the queues grow while calls are in flight, so
 * batches grow with the load and need no timer.
 */
#ifndef KMS_STATE_H
#define KMS_STATE_H

#include "kms/db.h"

struct req;
struct state;
struct worker;

#define STATE_BATCH 128

enum state_call {
    SC_NOTHING = -1, /* there is none */
    SC_KEYS_RELEASE = 0,
    SC_KEYS_CREATE,
    SC_KEYS_BIND,
    SC_RESOURCE_KEYS,
    SC_CHANNEL_CREATE,
    SC_CHANNEL_DELETE,
    SC_CHANNELS_CHECK,
    SC_RESOURCE_CREATE,
    SC_RESOURCE_GET,
    SC_AUTHORIZATIONS_CREATE,
    SC_AUTHORIZATIONS_LIST,
    SC_AUTHORIZATIONS_DELETE,
    SC_RESOURCE_RELEASES,
    SC_SERVICE_CHANNEL_CREATE,
    SC_SERVICE_RELEASE,
    SC_RESOURCE_KEYS_CREATE,
    SC_RECORDING_CREATE,
    SC_RECORDING_UPDATE,
    SC_RECORDING_GET,
    SC_RECORDINGS_LIST,
    SC_RECORDING_DELETE,
    SC_MAIN_KEY,
    SC_MINT_UNDER,
    SC_REFUSALS_RECORD,
    SC_CALLS, /* the calls of requests end here; the rest are single calls of other modules */
    SC_CHANNELS_OPEN = SC_CALLS,
    SC_ORGS_GET,
    SC_WRAPS_ADD,
    SC_STATEMENTS
};

/* One row of SQL a function; the row readers stand beside them in state.c. */
extern const struct db_statement state_statements[SC_STATEMENTS];

struct state *state_new(struct worker *w);
void state_free(struct state *st);

/* Queues the request; req_state_done follows, never from inside the call. */
void state_submit(struct state *st, enum state_call call, struct req *rq);

/* Sends what is queued, as far as connections are free: when db says that there is room. */
void state_flush(struct state *st);

#endif
