/*
 * certs.h - keys and certificates for tests, made on the spot and written where the code under test
 * reads them.
 */
#ifndef TESTS_CERTS_H
#define TESTS_CERTS_H

#include <openssl/evp.h>
#include <openssl/x509.h>

/* A new EC P-256 key. */
EVP_PKEY *certs_key(void);
/* A certificate for 127.0.0.1 and localhost, good for a day; issuer NULL: its own, and a CA. */
X509 *certs_make(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key);
/* A new directory under TMPDIR; the process removes what it wrote there by certs_clean. */
const char *certs_dir(void);
void certs_clean(void);
/* The path of a file in that directory; static, one of eight in turn. */
const char *certs_path(const char *file);
/* Writes PEM, or any text. */
void certs_put_cert(const char *file, X509 *cert);
void certs_put_key(const char *file, EVP_PKEY *key);
void certs_put_text(const char *file, const char *text);

#endif
