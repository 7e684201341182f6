/*
 * log.c - writes one escaped key=value line to standard error for each event.
 *
 * A line is built in one buffer and leaves in one write(2), so that lines of several processes on
 * one pipe do not mix (they are at most PIPE_BUF long).
 */
#include "hsm/log.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_    PIPE_BUF
#define RATE_SLOTS   64
#define RATE_PER_SEC 20

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const int syslog_levels[] = {3, 4, 6, 7};

static struct {
    char proc[32];
    pid_t pid;
    bool journald;
    int level;
    const volatile int *shared_level;
} self = {.proc = "-", .level = LOG_INFO_};

/* How often each message was written in the current second.  Two messages that share a slot only
 * lose a count. */
static struct rate {
    const char *msg;
    time_t second;
    unsigned written;
    unsigned long long left_out;
} rates[RATE_SLOTS];

struct line {
    char b[LINE_MAX_];
    size_t len;
};

/* Whether journald made our standard error: it then adds the time itself and wants the level in
 * front. */
static bool
stderr_is_journal(void)
{
    const char *env = getenv("JOURNAL_STREAM");
    struct stat st;
    char mine[64];

    if (env == NULL || fstat(STDERR_FILENO, &st) != 0)
        return false;
    snprintf(mine, sizeof(mine), "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    return strcmp(env, mine) == 0;
}

void
log_init(const char *proc)
{
    snprintf(self.proc, sizeof(self.proc), "%s", proc);
    self.pid = getpid();
    self.journald = stderr_is_journal();
}

void
log_level_at(const volatile int *level)
{
    self.shared_level = level;
}

void
log_set_level(enum log_level level)
{
    self.level = level;
}

enum log_level
log_get_level(void)
{
    int level = self.shared_level != NULL ? *self.shared_level : self.level;

    if (level < LOG_ERROR_)
        return LOG_ERROR_;
    return level > LOG_DEBUG_ ? LOG_DEBUG_ : (enum log_level)level;
}

int
log_level_parse(const char *name)
{
    for (int i = 0; i < (int)(sizeof(level_names) / sizeof(level_names[0])); i++)
        if (strcmp(name, level_names[i]) == 0)
            return i;
    return -1;
}

/* Room for the newline is always kept. */
static void
line_char(struct line *l, char c)
{
    if (l->len < sizeof(l->b) - 1)
        l->b[l->len++] = c;
}

static void
line_text(struct line *l, const char *s)
{
    while (*s != '\0')
        line_char(l, *s++);
}

static void __attribute__((format(printf, 2, 3))) line_printf(struct line *l, const char *fmt, ...)
{
    char s[80];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(s, sizeof(s), fmt, ap);
    va_end(ap);
    line_text(l, s);
}

static bool
is_plain(unsigned char c)
{
    return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != '=';
}

/* Whatever is not printable ASCII is shown as \xNN: nothing in a value can end the line or move the
 * terminal's cursor. */
static void
line_value(struct line *l, const char *s)
{
    const char *p = s;

    while (is_plain((unsigned char)*p))
        p++;
    if (p != s && *p == '\0') {
        line_text(l, s);
        return;
    }
    line_char(l, '"');
    for (p = s; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;

        if (c == '"' || c == '\\') {
            line_char(l, '\\');
            line_char(l, (char)c);
        } else if (c == '\n') {
            line_text(l, "\\n");
        } else if (c < ' ' || c >= 0x7f) {
            line_printf(l, "\\x%02x", c);
        } else {
            line_char(l, (char)c);
        }
    }
    line_char(l, '"');
}

static void
line_time(struct line *l)
{
    struct timespec now;
    struct tm tm;

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    line_printf(l, "ts=%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ ", tm.tm_year + 1900, tm.tm_mon + 1,
                tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, now.tv_nsec / 1000000);
}

/* " name=value" for one pair; takes the value that the name's suffix tells from ap. */
static void
line_pair(struct line *l, const char *name, va_list *ap)
{
    size_t n = strlen(name);
    char type = 's';

    if (n > 2 && name[n - 2] == '%') {
        type = name[n - 1];
        n -= 2;
    }
    if (type == 's') {
        const char *s = va_arg(*ap, const char *);

        if (s == NULL)
            return;
        line_printf(l, " %.*s=", (int)n, name);
        line_value(l, s);
        return;
    }
    line_printf(l, " %.*s=", (int)n, name);
    if (type == 'd')
        line_printf(l, "%d", va_arg(*ap, int));
    else if (type == 'l')
        line_printf(l, "%lld", va_arg(*ap, long long));
    else
        line_printf(l, "%llu", va_arg(*ap, unsigned long long));
}

/* Whether this line may go out; *left_out is how many of its kind did not since the last one that
 * did. */
static bool
rate_allows(const char *msg, unsigned long long *left_out)
{
    struct timespec now;
    unsigned hash = 2166136261u;
    struct rate *r;

    for (const char *p = msg; *p != '\0'; p++)
        hash = (hash ^ (unsigned char)*p) * 16777619u;
    r = &rates[hash % RATE_SLOTS];
    clock_gettime(CLOCK_MONOTONIC, &now);
    *left_out = 0;
    if (r->msg == NULL || (r->msg != msg && strcmp(r->msg, msg) != 0)) {
        *r = (struct rate){.msg = msg, .second = now.tv_sec, .written = 1};
        return true;
    }
    if (r->second != now.tv_sec) {
        r->second = now.tv_sec;
        r->written = 0;
    }
    if (r->written >= RATE_PER_SEC) {
        r->left_out++;
        return false;
    }
    r->written++;
    *left_out = r->left_out;
    r->left_out = 0;
    return true;
}

static void
log_line(enum log_level level, const char *msg, va_list *ap)
{
    int saved = errno;
    unsigned long long left_out;
    const char *name;
    struct line l;

    if (level > log_get_level() || !rate_allows(msg, &left_out)) {
        errno = saved;
        return;
    }
    l.len = 0;
    if (self.journald)
        line_printf(&l, "<%d>", syslog_levels[level]);
    else
        line_time(&l);
    line_printf(&l, "level=%s proc=", level_names[level]);
    line_value(&l, self.proc);
    line_printf(&l, " pid=%d msg=", (int)(self.pid != 0 ? self.pid : getpid()));
    line_value(&l, msg);
    while ((name = va_arg(*ap, const char *)) != NULL)
        line_pair(&l, name, ap);
    if (left_out > 0)
        line_printf(&l, " left_out=%llu", left_out);
    l.b[l.len++] = '\n';
    /* A log that cannot be written must stop nobody: one try. */
    if (write(STDERR_FILENO, l.b, l.len) < 0)
        errno = 0;
    errno = saved;
}

#define LOG_FUNCTION(function, level)                                                              \
    void function(const char *msg, ...)                                                            \
    {                                                                                              \
        va_list ap;                                                                                \
        va_start(ap, msg);                                                                         \
        log_line(level, msg, &ap);                                                                 \
        va_end(ap);                                                                                \
    }

LOG_FUNCTION(log_error, LOG_ERROR_)
LOG_FUNCTION(log_warn, LOG_WARN_)
LOG_FUNCTION(log_info, LOG_INFO_)
LOG_FUNCTION(log_debug, LOG_DEBUG_)
