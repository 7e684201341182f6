/*
 * table.h - JSON values for people, on standard output.
 *
 * Numbers are read by the names of their members: "created" is a time in milliseconds since 1970,
 * "rss" is bytes.  Control characters in strings, which may come from the network, are shown as
 * '?'.
 */
#ifndef KMS_TABLE_H
#define KMS_TABLE_H

#include <jansson.h>

struct buf;

/* Appends one value as a cell; name: of its member. */
void table_put_value(struct buf *out, const char *name, const json_t *v);
/* Rows with a heading, columns aligned; names: of the members to show, NULL-terminated.  Members
 * that no row has are left out. */
void table_print(const json_t *rows, const char *const *names);
/* The same with all members of the first row, in its order. */
void table_print_whole(const json_t *rows);
/* One member a line; inner objects, tables and long texts below their name. */
void table_print_object(const json_t *obj, int indent);

#endif
