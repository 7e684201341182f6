/*
 * post.h - the endpoints: one HTTP request, split into messages, and their answers put together
 * again (protocol section 1).
 */
#ifndef KMS_POST_H
#define KMS_POST_H

#include <openssl/x509.h>
#include <stdint.h>

#include "kms/req.h"
#include "proto/http.h"

struct posts;
struct worker;

struct posts *posts_new(struct worker *w);
void posts_free(struct posts *ps);

/* kms/web.h's handler; ctx is the worker. */
void post_handle(void *ctx, uint64_t conn, const struct http_request *http, const char *body,
                 size_t body_len, const char *peer, STACK_OF(X509) * chain);

/* A message's answer: text is taken over (when outcome is REQ_ANSWERED).  The last one sends the
 * HTTP answer. */
void post_answer(struct worker *w, uint64_t post, unsigned index, enum req_outcome outcome,
                 struct buf *text);

#endif
