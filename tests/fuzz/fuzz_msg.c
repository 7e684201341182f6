/*
 * fuzz_msg.c - whatever a client seals, kms_request_parse either gives a struct that keeps its
 * promises or an errorCode.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define DOMAIN "kms.example.org"

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

static void
check_request(const struct kms_request *req)
{
    size_t i, j;

    CHECK(*kms_op_name(req->op) != '\0' && *kms_method_name(req->method) != '\0');
    CHECK(req->n_auth_ids <= KMS_LIST_MAX && req->n_keys <= KMS_LIST_MAX);
    CHECK(req->anonymous >= 0 && req->anonymous <= KMS_LIST_MAX && req->ttl >= -1);
    CHECK(req->op != OP_KEYS_CREATE || (req->count >= 1 && req->count <= KMS_LIST_MAX));
    CHECK((req->op == OP_CHANNEL_CREATE) == (req->jwk != NULL));
    CHECK(req->op != OP_KEY_BIND || req->has_resource);
    CHECK(req->op != OP_AUTHORIZATION_DELETE || req->by_uri == (req->n_auth_ids == 0));
    CHECK(req->purpose == NULL ||
          (*req->purpose != '\0' && strlen(req->purpose) <= KMS_PURPOSE_MAX &&
           kms_text_ok(req->purpose, strlen(req->purpose))));
    CHECK(req->op != OP_PURPOSE_KEYS || req->purpose != NULL);
    CHECK(req->op != OP_MATTER_KEYS || req->has_matter);
    CHECK(req->op != OP_RESOURCE_ROTATE || (req->count >= 1 && req->count <= KMS_LIST_MAX));
    CHECK(req->op != OP_RESOURCE_CREATE || req->count == 0 || req->n_keys == 0);
    CHECK(!req->zero_trust || req->kind == KMS_KIND_MEETING);
    CHECK(req->loc == NULL || (*req->loc != '\0' && strlen(req->loc) <= KMS_LOC_MAX));
    CHECK(req->tag == NULL || strlen(req->tag) == 22);
    CHECK((req->op >= OP_PUBLIC_KEY) == (req->assigned_org != NULL));
    CHECK((req->op == OP_CMK_CREATE) == (req->main_key.len > 0));
    CHECK(req->main_key.len <= KMS_MAIN_KEY_MAX &&
          *kms_main_key_state_name(req->main_state) != '\0');
    CHECK(req->cursor_len <= KMS_CURSOR_MAX && *kms_kind_name(req->kind) != '\0');
    for (i = 0; i < req->n_auth_ids; i++) {
        const struct kms_auth_id *a = &req->auth_ids[i];

        CHECK(a->is_resource == (a->user[0] == '\0'));
        CHECK(kms_text_ok(a->user, strlen(a->user)));
        for (j = 0; j < i; j++)
            CHECK(memcmp(a, &req->auth_ids[j], sizeof(*a)) != 0);
    }
    for (i = 0; i < req->n_keys; i++)
        for (j = 0; j < i; j++)
            CHECK(memcmp(&req->keys[i], &req->keys[j], sizeof(req->keys[i])) != 0);
}

/* The answer can be written, and whoever reads it finds his requestId. */
static void
check_answer(int code, const json_t *request_id, const char *why)
{
    json_t *answer = kms_answer_error(code, request_id, why), *again;
    struct buf text = BUF_INIT;

    CHECK(answer != NULL && kms_json_put(&text, answer) == KMS_OK);
    CHECK(kms_json_parse(&again, buf_str(&text), text.len) == KMS_OK);
    CHECK(request_id == NULL || json_equal(json_object_get(again, "requestId"), request_id));
    json_decref(again);
    json_decref(answer);
    buf_release(&text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *exact = malloc(size == 0 ? 1 : size);
    struct kms_request req;
    const char *why = NULL;
    int code;

    CHECK(exact != NULL);
    if (size > 0)
        memcpy(exact, data, size);
    code = kms_request_parse(&req, exact, size, DOMAIN, &why);
    CHECK(why != NULL && req.client_id != NULL);
    switch (code) {
    case KMS_CODE_OK:
        check_request(&req);
        break;
    case KMS_CODE_MALFORMED:
        CHECK(req.request_id == NULL);
        /* fallthrough */
    case KMS_CODE_MEMBER:
    case KMS_CODE_ALGORITHM:
    case KMS_CODE_NOT_FOUND:
        CHECK(*why != '\0');
        check_answer(code, req.request_id, why);
        break;
    default:
        abort();
    }
    kms_request_release(&req);
    free(exact);
    return 0;
}
