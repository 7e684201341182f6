/*
 * http.h - a strict HTTP/1.1 request parser (RFC 9110, 9112) without I/O, and answer heads.
 *
 * What is not the grammar of RFC 9112 is refused: bare LF or CR, line folding, white space before a
 * colon, names that are no tokens, NUL and other controls, a second Host, Content-Length,
 * Content-Type or Transfer-Encoding, Content-Length beside Transfer-Encoding, no Host on 1.1, any
 * version but 1.0 and 1.1, an absolute target of another authority than Host's, a target with a
 * fragment, an escape that is none, or %00.  Transfer-Encoding of any kind is refused, as no client
 * of ours sends it: chunked with 411, other codings before chunked with 501, a last coding other
 * than chunked (or any on 1.0) with 400.
 *
 * One empty line before the request line is skipped (RFC 9112 section 2.2).  Feed it what has
 * arrived so far, from the first byte of the request; it keeps no copy.  Expect: 100-continue is
 * reported.  How the bytes were split makes no difference.
 */
#ifndef PROTO_HTTP_H
#define PROTO_HTTP_H

#include <stdbool.h>
#include <stddef.h>

struct buf;

#define HTTP_HEAD_MAX   16384 /* request line and fields */
#define HTTP_LINE_MAX   4096  /* request line */
#define HTTP_FIELDS_MAX 64

struct http_slice {
    const char *p; /* borrowed from what was fed; not NUL-terminated */
    size_t len;
};

struct http_request {
    struct http_slice method;
    struct http_slice
        path; /* origin form, escapes as they are, without the query; "*" only with OPTIONS */
    struct http_slice query; /* without '?' */
    struct http_slice host;
    struct http_slice content_type; /* len 0: absent */
    int minor;                      /* of HTTP/1.x */
    size_t head_len;                /* bytes up to and with the empty line */
    size_t content_length;
    bool has_length;
    bool keep_alive; /* as version and Connection say */
    bool expect_continue;
};

/*
 * KMS_OK: *req is whole (its body, content_length bytes, follows head_len).  KMS_ERR_AGAIN: more is
 * needed.  KMS_ERR_SYNTAX: not a request that we take, answer *status (400, 411, 413, 414, 417,
 * 431, 501, 505) and close.  body_max: a larger Content-Length is 413.  *seen is where to go on: 0
 * at the start of each request, spares scanning the same bytes again.
 */
int http_parse(struct http_request *req, const char *data, size_t len, size_t body_max,
               size_t *seen, int *status);

/* True when the slice equals the text (method and path are compared exactly). */
bool http_is(struct http_slice s, const char *text);

/* "OK", "Bad Request", ...; "" for a status that we never send. */
const char *http_reason(int status);

/*
 * Appends a whole head, with its empty line, for a body of body_len bytes: Content-Type (NULL:
 * none), Content-Length (but for 1xx and 204), Cache-Control: no-store, X-Content-Type-Options,
 * Connection: close unless keep_alive, Retry-After when retry_after > 0.  Date is left out. KMS_OK,
 * or KMS_ERR_NOMEM and out is as it was.
 */
int http_put_head(struct buf *out, int status, const char *content_type, size_t body_len,
                  bool keep_alive, int retry_after);

#endif
