/*
 * fuzz_proof.c - what a service sends of itself: no x5c, certificate or claim breaks its reader,
 * and what is taken is what it must be.  The first byte chooses: a certificate in DER, the claims
 * of a proof that a good key signs, a proof as a whole, or a jwk.
 */
#include <openssl/ec.h>
#include <openssl/err.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jws.h"
#include "proto/kdf.h"
#include "proto/proof.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

#define AUD "kms://kms.example.org"
#define NOW INT64_C(1795355700)

static const unsigned char cnf[32] = "the ephemeral key's thumbprint 1";
static EVP_PKEY *mine;

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    kms_json_init();
    CHECK((mine = ecdh_generate()) != NULL);
    return 0;
}

static void
check_certificate(const X509 *cert)
{
    char identity[CERT_IDENTITY_MAX + 1];
    unsigned char digest[32], serial[CERT_SERIAL_MAX];
    int64_t ms;
    size_t len;

    CHECK((cert_identity(identity, cert) == KMS_OK) == (strchr(identity, ':') != NULL));
    CHECK(strlen(identity) <= CERT_IDENTITY_MAX);
    if (cert_serial(serial, &len, cert) == KMS_OK)
        CHECK(len >= 1 && len <= CERT_SERIAL_MAX && (len == 1 || serial[0] != 0));
    CHECK(cert_issuer_hash(digest, cert) == KMS_OK);
    (void)cert_key_thumbprint(digest, cert);
    (void)cert_not_after(&ms, cert);
    CHECK(proof_jti_hash(digest, cert, "jti") == KMS_OK);
}

static void
check_jwk(const json_t *jwk)
{
    unsigned char thumb[JWK_THUMBPRINT_LEN], of_leaf[JWK_THUMBPRINT_LEN];
    STACK_OF(X509) * chain;
    int i, r = x5c_parse(&chain, jwk);

    CHECK((r == KMS_OK) == (chain != NULL));
    if (chain == NULL) {
        (void)service_jwk_thumbprint(thumb, jwk);
        return;
    }
    CHECK(sk_X509_num(chain) >= 1 && sk_X509_num(chain) <= X5C_CERTS_MAX);
    CHECK(service_jwk_thumbprint(thumb, jwk) == KMS_OK);
    if (cert_key_thumbprint(of_leaf, sk_X509_value(chain, 0)) == KMS_OK)
        CHECK(memcmp(thumb, of_leaf, sizeof(thumb)) == 0);
    for (i = 0; i < sk_X509_num(chain); i++)
        check_certificate(sk_X509_value(chain, i));
    x5c_free(chain);
}

static void
check_proof(const char *text)
{
    char jti[PROOF_JTI_MAX + 1];
    int r = proof_verify(jti, text, mine, AUD, cnf, NOW);

    CHECK((r == KMS_OK) == (jti[0] != '\0'));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf text = BUF_INIT, plain = BUF_INIT;
    const unsigned char *der = data + 1;
    json_t *jwk;
    X509 *cert;

    if (size < 1)
        return 0;
    switch (data[0] % 5) {
    case 0:
        if ((cert = d2i_X509(NULL, &der, (long)size - 1)) != NULL)
            check_certificate(cert);
        X509_free(cert);
        ERR_clear_error(); /* d2i's, not ours */
        break;
    case 1:
        CHECK(jws_sign(&text, JWS_ES256, NULL, NULL, mine, data + 1, size - 1) == KMS_OK);
        check_proof(buf_str(&text));
        break;
    case 2:
        CHECK(buf_put(&text, data + 1, size - 1) == KMS_OK);
        check_proof(buf_str(&text));
        break;
    case 3:
        if (kms_json_parse(&jwk, (const char *)data + 1, size - 1) == KMS_OK)
            check_jwk(jwk);
        json_decref(jwk);
        break;
    case 4:
        if (jwe_open_to((const char *)data + 1, size - 1, mine, &plain) != KMS_OK)
            CHECK(plain.len == 0);
        break;
    }
    CHECK(ERR_peek_error() == 0);
    buf_release(&text);
    buf_release(&plain);
    return 0;
}
