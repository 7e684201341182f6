/*
 * scr.h - Secure Content Resources, as node-scr has them: where an encrypted file is, and all that
 * opens it.
 *
 * A recording's message (protocol section 7) is one, sealed to a key of its container.  Its key and
 * iv are for one file: who encrypts a second one with them gives both away.
 */
#ifndef KMS_SCR_H
#define KMS_SCR_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/buf.h"
#include "proto/secret.h"

#define SCR_IV_LEN  12
#define SCR_TAG_LEN 16

struct scr {
    struct secret *key; /* owned */
    unsigned char iv[SCR_IV_LEN];
    unsigned char tag[SCR_TAG_LEN]; /* valid when has_tag: there is a file */
    bool has_tag;
    struct buf aad; /* owned */
    struct buf loc; /* owned; empty: not said */
};

/*
 * Reads its JSON.  scr is initialised in any case and must be given to scr_release. KMS_ERR_SYNTAX,
 * KMS_ERR_DUPLICATE: no such object; KMS_ERR_MEMBER: a member is missing or wrong;
 * KMS_ERR_ALGORITHM: enc is not A256GCM; KMS_ERR_NOMEM.
 */
int scr_parse(struct scr *scr, const char *json, size_t len);
void scr_release(struct scr *scr);

/* Encrypts in place; sets the tag.  KMS_ERR_STATE: it has one already; KMS_ERR_INTERNAL. */
int scr_seal(struct scr *scr, unsigned char *data, size_t len);
/* Decrypts in place.  KMS_ERR_STATE: there is no tag yet; KMS_ERR_CRYPTO: not the file of this tag,
 * and nothing of it is left in data. */
int scr_open(const struct scr *scr, unsigned char *data, size_t len);

#endif
