/*
 * keyring.h - the wrapping keys that a custodian holds unwrapped, and sealing and opening with
 * them.
 *
 * custody = token: a session object in the token; nothing is in this process.  custody = process:
 * 32 bytes in OpenSSL's locked secure heap, for a limited time; the token only unwraps.  Blobs are
 * the same either way.
 */
#ifndef HSM_KEYRING_H
#define HSM_KEYRING_H

#include "hsm/token.h"

#define KEYRING_MAX 1024 /* wrapping keys held; the longest unused goes */

struct keyring;
struct held_key;

/* t is borrowed.  NULL: out of memory, or out of locked memory. */
struct keyring *keyring_new(struct token *t);
void keyring_free(struct keyring *k);
/* The session ended: its objects are void. */
void keyring_forget(struct keyring *k);

/* Destroys all that are wrapped by this key, or are of this organisation. */
void keyring_drop(struct keyring *k, const unsigned char kek_or_org[HSM_ID_LEN]);

/* Wipes the bare keys whose time is over; for custody = process, about once a second. */
void keyring_expire(struct keyring *k);

/*
 * Borrowed until the next keyring_get.  KMS_OK; KMS_ERR_NOT_FOUND: no such root; KMS_ERR_CRYPTO:
 * does not unwrap; KMS_ERR_NOMEM.
 */
int keyring_get(struct keyring *k, const struct hsm_wrapping_key *wk, struct held_key **out);

/* Codes as in token.h. */
int keyring_seal(struct keyring *k, const struct held_key *h, enum hsm_purpose purpose,
                 const unsigned char object[HSM_ID_LEN], const unsigned char key[HSM_KEY_LEN],
                 unsigned char blob[HSM_BLOB_LEN]);
int keyring_open(struct keyring *k, const struct held_key *h, enum hsm_purpose purpose,
                 const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN],
                 unsigned char key[HSM_KEY_LEN]);

#endif
