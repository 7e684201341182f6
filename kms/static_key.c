/*
 * static_key.c - modulus and exponent from hsmd to PEM.
 */
#include "kms/static_key.h"

#include <openssl/pem.h>

#include "hsm/hsm.h"
#include "proto/err.h"
#include "proto/jwk.h"

void
static_key_put(json_t *o, const struct hsm_info *info)
{
    json_t *jwk;
    EVP_PKEY *key = NULL;
    BIO *mem = NULL;
    char *text;
    long len;

    if (info->static_n_len == 0)
        return;
    jwk = jwk_from_rsa(info->static_n, info->static_n_len, info->static_e, info->static_e_len);
    if (jwk != NULL && jwk_get_public(&key, jwk) == KMS_OK &&
        (mem = BIO_new(BIO_s_mem())) != NULL && PEM_write_bio_PUBKEY(mem, key) == 1 &&
        (len = BIO_get_mem_data(mem, &text)) > 0)
        json_object_set_new(o, "static_public_key", json_stringn(text, (size_t)len));
    BIO_free(mem);
    EVP_PKEY_free(key);
    json_decref(jwk);
}
