/* revoked.c - revocation lists of services' certificates, from the file to the database. */
#include "kms/revoked.h"

#include <event2/event.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdlib.h>

#include "hsm/log.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "kms/service_ca.h"
#include "proto/err.h"
#include "proto/proof.h"

#define LOOK_SECONDS 10   /* between looks at the file */
#define CALL_MAX     1000 /* certificates in one call */

struct revoked {
    struct keeper *k;
    struct service_ca *ca; /* owned; NULL: no lists, or they cannot be read yet */
    bool unread;           /* ca is NULL because of that */
    struct event *timer;
    bool due;        /* the lists, or what is left of them, are to be told */
    bool asking;     /* a call is under way */
    int list, entry; /* where in the lists the next call begins */
};

static void
read_files(struct revoked *r)
{
    const struct config *c = r->k->cfg;
    const char *why = NULL;

    service_ca_free(r->ca);
    r->ca = NULL;
    r->unread = false;
    r->due = false;
    if (c->services_crl == NULL || c->services_crl[0] == '\0')
        return;
    if (service_ca_new(&r->ca, config_services_ca(c), c->services_crl, &why) != KMS_OK) {
        r->unread = true;
        log_error("the services' revocation list cannot be read", "file", c->services_crl, "why",
                  why, NULL);
        return;
    }
    r->due = true;
    r->list = r->entry = 0;
}

/* The magnitude without leading zeros, as cert_serial has it.  0: longer than any that we take. */
static size_t
serial_of(const ASN1_INTEGER *serial, const unsigned char **p)
{
    int len = ASN1_STRING_length(serial);

    *p = ASN1_STRING_get0_data(serial);
    while (len > 1 && **p == 0) {
        (*p)++;
        len--;
    }
    return len >= 1 && len <= CERT_SERIAL_MAX ? (size_t)len : 0;
}

/* One of the two arrays of a call: issuers (serials false) or serials; moves on in the second. */
static int
put_array(struct revoked *r, struct db_params *p, bool serials)
{
    const STACK_OF(X509_CRL) *lists = service_ca_lists(r->ca);
    int list = r->list, entry = r->entry, n = 0;
    unsigned char issuer[32];
    const unsigned char *serial;
    size_t len;

    db_array_begin(p, DB_BYTEA);
    for (; list < sk_X509_CRL_num(lists) && n < CALL_MAX; list++, entry = 0) {
        X509_CRL *crl = sk_X509_CRL_value(lists, list);
        STACK_OF(X509_REVOKED) *all = X509_CRL_get_REVOKED(crl);
        int of = sk_X509_REVOKED_num(all); /* -1: none */

        if (X509_NAME_digest(X509_CRL_get_issuer(crl), EVP_sha256(), issuer, NULL) != 1)
            p->err = KMS_ERR_NOMEM;
        for (; entry < of && n < CALL_MAX; entry++) {
            const X509_REVOKED *rev = sk_X509_REVOKED_value(all, entry);

            if ((len = serial_of(X509_REVOKED_get0_serialNumber(rev), &serial)) == 0)
                continue;
            if (serials)
                db_put_bytes(p, serial, len);
            else
                db_put_bytes(p, issuer, sizeof(issuer));
            n++;
        }
        if (entry < of)
            break;
    }
    db_array_end(p);
    if (serials) {
        r->list = list;
        r->entry = entry;
    }
    return n;
}

static void step(struct revoked *r);

static void
told(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct revoked *r = ctx;
    int32_t n = 0;

    r->asking = false;
    if (err != KMS_OK) {
        log_warn("revoked certificates could not be recorded; it is tried again", "why",
                 kms_strerror(err), NULL);
        r->due = true;
        r->list = r->entry = 0;
        return;
    }
    if (PQntuples(res) == 1 && db_get_int4(res, 0, 0, &n) && n > 0)
        log_info("certificates of services are revoked", "new%d", n, NULL);
    step(r);
}

/* The next call, if there is something to tell and somebody to tell it to. */
static void
step(struct revoked *r)
{
    struct db_params p;

    if (!r->due || r->asking || r->ca == NULL || !db_ready(r->k->db))
        return;
    db_params_init(&p);
    put_array(r, &p, false);
    if (put_array(r, &p, true) == 0) {
        db_params_release(&p);
        r->due = false;
        return;
    }
    db_text(&p, "crl");
    db_text(&p, "keeper");
    if (db_call(r->k->db, KS_CERTIFICATES_REVOKED, &p, told, r) == KMS_OK)
        r->asking = true;
}

void
revoked_tell(struct revoked *r)
{
    if (r == NULL || r->ca == NULL)
        return;
    r->due = true;
    r->list = r->entry = 0;
    step(r);
}

void
revoked_reload(struct revoked *r)
{
    read_files(r);
    step(r);
}

static void
look(evutil_socket_t fd, short what, void *arg)
{
    struct revoked *r = arg;

    if (r->unread)
        read_files(r);
    else if (r->ca != NULL && service_ca_refresh(r->ca)) {
        r->due = true;
        r->list = r->entry = 0;
    }
    step(r);
}

struct revoked *
revoked_new(struct keeper *k)
{
    static const struct timeval every = {LOOK_SECONDS, 0};
    struct revoked *r = calloc(1, sizeof(*r));

    if (r == NULL)
        return NULL;
    r->k = k;
    if ((r->timer = event_new(k->base, -1, EV_PERSIST, look, r)) == NULL ||
        event_add(r->timer, &every) != 0) {
        revoked_free(r);
        return NULL;
    }
    read_files(r);
    return r;
}

void
revoked_free(struct revoked *r)
{
    if (r == NULL)
        return;
    if (r->timer != NULL)
        event_free(r->timer);
    service_ca_free(r->ca);
    free(r);
}
