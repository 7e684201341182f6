/* test_kdf.c - the channel's key agreement. */
#include <criterion/criterion.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <string.h>

#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/kdf.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

static void
setup(void)
{
    kms_json_init();
    cr_assert_neq(secret_heap_init(65536), KMS_ERR_NOMEM);
}

TestSuite(kdf, .init = setup);

/* RFC 5869 appendix A; A.4 to A.7 are SHA-1. */
Test(kdf, hkdf_gives_the_examples_of_rfc_5869)
{
    static const struct {
        const char *name, *ikm, *salt, *info, *okm;
    } rows[] = {
        {"A.1", "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "000102030405060708090a0b0c",
         "f0f1f2f3f4f5f6f7f8f9",
         "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"},
        {"A.2",
         "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2"
         "c"
         "2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f",
         "606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8"
         "c"
         "8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
         "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbd"
         "c"
         "dddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
         "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65"
         "e"
         "590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"},
        {"A.3", "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "", "",
         "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"},
    };
    struct buf ikm = BUF_INIT, salt = BUF_INIT, info = BUF_INIT, okm = BUF_INIT;
    unsigned char out[128];
    size_t i;

    for (i = 0; i < N(rows); i++) {
        put_hex(&ikm, rows[i].ikm);
        put_hex(&salt, rows[i].salt);
        put_hex(&info, rows[i].info);
        put_hex(&okm, rows[i].okm);
        cr_assert_eq(
            hkdf_sha256(out, okm.len, ikm.data, ikm.len, salt.data, salt.len, info.data, info.len),
            KMS_OK, "%s", rows[i].name);
        cr_expect_eq(memcmp(out, okm.data, okm.len), 0, "%s", rows[i].name);
        buf_release(&ikm);
        buf_release(&salt);
        buf_release(&info);
        buf_release(&okm);
    }
}

Test(kdf, hkdf_gives_at_most_255_blocks)
{
    static unsigned char out[255 * 32 + 1];

    cr_expect_eq(hkdf_sha256(out, 255 * 32, out, 1, NULL, 0, NULL, 0), KMS_OK);
    cr_expect_eq(hkdf_sha256(out, 255 * 32 + 1, out, 1, NULL, 0, NULL, 0), KMS_ERR_LENGTH);
    cr_expect_eq(hkdf_sha256(out, 0, out, 1, NULL, 0, NULL, 0), KMS_ERR_LENGTH);
    cr_expect_eq(hkdf_sha256(out, 32, NULL, 0, NULL, 0, NULL, 0), KMS_OK, "an empty key");
}

Test(kdf, both_sides_of_a_channel_get_one_key_and_a_third_gets_another)
{
    EVP_PKEY *a = ecdh_generate(), *b = ecdh_generate(), *c = ecdh_generate(), *a_public;
    struct secret *ab, *ba, *ca;
    json_t *jwk = jwk_from_public(a);

    cr_assert_eq(jwk_get_p256(&a_public, jwk), KMS_OK);
    cr_assert_eq(ecdh_channel_key(&ab, a, b), KMS_OK);
    cr_assert_eq(ecdh_channel_key(&ba, b, a_public), KMS_OK);
    cr_assert_eq(ecdh_channel_key(&ca, c, a_public), KMS_OK);
    cr_expect_eq(memcmp(ab->b, ba->b, SECRET_LEN), 0);
    cr_expect_neq(memcmp(ab->b, ca->b, SECRET_LEN), 0);
    secret_free(ab);
    secret_free(ba);
    secret_free(ca);
    json_decref(jwk);
    EVP_PKEY_free(a);
    EVP_PKEY_free(b);
    EVP_PKEY_free(c);
    EVP_PKEY_free(a_public);
}

/* Made by node-kms 0.4.1's KMS.Context.deriveEphemeralKey with node-jose 2.2.0; see data/README.md.
 */
Test(kdf, the_channel_key_is_the_one_that_node_kms_derives)
{
    json_t *data = data_load("channel.json"), *v;
    struct buf want = BUF_INIT;
    struct secret *got;
    EVP_PKEY *mine, *peer;
    size_t i;

    cr_assert_gt(json_array_size(data), 0);
    json_array_foreach(data, i, v)
    {
        mine = private_from_jwk(json_object_get(v, "client"));
        cr_assert_eq(jwk_get_p256(&peer, json_object_get(v, "server")), KMS_OK);
        cr_assert_eq(ecdh_channel_key(&got, mine, peer), KMS_OK);
        put_b64url(&want, text_of(v, "k"));
        cr_expect_eq(memcmp(got->b, want.data, SECRET_LEN), 0, "row %zu", i);
        buf_release(&want);
        secret_free(got);
        EVP_PKEY_free(mine);
        EVP_PKEY_free(peer);
    }
    json_decref(data);
}

Test(kdf, a_peer_of_another_kind_is_refused)
{
    EVP_PKEY *mine = ecdh_generate(), *p384 = EVP_EC_gen("P-384"),
             *x25519 = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    struct secret *key;

    cr_expect_eq(ecdh_channel_key(&key, mine, p384), KMS_ERR_KEY);
    cr_expect_null(key);
    cr_expect_eq(ecdh_channel_key(&key, mine, x25519), KMS_ERR_KEY);
    cr_expect_null(key);
    cr_expect_eq(ERR_peek_error(), 0);
    EVP_PKEY_free(mine);
    EVP_PKEY_free(p384);
    EVP_PKEY_free(x25519);
}

/* RFC 7518 appendix C: Alice's ephemeral pair, Bob's pair, A128GCM. */
Test(kdf, concat_kdf_gives_the_example_of_rfc_7518)
{
    json_t *alice = json_pack("{s:s,s:s,s:s,s:s,s:s}", "kty", "EC", "crv", "P-256", "x",
                              "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0", "y",
                              "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps", "d",
                              "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo");
    json_t *bob = json_pack("{s:s,s:s,s:s,s:s}", "kty", "EC", "crv", "P-256", "x",
                            "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ", "y",
                            "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck");
    EVP_PKEY *mine = private_from_jwk(alice), *peer;
    static const unsigned char shared[32] = {158, 86,  217, 29,  129, 113, 53,  211, 114, 131, 66,
                                             131, 191, 132, 38,  156, 251, 49,  110, 163, 218, 128,
                                             106, 72,  246, 218, 167, 121, 140, 254, 144, 196};
    unsigned char z[32], out[16];
    struct buf want = BUF_INIT;

    cr_assert_eq(jwk_get_p256(&peer, bob), KMS_OK);
    cr_assert_eq(ecdh_shared(z, mine, peer), KMS_OK);
    cr_expect_arr_eq(z, shared, sizeof(z));
    cr_assert_eq(concat_kdf_sha256(out, sizeof(out), z, sizeof(z), "A128GCM",
                                   (const unsigned char *)"Alice", 5, (const unsigned char *)"Bob",
                                   3),
                 KMS_OK);
    put_b64url(&want, "VqqN6vgjbSBcIijNcacQGg");
    cr_assert_eq(want.len, sizeof(out));
    cr_expect_arr_eq(out, want.data, sizeof(out));
    buf_release(&want);
    json_decref(alice);
    json_decref(bob);
    EVP_PKEY_free(mine);
    EVP_PKEY_free(peer);
}

/* A second opinion on what the RFC's example does not show: 32 bytes, no infos.  SHA-256 of a round
 * number, z and OtherInfo. */
Test(kdf, concat_kdf_of_a256gcm_is_one_round_of_sha_256)
{
    unsigned char text[4 + 32 + 4 + 7 + 4 + 4 + 4] = {0, 0, 0, 1}, want[32], got[32], *p;

    memset(text + 4, 0x5a, 32);
    p = text + 36;
    memcpy(p,
           "\0\0\0\7"
           "A256GCM"
           "\0\0\0\0"
           "\0\0\0\0"
           "\0\0\1\0",
           23);
    EVP_Q_digest(NULL, "SHA256", NULL, text, sizeof(text), want, NULL);
    cr_assert_eq(concat_kdf_sha256(got, 32, text + 4, 32, "A256GCM", NULL, 0, NULL, 0), KMS_OK);
    cr_expect_arr_eq(got, want, 32);
    cr_expect_eq(concat_kdf_sha256(got, 0, text, 32, "A256GCM", NULL, 0, NULL, 0), KMS_ERR_LENGTH);
}
