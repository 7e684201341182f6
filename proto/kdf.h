/*
 * kdf.h - key agreement: ECDH on P-256 (SP 800-56A); HKDF with SHA-256 (RFC 5869) for channels, the
 * Concat KDF for messages to a public key.
 */
#ifndef PROTO_KDF_H
#define PROTO_KDF_H

#include <openssl/evp.h>
#include <stddef.h>

#include "proto/secret.h"

/* A fresh P-256 key pair; NULL: no memory. */
EVP_PKEY *ecdh_generate(void);

/*
 * The 32-byte x coordinate of the shared point through HKDF-SHA-256 without salt and info, into a
 * secret of the caller's. peer was checked by jwk_get_p256.  KMS_ERR_KEY: an all-zero shared
 * secret; KMS_ERR_NOMEM.
 */
int ecdh_channel_key(struct secret **out, EVP_PKEY *mine, EVP_PKEY *peer);

/* HKDF-SHA-256, extract and expand; salt and info may be NULL.  out_len at most 255 * 32. */
int hkdf_sha256(unsigned char *out, size_t out_len, const unsigned char *ikm, size_t ikm_len,
                const unsigned char *salt, size_t salt_len, const unsigned char *info,
                size_t info_len);

/*
 * The Concat KDF (SP 800-56A section 5.8.1, RFC 7518 section 4.6.2) with SHA-256: out_len bytes out
 * of the shared secret z for an algorithm, with the parties' infos (each may be NULL and 0).
 */
int concat_kdf_sha256(unsigned char *out, size_t out_len, const unsigned char *z, size_t z_len,
                      const char *alg, const unsigned char *apu, size_t apu_len,
                      const unsigned char *apv, size_t apv_len);

/* The 32-byte x coordinate of the shared point, as it is.  peer: as above, on the curve and not at
 * infinity, which is all there is to check where the cofactor is 1.  KMS_ERR_KEY: all zero, or of
 * another curve; KMS_ERR_NOMEM. */
int ecdh_shared(unsigned char out[32], EVP_PKEY *mine, EVP_PKEY *peer);

#endif
