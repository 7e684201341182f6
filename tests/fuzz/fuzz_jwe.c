/*
 * fuzz_jwe.c - compact JWE: no text breaks the parser; the header's two readers agree; what is
 * taken can be opened only by its key; and what we seal opens again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/jose.h"
#include "proto/json.h"
#include "proto/jwe.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    kms_json_init();
    return 0;
}

static void
check_header(const char *json, size_t len)
{
    static const unsigned allowed = JOSE_ALG | JOSE_ENC | JOSE_KID | JOSE_TYP | JOSE_CTY;
    struct jose_header small, full;

    if (len > JOSE_HEADER_MAX || !jose_header_read_plain(&small, json, len, allowed))
        return;
    CHECK(jose_header_read_json(&full, json, len, allowed) == KMS_OK);
    CHECK(small.seen == full.seen && strcmp(small.alg, full.alg) == 0 &&
          strcmp(small.enc, full.enc) == 0 && strcmp(small.kid, full.kid) == 0 &&
          strcmp(small.typ, full.typ) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned char key[32] = {1};
    struct buf plain = BUF_INIT, compact = BUF_INIT;
    struct jwe jwe;
    int r;

    check_header((const char *)data, size);
    if (jwe_parse(&jwe, (const char *)data, size) == KMS_OK) {
        CHECK(strlen(jwe.kid) <= JOSE_KID_MAX &&
              jose_is_plain(jwe.kid, strlen(jwe.kid), JOSE_KID_MAX));
        CHECK((jwe.alg == JWE_DIR) == (jwe.ek_len == 0) && jwe.ek_len <= JWE_EK_MAX);
        r = jwe_open(&jwe, key, &plain);
        CHECK(r == KMS_ERR_CRYPTO || r == KMS_ERR_SYNTAX);
        CHECK(plain.len == 0);
    }
    if (size <= JWE_MAX / 2) {
        CHECK(jwe_seal_dir(&compact, "k", key, data, size) == KMS_OK);
        CHECK(jwe_parse(&jwe, buf_str(&compact), compact.len) == KMS_OK);
        CHECK(jwe_open(&jwe, key, &plain) == KMS_OK);
        CHECK(plain.len == size && (size == 0 || memcmp(plain.data, data, size) == 0));
    }
    buf_release(&plain);
    buf_release(&compact);
    return 0;
}
