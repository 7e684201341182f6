/*
 * table.c - JSON for people: aligned tables, human times and sizes, nothing that a terminal would
 * obey.
 */
#include "kms/table.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proto/buf.h"

static bool
named(const char *name, const char *const *names)
{
    for (; *names != NULL; names++) {
        if (strcmp(name, *names) == 0)
            return true;
    }
    return false;
}

/* "2026-11-22 14:20:31Z (3 h ago)" */
static void
put_time(struct buf *out, json_int_t ms)
{
    static const struct {
        long long seconds;
        const char *unit;
    } units[] = {{2 * 86400, "d"}, {2 * 3600, "h"}, {120, "min"}, {0, "s"}};
    static const long long sizes[] = {86400, 3600, 60, 1};
    time_t t = (time_t)(ms / 1000);
    long long d = (long long)time(NULL) - t, a = d < 0 ? -d : d;
    char text[32];
    struct tm tm;
    size_t i = 0;

    gmtime_r(&t, &tm);
    strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%SZ", &tm);
    while (a < units[i].seconds)
        i++;
    if (d >= 0)
        buf_putf(out, "%s (%lld %s ago)", text, a / sizes[i], units[i].unit);
    else
        buf_putf(out, "%s (in %lld %s)", text, a / sizes[i], units[i].unit);
}

/* Names from the network may hold what a terminal would obey. */
static void
put_text(struct buf *out, const char *s)
{
    for (; *s != '\0'; s++) {
        unsigned char ch = (unsigned char)*s, next = (unsigned char)s[1];

        if (ch == 0xc2 && next >= 0x80 && next < 0xa0) {
            buf_putc(out, '?');
            s++;
        } else {
            buf_putc(out, ch < 0x20 || ch == 0x7f ? '?' : (char)ch);
        }
    }
}

/* A value as a cell; its member's name says how numbers are meant. */
void
table_put_value(struct buf *out, const char *name, const json_t *v)
{
    static const char *const times[] = {"started",
                                        "reloaded",
                                        "created",
                                        "expires",
                                        "bound",
                                        "last",
                                        "destroyed",
                                        "now",
                                        "time",
                                        "at",
                                        "since",
                                        "deleted",
                                        "oldest_wrapping_key",
                                        "from",
                                        "to",
                                        "changed",
                                        "opened",
                                        "approved",
                                        "closed",
                                        "retired",
                                        "decided",
                                        "sealed_until",
                                        "until",
                                        "frozen_until",
                                        "ended",
                                        "moved",
                                        "seen",
                                        "due",
                                        "begun",
                                        "updated",
                                        "signed",
                                        "used",
                                        "trusted",
                                        NULL};
    static const char *const bytes[] = {"rss", "secure_heap_used_bytes", "bytes", NULL};
    json_int_t n = json_integer_value(v);
    const json_t *e;
    size_t i;

    switch (v == NULL ? JSON_NULL : json_typeof(v)) {
    case JSON_STRING:
        put_text(out, json_string_value(v));
        break;
    case JSON_INTEGER:
        if (named(name, times) && n > 100000000000LL)
            put_time(out, n);
        else if (named(name, times) && n == 0)
            buf_putc(out, '-');
        else if (named(name, bytes))
            buf_putf(out, "%.1f MiB", (double)n / 1048576);
        else
            buf_putf(out, "%" JSON_INTEGER_FORMAT, n);
        break;
    case JSON_REAL:
        buf_putf(out, "%g", json_real_value(v));
        break;
    case JSON_TRUE:
        buf_puts(out, "yes");
        break;
    case JSON_FALSE:
        buf_puts(out, "no");
        break;
    case JSON_ARRAY:
        if (json_array_size(v) == 0)
            buf_putc(out, '-');
        json_array_foreach(v, i, e)
        {
            if (i > 0)
                buf_puts(out, ", ");
            table_put_value(out, name, e);
        }
        break;
    case JSON_OBJECT: {
        const char *member;
        json_t *inner;
        bool first = true;

        json_object_foreach((json_t *)(uintptr_t)v, member, inner)
        {
            buf_puts(out, first ? "" : " ");
            put_text(out, member);
            buf_putc(out, '=');
            table_put_value(out, member, inner);
            first = false;
        }
        if (first)
            buf_putc(out, '-');
        break;
    }
    default:
        buf_putc(out, '-');
    }
}

/* Columns that it takes on a terminal: code points, more or less. */
static int
width(const char *s)
{
    int n = 0;

    for (; *s != '\0'; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void
print_padded(const char *s, int columns)
{
    fputs(s, stdout);
    for (int n = width(s); n < columns; n++)
        putchar(' ');
}

/* "bound_keys" as "bound keys". */
static void
print_title(const char *name, bool capitals, int columns)
{
    char text[64];
    size_t i;

    for (i = 0; name[i] != '\0' && i < sizeof(text) - 1; i++) {
        text[i] = name[i] == '_' ? ' ' : name[i];
        if (capitals && text[i] >= 'a' && text[i] <= 'z')
            text[i] = (char)(text[i] - 'a' + 'A');
    }
    text[i] = '\0';
    print_padded(text, columns);
}

#define COLUMNS_MAX 32

/* Aligned columns; names: of the members to show, NULL-terminated.  Members that no row has are
 * left out. */
void
table_print(const json_t *rows, const char *const *names)
{
    const char *shown[COLUMNS_MAX];
    int widths[COLUMNS_MAX];
    size_t n = 0, i, c;
    const json_t *row;

    if (json_array_size(rows) == 0) {
        puts("none");
        return;
    }
    for (; *names != NULL && n < COLUMNS_MAX; names++) {
        bool any = false;
        int w = width(*names);

        json_array_foreach(rows, i, row)
        {
            const json_t *v = json_object_get(row, *names);
            struct buf cell = BUF_INIT;

            any = any || v != NULL;
            table_put_value(&cell, *names, v);
            w = width(buf_str(&cell)) > w ? width(buf_str(&cell)) : w;
            buf_release(&cell);
        }
        if (any) {
            shown[n] = *names;
            widths[n++] = w + 2;
        }
    }
    if (n > 0)
        widths[n - 1] = 0; /* nothing follows it */
    for (c = 0; c < n; c++)
        print_title(shown[c], true, widths[c]);
    putchar('\n');
    json_array_foreach(rows, i, row)
    {
        for (c = 0; c < n; c++) {
            struct buf cell = BUF_INIT;

            table_put_value(&cell, shown[c], json_object_get(row, shown[c]));
            print_padded(buf_str(&cell), widths[c]);
            buf_release(&cell);
        }
        putchar('\n');
    }
}

/* All members of the first row, in its order. */
void
table_print_whole(const json_t *rows)
{
    const char *names[COLUMNS_MAX + 1] = {NULL};
    const char *member;
    json_t *v;
    size_t n = 0;

    json_object_foreach(json_array_get(rows, 0), member, v)
    {
        if (n < COLUMNS_MAX)
            names[n++] = member;
    }
    table_print(rows, names);
}

/* One member a line, names aligned; objects, tables and text of several lines below their heading.
 */
void
table_print_object(const json_t *obj, int indent)
{
    const char *name;
    json_t *v;
    int w = 0;

    json_object_foreach((json_t *)(uintptr_t)obj, name, v)
    {
        if (width(name) > w)
            w = width(name);
    }
    json_object_foreach((json_t *)(uintptr_t)obj, name, v)
    {
        struct buf cell = BUF_INIT;

        printf("%*s", indent, "");
        if (json_is_object(v) && json_object_size(v) > 0) {
            print_title(name, false, 0);
            putchar('\n');
            table_print_object(v, indent + 2);
        } else if (json_is_array(v) && json_is_object(json_array_get(v, 0))) {
            print_title(name, false, 0);
            putchar('\n');
            table_print_whole(v);
        } else if (json_is_string(v) && strchr(json_string_value(v), '\n') != NULL) {
            print_title(name, false, 0);
            printf("\n%s", json_string_value(v));
        } else {
            table_put_value(&cell, name, v);
            print_title(name, false, w + 2);
            puts(buf_str(&cell));
        }
        buf_release(&cell);
    }
}
