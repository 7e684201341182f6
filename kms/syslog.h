/*
 * syslog.h - the log's entries to a collector as they are made: RFC 5424 messages over TLS (RFC
 * 5425).
 *
 * The spool is the database: where the collector has got to is a cursor there, so nothing is lost
 * while it is away, and this process holds at most one batch.  An entry is sent when it has its
 * place in the log, by the one keeper that sequences; the cursor moves when the batch has left the
 * kernel's send buffer, so after a break some entries come twice: `entry` and `org` in each message
 * tell.  Checkpoints are sent too, when the collector is there: they tie what it has to the tree.
 *
 * Facility 13; severity 6 (done) or 4 (refused), and behind the entry of a canary's retrieval one
 * more message of severity 1, the alarm:
 *
 *   <110>1 2026-11-22T16:20:21.760933Z NODE kmsd - key.get - {"v":1,"org":...}
 *
 *   <110>1 2026-11-22T16:20:26.000000Z NODE kmsd - checkpoint - {"checkpoint":"..."}
 *
 *   <105>1 2026-11-22T16:20:21.760933Z NODE kmsd - canary - {"alarm":...,"entry":...}
 */
#ifndef KMS_SYSLOG_H
#define KMS_SYSLOG_H

struct audit;
struct event_base;
struct json_t;
struct keeper;
struct syslog;

/* As [audit] syslog says; NULL: it says nothing, or no memory (logged). */
struct syslog *syslog_new(struct keeper *k);
/* NULL is fine. */
void syslog_free(struct syslog *s);

/* There is something to send.  Called by the keeper that sequences, after each turn.  NULL is fine.
 */
void syslog_push(struct syslog *s);
/* A checkpoint was signed. */
void syslog_checkpoint(struct syslog *s, const char *note);
/* What status shows; NULL of NULL. */
struct json_t *syslog_status(const struct syslog *s);

#endif
