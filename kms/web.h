/*
 * web.h - HTTPS connections on libevent's bufferevents: accept, TLS, one request at a time, one
 * answer.
 *
 * Knows nothing of the KMS protocol.  A whole request (head and body) goes to the handler; the
 * answer comes later, by the connection's id, and is dropped when the client has left.  Every phase
 * (handshake, head, body, answer, idle) has an absolute deadline that bytes trickling in do not
 * move.  Without an SSL_CTX it speaks plain HTTP (the metrics address).
 */
#ifndef KMS_WEB_H
#define KMS_WEB_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/buf.h"
#include "proto/http.h"

struct config;
struct event_base;
struct web;

/*
 * A request that arrived whole.  http and body are borrowed and valid until the handler returns;
 * the handler must take what it keeps.  peer: the client's address as text.  chain: the client's
 * TLS certificate and those above it as they were verified in the handshake, leaf first, borrowed,
 * the same ones for each request of a connection; NULL: it showed none.  Exactly one of web_answer
 * and web_abort must follow, now or later.
 */
typedef void web_handler(void *ctx, uint64_t conn, const struct http_request *http,
                         const char *body, size_t body_len, const char *peer,
                         STACK_OF(X509) * chain);

struct web_limits {
    long long connections, connections_source, handshakes;
    long long handshake_timeout, head_timeout, body_timeout, answer_timeout,
        idle_timeout; /* seconds */
    size_t body_max;  /* bytes */
};

/*
 * Serves an inherited, listening, non-blocking socket.  tls: borrowed reference is taken (up'd);
 * NULL: plain.  NULL: no memory.
 */
struct web *web_new(struct event_base *base, int listen_fd, SSL_CTX *tls,
                    const struct web_limits *limits, web_handler *handler, void *ctx);
/* Closes everything at once. */
void web_free(struct web *w);

/* The TLS context and limits for connections that come from now on; the others keep theirs. */
void web_reload(struct web *w, SSL_CTX *tls, const struct web_limits *limits);

/*
 * Answers with a body that is taken over (empty afterwards).  content_type: NULL for
 * application/json.  retry_after: seconds, 0 for none.  close: after this answer.  The connection
 * may be gone: then nothing happens.
 */
void web_answer(struct web *w, uint64_t conn, int status, const char *content_type,
                struct buf *body, int retry_after, bool close);
/* Closes without an answer: for a request whose outcome nobody knows. */
void web_abort(struct web *w, uint64_t conn);

/* Stops accepting; idle connections are closed after a second, requests that come until then or are
 * under way are answered with Connection: close. */
void web_drain(struct web *w);
/* Connections that are open; 0 after a drain: done. */
size_t web_open(const struct web *w);

/* A TLS 1.2/1.3 server context by the configuration: [tls] certificate, key, [services] ca.  On
 * failure *why says what (static or OpenSSL's text). */
int web_tls_new(SSL_CTX **out, const struct config *c, const char **why);

#endif
