/*
 * req.c - a message's way, step by step.
 *
 * Read req_run from top to bottom: that is the flow.  Every step is a function that says STEP_NEXT
 * (rq->state was set: go on), STEP_WAIT (somebody will wake the request) or STEP_DONE (it is gone).
 *
 * What must hold, whatever breaks when:
 *   - a key leaves only after its record was committed: REQ_UNWRAP comes after REQ_STATE;
 *   - a new key is answered only after its row was committed: REQ_WRITE comes after REQ_STATE;
 *   - an answer of 5xx is given only while nothing was changed; once the outcome is unknown there
 * is none (REQ_UNKNOWN).
 */
#include "kms/req.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/log.h"
#include "kms/answer.h"
#include "kms/channel.h"
#include "kms/mainkey_req.h"
#include "kms/orgs.h"
#include "kms/post.h"
#include "kms/rate.h"
#include "kms/recording.h"
#include "kms/refusal.h"
#include "kms/service.h"
#include "kms/state.h"
#include "kms/token.h"
#include "kms/worker.h"
#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "proto/kdf.h"

#define STALE_TRIES  3
#define ROTATE_MAX   1000 /* keys beside a removal, as rotated_with() in sql/ has it */
#define ROTATE_MORE  4
#define ENCLOSE_TURN 16 /* keys enclosed to a service's key before others have their turn */

enum step { STEP_NEXT, STEP_WAIT, STEP_DONE };

typedef void write_fn(struct req *rq, struct answer *a);
static write_fn write_channel, write_nothing, write_keys_created, write_key, write_keys,
    write_resource, write_authorizations, write_removed, write_releases;

/* What a request asks of the state, and what its success looks like. */
static const struct op {
    enum state_call call;    /* for users; SC_NOTHING: it is not for them */
    enum state_call service; /* for services; SC_NOTHING: likewise */
    bool unwraps;            /* the call releases keys */
    bool bearers;            /* the call may make anonymous authorisations */
    int status;
    write_fn *write;
} ops[] = {
    [OP_CHANNEL_CREATE] = {SC_CHANNEL_CREATE, SC_SERVICE_CHANNEL_CREATE, false, false, 201,
                           write_channel},
    [OP_CHANNEL_DELETE] = {SC_CHANNEL_DELETE, SC_CHANNEL_DELETE, false, false, 204, write_nothing},
    [OP_PING] = {SC_CHANNELS_CHECK, SC_CHANNELS_CHECK, false, false, 200, write_nothing},
    [OP_KEYS_CREATE] = {SC_KEYS_CREATE, SC_NOTHING, false, false, 201, write_keys_created},
    [OP_KEY_BIND] = {SC_KEYS_BIND, SC_NOTHING, true, false, 200, write_key},
    [OP_KEY_GET] = {SC_KEYS_RELEASE, SC_SERVICE_RELEASE, true, false, 200, write_key},
    [OP_RESOURCE_CREATE] = {SC_RESOURCE_CREATE, SC_NOTHING, false, true, 201, write_resource},
    [OP_RESOURCE_GET] = {SC_RESOURCE_GET, SC_NOTHING, false, false, 200, write_resource},
    [OP_RESOURCE_KEYS] = {SC_RESOURCE_KEYS, SC_SERVICE_RELEASE, true, false, 200, write_keys},
    [OP_AUTHORIZATIONS_CREATE] = {SC_AUTHORIZATIONS_CREATE, SC_NOTHING, false, true, 201,
                                  write_authorizations},
    [OP_AUTHORIZATIONS_LIST] = {SC_AUTHORIZATIONS_LIST, SC_NOTHING, false, false, 200,
                                write_authorizations},
    [OP_AUTHORIZATION_DELETE] = {SC_AUTHORIZATIONS_DELETE, SC_NOTHING, false, false, 200,
                                 write_removed},
    [OP_RELEASES] = {SC_RESOURCE_RELEASES, SC_NOTHING, false, false, 200, write_releases},
    [OP_PURPOSE_KEYS] = {SC_NOTHING, SC_SERVICE_RELEASE, true, false, 200, write_keys},
    [OP_MATTER_KEYS] = {SC_NOTHING, SC_SERVICE_RELEASE, true, false, 200, write_keys},
    [OP_RESOURCE_ROTATE] = {SC_RESOURCE_KEYS_CREATE, SC_NOTHING, false, false, 201, write_keys},
    [OP_RECORDING_CREATE] = {SC_RECORDING_CREATE, SC_NOTHING, true, false, 201, write_recording},
    [OP_RECORDING_UPDATE] = {SC_RECORDING_UPDATE, SC_NOTHING, true, false, 200, write_recording},
    [OP_RECORDING_GET] = {SC_RECORDING_GET, SC_NOTHING, true, false, 200, write_recording},
    [OP_RECORDINGS_LIST] = {SC_RECORDINGS_LIST, SC_NOTHING, true, false, 200, write_recordings},
    [OP_RECORDING_DELETE] = {SC_RECORDING_DELETE, SC_NOTHING, false, false, 200,
                             write_recording_end},
    [OP_PUBLIC_KEY] = {SC_MAIN_KEY, SC_NOTHING, false, false, 200, write_public_key},
    [OP_CMK_CREATE] = {SC_MAIN_KEY, SC_NOTHING, false, false, 201, write_main_key_created},
    [OP_CMK_LIST] = {SC_MAIN_KEY, SC_NOTHING, false, false, 200, write_main_keys},
    [OP_CMK_UPDATE] = {SC_MAIN_KEY, SC_NOTHING, false, false, 200, write_main_keys},
    [OP_CMK_DELETE] = {SC_MAIN_KEY, SC_NOTHING, false, false, 200, write_main_keys},
};

static enum state_call
call_of(const struct req *rq)
{
    const struct op *op = &ops[rq->msg.op];

    return rq->kind == PRINCIPAL_SERVICE ? op->service : op->call;
}

/* How many content keys are to be made before the call. */
static unsigned
new_keys(const struct req *rq)
{
    switch (rq->msg.op) {
    case OP_KEYS_CREATE:
    case OP_RESOURCE_CREATE:
    case OP_RESOURCE_ROTATE:
        return (unsigned)rq->msg.count;
    case OP_RECORDING_CREATE:
        return 1;
    case OP_AUTHORIZATION_DELETE:
        return rq->rotates;
    default:
        return 0;
    }
}

/* New keys need the organisation's wrapping key, and hsmd. */
static enum req_state
before_state(const struct req *rq)
{
    return rq->msg.op == OP_CHANNEL_CREATE || new_keys(rq) > 0 ? REQ_ORG : REQ_STATE;
}

/* --- life --- */

static void
req_free(struct req *rq)
{
    size_t i;

    channel_put(rq->w->channels, rq->channel);
    kms_request_release(&rq->msg);
    if (rq->text != NULL)
        OPENSSL_clear_free(rq->text, rq->text_len);
    free(rq->request_id);
    secret_free(rq->cek);
    secret_free(rq->new_channel_key);
    EVP_PKEY_free(rq->new_channel_pair);
    for (i = 0; i < rq->n_minted; i++)
        secret_free(rq->minted[i].secret);
    free(rq->minted);
    for (i = 0; i < rq->n_released; i++) {
        secret_free(rq->released[i].secret);
        free(rq->released[i].user_id);
        free(rq->released[i].client_id);
        buf_release(&rq->released[i].jwe);
    }
    free(rq->released);
    free(rq->recordings);
    free(rq->release.service);
    free(rq->release.purpose);
    free(rq->release.to_kid);
    EVP_PKEY_free(rq->release.to);
    free(rq->cert);
    for (i = 0; i < rq->n_bearers; i++)
        buf_release(&rq->bearers[i].token);
    free(rq->bearers);
    json_decref(rq->result);
    free(rq->why_owned);
    buf_release(&rq->plain);
    buf_release(&rq->out);
    free(rq);
}

static enum step
req_end(struct req *rq, enum req_outcome outcome)
{
    struct worker *w = rq->w;
    struct req **at = &w->reqs[rq->id % REQ_BUCKETS];
    int status = rq->code != 0 ? rq->code / 1000 : 200;
    uint64_t took = (uint64_t)(now_us() - rq->started);

    while (*at != rq)
        at = &(*at)->hash_next;
    *at = rq->hash_next;
    w->n_reqs--;
    count_sub(CT_MESSAGES_INFLIGHT, 1);
    count_latency(took);
    if (outcome != REQ_ANSWERED)
        count_add(CT_ANSWERED_5XX, 1);
    else
        count_add(status < 300   ? CT_ANSWERED_2XX
                  : status < 500 ? CT_ANSWERED_4XX
                                 : CT_ANSWERED_5XX,
                  1);
    if (outcome != REQ_ANSWERED || status >= 500)
        log_warn(outcome == REQ_UNKNOWN ? "request left without an answer: its outcome is unknown"
                                        : "request failed",
                 "request_id", rq->request_id, "op", rq->parsed ? kms_op_name(rq->msg.op) : NULL,
                 "error%d", rq->code, "why", rq->why, "us%u", (unsigned long long)took, NULL);
    else
        log_debug("request", "request_id", rq->request_id, "op",
                  rq->parsed ? kms_op_name(rq->msg.op) : NULL, "error%d", rq->code, "us%u",
                  (unsigned long long)took, NULL);
    post_answer(w, rq->post, rq->index, outcome, &rq->out);
    req_free(rq);
    return STEP_DONE;
}

struct req *
req_find(struct worker *w, uint64_t id)
{
    struct req *rq = w->reqs[id % REQ_BUCKETS];

    while (rq != NULL && rq->id != id)
        rq = rq->hash_next;
    return rq;
}

size_t
req_count(const struct worker *w)
{
    return w->n_reqs;
}

static enum step
go(struct req *rq, enum req_state state)
{
    rq->state = state;
    return STEP_NEXT;
}

static void
count_refused_service(int code)
{
    count_add(code == KMS_CODE_TOKEN            ? CT_SERVICE_REFUSED_PROOF
              : code == KMS_CODE_PURPOSE        ? CT_SERVICE_REFUSED_PURPOSE
              : code == KMS_CODE_NOT_REGISTERED ? CT_SERVICE_REFUSED_UNKNOWN
              : code == KMS_CODE_MATTER         ? CT_SERVICE_REFUSED_MATTER
              : code == KMS_CODE_RATE           ? CT_SERVICE_REFUSED_RATE
                                                : CT_SERVICE_REFUSED_OTHER,
              1);
}

/* Refuses a request that could be read; what is refused because of the client goes on record first.
 */
static enum step
refuse(struct req *rq, int code, const char *why)
{
    rq->code = code;
    rq->why = why;
    if (rq->kind == PRINCIPAL_SERVICE && code < 500000)
        count_refused_service(code);
    if (code == KMS_CODE_RATE) {
        count_add(CT_RATE_LIMITED, 1);
        return go(rq, REQ_WRITE); /* a record of each would be what the limit is against */
    }
    if (code < 500000 && !rq->recorded) {
        log_info("refused", "request_id", rq->request_id, "op",
                 rq->parsed ? kms_op_name(rq->msg.op) : NULL, "error%d", code, "why", why, "peer",
                 rq->peer->address, NULL);
        return go(rq, REQ_RECORD);
    }
    return go(rq, REQ_WRITE);
}

/* No key opens it, or the one that would is gone: one signed text for all. */
static enum step
unreadable(struct req *rq, int code)
{
    rq->code = code;
    rq->unreadable = true;
    count_add(code == KMS_CODE_RESET ? CT_RESETS : CT_UNREADABLE, 1);
    return go(rq, REQ_SEAL);
}

/* --- REQ_ROUTE, REQ_CHANNEL, REQ_STATIC: the key --- */

static enum step
req_route(struct req *rq)
{
    struct kms_uri uri;

    if (jwe_parse(&rq->jwe, rq->text, rq->text_len) != KMS_OK)
        return unreadable(rq, KMS_CODE_MALFORMED);
    if (strcmp(rq->jwe.kid, rq->w->static_kid) == 0)
        return rq->jwe.alg != JWE_DIR ? go(rq, REQ_STATIC) : unreadable(rq, KMS_CODE_MALFORMED);
    if (rq->jwe.alg != JWE_DIR || rq->jwe.kid[0] == '\0')
        return unreadable(rq, KMS_CODE_MALFORMED);
    if (kms_uri_parse(&uri, rq->jwe.kid, strlen(rq->jwe.kid), rq->w->cfg->domain) != KMS_OK ||
        uri.kind != URI_ECDHE_ID)
        return unreadable(rq, KMS_CODE_RESET);
    rq->new_channel = uri.id; /* until it is opened: the id to open */
    return go(rq, REQ_CHANNEL);
}

static enum step
req_channel(struct req *rq)
{
    switch (channels_get(rq->w->channels, &rq->new_channel, rq->id, &rq->channel)) {
    case KMS_OK:
        rq->org = rq->channel->org;
        return go(rq, REQ_OPEN);
    case KMS_ERR_AGAIN:
        return STEP_WAIT;
    case KMS_ERR_NOT_FOUND:
    case KMS_ERR_CRYPTO:
        return unreadable(rq, KMS_CODE_RESET);
    default:
        rq->code = KMS_CODE_DATABASE;
        return req_end(rq, REQ_UNAVAILABLE);
    }
}

static void
cek_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct worker *w = ctx;
    struct req *rq = req_find(w, id);

    if (rq == NULL)
        return;
    rq->waiting = 0;
    if (err == KMS_OK && (len != SECRET_LEN || (rq->cek = secret_from(p)) == NULL))
        err = KMS_ERR_NOMEM;
    rq->failed = err;
    rq->state = REQ_OPEN;
    req_wake(w, id);
}

static enum step
req_static(struct req *rq)
{
    if (!rate_take(rq->w->by_open, "static", 1, now_us())) {
        rq->code = KMS_CODE_OVERLOADED;
        count_add(CT_RATE_LIMITED, 1);
        return req_end(rq, REQ_UNAVAILABLE);
    }
    count_add(CT_HSM_ITEMS, 1);
    if (hsm_oaep_open(rq->w->hsm, rq->jwe.alg == JWE_RSA_OAEP ? HSM_OAEP_SHA1 : HSM_OAEP_SHA256,
                      rq->jwe.ek, rq->jwe.ek_len, cek_cb, rq->w, rq->id, 0) != KMS_OK) {
        rq->code = KMS_CODE_HSM;
        return req_end(rq, REQ_UNAVAILABLE);
    }
    rq->waiting = 1;
    return STEP_WAIT;
}

/* --- REQ_OPEN: the request --- */

static enum step
req_open(struct req *rq)
{
    const struct secret *key = rq->channel != NULL ? rq->channel->key : rq->cek;
    const char *why = NULL;
    int code, r;

    if (rq->failed != KMS_OK) {
        count_add(CT_HSM_FAILURES, 1);
        rq->code = KMS_CODE_HSM;
        return req_end(rq, REQ_UNAVAILABLE);
    }
    r = jwe_open(&rq->jwe, key->b, &rq->plain);
    OPENSSL_clear_free(rq->text, rq->text_len);
    rq->text = NULL;
    secret_free(rq->cek);
    rq->cek = NULL;
    if (r != KMS_OK)
        return unreadable(rq, KMS_CODE_MALFORMED);

    code =
        kms_request_parse(&rq->msg, buf_str(&rq->plain), rq->plain.len, rq->w->cfg->domain, &why);
    buf_release(&rq->plain);
    if (json_is_string(rq->msg.request_id))
        rq->request_id = strdup(json_string_value(rq->msg.request_id));
    else if (json_is_integer(rq->msg.request_id) &&
             asprintf(&rq->request_id, "%lld", (long long)json_integer_value(rq->msg.request_id)) <
                 0)
        rq->request_id = NULL;
    if (code != KMS_CODE_OK)
        return refuse(rq, code, why);
    rq->parsed = true;
    if ((rq->channel == NULL) != (rq->msg.op == OP_CHANNEL_CREATE))
        return refuse(rq, KMS_CODE_MEMBER,
                      rq->channel == NULL
                          ? "only an ephemeral key can be asked for under the static key"
                          : "an ephemeral key must be asked for under the static key");
    return go(rq, REQ_WHO);
}

/* --- REQ_WHO, REQ_ADMIT: the principal --- */

/*
 * The bearer of an anonymous authorisation: a JWT that we signed ourselves (draft, section 4.4.2).
 * KMS_ERR_NOT_FOUND: it is none of ours, ask the identity provider.
 */
static int
anonymous_verify(struct req *rq)
{
    struct worker *w = rq->w;
    struct jws jws;
    struct buf payload = BUF_INIT;
    struct kms_uri sub;
    json_t *claims = NULL;
    const char *iss, *aud, *text, *org;
    long long exp = 0;
    int r;

    if (jws_parse(&jws, rq->msg.bearer, strlen(rq->msg.bearer)) != KMS_OK ||
        strcmp(jws.kid, w->static_kid) != 0)
        return KMS_ERR_NOT_FOUND;
    if (jws.alg != JWS_PS256)
        return KMS_ERR_ALGORITHM;
    if (strcmp(jws.typ, "JWT") != 0)
        return KMS_ERR_HEADER; /* one of our answers, which the same key signs */
    if ((r = jws_verify(&jws, w->static_public)) != KMS_OK ||
        (r = jws_payload(&jws, &payload)) != KMS_OK ||
        (r = kms_json_parse(&claims, buf_str(&payload), payload.len)) != KMS_OK)
        goto out;
    r = KMS_ERR_MEMBER;
    if (kms_json_str(claims, "iss", 512, &iss) != KMS_OK || strcmp(iss, w->cluster) != 0 ||
        kms_json_str(claims, "aud", 512, &aud) != KMS_OK || strcmp(aud, w->cluster) != 0 ||
        kms_json_str(claims, "org", JWT_SUBJECT_MAX, &org) != KMS_OK ||
        kms_json_str(claims, "sub", 512, &text) != KMS_OK ||
        kms_uri_parse(&sub, text, strlen(text), w->cfg->domain) != KMS_OK ||
        sub.kind != URI_AUTHORIZATION)
        goto out;
    if (kms_json_int(claims, "exp", 0, INT64_MAX / 1000, &exp) == KMS_ERR_MEMBER)
        goto out;
    r = exp != 0 && exp * 1000 <= wall_ms() ? KMS_ERR_EXPIRED : KMS_OK;
    rq->kind = PRINCIPAL_ANONYMOUS;
    uuid_format(rq->who.subject, &sub.id);
    snprintf(rq->who.org, sizeof(rq->who.org), "%s", org);
out:
    json_decref(claims);
    buf_release(&payload);
    return r;
}

static enum step
who_is(struct req *rq, int err)
{
    switch (err) {
    case KMS_OK:
        return go(rq, REQ_ADMIT);
    case KMS_ERR_EXPIRED:
        return refuse(rq, KMS_CODE_TOKEN_EXPIRED, NULL);
    case KMS_ERR_UNAVAILABLE:
    case KMS_ERR_TIMEOUT:
        return refuse(rq, KMS_CODE_OVERLOADED,
                      "the identity provider cannot be asked now; try again");
    default:
        return refuse(rq, KMS_CODE_TOKEN, NULL);
    }
}

static void req_run(struct req *rq, enum step s);

static void
who_cb(void *ctx, uint64_t id, int err, const struct jwt_identity *who)
{
    struct worker *w = ctx;
    struct req *rq = req_find(w, id);

    if (rq == NULL)
        return;
    if (err == KMS_OK)
        rq->who = *who;
    req_run(rq, who_is(rq, err));
}

/* A service asks for a channel: by a proof, as whoever carries its message has no part in it; else
 * by the connection's certificate. */
static enum step
who_new_service(struct req *rq)
{
    const struct service_cert *tls = rq->peer->cert;
    const char *why = NULL;
    int r;

    if (rq->msg.cred_jwk == NULL && tls == NULL)
        return refuse(rq, KMS_CODE_TOKEN,
                      rq->peer->why != NULL ? rq->peer->why
                                            : "client.credential.bearer is missing");
    rq->kind = PRINCIPAL_SERVICE;
    if ((rq->cert = calloc(1, sizeof(*rq->cert))) == NULL)
        return refuse(rq, KMS_CODE_OVERLOADED, NULL);
    if (rq->msg.cred_jwk == NULL) {
        *rq->cert = *tls;
        return go(rq, REQ_ADMIT);
    }
    r = services_prove(rq->w->services, rq->cert, rq->jti_hash, rq->msg.cred_jwk, rq->msg.proof,
                       rq->msg.jwk, rq->w->cluster, wall_ms(), &why);
    if (r == KMS_ERR_NOMEM)
        return refuse(rq, KMS_CODE_OVERLOADED, NULL);
    if (r != KMS_OK)
        return refuse(rq, KMS_CODE_TOKEN, why);
    rq->has_jti = true;
    return go(rq, REQ_ADMIT);
}

/*
 * A service on a channel: it names the key that it proved, or comes on a connection with its
 * certificate.  That it could write the message at all proves more than either; they are asked for
 * so that a channel is never used by another than who made it.
 */
static enum step
who_service(struct req *rq)
{
    const struct channel_owner *owner = &rq->channel->owner;
    const struct service_cert *tls = rq->peer->cert;
    unsigned char thumb[JWK_THUMBPRINT_LEN];

    if (rq->msg.cred_jwk == NULL && tls == NULL)
        return refuse(rq, KMS_CODE_TOKEN,
                      rq->peer->why != NULL ? rq->peer->why
                                            : "client.credential.bearer is missing");
    rq->kind = PRINCIPAL_SERVICE;
    if (owner->kind != PRINCIPAL_SERVICE)
        return refuse(rq, KMS_CODE_WRONG_PRINCIPAL, NULL);
    if (rq->msg.cred_jwk != NULL) {
        if (service_jwk_thumbprint(thumb, rq->msg.cred_jwk) != KMS_OK)
            return refuse(rq, KMS_CODE_TOKEN, "client.credential.jwk is no public key");
        if (memcmp(thumb, owner->thumb, sizeof(thumb)) != 0)
            return refuse(rq, KMS_CODE_WRONG_PRINCIPAL, NULL);
    } else if (strcmp(tls->identity, owner->identity) != 0) {
        return refuse(rq, KMS_CODE_WRONG_PRINCIPAL, NULL);
    }
    snprintf(rq->who.subject, sizeof(rq->who.subject), "%s", owner->subject);
    return go(rq, REQ_ADMIT);
}

static enum step
req_who(struct req *rq)
{
    int r;

    if (rq->msg.bearer == NULL)
        return rq->channel == NULL ? who_new_service(rq) : who_service(rq);
    if ((r = anonymous_verify(rq)) != KMS_ERR_NOT_FOUND)
        return who_is(rq, r);
    r = tokens_verify(rq->w->tokens, rq->msg.bearer, &rq->who, who_cb, rq->w, rq->id);
    return r == KMS_ERR_AGAIN ? STEP_WAIT : who_is(rq, r);
}

/* What may be said without asking the database; it says the rest, and this again. */
static enum step
admit_service(struct req *rq)
{
    if (rq->msg.on_behalf_of != NULL)
        return refuse(rq, KMS_CODE_ROLE, "onBehalfOf is not for services");
    if (call_of(rq) == SC_NOTHING)
        return refuse(rq, KMS_CODE_PURPOSE, "a service may retrieve keys and nothing else");
    return go(rq, before_state(rq));
}

/* Counted by all workers together; by each for itself, its part, only for who finds no place among
 * more services than there will be. */
static bool
service_rate(struct req *rq)
{
    const struct channel_owner *owner = &rq->channel->owner;
    struct shared *sh = rq->w->shared;
    long long share;

    switch (rate_shared_take(&sh->by_service, owner->subject, owner->rate, now_us())) {
    case RATE_YES:
        return true;
    case RATE_NO:
        return false;
    case RATE_NO_SLOT:
        break;
    }
    share = owner->rate / (long long)sh->workers;
    return rate_take_of(rq->w->by_service, owner->subject, share > 0 ? share : 1, 1, now_us());
}

static enum step
req_admit(struct req *rq)
{
    const struct config *cfg = rq->w->cfg;
    const struct channel_owner *owner = rq->channel != NULL ? &rq->channel->owner : NULL;
    char name[2 * JWT_SUBJECT_MAX + 2];
    const char *why;
    int code;

    /* A channel belongs to whom it was made for (protocol section 3). */
    if (owner != NULL && (owner->kind != rq->kind || strcmp(owner->org_name, rq->who.org) != 0 ||
                          strcmp(owner->subject, rq->who.subject) != 0))
        return refuse(rq, KMS_CODE_WRONG_PRINCIPAL, NULL);
    if (rq->kind == PRINCIPAL_SERVICE) {
        if (owner != NULL && !service_rate(rq))
            return refuse(rq, KMS_CODE_RATE, NULL);
        return admit_service(rq);
    }
    /* The installation is no organisation. */
    if (rq->who.org[0] == '\0')
        return refuse(rq, KMS_CODE_TOKEN, NULL);
    snprintf(name, sizeof(name), "%s/%s", rq->who.org, rq->who.subject);
    if (!rate_take(rq->w->by_subject, name, 1, now_us()))
        return refuse(rq, KMS_CODE_RATE, NULL);
    if (call_of(rq) == SC_NOTHING)
        return refuse(rq, KMS_CODE_PURPOSE, "only a service may ask for keys by purpose or matter");
    if (rq->msg.on_behalf_of != NULL && strcmp(rq->msg.on_behalf_of, rq->who.subject) == 0)
        rq->msg.on_behalf_of = NULL;
    if (rq->msg.on_behalf_of != NULL && rq->msg.method != KMS_RETRIEVE)
        return refuse(rq, KMS_CODE_ROLE, "onBehalfOf is for retrieving only");
    if (main_key_asked(rq) && (code = main_key_admit(rq, &why)) != KMS_CODE_OK)
        return refuse(rq, code, why);
    if (rq->msg.op == OP_RESOURCE_CREATE && rq->msg.zero_trust &&
        (rq->msg.count > 0 || rq->msg.n_keys > 0))
        return refuse(rq, KMS_CODE_ZERO_TRUST, NULL);
    if (rq->msg.op == OP_RESOURCE_CREATE && rq->msg.ttl > 0 &&
        (rq->msg.ttl < cfg->ttl_min || rq->msg.ttl > cfg->ttl_max)) {
        if (asprintf(&rq->why_owned, "ttl must be 0 (for ever) or from %lld to %lld seconds",
                     cfg->ttl_min, cfg->ttl_max) < 0)
            rq->why_owned = NULL;
        return refuse(rq, KMS_CODE_MEMBER, rq->why_owned);
    }
    return go(rq, before_state(rq));
}

/* --- REQ_ORG, REQ_MONTH, REQ_MINT: new keys --- */

/* Does something say when the new keys will end?  Then they are wrapped with all that ends in that
 * month, and go with it (sql/0013_destruction.sql). */
static bool
may_end(const struct req *rq)
{
    switch (rq->msg.op) {
    case OP_RESOURCE_CREATE:
        return rq->msg.ttl > 0;
    case OP_RESOURCE_ROTATE:
    case OP_RECORDING_CREATE:
        return true;
    case OP_AUTHORIZATION_DELETE:
        return rq->msg.has_resource && rq->rotates == 1; /* else they are moved later */
    default:
        return false;
    }
}

static enum step
req_month(struct req *rq)
{
    state_submit(rq->w->state, SC_MINT_UNDER, rq);
    return STEP_WAIT;
}

static enum step
req_org(struct req *rq)
{
    const char *name = rq->channel != NULL ? rq->channel->owner.org_name : rq->who.org;

    /* The keeper found another root in this token: what we would wrap, no other node could open. */
    if (atomic_load(&rq->w->shared->root_wrong))
        return refuse(rq, KMS_CODE_HSM, NULL);
    switch (orgs_get(rq->w->orgs, name, rq->id, &rq->org, &rq->wk)) {
    case KMS_OK:
        return go(rq, may_end(rq) ? REQ_MONTH : REQ_MINT);
    case KMS_ERR_AGAIN:
        return STEP_WAIT;
    case KMS_ERR_NOT_FOUND:
        if (rq->kind == PRINCIPAL_SERVICE) /* the keeper has not made the installation's key yet */
            return refuse(rq, KMS_CODE_OVERLOADED, NULL);
        return refuse(rq, KMS_CODE_TOKEN, "the token's organisation is not known here");
    default:
        return refuse(rq, KMS_CODE_DATABASE, NULL);
    }
}

static void
minted_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
          const unsigned char *blob)
{
    struct worker *w = ctx;
    struct req *rq = req_find(w, id);

    if (rq == NULL)
        return;
    if (err == KMS_OK) {
        if (rq->msg.op == OP_CHANNEL_CREATE)
            memcpy(rq->new_channel_blob, blob, HSM_BLOB_LEN);
        else if ((rq->minted[index].secret = secret_from(key)) == NULL)
            err = KMS_ERR_NOMEM;
        else
            memcpy(rq->minted[index].blob, blob, HSM_BLOB_LEN);
    }
    if (err != KMS_OK && rq->failed == KMS_OK)
        rq->failed = err;
    if (--rq->waiting == 0)
        req_wake(w, id);
}

/* The channel's key: our fresh pair against the client's (protocol section 2), wrapped like any
 * other. */
static int
mint_channel(struct req *rq)
{
    int r;

    EVP_PKEY_free(rq->new_channel_pair);
    secret_free(rq->new_channel_key);
    rq->new_channel_key = NULL;
    if ((rq->new_channel_pair = ecdh_generate()) == NULL)
        return KMS_ERR_NOMEM;
    if ((r = uuid_random(&rq->new_channel)) != KMS_OK ||
        (r = ecdh_channel_key(&rq->new_channel_key, rq->new_channel_pair, rq->msg.jwk)) != KMS_OK)
        return r;
    rq->waiting = 1;
    return hsm_wrap(rq->w->hsm, &rq->wk, HSM_CHANNEL_KEY, rq->new_channel.b, rq->new_channel_key->b,
                    minted_cb, rq->w, rq->id, 0);
}

static int
mint_keys(struct req *rq)
{
    unsigned i, n = new_keys(rq);
    int r;

    if (rq->minted == NULL && (rq->minted = calloc(n, sizeof(*rq->minted))) == NULL)
        return KMS_ERR_NOMEM;
    for (i = 0; i < n; i++) {
        secret_free(rq->minted[i].secret);
        rq->minted[i].secret = NULL;
        if ((r = uuid_random(&rq->minted[i].id)) != KMS_OK)
            return r;
    }
    rq->n_minted = n;
    for (i = 0; i < n; i++) {
        r = hsm_generate(rq->w->hsm, &rq->wk, HSM_CONTENT_KEY, rq->minted[i].id.b, minted_cb, rq->w,
                         rq->id, i);
        if (r == KMS_OK)
            rq->waiting++;
        else if (rq->failed == KMS_OK)
            rq->failed = r;
    }
    return rq->waiting > 0 ? KMS_OK : rq->failed;
}

static enum step
req_mint(struct req *rq)
{
    int r;

    if (rq->waiting == 0 && rq->n_minted == 0 && rq->new_channel_key == NULL) {
        count_add(CT_HSM_ITEMS, rq->msg.op == OP_CHANNEL_CREATE ? 1 : new_keys(rq));
        r = rq->msg.op == OP_CHANNEL_CREATE ? mint_channel(rq) : mint_keys(rq);
        if (r == KMS_OK)
            return STEP_WAIT;
        rq->waiting = 0;
        if (r == KMS_ERR_KEY)
            return refuse(rq, KMS_CODE_MEMBER, "jwk is not a key that may be used");
        rq->failed = r;
    }
    if (rq->failed != KMS_OK) {
        count_add(CT_HSM_FAILURES, 1);
        log_error("keys could not be made", "request_id", rq->request_id, "why",
                  kms_strerror(rq->failed), NULL);
        return refuse(rq, KMS_CODE_HSM, NULL);
    }
    if (rq->msg.op == OP_RECORDING_CREATE) {
        if (RAND_bytes(rq->iv, sizeof(rq->iv)) != 1)
            return refuse(rq, KMS_CODE_OVERLOADED, NULL);
        kms_date_format(rq->aad, wall_ms());
    }
    return go(rq, REQ_STATE);
}

/* --- REQ_STATE: the database --- */

static enum step
req_state_ask(struct req *rq)
{
    state_submit(rq->w->state, call_of(rq), rq);
    return STEP_WAIT;
}

static void
forget_minted(struct req *rq)
{
    unsigned i;

    for (i = 0; i < rq->n_minted; i++) {
        secret_free(rq->minted[i].secret);
        rq->minted[i].secret = NULL;
    }
    rq->n_minted = 0;
}

/* The organisation got a new wrapping key since we looked: wrap anew under that. */
static enum step
stale(struct req *rq)
{
    orgs_forget(rq->w->orgs, rq->channel != NULL ? rq->channel->owner.org_name : rq->who.org);
    if (++rq->tries > STALE_TRIES)
        return refuse(rq, KMS_CODE_DATABASE, NULL);
    forget_minted(rq);
    secret_free(rq->new_channel_key);
    rq->new_channel_key = NULL;
    return go(rq, REQ_ORG);
}

/*
 * The organisation wants keys made with every removal that who is removed never had: of the
 * resource, and of what is open to it.  More may be opened to it while they are made: a few more
 * then, of which those that are not needed are thrown away.
 */
static enum step
rotate(struct req *rq)
{
    json_int_t n = json_integer_value(json_object_get(rq->result, "keys"));

    if (n < 1 || n > ROTATE_MAX || ++rq->tries > STALE_TRIES)
        return refuse(rq, KMS_CODE_DATABASE, NULL);
    if (n > 1)
        n += ROTATE_MORE << rq->tries;
    forget_minted(rq);
    free(rq->minted);
    rq->minted = NULL;
    rq->rotates = (unsigned)(n < ROTATE_MAX ? n : ROTATE_MAX);
    return go(rq, REQ_ORG);
}

/* Keys that were made for this request need not be unwrapped to be answered. */
static int
take_minted(struct req *rq)
{
    size_t i;
    unsigned k;

    for (i = 0; i < rq->n_released; i++) {
        struct released *r = &rq->released[i];

        for (k = 0; k < rq->n_minted && r->secret == NULL; k++) {
            if (memcmp(&rq->minted[k].id, &r->key, sizeof(r->key)) == 0) {
                r->secret = rq->minted[k].secret;
                rq->minted[k].secret = NULL;
            }
        }
        if (r->secret == NULL)
            return KMS_ERR_PROTOCOL;
    }
    return KMS_OK;
}

/* What SQL answered that is not an answer yet. */
static int
state_load(struct req *rq)
{
    switch (rq->msg.op) {
    case OP_RESOURCE_ROTATE:
        return take_minted(rq);
    case OP_RECORDING_CREATE:
    case OP_RECORDING_UPDATE:
    case OP_RECORDING_GET:
    case OP_RECORDINGS_LIST:
        return recordings_load(rq);
    default:
        return KMS_OK;
    }
}

/* What was changed stays so, and 503 would be untrue. */
static enum step
fail_late(struct req *rq, int code)
{
    rq->code = code;
    if (rq->msg.method != KMS_RETRIEVE)
        return req_end(rq, REQ_UNKNOWN);
    return refuse(rq, code, NULL);
}

static enum step
state_judged(struct req *rq, int verdict)
{
    const char *name = rq->channel != NULL ? rq->channel->owner.org_name : rq->who.org;
    int r;

    if (verdict == -1)
        return stale(rq);
    if (verdict == -2)
        return rotate(rq);
    if (verdict == KMS_CODE_RESET && rq->channel != NULL) {
        channels_drop(rq->w->channels, &rq->channel->id);
        return unreadable(rq, KMS_CODE_RESET);
    }
    if (verdict != KMS_CODE_OK) {
        rq->recorded = true;
        if (rq->result != NULL && json_is_string(json_object_get(rq->result, "why")))
            rq->why_owned = strdup(json_string_value(json_object_get(rq->result, "why")));
        log_info("refused", "request_id", rq->request_id, "op", kms_op_name(rq->msg.op), "error%d",
                 verdict, "peer", rq->peer->address, NULL);
        return refuse(rq, verdict, rq->why_owned);
    }
    if (main_key_asked(rq) && main_key_waits(rq)) {
        if (main_key_wait(rq))
            return STEP_WAIT;
        return req_end(rq, REQ_UNKNOWN);
    }
    switch (rq->msg.op) {
    case OP_CHANNEL_CREATE:
        count_add(CT_CHANNELS_CREATED, 1);
        orgs_count_wraps(rq->w->orgs, name, 1);
        break;
    case OP_CHANNEL_DELETE:
        channels_drop(rq->w->channels, &rq->msg.uri.id);
        break;
    default:
        if (rq->n_minted > 0) {
            const json_t *rotated = json_object_get(rq->result, "rotated");

            count_add(CT_KEYS_CREATED, json_is_integer(rotated)
                                           ? (uint64_t)json_integer_value(rotated)
                                           : rq->n_minted);
            orgs_count_wraps(rq->w->orgs, name, rq->n_minted);
        }
        break;
    }
    if ((r = state_load(rq)) != KMS_OK) {
        log_error("a database result could not be read", "op", kms_op_name(rq->msg.op),
                  "request_id", rq->request_id, "why", kms_strerror(r), NULL);
        return fail_late(rq, KMS_CODE_DATABASE);
    }
    if (rq->release.unfit) {
        log_error("a service's registered key cannot be used", "service", rq->release.service,
                  "request_id", rq->request_id, NULL);
        return refuse(rq, KMS_CODE_OVERLOADED, NULL);
    }
    if (rq->msg.op == OP_KEY_GET && rq->n_released == 0) {
        log_error("a stored key does not open: what it is wrapped by is not there", "request_id",
                  rq->request_id, NULL);
        return fail_late(rq, KMS_CODE_HSM);
    }
    if (ops[rq->msg.op].unwraps && rq->n_released > 0)
        return go(rq, REQ_UNWRAP);
    return go(rq, ops[rq->msg.op].bearers && rq->msg.anonymous > 0 ? REQ_BEARERS : REQ_WRITE);
}

void
req_state_done(struct req *rq, int err, int verdict)
{
    /* A keeper may be doing it: so whatever became of this question, only the answer to the next
     * one tells. */
    if (err != KMS_OK && rq->waits && rq->state == REQ_STATE) {
        if (main_key_too_late(rq) || !main_key_wait(rq))
            req_end(rq, REQ_UNKNOWN);
        return;
    }
    if (err == KMS_ERR_TIMEOUT && rq->state != REQ_ALIVE && rq->state != REQ_MONTH) {
        req_end(rq, REQ_UNKNOWN);
        return;
    }
    if (err != KMS_OK)
        /* Nothing was changed, nor put on record: so nothing may be said but that. */
        rq->recorded = true;
    if (err != KMS_OK)
        req_run(rq, refuse(rq, KMS_CODE_DATABASE, NULL));
    else if (rq->state == REQ_MONTH) /* of a zero-trust meeting no key is even made */
        req_run(rq, verdict != KMS_CODE_OK ? refuse(rq, verdict, NULL) : go(rq, REQ_MINT));
    else if (rq->state == REQ_RECORD)
        req_run(rq, go(rq, rq->channel != NULL ? REQ_ALIVE : REQ_WRITE));
    else if (rq->state == REQ_ALIVE)
        req_run(rq, verdict == KMS_CODE_RESET ? state_judged(rq, verdict) : go(rq, REQ_WRITE));
    else
        req_run(rq, state_judged(rq, verdict));
}

/* --- REQ_UNWRAP, REQ_BEARERS: what only hsmd can do --- */

static void
unwrapped_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
             const unsigned char *blob)
{
    struct worker *w = ctx;
    struct req *rq = req_find(w, id);

    if (rq == NULL)
        return;
    if (err == KMS_OK && (rq->released[index].secret = secret_from(key)) == NULL)
        err = KMS_ERR_NOMEM;
    if (err != KMS_OK && rq->failed == KMS_OK)
        rq->failed = err;
    if (err == KMS_ERR_CRYPTO) {
        char text[UUID_TEXT + 1];

        uuid_format(text, &rq->released[index].key);
        log_error("a stored key does not open: moved, damaged, or another token", "key", text,
                  "request_id", rq->request_id, NULL);
    }
    if (--rq->waiting == 0)
        req_wake(w, id);
}

static enum step
req_unwrap(struct req *rq)
{
    unsigned i;
    int r;

    if (rq->waiting == 0 && rq->released[0].secret == NULL && rq->failed == KMS_OK) {
        count_add(CT_HSM_ITEMS, rq->n_released);
        for (i = 0; i < rq->n_released; i++) {
            struct released *k = &rq->released[i];

            r = hsm_unwrap(rq->w->hsm, &k->wk, HSM_CONTENT_KEY, k->key.b, k->blob, unwrapped_cb,
                           rq->w, rq->id, i);
            if (r == KMS_OK)
                rq->waiting++;
            else if (rq->failed == KMS_OK)
                rq->failed = r;
        }
        if (rq->waiting > 0)
            return STEP_WAIT;
    }
    if (rq->failed != KMS_OK) {
        count_add(CT_HSM_FAILURES, 1);
        /* Binding a key again is answered with the key (protocol section 4). */
        return fail_late(rq, KMS_CODE_HSM);
    }
    count_add(CT_KEYS_RELEASED, rq->n_released);
    if (rq->kind == PRINCIPAL_SERVICE)
        count_add(CT_SERVICE_KEYS_RELEASED, rq->n_released);
    return go(rq, rq->release.to != NULL ? REQ_ENCLOSE : REQ_WRITE);
}

/* The key as {kid, kty, k}, as a JWE to the service's own key; nothing of it stays here. */
static int
enclose(struct req *rq, struct released *k)
{
    struct buf jwk = BUF_INIT;
    struct answer a = {.out = &jwk};
    int r;

    answer_jwk(&a, NULL, rq->w->cfg->domain, &k->key, k->secret->b);
    if ((r = a.err) == KMS_OK)
        r = jwe_seal_to(&k->jwe, rq->release.to, rq->release.to_kid, "jwk+json", jwk.data, jwk.len);
    buf_release(&jwk);
    secret_free(k->secret);
    k->secret = NULL;
    return r;
}

struct turn {
    struct worker *w;
    uint64_t id;
};

static void
turn_cb(evutil_socket_t fd, short what, void *arg)
{
    struct turn t = *(struct turn *)arg;

    free(arg);
    req_wake(t.w, t.id);
}

/* Public key operations take their time: other requests get theirs between some of them. */
static enum step
req_enclose(struct req *rq)
{
    static const struct timeval at_once = {0, 0};
    struct service_release *rel = &rq->release;
    struct turn *t;
    unsigned n;
    int r = KMS_OK;

    for (n = 0; n < ENCLOSE_TURN && rel->enclosed < rq->n_released && r == KMS_OK; n++)
        r = enclose(rq, &rq->released[rel->enclosed++]);
    if (r != KMS_OK) {
        log_error("a key could not be enclosed to a service's key", "service", rel->service, "why",
                  kms_strerror(r), "request_id", rq->request_id, NULL);
        return refuse(rq, KMS_CODE_OVERLOADED, NULL);
    }
    if (rel->enclosed == rq->n_released)
        return go(rq, REQ_WRITE);
    if ((t = malloc(sizeof(*t))) == NULL)
        return STEP_NEXT;
    t->w = rq->w;
    t->id = rq->id;
    if (event_base_once(rq->w->base, -1, EV_TIMEOUT, turn_cb, t, &at_once) == 0)
        return STEP_WAIT;
    free(t);
    return STEP_NEXT;
}

static void
bearer_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *sig, size_t len)
{
    struct worker *w = ctx;
    struct req *rq = req_find(w, id);

    if (rq == NULL)
        return;
    if (err == KMS_OK)
        err = jws_end(&rq->bearers[index].token, sig, len);
    if (err != KMS_OK && rq->failed == KMS_OK)
        rq->failed = err;
    if (--rq->waiting == 0)
        req_wake(w, id);
}

static int
bearer_claims(struct req *rq, struct buf *out, const json_t *a, struct uuid *id)
{
    const char *domain = rq->w->cfg->domain;
    const char *text = json_string_value(json_object_get(a, "id"));
    const char *resource = json_string_value(json_object_get(a, "resource"));
    const json_t *expires = json_object_get(a, "expires");
    struct uuid res;
    struct answer w = {.out = out};

    if (text == NULL || resource == NULL || uuid_parse(id, text, strlen(text)) != KMS_OK ||
        uuid_parse(&res, resource, strlen(resource)) != KMS_OK)
        return KMS_ERR_PROTOCOL;
    answer_open(&w, NULL, '{');
    answer_text(&w, "iss", rq->w->cluster);
    answer_text(&w, "aud", rq->w->cluster);
    answer_uri(&w, "sub", domain, "authorizations", id);
    answer_uri(&w, "resourceUri", domain, "resources", &res);
    answer_text(&w, "org", rq->channel->owner.org_name);
    answer_int(&w, "iat", wall_ms() / 1000);
    if (json_is_integer(expires))
        answer_int(&w, "exp", json_integer_value(expires) / 1000);
    return answer_end(&w);
}

static enum step
req_bearers(struct req *rq)
{
    const json_t *all = json_object_get(rq->result, "authorizations");
    const json_t *a;
    struct buf claims = BUF_INIT;
    unsigned char digest[32];
    size_t i;
    int r;

    if (rq->bearers == NULL) {
        if ((rq->bearers = calloc((size_t)rq->msg.anonymous, sizeof(*rq->bearers))) == NULL)
            return req_end(rq, REQ_UNKNOWN);
        json_array_foreach(all, i, a)
        {
            const char *kind = json_string_value(json_object_get(a, "kind"));
            struct bearer *b = &rq->bearers[rq->n_bearers];

            if (kind == NULL || strcmp(kind, "anonymous") != 0 ||
                rq->n_bearers == (unsigned)rq->msg.anonymous)
                continue;
            rq->n_bearers++;
            if ((r = bearer_claims(rq, &claims, a, &b->authorization)) == KMS_OK &&
                (r = jws_begin(&b->token, JWS_PS256, rq->w->static_kid, "JWT", claims.data,
                               claims.len, digest)) == KMS_OK)
                r = hsm_sign_pss(rq->w->hsm, digest, bearer_cb, rq->w, rq->id, rq->n_bearers - 1);
            buf_reset(&claims);
            if (r == KMS_OK)
                rq->waiting++;
            else if (rq->failed == KMS_OK)
                rq->failed = r;
        }
        buf_release(&claims);
        if (rq->waiting > 0)
            return STEP_WAIT;
    }
    /* The authorisations are made: without their bearers there is nothing true to say but that we
     * do not know. */
    if (rq->failed != KMS_OK)
        return req_end(rq, REQ_UNKNOWN);
    return go(rq, REQ_WRITE);
}

/* --- REQ_WRITE: the answer's text --- */

static void
put_key(struct req *rq, struct answer *a, const char *name, const struct released *k)
{
    const char *domain = rq->w->cfg->domain;

    answer_open(a, name, '{');
    answer_uri(a, "uri", domain, "keys", &k->key);
    if (rq->release.to != NULL)
        answer_raw_text(a, "jwe", &k->jwe);
    else
        answer_jwk(a, "jwk", domain, &k->key, k->secret->b);
    answer_text(a, "userId", k->user_id);
    answer_text(a, "clientId", k->client_id);
    answer_date(a, "createDate", k->created);
    if (k->expires != INT64_MIN)
        answer_date(a, "expirationDate", k->expires);
    if (k->bound != INT64_MIN)
        answer_date(a, "bindDate", k->bound);
    if (k->has_resource)
        answer_uri(a, "resourceUri", domain, "resources", &k->resource);
    answer_close(a, '}');
}

static void
write_nothing(struct req *rq, struct answer *a)
{
}

/* What a service got them as: what is on record says the same. */
static void
put_release(struct req *rq, struct answer *a)
{
    const struct service_release *rel = &rq->release;
    struct buf cursor = BUF_INIT;

    if (rq->kind != PRINCIPAL_SERVICE)
        return;
    answer_text(a, "service", rel->service);
    answer_text(a, "purpose", rel->purpose);
    if (rel->has_matter)
        answer_id(a, "matter", &rel->matter);
    if (rel->cursor_len > 0) {
        if (b64url_put(&cursor, rel->cursor, rel->cursor_len) != KMS_OK)
            a->err = KMS_ERR_NOMEM;
        answer_text(a, "cursor", buf_str(&cursor));
        buf_release(&cursor);
    }
}

static void
write_key(struct req *rq, struct answer *a)
{
    put_release(rq, a);
    if (rq->n_released == 1)
        put_key(rq, a, "key", &rq->released[0]);
    else
        a->err = KMS_ERR_PROTOCOL;
}

static void
write_keys(struct req *rq, struct answer *a)
{
    size_t i;

    put_release(rq, a);
    answer_open(a, "keys", '[');
    for (i = 0; i < rq->n_released; i++)
        put_key(rq, a, NULL, &rq->released[i]);
    answer_close(a, ']');
}

static void
write_keys_created(struct req *rq, struct answer *a)
{
    const char *domain = rq->w->cfg->domain;
    unsigned i;

    answer_open(a, "keys", '[');
    for (i = 0; i < rq->n_minted; i++) {
        answer_open(a, NULL, '{');
        answer_uri(a, "uri", domain, "keys", &rq->minted[i].id);
        answer_jwk(a, "jwk", domain, &rq->minted[i].id, rq->minted[i].secret->b);
        answer_text(a, "userId", rq->who.subject);
        answer_text(a, "clientId", rq->msg.client_id);
        answer_date(a, "createDate", rq->created);
        answer_date(a, "expirationDate", rq->expires);
        answer_close(a, '}');
    }
    answer_close(a, ']');
}

static void
write_channel(struct req *rq, struct answer *a)
{
    json_t *jwk = jwk_from_public(rq->new_channel_pair);
    struct buf text = BUF_INIT;

    if (jwk == NULL || kms_json_put(&text, jwk) != KMS_OK)
        a->err = KMS_ERR_NOMEM;
    answer_open(a, "key", '{');
    answer_uri(a, "uri", rq->w->cfg->domain, "ecdhe", &rq->new_channel);
    answer_raw(a, "jwk", buf_str(&text), text.len);
    answer_text(a, "userId", rq->who.subject);
    answer_text(a, "clientId", rq->msg.client_id);
    answer_date(a, "createDate", rq->created);
    answer_date(a, "expirationDate", rq->expires);
    answer_close(a, '}');
    json_decref(jwk);
    buf_release(&text);
}

/* A URI from an id that the database gave as text. */
static void
put_id(struct req *rq, struct answer *a, const char *name, const char *collection, const json_t *id)
{
    answer_id_uri(a, name, rq->w->cfg->domain, collection, id);
}

static void
put_authorization(struct req *rq, struct answer *a, const char *name, const json_t *auth)
{
    const char *kind = json_string_value(json_object_get(auth, "kind"));
    const json_t *grantee = json_object_get(auth, "grantee");
    bool to_resource = kind != NULL && strcmp(kind, "resource") == 0;
    struct uuid id;
    const char *text = json_string_value(json_object_get(auth, "id"));
    unsigned i;

    answer_open(a, name, '{');
    put_id(rq, a, "uri", "authorizations", json_object_get(auth, "id"));
    if (to_resource)
        put_id(rq, a, "authId", "resources", grantee);
    else if (json_is_string(grantee))
        answer_text(a, "authId", json_string_value(grantee));
    else if (text != NULL && uuid_parse(&id, text, strlen(text)) == KMS_OK)
        for (i = 0; i < rq->n_bearers; i++)
            if (memcmp(&rq->bearers[i].authorization, &id, sizeof(id)) == 0)
                answer_text(a, "bearer", buf_str(&rq->bearers[i].token));
    answer_date(a, "createDate", json_integer_value(json_object_get(auth, "created")));
    /* In a list, a grantee that is a resource stands in both places: the SDK's tests look for it
     * there. */
    put_id(rq, a, "resourceUri", "resources",
           to_resource && rq->msg.op == OP_AUTHORIZATIONS_LIST ? grantee
                                                               : json_object_get(auth, "resource"));
    answer_close(a, '}');
}

static void
write_authorizations(struct req *rq, struct answer *a)
{
    const json_t *auth;
    size_t i;

    answer_open(a, "authorizations", '[');
    json_array_foreach(json_object_get(rq->result, "authorizations"), i, auth)
    {
        put_authorization(rq, a, NULL, auth);
    }
    answer_close(a, ']');
}

/* Both forms: the draft's one object, the SDK's list.  Of several the object names them all, as the
 * later draft has it. */
static void
write_removed(struct req *rq, struct answer *a)
{
    const json_t *all = json_object_get(rq->result, "authorizations"), *auth;
    const char *domain = rq->w->cfg->domain, *text;
    struct buf uri = BUF_INIT;
    struct uuid u;
    size_t i;

    if (json_array_size(all) == 1) {
        put_authorization(rq, a, "authorization", json_array_get(all, 0));
    } else {
        answer_open(a, "authorization", '{');
        if (buf_putf(&uri, "kms://%s/authorizations", domain) != KMS_OK)
            a->err = KMS_ERR_NOMEM;
        answer_text(a, "uri", buf_str(&uri));
        answer_open(a, "authIds", '[');
        json_array_foreach(all, i, auth)
        {
            const char *kind = json_string_value(json_object_get(auth, "kind"));

            text = json_string_value(json_object_get(auth, "grantee"));
            if (text == NULL)
                continue;
            if (kind != NULL && strcmp(kind, "resource") == 0 &&
                uuid_parse(&u, text, strlen(text)) == KMS_OK)
                answer_uri(a, NULL, domain, "resources", &u);
            else
                answer_text(a, NULL, text);
        }
        answer_close(a, ']');
        put_id(rq, a, "resourceUri", "resources", json_object_get(rq->result, "resource"));
        answer_close(a, '}');
        buf_release(&uri);
    }
    write_authorizations(rq, a);
}

/* Keys that were made with the resource: bound as it was made. */
static void
put_new_keys(struct req *rq, struct answer *a)
{
    const json_t *created = json_object_get(rq->result, "created");
    const char *domain = rq->w->cfg->domain;
    int64_t now = json_integer_value(created), lifetime = rq->w->cfg->bound_key * 1000;
    unsigned i;

    answer_open(a, "keys", '[');
    for (i = 0; i < rq->n_minted; i++) {
        answer_open(a, NULL, '{');
        answer_uri(a, "uri", domain, "keys", &rq->minted[i].id);
        answer_jwk(a, "jwk", domain, &rq->minted[i].id, rq->minted[i].secret->b);
        answer_text(a, "userId", rq->who.subject);
        answer_text(a, "clientId", rq->msg.client_id);
        answer_date(a, "createDate", now);
        if (lifetime > 0)
            answer_date(a, "expirationDate", now + lifetime);
        answer_date(a, "bindDate", now);
        put_id(rq, a, "resourceUri", "resources", json_object_get(rq->result, "resource"));
        answer_close(a, '}');
    }
    answer_close(a, ']');
}

static void
write_resource(struct req *rq, struct answer *a)
{
    const json_t *v, *expires = json_object_get(rq->result, "expires");
    const json_t *active = json_object_get(rq->result, "active");
    static const char *const texts[] = {"kind", "security"};
    const char *text;
    size_t i;

    answer_open(a, "resource", '{');
    put_id(rq, a, "uri", "resources", json_object_get(rq->result, "resource"));
    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if ((text = json_string_value(json_object_get(rq->result, texts[i]))) != NULL)
            answer_text(a, texts[i], text);
    if (rq->n_minted > 0) {
        put_new_keys(rq, a);
    } else {
        answer_open(a, "keyUris", '[');
        json_array_foreach(json_object_get(rq->result, "keys"), i, v)
        {
            put_id(rq, a, NULL, "keys", v);
        }
        answer_close(a, ']');
    }
    if (json_is_string(active))
        put_id(rq, a, "activeKeyUri", "keys", active);
    answer_open(a, "authorizationUris", '[');
    json_array_foreach(json_object_get(rq->result, "authorizations"), i, v)
    {
        put_id(rq, a, NULL, "authorizations", json_object_get(v, "id"));
    }
    answer_close(a, ']');
    /* A bearer is shown once, when it is made, so its authorisation must stand here whole. */
    if (rq->n_bearers > 0)
        write_authorizations(rq, a);
    answer_date(a, "createDate", json_integer_value(json_object_get(rq->result, "created")));
    if (json_is_integer(expires))
        answer_date(a, "expirationDate", json_integer_value(expires));
    answer_close(a, '}');
}

/* A receipt: who got keys of the resource, when and for what. */
static void
put_receipt(struct req *rq, struct answer *a, const json_t *receipt)
{
    static const char *const texts[] = {"by", "name", "purpose"};
    const json_t *matter = json_object_get(receipt, "matter"), *key;
    const char *text;
    size_t i;

    answer_open(a, NULL, '{');
    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if ((text = json_string_value(json_object_get(receipt, texts[i]))) != NULL)
            answer_text(a, texts[i], text);
    answer_date(a, "date", json_integer_value(json_object_get(receipt, "date")));
    answer_open(a, "keyUris", '[');
    json_array_foreach(json_object_get(receipt, "keys"), i, key)
    {
        put_id(rq, a, NULL, "keys", key);
    }
    answer_close(a, ']');
    if (json_is_object(matter)) {
        answer_open(a, "matter", '{');
        put_id(rq, a, "uri", "matters", json_object_get(matter, "id"));
        if ((text = json_string_value(json_object_get(matter, "name"))) != NULL)
            answer_text(a, "name", text);
        answer_close(a, '}');
    }
    answer_close(a, '}');
}

static void
write_releases(struct req *rq, struct answer *a)
{
    const json_t *receipt;
    size_t i;

    answer_open(a, "releases", '[');
    json_array_foreach(json_object_get(rq->result, "releases"), i, receipt)
    {
        put_receipt(rq, a, receipt);
    }
    answer_close(a, ']');
}

static enum step
req_write(struct req *rq)
{
    struct answer a;
    int r;

    buf_reset(&rq->plain);
    if (rq->code != KMS_CODE_OK) {
        r = answer_error(&rq->plain, rq->code, rq->msg.request_id, rq->why);
    } else {
        answer_begin(&a, &rq->plain, ops[rq->msg.op].status, rq->msg.request_id);
        ops[rq->msg.op].write(rq, &a);
        r = answer_end(&a);
    }
    if (r != KMS_OK) {
        log_error("an answer could not be written", "request_id", rq->request_id, "why",
                  kms_strerror(r), NULL);
        return req_end(rq, REQ_UNKNOWN);
    }
    return go(rq, rq->channel != NULL ? REQ_SEAL : REQ_SIGN);
}

/* --- REQ_SIGN, REQ_SEAL: out --- */

static void
signed_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *sig, size_t len)
{
    struct worker *w = ctx;
    struct req *rq = req_find(w, id);

    if (rq == NULL)
        return;
    rq->waiting = 0;
    rq->failed = err == KMS_OK ? jws_end(&rq->out, sig, len) : err;
    req_wake(w, id);
}

static void
keep_channel(struct req *rq)
{
    struct channel_owner owner = {.kind = rq->kind,
                                  .org_name = rq->who.org,
                                  .subject = rq->who.subject,
                                  .client = rq->msg.client_id};

    if (rq->kind == PRINCIPAL_SERVICE) {
        owner.identity = rq->cert->identity;
        memcpy(owner.thumb, rq->cert->thumb, sizeof(owner.thumb));
        owner.rate = rq->rate;
    }
    channels_add(rq->w->channels, &rq->new_channel, &rq->org, &owner, &rq->new_channel_key,
                 rq->expires);
}

static enum step
req_sign(struct req *rq)
{
    unsigned char digest[32];
    bool made = rq->code == KMS_CODE_OK;

    if (rq->out.len == 0) {
        rq->failed = jws_begin(&rq->out, JWS_PS256, rq->w->static_kid, NULL, rq->plain.data,
                               rq->plain.len, digest);
        count_add(CT_HSM_ITEMS, 1);
        if (rq->failed == KMS_OK && (rq->failed = hsm_sign_pss(rq->w->hsm, digest, signed_cb, rq->w,
                                                               rq->id, 0)) == KMS_OK) {
            rq->waiting = 1;
            return STEP_WAIT;
        }
    }
    if (rq->failed != KMS_OK) {
        count_add(CT_HSM_FAILURES, 1);
        rq->code = KMS_CODE_HSM;
        /* A channel that was made but cannot be told of: its key is known to nobody, it runs out by
         * itself. */
        return req_end(rq, made ? REQ_UNKNOWN : REQ_UNAVAILABLE);
    }
    if (made)
        keep_channel(rq);
    return req_end(rq, REQ_ANSWERED);
}

static enum step
req_seal(struct req *rq)
{
    const char *text;
    int r;

    if (rq->unreadable) {
        r = refusals_get(rq->w->refusals,
                         rq->code == KMS_CODE_RESET ? REFUSE_RESET : REFUSE_UNREADABLE, rq->id,
                         &text);
        if (r == KMS_ERR_AGAIN)
            return STEP_WAIT;
        if (r == KMS_OK)
            r = buf_puts(&rq->out, text);
        if (r != KMS_OK)
            return req_end(rq, REQ_UNAVAILABLE);
        return req_end(rq, REQ_ANSWERED);
    }
    r = jwe_seal_dir(&rq->out, rq->channel->kid, rq->channel->key->b, rq->plain.data,
                     rq->plain.len);
    if (r != KMS_OK) {
        log_error("an answer could not be sealed", "request_id", rq->request_id, "why",
                  kms_strerror(r), NULL);
        return req_end(rq, REQ_UNKNOWN);
    }
    return req_end(rq, REQ_ANSWERED);
}

static enum step
req_record(struct req *rq)
{
    state_submit(rq->w->state, SC_REFUSALS_RECORD, rq);
    return STEP_WAIT;
}

/* Every other request asks the state, which knows. */
static enum step
req_alive(struct req *rq)
{
    state_submit(rq->w->state, SC_CHANNELS_CHECK, rq);
    return STEP_WAIT;
}

/* --- the flow --- */

static void
req_run(struct req *rq, enum step s)
{
    while (s == STEP_NEXT) {
        switch (rq->state) {
        case REQ_ROUTE:
            s = req_route(rq);
            break;
        case REQ_CHANNEL:
            s = req_channel(rq);
            break;
        case REQ_STATIC:
            s = req_static(rq);
            break;
        case REQ_OPEN:
            s = req_open(rq);
            break;
        case REQ_WHO:
            s = req_who(rq);
            break;
        case REQ_ADMIT:
            s = req_admit(rq);
            break;
        case REQ_ORG:
            s = req_org(rq);
            break;
        case REQ_MONTH:
            s = req_month(rq);
            break;
        case REQ_MINT:
            s = req_mint(rq);
            break;
        case REQ_STATE:
            s = req_state_ask(rq);
            break;
        case REQ_UNWRAP:
            s = req_unwrap(rq);
            break;
        case REQ_ENCLOSE:
            s = req_enclose(rq);
            break;
        case REQ_BEARERS:
            s = req_bearers(rq);
            break;
        case REQ_RECORD:
            s = req_record(rq);
            break;
        case REQ_ALIVE:
            s = req_alive(rq);
            break;
        case REQ_WRITE:
            s = req_write(rq);
            break;
        case REQ_SIGN:
            s = req_sign(rq);
            break;
        case REQ_SEAL:
            s = req_seal(rq);
            break;
        }
    }
}

void
req_wake(struct worker *w, uint64_t id)
{
    struct req *rq = req_find(w, id);

    if (rq != NULL)
        req_run(rq, STEP_NEXT);
}

int
req_new(struct worker *w, uint64_t post, unsigned index, char *text, size_t len,
        const struct peer *peer)
{
    struct req *rq = calloc(1, sizeof(*rq));

    if (rq == NULL || uuid_random(&rq->op) != KMS_OK) {
        free(rq);
        return KMS_ERR_NOMEM;
    }
    rq->w = w;
    rq->id = ++w->last_req;
    rq->post = post;
    rq->index = index;
    rq->text = text;
    rq->text_len = len;
    rq->peer = peer;
    rq->started = now_us();
    rq->hash_next = w->reqs[rq->id % REQ_BUCKETS];
    w->reqs[rq->id % REQ_BUCKETS] = rq;
    w->n_reqs++;
    count_add(CT_MESSAGES, 1);
    count_add(CT_MESSAGES_INFLIGHT, 1);
    req_run(rq, go(rq, REQ_ROUTE));
    return KMS_OK;
}
