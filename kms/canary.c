/* canary.c - asks the database for alarms that were not told yet, tells them, and notes it. */
#include "kms/canary.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/log.h"
#include "kms/audit.h"
#include "kms/clock.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/err.h"
#include "proto/json.h"

#define BATCH    4096 /* entries looked at in one transaction */
#define TELL     16   /* alarms in one round: fewer than lines of one text that a second may have */
#define PAUSE_MS 1100 /* between two rounds that had some */

struct canary {
    struct keeper *k;
    bool asking, known, failing;
    int64_t again; /* ms: not before then */
    uint64_t total;
};

static void
done(struct canary *c, int err)
{
    c->asking = false;
    if (err != KMS_OK && !c->failing)
        log_warn("canaries were not looked at", "why", kms_strerror(err), NULL);
    c->failing = err != KMS_OK;
}

static void
noted(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    done(ctx, err);
}

/* The entry's number ties the line, the message to the collector and the entry together. */
static void
tell(const json_t *alarm)
{
    const char *text[] = {"org_name", "resource", "note",   "who",    "kind",
                          "behalf",   "purpose",  "matter", "request"};
    const char *v[sizeof(text) / sizeof(text[0])];

    for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++)
        v[i] = json_string_value(json_object_get(alarm, text[i]));
    log_error("ALARM: keys of a canary were retrieved", "org", v[0], "resource", v[1], "note", v[2],
              "who", v[3], "kind", v[4], "behalf", v[5], "purpose", v[6], "matter", v[7],
              "request_id", v[8], "entry%l",
              (long long)json_integer_value(json_object_get(alarm, "entry")), "keys%l",
              (long long)json_integer_value(json_object_get(alarm, "keys")), NULL);
}

static void
got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct canary *c = ctx;
    struct db_params p;
    json_t *j = NULL, *alarm;
    const json_t *alarms;
    const char *text;
    size_t len, i;
    int r = err;

    if (r == KMS_OK && (PQntuples(res) != 1 || (text = db_get_json(res, 0, 0, &len)) == NULL ||
                        kms_json_parse(&j, text, len) != KMS_OK))
        r = KMS_ERR_PROTOCOL;
    if (r != KMS_OK) {
        done(c, r);
        return;
    }
    c->total = (uint64_t)json_integer_value(json_object_get(j, "total"));
    c->known = true;
    alarms = json_object_get(j, "alarms");
    if (json_array_size(alarms) > 0) {
        c->again = now_ms() + PAUSE_MS;
        db_params_init(&p);
        db_array_begin(&p, DB_INT8);
        json_array_foreach(alarms, i, alarm)
        {
            tell(alarm);
            db_put_int8(&p, json_integer_value(json_object_get(alarm, "entry")));
        }
        db_array_end(&p);
        if (db_call(audit_db(c->k->audit), AS_CANARY_TOLD, &p, noted, c) != KMS_OK)
            done(c, KMS_ERR_NOMEM);
    } else {
        done(c, KMS_OK);
        if (json_is_true(json_object_get(j, "more")))
            canary_push(c);
    }
    json_decref(j);
}

void
canary_push(struct canary *c)
{
    struct db_params p;

    if (c == NULL || c->asking || now_ms() < c->again)
        return;
    c->asking = true;
    db_params_init(&p);
    db_int4(&p, BATCH);
    db_int4(&p, TELL);
    if (db_call(audit_db(c->k->audit), AS_CANARY_RAISE, &p, got, c) != KMS_OK)
        done(c, KMS_ERR_NOMEM);
}

bool
canary_total(const struct canary *c, uint64_t *total)
{
    if (c == NULL || !c->known)
        return false;
    *total = c->total;
    return true;
}

struct canary *
canary_new(struct keeper *k)
{
    struct canary *c = calloc(1, sizeof(*c));

    if (c != NULL)
        c->k = k;
    return c;
}

void
canary_free(struct canary *c)
{
    free(c);
}
