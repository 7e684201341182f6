/*
 * token.h - who is asking: bearer tokens, checked against the identity provider's key set or by
 * introspection.
 *
 * A JWT is verified here with a key set that is fetched in the background (file or https), kept
 * when the provider is away, and fetched again for an unknown kid, but not more often than
 * configured.  An opaque token is asked about by RFC 7662.  What was verified once is remembered by
 * the token's SHA-256 until it expires (introspection: until its cache time), in bounded memory.
 */
#ifndef KMS_TOKEN_H
#define KMS_TOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/jwt.h"

struct config;
struct event_base;
struct tokens;

/* NULL: no memory.  A key set file that cannot be read, or a provider that is away, is logged and
 * tried again. */
struct tokens *tokens_new(struct event_base *base, const struct config *c);
void tokens_free(struct tokens *t);
/* Takes the new configuration; forgets what was verified; keeps the key set until the new one is
 * there. */
void tokens_reload(struct tokens *t, const struct config *c);
/* There is a key set that is fresh enough, or introspection is configured. */
bool tokens_ready(const struct tokens *t);

/* err as tokens_verify's; who is borrowed. */
typedef void token_cb(void *ctx, uint64_t id, int err, const struct jwt_identity *who);

/*
 * KMS_OK: *who is filled, no callback.  KMS_ERR_AGAIN: the callback will come with id.  Otherwise
 * refused, no callback: KMS_ERR_EXPIRED; KMS_ERR_UNAVAILABLE (nothing to check it with now); any
 * other: not acceptable. The token's text is not kept; c's strings must live as long as t.
 */
int tokens_verify(struct tokens *t, const char *bearer, struct jwt_identity *who, token_cb *cb,
                  void *ctx, uint64_t id);

#endif
