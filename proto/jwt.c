/* jwt.c - key sets, and the checks of an access token's claims. */
#include "proto/jwt.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/jose.h"
#include "proto/json.h"
#include "proto/jwk.h"

#define BIT(alg)   (1U << (alg))
#define DATE_LIMIT 253402300800 /* seconds since 1970 to the year 10000 */

struct jwks_key {
    char kid[JOSE_KID_MAX + 1]; /* "" when it has none */
    unsigned algs;              /* BIT of each that it may verify */
    EVP_PKEY *key;              /* owned */
};

struct jwks {
    size_t n;
    struct jwks_key keys[JWKS_MAX];
};

static bool
array_has(const json_t *array, const char *text)
{
    const json_t *v;
    size_t i;

    json_array_foreach(array, i, v)
    {
        if (json_is_string(v) && strcmp(json_string_value(v), text) == 0)
            return true;
    }
    return false;
}

/* The algorithms that a key of a set may verify, 0 for none: by its kind, narrowed by what it says
 * of itself. */
static unsigned
key_algs(const json_t *jwk, EVP_PKEY *key)
{
    static const struct {
        const char *name, *type;
        unsigned bit;
    } algs[] = {
        {"PS256", "RSA", BIT(JWS_PS256)},
        {"RS256", "RSA", BIT(JWS_RS256)},
        {"ES256", "EC", BIT(JWS_ES256)},
        {"EdDSA", "ED25519", BIT(JWS_EDDSA)},
    };
    const json_t *use = json_object_get(jwk, "use"), *ops = json_object_get(jwk, "key_ops"),
                 *alg = json_object_get(jwk, "alg");
    unsigned found = 0;
    size_t i;

    if (use != NULL && (!json_is_string(use) || strcmp(json_string_value(use), "sig") != 0))
        return 0;
    if (ops != NULL && !array_has(ops, "verify"))
        return 0;
    if (alg != NULL && !json_is_string(alg))
        return 0;
    for (i = 0; i < sizeof(algs) / sizeof(algs[0]); i++)
        if (EVP_PKEY_is_a(key, algs[i].type) &&
            (alg == NULL || strcmp(json_string_value(alg), algs[i].name) == 0))
            found |= algs[i].bit;
    return found;
}

/* Adds one member of a set, or leaves it out. */
static int
add_key(struct jwks *set, const json_t *jwk)
{
    struct jwks_key *k = &set->keys[set->n];
    const char *kid = "";
    size_t i;
    int r;

    r = kms_json_str(jwk, "kid", JOSE_KID_MAX, &kid);
    if (r != KMS_OK && r != KMS_ERR_NOT_FOUND)
        return KMS_OK;
    if ((r = jwk_get_public(&k->key, jwk)) != KMS_OK)
        return r == KMS_ERR_NOMEM ? r : KMS_OK;
    if ((k->algs = key_algs(jwk, k->key)) == 0) {
        EVP_PKEY_free(k->key);
        return KMS_OK;
    }
    strcpy(k->kid, kid);
    set->n++;
    if (*kid == '\0')
        return KMS_OK;
    for (i = 0; i + 1 < set->n; i++)
        if (strcmp(set->keys[i].kid, kid) == 0 && (set->keys[i].algs & k->algs) != 0)
            return KMS_ERR_DUPLICATE;
    return KMS_OK;
}

int
jwks_parse(struct jwks **out, const char *text, size_t len)
{
    struct jwks *set = NULL;
    const json_t *keys, *jwk;
    json_t *tree;
    size_t i;
    int r;

    *out = NULL;
    if ((r = kms_json_parse(&tree, text, len)) != KMS_OK)
        return r;
    if ((keys = json_object_get(tree, "keys")) == NULL || !json_is_array(keys)) {
        r = KMS_ERR_MEMBER;
        goto out;
    }
    if (json_array_size(keys) > JWKS_MAX) {
        r = KMS_ERR_LIMIT;
        goto out;
    }
    if ((set = calloc(1, sizeof(*set))) == NULL) {
        r = KMS_ERR_NOMEM;
        goto out;
    }
    json_array_foreach(keys, i, jwk)
    {
        if ((r = add_key(set, jwk)) != KMS_OK)
            goto out;
    }
    if (set->n == 0) {
        r = KMS_ERR_KEY;
        goto out;
    }
    *out = set;
    set = NULL; /* the caller's now */
out:
    jwks_free(set);
    json_decref(tree);
    return r;
}

void
jwks_free(struct jwks *set)
{
    size_t i;

    if (set == NULL)
        return;
    for (i = 0; i < set->n; i++)
        EVP_PKEY_free(set->keys[i].key);
    free(set);
}

size_t
jwks_count(const struct jwks *set)
{
    return set->n;
}

int
jwks_verify(const struct jwks *set, const struct jws *jws)
{
    const struct jwks_key *k, *found = NULL;
    bool named = false;

    for (k = set->keys; k < set->keys + set->n; k++) {
        if (jws->kid[0] != '\0') {
            if (strcmp(k->kid, jws->kid) != 0)
                continue;
            named = true;
        }
        if (!(k->algs & BIT(jws->alg)))
            continue;
        if (found != NULL)
            return KMS_ERR_NOT_FOUND; /* no kid, and more than one could be meant */
        found = k;
    }
    if (found == NULL)
        return named ? KMS_ERR_ALGORITHM : KMS_ERR_NOT_FOUND;
    return jws_verify(jws, found->key);
}

/* A NumericDate (RFC 7519 section 2), whose fraction is dropped. */
static int
get_date(const json_t *claims, const char *name, int64_t *out)
{
    const json_t *v;
    double d;

    if ((v = json_object_get(claims, name)) == NULL)
        return KMS_ERR_NOT_FOUND;
    if (!json_is_number(v))
        return KMS_ERR_MEMBER;
    d = json_number_value(v);
    if (!(d >= 0 && d < DATE_LIMIT))
        return KMS_ERR_MEMBER;
    *out = (int64_t)d;
    return KMS_OK;
}

/* A name: not empty, at most JWT_SUBJECT_MAX bytes, without control characters. */
static int
get_name(const json_t *claims, const char *claim, char out[JWT_SUBJECT_MAX + 1])
{
    const unsigned char *p;
    const char *text;

    if (kms_json_str(claims, claim, JWT_SUBJECT_MAX, &text) != KMS_OK || *text == '\0')
        return KMS_ERR_MEMBER;
    for (p = (const unsigned char *)text; *p != '\0'; p++)
        if (*p < 0x20 || *p == 0x7f || (*p == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f))
            return KMS_ERR_MEMBER;
    strcpy(out, text);
    return KMS_OK;
}

/* One string, or an array of strings. */
static bool
is_or_has(const json_t *v, const char *text)
{
    if (json_is_string(v))
        return strcmp(json_string_value(v), text) == 0;
    return array_has(v, text);
}

/* Whether a list with single spaces between its words has the word. */
static bool
words_have(const char *list, const char *word)
{
    size_t len = strlen(word), n;

    for (;;) {
        n = strcspn(list, " ");
        if (n == len && memcmp(list, word, len) == 0)
            return true;
        if (list[n] == '\0')
            return false;
        list += n + 1;
    }
}

static bool
has_scope(const json_t *claims, const char *scope)
{
    const json_t *v;

    if ((v = json_object_get(claims, "scope")) != NULL)
        return json_is_string(v) && words_have(json_string_value(v), scope);
    v = json_object_get(claims, "scp");
    if (json_is_string(v))
        return words_have(json_string_value(v), scope);
    return array_has(v, scope);
}

static int
check_dates(struct jwt_identity *id, const json_t *claims, const struct jwt_policy *policy,
            int64_t now)
{
    int64_t nbf = 0, iat = 0;
    int r;

    if (get_date(claims, "exp", &id->expires) != KMS_OK)
        return KMS_ERR_MEMBER;
    if (((r = get_date(claims, "nbf", &nbf)) != KMS_OK && r != KMS_ERR_NOT_FOUND) ||
        ((r = get_date(claims, "iat", &iat)) != KMS_OK && r != KMS_ERR_NOT_FOUND))
        return r;
    if (now >= id->expires + policy->leeway)
        return KMS_ERR_EXPIRED;
    if (now < nbf - policy->leeway)
        return KMS_ERR_EARLY;
    if (policy->max_lifetime > 0 && id->expires - now > policy->max_lifetime + policy->leeway)
        return KMS_ERR_MEMBER;
    return KMS_OK;
}

static int
check_roles(struct jwt_identity *id, const json_t *roles, const char *compliance_role,
            const char *admin_role)
{
    const json_t *v;
    size_t i;

    if (roles == NULL)
        return KMS_OK;
    if (!json_is_array(roles))
        return KMS_ERR_MEMBER;
    json_array_foreach(roles, i, v)
    {
        if (!json_is_string(v))
            return KMS_ERR_MEMBER;
    }
    id->compliance = compliance_role != NULL && array_has(roles, compliance_role);
    id->admin = admin_role != NULL && array_has(roles, admin_role);
    return KMS_OK;
}

static int
check(struct jwt_identity *id, const json_t *claims, const struct jwt_policy *policy,
      const char *compliance_role, const char *admin_role, int64_t now)
{
    const char *issuer;
    int r;

    if (policy->issuer != NULL && (kms_json_str(claims, "iss", SIZE_MAX, &issuer) != KMS_OK ||
                                   strcmp(issuer, policy->issuer) != 0))
        return KMS_ERR_ISSUER;
    if (policy->audience != NULL && !is_or_has(json_object_get(claims, "aud"), policy->audience))
        return KMS_ERR_AUDIENCE;
    if ((r = check_dates(id, claims, policy, now)) != KMS_OK)
        return r;
    if (policy->scope != NULL && !has_scope(claims, policy->scope))
        return KMS_ERR_SCOPE;
    if ((r = get_name(claims, "sub", id->subject)) != KMS_OK ||
        (r = get_name(claims, policy->org_claim, id->org)) != KMS_OK)
        return r;
    return check_roles(id, json_object_get(claims, policy->roles_claim), compliance_role,
                       admin_role);
}

int
jwt_check(struct jwt_identity *id, const json_t *claims, const struct jwt_policy *policy,
          const char *compliance_role, const char *admin_role, int64_t now)
{
    int r;

    memset(id, 0, sizeof(*id));
    r = check(id, claims, policy, compliance_role, admin_role, now);
    if (r != KMS_OK)
        memset(id, 0, sizeof(*id)); /* nobody may go on with half an identity */
    return r;
}

static bool
is_token_type(const char *typ)
{
    return *typ == '\0' || strcasecmp(typ, "JWT") == 0 || strcasecmp(typ, "at+jwt") == 0 ||
           strcasecmp(typ, "application/at+jwt") == 0;
}

int
jwt_verify(struct jwt_identity *id, const char *token, size_t len, const struct jwks *set,
           const struct jwt_policy *policy, const char *compliance_role, const char *admin_role,
           int64_t now)
{
    struct buf payload = BUF_INIT;
    json_t *claims = NULL;
    struct jws jws;
    int r;

    memset(id, 0, sizeof(*id));
    if (len > JWT_MAX)
        return KMS_ERR_LENGTH;
    if ((r = jws_parse(&jws, token, len)) != KMS_OK)
        return r;
    if (!is_token_type(jws.typ))
        return KMS_ERR_HEADER;
    if ((r = jwks_verify(set, &jws)) != KMS_OK || (r = jws_payload(&jws, &payload)) != KMS_OK ||
        (r = kms_json_parse(&claims, buf_str(&payload), payload.len)) != KMS_OK)
        goto out;
    r = jwt_check(id, claims, policy, compliance_role, admin_role, now);
out:
    json_decref(claims);
    buf_release(&payload);
    return r;
}
