/*
 * destroy_admin.c - destruction on the admin socket: commands that wait, previews, certificates,
 * the clock.
 *
 * What destroys or undoes is an action like any other of officers (control_admin.c).
 */
#include "kms/admin_call.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define CERTIFICATES_MAX 1000
#define ITEMS_MAX        1000

/* A number in params that may be absent.  false: the call was refused. */
static bool
number(struct call *c, const char *name, long long max, long long *out)
{
    int r = kms_json_int(c->params, name, 0, max, out);

    if (r == KMS_OK || r == KMS_ERR_NOT_FOUND || c->params == NULL)
        return true;
    call_refuse(c, RPC_PARAMS, "limit, until: a number");
    return false;
}

static void
destruction_list_run(struct call *c)
{
    struct db_params p;
    const char *state;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name) || !call_text(c, "state", 16, &state))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    db_text(&p, state);
    call_ask(c, KS_DESTRUCTION_LIST, &p, call_shown);
}

static void
preview_run(struct call *c)
{
    struct db_params p;
    long long until = 0, limit = 100;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name) ||
        !number(c, "until", INT64_C(253402300799999), &until) ||
        !number(c, "limit", ITEMS_MAX, &limit))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    db_int8(&p, until);
    db_int4(&p, (int32_t)limit);
    call_ask(c, KS_RETENTION_PREVIEW, &p, call_shown);
}

static void
clock_run(struct call *c)
{
    call_show(c, KS_CLOCK_SHOW);
}

static void
certificate_list_run(struct call *c)
{
    struct db_params p;
    long long limit = 20;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name) ||
        !number(c, "limit", CERTIFICATES_MAX, &limit))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    db_int4(&p, (int32_t)limit);
    call_ask(c, KS_CERTIFICATE_LIST, &p, call_shown);
}

static void
certificate_show_run(struct call *c)
{
    call_show_one(c, "certificate", KS_CERTIFICATE_SHOW);
}

const struct method destroy_methods[] = {
    {"key.destroy", ROLE_OFFICER, call_act, RECORD_SQL},
    {"resource.destroy", ROLE_OFFICER, call_act, RECORD_SQL},
    {"recording.destroy", ROLE_OFFICER, call_act, RECORD_SQL},
    {"org.destroy", ROLE_OFFICER, call_act, RECORD_SQL},
    {"destruction.undo", ROLE_OFFICER, call_act, RECORD_SQL},
    {"clock.confirm", ROLE_OFFICER, call_act, RECORD_SQL},
    {"destruction.list", ROLE_ANY, destruction_list_run, RECORD_CALL},
    {"retention.preview", ROLE_ANY, preview_run, RECORD_CALL},
    {"clock.show", ROLE_ANY, clock_run, RECORD_CALL},
    {"certificate.list", ROLE_ANY, certificate_list_run, RECORD_CALL},
    {"certificate.show", ROLE_ANY, certificate_show_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
