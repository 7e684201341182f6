/*
 * fetch.h - GET and POST over HTTPS without blocking the event loop: libcurl's multi interface on
 * libevent.
 *
 * Only https, or http to this machine itself (127.0.0.0/8, [::1], localhost).  No redirects, no
 * cookies, TLS 1.2 or later, at most FETCH_MAX bytes of answer, a deadline over everything.  Names
 * are resolved by libcurl's own resolver thread.
 */
#ifndef KMS_FETCH_H
#define KMS_FETCH_H

#include <stdbool.h>
#include <stddef.h>

struct buf;
struct event_base;
struct fetch;
struct fetcher;

#define FETCH_MAX (1024 * 1024) /* bytes of an answer's body */

/* All borrowed, for the call of fetch_start only. */
struct fetch_request {
    const char *url;
    const char *ca_file;         /* PEM; NULL or "": the system's */
    const char *form;            /* body of a POST, application/x-www-form-urlencoded; NULL: GET */
    const char *user, *password; /* for HTTP Basic, as they are; NULL: none */
    long deadline_ms;            /* from the call to the last byte */
};

/*
 * err: KMS_OK and an HTTP status, whatever it is, with the body; KMS_ERR_TIMEOUT, KMS_ERR_LENGTH
 * (over FETCH_MAX), KMS_ERR_UNAVAILABLE (name, connection, TLS; why: in words).  The body is wiped
 * after the call.  The fetch is gone when this is called; another may be started from here.
 */
typedef void fetch_cb(void *ctx, int err, long status, const char *body, size_t len,
                      const char *why);

/* NULL: no memory. */
struct fetcher *fetcher_new(struct event_base *base);
/* Cancels what is under way; NULL is fine.  Not from within a fetch_cb. */
void fetcher_free(struct fetcher *f);

/* The callback comes later, never from within.  KMS_ERR_CONFIG: not a URL that we go to;
 * KMS_ERR_NOMEM. */
int fetch_start(struct fetch **out, struct fetcher *f, const struct fetch_request *req,
                fetch_cb *cb, void *ctx);
/* No callback will come; NULL is fine. */
void fetch_cancel(struct fetch *ft);

/* Appends text as one value of a form.  KMS_OK, KMS_ERR_NOMEM. */
int fetch_put_form(struct buf *out, const char *text);

#endif
