/*
 * blob.h - the stored form of a key under a wrapping key, and what it is bound to.  Formats:
 * hsm/README.md.
 */
#ifndef HSM_BLOB_H
#define HSM_BLOB_H

#include "hsm/hsm.h"

#define BLOB_FORMAT  1
#define BLOB_AAD_LEN (1 + 1 + HSM_ID_LEN + HSM_ID_LEN + 4)

/* Additional data: format, purpose, organisation, object, generation. */
void blob_aad(const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
              const unsigned char object[HSM_ID_LEN], unsigned char aad[BLOB_AAD_LEN]);

#endif
