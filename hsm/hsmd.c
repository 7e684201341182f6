/*
 * hsmd.c - the custodian daemon: options, configuration, the socket, and the loop.
 *
 * One program, two kinds of process: the supervisor (server.c, pool.c), which is what an
 * administrator starts, and the custodians (custodian.c), which it starts itself.
 */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "hsm/conf.h"
#include "hsm/harden.h"
#include "hsm/log.h"
#include "hsm/server.h"
#include "hsm/setup.h"
#include "proto/err.h"

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#define SELF_FD_MIN 10 /* well above those that a custodian is given */
#define BACKLOG     64

struct config {
    char *module, *token, *pin_file, *socket, *socket_group, *allow_user, *root, *pid_file,
        *custody, *oaep, *log_level;
    long long sessions, custody_seconds, rsa_bits, call_timeout, recycle;
};

/* A table reads by its columns. */
/* clang-format off */
#define TEXT(n, d, h) { "hsmd", #n, CONF_STRING, offsetof(struct config, n), d, 0, 0, h }
#define FILE_(n, d, h) { "hsmd", #n, CONF_FILE, offsetof(struct config, n), d, 0, 0, h }
#define PATH(n, d, h) { "hsmd", #n, CONF_PATH, offsetof(struct config, n), d, 0, 0, h }
#define NUMBER(n, d, lo, hi, h) { "hsmd", #n, CONF_INT, offsetof(struct config, n), d, lo, hi, h }
#define SECONDS(n, d, lo, hi, h) { "hsmd", #n, CONF_SECONDS, offsetof(struct config, n), d, lo, hi, h }

static const struct conf_setting settings[] = {
    FILE_(module, NULL,
        "path of the PKCS#11 module (.so)"),
    TEXT(token, NULL,
        "the token's label"),
    FILE_(pin_file, "",
        "file with the user PIN; empty: the credential `pin` of the service manager, or the token's own PIN pad"),
    PATH(socket, "/run/kms-hsm/hsmd.sock",
        "the Unix socket that kmsd connects to"),
    TEXT(socket_group, "",
        "group that may reach the socket; empty: its owner only"),
    TEXT(allow_user, "",
        "name or uid of kmsd's user, who may connect besides root and hsmd's own user"),
    NUMBER(sessions, "2", 1, 64,
        "custodian processes, each with a working session and one that keeps the login"),
    TEXT(root, "",
        "CKA_ID of the current root key, 32 hexadecimal digits; empty: the oldest"),
    NUMBER(rsa_bits, "3072", 2048, 4096,
        "size of a static key that is made"),
    TEXT(custody, "token",
        "where wrapping keys are used: `token`, or `process` (hsmd's locked memory, for slow HSMs)"),
    SECONDS(custody_seconds, "5m", 1, 86400,
        "how long hsmd keeps a wrapping key with custody = process"),
    TEXT(oaep, "hsmd",
        "who checks RSA-OAEP padding: `hsmd` (after a raw operation, in constant time) or `token`; the other where one cannot"),
    SECONDS(call_timeout, "3s", 1, 300,
        "how long the module may take for one piece of work before its process is killed"),
    NUMBER(recycle, "100000", 100, 1000000000,
        "session objects made and destroyed after which a custodian is replaced, as modules leak"),
    TEXT(log_level, "info",
        "error, warn, info or debug"),
    PATH(pid_file, "",
        "where to write the process id; empty: nowhere"),
};
/* clang-format on */
#define SETTINGS_N (sizeof(settings) / sizeof(settings[0]))

/* kmsd's sections of the same file. */
static const char *const others[] = {"kms",   "tls",      "admin",     "database", "token",
                                     "hsm",   "limits",   "lifetimes", "log",      "metrics",
                                     "audit", "services", "keys",      NULL};

struct program {
    struct config config;
    struct setup setup;
    uid_t allowed;
    gid_t group; /* of the socket; -1: as it comes */
    int listener, door, lock, self_fd, ready_fd;
    struct event_base *base;
    struct server *server;
};

static void
error_cb(void *ctx, const char *text)
{
    fprintf(stderr, "%s\n", text);
}

static int
wrong(const char *path, const char *setting, const char *value, const char *what)
{
    fprintf(stderr, "%s: [hsmd] %s: \"%s\" %s\n", path, setting, value, what);
    return KMS_ERR_CONFIG;
}

static bool
parse_number(const char *word, unsigned long *n)
{
    char *end;

    errno = 0;
    *n = strtoul(word, &end, 10);
    return word[0] >= '0' && word[0] <= '9' && *end == '\0' && errno == 0 && *n < (uid_t)-1;
}

static int
parse_user(const char *path, const char *word, uid_t *uid)
{
    const struct passwd *pw;
    unsigned long n;

    *uid = geteuid();
    if (word[0] == '\0')
        return KMS_OK;
    if (parse_number(word, &n)) {
        *uid = (uid_t)n;
        return KMS_OK;
    }
    if ((pw = getpwnam(word)) == NULL)
        return wrong(path, "allow_user", word, "is no user here; write a user's name or number");
    *uid = pw->pw_uid;
    return KMS_OK;
}

static int
parse_group(const char *path, const char *word, gid_t *gid)
{
    const struct group *gr;
    unsigned long n;

    *gid = (gid_t)-1;
    if (word[0] == '\0')
        return KMS_OK;
    if (parse_number(word, &n)) {
        *gid = (gid_t)n;
        return KMS_OK;
    }
    if ((gr = getgrnam(word)) == NULL)
        return wrong(path, "socket_group", word,
                     "is no group here; write a group's name or number");
    *gid = gr->gr_gid;
    return KMS_OK;
}

static int
parse_root(const char *path, const char *text, struct setup *s)
{
    size_t len = strlen(text);

    if (len == 0)
        return KMS_OK;
    if (len != 2 * HSM_ID_LEN || strspn(text, "0123456789abcdefABCDEF") != len)
        return wrong(path, "root", text, "is no CKA_ID of ours; write 32 hexadecimal digits");
    for (size_t i = 0; i < HSM_ID_LEN; i++) {
        const char digits[3] = {text[2 * i], text[2 * i + 1], '\0'};

        s->root[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    s->has_root = true;
    return KMS_OK;
}

/* The service manager's credential, where the configuration names no file. */
static void
find_pin(const struct config *c, struct setup *s)
{
    const char *directory = getenv("CREDENTIALS_DIRECTORY");
    int n;

    if (c->pin_file[0] != '\0') {
        snprintf(s->pin_file, sizeof(s->pin_file), "%s", c->pin_file);
    } else if (directory != NULL) {
        n = snprintf(s->pin_file, sizeof(s->pin_file), "%s/pin", directory);
        if (n < 0 || (size_t)n >= sizeof(s->pin_file) || access(s->pin_file, R_OK) != 0)
            s->pin_file[0] = '\0';
    }
}

/* What the table cannot check; all errors are told. */
static int
config_check(struct program *p, const char *path)
{
    struct config *c = &p->config;
    struct setup *s = &p->setup;
    int err = KMS_OK, level = log_level_parse(c->log_level);

    s->size = sizeof(*s);
    if (level < 0)
        err =
            wrong(path, "log_level", c->log_level, "is no level; write error, warn, info or debug");
    if (strlen(c->token) > SETUP_LABEL_LEN)
        err = wrong(path, "token", c->token, "is longer than a token's label can be, 32 bytes");
    if (strcmp(c->custody, "token") != 0 && strcmp(c->custody, "process") != 0)
        err = wrong(path, "custody", c->custody, "is neither; write token or process");
    if (strcmp(c->oaep, "token") != 0 && strcmp(c->oaep, "hsmd") != 0)
        err = wrong(path, "oaep", c->oaep, "is neither; write hsmd or token");
    if (strlen(c->socket) + strlen(HSM_MANAGE_SUFFIX) >=
        sizeof(((struct sockaddr_un *)NULL)->sun_path))
        err = wrong(path, "socket", c->socket, "is too long for a socket; 100 bytes at most");
    if (strlen(c->module) >= sizeof(s->module) || strlen(c->pin_file) >= sizeof(s->pin_file))
        err = wrong(path, "module", c->module, "is too long a path");
    if (c->rsa_bits % 8 != 0) {
        fprintf(stderr, "%s: [hsmd] rsa_bits: write a multiple of 8\n", path);
        err = KMS_ERR_CONFIG;
    }
    if (parse_user(path, c->allow_user, &p->allowed) != KMS_OK ||
        parse_group(path, c->socket_group, &p->group) != KMS_OK ||
        parse_root(path, c->root, s) != KMS_OK)
        err = KMS_ERR_CONFIG;
    if (err != KMS_OK)
        return err;
    snprintf(s->module, sizeof(s->module), "%s", c->module);
    snprintf(s->token, sizeof(s->token), "%s", c->token);
    find_pin(c, s);
    s->rsa_bits = (unsigned)c->rsa_bits;
    s->custody_process = strcmp(c->custody, "process") == 0;
    s->custody_seconds = (unsigned)c->custody_seconds;
    s->oaep_token = strcmp(c->oaep, "token") == 0;
    s->recycle = (unsigned)c->recycle;
    s->log_level = level;
    log_set_level((enum log_level)level);
    return KMS_OK;
}

/* A listening socket, or -1.  Permissions are narrow from the first moment, and only widened to the
 * group that was named. */
static int
listen_at(const struct program *p, const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    bool group = p->group != (gid_t)-1;
    mode_t mask;
    int fd, bound;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    unlink(path);
    mask = umask(0177);
    bound = (fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0
                ? -1
                : bind(fd, (struct sockaddr *)&address, sizeof(address));
    umask(mask);
    if (bound == 0 &&
        (!group || (lchown(path, (uid_t)-1, p->group) == 0 && chmod(path, 0660) == 0)) &&
        listen(fd, BACKLOG) == 0)
        return fd;
    log_error("socket: cannot listen", "path", path, "error", strerror(errno), NULL);
    if (fd >= 0)
        close(fd);
    return -1;
}

/* One hsmd a socket: the lock tells a socket that is served from one that was left behind. */
static int
socket_open(struct program *p)
{
    char lock[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 8];

    snprintf(lock, sizeof(lock), "%s.lock", p->config.socket);
    if ((p->lock = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)) < 0 ||
        flock(p->lock, LOCK_EX | LOCK_NB) != 0) {
        log_error(errno == EWOULDBLOCK ? "socket: another hsmd serves it" : "socket: cannot lock",
                  "file", lock, "error", strerror(errno), NULL);
        return KMS_ERR_SYSTEM;
    }
    if ((p->listener = listen_at(p, p->config.socket, SOCK_STREAM)) < 0)
        return KMS_ERR_SYSTEM;
    snprintf(lock, sizeof(lock), "%s" HSM_MANAGE_SUFFIX, p->config.socket);
    return (p->door = listen_at(p, lock, SOCK_SEQPACKET)) < 0 ? KMS_ERR_SYSTEM : KMS_OK;
}

/*
 * Into the background.  The first process waits for the word that the socket is there, and its exit
 * status tells whether that came.  Standard error stays: it is the log.
 */
static int
detach(struct program *p)
{
    int fds[2], null;
    char word = 1;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) != 0 || (pid = fork()) < 0)
        return KMS_ERR_SYSTEM;
    if (pid > 0) {
        close(fds[1]);
        _exit(read(fds[0], &word, 1) == 1 && word == 0 ? 0 : 1);
    }
    close(fds[0]);
    p->ready_fd = fds[1];
    setsid();
    if (chdir("/") != 0 || (null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
        return KMS_ERR_SYSTEM;
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    close(null);
    return KMS_OK;
}

static int
pid_file_write(const char *path)
{
    FILE *f;

    if (path[0] == '\0')
        return KMS_OK;
    if ((f = fopen(path, "we")) == NULL || fprintf(f, "%d\n", (int)getpid()) < 0 ||
        fclose(f) != 0) {
        log_error("pid file: cannot be written", "path", path, "error", strerror(errno), NULL);
        return KMS_ERR_SYSTEM;
    }
    return KMS_OK;
}

static void
notify(const char *what)
{
#ifdef HAVE_SYSTEMD
    sd_notify(0, what);
#endif
}

static void
change_cb(const char *state)
{
    char text[64];

    snprintf(text, sizeof(text), "STATUS=token: %s", state);
    notify(text);
}

static void
stop_cb(evutil_socket_t sig, short what, void *arg)
{
    struct program *p = arg;

    event_base_loopbreak(p->base);
}

static void
renew_cb(evutil_socket_t sig, short what, void *arg)
{
    struct program *p = arg;

    log_info("hsmd: SIGHUP: custodians are replaced", NULL);
    server_renew(p->server);
}

static int
run(struct program *p)
{
    const struct server_settings settings_of_server = {
        .listener = p->listener,
        .door = p->door,
        .allowed = p->allowed,
        .setup = &p->setup,
        .custodians = (unsigned)p->config.sessions,
        .call_ms = (int)p->config.call_timeout * 1000,
        .self_fd = p->self_fd,
        .change = change_cb,
    };
    static const struct {
        int number;
        event_callback_fn cb;
    } signals[] = {{SIGTERM, stop_cb}, {SIGINT, stop_cb}, {SIGHUP, renew_cb}};
    struct event *events[3] = {NULL};
    int err = KMS_ERR_NOMEM;

    if ((p->base = event_base_new()) == NULL ||
        (p->server = server_new(p->base, &settings_of_server)) == NULL)
        goto out;
    for (size_t i = 0; i < 3; i++)
        if ((events[i] = evsignal_new(p->base, signals[i].number, signals[i].cb, p)) == NULL ||
            event_add(events[i], NULL) != 0)
            goto out;
    if (p->ready_fd >= 0 && write(p->ready_fd, "", 1) != 1)
        log_warn("hsmd: nobody waited for it", NULL);
    if (p->ready_fd >= 0)
        close(p->ready_fd);
    notify("READY=1");
    log_info("hsmd: listening", "socket", p->config.socket, "version", PACKAGE_VERSION, NULL);
    err = event_base_dispatch(p->base) < 0 ? KMS_ERR_SYSTEM : KMS_OK;
    notify("STOPPING=1");
    log_info("hsmd: ends", NULL);
out:
    server_free(p->server);
    for (size_t i = 0; i < 3; i++)
        if (events[i] != NULL)
            event_free(events[i]);
    if (p->base != NULL)
        event_base_free(p->base);
    libevent_global_shutdown();
    return err;
}

/* Descriptors 0 to 2 must be something, lest a socket becomes standard error. */
static void
fill_standard_fds(void)
{
    int fd;

    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO)
        ;
    if (fd >= 0)
        close(fd);
}

static int
supervise(struct program *p, bool foreground)
{
    char door[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    int exe, err;

    fill_standard_fds();
    signal(SIGPIPE, SIG_IGN);
    /* The very file that runs now, whatever is installed over it later. */
    if ((exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)) < 0 ||
        (p->self_fd = fcntl(exe, F_DUPFD_CLOEXEC, SELF_FD_MIN)) < 0) {
        log_error("hsmd: cannot open its own program", "error", strerror(errno), NULL);
        return KMS_ERR_SYSTEM;
    }
    close(exe);
    if (!foreground && (err = detach(p)) != KMS_OK) {
        log_error("hsmd: cannot go into the background", "error", strerror(errno), NULL);
        return err;
    }
    log_init("hsmd");
    harden_process();
    if ((err = socket_open(p)) != KMS_OK || (err = pid_file_write(p->config.pid_file)) != KMS_OK)
        return err;
    err = run(p);
    unlink(p->config.socket);
    snprintf(door, sizeof(door), "%s" HSM_MANAGE_SUFFIX, p->config.socket);
    unlink(door);
    if (p->config.pid_file[0] != '\0')
        unlink(p->config.pid_file);
    close(p->listener);
    close(p->door);
    close(p->lock);
    close(p->self_fd);
    return err;
}

static void
usage(FILE *out)
{
    fputs("usage: hsmd --config FILE [--foreground]\n"
          "       hsmd --config FILE --check-config\n"
          "       hsmd --sample-config | --version | --help\n"
          "\n"
          "Holds a PKCS#11 token for kmsd.  See hsmd(8).\n",
          out);
}

int
main(int argc, char **argv)
{
    enum { OPTION_CUSTODIAN = 256, OPTION_CHECK, OPTION_SAMPLE };
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"check-config", no_argument, NULL, OPTION_CHECK},
        {"foreground", no_argument, NULL, 'f'},
        {"sample-config", no_argument, NULL, OPTION_SAMPLE},
        {"custodian", no_argument, NULL, OPTION_CUSTODIAN},
        {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct program p = {.listener = -1, .door = -1, .lock = -1, .self_fd = -1, .ready_fd = -1};
    const char *path = NULL;
    bool check = false, foreground = false;
    int option, err;

    while ((option = getopt_long(argc, argv, "c:fVh", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            path = optarg;
            break;
        case 'f':
            foreground = true;
            break;
        case OPTION_CHECK:
            check = true;
            break;
        case OPTION_SAMPLE:
            conf_print_sample(settings, SETTINGS_N);
            return 0;
        case OPTION_CUSTODIAN: /* by the supervisor only: it finds its socket on a descriptor */
            return custodian_main();
        case 'V':
            puts("hsmd " PACKAGE_VERSION);
            return 0;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (path == NULL || optind != argc) {
        usage(stderr);
        return 2;
    }
    log_init("hsmd");
    err =
        conf_read(&p.config, sizeof(p.config), settings, SETTINGS_N, others, path, error_cb, NULL);
    if (err == KMS_OK)
        err = config_check(&p, path);
    if (err == KMS_OK && check)
        printf("%s: hsmd's section is right\n", path);
    if (err == KMS_OK && !check)
        err = supervise(&p, foreground);
    conf_release(&p.config, settings, SETTINGS_N);
    if (err == KMS_ERR_CONFIG)
        return 2;
    return err == KMS_OK ? 0 : 1;
}
