/*
 * audit.c - sequencing and checkpoints, once a second.
 *
 *   tick -> log_sequence until nothing is left
 *        -> log_due: logs that have grown enough, or whose checkpoint is old; one after the other:
 *             base_find     the last signed tree: known, or read and verified
 *             log_hashes    the leaves since then, appended
 *             hsm_sign_audit
 *             log_checkpoint_add
 */
#include "kms/audit.h"

#include <event2/event.h>
#include <jansson.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/canary.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "kms/syslog.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/merkle.h"

#define TICK_MS        1000
#define SEQUENCE_MAX   4096    /* entries in one transaction */
#define ROUNDS_MAX     16      /* transactions before checkpoints have their turn */
#define BURST          1000    /* leaves that want a checkpoint at once */
#define BUSY_MS        5000    /* fewer leaves: at most so long without one */
#define IDLE_MS        50000   /* none: with a margin to the minute that is promised */
#define DUE_MAX        200     /* logs in one turn */
#define FETCH_MAX      8192    /* leaves in one answer */
#define CHECKPOINT_MAX 1000000 /* leaves between two checkpoints, while catching up */

static const struct db_statement statements[AS_N] = {
    [AS_SEQUENCE] = {"log_sequence", "SELECT kms.log_sequence($1)", 1},
    /* burst, busy_ms, idle_ms, limit */
    [AS_DUE] = {"log_due",
                "SELECT org, size, signed_size, signed_root, peaks, note"
                "  FROM kms.log_due($1, $2, $3, $4)",
                4},
    /* org, first, limit */
    [AS_HASHES] = {"log_hashes", "SELECT first_leaf, hashes FROM kms.log_hashes($1, $2, $3)", 3},
    /* org, size, root, peaks, note, vkey, levels, indexes, hashes */
    [AS_CHECKPOINT_ADD] = {"log_checkpoint_add",
                           "SELECT kms.log_checkpoint_add($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9},
    /* organisation's name or NULL */
    [AS_SHOW] = {"log_show", "SELECT kms.log_show($1)", 1},
    /* org, after, limit */
    [AS_NOTES] = {"log_notes", "SELECT size, note, vkey FROM kms.log_notes($1, $2, $3)", 3},
    /* org, level, first, limit */
    [AS_NODES] = {"log_nodes_get", "SELECT index, hash FROM kms.log_nodes_get($1, $2, $3, $4)", 4},
    /* org, first, limit */
    [AS_ENTRIES] = {"log_entries", "SELECT index, entry, leaf FROM kms.log_entries($1, $2, $3)", 3},
    /* org, entry */
    [AS_FIND] = {"log_find", "SELECT kms.log_find($1, $2)", 2},
    /* org, limit */
    [AS_STRAYS] = {"log_strays", "SELECT entry FROM kms.log_strays($1, $2)", 2},
    /* op, org, size, witness, at_ms, note, actor */
    [AS_COSIGN] = {"log_cosign",
                   "SELECT verdict, result FROM kms.log_cosign($1, $2, $3, $4, $5, $6, $7)", 7},
    /* op, organisation's name or NULL, subject, actor */
    [AS_PERSON_ERASE] = {"person_erase",
                         "SELECT verdict, result FROM kms.person_erase($1, $2, $3, $4)", 4},
    /* limit */
    [AS_STREAM_NEXT] = {"log_stream_next",
                        "SELECT xact, entry, at_us, verdict, action, leaf,"
                        "       kms.canary_alert(xact, entry)"
                        "  FROM kms.log_stream_next($1)",
                        1},
    /* xact, entry */
    [AS_STREAM_DONE] = {"log_stream_done", "SELECT kms.log_stream_done($1, $2)", 2},
    /* entries to look at, alarms to return */
    [AS_CANARY_RAISE] = {"canary_raise", "SELECT kms.canary_raise($1, $2)", 2},
    /* entries */
    [AS_CANARY_TOLD] = {"canary_told", "SELECT kms.canary_told($1)", 1},
    /* request id, entry's number or operation id */
    [AS_EXPLAIN] = {"explain", "SELECT kms.explain($1)", 1},
    /* id, after, limit */
    [AS_MATTER_REPORT] = {"matter_report", "SELECT kms.matter_report($1, $2, $3)", 3},
};

/* The last signed tree of a log, as this process knows it to be. */
struct known {
    struct uuid org; /* first: what the tree is searched by */
    struct merkle tree;
    unsigned char root[MERKLE_LEN];
};

struct due {
    struct uuid org;
    uint64_t size, signed_size;
    bool has_note;
    unsigned char signed_root[MERKLE_LEN];
    struct buf peaks, note; /* owned */
};

/* The checkpoint under way. */
struct job {
    struct known *known;
    struct merkle tree;
    uint64_t target;
    struct checkpoint checkpoint;
    struct note_key key;
    struct buf text;
    struct buf nodes; /* of struct node: those that became complete */
};

struct node {
    unsigned level;
    uint64_t index;
    unsigned char hash[MERKLE_LEN];
};

struct audit {
    struct keeper *k;
    struct db *db, *look;
    struct event *timer;
    void *known; /* of tsearch */
    bool busy, more, leads, stopped;
    bool streamed; /* what an earlier process left was looked for */
    int rounds;
    struct due *due; /* owned */
    size_t n, at;
    struct job job;
    /* Since this process started. */
    uint64_t sequenced, checkpoints, failures;
    int64_t last;          /* seconds since 1970; 0: never */
    struct syslog *syslog; /* NULL: off */
    struct canary *canary; /* owned */
    char alarm[160];       /* "": none */
};

static void due_step(struct audit *a);

static void
arm(struct audit *a, int ms)
{
    struct timeval tv = {ms / 1000, (ms % 1000) * 1000};

    a->busy = false;
    if (a->stopped)
        return;
    evtimer_add(a->timer, &tv);
}

static int
known_compare(const void *a, const void *b)
{
    return memcmp(a, b, UUID_LEN);
}

/* NULL: no memory.  A new one is the empty tree. */
static struct known *
known_get(struct audit *a, const struct uuid *org, bool *fresh)
{
    struct known **node, *k;

    *fresh = false;
    if ((node = tfind(org, &a->known, known_compare)) != NULL)
        return *node;
    if ((k = calloc(1, sizeof(*k))) == NULL)
        return NULL;
    k->org = *org;
    if (merkle_root(&k->tree, k->root) != KMS_OK || tsearch(k, &a->known, known_compare) == NULL) {
        free(k);
        return NULL;
    }
    *fresh = true;
    return k;
}

bool
audit_key(const struct audit *a, const struct uuid *org, struct note_key *key)
{
    const struct hsm_info *info = hsm_get_info(a->k->hsm);
    char name[NOTE_NAME_MAX + 64], id[UUID_TEXT + 1];

    if (!info->has_audit)
        return false;
    uuid_format(id, org);
    snprintf(name, sizeof(name), "%s/log/%s", a->k->cfg->domain, id);
    return note_key_init(key, name, NOTE_ED25519, info->audit_public) == KMS_OK;
}

/* --- the end of a turn --- */

static void
due_free(struct audit *a)
{
    for (size_t i = 0; i < a->n; i++) {
        buf_release(&a->due[i].peaks);
        buf_release(&a->due[i].note);
    }
    free(a->due);
    a->due = NULL;
    a->n = a->at = 0;
}

static void
turn_end(struct audit *a)
{
    due_free(a);
    arm(a, a->more ? 0 : TICK_MS);
}

static void
job_release(struct job *j)
{
    buf_release(&j->text);
    buf_release(&j->nodes);
    memset(j, 0, sizeof(*j));
}

/* This log gets no checkpoint now; the others do. */
static void
job_skip(struct audit *a, const char *why)
{
    a->failures++;
    log_warn("no checkpoint signed", "why", why, NULL);
    job_release(&a->job);
    a->at++;
    due_step(a);
}

/* What must never be: somebody has changed the log in the database.  It stays unsigned, and loud.
 */
static void
job_refuse(struct audit *a, const char *why)
{
    char org[UUID_TEXT + 1], text[sizeof(a->alarm)];

    uuid_format(org, &a->due[a->at].org);
    a->failures++;
    snprintf(text, sizeof(text), "%s: %s", org, why);
    if (strcmp(text, a->alarm) != 0)
        log_error("the log was changed in the database; it is not signed any more", "log", org,
                  "why", why, NULL);
    memcpy(a->alarm, text, sizeof(text));
    job_release(&a->job);
    a->at++;
    due_step(a);
}

/* --- one checkpoint --- */

static void
job_added(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct audit *a = ctx;
    struct job *j = &a->job;
    char org[UUID_TEXT + 1];
    int32_t verdict;

    if (err != KMS_OK || PQntuples(res) != 1 || !db_get_int4(res, 0, 0, &verdict)) {
        job_skip(a, err != KMS_OK ? kms_strerror(err) : "the database's answer is malformed");
        return;
    }
    if (verdict != 0) {
        job_refuse(a, verdict == 409002 ? "another root was signed for this size"
                                        : "leaves are missing");
        return;
    }
    syslog_checkpoint(a->syslog, buf_str(&j->text));
    j->known->tree = j->tree;
    memcpy(j->known->root, j->checkpoint.root, MERKLE_LEN);
    uuid_format(org, &j->known->org);
    if (strncmp(a->alarm, org, UUID_TEXT) == 0)
        a->alarm[0] = '\0';
    a->checkpoints++;
    a->last = (int64_t)time(NULL);
    job_release(j);
    a->at++;
    due_step(a);
}

/* As three arrays. */
static void
put_nodes(struct db_params *p, const struct buf *nodes)
{
    size_t n = nodes->len / sizeof(struct node);
    struct node node;

    for (int column = 0; column < 3; column++) {
        db_array_begin(p, column == 0 ? DB_INT4 : column == 1 ? DB_INT8 : DB_BYTEA);
        for (size_t i = 0; i < n; i++) {
            memcpy(&node, nodes->data + i * sizeof(node), sizeof(node));
            if (column == 0)
                db_put_int4(p, (int32_t)node.level);
            else if (column == 1)
                db_put_int8(p, (int64_t)node.index);
            else
                db_put_bytes(p, node.hash, MERKLE_LEN);
        }
        db_array_end(p);
    }
}

static void
job_signed(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *sig, size_t len)
{
    struct audit *a = ctx;
    struct job *j = &a->job;
    struct buf peaks = BUF_INIT, vkey = BUF_INIT;
    struct db_params p;
    struct note note;
    int r = err;

    db_params_init(&p);
    if (r == KMS_OK && len != NOTE_SIG_LEN)
        r = KMS_ERR_PROTOCOL;
    /* A signature that does not verify must never get out: another key may be in the token by now.
     */
    if (r == KMS_OK && (r = buf_putc(&j->text, '\n')) == KMS_OK &&
        (r = note_put_sig(&j->text, &j->key, sig, len)) == KMS_OK &&
        (r = note_parse(&note, buf_str(&j->text), j->text.len)) == KMS_OK &&
        (r = note_verify(&note, &j->key, NULL)) == KMS_OK &&
        (r = merkle_put_peaks(&peaks, &j->tree)) == KMS_OK &&
        (r = note_key_put(&vkey, &j->key)) == KMS_OK) {
        db_uuid(&p, &j->known->org);
        db_int8(&p, (int64_t)j->tree.size);
        db_bytes(&p, j->checkpoint.root, MERKLE_LEN);
        db_bytes(&p, peaks.len > 0 ? peaks.data : (const unsigned char *)"", peaks.len);
        db_text(&p, buf_str(&j->text));
        db_text(&p, buf_str(&vkey));
        put_nodes(&p, &j->nodes);
        r = db_call(a->db, AS_CHECKPOINT_ADD, &p, job_added, a);
    }
    buf_release(&peaks);
    buf_release(&vkey);
    db_params_release(&p);
    if (r != KMS_OK)
        job_skip(a, kms_strerror(r));
}

static void
job_sign(struct audit *a)
{
    struct job *j = &a->job;
    int r;

    if (!hsm_ready(a->k->hsm) || !audit_key(a, &j->known->org, &j->key)) {
        job_skip(a, "the HSM is away");
        return;
    }
    memcpy(j->checkpoint.origin, j->key.name, sizeof(j->checkpoint.origin));
    j->checkpoint.size = j->tree.size;
    j->checkpoint.time = (int64_t)time(NULL);
    if ((r = merkle_root(&j->tree, j->checkpoint.root)) != KMS_OK ||
        (r = checkpoint_put(&j->text, &j->checkpoint)) != KMS_OK ||
        (r = hsm_sign_audit(a->k->hsm, j->text.data, j->text.len, job_signed, a, 0, 0)) != KMS_OK)
        job_skip(a, kms_strerror(r));
}

/* --- the leaves since the last one --- */

static int
keep_node(void *ctx, unsigned level, uint64_t index, const unsigned char *hash)
{
    struct node n;

    if (level == 0)
        return KMS_OK;
    memset(&n, 0, sizeof(n));
    n.level = level;
    n.index = index;
    memcpy(n.hash, hash, MERKLE_LEN);
    return buf_put(ctx, &n, sizeof(n));
}

static void job_fetch(struct audit *a);

static void
job_fetched(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct audit *a = ctx;
    struct due *d = &a->due[a->at];
    struct job *j = &a->job;
    unsigned char root[MERKLE_LEN];
    uint64_t before = j->tree.size;
    int r = err;

    for (int row = 0; r == KMS_OK && row < PQntuples(res); row++) {
        const unsigned char *p = (const unsigned char *)PQgetvalue(res, row, 1);
        uint64_t n = (uint64_t)PQgetlength(res, row, 1) / MERKLE_LEN;
        int64_t first;

        if (!db_get_int8(res, row, 0, &first) || first < 0 || (uint64_t)first > j->tree.size)
            break;
        for (uint64_t i = j->tree.size - (uint64_t)first; r == KMS_OK && i < n; i++) {
            if (j->tree.size == j->target)
                break;
            r = merkle_append(&j->tree, p + i * MERKLE_LEN, keep_node, &j->nodes);
            /* Another node's keeper has signed on the way. */
            if (r == KMS_OK && j->tree.size == d->signed_size &&
                (r = merkle_root(&j->tree, root)) == KMS_OK &&
                memcmp(root, d->signed_root, MERKLE_LEN) != 0) {
                job_refuse(a, "its last checkpoint does not continue what was signed before");
                return;
            }
        }
    }
    if (r != KMS_OK)
        job_skip(a, kms_strerror(r));
    else if (j->tree.size == before)
        job_refuse(a, "leaves are missing");
    else
        job_fetch(a);
}

static void
job_fetch(struct audit *a)
{
    struct job *j = &a->job;
    struct db_params p;

    if (j->tree.size == j->target) {
        job_sign(a);
        return;
    }
    db_params_init(&p);
    db_uuid(&p, &j->known->org);
    db_int8(&p, (int64_t)j->tree.size);
    db_int4(&p, FETCH_MAX);
    if (db_call(a->db, AS_HASHES, &p, job_fetched, a) != KMS_OK)
        job_skip(a, "out of memory");
}

/* The last checkpoint in the database is by our key and for this log, and its peaks make its root.
 */
static int
base_verify(struct audit *a, struct known *k, const struct due *d)
{
    struct checkpoint c;
    struct note_key key;
    struct note note;
    int r;

    if (!audit_key(a, &d->org, &key))
        return KMS_ERR_UNAVAILABLE;
    if ((r = note_parse(&note, buf_str(&d->note), d->note.len)) != KMS_OK ||
        (r = note_verify(&note, &key, NULL)) != KMS_OK ||
        (r = checkpoint_parse(&c, note.text, note.text_len)) != KMS_OK ||
        (r = merkle_get_peaks(&k->tree, d->signed_size, d->peaks.data, d->peaks.len)) != KMS_OK ||
        (r = merkle_root(&k->tree, k->root)) != KMS_OK)
        return r;
    return c.size == d->signed_size && strcmp(c.origin, key.name) == 0 &&
                   memcmp(c.root, k->root, MERKLE_LEN) == 0
               ? KMS_OK
               : KMS_ERR_CRYPTO;
}

static void
known_drop(struct audit *a, struct known *k)
{
    tdelete(k, &a->known, known_compare);
    free(k);
}

static void
due_step(struct audit *a)
{
    struct job *j = &a->job;
    struct due *d;
    bool fresh;
    int r;

    if (a->at == a->n || a->stopped) {
        turn_end(a);
        return;
    }
    d = &a->due[a->at];
    if ((j->known = known_get(a, &d->org, &fresh)) == NULL) {
        job_skip(a, "out of memory");
        return;
    }
    if (fresh && (d->has_note || d->signed_size > 0) &&
        (r = base_verify(a, j->known, d)) != KMS_OK) {
        known_drop(a, j->known);
        if (r == KMS_ERR_UNAVAILABLE || r == KMS_ERR_NOMEM)
            job_skip(a, "the HSM is away");
        else if (r == KMS_ERR_NOT_FOUND)
            job_refuse(a, "its last checkpoint is by another key than this token's audit key");
        else
            job_refuse(a, "its last checkpoint is not what this server signed");
        return;
    }
    if (j->known->tree.size > d->signed_size || j->known->tree.size > d->size) {
        job_refuse(a, "it has lost a checkpoint that was signed");
        return;
    }
    if (j->known->tree.size == d->signed_size && d->has_note &&
        memcmp(j->known->root, d->signed_root, MERKLE_LEN) != 0) {
        job_refuse(a, "its last checkpoint is not the one that was signed");
        return;
    }
    j->tree = j->known->tree;
    j->target = d->size;
    if (j->target - j->tree.size > CHECKPOINT_MAX)
        j->target = j->tree.size + CHECKPOINT_MAX;
    if (j->target < d->signed_size)
        j->target = d->signed_size;
    job_fetch(a);
}

/* --- a turn --- */

static void
due_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct audit *a = ctx;
    int n = err == KMS_OK ? PQntuples(res) : 0;

    if (n == 0 || (a->due = calloc((size_t)n, sizeof(*a->due))) == NULL) {
        turn_end(a);
        return;
    }
    for (int i = 0; i < n; i++) {
        struct due *d = &a->due[i];
        int64_t size, signed_size;
        const char *note;

        a->n++;
        if (!db_get_uuid(res, i, 0, &d->org) || !db_get_int8(res, i, 1, &size) ||
            !db_get_int8(res, i, 2, &signed_size) || size < signed_size || signed_size < 0) {
            log_error("the database's answer is malformed", NULL);
            turn_end(a);
            return;
        }
        d->size = (uint64_t)size;
        d->signed_size = (uint64_t)signed_size;
        note = db_get_text(res, i, 5);
        d->has_note =
            note != NULL && db_get_bytes(res, i, 3, d->signed_root, MERKLE_LEN) &&
            buf_puts(&d->note, note) == KMS_OK &&
            buf_put(&d->peaks, PQgetvalue(res, i, 4), (size_t)PQgetlength(res, i, 4)) == KMS_OK;
    }
    due_step(a);
}

static void sequence(struct audit *a);

static void
sequenced(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct audit *a = ctx;
    struct db_params p;
    int32_t n;

    a->more = false;
    if (err != KMS_OK || PQntuples(res) != 1 || !db_get_int4(res, 0, 0, &n)) {
        a->failures++;
        arm(a, TICK_MS);
        return;
    }
    if (n >= 0 && !a->leads)
        log_info("this keeper sequences the log", NULL);
    a->leads = n >= 0;
    if (!a->leads) {
        arm(a, TICK_MS);
        return;
    }
    a->sequenced += (uint64_t)n;
    if (n > 0 || !a->streamed)
        syslog_push(a->syslog);
    a->streamed = true;
    canary_push(a->canary);
    a->more = n == SEQUENCE_MAX;
    if (a->more && ++a->rounds < ROUNDS_MAX) {
        sequence(a);
        return;
    }
    db_params_init(&p);
    db_int8(&p, BURST);
    db_int8(&p, BUSY_MS);
    db_int8(&p, IDLE_MS);
    db_int4(&p, DUE_MAX);
    if (db_call(a->db, AS_DUE, &p, due_got, a) != KMS_OK)
        turn_end(a);
}

static void
sequence(struct audit *a)
{
    struct db_params p;

    db_params_init(&p);
    db_int4(&p, SEQUENCE_MAX);
    if (db_call(a->db, AS_SEQUENCE, &p, sequenced, a) != KMS_OK)
        arm(a, TICK_MS);
}

static void
on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct audit *a = arg;

    if (a->busy)
        return;
    if (!db_ready(a->db)) {
        a->leads = false;
        arm(a, TICK_MS);
        return;
    }
    a->busy = true;
    a->rounds = 0;
    sequence(a);
}

/* --- life --- */

const struct canary *
audit_canary(const struct audit *a)
{
    return a->leads ? a->canary : NULL;
}

struct db *
audit_db(struct audit *a)
{
    return a->look;
}

json_t *
audit_status(const struct audit *a)
{
    json_t *o = json_object();

    json_object_set_new(o, "sequences", json_boolean(a->leads));
    json_object_set_new(o, "sequenced", json_integer((json_int_t)a->sequenced));
    json_object_set_new(o, "checkpoints", json_integer((json_int_t)a->checkpoints));
    json_object_set_new(o, "failures", json_integer((json_int_t)a->failures));
    json_object_set_new(o, "last", a->last != 0 ? json_integer(a->last * 1000) : json_null());
    if (a->syslog != NULL)
        json_object_set_new(o, "syslog", syslog_status(a->syslog));
    if (a->alarm[0] != '\0')
        json_object_set_new(o, "alarm", json_string(a->alarm));
    return o;
}

struct audit *
audit_new(struct keeper *k)
{
    struct audit *a = calloc(1, sizeof(*a));
    int deadline = (int)k->cfg->db_deadline * 1000;

    if (a == NULL)
        return NULL;
    a->k = k;
    /* One connection, since the lock belongs to it. */
    a->db = db_new(k->base, k->cfg->keeper_url, 1, statements, AS_N, deadline,
                   k->cfg->db_require_durable);
    a->look = db_new(k->base, k->cfg->keeper_url, 1, statements, AS_N, deadline,
                     k->cfg->db_require_durable);
    a->timer = evtimer_new(k->base, on_tick, a);
    if (a->db == NULL || a->look == NULL || a->timer == NULL) {
        audit_free(a);
        return NULL;
    }
    a->canary = canary_new(k);
    a->syslog = syslog_new(k);
    arm(a, TICK_MS);
    return a;
}

void
audit_stop(struct audit *a)
{
    if (a == NULL || a->stopped)
        return;
    a->stopped = true;
    db_free(a->look);
    db_free(a->db);
    a->db = a->look = NULL;
}

void
audit_free(struct audit *a)
{
    if (a == NULL)
        return;
    audit_stop(a);
    if (a->timer != NULL)
        event_free(a->timer);
    due_free(a);
    job_release(&a->job);
    syslog_free(a->syslog);
    canary_free(a->canary);
    tdestroy(a->known, free);
    free(a);
}
