/* proof.c - x5c, the proof of a service, and what is read out of its certificate. */
#include "proto/proof.h"

#include <openssl/err.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jws.h"
#include "proto/uri.h"

#define AUD_MAX 1024

/* x5c. */

static int
certificate_get(X509 **out, const json_t *item)
{
    struct buf der = BUF_INIT;
    const unsigned char *p;
    int r;

    *out = NULL;
    if (!json_is_string(item))
        return KMS_ERR_MEMBER;
    if (json_string_length(item) == 0 || json_string_length(item) > (X5C_CERT_MAX + 2) / 3 * 4)
        return KMS_ERR_LENGTH;
    if ((r = b64_get(&der, json_string_value(item), json_string_length(item))) == KMS_OK) {
        p = der.data;
        /* One certificate, and nothing behind it. */
        if ((*out = d2i_X509(NULL, &p, (long)der.len)) == NULL || p != der.data + der.len) {
            X509_free(*out);
            *out = NULL;
            r = KMS_ERR_SYNTAX;
        }
    }
    buf_release(&der);
    if (r != KMS_OK)
        ERR_clear_error();
    return r;
}

/*
 * Whether the jwk is the leaf's key, by their thumbprints.  Nothing here is dear: strangers send
 * these, and the key's mathematics are for the CA that certified it.
 */
static int
check_leaf(const X509 *leaf, const json_t *jwk)
{
    unsigned char ours[JWK_THUMBPRINT_LEN], theirs[JWK_THUMBPRINT_LEN];
    int r;

    if ((r = jwk_check_public(jwk)) != KMS_OK ||
        (r = service_jwk_thumbprint(theirs, jwk)) != KMS_OK)
        return r;
    r = cert_key_thumbprint(ours, leaf);
    if (r == KMS_ERR_ALGORITHM || (r == KMS_OK && memcmp(ours, theirs, sizeof(ours)) != 0))
        return KMS_ERR_MEMBER;
    return r;
}

int
x5c_parse(STACK_OF(X509) * *chain, const json_t *jwk)
{
    const json_t *x5c = json_object_get(jwk, "x5c");
    size_t i, n = json_array_size(x5c); /* 0 of what is no array */
    X509 *cert;
    int r = KMS_OK;

    *chain = NULL;
    if (n == 0)
        return KMS_ERR_MEMBER;
    if (n > X5C_CERTS_MAX)
        return KMS_ERR_LENGTH;
    if ((*chain = sk_X509_new_reserve(NULL, (int)n)) == NULL)
        return KMS_ERR_NOMEM;
    for (i = 0; i < n && r == KMS_OK; i++) {
        if ((r = certificate_get(&cert, json_array_get(x5c, i))) == KMS_OK) {
            sk_X509_push(*chain, cert); /* room was reserved */
            if (i == 0)
                r = check_leaf(cert, jwk);
        }
    }
    if (r != KMS_OK) {
        x5c_free(*chain);
        *chain = NULL;
    }
    return r;
}

void
x5c_free(STACK_OF(X509) * chain)
{
    sk_X509_pop_free(chain, X509_free);
}

/* One certificate in standard base64. */
static json_t *
certificate_put(const X509 *cert)
{
    struct buf text = BUF_INIT;
    unsigned char *der = NULL;
    json_t *item = NULL;
    int n = i2d_X509(cert, &der);

    if (n > 0 && b64_put(&text, der, (size_t)n) == KMS_OK)
        item = json_string(buf_str(&text));
    OPENSSL_free(der);
    buf_release(&text);
    return item;
}

json_t *
x5c_make(const STACK_OF(X509) * chain)
{
    EVP_PKEY *key = X509_get0_pubkey(sk_X509_value(chain, 0));
    json_t *jwk, *x5c;
    int i;

    if (key == NULL || (jwk = jwk_from_public(key)) == NULL) {
        ERR_clear_error();
        return NULL;
    }
    x5c = json_array();
    for (i = 0; i < sk_X509_num(chain); i++) {
        if (json_array_append_new(x5c, certificate_put(sk_X509_value(chain, i))) != 0) {
            json_decref(x5c);
            x5c = NULL;
            break;
        }
    }
    if (json_object_set_new(jwk, "x5c", x5c) == 0)
        return jwk;
    json_decref(jwk);
    return NULL;
}

int
service_jwk_thumbprint(unsigned char out[JWK_THUMBPRINT_LEN], const json_t *jwk)
{
    const char *kty;
    int r;

    if ((r = kms_json_str(jwk, "kty", 64, &kty)) != KMS_OK)
        return r == KMS_ERR_NOT_FOUND ? KMS_ERR_MEMBER : r;
    if (strcmp(kty, "RSA") != 0 && strcmp(kty, "EC") != 0)
        return KMS_ERR_ALGORITHM;
    return jwk_has_private(jwk) ? KMS_ERR_MEMBER : jwk_thumbprint(out, jwk);
}

/* The proof. */

/* A claim that must be there, a string of at most max bytes. */
static int
claim_str(const json_t *claims, const char *name, size_t max, const char **out)
{
    int r = kms_json_str(claims, name, max, out);

    return r == KMS_ERR_NOT_FOUND ? KMS_ERR_MEMBER : r;
}

static int
check_times(const json_t *claims, int64_t now)
{
    long long iat, exp = INT64_MAX, nbf = INT64_MIN;
    int r;

    if (kms_json_int(claims, "iat", 0, INT64_MAX, &iat) != KMS_OK ||
        ((r = kms_json_int(claims, "exp", 0, INT64_MAX, &exp)) != KMS_OK &&
         r != KMS_ERR_NOT_FOUND) ||
        ((r = kms_json_int(claims, "nbf", 0, INT64_MAX, &nbf)) != KMS_OK && r != KMS_ERR_NOT_FOUND))
        return KMS_ERR_MEMBER;
    if (iat < now - PROOF_WINDOW_S || exp <= now)
        return KMS_ERR_EXPIRED;
    if (iat > now + PROOF_WINDOW_S || nbf > now)
        return KMS_ERR_EARLY;
    return KMS_OK;
}

static int
check_claims(char jti[PROOF_JTI_MAX + 1], const json_t *claims, const char *aud,
             const unsigned char cnf[JWK_THUMBPRINT_LEN], int64_t now)
{
    char expected[B64URL_LEN(JWK_THUMBPRINT_LEN)];
    const char *text;
    int r;

    if ((r = claim_str(claims, "aud", AUD_MAX, &text)) != KMS_OK)
        return r;
    if (strcmp(text, aud) != 0)
        return KMS_ERR_AUDIENCE;
    if ((r = claim_str(claims, "cnf", sizeof(expected), &text)) != KMS_OK)
        return r;
    b64url_encode(expected, cnf, JWK_THUMBPRINT_LEN);
    if (strlen(text) != sizeof(expected) || memcmp(text, expected, sizeof(expected)) != 0)
        return KMS_ERR_MEMBER;
    if ((r = check_times(claims, now)) != KMS_OK)
        return r;
    if ((r = claim_str(claims, "jti", PROOF_JTI_MAX, &text)) != KMS_OK)
        return r;
    if (*text == '\0' || !kms_text_ok(text, strlen(text)))
        return KMS_ERR_MEMBER;
    strcpy(jti, text);
    return KMS_OK;
}

/* The one algorithm that goes with a key. */
static int
alg_of(enum jws_alg *alg, EVP_PKEY *key)
{
    if (EVP_PKEY_is_a(key, "RSA")) {
        *alg = JWS_PS256;
        return EVP_PKEY_get_bits(key) >= 2048 && EVP_PKEY_get_bits(key) <= 4096 ? KMS_OK
                                                                                : KMS_ERR_KEY;
    }
    *alg = JWS_ES256; /* jws_verify and jws_sign look whether it is one of P-256 */
    return EVP_PKEY_is_a(key, "EC") ? KMS_OK : KMS_ERR_ALGORITHM;
}

int
proof_verify(char jti[PROOF_JTI_MAX + 1], const char *compact, EVP_PKEY *key, const char *aud,
             const unsigned char cnf[JWK_THUMBPRINT_LEN], int64_t now)
{
    struct buf payload = BUF_INIT;
    json_t *claims = NULL;
    enum jws_alg alg;
    struct jws jws;
    int r;

    jti[0] = '\0';
    if ((r = alg_of(&alg, key)) != KMS_OK ||
        (r = jws_parse(&jws, compact, strlen(compact))) != KMS_OK)
        return r;
    if (jws.alg != alg)
        return KMS_ERR_ALGORITHM;
    if (jws.typ[0] != '\0' && strcasecmp(jws.typ, "JWT") != 0)
        return KMS_ERR_HEADER;
    if ((r = jws_verify(&jws, key)) == KMS_OK && (r = jws_payload(&jws, &payload)) == KMS_OK &&
        (r = kms_json_parse_strange(&claims, buf_str(&payload), payload.len)) == KMS_OK)
        r = check_claims(jti, claims, aud, cnf, now);
    json_decref(claims);
    buf_release(&payload);
    return r;
}

int
proof_make(struct buf *out, EVP_PKEY *key, const char *aud,
           const unsigned char cnf[JWK_THUMBPRINT_LEN], int64_t now, const char *jti)
{
    char thumb[B64URL_LEN(JWK_THUMBPRINT_LEN)];
    struct buf payload = BUF_INIT;
    enum jws_alg alg;
    json_t *claims;
    int r;

    if ((r = alg_of(&alg, key)) != KMS_OK)
        return r;
    b64url_encode(thumb, cnf, JWK_THUMBPRINT_LEN);
    claims = json_pack("{s:s,s:I,s:s,s:s%}", "aud", aud, "iat", (json_int_t)now, "jti", jti, "cnf",
                       thumb, sizeof(thumb));
    if (claims == NULL)
        return KMS_ERR_NOMEM;
    if ((r = kms_json_put(&payload, claims)) == KMS_OK)
        r = jws_sign(out, alg, NULL, "JWT", key, payload.data, payload.len);
    json_decref(claims);
    buf_release(&payload);
    return r;
}

int
proof_jti_hash(unsigned char out[32], const X509 *leaf, const char *jti)
{
    unsigned char text[SHA256_DIGEST_LENGTH + PROOF_JTI_MAX];
    size_t len = strlen(jti);
    unsigned int n;

    if (len > PROOF_JTI_MAX)
        return KMS_ERR_LENGTH;
    if (X509_digest(leaf, EVP_sha256(), text, &n) != 1 || n != SHA256_DIGEST_LENGTH) {
        ERR_clear_error();
        return KMS_ERR_NOMEM;
    }
    memcpy(text + SHA256_DIGEST_LENGTH, jti, len);
    SHA256(text, SHA256_DIGEST_LENGTH + len, out);
    return KMS_OK;
}

/* Out of a certificate. */

/* "scheme:" in lower case and something behind it, all of it printable ASCII without spaces. */
static bool
identity_ok(const unsigned char *s, size_t len)
{
    size_t i, colon;

    for (i = 0; i < len; i++)
        if (s[i] < 0x21 || s[i] > 0x7e)
            return false;
    for (colon = 0; colon < len && s[colon] != ':'; colon++)
        if (!(s[colon] >= 'a' && s[colon] <= 'z') &&
            (colon == 0 ||
             !((s[colon] >= '0' && s[colon] <= '9') || strchr("+.-", s[colon]) != NULL)))
            return false;
    return colon > 0 && colon + 1 < len;
}

int
cert_identity(char out[CERT_IDENTITY_MAX + 1], const X509 *cert)
{
    const ASN1_IA5STRING *uri = NULL;
    GENERAL_NAMES *names;
    int i, found = 0, r = KMS_OK;
    size_t len;

    out[0] = '\0';
    /* NULL: none, more than one such extension, or one that is malformed. */
    if ((names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL)) == NULL) {
        ERR_clear_error();
        return KMS_ERR_MEMBER;
    }
    for (i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);

        if (name->type == GEN_URI) {
            uri = name->d.uniformResourceIdentifier;
            found++;
        }
    }
    if (found != 1) {
        r = KMS_ERR_MEMBER;
    } else if ((len = (size_t)ASN1_STRING_length(uri)) > CERT_IDENTITY_MAX) {
        r = KMS_ERR_LENGTH;
    } else if (!identity_ok(ASN1_STRING_get0_data(uri), len)) {
        r = KMS_ERR_SYNTAX;
    } else {
        memcpy(out, ASN1_STRING_get0_data(uri), len);
        out[len] = '\0';
    }
    GENERAL_NAMES_free(names);
    return r;
}

int
cert_issuer_hash(unsigned char out[32], const X509 *cert)
{
    unsigned int n;

    if (X509_NAME_digest(X509_get_issuer_name(cert), EVP_sha256(), out, &n) == 1 && n == 32)
        return KMS_OK;
    ERR_clear_error();
    return KMS_ERR_NOMEM;
}

int
cert_serial(unsigned char out[CERT_SERIAL_MAX], size_t *len, const X509 *cert)
{
    const ASN1_INTEGER *serial = X509_get0_serialNumber(cert);
    const unsigned char *p = ASN1_STRING_get0_data(serial);
    int n = ASN1_STRING_length(serial);

    if (ASN1_STRING_type(serial) == V_ASN1_NEG_INTEGER)
        return KMS_ERR_SYNTAX;
    for (; n > 0 && *p == 0; n--)
        p++;
    if (n > CERT_SERIAL_MAX)
        return KMS_ERR_LENGTH;
    out[0] = 0;
    if (n > 0)
        memcpy(out, p, (size_t)n);
    *len = n > 0 ? (size_t)n : 1;
    return KMS_OK;
}

int
cert_key_thumbprint(unsigned char out[JWK_THUMBPRINT_LEN], const X509 *cert)
{
    EVP_PKEY *key = X509_get0_pubkey(cert);
    enum jws_alg alg;

    if (key == NULL || alg_of(&alg, key) != KMS_OK) {
        ERR_clear_error();
        return KMS_ERR_ALGORITHM;
    }
    return jwk_thumbprint_key(out, key);
}

int
cert_not_after(int64_t *ms, const X509 *cert)
{
    struct tm tm;

    if (ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) != 1) {
        ERR_clear_error();
        return KMS_ERR_SYNTAX;
    }
    *ms = (int64_t)timegm(&tm) * 1000;
    return KMS_OK;
}
