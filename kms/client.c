/*
 * client.c - the channel and the requests of a KMS client.
 */
#include "kms/client.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kms/clock.h"
#include "kms/https.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "proto/kdf.h"
#include "proto/msg.h"
#include "proto/proof.h"
#include "proto/uri.h"

#define API_PATH       "/encryption/api/v1/kms"
#define CHAIN_MAX      8         /* certificates of an x5c */
#define DER_MAX        8192      /* bytes of each */
#define STATE_MAX      (1 << 20) /* bytes of a state file */
#define CHANNELS_MAX   64        /* kept in it */
#define EXPIRY_MARGIN  60000     /* ms: a channel is not used in its last minute */
#define PRINCIPAL_SIZE (2 * 32 + 1)

struct client {
    struct client_options o;
    char principal[PRINCIPAL_SIZE]; /* whose channels these are, see set_principal */
    char *user;                     /* the token's sub, or NULL; for the path of the static key */
    EVP_PKEY *service_key;          /* of a service: its private key; else NULL */
    json_t *service_jwk;            /* and its public jwk with x5c */
    struct https *https;
    EVP_PKEY *static_key; /* NULL: not fetched yet */
    char static_kid[JOSE_KID_MAX + 1];
    json_t *state;      /* of the state file: an array of channels */
    char *channel;      /* its URI; NULL: none */
    struct secret *key; /* the channel's */
    int64_t expires;    /* ms since 1970 */
    json_t *refusal;
    char error[768];
};

static int fail(struct client *c, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int
fail(struct client *c, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(c->error, sizeof(c->error), fmt, ap);
    va_end(ap);
    return err;
}

static int
no_memory(struct client *c)
{
    return fail(c, KMS_ERR_NOMEM, "out of memory");
}

const char *
client_error(const struct client *c)
{
    return c->error;
}

const json_t *
client_refusal(const struct client *c)
{
    return c->refusal;
}

const char *
client_channel(const struct client *c)
{
    return c->channel;
}

int64_t
client_channel_expires(const struct client *c)
{
    return c->expires;
}

static const char *
string_of(const json_t *obj, const char *name)
{
    const char *s = json_string_value(json_object_get(obj, name));

    return s != NULL ? s : "";
}

/* Keeps the answer that the server refused with. */
static int
refused(struct client *c, json_t *answer)
{
    json_decref(c->refusal);
    c->refusal = json_incref(answer);
    return fail(c, KMS_ERR_STATE, "%s", string_of(answer, "reason"));
}

/*
 * Channels belong to a principal, and one state file may serve several users: a channel is kept
 * under a digest of who the token says that he is, or of the whole token where it is opaque.
 * Nothing is verified here: a wrong guess costs a new channel.
 */
static int
set_user(struct client *c, struct buf *who)
{
    static const char *const claims[] = {"iss", "sub", "org"};
    const char *dot = strchr(c->o.token, '.'), *dot2 = dot == NULL ? NULL : strchr(dot + 1, '.');
    struct buf payload = BUF_INIT;
    json_t *token = NULL;
    size_t i;
    int r = KMS_OK;

    if (dot2 != NULL && b64url_get(&payload, dot + 1, (size_t)(dot2 - dot - 1)) == KMS_OK &&
        kms_json_parse(&token, buf_str(&payload), payload.len) == KMS_OK &&
        *string_of(token, "sub") != '\0') {
        c->user = strdup(string_of(token, "sub"));
        for (i = 0; i < sizeof(claims) / sizeof(claims[0]) && r == KMS_OK; i++)
            r = buf_putf(who, "%s\n", string_of(token, claims[i]));
    } else {
        r = buf_puts(who, c->o.token);
    }
    json_decref(token);
    buf_release(&payload);
    return r;
}

static BIO *
open_pem(struct client *c, const char *file)
{
    BIO *bio = BIO_new_file(file, "r");

    if (bio == NULL)
        fail(c, KMS_ERR_CONFIG, "%s: %s", file, strerror(errno));
    return bio;
}

/* The certificates of a PEM file, leaf first; NULL: none. */
static STACK_OF(X509) * read_chain(BIO *bio)
{
    STACK_OF(X509) *chain = sk_X509_new_null();
    X509 *cert;

    while (chain != NULL && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL) {
        if (sk_X509_push(chain, cert) == 0) {
            X509_free(cert);
            break;
        }
    }
    if (sk_X509_num(chain) <= 0) {
        sk_X509_free(chain);
        chain = NULL;
    }
    return chain;
}

/* Reads the certificate, its chain and the private key. */
static int
load_service(struct client *c, STACK_OF(X509) * *chain)
{
    BIO *bio;

    if ((bio = open_pem(c, c->o.cert_file)) == NULL)
        return KMS_ERR_CONFIG;
    *chain = read_chain(bio);
    BIO_free(bio);
    if (*chain == NULL)
        return fail(c, KMS_ERR_CONFIG, "%s: holds no certificate", c->o.cert_file);
    if ((bio = open_pem(c, c->o.key_file)) == NULL)
        return KMS_ERR_CONFIG;
    c->service_key = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
    BIO_free(bio);
    if (c->service_key == NULL)
        return fail(c, KMS_ERR_CONFIG, "%s: holds no private key", c->o.key_file);
    if (X509_check_private_key(sk_X509_value(*chain, 0), c->service_key) != 1)
        return fail(c, KMS_ERR_CONFIG, "%s: not the key of the first certificate of %s",
                    c->o.key_file, c->o.cert_file);
    return KMS_OK;
}

/* A service's channels are kept under its key. */
static int
set_service(struct client *c, struct buf *who)
{
    unsigned char thumb[JWK_THUMBPRINT_LEN];
    STACK_OF(X509) *chain = NULL;
    int r;

    if ((r = load_service(c, &chain)) != KMS_OK)
        goto out;
    if (cert_key_thumbprint(thumb, sk_X509_value(chain, 0)) != KMS_OK)
        r = fail(c, KMS_ERR_CONFIG, "%s: its key is neither RSA of 2048 to 4096 bits nor EC P-256",
                 c->o.cert_file);
    else if ((c->service_jwk = x5c_make(chain)) == NULL || buf_puts(who, "service\n") != KMS_OK ||
             buf_put(who, thumb, sizeof(thumb)) != KMS_OK)
        r = no_memory(c);
    else if (!c->o.relay &&
             (r = https_set_certificate(c->https, c->o.cert_file, c->o.key_file)) != KMS_OK)
        fail(c, r, "%s", https_error(c->https));
out:
    ERR_clear_error();
    x5c_free(chain);
    return r;
}

static int
set_principal(struct client *c)
{
    struct buf who = BUF_INIT;
    unsigned char digest[32];
    size_t i;
    int r = c->o.token != NULL ? set_user(c, &who) : set_service(c, &who);

    if (r == KMS_OK && EVP_Q_digest(NULL, "SHA256", NULL, who.data, who.len, digest, NULL) != 1)
        r = KMS_ERR_INTERNAL;
    for (i = 0; i < sizeof(digest) && r == KMS_OK; i++)
        snprintf(c->principal + 2 * i, 3, "%02x", digest[i]);
    buf_release(&who);
    return r == KMS_OK || r == KMS_ERR_CONFIG ? r : no_memory(c);
}

/* The state file. */

static int
read_file(int fd, struct buf *out)
{
    unsigned char chunk[4096];
    ssize_t n;
    int r = KMS_OK;

    while (r == KMS_OK && (n = read(fd, chunk, sizeof(chunk))) != 0) {
        if (n == -1 && errno == EINTR)
            continue;
        r = n == -1 ? KMS_ERR_SYSTEM : buf_put(out, chunk, (size_t)n);
    }
    OPENSSL_cleanse(chunk, sizeof(chunk));
    return r;
}

/* A state that cannot be read does no harm, a file that others can read or write does. */
static int
load_state(struct client *c)
{
    struct buf text = BUF_INIT;
    json_t *root = NULL;
    struct stat st;
    int fd;

    if ((c->state = json_array()) == NULL)
        return no_memory(c);
    if (c->o.state_file == NULL)
        return KMS_OK;
    fd = open(c->o.state_file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd == -1 && errno == ENOENT)
        return KMS_OK;
    if (fd == -1 || fstat(fd, &st) != 0) {
        if (fd != -1)
            close(fd);
        return fail(c, KMS_ERR_CONFIG, "%s: %s", c->o.state_file, strerror(errno));
    }
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) != 0 ||
        st.st_size > STATE_MAX) {
        close(fd);
        return fail(c, KMS_ERR_CONFIG,
                    "%s: the state must be a file that only you can read; remove it",
                    c->o.state_file);
    }
    if (read_file(fd, &text) == KMS_OK &&
        kms_json_parse(&root, buf_str(&text), text.len) == KMS_OK &&
        json_is_array(json_object_get(root, "channels"))) {
        json_decref(c->state);
        c->state = json_incref(json_object_get(root, "channels"));
    }
    json_decref(root);
    buf_release(&text);
    close(fd);
    return KMS_OK;
}

static bool
write_all(int fd, const unsigned char *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, p, len);

        if (n == -1 && errno != EINTR)
            return false;
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
    return true;
}

/* Written beside it and renamed, so that it is always whole. */
static int
save_state(struct client *c)
{
    struct buf text = BUF_INIT, name = BUF_INIT;
    json_t *root;
    int fd = -1, r = KMS_ERR_NOMEM;

    if (c->o.state_file == NULL)
        return KMS_OK;
    if ((root = json_pack("{s:i,s:O}", "version", 1, "channels", c->state)) == NULL ||
        (r = kms_json_put(&text, root)) != KMS_OK ||
        (r = buf_putf(&name, "%s.XXXXXX", c->o.state_file)) != KMS_OK) {
        fail(c, r, "out of memory");
    } else if ((fd = mkostemp((char *)name.data, O_CLOEXEC)) == -1 || /* made with mode 0600 */
               !write_all(fd, text.data, text.len) || fsync(fd) != 0 ||
               rename((const char *)name.data, c->o.state_file) != 0) {
        r = fail(c, KMS_ERR_CONFIG, "%s: %s", c->o.state_file, strerror(errno));
        if (fd != -1)
            unlink((const char *)name.data);
    }
    if (fd != -1)
        close(fd);
    json_decref(root);
    buf_release(&text);
    buf_release(&name);
    return r;
}

/* Whether an entry of the state is a channel of ours: of this server, this client and this
 * principal. */
static bool
is_ours(const struct client *c, const json_t *entry)
{
    return strcmp(string_of(entry, "url"), c->o.url) == 0 &&
           strcmp(string_of(entry, "domain"), c->o.domain) == 0 &&
           strcmp(string_of(entry, "clientId"), c->o.client_id) == 0 &&
           strcmp(string_of(entry, "principal"), c->principal) == 0;
}

static void
forget_channel(struct client *c)
{
    free(c->channel);
    c->channel = NULL;
    secret_free(c->key);
    c->key = NULL;
    c->expires = 0;
}

/* Takes our channel out of the state, if it has one that is good for a while. */
static void
recall_channel(struct client *c)
{
    unsigned char key[SECRET_LEN];
    const char *text;
    size_t i;

    for (i = 0; i < json_array_size(c->state); i++) {
        const json_t *entry = json_array_get(c->state, i);
        int64_t expires = json_integer_value(json_object_get(entry, "expires"));

        text = string_of(entry, "key");
        if (!is_ours(c, entry) || expires < wall_ms() + EXPIRY_MARGIN ||
            strlen(text) != B64URL_LEN(SECRET_LEN) ||
            b64url_decode(key, text, strlen(text)) != KMS_OK)
            continue;
        forget_channel(c);
        c->channel = strdup(string_of(entry, "uri"));
        c->key = secret_from(key);
        c->expires = expires;
        if (c->channel == NULL || c->key == NULL)
            forget_channel(c);
    }
    OPENSSL_cleanse(key, sizeof(key));
}

/* Puts the present channel (or none) in the place of our old one, and drops what has expired. */
static int
keep_channel(struct client *c)
{
    char key[B64URL_LEN(SECRET_LEN)];
    json_t *entry;
    size_t i;

    for (i = json_array_size(c->state); i-- > 0;) {
        entry = json_array_get(c->state, i);
        if (is_ours(c, entry) || json_integer_value(json_object_get(entry, "expires")) < wall_ms())
            json_array_remove(c->state, i);
    }
    while (json_array_size(c->state) >= CHANNELS_MAX)
        json_array_remove(c->state, 0);
    if (c->channel != NULL) {
        b64url_encode(key, c->key->b, SECRET_LEN);
        entry = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s%,s:I}", "url", c->o.url, "domain", c->o.domain,
                          "clientId", c->o.client_id, "principal", c->principal, "uri", c->channel,
                          "key", key, sizeof(key), "expires", (json_int_t)c->expires);
        OPENSSL_cleanse(key, sizeof(key));
        if (json_array_append_new(c->state, entry) != 0)
            return no_memory(c);
    }
    return save_state(c);
}

int
client_new(struct client **out, const struct client_options *options)
{
    struct client *c = calloc(1, sizeof(*c));
    int r;

    if ((*out = c) == NULL)
        return KMS_ERR_NOMEM;
    c->o = *options;
    r = https_new(&c->https, c->o.url, c->o.ca_file, c->o.timeout);
    if (r != KMS_OK)
        return fail(c, r, "%s", c->https == NULL ? "out of memory" : https_error(c->https));
    if ((r = set_principal(c)) != KMS_OK || (r = load_state(c)) != KMS_OK)
        return r;
    recall_channel(c);
    return KMS_OK;
}

void
client_free(struct client *c)
{
    if (c == NULL)
        return;
    forget_channel(c);
    EVP_PKEY_free(c->static_key);
    EVP_PKEY_free(c->service_key);
    json_decref(c->service_jwk);
    json_decref(c->state);
    json_decref(c->refusal);
    https_free(c->https);
    free(c->user);
    free(c);
}

/* One HTTP exchange whose answer is a JSON object. */
static int
exchange(struct client *c, const char *method, const char *path, const struct buf *body,
         json_t **answer)
{
    struct buf text = BUF_INIT;
    int r, status = 0;

    *answer = NULL;
    r = https_exchange(c->https, method, path, body == NULL ? NULL : body->data,
                       body == NULL ? 0 : body->len, &status, &text);
    if (r != KMS_OK) {
        fail(c, r, "%s", https_error(c->https));
    } else if (kms_json_parse(answer, buf_str(&text), text.len) != KMS_OK) {
        *answer = NULL;
        r = status == 200 ? fail(c, KMS_ERR_PROTOCOL, "the server's answer is not JSON")
                          : fail(c, KMS_ERR_STATE, "the server answered HTTP %d", status);
    } else if (status != 200) {
        r = fail(c, KMS_ERR_STATE, "the server answered HTTP %d: %s", status,
                 string_of(*answer, "message"));
        json_decref(*answer);
        *answer = NULL;
    }
    buf_release(&text);
    return r;
}

/* The static key. */

static X509 *
certificate_from(const json_t *item)
{
    struct buf der = BUF_INIT;
    const unsigned char *p;
    X509 *x = NULL;

    if (json_is_string(item) && json_string_length(item) <= DER_MAX / 3 * 4 &&
        b64_get(&der, json_string_value(item), json_string_length(item)) == KMS_OK &&
        (p = der.data) != NULL) {
        x = d2i_X509(NULL, &p, (long)der.len);
        if (x != NULL && p != der.data + der.len) {
            X509_free(x);
            x = NULL;
        }
    }
    buf_release(&der);
    return x;
}

/* The leaf is chain[0]; cas decide. */
static int
check_chain(STACK_OF(X509) * chain, const char *domain, X509_STORE *cas, const char **why)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    X509_VERIFY_PARAM *param;
    int r = KMS_ERR_NOMEM;

    if (ctx != NULL && X509_STORE_CTX_init(ctx, cas, sk_X509_value(chain, 0), chain) == 1) {
        param = X509_STORE_CTX_get0_param(ctx);
        X509_VERIFY_PARAM_set_auth_level(param, 2); /* 112 bits, as TLS asks for as well */
        /* Protocol section 1: the SAN or the CN. */
        X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_WILDCARDS |
                                                   X509_CHECK_FLAG_ALWAYS_CHECK_SUBJECT);
        if (X509_VERIFY_PARAM_set1_host(param, domain, 0) == 1) {
            r = KMS_OK;
            if (X509_verify_cert(ctx) != 1) {
                r = KMS_ERR_CRYPTO;
                *why = X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx));
            }
        }
    }
    X509_STORE_CTX_free(ctx);
    return r;
}

/* "kms://DOMAIN/..." */
static bool
is_of_domain(const char *uri, const char *domain)
{
    size_t n = strlen(domain);

    return strncmp(uri, "kms://", 6) == 0 && strncmp(uri + 6, domain, n) == 0 && uri[6 + n] == '/';
}

int
client_check_static_key(EVP_PKEY **key, const char **kid, const json_t *jwk, const char *domain,
                        X509_STORE *cas, const char **why)
{
    const json_t *x5c = json_object_get(jwk, "x5c");
    STACK_OF(X509) *chain = sk_X509_new_null();
    int r = KMS_ERR_CRYPTO;
    size_t i;

    *key = NULL;
    *why = "out of memory";
    if (chain == NULL)
        return KMS_ERR_NOMEM;
    *why = "the kid is not of this domain";
    if (kms_json_str(jwk, "kid", JOSE_KID_MAX, kid) != KMS_OK || !is_of_domain(*kid, domain))
        goto out;
    *why = "it is not an RSA key of 2048 to 4096 bits";
    if (jwk_get_public(key, jwk) != KMS_OK || !EVP_PKEY_is_a(*key, "RSA"))
        goto out;
    *why = "it has no certificate chain";
    if (json_array_size(x5c) == 0 || json_array_size(x5c) > CHAIN_MAX)
        goto out;
    for (i = 0; i < json_array_size(x5c); i++) {
        X509 *x = certificate_from(json_array_get(x5c, i));

        if (x == NULL || sk_X509_push(chain, x) == 0) {
            X509_free(x);
            goto out;
        }
    }
    *why = "its certificate is of another key";
    if (EVP_PKEY_eq(X509_get0_pubkey(sk_X509_value(chain, 0)), *key) != 1)
        goto out;
    r = check_chain(chain, domain, cas, why);
out:
    if (r != KMS_OK) {
        EVP_PKEY_free(*key);
        *key = NULL;
    }
    sk_X509_pop_free(chain, X509_free);
    return r;
}

/* The path of the static key ends in a user id. */
static int
put_user(struct buf *path, const char *user)
{
    int r = KMS_OK;

    for (; *user != '\0' && r == KMS_OK; user++) {
        unsigned char u = (unsigned char)*user;

        if ((u >= '0' && u <= '9') || ((u | 0x20) >= 'a' && (u | 0x20) <= 'z') ||
            strchr("-._~", u) != NULL)
            r = buf_putc(path, (char)u);
        else
            r = buf_putf(path, "%%%02X", u);
    }
    return r;
}

static int
fetch_static_key(struct client *c)
{
    json_t *answer = NULL, *jwk = NULL;
    struct buf path = BUF_INIT;
    const char *text, *kid, *why;
    int r;

    if (c->static_key != NULL)
        return KMS_OK;
    if (buf_puts(&path, API_PATH "/") != KMS_OK ||
        put_user(&path, c->user == NULL ? "me" : c->user) != KMS_OK)
        r = no_memory(c);
    else if ((r = exchange(c, "GET", buf_str(&path), NULL, &answer)) == KMS_OK) {
        text = string_of(answer, "rsaPublicKey");
        if (strncmp(string_of(answer, "kmsCluster"), "kms://", 6) != 0 ||
            strcmp(string_of(answer, "kmsCluster") + 6, c->o.domain) != 0)
            r = fail(c, KMS_ERR_CRYPTO, "the server is of the domain %s, not kms://%s",
                     string_of(answer, "kmsCluster"), c->o.domain);
        else if (kms_json_parse(&jwk, text, strlen(text)) != KMS_OK)
            r = fail(c, KMS_ERR_PROTOCOL, "the server's static key is not a JWK");
        else if ((r = client_check_static_key(&c->static_key, &kid, jwk, c->o.domain,
                                              https_cas(c->https), &why)) != KMS_OK)
            fail(c, r, "the server's static key is not to be trusted: %s", why);
        else
            snprintf(c->static_kid, sizeof(c->static_kid), "%s", kid);
    }
    json_decref(jwk);
    json_decref(answer);
    buf_release(&path);
    return r;
}

/* Messages. */

static int
new_id(struct client *c, char id[UUID_TEXT + 1])
{
    struct uuid u;

    if (uuid_random(&u) != KMS_OK)
        return fail(c, KMS_ERR_INTERNAL, "no randomness");
    uuid_format(id, &u);
    return KMS_OK;
}

/* A service's jwk with its chain, and a proof that binds the ephemeral key. */
static json_t *
make_proven_credential(struct client *c, EVP_PKEY *ephemeral)
{
    unsigned char cnf[JWK_THUMBPRINT_LEN];
    struct buf aud = BUF_INIT, proof = BUF_INIT;
    char jti[UUID_TEXT + 1];
    json_t *credential = NULL;

    if (jwk_thumbprint_key(cnf, ephemeral) == KMS_OK && new_id(c, jti) == KMS_OK &&
        buf_putf(&aud, "kms://%s", c->o.domain) == KMS_OK &&
        proof_make(&proof, c->service_key, buf_str(&aud), cnf, wall_ms() / 1000, jti) == KMS_OK)
        credential = json_pack("{s:O,s:s}", "jwk", c->service_jwk, "proof", buf_str(&proof));
    buf_release(&aud);
    buf_release(&proof);
    return credential;
}

/* Who asks: protocol section 2 and, of services, 8.  ephemeral: of a request for a channel; else
 * NULL. */
static json_t *
make_credential(struct client *c, EVP_PKEY *ephemeral, bool on_behalf)
{
    json_t *credential;

    if (c->o.token == NULL) {
        if (!c->o.relay)
            return json_object(); /* the connection says it */
        if (ephemeral != NULL)
            return make_proven_credential(c, ephemeral);
        if ((credential = json_pack("{s:o}", "jwk", json_copy(c->service_jwk))) != NULL)
            json_object_del(json_object_get(credential, "jwk"), "x5c");
        return credential;
    }
    credential = json_pack("{s:s}", "bearer", c->o.token);
    if (on_behalf && c->o.on_behalf_of != NULL)
        json_object_set_new(credential, "onBehalfOf", json_string(c->o.on_behalf_of));
    return credential;
}

/* A request as it is sent: with client and requestId.  *text is wiped by the caller. */
static int
put_request(struct client *c, const json_t *request, const char *id, EVP_PKEY *ephemeral,
            bool on_behalf, struct buf *text)
{
    json_t *copy = json_copy((json_t *)(uintptr_t)request), *client;
    int r;

    client = json_pack("{s:s,s:o}", "clientId", c->o.client_id, "credential",
                       make_credential(c, ephemeral, on_behalf));
    if (copy == NULL || json_object_set_new(copy, "client", client) != 0 ||
        json_object_set_new(copy, "requestId", json_string(id)) != 0)
        r = no_memory(c);
    else if ((r = kms_json_put(text, copy)) != KMS_OK)
        no_memory(c);
    json_decref(copy);
    return r;
}

/* {"destination":...,"kmsMessages":[...]} */
static int
post(struct client *c, json_t *messages, json_t **answers)
{
    json_t *body = NULL, *answer = NULL;
    struct buf text = BUF_INIT, destination = BUF_INIT;
    int r;

    *answers = NULL;
    if (buf_putf(&destination, "kms://%s", c->o.domain) != KMS_OK ||
        (body = json_pack("{s:s,s:O}", "destination", buf_str(&destination), "kmsMessages",
                          messages)) == NULL ||
        kms_json_put(&text, body) != KMS_OK) {
        r = no_memory(c);
    } else if ((r = exchange(c, "POST", API_PATH "/messages", &text, &answer)) == KMS_OK) {
        *answers = json_incref(json_object_get(answer, "kmsMessages"));
        if (json_array_size(*answers) != json_array_size(messages)) {
            json_decref(*answers);
            *answers = NULL;
            r = fail(c, KMS_ERR_PROTOCOL, "the server did not answer each message");
        }
    }
    json_decref(answer);
    json_decref(body);
    buf_release(&text);
    buf_release(&destination);
    return r;
}

/* A signed answer: verifies it with the static key.  Appends its payload. */
static int
open_signed(struct client *c, const char *text, size_t len, struct buf *plain)
{
    struct jws jws;
    int r;

    if ((r = fetch_static_key(c)) != KMS_OK)
        return r;
    if (jws_parse(&jws, text, len) != KMS_OK)
        return fail(c, KMS_ERR_PROTOCOL, "an answer is neither JWE nor JWS");
    if (jws.alg != JWS_PS256 || strcmp(jws.kid, c->static_kid) != 0 ||
        jws_verify(&jws, c->static_key) != KMS_OK)
        return fail(c, KMS_ERR_CRYPTO, "an answer is not signed by the server's static key");
    if ((r = jws_payload(&jws, plain)) != KMS_OK)
        return fail(c, KMS_ERR_PROTOCOL, "a signed answer has no payload");
    return KMS_OK;
}

static int
open_sealed(struct client *c, const char *text, size_t len, struct buf *plain)
{
    struct jwe jwe;

    if (jwe_parse(&jwe, text, len) != KMS_OK || jwe.alg != JWE_DIR)
        return fail(c, KMS_ERR_PROTOCOL, "an answer is not a JWE of this protocol");
    if (c->channel == NULL || strcmp(jwe.kid, c->channel) != 0 ||
        jwe_open(&jwe, c->key->b, plain) != KMS_OK)
        return fail(c, KMS_ERR_CRYPTO, "an answer is not sealed with the channel's key");
    return KMS_OK;
}

static int
status_of(const json_t *answer)
{
    return (int)json_integer_value(json_object_get(answer, "status"));
}

static int
code_of(const json_t *answer)
{
    return (int)json_integer_value(json_object_get(answer, "errorCode"));
}

/*
 * Opens one answer.  A signed one to a request that was not for a channel can only be a refusal:
 * then it cannot name the request (it could not be read), or it says that the channel is gone.
 */
static int
open_answer(struct client *c, const json_t *message, const char *id, bool for_channel, json_t **out)
{
    struct buf plain = BUF_INIT;
    const char *text = json_string_value(message);
    bool is_signed, unnamed;
    json_t *answer = NULL;
    int r, dots = 0;
    size_t i, len = json_string_length(message);

    *out = NULL;
    if (text == NULL)
        return fail(c, KMS_ERR_PROTOCOL, "an answer is not a string");
    for (i = 0; i < len; i++)
        dots += text[i] == '.';
    is_signed = dots == 2;
    r = is_signed ? open_signed(c, text, len, &plain) : open_sealed(c, text, len, &plain);
    if (r == KMS_OK && kms_json_parse(&answer, buf_str(&plain), plain.len) != KMS_OK) {
        answer = NULL;
        r = fail(c, KMS_ERR_PROTOCOL, "an answer is not a JSON object");
    }
    buf_release(&plain);
    if (r != KMS_OK)
        return r;
    unnamed = is_signed && status_of(answer) >= 400 &&
              (code_of(answer) == KMS_CODE_RESET || json_object_get(answer, "requestId") == NULL);
    if (status_of(answer) < 100 || status_of(answer) > 599)
        r = fail(c, KMS_ERR_PROTOCOL, "an answer has no status");
    else if (!unnamed && strcmp(string_of(answer, "requestId"), id) != 0)
        r = fail(c, KMS_ERR_CRYPTO, "an answer is to another request");
    else if (is_signed && !for_channel && status_of(answer) < 400)
        r = fail(c, KMS_ERR_CRYPTO, "an answer is signed but not sealed");
    if (r != KMS_OK) {
        json_decref(answer);
        return r;
    }
    *out = answer;
    return KMS_OK;
}

/* Takes the server's half of the agreement. */
static int
agree(struct client *c, EVP_PKEY *mine, const json_t *answer)
{
    const json_t *key = json_object_get(answer, "key");
    const char *uri = string_of(key, "uri"), *date = string_of(key, "expirationDate");
    EVP_PKEY *theirs = NULL;
    struct kms_uri parsed;
    int r;

    if (strncmp(uri, "kms://", 6) != 0 ||
        kms_uri_parse(&parsed, uri, strlen(uri), c->o.domain) != KMS_OK ||
        parsed.kind != URI_ECDHE_ID || kms_date_parse(&c->expires, date) != KMS_OK ||
        jwk_get_p256(&theirs, json_object_get(key, "jwk")) != KMS_OK)
        return fail(c, KMS_ERR_PROTOCOL, "the server's channel has no URI, key or date");
    if ((r = ecdh_channel_key(&c->key, mine, theirs)) != KMS_OK)
        fail(c, r, "the channel's key cannot be made: %s", kms_strerror(r));
    else if ((c->channel = strdup(uri)) == NULL)
        r = no_memory(c);
    EVP_PKEY_free(theirs);
    return r;
}

static int
create_channel(struct client *c)
{
    json_t *request = NULL, *messages = NULL, *answers = NULL, *answer = NULL;
    struct buf text = BUF_INIT, sealed = BUF_INIT, uri = BUF_INIT;
    char id[UUID_TEXT + 1];
    EVP_PKEY *mine = NULL;
    int r;

    forget_channel(c);
    if ((r = fetch_static_key(c)) != KMS_OK || (r = new_id(c, id)) != KMS_OK)
        return r;
    if ((mine = ecdh_generate()) == NULL ||
        buf_putf(&uri, "kms://%s/ecdhe", c->o.domain) != KMS_OK ||
        (request = json_pack("{s:s,s:s,s:o}", "method", "create", "uri", buf_str(&uri), "jwk",
                             jwk_from_public(mine))) == NULL) {
        r = no_memory(c);
        goto out;
    }
    if ((r = put_request(c, request, id, mine, false, &text)) != KMS_OK)
        goto out;
    if ((r = jwe_seal_rsa(&sealed, c->static_kid, JWE_RSA_OAEP_256, c->static_key, text.data,
                          text.len)) != KMS_OK) {
        fail(c, r, "the request cannot be sealed: %s", kms_strerror(r));
        goto out;
    }
    if ((messages = json_pack("[s]", buf_str(&sealed))) == NULL) {
        r = no_memory(c);
        goto out;
    }
    if ((r = post(c, messages, &answers)) != KMS_OK ||
        (r = open_answer(c, json_array_get(answers, 0), id, true, &answer)) != KMS_OK)
        goto out;
    if (status_of(answer) != 201)
        r = refused(c, answer);
    else if ((r = agree(c, mine, answer)) == KMS_OK)
        r = keep_channel(c);
    else
        forget_channel(c);
out:
    EVP_PKEY_free(mine);
    json_decref(request);
    json_decref(messages);
    json_decref(answers);
    json_decref(answer);
    buf_release(&text);
    buf_release(&sealed);
    buf_release(&uri);
    return r;
}

static void
begin(struct client *c)
{
    c->error[0] = '\0';
    json_decref(c->refusal);
    c->refusal = NULL;
}

int
client_open(struct client *c, bool fresh)
{
    begin(c);
    if (!fresh && c->channel != NULL && c->expires >= wall_ms() + EXPIRY_MARGIN)
        return KMS_OK;
    return create_channel(c);
}

/* Seals the requests, n of them, for which answers has nothing yet; posts them and opens the
 * answers. */
static int
round_trip(struct client *c, json_t **requests, size_t n, bool on_behalf, json_t **answers)
{
    char(*ids)[UUID_TEXT + 1] = calloc(n, sizeof(*ids));
    json_t *messages = json_array(), *sealed_answers = NULL;
    struct buf text = BUF_INIT, sealed = BUF_INIT;
    size_t i, at = 0;
    int r = KMS_OK;

    if (ids == NULL || messages == NULL)
        r = no_memory(c);
    for (i = 0; i < n && r == KMS_OK; i++) {
        if (answers[i] != NULL)
            continue;
        buf_reset(&text);
        buf_reset(&sealed);
        if ((r = new_id(c, ids[i])) != KMS_OK ||
            (r = put_request(c, requests[i], ids[i], NULL, on_behalf, &text)) != KMS_OK)
            break;
        if ((r = jwe_seal_dir(&sealed, c->channel, c->key->b, text.data, text.len)) != KMS_OK)
            fail(c, r, "a request cannot be sealed: %s", kms_strerror(r));
        else if (json_array_append_new(messages, json_string(buf_str(&sealed))) != 0)
            r = no_memory(c);
    }
    if (r == KMS_OK)
        r = post(c, messages, &sealed_answers);
    for (i = 0; i < n && r == KMS_OK; i++)
        if (answers[i] == NULL)
            r = open_answer(c, json_array_get(sealed_answers, at++), ids[i], false, &answers[i]);
    json_decref(messages);
    json_decref(sealed_answers);
    buf_release(&text);
    buf_release(&sealed);
    free(ids);
    return r;
}

/* Drops the answers that say that the channel is not ours any more.  True: there were some. */
static bool
drop_resets(json_t **answers, size_t n)
{
    bool dropped = false;
    size_t i;

    for (i = 0; i < n; i++) {
        if (code_of(answers[i]) == KMS_CODE_RESET ||
            code_of(answers[i]) == KMS_CODE_WRONG_PRINCIPAL) {
            json_decref(answers[i]);
            answers[i] = NULL;
            dropped = true;
        }
    }
    return dropped;
}

int
client_call_many(struct client *c, json_t **requests, size_t n, json_t **answers)
{
    size_t i;
    int r;

    for (i = 0; i < n; i++)
        answers[i] = NULL;
    if ((r = client_open(c, false)) == KMS_OK && n > 0 &&
        (r = round_trip(c, requests, n, true, answers)) == KMS_OK && drop_resets(answers, n) &&
        (r = create_channel(c)) == KMS_OK)
        r = round_trip(c, requests, n, true, answers);
    if (r != KMS_OK) {
        for (i = 0; i < n; i++) {
            json_decref(answers[i]);
            answers[i] = NULL;
        }
    }
    return r;
}

int
client_call(struct client *c, json_t *request, json_t **answer)
{
    int r = client_call_many(c, &request, 1, answer);

    if (r == KMS_OK && status_of(*answer) / 100 != 2) {
        r = refused(c, *answer);
        json_decref(*answer);
        *answer = NULL;
    }
    return r;
}

int
client_close(struct client *c)
{
    json_t *request, *answer = NULL;
    int r;

    begin(c);
    if (c->channel == NULL)
        return KMS_OK;
    if ((request = json_pack("{s:s,s:s}", "method", "delete", "uri", c->channel)) == NULL)
        return no_memory(c);
    if ((r = round_trip(c, &request, 1, false, &answer)) == KMS_OK &&
        status_of(answer) / 100 != 2 && code_of(answer) != KMS_CODE_RESET)
        r = refused(c, answer);
    json_decref(request);
    json_decref(answer);
    if (r == KMS_OK) {
        forget_channel(c);
        r = keep_channel(c);
    }
    return r;
}

/* One key: its jwe becomes a jwk. */
static int
open_key(struct client *c, json_t *key, EVP_PKEY *open_with)
{
    const char *compact = json_string_value(json_object_get(key, "jwe"));
    struct buf plain = BUF_INIT;
    struct secret *secret = NULL;
    json_t *jwk = NULL;
    int r = KMS_OK;

    if (compact == NULL)
        return KMS_OK;
    if ((r = jwe_open_to(compact, strlen(compact), open_with, &plain)) != KMS_OK)
        r = fail(c, KMS_ERR_CRYPTO, "%s is not sealed to this private key: %s",
                 string_of(key, "uri"), kms_strerror(r));
    else if (kms_json_parse(&jwk, buf_str(&plain), plain.len) != KMS_OK ||
             jwk_get_oct(&secret, jwk) != KMS_OK ||
             strcmp(string_of(jwk, "kid"), string_of(key, "uri")) != 0)
        r = fail(c, KMS_ERR_CRYPTO, "what was sealed is not the key %s", string_of(key, "uri"));
    else if (json_object_set(key, "jwk", jwk) != 0)
        r = no_memory(c);
    else
        json_object_del(key, "jwe");
    secret_free(secret);
    json_decref(jwk);
    buf_release(&plain);
    return r;
}

int
client_open_keys(struct client *c, json_t *answer, EVP_PKEY *open_with)
{
    const json_t *keys = json_object_get(answer, "keys");
    size_t i;
    int r;

    r = open_key(c, json_object_get(answer, "key"), open_with);
    for (i = 0; i < json_array_size(keys) && r == KMS_OK; i++)
        r = open_key(c, json_array_get(keys, i), open_with);
    return r;
}

int
client_get_key(struct client *c, const char *uri, const json_t *members, EVP_PKEY *open_with,
               struct secret **out)
{
    json_t *request, *answer = NULL;
    int r;

    *out = NULL;
    if ((request = json_pack("{s:s,s:s}", "method", "retrieve", "uri", uri)) == NULL ||
        (members != NULL && json_object_update(request, (json_t *)(uintptr_t)members) != 0)) {
        json_decref(request);
        return no_memory(c);
    }
    r = client_call(c, request, &answer);
    json_decref(request);
    if (r == KMS_OK && open_with != NULL)
        r = client_open_keys(c, answer, open_with);
    if (r == KMS_OK &&
        jwk_get_oct(out, json_object_get(json_object_get(answer, "key"), "jwk")) != KMS_OK)
        r = fail(c, KMS_ERR_PROTOCOL, "the answer holds no AES-256 key");
    json_decref(answer);
    return r;
}
