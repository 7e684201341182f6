/*
 * mint.c - signs development access tokens.
 */
#include "kms/mint.h"

#include <errno.h>
#include <jansson.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdbool.h>
#include <stdio.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jws.h"
#include "proto/uri.h"

/* A key with a passphrase is refused rather than asked for: this runs in scripts. */
static int
no_passphrase(char *buf, int size, int rwflag, void *arg)
{
    return -1;
}

static int
read_key(EVP_PKEY **key, const char *file)
{
    FILE *f;

    errno = 0;
    if ((f = fopen(file, "re")) == NULL)
        return KMS_ERR_CONFIG;
    *key = PEM_read_PrivateKey(f, NULL, no_passphrase, NULL);
    fclose(f);
    if (*key != NULL)
        return KMS_OK;
    ERR_clear_error();
    errno = 0;
    return KMS_ERR_CONFIG;
}

static json_t *
make_claims(const struct mint *m, int64_t now)
{
    json_t *claims, *roles = json_array();
    char id[UUID_TEXT + 1];
    struct uuid u;
    size_t i;

    if (uuid_random(&u) != KMS_OK) {
        json_decref(roles);
        return NULL;
    }
    uuid_format(id, &u);
    for (i = 0; i < m->n_roles; i++)
        json_array_append_new(roles, json_string(m->roles[i]));
    claims =
        json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:s,s:o}", "iss", m->issuer, "aud", m->audience,
                  "sub", m->subject, "org", m->org, "iat", (json_int_t)now, "nbf", (json_int_t)now,
                  "exp", (json_int_t)(now + m->lifetime), "jti", id, "roles", roles);
    if (*m->scope != '\0' && json_object_set_new(claims, "scope", json_string(m->scope)) != 0) {
        json_decref(claims);
        return NULL;
    }
    return claims;
}

int
mint_token(struct buf *out, const struct mint *m, int64_t now)
{
    struct buf payload = BUF_INIT;
    EVP_PKEY *key = NULL;
    json_t *claims = NULL;
    int r;

    if ((r = read_key(&key, m->key_file)) != KMS_OK)
        return r;
    if ((claims = make_claims(m, now)) == NULL || kms_json_put(&payload, claims) != KMS_OK)
        r = KMS_ERR_NOMEM;
    else
        r = jws_sign(out, JWS_ES256, *m->kid == '\0' ? NULL : m->kid, "at+jwt", key, payload.data,
                     payload.len);
    json_decref(claims);
    buf_release(&payload);
    EVP_PKEY_free(key);
    return r;
}
