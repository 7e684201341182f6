/*
 * audit_verify.c - the check of a whole log.
 *
 * One pass over the leaves.  A tree grows from what each tile's leaves most likely were: what two
 * of three say (entries, tile, node above).  At each checkpoint its root must be the signed one.
 * When it is not, the pass since the last good checkpoint is played again from the entries alone
 * and from the tiles alone; what makes the signed root was the truth, and what differs from it is
 * named.
 */
#include "kms/audit_verify.h"

#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"

#define LEVELS  8
#define PENDING 64

struct signed_root {
    uint64_t size;
    unsigned char root[MERKLE_LEN];
};

/* A tile's leaves since the last good checkpoint, as found. */
struct segment {
    uint64_t index;      /* of the tile */
    unsigned from;       /* its first leaf that is in the segment; before it, all is known */
    unsigned entry_from; /* and the first entry: they part where some were removed or inserted */
    unsigned width;
    unsigned entries;                                 /* leaves found */
    unsigned char entry[MERKLE_TILE + 1][MERKLE_LEN]; /* their hashes */
    uint64_t number[MERKLE_TILE + 1];                 /* as they say themselves; 0: they do not */
    bool gone[MERKLE_TILE + 1];
    unsigned tiles; /* hashes found in the tile */
    unsigned char tile[MERKLE_TILE][MERKLE_LEN];
    unsigned char best[MERKLE_TILE][MERKLE_LEN]; /* what most likely was */
    bool ended;                                  /* its entries are all told of */
    bool told;                                   /* that its tile is damaged */
    bool clean;                                  /* entries and tile agree */
};

struct verifier {
    const struct audit_source *source;
    const struct note_key *key;
    void (*found)(void *ctx, const struct audit_finding *f);
    void *ctx;
    struct audit_report *report;
    struct signed_root *roots; /* owned; ascending */
    size_t n_roots, cap_roots;
    struct merkle tree;       /* up to the last leaf */
    struct merkle good;       /* up to the last good checkpoint */
    struct segment *segments; /* owned; since then, dirty or not */
    size_t n_segments, cap_segments;
    bool dirty;
    bool lost; /* nothing made a signed root: what comes after it cannot be judged */
    /* Tiles whose hash of a node is not the growing tree's; told when a checkpoint says that the
     * tree is right. */
    struct {
        unsigned level;
        uint64_t tile;
    } pending[PENDING];
    size_t n_pending;
    /* A tile of each level above the leaves. */
    struct {
        bool loaded;
        uint64_t index;
        unsigned n;
        unsigned char hash[MERKLE_TILE][MERKLE_LEN];
    } above[LEVELS];
    uint64_t size; /* of the largest good checkpoint */
    int err;
};

const char *
audit_what_name(enum audit_what w)
{
    static const char *const names[] = {
        [AUDIT_CHANGED] = "changed",   [AUDIT_REMOVED] = "removed",
        [AUDIT_INSERTED] = "inserted", [AUDIT_MOVED] = "moved",
        [AUDIT_CUT] = "cut off",       [AUDIT_SPAN] = "changed in span",
        [AUDIT_TILE] = "tile",         [AUDIT_CHECKPOINT] = "checkpoint"};

    return names[w];
}

static void
tell(struct verifier *v, enum audit_what what, uint64_t first, uint64_t last, int level,
     const char *text)
{
    struct audit_finding f = {what, first, last, level, text, AUDIT_UNNAMED, 0, 0};

    v->report->findings++;
    v->found(v->ctx, &f);
}

/* Of leaves whose entries are known, from one number to another; 0: they are not. */
static void
tell_entries(struct verifier *v, enum audit_what what, uint64_t first, uint64_t last,
             const char *text, enum audit_named named, uint64_t entry, uint64_t last_entry)
{
    struct audit_finding f = {what, first, last, 0, text, AUDIT_UNNAMED, 0, 0};

    if (entry > 0 && last_entry > 0) {
        f.named = named;
        f.entry = entry;
        f.last_entry = last_entry;
    }
    v->report->findings++;
    v->found(v->ctx, &f);
}

/* The entry's number in a leaf as kms/LOG.md describes it: the first member of that name, which
 * nothing before it can contain.  0: it has none. */
static uint64_t
entry_number(const unsigned char *leaf, size_t len)
{
    static const char name[] = "\"entry\":";
    const size_t n = sizeof(name) - 1;
    const unsigned char *p = memmem(leaf, len, name, n), *end = leaf + len;
    uint64_t number = 0;

    if (p == NULL)
        return 0;
    for (p += n; p < end && *p >= '0' && *p <= '9' && number < UINT64_MAX / 100; p++)
        number = number * 10 + (*p - '0');
    return p < end && (*p == ',' || *p == '}') && number <= INT64_MAX ? number : 0;
}

void
audit_bundle_split(struct audit_bundle *out, const unsigned char *p, size_t len)
{
    out->n = 0;
    out->broken = false;
    while (len > 0 && out->n <= MERKLE_TILE) {
        size_t n = len >= 2 ? (size_t)p[0] << 8 | p[1] : SIZE_MAX;

        if (len < 2 || n > len - 2) {
            out->broken = true;
            return;
        }
        out->leaf[out->n] = p + 2;
        out->len[out->n++] = n;
        p += 2 + n;
        len -= 2 + n;
    }
    out->broken = len > 0;
}

int
audit_checkpoint_open(struct checkpoint *c, const char *text, size_t len,
                      const struct note_key *key)
{
    struct note note;
    int r;

    if ((r = note_parse(&note, text, len)) != KMS_OK)
        return r == KMS_ERR_NOMEM ? r : KMS_ERR_SYNTAX;
    if ((r = note_verify(&note, key, NULL)) != KMS_OK)
        return r;
    if (checkpoint_parse(c, note.text, note.text_len) != KMS_OK)
        return KMS_ERR_SYNTAX;
    return strcmp(c->origin, key->name) == 0 ? KMS_OK : KMS_ERR_ISSUER;
}

/* --- checkpoints --- */

static const char *
why_not(int r)
{
    switch (r) {
    case KMS_ERR_SYNTAX:
        return "it is not a checkpoint";
    case KMS_ERR_NOT_FOUND:
        return "it is not signed by this key";
    case KMS_ERR_CRYPTO:
        return "its signature is wrong";
    default:
        return "it is of another log";
    }
}

/* Whatever of its size can be read, for the report of a bad one. */
static uint64_t
claimed_size(const char *text)
{
    const char *line = strchr(text, '\n');

    return line != NULL ? strtoull(line + 1, NULL, 10) : 0;
}

/* Keeps a good one; reports a bad one.  last: it must not be smaller than those before. */
static int
take_checkpoint(struct verifier *v, const struct buf *text)
{
    struct checkpoint c;
    struct signed_root *last = v->n_roots > 0 ? &v->roots[v->n_roots - 1] : NULL;
    int r = audit_checkpoint_open(&c, buf_str(text), text->len, v->key);

    if (r == KMS_ERR_NOMEM || r == KMS_ERR_INTERNAL)
        return r;
    if (r != KMS_OK) {
        tell(v, AUDIT_CHECKPOINT, claimed_size(buf_str(text)), 0, 0, why_not(r));
        return KMS_OK;
    }
    if (last != NULL && c.size < last->size) {
        tell(v, AUDIT_CHECKPOINT, c.size, 0, 0, "it is older than one that the log has had");
        return KMS_OK;
    }
    v->report->checkpoints++;
    if (c.time > v->report->time)
        v->report->time = c.time;
    if (last != NULL && c.size == last->size) {
        if (memcmp(c.root, last->root, MERKLE_LEN) != 0)
            tell(v, AUDIT_CHECKPOINT, c.size, 0, 0, "two roots were signed for this size");
        return KMS_OK;
    }
    if (v->n_roots == v->cap_roots) {
        size_t cap = v->cap_roots > 0 ? 2 * v->cap_roots : 1024;
        struct signed_root *p = realloc(v->roots, cap * sizeof(*p));

        if (p == NULL)
            return KMS_ERR_NOMEM;
        v->roots = p;
        v->cap_roots = cap;
    }
    v->roots[v->n_roots].size = c.size;
    memcpy(v->roots[v->n_roots++].root, c.root, MERKLE_LEN);
    v->size = c.size;
    return KMS_OK;
}

static int
read_checkpoints(struct verifier *v)
{
    struct buf text = BUF_INIT;
    int r;

    while ((r = v->source->next_checkpoint(v->source->ctx, &text)) == KMS_OK) {
        if ((r = take_checkpoint(v, &text)) != KMS_OK)
            break;
        buf_reset(&text);
    }
    buf_reset(&text);
    if (r == KMS_ERR_NOT_FOUND && (r = v->source->checkpoint(v->source->ctx, &text)) == KMS_OK)
        r = take_checkpoint(v, &text);
    else if (r == KMS_ERR_NOT_FOUND) {
        tell(v, AUDIT_CHECKPOINT, 0, 0, 0, "the newest one is missing");
        r = KMS_OK;
    }
    buf_release(&text);
    return r;
}

/* The one that was kept elsewhere, into its place. */
static int
take_known(struct verifier *v, const struct checkpoint *known)
{
    size_t at = 0;

    if (known == NULL)
        return KMS_OK;
    while (at < v->n_roots && v->roots[at].size < known->size)
        at++;
    if (at < v->n_roots && v->roots[at].size == known->size) {
        if (memcmp(v->roots[at].root, known->root, MERKLE_LEN) != 0)
            tell(v, AUDIT_CHECKPOINT, known->size, 0, 0, "two roots were signed for this size");
        return KMS_OK;
    }
    if (v->n_roots == v->cap_roots) {
        struct signed_root *p = realloc(v->roots, (v->cap_roots + 64) * sizeof(*p));

        if (p == NULL)
            return KMS_ERR_NOMEM;
        v->roots = p;
        v->cap_roots += 64;
    }
    memmove(&v->roots[at + 1], &v->roots[at], (v->n_roots - at) * sizeof(v->roots[0]));
    v->roots[at].size = known->size;
    memcpy(v->roots[at].root, known->root, MERKLE_LEN);
    v->n_roots++;
    if (known->size > v->size) {
        tell(v, AUDIT_CUT, v->size, known->size - 1, 0,
             "the log ends before a checkpoint that was kept elsewhere");
        v->n_roots--; /* there is nothing to compare it with */
    }
    return KMS_OK;
}

/* --- tiles above the leaves --- */

static void
doubt(struct verifier *v, unsigned level, uint64_t tile)
{
    for (size_t i = 0; i < v->n_pending; i++) {
        if (v->pending[i].level == level && v->pending[i].tile == tile)
            return;
    }
    if (v->n_pending < PENDING) {
        v->pending[v->n_pending].level = level;
        v->pending[v->n_pending++].tile = tile;
    }
}

/* The tree was right, so these were not. */
static void
tell_doubts(struct verifier *v)
{
    for (size_t i = 0; i < v->n_pending; i++)
        tell(v, AUDIT_TILE, v->pending[i].tile, v->pending[i].tile, (int)v->pending[i].level,
             "has a wrong hash, or is missing");
    v->n_pending = 0;
}

/* The hash that is stored for a node; NULL: it is not there. */
static const unsigned char *
stored_node(struct verifier *v, unsigned level, uint64_t index)
{
    uint64_t tile = index / MERKLE_TILE;
    unsigned width = merkle_tile_width(level, tile, v->size);
    int r;

    if (level >= LEVELS || width == 0)
        return NULL;
    if (!v->above[level].loaded || v->above[level].index != tile) {
        v->above[level].loaded = true;
        v->above[level].index = tile;
        v->above[level].n = 0;
        r = v->source->tile(v->source->ctx, level, tile, width, v->above[level].hash,
                            &v->above[level].n);
        if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
            v->err = r;
        if (v->above[level].n < width)
            doubt(v, level, tile);
    }
    return index % MERKLE_TILE < v->above[level].n ? v->above[level].hash[index % MERKLE_TILE]
                                                   : NULL;
}

/* Of the tree that grows: each node must be the stored one. */
static int
check_node(void *ctx, unsigned level, uint64_t index, const unsigned char *hash)
{
    struct verifier *v = ctx;
    const unsigned char *stored;

    if (level == 0)
        return KMS_OK;
    stored = stored_node(v, level, index);
    if (stored != NULL && memcmp(stored, hash, MERKLE_LEN) != 0)
        doubt(v, level, index / MERKLE_TILE);
    return v->err;
}

/* --- what was done to a tile's leaves --- */

static unsigned
find_hash(const unsigned char (*list)[MERKLE_LEN], unsigned from, unsigned n,
          const unsigned char *hash)
{
    while (from < n && memcmp(list[from], hash, MERKLE_LEN) != 0)
        from++;
    return from;
}

/* The leaves found in s against those that were logged. */
static void
name_differences(struct verifier *v, struct segment *s, const unsigned char (*truth)[MERKLE_LEN],
                 unsigned upto)
{
    const unsigned char(*have)[MERKLE_LEN] = (const unsigned char(*)[MERKLE_LEN])s->entry;
    const uint64_t base = s->index * MERKLE_TILE, *number = s->number;
    unsigned i = s->entry_from, j = s->from;
    unsigned n = s->entries;

    while (j < upto) {
        unsigned later_truth, later_have, other;
        /* What was removed says nothing; the leaf before it does, if it is the right one. */
        uint64_t before =
            i > 0 && j > 0 && i - 1 < n && memcmp(have[i - 1], truth[j - 1], MERKLE_LEN) == 0
                ? number[i - 1]
                : 0;

        if (i < n && s->gone[i]) {
            tell_entries(v, AUDIT_REMOVED, base + j, base + j, NULL, AUDIT_LOGGED, number[i],
                         number[i]);
            i++;
            j++;
            continue;
        }
        if (i < n && memcmp(have[i], truth[j], MERKLE_LEN) == 0) {
            i++;
            j++;
            continue;
        }
        if (i >= n) {
            /* The rest of the bundle at once, whatever checkpoints lie in it. */
            tell_entries(v, base + s->width == v->size ? AUDIT_CUT : AUDIT_REMOVED, base + j,
                         base + s->width - 1, NULL, AUDIT_BEHIND, before, before);
            s->ended = true;
            return;
        }
        later_truth = find_hash(truth, j + 1, s->width, have[i]);
        later_have = find_hash(have, i + 1, n, truth[j]);
        if (later_truth < s->width && later_have < n) {
            tell_entries(v, AUDIT_MOVED, base + j, base + j, NULL, AUDIT_LOGGED, number[later_have],
                         number[later_have]);
            i++;
            j++;
        } else if (later_truth < s->width && n < s->width) {
            tell_entries(v, AUDIT_REMOVED, base + j, base + later_truth - 1, NULL, AUDIT_BEHIND,
                         before, before);
            j = later_truth;
        } else if (later_have < n && n > s->width) {
            tell_entries(v, AUDIT_INSERTED, base + j, base + j, NULL, AUDIT_SAYS, number[i],
                         number[i]);
            i = later_have;
        } else if (find_hash(truth, 0, j, have[i]) < j && later_have >= n) {
            /* The other half of a swap, or only a copy. */
            if ((other = find_hash(have, 0, i, truth[j])) < i)
                tell_entries(v, AUDIT_MOVED, base + j, base + j, NULL, AUDIT_LOGGED, number[other],
                             number[other]);
            else
                tell_entries(v, AUDIT_CHANGED, base + j, base + j, "a copy of another one",
                             AUDIT_SAYS, number[i], number[i]);
            i++;
            j++;
        } else {
            tell_entries(v, AUDIT_CHANGED, base + j, base + j, NULL, AUDIT_SAYS, number[i],
                         number[i]);
            i++;
            j++;
        }
    }
    if (upto == s->width && i < n && n > s->width)
        tell_entries(v, AUDIT_INSERTED, base + upto, base + upto, NULL, AUDIT_SAYS, number[i],
                     number[i]);
    s->entry_from = i;
}

/* --- one tile --- */

static struct segment *
segment_new(struct verifier *v)
{
    if (v->n_segments == v->cap_segments) {
        size_t cap = v->cap_segments > 0 ? 2 * v->cap_segments : 4;
        struct segment *p = realloc(v->segments, cap * sizeof(*p));

        if (p == NULL)
            return NULL;
        v->segments = p;
        v->cap_segments = cap;
    }
    return &v->segments[v->n_segments++];
}

static int
root_of_tile(const unsigned char (*hashes)[MERKLE_LEN], unsigned char root[MERKLE_LEN])
{
    unsigned char level[MERKLE_TILE / 2][MERKLE_LEN];
    int r = KMS_OK;

    for (unsigned i = 0; i < MERKLE_TILE / 2 && r == KMS_OK; i++)
        r = merkle_node(level[i], hashes[2 * i], hashes[2 * i + 1]);
    for (unsigned n = MERKLE_TILE / 4; n > 0 && r == KMS_OK; n /= 2) {
        for (unsigned i = 0; i < n && r == KMS_OK; i++)
            r = merkle_node(level[i], level[2 * i], level[2 * i + 1]);
    }
    memcpy(root, level[0], MERKLE_LEN);
    return r;
}

static int
load(struct verifier *v, struct segment *s, uint64_t index)
{
    struct audit_bundle b = {.n = 0};
    const unsigned char *node;
    unsigned char root[MERKLE_LEN];
    bool whole;
    int r;

    memset(s, 0, offsetof(struct segment, entry));
    memset(s->gone, 0, sizeof(s->gone));
    s->index = index;
    s->width = merkle_tile_width(0, index, v->size);
    s->from = s->entry_from = 0;
    s->tiles = 0;
    s->told = s->clean = s->ended = false;
    r = v->source->bundle(v->source->ctx, index, s->width, &b);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
        return r;
    s->entries = r == KMS_OK ? b.n : 0;
    for (unsigned i = 0; i < s->entries; i++) {
        s->gone[i] = b.leaf[i] == NULL;
        s->number[i] = s->gone[i] ? b.entry[i] : entry_number(b.leaf[i], b.len[i]);
        if (s->gone[i])
            memset(s->entry[i], 0, MERKLE_LEN);
        else if ((r = merkle_leaf(s->entry[i], b.leaf[i], b.len[i])) != KMS_OK)
            return r;
    }
    r = v->source->tile(v->source->ctx, 0, index, s->width, s->tile, &s->tiles);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
        return r;
    whole = s->entries == s->width && !b.broken;
    s->clean = whole && s->tiles == s->width &&
               memcmp(s->entry, s->tile, (size_t)s->width * MERKLE_LEN) == 0;
    if (s->clean) {
        memcpy(s->best, s->tile, (size_t)s->width * MERKLE_LEN);
        return KMS_OK;
    }
    v->dirty = true;
    /* Two against one, where there is a third. */
    memcpy(s->best, s->tiles == s->width ? s->tile : s->entry, (size_t)s->width * MERKLE_LEN);
    if (s->width == MERKLE_TILE && whole && s->tiles == s->width &&
        (node = stored_node(v, 1, index)) != NULL) {
        if ((r = root_of_tile((const unsigned char(*)[MERKLE_LEN])s->entry, root)) != KMS_OK)
            return r;
        if (memcmp(root, node, MERKLE_LEN) == 0)
            memcpy(s->best, s->entry, (size_t)s->width * MERKLE_LEN);
    }
    return v->err;
}

/* --- a checkpoint is reached --- */

enum view { VIEW_BEST, VIEW_ENTRIES, VIEW_TILES };

static const unsigned char (*view_of(const struct segment *s, enum view view))[MERKLE_LEN]
{
    return (const unsigned char(*)[MERKLE_LEN])(view == VIEW_ENTRIES ? s->entry
                                                : view == VIEW_TILES ? s->tile
                                                                     : s->best);
}

/* The tree at size as one view has it, from the last good checkpoint on. */
static int
replay(struct verifier *v, enum view view, uint64_t size, struct merkle *out, merkle_node_cb *cb)
{
    int r = KMS_OK;

    *out = v->good;
    for (size_t k = 0; k < v->n_segments && r == KMS_OK; k++) {
        const struct segment *s = &v->segments[k];

        for (unsigned i = s->from; i < s->width && out->size < size && r == KMS_OK; i++)
            r = merkle_append(out, view_of(s, view)[i], cb, v);
    }
    return r;
}

/* What is behind a checkpoint need not be looked at again. */
static void
forget(struct verifier *v, uint64_t size)
{
    size_t keep = 0;

    for (size_t k = 0; k < v->n_segments; k++) {
        struct segment *s = &v->segments[k];

        if (s->index * MERKLE_TILE + s->width <= size)
            continue;
        if (s->index * MERKLE_TILE < size)
            s->from = (unsigned)(size - s->index * MERKLE_TILE);
        if (s->clean)
            s->entry_from = s->from;
        if (keep != k)
            v->segments[keep] = *s;
        keep++;
    }
    v->n_segments = keep;
    v->dirty = false;
    for (size_t k = 0; k < keep; k++)
        v->dirty = v->dirty || !v->segments[k].clean;
}

/* What is stored, whatever the leaves are now: tiles above, and the leaves' own tiles for the rest.
 */
static int
read_stored(void *ctx, unsigned level, uint64_t index, unsigned char out[MERKLE_LEN])
{
    struct verifier *v = ctx;
    const unsigned char *stored;

    if (level > 0) {
        if ((stored = stored_node(v, level, index)) == NULL)
            return v->err != KMS_OK ? v->err : KMS_ERR_NOT_FOUND;
        memcpy(out, stored, MERKLE_LEN);
        return KMS_OK;
    }
    for (size_t k = v->n_segments; k-- > 0;) {
        const struct segment *s = &v->segments[k];

        if (s->index == index / MERKLE_TILE) {
            memcpy(out, s->best[index % MERKLE_TILE], MERKLE_LEN);
            return KMS_OK;
        }
    }
    return KMS_ERR_NOT_FOUND;
}

/* What the leaf says that stands there now, of those since the last good checkpoint; 0: nothing. */
static uint64_t
number_at(const struct verifier *v, uint64_t leaf)
{
    for (size_t k = 0; k < v->n_segments; k++) {
        const struct segment *s = &v->segments[k];

        if (s->index == leaf / MERKLE_TILE)
            return leaf % MERKLE_TILE < s->entries ? s->number[leaf % MERKLE_TILE] : 0;
    }
    return 0;
}

/* Entry and tile were changed alike; the node above them was not. */
static int
name_tiles(struct verifier *v, uint64_t size)
{
    unsigned char root[MERKLE_LEN];
    const unsigned char *stored;
    int r = KMS_OK;

    for (size_t k = 0; k < v->n_segments && r == KMS_OK; k++) {
        const struct segment *s = &v->segments[k];
        uint64_t base = s->index * MERKLE_TILE;

        if (s->width < MERKLE_TILE || base + MERKLE_TILE > size ||
            (stored = stored_node(v, 1, s->index)) == NULL)
            continue;
        r = root_of_tile(view_of(s, VIEW_BEST), root);
        if (r == KMS_OK && memcmp(root, stored, MERKLE_LEN) != 0)
            tell_entries(v, AUDIT_SPAN, base, base + MERKLE_TILE - 1, "with their hashes",
                         AUDIT_SAYS, number_at(v, base), number_at(v, base + MERKLE_TILE - 1));
    }
    return r;
}

static int
at_checkpoint(struct verifier *v, const struct signed_root *c)
{
    static const enum view views[] = {VIEW_BEST, VIEW_ENTRIES, VIEW_TILES};
    unsigned char root[MERKLE_LEN];
    struct merkle tree;
    size_t view = 0;
    bool right = false;
    int r;

    if ((r = merkle_root(&v->tree, root)) != KMS_OK)
        return r;
    if (!v->dirty && memcmp(root, c->root, MERKLE_LEN) == 0) {
        tell_doubts(v);
        v->good = v->tree;
        v->lost = false;
        forget(v, c->size);
        return KMS_OK;
    }
    for (size_t i = 0; i < 3 && !right; i++) {
        if ((r = replay(v, views[i], c->size, &tree, NULL)) != KMS_OK ||
            (r = merkle_root(&tree, root)) != KMS_OK)
            return r;
        right = tree.size == c->size && memcmp(root, c->root, MERKLE_LEN) == 0;
        view = right ? i : 0;
    }
    v->n_pending = 0;
    if (right) {
        /* Now the tiles above can be judged by the right leaves. */
        if ((r = replay(v, views[view], c->size, &tree, check_node)) != KMS_OK)
            return r;
        tell_doubts(v);
        v->lost = false;
    } else {
        r = merkle_load(&tree, c->size, read_stored, v);
        if (r == KMS_OK)
            r = merkle_root(&tree, root);
        if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
            return r;
        if (r == KMS_OK && memcmp(root, c->root, MERKLE_LEN) == 0) {
            if ((r = name_tiles(v, c->size)) != KMS_OK)
                return r;
            v->lost = false;
        } else {
            if (!v->lost)
                tell_entries(
                    v, AUDIT_SPAN, v->good.size, c->size > 0 ? c->size - 1 : 0,
                    "with all hashes that could tell which; what comes after cannot be judged",
                    AUDIT_SAYS, number_at(v, v->good.size),
                    c->size > 0 ? number_at(v, c->size - 1) : 0);
            v->lost = true;
            tree = v->tree;
        }
        v->n_pending = 0;
    }
    /* When nothing makes the root, what differs among the copies is told all the same, as the most
     * likely. */
    for (size_t k = 0; k < v->n_segments; k++) {
        struct segment *s = &v->segments[k];
        uint64_t base = s->index * MERKLE_TILE;
        unsigned upto = c->size - base < s->width ? (unsigned)(c->size - base) : s->width;

        if (s->clean)
            continue;
        if (!s->ended)
            name_differences(v, s, view_of(s, views[view]), upto);
        if (s->told)
            continue;
        s->told = s->tiles < s->width || memcmp(s->tile[s->from], view_of(s, views[view])[s->from],
                                                (size_t)(upto - s->from) * MERKLE_LEN) != 0;
        if (s->told)
            tell(v, AUDIT_TILE, s->index, s->index, 0, "has a wrong hash, or is missing");
    }
    v->good = v->tree = tree;
    forget(v, c->size);
    return KMS_OK;
}

int
audit_verify(const struct audit_source *source, const struct note_key *key,
             const struct checkpoint *at_least,
             void (*found)(void *ctx, const struct audit_finding *f), void *ctx,
             struct audit_report *report)
{
    struct verifier *v = calloc(1, sizeof(*v));
    size_t next = 0;
    int r;

    memset(report, 0, sizeof(*report));
    report->time = -1;
    if (v == NULL)
        return KMS_ERR_NOMEM;
    v->source = source;
    v->key = key;
    v->found = found;
    v->ctx = ctx;
    v->report = report;
    if ((r = read_checkpoints(v)) != KMS_OK || (r = take_known(v, at_least)) != KMS_OK)
        goto out;
    while (next < v->n_roots && v->roots[next].size == 0) {
        if ((r = at_checkpoint(v, &v->roots[next++])) != KMS_OK)
            goto out;
    }
    for (uint64_t index = 0; index * MERKLE_TILE < v->size && r == KMS_OK; index++) {
        struct segment *s = segment_new(v);
        unsigned width;

        if (s == NULL) {
            r = KMS_ERR_NOMEM;
            break;
        }
        if ((r = load(v, s, index)) != KMS_OK)
            break;
        width = s->width;
        for (unsigned i = 0; i < width && r == KMS_OK; i++) {
            /* A checkpoint may have moved the segment. */
            s = &v->segments[v->n_segments - 1];
            r = merkle_append(&v->tree, s->best[i], check_node, v);
            while (r == KMS_OK && next < v->n_roots && v->roots[next].size == v->tree.size)
                r = at_checkpoint(v, &v->roots[next++]);
        }
    }
    report->size = v->tree.size;
out:
    free(v->roots);
    free(v->segments);
    free(v);
    return r;
}
