/*
 * storm.c - mixed traffic on a server that somebody breaks meanwhile, a journal of what it
 * promised, and the check afterwards that it kept it.  tests/faults/run.sh does the breaking.
 *
 *   storm run     --journal DIR --workers N --seconds S [--seed N] [--pings]
 *   storm check   --journal DIR --entries FILE
 *   storm drain   --journal DIR --workers N --pid PID   SIGTERM under load: whose answers are lost?
 *   storm slow    --workers N --seconds S    N connections that send a byte a second
 *   storm garbage --workers N                N messages that no key opens; all must be answered
 *
 * Where the server is comes from the environment (protocol section 11).  Each worker is a process
 * with three users: the first makes keys and resources, the others are let in and out.  Before a
 * message is sent its line goes into the worker's journal, DIR/w<number>; so does what became of
 * it:
 *
 *   Q <id> <op> <numbers...>     sent; keys, resources and users are named by their numbers
 *   A <id> <status> <errorCode> <payload>     answered, and the answer was proved genuine
 *   H <id> <status>              refused by HTTP: nothing of it was done
 *   X <id>                       no answer: it may have been done or not
 *   N <id>                       it could not be sent
 *   E <text>                     an answer that no honest server gives
 *
 * `model` turns these lines into what must be true; a worker chooses its next requests from its
 * model, and `check` reads all journals again and compares the models with the server and with its
 * audit log: FILE has one line an entry, "requestId verdict action keys", as run.sh asks psql for.
 * The bare keys never go to the journal: DIR/secrets (mode 0600) has them for the search in the
 * logs.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kms/client.h"
#include "kms/https.h"
#include "kms/mint.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "proto/kdf.h"
#include "proto/secret.h"

#define USERS       3
#define BATCH_MAX   8
#define CHECK_BATCH 50
#define KEYS_OP     5 /* keys that one request asks for, at most */
#define ID_MAX      64
#define URI_MAX_    160
#define TIMEOUT     80 /* s: longer than the server looks after a request of unknown outcome */
#define API         "/encryption/api/v1/kms/"

static const struct env {
    const char *url, *domain, *ca, *org;
} * env;

static struct mint mint;
static volatile sig_atomic_t stopped;
static bool only_pings;
static struct board {       /* shared by the processes of `storm drain` */
    _Atomic long long term; /* ns, monotonic: when SIGTERM was sent; 0: not yet */
    _Atomic long answered, lost, warm;
} * board;
static pid_t children[64]; /* of the parent: whom to tell to stop */
static volatile sig_atomic_t n_children;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fprintf(stderr, "storm: ");
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(2);
}

static void *
alloc(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (p == NULL)
        die("out of memory");
    return p;
}

/* --- the model --- */

enum truth { NO, YES, MAYBE };

enum op {
    OP_KEYS = 'C',     /* n */
    OP_RESOURCE = 'R', /* members (bits), keys... */
    OP_BIND = 'B',     /* key, resource */
    OP_GRANT = 'G',    /* resource, user */
    OP_REVOKE = 'D',   /* resource, user */
    OP_GET = 'T',      /* key; by `user` */
    OP_CHANNEL = 'H',  /* by `user` */
    OP_CLOSE = 'W',    /* by `user` */
    OP_PING = 'P',     /* by `user` */
};

struct key {
    char uri[URI_MAX_], sha[65];
    enum truth bound; /* MAYBE: to `resource`, or where that is -1 to one that nobody knows */
    int resource;
    bool busy;
};

struct resource {
    char uri[URI_MAX_];
    enum truth member[USERS];
    bool busy;
};

enum fate { UNDER_WAY, ANSWERED, REFUSED_BY_HTTP, UNANSWERED, UNSENT };

struct request {
    char id[ID_MAX];
    enum op op;
    int user, n, args[2 + KEYS_OP];
    enum fate fate;
    int status, code;
    char key[URI_MAX_]; /* of OP_GET: what was asked for */
};

struct model {
    char name[40];
    struct key *keys;
    struct resource *resources;
    struct request *requests;
    int n_keys, n_resources, n_requests, cap_keys, cap_resources, cap_requests;
    int violations;
    unsigned long counts[7]; /* 2xx, 4xx, 5xx, refused by HTTP, unanswered, all, never sent */
};

static void __attribute__((format(printf, 2, 3))) violated(struct model *m, const char *fmt, ...)
{
    va_list ap;

    if (m->violations++ < 20) {
        va_start(ap, fmt);
        printf("violation: %s: ", m->name);
        vprintf(fmt, ap);
        putchar('\n');
        va_end(ap);
    }
}

static void *
grow(void *list, int n, int *cap, size_t size)
{
    if (n < *cap)
        return list;
    *cap = *cap == 0 ? 64 : *cap * 2;
    if ((list = realloc(list, (size_t)*cap * size)) == NULL)
        die("out of memory");
    return list;
}

static struct key *
model_key(struct model *m, int i)
{
    if (i < 0 || i >= m->n_keys)
        die("%s: the journal names a key that is not there", m->name);
    return &m->keys[i];
}

static struct resource *
model_resource(struct model *m, int i)
{
    if (i < 0 || i >= m->n_resources)
        die("%s: the journal names a resource that is not there", m->name);
    return &m->resources[i];
}

/* Marks what a request changes, so that no two at a time change the same. */
static void
model_busy(struct model *m, const struct request *r, bool busy)
{
    int i;

    switch (r->op) {
    case OP_RESOURCE:
        for (i = 1; i < r->n; i++)
            model_key(m, r->args[i])->busy = busy;
        break;
    case OP_BIND:
        model_key(m, r->args[0])->busy = busy;
        model_resource(m, r->args[1])->busy = busy;
        break;
    case OP_GRANT:
    case OP_REVOKE:
        model_resource(m, r->args[0])->busy = busy;
        break;
    default:
        break;
    }
}

/* May this user have this key?  The first user made all of them and is on all resources. */
static enum truth
may_get(struct model *m, const struct key *k, int user)
{
    if (user == 0)
        return YES;
    if (k->bound == NO)
        return NO;
    if (k->bound == MAYBE || k->resource < 0)
        return MAYBE;
    return model_resource(m, k->resource)->member[user];
}

/* Messages of one POST have no order: while something of it changes the key or its resource, a
 * retrieval may come before or after that. */
static bool
contested(struct model *m, const struct key *k)
{
    return k->busy || (k->resource >= 0 && model_resource(m, k->resource)->busy);
}

static void
model_sent(struct model *m, const char *id, enum op op, int user, const int *args, int n)
{
    struct request *r;

    m->requests = grow(m->requests, m->n_requests, &m->cap_requests, sizeof(*m->requests));
    r = &m->requests[m->n_requests++];
    memset(r, 0, sizeof(*r));
    snprintf(r->id, sizeof(r->id), "%s", id);
    r->op = op;
    r->user = user;
    r->n = n;
    memcpy(r->args, args, (size_t)n * sizeof(*args));
    if (op == OP_GET)
        snprintf(r->key, sizeof(r->key), "%s", model_key(m, args[0])->uri);
    model_busy(m, r, true);
    m->counts[5]++;
}

static struct request *
model_find(struct model *m, const char *id)
{
    int i;

    /* Lately sent, so from the end. */
    for (i = m->n_requests - 1; i >= 0; i--)
        if (strcmp(m->requests[i].id, id) == 0)
            return &m->requests[i];
    die("%s: %s was answered but never sent", m->name, id);
}

/* "uri,sha uri,sha ..." */
static void
model_add_keys(struct model *m, char *payload)
{
    char *word, *save = NULL, *comma;
    struct key *k;

    for (word = strtok_r(payload, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save)) {
        if ((comma = strchr(word, ',')) == NULL)
            die("%s: a key has no hash", m->name);
        *comma = '\0';
        m->keys = grow(m->keys, m->n_keys, &m->cap_keys, sizeof(*m->keys));
        k = &m->keys[m->n_keys++];
        memset(k, 0, sizeof(*k));
        snprintf(k->uri, sizeof(k->uri), "%s", word);
        snprintf(k->sha, sizeof(k->sha), "%s", comma + 1);
        k->resource = -1;
    }
}

static void
model_add_resource(struct model *m, const struct request *r, const char *uri)
{
    struct resource *res;
    int i;

    m->resources = grow(m->resources, m->n_resources, &m->cap_resources, sizeof(*m->resources));
    res = &m->resources[m->n_resources];
    memset(res, 0, sizeof(*res));
    snprintf(res->uri, sizeof(res->uri), "%s", uri);
    for (i = 0; i < USERS; i++)
        res->member[i] = i == 0 || (r->args[0] >> i & 1) != 0 ? YES : NO;
    for (i = 1; i < r->n; i++) {
        model_key(m, r->args[i])->bound = YES;
        model_key(m, r->args[i])->resource = m->n_resources;
    }
    m->n_resources++;
}

/* "sha resourceUri"; the key that came must be the one that was made, bound to what it is bound to.
 */
static void
model_got_key(struct model *m, const struct request *r, const char *payload)
{
    const struct key *k = model_key(m, r->args[0]);
    char sha[65] = "", uri[URI_MAX_] = "";

    if (sscanf(payload, "%64s %159s", sha, uri) != 2 || strcmp(sha, k->sha) != 0)
        violated(m, "%s: %s is not the key that was answered with 201", r->id, k->uri);
    else if (k->bound == NO && strcmp(uri, "-") != 0 && !contested(m, k))
        violated(m, "%s: %s is bound, and nobody asked for that", r->id, k->uri);
    else if (k->bound == YES && strcmp(uri, model_resource(m, k->resource)->uri) != 0)
        violated(m, "%s: %s is not bound to the resource that was answered", r->id, k->uri);
}

static void
model_done(struct model *m, struct request *r, char *payload)
{
    struct key *k;

    switch (r->op) {
    case OP_KEYS:
        model_add_keys(m, payload);
        break;
    case OP_RESOURCE:
        model_add_resource(m, r, payload);
        break;
    case OP_BIND:
        k = model_key(m, r->args[0]);
        k->bound = YES;
        k->resource = r->args[1];
        model_got_key(m, r, payload);
        break;
    case OP_GRANT:
        model_resource(m, r->args[0])->member[r->args[1]] = YES;
        break;
    case OP_REVOKE:
        model_resource(m, r->args[0])->member[r->args[1]] = NO;
        break;
    case OP_GET:
        k = model_key(m, r->args[0]);
        if (may_get(m, k, r->user) == NO && !contested(m, k))
            violated(m, "%s: %s was released to user %d, who is not authorised", r->id, k->uri,
                     r->user);
        model_got_key(m, r, payload);
        break;
    default:
        break;
    }
}

/* No answer: what it would have changed may be changed. */
static void
model_unknown(struct model *m, const struct request *r)
{
    struct resource *res;
    struct key *k;
    int i;

    switch (r->op) {
    case OP_RESOURCE:
        for (i = 1; i < r->n; i++) {
            k = model_key(m, r->args[i]);
            k->bound = MAYBE;
            k->resource = -1;
        }
        break;
    case OP_BIND:
        k = model_key(m, r->args[0]);
        k->bound = MAYBE;
        k->resource = r->args[1];
        break;
    case OP_GRANT:
    case OP_REVOKE:
        res = model_resource(m, r->args[0]);
        if (res->member[r->args[1]] != (r->op == OP_GRANT ? YES : NO))
            res->member[r->args[1]] = MAYBE;
        break;
    default:
        break;
    }
}

/* A refusal must be one that this request deserves: all of them are chosen to succeed, but some
 * retrievals. */
static void
model_refused(struct model *m, const struct request *r)
{
    enum truth may;

    if (r->code == 429001)
        return;
    if (r->op == OP_GET) {
        may = may_get(m, model_key(m, r->args[0]), r->user);
        if ((may != YES || contested(m, model_key(m, r->args[0]))) && r->status == 403)
            return;
    }
    if (r->op == OP_REVOKE && r->status == 404 &&
        model_resource(m, r->args[0])->member[r->args[1]] != YES) {
        model_resource(m, r->args[0])->member[r->args[1]] = NO;
        return;
    }
    violated(m, "%s: %c by user %d was refused with %d (%d)", r->id, r->op, r->user, r->status,
             r->code);
}

/* One line of a journal, without its newline; it is torn apart. */
static void
model_line(struct model *m, char *line)
{
    char id[ID_MAX], op;
    struct request *r;
    int args[2 + KEYS_OP] = {0}, n = 0, user, at = 0, more, status = 0, code = 0;

    if (line[0] == 'E') {
        violated(m, "%s", line + 2);
        return;
    }
    if (sscanf(line + 1, " %63s %n", id, &at) != 1)
        die("%s: what is \"%s\"?", m->name, line);
    at++;
    if (line[0] == 'Q') {
        if (sscanf(line + at, " %c %d%n", &op, &user, &more) != 2)
            die("%s: what is \"%s\"?", m->name, line);
        for (at += more; n < 2 + KEYS_OP && sscanf(line + at, " %d%n", &args[n], &more) == 1; n++)
            at += more;
        model_sent(m, id, (enum op)op, user, args, n);
        return;
    }
    r = model_find(m, id);
    if (r->fate != UNDER_WAY)
        die("%s: %s was answered twice", m->name, id);
    switch (line[0]) {
    case 'A':
        if (sscanf(line + at, " %d %d %n", &status, &code, &more) != 2)
            die("%s: what is \"%s\"?", m->name, line);
        r->fate = ANSWERED;
        r->status = status;
        r->code = code;
        m->counts[status / 100 == 2 ? 0 : status / 100 == 5 ? 2 : 1]++;
        if (status / 100 == 2)
            model_done(m, r, line + at + more);
        else if (status < 500)
            model_refused(m, r);
        break;
    case 'H':
        sscanf(line + at, " %d", &r->status);
        r->fate = REFUSED_BY_HTTP;
        m->counts[3]++;
        if (r->status != 503 && r->status != 429)
            violated(m, "%s: HTTP answered %d", id, r->status);
        break;
    case 'X':
        r->fate = UNANSWERED;
        m->counts[4]++;
        model_unknown(m, r);
        break;
    case 'N':
        r->fate = UNSENT;
        m->counts[6]++;
        break;
    default:
        die("%s: what is \"%s\"?", m->name, line);
    }
    model_busy(m, r, false);
}

/* --- a worker: its connection, its users' channels --- */

struct user {
    char subject[64];
    struct buf token;
    struct secret *key;
    char channel[URI_MAX_];
    EVP_PKEY *pair; /* of a channel under way */
    bool busy;
};

struct worker {
    struct model model;
    unsigned random;
    int journal, secrets;
    unsigned serial;
    struct https *http;
    EVP_PKEY *static_key;
    char static_kid[512];
    struct user users[USERS];
};

static unsigned
dice(struct worker *w, unsigned n)
{
    /* xorshift: the same seed makes the same requests, as far as the answers are the same. */
    w->random ^= w->random << 13;
    w->random ^= w->random >> 17;
    w->random ^= w->random << 5;
    return w->random % n;
}

static void
write_out(int fd, const char *text, size_t len)
{
    if (write(fd, text, len) != (ssize_t)len)
        die("the journal cannot be written: %s", strerror(errno));
}

/* Writes a line to the journal and takes it into the model. */
static void __attribute__((format(printf, 2, 3))) note(struct worker *w, const char *fmt, ...)
{
    struct buf line = BUF_INIT;
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        die("out of memory");
    va_end(ap);
    buf_puts(&line, text);
    buf_putc(&line, '\n');
    write_out(w->journal, buf_str(&line), line.len);
    model_line(&w->model, text);
    free(text);
    buf_release(&line);
}

/* One line each, fit for grep --file. */
static void
keep_secret(struct worker *w, const char *text)
{
    struct buf line = BUF_INIT;

    buf_putf(&line, "%s\n", text);
    write_out(w->secrets, buf_str(&line), line.len);
    buf_release(&line);
}

/* A key in both forms that a log could show it in. */
static void
keep_key(struct worker *w, const struct secret *s)
{
    char text[B64URL_LEN(SECRET_LEN) + 1] = {0}, hex[2 * SECRET_LEN + 1];
    size_t i;

    b64url_encode(text, s->b, SECRET_LEN);
    for (i = 0; i < SECRET_LEN; i++)
        snprintf(hex + 2 * i, 3, "%02x", s->b[i]);
    keep_secret(w, text);
    keep_secret(w, hex);
}

static void
sha256_hex(char out[65], const void *p, size_t len)
{
    unsigned char digest[32];
    size_t i;

    if (EVP_Q_digest(NULL, "SHA256", NULL, p, len, digest, NULL) != 1)
        die("no SHA-256");
    for (i = 0; i < sizeof(digest); i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static void
key_sha(struct worker *w, char out[65], const json_t *jwk)
{
    struct secret *s = NULL;

    snprintf(out, 65, "none");
    if (jwk_get_oct(&s, jwk) == KMS_OK) {
        sha256_hex(out, s->b, SECRET_LEN);
        keep_key(w, s);
    }
    secret_free(s);
}

static const char *
text_of(const json_t *obj, const char *name)
{
    const char *s = json_string_value(json_object_get(obj, name));

    return s != NULL ? s : "";
}

static int
int_of(const json_t *obj, const char *name)
{
    return (int)json_integer_value(json_object_get(obj, name));
}

/* The static key, as a client learns and checks it.  False: no answer. */
static bool
learn_server(struct worker *w)
{
    struct buf answer = BUF_INIT;
    json_t *j = NULL, *jwk = NULL;
    const char *kid = NULL, *why = NULL, *text;
    int status = 0;
    bool ok = false;

    if (w->static_key != NULL)
        return true;
    if (https_exchange(w->http, "GET", API "storm", NULL, 0, &status, &answer) == KMS_OK &&
        status == 200 && kms_json_parse(&j, buf_str(&answer), answer.len) == KMS_OK) {
        text = text_of(j, "rsaPublicKey");
        if (kms_json_parse(&jwk, text, strlen(text)) == KMS_OK &&
            client_check_static_key(&w->static_key, &kid, jwk, env->domain, https_cas(w->http),
                                    &why) == KMS_OK) {
            snprintf(w->static_kid, sizeof(w->static_kid), "%s", kid);
            ok = true;
        } else {
            note(w, "E the static key is not to be trusted: %s", why != NULL ? why : "no JWK");
        }
    }
    json_decref(jwk);
    json_decref(j);
    buf_release(&answer);
    return ok;
}

/* A batch: messages of one POST. */
struct batch {
    int n;
    struct request item[CHECK_BATCH];
    char *text[CHECK_BATCH]; /* sealed */
};

static json_t *
request_of(struct worker *w, const struct request *r)
{
    struct model *m = &w->model;
    struct buf uri = BUF_INIT;
    json_t *q = NULL, *list = NULL;
    int i;

    switch (r->op) {
    case OP_KEYS:
        q = json_pack("{s:s, s:s, s:i}", "method", "create", "uri", "/keys", "count", r->args[0]);
        break;
    case OP_RESOURCE:
        list = json_array();
        for (i = 1; i < USERS; i++)
            if (r->args[0] >> i & 1)
                json_array_append_new(list, json_string(w->users[i].subject));
        q = json_pack("{s:s, s:s, s:o}", "method", "create", "uri", "/resources", "userIds", list);
        list = json_array();
        for (i = 1; i < r->n; i++)
            json_array_append_new(list, json_string(model_key(m, r->args[i])->uri));
        json_object_set_new(q, "keyUris", list);
        break;
    case OP_BIND:
        q = json_pack("{s:s, s:s, s:s}", "method", "update", "uri", model_key(m, r->args[0])->uri,
                      "resourceUri", model_resource(m, r->args[1])->uri);
        break;
    case OP_GRANT:
        q = json_pack("{s:s, s:s, s:s, s:[s]}", "method", "create", "uri", "/authorizations",
                      "resourceUri", model_resource(m, r->args[0])->uri, "userIds",
                      w->users[r->args[1]].subject);
        break;
    case OP_REVOKE:
        buf_putf(&uri, "%s/authorizations?authId=%s", model_resource(m, r->args[0])->uri,
                 w->users[r->args[1]].subject);
        q = json_pack("{s:s, s:s}", "method", "delete", "uri", buf_str(&uri));
        break;
    case OP_GET:
        q = json_pack("{s:s, s:s}", "method", "retrieve", "uri", model_key(m, r->args[0])->uri);
        break;
    case OP_CHANNEL:
        buf_putf(&uri, "kms://%s/ecdhe", env->domain);
        q = json_pack("{s:s, s:s, s:o}", "method", "create", "uri", buf_str(&uri), "jwk",
                      jwk_from_public(w->users[r->user].pair));
        break;
    case OP_CLOSE:
        q = json_pack("{s:s, s:s}", "method", "delete", "uri", w->users[r->user].channel);
        break;
    case OP_PING:
        q = json_pack("{s:s, s:s}", "method", "update", "uri", "/ping");
        break;
    }
    json_object_set_new(q, "requestId", json_string(r->id));
    json_object_set_new(q, "client",
                        json_pack("{s:s, s:{s:s}}", "clientId", "storm", "credential", "bearer",
                                  buf_str(&w->users[r->user].token)));
    buf_release(&uri);
    return q;
}

/* Adds a request to a batch, unless its user has no channel. */
static void
add(struct worker *w, struct batch *b, enum op op, int user, const int *args, int n)
{
    struct user *u = &w->users[user];
    struct request *r = &b->item[b->n];
    struct buf plain = BUF_INIT, sealed = BUF_INIT, words = BUF_INIT;
    json_t *q;
    int i, e;

    if (op != OP_CHANNEL && (u->key == NULL || u->busy))
        return;
    memset(r, 0, sizeof(*r));
    snprintf(r->id, sizeof(r->id), "%s-%u", w->model.name, ++w->serial);
    r->op = op;
    r->user = user;
    r->n = n;
    if (n > 0)
        memcpy(r->args, args, (size_t)n * sizeof(*args));
    q = request_of(w, r);
    if ((e = kms_json_put(&plain, q)) != KMS_OK ||
        (e = op == OP_CHANNEL
                 ? jwe_seal_rsa(&sealed, w->static_kid, JWE_RSA_OAEP, w->static_key, plain.data,
                                plain.len)
                 : jwe_seal_dir(&sealed, u->channel, u->key->b, plain.data, plain.len)) != KMS_OK)
        die("sealing: %s", kms_strerror(e));
    b->text[b->n++] = strdup(buf_str(&sealed));
    for (i = 0; i < n; i++)
        buf_putf(&words, " %d", args[i]);
    note(w, "Q %s %c %d%s", r->id, op, user, buf_str(&words));
    if (op == OP_CLOSE || op == OP_CHANNEL)
        u->busy = true;
    json_decref(q);
    buf_release(&words);
    buf_release(&plain);
    buf_release(&sealed);
}

static void
forget_channel(struct user *u)
{
    secret_free(u->key);
    u->key = NULL;
    u->channel[0] = '\0';
}

static void
take_channel(struct worker *w, struct user *u, const json_t *answer)
{
    const json_t *key = json_object_get(answer, "key");
    EVP_PKEY *peer = NULL;

    forget_channel(u);
    if (jwk_get_p256(&peer, json_object_get(key, "jwk")) != KMS_OK ||
        ecdh_channel_key(&u->key, u->pair, peer) != KMS_OK)
        note(w, "E a channel was answered that cannot be used");
    else {
        keep_key(w, u->key);
        snprintf(u->channel, sizeof(u->channel), "%s", text_of(key, "uri"));
    }
    EVP_PKEY_free(peer);
}

/* What of a success goes to the journal. */
static void
payload_of(struct worker *w, const struct request *r, const json_t *answer, struct buf *out)
{
    const json_t *v, *key = json_object_get(answer, "key");
    char sha[65];
    size_t i;

    switch (r->op) {
    case OP_KEYS:
        json_array_foreach(json_object_get(answer, "keys"), i, v)
        {
            key_sha(w, sha, json_object_get(v, "jwk"));
            buf_putf(out, "%s%s,%s", i > 0 ? " " : "", text_of(v, "uri"), sha);
        }
        break;
    case OP_RESOURCE:
        buf_puts(out, text_of(json_object_get(answer, "resource"), "uri"));
        break;
    case OP_BIND:
    case OP_GET:
        key_sha(w, sha, json_object_get(key, "jwk"));
        buf_putf(out, "%s %s", sha,
                 *text_of(key, "resourceUri") != '\0' ? text_of(key, "resourceUri") : "-");
        break;
    default:
        break;
    }
}

/*
 * One answer, which must be proved to be the server's: sealed on the channel, or signed where the
 * protocol says so.  On a channel that it answered with 201 and nobody closed, a signed refusal is
 * a lost promise.
 */
static void
take_answer(struct worker *w, const struct request *r, const char *text)
{
    struct user *u = &w->users[r->user];
    struct buf plain = BUF_INIT, payload = BUF_INIT;
    struct jwe jwe;
    struct jws jws;
    json_t *j = NULL;
    bool is_signed = false;

    if (r->op != OP_CHANNEL && jwe_parse(&jwe, text, strlen(text)) == KMS_OK && u->key != NULL &&
        jwe_open(&jwe, u->key->b, &plain) == KMS_OK)
        is_signed = false;
    else if (jws_parse(&jws, text, strlen(text)) == KMS_OK &&
             jws_verify(&jws, w->static_key) == KMS_OK && jws_payload(&jws, &plain) == KMS_OK)
        is_signed = true;
    if (plain.len == 0 || kms_json_parse(&j, buf_str(&plain), plain.len) != KMS_OK) {
        note(w, "X %s", r->id);
        note(w, "E %s: an answer that is not the server's", r->id);
    } else if (is_signed && r->op != OP_CHANNEL) {
        note(w, "X %s", r->id);
        note(w, "E %s: the channel was lost: %d (%d)", r->id, int_of(j, "status"),
             int_of(j, "errorCode"));
        forget_channel(u);
    } else if (strcmp(text_of(j, "requestId"), r->id) != 0) {
        note(w, "X %s", r->id);
        note(w, "E %s: an answer to another request, %s", r->id, text_of(j, "requestId"));
    } else {
        if (int_of(j, "status") / 100 == 2) {
            payload_of(w, r, j, &payload);
            if (r->op == OP_CHANNEL)
                take_channel(w, u, j);
            else if (r->op == OP_CLOSE)
                forget_channel(u);
        }
        note(w, "A %s %d %d %s", r->id, int_of(j, "status"), int_of(j, "errorCode"),
             buf_str(&payload));
    }
    json_decref(j);
    buf_release(&plain);
    buf_release(&payload);
}

/* Sends a batch and writes down what became of it.  False: there was no answer. */
static bool
send_batch(struct worker *w, struct batch *b)
{
    struct buf body = BUF_INIT, answer = BUF_INIT;
    json_t *j = NULL, *list = NULL;
    int i, status = 0, r;

    if (b->n == 0)
        return true;
    buf_putf(&body, "{\"destination\":\"kms://%s\",\"kmsMessages\":[", env->domain);
    for (i = 0; i < b->n; i++)
        buf_putf(&body, "%s\"%s\"", i > 0 ? "," : "", b->text[i]);
    buf_puts(&body, "]}");
    r = https_exchange(w->http, "POST", API "messages", body.data, body.len, &status, &answer);
    if (r == KMS_OK && status == 200 && kms_json_parse(&j, buf_str(&answer), answer.len) == KMS_OK)
        list = json_object_get(j, "kmsMessages");
    for (i = 0; i < b->n; i++) {
        struct user *u = &w->users[b->item[i].user];

        if (r != KMS_OK)
            note(w, "%c %s", https_sent(w->http) ? 'X' : 'N', b->item[i].id);
        else if (status != 200)
            note(w, "H %s %d", b->item[i].id, status);
        else if (json_array_size(list) != (size_t)b->n)
            note(w, "X %s", b->item[i].id);
        else
            take_answer(w, &b->item[i], json_string_value(json_array_get(list, (size_t)i)));
        /* A close without an answer: the channel may be gone, so it is not used any more. */
        if (b->item[i].op == OP_CLOSE && u->key != NULL)
            forget_channel(u);
        if (b->item[i].op == OP_CLOSE || b->item[i].op == OP_CHANNEL)
            u->busy = false;
        free(b->text[i]);
    }
    b->n = 0;
    json_decref(j);
    buf_release(&body);
    buf_release(&answer);
    return r == KMS_OK && status == 200;
}

/* Makes sure that every user has a channel, as far as the server is there. */
static bool
open_channels(struct worker *w, struct batch *b)
{
    int i;

    if (!learn_server(w))
        return false;
    for (i = 0; i < USERS; i++) {
        struct user *u = &w->users[i];

        if (u->key != NULL || u->busy)
            continue;
        EVP_PKEY_free(u->pair);
        if ((u->pair = ecdh_generate()) == NULL)
            die("out of memory");
        add(w, b, OP_CHANNEL, i, NULL, 0);
    }
    return send_batch(w, b);
}

/* --- what a worker asks for --- */

/* A key that fits; -1: none was found. */
static int
pick_key(struct worker *w, bool unbound)
{
    struct model *m = &w->model;
    int i, k;

    for (i = 0; m->n_keys > 0 && i < 16; i++) {
        k = (int)dice(w, (unsigned)m->n_keys);
        if (!m->keys[k].busy && (!unbound || m->keys[k].bound == NO))
            return k;
    }
    return -1;
}

static int
pick_resource(struct worker *w)
{
    struct model *m = &w->model;
    int i, r;

    for (i = 0; m->n_resources > 0 && i < 8; i++) {
        r = (int)dice(w, (unsigned)m->n_resources);
        if (!m->resources[r].busy)
            return r;
    }
    return -1;
}

static void
add_resource(struct worker *w, struct batch *b)
{
    int args[2 + KEYS_OP], n = 1, k, i, want = (int)dice(w, 4);

    args[0] = (int)dice(w, 1 << (USERS - 1)) << 1;
    while (n <= want && (k = pick_key(w, true)) >= 0) {
        for (i = 1; i < n && args[i] != k; i++)
            ;
        if (i == n)
            args[n++] = k;
        else
            break;
    }
    add(w, b, OP_RESOURCE, 0, args, n);
}

/* A retrieval that does not race with a change in the same POST. */
static void
add_get(struct worker *w, struct batch *b)
{
    struct model *m = &w->model;
    int k = pick_key(w, false);

    if (k < 0 || (m->keys[k].resource >= 0 && m->resources[m->keys[k].resource].busy))
        return;
    add(w, b, OP_GET, (int)dice(w, USERS), &k, 1);
}

static void
add_something(struct worker *w, struct batch *b)
{
    struct model *m = &w->model;
    unsigned d = only_pings ? 95 : dice(w, 100);
    int args[2];

    if (d < 15) {
        args[0] = 1 + (int)dice(w, KEYS_OP);
        add(w, b, OP_KEYS, 0, args, 1);
    } else if (d < 23) {
        add_resource(w, b);
    } else if (d < 38) {
        if ((args[0] = pick_key(w, true)) >= 0 && (args[1] = pick_resource(w)) >= 0)
            add(w, b, OP_BIND, 0, args, 2);
    } else if (d < 53) {
        if ((args[0] = pick_resource(w)) < 0)
            return;
        args[1] = 1 + (int)dice(w, USERS - 1);
        add(w, b, m->resources[args[0]].member[args[1]] == YES ? OP_REVOKE : OP_GRANT, 0, args, 2);
    } else if (d < 92) {
        add_get(w, b);
    } else if (d < 96) {
        add(w, b, OP_PING, (int)dice(w, USERS), NULL, 0);
    } else if (d < 98 && b->n == 0) {
        add(w, b, OP_CLOSE, (int)dice(w, USERS), NULL, 0);
    }
}

static int
open_in(const char *dir, const char *name, int flags)
{
    struct buf path = BUF_INIT;
    int fd;

    buf_putf(&path, "%s/%s", dir, name);
    if ((fd = open(buf_str(&path), flags | O_CLOEXEC, 0600)) < 0)
        die("%s: %s", buf_str(&path), strerror(errno));
    buf_release(&path);
    return fd;
}

/* Request ids and users are named after the journal and the worker, so that the entries of several
 * runs on one server can be told apart. */
static void
model_name(struct model *m, const char *dir, int number)
{
    const char *slash = strrchr(dir, '/');

    snprintf(m->name, sizeof(m->name), "%.20s-w%d", slash != NULL ? slash + 1 : dir, number);
}

static void
worker_init(struct worker *w, const char *dir, int number, unsigned seed)
{
    char file[32];
    int i, r;

    memset(w, 0, sizeof(*w));
    model_name(&w->model, dir, number);
    w->random = seed * 2654435761u | 1;
    snprintf(file, sizeof(file), "w%d", number);
    w->journal = open_in(dir, file, O_WRONLY | O_CREAT | O_APPEND);
    w->secrets = open_in(dir, "secrets", O_WRONLY | O_CREAT | O_APPEND);
    if ((r = https_new(&w->http, env->url, env->ca, TIMEOUT)) != KMS_OK)
        die("%s", https_error(w->http));
    for (i = 0; i < USERS; i++) {
        struct user *u = &w->users[i];

        snprintf(u->subject, sizeof(u->subject), "%s-user%d", w->model.name, i);
        mint.subject = u->subject;
        if ((r = mint_token(&u->token, &mint, (int64_t)time(NULL))) != KMS_OK)
            die("no token: %s", kms_strerror(r));
        keep_secret(w, buf_str(&u->token));
    }
}

/* Each finishes the exchange that it is in. */
static void
stop(int sig)
{
    int i;

    stopped = 1;
    for (i = 0; i < n_children; i++)
        kill(children[i], SIGTERM);
}

static void
worker_run(const char *dir, int number, unsigned seed, int seconds)
{
    static const struct timespec pause = {0, 50000000};
    struct worker *w = alloc(1, sizeof(*w));
    struct batch *b = alloc(1, sizeof(*b));
    time_t end = time(NULL) + seconds;
    int n;

    worker_init(w, dir, number, seed + (unsigned)number);
    while (!stopped && time(NULL) < end) {
        if (!open_channels(w, b)) {
            nanosleep(&pause, NULL);
            continue;
        }
        for (n = 1 + (int)dice(w, BATCH_MAX); n > 0; n--)
            add_something(w, b);
        if (!send_batch(w, b))
            nanosleep(&pause, NULL);
    }
    printf("%s: %lu requests: %lu 2xx, %lu 4xx, %lu 5xx, %lu refused by HTTP, %lu unanswered\n",
           w->model.name, w->model.counts[5], w->model.counts[0], w->model.counts[1],
           w->model.counts[2], w->model.counts[3], w->model.counts[4]);
    fflush(stdout);
    exit(w->model.violations > 0 ? 1 : 0);
}

static int
storm_run(const char *dir, int workers, int seconds, unsigned seed)
{
    struct sigaction sa = {.sa_handler = stop};
    int i, status, bad = 0;
    pid_t pid;

    sigaction(SIGTERM, &sa, NULL);
    fflush(NULL);
    for (i = 0; i < workers && !stopped; i++) {
        if ((pid = fork()) == 0) {
            n_children = 0;
            worker_run(dir, i, seed, seconds);
        }
        if (pid < 0)
            die("fork: %s", strerror(errno));
        children[i] = pid;
        n_children = i + 1;
    }
    for (i = 0; i < n_children; i++) {
        while ((pid = wait(&status)) < 0 && errno == EINTR)
            ;
        if (pid < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
            bad++;
    }
    return bad > 0 ? 1 : 0;
}

/* --- SIGTERM under load --- */

static long long
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (long long)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Sends until an exchange fails; what was sent before SIGTERM must not be the one. */
static void
drain_worker(const char *dir, int number)
{
    struct worker *w = alloc(1, sizeof(*w));
    struct batch *b = alloc(1, sizeof(*b));
    long long sent, term;
    bool warm = false;
    int n;

    worker_init(w, dir, number, (unsigned)number + 1);
    for (;;) {
        sent = now_ns();
        if (!open_channels(w, b))
            break;
        for (n = 1 + (int)dice(w, BATCH_MAX); n > 0; n--)
            add_something(w, b);
        sent = now_ns();
        if (!send_batch(w, b))
            break;
        atomic_fetch_add(&board->answered, 1);
        if (!warm)
            atomic_fetch_add(&board->warm, 1);
        warm = true;
    }
    term = atomic_load(&board->term);
    if (https_sent(w->http) && (term == 0 || sent < term)) {
        printf("lost: %s: a request that was sent %.3f ms before SIGTERM: %s\n", w->model.name,
               (double)(term - sent) / 1e6, https_error(w->http));
        atomic_fetch_add(&board->lost, 1);
    }
    fflush(stdout);
    exit(w->model.violations > 0 ? 1 : 0);
}

static int
storm_drain(const char *dir, int workers, pid_t server)
{
    int i, status, bad = 0;

    if (server <= 1)
        die("drain: --pid is missing");
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED)
        die("mmap: %s", strerror(errno));
    fflush(NULL);
    for (i = 0; i < workers; i++)
        if (fork() == 0)
            drain_worker(dir, i);
    for (i = 0; i < 300 && atomic_load(&board->warm) < workers; i++)
        usleep(100000);
    usleep(300000);
    atomic_store(&board->term, now_ns());
    if (kill(server, SIGTERM) != 0)
        die("kill: %s", strerror(errno));
    for (i = 0; i < workers; i++)
        if (wait(&status) < 0 || status != 0)
            bad++;
    printf("drain: %ld POSTs answered, %ld lost\n", (long)board->answered, (long)board->lost);
    return bad > 0 || board->lost > 0 || board->answered == 0 ? 1 : 0;
}

/* --- slow clients --- */

struct slow {
    int fd;
    SSL *ssl; /* NULL: does not get beyond the handshake */
    size_t at;
};

static int
connect_plain(void)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *ai = NULL;
    static const struct timeval patience = {0, 300000};
    char host[256] = "", port[16] = "";
    int fd;

    if (sscanf(env->url, "https://%255[^:]:%15[0-9]", host, port) != 2 ||
        getaddrinfo(host, port, &hints, &ai) != 0)
        die("%s: cannot connect there", env->url);
    fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    if (fd >= 0 && connect(fd, ai->ai_addr, ai->ai_addrlen) != 0) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(ai);
    return fd;
}

/* Half of them finish the handshake and are slow in the head, half are slow in the handshake. */
static bool
slow_open(struct slow *s, SSL_CTX *ctx, bool tls)
{
    s->at = 0;
    s->ssl = NULL;
    if ((s->fd = connect_plain()) < 0)
        return false;
    if (!tls)
        return true;
    if ((s->ssl = SSL_new(ctx)) == NULL || SSL_set_fd(s->ssl, s->fd) != 1)
        die("out of memory");
    return SSL_connect(s->ssl) == 1;
}

static void
slow_close(struct slow *s)
{
    SSL_free(s->ssl);
    s->ssl = NULL;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

/* False: the server has closed it. */
static bool
slow_byte(struct slow *s)
{
    static const unsigned char hello[] = {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3};
    static const char head[] = "POST " API "messages HTTP/1.1\r\nHost: slow\r\nX-Slow: aaaaaaaaaaa";
    unsigned char none;

    if (s->ssl != NULL)
        return SSL_write(s->ssl, &head[s->at++ % (sizeof(head) - 1)], 1) == 1;
    if (recv(s->fd, &none, 1, MSG_DONTWAIT) == 0)
        return false;
    return send(s->fd, &hello[s->at++ % sizeof(hello)], 1, MSG_NOSIGNAL) == 1;
}

static int
storm_slow(int n, int seconds)
{
    struct slow *s = alloc((size_t)n, sizeof(*s));
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    time_t end = time(NULL) + seconds;
    int i, opened = 0, closed = 0;

    if (ctx == NULL)
        die("out of memory");
    for (i = 0; i < n; i++)
        s[i].fd = -1;
    while (time(NULL) < end && !stopped) {
        for (i = 0; i < n && time(NULL) < end; i++) {
            if (s[i].fd >= 0) {
                if (slow_byte(&s[i]))
                    continue;
                closed++;
                slow_close(&s[i]);
            }
            if (slow_open(&s[i], ctx, i % 2 == 0))
                opened++;
            else
                slow_close(&s[i]);
        }
        sleep(1);
    }
    for (i = 0; i < n; i++)
        slow_close(&s[i]);
    SSL_CTX_free(ctx);
    printf("slow: %d connections opened, %d closed by the server\n", opened, closed);
    return opened >= n && closed > 0 ? 0 : 1;
}

/* --- what no key opens --- */

static void
put_garbage(struct worker *w, struct buf *body, int i)
{
    struct user *u = &w->users[0];
    struct secret *wrong = secret_new();
    struct buf sealed = BUF_INIT, kid = BUF_INIT;

    if (wrong == NULL)
        die("out of memory");
    switch (i % 4) {
    case 0: /* no JOSE */
        buf_putf(body, "\"garbage %d\"", i);
        break;
    case 1: /* a header that is none */
        buf_putf(body, "\"e30.%d.AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA\"", i);
        break;
    case 2: /* a channel that is not there */
        buf_putf(&kid, "kms://%s/ecdhe/00000000-0000-4000-8000-%012d", env->domain, i);
        jwe_seal_dir(&sealed, buf_str(&kid), wrong->b, "{}", 2);
        buf_putf(body, "\"%s\"", buf_str(&sealed));
        break;
    default: /* a wrong tag on one that is */
        jwe_seal_dir(&sealed, u->channel, wrong->b, "{}", 2);
        buf_putf(body, "\"%s\"", buf_str(&sealed));
    }
    secret_free(wrong);
    buf_release(&kid);
    buf_release(&sealed);
}

static int
storm_garbage(const char *dir, int n)
{
    struct worker *w = alloc(1, sizeof(*w));
    struct batch *b = alloc(1, sizeof(*b));
    int i, k, status = 0, genuine = 0;

    worker_init(w, dir, 0, 1);
    if (!open_channels(w, b))
        die("no channel");
    for (i = 0; i < n; i += 100) {
        struct buf body = BUF_INIT, answer = BUF_INIT;
        json_t *j = NULL;
        const json_t *v;
        size_t at;

        buf_putf(&body, "{\"destination\":\"kms://%s\",\"kmsMessages\":[", env->domain);
        for (k = 0; k < 100; k++) {
            buf_puts(&body, k > 0 ? "," : "");
            put_garbage(w, &body, i + k);
        }
        buf_puts(&body, "]}");
        if (https_exchange(w->http, "POST", API "messages", body.data, body.len, &status,
                           &answer) != KMS_OK ||
            status != 200 || kms_json_parse(&j, buf_str(&answer), answer.len) != KMS_OK)
            die("garbage was answered with %d: %s", status, https_error(w->http));
        json_array_foreach(json_object_get(j, "kmsMessages"), at, v)
        {
            const char *text = json_string_value(v);
            struct buf plain = BUF_INIT;
            struct jws jws;
            json_t *said = NULL;

            if (text != NULL && jws_parse(&jws, text, strlen(text)) == KMS_OK &&
                jws_verify(&jws, w->static_key) == KMS_OK && jws_payload(&jws, &plain) == KMS_OK &&
                kms_json_parse(&said, buf_str(&plain), plain.len) == KMS_OK &&
                int_of(said, "errorCode") == (at % 4 == 2 ? 499001 : 400001))
                genuine++;
            json_decref(said);
            buf_release(&plain);
        }
        json_decref(j);
        buf_release(&body);
        buf_release(&answer);
    }
    printf("garbage: %d messages, %d signed refusals\n", n, genuine);
    return genuine == n ? 0 : 1;
}

/* --- the check --- */

static int passed, failed;

static void __attribute__((format(printf, 2, 3))) claim(bool ok, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    printf("%s ", ok ? "ok  " : "FAIL");
    vprintf(fmt, ap);
    putchar('\n');
    va_end(ap);
    if (ok)
        passed++;
    else
        failed++;
}

/* An entry of the audit log. */
struct entry {
    char id[ID_MAX];
    int verdict;
    char action[32];
    char *keys; /* comma-separated ids */
};

static struct entry *entries;
static int n_entries, cap_entries;

static int
by_id(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->id, ((const struct entry *)b)->id);
}

static void
read_entries(const char *path)
{
    FILE *f = fopen(path, "re");
    char *line = NULL, keys[8192];
    size_t cap = 0;

    if (f == NULL)
        die("%s: %s", path, strerror(errno));
    while (getline(&line, &cap, f) > 0) {
        struct entry *e;

        entries = grow(entries, n_entries, &cap_entries, sizeof(*entries));
        e = &entries[n_entries];
        keys[0] = '\0';
        if (sscanf(line, "%63s %d %31s %8191s", e->id, &e->verdict, e->action, keys) < 3)
            die("%s: what is \"%s\"?", path, line);
        if ((e->keys = strdup(keys)) == NULL)
            die("out of memory");
        n_entries++;
    }
    free(line);
    fclose(f);
    qsort(entries, (size_t)n_entries, sizeof(*entries), by_id);
}

/* The entries of a request: how many, and the first of them. */
static int
entries_of(const char *id, const struct entry **first)
{
    struct entry want;
    const struct entry *e;
    int n = 0;

    snprintf(want.id, sizeof(want.id), "%s", id);
    *first = NULL;
    if (n_entries == 0 ||
        (e = bsearch(&want, entries, (size_t)n_entries, sizeof(*entries), by_id)) == NULL)
        return 0;
    while (e > entries && strcmp(e[-1].id, id) == 0)
        e--;
    *first = e;
    for (; e < entries + n_entries && strcmp(e->id, id) == 0; e++)
        n++;
    return n;
}

static int
read_journal(struct model *m, const char *dir, int number)
{
    struct buf path = BUF_INIT;
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    FILE *f;

    memset(m, 0, sizeof(*m));
    model_name(m, dir, number);
    buf_putf(&path, "%s/w%d", dir, number);
    if ((f = fopen(buf_str(&path), "re")) == NULL)
        die("%s: %s", buf_str(&path), strerror(errno));
    while ((len = getline(&line, &cap, f)) > 0) {
        line[len - 1] = '\0';
        model_line(m, line);
    }
    free(line);
    fclose(f);
    buf_release(&path);
    return m->violations;
}

/* Do successes of this op stand in the audit log? */
static bool
is_recorded(enum op op)
{
    return op != OP_PING;
}

static bool
changes(enum op op)
{
    return op != OP_GET && op != OP_PING;
}

/* What the check of all requests against the audit log found wrong. */
struct findings {
    int releases, unrecorded, doubled, wrong_key, refusals, unrecorded_refusals, fives, fives_done,
        changes, unrecorded_changes;
};

static void
find_request(struct findings *f, const struct model *m, const struct request *r)
{
    const struct entry *e;
    int n = entries_of(r->id, &e);
    const char *id;

    if (n > 1) {
        f->doubled++;
        printf("     %s: %d entries\n", r->id, n);
    }
    if (r->fate == UNSENT && n > 0) {
        f->fives_done++;
        printf("     %s: %c was never sent and has an entry\n", r->id, r->op);
    } else if (r->fate == REFUSED_BY_HTTP || (r->fate == ANSWERED && r->status >= 500)) {
        f->fives++;
        if (changes(r->op) && n > 0 && e->verdict == 0) {
            f->fives_done++;
            printf("     %s: %c was answered with %d (%d) and done\n", r->id, r->op, r->status,
                   r->code);
        }
    } else if (r->fate == ANSWERED && r->status / 100 == 2 && r->op == OP_GET) {
        f->releases++;
        id = strrchr(r->key, '/') + 1;
        if (n == 0 || e->verdict != 0 || strcmp(e->action, "key.get") != 0) {
            f->unrecorded++;
            printf("     %s: released, entry: %s %d\n", r->id, n > 0 ? e->action : "none",
                   n > 0 ? e->verdict : -1);
        } else if (strcmp(e->keys, id) != 0) {
            f->wrong_key++;
            printf("     %s: released %s, the entry says %s\n", r->id, id, e->keys);
        }
    } else if (r->fate == ANSWERED && r->status / 100 == 2 && is_recorded(r->op)) {
        f->changes++;
        if (n == 0 || e->verdict != 0) {
            f->unrecorded_changes++;
            printf("     %s: %c done, entry: %s %d\n", r->id, r->op, n > 0 ? e->action : "none",
                   n > 0 ? e->verdict : -1);
        }
    } else if (r->fate == ANSWERED && r->status / 100 == 4 && r->code != 429001) {
        f->refusals++;
        if (n == 0 || e->verdict != r->code) {
            f->unrecorded_refusals++;
            printf("     %s: refused with %d, entry: %d\n", r->id, r->code,
                   n > 0 ? e->verdict : -1);
        }
    }
}

/* Entries of requests that nobody sent. */
static int
unknown_entries(struct model *models, int n_models)
{
    int n = 0, i, k, total = 0;
    struct entry *ids;

    for (i = 0; i < n_models; i++)
        total += models[i].n_requests;
    ids = alloc((size_t)total + 1, sizeof(*ids));
    for (i = 0, n = 0; i < n_models; i++)
        for (k = 0; k < models[i].n_requests; k++)
            memcpy(ids[n++].id, models[i].requests[k].id, ID_MAX);
    qsort(ids, (size_t)total, sizeof(*ids), by_id);
    for (i = 0, n = 0; i < n_entries; i++)
        if (bsearch(&entries[i], ids, (size_t)total, sizeof(*ids), by_id) == NULL)
            n++;
    free(ids);
    return n;
}

/*
 * Retrieves every key of a model by each user and lets the model judge: its own makes sure that
 * nothing is lost, the others that the authorisations are as they were answered.  The journal of
 * the check is one of its own, so that a check can be run again.
 */
static int
retrieve_all(struct model *m, const char *dir, int number, int *asked)
{
    struct worker *w = alloc(1, sizeof(*w));
    struct batch *b = alloc(1, sizeof(*b));
    int i, user, tries = 0, bad;

    worker_init(w, dir, number, 1);
    close(w->journal);
    w->journal = open("/dev/null", O_WRONLY | O_CLOEXEC);
    w->model = *m;
    w->model.violations = 0;
    /* Its entries must not mix with the run's. */
    snprintf(w->model.name, sizeof(w->model.name), "check%ld-w%d", (long)getpid(), number);
    while (!open_channels(w, b) && ++tries < 100)
        usleep(100000);
    for (i = 0; i < m->n_keys; i++) {
        for (user = 0; user < USERS; user++) {
            add(w, b, OP_GET, user, &i, 1);
            if (b->n == CHECK_BATCH && !send_batch(w, b))
                violated(&w->model, "no answer to the check");
        }
    }
    if (!send_batch(w, b))
        violated(&w->model, "no answer to the check");
    for (i = m->n_requests; i < w->model.n_requests; i++) {
        const struct request *r = &w->model.requests[i];

        if (r->op == OP_GET) {
            (*asked)++;
            if (r->fate != ANSWERED || r->status >= 500)
                violated(&w->model, "%s was answered with %d although all is well again", r->key,
                         r->status);
        }
    }
    bad = w->model.violations;
    https_free(w->http);
    EVP_PKEY_free(w->static_key);
    close(w->secrets);
    *m = w->model;
    free(b);
    free(w);
    return bad;
}

static int
storm_check(const char *dir, const char *entries_file)
{
    struct model models[64];
    struct findings f = {0};
    int n = 0, i, k, bad = 0, asked = 0, lost = 0, unknown;
    unsigned long counts[7] = {0};
    struct buf path = BUF_INIT;

    for (; n < (int)(sizeof(models) / sizeof(models[0])); n++) {
        buf_reset(&path);
        buf_putf(&path, "%s/w%d", dir, n);
        if (access(buf_str(&path), R_OK) != 0)
            break;
        bad += read_journal(&models[n], dir, n);
        for (i = 0; i < 7; i++)
            counts[i] += models[n].counts[i];
    }
    buf_release(&path);
    if (n == 0)
        die("%s has no journal", dir);
    read_entries(entries_file);
    printf("     %lu requests: %lu 2xx, %lu 4xx, %lu 5xx, %lu refused by HTTP, %lu unanswered; %d "
           "entries\n",
           counts[5], counts[0], counts[1], counts[2], counts[3], counts[4], n_entries);
    claim(bad == 0, "no answer of the run contradicts an earlier one (%d did)", bad);
    for (i = 0; i < n; i++)
        for (k = 0; k < models[i].n_requests; k++)
            find_request(&f, &models[i], &models[i].requests[k]);
    unknown = unknown_entries(models, n);
    claim(f.releases > 0 && f.unrecorded == 0,
          "each of %d keys in hand has its record (%d have none)", f.releases, f.unrecorded);
    claim(f.wrong_key == 0, "and that names the key (%d do not)", f.wrong_key);
    claim(f.changes > 0 && f.unrecorded_changes == 0,
          "each of %d answered changes has its record (%d have none)", f.changes,
          f.unrecorded_changes);
    claim(f.refusals > 0 && f.unrecorded_refusals == 0,
          "each of %d refusals has its record (%d have none)", f.refusals, f.unrecorded_refusals);
    claim(f.doubled == 0, "no request has two entries (%d have)", f.doubled);
    claim(unknown == 0, "no entry is of a request that nobody sent (%d are)", unknown);
    claim(f.fives_done == 0, "none of %d requests answered with 5xx was done (%d were)", f.fives,
          f.fives_done);
    for (i = 0; i < n; i++)
        lost += retrieve_all(&models[i], dir, i, &asked);
    claim(asked > 0 && lost == 0,
          "each key that was answered is what it was, bound to what was answered, and open to whom "
          "it was opened (%d retrievals, %d wrong)",
          asked, lost);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 ? 1 : 0;
}

/* --- main --- */

static const char *
need(const char *name)
{
    const char *v = getenv(name);

    if (v == NULL || *v == '\0')
        die("%s is not in the environment; see protocol section 11", name);
    return v;
}

static void
usage(void)
{
    die("usage: storm run|check|drain|slow|garbage --journal DIR ...; its file says more");
}

int
main(int argc, char **argv)
{
    static const struct option known[] = {
        {"journal", 1, NULL, 'j'}, {"workers", 1, NULL, 'w'}, {"seconds", 1, NULL, 's'},
        {"seed", 1, NULL, 'S'},    {"entries", 1, NULL, 'e'}, {"pid", 1, NULL, 'p'},
        {"pings", 0, NULL, 'P'},   {NULL, 0, NULL, 0},
    };
    const char *dir = NULL, *file = NULL, *mode;
    struct env e;
    int o, workers = 4, seconds = 10;
    unsigned seed = 1;
    pid_t pid = 0;

    while ((o = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (o) {
        case 'j':
            dir = optarg;
            break;
        case 'w':
            workers = atoi(optarg);
            break;
        case 's':
            seconds = atoi(optarg);
            break;
        case 'S':
            seed = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'e':
            file = optarg;
            break;
        case 'p':
            pid = (pid_t)atoi(optarg);
            break;
        case 'P':
            only_pings = true;
            break;
        default:
            return 2;
        }
    }
    if (optind != argc - 1 || dir == NULL || workers < 1 || seconds < 1)
        usage();
    mode = argv[optind];
    if (workers > (int)(sizeof(children) / sizeof(children[0])) &&
        (strcmp(mode, "run") == 0 || strcmp(mode, "drain") == 0))
        die("at most %zu workers", sizeof(children) / sizeof(children[0]));
    signal(SIGPIPE, SIG_IGN);
    kms_json_init();
    secret_heap_init(65536);
    e.url = need("KMS_URL");
    e.domain = need("KMS_DOMAIN");
    e.ca = need("KMS_CA_FILE");
    e.org = need("KMS_ORG");
    env = &e;
    mint.key_file = need("KMS_TOKEN_KEY_FILE");
    mint.kid = need("KMS_TOKEN_KID");
    mint.issuer = need("KMS_TOKEN_ISSUER");
    mint.audience = need("KMS_TOKEN_AUDIENCE");
    mint.org = e.org;
    mint.scope = "spark:kms";
    mint.lifetime = 5 * 3600;
    if (strcmp(mode, "run") == 0)
        return storm_run(dir, workers, seconds, seed);
    if (strcmp(mode, "check") == 0 && file != NULL)
        return storm_check(dir, file);
    if (strcmp(mode, "drain") == 0)
        return storm_drain(dir, workers, pid);
    if (strcmp(mode, "slow") == 0)
        return storm_slow(workers, seconds);
    if (strcmp(mode, "garbage") == 0)
        return storm_garbage(dir, workers);
    usage();
}
