/*
 * state.c - requests gathered into calls of the SQL functions, and their rows handed back.
 *
 * Each call is a row of `calls`: which statement, what it adds to the common arrays, how a row is
 * read.  sql/README.md has the functions' other side.
 */
#include "kms/state.h"

#include <event2/event.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "hsm/log.h"
#include "kms/channel.h"
#include "kms/mainkey_req.h"
#include "kms/req.h"
#include "kms/service.h"
#include "kms/worker.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"

#define TICK_US 50000 /* the longest that a busy loop holds requests back: see PRIO_GATHER */

#define COMMON "$1, $2, $3, $4, $5" /* ops, orgs, channels, requests, clients */

const struct db_statement state_statements[SC_STATEMENTS] = {
    [SC_KEYS_RELEASE] =
        {"keys_release",
         "SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id,"
         " created, expires, bound, resource"
         " FROM kms.keys_release(" COMMON ", $6, $7, $8)", /* keys, behalf, officers */
         8},
    [SC_KEYS_CREATE] = {"keys_create",
                        "SELECT n, verdict, created, expires"
                        " FROM kms.keys_create(" COMMON ", $6, $7, $8, $9, $10)",
                        /* generations, key_items, key_ids, key_blobs, unbound_ms */
                        10},
    [SC_KEYS_BIND] =
        {"keys_bind",
         "SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id,"
         " created, expires, bound, resource"
         " FROM kms.keys_bind(" COMMON ", $6, $7, $8)", /* keys, resources, bound_ms */
         8},
    [SC_RESOURCE_KEYS] =
        {"resource_keys",
         "SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id,"
         " created, expires, bound, resource"
         " FROM kms.resource_keys(" COMMON ", $6, $7, $8, $9, $10, $11, $12)",
         /* resources, after, before, counts, behalf, officers, max_keys */
         12},
    [SC_CHANNEL_CREATE] = {"channel_create",
                           "SELECT n, verdict, created, expires"
                           " FROM kms.channel_create($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                           /* ops, orgs, requests, clients, channels, kinds, subjects, blobs,
                              generations, lifetime_ms */
                           10},
    [SC_CHANNEL_DELETE] = {"channel_delete",
                           "SELECT n, verdict, result FROM kms.channel_delete(" COMMON
                           ", $6)", /* targets */
                           6},
    [SC_CHANNELS_CHECK] = {"channels_check", "SELECT n, verdict FROM kms.channels_check($1, $2)",
                           2},
    [SC_RESOURCE_CREATE] = {"resource_create",
                            "SELECT n, verdict, result FROM kms.resource_create(" COMMON ", $6)",
                            6},
    [SC_RESOURCE_GET] = {"resource_get",
                         "SELECT n, verdict, result FROM kms.resource_get(" COMMON ", $6)", 6},
    [SC_AUTHORIZATIONS_CREATE] = {"authorizations_create",
                                  "SELECT n, verdict, result FROM kms.authorizations_create(" COMMON
                                  ", $6)",
                                  6},
    [SC_AUTHORIZATIONS_LIST] = {"authorizations_list",
                                "SELECT n, verdict, result FROM kms.authorizations_list(" COMMON
                                ", $6)",
                                6},
    [SC_AUTHORIZATIONS_DELETE] = {"authorizations_delete",
                                  "SELECT n, verdict, result FROM kms.authorizations_delete(" COMMON
                                  ", $6)",
                                  6},
    [SC_REFUSALS_RECORD] = {"refusals_record",
                            "SELECT kms.refusals_record(" COMMON ", $6, $7, $8, $9, $10)",
                            /* subjects, actions, verdicts, targets, kinds */
                            10},
    [SC_RESOURCE_RELEASES] = {"resource_releases",
                              "SELECT n, verdict, result FROM kms.resource_releases(" COMMON
                              ", $6)",
                              6},
    [SC_RESOURCE_KEYS_CREATE] =
        {"resource_keys_create",
         "SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id,"
         " created, expires, bound, resource"
         " FROM kms.resource_keys_create(" COMMON ", $6, $7, $8, $9, $10, $11)",
         /* generations, key_items, key_ids, key_blobs, resources, bound_ms */
         11},
    [SC_RECORDING_CREATE] = {"recording_create",
                             "SELECT n, verdict, result FROM kms.recording_create(" COMMON ", $6)",
                             6},
    [SC_RECORDING_UPDATE] = {"recording_update",
                             "SELECT n, verdict, result FROM kms.recording_update(" COMMON ", $6)",
                             6},
    [SC_RECORDING_GET] = {"recording_get",
                          "SELECT n, verdict, result FROM kms.recording_get(" COMMON ", $6)", 6},
    [SC_RECORDINGS_LIST] = {"recordings_list",
                            "SELECT n, verdict, result FROM kms.recordings_list(" COMMON ", $6)",
                            6},
    [SC_MAIN_KEY] = {"main_key_act",
                     "SELECT n, verdict, result FROM kms.main_key_act(" COMMON ", $6)", 6},
    [SC_RECORDING_DELETE] = {"recording_delete",
                             "SELECT n, verdict, result FROM kms.recording_delete(" COMMON ", $6)",
                             6},
    [SC_MINT_UNDER] = {"mint_under",
                       "SELECT n, verdict, generation, root, wrapped"
                       " FROM kms.mint_under($1, $2, $3, $4)",
                       /* orgs, resources, milliseconds that they last, types of recordings */
                       4},
    [SC_SERVICE_CHANNEL_CREATE] =
        {"service_channel_create",
         "SELECT n, verdict, created, expires, service, rate"
         " FROM kms.service_channel_create($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
         /* ops, requests, clients, channels, identities, thumbs, issuers, serials, not_after,
            jti_hashes, blobs, generations, lifetime_ms */
         13},
    [SC_SERVICE_RELEASE] =
        {"service_release",
         "SELECT n, verdict, key, blob, generation, root, wrapped, org, user_id, client_id,"
         " created, expires, bound, resource, service, purpose, matter, public_key, cursor, why"
         " FROM kms.service_release($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
         /* ops, channels, requests, clients, actions, targets, purposes, matters, after, before,
            counts, cursors, max_keys */
         13},
    [SC_CHANNELS_OPEN] =
        {"channels_open",
         "SELECT n, found, org, org_name, kind, subject, client, blob, generation, root,"
         " wrapped, expires, identity, thumb, rate FROM kms.channels_open($1)",
         1},
    [SC_ORGS_GET] = {"orgs_get",
                     "SELECT n, org, state, generation, root, wrapped FROM kms.orgs_get($1)", 1},
    [SC_WRAPS_ADD] = {"wraps_add", "SELECT kms.wraps_add($1, $2, $3)", 3},
};

TAILQ_HEAD(req_list, req);

struct state {
    struct worker *w;
    struct req_list queue[SC_CALLS];
    size_t waiting[SC_CALLS];
    struct event *gather; /* runs after the events of this turn */
    struct event *tick;   /* gathers in spite of a busy loop; gives up what waited too long */
    unsigned first;       /* where the round over the queues begins: none starves */
};

/* A call on its way: whose it is, element by element. */
struct batch {
    struct state *st;
    enum state_call call;
    int n;
    struct req *reqs[STATE_BATCH]; /* borrowed: a request does not go while it waits */
};

/* --- arrays over the requests of a batch --- */

/* An array with one element a request; rq names the element's request in `put`. */
#define EACH(p, type, put)                                                                         \
    do {                                                                                           \
        int i_;                                                                                    \
        db_array_begin(p, type);                                                                   \
        for (i_ = 0; i_ < b->n; i_++) {                                                            \
            struct req *rq = b->reqs[i_];                                                          \
            put;                                                                                   \
        }                                                                                          \
        db_array_end(p);                                                                           \
    } while (0)

static const char *
behalf(const struct req *rq)
{
    return rq->msg.on_behalf_of;
}

static void
put_common(struct batch *b, struct db_params *p)
{
    EACH(p, DB_UUID, db_put_uuid(p, &rq->op));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->org));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->channel->id));
    EACH(p, DB_TEXT, db_put_text(p, rq->request_id));
    EACH(p, DB_TEXT, db_put_text(p, rq->msg.client_id));
}

static void
put_keys_release(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    EACH(p, DB_UUID, db_put_uuid(p, &rq->msg.uri.id));
    EACH(p, DB_TEXT, db_put_text(p, behalf(rq)));
    EACH(p, DB_BOOL, db_put_bool(p, rq->who.compliance));
}

/* The keys that were made for the requests: whose, their ids, their blobs. */
static void
put_minted(struct batch *b, struct db_params *p)
{
    int i;
    unsigned k;

    EACH(p, DB_INT4, db_put_int4(p, (int32_t)rq->wk.generation));
    db_array_begin(p, DB_INT4);
    for (i = 0; i < b->n; i++)
        for (k = 0; k < b->reqs[i]->n_minted; k++)
            db_put_int4(p, i + 1);
    db_array_end(p);
    db_array_begin(p, DB_UUID);
    for (i = 0; i < b->n; i++)
        for (k = 0; k < b->reqs[i]->n_minted; k++)
            db_put_uuid(p, &b->reqs[i]->minted[k].id);
    db_array_end(p);
    db_array_begin(p, DB_BYTEA);
    for (i = 0; i < b->n; i++)
        for (k = 0; k < b->reqs[i]->n_minted; k++)
            db_put_bytes(p, b->reqs[i]->minted[k].blob, HSM_BLOB_LEN);
    db_array_end(p);
}

static void
put_keys_create(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    put_minted(b, p);
    db_int8(p, b->st->w->cfg->unbound_key * 1000);
}

static void
put_resource_keys_create(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    put_minted(b, p);
    EACH(p, DB_UUID, db_put_uuid(p, &rq->msg.resource));
    db_int8(p, b->st->w->cfg->bound_key * 1000);
}

static void
put_keys_bind(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    EACH(p, DB_UUID, db_put_uuid(p, &rq->msg.uri.id));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->msg.resource));
    db_int8(p, b->st->w->cfg->bound_key * 1000);
}

static void
put_resource_keys(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    EACH(p, DB_UUID, db_put_uuid(p, &rq->msg.resource));
    EACH(p, DB_INT8, if (rq->msg.bound_after == INT64_MIN) db_put_null(p);
         else db_put_int8(p, rq->msg.bound_after));
    EACH(p, DB_INT8, if (rq->msg.bound_before == INT64_MAX) db_put_null(p);
         else db_put_int8(p, rq->msg.bound_before));
    EACH(p, DB_INT4, if (rq->msg.count == 0) db_put_null(p); else db_put_int4(p, rq->msg.count));
    EACH(p, DB_TEXT, db_put_text(p, behalf(rq)));
    EACH(p, DB_BOOL, db_put_bool(p, rq->who.compliance));
    db_int4(p, (int32_t)b->st->w->cfg->resource_keys);
}

static void
put_channel_create(struct batch *b, struct db_params *p)
{
    EACH(p, DB_UUID, db_put_uuid(p, &rq->op));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->org));
    EACH(p, DB_TEXT, db_put_text(p, rq->request_id));
    EACH(p, DB_TEXT, db_put_text(p, rq->msg.client_id));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->new_channel));
    EACH(p, DB_TEXT, db_put_text(p, principal_name(rq->kind)));
    EACH(p, DB_TEXT, db_put_text(p, rq->who.subject));
    EACH(p, DB_BYTEA, db_put_bytes(p, rq->new_channel_blob, HSM_BLOB_LEN));
    EACH(p, DB_INT4, db_put_int4(p, (int32_t)rq->wk.generation));
    db_int8(p, b->st->w->cfg->channel * 1000);
}

static void
put_service_channel_create(struct batch *b, struct db_params *p)
{
    EACH(p, DB_UUID, db_put_uuid(p, &rq->op));
    EACH(p, DB_TEXT, db_put_text(p, rq->request_id));
    EACH(p, DB_TEXT, db_put_text(p, rq->msg.client_id));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->new_channel));
    EACH(p, DB_TEXT, db_put_text(p, rq->cert->identity));
    EACH(p, DB_BYTEA, db_put_bytes(p, rq->cert->thumb, sizeof(rq->cert->thumb)));
    EACH(p, DB_BYTEA, db_put_bytes(p, rq->cert->issuer, sizeof(rq->cert->issuer)));
    EACH(p, DB_BYTEA, db_put_bytes(p, rq->cert->serial, rq->cert->serial_len));
    EACH(p, DB_INT8, db_put_int8(p, rq->cert->not_after));
    EACH(p, DB_BYTEA, if (!rq->has_jti) db_put_null(p);
         else db_put_bytes(p, rq->jti_hash, sizeof(rq->jti_hash)));
    EACH(p, DB_BYTEA, db_put_bytes(p, rq->new_channel_blob, HSM_BLOB_LEN));
    EACH(p, DB_INT4, db_put_int4(p, (int32_t)rq->wk.generation));
    db_int8(p, b->st->w->cfg->channel * 1000);
}

/* The key or the resource that is asked for; a walk names neither. */
static const struct uuid *
release_target(const struct req *rq)
{
    return rq->msg.op == OP_KEY_GET         ? &rq->msg.uri.id
           : rq->msg.op == OP_RESOURCE_KEYS ? &rq->msg.resource
                                            : NULL;
}

static void
put_service_release(struct batch *b, struct db_params *p)
{
    EACH(p, DB_UUID, db_put_uuid(p, &rq->op));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->channel->id));
    EACH(p, DB_TEXT, db_put_text(p, rq->request_id));
    EACH(p, DB_TEXT, db_put_text(p, rq->msg.client_id));
    EACH(p, DB_TEXT, db_put_text(p, kms_op_name(rq->msg.op)));
    EACH(p, DB_UUID, db_put_uuid(p, release_target(rq)));
    EACH(p, DB_TEXT, db_put_text(p, rq->msg.purpose));
    EACH(p, DB_UUID, db_put_uuid(p, rq->msg.has_matter ? &rq->msg.matter : NULL));
    EACH(p, DB_INT8, if (rq->msg.bound_after == INT64_MIN) db_put_null(p);
         else db_put_int8(p, rq->msg.bound_after));
    EACH(p, DB_INT8, if (rq->msg.bound_before == INT64_MAX) db_put_null(p);
         else db_put_int8(p, rq->msg.bound_before));
    EACH(p, DB_INT4, if (rq->msg.count == 0) db_put_null(p); else db_put_int4(p, rq->msg.count));
    EACH(p, DB_BYTEA, if (rq->msg.cursor_len == 0) db_put_null(p);
         else db_put_bytes(p, rq->msg.cursor, rq->msg.cursor_len));
    db_int4(p, (int32_t)b->st->w->cfg->resource_keys);
}

static void
put_channel_delete(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    EACH(p, DB_UUID, db_put_uuid(p, &rq->msg.uri.id));
}

static void
put_channels_check(struct batch *b, struct db_params *p)
{
    EACH(p, DB_UUID, db_put_uuid(p, &rq->org));
    EACH(p, DB_UUID, db_put_uuid(p, &rq->channel->id));
}

/* Sets a member, or says that there was no memory: an argument that is missing means something
 * else. */
static void
arg(json_t *args, const char *name, json_t *value, int *err)
{
    if (json_object_set_new(args, name, value) != 0)
        *err = KMS_ERR_NOMEM;
}

static json_t *
json_uuid(const struct uuid *u)
{
    char text[UUID_TEXT + 1];

    uuid_format(text, u);
    return json_string(text);
}

static json_t *
json_auth_ids(const struct kms_request *msg, int *err)
{
    json_t *list = json_array();
    size_t i;

    for (i = 0; i < msg->n_auth_ids; i++) {
        const struct kms_auth_id *a = &msg->auth_ids[i];
        json_t *grantee = a->is_resource ? json_uuid(&a->resource) : json_string(a->user);

        if (json_array_append_new(list, json_pack("{s:s, s:o}", "kind",
                                                  a->is_resource ? "resource" : "user", "grantee",
                                                  grantee)) != 0)
            *err = KMS_ERR_NOMEM;
    }
    return list;
}

static json_t *
json_hex(const unsigned char *bytes, size_t len)
{
    char text[2 * HSM_BLOB_LEN + 1];

    if (OPENSSL_buf2hexstr_ex(text, sizeof(text), NULL, bytes, len, '\0') != 1)
        return NULL;
    return json_string(text);
}

static json_t *
json_minted(const struct req *rq, const struct minted *m)
{
    return json_pack("{s:o, s:o, s:i}", "id", json_uuid(&m->id), "blob",
                     json_hex(m->blob, HSM_BLOB_LEN), "generation", (int)rq->wk.generation);
}

static json_t *
json_all_minted(const struct req *rq, int *err)
{
    json_t *list = json_array();
    unsigned i;

    for (i = 0; i < rq->n_minted; i++)
        if (json_array_append_new(list, json_minted(rq, &rq->minted[i])) != 0)
            *err = KMS_ERR_NOMEM;
    return list;
}

static void
arg_resource_create(json_t *args, const struct req *rq, int *err)
{
    const struct kms_request *msg = &rq->msg;
    json_t *list = json_array();
    size_t i;

    for (i = 0; i < msg->n_keys; i++)
        if (json_array_append_new(list, json_uuid(&msg->keys[i])) != 0)
            *err = KMS_ERR_NOMEM;
    arg(args, "keys", list, err);
    arg(args, "new_keys", json_all_minted(rq, err), err);
    if (msg->ttl > 0)
        arg(args, "ttl_ms", json_integer(msg->ttl * 1000), err);
    arg(args, "kind", json_string(kms_kind_name(msg->kind)), err);
    arg(args, "security", json_string(msg->zero_trust ? "zero-trust" : "standard"), err);
}

static void
arg_recording(json_t *args, const struct req *rq, int *err)
{
    const struct kms_request *msg = &rq->msg;

    if (msg->op == OP_RECORDING_CREATE) {
        arg(args, "type", json_string(kms_recording_type_name(msg->type)), err);
        arg(args, "id", json_uuid(&rq->minted[0].id), err);
        arg(args, "blob", json_hex(rq->minted[0].blob, HSM_BLOB_LEN), err);
        arg(args, "generation", json_integer((json_int_t)rq->wk.generation), err);
        arg(args, "iv", json_hex(rq->iv, sizeof(rq->iv)), err);
        arg(args, "aad", json_string(rq->aad), err);
    } else if (msg->op == OP_RECORDINGS_LIST) {
        arg(args, "max", json_integer(rq->w->cfg->resource_keys), err);
    } else {
        arg(args, "recording", json_uuid(&msg->uri.id), err);
    }
    if (msg->loc != NULL)
        arg(args, "loc", json_string(msg->loc), err);
    if (msg->tag != NULL)
        arg(args, "tag", json_string(msg->tag), err);
}

/* The arguments of a cold function: one JSON object. */
static void
put_args(struct db_params *p, const struct req *rq)
{
    const struct kms_request *msg = &rq->msg;
    struct buf text = BUF_INIT;
    json_t *args = json_object(), *list;
    int err = KMS_OK;

    if (msg->by_uri)
        arg(args, "authorization", json_uuid(&msg->uri.id), &err);
    else if (msg->has_resource)
        arg(args, "resource", json_uuid(&msg->resource), &err);
    list = json_auth_ids(msg, &err);
    if (msg->op == OP_AUTHORIZATIONS_LIST && msg->n_auth_ids > 0)
        arg(args, "auth", json_incref(json_array_get(list, 0)), &err);
    arg(args, "auths", list, &err);
    arg(args, "anonymous", json_integer(msg->anonymous), &err);
    switch (msg->op) {
    case OP_RESOURCE_CREATE:
        arg_resource_create(args, rq, &err);
        arg(args, "bound_ms", json_integer(rq->w->cfg->bound_key * 1000), &err);
        break;
    case OP_AUTHORIZATION_DELETE:
        if (rq->n_minted > 0)
            arg(args, "new_keys", json_all_minted(rq, &err), &err);
        arg(args, "bound_ms", json_integer(rq->w->cfg->bound_key * 1000), &err);
        break;
    case OP_RECORDING_CREATE:
    case OP_RECORDING_UPDATE:
    case OP_RECORDING_GET:
    case OP_RECORDINGS_LIST:
    case OP_RECORDING_DELETE:
        arg_recording(args, rq, &err);
        break;
    default:
        break;
    }
    if (msg->on_behalf_of != NULL)
        arg(args, "behalf", json_string(msg->on_behalf_of), &err);
    arg(args, "officer", json_boolean(rq->who.compliance), &err);
    if (err != KMS_OK || kms_json_put(&text, args) != KMS_OK)
        p->err = KMS_ERR_NOMEM;
    else
        db_put_json(p, buf_str(&text), text.len);
    json_decref(args);
    buf_release(&text);
}

static void
put_cold(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    EACH(p, DB_JSONB, put_args(p, rq));
}

static void
put_main_key_args(struct db_params *p, const struct req *rq)
{
    struct buf text = BUF_INIT;
    json_t *args = main_key_args(rq);

    if (args == NULL || kms_json_put(&text, args) != KMS_OK)
        p->err = KMS_ERR_NOMEM;
    else
        db_put_json(p, buf_str(&text), text.len);
    json_decref(args);
    buf_release(&text);
}

static void
put_main_key(struct batch *b, struct db_params *p)
{
    put_common(b, p);
    EACH(p, DB_JSONB, put_main_key_args(p, rq));
}

/* What says when a new key will end. */
static void
put_mint_under(struct batch *b, struct db_params *p)
{
    EACH(p, DB_UUID, db_put_uuid(p, &rq->org));
    EACH(p, DB_UUID, db_put_uuid(p, rq->msg.has_resource ? &rq->msg.resource : NULL));
    EACH(p, DB_INT8, db_put_int8(p, rq->msg.op == OP_RESOURCE_CREATE ? rq->msg.ttl * 1000 : 0));
    EACH(p, DB_TEXT,
         db_put_text(p, rq->msg.op == OP_RECORDING_CREATE ? kms_recording_type_name(rq->msg.type)
                                                          : NULL));
}

/* Who asked, as far as that is known. */
static const char *
refused_subject(const struct req *rq)
{
    if (rq->who.subject[0] != '\0')
        return rq->who.subject;
    if (rq->kind != PRINCIPAL_SERVICE)
        return NULL;
    /* Not on a channel of its own: no name, but what its certificate says. */
    if (rq->cert != NULL)
        return rq->cert->identity[0] != '\0' ? rq->cert->identity : NULL;
    return rq->msg.cred_jwk == NULL ? rq->peer->cert->identity : NULL;
}

static void
put_refusals(struct batch *b, struct db_params *p)
{
    static const struct uuid nowhere; /* the installation's own log */

    EACH(p, DB_UUID, db_put_uuid(p, &rq->op));
    EACH(p, DB_UUID, db_put_uuid(p, rq->channel != NULL ? &rq->channel->org : &nowhere));
    EACH(p, DB_UUID, db_put_uuid(p, rq->channel != NULL ? &rq->channel->id : NULL));
    EACH(p, DB_TEXT, db_put_text(p, rq->request_id));
    EACH(p, DB_TEXT, db_put_text(p, rq->msg.client_id));
    EACH(p, DB_TEXT, db_put_text(p, refused_subject(rq)));
    EACH(p, DB_TEXT, db_put_text(p, rq->parsed ? kms_op_name(rq->msg.op) : "request"));
    EACH(p, DB_INT4, db_put_int4(p, rq->code));
    EACH(p, DB_UUID, db_put_uuid(p, rq->msg.has_resource ? &rq->msg.resource : NULL));
    EACH(p, DB_TEXT, db_put_text(p, rq->kind == PRINCIPAL_SERVICE ? "service" : NULL));
}

/* --- rows --- */

static char *
dup_text(const PGresult *res, int row, int col)
{
    const char *s = db_get_text(res, row, col);

    return s != NULL ? strdup(s) : NULL;
}

/* Goes on as if hsmd had refused to open it. */
static void
stored_damaged(struct req *rq, const struct uuid *key)
{
    char text[UUID_TEXT + 1];

    uuid_format(text, key);
    log_error("a stored key does not open: its length is wrong", "key", text, "request_id",
              rq->request_id, NULL);
    rq->failed = KMS_ERR_CRYPTO;
}

/* kms.released, from column 2 on.  A row without a key is a verdict alone. */
static int
row_released(struct req *rq, const PGresult *res, int row)
{
    struct released *all, *r;
    int32_t generation;

    if (PQgetisnull(res, row, 2))
        return KMS_OK;
    if ((all = realloc(rq->released, (rq->n_released + 1) * sizeof(*all))) == NULL)
        return KMS_ERR_NOMEM;
    rq->released = all;
    r = &all[rq->n_released++];
    memset(r, 0, sizeof(*r));
    if (!db_get_uuid(res, row, 2, &r->key) || !db_get_int4(res, row, 4, &generation) ||
        !db_get_bytes(res, row, 5, r->wk.root, HSM_ID_LEN) ||
        !db_get_bytes(res, row, 7, r->wk.org, HSM_ID_LEN) ||
        !db_get_int8(res, row, 10, &r->created) || !db_get_int8(res, row, 11, &r->expires) ||
        !db_get_int8(res, row, 12, &r->bound))
        return KMS_ERR_PROTOCOL;
    /* What is stored of one key may be damaged in its length as well as in its bits: this request
     * is told so, and those that share the call are not. */
    if (!db_get_bytes(res, row, 3, r->blob, HSM_BLOB_LEN) ||
        !db_get_bytes(res, row, 6, r->wk.wrapped, HSM_WRAPPED_LEN))
        stored_damaged(rq, &r->key);
    r->wk.generation = (uint32_t)generation;
    r->has_resource = db_get_uuid(res, row, 13, &r->resource);
    r->user_id = dup_text(res, row, 8);
    r->client_id = dup_text(res, row, 9);
    return r->user_id != NULL && r->client_id != NULL ? KMS_OK : KMS_ERR_NOMEM;
}

static int
row_times(struct req *rq, const PGresult *res, int row)
{
    return db_get_int8(res, row, 2, &rq->created) && db_get_int8(res, row, 3, &rq->expires)
               ? KMS_OK
               : KMS_ERR_PROTOCOL;
}

/* Without one it is the organisation's current wrapping key, which is there already. */
static int
row_month(struct req *rq, const PGresult *res, int row)
{
    int32_t generation;

    if (PQgetisnull(res, row, 2))
        return KMS_OK;
    if (!db_get_int4(res, row, 2, &generation) ||
        !db_get_bytes(res, row, 3, rq->wk.root, HSM_ID_LEN) ||
        !db_get_bytes(res, row, 4, rq->wk.wrapped, HSM_WRAPPED_LEN))
        return KMS_ERR_PROTOCOL;
    rq->wk.generation = (uint32_t)generation;
    return KMS_OK;
}

static int
row_service_channel(struct req *rq, const PGresult *res, int row)
{
    const char *name = db_get_text(res, row, 4);
    int32_t rate;

    if (name == NULL || strlen(name) >= sizeof(rq->who.subject) || !db_get_int4(res, row, 5, &rate))
        return KMS_ERR_PROTOCOL;
    strcpy(rq->who.subject, name);
    rq->rate = rate;
    return row_times(rq, res, row);
}

/* The key that a service's keys are enclosed to.  One that is registered and cannot be read is no
 * reason to release them bare, nor to fail the requests that share the call. */
static void
release_key(struct service_release *rel, const PGresult *res, int row)
{
    size_t len;
    const char *text = db_get_json(res, row, 17, &len), *kid;
    json_t *jwk = NULL;

    if (text == NULL)
        return;
    rel->unfit = true;
    if (kms_json_parse(&jwk, text, len) == KMS_OK && jwk_get_checked(&rel->to, jwk) == KMS_OK) {
        kid = json_string_value(json_object_get(jwk, "kid"));
        rel->unfit = kid != NULL && (rel->to_kid = strdup(kid)) == NULL;
    }
    json_decref(jwk);
}

/* kms.service_released: what all rows of a request say alike is in the first of them. */
static int
row_service(struct req *rq, const PGresult *res, int row)
{
    struct service_release *rel = &rq->release;
    int32_t verdict;

    if (!db_get_int4(res, row, 1, &verdict))
        return KMS_ERR_PROTOCOL;
    if (verdict != 0) {
        free(rq->why_owned);
        rq->why_owned = dup_text(res, row, 19);
        return KMS_OK;
    }
    if (rel->service == NULL) {
        rel->service = dup_text(res, row, 14);
        rel->purpose = dup_text(res, row, 15);
        if (rel->service == NULL || rel->purpose == NULL)
            return KMS_ERR_PROTOCOL;
        rel->has_matter = db_get_uuid(res, row, 16, &rel->matter);
        if (!PQgetisnull(res, row, 18)) {
            rel->cursor_len = (size_t)PQgetlength(res, row, 18);
            if (rel->cursor_len > sizeof(rel->cursor) ||
                !db_get_bytes(res, row, 18, rel->cursor, rel->cursor_len))
                return KMS_ERR_PROTOCOL;
        }
        release_key(rel, res, row);
    }
    return row_released(rq, res, row);
}

static int
row_result(struct req *rq, const PGresult *res, int row)
{
    size_t len;
    const char *text = db_get_json(res, row, 2, &len);

    if (text == NULL)
        return KMS_OK;
    json_decref(rq->result);
    rq->result = NULL;
    return kms_json_parse(&rq->result, text, len);
}

static int
row_verdict(struct req *rq, const PGresult *res, int row)
{
    return KMS_OK;
}

static const struct {
    void (*put)(struct batch *, struct db_params *);
    int (*row)(struct req *, const PGresult *,
               int row); /* NULL: the function gives no rows to read */
    bool refusals;       /* a refusal's row is read too: it may bring a text along */
} calls[SC_CALLS] = {
    [SC_KEYS_RELEASE] = {put_keys_release, row_released, false},
    [SC_KEYS_CREATE] = {put_keys_create, row_times, false},
    [SC_KEYS_BIND] = {put_keys_bind, row_released, false},
    [SC_RESOURCE_KEYS] = {put_resource_keys, row_released, false},
    [SC_CHANNEL_CREATE] = {put_channel_create, row_times, false},
    [SC_CHANNEL_DELETE] = {put_channel_delete, row_result, true},
    [SC_CHANNELS_CHECK] = {put_channels_check, row_verdict, false},
    [SC_RESOURCE_CREATE] = {put_cold, row_result, true},
    [SC_RESOURCE_GET] = {put_cold, row_result, true},
    [SC_AUTHORIZATIONS_CREATE] = {put_cold, row_result, true},
    [SC_AUTHORIZATIONS_LIST] = {put_cold, row_result, true},
    [SC_AUTHORIZATIONS_DELETE] = {put_cold, row_result, true},
    [SC_RESOURCE_RELEASES] = {put_cold, row_result, true},
    [SC_RESOURCE_KEYS_CREATE] = {put_resource_keys_create, row_released, false},
    [SC_RECORDING_CREATE] = {put_cold, row_result, true},
    [SC_RECORDING_UPDATE] = {put_cold, row_result, true},
    [SC_RECORDING_GET] = {put_cold, row_result, true},
    [SC_RECORDINGS_LIST] = {put_cold, row_result, true},
    [SC_RECORDING_DELETE] = {put_cold, row_result, true},
    [SC_MAIN_KEY] = {put_main_key, row_result, true},
    [SC_MINT_UNDER] = {put_mint_under, row_month, false},
    [SC_SERVICE_CHANNEL_CREATE] = {put_service_channel_create, row_service_channel, false},
    [SC_SERVICE_RELEASE] = {put_service_release, row_service, true},
    [SC_REFUSALS_RECORD] = {put_refusals, NULL, false},
};

/* --- batches --- */

static void batch_done(void *ctx, int err, const PGresult *res, const char *sqlstate);

static void
batch_send(struct batch *b)
{
    struct db_params p;
    int i, r;

    db_params_init(&p);
    calls[b->call].put(b, &p);
    count_add(CT_DB_ITEMS, (uint64_t)b->n);
    if ((r = db_call(b->st->w->db, (int)b->call, &p, batch_done, b)) != KMS_OK) {
        for (i = 0; i < b->n; i++)
            req_state_done(b->reqs[i], r, 0);
        free(b);
    }
}

/* Reads the rows of a call; every request gets its own verdict. */
static int
batch_rows(struct batch *b, const PGresult *res, int verdicts[STATE_BATCH])
{
    int row, rows = PQntuples(res), r;
    int32_t n, verdict;
    bool seen[STATE_BATCH] = {false};

    if (calls[b->call].row == NULL) {
        for (row = 0; row < b->n; row++)
            verdicts[row] = 0;
        return KMS_OK;
    }
    for (row = 0; row < rows; row++) {
        if (!db_get_int4(res, row, 0, &n) || !db_get_int4(res, row, 1, &verdict) || n < 1 ||
            n > b->n)
            return KMS_ERR_PROTOCOL;
        verdicts[n - 1] = verdict;
        seen[n - 1] = true;
        if ((verdict == 0 || calls[b->call].refusals) &&
            (r = calls[b->call].row(b->reqs[n - 1], res, row)) != KMS_OK)
            return r;
    }
    for (row = 0; row < b->n; row++)
        if (!seen[row])
            return KMS_ERR_PROTOCOL;
    return KMS_OK;
}

static void
batch_done(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct batch *b = ctx;
    int verdicts[STATE_BATCH], i;

    if (err == KMS_OK && (err = batch_rows(b, res, verdicts)) != KMS_OK) {
        /* Committed, but we cannot tell what: nobody may claim anything. */
        log_error("a database result could not be read", "statement",
                  state_statements[b->call].name, "why", kms_strerror(err), NULL);
        err = KMS_ERR_TIMEOUT;
    }
    if (err == KMS_ERR_STATE && b->n > 1) {
        /* Rolled back because of one of them: each by itself, so that only that one fails. */
        for (i = 0; i < b->n; i++) {
            struct batch *one = calloc(1, sizeof(*one));

            if (one == NULL) {
                req_state_done(b->reqs[i], KMS_ERR_NOMEM, 0);
                continue;
            }
            one->st = b->st;
            one->call = b->call;
            one->n = 1;
            one->reqs[0] = b->reqs[i];
            batch_send(one);
        }
        free(b);
        return;
    }
    for (i = 0; i < b->n; i++)
        req_state_done(b->reqs[i], err, err == KMS_OK ? verdicts[i] : 0);
    free(b);
}

void
state_flush(struct state *st)
{
    unsigned k;

    for (k = 0; k < SC_CALLS; k++) {
        unsigned call = (st->first + k) % SC_CALLS;
        struct req_list *q = &st->queue[call];

        while (!TAILQ_EMPTY(q) && db_has_room(st->w->db)) {
            struct batch *b = calloc(1, sizeof(*b));
            struct req *rq;

            if (b == NULL)
                return; /* the tick of db.c comes back to it */
            b->st = st;
            b->call = (enum state_call)call;
            while (b->n < STATE_BATCH && (rq = TAILQ_FIRST(q)) != NULL) {
                TAILQ_REMOVE(q, rq, entry);
                st->waiting[call]--;
                b->reqs[b->n++] = rq;
            }
            batch_send(b);
        }
    }
    st->first = (st->first + 1) % SC_CALLS;
}

static void
state_gather(evutil_socket_t fd, short what, void *arg)
{
    state_flush(arg);
}

/* No connection became free in time: nothing was sent, so nothing changed. */
static void
state_tick(evutil_socket_t fd, short what, void *arg)
{
    struct state *st = arg;
    int64_t limit = now_us() - st->w->cfg->db_deadline * 1000000;
    struct req *rq;
    int call;

    for (call = 0; call < SC_CALLS; call++) {
        while ((rq = TAILQ_FIRST(&st->queue[call])) != NULL && rq->queued < limit) {
            TAILQ_REMOVE(&st->queue[call], rq, entry);
            st->waiting[call]--;
            req_state_done(rq, KMS_ERR_UNAVAILABLE, 0);
        }
    }
    state_flush(st);
}

void
state_submit(struct state *st, enum state_call call, struct req *rq)
{
    rq->queued = now_us();
    TAILQ_INSERT_TAIL(&st->queue[call], rq, entry);
    st->waiting[call]++;
    event_active(st->gather, EV_TIMEOUT, 0);
}

struct state *
state_new(struct worker *w)
{
    static const struct timeval tick = {0, TICK_US};
    struct state *st = calloc(1, sizeof(*st));
    int i;

    if (st == NULL)
        return NULL;
    st->w = w;
    for (i = 0; i < SC_CALLS; i++)
        TAILQ_INIT(&st->queue[i]);
    if ((st->tick = event_new(w->base, -1, EV_PERSIST, state_tick, st)) == NULL ||
        event_add(st->tick, &tick) != 0 ||
        (st->gather = event_new(w->base, -1, 0, state_gather, st)) == NULL ||
        event_priority_set(st->gather, PRIO_GATHER) != 0) {
        state_free(st);
        return NULL;
    }
    return st;
}

void
state_free(struct state *st)
{
    if (st == NULL)
        return;
    if (st->gather != NULL)
        event_free(st->gather);
    if (st->tick != NULL)
        event_free(st->tick);
    free(st);
}
