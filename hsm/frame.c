/*
 * frame.c - encodes and decodes the messages on hsmd's sockets.
 *
 * Every size is fixed by the type, so a head tells the whole length, and nothing in an item can
 * point outside it.
 */
#include "hsm/frame.h"

#include <openssl/crypto.h>
#include <string.h>

#include "proto/err.h"

#define WRAPPING_KEY_LEN (HSM_ID_LEN + HSM_ID_LEN + 4 + HSM_WRAPPED_LEN)
#define NAMED_LEN        (WRAPPING_KEY_LEN + 1 + HSM_ID_LEN) /* wrapping key, purpose, object */
#define HELLO_LEN        (2 + 1 + HSM_ID_LEN + 2 + HSM_RSA_MAX + 1 + 8 + 32)

#define KEPT_LEN   (1 + HSM_ID_LEN + 2)
#define LISTED_LEN (HSM_ID_LEN + HSM_KCV_LEN + 1)

enum hello_flag {
    HELLO_READY = 1,
    HELLO_ROOT = 2,
    HELLO_AUDIT = 4,
    HELLO_OAEP_SHA256 = 8,
    HELLO_LIFECYCLE = 16
};

/* Sizes of one item; an answer begins with its status byte. */
static const struct {
    uint16_t request, answer;
    bool request_text, answer_text;
} types[FRAME_TYPES] = {
    [FRAME_HELLO] = {0, HELLO_LEN, false, false},
    [FRAME_GENERATE] = {NAMED_LEN, 1 + HSM_KEY_LEN + HSM_BLOB_LEN, false, false},
    [FRAME_WRAP] = {NAMED_LEN + HSM_KEY_LEN, 1 + HSM_BLOB_LEN, false, false},
    [FRAME_UNWRAP] = {NAMED_LEN + HSM_BLOB_LEN, 1 + HSM_KEY_LEN, false, false},
    [FRAME_OAEP] = {1 + 2 + HSM_RSA_MAX, 1 + HSM_KEY_LEN, false, false},
    [FRAME_PSS] = {32, 1 + 2 + HSM_RSA_MAX, false, false},
    [FRAME_AUDIT] = {2 + FRAME_AUDIT_MAX, 1 + 64, false, false},
    [FRAME_RANDOM] = {2, 1 + 2 + FRAME_RANDOM_MAX, false, false},
    [FRAME_WRAPPING_KEY] = {1, 1 + HSM_ID_LEN + HSM_WRAPPED_LEN + HSM_KCV_LEN, false, false},
    [FRAME_INIT] = {2, 1, false, true},
    [FRAME_STATUS] = {1, 1, false, true},
    [FRAME_REPORT] = {0, HELLO_LEN + 1, false, true},
    [FRAME_KEY_NEW] = {KEPT_LEN, 1 + HSM_KCV_LEN, false, false},
    [FRAME_KEY_DESTROY] = {KEPT_LEN, 1, false, false},
    [FRAME_FORGET] = {KEPT_LEN, 1, false, false},
    [FRAME_LIST] = {KEPT_LEN, 1 + 1 + 1 + HSM_LIST_MAX *LISTED_LEN, false, false},
    [FRAME_IMPORT_PAIR] = {KEPT_LEN, 1 + 2 + FRAME_PUBLIC_MAX, false, false},
    [FRAME_IMPORT] = {2 * HSM_ID_LEN + 1 + 2 + HSM_RSA_MAX, 1 + HSM_KCV_LEN, false, false},
    [FRAME_WRAPPING_KEY_UNDER] = {KEPT_LEN, 1 + HSM_ID_LEN + HSM_WRAPPED_LEN + HSM_KCV_LEN, false,
                                  false},
    [FRAME_REWRAP] = {HSM_WRAPPED_LEN + 2 * HSM_ID_LEN, 1 + HSM_WRAPPED_LEN, false, false},
    [FRAME_RESEAL] = {NAMED_LEN + WRAPPING_KEY_LEN + HSM_BLOB_LEN, 1 + HSM_BLOB_LEN, false, false},
};

static void
put16(unsigned char *p, unsigned v)
{
    p[0] = (unsigned char)(v >> 8);
    p[1] = (unsigned char)v;
}

static unsigned
get16(const unsigned char *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

static void
put32(unsigned char *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v & 0xffff);
}

static uint32_t
get32(const unsigned char *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

size_t
frame_item_size(enum frame_type type, enum frame_way way)
{
    if (type <= 0 || type >= FRAME_TYPES)
        return 0;
    return way == FRAME_REQUEST_WAY ? types[type].request : types[type].answer;
}

bool
frame_has_text(enum frame_type type, enum frame_way way)
{
    if (type <= 0 || type >= FRAME_TYPES)
        return false;
    return way == FRAME_REQUEST_WAY ? types[type].request_text : types[type].answer_text;
}

/* Changes the token, or is done by every custodian: one at a time. */
static bool
is_alone(enum frame_type type)
{
    return type >= FRAME_KEY_NEW && type <= FRAME_IMPORT;
}

unsigned
frame_items_max(enum frame_type type)
{
    size_t request = frame_item_size(type, FRAME_REQUEST_WAY);
    size_t answer = frame_item_size(type, FRAME_ANSWER_WAY);
    size_t larger = request > answer ? request : answer, n;

    if (type == FRAME_HELLO || type == FRAME_WRAPPING_KEY || is_alone(type) ||
        frame_has_text(type, FRAME_ANSWER_WAY))
        return 1;
    n = (FRAME_MAX - FRAME_HEAD_LEN) / larger;
    return n < FRAME_ITEMS_MAX ? (unsigned)n : FRAME_ITEMS_MAX;
}

int
frame_head_get(struct frame_head *h, enum frame_way way, const unsigned char b[FRAME_HEAD_LEN])
{
    size_t item, want;

    h->len = get32(b);
    h->type = b[4];
    h->count = (uint16_t)get16(b + 6);
    h->seq = get32(b + 8);
    h->deadline_ms = get32(b + 12);
    if ((h->type & FRAME_ANSWER) != (way == FRAME_ANSWER_WAY ? FRAME_ANSWER : 0) || b[5] != 0)
        return KMS_ERR_PROTOCOL;
    h->type &= (uint8_t)~FRAME_ANSWER;
    if ((item = frame_item_size(h->type, way)) == 0 || h->count == 0 ||
        h->count > frame_items_max(h->type))
        return KMS_ERR_PROTOCOL;
    if ((way == FRAME_REQUEST_WAY) != (h->deadline_ms != 0))
        return KMS_ERR_PROTOCOL;
    want = FRAME_HEAD_LEN + item * h->count;
    if (frame_has_text(h->type, way) ? h->len < want || h->len > want + FRAME_TEXT_MAX
                                     : h->len != want)
        return KMS_ERR_PROTOCOL;
    return KMS_OK;
}

void
frame_head_put(const struct frame_head *h, enum frame_way way, unsigned char b[FRAME_HEAD_LEN])
{
    put32(b, h->len);
    b[4] = (unsigned char)(h->type | (way == FRAME_ANSWER_WAY ? FRAME_ANSWER : 0));
    b[5] = 0;
    put16(b + 6, h->count);
    put32(b + 8, h->seq);
    put32(b + 12, h->deadline_ms);
}

/* Copies a field and moves on. */
static void
put(unsigned char **p, const void *from, size_t n)
{
    memcpy(*p, from, n);
    *p += n;
}

static void
get(void *to, const unsigned char **p, size_t n)
{
    memcpy(to, *p, n);
    *p += n;
}

static void
wrapping_key_put(const struct hsm_wrapping_key *wk, unsigned char **p)
{
    put(p, wk->root, HSM_ID_LEN);
    put(p, wk->org, HSM_ID_LEN);
    put32(*p, wk->generation);
    *p += 4;
    put(p, wk->wrapped, HSM_WRAPPED_LEN);
}

static void
wrapping_key_get(struct hsm_wrapping_key *wk, const unsigned char **p)
{
    get(wk->root, p, HSM_ID_LEN);
    get(wk->org, p, HSM_ID_LEN);
    wk->generation = get32(*p);
    *p += 4;
    get(wk->wrapped, p, HSM_WRAPPED_LEN);
}

static void
named_put(const union frame_request *r, unsigned char **p)
{
    wrapping_key_put(&r->key.wk, p);
    *(*p)++ = (unsigned char)r->key.purpose;
    put(p, r->key.object, HSM_ID_LEN);
}

static int
named_get(union frame_request *r, const unsigned char **p)
{
    unsigned purpose;

    wrapping_key_get(&r->key.wk, p);
    purpose = *(*p)++;
    get(r->key.object, p, HSM_ID_LEN);
    if (purpose < HSM_CONTENT_KEY || purpose > HSM_SENTINEL)
        return KMS_ERR_PROTOCOL;
    r->key.purpose = (enum hsm_purpose)purpose;
    return KMS_OK;
}

static void
kept_put(const union frame_request *r, unsigned char *p)
{
    *p++ = (unsigned char)r->kept.kind;
    put(&p, r->kept.id, HSM_ID_LEN);
    put16(p, r->kept.number);
}

/* Each type with the kinds that it is for. */
static int
kept_get(enum frame_type type, union frame_request *r, const unsigned char *p)
{
    unsigned kind = *p++;
    bool fits;

    get(r->kept.id, &p, HSM_ID_LEN);
    r->kept.kind = kind;
    r->kept.number = get16(p);
    switch (type) {
    case FRAME_KEY_NEW:
        fits = kind == HSM_ROOT || kind == HSM_PERIOD;
        break;
    case FRAME_KEY_DESTROY:
        fits = kind >= HSM_ROOT && kind <= HSM_IMPORT;
        break;
    case FRAME_LIST:
        fits = kind >= HSM_ROOT && kind <= HSM_AUDIT;
        break;
    case FRAME_IMPORT_PAIR:
        fits = kind == HSM_IMPORT;
        break;
    default:
        fits = kind == 0;
        break;
    }
    return fits && (r->kept.number == 0 || type == FRAME_IMPORT_PAIR) ? KMS_OK : KMS_ERR_PROTOCOL;
}

static void
import_put(const union frame_request *r, unsigned char *p)
{
    put(&p, r->import.id, HSM_ID_LEN);
    put(&p, r->import.pair, HSM_ID_LEN);
    *p++ = r->import.allow_128;
    put16(p, (unsigned)r->import.len);
    memset(p + 2, 0, HSM_RSA_MAX);
    memcpy(p + 2, r->import.ek, r->import.len);
}

static int
import_get(union frame_request *r, const unsigned char *p)
{
    get(r->import.id, &p, HSM_ID_LEN);
    get(r->import.pair, &p, HSM_ID_LEN);
    if (*p > 1)
        return KMS_ERR_PROTOCOL;
    r->import.allow_128 = *p++ == 1;
    if ((r->import.len = get16(p)) > HSM_RSA_MAX)
        return KMS_ERR_PROTOCOL;
    memcpy(r->import.ek, p + 2, HSM_RSA_MAX);
    return KMS_OK;
}

void
frame_request_put(enum frame_type type, const union frame_request *r, unsigned char *p)
{
    switch (type) {
    case FRAME_GENERATE:
        named_put(r, &p);
        return;
    case FRAME_WRAP:
        named_put(r, &p);
        put(&p, r->key.key, HSM_KEY_LEN);
        return;
    case FRAME_UNWRAP:
        named_put(r, &p);
        put(&p, r->key.blob, HSM_BLOB_LEN);
        return;
    case FRAME_OAEP:
        *p++ = (unsigned char)r->oaep.hash;
        put16(p, (unsigned)r->oaep.len);
        memset(p + 2, 0, HSM_RSA_MAX);
        memcpy(p + 2, r->oaep.ek, r->oaep.len);
        return;
    case FRAME_PSS:
        put(&p, r->digest, sizeof(r->digest));
        return;
    case FRAME_AUDIT:
        put16(p, (unsigned)r->audit.len);
        memset(p + 2, 0, FRAME_AUDIT_MAX);
        memcpy(p + 2, r->audit.msg, r->audit.len);
        return;
    case FRAME_RANDOM:
        put16(p, (unsigned)r->random);
        return;
    case FRAME_INIT:
        put16(p, r->rsa_bits);
        return;
    case FRAME_WRAPPING_KEY:
    case FRAME_STATUS:
        *p = 0;
        return;
    case FRAME_KEY_NEW:
    case FRAME_KEY_DESTROY:
    case FRAME_FORGET:
    case FRAME_LIST:
    case FRAME_IMPORT_PAIR:
    case FRAME_WRAPPING_KEY_UNDER:
        kept_put(r, p);
        return;
    case FRAME_IMPORT:
        import_put(r, p);
        return;
    case FRAME_REWRAP:
        put(&p, r->rewrap.wrapped, HSM_WRAPPED_LEN);
        put(&p, r->rewrap.from, HSM_ID_LEN);
        put(&p, r->rewrap.to, HSM_ID_LEN);
        return;
    case FRAME_RESEAL:
        named_put(r, &p);
        wrapping_key_put(&r->key.to, &p);
        put(&p, r->key.blob, HSM_BLOB_LEN);
        return;
    case FRAME_HELLO:
    case FRAME_REPORT:
    case FRAME_TYPES:
        return;
    }
}

int
frame_request_get(enum frame_type type, union frame_request *r, const unsigned char *p)
{
    int err;

    switch (type) {
    case FRAME_GENERATE:
        return named_get(r, &p);
    case FRAME_WRAP:
        if ((err = named_get(r, &p)) == KMS_OK)
            get(r->key.key, &p, HSM_KEY_LEN);
        return err;
    case FRAME_UNWRAP:
        if ((err = named_get(r, &p)) == KMS_OK)
            get(r->key.blob, &p, HSM_BLOB_LEN);
        return err;
    case FRAME_OAEP:
        if (p[0] != HSM_OAEP_SHA1 && p[0] != HSM_OAEP_SHA256)
            return KMS_ERR_PROTOCOL;
        r->oaep.hash = (enum hsm_oaep)p[0];
        if ((r->oaep.len = get16(p + 1)) > HSM_RSA_MAX)
            return KMS_ERR_PROTOCOL;
        memcpy(r->oaep.ek, p + 3, HSM_RSA_MAX);
        return KMS_OK;
    case FRAME_PSS:
        get(r->digest, &p, sizeof(r->digest));
        return KMS_OK;
    case FRAME_AUDIT:
        if ((r->audit.len = get16(p)) > FRAME_AUDIT_MAX)
            return KMS_ERR_PROTOCOL;
        memcpy(r->audit.msg, p + 2, r->audit.len);
        return KMS_OK;
    case FRAME_RANDOM:
        r->random = get16(p);
        return r->random > 0 && r->random <= FRAME_RANDOM_MAX ? KMS_OK : KMS_ERR_PROTOCOL;
    case FRAME_INIT:
        r->rsa_bits = get16(p);
        return KMS_OK;
    case FRAME_WRAPPING_KEY:
    case FRAME_STATUS:
        return p[0] == 0 ? KMS_OK : KMS_ERR_PROTOCOL;
    case FRAME_KEY_NEW:
    case FRAME_KEY_DESTROY:
    case FRAME_FORGET:
    case FRAME_LIST:
    case FRAME_IMPORT_PAIR:
    case FRAME_WRAPPING_KEY_UNDER:
        return kept_get(type, r, p);
    case FRAME_IMPORT:
        return import_get(r, p);
    case FRAME_REWRAP:
        get(r->rewrap.wrapped, &p, HSM_WRAPPED_LEN);
        get(r->rewrap.from, &p, HSM_ID_LEN);
        get(r->rewrap.to, &p, HSM_ID_LEN);
        return KMS_OK;
    case FRAME_RESEAL:
        if ((err = named_get(r, &p)) == KMS_OK) {
            wrapping_key_get(&r->key.to, &p);
            get(r->key.blob, &p, HSM_BLOB_LEN);
        }
        return err;
    case FRAME_HELLO:
    case FRAME_REPORT:
    case FRAME_TYPES:
        break;
    }
    return KMS_ERR_PROTOCOL;
}

void
frame_error_put(enum frame_type type, int err, unsigned char *p)
{
    memset(p, 0, frame_item_size(type, FRAME_ANSWER_WAY));
    p[0] = (unsigned char)-err;
}

static void
list_put(const struct frame_answer *a, unsigned char *p)
{
    *p++ = (unsigned char)a->u.list.n;
    *p++ = a->u.list.more;
    for (unsigned i = 0; i < a->u.list.n; i++) {
        put(&p, a->u.list.keys[i].id, HSM_ID_LEN);
        put(&p, a->u.list.keys[i].kcv, HSM_KCV_LEN);
        *p++ = a->u.list.keys[i].fit;
    }
}

static int
list_get(struct frame_answer *a, const unsigned char *p)
{
    if (p[0] > HSM_LIST_MAX || p[1] > 1)
        return KMS_ERR_PROTOCOL;
    a->u.list.n = *p++;
    a->u.list.more = *p++ == 1;
    for (unsigned i = 0; i < a->u.list.n; i++) {
        get(a->u.list.keys[i].id, &p, HSM_ID_LEN);
        get(a->u.list.keys[i].kcv, &p, HSM_KCV_LEN);
        a->u.list.keys[i].fit = *p++ == 1;
    }
    return KMS_OK;
}

void
frame_answer_put(enum frame_type type, const struct frame_answer *a, unsigned char *p)
{
    frame_error_put(type, a->err, p);
    if (a->err != KMS_OK)
        return;
    p++;
    switch (type) {
    case FRAME_GENERATE:
        put(&p, a->u.key.key, HSM_KEY_LEN);
        put(&p, a->u.key.blob, HSM_BLOB_LEN);
        return;
    case FRAME_WRAP:
    case FRAME_RESEAL:
        put(&p, a->u.key.blob, HSM_BLOB_LEN);
        return;
    case FRAME_UNWRAP:
        put(&p, a->u.key.key, HSM_KEY_LEN);
        return;
    case FRAME_OAEP:
        put(&p, a->u.bytes.b, HSM_KEY_LEN);
        return;
    case FRAME_AUDIT:
        put(&p, a->u.bytes.b, 64);
        return;
    case FRAME_PSS:
    case FRAME_RANDOM:
    case FRAME_IMPORT_PAIR:
        put16(p, (unsigned)a->u.bytes.len);
        memcpy(p + 2, a->u.bytes.b, a->u.bytes.len);
        return;
    case FRAME_KEY_NEW:
    case FRAME_IMPORT:
        put(&p, a->u.bytes.b, HSM_KCV_LEN);
        return;
    case FRAME_REWRAP:
        put(&p, a->u.bytes.b, HSM_WRAPPED_LEN);
        return;
    case FRAME_LIST:
        list_put(a, p);
        return;
    case FRAME_WRAPPING_KEY:
    case FRAME_WRAPPING_KEY_UNDER:
        put(&p, a->u.wrapping_key.root, HSM_ID_LEN);
        put(&p, a->u.wrapping_key.wrapped, HSM_WRAPPED_LEN);
        put(&p, a->u.wrapping_key.kcv, HSM_KCV_LEN);
        return;
    case FRAME_INIT:
    case FRAME_STATUS:
    case FRAME_KEY_DESTROY:
    case FRAME_FORGET:
    case FRAME_HELLO:
    case FRAME_REPORT:
    case FRAME_TYPES:
        return;
    }
}

int
frame_answer_get(enum frame_type type, struct frame_answer *a, const unsigned char *p)
{
    size_t max = type == FRAME_PSS           ? HSM_RSA_MAX
                 : type == FRAME_IMPORT_PAIR ? FRAME_PUBLIC_MAX
                                             : FRAME_RANDOM_MAX;

    a->err = -(int)*p++;
    if (a->err != KMS_OK)
        return KMS_OK;
    switch (type) {
    case FRAME_GENERATE:
        get(a->u.key.key, &p, HSM_KEY_LEN);
        get(a->u.key.blob, &p, HSM_BLOB_LEN);
        return KMS_OK;
    case FRAME_WRAP:
    case FRAME_RESEAL:
        get(a->u.key.blob, &p, HSM_BLOB_LEN);
        return KMS_OK;
    case FRAME_UNWRAP:
        get(a->u.key.key, &p, HSM_KEY_LEN);
        return KMS_OK;
    case FRAME_OAEP:
        a->u.bytes.len = HSM_KEY_LEN;
        get(a->u.bytes.b, &p, HSM_KEY_LEN);
        return KMS_OK;
    case FRAME_AUDIT:
        a->u.bytes.len = 64;
        get(a->u.bytes.b, &p, 64);
        return KMS_OK;
    case FRAME_KEY_NEW:
    case FRAME_IMPORT:
        a->u.bytes.len = HSM_KCV_LEN;
        get(a->u.bytes.b, &p, HSM_KCV_LEN);
        return KMS_OK;
    case FRAME_REWRAP:
        a->u.bytes.len = HSM_WRAPPED_LEN;
        get(a->u.bytes.b, &p, HSM_WRAPPED_LEN);
        return KMS_OK;
    case FRAME_LIST:
        return list_get(a, p);
    case FRAME_PSS:
    case FRAME_RANDOM:
    case FRAME_IMPORT_PAIR:
        a->u.bytes.len = get16(p);
        if (a->u.bytes.len > max)
            return KMS_ERR_PROTOCOL;
        memcpy(a->u.bytes.b, p + 2, a->u.bytes.len);
        return KMS_OK;
    case FRAME_WRAPPING_KEY:
    case FRAME_WRAPPING_KEY_UNDER:
        get(a->u.wrapping_key.root, &p, HSM_ID_LEN);
        get(a->u.wrapping_key.wrapped, &p, HSM_WRAPPED_LEN);
        get(a->u.wrapping_key.kcv, &p, HSM_KCV_LEN);
        return KMS_OK;
    case FRAME_KEY_DESTROY:
    case FRAME_FORGET:
        a->u.bytes.len = 0;
        return KMS_OK;
    case FRAME_INIT:
    case FRAME_STATUS:
        return KMS_OK;
    case FRAME_HELLO:
    case FRAME_REPORT:
    case FRAME_TYPES:
        break;
    }
    return KMS_ERR_PROTOCOL;
}

void
frame_hello_put(const struct frame_hello *hello, unsigned char *p)
{
    const struct hsm_info *i = &hello->info;

    memset(p, 0, HELLO_LEN);
    put16(p, hello->version);
    p[2] = (unsigned char)((hello->ready ? HELLO_READY : 0) | (i->has_root ? HELLO_ROOT : 0) |
                           (i->has_audit ? HELLO_AUDIT : 0) |
                           (i->oaep_sha256_native ? HELLO_OAEP_SHA256 : 0) |
                           (hello->lifecycle ? HELLO_LIFECYCLE : 0));
    p += 3;
    put(&p, i->root, HSM_ID_LEN);
    put16(p, (unsigned)i->static_n_len);
    memcpy(p + 2, i->static_n, i->static_n_len);
    p += 2 + HSM_RSA_MAX;
    *p = (unsigned char)i->static_e_len;
    memcpy(p + 1, i->static_e, i->static_e_len);
    p += 1 + sizeof(i->static_e);
    put(&p, i->audit_public, sizeof(i->audit_public));
}

int
frame_hello_get(struct frame_hello *hello, const unsigned char *p)
{
    struct hsm_info *i = &hello->info;

    memset(hello, 0, sizeof(*hello));
    hello->version = (uint16_t)get16(p);
    hello->ready = (p[2] & HELLO_READY) != 0;
    hello->lifecycle = (p[2] & HELLO_LIFECYCLE) != 0;
    i->has_root = (p[2] & HELLO_ROOT) != 0;
    i->has_audit = (p[2] & HELLO_AUDIT) != 0;
    i->oaep_sha256_native = (p[2] & HELLO_OAEP_SHA256) != 0;
    p += 3;
    get(i->root, &p, HSM_ID_LEN);
    i->static_n_len = get16(p);
    if (i->static_n_len > HSM_RSA_MAX || p[2 + HSM_RSA_MAX] > sizeof(i->static_e))
        return KMS_ERR_PROTOCOL;
    memcpy(i->static_n, p + 2, i->static_n_len);
    p += 2 + HSM_RSA_MAX;
    i->static_e_len = *p;
    memcpy(i->static_e, p + 1, i->static_e_len);
    p += 1 + sizeof(i->static_e);
    get(i->audit_public, &p, sizeof(i->audit_public));
    return hello->version == FRAME_VERSION ? KMS_OK : KMS_ERR_PROTOCOL;
}

void
frame_report_put(const struct frame_hello *hello, enum frame_state state, unsigned char *p)
{
    frame_hello_put(hello, p);
    p[HELLO_LEN] = (unsigned char)state;
}

int
frame_report_get(struct frame_hello *hello, enum frame_state *state, const unsigned char *p)
{
    *state = (enum frame_state)p[HELLO_LEN];
    if (p[HELLO_LEN] < FRAME_STATE_READY || p[HELLO_LEN] >= FRAME_STATES)
        return KMS_ERR_PROTOCOL;
    return frame_hello_get(hello, p);
}
