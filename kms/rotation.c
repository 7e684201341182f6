/*
 * rotation.c - the keeper's turns: what this node finds of roots in its token, and for the keeper
 * that leads, the next step of what is to be rotated.
 *
 *   tick_cb
 *     turn_begin -> kms.node_turn        we are here; what is to be done?
 *       open_next      hsm_unwrap of a sentinel -> kms.node_root
 *       destroy_next   hsm_key_destroy -> kms.node_root
 *       root_step      name, make, wait, rewrap, check: the phase that the database tells
 *       keys_step      keys under older wrapping keys
 *     resume           the next batch, until it is time to say again that we are here
 *
 * One thing at a time: each function below asks something and ends, its callback goes on.  A batch
 * is read, done in the HSM, and stored by compare-and-swap.
 */
#include "kms/rotation.h"

#include <event2/event.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/fault.h"
#include "kms/keeper.h"
#include "proto/err.h"
#include "proto/json.h"

#define FIRST_MS    500
#define TURN_MS     2000  /* how often we say that we are here */
#define AGAIN_MS    1000  /* after what did not work */
#define HELD_MS     30000 /* before a walk that came to its end with failures is walked again */
#define TIDY_MS     60000 /* between looks for generations that nothing needs */
#define BEGIN_S     2     /* how long a new generation waits for others, to begin together */
#define BATCH_MIN   8
#define BATCH_FIRST 32
#define BATCH_MAX   256
#define BATCHES     4   /* a second, at least */
#define CATCH_UP_MS 500 /* of what a batch took longer, the next ones make up for */
#define QUICK_MS    100 /* of a batch in the HSM: the next may be larger */
#define SLOW_MS     500
#define WHY_MAX     160

/* A wrapping key or a blob under it, on its way through the HSM. */
struct item {
    struct rotator *r;
    struct hsm_wrapping_key from;
    struct uuid org, object;
    int32_t generation;
    unsigned char blob[HSM_BLOB_LEN];
    unsigned char after[HSM_BLOB_LEN]; /* or a wrapped key, which is shorter */
    enum hsm_purpose purpose;          /* of the check */
    bool empty;                        /* of the check: there is no blob */
    int err;
};

struct rotator {
    struct keeper *k;
    struct event *timer;
    struct uuid me;
    bool stopped;
    json_t *turn; /* owned: what there is to do; NULL: not asked yet */
    int64_t turned, tidied;
    int64_t due; /* when the rate allows the next batch */
    size_t at;   /* in a list of the turn's */
    void (*resume)(struct rotator *r);

    /* the root's rotation */
    char rotation[UUID_TEXT + 1]; /* as the turn has it */
    char phase[16];
    struct uuid rotation_id, to;
    struct hsm_wrapping_key sentinel;
    unsigned char kcv[HSM_KCV_LEN];
    struct uuid broken; /* under this id the token has something that does not work */
    struct uuid after_org;
    int32_t after_generation;
    int64_t good, bad;  /* of this walk */
    int64_t held;       /* not before then */
    char why[WHY_MAX];  /* the first failure of this walk */
    char told[WHY_MAX]; /* what the log was told last */

    /* the batch */
    struct item *items; /* owned, BATCH_MAX */
    unsigned n, waiting, ok, size;
    int soft; /* an error that says nothing about the items; KMS_OK: none */
    int64_t began;
    void (*batched)(struct rotator *r);

    /* keys of one organisation */
    struct uuid keys_rotation, keys_org, scanned;
    struct hsm_wrapping_key keys_to;
    char part[16];
    bool more, has_scanned;
};

/* --- turns --- */

static void
arm(struct rotator *r, int64_t ms)
{
    struct timeval tv = {ms / 1000, (ms % 1000) * 1000};

    if (!r->stopped)
        evtimer_add(r->timer, &tv);
}

/* This turn is over. */
static void
idle(struct rotator *r)
{
    r->resume = NULL;
    arm(r, TURN_MS);
}

/* It did not work for now, and says so once. */
static void
put_off(struct rotator *r, const char *what, const char *why)
{
    char text[WHY_MAX];

    snprintf(text, sizeof(text), "%s: %s", what, why);
    if (!r->stopped && strcmp(text, r->told) != 0) {
        log_warn("rotation is put off", "what", what, "why", why, NULL);
        memcpy(r->told, text, sizeof(text));
    }
    r->resume = NULL;
    r->turned = 0;
    arm(r, AGAIN_MS);
}

/* Hands a call to the database; when it cannot be handed over the turn is over. */
static void
ask(struct rotator *r, enum keeper_statement s, struct db_params *p, db_cb *cb)
{
    if (r->k->db == NULL || r->stopped)
        db_params_release(p);
    else if (db_call(r->k->db, (int)s, p, cb, r) != KMS_OK)
        put_off(r, "database", "out of memory");
}

/* Goes on with `next` after n items, no faster than is allowed. */
static void
pace(struct rotator *r, unsigned n, void (*next)(struct rotator *r))
{
    int64_t now = now_ms();

    if (r->due < now - CATCH_UP_MS)
        r->due = now - CATCH_UP_MS;
    r->due += (int64_t)n * 1000 / r->k->cfg->rewrap_rate;
    r->resume = next;
    r->told[0] = '\0';
    arm(r, r->due > now ? r->due - now : 0);
}

static bool
get_uuid(const json_t *v, struct uuid *u)
{
    const char *text = json_string_value(v);

    return text != NULL && uuid_parse(u, text, strlen(text)) == KMS_OK;
}

static bool
get_hex(const json_t *v, unsigned char *out, size_t len)
{
    const char *text = json_string_value(v);
    size_t n = 0;

    return text != NULL && OPENSSL_hexstr2buf_ex(out, len, &n, text, '\0') == 1 && n == len;
}

static void root_step(struct rotator *r);
static void keys_step(struct rotator *r);
static void open_next(struct rotator *r);
static void destroy_next(struct rotator *r);

/* --- what this node finds in its token --- */

static void
opened_told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    if (err != KMS_OK) {
        put_off(r, "database", kms_strerror(err));
        return;
    }
    r->at++;
    open_next(r);
}

static void
gone_told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    if (err != KMS_OK) {
        put_off(r, "database", kms_strerror(err));
        return;
    }
    r->at++;
    destroy_next(r);
}

static void
tell_root(struct rotator *r, bool opened, bool gone, const char *why, db_cb *cb)
{
    struct db_params p;

    db_params_init(&p);
    db_uuid(&p, &r->me);
    db_uuid(&p, &r->to);
    db_text(&p, opened ? "true" : "false");
    db_text(&p, gone ? "true" : "false");
    db_text(&p, why);
    ask(r, KS_NODE_ROOT, &p, cb);
}

static const char *
root_why(int err)
{
    switch (err) {
    case KMS_ERR_NOT_FOUND:
        return "its token does not hold this root";
    case KMS_ERR_CRYPTO:
        return "its token's root of this id does not open the sentinel";
    case KMS_ERR_STATE:
        return "it is the active or the only root in its token, or the one that [hsmd] root names";
    default:
        return kms_strerror(err);
    }
}

static void
sentinel_opened(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
                const unsigned char *blob)
{
    struct rotator *r = ctx;

    FAULT("rotation.root.opened");
    tell_root(r, err == KMS_OK, false, err == KMS_OK ? NULL : root_why(err), opened_told);
}

static void
open_next(struct rotator *r)
{
    const json_t *o = json_array_get(json_object_get(r->turn, "open"), r->at);
    struct hsm_wrapping_key wk = {.generation = 0};
    unsigned char sentinel[HSM_BLOB_LEN];
    int err;

    if (o == NULL) {
        r->at = 0;
        destroy_next(r);
        return;
    }
    if (!get_uuid(json_object_get(o, "root"), &r->to) ||
        !get_hex(json_object_get(o, "wrapped"), wk.wrapped, sizeof(wk.wrapped)) ||
        !get_hex(json_object_get(o, "sentinel"), sentinel, sizeof(sentinel))) {
        put_off(r, "database", "the answer is malformed");
        return;
    }
    memcpy(wk.root, r->to.b, HSM_ID_LEN);
    err = hsm_unwrap(r->k->hsm, &wk, HSM_SENTINEL, r->to.b, sentinel, sentinel_opened, r, 0, 0);
    if (err != KMS_OK)
        tell_root(r, false, false, kms_strerror(err), opened_told);
}

static void
root_destroyed(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct rotator *r = ctx;
    char root[UUID_TEXT + 1];

    uuid_format(root, &r->to);
    if (err == KMS_OK)
        log_info("root destroyed in this node's token", "root", root, NULL);
    FAULT("rotation.root.destroyed");
    tell_root(r, false, err == KMS_OK, err == KMS_OK ? NULL : root_why(err), gone_told);
}

static void
destroy_next(struct rotator *r)
{
    const json_t *v = json_array_get(json_object_get(r->turn, "destroy"), r->at);
    int err;

    if (v == NULL) {
        root_step(r);
        return;
    }
    if (!get_uuid(v, &r->to)) {
        put_off(r, "database", "the answer is malformed");
        return;
    }
    /* Whatever the database says: not the one that all is under. */
    err = memcmp(r->to.b, r->k->root_id.b, UUID_LEN) == 0
              ? KMS_ERR_STATE
              : hsm_key_destroy(r->k->hsm, HSM_ROOT, r->to.b, root_destroyed, r, 0);
    if (err != KMS_OK)
        tell_root(r, false, false, root_why(err), gone_told);
}

static void
turn_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    const json_t *rotation;
    const char *text, *id, *phase;
    struct uuid active;
    json_t *j = NULL;
    size_t len;

    if (err != KMS_OK || PQntuples(res) != 1 || (text = db_get_json(res, 0, 0, &len)) == NULL ||
        kms_json_parse(&j, text, len) != KMS_OK) {
        put_off(r, "database", err != KMS_OK ? kms_strerror(err) : "the answer is malformed");
        return;
    }
    json_decref(r->turn);
    r->turn = j;
    r->turned = now_ms();
    r->at = 0;
    /* Another root than the one that new wrapping keys go under here. */
    if (get_uuid(json_object_get(j, "active"), &active) &&
        memcmp(active.b, r->k->root_id.b, UUID_LEN) != 0)
        keeper_check_root(r->k);
    if (json_is_true(json_object_get(j, "replace")))
        keeper_make_keys(r->k);
    rotation = json_object_get(j, "rotation");
    id = json_string_value(json_object_get(rotation, "rotation"));
    phase = json_string_value(json_object_get(rotation, "phase"));
    if (id == NULL || phase == NULL) {
        r->rotation[0] = r->phase[0] = '\0';
    } else if (strcmp(id, r->rotation) != 0 || strcmp(phase, r->phase) != 0) {
        snprintf(r->rotation, sizeof(r->rotation), "%s", id);
        snprintf(r->phase, sizeof(r->phase), "%s", phase);
        memset(&r->after_org, 0, sizeof(r->after_org));
        r->after_generation = 0;
        r->good = r->bad = r->held = 0;
        r->why[0] = '\0';
    }
    open_next(r);
}

static void
turn_begin(struct rotator *r)
{
    struct db_params p;

    r->resume = NULL;
    db_params_init(&p);
    db_uuid(&p, &r->me);
    db_text(&p, r->k->cfg->node);
    db_text(&p, r->turn == NULL ? "true" : "false");
    ask(r, KS_NODE_TURN, &p, turn_got);
}

static void
tick_cb(evutil_socket_t fd, short what, void *arg)
{
    struct rotator *r = arg;

    if (!db_ready(r->k->db))
        arm(r, AGAIN_MS);
    else if (r->resume != NULL && now_ms() - r->turned < TURN_MS)
        r->resume(r);
    else
        turn_begin(r);
}

/* --- batches --- */

static void
batch_begin(struct rotator *r, void (*batched)(struct rotator *r))
{
    r->n = r->waiting = r->ok = 0;
    r->soft = KMS_OK;
    r->began = now_ms();
    r->batched = batched;
}

/* So many at once that the HSM is not long at it, and the rate is kept over a short time. */
static int32_t
batch_size(const struct rotator *r)
{
    long long most = r->k->cfg->rewrap_rate / BATCHES;

    if (most > BATCH_MAX)
        most = BATCH_MAX;
    if (most < 1)
        most = 1;
    return (int32_t)(r->size < most ? r->size : most);
}

/* The rows that a batch is made of; -1: none can be, and it was put off. */
static int
batch_rows(struct rotator *r, int err, const PGresult *res)
{
    int n = err == KMS_OK ? PQntuples(res) : 0;

    if (err == KMS_OK && n <= BATCH_MAX)
        return n;
    put_off(r, "database", err != KMS_OK ? kms_strerror(err) : "the answer is malformed");
    return -1;
}

static void
batch_end(struct rotator *r)
{
    int64_t ms = now_ms() - r->began;

    if (r->soft != KMS_OK || ms > SLOW_MS)
        r->size = r->size / 2 > BATCH_MIN ? r->size / 2 : BATCH_MIN;
    else if (ms < QUICK_MS && r->n == r->size && r->size < BATCH_MAX)
        r->size *= 2;
    r->batched(r);
}

static bool
is_soft(int err)
{
    return err == KMS_ERR_UNAVAILABLE || err == KMS_ERR_TIMEOUT || err == KMS_ERR_LIMIT ||
           err == KMS_ERR_NOMEM || err == KMS_ERR_PROTOCOL;
}

/* The HSM's answer to one item; len 0: it has no result. */
static void
item_done(struct item *it, int err, const unsigned char *after, size_t len)
{
    struct rotator *r = it->r;

    it->err = err;
    if (err == KMS_OK) {
        r->ok++;
        if (len > 0)
            memcpy(it->after, after, len);
    } else if (is_soft(err)) {
        r->soft = err;
    } else if (r->why[0] == '\0') {
        char org[UUID_TEXT + 1];

        uuid_format(org, &it->org);
        snprintf(r->why, sizeof(r->why), "organisation %s, generation %d: %s", org,
                 (int)it->generation, kms_strerror(err));
    }
    if (--r->waiting == 0)
        batch_end(r);
}

/* A failure before the HSM was asked; the batch goes on to its end all the same. */
static void
item_failed(struct rotator *r, struct item *it, int err)
{
    it->err = err;
    if (is_soft(err))
        r->soft = err;
}

/* Asks hsmd for each item of the batch: they travel together. */
static void
batch_ask(struct rotator *r, int (*ask_item)(struct rotator *r, struct item *it, unsigned i))
{
    int err;

    r->waiting = 1;
    for (unsigned i = 0; i < r->n; i++) {
        if ((err = ask_item(r, &r->items[i], i)) == KMS_OK)
            r->waiting++;
        else
            item_failed(r, &r->items[i], err);
    }
    if (--r->waiting == 0)
        batch_end(r);
}

static struct item *
item_new(struct rotator *r)
{
    struct item *it = &r->items[r->n++];

    memset(it, 0, sizeof(*it));
    it->r = r;
    return it;
}

static void
item_key_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
            const unsigned char *blob)
{
    item_done(ctx, err, blob, blob != NULL ? HSM_BLOB_LEN : 0);
}

static void
item_bytes_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    if (err == KMS_OK && len != HSM_WRAPPED_LEN)
        err = KMS_ERR_CRYPTO;
    item_done(ctx, err, p, err == KMS_OK ? len : 0);
}

/* org, generation, root, wrapped: a wrapping key from these columns on. */
static bool
item_wrapping_key(struct item *it, const PGresult *res, int row, int org, int generation)
{
    struct uuid root;

    if (!db_get_uuid(res, row, org, &it->org) ||
        !db_get_int4(res, row, generation, &it->generation) ||
        !db_get_uuid(res, row, generation + 1, &root) ||
        !db_get_bytes(res, row, generation + 2, it->from.wrapped, HSM_WRAPPED_LEN))
        return false;
    memcpy(it->from.root, root.b, HSM_ID_LEN);
    memcpy(it->from.org, it->org.b, HSM_ID_LEN);
    it->from.generation = (uint32_t)it->generation;
    return true;
}

/* Those that were done, as columns of a call. */
static void
put_uuids(struct rotator *r, struct db_params *p, bool objects)
{
    db_array_begin(p, DB_UUID);
    for (unsigned i = 0; i < r->n; i++)
        if (r->items[i].err == KMS_OK)
            db_put_uuid(p, objects ? &r->items[i].object : &r->items[i].org);
    db_array_end(p);
}

static void
put_generations(struct rotator *r, struct db_params *p)
{
    db_array_begin(p, DB_INT4);
    for (unsigned i = 0; i < r->n; i++)
        if (r->items[i].err == KMS_OK)
            db_put_int4(p, r->items[i].generation);
    db_array_end(p);
}

enum column { BEFORE_WRAPPED, BEFORE_BLOB, AFTER };

static void
put_bytes(struct rotator *r, struct db_params *p, enum column c, size_t len)
{
    db_array_begin(p, DB_BYTEA);
    for (unsigned i = 0; i < r->n; i++) {
        const struct item *it = &r->items[i];

        if (it->err == KMS_OK)
            db_put_bytes(p,
                         c == AFTER         ? it->after
                         : c == BEFORE_BLOB ? it->blob
                                            : it->from.wrapped,
                         len);
    }
    db_array_end(p);
}

/* --- the root's rotation: its phases --- */

/* Nobody looks at the answer: it is for whoever asks how far it is. */
static void
problem_told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    keys_step(r);
}

/* This phase cannot go on; the keys of organisations can. */
static void
root_problem(struct rotator *r, const char *why)
{
    struct db_params p;

    if (strcmp(why, r->told) != 0) {
        log_warn("the rotation of the root does not go on", "why", why, NULL);
        snprintf(r->told, sizeof(r->told), "%s", why);
    }
    db_params_init(&p);
    db_uuid(&p, &r->rotation_id);
    db_text(&p, why);
    ask(r, KS_ROTATION_PROBLEM, &p, problem_told);
}

static void
root_turned(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    if (err != KMS_OK) {
        put_off(r, "database", kms_strerror(err));
        return;
    }
    r->turned = 0; /* there is a next phase: at once */
    arm(r, 0);
}

static void
root_name(struct rotator *r, const char *was, db_cb *cb)
{
    struct db_params p;
    int err;

    if (!hsm_ready(r->k->hsm) || (err = hsm_id_new(r->k->hsm, r->to.b)) != KMS_OK) {
        root_problem(r, "this node's HSM is away");
        return;
    }
    db_params_init(&p);
    db_uuid(&p, &r->rotation_id);
    db_text(&p, was);
    db_uuid(&p, &r->to);
    FAULT("rotation.root.naming");
    ask(r, KS_ROOT_NAME, &p, cb);
}

static void
root_sealed(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
            const unsigned char *blob)
{
    struct rotator *r = ctx;
    struct db_params p;

    if (err != KMS_OK) {
        root_problem(r, kms_strerror(err));
        return;
    }
    FAULT("rotation.root.sealed");
    db_params_init(&p);
    db_uuid(&p, &r->rotation_id);
    db_uuid(&p, &r->to);
    db_bytes(&p, r->kcv, sizeof(r->kcv));
    db_bytes(&p, r->sentinel.wrapped, sizeof(r->sentinel.wrapped));
    db_bytes(&p, blob, HSM_BLOB_LEN);
    ask(r, KS_ROOT_MADE, &p, root_turned);
}

static void
root_sentinel(void *ctx, uint64_t id, int err, const unsigned char root[HSM_ID_LEN],
              const unsigned char wrapped[HSM_WRAPPED_LEN], const unsigned char kcv[HSM_KCV_LEN])
{
    struct rotator *r = ctx;

    if (err == KMS_OK) {
        memset(&r->sentinel, 0, sizeof(r->sentinel));
        memcpy(r->sentinel.root, root, HSM_ID_LEN);
        memcpy(r->sentinel.wrapped, wrapped, HSM_WRAPPED_LEN);
        memcpy(r->kcv, kcv, HSM_KCV_LEN);
        err = hsm_generate(r->k->hsm, &r->sentinel, HSM_SENTINEL, r->to.b, root_sealed, r, 0, 0);
    }
    if (err != KMS_OK)
        root_problem(r, kms_strerror(err));
}

static void
root_cleared(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct rotator *r = ctx;
    char root[UUID_TEXT + 1];

    uuid_format(root, &r->broken);
    log_warn("a root that was half made, and never used", "root", root, "why",
             err == KMS_OK ? "destroyed" : kms_strerror(err), NULL);
    root_turned(r, KMS_OK, NULL, NULL);
}

/* Another keeper may have been quicker, and it works for him: so it is destroyed only when the new
 * root has another id, and nobody can ever use this one. */
static void
root_renamed(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    const char *text;
    struct uuid now;

    if (err != KMS_OK) {
        put_off(r, "database", kms_strerror(err));
        return;
    }
    if ((text = db_get_text(res, 0, 0)) == NULL || uuid_parse(&now, text, strlen(text)) != KMS_OK ||
        memcmp(now.b, r->broken.b, UUID_LEN) == 0 ||
        hsm_key_destroy(r->k->hsm, HSM_ROOT, r->broken.b, root_cleared, r, 0) != KMS_OK)
        root_turned(r, KMS_OK, NULL, NULL);
}

static void
root_made(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *kcv, size_t len)
{
    struct rotator *r = ctx;
    char was[UUID_TEXT + 1];

    FAULT("rotation.root.made");
    switch (err) {
    case KMS_OK:
        err = hsm_wrapping_key_new_under(r->k->hsm, r->to.b, root_sentinel, r, 0);
        break;
    case KMS_ERR_KEY:
        /* A crash of the token's left it. */
        r->broken = r->to;
        uuid_format(was, &r->broken);
        root_name(r, was, root_renamed);
        return;
    case KMS_ERR_STATE:
        uuid_format(was, &r->to); /* not the youngest: another id */
        root_name(r, was, root_turned);
        return;
    default:
        break;
    }
    if (err != KMS_OK)
        root_problem(r, kms_strerror(err));
}

static void
root_make(struct rotator *r)
{
    int err;

    if (!get_uuid(json_object_get(json_object_get(r->turn, "rotation"), "to"), &r->to))
        put_off(r, "database", "the answer is malformed");
    else if ((err = hsm_key_new(r->k->hsm, HSM_ROOT, r->to.b, root_made, r, 0)) != KMS_OK)
        root_problem(r, kms_strerror(err));
}

static void
root_advanced(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    const char *text, *state;
    json_t *j = NULL;
    size_t len;

    if (err != KMS_OK || PQntuples(res) != 1 || (text = db_get_json(res, 0, 0, &len)) == NULL ||
        kms_json_parse(&j, text, len) != KMS_OK) {
        put_off(r, "database", err != KMS_OK ? kms_strerror(err) : "the answer is malformed");
        return;
    }
    FAULT("rotation.root.advanced");
    state = json_string_value(json_object_get(j, "state"));
    if (json_array_size(json_object_get(j, "waits")) > 0) {
        keys_step(r);
    } else {
        if (state != NULL && strcmp(state, "active") == 0) {
            log_info("another root is active", "rotation", r->rotation, NULL);
            keeper_check_root(r->k);
        }
        r->turned = 0;
        arm(r, 0);
    }
    json_decref(j);
}

/* --- re-wrapping --- */

static void rewrap_more(struct rotator *r);

static void
walk_forget(struct rotator *r)
{
    memset(&r->after_org, 0, sizeof(r->after_org));
    r->after_generation = 0;
    r->good = r->bad = 0;
    r->why[0] = '\0';
}

static void
rewrap_stored(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    if (err != KMS_OK) {
        put_off(r, "database", kms_strerror(err));
        return;
    }
    FAULT("rotation.rewrap.stored");
    r->good += r->ok;
    if (r->soft != KMS_OK) {
        put_off(r, "HSM", kms_strerror(r->soft)); /* those that are left are found again */
        return;
    }
    r->bad += r->n - r->ok;
    r->after_org = r->items[r->n - 1].org;
    r->after_generation = r->items[r->n - 1].generation;
    pace(r, r->n, rewrap_more);
}

static void
rewrap_batched(struct rotator *r)
{
    struct db_params p;

    FAULT("rotation.rewrap.done");
    db_params_init(&p);
    db_uuid(&p, &r->rotation_id);
    db_uuid(&p, &r->to);
    put_uuids(r, &p, false);
    put_generations(r, &p);
    put_bytes(r, &p, BEFORE_WRAPPED, HSM_WRAPPED_LEN);
    put_bytes(r, &p, AFTER, HSM_WRAPPED_LEN);
    ask(r, KS_REWRAP_STORE, &p, rewrap_stored);
}

static int
rewrap_item(struct rotator *r, struct item *it, unsigned i)
{
    return hsm_rewrap(r->k->hsm, it->from.wrapped, it->from.root, r->to.b, item_bytes_cb, it, 0, i);
}

static void
rewrap_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    char why[WHY_MAX + 64];
    int n = batch_rows(r, err, res);

    if (n < 0)
        return;
    if (n == 0 && r->bad > 0) {
        snprintf(why, sizeof(why), "%lld wrapping keys do not open: %s", (long long)r->bad, r->why);
        walk_forget(r);
        r->held = now_ms() + HELD_MS;
        root_problem(r, why);
        return;
    }
    if (n == 0) {
        r->turned = 0; /* the next phase */
        arm(r, 0);
        return;
    }
    batch_begin(r, rewrap_batched);
    for (int i = 0; i < n; i++) {
        if (!item_wrapping_key(item_new(r), res, i, 0, 1)) {
            put_off(r, "database", "the answer is malformed");
            return;
        }
    }
    batch_ask(r, rewrap_item);
}

static void
rewrap_more(struct rotator *r)
{
    struct db_params p;

    db_params_init(&p);
    db_uuid(&p, &r->after_org);
    db_int4(&p, r->after_generation);
    db_int4(&p, batch_size(r));
    ask(r, KS_REWRAP_NEXT, &p, rewrap_got);
}

/* --- the check: a sample of every generation opens without the root that was left --- */

static void check_more(struct rotator *r);

static void
check_ended(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    bool done = false;

    if (err != KMS_OK || PQntuples(res) != 1 || !db_get_bool(res, 0, 0, &done)) {
        put_off(r, "database", err != KMS_OK ? kms_strerror(err) : "the answer is malformed");
        return;
    }
    FAULT("rotation.root.retired");
    if (done) {
        log_info("the root's rotation is done: a sample of every generation opens", "rotation",
                 r->rotation, "opened%l", (long long)r->good, NULL);
        r->turned = 0;
        arm(r, 0);
        return;
    }
    if (r->bad > 0)
        log_error("what should open under the new root does not; the old one stays", "failed%l",
                  (long long)r->bad, "first", r->why, NULL);
    walk_forget(r);
    r->held = now_ms() + HELD_MS;
    keys_step(r);
}

static void
check_batched(struct rotator *r)
{
    if (r->soft != KMS_OK) {
        put_off(r, "HSM", kms_strerror(r->soft)); /* the same again: nothing was changed */
        return;
    }
    FAULT("rotation.check.opened");
    r->good += r->ok;
    r->bad += r->n - r->ok;
    r->after_org = r->items[r->n - 1].org;
    r->after_generation = r->items[r->n - 1].generation;
    pace(r, r->n, check_more);
}

static int
check_item(struct rotator *r, struct item *it, unsigned i)
{
    /* Where nothing is under it, that it seals something shows that it opens itself. */
    if (it->empty)
        return hsm_generate(r->k->hsm, &it->from, HSM_SENTINEL, r->to.b, item_key_cb, it, 0, i);
    /* Sealed anew under the same: so hsmd opens it, and keeps what it finds to itself. */
    return hsm_reseal(r->k->hsm, &it->from, &it->from, it->purpose, it->object.b, it->blob,
                      item_key_cb, it, 0, i);
}

static void
check_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    int n = batch_rows(r, err, res);
    struct db_params p;

    if (n < 0)
        return;
    if (n == 0) {
        db_params_init(&p);
        db_uuid(&p, &r->rotation_id);
        db_int8(&p, r->good);
        db_int8(&p, r->bad);
        db_text(&p, r->why);
        FAULT("rotation.check.done");
        ask(r, KS_ROOT_END, &p, check_ended);
        return;
    }
    batch_begin(r, check_batched);
    for (int i = 0; i < n; i++) {
        struct item *it = item_new(r);
        bool channel = false;

        it->empty = PQgetisnull(res, i, 6);
        if (!item_wrapping_key(it, res, i, 0, 1) ||
            (!it->empty &&
             (!db_get_bool(res, i, 4, &channel) || !db_get_uuid(res, i, 5, &it->object) ||
              !db_get_bytes(res, i, 6, it->blob, HSM_BLOB_LEN)))) {
            put_off(r, "database", "the answer is malformed");
            return;
        }
        it->purpose = channel ? HSM_CHANNEL_KEY : HSM_CONTENT_KEY;
    }
    batch_ask(r, check_item);
}

static void
check_more(struct rotator *r)
{
    struct db_params p;

    db_params_init(&p);
    db_uuid(&p, &r->after_org);
    db_int4(&p, r->after_generation);
    db_int4(&p, batch_size(r));
    ask(r, KS_CHECK_NEXT, &p, check_got);
}

static void
root_step(struct rotator *r)
{
    const json_t *rotation = json_object_get(r->turn, "rotation");
    struct db_params p;

    if (!json_is_true(json_object_get(r->turn, "lead"))) {
        idle(r);
        return;
    }
    if (!get_uuid(json_object_get(rotation, "rotation"), &r->rotation_id) || r->held > now_ms()) {
        keys_step(r);
        return;
    }
    if (strcmp(r->phase, "name") == 0) {
        root_name(r, "", root_turned);
    } else if (strcmp(r->phase, "make") == 0) {
        root_make(r);
    } else if (!get_uuid(json_object_get(rotation, "to"), &r->to)) {
        put_off(r, "database", "the answer is malformed");
    } else if (strcmp(r->phase, "wait") == 0) {
        db_params_init(&p);
        db_uuid(&p, &r->rotation_id);
        ask(r, KS_ROOT_ADVANCE, &p, root_advanced);
    } else if (strcmp(r->phase, "rewrap") == 0) {
        rewrap_more(r);
    } else {
        check_more(r);
    }
}

/* --- keys under older wrapping keys --- */

static void keys_more(struct rotator *r);

static void
keys_stored(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    if (err != KMS_OK) {
        put_off(r, "database", kms_strerror(err));
        return;
    }
    FAULT("rotation.reseal.stored");
    pace(r, r->ok, keys_more);
}

static void
keys_batched(struct rotator *r)
{
    char org[UUID_TEXT + 1];
    struct db_params p;

    if (r->n > 0 && r->ok == 0 && r->soft != KMS_OK) {
        put_off(r, "HSM", kms_strerror(r->soft));
        return;
    }
    if (r->why[0] != '\0') {
        uuid_format(org, &r->keys_org);
        log_warn("keys could not be moved to the current wrapping key", "org", org, "n%d",
                 (int)(r->n - r->ok), "first", r->why, NULL);
        r->why[0] = '\0';
    }
    FAULT("rotation.reseal.done");
    db_params_init(&p);
    db_uuid(&p, &r->keys_rotation);
    db_uuid(&p, &r->keys_org);
    db_text(&p, r->part);
    db_uuid(&p, r->has_scanned ? &r->scanned : NULL);
    db_text(&p, r->more ? "true" : "false");
    put_uuids(r, &p, true);
    put_bytes(r, &p, BEFORE_BLOB, HSM_BLOB_LEN);
    put_generations(r, &p);
    db_int4(&p, (int32_t)r->keys_to.generation);
    put_bytes(r, &p, AFTER, HSM_BLOB_LEN);
    db_int4(&p, (int32_t)(r->n - r->ok));
    ask(r, KS_RESEAL_STORE, &p, keys_stored);
}

/* The columns that all rows share. */
static bool
keys_head(struct rotator *r, const PGresult *res)
{
    const char *part = db_get_text(res, 0, 2);
    int32_t generation;
    struct uuid root;

    r->has_scanned = !PQgetisnull(res, 0, 11);
    if (part == NULL || !db_get_uuid(res, 0, 0, &r->keys_rotation) ||
        !db_get_uuid(res, 0, 1, &r->keys_org) || !db_get_int4(res, 0, 8, &generation) ||
        !db_get_uuid(res, 0, 9, &root) ||
        !db_get_bytes(res, 0, 10, r->keys_to.wrapped, HSM_WRAPPED_LEN) ||
        (r->has_scanned && !db_get_uuid(res, 0, 11, &r->scanned)) ||
        !db_get_bool(res, 0, 12, &r->more))
        return false;
    snprintf(r->part, sizeof(r->part), "%s", part);
    memcpy(r->keys_to.root, root.b, HSM_ID_LEN);
    memcpy(r->keys_to.org, r->keys_org.b, HSM_ID_LEN);
    r->keys_to.generation = (uint32_t)generation;
    return true;
}

static int
keys_item(struct rotator *r, struct item *it, unsigned i)
{
    return hsm_reseal(r->k->hsm, &it->from, &r->keys_to, HSM_CONTENT_KEY, it->object.b, it->blob,
                      item_key_cb, it, 0, i);
}

static void
keys_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    int n = batch_rows(r, err, res);

    if (n < 0)
        return;
    if (n > 0 && !keys_head(r, res)) {
        put_off(r, "database", "the answer is malformed");
        return;
    }
    if (n == 0) {
        idle(r);
        return;
    }
    batch_begin(r, keys_batched);
    r->why[0] = '\0';
    for (int i = 0; i < n && !PQgetisnull(res, i, 3); i++) {
        struct item *it = item_new(r);

        if (!item_wrapping_key(it, res, i, 1, 4) || !db_get_uuid(res, i, 3, &it->object) ||
            !db_get_bytes(res, i, 7, it->blob, HSM_BLOB_LEN)) {
            put_off(r, "database", "the answer is malformed");
            return;
        }
    }
    batch_ask(r, keys_item);
}

static void
keys_more(struct rotator *r)
{
    struct db_params p;

    db_params_init(&p);
    db_int4(&p, batch_size(r));
    ask(r, KS_RESEAL_NEXT, &p, keys_got);
}

static void
keys_begun(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;

    if (err != KMS_OK)
        put_off(r, "database", kms_strerror(err));
    else
        keys_more(r);
}

static void
tidy(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct rotator *r = ctx;
    int32_t n = 0;

    if (err == KMS_OK && db_get_int4(res, 0, 0, &n) && n > 0)
        log_info("nothing is under older wrapping keys any more", "n%d", (int)n, NULL);
    idle(r);
}

static void
keys_step(struct rotator *r)
{
    struct db_params p;

    db_params_init(&p);
    if (json_is_true(json_object_get(r->turn, "keys"))) {
        db_int4(&p, BEGIN_S);
        ask(r, KS_RESEAL_BEGIN, &p, keys_begun);
    } else if (now_ms() - r->tidied > TIDY_MS) {
        r->tidied = now_ms();
        ask(r, KS_GENERATIONS_UNNEEDED, &p, tidy);
    } else {
        idle(r);
    }
}

/* --- life --- */

/*
 * Who we are: the same as the keeper that was here before us, so that nobody waits for it. One
 * machine's admin socket is one keeper's.
 */
static int
node_id(struct uuid *me, const struct config *cfg)
{
    char machine[64] = "", host[256] = "", text[1024];
    unsigned char digest[EVP_MAX_MD_SIZE];
    FILE *f = fopen("/etc/machine-id", "re");
    int n;

    if (f != NULL) {
        if (fgets(machine, sizeof(machine), f) == NULL)
            machine[0] = '\0';
        fclose(f);
    }
    gethostname(host, sizeof(host) - 1);
    n = snprintf(text, sizeof(text), "%s|%s|%s|%s", machine, host, cfg->node, cfg->admin_socket);
    if (n < 0 || (size_t)n >= sizeof(text) ||
        EVP_Digest(text, (size_t)n, digest, NULL, EVP_sha256(), NULL) != 1)
        return KMS_ERR_INTERNAL;
    memcpy(me->b, digest, UUID_LEN);
    return KMS_OK;
}

struct rotator *
rotator_new(struct keeper *k)
{
    struct rotator *r = calloc(1, sizeof(*r));

    if (r == NULL)
        return NULL;
    r->k = k;
    r->size = BATCH_FIRST;
    r->items = calloc(BATCH_MAX, sizeof(*r->items));
    r->timer = evtimer_new(k->base, tick_cb, r);
    if (r->items == NULL || r->timer == NULL || node_id(&r->me, k->cfg) != KMS_OK) {
        rotator_free(r);
        return NULL;
    }
    arm(r, FIRST_MS);
    return r;
}

const struct uuid *
rotator_node(const struct rotator *r)
{
    return &r->me;
}

void
rotator_stop(struct rotator *r)
{
    if (r == NULL)
        return;
    r->stopped = true;
    evtimer_del(r->timer);
}

void
rotator_free(struct rotator *r)
{
    if (r == NULL)
        return;
    if (r->timer != NULL)
        event_free(r->timer);
    json_decref(r->turn);
    free(r->items);
    free(r);
}
