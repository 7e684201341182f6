/*
 * shared.h - the page of memory that kmsd's processes share: what they count, what the parent tells
 * them, and how much each service has asked of this node.
 *
 * Made by the parent before it forks.  Each worker writes only its own slot; the keeper reads all
 * of them for status and metrics. Counters are relaxed atomics: nobody decides anything by them.
 * The rates of services are one table for all workers.
 */
#ifndef KMS_SHARED_H
#define KMS_SHARED_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "kms/rate.h"

#define WORKERS_MAX 64

enum counter {
    CT_CONNECTIONS_OPEN, /* gauge */
    CT_CONNECTIONS_TOTAL,
    CT_CONNECTIONS_REFUSED, /* by a limit */
    CT_HANDSHAKES_FAILED,
    CT_HTTP_REQUESTS,
    CT_HTTP_REFUSED,    /* answered 4xx */
    CT_HTTP_OVERLOADED, /* answered 503 */
    CT_MESSAGES,
    CT_MESSAGES_INFLIGHT, /* gauge */
    CT_ANSWERED_2XX,
    CT_ANSWERED_4XX,
    CT_ANSWERED_5XX,
    CT_RESETS,     /* 499 */
    CT_UNREADABLE, /* signed 400 */
    CT_RATE_LIMITED,
    CT_KEYS_CREATED,
    CT_KEYS_RELEASED,
    CT_SERVICE_KEYS_RELEASED,   /* of these, to services */
    CT_SERVICE_REFUSED_PROOF,   /* services' requests: 401001 */
    CT_SERVICE_REFUSED_PURPOSE, /* 403005 */
    CT_SERVICE_REFUSED_UNKNOWN, /* 403006 */
    CT_SERVICE_REFUSED_MATTER,  /* 403007 */
    CT_SERVICE_REFUSED_RATE,    /* 429001: rate or breadth */
    CT_SERVICE_REFUSED_OTHER,
    CT_CHANNELS_CREATED,
    CT_CHANNELS_CACHED, /* gauge */
    CT_TOKENS_VERIFIED,
    CT_TOKENS_REFUSED,
    CT_TOKEN_CACHE_HITS,
    CT_KEY_SET_FETCHES,
    CT_KEY_SET_FAILURES,
    CT_DB_CALLS,
    CT_DB_ITEMS,
    CT_DB_RETRIES,
    CT_DB_FAILURES,
    CT_HSM_ITEMS,
    CT_HSM_FAILURES,
    CT_SECURE_HEAP_USED, /* gauge, bytes */
    CT_N
};

/* Upper bounds of the time of a message, in milliseconds; the last bucket is open. */
#define LATENCY_BUCKETS 12
extern const unsigned shared_latency_ms[LATENCY_BUCKETS - 1];

enum worker_state { WS_STARTING, WS_SERVING, WS_DRAINING, WS_GONE };

struct shared_worker {
    _Atomic(pid_t) pid;
    _Atomic(int) state;
    _Atomic(int) db_ready;
    _Atomic(int) hsm_ready;
    _Atomic(int) keys_ready;    /* a key set to verify tokens with */
    _Atomic(long long) started; /* seconds since 1970 */
    _Atomic(uint64_t) counters[CT_N];
    _Atomic(uint64_t) latency[LATENCY_BUCKETS];
    _Atomic(uint64_t) latency_sum_us;
};

struct shared {
    volatile int log_level; /* enum log_level, for all */
    _Atomic(int) draining;
    _Atomic(int) reload_failed;  /* the last reload was refused */
    _Atomic(long long) reloaded; /* seconds since 1970 */
    _Atomic(int) root_wrong; /* the keeper found that the token does not hold the database's root:
                                not ready */
    _Atomic(unsigned) main_key_jobs; /* a worker wrote one down: the keeper is to look */
    _Atomic(unsigned) restarts;      /* processes that died and were started again */
    pid_t parent;
    unsigned workers;
    long long started;
    struct shared_worker worker[WORKERS_MAX];
    struct rate_shared by_service;
};

/* Maps the page; NULL: errno says why. */
struct shared *shared_new(unsigned workers);

/* A child's handlers are in place: the parent's signals, blocked since the fork, may come. */
void signals_take(void);

/* Of this process's own slot; set once after fork.  Calls before that count nothing. */
void shared_own(struct shared_worker *w);
void count_add(enum counter c, uint64_t n);
void count_sub(enum counter c, uint64_t n);
void count_set(enum counter c, uint64_t n);
void count_latency(uint64_t us);
/* "connections_open", ...: as metrics and status name it; and its help text. */
const char *counter_name(enum counter c);
const char *counter_help(enum counter c);
int counter_is_gauge(enum counter c);

#endif
