/*
 * b64.h - base64url without padding (RFC 4648 section 5, RFC 7515 section 2), and standard base64
 * for x5c.
 *
 * Decoding is strict: the alphabet and nothing else, no padding (base64url) or exact padding
 * (standard), a length that can be, and zero in the bits that are left over.  So each byte string
 * has exactly one text.
 */
#ifndef PROTO_B64_H
#define PROTO_B64_H

#include <stddef.h>

struct buf;

/* Exact sizes; no NUL is counted. */
#define B64URL_LEN(n)   (((n)*4 + 2) / 3)
#define B64URL_BYTES(n) ((n) / 4 * 3 + ((n) % 4 ? (n) % 4 - 1 : 0))

/* Writes exactly B64URL_LEN(len) characters to out, no NUL. */
void b64url_encode(char *out, const void *in, size_t len);
/* Writes exactly B64URL_BYTES(len) bytes to out.  KMS_OK, or KMS_ERR_SYNTAX (out is then
 * undefined). */
int b64url_decode(unsigned char *out, const char *in, size_t len);

/* The same, at the end of a buffer.  Also KMS_ERR_NOMEM. */
int b64url_put(struct buf *out, const void *in, size_t len);
int b64url_get(struct buf *out, const char *in, size_t len);

/* Standard base64 with padding, as x5c and section 5 of the protocol have it. */
int b64_put(struct buf *out, const void *in, size_t len);
int b64_get(struct buf *out, const char *in, size_t len);

#endif
