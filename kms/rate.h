/*
 * rate.h - token buckets: how often a name (an address, a subject) may do something.
 *
 * A fixed table keyed by a secret hash, four names to a set, the least recently used one makes
 * room: bounded memory whatever strangers send.  Time is the caller's (microseconds, monotonic).
 */
#ifndef KMS_RATE_H
#define KMS_RATE_H

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

#endif
