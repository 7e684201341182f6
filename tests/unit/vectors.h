/*
 * vectors.h - other people's test vectors, read in place, and a few shorthands of the tests that
 * use them.
 *
 * The vectors are not part of this repository: KMS_VECTORS names their folder (default:
 * shared/vectors beside the source tree).  Where there is none the tests skip and say so.  The
 * tests' own data is in tests/unit/data.
 */
#ifndef TESTS_UNIT_VECTORS_H
#define TESTS_UNIT_VECTORS_H

#include <criterion/criterion.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stddef.h>
#include <stdio.h>

#include "proto/buf.h"

/* The folder, or NULL. */
const char *vectors_dir(void);

/* At the head of a test that needs it. */
#define NEED_VECTORS()                                                                             \
    do {                                                                                           \
        if (vectors_dir() == NULL) {                                                               \
            fputs("skipped: no test vectors\n", stderr); /* Criterion says it only when verbose */ \
            cr_skip_test("no test vectors: set KMS_VECTORS to their folder");                      \
        }                                                                                          \
    } while (0)

/* A JSON file of the folder, or of the tests' data; fails the test when it cannot be read.  A new
 * reference. */
json_t *vectors_load(const char *name);
json_t *data_load(const char *name);

/* The string member of an object; fails the test when there is none. */
const char *text_of(const json_t *obj, const char *name);

/* Appends the bytes that hexadecimal or base64url text stands for; fails the test when it is
 * neither. */
void put_hex(struct buf *out, const char *hex);
void put_b64url(struct buf *out, const char *text);

/* A private key of an RSA or EC P-256 JWK.  Only tests have such; EVP_PKEY_free. */
EVP_PKEY *private_from_jwk(const json_t *jwk);
/* An EC P-256 private key by its scalar (at most 33 bytes, big-endian). */
EVP_PKEY *p256_from_scalar(const unsigned char *d, size_t len);

#endif
