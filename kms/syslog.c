/*
 * syslog.c - a TLS connection to the collector, and one batch after the other.
 *
 *   push -> connect ... waits -> log_stream_next ... waits -> written ... waits -> log_stream_done
 * -> again, until nothing is left
 *
 * A step that fails closes the connection; the tick tries again, later each time.  Connections are
 * opened and freed by the tick only, never inside a bufferevent's callback.
 */
#include "kms/syslog.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/sockios.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "hsm/log.h"
#include "kms/audit.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"

#define TICK_MS     200
#define STEP_MS     15000 /* for a handshake, or for the collector to take a batch */
#define BACKOFF_MIN 1000
#define BACKOFF_MAX 60000
#define BATCH       256   /* entries */
#define NOTES_MAX   65536 /* bytes of checkpoints that wait */
#define PRI_DONE    110   /* facility 13 (log audit), severity 6 */
#define PRI_REFUSED 108   /* severity 4 */
#define PRI_ALARM   105   /* severity 1 */

enum state { IDLE, CONNECTING, READY, ASKING, SENDING, MARKING };

struct syslog {
    struct keeper *k;
    struct event *tick;
    SSL_CTX *tls;
    struct bufferevent *bev; /* owned; NULL: not connected */
    enum state state;
    bool broken;  /* the connection is to be closed by the tick */
    bool pending; /* there may be more to send */
    bool stopped, said;
    int64_t deadline, again; /* ms; of the step, and when to connect next */
    int backoff;
    int64_t xact, entry; /* the last of the batch */
    unsigned batch;
    struct buf notes; /* messages that wait */
    uint64_t sent, failures;
};

/* --- messages --- */

/* What a name may be in a header: RFC 5424 section 6. */
static void
put_name(struct buf *out, const char *s, size_t max)
{
    size_t n = 0;

    for (; *s != '\0' && n < max; s++, n++)
        buf_putc(out, *s > ' ' && *s < 127 ? *s : '_');
    if (n == 0)
        buf_putc(out, '-');
}

/* Appends one message with its length before it, as RFC 5425 section 4.3 frames it. */
static int
put_message(struct syslog *s, struct buf *out, int pri, int64_t at_us, const char *id,
            const char *text, size_t len)
{
    struct buf m = BUF_INIT;
    time_t seconds = (time_t)(at_us / 1000000);
    struct tm tm;
    char when[32];
    int r;

    gmtime_r(&seconds, &tm);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
    r = buf_putf(&m, "<%d>1 %s.%06dZ ", pri, when, (int)(at_us % 1000000));
    if (r == KMS_OK) {
        put_name(&m, s->k->cfg->node, 255);
        r = buf_puts(&m, " kmsd - ");
    }
    if (r == KMS_OK) {
        put_name(&m, id, 32);
        r = buf_puts(&m, " - ");
    }
    if (r == KMS_OK)
        r = buf_put(&m, text, len);
    if (r == KMS_OK)
        r = buf_putf(out, "%zu ", m.len);
    if (r == KMS_OK)
        r = buf_put(out, m.data, m.len);
    buf_release(&m);
    return r;
}

void
syslog_checkpoint(struct syslog *s, const char *note)
{
    struct buf text = BUF_INIT;
    json_t *o;

    if (s == NULL || s->state == IDLE || s->state == CONNECTING || s->notes.len > NOTES_MAX)
        return;
    o = json_pack("{s:s}", "checkpoint", note);
    if (o != NULL && kms_json_put(&text, o) == KMS_OK)
        put_message(s, &s->notes, PRI_DONE, wall_ms() * 1000, "checkpoint", buf_str(&text),
                    text.len);
    json_decref(o);
    buf_release(&text);
    s->pending = true;
}

/* --- the connection --- */

static void
fail(struct syslog *s, const char *why)
{
    s->broken = true;
    s->failures++;
    if (!s->said)
        log_warn("the log does not reach its syslog collector; entries wait in the database",
                 "collector", s->k->cfg->audit_syslog, "why", why, NULL);
    s->said = true;
}

static void
on_event(struct bufferevent *bev, short what, void *arg)
{
    struct syslog *s = arg;
    unsigned long e = bufferevent_get_openssl_error(bev);
    long verified;

    if ((what & BEV_EVENT_CONNECTED) != 0) {
        s->state = READY;
        s->said = false;
        s->backoff = BACKOFF_MIN;
        log_info("syslog collector connected", "collector", s->k->cfg->audit_syslog, NULL);
        return;
    }
    verified = SSL_get_verify_result(bufferevent_openssl_get_ssl(bev));
    fail(s, verified != X509_V_OK && s->state == CONNECTING
                ? X509_verify_cert_error_string(verified)
            : e != 0                      ? ERR_reason_error_string(e)
            : (what & BEV_EVENT_EOF) != 0 ? "it closed the connection"
                                          : evutil_socket_error_to_string(EVUTIL_SOCKET_ERROR()));
    ERR_clear_error();
}

/* A collector has nothing to say. */
static void
on_read(struct bufferevent *bev, void *arg)
{
    evbuffer_drain(bufferevent_get_input(bev), evbuffer_get_length(bufferevent_get_input(bev)));
}

static void
disconnect(struct syslog *s)
{
    if (s->bev != NULL)
        bufferevent_free(s->bev);
    s->bev = NULL;
    s->broken = false;
    buf_reset(&s->notes);
    /* What waits for the database finds another state when it comes back. */
    s->state = IDLE;
    s->again = now_ms() + s->backoff;
    s->backoff = s->backoff * 2 < BACKOFF_MAX ? s->backoff * 2 : BACKOFF_MAX;
}

static void
dial(struct syslog *s)
{
    const struct config *cfg = s->k->cfg;
    struct sockaddr_storage to;
    socklen_t len;
    SSL *ssl;

    if (config_address(cfg->audit_syslog, &to, &len) != KMS_OK || (ssl = SSL_new(s->tls)) == NULL) {
        fail(s, "no memory, or no address");
        return;
    }
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (SSL_set1_host(ssl, cfg->audit_syslog_name) != 1 ||
        SSL_set_tlsext_host_name(ssl, cfg->audit_syslog_name) != 1) {
        SSL_free(ssl);
        fail(s, "its name is no name");
        return;
    }
    s->bev = bufferevent_openssl_socket_new(s->k->base, -1, ssl, BUFFEREVENT_SSL_CONNECTING,
                                            BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
    if (s->bev == NULL) {
        SSL_free(ssl);
        fail(s, "out of memory");
        return;
    }
    s->state = CONNECTING;
    s->deadline = now_ms() + STEP_MS;
    bufferevent_setcb(s->bev, on_read, NULL, on_event, s);
    bufferevent_enable(s->bev, EV_READ | EV_WRITE);
    if (bufferevent_socket_connect(s->bev, (struct sockaddr *)&to, (int)len) != 0)
        fail(s, "cannot connect");
}

/* --- batches --- */

static void
batch_done(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct syslog *s = ctx;

    if (s->stopped || s->state != MARKING)
        return;
    if (err != KMS_OK) {
        fail(s, kms_strerror(err));
        return;
    }
    s->sent += s->batch;
    s->pending = s->pending || s->batch == BATCH;
    s->state = READY;
}

static void
batch_mark(struct syslog *s)
{
    struct db_params p;

    if (s->batch == 0) {
        s->state = READY;
        return;
    }
    s->state = MARKING;
    db_params_init(&p);
    db_int8(&p, s->xact);
    db_int8(&p, s->entry);
    if (db_call(audit_db(s->k->audit), AS_STREAM_DONE, &p, batch_done, s) != KMS_OK)
        fail(s, "out of memory");
}

static void
batch_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct syslog *s = ctx;
    struct buf out = BUF_INIT;
    int r = err;

    if (s->stopped || s->state != ASKING)
        return;
    s->batch = 0;
    for (int i = 0; r == KMS_OK && i < PQntuples(res); i++) {
        const char *action = db_get_text(res, i, 4), *leaf = db_get_text(res, i, 5), *alarm;
        size_t len;
        int64_t at;
        int32_t verdict;

        if (action == NULL || leaf == NULL || !db_get_int8(res, i, 0, &s->xact) ||
            !db_get_int8(res, i, 1, &s->entry) || !db_get_int8(res, i, 2, &at) ||
            !db_get_int4(res, i, 3, &verdict)) {
            r = KMS_ERR_PROTOCOL;
            break;
        }
        r = put_message(s, &out, verdict == 0 ? PRI_DONE : PRI_REFUSED, at, action, leaf,
                        strlen(leaf));
        if (r == KMS_OK && (alarm = db_get_json(res, i, 6, &len)) != NULL)
            r = put_message(s, &out, PRI_ALARM, at, "canary", alarm, len);
        s->batch++;
    }
    if (r == KMS_OK && s->notes.len > 0) {
        r = buf_put(&out, s->notes.data, s->notes.len);
        buf_reset(&s->notes);
    }
    if (r == KMS_OK && out.len > 0 && bufferevent_write(s->bev, out.data, out.len) != 0)
        r = KMS_ERR_NOMEM;
    if (r != KMS_OK) {
        fail(s, kms_strerror(r));
    } else {
        s->state = out.len > 0 ? SENDING : READY;
        s->deadline = now_ms() + STEP_MS;
    }
    buf_release(&out);
}

static void
batch_ask(struct syslog *s)
{
    struct db_params p;

    s->pending = false;
    s->state = ASKING;
    s->deadline = INT64_MAX; /* the database has deadlines of its own */
    db_params_init(&p);
    db_int4(&p, BATCH);
    if (db_call(audit_db(s->k->audit), AS_STREAM_NEXT, &p, batch_got, s) != KMS_OK)
        fail(s, "out of memory");
}

/* Has all that was written left for the network, and been taken there? */
static bool
is_taken(struct syslog *s)
{
    int left = 0, fd = bufferevent_getfd(s->bev);

    return evbuffer_get_length(bufferevent_get_output(s->bev)) == 0 && fd >= 0 &&
           ioctl(fd, SIOCOUTQ, &left) == 0 && left == 0;
}

static void
step(struct syslog *s)
{
    if (s->broken) {
        disconnect(s);
        return;
    }
    switch (s->state) {
    case IDLE:
        if (s->pending && now_ms() >= s->again)
            dial(s);
        break;
    case CONNECTING:
        if (now_ms() > s->deadline)
            fail(s, "no answer in time");
        break;
    case READY:
        if (s->pending)
            batch_ask(s);
        break;
    case SENDING:
        if (is_taken(s))
            batch_mark(s);
        else if (now_ms() > s->deadline)
            fail(s, "it does not take what is sent");
        break;
    case ASKING:
    case MARKING:
        break;
    }
}

static void
on_tick(evutil_socket_t fd, short what, void *arg)
{
    step(arg);
}

void
syslog_push(struct syslog *s)
{
    if (s == NULL)
        return;
    s->pending = true;
    if (s->state == READY)
        step(s);
}

json_t *
syslog_status(const struct syslog *s)
{
    if (s == NULL)
        return json_null();
    return json_pack("{s:b, s:I, s:I}", "connected", s->state > CONNECTING, "sent",
                     (json_int_t)s->sent, "failures", (json_int_t)s->failures);
}

struct syslog *
syslog_new(struct keeper *k)
{
    const struct config *cfg = k->cfg;
    struct timeval tv = {0, TICK_MS * 1000};
    struct syslog *s;

    if (cfg->audit_syslog[0] == '\0' || (s = calloc(1, sizeof(*s))) == NULL)
        return NULL;
    s->k = k;
    s->backoff = BACKOFF_MIN;
    s->tls = SSL_CTX_new(TLS_client_method());
    s->tick = event_new(k->base, -1, EV_PERSIST, on_tick, s);
    if (s->tls == NULL || s->tick == NULL ||
        SSL_CTX_set_min_proto_version(s->tls, TLS1_2_VERSION) != 1 ||
        (cfg->audit_syslog_ca[0] != '\0' ? SSL_CTX_load_verify_file(s->tls, cfg->audit_syslog_ca)
                                         : SSL_CTX_set_default_verify_paths(s->tls)) != 1 ||
        (cfg->audit_syslog_certificate[0] != '\0' &&
         (SSL_CTX_use_certificate_chain_file(s->tls, cfg->audit_syslog_certificate) != 1 ||
          SSL_CTX_use_PrivateKey_file(s->tls, cfg->audit_syslog_key, SSL_FILETYPE_PEM) != 1)) ||
        event_add(s->tick, &tv) != 0) {
        log_error("the log is not streamed: the collector's CA or our certificate cannot be read",
                  NULL);
        ERR_clear_error();
        syslog_free(s);
        return NULL;
    }
    SSL_CTX_set_verify(s->tls, SSL_VERIFY_PEER, NULL);
    return s;
}

void
syslog_free(struct syslog *s)
{
    if (s == NULL)
        return;
    s->stopped = true;
    if (s->tick != NULL)
        event_free(s->tick);
    if (s->bev != NULL)
        bufferevent_free(s->bev);
    SSL_CTX_free(s->tls);
    buf_release(&s->notes);
    free(s);
}
