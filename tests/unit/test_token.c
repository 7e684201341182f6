/*
 * test_token.c - access tokens against an identity provider that rotates keys, is slow, lies or is
 * away.
 *
 * The provider is a real HTTPS server, our own, on the same event loop as the code under test.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <event2/event.h>
#include <jansson.h>
#include <netinet/in.h>
#include <openssl/hmac.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "kms/config.h"
#include "kms/fetch.h"
#include "kms/shared.h"
#include "kms/token.h"
#include "kms/web.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "tests/unit/certs.h"

#define ISSUER   "https://id.example"
#define AUDIENCE "kms.example"

/* The provider */

enum mood { WELL, ERROR_500, SLOW, JUNK, HUGE_, NO_KEYS, ELSEWHERE };

static struct {
    struct web *web;
    int fd;
    unsigned short port;
    enum mood mood;
    unsigned set_asked, asked;
    json_t *keys;      /* of the set */
    char answer[1024]; /* to introspection */
    char form[2048];   /* as it came */
    char path[64];
} idp;

static struct event_base *base;
static struct config cfg;
static struct tokens *t;
static struct shared_worker slot;
static EVP_PKEY *key1, *key2;

static uint64_t
counted(enum counter c)
{
    return atomic_load(&slot.counters[c]);
}

static void
provide(void *ctx, uint64_t conn, const struct http_request *http, const char *body, size_t len,
        const char *peer, STACK_OF(X509) * chain)
{
    struct buf out = BUF_INIT;
    json_t *set;
    int status = 200;

    if (http_is(http->path, "/keys"))
        idp.set_asked++;
    else
        idp.asked++;
    switch (idp.mood) {
    case SLOW:
        return; /* never */
    case ERROR_500:
        status = 500;
        break;
    case JUNK:
        buf_puts(&out, "<html>");
        break;
    case HUGE_:
        buf_reserve(&out, 2 * FETCH_MAX);
        memset(out.data, ' ', 2 * FETCH_MAX);
        out.len = 2 * FETCH_MAX;
        break;
    case NO_KEYS:
        buf_puts(&out, "{\"keys\":[]}");
        break;
    case ELSEWHERE:
        status = 204;
        break;
    case WELL:
        if (http_is(http->path, "/keys")) {
            set = json_pack("{s:O}", "keys", idp.keys);
            kms_json_put(&out, set);
            json_decref(set);
        } else {
            snprintf(idp.form, sizeof(idp.form), "%.*s", (int)len, body);
            buf_puts(&out, idp.answer);
        }
        break;
    }
    web_answer(idp.web, conn, status, NULL, &out, 0, false);
}

static void
idp_up(void)
{
    static struct web_limits limits = {100, 100, 100, 10, 10, 10, 10, 60, 65536};
    struct sockaddr_in sin = {.sin_family = AF_INET};
    socklen_t len = sizeof(sin);
    struct config c = {0};
    SSL_CTX *tls;
    const char *why;
    int one = 1;

    c.tls_certificate = strdup(certs_path("idp.pem"));
    c.tls_key = strdup(certs_path("idp.key"));
    cr_assert_eq(web_tls_new(&tls, &c, &why), KMS_OK, "%s", why);
    free(c.tls_certificate);
    free(c.tls_key);
    idp.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(idp.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sin.sin_port = htons(idp.port);
    cr_assert_eq(bind(idp.fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
    cr_assert_eq(listen(idp.fd, 64), 0);
    cr_assert_eq(getsockname(idp.fd, (struct sockaddr *)&sin, &len), 0);
    idp.port = ntohs(sin.sin_port);
    idp.web = web_new(base, idp.fd, tls, &limits, provide, NULL);
    SSL_CTX_free(tls);
}

static void
idp_down(void)
{
    if (idp.web == NULL)
        return;
    web_free(idp.web);
    idp.web = NULL;
    close(idp.fd);
}

static void
put_key(json_t *keys, const char *kid, EVP_PKEY *key)
{
    json_t *jwk = jwk_from_public(key);

    json_object_set_new(jwk, "kid", json_string(kid));
    json_array_append_new(keys, jwk);
}

static void
put_set_file(void)
{
    struct buf out = BUF_INIT;
    json_t *set = json_pack("{s:O}", "keys", idp.keys);

    kms_json_put(&out, set);
    json_decref(set);
    certs_put_text("set.json", buf_str(&out));
    buf_release(&out);
}

static char *
url(const char *path)
{
    char text[128];

    snprintf(text, sizeof(text), "https://127.0.0.1:%u%s", idp.port, path);
    return strdup(text);
}

static void
setup(void)
{
    EVP_PKEY *key;
    X509 *cert;

    kms_json_init();
    shared_own(&slot);
    base = event_base_new();
    key = certs_key();
    cert = certs_make("idp", key, NULL, NULL);
    certs_put_key("idp.key", key);
    certs_put_cert("idp.pem", cert);
    X509_free(cert);
    EVP_PKEY_free(key);
    key1 = certs_key();
    key2 = certs_key();
    idp.keys = json_array();
    put_key(idp.keys, "one", key1);
    idp_up();
    cfg.issuer = strdup(ISSUER);
    cfg.audience = strdup(AUDIENCE);
    cfg.scope = strdup("spark:kms");
    cfg.org_claim = strdup("org");
    cfg.roles_claim = strdup("roles");
    cfg.compliance_role = strdup("officer");
    cfg.admin_role = strdup("admin");
    cfg.key_set_ca = strdup(certs_path("idp.pem"));
    cfg.key_set_refresh = 3600;
    cfg.key_set_cooldown = 30;
    cfg.key_set_keep = 86400;
    cfg.introspection_cache = 60;
    cfg.leeway = 0;
    cfg.max_lifetime = 86400;
}

static void
cfg_release(void)
{
    free(cfg.issuer);
    free(cfg.audience);
    free(cfg.scope);
    free(cfg.org_claim);
    free(cfg.roles_claim);
    free(cfg.compliance_role);
    free(cfg.admin_role);
    free(cfg.key_set_ca);
    free(cfg.key_set_file);
    free(cfg.key_set_url);
    free(cfg.introspection_url);
    free(cfg.introspection_client);
    free(cfg.introspection_secret_file);
}

static void
teardown(void)
{
    tokens_free(t);
    idp_down();
    event_base_loop(base, EVLOOP_NONBLOCK);
    event_base_free(base);
    json_decref(idp.keys);
    EVP_PKEY_free(key1);
    EVP_PKEY_free(key2);
    cfg_release();
    certs_clean();
}

TestSuite(token, .init = setup, .fini = teardown, .timeout = 60);

/* Asking */

/* What came back, by the number of the question. */
static struct {
    bool came;
    int err;
    struct jwt_identity who;
} got[64];

static void
got_cb(void *ctx, uint64_t id, int err, const struct jwt_identity *who)
{
    cr_assert_lt(id, 64);
    cr_assert_not(got[id].came, "answered twice");
    got[id].came = true;
    got[id].err = err;
    if (who != NULL)
        got[id].who = *who;
    cr_assert_eq(err == KMS_OK, who != NULL);
}

static void
run_ms(int ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};

    event_base_loopexit(base, &tv);
    event_base_dispatch(base);
}

/* Asks and waits. */
static int
ask(const char *token, struct jwt_identity *who)
{
    struct jwt_identity mine;
    int r = tokens_verify(t, token, who == NULL ? &mine : who, got_cb, NULL, 63), i;

    if (r != KMS_ERR_AGAIN)
        return r;
    for (i = 0; i < 700 && !got[63].came; i++)
        run_ms(10);
    cr_assert(got[63].came, "no answer");
    got[63].came = false;
    if (who != NULL)
        *who = got[63].who;
    return got[63].err;
}

static char *
claims_text(const char *user, int lifetime)
{
    char *text;
    json_t *c = json_pack("{s:s,s:s,s:s,s:s,s:s,s:[s],s:I}", "iss", ISSUER, "aud", AUDIENCE, "sub",
                          user, "org", "acme", "scope", "a spark:kms b", "roles", "officer", "exp",
                          (json_int_t)time(NULL) + lifetime);

    text = json_dumps(c, JSON_COMPACT);
    json_decref(c);
    return text;
}

/* What jansson allocated is jansson's to free. */
static void
free_text(char *text)
{
    json_free_t f;

    json_get_alloc_funcs(NULL, &f);
    f(text);
}

/* A token; static, one of eight in turn. */
static const char *
token(const char *kid, EVP_PKEY *key, const char *user, int lifetime)
{
    static struct buf made[8];
    static unsigned next;
    struct buf *b = &made[next++ % 8];
    char *text = claims_text(user, lifetime);

    buf_reset(b);
    b->len = 0;
    cr_assert_eq(jws_sign(b, JWS_ES256, kid, "at+jwt", key, text, strlen(text)), KMS_OK);
    free_text(text);
    return buf_str(b);
}

static void
start_file(void)
{
    put_set_file();
    cfg.key_set_file = strdup(certs_path("set.json"));
    t = tokens_new(base, &cfg);
    cr_assert_not_null(t);
}

static void
start_url(void)
{
    cfg.key_set_url = url("/keys");
    t = tokens_new(base, &cfg);
    cr_assert_not_null(t);
}

static void
start_introspection(void)
{
    cfg.introspection_url = url("/introspect");
    cfg.introspection_client = strdup("kms+client");
    certs_put_text("secret", "p%ss word\n");
    cfg.introspection_secret_file = strdup(certs_path("secret"));
    t = tokens_new(base, &cfg);
    cr_assert_not_null(t);
}

/* By key set */

Test(token, a_key_set_file_verifies_and_what_was_verified_is_remembered)
{
    struct jwt_identity who;
    const char *tok;

    start_file();
    cr_assert(tokens_ready(t));
    tok = token("one", key1, "alice", 60);
    cr_assert_eq(ask(tok, &who), KMS_OK);
    cr_assert_str_eq(who.subject, "alice");
    cr_assert_str_eq(who.org, "acme");
    cr_assert(who.compliance && !who.admin);
    cr_assert_eq(counted(CT_TOKENS_VERIFIED), 1);
    memset(&who, 0, sizeof(who));
    cr_assert_eq(ask(tok, &who), KMS_OK);
    cr_assert_str_eq(who.subject, "alice");
    cr_assert_str_eq(who.org, "acme");
    cr_assert(who.compliance && !who.admin);
    cr_assert_eq(counted(CT_TOKENS_VERIFIED), 1);
    cr_assert_eq(counted(CT_TOKEN_CACHE_HITS), 1);
    cr_assert_eq(ask(token("one", key2, "mallory", 60), &who), KMS_ERR_CRYPTO);
    cr_assert_str_eq(who.subject, "");
    cr_assert_eq(counted(CT_TOKENS_REFUSED), 1);
}

Test(token, what_is_remembered_ends_with_the_token)
{
    const char *tok;

    start_file();
    tok = token("one", key1, "alice", 1);
    cr_assert_eq(ask(tok, NULL), KMS_OK);
    usleep(2100000);
    cr_assert_eq(ask(tok, NULL), KMS_ERR_EXPIRED);
    cr_assert_eq(counted(CT_TOKEN_CACHE_HITS), 0);
}

Test(token, a_new_key_in_the_file_is_found_but_not_more_often_than_configured)
{
    start_file();
    cr_assert_eq(ask(token("two", key2, "alice", 60), NULL), KMS_ERR_NOT_FOUND);
    put_key(idp.keys, "two", key2);
    put_set_file();
    cr_assert_eq(ask(token("three", key2, "alice", 60), NULL), KMS_ERR_NOT_FOUND); /* cooldown */
    cr_assert_eq(ask(token("two", key2, "bob", 60), NULL), KMS_ERR_NOT_FOUND);
    cfg.key_set_cooldown = 0;
    tokens_reload(t, &cfg);
    cr_assert_eq(ask(token("two", key2, "alice", 60), NULL), KMS_OK);
}

Test(token, a_changed_file_is_read_by_the_clock_and_revokes)
{
    const char *tok;

    cfg.key_set_refresh = 1;
    start_file();
    tok = token("one", key1, "alice", 60);
    cr_assert_eq(ask(tok, NULL), KMS_OK);
    json_array_clear(idp.keys);
    put_key(idp.keys, "two", key2);
    put_set_file();
    run_ms(1500);
    cr_assert_eq(ask(token("two", key2, "alice", 60), NULL), KMS_OK);
    cr_assert_eq(ask(tok, NULL), KMS_ERR_NOT_FOUND);
    /* A file that has become no key set changes nothing. */
    certs_put_text("set.json", "{");
    run_ms(1500);
    cr_assert_eq(ask(token("two", key2, "bob", 60), NULL), KMS_OK);
    cr_assert_geq(counted(CT_KEY_SET_FAILURES), 1);
}

Test(token, tokens_that_come_before_the_key_set_wait_for_it)
{
    struct jwt_identity who;
    const char *tok = token("one", key1, "alice", 60);
    int i;

    start_url();
    cr_assert_not(tokens_ready(t));
    for (i = 0; i < 10; i++)
        cr_assert_eq(tokens_verify(t, i < 5 ? tok : token("one", key1, "bob", 60 + i), &who, got_cb,
                                   NULL, (uint64_t)i),
                     KMS_ERR_AGAIN);
    run_ms(300);
    for (i = 0; i < 10; i++) {
        cr_assert(got[i].came);
        cr_assert_eq(got[i].err, KMS_OK);
        cr_assert_str_eq(got[i].who.subject, i < 5 ? "alice" : "bob");
    }
    cr_assert(tokens_ready(t));
    cr_assert_eq(idp.set_asked, 1);
    cr_assert_eq(counted(CT_TOKENS_VERIFIED), 6);
}

Test(token, an_unknown_kid_causes_one_fetch_and_then_none)
{
    struct jwt_identity who;
    int i;

    cfg.key_set_cooldown = 2;
    start_url();
    cr_assert_eq(ask(token("one", key1, "alice", 60), NULL), KMS_OK);
    /* Several at once, of several unknown kids: one fetch. */
    for (i = 0; i < 6; i++)
        cr_assert_eq(tokens_verify(t, token(i % 2 ? "x" : "y", key2, "eve", 60 + i), &who, got_cb,
                                   NULL, (uint64_t)i),
                     KMS_ERR_AGAIN);
    run_ms(300);
    for (i = 0; i < 6; i++)
        cr_assert(got[i].came && got[i].err == KMS_ERR_NOT_FOUND);
    cr_assert_eq(idp.set_asked, 2);
    /* Within the cooldown: at once, and no fetch. */
    cr_assert_eq(tokens_verify(t, token("z", key2, "eve", 60), &who, got_cb, NULL, 20),
                 KMS_ERR_NOT_FOUND);
    cr_assert_eq(tokens_verify(t, token("x", key2, "eve", 99), &who, got_cb, NULL, 20),
                 KMS_ERR_NOT_FOUND);
    /* What is known goes on meanwhile. */
    cr_assert_eq(ask(token("one", key1, "bob", 60), NULL), KMS_OK);
    run_ms(2500);
    /* After it: a kid that was not there costs nothing, a new one is found. */
    cr_assert_eq(tokens_verify(t, token("x", key2, "eve", 98), &who, got_cb, NULL, 20),
                 KMS_ERR_NOT_FOUND);
    put_key(idp.keys, "two", key2);
    cr_assert_eq(ask(token("two", key2, "carol", 60), NULL), KMS_OK);
    cr_assert_eq(idp.set_asked, 3);
    cr_assert_eq(counted(CT_KEY_SET_FETCHES), 3);
}

Test(token, a_provider_that_is_away_at_first_is_tried_again)
{
    idp_down();
    start_url();
    cr_assert_eq(ask(token("one", key1, "alice", 60), NULL), KMS_ERR_UNAVAILABLE);
    cr_assert_not(tokens_ready(t));
    cr_assert_eq(ask(token("one", key1, "alice", 60), NULL), KMS_ERR_UNAVAILABLE);
    idp_up();
    run_ms(1500);
    cr_assert(tokens_ready(t));
    cr_assert_eq(ask(token("one", key1, "alice", 60), NULL), KMS_OK);
}

Test(token, the_last_good_set_is_kept_for_its_time)
{
    const enum mood moods[] = {ERROR_500, JUNK, HUGE_, NO_KEYS, ELSEWHERE};
    uint64_t failures;
    size_t i;

    cfg.key_set_refresh = 1;
    cfg.key_set_keep = 4;
    start_url();
    cr_assert_eq(ask(token("one", key1, "alice", 60), NULL), KMS_OK);
    for (i = 0; i < sizeof(moods) / sizeof(moods[0]); i++) {
        failures = counted(CT_KEY_SET_FAILURES);
        idp.mood = moods[i];
        run_ms(1400);
        cr_assert_gt(counted(CT_KEY_SET_FAILURES), failures, "mood %zu", i);
        cr_assert_eq(ask(token("one", key1, "bob", 60), NULL), KMS_OK);
        idp.mood = WELL;
        run_ms(1400);
    }
    idp_down();
    cr_assert_eq(ask(token("one", key1, "carol", 60), NULL), KMS_OK);
    run_ms(6000);
    cr_assert_not(tokens_ready(t));
    cr_assert_eq(ask(token("one", key1, "dave", 60), NULL), KMS_ERR_UNAVAILABLE);
    cr_assert_eq(ask(token("one", key1, "carol", 60), NULL), KMS_ERR_UNAVAILABLE);
}

Test(token, a_provider_that_cannot_be_trusted_is_as_good_as_away)
{
    EVP_PKEY *key = certs_key();
    X509 *cert = certs_make("other", key, NULL, NULL);

    certs_put_cert("other.pem", cert);
    X509_free(cert);
    EVP_PKEY_free(key);
    free(cfg.key_set_ca);
    cfg.key_set_ca = strdup(certs_path("other.pem"));
    start_url();
    cr_assert_eq(ask(token("one", key1, "alice", 60), NULL), KMS_ERR_UNAVAILABLE);
    cr_assert_eq(idp.set_asked, 0);
}

static void
put_b64(struct buf *out, const void *p, size_t len)
{
    cr_assert_eq(b64url_put(out, p, len), KMS_OK);
}

Test(token, the_key_decides_the_algorithm)
{
    static const char hs[] = "{\"alg\":\"HS256\",\"kid\":\"one\"}";
    static const char none[] = "{\"alg\":\"none\",\"kid\":\"one\"}";
    static const char rs[] = "{\"alg\":\"RS256\",\"kid\":\"one\"}";
    unsigned char *spki = NULL, mac[32];
    char *claims = claims_text("mallory", 60);
    struct buf b = BUF_INIT;
    int len;

    start_file();
    /* an HMAC by the public key */
    len = i2d_PUBKEY(key1, &spki);
    put_b64(&b, hs, strlen(hs));
    buf_putc(&b, '.');
    put_b64(&b, claims, strlen(claims));
    HMAC(EVP_sha256(), spki, len, b.data, b.len, mac, NULL);
    buf_putc(&b, '.');
    put_b64(&b, mac, sizeof(mac));
    cr_assert_eq(ask(buf_str(&b), NULL), KMS_ERR_ALGORITHM);
    buf_release(&b);
    put_b64(&b, none, strlen(none));
    buf_putc(&b, '.');
    put_b64(&b, claims, strlen(claims));
    buf_putc(&b, '.');
    cr_assert_neq(ask(buf_str(&b), NULL), KMS_OK);
    buf_release(&b);
    put_b64(&b, rs, strlen(rs));
    buf_putc(&b, '.');
    put_b64(&b, claims, strlen(claims));
    buf_putc(&b, '.');
    put_b64(&b, mac, sizeof(mac));
    cr_assert_neq(ask(buf_str(&b), NULL), KMS_OK);
    buf_release(&b);
    free_text(claims);
    OPENSSL_free(spki);
}

Test(token, what_is_no_bearer_token_is_refused_at_once)
{
    static char longest[20000];
    static const char *const bad[] = {"",         "=",     "a b", "a\nb",  "a=b",
                                      "\xc3\xa4", "a.b.c", "..",  "opaque"};
    size_t i;

    start_file();
    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int r = ask(bad[i], NULL);

        cr_assert(r != KMS_OK && r != KMS_ERR_UNAVAILABLE, "%s: %d", bad[i], r);
    }
    memset(longest, 'a', sizeof(longest) - 1);
    cr_assert_eq(ask(longest, NULL), KMS_ERR_LENGTH);
    cr_assert_eq(counted(CT_TOKENS_REFUSED), i + 1);
}

Test(token, memory_for_what_was_verified_is_bounded)
{
    const char *tok;
    char first[2048], name[32];
    uint64_t verified;
    int i;

    start_file();
    for (i = 0; i < 16384 + 100; i++) {
        snprintf(name, sizeof(name), "user-%d", i);
        tok = token("one", key1, name, 600);
        if (i == 0)
            snprintf(first, sizeof(first), "%s", tok);
        cr_assert_eq(ask(tok, NULL), KMS_OK);
    }
    verified = counted(CT_TOKENS_VERIFIED);
    cr_assert_eq(verified, (uint64_t)i);
    cr_assert_eq(ask(tok, NULL), KMS_OK);
    cr_assert_eq(counted(CT_TOKENS_VERIFIED), verified);
    cr_assert_eq(ask(first, NULL), KMS_OK);
    cr_assert_eq(counted(CT_TOKENS_VERIFIED), verified + 1);
}

Test(token, a_reload_keeps_who_waits_and_forgets_who_was_known)
{
    struct jwt_identity who;
    const char *tok = token("one", key1, "alice", 60);
    char *old = NULL;

    idp.mood = SLOW;
    start_url();
    cr_assert_eq(tokens_verify(t, tok, &who, got_cb, NULL, 1), KMS_ERR_AGAIN);
    run_ms(100);
    idp.mood = WELL;
    old = cfg.key_set_url;
    cfg.key_set_url = url("/keys?again");
    tokens_reload(t, &cfg);
    free(old);
    run_ms(300);
    cr_assert(got[1].came && got[1].err == KMS_OK);
    cr_assert_eq(idp.set_asked, 2);
    cr_assert_eq(ask(tok, NULL), KMS_OK);
    cr_assert_eq(counted(CT_TOKEN_CACHE_HITS), 1);
    free(cfg.audience);
    cfg.audience = strdup("elsewhere");
    tokens_reload(t, &cfg);
    cr_assert_eq(ask(tok, NULL), KMS_ERR_AUDIENCE);
}

/* By introspection */

/* The claims, and when the token ends, a minute from now. */
static void
idp_says(const char *claims)
{
    snprintf(idp.answer, sizeof(idp.answer), "{%s,\"exp\":%lld}", claims,
             (long long)time(NULL) + 60);
}

#define GOOD                                                                                       \
    "\"active\":true,\"iss\":\"" ISSUER "\",\"aud\":[\"x\",\"" AUDIENCE                            \
    "\"],\"sub\":\"alice\",\"org\":\"acme\",\"scope\":\"spark:kms\""

Test(token, introspection_says_who_it_is)
{
    struct jwt_identity who;

    start_introspection();
    cr_assert(tokens_ready(t));
    idp_says(GOOD);
    cr_assert_eq(ask("a+b/c~d==", &who), KMS_OK);
    cr_assert_str_eq(who.subject, "alice");
    cr_assert_str_eq(who.org, "acme");
    cr_assert_str_eq(idp.form, "token_type_hint=access_token&token=a%2Bb%2Fc~d%3D%3D");
    cr_assert_eq(ask("a+b/c~d==", &who), KMS_OK);
    cr_assert_eq(idp.asked, 1);
    cr_assert_eq(counted(CT_TOKEN_CACHE_HITS), 1);
}

Test(token, introspection_is_asked_once_for_all_who_wait)
{
    struct jwt_identity who;
    int i;

    start_introspection();
    idp_says(GOOD);
    for (i = 0; i < 8; i++)
        cr_assert_eq(tokens_verify(t, "opaque", &who, got_cb, NULL, (uint64_t)i), KMS_ERR_AGAIN);
    run_ms(300);
    for (i = 0; i < 8; i++)
        cr_assert(got[i].came && got[i].err == KMS_OK);
    cr_assert_eq(idp.asked, 1);
}

Test(token, an_introspected_token_is_asked_about_again_in_time)
{
    cfg.introspection_cache = 1;
    start_introspection();
    idp_says(GOOD);
    cr_assert_eq(ask("opaque", NULL), KMS_OK);
    usleep(2100000);
    snprintf(idp.answer, sizeof(idp.answer), "{\"active\":false}");
    cr_assert_eq(ask("opaque", NULL), KMS_ERR_STATE);
    cr_assert_eq(idp.asked, 2);
    cr_assert_eq(ask("opaque", NULL), KMS_ERR_STATE);
    cr_assert_eq(idp.asked, 2);
}

Test(token, introspection_is_judged_by_the_same_policy)
{
    static const struct {
        const char *answer; /* '{' first: as it is */
        int want;
    } rows[] = {
#define AUD  "\"active\":true,\"aud\":\"" AUDIENCE "\","
#define REST "\"sub\":\"a\",\"org\":\"o\",\"scope\":\"spark:kms\""
        {AUD REST, KMS_OK}, /* without iss: it is the provider that we asked */
        {AUD "\"iss\":\"https://other\"," REST, KMS_ERR_ISSUER},
        {"\"active\":true," REST, KMS_ERR_AUDIENCE},
        {AUD "\"sub\":\"a\",\"org\":\"o\",\"scope\":\"spark:kmsx\"", KMS_ERR_SCOPE},
        {AUD "\"sub\":\"a\",\"scope\":\"spark:kms\"", KMS_ERR_MEMBER},
        {"{" AUD REST "}", KMS_ERR_MEMBER}, /* no exp */
        {"{" AUD REST ",\"exp\":1}", KMS_ERR_EXPIRED},
        {"{\"active\":\"true\"}", KMS_ERR_UNAVAILABLE},
        {"{}", KMS_ERR_UNAVAILABLE},
        {"{\"active\":true,\"active\":true}", KMS_ERR_UNAVAILABLE},
        {"{\"active\":false}", KMS_ERR_STATE},
    };
    char name[16];
    size_t i;

    start_introspection();
    for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        idp_says(rows[i].answer);
        if (rows[i].answer[0] == '{')
            snprintf(idp.answer, sizeof(idp.answer), "%s", rows[i].answer);
        snprintf(name, sizeof(name), "opaque%zu", i);
        cr_assert_eq(ask(name, NULL), rows[i].want, "%s", rows[i].answer);
    }
    idp.answer[0] = '\0';
    cr_assert_eq(ask("nothing", NULL), KMS_ERR_UNAVAILABLE);
}

Test(token, introspection_that_fails_denies)
{
    time_t begin;

    start_introspection();
    idp.mood = ERROR_500;
    cr_assert_eq(ask("one", NULL), KMS_ERR_UNAVAILABLE);
    idp.mood = HUGE_;
    cr_assert_eq(ask("two", NULL), KMS_ERR_UNAVAILABLE);
    idp.mood = SLOW;
    begin = time(NULL);
    cr_assert_eq(ask("three", NULL), KMS_ERR_UNAVAILABLE);
    cr_assert(time(NULL) - begin >= 4 && time(NULL) - begin <= 6);
    idp_down();
    cr_assert_eq(ask("four", NULL), KMS_ERR_UNAVAILABLE);
    idp.mood = WELL;
    idp_says(GOOD);
    idp_up();
    cr_assert_eq(ask("one", NULL), KMS_OK);
}

Test(token, a_jwt_goes_by_the_key_set_even_where_introspection_is_configured)
{
    cfg.key_set_url = url("/keys");
    start_introspection();
    idp_says(GOOD);
    cr_assert_eq(ask(token("one", key1, "bob", 60), NULL), KMS_OK);
    cr_assert_eq(idp.asked, 0);
    cr_assert_eq(ask("opaque", NULL), KMS_OK);
    cr_assert_eq(idp.asked, 1);
}

Test(token, can_be_freed_while_questions_wait)
{
    struct jwt_identity who;

    idp.mood = SLOW;
    cfg.key_set_url = url("/keys");
    start_introspection();
    cr_assert_eq(tokens_verify(t, token("one", key1, "bob", 60), &who, got_cb, NULL, 1),
                 KMS_ERR_AGAIN);
    cr_assert_eq(tokens_verify(t, "opaque", &who, got_cb, NULL, 2), KMS_ERR_AGAIN);
    run_ms(100);
    tokens_free(t);
    t = NULL;
    run_ms(100);
    cr_assert(!got[1].came && !got[2].came);
}

/* Fetching */

static void
never_cb(void *ctx, int err, long status, const char *body, size_t len, const char *why)
{
    abort();
}

Test(token, only_https_and_this_machine_are_fetched_from)
{
    static const char *const bad[] = {"http://example.com/",
                                      "http://127.0.0.1.example.com/",
                                      "http://10.0.0.1/",
                                      "ftp://127.0.0.1/",
                                      "file:///etc/passwd",
                                      "https://user:x@127.0.0.1/",
                                      "keys",
                                      "",
                                      "http://localhost.example.com/"};
    static const char *const good[] = {"http://127.0.0.1:1/", "http://[::1]:1/",
                                       "http://localhost:1/", "https://127.0.0.1:1/"};
    struct fetch_request req = {.deadline_ms = 1000};
    struct fetcher *f = fetcher_new(base);
    struct fetch *ft;
    size_t i;

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        req.url = bad[i];
        cr_assert_eq(fetch_start(&ft, f, &req, never_cb, NULL), KMS_ERR_CONFIG, "%s", bad[i]);
    }
    for (i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        req.url = good[i];
        cr_assert_eq(fetch_start(&ft, f, &req, never_cb, NULL), KMS_OK, "%s", good[i]);
        fetch_cancel(ft);
    }
    run_ms(100);
    fetcher_free(f);
}

static void
fetched_cb(void *ctx, int err, long status, const char *body, size_t len, const char *why)
{
    *(int *)ctx = err;
}

/* The loop goes on while a name is being looked up; nobody answers for it here. */
Test(token, a_name_does_not_stop_the_loop)
{
    struct fetch_request req = {.url = "https://nobody.invalid/", .deadline_ms = 1500};
    struct fetcher *f = fetcher_new(base);
    struct fetch *ft;
    struct timespec a, b;
    int err = 1;
    long ms;

    clock_gettime(CLOCK_MONOTONIC, &a);
    cr_assert_eq(fetch_start(&ft, f, &req, fetched_cb, &err), KMS_OK);
    event_base_loop(base, EVLOOP_NONBLOCK);
    clock_gettime(CLOCK_MONOTONIC, &b);
    ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
    cr_assert_lt(ms, 300, "%ld ms", ms);
    run_ms(2000);
    cr_assert(err == KMS_ERR_UNAVAILABLE || err == KMS_ERR_TIMEOUT, "%d", err);
    fetcher_free(f);
}
