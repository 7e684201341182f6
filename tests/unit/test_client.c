/*
 * test_client.c - whom kms-client trusts, which HTTP answers it takes, and that its tokens and
 * contents are good.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kms/client.h"
#include "kms/https.h"
#include "kms/mint.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jwt.h"
#include "proto/secret.h"
#include "tests/unit/certs.h"

#define DOMAIN "kms.example.org"
#define KID    "kms://" DOMAIN "/keys/static-1"

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))

/* A certificate: name in the CN, san (NULL: none) as an extension, signed by issuer (NULL: itself),
 * good for some seconds. */
static X509 *
certify(EVP_PKEY *key, const char *name, const char *san, X509 *issuer, EVP_PKEY *issuer_key,
        long seconds)
{
    X509_EXTENSION *ext;
    X509 *x = X509_new();
    X509V3_CTX ctx;

    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 7);
    X509_gmtime_adj(X509_getm_notBefore(x), -86400);
    X509_gmtime_adj(X509_getm_notAfter(x), seconds);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
                               (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(issuer == NULL ? x : issuer));
    X509_set_pubkey(x, key);
    X509V3_set_ctx(&ctx, issuer == NULL ? x : issuer, x, NULL, NULL, 0);
    ext = X509V3_EXT_conf_nid(NULL, &ctx, NID_basic_constraints,
                              issuer == NULL ? "critical,CA:TRUE" : "critical,CA:FALSE");
    X509_add_ext(x, ext, -1);
    X509_EXTENSION_free(ext);
    if (san != NULL) {
        ext = X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, san);
        X509_add_ext(x, ext, -1);
        X509_EXTENSION_free(ext);
    }
    cr_assert_gt(X509_sign(x, issuer == NULL ? key : issuer_key, EVP_sha256()), 0);
    return x;
}

static void
add_certificate(json_t *x5c, X509 *x)
{
    struct buf text = BUF_INIT;
    unsigned char *der = NULL;
    int len = i2d_X509(x, &der);

    cr_assert_eq(b64_put(&text, der, (size_t)len), KMS_OK);
    json_array_append_new(x5c, json_string(buf_str(&text)));
    OPENSSL_free(der);
    buf_release(&text);
}

struct trust {
    char name[40];
    char cn[40];
    char san[40]; /* "" none */
    char kid[40];
    long seconds;
    bool own_ca;   /* trusts another CA than the one that signed */
    bool own_key;  /* the certificate is of another key */
    bool no_chain; /* no x5c */
    bool trusted;
};

ParameterizedTestParameters(client, trusts_a_static_key_by_chain_and_domain)
{
    static struct trust rows[] = {
        {"SAN", "x", "DNS:" DOMAIN, KID, 3600, false, false, false, true},
        {"CN", DOMAIN, "", KID, 3600, false, false, false, true},
        {"CN beside another SAN", DOMAIN, "DNS:else.where", KID, 3600, false, false, false, true},
        {"another SAN", "x", "DNS:else.where", KID, 3600, false, false, false, false},
        {"a wildcard", "x", "DNS:*.example.org", KID, 3600, false, false, false, false},
        {"another domain's kid", "x", "DNS:" DOMAIN, "kms://else.where/keys/1", 3600, false, false,
         false, false},
        {"a kid that begins so", "x", "DNS:" DOMAIN, "kms://" DOMAIN ".evil/keys/1", 3600, false,
         false, false, false},
        {"expired", "x", "DNS:" DOMAIN, KID, -60, false, false, false, false},
        {"another CA", "x", "DNS:" DOMAIN, KID, 3600, true, false, false, false},
        {"another key", "x", "DNS:" DOMAIN, KID, 3600, false, true, false, false},
        {"no chain", "x", "DNS:" DOMAIN, KID, 3600, false, false, true, false},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct trust *row, client, trusts_a_static_key_by_chain_and_domain)
{
    EVP_PKEY *ca_key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256"), *key, *other, *found;
    X509 *ca = certify(ca_key, "a CA", NULL, NULL, NULL, 3600), *leaf, *impostor;
    X509_STORE *cas = X509_STORE_new();
    json_t *jwk, *x5c = json_array();
    const char *kid, *why;
    int r;

    key = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)2048);
    other = row->own_key ? EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)2048) : NULL;
    leaf = certify(row->own_key ? other : key, row->cn, *row->san == '\0' ? NULL : row->san, ca,
                   ca_key, row->seconds);
    /* Of the same name as the real one, with a key of its own. */
    impostor = certify(key, "a CA", NULL, NULL, NULL, 3600);
    X509_STORE_add_cert(cas, row->own_ca ? impostor : ca);
    jwk = jwk_from_public(key);
    json_object_set_new(jwk, "kid", json_string(row->kid));
    add_certificate(x5c, leaf);
    add_certificate(x5c, ca);
    if (!row->no_chain)
        json_object_set(jwk, "x5c", x5c);

    r = client_check_static_key(&found, &kid, jwk, DOMAIN, cas, &why);
    cr_assert_eq(r, row->trusted ? KMS_OK : KMS_ERR_CRYPTO, "%s: %d, %s", row->name, r, why);
    cr_assert_eq(found != NULL, row->trusted, "%s", row->name);
    if (row->trusted)
        cr_assert_str_eq(kid, KID);

    EVP_PKEY_free(found);
    EVP_PKEY_free(key);
    EVP_PKEY_free(other);
    EVP_PKEY_free(ca_key);
    X509_free(ca);
    X509_free(leaf);
    X509_free(impostor);
    X509_STORE_free(cas);
    json_decref(jwk);
    json_decref(x5c);
}

struct answer {
    char text[128];
    int want;
    int status;
    size_t length;
    bool keep_alive;
};

ParameterizedTestParameters(https, takes_answers_that_say_their_length)
{
#define END "\r\n\r\n"
    static struct answer rows[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5" END "12345", KMS_OK, 200, 5, true},
        {"HTTP/1.1 200 \r\ncontent-length:5 " END, KMS_OK, 200, 5, true},
        {"HTTP/1.1 503 Away\r\nContent-Length: 0\r\nConnection: close" END, KMS_OK, 503, 0, false},
        {"HTTP/1.0 200 OK\r\nContent-Length: 0" END, KMS_OK, 200, 0, false},
        {"HTTP/1.1 100 Continue" END, KMS_OK, 100, 0, true},
        {"HTTP/1.1 204 No Content" END, KMS_OK, 204, 0, true},
        {"", KMS_ERR_AGAIN, 0, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", KMS_ERR_AGAIN, 0, 0, false},
        {"HTTP/1.1 200 OK" END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5" END, KMS_ERR_PROTOCOL, 0, 0,
         false},
        {"HTTP/1.1 200 OK\r\nContent-Length: -5" END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: " END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999" END, KMS_ERR_PROTOCOL, 0, 0,
         false},
        {"HTTP/2 200 OK\r\nContent-Length: 5" END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"HTTP/1.1 20 OK\r\nContent-Length: 5" END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"HTTP/1.1 2000\r\nContent-Length: 5" END, KMS_ERR_PROTOCOL, 0, 0, false},
        {"\r\n\r\n", KMS_ERR_PROTOCOL, 0, 0, false},
        {"SSH-2.0-x" END, KMS_ERR_PROTOCOL, 0, 0, false},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct answer *row, https, takes_answers_that_say_their_length)
{
    struct https_head head;
    size_t len = strlen(row->text);
    char *exact = malloc(len == 0 ? 1 : len);
    int r;

    memcpy(exact, row->text, len);
    r = https_head_parse(&head, exact, len);
    cr_assert_eq(r, row->want, "%s: %d", row->text, r);
    if (r == KMS_OK) {
        cr_assert_eq(head.status, row->status, "%s", row->text);
        cr_assert_eq(head.content_length, row->length, "%s", row->text);
        cr_assert_eq(head.keep_alive, row->keep_alive, "%s", row->text);
    }
    free(exact);
}

struct url {
    char url[48];
    bool good;
};

ParameterizedTestParameters(https, knows_https_urls_only)
{
    static struct url rows[] = {
        {"https://127.0.0.1:8443", true},
        {"https://kms.example.org/prefix/", true},
        {"https://[::1]:8443", true},
        {"http://kms.example.org", false},
        {"kms.example.org", false},
        {"", false},
        {"https://a@kms.example.org", false},
        {"https://kms.example.org/?x=1", false},
        {"https://kms.example.org/#x", false},
        {"https://:8443", false},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct url *row, https, knows_https_urls_only)
{
    struct https *h;

    cr_assert_eq(https_new(&h, row->url, NULL, 1), row->good ? KMS_OK : KMS_ERR_CONFIG, "%s",
                 row->url);
    https_free(h);
}

Test(https, says_so_when_nobody_listens)
{
    struct buf answer = BUF_INIT;
    struct https *h;
    int status;

    cr_assert_eq(https_new(&h, "https://127.0.0.1:1", NULL, 1), KMS_OK);
    cr_assert_eq(https_exchange(h, "GET", "/", NULL, 0, &status, &answer), KMS_ERR_SYSTEM);
    cr_assert_neq(*https_error(h), '\0');
    https_free(h);
    buf_release(&answer);
}

Test(mint, makes_tokens_that_the_server_takes)
{
    static const char *const roles[] = {"officer", "other"};
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    char name[] = "/tmp/test_client.XXXXXX";
    struct mint m = {.key_file = name,
                     .kid = "dev-1",
                     .issuer = "https://issuer.example.org",
                     .audience = "kms",
                     .subject = "alice",
                     .org = "acme",
                     .scope = "spark:kms other",
                     .roles = roles,
                     .n_roles = 2,
                     .lifetime = 60};
    struct jwt_policy policy = {.issuer = m.issuer,
                                .audience = "kms",
                                .scope = "spark:kms",
                                .org_claim = "org",
                                .roles_claim = "roles"};
    struct buf token = BUF_INIT, text = BUF_INIT;
    struct jwt_identity id;
    struct jwks *set;
    json_t *jwk = jwk_from_public(key), *keys;
    FILE *f = fdopen(mkstemp(name), "w");

    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    cr_assert_eq(mint_token(&token, &m, 1000000), KMS_OK);

    json_object_set_new(jwk, "kid", json_string("dev-1"));
    keys = json_pack("{s:[o]}", "keys", jwk);
    cr_assert_eq(kms_json_put(&text, keys), KMS_OK);
    cr_assert_eq(jwks_parse(&set, buf_str(&text), text.len), KMS_OK);
    cr_assert_eq(
        jwt_verify(&id, buf_str(&token), token.len, set, &policy, "officer", "admin", 1000030),
        KMS_OK);
    cr_assert_str_eq(id.subject, "alice");
    cr_assert_str_eq(id.org, "acme");
    cr_assert(id.compliance && !id.admin);
    cr_assert_eq(id.expires, 1000060);
    cr_assert_eq(
        jwt_verify(&id, buf_str(&token), token.len, set, &policy, "officer", "admin", 1000061),
        KMS_ERR_EXPIRED);

    unlink(name);
    cr_assert_eq(mint_token(&token, &m, 0), KMS_ERR_CONFIG);
    jwks_free(set);
    json_decref(keys);
    EVP_PKEY_free(key);
    buf_release(&token);
    buf_release(&text);
}

Test(client, the_largest_content_fits_a_message)
{
    struct buf plain = BUF_INIT, sealed = BUF_INIT, opened = BUF_INIT;
    unsigned char key[32] = {1};
    char kid[JOSE_KID_MAX + 1];
    struct jwe jwe;

    memset(kid, 'k', JOSE_KID_MAX);
    kid[JOSE_KID_MAX] = '\0';
    cr_assert_eq(buf_reserve(&plain, CLIENT_CONTENT_MAX), KMS_OK);
    memset(plain.data, 'x', CLIENT_CONTENT_MAX);
    plain.len = CLIENT_CONTENT_MAX;
    cr_assert_eq(jwe_seal_dir(&sealed, kid, key, plain.data, plain.len), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&sealed), sealed.len), KMS_OK);
    cr_assert_str_eq(jwe.kid, kid);
    cr_assert_eq(jwe_open(&jwe, key, &opened), KMS_OK);
    cr_assert_eq(opened.len, plain.len);
    cr_assert_arr_eq(opened.data, plain.data, plain.len);
    key[0] = 2;
    cr_assert_eq(jwe_open(&jwe, key, &opened), KMS_ERR_CRYPTO);
    buf_release(&plain);
    buf_release(&sealed);
    buf_release(&opened);
}

struct state {
    char name[32];
    char text[120];
    int mode;
    int want;
};

ParameterizedTestParameters(client, minds_who_can_read_its_state)
{
    static struct state rows[] = {
        {"private", "{\"version\":1,\"channels\":[]}", 0600, KMS_OK},
        {"read-only", "{\"version\":1,\"channels\":[]}", 0400, KMS_OK},
        {"nonsense", "}{", 0600, KMS_OK},
        {"strange channels", "{\"channels\":[7,{},{\"url\":7}]}", 0600, KMS_OK},
        {"readable by all", "{\"version\":1,\"channels\":[]}", 0644, KMS_ERR_CONFIG},
        {"writable by the group", "{\"version\":1,\"channels\":[]}", 0620, KMS_ERR_CONFIG},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct state *row, client, minds_who_can_read_its_state)
{
    char name[] = "/tmp/test_client.XXXXXX";
    struct client_options o = {.url = "https://127.0.0.1:1",
                               .domain = DOMAIN,
                               .token = "t",
                               .client_id = "c",
                               .state_file = name,
                               .timeout = 1};
    int fd = mkstemp(name);
    struct client *c;

    cr_assert_eq(write(fd, row->text, strlen(row->text)), (ssize_t)strlen(row->text));
    fchmod(fd, (mode_t)row->mode);
    close(fd);
    cr_assert_eq(client_new(&c, &o), row->want, "%s: %s", row->name, client_error(c));
    cr_assert_null(client_channel(c));
    client_free(c);
    unlink(name);
}

struct files {
    char name[40];
    char cert[16], key[16];
    int want;
    char says[40];
};

ParameterizedTestParameters(client, a_service_needs_a_certificate_and_its_key)
{
    static struct files rows[] = {
        {"EC P-256", "ec.pem", "ec.key", KMS_OK, ""},
        {"RSA", "rsa.pem", "rsa.key", KMS_OK, ""},
        {"the other's key", "ec.pem", "rsa.key", KMS_ERR_CONFIG, "not the key"},
        {"no certificate file", "none", "ec.key", KMS_ERR_CONFIG, "No such file"},
        {"no key file", "ec.pem", "none", KMS_ERR_CONFIG, "No such file"},
        {"a key for a certificate", "ec.key", "ec.key", KMS_ERR_CONFIG, "no certificate"},
        {"a certificate for a key", "ec.pem", "ec.pem", KMS_ERR_CONFIG, "no private key"},
        {"another curve", "p384.pem", "p384.key", KMS_ERR_CONFIG, "neither RSA"},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct files *row, client, a_service_needs_a_certificate_and_its_key)
{
    static const char *const names[] = {"ec", "rsa", "p384"};
    struct client_options o = {
        .url = "https://127.0.0.1:1", .domain = DOMAIN, .client_id = "c", .timeout = 1};
    EVP_PKEY *keys[] = {EVP_EC_gen("P-256"), EVP_RSA_gen(2048), EVP_EC_gen("P-384")};
    char file[16];
    struct client *c;
    X509 *cert;
    size_t i;

    for (i = 0; i < 3; i++) {
        cert = certs_make("dlp", keys[i], NULL, NULL);
        snprintf(file, sizeof(file), "%s.pem", names[i]);
        certs_put_cert(file, cert);
        snprintf(file, sizeof(file), "%s.key", names[i]);
        certs_put_key(file, keys[i]);
        X509_free(cert);
        EVP_PKEY_free(keys[i]);
    }
    o.cert_file = certs_path(row->cert);
    o.key_file = certs_path(row->key);
    for (i = 0; i < 2; i++) {
        o.relay = i == 1;
        cr_expect_eq(client_new(&c, &o), row->want, "%s: %s", row->name, client_error(c));
        cr_expect_not_null(strstr(client_error(c), row->says), "%s", client_error(c));
        client_free(c);
    }
    certs_clean();
}

/* An answer with one key, sealed to a public key as the JWK of kid and k. */
static json_t *
sealed_answer(EVP_PKEY *to, const char *uri, const char *kid, size_t len)
{
    unsigned char bytes[32] = {7};
    struct buf text = BUF_INIT, jwe = BUF_INIT;
    json_t *jwk = jwk_from_oct(kid, bytes), *answer;

    if (len != 32)
        json_object_set_new(jwk, "k", json_string("AAAA"));
    cr_assert_eq(kms_json_put(&text, jwk), KMS_OK);
    cr_assert_eq(jwe_seal_to(&jwe, to, NULL, "jwk+json", text.data, text.len), KMS_OK);
    answer = json_pack("{s:[{s:s,s:s}]}", "keys", "uri", uri, "jwe", buf_str(&jwe));
    json_decref(jwk);
    buf_release(&text);
    buf_release(&jwe);
    return answer;
}

Test(client, sealed_keys_are_opened_if_they_are_what_they_say)
{
#define URI(n) "kms://" DOMAIN "/keys/0f8fad5b-d9cb-469f-a165-70867728950" #n
    struct client_options o = {.url = "https://127.0.0.1:1",
                               .domain = DOMAIN,
                               .token = "t",
                               .client_id = "c",
                               .timeout = 1};
    EVP_PKEY *mine = EVP_EC_gen("P-256"), *other = EVP_EC_gen("P-256");
    json_t *answer, *key;
    struct client *c;

    cr_assert_neq(secret_heap_init(65536), KMS_ERR_NOMEM);
    cr_assert_eq(client_new(&c, &o), KMS_OK);
    answer = sealed_answer(mine, URI(1), URI(1), 32);
    cr_assert_eq(client_open_keys(c, answer, mine), KMS_OK, "%s", client_error(c));
    key = json_array_get(json_object_get(answer, "keys"), 0);
    cr_expect_null(json_object_get(key, "jwe"));
    cr_expect_str_eq(json_string_value(json_object_get(json_object_get(key, "jwk"), "kid")),
                     URI(1));
    cr_expect_eq(client_open_keys(c, answer, mine), KMS_OK, "keys that are open stay so");
    json_decref(answer);
    answer = sealed_answer(mine, URI(1), URI(2), 32);
    cr_expect_eq(client_open_keys(c, answer, mine), KMS_ERR_CRYPTO, "another key in its place");
    json_decref(answer);
    answer = sealed_answer(mine, URI(1), URI(1), 3);
    cr_expect_eq(client_open_keys(c, answer, mine), KMS_ERR_CRYPTO, "no AES-256 key");
    json_decref(answer);
    answer = sealed_answer(other, URI(1), URI(1), 32);
    cr_expect_eq(client_open_keys(c, answer, mine), KMS_ERR_CRYPTO, "not for us");
    key = json_array_get(json_object_get(answer, "keys"), 0);
    cr_expect_null(json_object_get(key, "jwk"));
    json_decref(answer);
    client_free(c);
    EVP_PKEY_free(mine);
    EVP_PKEY_free(other);
}
