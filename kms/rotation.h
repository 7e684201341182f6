/*
 * rotation.h - the keeper's part of rotation without downtime: roots, and keys under older wrapping
 * keys.
 *
 * sql/0012_rotation.sql has the states, and why a key can be read at every moment of it.  Every
 * keeper says every few seconds that it is there, opens in its own token the sentinel of a root
 * that is to become active, and destroys there what is to be destroyed.  One of them, which holds
 * the lease, makes the next root, switches, re-wraps, checks, and moves stored keys to their
 * organisation's current wrapping key, at most [keys] rewrap_rate a second.
 *
 * Whatever breaks in between, the next turn, here or elsewhere, goes on from what the database
 * says.
 */
#ifndef KMS_ROTATION_H
#define KMS_ROTATION_H

struct keeper;
struct rotator;
struct uuid;

/* Begins; k is borrowed.  NULL: no memory. */
struct rotator *rotator_new(struct keeper *k);
/* Begins nothing any more; what is under way is given back when database and HSM are freed. */
void rotator_stop(struct rotator *r);
/* This keeper's id among the nodes. */
const struct uuid *rotator_node(const struct rotator *r);
/* After database and HSM.  NULL is fine. */
void rotator_free(struct rotator *r);

#endif
