/* buf.c - a growable byte buffer that wipes what it frees. */
#include "proto/buf.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"

#define BUF_MIN 64

void
buf_init(struct buf *b)
{
    b->data = NULL;
    b->len = 0;
    b->cap = 0;
}

void
buf_release(struct buf *b)
{
    if (b == NULL)
        return;
    if (b->data != NULL) {
        /* All of it: who writes into reserved room and fails may leave bytes behind len. */
        OPENSSL_cleanse(b->data, b->cap + 1);
        free(b->data);
    }
    buf_init(b);
}

void
buf_reset(struct buf *b)
{
    if (b->data != NULL)
        OPENSSL_cleanse(b->data, b->cap + 1);
    b->len = 0;
}

int
buf_reserve(struct buf *b, size_t more)
{
    unsigned char *data;
    size_t cap;

    /* The NUL behind the bytes is allocated, but is no part of cap. */
    if (b->data != NULL && more <= b->cap - b->len)
        return KMS_OK;
    if (more > SIZE_MAX / 4 - b->len)
        return KMS_ERR_NOMEM;
    cap = b->cap < BUF_MIN ? BUF_MIN : b->cap;
    while (cap < b->len + more)
        cap *= 2;
    if ((data = malloc(cap + 1)) == NULL)
        return KMS_ERR_NOMEM;
    if (b->data != NULL) {
        memcpy(data, b->data, b->len);
        OPENSSL_cleanse(b->data, b->cap + 1);
        free(b->data);
    }
    data[b->len] = '\0';
    b->data = data;
    b->cap = cap;
    return KMS_OK;
}

int
buf_put(struct buf *b, const void *p, size_t len)
{
    int r;

    if ((r = buf_reserve(b, len)) != KMS_OK)
        return r;
    if (len > 0)
        memcpy(b->data + b->len, p, len);
    b->len += len;
    b->data[b->len] = '\0';
    return KMS_OK;
}

int
buf_puts(struct buf *b, const char *s)
{
    return buf_put(b, s, strlen(s));
}

int
buf_putc(struct buf *b, char c)
{
    return buf_put(b, &c, 1);
}

int
buf_putf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    int n, r;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return KMS_ERR_NOMEM;
    if ((r = buf_reserve(b, (size_t)n)) != KMS_OK)
        return r;
    va_start(ap, fmt);
    vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return KMS_OK;
}

void
buf_consume(struct buf *b, size_t n)
{
    if (n == 0)
        return;
    memmove(b->data, b->data + n, b->len - n);
    OPENSSL_cleanse(b->data + b->len - n, n);
    b->len -= n;
    b->data[b->len] = '\0';
}

void
buf_truncate(struct buf *b, size_t len)
{
    if (b->data == NULL)
        return;
    OPENSSL_cleanse(b->data + len, b->cap - len + 1);
    b->len = len;
}

const char *
buf_str(const struct buf *b)
{
    return b->data == NULL ? "" : (const char *)b->data;
}
