/*
 * audit.h - the keeper's part of the log: gives entries their places, grows the trees, signs
 * checkpoints.
 *
 * One keeper of all nodes does it at a time: kms.log_sequence takes a lock that its database
 * session holds, so another takes over when that session ends.  A checkpoint is always of the tree
 * that was signed last, with the new leaves appended: what it continues was kept in memory, or was
 * verified under the audit key when this process first saw it.  So nobody who edits tables can make
 * this process sign a tree that does not continue the last one.
 *
 * See LOG.md for the formats.
 */
#ifndef KMS_AUDIT_H
#define KMS_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/note.h"
#include "proto/uri.h"

struct audit;
struct canary;
struct db;
struct json_t;
struct keeper;

/* Statements of role kms_keeper that the log needs; the table is in audit.c. */
enum audit_statement {
    AS_SEQUENCE,
    AS_DUE,
    AS_HASHES,
    AS_CHECKPOINT_ADD,
    AS_SHOW,
    AS_NOTES,
    AS_NODES,
    AS_ENTRIES,
    AS_FIND,
    AS_STRAYS,
    AS_COSIGN,
    AS_PERSON_ERASE,
    AS_STREAM_NEXT,
    AS_STREAM_DONE,
    AS_CANARY_RAISE,
    AS_CANARY_TOLD,
    AS_EXPLAIN,
    AS_MATTER_REPORT,
    AS_N
};

/* Begins at once; k is borrowed, and its hsm is there for as long as this is.  NULL: no memory. */
struct audit *audit_new(struct keeper *k);
/* Begins nothing new, and answers calls of the admin socket that wait for the database.  Before the
 * HSM is freed, whose answers still come here; audit_free after it.  NULL is fine for both. */
void audit_stop(struct audit *a);
void audit_free(struct audit *a);

/* For looking: never waits behind the sequencing. */
struct db *audit_db(struct audit *a);
/* Alarms; borrowed.  NULL: another keeper sequences. */
const struct canary *audit_canary(const struct audit *a);
/* What status shows of it. */
struct json_t *audit_status(const struct audit *a);

/* The verifier key of a log, with its name: "DOMAIN/log/ORG".  false: the HSM has not told the
 * audit key yet. */
bool audit_key(const struct audit *a, const struct uuid *org, struct note_key *key);

#endif
