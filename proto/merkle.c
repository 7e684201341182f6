/* merkle.c - Merkle trees after RFC 9162, section 2.1. */
#include "proto/merkle.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"

/* One context for the process: fetching the algorithm costs more than hashing a leaf. */
static EVP_MD_CTX *context;
static EVP_MD *sha256;

static int
hash(unsigned char out[MERKLE_LEN], unsigned char prefix, const void *a, size_t a_len,
     const void *b, size_t b_len)
{
    unsigned int len = MERKLE_LEN;

    if (context == NULL &&
        ((sha256 = EVP_MD_fetch(NULL, "SHA256", NULL)) == NULL ||
         (context = EVP_MD_CTX_new()) == NULL || EVP_DigestInit_ex2(context, sha256, NULL) != 1)) {
        EVP_MD_free(sha256);
        EVP_MD_CTX_free(context);
        context = NULL;
        ERR_clear_error();
        return KMS_ERR_INTERNAL;
    }
    /* Without an algorithm: the one it has, begun anew. */
    if (EVP_DigestInit_ex2(context, NULL, NULL) != 1 ||
        EVP_DigestUpdate(context, &prefix, 1) != 1 || EVP_DigestUpdate(context, a, a_len) != 1 ||
        (b_len > 0 && EVP_DigestUpdate(context, b, b_len) != 1) ||
        EVP_DigestFinal_ex(context, out, &len) != 1) {
        ERR_clear_error();
        return KMS_ERR_INTERNAL;
    }
    return KMS_OK;
}

int
merkle_leaf(unsigned char out[MERKLE_LEN], const void *data, size_t len)
{
    return hash(out, 0, data, len, NULL, 0);
}

int
merkle_node(unsigned char out[MERKLE_LEN], const unsigned char left[MERKLE_LEN],
            const unsigned char right[MERKLE_LEN])
{
    unsigned char both[2 * MERKLE_LEN];

    memcpy(both, left, MERKLE_LEN);
    memcpy(both + MERKLE_LEN, right, MERKLE_LEN);
    return hash(out, 1, both, sizeof(both), NULL, 0);
}

/* --- a growing tree --- */

int
merkle_append(struct merkle *t, const unsigned char leaf[MERKLE_LEN], merkle_node_cb *cb, void *ctx)
{
    unsigned char h[MERKLE_LEN];
    unsigned height = 0;
    int r;

    if (t->size >= MERKLE_SIZE_MAX)
        return KMS_ERR_LIMIT;
    memcpy(h, leaf, MERKLE_LEN);
    for (;;) {
        if (cb != NULL && height % MERKLE_HEIGHT == 0 &&
            (r = cb(ctx, height / MERKLE_HEIGHT, t->size >> height, h)) != KMS_OK)
            return r;
        if (((t->size >> height) & 1) == 0)
            break;
        if ((r = merkle_node(h, t->peak[height], h)) != KMS_OK)
            return r;
        height++;
    }
    memcpy(t->peak[height], h, MERKLE_LEN);
    t->size++;
    return KMS_OK;
}

int
merkle_root(const struct merkle *t, unsigned char out[MERKLE_LEN])
{
    bool first = true;
    int r = KMS_OK;

    if (t->size == 0)
        return EVP_Digest("", 0, out, NULL, EVP_sha256(), NULL) == 1 ? KMS_OK : KMS_ERR_INTERNAL;
    for (unsigned h = 0; h < 63 && r == KMS_OK; h++) {
        if (((t->size >> h) & 1) == 0)
            continue;
        if (first)
            memcpy(out, t->peak[h], MERKLE_LEN);
        else
            r = merkle_node(out, t->peak[h], out);
        first = false;
    }
    return r;
}

int
merkle_put_peaks(struct buf *out, const struct merkle *t)
{
    int r = KMS_OK;

    for (unsigned h = 0; h < 63 && r == KMS_OK; h++) {
        if ((t->size >> h) & 1)
            r = buf_put(out, t->peak[h], MERKLE_LEN);
    }
    return r;
}

int
merkle_get_peaks(struct merkle *t, uint64_t size, const unsigned char *p, size_t len)
{
    memset(t, 0, sizeof(*t));
    if (size > MERKLE_SIZE_MAX || len != (size_t)__builtin_popcountll(size) * MERKLE_LEN)
        return KMS_ERR_LENGTH;
    t->size = size;
    for (unsigned h = 0; h < 63; h++) {
        if ((size >> h) & 1) {
            memcpy(t->peak[h], p, MERKLE_LEN);
            p += MERKLE_LEN;
        }
    }
    return KMS_OK;
}

/* --- proofs --- */

/* The largest power of two that is less than n, as its exponent; n >= 2. */
static unsigned
split(uint64_t n)
{
    return 63 - (unsigned)__builtin_clzll(n - 1);
}

/* MTH(D[lo : lo + 2^height]), where lo is a multiple of 2^height. */
static int
complete(unsigned char out[MERKLE_LEN], uint64_t lo, unsigned height, merkle_read_cb *read,
         void *ctx)
{
    unsigned char right[MERKLE_LEN];
    int r;

    if (height % MERKLE_HEIGHT == 0)
        return read(ctx, height / MERKLE_HEIGHT, lo >> height, out);
    if ((r = complete(out, lo, height - 1, read, ctx)) != KMS_OK ||
        (r = complete(right, lo + ((uint64_t)1 << (height - 1)), height - 1, read, ctx)) != KMS_OK)
        return r;
    return merkle_node(out, out, right);
}

/* MTH(D[lo : hi]); lo is a multiple of the power of two that is at least hi - lo. */
static int
range(unsigned char out[MERKLE_LEN], uint64_t lo, uint64_t hi, merkle_read_cb *read, void *ctx)
{
    unsigned char right[MERKLE_LEN];
    uint64_t n = hi - lo;
    unsigned k;
    int r;

    if ((n & (n - 1)) == 0)
        return complete(out, lo, (unsigned)__builtin_ctzll(n), read, ctx);
    k = split(n);
    if ((r = complete(out, lo, k, read, ctx)) != KMS_OK ||
        (r = range(right, lo + ((uint64_t)1 << k), hi, read, ctx)) != KMS_OK)
        return r;
    return merkle_node(out, out, right);
}

int
merkle_load(struct merkle *t, uint64_t size, merkle_read_cb *read, void *ctx)
{
    uint64_t lo = 0;
    int r = KMS_OK;

    memset(t, 0, sizeof(*t));
    if (size > MERKLE_SIZE_MAX)
        return KMS_ERR_MEMBER;
    for (unsigned h = 63; h-- > 0 && r == KMS_OK;) {
        if ((size >> h) & 1) {
            r = complete(t->peak[h], lo, h, read, ctx);
            lo += (uint64_t)1 << h;
        }
    }
    t->size = size;
    return r;
}

int
merkle_root_of(unsigned char out[MERKLE_LEN], uint64_t size, merkle_read_cb *read, void *ctx)
{
    struct merkle none = {0};

    if (size == 0)
        return merkle_root(&none, out);
    return size <= MERKLE_SIZE_MAX ? range(out, 0, size, read, ctx) : KMS_ERR_MEMBER;
}

int
merkle_prove_inclusion(unsigned char out[][MERKLE_LEN], size_t *n, uint64_t index, uint64_t size,
                       merkle_read_cb *read, void *ctx)
{
    uint64_t lo = 0, hi = size;
    struct {
        uint64_t lo, hi;
    } siblings[MERKLE_PROOF_MAX];
    size_t count = 0;
    int r = KMS_OK;

    *n = 0;
    if (index >= size || size > MERKLE_SIZE_MAX)
        return KMS_ERR_MEMBER;
    /* Down from the root; the proof begins at the leaf. */
    while (hi - lo > 1) {
        uint64_t middle = lo + ((uint64_t)1 << split(hi - lo));

        if (index < middle) {
            siblings[count].lo = middle;
            siblings[count++].hi = hi;
            hi = middle;
        } else {
            siblings[count].lo = lo;
            siblings[count++].hi = middle;
            lo = middle;
        }
    }
    while (count > 0 && r == KMS_OK) {
        count--;
        r = range(out[*n], siblings[count].lo, siblings[count].hi, read, ctx);
        (*n)++;
    }
    return r;
}

int
merkle_prove_consistency(unsigned char out[][MERKLE_LEN], size_t *n, uint64_t first,
                         uint64_t second, merkle_read_cb *read, void *ctx)
{
    uint64_t lo = 0, hi = second;
    struct {
        uint64_t lo, hi;
    } siblings[MERKLE_PROOF_MAX];
    size_t count = 0;
    int r = KMS_OK;

    *n = 0;
    if (first > second || second > MERKLE_SIZE_MAX)
        return KMS_ERR_MEMBER;
    if (first == 0 || first == second)
        return KMS_OK;
    /* Down to the subtree that is the first tree's right end. */
    while (hi != first) {
        uint64_t middle = lo + ((uint64_t)1 << split(hi - lo));

        if (first <= middle) {
            siblings[count].lo = middle;
            siblings[count++].hi = hi;
            hi = middle;
        } else {
            siblings[count].lo = lo;
            siblings[count++].hi = middle;
            lo = middle;
        }
    }
    /* When that is the whole first tree, its root is known to who checks. */
    if (lo != 0) {
        r = range(out[0], lo, hi, read, ctx);
        *n = 1;
    }
    while (count > 0 && r == KMS_OK) {
        count--;
        r = range(out[*n], siblings[count].lo, siblings[count].hi, read, ctx);
        (*n)++;
    }
    return r;
}

static int
same(const unsigned char *a, const unsigned char *b)
{
    return CRYPTO_memcmp(a, b, MERKLE_LEN) == 0 ? KMS_OK : KMS_ERR_CRYPTO;
}

int
merkle_check_inclusion(const unsigned char leaf[MERKLE_LEN], uint64_t index, uint64_t size,
                       unsigned char proof[][MERKLE_LEN], size_t n,
                       const unsigned char root[MERKLE_LEN])
{
    uint64_t fn = index, sn = size - 1;
    unsigned char h[MERKLE_LEN];
    int r = KMS_OK;

    if (index >= size || n > MERKLE_PROOF_MAX)
        return KMS_ERR_CRYPTO;
    memcpy(h, leaf, MERKLE_LEN);
    for (size_t i = 0; i < n && r == KMS_OK; i++) {
        if (sn == 0)
            return KMS_ERR_CRYPTO;
        if ((fn & 1) != 0 || fn == sn) {
            r = merkle_node(h, proof[i], h);
            while ((fn & 1) == 0 && fn != 0) {
                fn >>= 1;
                sn >>= 1;
            }
        } else {
            r = merkle_node(h, h, proof[i]);
        }
        fn >>= 1;
        sn >>= 1;
    }
    if (r != KMS_OK)
        return r;
    return sn == 0 ? same(h, root) : KMS_ERR_CRYPTO;
}

int
merkle_check_consistency(uint64_t first, const unsigned char first_root[MERKLE_LEN],
                         uint64_t second, const unsigned char second_root[MERKLE_LEN],
                         unsigned char proof[][MERKLE_LEN], size_t n)
{
    struct merkle none = {0};
    unsigned char fr[MERKLE_LEN], sr[MERKLE_LEN];
    uint64_t fn, sn;
    size_t i = 0;
    int r;

    if (first > second || n > MERKLE_STEPS_MAX)
        return KMS_ERR_CRYPTO;
    if (first == second)
        return n == 0 ? same(first_root, second_root) : KMS_ERR_CRYPTO;
    if (first == 0) {
        /* Any tree grows from the empty one. */
        if ((r = merkle_root(&none, fr)) != KMS_OK)
            return r;
        return n == 0 ? same(fr, first_root) : KMS_ERR_CRYPTO;
    }
    if ((first & (first - 1)) == 0) {
        memcpy(fr, first_root, MERKLE_LEN);
    } else {
        if (n == 0)
            return KMS_ERR_CRYPTO;
        memcpy(fr, proof[i++], MERKLE_LEN);
    }
    memcpy(sr, fr, MERKLE_LEN);
    fn = first - 1;
    sn = second - 1;
    while ((fn & 1) != 0) {
        fn >>= 1;
        sn >>= 1;
    }
    for (; i < n; i++) {
        if (sn == 0)
            return KMS_ERR_CRYPTO;
        if ((fn & 1) != 0 || fn == sn) {
            if ((r = merkle_node(fr, proof[i], fr)) != KMS_OK ||
                (r = merkle_node(sr, proof[i], sr)) != KMS_OK)
                return r;
            while ((fn & 1) == 0 && fn != 0) {
                fn >>= 1;
                sn >>= 1;
            }
        } else if ((r = merkle_node(sr, sr, proof[i])) != KMS_OK) {
            return r;
        }
        fn >>= 1;
        sn >>= 1;
    }
    if (sn != 0 || same(fr, first_root) != KMS_OK)
        return KMS_ERR_CRYPTO;
    return same(sr, second_root);
}

/* --- tiles --- */

void
merkle_tile_path(char out[MERKLE_PATH_MAX], int level, uint64_t index, unsigned width)
{
    char groups[40];
    size_t at = sizeof(groups) - 1;
    int n = level < 0 ? snprintf(out, MERKLE_PATH_MAX, "tile/entries/")
                      : snprintf(out, MERKLE_PATH_MAX, "tile/%d/", level);

    /* Groups of three digits from the right; all but the last begin with an x. */
    groups[at] = '\0';
    for (bool last = true; last || index > 0; last = false, index /= 1000) {
        char digits[8];

        snprintf(digits, sizeof(digits), last ? "%03u" : "x%03u/", (unsigned)(index % 1000));
        at -= strlen(digits);
        memcpy(groups + at, digits, strlen(digits));
    }
    n += snprintf(out + n, MERKLE_PATH_MAX - (size_t)n, "%s", groups + at);
    if (width != MERKLE_TILE)
        snprintf(out + n, MERKLE_PATH_MAX - (size_t)n, ".p/%u", width);
}

unsigned
merkle_tile_width(unsigned level, uint64_t index, uint64_t size)
{
    uint64_t hashes = level * MERKLE_HEIGHT < 64 ? size >> (level * MERKLE_HEIGHT) : 0;

    if (hashes <= index * MERKLE_TILE)
        return 0;
    hashes -= index * MERKLE_TILE;
    return hashes < MERKLE_TILE ? (unsigned)hashes : MERKLE_TILE;
}
