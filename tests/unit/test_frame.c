/*
 * test_frame.c - the messages on hsmd's sockets: what is put comes out again, and what does not fit
 * is refused.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <openssl/rand.h>
#include <string.h>

#include "hsm/frame.h"
#include "proto/err.h"

static const enum frame_type requests[] = {FRAME_GENERATE,
                                           FRAME_WRAP,
                                           FRAME_UNWRAP,
                                           FRAME_OAEP,
                                           FRAME_PSS,
                                           FRAME_AUDIT,
                                           FRAME_RANDOM,
                                           FRAME_WRAPPING_KEY,
                                           FRAME_INIT,
                                           FRAME_STATUS,
                                           FRAME_KEY_NEW,
                                           FRAME_KEY_DESTROY,
                                           FRAME_FORGET,
                                           FRAME_LIST,
                                           FRAME_IMPORT_PAIR,
                                           FRAME_IMPORT,
                                           FRAME_WRAPPING_KEY_UNDER,
                                           FRAME_REWRAP,
                                           FRAME_RESEAL};
#define REQUESTS_N (sizeof(requests) / sizeof(requests[0]))

static void
head_bytes(unsigned char b[FRAME_HEAD_LEN], enum frame_type type, enum frame_way way,
           unsigned count, uint32_t len, uint32_t deadline)
{
    struct frame_head h = {.len = len,
                           .type = (uint8_t)type,
                           .count = (uint16_t)count,
                           .seq = 7,
                           .deadline_ms = deadline};

    frame_head_put(&h, way, b);
}

static uint32_t
right_len(enum frame_type type, enum frame_way way, unsigned count)
{
    return (uint32_t)(FRAME_HEAD_LEN + count * frame_item_size(type, way));
}

Test(frame, every_request_survives_the_wire_with_its_bytes)
{
    static union frame_request r, back;
    unsigned char a[8192], b[8192];

    for (size_t i = 0; i < REQUESTS_N; i++) {
        size_t size = frame_item_size(requests[i], FRAME_REQUEST_WAY);

        memset(&r, 0, sizeof(r));
        switch (requests[i]) {
        case FRAME_OAEP:
            r.oaep.hash = HSM_OAEP_SHA256;
            r.oaep.len = HSM_RSA_MAX;
            RAND_bytes(r.oaep.ek, sizeof(r.oaep.ek));
            break;
        case FRAME_AUDIT:
            r.audit.len = FRAME_AUDIT_MAX;
            RAND_bytes(r.audit.msg, sizeof(r.audit.msg));
            break;
        case FRAME_RANDOM:
            r.random = FRAME_RANDOM_MAX;
            break;
        case FRAME_INIT:
            r.rsa_bits = 4096;
            break;
        case FRAME_KEY_NEW:
        case FRAME_KEY_DESTROY:
        case FRAME_FORGET:
        case FRAME_LIST:
        case FRAME_IMPORT_PAIR:
        case FRAME_WRAPPING_KEY_UNDER:
            RAND_bytes(r.kept.id, sizeof(r.kept.id));
            r.kept.kind = requests[i] == FRAME_IMPORT_PAIR ? HSM_IMPORT
                          : requests[i] == FRAME_FORGET || requests[i] == FRAME_WRAPPING_KEY_UNDER
                              ? 0
                              : HSM_ROOT;
            r.kept.number = requests[i] == FRAME_IMPORT_PAIR ? 3072 : 0;
            break;
        case FRAME_IMPORT:
            RAND_bytes((unsigned char *)&r, sizeof(r));
            memset(&r.import.allow_128, 0, sizeof(r.import.allow_128));
            r.import.len = HSM_RSA_MAX;
            break;
        case FRAME_REWRAP:
            RAND_bytes((unsigned char *)&r, sizeof(r));
            break;
        default:
            RAND_bytes((unsigned char *)&r, sizeof(r));
            r.key.purpose = HSM_SENTINEL;
            break;
        }
        cr_assert_leq(size, sizeof(a));
        memset(a, 0x5a, sizeof(a));
        frame_request_put(requests[i], &r, a);
        cr_assert_eq(a[size], 0x5a, "type %d writes past its item", requests[i]);
        cr_assert_eq(frame_request_get(requests[i], &back, a), KMS_OK, "type %d", requests[i]);
        memset(b, 0x5a, sizeof(b));
        frame_request_put(requests[i], &back, b);
        cr_assert_arr_eq(a, b, size, "type %d", requests[i]);
    }
}

Test(frame, every_answer_survives_the_wire_with_its_bytes)
{
    static struct frame_answer answer, back;
    unsigned char a[8192], b[8192];

    for (size_t i = 0; i < REQUESTS_N; i++) {
        size_t size = frame_item_size(requests[i], FRAME_ANSWER_WAY);

        RAND_bytes((unsigned char *)&answer.u, sizeof(answer.u));
        answer.err = KMS_OK;
        if (!(requests[i] == FRAME_GENERATE || requests[i] == FRAME_WRAP ||
              requests[i] == FRAME_UNWRAP || requests[i] == FRAME_WRAPPING_KEY ||
              requests[i] == FRAME_WRAPPING_KEY_UNDER || requests[i] == FRAME_RESEAL ||
              requests[i] == FRAME_LIST))
            answer.u.bytes.len = requests[i] == FRAME_PSS           ? HSM_RSA_MAX
                                 : requests[i] == FRAME_IMPORT_PAIR ? FRAME_PUBLIC_MAX
                                                                    : FRAME_RANDOM_MAX;
        if (requests[i] == FRAME_LIST) {
            answer.u.list.n = HSM_LIST_MAX;
            memset(&answer.u.list.more, 0, sizeof(answer.u.list.more));
            for (unsigned k = 0; k < HSM_LIST_MAX; k++)
                memset(&answer.u.list.keys[k].fit, 0, sizeof(answer.u.list.keys[k].fit));
        }
        memset(a, 0x5a, sizeof(a));
        frame_answer_put(requests[i], &answer, a);
        cr_assert_eq(a[size], 0x5a, "type %d writes past its item", requests[i]);
        cr_assert_eq(frame_answer_get(requests[i], &back, a), KMS_OK, "type %d", requests[i]);
        memset(b, 0x5a, sizeof(b));
        frame_answer_put(requests[i], &back, b);
        cr_assert_arr_eq(a, b, size, "type %d", requests[i]);
    }
}

Test(frame, an_error_carries_its_code_and_nothing_else)
{
    struct frame_answer answer = {.err = KMS_ERR_CRYPTO}, back;
    unsigned char b[128];

    memset(answer.u.key.key, 0xaa, sizeof(answer.u.key.key));
    frame_answer_put(FRAME_UNWRAP, &answer, b);
    cr_assert_eq(frame_answer_get(FRAME_UNWRAP, &back, b), KMS_OK);
    cr_assert_eq(back.err, KMS_ERR_CRYPTO);
    for (size_t i = 1; i < frame_item_size(FRAME_UNWRAP, FRAME_ANSWER_WAY); i++)
        cr_assert_eq(b[i], 0);
}

Test(frame, the_greeting_survives)
{
    struct frame_hello hello = {.version = FRAME_VERSION, .ready = true}, back;
    unsigned char b[1024];
    enum frame_state state;

    RAND_bytes((unsigned char *)hello.info.static_n, sizeof(hello.info.static_n));
    RAND_bytes(hello.info.root, sizeof(hello.info.root));
    RAND_bytes(hello.info.audit_public, sizeof(hello.info.audit_public));
    hello.info.static_n_len = 384;
    memset(hello.info.static_n + 384, 0, sizeof(hello.info.static_n) - 384);
    hello.info.static_e_len = 3;
    memcpy(hello.info.static_e, "\1\0\1", 3);
    hello.info.has_root = hello.info.has_audit = true;
    cr_assert_leq(frame_item_size(FRAME_REPORT, FRAME_ANSWER_WAY), sizeof(b));
    frame_report_put(&hello, FRAME_STATE_READY, b);
    cr_assert_eq(frame_report_get(&back, &state, b), KMS_OK);
    cr_assert_eq(state, FRAME_STATE_READY);
    cr_assert(back.ready && back.info.has_root && back.info.has_audit);
    cr_assert_not(back.info.oaep_sha256_native);
    cr_assert_not(back.lifecycle);
    hello.lifecycle = true;
    frame_report_put(&hello, FRAME_STATE_READY, b);
    cr_assert_eq(frame_report_get(&back, &state, b), KMS_OK);
    cr_assert(back.lifecycle);
    cr_assert_arr_eq(back.info.root, hello.info.root, HSM_ID_LEN);
    cr_assert_arr_eq(back.info.static_n, hello.info.static_n, HSM_RSA_MAX);
    cr_assert_arr_eq(back.info.audit_public, hello.info.audit_public, 32);
    b[1]++;
    cr_assert_eq(frame_hello_get(&back, b), KMS_ERR_PROTOCOL, "another version");
}

Test(frame, a_head_is_right_for_each_type_with_each_count)
{
    unsigned char b[FRAME_HEAD_LEN];
    struct frame_head h;

    for (size_t i = 0; i < REQUESTS_N; i++) {
        unsigned max = frame_items_max(requests[i]);

        cr_assert_gt(max, 0);
        for (unsigned n = 1; n <= max; n++) {
            uint32_t len = right_len(requests[i], FRAME_REQUEST_WAY, n);

            cr_assert_leq(len, FRAME_MAX);
            cr_assert_leq(right_len(requests[i], FRAME_ANSWER_WAY, n), FRAME_MAX);
            head_bytes(b, requests[i], FRAME_REQUEST_WAY, n, len, 1);
            cr_assert_eq(frame_head_get(&h, FRAME_REQUEST_WAY, b), KMS_OK);
            cr_assert_eq(h.type, requests[i]);
            cr_assert_eq(h.count, n);
            cr_assert_eq(h.len, len);
            cr_assert_eq(h.seq, 7);
        }
    }
}

struct bad_head {
    char name[40];
    int type;
    int way;
    unsigned count;
    int more; /* bytes too many */
    uint32_t deadline;
};

ParameterizedTestParameters(frame, refuses_heads)
{
    static struct bad_head rows[] = {
        {"no type", 0, FRAME_REQUEST_WAY, 1, 0, 1},
        {"unknown type", FRAME_TYPES, FRAME_REQUEST_WAY, 1, 0, 1},
        {"unknown type", 0x7f, FRAME_REQUEST_WAY, 1, 0, 1},
        {"greeting from a client", FRAME_HELLO, FRAME_REQUEST_WAY, 1, 0, 1},
        {"report from a client", FRAME_REPORT, FRAME_REQUEST_WAY, 1, 0, 1},
        {"no items", FRAME_UNWRAP, FRAME_REQUEST_WAY, 0, 0, 1},
        {"too many items", FRAME_UNWRAP, FRAME_REQUEST_WAY, FRAME_ITEMS_MAX + 1, 0, 1},
        {"too many bytes of items", FRAME_AUDIT, FRAME_REQUEST_WAY, 16, 0, 1},
        {"two inits", FRAME_INIT, FRAME_REQUEST_WAY, 2, 0, 1},
        {"two destructions", FRAME_KEY_DESTROY, FRAME_REQUEST_WAY, 2, 0, 1},
        {"two imports", FRAME_IMPORT, FRAME_REQUEST_WAY, 2, 0, 1},
        {"a byte short", FRAME_UNWRAP, FRAME_REQUEST_WAY, 3, -1, 1},
        {"a byte long", FRAME_UNWRAP, FRAME_REQUEST_WAY, 3, 1, 1},
        {"text in a request", FRAME_STATUS, FRAME_REQUEST_WAY, 1, 1, 1},
        {"no deadline", FRAME_UNWRAP, FRAME_REQUEST_WAY, 1, 0, 0},
        {"an answer with a deadline", FRAME_UNWRAP, FRAME_ANSWER_WAY, 1, 0, 1},
        {"too long a text", FRAME_STATUS, FRAME_ANSWER_WAY, 1, FRAME_TEXT_MAX + 1, 0},
        {"no room for the answer", FRAME_STATUS, FRAME_ANSWER_WAY, 1, -1, 0},
    };

    return cr_make_param_array(struct bad_head, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct bad_head *r, frame, refuses_heads)
{
    unsigned char b[FRAME_HEAD_LEN];
    struct frame_head h;
    enum frame_way way = (enum frame_way)r->way;
    size_t size = frame_item_size((enum frame_type)r->type, way);
    uint32_t len = (uint32_t)((int)(FRAME_HEAD_LEN + r->count * size) + r->more);

    head_bytes(b, (enum frame_type)r->type, way, r->count, len, r->deadline);
    cr_assert_eq(frame_head_get(&h, way, b), KMS_ERR_PROTOCOL, "%s", r->name);
}

Test(frame, refuses_the_wrong_way_and_the_reserved_byte)
{
    unsigned char b[FRAME_HEAD_LEN];
    struct frame_head h;

    head_bytes(b, FRAME_UNWRAP, FRAME_ANSWER_WAY, 1, right_len(FRAME_UNWRAP, FRAME_ANSWER_WAY, 1),
               0);
    cr_assert_eq(frame_head_get(&h, FRAME_ANSWER_WAY, b), KMS_OK);
    cr_assert_eq(frame_head_get(&h, FRAME_REQUEST_WAY, b), KMS_ERR_PROTOCOL);
    b[5] = 1;
    cr_assert_eq(frame_head_get(&h, FRAME_ANSWER_WAY, b), KMS_ERR_PROTOCOL);
}

Test(frame, refuses_items_out_of_range)
{
    static union frame_request r, back;
    unsigned char b[8192] = {0};

    r.key.purpose = HSM_CONTENT_KEY;
    frame_request_put(FRAME_UNWRAP, &r, b);
    b[16 + 16 + 4 + 40] = 0;
    cr_assert_eq(frame_request_get(FRAME_UNWRAP, &back, b), KMS_ERR_PROTOCOL, "purpose 0");
    b[16 + 16 + 4 + 40] = 4;
    cr_assert_eq(frame_request_get(FRAME_UNWRAP, &back, b), KMS_ERR_PROTOCOL, "purpose 4");
    memset(b, 0, sizeof(b));
    cr_assert_eq(frame_request_get(FRAME_OAEP, &back, b), KMS_ERR_PROTOCOL, "hash 0");
    b[0] = HSM_OAEP_SHA1;
    b[1] = 2;
    b[2] = 1;
    cr_assert_eq(frame_request_get(FRAME_OAEP, &back, b), KMS_ERR_PROTOCOL, "513 bytes");
    memset(b, 0, sizeof(b));
    cr_assert_eq(frame_request_get(FRAME_RANDOM, &back, b), KMS_ERR_PROTOCOL, "no bytes");
    b[0] = 4;
    b[1] = 1;
    cr_assert_eq(frame_request_get(FRAME_RANDOM, &back, b), KMS_ERR_PROTOCOL, "1025 bytes");
    b[0] = 0x10;
    cr_assert_eq(frame_request_get(FRAME_AUDIT, &back, b), KMS_ERR_PROTOCOL, "4097 bytes");
    cr_assert_eq(frame_request_get(FRAME_STATUS, &back, b), KMS_ERR_PROTOCOL, "not nought");
    memset(b, 0, sizeof(b));
    cr_assert_eq(frame_request_get(FRAME_FORGET, &back, b), KMS_OK);
    cr_assert_eq(frame_request_get(FRAME_KEY_NEW, &back, b), KMS_ERR_PROTOCOL, "no kind");
    cr_assert_eq(frame_request_get(FRAME_KEY_DESTROY, &back, b), KMS_ERR_PROTOCOL, "no kind");
    cr_assert_eq(frame_request_get(FRAME_LIST, &back, b), KMS_ERR_PROTOCOL, "no kind");
    b[0] = HSM_MAIN;
    cr_assert_eq(frame_request_get(FRAME_KEY_NEW, &back, b), KMS_ERR_PROTOCOL, "imported only");
    cr_assert_eq(frame_request_get(FRAME_FORGET, &back, b), KMS_ERR_PROTOCOL, "a kind");
    cr_assert_eq(frame_request_get(FRAME_IMPORT_PAIR, &back, b), KMS_ERR_PROTOCOL, "another kind");
    b[0] = HSM_STATIC;
    cr_assert_eq(frame_request_get(FRAME_KEY_DESTROY, &back, b), KMS_ERR_PROTOCOL, "static key");
    cr_assert_eq(frame_request_get(FRAME_LIST, &back, b), KMS_OK);
    b[18] = 1;
    cr_assert_eq(frame_request_get(FRAME_LIST, &back, b), KMS_ERR_PROTOCOL, "a number");
    memset(b, 0, sizeof(b));
    b[32] = 2;
    cr_assert_eq(frame_request_get(FRAME_IMPORT, &back, b), KMS_ERR_PROTOCOL, "neither yes nor no");
    b[32] = 1;
    b[33] = 2;
    b[34] = 1;
    cr_assert_eq(frame_request_get(FRAME_IMPORT, &back, b), KMS_ERR_PROTOCOL, "513 bytes");
    memset(b, 0, sizeof(b));
    b[76] = 4;
    cr_assert_eq(frame_request_get(FRAME_RESEAL, &back, b), KMS_ERR_PROTOCOL, "purpose 4");
}

Test(frame, refuses_a_list_that_does_not_fit)
{
    static struct frame_answer back;
    unsigned char b[4096] = {0};

    b[1] = HSM_LIST_MAX;
    cr_assert_eq(frame_answer_get(FRAME_LIST, &back, b), KMS_OK);
    b[1]++;
    cr_assert_eq(frame_answer_get(FRAME_LIST, &back, b), KMS_ERR_PROTOCOL, "too many");
    b[1] = 1;
    b[2] = 2;
    cr_assert_eq(frame_answer_get(FRAME_LIST, &back, b), KMS_ERR_PROTOCOL, "neither yes nor no");
}
