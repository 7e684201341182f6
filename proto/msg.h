/*
 * msg.h - KMS requests and answers: the JSON objects inside the JOSE (protocol sections 2 to 6).
 *
 * kms_request_parse turns bytes into a checked struct; nothing after it looks at the JSON again.
 * The answer side builds one object, in the draft's member names, and is the one place where
 * errorCodes become texts.
 */
#ifndef PROTO_MSG_H
#define PROTO_MSG_H

#include <jansson.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/buf.h"
#include "proto/uri.h"

#define KMS_CLIENT_ID_MAX  512
#define KMS_REQUEST_ID_MAX 1024
#define KMS_LIST_MAX       100  /* authIds, keyUris, count, anonymous */
#define KMS_WALK_MAX       1000 /* count of a walk */
#define KMS_CURSOR_MAX     32   /* bytes of a cursor, decoded */
#define KMS_PROOF_MAX      4096
#define KMS_LOC_MAX        4096 /* bytes of a recording's location */
#define KMS_TAG_LEN        16   /* of a file under AES-GCM; no shorter one is taken */
#define KMS_MAIN_KEY_MAX   512  /* a main key as it is sent, encrypted: RSA-4096 */
#define KMS_TTL_WRONG      INT64_MAX

/* errorCode: status * 1000 + n (protocol section 6). */
enum kms_code {
    KMS_CODE_OK = 0,
    KMS_CODE_MALFORMED = 400001,
    KMS_CODE_MEMBER = 400002,
    KMS_CODE_ALGORITHM = 400003,
    KMS_CODE_TOKEN = 401001,
    KMS_CODE_TOKEN_EXPIRED = 401002,
    KMS_CODE_NOT_AUTHORISED = 403001,
    KMS_CODE_NOT_CREATOR = 403002,
    KMS_CODE_WRONG_CLIENT = 403003,
    KMS_CODE_ROLE = 403004,
    KMS_CODE_PURPOSE = 403005,
    KMS_CODE_NOT_REGISTERED = 403006,
    KMS_CODE_MATTER = 403007,
    KMS_CODE_WRONG_PRINCIPAL = 403009,
    KMS_CODE_ZERO_TRUST = 403010,
    KMS_CODE_NOT_FOUND = 404001,
    KMS_CODE_REVOKED = 405005,
    KMS_CODE_DISABLED = 405006,
    KMS_CODE_BOUND = 409001,
    KMS_CODE_CONFLICT = 409002,
    KMS_CODE_DESTROYED = 410001,
    KMS_CODE_TOO_LARGE = 413001,
    KMS_CODE_RATE = 429001,
    KMS_CODE_RESET = 499001,
    KMS_CODE_NO_BYOK = 501001,
    KMS_CODE_HSM_SILENT = 502001, /* what was asked for needs the HSM, which did not do it */
    KMS_CODE_OVERLOADED = 503001,
    KMS_CODE_HSM = 503002,
    KMS_CODE_DATABASE = 503003,
};

/* A plain sentence for people, without a full stop; static.  "" for a code that is not in the list.
 */
const char *kms_code_reason(int code);

enum kms_method { KMS_CREATE, KMS_RETRIEVE, KMS_UPDATE, KMS_DELETE };

/* The requests there are; each is one row of kmsd's table (kms/req.c). */
enum kms_op {
    OP_CHANNEL_CREATE,        /* create   /ecdhe */
    OP_CHANNEL_DELETE,        /* delete   /ecdhe/ID */
    OP_PING,                  /* update   /ping */
    OP_KEYS_CREATE,           /* create   /keys */
    OP_KEY_BIND,              /* update   /keys/ID */
    OP_KEY_GET,               /* retrieve /keys/ID */
    OP_RESOURCE_CREATE,       /* create   /resources */
    OP_RESOURCE_GET,          /* retrieve /resources/ID */
    OP_RESOURCE_KEYS,         /* retrieve /resources/ID/keys */
    OP_AUTHORIZATIONS_CREATE, /* create   /authorizations */
    OP_AUTHORIZATIONS_LIST,   /* retrieve /resources/ID/authorizations[?authId=] */
    OP_AUTHORIZATION_DELETE,  /* delete   /authorizations/ID, /resources/ID/authorizations?authId=,
                                 /authorizations */
    OP_RELEASES,              /* retrieve /resources/ID/releases */
    OP_PURPOSE_KEYS,          /* retrieve /purposes/NAME/keys */
    OP_MATTER_KEYS,           /* retrieve /matters/ID/keys */
    OP_RESOURCE_ROTATE,       /* create   /resources/ID/keys */
    OP_RECORDING_CREATE,      /* create   /resources/ID/recordings */
    OP_RECORDING_UPDATE,      /* update   /recordings/ID */
    OP_RECORDING_GET,         /* retrieve /recordings/ID */
    OP_RECORDINGS_LIST,       /* retrieve /resources/ID/recordings */
    OP_RECORDING_DELETE,      /* delete   /recordings/ID */
    OP_PUBLIC_KEY,            /* retrieve /publicKey */
    OP_CMK_CREATE,            /* create   /cmk */
    OP_CMK_LIST,              /* retrieve /cmk */
    OP_CMK_UPDATE,            /* update   /cmk/ID; of default: uri.kind is URI_DEFAULT_CMK */
    OP_CMK_DELETE,            /* delete   /cmk */
};

/* What sort of container a resource is (protocol section 7). */
enum kms_resource_kind {
    KMS_KIND_SPACE, /* where nothing was said */
    KMS_KIND_MEETING,
    KMS_KIND_FILE,
    KMS_KIND_WHITEBOARD,
    KMS_KIND_CALENDAR,
};

/* Its name in messages and tables; static.  And back: false for a name that is none. */
const char *kms_kind_name(enum kms_resource_kind kind);
bool kms_kind_parse(enum kms_resource_kind *out, const char *name);

/* What a recording is (protocol section 7); its name in messages and tables, static. */
enum kms_recording_type { KMS_RECORDING, KMS_TRANSCRIPT };
const char *kms_recording_type_name(enum kms_recording_type type);

/* The states of main keys that the SDK lists; not all of them ever apply (protocol section 5). */
enum kms_main_key_state {
    KMS_MAIN_PENDING,
    KMS_MAIN_RECOVERING,
    KMS_MAIN_ACTIVE,
    KMS_MAIN_REVOKED,
    KMS_MAIN_DEACTIVATED,
    KMS_MAIN_REENCRYPTING,
    KMS_MAIN_RETIRED,
    KMS_MAIN_DELETED,
    KMS_MAIN_DISABLED,
    KMS_MAIN_REMOVEDCLEAN,
    KMS_MAIN_REMOVEDDIRTY,
};
/* "PENDING", ...; static.  And back, without regard to case: false for a name that is none. */
const char *kms_main_key_state_name(enum kms_main_key_state state);
bool kms_main_key_state_parse(enum kms_main_key_state *out, const char *name);

/* An authId: a user, or a resource of this server. */
struct kms_auth_id {
    bool is_resource;
    struct uuid resource;          /* when is_resource */
    char user[KMS_AUTHID_MAX + 1]; /* otherwise */
};

struct kms_request {
    enum kms_op op;
    enum kms_method method;
    struct kms_uri uri;
    json_t *tree;             /* owned: what the strings below are borrowed from */
    const json_t *request_id; /* string or integer, echoed as it is; NULL: could not be read */
    const char *client_id;    /* "" when absent */
    const char *bearer;       /* NULL when absent */
    const char *on_behalf_of; /* NULL when absent */
    const json_t *cred_jwk;   /* client.credential.jwk, an object of which nothing was checked (see
                                 proto/proof.h); NULL when absent */
    const char *proof;        /* client.credential.proof; NULL when absent */
    EVP_PKEY *jwk;            /* owned: OP_CHANNEL_CREATE; the ephemeral key */
    int count;     /* OP_KEYS_CREATE, OP_RESOURCE_ROTATE: 1..100; OP_RESOURCE_CREATE: that,
                      or 0 = none; OP_RESOURCE_KEYS: 0 = all, up to 10000;
                      OP_PURPOSE_KEYS, OP_MATTER_KEYS: 0 = as many as the server likes */
    int anonymous; /* how many; 0 none */
    int64_t ttl;   /* seconds; 0 for ever; -1 absent; KMS_TTL_WRONG: no such number */
    bool has_resource;
    struct uuid resource; /* resourceUri, or the URI's own ID where it names a resource */
    struct uuid *keys;    /* owned: keyUris */
    size_t n_keys;
    struct kms_auth_id *auth_ids; /* owned: authIds before userIds; the URI's authId where there is
                                     one.  Without doubles. */
    size_t n_auth_ids;
    int64_t bound_after;         /* milliseconds since 1970; INT64_MIN: absent.  Inclusive. */
    int64_t bound_before;        /* INT64_MAX: absent.  Exclusive. */
    bool by_uri;                 /* OP_AUTHORIZATION_DELETE: uri.id names the authorisation */
    enum kms_resource_kind kind; /* OP_RESOURCE_CREATE */
    bool zero_trust;             /* likewise; of a meeting only */

    /* Recordings: OP_RECORDING_CREATE, OP_RECORDING_UPDATE. */
    enum kms_recording_type type; /* OP_RECORDING_CREATE */
    const char *loc;              /* 1 to KMS_LOC_MAX bytes; NULL when absent */
    const char *tag; /* base64url of KMS_TAG_LEN bytes; NULL when absent, as on create */

    /* Main keys: OP_PUBLIC_KEY, OP_CMK_... */
    const char *assigned_org;           /* assignedOrgId as sent, 1 to 256 bytes */
    struct buf main_key;                /* owned: OP_CMK_CREATE: the RSA-OAEP ciphertext */
    enum kms_main_key_state main_state; /* OP_CMK_UPDATE */

    /* What only services ask with: OP_KEY_GET, OP_RESOURCE_KEYS, OP_PURPOSE_KEYS, OP_MATTER_KEYS.
     */
    const char *purpose; /* as sent, 1 to 64 characters; of OP_PURPOSE_KEYS the URI's own, borrowed
                            from uri: the struct must not be moved; NULL when absent */
    bool has_matter;
    struct uuid matter; /* of OP_MATTER_KEYS the URI's own; nil, which no matter is, when what was
                           sent is no UUID */
    unsigned char cursor[KMS_CURSOR_MAX];
    size_t cursor_len; /* 0: absent, from the start */
};

/*
 * Parses and checks a request of domain.  Returns KMS_CODE_OK, or the errorCode to refuse it with
 * (400001: not JSON or not an object; 400002; 400003: a jwk of another kind; 404001: another domain
 * or not a UUID; 503001: out of memory), with *why a static text naming the member.  In every case
 * req is initialised, holds what could be read (request_id, client_id, bearer, on_behalf_of,
 * cred_jwk, proof) and must be given to kms_request_release.
 */
int kms_request_parse(struct kms_request *req, const char *text, size_t len, const char *domain,
                      const char **why);
void kms_request_release(struct kms_request *req);

/* "create", ... ; and the op's name in logs and audit entries: "key.get", "channel.create", ... ;
 * static. */
const char *kms_method_name(enum kms_method m);
const char *kms_op_name(enum kms_op op);

/* RFC 3339 in UTC with milliseconds, "2026-11-22T13:55:00.000Z" and a NUL. */
#define KMS_DATE_LEN 24
void kms_date_format(char out[KMS_DATE_LEN + 1], int64_t ms);
/* RFC 3339 with any offset and fraction.  KMS_ERR_SYNTAX. */
int kms_date_parse(int64_t *ms, const char *text);

/* Answers: new objects; NULL: no memory.  request_id may be NULL (left out). */
json_t *kms_answer(int status, const json_t *request_id);
/* {status, requestId?, reason, errorCode}.  why: NULL for the code's own text, else a static or
 * formatted text. */
json_t *kms_answer_error(int code, const json_t *request_id, const char *why);

#endif
