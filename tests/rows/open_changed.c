/*
 * open_changed.c - rows of the database, each with something in it that is not as it was: hsmd must
 * open none.
 *
 *   open_changed SOCKET [--count N] [--seconds N] [--seed N] <ROWS
 *
 * A line of ROWS, all but numbers and names as hexadecimal digits:
 *
 *   key KIND ORG ID GENERATION BLOB VALUE    a row that opens; KIND content, recording, channel or
 *                                            sentinel; VALUE what is in it, or -
 *   wrapping ORG GENERATION ROOT WRAPPED     what it is under
 *   former ORG GENERATION ROOT WRAPPED       what the database had before, under a root that was
 *                                            destroyed since
 *   top ID                                   a root, main or period key that the token has
 *
 * Changes are random; the same seed makes the same ones of the same rows.  Ends after N changed
 * rows, or the first ones of N seconds.  Unchanged rows are among them and must open with the right
 * value; all of them are opened before and after.  The last line is "N passed, N failed": a changed
 * row is one check, and so is an unchanged one.
 */
#include <event2/event.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/hsm.h"
#include "proto/err.h"

#define READY_S     10
#define DEADLINE_MS 60000
#define WINDOW      4096 /* rows under way */
#define SAME_ONE_OF 100  /* of these, one row is not changed */
#define TRIES       200  /* to find a row that a change can be made to */
#define SHOWN       20   /* failures that are described; all are counted */

enum kind { CONTENT, RECORDING, CHANNEL, SENTINEL, KINDS };
static const char *const kind_names[KINDS] = {"content", "recording", "channel", "sentinel"};

/* What hsmd is asked to open. */
struct attempt {
    struct hsm_wrapping_key wk;
    enum hsm_purpose purpose;
    unsigned char id[HSM_ID_LEN];
    unsigned char blob[HSM_BLOB_LEN];
};

struct key {
    enum kind kind;
    unsigned char value[HSM_KEY_LEN];
    bool known; /* is value */
    struct attempt row;
    const struct key *version; /* the same key sealed under another generation, or NULL */
};

#define PACKED_LEN (3 * HSM_ID_LEN + HSM_WRAPPED_LEN + HSM_BLOB_LEN + 5)

static struct key *keys;
static struct hsm_wrapping_key *wrappings, *formers;
static unsigned char (*tops)[HSM_ID_LEN];
static unsigned char (*genuine)[PACKED_LEN]; /* sorted: every row that may open */
static size_t n_keys, n_wrappings, n_formers, n_tops;

static struct event_base *base;
static struct hsm *hsm;
static uint64_t passed, failed, seed, state;

static void
give_up(const char *why)
{
    fprintf(stderr, "open_changed: %s\n", why);
    exit(2);
}

/* --- chance: splitmix64, which any seed will do for --- */

static uint64_t
chance(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static size_t
below(size_t n)
{
    return (size_t)(chance() % n);
}

static void
noise(unsigned char *p, size_t len)
{
    while (len-- > 0)
        *p++ = (unsigned char)chance();
}

static void
flip(unsigned char *p, size_t len, size_t bits)
{
    while (bits-- > 0) {
        size_t bit = below(8 * len);

        p[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
}

/* --- rows --- */

static bool
same_id(const unsigned char *a, const unsigned char *b)
{
    return memcmp(a, b, HSM_ID_LEN) == 0;
}

/* NULL: the organisation has no such generation. */
static const struct hsm_wrapping_key *
wrapping_of(const unsigned char *org, uint32_t generation)
{
    for (size_t i = 0; i < n_wrappings; i++)
        if (wrappings[i].generation == generation && same_id(wrappings[i].org, org))
            return &wrappings[i];
    return NULL;
}

static void
pack(unsigned char out[PACKED_LEN], const struct attempt *a)
{
    unsigned char *p = out;

    memcpy(p, a->wk.root, HSM_ID_LEN);
    memcpy(p += HSM_ID_LEN, a->wk.org, HSM_ID_LEN);
    memcpy(p += HSM_ID_LEN, a->id, HSM_ID_LEN);
    memcpy(p += HSM_ID_LEN, a->wk.wrapped, HSM_WRAPPED_LEN);
    memcpy(p += HSM_WRAPPED_LEN, a->blob, HSM_BLOB_LEN);
    p += HSM_BLOB_LEN;
    memcpy(p, &a->wk.generation, 4);
    p[4] = (unsigned char)a->purpose;
}

static int
packed_order(const void *a, const void *b)
{
    return memcmp(a, b, PACKED_LEN);
}

static bool
is_genuine(const struct attempt *a)
{
    unsigned char p[PACKED_LEN];

    pack(p, a);
    return bsearch(p, genuine, n_keys, PACKED_LEN, packed_order) != NULL;
}

static void
read_hex(unsigned char *out, size_t len, const char *text)
{
    size_t n;

    if (OPENSSL_hexstr2buf_ex(out, len, &n, text, '\0') != 1 || n != len) {
        fprintf(stderr, "open_changed: \"%s\" is not %zu bytes in hexadecimal digits\n", text, len);
        exit(2);
    }
}

/* One more of a list. */
static void *
another(void *list, size_t *n, size_t size)
{
    unsigned char *p = realloc(list, (*n + 1) * size);

    if (p == NULL)
        give_up("out of memory");
    memset(p + *n * size, 0, size);
    ++*n;
    return p;
}

static void
read_wrapping(struct hsm_wrapping_key *wk, const char *line)
{
    char org[64], root[64], wrapped[128];

    if (sscanf(line, "%*s %63s %u %63s %127s", org, &wk->generation, root, wrapped) != 4)
        give_up("a wrapping key's line is not understood");
    read_hex(wk->org, HSM_ID_LEN, org);
    read_hex(wk->root, HSM_ID_LEN, root);
    read_hex(wk->wrapped, HSM_WRAPPED_LEN, wrapped);
}

static void
read_key(struct key *k, const char *line)
{
    char kind[16], org[64], id[64], blob[256], value[128];

    if (sscanf(line, "%*s %15s %63s %63s %u %255s %127s", kind, org, id, &k->row.wk.generation,
               blob, value) != 6)
        give_up("a key's line is not understood");
    for (k->kind = CONTENT; strcmp(kind, kind_names[k->kind]) != 0; k->kind++)
        if (k->kind == SENTINEL)
            give_up("a key's kind is not known");
    k->row.purpose = k->kind == CHANNEL    ? HSM_CHANNEL_KEY
                     : k->kind == SENTINEL ? HSM_SENTINEL
                                           : HSM_CONTENT_KEY;
    read_hex(k->row.wk.org, HSM_ID_LEN, org);
    read_hex(k->row.id, HSM_ID_LEN, id);
    read_hex(k->row.blob, HSM_BLOB_LEN, blob);
    k->known = strcmp(value, "-") != 0;
    if (k->known)
        read_hex(k->value, HSM_KEY_LEN, value);
}

static void
read_rows(void)
{
    const struct hsm_wrapping_key *wk;
    char line[1024], id[64];
    size_t i, j;

    while (fgets(line, sizeof(line), stdin) != NULL) {
        if (strncmp(line, "key ", 4) == 0) {
            keys = another(keys, &n_keys, sizeof(*keys));
            read_key(&keys[n_keys - 1], line);
        } else if (strncmp(line, "wrapping ", 9) == 0) {
            wrappings = another(wrappings, &n_wrappings, sizeof(*wrappings));
            read_wrapping(&wrappings[n_wrappings - 1], line);
        } else if (strncmp(line, "former ", 7) == 0) {
            formers = another(formers, &n_formers, sizeof(*formers));
            read_wrapping(&formers[n_formers - 1], line);
        } else if (sscanf(line, "top %63s", id) == 1) {
            tops = another(tops, &n_tops, sizeof(*tops));
            read_hex(tops[n_tops - 1], HSM_ID_LEN, id);
        } else {
            give_up("a line is not understood");
        }
    }
    if (n_keys == 0 || n_wrappings == 0 || (genuine = calloc(n_keys, PACKED_LEN)) == NULL)
        give_up("there are no rows");
    for (i = 0; i < n_keys; i++) {
        struct attempt *a = &keys[i].row;

        if ((wk = wrapping_of(a->wk.org, a->wk.generation)) == NULL)
            give_up("a key's wrapping key is missing");
        a->wk = *wk;
        for (j = 0; j < n_keys && keys[i].version == NULL; j++)
            if (i != j && keys[j].kind == keys[i].kind && same_id(keys[j].row.id, a->id))
                keys[i].version = &keys[j];
    }
    for (i = 0; i < n_keys; i++)
        pack(genuine[i], &keys[i].row);
    qsort(genuine, n_keys, PACKED_LEN, packed_order);
}

/* --- changes --- */

/* Other keys, by what they have in common with this one. */
enum likeness {
    SAME_GENERATION,  /* of the organisation, and kind */
    OTHER_GENERATION, /* of the organisation */
    OTHER_ORG,
    OTHER_KIND /* of the organisation */
};

static const struct key *
other_key(const struct key *k, enum likeness like)
{
    const struct key *o;
    bool org, generation;

    for (int i = 0; i < TRIES; i++) {
        o = &keys[below(n_keys)];
        org = same_id(o->row.wk.org, k->row.wk.org);
        generation = o->row.wk.generation == k->row.wk.generation;
        if (!same_id(o->row.id, k->row.id) &&
            ((like == SAME_GENERATION && org && generation && o->kind == k->kind) ||
             (like == OTHER_GENERATION && org && !generation) || (like == OTHER_ORG && !org) ||
             (like == OTHER_KIND && org && o->kind != k->kind)))
            return o;
    }
    return NULL;
}

/* Another wrapping key: of the organisation, or of another one. */
static const struct hsm_wrapping_key *
other_wrapping(const struct key *k, bool of_org)
{
    const struct hsm_wrapping_key *w;

    for (int i = 0; i < TRIES; i++) {
        w = &wrappings[below(n_wrappings)];
        if (same_id(w->org, k->row.wk.org) == of_org &&
            (!of_org || w->generation != k->row.wk.generation))
            return w;
    }
    return NULL;
}

/* Each changes a, which is k's row.  false: not possible with this row. */
typedef bool change_fn(struct attempt *a, const struct key *k);

static bool
flip_format(struct attempt *a, const struct key *k)
{
    flip(a->blob, 1, 1);
    return true;
}

static bool
flip_nonce(struct attempt *a, const struct key *k)
{
    flip(a->blob + 1, 12, 1);
    return true;
}

static bool
flip_ciphertext(struct attempt *a, const struct key *k)
{
    flip(a->blob + 13, HSM_KEY_LEN, 1);
    return true;
}

static bool
flip_tag(struct attempt *a, const struct key *k)
{
    flip(a->blob + 45, 16, 1);
    return true;
}

static bool
flip_blob(struct attempt *a, const struct key *k)
{
    flip(a->blob, HSM_BLOB_LEN, 2 + below(30));
    return true;
}

static bool
cut_blob(struct attempt *a, const struct key *k)
{
    size_t len = below(HSM_BLOB_LEN);

    memset(a->blob + len, 0, HSM_BLOB_LEN - len);
    return true;
}

static bool
lose_byte(struct attempt *a, const struct key *k)
{
    size_t at = below(HSM_BLOB_LEN);

    memmove(a->blob + at, a->blob + at + 1, HSM_BLOB_LEN - at - 1);
    noise(a->blob + HSM_BLOB_LEN - 1, 1);
    return true;
}

static bool
gain_byte(struct attempt *a, const struct key *k)
{
    size_t at = below(HSM_BLOB_LEN);

    memmove(a->blob + at + 1, a->blob + at, HSM_BLOB_LEN - at - 1);
    noise(a->blob + at, 1);
    return true;
}

static bool
noise_blob(struct attempt *a, const struct key *k)
{
    noise(a->blob + 1, HSM_BLOB_LEN - 1);
    return true;
}

/* One part of another key's blob, of whichever organisation. */
static bool
splice(struct attempt *a, const struct key *k)
{
    static const struct {
        size_t at, len;
    } parts[] = {
        {1, 12}, {13, HSM_KEY_LEN}, {45, 16}, {1, 12 + HSM_KEY_LEN}, {13, HSM_KEY_LEN + 16}};
    size_t p = below(sizeof(parts) / sizeof(parts[0]));

    memcpy(a->blob + parts[p].at, keys[below(n_keys)].row.blob + parts[p].at, parts[p].len);
    return true;
}

static bool
take_blob(struct attempt *a, const struct key *other)
{
    if (other == NULL)
        return false;
    memcpy(a->blob, other->row.blob, HSM_BLOB_LEN);
    return true;
}

static bool
swap_in_generation(struct attempt *a, const struct key *k)
{
    return take_blob(a, other_key(k, SAME_GENERATION));
}

static bool
swap_generations(struct attempt *a, const struct key *k)
{
    return take_blob(a, other_key(k, OTHER_GENERATION));
}

static bool
swap_orgs(struct attempt *a, const struct key *k)
{
    return take_blob(a, other_key(k, OTHER_ORG));
}

static bool
swap_kinds(struct attempt *a, const struct key *k)
{
    return take_blob(a, other_key(k, OTHER_KIND));
}

/* All of another row but its id. */
static bool
move_id(struct attempt *a, const struct key *k)
{
    memcpy(a->id, keys[below(n_keys)].row.id, HSM_ID_LEN);
    return true;
}

static bool
flip_id(struct attempt *a, const struct key *k)
{
    flip(a->id, HSM_ID_LEN, 1);
    return true;
}

/* As if it had been another organisation's all the time, wrapping key included. */
static bool
move_org_whole(struct attempt *a, const struct key *k)
{
    const struct hsm_wrapping_key *w = other_wrapping(k, false);

    if (w == NULL)
        return false;
    memcpy(a->wk.org, w->org, HSM_ID_LEN);
    return true;
}

/* The key's row alone: what the join then finds is that organisation's wrapping key. */
static bool
move_org(struct attempt *a, const struct key *k)
{
    const struct hsm_wrapping_key *w = other_wrapping(k, false);

    if (w == NULL)
        return false;
    a->wk = *w;
    return true;
}

static bool
flip_org(struct attempt *a, const struct key *k)
{
    flip(a->wk.org, HSM_ID_LEN, 1);
    return true;
}

static bool
other_number(struct attempt *a, const struct key *k)
{
    const struct hsm_wrapping_key *w = other_wrapping(k, true);

    /* Both one that there is, and any. */
    a->wk.generation = w != NULL && below(2) == 0 ? w->generation : (uint32_t)chance();
    return true;
}

static bool
move_generation(struct attempt *a, const struct key *k)
{
    const struct hsm_wrapping_key *w = other_wrapping(k, true);

    if (w == NULL)
        return false;
    a->wk = *w;
    return true;
}

#define MONTHS 1000000000 /* generations from here on are months */

static bool
move_month(struct attempt *a, const struct key *k)
{
    const struct hsm_wrapping_key *w = other_wrapping(k, true);

    if (w == NULL || w->generation < MONTHS || k->row.wk.generation < MONTHS)
        return false;
    a->wk = *w;
    return true;
}

/* The wrapping keys of two months change places, their numbers stay; or only what wraps them. */
static bool
swap_months(struct attempt *a, const struct key *k)
{
    const struct hsm_wrapping_key *w = other_wrapping(k, true);

    if (w == NULL || w->generation < MONTHS || k->row.wk.generation < MONTHS)
        return false;
    memcpy(a->wk.root, w->root, HSM_ID_LEN);
    if (below(2) == 0)
        memcpy(a->wk.wrapped, w->wrapped, HSM_WRAPPED_LEN);
    return true;
}

static bool
flip_wrapped(struct attempt *a, const struct key *k)
{
    flip(a->wk.wrapped, HSM_WRAPPED_LEN, 1);
    return true;
}

static bool
flip_wrapped_often(struct attempt *a, const struct key *k)
{
    flip(a->wk.wrapped, HSM_WRAPPED_LEN, 2 + below(30));
    return true;
}

static bool
cut_wrapped(struct attempt *a, const struct key *k)
{
    size_t len = below(HSM_WRAPPED_LEN);

    memset(a->wk.wrapped + len, 0, HSM_WRAPPED_LEN - len);
    return true;
}

static bool
noise_wrapped(struct attempt *a, const struct key *k)
{
    noise(a->wk.wrapped, HSM_WRAPPED_LEN);
    return true;
}

static bool
take_wrapping(struct attempt *a, const struct hsm_wrapping_key *w)
{
    if (w == NULL)
        return false;
    memcpy(a->wk.wrapped, w->wrapped, HSM_WRAPPED_LEN);
    if (below(2) == 0)
        memcpy(a->wk.root, w->root, HSM_ID_LEN);
    return true;
}

static bool
swap_wrapping_generations(struct attempt *a, const struct key *k)
{
    return take_wrapping(a, other_wrapping(k, true));
}

static bool
swap_wrapping_orgs(struct attempt *a, const struct key *k)
{
    return take_wrapping(a, other_wrapping(k, false));
}

static bool
other_root(struct attempt *a, const struct key *k)
{
    memcpy(a->wk.root, tops[below(n_tops)], HSM_ID_LEN);
    return true;
}

static bool
flip_root(struct attempt *a, const struct key *k)
{
    flip(a->wk.root, HSM_ID_LEN, 1);
    return true;
}

static bool
other_purpose(struct attempt *a, const struct key *k)
{
    a->purpose = HSM_CONTENT_KEY + (enum hsm_purpose)below(3);
    return true;
}

/* Before and after its wrapping key was replaced: one's blob with the other's generation. */
static bool
mix_versions(struct attempt *a, const struct key *k)
{
    return take_blob(a, k->version);
}

/* The wrapping key's row as it was before it was re-wrapped, whole or one column of it. */
static bool
replay(struct attempt *a, const struct key *k)
{
    for (size_t i = 0; i < n_formers; i++) {
        const struct hsm_wrapping_key *f = &formers[i];
        size_t what = below(3);

        if (f->generation != k->row.wk.generation || !same_id(f->org, k->row.wk.org))
            continue;
        if (what != 1)
            memcpy(a->wk.root, f->root, HSM_ID_LEN);
        if (what != 2)
            memcpy(a->wk.wrapped, f->wrapped, HSM_WRAPPED_LEN);
        return true;
    }
    return false;
}

static const struct {
    const char *name;
    change_fn *make;
} changes[] = {
    {"a bit of the format", flip_format},
    {"a bit of the nonce", flip_nonce},
    {"a bit of the ciphertext", flip_ciphertext},
    {"a bit of the tag", flip_tag},
    {"several bits of the blob", flip_blob},
    {"a blob cut short", cut_blob},
    {"a blob that lost a byte", lose_byte},
    {"a blob with a byte more", gain_byte},
    {"noise for a blob", noise_blob},
    {"nonce, ciphertext or tag of another", splice},
    {"the blob of another key", swap_in_generation},
    {"the blob of another generation's", swap_generations},
    {"the blob of another organisation's", swap_orgs},
    {"the blob of another kind", swap_kinds},
    {"the id of another", move_id},
    {"a bit of the id", flip_id},
    {"moved to another organisation", move_org},
    {"moved there with its wrapping key", move_org_whole},
    {"a bit of the organisation", flip_org},
    {"another generation's number", other_number},
    {"moved to another generation", move_generation},
    {"moved to another month", move_month},
    {"two months' wrapping keys swapped", swap_months},
    {"a bit of the wrapping key", flip_wrapped},
    {"several bits of the wrapping key", flip_wrapped_often},
    {"a wrapping key cut short", cut_wrapped},
    {"noise for a wrapping key", noise_wrapped},
    {"another generation's wrapping key", swap_wrapping_generations},
    {"another organisation's wrapping key", swap_wrapping_orgs},
    {"another root, main or period key", other_root},
    {"a bit of the root", flip_root},
    {"another purpose", other_purpose},
    {"old blob, new generation, or reverse", mix_versions},
    {"the wrapping key of before", replay},
};
#define CHANGES (sizeof(changes) / sizeof(changes[0]))

static struct {
    uint64_t tried, crypto, not_found, wrong;
} tally[CHANGES];

/* --- opening --- */

enum verdict {
    REFUSED,
    OPENED_RIGHT, /* with the value that the row's key has */
    OPENED_OTHER,
    UNANSWERED
};

struct result {
    struct attempt a;
    const struct key *k;
    size_t change; /* CHANGES: none */
    int err;
    enum verdict verdict;
};

static struct result window[WINDOW];
static size_t waiting;

/* value: NULL unless it opened. */
static enum verdict
judge(const struct key *k, int err, const unsigned char *value)
{
    if (err == KMS_OK && value != NULL)
        return !k->known || CRYPTO_memcmp(value, k->value, HSM_KEY_LEN) == 0 ? OPENED_RIGHT
                                                                             : OPENED_OTHER;
    return err == KMS_ERR_CRYPTO || err == KMS_ERR_NOT_FOUND ? REFUSED : UNANSWERED;
}

static void
opened(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *value,
       const unsigned char *blob)
{
    struct result *r = &window[id];

    r->err = err;
    r->verdict = judge(r->k, err, value);
    if (--waiting == 0)
        event_base_loopbreak(base);
}

static void
open_window(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct result *r = &window[i];

        if (hsm_unwrap(hsm, &r->a.wk, r->a.purpose, r->a.id, r->a.blob, opened, NULL, i, 0) !=
            KMS_OK)
            give_up("an item was not taken");
        waiting++;
    }
    while (waiting > 0)
        event_base_dispatch(base);
}

static void
wrong(const struct result *r)
{
    static const char *const texts[] = {"is refused", "opens", "opens as another key", ""};
    char *id = OPENSSL_buf2hexstr(r->k->row.id, HSM_ID_LEN);

    if (failed++ < SHOWN)
        printf("FAIL %s: a %s key, %s, %s%s (seed %llu)\n",
               r->change == CHANGES ? "unchanged" : changes[r->change].name, kind_names[r->k->kind],
               id != NULL ? id : "", texts[r->verdict],
               r->verdict == UNANSWERED ? kms_strerror(r->err) : "", (unsigned long long)seed);
    OPENSSL_free(id);
}

/* Is the row what it should be, as far as this one can be counted on? */
static void
count(const struct result *r)
{
    bool as_wanted = r->verdict == (r->change == CHANGES ? OPENED_RIGHT : REFUSED);

    if (r->change < CHANGES) {
        tally[r->change].tried++;
        tally[r->change].crypto += r->err == KMS_ERR_CRYPTO;
        tally[r->change].not_found += r->err == KMS_ERR_NOT_FOUND;
        tally[r->change].wrong += !as_wanted;
    }
    if (as_wanted)
        passed++;
    else
        wrong(r);
}

static void
unchanged(struct result *r, const struct key *k)
{
    *r = (struct result){.a = k->row, .k = k, .change = CHANGES};
}

/* Random rows until one takes this change and is another row than any that may open. */
static void
changed(struct result *r)
{
    for (;;) {
        r->change = below(CHANGES);
        for (int i = 0; i < TRIES; i++) {
            r->k = &keys[below(n_keys)];
            r->a = r->k->row;
            if (changes[r->change].make(&r->a, r->k) && !is_genuine(&r->a))
                return;
        }
    }
}

/* Every row as it stands. */
static void
open_all(const char *when)
{
    uint64_t before = failed;
    size_t done = 0, n, kinds[KINDS] = {0};

    while (done < n_keys) {
        for (n = 0; n < WINDOW && done < n_keys; n++) {
            unchanged(&window[n], &keys[done]);
            kinds[keys[done++].kind]++;
        }
        open_window(n);
        for (size_t i = 0; i < n; i++)
            count(&window[i]);
    }
    printf("%-4s %s: %zu rows open with the right value", failed == before ? "ok" : "FAIL", when,
           n_keys);
    for (size_t i = 0; i < KINDS; i++)
        printf("%s%zu %s", i == 0 ? " (" : ", ", kinds[i], kind_names[i]);
    puts(")");
}

static void
check(bool so, const char *what, size_t n)
{
    printf("%-4s %s: %zu rows\n", so ? "ok" : "FAIL", what, n);
    if (so)
        passed++;
    else
        failed++;
}

/* A change that changes nothing would be noticed, and so would a key that opens as another one. */
static void
prove_judge(void)
{
    unsigned char other[HSM_KEY_LEN];
    size_t i, noticed = 0, told = 0, known = 0, n = n_keys < WINDOW ? n_keys : WINDOW;

    for (i = 0; i < n; i++)
        unchanged(&window[i], &keys[i]);
    open_window(n);
    for (i = 0; i < n; i++)
        noticed += window[i].verdict == OPENED_RIGHT;
    for (i = 0; i < n_keys; i++) {
        memcpy(other, keys[i].value, HSM_KEY_LEN);
        flip(other, HSM_KEY_LEN, 1);
        known += keys[i].known;
        told += keys[i].known && judge(&keys[i], KMS_OK, other) == OPENED_OTHER;
    }
    check(noticed == n, "a change that is none would be noticed", n);
    check(known > 0 && told == known, "so would another value than the key's", known);
}

static double
seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void
open_changed(uint64_t want, double limit)
{
    double begun = seconds(), took;
    uint64_t done = 0, same = 0;
    size_t n;

    while (done < want && seconds() - begun < limit) {
        for (n = 0; n < WINDOW && done < want; n++) {
            if (below(SAME_ONE_OF) == 0) {
                unchanged(&window[n], &keys[below(n_keys)]);
                same++;
            } else {
                changed(&window[n]);
                done++;
            }
        }
        open_window(n);
        for (size_t i = 0; i < n; i++)
            count(&window[i]);
    }
    took = seconds() - begun;
    for (size_t i = 0; i < CHANGES; i++) {
        bool ok = tally[i].tried > 0 && tally[i].wrong == 0;

        printf("%-4s %s: %llu rows, %llu do not open, of %llu there is no key\n",
               ok ? "ok" : "FAIL", changes[i].name, (unsigned long long)tally[i].tried,
               (unsigned long long)tally[i].crypto, (unsigned long long)tally[i].not_found);
        if (tally[i].tried == 0) /* then the rows are not what this is for */
            failed++;
    }
    printf("     %llu changed rows, %llu unchanged ones among them: %.1f s, %.0f a second\n",
           (unsigned long long)done, (unsigned long long)same, took, (double)(done + same) / took);
}

static void
ready(void *ctx, bool is)
{
    if (is)
        event_base_loopbreak(base);
}

static void
too_late(evutil_socket_t fd, short what, void *arg)
{
    give_up("hsmd does not answer");
}

int
main(int argc, char **argv)
{
    struct timeval limit = {READY_S, 0};
    unsigned long long want = 100000, random = 0, longest = 3600;
    struct event *timer = NULL;

    if (RAND_bytes((unsigned char *)&random, sizeof(random)) != 1)
        give_up("no random seed");
    for (int i = 2; i < argc; i += 2) {
        unsigned long long *to = strcmp(argv[i], "--count") == 0     ? &want
                                 : strcmp(argv[i], "--seconds") == 0 ? &longest
                                 : strcmp(argv[i], "--seed") == 0    ? &random
                                                                     : NULL;
        char *end;

        if (to == NULL || i + 1 == argc)
            give_up("usage: open_changed SOCKET [--count N] [--seconds N] [--seed N] <ROWS");
        *to = strtoull(argv[i + 1], &end, 10);
        if (*end != '\0')
            give_up("not a number");
    }
    if (argc < 2)
        give_up("usage: open_changed SOCKET [--count N] [--seconds N] [--seed N] <ROWS");
    state = seed = random;
    printf("     seed %llu\n", (unsigned long long)seed);
    read_rows();
    if ((base = event_base_new()) == NULL ||
        (hsm = hsm_new(base, argv[1], HSM_USE, DEADLINE_MS)) == NULL ||
        (timer = evtimer_new(base, too_late, NULL)) == NULL)
        give_up("out of memory");
    hsm_on_change(hsm, ready, NULL);
    evtimer_add(timer, &limit);
    while (!hsm_ready(hsm))
        event_base_dispatch(base);
    event_free(timer);

    open_all("before");
    prove_judge();
    open_changed(want, (double)longest);
    open_all("after");
    hsm_free(hsm);
    event_base_free(base);
    free(keys);
    free(wrappings);
    free(formers);
    free(tops);
    free(genuine);
    printf("%llu passed, %llu failed\n", (unsigned long long)passed, (unsigned long long)failed);
    return failed == 0 ? 0 : 1;
}
