/*
 * destroy.c - the keeper's turns of destruction.
 *
 *   tick_cb
 *     clock_tick           how much time has gone by, for us and for the database
 *     destroy_work         what is there to do?
 *       destroy, forget    hsm_key_destroy, hsm_forget -> node_forgot          every node
 *       make, keys         hsm_key_new -> period_made, hsm_wrapping_key_new_under -> month_key_add
 *       reseal             hsm_reseal, all together -> reseal_done
 *       sign               hsm_sign_audit -> certificate_signed
 *     destructions_do      commands whose waiting period is over
 *
 * One thing at a time, in the order of lists[]; what fails is told once, and comes again with a
 * later turn.
 */
#include "kms/destroy.h"

#include <event2/event.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/audit.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/fault.h"
#include "kms/keeper.h"
#include "kms/rotation.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/note.h"

#define FIRST_MS   1500
#define TURN_MS    2000
#define AHEAD_MS   3600000 /* between looks at the months to come, and the day's figures */
#define REMIND_MS  3600000 /* how often the log is told that the clock is in question */
#define ITEMS      64      /* of each list in one turn */
#define ROWS       500     /* of an organisation that is destroyed, in one transaction */
#define WHY_MAX    160
#define BOOT_ID    "/proc/sys/kernel/random/boot_id"
#define SIGNED_MAX 4096 /* what the HSM signs at most */
/* How each begins, and no checkpoint of a log does: both are signed by one key. */
#define CERTIFICATE "kms destruction certificate 1\ncertificate "

/* A key on its way from one wrapping key to another. */
struct move {
    struct destroyer *d;
    struct hsm_wrapping_key from, to;
    struct uuid org, object;
    bool recording;
    unsigned char before[HSM_BLOB_LEN], after[HSM_BLOB_LEN];
    int err;
};

struct destroyer {
    struct keeper *k;
    struct event *timer;
    struct uuid boot;
    bool stopped, held, again;
    int64_t waiting_told; /* ms; -1: never */
    int64_t looked_ahead, reminded;
    json_t *work; /* owned */
    size_t list, at;
    struct uuid org, object; /* of the item under way */
    struct buf note;
    struct note_key key;
    struct move moves[ITEMS];
    unsigned n_moves, under_way;
    char told[WHY_MAX];
};

static void next_item(struct destroyer *d);

/* --- turns --- */

static void
arm(struct destroyer *d, int ms)
{
    struct timeval tv = {ms / 1000, (ms % 1000) * 1000};

    if (!d->stopped)
        evtimer_add(d->timer, &tv);
}

/* Once, until something else is the matter. */
static void
tell(struct destroyer *d, const char *what, const char *why)
{
    char text[WHY_MAX];

    snprintf(text, sizeof(text), "%s: %s", what, why);
    if (d->stopped || strcmp(text, d->told) == 0)
        return;
    memcpy(d->told, text, sizeof(text));
    log_warn("destruction is put off", "what", what, "why", why, NULL);
}

/* The database did not do it: the turn is over. */
static void
put_off(struct destroyer *d, const char *what, const char *why)
{
    tell(d, what, why);
    arm(d, TURN_MS);
}

static void
ask(struct destroyer *d, enum keeper_statement s, struct db_params *p, db_cb *cb)
{
    if (d->k->db == NULL || d->stopped)
        db_params_release(p);
    else if (db_call(d->k->db, (int)s, p, cb, d) != KMS_OK)
        put_off(d, "database", "out of memory");
}

/* One row of one jsonb, the caller's; NULL: the turn is over. */
static json_t *
json_row(struct destroyer *d, const char *what, int err, const PGresult *res)
{
    json_t *j = NULL;
    const char *text;
    size_t len;

    if (err == KMS_OK && PQntuples(res) == 1 && (text = db_get_json(res, 0, 0, &len)) != NULL &&
        kms_json_parse(&j, text, len) == KMS_OK)
        return j;
    put_off(d, what, err != KMS_OK ? kms_strerror(err) : "the answer is malformed");
    return NULL;
}

static bool
get_uuid(const json_t *o, const char *name, struct uuid *u)
{
    const char *text = json_string_value(json_object_get(o, name));

    return text != NULL && uuid_parse(u, text, strlen(text)) == KMS_OK;
}

static bool
get_hex(const json_t *o, const char *name, unsigned char *out, size_t len)
{
    const char *text = json_string_value(json_object_get(o, name));
    size_t n = 0;

    return text != NULL && OPENSSL_hexstr2buf_ex(out, len, &n, text, '\0') == 1 && n == len;
}

/* This item is done with, or has to wait for another turn. */
static void
item_end(struct destroyer *d, const char *what, int err)
{
    if (err != KMS_OK)
        tell(d, what, kms_strerror(err));
    d->at++;
    next_item(d);
}

static void
item_told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;

    if (err != KMS_OK)
        put_off(d, "database", kms_strerror(err));
    else
        item_end(d, NULL, KMS_OK);
}

/* --- what this node does away with --- */

static void
tell_forgot(struct destroyer *d)
{
    struct db_params p;

    db_params_init(&p);
    db_uuid(&p, rotator_node(d->k->rotator));
    db_uuid(&p, &d->object);
    ask(d, KS_NODE_FORGOT, &p, item_told);
}

static void
period_destroyed(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p,
                 size_t len)
{
    struct destroyer *d = ctx;
    char key[UUID_TEXT + 1];

    if (err != KMS_OK) {
        item_end(d, "a period key in the HSM", err);
        return;
    }
    uuid_format(key, &d->object);
    log_info("period key destroyed in this node's token", "key", key, NULL);
    FAULT("destroy.period.gone");
    tell_forgot(d);
}

static int
do_destroy(struct destroyer *d, const json_t *item)
{
    if (!get_uuid(item, "key", &d->object))
        return KMS_ERR_PROTOCOL;
    return hsm_key_destroy(d->k->hsm, HSM_PERIOD, d->object.b, period_destroyed, d, 0);
}

static void
org_forgotten(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct destroyer *d = ctx;

    if (err != KMS_OK) {
        item_end(d, "what the HSM's custodians hold of an organisation", err);
        return;
    }
    FAULT("destroy.org.forgotten");
    tell_forgot(d);
}

static int
do_forget(struct destroyer *d, const json_t *item)
{
    const char *text = json_string_value(item);

    if (text == NULL || uuid_parse(&d->object, text, strlen(text)) != KMS_OK)
        return KMS_ERR_PROTOCOL;
    return hsm_forget(d->k->hsm, d->object.b, org_forgotten, d, 0);
}

/* --- keys of months --- */

static void
broken_destroyed(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p,
                 size_t len)
{
    item_end(ctx, "a period key that was half made", err);
}

/* Another keeper may have been quicker, and it works for him: it is destroyed only when nobody can
 * ever use it. */
static void
period_renewed(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;
    bool renewed = false;

    if (err != KMS_OK || !db_get_bool(res, 0, 0, &renewed)) {
        put_off(d, "database", kms_strerror(err != KMS_OK ? err : KMS_ERR_PROTOCOL));
        return;
    }
    d->again = true;
    if (renewed)
        err = hsm_key_destroy(d->k->hsm, HSM_PERIOD, d->object.b, broken_destroyed, d, 0);
    if (!renewed || err != KMS_OK)
        item_end(d, "a period key that was half made", err);
}

static void
period_made(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *kcv, size_t len)
{
    struct destroyer *d = ctx;
    struct db_params p;

    if (err == KMS_ERR_KEY || err == KMS_ERR_STATE) {
        db_params_init(&p);
        db_uuid(&p, &d->object);
        ask(d, KS_PERIOD_RENEW, &p, period_renewed);
        return;
    }
    if (err == KMS_OK && len != HSM_KCV_LEN)
        err = KMS_ERR_PROTOCOL;
    if (err != KMS_OK) {
        item_end(d, "a period key", err);
        return;
    }
    FAULT("destroy.period.made");
    d->again = true;
    db_params_init(&p);
    db_uuid(&p, &d->object);
    db_bytes(&p, kcv, HSM_KCV_LEN);
    ask(d, KS_PERIOD_MADE, &p, item_told);
}

static int
do_make(struct destroyer *d, const json_t *item)
{
    if (!get_uuid(item, "key", &d->object))
        return KMS_ERR_PROTOCOL;
    return hsm_key_new(d->k->hsm, HSM_PERIOD, d->object.b, period_made, d, 0);
}

static void
month_key_made(void *ctx, uint64_t id, int err, const unsigned char root[HSM_ID_LEN],
               const unsigned char wrapped[HSM_WRAPPED_LEN], const unsigned char kcv[HSM_KCV_LEN])
{
    struct destroyer *d = ctx;
    struct db_params p;

    if (err != KMS_OK) {
        item_end(d, "a month's wrapping key", err);
        return;
    }
    FAULT("destroy.key.made");
    d->again = true;
    db_params_init(&p);
    db_uuid(&p, &d->org);
    db_uuid(&p, &d->object);
    db_bytes(&p, wrapped, HSM_WRAPPED_LEN);
    db_bytes(&p, kcv, HSM_KCV_LEN);
    ask(d, KS_MONTH_KEY_ADD, &p, item_told);
}

static int
do_key(struct destroyer *d, const json_t *item)
{
    if (!get_uuid(item, "org", &d->org) || !get_uuid(item, "period", &d->object))
        return KMS_ERR_PROTOCOL;
    return hsm_wrapping_key_new_under(d->k->hsm, d->object.b, month_key_made, d, 0);
}

/* --- keys on their way --- */

static void
put_moves(struct db_params *p, const struct destroyer *d)
{
    static const enum db_type types[] = {DB_UUID, DB_UUID, DB_TEXT, DB_BYTEA,
                                         DB_INT4, DB_INT4, DB_BYTEA};

    for (unsigned column = 0; column < sizeof(types) / sizeof(types[0]); column++) {
        db_array_begin(p, types[column]);
        for (unsigned i = 0; i < d->n_moves; i++) {
            const struct move *m = &d->moves[i];

            if (m->err != KMS_OK)
                continue;
            switch (column) {
            case 0:
                db_put_uuid(p, &m->org);
                break;
            case 1:
                db_put_uuid(p, &m->object);
                break;
            case 2:
                db_put_text(p, m->recording ? "recording" : "key");
                break;
            case 3:
                db_put_bytes(p, m->before, HSM_BLOB_LEN);
                break;
            case 4:
                db_put_int4(p, (int32_t)m->from.generation);
                break;
            case 5:
                db_put_int4(p, (int32_t)m->to.generation);
                break;
            default:
                db_put_bytes(p, m->after, HSM_BLOB_LEN);
            }
        }
        db_array_end(p);
    }
}

static void
moves_stored(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;

    if (err == KMS_OK)
        FAULT("destroy.reseal.stored");
    item_told(ctx, err, res, sqlstate);
    d->n_moves = 0;
}

/* The last one is in: all that came over are stored together. */
static void
moves_end(struct destroyer *d)
{
    struct db_params p;
    unsigned ok = 0;

    for (unsigned i = 0; i < d->n_moves; i++) {
        if (d->moves[i].err == KMS_OK)
            ok++;
        else
            tell(d, "a key that belongs under its month's wrapping key",
                 kms_strerror(d->moves[i].err));
    }
    d->at = json_array_size(json_object_get(d->work, "reseal"));
    if (ok == 0) {
        next_item(d);
        return;
    }
    d->again = d->again || d->n_moves == ITEMS;
    FAULT("destroy.reseal.made");
    db_params_init(&p);
    put_moves(&p, d);
    ask(d, KS_RESEAL_DONE, &p, moves_stored);
}

static void
moved(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
      const unsigned char *blob)
{
    struct move *m = ctx;

    m->err = err;
    if (err == KMS_OK)
        memcpy(m->after, blob, HSM_BLOB_LEN);
    if (--m->d->under_way == 0)
        moves_end(m->d);
}

static int
read_move(struct move *m, const json_t *item)
{
    json_int_t from = json_integer_value(json_object_get(item, "generation")),
               to = json_integer_value(json_object_get(item, "to_generation"));
    const char *kind = json_string_value(json_object_get(item, "kind"));
    struct uuid from_root, to_root;

    if (!get_uuid(item, "org", &m->org) || !get_uuid(item, "object", &m->object) || kind == NULL ||
        !get_uuid(item, "root", &from_root) || !get_uuid(item, "to_root", &to_root) ||
        !get_hex(item, "blob", m->before, HSM_BLOB_LEN) ||
        !get_hex(item, "wrapped", m->from.wrapped, HSM_WRAPPED_LEN) ||
        !get_hex(item, "to_wrapped", m->to.wrapped, HSM_WRAPPED_LEN) || from < 1 ||
        from > INT32_MAX || to < 1 || to > INT32_MAX)
        return KMS_ERR_PROTOCOL;
    m->recording = strcmp(kind, "recording") == 0;
    m->from.generation = (uint32_t)from;
    m->to.generation = (uint32_t)to;
    memcpy(m->from.root, from_root.b, HSM_ID_LEN);
    memcpy(m->to.root, to_root.b, HSM_ID_LEN);
    memcpy(m->from.org, m->org.b, HSM_ID_LEN);
    memcpy(m->to.org, m->org.b, HSM_ID_LEN);
    return KMS_OK;
}

/* The first of them takes all along. */
static int
do_reseal(struct destroyer *d, const json_t *item)
{
    const json_t *list = json_object_get(d->work, "reseal");
    size_t n = json_array_size(list);

    d->n_moves = 0;
    /* One more, so that the last answer does not come before the last question. */
    d->under_way = 1;
    for (size_t i = 0; i < n && i < ITEMS; i++) {
        struct move *m = &d->moves[d->n_moves++];

        memset(m, 0, sizeof(*m));
        m->d = d;
        if ((m->err = read_move(m, json_array_get(list, i))) != KMS_OK)
            continue;
        m->err = hsm_reseal(d->k->hsm, &m->from, &m->to, HSM_CONTENT_KEY, m->object.b, m->before,
                            moved, m, 0, (unsigned)i);
        if (m->err == KMS_OK) {
            m->err = KMS_ERR_AGAIN; /* until it is answered */
            d->under_way++;
        }
    }
    if (--d->under_way == 0)
        moves_end(d);
    return KMS_OK;
}

/* --- certificates --- */

static void
certificate_signed(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *sig,
                   size_t len)
{
    struct destroyer *d = ctx;
    struct db_params p;
    struct note note;

    if (err == KMS_OK && len != NOTE_SIG_LEN)
        err = KMS_ERR_PROTOCOL;
    /* One that does not verify must never get out: another key may be in the token by now. */
    if (err == KMS_OK && (err = buf_putc(&d->note, '\n')) == KMS_OK &&
        (err = note_put_sig(&d->note, &d->key, sig, len)) == KMS_OK &&
        (err = note_parse(&note, buf_str(&d->note), d->note.len)) == KMS_OK)
        err = note_verify(&note, &d->key, NULL);
    if (err != KMS_OK) {
        item_end(d, "a certificate", err);
        return;
    }
    FAULT("destroy.certificate.signed");
    db_params_init(&p);
    db_uuid(&p, &d->org);
    db_uuid(&p, &d->object);
    db_text(&p, buf_str(&d->note));
    ask(d, KS_CERTIFICATE_SIGNED, &p, item_told);
}

static int
do_sign(struct destroyer *d, const json_t *item)
{
    const char *text = json_string_value(json_object_get(item, "text"));
    int r;

    if (text == NULL || strlen(text) > SIGNED_MAX || !get_uuid(item, "org", &d->org) ||
        !get_uuid(item, "certificate", &d->object))
        return KMS_ERR_PROTOCOL;
    /* Whoever owns the database may write down what he likes: so no other text is signed. */
    if (strncmp(text, CERTIFICATE, strlen(CERTIFICATE)) != 0)
        return KMS_ERR_SYNTAX;
    if (!audit_key(d->k->audit, &d->org, &d->key))
        return KMS_ERR_UNAVAILABLE;
    buf_release(&d->note);
    if ((r = buf_puts(&d->note, text)) != KMS_OK)
        return r;
    return hsm_sign_audit(d->k->hsm, d->note.data, d->note.len, certificate_signed, d, 0, 0);
}

/* --- the turn --- */

static const struct list {
    const char *name, *what;
    /* Ends the item, now (with what went wrong) or from a callback. */
    int (*run)(struct destroyer *d, const json_t *item);
} lists[] = {
    {"destroy", "a period key in the HSM", do_destroy},
    {"forget", "what the HSM's custodians hold of an organisation", do_forget},
    {"make", "a period key", do_make},
    {"keys", "a month's wrapping key", do_key},
    {"reseal", "a key that belongs under its month's wrapping key", do_reseal},
    {"sign", "a certificate", do_sign},
};
#define LISTS (sizeof(lists) / sizeof(lists[0]))

static void
commands_done(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;
    json_t *j = json_row(d, "commands to destroy", err, res);
    json_int_t done;

    if (j == NULL)
        return;
    FAULT("destroy.command.done");
    done = json_integer_value(json_object_get(j, "done"));
    if (done > 0)
        log_info("commands to destroy were carried out", "n%l", (long long)done, NULL);
    if (json_is_true(json_object_get(j, "more")) || done > 0)
        d->again = true;
    json_decref(j);
    arm(d, d->again ? 0 : TURN_MS);
}

static void
next_item(struct destroyer *d)
{
    struct db_params p;
    int r;

    if (d->stopped)
        return;
    for (; d->list < LISTS; d->list++, d->at = 0) {
        const json_t *item = json_array_get(json_object_get(d->work, lists[d->list].name), d->at);

        while (item != NULL) {
            if ((r = lists[d->list].run(d, item)) == KMS_OK)
                return;
            tell(d, lists[d->list].what, kms_strerror(r));
            item = json_array_get(json_object_get(d->work, lists[d->list].name), ++d->at);
        }
    }
    if (!json_is_true(json_object_get(d->work, "lead"))) {
        arm(d, TURN_MS);
        return;
    }
    db_params_init(&p);
    db_int4(&p, ROWS);
    ask(d, KS_DESTRUCTIONS_DO, &p, commands_done);
}

static void
work_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;
    json_t *j = json_row(d, "work", err, res);

    if (j == NULL)
        return;
    json_decref(d->work);
    d->work = j;
    d->list = d->at = 0;
    d->again = json_is_true(json_object_get(j, "again"));
    /* What is made now is needed by what comes next. */
    if (json_is_true(json_object_get(j, "lead")) &&
        json_array_size(json_object_get(j, "make")) == 0 &&
        json_array_size(json_object_get(j, "keys")) < ITEMS)
        d->looked_ahead = d->looked_ahead == 0 ? now_ms() : d->looked_ahead;
    if (json_array_size(json_object_get(j, "sign")) == 32)
        d->again = true;
    if (!hsm_ready(d->k->hsm)) {
        /* Rows can be cleared all the same. */
        d->list = LISTS;
    }
    next_item(d);
}

static void
work_ask(struct destroyer *d)
{
    struct db_params p;
    bool ahead = d->looked_ahead == 0 || now_ms() - d->looked_ahead > AHEAD_MS;

    if (ahead)
        d->looked_ahead = 0;
    db_params_init(&p);
    db_uuid(&p, rotator_node(d->k->rotator));
    db_text(&p, ahead ? "true" : "false");
    db_int4(&p, ITEMS);
    ask(d, KS_DESTROY_WORK, &p, work_got);
}

static void
clock_told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;
    json_t *j = json_row(d, "the clock", err, res);
    bool held;

    if (j == NULL)
        return;
    held = json_is_true(json_object_get(j, "held"));
    if (held && (!d->held || now_ms() - d->reminded > REMIND_MS)) {
        log_error("the database's clock is ahead by more than a day of the time that went by: "
                  "nothing is destroyed by it until it is set right, or officers confirm it "
                  "(kmsctl retention confirm-clock)",
                  NULL);
        d->reminded = now_ms();
    } else if (!held && d->held) {
        log_info("the database's clock can be trusted again", NULL);
    }
    d->held = held;
    json_decref(j);
    work_ask(d);
}

static void
clock_ask(struct destroyer *d)
{
    struct db_params p;

    db_params_init(&p);
    db_uuid(&p, &d->boot);
    db_int8(&p, boot_ms());
    ask(d, KS_CLOCK_TICK, &p, clock_told);
}

static void
waiting_told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct destroyer *d = ctx;

    if (err != KMS_OK) {
        d->waiting_told = -1;
        put_off(d, "the waiting period", kms_strerror(err));
        return;
    }
    clock_ask(d);
}

static void
tick_cb(evutil_socket_t fd, short what, void *arg)
{
    struct destroyer *d = arg;
    struct db_params p;

    if (!db_ready(d->k->db)) {
        arm(d, TURN_MS);
        return;
    }
    if (d->waiting_told == d->k->cfg->waiting * 1000) {
        clock_ask(d);
        return;
    }
    d->waiting_told = d->k->cfg->waiting * 1000;
    db_params_init(&p);
    db_int8(&p, d->waiting_told);
    ask(d, KS_DESTRUCTION_WAITING, &p, waiting_told);
}

bool
destroyer_held(const struct destroyer *d)
{
    return d->held;
}

/* The kernel's name for this run of the machine; one of our own where it has none. */
static int
boot_id(struct uuid *id)
{
    char text[UUID_TEXT + 1];
    int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, UUID_TEXT) : -1;

    if (fd >= 0)
        close(fd);
    if (n == UUID_TEXT && uuid_parse(id, text, UUID_TEXT) == KMS_OK)
        return KMS_OK;
    return uuid_random(id);
}

struct destroyer *
destroyer_new(struct keeper *k)
{
    struct destroyer *d = calloc(1, sizeof(*d));

    if (d == NULL)
        return NULL;
    d->k = k;
    d->waiting_told = -1;
    if (boot_id(&d->boot) != KMS_OK || (d->timer = evtimer_new(k->base, tick_cb, d)) == NULL) {
        destroyer_free(d);
        return NULL;
    }
    arm(d, FIRST_MS);
    return d;
}

void
destroyer_stop(struct destroyer *d)
{
    if (d == NULL)
        return;
    d->stopped = true;
    if (d->timer != NULL)
        event_del(d->timer);
}

void
destroyer_free(struct destroyer *d)
{
    if (d == NULL)
        return;
    if (d->timer != NULL)
        event_free(d->timer);
    buf_release(&d->note);
    json_decref(d->work);
    free(d);
}
