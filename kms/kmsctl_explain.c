/*
 * kmsctl_explain.c - decisions and releases for people: explain, matter report.
 *
 * The sentences of an explanation are the server's, made in one place of log and state; here they
 * are set.  A report's proofs are made here, from the log's tiles, and checked before they are
 * shown.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kms/kmsctl.h"
#include "kms/kmsctl_log.h"
#include "kms/table.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/uri.h"

#define WIDTH    100
#define LABEL    15
#define PAGE_MAX 1000
#define TOLD_MAX 20 /* requests, in one answer of explain */
#define WAIT_MS  1000
#define WAITS    15 /* for the checkpoint that has the last entries */

/* --- explain --- */

static const char *
text_of(const json_t *o, const char *name)
{
    return json_string_value(json_object_get(o, name));
}

/* A label, and text that is wrapped beside it.  What controls a terminal is shown as '?'. */
static void
put_paragraph(const char *label, const char *text)
{
    size_t column = LABEL;

    if (text == NULL)
        return;
    printf("  %-*s", LABEL - 2, label);
    for (bool first = true; *text != '\0'; first = false) {
        size_t n = strcspn(text, " "), wide = 0;

        for (size_t i = 0; i < n; i++)
            wide += ((unsigned char)text[i] & 0xc0) != 0x80;
        if (!first && column + 1 + wide > WIDTH) {
            printf("\n%*s", LABEL, "");
            column = LABEL;
        } else if (!first) {
            putchar(' ');
            column++;
        }
        for (size_t i = 0; i < n; i++)
            putchar((unsigned char)text[i] < ' ' || text[i] == 127 ? '?' : text[i]);
        column += wide;
        text += n + (text[n] == ' ');
    }
    putchar('\n');
}

static void
put_since(const json_t *entry)
{
    const json_t *list = json_object_get(entry, "since"), *line;
    size_t i;

    json_array_foreach(list, i, line)
    {
        put_paragraph(i == 0 ? "Since then" : "", json_string_value(line));
    }
}

static void
put_entry_line(const json_t *e)
{
    const char *org = text_of(e, "org_name");
    json_int_t leaf = json_integer_value(json_object_get(e, "leaf"));

    printf("Entry %" JSON_INTEGER_FORMAT " of ", json_integer_value(json_object_get(e, "entry")));
    if (org != NULL)
        printf("the log of %s", org);
    else
        printf("the installation's own log");
    if (!json_is_integer(json_object_get(e, "leaf")))
        printf(", which has no place in it yet\n");
    else
        printf(", leaf %" JSON_INTEGER_FORMAT ", %s\n", leaf,
               json_is_true(json_object_get(e, "signed")) ? "under a signed checkpoint"
                                                          : "under no checkpoint yet");
}

/* What one request wrote, told together. */
static void
put_request(const json_t *request)
{
    const json_t *entries = json_object_get(request, "entries"), *e, *said;
    const json_t *first = json_object_get(json_array_get(entries, 0), "said");
    const char *rule = text_of(first, "rule"), *other; /* the one that was printed last */
    size_t i, n = json_array_size(entries);

    if (n == 1)
        put_entry_line(json_array_get(entries, 0));
    else
        printf("One request, in %zu entries\n", n);
    put_paragraph("Who", text_of(first, "who"));
    put_paragraph("Asked", text_of(first, "asked"));
    put_paragraph("Authorised", text_of(first, "authorisation"));
    put_paragraph("Rule", rule);
    json_array_foreach(entries, i, e)
    {
        said = json_object_get(e, "said");
        if (n > 1) {
            putchar('\n');
            put_entry_line(e);
            put_paragraph("Resource", text_of(json_object_get(e, "resource"), "id"));
            other = text_of(said, "rule");
            if (other != NULL && (rule == NULL || strcmp(rule, other) != 0))
                put_paragraph("Rule", rule = other);
        }
        put_paragraph("Keys", text_of(said, "keys"));
        put_paragraph("Outcome", text_of(said, "outcome"));
        put_paragraph("Otherwise", text_of(said, "otherwise"));
        put_since(e);
    }
}

static int
run_explain(struct ctl *ctl, int argc, char **argv)
{
    json_t *result, *request;
    size_t i;
    int status = ask(ctl, "explain", json_pack("{s:s}", "request", argv[0]), &result);

    if (status != 0)
        return status;
    if (ctl->json) {
        print_json(result);
    } else {
        json_array_foreach(result, i, request)
        {
            const char *matched = text_of(request, "matched");

            if (i > 0)
                putchar('\n');
            /* A client chooses its request ids: one may be another entry's number. */
            if (json_array_size(result) > 1 && matched != NULL)
                printf("As %s %s:\n",
                       strcmp(matched, "request") == 0 ? "a request id"
                       : strcmp(matched, "entry") == 0 ? "an entry's number"
                                                       : "an operation id",
                       argv[0]);
            put_request(request);
        }
        if (i >= TOLD_MAX)
            printf("\nThere may be more; these are the last %zu.\n", i);
    }
    json_decref(result);
    return EXIT_OK;
}

/* --- matter report --- */

/* All of it, page by page.  0 and *report is the caller's, with all entries in it. */
static int
get_report(struct ctl *ctl, const char *matter, json_t **report)
{
    json_int_t after = 0;
    int status;

    for (*report = NULL;;) {
        json_t *page, *entries;

        status =
            ask(ctl, "matter.report",
                json_pack("{s:s, s:I, s:i}", "matter", matter, "after", after, "limit", PAGE_MAX),
                &page);
        if (status != 0) {
            json_decref(*report);
            return status;
        }
        entries = json_object_get(page, "entries");
        size_t n = json_array_size(entries);
        if (n > 0)
            after = json_integer_value(json_object_get(json_array_get(entries, n - 1), "entry"));
        if (*report == NULL) {
            *report = page;
        } else {
            json_array_extend(json_object_get(*report, "entries"), entries);
            json_decref(page);
        }
        if (n < PAGE_MAX)
            return 0;
    }
}

/* Has every entry its place under this checkpoint? */
static bool
is_under(const json_t *entries, uint64_t size)
{
    const json_t *e, *index;
    size_t i;

    json_array_foreach(entries, i, e)
    {
        index = json_object_get(e, "index");
        if (!json_is_integer(index) || (uint64_t)json_integer_value(index) >= size)
            return false;
    }
    return true;
}

static int
write_failed(const char *path)
{
    complain("cannot write %s: %s", path, strerror(errno));
    return EXIT_REFUSED;
}

/* text, or tree as JSON. */
static int
write_file(const char *dir, const char *name, const char *text, const json_t *tree)
{
    char path[4096];
    FILE *f;

    if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path)) {
        errno = ENAMETOOLONG;
        return write_failed(dir);
    }
    if ((f = fopen(path, "we")) == NULL)
        return write_failed(path);
    if ((text != NULL ? fputs(text, f) : json_dumpf(tree, f, JSON_INDENT(2))) < 0) {
        fclose(f);
        return write_failed(path);
    }
    return fclose(f) == 0 ? 0 : write_failed(path);
}

/* Puts "proof" into each entry, or a file beside the others and its name into "file". */
static int
prove_all(struct remote *log, const json_t *entries, const char *dir)
{
    struct buf text = BUF_INIT;
    json_t *e;
    size_t i;
    int status = 0;

    json_array_foreach(entries, i, e)
    {
        json_int_t entry = json_integer_value(json_object_get(e, "entry"));
        char name[64];
        uint64_t index;

        buf_reset(&text);
        if ((status = log_prove(log, entry, &index, &text)) != 0)
            break;
        json_object_set_new(e, "index", json_integer((json_int_t)index));
        if (dir == NULL) {
            json_object_set_new(e, "proof", json_string(buf_str(&text)));
            continue;
        }
        snprintf(name, sizeof(name), "entry-%" JSON_INTEGER_FORMAT ".proof", entry);
        json_object_set_new(e, "file", json_string(name));
        if ((status = write_file(dir, name, buf_str(&text), NULL)) != 0)
            break;
    }
    buf_release(&text);
    return status;
}

/* A key a row, as the log has them. */
static void
print_releases(const json_t *entries, bool refused)
{
    static const char *const names[] = {"at",    "who",   "behalf", "key",     "resource", "kind",
                                        "entry", "index", "file",   "verdict", NULL};
    json_t *rows = json_array(), *e, *key;
    size_t i, k;

    json_array_foreach(entries, i, e)
    {
        json_t *keys = json_object_get(e, "keys");

        if ((json_integer_value(json_object_get(e, "verdict")) != 0) != refused)
            continue;
        if (refused)
            json_array_append(rows, e);
        json_array_foreach(keys, k, key)
        {
            json_t *row;

            if (refused)
                break;
            row = json_copy(e);
            json_object_del(row, "verdict");
            json_object_set(row, "key", key);
            json_array_append_new(rows, row);
        }
    }
    if (json_array_size(rows) == 0)
        puts("none");
    else
        table_print(rows, names);
    json_decref(rows);
}

static void
print_report(const json_t *report, const struct remote *log, const char *dir)
{
    static const char *const head[] = {"name",    "matter",       "org_name",   "state",
                                       "opened",  "opened_by",    "approved",   "closed",
                                       "expires", "sealed_until", "custodians", "kinds",
                                       "from",    "to",           "hash",       NULL};
    const json_t *entries = json_object_get(report, "entries"), *votes, *vote;
    json_t *part = json_object();
    size_t i;

    for (i = 0; head[i] != NULL; i++)
        json_object_set(part, head[i], json_object_get(report, head[i]));
    table_print_object(part, 0);
    json_decref(part);
    votes = json_object_get(json_object_get(report, "approval"), "votes");
    json_array_foreach(votes, i, vote)
    {
        struct buf at = BUF_INIT;

        table_put_value(&at, "at", json_object_get(vote, "at"));
        printf("%s  %s %s\n", i == 0 ? "agreed by" : "         ", text_of(vote, "officer"),
               buf_str(&at));
        buf_release(&at);
    }
    if (!json_is_true(json_object_get(report, "unchanged")))
        puts("\nIts text is NOT what was approved: it was changed in the database.");
    puts("\nReleased:");
    print_releases(entries, false);
    puts("\nRefused:");
    print_releases(entries, true);
    if (json_array_size(entries) == 0)
        return;
    printf("\nEach entry is proven to be in the log, under its checkpoint of %" PRIu64
           " entries.\n",
           log_size(log));
    if (dir != NULL)
        printf("The proofs are in %s; check one with: kmsctl audit verify %s/FILE --key KEY\n", dir,
               dir);
    else
        puts("--out DIR writes the proofs, for kmsctl audit verify.");
}

static int
run_matter_report(struct ctl *ctl, int argc, char **argv)
{
    json_t *report = NULL;
    struct remote *log = NULL;
    int status = 0;

    /* The last entries get their places and their checkpoint within seconds. */
    for (int tries = 0; tries < WAITS; tries++) {
        if (tries > 0)
            poll(NULL, 0, WAIT_MS);
        json_decref(report);
        log_close(log);
        log = NULL;
        if ((status = get_report(ctl, last_part(argv[0]), &report)) != 0)
            return status;
        if (json_array_size(json_object_get(report, "entries")) == 0)
            break;
        if ((status = log_open(&log, ctl, text_of(report, "org_name"))) != 0)
            goto out;
        if (is_under(json_object_get(report, "entries"), log_size(log)))
            break;
    }
    if (ctl->out != NULL && mkdir(ctl->out, 0777) != 0 && errno != EEXIST) {
        status = write_failed(ctl->out);
        goto out;
    }
    if (log != NULL) {
        if ((status = prove_all(log, json_object_get(report, "entries"), ctl->out)) != 0)
            goto out;
        json_object_set_new(report, "checkpoint", json_string(log_note(log)));
    }
    if (ctl->out != NULL) {
        status = write_file(ctl->out, "report.json", NULL, report);
        if (status == 0 && log != NULL)
            status = write_file(ctl->out, "checkpoint", log_note(log), NULL);
        if (status != 0)
            goto out;
    }
    if (ctl->json)
        print_json(report);
    else
        print_report(report, log, ctl->out);
out:
    log_close(log);
    json_decref(report);
    return status;
}

const struct command explain_commands[] = {
    {"explain", "REQUEST-ID", 1, 1, "",
     "a decision in plain words; also by an entry's number or an operation id", run_explain},
    {"matter report", "MATTER", 1, 1, "o",
     "each key released under a matter, from the log, with proofs", run_matter_report},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
