/*
 * mint.h - development access tokens: ES256 JWTs as an organisation's identity provider would issue
 * them (protocol section 3).
 */
#ifndef KMS_MINT_H
#define KMS_MINT_H

#include <stddef.h>
#include <stdint.h>

struct buf;

struct mint {
    const char *key_file; /* EC P-256 private key, PEM */
    const char *kid;      /* "" leaves it out of the header */
    const char *issuer;
    const char *audience;
    const char *subject;
    const char *org;
    const char *scope; /* space-separated; "" leaves it out */
    const char *const *roles;
    size_t n_roles;
    int64_t lifetime; /* seconds from now */
};

/*
 * Appends a token that is good from now (seconds since 1970).  KMS_ERR_CONFIG: the key file cannot
 * be read (errno says more where it is not 0); KMS_ERR_ALGORITHM: it holds another kind of key;
 * KMS_ERR_NOMEM, KMS_ERR_INTERNAL.
 */
int mint_token(struct buf *out, const struct mint *m, int64_t now);

#endif
