/*
 * bench_jose.c - what a message costs over the bare cryptography and text encoding in it.
 *
 * Prints "jose.open_seal_ratio R": the time to open and to seal a 600-byte message by the channel's
 * key (jwe_parse, jwe_open, jwe_seal_dir), divided by that of AES-256-GCM through EVP both ways,
 * with ready contexts that are given the key anew for each message, and base64url both ways.  The
 * two are timed in turns within one run; R is the quotient of the medians.
 */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"

#define MESSAGE 600
#define ROUNDS  201
#define REPEATS 500

static const char kid[] = "kms://kms.example.org/ecdhe/0b0f7fd7-9a41-4e9a-8b0f-4e1b7f0ad3b1";
static const unsigned char key[32] = "an example key of 32 bytes: ok";
static unsigned char message[MESSAGE];

static void
must(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "bench_jose: %s failed\n", what);
    exit(1);
}

static double
now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double
time_jose(const char *compact, size_t compact_len)
{
    static struct buf plain, sealed;
    double start = now();
    struct jwe jwe;
    int i;

    for (i = 0; i < REPEATS; i++) {
        plain.len = sealed.len = 0;
        must(jwe_parse(&jwe, compact, compact_len) == KMS_OK, "jwe_parse");
        must(jwe_open(&jwe, key, &plain) == KMS_OK, "jwe_open");
        must(jwe_seal_dir(&sealed, kid, key, plain.data, plain.len) == KMS_OK, "jwe_seal_dir");
    }
    return now() - start;
}

static double
time_bare(EVP_CIPHER_CTX *opening, EVP_CIPHER_CTX *sealing, const char *text, size_t text_len,
          const unsigned char *iv, unsigned char *tag)
{
    static unsigned char raw[MESSAGE], plain[MESSAGE];
    static char out[B64URL_LEN(MESSAGE)];
    double start = now();
    int i, n;

    for (i = 0; i < REPEATS; i++) {
        must(b64url_decode(raw, text, text_len) == KMS_OK, "b64url_decode");
        must(EVP_DecryptInit_ex(opening, NULL, NULL, key, iv) == 1 &&
                 EVP_CIPHER_CTX_ctrl(opening, EVP_CTRL_AEAD_SET_TAG, 16, tag) == 1 &&
                 EVP_DecryptUpdate(opening, plain, &n, raw, MESSAGE) == 1 &&
                 EVP_DecryptFinal_ex(opening, plain + n, &n) == 1,
             "decryption");
        must(EVP_EncryptInit_ex(sealing, NULL, NULL, key, iv) == 1 &&
                 EVP_EncryptUpdate(sealing, raw, &n, plain, MESSAGE) == 1 &&
                 EVP_EncryptFinal_ex(sealing, raw + n, &n) == 1 &&
                 EVP_CIPHER_CTX_ctrl(sealing, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1,
             "encryption");
        b64url_encode(out, raw, MESSAGE);
    }
    return now() - start;
}

static int
by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int
main(void)
{
    static double jose[ROUNDS], bare[ROUNDS];
    static unsigned char raw[MESSAGE], iv[JWE_IV_LEN], tag[JWE_TAG_LEN];
    static char text[B64URL_LEN(MESSAGE)];
    struct buf compact = BUF_INIT;
    EVP_CIPHER_CTX *opening = NULL, *sealing = NULL;
    double jose_us, bare_us;
    int i, n;

    kms_json_init();
    for (i = 0; i < MESSAGE; i++)
        message[i] = (unsigned char)(' ' + i % 90);
    must(jwe_seal_dir(&compact, kid, key, message, MESSAGE) == KMS_OK, "jwe_seal_dir");

    must((opening = EVP_CIPHER_CTX_new()) != NULL && (sealing = EVP_CIPHER_CTX_new()) != NULL &&
             EVP_DecryptInit_ex(opening, EVP_aes_256_gcm(), NULL, key, iv) == 1 &&
             EVP_EncryptInit_ex(sealing, EVP_aes_256_gcm(), NULL, key, iv) == 1 &&
             EVP_EncryptUpdate(sealing, raw, &n, message, MESSAGE) == 1 &&
             EVP_EncryptFinal_ex(sealing, raw + n, &n) == 1 &&
             EVP_CIPHER_CTX_ctrl(sealing, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1,
         "preparation");
    b64url_encode(text, raw, MESSAGE);

    for (i = 0; i < ROUNDS; i++) {
        jose[i] = time_jose((const char *)compact.data, compact.len);
        bare[i] = time_bare(opening, sealing, text, sizeof(text), iv, tag);
    }
    qsort(jose, ROUNDS, sizeof(jose[0]), by_size);
    qsort(bare, ROUNDS, sizeof(bare[0]), by_size);
    jose_us = jose[ROUNDS / 2] / REPEATS * 1e6;
    bare_us = bare[ROUNDS / 2] / REPEATS * 1e6;
    fprintf(stderr, "bench_jose: %.2f us a message opened and sealed, bare %.2f us\n", jose_us,
            bare_us);
    printf("jose.open_seal_ratio %.2f\n", jose_us / bare_us);

    EVP_CIPHER_CTX_free(opening);
    EVP_CIPHER_CTX_free(sealing);
    buf_release(&compact);
    return 0;
}
