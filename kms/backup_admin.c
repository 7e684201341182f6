/*
 * backup_admin.c - on the admin socket, what a backup of the database needs of the token.
 */
#include "kms/admin_call.h"

static void
keys_run(struct call *c)
{
    call_show(c, KS_TOKEN_KEYS);
}

const struct method backup_methods[] = {
    {"backup.keys", ROLE_ANY, keys_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
