/*
 * jose.h - the protected header that jwe.c and jws.c share.  Not for use outside proto/ (and its
 * tests).
 *
 * Headers are read twice over: those that real clients send are one flat object of plain strings,
 * and a small reader made for just that takes them; whatever it does not take goes to the JSON
 * parser, which has the last word.  What the small reader takes, the JSON parser takes with the
 * same result (tests/unit/test_jwe.c holds the two side by side).
 */
#ifndef PROTO_JOSE_H
#define PROTO_JOSE_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/jwe.h"

#define JOSE_HEADER_MAX 2048 /* bytes of a header, decoded */
#define JOSE_VALUE_MAX  63   /* bytes of a member's value, but for kid */

/* The members that may be; each is a string.  Only alg, enc, kid and typ are kept. */
enum {
    JOSE_ALG = 1 << 0,
    JOSE_ENC = 1 << 1,
    JOSE_KID = 1 << 2,
    JOSE_TYP = 1 << 3,
    JOSE_CTY = 1 << 4,
    JOSE_X5T = 1 << 5,      /* a certificate's digest, a mere hint: identity providers send it */
    JOSE_X5T_S256 = 1 << 6, /* "x5t#S256" */
};

struct jose_header {
    unsigned seen; /* JOSE_... */
    char alg[JOSE_VALUE_MAX + 1];
    char enc[JOSE_VALUE_MAX + 1];
    char typ[JOSE_VALUE_MAX + 1];
    char kid[JOSE_KID_MAX + 1];
};

/*
 * Reads a header, still base64url, of which only the members in allowed may be there.  Absent ones
 * are "". KMS_ERR_SYNTAX, KMS_ERR_DUPLICATE, KMS_ERR_LENGTH (the whole, or nested too deeply),
 * KMS_ERR_HEADER (a member that is not allowed, is no string, or has a value that is too long or
 * not printable ASCII), KMS_ERR_NOMEM.
 */
int jose_header_parse(struct jose_header *h, const char *text, size_t len, unsigned allowed);

/* Its two halves, on the decoded JSON.  The first says false for what it leaves to the second. */
bool jose_header_read_plain(struct jose_header *h, const char *json, size_t len, unsigned allowed);
int jose_header_read_json(struct jose_header *h, const char *json, size_t len, unsigned allowed);

/* Whether text can stand in a header as it is: at most max bytes of printable ASCII without '"' and
 * '\\'. */
bool jose_is_plain(const char *text, size_t len, size_t max);

#endif
