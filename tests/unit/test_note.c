/*
 * test_note.c - signed notes, checkpoints and cosignatures: notes of other implementations (Go's
 * x/mod/sumdb/note, the C2SP documents, node), and what is none.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/note.h"

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))
#define D "\xe2\x80\x94 "

/* Go's documentation of note. */
static const char go_key[] = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
static const char go_note[] =
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n\n" D
    "PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSN"
    "XgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

/* Made by node with the key of RFC 8032's first test. */
static const char log_key[] =
    "kms.example.com/log/1+4fbbc89c+AddamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";
static const char witness_key[] =
    "witness.example.org/w1+eba12634+BNdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";
#define BODY                                                                                       \
    "kms.example.com/log/1\n1000\nNGxrnLicS3b6ydyyDNqG46AcCldBfBOQKOrNRTj96Vs=\ntime 1763800000\n"
#define LOG_SIG                                                                                    \
    D "kms.example.com/log/1 "                                                                     \
      "T7vInF23hIdSGarx1ZyQpD/u5e+JovxRwTPSZv1J3xbQB7Rf8OQ4H78PVcaGMmodhJVmdX2tc/"                 \
      "w/6WELq1z9Ts/XmQI=\n"
#define WITNESS_SIG                                                                                \
    D "witness.example.org/w1 "                                                                    \
      "66EmNAAAAABpIXPqj/V6/"                                                                      \
      "D0E+N9MQhem/WLc1dpgWy74wbR4OPrDeBtPaTQVJkEylK7GIaHQr1V1eqkIfe3l8FghxS58CDcmAR9yAg==\n"

Test(note, verifies_what_go_signed)
{
    struct note_key key;
    struct note note;
    char bad[sizeof(go_note)];

    cr_assert_eq(note_key_parse(&key, go_key, strlen(go_key)), KMS_OK);
    cr_assert_eq(note_parse(&note, go_note, strlen(go_note)), KMS_OK);
    cr_assert_eq(note.n, 1);
    cr_assert_eq(note_verify(&note, &key, NULL), KMS_OK);
    memcpy(bad, go_note, sizeof(bad));
    bad[3] = 'Y';
    cr_assert_eq(note_parse(&note, bad, strlen(bad)), KMS_OK);
    cr_assert_eq(note_verify(&note, &key, NULL), KMS_ERR_CRYPTO);
}

Test(note, knows_go_s_checksum_database)
{
    static const char text[] =
        "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
    struct note_key key;
    struct buf out = BUF_INIT;

    cr_assert_eq(note_key_parse(&key, text, strlen(text)), KMS_OK);
    cr_assert_str_eq(key.name, "sum.golang.org");
    cr_assert_eq(key.id, 0x033de0ae);
    cr_assert_eq(note_key_put(&out, &key), KMS_OK);
    cr_assert_str_eq(buf_str(&out), text);
    buf_release(&out);
}

Test(note, verifies_a_checkpoint_and_its_witness)
{
    static const char text[] = BODY "\n" LOG_SIG WITNESS_SIG;
    struct note_key log, witness;
    struct checkpoint c;
    struct note note;
    struct buf out = BUF_INIT;
    uint64_t time = 1;

    cr_assert_eq(note_key_parse(&log, log_key, strlen(log_key)), KMS_OK);
    cr_assert_eq(note_key_parse(&witness, witness_key, strlen(witness_key)), KMS_OK);
    cr_assert_eq(note_parse(&note, text, strlen(text)), KMS_OK);
    cr_assert_eq(note.n, 2);
    cr_assert_eq(note_verify(&note, &log, &time), KMS_OK);
    cr_assert_eq(time, 0);
    cr_assert_eq(note_verify(&note, &witness, &time), KMS_OK);
    cr_assert_eq(time, 1763800042);
    cr_assert_eq(checkpoint_parse(&c, note.text, note.text_len), KMS_OK);
    cr_assert_str_eq(c.origin, "kms.example.com/log/1");
    cr_assert_eq(c.size, 1000);
    cr_assert_eq(c.time, 1763800000);
    cr_assert_eq(c.root[0], 0x34);
    /* And written again it is the same. */
    cr_assert_eq(checkpoint_put(&out, &c), KMS_OK);
    cr_assert_eq(buf_putc(&out, '\n'), KMS_OK);
    cr_assert_eq(note_put_sig(&out, &log, note.sig[0].sig, note.sig[0].sig_len), KMS_OK);
    cr_assert_eq(note_put_sig(&out, &witness, note.sig[1].sig, note.sig[1].sig_len), KMS_OK);
    cr_assert_str_eq(buf_str(&out), text);
    buf_release(&out);
}

Test(note, wants_the_key_that_it_is_asked_about)
{
    static const char text[] = BODY "\n" LOG_SIG;
    static const char swapped[] =
        BODY "\n" D "witness.example.org/w1 "
             "T7vInF23hIdSGarx1ZyQpD/u5e+JovxRwTPSZv1J3xbQB7Rf8OQ4H78PVcaGMmodhJVmd"
             "X2tc/w/6WELq1z9Ts/XmQI=\n";
    struct note_key log, witness;
    struct note note;

    note_key_parse(&log, log_key, strlen(log_key));
    note_key_parse(&witness, witness_key, strlen(witness_key));
    cr_assert_eq(note_parse(&note, text, strlen(text)), KMS_OK);
    cr_assert_eq(note_verify(&note, &witness, NULL), KMS_ERR_NOT_FOUND);
    cr_assert_eq(note_parse(&note, swapped, strlen(swapped)), KMS_OK);
    cr_assert_eq(note_verify(&note, &log, NULL), KMS_ERR_NOT_FOUND);
}

struct bad {
    char name[32];
    char text[512];
    int want;
};

ParameterizedTestParameters(note, refuses)
{
    static struct bad rows[] = {
        {"empty", "", KMS_ERR_SYNTAX},
        {"no signature", "text\n\n", KMS_ERR_SYNTAX},
        {"no empty line", "text\n" LOG_SIG, KMS_ERR_SYNTAX},
        {"no last newline", "text\n\n" D "a AAAAAAA=", KMS_ERR_SYNTAX},
        {"another dash", "text\n\n- a AAAAAAA=\n", KMS_ERR_SYNTAX},
        {"no name", "text\n\n" D " AAAAAAA=\n", KMS_ERR_SYNTAX},
        {"a plus in the name", "text\n\n" D "a+b AAAAAAA=\n", KMS_ERR_SYNTAX},
        {"a no-break space in it",
         "text\n\n" D "a\xc2\xa0"
         "b AAAAAAA=\n",
         KMS_ERR_SYNTAX},
        {"no base64", "text\n\n" D "a AAAA*AA=\n", KMS_ERR_SYNTAX},
        {"too short a signature", "text\n\n" D "a AAAAAA==\n", KMS_ERR_SYNTAX},
        {"a carriage return", "text\r\n\n" D "a AAAAAAA=\n", KMS_ERR_SYNTAX},
        {"no UTF-8", "te\xff\n\n" D "a AAAAAAA=\n", KMS_ERR_SYNTAX},
        {"good", "text\n\nmore\n\n" D "a AAAAAAA=\n", KMS_OK},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct bad *b, note, refuses)
{
    struct note note;

    cr_assert_eq(note_parse(&note, b->text, strlen(b->text)), b->want, "%s", b->name);
}

ParameterizedTestParameters(note, refuses_keys)
{
    static struct bad rows[] = {
        {"empty", "", KMS_ERR_SYNTAX},
        {"no id", "name", KMS_ERR_SYNTAX},
        {"no key", "name+c74f20a3", KMS_ERR_SYNTAX},
        {"a short id", "name+c74f2a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", KMS_ERR_SYNTAX},
        {"another's id", "Peter+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
         KMS_ERR_KEY},
        {"another type", "PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
         KMS_ERR_ALGORITHM},
        {"too short",
         "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10Q=", KMS_ERR_ALGORITHM},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct bad *b, note, refuses_keys)
{
    struct note_key key;

    cr_assert_eq(note_key_parse(&key, b->text, strlen(b->text)), b->want, "%s", b->name);
}

ParameterizedTestParameters(note, refuses_checkpoints)
{
#define ROOT "NGxrnLicS3b6ydyyDNqG46AcCldBfBOQKOrNRTj96Vs="
    static struct bad rows[] = {
        {"good", "log\n0\n" ROOT "\n", KMS_OK},
        {"an unknown extension", "log\n7\n" ROOT "\nwhat ever\ntime x\n", KMS_OK},
        {"two lines", "log\n0\n", KMS_ERR_SYNTAX},
        {"no origin", "\n0\n" ROOT "\n", KMS_ERR_SYNTAX},
        {"a leading zero", "log\n01\n" ROOT "\n", KMS_ERR_SYNTAX},
        {"a sign", "log\n-1\n" ROOT "\n", KMS_ERR_SYNTAX},
        {"too large", "log\n9223372036854775808\n" ROOT "\n", KMS_ERR_SYNTAX},
        {"a short root", "log\n1\nNGxr\n", KMS_ERR_SYNTAX},
        {"an empty extension", "log\n1\n" ROOT "\n\nx\n", KMS_ERR_SYNTAX},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct bad *b, note, refuses_checkpoints)
{
    struct checkpoint c;

    cr_assert_eq(checkpoint_parse(&c, b->text, strlen(b->text)), b->want, "%s", b->name);
}
