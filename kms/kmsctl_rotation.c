/*
 * kmsctl_rotation.c - roots and wrapping keys: rotation, and how far it is.
 */
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "kms/clock.h"
#include "kms/kmsctl.h"
#include "kms/table.h"
#include "proto/buf.h"

#define BAR_MIN   8 /* characters */
#define BAR_MAX   30
#define LINE_REST 88   /* what stands beside a bar */
#define WATCH_MS  1000 /* between looks */
#define RATE_LAST 10   /* looks that a rate is told from */

/* --- roots, wrapping keys --- */

static int
run_root_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {
        "root", "state", "wrapping_keys", "created", "changed", "destroyed", NULL};
    static const char *const node_columns[] = {"root", "node", "opened", "gone", "at", "why", NULL};
    json_t *result, *row, *node, *nodes, *rows;
    size_t i, n;
    int status = ask(ctl, "root.list", json_object(), &result);

    if (status != 0)
        return status;
    if (ctl->json) {
        print_json(result);
        json_decref(result);
        return EXIT_OK;
    }
    table_print(result, columns);
    /* What nodes say matters while one comes or goes. */
    rows = json_array();
    json_array_foreach(result, i, row)
    {
        nodes = json_object_get(row, "nodes");
        json_array_foreach(nodes, n, node)
        {
            json_object_set(node, "root", json_object_get(row, "root"));
            json_array_append(rows, node);
        }
    }
    if (json_array_size(rows) > 0) {
        putchar('\n');
        table_print(rows, node_columns);
    }
    json_decref(rows);
    json_decref(result);
    return EXIT_OK;
}

static int
run_root_rotate(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "root.rotate", json_object());
}

static int
run_root_retire(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "root.retire", json_pack("{s:s}", "root", argv[0]));
}

static int
run_root_destroy(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "root.destroy", json_pack("{s:s}", "root", argv[0]));
}

static int
run_wrapping_key_rotate(struct ctl *ctl, int argc, char **argv)
{
    json_t *params;
    int status;

    if ((argc == 0) != ctl->all) {
        complain("wrapping-key rotate: name an organisation, or --all");
        return EXIT_USAGE;
    }
    params = json_object();
    if (argc > 0)
        json_object_set_new(params, "org", json_string(argv[0]));
    if ((status = ask_and_tell(ctl, "wrapping_key.rotate", params)) == EXIT_OK && !ctl->json)
        puts("\nhow far it is: kmsctl rotation status --watch");
    return status;
}

/* --- how far it is --- */

/* What was done at the last looks, for the rate. */
struct progress {
    char id[40]; /* what is watched; of another one the rate is told anew */
    int64_t at[RATE_LAST], done[RATE_LAST];
    unsigned n;
};

static int64_t
number(const json_t *o, const char *name)
{
    return json_integer_value(json_object_get(o, name));
}

static const char *
text(const json_t *o, const char *name)
{
    const char *s = json_string_value(json_object_get(o, name));

    return s != NULL ? s : "";
}

/* A second; -1: not known yet. */
static double
rate_of(struct progress *p, const char *id, int64_t now, int64_t done, int64_t started)
{
    int64_t at = started, before = 0;
    unsigned i;

    if (strcmp(p->id, id) != 0 || (p->n > 0 && p->done[p->n - 1] > done)) {
        p->n = 0;
        snprintf(p->id, sizeof(p->id), "%s", id);
    }
    if (p->n > 0) {
        at = p->at[0];
        before = p->done[0];
    }
    if (p->n == RATE_LAST) {
        for (i = 1; i < RATE_LAST; i++) {
            p->at[i - 1] = p->at[i];
            p->done[i - 1] = p->done[i];
        }
        p->n--;
    }
    p->at[p->n] = now;
    p->done[p->n++] = done;
    return now > at ? (double)(done - before) * 1000 / (double)(now - at) : -1;
}

static void
put_left(struct buf *out, double seconds)
{
    long s = (long)(seconds + 0.5);

    if (s >= 2 * 3600)
        buf_putf(out, "%ld h %ld min left", s / 3600, s % 3600 / 60);
    else if (s >= 120)
        buf_putf(out, "%ld min left", s / 60);
    else
        buf_putf(out, "%ld s left", s);
}

/* As wide as leaves the line on the terminal. */
static int
bar_width(void)
{
    struct winsize size;
    int n = BAR_MAX;

    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        n = (int)size.ws_col - LINE_REST;
    return n < BAR_MIN ? BAR_MIN : n > BAR_MAX ? BAR_MAX : n;
}

/* "[#####.....]  48 %  480 of 1000 keys, 950 a second, 1 s left" */
static void
put_bar(struct buf *out, int64_t done, int64_t total, const char *what, double rate)
{
    int width = bar_width(), full = total > 0 ? (int)(done * width / total) : 0;

    buf_putc(out, '[');
    for (int i = 0; i < width; i++)
        buf_putc(out, i < full ? '#' : '.');
    buf_putf(out, "] %3d %%  %lld of %lld %s", total > 0 ? (int)(done * 100 / total) : 0,
             (long long)done, (long long)total, what);
    if (rate >= 0)
        buf_putf(out, ", %.0f a second", rate);
    if (rate > 0 && total > done) {
        buf_puts(out, ", ");
        put_left(out, (double)(total - done) / rate);
    }
}

static void
put_waits(struct buf *out, const json_t *waits)
{
    const json_t *w;
    size_t i;

    json_array_foreach(waits, i, w)
    {
        buf_puts(out, i > 0 ? "; " : "");
        table_put_value(out, "node", json_object_get(w, "node"));
        buf_puts(out, ": ");
        table_put_value(out, "why", json_object_get(w, "why"));
    }
}

/* One line for people; false: no such rotation is under way. */
static bool
put_root(struct buf *out, const json_t *status, struct progress *p)
{
    const json_t *r = json_object_get(status, "root"), *waits = json_object_get(r, "waits");
    const char *phase = text(r, "phase");

    if (!json_is_object(r))
        return false;
    buf_puts(out, "root          ");
    if (strcmp(phase, "name") == 0 || strcmp(phase, "make") == 0) {
        buf_puts(out, "the next one is being made");
    } else if (strcmp(phase, "wait") == 0) {
        buf_puts(out, "the next one is there; it becomes active when every node's token opens it");
        if (json_array_size(waits) > 0) {
            buf_puts(out, "; not yet: ");
            put_waits(out, waits);
        }
    } else if (strcmp(phase, "rewrap") == 0) {
        put_bar(out, number(r, "done"), number(r, "total"), "wrapping keys",
                rate_of(p, text(r, "rotation"), number(status, "now"), number(r, "done"),
                        number(r, "started")));
    } else {
        put_bar(out, number(r, "done"), number(r, "total"), "wrapping keys", -1);
        buf_puts(out, "; trying whether all opens without the old one");
    }
    /* Nodes that wait say why themselves. */
    if (text(r, "problem")[0] != '\0' && json_array_size(waits) == 0) {
        buf_puts(out, "; ");
        table_put_value(out, "problem", json_object_get(r, "problem"));
    }
    return true;
}

static bool
put_keys(struct buf *out, const json_t *status, struct progress *p)
{
    const json_t *k = json_object_get(status, "wrapping_keys");
    int64_t organisations = number(k, "organisations"), asked = number(k, "asked");

    if (organisations == 0 && asked > 0) {
        buf_putf(out, "wrapping keys %lld to be made", (long long)asked);
        return true;
    }
    if (organisations == 0)
        return false;
    if (number(k, "waiting") == organisations) {
        buf_putf(out, "wrapping keys made for %lld organisation%s, whose keys are being counted",
                 (long long)organisations, organisations > 1 ? "s" : "");
        return true;
    }
    buf_puts(out, "wrapping keys ");
    put_bar(out, number(k, "done"), number(k, "total"), "keys",
            rate_of(p, "keys", number(status, "now"), number(k, "done"), number(k, "started")));
    buf_putf(out, "; %lld organisation%s", (long long)organisations, organisations > 1 ? "s" : "");
    if (number(k, "waiting") > 0)
        buf_putf(out, ", %lld not counted yet", (long long)number(k, "waiting"));
    if (asked > 0)
        buf_putf(out, ", %lld to be made", (long long)asked);
    if (number(k, "problems") > 0)
        buf_putf(out, ", %lld with problems", (long long)number(k, "problems"));
    return true;
}

/* Text beyond the margin is cut, not wrapped, so that the next look finds its lines again. */
#define LINE_BEGIN "\033[?7l\033[K"
#define LINE_END   "\033[?7h"

/* The lines of what is under way; how many. */
static int
print_progress(const json_t *status, struct progress *root, struct progress *keys, bool terminal)
{
    struct buf line = BUF_INIT;
    int n = 0;

    if (put_root(&line, status, root)) {
        printf("%s%s%s\n", terminal ? LINE_BEGIN : "", buf_str(&line), terminal ? LINE_END : "");
        n++;
    }
    buf_reset(&line);
    if (put_keys(&line, status, keys)) {
        printf("%s%s%s\n", terminal ? LINE_BEGIN : "", buf_str(&line), terminal ? LINE_END : "");
        n++;
    }
    buf_release(&line);
    return n;
}

/* Those that ended since then, for people. */
static void
print_ended(const json_t *status, int64_t since)
{
    static const char *const columns[] = {"kind",  "org_name", "to",    "state",
                                          "total", "started",  "ended", NULL};
    json_t *rows = json_array(), *row;
    size_t i;

    json_array_foreach(json_object_get(status, "ended"), i, row)
    {
        if (number(row, "ended") >= since)
            json_array_append(rows, row);
    }
    if (json_array_size(rows) > 0) {
        puts(since > 0 ? "ended meanwhile" : "\nended");
        table_print(rows, columns);
    }
    json_decref(rows);
}

static void
print_status(const json_t *status)
{
    static const char *const running[] = {"org_name", "to",      "done", "total",
                                          "started",  "problem", NULL};
    static const char *const nodes[] = {"node", "seen", "leads", NULL};
    struct progress root = {.n = 0}, keys = {.n = 0};

    if (print_progress(status, &root, &keys, false) == 0)
        puts("nothing is being rotated");
    if (json_array_size(json_object_get(status, "running")) > 0) {
        puts("\norganisations");
        table_print(json_object_get(status, "running"), running);
    }
    print_ended(status, 0);
    puts("\nnodes");
    table_print(json_object_get(status, "nodes"), nodes);
}

/* Until nothing is under way. */
static int
watch(struct ctl *ctl)
{
    struct progress root = {.n = 0}, keys = {.n = 0};
    bool terminal = isatty(STDOUT_FILENO) == 1, any = true;
    int64_t began = 0;
    json_t *status;
    int lines = 0, r;

    while (any) {
        const json_t *k;

        if ((r = ask(ctl, "rotation.status", json_object(), &status)) != 0)
            return r;
        k = json_object_get(status, "wrapping_keys");
        any = json_is_object(json_object_get(status, "root")) || number(k, "organisations") > 0 ||
              number(k, "asked") > 0;
        if (began == 0)
            began = number(status, "now");
        if (ctl->json) {
            print_json(status);
        } else {
            if (terminal && lines > 0)
                printf("\033[%dA\033[J", lines);
            lines = print_progress(status, &root, &keys, terminal);
            if (!any) {
                puts("nothing is being rotated");
                print_ended(status, began);
            }
        }
        json_decref(status);
        fflush(stdout);
        if (any)
            usleep(WATCH_MS * 1000);
    }
    return EXIT_OK;
}

static int
run_rotation_status(struct ctl *ctl, int argc, char **argv)
{
    json_t *status;
    int r;

    if (ctl->watch)
        return watch(ctl);
    if ((r = ask(ctl, "rotation.status", json_object(), &status)) != 0)
        return r;
    if (ctl->json)
        print_json(status);
    else
        print_status(status);
    json_decref(status);
    return EXIT_OK;
}

const struct command rotation_commands[] = {
    {"root list", "", 0, 0, "", "root keys, and what nodes have found of them", run_root_list},
    {"root rotate", "", 0, 0, "",
     "make another root, and move everything under it (needs approval)", run_root_rotate},
    {"root retire", "ID", 1, 1, "", "give up a new root that is not active yet", run_root_retire},
    {"root destroy", "ID", 1, 1, "", "destroy a retired root in every token (needs approval)",
     run_root_destroy},
    {"wrapping-key rotate", "ORG|--all", 0, 1, "a",
     "give an organisation its next wrapping key, and move its keys under it",
     run_wrapping_key_rotate},
    {"rotation status", "", 0, 0, "v", "what is being rotated, and how far it is",
     run_rotation_status},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
