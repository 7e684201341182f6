/*
 * client_main.c - kms-client: the KMS protocol from a shell.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kms/client.h"
#include "kms/mint.h"
#include "kms/scr.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwt.h"
#include "proto/msg.h"

#define SECRET_HEAP (64 * 1024)
#define LIST_MAX    KMS_LIST_MAX
#define FILE_MAX                                                                                   \
    (UINT64_C(1) << 30) /* a recording's file, which is held in memory until it is genuine */

/* The exit statuses; see the man page. */
enum { EXIT_OK = 0, EXIT_REFUSED = 1, EXIT_USAGE = 2, EXIT_TROUBLE = 3 };

/* Options have no letters, but for the few of everyday. */
enum option_id {
    OPT_URL,
    OPT_DOMAIN,
    OPT_CA,
    OPT_TOKEN,
    OPT_TOKEN_FILE,
    OPT_CERT,
    OPT_RELAY,
    OPT_CLIENT_ID,
    OPT_STATE,
    OPT_NO_STATE,
    OPT_ON_BEHALF_OF,
    OPT_TIMEOUT,
    OPT_JSON,
    OPT_QUIET,
    OPT_COUNT,
    OPT_AUTH_ID,
    OPT_KEY_URI,
    OPT_TTL,
    OPT_ANONYMOUS,
    OPT_BOUND_AFTER,
    OPT_BOUND_BEFORE,
    OPT_KIND,
    OPT_SECURITY,
    OPT_TYPE,
    OPT_LOC,
    OPT_TAG,
    OPT_PURPOSE,
    OPT_MATTER,
    OPT_CURSOR,
    OPT_OPEN_WITH,
    OPT_KEY,
    OPT_KID,
    OPT_ISSUER,
    OPT_AUDIENCE,
    OPT_SUBJECT,
    OPT_ORG,
    OPT_SCOPE,
    OPT_ROLE,
    OPT_EXPIRES_IN,
    OPT_HELP,
    OPT_VERSION,
    OPT_COUNT_OF_ALL,
};

#define BIT(id) (UINT64_C(1) << (id))
#define COMMON                                                                                     \
    (BIT(OPT_URL) | BIT(OPT_DOMAIN) | BIT(OPT_CA) | BIT(OPT_TOKEN) | BIT(OPT_TOKEN_FILE) |         \
     BIT(OPT_CERT) | BIT(OPT_KEY) | BIT(OPT_RELAY) | BIT(OPT_CLIENT_ID) | BIT(OPT_STATE) |         \
     BIT(OPT_NO_STATE) | BIT(OPT_ON_BEHALF_OF) | BIT(OPT_TIMEOUT))
#define OUTPUT (COMMON | BIT(OPT_JSON) | BIT(OPT_QUIET))
/* What a service says of what it asks for. */
#define SERVICE (BIT(OPT_PURPOSE) | BIT(OPT_MATTER) | BIT(OPT_OPEN_WITH))
#define TOKEN                                                                                      \
    (BIT(OPT_KEY) | BIT(OPT_KID) | BIT(OPT_ISSUER) | BIT(OPT_AUDIENCE) | BIT(OPT_SUBJECT) |        \
     BIT(OPT_ORG) | BIT(OPT_SCOPE) | BIT(OPT_ROLE) | BIT(OPT_EXPIRES_IN))

struct command;

/* The command line, taken apart. */
struct args {
    uint64_t given; /* BIT(OPT_...) */
    const char *text[OPT_COUNT_OF_ALL];
    const char *auth_ids[LIST_MAX];
    size_t n_auth_ids;
    const char *key_uris[LIST_MAX];
    size_t n_key_uris;
    const char *roles[LIST_MAX];
    size_t n_roles;
    long long count, ttl, anonymous, timeout, expires_in;
    char **words; /* what follows the command's name */
    int n_words;
    const struct command *command;
    struct client *client; /* NULL for commands that need no server */
    struct buf token;      /* of --token-file */
    struct buf state;      /* the state file's name */
    EVP_PKEY *open_with;   /* of --open-with; NULL: none */
};

struct command {
    const char *name;
    const char *sub; /* NULL: none */
    int min, max;    /* words after them */
    uint64_t options;
    int (*run)(struct args *a);
    const char *usage;
    const char *purpose;
};

static void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void
complain(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("kms-client: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

static int usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int
usage_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("kms-client: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputs("\nTry 'kms-client --help'.\n", stderr);
    va_end(ap);
    return EXIT_USAGE;
}

/* Output. */

/* With --json the answer as it came, keys and all.  Else people's, without keys; or only URIs. */

static int
print_json(const json_t *answer)
{
    struct buf text = BUF_INIT;
    int r = kms_json_put(&text, answer);

    if (r == KMS_OK)
        puts(buf_str(&text));
    buf_release(&text);
    return r == KMS_OK ? EXIT_OK : EXIT_TROUBLE;
}

static void
print_value(const char *name, const json_t *value)
{
    if (json_is_string(value))
        printf("%-16s %s\n", name, json_string_value(value));
    else if (json_is_integer(value))
        printf("%-16s %" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
    else if (json_is_boolean(value))
        printf("%-16s %s\n", name, json_is_true(value) ? "true" : "false");
    else if (json_is_object(value) && json_is_string(json_object_get(value, "name")))
        printf("%-16s %s\n", name, json_string_value(json_object_get(value, "name")));
    else if (json_is_object(value) && json_is_string(json_object_get(value, "uri")))
        printf("%-16s %s\n", name, json_string_value(json_object_get(value, "uri")));
}

/* A key, a resource, ...; one line for each member that is no key material. */
static void
print_object(const json_t *object)
{
    const char *name;
    json_t *value, *item;
    size_t i;

    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        if (strcmp(name, "jwk") == 0 || strcmp(name, "jwe") == 0 || strcmp(name, "message") == 0)
            continue;
        print_value(name, value);
        json_array_foreach(value, i, item) print_value(name, item);
    }
}

static void
print_quietly(const json_t *object)
{
    const char *uri = json_string_value(json_object_get(object, "uri"));

    if (uri != NULL)
        puts(uri);
}

/* What an answer to a service says besides the keys: for what they are, and where to go on. */
static void
print_walk(const json_t *answer)
{
    static const char *const names[] = {"service", "purpose", "matter", "cursor"};
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        print_value(names[i], json_object_get(answer, names[i]));
}

/* The objects of the answer's member of that name, which is one or an array of them. */
static int
print_answer(const struct args *a, const json_t *answer, const char *name)
{
    const json_t *what = json_object_get(answer, name);
    void (*print)(const json_t *) = a->given & BIT(OPT_QUIET) ? print_quietly : print_object;
    size_t i;

    if (a->given & BIT(OPT_JSON))
        return print_json(answer);
    if (json_is_object(what))
        print(what);
    for (i = 0; i < json_array_size(what); i++) {
        if (i > 0 && print == print_object)
            putchar('\n');
        print(json_array_get(what, i));
    }
    if (print == print_object && json_object_get(answer, "service") != NULL) {
        if (json_is_object(what) || i > 0)
            putchar('\n');
        print_walk(answer);
    }
    return EXIT_OK;
}

/* Says what went wrong, and gives the exit status. */
static int
report(const struct args *a, int err)
{
    const json_t *refusal = client_refusal(a->client);

    switch (err) {
    case KMS_OK:
        return EXIT_OK;
    case KMS_ERR_STATE:
        if (refusal != NULL && (a->given & BIT(OPT_JSON)))
            print_json(refusal);
        if (refusal == NULL)
            complain("%s", client_error(a->client));
        else
            complain("refused: %s (%" JSON_INTEGER_FORMAT ")", client_error(a->client),
                     json_object_get(refusal, "errorCode") != NULL
                         ? json_integer_value(json_object_get(refusal, "errorCode"))
                         : json_integer_value(json_object_get(refusal, "status")));
        return EXIT_REFUSED;
    case KMS_ERR_CONFIG:
        complain("%s", client_error(a->client));
        return EXIT_USAGE;
    default:
        complain("%s",
                 *client_error(a->client) != '\0' ? client_error(a->client) : kms_strerror(err));
        return EXIT_TROUBLE;
    }
}

/* Sends a request (taken over; NULL: no memory) and prints what it asked for. */
static int
ask(struct args *a, json_t *request, const char *name)
{
    json_t *answer = NULL;
    int r;

    if (request == NULL) {
        complain("out of memory");
        return EXIT_TROUBLE;
    }
    if ((r = client_call(a->client, request, &answer)) != KMS_OK ||
        (a->open_with != NULL && (r = client_open_keys(a->client, answer, a->open_with)) != KMS_OK))
        r = report(a, r);
    else
        r = print_answer(a, answer, name);
    json_decref(request);
    json_decref(answer);
    return r;
}

static json_t *
make_request(const char *method, const char *uri)
{
    return json_pack("{s:s,s:s}", "method", method, "uri", uri);
}

/* Adds a list; nothing when it is empty. */
static void
set_list(json_t *request, const char *name, const char *const *list, size_t n)
{
    json_t *array;
    size_t i;

    if (n == 0)
        return;
    array = json_array();
    for (i = 0; i < n; i++)
        json_array_append_new(array, json_string(list[i]));
    json_object_set_new(request, name, array);
}

static void
set_int(json_t *request, const struct args *a, enum option_id id, const char *name, long long v)
{
    if (a->given & BIT(id))
        json_object_set_new(request, name, json_integer(v));
}

static void
set_text(json_t *request, const struct args *a, enum option_id id, const char *name)
{
    if (a->given & BIT(id))
        json_object_set_new(request, name, json_string(a->text[id]));
}

/* Files. */

/* All of a file, "-" or NULL being standard input.  KMS_ERR_LENGTH: more than max. */
static int
read_all(const char *file, size_t max, struct buf *out)
{
    FILE *f = file == NULL || strcmp(file, "-") == 0 ? stdin : fopen(file, "re");
    char chunk[4096];
    size_t n;
    int r = KMS_OK;

    if (f == NULL)
        return KMS_ERR_SYSTEM;
    while (r == KMS_OK && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        r = out->len + n > max ? KMS_ERR_LENGTH : buf_put(out, chunk, n);
    if (r == KMS_OK && ferror(f))
        r = KMS_ERR_SYSTEM;
    OPENSSL_cleanse(chunk, sizeof(chunk));
    if (f != stdin)
        fclose(f);
    return r;
}

static int
cannot_read(const char *file, int err)
{
    complain("%s: %s", file == NULL ? "standard input" : file,
             err == KMS_ERR_SYSTEM   ? strerror(errno)
             : err == KMS_ERR_LENGTH ? "too large"
                                     : kms_strerror(err));
    return EXIT_USAGE;
}

static bool
is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Without white space around it, as files and shells add it. */
static const char *
trimmed(struct buf *text)
{
    size_t start = 0;

    while (text->len > 0 && is_space((char)text->data[text->len - 1]))
        buf_truncate(text, text->len - 1);
    while (start < text->len && is_space((char)text->data[start]))
        start++;
    buf_consume(text, start);
    return buf_str(text);
}

/* The commands. */

static int
show_channel(const struct args *a)
{
    char date[KMS_DATE_LEN + 1];
    json_t *channel;

    if (client_channel(a->client) == NULL) {
        complain("there is no channel");
        return EXIT_REFUSED;
    }
    kms_date_format(date, client_channel_expires(a->client));
    channel = json_pack("{s:{s:s,s:s}}", "channel", "uri", client_channel(a->client),
                        "expirationDate", date);
    print_answer(a, channel, "channel");
    json_decref(channel);
    return EXIT_OK;
}

static int
run_channel(struct args *a)
{
    const char *what = a->n_words > 0 ? a->words[0] : "open";
    int r;

    if (strcmp(what, "open") == 0)
        r = client_open(a->client, true);
    else if (strcmp(what, "close") == 0)
        return report(a, client_close(a->client));
    else if (strcmp(what, "show") == 0)
        r = KMS_OK;
    else
        return usage_error("channel: open, show or close, not '%s'", what);
    return r == KMS_OK ? show_channel(a) : report(a, r);
}

static int
run_ping(struct args *a)
{
    int r = ask(a, make_request("update", "/ping"), "ping");

    if (r == EXIT_OK && !(a->given & (BIT(OPT_JSON) | BIT(OPT_QUIET))))
        puts("the server answers");
    return r;
}

static int
run_key_create(struct args *a)
{
    json_t *request = make_request("create", "/keys");

    json_object_set_new(request, "count", json_integer(a->given & BIT(OPT_COUNT) ? a->count : 1));
    return ask(a, request, "keys");
}

/* What a service adds to a request. */
static void
set_service(json_t *request, const struct args *a)
{
    set_text(request, a, OPT_PURPOSE, "purpose");
    set_text(request, a, OPT_MATTER, "matter");
    set_text(request, a, OPT_CURSOR, "cursor");
}

static int
run_key_get(struct args *a)
{
    json_t *request = make_request("retrieve", a->words[0]);

    set_service(request, a);
    return ask(a, request, "key");
}

static int
run_key_bind(struct args *a)
{
    json_t *request = make_request("update", a->words[0]);

    json_object_set_new(request, "resourceUri", json_string(a->words[1]));
    return ask(a, request, "key");
}

static int
run_resource_create(struct args *a)
{
    json_t *request = make_request("create", "/resources");

    set_list(request, "authIds", a->auth_ids, a->n_auth_ids);
    set_list(request, "keyUris", a->key_uris, a->n_key_uris);
    set_int(request, a, OPT_TTL, "ttl", a->ttl);
    set_int(request, a, OPT_ANONYMOUS, "anonymous", a->anonymous);
    set_text(request, a, OPT_KIND, "kind");
    set_text(request, a, OPT_SECURITY, "security");
    set_int(request, a, OPT_COUNT, "count", a->count);
    return ask(a, request, "resource");
}

static int
run_resource_show(struct args *a)
{
    return ask(a, make_request("retrieve", a->words[0]), "resource");
}

/* The URI of a resource with something behind it. */
static json_t *
make_sub_request(const char *method, const char *resource, const char *sub)
{
    return json_pack("{s:s,s:s++}", "method", method, "uri", resource, "/", sub);
}

static int
run_resource_rotate(struct args *a)
{
    json_t *request = make_sub_request("create", a->words[0], "keys");

    json_object_set_new(request, "count", json_integer(a->given & BIT(OPT_COUNT) ? a->count : 1));
    return ask(a, request, "keys");
}

static int
run_resource_keys(struct args *a)
{
    json_t *request = make_sub_request("retrieve", a->words[0], "keys");

    set_int(request, a, OPT_COUNT, "count", a->count);
    set_text(request, a, OPT_BOUND_AFTER, "boundAfter");
    set_text(request, a, OPT_BOUND_BEFORE, "boundBefore");
    set_service(request, a);
    return ask(a, request, "keys");
}

static int
run_resource_releases(struct args *a)
{
    return ask(a, make_sub_request("retrieve", a->words[0], "releases"), "releases");
}

static int
run_resource_grant(struct args *a)
{
    json_t *request = make_request("create", "/authorizations");

    if (a->n_words == 1 && !(a->given & BIT(OPT_ANONYMOUS))) {
        json_decref(request);
        return usage_error("resource grant: name somebody, or use --anonymous");
    }
    json_object_set_new(request, "resourceUri", json_string(a->words[0]));
    set_list(request, "authIds", (const char *const *)a->words + 1, (size_t)a->n_words - 1);
    set_int(request, a, OPT_ANONYMOUS, "anonymous", a->anonymous);
    return ask(a, request, "authorizations");
}

static int
run_resource_revoke(struct args *a)
{
    json_t *request = make_request("delete", "/authorizations");

    json_object_set_new(request, "resourceUri", json_string(a->words[0]));
    set_list(request, "authIds", (const char *const *)a->words + 1, (size_t)a->n_words - 1);
    return ask(a, request, "authorizations");
}

/* An authId as it stands in a query. */
static int
put_escaped(struct buf *out, const char *text)
{
    int r = KMS_OK;

    for (; *text != '\0' && r == KMS_OK; text++) {
        unsigned char c = (unsigned char)*text;

        if ((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
            strchr("-._~", c) != NULL)
            r = buf_putc(out, (char)c);
        else
            r = buf_putf(out, "%%%02X", c);
    }
    return r;
}

/* All keys that a service may see under a purpose, or a matter: /COLLECTION/NAME/keys. */
static int
walk(struct args *a, const char *collection)
{
    struct buf uri = BUF_INIT;
    json_t *request;
    int r;

    if ((r = buf_putf(&uri, "/%s/", collection)) == KMS_OK &&
        (r = put_escaped(&uri, a->words[0])) == KMS_OK)
        r = buf_puts(&uri, "/keys");
    request = r == KMS_OK ? make_request("retrieve", buf_str(&uri)) : NULL;
    buf_release(&uri);
    set_int(request, a, OPT_COUNT, "count", a->count);
    set_service(request, a);
    return ask(a, request, "keys");
}

static int
run_purpose_keys(struct args *a)
{
    return walk(a, "purposes");
}

static int
run_matter_keys(struct args *a)
{
    return walk(a, "matters");
}

static int
run_authorizations(struct args *a)
{
    struct buf sub = BUF_INIT;
    int r = buf_puts(&sub, "authorizations");

    if (a->n_words > 1 && r == KMS_OK && (r = buf_puts(&sub, "?authId=")) == KMS_OK)
        r = put_escaped(&sub, a->words[1]);
    r = ask(a, r == KMS_OK ? make_sub_request("retrieve", a->words[0], buf_str(&sub)) : NULL,
            "authorizations");
    buf_release(&sub);
    return r;
}

/* Any request: for trying out what has no command of its own. */
static int
run_request(struct args *a)
{
    json_t *request = make_request(a->words[0], a->words[1]), *members = NULL, *answer = NULL;
    int r;

    if (a->n_words > 2 && (kms_json_parse(&members, a->words[2], strlen(a->words[2])) != KMS_OK ||
                           json_object_update(request, members) != 0)) {
        json_decref(request);
        return usage_error("request: '%s' is not a JSON object", a->words[2]);
    }
    json_decref(members);
    if ((r = client_call(a->client, request, &answer)) != KMS_OK)
        r = report(a, r);
    else
        r = print_json(answer);
    json_decref(request);
    json_decref(answer);
    return r;
}

/* Content as the Webex SDK makes it: compact JWE, dir, A256GCM, the key's URI as kid. */

static int
run_encrypt(struct args *a)
{
    const char *uri = a->words[0], *file = a->n_words > 1 ? a->words[1] : NULL;
    struct buf plain = BUF_INIT, sealed = BUF_INIT;
    struct secret *key = NULL;
    int r;

    if ((r = read_all(file, CLIENT_CONTENT_MAX, &plain)) != KMS_OK) {
        r = cannot_read(file, r);
    } else if ((r = client_get_key(a->client, uri, NULL, NULL, &key)) != KMS_OK) {
        r = report(a, r);
    } else if ((r = jwe_seal_dir(&sealed, uri, key->b, plain.data, plain.len)) != KMS_OK) {
        complain("cannot encrypt: %s", kms_strerror(r));
        r = EXIT_TROUBLE;
    } else {
        puts(buf_str(&sealed));
    }
    secret_free(key);
    buf_release(&plain);
    buf_release(&sealed);
    return r;
}

static int
run_decrypt(struct args *a)
{
    const char *file = a->n_words > 0 ? a->words[0] : NULL, *uri;
    struct buf text = BUF_INIT, plain = BUF_INIT;
    json_t *members = json_object();
    struct secret *key = NULL;
    struct jwe jwe;
    int r;

    if ((r = read_all(file, JWE_MAX + 16, &text)) != KMS_OK) {
        r = cannot_read(file, r);
        goto out;
    }
    (void)trimmed(&text);
    if ((r = jwe_parse(&jwe, buf_str(&text), text.len)) != KMS_OK || jwe.alg != JWE_DIR) {
        complain("this is no JWE with alg dir and enc A256GCM");
        r = EXIT_USAGE;
        goto out;
    }
    uri = a->n_key_uris > 0 ? a->key_uris[0] : jwe.kid;
    if (*uri == '\0') {
        r = usage_error("the JWE names no key: use --key-uri");
        goto out;
    }
    set_service(members, a);
    if ((r = client_get_key(a->client, uri, members, a->open_with, &key)) != KMS_OK) {
        r = report(a, r);
        goto out;
    }
    if (jwe_open(&jwe, key->b, &plain) != KMS_OK) {
        complain("the content is not genuine, or of another key");
        r = EXIT_TROUBLE;
        goto out;
    }
    fwrite(plain.data, 1, plain.len, stdout);
    r = EXIT_OK;
out:
    secret_free(key);
    json_decref(members);
    buf_release(&text);
    buf_release(&plain);
    return r;
}

/* Recordings. */

static int
run_recording_create(struct args *a)
{
    json_t *request = make_sub_request("create", a->words[0], "recordings");

    json_object_set_new(request, "type",
                        json_string(a->given & BIT(OPT_TYPE) ? a->text[OPT_TYPE] : "recording"));
    set_text(request, a, OPT_LOC, "loc");
    return ask(a, request, "recording");
}

static int
run_recording_update(struct args *a)
{
    json_t *request = make_request("update", a->words[0]);

    set_text(request, a, OPT_LOC, "loc");
    set_text(request, a, OPT_TAG, "tag");
    return ask(a, request, "recording");
}

static int
run_recording_show(struct args *a)
{
    return ask(a, make_request("retrieve", a->words[0]), "recording");
}

static int
run_recording_list(struct args *a)
{
    return ask(a, make_sub_request("retrieve", a->words[0], "recordings"), "recordings");
}

static int
run_recording_delete(struct args *a)
{
    return ask(a, make_request("delete", a->words[0]), "recording");
}

/* What a recording's message holds: with the container's key that it names. */
static int
open_message(struct args *a, const json_t *recording, struct scr *scr)
{
    const char *text = json_string_value(json_object_get(recording, "message"));
    const char *uri = json_string_value(json_object_get(recording, "keyUri"));
    struct buf plain = BUF_INIT;
    struct secret *key = NULL;
    struct jwe jwe;
    int r;

    if (text == NULL || uri == NULL || jwe_parse(&jwe, text, strlen(text)) != KMS_OK ||
        jwe.alg != JWE_DIR || strcmp(jwe.kid, uri) != 0) {
        complain("the answer has no message, or not to the key that it names");
        return EXIT_TROUBLE;
    }
    if ((r = client_get_key(a->client, uri, NULL, NULL, &key)) != KMS_OK) {
        r = report(a, r);
    } else if (jwe_open(&jwe, key->b, &plain) != KMS_OK) {
        complain("the message is not genuine, or of another key");
        r = EXIT_TROUBLE;
    } else if ((r = scr_parse(scr, buf_str(&plain), plain.len)) != KMS_OK) {
        complain("the message holds no Secure Content Resource: %s", kms_strerror(r));
        r = EXIT_TROUBLE;
    }
    secret_free(key);
    buf_release(&plain);
    return r;
}

static int
get_recording(struct args *a, struct scr *scr)
{
    json_t *request = make_request("retrieve", a->words[0]), *answer = NULL;
    int r;

    if (request == NULL) {
        complain("out of memory");
        return EXIT_TROUBLE;
    }
    if ((r = client_call(a->client, request, &answer)) != KMS_OK)
        r = report(a, r);
    else
        r = open_message(a, json_object_get(answer, "recording"), scr);
    json_decref(request);
    json_decref(answer);
    return r;
}

/* The path of a file: URL of this machine (RFC 8089).  False: it is none. */
static bool
file_path(struct buf *out, const char *url)
{
    static const char *const prefixes[] = {"file:///", "file://localhost/", "file:/"};
    const char *p = NULL;
    size_t i;

    for (i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]) && p == NULL; i++)
        if (strncmp(url, prefixes[i], strlen(prefixes[i])) == 0)
            p = url + strlen(prefixes[i]) - 1;
    if (p == NULL)
        return false;
    for (; *p != '\0'; p++) {
        char hex[3] = {0};
        char c = *p;

        if (c == '?' || c == '#')
            return false;
        if (c == '%') {
            if (!isxdigit((unsigned char)p[1]) || !isxdigit((unsigned char)p[2]))
                return false;
            memcpy(hex, p + 1, 2);
            c = (char)strtol(hex, NULL, 16);
            p += 2;
        }
        if (c == '\0' || buf_putc(out, c) != KMS_OK)
            return false;
    }
    return true;
}

/* The file's plaintext comes out when all of it is known to be genuine, not before. */
static int
run_recording_open(struct args *a)
{
    struct buf path = BUF_INIT, file = BUF_INIT;
    const char *name = a->n_words > 1 ? a->words[1] : NULL;
    struct scr scr = {0};
    int r;

    if ((r = get_recording(a, &scr)) != EXIT_OK)
        goto out;
    if (!scr.has_tag) {
        complain("the recording has no file yet");
        r = EXIT_USAGE;
        goto out;
    }
    if (name == NULL) {
        if (!file_path(&path, buf_str(&scr.loc))) {
            complain("its file is at \"%s\": fetch it, and name the copy", buf_str(&scr.loc));
            r = EXIT_USAGE;
            goto out;
        }
        name = buf_str(&path);
    }
    if ((r = read_all(name, FILE_MAX, &file)) != KMS_OK) {
        r = cannot_read(name, r);
    } else if (scr_open(&scr, file.data, file.len) != KMS_OK) {
        complain("%s: not the file of this recording, or changed", name);
        r = EXIT_TROUBLE;
    } else {
        fwrite(file.data, 1, file.len, stdout);
    }
out:
    scr_release(&scr);
    buf_release(&path);
    buf_release(&file);
    return r;
}

/* Tells the server of a file that was made. */
static int
put_tag(struct args *a, const struct scr *scr)
{
    json_t *request = make_request("update", a->words[0]), *answer = NULL;
    char tag[B64URL_LEN(SCR_TAG_LEN) + 1] = {0};
    int r;

    b64url_encode(tag, scr->tag, SCR_TAG_LEN);
    if (json_object_set_new(request, "tag", json_string(tag)) != 0) {
        json_decref(request);
        complain("out of memory");
        return EXIT_TROUBLE;
    }
    set_text(request, a, OPT_LOC, "loc");
    if ((r = client_call(a->client, request, &answer)) != KMS_OK)
        r = report(a, r);
    json_decref(request);
    json_decref(answer);
    return r;
}

/* As a recorder does: the encrypted file comes out, and the server learns its tag. */
static int
run_recording_seal(struct args *a)
{
    const char *name = a->n_words > 1 ? a->words[1] : NULL;
    struct buf file = BUF_INIT;
    struct scr scr = {0};
    int r;

    if ((r = read_all(name, FILE_MAX, &file)) != KMS_OK) {
        r = cannot_read(name, r);
        goto out;
    }
    if ((r = get_recording(a, &scr)) != EXIT_OK)
        goto out;
    if (scr.has_tag) {
        complain("the recording has its file already; a second one under the same key and iv would "
                 "give both away: make a new recording");
        r = EXIT_USAGE;
    } else if ((r = scr_seal(&scr, file.data, file.len)) != KMS_OK) {
        complain("cannot encrypt: %s", kms_strerror(r));
        r = EXIT_TROUBLE;
    } else if (fwrite(file.data, 1, file.len, stdout) != file.len || fflush(stdout) != 0) {
        r = EXIT_TROUBLE; /* main says why; and there is no file to tell of */
    } else {
        r = put_tag(a, &scr);
    }
out:
    scr_release(&scr);
    buf_release(&file);
    return r;
}

/* The value of an option, else of the environment, else fallback (NULL: there must be one). */
static const char *
setting(const struct args *a, enum option_id id, const char *env, const char *fallback)
{
    const char *value = a->text[id];

    if (value == NULL && env != NULL)
        value = getenv(env);
    return value == NULL || *value == '\0' ? fallback : value;
}

static int
run_token(struct args *a)
{
    struct mint m = {
        .key_file = setting(a, OPT_KEY, "KMS_TOKEN_KEY_FILE", NULL),
        .kid = setting(a, OPT_KID, "KMS_TOKEN_KID", ""),
        .issuer = setting(a, OPT_ISSUER, "KMS_TOKEN_ISSUER", NULL),
        .audience = setting(a, OPT_AUDIENCE, "KMS_TOKEN_AUDIENCE", NULL),
        .subject = a->text[OPT_SUBJECT],
        .org = setting(a, OPT_ORG, "KMS_ORG", NULL),
        .scope = a->given & BIT(OPT_SCOPE) ? a->text[OPT_SCOPE] : "spark:kms",
        .roles = a->roles,
        .n_roles = a->n_roles,
        .lifetime = a->given & BIT(OPT_EXPIRES_IN) ? a->expires_in : 3600,
    };
    struct buf token = BUF_INIT;
    int r;

    if (m.key_file == NULL || m.issuer == NULL || m.audience == NULL || m.subject == NULL ||
        m.org == NULL)
        return usage_error("token: needs --key, --issuer, --audience, --subject and --org");
    switch (r = mint_token(&token, &m, time(NULL))) {
    case KMS_OK:
        puts(buf_str(&token));
        break;
    case KMS_ERR_CONFIG:
        complain("%s: %s", m.key_file, errno != 0 ? strerror(errno) : "holds no private key");
        r = EXIT_USAGE;
        break;
    case KMS_ERR_ALGORITHM:
        complain("%s: not an EC P-256 key", m.key_file);
        r = EXIT_USAGE;
        break;
    default:
        complain("cannot sign: %s", kms_strerror(r));
        r = EXIT_TROUBLE;
        break;
    }
    buf_release(&token);
    return r;
}

/* clang-format off */
static const struct command commands[] = {
    {"channel", NULL, 0, 1, OUTPUT, run_channel,
     "channel [open|show|close]", "open a new channel, show or delete the present one"},
    {"ping", NULL, 0, 0, OUTPUT, run_ping,
     "ping", "see whether the server answers on the channel"},
    {"key", "create", 0, 0, OUTPUT | BIT(OPT_COUNT), run_key_create,
     "key create [--count N]", "make unbound keys"},
    {"key", "get", 1, 1, OUTPUT | SERVICE, run_key_get,
     "key get KEY [--purpose NAME] [--matter ID]", "retrieve a key (with --json its value, too)"},
    {"key", "bind", 2, 2, OUTPUT, run_key_bind,
     "key bind KEY RESOURCE", "bind a key to a resource"},
    {"resource", "create", 0, 0,
     OUTPUT | BIT(OPT_AUTH_ID) | BIT(OPT_KEY_URI) | BIT(OPT_TTL) | BIT(OPT_ANONYMOUS) | BIT(OPT_KIND) |
     BIT(OPT_SECURITY) | BIT(OPT_COUNT),
     run_resource_create,
     "resource create [--auth-id ID]... [--key-uri KEY]... [--ttl SECONDS] [--anonymous N]\n"
     "        [--kind KIND] [--security standard|zero-trust] [--count N]",
     "make a resource, authorise others, bind keys or make new ones"},
    {"resource", "rotate", 1, 1, OUTPUT | BIT(OPT_COUNT), run_resource_rotate,
     "resource rotate RESOURCE [--count N]", "make new keys for a resource: the newest is the active one"},
    {"resource", "show", 1, 1, OUTPUT, run_resource_show,
     "resource show RESOURCE", "retrieve a resource"},
    {"resource", "keys", 1, 1,
     OUTPUT | SERVICE | BIT(OPT_CURSOR) | BIT(OPT_COUNT) | BIT(OPT_BOUND_AFTER) | BIT(OPT_BOUND_BEFORE),
     run_resource_keys,
     "resource keys RESOURCE [--count N] [--bound-after DATE] [--bound-before DATE]\n"
     "        [--purpose NAME] [--matter ID] [--cursor CURSOR]",
     "retrieve the keys of a resource"},
    {"resource", "releases", 1, 1, OUTPUT, run_resource_releases,
     "resource releases RESOURCE", "see which service or officer got keys of it, and what for"},
    {"purpose", "keys", 1, 1, OUTPUT | SERVICE | BIT(OPT_CURSOR) | BIT(OPT_COUNT), run_purpose_keys,
     "purpose keys NAME [--count N] [--cursor CURSOR]", "as a service: walk all keys under a purpose"},
    {"matter", "keys", 1, 1, OUTPUT | SERVICE | BIT(OPT_CURSOR) | BIT(OPT_COUNT), run_matter_keys,
     "matter keys ID [--count N] [--cursor CURSOR]", "as a service: walk all keys of a matter"},
    {"resource", "grant", 1, 1 + LIST_MAX, OUTPUT | BIT(OPT_ANONYMOUS), run_resource_grant,
     "resource grant RESOURCE [ID]... [--anonymous N]", "authorise users, or other resources"},
    {"resource", "revoke", 2, 1 + LIST_MAX, OUTPUT, run_resource_revoke,
     "resource revoke RESOURCE ID...", "take authorisations away"},
    {"authorizations", NULL, 1, 2, OUTPUT, run_authorizations,
     "authorizations RESOURCE [ID]", "list who is authorised"},
    {"recording", "create", 1, 1, OUTPUT | BIT(OPT_TYPE) | BIT(OPT_LOC), run_recording_create,
     "recording create RESOURCE [--type recording|transcript] [--loc URI]",
     "make a recording of a container, with a key of its own"},
    {"recording", "update", 1, 1, OUTPUT | BIT(OPT_LOC) | BIT(OPT_TAG), run_recording_update,
     "recording update RECORDING [--loc URI] [--tag TAG]", "say where its file is, and what its tag is"},
    {"recording", "show", 1, 1, OUTPUT, run_recording_show,
     "recording show RECORDING", "retrieve a recording (with --json its message, too)"},
    {"recording", "list", 1, 1, OUTPUT, run_recording_list,
     "recording list RESOURCE", "retrieve the recordings of a container"},
    {"recording", "delete", 1, 1, OUTPUT, run_recording_delete,
     "recording delete RECORDING", "destroy a recording's key"},
    {"recording", "seal", 1, 2, COMMON | BIT(OPT_LOC), run_recording_seal,
     "recording seal RECORDING [FILE] [--loc URI]", "encrypt a file, or standard input, as the recording"},
    {"recording", "open", 1, 2, COMMON, run_recording_open,
     "recording open RECORDING [FILE]", "decrypt a recording's file, or this copy of it"},
    {"encrypt", NULL, 1, 2, COMMON, run_encrypt,
     "encrypt KEY [FILE]", "make a compact JWE of a file or of standard input"},
    {"decrypt", NULL, 0, 1, COMMON | SERVICE | BIT(OPT_KEY_URI), run_decrypt,
     "decrypt [FILE] [--key-uri KEY] [--purpose NAME] [--matter ID]", "and back; the JWE names the key"},
    {"request", NULL, 2, 3, COMMON | BIT(OPT_JSON), run_request,
     "request METHOD URI [MEMBERS]", "send any request; MEMBERS is a JSON object"},
    {"token", NULL, 0, 0, TOKEN, run_token,
     "token --subject USER [--key FILE] [--kid ID] [--issuer URL] [--audience NAME] [--org ORG]\n"
     "        [--scope SCOPE] [--role ROLE]... [--expires-in SECONDS]",
     "sign a development access token"},
};

static const struct option options[] = {
    {"url", required_argument, NULL, OPT_URL},
    {"domain", required_argument, NULL, OPT_DOMAIN},
    {"ca", required_argument, NULL, OPT_CA},
    {"token", required_argument, NULL, OPT_TOKEN},
    {"token-file", required_argument, NULL, OPT_TOKEN_FILE},
    {"cert", required_argument, NULL, OPT_CERT},
    {"relay", no_argument, NULL, OPT_RELAY},
    {"client-id", required_argument, NULL, OPT_CLIENT_ID},
    {"state", required_argument, NULL, OPT_STATE},
    {"no-state", no_argument, NULL, OPT_NO_STATE},
    {"on-behalf-of", required_argument, NULL, OPT_ON_BEHALF_OF},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"json", no_argument, NULL, OPT_JSON},
    {"quiet", no_argument, NULL, OPT_QUIET},
    {"count", required_argument, NULL, OPT_COUNT},
    {"auth-id", required_argument, NULL, OPT_AUTH_ID},
    {"key-uri", required_argument, NULL, OPT_KEY_URI},
    {"ttl", required_argument, NULL, OPT_TTL},
    {"anonymous", required_argument, NULL, OPT_ANONYMOUS},
    {"bound-after", required_argument, NULL, OPT_BOUND_AFTER},
    {"bound-before", required_argument, NULL, OPT_BOUND_BEFORE},
    {"kind", required_argument, NULL, OPT_KIND},
    {"security", required_argument, NULL, OPT_SECURITY},
    {"type", required_argument, NULL, OPT_TYPE},
    {"loc", required_argument, NULL, OPT_LOC},
    {"tag", required_argument, NULL, OPT_TAG},
    {"purpose", required_argument, NULL, OPT_PURPOSE},
    {"matter", required_argument, NULL, OPT_MATTER},
    {"cursor", required_argument, NULL, OPT_CURSOR},
    {"open-with", required_argument, NULL, OPT_OPEN_WITH},
    {"key", required_argument, NULL, OPT_KEY},
    {"kid", required_argument, NULL, OPT_KID},
    {"issuer", required_argument, NULL, OPT_ISSUER},
    {"audience", required_argument, NULL, OPT_AUDIENCE},
    {"subject", required_argument, NULL, OPT_SUBJECT},
    {"org", required_argument, NULL, OPT_ORG},
    {"scope", required_argument, NULL, OPT_SCOPE},
    {"role", required_argument, NULL, OPT_ROLE},
    {"expires-in", required_argument, NULL, OPT_EXPIRES_IN},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};
/* clang-format on */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void
help(void)
{
    size_t i;

    puts("usage: kms-client [OPTION]... COMMAND ...\n\nCommands:");
    for (i = 0; i < COUNT(commands); i++)
        printf("  %s\n        %s\n", commands[i].usage, commands[i].purpose);
    fputs("\n"
          "Options (and what they default to):\n"
          "  --url URL            https://HOST[:PORT] of the server ($KMS_URL)\n"
          "  --domain DOMAIN      of kms: URIs ($KMS_DOMAIN)\n"
          "  --ca FILE            CA certificates, PEM ($KMS_CA_FILE, else the system's)\n"
          "  --token TOKEN        access token ($KMS_TOKEN); others can see arguments, so better\n"
          "  --token-file FILE    the file that holds it\n"
          "  --cert FILE          act as a cloud service: its certificate and chain, PEM\n"
          "  --key FILE           and its private key, PEM\n"
          "  --relay              prove it in messages, as behind a relay, not to the connection\n"
          "  --purpose NAME       what the service asks for: indexing, dlp, ediscovery, archival\n"
          "  --matter ID          under which matter\n"
          "  --open-with FILE     private key, PEM, of a service whose keys come sealed\n"
          "  --client-id ID       of the device that asks (kms-client)\n"
          "  --on-behalf-of USER  retrieve as a compliance officer\n"
          "  --state FILE         where channels are kept ($XDG_RUNTIME_DIR/kms-client.json)\n"
          "  --no-state           keep nothing: a new channel each time\n"
          "  --timeout SECONDS    for each exchange with the server (30)\n"
          "  --json               print answers as they come, with the values of keys\n"
          "  -q, --quiet          print only URIs\n"
          "  -h, --help; --version\n"
          "\n"
          "Exit status: 0 done, 1 refused by the server, 2 wrong usage, 3 no connection or no "
          "trust.\n",
          stdout);
}

static bool
parse_number(const char *text, long long min, long long *out)
{
    char *end;

    errno = 0;
    *out = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *out >= min;
}

static bool
append(const char **list, size_t *n, const char *value)
{
    if (*n == LIST_MAX)
        return false;
    list[(*n)++] = value;
    return true;
}

/* One option with its value.  Ranges are the server's business, but what is no number cannot be
 * sent. */
static bool
take_option(struct args *a, enum option_id id, const char *value)
{
    a->given |= BIT(id);
    a->text[id] = value;
    switch (id) {
    case OPT_COUNT:
        return parse_number(value, 0, &a->count);
    case OPT_TTL:
        return parse_number(value, 0, &a->ttl);
    case OPT_ANONYMOUS:
        return parse_number(value, 0, &a->anonymous);
    case OPT_TIMEOUT:
        return parse_number(value, 1, &a->timeout) && a->timeout <= 3600;
    case OPT_EXPIRES_IN:
        return parse_number(value, -1000000000, &a->expires_in) && a->expires_in <= 1000000000;
    case OPT_AUTH_ID:
        return append(a->auth_ids, &a->n_auth_ids, value);
    case OPT_KEY_URI:
        return append(a->key_uris, &a->n_key_uris, value);
    case OPT_ROLE:
        return append(a->roles, &a->n_roles, value);
    default:
        return true;
    }
}

/* Half a command is answered with the whole ones that begin so. */
static int
unknown_command(const char *name)
{
    bool known = false;
    size_t i;

    for (i = 0; i < COUNT(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            complain("usage: kms-client %s", commands[i].usage);
            known = true;
        }
    }
    return known ? EXIT_USAGE : usage_error("%s: no such command", name);
}

/* -1: go on; else exit with this. */
static int
parse_args(struct args *a, int argc, char **argv)
{
    int id, index;
    size_t i, words;

    /* A leading ':' keeps getopt quiet, so that messages look alike; short options are the letters'
     * own codes. */
    while ((id = getopt_long(argc, argv, ":qh", options, &index)) != -1) {
        if (id == '?' || id == ':')
            return usage_error(id == ':' ? "%s: needs a value" : "%s: no such option",
                               argv[optind - 1]);
        if (id == 'q')
            id = OPT_QUIET;
        if (id == 'h')
            id = OPT_HELP;
        if (!take_option(a, (enum option_id)id, optarg))
            return usage_error("--%s: '%s' is not possible", options[id].name, optarg);
    }
    if (a->given & BIT(OPT_HELP)) {
        help();
        return EXIT_OK;
    }
    if (a->given & BIT(OPT_VERSION)) {
        puts("kms-client " PACKAGE_VERSION);
        return EXIT_OK;
    }
    if (optind == argc)
        return usage_error("no command");
    for (i = 0; i < COUNT(commands) && a->command == NULL; i++) {
        words = commands[i].sub == NULL ? 1 : 2;
        if ((size_t)(argc - optind) >= words && strcmp(argv[optind], commands[i].name) == 0 &&
            (words == 1 || strcmp(argv[optind + 1], commands[i].sub) == 0)) {
            a->command = &commands[i];
            a->words = argv + optind + words;
            a->n_words = argc - optind - (int)words;
        }
    }
    if (a->command == NULL)
        return unknown_command(argv[optind]);
    if (a->n_words < a->command->min || a->n_words > a->command->max)
        return usage_error("usage: kms-client %s", a->command->usage);
    for (i = 0; i < COUNT(options) - 1; i++)
        if ((a->given & ~a->command->options) & BIT(options[i].val))
            return usage_error("--%s does not go with this command", options[i].name);
    return -1;
}

/* A service has a certificate and no token. */
static int
find_service(const struct args *a)
{
    if (!(a->given & BIT(OPT_KEY)))
        return usage_error("--cert needs --key");
    if (a->given & (BIT(OPT_TOKEN) | BIT(OPT_TOKEN_FILE) | BIT(OPT_ON_BEHALF_OF)))
        return usage_error(
            "--cert is for services, which have no token and ask on nobody's behalf");
    return EXIT_OK;
}

/* The token is $KMS_TOKEN, or of an option, or in a file. */
static int
find_token(struct args *a, const char **token)
{
    const char *file = a->text[OPT_TOKEN_FILE];
    int r;

    *token = NULL;
    if (a->given & BIT(OPT_CERT))
        return find_service(a);
    if (a->given & (BIT(OPT_KEY) | BIT(OPT_RELAY)))
        return usage_error("--key and --relay are for services: they need --cert");
    *token = setting(a, OPT_TOKEN, file == NULL ? "KMS_TOKEN" : NULL, NULL);
    if (*token != NULL && file != NULL)
        return usage_error("--token and --token-file exclude each other");
    if (file != NULL) {
        if ((r = read_all(file, JWT_MAX, &a->token)) != KMS_OK)
            return cannot_read(file, r);
        *token = trimmed(&a->token);
    }
    if (*token == NULL || **token == '\0')
        return usage_error("no access token: use --token-file or KMS_TOKEN");
    return EXIT_OK;
}

/* The private key of --open-with. */
static int
find_open_with(struct args *a)
{
    const char *file = a->text[OPT_OPEN_WITH];
    BIO *bio;

    if (file == NULL)
        return EXIT_OK;
    if ((bio = BIO_new_file(file, "r")) == NULL) {
        complain("%s: %s", file, strerror(errno));
    } else if ((a->open_with = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL)) == NULL) {
        complain("%s: holds no private key", file);
    }
    BIO_free(bio);
    if (a->open_with != NULL)
        return EXIT_OK;
    ERR_clear_error();
    return EXIT_USAGE;
}

/*
 * The default place of the state: gone at logout where there is a runtime directory, else the
 * user's state directory, which is made if need be.
 */
static int
find_state(struct args *a, const char **state)
{
    const char *dir = getenv("XDG_RUNTIME_DIR"), *home = getenv("HOME");
    int r;

    *state = NULL;
    if (a->given & BIT(OPT_NO_STATE))
        return EXIT_OK;
    if (a->given & BIT(OPT_STATE)) {
        *state = a->text[OPT_STATE];
        return EXIT_OK;
    }
    if (dir != NULL && *dir == '/') {
        r = buf_puts(&a->state, dir);
    } else if ((dir = getenv("XDG_STATE_HOME")) != NULL && *dir == '/') {
        r = buf_puts(&a->state, dir);
        mkdir(dir, 0700);
    } else if (home != NULL && *home == '/') {
        r = buf_putf(&a->state, "%s/.local", home);
        mkdir(buf_str(&a->state), 0700);
        if (r == KMS_OK)
            r = buf_puts(&a->state, "/state");
        mkdir(buf_str(&a->state), 0700);
    } else {
        return EXIT_OK; /* nowhere to keep it */
    }
    if (r != KMS_OK || buf_puts(&a->state, "/kms-client.json") != KMS_OK) {
        complain("out of memory");
        return EXIT_TROUBLE;
    }
    *state = buf_str(&a->state);
    return EXIT_OK;
}

static int
run_online(struct args *a)
{
    struct client_options o = {
        .url = setting(a, OPT_URL, "KMS_URL", NULL),
        .domain = setting(a, OPT_DOMAIN, "KMS_DOMAIN", NULL),
        .ca_file = setting(a, OPT_CA, "KMS_CA_FILE", NULL),
        .client_id = setting(a, OPT_CLIENT_ID, NULL, "kms-client"),
        .on_behalf_of = a->text[OPT_ON_BEHALF_OF],
        .cert_file = a->text[OPT_CERT],
        .key_file = a->given & BIT(OPT_CERT) ? a->text[OPT_KEY] : NULL,
        .relay = (a->given & BIT(OPT_RELAY)) != 0,
        .timeout = (unsigned)a->timeout,
    };
    int r;

    if (o.url == NULL || o.domain == NULL)
        return usage_error("which server? use --url and --domain, or KMS_URL and KMS_DOMAIN");
    if ((r = find_token(a, &o.token)) != EXIT_OK || (r = find_open_with(a)) != EXIT_OK ||
        (r = find_state(a, &o.state_file)) != EXIT_OK)
        return r;
    if ((r = client_new(&a->client, &o)) == KMS_OK)
        r = a->command->run(a);
    else if (a->client != NULL)
        r = report(a, r);
    else
        r = EXIT_TROUBLE;
    client_free(a->client);
    EVP_PKEY_free(a->open_with);
    return r;
}

int
main(int argc, char **argv)
{
    struct args a = {.timeout = 30, .token = BUF_INIT, .state = BUF_INIT};
    int r;

    signal(SIGPIPE, SIG_IGN);
    kms_json_init();
    if ((r = parse_args(&a, argc, argv)) == -1) {
        /* Whether the memory could be locked is left to the user's limits: this is no server. */
        if (secret_heap_init(SECRET_HEAP) == KMS_ERR_NOMEM) {
            complain("no memory for keys");
            r = EXIT_TROUBLE;
        } else if (a.command->run == run_token) {
            r = run_token(&a);
        } else {
            r = run_online(&a);
        }
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("standard output: %s", strerror(errno));
        r = EXIT_TROUBLE;
    }
    buf_release(&a.token);
    buf_release(&a.state);
    return r;
}
