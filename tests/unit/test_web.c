/*
 * test_web.c - the HTTPS server against clients that are right, slow, rude or gone.
 *
 * The server runs in a thread with an event loop of its own; the test is the client, on blocking
 * sockets.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kms/config.h"
#include "kms/shared.h"
#include "kms/web.h"
#include "proto/err.h"
#include "tests/unit/certs.h"

#define BIG (8 * 1024 * 1024)

/* The server */

struct server {
    struct event_base *base;
    struct web *web;
    struct web_limits limits;
    struct config cfg;
    bool plain;
    int fd;
    unsigned short port;
    int ask[2], done[2];
    struct event *asked;
    pthread_t thread;
    struct shared_worker counted;
    uint64_t held; /* the last request to /hold */
    _Atomic int holding;
    char peer[64];
    char subject[128];
};

typedef void action(struct server *s);

static struct server S;

static void
answer_text(struct server *s, uint64_t conn, int status, const char *text, size_t len)
{
    struct buf body = BUF_INIT;

    buf_put(&body, text, len);
    web_answer(s->web, conn, status, "text/plain", &body, 0, false);
}

static void
handler(void *ctx, uint64_t conn, const struct http_request *http, const char *body, size_t len,
        const char *peer, STACK_OF(X509) * chain)
{
    struct server *s = ctx;
    struct buf big = BUF_INIT;

    snprintf(s->peer, sizeof(s->peer), "%s", peer);
    s->subject[0] = '\0';
    if (chain != NULL)
        X509_NAME_oneline(X509_get_subject_name(sk_X509_value(chain, 0)), s->subject,
                          sizeof(s->subject));
    if (http_is(http->path, "/hold")) {
        s->held = conn;
        s->holding++;
    } else if (http_is(http->path, "/abort")) {
        web_abort(s->web, conn);
    } else if (http_is(http->path, "/big")) {
        buf_reserve(&big, BIG);
        memset(big.data, 'x', BIG);
        big.len = BIG;
        web_answer(s->web, conn, 200, NULL, &big, 0, false);
    } else {
        answer_text(s, conn, 200, len > 0 ? body : "hello", len > 0 ? len : 5);
    }
}

static void
ask_cb(evutil_socket_t fd, short what, void *arg)
{
    struct server *s = arg;
    action *act;
    char c = 'x';

    if (read(fd, &act, sizeof(act)) != sizeof(act))
        abort();
    act(s);
    if (write(s->done[1], &c, 1) != 1)
        abort();
}

/* Has the server's thread do something. */
static void
do_(action *act)
{
    char c;

    cr_assert_eq(write(S.ask[1], &act, sizeof(act)), (ssize_t)sizeof(act));
    cr_assert_eq(read(S.done[0], &c, 1), 1);
}

static void *
serve(void *arg)
{
    struct server *s = arg;

    event_base_dispatch(s->base);
    return NULL;
}

static void
act_stop(struct server *s)
{
    event_base_loopbreak(s->base);
}

static size_t opened;

static void
act_open(struct server *s)
{
    opened = web_open(s->web);
}

static void
act_drain(struct server *s)
{
    web_drain(s->web);
}

static void
act_answer(struct server *s)
{
    answer_text(s, s->held, 200, "late", 4);
}

static void
act_abort(struct server *s)
{
    web_abort(s->web, s->held);
}

/* Waits for a number of open connections. */
static bool
open_becomes(size_t n, int ms)
{
    int i;

    for (i = 0; i < ms / 10; i++) {
        do_(act_open);
        if (opened == n)
            return true;
        usleep(10000);
    }
    return false;
}

static uint64_t
counted(enum counter c)
{
    return atomic_load(&S.counted.counters[c]);
}

static void
put_identity(const char *name)
{
    EVP_PKEY *key = certs_key();
    X509 *cert = certs_make(name, key, NULL, NULL);

    certs_put_key("key.pem", key);
    certs_put_cert("cert.pem", cert);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static void
act_reload(struct server *s)
{
    SSL_CTX *tls = NULL;
    const char *why;

    put_identity("second");
    cr_assert_eq(web_tls_new(&tls, &s->cfg, &why), KMS_OK, "%s", why);
    web_reload(s->web, tls, &s->limits);
    SSL_CTX_free(tls);
}

/* What a test does not set in S before. */
static void
start(void)
{
    struct sockaddr_in sin = {.sin_family = AF_INET};
    socklen_t len = sizeof(sin);
    struct web_limits *l = &S.limits;
    SSL_CTX *tls = NULL;
    const char *why;

    l->connections = l->connections ? l->connections : 2000;
    l->connections_source = l->connections_source ? l->connections_source : 2000;
    l->handshakes = l->handshakes ? l->handshakes : 2000;
    l->handshake_timeout = l->handshake_timeout ? l->handshake_timeout : 10;
    l->head_timeout = l->head_timeout ? l->head_timeout : 10;
    l->body_timeout = l->body_timeout ? l->body_timeout : 10;
    l->answer_timeout = l->answer_timeout ? l->answer_timeout : 10;
    l->idle_timeout = l->idle_timeout ? l->idle_timeout : 60;
    l->body_max = l->body_max ? l->body_max : 1024 * 1024;
    shared_own(&S.counted);
    if (!S.plain) {
        put_identity("first");
        S.cfg.tls_certificate = strdup(certs_path("cert.pem"));
        S.cfg.tls_key = strdup(certs_path("key.pem"));
        cr_assert_eq(web_tls_new(&tls, &S.cfg, &why), KMS_OK, "%s", why);
    }
    S.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    cr_assert_eq(bind(S.fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
    cr_assert_eq(listen(S.fd, 1024), 0);
    cr_assert_eq(getsockname(S.fd, (struct sockaddr *)&sin, &len), 0);
    S.port = ntohs(sin.sin_port);
    cr_assert_eq(pipe(S.ask), 0);
    cr_assert_eq(pipe(S.done), 0);
    S.base = event_base_new();
    S.web = web_new(S.base, S.fd, tls, &S.limits, handler, &S);
    cr_assert_not_null(S.web);
    SSL_CTX_free(tls);
    S.asked = event_new(S.base, S.ask[0], EV_READ | EV_PERSIST, ask_cb, &S);
    event_add(S.asked, NULL);
    cr_assert_eq(pthread_create(&S.thread, NULL, serve, &S), 0);
}

static void
stop(void)
{
    do_(act_stop);
    pthread_join(S.thread, NULL);
    event_free(S.asked);
    web_free(S.web);
    event_base_loop(S.base, EVLOOP_NONBLOCK);
    event_base_free(S.base);
    certs_clean();
}

/* The client */

static SSL_CTX *client_ctx;

static int64_t
now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int
tcp_connect(void)
{
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(S.port)};
    struct timeval tv = {.tv_sec = 15};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    cr_assert_geq(fd, 0);
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    cr_assert_eq(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), 0, "%s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static void
reset(int fd)
{
    struct linger l = {.l_onoff = 1};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
    close(fd);
}

static SSL_CTX *
client(void)
{
    if (client_ctx == NULL)
        client_ctx = SSL_CTX_new(TLS_client_method());
    return client_ctx;
}

/* NULL: the handshake failed. */
static SSL *
tls_on(int fd)
{
    SSL *ssl = SSL_new(client());

    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) == 1)
        return ssl;
    SSL_free(ssl);
    close(fd);
    ERR_clear_error();
    return NULL;
}

static SSL *
tls_connect(void)
{
    SSL *ssl = tls_on(tcp_connect());

    cr_assert_not_null(ssl);
    return ssl;
}

static void
tls_close(SSL *ssl)
{
    int fd = SSL_get_fd(ssl);

    SSL_shutdown(ssl);
    SSL_free(ssl);
    close(fd);
}

static void
tls_reset(SSL *ssl)
{
    int fd = SSL_get_fd(ssl);

    SSL_free(ssl);
    reset(fd);
}

static void
tls_send(SSL *ssl, const char *text)
{
    cr_assert_eq(SSL_write(ssl, text, (int)strlen(text)), (int)strlen(text));
}

/* Reads one answer; its status, or 0: none came.  The body (up to a KiB) is in `got`. */
static char got[1025];
static char got_head[4096];

static int
tls_answer(SSL *ssl)
{
    char *end = NULL, *p;
    size_t n = 0, left, len;
    int status = 0, r;

    got[0] = '\0';
    while (end == NULL) {
        if (n >= sizeof(got_head) - 1 || SSL_read(ssl, got_head + n, 1) != 1)
            return 0;
        got_head[++n] = '\0';
        end = strstr(got_head, "\r\n\r\n");
    }
    cr_assert_eq(sscanf(got_head, "HTTP/1.1 %d", &status), 1, "%s", got_head);
    p = strstr(got_head, "Content-Length: ");
    left = p == NULL ? 0 : strtoul(p + 16, NULL, 10);
    for (len = 0; left > 0; left -= (size_t)r) {
        char part[16384];

        if ((r = SSL_read(ssl, part, (int)(left > sizeof(part) ? sizeof(part) : left))) <= 0)
            return 0;
        if (len + (size_t)r < sizeof(got)) {
            memcpy(got + len, part, (size_t)r);
            got[len += (size_t)r] = '\0';
        }
    }
    return status;
}

/* Whether the server has closed in order (close_notify). */
static bool
tls_ended(SSL *ssl)
{
    char c;
    int r = SSL_read(ssl, &c, 1);

    return r == 0 && SSL_get_error(ssl, r) == SSL_ERROR_ZERO_RETURN;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

TestSuite(web, .timeout = 120);

Test(web, answers_and_keeps_the_connection)
{
    SSL *ssl;

    start();
    ssl = tls_connect();
    cr_assert_str_eq(SSL_get_version(ssl), "TLSv1.3");
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "hello");
    cr_assert_str_eq(S.peer, "127.0.0.1");
    cr_assert_str_eq(S.subject, "");
    tls_send(ssl, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "abc");
    tls_send(ssl, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_not_null(strstr(got_head, "Connection: close"));
    cr_assert(tls_ended(ssl));
    tls_close(ssl);
    cr_assert(open_becomes(0, 2000));
    cr_assert_eq(counted(CT_HTTP_REQUESTS), 3);
    cr_assert_eq(counted(CT_CONNECTIONS_OPEN), 0);
    cr_assert_eq(counted(CT_CONNECTIONS_TOTAL), 1);
    stop();
}

Test(web, speaks_plain_without_a_context)
{
    char text[1024] = "";
    size_t n = 0;
    ssize_t r;
    int fd;

    S.plain = true;
    start();
    fd = tcp_connect();
    cr_assert_gt(write(fd, GET("/"), strlen(GET("/"))), 0);
    shutdown(fd, SHUT_WR); /* as nc does: the answer comes all the same */
    while ((r = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
        n += (size_t)r;
    cr_assert_eq(r, 0);
    cr_assert_eq(strncmp(text, "HTTP/1.1 200 OK\r\n", 17), 0);
    cr_assert_not_null(strstr(text, "\r\n\r\nhello"));
    close(fd);
    cr_assert(open_becomes(0, 2000));
    stop();
}

Test(web, answers_pipelined_requests_in_order)
{
    SSL *ssl;

    start();
    ssl = tls_connect();
    tls_send(ssl, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
                  "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\ntwo" GET("/hold"));
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "one");
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "two");
    tls_send(ssl, GET("/"));
    while (S.holding == 0)
        usleep(1000);
    do_(act_answer);
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "late");
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "hello");
    tls_close(ssl);
    stop();
}

/* The bytes that a client pipelines stay with the kernel, so he soon cannot send any more. */
Test(web, reads_no_further_while_a_request_is_under_way)
{
    static char more[65536];
    struct timeval tv = {.tv_usec = 300000};
    size_t sent = 0;
    int r, size = 65536;
    SSL *ssl;

    start();
    ssl = tls_connect();
    tls_send(ssl, GET("/hold"));
    setsockopt(SSL_get_fd(ssl), SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    setsockopt(SSL_get_fd(ssl), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    memset(more, 'x', sizeof(more));
    while ((r = SSL_write(ssl, more, sizeof(more))) > 0 && sent < 64u * 1024 * 1024)
        sent += (size_t)r;
    cr_assert_lt(sent, 16u * 1024 * 1024);
    tls_reset(ssl);
    do_(act_answer);
    cr_assert(open_becomes(0, 3000));
    stop();
}

Test(web, takes_a_body_of_the_largest_size_and_says_continue)
{
    const size_t len = 1024 * 1024;
    char *body = malloc(len), head[200];
    SSL *ssl;

    start();
    ssl = tls_connect();
    memset(body, 'y', len);
    snprintf(head, sizeof(head),
             "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
             len);
    tls_send(ssl, head);
    cr_assert_eq(tls_answer(ssl), 100);
    cr_assert_eq(SSL_write(ssl, body, (int)len), (int)len);
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_not_null(strstr(got_head, "Content-Length: 1048576\r\n"));
    tls_close(ssl);
    free(body);
    stop();
}

/* A client that sends first and reads then must find the refusal, not a reset. */
Test(web, a_refusal_reaches_a_client_that_still_sends)
{
    const size_t len = 4 * 1024 * 1024;
    char *body = calloc(1, len), head[200];
    int i;
    SSL *ssl;

    start();
    for (i = 0; i < 10; i++) {
        ssl = tls_connect();
        snprintf(head, sizeof(head), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
                 len);
        tls_send(ssl, head);
        cr_assert_eq(SSL_write(ssl, body, (int)len), (int)len);
        cr_assert_eq(tls_answer(ssl), 413);
        cr_assert_str_eq(got, "{\"message\":\"Content Too Large\",\"errorCode\":413001}");
        cr_assert(tls_ended(ssl));
        tls_close(ssl);
    }
    cr_assert(open_becomes(0, 3000));
    cr_assert_eq(counted(CT_HTTP_REFUSED), 10);
    free(body);
    stop();
}

Test(web, refuses_what_is_no_http)
{
    static const struct {
        const char *text;
        int status;
    } rows[] = {
        {"GET / HTTP/1.1\nHost: x\n\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400},
        {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
    };
    char *many = malloc(20000);
    char code[40];
    size_t i;
    SSL *ssl;

    start();
    for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ssl = tls_connect();
        tls_send(ssl, rows[i].text);
        cr_assert_eq(tls_answer(ssl), rows[i].status, "%s", rows[i].text);
        snprintf(code, sizeof(code), "\"errorCode\":%d001}", rows[i].status);
        cr_assert_not_null(strstr(got, code));
        cr_assert_not_null(strstr(got_head, "Connection: close\r\n"));
        cr_assert(tls_ended(ssl));
        tls_close(ssl);
    }
    ssl = tls_connect();
    memset(many, 'x', 20000);
    memcpy(many, "GET / HTTP/1.1\r\nHost: x\r\nA: ", 28);
    cr_assert_eq(SSL_write(ssl, many, 20000), 20000);
    cr_assert_eq(tls_answer(ssl), 431);
    tls_close(ssl);
    free(many);
    stop();
}

/* One byte now and then moves no deadline. */
static void
drips(const char *first, const char *drop)
{
    SSL *ssl = tls_connect();
    int64_t begin = now_ms(), took;
    struct pollfd p = {.fd = SSL_get_fd(ssl), .events = POLLIN};

    tls_send(ssl, first);
    while (poll(&p, 1, 100) == 0)
        tls_send(ssl, drop);
    took = now_ms() - begin;
    cr_assert(took >= 900 && took < 2000, "%lld ms", (long long)took);
    cr_assert_eq(tls_answer(ssl), 408);
    cr_assert(tls_ended(ssl));
    tls_close(ssl);
    cr_assert(open_becomes(0, 2000));
}

Test(web, cuts_a_head_that_drips)
{
    S.limits.head_timeout = 1;
    start();
    drips("GET / HTTP/1.1\r\nHost: x\r\nA: ", "x");
    stop();
}

Test(web, cuts_a_body_that_drips)
{
    S.limits.body_timeout = 1;
    start();
    drips("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", "x");
    stop();
}

/* What a client sends first; bytes of a real ClientHello. */
static size_t
client_hello(unsigned char *out, size_t max)
{
    SSL *ssl = SSL_new(client());
    BIO *in = BIO_new(BIO_s_mem()), *sent = BIO_new(BIO_s_mem());
    int n;

    SSL_set_bio(ssl, in, sent);
    SSL_connect(ssl);
    n = BIO_read(sent, out, (int)max);
    cr_assert_gt(n, 100);
    SSL_free(ssl);
    return (size_t)n;
}

Test(web, cuts_a_handshake_that_drips)
{
    unsigned char hello[4096];
    size_t len, i = 0;
    int64_t begin, took;
    struct pollfd p = {.events = POLLIN};

    S.limits.handshake_timeout = 1;
    start();
    len = client_hello(hello, sizeof(hello));
    p.fd = tcp_connect();
    begin = now_ms();
    while (i < len && poll(&p, 1, 50) == 0)
        cr_assert_eq(write(p.fd, hello + i++, 1), 1);
    took = now_ms() - begin;
    cr_assert(took >= 900 && took < 2000, "%lld ms", (long long)took);
    close(p.fd);
    cr_assert(open_becomes(0, 2000));
    cr_assert_eq(counted(CT_HANDSHAKES_FAILED), 1);
    stop();
}

Test(web, cuts_an_idle_connection_in_order)
{
    SSL *ssl;
    int64_t begin;

    S.limits.idle_timeout = 1;
    start();
    ssl = tls_connect();
    begin = now_ms();
    cr_assert(tls_ended(ssl));
    cr_assert_lt(now_ms() - begin, 2000);
    tls_close(ssl);
    cr_assert(open_becomes(0, 2000));
    stop();
}

Test(web, cuts_a_reader_that_does_not_read)
{
    int64_t begin;
    SSL *ssl;

    S.limits.answer_timeout = 1;
    start();
    ssl = tls_connect();
    tls_send(ssl, GET("/big"));
    begin = now_ms();
    usleep(100000);
    cr_assert(open_becomes(0, 3000));
    cr_assert_geq(now_ms() - begin, 900);
    cr_assert_eq(tls_answer(ssl), 0);
    tls_reset(ssl);
    stop();
}

Test(web, a_large_answer_arrives_whole)
{
    SSL *ssl;

    start();
    ssl = tls_connect();
    tls_send(ssl, GET("/big"));
    usleep(200000);
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_not_null(strstr(got_head, "Content-Length: 8388608\r\n"));
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    tls_close(ssl);
    stop();
}

/* Limits */

/* Whether bytes, or the end, arrive. */
static bool
readable(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, ms) == 1;
}

Test(web, a_full_server_takes_the_next_when_there_is_room)
{
    unsigned char hello[4096];
    size_t len;
    SSL *held[3], *ssl;
    int i, fd;

    S.limits.connections = 3;
    start();
    len = client_hello(hello, sizeof(hello));
    for (i = 0; i < 3; i++) {
        held[i] = tls_connect();
        tls_send(held[i], GET("/hold"));
    }
    while (S.holding < 3)
        usleep(1000);
    /* All are busy: the fourth waits in the backlog. */
    fd = tcp_connect();
    cr_assert_eq(write(fd, hello, len), (ssize_t)len);
    cr_assert_not(readable(fd, 300));
    tls_reset(held[1]);
    cr_assert(readable(fd, 2000));
    close(fd);
    ssl = tls_connect();
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    /* Now one is idle: it gives way. */
    held[1] = tls_connect();
    cr_assert(tls_ended(ssl));
    tls_send(held[1], GET("/"));
    cr_assert_eq(tls_answer(held[1]), 200);
    tls_close(ssl);
    for (i = 0; i < 3; i++)
        tls_close(held[i]);
    stop();
}

Test(web, one_source_gets_its_part_of_the_connections)
{
    SSL *ssl[3];
    int i, fd;
    char c;

    S.limits.connections_source = 3;
    start();
    for (i = 0; i < 3; i++)
        ssl[i] = tls_connect();
    fd = tcp_connect();
    cr_assert_leq(read(fd, &c, 1), 0);
    close(fd);
    cr_assert_eq(counted(CT_CONNECTIONS_REFUSED), 1);
    tls_close(ssl[0]);
    cr_assert(open_becomes(2, 2000));
    ssl[0] = tls_connect();
    for (i = 0; i < 3; i++)
        tls_close(ssl[i]);
    stop();
}

Test(web, an_unfinished_handshake_gives_way_after_a_second)
{
    int64_t begin;
    int fd[4], i;
    SSL *ssl;

    S.limits.handshakes = 3;
    start();
    begin = now_ms();
    for (i = 0; i < 4; i++)
        fd[i] = tcp_connect();
    usleep(100000);
    do_(act_open);
    cr_assert_eq(opened, 3);
    ssl = tls_connect();
    cr_assert(now_ms() - begin >= 900 && now_ms() - begin < 3000);
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    tls_close(ssl);
    for (i = 0; i < 4; i++)
        close(fd[i]);
    stop();
}

static long
cpu_ms(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000 +
           (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
}

Test(web, does_not_spin_without_descriptors)
{
    struct sockaddr_in sin = {.sin_family = AF_INET};
    struct rlimit old, few;
    int fd[20], i, top = 0;
    long cpu;
    char c;

    S.plain = true;
    start();
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sin.sin_port = htons(S.port);
    for (i = 0; i < 20; i++)
        top = fd[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    getrlimit(RLIMIT_NOFILE, &old);
    few = old;
    few.rlim_cur = (rlim_t)top + 1 + 5;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (i = 0; i < 20; i++)
        cr_assert_eq(connect(fd[i], (struct sockaddr *)&sin, sizeof(sin)), 0);
    usleep(100000);
    cpu = cpu_ms();
    usleep(1500000);
    cpu = cpu_ms() - cpu;
    cr_assert_lt(cpu, 150, "%ld ms of 1500", cpu);
    do_(act_open);
    cr_assert(opened > 0 && opened <= 6, "%zu", opened);
    /* As the first ones leave, the others get their turn. */
    for (i = 0; i < 20; i++) {
        cr_assert_eq(write(fd[i], GET("/"), strlen(GET("/"))), (ssize_t)strlen(GET("/")));
        cr_assert(readable(fd[i], 8000), "connection %d", i);
        cr_assert_eq(read(fd[i], &c, 1), 1);
        reset(fd[i]);
    }
    setrlimit(RLIMIT_NOFILE, &old);
    stop();
}

/* TLS */

Test(web, refuses_old_tls)
{
    SSL *ssl;

    start();
    SSL_CTX_set_security_level(client(), 0);
    SSL_CTX_set_min_proto_version(client(), TLS1_VERSION);
    SSL_CTX_set_max_proto_version(client(), TLS1_1_VERSION);
    cr_assert_null(tls_on(tcp_connect()));
    SSL_CTX_set_max_proto_version(client(), TLS1_2_VERSION);
    SSL_CTX_set_cipher_list(client(), "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA");
    cr_assert_null(tls_on(tcp_connect()));
    SSL_CTX_set_cipher_list(client(), "DEFAULT");
    ssl = tls_connect();
    cr_assert_str_eq(SSL_get_version(ssl), "TLSv1.2");
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    /* No renegotiation: the server says so, and goes on. */
    cr_assert_eq(SSL_renegotiate(ssl), 1);
    cr_assert_neq(SSL_do_handshake(ssl), 1);
    tls_close(ssl);
    cr_assert(open_becomes(0, 2000));
    cr_assert_eq(counted(CT_HANDSHAKES_FAILED), 2);
    stop();
}

Test(web, knows_a_client_by_its_certificate)
{
    EVP_PKEY *ca_key = certs_key(), *key = certs_key();
    X509 *ca = certs_make("services", ca_key, NULL, NULL);
    X509 *cert = certs_make("indexer", key, ca, ca_key);
    X509 *own = certs_make("nobody", key, NULL, NULL);
    SSL *ssl;
    char c;

    certs_put_cert("ca.pem", ca);
    S.cfg.tls_client_ca = strdup(certs_path("ca.pem"));
    start();
    ssl = tls_connect(); /* none is needed */
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(S.subject, "");
    tls_close(ssl);
    SSL_CTX_use_PrivateKey(client(), key);
    SSL_CTX_use_certificate(client(), cert);
    ssl = tls_connect();
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(S.subject, "/CN=indexer");
    tls_close(ssl);
    /* One that nobody vouches for is worse than none.  In TLS 1.3 the client learns it when it
     * reads. */
    SSL_CTX_use_certificate(client(), own);
    ssl = tls_on(tcp_connect());
    cr_assert(ssl == NULL || SSL_read(ssl, &c, 1) <= 0);
    if (ssl != NULL)
        tls_reset(ssl);
    cr_assert(open_becomes(0, 2000));
    cr_assert_eq(counted(CT_HANDSHAKES_FAILED), 1);
    X509_free(ca);
    X509_free(cert);
    X509_free(own);
    EVP_PKEY_free(ca_key);
    EVP_PKEY_free(key);
    stop();
}

static void
peer_name(SSL *ssl, char *out, int len)
{
    X509 *cert = SSL_get1_peer_certificate(ssl);

    X509_NAME_oneline(X509_get_subject_name(cert), out, len);
    X509_free(cert);
}

Test(web, a_reload_changes_only_what_comes_after)
{
    SSL *old, *new;
    char name[64];

    start();
    old = tls_connect();
    peer_name(old, name, sizeof(name));
    cr_assert_str_eq(name, "/CN=first");
    do_(act_reload);
    tls_send(old, GET("/"));
    cr_assert_eq(tls_answer(old), 200);
    new = tls_connect();
    peer_name(new, name, sizeof(name));
    cr_assert_str_eq(name, "/CN=second");
    tls_send(new, GET("/"));
    cr_assert_eq(tls_answer(new), 200);
    tls_close(old);
    tls_close(new);
    stop();
}

Test(web, says_what_is_wrong_with_a_certificate)
{
    EVP_PKEY *other = certs_key();
    SSL_CTX *tls = NULL;
    const char *why = "";

    put_identity("first");
    certs_put_key("other.pem", other);
    S.cfg.tls_certificate = strdup(certs_path("cert.pem"));
    S.cfg.tls_key = strdup(certs_path("other.pem"));
    cr_assert_eq(web_tls_new(&tls, &S.cfg, &why), KMS_ERR_CONFIG);
    cr_assert_null(tls);
    cr_assert_neq(why[0], '\0');
    free(S.cfg.tls_key);
    S.cfg.tls_key = strdup(certs_path("nothing.pem"));
    cr_assert_eq(web_tls_new(&tls, &S.cfg, &why), KMS_ERR_CONFIG);
    cr_assert_not_null(strstr(why, "nothing.pem"), "%s", why);
    EVP_PKEY_free(other);
    certs_clean();
}

/* Clients that leave */

Test(web, survives_a_client_that_leaves_at_any_byte)
{
    static const char request[] = "POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde"
                                  "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    unsigned char hello[4096];
    size_t i, len;
    SSL *ssl;
    int fd, how;

    start();
    len = client_hello(hello, sizeof(hello));
    for (how = 0; how < 2; how++) {
        for (i = 0; i <= len; i++) {
            fd = tcp_connect();
            if (i > 0)
                cr_assert_eq(write(fd, hello, i), (ssize_t)i);
            if (how == 0)
                close(fd);
            else
                reset(fd);
        }
    }
    for (how = 0; how < 3; how++) {
        for (i = 0; i < sizeof(request); i++) {
            ssl = tls_connect();
            if (i > 0)
                cr_assert_eq(SSL_write(ssl, request, (int)i), (int)i);
            if (i % 3 == 0)
                usleep(1000); /* now the server has seen them, now it has not */
            if (how == 0) {
                tls_close(ssl);
            } else if (how == 1) {
                tls_reset(ssl);
            } else {
                fd = SSL_get_fd(ssl);
                SSL_free(ssl);
                close(fd);
            }
            if (i % 7 == 0)
                do_(act_answer);
        }
    }
    ssl = tls_connect();
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    tls_close(ssl);
    stop();
}

/* What a client may do, none of it checked: only the server's health is. */
static void *
be_rude(void *arg)
{
    static const char request[] =
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde" GET("/big")
            GET("/abort");
    unsigned seed = (unsigned)(uintptr_t)arg;
    int64_t end = now_ms() + 3000;
    struct timeval tv = {.tv_usec = 200000};
    char sink[4096];

    while (now_ms() < end) {
        int fd = tcp_connect(), n;
        SSL *ssl = SSL_new(client());

        SSL_set_fd(ssl, fd);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
        if (rand_r(&seed) % 8 == 0)
            shutdown(fd, rand_r(&seed) % 3);
        if (SSL_connect(ssl) == 1) {
            n = rand_r(&seed) % (int)sizeof(request);
            if (n > 0)
                SSL_write(ssl, request, n);
            if (n < (int)sizeof(request) - 1 && rand_r(&seed) % 2 == 0)
                SSL_write(ssl, request + n, (int)sizeof(request) - 1 - n);
            n = rand_r(&seed) % 40;
            while (n-- > 0 && SSL_read(ssl, sink, sizeof(sink)) > 0)
                ;
            if (rand_r(&seed) % 2 == 0)
                SSL_shutdown(ssl);
        }
        ERR_clear_error();
        SSL_free(ssl);
        if (rand_r(&seed) % 2 == 0)
            reset(fd);
        else
            close(fd);
    }
    return NULL;
}

Test(web, survives_many_rude_clients_at_once)
{
    pthread_t thread[8];
    uintptr_t i;
    SSL *ssl;

    S.limits.handshakes = 6;
    S.limits.connections = 12;
    S.limits.answer_timeout = 1;
    start();
    client();
    for (i = 0; i < 8; i++)
        pthread_create(&thread[i], NULL, be_rude, (void *)(i + 1));
    for (i = 0; i < 8; i++)
        pthread_join(thread[i], NULL);
    ssl = tls_connect();
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    tls_close(ssl);
    fprintf(stderr, "%llu connections, %llu requests, %llu handshakes failed\n",
            (unsigned long long)counted(CT_CONNECTIONS_TOTAL),
            (unsigned long long)counted(CT_HTTP_REQUESTS),
            (unsigned long long)counted(CT_HANDSHAKES_FAILED));
    stop();
}

/* node's socket.end(request): the half that sends is closed, and the answer is awaited. */
Test(web, answers_a_client_that_has_ended_its_half)
{
    SSL *ssl;
    int i;

    start();
    for (i = 0; i < 20; i++) {
        ssl = tls_connect();
        tls_send(ssl, i % 2 ? GET("/") GET("/") : GET("/"));
        SSL_shutdown(ssl);
        shutdown(SSL_get_fd(ssl), SHUT_WR);
        cr_assert_eq(tls_answer(ssl), 200);
        if (i % 2)
            cr_assert_eq(tls_answer(ssl), 200);
        cr_assert(tls_ended(ssl));
        close(SSL_get_fd(ssl));
        SSL_free(ssl);
    }
    ssl = tls_connect();
    tls_send(ssl, GET("/hold"));
    SSL_shutdown(ssl);
    while (S.holding == 0)
        usleep(1000);
    usleep(50000);
    do_(act_answer);
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert(tls_ended(ssl));
    close(SSL_get_fd(ssl));
    SSL_free(ssl);
    cr_assert(open_becomes(0, 2000));
    stop();
}

Test(web, an_answer_to_who_left_reaches_nobody_else)
{
    SSL *ssl;

    start();
    ssl = tls_connect();
    tls_send(ssl, GET("/hold"));
    while (S.holding == 0)
        usleep(1000);
    tls_reset(ssl);
    cr_assert(open_becomes(0, 2000));
    do_(act_answer);
    ssl = tls_connect();
    do_(act_answer);
    do_(act_abort);
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    cr_assert_str_eq(got, "hello");
    tls_close(ssl);
    stop();
}

Test(web, an_abort_says_nothing)
{
    SSL *ssl;
    char c;

    start();
    ssl = tls_connect();
    tls_send(ssl, GET("/abort"));
    cr_assert_leq(SSL_read(ssl, &c, 1), 0);
    cr_assert_eq(SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN, 0);
    tls_reset(ssl);
    ssl = tls_connect();
    tls_send(ssl, GET("/hold"));
    while (S.holding == 0)
        usleep(1000);
    do_(act_abort);
    cr_assert_leq(SSL_read(ssl, &c, 1), 0);
    cr_assert_eq(SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN, 0);
    tls_reset(ssl);
    cr_assert(open_becomes(0, 2000));
    stop();
}

Test(web, a_drain_ends_what_idles_and_finishes_the_rest)
{
    SSL *idle, *held, *half;
    int fd;

    start();
    idle = tls_connect();
    tls_send(idle, GET("/"));
    cr_assert_eq(tls_answer(idle), 200);
    half = tls_connect();
    tls_send(half, "GET / HTTP/1.1\r\n");
    held = tls_connect();
    tls_send(held, GET("/hold"));
    while (S.holding == 0)
        usleep(1000);
    usleep(50000);
    do_(act_drain);
    cr_assert(tls_ended(idle));
    fd = tcp_connect(); /* stays in the backlog */
    do_(act_open);
    cr_assert_eq(opened, 2);
    tls_send(half, "Host: x\r\n\r\n");
    cr_assert_eq(tls_answer(half), 200);
    cr_assert_not_null(strstr(got_head, "Connection: close"));
    cr_assert(tls_ended(half));
    tls_close(half);
    do_(act_answer);
    cr_assert_eq(tls_answer(held), 200);
    cr_assert_str_eq(got, "late");
    cr_assert_not_null(strstr(got_head, "Connection: close"));
    cr_assert(tls_ended(held));
    tls_close(held);
    tls_close(idle);
    cr_assert(open_becomes(0, 2000));
    close(fd);
    stop();
}

Test(web, is_freed_with_connections_in_every_phase)
{
    SSL *ssl[4];
    int fd, i;

    start();
    fd = tcp_connect();
    for (i = 0; i < 4; i++)
        ssl[i] = tls_connect();
    tls_send(ssl[1], "GET");
    tls_send(ssl[2], GET("/hold"));
    tls_send(ssl[3], GET("/big"));
    usleep(200000);
    stop();
    for (i = 0; i < 4; i++)
        tls_reset(ssl[i]);
    close(fd);
}

/* Memory */

static long
resident_kib(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    long total, resident;

    cr_assert_eq(fscanf(f, "%ld %ld", &total, &resident), 2);
    fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

#if defined(__SANITIZE_ADDRESS__)
#define RSS_MATTERS 0
#else
#define RSS_MATTERS 1
#endif

/* The clients are another process: what they hold must not be counted. */
Test(web, an_idle_connection_costs_little_memory)
{
    const int n = RSS_MATTERS ? 1000 : 100;
    int up[2], down[2], i;
    long before, after;
    struct rlimit lim;
    SSL *ssl;
    char c = 'x';
    pid_t pid;

    getrlimit(RLIMIT_NOFILE, &lim);
    lim.rlim_cur = lim.rlim_max;
    setrlimit(RLIMIT_NOFILE, &lim);
    cr_assert_eq(pipe(up), 0);
    cr_assert_eq(pipe(down), 0);
    if ((pid = fork()) == 0) {
        close(down[1]);
        if (read(down[0], &S.port, sizeof(S.port)) != sizeof(S.port))
            _exit(1);
        for (i = 0; i < n; i++) {
            ssl = SSL_new(client());
            SSL_set_fd(ssl, tcp_connect());
            if (SSL_connect(ssl) != 1)
                _exit(1);
            SSL_write(ssl, GET("/"), (int)strlen(GET("/")));
            if (tls_answer(ssl) != 200)
                _exit(1);
        }
        if (write(up[1], &c, 1) != 1 || read(down[0], &c, 1) < 0)
            _exit(1);
        _exit(0);
    }
    start();
    ssl = tls_connect(); /* what is allocated once, is now */
    tls_send(ssl, GET("/"));
    cr_assert_eq(tls_answer(ssl), 200);
    before = resident_kib();
    cr_assert_eq(write(down[1], &S.port, sizeof(S.port)), (ssize_t)sizeof(S.port));
    cr_assert_eq(read(up[0], &c, 1), 1);
    cr_assert(open_becomes((size_t)n + 1, 2000));
    after = resident_kib();
    fprintf(stderr, "%d idle TLS connections: %.1f KiB each\n", n, (double)(after - before) / n);
    if (RSS_MATTERS)
        cr_assert_lt((double)(after - before) / n, 24.0);
    close(down[1]);
    waitpid(pid, NULL, 0);
    tls_close(ssl);
    cr_assert(open_becomes(0, 5000));
    stop();
}
