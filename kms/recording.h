/*
 * recording.h - recordings of containers (protocol section 7): what SQL answers about them becomes
 * keys to unwrap, and those become messages that node-scr reads.
 *
 * A message is sealed anew each time, from the recording's own key and the container's: nothing of
 * it is stored.
 */
#ifndef KMS_RECORDING_H
#define KMS_RECORDING_H

#include "kms/answer.h"

struct req;

/*
 * From rq->result: rq->recordings, and in rq->released the keys that their messages need, a key of
 * several recordings once.  KMS_OK, also when there is none; KMS_ERR_PROTOCOL, KMS_ERR_NOMEM.
 */
int recordings_load(struct req *rq);

/* Writers of answers.  Errors are the answer's. */
void write_recording(struct req *rq, struct answer *a);
void write_recordings(struct req *rq, struct answer *a);
/* Of one that was deleted: what is left. */
void write_recording_end(struct req *rq, struct answer *a);

#endif
