/*
 * freeze_admin.c - freezing and thawing on the admin socket: what is not released for a while.
 *
 * The database does it all (sql/0014_freeze.sql), for one officer and at once.
 */
#include "kms/admin_call.h"

static void
freeze_run(struct call *c)
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
        call_ask(c, KS_FREEZE_ACT, &p, call_judged);
    }
    buf_release(&text);
}

static void
preview_run(struct call *c)
{
    struct buf text = BUF_INIT;
    struct db_params p;

    if (call_arguments(c, &text)) {
        db_params_init(&p);
        db_json(&p, buf_str(&text), text.len);
        call_ask(c, KS_FREEZE_PREVIEW, &p, call_judged);
    }
    buf_release(&text);
}

static void
list_run(struct call *c)
{
    call_list_of_org(c, KS_FREEZES_LIST);
}

const struct method freeze_methods[] = {
    {"freeze", ROLE_OFFICER, freeze_run, RECORD_SQL},
    {"thaw", ROLE_OFFICER, freeze_run, RECORD_SQL},
    {"freeze.preview", ROLE_OFFICER, preview_run, RECORD_CALL},
    {"freeze.list", ROLE_ANY, list_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
