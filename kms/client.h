/*
 * client.h - a small client of the KMS protocol: a channel, and requests on it.
 *
 * Synchronous, one server, one principal.  It trusts nothing that is not proved: the static key by
 * its certificate chain and the domain in it, signed answers by the static key, all others by the
 * channel's key, and each by its requestId.
 */
#ifndef KMS_CLIENT_H
#define KMS_CLIENT_H

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/jwe.h"
#include "proto/secret.h"

struct client;

/* Bytes of a content that sealed with jwe_seal_dir is not longer than JWE_MAX. */
#define CLIENT_CONTENT_MAX (JWE_MAX / 4 * 3 - 1024)

/*
 * All borrowed: must outlive the client.  The principal is a user by token, or a service by
 * cert_file and key_file (protocol section 8): over mutual TLS, or, as behind a relay, by x5c and a
 * proof in the request for the channel, and without a certificate of the connection.
 */
struct client_options {
    const char *url;       /* https://HOST[:PORT] */
    const char *domain;    /* of kms: URIs, lower case */
    const char *ca_file;   /* PEM; NULL: the system's CAs */
    const char *token;     /* the access token; NULL: a service */
    const char *cert_file; /* PEM: a service's certificate and its chain, leaf first; else NULL */
    const char *key_file;  /* PEM: its private key */
    bool relay;
    const char *client_id;    /* "" for none */
    const char *on_behalf_of; /* a user id for all but channel requests; NULL: none */
    const char *state_file;   /* where channels are kept between runs; NULL: nowhere */
    unsigned timeout;         /* seconds, for each exchange */
};

/*
 * Functions below that can fail return KMS_OK or
 *   KMS_ERR_STATE        the server refused: client_refusal has its answer, or it is NULL and
 * client_error says what HTTP said KMS_ERR_CONFIG       options or the state file are no good
 *   KMS_ERR_SYSTEM, KMS_ERR_TIMEOUT  no connection, or no answer
 *   KMS_ERR_CRYPTO       what came is not proved to be from the server of this domain
 *   KMS_ERR_PROTOCOL     it is, but it is not the protocol
 *   KMS_ERR_NOMEM, KMS_ERR_INTERNAL
 * and client_error tells people more.
 */

/* Reads the state file, connects nowhere yet.  *out is made in every case but KMS_ERR_NOMEM, for
 * the sake of client_error. */
int client_new(struct client **out, const struct client_options *options);
void client_free(struct client *c); /* NULL is fine */

const char *client_error(const struct client *c);     /* borrowed until the next call */
const json_t *client_refusal(const struct client *c); /* borrowed until the next call; NULL: none */

/* Makes sure that there is a channel; fresh: a new one in any case. */
int client_open(struct client *c, bool fresh);
/* The channel that there is: its URI (NULL: none), and when it ends in milliseconds since 1970. */
const char *client_channel(const struct client *c);
int64_t client_channel_expires(const struct client *c);
/* Deletes the channel on the server and from the state. */
int client_close(struct client *c);

/*
 * Sends n requests (objects with method, uri and what belongs to them; client and requestId are
 * added here) in one POST and gives n new answers in answers, in the same order, successes and
 * refusals alike.  Opens a channel if there is none.  Where the server does not know a channel any
 * more, those requests are sent once more on a new one.  On failure answers are all NULL.
 */
int client_call_many(struct client *c, json_t **requests, size_t n, json_t **answers);
/* One request.  KMS_OK: *answer is a new reference and its status is 2xx.  KMS_ERR_STATE: refused,
 * see client_refusal. */
int client_call(struct client *c, json_t *request, json_t **answer);

/*
 * Retrieves the content key of that URI.  members: what the request has besides (purpose, matter;
 * NULL: nothing); open_with: the private key of a service that gets keys sealed (NULL: none).
 */
int client_get_key(struct client *c, const char *uri, const json_t *members, EVP_PKEY *open_with,
                   struct secret **out);

/*
 * In an answer with keys: each key's "jwe" is opened with the private key and its "jwk" put in the
 * place; it must be an AES-256 key of the key's own URI.  KMS_ERR_CRYPTO: one is not for this key,
 * or not what it says.
 */
int client_open_keys(struct client *c, json_t *answer, EVP_PKEY *open_with);

/*
 * The static key of an rsaPublicKey (protocol section 1): a JWK whose kid is of the domain, and
 * whose certificate chain x5c leads to one of cas, is for domain, and certifies this very key. *key
 * is the caller's; *kid borrowed from the JWK; *why a static text. KMS_ERR_CRYPTO: not to be
 * trusted.
 */
int client_check_static_key(EVP_PKEY **key, const char **kid, const json_t *jwk, const char *domain,
                            X509_STORE *cas, const char **why);

#endif
