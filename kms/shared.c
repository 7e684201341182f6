/* shared.c - the page of counters and flags that kmsd's processes share. */
#include "kms/shared.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

const unsigned shared_latency_ms[LATENCY_BUCKETS - 1] = {1,   2,   5,   10,   20,  50,
                                                         100, 200, 500, 1000, 5000};

static const struct {
    const char *name;
    const char *help;
    int gauge;
} counters[CT_N] = {
    [CT_CONNECTIONS_OPEN] = {"connections_open", "Client connections that are open.", 1},
    [CT_CONNECTIONS_TOTAL] = {"connections_total", "Client connections accepted.", 0},
    [CT_CONNECTIONS_REFUSED] = {"connections_refused_total", "Connections refused by a limit.", 0},
    [CT_HANDSHAKES_FAILED] = {"handshakes_failed_total", "TLS handshakes that failed.", 0},
    [CT_HTTP_REQUESTS] = {"http_requests_total", "HTTP requests that arrived whole.", 0},
    [CT_HTTP_REFUSED] = {"http_refused_total", "HTTP requests answered with 4xx.", 0},
    [CT_HTTP_OVERLOADED] = {"http_overloaded_total", "HTTP requests answered with 503.", 0},
    [CT_MESSAGES] = {"messages_total", "KMS messages received.", 0},
    [CT_MESSAGES_INFLIGHT] = {"messages_inflight", "KMS messages under way.", 1},
    [CT_ANSWERED_2XX] = {"answered_2xx_total", "KMS messages answered with success.", 0},
    [CT_ANSWERED_4XX] = {"answered_4xx_total", "KMS messages refused.", 0},
    [CT_ANSWERED_5XX] = {"answered_5xx_total", "KMS messages that failed here.", 0},
    [CT_RESETS] = {"resets_total", "Messages on unknown or expired channels (499).", 0},
    [CT_UNREADABLE] = {"unreadable_total", "Messages that no key opens.", 0},
    [CT_RATE_LIMITED] = {"rate_limited_total", "Messages refused by a rate limit.", 0},
    [CT_KEYS_CREATED] = {"keys_created_total", "Content keys created.", 0},
    [CT_KEYS_RELEASED] = {"keys_released_total", "Content keys released.", 0},
    [CT_SERVICE_KEYS_RELEASED] = {"service_keys_released_total",
                                  "Content keys released to services.", 0},
    [CT_SERVICE_REFUSED_PROOF] = {"service_refused_proof_total",
                                  "Services refused: certificate or proof (401001).", 0},
    [CT_SERVICE_REFUSED_PURPOSE] = {"service_refused_purpose_total",
                                    "Services refused: purpose, kind, organisation (403005).", 0},
    [CT_SERVICE_REFUSED_UNKNOWN] = {"service_refused_unknown_total",
                                    "Services refused: not registered (403006).", 0},
    [CT_SERVICE_REFUSED_MATTER] = {"service_refused_matter_total",
                                   "Services refused: no matter covers it (403007).", 0},
    [CT_SERVICE_REFUSED_RATE] = {"service_refused_rate_total",
                                 "Services refused: rate or breadth (429001).", 0},
    [CT_SERVICE_REFUSED_OTHER] = {"service_refused_other_total",
                                  "Services refused for anything else.", 0},
    [CT_CHANNELS_CREATED] = {"channels_created_total", "Channels created.", 0},
    [CT_CHANNELS_CACHED] = {"channels_cached", "Channels held in memory.", 1},
    [CT_TOKENS_VERIFIED] = {"tokens_verified_total", "Access tokens verified anew.", 0},
    [CT_TOKENS_REFUSED] = {"tokens_refused_total", "Access tokens refused.", 0},
    [CT_TOKEN_CACHE_HITS] = {"token_cache_hits_total", "Access tokens known from before.", 0},
    [CT_KEY_SET_FETCHES] = {"key_set_fetches_total", "Fetches of the token key set.", 0},
    [CT_KEY_SET_FAILURES] = {"key_set_failures_total", "Fetches of the key set that failed.", 0},
    [CT_DB_CALLS] = {"database_calls_total", "Calls sent to the database.", 0},
    [CT_DB_ITEMS] = {"database_items_total", "Requests carried by those calls.", 0},
    [CT_DB_RETRIES] = {"database_retries_total", "Calls sent again.", 0},
    [CT_DB_FAILURES] = {"database_failures_total", "Calls that failed.", 0},
    [CT_HSM_ITEMS] = {"hsm_items_total", "Items asked of the HSM.", 0},
    [CT_HSM_FAILURES] = {"hsm_failures_total", "Items that the HSM did not do.", 0},
    [CT_SECURE_HEAP_USED] = {"secure_heap_used_bytes", "Locked memory in use for keys.", 1},
};

/* This process's own slot; until shared_own is called everything is counted into the void. */
static struct shared_worker nobody;
static struct shared_worker *own = &nobody;

struct shared *
shared_new(unsigned workers)
{
    struct shared *s =
        mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (s == MAP_FAILED)
        return NULL;
    s->workers = workers;
    s->started = (long long)time(NULL);
    return s;
}

void
signals_take(void)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

void
shared_own(struct shared_worker *w)
{
    own = w;
}

void
count_add(enum counter c, uint64_t n)
{
    atomic_fetch_add_explicit(&own->counters[c], n, memory_order_relaxed);
}

void
count_sub(enum counter c, uint64_t n)
{
    atomic_fetch_sub_explicit(&own->counters[c], n, memory_order_relaxed);
}

void
count_set(enum counter c, uint64_t n)
{
    atomic_store_explicit(&own->counters[c], n, memory_order_relaxed);
}

void
count_latency(uint64_t us)
{
    unsigned i = 0;

    while (i < LATENCY_BUCKETS - 1 && us > (uint64_t)shared_latency_ms[i] * 1000)
        i++;
    atomic_fetch_add_explicit(&own->latency[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&own->latency_sum_us, us, memory_order_relaxed);
}

const char *
counter_name(enum counter c)
{
    return counters[c].name;
}

const char *
counter_help(enum counter c)
{
    return counters[c].help;
}

int
counter_is_gauge(enum counter c)
{
    return counters[c].gauge;
}
