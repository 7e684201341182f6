/*
 * test_merkle.c - Merkle trees: RFC 6962's known trees, trees made by another implementation (node,
 * recursively as RFC 9162 defines them), and every proof of small trees.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/merkle.h"

#define LEVELS 4

/* Every node that a tile holds, in memory. */
struct store {
    unsigned char (*hash[LEVELS])[MERKLE_LEN];
    uint64_t n[LEVELS];
};

static struct store store;

static int
keep(void *ctx, unsigned level, uint64_t index, const unsigned char *hash)
{
    struct store *s = ctx;

    cr_assert_lt(level, LEVELS);
    cr_assert_eq(index, s->n[level]++);
    s->hash[level] = realloc(s->hash[level], s->n[level] * MERKLE_LEN);
    memcpy(s->hash[level][index], hash, MERKLE_LEN);
    return KMS_OK;
}

static int
take(void *ctx, unsigned level, uint64_t index, unsigned char out[MERKLE_LEN])
{
    struct store *s = ctx;

    if (level >= LEVELS || index >= s->n[level])
        return KMS_ERR_NOT_FOUND;
    memcpy(out, s->hash[level][index], MERKLE_LEN);
    return KMS_OK;
}

/* Leaves "entry 0", "entry 1", ... */
static void
grow(struct merkle *t, uint64_t size)
{
    while (t->size < size) {
        unsigned char leaf[MERKLE_LEN];
        char text[32];

        snprintf(text, sizeof(text), "entry %llu", (unsigned long long)t->size);
        cr_assert_eq(merkle_leaf(leaf, text, strlen(text)), KMS_OK);
        cr_assert_eq(merkle_append(t, leaf, keep, &store), KMS_OK);
    }
}

static const char *
hex(const unsigned char *p)
{
    static char out[2 * MERKLE_LEN + 1];

    for (int i = 0; i < MERKLE_LEN; i++)
        snprintf(out + 2 * i, 3, "%02x", p[i]);
    return out;
}

static const char *
digest(const void *p, size_t len)
{
    unsigned char h[MERKLE_LEN];

    EVP_Digest(p, len, h, NULL, EVP_sha256(), NULL);
    return hex(h);
}

Test(merkle, has_the_roots_of_rfc_6962)
{
    static const struct {
        const char *leaf;
        size_t len;
        const char *root;
    } rows[] = {
        {"", 0, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
        {"\x00", 1, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"},
        {"\x10", 1, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"},
        {"\x20\x21", 2, "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"},
        {"\x30\x31", 2, "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"},
        {"\x40\x41\x42\x43", 4, "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"},
        {"\x50\x51\x52\x53\x54\x55\x56\x57", 8,
         "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"},
        {"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f", 16,
         "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"},
    };
    unsigned char leaf[MERKLE_LEN], root[MERKLE_LEN];
    struct merkle t = {0};

    cr_assert_eq(merkle_root(&t, root), KMS_OK);
    cr_assert_str_eq(hex(root), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        cr_assert_eq(merkle_leaf(leaf, rows[i].leaf, rows[i].len), KMS_OK);
        cr_assert_eq(merkle_append(&t, leaf, NULL, NULL), KMS_OK);
        cr_assert_eq(merkle_root(&t, root), KMS_OK);
        cr_assert_str_eq(hex(root), rows[i].root);
    }
}

Test(merkle, has_the_roots_and_proofs_of_another_implementation)
{
    static const struct {
        uint64_t index, size;
        size_t n;
        const char *sum; /* SHA-256 of all hashes of the proof */
    } inclusion[] =
        {
            {0, 1000, 10, "51d657505a30feb0be67bd96c40cc69930b30290d293e0a0cd59107719cb9ac7"},
            {999, 1000, 8, "147c54b36f7938fd0d8a2dd254124c0ae0b7c5efc30bbe7844420e386ce9bc39"},
            {513, 1000, 10, "02898398ed239c02a03c421cce5dc08fe8778b53a330fc6cb4b49fe0d575248a"},
            {69999, 70000, 9, "2a8bc48c7658d606eed507c740ee61d87ece2555d453519138390befc347d733"},
            {65535, 70000, 17, "755554a2b77e2d838c8017af27298b138431dd493ec90adccab66c2936a4a9af"},
        },
      consistency[] = {
          {1, 1000, 10, "51d657505a30feb0be67bd96c40cc69930b30290d293e0a0cd59107719cb9ac7"},
          {256, 1000, 2, "cfb70eb6650418de3096cd016af7ecd86bb9172a7849f6d2426e9ba79ecd6126"},
          {511, 1000, 11, "e9dc492c430240321135d639754e54d64a59474ebd7f16a7cc25e5c68552fe97"},
          {999, 1000, 9, "f346ee5b6ba34cd7590cd1e3c827e8f87ac407d290685a699277e5c6e3dc1d1f"},
          {65536, 70000, 1, "794b28db0171a2edd112dc902f24a7dfd7c25a2bfe7ccd38b16373b5bf0712a5"},
          {300, 70000, 16, "49d070a469756499a6d10badb24a09c43b2ca13b1ca531edf7f787af5ed90d7a"},
      };
    unsigned char proof[MERKLE_STEPS_MAX][MERKLE_LEN], root[MERKLE_LEN];
    struct merkle t = {0};
    size_t n;

    grow(&t, 1000);
    merkle_root(&t, root);
    cr_assert_str_eq(hex(root), "346c6b9cb89c4b76fac9dcb20cda86e3a01c0a57417c139028eacd4538fde95b");
    grow(&t, 65536);
    merkle_root(&t, root);
    cr_assert_str_eq(hex(root), "07b1a377960a4e12e3348d6e9329ae6316a95b02fb1c22e909231b3aa44861a7");
    grow(&t, 70000);
    merkle_root(&t, root);
    cr_assert_str_eq(hex(root), "a3920fba7f239a071a9bd10721f1341addefbaededb41c7e24437a9d16bdf00a");
    cr_assert_eq(merkle_root_of(root, 1000, take, &store), KMS_OK);
    cr_assert_str_eq(hex(root), "346c6b9cb89c4b76fac9dcb20cda86e3a01c0a57417c139028eacd4538fde95b");
    for (size_t i = 0; i < sizeof(inclusion) / sizeof(inclusion[0]); i++) {
        cr_assert_eq(
            merkle_prove_inclusion(proof, &n, inclusion[i].index, inclusion[i].size, take, &store),
            KMS_OK);
        cr_assert_eq(n, inclusion[i].n);
        cr_assert_str_eq(digest(proof, n * MERKLE_LEN), inclusion[i].sum);
    }
    for (size_t i = 0; i < sizeof(consistency) / sizeof(consistency[0]); i++) {
        cr_assert_eq(merkle_prove_consistency(proof, &n, consistency[i].index, consistency[i].size,
                                              take, &store),
                     KMS_OK);
        cr_assert_eq(n, consistency[i].n);
        cr_assert_str_eq(digest(proof, n * MERKLE_LEN), consistency[i].sum);
    }
}

/* Sizes around a tile's as well as the small ones. */
static const uint64_t sizes[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,   15,  16,  17,
                                 31, 33, 64, 65, 70, 80, 81, 99, 255, 256, 257, 300};
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

Test(merkle, proves_each_leaf_of_each_tree)
{
    unsigned char proof[MERKLE_STEPS_MAX][MERKLE_LEN], root[MERKLE_LEN], leaf[MERKLE_LEN];
    struct merkle t = {0};
    size_t n;

    grow(&t, 300);
    for (size_t s = 0; s < SIZES; s++) {
        cr_assert_eq(merkle_root_of(root, sizes[s], take, &store), KMS_OK);
        for (uint64_t i = 0; i < sizes[s]; i++) {
            cr_assert_eq(merkle_prove_inclusion(proof, &n, i, sizes[s], take, &store), KMS_OK);
            take(&store, 0, i, leaf);
            cr_assert_eq(merkle_check_inclusion(leaf, i, sizes[s], proof, n, root), KMS_OK);
            /* Of another leaf, place, size or length it is none. */
            leaf[7] ^= 1;
            cr_assert_eq(merkle_check_inclusion(leaf, i, sizes[s], proof, n, root), KMS_ERR_CRYPTO);
            leaf[7] ^= 1;
            if (sizes[s] > 1)
                cr_assert_eq(merkle_check_inclusion(leaf, i ^ 1, sizes[s], proof, n, root),
                             KMS_ERR_CRYPTO);
            cr_assert_eq(merkle_check_inclusion(leaf, i, sizes[s], proof, n + 1, root),
                         KMS_ERR_CRYPTO);
            if (n > 0) {
                cr_assert_eq(merkle_check_inclusion(leaf, i, sizes[s], proof, n - 1, root),
                             KMS_ERR_CRYPTO);
                proof[n / 2][3] ^= 4;
                cr_assert_eq(merkle_check_inclusion(leaf, i, sizes[s], proof, n, root),
                             KMS_ERR_CRYPTO);
            }
        }
        cr_assert_eq(merkle_prove_inclusion(proof, &n, sizes[s], sizes[s], take, &store),
                     KMS_ERR_MEMBER);
    }
}

Test(merkle, proves_each_tree_to_be_the_beginning_of_each_later_one)
{
    unsigned char proof[MERKLE_STEPS_MAX][MERKLE_LEN], first[MERKLE_LEN], second[MERKLE_LEN];
    struct merkle t = {0};
    size_t n;

    grow(&t, 300);
    for (size_t s = 0; s < SIZES; s++) {
        merkle_root_of(second, sizes[s], take, &store);
        for (uint64_t m = 0; m <= sizes[s]; m++) {
            merkle_root_of(first, m, take, &store);
            cr_assert_eq(merkle_prove_consistency(proof, &n, m, sizes[s], take, &store), KMS_OK);
            cr_assert_eq(merkle_check_consistency(m, first, sizes[s], second, proof, n), KMS_OK);
            first[0] ^= 1;
            cr_assert_eq(merkle_check_consistency(m, first, sizes[s], second, proof, n),
                         KMS_ERR_CRYPTO);
            first[0] ^= 1;
            if (n > 0) {
                second[31] ^= 1;
                cr_assert_eq(merkle_check_consistency(m, first, sizes[s], second, proof, n),
                             KMS_ERR_CRYPTO);
                second[31] ^= 1;
                cr_assert_eq(merkle_check_consistency(m, first, sizes[s], second, proof, n - 1),
                             KMS_ERR_CRYPTO);
                proof[n - 1][0] ^= 1;
                cr_assert_eq(merkle_check_consistency(m, first, sizes[s], second, proof, n),
                             KMS_ERR_CRYPTO);
            }
        }
    }
}

Test(merkle, goes_on_from_its_peaks)
{
    unsigned char a[MERKLE_LEN], b[MERKLE_LEN];
    struct merkle t = {0}, u;
    struct buf peaks = BUF_INIT;

    grow(&t, 77);
    cr_assert_eq(merkle_put_peaks(&peaks, &t), KMS_OK);
    cr_assert_eq(peaks.len, 4 * MERKLE_LEN);
    cr_assert_eq(merkle_get_peaks(&u, 77, peaks.data, peaks.len), KMS_OK);
    cr_assert_eq(merkle_get_peaks(&u, 76, peaks.data, peaks.len), KMS_ERR_LENGTH);
    cr_assert_eq(merkle_get_peaks(&u, 77, peaks.data, peaks.len), KMS_OK);
    grow(&t, 300);
    while (u.size < 300) {
        unsigned char leaf[MERKLE_LEN];

        take(&store, 0, u.size, leaf);
        cr_assert_eq(merkle_append(&u, leaf, NULL, NULL), KMS_OK);
    }
    merkle_root(&t, a);
    merkle_root(&u, b);
    cr_assert_arr_eq(a, b, MERKLE_LEN);
    buf_release(&peaks);
}

Test(merkle, names_tiles_as_c2sp_does)
{
    char path[MERKLE_PATH_MAX];

    merkle_tile_path(path, 0, 1234067, 256);
    cr_assert_str_eq(path, "tile/0/x001/x234/067");
    merkle_tile_path(path, 2, 0, 17);
    cr_assert_str_eq(path, "tile/2/000.p/17");
    merkle_tile_path(path, -1, 1000, 255);
    cr_assert_str_eq(path, "tile/entries/x001/000.p/255");
    merkle_tile_path(path, 62, UINT64_MAX, 255);
    cr_assert_str_eq(path, "tile/62/x018/x446/x744/x073/x709/x551/615.p/255");
    /* The example of tlog-tiles: a tree of 70,000. */
    cr_assert_eq(merkle_tile_width(0, 272, 70000), 256);
    cr_assert_eq(merkle_tile_width(0, 273, 70000), 112);
    cr_assert_eq(merkle_tile_width(1, 0, 70000), 256);
    cr_assert_eq(merkle_tile_width(1, 1, 70000), 17);
    cr_assert_eq(merkle_tile_width(2, 0, 70000), 1);
    cr_assert_eq(merkle_tile_width(3, 0, 70000), 0);
    cr_assert_eq(merkle_tile_width(1, 0, 256), 1);
}
