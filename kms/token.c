/*
 * token.c - who is asking: from a bearer token to an identity, by key set or by introspection.
 *
 *     tokens_verify
 *       known              what was verified before, by the token's SHA-256
 *       verify_by_set      a JWT, by the key set at hand
 *         await_set          ... its kid is unknown: waits for one fetch of the whole set
 *       introspect         an opaque token ... waits for the provider's answer
 *
 * A fetch that a token causes is the provider's burden, and garbage costs a stranger nothing.  So:
 * one fetch for all who wait, none within the cooldown, none for a kid that was not there the last
 * time, and a set is never given up because a kid was missing.
 *
 * Times are seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps; only exp and nbf are
 * judged by the wall clock.
 */
#include "kms/token.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "hsm/log.h"
#include "kms/config.h"
#include "kms/fetch.h"
#include "kms/shared.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"

#define KNOWN_MAX       16384 /* identities that are remembered; the longest unused makes room */
#define KNOWN_BUCKETS   4096
#define ABSENT_MAX      128 /* kids, or opaque tokens, that the provider does not know */
#define ABSENT_SECONDS  300
#define QUESTIONS_MAX   1024 /* tokens that wait for the provider */
#define WAITERS_MAX     4096 /* requests that wait for them */
#define SET_DEADLINE_MS 10000
#define ASK_DEADLINE_MS 5000
#define RETRY_MIN       1  /* seconds to the next try when a fetch failed; doubles up to .. */
#define RETRY_MAX       60 /* .. this */
#define SECRET_FILE_MAX 4096
#define SHA256_LEN      32

#define BY_SET INT64_MAX /* known.until: as long as there is a set that is fresh enough */

/* An identity that was verified. */
struct known {
    TAILQ_ENTRY(known) lru;           /* most recently used first */
    struct known *next;               /* in its bucket */
    unsigned char digest[SHA256_LEN]; /* of the token */
    int64_t until;                    /* not longer than this, nor than exp */
    int64_t expires;                  /* exp, wall clock */
    bool compliance, admin;
    size_t size;
    size_t org; /* where it begins in text */
    char text[];
};

/* What the provider said it does not have: a ring. */
struct absent {
    struct {
        unsigned char digest[SHA256_LEN];
        int64_t until;
    } at[ABSENT_MAX];
    unsigned next;
};

struct waiter {
    TAILQ_ENTRY(waiter) entry;
    token_cb *cb;
    void *ctx;
    uint64_t id;
};

/* A token that waits for the provider, and who waits for it. */
struct question {
    TAILQ_ENTRY(question) entry;
    struct tokens *t;
    unsigned char digest[SHA256_LEN];
    char *token; /* owned; wiped */
    size_t len;
    struct fetch *fetch; /* introspection; NULL: waits for the key set */
    unsigned generation; /* of the configuration it was asked under */
    TAILQ_HEAD(waiters, waiter) waiters;
};

TAILQ_HEAD(questions, question);

struct tokens {
    struct event_base *base;
    const struct config *c;
    unsigned generation;
    struct jwt_policy policy;
    struct fetcher *fetcher;
    struct buf secret; /* of introspection */
    /* the key set */
    struct jwks *set;
    unsigned char set_digest[SHA256_LEN];
    struct stat set_stat; /* of the file it was read from */
    int64_t set_time;     /* when it was last known to be the provider's */
    bool set_failed;      /* the last try */
    int64_t retry;
    int64_t unknown_next; /* no fetch for an unknown kid before */
    struct fetch *set_fetch;
    struct event *refresh;
    struct absent kids, opaque;
    /* the others */
    struct known *buckets[KNOWN_BUCKETS];
    TAILQ_HEAD(known_lru, known) lru;
    size_t n_known;
    struct questions questions;
    size_t n_questions, n_waiters;
};

static int64_t
boot_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return ts.tv_sec;
}

static bool
given(const char *s)
{
    return s != NULL && *s != '\0';
}

static bool
has_set_source(const struct tokens *t)
{
    return given(t->c->key_set_file) || given(t->c->key_set_url);
}

static bool
set_fresh(const struct tokens *t)
{
    return t->set != NULL && boot_now() - t->set_time <= t->c->key_set_keep;
}

/* What was verified before */

static struct known **
known_bucket(struct tokens *t, const unsigned char digest[SHA256_LEN])
{
    /* The digest of a token that the provider signed is as good as random. */
    return &t->buckets[(digest[0] | digest[1] << 8) % KNOWN_BUCKETS];
}

static void
known_free(struct tokens *t, struct known *k)
{
    struct known **p;

    for (p = known_bucket(t, k->digest); *p != k; p = &(*p)->next)
        ;
    *p = k->next;
    TAILQ_REMOVE(&t->lru, k, lru);
    t->n_known--;
    OPENSSL_clear_free(k, k->size);
}

static void
known_clear(struct tokens *t)
{
    while (!TAILQ_EMPTY(&t->lru))
        known_free(t, TAILQ_FIRST(&t->lru));
}

static bool
known_get(struct tokens *t, const unsigned char digest[SHA256_LEN], struct jwt_identity *who)
{
    struct known *k;

    for (k = *known_bucket(t, digest); k != NULL; k = k->next)
        if (CRYPTO_memcmp(k->digest, digest, SHA256_LEN) == 0)
            break;
    if (k == NULL)
        return false;
    if (boot_now() >= k->until || (k->until == BY_SET && !set_fresh(t)) ||
        (int64_t)time(NULL) >= k->expires + t->c->leeway) {
        known_free(t, k);
        return false;
    }
    memset(who, 0, sizeof(*who));
    strcpy(who->subject, k->text);
    strcpy(who->org, k->text + k->org);
    who->compliance = k->compliance;
    who->admin = k->admin;
    who->expires = k->expires;
    TAILQ_REMOVE(&t->lru, k, lru);
    TAILQ_INSERT_HEAD(&t->lru, k, lru);
    return true;
}

/* No memory: then it is not remembered. */
static void
known_put(struct tokens *t, const unsigned char digest[SHA256_LEN], const struct jwt_identity *who,
          int64_t until)
{
    size_t subject = strlen(who->subject) + 1, org = strlen(who->org) + 1;
    struct known *k, **bucket;
    size_t size = sizeof(*k) + subject + org;

    if (t->n_known >= KNOWN_MAX)
        known_free(t, TAILQ_LAST(&t->lru, known_lru));
    if ((k = OPENSSL_zalloc(size)) == NULL)
        return;
    memcpy(k->digest, digest, SHA256_LEN);
    memcpy(k->text, who->subject, subject);
    memcpy(k->text + subject, who->org, org);
    k->org = subject;
    k->size = size;
    k->until = until;
    k->expires = who->expires;
    k->compliance = who->compliance;
    k->admin = who->admin;
    bucket = known_bucket(t, digest);
    k->next = *bucket;
    *bucket = k;
    TAILQ_INSERT_HEAD(&t->lru, k, lru);
    t->n_known++;
}

/* What is not there */

static bool
absent_has(const struct absent *a, const unsigned char digest[SHA256_LEN])
{
    int64_t now = boot_now();
    unsigned i;

    for (i = 0; i < ABSENT_MAX; i++)
        if (a->at[i].until > now && memcmp(a->at[i].digest, digest, SHA256_LEN) == 0)
            return true;
    return false;
}

static void
absent_put(struct absent *a, const unsigned char digest[SHA256_LEN], int64_t seconds)
{
    memcpy(a->at[a->next].digest, digest, SHA256_LEN);
    a->at[a->next].until = boot_now() + seconds;
    a->next = (a->next + 1) % ABSENT_MAX;
}

/* Questions */

static void
question_free(struct question *q)
{
    struct waiter *w;

    TAILQ_REMOVE(&q->t->questions, q, entry);
    q->t->n_questions--;
    fetch_cancel(q->fetch);
    while ((w = TAILQ_FIRST(&q->waiters)) != NULL) {
        TAILQ_REMOVE(&q->waiters, w, entry);
        q->t->n_waiters--;
        free(w);
    }
    OPENSSL_clear_free(q->token, q->len + 1);
    free(q);
}

static void
count_result(int err)
{
    if (err == KMS_OK)
        count_add(CT_TOKENS_VERIFIED, 1);
    else if (err != KMS_ERR_UNAVAILABLE && err != KMS_ERR_NOMEM)
        count_add(CT_TOKENS_REFUSED, 1);
}

/* Tells all who wait, and ends the question.  The callbacks may ask again. */
static void
question_answer(struct question *q, int err, const struct jwt_identity *who)
{
    struct waiters waiters = TAILQ_HEAD_INITIALIZER(waiters);
    struct tokens *t = q->t;
    struct waiter *w;

    count_result(err);
    TAILQ_CONCAT(&waiters, &q->waiters, entry);
    question_free(q);
    while ((w = TAILQ_FIRST(&waiters)) != NULL) {
        token_cb *cb = w->cb;
        void *ctx = w->ctx;
        uint64_t id = w->id;

        TAILQ_REMOVE(&waiters, w, entry);
        t->n_waiters--;
        free(w);
        cb(ctx, id, err, err == KMS_OK ? who : NULL);
    }
}

/* The question for this token, or a new one; NULL: no memory, or too many wait. */
static struct question *
question_get(struct tokens *t, const unsigned char digest[SHA256_LEN], const char *token,
             size_t len)
{
    struct question *q;

    TAILQ_FOREACH(q, &t->questions, entry)
    if (CRYPTO_memcmp(q->digest, digest, SHA256_LEN) == 0)
        return q;
    if (t->n_questions >= QUESTIONS_MAX || (q = calloc(1, sizeof(*q))) == NULL)
        return NULL;
    if ((q->token = OPENSSL_malloc(len + 1)) == NULL) {
        free(q);
        return NULL;
    }
    memcpy(q->token, token, len + 1);
    memcpy(q->digest, digest, SHA256_LEN);
    q->len = len;
    q->t = t;
    q->generation = t->generation;
    TAILQ_INIT(&q->waiters);
    TAILQ_INSERT_TAIL(&t->questions, q, entry);
    t->n_questions++;
    return q;
}

/* KMS_ERR_AGAIN, or why not; then a question that nobody else waits for is gone. */
static int
question_wait(struct question *q, token_cb *cb, void *ctx, uint64_t id)
{
    struct waiter *w;

    if (q->t->n_waiters >= WAITERS_MAX || (w = calloc(1, sizeof(*w))) == NULL) {
        if (TAILQ_EMPTY(&q->waiters))
            question_free(q);
        return KMS_ERR_UNAVAILABLE;
    }
    w->cb = cb;
    w->ctx = ctx;
    w->id = id;
    TAILQ_INSERT_TAIL(&q->waiters, w, entry);
    q->t->n_waiters++;
    return KMS_ERR_AGAIN;
}

/* By key set */

static int
verify_by_set(struct tokens *t, const unsigned char digest[SHA256_LEN], const char *token,
              size_t len, struct jwt_identity *who)
{
    int r = jwt_verify(who, token, len, t->set, &t->policy, t->c->compliance_role, t->c->admin_role,
                       (int64_t)time(NULL));

    if (r == KMS_OK)
        known_put(t, digest, who, BY_SET);
    return r;
}

/* The digest of a JWT's kid; false: no JWT after all. */
static bool
kid_digest(const char *token, size_t len, unsigned char digest[SHA256_LEN])
{
    struct jws jws;

    if (jws_parse(&jws, token, len) != KMS_OK)
        return false;
    SHA256((const unsigned char *)jws.kid, strlen(jws.kid), digest);
    return true;
}

/* The set has come, or has not: all who waited for it get their answer. */
static void
answer_set_questions(struct tokens *t, bool fetched)
{
    struct questions all = TAILQ_HEAD_INITIALIZER(all);
    struct question *q, *next;
    unsigned char kid[SHA256_LEN];
    struct jwt_identity who;
    int r;

    /* Callbacks may ask anew: those questions are not for now. */
    for (q = TAILQ_FIRST(&t->questions); q != NULL; q = next) {
        next = TAILQ_NEXT(q, entry);
        if (q->fetch != NULL)
            continue;
        TAILQ_REMOVE(&t->questions, q, entry);
        TAILQ_INSERT_TAIL(&all, q, entry);
    }
    while ((q = TAILQ_FIRST(&all)) != NULL) {
        TAILQ_REMOVE(&all, q, entry);
        TAILQ_INSERT_HEAD(&t->questions, q, entry); /* where question_free looks for it */
        r = KMS_ERR_UNAVAILABLE;
        if (fetched && set_fresh(t)) {
            r = verify_by_set(t, q->digest, q->token, q->len, &who);
            if (r == KMS_ERR_NOT_FOUND && kid_digest(q->token, q->len, kid))
                absent_put(&t->kids, kid, ABSENT_SECONDS);
        }
        question_answer(q, r, &who);
    }
    OPENSSL_cleanse(&who, sizeof(who));
}

/* Puts a set in place.  KMS_OK also when it is the one that we have. */
static int
set_take(struct tokens *t, const char *text, size_t len)
{
    unsigned char digest[SHA256_LEN];
    struct jwks *set;
    int r;

    SHA256((const unsigned char *)text, len, digest);
    if (t->set == NULL || memcmp(digest, t->set_digest, SHA256_LEN) != 0) {
        if ((r = jwks_parse(&set, text, len)) != KMS_OK)
            return r;
        jwks_free(t->set);
        t->set = set;
        memcpy(t->set_digest, digest, SHA256_LEN);
        known_clear(t); /* a key that is gone must vouch for nobody */
        memset(&t->kids, 0, sizeof(t->kids));
        log_info("key set loaded", "keys%u", (unsigned long long)jwks_count(set), NULL);
    } else if (t->set_failed) {
        log_info("key set confirmed", "keys%u", (unsigned long long)jwks_count(t->set), NULL);
    }
    t->set_time = boot_now();
    return KMS_OK;
}

/* Seconds until the set is fetched again: a tenth more or less, so that workers and nodes do not
 * all come at once. */
static int64_t
set_delay(const struct tokens *t)
{
    unsigned char r = 0;

    (void)RAND_bytes(&r, 1);
    if (t->set_failed)
        return t->retry;
    return t->c->key_set_refresh * (900 + (int64_t)r * 200 / 255) / 1000;
}

static void
set_schedule(struct tokens *t)
{
    struct timeval tv = {.tv_sec = (time_t)set_delay(t)};

    if (tv.tv_sec < RETRY_MIN)
        tv.tv_sec = RETRY_MIN;
    event_add(t->refresh, &tv);
}

/* A try to get the set has ended. */
static void
set_result(struct tokens *t, int err, const char *why)
{
    const char *from = given(t->c->key_set_file) ? t->c->key_set_file : t->c->key_set_url;

    if (err == KMS_OK) {
        t->set_failed = false;
        t->retry = RETRY_MIN;
    } else {
        count_add(CT_KEY_SET_FAILURES, 1);
        log_warn("key set not loaded", "from", from, "error", kms_strerror(err), "reason", why,
                 "usable", set_fresh(t) ? "the last one still is" : "none is", NULL);
        t->retry = t->set_failed ? t->retry * 2 : RETRY_MIN;
        if (t->retry > RETRY_MAX)
            t->retry = RETRY_MAX;
        if (t->retry > t->c->key_set_refresh && t->c->key_set_refresh >= RETRY_MIN)
            t->retry = t->c->key_set_refresh;
        t->set_failed = true;
    }
    set_schedule(t);
    answer_set_questions(t, err == KMS_OK);
}

static void
set_fetched_cb(void *ctx, int err, long status, const char *body, size_t len, const char *why)
{
    struct tokens *t = ctx;

    t->set_fetch = NULL;
    if (err == KMS_OK && status != 200) {
        err = KMS_ERR_UNAVAILABLE;
        why = "the answer's status is not 200";
    } else if (err == KMS_OK && (err = set_take(t, body, len)) != KMS_OK) {
        why = "the answer is no key set";
    }
    set_result(t, err, why);
}

/* Reads a whole small file.  KMS_ERR_SYSTEM, KMS_ERR_LENGTH, KMS_ERR_NOMEM. */
static int
read_file(struct buf *out, const char *path, size_t max, struct stat *st)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), r = KMS_ERR_SYSTEM;
    ssize_t n = 0;

    if (fd < 0)
        return KMS_ERR_SYSTEM;
    if (fstat(fd, st) != 0)
        goto out;
    errno = EINVAL;
    if (!S_ISREG(st->st_mode))
        goto out;
    r = KMS_ERR_LENGTH;
    if ((size_t)st->st_size > max)
        goto out;
    if ((r = buf_reserve(out, (size_t)st->st_size + 1)) != KMS_OK)
        goto out;
    while (out->len < (size_t)st->st_size &&
           (n = read(fd, out->data + out->len, (size_t)st->st_size - out->len)) > 0)
        out->len += (size_t)n;
    if (out->data != NULL)
        out->data[out->len] = '\0';
    if (n < 0)
        r = KMS_ERR_SYSTEM;
out:
    close(fd);
    return r;
}

static bool
same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static void
set_read_file(struct tokens *t)
{
    struct buf text = BUF_INIT;
    const char *why = NULL;
    struct stat st;
    int r;

    if (t->set != NULL && !t->set_failed && stat(t->c->key_set_file, &st) == 0 &&
        same_file(&st, &t->set_stat)) {
        t->set_time = boot_now();
        set_schedule(t);
        return;
    }
    count_add(CT_KEY_SET_FETCHES, 1);
    if ((r = read_file(&text, t->c->key_set_file, FETCH_MAX, &st)) != KMS_OK)
        why = r == KMS_ERR_SYSTEM ? strerror(errno) : NULL;
    else if ((r = set_take(t, buf_str(&text), text.len)) != KMS_OK)
        why = "the file is no key set";
    else
        t->set_stat = st;
    buf_release(&text);
    set_result(t, r, why);
}

/* Begins to get the set anew: a file at once, a URL later. */
static void
set_get(struct tokens *t)
{
    struct fetch_request req = {.deadline_ms = SET_DEADLINE_MS};
    int r;

    if (given(t->c->key_set_file)) {
        set_read_file(t);
        return;
    }
    if (!given(t->c->key_set_url) || t->set_fetch != NULL)
        return;
    req.url = t->c->key_set_url;
    req.ca_file = t->c->key_set_ca;
    count_add(CT_KEY_SET_FETCHES, 1);
    if ((r = fetch_start(&t->set_fetch, t->fetcher, &req, set_fetched_cb, t)) != KMS_OK)
        set_result(t, r, NULL);
}

static void
refresh_cb(evutil_socket_t fd, short what, void *arg)
{
    set_get(arg);
}

/* Waits for the set that is being fetched. */
static int
await_set(struct tokens *t, const unsigned char digest[SHA256_LEN], const char *token, size_t len,
          token_cb *cb, void *ctx, uint64_t id)
{
    struct question *q;

    if (t->set_fetch == NULL || (q = question_get(t, digest, token, len)) == NULL)
        return KMS_ERR_UNAVAILABLE;
    return question_wait(q, cb, ctx, id);
}

/* The set that we have does not know the kid. */
static int
unknown_kid(struct tokens *t, const unsigned char digest[SHA256_LEN], const char *token, size_t len,
            struct jwt_identity *who, token_cb *cb, void *ctx, uint64_t id)
{
    unsigned char kid[SHA256_LEN];
    int64_t now = boot_now();
    int r;

    if (!kid_digest(token, len, kid) || absent_has(&t->kids, kid))
        return KMS_ERR_NOT_FOUND;
    if (t->set_fetch == NULL) {
        if (now < t->unknown_next)
            return KMS_ERR_NOT_FOUND;
        t->unknown_next = now + t->c->key_set_cooldown;
        set_get(t);
    }
    if (t->set_fetch != NULL)
        return await_set(t, digest, token, len, cb, ctx, id);
    if (!set_fresh(t))
        return KMS_ERR_UNAVAILABLE;
    /* A file: the answer is there. */
    if ((r = verify_by_set(t, digest, token, len, who)) == KMS_ERR_NOT_FOUND && !t->set_failed)
        absent_put(&t->kids, kid, ABSENT_SECONDS);
    return r;
}

/* By introspection */

/* What the provider said of a token. */
static int
read_claims(const struct tokens *t, const char *text, size_t len, struct jwt_identity *who)
{
    struct jwt_policy policy = t->policy;
    json_t *claims = NULL, *active;
    int r;

    if (kms_json_parse(&claims, text, len) != KMS_OK)
        return KMS_ERR_UNAVAILABLE;
    active = json_object_get(claims, "active");
    if (!json_is_boolean(active)) {
        r = KMS_ERR_UNAVAILABLE;
    } else if (!json_is_true(active)) {
        r = KMS_ERR_STATE;
    } else {
        /*
         * RFC 7662 section 2.2 makes all but "active" optional.  Of iss, its absence is no loss:
         * the answer comes from the provider that is configured, over TLS.  Without aud a token for
         * anybody's service would do here, and without exp nobody knows how long it is good: those
         * are required.
         */
        if (json_object_get(claims, "iss") == NULL)
            policy.issuer = NULL;
        r = jwt_check(who, claims, &policy, t->c->compliance_role, t->c->admin_role,
                      (int64_t)time(NULL));
    }
    json_decref(claims);
    return r;
}

static void
introspected_cb(void *ctx, int err, long status, const char *body, size_t len, const char *why)
{
    struct question *q = ctx;
    struct tokens *t = q->t;
    struct jwt_identity who;

    q->fetch = NULL;
    memset(&who, 0, sizeof(who));
    if (err == KMS_OK && status == 200) {
        err = read_claims(t, body, len, &who);
        why = "the answer is no introspection response";
    } else {
        err = KMS_ERR_UNAVAILABLE;
    }
    if (err == KMS_ERR_UNAVAILABLE)
        log_warn("introspection failed", "url", t->c->introspection_url, "status%l",
                 (long long)status, "reason", why, NULL);
    else if (q->generation == t->generation && err == KMS_OK)
        known_put(t, q->digest, &who, boot_now() + t->c->introspection_cache);
    else if (q->generation == t->generation && err == KMS_ERR_STATE)
        absent_put(&t->opaque, q->digest, t->c->introspection_cache);
    question_answer(q, err, &who);
    OPENSSL_cleanse(&who, sizeof(who));
}

static int
introspection_start(struct tokens *t, struct question *q)
{
    const struct config *c = t->c;
    struct fetch_request req = {
        .url = c->introspection_url, .ca_file = c->key_set_ca, .deadline_ms = ASK_DEADLINE_MS};
    struct buf form = BUF_INIT, user = BUF_INIT, password = BUF_INIT;
    int r;

    if ((r = buf_puts(&form, "token_type_hint=access_token&token=")) != KMS_OK ||
        (r = fetch_put_form(&form, q->token)) != KMS_OK)
        goto out;
    if (given(c->introspection_client)) {
        /* RFC 6749 section 2.3.1 has both form-encoded. */
        if ((r = fetch_put_form(&user, c->introspection_client)) != KMS_OK ||
            (r = fetch_put_form(&password, buf_str(&t->secret))) != KMS_OK)
            goto out;
        req.user = buf_str(&user);
        req.password = buf_str(&password);
    }
    req.form = buf_str(&form);
    r = fetch_start(&q->fetch, t->fetcher, &req, introspected_cb, q);
out:
    buf_release(&form);
    buf_release(&user);
    buf_release(&password);
    return r;
}

static int
introspect(struct tokens *t, const unsigned char digest[SHA256_LEN], const char *token, size_t len,
           token_cb *cb, void *ctx, uint64_t id)
{
    struct question *q;

    if (absent_has(&t->opaque, digest))
        return KMS_ERR_STATE;
    if ((q = question_get(t, digest, token, len)) == NULL)
        return KMS_ERR_UNAVAILABLE;
    if (q->fetch == NULL && introspection_start(t, q) != KMS_OK) {
        question_free(q);
        return KMS_ERR_UNAVAILABLE;
    }
    return question_wait(q, cb, ctx, id);
}

/* What the others see */

/* Three parts of base64url.  Also whether it is a bearer token at all (RFC 6750 section 2.1). */
static bool
is_bearer(const char *s, size_t len, bool *jws)
{
    size_t dots = 0, others = 0, i;

    for (i = 0; i < len && s[i] != '='; i++) {
        char c = s[i], letter = (char)(c | 0x20);

        if ((letter >= 'a' && letter <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_')
            continue;
        if (c == '.')
            dots++;
        else if (c == '~' || c == '+' || c == '/')
            others++;
        else
            return false;
    }
    *jws = dots == 2 && others == 0 && i == len;
    if (i == 0)
        return false;
    while (i < len && s[i] == '=')
        i++;
    return i == len;
}

static int
verify(struct tokens *t, const unsigned char digest[SHA256_LEN], const char *token, size_t len,
       bool jws, struct jwt_identity *who, token_cb *cb, void *ctx, uint64_t id)
{
    int r;

    if (jws && has_set_source(t)) {
        if (!set_fresh(t))
            return await_set(t, digest, token, len, cb, ctx, id);
        r = verify_by_set(t, digest, token, len, who);
        if (r == KMS_ERR_NOT_FOUND)
            r = unknown_kid(t, digest, token, len, who, cb, ctx, id);
        return r;
    }
    if (given(t->c->introspection_url))
        return introspect(t, digest, token, len, cb, ctx, id);
    return KMS_ERR_SYNTAX;
}

int
tokens_verify(struct tokens *t, const char *bearer, struct jwt_identity *who, token_cb *cb,
              void *ctx, uint64_t id)
{
    unsigned char digest[SHA256_LEN];
    size_t len = strnlen(bearer, JWT_MAX + 1);
    bool jws;
    int r;

    memset(who, 0, sizeof(*who));
    if (len > JWT_MAX) {
        r = KMS_ERR_LENGTH;
    } else if (!is_bearer(bearer, len, &jws)) {
        r = KMS_ERR_SYNTAX;
    } else {
        SHA256((const unsigned char *)bearer, len, digest);
        if (known_get(t, digest, who)) {
            count_add(CT_TOKEN_CACHE_HITS, 1);
            return KMS_OK;
        }
        r = verify(t, digest, bearer, len, jws, who, cb, ctx, id);
    }
    if (r != KMS_ERR_AGAIN)
        count_result(r);
    return r;
}

bool
tokens_ready(const struct tokens *t)
{
    return given(t->c->introspection_url) || set_fresh(t);
}

static void
take_config(struct tokens *t, const struct config *c)
{
    struct stat st;

    t->c = c;
    t->policy.issuer = c->issuer;
    t->policy.audience = c->audience;
    t->policy.scope = given(c->scope) ? c->scope : NULL;
    t->policy.org_claim = c->org_claim;
    t->policy.roles_claim = c->roles_claim;
    t->policy.leeway = c->leeway;
    t->policy.max_lifetime = c->max_lifetime;
    t->retry = RETRY_MIN;
    buf_release(&t->secret);
    if (!given(c->introspection_secret_file))
        return;
    if (read_file(&t->secret, c->introspection_secret_file, SECRET_FILE_MAX, &st) != KMS_OK)
        log_error("the secret for introspection cannot be read", "file",
                  c->introspection_secret_file, "error", strerror(errno), NULL);
    while (t->secret.len > 0 && strchr("\r\n", t->secret.data[t->secret.len - 1]) != NULL)
        t->secret.data[--t->secret.len] = '\0';
}

struct tokens *
tokens_new(struct event_base *base, const struct config *c)
{
    struct tokens *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return NULL;
    t->base = base;
    TAILQ_INIT(&t->lru);
    TAILQ_INIT(&t->questions);
    if ((t->fetcher = fetcher_new(base)) == NULL ||
        (t->refresh = evtimer_new(base, refresh_cb, t)) == NULL) {
        tokens_free(t);
        return NULL;
    }
    take_config(t, c);
    set_get(t);
    return t;
}

void
tokens_free(struct tokens *t)
{
    if (t == NULL)
        return;
    while (!TAILQ_EMPTY(&t->questions))
        question_free(TAILQ_FIRST(&t->questions));
    fetch_cancel(t->set_fetch);
    fetcher_free(t->fetcher);
    if (t->refresh != NULL)
        event_free(t->refresh);
    known_clear(t);
    jwks_free(t->set);
    buf_release(&t->secret);
    free(t);
}

void
tokens_reload(struct tokens *t, const struct config *c)
{
    fetch_cancel(t->set_fetch);
    t->set_fetch = NULL;
    event_del(t->refresh);
    t->generation++;
    known_clear(t);
    memset(&t->kids, 0, sizeof(t->kids));
    memset(&t->opaque, 0, sizeof(t->opaque));
    memset(&t->set_stat, 0, sizeof(t->set_stat));
    t->unknown_next = 0;
    take_config(t, c);
    if (has_set_source(t))
        set_get(t);
    else
        answer_set_questions(t, false);
}
