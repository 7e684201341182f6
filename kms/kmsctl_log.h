/*
 * kmsctl_log.h - a log of the server, for commands of kmsctl that prove entries of it.
 * kmsctl_audit.c has it.
 */
#ifndef KMS_KMSCTL_LOG_H
#define KMS_KMSCTL_LOG_H

#include <jansson.h>
#include <stdint.h>

struct buf;
struct ctl;
struct note_key;
struct remote;

/*
 * An organisation's log (NULL: the installation's own) under its newest checkpoint, whose signature
 * is verified.  0 and *log is the caller's; else an exit status, after complaining.
 */
int log_open(struct remote **log, struct ctl *ctl, const char *org);
void log_close(struct remote *log); /* NULL is fine */

/* Borrowed: the checkpoint, a note; how many leaves it has. */
const char *log_note(const struct remote *log);
uint64_t log_size(const struct remote *log);

/*
 * Proves that an entry is the leaf that *index says and checks the proof.  0 and *text gets it
 * (C2SP tlog-proof, with the leaf as its extra data); else an exit status, after complaining.
 */
int log_prove(struct remote *log, json_int_t entry, uint64_t *index, struct buf *text);

/* A verifier key, or a file with one: 0, or an exit status after complaining. */
int read_note_key(struct note_key *key, const char *text);

#endif
