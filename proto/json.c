/* json.c - strict JSON on top of jansson, and an allocator that wipes. */
#include "proto/json.h"

#include <openssl/crypto.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"

/* What stands before each block that jansson has: its free is not told the size. */
union block {
    size_t size;
    max_align_t align;
};

static void *
json_alloc(size_t size)
{
    union block *b;

    if (size > SIZE_MAX - sizeof(*b) || (b = malloc(sizeof(*b) + size)) == NULL)
        return NULL;
    b->size = size;
    return b + 1;
}

static void
json_wipe_free(void *p)
{
    union block *b = p;

    if (b == NULL)
        return;
    b--;
    OPENSSL_cleanse(b + 1, b->size);
    free(b);
}

void
kms_json_init(void)
{
    json_set_alloc_funcs(json_alloc, json_wipe_free);
    /* Now, rather than in each child: jansson's hash of member names is keyed against collisions.
     */
    json_object_seed(0);
}

/*
 * What must hold before jansson sees the text.  It recurses, here and when it frees, and would go
 * down to 2048; and each value is a block to be allocated, hashed and wiped, so that the largest
 * body full of them takes seconds.  Brackets and commas inside strings do not count; a text that is
 * no JSON may be counted wrong, which does no harm: the parser refuses it.
 */
static int
check_bounds(const char *text, size_t len, size_t max_values)
{
    const char *end = text + len;
    bool in_string = false;
    size_t values = 1;
    int depth = 0;

    for (; text < end; text++) {
        if (in_string) {
            if (*text == '\\')
                text++;
            else if (*text == '"')
                in_string = false;
            continue;
        }
        switch (*text) {
        case '"':
            in_string = true;
            break;
        case '[':
        case '{':
            if (++depth > KMS_JSON_DEPTH)
                return KMS_ERR_LENGTH;
            break;
        case ']':
        case '}':
            depth--;
            break;
        case ',':
            if (++values > max_values)
                return KMS_ERR_LIMIT;
            break;
        }
    }
    return KMS_OK;
}

static int
parse(json_t **out, const char *text, size_t len, size_t flags, size_t max_values)
{
    json_error_t error;
    int r;

    *out = NULL;
    if (text == NULL || len == 0)
        return KMS_ERR_SYNTAX;
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0)
        return KMS_ERR_SYNTAX;
    /* jansson passes over some: "123" with a NUL behind is a number to it. */
    if (memchr(text, '\0', len) != NULL)
        return KMS_ERR_SYNTAX;
    if ((r = check_bounds(text, len, max_values)) != KMS_OK)
        return r;
    /* jansson itself refuses bad UTF-8, an escaped U+0000 and unpaired surrogates. */
    *out = json_loadb(text, len, flags | JSON_REJECT_DUPLICATES, &error);
    if (*out == NULL) {
        switch (json_error_code(&error)) {
        case json_error_out_of_memory:
            r = KMS_ERR_NOMEM;
            break;
        case json_error_duplicate_key:
            r = KMS_ERR_DUPLICATE;
            break;
        case json_error_stack_overflow:
            r = KMS_ERR_LENGTH;
            break;
        default:
            r = KMS_ERR_SYNTAX;
            break;
        }
        /* It quotes the text. */
        OPENSSL_cleanse(&error, sizeof(error));
    }
    return r;
}

static int
parse_object(json_t **out, const char *text, size_t len, size_t flags, size_t max_values)
{
    int r;

    if ((r = parse(out, text, len, flags, max_values)) != KMS_OK)
        return r;
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return KMS_ERR_MEMBER;
    }
    return KMS_OK;
}

int
kms_json_parse(json_t **out, const char *text, size_t len)
{
    return parse_object(out, text, len, 0, SIZE_MAX);
}

int
kms_json_parse_strange(json_t **out, const char *text, size_t len)
{
    return parse_object(out, text, len, 0, KMS_JSON_VALUES);
}

int
kms_json_parse_reals(json_t **out, const char *text, size_t len)
{
    return parse_object(out, text, len, JSON_DECODE_INT_AS_REAL, KMS_JSON_VALUES);
}

int
kms_json_parse_any(json_t **out, const char *text, size_t len)
{
    return parse(out, text, len, JSON_DECODE_ANY, SIZE_MAX);
}

static int
put_cb(const char *piece, size_t len, void *arg)
{
    return buf_put(arg, piece, len) == KMS_OK ? 0 : -1;
}

int
kms_json_put(struct buf *out, const json_t *v)
{
    size_t before = out->len;

    if (json_dump_callback(v, put_cb, out, JSON_COMPACT | JSON_ENCODE_ANY) == 0)
        return KMS_OK;
    buf_truncate(out, before);
    return KMS_ERR_NOMEM;
}

int
kms_json_str(const json_t *obj, const char *name, size_t max, const char **out)
{
    const json_t *v;

    if ((v = json_object_get(obj, name)) == NULL)
        return KMS_ERR_NOT_FOUND;
    if (!json_is_string(v) || json_string_length(v) > max)
        return KMS_ERR_MEMBER;
    *out = json_string_value(v);
    return KMS_OK;
}

int
kms_json_int(const json_t *obj, const char *name, long long min, long long max, long long *out)
{
    const json_t *v;

    if ((v = json_object_get(obj, name)) == NULL)
        return KMS_ERR_NOT_FOUND;
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return KMS_ERR_MEMBER;
    *out = json_integer_value(v);
    return KMS_OK;
}

/* The code unit of the escape \uXXXX at p, or -1 when there is none. */
static long
escape_unit(const char *p, const char *end)
{
    long unit = 0;
    int i;

    if (end - p < 6 || p[0] != '\\' || p[1] != 'u')
        return -1;
    for (i = 2; i < 6; i++) {
        char c = p[i];

        if (c >= '0' && c <= '9')
            unit = unit * 16 + (c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            unit = unit * 16 + ((c | 0x20) - 'a') + 10;
        else
            return -1;
    }
    return unit;
}

static bool
is_high(long unit)
{
    return unit >= 0xd800 && unit <= 0xdbff;
}

static bool
is_low(long unit)
{
    return unit >= 0xdc00 && unit <= 0xdfff;
}

bool
kms_json_mend(char *text, size_t len)
{
    char *p = text, *end = text + len;
    bool mended = false;

    while (p < end && (p = memchr(p, '\\', (size_t)(end - p))) != NULL) {
        long unit = escape_unit(p, end);

        if (unit < 0) {
            p += 2; /* another escape: \\ must not be taken for the start of the next one */
        } else if (is_high(unit) && is_low(escape_unit(p + 6, end))) {
            p += 12;
        } else {
            if (unit == 0 || is_high(unit) || is_low(unit)) {
                memcpy(p + 2, "fffd", 4);
                mended = true;
            }
            p += 6;
        }
    }
    return mended;
}
