/* orgs.c - organisations by name, remembered for a while. */
#include "kms/orgs.h"

#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/log.h"
#include "kms/db.h"
#include "kms/req.h"
#include "kms/state.h"
#include "kms/waiters.h"
#include "kms/worker.h"
#include "proto/err.h"
#include "proto/jwt.h"

#define BUCKETS     1024
#define ENTRIES_MAX 16384
#define FRESH_US    60000000 /* how long a known one is remembered */
#define UNKNOWN_US  2000000  /* and an unknown one: an organisation just added is served soon */
#define WRAPS_S     10       /* how often uses are told to the database */

struct org {
    struct org *next;
    struct orgs *all; /* borrowed */
    char name[JWT_SUBJECT_MAX + 1];
    bool asking;
    int64_t until; /* microseconds; what is known is good until then */
    int err;       /* KMS_OK, KMS_ERR_NOT_FOUND, KMS_ERR_UNAVAILABLE */
    struct uuid id;
    struct hsm_wrapping_key wk;
    int64_t wraps; /* not told yet */
    struct waiters waiters;
};

struct orgs {
    struct worker *w;
    size_t count;
    uint32_t seed;
    struct org *hash[BUCKETS];
    struct event *tell;
};

/* FNV-1a with a seed: names come from tokens that the provider signed, not from strangers. */
static unsigned
bucket(const struct orgs *os, const char *name)
{
    uint32_t h = 2166136261u ^ os->seed;

    for (; *name != '\0'; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    return h % BUCKETS;
}

static struct org *
find(struct orgs *os, const char *name)
{
    struct org *o = os->hash[bucket(os, name)];

    while (o != NULL && strcmp(o->name, name) != 0)
        o = o->next;
    return o;
}

static void
org_free(struct org *o)
{
    waiters_release(&o->waiters);
    free(o);
}

/* Makes room by dropping whatever nobody waits for; uses that were not told are lost, they are an
 * estimate. */
static void
make_room(struct orgs *os)
{
    struct org **at, *o;
    unsigned i;

    for (i = 0; i < BUCKETS; i++) {
        for (at = &os->hash[i]; (o = *at) != NULL;) {
            if (o->asking || o->waiters.n > 0) {
                at = &o->next;
                continue;
            }
            *at = o->next;
            org_free(o);
            os->count--;
        }
    }
}

static void
org_end(struct org *o, int err, int64_t good_for)
{
    o->asking = false;
    o->err = err;
    o->until = now_us() + good_for;
    waiters_wake(&o->waiters, o->all->w);
}

/* The entry stays in the cache while it is asked for, so the pointer is good. */
static void
org_row(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct org *o = ctx;
    int32_t generation;

    if (err != KMS_OK || PQntuples(res) != 1) {
        org_end(o, KMS_ERR_UNAVAILABLE, 0);
        return;
    }
    if (PQgetisnull(res, 0, 1)) {
        org_end(o, KMS_ERR_NOT_FOUND, UNKNOWN_US);
        return;
    }
    if (!db_get_uuid(res, 0, 1, &o->id) || !db_get_int4(res, 0, 3, &generation) ||
        !db_get_bytes(res, 0, 4, o->wk.root, HSM_ID_LEN) ||
        !db_get_bytes(res, 0, 5, o->wk.wrapped, HSM_WRAPPED_LEN)) {
        log_error("an organisation could not be read", "org", o->name, NULL);
        org_end(o, KMS_ERR_UNAVAILABLE, 0);
        return;
    }
    memcpy(o->wk.org, o->id.b, HSM_ID_LEN);
    o->wk.generation = (uint32_t)generation;
    org_end(o, KMS_OK, FRESH_US);
}

static int
org_ask(struct org *o)
{
    struct db_params p;

    db_params_init(&p);
    db_array_begin(&p, DB_TEXT);
    db_put_text(&p, o->name);
    db_array_end(&p);
    o->asking = true;
    if (db_call(o->all->w->db, SC_ORGS_GET, &p, org_row, o) == KMS_OK)
        return KMS_OK;
    o->asking = false;
    return KMS_ERR_UNAVAILABLE;
}

int
orgs_get(struct orgs *os, const char *name, uint64_t req, struct uuid *id,
         struct hsm_wrapping_key *wk)
{
    struct org *o = find(os, name);

    if (o == NULL) {
        if (strlen(name) > JWT_SUBJECT_MAX)
            return KMS_ERR_NOT_FOUND;
        if (os->count >= ENTRIES_MAX)
            make_room(os);
        if ((o = calloc(1, sizeof(*o))) == NULL)
            return KMS_ERR_UNAVAILABLE;
        o->all = os;
        strcpy(o->name, name);
        o->next = os->hash[bucket(os, name)];
        os->hash[bucket(os, name)] = o;
        os->count++;
    }
    if (o->asking)
        return waiters_add(&o->waiters, req);
    /* A failure is told to those who waited for it, in this turn; later ones ask anew. */
    if (o->until > now_us() || (o->err == KMS_ERR_UNAVAILABLE && o->until + 100000 > now_us())) {
        if (o->err == KMS_OK) {
            *id = o->id;
            *wk = o->wk;
        }
        return o->err;
    }
    if (org_ask(o) != KMS_OK)
        return KMS_ERR_UNAVAILABLE;
    return waiters_add(&o->waiters, req);
}

void
orgs_forget(struct orgs *os, const char *name)
{
    struct org *o = find(os, name);

    if (o != NULL)
        o->until = 0;
}

/* --- uses of wrapping keys --- */

void
orgs_count_wraps(struct orgs *os, const char *name, unsigned n)
{
    struct org *o = find(os, name);

    if (o != NULL)
        o->wraps += n;
}

static void
told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    if (err != KMS_OK)
        log_warn("uses of wrapping keys could not be counted", "why", kms_strerror(err), NULL);
}

static void
orgs_tell(evutil_socket_t fd, short what, void *arg)
{
    struct orgs *os = arg;
    struct org *o;
    unsigned i, col, any = 0;
    struct db_params p;

    if (!db_ready(os->w->db))
        return;
    db_params_init(&p);
    for (col = 0; col < 3; col++) {
        db_array_begin(&p, col == 0 ? DB_UUID : col == 1 ? DB_INT4 : DB_INT8);
        for (i = 0; i < BUCKETS; i++)
            for (o = os->hash[i]; o != NULL; o = o->next) {
                if (o->wraps == 0)
                    continue;
                any++;
                if (col == 0)
                    db_put_uuid(&p, &o->id);
                else if (col == 1)
                    db_put_int4(&p, (int32_t)o->wk.generation);
                else {
                    db_put_int8(&p, o->wraps);
                    o->wraps = 0;
                }
            }
        db_array_end(&p);
    }
    if (any == 0)
        db_params_release(&p);
    else
        db_call(os->w->db, SC_WRAPS_ADD, &p, told, os);
}

struct orgs *
orgs_new(struct worker *w)
{
    static const struct timeval every = {WRAPS_S, 0};
    struct orgs *os = calloc(1, sizeof(*os));

    if (os == NULL)
        return NULL;
    os->w = w;
    if (RAND_bytes((unsigned char *)&os->seed, sizeof(os->seed)) != 1 ||
        (os->tell = event_new(w->base, -1, EV_PERSIST, orgs_tell, os)) == NULL ||
        event_add(os->tell, &every) != 0) {
        orgs_free(os);
        return NULL;
    }
    return os;
}

void
orgs_free(struct orgs *os)
{
    struct org *o;
    unsigned i;

    if (os == NULL)
        return;
    for (i = 0; i < BUCKETS; i++)
        while ((o = os->hash[i]) != NULL) {
            os->hash[i] = o->next;
            org_free(o);
        }
    if (os->tell != NULL)
        event_free(os->tell);
    free(os);
}
