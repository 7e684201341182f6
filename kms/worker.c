/* worker.c - the worker process: makes its modules, runs the loop, reloads, drains. */
#include "kms/worker.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/channel.h"
#include "kms/db.h"
#include "kms/harden.h"
#include "kms/orgs.h"
#include "kms/post.h"
#include "kms/rate.h"
#include "kms/refusal.h"
#include "kms/req.h"
#include "kms/service.h"
#include "kms/state.h"
#include "kms/token.h"
#include "kms/web.h"
#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/secret.h"

#define HEAP_BASE    (1u << 20) /* keys under way, and what OpenSSL keeps there in handshakes */
#define HEAP_CHANNEL 64 /* bytes for a cached channel's key, with room to be found quickly */
#define BODY_MAX     (4u << 20) /* protocol section 1 */
#define RATE_NAMES   16384
#define DRAIN_TICK   50 /* ms */
#define CRL_SECONDS  10 /* between looks at the revocation lists' file */

static struct event *drain_timer;
static int64_t drain_deadline;

/* --- the static key as the world knows it --- */

/* What is made of the certificate: taken as a whole, or not at all. */
struct identity {
    char *kid, *answer;
    EVP_PKEY *public;
};

static void
identity_release(struct identity *id)
{
    free(id->kid);
    free(id->answer);
    EVP_PKEY_free(id->public);
}

/* The PEM chain as x5c wants it: standard base64 of each certificate's DER; *leaf is the first
 * one's key. */
static int
read_chain(json_t *x5c, EVP_PKEY **leaf, FILE *f)
{
    struct buf text = BUF_INIT;
    unsigned char *der = NULL;
    X509 *cert;
    int len, r = KMS_ERR_CONFIG;

    while ((cert = PEM_read_X509(f, NULL, NULL, NULL)) != NULL) {
        if (*leaf == NULL)
            *leaf = X509_get_pubkey(cert);
        len = i2d_X509(cert, &der);
        X509_free(cert);
        r = len > 0 ? b64_put(&text, der, (size_t)len) : KMS_ERR_NOMEM;
        if (r == KMS_OK && json_array_append_new(x5c, json_string(buf_str(&text))) != 0)
            r = KMS_ERR_NOMEM;
        buf_release(&text);
        OPENSSL_free(der);
        der = NULL;
        if (r != KMS_OK)
            break;
    }
    ERR_clear_error(); /* the end of the file is one to OpenSSL */
    return r == KMS_OK && *leaf == NULL ? KMS_ERR_CONFIG : r;
}

/* The JWK that clients check (protocol section 1): n, e, kid, and the chain as x5c; inside the
 * answer that carries it, as text. */
static int
identity_fill(struct identity *id, const char *cluster, FILE *f)
{
    unsigned char thumb[JWK_THUMBPRINT_LEN];
    char text[B64URL_LEN(JWK_THUMBPRINT_LEN) + 1] = {0};
    json_t *x5c = json_array(), *jwk = NULL, *answer = NULL;
    struct buf out = BUF_INIT;
    int r;

    if ((r = read_chain(x5c, &id->public, f)) != KMS_OK)
        goto out;
    r = KMS_ERR_CONFIG; /* not a key of a kind that we know */
    if ((jwk = jwk_from_public(id->public)) == NULL || jwk_thumbprint(thumb, jwk) != KMS_OK)
        goto out;
    b64url_encode(text, thumb, sizeof(thumb));
    r = KMS_ERR_NOMEM;
    if (asprintf(&id->kid, "%s/keys/%s", cluster, text) < 0) {
        id->kid = NULL;
        goto out;
    }
    if (json_object_set_new(jwk, "kid", json_string(id->kid)) != 0 ||
        json_object_set(jwk, "x5c", x5c) != 0 || kms_json_put(&out, jwk) != KMS_OK ||
        (answer = json_pack("{s:s, s:s}", "kmsCluster", cluster, "rsaPublicKey", buf_str(&out))) ==
            NULL)
        goto out;
    buf_reset(&out);
    if (kms_json_put(&out, answer) == KMS_OK && (id->answer = strdup(buf_str(&out))) != NULL)
        r = KMS_OK;
out:
    json_decref(answer);
    json_decref(jwk);
    json_decref(x5c);
    buf_release(&out);
    return r;
}

/* On failure the worker is as it was. */
static int
static_load(struct worker *w, const char *path)
{
    struct identity id = {NULL, NULL, NULL};
    FILE *f = fopen(path, "re");
    int r;

    if (f == NULL)
        return KMS_ERR_SYSTEM;
    if ((r = identity_fill(&id, w->cluster, f)) == KMS_OK) {
        struct identity old = {w->static_kid, w->cluster_answer, w->static_public};

        w->static_kid = id.kid;
        w->cluster_answer = id.answer;
        w->static_public = id.public;
        id = old;
    }
    identity_release(&id);
    fclose(f);
    return r;
}

/* Is the certificate's key the one that the token holds? */
static bool
static_matches(struct worker *w)
{
    const struct hsm_info *info = hsm_get_info(w->hsm);
    json_t *jwk =
        jwk_from_rsa(info->static_n, info->static_n_len, info->static_e, info->static_e_len);
    unsigned char thumb[JWK_THUMBPRINT_LEN];
    char text[B64URL_LEN(JWK_THUMBPRINT_LEN) + 1] = {0};
    bool same = false;

    if (jwk != NULL && jwk_thumbprint(thumb, jwk) == KMS_OK) {
        b64url_encode(text, thumb, sizeof(thumb));
        same = strcmp(strrchr(w->static_kid, '/') + 1, text) == 0;
    }
    json_decref(jwk);
    return same;
}

/* --- readiness --- */

static void
hsm_changed(void *ctx, bool ready)
{
    struct worker *w = ctx;

    if (ready && !static_matches(w)) {
        log_error(
            "the static certificate is not of the key in this token; issue one for the public key"
            " that kmsctl hsm status shows, and reload",
            "kid", w->static_kid, NULL);
        ready = false;
    }
    atomic_store(&w->own->hsm_ready, ready);
    if (ready)
        refusals_prepare(w->refusals);
    log_info(ready ? "hsm ready" : "hsm away", NULL);
}

static void
db_changed(void *ctx, bool ready)
{
    struct worker *w = ctx;

    atomic_store(&w->own->db_ready, ready);
    log_info(ready ? "database ready" : "database away", NULL);
}

static void
db_room(void *ctx)
{
    struct worker *w = ctx;

    state_flush(w->state);
}

/* Once a second: what has no event of its own. */
static void
second(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;

    static unsigned seconds;

    if (++seconds % CRL_SECONDS == 0)
        services_refresh(w->services);
    atomic_store(&w->own->keys_ready, tokens_ready(w->tokens));
    count_set(CT_SECURE_HEAP_USED, CRYPTO_secure_used());
}

/* --- signals --- */

static void
limits_of(struct web_limits *l, const struct config *c)
{
    l->connections = c->connections;
    l->connections_source = c->connections_source;
    l->handshakes = c->handshakes;
    l->handshake_timeout = c->handshake_timeout;
    l->head_timeout = c->head_timeout;
    l->body_timeout = c->body_timeout;
    l->answer_timeout = c->answer_timeout;
    l->idle_timeout = c->idle_timeout;
    l->body_max = BODY_MAX;
}

/* The parent has checked the file; it is read again here and taken as a whole or not at all. */
static void
reload(evutil_socket_t sig, short what, void *arg)
{
    struct worker *w = arg;
    struct config *next = NULL, *old = w->cfg;
    struct web_limits limits;
    struct services *services = NULL;
    SSL_CTX *tls = NULL;
    const char *why = NULL;
    bool ok = false;

    if (config_read(&next, w->config_path, stderr) != KMS_OK ||
        strcmp(next->domain, old->domain) != 0)
        why = "see kmsd --check-config; the domain cannot change";
    else if (web_tls_new(&tls, next, &why) != KMS_OK)
        ; /* why is told */
    else if (services_new(&services, next, &why) != KMS_OK)
        ; /* likewise */
    else if (static_load(w, next->static_certificate) != KMS_OK)
        why = "the static certificate could not be read";
    else
        ok = true;
    if (!ok) {
        log_error("reload refused; the old configuration stays", "why", why, NULL);
        SSL_CTX_free(tls);
        services_free(services);
        config_free(next);
        return;
    }
    services_free(w->services);
    w->services = services;
    refusals_renew(w->refusals); /* what was signed names the old kid */
    limits_of(&limits, next);
    web_reload(w->web, tls, &limits);
    SSL_CTX_free(tls);
    w->cfg = next;
    tokens_reload(w->tokens, next);
    rate_set(w->by_source, next->rate_source);
    rate_set(w->by_subject, next->rate_subject);
    rate_set(w->by_open, next->rate_open);
    config_free(old);
    if (hsm_ready(w->hsm))
        hsm_changed(w, true);
    log_info("reloaded", NULL);
}

static void
drain_tick(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;

    if (web_open(w->web) == 0 && req_count(w) == 0) {
        event_base_loopbreak(w->base);
    } else if (now_us() > drain_deadline) {
        log_warn("drain ends by its deadline", "connections%u",
                 (unsigned long long)web_open(w->web), "requests%u",
                 (unsigned long long)req_count(w), NULL);
        event_base_loopbreak(w->base);
    }
}

/* SIGTERM: finish what is under way, then leave. */
static void
terminate(evutil_socket_t sig, short what, void *arg)
{
    static const struct timeval tick = {0, DRAIN_TICK * 1000};
    struct worker *w = arg;

    if (drain_deadline != 0)
        return;
    atomic_store(&w->own->state, WS_DRAINING);
    drain_deadline = now_us() + w->cfg->drain * 1000000;
    web_drain(w->web);
    event_add(drain_timer, &tick);
    drain_tick(-1, 0, w);
}

/* SIGUSR1: no new connections, until we are told to leave. */
static void
stop_accepting(evutil_socket_t sig, short what, void *arg)
{
    struct worker *w = arg;

    atomic_store(&w->own->state, WS_DRAINING);
    web_drain(w->web);
}

static int
on_signal(struct worker *w, int sig, event_callback_fn fn)
{
    struct event *e = evsignal_new(w->base, sig, fn, w);

    return e != NULL && event_add(e, NULL) == 0 ? KMS_OK : KMS_ERR_NOMEM;
}

static void
event_log(int severity, const char *msg)
{
    if (severity >= EVENT_LOG_WARN)
        log_warn("libevent", "text", msg, NULL);
}

/* --- the process --- */

static int
worker_open(struct worker *w, int listen_fd)
{
    struct web_limits limits;
    struct event_config *ec = event_config_new();
    SSL_CTX *tls = NULL;
    const char *why = NULL;
    struct buf cluster = BUF_INIT;
    static const struct timeval a_second = {1, 0};
    struct event *tick;
    int r;

    if (ec == NULL)
        return KMS_ERR_NOMEM;
    w->base = event_base_new_with_config(ec);
    event_config_free(ec);
    if (w->base == NULL || event_base_priority_init(w->base, PRIO_N) != 0 ||
        buf_putf(&cluster, "kms://%s", w->cfg->domain) != KMS_OK ||
        (w->cluster = strdup(buf_str(&cluster))) == NULL)
        return KMS_ERR_NOMEM;
    buf_release(&cluster);
    if ((r = static_load(w, w->cfg->static_certificate)) != KMS_OK) {
        log_error("the static certificate could not be read", "file", w->cfg->static_certificate,
                  "why", kms_strerror(r), NULL);
        return r;
    }
    if ((r = web_tls_new(&tls, w->cfg, &why)) != KMS_OK) {
        log_error("TLS could not be set up", "why", why, NULL);
        return r;
    }
    limits_of(&limits, w->cfg);
    if ((r = services_new(&w->services, w->cfg, &why)) != KMS_OK) {
        log_error("the certificates of services cannot be judged", "why", why, NULL);
        return r;
    }
    if ((w->state = state_new(w)) == NULL || (w->posts = posts_new(w)) == NULL ||
        (w->channels = channels_new(w, (size_t)w->cfg->channel_cache)) == NULL ||
        (w->orgs = orgs_new(w)) == NULL || (w->refusals = refusals_new(w)) == NULL ||
        (w->by_source = rate_new(w->cfg->rate_source, RATE_NAMES)) == NULL ||
        (w->by_subject = rate_new(w->cfg->rate_subject, RATE_NAMES)) == NULL ||
        (w->by_service = rate_new(0, RATE_NAMES)) == NULL ||
        (w->by_open = rate_new(w->cfg->rate_open, 1)) == NULL ||
        (w->tokens = tokens_new(w->base, w->cfg)) == NULL ||
        (w->hsm = hsm_new(w->base, w->cfg->hsm_socket, HSM_USE,
                          (int)w->cfg->hsm_deadline * 1000)) == NULL ||
        (w->db = db_new(w->base, w->cfg->worker_url, (int)w->cfg->db_connections, state_statements,
                        SC_STATEMENTS, (int)w->cfg->db_deadline * 1000,
                        w->cfg->db_require_durable)) == NULL ||
        (w->web = web_new(w->base, listen_fd, tls, &limits, post_handle, w)) == NULL ||
        (drain_timer = event_new(w->base, -1, EV_PERSIST, drain_tick, w)) == NULL ||
        (tick = event_new(w->base, -1, EV_PERSIST, second, w)) == NULL ||
        event_add(tick, &a_second) != 0 || on_signal(w, SIGTERM, terminate) != KMS_OK ||
        on_signal(w, SIGHUP, reload) != KMS_OK || on_signal(w, SIGUSR1, stop_accepting) != KMS_OK)
        return KMS_ERR_NOMEM;
    SSL_CTX_free(tls);
    hsm_on_change(w->hsm, hsm_changed, w);
    db_on_change(w->db, db_changed, w);
    db_on_room(w->db, db_room, w);
    second(-1, 0, w);
    return KMS_OK;
}

int
worker_main(struct config *cfg, struct shared *sh, unsigned number, int listen_fd,
            const char *config_path)
{
    struct worker *w = calloc(1, sizeof(*w));
    size_t heap = HEAP_BASE; /* a power of two, as OpenSSL wants it */
    bool cut;
    int r;

    if (w == NULL)
        return 1;
    w->cfg = cfg;
    w->config_path = config_path;
    w->shared = sh;
    w->own = &sh->worker[number];
    shared_own(w->own);
    event_set_log_callback(event_log);
    kms_json_init();
    while (heap < HEAP_BASE + HEAP_CHANNEL * (size_t)cfg->channel_cache)
        heap *= 2;
    if ((r = secret_heap_init(heap)) == KMS_ERR_LIMIT)
        log_warn(
            "memory for keys cannot be locked: raise RLIMIT_MEMLOCK (LimitMEMLOCK=) so that keys"
            " cannot reach swap",
            NULL);
    else if (r != KMS_OK) {
        log_error("no memory for keys", "why", kms_strerror(r), NULL);
        return 1;
    }
    if (worker_open(w, listen_fd) != KMS_OK)
        return 1;
    if ((r = harden_worker()) != KMS_OK)
        log_warn("the worker could not be confined", "why", kms_strerror(r), NULL);
    atomic_store(&w->own->state, WS_SERVING);
    log_info("serving", "listen", cfg->listen, NULL);
    if (atomic_load(&sh->draining))
        stop_accepting(SIGUSR1, 0, w); /* started again after somebody asked for it */
    signals_take();
    event_base_dispatch(w->base);

    cut = req_count(w) > 0;
    atomic_store(&w->own->state, WS_GONE);
    /* Requests that are cut off end as their calls do, and their answers need the connections. */
    db_free(w->db);
    hsm_free(w->hsm);
    tokens_free(w->tokens);
    web_free(w->web);
    channels_free(w->channels);
    state_free(w->state);
    services_free(w->services);
    log_info("ended", NULL);
    return cut ? 3 : 0;
}
