/*
 * secret.h - 32-byte keys in locked memory.
 *
 * The only home a bare key has in kmsd and in the tools.  The memory comes from OpenSSL's secure
 * heap (mlock'd, not in core dumps); secret_heap_init must have been called.  When the heap is
 * full, secret_new says so: there is no fallback to ordinary memory.
 */
#ifndef PROTO_SECRET_H
#define PROTO_SECRET_H

#include <stddef.h>

#define SECRET_LEN 32

struct secret {
    unsigned char b[SECRET_LEN];
};

/*
 * Once per process, before the first secret.  bytes: a power of two, 32 bytes a secret and some.
 * KMS_OK; KMS_ERR_LIMIT: the heap works but could not be locked (RLIMIT_MEMLOCK), the caller
 * decides whether that is fit to go on; KMS_ERR_NOMEM: no heap.
 */
int secret_heap_init(size_t bytes);

/* A zeroed secret in the secure heap; NULL: the heap is full (or was never made). */
struct secret *secret_new(void);
struct secret *secret_from(const unsigned char b[SECRET_LEN]);
/* Wipes and frees; NULL is fine. */
void secret_free(struct secret *s);

#endif
