/*
 * test_http.c - what is an HTTP/1.1 request, and what is refused with which status.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/http.h"

#define BODY_MAX 1000

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))

/*
 * Parses text as a whole, and then byte by byte, each time from memory of exactly that size (so
 * that ASan sees a byte read too many): the result must be the same, and everything shorter must be
 * KMS_ERR_AGAIN until a refusal.
 */
static int
parse(struct http_request *req, const char *text, size_t len, int *status)
{
    int r, r2 = KMS_ERR_AGAIN, status2;
    struct http_request req2;
    size_t seen = 0, n;

    for (n = 0; n <= len && r2 == KMS_ERR_AGAIN; n++) {
        char *part = malloc(n == 0 ? 1 : n);

        memcpy(part, text, n);
        r2 = http_parse(&req2, part, n, BODY_MAX, &seen, &status2);
        free(part);
    }
    seen = 0;
    r = http_parse(req, text, len, BODY_MAX, &seen, status);
    cr_assert_eq(r, r2, "whole %d, byte by byte %d: %s", r, r2, text);
    cr_assert_eq(*status, status2, "whole %d, byte by byte %d: %s", *status, status2, text);
    if (r == KMS_OK) {
        cr_assert_eq(req->head_len, n - 1, "needed more than the head: %s", text);
        cr_assert_eq(req->content_length, req2.content_length);
        cr_assert_eq(req->keep_alive, req2.keep_alive);
    }
    return r;
}

struct row {
    char name[48];
    char text[200];
    size_t len;
    int status; /* 0: KMS_OK; -1: KMS_ERR_AGAIN */
    int length; /* of the body */
};

#define ROW(name, text, status, length)                                                            \
    {                                                                                              \
        name, text, sizeof(text) - 1, status, length                                               \
    }
#define POST "POST /x HTTP/1.1\r\nHost: h\r\n"
#define END  "\r\n\r\n"

/* The rows of the table that was measured on evhttp (its header part; chunked bodies are refused by
 * their header). */
ParameterizedTestParameters(http, frames_as_rfc_9112_says)
{
    static struct row rows[] = {
        ROW("length and coding", POST "Content-Length: 5\r\nTransfer-Encoding: chunked" END, 400,
            0),
        ROW("coding and length", POST "Transfer-Encoding: chunked\r\nContent-Length: 5" END, 400,
            0),
        ROW("two lengths that differ", POST "Content-Length: 1\r\nContent-Length: 5" END, 400, 0),
        ROW("length 0 and another", POST "Content-Length: 0\r\nContent-Length: 5" END "GET /", 400,
            0),
        ROW("space before the colon", POST "Content-Length : 5" END "GET /", 400, 0),
        ROW("tab before the colon", POST "Content-Length\t: 5" END, 400, 0),
        ROW("the same length twice", POST "Content-Length: 1\r\nContent-Length: 1" END, 400, 0),
        ROW("gzip, chunked", POST "Transfer-Encoding: gzip, chunked" END, 501, 0),
        ROW("identity", POST "Transfer-Encoding: identity" END, 400, 0),
        ROW("xchunked", POST "Transfer-Encoding: xchunked" END, 400, 0),
        ROW("chunked, gzip", POST "Transfer-Encoding: chunked, gzip" END, 400, 0),
        ROW("no coding", POST "Transfer-Encoding:" END, 400, 0),
        ROW("commas", POST "Transfer-Encoding: , ," END, 400, 0),
        ROW("chunked", POST "Transfer-Encoding: chunked" END "0x5", 411, 0),
        ROW("Chunked", POST "transfer-encoding: Chunked" END "+5", 411, 0),
        ROW("two codings", POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked" END, 400,
            0),
        ROW("length +5", POST "Content-Length: +5" END, 400, 0),
        ROW("length 0x5", POST "Content-Length: 0x5" END, 400, 0),
        ROW("length -1", POST "Content-Length: -1" END, 400, 0),
        ROW("length 5, 5", POST "Content-Length: 5, 5" END, 400, 0),
        ROW("length empty", POST "Content-Length:" END, 400, 0),
        ROW("length of spaces", POST "Content-Length:  " END, 400, 0),
        ROW("length 5z", POST "Content-Length: 5z" END, 400, 0),
        ROW("length 5 5", POST "Content-Length: 5 5" END, 400, 0),
        ROW("length of 19 nines", POST "Content-Length: 9999999999999999999" END, 413, 0),
        ROW("length of 20 digits", POST "Content-Length: 18446744073709551617" END, 400, 0),
        ROW("length of 20 zeroes", POST "Content-Length: 00000000000000000005" END, 400, 0),
        ROW("length over the limit", POST "Content-Length: 1001" END, 413, 0),
        ROW("length at the limit", POST "Content-Length: 1000" END, 0, 1000),
        ROW("length", POST "Content-Length: 5" END "12345", 0, 5),
        ROW("length without a space", POST "content-length:5" END, 0, 5),
        ROW("length with white space", POST "Content-Length: \t 5 \t" END, 0, 5),
        ROW("folded line", POST "X: a\r\n b" END, 400, 0),
        ROW("folded length", POST "Content-Length:\r\n 5" END, 400, 0),
        ROW("folded by a tab", POST "X: a\r\n\tb" END, 400, 0),
        ROW("white space first", "GET / HTTP/1.1\r\n Host: h" END, 400, 0),
        ROW("bare LF line ends", "GET / HTTP/1.1\nHost: h\n\n", 400, 0),
        ROW("one bare LF", POST "X: a\nY: b" END, 400, 0),
        ROW("bare CR in a value", POST "X: a\rb" END, 400, 0),
        ROW("CR CR LF", POST "X: a\r\r\n\r\n", 400, 0),
        ROW("NUL in a value", POST "X: a\0b" END, 400, 0),
        ROW("NUL in the URI", "GET /\0 HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("%00 in the URI", "GET /%00 HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("DEL in a value", POST "X: a\x7f" END, 400, 0),
        ROW("ESC in a value", POST "X: a\x1b[" END, 400, 0),
        ROW("tab and UTF-8 in a value", POST "X: a\tb\xc3\xa4" END, 0, 0),
        ROW("no Host", "GET / HTTP/1.1\r\nX: y" END, 400, 0),
        ROW("no fields", "GET / HTTP/1.1" END, 400, 0),
        ROW("two Hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h" END, 400, 0),
        ROW("empty Host", "GET / HTTP/1.1\r\nHost:" END, 400, 0),
        ROW("Host with a user", "GET / HTTP/1.1\r\nHost: a@h" END, 400, 0),
        ROW("Host with a path", "GET / HTTP/1.1\r\nHost: h/x" END, 400, 0),
        ROW("Host with a bad port", "GET / HTTP/1.1\r\nHost: h:8a" END, 400, 0),
        ROW("Host with two ports", "GET / HTTP/1.1\r\nHost: h:1:2" END, 400, 0),
        ROW("Host with a comma and a space", "GET / HTTP/1.1\r\nHost: h, i" END, 400, 0),
        ROW("Host with a port", "GET / HTTP/1.1\r\nHost: h.example.org:8443" END, 0, 0),
        ROW("Host of IPv6", "GET / HTTP/1.1\r\nHost: [::1]:8443" END, 0, 0),
        ROW("Host of broken IPv6", "GET / HTTP/1.1\r\nHost: [::1" END, 400, 0),
        ROW("absolute URI of another host", "GET http://i/ HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("absolute URI of another port", "GET https://h:1/ HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("absolute URI of this host", "GET https://H/x?y HTTP/1.1\r\nHost: h" END, 0, 0),
        ROW("absolute URI without a path", "GET https://h HTTP/1.1\r\nHost: h" END, 0, 0),
        ROW("absolute URI without a host", "GET https:/// HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("absolute URI of ftp", "GET ftp://h/ HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("HTTP/1.2", "GET / HTTP/1.2\r\nHost: h" END, 505, 0),
        ROW("HTTP/2.0", "GET / HTTP/2.0\r\nHost: h" END, 505, 0),
        ROW("HTTP/2 preface", "PRI * HTTP/2.0" END "SM" END, 505, 0),
        ROW("HTTP/0.9", "GET / HTTP/0.9" END, 505, 0),
        ROW("no version", "GET /" END, 400, 0),
        ROW("http/1.1", "GET / http/1.1\r\nHost: h" END, 400, 0),
        ROW("HTTP/1.10", "GET / HTTP/1.10\r\nHost: h" END, 400, 0),
        ROW("HTTP/1.", "GET / HTTP/1.\r\nHost: h" END, 400, 0),
        ROW("HTTP/1.0", "GET / HTTP/1.0" END, 0, 0),
        ROW("HTTP/1.0 and a length", "POST / HTTP/1.0\r\nContent-Length: 5" END, 0, 5),
        ROW("coding on HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked" END, 400, 0),
        ROW("name X()", POST "X(): y" END, 400, 0),
        ROW("empty name", POST ": y" END, 400, 0),
        ROW("no colon", POST "X" END, 400, 0),
        ROW("name with UTF-8", POST "X\xc3\xa4: y" END, 400, 0),
        ROW("two types", POST "Content-Type: a/b\r\nContent-Type: a/b" END, 400, 0),
        ROW("empty value", POST "X:" END, 0, 0),
        ROW("Connection that is no list", POST "Connection: a b" END, 400, 0),
        ROW("another expectation", POST "Expect: coffee" END, 417, 0),
        ROW("another expectation on 1.0", "GET / HTTP/1.0\r\nExpect: coffee" END, 0, 0),
        ROW("fragment", "GET /#x HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("fragment after a query", "GET /?a#x HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("two spaces", "GET  / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("space in the URI", "GET /a b HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("space at the end of the line", "GET / HTTP/1.1 \r\nHost: h" END, 400, 0),
        ROW("space first", " GET / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("tabs", "GET\t/\tHTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("method that is no token", "G@T / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("unusual method", "M-SEARCH / HTTP/1.1\r\nHost: h" END, 0, 0),
        ROW("no method", " / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("no target", "GET HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("CONNECT", "CONNECT h:443 HTTP/1.1\r\nHost: h:443" END, 400, 0),
        ROW("asterisk", "OPTIONS * HTTP/1.1\r\nHost: h" END, 0, 0),
        ROW("asterisk of GET", "GET * HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("relative target", "GET x HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("escape", "GET /a%2Fb?%c3%a4 HTTP/1.1\r\nHost: h" END, 0, 0),
        ROW("half an escape", "GET /a%2 HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("no escape", "GET /a%2g HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("no escape in a query", "GET /?% HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("%00 in a query", "GET /?%00 HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("UTF-8 in the target", "GET /\xc3\xa4 HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("a quote in the target", "GET /\" HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("a backslash in the target", "GET /\\ HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("an empty line first", "\r\nGET / HTTP/1.1\r\nHost: h" END, 0, 0),
        ROW("two empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("an LF first", "\nGET / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("a CR first", "\rGET / HTTP/1.1\r\nHost: h" END, 400, 0),
        ROW("nothing", "", -1, 0),
        ROW("an empty line", "\r\n", -1, 0),
        ROW("no empty line at the end", POST, -1, 0),
        ROW("half an empty line", POST "\r", -1, 0),
        ROW("a TLS greeting", "\x16\x03\x01\x02", 400, 0),
        ROW("HTTP answer", "HTTP/1.1 200 OK\r\nHost: h" END, 400, 0),
    };

    return PARAMS(rows);
}

ParameterizedTest(struct row *row, http, frames_as_rfc_9112_says)
{
    struct http_request req;
    int r, status;

    r = parse(&req, row->text, row->len, &status);
    cr_assert_eq(r,
                 row->status == 0    ? KMS_OK
                 : row->status == -1 ? KMS_ERR_AGAIN
                                     : KMS_ERR_SYNTAX,
                 "%s: %d", row->name, r);
    cr_assert_eq(status, row->status > 0 ? row->status : 0, "%s: %d", row->name, status);
    if (r == KMS_OK) {
        cr_assert_eq(req.content_length, row->length, "%s", row->name);
        cr_assert_eq(req.has_length, strcasestr(row->text, "content-length") != NULL, "%s",
                     row->name);
    }
}

struct alive {
    char text[120];
    bool keep_alive;
};

ParameterizedTestParameters(http, keeps_the_connection_as_both_ends_wish)
{
    static struct alive rows[] = {
        {"GET / HTTP/1.1\r\nHost: h" END, true},
        {"GET / HTTP/1.1\r\nHost: h\r\nConnection: close" END, false},
        {"GET / HTTP/1.1\r\nHost: h\r\nConnection: CLOSE" END, false},
        {"GET / HTTP/1.1\r\nHost: h\r\nconnection:TE , ,Close" END, false},
        {"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close" END, false},
        {"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nConnection: keep-alive" END, false},
        {"GET / HTTP/1.1\r\nHost: h\r\nConnection: closed" END, true},
        {"GET / HTTP/1.0" END, false},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive" END, true},
        {"GET / HTTP/1.0\r\nConnection: keep-alive, close" END, false},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct alive *row, http, keeps_the_connection_as_both_ends_wish)
{
    struct http_request req;
    int status;

    cr_assert_eq(parse(&req, row->text, strlen(row->text), &status), KMS_OK, "%s", row->text);
    cr_assert_eq(req.keep_alive, row->keep_alive, "%s", row->text);
}

Test(http, names_the_parts_of_a_request)
{
    static const char text[] = "POST /encryption/api/v1/kms/a%40b?x=/?y HTTP/1.1\r\n"
                               "HOST: kms.example.org:8443\r\n"
                               "content-type:\tapplication/json; charset=utf-8 \r\n"
                               "Expect: 100-Continue\r\n"
                               "Content-Length: 2\r\n\r\n{}GET";
    struct http_request req;
    int status;

    cr_assert_eq(parse(&req, text, sizeof(text) - 1, &status), KMS_OK);
    cr_assert(http_is(req.method, "POST"));
    cr_assert(!http_is(req.method, "post"));
    cr_assert(http_is(req.path, "/encryption/api/v1/kms/a%40b"));
    cr_assert(http_is(req.query, "x=/?y"));
    cr_assert(http_is(req.host, "kms.example.org:8443"));
    cr_assert(http_is(req.content_type, "application/json; charset=utf-8"));
    cr_assert(req.expect_continue);
    cr_assert_eq(req.minor, 1);
    cr_assert_eq(req.head_len, sizeof(text) - 1 - 5);
}

Test(http, an_absolute_target_gives_host_and_path)
{
    static const char text[] = "GET HTTPS://kms.example.org?q HTTP/1.0\r\n\r\n";
    struct http_request req;
    int status;

    cr_assert_eq(parse(&req, text, sizeof(text) - 1, &status), KMS_OK);
    cr_assert(http_is(req.host, "kms.example.org"));
    cr_assert(http_is(req.path, "/"));
    cr_assert(http_is(req.query, "q"));
}

/* A request whose line has n bytes. */
static void
put_line(struct buf *text, size_t n)
{
    size_t i;

    buf_puts(text, "GET /");
    for (i = strlen("GET / HTTP/1.1"); i < n; i++)
        buf_putc(text, 'a');
    buf_puts(text, " HTTP/1.1\r\nHost: h\r\n");
}

struct limit {
    char name[32];
    size_t line;   /* bytes of the request line */
    size_t fields; /* besides Host */
    size_t head;   /* bytes of the whole head; 0: as it comes */
    int status;
};

ParameterizedTestParameters(http, has_limits)
{
    static struct limit rows[] = {
        {"longest line", HTTP_LINE_MAX, 0, 0, 0},
        {"line too long", HTTP_LINE_MAX + 1, 0, 0, 414},
        {"line far too long", HTTP_HEAD_MAX, 0, 0, 414},
        {"most fields", 20, HTTP_FIELDS_MAX - 1, 0, 0},
        {"too many fields", 20, HTTP_FIELDS_MAX, 0, 431},
        {"largest head", 20, 3, HTTP_HEAD_MAX, 0},
        {"head too large", 20, 3, HTTP_HEAD_MAX + 1, 431},
        {"head far too large", 20, 3, 2 * HTTP_HEAD_MAX, 431},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct limit *row, http, has_limits)
{
    struct buf text = BUF_INIT;
    struct http_request req;
    int status;
    size_t i;

    put_line(&text, row->line);
    for (i = 0; i < row->fields; i++)
        buf_puts(&text, "X: y\r\n");
    if (row->head != 0) {
        text.len -= 2; /* goes on in the last field */
        while (text.len < row->head - 4)
            buf_putc(&text, 'z');
        buf_puts(&text, "\r\n");
    }
    buf_puts(&text, "\r\n");
    parse(&req, buf_str(&text), text.len, &status);
    cr_assert_eq(status, row->status, "%s: %d", row->name, status);
    buf_release(&text);
}

Test(http, an_endless_head_is_refused_before_its_end)
{
    struct http_request req;
    char text[HTTP_HEAD_MAX + 1];
    int status;

    memset(text, 'a', sizeof(text));
    cr_assert_eq(parse(&req, text, sizeof(text), &status), KMS_ERR_SYNTAX);
    cr_assert_eq(status, 414);
    memcpy(text, "GET / HTTP/1.1\r\nX:", 18);
    cr_assert_eq(parse(&req, text, sizeof(text), &status), KMS_ERR_SYNTAX);
    cr_assert_eq(status, 431);
}

Test(http, an_answer_head_says_what_is_needed)
{
    struct buf out = BUF_INIT;

    cr_assert_eq(http_put_head(&out, 200, "application/json", 12, true, 0), KMS_OK);
    cr_assert_str_eq(buf_str(&out), "HTTP/1.1 200 OK\r\n"
                                    "Content-Type: application/json\r\n"
                                    "Content-Length: 12\r\n"
                                    "Cache-Control: no-store\r\n"
                                    "X-Content-Type-Options: nosniff\r\n"
                                    "\r\n");
    buf_reset(&out);
    cr_assert_eq(http_put_head(&out, 503, NULL, 0, false, 7), KMS_OK);
    cr_assert_str_eq(buf_str(&out), "HTTP/1.1 503 Service Unavailable\r\n"
                                    "Content-Length: 0\r\n"
                                    "Cache-Control: no-store\r\n"
                                    "X-Content-Type-Options: nosniff\r\n"
                                    "Connection: close\r\n"
                                    "Retry-After: 7\r\n"
                                    "\r\n");
    buf_reset(&out);
    cr_assert_eq(http_put_head(&out, 204, NULL, 0, true, 0), KMS_OK);
    cr_assert_null(strstr(buf_str(&out), "Content-Length"));
    buf_release(&out);
    cr_assert_str_empty(http_reason(299));
}
