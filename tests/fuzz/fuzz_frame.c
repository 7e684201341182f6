/*
 * fuzz_frame.c - whatever comes over hsmd's sockets is refused or understood, and what is
 * understood can be put into the same bytes again.
 *
 * The first byte of an input says which way the frame goes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/frame.h"
#include "proto/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static union frame_request request, request_again;
static struct frame_answer answer;

/* The item alone, in memory of its own size, so that one read too many is seen. */
static unsigned char *
alone(const uint8_t *p, size_t size)
{
    unsigned char *item = malloc(size);

    CHECK(item != NULL);
    memcpy(item, p, size);
    return item;
}

static void
one_request(enum frame_type type, const uint8_t *p, size_t size)
{
    unsigned char *item = alone(p, size), *again = alone(p, size);

    memset(&request, 0, sizeof(request));
    memset(&request_again, 0, sizeof(request_again));
    if (frame_request_get(type, &request, item) == KMS_OK) {
        frame_request_put(type, &request, again);
        CHECK(frame_request_get(type, &request_again, again) == KMS_OK);
        /* What is behind an item's length is not kept, so the items are compared after one more
         * round. */
        frame_request_put(type, &request_again, item);
        CHECK(memcmp(item, again, size) == 0);
    }
    free(item);
    free(again);
}

static void
one_answer(enum frame_type type, const uint8_t *p, size_t size)
{
    unsigned char *item = alone(p, size), *again = alone(p, size);
    struct frame_hello hello;
    enum frame_state state;

    if (type == FRAME_HELLO) {
        if (frame_hello_get(&hello, item) == KMS_OK)
            frame_hello_put(&hello, again);
    } else if (type == FRAME_REPORT) {
        if (frame_report_get(&hello, &state, item) == KMS_OK)
            frame_report_put(&hello, state, again);
    } else if (frame_answer_get(type, &answer, item) == KMS_OK) {
        frame_answer_put(type, &answer, again);
        CHECK(again[0] == item[0]);
    }
    free(item);
    free(again);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum frame_way way;
    struct frame_head head;
    unsigned char b[FRAME_HEAD_LEN];
    size_t item;

    if (size < 1 + FRAME_HEAD_LEN)
        return 0;
    way = data[0] & 1 ? FRAME_ANSWER_WAY : FRAME_REQUEST_WAY;
    data++, size--;
    if (frame_head_get(&head, way, data) != KMS_OK)
        return 0;
    CHECK(head.len <= FRAME_MAX + FRAME_TEXT_MAX && head.count >= 1);
    frame_head_put(&head, way, b);
    CHECK(memcmp(b, data, sizeof(b)) == 0);
    if (head.len > size)
        return 0;
    item = frame_item_size((enum frame_type)head.type, way);
    CHECK(FRAME_HEAD_LEN + item * head.count <= head.len);
    for (unsigned i = 0; i < head.count; i++) {
        const uint8_t *p = data + FRAME_HEAD_LEN + i * item;

        if (way == FRAME_REQUEST_WAY)
            one_request((enum frame_type)head.type, p, item);
        else
            one_answer((enum frame_type)head.type, p, item);
    }
    return 0;
}
