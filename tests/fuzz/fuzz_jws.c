/*
 * fuzz_jws.c - compact JWS and tokens: no text breaks the parsers, and none verifies by a key that
 * never signed.
 */
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/jose.h"
#include "proto/json.h"
#include "proto/jws.h"
#include "proto/jwt.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static EVP_PKEY *keys[3];

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    kms_json_init();
    keys[0] = EVP_RSA_gen(2048);
    keys[1] = EVP_EC_gen("P-256");
    keys[2] = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    return 0;
}

/* The claims of a token are checked only after its signature: here the text itself stands for them.
 */
static void
check_claims(const char *text, size_t size)
{
    static const struct jwt_policy policies[] = {
        {"i", "a", "s", "org", "roles", 30, 3600},
        {NULL, NULL, NULL, "org", "roles", 0, 0},
    };
    struct jwt_identity id;
    json_t *claims;
    size_t i;

    if (kms_json_parse(&claims, text, size) != KMS_OK)
        return;
    for (i = 0; i < 2; i++)
        if (jwt_check(&id, claims, &policies[i], "c", "d", 1800000000) == KMS_OK)
            CHECK(id.subject[0] != '\0' && id.org[0] != '\0' && id.expires > 1800000000 - 30);
        else
            CHECK(id.subject[0] == '\0' && id.org[0] == '\0' && !id.admin && !id.compliance);
    json_decref(claims);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf payload = BUF_INIT;
    struct jwks *set;
    struct jws jws;
    size_t i;
    int r;

    if (jws_parse(&jws, (const char *)data, size) == KMS_OK) {
        CHECK(jose_is_plain(jws.kid, strlen(jws.kid), JOSE_KID_MAX));
        CHECK(jws.sig_len > 0 && jws.sig_len <= JWS_SIG_MAX);
        for (i = 0; i < 3; i++) {
            r = jws_verify(&jws, keys[i]);
            CHECK(r == KMS_ERR_ALGORITHM || r == KMS_ERR_CRYPTO);
        }
        (void)jws_payload(&jws, &payload);
    }
    check_claims((const char *)data, size);
    if (jwks_parse(&set, (const char *)data, size) == KMS_OK)
        CHECK(jwks_count(set) > 0 && jwks_count(set) <= JWKS_MAX);
    jwks_free(set);
    buf_release(&payload);
    return 0;
}
