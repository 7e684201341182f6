/*
 * fuzz_http.c - whatever arrives, and however it was split on its way, http_parse comes to the same
 * result.
 *
 * The first two bytes of an input say where it is split.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/http.h"

#define BODY_MAX 100000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

/* Parses the first n bytes from memory of exactly that size, so that one read too many is seen. */
static int
feed(struct http_request *req, const char *text, size_t n, size_t *seen, int *status, char **kept)
{
    *kept = malloc(n == 0 ? 1 : n);
    CHECK(*kept != NULL);
    memcpy(*kept, text, n);
    return http_parse(req, *kept, n, BODY_MAX, seen, status);
}

/* A slice lies in the head. */
static void
check_slice(struct http_slice s, const char *head, size_t head_len)
{
    CHECK(s.len == 0 || (s.p >= head && s.p + s.len <= head + head_len) ||
          (s.len == 1 && *s.p == '/'));
}

static void
check_same(struct http_slice a, struct http_slice b)
{
    CHECK(a.len == b.len && (a.len == 0 || memcmp(a.p, b.p, a.len) == 0));
}

static void
check_request(const struct http_request *req, const char *head, size_t len)
{
    CHECK(req->head_len > 0 && req->head_len <= len && req->head_len <= HTTP_HEAD_MAX);
    CHECK(req->content_length <= BODY_MAX);
    CHECK(req->has_length || req->content_length == 0);
    CHECK(req->method.len > 0 && req->path.len > 0);
    CHECK(req->minor == 0 || req->host.len > 0);
    CHECK(memcmp(head + req->head_len - 4, "\r\n\r\n", 4) == 0);
    check_slice(req->method, head, req->head_len);
    check_slice(req->path, head, req->head_len);
    check_slice(req->query, head, req->head_len);
    check_slice(req->host, head, req->head_len);
    check_slice(req->content_type, head, req->head_len);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct http_request one, two;
    int r1, r2, status1, status2;
    char *kept1, *kept2;
    const char *text;
    size_t split, seen1 = 0, seen2 = 0;

    if (size < 2)
        return 0;
    split = (size_t)data[0] << 8 | data[1];
    text = (const char *)data + 2;
    size -= 2;
    if (split > size)
        split = size == 0 ? 0 : split % size;

    r1 = feed(&one, text, size, &seen1, &status1, &kept1);
    r2 = feed(&two, text, split, &seen2, &status2, &kept2);
    if (r2 == KMS_ERR_AGAIN) {
        free(kept2);
        r2 = feed(&two, text, size, &seen2, &status2, &kept2);
    }
    CHECK(r1 == r2 && status1 == status2);
    CHECK(r1 == KMS_OK || r1 == KMS_ERR_AGAIN || r1 == KMS_ERR_SYNTAX);
    CHECK((r1 == KMS_ERR_SYNTAX) == (status1 != 0));
    CHECK(status1 == 0 || *http_reason(status1) != '\0');
    if (r1 == KMS_OK) {
        check_request(&one, kept1, size);
        CHECK(one.head_len == two.head_len && one.content_length == two.content_length);
        CHECK(one.keep_alive == two.keep_alive && one.minor == two.minor);
        CHECK(one.expect_continue == two.expect_continue);
        check_same(one.method, two.method);
        check_same(one.path, two.path);
        check_same(one.query, two.query);
        check_same(one.host, two.host);
        check_same(one.content_type, two.content_type);
    }
    free(kept1);
    free(kept2);
    return 0;
}
