/*
 * revoked.h - the keeper's job of telling the database which certificates of services are revoked.
 *
 * [services] crl is read at the start, on SIGHUP and when the file changes; what it lists goes to
 * kms.certificates_revoked, which ends the channels of those certificates, on every node.
 */
#ifndef KMS_REVOKED_H
#define KMS_REVOKED_H

struct keeper;
struct revoked;

/* NULL: no memory.  A CA or a list that cannot be read is logged and tried again. */
struct revoked *revoked_new(struct keeper *k);
void revoked_free(struct revoked *r); /* NULL is fine */
/* The configuration is another one. */
void revoked_reload(struct revoked *r);
/* Tells all that the lists have: the database was away, or may be another one. */
void revoked_tell(struct revoked *r);

#endif
