/*
 * migrate.h - brings a database's schema up to what this program knows.
 *
 * Synchronous: for kmsctl and tests, never for a process that serves.  Each migration is one
 * transaction together with its row in kms.schema_migrations; one program migrates at a time (an
 * advisory lock), a second one waits and then finds nothing to do. Whoever connects must own the
 * database and be allowed to make roles, or be a superuser.
 */
#ifndef SQL_MIGRATE_H
#define SQL_MIGRATE_H

#include <stdbool.h>

/* Where progress and reasons go: one line without its end, borrowed.  Holds nothing secret. */
typedef void migrate_say(void *ctx, const char *text);

/*
 * Applies what is missing.  Changes nothing and returns KMS_ERR_STATE when the database has a
 * migration that this program does not know, or one whose text has changed since it was applied;
 * also when the server is too old or refuses a statement (the failed migration is undone as a
 * whole, those before it stay).  KMS_ERR_UNAVAILABLE: no connection, or lost; run it again.
 */
int migrate(const char *conninfo, migrate_say *say, void *ctx);

/* One migration, known to the program or to the database. */
struct migrate_row {
    int number;
    const char *name;       /* borrowed */
    const char *applied_at; /* borrowed; NULL: not applied */
    bool known;             /* false: the database is newer than this program */
    bool changed;           /* applied with another text */
};

/* Calls row for each, in order; changes nothing.  Returns like migrate(), but KMS_OK whatever the
 * rows say. */
int migrate_status(const char *conninfo, void (*row)(void *ctx, const struct migrate_row *row),
                   migrate_say *say, void *ctx);

/*
 * A database that was restored from a dump into another cluster may have transaction ids that lie
 * behind those of its log; entries that are made there would never get a place in it. KMS_ERR_STATE
 * after saying what to do, before a server runs.
 */
int migrate_check_log(const char *conninfo, migrate_say *say, void *ctx);

#endif
