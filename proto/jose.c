/* jose.c - the protected header of JWE and JWS. */
#include "proto/jose.h"

#include <stddef.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"

static const struct member {
    const char *name;
    size_t name_len;
    unsigned bit;
    size_t max;
    ptrdiff_t keep; /* offset in struct jose_header; -1: checked and dropped */
} members[] = {
#define M(name, bit, max, keep)                                                                    \
    {                                                                                              \
        name, sizeof(name) - 1, bit, max, keep                                                     \
    }
    M("alg", JOSE_ALG, JOSE_VALUE_MAX, offsetof(struct jose_header, alg)),
    M("enc", JOSE_ENC, JOSE_VALUE_MAX, offsetof(struct jose_header, enc)),
    M("kid", JOSE_KID, JOSE_KID_MAX, offsetof(struct jose_header, kid)),
    M("typ", JOSE_TYP, JOSE_VALUE_MAX, offsetof(struct jose_header, typ)),
    M("cty", JOSE_CTY, JOSE_VALUE_MAX, -1),
    M("x5t", JOSE_X5T, JOSE_VALUE_MAX, -1),
    M("x5t#S256", JOSE_X5T_S256, JOSE_VALUE_MAX, -1),
#undef M
};

static const struct member *
member_find(const char *name, size_t len)
{
    size_t i;

    for (i = 0; i < sizeof(members) / sizeof(members[0]); i++)
        if (members[i].name_len == len && memcmp(members[i].name, name, len) == 0)
            return &members[i];
    return NULL;
}

static void
header_init(struct jose_header *h)
{
    h->seen = 0;
    h->alg[0] = h->enc[0] = h->typ[0] = h->kid[0] = '\0';
}

static void
member_keep(struct jose_header *h, const struct member *m, const char *value, size_t len)
{
    char *to;

    h->seen |= m->bit;
    if (m->keep < 0)
        return;
    to = (char *)h + m->keep;
    memcpy(to, value, len);
    to[len] = '\0';
}

bool
jose_is_plain(const char *text, size_t len, size_t max)
{
    size_t i;

    if (len > max)
        return false;
    for (i = 0; i < len; i++)
        if (text[i] < 0x20 || text[i] > 0x7e || text[i] == '"' || text[i] == '\\')
            return false;
    return true;
}

/* A string without escapes: moves *p past it, gives what is between the quotes. */
static bool
plain_string(const char **p, const char *end, const char **s, size_t *len)
{
    const char *close;

    if (*p == end || **p != '"')
        return false;
    *s = *p + 1;
    if ((close = memchr(*s, '"', (size_t)(end - *s))) == NULL)
        return false;
    *len = (size_t)(close - *s);
    *p = close + 1;
    return true;
}

bool
jose_header_read_plain(struct jose_header *h, const char *json, size_t len, unsigned allowed)
{
    const char *p = json, *end = json + len, *name, *value;
    size_t name_len, value_len;
    const struct member *m;

    header_init(h);
    if (p == end || *p++ != '{')
        return false;
    for (;;) {
        if (!plain_string(&p, end, &name, &name_len) || p == end || *p++ != ':' ||
            !plain_string(&p, end, &value, &value_len) || p == end)
            return false;
        /* A backslash in a name finds no member, one in a value is not plain. */
        m = member_find(name, name_len);
        if (m == NULL || !(m->bit & allowed) || (m->bit & h->seen) ||
            !jose_is_plain(value, value_len, m->max))
            return false;
        member_keep(h, m, value, value_len);
        if (*p == '}')
            return p + 1 == end;
        if (*p++ != ',')
            return false;
    }
}

int
jose_header_read_json(struct jose_header *h, const char *json, size_t len, unsigned allowed)
{
    const struct member *m;
    const char *name;
    json_t *tree, *v;
    int r;

    header_init(h);
    if ((r = kms_json_parse(&tree, json, len)) != KMS_OK)
        return r == KMS_ERR_MEMBER ? KMS_ERR_SYNTAX : r;
    json_object_foreach(tree, name, v)
    {
        m = member_find(name, strlen(name));
        if (m == NULL || !(m->bit & allowed) || !json_is_string(v) ||
            !jose_is_plain(json_string_value(v), json_string_length(v), m->max)) {
            r = KMS_ERR_HEADER;
            break;
        }
        member_keep(h, m, json_string_value(v), json_string_length(v));
    }
    json_decref(tree);
    return r;
}

int
jose_header_parse(struct jose_header *h, const char *text, size_t len, unsigned allowed)
{
    unsigned char json[JOSE_HEADER_MAX];
    size_t json_len = B64URL_BYTES(len);
    int r;

    if (json_len > sizeof(json))
        return KMS_ERR_LENGTH;
    if ((r = b64url_decode(json, text, len)) != KMS_OK)
        return r;
    if (jose_header_read_plain(h, (const char *)json, json_len, allowed))
        return KMS_OK;
    return jose_header_read_json(h, (const char *)json, json_len, allowed);
}
