/*
 * test_wipe.c - where a key was, nothing of it is left: after each use this process looks for it in
 * all the memory that it may write.  Keys are kept here under a mask, so that the test does not
 * find its own copy.
 */
#include <criterion/criterion.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/kdf.h"

#define MASK 0x5a
#define PART 16 /* as much of a key as a round key holds */

/* A sanitiser keeps what was freed, and maps far too much memory to look through. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITISED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITISED 1
#endif
#endif
#ifdef SANITISED
#define NEED_PLAIN_MEMORY() cr_skip_test("not with AddressSanitizer")
#else
#define NEED_PLAIN_MEMORY() ((void)0)
#endif

static size_t
found_in(const unsigned char *from, const unsigned char *to, const unsigned char masked[PART])
{
    size_t n = 0, i;

    for (; from + PART <= to; from++) {
        for (i = 0; i < PART && from[i] == (masked[i] ^ MASK); i++)
            ;
        n += i == PART;
    }
    return n;
}

/* How often the bytes under the mask stand somewhere in writable memory. */
static size_t
found(const unsigned char masked[PART])
{
    unsigned long from, to;
    char line[512], mode[8];
    size_t n = 0;
    FILE *maps = fopen("/proc/self/maps", "r");

    cr_assert_not_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL)
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) == 3 && strncmp(mode, "rw", 2) == 0)
            n += found_in((const unsigned char *)from, (const unsigned char *)to, masked);
    fclose(maps);
    return n;
}

static void
mask(unsigned char *out, const void *in, size_t len)
{
    size_t i;

    for (i = 0; i < len; i++)
        out[i] = ((const unsigned char *)in)[i] ^ MASK;
}

static void
setup(void)
{
    kms_json_init();
    cr_assert_neq(secret_heap_init(65536), KMS_ERR_NOMEM);
}

TestSuite(wipe, .init = setup);

static struct secret *
random_secret(unsigned char masked[SECRET_LEN])
{
    struct secret *s = secret_new();

    cr_assert_not_null(s);
    cr_assert_eq(RAND_bytes(masked, SECRET_LEN), 1);
    mask(s->b, masked, SECRET_LEN);
    return s;
}

Test(wipe, a_message_key_is_nowhere_but_in_its_secret)
{
    struct buf compact = BUF_INIT, plain = BUF_INIT;
    unsigned char masked[SECRET_LEN];
    struct secret *key;
    struct jwe jwe;

    NEED_PLAIN_MEMORY();
    key = random_secret(masked);
    cr_assert_eq(jwe_seal_dir(&compact, "k", key->b, "text", 4), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    cr_assert_eq(jwe_open(&jwe, key->b, &plain), KMS_OK);
    jwe.tag[0] ^= 1;
    cr_assert_eq(jwe_open(&jwe, key->b, &plain), KMS_ERR_CRYPTO);
    cr_expect_eq(found(masked), 1, "found %zu times", found(masked));
    cr_expect_eq(found(masked + PART), 1, "found %zu times", found(masked + PART));
    secret_free(key);
    cr_expect_eq(found(masked), 0);
    cr_expect_eq(found(masked + PART), 0);
    buf_release(&compact);
    buf_release(&plain);
}

Test(wipe, a_content_key_that_went_through_json_and_a_message_is_gone)
{
    struct buf json = BUF_INIT, compact = BUF_INIT, plain = BUF_INIT;
    unsigned char masked[SECRET_LEN], masked_text[B64URL_LEN(SECRET_LEN)], other[SECRET_LEN];
    struct secret *key, *again, *channel;
    json_t *jwk, *read;
    struct jwe jwe;

    NEED_PLAIN_MEMORY();
    key = random_secret(masked);
    channel = random_secret(other);
    jwk = jwk_from_oct("k", key->b);
    mask(masked_text, json_string_value(json_object_get(jwk, "k")), sizeof(masked_text));
    cr_assert_eq(kms_json_put(&json, jwk), KMS_OK);
    cr_assert_eq(jwe_seal_dir(&compact, "c", channel->b, json.data, json.len), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    cr_assert_eq(jwe_open(&jwe, channel->b, &plain), KMS_OK);
    cr_assert_eq(kms_json_parse(&read, buf_str(&plain), plain.len), KMS_OK);
    cr_assert_eq(jwk_get_oct(&again, read), KMS_OK);
    cr_assert_gt(found(masked), 0, "the search finds what is there");
    cr_assert_gt(found(masked_text), 0);

    json_decref(jwk);
    json_decref(read);
    buf_release(&json);
    buf_release(&compact);
    buf_release(&plain);
    secret_free(key);
    secret_free(again);
    secret_free(channel);
    cr_expect_eq(found(masked), 0);
    cr_expect_eq(found(masked + PART), 0);
    cr_expect_eq(found(masked_text), 0, "as text");
    cr_expect_eq(found(masked_text + PART), 0, "as text");
}

Test(wipe, a_channel_key_is_nowhere_but_in_its_secret)
{
    EVP_PKEY *mine, *peer;
    unsigned char masked[SECRET_LEN];
    struct secret *key;

    NEED_PLAIN_MEMORY();
    mine = ecdh_generate();
    peer = ecdh_generate();
    cr_assert_eq(ecdh_channel_key(&key, mine, peer), KMS_OK);
    mask(masked, key->b, SECRET_LEN);
    cr_expect_eq(found(masked), 1);
    cr_expect_eq(found(masked + PART), 1);
    secret_free(key);
    cr_expect_eq(found(masked), 0);
    EVP_PKEY_free(mine);
    EVP_PKEY_free(peer);
}
