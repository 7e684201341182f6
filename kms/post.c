/* post.c - the endpoints of the KMS protocol: one HTTP request in, its messages out to req.c, their
 * answers back in order. */
#include "kms/post.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "hsm/log.h"
#include "kms/rate.h"
#include "kms/refusal.h"
#include "kms/service.h"
#include "kms/web.h"
#include "kms/worker.h"
#include "proto/body.h"
#include "proto/err.h"

#define BASE    "/encryption/api/v1/kms/"
#define BUCKETS 1024

/* A POST of messages under way. */
struct post {
    struct post *hash_next;
    uint64_t id;
    uint64_t conn; /* where its answer goes; the client may have left */
    struct peer peer;
    unsigned n, left;
    unsigned unavailable;
    bool unknown;
    struct buf *answers; /* owned: n of them */
};

struct posts {
    uint64_t last;
    struct post *hash[BUCKETS];
};

struct posts *
posts_new(struct worker *w)
{
    return calloc(1, sizeof(struct posts));
}

static void
post_free(struct post *p)
{
    unsigned i;

    for (i = 0; i < p->n; i++)
        buf_release(&p->answers[i]);
    free(p->answers);
    X509_free(p->peer.leaf);
    free(p);
}

void
posts_free(struct posts *ps)
{
    struct post *p;
    unsigned i;

    if (ps == NULL)
        return;
    for (i = 0; i < BUCKETS; i++)
        while ((p = ps->hash[i]) != NULL) {
            ps->hash[i] = p->hash_next;
            post_free(p);
        }
    free(ps);
}

/* An answer of HTTP's own; reason is a constant without characters that JSON escapes. */
static void
http_error(struct worker *w, uint64_t conn, int status, int code, const char *reason,
           int retry_after)
{
    struct buf body = BUF_INIT;

    if (buf_putf(&body, "{\"message\":\"%s\",\"errorCode\":%d}", reason, code) != KMS_OK) {
        web_abort(w->web, conn);
        return;
    }
    web_answer(w->web, conn, status, NULL, &body, retry_after, false);
    buf_release(&body);
}

/*
 * Where the key to a message could not be asked for, a signed 503 stands in its place: what its
 * neighbours did must be told.
 */
static int
fill_in(struct worker *w, struct post *p)
{
    const char *text = refusals_have(w->refusals, REFUSE_BUSY);
    unsigned i;
    int r = text != NULL ? KMS_OK : KMS_ERR_UNAVAILABLE;

    for (i = 0; i < p->n && r == KMS_OK; i++)
        if (p->answers[i].len == 0)
            r = buf_puts(&p->answers[i], text);
    return r;
}

/* The last message is answered. */
static void
post_end(struct worker *w, struct post *p)
{
    struct post **at = &w->posts->hash[p->id % BUCKETS];
    struct buf body = BUF_INIT;
    size_t len = 32;
    unsigned i;
    int r;

    while (*at != p)
        at = &(*at)->hash_next;
    *at = p->hash_next;
    if (p->unknown || (p->unavailable > 0 && p->unavailable < p->n && fill_in(w, p) != KMS_OK)) {
        /* Something may have been changed that cannot be told of: no answer is the only true one.
         */
        web_abort(w->web, p->conn);
    } else if (p->unavailable == p->n) {
        http_error(w, p->conn, 503, 503001, "temporarily unavailable; nothing was changed", 2);
    } else {
        for (i = 0; i < p->n; i++)
            len += p->answers[i].len + 3;
        r = buf_reserve(&body, len);
        if (r == KMS_OK)
            r = buf_puts(&body, "{\"kmsMessages\":[");
        /* Compact JOSE needs no escaping. */
        for (i = 0; i < p->n && r == KMS_OK; i++)
            if ((r = buf_puts(&body, i == 0 ? "\"" : ",\"")) == KMS_OK &&
                (r = buf_put(&body, p->answers[i].data, p->answers[i].len)) == KMS_OK)
                r = buf_putc(&body, '"');
        if (r == KMS_OK && (r = buf_puts(&body, "]}")) == KMS_OK)
            web_answer(w->web, p->conn, 200, NULL, &body, 0, false);
        else
            web_abort(w->web, p->conn);
        buf_release(&body);
    }
    post_free(p);
}

void
post_answer(struct worker *w, uint64_t post, unsigned index, enum req_outcome outcome,
            struct buf *text)
{
    struct post *p = w->posts->hash[post % BUCKETS];

    while (p != NULL && p->id != post)
        p = p->hash_next;
    if (p == NULL)
        return;
    if (outcome == REQ_ANSWERED) {
        p->answers[index] = *text;
        buf_init(text);
    } else if (outcome == REQ_UNKNOWN) {
        p->unknown = true;
    } else {
        p->unavailable++;
    }
    if (--p->left == 0)
        post_end(w, p);
}

static struct post *
post_new(struct worker *w, uint64_t conn, unsigned n, const struct peer *peer)
{
    struct post *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return NULL;
    /* One more than n: post_answer may come before all messages have started. */
    p->n = n;
    p->left = n + 1;
    p->conn = conn;
    p->peer = *peer;
    /* What services_of_chain gave lives in the leaf, and the client may leave. */
    if (p->peer.leaf != NULL)
        X509_up_ref(p->peer.leaf);
    if ((p->answers = calloc(n, sizeof(*p->answers))) == NULL) {
        X509_free(p->peer.leaf);
        free(p);
        return NULL;
    }
    p->id = ++w->posts->last;
    p->hash_next = w->posts->hash[p->id % BUCKETS];
    w->posts->hash[p->id % BUCKETS] = p;
    return p;
}

/* Starts every message; none has an effect before all of them are known to be strings of a right
 * size. */
static void
post_start(struct worker *w, uint64_t conn, const struct kms_body *body, const struct peer *peer)
{
    struct post *p;
    size_t i, len;
    char *text;

    if ((p = post_new(w, conn, (unsigned)body->n, peer)) == NULL) {
        http_error(w, conn, 503, 503001, "out of memory; nothing was changed", 2);
        return;
    }
    for (i = 0; i < body->n; i++) {
        len = body->messages[i].len;
        if ((text = malloc(len + 1)) != NULL) {
            memcpy(text, body->messages[i].p, len);
            text[len] = '\0';
            if (req_new(w, p->id, (unsigned)i, text, len, &p->peer) == KMS_OK)
                continue;
            OPENSSL_clear_free(text, len + 1);
        }
        p->unavailable++;
        p->left--;
    }
    if (--p->left == 0)
        post_end(w, p);
}

static void
post_messages(struct worker *w, uint64_t conn, const char *text, size_t len,
              const struct peer *peer)
{
    struct kms_body body;
    size_t i;

    switch (kms_body_parse(&body, text, len)) {
    case KMS_OK:
        break;
    case KMS_ERR_NOMEM:
        http_error(w, conn, 503, 503001, "out of memory; nothing was changed", 2);
        return;
    case KMS_ERR_LIMIT:
        http_error(w, conn, 413, KMS_CODE_TOO_LARGE, "the body has too many members", 0);
        return;
    case KMS_ERR_MEMBER:
        http_error(w, conn, 400, KMS_CODE_MEMBER,
                   "destination must be a string and kmsMessages an array of strings", 0);
        return;
    default:
        http_error(w, conn, 400, KMS_CODE_MALFORMED,
                   "the body must be one JSON object with destination and kmsMessages", 0);
        return;
    }
    if (body.destination.len != strlen(w->cluster) ||
        strncasecmp(body.destination.p, w->cluster, body.destination.len) != 0) {
        http_error(w, conn, 404, KMS_CODE_NOT_FOUND,
                   "this server is not the destination; GET /kms/{userId} tells its kmsCluster", 0);
        goto out;
    }
    if (body.n > KMS_MESSAGES_MAX) {
        http_error(w, conn, 413, KMS_CODE_TOO_LARGE, "at most 100 messages in one request", 0);
        goto out;
    }
    for (i = 0; i < body.n; i++) {
        if (body.messages[i].len > JWE_MAX) {
            http_error(w, conn, 413, KMS_CODE_TOO_LARGE, "a message may have at most 256 KiB", 0);
            goto out;
        }
    }
    if (body.n == 0) {
        struct buf empty = BUF_INIT;

        if (buf_puts(&empty, "{\"kmsMessages\":[]}") != KMS_OK)
            web_abort(w->web, conn);
        else
            web_answer(w->web, conn, 200, NULL, &empty, 0, false);
        buf_release(&empty);
        goto out;
    }
    if (!rate_take(w->by_source, peer->address, (unsigned)body.n, now_us())) {
        count_add(CT_RATE_LIMITED, body.n);
        http_error(w, conn, 429, KMS_CODE_RATE, "too many messages from this address", 1);
        goto out;
    }
    if (req_count(w) + body.n > (size_t)w->cfg->messages_inflight) {
        http_error(w, conn, 503, KMS_CODE_OVERLOADED, "overloaded; nothing was changed", 1);
        goto out;
    }
    post_start(w, conn, &body, peer);
out:
    kms_body_release(&body);
}

void
post_handle(void *ctx, uint64_t conn, const struct http_request *http, const char *body,
            size_t body_len, const char *peer, STACK_OF(X509) * chain)
{
    struct worker *w = ctx;
    struct http_slice path = http->path, rest;
    const size_t base = strlen(BASE);
    bool get = http_is(http->method, "GET"), post = http_is(http->method, "POST");

    if (path.len <= base || memcmp(path.p, BASE, base) != 0) {
        http_error(w, conn, 404, KMS_CODE_NOT_FOUND, "no such endpoint", 0);
        return;
    }
    rest.p = path.p + base;
    rest.len = path.len - base;
    if (memchr(rest.p, '/', rest.len) != NULL) {
        http_error(w, conn, 404, KMS_CODE_NOT_FOUND, "no such endpoint", 0);
    } else if (http_is(rest, "messages")) {
        if (post) {
            struct peer from = {.leaf = NULL};

            strncpy(from.address, peer, sizeof(from.address) - 1);
            from.cert = services_of_chain(w->services, chain, wall_ms(), &from.why);
            if (from.cert != NULL)
                from.leaf = sk_X509_value(chain, 0);
            post_messages(w, conn, body, body_len, &from);
        } else {
            http_error(w, conn, 405, 405001, "kms/messages takes POST", 0);
        }
    } else if (get) {
        struct buf text = BUF_INIT;

        if (buf_puts(&text, w->cluster_answer) != KMS_OK)
            web_abort(w->web, conn);
        else
            web_answer(w->web, conn, 200, NULL, &text, 0, false);
        buf_release(&text);
    } else {
        http_error(w, conn, 405, 405001, "kms/{userId} takes GET", 0);
    }
}
