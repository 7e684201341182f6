/*
 * buf.h - a growable byte buffer that wipes what it frees.
 *
 * Every buffer may come to hold a secret (a plaintext, a token), so none is ever realloc'd: growing
 * copies to new memory and wipes the old.  The bytes are always followed by one NUL that len does
 * not count, so that text may be printed as a C string.
 */
#ifndef PROTO_BUF_H
#define PROTO_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    unsigned char *data; /* owned; NULL while nothing was put in */
    size_t len;
    size_t cap;
};

#define BUF_INIT                                                                                   \
    {                                                                                              \
        NULL, 0, 0                                                                                 \
    }

void buf_init(struct buf *b);
/* Wipes and frees the bytes; the buffer is empty again and can be used.  NULL is fine. */
void buf_release(struct buf *b);
/* Wipes the bytes and keeps the memory. */
void buf_reset(struct buf *b);

/* Each of these: KMS_OK, or KMS_ERR_NOMEM and the buffer is as it was. */
int buf_reserve(struct buf *b, size_t more);
int buf_put(struct buf *b, const void *p, size_t len);
int buf_puts(struct buf *b, const char *s);
int buf_putc(struct buf *b, char c);
int buf_putf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Removes the first n bytes (n <= len), moving the rest down and wiping what it leaves. */
void buf_consume(struct buf *b, size_t n);

/* Removes all but the first len bytes, wiping the rest and whatever was written behind it. */
void buf_truncate(struct buf *b, size_t len);

/* "" when nothing was put in; borrowed until the next call on b. */
const char *buf_str(const struct buf *b);

#endif
