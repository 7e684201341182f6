/* err.c - the texts of the error codes, for logs. */
#include "proto/err.h"

const char *
kms_strerror(int err)
{
    /* No default: the compiler says when a code has no text. */
    switch ((enum kms_err)err) {
    case KMS_OK:
        return "success";
    case KMS_ERR_NOMEM:
        return "out of memory";
    case KMS_ERR_INTERNAL:
        return "internal error";
    case KMS_ERR_SYNTAX:
        return "malformed";
    case KMS_ERR_MEMBER:
        return "a member is missing or wrong";
    case KMS_ERR_DUPLICATE:
        return "a member occurs twice";
    case KMS_ERR_ALGORITHM:
        return "unsupported algorithm";
    case KMS_ERR_HEADER:
        return "a header member that is not allowed";
    case KMS_ERR_LENGTH:
        return "wrong length";
    case KMS_ERR_KEY:
        return "unfit key";
    case KMS_ERR_CRYPTO:
        return "not genuine";
    case KMS_ERR_EXPIRED:
        return "expired";
    case KMS_ERR_EARLY:
        return "not yet valid";
    case KMS_ERR_ISSUER:
        return "wrong issuer";
    case KMS_ERR_AUDIENCE:
        return "wrong audience";
    case KMS_ERR_SCOPE:
        return "the required scope is missing";
    case KMS_ERR_NOT_FOUND:
        return "not found";
    case KMS_ERR_AGAIN:
        return "not now";
    case KMS_ERR_UNAVAILABLE:
        return "unavailable";
    case KMS_ERR_TIMEOUT:
        return "timed out";
    case KMS_ERR_SYSTEM:
        return "a system call failed";
    case KMS_ERR_CONFIG:
        return "wrong configuration";
    case KMS_ERR_PROTOCOL:
        return "a peer process broke the protocol";
    case KMS_ERR_LIMIT:
        return "limit reached";
    case KMS_ERR_STATE:
        return "not in this state";
    case KMS_ERR_DENIED:
        return "not allowed";
    }
    return "unknown error";
}
