/*
 * body.h - the body of a POST of messages: {"destination":"...","kmsMessages":["...", ...]}
 * (protocol section 1).
 *
 * The texts are slices.  Bodies as clients write them (plain ASCII strings, no other members) are
 * read in one pass over the bytes, since a JSON tree of fifty long strings costs more than
 * everything else that is done with them; anything else goes through json.h, with the same outcome.
 */
#ifndef PROTO_BODY_H
#define PROTO_BODY_H

#include <jansson.h>
#include <stddef.h>

#define KMS_MESSAGES_MAX 100 /* in one body */

struct kms_text {
    const char *p; /* borrowed from the body, or from its tree; not NUL-terminated */
    size_t len;
};

struct kms_body {
    struct kms_text destination;
    struct kms_text messages[KMS_MESSAGES_MAX];
    size_t n;     /* how many there are; the first KMS_MESSAGES_MAX stand in messages */
    json_t *tree; /* owned; NULL when the bytes were read directly */
};

/*
 * KMS_OK: *body borrows from text and is given to kms_body_release.  KMS_ERR_SYNTAX, _DUPLICATE,
 * _LENGTH, _LIMIT (not one JSON object, nested too deeply, too many members), KMS_ERR_MEMBER
 * (destination is no string, kmsMessages no array of strings), KMS_ERR_NOMEM: nothing to release.
 * A string that holds U+0000 or half a surrogate pair is a message like any other (kms_json_mend).
 */
int kms_body_parse(struct kms_body *body, const char *text, size_t len);
void kms_body_release(struct kms_body *body);

/* For tests: the two ways by themselves.  direct gives KMS_ERR_AGAIN for what it leaves to the
 * other. */
int kms_body_parse_direct(struct kms_body *body, const char *text, size_t len);
int kms_body_parse_tree(struct kms_body *body, const char *text, size_t len);

#endif
