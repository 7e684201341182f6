/*
 * test_config.c - a right configuration is read with its defaults; each wrong line is told with
 * file, line and what to write; the committed sample is what the table says.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kms/config.h"
#include "proto/err.h"

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))

static char dir[64];

static const char *
in_dir(const char *name)
{
    static char path[4][128];
    static unsigned n;
    char *p = path[n++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
    return p;
}

static void
put_file(const char *name, const char *text)
{
    FILE *f = fopen(in_dir(name), "w");

    cr_assert_not_null(f);
    fputs(text, f);
    fclose(f);
}

/* A key and a self-signed certificate of it for a name. */
static void
make_certificate(const char *pem, const char *key_pem, EVP_PKEY *key, const char *name)
{
    X509 *x = X509_new();
    X509_NAME *subject = X509_get_subject_name(x);
    FILE *f;

    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), 0);
    X509_gmtime_adj(X509_getm_notAfter(x), 86400);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(x, subject);
    X509_set_pubkey(x, key);
    cr_assert_gt(X509_sign(x, key, EVP_sha256()), 0);
    f = fopen(in_dir(pem), "w");
    PEM_write_X509(f, x);
    fclose(f);
    f = fopen(in_dir(key_pem), "w");
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    X509_free(x);
}

static void
set_up(void)
{
    EVP_PKEY *rsa = EVP_RSA_gen(2048), *ec = EVP_EC_gen("P-256"), *other = EVP_EC_gen("P-256");

    snprintf(dir, sizeof(dir), "/tmp/test_config.XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    make_certificate("static.pem", "static.key", rsa, "kms.example.com");
    make_certificate("tls.pem", "tls.key", ec, "kms.example.com");
    make_certificate("other.pem", "other.key", other, "other.example.com");
    put_file("keys.json", "{\"keys\":[]}");
    put_file("junk.pem", "no certificate\n");
    EVP_PKEY_free(rsa);
    EVP_PKEY_free(ec);
    EVP_PKEY_free(other);
}

static void
tear_down(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(config, .init = set_up, .fini = tear_down);

/* A right configuration, with one line of `section` replaced or added (NULL: none).  %D in it
 * stands for the directory. */
static void
write_config(const char *section, const char *line)
{
    static const char *const lines[][2] = {
        {"kms", "domain = kms.example.com"},
        {"kms", "static_certificate = %D/static.pem"},
        {"tls", "certificate = %D/tls.pem"},
        {"tls", "key = %D/tls.key"},
        {"services", "ca = "},
        {"admin", "group = "},
        {"metrics", "listen = 127.0.0.1:9464"},
        {"database", "worker_url = postgresql://kms_worker@/kms?host=/run/postgresql"},
        {"database", "keeper_url = host=/run/postgresql user=kms_keeper dbname=kms"},
        {"hsm", "deadline = 5s"},
        {"token", "issuer = https://idp.example.com"},
        {"token", "audience = kms"},
        {"token", "key_set_file = %D/keys.json"},
        {"lifetimes", "channel = 1h"},
        {"limits", "connections = 10000"},
        {"log", "level = info"},
        {"hsmd", "module = /nowhere.so"},
    };
    FILE *f = fopen(in_dir("kms.conf"), "w");
    const char *last = "";
    size_t name = line != NULL ? strcspn(line, " =") : 0;

    cr_assert_not_null(f);
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        bool here = section != NULL && strcmp(section, lines[i][0]) == 0;
        const char *text = lines[i][1];

        if (strcmp(last, lines[i][0]) != 0) {
            fprintf(f, "[%s]\n", lines[i][0]);
            last = lines[i][0];
            if (here) {
                for (const char *p = line; *p != '\0'; p++) {
                    if (p[0] == '%' && p[1] == 'D') {
                        fputs(dir, f);
                        p++;
                    } else {
                        fputc(*p, f);
                    }
                }
                fputc('\n', f);
            }
        }
        if (here && strncmp(line, text, name) == 0 && strcspn(text, " =") == name)
            continue;
        for (const char *p = text; *p != '\0'; p++) {
            if (p[0] == '%' && p[1] == 'D') {
                fputs(dir, f);
                p++;
            } else {
                fputc(*p, f);
            }
        }
        fputc('\n', f);
    }
    fclose(f);
}

/* Reads it; the errors in text. */
static int
read_config(struct config **c, char text[4096])
{
    FILE *errors = fmemopen(text, 4096, "w");
    int r;

    memset(text, 0, 4096);
    r = config_read(c, in_dir("kms.conf"), errors);
    fclose(errors);
    return r;
}

Test(config, reads_a_right_file_with_defaults)
{
    struct config *c;
    char text[4096];

    write_config(NULL, NULL);
    cr_assert_eq(read_config(&c, text), KMS_OK, "%s", text);
    cr_assert_str_eq(c->domain, "kms.example.com");
    cr_assert_str_eq(c->listen, "[::]:8443");
    cr_assert_str_eq(c->scope, "spark:kms");
    cr_assert_str_eq(c->metrics_listen, "127.0.0.1:9464");
    cr_assert_neq(c->node[0], '\0');
    cr_assert_eq(c->channel, 3600);
    cr_assert_eq(c->bound_key, 30LL * 86400);
    cr_assert_eq(c->ttl_max, 3650LL * 86400);
    cr_assert_eq(c->wrapping_key_wraps, 1LL << 30);
    cr_assert_eq(c->db_connections, 3);
    cr_assert(c->db_require_durable);
    config_free(c);
}

struct wrong {
    char section[16];
    char line[160];
    char want[64];
};

ParameterizedTestParameters(config, tells_what_is_wrong)
{
    static struct wrong rows[] = {
        {"kms", "domain = KMS.example.com", "lower case"},
        {"kms", "domain = -a.example.com", "DNS name"},
        {"kms", "domain = a..b", "DNS name"},
        {"kms", "domain = other.example.com", "is not for other.example.com"},
        {"kms", "listen = 8443", "numeric address"},
        {"kms", "listen = localhost:8443", "numeric address"},
        {"kms", "listen = 127.0.0.1:0", "numeric address"},
        {"kms", "listen = 127.0.0.1:65536", "numeric address"},
        {"kms", "listen = ::1:8443", "numeric address"},
        {"kms", "listen = 127.0.0.1:9464", "another port"},
        {"kms", "user = no-such-user", "there is no user"},
        {"kms", "workers = 65", "workers"},
        {"kms", "drain = 2x", "drain"},
        {"kms", "colour = blue", "colour"},
        {"kms", "static_certificate = %D/none.pem", "none.pem"},
        {"kms", "static_certificate = %D/junk.pem", "no certificate"},
        {"kms", "static_certificate = %D/tls.pem", "no RSA key"},
        {"tls", "key = %D/other.key", "is not the key"},
        {"tls", "key = %D/junk.pem", "no private key"},
        {"tls", "certificate = %D/junk.pem", "no certificate"},
        {"tls", "client_ca = %D/junk.pem", "no certificate"},
        {"services", "ca = %D/junk.pem", "no certificate"},
        {"services", "ca = %D/static.pem\ncrl = %D/junk.pem", "no revocation list"},
        {"services", "crl = %D/junk.pem", "set [services] ca"},
        {"admin", "operators = root, no-such-user", "is nobody"},
        {"admin", "operators = @no-such-group", "is nobody"},
        {"admin", "group = no-such-group", "there is no group"},
        {"admin", "socket = run/admin.sock", "socket"},
        {"database", "worker_url = nonsense", "not a libpq connection string"},
        {"database", "worker_url = postgresql://u:hunter2@127.0.0.1/kms", "contains a password"},
        {"database", "worker_url = host=db.example.com dbname=kms", "add hostaddr"},
        {"database", "connections = 0", "connections"},
        {"token", "key_set_file = ", "no way to check tokens"},
        {"token", "key_set_url = https://idp.example.com/keys", "keep one"},
        {"token", "introspection_url = http://idp.example.com/i", "not an https URL"},
        {"token", "introspection_url = http://127.0.0.1.example.com/i", "not an https URL"},
        {"token", "introspection_url = http://127.0.0.1:80@example.com/i", "not an https URL"},
        {"token", "introspection_url = https://idp.example.com/i", "introspection_client"},
        {"token", "key_set_keep = 10m", "key_set_refresh"},
        {"lifetimes", "ttl_min = 4000d", "ttl_max"},
        {"limits", "connections_source = 20000", "more than connections"},
        {"log", "level = loud", "not a level"},
    };
    return PARAMS(rows);
}

ParameterizedTest(struct wrong *w, config, tells_what_is_wrong)
{
    struct config *c;
    char text[4096], where[160];

    write_config(w->section, w->line);
    cr_assert_eq(read_config(&c, text), KMS_ERR_CONFIG, "%s was taken", w->line);
    cr_assert_null(c);
    cr_assert_not_null(strstr(text, w->want), "%s: told \"%s\"", w->line, text);
    /* Each error begins with the file; most with the line too. */
    snprintf(where, sizeof(where), "%s:", in_dir("kms.conf"));
    cr_assert_eq(strncmp(text, where, strlen(where)), 0, "%s", text);
    cr_assert_null(strstr(text, "hunter2"), "a password was told");
}

struct right {
    char section[16];
    char line[160];
};

ParameterizedTestParameters(config, takes)
{
    static struct right rows[] = {
        {"kms", "listen = [::1]:8443"},
        {"kms", "listen = 0.0.0.0:443"},
        {"kms", "user = root"},
        {"kms", "user = 0"},
        {"admin", "operators = root, 12345 @root"},
        {"metrics", "listen = "},
        {"database", "worker_url = host=db.example.com hostaddr=192.0.2.1 sslmode=verify-full"},
        {"database", "worker_url = postgresql://kms_worker@[::1]:5432/kms"},
        {"database", "worker_url = postgresql://kms_worker@%2Frun%2Fpostgresql/kms"},
        {"token", "leeway = 0"},
    };
    return PARAMS(rows);
}

ParameterizedTest(struct right *w, config, takes)
{
    struct config *c;
    char text[4096];

    write_config(w->section, w->line);
    cr_assert_eq(read_config(&c, text), KMS_OK, "%s: %s", w->line, text);
    config_free(c);
}

Test(config, tells_all_errors_at_once)
{
    struct config *c;
    char text[4096];
    int lines = 0;

    write_config("kms", "listen = nowhere\nworkers = many\nuser = no-such-user");
    cr_assert_eq(read_config(&c, text), KMS_ERR_CONFIG);
    for (const char *p = text; (p = strchr(p, '\n')) != NULL; p++)
        lines++;
    cr_assert_eq(lines, 3, "%s", text);
}

Test(config, refuses_a_file_that_is_not_there)
{
    struct config *c;
    char text[4096];

    cr_assert_eq(read_config(&c, text), KMS_ERR_CONFIG);
    cr_assert_neq(text[0], '\0');
}

Test(config, the_committed_sample_is_what_the_table_says)
{
    char made[128], command[512];
    int saved, fd;

    snprintf(made, sizeof(made), "%s/sample", dir);
    fflush(stdout);
    saved = dup(1);
    cr_assert_not_null(freopen(made, "w", stdout));
    config_print_sample();
    fflush(stdout);
    fd = dup2(saved, 1);
    cr_assert_eq(fd, 1);
    close(saved);
    snprintf(command, sizeof(command), "cmp %s %s/kms/kms.conf.sample", made, SOURCE_DIR);
    cr_assert_eq(system(command), 0, "make it anew: kmsctl config sample >kms/kms.conf.sample");
}
