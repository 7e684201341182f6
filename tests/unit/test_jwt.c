/* test_jwt.c - access tokens: key sets, and which claims let whom in. */
#include <criterion/criterion.h>
#include <openssl/ec.h>
#include <openssl/rsa.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/jwt.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))
#define NOW     1800000000
#define A64     "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static const struct jwt_policy policy = {
    .issuer = "https://idp.example.org",
    .audience = "kms",
    .scope = "spark:kms",
    .org_claim = "org",
    .roles_claim = "roles",
    .leeway = 30,
    .max_lifetime = 86400,
};

/* The claims of a good token; the rows below say what differs. */
#define ISS   "\"iss\":\"https://idp.example.org\","
#define AUD   "\"aud\":\"kms\","
#define EXP   "\"exp\":1800003600,"
#define SCOPE "\"scope\":\"openid spark:kms\","
#define SUB   "\"sub\":\"alice\","
#define ORG   "\"org\":\"o1\""

TestSuite(jwt, .init = kms_json_init);

static int
check(struct jwt_identity *id, const char *text, const struct jwt_policy *p)
{
    json_t *claims;
    int r;

    if ((r = kms_json_parse(&claims, text, strlen(text))) != KMS_OK)
        return r;
    r = jwt_check(id, claims, p, "spark.kms_orgagent", "id_full_admin", NOW);
    json_decref(claims);
    return r;
}

Test(jwt, claims_are_checked_against_the_policy)
{
    static const struct {
        const char *name, *claims;
        int want;
    } rows[] = {
        {"good", "{" ISS AUD EXP SCOPE SUB ORG "}", KMS_OK},
        {"claims of no matter", "{" ISS AUD EXP SCOPE SUB ORG ",\"jti\":[{}],\"nonce\":1}", KMS_OK},
        /* issuer */
        {"no issuer", "{" AUD EXP SCOPE SUB ORG "}", KMS_ERR_ISSUER},
        {"another issuer", "{\"iss\":\"https://idp.example.com\"," AUD EXP SCOPE SUB ORG "}",
         KMS_ERR_ISSUER},
        {"an issuer with a slash more",
         "{\"iss\":\"https://idp.example.org/\"," AUD EXP SCOPE SUB ORG "}", KMS_ERR_ISSUER},
        {"an issuer in an array",
         "{\"iss\":[\"https://idp.example.org\"]," AUD EXP SCOPE SUB ORG "}", KMS_ERR_ISSUER},
        /* audience */
        {"one of many audiences", "{" ISS "\"aud\":[\"x\",\"kms\"]," EXP SCOPE SUB ORG "}", KMS_OK},
        {"no audience", "{" ISS EXP SCOPE SUB ORG "}", KMS_ERR_AUDIENCE},
        {"another audience", "{" ISS "\"aud\":\"kms2\"," EXP SCOPE SUB ORG "}", KMS_ERR_AUDIENCE},
        {"other audiences", "{" ISS "\"aud\":[\"x\",\"KMS\"]," EXP SCOPE SUB ORG "}",
         KMS_ERR_AUDIENCE},
        {"no audience in the array", "{" ISS "\"aud\":[]," EXP SCOPE SUB ORG "}", KMS_ERR_AUDIENCE},
        {"an audience nested", "{" ISS "\"aud\":[[\"kms\"]]," EXP SCOPE SUB ORG "}",
         KMS_ERR_AUDIENCE},
        {"an audience as an object", "{" ISS "\"aud\":{\"kms\":1}," EXP SCOPE SUB ORG "}",
         KMS_ERR_AUDIENCE},
        /* time */
        {"no exp", "{" ISS AUD SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"exp a string", "{" ISS AUD "\"exp\":\"1800003600\"," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"exp null", "{" ISS AUD "\"exp\":null," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"exp negative", "{" ISS AUD "\"exp\":-1," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"exp with a fraction", "{" ISS AUD "\"exp\":1800003600.9," SCOPE SUB ORG "}", KMS_OK},
        {"exp beyond all years", "{" ISS AUD "\"exp\":1e300," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"exp of 64 bits", "{" ISS AUD "\"exp\":9223372036854775807," SCOPE SUB ORG "}",
         KMS_ERR_MEMBER},
        {"exp just over, within the leeway", "{" ISS AUD "\"exp\":1799999971," SCOPE SUB ORG "}",
         KMS_OK},
        {"exp over by the leeway", "{" ISS AUD "\"exp\":1799999970," SCOPE SUB ORG "}",
         KMS_ERR_EXPIRED},
        {"exp long over", "{" ISS AUD "\"exp\":1," SCOPE SUB ORG "}", KMS_ERR_EXPIRED},
        {"as long as may be", "{" ISS AUD "\"exp\":1800086430," SCOPE SUB ORG "}", KMS_OK},
        {"longer than may be", "{" ISS AUD "\"exp\":1800086431," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"nbf past", "{" ISS AUD EXP "\"nbf\":1799999999," SCOPE SUB ORG "}", KMS_OK},
        {"nbf in the leeway", "{" ISS AUD EXP "\"nbf\":1800000030," SCOPE SUB ORG "}", KMS_OK},
        {"nbf to come", "{" ISS AUD EXP "\"nbf\":1800000031," SCOPE SUB ORG "}", KMS_ERR_EARLY},
        {"nbf a string", "{" ISS AUD EXP "\"nbf\":\"1\"," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        {"iat a string", "{" ISS AUD EXP "\"iat\":\"1\"," SCOPE SUB ORG "}", KMS_ERR_MEMBER},
        /* scope */
        {"the scope alone", "{" ISS AUD EXP "\"scope\":\"spark:kms\"," SUB ORG "}", KMS_OK},
        {"the scope first", "{" ISS AUD EXP "\"scope\":\"spark:kms x\"," SUB ORG "}", KMS_OK},
        {"no scope", "{" ISS AUD EXP SUB ORG "}", KMS_ERR_SCOPE},
        {"an empty scope", "{" ISS AUD EXP "\"scope\":\"\"," SUB ORG "}", KMS_ERR_SCOPE},
        {"a longer scope", "{" ISS AUD EXP "\"scope\":\"spark:kms_admin\"," SUB ORG "}",
         KMS_ERR_SCOPE},
        {"a scope that ends so", "{" ISS AUD EXP "\"scope\":\"xspark:kms\"," SUB ORG "}",
         KMS_ERR_SCOPE},
        {"a scope between tabs", "{" ISS AUD EXP "\"scope\":\"a\\tspark:kms\\tb\"," SUB ORG "}",
         KMS_ERR_SCOPE},
        {"a scope in another case", "{" ISS AUD EXP "\"scope\":\"Spark:KMS\"," SUB ORG "}",
         KMS_ERR_SCOPE},
        {"scope an array", "{" ISS AUD EXP "\"scope\":[\"spark:kms\"]," SUB ORG "}", KMS_ERR_SCOPE},
        {"scp an array", "{" ISS AUD EXP "\"scp\":[\"x\",\"spark:kms\"]," SUB ORG "}", KMS_OK},
        {"scp a string", "{" ISS AUD EXP "\"scp\":\"x spark:kms\"," SUB ORG "}", KMS_OK},
        {"scp without it", "{" ISS AUD EXP "\"scp\":[\"spark:kms x\"]," SUB ORG "}", KMS_ERR_SCOPE},
        {"scope goes before scp",
         "{" ISS AUD EXP "\"scope\":\"x\",\"scp\":[\"spark:kms\"]," SUB ORG "}", KMS_ERR_SCOPE},
        /* who */
        {"no sub", "{" ISS AUD EXP SCOPE ORG "}", KMS_ERR_MEMBER},
        {"an empty sub", "{" ISS AUD EXP SCOPE "\"sub\":\"\"," ORG "}", KMS_ERR_MEMBER},
        {"sub a number", "{" ISS AUD EXP SCOPE "\"sub\":7," ORG "}", KMS_ERR_MEMBER},
        {"a sub of 256 bytes", "{" ISS AUD EXP SCOPE "\"sub\":\"" A64 A64 A64 A64 "\"," ORG "}",
         KMS_OK},
        {"a sub of 257 bytes", "{" ISS AUD EXP SCOPE "\"sub\":\"b" A64 A64 A64 A64 "\"," ORG "}",
         KMS_ERR_MEMBER},
        {"a sub with U+0000", "{" ISS AUD EXP SCOPE "\"sub\":\"a\\u0000b\"," ORG "}",
         KMS_ERR_SYNTAX},
        {"a sub with a newline", "{" ISS AUD EXP SCOPE "\"sub\":\"a\\nb\"," ORG "}",
         KMS_ERR_MEMBER},
        {"a sub with DEL", "{" ISS AUD EXP SCOPE "\"sub\":\"a\\u007fb\"," ORG "}", KMS_ERR_MEMBER},
        {"a sub with a C1 control", "{" ISS AUD EXP SCOPE "\"sub\":\"a\\u0085b\"," ORG "}",
         KMS_ERR_MEMBER},
        {"a sub with letters of any kind",
         "{" ISS AUD EXP SCOPE "\"sub\":\"k\\u00e4the\\u00a0\"," ORG "}", KMS_OK},
        {"no org", "{" ISS AUD EXP SCOPE "\"sub\":\"alice\"}", KMS_ERR_MEMBER},
        {"an empty org", "{" ISS AUD EXP SCOPE SUB "\"org\":\"\"}", KMS_ERR_MEMBER},
        {"an org with a control", "{" ISS AUD EXP SCOPE SUB "\"org\":\"\\u0001\"}", KMS_ERR_MEMBER},
        {"org an array", "{" ISS AUD EXP SCOPE SUB "\"org\":[\"o1\"]}", KMS_ERR_MEMBER},
        /* roles */
        {"no roles", "{" ISS AUD EXP SCOPE SUB ORG ",\"roles\":[]}", KMS_OK},
        {"roles a string", "{" ISS AUD EXP SCOPE SUB ORG ",\"roles\":\"id_full_admin\"}",
         KMS_ERR_MEMBER},
        {"roles with a number", "{" ISS AUD EXP SCOPE SUB ORG ",\"roles\":[1]}", KMS_ERR_MEMBER},
    };
    struct jwt_identity id;
    size_t i;
    int r;

    for (i = 0; i < N(rows); i++) {
        memset(&id, 'x', sizeof(id));
        r = check(&id, rows[i].claims, &policy);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        if (r != KMS_OK && r != KMS_ERR_SYNTAX)
            cr_expect(id.subject[0] == '\0' && id.org[0] == '\0' && !id.admin && !id.compliance,
                      "%s leaves an identity behind", rows[i].name);
    }
}

Test(jwt, the_identity_is_what_the_token_says)
{
    static const struct {
        const char *roles;
        bool compliance, admin;
    } rows[] = {
        {"[]", false, false},
        {"[\"user\",\"spark.kms_orgagent\"]", true, false},
        {"[\"id_full_admin\"]", false, true},
        {"[\"id_full_admin\",\"spark.kms_orgagent\"]", true, true},
        {"[\"id_full_admin \",\"SPARK.KMS_ORGAGENT\",\"spark.kms_orgagent2\"]", false, false},
    };
    struct jwt_identity id;
    char claims[512];
    size_t i;

    for (i = 0; i < N(rows); i++) {
        snprintf(claims, sizeof(claims), "{" ISS AUD EXP SCOPE SUB ORG ",\"roles\":%s}",
                 rows[i].roles);
        cr_assert_eq(check(&id, claims, &policy), KMS_OK);
        cr_expect_str_eq(id.subject, "alice");
        cr_expect_str_eq(id.org, "o1");
        cr_expect_eq(id.expires, 1800003600);
        cr_expect_eq(id.compliance, rows[i].compliance, "%s", rows[i].roles);
        cr_expect_eq(id.admin, rows[i].admin, "%s", rows[i].roles);
    }
}

/* As an introspection answer may come: RFC 7662 makes iss and aud optional. */
Test(jwt, what_the_policy_leaves_out_is_not_asked_for)
{
    struct jwt_policy loose = policy;
    struct jwt_identity id;

    loose.issuer = loose.audience = loose.scope = NULL;
    loose.max_lifetime = 0;
    loose.org_claim = "tenant";
    cr_expect_eq(check(&id, "{\"exp\":1900000000," SUB "\"tenant\":\"t\"}", &loose), KMS_OK);
    cr_expect_str_eq(id.org, "t");
    cr_expect_eq(check(&id, "{" SUB "\"tenant\":\"t\"}", &loose), KMS_ERR_MEMBER, "exp is a must");
}

/* A set of n keys, each with its members besides those of the key itself. */
static void
put_set(struct buf *out, EVP_PKEY *const *keys, const char *const *members, size_t n)
{
    json_t *jwk;
    size_t i;

    buf_reset(out);
    cr_assert_eq(buf_puts(out, "{\"keys\":["), KMS_OK);
    for (i = 0; i < n; i++) {
        jwk = jwk_from_public(keys[i]);
        cr_assert_eq(kms_json_put(out, jwk), KMS_OK);
        out->len--; /* the closing brace */
        cr_assert_eq(buf_putf(out, "%s}%s", members[i], i + 1 < n ? "," : ""), KMS_OK);
        json_decref(jwk);
    }
    cr_assert_eq(buf_puts(out, "]}"), KMS_OK);
}

Test(jwt, key_sets_keep_what_can_verify_and_refuse_what_is_ambiguous)
{
    static const struct {
        const char *name, *a, *b;
        int want;
        size_t count;
    } rows[] = {
        {"two kids", ",\"kid\":\"1\"", ",\"kid\":\"2\"", KMS_OK, 2},
        {"no kids", "", "", KMS_OK, 2},
        {"kids as they come", ",\"kid\":\"a b\"", ",\"kid\":\"\\u00e4\"", KMS_OK, 2},
        {"one kid twice", ",\"kid\":\"1\"", ",\"kid\":\"1\"", KMS_ERR_DUPLICATE, 0},
        {"one kid for two algorithms", ",\"kid\":\"1\",\"alg\":\"PS256\"",
         ",\"kid\":\"1\",\"alg\":\"RS256\"", KMS_OK, 2},
        {"one kid, one algorithm named", ",\"kid\":\"1\",\"alg\":\"PS256\"", ",\"kid\":\"1\"",
         KMS_ERR_DUPLICATE, 0},
        {"one kid, one of them for encryption", ",\"kid\":\"1\"", ",\"kid\":\"1\",\"use\":\"enc\"",
         KMS_OK, 1},
        {"use", ",\"use\":\"sig\"", ",\"use\":\"enc\"", KMS_OK, 1},
        {"use no string", ",\"use\":[]", "", KMS_OK, 1},
        {"key_ops", ",\"key_ops\":[\"verify\"]", ",\"key_ops\":[\"encrypt\"]", KMS_OK, 1},
        {"another alg", ",\"alg\":\"PS512\"", ",\"alg\":\"RS256\"", KMS_OK, 1},
        {"an alg of another kind", ",\"alg\":\"ES256\"", ",\"alg\":\"RS256\"", KMS_OK, 1},
        {"kid no string", ",\"kid\":1", "", KMS_OK, 1},
        {"a private member", ",\"d\":\"AQ\"", "", KMS_OK, 1},
        {"none left", ",\"use\":\"enc\"", ",\"alg\":\"RSA-OAEP\"", KMS_ERR_KEY, 0},
    };
    EVP_PKEY *keys[] = {EVP_RSA_gen(2048), EVP_RSA_gen(2048)};
    struct buf text = BUF_INIT;
    struct jwks *set;
    size_t i;
    int r;

    for (i = 0; i < N(rows); i++) {
        const char *members[] = {rows[i].a, rows[i].b};

        put_set(&text, keys, members, 2);
        r = jwks_parse(&set, buf_str(&text), text.len);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        cr_expect_eq(set != NULL, r == KMS_OK);
        if (r == KMS_OK)
            cr_expect_eq(jwks_count(set), rows[i].count, "%s: %zu", rows[i].name, jwks_count(set));
        jwks_free(set);
    }
    EVP_PKEY_free(keys[0]);
    EVP_PKEY_free(keys[1]);
    buf_release(&text);
}

Test(jwt, what_is_no_key_set_is_refused)
{
    static const struct {
        const char *text;
        int want;
    } rows[] = {
        {"", KMS_ERR_SYNTAX},
        {"[]", KMS_ERR_MEMBER},
        {"{}", KMS_ERR_MEMBER},
        {"{\"keys\":{}}", KMS_ERR_MEMBER},
        {"{\"keys\":[]}", KMS_ERR_KEY},
        {"{\"keys\":[1,null,\"x\",{}]}", KMS_ERR_KEY},
        {"{\"keys\":[],\"keys\":[]}", KMS_ERR_DUPLICATE},
        {"{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}", KMS_ERR_KEY},
    };
    struct buf many = BUF_INIT;
    struct jwks *set;
    size_t i;

    for (i = 0; i < N(rows); i++) {
        cr_expect_eq(jwks_parse(&set, rows[i].text, strlen(rows[i].text)), rows[i].want, "%s",
                     rows[i].text);
        cr_expect_null(set);
    }
    buf_puts(&many, "{\"keys\":[1");
    for (i = 0; i < JWKS_MAX; i++)
        buf_puts(&many, ",1");
    buf_puts(&many, "]}");
    cr_expect_eq(jwks_parse(&set, buf_str(&many), many.len), KMS_ERR_LIMIT);
    buf_release(&many);
}

static void
put_token(struct buf *out, enum jws_alg alg, const char *kid, const char *typ, EVP_PKEY *key)
{
    static const char claims[] = "{" ISS AUD EXP SCOPE SUB ORG "}";

    buf_reset(out);
    cr_assert_eq(jws_sign(out, alg, kid, typ, key, claims, strlen(claims)), KMS_OK);
}

Test(jwt, a_token_is_verified_by_the_key_that_it_names)
{
    EVP_PKEY *rsa = EVP_RSA_gen(2048), *ec = EVP_EC_gen("P-256"), *stranger = EVP_EC_gen("P-256");
    EVP_PKEY *keys[] = {rsa, ec, ec};
    static const char *const members[] = {",\"kid\":\"r\",\"alg\":\"RS256\"", ",\"kid\":\"e\"",
                                          ",\"kid\":\"e2\""};
    const struct {
        const char *name, *kid, *typ;
        enum jws_alg alg;
        EVP_PKEY *key;
        int want;
    } rows[] = {
        {"RS256", "r", NULL, JWS_RS256, rsa, KMS_OK},
        {"ES256", "e", NULL, JWS_ES256, ec, KMS_OK},
        {"typ JWT", "e", "JWT", JWS_ES256, ec, KMS_OK},
        {"typ jwt", "e", "jwt", JWS_ES256, ec, KMS_OK},
        {"typ at+jwt", "e", "at+jwt", JWS_ES256, ec, KMS_OK},
        {"typ AT+JWT", "e", "AT+JWT", JWS_ES256, ec, KMS_OK},
        {"typ application/at+jwt", "e", "application/at+jwt", JWS_ES256, ec, KMS_OK},
        {"typ of an identity token's kin", "e", "logout+jwt", JWS_ES256, ec, KMS_ERR_HEADER},
        {"typ with a space", "e", "JWT ", JWS_ES256, ec, KMS_ERR_HEADER},
        {"an unknown kid", "x", NULL, JWS_ES256, ec, KMS_ERR_NOT_FOUND},
        {"a kid in another case", "E", NULL, JWS_ES256, ec, KMS_ERR_NOT_FOUND},
        {"the kid of a key of another kind", "r", NULL, JWS_ES256, ec, KMS_ERR_ALGORITHM},
        {"PS256 by a key that says RS256", "r", NULL, JWS_PS256, rsa, KMS_ERR_ALGORITHM},
        {"no kid, one key that fits", NULL, NULL, JWS_RS256, rsa, KMS_OK},
        {"no kid, two keys that fit", NULL, NULL, JWS_ES256, ec, KMS_ERR_NOT_FOUND},
        {"somebody else's signature", "e", NULL, JWS_ES256, stranger, KMS_ERR_CRYPTO},
    };
    struct buf text = BUF_INIT, token = BUF_INIT;
    struct jwt_identity id;
    struct jwks *set;
    size_t i;
    int r;

    put_set(&text, keys, members, 3);
    cr_assert_eq(jwks_parse(&set, buf_str(&text), text.len), KMS_OK);
    for (i = 0; i < N(rows); i++) {
        put_token(&token, rows[i].alg, rows[i].kid, rows[i].typ, rows[i].key);
        r = jwt_verify(&id, buf_str(&token), token.len, set, &policy, NULL, NULL, NOW);
        cr_expect_eq(r, rows[i].want, "%s: %s", rows[i].name, kms_strerror(r));
        cr_expect_eq(id.subject[0] != '\0', r == KMS_OK);
    }
    put_token(&token, JWS_ES256, "e", NULL, ec);
    cr_expect_eq(jwt_verify(&id, buf_str(&token), token.len, set, &policy, NULL, NULL, NOW + 86400),
                 KMS_ERR_EXPIRED);
    jwks_free(set);
    EVP_PKEY_free(rsa);
    EVP_PKEY_free(ec);
    EVP_PKEY_free(stranger);
    buf_release(&text);
    buf_release(&token);
}

Test(jwt, a_token_that_is_signed_but_no_json_object_is_refused)
{
    static const struct {
        const char *payload;
        int want;
    } rows[] = {
        {"", KMS_ERR_SYNTAX},
        {"[]", KMS_ERR_MEMBER},
        {"x", KMS_ERR_SYNTAX},
        {"{\"sub\":\"a\",\"sub\":\"b\"}", KMS_ERR_DUPLICATE},
    };
    EVP_PKEY *ec = EVP_EC_gen("P-256");
    static const char *const members[] = {""};
    struct buf text = BUF_INIT, token = BUF_INIT;
    static char longest[JWT_MAX + 1];
    struct jwt_identity id;
    struct jwks *set;
    size_t i;

    put_set(&text, &ec, members, 1);
    cr_assert_eq(jwks_parse(&set, buf_str(&text), text.len), KMS_OK);
    for (i = 0; i < N(rows); i++) {
        buf_reset(&token);
        cr_assert_eq(
            jws_sign(&token, JWS_ES256, NULL, NULL, ec, rows[i].payload, strlen(rows[i].payload)),
            KMS_OK);
        cr_expect_eq(jwt_verify(&id, buf_str(&token), token.len, set, &policy, NULL, NULL, NOW),
                     rows[i].want, "%s", rows[i].payload);
    }
    memset(longest, 'A', sizeof(longest));
    cr_expect_eq(jwt_verify(&id, longest, sizeof(longest), set, &policy, NULL, NULL, NOW),
                 KMS_ERR_LENGTH);
    jwks_free(set);
    EVP_PKEY_free(ec);
    buf_release(&text);
    buf_release(&token);
}
