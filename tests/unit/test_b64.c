/* test_b64.c - base64: every byte string has exactly one text, and nothing else is taken. */
#include <criterion/criterion.h>
#include <openssl/evp.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

/* RFC 4648 section 10. */
Test(b64, gives_the_texts_of_rfc_4648)
{
    static const struct {
        const char *bytes, *standard;
    } rows[] = {
        {"", ""},
        {"f", "Zg=="},
        {"fo", "Zm8="},
        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="},
        {"fooba", "Zm9vYmE="},
        {"foobar", "Zm9vYmFy"},
    };
    struct buf text = BUF_INIT, bytes = BUF_INIT;
    size_t i, url_len;

    for (i = 0; i < N(rows); i++) {
        cr_expect_eq(b64_put(&text, rows[i].bytes, strlen(rows[i].bytes)), KMS_OK);
        cr_expect_str_eq(buf_str(&text), rows[i].standard);
        cr_expect_eq(b64_get(&bytes, buf_str(&text), text.len), KMS_OK);
        cr_expect_str_eq(buf_str(&bytes), rows[i].bytes);
        buf_reset(&text);
        buf_reset(&bytes);
        url_len = strcspn(rows[i].standard, "=");
        cr_expect_eq(b64url_put(&text, rows[i].bytes, strlen(rows[i].bytes)), KMS_OK);
        cr_expect_eq(text.len, url_len);
        cr_expect_eq(memcmp(buf_str(&text), rows[i].standard, url_len), 0);
        buf_reset(&text);
    }
    buf_release(&text);
    buf_release(&bytes);
}

Test(b64, agrees_with_openssl_and_reads_back_what_it_writes_at_every_length)
{
    unsigned char in[300], out[300];
    char text[B64URL_LEN(sizeof(in))];
    unsigned char reference[(sizeof(in) + 2) / 3 * 4 + 1];
    size_t i, len;

    for (i = 0; i < sizeof(in); i++)
        in[i] = (unsigned char)(i * 151 + 7 + (i >> 3));
    for (len = 0; len <= sizeof(in); len++) {
        EVP_EncodeBlock(reference, in, (int)len);
        for (i = 0; reference[i] != '\0'; i++)
            reference[i] = reference[i] == '+' ? '-' : reference[i] == '/' ? '_' : reference[i];
        b64url_encode(text, in, len);
        cr_assert_eq(memcmp(text, reference, B64URL_LEN(len)), 0, "length %zu", len);
        cr_assert_eq(B64URL_BYTES(B64URL_LEN(len)), len);
        cr_assert_eq(b64url_decode(out, text, B64URL_LEN(len)), KMS_OK, "length %zu", len);
        cr_assert_eq(memcmp(in, out, len), 0, "length %zu", len);
    }
}

Test(b64, base64url_refuses_what_has_another_spelling)
{
    static const struct {
        const char *name, *text;
    } rows[] = {
        {"padding", "Zg=="},
        {"one pad", "Zm8="},
        {"a length that cannot be", "Zm9vY"},
        {"one character", "Z"},
        {"left-over bits of two characters", "Zh"},
        {"left-over bits of two characters, in the middle", "Zn"},
        {"left-over bits of three characters", "Zm9"},
        {"plus", "Zm+v"},
        {"slash", "Zm/v"},
        {"a space in front", " Zm9v"},
        {"a space inside", "Zm 9vYg"},
        {"a newline at the end", "Zm9v\n"},
        {"a dot", "Zm.v"},
        {"not ASCII", "Zm\xc3\xa4v"},
    };
    struct buf out = BUF_INIT;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        cr_expect_eq(b64url_get(&out, rows[i].text, strlen(rows[i].text)), KMS_ERR_SYNTAX, "%s",
                     rows[i].name);
        cr_expect_eq(out.len, 0, "%s", rows[i].name);
    }
    cr_expect_eq(b64url_get(&out, "Zm\0v", 4), KMS_ERR_SYNTAX, "NUL");
    buf_release(&out);
}

Test(b64, refuses_each_byte_outside_the_alphabet_at_each_place)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned char out[16];
    char text[7];
    int c;
    size_t at;

    for (c = 0; c < 256; c++) {
        for (at = 0; at < sizeof(text); at++) {
            memset(text, 'A', sizeof(text));
            text[at] = (char)c;
            if (c != 0 && strchr(alphabet, c) != NULL)
                continue;
            cr_expect_eq(b64url_decode(out, text, sizeof(text)), KMS_ERR_SYNTAX, "%d at %zu", c,
                         at);
        }
    }
}

Test(b64, standard_base64_refuses_what_has_another_spelling)
{
    static const struct {
        const char *name, *text;
    } rows[] = {
        {"no padding", "Zg"},          {"half the padding", "Zg="},
        {"too much padding", "Zm8=="}, {"three pads", "Z==="},
        {"only padding", "===="},      {"padding in the middle", "Zg==Zg=="},
        {"left-over bits", "Zh=="},    {"minus", "Zm-v"},
        {"underscore", "Zm_v"},        {"a line break", "Zm9v\nZm9v"},
    };
    struct buf out = BUF_INIT;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        cr_expect_eq(b64_get(&out, rows[i].text, strlen(rows[i].text)), KMS_ERR_SYNTAX, "%s",
                     rows[i].name);
        cr_expect_eq(out.len, 0, "%s", rows[i].name);
    }
    buf_release(&out);
}

Test(buf, grows_keeps_its_bytes_and_stays_a_string)
{
    struct buf b = BUF_INIT;
    size_t i;

    cr_expect_str_eq(buf_str(&b), "");
    for (i = 0; i < 1000; i++)
        cr_assert_eq(buf_putf(&b, "%03zu", i), KMS_OK);
    cr_expect_eq(b.len, 3000);
    cr_expect_eq(strlen(buf_str(&b)), 3000);
    buf_consume(&b, 2997);
    cr_expect_str_eq(buf_str(&b), "999");
    buf_truncate(&b, 1);
    cr_expect_str_eq(buf_str(&b), "9");
    buf_consume(&b, 1);
    cr_expect_str_eq(buf_str(&b), "");
    buf_release(&b);
    cr_expect_null(b.data);
}

Test(buf, leaves_nothing_behind_what_it_was_cut_to)
{
    struct buf b = BUF_INIT;
    size_t i, cap;

    cr_assert_eq(buf_puts(&b, "a secret of some length"), KMS_OK);
    buf_truncate(&b, 2);
    for (i = 2; i <= b.cap; i++)
        cr_expect_eq(b.data[i], 0, "at %zu", i);
    cr_assert_eq(buf_puts(&b, "more"), KMS_OK);
    buf_consume(&b, 5);
    for (i = 1; i <= 6; i++)
        cr_expect_eq(b.data[i], 0, "at %zu", i);
    cap = b.cap;
    buf_reset(&b);
    cr_expect_eq(b.data[0], 0);
    cr_expect_eq(b.cap, cap, "reset keeps the memory");
    buf_release(&b);
}

Test(buf, refuses_more_than_memory_has)
{
    struct buf b = BUF_INIT;

    cr_expect_eq(buf_reserve(&b, SIZE_MAX), KMS_ERR_NOMEM);
    cr_expect_eq(buf_reserve(&b, SIZE_MAX / 2), KMS_ERR_NOMEM);
    cr_expect_null(b.data);
}
