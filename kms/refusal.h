/*
 * refusal.h - the answers to what no channel can carry: "no key opens this" (400001), "your channel
 * is gone" (499001), and "this one cannot be opened now" (503001) among neighbours that could.
 *
 * They say always the same, so each is signed once in a while and sent again: a stranger's garbage
 * costs the HSM nothing.
 */
#ifndef KMS_REFUSAL_H
#define KMS_REFUSAL_H

#include <stdint.h>

struct refusals;
struct worker;

enum refusal { REFUSE_UNREADABLE, REFUSE_RESET, REFUSE_BUSY, REFUSE_KINDS };

struct refusals *refusals_new(struct worker *w);
void refusals_free(struct refusals *rs);

/* The static key has another name now: what was signed under the old one is not sent any more. */
void refusals_renew(struct refusals *rs);

/*
 * KMS_OK: *text is the compact JWS, borrowed until the next turn of the loop.  KMS_ERR_AGAIN:
 * req_wake(req) follows. KMS_ERR_UNAVAILABLE: the HSM is away and none was ever signed.
 */
int refusals_get(struct refusals *rs, enum refusal which, uint64_t req, const char **text);

/* What was signed already, borrowed until the next turn of the loop; NULL: nothing. */
const char *refusals_have(const struct refusals *rs, enum refusal which);

/* The HSM is there: signs all of them, for when it is away. */
void refusals_prepare(struct refusals *rs);

#endif
