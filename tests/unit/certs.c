/* certs.c - keys and certificates for tests. */
#include "tests/unit/certs.h"

#include <dirent.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MUST(x)                                                                                    \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static char dir[256];

EVP_PKEY *
certs_key(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");

    MUST(key != NULL);
    return key;
}

static void
add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *ext;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    MUST((ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value)) != NULL);
    MUST(X509_add_ext(cert, ext, -1) == 1);
    X509_EXTENSION_free(ext);
}

X509 *
certs_make(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key)
{
    X509 *cert = X509_new();
    unsigned char serial[8];
    BIGNUM *number;

    MUST(cert != NULL && RAND_bytes(serial, sizeof(serial)) == 1);
    serial[0] &= 0x7f;
    MUST((number = BN_bin2bn(serial, sizeof(serial), NULL)) != NULL);
    BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
    BN_free(number);
    X509_set_version(cert, 2);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
                               (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(issuer == NULL ? cert : issuer));
    if (issuer == NULL)
        add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE");
    add_extension(cert, issuer == NULL ? cert : issuer, NID_subject_alt_name,
                  "IP:127.0.0.1,DNS:localhost");
    MUST(X509_sign(cert, issuer_key == NULL ? key : issuer_key, EVP_sha256()) != 0);
    return cert;
}

const char *
certs_dir(void)
{
    const char *tmp = getenv("TMPDIR");

    if (dir[0] == '\0') {
        snprintf(dir, sizeof(dir), "%s/kms-test-XXXXXX", tmp == NULL ? P_tmpdir : tmp);
        MUST(mkdtemp(dir) != NULL);
    }
    return dir;
}

void
certs_clean(void)
{
    struct dirent *e;
    DIR *d;

    if (dir[0] == '\0' || (d = opendir(dir)) == NULL)
        return;
    while ((e = readdir(d)) != NULL)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
    dir[0] = '\0';
}

const char *
certs_path(const char *file)
{
    static char paths[8][512];
    static unsigned next;
    char *p = paths[next++ % 8];

    snprintf(p, sizeof(paths[0]), "%s/%s", certs_dir(), file);
    return p;
}

static FILE *
open_file(const char *file)
{
    FILE *f = fopen(certs_path(file), "w");

    MUST(f != NULL);
    return f;
}

void
certs_put_cert(const char *file, X509 *cert)
{
    FILE *f = open_file(file);

    MUST(PEM_write_X509(f, cert) == 1);
    MUST(fclose(f) == 0);
}

void
certs_put_key(const char *file, EVP_PKEY *key)
{
    FILE *f = open_file(file);

    MUST(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1);
    MUST(fclose(f) == 0);
}

void
certs_put_text(const char *file, const char *text)
{
    FILE *f = open_file(file);

    MUST(fputs(text, f) >= 0);
    MUST(fclose(f) == 0);
}
