/*
 * test_service.c - whose certificate is believed, and when no more: CAs, revocation lists, time.
 * What travels in messages is in test_proof.c.
 */
#include <criterion/criterion.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kms/config.h"
#include "kms/service.h"
#include "kms/service_ca.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "tests/unit/certs.h"

#define IDENTITY "spiffe://services.example/indexer"
#define HOUR     3600

static EVP_PKEY *ca_key, *key;
static X509 *ca;
static struct config cfg;

static void
extend(X509 *cert, int nid, const char *value)
{
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    cr_assert_not_null(ext);
    X509_add_ext(cert, ext, -1);
    X509_EXTENSION_free(ext);
}

/* A certificate under an issuer (NULL: its own); seconds from now that it is good until. */
static X509 *
make(const char *name, const char *constraints, const char *san, long serial, long until,
     X509 *issuer, EVP_PKEY *issuer_key)
{
    X509 *cert = X509_new();

    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), serial);
    X509_gmtime_adj(X509_getm_notBefore(cert), -HOUR);
    X509_gmtime_adj(X509_getm_notAfter(cert), until);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
                               (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(issuer == NULL ? cert : issuer));
    X509_set_pubkey(cert, issuer == NULL ? issuer_key : key);
    extend(cert, NID_basic_constraints, constraints);
    if (san != NULL)
        extend(cert, NID_subject_alt_name, san);
    cr_assert_neq(X509_sign(cert, issuer_key, EVP_sha256()), 0);
    return cert;
}

static X509 *
leaf(long serial)
{
    return make("indexer", "critical,CA:FALSE", "URI:" IDENTITY, serial, HOUR, ca, ca_key);
}

/* Writes a revocation list with one serial number (0: none) to crl.pem. */
static void
put_list(long serial, long next, X509 *issuer, EVP_PKEY *issuer_key)
{
    X509_CRL *list = X509_CRL_new();
    ASN1_TIME *at = X509_gmtime_adj(NULL, -HOUR);
    X509_REVOKED *revoked;
    ASN1_INTEGER *number;
    FILE *f;

    X509_CRL_set_version(list, 1);
    X509_CRL_set_issuer_name(list, X509_get_subject_name(issuer));
    X509_CRL_set1_lastUpdate(list, at);
    if (serial != 0) {
        revoked = X509_REVOKED_new();
        number = ASN1_INTEGER_new();
        ASN1_INTEGER_set(number, serial);
        X509_REVOKED_set_serialNumber(revoked, number);
        X509_REVOKED_set_revocationDate(revoked, at);
        X509_CRL_add0_revoked(list, revoked);
        ASN1_INTEGER_free(number);
    }
    X509_gmtime_adj(at, next);
    X509_CRL_set1_nextUpdate(list, at);
    cr_assert_neq(X509_CRL_sign(list, issuer_key, EVP_sha256()), 0);
    /* By renaming, as an operator should: another file each time. */
    f = fopen(certs_path("crl.new"), "w");
    cr_assert_not_null(f);
    PEM_write_X509_CRL(f, list);
    fclose(f);
    cr_assert_eq(rename(certs_path("crl.new"), certs_path("crl.pem")), 0);
    ASN1_TIME_free(at);
    X509_CRL_free(list);
}

static void
set_up(void)
{
    kms_json_init();
    ca_key = certs_key();
    key = certs_key();
    ca = make("services", "critical,CA:TRUE", NULL, 1, 86400, NULL, ca_key);
    certs_put_cert("ca.pem", ca);
    memset(&cfg, 0, sizeof(cfg));
    cfg.services_ca = strdup(certs_path("ca.pem"));
}

static void
tear_down(void)
{
    free(cfg.services_ca);
    free(cfg.services_crl);
    X509_free(ca);
    EVP_PKEY_free(ca_key);
    EVP_PKEY_free(key);
    certs_clean();
}

TestSuite(service, .init = set_up, .fini = tear_down);

static struct services *
services(void)
{
    struct services *ss;
    const char *why;

    cr_assert_eq(services_new(&ss, &cfg, &why), KMS_OK, "%s", why);
    return ss;
}

/* What a connection with this certificate is told; NULL: let in. */
static const char *
told(struct services *ss, X509 *cert, long later)
{
    STACK_OF(X509) *chain = sk_X509_new_null();
    const char *why = "unset";
    const struct service_cert *got;

    sk_X509_push(chain, cert);
    got = services_of_chain(ss, chain, ((int64_t)time(NULL) + later) * 1000, &why);
    cr_assert_eq(got == NULL, why != NULL);
    if (got != NULL)
        cr_assert_str_eq(got->identity, IDENTITY);
    sk_X509_free(chain);
    return why;
}

Test(service, a_certificate_is_good_under_the_ca_and_until_its_end)
{
    struct services *ss = services();
    X509 *good = leaf(7),
         *own = make("indexer", "critical,CA:FALSE", "URI:" IDENTITY, 7, HOUR, NULL, key);
    X509 *is_ca = make("indexer", "critical,CA:TRUE", "URI:" IDENTITY, 8, HOUR, ca, ca_key);
    X509 *nobody = make("indexer", "critical,CA:FALSE", NULL, 9, HOUR, ca, ca_key);

    cr_assert_null(told(ss, good, 0));
    cr_assert_null(told(ss, good, 0));
    cr_assert_not_null(strstr(told(ss, good, HOUR + 1), "expired"));
    cr_assert_not_null(told(ss, own, 0));
    cr_assert_not_null(strstr(told(ss, is_ca, 0), "CA's"));
    cr_assert_not_null(strstr(told(ss, nobody, 0), "SAN URI"));
    X509_free(good);
    X509_free(own);
    X509_free(is_ca);
    X509_free(nobody);
    services_free(ss);
}

Test(service, without_a_ca_or_a_certificate_nobody_is_a_service)
{
    struct services *ss;
    const char *why = "unset";
    X509 *cert = leaf(7);

    cfg.services_ca[0] = '\0';
    ss = services();
    cr_assert_not_null(told(ss, cert, 0));
    cr_assert_null(services_of_chain(ss, NULL, 0, &why));
    cr_assert_null(why);
    X509_free(cert);
    services_free(ss);
}

Test(service, a_new_list_counts_on_connections_that_were_judged)
{
    struct services *ss;
    X509 *one = leaf(7), *two = leaf(8);

    put_list(0, HOUR, ca, ca_key);
    cfg.services_crl = strdup(certs_path("crl.pem"));
    ss = services();
    cr_assert_null(told(ss, one, 0));
    services_refresh(ss);
    cr_assert_null(told(ss, one, 0));
    put_list(7, HOUR, ca, ca_key);
    services_refresh(ss);
    cr_assert_not_null(strstr(told(ss, one, 0), "revoked"));
    cr_assert_null(told(ss, two, 0));
    X509_free(one);
    X509_free(two);
    services_free(ss);
}

Test(service, a_list_past_its_time_lets_nobody_in)
{
    struct services *ss;
    X509 *cert = leaf(7), *late = leaf(8);

    put_list(0, HOUR / 2, ca, ca_key);
    cfg.services_crl = strdup(certs_path("crl.pem"));
    ss = services();
    cr_assert_null(told(ss, cert, 0));
    cr_assert_not_null(strstr(told(ss, cert, HOUR / 2 + 1), "no revocation list"));
    cr_assert_not_null(strstr(told(ss, late, HOUR / 2 + 1), "no revocation list"));
    X509_free(cert);
    X509_free(late);
    services_free(ss);
}

Test(service, a_list_of_anybody_else_changes_nothing)
{
    struct services *ss;
    EVP_PKEY *other_key = certs_key();
    X509 *other = make("services", "critical,CA:TRUE", NULL, 1, 86400, NULL, other_key);
    X509 *cert = leaf(7);
    const char *why;

    put_list(0, HOUR, ca, ca_key);
    cfg.services_crl = strdup(certs_path("crl.pem"));
    ss = services();
    put_list(7, HOUR, other, other_key); /* the CA's name, but another key */
    services_refresh(ss);
    cr_assert_null(told(ss, cert, 0));
    put_list(7, HOUR, ca, ca_key);
    services_refresh(ss);
    cr_assert_not_null(strstr(told(ss, cert, 0), "revoked"));
    cr_assert_eq(unlink(certs_path("crl.pem")), 0);
    services_refresh(ss);
    cr_assert_not_null(strstr(told(ss, cert, 0), "revoked"));
    services_free(ss);
    put_list(7, HOUR, other, other_key);
    cr_assert_neq(services_new(&ss, &cfg, &why), KMS_OK);
    cr_assert_not_null(strstr(why, "signed by none"));
    certs_put_text("crl.pem", "no list");
    cr_assert_neq(services_new(&ss, &cfg, &why), KMS_OK);
    X509_free(cert);
    X509_free(other);
    EVP_PKEY_free(other_key);
}

Test(service, a_ca_without_a_list_among_lists_vouches_for_nobody)
{
    EVP_PKEY *other_key = certs_key();
    X509 *other = make("more services", "critical,CA:TRUE", NULL, 1, 86400, NULL, other_key);
    X509 *mine = leaf(7);
    X509 *theirs = make("indexer", "critical,CA:FALSE", "URI:" IDENTITY, 7, HOUR, other, other_key);
    FILE *f = fopen(cfg.services_ca, "a");
    struct services *ss;

    PEM_write_X509(f, other);
    fclose(f);
    ss = services();
    cr_assert_null(told(ss, mine, 0));
    cr_assert_null(told(ss, theirs, 0));
    services_free(ss);
    put_list(0, HOUR, ca, ca_key);
    cfg.services_crl = strdup(certs_path("crl.pem"));
    ss = services();
    cr_assert_null(told(ss, mine, 0));
    cr_assert_not_null(strstr(told(ss, theirs, 0), "no revocation list"));
    services_free(ss);
    X509_free(other);
    X509_free(mine);
    X509_free(theirs);
    EVP_PKEY_free(other_key);
}

Test(service, a_proof_counts_only_with_a_good_certificate)
{
    struct services *ss = services();
    STACK_OF(X509) *chain = sk_X509_new_null();
    EVP_PKEY *ephemeral = certs_key();
    unsigned char cnf[32], hash[32], again[32];
    struct service_cert cert;
    struct buf proof = BUF_INIT;
    int64_t now = time(NULL);
    const char *why = NULL;
    json_t *jwk;
    int i;

    for (i = 0; i < 2; i++) {
        X509 *x =
            i == 0 ? leaf(7) : make("x", "critical,CA:FALSE", "URI:" IDENTITY, 7, HOUR, NULL, key);

        sk_X509_push(chain, x);
        jwk = x5c_make(chain);
        cr_assert_not_null(jwk);
        cr_assert_eq(jwk_thumbprint_key(cnf, ephemeral), KMS_OK);
        cr_assert_eq(proof_make(&proof, key, "kms://kms.example", cnf, now, "once"), KMS_OK);
        if (i == 0) {
            cr_assert_eq(services_prove(ss, &cert, hash, jwk, buf_str(&proof), ephemeral,
                                        "kms://kms.example", now * 1000, &why),
                         KMS_OK);
            cr_assert_str_eq(cert.identity, IDENTITY);
            cr_assert_eq(services_prove(ss, &cert, again, jwk, buf_str(&proof), ephemeral,
                                        "kms://kms.example", now * 1000, &why),
                         KMS_OK);
            cr_assert_eq(memcmp(hash, again, sizeof(hash)), 0);
            cr_assert_neq(services_prove(ss, &cert, hash, jwk, buf_str(&proof), ephemeral,
                                         "kms://kms.example", (now + 301) * 1000, &why),
                          KMS_OK);
            cr_assert_not_null(strstr(why, "too old"));
            cr_assert_neq(services_prove(ss, &cert, hash, jwk, buf_str(&proof), ca_key,
                                         "kms://kms.example", now * 1000, &why),
                          KMS_OK);
            cr_assert_neq(services_prove(ss, &cert, hash, jwk, NULL, ephemeral, "kms://kms.example",
                                         now * 1000, &why),
                          KMS_OK);
        } else {
            cr_assert_neq(services_prove(ss, &cert, hash, jwk, buf_str(&proof), ephemeral,
                                         "kms://kms.example", now * 1000, &why),
                          KMS_OK);
        }
        X509_free(sk_X509_pop(chain));
        json_decref(jwk);
        buf_release(&proof);
    }
    sk_X509_free(chain);
    EVP_PKEY_free(ephemeral);
    services_free(ss);
}
