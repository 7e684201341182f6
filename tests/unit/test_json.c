/* test_json.c - strict JSON: what comes in, what is refused with which code, and what goes out. */
#include <criterion/criterion.h>
#include <openssl/crypto.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

#define DEEP15 "[[[[[[[[[[[[[[["
#define FLAT15 "]]]]]]]]]]]]]]]"

TestSuite(json, .init = kms_json_init);

Test(json, takes_one_object_and_refuses_the_rest_with_its_code)
{
    static const struct {
        const char *name, *text;
        int want;
    } rows[] = {
        {"empty object", "{}", KMS_OK},
        {"white space around", " \t\r\n{ \"a\" : 1 } \n", KMS_OK},
        {"nested as deep as may be", "{\"a\":" DEEP15 FLAT15 "}", KMS_OK},
        {"brackets in strings do not count", "{\"a\":\"[[[[[[[[[[[[[[[[[[[[{{{{{{\"}", KMS_OK},
        {"a quote escaped in a string", "{\"a\":\"\\\"[[[[[[[[[[[[[[[[[[[[\"}", KMS_OK},
        {"many brackets side by side",
         "{\"a\":[[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[]]}", KMS_OK},
        {"a surrogate pair", "{\"a\":\"\\ud83d\\udd11\"}", KMS_OK},
        {"the escape of a control character", "{\"a\":\"\\u0001\"}", KMS_OK},
        {"nested too deeply", "{\"a\":[" DEEP15 FLAT15 "]}", KMS_ERR_LENGTH},
        {"nested too deeply and never closed", "{\"a\":[" DEEP15, KMS_ERR_LENGTH},
        {"an array", "[]", KMS_ERR_MEMBER},
        {"a string", "\"a\"", KMS_ERR_SYNTAX},
        {"a number", "1", KMS_ERR_SYNTAX},
        {"null", "null", KMS_ERR_SYNTAX},
        {"nothing", "", KMS_ERR_SYNTAX},
        {"white space", "  ", KMS_ERR_SYNTAX},
        {"two values", "{}{}", KMS_ERR_SYNTAX},
        {"garbage behind", "{}x", KMS_ERR_SYNTAX},
        {"a byte order mark", "\xef\xbb\xbf{}", KMS_ERR_SYNTAX},
        {"a trailing comma", "{\"a\":1,}", KMS_ERR_SYNTAX},
        {"a comment", "{/**/}", KMS_ERR_SYNTAX},
        {"single quotes", "{'a':1}", KMS_ERR_SYNTAX},
        {"a leading zero", "{\"a\":01}", KMS_ERR_SYNTAX},
        {"NaN", "{\"a\":NaN}", KMS_ERR_SYNTAX},
        {"an integer beyond 64 bits", "{\"a\":9223372036854775808}", KMS_ERR_SYNTAX},
        {"a real beyond doubles", "{\"a\":1e999}", KMS_ERR_SYNTAX},
        {"U+0000 escaped in a value", "{\"a\":\"x\\u0000y\"}", KMS_ERR_SYNTAX},
        {"U+0000 escaped in a name", "{\"a\\u0000\":1}", KMS_ERR_SYNTAX},
        {"a high surrogate alone", "{\"a\":\"\\ud800\"}", KMS_ERR_SYNTAX},
        {"a high surrogate and a letter", "{\"a\":\"\\ud800x\"}", KMS_ERR_SYNTAX},
        {"a low surrogate alone", "{\"a\":\"\\udc00\"}", KMS_ERR_SYNTAX},
        {"a low surrogate in a name", "{\"\\udc00\":1}", KMS_ERR_SYNTAX},
        {"two high surrogates", "{\"a\":\"\\ud800\\ud800\"}", KMS_ERR_SYNTAX},
        {"a surrogate raw in UTF-8", "{\"a\":\"\xed\xa0\x80\"}", KMS_ERR_SYNTAX},
        {"an overlong form", "{\"a\":\"\xc0\xaf\"}", KMS_ERR_SYNTAX},
        {"beyond U+10FFFF", "{\"a\":\"\xf4\x90\x80\x80\"}", KMS_ERR_SYNTAX},
        {"a truncated sequence", "{\"a\":\"\xe2\x82\"}", KMS_ERR_SYNTAX},
        {"Latin-1", "{\"a\":\"\xe4\"}", KMS_ERR_SYNTAX},
        {"a raw control character", "{\"a\":\"\x01\"}", KMS_ERR_SYNTAX},
        {"a raw newline", "{\"a\":\"\n\"}", KMS_ERR_SYNTAX},
        {"a string that ends in a backslash", "{\"a\":\"\\", KMS_ERR_SYNTAX},
        {"a duplicate", "{\"a\":1,\"a\":1}", KMS_ERR_DUPLICATE},
        {"a duplicate by its escape", "{\"a\":1,\"\\u0061\":2}", KMS_ERR_DUPLICATE},
        {"a duplicate further down", "{\"x\":[{\"a\":1,\"b\":2,\"a\":3}]}", KMS_ERR_DUPLICATE},
    };
    json_t *v;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        int r = kms_json_parse(&v, rows[i].text, strlen(rows[i].text));

        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        cr_expect_eq(v != NULL, r == KMS_OK, "%s", rows[i].name);
        json_decref(v);
    }
    cr_expect_eq(kms_json_parse(&v, "{}\0", 3), KMS_ERR_SYNTAX, "NUL behind");
    cr_expect_eq(kms_json_parse(&v, "{\"a\0\":1}", 8), KMS_ERR_SYNTAX, "NUL raw in a name");
    cr_expect_eq(kms_json_parse(&v, "{\"a\":1\0}", 8), KMS_ERR_SYNTAX, "NUL behind a number");
    cr_expect_eq(kms_json_parse_any(&v, "123\0", 4), KMS_ERR_SYNTAX, "NUL behind a bare number");
    cr_expect_eq(kms_json_parse(&v, NULL, 0), KMS_ERR_SYNTAX, "no text");
}

Test(json, any_value_is_taken_where_asked_for)
{
    static const char *const texts[] = {"1", "\"a\"", "null", "true", "[]", "{}", "-1.5e3"};
    json_t *v;
    size_t i;

    for (i = 0; i < N(texts); i++) {
        cr_expect_eq(kms_json_parse_any(&v, texts[i], strlen(texts[i])), KMS_OK, "%s", texts[i]);
        json_decref(v);
    }
    cr_expect_eq(kms_json_parse_any(&v, "1 2", 3), KMS_ERR_SYNTAX);
    cr_expect_eq(kms_json_parse_any(&v, "[{\"a\":1,\"a\":2}]", 15), KMS_ERR_DUPLICATE);
}

Test(json, writes_compactly_in_the_order_set)
{
    struct buf out = BUF_INIT;
    json_t *v = json_object();

    json_object_set_new(v, "z", json_integer(1));
    json_object_set_new(v, "a", json_string("\"/\\ \xc3\xa4\n"));
    json_object_set_new(v, "m", json_array());
    cr_expect_eq(buf_puts(&out, "before:"), KMS_OK);
    cr_expect_eq(kms_json_put(&out, v), KMS_OK);
    cr_expect_str_eq(buf_str(&out), "before:{\"z\":1,\"a\":\"\\\"/\\\\ \xc3\xa4\\n\",\"m\":[]}");
    json_decref(v);
    buf_release(&out);
}

Test(json, readers_tell_absent_from_wrong)
{
    static const char text[] = "{\"s\":\"four\",\"n\":null,\"i\":7,\"r\":7.0,\"e\":\"\"}";
    const char *s = "untouched";
    long long i = -1;
    json_t *v;

    cr_assert_eq(kms_json_parse(&v, text, strlen(text)), KMS_OK);
    cr_expect_eq(kms_json_str(v, "absent", 9, &s), KMS_ERR_NOT_FOUND);
    cr_expect_str_eq(s, "untouched");
    cr_expect_eq(kms_json_str(v, "n", 9, &s), KMS_ERR_MEMBER);
    cr_expect_eq(kms_json_str(v, "i", 9, &s), KMS_ERR_MEMBER);
    cr_expect_eq(kms_json_str(v, "s", 3, &s), KMS_ERR_MEMBER);
    cr_expect_eq(kms_json_str(v, "s", 4, &s), KMS_OK);
    cr_expect_str_eq(s, "four");
    cr_expect_eq(kms_json_str(v, "e", 0, &s), KMS_OK);
    cr_expect_eq(kms_json_int(v, "absent", 0, 9, &i), KMS_ERR_NOT_FOUND);
    cr_expect_eq(i, -1);
    cr_expect_eq(kms_json_int(v, "s", 0, 9, &i), KMS_ERR_MEMBER);
    cr_expect_eq(kms_json_int(v, "r", 0, 9, &i), KMS_ERR_MEMBER, "a real is no integer");
    cr_expect_eq(kms_json_int(v, "i", 8, 9, &i), KMS_ERR_MEMBER);
    cr_expect_eq(kms_json_int(v, "i", 0, 6, &i), KMS_ERR_MEMBER);
    cr_expect_eq(kms_json_int(v, "i", 7, 7, &i), KMS_OK);
    cr_expect_eq(i, 7);
    json_decref(v);
}

/* The functions that kms_json_init installs, called as jansson calls them. */
Test(json, what_jansson_gives_back_is_wiped)
{
    json_malloc_t alloc;
    json_free_t release;
    unsigned char *p;

    json_get_alloc_funcs(&alloc, &release);
    p = alloc(4096);
    cr_assert_not_null(p);
    memset(p, 0x5a, 4096);
    release(p);
    release(NULL);
    /* The allocator hands the same block out again; not so under a sanitiser, which keeps it. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
    {
        unsigned char *q = alloc(4096);
        size_t i;

        if (q == p)
            for (i = 64; i < 4096; i++)
                cr_assert_eq(q[i], 0, "at %zu", i);
        release(q);
    }
#endif
}

Test(json, each_error_code_has_its_own_text)
{
    int a, b;

    for (a = KMS_ERR_STATE; a <= KMS_OK; a++) {
        cr_expect_str_not_empty(kms_strerror(a));
        for (b = KMS_ERR_STATE; b < a; b++)
            cr_expect_str_neq(kms_strerror(a), kms_strerror(b));
    }
    cr_expect_str_eq(kms_strerror(1), "unknown error");
}
