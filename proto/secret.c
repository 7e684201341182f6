/* secret.c - 32-byte keys in OpenSSL's secure heap. */
#include "proto/secret.h"

#include <openssl/crypto.h>
#include <string.h>

#include "proto/err.h"

int
secret_heap_init(size_t bytes)
{
    static int outcome = KMS_ERR_STATE; /* of the first call: the heap cannot be made twice */

    if (outcome != KMS_ERR_STATE)
        return outcome;
    switch (CRYPTO_secure_malloc_init(bytes, SECRET_LEN)) {
    case 1:
        outcome = KMS_OK;
        break;
    case 2:
        outcome = KMS_ERR_LIMIT;
        break;
    default:
        outcome = KMS_ERR_NOMEM;
        break;
    }
    return outcome;
}

struct secret *
secret_new(void)
{
    /* Without a heap OpenSSL would quietly give ordinary memory. */
    if (!CRYPTO_secure_malloc_initialized())
        return NULL;
    return OPENSSL_secure_zalloc(sizeof(struct secret));
}

struct secret *
secret_from(const unsigned char b[SECRET_LEN])
{
    struct secret *s;

    if ((s = secret_new()) != NULL)
        memcpy(s->b, b, SECRET_LEN);
    return s;
}

void
secret_free(struct secret *s)
{
    OPENSSL_secure_clear_free(s, sizeof(*s));
}
