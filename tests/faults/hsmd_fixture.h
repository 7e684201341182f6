/*
 * hsmd_fixture.h - a real hsmd on a fresh SoftHSM token in a directory of its own, and a client
 * that waits.
 *
 * Whatever goes wrong with the fixture itself ends the program with a message: it is no result of a
 * test.
 */
#ifndef TESTS_FAULTS_HSMD_FIXTURE_H
#define TESTS_FAULTS_HSMD_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "hsm/hsm.h"

struct event_base;

#define FIXTURE_PIN   "2468"
#define FIXTURE_LABEL "test token"
#define ASK_MAX       512 /* items of one question */

struct fixture {
    char dir[64];
    char socket[128], config[128], pin_file[128], log[128], control[128], calls[128];
    pid_t hsmd; /* 0: not running */
};

/*
 * Makes the directory, the token, the PIN file and a configuration; settings: further lines of
 * [hsmd].  shim: the module is p11shim.so (tests/faults/p11shim.c), which fixture_control steers.
 * Nothing is started yet.
 */
void fixture_init(struct fixture *f, bool shim, const char *settings);
/* Another configuration, for the next start. */
void fixture_configure(struct fixture *f, bool shim, const char *settings);
void fixture_pin(struct fixture *f, const char *pin);
/* Starts hsmd and returns when its socket is there. */
void fixture_start(struct fixture *f);
/* Kills it by this signal and waits; the exit status as of waitpid. */
int fixture_stop(struct fixture *f, int sig);
/* Ends hsmd, removes everything. */
void fixture_release(struct fixture *f);
/* What the shim does from now on: see p11shim.c.  "": nothing. */
void fixture_control(struct fixture *f, const char *text);
/* How often hsmd's processes called this function so far. */
unsigned fixture_calls(const struct fixture *f, const char *function);
/* How often the log says this. */
unsigned fixture_logged(const struct fixture *f, const char *text);
/* The custodians' process ids; returns how many. */
unsigned fixture_custodians(const struct fixture *f, pid_t *out, unsigned max);
void fixture_sleep(int ms);
/* Milliseconds, monotonic. */
long fixture_now(void);

/* A client whose questions are answered before the function returns. */
struct ask {
    struct event_base *base;
    struct hsm *h;
    unsigned wanted, got;
    bool woken;
    int err[ASK_MAX];
    unsigned char key[ASK_MAX][HSM_KEY_LEN], blob[ASK_MAX][HSM_BLOB_LEN];
    unsigned char bytes[ASK_MAX][1024];
    size_t len[ASK_MAX];
    char text[33000];
    struct hsm_wrapping_key wk;
    unsigned char kcv[HSM_KCV_LEN];
    struct hsm_listed listed[ASK_MAX];
    unsigned listed_n;
    bool listed_more;
};

/* As who manages keys; or as somebody else. */
void ask_init(struct ask *a, const struct fixture *f, int deadline_ms);
void ask_init_as(struct ask *a, const struct fixture *f, enum hsm_role role, int deadline_ms);
void ask_release(struct ask *a);
/* Until hsm_ready is what is wanted; false: not within so many milliseconds. */
bool ask_ready(struct ask *a, bool ready, int ms);
/* Runs the loop for a while. */
void ask_idle(struct ask *a, int ms);
/* Makes the keys and one wrapping key, for organisation 1, generation 1; into a->wk.  Ends the
 * program where it cannot. */
void ask_init_token(struct ask *a);

int ask_init_keys(struct ask *a, unsigned rsa_bits);
int ask_wrapping_key(struct ask *a);
int ask_status(struct ask *a);
int ask_generate(struct ask *a, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
                 const unsigned char object[HSM_ID_LEN]);
int ask_wrap(struct ask *a, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
             const unsigned char object[HSM_ID_LEN], const unsigned char key[HSM_KEY_LEN]);
int ask_unwrap(struct ask *a, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
               const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN]);
int ask_oaep(struct ask *a, enum hsm_oaep hash, const unsigned char *ek, size_t len);
int ask_pss(struct ask *a, const unsigned char digest[32]);
int ask_audit(struct ask *a, const void *msg, size_t len);
int ask_random(struct ask *a, size_t len);
/* Check values and 40 bytes come into bytes[0]. */
int ask_key_new(struct ask *a, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN]);
int ask_key_destroy(struct ask *a, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN]);
int ask_forget(struct ask *a, const unsigned char key_or_org[HSM_ID_LEN]);
/* All pages, into listed. */
int ask_list(struct ask *a, enum hsm_kind kind);
int ask_import_pair(struct ask *a, const unsigned char key[HSM_ID_LEN]);
int ask_import(struct ask *a, const unsigned char key[HSM_ID_LEN],
               const unsigned char pair[HSM_ID_LEN], bool allow_128,
               const unsigned char *ciphertext, size_t len);
/* Into wk. */
int ask_wrapping_key_under(struct ask *a, const unsigned char parent[HSM_ID_LEN]);
int ask_rewrap(struct ask *a, const struct hsm_wrapping_key *wk,
               const unsigned char to[HSM_ID_LEN]);
int ask_reseal(struct ask *a, const struct hsm_wrapping_key *from,
               const struct hsm_wrapping_key *to, enum hsm_purpose purpose,
               const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN]);
/* For questions of many items: set wanted, call the hsm_ functions with these callbacks and ctx a,
 * then wait. */
void ask_begin(struct ask *a, unsigned wanted);
void ask_key_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
                const unsigned char *blob);
void ask_bytes_cb(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *p,
                  size_t len);
void ask_wait(struct ask *a);

#endif
