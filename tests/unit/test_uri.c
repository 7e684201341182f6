/*
 * test_uri.c - what is a kms: URI, what is none, and what names nothing here.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/uri.h"

#define DOMAIN "kms.example.org"
#define ID     "0f8fad5b-d9cb-469f-a165-70867728950e"

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))

struct good {
    char text[160];
    enum uri_kind kind;
    bool has_id;
    char auth_id[64];
};

ParameterizedTestParameters(uri, reads_every_form)
{
    static struct good rows[] = {
        {"/ecdhe", URI_ECDHE, false, ""},
        {"kms://" DOMAIN "/ecdhe", URI_ECDHE, false, ""},
        {"/ecdhe/" ID, URI_ECDHE_ID, true, ""},
        {"/ping", URI_PING, false, ""},
        {"/keys", URI_KEYS, false, ""},
        {"/keys/" ID, URI_KEY, true, ""},
        {"/keys/0F8FAD5B-D9CB-469F-A165-70867728950E", URI_KEY, true, ""},
        {"kms://" DOMAIN "/keys/" ID, URI_KEY, true, ""},
        {"KMS://KMS.Example.ORG/keys/" ID, URI_KEY, true, ""},
        {"/resources", URI_RESOURCES, false, ""},
        {"/resources/" ID, URI_RESOURCE, true, ""},
        {"/resources/" ID "/keys", URI_RESOURCE_KEYS, true, ""},
        {"/resources/" ID "/authorizations", URI_RESOURCE_AUTHORIZATIONS, true, ""},
        {"/resources/" ID "/authorizations?authId=bob", URI_RESOURCE_AUTHORIZATIONS, true, "bob"},
        {"/resources/" ID "/authorizations?authId=a%2Bb+c%20d", URI_RESOURCE_AUTHORIZATIONS, true,
         "a+b c d"},
        {"/resources/" ID "/authorizations?authId=k%c3%a4the", URI_RESOURCE_AUTHORIZATIONS, true,
         "k\xc3\xa4the"},
        {"/resources/" ID "/authorizations?authId=a=b/?:@", URI_RESOURCE_AUTHORIZATIONS, true,
         "a=b/?:@"},
        {"/resources/" ID "/authorizations?authId=kms%3A%2F%2Fx%2Fresources%2F" ID,
         URI_RESOURCE_AUTHORIZATIONS, true, "kms://x/resources/" ID},
        {"/authorizations", URI_AUTHORIZATIONS, false, ""},
        {"/authorizations/" ID, URI_AUTHORIZATION, true, ""},
        {"/resources/" ID "/releases", URI_RESOURCE_RELEASES, true, ""},
        {"/resources/" ID "/recordings", URI_RESOURCE_RECORDINGS, true, ""},
        {"kms://" DOMAIN "/recordings/" ID, URI_RECORDING, true, ""},
        {"/publicKey", URI_PUBLIC_KEY, false, ""},
        {"/cmk", URI_CMKS, false, ""},
        {"kms://" DOMAIN "/cmk/" ID, URI_CMK, true, ""},
        {"default", URI_DEFAULT_CMK, false, ""},
        {"/matters/" ID "/keys", URI_MATTER_KEYS, true, ""},
        {"/purposes/indexing/keys", URI_PURPOSE_KEYS, false, ""},
        {"kms://" DOMAIN "/purposes/" ID "/keys", URI_PURPOSE_KEYS, false, ""},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct good *row, uri, reads_every_form)
{
    char id[UUID_TEXT + 1];
    struct kms_uri uri;

    cr_assert_eq(kms_uri_parse(&uri, row->text, strlen(row->text), DOMAIN), KMS_OK, "%s",
                 row->text);
    cr_assert_eq(uri.kind, row->kind, "%s", row->text);
    cr_assert_str_eq(uri.auth_id, row->auth_id);
    uuid_format(id, &uri.id);
    cr_assert_str_eq(id, row->has_id ? ID : "00000000-0000-0000-0000-000000000000");
}

struct bad {
    char text[160];
    int want;
};

ParameterizedTestParameters(uri, refuses_what_is_malformed_or_elsewhere)
{
    static struct bad rows[] = {
        {"", KMS_ERR_SYNTAX},
        {"keys", KMS_ERR_SYNTAX},
        {"Default", KMS_ERR_SYNTAX},
        {"/default", KMS_ERR_SYNTAX},
        {"default/", KMS_ERR_SYNTAX},
        {"kms://" DOMAIN "/default", KMS_ERR_SYNTAX},
        {"/", KMS_ERR_SYNTAX},
        {"//", KMS_ERR_SYNTAX},
        {"//" DOMAIN "/keys/" ID, KMS_ERR_SYNTAX},
        {"/keys/", KMS_ERR_SYNTAX},
        {"/keys/" ID "/", KMS_ERR_SYNTAX},
        {"/keys//" ID, KMS_ERR_SYNTAX},
        {"/Keys/" ID, KMS_ERR_SYNTAX},
        {"/ping/", KMS_ERR_SYNTAX},
        {"/ping/" ID, KMS_ERR_SYNTAX},
        {"/resources/" ID "/keys/", KMS_ERR_SYNTAX},
        {"/resources/" ID "/keys/" ID, KMS_ERR_SYNTAX},
        {"/resources/" ID "/recordings/" ID, KMS_ERR_SYNTAX},
        {"/recordings", KMS_ERR_SYNTAX},
        {"/recordings/7", KMS_ERR_NOT_FOUND},
        {"/recordings/" ID "?authId=bob", KMS_ERR_SYNTAX},
        {"/cmk/", KMS_ERR_SYNTAX},
        {"/cmk/" ID "/keys", KMS_ERR_SYNTAX},
        {"/cmk/default", KMS_ERR_NOT_FOUND},
        {"/CMK", KMS_ERR_SYNTAX},
        {"/awsKmsCmk", KMS_ERR_SYNTAX},
        {"/publickey", KMS_ERR_SYNTAX},
        {"/publicKey/" ID, KMS_ERR_SYNTAX},
        {"/matters/" ID, KMS_ERR_SYNTAX},
        {"/matters", KMS_ERR_SYNTAX},
        {"/matters/" ID "/keys?authId=bob", KMS_ERR_SYNTAX},
        {"/matters/1/keys", KMS_ERR_NOT_FOUND},
        {"/purposes/indexing", KMS_ERR_SYNTAX},
        {"/purposes//keys", KMS_ERR_SYNTAX},
        {"/purposes/a%00/keys", KMS_ERR_SYNTAX},
        {"/purposes/a%ff/keys", KMS_ERR_SYNTAX},
        {"/purposes/0123456789012345678901234567890123456789012345678901234567890123x/keys",
         KMS_ERR_SYNTAX},
        {"kms://other.example.org/purposes/dlp/keys", KMS_ERR_NOT_FOUND},
        {"/resources/1/releases", KMS_ERR_NOT_FOUND},
        {"/keys/" ID "#x", KMS_ERR_SYNTAX},
        {"/keys/" ID "?", KMS_ERR_SYNTAX},
        {"/keys/" ID "?authId=bob", KMS_ERR_SYNTAX},
        {"/keys/a b", KMS_ERR_SYNTAX},
        {"/keys/a%2", KMS_ERR_SYNTAX},
        {"/keys/\xc3\xa4", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authid=bob", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?userId=bob", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=bob&authId=eve", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=bob&x=1", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=bob#x", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=%00", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=%0a", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=%c2%85", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=%ff", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=%ed%a0%80", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=%zz", KMS_ERR_SYNTAX},
        {"/resources/" ID "/authorizations?authId=a%", KMS_ERR_SYNTAX},
        {"kms:", KMS_ERR_SYNTAX},
        {"kms://", KMS_ERR_SYNTAX},
        {"kms:///keys", KMS_ERR_SYNTAX},
        {"kms:/keys/" ID, KMS_ERR_SYNTAX},
        {"kms://" DOMAIN, KMS_ERR_SYNTAX},
        {"kms://" DOMAIN "/", KMS_ERR_SYNTAX},
        {"kms://" DOMAIN "/nothing", KMS_ERR_SYNTAX},
        {"kms://other.example.org/nothing", KMS_ERR_SYNTAX},
        {"kms://user@" DOMAIN "/keys", KMS_ERR_SYNTAX},
        {"kms://" DOMAIN ":443/keys", KMS_ERR_SYNTAX},
        {"https://" DOMAIN "/keys", KMS_ERR_SYNTAX},
        {" /keys", KMS_ERR_SYNTAX},
        {"/keys ", KMS_ERR_SYNTAX},
        {"kms://other.example.org/keys/" ID, KMS_ERR_NOT_FOUND},
        {"kms://other.example.org/keys", KMS_ERR_NOT_FOUND},
        {"kms://x" DOMAIN "/keys", KMS_ERR_NOT_FOUND},
        {"kms://" DOMAIN "./keys", KMS_ERR_NOT_FOUND},
        {"/keys/static-1", KMS_ERR_NOT_FOUND},
        {"/keys/0f8fad5bd9cb469fa16570867728950e", KMS_ERR_NOT_FOUND},
        {"/keys/{0f8fad5b-d9cb-469f-a165-7086772895}", KMS_ERR_SYNTAX},
        {"/keys/0f8fad5b-d9cb-469f-a165-70867728950g", KMS_ERR_NOT_FOUND},
        {"/keys/0f8fad5b-d9cb-469f-a165-70867728950e0", KMS_ERR_NOT_FOUND},
        {"/keys/0f8fad5b-d9cb-469f-a165-70867728950%65", KMS_ERR_NOT_FOUND},
        {"/keys/0f8fad5b-d9cb-469fa-165-70867728950e", KMS_ERR_NOT_FOUND},
        {"/resources/1/keys", KMS_ERR_NOT_FOUND},
        {"/resources/../authorizations", KMS_ERR_NOT_FOUND},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct bad *row, uri, refuses_what_is_malformed_or_elsewhere)
{
    struct kms_uri uri;

    cr_assert_eq(kms_uri_parse(&uri, row->text, strlen(row->text), DOMAIN), row->want, "%s",
                 row->text);
}

Test(uri, takes_an_authid_of_256_bytes_and_not_of_257)
{
    static const char prefix[] = "/resources/" ID "/authorizations?authId=";
    struct buf text = BUF_INIT;
    struct kms_uri uri;
    int i;

    cr_assert_eq(buf_puts(&text, prefix), KMS_OK);
    for (i = 0; i < KMS_AUTHID_MAX; i++)
        cr_assert_eq(buf_puts(&text, "%61"), KMS_OK);
    cr_assert_eq(kms_uri_parse(&uri, buf_str(&text), text.len, DOMAIN), KMS_OK);
    cr_assert_eq(strlen(uri.auth_id), KMS_AUTHID_MAX);
    cr_assert_eq(buf_putc(&text, 'a'), KMS_OK);
    cr_assert_eq(kms_uri_parse(&uri, buf_str(&text), text.len, DOMAIN), KMS_ERR_SYNTAX);
    buf_release(&text);
}

Test(uri, refuses_a_nul_inside)
{
    static const char text[] = "/keys\0/x";
    struct kms_uri uri;

    cr_assert_eq(kms_uri_parse(&uri, text, sizeof(text) - 1, DOMAIN), KMS_ERR_SYNTAX);
}

Test(uri, writes_what_it_reads)
{
    struct buf text = BUF_INIT;
    struct kms_uri uri;
    struct uuid id;

    cr_assert_eq(uuid_random(&id), KMS_OK);
    cr_assert_eq(kms_uri_put(&text, DOMAIN, "resources", &id), KMS_OK);
    cr_assert_eq(kms_uri_parse(&uri, buf_str(&text), text.len, DOMAIN), KMS_OK);
    cr_assert_eq(uri.kind, URI_RESOURCE);
    cr_assert_arr_eq(uri.id.b, id.b, UUID_LEN);
    buf_release(&text);
}

Test(uuid, random_ones_are_of_version_4_and_differ)
{
    char a_text[UUID_TEXT + 1];
    struct uuid a, b;

    cr_assert_eq(uuid_random(&a), KMS_OK);
    cr_assert_eq(uuid_random(&b), KMS_OK);
    cr_assert_arr_neq(a.b, b.b, UUID_LEN);
    uuid_format(a_text, &a);
    cr_assert_eq(a_text[14], '4');
    cr_assert_neq(strchr("89ab", a_text[19]), NULL);
}

struct text {
    char text[32];
    size_t len;
    bool ok;
};

ParameterizedTestParameters(text, is_ok_without_controls_and_in_utf8)
{
    static struct text rows[] = {
        {"", 0, true},
        {"Z\xc3\xbcrich \xe2\x82\xac \xf0\x9f\x94\x91", 16, true},
        {"a\xc2\xa0", 3, true},
        {"a\0b", 3, false},
        {"a\nb", 3, false},
        {"\x7f", 1, false},
        {"\xc2\x80", 2, false},
        {"\xc2\x9f", 2, false},
        {"\xc2", 1, false},
        {"\xc0\x80", 2, false},
        {"\xed\xa0\x80", 3, false},
        {"\xf4\x90\x80\x80", 4, false},
        {"\xff", 1, false},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct text *row, text, is_ok_without_controls_and_in_utf8)
{
    cr_assert_eq(kms_text_ok(row->text, row->len), row->ok);
}

Test(uri, gives_the_name_of_a_purpose_whether_there_is_one_or_not)
{
    static const struct {
        const char *text, *name;
    } rows[] = {
        {"/purposes/dlp/keys", "dlp"},
        {"/purposes/Dlp/keys", "Dlp"},
        {"/purposes/no%20such%2fthing+x/keys", "no such/thing+x"},
        {"/purposes/0123456789012345678901234567890123456789012345678901234567890123/keys",
         "0123456789012345678901234567890123456789012345678901234567890123"},
    };
    struct kms_uri uri;
    size_t i;

    for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        cr_assert_eq(kms_uri_parse(&uri, rows[i].text, strlen(rows[i].text), DOMAIN), KMS_OK, "%s",
                     rows[i].text);
        cr_expect_str_eq(uri.purpose, rows[i].name);
    }
    cr_assert_eq(kms_uri_parse(&uri, "/keys", 5, DOMAIN), KMS_OK);
    cr_expect_str_empty(uri.purpose);
}
