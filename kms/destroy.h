/*
 * destroy.h - the keeper's part of destruction.
 *
 * sql/0013_destruction.sql decides what is destroyed, and when.  Every keeper compares the
 * database's clock with its own monotonic one, and does away in its node's token with period keys
 * whose month is over, and in its custodians with organisations that are destroyed.  One of them,
 * which holds the lease (rotation.h), carries out commands whose waiting period is over, makes the
 * wrapping keys of months, moves keys under them, and has certificates signed.
 *
 * Each step can be repeated: ids are written down before the HSM is asked, what was moved is stored
 * by compare-and-swap, and a certificate is text in the database before it is a signed note.
 */
#ifndef KMS_DESTROY_H
#define KMS_DESTROY_H

#include <stdbool.h>

struct destroyer;
struct keeper;

/* Begins; k is borrowed, and has its rotator.  NULL: no memory. */
struct destroyer *destroyer_new(struct keeper *k);
/* Begins nothing any more; what is under way is given back when database and HSM are freed. */
void destroyer_stop(struct destroyer *d);
/* After database and HSM.  NULL is fine. */
void destroyer_free(struct destroyer *d);

/* The database's clock is ahead by more than a day: nothing is destroyed by it. */
bool destroyer_held(const struct destroyer *d);

#endif
