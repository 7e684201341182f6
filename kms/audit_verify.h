/*
 * audit_verify.h - is a log whole?  Checks every leaf, every tile and every checkpoint against each
 * other, and says what was done to it.
 *
 * Where the log comes from is a source: a directory in the C2SP tlog-tiles layout, or a server's
 * database.  The only thing that is trusted is the key.  Each leaf is there three times over - as
 * an entry, in its tile, and in the nodes above - so that what is wrong can be told from what is
 * right, as long as the signed root says which; else the span between two checkpoints is named.
 */
#ifndef KMS_AUDIT_VERIFY_H
#define KMS_AUDIT_VERIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/merkle.h"
#include "proto/note.h"

struct buf;

/* The leaves of one bundle, as they are found. */
struct audit_bundle {
    const void
        *leaf[MERKLE_TILE + 1]; /* borrowed from the source until its next call; NULL: is gone */
    size_t len[MERKLE_TILE + 1];
    uint64_t entry[MERKLE_TILE + 1]; /* of a leaf that is gone: its entry's number; 0: not known */
    unsigned n;  /* may be any number up to MERKLE_TILE + 1: more than that is not looked at */
    bool broken; /* ends in what is no leaf */
};

/*
 * KMS_ERR_NOT_FOUND: it is not there.  Any other error ends the check.
 */
struct audit_source {
    void *ctx;
    /* Leaves index * 256 to + width. */
    int (*bundle)(void *ctx, uint64_t index, unsigned width, struct audit_bundle *out);
    /* Hashes of a tile; *n: how many are there, at most width. */
    int (*tile)(void *ctx, unsigned level, uint64_t index, unsigned width,
                unsigned char out[MERKLE_TILE][MERKLE_LEN], unsigned *n);
    /* The newest checkpoint, appended. */
    int (*checkpoint)(void *ctx, struct buf *out);
    /* The next of those kept, appended, by ascending size; NOT_FOUND: that was all. */
    int (*next_checkpoint)(void *ctx, struct buf *out);
};

enum audit_what {
    AUDIT_CHANGED,  /* leaves first..last are not what was logged */
    AUDIT_REMOVED,  /* are not there */
    AUDIT_INSERTED, /* something that was never logged stands before leaf `first` */
    AUDIT_MOVED,    /* leaf `first` has another's place */
    AUDIT_CUT,      /* from `first` on to the end there is nothing */
    AUDIT_SPAN,     /* at least one of first..last was changed, with all that would tell which */
    AUDIT_TILE, /* a tile is damaged or missing: level, first = its index; the leaves are whole */
    AUDIT_CHECKPOINT, /* a checkpoint is no note, for another log, not signed by the key, or out of
                         order */
};
const char *audit_what_name(enum audit_what w); /* "changed", ... */

/* How a finding's entry number is known. */
enum audit_named {
    AUDIT_UNNAMED, /* it is not */
    AUDIT_LOGGED,  /* it is the one that was logged there */
    AUDIT_SAYS,    /* what stands there now says so of itself */
    AUDIT_BEHIND,  /* it is the one before, which is whole */
};

struct audit_finding {
    enum audit_what what;
    uint64_t first, last; /* leaves; of a checkpoint its size, when it can be read */
    int level;            /* of a tile */
    const char *text;     /* more, for people; or NULL */
    enum audit_named named;
    uint64_t entry, last_entry; /* of a span the first and the last; else the same */
};

struct audit_report {
    uint64_t size;        /* leaves checked */
    uint64_t checkpoints; /* good ones */
    int64_t time;         /* of the newest good one; -1: none */
    uint64_t findings;
};

/*
 * Checks everything, calling found for each finding, in order of leaves as far as they are known.
 * at_least, unless NULL, is a checkpoint that was kept elsewhere: the log must contain it.  KMS_OK:
 * the check was made, and report->findings says with what result; else the source could not be
 * read.
 */
int audit_verify(const struct audit_source *source, const struct note_key *key,
                 const struct checkpoint *at_least,
                 void (*found)(void *ctx, const struct audit_finding *f), void *ctx,
                 struct audit_report *report);

/* Splits the file of a bundle. */
void audit_bundle_split(struct audit_bundle *out, const unsigned char *p, size_t len);

/* Verifies that text is a checkpoint of key's log by that key.  KMS_OK, KMS_ERR_SYNTAX, _NOT_FOUND,
 * _CRYPTO, _ISSUER (of another log). */
int audit_checkpoint_open(struct checkpoint *c, const char *text, size_t len,
                          const struct note_key *key);

#endif
