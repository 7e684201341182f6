/*
 * conf.c - fills a program's struct from an INI file by the program's table of settings.
 *
 * libinih splits the lines.  What it keeps to itself, the number of a line and which lines are no
 * INI at all, is seen here by the function that hands it the lines.
 */
#include "hsm/conf.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/err.h"

#define CONF_LINE_MAX 4096

struct reader {
    FILE *file;
    const char *path;
    unsigned line;
    bool failed;
    void *out;
    const struct conf_setting *settings;
    size_t n;
    const char *const *others;
    unsigned *seen;       /* the line of each setting, 0: not yet */
    char bad_section[64]; /* the last unknown one: told once, not for each of its settings */
    conf_error_cb *cb;
    void *ctx;
};

/* "path:line: text"; line 0: of the file as a whole. */
static void __attribute__((format(printf, 3, 4)))
report(struct reader *r, unsigned line, const char *fmt, ...)
{
    char text[CONF_LINE_MAX + 512], what[CONF_LINE_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    if (line > 0)
        snprintf(text, sizeof(text), "%.400s:%u: %s", r->path, line, what);
    else
        snprintf(text, sizeof(text), "%.400s: %s", r->path, what);
    r->failed = true;
    r->cb(r->ctx, text);
}

/* A whole number at the start of text; *end is what follows.  false: none, or it does not fit. */
static bool
number(const char *text, long long *v, const char **end)
{
    char *e;

    if (!isdigit((unsigned char)text[text[0] == '-']))
        return false;
    errno = 0;
    *v = strtoll(text, &e, 10);
    *end = e;
    return errno == 0;
}

/* A number with a unit: units holds the letters, factors what each stands for. */
static bool
number_with_unit(const char *text, const char *units, const long long *factors, long long *v)
{
    const char *end, *unit;

    if (!number(text, v, &end))
        return false;
    if (*end == '\0')
        return true;
    unit = strchr(units, *end);
    if (unit == NULL || end[1] != '\0')
        return false;
    return !__builtin_mul_overflow(*v, factors[unit - units], v);
}

static bool
parse_seconds(const char *text, long long *v)
{
    static const long long factors[] = {1, 60, 3600, 86400};

    return number_with_unit(text, "smhd", factors, v);
}

static bool
parse_bytes(const char *text, long long *v)
{
    static const long long factors[] = {1 << 10, 1 << 10, 1 << 20, 1 << 20, 1 << 30, 1 << 30};

    return number_with_unit(text, "kKmMgG", factors, v);
}

static bool
parse_int(const char *text, long long *v)
{
    const char *end;

    return number(text, v, &end) && *end == '\0';
}

static bool
parse_bool(const char *text, bool *v)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcasecmp(text, words[i]) == 0) {
            *v = (i & 1) != 0;
            return true;
        }
    return false;
}

static void *
member(void *out, const struct conf_setting *s)
{
    return (unsigned char *)out + s->offset;
}

/* Checks a number's range and stores it. */
static void
store_number(struct reader *r, const struct conf_setting *s, unsigned line, const char *text,
             bool ok, long long v)
{
    static const char *const what[] = {[CONF_INT] = "a whole number",
                                       [CONF_SECONDS] = "a time; write 30, 30s, 5m, 1h or 7d",
                                       [CONF_BYTES] = "a size; write 512, 64k or 4M"};

    if (!ok)
        report(r, line, "[%s] %s: \"%.80s\" is not %s", s->section, s->name, text, what[s->type]);
    else if (v < s->min || v > s->max)
        report(r, line, "[%s] %s: %s is out of range; write %lld to %lld%s", s->section, s->name,
               text, s->min, s->max,
               s->type == CONF_SECONDS ? " (seconds)"
               : s->type == CONF_BYTES ? " (bytes)"
                                       : "");
    else
        *(long long *)member(r->out, s) = v;
}

/* NULL, or what is wrong with the file of a CONF_FILE. */
static const char *
file_trouble(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0 || eaccess(path, R_OK) != 0)
        return strerror(errno);
    return S_ISDIR(st.st_mode) ? "it is a directory" : NULL;
}

static void
store_text(struct reader *r, const struct conf_setting *s, unsigned line, const char *text)
{
    char **p = member(r->out, s);
    const char *trouble;

    if ((s->type == CONF_PATH || s->type == CONF_FILE) && text[0] != '\0' && text[0] != '/')
        report(r, line, "[%s] %s: \"%.80s\" is not an absolute path; begin it with /", s->section,
               s->name, text);
    else if (s->type == CONF_FILE && text[0] != '\0' && (trouble = file_trouble(text)) != NULL)
        report(r, line, "[%s] %s: cannot read %s: %s; name a file that this user may read",
               s->section, s->name, text, trouble);
    free(*p);
    if ((*p = strdup(text)) == NULL)
        report(r, line, "out of memory");
}

/* One setting's text, from the file or its default, into the struct. */
static void
store(struct reader *r, const struct conf_setting *s, unsigned line, const char *text)
{
    long long v = 0;
    bool ok;

    if (text[0] == '\0' && s->type != CONF_STRING && s->def != NULL && s->def[0] == '\0' &&
        s->type < CONF_FILE)
        return; /* an absent number or truth: stays zero */
    switch (s->type) {
    case CONF_INT:
        ok = parse_int(text, &v);
        store_number(r, s, line, text, ok, v);
        return;
    case CONF_SECONDS:
        ok = parse_seconds(text, &v);
        store_number(r, s, line, text, ok, v);
        return;
    case CONF_BYTES:
        ok = parse_bytes(text, &v);
        store_number(r, s, line, text, ok, v);
        return;
    case CONF_BOOL:
        if (!parse_bool(text, member(r->out, s)))
            report(r, line, "[%s] %s: \"%.80s\" is neither yes nor no; write yes or no", s->section,
                   s->name, text);
        return;
    case CONF_STRING:
    case CONF_FILE:
    case CONF_PATH:
    case CONF_LIST:
        store_text(r, s, line, text);
        return;
    }
}

static bool
is_listed(const char *const *names, const char *name)
{
    for (; names != NULL && *names != NULL; names++)
        if (strcmp(*names, name) == 0)
            return true;
    return false;
}

/* "a, b, c": the settings of a section, or (section NULL) the sections. */
static const char *
list_known(const struct reader *r, const char *section, char *out, size_t size)
{
    size_t len = 0;

    out[0] = '\0';
    for (size_t i = 0; i < r->n; i++) {
        const struct conf_setting *s = &r->settings[i];
        const char *word = section == NULL ? s->section : s->name;

        if (section == NULL ? i > 0 && strcmp(s->section, r->settings[i - 1].section) == 0
                            : strcmp(s->section, section) != 0)
            continue;
        if (len < size)
            len += (size_t)snprintf(out + len, size - len, "%s%s", len > 0 ? ", " : "", word);
    }
    return out;
}

static int
setting_cb(void *user, const char *section, const char *name, const char *value)
{
    struct reader *r = user;
    bool known_section = false;
    char list[1024];

    if (name[0] == '\0' || is_listed(r->others, section))
        return 1; /* nameless: the grammar's check told that */
    for (size_t i = 0; i < r->n; i++) {
        const struct conf_setting *s = &r->settings[i];

        if (strcmp(s->section, section) != 0)
            continue;
        known_section = true;
        if (strcmp(s->name, name) != 0)
            continue;
        if (r->seen[i] != 0)
            report(r, r->line, "[%s] %s: was given in line %u already; keep one of the two",
                   section, name, r->seen[i]);
        else if (r->seen[i] = r->line, s->def == NULL && value[0] == '\0')
            report(r, r->line, "[%s] %s: is empty; write %s", section, name, s->help);
        else
            store(r, s, r->line, value);
        return 1;
    }
    if (known_section) {
        report(r, r->line, "[%s] %.80s: no such setting; the section has %s", section, name,
               list_known(r, section, list, sizeof(list)));
    } else if (strncmp(section, r->bad_section, sizeof(r->bad_section) - 1) != 0 ||
               section[0] == '\0') {
        snprintf(r->bad_section, sizeof(r->bad_section), "%s", section);
        if (section[0] == '\0')
            report(r, r->line, "%.80s: stands before any section; write one of [%s] above it", name,
                   list_known(r, NULL, list, sizeof(list)));
        else
            report(r, r->line, "[%.80s]: no such section; write one of %s", section,
                   list_known(r, NULL, list, sizeof(list)));
    }
    return 1;
}

/* What libinih would leave out without telling which line it was. */
static void
check_grammar(struct reader *r, const char *line)
{
    const char *end;

    if (r->line == 1 && strncmp(line, "\xEF\xBB\xBF", 3) == 0)
        line += 3;
    while (isspace((unsigned char)*line))
        line++;
    if (*line == '\0' || *line == ';' || *line == '#')
        return;
    if (*line != '[') {
        if (strpbrk(line, "=:") == NULL || *line == '=' || *line == ':')
            report(r, r->line,
                   "is neither a section nor a setting; write [section] or name = value");
        return;
    }
    end = strchr(line, ']');
    for (end = end != NULL ? end + 1 : ""; isspace((unsigned char)*end); end++)
        ;
    if (strchr(line, ']') == NULL || (*end != '\0' && *end != ';'))
        report(r, r->line, "is not a section's name; write [section] on a line of its own");
}

/* An fgets for libinih. */
static char *
line_cb(char *buf, int size, void *user)
{
    struct reader *r = user;
    size_t len;
    int c;

    if (fgets(buf, size, r->file) == NULL)
        return NULL;
    r->line++;
    len = strlen(buf);
    if (len + 1 == (size_t)size && buf[len - 1] != '\n') {
        report(r, r->line, "is longer than %d characters; shorten it", size - 2);
        while ((c = getc(r->file)) != EOF && c != '\n')
            ;
        buf[0] = '\0';
        return buf;
    }
    check_grammar(r, buf);
    return buf;
}

int
conf_read(void *out, size_t size, const struct conf_setting *settings, size_t n,
          const char *const *others, const char *path, conf_error_cb *cb, void *ctx)
{
    struct reader r = {.path = path,
                       .out = out,
                       .settings = settings,
                       .n = n,
                       .others = others,
                       .cb = cb,
                       .ctx = ctx};

    memset(out, 0, size);
    if ((r.file = fopen(path, "re")) == NULL) {
        report(&r, 0, "cannot be read: %s; name the configuration file with --config",
               strerror(errno));
        return KMS_ERR_CONFIG;
    }
    if ((r.seen = calloc(n + 1, sizeof(*r.seen))) == NULL) {
        fclose(r.file);
        report(&r, 0, "out of memory");
        return KMS_ERR_CONFIG;
    }
    /* Indented lines are settings like others, not the rest of the one above; connection strings
     * may be long. */
    ini_allow_multiline = false;
    ini_use_stack = false;
    ini_initial_alloc = ini_max_line = CONF_LINE_MAX;
    if (ini_parse_stream(line_cb, &r, setting_cb, &r) < 0)
        report(&r, 0, "out of memory");
    if (ferror(r.file))
        report(&r, 0, "cannot be read: %s", strerror(errno));
    for (size_t i = 0; i < n; i++) {
        if (r.seen[i] != 0)
            continue;
        if (settings[i].def == NULL)
            report(&r, 0, "[%s] %s: is missing; write %s", settings[i].section, settings[i].name,
                   settings[i].help);
        else
            store(&r, &settings[i], 0, settings[i].def);
    }
    free(r.seen);
    fclose(r.file);
    return r.failed ? KMS_ERR_CONFIG : KMS_OK;
}

void
conf_release(void *out, const struct conf_setting *settings, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char **p;

        if (settings[i].type != CONF_STRING && settings[i].type < CONF_FILE)
            continue;
        p = member(out, &settings[i]);
        free(*p);
        *p = NULL;
    }
}

void
conf_print_sample(const struct conf_setting *settings, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct conf_setting *s = &settings[i];

        if (i == 0 || strcmp(s->section, settings[i - 1].section) != 0)
            printf("%s[%s]\n", i == 0 ? "" : "\n", s->section);
        printf("# %s%s\n", s->help, s->def == NULL ? " (required)" : "");
        printf("%s%s = %s\n", s->def == NULL ? "" : "#", s->name, s->def == NULL ? "" : s->def);
    }
}
