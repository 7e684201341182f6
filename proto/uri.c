/*
 * uri.c - kms: URIs and UUIDs between text and structs.
 */
#include "proto/uri.h"

#include <jansson.h>
#include <openssl/rand.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "proto/buf.h"
#include "proto/err.h"

static const char hex_digits[] = "0123456789abcdef";

/* A piece of the text that is being parsed. */
struct part {
    const char *p;
    size_t len;
};

static int
hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int
uuid_random(struct uuid *out)
{
    if (RAND_bytes(out->b, UUID_LEN) != 1)
        return KMS_ERR_INTERNAL;
    out->b[6] = (unsigned char)((out->b[6] & 0x0f) | 0x40); /* version 4 */
    out->b[8] = (unsigned char)((out->b[8] & 0x3f) | 0x80); /* the variant of RFC 9562 */
    return KMS_OK;
}

/* Where the hyphens of the text form are: before bytes 4, 6, 8 and 10. */
static bool
hyphen_before(size_t byte)
{
    return byte == 4 || byte == 6 || byte == 8 || byte == 10;
}

int
uuid_parse(struct uuid *out, const char *text, size_t len)
{
    size_t i, at = 0;

    if (len != UUID_TEXT)
        return KMS_ERR_SYNTAX;
    for (i = 0; i < UUID_LEN; i++) {
        int hi, lo;

        if (hyphen_before(i) && text[at++] != '-')
            return KMS_ERR_SYNTAX;
        hi = hex_value(text[at++]);
        lo = hex_value(text[at++]);
        if (hi < 0 || lo < 0)
            return KMS_ERR_SYNTAX;
        out->b[i] = (unsigned char)(hi << 4 | lo);
    }
    return KMS_OK;
}

void
uuid_format(char out[UUID_TEXT + 1], const struct uuid *u)
{
    size_t i;

    for (i = 0; i < UUID_LEN; i++) {
        if (hyphen_before(i))
            *out++ = '-';
        *out++ = hex_digits[u->b[i] >> 4];
        *out++ = hex_digits[u->b[i] & 0x0f];
    }
    *out = '\0';
}

bool
kms_text_ok(const char *text, size_t len)
{
    json_t *checked;
    size_t i;

    for (i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c < 0x20 || c == 0x7f)
            return false;
        /* U+0080 to U+009F, the other row of controls */
        if (c == 0xc2 && i + 1 < len && (unsigned char)text[i + 1] < 0xa0)
            return false;
    }
    /* jansson makes strings of valid UTF-8 only: no second opinion of our own on that. */
    checked = json_stringn(text, len);
    json_decref(checked);
    return checked != NULL;
}

/* One byte of a pchar (RFC 3986 section 3.3) that is no percent escape. */
static bool
is_pchar(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("-._~!$&'()*+,;=:@", c) != NULL);
}

/* The byte that the escape at p stands for, or -1. */
static int
escape_value(const char *p, const char *end)
{
    int hi, lo;

    if (end - p < 3 || *p != '%')
        return -1;
    hi = hex_value(p[1]);
    lo = hex_value(p[2]);
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

/* A segment that is not empty and made of pchars. */
static bool
segment_ok(struct part s)
{
    const char *p = s.p, *end = s.p + s.len;

    if (s.len == 0)
        return false;
    while (p < end) {
        if (is_pchar(*p))
            p++;
        else if (escape_value(p, end) >= 0)
            p += 3;
        else
            return false;
    }
    return true;
}

static bool
part_is(struct part s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.p, text, s.len) == 0;
}

/* Cuts s at the first c: what is before it is returned, *rest is what is after it (p NULL: no c).
 */
static struct part
cut(struct part s, char c, struct part *rest)
{
    const char *at = s.len == 0 ? NULL : memchr(s.p, c, s.len);

    rest->p = NULL;
    rest->len = 0;
    if (at != NULL) {
        rest->p = at + 1;
        rest->len = (size_t)(s.p + s.len - rest->p);
        s.len = (size_t)(at - s.p);
    }
    return s;
}

/*
 * The value of authId=VALUE, the only query there is.  A '+' is a space, as in a form: the clients'
 * query encoders write a plus sign as %2B.
 */
static int
query_parse(struct kms_uri *out, struct part query)
{
    struct part value, name = cut(query, '=', &value);
    const char *p = value.p, *end;
    size_t n = 0;

    if (!part_is(name, "authId") || value.len == 0)
        return KMS_ERR_SYNTAX;
    end = value.p + value.len;
    while (p < end) {
        int c;

        if (n == KMS_AUTHID_MAX)
            return KMS_ERR_SYNTAX;
        if ((c = escape_value(p, end)) >= 0) {
            p += 3;
        } else if (*p != '&' && (is_pchar(*p) || *p == '/' || *p == '?')) {
            c = *p == '+' ? ' ' : *p;
            p++;
        } else {
            return KMS_ERR_SYNTAX; /* also a second member */
        }
        out->auth_id[n++] = (char)c;
    }
    out->auth_id[n] = '\0';
    return kms_text_ok(out->auth_id, n) ? KMS_OK : KMS_ERR_SYNTAX;
}

/* The name of a purpose, out of a segment_ok: whether it is one that exists is not asked here. */
static int
purpose_parse(struct kms_uri *out, struct part name)
{
    const char *p = name.p, *end = name.p + name.len;
    size_t n = 0;

    while (p < end) {
        int c = escape_value(p, end);

        if (n == KMS_PURPOSE_MAX)
            return KMS_ERR_SYNTAX;
        out->purpose[n++] = c >= 0 ? (char)c : *p;
        p += c >= 0 ? 3 : 1;
    }
    out->purpose[n] = '\0';
    return kms_text_ok(out->purpose, n) ? KMS_OK : KMS_ERR_SYNTAX;
}

/*
 * The paths there are.  A collection, then perhaps an ID (of a purpose: its name), then perhaps a
 * sub-collection.
 */
static const struct {
    const char *collection;
    bool has_id;
    const char *sub; /* NULL: none */
    enum uri_kind kind;
} forms[] = {
    {"ecdhe", false, NULL, URI_ECDHE},
    {"ecdhe", true, NULL, URI_ECDHE_ID},
    {"ping", false, NULL, URI_PING},
    {"keys", false, NULL, URI_KEYS},
    {"keys", true, NULL, URI_KEY},
    {"resources", false, NULL, URI_RESOURCES},
    {"resources", true, NULL, URI_RESOURCE},
    {"resources", true, "keys", URI_RESOURCE_KEYS},
    {"resources", true, "authorizations", URI_RESOURCE_AUTHORIZATIONS},
    {"authorizations", false, NULL, URI_AUTHORIZATIONS},
    {"authorizations", true, NULL, URI_AUTHORIZATION},
    {"resources", true, "releases", URI_RESOURCE_RELEASES},
    {"purposes", true, "keys", URI_PURPOSE_KEYS},
    {"matters", true, "keys", URI_MATTER_KEYS},
    {"resources", true, "recordings", URI_RESOURCE_RECORDINGS},
    {"recordings", true, NULL, URI_RECORDING},
    {"publicKey", false, NULL, URI_PUBLIC_KEY},
    {"cmk", false, NULL, URI_CMKS},
    {"cmk", true, NULL, URI_CMK},
};

/* path: without the first slash.  *id is what stands in the ID's place. */
static int
path_parse(struct kms_uri *out, struct part path, struct part *id)
{
    struct part rest, more, sub, collection = cut(path, '/', &rest);
    size_t i;

    *id = cut(rest, '/', &rest);
    sub = cut(rest, '/', &more);
    if (more.p != NULL || (id->p != NULL && !segment_ok(*id)))
        return KMS_ERR_SYNTAX;
    for (i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        if (part_is(collection, forms[i].collection) && forms[i].has_id == (id->p != NULL) &&
            (forms[i].sub == NULL ? sub.p == NULL : sub.p != NULL && part_is(sub, forms[i].sub))) {
            out->kind = forms[i].kind;
            return KMS_OK;
        }
    }
    return KMS_ERR_SYNTAX;
}

/* A host name as certificates have them: letters, digits, '-', '.', '_'. */
static bool
host_ok(struct part host)
{
    size_t i;

    if (host.len == 0 || host.len > KMS_DOMAIN_MAX)
        return false;
    for (i = 0; i < host.len; i++) {
        char c = host.p[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '-' || c == '.' || c == '_'))
            return false;
    }
    return true;
}

int
kms_uri_parse(struct kms_uri *out, const char *text, size_t len, const char *domain)
{
    static const char scheme[] = "kms://";
    const size_t scheme_len = sizeof(scheme) - 1;
    struct part whole = {text, len}, host = {NULL, 0}, path, query, id;
    int r;

    memset(out, 0, sizeof(*out));
    if (part_is(whole, "default")) {
        out->kind = URI_DEFAULT_CMK;
        return KMS_OK;
    }
    if (len > scheme_len && strncasecmp(text, scheme, scheme_len) == 0) {
        whole.p += scheme_len;
        whole.len -= scheme_len;
        host = cut(whole, '/', &path);
        if (!host_ok(host) || path.p == NULL)
            return KMS_ERR_SYNTAX;
    } else if (len > 0 && text[0] == '/') {
        path.p = text + 1;
        path.len = len - 1;
    } else {
        return KMS_ERR_SYNTAX;
    }
    path = cut(path, '?', &query);
    if ((r = path_parse(out, path, &id)) != KMS_OK)
        return r;
    if (query.p != NULL &&
        (out->kind != URI_RESOURCE_AUTHORIZATIONS || (r = query_parse(out, query)) != KMS_OK))
        return KMS_ERR_SYNTAX;
    if (out->kind == URI_PURPOSE_KEYS && (r = purpose_parse(out, id)) != KMS_OK)
        return r;

    /* It is a URI of ours in form.  Does it name something here? */
    if (host.p != NULL &&
        (host.len != strlen(domain) || strncasecmp(host.p, domain, host.len) != 0))
        return KMS_ERR_NOT_FOUND;
    if (id.p != NULL && out->kind != URI_PURPOSE_KEYS &&
        uuid_parse(&out->id, id.p, id.len) != KMS_OK)
        return KMS_ERR_NOT_FOUND;
    return KMS_OK;
}

int
kms_uri_put(struct buf *out, const char *domain, const char *collection, const struct uuid *id)
{
    char text[UUID_TEXT + 1];

    uuid_format(text, id);
    return buf_putf(out, "kms://%s/%s/%s", domain, collection, text);
}
