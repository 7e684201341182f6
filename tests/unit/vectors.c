/* vectors.c - other people's test vectors, read in place. */
#include "tests/unit/vectors.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/param_build.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/b64.h"
#include "proto/err.h"

const char *
vectors_dir(void)
{
    const char *dir = getenv("KMS_VECTORS");

    if (dir == NULL)
        dir = VECTORS_DIR;
    return access(dir, R_OK | X_OK) == 0 ? dir : NULL;
}

static json_t *
load(const char *dir, const char *name)
{
    char path[4096];
    json_error_t error;
    json_t *v;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    v = json_load_file(path, 0, &error);
    cr_assert_not_null(v, "%s:%d: %s", path, error.line, error.text);
    return v;
}

json_t *
vectors_load(const char *name)
{
    return load(vectors_dir(), name);
}

json_t *
data_load(const char *name)
{
    return load(DATA_DIR, name);
}

const char *
text_of(const json_t *obj, const char *name)
{
    const char *text = json_string_value(json_object_get(obj, name));

    cr_assert_not_null(text, "a vector has no string \"%s\"", name);
    return text;
}

void
put_hex(struct buf *out, const char *hex)
{
    unsigned byte;

    cr_assert_eq(strlen(hex) % 2, 0);
    for (; *hex != '\0'; hex += 2) {
        cr_assert_eq(sscanf(hex, "%2x", &byte), 1);
        cr_assert_eq(buf_putc(out, (char)byte), KMS_OK);
    }
}

void
put_b64url(struct buf *out, const char *text)
{
    cr_assert_eq(b64url_get(out, text, strlen(text)), KMS_OK, "%s", text);
}

static BIGNUM *
number_of(const json_t *jwk, const char *name)
{
    struct buf bytes = BUF_INIT;
    BIGNUM *n;

    put_b64url(&bytes, text_of(jwk, name));
    n = BN_bin2bn(bytes.data, (int)bytes.len, NULL);
    buf_release(&bytes);
    return n;
}

static EVP_PKEY *
make(const char *type, OSSL_PARAM_BLD *bld)
{
    OSSL_PARAM *params = OSSL_PARAM_BLD_to_param(bld);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, type, NULL);
    EVP_PKEY *key = NULL;

    cr_assert_eq(EVP_PKEY_fromdata_init(ctx), 1);
    cr_assert_eq(EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_KEYPAIR, params), 1);
    EVP_PKEY_CTX_free(ctx);
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(bld);
    return key;
}

static EVP_PKEY *
rsa_private(const json_t *jwk)
{
    OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
    BIGNUM *n = number_of(jwk, "n"), *e = number_of(jwk, "e"), *d = number_of(jwk, "d");
    EVP_PKEY *key;

    OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_N, n);
    OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_E, e);
    OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_D, d);
    key = make("RSA", bld);
    BN_free(n);
    BN_free(e);
    BN_free(d);
    return key;
}

EVP_PKEY *
p256_from_scalar(const unsigned char *bytes, size_t len)
{
    EC_GROUP *group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1);
    OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
    BIGNUM *d = BN_bin2bn(bytes, (int)len, NULL);
    EC_POINT *point = EC_POINT_new(group);
    unsigned char pub[65];
    EVP_PKEY *key;

    cr_assert_eq(EC_POINT_mul(group, point, d, NULL, NULL, NULL), 1);
    cr_assert_eq(
        EC_POINT_point2oct(group, point, POINT_CONVERSION_UNCOMPRESSED, pub, sizeof(pub), NULL),
        sizeof(pub));
    OSSL_PARAM_BLD_push_utf8_string(bld, OSSL_PKEY_PARAM_GROUP_NAME, "P-256", 0);
    OSSL_PARAM_BLD_push_octet_string(bld, OSSL_PKEY_PARAM_PUB_KEY, pub, sizeof(pub));
    OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_PRIV_KEY, d);
    key = make("EC", bld);
    BN_free(d);
    EC_POINT_free(point);
    EC_GROUP_free(group);
    return key;
}

EVP_PKEY *
private_from_jwk(const json_t *jwk)
{
    struct buf d = BUF_INIT;
    EVP_PKEY *key;

    if (strcmp(text_of(jwk, "kty"), "RSA") == 0)
        return rsa_private(jwk);
    put_b64url(&d, text_of(jwk, "d"));
    key = p256_from_scalar(d.data, d.len);
    buf_release(&d);
    return key;
}
