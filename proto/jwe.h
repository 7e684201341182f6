/*
 * jwe.h - compact JWE (RFC 7516) with enc A256GCM and alg dir, RSA-OAEP or RSA-OAEP-256 (RFC 7518).
 *
 * Opening has two halves, because the RSA private key is in the HSM: jwe_parse checks the form and
 * hands out the encrypted key; whoever has the content encryption key (the channel's, or what the
 * HSM made of the encrypted key) calls jwe_open.  Nothing of a plaintext is handed out before its
 * tag is right.  The protected header may have alg, enc, kid, typ, cty (strings) and nothing else;
 * node-jose sends enc, alg and kid.
 *
 * An RSA-OAEP failure must be indistinguishable from a wrong tag: whoever opens the encrypted key
 * goes on with a random content encryption key after a failure, so that jwe_open fails at the tag
 * (protocol section 2).
 */
#ifndef PROTO_JWE_H
#define PROTO_JWE_H

#include <openssl/evp.h>
#include <stddef.h>

struct buf;

#define JOSE_KID_MAX 256          /* bytes of a kid; printable ASCII without '"' and '\\' */
#define JWE_MAX      (256 * 1024) /* bytes of a compact message */
#define JWE_IV_LEN   12
#define JWE_TAG_LEN  16
#define JWE_EK_MAX   512 /* encrypted key: RSA-4096 */

enum jwe_alg { JWE_DIR, JWE_RSA_OAEP, JWE_RSA_OAEP_256 };

struct jwe {
    enum jwe_alg alg;
    char kid[JOSE_KID_MAX + 1]; /* "" when the header has none */
    const char *aad;            /* the protected header as it stands; borrowed from the message */
    size_t aad_len;
    unsigned char ek[JWE_EK_MAX]; /* the encrypted key, decoded; ek_len 0 for dir */
    size_t ek_len;
    unsigned char iv[JWE_IV_LEN];
    unsigned char tag[JWE_TAG_LEN];
    const char *ciphertext; /* still base64url; borrowed from the message */
    size_t ciphertext_len;
};

/*
 * The form of a message.  *jwe borrows from compact.  KMS_ERR_SYNTAX, KMS_ERR_DUPLICATE,
 * KMS_ERR_HEADER, KMS_ERR_ALGORITHM, KMS_ERR_LENGTH (iv, tag, encrypted key, whole), KMS_ERR_NOMEM.
 */
int jwe_parse(struct jwe *jwe, const char *compact, size_t len);

/*
 * Decrypts with a 32-byte content encryption key and appends the plaintext to plain.
 * KMS_ERR_CRYPTO: wrong tag; KMS_ERR_SYNTAX: the ciphertext is no base64url; plain is as it was and
 * nothing of the plaintext is left in memory.
 */
int jwe_open(const struct jwe *jwe, const unsigned char cek[32], struct buf *plain);

/* Appends {"alg":"dir","enc":"A256GCM","kid":KID} sealed under key; kid may be NULL.
 * KMS_ERR_HEADER: kid is unfit. */
int jwe_seal_dir(struct buf *out, const char *kid, const unsigned char key[32], const void *plain,
                 size_t len);

/* For clients: to an RSA public key, with a fresh content encryption key.  alg is not JWE_DIR; kid
 * may be NULL. */
int jwe_seal_rsa(struct buf *out, const char *kid, enum jwe_alg alg, EVP_PKEY *to,
                 const void *plain, size_t len);

/* For tests and clients with an RSA key of their own: the encrypted key by a private key in memory.
 */
int jwe_open_rsa(const struct jwe *jwe, EVP_PKEY *priv, struct buf *plain);

/*
 * Appends a message to a public key, whichever of two kinds it is: RSA of 2048 to 4096 bits
 * (RSA-OAEP-256), or EC P-256 (ECDH-ES, direct key agreement with a fresh epk, RFC 7518 section
 * 4.6, without apu and apv); enc A256GCM.  kid and cty may be NULL.  to was checked by
 * jwk_get_public: keep it where many messages go to one key, that check is dear. KMS_ERR_ALGORITHM:
 * a key of another kind; KMS_ERR_KEY; KMS_ERR_HEADER: kid or cty is unfit; KMS_ERR_NOMEM.
 */
int jwe_seal_to(struct buf *out, EVP_PKEY *to, const char *kid, const char *cty, const void *plain,
                size_t len);

/*
 * For whoever jwe_seal_to was for: opens it with the private key, RSA-OAEP(-256) or ECDH-ES by the
 * key's kind, and appends the plaintext.  The server itself never does: jwe_parse takes no ECDH-ES.
 * Errors as of jwe_parse and jwe_open; KMS_ERR_KEY: epk is no point of the curve.
 */
int jwe_open_to(const char *compact, size_t len, EVP_PKEY *priv, struct buf *plain);

#endif
