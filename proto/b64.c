/* b64.c - base64url and base64, strict, by tables. */
#include "proto/b64.h"

#include <stdint.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"

static const char url_chars[64] __attribute__((nonstring)) = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                             "abcdefghijklmnopqrstuvwxyz"
                                                             "0123456789-_";
static const char std_chars[64] __attribute__((nonstring)) = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                             "abcdefghijklmnopqrstuvwxyz"
                                                             "0123456789+/";
