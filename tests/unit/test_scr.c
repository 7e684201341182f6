/*
 * test_scr.c - Secure Content Resources: one that node-scr made, what is none, and files that are
 * not its own.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdlib.h>
#include <string.h>

#include "kms/scr.h"
#include "proto/err.h"
#include "proto/json.h"

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))

/* By node-scr 0.3.0, of the file "what was said". */
#define KEY "\"key\":\"cmX4fOiHU-rbNv8jkZJaeQb7JQfMz7akWGdFhVA6UmM\""
#define IV  "\"iv\":\"LZkC5nUZm4OU2VHy\""
#define AAD "\"aad\":\"2026-11-22T19:08:34.474Z\""
#define TAG "\"tag\":\"6dpa_3wwMUhhGkViUuprrg\""
#define ENC "\"enc\":\"A256GCM\""
#define ALL ENC "," KEY "," IV "," AAD
static const unsigned char theirs[] = {0x42, 0x6b, 0xed, 0x88, 0x38, 0x51, 0x06,
                                       0x6b, 0xdd, 0xd5, 0xd9, 0xb5, 0xb4};

static void
start(void)
{
    kms_json_init();
    cr_assert_neq(secret_heap_init(64 * 1024), KMS_ERR_NOMEM);
}

TestSuite(scr, .init = start);

static int
parse(struct scr *scr, const char *json)
{
    return scr_parse(scr, json, strlen(json));
}

Test(scr, opens_what_node_scr_sealed)
{
    unsigned char file[sizeof(theirs)];
    struct scr scr;

    cr_assert_eq(parse(&scr, "{" ALL ",\"loc\":\"https://files.example/1\"," TAG "}"), KMS_OK);
    cr_assert(scr.has_tag);
    cr_assert_str_eq(buf_str(&scr.loc), "https://files.example/1");
    memcpy(file, theirs, sizeof(file));
    cr_assert_eq(scr_open(&scr, file, sizeof(file)), KMS_OK);
    cr_assert_arr_eq(file, "what was said", sizeof(file));
    scr_release(&scr);
}

Test(scr, seals_as_node_scr_does_and_only_once)
{
    unsigned char file[] = "what was said", other[] = "another file";
    struct scr scr, again;

    cr_assert_eq(parse(&scr, "{" ALL "}"), KMS_OK);
    cr_assert(!scr.has_tag);
    cr_assert_eq(scr_open(&scr, other, sizeof(other)), KMS_ERR_STATE);
    cr_assert_str_eq((const char *)other, "another file");
    cr_assert_eq(scr_seal(&scr, file, sizeof(file) - 1), KMS_OK);
    cr_assert_arr_eq(file, theirs, sizeof(theirs));
    cr_assert_eq(parse(&again, "{" ALL "," TAG "}"), KMS_OK);
    cr_assert_arr_eq(scr.tag, again.tag, SCR_TAG_LEN);
    cr_assert_eq(scr_seal(&scr, other, sizeof(other)), KMS_ERR_STATE);
    cr_assert_str_eq((const char *)other, "another file");
    scr_release(&scr);
    scr_release(&again);
}

Test(scr, a_file_that_was_touched_leaves_nothing)
{
    unsigned char file[sizeof(theirs)];
    struct scr scr;
    size_t i, k;

    cr_assert_eq(parse(&scr, "{" ALL "," TAG "}"), KMS_OK);
    for (i = 0; i < sizeof(theirs); i++) {
        memcpy(file, theirs, sizeof(file));
        file[i] ^= 1;
        cr_assert_eq(scr_open(&scr, file, sizeof(file)), KMS_ERR_CRYPTO);
        for (k = 0; k < sizeof(file); k++)
            cr_assert_eq(file[k], 0);
    }
    memcpy(file, theirs, sizeof(file));
    cr_assert_eq(scr_open(&scr, file, sizeof(file) - 1), KMS_ERR_CRYPTO);
    scr.tag[0] ^= 1;
    memcpy(file, theirs, sizeof(file));
    cr_assert_eq(scr_open(&scr, file, sizeof(file)), KMS_ERR_CRYPTO);
    scr_release(&scr);
}

Test(scr, files_of_any_length)
{
    static const size_t lengths[] = {0, 1, 15, 16, 17, 1 << 20, (1 << 20) + 1, (3 << 20) + 5};
    size_t i;

    for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        unsigned char *file = malloc(lengths[i] + 1), *copy = malloc(lengths[i] + 1);
        struct scr scr;

        memset(file, (int)i, lengths[i] + 1);
        memcpy(copy, file, lengths[i] + 1);
        cr_assert_eq(parse(&scr, "{" ALL "}"), KMS_OK);
        cr_assert_eq(scr_seal(&scr, file, lengths[i]), KMS_OK);
        cr_assert(lengths[i] < 8 || memcmp(file, copy, lengths[i]) != 0);
        cr_assert_eq(scr_open(&scr, file, lengths[i]), KMS_OK);
        cr_assert_eq(memcmp(file, copy, lengths[i] + 1), 0);
        scr_release(&scr);
        free(file);
        free(copy);
    }
}

struct bad {
    char json[256];
    int want;
};

ParameterizedTestParameters(scr, refuses)
{
    static struct bad rows[] = {
        {"", KMS_ERR_SYNTAX},
        {"[]", KMS_ERR_MEMBER},
        {"{" ALL "," KEY "}", KMS_ERR_DUPLICATE},
        {"{" KEY "," IV "," AAD "}", KMS_ERR_MEMBER},
        {"{" ENC "," IV "," AAD "}", KMS_ERR_MEMBER},
        {"{" ENC "," KEY "," AAD "}", KMS_ERR_MEMBER},
        {"{" ENC "," KEY "," IV "}", KMS_ERR_MEMBER},
        {"{\"enc\":\"A128GCM\"," KEY "," IV "," AAD "}", KMS_ERR_ALGORITHM},
        {"{\"enc\":\"A256CBC-HS512\"," KEY "," IV "," AAD "}", KMS_ERR_ALGORITHM},
        {"{" ENC ",\"key\":\"AAAA\"," IV "," AAD "}", KMS_ERR_MEMBER},
        {"{" ENC "," KEY ",\"iv\":\"AAAA\"," AAD "}", KMS_ERR_MEMBER},
        {"{" ENC "," KEY "," IV ",\"aad\":7}", KMS_ERR_MEMBER},
        {"{" ALL ",\"loc\":7}", KMS_ERR_MEMBER},
        {"{" ALL ",\"tag\":\"AA\"}", KMS_ERR_MEMBER}, /* a tag of one byte is forged in no time */
        {"{" ALL ",\"tag\":\"\"}", KMS_ERR_MEMBER},
        {"{" ALL ",\"tag\":null}", KMS_ERR_MEMBER},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct bad *row, scr, refuses)
{
    struct scr scr;

    start();
    cr_assert_eq(parse(&scr, row->json), row->want, "%s", row->json);
    scr_release(&scr);
}
