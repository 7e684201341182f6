/*
 * config.c - the table of settings of kmsd, and the checks that need more than one of them or a
 * look at a file.
 */
#include "kms/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <libpq-fe.h>
#include <limits.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hsm/conf.h"
#include "hsm/log.h"
#include "kms/shared.h"
#include "proto/err.h"

#define SOCKET_PATH_MAX 107 /* of sun_path, less its NUL */

#define MINUTE (60LL)
#define HOUR   (60 * MINUTE)
#define DAY    (24 * HOUR)

/* A table reads by its columns. */
/* clang-format off */
#define TEXT(s, n, m, d, h) { s, n, CONF_STRING, offsetof(struct config, m), d, 0, 0, h }
#define FILE_(s, n, m, d, h) { s, n, CONF_FILE, offsetof(struct config, m), d, 0, 0, h }
#define PATH(s, n, m, d, h) { s, n, CONF_PATH, offsetof(struct config, m), d, 0, 0, h }
#define WORDS(s, n, m, d, h) { s, n, CONF_LIST, offsetof(struct config, m), d, 0, 0, h }
#define TRUTH(s, n, m, d, h) { s, n, CONF_BOOL, offsetof(struct config, m), d, 0, 0, h }
#define NUMBER(s, n, m, d, lo, hi, h) { s, n, CONF_INT, offsetof(struct config, m), d, lo, hi, h }
#define SECONDS(s, n, m, d, lo, hi, h) { s, n, CONF_SECONDS, offsetof(struct config, m), d, lo, hi, h }

static const struct conf_setting settings[] = {
    TEXT("kms", "domain", domain, NULL,
        "the host part of kms: URIs, in lower case; clients check the static certificate against it"),
    TEXT("kms", "listen", listen, "[::]:8443",
        "address:port of the HTTPS listener; [::] takes IPv4 as well"),
    TEXT("kms", "node", node, "",
        "this node's name in audit entries and logs; empty: the host's name"),
    TEXT("kms", "user", user, "",
        "the user to become when started as root; empty: stay"),
    PATH("kms", "pid_file", pid_file, "",
        "where to write the parent's process id; empty: nowhere"),
    NUMBER("kms", "workers", workers, "0", 0, WORKERS_MAX,
        "worker processes; 0: one for each core"),
    SECONDS("kms", "drain", drain, "30s", 0, HOUR,
        "how long SIGTERM waits for requests under way"),
    FILE_("kms", "static_certificate", static_certificate, NULL,
        "PEM chain of the static key's certificate, leaf first (see kmsctl hsm status for the public key)"),

    FILE_("tls", "certificate", tls_certificate, NULL,
        "PEM chain of the listener, leaf first"),
    FILE_("tls", "key", tls_key, NULL,
        "its private key, PEM, without a passphrase"),
    FILE_("tls", "client_ca", tls_client_ca, "",
        "the older name of [services] ca; set that one"),

    FILE_("services", "ca", services_ca, "",
        "PEM of the CAs that cloud services' certificates are under; empty: no client certificate is asked for"),
    FILE_("services", "crl", services_crl, "",
        "PEM of the CAs' revocation lists, one of each CA; read again when the file changes; empty: none"),

    PATH("admin", "socket", admin_socket, "/run/kms/admin.sock",
        "the Unix socket that kmsctl talks to"),
    TEXT("admin", "group", admin_group, "",
        "the group that may reach the socket; empty: the daemon's own"),
    WORDS("admin", "operators", operators, "",
        "who may run the server besides root and its own user: user names, numeric uids, @groups"),
    WORDS("admin", "officers", officers, "",
        "who may decide about services, matters, main keys, roots, freezes and destruction; nobody if not named here"),
    WORDS("admin", "auditors", auditors, "",
        "who may read the log; nobody if not named here"),
    NUMBER("admin", "approvals", approvals, "2", 1, 10,
        "least number of different officers that an action needs which opens up or destroys, who asks for it included"),

    FILE_("audit", "witnesses", audit_witnesses, "",
        "a file with the verifier keys of witnesses whose cosignatures are kept, one a line; empty: none"),
    TEXT("audit", "syslog", audit_syslog, "",
        "address:port of a syslog collector (RFC 5424 over TLS, RFC 5425) that gets every entry; empty: none"),
    TEXT("audit", "syslog_name", audit_syslog_name, "",
        "the DNS name that its certificate must carry"),
    FILE_("audit", "syslog_ca", audit_syslog_ca, "",
        "PEM of the CA behind its certificate; empty: the system's"),
    FILE_("audit", "syslog_certificate", audit_syslog_certificate, "",
        "PEM chain that this server shows to it; empty: none"),
    FILE_("audit", "syslog_key", audit_syslog_key, "",
        "its private key, PEM"),

    TEXT("metrics", "listen", metrics_listen, "127.0.0.1:9464",
        "address:port of /livez, /readyz and /metrics, plain HTTP; empty: off"),

    TEXT("database", "worker_url", worker_url, NULL,
        "libpq connection string of role kms_worker; passwords belong in a passfile"),
    TEXT("database", "keeper_url", keeper_url, NULL,
        "libpq connection string of role kms_keeper"),
    NUMBER("database", "connections", db_connections, "3", 1, 32,
        "connections of each worker"),
    SECONDS("database", "deadline", db_deadline, "5s", 1, MINUTE,
        "how long a request waits for the database before it is refused with 503"),
    TRUTH("database", "require_durable", db_require_durable, "yes",
        "refuse a server with fsync, full_page_writes or synchronous_commit off"),

    PATH("hsm", "socket", hsm_socket, "/run/kms-hsm/hsmd.sock",
        "hsmd's Unix socket"),
    SECONDS("hsm", "deadline", hsm_deadline, "5s", 1, MINUTE,
        "how long a request waits for the HSM before it is refused with 503"),

    TEXT("token", "issuer", issuer, NULL,
        "the identity provider: exactly what tokens say in iss"),
    TEXT("token", "audience", audience, NULL,
        "what tokens for this server say in aud"),
    TEXT("token", "scope", scope, "spark:kms",
        "the scope that a token must have"),
    TEXT("token", "org_claim", org_claim, "org",
        "the claim with the organisation's name"),
    TEXT("token", "roles_claim", roles_claim, "roles",
        "the claim with the array of roles"),
    TEXT("token", "compliance_role", compliance_role, "spark.kms_orgagent",
        "the role that may ask on behalf of another user"),
    TEXT("token", "admin_role", admin_role, "id_full_admin",
        "the role that may manage customer main keys"),
    FILE_("token", "key_set_file", key_set_file, "",
        "the provider's key set (JWK set) as a file"),
    TEXT("token", "key_set_url", key_set_url, "",
        "or its https URL"),
    FILE_("token", "key_set_ca", key_set_ca, "",
        "PEM of the CA behind the provider's https URLs; empty: the system's"),
    SECONDS("token", "key_set_refresh", key_set_refresh, "1h", 10, DAY,
        "time between regular fetches of the key set"),
    SECONDS("token", "key_set_cooldown", key_set_cooldown, "30s", 1, HOUR,
        "least time between fetches for an unknown kid"),
    SECONDS("token", "key_set_keep", key_set_keep, "1d", MINUTE, 30 * DAY,
        "how long a key set is good when the provider cannot be reached"),
    TEXT("token", "introspection_url", introspection_url, "",
        "RFC 7662 endpoint for opaque tokens; empty: they are refused"),
    TEXT("token", "introspection_client", introspection_client, "",
        "the client id to authenticate to it with"),
    FILE_("token", "introspection_secret_file", introspection_secret_file, "",
        "a file with that client's secret"),
    SECONDS("token", "introspection_cache", introspection_cache, "60s", 0, HOUR,
        "how long its answer is remembered"),
    SECONDS("token", "leeway", leeway, "30s", 0, 5 * MINUTE,
        "clock difference to the provider that is forgiven"),
    SECONDS("token", "max_lifetime", max_lifetime, "1d", 0, 3650 * DAY,
        "tokens with more time than this to their end are refused; 0: any"),

    SECONDS("keys", "waiting", waiting, "7d", 0, 365 * DAY,
        "how long a command to destroy waits, and can be undone; 0: not at all"),
    NUMBER("keys", "rewrap_rate", rewrap_rate, "1000", 1, 1000000,
        "keys a second that the keeper moves to another wrapping key or root in the background"),
    TRUTH("keys", "byok", byok, "yes",
        "whether customers may bring main keys of their own"),
    TRUTH("keys", "main_key_128", main_key_128, "no",
        "whether such a key may have 128 bits; else it must have 256"),

    SECONDS("lifetimes", "channel", channel, "1h", MINUTE, 30 * DAY,
        "of an ephemeral key (a channel)"),
    SECONDS("lifetimes", "unbound_key", unbound_key, "1h", MINUTE, 30 * DAY,
        "how long a new key may wait to be bound"),
    SECONDS("lifetimes", "bound_key", bound_key, "30d", HOUR, 3650 * DAY,
        "how long a bound key should be used to encrypt"),
    SECONDS("lifetimes", "ttl_min", ttl_min, "60s", 1, 36500 * DAY,
        "shortest time to live that a resource may ask for"),
    SECONDS("lifetimes", "ttl_max", ttl_max, "3650d", 1, 36500 * DAY,
        "longest one; for ever (0) is always allowed"),
    SECONDS("lifetimes", "wrapping_key", wrapping_key, "90d", HOUR, 3650 * DAY,
        "age at which an organisation gets a new wrapping key"),
    NUMBER("lifetimes", "wrapping_key_wraps", wrapping_key_wraps, "1073741824", 1000, 4294967296LL,
        "use at which it gets one: AES-GCM with random nonces must stay well under 2^32"),

    NUMBER("limits", "connections", connections, "10000", 1, 1000000,
        "open client connections of each worker"),
    NUMBER("limits", "connections_source", connections_source, "1000", 1, 1000000,
        "of these, from one address (a messaging service is one address)"),
    NUMBER("limits", "handshakes", handshakes, "256", 1, 100000,
        "unfinished TLS handshakes of each worker"),
    NUMBER("limits", "messages_inflight", messages_inflight, "10000", 100, 1000000,
        "messages under way in each worker; beyond: 503"),
    NUMBER("limits", "rate_source", rate_source, "0", 0, 1000000,
        "messages a second from one address; 0: off, since one messaging service relays for everyone"),
    NUMBER("limits", "rate_subject", rate_subject, "200", 0, 1000000,
        "messages a second of one user; 0: off"),
    NUMBER("limits", "rate_open", rate_open, "300", 0, 1000000,
        "new channels a second of each worker (each costs the HSM an RSA decryption and a signature); 0: off"),
    SECONDS("limits", "handshake_timeout", handshake_timeout, "5s", 1, MINUTE,
        "for the whole TLS handshake"),
    SECONDS("limits", "head_timeout", head_timeout, "5s", 1, MINUTE,
        "for a whole request head"),
    SECONDS("limits", "body_timeout", body_timeout, "10s", 1, 10 * MINUTE,
        "for a whole body"),
    SECONDS("limits", "answer_timeout", answer_timeout, "10s", 1, 10 * MINUTE,
        "for a client to take its whole answer"),
    SECONDS("limits", "idle_timeout", idle_timeout, "60s", 1, HOUR,
        "of a connection without a request"),
    NUMBER("limits", "resource_keys", resource_keys, "10000", 1, 1000000,
        "keys in one answer; beyond: 413001 unless count is given"),
    NUMBER("limits", "channel_cache", channel_cache, "40000", 16, 10000000,
        "channels whose keys each worker holds in locked memory"),

    TEXT("log", "level", log_level, "info",
        "error, warn, info or debug"),

};
/* clang-format on */
#define SETTINGS (sizeof(settings) / sizeof(settings[0]))

/* The sections of this file that hsmd reads. */
static const char *const others[] = {"hsmd", NULL};

/* One run of checks: the struct, where errors go, and whether there were any. */
struct check {
    struct config *c;
    const char *path;
    FILE *errors;
    int bad;
};

static void
put_error(void *ctx, const char *text)
{
    struct check *k = ctx;

    k->bad++;
    if (k->errors != NULL)
        fprintf(k->errors, "%s\n", text);
}

/* The line that sets [section] name, or 0 when it is left to its default. */
static int
line_of(const char *path, const char *section, const char *name)
{
    char *line = NULL;
    size_t cap = 0, len = strlen(section);
    int n = 0, found = 0;
    bool inside = false;
    FILE *f = fopen(path, "re");

    if (f == NULL)
        return 0;
    while (getline(&line, &cap, f) >= 0) {
        const char *p = line;

        n++;
        while (isspace((unsigned char)*p))
            p++;
        if (*p == '[') {
            inside = strncmp(p + 1, section, len) == 0 && p[1 + len] == ']';
        } else if (inside && strncmp(p, name, strlen(name)) == 0) {
            p += strlen(name);
            while (isblank((unsigned char)*p))
                p++;
            if (*p == '=' || *p == ':')
                found = n;
        }
    }
    free(line);
    fclose(f);
    return found;
}

static void wrong(struct check *k, const char *section, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* "FILE:LINE: [section] name: what is wrong; what to write". */
static void
wrong(struct check *k, const char *section, const char *name, const char *fmt, ...)
{
    char what[1024], text[2048];
    int line = line_of(k->path, section, name);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    if (line > 0)
        snprintf(text, sizeof(text), "%s:%d: [%s] %s: %s", k->path, line, section, name, what);
    else
        snprintf(text, sizeof(text), "%s: [%s] %s: %s", k->path, section, name, what);
    put_error(k, text);
}

static bool
given(const char *s)
{
    return s != NULL && s[0] != '\0';
}

int
config_address(const char *text, struct sockaddr_storage *out, socklen_t *len)
{
    char host[64], port[8];
    const char *h, *end, *p;
    size_t n;
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *ai;

    if (text[0] == '[') {
        h = text + 1;
        end = strchr(h, ']');
        if (end == NULL || end[1] != ':')
            return KMS_ERR_SYNTAX;
        p = end + 2;
        hints.ai_family = AF_INET6;
    } else {
        h = text;
        end = strchr(h, ':');
        if (end == NULL)
            return KMS_ERR_SYNTAX;
        p = end + 1;
        hints.ai_family = AF_INET;
    }
    n = (size_t)(end - h);
    if (n == 0 || n >= sizeof(host) || strlen(p) == 0 || strlen(p) >= sizeof(port) ||
        strspn(p, "0123456789") != strlen(p) || atoi(p) < 1 || atoi(p) > 65535)
        return KMS_ERR_SYNTAX;
    memcpy(host, h, n);
    host[n] = '\0';
    memcpy(port, p, strlen(p) + 1);
    if (getaddrinfo(host, port, &hints, &ai) != 0)
        return KMS_ERR_SYNTAX;
    memcpy(out, ai->ai_addr, ai->ai_addrlen);
    *len = ai->ai_addrlen;
    freeaddrinfo(ai);
    return KMS_OK;
}

/* Lower-case labels of letters, digits and inner hyphens. */
static bool
is_domain(const char *s)
{
    size_t label = 0, len = strlen(s);

    if (len == 0 || len > 253)
        return false;
    for (size_t i = 0; i <= len; i++) {
        char ch = s[i];

        if (ch == '.' || ch == '\0') {
            if (label == 0 || label > 63 || s[i - 1] == '-')
                return false;
            label = 0;
        } else if ((ch >= 'a' && ch <= 'z') || (ch >= '0' && ch <= '9') ||
                   (ch == '-' && label > 0)) {
            label++;
        } else {
            return false;
        }
    }
    return true;
}

static void
check_address(struct check *k, const char *section, const char *name, const char *value)
{
    struct sockaddr_storage ss;
    socklen_t len;

    if (given(value) && config_address(value, &ss, &len) != KMS_OK)
        wrong(k, section, name,
              "\"%s\" is not a numeric address with a port; write 192.0.2.1:8443 or [::]:8443",
              value);
}

/* https, or http to this machine itself: a token or a key set that travels in the clear can be
 * replaced on its way. */
static void
check_url(struct check *k, const char *name, const char *url)
{
    static const char *const near[] = {"http://127.0.0.1", "http://[::1]", "http://localhost"};

    if (!given(url))
        return;
    if (strncmp(url, "https://", 8) == 0 && url[8] != '\0' && url[8] != '/')
        return;
    for (size_t i = 0; i < sizeof(near) / sizeof(near[0]); i++) {
        size_t n = strlen(near[i]);

        if (strncmp(url, near[i], n) == 0 && (url[n] == ':' || url[n] == '/' || url[n] == '\0') &&
            strchr(url, '@') == NULL)
            return;
    }
    wrong(k, "token", name,
          "\"%s\" is not an https URL; write https://HOST/PATH (http only for 127.0.0.1, [::1] or "
          "localhost)",
          url);
}

/* Names are not looked up while serving (that would stop the event loop), and passwords have a file
 * of their own. */
static void
check_database(struct check *k, const char *name, const char *conninfo)
{
    char *why = NULL;
    const char *host = NULL, *hostaddr = NULL, *password = NULL;
    PQconninfoOption *o;
    unsigned char addr[16];

    if (!given(conninfo))
        return;
    if ((o = PQconninfoParse(conninfo, &why)) == NULL) {
        size_t n = why != NULL ? strcspn(why, "\n") : 0;

        wrong(k, "database", name,
              "not a libpq connection string (%.*s); write "
              "postgresql://kms_worker@/kms?host=/run/postgresql",
              (int)n, why != NULL ? why : "");
        PQfreemem(why);
        return;
    }
    for (const PQconninfoOption *p = o; p->keyword != NULL; p++) {
        if (strcmp(p->keyword, "host") == 0)
            host = p->val;
        else if (strcmp(p->keyword, "hostaddr") == 0)
            hostaddr = p->val;
        else if (strcmp(p->keyword, "password") == 0)
            password = p->val;
    }
    if (given(password))
        wrong(k, "database", name,
              "contains a password; put it into a file that only the daemon reads, and write "
              "passfile=FILE");
    if (given(host) && !given(hostaddr) && host[0] != '/' && host[0] != '@' &&
        inet_pton(AF_INET, host, addr) != 1 && inet_pton(AF_INET6, host, addr) != 1)
        wrong(k, "database", name,
              "host=%s is a name, and names are not looked up while serving; add hostaddr=ADDRESS "
              "beside it",
              host);
    PQconninfoFree(o);
}

/* PEM keys must open without asking anybody. */
static int
no_passphrase(char *out, int size, int writing, void *ctx)
{
    return -1;
}

/* The leaf of a PEM chain whose other certificates parse too; NULL: reported. */
static X509 *
read_chain(struct check *k, const char *section, const char *name, const char *path)
{
    X509 *leaf = NULL, *next;
    BIO *in = BIO_new_file(path, "r");
    unsigned long e;

    if (in == NULL) {
        ERR_clear_error();
        return NULL; /* conf_read has said that it cannot be read */
    }
    leaf = PEM_read_bio_X509(in, NULL, no_passphrase, NULL);
    while (leaf != NULL && (next = PEM_read_bio_X509(in, NULL, no_passphrase, NULL)) != NULL)
        X509_free(next);
    /* "No start line" after the last one is the regular end. */
    e = ERR_peek_last_error();
    if (leaf == NULL || ERR_GET_REASON(e) != PEM_R_NO_START_LINE) {
        wrong(k, section, name,
              "%s holds no certificate that can be read; write a PEM file, leaf first", path);
        X509_free(leaf);
        leaf = NULL;
    }
    ERR_clear_error();
    BIO_free(in);
    return leaf;
}

static void
check_tls(struct check *k)
{
    const struct config *c = k->c;
    X509 *leaf = NULL;
    EVP_PKEY *key = NULL;
    BIO *in;

    if (given(c->tls_certificate))
        leaf = read_chain(k, "tls", "certificate", c->tls_certificate);
    if (given(c->tls_key) && (in = BIO_new_file(c->tls_key, "r")) != NULL) {
        key = PEM_read_bio_PrivateKey(in, NULL, no_passphrase, NULL);
        if (key == NULL)
            wrong(k, "tls", "key", "%s holds no private key that opens without a passphrase",
                  c->tls_key);
        BIO_free(in);
    }
    if (leaf != NULL && key != NULL && X509_check_private_key(leaf, key) != 1)
        wrong(k, "tls", "key", "%s is not the key of the first certificate in %s", c->tls_key,
              c->tls_certificate);
    ERR_clear_error();
    X509_free(leaf);
    EVP_PKEY_free(key);
}

static void
check_services(struct check *k)
{
    const struct config *c = k->c;
    X509_CRL *crl = NULL;
    BIO *in;

    if (given(c->services_ca))
        X509_free(read_chain(k, "services", "ca", c->services_ca));
    if (given(c->tls_client_ca))
        X509_free(read_chain(k, "tls", "client_ca", c->tls_client_ca));
    if (given(c->services_ca) && given(c->tls_client_ca) &&
        strcmp(c->services_ca, c->tls_client_ca) != 0)
        wrong(k, "tls", "client_ca", "[services] ca is set too, to another file; keep that one");
    if (!given(c->services_crl))
        return;
    if (!given(config_services_ca(c)))
        wrong(k, "services", "crl", "there is no ca whose list it could be; set [services] ca");
    if ((in = BIO_new_file(c->services_crl, "r")) != NULL) {
        if ((crl = PEM_read_bio_X509_CRL(in, NULL, no_passphrase, NULL)) == NULL)
            wrong(k, "services", "crl",
                  "%s holds no revocation list that can be read; write a PEM file",
                  c->services_crl);
        X509_CRL_free(crl);
        BIO_free(in);
    }
    ERR_clear_error();
}

/* Clients refuse a static key whose certificate is for another name, so better here than there. */
static void
check_static_certificate(struct check *k)
{
    const struct config *c = k->c;
    X509 *leaf;
    EVP_PKEY *key;

    if (!given(c->static_certificate))
        return;
    leaf = read_chain(k, "kms", "static_certificate", c->static_certificate);
    if (leaf == NULL)
        return;
    key = X509_get0_pubkey(leaf);
    if (key == NULL || !EVP_PKEY_is_a(key, "RSA"))
        wrong(k, "kms", "static_certificate",
              "the first certificate in %s has no RSA key; issue one for the public key that "
              "`kmsctl hsm status` shows",
              c->static_certificate);
    if (given(c->domain) && is_domain(c->domain) &&
        X509_check_host(leaf, c->domain, 0, X509_CHECK_FLAG_NO_WILDCARDS, NULL) != 1)
        wrong(k, "kms", "static_certificate",
              "the first certificate in %s is not for %s; issue it with that name as subject "
              "alternative "
              "name",
              c->static_certificate, c->domain);
    ERR_clear_error();
    X509_free(leaf);
}

int
config_user(const char *word, uid_t *uid)
{
    const struct passwd *pw;
    char *end;
    unsigned long n;

    if (word[0] >= '0' && word[0] <= '9') {
        errno = 0;
        n = strtoul(word, &end, 10);
        if (errno != 0 || *end != '\0' || n >= (uid_t)-1)
            return KMS_ERR_NOT_FOUND;
        *uid = (uid_t)n;
        return KMS_OK;
    }
    if ((pw = getpwnam(word)) == NULL)
        return KMS_ERR_NOT_FOUND;
    *uid = pw->pw_uid;
    return KMS_OK;
}

int
config_group(const char *word, gid_t *gid)
{
    const struct group *gr;
    char *end;
    unsigned long n;

    if (word[0] >= '0' && word[0] <= '9') {
        errno = 0;
        n = strtoul(word, &end, 10);
        if (errno != 0 || *end != '\0' || n >= (gid_t)-1)
            return KMS_ERR_NOT_FOUND;
        *gid = (gid_t)n;
        return KMS_OK;
    }
    if ((gr = getgrnam(word)) == NULL)
        return KMS_ERR_NOT_FOUND;
    *gid = gr->gr_gid;
    return KMS_OK;
}

static void
check_list(struct check *k, const char *name, const char *list)
{
    char *copy, *save = NULL;
    uid_t uid;
    gid_t gid;

    if (!given(list) || (copy = strdup(list)) == NULL)
        return;
    for (char *w = strtok_r(copy, " \t,", &save); w != NULL; w = strtok_r(NULL, " \t,", &save)) {
        if (w[0] == '@' ? config_group(w + 1, &gid) != KMS_OK : config_user(w, &uid) != KMS_OK)
            wrong(k, "admin", name,
                  "\"%s\" is nobody; write user names, numeric uids or @groups that exist", w);
    }
    free(copy);
}

static void
check_people(struct check *k)
{
    const struct config *c = k->c;
    uid_t uid;
    gid_t gid;

    if (given(c->user) && config_user(c->user, &uid) != KMS_OK)
        wrong(k, "kms", "user", "there is no user \"%s\"; write one that exists", c->user);
    if (given(c->admin_group) && config_group(c->admin_group, &gid) != KMS_OK)
        wrong(k, "admin", "group", "there is no group \"%s\"; write one that exists",
              c->admin_group);
    check_list(k, "operators", c->operators);
    check_list(k, "officers", c->officers);
    check_list(k, "auditors", c->auditors);
}

static void
check_tokens(struct check *k)
{
    const struct config *c = k->c;

    check_url(k, "key_set_url", c->key_set_url);
    check_url(k, "introspection_url", c->introspection_url);
    if (given(c->key_set_file) && given(c->key_set_url))
        wrong(k, "token", "key_set_url", "key_set_file is set too; keep one of them");
    if (!given(c->key_set_file) && !given(c->key_set_url) && !given(c->introspection_url))
        wrong(k, "token", "key_set_url",
              "no way to check tokens; set key_set_file, key_set_url or introspection_url");
    if (given(c->introspection_url) &&
        (!given(c->introspection_client) || !given(c->introspection_secret_file)))
        wrong(k, "token", "introspection_url",
              "needs introspection_client and introspection_secret_file as well");
}

static void
check_socket(struct check *k, const char *section, const char *path)
{
    if (given(path) && strlen(path) > SOCKET_PATH_MAX)
        wrong(k, section, "socket",
              "is longer than the %d bytes of a Unix socket's path; write a "
              "shorter one",
              SOCKET_PATH_MAX);
}

/* Runs after errors in the file as well, so that one run shows them all: any string may be missing.
 */
static void
check_texts(struct check *k)
{
    struct config *c = k->c;

    if (given(c->domain) && !is_domain(c->domain))
        wrong(k, "kms", "domain",
              "\"%s\" is not a DNS name in lower case; write one like kms.example.com", c->domain);
    check_address(k, "kms", "listen", c->listen);
    check_address(k, "metrics", "listen", c->metrics_listen);
    if (given(c->listen) && given(c->metrics_listen) && strcmp(c->listen, c->metrics_listen) == 0)
        wrong(k, "metrics", "listen", "is the address of [kms] listen; write another port");
    check_tls(k);
    check_services(k);
    check_static_certificate(k);
    check_people(k);
    check_database(k, "worker_url", c->worker_url);
    check_database(k, "keeper_url", c->keeper_url);
    check_tokens(k);
    if (given(c->log_level) && log_level_parse(c->log_level) < 0)
        wrong(k, "log", "level", "\"%s\" is not a level; write error, warn, info or debug",
              c->log_level);
    check_socket(k, "admin", c->admin_socket);
    check_socket(k, "hsm", c->hsm_socket);
}

/* Only when each number is what the file says. */
static void
check_numbers(struct check *k)
{
    const struct config *c = k->c;
    struct sockaddr_storage address;
    socklen_t address_len;

    if (given(c->audit_syslog) && config_address(c->audit_syslog, &address, &address_len) != KMS_OK)
        wrong(k, "audit", "syslog",
              "\"%s\" is no address; write 192.0.2.1:6514 or [2001:db8::1]:6514", c->audit_syslog);
    if (given(c->audit_syslog) && !given(c->audit_syslog_name))
        wrong(k, "audit", "syslog_name", "is needed: the name in the collector's certificate");
    if (given(c->audit_syslog_certificate) != given(c->audit_syslog_key))
        wrong(k, "audit", "syslog_key", "goes with syslog_certificate; write both or none");
    if (c->ttl_min > c->ttl_max)
        wrong(k, "lifetimes", "ttl_min", "is more than ttl_max (%lld s); write less", c->ttl_max);
    if (c->connections_source > c->connections)
        wrong(k, "limits", "connections_source", "is more than connections (%lld); write less",
              c->connections);
    if (c->key_set_keep < c->key_set_refresh)
        wrong(k, "token", "key_set_keep", "is less than key_set_refresh (%lld s); write more",
              c->key_set_refresh);
}

/* An empty node name becomes the host's. */
static int
default_node(struct config *c)
{
    char host[256] = "";

    if (given(c->node))
        return KMS_OK;
    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0')
        memcpy(host, "kms", 4);
    free(c->node);
    c->node = strdup(host);
    return c->node == NULL ? KMS_ERR_CONFIG : KMS_OK;
}

int
config_read(struct config **out, const char *path, FILE *errors)
{
    struct config *c = calloc(1, sizeof(*c));
    struct check k = {.c = c, .path = path, .errors = errors};

    *out = NULL;
    if (c == NULL) {
        put_error(&k, "out of memory");
        return KMS_ERR_CONFIG;
    }
    if (conf_read(c, sizeof(*c), settings, SETTINGS, others, path, put_error, &k) == KMS_OK)
        check_numbers(&k);
    check_texts(&k);
    if (k.bad > 0 || default_node(c) != KMS_OK) {
        config_free(c);
        return KMS_ERR_CONFIG;
    }
    *out = c;
    return KMS_OK;
}

int
config_look(struct config **out, const char *path, FILE *errors)
{
    static struct conf_setting lenient[SETTINGS];
    struct config *c = calloc(1, sizeof(*c));
    struct check k = {.c = c, .path = path, .errors = errors};

    *out = NULL;
    for (size_t i = 0; i < SETTINGS; i++) {
        lenient[i] = settings[i];
        if (lenient[i].def == NULL)
            lenient[i].def = "";
        if (lenient[i].type == CONF_FILE)
            lenient[i].type = CONF_PATH;
    }
    if (c == NULL) {
        put_error(&k, "out of memory");
        return KMS_ERR_CONFIG;
    }
    if (conf_read(c, sizeof(*c), lenient, SETTINGS, others, path, put_error, &k) != KMS_OK) {
        config_free(c);
        return KMS_ERR_CONFIG;
    }
    *out = c;
    return KMS_OK;
}

void
config_free(struct config *c)
{
    if (c == NULL)
        return;
    conf_release(c, settings, SETTINGS);
    free(c);
}

void
config_print_sample(void)
{
    conf_print_sample(settings, SETTINGS);
}

const struct conf_setting *
config_settings(size_t *n)
{
    *n = SETTINGS;
    return settings;
}
