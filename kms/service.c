/* service.c - certificates and proofs of cloud services. */
#include "kms/service.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "kms/config.h"
#include "kms/service_ca.h"
#include "proto/err.h"

struct services {
    struct service_ca *ca; /* owned; NULL: nobody is a service */
    uint64_t generation;   /* of what is believed: what was judged by an older one is judged anew */
};

/* A TLS leaf's verdict, kept in the X509 itself: it goes with the connection. */
struct judged {
    uint64_t generation;
    const char *why; /* NULL: good */
    struct service_cert cert;
};

static uint64_t generations;
static int judged_index = -1;

static void
judged_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp)
{
    free(ptr);
}

int
services_new(struct services **out, const struct config *c, const char **why)
{
    struct services *ss = calloc(1, sizeof(*ss));
    const char *ca = config_services_ca(c);
    int r = KMS_ERR_NOMEM;

    *out = NULL;
    *why = "out of memory";
    if (judged_index < 0)
        judged_index = X509_get_ex_new_index(0, NULL, NULL, NULL, judged_free);
    if (ss == NULL || judged_index < 0)
        goto fail;
    ss->generation = ++generations;
    if (ca != NULL && ca[0] != '\0' &&
        (r = service_ca_new(&ss->ca, ca, c->services_crl, why)) != KMS_OK)
        goto fail;
    *out = ss;
    return KMS_OK;
fail:
    free(ss);
    return r;
}

void
services_free(struct services *ss)
{
    if (ss == NULL)
        return;
    service_ca_free(ss->ca);
    free(ss);
}

void
services_refresh(struct services *ss)
{
    if (ss->ca != NULL && service_ca_refresh(ss->ca))
        ss->generation = ++generations;
}

/* NULL: the chain is good now; else what is wrong. */
static const char *
verify_chain(struct services *ss, X509 *leaf, STACK_OF(X509) * chain, int64_t now_ms)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    const char *why = "the certificate is not under the services' CA, or not good for a client";

    if (ctx == NULL || X509_STORE_CTX_init(ctx, service_ca_store(ss->ca), leaf, chain) != 1) {
        X509_STORE_CTX_free(ctx);
        return "out of memory";
    }
    X509_STORE_CTX_set_time(ctx, 0, (time_t)(now_ms / 1000));
    if (X509_verify_cert(ctx) == 1)
        why = NULL;
    else
        switch (X509_STORE_CTX_get_error(ctx)) {
        case X509_V_ERR_CERT_HAS_EXPIRED:
            why = "the certificate has expired";
            break;
        case X509_V_ERR_CERT_NOT_YET_VALID:
            why = "the certificate is not good yet";
            break;
        case X509_V_ERR_CERT_REVOKED:
            why = "the certificate is revoked";
            break;
        case X509_V_ERR_UNABLE_TO_GET_CRL:
        case X509_V_ERR_CRL_HAS_EXPIRED:
        case X509_V_ERR_CRL_NOT_YET_VALID:
            why = "there is no revocation list of the certificate's CA that is good now";
            break;
        default:
            break;
        }
    X509_STORE_CTX_free(ctx);
    ERR_clear_error();
    /* A CA could make itself any identity. */
    if (why == NULL && X509_check_ca(leaf) != 0)
        why = "the certificate is a CA's";
    return why;
}

/* NULL: *out is filled. */
static const char *
judge(struct services *ss, struct service_cert *out, X509 *leaf, STACK_OF(X509) * chain,
      int64_t now_ms)
{
    const char *why;

    if (ss->ca == NULL)
        return "no CA of services is configured";
    if ((why = verify_chain(ss, leaf, chain, now_ms)) != NULL)
        return why;
    if (cert_identity(out->identity, leaf) != KMS_OK)
        return "the certificate has not exactly one SAN URI";
    if (cert_issuer_hash(out->issuer, leaf) != KMS_OK ||
        cert_serial(out->serial, &out->serial_len, leaf) != KMS_OK ||
        cert_key_thumbprint(out->thumb, leaf) != KMS_OK ||
        cert_not_after(&out->not_after, leaf) != KMS_OK)
        return "the certificate's key is of a kind that is not supported, or its form is wrong";
    return NULL;
}

const struct service_cert *
services_of_chain(struct services *ss, STACK_OF(X509) * chain, int64_t now_ms, const char **why)
{
    X509 *leaf = chain != NULL ? sk_X509_value(chain, 0) : NULL;
    struct judged *j;

    *why = NULL;
    if (leaf == NULL)
        return NULL;
    if ((j = X509_get_ex_data(leaf, judged_index)) == NULL) {
        if ((j = calloc(1, sizeof(*j))) == NULL || X509_set_ex_data(leaf, judged_index, j) != 1) {
            free(j);
            *why = "out of memory";
            return NULL;
        }
    }
    if (j->generation != ss->generation) {
        j->why = judge(ss, &j->cert, leaf, chain, now_ms);
        j->generation = ss->generation;
    }
    if ((*why = j->why) != NULL)
        return NULL;
    /* What was good when it was judged, and ends by the clock alone. */
    if (j->cert.not_after <= now_ms)
        *why = "the certificate has expired";
    else if (service_ca_until(ss->ca) <= now_ms)
        *why = "there is no revocation list of the certificate's CA that is good now";
    return *why == NULL ? &j->cert : NULL;
}

static const char *
proof_why(int err)
{
    switch (err) {
    case KMS_ERR_EXPIRED:
        return "client.credential.proof is too old";
    case KMS_ERR_EARLY:
        return "client.credential.proof is of the future";
    case KMS_ERR_AUDIENCE:
        return "client.credential.proof is for another server";
    default:
        return "client.credential.proof does not prove that the certificate's owner asks for this "
               "ephemeral key";
    }
}

int
services_prove(struct services *ss, struct service_cert *out, unsigned char jti_hash[32],
               const json_t *jwk, const char *proof, EVP_PKEY *ephemeral, const char *aud,
               int64_t now_ms, const char **why)
{
    unsigned char cnf[JWK_THUMBPRINT_LEN];
    char jti[PROOF_JTI_MAX + 1];
    STACK_OF(X509) *chain = NULL;
    X509 *leaf;
    int r;

    if (proof == NULL) {
        *why = "client.credential.proof is missing";
        return KMS_ERR_MEMBER;
    }
    *why = "client.credential.jwk is no public key with its certificates as x5c";
    if ((r = x5c_parse(&chain, jwk)) != KMS_OK)
        return r;
    leaf = sk_X509_value(chain, 0);
    if ((*why = judge(ss, out, leaf, chain, now_ms)) != NULL) {
        r = KMS_ERR_CRYPTO;
    } else {
        if ((r = jwk_thumbprint_key(cnf, ephemeral)) == KMS_OK)
            r = proof_verify(jti, proof, X509_get0_pubkey(leaf), aud, cnf, now_ms / 1000);
        *why = proof_why(r);
        if (r == KMS_OK)
            r = proof_jti_hash(jti_hash, leaf, jti);
    }
    x5c_free(chain);
    return r;
}
