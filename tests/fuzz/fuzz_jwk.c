/*
 * fuzz_jwk.c - JSON Web Keys: no text breaks the reader; what is taken comes out as it went in and
 * has one thumbprint; a P-256 key can be agreed with.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/kdf.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static EVP_PKEY *mine;

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    kms_json_init();
    CHECK(secret_heap_init(65536) != KMS_ERR_NOMEM);
    CHECK((mine = ecdh_generate()) != NULL);
    return 0;
}

static void
check_public(const json_t *jwk, EVP_PKEY *key)
{
    unsigned char a[JWK_THUMBPRINT_LEN], b[JWK_THUMBPRINT_LEN];
    static const char *const names[] = {"kty", "n", "e", "crv", "x", "y"};
    json_t *again = jwk_from_public(key);
    size_t i;

    CHECK(again != NULL);
    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (json_object_get(again, names[i]) != NULL)
            CHECK(json_equal(json_object_get(again, names[i]), json_object_get(jwk, names[i])));
    CHECK(jwk_thumbprint(a, jwk) == KMS_OK && jwk_thumbprint(b, again) == KMS_OK);
    CHECK(memcmp(a, b, sizeof(a)) == 0);
    json_decref(again);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct secret *oct, *channel;
    EVP_PKEY *key;
    json_t *jwk;

    if (kms_json_parse(&jwk, (const char *)data, size) != KMS_OK)
        return 0;
    CHECK((jwk_get_public(&key, jwk) == KMS_OK) == (key != NULL));
    if (key != NULL)
        check_public(jwk, key);
    EVP_PKEY_free(key);
    if (jwk_get_p256(&key, jwk) == KMS_OK) {
        CHECK(ecdh_channel_key(&channel, mine, key) == KMS_OK);
        secret_free(channel);
    }
    EVP_PKEY_free(key);
    CHECK((jwk_get_oct(&oct, jwk) == KMS_OK) == (oct != NULL));
    secret_free(oct);
    json_decref(jwk);
    return 0;
}
