/*
 * kmsd.c - the daemon's parent: checks the configuration, opens the sockets, starts the workers and
 * the keeper, and watches them.
 *
 *   kmsd ─┬─ worker 0..N-1   TLS, HTTP, JOSE, requests     (worker.c)
 *         └─ keeper          admin socket, jobs, metrics   (keeper.c)
 *
 * The parent holds no key, no connection and no database session; it only waits for signals.  A
 * child that dies is started again, the first time at once, then with a growing pause.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "hsm/log.h"
#include "kms/clock.h"
#include "kms/config.h"
#include "kms/harden.h"
#include "kms/keeper.h"
#include "kms/shared.h"
#include "kms/worker.h"
#include "proto/err.h"

#define CONFIG_DEFAULT "/etc/kms/kms.conf"
#define BACKLOG        1024
#ifdef KMS_FAULTS
#define PAUSE_MAX 1 /* tests let it die hundreds of times */
#else
#define PAUSE_MAX 30 /* seconds between restarts of a child that keeps dying */
#endif
#define PAUSE_OVER  60 /* seconds that a child must have run for its pause to be forgotten */
#define DRAIN_GRACE 5  /* seconds after the drain's own deadline */

/* A child: a worker by its number, or the keeper. */
struct child {
    pid_t pid;       /* 0: not running */
    int64_t started; /* ms, monotonic: a clock that is set must not hold a restart up */
    int64_t again;   /* likewise: when to start it */
    int pause;
};

struct parent {
    struct config *cfg; /* owned; what children start with */
    const char *path;
    struct shared *sh;
    int listen_fd, admin_fd, metrics_fd; /* metrics_fd -1: off */
    bool listen_ours, admin_ours;        /* made by us, not inherited: ours to end and to remove */
    unsigned workers;
    struct child child[WORKERS_MAX + 1]; /* the last one is the keeper */
    bool ending;
    bool cut; /* a child was ended before its work was done */
};

/* --- sockets --- */

/* "address:port" or "[address]:port". */
static int
listen_tcp(const char *where)
{
    char host[256], *port;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM},
                    *ai = NULL;
    const char *name = host;
    int fd = -1, on = 1, off = 0;

    snprintf(host, sizeof(host), "%s", where);
    if ((port = strrchr(host, ':')) == NULL)
        return -1;
    *port++ = '\0';
    if (host[0] == '[' && port[-2] == ']') {
        name = host + 1;
        port[-2] = '\0';
    }
    if (getaddrinfo(*name != '\0' ? name : NULL, port, &hints, &ai) != 0)
        return -1;
    fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (ai->ai_family == AF_INET6)
            setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
        if (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(ai);
    return fd;
}

/* The admin socket: nobody can connect between bind and chmod, and one that another kmsd serves is
 * not taken away from it. */
static int
listen_admin(const char *path, const char *group)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    mode_t mask;
    gid_t gid;
    int fd, r;

    if (strlen(path) >= sizeof(sa.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(sa.sun_path, path);
    if ((fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0)
        return -1;
    r = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 ? EADDRINUSE : errno;
    close(fd);
    /* Its queue may be full (EAGAIN): only one that nobody listens on was left behind. */
    if (r == EAGAIN)
        r = EADDRINUSE;
    if (r != ECONNREFUSED && r != ENOENT) {
        errno = r;
        return -1;
    }
    unlink(path);
    if ((fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0)
        return -1;
    mask = umask(0177);
    r = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
    umask(mask);
    if (r == 0 && group[0] != '\0') {
        if (config_group(group, &gid) != KMS_OK) {
            errno = ENOENT;
            r = -1;
        } else if ((r = chown(path, (uid_t)-1, gid)) == 0) {
            r = chmod(path, 0660);
        }
    }
    if (r != 0 || listen(fd, 64) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A socket that the service manager opened for us, by its name; -1: none. */
static int
inherited(const char *name)
{
#ifdef HAVE_SYSTEMD
    char **names = NULL;
    int n = sd_listen_fds_with_names(0, &names), i, fd = -1;

    for (i = 0; i < n; i++) {
        if (names != NULL && strcmp(names[i], name) == 0)
            fd = SD_LISTEN_FDS_START + i;
        free(names != NULL ? names[i] : NULL);
    }
    free(names);
    if (fd >= 0)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
#else
    (void)name;
    return -1;
#endif
}

static int
open_sockets(struct parent *p)
{
    const struct config *c = p->cfg;

    p->listen_ours = (p->listen_fd = inherited("https")) < 0;
    if (p->listen_ours && (p->listen_fd = listen_tcp(c->listen)) < 0) {
        log_error("cannot listen for clients", "listen", c->listen, "why", strerror(errno), NULL);
        return KMS_ERR_SYSTEM;
    }
    p->admin_ours = (p->admin_fd = inherited("admin")) < 0;
    if (p->admin_ours && (p->admin_fd = listen_admin(c->admin_socket, c->admin_group)) < 0) {
        log_error(errno == EADDRINUSE ? "another kmsd serves the admin socket"
                                      : "cannot listen on the admin socket",
                  "socket", c->admin_socket, "why", strerror(errno), NULL);
        return KMS_ERR_SYSTEM;
    }
    p->metrics_fd = -1;
    if (c->metrics_listen[0] != '\0' && (p->metrics_fd = inherited("metrics")) < 0 &&
        (p->metrics_fd = listen_tcp(c->metrics_listen)) < 0) {
        log_error("cannot listen for metrics", "listen", c->metrics_listen, "why", strerror(errno),
                  NULL);
        return KMS_ERR_SYSTEM;
    }
    return KMS_OK;
}

/* --- children --- */

static const char *
child_name(const struct parent *p, unsigned i, char buf[32])
{
    if (i == p->workers)
        snprintf(buf, 32, "kmsd[keeper]");
    else
        snprintf(buf, 32, "kmsd[worker %u]", i);
    return buf;
}

/* In the child, for good. */
static void
child_run(struct parent *p, unsigned i)
{
    char name[32];
    int status;

    /* The parent's signals stay blocked until the child has its handlers (signals_take): a reload
     * that comes before must not kill it.  ^C reaches the whole foreground group; what it means is
     * the parent's to say. */
    signal(SIGINT, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != p->sh->parent)
        _exit(1);
    log_init(child_name(p, i, name));
    log_level_at(&p->sh->log_level);
    prctl(PR_SET_NAME, i == p->workers ? "kmsd-keeper" : "kmsd-worker");
    harden_process();
    if (i == p->workers) {
        close(p->listen_fd);
        status = keeper_main(p->cfg, p->sh, p->admin_fd, p->metrics_fd, p->path);
    } else {
        close(p->admin_fd);
        if (p->metrics_fd >= 0)
            close(p->metrics_fd);
        status = worker_main(p->cfg, p->sh, i, p->listen_fd, p->path);
    }
    _exit(status);
}

static void
child_start(struct parent *p, unsigned i)
{
    struct child *c = &p->child[i];
    struct shared_worker *slot = i < p->workers ? &p->sh->worker[i] : NULL;
    pid_t pid;

    if (slot != NULL) {
        /* Counters go on; what is true only of a running process starts anew. */
        enum counter k;

        atomic_store(&slot->state, WS_STARTING);
        atomic_store(&slot->db_ready, 0);
        atomic_store(&slot->hsm_ready, 0);
        atomic_store(&slot->keys_ready, 0);
        atomic_store(&slot->started, (long long)time(NULL));
        for (k = 0; k < CT_N; k++)
            if (counter_is_gauge(k))
                atomic_store(&slot->counters[k], 0);
    }
    fflush(NULL);
    if ((pid = fork()) == 0)
        child_run(p, i);
    if (pid < 0) {
        log_error("cannot start a process", "why", strerror(errno), NULL);
        c->again = now_ms() + 1000;
        return;
    }
    c->pid = pid;
    c->started = now_ms();
    if (slot != NULL)
        atomic_store(&slot->pid, pid);
}

static void
child_ended(struct parent *p, pid_t pid, int status)
{
    char name[32];
    unsigned i;
    struct child *c;

    for (i = 0; i <= p->workers && p->child[i].pid != pid; i++)
        ;
    if (i > p->workers)
        return;
    c = &p->child[i];
    c->pid = 0;
    if (i < p->workers) {
        atomic_store(&p->sh->worker[i].pid, 0);
        atomic_store(&p->sh->worker[i].state, WS_GONE);
    }
    if (p->ending) {
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            p->cut = true;
        return;
    }
    log_error("a process ended unexpectedly; it is started again", "process",
              child_name(p, i, name), "signal%d", WIFSIGNALED(status) ? WTERMSIG(status) : 0,
              "status%d", WIFEXITED(status) ? WEXITSTATUS(status) : 0, NULL);
    atomic_fetch_add(&p->sh->restarts, 1);
    c->pause = now_ms() - c->started > PAUSE_OVER * 1000 ? 0 : c->pause == 0 ? 1 : c->pause * 2;
    if (c->pause > PAUSE_MAX)
        c->pause = PAUSE_MAX;
    c->again = now_ms() + (c->pause > 1 ? c->pause * 1000 : 0);
}

static void
signal_workers(struct parent *p, int sig)
{
    unsigned i;

    for (i = 0; i < p->workers; i++)
        if (p->child[i].pid > 0)
            kill(p->child[i].pid, sig);
}

static unsigned
running(const struct parent *p)
{
    unsigned i, n = 0;

    for (i = 0; i <= p->workers; i++)
        n += p->child[i].pid > 0;
    return n;
}

/* --- signals --- */

static void
notify(const char *state)
{
#ifdef HAVE_SYSTEMD
    sd_notify(0, state);
#else
    (void)state;
#endif
}

/* What a running server cannot change without being started anew. */
static const char *
needs_restart(const struct config *a, const struct config *b)
{
    if (strcmp(a->listen, b->listen) != 0)
        return "listen";
    if (strcmp(a->admin_socket, b->admin_socket) != 0)
        return "admin socket";
    if (strcmp(a->metrics_listen, b->metrics_listen) != 0)
        return "metrics listen";
    if (strcmp(a->worker_url, b->worker_url) != 0 || strcmp(a->keeper_url, b->keeper_url) != 0)
        return "database url";
    if (strcmp(a->hsm_socket, b->hsm_socket) != 0)
        return "hsm socket";
    if (a->workers != b->workers)
        return "workers";
    return NULL;
}

/* SIGHUP: the file is checked here, once; only a right one goes on to the children. */
static void
reload(struct parent *p)
{
    struct config *next = NULL;
    const char *what;

    notify("RELOADING=1");
    if (config_read(&next, p->path, stderr) != KMS_OK) {
        log_error("reload refused: the configuration is wrong; the old one stays in force", "file",
                  p->path, NULL);
        atomic_store(&p->sh->reload_failed, 1);
    } else if (strcmp(next->domain, p->cfg->domain) != 0) {
        /* A worker that is started again would serve another domain than the rest. */
        log_error("reload refused: the domain cannot change; the old configuration stays in force",
                  "domain", p->cfg->domain, NULL);
        config_free(next);
        atomic_store(&p->sh->reload_failed, 1);
    } else {
        if ((what = needs_restart(p->cfg, next)) != NULL)
            log_warn("a changed setting takes effect only after a restart", "setting", what, NULL);
        atomic_store(&p->sh->reload_failed, 0);
        atomic_store(&p->sh->reloaded, (long long)time(NULL));
        p->sh->log_level = log_level_parse(next->log_level);
        config_free(p->cfg);
        p->cfg = next;
        signal_workers(p, SIGHUP);
        if (p->child[p->workers].pid > 0)
            kill(p->child[p->workers].pid, SIGHUP);
        log_info("configuration reloaded", NULL);
    }
    notify("READY=1");
}

static void
reap(struct parent *p)
{
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        child_ended(p, pid, status);
}

/*
 * From now on who connects is refused at once, so that a load balancer goes elsewhere; otherwise he
 * would wait in the backlog of a socket that nobody accepts from.  A service manager's socket is
 * left alone: it keeps the backlog for the next kmsd.
 */
static void
stop_listening(struct parent *p)
{
    if (p->listen_ours)
        shutdown(p->listen_fd, SHUT_RDWR);
}

/* SIGTERM: workers first, so that the keeper can tell how they fare; then the keeper; then us. */
static void
end_all(struct parent *p, const sigset_t *set)
{
    static const struct timespec tick = {0, 100000000};
    int64_t deadline = now_ms() + (p->cfg->drain + DRAIN_GRACE) * 1000;
    pid_t keeper = p->child[p->workers].pid;
    bool told = false;

    log_info("draining", NULL);
    notify("STOPPING=1");
    p->ending = true;
    atomic_store(&p->sh->draining, 1);
    signal_workers(p, SIGTERM);
    stop_listening(p);
    while (running(p) > 0) {
        sigtimedwait(set, NULL, &tick);
        reap(p);
        if (!told && keeper > 0 && running(p) == 1 && p->child[p->workers].pid > 0) {
            kill(keeper, SIGTERM);
            told = true;
        }
        if (now_ms() > deadline) {
            unsigned i;

            p->cut = true;
            for (i = 0; i <= p->workers; i++)
                if (p->child[i].pid > 0)
                    kill(p->child[i].pid, SIGKILL);
        }
    }
}

static void
watch(struct parent *p)
{
    static const struct timespec second = {1, 0};
    sigset_t set;
    unsigned i;
    int sig;
    bool told = false;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (i = 0; i <= p->workers; i++)
        child_start(p, i);
    for (;;) {
        sig = sigtimedwait(&set, NULL, &second);
        reap(p);
        switch (sig) {
        case SIGHUP:
            reload(p);
            break;
        case SIGTERM:
        case SIGINT:
            end_all(p, &set);
            return;
        case SIGUSR1:
            log_info("no new connections are accepted from now on", NULL);
            atomic_store(&p->sh->draining, 1);
            signal_workers(p, SIGUSR1);
            stop_listening(p);
            break;
        default:
            break;
        }
        for (i = 0; i <= p->workers; i++)
            if (p->child[i].pid == 0 && p->child[i].again <= now_ms())
                child_start(p, i);
        if (!told) {
            told = true;
            for (i = 0; i < p->workers; i++)
                told = told && atomic_load(&p->sh->worker[i].state) == WS_SERVING;
            if (told)
                notify("READY=1");
        }
    }
}

/* --- main --- */

static void
usage(FILE *to)
{
    fprintf(to,
            "usage: kmsd [--config FILE] [--check-config | --sample-config | --version | --help]\n"
            "\n"
            "The network daemon of the key management server.  Runs in the foreground, logs to "
            "standard\n"
            "error; SIGHUP reloads, SIGTERM drains and ends.\n"
            "\n"
            "  --config FILE     the configuration (default " CONFIG_DEFAULT ")\n"
            "  --check-config    check it as a whole, say what is wrong, and leave\n"
            "  --sample-config   print a commented sample of it, and leave\n"
            "  --version         print the version, and leave\n"
            "\n"
            "Exit status: 0 ended as asked; 1 could not start; 2 wrong usage or configuration;\n"
            "3 ended, but requests under way were cut off.  See kmsd(8), kms.conf(5).\n");
}

static int
write_pid(const char *path)
{
    FILE *f;

    if (path[0] == '\0')
        return KMS_OK;
    if ((f = fopen(path, "we")) == NULL)
        return KMS_ERR_SYSTEM;
    fprintf(f, "%ld\n", (long)getpid());
    return fclose(f) == 0 ? KMS_OK : KMS_ERR_SYSTEM;
}

/* As many descriptors as the workers may need. */
static void
raise_files(const struct config *c)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) != 0)
        return;
    l.rlim_cur = l.rlim_max;
    setrlimit(RLIMIT_NOFILE, &l);
    if (l.rlim_cur != RLIM_INFINITY && l.rlim_cur < (rlim_t)c->connections + 64)
        log_warn("the limit of open files is below [limits] connections; raise LimitNOFILE=",
                 "limit%u", (unsigned long long)l.rlim_cur, "connections%l", c->connections, NULL);
}

/* Everything before the first child: the shared page, the sockets, the user. */
static int
start(struct parent *p)
{
    long cores;
    int r;

    cores = sysconf(_SC_NPROCESSORS_ONLN);
    p->workers = (unsigned)(p->cfg->workers > 0 ? p->cfg->workers : cores > 0 ? cores : 1);
    if (p->workers > WORKERS_MAX)
        p->workers = WORKERS_MAX;
    if ((p->sh = shared_new(p->workers)) == NULL || !rate_shared_init(&p->sh->by_service)) {
        log_error("out of memory, or of randomness", NULL);
        return KMS_ERR_SYSTEM;
    }
    p->sh->parent = getpid();
    p->sh->log_level = log_level_parse(p->cfg->log_level);
    log_level_at(&p->sh->log_level);
    raise_files(p->cfg);
    if (open_sockets(p) != KMS_OK)
        return KMS_ERR_SYSTEM;
    if (write_pid(p->cfg->pid_file) != KMS_OK) {
        log_error("cannot write the pid file", "file", p->cfg->pid_file, "why", strerror(errno),
                  NULL);
        return KMS_ERR_SYSTEM;
    }
    if ((r = harden_user(p->cfg->user)) != KMS_OK) {
        log_error("cannot become the configured user", "user", p->cfg->user, "why", kms_strerror(r),
                  NULL);
        return KMS_ERR_SYSTEM;
    }
    prctl(PR_SET_DUMPABLE, 0);
    log_info("starting", "version", PACKAGE_VERSION, "domain", p->cfg->domain, "listen",
             p->cfg->listen, "workers%u", (unsigned long long)p->workers, NULL);
    return KMS_OK;
}

int
main(int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},  {"check-config", no_argument, NULL, 'k'},
        {"sample-config", no_argument, NULL, 's'}, {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    static struct parent p = {.path = CONFIG_DEFAULT};
    bool check = false;
    int opt;

    while ((opt = getopt_long(argc, argv, "c:hV", options, NULL)) != -1) {
        switch (opt) {
        case 'c':
            p.path = optarg;
            break;
        case 'k':
            check = true;
            break;
        case 's':
            config_print_sample();
            return 0;
        case 'V':
            printf("kmsd %s\n", PACKAGE_VERSION);
            return 0;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "kmsd: what is \"%s\"? see kmsd --help\n", argv[optind]);
        return 2;
    }
    log_init("kmsd");
    signal(SIGPIPE, SIG_IGN);
    if (config_read(&p.cfg, p.path, stderr) != KMS_OK)
        return 2;
    if (check) {
        printf("%s: right\n", p.path);
        config_free(p.cfg);
        return 0;
    }
    if (start(&p) != KMS_OK)
        return 1;
    watch(&p);
    if (p.cfg->pid_file[0] != '\0')
        unlink(p.cfg->pid_file);
    if (p.admin_ours)
        unlink(p.cfg->admin_socket);
    log_info("ended", NULL);
    return p.cut ? 3 : 0;
}
