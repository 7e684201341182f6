/* test_body.c - a POST's body: what it is taken for, and that the quick way and the general one
 * agree. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <string.h>

#include "proto/body.h"
#include "proto/err.h"
#include "proto/json.h"

struct row {
    char text[160];
    int want;
    size_t n; /* messages, when it is taken */
};

static struct row rows[] = {
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[]}", KMS_OK, 0},
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[\"x\"]}", KMS_OK, 1},
    {"{\"kmsMessages\":[\"x\",\"\"],\"destination\":\"kms://a\"}", KMS_OK, 2},
    {" {\t\"destination\" :\r\n\"kms://a\" , \"kmsMessages\" : [ \"x\" , \"y\" ] } \n", KMS_OK, 2},
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[\"x\"],\"more\":{\"a\":[1]}}", KMS_OK, 1},
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[\"a\\\"b\",\"\\u0041\"]}", KMS_OK, 2},
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[\"\\u0000\",\"\\ud800\"]}", KMS_OK, 2},
    {"{\"dest\\u0069nation\":\"kms://a\",\"kmsMessages\":[]}", KMS_OK, 0},
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[\"\xc3\xbc\"]}", KMS_OK, 1},
    {"{\"destination\":\"kms://a\",\"kmsMessages\":[\"\x7f\"]}", KMS_OK, 1},
    {"", KMS_ERR_SYNTAX, 0},
    {"[]", KMS_ERR_SYNTAX, 0},
    {"{}", KMS_ERR_MEMBER, 0},
    {"{\"destination\":\"kms://a\"}", KMS_ERR_MEMBER, 0},
    {"{\"kmsMessages\":[]}", KMS_ERR_MEMBER, 0},
    {"{\"destination\":1,\"kmsMessages\":[]}", KMS_ERR_MEMBER, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":\"x\"}", KMS_ERR_MEMBER, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[1]}", KMS_ERR_MEMBER, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\",null]}", KMS_ERR_MEMBER, 0},
    {"{\"destination\":\"a\",\"destination\":\"a\",\"kmsMessages\":[]}", KMS_ERR_DUPLICATE, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[],\"kmsMessages\":[\"x\"]}", KMS_ERR_DUPLICATE, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\",]}", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[,\"x\"]}", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\" \"y\"]}", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\"],}", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\"]", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\"]}}", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\n\"]}", KMS_ERR_SYNTAX, 0},
    {"{\"destination\":\"a\",\"kmsMessages\":[\"x\xff\"]}", KMS_ERR_SYNTAX, 0},
    {"{'destination':'a','kmsMessages':[]}", KMS_ERR_SYNTAX, 0},
};

ParameterizedTestParameters(body, is_taken_for_what_it_is)
{
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct row *r, body, is_taken_for_what_it_is)
{
    struct kms_body body;
    int got;

    kms_json_init();
    got = kms_body_parse(&body, r->text, strlen(r->text));
    cr_assert_eq(got, r->want, "%s: %s", r->text, kms_strerror(got));
    if (got == KMS_OK) {
        cr_assert_eq(body.n, r->n, "%s", r->text);
        kms_body_release(&body);
    }
}

static bool
same(const struct kms_text *a, const struct kms_text *b)
{
    return a->len == b->len && memcmp(a->p, b->p, a->len) == 0;
}

ParameterizedTestParameters(body, the_two_ways_agree_on_every_changed_byte)
{
    return cr_make_param_array(struct row, rows, sizeof(rows) / sizeof(rows[0]));
}

/* Whatever the quick way takes, the general one takes for the same. */
ParameterizedTest(struct row *r, body, the_two_ways_agree_on_every_changed_byte)
{
    struct kms_body quick, tree;
    char text[sizeof(r->text)];
    size_t len = strlen(r->text), i, k;
    int c;

    kms_json_init();
    for (i = 0; i < len; i++) {
        for (c = 0; c < 256; c++) {
            memcpy(text, r->text, len);
            text[i] = (char)c;
            if (kms_body_parse_direct(&quick, text, len) != KMS_OK)
                continue;
            cr_assert_eq(kms_body_parse_tree(&tree, text, len), KMS_OK, "%.*s", (int)len, text);
            cr_assert(same(&quick.destination, &tree.destination), "%.*s", (int)len, text);
            cr_assert_eq(quick.n, tree.n);
            for (k = 0; k < quick.n; k++)
                cr_assert(same(&quick.messages[k], &tree.messages[k]), "%.*s", (int)len, text);
            kms_body_release(&tree);
        }
    }
}

Test(body, more_messages_than_fit_are_counted)
{
    char text[2048] = "{\"destination\":\"a\",\"kmsMessages\":[\"x\"";
    struct kms_body body;
    int i;

    kms_json_init();
    for (i = 0; i < 100; i++)
        strcat(text, ",\"x\"");
    strcat(text, "]}");
    cr_assert_eq(kms_body_parse_direct(&body, text, strlen(text)), KMS_OK);
    cr_assert_eq(body.n, 101);
    cr_assert_eq(kms_body_parse_tree(&body, text, strlen(text)), KMS_OK);
    cr_assert_eq(body.n, 101);
    kms_body_release(&body);
}
