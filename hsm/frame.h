/*
 * frame.h - the messages on hsmd's sockets: pure encoding and decoding, for both ends.
 *
 * A frame is a head of 16 bytes and `count` items of one type, each of the one size that its type
 * has; only the types marked so end in a text, and have one item.  All numbers are big-endian.
 * hsm/README.md shows every field.
 */
#ifndef HSM_FRAME_H
#define HSM_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/hsm.h"

#define FRAME_VERSION    1
#define FRAME_HEAD_LEN   16
#define FRAME_MAX        65536 /* head and items */
#define FRAME_ITEMS_MAX  256
#define FRAME_AUDIT_MAX  4096
#define FRAME_RANDOM_MAX 1024
#define FRAME_TEXT_MAX   32768
#define FRAME_PUBLIC_MAX 640 /* SubjectPublicKeyInfo of RSA-4096 */

enum frame_type {
    FRAME_HELLO = 1, /* hsmd only, on connect and whenever it changes */
    FRAME_GENERATE,
    FRAME_WRAP,
    FRAME_UNWRAP,
    FRAME_OAEP,
    FRAME_PSS,
    FRAME_AUDIT,
    FRAME_RANDOM,
    FRAME_WRAPPING_KEY,
    FRAME_INIT,        /* answered by a text */
    FRAME_STATUS,      /* answered by a text */
    FRAME_REPORT,      /* custodian to supervisor: a greeting, a state and a text */
    FRAME_KEY_NEW,     /* this and all that follow: only if the greeting says HELLO_LIFECYCLE */
    FRAME_KEY_DESTROY, /* done by every custodian */
    FRAME_FORGET,      /* done by every custodian */
    FRAME_LIST,
    FRAME_IMPORT_PAIR,
    FRAME_IMPORT,
    FRAME_WRAPPING_KEY_UNDER,
    FRAME_REWRAP,
    FRAME_RESEAL,
    FRAME_TYPES
};
#define FRAME_ANSWER 0x80 /* added to the type in an answer */

/* Which way a frame goes: a type is good in one direction, or is another size. */
enum frame_way { FRAME_REQUEST_WAY, FRAME_ANSWER_WAY };

struct frame_head {
    uint32_t len;         /* of the frame, this head included */
    uint8_t type;         /* enum frame_type, without FRAME_ANSWER */
    uint16_t count;       /* items */
    uint32_t seq;         /* a request's name; its answer's */
    uint32_t deadline_ms; /* of a request: how long its answer is of use; 0 in an answer */
};

union frame_request {
    struct {
        struct hsm_wrapping_key wk;
        enum hsm_purpose purpose;
        unsigned char object[HSM_ID_LEN];
        unsigned char key[HSM_KEY_LEN];   /* FRAME_WRAP */
        unsigned char blob[HSM_BLOB_LEN]; /* FRAME_UNWRAP, FRAME_RESEAL */
        struct hsm_wrapping_key to;       /* FRAME_RESEAL */
    } key;
    struct {
        enum hsm_oaep hash;
        size_t len;
        unsigned char ek[HSM_RSA_MAX];
    } oaep;
    unsigned char digest[32]; /* FRAME_PSS */
    struct {
        size_t len;
        unsigned char msg[FRAME_AUDIT_MAX];
    } audit;
    size_t random;     /* how many bytes */
    unsigned rsa_bits; /* FRAME_INIT; 0: as configured */
    struct {
        unsigned kind; /* enum hsm_kind; 0: any that wraps, or an organisation */
        unsigned char id[HSM_ID_LEN];
        unsigned number; /* FRAME_IMPORT_PAIR: bits */
    } kept;              /* KEY_NEW to IMPORT_PAIR, WRAPPING_KEY_UNDER */
    struct {
        unsigned char id[HSM_ID_LEN], pair[HSM_ID_LEN];
        bool allow_128;
        size_t len;
        unsigned char ek[HSM_RSA_MAX];
    } import;
    struct {
        unsigned char wrapped[HSM_WRAPPED_LEN];
        unsigned char from[HSM_ID_LEN], to[HSM_ID_LEN];
    } rewrap;
};

struct frame_answer {
    int err; /* KMS_OK or KMS_ERR_*; the rest is good for KMS_OK only, and zero else */
    union {
        struct {
            unsigned char key[HSM_KEY_LEN];
            unsigned char blob[HSM_BLOB_LEN];
        } key;
        struct {
            size_t len;
            unsigned char b[FRAME_RANDOM_MAX];
        } bytes; /* OAEP, PSS, AUDIT, RANDOM, KEY_NEW, IMPORT_PAIR, IMPORT, REWRAP */
        struct {
            unsigned char root[HSM_ID_LEN];
            unsigned char wrapped[HSM_WRAPPED_LEN];
            unsigned char kcv[HSM_KCV_LEN];
        } wrapping_key;
        struct {
            unsigned n;
            bool more;
            struct hsm_listed keys[HSM_LIST_MAX];
        } list;
    } u;
};

/* What a custodian finds when it starts, and when it gives up. */
enum frame_state {
    FRAME_STATE_READY = 1,   /* logged in, all that is needed is there */
    FRAME_STATE_EMPTY,       /* logged in, but root or static key are to be made yet (hsm_init) */
    FRAME_STATE_ABSENT,      /* no module, no token of that label, or it does not answer */
    FRAME_STATE_PIN_REFUSED, /* never tried again by itself */
    FRAME_STATE_PIN_LOCKED,  /* locked, or one more wrong PIN would lock it: not tried */
    FRAME_STATE_UNFIT,       /* the token cannot do, or does wrongly, what is needed */
    FRAME_STATE_STALE,       /* of a custodian that works: replace it when convenient */
    FRAME_STATES
};

struct frame_hello {
    uint16_t version;
    bool ready;
    bool lifecycle; /* knows the types from FRAME_KEY_NEW on */
    struct hsm_info info;
};

/*
 * Checks a head as it came.  KMS_OK: its length fits its type and count.  KMS_ERR_PROTOCOL: end the
 * connection.
 */
int frame_head_get(struct frame_head *h, enum frame_way way, const unsigned char b[FRAME_HEAD_LEN]);
void frame_head_put(const struct frame_head *h, enum frame_way way,
                    unsigned char b[FRAME_HEAD_LEN]);

/* The size of one item; 0: this type does not go that way.  For texts: the part before the text. */
size_t frame_item_size(enum frame_type type, enum frame_way way);
/* The most items that request and answer have room for. */
unsigned frame_items_max(enum frame_type type);
bool frame_has_text(enum frame_type type, enum frame_way way);

/* One item at p, which has frame_item_size bytes.  get: KMS_OK, or KMS_ERR_PROTOCOL and *r is to be
 * wiped all the same. */
void frame_request_put(enum frame_type type, const union frame_request *r, unsigned char *p);
int frame_request_get(enum frame_type type, union frame_request *r, const unsigned char *p);
void frame_answer_put(enum frame_type type, const struct frame_answer *a, unsigned char *p);
int frame_answer_get(enum frame_type type, struct frame_answer *a, const unsigned char *p);
/* An answer that is nothing but an error; also the fixed part of a text answer. */
void frame_error_put(enum frame_type type, int err, unsigned char *p);

void frame_hello_put(const struct frame_hello *hello, unsigned char *p);
int frame_hello_get(struct frame_hello *hello, const unsigned char *p);
/* The fixed part of FRAME_REPORT. */
void frame_report_put(const struct frame_hello *hello, enum frame_state state, unsigned char *p);
int frame_report_get(struct frame_hello *hello, enum frame_state *state, const unsigned char *p);

#endif
