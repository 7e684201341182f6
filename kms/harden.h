/*
 * harden.h - what a process of kmsd gives up: core dumps, being traced, swap, and the system calls
 * that it never needs.
 */
#ifndef KMS_HARDEN_H
#define KMS_HARDEN_H

/* For every process, first thing: no core dumps, not traceable, memory locked where the limit
 * allows.  Never fails. */
void harden_process(void);

/* After a worker or the keeper has opened what it needs: no exec, no fork, no ptrace, no mount, ...
 * (seccomp); a worker also makes no SOCK_SEQPACKET socket, so that hsmd's door to those who manage
 * keys is closed to it (hsm/README.md).  KMS_OK, KMS_ERR_SYSTEM. */
int harden_worker(void);
int harden_keeper(void);

/* Becomes the user for good, with its groups; nothing when name is "" or we are not root.  The
 * kernel forgets PR_SET_DUMPABLE and PR_SET_PDEATHSIG at this: set them afterwards.  KMS_OK,
 * KMS_ERR_NOT_FOUND (no such user), KMS_ERR_SYSTEM. */
int harden_user(const char *name);

#endif
