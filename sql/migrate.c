/*
 * migrate.c - applies the migrations, one transaction each, under an advisory lock.
 */
#include "sql/migrate.h"

#include <libpq-fe.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "sql/migrations.h"

#define SERVER_MIN 150000 /* PostgreSQL 15 */

struct run {
    PGconn *pg;
    migrate_say *say;
    void *ctx;
};

static void tell(struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void
tell(struct run *r, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    text[strcspn(text, "\r\n")] = '\0'; /* libpq's messages may have more lines */
    r->say(r->ctx, text);
}

static void
notice_cb(void *arg, const PGresult *res)
{
    const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

    tell(arg, "the server says: %s", text != NULL ? text : "?");
}

/* Runs text, which may hold several statements when there are no parameters.  On KMS_OK *out is the
 * caller's to PQclear. */
static int
run_sql(struct run *r, const char *text, int n, const char *const *params, PGresult **out)
{
    const char *why;
    PGresult *res;
    int err = KMS_OK;

    *out = NULL;
    res = n == 0 ? PQexec(r->pg, text) : PQexecParams(r->pg, text, n, NULL, params, NULL, NULL, 0);
    if (PQstatus(r->pg) == CONNECTION_BAD)
        err = KMS_ERR_UNAVAILABLE;
    else if (PQresultStatus(res) != PGRES_TUPLES_OK && PQresultStatus(res) != PGRES_COMMAND_OK)
        err = KMS_ERR_STATE;
    if (err != KMS_OK) {
        why = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
        tell(r, "%s", why != NULL ? why : PQerrorMessage(r->pg));
        PQclear(res);
        return err;
    }
    *out = res;
    return KMS_OK;
}

static int
run_quietly(struct run *r, const char *text)
{
    PGresult *res;
    int err = run_sql(r, text, 0, NULL, &res);

    PQclear(res);
    return err;
}

static int
run_open(struct run *r, const char *conninfo)
{
    int err;

    if ((r->pg = PQconnectdb(conninfo)) == NULL)
        return KMS_ERR_NOMEM;
    if (PQstatus(r->pg) != CONNECTION_OK) {
        tell(r, "%s", PQerrorMessage(r->pg));
        return KMS_ERR_UNAVAILABLE;
    }
    if (PQserverVersion(r->pg) < SERVER_MIN) {
        tell(r, "the server is too old; PostgreSQL 15 or later is needed");
        return KMS_ERR_STATE;
    }
    PQsetNoticeReceiver(r->pg, notice_cb, r);
    if ((err = run_quietly(r, "SET client_min_messages = warning")) != KMS_OK ||
        (err = run_quietly(r, "SET client_encoding = 'UTF8'")) != KMS_OK)
        return err;
    return run_quietly(r, "SET search_path = pg_catalog");
}

/* The applied ones: number, name, sha256, when.  A database without our schema has none. */
static int
get_applied(struct run *r, PGresult **out)
{
    PGresult *res;
    bool empty;
    int err;

    if ((err = run_sql(r, "SELECT to_regclass('kms.schema_migrations') IS NULL", 0, NULL, &res)) !=
        KMS_OK)
        return err;
    empty = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
    PQclear(res);
    return run_sql(r,
                   empty ? "SELECT 1, '', '', '' WHERE false"
                         : "SELECT number, name, sha256, to_char(applied_at AT TIME ZONE 'UTC', "
                           "'YYYY-MM-DD HH24:MI:SS\"Z\"')"
                           "  FROM kms.schema_migrations ORDER BY number",
                   0, NULL, out);
}

/* The server computes it, once for the row and ever after for the comparison. */
static int
get_sha256(struct run *r, const struct migration *m, char out[65])
{
    const char *params[1] = {m->text};
    PGresult *res;
    int err;

    err = run_sql(r, "SELECT encode(sha256(convert_to($1, 'UTF8')), 'hex')", 1, params, &res);
    if (err == KMS_OK)
        snprintf(out, 65, "%s", PQgetvalue(res, 0, 0));
    PQclear(res);
    return err;
}

/*
 * Walks known and applied ones side by side, in order of their numbers.  At each number m (NULL:
 * not known) and row (-1: not applied), at least one of them there.
 */
struct walk {
    const struct migration *next;
    const PGresult *applied;
    int next_row;

    const struct migration *m;
    int row;
};

static bool
walk_step(struct walk *w)
{
    bool more = w->next_row < PQntuples(w->applied);
    int known = w->next->number, applied = more ? atoi(PQgetvalue(w->applied, w->next_row, 0)) : 0;

    w->m = NULL;
    w->row = -1;
    if (known == 0 && !more)
        return false;
    if (known != 0 && (!more || known <= applied))
        w->m = w->next++;
    if (more && (known == 0 || applied <= known))
        w->row = w->next_row++;
    return true;
}

/* Does the database have nothing that we do not have, and the same? */
static int
check(struct run *r, const PGresult *applied)
{
    struct walk w = {.next = migrations, .applied = applied};
    const struct migration *missing = NULL;
    char sum[65];
    int err;

    while (walk_step(&w)) {
        if (w.m == NULL) {
            tell(r,
                 "the database has migration %s (%s), which this program does not know: it is "
                 "newer; use a newer program",
                 PQgetvalue(applied, w.row, 0), PQgetvalue(applied, w.row, 1));
            return KMS_ERR_STATE;
        }
        if (w.row < 0) {
            if (missing == NULL)
                missing = w.m;
            continue;
        }
        if (missing != NULL) {
            tell(r, "the database has migration %d, but not %d (%s), which comes before it",
                 w.m->number, missing->number, missing->name);
            return KMS_ERR_STATE;
        }
        if ((err = get_sha256(r, w.m, sum)) != KMS_OK)
            return err;
        if (strcmp(sum, PQgetvalue(applied, w.row, 2)) != 0) {
            tell(r,
                 "migration %d (%s) was applied with another text; the database and this program "
                 "do not belong together",
                 w.m->number, w.m->name);
            return KMS_ERR_STATE;
        }
    }
    return KMS_OK;
}

static int
apply(struct run *r, const struct migration *m)
{
    char number[16], sum[65];
    const char *params[3] = {number, m->name, sum};
    PGresult *res = NULL;
    int err, lost;

    snprintf(number, sizeof(number), "%d", m->number);
    if ((err = get_sha256(r, m, sum)) != KMS_OK || (err = run_quietly(r, "BEGIN")) != KMS_OK)
        return err;
    if ((err = run_quietly(r, m->text)) == KMS_OK)
        err = run_sql(
            r, "INSERT INTO kms.schema_migrations (number, name, sha256) VALUES ($1, $2, $3)", 3,
            params, &res);
    PQclear(res);
    if (err == KMS_OK)
        err = run_quietly(r, "COMMIT");
    if (err != KMS_OK) {
        lost = PQstatus(r->pg) != CONNECTION_OK || run_quietly(r, "ROLLBACK") != KMS_OK;
        tell(r, "migration %d (%s) failed%s", m->number, m->name,
             lost ? "; look with: kmsctl database status" : "");
        return err;
    }
    tell(r, "applied %s", m->name);
    return KMS_OK;
}

/* Held until the connection ends. */
static int
get_lock(struct run *r)
{
    PGresult *res;
    bool got;
    int err;

    err = run_sql(r, "SELECT pg_try_advisory_lock(hashtextextended('kms.migrate', 0))", 0, NULL,
                  &res);
    if (err != KMS_OK)
        return err;
    got = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
    PQclear(res);
    if (got)
        return KMS_OK;
    tell(r, "another program is migrating this database; waiting for it");
    return run_quietly(r, "SELECT pg_advisory_lock(hashtextextended('kms.migrate', 0))");
}

int
migrate(const char *conninfo, migrate_say *say, void *ctx)
{
    struct run r = {.say = say, .ctx = ctx};
    PGresult *applied = NULL;
    struct walk w;
    int err;

    if ((err = run_open(&r, conninfo)) != KMS_OK || (err = get_lock(&r)) != KMS_OK ||
        (err = get_applied(&r, &applied)) != KMS_OK || (err = check(&r, applied)) != KMS_OK)
        goto out;
    w = (struct walk){.next = migrations, .applied = applied};
    while (err == KMS_OK && walk_step(&w))
        if (w.row < 0)
            err = apply(&r, w.m);
out:
    PQclear(applied);
    PQfinish(r.pg);
    return err;
}

int
migrate_status(const char *conninfo, void (*row)(void *ctx, const struct migrate_row *row),
               migrate_say *say, void *ctx)
{
    struct run r = {.say = say, .ctx = ctx};
    struct migrate_row m;
    PGresult *applied = NULL;
    struct walk w;
    char sum[65];
    int err;

    if ((err = run_open(&r, conninfo)) != KMS_OK || (err = get_applied(&r, &applied)) != KMS_OK)
        goto out;
    w = (struct walk){.next = migrations, .applied = applied};
    while (walk_step(&w)) {
        m = (struct migrate_row){.known = w.m != NULL};
        if (m.known) {
            m.number = w.m->number;
            m.name = w.m->name;
            if ((err = get_sha256(&r, w.m, sum)) != KMS_OK)
                goto out;
        } else {
            m.number = atoi(PQgetvalue(applied, w.row, 0));
            m.name = PQgetvalue(applied, w.row, 1);
        }
        if (w.row >= 0) {
            m.applied_at = PQgetvalue(applied, w.row, 3);
            m.changed = m.known && strcmp(sum, PQgetvalue(applied, w.row, 2)) != 0;
        }
        row(ctx, &m);
    }
out:
    PQclear(applied);
    PQfinish(r.pg);
    return err;
}

int
migrate_check_log(const char *conninfo, migrate_say *say, void *ctx)
{
    struct run r = {.say = say, .ctx = ctx};
    PGresult *res = NULL;
    int err;

    if ((err = run_open(&r, conninfo)) == KMS_OK &&
        (err = run_sql(&r,
                       "SELECT (c.xact >> 32) + 1 FROM kms.log_cursor c"
                       " WHERE c.xact > pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
                       0, NULL, &res)) == KMS_OK &&
        PQntuples(res) > 0) {
        tell(
            &r,
            "this cluster's transaction ids lie behind those of the log: the database was restored "
            "from a dump.  Before kmsd runs on it: stop PostgreSQL, as its user run pg_resetwal "
            "--epoch=%s -D DATADIR, start it again",
            PQgetvalue(res, 0, 0));
        err = KMS_ERR_STATE;
    }
    PQclear(res);
    PQfinish(r.pg);
    return err;
}
