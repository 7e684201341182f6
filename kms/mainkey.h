/*
 * mainkey.h - customers' main keys in the HSM: what a keeper does about them.
 *
 * Workers and officers write down what is to be done (kms.main_key_jobs); a keeper of any node
 * takes a job for a few seconds at a time, does it in the HSM, and ends it in the database, where
 * the change is made whole or not at all.  Whatever breaks in between, the next try, here or
 * elsewhere, begins from what the database says: every id in the HSM was written down before it was
 * used.
 *
 * Also: what was revoked, disabled or left behind is forgotten by this node's hsmd, and main keys
 * that were deleted are destroyed when nothing needs them any more.
 */
#ifndef KMS_MAINKEY_H
#define KMS_MAINKEY_H

struct keeper;
struct main_keys;

/* Begins; k is borrowed.  NULL: no memory. */
struct main_keys *main_keys_new(struct keeper *k);
/* Looks for work no more; what is under way is given back when database and HSM are freed. */
void main_keys_stop(struct main_keys *m);
/* After database and HSM.  NULL is fine. */
void main_keys_free(struct main_keys *m);

#endif
