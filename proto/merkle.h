/*
 * merkle.h - Merkle trees as RFC 9162 section 2.1 has them (those of RFC 6962), over SHA-256.
 *
 * A growing tree is kept as its peaks: the roots of the complete subtrees that its size is the sum
 * of, at most 64 hashes.  They are enough to append and to tell the root.  Proofs are made from
 * tiles (C2SP tlog-tiles): of all nodes only those whose height is a multiple of eight are stored,
 * and a reader hands them out one at a time.
 */
#ifndef PROTO_MERKLE_H
#define PROTO_MERKLE_H

#include <stddef.h>
#include <stdint.h>

struct buf;

#define MERKLE_LEN       32
#define MERKLE_TILE      256 /* hashes in a full tile */
#define MERKLE_HEIGHT    8   /* of a tile */
#define MERKLE_PROOF_MAX 64  /* hashes of an inclusion proof */
#define MERKLE_STEPS_MAX 65  /* hashes of a consistency proof */
#define MERKLE_PATH_MAX  80  /* of a tile's name, with its NUL */
#define MERKLE_SIZE_MAX  ((uint64_t)1 << 62)

/* SHA-256(0x00 || data).  All functions that hash: KMS_OK, or KMS_ERR_INTERNAL. */
int merkle_leaf(unsigned char out[MERKLE_LEN], const void *data, size_t len);
/* SHA-256(0x01 || left || right); out may be one of them. */
int merkle_node(unsigned char out[MERKLE_LEN], const unsigned char left[MERKLE_LEN],
                const unsigned char right[MERKLE_LEN]);

/* A growing tree.  All zero: the empty one. */
struct merkle {
    uint64_t size;
    unsigned char peak[64][MERKLE_LEN]; /* [h] holds when bit h of size is set */
};

/*
 * Told of each node that a tile holds when it is complete: level 0 are the leaves themselves, level
 * 1 the roots of 256 leaves, and so on.  Non-zero ends the appending and is returned.
 */
typedef int merkle_node_cb(void *ctx, unsigned level, uint64_t index,
                           const unsigned char hash[MERKLE_LEN]);

/* cb may be NULL. */
int merkle_append(struct merkle *t, const unsigned char leaf[MERKLE_LEN], merkle_node_cb *cb,
                  void *ctx);
int merkle_root(const struct merkle *t, unsigned char out[MERKLE_LEN]);
/* The peaks, the smallest subtree's first: 32 bytes for each bit of size.  KMS_ERR_NOMEM. */
int merkle_put_peaks(struct buf *out, const struct merkle *t);
/* The other way.  KMS_ERR_LENGTH: not as many as size wants. */
int merkle_get_peaks(struct merkle *t, uint64_t size, const unsigned char *p, size_t len);

/* Hands out a node that a tile holds, numbered as above.  Its errors are passed on. */
typedef int merkle_read_cb(void *ctx, unsigned level, uint64_t index,
                           unsigned char out[MERKLE_LEN]);

/* A proof: *n hashes, as RFC 9162 sections 2.1.3.1 and 2.1.4.1 order them.  KMS_ERR_MEMBER: no such
 * leaf or sizes. */
int merkle_prove_inclusion(unsigned char out[][MERKLE_LEN], size_t *n, uint64_t index,
                           uint64_t size, merkle_read_cb *read, void *ctx);
int merkle_prove_consistency(unsigned char out[][MERKLE_LEN], size_t *n, uint64_t first,
                             uint64_t second, merkle_read_cb *read, void *ctx);
/* The tree of the first `size` leaves, from what is stored; and its root. */
int merkle_load(struct merkle *t, uint64_t size, merkle_read_cb *read, void *ctx);
int merkle_root_of(unsigned char out[MERKLE_LEN], uint64_t size, merkle_read_cb *read, void *ctx);

/* Sections 2.1.3.2 and 2.1.4.2; the proof is only read.  KMS_ERR_CRYPTO: it proves nothing. */
int merkle_check_inclusion(const unsigned char leaf[MERKLE_LEN], uint64_t index, uint64_t size,
                           unsigned char proof[][MERKLE_LEN], size_t n,
                           const unsigned char root[MERKLE_LEN]);
int merkle_check_consistency(uint64_t first, const unsigned char first_root[MERKLE_LEN],
                             uint64_t second, const unsigned char second_root[MERKLE_LEN],
                             unsigned char proof[][MERKLE_LEN], size_t n);

/*
 * The name of a tile: "tile/0/x001/234", with ".p/W" when width is not MERKLE_TILE; level -1 is a
 * bundle of entries
 * ("tile/entries/...").
 */
void merkle_tile_path(char out[MERKLE_PATH_MAX], int level, uint64_t index, unsigned width);
/* How many hashes tile `index` of a level has in a tree of this size: 0 to 256. */
unsigned merkle_tile_width(unsigned level, uint64_t index, uint64_t size);

#endif
