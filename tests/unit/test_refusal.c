/*
 * test_refusal.c - the two signed refusals: how often the HSM is asked, who waits, and what a new
 * static key changes.  The HSM and the requests are played by this file.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "hsm/hsm.h"
#include "kms/refusal.h"
#include "kms/req.h"
#include "kms/worker.h"
#include "proto/err.h"
#include "proto/jws.h"

static struct {
    unsigned asked; /* signatures */
    hsm_bytes_cb *cb;
    void *ctx;
    uint64_t id;
    unsigned index;
    uint64_t woken[8];
    unsigned n_woken;
    int64_t now;
} played;

int
hsm_sign_pss(struct hsm *h, const unsigned char digest[32], hsm_bytes_cb *cb, void *ctx,
             uint64_t id, unsigned index)
{
    played.asked++;
    played.cb = cb;
    played.ctx = ctx;
    played.id = id;
    played.index = index;
    return KMS_OK;
}

void
req_wake(struct worker *w, uint64_t id)
{
    played.woken[played.n_woken++] = id;
}

int64_t
now_us(void)
{
    return played.now;
}

static void
hsm_answers(int err)
{
    unsigned char sig[384] = {1};

    played.cb(played.ctx, played.id, played.index, err, err == KMS_OK ? sig : NULL,
              err == KMS_OK ? sizeof(sig) : 0);
}

static void
kid_is(const char *text, const char *kid)
{
    struct jws jws;

    cr_assert_eq(jws_parse(&jws, text, strlen(text)), KMS_OK);
    cr_assert_str_eq(jws.kid, kid);
}

static char first[] = "kms://d/keys/first", second[] = "kms://d/keys/second";

static struct refusals *
begin(struct worker *w)
{
    memset(&played, 0, sizeof(played));
    played.now = 1000000000;
    memset(w, 0, sizeof(*w));
    w->static_kid = first;
    return refusals_new(w);
}

Test(refusal, one_signature_is_for_all_who_wait_and_for_those_who_come_later)
{
    static struct worker w;
    struct refusals *rs = begin(&w);
    const char *text;

    cr_assert_eq(refusals_get(rs, REFUSE_UNREADABLE, 1, &text), KMS_ERR_AGAIN);
    cr_assert_eq(refusals_get(rs, REFUSE_UNREADABLE, 2, &text), KMS_ERR_AGAIN);
    cr_assert_eq(played.asked, 1);
    hsm_answers(KMS_OK);
    cr_assert_eq(played.n_woken, 2);
    cr_assert_eq(refusals_get(rs, REFUSE_UNREADABLE, 3, &text), KMS_OK);
    cr_assert_eq(played.asked, 1);
    refusals_free(rs);
}

Test(refusal, a_failed_hsm_is_not_asked_again_at_once)
{
    static struct worker w;
    struct refusals *rs = begin(&w);
    const char *text;

    cr_assert_eq(refusals_get(rs, REFUSE_RESET, 1, &text), KMS_ERR_AGAIN);
    hsm_answers(KMS_ERR_UNAVAILABLE);
    cr_assert_eq(played.n_woken, 1);
    cr_assert_eq(refusals_get(rs, REFUSE_RESET, 1, &text), KMS_ERR_UNAVAILABLE);
    cr_assert_eq(played.asked, 1);
    played.now += 2000000;
    cr_assert_eq(refusals_get(rs, REFUSE_RESET, 1, &text), KMS_ERR_AGAIN);
    refusals_free(rs);
}

/* A reload used to free the whole under a signature that was under way. */
Test(refusal, a_new_key_while_signing_means_to_sign_anew_and_nobody_is_forgotten)
{
    static struct worker w;
    struct refusals *rs = begin(&w);
    const char *text;

    cr_assert_eq(refusals_get(rs, REFUSE_UNREADABLE, 7, &text), KMS_ERR_AGAIN);
    w.static_kid = second;
    refusals_renew(rs);
    cr_assert_eq(refusals_get(rs, REFUSE_UNREADABLE, 8, &text), KMS_ERR_AGAIN);
    hsm_answers(KMS_OK); /* the old one */
    cr_assert_eq(played.n_woken, 0);
    cr_assert_eq(played.asked, 2);
    hsm_answers(KMS_OK);
    cr_assert_eq(played.n_woken, 2);
    cr_assert_eq(refusals_get(rs, REFUSE_UNREADABLE, 7, &text), KMS_OK);
    kid_is(text, second);
    refusals_free(rs);
}

Test(refusal, what_the_old_key_signed_is_not_sent_any_more)
{
    static struct worker w;
    struct refusals *rs = begin(&w);
    const char *text;

    cr_assert_eq(refusals_get(rs, REFUSE_RESET, 1, &text), KMS_ERR_AGAIN);
    hsm_answers(KMS_OK);
    w.static_kid = second;
    refusals_renew(rs);
    cr_assert_eq(refusals_get(rs, REFUSE_RESET, 2, &text), KMS_ERR_AGAIN);
    hsm_answers(KMS_OK);
    cr_assert_eq(refusals_get(rs, REFUSE_RESET, 2, &text), KMS_OK);
    kid_is(text, second);
    refusals_free(rs);
}
