/*
 * control_admin.c - what officers decide, on the admin socket: services, purposes, matters, rules,
 * canaries, destruction, and the approvals that these need.
 *
 * The database does it all (sql/0007_control.sql): a call of an action is its name and its params.
 * What needs several officers answers with an approval that waits.
 */
#include <stdlib.h>
#include <string.h>

#include "kms/admin_call.h"
#include "kms/config.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define WHY_MAX 1024 /* bytes of a reason */

/* --- actions --- */

void
call_act(struct call *c)
{
    struct buf text = BUF_INIT;
    struct db_params p;

    if (call_arguments(c, &text)) {
        db_params_init(&p);
        db_uuid(&p, &c->op);
        db_text(&p, c->method->name);
        db_json(&p, buf_str(&text), text.len);
        db_text(&p, c->peer.actor);
        db_int8(&p, (int64_t)c->peer.uid);
        db_int4(&p, (int32_t)c->k->cfg->approvals);
        call_ask(c, KS_CONTROL_ACT, &p, call_judged);
    }
    buf_release(&text);
}

/* Main keys are the configuration's to allow; that it is the keeper's, and not the caller's word.
 */
static void
cmk_run(struct call *c)
{
    json_t *params = (json_t *)(uintptr_t)c->params;

    if (!c->k->cfg->byok) {
        call_refuse(c, KMS_CODE_NO_BYOK, "[keys] byok is off");
        return;
    }
    if (params != NULL && strcmp(c->method->name, "cmk.import") == 0 &&
        json_object_set_new(params, "allow_128", json_boolean(c->k->cfg->main_key_128)) != 0) {
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
        return;
    }
    call_act(c);
}

/* --- approvals --- */

static void
approval_list_run(struct call *c)
{
    struct db_params p;
    const char *state;

    if (!call_text(c, "state", 16, &state))
        return;
    db_params_init(&p);
    db_text(&p, state);
    call_ask(c, KS_APPROVAL_LIST, &p, call_shown);
}

static void
approval_show_run(struct call *c)
{
    struct db_params p;
    struct uuid id;

    if (!call_uuid(c, "approval", &id))
        return;
    db_params_init(&p);
    db_uuid(&p, &id);
    db_text(&p, c->peer.actor);
    db_int8(&p, (int64_t)c->peer.uid);
    call_ask(c, KS_APPROVAL_SHOW, &p, call_shown);
}

static void
approval_approve_run(struct call *c)
{
    struct db_params p;
    const char *hash;
    struct uuid id;

    if (!call_uuid(c, "approval", &id) || !call_text(c, "hash", 64, &hash))
        return;
    db_params_init(&p);
    db_uuid(&p, &c->op);
    db_uuid(&p, &id);
    db_text(&p, hash);
    db_text(&p, c->peer.actor);
    db_int8(&p, (int64_t)c->peer.uid);
    call_ask(c, KS_APPROVAL_APPROVE, &p, call_judged);
}

static void
approval_reject_run(struct call *c)
{
    struct db_params p;
    const char *why;
    struct uuid id;

    if (!call_uuid(c, "approval", &id) || !call_text(c, "why", WHY_MAX, &why))
        return;
    db_params_init(&p);
    db_uuid(&p, &c->op);
    db_uuid(&p, &id);
    db_text(&p, c->peer.actor);
    db_int8(&p, (int64_t)c->peer.uid);
    db_text(&p, why);
    call_ask(c, KS_APPROVAL_REJECT, &p, call_judged);
}

/* --- lists --- */

static void
purpose_list_run(struct call *c)
{
    call_list_of_org(c, KS_PURPOSES_LIST);
}

static void
setting_list_run(struct call *c)
{
    call_list_of_org(c, KS_SETTINGS_LIST);
}

static void
canary_list_run(struct call *c)
{
    call_list_of_org(c, KS_CANARY_LIST);
}

static void
cmk_list_run(struct call *c)
{
    struct db_params p;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name))
        return;
    if (c->name == NULL) {
        call_refuse(c, RPC_PARAMS, "org: its name");
        return;
    }
    db_params_init(&p);
    db_text(&p, c->name);
    call_ask(c, KS_MAIN_KEYS_LIST, &p, call_shown);
}

static void
service_list_run(struct call *c)
{
    call_show(c, KS_SERVICES_LIST);
}

static void
service_show_run(struct call *c)
{
    struct db_params p;
    const char *name;

    if (!call_text(c, "service", CALL_NAME_MAX, &name))
        return;
    if (name == NULL) {
        call_refuse(c, RPC_PARAMS, "service: its name");
        return;
    }
    db_params_init(&p);
    db_text(&p, name);
    call_ask(c, KS_SERVICE_SHOW, &p, call_shown);
}

static void
matter_list_run(struct call *c)
{
    struct db_params p;
    const char *state;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name) || !call_text(c, "state", 16, &state))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    db_text(&p, state);
    call_ask(c, KS_MATTER_LIST, &p, call_shown);
}

static void
matter_show_run(struct call *c)
{
    call_show_one(c, "matter", KS_MATTER_SHOW);
}

const struct method control_methods[] = {
    {"purpose.enable", ROLE_OFFICER, call_act, RECORD_SQL},
    {"purpose.disable", ROLE_OFFICER, call_act, RECORD_SQL},
    {"service.add", ROLE_OFFICER, call_act, RECORD_SQL},
    {"service.change", ROLE_OFFICER, call_act, RECORD_SQL},
    {"service.retire", ROLE_OFFICER, call_act, RECORD_SQL},
    {"certificate.revoke", ROLE_OFFICER, call_act, RECORD_SQL},
    {"matter.open", ROLE_OFFICER, call_act, RECORD_SQL},
    {"matter.close", ROLE_OFFICER, call_act, RECORD_SQL},
    {"setting.set", ROLE_OFFICER, call_act, RECORD_SQL},
    {"canary.add", ROLE_OFFICER, call_act, RECORD_SQL},
    {"canary.remove", ROLE_OFFICER, call_act, RECORD_SQL},
    {"audit.suspend", ROLE_OFFICER, call_act, RECORD_SQL},
    {"audit.resume", ROLE_OFFICER, call_act, RECORD_SQL},
    {"cmk.public_key", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.import", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.activate", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.disable", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.revoke", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.deactivate", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.retire", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.delete", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.default", ROLE_OFFICER, cmk_run, RECORD_SQL},
    {"cmk.list", ROLE_ANY, cmk_list_run, RECORD_CALL},
    {"approval.approve", ROLE_OFFICER, approval_approve_run, RECORD_SQL},
    {"approval.reject", ROLE_OFFICER, approval_reject_run, RECORD_SQL},
    {"approval.show", ROLE_ANY, approval_show_run, RECORD_SQL},
    {"approval.list", ROLE_ANY, approval_list_run, RECORD_CALL},
    {"purpose.list", ROLE_ANY, purpose_list_run, RECORD_CALL},
    {"service.list", ROLE_ANY, service_list_run, RECORD_CALL},
    {"service.show", ROLE_ANY, service_show_run, RECORD_CALL},
    {"setting.list", ROLE_ANY, setting_list_run, RECORD_CALL},
    {"matter.list", ROLE_ANY, matter_list_run, RECORD_CALL},
    {"matter.show", ROLE_ANY, matter_show_run, RECORD_CALL},
    {"canary.list", ROLE_ANY, canary_list_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
