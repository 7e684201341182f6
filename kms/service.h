/*
 * service.h - who a cloud service is (protocol section 8): its certificate under the services' CA,
 * shown in the TLS handshake or sent as x5c with a proof.
 *
 * Whether it is registered, and what it may have, is for SQL alone; here is only what its
 * certificate says, and that the certificate is good now.
 */
#ifndef KMS_SERVICE_H
#define KMS_SERVICE_H

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdint.h>

#include "proto/jwk.h"
#include "proto/proof.h"

struct config;
struct services;

/* What a good certificate says. */
struct service_cert {
    char identity[CERT_IDENTITY_MAX + 1];    /* its SAN URI */
    unsigned char thumb[JWK_THUMBPRINT_LEN]; /* of its public key (RFC 7638) */
    unsigned char issuer[32];                /* SHA-256 of the issuer's name in DER */
    unsigned char serial[CERT_SERIAL_MAX];
    size_t serial_len;
    int64_t not_after; /* milliseconds since 1970 */
};

/* By [services] ca and crl; without a ca nobody is a service.  KMS_OK: *out is the caller's; else
 * *why says what, static. */
int services_new(struct services **out, const struct config *c, const char **why);
void services_free(struct services *ss); /* NULL is fine */
/* Reads the revocation lists again when their file has changed: now and then. */
void services_refresh(struct services *ss);

/*
 * Whose TLS connection it is.  chain: as kms/web.h hands it out, or NULL.  Judged once a connection
 * and remembered beside the leaf, but anew with other CAs or lists.  NULL: nobody's that counts,
 * and *why says why (static).  Borrowed from the leaf.
 */
const struct service_cert *services_of_chain(struct services *ss, STACK_OF(X509) * chain,
                                             int64_t now_ms, const char **why);

/*
 * Verifies the x5c of jwk and a proof by its key: for aud, bound to the ephemeral key, fresh.
 * KMS_OK: *out is filled and jti_hash is what must not have been seen before.  KMS_ERR_NOMEM; any
 * other: not good, and *why says what, static.
 */
int services_prove(struct services *ss, struct service_cert *out, unsigned char jti_hash[32],
                   const json_t *jwk, const char *proof, EVP_PKEY *ephemeral, const char *aud,
                   int64_t now_ms, const char **why);

#endif
