/*
 * db.h - PostgreSQL on the event loop: prepared statements over a few connections, each with one
 * call in flight.
 *
 * No pipeline mode: calls on one connection run one after the other whatever we do, and the gain of
 * several requests sharing a round trip and a commit comes from their being one call with arrays
 * (kms/state.h).
 *
 * A call's parameters are kept until its result is known.  When a connection breaks, or PostgreSQL
 * attaches a WARNING to the commit (a synchronous standby was lost), the outcome is unknown, and
 * the call is sent again: every SQL function answers a repeated operation id as it did at first. So
 * a caller hears exactly one of: the result; an error that changed nothing; or, when the database
 * stays away too long, KMS_ERR_TIMEOUT with `unknown` set, after which nobody may claim anything.
 */
#ifndef KMS_DB_H
#define KMS_DB_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/buf.h"
#include "proto/uri.h"

struct event_base;
struct db;

/* A statement that can be pasted into psql; prepared on every connection. */
struct db_statement {
    const char *name;
    const char *sql;
    int params;
};

/*
 * Parameters in PostgreSQL's binary format, at most DB_PARAMS_MAX.  Begin one, put elements, end
 * it; scalars in one call. All functions return KMS_OK or KMS_ERR_NOMEM; after a failure the rest
 * do nothing and db_call says so.
 */
#define DB_PARAMS_MAX 16
struct db_params {
    struct buf value[DB_PARAMS_MAX];
    bool null[DB_PARAMS_MAX];
    int n;
    int err;
    int32_t elements; /* of the array under way */
    size_t start;
};
enum db_type { DB_UUID, DB_TEXT, DB_BYTEA, DB_INT4, DB_INT8, DB_BOOL, DB_JSONB };
void db_params_init(struct db_params *p);
void db_params_release(struct db_params *p);
void db_array_begin(struct db_params *p, enum db_type type);
void db_put_null(struct db_params *p);
void db_put_uuid(struct db_params *p, const struct uuid *u); /* NULL pointer: SQL NULL */
void db_put_text(struct db_params *p, const char *s);        /* NULL pointer: SQL NULL */
void db_put_bytes(struct db_params *p, const void *b, size_t len);
void db_put_int4(struct db_params *p, int32_t v);
void db_put_int8(struct db_params *p, int64_t v);
void db_put_bool(struct db_params *p, bool v);
void db_put_json(struct db_params *p, const char *text, size_t len); /* jsonb */
void db_array_end(struct db_params *p);
void db_uuid(struct db_params *p, const struct uuid *u);
void db_text(struct db_params *p, const char *s);
void db_bytes(struct db_params *p, const void *b, size_t len);
void db_int4(struct db_params *p, int32_t v);
void db_int8(struct db_params *p, int64_t v);
void db_json(struct db_params *p, const char *text, size_t len);

/*
 * res: binary format, borrowed, not NULL exactly when err is KMS_OK.  err: KMS_ERR_UNAVAILABLE
 * (never sent: nothing changed), KMS_ERR_STATE (PostgreSQL refused it: rolled back; sqlstate says
 * why), KMS_ERR_TIMEOUT (outcome unknown).
 */
typedef void db_cb(void *ctx, int err, const PGresult *res, const char *sqlstate);

/*
 * Connects in the background and keeps `connections` open, with back-off and jitter.  conninfo is
 * copied.  deadline_ms: how long a call may wait to be sent.  require_durable: a server whose
 * settings can lose a commit counts as away.  NULL: no memory.
 */
struct db *db_new(struct event_base *base, const char *conninfo, int connections,
                  const struct db_statement *statements, int n, int deadline_ms,
                  bool require_durable);
/* Calls under way are answered with KMS_ERR_UNAVAILABLE or KMS_ERR_TIMEOUT.  NULL is fine. */
void db_free(struct db *db);
/* At least one connection is good. */
bool db_ready(const struct db *db);
void db_on_change(struct db *db, void (*cb)(void *ctx, bool ready), void *ctx);
/* A connection is free, so that a call made now is sent now. */
bool db_has_room(const struct db *db);
/* Called when a connection becomes free. */
void db_on_room(struct db *db, void (*cb)(void *ctx), void *ctx);

/* Takes the parameters over (p is empty afterwards).  The callback comes once, later.
 * KMS_ERR_NOMEM: it will not. */
int db_call(struct db *db, int statement, struct db_params *p, db_cb *cb, void *ctx);

/* Readers of binary results.  Wrong shape is our bug: they return false, and the caller treats the
 * result as malformed. */
bool db_get_int4(const PGresult *r, int row, int col, int32_t *out);
bool db_get_int8(const PGresult *r, int row, int col,
                 int64_t *out); /* NULL: *out = INT64_MIN, true */
bool db_get_bool(const PGresult *r, int row, int col, bool *out);
bool db_get_uuid(const PGresult *r, int row, int col, struct uuid *out);
bool db_get_bytes(const PGresult *r, int row, int col, void *out, size_t len); /* exactly len */
/* Borrowed, NUL-terminated; NULL: SQL NULL.  Text and (without its version byte) jsonb. */
const char *db_get_text(const PGresult *r, int row, int col);
const char *db_get_json(const PGresult *r, int row, int col, size_t *len);

#endif
