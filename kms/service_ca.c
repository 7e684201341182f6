/* service_ca.c - the CAs of services' certificates and their revocation lists, read from files. */
#include "kms/service_ca.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "hsm/log.h"
#include "proto/err.h"

#define DEPTH_MAX 4 /* as in TLS: intermediate certificates between leaf and anchor */

/* By which a file is known to be another one. */
struct stamp {
    dev_t dev;
    ino_t ino;
    off_t size;
    struct timespec changed;
};

struct service_ca {
    char *crl_path; /* owned; NULL: no lists */
    struct stamp stamp;
    STACK_OF(X509) * cas;       /* owned */
    STACK_OF(X509_CRL) * lists; /* owned; NULL: none are configured */
    X509_STORE *store;          /* owned */
    int64_t until;
};

static int
no_passphrase(char *out, int size, int writing, void *ctx)
{
    return -1;
}

static void
stamp_get(struct stamp *out, const char *path)
{
    struct stat st;

    memset(out, 0, sizeof(*out));
    if (stat(path, &st) != 0)
        return;
    out->dev = st.st_dev;
    out->ino = st.st_ino;
    out->size = st.st_size;
    out->changed = st.st_mtim;
}

/* The regular end of a PEM file is an error to OpenSSL. */
static bool
at_end(void)
{
    unsigned long e = ERR_peek_last_error();

    ERR_clear_error();
    return ERR_GET_LIB(e) == ERR_LIB_PEM && ERR_GET_REASON(e) == PEM_R_NO_START_LINE;
}

static int
read_cas(STACK_OF(X509) * *out, const char *path)
{
    STACK_OF(X509) *all = sk_X509_new_null();
    BIO *in = BIO_new_file(path, "r");
    X509 *cert;
    int r = KMS_ERR_CONFIG;

    if (all == NULL || in == NULL)
        goto out;
    while ((cert = PEM_read_bio_X509(in, NULL, no_passphrase, NULL)) != NULL)
        if (sk_X509_push(all, cert) == 0) {
            X509_free(cert);
            goto out;
        }
    if (at_end() && sk_X509_num(all) > 0) {
        *out = all;
        all = NULL;
        r = KMS_OK;
    }
out:
    ERR_clear_error();
    BIO_free(in);
    sk_X509_pop_free(all, X509_free);
    return r;
}

/* A list says something only about certificates of the CA that signed it. */
static bool
is_signed(const struct service_ca *s, X509_CRL *list)
{
    int i;

    for (i = 0; i < sk_X509_num(s->cas); i++) {
        X509 *ca = sk_X509_value(s->cas, i);
        EVP_PKEY *key = X509_get0_pubkey(ca);

        if (key != NULL &&
            X509_NAME_cmp(X509_get_subject_name(ca), X509_CRL_get_issuer(list)) == 0 &&
            (X509_get_key_usage(ca) & KU_CRL_SIGN) != 0 && X509_CRL_verify(list, key) == 1)
            return true;
    }
    ERR_clear_error();
    return false;
}

static int
read_lists(const struct service_ca *s, STACK_OF(X509_CRL) * *out, const char **why)
{
    STACK_OF(X509_CRL) *all = sk_X509_CRL_new_null();
    BIO *in = BIO_new_file(s->crl_path, "r");
    X509_CRL *list;
    int r = KMS_ERR_CONFIG;

    *why = "the revocation list cannot be read";
    if (all == NULL || in == NULL)
        goto out;
    while ((list = PEM_read_bio_X509_CRL(in, NULL, no_passphrase, NULL)) != NULL) {
        if (!is_signed(s, list)) {
            *why = "a revocation list is signed by none of the services' CAs";
            X509_CRL_free(list);
            goto out;
        }
        if (sk_X509_CRL_push(all, list) == 0) {
            X509_CRL_free(list);
            goto out;
        }
    }
    if (at_end() && sk_X509_CRL_num(all) > 0) {
        *out = all;
        all = NULL;
        r = KMS_OK;
    }
out:
    ERR_clear_error();
    BIO_free(in);
    sk_X509_CRL_pop_free(all, X509_CRL_free);
    return r;
}

static int64_t
time_ms(const ASN1_TIME *t)
{
    struct tm tm;

    if (t == NULL)
        return INT64_MAX;
    return ASN1_TIME_to_tm(t, &tm) == 1 ? (int64_t)timegm(&tm) * 1000 : 0;
}

static X509_STORE *
make_store(const struct service_ca *s, const STACK_OF(X509_CRL) * lists)
{
    X509_STORE *store = X509_STORE_new();
    /* What the operator named is an anchor, also where it is no root. */
    unsigned long flags = X509_V_FLAG_PARTIAL_CHAIN;
    int i;

    if (store == NULL)
        return NULL;
    /* Whoever gives lists means them: a certificate whose CA has none in them is not good. */
    if (lists != NULL)
        flags |= X509_V_FLAG_CRL_CHECK;
    if (X509_STORE_set_flags(store, flags) != 1 || X509_STORE_set_depth(store, DEPTH_MAX) != 1 ||
        X509_STORE_set_purpose(store, X509_PURPOSE_SSL_CLIENT) != 1)
        goto fail;
    for (i = 0; i < sk_X509_num(s->cas); i++)
        if (X509_STORE_add_cert(store, sk_X509_value(s->cas, i)) != 1)
            goto fail;
    for (i = 0; lists != NULL && i < sk_X509_CRL_num(lists); i++)
        if (X509_STORE_add_crl(store, sk_X509_CRL_value(lists, i)) != 1)
            goto fail;
    return store;
fail:
    X509_STORE_free(store);
    ERR_clear_error();
    return NULL;
}

/* On failure what was there before stays. */
static int
load(struct service_ca *s, const char **why)
{
    STACK_OF(X509_CRL) *lists = NULL;
    X509_STORE *store;
    int64_t until = INT64_MAX, next;
    int i, r;

    if (s->crl_path != NULL) {
        /* Taken before it is read: what changes meanwhile is read the next time. */
        stamp_get(&s->stamp, s->crl_path);
        if ((r = read_lists(s, &lists, why)) != KMS_OK)
            return r;
    }
    for (i = 0; lists != NULL && i < sk_X509_CRL_num(lists); i++) {
        next = time_ms(X509_CRL_get0_nextUpdate(sk_X509_CRL_value(lists, i)));
        if (next < until)
            until = next;
    }
    if ((store = make_store(s, lists)) == NULL) {
        *why = "out of memory";
        sk_X509_CRL_pop_free(lists, X509_CRL_free);
        return KMS_ERR_NOMEM;
    }
    X509_STORE_free(s->store);
    sk_X509_CRL_pop_free(s->lists, X509_CRL_free);
    s->store = store;
    s->lists = lists;
    s->until = until;
    return KMS_OK;
}

int
service_ca_new(struct service_ca **out, const char *ca, const char *crl, const char **why)
{
    struct service_ca *s = calloc(1, sizeof(*s));
    int r = KMS_ERR_NOMEM;

    *out = NULL;
    *why = "out of memory";
    if (s == NULL || (crl != NULL && crl[0] != '\0' && (s->crl_path = strdup(crl)) == NULL))
        goto out;
    *why = "the CAs of services' certificates cannot be read";
    if ((r = read_cas(&s->cas, ca)) != KMS_OK || (r = load(s, why)) != KMS_OK)
        goto out;
    *out = s;
    return KMS_OK;
out:
    service_ca_free(s);
    return r;
}

void
service_ca_free(struct service_ca *s)
{
    if (s == NULL)
        return;
    X509_STORE_free(s->store);
    sk_X509_CRL_pop_free(s->lists, X509_CRL_free);
    sk_X509_pop_free(s->cas, X509_free);
    free(s->crl_path);
    free(s);
}

bool
service_ca_refresh(struct service_ca *s)
{
    struct stamp now;
    const char *why;

    if (s->crl_path == NULL)
        return false;
    stamp_get(&now, s->crl_path);
    if (now.dev == s->stamp.dev && now.ino == s->stamp.ino && now.size == s->stamp.size &&
        now.changed.tv_sec == s->stamp.changed.tv_sec &&
        now.changed.tv_nsec == s->stamp.changed.tv_nsec)
        return false;
    if (load(s, &why) != KMS_OK) {
        log_error("the services' revocation list stays as it was", "file", s->crl_path, "why", why,
                  NULL);
        return false;
    }
    log_info("the services' revocation list was read", "file", s->crl_path, "lists%d",
             sk_X509_CRL_num(s->lists), NULL);
    return true;
}

X509_STORE *
service_ca_store(struct service_ca *s)
{
    return s->store;
}

const STACK_OF(X509_CRL) * service_ca_lists(const struct service_ca *s)
{
    return s->lists;
}

int64_t
service_ca_until(const struct service_ca *s)
{
    return s->until;
}
