/*
 * answer.h - the text of answers, written straight into a buffer that wipes itself.
 *
 * Answers with keys are the hot path and hold secrets, so they are not built as a JSON tree first.
 * A writer keeps track of commas; names are constants of ours, values are escaped.
 */
#ifndef KMS_ANSWER_H
#define KMS_ANSWER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/buf.h"
#include "proto/uri.h"

struct answer {
    struct buf *out; /* borrowed */
    bool comma;      /* before the next member or element */
    int err;         /* the first error; everything after it does nothing */
};

/* Begins {"status":S,"requestId":R; request_id NULL leaves it out. */
void answer_begin(struct answer *a, struct buf *out, int status, const json_t *request_id);
/* The whole of a refusal: status, requestId, reason, errorCode.  why NULL: the code's own text. */
int answer_error(struct buf *out, int code, const json_t *request_id, const char *why);
/* Ends it; KMS_OK or KMS_ERR_NOMEM. */
int answer_end(struct answer *a);

/* name NULL: an element of an array. */
void answer_open(struct answer *a, const char *name, char bracket);
void answer_close(struct answer *a, char bracket);
void answer_text(struct answer *a, const char *name, const char *value);
void answer_int(struct answer *a, const char *name, int64_t value);
void answer_date(struct answer *a, const char *name, int64_t ms);
void answer_uri(struct answer *a, const char *name, const char *domain, const char *collection,
                const struct uuid *id);
/* The same of an id that the database gave as text; anything else makes the answer fail. */
void answer_id_uri(struct answer *a, const char *name, const char *domain, const char *collection,
                   const json_t *id);
/* As base64url. */
void answer_bytes(struct answer *a, const char *name, const unsigned char *bytes, size_t len);
/* {"kid":...,"kty":"oct","k":...} */
void answer_jwk(struct answer *a, const char *name, const char *domain, const struct uuid *id,
                const unsigned char key[32]);
/* An id as it is, without a URI around it. */
void answer_id(struct answer *a, const char *name, const struct uuid *id);
/* Text without characters that JSON escapes: compact JOSE. */
void answer_raw_text(struct answer *a, const char *name, const struct buf *text);
/* A value that is JSON already. */
void answer_raw(struct answer *a, const char *name, const char *json, size_t len);

#endif
