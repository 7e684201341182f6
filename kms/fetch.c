/*
 * fetch.c - libcurl's multi interface driven by libevent.
 *
 * libcurl says which sockets and which timer it wants watched (socket_cb, timer_cb); events tell it
 * what happened (act), and then the transfers that ended are taken out and their owners called,
 * outside of any callback of libcurl's.
 */
#include "kms/fetch.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <event2/event.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>

#include "proto/buf.h"
#include "proto/err.h"

#define CONNECTIONS_MAX 16 /* at once; what is beyond waits its turn, inside its deadline */

struct fetch {
    TAILQ_ENTRY(fetch) entry;
    struct fetcher *f;
    CURL *easy; /* owned */
    fetch_cb *cb;
    void *ctx;
    struct buf body; /* of the answer */
    struct buf form; /* of the question; libcurl reads it from here */
    bool too_long;
    char why[CURL_ERROR_SIZE];
};

struct fetcher {
    struct event_base *base;
    CURLM *multi;
    struct event *timer;
    TAILQ_HEAD(, fetch) fetches;
};

static void
fetch_free(struct fetch *ft)
{
    TAILQ_REMOVE(&ft->f->fetches, ft, entry);
    curl_multi_remove_handle(ft->f->multi, ft->easy);
    curl_easy_cleanup(ft->easy);
    buf_release(&ft->body);
    buf_release(&ft->form);
    free(ft);
}

static int
fetch_result(const struct fetch *ft, CURLcode code)
{
    if (ft->too_long)
        return KMS_ERR_LENGTH;
    switch (code) {
    case CURLE_OK:
        return KMS_OK;
    case CURLE_OPERATION_TIMEDOUT:
        return KMS_ERR_TIMEOUT;
    case CURLE_OUT_OF_MEMORY:
        return KMS_ERR_NOMEM;
    default:
        return KMS_ERR_UNAVAILABLE;
    }
}

/* Takes one transfer that ended out, and calls its owner. */
static void
fetch_end(struct fetch *ft, CURLcode code)
{
    struct buf body = ft->body;
    fetch_cb *cb = ft->cb;
    void *ctx = ft->ctx;
    char why[CURL_ERROR_SIZE];
    int err = fetch_result(ft, code);
    long status = 0;

    curl_easy_getinfo(ft->easy, CURLINFO_RESPONSE_CODE, &status);
    snprintf(why, sizeof(why), "%s", ft->why[0] != '\0' ? ft->why : curl_easy_strerror(code));
    buf_init(&ft->body);
    fetch_free(ft);
    cb(ctx, err, status, buf_str(&body), body.len, why);
    buf_release(&body);
}

static void
act(struct fetcher *f, curl_socket_t fd, int what)
{
    CURLMsg *msg;
    struct fetch *ft;
    int running, left;

    curl_multi_socket_action(f->multi, fd, what, &running);
    while ((msg = curl_multi_info_read(f->multi, &left)) != NULL) {
        if (msg->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **)&ft);
        fetch_end(ft, msg->data.result); /* msg is gone after this */
    }
}

static void
event_cb(evutil_socket_t fd, short what, void *arg)
{
    act(arg, fd, (what & EV_READ ? CURL_CSELECT_IN : 0) | (what & EV_WRITE ? CURL_CSELECT_OUT : 0));
}

static void
timeout_cb(evutil_socket_t fd, short what, void *arg)
{
    act(arg, CURL_SOCKET_TIMEOUT, 0);
}

static int
socket_cb(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket)
{
    struct fetcher *f = arg;
    struct event *ev = socket;
    short events = EV_PERSIST;

    if (ev != NULL)
        event_free(ev);
    ev = NULL;
    if (what != CURL_POLL_REMOVE) {
        events |= what & CURL_POLL_IN ? EV_READ : 0;
        events |= what & CURL_POLL_OUT ? EV_WRITE : 0;
        if ((ev = event_new(f->base, fd, events, event_cb, f)) != NULL) {
            event_add(ev, NULL);
        }
    }
    /* Without an event (no memory) the transfer ends by its deadline. */
    curl_multi_assign(f->multi, fd, ev);
    return 0;
}

static int
timer_cb(CURLM *multi, long ms, void *arg)
{
    struct fetcher *f = arg;
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};

    if (ms < 0)
        event_del(f->timer);
    else
        event_add(f->timer, &tv);
    return 0;
}

static size_t
body_cb(char *data, size_t size, size_t n, void *arg)
{
    struct fetch *ft = arg;

    if (n > FETCH_MAX - ft->body.len) {
        ft->too_long = true;
        return 0;
    }
    return buf_put(&ft->body, data, n) == KMS_OK ? n : 0;
}

/* Whether a URL's host is this machine, without asking a resolver. */
static bool
is_loopback(const char *host)
{
    struct in_addr in;

    /* libcurl answers "localhost" itself (RFC 6761 section 6.3). */
    if (strcasecmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0)
        return true;
    return inet_pton(AF_INET, host, &in) == 1 && ntohl(in.s_addr) >> 24 == 127;
}

/* *scheme: what libcurl is to be held to. */
static int
check_url(const char *text, const char **scheme)
{
    CURLU *url = curl_url();
    char *got = NULL, *host = NULL;
    int r = KMS_ERR_CONFIG;

    if (url == NULL)
        return KMS_ERR_NOMEM;
    if (curl_url_set(url, CURLUPART_URL, text, CURLU_DISALLOW_USER) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_SCHEME, &got, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_HOST, &host, 0) != CURLUE_OK)
        goto out;
    if (strcmp(got, "https") == 0)
        *scheme = "https";
    else if (strcmp(got, "http") == 0 && is_loopback(host))
        *scheme = "http";
    else
        goto out;
    r = KMS_OK;
out:
    curl_free(got);
    curl_free(host);
    curl_url_cleanup(url);
    return r;
}

#define SET(option, value) (curl_easy_setopt(e, option, value) != CURLE_OK)

/* 0, or not. */
static int
set_options(struct fetch *ft, const struct fetch_request *req, const char *scheme)
{
    CURL *e = ft->easy;

    if (SET(CURLOPT_URL, req->url) || SET(CURLOPT_PROTOCOLS_STR, scheme) ||
        SET(CURLOPT_FOLLOWLOCATION, 0L) || SET(CURLOPT_NOSIGNAL, 1L) ||
        SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L) ||
        SET(CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1) ||
        SET(CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2) ||
        SET(CURLOPT_TIMEOUT_MS, req->deadline_ms) || SET(CURLOPT_MAXFILESIZE, (long)FETCH_MAX) ||
        SET(CURLOPT_WRITEFUNCTION, body_cb) || SET(CURLOPT_WRITEDATA, ft) ||
        SET(CURLOPT_PRIVATE, ft) || SET(CURLOPT_ERRORBUFFER, ft->why))
        return -1;
    /* The loop must not wait for a resolver thread that nobody waits for any more. */
    if (SET(CURLOPT_QUICK_EXIT, 1L))
        return -1;
    if (strcmp(scheme, "http") == 0 && SET(CURLOPT_NOPROXY, "*"))
        return -1;
    if (req->ca_file != NULL && req->ca_file[0] != '\0' &&
        (SET(CURLOPT_CAINFO, req->ca_file) || SET(CURLOPT_CAPATH, NULL)))
        return -1;
    if (req->form != NULL && (buf_puts(&ft->form, req->form) != KMS_OK || SET(CURLOPT_POST, 1L) ||
                              SET(CURLOPT_POSTFIELDS, buf_str(&ft->form)) ||
                              SET(CURLOPT_POSTFIELDSIZE, (long)ft->form.len)))
        return -1;
    if (req->user != NULL &&
        (SET(CURLOPT_HTTPAUTH, CURLAUTH_BASIC) || SET(CURLOPT_USERNAME, req->user) ||
         SET(CURLOPT_PASSWORD, req->password == NULL ? "" : req->password)))
        return -1;
    return 0;
}

int
fetch_start(struct fetch **out, struct fetcher *f, const struct fetch_request *req, fetch_cb *cb,
            void *ctx)
{
    const char *scheme;
    struct fetch *ft;
    int r;

    *out = NULL;
    if ((r = check_url(req->url, &scheme)) != KMS_OK)
        return r;
    if ((ft = calloc(1, sizeof(*ft))) == NULL)
        return KMS_ERR_NOMEM;
    ft->f = f;
    ft->cb = cb;
    ft->ctx = ctx;
    TAILQ_INSERT_TAIL(&f->fetches, ft, entry);
    if ((ft->easy = curl_easy_init()) == NULL || set_options(ft, req, scheme) != 0 ||
        curl_multi_add_handle(f->multi, ft->easy) != CURLM_OK) {
        fetch_free(ft);
        return KMS_ERR_NOMEM;
    }
    *out = ft;
    return KMS_OK;
}

void
fetch_cancel(struct fetch *ft)
{
    if (ft != NULL)
        fetch_free(ft);
}

struct fetcher *
fetcher_new(struct event_base *base)
{
    struct fetcher *f = calloc(1, sizeof(*f));

    if (f == NULL)
        return NULL;
    f->base = base;
    TAILQ_INIT(&f->fetches);
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(f);
        return NULL;
    }
    if ((f->timer = evtimer_new(base, timeout_cb, f)) == NULL ||
        (f->multi = curl_multi_init()) == NULL ||
        curl_multi_setopt(f->multi, CURLMOPT_SOCKETFUNCTION, socket_cb) != CURLM_OK ||
        curl_multi_setopt(f->multi, CURLMOPT_SOCKETDATA, f) != CURLM_OK ||
        curl_multi_setopt(f->multi, CURLMOPT_TIMERFUNCTION, timer_cb) != CURLM_OK ||
        curl_multi_setopt(f->multi, CURLMOPT_TIMERDATA, f) != CURLM_OK ||
        curl_multi_setopt(f->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)CONNECTIONS_MAX) !=
            CURLM_OK) {
        fetcher_free(f);
        return NULL;
    }
    return f;
}

void
fetcher_free(struct fetcher *f)
{
    struct fetch *ft;

    if (f == NULL)
        return;
    while ((ft = TAILQ_FIRST(&f->fetches)) != NULL)
        fetch_free(ft);
    if (f->multi != NULL)
        curl_multi_cleanup(f->multi); /* calls timer_cb and socket_cb a last time */
    if (f->timer != NULL)
        event_free(f->timer);
    curl_global_cleanup();
    free(f);
}

int
fetch_put_form(struct buf *out, const char *text)
{
    char *escaped = curl_easy_escape(NULL, text, 0);
    int r;

    if (escaped == NULL)
        return KMS_ERR_NOMEM;
    r = buf_puts(out, escaped);
    OPENSSL_cleanse(escaped, strlen(escaped));
    curl_free(escaped);
    return r;
}
