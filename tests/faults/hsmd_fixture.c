/*
 * hsmd_fixture.c - starts real programs on a throw-away token, for tests and benchmarks.
 */
#include "tests/faults/hsmd_fixture.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hsm/log.h"
#include "proto/err.h"

#define SOFTHSM_MODULE "/usr/lib/softhsm/libsofthsm2.so"
#define START_MS       20000

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (%s)\n", strerror(errno));
    abort();
}

static const char *
from_env(const char *name, const char *def)
{
    const char *value = getenv(name);

    return value != NULL ? value : def;
}

void
fixture_sleep(int ms)
{
    const struct timespec nap = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

    nanosleep(&nap, NULL);
}

long
fixture_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void __attribute__((format(printf, 3, 4)))
write_file(const char *path, mode_t mode, const char *fmt, ...)
{
    char temporary[160];
    va_list ap;
    FILE *f;

    snprintf(temporary, sizeof(temporary), "%s.new", path);
    if ((f = fopen(temporary, "w")) == NULL)
        die("cannot write %s", temporary);
    va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    va_end(ap);
    if (fclose(f) != 0 || chmod(temporary, mode) != 0 || rename(temporary, path) != 0)
        die("cannot write %s", path);
}

static int
run(char *const argv[])
{
    int status, null;
    pid_t pid = fork();

    if (pid == 0) {
        if ((null = open("/dev/null", O_RDWR)) >= 0)
            dup2(null, STDOUT_FILENO);
        execvp(argv[0], argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        die("cannot run %s", argv[0]);
    return status;
}

/* Where a module that was named by a relative path is. */
static const char *
absolute(const char *path, char out[4096])
{
    if (realpath(path, out) == NULL)
        die("%s is not there", path);
    return out;
}

void
fixture_init(struct fixture *f, bool shim, const char *settings)
{
    char softhsm[128], tokens[128], module[4096];
    char util[] = "softhsm2-util", init[] = "--init-token", slot[] = "--free", label[] = "--label",
         name[] = FIXTURE_LABEL, pin[] = "--pin", so_pin[] = "--so-pin", value[] = FIXTURE_PIN;
    char *argv[] = {util, init, slot, label, name, pin, value, so_pin, value, NULL};

    memset(f, 0, sizeof(*f));
    if (shim) /* before there is anything to be left behind */
        absolute(from_env("P11SHIM", "tests/faults/p11shim.so"), module);
    snprintf(f->dir, sizeof(f->dir), "%.40s/hsmd-XXXXXX", from_env("TMPDIR", "/tmp"));
    if (mkdtemp(f->dir) == NULL)
        die("cannot make a directory");
    snprintf(f->socket, sizeof(f->socket), "%s/hsmd.sock", f->dir);
    snprintf(f->config, sizeof(f->config), "%s/kms.conf", f->dir);
    snprintf(f->pin_file, sizeof(f->pin_file), "%s/pin", f->dir);
    snprintf(f->log, sizeof(f->log), "%s/log", f->dir);
    snprintf(f->control, sizeof(f->control), "%s/control", f->dir);
    snprintf(f->calls, sizeof(f->calls), "%s/calls", f->dir);
    snprintf(softhsm, sizeof(softhsm), "%s/softhsm2.conf", f->dir);
    snprintf(tokens, sizeof(tokens), "%s/tokens", f->dir);
    if (mkdir(tokens, 0700) != 0)
        die("cannot make %s", tokens);
    /* As the standard has it: a child starts with nothing. */
    write_file(softhsm, 0600,
               "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n"
               "library.reset_on_fork = true\n",
               tokens);
    setenv("SOFTHSM2_CONF", softhsm, 1);
    setenv("P11SHIM_MODULE", SOFTHSM_MODULE, 1);
    setenv("P11SHIM_CONTROL", f->control, 1);
    setenv("P11SHIM_CALLS", f->calls, 1);
    if (run(argv) != 0)
        die("softhsm2-util made no token");
    write_file(f->control, 0600, "%s", "");
    fixture_pin(f, FIXTURE_PIN);
    fixture_configure(f, shim, settings);
}

void
fixture_pin(struct fixture *f, const char *pin)
{
    write_file(f->pin_file, 0600, "%s\n", pin);
}

void
fixture_configure(struct fixture *f, bool shim, const char *settings)
{
    char module[4096];

    write_file(f->config, 0600,
               "[hsmd]\nmodule = %s\ntoken = %s\npin_file = %s\nsocket = %s\nrsa_bits = 2048\n%s\n",
               shim ? absolute(from_env("P11SHIM", "tests/faults/p11shim.so"), module)
                    : SOFTHSM_MODULE,
               FIXTURE_LABEL, f->pin_file, f->socket, settings);
}

void
fixture_start(struct fixture *f)
{
    char program[4096], config[] = "--config", foreground[] = "--foreground";
    char *argv[] = {program, config, f->config, foreground, NULL};
    long until = fixture_now() + START_MS;
    int log;

    absolute(from_env("HSMD", "hsm/hsmd"), program);
    if ((f->hsmd = fork()) == 0) {
        if ((log = open(f->log, O_WRONLY | O_CREAT | O_APPEND, 0600)) >= 0)
            dup2(log, STDERR_FILENO);
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
        execv(program, argv);
        _exit(127);
    }
    if (f->hsmd < 0)
        die("cannot start hsmd");
    while (access(f->socket, F_OK) != 0) {
        if (waitpid(f->hsmd, NULL, WNOHANG) != 0 || fixture_now() > until)
            die("hsmd did not start; see %s", f->log);
        fixture_sleep(5);
    }
}

int
fixture_stop(struct fixture *f, int sig)
{
    int status = 0;

    if (f->hsmd == 0)
        return 0;
    kill(f->hsmd, sig);
    if (waitpid(f->hsmd, &status, 0) != f->hsmd)
        die("hsmd is not ours");
    f->hsmd = 0;
    return status;
}

void
fixture_release(struct fixture *f)
{
    char rm[] = "rm", force[] = "-rf";
    char *argv[] = {rm, force, f->dir, NULL};

    fixture_stop(f, SIGTERM);
    if (getenv("KEEP") == NULL)
        run(argv);
}

void
fixture_control(struct fixture *f, const char *text)
{
    char once[160];

    snprintf(once, sizeof(once), "%s.once", f->control);
    unlink(once);
    write_file(f->control, 0600, "%s\n", text);
}

static unsigned
count_lines(const char *path, const char *text)
{
    FILE *f = fopen(path, "r");
    char line[8192];
    unsigned n = 0;

    if (f == NULL)
        return 0;
    while (fgets(line, sizeof(line), f) != NULL)
        n += strstr(line, text) != NULL;
    fclose(f);
    return n;
}

unsigned
fixture_calls(const struct fixture *f, const char *function)
{
    return count_lines(f->calls, function);
}

unsigned
fixture_logged(const struct fixture *f, const char *text)
{
    return count_lines(f->log, text);
}

unsigned
fixture_custodians(const struct fixture *f, pid_t *out, unsigned max)
{
    char path[64];
    unsigned n = 0;
    FILE *children;
    int pid;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)f->hsmd, (int)f->hsmd);
    if ((children = fopen(path, "r")) == NULL)
        die("cannot read %s", path);
    while (n < max && fscanf(children, "%d", &pid) == 1)
        out[n++] = pid;
    fclose(children);
    return n;
}

/* --- the client --- */

void
ask_init(struct ask *a, const struct fixture *f, int deadline_ms)
{
    ask_init_as(a, f, HSM_MANAGE, deadline_ms);
}

void
ask_init_as(struct ask *a, const struct fixture *f, enum hsm_role role, int deadline_ms)
{
    memset(a, 0, sizeof(*a));
    log_init("test");
    log_set_level(LOG_ERROR_);
    if ((a->base = event_base_new()) == NULL ||
        (a->h = hsm_new(a->base, f->socket, role, deadline_ms)) == NULL)
        die("no client");
}

void
ask_release(struct ask *a)
{
    hsm_free(a->h);
    event_base_free(a->base);
}

void
ask_begin(struct ask *a, unsigned wanted)
{
    a->wanted = wanted;
    a->got = 0;
}

static void
one_more(struct ask *a)
{
    if (++a->got == a->wanted)
        event_base_loopbreak(a->base);
}

void
ask_wait(struct ask *a)
{
    while (a->got < a->wanted)
        event_base_loop(a->base, EVLOOP_ONCE);
}

void
ask_key_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
           const unsigned char *blob)
{
    struct ask *a = ctx;

    a->err[index] = err;
    if (key != NULL)
        memcpy(a->key[index], key, HSM_KEY_LEN);
    if (blob != NULL)
        memcpy(a->blob[index], blob, HSM_BLOB_LEN);
    one_more(a);
}

void
ask_bytes_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct ask *a = ctx;

    a->err[index] = err;
    a->len[index] = len < sizeof(a->bytes[index]) ? len : sizeof(a->bytes[index]);
    if (p != NULL)
        memcpy(a->bytes[index], p, a->len[index]);
    one_more(a);
}

static void
text_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p, size_t len)
{
    struct ask *a = ctx;

    a->err[0] = err;
    if (len >= sizeof(a->text))
        len = sizeof(a->text) - 1;
    if (p != NULL)
        memcpy(a->text, p, len);
    a->text[p != NULL ? len : 0] = '\0';
    one_more(a);
}

static void
wrapping_key_cb(void *ctx, uint64_t id, int err, const unsigned char root[HSM_ID_LEN],
                const unsigned char wrapped[HSM_WRAPPED_LEN], const unsigned char kcv[HSM_KCV_LEN])
{
    struct ask *a = ctx;

    a->err[0] = err;
    if (err == KMS_OK) {
        memset(&a->wk, 0, sizeof(a->wk));
        memcpy(a->wk.root, root, HSM_ID_LEN);
        memcpy(a->wk.wrapped, wrapped, HSM_WRAPPED_LEN);
        memset(a->wk.org, 1, HSM_ID_LEN);
        a->wk.generation = 1;
        memcpy(a->kcv, kcv, HSM_KCV_LEN);
    }
    one_more(a);
}

static void
wake_cb(evutil_socket_t fd, short what, void *arg)
{
    struct ask *a = arg;

    a->woken = true;
}

static void
wake_in(struct ask *a, int ms)
{
    const struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};

    a->woken = false;
    event_base_once(a->base, -1, EV_TIMEOUT, wake_cb, a, &tv);
}

bool
ask_ready(struct ask *a, bool ready, int ms)
{
    long until = fixture_now() + ms;

    while (hsm_ready(a->h) != ready && fixture_now() < until)
        ask_idle(a, 10);
    return hsm_ready(a->h) == ready;
}

void
ask_idle(struct ask *a, int ms)
{
    wake_in(a, ms);
    while (!a->woken)
        event_base_loop(a->base, EVLOOP_ONCE);
}

/* What hsm_* returned, then what its callback said. */
static int
result(struct ask *a, int err)
{
    if (err != KMS_OK)
        return err;
    ask_wait(a);
    return a->err[0];
}

int
ask_init_keys(struct ask *a, unsigned rsa_bits)
{
    ask_begin(a, 1);
    return result(a, hsm_init(a->h, rsa_bits, text_cb, a, 1));
}

int
ask_wrapping_key(struct ask *a)
{
    ask_begin(a, 1);
    return result(a, hsm_wrapping_key_new(a->h, wrapping_key_cb, a, 1));
}

int
ask_status(struct ask *a)
{
    ask_begin(a, 1);
    return result(a, hsm_status(a->h, text_cb, a, 1));
}

int
ask_generate(struct ask *a, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
             const unsigned char object[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_generate(a->h, wk, purpose, object, ask_key_cb, a, 1, 0));
}

int
ask_wrap(struct ask *a, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
         const unsigned char object[HSM_ID_LEN], const unsigned char key[HSM_KEY_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_wrap(a->h, wk, purpose, object, key, ask_key_cb, a, 1, 0));
}

int
ask_unwrap(struct ask *a, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
           const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_unwrap(a->h, wk, purpose, object, blob, ask_key_cb, a, 1, 0));
}

int
ask_oaep(struct ask *a, enum hsm_oaep hash, const unsigned char *ek, size_t len)
{
    ask_begin(a, 1);
    return result(a, hsm_oaep_open(a->h, hash, ek, len, ask_bytes_cb, a, 1, 0));
}

int
ask_pss(struct ask *a, const unsigned char digest[32])
{
    ask_begin(a, 1);
    return result(a, hsm_sign_pss(a->h, digest, ask_bytes_cb, a, 1, 0));
}

int
ask_audit(struct ask *a, const void *msg, size_t len)
{
    ask_begin(a, 1);
    return result(a, hsm_sign_audit(a->h, msg, len, ask_bytes_cb, a, 1, 0));
}

int
ask_random(struct ask *a, size_t len)
{
    ask_begin(a, 1);
    return result(a, hsm_random(a->h, len, ask_bytes_cb, a, 1, 0));
}

int
ask_key_new(struct ask *a, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_key_new(a->h, kind, key, ask_bytes_cb, a, 1));
}

int
ask_key_destroy(struct ask *a, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_key_destroy(a->h, kind, key, ask_bytes_cb, a, 1));
}

int
ask_forget(struct ask *a, const unsigned char key_or_org[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_forget(a->h, key_or_org, ask_bytes_cb, a, 1));
}

static void
list_cb(void *ctx, uint64_t id, int err, const struct hsm_listed *keys, size_t n, bool more)
{
    struct ask *a = ctx;

    a->err[0] = err;
    a->listed_more = more;
    for (size_t i = 0; i < n && a->listed_n < ASK_MAX; i++)
        a->listed[a->listed_n++] = keys[i];
    one_more(a);
}

int
ask_list(struct ask *a, enum hsm_kind kind)
{
    const unsigned char *after = NULL;
    int err;

    a->listed_n = 0;
    do {
        ask_begin(a, 1);
        err = result(a, hsm_list(a->h, kind, after, list_cb, a, 1));
        if (a->listed_n > 0)
            after = a->listed[a->listed_n - 1].id;
    } while (err == KMS_OK && a->listed_more && a->listed_n < ASK_MAX);
    return err;
}

int
ask_import_pair(struct ask *a, const unsigned char key[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_import_pair(a->h, key, 0, ask_bytes_cb, a, 1));
}

int
ask_import(struct ask *a, const unsigned char key[HSM_ID_LEN], const unsigned char pair[HSM_ID_LEN],
           bool allow_128, const unsigned char *ciphertext, size_t len)
{
    ask_begin(a, 1);
    return result(a, hsm_import(a->h, key, pair, allow_128, ciphertext, len, ask_bytes_cb, a, 1));
}

int
ask_wrapping_key_under(struct ask *a, const unsigned char parent[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_wrapping_key_new_under(a->h, parent, wrapping_key_cb, a, 1));
}

int
ask_rewrap(struct ask *a, const struct hsm_wrapping_key *wk, const unsigned char to[HSM_ID_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_rewrap(a->h, wk->wrapped, wk->root, to, ask_bytes_cb, a, 1, 0));
}

int
ask_reseal(struct ask *a, const struct hsm_wrapping_key *from, const struct hsm_wrapping_key *to,
           enum hsm_purpose purpose, const unsigned char object[HSM_ID_LEN],
           const unsigned char blob[HSM_BLOB_LEN])
{
    ask_begin(a, 1);
    return result(a, hsm_reseal(a->h, from, to, purpose, object, blob, ask_key_cb, a, 1, 0));
}

void
ask_init_token(struct ask *a)
{
    if (ask_init_keys(a, 0) != KMS_OK)
        die("hsm_init: %s", a->text);
    if (!ask_ready(a, true, 10000) || ask_wrapping_key(a) != KMS_OK)
        die("no wrapping key");
}
