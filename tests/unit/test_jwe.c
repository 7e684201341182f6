/* test_jwe.c - compact JWE: what the header may say, what is refused before and at the tag, and
 * that nothing leaks out. */
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/rsa.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/jose.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

#define KID "kms://kms.example.org/ecdhe/5e1aa1d2-8a1b-4c8a-9c1a-6b9f7c3c0001"

/* 12, 16 and 256 zero bytes. */
#define IV   "AAAAAAAAAAAAAAAA"
#define TAG  "AAAAAAAAAAAAAAAAAAAAAA"
#define A64  "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
#define A256 A64 A64 A64 A64
#define EK   A256 A64 "AAAAAAAAAAAAAAAAAAAAAA"

#define ALLOWED (JOSE_ALG | JOSE_ENC | JOSE_KID | JOSE_TYP | JOSE_CTY)

static const unsigned char key[32] = "0123456789abcdef0123456789abcde";

TestSuite(jwe, .init = kms_json_init);

/* header (JSON) and the rest (from its dot on) to a compact message. */
static void
compose(struct buf *out, const char *header, const char *rest)
{
    buf_reset(out);
    cr_assert_eq(b64url_put(out, header, strlen(header)), KMS_OK);
    cr_assert_eq(buf_puts(out, rest), KMS_OK);
}

Test(jwe, headers_are_taken_or_refused_with_their_code)
{
    static const struct {
        const char *name, *header;
        int want;
    } rows[] = {
        {"as we write it", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"" KID "\"}", KMS_OK},
        {"as node-jose writes it", "{\"enc\":\"A256GCM\",\"alg\":\"dir\",\"kid\":\"" KID "\"}",
         KMS_OK},
        {"without kid", "{\"alg\":\"dir\",\"enc\":\"A256GCM\"}", KMS_OK},
        {"typ and cty", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"typ\":\"JOSE\",\"cty\":\"json\"}",
         KMS_OK},
        {"white space", "{ \"alg\" : \"dir\",\n\"enc\":\t\"A256GCM\" }", KMS_OK},
        {"escapes", "{\"\\u0061lg\":\"d\\u0069r\",\"enc\":\"A256GCM\"}", KMS_OK},
        {"no alg", "{\"enc\":\"A256GCM\"}", KMS_ERR_HEADER},
        {"no enc", "{\"alg\":\"dir\"}", KMS_ERR_HEADER},
        {"empty alg", "{\"alg\":\"\",\"enc\":\"A256GCM\"}", KMS_ERR_ALGORITHM},
        {"alg in another case", "{\"alg\":\"DIR\",\"enc\":\"A256GCM\"}", KMS_ERR_ALGORITHM},
        {"alg with a space", "{\"alg\":\"dir \",\"enc\":\"A256GCM\"}", KMS_ERR_ALGORITHM},
        {"RSA1_5", "{\"alg\":\"RSA1_5\",\"enc\":\"A256GCM\"}", KMS_ERR_ALGORITHM},
        {"A256KW", "{\"alg\":\"A256KW\",\"enc\":\"A256GCM\"}", KMS_ERR_ALGORITHM},
        {"PBES2", "{\"alg\":\"PBES2-HS256+A128KW\",\"enc\":\"A256GCM\"}", KMS_ERR_ALGORITHM},
        {"A128GCM", "{\"alg\":\"dir\",\"enc\":\"A128GCM\"}", KMS_ERR_ALGORITHM},
        {"A256CBC-HS512", "{\"alg\":\"dir\",\"enc\":\"A256CBC-HS512\"}", KMS_ERR_ALGORITHM},
        {"zip", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"zip\":\"DEF\"}", KMS_ERR_HEADER},
        {"crit", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"crit\":[\"x\"],\"x\":\"y\"}",
         KMS_ERR_HEADER},
        {"crit, empty", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"crit\":[]}", KMS_ERR_HEADER},
        {"jwk", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"jwk\":{}}", KMS_ERR_HEADER},
        {"jku", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"jku\":\"https://x\"}", KMS_ERR_HEADER},
        {"x5c", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"x5c\":[]}", KMS_ERR_HEADER},
        {"x5t", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"x5t\":\"AA\"}", KMS_ERR_HEADER},
        {"epk", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"epk\":{}}", KMS_ERR_HEADER},
        {"iv and tag", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"iv\":\"a\",\"tag\":\"b\"}",
         KMS_ERR_HEADER},
        {"p2c", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"p2c\":1}", KMS_ERR_HEADER},
        {"an unknown member", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"Alg\":\"dir\"}",
         KMS_ERR_HEADER},
        {"an empty name", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"\":\"\"}", KMS_ERR_HEADER},
        {"alg a number", "{\"alg\":1,\"enc\":\"A256GCM\"}", KMS_ERR_HEADER},
        {"alg an array", "{\"alg\":[\"dir\"],\"enc\":\"A256GCM\"}", KMS_ERR_HEADER},
        {"kid null", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":null}", KMS_ERR_HEADER},
        {"kid with a quote", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"a\\\"b\"}",
         KMS_ERR_HEADER},
        {"kid with a backslash", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"a\\\\b\"}",
         KMS_ERR_HEADER},
        {"kid with a newline", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"a\\nb\"}",
         KMS_ERR_HEADER},
        {"kid not ASCII", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"\xc3\xa4\"}",
         KMS_ERR_HEADER},
        {"kid of 256", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"" A256 "\"}", KMS_OK},
        {"kid of 257", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"x" A256 "\"}",
         KMS_ERR_HEADER},
        {"typ of 64", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"typ\":\"" A64 "\"}", KMS_ERR_HEADER},
        {"alg twice", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"alg\":\"dir\"}", KMS_ERR_DUPLICATE},
        {"alg twice by an escape", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"\\u0061lg\":\"dir\"}",
         KMS_ERR_DUPLICATE},
        {"zip twice", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"zip\":\"\",\"zip\":\"\"}",
         KMS_ERR_DUPLICATE},
        {"U+0000 in alg", "{\"alg\":\"dir\\u0000\",\"enc\":\"A256GCM\"}", KMS_ERR_SYNTAX},
        {"not closed", "{\"alg\":\"dir\",\"enc\":\"A256GCM\"", KMS_ERR_SYNTAX},
        {"a comma at the end", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",}", KMS_ERR_SYNTAX},
        {"a comma at the start", "{,\"alg\":\"dir\",\"enc\":\"A256GCM\"}", KMS_ERR_SYNTAX},
        {"garbage behind", "{\"alg\":\"dir\",\"enc\":\"A256GCM\"}x", KMS_ERR_SYNTAX},
        {"two objects", "{\"alg\":\"dir\"}{\"enc\":\"A256GCM\"}", KMS_ERR_SYNTAX},
        {"an array", "[]", KMS_ERR_SYNTAX},
        {"nothing", "", KMS_ERR_SYNTAX},
        {"a byte order mark", "\xef\xbb\xbf{\"alg\":\"dir\",\"enc\":\"A256GCM\"}", KMS_ERR_SYNTAX},
        {"bad UTF-8", "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"\xff\"}", KMS_ERR_SYNTAX},
        {"nested", "{\"x\":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}", KMS_ERR_LENGTH},
    };
    struct buf compact = BUF_INIT;
    struct jwe jwe;
    size_t i;
    int r;

    for (i = 0; i < N(rows); i++) {
        compose(&compact, rows[i].header, ".." IV ".AAAA." TAG);
        r = jwe_parse(&jwe, buf_str(&compact), compact.len);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
    }
    buf_release(&compact);
}

/*
 * The two readers side by side, on the headers that are plain and on each of them with one byte
 * changed to each of the characters that mean something.
 */
Test(jwe, what_the_small_header_reader_takes_the_json_parser_takes_alike)
{
    static const char *const headers[] = {
        "{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"" KID "\"}",
        "{\"enc\":\"A256GCM\",\"alg\":\"dir\",\"kid\":\"" KID "\"}",
        "{\"enc\":\"A256GCM\",\"alg\":\"RSA-OAEP\",\"kid\":\"k\",\"typ\":\"JOSE\",\"cty\":\"\"}",
        "{\"alg\":\"PS256\"}",
        "{\"alg\":\"\",\"x5t\":\"AA\"}",
        "{}",
        "{\"alg\":\"dir\",\"alg\":\"dir\"}",
    };
    static const char changes[] = "\"\\{}[],: \tax1\x01\x7f\x80\xff\xc3";
    struct jose_header small, full;
    char text[256];
    size_t i, at, c, len, taken = 0;
    bool plain;
    int r;

    for (i = 0; i < N(headers); i++) {
        len = strlen(headers[i]);
        for (at = 0; at < len; at++) {
            for (c = 0; c < sizeof(changes); c++) { /* with the NUL */
                memcpy(text, headers[i], len + 1);
                text[at] = changes[c];
                memset(&small, 0, sizeof(small));
                memset(&full, 0, sizeof(full));
                plain = jose_header_read_plain(&small, text, len, ALLOWED);
                r = jose_header_read_json(&full, text, len, ALLOWED);
                if (!plain)
                    continue;
                taken++;
                cr_assert_eq(r, KMS_OK, "%s", text);
                cr_assert_eq(small.seen, full.seen, "%s", text);
                cr_assert_str_eq(small.alg, full.alg);
                cr_assert_str_eq(small.enc, full.enc);
                cr_assert_str_eq(small.kid, full.kid);
                cr_assert_str_eq(small.typ, full.typ);
            }
        }
    }
    cr_expect_gt(taken, 500, "only %zu were plain", taken);
    for (i = 0; i < 3; i++)
        cr_expect(jose_header_read_plain(&small, headers[i], strlen(headers[i]), ALLOWED), "%s",
                  headers[i]);
}

Test(jwe, the_five_parts_have_the_one_length_that_is_right)
{
    static const struct {
        const char *name, *header, *rest;
        int want;
    } rows[] = {
        {"dir", "dir", ".." IV ".AAAA." TAG, KMS_OK},
        {"dir with an empty plaintext", "dir", ".." IV ".." TAG, KMS_OK},
        {"RSA-OAEP", "RSA-OAEP", "." EK "." IV ".AAAA." TAG, KMS_OK},
        {"RSA-OAEP-256", "RSA-OAEP-256", "." EK "." IV ".AAAA." TAG, KMS_OK},
        {"dir with an encrypted key", "dir", ".AAAA." IV ".AAAA." TAG, KMS_ERR_LENGTH},
        {"RSA-OAEP without one", "RSA-OAEP", ".." IV ".AAAA." TAG, KMS_ERR_LENGTH},
        {"RSA-OAEP of 1024 bits", "RSA-OAEP", "." A64 A64 "AAA." IV ".AAAA." TAG, KMS_ERR_LENGTH},
        {"RSA-OAEP of 513 bytes", "RSA-OAEP", "." A256 A256 A64 A64 A64 "AAAA." IV ".AAAA." TAG,
         KMS_ERR_LENGTH},
        {"no iv", "dir", "...AAAA." TAG, KMS_ERR_LENGTH},
        {"iv of 11 bytes", "dir", "..AAAAAAAAAAAAAAA.AAAA." TAG, KMS_ERR_LENGTH},
        {"iv of 16 bytes", "dir", "..AAAAAAAAAAAAAAAAAAAAAA.AAAA." TAG, KMS_ERR_LENGTH},
        {"iv not base64url", "dir", "..AAAAAAAAAAAAAA+A.AAAA." TAG, KMS_ERR_SYNTAX},
        {"no tag", "dir", ".." IV ".AAAA.", KMS_ERR_LENGTH},
        {"tag of 1 byte", "dir", ".." IV ".AAAA.AA", KMS_ERR_LENGTH},
        {"tag of 12 bytes", "dir", ".." IV ".AAAA.AAAAAAAAAAAAAAAA", KMS_ERR_LENGTH},
        {"tag of 15 bytes", "dir", ".." IV ".AAAA.AAAAAAAAAAAAAAAAAAAA", KMS_ERR_LENGTH},
        {"tag of 17 bytes", "dir", ".." IV ".AAAA.AAAAAAAAAAAAAAAAAAAAAAA", KMS_ERR_LENGTH},
        {"tag padded", "dir", ".." IV ".AAAA." TAG "==", KMS_ERR_LENGTH},
        {"left-over bits in the tag", "dir", ".." IV ".AAAA.AAAAAAAAAAAAAAAAAAAAAB",
         KMS_ERR_SYNTAX},
        {"a ciphertext of a length that cannot be", "dir", ".." IV ".A." TAG, KMS_ERR_SYNTAX},
        {"four parts", "dir", ".." IV "." TAG, KMS_ERR_SYNTAX},
        {"six parts", "dir", ".." IV ".AAAA." TAG ".", KMS_ERR_SYNTAX},
        {"three parts", "dir", ".AAAA." TAG, KMS_ERR_SYNTAX},
        {"one part", "dir", "", KMS_ERR_SYNTAX},
    };
    struct buf compact = BUF_INIT;
    char header[128];
    struct jwe jwe;
    size_t i;
    int r;

    for (i = 0; i < N(rows); i++) {
        snprintf(header, sizeof(header), "{\"alg\":\"%s\",\"enc\":\"A256GCM\"}", rows[i].header);
        compose(&compact, header, rows[i].rest);
        r = jwe_parse(&jwe, buf_str(&compact), compact.len);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
    }
    cr_expect_eq(jwe_parse(&jwe, "", 0), KMS_ERR_SYNTAX);
    cr_expect_eq(jwe_parse(&jwe, "....", 4), KMS_ERR_SYNTAX);
    buf_release(&compact);
}

Test(jwe, a_message_may_be_as_long_as_the_limit_and_no_longer)
{
    static char zeros[JWE_MAX];
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    size_t len = (JWE_MAX - 200) / 4 * 3;
    struct jwe jwe;

    cr_assert_eq(jwe_seal_dir(&compact, KID, key, zeros, len), KMS_OK);
    cr_assert_leq(compact.len, JWE_MAX);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    cr_expect_eq(jwe_open(&jwe, key, &plain), KMS_OK);
    cr_expect_eq(plain.len, len);
    buf_reset(&compact);
    cr_assert_eq(jwe_seal_dir(&compact, KID, key, zeros, len + 300), KMS_OK);
    cr_expect_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_ERR_LENGTH);
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, what_is_sealed_opens_at_every_length)
{
    unsigned char text[700];
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    struct jwe jwe;
    size_t len;

    for (len = 0; len < sizeof(text); len++)
        text[len] = (unsigned char)(len * 31 + 5);
    for (len = 0; len <= sizeof(text); len++) {
        /* Behind what is in the buffers already. */
        buf_reset(&compact);
        buf_reset(&plain);
        cr_assert_eq(buf_puts(&compact, "head"), KMS_OK);
        cr_assert_eq(buf_puts(&plain, "tail"), KMS_OK);
        cr_assert_eq(jwe_seal_dir(&compact, KID, key, text, len), KMS_OK);
        cr_assert_eq(compact.data[compact.len], '\0');
        cr_assert_eq(jwe_parse(&jwe, buf_str(&compact) + 4, compact.len - 4), KMS_OK);
        cr_assert_eq(jwe.alg, JWE_DIR);
        cr_assert_str_eq(jwe.kid, KID);
        cr_assert_eq(jwe_open(&jwe, key, &plain), KMS_OK, "length %zu", len);
        cr_assert_eq(plain.len, 4 + len);
        cr_assert_eq(memcmp(plain.data, "tail", 4), 0);
        cr_assert_eq(memcmp(plain.data + 4, text, len), 0, "length %zu", len);
    }
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, no_two_messages_have_one_iv)
{
    struct buf a = BUF_INIT;
    struct jwe jwe;
    unsigned char seen[64][JWE_IV_LEN];
    size_t i, j;

    for (i = 0; i < N(seen); i++) {
        buf_reset(&a);
        cr_assert_eq(jwe_seal_dir(&a, KID, key, "x", 1), KMS_OK);
        cr_assert_eq(jwe_parse(&jwe, buf_str(&a), a.len), KMS_OK);
        memcpy(seen[i], jwe.iv, JWE_IV_LEN);
        for (j = 0; j < i; j++)
            cr_assert_neq(memcmp(seen[i], seen[j], JWE_IV_LEN), 0);
    }
    buf_release(&a);
}

/* Each character of a message replaced by another of the alphabet. */
Test(jwe, a_change_anywhere_is_found_and_leaves_no_plaintext)
{
    static const char text[] = "a plaintext that must not come out of a message that was changed";
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    struct jwe jwe;
    size_t at, i;
    char was;
    int r;

    cr_assert_eq(jwe_seal_dir(&compact, KID, key, text, strlen(text)), KMS_OK);
    for (at = 0; at < compact.len; at++) {
        was = (char)compact.data[at];
        if (was == '.')
            continue;
        compact.data[at] = was == 'A' ? 'B' : 'A';
        cr_assert_eq(buf_puts(&plain, "kept"), KMS_OK);
        if ((r = jwe_parse(&jwe, buf_str(&compact), compact.len)) == KMS_OK)
            r = jwe_open(&jwe, key, &plain);
        cr_expect_neq(r, KMS_OK, "at %zu", at);
        cr_expect_str_eq(buf_str(&plain), "kept");
        cr_expect_eq(plain.len, 4);
        for (i = 4; i < 4 + strlen(text) && r == KMS_ERR_CRYPTO; i++)
            cr_expect_eq(plain.data[i], 0, "at %zu something is left at %zu", at, i);
        cr_expect_eq(ERR_peek_error(), 0);
        buf_release(&plain);
        compact.data[at] = (unsigned char)was;
    }
    buf_release(&compact);
}

Test(jwe, another_key_does_not_open_it_and_the_next_message_still_opens)
{
    static const unsigned char other[32] = "another key";
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    struct jwe jwe;

    cr_assert_eq(jwe_seal_dir(&compact, KID, key, "text", 4), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    cr_expect_eq(jwe_open(&jwe, other, &plain), KMS_ERR_CRYPTO);
    cr_expect_eq(plain.len, 0);
    cr_expect_eq(jwe_open(&jwe, key, &plain), KMS_OK);
    cr_expect_str_eq(buf_str(&plain), "text");
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, a_ciphertext_that_is_no_base64url_is_malformed)
{
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    struct jwe jwe;

    compose(&compact, "{\"alg\":\"dir\",\"enc\":\"A256GCM\"}", ".." IV ".AA+A." TAG);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    cr_expect_eq(jwe_open(&jwe, key, &plain), KMS_ERR_SYNTAX);
    cr_expect_eq(plain.len, 0);
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, a_kid_that_json_would_escape_is_not_sealed)
{
    static const char *const rows[] = {"a\"b", "a\\b", "a\nb", "\x7f", "\xc3\xa4", "x" A256};
    struct buf out = BUF_INIT;
    size_t i;

    cr_assert_eq(buf_puts(&out, "kept"), KMS_OK);
    for (i = 0; i < N(rows); i++)
        cr_expect_eq(jwe_seal_dir(&out, rows[i], key, "x", 1), KMS_ERR_HEADER, "%s", rows[i]);
    cr_expect_str_eq(buf_str(&out), "kept");
    buf_release(&out);
}

Test(jwe, what_is_sealed_to_an_rsa_key_opens_with_its_private_half)
{
    static const enum jwe_alg algs[] = {JWE_RSA_OAEP, JWE_RSA_OAEP_256};
    EVP_PKEY *rsa = EVP_RSA_gen(2048), *other = EVP_RSA_gen(2048), *ec = EVP_EC_gen("P-256"),
             *weak = EVP_RSA_gen(1024);
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    struct jwe jwe;
    size_t i;

    for (i = 0; i < N(algs); i++) {
        buf_reset(&compact);
        buf_reset(&plain);
        cr_assert_eq(jwe_seal_rsa(&compact, i == 0 ? KID : NULL, algs[i], rsa, "text", 4), KMS_OK);
        cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
        cr_expect_eq(jwe.alg, algs[i]);
        cr_expect_str_eq(jwe.kid, i == 0 ? KID : "");
        cr_expect_eq(jwe.ek_len, 256);
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_OK);
        cr_expect_str_eq(buf_str(&plain), "text");
        cr_expect_eq(jwe_open_rsa(&jwe, other, &plain), KMS_ERR_CRYPTO, "another key");
        cr_expect_eq(jwe_open_rsa(&jwe, ec, &plain), KMS_ERR_ALGORITHM);
        jwe.alg = algs[1 - i];
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_ERR_CRYPTO, "the other hash");
        jwe.alg = algs[i];
        jwe.ek[100] ^= 1;
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_ERR_CRYPTO, "a changed encrypted key");
        memset(jwe.ek, 0xff, jwe.ek_len);
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_ERR_CRYPTO, "larger than the modulus");
        cr_expect_eq(ERR_peek_error(), 0);
    }
    cr_expect_eq(jwe_seal_rsa(&compact, KID, JWE_DIR, rsa, "x", 1), KMS_ERR_ALGORITHM);
    cr_expect_eq(jwe_seal_rsa(&compact, KID, JWE_RSA_OAEP, ec, "x", 1), KMS_ERR_ALGORITHM);
    cr_expect_eq(jwe_seal_rsa(&compact, KID, JWE_RSA_OAEP, weak, "x", 1), KMS_ERR_KEY);
    cr_expect_eq(jwe_seal_rsa(&compact, "\"", JWE_RSA_OAEP, rsa, "x", 1), KMS_ERR_HEADER);
    EVP_PKEY_free(rsa);
    EVP_PKEY_free(other);
    EVP_PKEY_free(ec);
    EVP_PKEY_free(weak);
    buf_release(&compact);
    buf_release(&plain);
}

/* A content key of another length than 32 must not be told from bad padding. */
Test(jwe, a_content_key_of_another_length_fails_at_the_tag)
{
    static const size_t lens[] = {0, 1, 16, 31, 33, 64, 190};
    EVP_PKEY *rsa = EVP_RSA_gen(2048);
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    unsigned char cek[190] = {0};
    struct jwe jwe;
    size_t i;

    cr_assert_eq(jwe_seal_rsa(&compact, NULL, JWE_RSA_OAEP_256, rsa, "text", 4), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    for (i = 0; i < N(lens); i++) {
        EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(rsa, NULL);

        EVP_PKEY_encrypt_init(ctx);
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING);
        EVP_PKEY_CTX_set_rsa_oaep_md(ctx, EVP_sha256());
        jwe.ek_len = sizeof(jwe.ek);
        cr_assert_eq(EVP_PKEY_encrypt(ctx, jwe.ek, &jwe.ek_len, cek, lens[i]), 1);
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_ERR_CRYPTO, "%zu bytes", lens[i]);
        EVP_PKEY_CTX_free(ctx);
    }
    EVP_PKEY_free(rsa);
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, opens_what_node_jose_cjose_and_this_server_sealed)
{
    struct buf k = BUF_INIT, plain = BUF_INIT;
    json_t *rows = data_load("jwe_dir.json"), *row;
    struct jwe jwe;
    size_t i;

    cr_assert_gt(json_array_size(rows), 0);
    json_array_foreach(rows, i, row)
    {
        const char *compact = text_of(row, "compact");

        buf_reset(&k);
        buf_reset(&plain);
        put_b64url(&k, text_of(row, "k"));
        cr_assert_eq(jwe_parse(&jwe, compact, strlen(compact)), KMS_OK, "row %zu", i);
        cr_expect_str_eq(jwe.kid, text_of(row, "kid"));
        cr_expect_eq(jwe_open(&jwe, k.data, &plain), KMS_OK, "row %zu by %s", i,
                     text_of(row, "by"));
        cr_expect_str_eq(buf_str(&plain), text_of(row, "plain"));
    }
    json_decref(rows);
    buf_release(&k);
    buf_release(&plain);
}

Test(jwe, opens_what_node_jose_sealed_to_an_rsa_key)
{
    json_t *data = data_load("jwe_rsa.json"), *row;
    EVP_PKEY *rsa = private_from_jwk(json_object_get(data, "key"));
    struct buf plain = BUF_INIT;
    struct jwe jwe;
    size_t i;

    json_array_foreach(json_object_get(data, "messages"), i, row)
    {
        const char *compact = text_of(row, "compact");

        buf_reset(&plain);
        cr_assert_eq(jwe_parse(&jwe, compact, strlen(compact)), KMS_OK);
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_OK, "%s", text_of(row, "alg"));
        cr_expect_str_eq(buf_str(&plain), text_of(row, "plain"));
    }
    EVP_PKEY_free(rsa);
    json_decref(data);
    buf_release(&plain);
}

Test(jwe, the_examples_of_the_rfcs_open_or_are_refused)
{
    json_t *rows = data_load("rfc_jwe.json"), *row;
    struct buf plain = BUF_INIT;
    struct jwe jwe;
    EVP_PKEY *rsa;
    size_t i;

    json_array_foreach(rows, i, row)
    {
        const char *compact = text_of(row, "compact");
        int r = jwe_parse(&jwe, compact, strlen(compact));

        if (strcmp(text_of(row, "want"), "good") != 0) {
            cr_expect_eq(r, KMS_ERR_ALGORITHM, "%s", text_of(row, "name"));
            continue;
        }
        cr_assert_eq(r, KMS_OK, "%s", text_of(row, "name"));
        rsa = private_from_jwk(json_object_get(row, "key"));
        cr_expect_eq(jwe_open_rsa(&jwe, rsa, &plain), KMS_OK, "%s", text_of(row, "name"));
        cr_expect_str_eq(buf_str(&plain), text_of(row, "plain"));
        EVP_PKEY_free(rsa);
    }
    json_decref(rows);
    buf_release(&plain);
}

/* What a receiver reads in the header of a message to his key: a new object. */
static json_t *
header_of(const struct buf *compact)
{
    const char *dot = strchr(buf_str(compact), '.');
    struct buf json = BUF_INIT;
    json_t *header;

    cr_assert_not_null(dot);
    cr_assert_eq(b64url_get(&json, buf_str(compact), (size_t)(dot - buf_str(compact))), KMS_OK);
    cr_assert_eq(kms_json_parse(&header, buf_str(&json), json.len), KMS_OK);
    buf_release(&json);
    return header;
}

Test(jwe, what_is_sealed_to_a_public_key_opens_with_its_private_half)
{
    static const char *const algs[] = {"RSA-OAEP-256", "RSA-OAEP-256", "ECDH-ES"};
    EVP_PKEY *keys[] = {EVP_RSA_gen(2048), EVP_RSA_gen(4096), EVP_EC_gen("P-256")};
    EVP_PKEY *others[] = {EVP_RSA_gen(2048), EVP_RSA_gen(4096), EVP_EC_gen("P-256")};
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    json_t *header;
    size_t i;

    for (i = 0; i < N(keys); i++) {
        buf_reset(&compact);
        buf_reset(&plain);
        cr_assert_eq(jwe_seal_to(&compact, keys[i], KID, "jwk+json", "text", 4), KMS_OK);
        header = header_of(&compact);
        cr_expect_str_eq(text_of(header, "alg"), algs[i]);
        cr_expect_str_eq(text_of(header, "enc"), "A256GCM");
        cr_expect_str_eq(text_of(header, "kid"), KID);
        cr_expect_str_eq(text_of(header, "cty"), "jwk+json");
        cr_expect_eq(json_object_size(header), i == 2 ? 5 : 4);
        json_decref(header);
        cr_expect_eq(jwe_open_to(buf_str(&compact), compact.len, keys[i], &plain), KMS_OK);
        cr_expect_str_eq(buf_str(&plain), "text");
        cr_expect_eq(jwe_open_to(buf_str(&compact), compact.len, others[i], &plain),
                     KMS_ERR_CRYPTO);
        cr_expect_str_eq(buf_str(&plain), "text");
        cr_expect_neq(jwe_open_to(buf_str(&compact), compact.len, keys[(i + 2) % 3], &plain),
                      KMS_OK);
        compact.data[compact.len - 1] = compact.data[compact.len - 1] == 'A' ? 'Q' : 'A';
        cr_expect_eq(jwe_open_to(buf_str(&compact), compact.len, keys[i], &plain), KMS_ERR_CRYPTO);
        buf_reset(&compact);
        buf_reset(&plain);
        cr_assert_eq(jwe_seal_to(&compact, keys[i], NULL, NULL, "", 0), KMS_OK);
        cr_expect_eq(jwe_open_to(buf_str(&compact), compact.len, keys[i], &plain), KMS_OK);
        cr_expect_eq(plain.len, 0);
        cr_expect_eq(ERR_peek_error(), 0);
    }
    for (i = 0; i < N(keys); i++) {
        EVP_PKEY_free(keys[i]);
        EVP_PKEY_free(others[i]);
    }
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, is_sealed_to_no_key_of_another_kind_and_under_no_unfit_name)
{
    EVP_PKEY *bad[] = {EVP_RSA_gen(1024), EVP_EC_gen("P-384"), EVP_EC_gen("secp256k1"),
                       EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"),
                       EVP_PKEY_Q_keygen(NULL, NULL, "X25519")};
    EVP_PKEY *good = EVP_EC_gen("P-256");
    struct buf out = BUF_INIT;
    size_t i;

    cr_assert_eq(buf_puts(&out, "kept"), KMS_OK);
    for (i = 0; i < N(bad); i++) {
        cr_expect_eq(jwe_seal_to(&out, bad[i], NULL, NULL, "x", 1),
                     i == 0 ? KMS_ERR_KEY : KMS_ERR_ALGORITHM, "%zu", i);
        EVP_PKEY_free(bad[i]);
    }
    cr_expect_eq(jwe_seal_to(&out, good, "a\"b", NULL, "x", 1), KMS_ERR_HEADER);
    cr_expect_eq(jwe_seal_to(&out, good, NULL, "a\"b", "x", 1), KMS_ERR_HEADER);
    cr_expect_eq(jwe_seal_to(&out, good, NULL, A64, "x", 1), KMS_ERR_HEADER);
    cr_expect_str_eq(buf_str(&out), "kept");
    cr_expect_eq(ERR_peek_error(), 0);
    EVP_PKEY_free(good);
    buf_release(&out);
}

/* Each message has a fresh key: nothing of two of one text is alike. */
Test(jwe, no_two_messages_to_one_public_key_share_an_ephemeral_key)
{
    EVP_PKEY *to = EVP_EC_gen("P-256");
    struct buf a = BUF_INIT, b = BUF_INIT;
    json_t *ha, *hb;

    cr_assert_eq(jwe_seal_to(&a, to, NULL, NULL, "x", 1), KMS_OK);
    cr_assert_eq(jwe_seal_to(&b, to, NULL, NULL, "x", 1), KMS_OK);
    ha = header_of(&a);
    hb = header_of(&b);
    cr_expect(!json_equal(json_object_get(ha, "epk"), json_object_get(hb, "epk")));
    cr_expect_null(json_object_get(json_object_get(ha, "epk"), "d"));
    cr_expect_eq(json_object_size(json_object_get(ha, "epk")), 4);
    json_decref(ha);
    json_decref(hb);
    EVP_PKEY_free(to);
    buf_release(&a);
    buf_release(&b);
}

Test(jwe, the_server_s_own_reader_takes_no_ecdh_es)
{
    EVP_PKEY *to = EVP_EC_gen("P-256");
    struct buf compact = BUF_INIT;
    struct jwe jwe;

    cr_assert_eq(jwe_seal_to(&compact, to, NULL, NULL, "x", 1), KMS_OK);
    cr_expect_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_ERR_HEADER);
    EVP_PKEY_free(to);
    buf_release(&compact);
}

Test(jwe, of_a_message_to_a_p256_key_every_header_but_ours_is_refused)
{
#define XY     "\"x\":\"gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0\","
#define EPK(y) "\"epk\":{\"kty\":\"EC\",\"crv\":\"P-256\"," XY "\"y\":\"" y "\"}"
#define GOOD_Y "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"
    static const struct {
        const char *header;
        int want;
    } rows[] = {
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\"," EPK(GOOD_Y) "}", KMS_ERR_CRYPTO},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\"}", KMS_ERR_MEMBER},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\",\"epk\":\"x\"}", KMS_ERR_MEMBER},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\"," EPK(
             "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM") "}",
         KMS_ERR_KEY},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A128GCM\"," EPK(GOOD_Y) "}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"ECDH-ES+A256KW\",\"enc\":\"A256GCM\"," EPK(GOOD_Y) "}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"dir\",\"enc\":\"A256GCM\"," EPK(GOOD_Y) "}", KMS_ERR_ALGORITHM},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\",\"apu\":\"QQ\"," EPK(GOOD_Y) "}",
         KMS_ERR_HEADER},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\",\"zip\":\"DEF\"," EPK(GOOD_Y) "}",
         KMS_ERR_HEADER},
        {"{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\",\"crit\":[]," EPK(GOOD_Y) "}", KMS_ERR_HEADER},
        {"{\"alg\":\"ECDH-ES\",\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\"," EPK(GOOD_Y) "}",
         KMS_ERR_DUPLICATE},
        {"[]", KMS_ERR_MEMBER},
    };
    EVP_PKEY *priv = EVP_EC_gen("P-256");
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        compose(&compact, rows[i].header, ".." IV ".AAAA." TAG);
        cr_expect_eq(jwe_open_to(buf_str(&compact), compact.len, priv, &plain), rows[i].want, "%s",
                     rows[i].header);
        cr_expect_eq(plain.len, 0);
        cr_expect_eq(ERR_peek_error(), 0);
    }
    compose(&compact, rows[0].header, ".AAAA." IV ".AAAA." TAG);
    cr_expect_eq(jwe_open_to(buf_str(&compact), compact.len, priv, &plain), KMS_ERR_LENGTH,
                 "an encrypted key where there is none");
    EVP_PKEY_free(priv);
    buf_release(&compact);
    buf_release(&plain);
}

Test(jwe, opens_what_node_jose_sealed_to_a_public_key)
{
    json_t *rows = data_load("jwe_to.json"), *row;
    struct buf plain = BUF_INIT;
    EVP_PKEY *priv;
    size_t i;

    cr_assert_gt(json_array_size(rows), 0);
    json_array_foreach(rows, i, row)
    {
        const char *compact = text_of(row, "compact");

        priv = private_from_jwk(json_object_get(row, "key"));
        buf_reset(&plain);
        cr_expect_eq(jwe_open_to(compact, strlen(compact), priv, &plain), KMS_OK, "%s",
                     text_of(row, "alg"));
        cr_expect_str_eq(buf_str(&plain), text_of(row, "plain"));
        EVP_PKEY_free(priv);
    }
    json_decref(rows);
    buf_release(&plain);
}
