/*
 * mainkey_req.h - requests about customers' main keys (protocol section 5), in a worker: who may
 * ask, the wait for a keeper, the answer.
 *
 * What is to be done in the HSM a keeper does (kms/mainkey.h): SQL writes it down as a job and says
 * "waiting"; the request asks again, with the same operation id, until the job has ended or its own
 * time is over.  Then it gives the job up, and nothing was changed.
 */
#ifndef KMS_MAINKEY_REQ_H
#define KMS_MAINKEY_REQ_H

#include <stdbool.h>

#include "kms/answer.h"

struct json_t;
struct req;

bool main_key_asked(const struct req *rq);
/* KMS_CODE_OK, or what to refuse with before the database is asked; *why is static. */
int main_key_admit(const struct req *rq, const char **why);
/* The arguments of kms.main_key_act.  Owned by the caller; NULL: no memory. */
struct json_t *main_key_args(const struct req *rq);

/* The answer says that a job waits. */
bool main_key_waits(const struct req *rq);
/* req_wake comes in a moment, to ask again.  false: no memory. */
bool main_key_wait(struct req *rq);
/* Longer than that no answer is waited for when the database has none. */
bool main_key_too_late(const struct req *rq);

void write_public_key(struct req *rq, struct answer *a);
void write_main_keys(struct req *rq, struct answer *a);
/* Of one that was imported. */
void write_main_key_created(struct req *rq, struct answer *a);

#endif
