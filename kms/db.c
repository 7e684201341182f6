/*
 * db.c - PostgreSQL on the event loop.
 *
 * A connection is a small state machine: connect, check the server, prepare the statements, then
 * serve one call after another. Calls wait in one queue, oldest first; a free connection takes the
 * head.  A call that was on a connection when it broke goes back to the head with `unknown` set:
 * its operation ids make sending it again safe.
 */
#include "kms/db.h"

#include <event2/event.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "hsm/log.h"
#include "kms/clock.h"
#include "kms/shared.h"
#include "proto/err.h"
#include "proto/json.h"

#define CONNECT_MS    5000  /* until a connection must be up and prepared */
#define ANSWER_MS     30000 /* until a call in flight is taken for hung, its connection closed */
#define UNKNOWN_MS    60000 /* until a call of unknown outcome is given up, from its first sending */
#define BACKOFF_MIN   100
#define BACKOFF_MAX   5000
#define RETRIES_MAX   5 /* of a call that lost a deadlock or a serialisation conflict */
#define TICK_MS       100
#define SCHEMA_NEEDED 1

enum conn_state { DOWN, CONNECTING, CHECKING, PREPARING, READY };

struct call {
    TAILQ_ENTRY(call) entry;
    int statement;
    struct db_params params; /* owned */
    db_cb *cb;
    void *ctx;
    int64_t queued, sent; /* ms; sent 0: never */
    int64_t taken;        /* ms: when it went on the present connection */
    bool unknown;
    int retries;
};

struct conn {
    struct db *db;
    PGconn *pg;
    struct event *io; /* owned; remade when libpq has another socket or wants other events */
    int fd;           /* what io watches */
    short what;
    struct event *again; /* owned; when to connect again */
    enum conn_state state;
    int prepared;      /* statements prepared so far */
    int64_t since;     /* ms: when connecting began */
    struct call *call; /* owned while in flight */
    PGresult *result;  /* owned; of the call in flight, until libpq says it was the last */
    bool doubtful;     /* a WARNING came with the commit */
    unsigned backoff;
    bool waits; /* for the probing connection to succeed */
};

struct db {
    struct event_base *base;
    struct event *tick;
    char *conninfo;
    const struct db_statement *statements;
    int n_statements;
    int deadline_ms;
    bool require_durable;
    struct conn *conns;
    int n;
    int ready;
    TAILQ_HEAD(, call) queue;
    void (*change_cb)(void *, bool);
    void *change_ctx;
    void (*room_cb)(void *);
    void *room_ctx;
    bool closing;
};

static void conn_start(struct conn *c);
static void conn_io(evutil_socket_t fd, short what, void *arg);
static void dispatch(struct db *db);

static void
call_free(struct call *call)
{
    if (call == NULL)
        return;
    db_params_release(&call->params);
    free(call);
}

/* Answers a call; the only place where one ends. */
static void
call_end(struct call *call, int err, const PGresult *res, const char *sqlstate)
{
    if (err != KMS_OK)
        count_add(CT_DB_FAILURES, 1);
    call->cb(call->ctx, err, res, sqlstate);
    call_free(call);
}

/* --- connections --- */

static void
conn_watch(struct conn *c, short what)
{
    int fd = PQsocket(c->pg);

    /* While connecting libpq may have closed one socket and got the same number for the next. */
    if (c->io != NULL && c->fd == fd && c->what == what && c->state != CONNECTING)
        return;
    if (c->io != NULL)
        event_free(c->io);
    c->fd = fd;
    c->what = what;
    c->io = event_new(c->db->base, fd, (short)(what | EV_PERSIST), conn_io, c);
    if (c->io == NULL || event_add(c->io, NULL) != 0)
        log_error("out of memory watching a database connection", NULL);
}

static void
set_ready(struct conn *c, bool ready)
{
    struct db *db = c->db;
    int before = db->ready;

    db->ready += ready ? 1 : -1;
    if ((before > 0) != (db->ready > 0) && db->change_cb != NULL && !db->closing)
        db->change_cb(db->change_ctx, db->ready > 0);
}

/* Sees to it that the first connection tries. */
static void
conn_probe(struct db *db)
{
    static const struct timeval soon = {0, BACKOFF_MIN * 1000};
    struct conn *c = &db->conns[0];

    if (c->state == DOWN && !event_pending(c->again, EV_TIMEOUT, NULL))
        event_add(c->again, &soon);
}

/* Closes the connection, keeps its call for another one, and comes back after a pause. */
static void
conn_drop(struct conn *c, const char *why)
{
    struct db *db = c->db;
    struct timeval pause;
    unsigned char jitter = 0;
    unsigned ms;

    if (c->state == READY)
        set_ready(c, false);
    if (why != NULL) {
        /* The first line says it; of an outage the first connection's first failure is news. */
        char first[256];

        snprintf(first, sizeof(first), "%.*s", (int)strcspn(why, "\n"), why);
        if (c->state == READY || c->backoff == 0)
            log_warn(c->state == READY ? "database connection lost" : "no database connection",
                     "why", first, "in_flight%d", c->call != NULL, NULL);
        else
            log_debug("no database connection", "why", first, NULL);
    }
    if (c->io != NULL)
        event_free(c->io);
    c->io = NULL;
    PQclear(c->result);
    c->result = NULL;
    if (c->pg != NULL)
        PQfinish(c->pg); /* closes the socket; never a cancel: a cancelled commit lies */
    c->pg = NULL;
    c->state = DOWN;
    c->doubtful = false;
    if (c->call != NULL) {
        c->call->unknown = true;
        TAILQ_INSERT_HEAD(&db->queue, c->call, entry);
        c->call = NULL;
    }
    if (db->closing)
        return;
    /* While the server is away one connection probes; the others follow it. */
    c->waits = db->ready == 0 && c != &db->conns[0];
    if (c->waits) {
        conn_probe(db);
        return;
    }
    RAND_bytes(&jitter, 1);
    c->backoff = c->backoff == 0 ? BACKOFF_MIN : c->backoff * 2;
    if (c->backoff > BACKOFF_MAX)
        c->backoff = BACKOFF_MAX;
    ms = c->backoff / 2 + c->backoff * jitter / 512;
    pause.tv_sec = ms / 1000;
    pause.tv_usec = (suseconds_t)(ms % 1000) * 1000;
    event_add(c->again, &pause);
}

/* A WARNING beside a result: perhaps a commit that only this server has.  Its text is logged, never
 * its detail. */
static void
conn_notice(void *arg, const PGresult *res)
{
    struct conn *c = arg;
    const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);

    if (severity != NULL && strcmp(severity, "WARNING") == 0) {
        c->doubtful = true;
        log_warn("PostgreSQL warned beside a result", "sqlstate",
                 PQresultErrorField(res, PG_DIAG_SQLSTATE), "message",
                 PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY), NULL);
    }
}

static void
conn_again(evutil_socket_t fd, short what, void *arg)
{
    conn_start(arg);
}

static void
conn_start(struct conn *c)
{
    static const char *const keys[] = {"dbname",
                                       "client_encoding",
                                       "keepalives_idle",
                                       "keepalives_interval",
                                       "keepalives_count",
                                       "tcp_user_timeout",
                                       "fallback_application_name",
                                       "options",
                                       NULL};
    const char *values[] = {c->db->conninfo,
                            "UTF8",
                            "10",
                            "5",
                            "3",
                            "10000",
                            "kmsd",
                            "-c jit=off -c statement_timeout=20s -c lock_timeout=10s",
                            NULL};

    c->since = now_ms();
    c->pg = PQconnectStartParams(keys, values, 1);
    if (c->pg == NULL || PQstatus(c->pg) == CONNECTION_BAD) {
        conn_drop(c, c->pg != NULL ? PQerrorMessage(c->pg) : "out of memory");
        return;
    }
    PQsetNoticeReceiver(c->pg, conn_notice, c);
    c->state = CONNECTING;
    conn_watch(c, EV_WRITE);
}

/* Sends what libpq still holds; keeps write events on while there is more. */
static bool
conn_flush(struct conn *c)
{
    int r = PQflush(c->pg);

    if (r < 0) {
        conn_drop(c, PQerrorMessage(c->pg));
        return false;
    }
    conn_watch(c, (short)(EV_READ | (r > 0 ? EV_WRITE : 0)));
    return true;
}

static void
conn_prepare_next(struct conn *c)
{
    const struct db_statement *s = &c->db->statements[c->prepared];

    if (!PQsendPrepare(c->pg, s->name, s->sql, s->params, NULL)) {
        conn_drop(c, PQerrorMessage(c->pg));
        return;
    }
    conn_flush(c);
}

/* What kms.server_check says of the server: may we trust its commits? */
static const char *
check_server(struct db *db, const PGresult *res)
{
    static const char *const durable[] = {"fsync", "full_page_writes"};
    json_t *j = NULL;
    const char *text, *why = NULL, *s;
    size_t i;

    if (PQntuples(res) != 1 || (text = PQgetvalue(res, 0, 0)) == NULL ||
        kms_json_parse(&j, text, strlen(text)) != KMS_OK)
        return "kms.server_check gave no object; run: kmsctl database migrate";
    if (json_integer_value(json_object_get(j, "schema")) < SCHEMA_NEEDED)
        why = "the schema is older than this program; run: kmsctl database migrate";
    else if (json_is_true(json_object_get(j, "in_recovery")) ||
             json_is_true(json_object_get(j, "read_only")))
        why = "the server is read-only (a standby?); name the primary";
    else if (db->require_durable) {
        for (i = 0; i < sizeof(durable) / sizeof(durable[0]) && why == NULL; i++) {
            s = json_string_value(json_object_get(j, durable[i]));
            if (s != NULL && strcmp(s, "off") == 0)
                why = "fsync or full_page_writes is off: a commit could be lost; turn them on";
        }
        s = json_string_value(json_object_get(j, "synchronous_commit"));
        if (why == NULL && s != NULL && (strcmp(s, "off") == 0))
            why = "synchronous_commit is off: a commit could be lost; turn it on";
        s = json_string_value(json_object_get(j, "data_sync_retry"));
        if (why == NULL && s != NULL && strcmp(s, "on") == 0)
            why = "data_sync_retry is on: a failed fsync could be hidden; turn it off";
    }
    json_decref(j);
    return why;
}

static void
conn_connected(struct conn *c)
{
    PQsetnonblocking(c->pg, 1);
    c->state = CHECKING;
    if (!PQsendQuery(c->pg, "SELECT kms.server_check()")) {
        conn_drop(c, PQerrorMessage(c->pg));
        return;
    }
    conn_flush(c);
}

static void
conn_poll(struct conn *c)
{
    switch (PQconnectPoll(c->pg)) {
    case PGRES_POLLING_READING:
        conn_watch(c, EV_READ);
        break;
    case PGRES_POLLING_WRITING:
        conn_watch(c, EV_WRITE);
        break;
    case PGRES_POLLING_OK:
        conn_connected(c);
        break;
    default:
        conn_drop(c, PQerrorMessage(c->pg));
    }
}

/* The call in flight has its result; decides what becomes of it. */
static void
conn_call_done(struct conn *c)
{
    struct call *call = c->call;
    PGresult *res = c->result;
    const char *sqlstate = NULL;
    char state[6] = "";

    c->call = NULL;
    c->result = NULL;
    if (res != NULL)
        sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
    if (sqlstate != NULL)
        strncpy(state, sqlstate, sizeof(state) - 1);

    if (res != NULL && PQresultStatus(res) == PGRES_TUPLES_OK && !c->doubtful) {
        call_end(call, KMS_OK, res, NULL);
        PQclear(res);
        return;
    }
    if (c->doubtful || res == NULL || state[0] == '\0' || strncmp(state, "57P", 3) == 0 ||
        strncmp(state, "08", 2) == 0 || strcmp(state, "26000") == 0 ||
        strcmp(state, "25006") == 0) {
        /* The server goes away, became a standby, or the commit is in doubt: ask again on another
         * connection, which checks the server anew. */
        PQclear(res);
        c->call = call;
        conn_drop(c, state[0] != '\0' ? state : "the outcome is in doubt");
        return;
    }
    if ((strcmp(state, "40001") == 0 || strcmp(state, "40P01") == 0) &&
        call->retries++ < RETRIES_MAX) {
        count_add(CT_DB_RETRIES, 1);
        TAILQ_INSERT_HEAD(&c->db->queue, call, entry);
        PQclear(res);
        return;
    }
    /* The primary message only: DETAIL may hold row values. */
    log_error("the database refused a call", "statement", c->db->statements[call->statement].name,
              "sqlstate", state, "message", PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY), NULL);
    /* It was rolled back, but of an earlier sending nobody knows. */
    call_end(call, call->unknown ? KMS_ERR_TIMEOUT : KMS_ERR_STATE, NULL, state);
    PQclear(res);
}

/* One command's last result was read; what comes next depends on where we are. */
static void
conn_command_done(struct conn *c)
{
    const char *why;
    int i;

    switch (c->state) {
    case CHECKING:
        if (c->result == NULL || PQresultStatus(c->result) != PGRES_TUPLES_OK)
            why = PQresultErrorField(c->result, PG_DIAG_MESSAGE_PRIMARY);
        else
            why = check_server(c->db, c->result);
        if (c->result != NULL && PQresultStatus(c->result) == PGRES_TUPLES_OK && why == NULL) {
            PQclear(c->result);
            c->result = NULL;
            c->state = PREPARING;
            c->prepared = 0;
            conn_prepare_next(c);
            return;
        }
        log_error("the database is not fit to use", "why", why, NULL);
        conn_drop(c, NULL);
        return;
    case PREPARING:
        if (c->result == NULL || PQresultStatus(c->result) != PGRES_COMMAND_OK) {
            log_error("the database does not have a function that is needed; run: kmsctl database "
                      "migrate",
                      "statement", c->db->statements[c->prepared].name, "why",
                      PQresultErrorField(c->result, PG_DIAG_MESSAGE_PRIMARY), NULL);
            conn_drop(c, NULL);
            return;
        }
        PQclear(c->result);
        c->result = NULL;
        if (++c->prepared < c->db->n_statements) {
            conn_prepare_next(c);
            return;
        }
        c->state = READY;
        c->backoff = 0;
        c->doubtful = false;
        conn_watch(c, EV_READ);
        set_ready(c, true);
        for (i = 0; i < c->db->n; i++) {
            struct conn *other = &c->db->conns[i];

            if (other->waits) {
                other->waits = false;
                other->backoff = 0;
                conn_start(other);
            }
        }
        dispatch(c->db);
        return;
    case READY:
        if (c->call != NULL) {
            conn_call_done(c);
            dispatch(c->db);
        }
        return;
    default:
        return;
    }
}

static void
conn_read(struct conn *c)
{
    PGresult *res;

    if (!PQconsumeInput(c->pg)) {
        conn_drop(c, PQerrorMessage(c->pg));
        dispatch(c->db);
        return;
    }
    while (c->pg != NULL && !PQisBusy(c->pg)) {
        if (c->state == READY && c->call == NULL) {
            /* Idle: nothing but notices can come, or the end. */
            if (PQstatus(c->pg) == CONNECTION_BAD) {
                conn_drop(c, "closed by the server");
                dispatch(c->db);
            }
            return;
        }
        res = PQgetResult(c->pg);
        if (res == NULL) {
            if (c->result == NULL && PQstatus(c->pg) == CONNECTION_BAD) {
                conn_drop(c, "closed by the server");
                dispatch(c->db);
                return;
            }
            conn_command_done(c);
            return;
        }
        if (PQstatus(c->pg) == CONNECTION_BAD) {
            /* After a FATAL libpq may go on giving results for ever. */
            const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);

            log_warn("the database ended the connection", "sqlstate", state, "message",
                     PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY), NULL);
            PQclear(res);
            conn_drop(c, NULL);
            dispatch(c->db);
            return;
        }
        /* Keep the first; a second one of a call is not expected, and an error goes before rows. */
        if (c->result == NULL || PQresultStatus(res) == PGRES_FATAL_ERROR) {
            PQclear(c->result);
            c->result = res;
        } else {
            PQclear(res);
        }
    }
}

static void
conn_io(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;

    if (c->state == CONNECTING) {
        conn_poll(c);
        return;
    }
    if ((what & EV_WRITE) && !conn_flush(c)) {
        dispatch(c->db);
        return;
    }
    if (what & EV_READ)
        conn_read(c);
}

/* --- calls --- */

/* Puts a call on a free connection; false: the connection failed, the call is back in the queue. */
static bool
conn_send(struct conn *c, struct call *call)
{
    const char *values[DB_PARAMS_MAX];
    int lengths[DB_PARAMS_MAX], formats[DB_PARAMS_MAX], i;
    const struct db_statement *s = &c->db->statements[call->statement];

    for (i = 0; i < call->params.n; i++) {
        values[i] = call->params.null[i] ? NULL : (const char *)call->params.value[i].data;
        lengths[i] = (int)call->params.value[i].len;
        formats[i] = 1;
    }
    c->call = call;
    call->taken = now_ms();
    if (call->sent == 0)
        call->sent = call->taken;
    if (call->unknown)
        count_add(CT_DB_RETRIES, 1);
    count_add(CT_DB_CALLS, 1);
    if (!PQsendQueryPrepared(c->pg, s->name, call->params.n, values, lengths, formats, 1)) {
        conn_drop(c, PQerrorMessage(c->pg));
        return false;
    }
    return conn_flush(c);
}

static void
dispatch(struct db *db)
{
    struct call *call;
    int i;

    for (i = 0; i < db->n && !TAILQ_EMPTY(&db->queue); i++) {
        struct conn *c = &db->conns[i];

        if (c->state != READY || c->call != NULL)
            continue;
        call = TAILQ_FIRST(&db->queue);
        TAILQ_REMOVE(&db->queue, call, entry);
        conn_send(c, call);
    }
    if (db->room_cb != NULL && !db->closing && db_has_room(db))
        db->room_cb(db->room_ctx);
}

static void
db_tick(evutil_socket_t fd, short what, void *arg)
{
    struct db *db = arg;
    TAILQ_HEAD(, call) over = TAILQ_HEAD_INITIALIZER(over);
    struct call *call, *next;
    int64_t now = now_ms();
    int i;

    for (i = 0; i < db->n; i++) {
        struct conn *c = &db->conns[i];

        if (c->state != DOWN && c->state != READY && now - c->since > CONNECT_MS)
            conn_drop(c, "connecting took too long");
        else if (c->call != NULL && now - c->call->taken > ANSWER_MS)
            conn_drop(c, "no answer in time");
    }
    for (call = TAILQ_FIRST(&db->queue); call != NULL; call = next) {
        next = TAILQ_NEXT(call, entry);
        if (call->unknown ? now - call->sent > UNKNOWN_MS : now - call->queued > db->deadline_ms) {
            TAILQ_REMOVE(&db->queue, call, entry);
            TAILQ_INSERT_TAIL(&over, call, entry);
        }
    }
    /* Callbacks make new calls: by now the queue may change. */
    while ((call = TAILQ_FIRST(&over)) != NULL) {
        TAILQ_REMOVE(&over, call, entry);
        call_end(call, call->unknown ? KMS_ERR_TIMEOUT : KMS_ERR_UNAVAILABLE, NULL, NULL);
    }
    dispatch(db);
}

int
db_call(struct db *db, int statement, struct db_params *p, db_cb *cb, void *ctx)
{
    struct call *call = NULL;

    if (p->err != KMS_OK || (call = calloc(1, sizeof(*call))) == NULL) {
        db_params_release(p);
        return KMS_ERR_NOMEM;
    }
    call->statement = statement;
    call->params = *p;
    db_params_init(p);
    call->cb = cb;
    call->ctx = ctx;
    call->queued = now_ms();
    TAILQ_INSERT_TAIL(&db->queue, call, entry);
    dispatch(db);
    return KMS_OK;
}

bool
db_ready(const struct db *db)
{
    return db->ready > 0;
}

void
db_on_change(struct db *db, void (*cb)(void *, bool), void *ctx)
{
    db->change_cb = cb;
    db->change_ctx = ctx;
}

bool
db_has_room(const struct db *db)
{
    int i;

    if (!TAILQ_EMPTY(&db->queue))
        return false;
    for (i = 0; i < db->n; i++)
        if (db->conns[i].state == READY && db->conns[i].call == NULL)
            return true;
    return false;
}

void
db_on_room(struct db *db, void (*cb)(void *), void *ctx)
{
    db->room_cb = cb;
    db->room_ctx = ctx;
}

struct db *
db_new(struct event_base *base, const char *conninfo, int connections,
       const struct db_statement *statements, int n, int deadline_ms, bool require_durable)
{
    static const struct timeval tick = {TICK_MS / 1000, (TICK_MS % 1000) * 1000};
    struct db *db = calloc(1, sizeof(*db));
    int i;

    if (db == NULL)
        return NULL;
    TAILQ_INIT(&db->queue);
    db->base = base;
    db->statements = statements;
    db->n_statements = n;
    db->deadline_ms = deadline_ms;
    db->require_durable = require_durable;
    db->n = connections;
    if ((db->conninfo = strdup(conninfo)) == NULL ||
        (db->conns = calloc((size_t)connections, sizeof(*db->conns))) == NULL ||
        (db->tick = event_new(base, -1, EV_PERSIST, db_tick, db)) == NULL ||
        event_add(db->tick, &tick) != 0) {
        db->n = 0;
        db_free(db);
        return NULL;
    }
    for (i = 0; i < connections; i++) {
        db->conns[i].db = db;
        if ((db->conns[i].again = event_new(base, -1, 0, conn_again, &db->conns[i])) == NULL) {
            db_free(db);
            return NULL;
        }
    }
    for (i = 1; i < connections; i++)
        db->conns[i].waits = true;
    conn_start(&db->conns[0]);
    return db;
}

void
db_free(struct db *db)
{
    struct call *call;
    int i;

    if (db == NULL)
        return;
    db->closing = true;
    for (i = 0; i < db->n; i++) {
        conn_drop(&db->conns[i], NULL);
        if (db->conns[i].again != NULL)
            event_free(db->conns[i].again);
    }
    while ((call = TAILQ_FIRST(&db->queue)) != NULL) {
        TAILQ_REMOVE(&db->queue, call, entry);
        call_end(call, call->unknown ? KMS_ERR_TIMEOUT : KMS_ERR_UNAVAILABLE, NULL, NULL);
    }
    if (db->tick != NULL)
        event_free(db->tick);
    free(db->conns);
    free(db->conninfo);
    free(db);
}

/* --- parameters: PostgreSQL's binary formats --- */

static const struct {
    uint32_t oid;
} types[] = {
    [DB_UUID] = {2950}, [DB_TEXT] = {25}, [DB_BYTEA] = {17},   [DB_INT4] = {23},
    [DB_INT8] = {20},   [DB_BOOL] = {16}, [DB_JSONB] = {3802},
};

void
db_params_init(struct db_params *p)
{
    memset(p, 0, sizeof(*p));
}

void
db_params_release(struct db_params *p)
{
    int i;

    for (i = 0; i < DB_PARAMS_MAX; i++)
        buf_release(&p->value[i]);
    memset(p, 0, sizeof(*p));
}

static void
put(struct db_params *p, const void *b, size_t len)
{
    if (p->err == KMS_OK)
        p->err = buf_put(&p->value[p->n], b, len);
}

static void
put32(struct db_params *p, uint32_t v)
{
    unsigned char b[4] = {(unsigned char)(v >> 24), (unsigned char)(v >> 16),
                          (unsigned char)(v >> 8), (unsigned char)v};

    put(p, b, sizeof(b));
}

static void
put64(struct db_params *p, uint64_t v)
{
    put32(p, (uint32_t)(v >> 32));
    put32(p, (uint32_t)v);
}

/* An array: dimensions, has-nulls, element type, length, lower bound; the length is filled in at
 * the end. */
void
db_array_begin(struct db_params *p, enum db_type type)
{
    p->elements = 0;
    put32(p, 1);
    put32(p, 1);
    put32(p, types[type].oid);
    p->start = p->value[p->n].len;
    put32(p, 0);
    put32(p, 1);
}

void
db_array_end(struct db_params *p)
{
    struct buf *b = &p->value[p->n];

    if (p->err == KMS_OK) {
        b->data[p->start] = (unsigned char)((uint32_t)p->elements >> 24);
        b->data[p->start + 1] = (unsigned char)(p->elements >> 16);
        b->data[p->start + 2] = (unsigned char)(p->elements >> 8);
        b->data[p->start + 3] = (unsigned char)p->elements;
    }
    p->n++;
}

void
db_put_null(struct db_params *p)
{
    p->elements++;
    put32(p, UINT32_MAX);
}

void
db_put_bytes(struct db_params *p, const void *b, size_t len)
{
    p->elements++;
    put32(p, (uint32_t)len);
    put(p, b, len);
}

void
db_put_uuid(struct db_params *p, const struct uuid *u)
{
    if (u == NULL)
        db_put_null(p);
    else
        db_put_bytes(p, u->b, sizeof(u->b));
}

void
db_put_text(struct db_params *p, const char *s)
{
    if (s == NULL)
        db_put_null(p);
    else
        db_put_bytes(p, s, strlen(s));
}

void
db_put_int4(struct db_params *p, int32_t v)
{
    p->elements++;
    put32(p, 4);
    put32(p, (uint32_t)v);
}

void
db_put_int8(struct db_params *p, int64_t v)
{
    p->elements++;
    put32(p, 8);
    put64(p, (uint64_t)v);
}

void
db_put_bool(struct db_params *p, bool v)
{
    unsigned char b = v;

    db_put_bytes(p, &b, 1);
}

void
db_put_json(struct db_params *p, const char *text, size_t len)
{
    static const unsigned char version = 1;

    p->elements++;
    put32(p, (uint32_t)len + 1);
    put(p, &version, 1);
    put(p, text, len);
}

static void
scalar(struct db_params *p, const void *b, size_t len)
{
    if (b == NULL)
        p->null[p->n] = true;
    else
        put(p, b, len);
    /* libpq reads a NULL pointer as SQL NULL: an empty value must have memory. */
    if (b != NULL && p->err == KMS_OK)
        p->err = buf_reserve(&p->value[p->n], 1);
    p->n++;
}

void
db_uuid(struct db_params *p, const struct uuid *u)
{
    scalar(p, u != NULL ? u->b : NULL, UUID_LEN);
}

void
db_text(struct db_params *p, const char *s)
{
    scalar(p, s, s != NULL ? strlen(s) : 0);
}

void
db_bytes(struct db_params *p, const void *b, size_t len)
{
    scalar(p, b, len);
}

void
db_int4(struct db_params *p, int32_t v)
{
    put32(p, (uint32_t)v);
    p->n++;
}

void
db_int8(struct db_params *p, int64_t v)
{
    put64(p, (uint64_t)v);
    p->n++;
}

void
db_json(struct db_params *p, const char *text, size_t len)
{
    static const unsigned char version = 1;

    put(p, &version, 1);
    put(p, text, len);
    p->n++;
}

/* --- results --- */

static const unsigned char *
value(const PGresult *r, int row, int col, int len)
{
    if (row >= PQntuples(r) || col >= PQnfields(r) || PQgetisnull(r, row, col) ||
        (len >= 0 && PQgetlength(r, row, col) != len))
        return NULL;
    return (const unsigned char *)PQgetvalue(r, row, col);
}

static uint32_t
get32(const unsigned char *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

bool
db_get_int4(const PGresult *r, int row, int col, int32_t *out)
{
    const unsigned char *b = value(r, row, col, 4);

    if (b == NULL)
        return false;
    *out = (int32_t)get32(b);
    return true;
}

bool
db_get_int8(const PGresult *r, int row, int col, int64_t *out)
{
    const unsigned char *b = value(r, row, col, 8);

    if (b == NULL) {
        *out = INT64_MIN;
        return row < PQntuples(r) && col < PQnfields(r) && PQgetisnull(r, row, col);
    }
    *out = (int64_t)((uint64_t)get32(b) << 32 | get32(b + 4));
    return true;
}

bool
db_get_bool(const PGresult *r, int row, int col, bool *out)
{
    const unsigned char *b = value(r, row, col, 1);

    if (b == NULL)
        return false;
    *out = b[0] != 0;
    return true;
}

bool
db_get_bytes(const PGresult *r, int row, int col, void *out, size_t len)
{
    const unsigned char *b = value(r, row, col, (int)len);

    if (b == NULL)
        return false;
    memcpy(out, b, len);
    return true;
}

bool
db_get_uuid(const PGresult *r, int row, int col, struct uuid *out)
{
    return db_get_bytes(r, row, col, out->b, UUID_LEN);
}

const char *
db_get_text(const PGresult *r, int row, int col)
{
    return (const char *)value(r, row, col, -1);
}

const char *
db_get_json(const PGresult *r, int row, int col, size_t *len)
{
    const unsigned char *b = value(r, row, col, -1);

    if (b == NULL || PQgetlength(r, row, col) < 1)
        return NULL;
    *len = (size_t)PQgetlength(r, row, col) - 1;
    return (const char *)b + 1;
}
