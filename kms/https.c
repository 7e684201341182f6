/*
 * https.c - TLS and HTTP/1.1 for one exchange at a time, with one deadline for the whole of it.
 */
#include "kms/https.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/http.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kms/clock.h"
#include "proto/buf.h"
#include "proto/err.h"

struct https {
    char *host;   /* as the URL has it, IPv6 in brackets */
    char *name;   /* the same without brackets */
    char *port;   /* owned */
    char *prefix; /* of every path; without a slash at the end */
    bool is_address;
    unsigned timeout;
    SSL_CTX *ctx;
    SSL *ssl;         /* NULL: not connected */
    bool sent;        /* of this exchange: sending has begun */
    int fd;           /* -1: not connected */
    int64_t deadline; /* of this exchange, in milliseconds of the monotonic clock */
    struct buf in;    /* what has arrived of the current answer */
    char error[512];
};

static int fail(struct https *h, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int
fail(struct https *h, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(h->error, sizeof(h->error), fmt, ap);
    va_end(ap);
    return err;
}

const char *
https_error(const struct https *h)
{
    return h->error;
}

bool
https_sent(const struct https *h)
{
    return h->sent;
}

X509_STORE *
https_cas(const struct https *h)
{
    return SSL_CTX_get_cert_store(h->ctx);
}

static void
disconnect(struct https *h)
{
    if (h->ssl != NULL) {
        SSL_shutdown(h->ssl); /* one way: we do not wait for the other's */
        SSL_free(h->ssl);
        h->ssl = NULL;
    }
    if (h->fd != -1)
        close(h->fd);
    h->fd = -1;
    buf_reset(&h->in);
}

/* What OpenSSL has to say, or what errno has. */
static const char *
tls_reason(void)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());

    return reason != NULL ? reason : errno != 0 ? strerror(errno) : "the connection was closed";
}

static int
parse_url(struct https *h, const char *url)
{
    char *path = NULL, *query = NULL, *fragment = NULL, *user = NULL;
    unsigned char address[sizeof(struct in6_addr)];
    int tls = 0, ok;
    size_t n;

    ok = OSSL_HTTP_parse_url(url, &tls, &user, &h->host, &h->port, NULL, &path, &query, &fragment);
    ERR_clear_error();
    if (ok && (!tls || *h->host == '\0' || (user != NULL && *user != '\0') ||
               (query != NULL && *query != '\0') || (fragment != NULL && *fragment != '\0')))
        ok = 0;
    if (ok) {
        n = strlen(h->host);
        h->name = h->host[0] == '[' ? strndup(h->host + 1, n - 2) : strdup(h->host);
        h->prefix = strdup(path);
        ok = h->name != NULL && h->prefix != NULL;
    }
    if (ok) {
        for (n = strlen(h->prefix); n > 0 && h->prefix[n - 1] == '/'; n--)
            h->prefix[n - 1] = '\0';
        h->is_address =
            inet_pton(AF_INET, h->name, address) == 1 || inet_pton(AF_INET6, h->name, address) == 1;
    }
    OPENSSL_free(user);
    OPENSSL_free(path);
    OPENSSL_free(query);
    OPENSSL_free(fragment);
    return ok ? KMS_OK : fail(h, KMS_ERR_CONFIG, "%s: not a URL like https://HOST:PORT", url);
}

static int
make_context(struct https *h, const char *ca_file)
{
    if ((h->ctx = SSL_CTX_new(TLS_client_method())) == NULL)
        return fail(h, KMS_ERR_NOMEM, "out of memory");
    SSL_CTX_set_min_proto_version(h->ctx, TLS1_2_VERSION);
    SSL_CTX_set_verify(h->ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(h->ctx, SSL_MODE_AUTO_RETRY);
    if (ca_file == NULL ? !SSL_CTX_set_default_verify_paths(h->ctx)
                        : !SSL_CTX_load_verify_file(h->ctx, ca_file)) {
        fail(h, 0, "%s: cannot read CA certificates: %s",
             ca_file == NULL ? "the system's CAs" : ca_file, tls_reason());
        ERR_clear_error();
        return KMS_ERR_CONFIG;
    }
    return KMS_OK;
}

int
https_new(struct https **out, const char *url, const char *ca_file, unsigned timeout)
{
    struct https *h = calloc(1, sizeof(*h));
    int r;

    if ((*out = h) == NULL)
        return KMS_ERR_NOMEM;
    h->fd = -1;
    h->timeout = timeout;
    buf_init(&h->in);
    if ((r = parse_url(h, url)) != KMS_OK)
        return r;
    return make_context(h, ca_file);
}

void
https_free(struct https *h)
{
    if (h == NULL)
        return;
    disconnect(h);
    buf_release(&h->in);
    SSL_CTX_free(h->ctx);
    OPENSSL_free(h->host);
    OPENSSL_free(h->port);
    free(h->name);
    free(h->prefix);
    free(h);
}

int
https_set_certificate(struct https *h, const char *cert_file, const char *key_file)
{
    const char *file = cert_file;

    errno = 0;
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(h->ctx, cert_file) == 1) {
        file = key_file;
        if (SSL_CTX_use_PrivateKey_file(h->ctx, key_file, SSL_FILETYPE_PEM) == 1)
            return KMS_OK;
    }
    fail(h, 0, "%s: %s", file, tls_reason());
    ERR_clear_error();
    return KMS_ERR_CONFIG;
}

/* Waits until the socket can do what is wanted: POLLIN or POLLOUT. */
static int
wait_for(struct https *h, short events)
{
    struct pollfd p = {.fd = h->fd, .events = events};
    int64_t left;
    int n;

    do {
        left = h->deadline - now_ms();
        n = left <= 0 ? 0 : poll(&p, 1, (int)left);
    } while (n == -1 && errno == EINTR);
    if (n == 0)
        return fail(h, KMS_ERR_TIMEOUT, "%s:%s: no answer in time", h->host, h->port);
    return n > 0 ? KMS_OK : fail(h, KMS_ERR_SYSTEM, "poll: %s", strerror(errno));
}

/* The socket does not block, so that the deadline holds for the whole and not for each step. */
static int
connect_address(struct https *h, const struct addrinfo *a)
{
    socklen_t len = sizeof(int);
    int r, on = 1, error = 0;

    h->fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (h->fd == -1)
        return fail(h, KMS_ERR_SYSTEM, "socket: %s", strerror(errno));
    setsockopt(h->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(h->fd, a->ai_addr, a->ai_addrlen) == 0)
        return KMS_OK;
    error = errno;
    if (error == EINPROGRESS) {
        if ((r = wait_for(h, POLLOUT)) != KMS_OK)
            return r;
        if (getsockopt(h->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
            error = errno;
    }
    if (error == 0)
        return KMS_OK;
    return fail(h, KMS_ERR_SYSTEM, "%s:%s: %s", h->host, h->port, strerror(error));
}

static int
connect_socket(struct https *h)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list, *a;
    int r;

    if ((r = getaddrinfo(h->name, h->port, &hints, &list)) != 0)
        return fail(h, KMS_ERR_SYSTEM, "%s: %s", h->name, gai_strerror(r));
    r = fail(h, KMS_ERR_SYSTEM, "%s: no address", h->name);
    for (a = list; a != NULL; a = a->ai_next) {
        if ((r = connect_address(h, a)) == KMS_OK || r == KMS_ERR_TIMEOUT)
            break;
        disconnect(h);
    }
    freeaddrinfo(list);
    return r;
}

/* What to do after SSL_... returned n <= 0: KMS_OK is to call it again. */
static int
after_tls(struct https *h, int n, int err)
{
    switch (SSL_get_error(h->ssl, n)) {
    case SSL_ERROR_WANT_READ:
        return wait_for(h, POLLIN);
    case SSL_ERROR_WANT_WRITE:
        return wait_for(h, POLLOUT);
    default:
        return fail(h, err, "%s:%s: %s", h->host, h->port, tls_reason());
    }
}

/* Each SSL_... call must find the queue of errors and errno empty, or it speaks of older ones. */
static void
before_tls(void)
{
    ERR_clear_error();
    errno = 0;
}

static int
connect_tls(struct https *h)
{
    X509_VERIFY_PARAM *param;
    long verified;
    int ok, n, r = KMS_OK;

    if ((h->ssl = SSL_new(h->ctx)) == NULL || SSL_set_fd(h->ssl, h->fd) != 1)
        return fail(h, KMS_ERR_NOMEM, "out of memory");
    param = SSL_get0_param(h->ssl);
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (h->is_address)
        ok = X509_VERIFY_PARAM_set1_ip_asc(param, h->name);
    else
        ok = X509_VERIFY_PARAM_set1_host(param, h->name, 0) &&
             SSL_set_tlsext_host_name(h->ssl, h->name);
    if (!ok)
        return fail(h, KMS_ERR_INTERNAL, "%s: OpenSSL does not take this name", h->name);
    do {
        before_tls();
        n = SSL_connect(h->ssl);
    } while (n != 1 && (r = after_tls(h, n, KMS_ERR_CRYPTO)) == KMS_OK);
    verified = SSL_get_verify_result(h->ssl);
    if (r == KMS_ERR_CRYPTO && verified != X509_V_OK)
        fail(h, r, "%s:%s: the server's certificate is not to be trusted: %s", h->host, h->port,
             X509_verify_cert_error_string(verified));
    return r;
}

/*
 * Whether the server has closed a kept connection.  To be asked before a request is sent:
 * afterwards nobody knows whether it was carried out.  Reading also takes in what may come unasked,
 * TLS session tickets.
 */
static bool
is_closed(struct https *h)
{
    char c;
    int n;

    before_tls();
    n = SSL_peek(h->ssl, &c, 1);
    return n > 0 || SSL_get_error(h->ssl, n) != SSL_ERROR_WANT_READ;
}

static int
connect_if_needed(struct https *h)
{
    int r;

    if (h->ssl != NULL && is_closed(h))
        disconnect(h);
    if (h->ssl != NULL)
        return KMS_OK;
    if ((r = connect_socket(h)) != KMS_OK)
        return r;
    return connect_tls(h);
}

static int
send_all(struct https *h, const unsigned char *p, size_t len)
{
    int r = KMS_OK;

    h->sent = true;
    while (len > 0 && r == KMS_OK) {
        size_t n = 0;
        int ok;

        before_tls();
        if ((ok = SSL_write_ex(h->ssl, p, len, &n)) != 1)
            r = after_tls(h, ok, KMS_ERR_SYSTEM);
        p += n;
        len -= n;
    }
    return r;
}

/* More of the answer, at most max bytes in all. */
static int
receive(struct https *h, size_t max)
{
    size_t n = 0, room;
    int ok, r;

    if ((r = buf_reserve(&h->in, h->in.len == 0 ? 4096 : h->in.len)) != KMS_OK)
        return fail(h, r, "out of memory");
    room = max - h->in.len;
    if (room > h->in.cap - h->in.len)
        room = h->in.cap - h->in.len;
    do {
        before_tls();
        ok = SSL_read_ex(h->ssl, h->in.data + h->in.len, room, &n);
    } while (ok != 1 && (r = after_tls(h, ok, KMS_ERR_SYSTEM)) == KMS_OK);
    h->in.len += n;
    h->in.data[h->in.len] = '\0';
    return ok == 1 ? KMS_OK : r;
}

/* The value of a field line that begins with name and a colon; NULL: another field. */
static const char *
field_value(const char *line, const char *end, const char *name, size_t *len)
{
    size_t n = strlen(name);

    if ((size_t)(end - line) <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
        return NULL;
    line += n + 1;
    while (line < end && (*line == ' ' || *line == '\t'))
        line++;
    while (end > line && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *len = (size_t)(end - line);
    return line;
}

static bool
parse_length(size_t *out, const char *text, size_t len)
{
    size_t i;

    *out = 0;
    for (i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || *out > HTTPS_BODY_MAX)
            return false;
        *out = *out * 10 + (size_t)(text[i] - '0');
    }
    return len > 0 && *out <= HTTPS_BODY_MAX;
}

int
https_head_parse(struct https_head *head, const char *data, size_t len)
{
    const char *end = len < 4 ? NULL : memmem(data, len, "\r\n\r\n", 4), *line, *eol, *value;
    bool has_length = false;
    size_t n, length;

    memset(head, 0, sizeof(*head));
    if (end == NULL)
        return len < HTTPS_HEAD_MAX ? KMS_ERR_AGAIN : KMS_ERR_PROTOCOL;
    head->head_len = (size_t)(end - data) + 4;
    end += 2;
    if (head->head_len > HTTPS_HEAD_MAX || (size_t)(end - data) < strlen("HTTP/1.1 200\r\n") ||
        memcmp(data, "HTTP/1.", 7) != 0 || (data[7] != '0' && data[7] != '1') || data[8] != ' ' ||
        !parse_length(&n, data + 9, 3) || n < 100 || n > 599 ||
        (data[12] != ' ' && data[12] != '\r'))
        return KMS_ERR_PROTOCOL;
    head->status = (int)n;
    head->keep_alive = data[7] == '1';
    line = memmem(data, (size_t)(end - data), "\r\n", 2);
    for (line += 2; line < end; line = eol + 2) {
        eol = memmem(line, (size_t)(end - line), "\r\n", 2);
        if (field_value(line, eol, "Transfer-Encoding", &n) != NULL)
            return KMS_ERR_PROTOCOL; /* only behind a proxy that makes its own */
        if ((value = field_value(line, eol, "Content-Length", &n)) != NULL) {
            if (has_length || !parse_length(&length, value, n))
                return KMS_ERR_PROTOCOL;
            has_length = true;
            head->content_length = length;
        }
        if ((value = field_value(line, eol, "Connection", &n)) != NULL && n == 5 &&
            strncasecmp(value, "close", 5) == 0)
            head->keep_alive = false;
    }
    if (!has_length && head->status >= 200 && head->status != 204 && head->status != 304)
        return KMS_ERR_PROTOCOL;
    return KMS_OK;
}

static int
read_answer(struct https *h, int *status, struct buf *answer, bool *keep)
{
    struct https_head head;
    int r;

    do {
        while ((r = https_head_parse(&head, buf_str(&h->in), h->in.len)) == KMS_ERR_AGAIN)
            if ((r = receive(h, HTTPS_HEAD_MAX + HTTPS_BODY_MAX)) != KMS_OK)
                return r;
        if (r != KMS_OK)
            return fail(h, r, "%s:%s: this is no HTTP answer that we understand", h->host, h->port);
        buf_consume(&h->in, head.head_len);
    } while (head.status < 200);
    while (h->in.len < head.content_length)
        if ((r = receive(h, head.content_length)) != KMS_OK)
            return r;
    *status = head.status;
    *keep = head.keep_alive && h->in.len == head.content_length;
    if (buf_put(answer, h->in.data, head.content_length) != KMS_OK)
        return fail(h, KMS_ERR_NOMEM, "out of memory");
    buf_reset(&h->in);
    return KMS_OK;
}

static int
put_request(struct https *h, struct buf *out, const char *method, const char *path,
            const void *body, size_t len)
{
    int r = buf_putf(out, "%s %s%s HTTP/1.1\r\nHost: %s", method, h->prefix, path, h->host);

    if (r == KMS_OK && strcmp(h->port, "443") != 0)
        r = buf_putf(out, ":%s", h->port);
    if (r == KMS_OK)
        r = buf_puts(out, "\r\nAccept: application/json\r\n");
    if (r == KMS_OK && body != NULL)
        r = buf_putf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", len);
    if (r == KMS_OK)
        r = buf_puts(out, "\r\n");
    if (r == KMS_OK && body != NULL)
        r = buf_put(out, body, len);
    return r == KMS_OK ? r : fail(h, r, "out of memory");
}

int
https_exchange(struct https *h, const char *method, const char *path, const void *body, size_t len,
               int *status, struct buf *answer)
{
    struct buf request = BUF_INIT;
    bool keep = false;
    int r;

    h->error[0] = '\0';
    h->sent = false;
    h->deadline = now_ms() + (int64_t)h->timeout * 1000;
    if ((r = put_request(h, &request, method, path, body, len)) == KMS_OK &&
        (r = connect_if_needed(h)) == KMS_OK &&
        (r = send_all(h, request.data, request.len)) == KMS_OK)
        r = read_answer(h, status, answer, &keep);
    if (!keep)
        disconnect(h);
    buf_release(&request);
    return r;
}
