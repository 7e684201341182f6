/*
 * kmsctl_audit.c - the log for administrators and for those who check them: show, prove, export,
 * verify, check, cosign; and person erase.
 *
 * verify needs an export and a key and nothing else.  The other commands ask the server for the
 * resources of a tiled log and do the rest here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kms/audit_dir.h"
#include "kms/audit_verify.h"
#include "kms/kmsctl.h"
#include "kms/kmsctl_log.h"
#include "kms/table.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/merkle.h"
#include "proto/note.h"

#define ENTRIES_BATCH (8 * MERKLE_TILE)
#define HASHES_BATCH  (256 * MERKLE_TILE)
#define FINDINGS_MAX  1000 /* that are printed */
#define PROOF_HEAD    "c2sp.org/tlog-proof@v1\n"

/* Exit status of verify and check beside 0, 1, 2: the log cannot be read. */
#define EXIT_UNREADABLE EXIT_UNREACHABLE

/* A log of a server. */
struct remote {
    struct ctl *ctl;
    json_t *log;    /* owned: what audit.log said */
    const char *id; /* borrowed from it */
    const char *note;
    struct note_key key;
    struct checkpoint checkpoint;
    int status; /* exit status of a call that failed, when an answer was KMS_ERR_UNAVAILABLE */
    bool one;   /* nothing is read ahead: one proof is wanted */
    /* What was read ahead. */
    json_t *entries; /* owned: the last answer of audit.entries */
    uint64_t entries_first;
    struct buf hashes; /* of leaves */
    uint64_t hashes_first;
    json_t *notes; /* owned */
    size_t next_note;
    json_int_t notes_after;
    unsigned char tile[MERKLE_TILE][MERKLE_LEN]; /* for proofs: the last one */
    unsigned tile_n, tile_level;                 /* tile_n: hashes in it; 0: none */
    uint64_t tile_index;
};

/* --- a log of a server --- */

int
read_note_key(struct note_key *key, const char *text)
{
    char line[512];
    FILE *f;
    int r;

    if ((r = note_key_parse(key, text, strlen(text))) == KMS_OK)
        return KMS_OK;
    if ((f = fopen(text, "re")) == NULL) {
        complain("--key: \"%s\" is neither a verifier key (%s) nor a file", text, kms_strerror(r));
        return EXIT_USAGE;
    }
    if (fgets(line, sizeof(line), f) == NULL)
        line[0] = '\0';
    fclose(f);
    line[strcspn(line, " \t\r\n")] = '\0';
    if ((r = note_key_parse(key, line, strlen(line))) == KMS_OK)
        return KMS_OK;
    complain("--key: what stands in %s is no verifier key: %s", text, kms_strerror(r));
    return EXIT_USAGE;
}

static void
remote_close(struct remote *m)
{
    json_decref(m->log);
    json_decref(m->entries);
    json_decref(m->notes);
    buf_release(&m->hashes);
}

/* 0, or an exit status after complaining.  With a checkpoint, unless none was signed yet. */
static int
remote_open(struct remote *m, struct ctl *ctl, const char *org)
{
    const char *key;
    json_t *params = json_object();
    int status, r;

    memset(m, 0, sizeof(*m));
    m->ctl = ctl;
    m->notes_after = -1;
    if (org != NULL)
        json_object_set_new(params, "org", json_string(org));
    if ((status = ask(ctl, "audit.log", params, &m->log)) != 0)
        return status;
    m->id = json_string_value(json_object_get(m->log, "org"));
    m->note = json_string_value(json_object_get(m->log, "note"));
    key = json_string_value(json_object_get(m->log, "key"));
    if (ctl->key != NULL) {
        status = read_note_key(&m->key, ctl->key);
    } else if (key == NULL || note_key_parse(&m->key, key, strlen(key)) != KMS_OK) {
        complain("the server does not know its audit key: is the HSM away?");
        status = EXIT_REFUSED;
    }
    if (status == 0 && m->note == NULL) {
        complain("the log has no checkpoint yet; try again in a few seconds");
        status = EXIT_REFUSED;
    }
    if (status == 0 &&
        (r = audit_checkpoint_open(&m->checkpoint, m->note, strlen(m->note), &m->key)) != KMS_OK) {
        complain("the newest checkpoint is not by that key: %s", kms_strerror(r));
        status = EXIT_REFUSED;
    }
    if (status != 0)
        remote_close(m);
    return status;
}

static int
remote_ask(struct remote *m, const char *method, json_t *params, json_t **result)
{
    json_object_set_new(params, "log", json_string(m->id));
    m->status = ask(m->ctl, method, params, result);
    return m->status == 0 ? KMS_OK : KMS_ERR_UNAVAILABLE;
}

/* Leaf number index, borrowed until the next call; *leaf NULL: its entry is gone.  NOT_FOUND: there
 * is no such leaf. */
static int
remote_leaf(struct remote *m, uint64_t index, const char **leaf, json_int_t *entry)
{
    json_t *leaves = json_object_get(m->entries, "leaves");
    int r;

    if (m->entries == NULL || index < m->entries_first ||
        index >= m->entries_first + json_array_size(leaves)) {
        json_decref(m->entries);
        m->entries = NULL;
        m->entries_first = m->one ? index : index / MERKLE_TILE * MERKLE_TILE;
        r = remote_ask(m, "audit.entries",
                       json_pack("{s:I, s:i}", "first", (json_int_t)m->entries_first, "limit",
                                 m->one ? 1 : ENTRIES_BATCH),
                       &m->entries);
        if (r != KMS_OK)
            return r;
        leaves = json_object_get(m->entries, "leaves");
    }
    index -= m->entries_first;
    if (index >= json_array_size(leaves))
        return KMS_ERR_NOT_FOUND;
    *leaf = json_string_value(json_array_get(leaves, index));
    if (entry != NULL)
        *entry = json_integer_value(json_array_get(json_object_get(m->entries, "entries"), index));
    return KMS_OK;
}

/* Hashes of a level from one on; *n: how many there are. */
static int
remote_hashes(struct remote *m, unsigned level, uint64_t first, unsigned limit, struct buf *out)
{
    json_t *result;
    const char *text;
    int r = remote_ask(m, "audit.tiles",
                       json_pack("{s:i, s:I, s:i}", "level", (int)level, "first", (json_int_t)first,
                                 "limit", (int)limit),
                       &result);

    if (r != KMS_OK)
        return r;
    buf_reset(out);
    text = json_string_value(json_object_get(result, "hashes"));
    r = text != NULL ? b64_get(out, text, strlen(text)) : KMS_ERR_PROTOCOL;
    if (r == KMS_OK && out->len % MERKLE_LEN != 0)
        r = KMS_ERR_PROTOCOL;
    json_decref(result);
    return r;
}

static int
remote_bundle(void *ctx, uint64_t index, unsigned width, struct audit_bundle *out)
{
    struct remote *m = ctx;
    int r = KMS_OK;

    out->n = 0;
    out->broken = false;
    /* An answer holds whole bundles, unless there are no more: what is borrowed stays. */
    for (unsigned i = 0; i < width; i++) {
        const char *leaf;
        json_int_t entry;

        if (i > 0 && index * MERKLE_TILE + i >=
                         m->entries_first + json_array_size(json_object_get(m->entries, "leaves")))
            break;
        r = remote_leaf(m, index * MERKLE_TILE + i, &leaf, &entry);
        if (r != KMS_OK)
            break;
        out->entry[out->n] = entry > 0 ? (uint64_t)entry : 0;
        out->leaf[out->n] = leaf;
        out->len[out->n++] = leaf != NULL ? strlen(leaf) : 0;
    }
    return r;
}

static int
remote_tile(void *ctx, unsigned level, uint64_t index, unsigned width,
            unsigned char out[MERKLE_TILE][MERKLE_LEN], unsigned *n)
{
    struct remote *m = ctx;
    struct buf some = BUF_INIT, *from = &some;
    uint64_t first = index * MERKLE_TILE, have;
    int r = KMS_OK;

    *n = 0;
    if (level > 0) {
        r = remote_hashes(m, level, first, width, &some);
        have = 0;
    } else {
        from = &m->hashes;
        if (first < m->hashes_first || first + width > m->hashes_first + from->len / MERKLE_LEN) {
            m->hashes_first = first;
            r = remote_hashes(m, 0, first, m->one ? width : HASHES_BATCH, from);
        }
        have = first - m->hashes_first;
    }
    if (r == KMS_OK && from->len / MERKLE_LEN > have) {
        uint64_t there = from->len / MERKLE_LEN - have;

        *n = there < width ? (unsigned)there : width;
        memcpy(out, from->data + have * MERKLE_LEN, (size_t)*n * MERKLE_LEN);
    }
    buf_release(&some);
    return r;
}

static int
remote_checkpoint(void *ctx, struct buf *out)
{
    struct remote *m = ctx;

    return buf_puts(out, m->note);
}

/* The next checkpoint, borrowed; NULL after the last. */
static int
remote_next_note(struct remote *m, const char **note, json_int_t *size)
{
    json_t *list = json_object_get(m->notes, "notes"), *last;
    int r;

    *note = NULL;
    if (m->notes == NULL || m->next_note == json_array_size(list)) {
        if (m->notes != NULL && json_array_size(list) == 0)
            return KMS_OK;
        if (m->notes != NULL) {
            last = json_array_get(list, json_array_size(list) - 1);
            m->notes_after = json_integer_value(json_object_get(last, "size"));
        }
        json_decref(m->notes);
        m->notes = NULL;
        m->next_note = 0;
        r = remote_ask(m, "audit.notes", json_pack("{s:I}", "after", m->notes_after), &m->notes);
        if (r != KMS_OK)
            return r;
        list = json_object_get(m->notes, "notes");
        if (json_array_size(list) == 0)
            return KMS_OK;
    }
    last = json_array_get(list, m->next_note++);
    *note = json_string_value(json_object_get(last, "note"));
    *size = json_integer_value(json_object_get(last, "size"));
    return *note != NULL ? KMS_OK : KMS_ERR_PROTOCOL;
}

static int
remote_next_checkpoint(void *ctx, struct buf *out)
{
    const char *note;
    json_int_t size;
    int r = remote_next_note(ctx, &note, &size);

    if (r != KMS_OK)
        return r;
    return note != NULL ? buf_puts(out, note) : KMS_ERR_NOT_FOUND;
}

/* A hash that a tile holds, for proofs. */
static int
remote_node(void *ctx, unsigned level, uint64_t index, unsigned char out[MERKLE_LEN])
{
    struct remote *m = ctx;
    int r;

    if (m->tile_n == 0 || m->tile_level != level || m->tile_index != index / MERKLE_TILE) {
        m->tile_n = 0;
        if ((r = remote_tile(m, level, index / MERKLE_TILE,
                             merkle_tile_width(level, index / MERKLE_TILE, m->checkpoint.size),
                             m->tile, &m->tile_n)) != KMS_OK)
            return r;
        m->tile_level = level;
        m->tile_index = index / MERKLE_TILE;
    }
    if (index % MERKLE_TILE >= m->tile_n)
        return KMS_ERR_NOT_FOUND;
    memcpy(out, m->tile[index % MERKLE_TILE], MERKLE_LEN);
    return KMS_OK;
}

/* The exit status of what failed; complains, unless `ask` has. */
static int
remote_failed(const struct remote *m, int r)
{
    if (r == KMS_ERR_UNAVAILABLE && m->status != 0)
        return m->status;
    complain("the log: %s", kms_strerror(r));
    return EXIT_REFUSED;
}

/* --- key, show --- */

int
run_audit_key(struct ctl *ctl, int argc, char **argv)
{
    json_t *params = json_object(), *log;
    const char *key;
    int status;

    if (argc > 0)
        json_object_set_new(params, "org", json_string(argv[0]));
    if ((status = ask(ctl, "audit.log", params, &log)) != 0)
        return status;
    key = json_string_value(json_object_get(log, "key"));
    if (ctl->json)
        print_json(log);
    else if (key != NULL)
        puts(key);
    else
        complain("the server does not know its audit key: is the HSM away?");
    json_decref(log);
    return key != NULL ? EXIT_OK : EXIT_REFUSED;
}

static bool
parse_entry(const char *text, json_int_t *out)
{
    char *end;

    errno = 0;
    *out = strtoll(text, &end, 10);
    if (errno == 0 && end != text && *end == '\0' && *out >= 0)
        return true;
    complain("\"%s\" is no entry's number; see kmsctl audit tail", text);
    return false;
}

/* Where an entry stands, and what. */
static int
find_entry(struct remote *m, json_int_t entry, uint64_t *index, const char **leaf)
{
    json_t *result;
    int r;

    if ((r = remote_ask(m, "audit.find", json_pack("{s:I}", "entry", entry), &result)) != KMS_OK)
        return r;
    *index = (uint64_t)json_integer_value(json_object_get(result, "index"));
    json_decref(result);
    if ((r = remote_leaf(m, *index, leaf, NULL)) != KMS_OK)
        return r;
    if (*leaf != NULL)
        return KMS_OK;
    complain("entry %" JSON_INTEGER_FORMAT " is gone from the database; see kmsctl audit check",
             entry);
    m->status = EXIT_REFUSED;
    return KMS_ERR_UNAVAILABLE;
}

int
run_audit_show(struct ctl *ctl, int argc, char **argv)
{
    json_t *params, *result = NULL, *leaf_json = NULL, *entry_json = NULL;
    struct remote m;
    const char *leaf;
    json_int_t entry;
    uint64_t index;
    int status, r;

    if (!parse_entry(argv[0], &entry))
        return EXIT_USAGE;
    if ((status = remote_open(&m, ctl, argc > 1 ? argv[1] : NULL)) != 0)
        return status;
    m.one = true;
    if ((r = find_entry(&m, entry, &index, &leaf)) != KMS_OK) {
        status = remote_failed(&m, r);
        goto out;
    }
    /* The names come with the tail, which looks people up. */
    params = json_pack("{s:I, s:i}", "after", entry - 1, "limit", 1);
    if (argc > 1)
        json_object_set_new(params, "org", json_string(argv[1]));
    if (entry > 1 && (status = ask(ctl, "audit.tail", params, &result)) != 0)
        goto out;
    if (entry <= 1)
        json_decref(params);
    entry_json = json_array_get(json_object_get(result, "entries"), 0);
    if (kms_json_parse(&leaf_json, leaf, strlen(leaf)) != KMS_OK)
        leaf_json = NULL;
    if (ctl->json) {
        json_t *o = json_pack("{s:I, s:I, s:s, s:O?}", "index", (json_int_t)index, "entry", entry,
                              "leaf", leaf, "named", entry_json);

        print_json(o);
        json_decref(o);
    } else {
        printf("leaf        %" PRIu64 "\nunder       %s\n", index,
               index < m.checkpoint.size ? "the newest checkpoint" : "no checkpoint yet");
        table_print_object(entry_json != NULL ? entry_json : leaf_json, 0);
        printf("\n%s\n", leaf);
    }
out:
    json_decref(leaf_json);
    json_decref(result);
    remote_close(&m);
    return status;
}

/* --- prove --- */

int
log_open(struct remote **log, struct ctl *ctl, const char *org)
{
    int status = EXIT_REFUSED;

    if ((*log = calloc(1, sizeof(**log))) == NULL) {
        complain("out of memory");
        return status;
    }
    if ((status = remote_open(*log, ctl, org)) != 0) {
        free(*log);
        *log = NULL;
        return status;
    }
    (*log)->one = true;
    return 0;
}

void
log_close(struct remote *log)
{
    if (log == NULL)
        return;
    remote_close(log);
    free(log);
}

const char *
log_note(const struct remote *log)
{
    return log->note;
}

uint64_t
log_size(const struct remote *log)
{
    return log->checkpoint.size;
}

int
log_prove(struct remote *log, json_int_t entry, uint64_t *index, struct buf *text)
{
    unsigned char proof[MERKLE_PROOF_MAX][MERKLE_LEN], hash[MERKLE_LEN];
    const char *leaf;
    size_t n = 0;
    int r;

    if ((r = find_entry(log, entry, index, &leaf)) != KMS_OK)
        return remote_failed(log, r);
    if (*index >= log->checkpoint.size) {
        complain("no checkpoint has this entry yet; try again in a few seconds");
        return EXIT_REFUSED;
    }
    if ((r = merkle_leaf(hash, leaf, strlen(leaf))) != KMS_OK ||
        (r = merkle_prove_inclusion(proof, &n, *index, log->checkpoint.size, remote_node, log)) !=
            KMS_OK ||
        (r = merkle_check_inclusion(hash, *index, log->checkpoint.size, proof, n,
                                    log->checkpoint.root)) != KMS_OK) {
        if (r != KMS_ERR_CRYPTO)
            return remote_failed(log, r);
        complain("the log in the database does not prove this entry; see kmsctl audit check");
        return EXIT_REFUSED;
    }
    r = buf_puts(text, PROOF_HEAD "extra ");
    if (r == KMS_OK)
        r = b64_put(text, leaf, strlen(leaf));
    if (r == KMS_OK)
        r = buf_putf(text, "\nindex %" PRIu64 "\n", *index);
    for (size_t i = 0; i < n && r == KMS_OK; i++) {
        if ((r = b64_put(text, proof[i], MERKLE_LEN)) == KMS_OK)
            r = buf_putc(text, '\n');
    }
    if (r == KMS_OK && (r = buf_putc(text, '\n')) == KMS_OK)
        r = buf_puts(text, log->note);
    return r == KMS_OK ? 0 : remote_failed(log, r);
}

int
run_audit_prove(struct ctl *ctl, int argc, char **argv)
{
    struct buf text = BUF_INIT;
    struct remote *log;
    json_int_t entry;
    uint64_t index;
    int status;
    FILE *f = stdout;

    if (!parse_entry(argv[0], &entry))
        return EXIT_USAGE;
    if ((status = log_open(&log, ctl, argc > 1 ? argv[1] : NULL)) != 0)
        return status;
    if ((status = log_prove(log, entry, &index, &text)) != 0)
        goto out;
    if (ctl->out != NULL && (f = fopen(ctl->out, "we")) == NULL) {
        complain("cannot write %s: %s", ctl->out, strerror(errno));
        status = EXIT_REFUSED;
        goto out;
    }
    if (ctl->json) {
        json_t *o = json_pack("{s:I, s:I, s:I, s:s}", "entry", entry, "index", (json_int_t)index,
                              "size", (json_int_t)log_size(log), "proof", buf_str(&text));

        json_dumpf(o, f, JSON_COMPACT);
        fputc('\n', f);
        json_decref(o);
    } else {
        fwrite(text.data, 1, text.len, f);
    }
    if (f != stdout && fclose(f) != 0) {
        complain("cannot write %s: %s", ctl->out, strerror(errno));
        status = EXIT_REFUSED;
    }
out:
    buf_release(&text);
    log_close(log);
    return status;
}

/* --- export --- */

static int
write_failed(const char *dir)
{
    complain("cannot write to %s: %s", dir, strerror(errno));
    return EXIT_REFUSED;
}

/* Appends to the file of all checkpoints what was signed since `before`; of that size what is not
 * there yet. */
static int
export_notes(struct remote *m, struct audit_dir *d, uint64_t before)
{
    char path[4096], *tail = NULL;
    const char *note;
    json_int_t size;
    long length = 0;
    FILE *f;
    int r;

    if (snprintf(path, sizeof(path), "%s/checkpoints", d->path) >= (int)sizeof(path))
        return KMS_ERR_LENGTH;
    if ((f = fopen(path, "a+e")) == NULL)
        return KMS_ERR_SYSTEM;
    if (fseek(f, 0, SEEK_END) == 0 && (length = ftell(f)) > 4L * NOTE_MAX)
        length = 4L * NOTE_MAX;
    if (length > 0 && (tail = calloc(1, (size_t)length + 1)) != NULL &&
        (fseek(f, -length, SEEK_END) != 0 || fread(tail, 1, (size_t)length, f) != (size_t)length)) {
        fclose(f);
        free(tail);
        return KMS_ERR_SYSTEM;
    }
    m->notes_after = (json_int_t)before - 1;
    while ((r = remote_next_note(m, &note, &size)) == KMS_OK && note != NULL) {
        if ((uint64_t)size > m->checkpoint.size)
            break;
        if (tail != NULL && (uint64_t)size == before && strstr(tail, note) != NULL)
            continue;
        if (fprintf(f, "%s\n", note) < 0) {
            r = KMS_ERR_SYSTEM;
            break;
        }
    }
    if (fclose(f) != 0 && r == KMS_OK)
        r = KMS_ERR_SYSTEM;
    free(tail);
    return r;
}

static int
export_entries(struct remote *m, struct audit_dir *d, uint64_t before, uint64_t *changed)
{
    struct buf bundle = BUF_INIT;
    char name[MERKLE_PATH_MAX];
    int r = KMS_OK;

    for (uint64_t i = before / MERKLE_TILE; i * MERKLE_TILE < m->checkpoint.size && r == KMS_OK;
         i++) {
        unsigned width = merkle_tile_width(0, i, m->checkpoint.size), n = 0;
        unsigned char hash[MERKLE_LEN], tile[MERKLE_TILE][MERKLE_LEN];

        buf_reset(&bundle);
        if ((r = remote_tile(m, 0, i, width, tile, &n)) != KMS_OK)
            break;
        for (unsigned k = 0; k < width && r == KMS_OK; k++) {
            const char *leaf;
            size_t len;

            if ((r = remote_leaf(m, i * MERKLE_TILE + k, &leaf, NULL)) != KMS_OK)
                break;
            /* What is gone is exported as an empty leaf, so that the others keep their places. */
            len = leaf != NULL ? strlen(leaf) : 0;
            if (len > UINT16_MAX) {
                r = KMS_ERR_LENGTH;
                break;
            }
            if ((r = buf_putc(&bundle, (char)(len >> 8))) == KMS_OK &&
                (r = buf_putc(&bundle, (char)(len & 0xff))) == KMS_OK &&
                (r = buf_put(&bundle, leaf != NULL ? leaf : "", len)) == KMS_OK &&
                (r = merkle_leaf(hash, leaf != NULL ? leaf : "", len)) == KMS_OK &&
                (k >= n || memcmp(hash, tile[k], MERKLE_LEN) != 0))
                (*changed)++;
        }
        if (r != KMS_OK)
            break;
        merkle_tile_path(name, -1, i, width);
        r = audit_dir_write(d, name, bundle.data, bundle.len);
        if (r == KMS_OK && width == MERKLE_TILE)
            audit_dir_drop_partial(d, -1, i);
    }
    buf_release(&bundle);
    return r;
}

static int
export_tiles(struct remote *m, struct audit_dir *d, uint64_t before)
{
    unsigned char tile[MERKLE_TILE][MERKLE_LEN];
    char name[MERKLE_PATH_MAX];
    unsigned width, n;
    int r = KMS_OK;

    for (unsigned level = 0; m->checkpoint.size >> (level * MERKLE_HEIGHT) > 0 && r == KMS_OK;
         level++) {
        uint64_t first = (before >> (level * MERKLE_HEIGHT)) / MERKLE_TILE;

        for (uint64_t i = first;
             r == KMS_OK && (width = merkle_tile_width(level, i, m->checkpoint.size)) > 0; i++) {
            if ((r = remote_tile(m, level, i, width, tile, &n)) != KMS_OK)
                break;
            if (n < width) {
                r = KMS_ERR_NOT_FOUND;
                break;
            }
            merkle_tile_path(name, (int)level, i, width);
            r = audit_dir_write(d, name, tile, (size_t)width * MERKLE_LEN);
            if (r == KMS_OK && width == MERKLE_TILE)
                audit_dir_drop_partial(d, (int)level, i);
        }
    }
    return r;
}

int
run_audit_export(struct ctl *ctl, int argc, char **argv)
{
    struct checkpoint before = {.size = 0};
    const unsigned char *p;
    struct audit_dir d;
    struct remote m;
    uint64_t changed = 0;
    size_t len;
    int status, r;

    if (mkdir(argv[0], 0777) != 0 && errno != EEXIST)
        return write_failed(argv[0]);
    if (audit_dir_open(&d, argv[0]) != KMS_OK)
        return write_failed(argv[0]);
    if ((status = remote_open(&m, ctl, argc > 1 ? argv[1] : NULL)) != 0) {
        audit_dir_close(&d);
        return status;
    }
    /* What is there must be of this log, and not more than the log has. */
    r = audit_dir_read(&d, "checkpoint", &p, &len);
    if (r == KMS_OK &&
        (r = audit_checkpoint_open(&before, (const char *)p, len, &m.key)) != KMS_OK) {
        complain("the checkpoint in %s is not of this log: %s", argv[0], kms_strerror(r));
        status = EXIT_REFUSED;
        goto out;
    }
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND) {
        complain("cannot read %s/checkpoint: %s", argv[0], strerror(errno));
        status = EXIT_REFUSED;
        goto out;
    }
    if (before.size > m.checkpoint.size ||
        (before.size == m.checkpoint.size && before.size > 0 &&
         memcmp(before.root, m.checkpoint.root, MERKLE_LEN) != 0)) {
        complain("the export in %s has %" PRIu64
                 " entries under a signed checkpoint; the server's log has "
                 "%" PRIu64 ": it was cut or changed",
                 argv[0], before.size, m.checkpoint.size);
        status = EXIT_REFUSED;
        goto out;
    }
    if ((r = export_entries(&m, &d, before.size, &changed)) != KMS_OK ||
        (r = export_tiles(&m, &d, before.size)) != KMS_OK ||
        (r = export_notes(&m, &d, before.size)) != KMS_OK) {
        status = r == KMS_ERR_SYSTEM ? write_failed(argv[0]) : remote_failed(&m, r);
        goto out;
    }
    /* The checkpoint last: whoever sees it finds all that it promises. */
    sync();
    if (audit_dir_write(&d, "checkpoint", m.note, strlen(m.note)) != KMS_OK) {
        status = write_failed(argv[0]);
        goto out;
    }
    if (changed > 0) {
        complain("%" PRIu64 " of these entries are not what was logged; see kmsctl audit verify",
                 changed);
        status = EXIT_REFUSED;
    }
    if (ctl->json) {
        json_t *o = json_pack(
            "{s:s, s:I, s:I, s:s}", "directory", argv[0], "size", (json_int_t)m.checkpoint.size,
            "new", (json_int_t)(m.checkpoint.size - before.size), "origin", m.checkpoint.origin);

        print_json(o);
        json_decref(o);
    } else {
        printf("%s: %" PRIu64 " entries, %" PRIu64 " of them new\n", argv[0], m.checkpoint.size,
               m.checkpoint.size - before.size);
    }
out:
    remote_close(&m);
    audit_dir_close(&d);
    return status;
}

/* --- verify, check --- */

struct findings {
    struct ctl *ctl;
    struct remote *remote; /* NULL: a directory */
    json_t *list;          /* with --json */
    uint64_t n;
};

/* People know entries by their numbers. */
static void
put_entry(char out[96], const struct audit_finding *f)
{
    static const char *const how[] = {
        [AUDIT_LOGGED] = "entry", [AUDIT_SAYS] = "now says entry", [AUDIT_BEHIND] = "behind entry"};

    out[0] = '\0';
    if (f->named == AUDIT_UNNAMED)
        return;
    if (f->entry == f->last_entry)
        snprintf(out, 96, " (%s %" PRIu64 ")",
                 f->what == AUDIT_INSERTED ? "says entry" : how[f->named], f->entry);
    else
        snprintf(out, 96, " (now say entries %" PRIu64 " to %" PRIu64 ")", f->entry, f->last_entry);
}

static void
print_finding(void *ctx, const struct audit_finding *f)
{
    struct findings *all = ctx;
    char where[128], entry[96];

    if (all->n++ >= FINDINGS_MAX)
        return;
    if (all->ctl->json) {
        json_t *o = json_pack("{s:s, s:I, s:I}", "what", audit_what_name(f->what), "first",
                              (json_int_t)f->first, "last", (json_int_t)f->last);

        if (f->what == AUDIT_TILE)
            json_object_set_new(o, "level", json_integer(f->level));
        if (f->text != NULL)
            json_object_set_new(o, "why", json_string(f->text));
        if (f->named != AUDIT_UNNAMED)
            json_object_set_new(o, f->named == AUDIT_BEHIND ? "behind_entry" : "entry",
                                json_integer((json_int_t)f->entry));
        if (f->named == AUDIT_SAYS)
            json_object_set_new(o, "now_says", json_true());
        if (f->named != AUDIT_UNNAMED && f->last_entry != f->entry)
            json_object_set_new(o, "last_entry", json_integer((json_int_t)f->last_entry));
        json_array_append_new(all->list, o);
        return;
    }
    if (f->what == AUDIT_TILE)
        snprintf(where, sizeof(where), "tile %" PRIu64 " of level %d", f->first, f->level);
    else if (f->what == AUDIT_CHECKPOINT)
        snprintf(where, sizeof(where), "checkpoint of size %" PRIu64, f->first);
    else if (f->what == AUDIT_INSERTED)
        snprintf(where, sizeof(where), "before leaf %" PRIu64, f->first);
    else if (f->first == f->last)
        snprintf(where, sizeof(where), "leaf %" PRIu64, f->first);
    else
        snprintf(where, sizeof(where), "leaves %" PRIu64 " to %" PRIu64, f->first, f->last);
    put_entry(entry, f);
    printf("%-15s %s%s%s%s\n",
           f->what == AUDIT_TILE || f->what == AUDIT_CHECKPOINT ? "damaged"
                                                                : audit_what_name(f->what),
           where, entry, f->text != NULL ? ": " : "", f->text != NULL ? f->text : "");
}

static int
read_known(struct ctl *ctl, const struct note_key *key, struct checkpoint *c)
{
    struct buf text = BUF_INIT;
    char chunk[4096];
    size_t n;
    FILE *f;
    int r = KMS_OK;

    if ((f = fopen(ctl->checkpoint, "re")) == NULL) {
        complain("cannot read %s: %s", ctl->checkpoint, strerror(errno));
        return EXIT_UNREADABLE;
    }
    while (r == KMS_OK && text.len <= NOTE_MAX && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        r = buf_put(&text, chunk, n);
    fclose(f);
    if (r == KMS_OK)
        r = audit_checkpoint_open(c, buf_str(&text), text.len, key);
    buf_release(&text);
    if (r == KMS_OK)
        return 0;
    complain("%s is no checkpoint of this log by this key: %s", ctl->checkpoint, kms_strerror(r));
    return EXIT_USAGE;
}

/* Runs the check and prints what it found. */
static int
verify(struct ctl *ctl, const struct audit_source *source, const struct note_key *key,
       struct remote *remote)
{
    struct findings all = {ctl, remote, json_array(), 0};
    struct checkpoint known;
    struct audit_report report;
    json_t *result = NULL, *strays = NULL;
    int r, status = 0;

    if (ctl->checkpoint != NULL && (status = read_known(ctl, key, &known)) != 0) {
        json_decref(all.list);
        return status;
    }
    r = audit_verify(source, key, ctl->checkpoint != NULL ? &known : NULL, print_finding, &all,
                     &report);
    if (r == KMS_OK && remote != NULL &&
        (r = remote_ask(remote, "audit.strays", json_object(), &result)) == KMS_OK) {
        json_t *entry;
        size_t i;

        strays = json_object_get(result, "entries");
        report.findings += json_array_size(strays);
        if (!ctl->json) {
            json_array_foreach(strays, i, entry) printf(
                "inserted        entry %" JSON_INTEGER_FORMAT ": in the database, not in the log\n",
                json_integer_value(entry));
        }
    }
    if (r != KMS_OK) {
        json_decref(all.list);
        json_decref(result);
        if (remote != NULL)
            return remote_failed(remote, r) == EXIT_REFUSED ? EXIT_UNREADABLE : EXIT_UNREACHABLE;
        complain("the log cannot be read: %s%s%s", kms_strerror(r), r == KMS_ERR_SYSTEM ? ": " : "",
                 r == KMS_ERR_SYSTEM ? strerror(errno) : "");
        return EXIT_UNREADABLE;
    }
    if (ctl->json) {
        json_t *o = json_pack(
            "{s:b, s:s, s:I, s:I, s:I, s:o}", "intact", report.findings == 0, "origin", key->name,
            "size", (json_int_t)report.size, "checkpoints", (json_int_t)report.checkpoints, "time",
            (json_int_t)(report.time >= 0 ? report.time * 1000 : -1), "findings", all.list);

        if (strays != NULL)
            json_object_set(o, "strays", strays);
        print_json(o);
        json_decref(o);
    } else {
        if (all.n > FINDINGS_MAX)
            printf("... and %" PRIu64 " more\n", all.n - FINDINGS_MAX);
        printf("%s: %s: %" PRIu64 " entries under %" PRIu64 " checkpoints", key->name,
               report.findings == 0 ? "intact" : "TAMPERED WITH", report.size, report.checkpoints);
        if (report.time >= 0) {
            time_t t = (time_t)report.time;
            struct tm tm;
            char when[32];

            strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%SZ", gmtime_r(&t, &tm));
            printf(", the newest of %s", when);
        }
        putchar('\n');
        json_decref(all.list);
    }
    json_decref(result);
    return report.findings == 0 ? EXIT_OK : EXIT_REFUSED;
}

static bool
next_line(const char **p, const char *end, const char **line, size_t *len)
{
    const char *newline = memchr(*p, '\n', (size_t)(end - *p));

    if (newline == NULL)
        return false;
    *line = *p;
    *len = (size_t)(newline - *p);
    *p = newline + 1;
    return true;
}

/* C2SP tlog-proof, with the leaf as its extra data.  KMS_OK: it proves the leaf, which is appended.
 */
static int
verify_proof_text(const char *text, size_t len, const struct note_key *key, struct buf *leaf,
                  uint64_t *index, struct checkpoint *c)
{
    unsigned char proof[MERKLE_PROOF_MAX][MERKLE_LEN], hash[MERKLE_LEN];
    const char *p = text, *end = text + len, *line;
    struct buf one = BUF_INIT;
    size_t n, count = 0;
    char *stop;
    int r;

    if (!next_line(&p, end, &line, &n) || n + 1 != strlen(PROOF_HEAD) ||
        memcmp(line, PROOF_HEAD, n) != 0 || !next_line(&p, end, &line, &n) || n < 6 ||
        memcmp(line, "extra ", 6) != 0)
        return KMS_ERR_SYNTAX;
    if ((r = b64_get(leaf, line + 6, n - 6)) != KMS_OK)
        return r;
    if (!next_line(&p, end, &line, &n) || n < 7 || n > 25 || memcmp(line, "index ", 6) != 0 ||
        line[6] < '0' || line[6] > '9')
        return KMS_ERR_SYNTAX;
    *index = strtoull(line + 6, &stop, 10);
    if (stop != line + n)
        return KMS_ERR_SYNTAX;
    for (;;) {
        if (!next_line(&p, end, &line, &n))
            return KMS_ERR_SYNTAX;
        if (n == 0)
            break;
        buf_reset(&one);
        r = b64_get(&one, line, n);
        if (r == KMS_OK && (one.len != MERKLE_LEN || count == MERKLE_PROOF_MAX))
            r = KMS_ERR_SYNTAX;
        if (r == KMS_OK)
            memcpy(proof[count++], one.data, MERKLE_LEN);
        if (r != KMS_OK) {
            buf_release(&one);
            return r;
        }
    }
    buf_release(&one);
    if ((r = audit_checkpoint_open(c, p, (size_t)(end - p), key)) != KMS_OK ||
        (r = merkle_leaf(hash, leaf->data, leaf->len)) != KMS_OK)
        return r;
    return merkle_check_inclusion(hash, *index, c->size, proof, count, c->root);
}

static int
verify_proof(struct ctl *ctl, const char *path, const struct note_key *key)
{
    struct buf text = BUF_INIT, leaf = BUF_INIT;
    struct checkpoint c;
    char chunk[65536];
    uint64_t index = 0;
    size_t n;
    FILE *f;
    int r = KMS_OK;

    if ((f = fopen(path, "re")) == NULL) {
        complain("cannot read %s: %s", path, strerror(errno));
        return EXIT_UNREADABLE;
    }
    while (r == KMS_OK && text.len < 4 * sizeof(chunk) &&
           (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        r = buf_put(&text, chunk, n);
    fclose(f);
    if (r == KMS_OK)
        r = verify_proof_text(buf_str(&text), text.len, key, &leaf, &index, &c);
    if (r == KMS_OK && ctl->json) {
        json_t *o =
            json_pack("{s:b, s:s, s:I, s:I, s:s}", "intact", 1, "origin", c.origin, "index",
                      (json_int_t)index, "size", (json_int_t)c.size, "leaf", buf_str(&leaf));

        print_json(o);
        json_decref(o);
    } else if (r == KMS_OK) {
        printf("%s\nis leaf %" PRIu64 " of %s, of %" PRIu64 "\n", buf_str(&leaf), index, c.origin,
               c.size);
    } else {
        if (ctl->json)
            puts("{\"intact\":false}");
        complain("%s proves nothing: %s", path, kms_strerror(r));
    }
    buf_release(&text);
    buf_release(&leaf);
    return r == KMS_OK ? EXIT_OK : EXIT_REFUSED;
}

int
run_audit_verify(struct ctl *ctl, int argc, char **argv)
{
    struct audit_source source;
    struct note_key key;
    struct audit_dir d;
    struct stat st;
    int status;

    if (ctl->key == NULL) {
        complain("verify: --key is needed: what kmsctl audit key has printed, kept where the "
                 "server's owner cannot "
                 "change it");
        return EXIT_USAGE;
    }
    if ((status = read_note_key(&key, ctl->key)) != 0)
        return status;
    if (stat(argv[0], &st) == 0 && S_ISREG(st.st_mode))
        return verify_proof(ctl, argv[0], &key);
    if (audit_dir_open(&d, argv[0]) != KMS_OK) {
        complain("cannot read %s: %s", argv[0], strerror(errno));
        return EXIT_UNREADABLE;
    }
    source = audit_dir_source(&d);
    status = verify(ctl, &source, &key, NULL);
    audit_dir_close(&d);
    return status;
}

int
run_audit_check(struct ctl *ctl, int argc, char **argv)
{
    struct audit_source source;
    struct remote m;
    int status;

    if ((status = remote_open(&m, ctl, argc > 0 ? argv[0] : NULL)) != 0)
        return status;
    source = (struct audit_source){&m, remote_bundle, remote_tile, remote_checkpoint,
                                   remote_next_checkpoint};
    status = verify(ctl, &source, &m.key, &m);
    remote_close(&m);
    return status;
}

/* --- cosign, erase --- */

int
run_audit_cosign(struct ctl *ctl, int argc, char **argv)
{
    struct buf text = BUF_INIT;
    char chunk[4096];
    json_t *log, *params = json_object();
    size_t n;
    FILE *f;
    int status, r = KMS_OK;

    if ((f = strcmp(argv[0], "-") == 0 ? stdin : fopen(argv[0], "re")) == NULL) {
        complain("cannot read %s: %s", argv[0], strerror(errno));
        json_decref(params);
        return EXIT_REFUSED;
    }
    while (r == KMS_OK && text.len <= NOTE_MAX && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        r = buf_put(&text, chunk, n);
    if (f != stdin)
        fclose(f);
    if (argc > 1)
        json_object_set_new(params, "org", json_string(argv[1]));
    if ((status = ask(ctl, "audit.log", params, &log)) == 0) {
        params = json_pack("{s:O}", "log", json_object_get(log, "org"));
        json_object_set_new(params, "note", json_string(buf_str(&text)));
        status = ask_and_show(ctl, "audit.cosign", params);
        json_decref(log);
    }
    buf_release(&text);
    return status;
}

int
run_person_erase(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "person.erase",
                        json_pack("{s:s, s:s}", "org", argv[0], "subject", argv[1]));
}
