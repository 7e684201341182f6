/*
 * freeze_admin.c - freezing and thawing on the admin socket: what is not released for a while.
 *
 * The database does it all (sql/0014_freeze.sql), for one officer and at once.
 */
#include "kms/admin_call.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

static void
ask(struct call *c, enum keeper_statement s, struct db_params *p, db_cb *cb)
{
    if (db_call(c->k->db, (int)s, p, cb, c) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
}

/* The params without what is the call's own.  false: the call was refused. */
static bool
arguments(struct call *c, struct buf *text)
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

static void
freeze_run(struct call *c)
{
    struct buf text = BUF_INIT;
    struct db_params p;

    if (arguments(c, &text)) {
        db_params_init(&p);
        db_uuid(&p, &c->op);
        db_text(&p, c->method->name);
        db_json(&p, buf_str(&text), text.len);
        db_text(&p, c->peer.actor);
        db_int8(&p, (int64_t)c->peer.uid);
        ask(c, KS_FREEZE_ACT, &p, call_judged);
    }
    buf_release(&text);
}

static void
preview_run(struct call *c)
{
    struct buf text = BUF_INIT;
    struct db_params p;

    if (arguments(c, &text)) {
        db_params_init(&p);
        db_json(&p, buf_str(&text), text.len);
        ask(c, KS_FREEZE_PREVIEW, &p, call_judged);
    }
    buf_release(&text);
}

static void
list_run(struct call *c)
{
    struct db_params p;

    if (!call_text(c, "org", CALL_NAME_MAX, &c->name))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    ask(c, KS_FREEZES_LIST, &p, call_shown);
}

const struct method freeze_methods[] = {
    {"freeze", ROLE_OFFICER, freeze_run, RECORD_SQL},
    {"thaw", ROLE_OFFICER, freeze_run, RECORD_SQL},
    {"freeze.preview", ROLE_OFFICER, preview_run, RECORD_CALL},
    {"freeze.list", ROLE_ANY, list_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
