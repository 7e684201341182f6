/*
 * fuzz_json.c - JSON: no text breaks the parser, none is taken that is deeper than it may be, and
 * what is taken is the same when it is written and read again.
 */
#include <stdint.h>
#include <stdlib.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    kms_json_init();
    return 0;
}

/* The depth of what was built, by recursion that a wrong bound would let go too far. */
static int
depth(const json_t *v)
{
    const char *name;
    json_t *member;
    int most = 0, d;
    size_t i;

    if (json_is_array(v)) {
        json_array_foreach(v, i, member)
        {
            d = depth(member);
            most = d > most ? d : most;
        }
    } else if (json_is_object(v)) {
        json_object_foreach((json_t *)(uintptr_t)v, name, member)
        {
            d = depth(member);
            most = d > most ? d : most;
        }
    } else {
        return 0;
    }
    return most + 1;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf out = BUF_INIT;
    json_t *v, *again;
    int any, r;

    any = kms_json_parse_any(&v, (const char *)data, size);
    CHECK((any == KMS_OK) == (v != NULL));
    if (any == KMS_OK) {
        CHECK(depth(v) <= KMS_JSON_DEPTH);
        CHECK(kms_json_put(&out, v) == KMS_OK);
        CHECK(kms_json_parse_any(&again, buf_str(&out), out.len) == KMS_OK);
        CHECK(json_equal(v, again));
        json_decref(again);
    }
    json_decref(v);
    r = kms_json_parse(&v, (const char *)data, size);
    CHECK(r != KMS_OK || (any == KMS_OK && json_is_object(v)));
    json_decref(v);
    buf_release(&out);
    return 0;
}
