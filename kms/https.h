/*
 * https.h - a small blocking HTTPS client: one server, one connection that is kept, one exchange at
 * a time.
 *
 * For kms-client and the tests.  The server's certificate is always verified, for the host of the
 * URL, against one CA file (or the system's CAs).  Answers must have a Content-Length, as ours
 * have.  SIGPIPE must be ignored by the program.
 */
#ifndef KMS_HTTPS_H
#define KMS_HTTPS_H

#include <openssl/x509.h>
#include <stdbool.h>
#include <stddef.h>

struct buf;
struct https;

#define HTTPS_HEAD_MAX 16384
#define HTTPS_BODY_MAX (16 * 1024 * 1024)

/*
 * For url, "https://HOST[:PORT][/PREFIX]".  ca_file: PEM, NULL for the system's CAs.  timeout:
 * seconds for one exchange.  *out is made in every case but KMS_ERR_NOMEM, for the sake of
 * https_error.  KMS_ERR_CONFIG: the URL or the CA file is no good.
 */
int https_new(struct https **out, const char *url, const char *ca_file, unsigned timeout);
void https_free(struct https *h); /* NULL is fine */

/*
 * Shows this certificate (PEM, leaf first, then the chain) to the server when it asks for one; key:
 * its private key, PEM.  Before the first exchange.  KMS_ERR_CONFIG: the files are no good, or do
 * not belong together.
 */
int https_set_certificate(struct https *h, const char *cert_file, const char *key_file);

/* What the last failure was, for people; borrowed until the next call. */
const char *https_error(const struct https *h);

/* The CAs that the connection trusts; borrowed. */
X509_STORE *https_cas(const struct https *h);

/*
 * Sends one request (body NULL: none; else it is JSON) and appends the body of the answer.  path
 * goes behind the URL's prefix. Never sends a request twice.  KMS_ERR_SYSTEM: no connection, or it
 * broke; KMS_ERR_TIMEOUT; KMS_ERR_CRYPTO: TLS failed, or the certificate is not to be trusted;
 * KMS_ERR_PROTOCOL: no HTTP answer; KMS_ERR_NOMEM.  The connection is closed then.
 */
int https_exchange(struct https *h, const char *method, const char *path, const void *body,
                   size_t len, int *status, struct buf *answer);

/* After a failure: whether anything of the request may have reached the server, so that nobody
 * knows what became of it. */
bool https_sent(const struct https *h);

/* The head of an answer. */
struct https_head {
    int status;
    size_t head_len; /* with the empty line */
    size_t content_length;
    bool keep_alive;
};

/* KMS_OK; KMS_ERR_AGAIN: not all of it yet; KMS_ERR_PROTOCOL: none that we take. */
int https_head_parse(struct https_head *head, const char *data, size_t len);

#endif
