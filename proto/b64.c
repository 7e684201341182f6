/* b64.c - base64url and base64, strict, by tables. */
#include "proto/b64.h"

#include <stdbool.h>
#include <stdint.h>

#include "proto/buf.h"
#include "proto/err.h"

#define ALNUM "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

static const char url_chars[] = ALNUM "-_";
static const char std_chars[] = ALNUM "+/";

/* The value of a character of the alphabet is marked, so that the AND of many tells whether all of
 * them are. */
#define VALID 0x80
/* clang-format off */
#define ALNUM_VALUES \
    ['A'] = VALID | 0, ['B'] = VALID | 1, ['C'] = VALID | 2, ['D'] = VALID | 3, \
    ['E'] = VALID | 4, ['F'] = VALID | 5, ['G'] = VALID | 6, ['H'] = VALID | 7, \
    ['I'] = VALID | 8, ['J'] = VALID | 9, ['K'] = VALID | 10, ['L'] = VALID | 11, \
    ['M'] = VALID | 12, ['N'] = VALID | 13, ['O'] = VALID | 14, ['P'] = VALID | 15, \
    ['Q'] = VALID | 16, ['R'] = VALID | 17, ['S'] = VALID | 18, ['T'] = VALID | 19, \
    ['U'] = VALID | 20, ['V'] = VALID | 21, ['W'] = VALID | 22, ['X'] = VALID | 23, \
    ['Y'] = VALID | 24, ['Z'] = VALID | 25, ['a'] = VALID | 26, ['b'] = VALID | 27, \
    ['c'] = VALID | 28, ['d'] = VALID | 29, ['e'] = VALID | 30, ['f'] = VALID | 31, \
    ['g'] = VALID | 32, ['h'] = VALID | 33, ['i'] = VALID | 34, ['j'] = VALID | 35, \
    ['k'] = VALID | 36, ['l'] = VALID | 37, ['m'] = VALID | 38, ['n'] = VALID | 39, \
    ['o'] = VALID | 40, ['p'] = VALID | 41, ['q'] = VALID | 42, ['r'] = VALID | 43, \
    ['s'] = VALID | 44, ['t'] = VALID | 45, ['u'] = VALID | 46, ['v'] = VALID | 47, \
    ['w'] = VALID | 48, ['x'] = VALID | 49, ['y'] = VALID | 50, ['z'] = VALID | 51, \
    ['0'] = VALID | 52, ['1'] = VALID | 53, ['2'] = VALID | 54, ['3'] = VALID | 55, \
    ['4'] = VALID | 56, ['5'] = VALID | 57, ['6'] = VALID | 58, ['7'] = VALID | 59, \
    ['8'] = VALID | 60, ['9'] = VALID | 61
static const unsigned char url_values[256] = { ALNUM_VALUES, ['-'] = VALID | 62, ['_'] = VALID | 63 };
static const unsigned char std_values[256] = { ALNUM_VALUES, ['+'] = VALID | 62, ['/'] = VALID | 63 };
/* clang-format on */

/* Without padding.  Writes B64URL_LEN(len) characters. */
static void
encode(const char *chars, char *out, const unsigned char *in, size_t len)
{
    uint32_t v;

    for (; len >= 3; len -= 3, in += 3, out += 4) {
        v = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];
        out[0] = chars[v >> 18];
        out[1] = chars[v >> 12 & 63];
        out[2] = chars[v >> 6 & 63];
        out[3] = chars[v & 63];
    }
    if (len == 0)
        return;
    v = (uint32_t)in[0] << 16 | (len == 2 ? (uint32_t)in[1] << 8 : 0);
    out[0] = chars[v >> 18];
    out[1] = chars[v >> 12 & 63];
    if (len == 2)
        out[2] = chars[v >> 6 & 63];
}

/* Without padding.  Writes B64URL_BYTES(len) bytes; true when the text was right. */
static bool
decode(const unsigned char *values, unsigned char *out, const char *text, size_t len)
{
    const unsigned char *in = (const unsigned char *)text;
    unsigned char a, b, c, d, all = VALID;

    for (; len >= 4; len -= 4, in += 4, out += 3) {
        a = values[in[0]];
        b = values[in[1]];
        c = values[in[2]];
        d = values[in[3]];
        all &= a & b & c & d;
        out[0] = (unsigned char)(a << 2 | (b >> 4 & 3));
        out[1] = (unsigned char)(b << 4 | (c >> 2 & 15));
        out[2] = (unsigned char)(c << 6 | (d & 63));
    }
    if (len == 0)
        return all == VALID;
    if (len == 1)
        return false;
    a = values[in[0]];
    b = values[in[1]];
    all &= a & b;
    out[0] = (unsigned char)(a << 2 | (b >> 4 & 3));
    if (len == 2)
        return all == VALID && (b & 15) == 0;
    c = values[in[2]];
    all &= c;
    out[1] = (unsigned char)(b << 4 | (c >> 2 & 15));
    return all == VALID && (c & 3) == 0;
}

void
b64url_encode(char *out, const void *in, size_t len)
{
    encode(url_chars, out, in, len);
}

int
b64url_decode(unsigned char *out, const char *in, size_t len)
{
    return decode(url_values, out, in, len) ? KMS_OK : KMS_ERR_SYNTAX;
}

int
b64url_put(struct buf *out, const void *in, size_t len)
{
    int r;

    if (len > SIZE_MAX / 8)
        return KMS_ERR_NOMEM;
    if ((r = buf_reserve(out, B64URL_LEN(len))) != KMS_OK)
        return r;
    encode(url_chars, (char *)out->data + out->len, in, len);
    out->len += B64URL_LEN(len);
    out->data[out->len] = '\0';
    return KMS_OK;
}

/* What was decoded of a text that turns out wrong stays behind len; buf_release wipes it. */
static int
get(const unsigned char *values, struct buf *out, const char *in, size_t len)
{
    int r;

    if ((r = buf_reserve(out, B64URL_BYTES(len))) != KMS_OK)
        return r;
    r = decode(values, out->data + out->len, in, len) ? KMS_OK : KMS_ERR_SYNTAX;
    if (r == KMS_OK)
        out->len += B64URL_BYTES(len);
    out->data[out->len] = '\0';
    return r;
}

int
b64url_get(struct buf *out, const char *in, size_t len)
{
    return get(url_values, out, in, len);
}

int
b64_put(struct buf *out, const void *in, size_t len)
{
    char *p;
    int r;

    if (len > SIZE_MAX / 8)
        return KMS_ERR_NOMEM;
    if ((r = buf_reserve(out, (len + 2) / 3 * 4)) != KMS_OK)
        return r;
    encode(std_chars, (char *)out->data + out->len, in, len);
    p = (char *)out->data + out->len + B64URL_LEN(len);
    out->len += (len + 2) / 3 * 4;
    while (p < (char *)out->data + out->len)
        *p++ = '=';
    *p = '\0';
    return KMS_OK;
}

int
b64_get(struct buf *out, const char *in, size_t len)
{
    if (len % 4 != 0)
        return KMS_ERR_SYNTAX;
    if (len > 0 && in[len - 1] == '=')
        len -= in[len - 2] == '=' ? 2 : 1;
    return get(std_values, out, in, len);
}
