/*
 * jwt.h - access tokens as JWTs (RFC 7519, RFC 8725, RFC 9068): key sets, and the checks of the
 * claims.
 */
#ifndef PROTO_JWT_H
#define PROTO_JWT_H

#include <jansson.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/jws.h"

#define JWT_MAX         (16 * 1024) /* bytes of a token */
#define JWT_SUBJECT_MAX 256
#define JWKS_MAX        64

/* A set of public keys (RFC 7517 section 5). */
struct jwks;

/*
 * Reads {"keys":[...]}.  Keys of a kind or use that we do not verify with (enc, symmetric, other
 * curves, weak RSA) are left out; a set with none left is KMS_ERR_KEY; two keys of one kid and one
 * alg are KMS_ERR_DUPLICATE; more than JWKS_MAX keys KMS_ERR_LIMIT.  An RSA key without alg is good
 * for both PS256 and RS256.
 */
int jwks_parse(struct jwks **out, const char *text, size_t len);
void jwks_free(struct jwks *set); /* NULL is fine */
size_t jwks_count(const struct jwks *set);

/*
 * Verifies jws with the key that its kid names (or, where the header has none, with the only key
 * that fits its alg). KMS_ERR_NOT_FOUND: no such key; KMS_ERR_CRYPTO: wrong signature;
 * KMS_ERR_ALGORITHM: the key is for another algorithm.
 */
int jwks_verify(const struct jwks *set, const struct jws *jws);

/* What a token must say.  All strings borrowed. */
struct jwt_policy {
    const char *issuer;   /* exact; NULL: any or none, as introspection may leave it out */
    const char *audience; /* one of aud; NULL likewise */
    const char *scope; /* one of the space-separated scope or, without scope, of scp (a string or an
                          array); NULL: none */
    const char *org_claim;
    const char *roles_claim; /* an array of strings; may be absent */
    int64_t leeway;          /* seconds, for exp and nbf */
    int64_t max_lifetime;    /* seconds from now to exp; 0: any */
};

/* What it said.  Own memory, no pointers: may be copied and cached. */
struct jwt_identity {
    char subject[JWT_SUBJECT_MAX + 1];
    char org[JWT_SUBJECT_MAX + 1];
    bool compliance; /* one of roles equals the name given to jwt_check */
    bool admin;
    int64_t expires; /* seconds since 1970 */
};

/*
 * Checks decoded claims (a JWT's payload, or an introspection answer) against the policy at the
 * time now (seconds since 1970).  KMS_ERR_MEMBER (sub, exp, org missing or malformed, or exp is
 * further off than allowed), _ISSUER, _AUDIENCE, _SCOPE, _EXPIRED, _EARLY.  compliance_role and
 * admin_role (each may be NULL) are compared exactly with the members of the roles claim.
 */
int jwt_check(struct jwt_identity *id, const json_t *claims, const struct jwt_policy *policy,
              const char *compliance_role, const char *admin_role, int64_t now);

/*
 * The whole way for a JWT: jws_parse, jwks_verify, jwt_check, with their errors; KMS_ERR_NOT_FOUND:
 * unknown kid, fetch the set again.  typ may be absent, JWT or at+jwt (RFC 9068), in any case;
 * another is KMS_ERR_HEADER.
 */
int jwt_verify(struct jwt_identity *id, const char *token, size_t len, const struct jwks *set,
               const struct jwt_policy *policy, const char *compliance_role, const char *admin_role,
               int64_t now);

#endif
