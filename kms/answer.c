/* answer.c - the text of answers. */
#include "kms/answer.h"

#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/msg.h"

static void
put(struct answer *a, const char *s, size_t len)
{
    if (a->err == KMS_OK)
        a->err = buf_put(a->out, s, len);
}

static void
puts_(struct answer *a, const char *s)
{
    put(a, s, strlen(s));
}

/* A JSON string (RFC 8259 section 7); what comes in is UTF-8 already. */
static void
put_string(struct answer *a, const char *s)
{
    static const char hex[] = "0123456789abcdef";
    const char *from = s;
    char esc[6] = {'\\', 'u', '0', '0', 0, 0};

    put(a, "\"", 1);
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;

        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        put(a, from, (size_t)(s - from));
        from = s + 1;
        if (c == '"' || c == '\\') {
            esc[1] = (char)c;
            put(a, esc, 2);
            esc[1] = 'u';
        } else {
            esc[4] = hex[c >> 4];
            esc[5] = hex[c & 15];
            put(a, esc, 6);
        }
    }
    put(a, from, (size_t)(s - from));
    put(a, "\"", 1);
}

/* The comma and the name before a value. */
static void
put_name(struct answer *a, const char *name)
{
    if (a->comma)
        put(a, ",", 1);
    a->comma = true;
    if (name != NULL) {
        put(a, "\"", 1);
        puts_(a, name);
        put(a, "\":", 2);
    }
}

void
answer_open(struct answer *a, const char *name, char bracket)
{
    put_name(a, name);
    put(a, &bracket, 1);
    a->comma = false;
}

void
answer_close(struct answer *a, char bracket)
{
    put(a, &bracket, 1);
    a->comma = true;
}

void
answer_text(struct answer *a, const char *name, const char *value)
{
    put_name(a, name);
    put_string(a, value);
}

void
answer_int(struct answer *a, const char *name, int64_t value)
{
    put_name(a, name);
    if (a->err == KMS_OK)
        a->err = buf_putf(a->out, "%lld", (long long)value);
}

void
answer_date(struct answer *a, const char *name, int64_t ms)
{
    char date[KMS_DATE_LEN + 1];

    kms_date_format(date, ms);
    answer_text(a, name, date);
}

static void
put_uri(struct answer *a, const char *domain, const char *collection, const struct uuid *id)
{
    put(a, "\"", 1);
    if (a->err == KMS_OK)
        a->err = kms_uri_put(a->out, domain, collection, id);
    put(a, "\"", 1);
}

void
answer_uri(struct answer *a, const char *name, const char *domain, const char *collection,
           const struct uuid *id)
{
    put_name(a, name);
    put_uri(a, domain, collection, id);
}

void
answer_id_uri(struct answer *a, const char *name, const char *domain, const char *collection,
              const json_t *id)
{
    const char *text = json_string_value(id);
    struct uuid u;

    if (text != NULL && uuid_parse(&u, text, strlen(text)) == KMS_OK)
        answer_uri(a, name, domain, collection, &u);
    else if (a->err == KMS_OK)
        a->err = KMS_ERR_PROTOCOL;
}

void
answer_bytes(struct answer *a, const char *name, const unsigned char *bytes, size_t len)
{
    put_name(a, name);
    put(a, "\"", 1);
    if (a->err == KMS_OK)
        a->err = b64url_put(a->out, bytes, len);
    put(a, "\"", 1);
}

void
answer_jwk(struct answer *a, const char *name, const char *domain, const struct uuid *id,
           const unsigned char key[32])
{
    answer_open(a, name, '{');
    answer_uri(a, "kid", domain, "keys", id);
    answer_text(a, "kty", "oct");
    answer_bytes(a, "k", key, 32);
    answer_close(a, '}');
}

void
answer_id(struct answer *a, const char *name, const struct uuid *id)
{
    char text[UUID_TEXT + 1];

    uuid_format(text, id);
    answer_text(a, name, text);
}

void
answer_raw_text(struct answer *a, const char *name, const struct buf *text)
{
    put_name(a, name);
    put(a, "\"", 1);
    put(a, (const char *)text->data, text->len);
    put(a, "\"", 1);
}

void
answer_raw(struct answer *a, const char *name, const char *json, size_t len)
{
    put_name(a, name);
    put(a, json, len);
}

void
answer_begin(struct answer *a, struct buf *out, int status, const json_t *request_id)
{
    a->out = out;
    a->comma = false;
    a->err = buf_reserve(out, 512);
    answer_open(a, NULL, '{');
    answer_int(a, "status", status);
    if (json_is_string(request_id))
        answer_text(a, "requestId", json_string_value(request_id));
    else if (json_is_integer(request_id))
        answer_int(a, "requestId", json_integer_value(request_id));
}

int
answer_end(struct answer *a)
{
    answer_close(a, '}');
    return a->err;
}

int
answer_error(struct buf *out, int code, const json_t *request_id, const char *why)
{
    struct answer a;

    answer_begin(&a, out, code / 1000, request_id);
    answer_text(&a, "reason", why != NULL ? why : kms_code_reason(code));
    answer_int(&a, "errorCode", code);
    return answer_end(&a);
}
