/* rate.c - token buckets in a fixed table, one process's or all processes'. */
#include "kms/rate.h"

#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#define WAYS 4

struct bucket {
    uint64_t key; /* hash of the name; 0: free */
    int64_t used; /* when it was last touched, microseconds */
    int64_t left; /* millionths of a token */
};

struct rate {
    long long per_second;
    size_t sets;
    uint64_t k0, k1; /* of the hash: strangers cannot choose who shares a set */
    struct bucket *buckets;
};

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define ROUND(v0, v1, v2, v3)                                                                      \
    do {                                                                                           \
        v0 += v1;                                                                                  \
        v1 = ROTL(v1, 13) ^ v0;                                                                    \
        v0 = ROTL(v0, 32);                                                                         \
        v2 += v3;                                                                                  \
        v3 = ROTL(v3, 16) ^ v2;                                                                    \
        v0 += v3;                                                                                  \
        v3 = ROTL(v3, 21) ^ v0;                                                                    \
        v2 += v1;                                                                                  \
        v1 = ROTL(v1, 17) ^ v2;                                                                    \
        v2 = ROTL(v2, 32);                                                                         \
    } while (0)

/* SipHash-2-4 (Aumasson, Bernstein 2012). */
static uint64_t
siphash(uint64_t k0, uint64_t k1, const char *s)
{
    size_t len = strlen(s), i = 0;
    uint64_t v0 = k0 ^ 0x736f6d6570736575ULL, v1 = k1 ^ 0x646f72616e646f6dULL;
    uint64_t v2 = k0 ^ 0x6c7967656e657261ULL, v3 = k1 ^ 0x7465646279746573ULL;
    uint64_t m, last = (uint64_t)len << 56;
    int k;

    for (; i + 8 <= len; i += 8) {
        m = 0;
        for (k = 0; k < 8; k++)
            m |= (uint64_t)(unsigned char)s[i + (size_t)k] << (8 * k);
        v3 ^= m;
        ROUND(v0, v1, v2, v3);
        ROUND(v0, v1, v2, v3);
        v0 ^= m;
    }
    for (k = 0; i < len; i++, k++)
        last |= (uint64_t)(unsigned char)s[i] << (8 * k);
    v3 ^= last;
    ROUND(v0, v1, v2, v3);
    ROUND(v0, v1, v2, v3);
    v0 ^= last;
    v2 ^= 0xff;
    for (k = 0; k < 4; k++)
        ROUND(v0, v1, v2, v3);
    return v0 ^ v1 ^ v2 ^ v3;
}

struct rate *
rate_new(long long per_second, size_t names)
{
    struct rate *r = calloc(1, sizeof(*r));

    if (r == NULL)
        return NULL;
    r->per_second = per_second;
    r->sets = names / WAYS + 1;
    if ((r->buckets = calloc(r->sets * WAYS, sizeof(*r->buckets))) == NULL ||
        RAND_bytes((unsigned char *)&r->k0, sizeof(r->k0)) != 1 ||
        RAND_bytes((unsigned char *)&r->k1, sizeof(r->k1)) != 1) {
        rate_free(r);
        return NULL;
    }
    return r;
}

void
rate_free(struct rate *r)
{
    if (r == NULL)
        return;
    free(r->buckets);
    free(r);
}

void
rate_set(struct rate *r, long long per_second)
{
    r->per_second = per_second;
}

bool
rate_take(struct rate *r, const char *name, unsigned n, int64_t now)
{
    return rate_take_of(r, name, r->per_second, n, now);
}

bool
rate_take_of(struct rate *r, const char *name, long long per_second, unsigned n, int64_t now)
{
    struct bucket *set, *b = NULL;
    uint64_t key;
    int64_t full = (int64_t)per_second * 2 * 1000000, cost = (int64_t)n * 1000000;
    int i;

    if (per_second <= 0)
        return true;
    if ((key = siphash(r->k0, r->k1, name)) == 0)
        key = 1;
    set = &r->buckets[key % r->sets * WAYS];
    for (i = 0; i < WAYS && b == NULL; i++)
        if (set[i].key == key)
            b = &set[i];
    if (b == NULL) {
        b = &set[0];
        for (i = 1; i < WAYS; i++)
            if (set[i].used < b->used)
                b = &set[i];
        b->key = key;
        b->left = full;
        b->used = now;
    }
    /* Millionths of a token a microsecond: per_second of them.  Two seconds fill any bucket. */
    if (now - b->used >= 2000000)
        b->left = full;
    else
        b->left += (now - b->used) * per_second;
    if (b->left > full)
        b->left = full;
    b->used = now;
    /* A batch larger than a burst may pass when the bucket is full, and leaves a debt. */
    if (b->left < cost && b->left < full)
        return false;
    b->left -= cost;
    return true;
}

/* --- shared by processes --- */

bool
rate_shared_init(struct rate_shared *r)
{
    return RAND_bytes((unsigned char *)&r->k0, sizeof(r->k0)) == 1 &&
           RAND_bytes((unsigned char *)&r->k1, sizeof(r->k1)) == 1;
}

/* A slot that has a key never changes it, so the first free one behind the name's place is where it
 * is not yet, whoever takes it first. */
static struct rate_slot *
slot_of(struct rate_shared *r, uint64_t key)
{
    for (size_t i = 0; i < RATE_SLOTS; i++) {
        struct rate_slot *s = &r->slot[(key + i) % RATE_SLOTS];
        uint64_t has = atomic_load_explicit(&s->key, memory_order_relaxed);

        if (has == 0 && atomic_compare_exchange_strong(&s->key, &has, key))
            return s;
        if (has == key)
            return s;
    }
    return NULL;
}

enum rate_verdict
rate_shared_take(struct rate_shared *r, const char *name, long long per_second, int64_t now_us)
{
    const int64_t second = 1000000000, now = now_us * 1000;
    struct rate_slot *s;
    uint64_t key;
    int64_t every, due, from;

    if (per_second <= 0)
        return RATE_YES;
    if ((key = siphash(r->k0, r->k1, name)) == 0)
        key = 1;
    if ((s = slot_of(r, key)) == NULL)
        return RATE_NO_SLOT;
    every = (second + per_second - 1) / per_second; /* rounded up: never more than per_second */
    due = atomic_load_explicit(&s->due, memory_order_relaxed);
    do {
        from = due > now ? due : now;
        if (from - now > (per_second - 1) * every)
            return RATE_NO;
    } while (!atomic_compare_exchange_weak(&s->due, &due, from + every));
    return RATE_YES;
}
