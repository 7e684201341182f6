/*
 * test_conf.c - the configuration reader: values, and the errors that tell where and what to write
 * instead.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hsm/conf.h"
#include "proto/err.h"

struct config {
    char *name, *file, *path, *words, *needed;
    long long number, time, size;
    bool on;
};

static const struct conf_setting settings[] = {
    {"one", "needed", CONF_STRING, offsetof(struct config, needed), NULL, 0, 0, "something"},
    {"one", "name", CONF_STRING, offsetof(struct config, name), "anna", 0, 0, "a name"},
    {"one", "number", CONF_INT, offsetof(struct config, number), "3", -5, 100, "a number"},
    {"one", "on", CONF_BOOL, offsetof(struct config, on), "no", 0, 0, "a truth"},
    {"two", "time", CONF_SECONDS, offsetof(struct config, time), "1m", 1, 864000, "a time"},
    {"two", "size", CONF_BYTES, offsetof(struct config, size), "4k", 0, 1LL << 40, "a size"},
    {"two", "file", CONF_FILE, offsetof(struct config, file), "", 0, 0, "a file"},
    {"two", "path", CONF_PATH, offsetof(struct config, path), "/run/x", 0, 0, "a path"},
    {"two", "words", CONF_LIST, offsetof(struct config, words), "", 0, 0, "words"},
};
#define SETTINGS_N (sizeof(settings) / sizeof(settings[0]))
static const char *const others[] = {"theirs", NULL};

static char errors[65536];
static unsigned errors_n;

static void
error_cb(void *ctx, const char *text)
{
    errors_n++;
    strncat(errors, text, sizeof(errors) - strlen(errors) - 2);
    strcat(errors, "\n");
}

static int
read_text(struct config *c, const char *text)
{
    char path[] = "/tmp/test_conf-XXXXXX";
    int fd = mkstemp(path), err;

    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    errors[0] = '\0';
    errors_n = 0;
    err = conf_read(c, sizeof(*c), settings, SETTINGS_N, others, path, error_cb, NULL);
    unlink(path);
    return err;
}

Test(conf, reads_every_type)
{
    struct config c;

    cr_assert_eq(read_text(&c, "\xEF\xBB\xBF# a comment\n[one]\nneeded = x = y\n  number = -5\n"
                               "\ton: yes\r\n; another\n[two]\ntime=7d\nsize = 3M ; inline\n"
                               "file = /etc/passwd\nwords = a, b c\n[theirs]\nwhatever = 1\n"),
                 KMS_OK, "%s", errors);
    cr_assert_str_eq(c.needed, "x = y");
    cr_assert_str_eq(c.name, "anna");
    cr_assert_eq(c.number, -5);
    cr_assert(c.on);
    cr_assert_eq(c.time, 7 * 86400);
    cr_assert_eq(c.size, 3 << 20);
    cr_assert_str_eq(c.file, "/etc/passwd");
    cr_assert_str_eq(c.path, "/run/x");
    cr_assert_str_eq(c.words, "a, b c");
    conf_release(&c, settings, SETTINGS_N);
    cr_assert_null(c.needed);
}

Test(conf, takes_a_long_line_whole)
{
    char text[4200], value[3001];
    struct config c;

    memset(value, 'v', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    snprintf(text, sizeof(text), "[one]\nneeded = %s\n", value);
    cr_assert_eq(read_text(&c, text), KMS_OK, "%s", errors);
    cr_assert_str_eq(c.needed, value);
    conf_release(&c, settings, SETTINGS_N);
}

struct bad {
    char name[32];
    char text[96];
    char where[8]; /* :line: */
    char says[64];
};

ParameterizedTestParameters(conf, refuses)
{
    static struct bad rows[] = {
        {"missing", "[one]\n", "", "[one] needed: is missing; write something"},
        {"empty", "[one]\nneeded =\n", ":2:", "is empty; write something"},
        {"not a number", "[one]\nneeded=1\nnumber = 5x\n", ":3:", "\"5x\" is not a whole number"},
        {"no number", "[one]\nneeded=1\nnumber = \n", ":3:", "is not a whole number"},
        {"too large", "[one]\nneeded=1\nnumber = 101\n", ":3:", "out of range; write -5 to 100"},
        {"overflow", "[one]\nneeded=1\nnumber = 99999999999999999999\n", ":3:", "is not a whole"},
        {"no truth", "[one]\nneeded=1\non = maybe\n", ":3:", "write yes or no"},
        {"not a time", "[one]\nneeded=1\n[two]\ntime = 5x\n", ":4:", "write 30, 30s, 5m, 1h or 7d"},
        {"two units", "[one]\nneeded=1\n[two]\ntime = 5ms\n", ":4:", "is not a time"},
        {"time overflow", "[one]\nneeded=1\n[two]\ntime = 999999999999999999d\n",
         ":4:", "not a time"},
        {"not a size", "[one]\nneeded=1\n[two]\nsize = k\n", ":4:", "write 512, 64k or 4M"},
        {"relative", "[one]\nneeded=1\n[two]\npath = a/b\n", ":4:", "begin it with /"},
        {"no file", "[one]\nneeded=1\n[two]\nfile = /no/such\n", ":4:", "cannot read /no/such"},
        {"directory", "[one]\nneeded=1\n[two]\nfile = /tmp\n", ":4:", "it is a directory"},
        {"unknown setting", "[one]\nneeded=1\nnaem = x\n", ":3:", "has needed, name, number, on"},
        {"unknown section", "[one]\nneeded=1\n[tow]\ntime=1\n", ":4:", "[tow]: no such section"},
        {"no section", "x = 1\n[one]\nneeded=1\n", ":1:", "before any section"},
        {"twice", "[one]\nneeded=1\nneeded=2\n", ":3:", "given in line 2 already"},
        {"no setting", "[one]\nneeded=1\nfoo\n", ":3:", "neither a section nor a setting"},
        {"no name", "[one]\nneeded=1\n= foo\n", ":3:", "neither a section nor a setting"},
        {"open bracket", "[one]\nneeded=1\n[two\n", ":3:", "not a section's name"},
        {"after the bracket", "[one]\nneeded=1\n[two] x = 1\n", ":3:", "not a section's name"},
    };

    return cr_make_param_array(struct bad, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct bad *b, conf, refuses)
{
    struct config c;

    cr_assert_eq(read_text(&c, b->text), KMS_ERR_CONFIG, "%s", b->name);
    cr_assert_not_null(strstr(errors, b->where), "%s: %s", b->name, errors);
    cr_assert_not_null(strstr(errors, b->says), "%s: %s", b->name, errors);
    cr_assert_eq(errors_n, 1, "%s: %s", b->name, errors);
    conf_release(&c, settings, SETTINGS_N);
}

Test(conf, tells_all_errors_in_one_run)
{
    struct config c;

    cr_assert_eq(read_text(&c, "[one]\nnumber = x\non = x\n[two]\ntime = x\n"), KMS_ERR_CONFIG);
    cr_assert_eq(errors_n, 4, "%s", errors);
    conf_release(&c, settings, SETTINGS_N);
}

Test(conf, refuses_a_line_without_end)
{
    static char text[20000];
    struct config c;

    memset(text, 'x', sizeof(text) - 1);
    memcpy(text, "[one]\nneeded = ", 15);
    memcpy(text + sizeof(text) - 12, "\nnumber = 4\n", 12);
    text[sizeof(text) - 1] = '\0';
    cr_assert_eq(read_text(&c, text), KMS_ERR_CONFIG);
    cr_assert_not_null(strstr(errors, ":2: is longer than"), "%s", errors);
    cr_assert_eq(c.number, 4, "what follows is read all the same");
    conf_release(&c, settings, SETTINGS_N);
}

Test(conf, says_when_there_is_no_file)
{
    struct config c;

    errors[0] = '\0';
    cr_assert_eq(
        conf_read(&c, sizeof(c), settings, SETTINGS_N, others, "/no/such.conf", error_cb, NULL),
        KMS_ERR_CONFIG);
    cr_assert_not_null(strstr(errors, "/no/such.conf: cannot be read"), "%s", errors);
    conf_release(&c, settings, SETTINGS_N);
}
