/*
 * mainkey.c - customers' main keys in the HSM: jobs taken from the database, done, ended.
 *
 *   tick_cb -> kms.main_key_work        what to forget, jobs, what to destroy
 *     forget_all      hsm_forget
 *     job_begin       pair: hsm_import_pair; import: hsm_import; move: hsm_rewrap of each
 *       job_judged    -> kms.main_key_end
 *     destroy_all     hsm_key_destroy -> kms.main_key_gone
 *
 * A job that could not be done for now, because the HSM is away, is left to the next round; the
 * database says when it is too late.
 */
#include "kms/mainkey.h"

#include <event2/event.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/fault.h"
#include "kms/keeper.h"
#include "kms/shared.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define TICK_MS   20  /* how soon a worker's call is heard */
#define ROUND_MS  500 /* and what others wrote down is looked for: nodes do not call each other */
#define WINDOW    32  /* wrapping keys at the HSM at once: it has others to serve */
#define EK_MAX    512 /* bytes of an imported key's ciphertext */
#define NO_CHANGE (-1)

struct move {
    int32_t generation;
    unsigned char from[HSM_ID_LEN];
    unsigned char before[HSM_WRAPPED_LEN], after[HSM_WRAPPED_LEN];
};

enum job_kind { JOB_PAIR, JOB_IMPORT, JOB_MOVE };

struct job {
    TAILQ_ENTRY(job) entry;
    struct main_keys *m; /* borrowed */
    struct uuid org, op, main_key, pair, to;
    enum job_kind kind;
    bool allow_128;
    bool broken; /* what is in the HSM under the id that it was to make does not work */
    unsigned char ek[EK_MAX];
    size_t ek_len;
    struct move *moves; /* owned */
    size_t n, sent, waiting;
    int failed; /* the first error */
};
TAILQ_HEAD(job_list, job);

struct main_keys {
    struct keeper *k;
    struct event *timer;
    struct uuid me; /* this keeper, as jobs name it */
    int64_t change; /* up to this one all was forgotten */
    unsigned called;
    int64_t next; /* ms, monotonic */
    bool asking;
    struct job_list jobs;
};

/* --- reading --- */

static bool
get_uuid(const json_t *o, const char *name, struct uuid *u)
{
    const char *text = json_string_value(json_object_get(o, name));

    return text != NULL && uuid_parse(u, text, strlen(text)) == KMS_OK;
}

static bool
get_hex(const json_t *v, unsigned char *out, size_t max, size_t *len)
{
    const char *text = json_string_value(v);
    size_t i, n = text != NULL ? strlen(text) : 0;
    unsigned byte;

    if (text == NULL || n % 2 != 0 || n / 2 > max)
        return false;
    for (i = 0; i < n / 2; i++) {
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            return false;
        out[i] = (unsigned char)byte;
    }
    *len = n / 2;
    return true;
}

static json_t *
hex(const unsigned char *p, size_t len)
{
    struct buf text = BUF_INIT;
    json_t *j = NULL;
    size_t i;

    for (i = 0; i < len; i++)
        if (buf_putf(&text, "%02x", p[i]) != KMS_OK)
            break;
    if (i == len)
        j = json_string(buf_str(&text));
    buf_release(&text);
    return j;
}

/* --- jobs --- */

static void round_soon(struct main_keys *m);

static void
job_free(struct job *j)
{
    TAILQ_REMOVE(&j->m->jobs, j, entry);
    free(j->moves);
    free(j);
}

/* why NULL: it is done. */
static void
job_log(const struct job *j, const char *text, const char *why)
{
    char org[UUID_TEXT + 1], key[UUID_TEXT + 1], op[UUID_TEXT + 1];

    uuid_format(org, &j->org);
    uuid_format(op, &j->op);
    uuid_format(key, j->kind == JOB_PAIR ? &j->pair : j->kind == JOB_MOVE ? &j->to : &j->main_key);
    if (why != NULL)
        log_warn(text, "org", org, "key", key, "op", op, "why", why, NULL);
    else
        log_info(text, "org", org, "key", key, "op", op, NULL);
}

/* For now it cannot be done: the next round finds it again. */
static void
job_leave(struct job *j, const char *why)
{
    job_log(j, "main key: put off", why);
    job_free(j);
}

static void
cleared_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct job *j = ctx;

    job_log(j, "main key: what did not work under the pair's old id",
            err == KMS_OK ? "it is removed" : kms_strerror(err));
    job_free(j);
}

static void
ended_cb(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct job *j = ctx;
    struct main_keys *m = j->m;
    int32_t verdict;

    if (err != KMS_OK || PQntuples(res) != 1 || !db_get_int4(res, 0, 0, &verdict))
        job_leave(j, err != KMS_OK ? kms_strerror(err) : "the database's answer is malformed");
    else if (verdict == -1)
        job_leave(j, "the organisation's wrapping keys are others meanwhile");
    else if (verdict != 0)
        job_leave(j, "it was given up meanwhile");
    else if (j->broken) {
        /* A main key is taken out as others are that came to nothing; of pairs nobody keeps a list.
         */
        if (j->kind != JOB_PAIR ||
            hsm_key_destroy(m->k->hsm, HSM_IMPORT, j->pair.b, cleared_cb, j, 0) != KMS_OK)
            job_free(j);
    } else {
        FAULT("cmk.job.stored");
        job_log(j, "main key: done", NULL);
        job_free(j);
    }
    round_soon(m);
}

/* verdict: KMS_CODE_OK, or why it is refused for good.  args is taken over. */
static void
job_end(struct job *j, int verdict, json_t *args)
{
    struct keeper *k = j->m->k;
    struct buf text = BUF_INIT;
    char key[UUID_TEXT + 1];
    struct db_params p;
    int r;

    uuid_format(key, &j->main_key);
    if (k->db == NULL) { /* the keeper is leaving */
        job_free(j);
    } else if (args == NULL || json_object_set_new(args, "main_key", json_string(key)) != 0 ||
               kms_json_put(&text, args) != KMS_OK) {
        job_leave(j, "out of memory");
    } else {
        db_params_init(&p);
        db_uuid(&p, &j->org);
        db_uuid(&p, &j->op);
        db_int4(&p, verdict);
        db_json(&p, buf_str(&text), text.len);
        if ((r = db_call(k->db, KS_MAIN_KEY_END, &p, ended_cb, j)) != KMS_OK)
            job_leave(j, kms_strerror(r));
    }
    buf_release(&text);
    json_decref(args);
}

static void
job_refuse(struct job *j, int verdict, const char *why)
{
    job_log(j, "main key: refused", why);
    job_end(j, verdict, json_pack("{s:s}", "why", why));
}

/*
 * Another keeper may have been quicker, and it works for him: so nothing is destroyed by what this
 * one saw.  The job ends, and with it every use of the id; who asks again gets another.
 */
static void
job_broken(struct job *j)
{
    static const char why[] = "what is in the HSM under the new key's id does not work; ask again";

    j->broken = true;
    job_log(j, "main key: refused", why);
    job_end(j, KMS_CODE_HSM_SILENT, json_pack("{s:s, s:b}", "why", why, "broken", 1));
}

/* What the HSM says instead of doing it. */
static void
job_failed(struct job *j, int err)
{
    switch (err) {
    case KMS_ERR_KEY:
    case KMS_ERR_STATE:
        if (j->kind == JOB_MOVE)
            job_refuse(j, KMS_CODE_HSM_SILENT, "the HSM has a key that does not work");
        else
            job_broken(j);
        break;
    case KMS_ERR_CRYPTO:
        if (j->kind == JOB_IMPORT)
            job_refuse(j, KMS_CODE_MEMBER,
                       "customerMasterKey does not open: encrypt it to the public key with RSA-OAEP"
                       " and SHA-256");
        else
            job_refuse(j, KMS_CODE_HSM_SILENT, "a wrapping key does not open in this HSM");
        break;
    case KMS_ERR_LENGTH:
        job_refuse(j, KMS_CODE_MEMBER,
                   j->allow_128 ? "a main key must have 256 or 128 bits"
                                : "a main key must have 256 bits");
        break;
    case KMS_ERR_ALGORITHM:
        job_refuse(j, KMS_CODE_HSM_SILENT, "the HSM has no way to import a main key");
        break;
    case KMS_ERR_NOT_FOUND:
        job_refuse(j, KMS_CODE_HSM_SILENT, "the HSM does not have the key");
        break;
    default:
        job_leave(j, kms_strerror(err));
    }
}

static void
pair_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct job *j = ctx;

    if (err != KMS_OK) {
        job_failed(j, err);
        return;
    }
    FAULT("cmk.pair.made");
    job_end(j, 0, json_pack("{s:o}", "public_key", hex(p, len)));
}

static void
import_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct job *j = ctx;

    if (err != KMS_OK) {
        job_failed(j, err);
        return;
    }
    FAULT("cmk.import.made");
    job_end(j, 0, json_pack("{s:o}", "kcv", hex(p, len)));
}

static json_t *
moved(const struct job *j)
{
    json_t *list = json_array();
    char to[UUID_TEXT + 1], from[UUID_TEXT + 1];
    struct uuid u;
    size_t i;

    for (i = 0; i < j->n; i++) {
        const struct move *v = &j->moves[i];

        memcpy(u.b, v->from, UUID_LEN);
        uuid_format(from, &u);
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:o, s:o}", "generation", v->generation, "root",
                                        from, "before", hex(v->before, HSM_WRAPPED_LEN), "after",
                                        hex(v->after, HSM_WRAPPED_LEN)));
    }
    uuid_format(to, &j->to);
    if (json_array_size(list) != j->n) {
        json_decref(list);
        return NULL;
    }
    return json_pack("{s:s, s:o}", "to", to, "moved", list);
}

static void job_move(struct job *j);

static void
rewrap_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct job *j = ctx;

    if (err == KMS_OK && len == HSM_WRAPPED_LEN)
        memcpy(j->moves[index].after, p, HSM_WRAPPED_LEN);
    else if (j->failed == KMS_OK)
        j->failed = err != KMS_OK ? err : KMS_ERR_PROTOCOL;
    FAULT("cmk.move.one");
    if (--j->waiting == 0)
        job_move(j);
}

/* Some at a time; when all are there, the database takes them all. */
static void
job_move(struct job *j)
{
    int r;

    while (j->failed == KMS_OK && j->sent < j->n && j->waiting < WINDOW) {
        const struct move *v = &j->moves[j->sent];

        r = hsm_rewrap(j->m->k->hsm, v->before, v->from, j->to.b, rewrap_cb, j, 0,
                       (unsigned)j->sent);
        if (r != KMS_OK) {
            j->failed = r;
        } else {
            j->sent++;
            j->waiting++;
        }
    }
    if (j->waiting > 0)
        return;
    if (j->failed != KMS_OK) {
        job_failed(j, j->failed);
        return;
    }
    FAULT("cmk.move.made");
    job_end(j, 0, moved(j));
}

static bool
job_read_moves(struct job *j, const json_t *list)
{
    const json_t *w;
    struct uuid root;
    size_t i, len;

    j->n = json_array_size(list);
    if (j->n > 0 && (j->moves = calloc(j->n, sizeof(*j->moves))) == NULL)
        return false;
    json_array_foreach(list, i, w)
    {
        struct move *v = &j->moves[i];

        v->generation = (int32_t)json_integer_value(json_object_get(w, "generation"));
        if (!get_uuid(w, "root", &root) ||
            !get_hex(json_object_get(w, "wrapped"), v->before, HSM_WRAPPED_LEN, &len) ||
            len != HSM_WRAPPED_LEN)
            return false;
        memcpy(v->from, root.b, HSM_ID_LEN);
    }
    return true;
}

static bool
job_read(struct job *j, const json_t *o)
{
    const char *kind = json_string_value(json_object_get(o, "kind"));

    if (kind == NULL || !get_uuid(o, "org", &j->org) || !get_uuid(o, "op", &j->op))
        return false;
    get_uuid(o, "main_key", &j->main_key); /* not every job has one */
    if (strcmp(kind, "move") == 0) {
        j->kind = JOB_MOVE;
        return get_uuid(o, "to", &j->to) && job_read_moves(j, json_object_get(o, "wrapping_keys"));
    }
    if (!get_uuid(o, "pair", &j->pair))
        return false;
    if (strcmp(kind, "pair") == 0) {
        j->kind = JOB_PAIR;
        return true;
    }
    j->kind = JOB_IMPORT;
    j->allow_128 = json_is_true(json_object_get(o, "allow_128"));
    return strcmp(kind, "import") == 0 && get_uuid(o, "main_key", &j->main_key) &&
           get_hex(json_object_get(o, "ciphertext"), j->ek, sizeof(j->ek), &j->ek_len);
}

static bool
under_way(const struct main_keys *m, const struct uuid *org, const struct uuid *op)
{
    const struct job *j;

    TAILQ_FOREACH(j, &m->jobs, entry)
    if (memcmp(&j->org, org, sizeof(*org)) == 0 && memcmp(&j->op, op, sizeof(*op)) == 0)
        return true;
    return false;
}

static void
job_begin(struct main_keys *m, const json_t *o)
{
    struct uuid org, op;
    struct job *j;
    int r = KMS_OK;

    if (get_uuid(o, "org", &org) && get_uuid(o, "op", &op) && under_way(m, &org, &op))
        return;
    if ((j = calloc(1, sizeof(*j))) == NULL)
        return;
    j->m = m;
    TAILQ_INSERT_TAIL(&m->jobs, j, entry);
    if (!job_read(j, o)) {
        job_leave(j, "it could not be read");
        return;
    }
    FAULT("cmk.job.taken");
    switch (j->kind) {
    case JOB_PAIR:
        r = hsm_import_pair(m->k->hsm, j->pair.b, 0, pair_cb, j, 0);
        break;
    case JOB_IMPORT:
        r = hsm_import(m->k->hsm, j->main_key.b, j->pair.b, j->allow_128, j->ek, j->ek_len,
                       import_cb, j, 0);
        break;
    case JOB_MOVE:
        job_move(j);
        return;
    }
    if (r != KMS_OK)
        job_leave(j, kms_strerror(r));
}

/* --- what is forgotten, and what is destroyed --- */

static void
forgotten_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct main_keys *m = ctx;

    /* It is refused by the database in any case, and a hsmd that is away holds nothing; one that is
     * busy is told again. */
    if (err == KMS_OK)
        return;
    log_debug("main key: not forgotten", "why", kms_strerror(err), NULL);
    m->change = NO_CHANGE;
}

struct gone {
    struct main_keys *m;
    struct uuid org, key;
};

static void
noted_cb(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    FAULT("cmk.destroy.noted");
    if (err != KMS_OK)
        log_warn("main key: its end was not noted", "why", kms_strerror(err), NULL);
}

static void
destroyed_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct gone *g = ctx;
    struct keeper *k = g->m->k;
    char key[UUID_TEXT + 1];
    struct db_params params;

    uuid_format(key, &g->key);
    if (err != KMS_OK) {
        log_warn("main key: not destroyed yet", "key", key, "why", kms_strerror(err), NULL);
    } else if (k->db != NULL) {
        FAULT("cmk.destroy.done");
        log_info("main key: destroyed in the HSM", "key", key, NULL);
        db_params_init(&params);
        db_uuid(&params, &g->org);
        db_uuid(&params, &g->key);
        db_call(k->db, KS_MAIN_KEY_GONE, &params, noted_cb, NULL);
    }
    free(g);
}

static void
destroy_one(struct main_keys *m, const json_t *o)
{
    struct gone *g = calloc(1, sizeof(*g));

    if (g == NULL)
        return;
    g->m = m;
    if (!get_uuid(o, "org", &g->org) || !get_uuid(o, "main_key", &g->key) ||
        hsm_key_destroy(m->k->hsm, HSM_MAIN, g->key.b, destroyed_cb, g, 0) != KMS_OK)
        free(g);
}

/* --- rounds --- */

static void
work_cb(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct main_keys *m = ctx;
    json_t *work = NULL, *one;
    struct uuid id;
    const char *text;
    size_t i, len;
    int r;

    m->asking = false;
    if (err != KMS_OK || PQntuples(res) != 1 || (text = db_get_json(res, 0, 0, &len)) == NULL ||
        kms_json_parse(&work, text, len) != KMS_OK) {
        log_warn("main key: no answer about work", "why", kms_strerror(err), NULL);
        return;
    }
    m->change = json_integer_value(json_object_get(work, "change"));
    json_array_foreach(json_object_get(work, "forget"), i, one)
    {
        text = json_string_value(one);
        if (text != NULL && uuid_parse(&id, text, strlen(text)) == KMS_OK &&
            (r = hsm_forget(m->k->hsm, id.b, forgotten_cb, m, 0)) != KMS_OK)
            forgotten_cb(m, 0, 0, r, NULL, 0);
    }
    FAULT("cmk.forgotten");
    json_array_foreach(json_object_get(work, "jobs"), i, one)
    {
        job_begin(m, one);
    }
    json_array_foreach(json_object_get(work, "destroy"), i, one)
    {
        destroy_one(m, one);
    }
    json_decref(work);
}

static void
tick_cb(evutil_socket_t fd, short what, void *arg)
{
    struct main_keys *m = arg;
    struct keeper *k = m->k;
    unsigned called = atomic_load(&k->sh->main_key_jobs);
    struct db_params p;

    if (m->asking || (called == m->called && now_ms() < m->next))
        return;
    /* Nothing is to be done without the HSM, nor with one that is not ours. */
    if (!db_ready(k->db) || !hsm_ready(k->hsm) || k->root != ROOT_PROVEN)
        return;
    m->called = called;
    m->next = now_ms() + ROUND_MS;
    db_params_init(&p);
    db_uuid(&p, &m->me);
    if (m->change == NO_CHANGE)
        db_text(&p, NULL);
    else
        db_int8(&p, m->change);
    m->asking = db_call(k->db, KS_MAIN_KEY_WORK, &p, work_cb, m) == KMS_OK;
}

static void
round_soon(struct main_keys *m)
{
    m->next = 0;
}

struct main_keys *
main_keys_new(struct keeper *k)
{
    static const struct timeval every = {0, TICK_MS * 1000};
    struct main_keys *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return NULL;
    m->k = k;
    m->change = NO_CHANGE;
    TAILQ_INIT(&m->jobs);
    if (uuid_random(&m->me) != KMS_OK ||
        (m->timer = event_new(k->base, -1, EV_PERSIST, tick_cb, m)) == NULL ||
        event_add(m->timer, &every) != 0) {
        main_keys_free(m);
        return NULL;
    }
    return m;
}

void
main_keys_stop(struct main_keys *m)
{
    if (m != NULL && m->timer != NULL) {
        event_free(m->timer);
        m->timer = NULL;
    }
}

void
main_keys_free(struct main_keys *m)
{
    struct job *j;

    if (m == NULL)
        return;
    main_keys_stop(m);
    while ((j = TAILQ_FIRST(&m->jobs)) != NULL)
        job_free(j);
    free(m);
}
