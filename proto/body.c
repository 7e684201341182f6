/* body.c - the body of a POST of messages, read directly where its form allows. */
#include "proto/body.h"

#include <stdbool.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"

/* What is left to read. */
struct reader {
    const char *p, *end;
};

static bool
skip(struct reader *r, char c)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t'))
        r->p++;
    if (r->p == r->end || *r->p != c)
        return false;
    r->p++;
    return true;
}

/* A string of printable ASCII without escapes: its characters are its bytes. */
static bool
string(struct reader *r, struct kms_text *out)
{
    const char *from, *quote;
    bool plain = true;

    if (!skip(r, '"'))
        return false;
    from = r->p;
    if ((quote = memchr(from, '"', (size_t)(r->end - from))) == NULL)
        return false;
    /* No way out of the loop: it must be one that compilers turn into vectors. */
    for (r->p = from; r->p < quote; r->p++)
        plain &= *r->p >= ' ' && *r->p < 0x7f && *r->p != '\\';
    r->p = quote + 1;
    out->p = from;
    out->len = (size_t)(quote - from);
    return plain;
}

static bool
equals(const struct kms_text *t, const char *name)
{
    return t->len == strlen(name) && memcmp(t->p, name, t->len) == 0;
}

static bool
messages(struct reader *r, struct kms_body *body)
{
    struct kms_text one;

    if (!skip(r, '['))
        return false;
    if (skip(r, ']'))
        return true;
    do {
        if (!string(r, &one))
            return false;
        if (body->n < KMS_MESSAGES_MAX)
            body->messages[body->n] = one;
        body->n++;
    } while (skip(r, ','));
    return skip(r, ']');
}

int
kms_body_parse_direct(struct kms_body *body, const char *text, size_t len)
{
    struct reader r = {text, text + len};
    struct kms_text name;
    bool destination = false, list = false;

    body->n = 0;
    body->tree = NULL;
    if (!skip(&r, '{'))
        return KMS_ERR_AGAIN;
    do {
        if (!string(&r, &name) || !skip(&r, ':'))
            return KMS_ERR_AGAIN;
        if (equals(&name, "destination") && !destination && string(&r, &body->destination))
            destination = true;
        else if (equals(&name, "kmsMessages") && !list && messages(&r, body))
            list = true;
        else
            return KMS_ERR_AGAIN;
    } while (skip(&r, ','));
    if (!skip(&r, '}') || !destination || !list)
        return KMS_ERR_AGAIN;
    while (r.p < r.end && (*r.p == ' ' || *r.p == '\n' || *r.p == '\r' || *r.p == '\t'))
        r.p++;
    return r.p == r.end ? KMS_OK : KMS_ERR_AGAIN;
}

/* A tree, also of JSON whose only fault are escapes that name no character. */
static int
tree(json_t **out, const char *text, size_t len)
{
    struct buf copy = BUF_INIT;
    int r = kms_json_parse_strange(out, text, len);

    if (r == KMS_ERR_SYNTAX && (r = buf_put(&copy, text, len)) == KMS_OK) {
        r = KMS_ERR_SYNTAX;
        if (kms_json_mend((char *)copy.data, copy.len))
            r = kms_json_parse_strange(out, buf_str(&copy), copy.len);
    }
    buf_release(&copy);
    return r;
}

int
kms_body_parse_tree(struct kms_body *body, const char *text, size_t len)
{
    const json_t *destination, *list, *m;
    size_t i;
    int r;

    body->n = 0;
    body->tree = NULL;
    if ((r = tree(&body->tree, text, len)) != KMS_OK)
        return r == KMS_ERR_MEMBER ? KMS_ERR_SYNTAX : r; /* an array: not one object */
    destination = json_object_get(body->tree, "destination");
    list = json_object_get(body->tree, "kmsMessages");
    r = json_is_string(destination) && json_is_array(list) ? KMS_OK : KMS_ERR_MEMBER;
    json_array_foreach(list, i, m)
    {
        if (!json_is_string(m))
            r = KMS_ERR_MEMBER;
        else if (i < KMS_MESSAGES_MAX) {
            body->messages[i].p = json_string_value(m);
            body->messages[i].len = json_string_length(m);
        }
    }
    if (r != KMS_OK) {
        kms_body_release(body);
        return r;
    }
    body->n = json_array_size(list);
    body->destination.p = json_string_value(destination);
    body->destination.len = json_string_length(destination);
    return KMS_OK;
}

int
kms_body_parse(struct kms_body *body, const char *text, size_t len)
{
    int r = kms_body_parse_direct(body, text, len);

    return r == KMS_ERR_AGAIN ? kms_body_parse_tree(body, text, len) : r;
}

void
kms_body_release(struct kms_body *body)
{
    json_decref(body->tree);
    body->tree = NULL;
    body->n = 0;
}
