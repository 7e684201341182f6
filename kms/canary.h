/*
 * canary.h - alarms: somebody has retrieved keys of a canary, a resource that nobody has a reason
 * to open.
 *
 * The retrieval works as usual; its entry, once it has its place in the log, raises one alarm.
 * Which entries were looked at and which alarms there are is in the database (canary_raise), so
 * neither a restart nor another node's keeper raises one twice or passes one over.  An alarm is a
 * line of severity error in this process's log, one more in kms_canary_retrievals_total, and, with
 * [audit] syslog, a message of severity 1 (alert) right behind the entry's own.  A keeper that dies
 * between the line and the note that it was written leaves it to be written again, with the same
 * entry.
 */
#ifndef KMS_CANARY_H
#define KMS_CANARY_H

#include <stdbool.h>
#include <stdint.h>

struct canary;
struct keeper;

/* k is borrowed.  NULL: no memory. */
struct canary *canary_new(struct keeper *k);
/* NULL is fine. */
void canary_free(struct canary *c);

/* Looks at what has got its place.  Called by the keeper that sequences, in each turn. */
void canary_push(struct canary *c);

/* How many alarms there were, ever.  false: this keeper does not know, another sequences. */
bool canary_total(const struct canary *c, uint64_t *total);

#endif
