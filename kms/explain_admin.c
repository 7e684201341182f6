/*
 * explain_admin.c - decisions explained, and the report of a matter, on the admin socket.
 *
 * Both are one SQL function each (sql/0008_explain.sql); kmsctl puts them into sentences and adds
 * the proofs.
 */
#include <string.h>

#include "kms/admin_call.h"
#include "kms/audit.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define REQUEST_MAX 1024 /* bytes of a request id */
#define ENTRIES_MAX 1000 /* of a matter, in one answer */

static void
shown(struct call *c, int err, const PGresult *res, const char *none)
{
    json_t *j;

    if (!call_got(c, err))
        return;
    if (PQntuples(res) != 1)
        call_refuse(c, RPC_INTERNAL, "the database's answer is malformed");
    else if (!call_json(c, res, 0, 0, &j))
        return;
    else if (j == NULL)
        call_refuse(c, KMS_CODE_NOT_FOUND, none);
    else
        call_answer(c, j);
}

static void
explained(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    shown(ctx, err, res,
          "no log has a request id, an entry's number or an operation id that is this");
}

static void
explain_run(struct call *c)
{
    struct db_params p;
    const char *request;

    if (kms_json_str(c->params, "request", REQUEST_MAX, &request) != KMS_OK || request[0] == '\0') {
        call_refuse(c, RPC_PARAMS, "request: a request id, an entry's number or an operation id");
        return;
    }
    db_params_init(&p);
    db_text(&p, request);
    if (db_call(audit_db(c->k->audit), AS_EXPLAIN, &p, explained, c) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
}

static void
reported(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    shown(ctx, err, res, "no matter has this id");
}

static void
report_run(struct call *c)
{
    long long after = 0, limit = ENTRIES_MAX;
    struct db_params p;
    struct uuid id;
    int r;

    if (!call_uuid(c, "matter", &id))
        return;
    r = kms_json_int(c->params, "after", 0, INT64_MAX, &after);
    if (r == KMS_OK || r == KMS_ERR_NOT_FOUND)
        r = kms_json_int(c->params, "limit", 1, ENTRIES_MAX, &limit);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND) {
        call_refuse(c, RPC_PARAMS, "after: an entry's number; limit: 1 to 1000");
        return;
    }
    db_params_init(&p);
    db_uuid(&p, &id);
    db_int8(&p, after);
    db_int4(&p, (int32_t)limit);
    if (db_call(audit_db(c->k->audit), AS_MATTER_REPORT, &p, reported, c) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
}

const struct method explain_methods[] = {
    {"explain", ROLE_LOG, explain_run, RECORD_CALL},
    {"matter.report", ROLE_LOG, report_run, RECORD_CALL},
    {NULL, 0, NULL, RECORD_CALL},
};
