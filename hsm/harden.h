/*
 * harden.h - what a process that may hold keys does first.
 */
#ifndef HSM_HARDEN_H
#define HSM_HARDEN_H

/*
 * No core dumps, no debugger, no page of ours in swap (where the limits allow it, else a warning),
 * and a system call filter that refuses what neither hsmd nor a PKCS#11 module has any business
 * with.
 */
void harden_process(void);

#endif
