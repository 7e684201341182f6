/*
 * metrics.c - the pages of the metrics address, made from the shared page and the keeper's own
 * figures.
 *
 * /metrics is the Prometheus text format, version 0.0.4: for each family HELP, TYPE, then its
 * samples together.
 */
#include "kms/metrics.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "kms/audit.h"
#include "kms/canary.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "kms/shared.h"
#include "kms/web.h"
#include "proto/buf.h"

#define TEXT_PLAIN "text/plain; charset=utf-8"
#define TEXT_PROM  "text/plain; version=0.0.4; charset=utf-8"

struct metrics {
    struct keeper *k;
    struct web *web;
};

/* --- /livez, /readyz --- */

static void
put_reason(void *ctx, const char *text)
{
    buf_putf(ctx, "%s\n", text);
}

static int
page_ready(struct keeper *k, struct buf *out)
{
    if (!keeper_ready(k, put_reason, out))
        return 503;
    buf_puts(out, "ready\n");
    return 200;
}

/* --- /metrics --- */

static void
family(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_putf(out, "# HELP kms_%s %s\n# TYPE kms_%s %s\n", name, help, name, type);
}

static void
single(struct buf *out, const char *name, const char *type, const char *help, double value)
{
    family(out, name, type, help);
    buf_putf(out, "kms_%s %.17g\n", name, value);
}

static uint64_t
load(_Atomic(uint64_t) *p)
{
    return atomic_load_explicit(p, memory_order_relaxed);
}

static void
put_counters(struct buf *out, struct shared *sh)
{
    for (int i = 0; i < CT_N; i++) {
        enum counter c = (enum counter)i;

        family(out, counter_name(c), counter_is_gauge(c) ? "gauge" : "counter", counter_help(c));
        for (unsigned w = 0; w < sh->workers; w++)
            buf_putf(out, "kms_%s{worker=\"%u\"} %" PRIu64 "\n", counter_name(c), w,
                     load(&sh->worker[w].counters[i]));
    }
}

static void
put_latency(struct buf *out, struct shared *sh)
{
    static const char name[] = "message_seconds";

    family(out, name, "histogram", "Time from a message's arrival to its answer.");
    for (unsigned w = 0; w < sh->workers; w++) {
        struct shared_worker *s = &sh->worker[w];
        uint64_t sum = 0;

        for (int b = 0; b < LATENCY_BUCKETS; b++) {
            sum += load(&s->latency[b]);
            if (b < LATENCY_BUCKETS - 1)
                buf_putf(out, "kms_%s_bucket{worker=\"%u\",le=\"%g\"} %" PRIu64 "\n", name, w,
                         shared_latency_ms[b] / 1000.0, sum);
            else
                buf_putf(out, "kms_%s_bucket{worker=\"%u\",le=\"+Inf\"} %" PRIu64 "\n", name, w,
                         sum);
        }
        buf_putf(out, "kms_%s_sum{worker=\"%u\"} %.6f\n", name, w,
                 (double)load(&s->latency_sum_us) / 1e6);
        buf_putf(out, "kms_%s_count{worker=\"%u\"} %" PRIu64 "\n", name, w, sum);
    }
}

static void
put_workers(struct buf *out, struct shared *sh)
{
    static const struct {
        const char *name;
        const char *help;
        size_t offset;
    } flags[] = {
        {"worker_database_ready", "1 while the worker has a database connection.",
         offsetof(struct shared_worker, db_ready)},
        {"worker_hsm_ready", "1 while the worker is greeted by hsmd and the token is usable.",
         offsetof(struct shared_worker, hsm_ready)},
        {"worker_key_set_ready", "1 while the worker can check tokens.",
         offsetof(struct shared_worker, keys_ready)},
    };

    family(out, "worker_up", "gauge", "1 while the worker serves.");
    for (unsigned w = 0; w < sh->workers; w++)
        buf_putf(out, "kms_worker_up{worker=\"%u\"} %d\n", w,
                 atomic_load(&sh->worker[w].state) == WS_SERVING);
    for (size_t f = 0; f < sizeof(flags) / sizeof(flags[0]); f++) {
        family(out, flags[f].name, "gauge", flags[f].help);
        for (unsigned w = 0; w < sh->workers; w++) {
            char *base = (char *)&sh->worker[w];

            buf_putf(out, "kms_%s{worker=\"%u\"} %d\n", flags[f].name, w,
                     atomic_load((_Atomic(int) *)(void *)(base + flags[f].offset)) != 0);
        }
    }
    family(out, "process_start_time_seconds", "gauge", "When the process started, since 1970.");
    buf_putf(out, "kms_process_start_time_seconds{process=\"parent\"} %lld\n", sh->started);
    for (unsigned w = 0; w < sh->workers; w++)
        buf_putf(out, "kms_process_start_time_seconds{process=\"worker %u\"} %lld\n", w,
                 (long long)atomic_load(&sh->worker[w].started));
    family(out, "process_resident_memory_bytes", "gauge", "Resident memory of the process.");
    buf_putf(out, "kms_process_resident_memory_bytes{process=\"parent\"} %lld\n",
             process_rss((long)sh->parent));
    buf_putf(out, "kms_process_resident_memory_bytes{process=\"keeper\"} %lld\n",
             process_rss((long)getpid()));
    for (unsigned w = 0; w < sh->workers; w++)
        buf_putf(out, "kms_process_resident_memory_bytes{process=\"worker %u\"} %lld\n", w,
                 process_rss((long)atomic_load(&sh->worker[w].pid)));
}

static void
put_keeper(struct buf *out, struct keeper *k)
{
    const struct sweeper *s = &k->sweeper;
    uint64_t canaries;

    single(out, "ready", "gauge", "1 while this node is fit to serve (/readyz says why not).",
           keeper_ready(k, NULL, NULL));
    single(out, "draining", "gauge", "1 while no new connections are taken.",
           atomic_load(&k->sh->draining));
    single(out, "process_restarts_total", "counter", "Processes that died and were started again.",
           atomic_load(&k->sh->restarts));
    single(out, "reload_failed", "gauge", "1 when the last reload was refused.",
           atomic_load(&k->sh->reload_failed));
    single(out, "reload_time_seconds", "gauge", "When the configuration was last reloaded.",
           (double)atomic_load(&k->sh->reloaded));
    single(out, "keeper_database_ready", "gauge", "1 while the keeper has a database connection.",
           db_ready(k->db));
    single(out, "keeper_hsm_ready", "gauge", "1 while the keeper reaches a usable token.",
           hsm_ready(k->hsm));
    single(out, "root_proven", "gauge",
           "1 when the token was shown to hold the root key of the database.",
           k->root == ROOT_PROVEN);
    single(out, "sweeps_total", "counter", "Rounds of the sweeper.", (double)s->runs);
    single(out, "sweep_failures_total", "counter", "Rounds of the sweeper that failed.",
           (double)s->failures);
    single(out, "sweep_time_seconds", "gauge", "When the sweeper last ran.", (double)s->last);
    single(out, "sweep_seconds", "gauge", "How long its last round took.",
           (double)s->last_ms / 1000);
    family(out, "swept_total", "counter", "What the sweeper removed because its time was over.");
    buf_putf(out, "kms_swept_total{what=\"channels\"} %" PRIu64 "\n", s->channels);
    buf_putf(out, "kms_swept_total{what=\"unbound_keys\"} %" PRIu64 "\n", s->unbound_keys);
    buf_putf(out, "kms_swept_total{what=\"resources\"} %" PRIu64 "\n", s->resources);
    buf_putf(out, "kms_swept_total{what=\"keys\"} %" PRIu64 "\n", s->keys);
    single(out, "wrapping_keys_replaced_total", "counter",
           "Wrapping keys made because one was due.", (double)k->rotations);
    if (canary_total(audit_canary(k->audit), &canaries))
        single(out, "canary_retrievals_total", "counter",
               "Releases of keys of canaries, ever; shown by the keeper that sequences the log.",
               (double)canaries);
    single(out, "wrapping_key_failures_total", "counter", "Wrapping keys that could not be made.",
           (double)k->rotation_failures);
}

/* Each number that kms.stats() has; times become seconds, as everywhere. */
static void
put_stats(struct buf *out, const json_t *stats)
{
    const char *name;
    json_t *v;

    if (stats == NULL)
        return;
    json_object_foreach((json_t *)(uintptr_t)stats, name, v)
    {
        bool is_time = strcmp(name, "oldest_wrapping_key") == 0;
        char full[96];

        if (!json_is_number(v))
            continue;
        snprintf(full, sizeof(full), "database_%.64s%s", name, is_time ? "_time_seconds" : "");
        single(out, full, "gauge", "Figure of the database, by kms.stats().",
               json_number_value(v) / (is_time ? 1000 : 1));
    }
}

static int
page_metrics(struct keeper *k, struct buf *out)
{
    family(out, "build_info", "gauge", "Always 1; the version is in the label.");
    buf_putf(out, "kms_build_info{version=\"%s\"} 1\n", PACKAGE_VERSION);
    put_keeper(out, k);
    put_workers(out, k->sh);
    put_counters(out, k->sh);
    put_latency(out, k->sh);
    put_stats(out, k->stats);
    return 200;
}

/* --- requests --- */

static void
on_request(void *ctx, uint64_t conn, const struct http_request *http, const char *body,
           size_t body_len, const char *peer, STACK_OF(X509) * chain)
{
    struct metrics *m = ctx;
    struct buf out = BUF_INIT;
    const char *type = TEXT_PLAIN;
    int status;

    if (!http_is(http->method, "GET")) {
        status = 405;
        buf_puts(&out, "only GET\n");
    } else if (http_is(http->path, "/livez")) {
        status = 200; /* that we answer is the answer */
        buf_puts(&out, "alive\n");
    } else if (http_is(http->path, "/readyz")) {
        status = page_ready(m->k, &out);
    } else if (http_is(http->path, "/metrics")) {
        type = TEXT_PROM;
        status = page_metrics(m->k, &out);
    } else {
        status = 404;
        buf_puts(&out, "/livez, /readyz or /metrics\n");
    }
    web_answer(m->web, conn, status, type, &out, 0, false);
    buf_release(&out);
}

struct metrics *
metrics_new(struct keeper *k, int listen_fd)
{
    static const struct web_limits limits = {.connections = 64,
                                             .connections_source = 64,
                                             .handshakes = 64,
                                             .handshake_timeout = 5,
                                             .head_timeout = 5,
                                             .body_timeout = 5,
                                             .answer_timeout = 10,
                                             .idle_timeout = 60,
                                             .body_max = 0};
    struct metrics *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return NULL;
    m->k = k;
    if ((m->web = web_new(k->base, listen_fd, NULL, &limits, on_request, m)) == NULL) {
        free(m);
        return NULL;
    }
    return m;
}

void
metrics_free(struct metrics *m)
{
    if (m == NULL)
        return;
    web_free(m->web);
    free(m);
}
