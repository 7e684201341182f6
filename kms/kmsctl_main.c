/*
 * kmsctl_main.c - the administrator's tool: calls of the admin socket, database migrations,
 * configuration checks.
 *
 * commands[] is the whole of it: words, arguments, options, help and function of each command.  A
 * function that asks the server makes params, calls `ask`, and prints the result as JSON or for
 * people.
 */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/kmsctl.h"
#include "kms/static_key.h"
#include "kms/table.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/uri.h"
#include "sql/migrate.h"

#define CONFIG_FILE  "/etc/kms/kms.conf"
#define ADMIN_SOCKET "/run/kms/admin.sock" /* without a configuration */
#define ANSWER_MAX   (64 * 1024 * 1024)
#define FOLLOW_MS    1000

void
complain(const char *fmt, ...)
{
    va_list ap;

    fputs("kmsctl: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void
print_json(const json_t *v)
{
    json_dumpf(v, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    putchar('\n');
}

/* --- the admin socket --- */

/* Its path: --socket, the environment, the configuration file.  0, or an exit status after
 * complaining. */
static int
find_socket(struct ctl *ctl)
{
    const char *env = getenv("KMS_ADMIN_SOCKET");
    struct config *cfg;

    if (ctl->socket != NULL)
        return 0;
    if (ctl->config == NULL && env != NULL && env[0] != '\0') {
        ctl->socket = strdup(env);
    } else if (ctl->config == NULL && access(CONFIG_FILE, R_OK) != 0) {
        ctl->socket = strdup(ADMIN_SOCKET);
    } else {
        if (config_look(&cfg, ctl->config != NULL ? ctl->config : CONFIG_FILE, stderr) != KMS_OK)
            return EXIT_USAGE;
        ctl->socket = strdup(cfg->admin_socket);
        config_free(cfg);
    }
    if (ctl->socket != NULL)
        return 0;
    complain("out of memory");
    return EXIT_REFUSED;
}

int
find_hsmd(struct ctl *ctl, char **socket, char **domain)
{
    const char *path = ctl->config != NULL ? ctl->config : CONFIG_FILE;
    struct config *cfg = NULL;

    *socket = *domain = NULL;
    if ((ctl->config != NULL || access(path, R_OK) == 0) &&
        config_look(&cfg, path, stderr) != KMS_OK)
        return EXIT_USAGE;
    if (ctl->hsm_socket == NULL && cfg == NULL) {
        complain("where is hsmd?  Name its socket with --hsm-socket, or the server's configuration "
                 "with --config");
        return EXIT_USAGE;
    }
    *socket = strdup(ctl->hsm_socket != NULL ? ctl->hsm_socket : cfg->hsm_socket);
    *domain = strdup(cfg != NULL ? cfg->domain : "");
    config_free(cfg);
    if (*socket != NULL && *domain != NULL)
        return 0;
    complain("out of memory");
    return EXIT_REFUSED;
}

static int
unreachable(const struct ctl *ctl, const char *what)
{
    const char *hint = "";

    if (errno == ENOENT || errno == ECONNREFUSED)
        hint = "; is kmsd running?  Name another socket with --socket or KMS_ADMIN_SOCKET";
    else if (errno == EACCES || errno == EPERM)
        hint = "; your user must be in the group of [admin] group";
    complain("%s %s: %s%s", what, ctl->socket, strerror(errno), hint);
    return -1;
}

/* A connected socket that does not block, or -1 after complaining. */
static int
dial(const struct ctl *ctl)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(ctl->socket) >= sizeof(sa.sun_path)) {
        errno = ENAMETOOLONG;
        return unreachable(ctl, "cannot connect to");
    }
    memcpy(sa.sun_path, ctl->socket, strlen(ctl->socket) + 1);
    /* Connecting to a Unix socket is done at once, or waits for room in the server's queue. */
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        struct timeval tv = {ctl->timeout_ms / 1000, (ctl->timeout_ms % 1000) * 1000};

        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
        if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 &&
            fcntl(fd, F_SETFL, O_NONBLOCK) == 0)
            return fd;
    }
    unreachable(ctl, "cannot connect to");
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Waits until fd can be read or written.  KMS_ERR_TIMEOUT at the deadline. */
static int
wait_for(int fd, short what, int64_t deadline)
{
    struct pollfd p = {.fd = fd, .events = what};
    int64_t left = deadline - now_ms();
    int r = left > 0 ? poll(&p, 1, (int)left) : 0;

    if (r < 0 && errno == EINTR)
        return KMS_OK;
    return r > 0 ? KMS_OK : r == 0 ? KMS_ERR_TIMEOUT : KMS_ERR_SYSTEM;
}

/* Writes a line and reads one.  KMS_ERR_UNAVAILABLE: the server closed the connection first. */
static int
exchange(int fd, const char *line, size_t len, int64_t deadline, struct buf *answer)
{
    static char chunk[65536];
    int r = KMS_OK;

    while (len > 0 && (r = wait_for(fd, POLLOUT, deadline)) == KMS_OK) {
        ssize_t n = send(fd, line, len, MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return KMS_ERR_UNAVAILABLE;
        line += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    while (r == KMS_OK && (r = wait_for(fd, POLLIN, deadline)) == KMS_OK) {
        ssize_t n = recv(fd, chunk, sizeof(chunk), 0);

        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return KMS_ERR_UNAVAILABLE;
        if (n < 0)
            continue;
        if (answer->len + (size_t)n > ANSWER_MAX)
            return KMS_ERR_LENGTH;
        if ((r = buf_put(answer, chunk, (size_t)n)) == KMS_OK && chunk[n - 1] == '\n')
            return KMS_OK;
    }
    return r;
}

/* Tells an error of the server's, for people and, with --json, for programs. */
void
tell_error(const struct ctl *ctl, const char *method, const json_t *error)
{
    const char *why = json_string_value(json_object_get(error, "message"));
    json_int_t code = json_integer_value(json_object_get(error, "code"));

    if (ctl->json) {
        json_t *o = json_pack("{s:O}", "error", error);

        print_json(o);
        json_decref(o);
    }
    complain("%s: %s (%" JSON_INTEGER_FORMAT ")", method, why != NULL ? why : "refused", code);
}

/*
 * When the connection breaks the call is sent once more: its op makes that safe.  The connection is
 * kept, since the server takes a connection's calls for pages of one log as one reading of it.
 */
int
ask_quietly(struct ctl *ctl, const char *method, json_t *params, json_t **result, json_t **error)
{
    int64_t deadline = now_ms() + ctl->timeout_ms;
    struct buf answer = BUF_INIT, line = BUF_INIT;
    char op[UUID_TEXT + 1];
    struct uuid id;
    json_t *call = NULL, *reply = NULL;
    int r = KMS_ERR_NOMEM, status = EXIT_REFUSED;

    *result = *error = NULL;
    if (ctl->socket == NULL && (status = find_socket(ctl)) != 0) {
        json_decref(params);
        return status;
    }
    status = EXIT_REFUSED;
    if (ctl->op != NULL)
        snprintf(op, sizeof(op), "%s", ctl->op);
    else if (uuid_random(&id) == KMS_OK)
        uuid_format(op, &id);
    else
        goto out;
    json_object_set_new(params, "op", json_string(op));
    call = json_pack("{s:s, s:i, s:s, s:O}", "jsonrpc", "2.0", "id", 1, "method", method, "params",
                     params);
    if (call == NULL || (r = kms_json_put(&line, call)) != KMS_OK ||
        (r = buf_putc(&line, '\n')) != KMS_OK)
        goto out;
    for (int attempt = 0; attempt < 2; attempt++) {
        if (ctl->fd < 0 && (ctl->fd = dial(ctl)) < 0) {
            status = EXIT_UNREACHABLE;
            goto complained;
        }
        buf_reset(&answer);
        r = exchange(ctl->fd, buf_str(&line), line.len, deadline, &answer);
        if (r == KMS_OK)
            break;
        close(ctl->fd);
        ctl->fd = -1;
        if (r != KMS_ERR_UNAVAILABLE)
            break;
    }
    if (r == KMS_ERR_UNAVAILABLE || r == KMS_ERR_TIMEOUT) {
        complain("%s: %s; it may have been done: repeat it with --op %s", method,
                 r == KMS_ERR_TIMEOUT ? "no answer in time" : "the server closed the connection",
                 op);
        status = EXIT_UNREACHABLE;
        goto complained;
    }
    if (r == KMS_OK)
        r = kms_json_parse(&reply, buf_str(&answer), answer.len);
    if (r != KMS_OK)
        goto out;
    *error = json_incref(json_object_get(reply, "error"));
    if (*error == NULL) {
        *result = json_incref(json_object_get(reply, "result"));
        status = EXIT_OK;
    }
    goto complained;
out:
    complain("%s: %s", method, kms_strerror(r));
complained:
    buf_release(&answer);
    buf_release(&line);
    json_decref(call);
    json_decref(reply);
    json_decref(params);
    return status;
}

int
ask(struct ctl *ctl, const char *method, json_t *params, json_t **result)
{
    json_t *error;
    int status = ask_quietly(ctl, method, params, result, &error);

    if (error != NULL)
        tell_error(ctl, method, error);
    json_decref(error);
    return status;
}

/* --- commands that ask the server --- */

/* The plain ones: show what comes back. */
int
ask_and_show(struct ctl *ctl, const char *method, json_t *params)
{
    json_t *result;
    int status = ask(ctl, method, params, &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else if (json_is_array(result))
        table_print_whole(result);
    else
        table_print_object(result, 0);
    json_decref(result);
    return EXIT_OK;
}

static void
print_status(const json_t *s)
{
    static const char *const head[] = {
        "version",  "node",          "domain",   "listen",    "pid",    "started", "draining",
        "reloaded", "reload_failed", "restarts", "log_level", "keeper", NULL};
    static const char *const workers[] = {"worker",   "pid",      "state",   "database",
                                          "hsm",      "key_set",  "rss",     "connections",
                                          "inflight", "messages", "started", NULL};
    static const char *const tail[] = {"database", "stats", "sweeper", "audit", NULL};
    json_t *part = json_object();
    const json_t *reason;
    size_t i;

    printf("%s\n", json_is_true(json_object_get(s, "ready")) ? "ready" : "NOT READY");
    json_array_foreach(json_object_get(s, "reasons"), i, reason)
    {
        struct buf text = BUF_INIT;

        table_put_value(&text, "", reason);
        printf("  %s\n", buf_str(&text));
        buf_release(&text);
    }
    putchar('\n');
    for (i = 0; head[i] != NULL; i++)
        json_object_set(part, head[i], json_object_get(s, head[i]));
    table_print_object(part, 0);
    putchar('\n');
    table_print(json_object_get(s, "workers"), workers);
    putchar('\n');
    json_object_clear(part);
    for (i = 0; tail[i] != NULL; i++)
        json_object_set(part, tail[i], json_object_get(s, tail[i]));
    table_print_object(part, 0);
    json_decref(part);
}

static int
run_status(struct ctl *ctl, int argc, char **argv)
{
    json_t *result;
    int status = ask(ctl, "status", json_object(), &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        print_status(result);
    json_decref(result);
    return EXIT_OK;
}

/*
 * hsmd asked without kmsd: kmsd does not start without a certificate of the static key, which must
 * be made first.
 */
struct direct {
    struct hsm *hsm;
    struct event_base *base;
    int err;        /* KMS_ERR_AGAIN until hsmd has answered */
    json_t *answer; /* owned */
};

static void
direct_done(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct direct *d = ctx;

    d->err = err;
    if (err == KMS_OK)
        d->err = kms_json_parse(&d->answer, (const char *)p, len);
    event_base_loopbreak(d->base);
}

static void
direct_changed(void *ctx, bool ready)
{
    struct direct *d = ctx;

    event_base_loopbreak(d->base);
}

static int
ask_hsmd(struct ctl *ctl, bool init)
{
    struct direct d = {.err = KMS_ERR_AGAIN};
    struct timeval limit = {ctl->timeout_ms / 1000, (ctl->timeout_ms % 1000) * 1000};
    int r = KMS_ERR_NOMEM;

    log_set_level(LOG_ERROR_);
    if ((d.base = event_base_new()) != NULL &&
        (d.hsm = hsm_new(d.base, ctl->hsm_socket, HSM_MANAGE, (int)ctl->timeout_ms)) != NULL) {
        hsm_on_change(d.hsm, direct_changed, &d);
        r = init ? hsm_init(d.hsm, (unsigned)ctl->bits, direct_done, &d, 0)
                 : hsm_status(d.hsm, direct_done, &d, 0);
    }
    while (r == KMS_OK && d.err == KMS_ERR_AGAIN)
        event_base_dispatch(d.base);
    /* What the keys are comes in a greeting of its own. */
    if (r == KMS_OK && d.err == KMS_OK && init && !hsm_ready(d.hsm)) {
        event_base_loopexit(d.base, &limit);
        event_base_dispatch(d.base);
    }
    if (r == KMS_OK)
        r = d.err;
    if (r == KMS_OK) {
        static_key_put(d.answer, hsm_get_info(d.hsm));
        if (ctl->json)
            print_json(d.answer);
        else
            table_print_object(d.answer, 0);
    } else {
        complain("hsmd at %s: %s; see its log", ctl->hsm_socket, kms_strerror(r));
    }
    json_decref(d.answer);
    hsm_free(d.hsm);
    if (d.base != NULL)
        event_base_free(d.base);
    return r == KMS_OK ? EXIT_OK : r == KMS_ERR_UNAVAILABLE ? EXIT_UNREACHABLE : EXIT_REFUSED;
}

static int
run_hsm_init(struct ctl *ctl, int argc, char **argv)
{
    if (ctl->hsm_socket != NULL)
        return ask_hsmd(ctl, true);
    return ask_and_show(ctl, "hsm.init", json_pack("{s:I}", "bits", (json_int_t)ctl->bits));
}

static int
run_hsm_status(struct ctl *ctl, int argc, char **argv)
{
    if (ctl->hsm_socket != NULL)
        return ask_hsmd(ctl, false);
    return ask_and_show(ctl, "hsm.status", json_object());
}

static int
run_org_add(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "org.add", json_pack("{s:s}", "name", argv[0]));
}

static int
run_org_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const names[] = {"name", "state", "generation", "created", "org", NULL};
    json_t *result;
    int status = ask(ctl, "org.list", json_object(), &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        table_print(result, names);
    json_decref(result);
    return EXIT_OK;
}

static int
run_org_show(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "org.show", json_pack("{s:s}", "name", argv[0]));
}

static int
run_org_suspend(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "org.suspend", json_pack("{s:s}", "name", argv[0]));
}

static int
run_org_resume(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "org.resume", json_pack("{s:s}", "name", argv[0]));
}

const char *
last_part(const char *uri)
{
    const char *slash = strrchr(uri, '/');

    return slash != NULL ? slash + 1 : uri;
}

static int
run_key_show(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "key.show", json_pack("{s:s}", "id", last_part(argv[0])));
}

static int
run_resource_show(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "resource.show", json_pack("{s:s}", "id", last_part(argv[0])));
}

static int
run_log_level(struct ctl *ctl, int argc, char **argv)
{
    json_t *params = json_object();

    if (argc > 0)
        json_object_set_new(params, "level", json_string(argv[0]));
    return ask_and_show(ctl, "log.level", params);
}

static int
run_reload(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "reload", json_object());
}

static int
run_drain(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "drain", json_pack("{s:b}", "exit", ctl->exit));
}

/* Of each entry what fits a line: who did what to what, and was it allowed. */
static void
print_entries(const json_t *entries, bool heading, bool one_org)
{
    static const char *const names[] = {"entry",   "at",       "org_name", "action",
                                        "verdict", "subject",  "behalf",   "client",
                                        "keys",    "resource", NULL};
    json_t *rows = json_array(), *e;
    size_t i;

    json_array_foreach(entries, i, e)
    {
        const json_t *keys = json_object_get(e, "keys");
        json_t *row = json_copy(e);

        if (json_integer_value(json_object_get(e, "verdict")) == 0)
            json_object_set_new(row, "verdict", json_string("done"));
        if (one_org)
            json_object_del(row, "org_name");
        if (json_array_size(keys) > 1)
            json_object_set_new(row, "keys", json_sprintf("%zu keys", json_array_size(keys)));
        json_array_append_new(rows, row);
    }
    if (heading || json_array_size(rows) > 0)
        table_print(rows, names);
    json_decref(rows);
}

static int
run_audit_tail(struct ctl *ctl, int argc, char **argv)
{
    json_int_t after = 0;
    bool first = true;

    for (;;) {
        json_t *params = json_pack("{s:I, s:I}", "after", after, "limit", (json_int_t)ctl->limit);
        json_t *result, *e;
        const json_t *entries;
        size_t i;
        int status;

        if (argc > 0)
            json_object_set_new(params, "org", json_string(argv[0]));
        if ((status = ask(ctl, "audit.tail", params, &result)) != 0)
            return status;
        entries = json_object_get(result, "entries");
        if (ctl->json && !ctl->follow) {
            print_json(result);
        } else if (ctl->json) {
            json_array_foreach(entries, i, e) print_json(e);
        } else {
            print_entries(entries, first, argc > 0);
        }
        json_array_foreach(entries, i, e)
        {
            json_int_t seq = json_integer_value(json_object_get(e, "entry"));

            after = seq > after ? seq : after;
        }
        json_decref(result);
        if (!ctl->follow)
            return EXIT_OK;
        fflush(stdout);
        first = false;
        poll(NULL, 0, FOLLOW_MS);
    }
}

/* --- commands that work without the server --- */

static int
run_config_sample(struct ctl *ctl, int argc, char **argv)
{
    config_print_sample();
    return EXIT_OK;
}

static int
run_config_check(struct ctl *ctl, int argc, char **argv)
{
    const char *path = argc > 0 ? argv[0] : ctl->config != NULL ? ctl->config : CONFIG_FILE;
    struct config *c;

    if (config_read(&c, path, stderr) != KMS_OK) {
        if (ctl->json)
            puts("{\"ok\":false}");
        return EXIT_REFUSED;
    }
    config_free(c);
    puts(ctl->json ? "{\"ok\":true}" : "the configuration is right");
    return EXIT_OK;
}

/* Where the database is: --url, the environment; "" leaves it to libpq's own variables. */
static const char *
database_url(const struct ctl *ctl)
{
    const char *env = getenv("KMS_DATABASE_URL");

    return ctl->url != NULL ? ctl->url : env != NULL ? env : "";
}

static int
database_status(int r)
{
    if (r == KMS_ERR_UNAVAILABLE)
        complain(
            "name the database with --url, KMS_DATABASE_URL or libpq's variables (PGHOST, ...)");
    return r == KMS_OK ? EXIT_OK : r == KMS_ERR_UNAVAILABLE ? EXIT_UNREACHABLE : EXIT_REFUSED;
}

/* Progress is for people, and goes where it cannot be taken for the answer. */
static void
say_progress(void *ctx, const char *text)
{
    fprintf(stderr, "kmsctl: %s\n", text);
}

static void
collect_migration(void *ctx, const struct migrate_row *row)
{
    const char *state = !row->known               ? "newer than this program"
                        : row->changed            ? "changed since"
                        : row->applied_at != NULL ? "applied"
                                                  : "missing";

    json_array_append_new(ctx, json_pack("{s:i, s:s, s:s, s:s?}", "migration", row->number, "name",
                                         row->name, "state", state, "applied", row->applied_at));
}

static int
run_database_status(struct ctl *ctl, int argc, char **argv)
{
    json_t *rows = json_array();
    int r = migrate_status(database_url(ctl), collect_migration, say_progress, rows);

    if (r == KMS_OK && ctl->json)
        print_json(rows);
    else if (r == KMS_OK)
        table_print_whole(rows);
    json_decref(rows);
    return database_status(r);
}

static int
run_database_migrate(struct ctl *ctl, int argc, char **argv)
{
    int r = migrate(database_url(ctl), say_progress, NULL);

    if (r == KMS_OK)
        r = migrate_check_log(database_url(ctl), say_progress, NULL);
    if (r != KMS_OK)
        return database_status(r);
    if (ctl->json)
        return run_database_status(ctl, argc, argv);
    puts("the schema is what this program knows");
    return EXIT_OK;
}

static int run_completion(struct ctl *ctl, int argc, char **argv);

/* --- the commands --- */

enum { OPT_SOCKET = 1000, OPT_CONFIG, OPT_TIMEOUT, OPT_OP, OPT_VERSION };

/* Letters stand for options that only some commands take (commands[].options). */
static const struct option options[] = {
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"config", required_argument, NULL, OPT_CONFIG},
    {"json", no_argument, NULL, 'j'},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"op", required_argument, NULL, OPT_OP},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, OPT_VERSION},
    {"url", required_argument, NULL, 'u'},
    {"hsm-socket", required_argument, NULL, 's'},
    {"bits", required_argument, NULL, 'b'},
    {"exit", no_argument, NULL, 'x'},
    {"limit", required_argument, NULL, 'n'},
    {"follow", no_argument, NULL, 'f'},
    {"watch", no_argument, NULL, 'v'},
    {"for", required_argument, NULL, 'O'},
    {"dry-run", no_argument, NULL, 'D'},
    {"check", no_argument, NULL, 'Z'},
    {"backup", required_argument, NULL, 'K'},
    {"sample", required_argument, NULL, 'm'},
    {"all", no_argument, NULL, 'a'},
    {"key", required_argument, NULL, 'k'},
    {"checkpoint", required_argument, NULL, 'c'},
    {"out", required_argument, NULL, 'o'},
    {"identity", required_argument, NULL, 'i'},
    {"purpose", required_argument, NULL, 'p'},
    {"org", required_argument, NULL, 'g'},
    {"kind", required_argument, NULL, 'y'},
    {"rate", required_argument, NULL, 'r'},
    {"breadth", required_argument, NULL, 'B'},
    {"public-key", required_argument, NULL, 'P'},
    {"custodian", required_argument, NULL, 'C'},
    {"from", required_argument, NULL, 'F'},
    {"to", required_argument, NULL, 'T'},
    {"expires", required_argument, NULL, 'E'},
    {"sealed-until", required_argument, NULL, 'S'},
    {"hash", required_argument, NULL, 'H'},
    {"why", required_argument, NULL, 'w'},
    {"state", required_argument, NULL, 't'},
    {"issuer", required_argument, NULL, 'I'},
    {"note", required_argument, NULL, 'N'},
    {NULL, 0, NULL, 0},
};
/* Those whose values are only collected, for the commands to read. */
#define COLLECTED "ipgyrBPCFTESHwtINOKm"

static const struct {
    char letter;
    const char *text;
} option_help[] = {
    {'u', "  --url URL      connection string of the database's owner; default: KMS_DATABASE_URL,\n"
          "                 else what libpq's variables say (PGHOST, PGDATABASE, PGSERVICE, ...)"},
    {'s', "  --hsm-socket PATH  of hsmd, which is asked itself, with or without kmsd"},
    {'b', "  --bits N       size of the static RSA key: 2048, 3072 (default) or 4096"},
    {'x', "  --exit         finish what is under way, then end the server"},
    {'n', "  --limit N      at most so many entries (default 20, at most 1000)"},
    {'O', "  --for LENGTH   how long: 30m, 2h, 7d; at most 90 days"},
    {'Z', "  --check        look for each of those keys in the token"},
    {'K', "  --backup PATH  a file or directory of pg_dump, or a directory of pg_basebackup"},
    {'m', "  --sample N     keys and recordings of each generation (default 10)"},
    {'D', "  --dry-run      show what it would touch, and do nothing"},
    {'v', "  --watch        show it every second, until it is done"},
    {'a', "  --all          of all organisations, and of the installation"},
    {'f', "  --follow       go on with new entries as they are made"},
    {'k', "  --key KEY      the log's verifier key (kmsctl audit key), or a file with it"},
    {'c', "  --checkpoint FILE  one that was kept elsewhere: the log must continue it"},
    {'o', "  --out FILE     where to write it (of a matter a directory); default: standard output"},
    {'i', "  --identity URI the SAN URI of the service's certificates"},
    {'p', "  --purpose P    indexing, dlp, ediscovery, archival, transcoding; several: P,P"},
    {'g', "  --org NAME     an organisation (of a service several: NAME,NAME)"},
    {'C', "  --custodian U  a user whose resources are covered; several: U,U"},
    {'y',
     "  --kind K       space, meeting, file, whiteboard, calendar; several: K,K (default all)"},
    {'r', "  --rate N       requests a second of each node (default 100; 0: no limit)"},
    {'B', "  --breadth N    distinct resources an hour (default 1000; 0: no limit)"},
    {'P',
     "  --public-key FILE  it gets keys only encrypted to this: a public JWK, or PEM of a public\n"
     "                 key or certificate; \"none\" ends that"},
    {'F', "  --from TIME    keys bound from then on: 2026-01-31, or 2026-01-31T08:00:00Z"},
    {'T', "  --to TIME      keys bound before then"},
    {'E', "  --expires TIME when it ends: a time, or from now: 12h, 90d"},
    {'S', "  --sealed-until TIME  until then receipts do not show what was released under it"},
    {'H', "  --hash HASH    approve only the report with this hash"},
    {'w', "  --why TEXT     the reason, for the log"},
    {'t', "  --state STATE  only those in that state; all: of any"},
    {'I', "  --issuer HEX   SHA-256 of the issuer's name in DER; default: whoever issued it"},
    {'N', "  --note TEXT    what the alarm says"},
};

static const struct command main_commands[] = {
    {"status", "", 0, 0, "", "is the server fit to serve, and what is it doing", run_status},
    {"database migrate", "", 0, 0, "u", "make or upgrade the schema; needs no running server",
     run_database_migrate},
    {"database status", "", 0, 0, "u", "the schema's version and what is to be applied",
     run_database_status},
    {"hsm init", "", 0, 0, "bs", "make the keys that the token does not have yet", run_hsm_init},
    {"hsm status", "", 0, 0, "s", "the token, its keys, what it can do", run_hsm_status},
    {"org add", "NAME", 1, 1, "", "add an organisation, named as tokens name it", run_org_add},
    {"org list", "", 0, 0, "", "all organisations", run_org_list},
    {"org show", "NAME", 1, 1, "", "one organisation and its figures", run_org_show},
    {"org suspend", "NAME", 1, 1, "", "refuse every request of it, until resumed", run_org_suspend},
    {"org resume", "NAME", 1, 1, "", "serve a suspended organisation again", run_org_resume},
    {"key show", "ID", 1, 1, "", "what is known of a content key, but not the key", run_key_show},
    {"resource show", "ID", 1, 1, "", "a resource, its authorisations, the number of its keys",
     run_resource_show},
    {"audit tail", "[ORG]", 0, 1, "nf",
     "the last entries of an organisation's log, or the installation's own", run_audit_tail},
    {"audit show", "ENTRY [ORG]", 1, 2, "",
     "one entry as its leaf in the log, with the names it stands for", run_audit_show},
    {"audit key", "[ORG]", 0, 1, "", "the key that a log is verified with", run_audit_key},
    {"audit prove", "ENTRY [ORG]", 1, 2, "o",
     "a proof that an entry is in the log (C2SP tlog-proof)", run_audit_prove},
    {"audit export", "DIR [ORG]", 1, 2, "",
     "write a log to a directory (C2SP tlog-tiles), or what is new", run_audit_export},
    {"audit verify", "DIR|PROOF --key KEY", 1, 1, "kc",
     "check an exported log or a proof; needs no server", run_audit_verify},
    {"audit check", "[ORG]", 0, 1, "kc", "check the log in the database", run_audit_check},
    {"audit cosign", "FILE [ORG]", 1, 2, "", "keep a checkpoint that a witness has cosigned",
     run_audit_cosign},
    {"person erase", "ORG SUBJECT", 2, 2, "",
     "destroy what tells whose the entries of a person are", run_person_erase},
    {"log level", "[LEVEL]", 0, 1, "", "tell or set the log level: error, warn, info, debug",
     run_log_level},
    {"reload", "", 0, 0, "", "read the configuration again, dropping no connection", run_reload},
    {"drain", "", 0, 0, "x", "take no new connections", run_drain},
    {"config sample", "", 0, 0, "", "print a configuration with every setting explained",
     run_config_sample},
    {"config check", "[FILE]", 0, 1, "", "tell everything that is wrong in a configuration",
     run_config_check},
    {"completion bash", "", 0, 0, "", "print a completion script for bash", run_completion},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
static const struct command *const command_lists[] = {
    main_commands,   control_commands, explain_commands, cmk_commands,    rotation_commands,
    freeze_commands, backup_commands,  restore_commands, destroy_commands};

/* All of them; those with the same first word stand together. */
#define COMMANDS_MAX 160
static struct command commands[COMMANDS_MAX];
static size_t n_commands;

/* The first word, for the first command that has it. */
static size_t
first_word(const char *words)
{
    return strcspn(words, " ");
}

static void
gather_commands(void)
{
    for (size_t l = 0; l < sizeof(command_lists) / sizeof(command_lists[0]); l++) {
        for (const struct command *c = command_lists[l]; c->words != NULL; c++) {
            size_t n = first_word(c->words), at = n_commands;

            if (n_commands == COMMANDS_MAX)
                abort();
            while (at > 0 && (first_word(commands[at - 1].words) != n ||
                              strncmp(commands[at - 1].words, c->words, n) != 0))
                at--;
            if (at == 0)
                at = n_commands; /* the first of its group */
            memmove(&commands[at + 1], &commands[at], (n_commands - at) * sizeof(*c));
            commands[at] = *c;
            n_commands++;
        }
    }
}

static bool
is_new_group(size_t i)
{
    size_t n = first_word(commands[i].words);

    return i == 0 || strncmp(commands[i].words, commands[i - 1].words, n + 1) != 0;
}

static int
run_completion(struct ctl *ctl, int argc, char **argv)
{
    puts("# bash completion for kmsctl; made by: kmsctl completion bash\n"
         "_kmsctl()\n"
         "{\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]} words= i\n"
         "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
         "        case ${COMP_WORDS[i]} in");
    fputs("        ", stdout);
    for (size_t i = 0, n = 0; options[i].name != NULL; i++) {
        if (options[i].has_arg == required_argument)
            printf("%s--%s", n++ > 0 ? " | " : "", options[i].name);
    }
    puts(") ((i++)) ;;\n"
         "        -*) ;;\n"
         "        *) words+=\"${words:+ }${COMP_WORDS[i]}\" ;;\n"
         "        esac\n"
         "    done\n"
         "    if [[ $cur == -* ]]; then");
    fputs("        set --", stdout);
    for (size_t i = 0; options[i].name != NULL; i++)
        printf(" --%s", options[i].name);
    fputs("\n        COMPREPLY=($(compgen -W \"$*\" -- \"$cur\"))\n"
          "        return\n"
          "    fi\n"
          "    case $words in\n"
          "    \"\") set --",
          stdout);
    for (size_t i = 0; i < n_commands; i++) {
        if (is_new_group(i))
            printf(" %.*s", (int)first_word(commands[i].words), commands[i].words);
    }
    puts(" ;;");
    for (size_t i = 0; i < n_commands; i++) {
        size_t n = first_word(commands[i].words);

        if (commands[i].words[n] == '\0')
            continue;
        if (is_new_group(i))
            printf("    %.*s) set --", (int)n, commands[i].words);
        printf(" %s", commands[i].words + n + 1);
        if (i + 1 == n_commands || is_new_group(i + 1))
            puts(" ;;");
    }
    puts("    \"log level\") set -- error warn info debug ;;\n"
         "    *) set -- ;;\n"
         "    esac\n"
         "    COMPREPLY=($(compgen -W \"$*\" -- \"$cur\"))\n"
         "}\n"
         "complete -o default -F _kmsctl kmsctl");
    return EXIT_OK;
}

static int
command_width(const struct command *c)
{
    return (int)(strlen(c->words) + 1 + strlen(c->args));
}

static void
print_command(FILE *out, const struct command *c, int width)
{
    fprintf(out, "  %s %-*s  %s\n", c->words, width - 1 - (int)strlen(c->words), c->args, c->help);
}

/* The commands that begin with a word.  False: there is none. */
static bool
print_group(FILE *out, const char *word)
{
    size_t n = strlen(word);
    int width = 0;

    for (size_t i = 0; i < n_commands; i++) {
        if (strncmp(commands[i].words, word, n) == 0 && commands[i].words[n] == ' ' &&
            command_width(&commands[i]) > width)
            width = command_width(&commands[i]);
    }
    if (width == 0)
        return false;
    fprintf(out, "usage: kmsctl %s COMMAND\n\n", word);
    for (size_t i = 0; i < n_commands; i++) {
        if (strncmp(commands[i].words, word, n) == 0 && commands[i].words[n] == ' ')
            print_command(out, &commands[i], width);
    }
    fprintf(out, "\nkmsctl %s COMMAND --help tells its options.\n", word);
    return true;
}

static void
print_help(FILE *out)
{
    int width = 0;

    for (size_t i = 0; i < n_commands; i++) {
        int n = command_width(&commands[i]);

        width = n > width ? n : width;
    }
    fputs("usage: kmsctl [OPTION...] COMMAND\n\n", out);
    for (size_t i = 0; i < n_commands; i++)
        print_command(out, &commands[i], width);
    fputs("\n"
          "  --socket PATH  the admin socket; default: KMS_ADMIN_SOCKET, else what the\n"
          "                 configuration says\n"
          "  --config FILE  default: " CONFIG_FILE "\n"
          "  --json         for programs: one line of JSON\n"
          "  --timeout S    wait at most so long (default 30 seconds)\n"
          "  --op UUID      repeat a command whose outcome was not known, safely\n"
          "  --help         of a command, after its words\n"
          "\n"
          "Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the server cannot be "
          "reached.\n",
          out);
}

/* What one line does not say. */
static const struct {
    const char *words, *text;
} more_help[] = {
    {"org set",
     "  compliance=role|matter     may compliance officers act by their role, or only under\n"
     "                             an open matter\n"
     "  dlp.age=24h                how old a binding the purpose dlp may see\n"
     "  rotate.removal=on|off      a new active key whenever an authorisation is removed\n"
     "  retention.recording=90d    for how long recordings are kept; 0: for ever\n"
     "  retention.transcript=90d   likewise, transcripts\n"
     "\n"
     "What tightens is done at once.  What opens up, switches rotation off or destroys\n"
     "earlier needs approval."},
    {"rule set", "  approvals=2                officers that an action needs, who asks included\n"
                 "  approvals.matter=2         likewise, a matter\n"
                 "  approvals.lifetime=3d      how long an action waits for them\n"
                 "\n"
                 "What tightens is done at once, what loosens needs approval."},
    {"cmk import",
     "FILE is the main key, 32 bytes, encrypted to the organisation's public key, as it is or in\n"
     "base64:\n"
     "\n"
     "  kmsctl cmk public-key ORG >public.pem\n"
     "  openssl pkeyutl -encrypt -pubin -inkey public.pem -in main.key -out FILE \\\n"
     "      -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256"},
    {"cmk revoke", "Users are told 405005.  To open it again: kmsctl cmk activate ORG ID."},
    {"cmk disable", "Users are told 405006.  To open it again: kmsctl cmk activate ORG ID."},
    {"root rotate", "How far it is: kmsctl rotation status --watch."},
    {"root destroy",
     "Refused while anything is under it, and for two minutes after it was retired.  Backups of\n"
     "the database from before its rotation open nothing afterwards."},
};

static void
print_command_help(const struct command *c)
{
    printf("usage: kmsctl %s%s%s%s\n\n%s\n", c->words, c->args[0] != '\0' ? " " : "", c->args,
           c->options[0] != '\0' ? " [OPTION...]" : "", c->help);
    for (size_t i = 0; i < sizeof(more_help) / sizeof(more_help[0]); i++) {
        if (strcmp(more_help[i].words, c->words) == 0)
            printf("\n%s\n", more_help[i].text);
    }
    if (c->options[0] != '\0')
        putchar('\n');
    for (size_t i = 0; i < sizeof(option_help) / sizeof(option_help[0]); i++) {
        if (strchr(c->options, option_help[i].letter) != NULL)
            puts(option_help[i].text);
    }
}

/* The command whose words argv begins with; *used: how many of them. */
static const struct command *
find_command(int argc, char **argv, int *used)
{
    for (size_t i = 0; i < n_commands; i++) {
        const char *words = commands[i].words;
        size_t n = first_word(words);

        if (argc < 1 || strlen(argv[0]) != n || strncmp(argv[0], words, n) != 0)
            continue;
        *used = 1;
        if (words[n] == '\0')
            return &commands[i];
        *used = 2;
        if (argc > 1 && strcmp(argv[1], words + n + 1) == 0)
            return &commands[i];
    }
    return NULL;
}

static bool
parse_number(const char *text, long long min, long long max, long long *out)
{
    char *end;

    errno = 0;
    *out = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *out >= min && *out <= max;
}

/* Another value of an option.  False: complained. */
static bool
collect(struct ctl *ctl, const char *name, const char *value)
{
    json_t *all = json_object_get(ctl->values, name);

    if (all == NULL)
        json_object_set_new(ctl->values, name, all = json_array());
    if (json_array_append_new(all, json_string(value)) != 0) {
        complain("--%s: what is given is no text in UTF-8", name);
        return false;
    }
    return true;
}

/* Options may stand anywhere.  given: the letters of the command's own ones.  False: complained. */
static bool
parse_options(struct ctl *ctl, int argc, char **argv, bool *help, char *given)
{
    struct uuid id;
    long long n;
    int opt, at = 0;

    while ((opt = getopt_long(argc, argv, "hj", options, &at)) != -1) {
        switch (opt) {
        case OPT_SOCKET:
            free(ctl->socket);
            ctl->socket = strdup(optarg);
            break;
        case OPT_CONFIG:
            ctl->config = optarg;
            break;
        case 'j':
            ctl->json = true;
            break;
        case OPT_TIMEOUT:
            if (!parse_number(optarg, 1, 3600, &n)) {
                complain("--timeout: \"%s\" is not a number of seconds, 1 to 3600", optarg);
                return false;
            }
            ctl->timeout_ms = n * 1000;
            break;
        case OPT_OP:
            if (uuid_parse(&id, optarg, strlen(optarg)) != KMS_OK) {
                complain("--op: \"%s\" is not a UUID", optarg);
                return false;
            }
            ctl->op = optarg;
            break;
        case 'h':
            *help = true;
            break;
        case OPT_VERSION:
            puts(PACKAGE_STRING);
            exit(EXIT_OK);
        case 'u':
            ctl->url = optarg;
            break;
        case 's':
            ctl->hsm_socket = optarg;
            break;
        case 'b':
            if (!parse_number(optarg, 2048, 4096, &ctl->bits) || ctl->bits % 1024 != 0) {
                complain("--bits: \"%s\" is not 2048, 3072 or 4096", optarg);
                return false;
            }
            break;
        case 'x':
            ctl->exit = true;
            break;
        case 'n':
            if (!parse_number(optarg, 1, 1000, &ctl->limit)) {
                complain("--limit: \"%s\" is not a number from 1 to 1000", optarg);
                return false;
            }
            break;
        case 'f':
            ctl->follow = true;
            break;
        case 'v':
            ctl->watch = true;
            break;
        case 'D':
            ctl->dry_run = true;
            break;
        case 'Z':
            ctl->check = true;
            break;
        case 'a':
            ctl->all = true;
            break;
        case 'k':
            ctl->key = optarg;
            break;
        case 'c':
            ctl->checkpoint = optarg;
            break;
        case 'o':
            ctl->out = optarg;
            break;
        default:
            if (opt > 'z' || strchr(COLLECTED, opt) == NULL)
                return false; /* getopt has complained */
            if (!collect(ctl, options[at].name, optarg))
                return false;
        }
        if (opt != 'j' && opt != 'h' && opt <= 'z')
            given[strlen(given)] = (char)opt;
    }
    return true;
}

int
main(int argc, char **argv)
{
    struct ctl ctl = {.timeout_ms = 30000, .bits = 3072, .limit = 20, .fd = -1};
    const struct command *c;
    char *given = calloc((size_t)argc + 1, 1);
    bool help = false;
    int used = 0, status = EXIT_USAGE;

    kms_json_init();
    gather_commands();
    ctl.values = json_object();
    if (given == NULL || !parse_options(&ctl, argc, argv, &help, given))
        goto out;
    argc -= optind;
    argv += optind;
    c = find_command(argc, argv, &used);
    if (c == NULL && help && argc < 2) {
        if (argc == 0)
            print_help(stdout);
        if (argc == 0 || print_group(stdout, argv[0])) {
            status = EXIT_OK;
            goto out;
        }
    }
    if (c == NULL) {
        if (argc > 0)
            complain("there is no command \"%s%s%s\"", argv[0], argc > 1 ? " " : "",
                     argc > 1 ? argv[1] : "");
        if (argc == 0 || !print_group(stderr, argv[0]))
            print_help(stderr);
        goto out;
    }
    if (help) {
        print_command_help(c);
        status = EXIT_OK;
        goto out;
    }
    argc -= used;
    argv += used;
    if (argc < c->min || argc > c->max) {
        complain("usage: kmsctl %s %s", c->words, c->args);
        goto out;
    }
    if (strspn(given, c->options) != strlen(given)) {
        complain("%s does not take that option; see kmsctl %s --help", c->words, c->words);
        goto out;
    }
    status = c->run(&ctl, argc, argv);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("cannot write: %s", strerror(errno));
        status = EXIT_REFUSED;
    }
out:
    if (ctl.fd >= 0)
        close(ctl.fd);
    json_decref(ctl.values);
    free(ctl.socket);
    free(given);
    return status;
}
