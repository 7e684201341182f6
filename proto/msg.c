/*
 * msg.c - KMS requests from JSON to a checked struct, and the JSON of answers.
 */
#include "proto/msg.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/jwt.h"

/* The methods, and for each request there is: by which method, of which kind of URI, its name. */

static const char *const method_names[] = {
    [KMS_CREATE] = "create",
    [KMS_RETRIEVE] = "retrieve",
    [KMS_UPDATE] = "update",
    [KMS_DELETE] = "delete",
};

static const struct {
    enum kms_method method;
    enum uri_kind kind;
    enum kms_op op;
} routes[] = {
    {KMS_CREATE, URI_ECDHE, OP_CHANNEL_CREATE},
    {KMS_DELETE, URI_ECDHE_ID, OP_CHANNEL_DELETE},
    {KMS_UPDATE, URI_PING, OP_PING},
    {KMS_CREATE, URI_KEYS, OP_KEYS_CREATE},
    {KMS_UPDATE, URI_KEY, OP_KEY_BIND},
    {KMS_RETRIEVE, URI_KEY, OP_KEY_GET},
    {KMS_CREATE, URI_RESOURCES, OP_RESOURCE_CREATE},
    {KMS_RETRIEVE, URI_RESOURCE, OP_RESOURCE_GET},
    {KMS_RETRIEVE, URI_RESOURCE_KEYS, OP_RESOURCE_KEYS},
    {KMS_CREATE, URI_AUTHORIZATIONS, OP_AUTHORIZATIONS_CREATE},
    {KMS_RETRIEVE, URI_RESOURCE_AUTHORIZATIONS, OP_AUTHORIZATIONS_LIST},
    {KMS_DELETE, URI_AUTHORIZATION, OP_AUTHORIZATION_DELETE},
    {KMS_DELETE, URI_RESOURCE_AUTHORIZATIONS, OP_AUTHORIZATION_DELETE},
    {KMS_DELETE, URI_AUTHORIZATIONS, OP_AUTHORIZATION_DELETE},
    {KMS_RETRIEVE, URI_RESOURCE_RELEASES, OP_RELEASES},
    {KMS_RETRIEVE, URI_PURPOSE_KEYS, OP_PURPOSE_KEYS},
    {KMS_RETRIEVE, URI_MATTER_KEYS, OP_MATTER_KEYS},
    {KMS_CREATE, URI_RESOURCE_KEYS, OP_RESOURCE_ROTATE},
    {KMS_CREATE, URI_RESOURCE_RECORDINGS, OP_RECORDING_CREATE},
    {KMS_UPDATE, URI_RECORDING, OP_RECORDING_UPDATE},
    {KMS_RETRIEVE, URI_RECORDING, OP_RECORDING_GET},
    {KMS_RETRIEVE, URI_RESOURCE_RECORDINGS, OP_RECORDINGS_LIST},
    {KMS_DELETE, URI_RECORDING, OP_RECORDING_DELETE},
    {KMS_RETRIEVE, URI_PUBLIC_KEY, OP_PUBLIC_KEY},
    {KMS_CREATE, URI_CMKS, OP_CMK_CREATE},
    {KMS_RETRIEVE, URI_CMKS, OP_CMK_LIST},
    {KMS_UPDATE, URI_CMK, OP_CMK_UPDATE},
    {KMS_UPDATE, URI_DEFAULT_CMK, OP_CMK_UPDATE},
    {KMS_DELETE, URI_CMKS, OP_CMK_DELETE},
};

static const char *const op_names[] = {
    [OP_CHANNEL_CREATE] = "channel.create",
    [OP_CHANNEL_DELETE] = "channel.delete",
    [OP_PING] = "ping",
    [OP_KEYS_CREATE] = "key.create",
    [OP_KEY_BIND] = "key.bind",
    [OP_KEY_GET] = "key.get",
    [OP_RESOURCE_CREATE] = "resource.create",
    [OP_RESOURCE_GET] = "resource.get",
    [OP_RESOURCE_KEYS] = "resource.keys",
    [OP_AUTHORIZATIONS_CREATE] = "authorization.create",
    [OP_AUTHORIZATIONS_LIST] = "authorization.list",
    [OP_AUTHORIZATION_DELETE] = "authorization.delete",
    [OP_RELEASES] = "resource.releases",
    [OP_PURPOSE_KEYS] = "purpose.keys",
    [OP_MATTER_KEYS] = "matter.keys",
    [OP_RESOURCE_ROTATE] = "resource.keys.create",
    [OP_RECORDING_CREATE] = "recording.create",
    [OP_RECORDING_UPDATE] = "recording.update",
    [OP_RECORDING_GET] = "recording.get",
    [OP_RECORDINGS_LIST] = "recording.list",
    [OP_RECORDING_DELETE] = "recording.delete",
    [OP_PUBLIC_KEY] = "cmk.public_key",
    [OP_CMK_CREATE] = "cmk.create",
    [OP_CMK_LIST] = "cmk.list",
    [OP_CMK_UPDATE] = "cmk.update",
    [OP_CMK_DELETE] = "cmk.delete",
};

static const char *const kind_names[] = {
    [KMS_KIND_SPACE] = "space",       [KMS_KIND_MEETING] = "meeting",
    [KMS_KIND_FILE] = "file",         [KMS_KIND_WHITEBOARD] = "whiteboard",
    [KMS_KIND_CALENDAR] = "calendar",
};

static const char *const recording_types[] = {
    [KMS_RECORDING] = "recording",
    [KMS_TRANSCRIPT] = "transcript",
};

static const char *const main_key_states[] = {
    [KMS_MAIN_PENDING] = "PENDING",
    [KMS_MAIN_RECOVERING] = "RECOVERING",
    [KMS_MAIN_ACTIVE] = "ACTIVE",
    [KMS_MAIN_REVOKED] = "REVOKED",
    [KMS_MAIN_DEACTIVATED] = "DEACTIVATED",
    [KMS_MAIN_REENCRYPTING] = "REENCRYPTING",
    [KMS_MAIN_RETIRED] = "RETIRED",
    [KMS_MAIN_DELETED] = "DELETED",
    [KMS_MAIN_DISABLED] = "DISABLED",
    [KMS_MAIN_REMOVEDCLEAN] = "REMOVEDCLEAN",
    [KMS_MAIN_REMOVEDDIRTY] = "REMOVEDDIRTY",
};

static const struct {
    enum kms_code code;
    const char *reason;
} reasons[] = {
    {KMS_CODE_MALFORMED, "The message cannot be read; send compact JOSE around one JSON object"},
    {KMS_CODE_MEMBER, "A member is missing or wrong; correct the request"},
    {KMS_CODE_ALGORITHM, "The algorithm or kind of key is not supported; use an EC P-256 key"},
    {KMS_CODE_TOKEN, "The access token is missing or not valid; sign in and send a new one"},
    {KMS_CODE_TOKEN_EXPIRED, "The access token has expired; refresh it and send the request again"},
    /* Word for word the text of KMS_CODE_NOT_FOUND: nothing but the code may tell the two apart. */
    {KMS_CODE_NOT_AUTHORISED, "There is no such object, or you are not authorised on its resource"},
    {KMS_CODE_NOT_CREATOR, "Only the user who created the key may do this"},
    {KMS_CODE_WRONG_CLIENT, "Only the client that created the key may do this; use that client"},
    {KMS_CODE_ROLE, "This needs a role that your token does not have; ask your administrator"},
    {KMS_CODE_PURPOSE,
     "This service may not do this; name a purpose that it and the organisation have open"},
    {KMS_CODE_NOT_REGISTERED, "This service is not registered; ask the operator to register it"},
    {KMS_CODE_MATTER,
     "The matter is missing, closed or not approved; name an open and approved matter"},
    {KMS_CODE_WRONG_PRINCIPAL,
     "This channel belongs to somebody else; create a channel of your own"},
    {KMS_CODE_ZERO_TRUST,
     "The resource is zero-trust and this server holds no key for it; ask its members"},
    {KMS_CODE_NOT_FOUND, "There is no such object, or you are not authorised on its resource"},
    {KMS_CODE_REVOKED,
     "The organisation's main key is revoked; its administrator must make it active again"},
    {KMS_CODE_DISABLED,
     "This is frozen for now, or the organisation's main key is disabled; ask its administrator"},
    {KMS_CODE_BOUND, "The key is bound to another resource already; use a new key"},
    {KMS_CODE_CONFLICT, "The object's state does not allow this; retrieve it and decide anew"},
    {KMS_CODE_DESTROYED, "The object was destroyed and cannot be brought back"},
    {KMS_CODE_TOO_LARGE, "The message is too large; send less at once"},
    {KMS_CODE_RATE, "There are too many requests; wait and send fewer"},
    {KMS_CODE_RESET, "The channel is not known any more; drop it and its unbound keys and create a "
                     "new one"},
    {KMS_CODE_NO_BYOK, "This server does not support customer main keys"},
    {KMS_CODE_HSM_SILENT, "The HSM has not done it; nothing was changed"},
    {KMS_CODE_OVERLOADED, "The server is overloaded; try again later"},
    {KMS_CODE_HSM, "The hardware security module does not answer; try again later"},
    {KMS_CODE_DATABASE, "The database does not answer; try again later"},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define KEYS_LIST_MAX 10000 /* the largest count of a retrieve of a resource's keys */

const char *
kms_code_reason(int code)
{
    size_t i;

    for (i = 0; i < COUNT(reasons); i++)
        if ((int)reasons[i].code == code)
            return reasons[i].reason;
    return "";
}

const char *
kms_method_name(enum kms_method m)
{
    return method_names[m];
}

const char *
kms_op_name(enum kms_op op)
{
    return op_names[op];
}

const char *
kms_kind_name(enum kms_resource_kind kind)
{
    return kind_names[kind];
}

bool
kms_kind_parse(enum kms_resource_kind *out, const char *name)
{
    size_t i;

    for (i = 0; i < COUNT(kind_names); i++) {
        if (strcmp(name, kind_names[i]) == 0) {
            *out = (enum kms_resource_kind)i;
            return true;
        }
    }
    return false;
}

const char *
kms_recording_type_name(enum kms_recording_type type)
{
    return recording_types[type];
}

const char *
kms_main_key_state_name(enum kms_main_key_state state)
{
    return main_key_states[state];
}

bool
kms_main_key_state_parse(enum kms_main_key_state *out, const char *name)
{
    size_t i;

    for (i = 0; i < COUNT(main_key_states); i++) {
        if (strcasecmp(name, main_key_states[i]) == 0) {
            *out = (enum kms_main_key_state)i;
            return true;
        }
    }
    return false;
}

/* What a request is refused with: the code, and in *why which member is to blame. */
static int
refuse(int code, const char *text, const char **why)
{
    *why = text;
    return code;
}

static int
no_memory(const char **why)
{
    return refuse(KMS_CODE_OVERLOADED, kms_code_reason(KMS_CODE_OVERLOADED), why);
}

/* requestId may be missing: the draft demands it, but who sends none can do without it in the
 * answer. */
static int
read_request_id(struct kms_request *req, const char **why)
{
    const json_t *id = json_object_get(req->tree, "requestId");

    if (id == NULL)
        return KMS_CODE_OK;
    /* Opaque: any characters, echoed as they came. */
    if (!json_is_integer(id) &&
        (!json_is_string(id) || json_string_length(id) > KMS_REQUEST_ID_MAX))
        return refuse(KMS_CODE_MEMBER,
                      "requestId must be an integer, or a string of at most 1024 bytes", why);
    req->request_id = id;
    return KMS_CODE_OK;
}

/* A string that stands in logs and answers: not longer than max, no controls.  Absent: *out
 * untouched. */
static bool
read_name(const json_t *obj, const char *name, size_t max, const char **out)
{
    const char *s = NULL;
    int r = kms_json_str(obj, name, max, &s);

    if (r == KMS_ERR_NOT_FOUND)
        return true;
    if (r != KMS_OK || !kms_text_ok(s, strlen(s)))
        return false;
    *out = s;
    return true;
}

/* What a service proves itself with, when its certificate is not that of the connection. */
static int
read_service_credential(struct kms_request *req, const json_t *credential, const char **why)
{
    const json_t *jwk = json_object_get(credential, "jwk");
    int r;

    if (jwk != NULL && !json_is_object(jwk))
        return refuse(KMS_CODE_MEMBER, "client.credential.jwk must be an object", why);
    req->cred_jwk = jwk;
    r = kms_json_str(credential, "proof", KMS_PROOF_MAX, &req->proof);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
        return refuse(KMS_CODE_MEMBER,
                      "client.credential.proof must be a string of at most 4096 bytes", why);
    return KMS_CODE_OK;
}

/* No client or credential: no token, and kmsd says 401001. */
static int
read_client(struct kms_request *req, const char **why)
{
    const json_t *client = json_object_get(req->tree, "client"), *credential;
    int r;

    if (client == NULL)
        return KMS_CODE_OK;
    if (!json_is_object(client))
        return refuse(KMS_CODE_MEMBER, "client must be an object", why);
    if (!read_name(client, "clientId", KMS_CLIENT_ID_MAX, &req->client_id))
        return refuse(KMS_CODE_MEMBER,
                      "client.clientId must be a string of at most 512 bytes without control "
                      "characters",
                      why);
    if ((credential = json_object_get(client, "credential")) == NULL)
        return KMS_CODE_OK;
    if (!json_is_object(credential))
        return refuse(KMS_CODE_MEMBER, "client.credential must be an object", why);
    r = kms_json_str(credential, "bearer", JWT_MAX, &req->bearer);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
        return refuse(KMS_CODE_MEMBER,
                      "client.credential.bearer must be a string of at most 16384 bytes", why);
    if (!read_name(credential, "onBehalfOf", KMS_AUTHID_MAX, &req->on_behalf_of) ||
        (req->on_behalf_of != NULL && *req->on_behalf_of == '\0')) {
        req->on_behalf_of = NULL;
        return refuse(KMS_CODE_MEMBER,
                      "client.credential.onBehalfOf must be a user id of 1 to 256 bytes", why);
    }
    return read_service_credential(req, credential, why);
}

static int
read_route(struct kms_request *req, const char *domain, const char **why)
{
    const json_t *method = json_object_get(req->tree, "method");
    const json_t *uri = json_object_get(req->tree, "uri");
    size_t i;
    int r;

    for (i = 0; i < COUNT(method_names); i++)
        if (json_is_string(method) && strcmp(json_string_value(method), method_names[i]) == 0)
            break;
    if (i == COUNT(method_names))
        return refuse(KMS_CODE_MEMBER, "method must be create, retrieve, update or delete", why);
    req->method = (enum kms_method)i;

    if (!json_is_string(uri))
        return refuse(KMS_CODE_MEMBER, "uri must be a string", why);
    r = kms_uri_parse(&req->uri, json_string_value(uri), json_string_length(uri), domain);
    if (r == KMS_ERR_SYNTAX)
        return refuse(KMS_CODE_MEMBER, "uri is malformed, or not one that this server has", why);
    /* The kind is known even of a URI that names nothing here: a wrong method goes first. */
    for (i = 0; i < COUNT(routes); i++)
        if (routes[i].method == req->method && routes[i].kind == req->uri.kind)
            break;
    if (i == COUNT(routes))
        return refuse(KMS_CODE_MEMBER, "method is not one that this uri has", why);
    if (r != KMS_OK)
        return refuse(KMS_CODE_NOT_FOUND, "uri names nothing on this server", why);
    req->op = routes[i].op;
    return KMS_CODE_OK;
}

/* Reads a URI of the given kind out of text. */
static int
read_uri(struct uuid *out, const char *text, size_t len, enum uri_kind kind, const char *domain)
{
    struct kms_uri uri;
    int r = kms_uri_parse(&uri, text, len, domain);

    if (r == KMS_ERR_SYNTAX || uri.kind != kind)
        return KMS_CODE_MEMBER;
    if (r != KMS_OK)
        return KMS_CODE_NOT_FOUND;
    *out = uri.id;
    return KMS_CODE_OK;
}

static int
read_resource_uri(struct kms_request *req, const char *domain, const char **why)
{
    const json_t *uri = json_object_get(req->tree, "resourceUri");
    int code = KMS_CODE_MEMBER;

    if (json_is_string(uri))
        code = read_uri(&req->resource, json_string_value(uri), json_string_length(uri),
                        URI_RESOURCE, domain);
    if (code != KMS_CODE_OK)
        return refuse(code,
                      code == KMS_CODE_NOT_FOUND ? "resourceUri names nothing on this server"
                                                 : "resourceUri must be the URI of a resource",
                      why);
    req->has_resource = true;
    return KMS_CODE_OK;
}

static bool
auth_id_equal(const struct kms_auth_id *a, const struct kms_auth_id *b)
{
    if (a->is_resource != b->is_resource)
        return false;
    return a->is_resource ? memcmp(a->resource.b, b->resource.b, UUID_LEN) == 0
                          : strcmp(a->user, b->user) == 0;
}

/* Appends one authId to a list that has room for it, unless it is there already. */
static int
add_auth_id(struct kms_request *req, const char *text, size_t len, const char *domain,
            const char **why)
{
    struct kms_auth_id *new = &req->auth_ids[req->n_auth_ids];
    int code;
    size_t i;

    memset(new, 0, sizeof(*new));
    if (len == 0 || len > KMS_AUTHID_MAX || !kms_text_ok(text, len))
        return refuse(KMS_CODE_MEMBER,
                      "an authId must be a string of 1 to 256 bytes without control characters",
                      why);
    if (text[0] == '/' || strncasecmp(text, "kms:", 4) == 0) {
        new->is_resource = true;
        code = read_uri(&new->resource, text, len, URI_RESOURCE, domain);
        if (code == KMS_CODE_NOT_FOUND)
            return refuse(code, "an authId is the URI of a resource that is not on this server",
                          why);
        if (code != KMS_CODE_OK)
            return refuse(code, "an authId that is a URI must be the URI of a resource", why);
    } else {
        memcpy(new->user, text, len);
    }
    for (i = 0; i < req->n_auth_ids; i++)
        if (auth_id_equal(&req->auth_ids[i], new))
            return KMS_CODE_OK;
    req->n_auth_ids++;
    return KMS_CODE_OK;
}

/* authIds, then userIds: two names of one thing, by the draft and by the SDK. */
static int
read_auth_ids(struct kms_request *req, const char *domain, const char **why)
{
    static const char *const names[] = {"authIds", "userIds"};
    const json_t *list, *item;
    size_t i, j, n = 0;
    int code;

    for (i = 0; i < COUNT(names); i++) {
        if ((list = json_object_get(req->tree, names[i])) == NULL)
            continue;
        if (!json_is_array(list))
            return refuse(KMS_CODE_MEMBER, "authIds and userIds must be arrays", why);
        n += json_array_size(list);
        if (n > KMS_LIST_MAX)
            return refuse(KMS_CODE_MEMBER, "authIds and userIds must be at most 100 together", why);
    }
    if (n == 0)
        return KMS_CODE_OK;
    if ((req->auth_ids = calloc(n, sizeof(*req->auth_ids))) == NULL)
        return no_memory(why);
    for (i = 0; i < COUNT(names); i++) {
        list = json_object_get(req->tree, names[i]);
        for (j = 0; j < json_array_size(list); j++) {
            item = json_array_get(list, j);
            if (!json_is_string(item))
                return refuse(KMS_CODE_MEMBER, "authIds and userIds must hold strings", why);
            code = add_auth_id(req, json_string_value(item), json_string_length(item), domain, why);
            if (code != KMS_CODE_OK)
                return code;
        }
    }
    return KMS_CODE_OK;
}

/* The authId of the URI's query; the list is empty when there is none. */
static int
read_query_auth_id(struct kms_request *req, const char *domain, const char **why)
{
    const char *text = req->uri.auth_id;

    if (*text == '\0')
        return KMS_CODE_OK;
    if ((req->auth_ids = calloc(1, sizeof(*req->auth_ids))) == NULL)
        return no_memory(why);
    return add_auth_id(req, text, strlen(text), domain, why);
}

static int
read_key_uris(struct kms_request *req, const char *domain, const char **why)
{
    const json_t *list = json_object_get(req->tree, "keyUris"), *item;
    struct uuid key;
    size_t i, j, n;
    int code;

    if (list == NULL)
        return KMS_CODE_OK;
    if (!json_is_array(list) || (n = json_array_size(list)) > KMS_LIST_MAX)
        return refuse(KMS_CODE_MEMBER, "keyUris must be an array of at most 100", why);
    if (n == 0)
        return KMS_CODE_OK;
    if ((req->keys = calloc(n, sizeof(*req->keys))) == NULL)
        return no_memory(why);
    for (i = 0; i < n; i++) {
        item = json_array_get(list, i);
        code = KMS_CODE_MEMBER;
        if (json_is_string(item))
            code =
                read_uri(&key, json_string_value(item), json_string_length(item), URI_KEY, domain);
        if (code != KMS_CODE_OK)
            return refuse(code,
                          code == KMS_CODE_NOT_FOUND ? "one of keyUris names nothing on this server"
                                                     : "keyUris must hold the URIs of keys",
                          why);
        for (j = 0; j < req->n_keys; j++)
            if (memcmp(req->keys[j].b, key.b, UUID_LEN) == 0)
                break;
        if (j == req->n_keys)
            req->keys[req->n_keys++] = key;
    }
    return KMS_CODE_OK;
}

/* An integer of min..max; absent: *out untouched, and false only if it is required. */
static bool
read_int(const json_t *tree, const char *name, bool required, long long min, long long max,
         int *out)
{
    long long v;
    int r = kms_json_int(tree, name, min, max, &v);

    if (r == KMS_ERR_NOT_FOUND)
        return !required;
    if (r != KMS_OK)
        return false;
    *out = (int)v;
    return true;
}

static int
read_anonymous(struct kms_request *req, const char **why)
{
    if (!read_int(req->tree, "anonymous", false, 0, KMS_LIST_MAX, &req->anonymous))
        return refuse(KMS_CODE_MEMBER, "anonymous must be an integer of 0 to 100", why);
    return KMS_CODE_OK;
}

static bool
read_date(const json_t *tree, const char *name, int64_t *out)
{
    const char *text;
    int r = kms_json_str(tree, name, 64, &text);

    if (r == KMS_ERR_NOT_FOUND)
        return true;
    return r == KMS_OK && kms_date_parse(out, text) == KMS_OK;
}

/* The members of each request, in the order of enum kms_op. */

static int
read_channel_create(struct kms_request *req, const char **why)
{
    const json_t *jwk = json_object_get(req->tree, "jwk");
    int r = json_is_object(jwk) ? jwk_get_p256(&req->jwk, jwk) : KMS_ERR_MEMBER;

    switch (r) {
    case KMS_OK:
        return KMS_CODE_OK;
    case KMS_ERR_ALGORITHM:
        return refuse(KMS_CODE_ALGORITHM, "jwk must be a key of kty EC and crv P-256", why);
    case KMS_ERR_NOMEM:
    case KMS_ERR_INTERNAL:
        return no_memory(why);
    default:
        return refuse(KMS_CODE_MEMBER, "jwk must be an EC P-256 public key on the curve", why);
    }
}

static int
read_keys_create(struct kms_request *req, const char **why)
{
    if (!read_int(req->tree, "count", true, 1, KMS_LIST_MAX, &req->count))
        return refuse(KMS_CODE_MEMBER, "count must be an integer of 1 to 100", why);
    return KMS_CODE_OK;
}

static int
read_kind(struct kms_request *req, const char **why)
{
    const char *name;
    int r = kms_json_str(req->tree, "kind", 64, &name);

    if (r == KMS_ERR_NOT_FOUND || (r == KMS_OK && kms_kind_parse(&req->kind, name)))
        return KMS_CODE_OK;
    return refuse(KMS_CODE_MEMBER, "kind must be space, meeting, file, whiteboard or calendar",
                  why);
}

static int
read_security(struct kms_request *req, const char **why)
{
    const char *name;
    int r = kms_json_str(req->tree, "security", 64, &name);

    if (r == KMS_ERR_NOT_FOUND || (r == KMS_OK && strcmp(name, "standard") == 0))
        return KMS_CODE_OK;
    if (r != KMS_OK || strcmp(name, "zero-trust") != 0)
        return refuse(KMS_CODE_MEMBER, "security must be standard or zero-trust", why);
    if (req->kind != KMS_KIND_MEETING)
        return refuse(KMS_CODE_MEMBER, "security zero-trust is for kind meeting only", why);
    req->zero_trust = true;
    return KMS_CODE_OK;
}

/* Keys to make with the resource, or for it.  The answer has either those or keyUris. */
static int
read_new_keys(struct kms_request *req, bool required, const char **why)
{
    if (!read_int(req->tree, "count", required, 1, KMS_LIST_MAX, &req->count))
        return refuse(KMS_CODE_MEMBER, "count must be an integer of 1 to 100", why);
    if (req->count > 0 && req->n_keys > 0)
        return refuse(KMS_CODE_MEMBER, "count and keyUris must not come together", why);
    return KMS_CODE_OK;
}

static int
read_resource_create(struct kms_request *req, const char *domain, const char **why)
{
    long long ttl = -1;
    int r, code;

    if ((code = read_auth_ids(req, domain, why)) != KMS_CODE_OK ||
        (code = read_key_uris(req, domain, why)) != KMS_CODE_OK ||
        (code = read_anonymous(req, why)) != KMS_CODE_OK)
        return code;
    r = kms_json_int(req->tree, "ttl", 0, INT64_MAX, &ttl);
    /* kmsd's configuration has the range, which the refusal must name. */
    req->ttl = r == KMS_OK || r == KMS_ERR_NOT_FOUND ? ttl : KMS_TTL_WRONG;
    if ((code = read_kind(req, why)) != KMS_CODE_OK ||
        (code = read_security(req, why)) != KMS_CODE_OK)
        return code;
    return read_new_keys(req, false, why);
}

static int
read_loc(struct kms_request *req, const char **why)
{
    if (!read_name(req->tree, "loc", KMS_LOC_MAX, &req->loc) ||
        (req->loc != NULL && *req->loc == '\0'))
        return refuse(KMS_CODE_MEMBER,
                      "loc must be a string of 1 to 4096 bytes without control characters", why);
    return KMS_CODE_OK;
}

/* What a recorder knows when the file is done. */
static int
read_recording_update(struct kms_request *req, const char **why)
{
    unsigned char tag[KMS_TAG_LEN];
    int r, code = read_loc(req, why);

    if (code != KMS_CODE_OK)
        return code;
    r = kms_json_str(req->tree, "tag", B64URL_LEN(KMS_TAG_LEN), &req->tag);
    if (r == KMS_ERR_NOT_FOUND)
        return KMS_CODE_OK;
    if (r == KMS_OK && strlen(req->tag) == B64URL_LEN(KMS_TAG_LEN) &&
        b64url_decode(tag, req->tag, strlen(req->tag)) == KMS_OK)
        return KMS_CODE_OK;
    req->tag = NULL;
    return refuse(KMS_CODE_MEMBER, "tag must be 16 bytes in base64url", why);
}

static int
read_recording_create(struct kms_request *req, const char **why)
{
    const char *name;
    size_t i;

    if (kms_json_str(req->tree, "type", 64, &name) == KMS_OK) {
        for (i = 0; i < COUNT(recording_types); i++) {
            if (strcmp(name, recording_types[i]) == 0) {
                req->type = (enum kms_recording_type)i;
                return read_loc(req, why);
            }
        }
    }
    return refuse(KMS_CODE_MEMBER, "type must be recording or transcript", why);
}

static int
read_assigned_org(struct kms_request *req, const char **why)
{
    if (!read_name(req->tree, "assignedOrgId", KMS_AUTHID_MAX, &req->assigned_org) ||
        req->assigned_org == NULL || *req->assigned_org == '\0') {
        req->assigned_org = NULL;
        return refuse(KMS_CODE_MEMBER, "assignedOrgId must be the id of your organisation", why);
    }
    return KMS_CODE_OK;
}

static int
read_main_key(struct kms_request *req, const char **why)
{
    const char *text;
    int r = kms_json_str(req->tree, "customerMasterKey", (KMS_MAIN_KEY_MAX + 2) / 3 * 4, &text);

    if (r == KMS_OK && *text != '\0') {
        r = b64_get(&req->main_key, text, strlen(text));
        if (r == KMS_ERR_NOMEM)
            return no_memory(why);
        if (r == KMS_OK && req->main_key.len <= KMS_MAIN_KEY_MAX)
            return KMS_CODE_OK;
    }
    return refuse(KMS_CODE_MEMBER,
                  "customerMasterKey must be standard base64 of the key, encrypted to the "
                  "organisation's public key",
                  why);
}

static int
read_main_key_state(struct kms_request *req, const char **why)
{
    const char *name;

    if (kms_json_str(req->tree, "keyState", 64, &name) != KMS_OK ||
        !kms_main_key_state_parse(&req->main_state, name))
        return refuse(KMS_CODE_MEMBER, "keyState must be one of the states of a main key", why);
    if (req->uri.kind == URI_DEFAULT_CMK && req->main_state != KMS_MAIN_ACTIVE)
        return refuse(KMS_CODE_MEMBER, "keyState of default must be ACTIVE", why);
    return KMS_CODE_OK;
}

static int
read_main_key_members(struct kms_request *req, const char **why)
{
    int code = read_assigned_org(req, why);

    if (code == KMS_CODE_OK && req->op == OP_CMK_CREATE)
        return read_main_key(req, why);
    if (code == KMS_CODE_OK && req->op == OP_CMK_UPDATE)
        return read_main_key_state(req, why);
    return code;
}

static int
read_matter(struct kms_request *req, const char **why)
{
    const char *text = NULL;

    if (!read_name(req->tree, "matter", KMS_AUTHID_MAX, &text) || (text != NULL && *text == '\0'))
        return refuse(KMS_CODE_MEMBER, "matter must be the id of a matter", why);
    if (text == NULL)
        return KMS_CODE_OK;
    req->has_matter = true;
    /* What is no UUID is an unknown matter like any other: nil. */
    if (uuid_parse(&req->matter, text, strlen(text)) != KMS_OK)
        memset(&req->matter, 0, sizeof(req->matter));
    return KMS_CODE_OK;
}

static int
read_cursor(struct kms_request *req, const char **why)
{
    const char *text;
    size_t len;
    int r = kms_json_str(req->tree, "cursor", B64URL_LEN(KMS_CURSOR_MAX), &text);

    if (r == KMS_ERR_NOT_FOUND)
        return KMS_CODE_OK;
    if (r == KMS_OK && (len = strlen(text)) > 0 &&
        b64url_decode(req->cursor, text, len) == KMS_OK) {
        req->cursor_len = B64URL_BYTES(len);
        return KMS_CODE_OK;
    }
    memset(req->cursor, 0, sizeof(req->cursor));
    return refuse(KMS_CODE_MEMBER, "cursor must be one that an answer of this server had", why);
}

/* What a service asks with.  Users may send it too: nothing looks at it then. */
static int
read_service_members(struct kms_request *req, const char **why)
{
    int code;

    if (!read_name(req->tree, "purpose", KMS_PURPOSE_MAX, &req->purpose) ||
        (req->purpose != NULL && *req->purpose == '\0')) {
        req->purpose = NULL;
        return refuse(KMS_CODE_MEMBER, "purpose must be a string of 1 to 64 bytes", why);
    }
    if ((code = read_matter(req, why)) != KMS_CODE_OK)
        return code;
    return read_cursor(req, why);
}

/* retrieve /purposes/NAME/keys: who says it twice must say the same. */
static int
read_purpose_keys(struct kms_request *req, const char **why)
{
    int code;

    if (!read_int(req->tree, "count", false, 1, KMS_WALK_MAX, &req->count))
        return refuse(KMS_CODE_MEMBER, "count must be an integer of 1 to 1000", why);
    if ((code = read_service_members(req, why)) != KMS_CODE_OK)
        return code;
    if (req->purpose != NULL && strcmp(req->purpose, req->uri.purpose) != 0)
        return refuse(KMS_CODE_MEMBER, "purpose must be that of the uri", why);
    req->purpose = req->uri.purpose;
    return KMS_CODE_OK;
}

static int
read_matter_keys(struct kms_request *req, const char **why)
{
    int code;

    if (!read_int(req->tree, "count", false, 1, KMS_WALK_MAX, &req->count))
        return refuse(KMS_CODE_MEMBER, "count must be an integer of 1 to 1000", why);
    if ((code = read_service_members(req, why)) != KMS_CODE_OK)
        return code;
    if (req->has_matter && memcmp(&req->matter, &req->uri.id, sizeof(req->matter)) != 0)
        return refuse(KMS_CODE_MEMBER, "matter must be that of the uri", why);
    req->has_matter = true;
    req->matter = req->uri.id;
    return KMS_CODE_OK;
}

static int
read_resource_keys(struct kms_request *req, const char **why)
{
    if (!read_int(req->tree, "count", false, 1, KEYS_LIST_MAX, &req->count))
        return refuse(KMS_CODE_MEMBER, "count must be an integer of 1 to 10000", why);
    if (!read_date(req->tree, "boundAfter", &req->bound_after))
        return refuse(KMS_CODE_MEMBER, "boundAfter must be a date and time as of RFC 3339", why);
    if (!read_date(req->tree, "boundBefore", &req->bound_before))
        return refuse(KMS_CODE_MEMBER, "boundBefore must be a date and time as of RFC 3339", why);
    return read_service_members(req, why);
}

static int
read_authorizations_create(struct kms_request *req, const char *domain, const char **why)
{
    int code;

    if ((code = read_resource_uri(req, domain, why)) != KMS_CODE_OK ||
        (code = read_auth_ids(req, domain, why)) != KMS_CODE_OK ||
        (code = read_anonymous(req, why)) != KMS_CODE_OK)
        return code;
    if (req->n_auth_ids == 0 && req->anonymous == 0)
        return refuse(KMS_CODE_MEMBER, "authIds, userIds or anonymous must name somebody", why);
    return KMS_CODE_OK;
}

/* By its own URI, by ?authId= of its resource, or many at once by resourceUri and authIds. */
static int
read_authorization_delete(struct kms_request *req, const char *domain, const char **why)
{
    int code;

    switch (req->uri.kind) {
    case URI_AUTHORIZATION:
        req->by_uri = true;
        return KMS_CODE_OK;
    case URI_RESOURCE_AUTHORIZATIONS:
        code = read_query_auth_id(req, domain, why);
        break;
    default:
        if ((code = read_resource_uri(req, domain, why)) == KMS_CODE_OK)
            code = read_auth_ids(req, domain, why);
        break;
    }
    if (code == KMS_CODE_OK && req->n_auth_ids == 0)
        return refuse(KMS_CODE_MEMBER, "authId, authIds or userIds must name somebody", why);
    return code;
}

static int
read_members(struct kms_request *req, const char *domain, const char **why)
{
    switch (req->uri.kind) {
    case URI_RESOURCE:
    case URI_RESOURCE_KEYS:
    case URI_RESOURCE_AUTHORIZATIONS:
    case URI_RESOURCE_RELEASES:
    case URI_RESOURCE_RECORDINGS:
        req->resource = req->uri.id;
        req->has_resource = true;
        break;
    default:
        break;
    }
    switch (req->op) {
    case OP_CHANNEL_CREATE:
        return read_channel_create(req, why);
    case OP_KEYS_CREATE:
        return read_keys_create(req, why);
    case OP_KEY_BIND:
        return read_resource_uri(req, domain, why);
    case OP_RESOURCE_CREATE:
        return read_resource_create(req, domain, why);
    case OP_RESOURCE_KEYS:
        return read_resource_keys(req, why);
    case OP_AUTHORIZATIONS_CREATE:
        return read_authorizations_create(req, domain, why);
    case OP_AUTHORIZATIONS_LIST:
        return read_query_auth_id(req, domain, why);
    case OP_AUTHORIZATION_DELETE:
        return read_authorization_delete(req, domain, why);
    case OP_KEY_GET:
        return read_service_members(req, why);
    case OP_PURPOSE_KEYS:
        return read_purpose_keys(req, why);
    case OP_MATTER_KEYS:
        return read_matter_keys(req, why);
    case OP_RESOURCE_ROTATE:
        return read_new_keys(req, true, why);
    case OP_RECORDING_CREATE:
        return read_recording_create(req, why);
    case OP_RECORDING_UPDATE:
        return read_recording_update(req, why);
    case OP_PUBLIC_KEY:
    case OP_CMK_CREATE:
    case OP_CMK_LIST:
    case OP_CMK_UPDATE:
    case OP_CMK_DELETE:
        return read_main_key_members(req, why);
    case OP_CHANNEL_DELETE:
    case OP_PING:
    case OP_RESOURCE_GET:
    case OP_RELEASES:
    case OP_RECORDING_GET:
    case OP_RECORDINGS_LIST:
    case OP_RECORDING_DELETE:
        break; /* the URI says it all */
    }
    return KMS_CODE_OK;
}

/*
 * JSON but for strings that hold no characters, or integers beyond 64 bits, is not malformed
 * (400001), it has a wrong member (400002), and its sender gets his requestId back.
 */
static int
refuse_syntax(struct kms_request *req, const char *text, size_t len, const char **why)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    struct buf copy = BUF_INIT;
    int code = refuse(KMS_CODE_MALFORMED, "The message is not a JSON object", why);
    const char *ignored;

    if (kms_json_parse_reals(&req->tree, text, len) == KMS_OK) {
        code = refuse(KMS_CODE_MEMBER, "A number is larger than 64 bits can hold", why);
        (void)read_request_id(req, &ignored);
    } else if (buf_put(&copy, text, len) == KMS_OK && kms_json_mend((char *)copy.data, len) &&
               kms_json_parse_strange(&req->tree, (const char *)copy.data, len) == KMS_OK) {
        code = refuse(KMS_CODE_MEMBER, "A string holds U+0000 or half a surrogate pair", why);
        (void)read_request_id(req, &ignored);
        if (json_is_string(req->request_id) &&
            strstr(json_string_value(req->request_id), replacement) != NULL)
            req->request_id = NULL; /* perhaps the mended one: it cannot be echoed */
    }
    buf_release(&copy);
    return code;
}

int
kms_request_parse(struct kms_request *req, const char *text, size_t len, const char *domain,
                  const char **why)
{
    const char *id_why = NULL;
    int r, code, id_code;

    memset(req, 0, sizeof(*req));
    req->client_id = "";
    req->ttl = -1;
    req->bound_after = INT64_MIN;
    req->bound_before = INT64_MAX;
    *why = "";

    if ((r = kms_json_parse_strange(&req->tree, text, len)) != KMS_OK) {
        req->tree = NULL;
        switch (r) {
        case KMS_ERR_NOMEM:
            return no_memory(why);
        case KMS_ERR_DUPLICATE:
            return refuse(KMS_CODE_MALFORMED, "The message has a member name twice", why);
        case KMS_ERR_LIMIT:
            return refuse(KMS_CODE_TOO_LARGE, "The message has too many members", why);
        case KMS_ERR_SYNTAX:
            return refuse_syntax(req, text, len, why);
        default:
            return refuse(KMS_CODE_MALFORMED, "The message is not a JSON object", why);
        }
    }
    /* A bad requestId does not keep the rest from being read: what could be read goes into the log.
     */
    id_code = read_request_id(req, &id_why);
    if ((code = read_client(req, why)) == KMS_CODE_OK &&
        (code = read_route(req, domain, why)) == KMS_CODE_OK)
        code = read_members(req, domain, why);
    return id_code == KMS_CODE_OK ? code : refuse(id_code, id_why, why);
}

void
kms_request_release(struct kms_request *req)
{
    EVP_PKEY_free(req->jwk);
    free(req->keys);
    free(req->auth_ids);
    buf_release(&req->main_key);
    json_decref(req->tree);
    memset(req, 0, sizeof(*req));
}

/* Two, three or four decimal digits. */
static char *
put_digits(char *out, int digits, int value)
{
    int i;

    for (i = digits - 1; i >= 0; i--) {
        out[i] = (char)('0' + value % 10);
        value /= 10;
    }
    return out + digits;
}

void
kms_date_format(char out[KMS_DATE_LEN + 1], int64_t ms)
{
    /* The first and the last moment that four digits of a year can say. */
    static const int64_t first = INT64_C(-62167219200000), last = INT64_C(253402300799999);
    struct tm tm;
    int64_t day_ms;
    time_t s;

    if (ms < first)
        ms = first;
    if (ms > last)
        ms = last;
    day_ms = ms % 1000;
    if (day_ms < 0)
        day_ms += 1000;
    s = (time_t)((ms - day_ms) / 1000);
    gmtime_r(&s, &tm);
    out = put_digits(out, 4, tm.tm_year + 1900);
    *out++ = '-';
    out = put_digits(out, 2, tm.tm_mon + 1);
    *out++ = '-';
    out = put_digits(out, 2, tm.tm_mday);
    *out++ = 'T';
    out = put_digits(out, 2, tm.tm_hour);
    *out++ = ':';
    out = put_digits(out, 2, tm.tm_min);
    *out++ = ':';
    out = put_digits(out, 2, tm.tm_sec);
    *out++ = '.';
    out = put_digits(out, 3, (int)day_ms);
    *out++ = 'Z';
    *out = '\0';
}

/* Exactly that many digits, of min..max.  Moves *p past them. */
static bool
get_digits(const char **p, int digits, int min, int max, int *out)
{
    int i, value = 0;

    for (i = 0; i < digits; i++, (*p)++) {
        if (**p < '0' || **p > '9')
            return false;
        value = value * 10 + (**p - '0');
    }
    *out = value;
    return value >= min && value <= max;
}

static bool
get_char(const char **p, char c)
{
    if (**p != c)
        return false;
    (*p)++;
    return true;
}

/* ".digits", any number of them; what is finer than a millisecond is cut off. */
static bool
get_fraction(const char **p, int *ms)
{
    int unit = 100;

    *ms = 0;
    if (!get_char(p, '.'))
        return true;
    if (**p < '0' || **p > '9')
        return false;
    for (; **p >= '0' && **p <= '9'; (*p)++, unit /= 10)
        *ms += (**p - '0') * unit;
    return true;
}

/* "Z", "+hh:mm" or "-hh:mm": minutes east of UTC. */
static bool
get_offset(const char **p, int *minutes)
{
    int h, m, sign;

    *minutes = 0;
    if (get_char(p, 'Z') || get_char(p, 'z'))
        return true;
    if (**p != '+' && **p != '-')
        return false;
    sign = *(*p)++ == '-' ? -1 : 1;
    if (!get_digits(p, 2, 0, 23, &h) || !get_char(p, ':') || !get_digits(p, 2, 0, 59, &m))
        return false;
    *minutes = sign * (h * 60 + m);
    return true;
}

/* A leap second is refused: the time scale that everything is compared on has none. */
int
kms_date_parse(int64_t *ms, const char *text)
{
    struct tm tm = {0};
    int month, day, fraction, offset;
    const char *p = text;
    time_t s;

    if (!get_digits(&p, 4, 0, 9999, &tm.tm_year) || !get_char(&p, '-') ||
        !get_digits(&p, 2, 1, 12, &month) || !get_char(&p, '-') ||
        !get_digits(&p, 2, 1, 31, &day) || !(get_char(&p, 'T') || get_char(&p, 't')) ||
        !get_digits(&p, 2, 0, 23, &tm.tm_hour) || !get_char(&p, ':') ||
        !get_digits(&p, 2, 0, 59, &tm.tm_min) || !get_char(&p, ':') ||
        !get_digits(&p, 2, 0, 59, &tm.tm_sec) || !get_fraction(&p, &fraction) ||
        !get_offset(&p, &offset) || *p != '\0')
        return KMS_ERR_SYNTAX;
    tm.tm_year -= 1900;
    tm.tm_mon = month - 1;
    tm.tm_mday = day;
    s = timegm(&tm);
    if (tm.tm_mday != day)
        return KMS_ERR_SYNTAX; /* 30 February has become a day in March */
    *ms = ((int64_t)s - offset * 60) * 1000 + fraction;
    return KMS_OK;
}

json_t *
kms_answer(int status, const json_t *request_id)
{
    json_t *answer = json_object();

    /* _set_new takes NULL for a failure, and frees what it could not set */
    if (answer == NULL || json_object_set_new(answer, "status", json_integer(status)) != 0 ||
        (request_id != NULL &&
         json_object_set_new(answer, "requestId", json_deep_copy(request_id)) != 0)) {
        json_decref(answer);
        return NULL;
    }
    return answer;
}

json_t *
kms_answer_error(int code, const json_t *request_id, const char *why)
{
    json_t *answer = kms_answer(code / 1000, request_id);

    if (answer == NULL)
        return NULL;
    if (json_object_set_new(answer, "reason",
                            json_string(why != NULL ? why : kms_code_reason(code))) != 0 ||
        json_object_set_new(answer, "errorCode", json_integer(code)) != 0) {
        json_decref(answer);
        return NULL;
    }
    return answer;
}
