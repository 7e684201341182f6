/* mainkey_req.c - requests about customers' main keys. */
#include "kms/mainkey_req.h"

#include <event2/event.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/hsm.h"
#include "kms/channel.h"
#include "kms/config.h"
#include "kms/fault.h"
#include "kms/req.h"
#include "kms/worker.h"
#include "proto/b64.h"
#include "proto/err.h"

#define AGAIN_MS   30
#define PATIENCE_S 30 /* RSA keys take HSMs long; what else there is takes two calls at most */
#define LATE_S     10 /* after that, for the database to come back */

bool
main_key_asked(const struct req *rq)
{
    switch (rq->msg.op) {
    case OP_PUBLIC_KEY:
    case OP_CMK_CREATE:
    case OP_CMK_LIST:
    case OP_CMK_UPDATE:
    case OP_CMK_DELETE:
        return true;
    default:
        return false;
    }
}

int
main_key_admit(const struct req *rq, const char **why)
{
    *why = NULL;
    if (rq->msg.on_behalf_of != NULL) {
        *why = "onBehalfOf is not for main keys";
        return KMS_CODE_ROLE;
    }
    if (rq->kind != PRINCIPAL_USER || !rq->who.admin) {
        *why = "main keys need the administrator role";
        return KMS_CODE_ROLE;
    }
    if (!rq->w->cfg->byok) {
        *why = "this server keeps no main keys of customers";
        return KMS_CODE_NO_BYOK;
    }
    return KMS_CODE_OK;
}

/* --- asking --- */

static const char *
action(const struct req *rq)
{
    return rq->msg.op == OP_CMK_UPDATE && rq->msg.uri.kind == URI_DEFAULT_CMK
               ? "cmk.default"
               : kms_op_name(rq->msg.op);
}

static json_t *
hex(const struct buf *b)
{
    static const char digits[] = "0123456789abcdef";
    char text[2 * KMS_MAIN_KEY_MAX];
    size_t i;

    for (i = 0; i < b->len && i < KMS_MAIN_KEY_MAX; i++) {
        text[2 * i] = digits[b->data[i] >> 4];
        text[2 * i + 1] = digits[b->data[i] & 15];
    }
    return json_stringn(text, 2 * i);
}

static int64_t
waited_us(const struct req *rq)
{
    return now_us() - rq->started;
}

/* While this node's HSM is away others' may not be, but that is no reason to wait long. */
static bool
gives_up(const struct req *rq)
{
    int64_t patience = rq->w->cfg->hsm_deadline;

    if (hsm_ready(rq->w->hsm))
        patience = rq->msg.op == OP_PUBLIC_KEY ? PATIENCE_S : 2 * patience;

    return waited_us(rq) > patience * 1000000;
}

bool
main_key_too_late(const struct req *rq)
{
    return waited_us(rq) > (PATIENCE_S + 2 * rq->w->cfg->hsm_deadline + LATE_S) * 1000000;
}

json_t *
main_key_args(const struct req *rq)
{
    const struct kms_request *msg = &rq->msg;
    char id[UUID_TEXT + 1];
    json_t *args = json_pack("{s:s, s:b, s:s}", "action", action(rq), "admin", rq->who.admin,
                             "assigned", msg->assigned_org);
    int r = 0;

    if (args == NULL)
        return NULL;
    if (rq->waits)
        r |= json_object_set_new(args, "give_up", json_boolean(gives_up(rq)));
    if (msg->op == OP_CMK_CREATE) {
        r |= json_object_set_new(args, "ciphertext", hex(&msg->main_key));
        r |= json_object_set_new(args, "allow_128", json_boolean(rq->w->cfg->main_key_128));
    } else if (msg->op == OP_CMK_UPDATE && msg->uri.kind == URI_CMK) {
        uuid_format(id, &msg->uri.id);
        r |= json_object_set_new(args, "main_key", json_string(id));
        r |= json_object_set_new(args, "state",
                                 json_string(kms_main_key_state_name(msg->main_state)));
    }
    if (r != 0) {
        json_decref(args);
        return NULL;
    }
    return args;
}

bool
main_key_waits(const struct req *rq)
{
    return json_is_true(json_object_get(rq->result, "waiting"));
}

struct again {
    struct worker *w;
    uint64_t id;
};

static void
again_cb(evutil_socket_t fd, short what, void *arg)
{
    struct again a = *(struct again *)arg;

    free(arg);
    req_wake(a.w, a.id);
}

bool
main_key_wait(struct req *rq)
{
    static const struct timeval soon = {0, AGAIN_MS * 1000};
    struct again *a = malloc(sizeof(*a));

    FAULT("cmk.asked");
    if (!rq->waits) /* the keeper looks at once; one that misses this looks within a second */
        atomic_fetch_add(&rq->w->shared->main_key_jobs, 1);
    rq->waits = true;
    if (a == NULL)
        return false;
    a->w = rq->w;
    a->id = rq->id;
    if (event_base_once(rq->w->base, -1, EV_TIMEOUT, again_cb, a, &soon) == 0)
        return true;
    free(a);
    return false;
}

/* --- answering --- */

/* Its SubjectPublicKeyInfo as PEM, its body on one line, without a newline at the end: that is how
 * the SDK slices it. */
void
write_public_key(struct req *rq, struct answer *a)
{
    const char *text = json_string_value(json_object_get(rq->result, "public_key"));
    struct buf der = BUF_INIT, pem = BUF_INIT;
    int r = KMS_ERR_PROTOCOL;
    unsigned byte;

    for (; text != NULL && sscanf(text, "%2x", &byte) == 1; text += 2)
        if ((r = buf_put(&der, &(unsigned char){(unsigned char)byte}, 1)) != KMS_OK)
            break;
    if (r == KMS_OK && (r = buf_puts(&pem, "-----BEGIN PUBLIC KEY-----\n")) == KMS_OK &&
        (r = b64_put(&pem, der.data, der.len)) == KMS_OK &&
        (r = buf_puts(&pem, "\n-----END PUBLIC KEY-----")) == KMS_OK)
        answer_text(a, "publicKey", buf_str(&pem));
    if (r != KMS_OK)
        a->err = r;
    buf_release(&pem);
    buf_release(&der);
}

void
write_main_keys(struct req *rq, struct answer *a)
{
    const json_t *key;
    const char *state, *source;
    size_t i;

    answer_open(a, "customerMasterKeys", '[');
    json_array_foreach(json_object_get(rq->result, "main_keys"), i, key)
    {
        state = json_string_value(json_object_get(key, "state"));
        source = json_string_value(json_object_get(key, "source"));
        if (state == NULL || source == NULL)
            a->err = KMS_ERR_PROTOCOL;
        answer_open(a, NULL, '{');
        answer_id_uri(a, "uri", rq->w->cfg->domain, "cmk", json_object_get(key, "main_key"));
        answer_text(a, "assignedOrgId", rq->msg.assigned_org);
        answer_text(a, "usageState", state);
        answer_text(a, "source", source);
        answer_date(a, "stateUpdatedOn", json_integer_value(json_object_get(key, "updated")));
        answer_close(a, '}');
    }
    answer_close(a, ']');
}

void
write_main_key_created(struct req *rq, struct answer *a)
{
    const json_t *key = json_array_get(json_object_get(rq->result, "main_keys"), 0);
    const char *state = json_string_value(json_object_get(key, "state"));

    answer_id_uri(a, "uri", rq->w->cfg->domain, "cmk", json_object_get(key, "main_key"));
    if (state != NULL)
        answer_text(a, "keysState", state);
    write_main_keys(rq, a);
}
