/* refusal.c - the signed answers that are always the same. */
#include "kms/refusal.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/answer.h"
#include "kms/req.h"
#include "kms/waiters.h"
#include "kms/worker.h"
#include "proto/err.h"
#include "proto/jws.h"
#include "proto/msg.h"

#define FRESH_US 60000000 /* how long a signature is sent again */

struct signed_answer {
    struct buf text; /* owned: what is sent */
    struct buf next; /* owned: what is being signed */
    bool signing;
    bool outdated;  /* what is being signed names a key that is gone: to be thrown away */
    int64_t until;  /* microseconds: when to sign anew */
    int64_t failed; /* when the HSM failed last */
    struct waiters waiters;
};

struct refusals {
    struct worker *w;
    struct signed_answer all[REFUSE_KINDS];
};

static void sign(struct refusals *rs, enum refusal which);

static void
signed_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *sig, size_t len)
{
    struct refusals *rs = ctx;
    struct signed_answer *s = &rs->all[index];

    s->signing = false;
    if (s->outdated) {
        s->outdated = false;
        buf_release(&s->next);
        sign(rs, (enum refusal)index);
        if (s->signing)
            return; /* those who wait go on waiting */
        err = KMS_ERR_UNAVAILABLE;
    }
    if (err == KMS_OK && (err = jws_end(&s->next, sig, len)) == KMS_OK) {
        buf_release(&s->text);
        s->text = s->next;
        buf_init(&s->next);
        s->until = now_us() + FRESH_US;
    } else {
        log_error("a refusal could not be signed", "why", kms_strerror(err), NULL);
        buf_release(&s->next);
        s->failed = now_us();
    }
    waiters_wake(&s->waiters, rs->w);
}

/* What they say: all without a requestId, but 499001 with one of our own. */
static int
refusal_text(struct buf *out, enum refusal which)
{
    json_t *request_id = NULL;
    struct uuid id;
    char text[UUID_TEXT + 1];
    int r;

    if (which == REFUSE_UNREADABLE)
        return answer_error(out, KMS_CODE_MALFORMED, NULL, NULL);
    if (which == REFUSE_BUSY)
        return answer_error(out, KMS_CODE_OVERLOADED, NULL, NULL);
    if ((r = uuid_random(&id)) != KMS_OK)
        return r;
    uuid_format(text, &id);
    if ((request_id = json_string(text)) == NULL)
        return KMS_ERR_NOMEM;
    r = answer_error(out, KMS_CODE_RESET, request_id, NULL);
    json_decref(request_id);
    return r;
}

static void
sign(struct refusals *rs, enum refusal which)
{
    struct signed_answer *s = &rs->all[which];
    struct buf payload = BUF_INIT;
    unsigned char digest[32];

    if (refusal_text(&payload, which) == KMS_OK &&
        jws_begin(&s->next, JWS_PS256, rs->w->static_kid, NULL, payload.data, payload.len,
                  digest) == KMS_OK &&
        hsm_sign_pss(rs->w->hsm, digest, signed_cb, rs, 0, which) == KMS_OK)
        s->signing = true;
    else
        buf_release(&s->next);
    buf_release(&payload);
}

void
refusals_renew(struct refusals *rs)
{
    unsigned i;

    for (i = 0; i < sizeof(rs->all) / sizeof(rs->all[0]); i++) {
        buf_release(&rs->all[i].text);
        rs->all[i].until = 0;
        rs->all[i].outdated = rs->all[i].signing;
    }
}

int
refusals_get(struct refusals *rs, enum refusal which, uint64_t req, const char **text)
{
    struct signed_answer *s = &rs->all[which];

    if (s->until < now_us() && !s->signing && s->failed + 1000000 < now_us())
        sign(rs, which);
    if (s->text.len > 0) {
        *text = buf_str(&s->text); /* an older one is as good while the next is being signed */
        return KMS_OK;
    }
    return s->signing ? waiters_add(&s->waiters, req) : KMS_ERR_UNAVAILABLE;
}

const char *
refusals_have(const struct refusals *rs, enum refusal which)
{
    return rs->all[which].text.len > 0 ? buf_str(&rs->all[which].text) : NULL;
}

void
refusals_prepare(struct refusals *rs)
{
    unsigned i;

    for (i = 0; i < REFUSE_KINDS; i++)
        if (rs->all[i].text.len == 0 && !rs->all[i].signing)
            sign(rs, (enum refusal)i);
}

struct refusals *
refusals_new(struct worker *w)
{
    struct refusals *rs = calloc(1, sizeof(*rs));
    int i;

    if (rs == NULL)
        return NULL;
    rs->w = w;
    for (i = 0; i < REFUSE_KINDS; i++)
        rs->all[i].failed = INT64_MIN / 2;
    return rs;
}

void
refusals_free(struct refusals *rs)
{
    int i;

    if (rs == NULL)
        return;
    for (i = 0; i < REFUSE_KINDS; i++) {
        buf_release(&rs->all[i].text);
        buf_release(&rs->all[i].next);
        waiters_release(&rs->all[i].waiters);
    }
    free(rs);
}
