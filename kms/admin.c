/*
 * admin.c - the admin socket: who may call what, and what each call does.
 *
 * From the bottom up: methods[] names every call, its role and its function; a function ends its
 * call, now or from a callback, with exactly one of call_answer and call_refuse; the connection
 * part above it only moves lines.
 */
#include "kms/admin.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <grp.h>
#include <jansson.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/admin_call.h"
#include "kms/audit.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "kms/shared.h"
#include "kms/static_key.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define CONNECTIONS_MAX 32
#define LINE_MS         10000  /* for a whole call, from its first byte */
#define IDLE_MS         300000 /* between calls */
#define WRITE_MS        10000  /* for the peer to take a whole answer */
#define ENTRIES_MAX     1000   /* in one answer of audit.tail */
#define METHOD_MAX      64     /* bytes of a method's name */
#define PAGES_MAX       256    /* of a connection; beyond, each call has an entry of its own */

struct conn {
    LIST_ENTRY(conn) entry;
    struct admin *admin;
    uint64_t id;
    struct bufferevent *bev; /* owned */
    struct peer peer;
    int64_t deadline; /* ms; INT64_MAX while a call is under way */
    bool line;        /* part of a call has arrived: its deadline runs */
    bool calling;     /* a call is under way: nothing is read meanwhile */
    bool closing;     /* after what is to be written */
    json_t *pages;    /* owned: what of RECORD_PAGES has its entry; NULL: nothing yet */
};

struct admin {
    struct keeper *k;
    struct evconnlistener *listener;
    struct event *tick;
    LIST_HEAD(, conn) conns;
    unsigned n;
    uint64_t next_id;
};

static void conn_answered(struct conn *cn);

/* --- ending a call --- */

static void
call_free(struct call *c)
{
    json_decref(c->answer);
    json_decref(c->request);
    free(c);
}

static struct conn *
call_conn(const struct call *c)
{
    struct conn *cn;

    LIST_FOREACH(cn, &c->a->conns, entry)
    {
        if (cn->id == c->conn)
            return cn;
    }
    return NULL;
}

/* The one place where a line goes out. */
static void
call_send(struct call *c)
{
    struct conn *cn = call_conn(c);
    struct buf line = BUF_INIT;
    bool whole = c->answer != NULL && kms_json_put(&line, c->answer) == KMS_OK &&
                 buf_putc(&line, '\n') == KMS_OK;

    if (cn != NULL) {
        if (whole && c->id != NULL) {
            bufferevent_write(cn->bev, line.data, line.len);
        } else if (c->id != NULL) {
            cn->closing = true; /* no memory for an answer: say it by closing */
        }
        conn_answered(cn);
    }
    buf_release(&line);
    call_free(c);
}

static json_t *
call_error(const struct call *c, int code, const char *why)
{
    char op[UUID_TEXT + 1];

    uuid_format(op, &c->op);
    return json_pack("{s:s, s:o, s:{s:i, s:s, s:{s:s}}}", "jsonrpc", "2.0", "id",
                     c->id != NULL ? json_deep_copy(c->id) : json_null(), "error", "code", code,
                     "message", why, "data", "op", op);
}

/* --- the entry of each call --- */

/* What it was about: the members of params that name something, never people or texts. */
static json_t *
call_about(const struct call *c)
{
    static const char *const names[] = {"name",  "org",      "id",     "log",      "entry",
                                        "level", "bits",     "after",  "first",    "service",
                                        "state", "purpose",  "matter", "approval", "action",
                                        "hash",  "resource", "key",    "serial",   "request"};
    json_t *about = json_object();

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *v = json_object_get(c->params, names[i]);

        if (json_is_integer(v) || (json_is_string(v) && json_string_length(v) <= CALL_NAME_MAX))
            json_object_set(about, names[i], v);
    }
    if (c->verdict == KMS_CODE_ROLE)
        json_object_set_new(about, "uid", json_integer((json_int_t)c->peer.uid));
    if (c->method == NULL && c->request != NULL) {
        json_t *v = json_object_get(c->request, "method");

        if (json_is_string(v) && json_string_length(v) <= METHOD_MAX)
            json_object_set(about, "method", v);
    }
    return about;
}

/* The answer waits for this. */
static void
call_recorded(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    struct conn *cn;

    if (err != KMS_OK) {
        log_error("an admin call is missing in the audit log", "method",
                  c->method != NULL ? c->method->name : NULL, "why", kms_strerror(err), NULL);
        if (c->verdict == 0) {
            json_decref(c->answer);
            c->answer = call_error(c, KMS_CODE_DATABASE,
                                   "the audit log cannot be written, so there is no answer");
        }
    } else if (c->page[0] != '\0' && c->verdict == 0 && (cn = call_conn(c)) != NULL) {
        if (cn->pages == NULL)
            cn->pages = json_object();
        if (json_object_size(cn->pages) < PAGES_MAX)
            json_object_set_new(cn->pages, c->page, json_true());
    }
    call_send(c);
}

/* Nothing waits for this. */
static void
recorded(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    if (err != KMS_OK)
        log_error("an admin call is missing in the audit log", "why", kms_strerror(err), NULL);
}

/*
 * The entry of a call that no SQL function has recorded: what was only read, what was refused, and
 * what touches only this process and its family.  true: c ends in call_recorded.
 */
static bool
call_record(struct call *c, bool wait)
{
    struct buf text = BUF_INIT;
    struct db_params p;
    json_t *about = call_about(c);
    struct uuid id;
    int r = KMS_ERR_UNAVAILABLE;

    /* Not the caller's op: with one that was used before, a call would leave no entry. */
    if (c->k->db != NULL && (r = uuid_random(&id)) == KMS_OK) {
        db_params_init(&p);
        db_uuid(&p, &id);
        db_text(&p, c->peer.actor);
        db_text(&p, c->method != NULL ? c->method->name : "admin.call");
        db_int4(&p, c->verdict);
        if (about == NULL || kms_json_put(&text, about) != KMS_OK)
            db_json(&p, "{}", 2);
        else
            db_json(&p, buf_str(&text), text.len);
        r = db_call(c->k->db, KS_ADMIN_RECORD, &p, wait ? call_recorded : recorded,
                    wait ? c : NULL);
    }
    if (r != KMS_OK)
        recorded(NULL, r, NULL, NULL);
    buf_release(&text);
    json_decref(about);
    return wait && r == KMS_OK;
}

/* One of a connection's calls for pages of the same log, of which an earlier one has its entry? */
static bool
call_is_page(struct call *c)
{
    const char *log = json_string_value(json_object_get(c->params, "log"));
    const char *org = json_string_value(json_object_get(c->params, "org"));
    struct conn *cn = call_conn(c);

    if (c->method == NULL || c->method->record != RECORD_PAGES || c->verdict != 0)
        return false;
    snprintf(c->page, sizeof(c->page), "%s %s", c->method->name,
             log != NULL   ? log
             : org != NULL ? org
                           : "");
    return cn != NULL && json_object_get(cn->pages, c->page) != NULL;
}

/* Takes answer over; verdict: 0 or an errorCode.  Every call comes by here, once. */
static void
call_end(struct call *c, json_t *answer, int verdict)
{
    bool wait =
        verdict != KMS_CODE_DATABASE && (c->method == NULL || c->method->record != RECORD_LATER);

    c->answer = answer;
    c->verdict = verdict;
    log_info("admin call", "method", c->method != NULL ? c->method->name : NULL, "actor",
             c->peer.actor, "verdict%d", verdict, NULL);
    if (c->recorded || call_is_page(c) || !call_record(c, wait))
        call_send(c);
}

/* Takes result over; NULL: no memory. */
void
call_answer(struct call *c, json_t *result)
{
    json_t *id = c->id != NULL ? json_deep_copy(c->id) : json_null();

    call_end(c, json_pack("{s:s, s:o, s:o}", "jsonrpc", "2.0", "id", id, "result", result), 0);
}

/* JSON-RPC's codes are not ours, and negative. */
static int
call_verdict(int code)
{
    switch (code) {
    case RPC_PARSE:
    case RPC_REQUEST:
        return KMS_CODE_MALFORMED;
    case RPC_METHOD:
        return KMS_CODE_NOT_FOUND;
    case RPC_PARAMS:
        return KMS_CODE_MEMBER;
    default:
        return code > 0 ? code : KMS_CODE_DATABASE;
    }
}

/* why: NULL for the code's own text. */
void
call_refuse(struct call *c, int code, const char *why)
{
    if (why == NULL)
        why = kms_code_reason(code);
    log_info("admin call refused", "method", c->method != NULL ? c->method->name : NULL, "actor",
             c->peer.actor, "code%d", code, "why", why, NULL);
    call_end(c, call_error(c, code, why), call_verdict(code));
}

/* --- what several calls need --- */

void
call_ask(struct call *c, enum keeper_statement s, struct db_params *p, db_cb *cb)
{
    if (db_call(c->k->db, (int)s, p, cb, c) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
}

/* True when there is a result; else the call was refused. */
bool
call_got(struct call *c, int err)
{
    switch (err) {
    case KMS_OK:
        c->recorded = c->method->record == RECORD_SQL;
        return true;
    case KMS_ERR_UNAVAILABLE:
        call_refuse(c, KMS_CODE_DATABASE, "the database is away; nothing was changed");
        return false;
    case KMS_ERR_TIMEOUT:
        call_refuse(c, KMS_CODE_DATABASE,
                    "the database went away and the outcome is unknown; repeat the call with the "
                    "same op");
        return false;
    default:
        call_refuse(c, RPC_INTERNAL, "the database refused the call; see the server's log");
        return false;
    }
}

/* A jsonb column as a tree; *out NULL for SQL NULL.  false: malformed, the call was refused. */
bool
call_json(struct call *c, const PGresult *res, int row, int col, json_t **out)
{
    const char *text;
    size_t len;

    *out = NULL;
    if (PQgetisnull(res, row, col))
        return true;
    if ((text = db_get_json(res, row, col, &len)) != NULL &&
        kms_json_parse_any(out, text, len) == KMS_OK)
        return true;
    call_refuse(c, RPC_INTERNAL, "the database's answer is malformed");
    return false;
}

/* One row with one jsonb; SQL NULL is 404001. */
void
call_shown(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    json_t *j;

    if (!call_got(c, err))
        return;
    if (PQntuples(res) != 1)
        call_refuse(c, RPC_INTERNAL, "the database's answer is malformed");
    else if (!call_json(c, res, 0, 0, &j))
        return;
    else if (j == NULL)
        call_refuse(c, KMS_CODE_NOT_FOUND,
                    c->name != NULL ? "no organisation of this name"
                                    : "nothing has this id or name");
    else
        call_answer(c, j);
}

/* One row: verdict, result. */
void
call_judged(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    int32_t verdict;
    json_t *j;

    if (!call_got(c, err))
        return;
    if (PQntuples(res) != 1 || !db_get_int4(res, 0, 0, &verdict)) {
        call_refuse(c, RPC_INTERNAL, "the database's answer is malformed");
        return;
    }
    if (!call_json(c, res, 0, 1, &j))
        return;
    if (verdict != 0) {
        const char *why = json_string_value(json_object_get(j, "why"));

        call_refuse(c, verdict, why);
        json_decref(j);
        return;
    }
    call_answer(c, j != NULL ? j : json_object());
}

/* The name in params, checked for its length only: the database knows its grammar.  false: the call
 * was refused. */
bool
call_name(struct call *c)
{
    if (kms_json_str(c->params, "name", CALL_NAME_MAX, &c->name) == KMS_OK && c->name[0] != '\0')
        return true;
    call_refuse(c, RPC_PARAMS, "name: a string of 1 to 128 characters");
    return false;
}

bool
call_uuid(struct call *c, const char *member, struct uuid *id)
{
    const char *text;
    char why[64];

    if (kms_json_str(c->params, member, UUID_TEXT, &text) == KMS_OK &&
        uuid_parse(id, text, strlen(text)) == KMS_OK)
        return true;
    snprintf(why, sizeof(why), "%s: is not a UUID", member);
    call_refuse(c, RPC_PARAMS, why);
    return false;
}

bool
call_text(struct call *c, const char *member, size_t max, const char **out)
{
    char why[96];
    int r = kms_json_str(c->params, member, max, out);

    if (r == KMS_OK)
        return true;
    *out = NULL;
    if (r == KMS_ERR_NOT_FOUND)
        return true;
    snprintf(why, sizeof(why), "%s: a string of at most %zu bytes", member, max);
    call_refuse(c, RPC_PARAMS, why);
    return false;
}

bool
call_arguments(struct call *c, struct buf *text)
{
    json_t *args = c->params != NULL ? json_copy((json_t *)(uintptr_t)c->params) : json_object();
    bool made;

    json_object_del(args, "op");
    made = args != NULL && kms_json_put(text, args) == KMS_OK;
    json_decref(args);
    if (!made)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
    return made;
}

void
call_show(struct call *c, enum keeper_statement s)
{
    struct db_params p;

    db_params_init(&p);
    call_ask(c, s, &p, call_shown);
}

void
call_show_one(struct call *c, const char *member, enum keeper_statement s)
{
    struct db_params p;
    struct uuid id;

    if (!call_uuid(c, member, &id))
        return;
    db_params_init(&p);
    db_uuid(&p, &id);
    call_ask(c, s, &p, call_shown);
}

void
call_list_of_org(struct call *c, enum keeper_statement s)
{
    struct db_params p;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    call_ask(c, s, &p, call_shown);
}

static int
set(json_t *obj, const char *name, json_t *value)
{
    return json_object_set_new(obj, name, value);
}

/* --- status --- */

static void
add_reason(void *ctx, const char *text)
{
    json_array_append_new(ctx, json_string(text));
}

static json_t *
status_worker(struct shared_worker *w, unsigned i)
{
    long pid = (long)atomic_load(&w->pid);
    json_t *o = json_object();

    set(o, "worker", json_integer(i));
    set(o, "pid", json_integer(pid));
    set(o, "state", json_string(worker_state_name(atomic_load(&w->state))));
    set(o, "database", json_boolean(atomic_load(&w->db_ready)));
    set(o, "hsm", json_boolean(atomic_load(&w->hsm_ready)));
    set(o, "key_set", json_boolean(atomic_load(&w->keys_ready)));
    set(o, "started", json_integer(atomic_load(&w->started) * 1000));
    set(o, "rss", json_integer(process_rss(pid)));
    set(o, "connections", json_integer((json_int_t)atomic_load(&w->counters[CT_CONNECTIONS_OPEN])));
    set(o, "messages", json_integer((json_int_t)atomic_load(&w->counters[CT_MESSAGES])));
    set(o, "inflight", json_integer((json_int_t)atomic_load(&w->counters[CT_MESSAGES_INFLIGHT])));
    return o;
}

static void
status_run(struct call *c)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    struct keeper *k = c->k;
    struct shared *sh = k->sh;
    json_t *o = json_object(), *workers = json_array(), *counters = json_object();
    json_t *reasons = json_array(), *keeper = json_object(), *sweep = json_object();
    char root[UUID_TEXT + 1];

    uuid_format(root, &k->root_id);
    set(o, "ready", json_boolean(keeper_ready(k, add_reason, reasons)));
    set(o, "reasons", reasons);
    set(o, "version", json_string(PACKAGE_VERSION));
    set(o, "domain", json_string(k->cfg->domain));
    set(o, "node", json_string(k->cfg->node));
    set(o, "listen", json_string(k->cfg->listen));
    set(o, "pid", json_integer(sh->parent));
    set(o, "started", json_integer(sh->started * 1000));
    set(o, "draining", json_boolean(atomic_load(&sh->draining)));
    set(o, "reloaded", json_integer(atomic_load(&sh->reloaded) * 1000));
    set(o, "reload_failed", json_boolean(atomic_load(&sh->reload_failed)));
    set(o, "restarts", json_integer(atomic_load(&sh->restarts)));
    set(o, "log_level", json_string(levels[sh->log_level & 3]));
    set(keeper, "pid", json_integer(getpid()));
    set(keeper, "database", json_boolean(db_ready(k->db)));
    set(keeper, "hsm", json_boolean(hsm_ready(k->hsm)));
    set(keeper, "root", json_string(root));
    set(keeper, "root_state", json_string(root_state_name(k->root)));
    set(o, "keeper", keeper);
    set(sweep, "runs", json_integer((json_int_t)k->sweeper.runs));
    set(sweep, "failures", json_integer((json_int_t)k->sweeper.failures));
    set(sweep, "last", k->sweeper.last != 0 ? json_integer(k->sweeper.last * 1000) : json_null());
    set(sweep, "channels", json_integer((json_int_t)k->sweeper.channels));
    set(sweep, "unbound_keys", json_integer((json_int_t)k->sweeper.unbound_keys));
    set(sweep, "resources", json_integer((json_int_t)k->sweeper.resources));
    set(sweep, "keys", json_integer((json_int_t)k->sweeper.keys));
    set(o, "sweeper", sweep);
    set(o, "audit", audit_status(k->audit));
    for (unsigned i = 0; i < sh->workers; i++)
        json_array_append_new(workers, status_worker(&sh->worker[i], i));
    set(o, "workers", workers);
    for (int i = 0; i < CT_N; i++) {
        uint64_t sum = 0;

        for (unsigned w = 0; w < sh->workers; w++)
            sum += atomic_load(&sh->worker[w].counters[i]);
        set(counters, counter_name((enum counter)i), json_integer((json_int_t)sum));
    }
    set(o, "counters", counters);
    set(o, "database", k->server != NULL ? json_deep_copy(k->server) : json_null());
    set(o, "stats", k->stats != NULL ? json_deep_copy(k->stats) : json_null());
    call_answer(c, o);
}

/* --- hsm.status, hsm.init --- */

static void
hsm_told(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct call *c = ctx;
    json_t *o = NULL;

    if (err != KMS_OK) {
        call_refuse(c, KMS_CODE_HSM, kms_strerror(err));
        return;
    }
    if (kms_json_parse(&o, (const char *)p, len) != KMS_OK) {
        call_refuse(c, RPC_INTERNAL, "hsmd's answer is malformed");
        return;
    }
    static_key_put(o, hsm_get_info(c->k->hsm));
    keeper_check_root(c->k);
    call_answer(c, o);
}

static void
hsm_status_run(struct call *c)
{
    int r = hsm_status(c->k->hsm, hsm_told, c, 0);

    if (r != KMS_OK)
        call_refuse(c, KMS_CODE_HSM, kms_strerror(r));
}

static void
hsm_init_run(struct call *c)
{
    long long bits = 3072;
    int r = kms_json_int(c->params, "bits", 2048, 4096, &bits);

    if ((r != KMS_OK && r != KMS_ERR_NOT_FOUND) || bits % 1024 != 0) {
        call_refuse(c, RPC_PARAMS, "bits: 2048, 3072 or 4096");
        return;
    }
    if ((r = hsm_init(c->k->hsm, (unsigned)bits, hsm_told, c, 0)) != KMS_OK)
        call_refuse(c, KMS_CODE_HSM, kms_strerror(r));
}

/* --- organisations --- */

static void
org_key_made(void *ctx, uint64_t id, int err, const unsigned char root[HSM_ID_LEN],
             const unsigned char wrapped[HSM_WRAPPED_LEN], const unsigned char kcv[HSM_KCV_LEN])
{
    struct call *c = ctx;
    struct db_params p;
    struct uuid root_id;

    if (err != KMS_OK) {
        call_refuse(c, KMS_CODE_HSM, kms_strerror(err));
        return;
    }
    memcpy(root_id.b, root, UUID_LEN);
    db_params_init(&p);
    db_uuid(&p, &c->op);
    db_text(&p, c->name);
    /* As its id: a repeated call must make the same one, and op is as random. */
    db_uuid(&p, &c->op);
    db_int4(&p, 1);
    db_uuid(&p, &root_id);
    db_bytes(&p, wrapped, HSM_WRAPPED_LEN);
    db_bytes(&p, kcv, HSM_KCV_LEN);
    db_text(&p, c->peer.actor);
    call_ask(c, KS_ORG_ADD, &p, call_judged);
}

static void
org_add_run(struct call *c)
{
    int r;

    if (!call_name(c))
        return;
    if (c->k->root != ROOT_PROVEN) {
        call_refuse(c, KMS_CODE_HSM,
                    c->k->root == ROOT_WRONG
                        ? "this node's token does not hold the database's root key"
                        : "the root key is not proven yet; see kmsctl status");
        return;
    }
    r = hsm_wrapping_key_new_under(c->k->hsm, c->k->root_id.b, org_key_made, c, 0);
    if (r != KMS_OK)
        call_refuse(c, KMS_CODE_HSM, kms_strerror(r));
}

static void
org_list_run(struct call *c)
{
    call_show(c, KS_ORGS_LIST);
}

static void
org_show_run(struct call *c)
{
    struct db_params p;

    if (!call_name(c))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    call_ask(c, KS_ORG_SHOW, &p, call_shown);
}

static void
org_set(struct call *c, const char *state)
{
    struct db_params p;

    if (!call_name(c))
        return;
    db_params_init(&p);
    db_uuid(&p, &c->op);
    db_text(&p, c->name);
    db_text(&p, state);
    db_text(&p, c->peer.actor);
    call_ask(c, KS_ORG_SET_STATE, &p, call_judged);
}

static void
org_suspend_run(struct call *c)
{
    org_set(c, "suspended");
}

static void
org_resume_run(struct call *c)
{
    org_set(c, "active");
}

/* --- keys, resources, entries --- */

static void
show_by_id(struct call *c, enum keeper_statement s)
{
    struct db_params p;
    struct uuid id;

    if (!call_uuid(c, "id", &id))
        return;
    db_params_init(&p);
    db_uuid(&p, &id);
    db_text(&p, c->peer.actor);
    call_ask(c, s, &p, call_shown);
}

static void
key_show_run(struct call *c)
{
    show_by_id(c, KS_KEY_SHOW);
}

static void
resource_show_run(struct call *c)
{
    show_by_id(c, KS_RESOURCE_SHOW);
}

static void
entries_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    json_t *list, *j;

    if (!call_got(c, err))
        return;
    list = json_array();
    for (int i = 0; i < PQntuples(res); i++) {
        if (!call_json(c, res, i, 0, &j)) {
            json_decref(list);
            return;
        }
        json_array_append_new(list, j != NULL ? j : json_null());
    }
    call_answer(c, json_pack("{s:o}", "entries", list));
}

static void
audit_tail_run(struct call *c)
{
    long long after = 0, limit = 20;
    struct db_params p;
    int r;

    r = kms_json_str(c->params, "org", CALL_NAME_MAX, &c->name);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND) {
        call_refuse(c, RPC_PARAMS, "org: a string");
        return;
    }
    r = kms_json_int(c->params, "after", 0, INT64_MAX, &after);
    if (r == KMS_OK || r == KMS_ERR_NOT_FOUND)
        r = kms_json_int(c->params, "limit", 1, ENTRIES_MAX, &limit);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND) {
        call_refuse(c, RPC_PARAMS, "after: an entry's number; limit: 1 to 1000");
        return;
    }
    db_params_init(&p);
    db_text(&p, c->name);
    db_int8(&p, after);
    db_int4(&p, (int32_t)limit);
    call_ask(c, KS_AUDIT_TAIL, &p, entries_got);
}

/* --- the processes --- */

static void
log_level_run(struct call *c)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    const char *text;
    int level, r = kms_json_str(c->params, "level", 8, &text);

    if (r == KMS_OK) {
        if ((level = log_level_parse(text)) < 0) {
            call_refuse(c, RPC_PARAMS, "level: error, warn, info or debug");
            return;
        }
        c->k->sh->log_level = level;
    } else if (r != KMS_ERR_NOT_FOUND) {
        call_refuse(c, RPC_PARAMS, "level: error, warn, info or debug");
        return;
    }
    call_answer(c, json_pack("{s:s}", "level", names[c->k->sh->log_level & 3]));
}

/* A signal to the parent, which does the rest. */
static void
tell_parent(struct call *c, int sig)
{
    if (kill(c->k->sh->parent, sig) != 0)
        call_refuse(c, RPC_INTERNAL, strerror(errno));
    else
        call_answer(c, json_pack("{s:i}", "pid", (int)c->k->sh->parent));
}

static void
reload_run(struct call *c)
{
    tell_parent(c, SIGHUP);
}

static void
drain_run(struct call *c)
{
    tell_parent(c, json_is_true(json_object_get(c->params, "exit")) ? SIGTERM : SIGUSR1);
}

static const struct method methods[] = {
    {"status", ROLE_ANY, status_run, RECORD_LATER},
    {"hsm.init", ROLE_OPERATOR, hsm_init_run, RECORD_LATER},
    {"hsm.status", ROLE_ANY, hsm_status_run, RECORD_LATER},
    {"org.add", ROLE_OPERATOR, org_add_run, RECORD_SQL},
    {"org.list", ROLE_ANY, org_list_run, RECORD_CALL},
    {"org.show", ROLE_ANY, org_show_run, RECORD_CALL},
    {"org.suspend", ROLE_OPERATOR, org_suspend_run, RECORD_SQL},
    {"org.resume", ROLE_OPERATOR, org_resume_run, RECORD_SQL},
    {"key.show", ROLE_ANY, key_show_run, RECORD_SQL},
    {"resource.show", ROLE_ANY, resource_show_run, RECORD_SQL},
    {"audit.tail", ROLE_LOG, audit_tail_run, RECORD_PAGES},
    {"log.level", ROLE_OPERATOR, log_level_run, RECORD_LATER},
    {"reload", ROLE_OPERATOR, reload_run, RECORD_LATER},
    {"drain", ROLE_OPERATOR, drain_run, RECORD_LATER},
    {NULL, 0, NULL, RECORD_CALL},
};
static const struct method *const method_lists[] = {
    methods,          audit_methods,  control_methods, explain_methods,
    rotation_methods, freeze_methods, backup_methods,  destroy_methods};

/* --- who may what --- */

/* Is uid, or a group of it, named in the list of the configuration? */
static bool
is_listed(const char *list, uid_t uid, const gid_t *groups, int n)
{
    char *copy, *save = NULL;
    bool found = false;
    uid_t u;
    gid_t g;

    if (list == NULL || (copy = strdup(list)) == NULL)
        return false;
    for (char *w = strtok_r(copy, " \t,", &save); w != NULL; w = strtok_r(NULL, " \t,", &save)) {
        if (w[0] != '@') {
            found = found || (config_user(w, &u) == KMS_OK && u == uid);
            continue;
        }
        if (config_group(w + 1, &g) != KMS_OK)
            continue;
        for (int i = 0; i < n; i++)
            found = found || groups[i] == g;
    }
    free(copy);
    return found;
}

/*
 * What it may do now: a reload that takes a role away counts for connections that are open.  The
 * uid alone counts, with the groups that the system's files give it: the process's own group list
 * is not told by the kernel, and its pid may be another's by now.
 */
static void
peer_roles(struct peer *p, const struct keeper *k)
{
    gid_t groups[256];
    int n = (int)(sizeof(groups) / sizeof(groups[0]));
    const struct passwd *pw = getpwuid(p->uid);

    if (pw == NULL) {
        groups[0] = p->gid;
        n = 1;
    } else if (getgrouplist(pw->pw_name, pw->pw_gid, groups, &n) < 0) {
        n = (int)(sizeof(groups) / sizeof(groups[0]));
    }
    p->roles = 0;
    if (p->uid == 0 || p->uid == geteuid() || is_listed(k->cfg->operators, p->uid, groups, n))
        p->roles |= ROLE_OPERATOR;
    /* Whoever runs the machine is not thereby trusted with other people's conversations. */
    if (is_listed(k->cfg->officers, p->uid, groups, n))
        p->roles |= ROLE_OFFICER;
    if (is_listed(k->cfg->auditors, p->uid, groups, n))
        p->roles |= ROLE_AUDITOR;
}

/* --- from a line to a call --- */

/* The op of params, or a random one.  false: refused. */
static bool
call_op(struct call *c)
{
    const char *text;
    int r = c->params != NULL ? kms_json_str(c->params, "op", UUID_TEXT, &text) : KMS_ERR_NOT_FOUND;

    if (r == KMS_OK)
        r = uuid_parse(&c->op, text, strlen(text));
    else if (r == KMS_ERR_NOT_FOUND)
        r = uuid_random(&c->op);
    if (r == KMS_OK)
        return true;
    call_refuse(c, RPC_PARAMS, "op: a UUID");
    return false;
}

static const struct {
    enum role role;
    const char *name, *setting;
} role_names[] = {
    {ROLE_OPERATOR, "operator", "operators"},
    {ROLE_OFFICER, "officer", "officers"},
    {ROLE_AUDITOR, "auditor", "auditors"},
};
#define ROLES (sizeof(role_names) / sizeof(role_names[0]))

/* Tells the role that would do, and where it is given. */
static void
call_refuse_role(struct call *c)
{
    char why[192], roles[64] = "", settings[64] = "";

    for (size_t i = 0; i < ROLES; i++) {
        const char * or = roles[0] != '\0' ? " or " : "";

        if ((c->method->roles & role_names[i].role) == 0)
            continue;
        snprintf(roles + strlen(roles), sizeof(roles) - strlen(roles), "%s%s", or,
                 role_names[i].name);
        snprintf(settings + strlen(settings), sizeof(settings) - strlen(settings), "%s%s", or,
                 role_names[i].setting);
    }
    snprintf(why, sizeof(why), "this takes the role %s; your user is not named in [admin] %s",
             roles, settings);
    call_refuse(c, KMS_CODE_ROLE, why);
}

/* line: NULL if it was too long to be read. */
static void
call_start(struct conn *cn, const char *line, size_t len)
{
    struct call *c = calloc(1, sizeof(*c));
    const json_t *id, *params;
    const char *name, *version;
    int r;

    if (c == NULL) {
        cn->closing = true;
        conn_answered(cn);
        return;
    }
    c->a = cn->admin;
    c->k = cn->admin->k;
    c->conn = cn->id;
    peer_roles(&cn->peer, c->k);
    c->peer = cn->peer;
    c->id = json_null(); /* what an unreadable call is answered with */
    if (line == NULL) {
        call_refuse(c, RPC_REQUEST, "the line is too long");
        return;
    }
    if ((r = kms_json_parse(&c->request, line, len)) != KMS_OK) {
        call_refuse(c, r == KMS_ERR_MEMBER ? RPC_REQUEST : RPC_PARSE,
                    r == KMS_ERR_MEMBER ? "one object a line" : kms_strerror(r));
        return;
    }
    id = json_object_get(c->request, "id");
    if (id != NULL && !json_is_string(id) && !json_is_integer(id) && !json_is_null(id)) {
        call_refuse(c, RPC_REQUEST, "id: a string or an integer");
        return;
    }
    if (kms_json_str(c->request, "jsonrpc", 8, &version) != KMS_OK || strcmp(version, "2.0") != 0 ||
        kms_json_str(c->request, "method", METHOD_MAX, &name) != KMS_OK) {
        c->id = id != NULL ? id : c->id;
        call_refuse(c, RPC_REQUEST, "not JSON-RPC 2.0");
        return;
    }
    c->id = id;
    for (size_t i = 0; i < sizeof(method_lists) / sizeof(method_lists[0]); i++) {
        for (const struct method *m = method_lists[i]; m->name != NULL; m++) {
            if (strcmp(m->name, name) == 0)
                c->method = m;
        }
    }
    params = json_object_get(c->request, "params");
    if (c->method == NULL) {
        call_refuse(c, RPC_METHOD, "no such method");
    } else if (params != NULL && !json_is_object(params)) {
        call_refuse(c, RPC_PARAMS, "params: an object");
    } else {
        c->params = params;
        if (!call_op(c))
            return;
        if ((c->peer.roles & c->method->roles) == 0)
            call_refuse_role(c);
        else
            c->method->run(c);
    }
}

/* --- connections --- */

static void
conn_free(struct conn *cn)
{
    LIST_REMOVE(cn, entry);
    if (cn->admin->n-- == CONNECTIONS_MAX)
        evconnlistener_enable(cn->admin->listener);
    json_decref(cn->pages);
    bufferevent_free(cn->bev);
    free(cn);
}

/* A call is over: write its answer out, then read on. */
static void
conn_answered(struct conn *cn)
{
    cn->calling = false;
    cn->deadline = now_ms() + WRITE_MS;
    /* The write callback goes on, when everything is out or if there was nothing. */
    bufferevent_enable(cn->bev, EV_WRITE);
    bufferevent_trigger(cn->bev, EV_WRITE, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS);
}

/* Takes the next line, if there is one. */
static void
conn_next(struct conn *cn)
{
    struct evbuffer *in = bufferevent_get_input(cn->bev);
    struct evbuffer_ptr eol;
    size_t len = evbuffer_get_length(in), n;
    char *line;

    if (cn->calling || cn->closing)
        return;
    eol = evbuffer_search_eol(in, NULL, &n, EVBUFFER_EOL_LF);
    if (eol.pos < 0 && len < ADMIN_LINE_MAX) {
        if (!cn->line || len == 0)
            cn->deadline = now_ms() + (len > 0 ? LINE_MS : IDLE_MS);
        cn->line = len > 0;
        bufferevent_enable(cn->bev, EV_READ);
        return;
    }
    cn->calling = true;
    cn->line = false;
    cn->deadline = INT64_MAX; /* database and HSM have deadlines of their own */
    bufferevent_disable(cn->bev, EV_READ);
    if (eol.pos < 0 || eol.pos >= ADMIN_LINE_MAX) {
        evbuffer_drain(in, len);
        cn->closing = true;
        call_start(cn, NULL, 0);
        return;
    }
    line = evbuffer_readln(in, &n, EVBUFFER_EOL_LF);
    if (line == NULL) {
        cn->closing = true;
        conn_answered(cn);
        return;
    }
    call_start(cn, line, n);
    free(line);
}

static void
conn_read(struct bufferevent *bev, void *arg)
{
    conn_next(arg);
}

static void
conn_written(struct bufferevent *bev, void *arg)
{
    struct conn *cn = arg;

    if (cn->calling || evbuffer_get_length(bufferevent_get_output(bev)) > 0)
        return;
    if (cn->closing)
        conn_free(cn);
    else
        conn_next(cn);
}

static void
conn_event(struct bufferevent *bev, short what, void *arg)
{
    struct conn *cn = arg;

    /* A peer that has sent its last call may shut down its side before it reads the answer. */
    if ((what & BEV_EVENT_EOF) != 0 &&
        (cn->calling || evbuffer_get_length(bufferevent_get_output(bev)) > 0)) {
        cn->closing = true;
        return;
    }
    conn_free(cn);
}

static bool
peer_get(struct peer *p, int fd)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    const struct passwd *pw;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0 || len != sizeof(cred))
        return false;
    p->uid = cred.uid;
    p->gid = cred.gid;
    pw = getpwuid(cred.uid);
    snprintf(p->actor, sizeof(p->actor), "%.64s(%u)", pw != NULL ? pw->pw_name : "uid",
             (unsigned)cred.uid);
    return true;
}

static void
accepted(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *addr, int len,
         void *arg)
{
    struct admin *a = arg;
    struct conn *cn = calloc(1, sizeof(*cn));

    if (cn == NULL || !peer_get(&cn->peer, fd) ||
        (cn->bev = bufferevent_socket_new(a->k->base, fd, BEV_OPT_CLOSE_ON_FREE)) == NULL) {
        evutil_closesocket(fd);
        free(cn);
        return;
    }
    cn->admin = a;
    cn->id = ++a->next_id;
    cn->deadline = now_ms() + IDLE_MS;
    LIST_INSERT_HEAD(&a->conns, cn, entry);
    if (++a->n == CONNECTIONS_MAX)
        evconnlistener_disable(listener);
    bufferevent_setcb(cn->bev, conn_read, conn_written, conn_event, cn);
    bufferevent_setwatermark(cn->bev, EV_READ, 0, ADMIN_LINE_MAX);
    bufferevent_enable(cn->bev, EV_READ | EV_WRITE);
}

static void
accept_failed(struct evconnlistener *listener, void *arg)
{
    /* Out of descriptors, most likely: the tick accepts again, instead of spinning here. */
    log_error("cannot accept on the admin socket", "why",
              evutil_socket_error_to_string(EVUTIL_SOCKET_ERROR()), NULL);
    evconnlistener_disable(listener);
}

static void
on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct admin *a = arg;
    struct conn *cn, *next;
    int64_t now = now_ms();

    for (cn = LIST_FIRST(&a->conns); cn != NULL; cn = next) {
        next = LIST_NEXT(cn, entry);
        if (cn->deadline <= now)
            conn_free(cn);
    }
    if (a->n < CONNECTIONS_MAX)
        evconnlistener_enable(a->listener);
}

struct admin *
admin_new(struct keeper *k, int listen_fd)
{
    struct admin *a = calloc(1, sizeof(*a));
    struct timeval second = {1, 0};

    if (a == NULL)
        return NULL;
    a->k = k;
    LIST_INIT(&a->conns);
    a->listener = evconnlistener_new(k->base, accepted, a,
                                     LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, listen_fd);
    a->tick = event_new(k->base, -1, EV_PERSIST, on_tick, a);
    if (a->listener == NULL || a->tick == NULL || event_add(a->tick, &second) != 0) {
        admin_free(a);
        return NULL;
    }
    evconnlistener_set_error_cb(a->listener, accept_failed);
    return a;
}

void
admin_free(struct admin *a)
{
    if (a == NULL)
        return;
    while (!LIST_EMPTY(&a->conns))
        conn_free(LIST_FIRST(&a->conns));
    if (a->tick != NULL)
        event_free(a->tick);
    if (a->listener != NULL)
        evconnlistener_free(a->listener);
    free(a);
}
