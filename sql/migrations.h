/*
 * migrations.h - the migrations that this program carries; their text is made by embed.sh at build
 * time.
 */
#ifndef SQL_MIGRATIONS_H
#define SQL_MIGRATIONS_H

struct migration {
    int number;
    const char *name; /* the file's: "0001_schema.sql" */
    const char *text;
};

extern const struct migration migrations[]; /* ascending; ends with number 0 */

#endif
