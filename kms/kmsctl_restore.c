/*
 * kmsctl_restore.c - restore check: does what is in a backup open with the keys that are in the
 * token?
 *
 * A throw-away PostgreSQL is made from the backup (restore-db.sh, carried in this program) and
 * brought to this program's schema; hsmd then opens a random sample of every generation of every
 * organisation.  Neither the server nor its database is needed or touched.  What opened and what
 * did not becomes a report, a signed note by the audit key.
 *
 *     restore_check
 *       database_start   restore-db.sh: it ends when our end of its standard input does
 *       migrate          the copy, never the backup
 *       look_for_hsmd
 *       generations_get, sample_open
 *       report_put       and hsm_sign_audit
 *
 * Keys are sealed anew under the same wrapping key: so hsmd opens them, and none leaves it, for
 * which there would have to be an entry in a log.
 */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/kmsctl.h"
#include "kms/kmsctl_log.h"
#include "kms/table.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/note.h"
#include "proto/uri.h"
#include "sql/migrate.h"

#define REPORT_HEAD "kms-server restore check v1\n"
#define SIGNED_MAX  4096 /* what hsm_sign_audit takes */
#define SAMPLE      10
#define SAMPLE_MAX  100000
#define UNDER_WAY   512 /* items that hsmd has at once */
#define FAILURES    8   /* that the signed text names; all are in the list */

/* The shell script, ended by a 0: made from restore-db.sh. */
extern const char restore_db_sh[];

/* What a sample is of. */
enum part { PART_KEY, PART_RECORDING, PART_EMPTY, PART_ROOT, PARTS };

struct generation {
    char *org; /* name; owned */
    char month[16];
    char parent[16]; /* "root", "main key", "period key" */
    struct hsm_wrapping_key wk;
    unsigned tried, opened;
    int err; /* of the first that did not open */
};

struct check {
    struct ctl *ctl;
    const char *backup;
    char name[NOTE_NAME_MAX + 1]; /* of the signing key */
    long long sample;

    pid_t child; /* restore-db.sh; 0: none */
    int leash;   /* its standard input */
    char url[512];

    struct event_base *base;
    struct hsm *hsm;
    unsigned waiting; /* items under way */
    int err;          /* of the signature */
    unsigned char sig[NOTE_SIG_LEN];

    struct generation *g; /* owned */
    size_t n;
    unsigned long long tried[PARTS], opened[PARTS];
    unsigned destroyed, failed; /* generations */
};

/* --- the throw-away database --- */

/* Waits for its connection string.  0, or an exit status after complaining. */
static int
database_start(struct check *c)
{
    int in[2], out[2], status = EXIT_REFUSED;
    size_t got = 0;
    ssize_t n;

    if (pipe2(in, O_CLOEXEC) != 0)
        goto failed;
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        goto failed;
    }
    if ((c->child = fork()) == 0) {
        /* Away from the terminal's interrupts: it ends when we do, and cleans up. */
        setsid();
        if (dup2(in[0], STDIN_FILENO) >= 0 && dup2(out[1], STDOUT_FILENO) >= 0)
            execl("/bin/sh", "sh", "-c", restore_db_sh, "restore-db", c->backup, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    c->leash = in[1];
    if (c->child < 0) {
        c->child = 0;
        close(out[0]);
        goto failed;
    }
    while (got < sizeof(c->url) - 1 &&
           ((n = read(out[0], c->url + got, sizeof(c->url) - 1 - got)) > 0 ||
            (n < 0 && errno == EINTR)))
        got += n > 0 ? (size_t)n : 0;
    close(out[0]);
    c->url[got] = '\0';
    c->url[strcspn(c->url, "\n")] = '\0';
    if (c->url[0] != '\0')
        return 0;
    complain("restore check: there is no database to look at");
    return status;
failed:
    complain("restore check: %s", strerror(errno));
    return status;
}

static void
database_end(struct check *c)
{
    if (c->leash >= 0)
        close(c->leash);
    if (c->child > 0)
        waitpid(c->child, NULL, 0);
}

static void
say_progress(void *ctx, const char *text)
{
    fprintf(stderr, "restore check: %s\n", text);
}

/* --- hsmd --- */

static void
hsm_changed(void *ctx, bool ready)
{
    struct check *c = ctx;

    event_base_loopbreak(c->base);
}

/* 0, or an exit status after complaining. */
static int
look_for_hsmd(struct check *c, const char *path)
{
    struct timeval limit = {c->ctl->timeout_ms / 1000, (c->ctl->timeout_ms % 1000) * 1000};

    log_set_level(LOG_ERROR_);
    if ((c->base = event_base_new()) == NULL ||
        (c->hsm = hsm_new(c->base, path, HSM_MANAGE, (int)c->ctl->timeout_ms)) == NULL) {
        complain("out of memory");
        return EXIT_REFUSED;
    }
    hsm_on_change(c->hsm, hsm_changed, c);
    if (!hsm_ready(c->hsm)) {
        event_base_loopexit(c->base, &limit);
        event_base_dispatch(c->base);
    }
    if (hsm_ready(c->hsm))
        return 0;
    complain("hsmd at %s does not answer, or has no token with keys: see kmsctl hsm status "
             "--hsm-socket %s",
             path, path);
    return EXIT_UNREACHABLE;
}

static void
opened(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
       const unsigned char *blob)
{
    struct check *c = ctx;
    struct generation *g = &c->g[id];

    c->waiting--;
    g->tried++;
    c->tried[index]++;
    if (err == KMS_OK) {
        g->opened++;
        c->opened[index]++;
    } else if (g->err == KMS_OK) {
        g->err = err;
    }
    event_base_loopbreak(c->base);
}

static void
wait_below(struct check *c, unsigned n)
{
    while (c->waiting > n)
        event_base_dispatch(c->base);
}

/* Hands one sample to hsmd; blob NULL: there is nothing under this wrapping key, so it shows what
 * it is by sealing something. */
static void
sample_open(struct check *c, size_t i, enum part part, const struct uuid *object,
            const unsigned char *blob)
{
    struct generation *g = &c->g[i];
    unsigned char key[HSM_KEY_LEN];
    struct uuid any = {{0}};
    int r;

    wait_below(c, UNDER_WAY - 1);
    c->waiting++;
    if (blob != NULL) {
        r = hsm_reseal(c->hsm, &g->wk, &g->wk, part == PART_ROOT ? HSM_SENTINEL : HSM_CONTENT_KEY,
                       object->b, blob, opened, c, i, part);
    } else if (RAND_bytes(key, sizeof(key)) == 1 && uuid_random(&any) == KMS_OK) {
        r = hsm_wrap(c->hsm, &g->wk, HSM_CONTENT_KEY, any.b, key, opened, c, i, part);
        OPENSSL_cleanse(key, sizeof(key));
    } else {
        r = KMS_ERR_INTERNAL;
    }
    if (r != KMS_OK)
        opened(c, i, part, r, NULL, NULL);
}

/* --- what is in the backup --- */

/*
 * A row a sample; a generation without anything has one too.  A key above that was destroyed after
 * the backup was made is still named in it.
 */
static const char samples[] =
    "WITH k AS ("
    "  SELECT x.* FROM (SELECT 0 AS part, k.org_id, k.generation, k.key_id AS object, k.blob,"
    "         row_number() OVER (PARTITION BY k.org_id, k.generation ORDER BY random()) AS n"
    "    FROM kms.content_keys k WHERE k.blob IS NOT NULL) x WHERE x.n <= $1"
    "  UNION ALL"
    "  SELECT x.* FROM (SELECT 1, k.org_id, k.generation, k.recording_id, k.blob,"
    "         row_number() OVER (PARTITION BY k.org_id, k.generation ORDER BY random()) AS n"
    "    FROM kms.recordings k WHERE k.blob IS NOT NULL) x WHERE x.n <= $1),"
    " under AS ("
    "  SELECT r.root_id AS id, 'root' AS kind FROM kms.roots r"
    "  UNION ALL SELECT m.main_key_id, 'main key' FROM kms.main_keys m"
    "  UNION ALL SELECT p.key_id, 'period key' FROM kms.period_keys p) "
    "SELECT coalesce(o.name, '(installation)'), w.org_id::text, w.generation, "
    "coalesce(w.month::text, '-'),"
    "       coalesce(u.kind, 'unknown'), w.root_id::text, encode(w.wrapped, 'hex'),"
    "       coalesce(k.part, 2), k.object::text, encode(k.blob, 'hex')"
    "  FROM kms.wrapping_keys w LEFT JOIN kms.organisations o ON o.org_id = w.org_id"
    "  LEFT JOIN under u ON u.id = w.root_id"
    "  LEFT JOIN k ON k.org_id = w.org_id AND k.generation = w.generation"
    " WHERE w.wrapped IS NOT NULL "
    "UNION ALL "
    "SELECT '(root)', '00000000-0000-0000-0000-000000000000', 0, '-', 'root', r.root_id::text,"
    "       encode(r.wrapped, 'hex'), 3, r.root_id::text, encode(r.sentinel, 'hex')"
    "  FROM kms.roots r WHERE r.state NOT IN ('destroying', 'destroyed')"
    "   AND (r.state IN ('active', 'leaving')"
    "        OR EXISTS (SELECT FROM kms.wrapping_keys w WHERE w.root_id = r.root_id AND w.wrapped "
    "IS NOT NULL)) "
    "ORDER BY 2, 3, 6";

static bool
hex_get(unsigned char *out, size_t len, const char *hex)
{
    size_t n;

    return strlen(hex) == 2 * len && OPENSSL_hexstr2buf_ex(out, len, &n, hex, '\0') == 1 &&
           n == len;
}

/* The generation of this row; c->n when there is no memory or it cannot be read. */
static size_t
generation_get(struct check *c, const PGresult *res, int row)
{
    struct generation g = {.err = KMS_OK}, *more;
    const char *org = PQgetvalue(res, row, 1), *parent = PQgetvalue(res, row, 5);
    struct uuid id, root;

    if (uuid_parse(&id, org, strlen(org)) != KMS_OK ||
        uuid_parse(&root, parent, strlen(parent)) != KMS_OK ||
        !hex_get(g.wk.wrapped, sizeof(g.wk.wrapped), PQgetvalue(res, row, 6)))
        return c->n;
    memcpy(g.wk.org, id.b, HSM_ID_LEN);
    memcpy(g.wk.root, root.b, HSM_ID_LEN);
    g.wk.generation = (uint32_t)strtoul(PQgetvalue(res, row, 2), NULL, 10);
    /* They come in order. */
    if (c->n > 0 && memcmp(&c->g[c->n - 1].wk, &g.wk, sizeof(g.wk)) == 0)
        return c->n - 1;
    snprintf(g.month, sizeof(g.month), "%.7s", PQgetvalue(res, row, 3));
    snprintf(g.parent, sizeof(g.parent), "%s", PQgetvalue(res, row, 4));
    if ((c->n & (c->n + 1)) == 0) { /* room for 2^k - 1 */
        if ((more = reallocarray(c->g, 2 * c->n + 1, sizeof(*more))) == NULL)
            return c->n;
        c->g = more;
    }
    if ((g.org = strdup(PQgetvalue(res, row, 0))) == NULL)
        return c->n;
    c->g[c->n] = g;
    return c->n++;
}

/* Opens all samples.  0, or an exit status after complaining. */
static int
samples_open(struct check *c)
{
    PGconn *db = PQconnectdb(c->url);
    PGresult *res = NULL;
    unsigned char blob[HSM_BLOB_LEN];
    char limit[32];
    const char *params[] = {limit};
    struct uuid object;
    int status = EXIT_REFUSED;
    size_t i;

    snprintf(limit, sizeof(limit), "%lld", c->sample);
    if (PQstatus(db) != CONNECTION_OK ||
        PQresultStatus(res = PQexecParams(db, samples, 1, NULL, params, NULL, NULL, 0)) !=
            PGRES_TUPLES_OK) {
        complain("restore check: %s", PQerrorMessage(db));
        goto out;
    }
    /* The array moves while it grows: callbacks name a generation by its number. */
    for (int row = 0; row < PQntuples(res); row++) {
        const char *id = PQgetvalue(res, row, 8);
        bool empty = PQgetisnull(res, row, 9);

        i = generation_get(c, res, row);
        if (i == c->n || (!empty && (uuid_parse(&object, id, strlen(id)) != KMS_OK ||
                                     !hex_get(blob, sizeof(blob), PQgetvalue(res, row, 9))))) {
            complain("restore check: row %d of the samples cannot be read", row);
            goto out;
        }
        sample_open(c, i, (enum part)atoi(PQgetvalue(res, row, 7)), &object, empty ? NULL : blob);
    }
    wait_below(c, 0);
    status = 0;
out:
    PQclear(res);
    PQfinish(db);
    return status;
}

/* Its month is over, and with the period key in the token all that it wrapped was destroyed. */
static bool
was_destroyed(const struct generation *g)
{
    char now[16];
    time_t t = time(NULL);
    struct tm tm;

    strftime(now, sizeof(now), "%Y-%m", gmtime_r(&t, &tm));
    return g->opened == 0 && g->err == KMS_ERR_NOT_FOUND && strcmp(g->parent, "period key") == 0 &&
           strcmp(g->month, now) < 0;
}

/* --- the report --- */

static const char *
found(const struct generation *g)
{
    return g->opened == g->tried ? "opened"
           : was_destroyed(g)    ? "destroyed: its period key is not in the token any more"
           : g->err == KMS_ERR_NOT_FOUND
               ? "DOES NOT OPEN: the key that wraps it is not in the token"
               : kms_strerror(g->err);
}

/* One line a generation. */
static void
list_put(struct check *c, struct buf *out)
{
    for (size_t i = 0; i < c->n; i++) {
        const struct generation *g = &c->g[i];
        char id[UUID_TEXT + 1];
        struct uuid root;

        memcpy(root.b, g->wk.root, UUID_LEN);
        uuid_format(id, &root);
        buf_putf(out, "%s\t%" PRIu32 "\t%s\t%s %s\t%u of %u\t%s\n", g->org, g->wk.generation,
                 g->month, g->parent, id, g->opened, g->tried, found(g));
    }
}

static void
put_hash(struct buf *out, const char *name, const unsigned char hash[32])
{
    buf_putf(out, "%s ", name);
    for (int i = 0; i < 32; i++)
        buf_putf(out, "%02x", hash[i]);
    buf_puts(out, "\n");
}

/* SHA-256 of the backup: of a directory, of what tells what is in it. */
static bool
backup_hash(const struct check *c, unsigned char hash[32])
{
    static const char *const inside[] = {"", "/backup_manifest", "/toc.dat"};
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    char path[4096], chunk[65536];
    struct stat st;
    bool ok = false;
    FILE *f = NULL;
    size_t n;

    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]) && f == NULL; i++) {
        snprintf(path, sizeof(path), "%s%s", c->backup, inside[i]);
        if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
            f = fopen(path, "re");
    }
    if (f != NULL && md != NULL && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1) {
        while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0)
            EVP_DigestUpdate(md, chunk, n);
        ok = !ferror(f) && EVP_DigestFinal_ex(md, hash, NULL) == 1;
    }
    if (f != NULL)
        fclose(f);
    EVP_MD_CTX_free(md);
    return ok;
}

static void
report_put(struct check *c, struct buf *out, const struct buf *list)
{
    static const char *const parts[PARTS] = {"keys", "recordings", "empty generations", "roots"};
    unsigned char hash[32];
    char when[32], host[256] = "";
    time_t t = time(NULL);
    unsigned named = 0;
    struct tm tm;

    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
    gethostname(host, sizeof(host) - 1);
    buf_puts(out, REPORT_HEAD);
    buf_putf(out, "time %s\nhost %s\nprogram %s\n", when, host, PACKAGE_VERSION);
    buf_putf(out, "backup %.1024s\n", c->backup);
    if (backup_hash(c, hash))
        put_hash(out, "backup-sha256", hash);
    buf_putf(out, "sample %lld of each generation\ngenerations %zu\n", c->sample, c->n);
    for (int i = 0; i < PARTS; i++)
        buf_putf(out, "%s opened %llu of %llu\n", parts[i], c->opened[i], c->tried[i]);
    buf_putf(out, "destroyed generations %u\nfailed generations %u\n", c->destroyed, c->failed);
    for (size_t i = 0; i < c->n && named < FAILURES; i++) {
        const struct generation *g = &c->g[i];

        if (g->opened == g->tried || was_destroyed(g))
            continue;
        named++;
        buf_putf(out, "failed %.64s generation %" PRIu32 ": %u of %u, %s\n", g->org,
                 g->wk.generation, g->opened, g->tried, found(g));
    }
    if (EVP_Digest(list->data, list->len, hash, NULL, EVP_sha256(), NULL) == 1)
        put_hash(out, "list-sha256", hash);
    buf_putf(out, "result %s\n", c->failed == 0 ? "all that is there opens" : "NOT ALL OPENS");
}

static void
signature_made(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct check *c = ctx;

    c->waiting--;
    c->err = err == KMS_OK && len != NOTE_SIG_LEN ? KMS_ERR_PROTOCOL : err;
    if (c->err == KMS_OK)
        memcpy(c->sig, p, NOTE_SIG_LEN);
    event_base_loopbreak(c->base);
}

/* The text becomes a note.  0, or an exit status after complaining. */
static int
report_sign(struct check *c, struct buf *report)
{
    const struct hsm_info *info = hsm_get_info(c->hsm);
    struct note_key key;
    int r = KMS_ERR_LENGTH;

    if (!info->has_audit) {
        complain("restore check: the token has no audit key to sign the report with");
        return EXIT_REFUSED;
    }
    if (report->len <= SIGNED_MAX && (r = hsm_sign_audit(c->hsm, report->data, report->len,
                                                         signature_made, c, 0, 0)) == KMS_OK) {
        c->waiting++;
        wait_below(c, 0);
        r = c->err;
    }
    if (r == KMS_OK)
        r = note_key_init(&key, c->name, NOTE_ED25519, info->audit_public);
    if (r == KMS_OK)
        r = buf_puts(report, "\n");
    if (r == KMS_OK)
        r = note_put_sig(report, &key, c->sig, NOTE_SIG_LEN);
    if (r == KMS_OK)
        return 0;
    complain("restore check: the report is not signed: %s", kms_strerror(r));
    return EXIT_REFUSED;
}

/* Anew or nothing: a file that is there stays. */
static int
file_put(const char *path, const struct buf *text)
{
    FILE *f = fopen(path, "wxe");
    bool ok = f != NULL && fwrite(text->data, 1, text->len, f) == text->len;

    if (f != NULL && (fflush(f) != 0 || fsync(fileno(f)) != 0))
        ok = false;
    if (f != NULL && fclose(f) != 0)
        ok = false;
    if (!ok)
        complain("%s: %s", path, strerror(errno));
    return ok ? 0 : EXIT_REFUSED;
}

static int
report(struct check *c)
{
    struct buf text = BUF_INIT, list = BUF_INIT;
    char path[4096];
    int status;

    for (size_t i = 0; i < c->n; i++) {
        if (was_destroyed(&c->g[i]))
            c->destroyed++;
        else if (c->g[i].opened < c->g[i].tried || c->g[i].tried == 0)
            c->failed++;
    }
    list_put(c, &list);
    report_put(c, &text, &list);
    status = report_sign(c, &text);
    if (c->ctl->json) {
        json_t *o = json_pack(
            "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "good", c->failed == 0,
            "generations", (json_int_t)c->n, "keys", (json_int_t)c->opened[PART_KEY], "keys_tried",
            (json_int_t)c->tried[PART_KEY], "recordings", (json_int_t)c->opened[PART_RECORDING],
            "recordings_tried", (json_int_t)c->tried[PART_RECORDING], "destroyed",
            (json_int_t)c->destroyed, "failed", (json_int_t)c->failed, "report", buf_str(&text),
            "list", buf_str(&list));

        print_json(o);
        json_decref(o);
    } else {
        fputs(buf_str(&list), stdout);
        printf("\n%s", buf_str(&text));
    }
    if (status == 0 && c->ctl->out != NULL && (status = file_put(c->ctl->out, &text)) == 0) {
        snprintf(path, sizeof(path), "%s.list", c->ctl->out);
        status = file_put(path, &list);
    }
    buf_release(&text);
    buf_release(&list);
    return status != 0 ? status : c->failed == 0 ? EXIT_OK : EXIT_REFUSED;
}

/* --- the commands --- */

/* The report is signed in the installation's name, where the configuration tells it. */
static int
name_signer(struct check *c, const char *domain)
{
    int n =
        snprintf(c->name, sizeof(c->name), "%s/restore-check", domain[0] != '\0' ? domain : "kms");

    if (n > 0 && (size_t)n < sizeof(c->name))
        return 0;
    complain("[kms] domain: too long");
    return EXIT_USAGE;
}

static int
run_restore_check(struct ctl *ctl, int argc, char **argv)
{
    const char *sample = opt_text(ctl, "sample");
    struct check c = {.ctl = ctl, .backup = opt_text(ctl, "backup"), .sample = SAMPLE, .leash = -1};
    char *socket = NULL, *domain = NULL, *end;
    int status;

    if (c.backup == NULL) {
        complain("restore check needs --backup: a file of pg_dump, or a directory of "
                 "pg_basebackup");
        return EXIT_USAGE;
    }
    if (sample != NULL) {
        c.sample = strtoll(sample, &end, 10);
        if (end == sample || *end != '\0' || c.sample < 1 || c.sample > SAMPLE_MAX) {
            complain("--sample: \"%s\" is not a number from 1 to %d", sample, SAMPLE_MAX);
            return EXIT_USAGE;
        }
    }
    if (ctl->out != NULL && access(ctl->out, F_OK) == 0) {
        complain("--out: %s is there already", ctl->out);
        return EXIT_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    /* A token that cannot be asked is told before an hour of restoring. */
    if ((status = find_hsmd(ctl, &socket, &domain)) == 0 &&
        (status = name_signer(&c, domain)) == 0 && (status = look_for_hsmd(&c, socket)) == 0 &&
        (status = database_start(&c)) == 0 &&
        (status = migrate(c.url, say_progress, NULL) == KMS_OK ? 0 : EXIT_REFUSED) == 0 &&
        (status = samples_open(&c)) == 0)
        status = report(&c);
    hsm_free(c.hsm);
    if (c.base != NULL)
        event_base_free(c.base);
    database_end(&c);
    for (size_t i = 0; i < c.n; i++)
        free(c.g[i].org);
    free(c.g);
    free(socket);
    free(domain);
    return status;
}

/* The audit key is one key under many names: a log's verifier key tells it too. */
static int
run_restore_verify(struct ctl *ctl, int argc, char **argv)
{
    static char text[NOTE_MAX + 1];
    struct note_key given, key;
    char name[NOTE_NAME_MAX + 1];
    struct note note;
    FILE *f = fopen(argv[0], "re");
    size_t n;
    int r, status;

    if (f == NULL) {
        complain("%s: %s", argv[0], strerror(errno));
        return EXIT_USAGE;
    }
    n = fread(text, 1, NOTE_MAX, f);
    fclose(f);
    if (ctl->key == NULL) {
        complain("restore verify needs --key, the verifier key that kmsctl audit key prints");
        return EXIT_USAGE;
    }
    if ((status = read_note_key(&given, ctl->key)) != 0)
        return status;
    r = note_parse(&note, text, n);
    if (r == KMS_OK && (note.n == 0 || note.sig[0].name_len > NOTE_NAME_MAX ||
                        note.text_len < strlen(REPORT_HEAD) ||
                        memcmp(note.text, REPORT_HEAD, strlen(REPORT_HEAD)) != 0))
        r = KMS_ERR_SYNTAX;
    if (r == KMS_OK) {
        memcpy(name, note.sig[0].name, note.sig[0].name_len);
        name[note.sig[0].name_len] = '\0';
        r = note_key_init(&key, name, NOTE_ED25519, given.pub);
    }
    if (r == KMS_OK)
        r = note_verify(&note, &key, NULL);
    if (r != KMS_OK) {
        if (ctl->json)
            puts("{\"good\":false}");
        complain("%s: no report of a restore check that this key signed: %s", argv[0],
                 kms_strerror(r));
        return EXIT_REFUSED;
    }
    if (ctl->json)
        puts("{\"good\":true}");
    else
        printf("%.*s\nthe signature is right\n", (int)note.text_len, note.text);
    return EXIT_OK;
}

const struct command restore_commands[] = {
    {"restore check", "--backup PATH", 0, 0, "Kmso",
     "does what is in a backup open with the keys in the token; needs hsmd, and no kmsd",
     run_restore_check},
    {"restore verify", "REPORT --key KEY", 1, 1, "k",
     "check the signature of a report of restore check", run_restore_verify},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
