/*
 * setup.h - what the supervisor tells a custodian over its socket before anything else.
 *
 * The same program on both ends, so it goes as it is.  Custodians do not read the configuration
 * file: one that is started long after the supervisor must not find a file that somebody has
 * changed meanwhile.
 */
#ifndef HSM_SETUP_H
#define HSM_SETUP_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "hsm/hsm.h"

#define SETUP_LABEL_LEN 32 /* CK_TOKEN_INFO's */

struct setup {
    uint32_t size;         /* of this struct */
    unsigned number;       /* which custodian, for the log */
    char module[PATH_MAX]; /* the PKCS#11 module's path */
    char token[SETUP_LABEL_LEN + 1];
    char pin_file[PATH_MAX]; /* "": the token has a PIN pad of its own, or needs no login */
    bool has_root;           /* `root` names the current root; else it is the oldest */
    unsigned char root[HSM_ID_LEN];
    unsigned rsa_bits;    /* of a static key that hsm_init makes */
    bool custody_process; /* wrapping keys are used in this process's memory, not in the token */
    unsigned custody_seconds;
    bool oaep_token;  /* prefer the token's own OAEP to a raw operation and our own check */
    unsigned recycle; /* session objects after which a custodian is replaced (modules leak) */
    int log_level;
};

/* The descriptor on which a custodian finds its socket. */
#define CUSTODIAN_FD 3
/* main() of `hsmd --custodian`; the process's exit status. */
int custodian_main(void);

#endif
