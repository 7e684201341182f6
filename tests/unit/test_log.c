/*
 * test_log.c - log lines: what a value can and cannot do to one.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/log.h"

/* Standard error goes to a file while a test looks at it. */
static FILE *file;
static int kept;

static void
capture(void)
{
    file = tmpfile();
    kept = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    unsetenv("JOURNAL_STREAM");
    log_init("test");
}

static const char *
captured(void)
{
    static char text[200000];
    ssize_t n;

    dup2(kept, STDERR_FILENO);
    n = pread(fileno(file), text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

static unsigned
lines(const char *text)
{
    unsigned n = 0;

    for (; *text != '\0'; text++)
        n += *text == '\n';
    return n;
}

static bool
has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

Test(log, shows_pairs_of_each_type)
{
    const char *text;

    capture();
    log_info("it is done", "name", "plain", "absent", NULL, "n%d", -5, "long%l", 1LL << 40,
             "unsigned%u", 1ULL << 63, NULL);
    text = captured();
    cr_assert(has(text, "level=info proc=test "), "%s", text);
    cr_assert(has(text, " msg=\"it is done\" name=plain n=-5 long=1099511627776 "
                        "unsigned=9223372036854775808\n"),
              "%s", text);
    cr_assert_not(has(text, "absent"));
    cr_assert_eq(strncmp(text, "ts=20", 5), 0);
}

struct value {
    char name[24];
    char value[48];
    char shown[96];
};

ParameterizedTestParameters(log, a_value_cannot_leave_its_quotes)
{
    static struct value rows[] = {
        {"empty", "", "v=\"\""},
        {"space", "a b", "v=\"a b\""},
        {"quote", "a\" level=error", "v=\"a\\\" level=error\""},
        {"equals sign", "a=b", "v=\"a=b\""},
        {"backslash", "a\\", "v=\"a\\\\\""},
        {"newline", "a\nlevel=error", "v=\"a\\nlevel=error\""},
        {"carriage return", "a\rb", "v=\"a\\x0db\""},
        {"escape sequence", "\033[2J", "v=\"\\x1b[2J\""},
        {"delete", "\177", "v=\"\\x7f\""},
        {"not ASCII", "\xc2\x9b", "v=\"\\xc2\\x9b\""},
    };

    return cr_make_param_array(struct value, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct value *v, log, a_value_cannot_leave_its_quotes)
{
    const char *text;

    capture();
    log_info("value", "v", v->value, NULL);
    text = captured();
    cr_assert(has(text, v->shown), "%s: %s", v->name, text);
    cr_assert_eq(lines(text), 1, "%s", v->name);
}

Test(log, a_long_value_is_cut_and_the_line_still_ends)
{
    static char value[10000];
    const char *text;

    memset(value, 'x', sizeof(value) - 1);
    capture();
    log_info("long", "v", value, NULL);
    log_info("next", NULL);
    text = captured();
    cr_assert_eq(lines(text), 2);
    cr_assert_leq(strchr(text, '\n') - text, 4096);
    cr_assert(has(text, "msg=next\n"));
}

Test(log, says_how_many_it_left_out)
{
    const char *text;

    capture();
    /* Two bursts more than a second apart; a burst may fall on two seconds, hence the bounds. */
    for (int i = 0; i < 100; i++)
        log_info("the same again", NULL);
    sleep(2);
    log_info("the same again", NULL);
    log_info("something else", NULL);
    text = captured();
    cr_assert_leq(lines(text), 42);
    cr_assert_geq(lines(text), 22);
    cr_assert(has(text, "left_out="));
    cr_assert(has(text, "msg=\"something else\"\n"));
}

Test(log, keeps_to_the_level_its_own_or_a_shared_one)
{
    volatile int shared = LOG_ERROR_;
    const char *text;

    capture();
    log_debug("one", NULL);
    log_set_level(LOG_DEBUG_);
    log_debug("two", NULL);
    log_level_at(&shared);
    log_warn("three", NULL);
    shared = LOG_WARN_;
    log_warn("four", NULL);
    log_level_at(NULL);
    text = captured();
    cr_assert_not(has(text, "msg=one"));
    cr_assert(has(text, "msg=two"));
    cr_assert_not(has(text, "msg=three"));
    cr_assert(has(text, "msg=four"));
    cr_assert_eq(log_level_parse("warn"), LOG_WARN_);
    cr_assert_eq(log_level_parse("WARN"), -1);
}

Test(log, gives_journald_the_level_and_no_time)
{
    const char *text;
    struct stat st;
    char stream[64];

    capture();
    fstat(STDERR_FILENO, &st);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init("test");
    log_warn("to the journal", NULL);
    text = captured();
    cr_assert_eq(strncmp(text, "<4>level=warn proc=test", 23), 0, "%s", text);
}

Test(log, keeps_errno)
{
    capture();
    errno = ENOSPC;
    log_error("disk", NULL);
    cr_assert_eq(errno, ENOSPC);
    captured();
}
