/*
 * migrate_tool.c - runs migrate() and migrate_status() for tests: migrate-tool migrate|status
 * CONNINFO. Prints what they say; exit status 0, or 1 with the error's number on the last line.
 */
#include <stdio.h>
#include <string.h>

#include "proto/err.h"
#include "sql/migrate.h"

static void
say(void *ctx, const char *text)
{
    puts(text);
}

static void
show(void *ctx, const struct migrate_row *row)
{
    printf("%d %s %s%s%s\n", row->number, row->name,
           row->applied_at != NULL ? row->applied_at : "missing", row->known ? "" : " unknown",
           row->changed ? " changed" : "");
}

int
main(int argc, char **argv)
{
    int err;

    if (argc == 3 && strcmp(argv[1], "migrate") == 0) {
        err = migrate(argv[2], say, NULL);
    } else if (argc == 3 && strcmp(argv[1], "status") == 0) {
        err = migrate_status(argv[2], show, say, NULL);
    } else {
        fputs("usage: migrate-tool migrate|status CONNINFO\n", stderr);
        return 2;
    }
    if (err != KMS_OK)
        printf("error %d\n", err);
    return err == KMS_OK ? 0 : 1;
}
