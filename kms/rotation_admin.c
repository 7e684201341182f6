/*
 * rotation_admin.c - roots, wrapping keys and how far their rotation is, on the admin socket.
 *
 * What changes something is an action like any other of officers (control_admin.c); the keeper that
 * leads finds it in the database.
 */
#include "kms/admin_call.h"

static void
root_list_run(struct call *c)
{
    call_show(c, KS_ROOTS_LIST);
}

static void
rotation_status_run(struct call *c)
{
    call_show(c, KS_ROTATIONS_STATUS);
}

const struct method rotation_methods[] = {
    {"root.rotate", ROLE_OFFICER, call_act, RECORD_SQL},
    {"root.retire", ROLE_OFFICER, call_act, RECORD_SQL},
    {"root.destroy", ROLE_OFFICER, call_act, RECORD_SQL},
    /* It opens nothing to anybody: whoever runs the server may ask for it too. */
    {"wrapping_key.rotate", ROLE_OFFICER | ROLE_OPERATOR, call_act, RECORD_SQL},
    {"root.list", ROLE_ANY, root_list_run, RECORD_CALL},
    {"rotation.status", ROLE_ANY, rotation_status_run, RECORD_PAGES}, /* watched for hours */
    {NULL, 0, NULL, RECORD_CALL},
};
