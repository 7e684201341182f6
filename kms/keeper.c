/*
 * keeper.c - the keeper's loop and its jobs: the sweeper, new wrapping keys, the proof of the root,
 * figures from the database.
 *
 * Each job is a timer that asks something and a callback that arms the timer again; a job that
 * finds database or HSM away does nothing and comes back.
 */
#include "kms/keeper.h"

#include <event2/event.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/admin.h"
#include "kms/audit.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/destroy.h"
#include "kms/fault.h"
#include "kms/harden.h"
#include "kms/mainkey.h"
#include "kms/metrics.h"
#include "kms/revoked.h"
#include "kms/rotation.h"
#include "kms/shared.h"
#include "proto/err.h"
#include "proto/json.h"

#define DB_CONNECTIONS 4 /* a sweep, a rotation, a destruction, and one for operators */
#define SWEEP_MS       10000
#define SWEEP_MORE_MS  100 /* after a full batch */
#define SWEEP_BATCH    1000
#define ROOT_MS        300000
#define ROOT_AGAIN_MS  2000
#define KEYS_MS        60000
#define STATS_MS       15000
#define STATS_FIRST_MS 1000

static const struct db_statement statements[KS_N] = {
    [KS_SERVER_CHECK] = {"server_check", "SELECT kms.server_check()", 0},
    [KS_STATS] = {"stats", "SELECT kms.stats()", 0},
    [KS_ROOT_GET] = {"root_get", "SELECT root, wrapped, sentinel, state FROM kms.root_get()", 0},
    /* root, kcv, wrapped, sentinel, actor */
    [KS_ROOT_ADD] = {"root_add", "SELECT kms.root_add($1, $2, $3, $4, $5)", 5},
    [KS_SWEEP] = {"sweep", "SELECT kms.sweep($1)", 1},
    /* max_age_ms, max_wraps */
    [KS_KEYS_DUE] = {"wrapping_keys_due",
                     "SELECT org, org_name, generation, parent"
                     "  FROM kms.wrapping_keys_due($1, $2)",
                     2},
    /* op, org, generation, root, wrapped, kcv, actor */
    [KS_KEY_ADD] = {"wrapping_key_add",
                    "SELECT verdict, result FROM kms.wrapping_key_add($1, $2, $3, $4, $5, $6, $7)",
                    7},
    /* op, name, org, generation, root, wrapped, kcv, actor */
    [KS_ORG_ADD] = {"org_add",
                    "SELECT verdict, result FROM kms.org_add($1, $2, $3, $4, $5, $6, $7, $8)", 8},
    [KS_ORGS_LIST] = {"orgs_list", "SELECT kms.orgs_list()", 0},
    [KS_ORG_SHOW] = {"org_show", "SELECT kms.org_show($1)", 1},
    /* op, name, state, actor */
    [KS_ORG_SET_STATE] = {"org_set_state",
                          "SELECT verdict, result FROM kms.org_set_state($1, $2, $3, $4)", 4},
    /* id, actor */
    [KS_KEY_SHOW] = {"key_show", "SELECT kms.key_show($1, $2)", 2},
    [KS_RESOURCE_SHOW] = {"resource_show", "SELECT kms.resource_show($1, $2)", 2},
    /* organisation's name or NULL, after, limit */
    [KS_AUDIT_TAIL] = {"audit_tail", "SELECT t FROM kms.audit_tail($1, $2, $3) AS t", 3},
    /* op, actor, action, verdict, detail */
    [KS_ADMIN_RECORD] = {"admin_record", "SELECT kms.admin_record($1, $2, $3, $4, $5)", 5},
    /* op, action, arguments, actor, uid, least number of officers */
    [KS_CONTROL_ACT] = {"control_act",
                        "SELECT verdict, result FROM kms.control_act($1, $2, $3, $4, $5, $6)", 6},
    /* state or NULL */
    [KS_APPROVAL_LIST] = {"approval_list", "SELECT kms.approval_list($1)", 1},
    /* id, actor, uid */
    [KS_APPROVAL_SHOW] = {"approval_show", "SELECT kms.approval_show($1, $2, $3)", 3},
    /* op, id, hash or NULL, actor, uid */
    [KS_APPROVAL_APPROVE] = {"approval_approve",
                             "SELECT verdict, result"
                             "  FROM kms.approval_approve($1, $2, $3, $4, $5)",
                             5},
    /* op, id, actor, uid, why or NULL */
    [KS_APPROVAL_REJECT] = {"approval_reject",
                            "SELECT verdict, result FROM kms.approval_reject($1, $2, $3, $4, $5)",
                            5},
    [KS_APPROVALS_EXPIRE] = {"approvals_expire", "SELECT kms.approvals_expire()", 0},
    /* an organisation's name or NULL; likewise of settings, matters, canaries */
    [KS_PURPOSES_LIST] = {"purposes_list", "SELECT kms.purposes_list($1)", 1},
    [KS_SERVICES_LIST] = {"services_list", "SELECT kms.services_list()", 0},
    [KS_SERVICE_SHOW] = {"service_show", "SELECT kms.service_show($1)", 1},
    [KS_SETTINGS_LIST] = {"settings_list", "SELECT kms.settings_list($1)", 1},
    /* and a state or NULL */
    [KS_MATTER_LIST] = {"matter_list", "SELECT kms.matter_list($1, $2)", 2},
    [KS_MATTER_SHOW] = {"matter_show", "SELECT kms.matter_show($1)", 1},
    [KS_CANARY_LIST] = {"canary_list", "SELECT kms.canary_list($1)", 1},
    /* issuers, serials, source, actor */
    [KS_CERTIFICATES_REVOKED] = {"certificates_revoked",
                                 "SELECT kms.certificates_revoked($1, $2, $3, $4)", 4},
    /* this keeper, the change up to which it has looked (NULL: none) */
    [KS_MAIN_KEY_WORK] = {"main_key_work", "SELECT kms.main_key_work($1, $2)", 2},
    /* org, op, verdict, args */
    [KS_MAIN_KEY_END] = {"main_key_end", "SELECT kms.main_key_end($1, $2, $3, $4)", 4},
    /* org, main key */
    [KS_MAIN_KEY_GONE] = {"main_key_gone", "SELECT kms.main_key_gone($1, $2)", 2},
    [KS_MAIN_KEYS_LIST] = {"main_keys_list", "SELECT kms.main_keys_list($1)", 1},
    /* this keeper, its node's name, has it just started */
    [KS_NODE_TURN] = {"node_turn", "SELECT kms.node_turn($1, $2, $3::text::boolean)", 3},
    /* this keeper, root, opened, gone, why or NULL */
    [KS_NODE_ROOT] = {"node_root",
                      "SELECT kms.node_root($1, $2, $3::text::boolean, $4::text::boolean, $5)", 5},
    /* rotation, why or NULL */
    [KS_ROTATION_PROBLEM] = {"rotation_problem", "SELECT kms.rotation_problem($1, $2)", 2},
    /* rotation, the id that it has ("" none), the one that it gets */
    [KS_ROOT_NAME] = {"root_rotation_name", "SELECT kms.root_rotation_name($1, $2, $3)", 3},
    /* rotation, root, kcv, wrapped, sentinel */
    [KS_ROOT_MADE] = {"root_rotation_made", "SELECT kms.root_rotation_made($1, $2, $3, $4, $5)", 5},
    [KS_ROOT_ADVANCE] = {"root_rotation_advance", "SELECT kms.root_rotation_advance($1)", 1},
    /* after: organisation, generation; at most so many */
    [KS_REWRAP_NEXT] = {"rewrap_next",
                        "SELECT org, generation, root, wrapped FROM kms.rewrap_next($1, $2, $3)",
                        3},
    /* rotation, root, organisations, generations, what they were, what they are to be */
    [KS_REWRAP_STORE] = {"rewrap_store", "SELECT kms.rewrap_store($1, $2, $3, $4, $5, $6)", 6},
    [KS_CHECK_NEXT] = {"check_next",
                       "SELECT org, generation, root, wrapped, channel, object, blob"
                       "  FROM kms.check_next($1, $2, $3)",
                       3},
    /* rotation, opened, failed, why */
    [KS_ROOT_END] = {"root_rotation_end", "SELECT kms.root_rotation_end($1, $2, $3, $4)", 4},
    /* seconds that the first has waited at least */
    [KS_RESEAL_BEGIN] = {"reseal_begin", "SELECT kms.reseal_begin($1)", 1},
    [KS_RESEAL_NEXT] = {"reseal_next",
                        "SELECT rotation, org, part, object, generation, root, wrapped, blob,"
                        "       to_generation, to_root, to_wrapped, scanned, more"
                        "  FROM kms.reseal_next($1)",
                        1},
    /* rotation, org, part, scanned, more, objects, befores, generations, to, afters, failed */
    [KS_RESEAL_STORE] = {"reseal_store",
                         "SELECT kms.reseal_store($1, $2, $3, $4, $5::text::boolean, $6, $7, $8,"
                         "                        $9, $10, $11)",
                         11},
    [KS_GENERATIONS_UNNEEDED] = {"generations_unneeded", "SELECT kms.generations_unneeded()", 0},
    [KS_ROOTS_LIST] = {"roots_list", "SELECT kms.roots_list()", 0},
    [KS_ROTATIONS_STATUS] = {"rotations_status", "SELECT kms.rotations_status()", 0},
    /* op, action, args, actor, uid */
    [KS_FREEZE_ACT] = {"freeze_act",
                       "SELECT verdict, result FROM kms.freeze_act($1, $2, $3, $4, $5)", 5},
    [KS_FREEZE_PREVIEW] = {"freeze_preview", "SELECT verdict, result FROM kms.freeze_preview($1)",
                           1},
    [KS_TOKEN_KEYS] = {"token_keys", "SELECT kms.token_keys()", 0},
    [KS_FREEZES_LIST] = {"freezes_list", "SELECT kms.freezes_list($1)", 1},
    /* the kernel's id of this run of the machine, milliseconds of it */
    [KS_CLOCK_TICK] = {"clock_tick", "SELECT kms.clock_tick($1, $2)", 2},
    [KS_CLOCK_SHOW] = {"clock_show", "SELECT kms.clock_show()", 0},
    [KS_DESTRUCTION_WAITING] = {"destruction_waiting", "SELECT kms.destruction_waiting($1)", 1},
    /* this keeper, whether to look ahead, items of each kind */
    [KS_DESTROY_WORK] = {"destroy_work", "SELECT kms.destroy_work($1, $2::text::boolean, $3)", 3},
    /* period key, kcv */
    [KS_PERIOD_MADE] = {"period_made", "SELECT kms.period_made($1, $2)", 2},
    [KS_PERIOD_RENEW] = {"period_renew", "SELECT kms.period_renew($1)", 1},
    /* org, period key, wrapped, kcv */
    [KS_MONTH_KEY_ADD] = {"month_key_add", "SELECT kms.month_key_add($1, $2, $3, $4)", 4},
    /* orgs, objects, kinds, befores, generations, generations to be, afters */
    [KS_RESEAL_DONE] = {"reseal_done", "SELECT kms.reseal_done($1, $2, $3, $4, $5, $6, $7)", 7},
    /* this keeper, a period key or an organisation */
    [KS_NODE_FORGOT] = {"node_forgot", "SELECT kms.node_forgot($1, $2)", 2},
    /* org, certificate, note */
    [KS_CERTIFICATE_SIGNED] = {"certificate_signed", "SELECT kms.certificate_signed($1, $2, $3)",
                               3},
    /* rows in one transaction */
    [KS_DESTRUCTIONS_DO] = {"destructions_do", "SELECT kms.destructions_do($1)", 1},
    /* organisation's name or NULL, state or NULL */
    [KS_DESTRUCTION_LIST] = {"destruction_list", "SELECT kms.destruction_list($1, $2)", 2},
    /* organisation's name or NULL, limit */
    [KS_CERTIFICATE_LIST] = {"certificate_list", "SELECT kms.certificate_list($1, $2)", 2},
    [KS_CERTIFICATE_SHOW] = {"certificate_show", "SELECT kms.certificate_show($1)", 1},
    /* organisation's name or NULL, until when (0: tonight), items */
    [KS_RETENTION_PREVIEW] = {"retention_preview",
                              "SELECT kms.retention_preview($1, nullif($2::bigint, 0), $3)", 3},
};

static void
arm(struct event *timer, int ms)
{
    struct timeval tv = {ms / 1000, (ms % 1000) * 1000};

    evtimer_add(timer, &tv);
}

/* --- the sweeper: what is past its time --- */

static void
sweep_done(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;
    struct sweeper *s = &k->sweeper;
    struct {
        const char *name;
        uint64_t *total;
    } counts[] = {{"channels", &s->channels},
                  {"unbound_keys", &s->unbound_keys},
                  {"resources", &s->resources},
                  {"keys", &s->keys},
                  {"recordings", &s->recordings}};
    const char *text;
    json_t *j = NULL;
    size_t len;
    bool more = false;
    long long removed = 0;

    k->sweeping = false;
    if (err != KMS_OK || PQntuples(res) != 1 || (text = db_get_json(res, 0, 0, &len)) == NULL ||
        kms_json_parse(&j, text, len) != KMS_OK) {
        s->failures++;
        arm(k->sweep_timer, SWEEP_MS);
        return;
    }
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        json_int_t n = json_integer_value(json_object_get(j, counts[i].name));

        if (n <= 0)
            continue;
        *counts[i].total += (uint64_t)n;
        removed += n;
        more = more || n >= SWEEP_BATCH;
    }
    json_decref(j);
    s->runs++;
    s->last = (long long)time(NULL);
    s->last_ms = now_ms() - k->sweep_started;
    if (removed > 0)
        log_info("swept", "removed%l", removed, "ms%l", (long long)s->last_ms, NULL);
    arm(k->sweep_timer, more ? SWEEP_MORE_MS : SWEEP_MS);
}

/* Who asks for what has expired is told so in any case; this ends it and writes its entry. */
static void
approvals_expired(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    int32_t n = 0;

    if (err != KMS_OK)
        log_warn("approvals were not looked at", "why", kms_strerror(err), NULL);
    else if (db_get_int4(res, 0, 0, &n) && n > 0)
        log_info("approvals have expired", "n%d", n, NULL);
}

static void
sweep_start(evutil_socket_t fd, short what, void *arg)
{
    struct keeper *k = arg;
    struct db_params p;

    if (k->sweeping)
        return;
    if (!db_ready(k->db)) {
        arm(k->sweep_timer, SWEEP_MS);
        return;
    }
    db_params_init(&p);
    if (db_call(k->db, KS_APPROVALS_EXPIRE, &p, approvals_expired, k) != KMS_OK)
        log_warn("approvals were not looked at: out of memory", NULL);
    db_params_init(&p);
    db_int4(&p, SWEEP_BATCH);
    k->sweep_started = now_ms();
    if (db_call(k->db, KS_SWEEP, &p, sweep_done, k) == KMS_OK) {
        k->sweeping = true;
    } else {
        k->sweeper.failures++;
        arm(k->sweep_timer, SWEEP_MS);
    }
}

/* --- new wrapping keys, one after the other: few are due at a time, and the HSM has clients to
 * serve --- */

struct rotation {
    size_t n, at;
    struct due {
        struct uuid org;
        int32_t generation; /* the present one */
        bool has_parent;
        struct uuid parent; /* a main key that the new one belongs under; else the root */
    } due[];
};

static void rotation_step(struct keeper *k);

/* failed: the rest waits for the next round. */
static void
rotation_end(struct keeper *k, const char *failed)
{
    if (failed != NULL) {
        k->rotation_failures++;
        log_warn("new wrapping key not made", "why", failed, NULL);
    }
    free(k->rotation);
    k->rotation = NULL;
    k->rotating = false;
    arm(k->keys_timer, KEYS_MS);
}

static void
rotation_added(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;
    struct due *d = &k->rotation->due[k->rotation->at];
    char org[UUID_TEXT + 1];
    int32_t verdict = 0;

    if (err != KMS_OK || PQntuples(res) != 1 || !db_get_int4(res, 0, 0, &verdict)) {
        rotation_end(k, err != KMS_OK ? kms_strerror(err) : "the database's answer is malformed");
        return;
    }
    FAULT("rotation.wrapping_key.added");
    uuid_format(org, &d->org);
    /* A verdict other than 0: another node was quicker. */
    if (verdict == 0) {
        k->rotations++;
        log_info("organisation has a new wrapping key", "org", org, "generation%d",
                 d->generation + 1, NULL);
    }
    k->rotation->at++;
    rotation_step(k);
}

static void
rotation_made(void *ctx, uint64_t id, int err, const unsigned char root[HSM_ID_LEN],
              const unsigned char wrapped[HSM_WRAPPED_LEN], const unsigned char kcv[HSM_KCV_LEN])
{
    struct keeper *k = ctx;
    struct due *d = &k->rotation->due[k->rotation->at];
    struct db_params p;
    struct uuid op, root_id;

    if (err != KMS_OK || uuid_random(&op) != KMS_OK) {
        rotation_end(k, kms_strerror(err));
        return;
    }
    FAULT("rotation.wrapping_key.made");
    memcpy(root_id.b, root, UUID_LEN);
    db_params_init(&p);
    db_uuid(&p, &op);
    db_uuid(&p, &d->org);
    db_int4(&p, d->generation + 1);
    db_uuid(&p, &root_id);
    db_bytes(&p, wrapped, HSM_WRAPPED_LEN);
    db_bytes(&p, kcv, HSM_KCV_LEN);
    db_text(&p, "keeper");
    if (db_call(k->db, KS_KEY_ADD, &p, rotation_added, k) != KMS_OK)
        rotation_end(k, "out of memory");
}

static void
rotation_step(struct keeper *k)
{
    const struct due *d = &k->rotation->due[k->rotation->at];
    int r;

    if (k->rotation->at == k->rotation->n) {
        rotation_end(k, NULL);
        return;
    }
    r = hsm_wrapping_key_new_under(k->hsm, d->has_parent ? d->parent.b : k->root_id.b,
                                   rotation_made, k, 0);
    if (r != KMS_OK)
        rotation_end(k, kms_strerror(r));
}

static void
keys_due(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;
    int n = err == KMS_OK ? PQntuples(res) : 0;
    struct rotation *r = NULL;

    if (n > 0)
        r = calloc(1, sizeof(*r) + (size_t)n * sizeof(r->due[0]));
    if (r == NULL) {
        rotation_end(k, err != KMS_OK ? kms_strerror(err) : n > 0 ? "out of memory" : NULL);
        return;
    }
    k->rotation = r;
    r->n = (size_t)n;
    for (int i = 0; i < n; i++) {
        if (!db_get_uuid(res, i, 0, &r->due[i].org) ||
            !db_get_int4(res, i, 2, &r->due[i].generation)) {
            rotation_end(k, "the database's answer is malformed");
            return;
        }
        r->due[i].has_parent = db_get_uuid(res, i, 3, &r->due[i].parent);
    }
    rotation_step(k);
}

void
keeper_make_keys(struct keeper *k)
{
    if (!k->rotating)
        arm(k->keys_timer, 0);
}

static void
keys_start(evutil_socket_t fd, short what, void *arg)
{
    struct keeper *k = arg;
    struct db_params p;

    if (k->rotating)
        return;
    /* Not under a root that is not proven: a key made there could be one that no other node opens.
     */
    if (!db_ready(k->db) || !hsm_ready(k->hsm) || k->root != ROOT_PROVEN) {
        arm(k->keys_timer, KEYS_MS);
        return;
    }
    k->rotating = true;
    db_params_init(&p);
    db_int8(&p, k->cfg->wrapping_key * 1000);
    db_int8(&p, k->cfg->wrapping_key_wraps);
    if (db_call(k->db, KS_KEYS_DUE, &p, keys_due, k) != KMS_OK)
        rotation_end(k, "out of memory");
}

/* --- the proof of the root ---
 *
 *   root_start -> kms.root_get
 *     a root is recorded:  root_prove: hsmd opens the sentinel that was made under it
 *     none is recorded:    root_make: a sentinel under the token's own root -> kms.root_add; from
 * the start again
 */

const char *
root_state_name(enum root_state s)
{
    switch (s) {
    case ROOT_PROVEN:
        return "proven";
    case ROOT_WRONG:
        return "wrong";
    default:
        return "unknown";
    }
}

/* Ends one round with what it found; why: for the log, NULL when there is nothing to say. */
static void
root_end(struct keeper *k, enum root_state state, const char *why)
{
    char id[UUID_TEXT + 1];

    k->rooting = false;
    uuid_format(id, &k->root_id);
    if (state == ROOT_WRONG)
        log_error("this node's token does not hold the root key of the database; it must not serve",
                  "root", id, "why", why, NULL);
    else if (why != NULL)
        log_warn("root key not proven yet", "why", why, NULL);
    else if (state == ROOT_PROVEN && k->root != ROOT_PROVEN) {
        log_info("root key proven", "root", id, NULL);
        /* The installation's own wrapping key may not be there yet: services wait for it. */
        if (!k->rotating)
            arm(k->keys_timer, 0);
    }
    /* An outage says nothing about the token: what was found before still holds. */
    if (state != ROOT_UNKNOWN)
        k->root = state;
    atomic_store(&k->sh->root_wrong, k->root == ROOT_WRONG);
    arm(k->root_timer, state == ROOT_PROVEN ? ROOT_MS : ROOT_AGAIN_MS);
}

static void
root_opened(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
            const unsigned char *blob)
{
    struct keeper *k = ctx;

    switch (err) {
    case KMS_OK:
        /* The token may hold others: new keys go under this one by its id. */
        root_end(k, ROOT_PROVEN, NULL);
        break;
    case KMS_ERR_NOT_FOUND:
        root_end(k, ROOT_WRONG, "no such root in the token");
        break;
    case KMS_ERR_CRYPTO:
        root_end(k, ROOT_WRONG, "the token's root of that name does not open the sentinel");
        break;
    default:
        root_end(k, ROOT_UNKNOWN, kms_strerror(err));
    }
}

static void
root_added(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;

    k->rooting = false;
    /* Whoever was first, this node or another: prove the root that is recorded now. */
    if (err == KMS_OK)
        keeper_check_root(k);
    else
        root_end(k, ROOT_UNKNOWN, kms_strerror(err));
}

/* The sentinel's wrapping key, on its way through the two HSM calls. */
struct sentinel {
    struct keeper *k;
    struct hsm_wrapping_key wk;
    unsigned char kcv[HSM_KCV_LEN];
};

static void
sentinel_made(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
              const unsigned char *blob)
{
    struct sentinel *s = ctx;
    struct keeper *k = s->k;
    struct db_params p;
    struct uuid root;

    if (err != KMS_OK) {
        root_end(k, ROOT_UNKNOWN, kms_strerror(err));
        free(s);
        return;
    }
    memcpy(root.b, s->wk.root, UUID_LEN);
    db_params_init(&p);
    db_uuid(&p, &root);
    db_bytes(&p, s->kcv, sizeof(s->kcv));
    db_bytes(&p, s->wk.wrapped, sizeof(s->wk.wrapped));
    db_bytes(&p, blob, HSM_BLOB_LEN);
    db_text(&p, "keeper");
    free(s);
    if (db_call(k->db, KS_ROOT_ADD, &p, root_added, k) != KMS_OK)
        root_end(k, ROOT_UNKNOWN, "out of memory");
}

static void
sentinel_key_made(void *ctx, uint64_t id, int err, const unsigned char root[HSM_ID_LEN],
                  const unsigned char wrapped[HSM_WRAPPED_LEN],
                  const unsigned char kcv[HSM_KCV_LEN])
{
    struct sentinel *s = ctx;
    struct keeper *k = s->k;

    if (err == KMS_OK) {
        memcpy(s->wk.root, root, HSM_ID_LEN);
        memcpy(s->wk.wrapped, wrapped, HSM_WRAPPED_LEN);
        memcpy(s->kcv, kcv, HSM_KCV_LEN);
        /* Its content is random and of no use; that it opens is the proof. */
        err = hsm_generate(k->hsm, &s->wk, HSM_SENTINEL, s->wk.root, sentinel_made, s, 0, 0);
    }
    if (err != KMS_OK) {
        root_end(k, ROOT_UNKNOWN, kms_strerror(err));
        free(s);
    }
}

static void
root_make(struct keeper *k)
{
    struct sentinel *s;
    int r;

    if ((s = calloc(1, sizeof(*s))) == NULL) {
        root_end(k, ROOT_UNKNOWN, "out of memory");
        return;
    }
    s->k = k; /* organisation nil and generation 0 stand for the installation itself */
    if ((r = hsm_wrapping_key_new(k->hsm, sentinel_key_made, s, 0)) != KMS_OK) {
        root_end(k, ROOT_UNKNOWN, kms_strerror(r));
        free(s);
    }
}

static void
root_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;
    struct hsm_wrapping_key wk = {.generation = 0};
    unsigned char sentinel[HSM_BLOB_LEN];
    struct uuid root;
    int r;

    if (err != KMS_OK) {
        root_end(k, ROOT_UNKNOWN, kms_strerror(err));
        return;
    }
    for (int i = 0; i < PQntuples(res); i++) {
        const char *state = db_get_text(res, i, 3);

        if (state == NULL || strcmp(state, "active") != 0)
            continue;
        if (!db_get_uuid(res, i, 0, &root) ||
            !db_get_bytes(res, i, 1, wk.wrapped, sizeof(wk.wrapped)) ||
            !db_get_bytes(res, i, 2, sentinel, sizeof(sentinel))) {
            root_end(k, ROOT_UNKNOWN, "the database's answer is malformed");
            return;
        }
        k->root_id = root;
        memcpy(wk.root, root.b, HSM_ID_LEN);
        r = hsm_unwrap(k->hsm, &wk, HSM_SENTINEL, root.b, sentinel, root_opened, k, 0, 0);
        if (r != KMS_OK)
            root_end(k, ROOT_UNKNOWN, kms_strerror(r));
        return;
    }
    root_make(k);
}

void
keeper_check_root(struct keeper *k)
{
    struct db_params p;

    if (k->rooting)
        return;
    if (!db_ready(k->db) || !hsm_ready(k->hsm)) {
        arm(k->root_timer, ROOT_AGAIN_MS);
        return;
    }
    k->rooting = true;
    db_params_init(&p);
    if (db_call(k->db, KS_ROOT_GET, &p, root_got, k) != KMS_OK)
        root_end(k, ROOT_UNKNOWN, "out of memory");
}

static void
root_start(evutil_socket_t fd, short what, void *arg)
{
    keeper_check_root(arg);
}

/* --- figures from the database, for status and metrics --- */

static void
stats_done(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;
    const char *text;
    json_t *j = NULL;
    size_t len;

    k->asking = false;
    arm(k->stats_timer, STATS_MS);
    if (err != KMS_OK || PQntuples(res) != 1 || (text = db_get_json(res, 0, 0, &len)) == NULL ||
        kms_json_parse(&j, text, len) != KMS_OK)
        return;
    json_decref(k->stats);
    k->stats = j;
}

static void
server_done(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct keeper *k = ctx;
    const char *text;
    json_t *j = NULL;
    size_t len;
    struct db_params p;

    if (err == KMS_OK && PQntuples(res) == 1 && (text = db_get_json(res, 0, 0, &len)) != NULL &&
        kms_json_parse(&j, text, len) == KMS_OK) {
        json_decref(k->server);
        k->server = j;
        db_params_init(&p);
        if (db_call(k->db, KS_STATS, &p, stats_done, k) == KMS_OK)
            return;
    }
    k->asking = false;
    arm(k->stats_timer, STATS_MS);
}

static void
stats_start(evutil_socket_t fd, short what, void *arg)
{
    struct keeper *k = arg;
    struct db_params p;

    if (k->asking)
        return;
    if (!db_ready(k->db)) {
        arm(k->stats_timer, STATS_FIRST_MS);
        return;
    }
    db_params_init(&p);
    if (db_call(k->db, KS_SERVER_CHECK, &p, server_done, k) == KMS_OK)
        k->asking = true;
    else
        arm(k->stats_timer, STATS_MS);
}

/* --- readiness --- */

const char *
worker_state_name(int state)
{
    switch (state) {
    case WS_STARTING:
        return "starting";
    case WS_SERVING:
        return "serving";
    case WS_DRAINING:
        return "draining";
    default:
        return "gone";
    }
}

bool
keeper_ready(const struct keeper *k, void (*why)(void *ctx, const char *text), void *ctx)
{
    char text[128];
    int bad = 0;

#define NOT_READY(...)                                                                             \
    do {                                                                                           \
        bad++;                                                                                     \
        snprintf(text, sizeof(text), __VA_ARGS__);                                                 \
        if (why != NULL)                                                                           \
            why(ctx, text);                                                                        \
    } while (0)

    if (atomic_load(&k->sh->draining))
        NOT_READY("draining");
    if (!db_ready(k->db))
        NOT_READY("keeper: database away");
    if (!hsm_ready(k->hsm))
        NOT_READY("keeper: HSM away, or its keys are not made yet");
    if (k->root != ROOT_PROVEN)
        NOT_READY("root key %s", root_state_name(k->root));
    for (unsigned i = 0; i < k->sh->workers; i++) {
        struct shared_worker *w = &k->sh->worker[i];
        int state = atomic_load(&w->state);

        if (state != WS_SERVING)
            NOT_READY("worker %u: %s", i, worker_state_name(state));
        if (!atomic_load(&w->db_ready))
            NOT_READY("worker %u: database away", i);
        if (!atomic_load(&w->hsm_ready))
            NOT_READY("worker %u: HSM away", i);
        if (!atomic_load(&w->keys_ready))
            NOT_READY("worker %u: no key set to check tokens with", i);
    }
#undef NOT_READY
    return bad == 0;
}

long long
process_rss(long pid)
{
    char path[64];
    long long size, resident = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%ld/statm", pid);
    if (pid <= 0 || (f = fopen(path, "re")) == NULL)
        return 0;
    if (fscanf(f, "%lld %lld", &size, &resident) != 2)
        resident = 0;
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

/* --- the loop --- */

static void
db_changed(void *ctx, bool ready)
{
    struct keeper *k = ctx;

    log_info(ready ? "database connected" : "database away", NULL);
    if (ready) {
        arm(k->root_timer, 0);
        arm(k->stats_timer, 0);
        revoked_tell(k->revoked);
    }
}

static void
hsm_changed(void *ctx, bool ready)
{
    struct keeper *k = ctx;

    log_info(ready ? "HSM connected" : "HSM away", NULL);
    if (ready)
        arm(k->root_timer, 0);
}

/* Fresh connections to what the configuration names now. */
static bool
connect_all(struct keeper *k)
{
    k->db = db_new(k->base, k->cfg->keeper_url, DB_CONNECTIONS, statements, KS_N,
                   (int)k->cfg->db_deadline * 1000, k->cfg->db_require_durable);
    k->hsm = hsm_new(k->base, k->cfg->hsm_socket, HSM_MANAGE, (int)k->cfg->hsm_deadline * 1000);
    if (k->db == NULL || k->hsm == NULL)
        return false;
    db_on_change(k->db, db_changed, k);
    hsm_on_change(k->hsm, hsm_changed, k);
    return true;
}

static void
on_hup(evutil_socket_t fd, short what, void *arg)
{
    struct keeper *k = arg;
    struct config *c;

    if (config_read(&c, k->config_path, stderr) != KMS_OK) {
        log_error("reload refused: the configuration is wrong; going on with the old one", "file",
                  k->config_path, NULL);
        return;
    }
    /* Where database and HSM are changes with a restart; the rest from now on. */
    if (strcmp(c->keeper_url, k->cfg->keeper_url) != 0 ||
        strcmp(c->hsm_socket, k->cfg->hsm_socket) != 0)
        log_warn("the keeper takes a new database or HSM address at its next start", NULL);
    k->cfg = c;
    config_free(k->own);
    k->own = c;
    revoked_reload(k->revoked);
    log_info("reloaded", NULL);
}

static void
on_term(evutil_socket_t fd, short what, void *arg)
{
    struct keeper *k = arg;

    event_base_loopbreak(k->base);
}

static void
event_drop(struct event *e)
{
    if (e != NULL)
        event_free(e);
}

static void
keeper_release(struct keeper *k)
{
    /* Their callbacks answer calls of the admin socket, so that one goes last. */
    metrics_free(k->metrics);
    rotator_stop(k->rotator);
    destroyer_stop(k->destroyer);
    db_free(k->db);
    k->db = NULL; /* calls that end below write no entry any more */
    audit_stop(k->audit);
    main_keys_stop(k->main_keys);
    revoked_free(k->revoked);
    hsm_free(k->hsm);
    main_keys_free(k->main_keys);
    destroyer_free(k->destroyer);
    rotator_free(k->rotator);
    audit_free(k->audit);
    admin_free(k->admin);
    free(k->rotation);
    json_decref(k->stats);
    json_decref(k->server);
    config_free(k->own);
}

int
keeper_main(const struct config *cfg, struct shared *sh, int admin_fd, int metrics_fd,
            const char *config_path)
{
    struct keeper k = {.cfg = cfg, .sh = sh, .config_path = config_path};
    struct event *hup = NULL, *term = NULL;
    int status = 1, r;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    if ((k.base = event_base_new()) == NULL ||
        (k.sweep_timer = evtimer_new(k.base, sweep_start, &k)) == NULL ||
        (k.root_timer = evtimer_new(k.base, root_start, &k)) == NULL ||
        (k.keys_timer = evtimer_new(k.base, keys_start, &k)) == NULL ||
        (k.stats_timer = evtimer_new(k.base, stats_start, &k)) == NULL ||
        (hup = evsignal_new(k.base, SIGHUP, on_hup, &k)) == NULL ||
        (term = evsignal_new(k.base, SIGTERM, on_term, &k)) == NULL || !connect_all(&k) ||
        (k.admin = admin_new(&k, admin_fd)) == NULL || (k.audit = audit_new(&k)) == NULL ||
        (k.revoked = revoked_new(&k)) == NULL || (k.main_keys = main_keys_new(&k)) == NULL ||
        (k.rotator = rotator_new(&k)) == NULL || (k.destroyer = destroyer_new(&k)) == NULL ||
        (metrics_fd >= 0 && (k.metrics = metrics_new(&k, metrics_fd)) == NULL)) {
        log_error("the keeper could not start: out of memory", NULL);
        goto out;
    }
    evsignal_add(hup, NULL);
    evsignal_add(term, NULL);
    arm(k.sweep_timer, SWEEP_MS);
    arm(k.root_timer, ROOT_AGAIN_MS);
    arm(k.keys_timer, KEYS_MS);
    arm(k.stats_timer, STATS_FIRST_MS);
    if ((r = harden_keeper()) != KMS_OK)
        log_warn("the keeper could not be confined", "why", kms_strerror(r), NULL);
    log_info("keeper started", NULL);
    signals_take();
    event_base_dispatch(k.base);
    status = 0;
out:
    keeper_release(&k);
    event_drop(term);
    event_drop(hup);
    event_drop(k.stats_timer);
    event_drop(k.keys_timer);
    event_drop(k.root_timer);
    event_drop(k.sweep_timer);
    if (k.base != NULL)
        event_base_free(k.base);
    return status;
}
