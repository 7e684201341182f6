/*
 * blob.c - the one place where a blob's additional data is put together.
 */
#include "hsm/blob.h"

#include <string.h>

void
blob_aad(const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
         const unsigned char object[HSM_ID_LEN], unsigned char aad[BLOB_AAD_LEN])
{
    unsigned char *p = aad;

    *p++ = BLOB_FORMAT;
    *p++ = (unsigned char)purpose;
    memcpy(p, wk->org, HSM_ID_LEN);
    p += HSM_ID_LEN;
    memcpy(p, object, HSM_ID_LEN);
    p += HSM_ID_LEN;
    for (int shift = 24; shift >= 0; shift -= 8)
        *p++ = (unsigned char)(wk->generation >> shift);
}
