/*
 * http.c - the strict HTTP/1.1 request parser, and answer heads.
 *
 * First scan_head finds the end of the head, refusing the first byte that no head can have; then
 * read_head takes the whole head apart.  Since the scan goes by position and the rest sees only
 * whole heads, it makes no difference how the bytes were split on their way.
 */
#include "proto/http.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "proto/buf.h"
#include "proto/err.h"

#define LENGTH_DIGITS_MAX 19 /* fits 64 bits whatever the digits are */

/* What came with the request that is not in struct http_request. */
struct head {
    struct http_request *req;
    bool absolute;               /* the target has an authority of its own */
    struct http_slice authority; /* then this one */
    unsigned hosts;
    unsigned lengths;
    unsigned codings;
    unsigned types;
    struct http_slice length;
    struct http_slice coding;
    bool close;
    bool keep;
    bool other_expectation;
    bool expect_continue;
};

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool
is_alpha(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool
is_hex(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool
is_one_of(char c, const char *set)
{
    return c != '\0' && strchr(set, c) != NULL;
}

/* RFC 9110 section 5.6.2 */
static bool
is_tchar(char c)
{
    return is_alpha(c) || is_digit(c) || is_one_of(c, "!#$%&'*+-.^_`|~");
}

static bool
is_token(struct http_slice s)
{
    size_t i;

    for (i = 0; i < s.len; i++)
        if (!is_tchar(s.p[i]))
            return false;
    return s.len > 0;
}

/* RFC 3986: unreserved and sub-delims */
static bool
is_reg_name(char c)
{
    return is_alpha(c) || is_digit(c) || is_one_of(c, "-._~!$&'()*+,;=");
}

static struct http_slice
slice(const char *p, size_t len)
{
    struct http_slice s = {p, len};

    return s;
}

bool
http_is(struct http_slice s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.p, text, s.len) == 0;
}

/* Without regard to case: field names, and the words of some values. */
static bool
is_word(struct http_slice s, const char *text)
{
    return s.len == strlen(text) && strncasecmp(s.p, text, s.len) == 0;
}

static struct http_slice
trim(struct http_slice s)
{
    while (s.len > 0 && is_one_of(s.p[0], " \t")) {
        s.p++;
        s.len--;
    }
    while (s.len > 0 && is_one_of(s.p[s.len - 1], " \t"))
        s.len--;
    return s;
}

/* Takes what is before the first comma off *rest; false when nothing is left.  Elements may be
 * empty. */
static bool
next_element(struct http_slice *rest, struct http_slice *element)
{
    const char *comma;

    if (rest->p == NULL)
        return false;
    comma = rest->len == 0 ? NULL : memchr(rest->p, ',', rest->len);
    if (comma == NULL) {
        *element = trim(*rest);
        *rest = slice(NULL, 0);
    } else {
        size_t len = (size_t)(comma - rest->p);

        *element = trim(slice(rest->p, len));
        *rest = slice(comma + 1, rest->len - len - 1);
    }
    return true;
}

/*
 * Finds the end of the head.  0: *head_len is set; -1: not yet there; else the status to refuse it
 * with.  Lines end in CRLF, there is no other CR or LF, and no control but the tab.
 */
static int
scan_head(const char *data, size_t len, size_t *seen, size_t *head_len)
{
    /* The empty line that may come first; whether it did is known from the third byte on. */
    const size_t start = len >= 2 && data[0] == '\r' && data[1] == '\n' ? 2 : 0;
    size_t line_max = start + HTTP_LINE_MAX;
    bool in_request_line;
    size_t i = *seen;

    in_request_line =
        i <= start || (i <= line_max && memchr(data + start, '\n', i - start) == NULL);
    for (; i < len; i++) {
        char c = data[i];
        bool after_cr = i > 0 && data[i - 1] == '\r';

        if (i >= HTTP_HEAD_MAX)
            return 431;
        if (c == '\n') {
            if (!after_cr)
                return 400;
            if (i == 1)
                continue; /* the empty line that may come first */
            if (data[i - 2] == '\n') {
                if (in_request_line)
                    return 400; /* a second one */
                *head_len = i + 1;
                return 0;
            }
            in_request_line = false;
        } else if (after_cr || ((unsigned char)c < 0x20 && c != '\t' && c != '\r') || c == 0x7f) {
            return 400;
        } else if (in_request_line && i >= line_max && c != '\r') {
            return 414;
        }
    }
    *seen = len;
    return -1;
}

/* Whether s is made of what ok says, and of percent escapes other than %00. */
static bool
escaped_ok(struct http_slice s, bool (*ok)(char))
{
    size_t i;

    for (i = 0; i < s.len; i++) {
        if (s.p[i] == '%') {
            if (s.len - i < 3 || !is_hex(s.p[i + 1]) || !is_hex(s.p[i + 2]) ||
                (s.p[i + 1] == '0' && s.p[i + 2] == '0'))
                return false;
            i += 2;
        } else if (!ok(s.p[i])) {
            return false;
        }
    }
    return true;
}

static bool
is_path(char c)
{
    return is_reg_name(c) || is_one_of(c, ":@/");
}

static bool
is_query(char c)
{
    return is_path(c) || c == '?';
}

/* uri-host [ ":" port ], where the host is not empty: https has no URI without one. */
static bool
host_ok(struct http_slice s)
{
    size_t i = 0, digits;

    if (s.len > 0 && s.p[0] == '[') {
        for (i = 1; i < s.len && (is_hex(s.p[i]) || is_one_of(s.p[i], ":.")); i++)
            ;
        if (i == s.len || s.p[i] != ']' || i < 3)
            return false;
        i++;
    } else {
        while (i < s.len && s.p[i] != ':')
            i++;
        if (i == 0 || !escaped_ok(slice(s.p, i), is_reg_name))
            return false;
    }
    if (i == s.len)
        return true;
    if (s.p[i++] != ':')
        return false;
    for (digits = 0; i < s.len && is_digit(s.p[i]); i++)
        digits++;
    return i == s.len && digits <= 5;
}

/* Origin form, absolute form, or "*" with OPTIONS (RFC 9112 section 3.2); CONNECT's authority form
 * is none of ours. */
static bool
read_target(struct head *h, struct http_slice target)
{
    static const char *const schemes[] = {"https://", "http://"};
    struct http_request *req = h->req;
    struct http_slice rest = target;
    const char *mark;
    size_t i, n;

    if (http_is(target, "*")) {
        req->path = target;
        return http_is(req->method, "OPTIONS");
    }
    for (i = 0; i < sizeof(schemes) / sizeof(schemes[0]) && !h->absolute; i++) {
        n = strlen(schemes[i]);
        if (target.len > n && strncasecmp(target.p, schemes[i], n) == 0) {
            rest = slice(target.p + n, target.len - n);
            for (n = 0; n < rest.len && !is_one_of(rest.p[n], "/?"); n++)
                ;
            h->absolute = true;
            h->authority = slice(rest.p, n);
            rest = slice(rest.p + n, rest.len - n);
        }
    }
    mark = rest.len == 0 ? NULL : memchr(rest.p, '?', rest.len);
    n = mark == NULL ? rest.len : (size_t)(mark - rest.p);
    req->path = slice(rest.p, n);
    if (mark != NULL)
        req->query = slice(mark + 1, rest.len - n - 1);
    if (h->absolute && n == 0)
        req->path = slice("/", 1); /* RFC 9112 section 3.2.2: an empty path is "/" */
    else if (n == 0 || rest.p[0] != '/')
        return false;
    return escaped_ok(req->path, is_path) && escaped_ok(req->query, is_query);
}

static int
read_version(struct http_request *req, struct http_slice version)
{
    if (version.len != 8 || memcmp(version.p, "HTTP/", 5) != 0 || !is_digit(version.p[5]) ||
        version.p[6] != '.' || !is_digit(version.p[7]))
        return 400;
    if (version.p[5] != '1' || version.p[7] > '1')
        return 505;
    req->minor = version.p[7] - '0';
    return 0;
}

/* method SP request-target SP HTTP-version, with single spaces */
static int
read_request_line(struct head *h, struct http_slice line)
{
    const char *end = line.p + line.len, *space, *space2;
    struct http_slice target;
    int status;

    if ((space = memchr(line.p, ' ', line.len)) == NULL)
        return 400;
    h->req->method = slice(line.p, (size_t)(space - line.p));
    space++;
    if ((space2 = memchr(space, ' ', (size_t)(end - space))) == NULL)
        return 400;
    target = slice(space, (size_t)(space2 - space));
    space2++;
    if (!is_token(h->req->method))
        return 400;
    if ((status = read_version(h->req, slice(space2, (size_t)(end - space2)))) != 0)
        return status;
    return read_target(h, target) ? 0 : 400;
}

/* Connection is a list, and may be given in pieces. */
static bool
read_connection(struct head *h, struct http_slice value)
{
    struct http_slice option;

    while (next_element(&value, &option)) {
        if (option.len == 0)
            continue;
        if (!is_token(option))
            return false;
        if (is_word(option, "close"))
            h->close = true;
        else if (is_word(option, "keep-alive"))
            h->keep = true;
    }
    return true;
}

/* One field line, without its CRLF.  False: no field line. */
static bool
read_field(struct head *h, struct http_slice line)
{
    const char *colon = memchr(line.p, ':', line.len);
    struct http_slice name, value;

    if (colon == NULL)
        return false;
    name = slice(line.p, (size_t)(colon - line.p));
    value = trim(slice(colon + 1, line.len - name.len - 1));
    /* A folded line begins with white space and has no token for a name. */
    if (!is_token(name))
        return false;
    if (is_word(name, "Host")) {
        h->hosts++;
        h->req->host = value;
    } else if (is_word(name, "Content-Length")) {
        h->lengths++;
        h->length = value;
    } else if (is_word(name, "Transfer-Encoding")) {
        h->codings++;
        h->coding = value;
    } else if (is_word(name, "Content-Type")) {
        h->types++;
        h->req->content_type = value;
    } else if (is_word(name, "Connection")) {
        return read_connection(h, value);
    } else if (is_word(name, "Expect")) {
        if (is_word(value, "100-continue"))
            h->expect_continue = true;
        else
            h->other_expectation = true;
    }
    return true;
}

static int
read_fields(struct head *h, const char *p, const char *end)
{
    size_t fields = 0;

    /* scan_head saw to it that there is a CRLF at the end, and no CR or LF but in a CRLF */
    while (p < end) {
        const char *eol = memchr(p, '\r', (size_t)(end - p));

        if (++fields > HTTP_FIELDS_MAX)
            return 431;
        if (!read_field(h, slice(p, (size_t)(eol - p))))
            return 400;
        p = eol + 2;
    }
    return 0;
}

/* RFC 9112 section 6: is there a body, and how long is it? */
static int
check_coding(const struct head *h)
{
    struct http_slice rest = h->coding, coding, last = {NULL, 0};
    size_t n = 0;

    if (h->codings > 1 || h->lengths > 0 || h->req->minor == 0)
        return 400;
    while (next_element(&rest, &coding)) {
        if (coding.len == 0)
            continue;
        last = coding;
        n++;
    }
    if (!is_word(last, "chunked"))
        return 400;
    return n > 1 ? 501 : 411;
}

static int
check_length(struct head *h, size_t body_max)
{
    uint64_t length = 0;
    size_t i;

    if (h->lengths > 1 || h->length.len == 0)
        return 400;
    for (i = 0; i < h->length.len; i++)
        if (!is_digit(h->length.p[i]))
            return 400;
    if (h->length.len > LENGTH_DIGITS_MAX)
        return 400;
    for (i = 0; i < h->length.len; i++)
        length = length * 10 + (uint64_t)(h->length.p[i] - '0');
    if (length > body_max)
        return 413;
    h->req->has_length = true;
    h->req->content_length = (size_t)length;
    return 0;
}

static int
check_head(struct head *h, size_t body_max)
{
    struct http_request *req = h->req;
    int status;

    if (h->hosts > 1 || h->types > 1 || (h->hosts == 0 && req->minor > 0))
        return 400;
    if (h->hosts > 0 && !host_ok(req->host))
        return 400;
    if (h->absolute) {
        if (!host_ok(h->authority))
            return 400;
        if (h->hosts > 0 && (h->authority.len != req->host.len ||
                             strncasecmp(h->authority.p, req->host.p, req->host.len) != 0))
            return 400;
        req->host = h->authority;
    }
    if (h->codings > 0)
        return check_coding(h);
    if (h->lengths > 0 && (status = check_length(h, body_max)) != 0)
        return status;
    /* RFC 9110 section 10.1.1: 1.0 knows no expectations */
    if (req->minor > 0) {
        if (h->other_expectation)
            return 417;
        req->expect_continue = h->expect_continue;
    }
    req->keep_alive = !h->close && (req->minor > 0 || h->keep);
    return 0;
}

/* head: up to and with the empty line, which may also stand before it. */
static int
read_head(struct http_request *req, const char *head, size_t len, size_t body_max)
{
    struct head h = {.req = req};
    const char *end = head + len - 2, *eol;
    int status;

    if (head[0] == '\r')
        head += 2;
    eol = memchr(head, '\r', (size_t)(end - head));
    if ((status = read_request_line(&h, slice(head, (size_t)(eol - head)))) != 0 ||
        (status = read_fields(&h, eol + 2, end)) != 0)
        return status;
    req->head_len = len;
    return check_head(&h, body_max);
}

int
http_parse(struct http_request *req, const char *data, size_t len, size_t body_max, size_t *seen,
           int *status)
{
    size_t head_len = 0;

    memset(req, 0, sizeof(*req));
    *status = 0;
    switch (*status = scan_head(data, len, seen, &head_len)) {
    case -1:
        *status = 0;
        return KMS_ERR_AGAIN;
    case 0:
        *status = read_head(req, data, head_len, body_max);
        break;
    default:
        break;
    }
    return *status == 0 ? KMS_OK : KMS_ERR_SYNTAX;
}

static const struct {
    int status;
    const char *reason;
} reasons[] = {
    {100, "Continue"},
    {101, "Switching Protocols"},
    {200, "OK"},
    {204, "No Content"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {411, "Length Required"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {417, "Expectation Failed"},
    {421, "Misdirected Request"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {503, "Service Unavailable"},
    {505, "HTTP Version Not Supported"},
};

const char *
http_reason(int status)
{
    size_t i;

    for (i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "";
}

int
http_put_head(struct buf *out, int status, const char *content_type, size_t body_len,
              bool keep_alive, int retry_after)
{
    char length[48] = "", retry[32] = "";

    if (status >= 200 && status != 204)
        snprintf(length, sizeof(length), "Content-Length: %zu\r\n", body_len);
    if (retry_after > 0)
        snprintf(retry, sizeof(retry), "Retry-After: %d\r\n", retry_after);
    return buf_putf(out,
                    "HTTP/1.1 %d %s\r\n%s%s%s%sCache-Control: no-store\r\n"
                    "X-Content-Type-Options: nosniff\r\n%s%s\r\n",
                    status, http_reason(status), content_type == NULL ? "" : "Content-Type: ",
                    content_type == NULL ? "" : content_type, content_type == NULL ? "" : "\r\n",
                    length, keep_alive ? "" : "Connection: close\r\n", retry);
}
