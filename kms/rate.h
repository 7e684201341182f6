/*
 * rate.h - token buckets: how often a name (an address, a subject) may do something.
 *
 * A fixed table keyed by a secret hash, four names to a set, the least recently used one makes
 * room: bounded memory whatever strangers send.  Time is the caller's (microseconds, monotonic).
 */
#ifndef KMS_RATE_H
#define KMS_RATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rate;

/* per_second names' worth a second, bursts of two seconds' worth; 0: no limit (every call says
 * true).  NULL: no memory. */
struct rate *rate_new(long long per_second, size_t names);
void rate_free(struct rate *r);
void rate_set(struct rate *r, long long per_second);
/* True: allowed, and n are taken. */
bool rate_take(struct rate *r, const char *name, unsigned n, int64_t now_us);
/* The same for names that have each their own: per_second instead of the table's. */
bool rate_take_of(struct rate *r, const char *name, long long per_second, unsigned n,
                  int64_t now_us);

/*
 * The same for names that are few and trusted (registered services), exact over all processes that
 * share the memory it lies in, without a lock: what counts is one number a name, when the next of
 * an even stream is due, and it moves by compare-and-swap (GCRA, ITU-T I.371).  Bursts of one
 * second's worth.  A name keeps its slot for ever.
 */
#define RATE_SLOTS 1024

struct rate_slot {
    _Atomic(uint64_t) key; /* hash of the name; 0: free */
    _Atomic(int64_t) due;  /* nanoseconds, monotonic */
};

struct rate_shared {
    uint64_t k0, k1; /* of the hash */
    struct rate_slot slot[RATE_SLOTS];
};

enum rate_verdict { RATE_YES, RATE_NO, RATE_NO_SLOT /* all are taken by other names */ };

/* Of zeroed memory, before it is shared.  False: no randomness. */
bool rate_shared_init(struct rate_shared *r);
/* One of per_second, from 1 to 1,000,000; 0: no limit. */
enum rate_verdict rate_shared_take(struct rate_shared *r, const char *name, long long per_second,
                                   int64_t now_us);

#endif
