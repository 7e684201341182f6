/*
 * service_ca.h - the CAs that cloud services' certificates are under, and their revocation lists,
 * as files.
 *
 * Workers judge certificates by them, the keeper tells the database what is revoked.  A list counts
 * only when one of the CAs has signed it.
 */
#ifndef KMS_SERVICE_CA_H
#define KMS_SERVICE_CA_H

#include <openssl/x509.h>
#include <stdbool.h>
#include <stdint.h>

struct service_ca;

/*
 * Reads ca (PEM, one certificate or more) and crl (PEM lists; NULL or "": none).  KMS_OK: *out is
 * the caller's.  KMS_ERR_CONFIG, _SYSTEM, _NOMEM: *why says what, static.
 */
int service_ca_new(struct service_ca **out, const char *ca, const char *crl, const char **why);
void service_ca_free(struct service_ca *s); /* NULL is fine */

/*
 * Reads the lists again if the file is another one than before.  True: there are new ones.  What
 * cannot be read or is signed by none of the CAs is told in the log, once, and those read before
 * stay.
 */
bool service_ca_refresh(struct service_ca *s);

/* What certificates are verified by: the CAs as anchors, the lists where there are any.  Borrowed
 * until the next refresh. */
X509_STORE *service_ca_store(struct service_ca *s);
/* The lists; NULL: none are configured.  Borrowed until the next refresh. */
const STACK_OF(X509_CRL) * service_ca_lists(const struct service_ca *s);
/* Until when all lists are good, milliseconds since 1970; INT64_MAX where there is no end. */
int64_t service_ca_until(const struct service_ca *s);

#endif
