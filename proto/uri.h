/*
 * uri.h - kms: URIs, relative and absolute, and the forms of section 4 of the protocol.
 */
#ifndef PROTO_URI_H
#define PROTO_URI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;

#define UUID_LEN        16
#define UUID_TEXT       36
#define KMS_DOMAIN_MAX  253
#define KMS_AUTHID_MAX  256
#define KMS_PURPOSE_MAX 64

struct uuid {
    unsigned char b[UUID_LEN];
};

/* A random one, version 4 (RFC 9562), from OpenSSL's generator.  KMS_OK, KMS_ERR_INTERNAL. */
int uuid_random(struct uuid *out);
/* Exactly 36 characters, hexadecimal in either case.  KMS_ERR_SYNTAX. */
int uuid_parse(struct uuid *out, const char *text, size_t len);
/* 36 characters in lower case and a NUL. */
void uuid_format(char out[UUID_TEXT + 1], const struct uuid *u);

/* What a URI names.  ID is a UUID where there is one. */
enum uri_kind {
    URI_ECDHE,                   /* /ecdhe */
    URI_ECDHE_ID,                /* /ecdhe/ID */
    URI_PING,                    /* /ping */
    URI_KEYS,                    /* /keys */
    URI_KEY,                     /* /keys/ID */
    URI_RESOURCES,               /* /resources */
    URI_RESOURCE,                /* /resources/ID */
    URI_RESOURCE_KEYS,           /* /resources/ID/keys */
    URI_RESOURCE_AUTHORIZATIONS, /* /resources/ID/authorizations, perhaps with ?authId= */
    URI_AUTHORIZATIONS,          /* /authorizations */
    URI_AUTHORIZATION,           /* /authorizations/ID */
    URI_RESOURCE_RELEASES,       /* /resources/ID/releases */
    URI_PURPOSE_KEYS,            /* /purposes/NAME/keys */
    URI_MATTER_KEYS,             /* /matters/ID/keys */
    URI_RESOURCE_RECORDINGS,     /* /resources/ID/recordings */
    URI_RECORDING,               /* /recordings/ID */
    URI_PUBLIC_KEY,              /* /publicKey */
    URI_CMKS,                    /* /cmk */
    URI_CMK,                     /* /cmk/ID */
    URI_DEFAULT_CMK,             /* default: the server's own root, in the place of a main key */
};

struct kms_uri {
    enum uri_kind kind;
    struct uuid id;
    char auth_id[KMS_AUTHID_MAX + 1];  /* of ?authId=, percent-decoded; "" when there is none */
    char purpose[KMS_PURPOSE_MAX + 1]; /* NAME of URI_PURPOSE_KEYS, percent-decoded: any, whether
                                          there is such a purpose or not; else "" */
};

/*
 * Parses a URI of domain (lower case), relative ("/keys/ID") or absolute ("kms://DOMAIN/keys/ID";
 * scheme and host in any case), or the word that the SDK has for the root. KMS_ERR_SYNTAX:
 * malformed, or a path that the protocol does not have; KMS_ERR_NOT_FOUND: another domain, or an ID
 * that is not a UUID (well formed, but it names nothing here: the static key's kid is one of
 * these).  A purpose's name of more than KMS_PURPOSE_MAX bytes, or with control characters, a query
 * other than one authId, or one where it does not belong: KMS_ERR_SYNTAX.
 */
int kms_uri_parse(struct kms_uri *out, const char *text, size_t len, const char *domain);

/* Appends "kms://DOMAIN/COLLECTION/ID". */
int kms_uri_put(struct buf *out, const char *domain, const char *collection, const struct uuid *id);

/*
 * True when text is UTF-8 without control characters (U+0000 to U+001F, U+007F to U+009F): fit for
 * an identifier that will stand in logs and answers.
 */
bool kms_text_ok(const char *text, size_t len);

#endif
