/*
 * jwk.h - JSON Web Keys (RFC 7517, 7518 section 6) of the kinds we speak: RSA, EC P-256, oct of 32
 * bytes, OKP Ed25519 (RFC 8037; for tokens only).
 *
 * Reading is strict: every number is base64url without padding and without surplus octets; a point
 * is built from two 32-byte coordinates and checked to lie on the curve; an RSA modulus has 2048 to
 * 4096 bits and an odd exponent of at least 65537, and none of the marks of CVE-2017-15361 (ROCA).
 * Private members are refused when a public key is expected.
 */
#ifndef PROTO_JWK_H
#define PROTO_JWK_H

#include <jansson.h>
#include <openssl/evp.h>
#include <stdbool.h>

#include "proto/secret.h"

#define JWK_THUMBPRINT_LEN 32

/* Public keys.  *out: owned by the caller, EVP_PKEY_free; NULL on failure.  KMS_ERR_MEMBER,
 * _ALGORITHM, _KEY, _SYNTAX, _NOMEM. */
int jwk_get_public(EVP_PKEY **out, const json_t *jwk); /* RSA, EC P-256 or Ed25519 */
int jwk_get_p256(EVP_PKEY **out, const json_t *jwk);   /* EC P-256 and nothing else */
/*
 * The same as jwk_get_public of a jwk that it has taken before, and that was kept since where
 * nobody can change it: without OpenSSL's look at the mathematics of an RSA modulus, which takes 20
 * ms.  A point is on the curve all the same.
 */
int jwk_get_checked(EVP_PKEY **out, const json_t *jwk);
/* An oct key of exactly 32 bytes; *out is the caller's. */
int jwk_get_oct(struct secret **out, const json_t *jwk);

/* A new object with kty and the public members (n,e / crv,x,y / crv,x) and nothing else; NULL: no
 * memory or key type. */
json_t *jwk_from_public(EVP_PKEY *key);
/* The same of an RSA key by its big-endian modulus and exponent (leading zero octets are dropped).
 */
json_t *jwk_from_rsa(const unsigned char *n, size_t n_len, const unsigned char *e, size_t e_len);
/* {kid, kty:"oct", k}; kid may be NULL. */
json_t *jwk_from_oct(const char *kid, const unsigned char key[SECRET_LEN]);

/*
 * SHA-256 thumbprint (RFC 7638) of an RSA, EC P-256 or Ed25519 key, whose members are read as
 * strictly as above; whether they make a good key is for jwk_get_public to say.  Private members do
 * not matter.
 */
int jwk_thumbprint(unsigned char out[JWK_THUMBPRINT_LEN], const json_t *jwk);
/* The same of a key; KMS_ERR_ALGORITHM: of another kind; KMS_ERR_NOMEM. */
int jwk_thumbprint_key(unsigned char out[JWK_THUMBPRINT_LEN], EVP_PKEY *key);

/*
 * Those checks of jwk_get_public that cost nothing: a public key of a kind that it takes, its
 * numbers in their one spelling and in range.  Whether a modulus is none of a good key, or a point
 * on the curve, is for whoever vouches for the key, or for jwk_get_public.  Its errors.
 */
int jwk_check_public(const json_t *jwk);

/* Whether a jwk has a member that only private (or symmetric) keys have. */
bool jwk_has_private(const json_t *jwk);

#endif
