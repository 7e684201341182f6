/* channel.c - channels in a worker's memory, and the way they get there. */
#include "kms/channel.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/db.h"
#include "kms/req.h"
#include "kms/state.h"
#include "kms/waiters.h"
#include "kms/worker.h"
#include "proto/err.h"

#define BUCKETS 8192
#define RATE_MS 60000 /* how long the rate of a service's channel is believed */

/* A channel on its way into memory: asked of the database, then of hsmd. */
struct opening {
    struct opening *next;
    struct uuid id;
    struct waiters waiters;
    bool sent;               /* to the database */
    struct channel *channel; /* owned: what the database said, until hsmd has the key */
    struct hsm_wrapping_key wk;
    unsigned char blob[HSM_BLOB_LEN];
};

/* Why a channel could not be had, for those who were woken to ask again. */
struct failure {
    struct uuid id;
    int err;
};

struct channels {
    struct worker *w;
    size_t max, count;
    struct channel *hash[BUCKETS];
    struct channel *oldest, *newest;
    struct opening *openings;
    struct event *gather;
    struct failure failed; /* valid while waking */
    bool waking;
};

const char *
principal_name(enum principal p)
{
    static const char *const names[] = {
        [PRINCIPAL_USER] = "user",
        [PRINCIPAL_ANONYMOUS] = "anonymous",
        [PRINCIPAL_SERVICE] = "service",
    };

    return names[p];
}

static unsigned
bucket(const struct uuid *id)
{
    /* Random already (RFC 9562, version 4): any two bytes do. */
    return ((unsigned)id->b[14] << 8 | id->b[15]) % BUCKETS;
}

static void
channel_free(struct channel *c)
{
    if (c == NULL)
        return;
    secret_free(c->key);
    free((char *)(uintptr_t)c->owner.org_name);
    free((char *)(uintptr_t)c->owner.subject);
    free((char *)(uintptr_t)c->owner.client);
    free((char *)(uintptr_t)c->owner.identity);
    free(c->kid);
    free(c);
}

void
channel_put(struct channels *cs, struct channel *c)
{
    if (c != NULL && --c->refs == 0)
        channel_free(c);
}

static void
unlink_use(struct channels *cs, struct channel *c)
{
    *(c->older != NULL ? &c->older->newer : &cs->oldest) = c->newer;
    *(c->newer != NULL ? &c->newer->older : &cs->newest) = c->older;
    c->older = c->newer = NULL;
}

static void
link_newest(struct channels *cs, struct channel *c)
{
    c->older = cs->newest;
    c->newer = NULL;
    *(cs->newest != NULL ? &cs->newest->newer : &cs->oldest) = c;
    cs->newest = c;
}

static struct channel *
find(struct channels *cs, const struct uuid *id)
{
    struct channel *c = cs->hash[bucket(id)];

    while (c != NULL && memcmp(&c->id, id, sizeof(*id)) != 0)
        c = c->hash_next;
    return c;
}

static void
drop(struct channels *cs, struct channel *c)
{
    struct channel **at = &cs->hash[bucket(&c->id)];

    while (*at != c)
        at = &(*at)->hash_next;
    *at = c->hash_next;
    unlink_use(cs, c);
    cs->count--;
    count_set(CT_CHANNELS_CACHED, cs->count);
    channel_put(cs, c);
}

void
channels_drop(struct channels *cs, const struct uuid *id)
{
    struct channel *c = find(cs, id);

    if (c != NULL)
        drop(cs, c);
}

static void
insert(struct channels *cs, struct channel *c)
{
    channels_drop(cs, &c->id);
    while (cs->count >= cs->max && cs->oldest != NULL)
        drop(cs, cs->oldest);
    c->hash_next = cs->hash[bucket(&c->id)];
    cs->hash[bucket(&c->id)] = c;
    link_newest(cs, c);
    c->refs++;
    cs->count++;
    count_set(CT_CHANNELS_CACHED, cs->count);
}

/* NULL: no memory.  The caller holds the one reference. */
static struct channel *
channel_new(struct worker *w, const struct uuid *id, const struct uuid *org,
            const struct channel_owner *owner, int64_t expires)
{
    struct channel *c = calloc(1, sizeof(*c));
    struct buf kid = BUF_INIT;

    if (c == NULL)
        return NULL;
    c->refs = 1;
    c->id = *id;
    c->org = *org;
    c->since = now_ms();
    c->expires = expires;
    c->owner = *owner;
    c->owner.org_name = strdup(owner->org_name);
    c->owner.subject = strdup(owner->subject);
    c->owner.client = strdup(owner->client);
    if (owner->identity != NULL)
        c->owner.identity = strdup(owner->identity);
    if (kms_uri_put(&kid, w->cfg->domain, "ecdhe", id) == KMS_OK)
        c->kid = strdup(buf_str(&kid));
    buf_release(&kid);
    if (c->owner.org_name == NULL || c->owner.subject == NULL || c->owner.client == NULL ||
        (owner->identity != NULL && c->owner.identity == NULL) || c->kid == NULL) {
        channel_free(c);
        return NULL;
    }
    return c;
}

void
channels_add(struct channels *cs, const struct uuid *id, const struct uuid *org,
             const struct channel_owner *owner, struct secret **key, int64_t expires)
{
    struct channel *c = channel_new(cs->w, id, org, owner, expires);

    if (c == NULL)
        return;
    c->key = *key;
    *key = NULL;
    insert(cs, c);
    channel_put(cs, c);
}

/* --- opening --- */

static void
opening_free(struct opening *o)
{
    channel_free(o->channel);
    waiters_release(&o->waiters);
    free(o);
}

static struct opening *
opening_find(struct channels *cs, const struct uuid *id)
{
    struct opening *o = cs->openings;

    while (o != NULL && memcmp(&o->id, id, sizeof(*id)) != 0)
        o = o->next;
    return o;
}

/* Wakes whoever waits; they ask channels_get again and find the channel, or the failure. */
static void
opening_end(struct channels *cs, struct opening *o, int err)
{
    struct opening **at = &cs->openings;

    while (*at != o)
        at = &(*at)->next;
    *at = o->next;
    if (err == KMS_OK) {
        o->channel->refs = 1;
        insert(cs, o->channel);
        channel_put(cs, o->channel);
        o->channel = NULL;
    }
    cs->failed.id = o->id;
    cs->failed.err = err;
    cs->waking = err != KMS_OK;
    waiters_wake(&o->waiters, cs->w);
    cs->waking = false;
    opening_free(o);
}

static void
opening_unwrapped(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
                  const unsigned char *blob)
{
    struct channels *cs = ctx;
    struct opening *o = cs->openings;

    /* By address as a number: an opening that is gone is not in the list any more. */
    while (o != NULL && (uint64_t)(uintptr_t)o != id)
        o = o->next;
    if (o == NULL)
        return;
    if (err == KMS_OK && (o->channel->key = secret_from(key)) == NULL)
        err = KMS_ERR_UNAVAILABLE;
    if (err == KMS_ERR_CRYPTO)
        log_error("a stored channel key does not open", "channel", o->channel->kid, NULL);
    opening_end(cs, o, err == KMS_OK || err == KMS_ERR_CRYPTO ? err : KMS_ERR_UNAVAILABLE);
}

/* Which openings a call to the database was for. */
struct asked {
    struct channels *cs;
    size_t n;
    struct uuid ids[STATE_BATCH];
};

/* What sort of owner it is, and what services have besides. */
static int
owner_kind(struct channel_owner *out, const PGresult *res, int row)
{
    const char *kind = db_get_text(res, row, 4);
    int32_t rate;

    if (kind == NULL)
        return KMS_ERR_PROTOCOL;
    for (out->kind = PRINCIPAL_USER; strcmp(kind, principal_name(out->kind)) != 0; out->kind++)
        if (out->kind == PRINCIPAL_SERVICE)
            return KMS_ERR_PROTOCOL;
    if (out->kind != PRINCIPAL_SERVICE)
        return KMS_OK;
    if ((out->identity = db_get_text(res, row, 12)) == NULL ||
        !db_get_bytes(res, row, 13, out->thumb, sizeof(out->thumb)) ||
        !db_get_int4(res, row, 14, &rate))
        return KMS_ERR_PROTOCOL;
    out->rate = rate;
    return KMS_OK;
}

static int
opening_row(struct channels *cs, struct opening *o, const PGresult *res, int row)
{
    struct uuid org;
    int32_t generation;
    int64_t expires;
    struct channel_owner owner = {.org_name = db_get_text(res, row, 3),
                                  .subject = db_get_text(res, row, 5),
                                  .client = db_get_text(res, row, 6)};

    if (!db_get_uuid(res, row, 2, &org) || owner.org_name == NULL || owner.subject == NULL ||
        owner.client == NULL || owner_kind(&owner, res, row) != KMS_OK ||
        !db_get_bytes(res, row, 7, o->blob, HSM_BLOB_LEN) ||
        !db_get_int4(res, row, 8, &generation) ||
        !db_get_bytes(res, row, 9, o->wk.root, HSM_ID_LEN) ||
        !db_get_bytes(res, row, 10, o->wk.wrapped, HSM_WRAPPED_LEN) ||
        !db_get_int8(res, row, 11, &expires))
        return KMS_ERR_UNAVAILABLE;
    memcpy(o->wk.org, org.b, HSM_ID_LEN);
    o->wk.generation = (uint32_t)generation;
    o->channel = channel_new(cs->w, &o->id, &org, &owner, expires);
    if (o->channel == NULL)
        return KMS_ERR_UNAVAILABLE;
    count_add(CT_HSM_ITEMS, 1);
    return hsm_unwrap(cs->w->hsm, &o->wk, HSM_CHANNEL_KEY, o->id.b, o->blob, opening_unwrapped, cs,
                      (uint64_t)(uintptr_t)o, 0) == KMS_OK
               ? KMS_OK
               : KMS_ERR_UNAVAILABLE;
}

static void
opening_rows(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct asked *a = ctx;
    struct channels *cs = a->cs;
    struct opening *o;
    int row, r;
    int32_t n;
    bool found;
    size_t i;

    for (row = 0; err == KMS_OK && row < PQntuples(res); row++) {
        if (!db_get_int4(res, row, 0, &n) || !db_get_bool(res, row, 1, &found) || n < 1 ||
            (size_t)n > a->n || (o = opening_find(cs, &a->ids[n - 1])) == NULL ||
            o->channel != NULL)
            continue;
        r = found ? opening_row(cs, o, res, row) : KMS_ERR_NOT_FOUND;
        if (r != KMS_OK)
            opening_end(cs, o, r);
    }
    /* Those without a row, and all of them where the call failed: whoever has one is at hsmd. */
    for (i = 0; i < a->n; i++)
        if ((o = opening_find(cs, &a->ids[i])) != NULL && o->channel == NULL)
            opening_end(cs, o, KMS_ERR_UNAVAILABLE);
    free(a);
}

/* Asks the database for the openings in a; 0 of them: nothing. */
static int
openings_ask(struct asked *a)
{
    struct db_params p;
    struct opening *o;

    db_params_init(&p);
    db_array_begin(&p, DB_UUID);
    for (o = a->cs->openings; o != NULL && a->n < STATE_BATCH; o = o->next) {
        if (o->sent)
            continue;
        o->sent = true;
        db_put_uuid(&p, &o->id);
        a->ids[a->n++] = o->id;
    }
    db_array_end(&p);
    if (a->n > 0)
        return db_call(a->cs->w->db, SC_CHANNELS_OPEN, &p, opening_rows, a);
    db_params_release(&p);
    return KMS_OK;
}

static void
openings_send(evutil_socket_t fd, short what, void *arg)
{
    struct channels *cs = arg;
    struct opening *o, *next;
    struct asked *a;
    int r = KMS_OK;

    do {
        if ((a = calloc(1, sizeof(*a))) == NULL)
            break;
        a->cs = cs;
        r = openings_ask(a);
        if (r == KMS_OK && a->n == 0) {
            free(a);
            return;
        }
        if (r != KMS_OK)
            opening_rows(a, r, NULL, NULL);
    } while (r == KMS_OK);
    /* No memory: whoever was not asked for hears so now, since nothing comes back to them. */
    for (o = cs->openings; o != NULL; o = next) {
        next = o->next;
        if (!o->sent)
            opening_end(cs, o, KMS_ERR_UNAVAILABLE);
    }
}

int
channels_get(struct channels *cs, const struct uuid *id, uint64_t req, struct channel **out)
{
    struct channel *c = find(cs, id);
    struct opening *o;

    *out = NULL;
    if (c != NULL && c->expires <= wall_ms()) {
        drop(cs, c);
        return KMS_ERR_NOT_FOUND;
    }
    if (c != NULL && c->owner.kind == PRINCIPAL_SERVICE && c->since + RATE_MS <= now_ms()) {
        /* Its registration may have another rate by now. */
        drop(cs, c);
        c = NULL;
    }
    if (c != NULL) {
        unlink_use(cs, c);
        link_newest(cs, c);
        c->refs++;
        *out = c;
        return KMS_OK;
    }
    if (cs->waking && memcmp(&cs->failed.id, id, sizeof(*id)) == 0)
        return cs->failed.err;
    if ((o = opening_find(cs, id)) == NULL) {
        if ((o = calloc(1, sizeof(*o))) == NULL)
            return KMS_ERR_UNAVAILABLE;
        o->id = *id;
        o->next = cs->openings;
        cs->openings = o;
        event_active(cs->gather, EV_TIMEOUT, 0);
    }
    return waiters_add(&o->waiters, req);
}

struct channels *
channels_new(struct worker *w, size_t max)
{
    struct channels *cs = calloc(1, sizeof(*cs));

    if (cs == NULL)
        return NULL;
    cs->w = w;
    cs->max = max;
    if ((cs->gather = event_new(w->base, -1, 0, openings_send, cs)) == NULL) {
        channels_free(cs);
        return NULL;
    }
    return cs;
}

void
channels_free(struct channels *cs)
{
    struct opening *o;

    if (cs == NULL)
        return;
    while (cs->oldest != NULL)
        drop(cs, cs->oldest);
    while ((o = cs->openings) != NULL) {
        cs->openings = o->next;
        opening_free(o);
    }
    if (cs->gather != NULL)
        event_free(cs->gather);
    free(cs);
}
