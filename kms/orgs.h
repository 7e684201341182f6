/*
 * orgs.h - organisations by the name that tokens carry: their id and current wrapping key,
 * remembered for a while.
 *
 * Nothing is decided by what is remembered: SQL checks state and generation with each call and says
 * when the generation is stale.
 */
#ifndef KMS_ORGS_H
#define KMS_ORGS_H

#include <stdint.h>

#include "hsm/hsm.h"
#include "proto/uri.h"

struct orgs;
struct worker;

struct orgs *orgs_new(struct worker *w);
void orgs_free(struct orgs *os);

/*
 * KMS_OK: *id and *wk are filled.  KMS_ERR_AGAIN: req_wake(req) follows, ask again.
 * KMS_ERR_NOT_FOUND: no such organisation. KMS_ERR_UNAVAILABLE: the database is away.
 */
int orgs_get(struct orgs *os, const char *name, uint64_t req, struct uuid *id,
             struct hsm_wrapping_key *wk);
/* Its generation turned out to be stale: ask the database next time. */
void orgs_forget(struct orgs *os, const char *name);
/* Counts uses of its current wrapping key; told to the database now and then (an estimate: a crash
 * forgets the last seconds). */
void orgs_count_wraps(struct orgs *os, const char *name, unsigned n);

#endif
