/*
 * jws.h - compact JWS (RFC 7515) with PS256, RS256, ES256 (RFC 7518) and EdDSA by Ed25519 (RFC
 * 8037).
 *
 * The algorithm is a property of the key: the header's alg is only compared with it.  There is no
 * HMAC and no "none" in this code.  The header may have alg, kid, typ, cty, and x5t and x5t#S256
 * (identity providers send them; they are not used); all are strings.  Anything else is refused:
 * b64 and crit, and every way to bring one's own key (jwk, jku, x5c, x5u).
 */
#ifndef PROTO_JWS_H
#define PROTO_JWS_H

#include <jansson.h>
#include <openssl/evp.h>
#include <stddef.h>

#include "proto/jwe.h"

struct buf;

#define JWS_SIG_MAX 512

enum jws_alg { JWS_PS256, JWS_RS256, JWS_ES256, JWS_EDDSA };

struct jws {
    enum jws_alg alg;
    char kid[JOSE_KID_MAX + 1]; /* "" when the header has none */
    char typ[64];               /* "" when the header has none */
    const char *input;          /* what is signed: header.payload; borrowed from the message */
    size_t input_len;
    const char *payload; /* still base64url; borrowed from the message */
    size_t payload_len;
    unsigned char sig[JWS_SIG_MAX];
    size_t sig_len;
};

/* *jws borrows from compact.  KMS_ERR_SYNTAX, KMS_ERR_DUPLICATE, KMS_ERR_HEADER, KMS_ERR_ALGORITHM,
 * KMS_ERR_LENGTH, KMS_ERR_NOMEM. */
int jws_parse(struct jws *jws, const char *compact, size_t len);

/* KMS_OK: the signature is by key.  KMS_ERR_ALGORITHM: alg does not fit the key; KMS_ERR_CRYPTO: it
 * is not. */
int jws_verify(const struct jws *jws, EVP_PKEY *key);

/* Appends the decoded payload.  Only after jws_verify.  KMS_ERR_SYNTAX: it is no base64url, signed
 * or not. */
int jws_payload(const struct jws *jws, struct buf *out);

/*
 * Signing where the private key is elsewhere: jws_begin appends "header.payload" and gives the
 * SHA-256 digest that is to be signed with RSASSA-PSS (MGF1 SHA-256, salt 32); jws_end appends "."
 * and the signature.  kid and typ may be NULL.  KMS_ERR_HEADER: they cannot stand in JSON as they
 * are.
 */
int jws_begin(struct buf *out, enum jws_alg alg, const char *kid, const char *typ,
              const void *payload, size_t len, unsigned char digest[32]);
int jws_end(struct buf *out, const unsigned char *sig, size_t sig_len);

/* For tools with a private key in memory: the whole of it.  KMS_ERR_ALGORITHM: alg does not fit
 * key. */
int jws_sign(struct buf *out, enum jws_alg alg, const char *kid, const char *typ, EVP_PKEY *key,
             const void *payload, size_t len);

#endif
