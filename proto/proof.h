/*
 * proof.h - how a service proves who it is without a TLS certificate (protocol section 8), and what
 * is read out of a service's certificate either way.
 *
 * On create /ecdhe a service that comes through a relay sends client.credential.jwk, its public key
 * with its certificate chain as x5c, and client.credential.proof, a compact JWS by that key which
 * names this server, the moment, a number used once and the request's ephemeral key.  Whoever
 * copies the message gains nothing by it: the channel is the ephemeral key's owner's.
 *
 * Nothing here says that a certificate is good: chain, time, purpose and revocation are for whoever
 * has the trust store, and so is whether a jti was used before.
 */
#ifndef PROTO_PROOF_H
#define PROTO_PROOF_H

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/jwk.h"

struct buf;

#define X5C_CERTS_MAX     5
#define X5C_CERT_MAX      8192 /* bytes of a certificate, DER */
#define PROOF_WINDOW_S    300  /* seconds that iat may be off, both ways */
#define PROOF_JTI_MAX     128
#define CERT_IDENTITY_MAX 512
#define CERT_SERIAL_MAX   64

/*
 * The certificates of jwk's x5c, leaf first: standard base64 of one DER certificate each, 1 to
 * X5C_CERTS_MAX of them.  The jwk is a public key (no private member), RSA of 2048 to 4096 bits or
 * EC P-256, and the leaf's.  *chain: the caller's, x5c_free; NULL on failure.  KMS_ERR_MEMBER (no
 * x5c, a private member, not the leaf's key), KMS_ERR_SYNTAX (base64, DER), KMS_ERR_LENGTH (too
 * many, too long), KMS_ERR_ALGORITHM, KMS_ERR_KEY, KMS_ERR_NOMEM.
 */
int x5c_parse(STACK_OF(X509) * *chain, const json_t *jwk);
void x5c_free(STACK_OF(X509) * chain); /* NULL is fine */

/* For clients: a new public JWK of the leaf's key with the chain as x5c; NULL: no memory, or a key
 * that is neither. */
json_t *x5c_make(const STACK_OF(X509) * chain);

/*
 * The RFC 7638 thumbprint of a service's public jwk as it comes on a live channel (x5c is not
 * looked at), to be compared with the channel's.  Cheap: whether it makes a good key was asked when
 * the channel was made.  KMS_ERR_MEMBER (also: a private member), KMS_ERR_SYNTAX,
 * KMS_ERR_ALGORITHM, KMS_ERR_NOMEM.
 */
int service_jwk_thumbprint(unsigned char out[JWK_THUMBPRINT_LEN], const json_t *jwk);

/*
 * Verifies a proof at the time now (seconds since 1970): by key (RSA: PS256, EC P-256: ES256, no
 * other; a kid says nothing), typ absent or JWT, aud exactly the given string, cnf the base64url of
 * the thumbprint of the request's ephemeral jwk, iat within PROOF_WINDOW_S, exp and nbf kept where
 * they are there.  jti is the proof's own, 1 to 128 bytes of text without controls, and "" on
 * failure.  KMS_ERR_SYNTAX, KMS_ERR_DUPLICATE, KMS_ERR_HEADER, KMS_ERR_LENGTH, KMS_ERR_ALGORITHM,
 * KMS_ERR_CRYPTO, KMS_ERR_MEMBER (a claim is missing or wrong, cnf is another key's),
 * KMS_ERR_AUDIENCE, KMS_ERR_EXPIRED, KMS_ERR_EARLY, KMS_ERR_NOMEM.
 */
int proof_verify(char jti[PROOF_JTI_MAX + 1], const char *compact, EVP_PKEY *key, const char *aud,
                 const unsigned char cnf[JWK_THUMBPRINT_LEN], int64_t now);

/* For clients: appends a proof by a private key.  KMS_ERR_ALGORITHM: of another kind. */
int proof_make(struct buf *out, EVP_PKEY *key, const char *aud,
               const unsigned char cnf[JWK_THUMBPRINT_LEN], int64_t now, const char *jti);

/* SHA-256 of the certificate's SHA-256 and the jti: what is kept so that a proof is good once.
 * KMS_ERR_NOMEM. */
int proof_jti_hash(unsigned char out[32], const X509 *leaf, const char *jti);

/*
 * Out of a certificate.  The identity is its one SAN URI, printable ASCII with a scheme in lower
 * case: KMS_ERR_MEMBER when there is none or several, KMS_ERR_SYNTAX when it is not such text,
 * KMS_ERR_LENGTH.  The issuer: SHA-256 of the issuer's name in DER.  The serial number: its
 * magnitude, big-endian, without leading zeros (zero is one zero byte); KMS_ERR_SYNTAX: negative,
 * KMS_ERR_LENGTH.  The key: the RFC 7638 thumbprint of its public key, KMS_ERR_ALGORITHM when it is
 * not RSA of 2048 to 4096 bits or EC P-256.  not_after: milliseconds since 1970, KMS_ERR_SYNTAX.
 */
int cert_identity(char out[CERT_IDENTITY_MAX + 1], const X509 *cert);
int cert_issuer_hash(unsigned char out[32], const X509 *cert);
int cert_serial(unsigned char out[CERT_SERIAL_MAX], size_t *len, const X509 *cert);
int cert_key_thumbprint(unsigned char out[JWK_THUMBPRINT_LEN], const X509 *cert);
int cert_not_after(int64_t *ms, const X509 *cert);

#endif
