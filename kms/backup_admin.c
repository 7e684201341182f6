/*
 * backup_admin.c - on the admin socket, what a backup of the database needs of the token.
 */
#include "kms/admin_call.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/err.h"
#include "proto/msg.h"

static void
keys_run(struct call *c)
{
    struct db_params p;

    db_params_init(&p);
    if (db_call(c->k->db, KS_TOKEN_KEYS, &p, call_shown, c) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
}

const struct method backup_methods[] = {
    {"backup.keys", ROLE_ANY, keys_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
