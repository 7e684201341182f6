/*
 * kdf.h - the channel's key agreement: ECDH on P-256 (SP 800-56A), HKDF with SHA-256 (RFC 5869).
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

#endif
