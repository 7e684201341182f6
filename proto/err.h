/*
 * err.h - the one set of codes that functions of proto/, hsm/ and kms/ return.
 *
 * A function that can fail returns int: KMS_OK (0), or one of these, all negative.  Chain them as
 * they are; whoever knows the context logs, once, with kms_strerror().  These are not what a client
 * sees: the wire's errorCode (protocol section 6) is in proto/msg.h.
 */
#ifndef PROTO_ERR_H
#define PROTO_ERR_H

enum kms_err {
    KMS_OK = 0,
    KMS_ERR_NOMEM = -1,        /* out of memory, or out of locked memory */
    KMS_ERR_INTERNAL = -2,     /* a library refused what it must not refuse: our bug */
    KMS_ERR_SYNTAX = -3,       /* not base64url, not JSON, not compact JOSE, not a URI, ... */
    KMS_ERR_MEMBER = -4,       /* a member is missing, of the wrong type or out of range */
    KMS_ERR_DUPLICATE = -5,    /* a JSON member name occurs twice */
    KMS_ERR_ALGORITHM = -6,    /* an algorithm, curve or key type that we do not do */
    KMS_ERR_HEADER = -7,       /* a JOSE header member that is not allowed (zip, crit, jwk, ...) */
    KMS_ERR_LENGTH = -8,       /* too short, too long, or not the one length that is right */
    KMS_ERR_KEY = -9,          /* a key that must not be used: weak, off the curve, inconsistent */
    KMS_ERR_CRYPTO = -10,      /* wrong tag, wrong signature: the peer's message is not genuine */
    KMS_ERR_EXPIRED = -11,     /* genuine, but its time is over */
    KMS_ERR_EARLY = -12,       /* genuine, but not yet good */
    KMS_ERR_ISSUER = -13,      /* another issuer */
    KMS_ERR_AUDIENCE = -14,    /* for another audience */
    KMS_ERR_SCOPE = -15,       /* the required scope is missing */
    KMS_ERR_NOT_FOUND = -16,   /* no such key, object, file */
    KMS_ERR_AGAIN = -17,       /* not now: more input is needed, or a queue is full */
    KMS_ERR_UNAVAILABLE = -18, /* the HSM, the database or the identity provider is away */
    KMS_ERR_TIMEOUT = -19,     /* the deadline passed */
    KMS_ERR_SYSTEM = -20,      /* a system call failed; errno says more */
    KMS_ERR_CONFIG = -21,      /* the configuration is wrong */
    KMS_ERR_PROTOCOL = -22,    /* a peer process broke the protocol */
    KMS_ERR_LIMIT = -23,       /* a limit was reached */
    KMS_ERR_STATE = -24,       /* not in this state */
    KMS_ERR_DENIED = -25,      /* not allowed to whoever asks */
};

/* A short lower-case text for a code, without a full stop; static. */
const char *kms_strerror(int err);

#endif
