/*
 * fuzz_uri.c - URIs, UUIDs and dates: no text breaks the parsers, and what they take they write as
 * they read it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/msg.h"
#include "proto/uri.h"

#define DOMAIN "kms.example.org"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static void
check_uri(const struct kms_uri *uri)
{
    static const char *const collections[] = {
        [URI_ECDHE_ID] = "ecdhe",       [URI_KEY] = "keys",
        [URI_RESOURCE] = "resources",   [URI_AUTHORIZATION] = "authorizations",
        [URI_RECORDING] = "recordings", [URI_CMK] = "cmk",
    };
    struct buf text = BUF_INIT;
    struct kms_uri again;

    CHECK(kms_text_ok(uri->auth_id, strlen(uri->auth_id)));
    CHECK(uri->kind == URI_RESOURCE_AUTHORIZATIONS || uri->auth_id[0] == '\0');
    CHECK(kms_text_ok(uri->purpose, strlen(uri->purpose)));
    CHECK((uri->kind == URI_PURPOSE_KEYS) == (uri->purpose[0] != '\0'));
    if ((size_t)uri->kind >= sizeof(collections) / sizeof(collections[0]) ||
        collections[uri->kind] == NULL)
        return;
    if (kms_uri_put(&text, DOMAIN, collections[uri->kind], &uri->id) == KMS_OK) {
        CHECK(kms_uri_parse(&again, buf_str(&text), text.len, DOMAIN) == KMS_OK);
        CHECK(again.kind == uri->kind && memcmp(again.id.b, uri->id.b, UUID_LEN) == 0);
    }
    buf_release(&text);
}

static void
check_date(int64_t ms)
{
    char text[KMS_DATE_LEN + 1];
    int64_t again;

    kms_date_format(text, ms);
    CHECK(strlen(text) == KMS_DATE_LEN && kms_date_parse(&again, text) == KMS_OK);
    /* an offset may have moved it out of the four-digit years: those are written as the nearest one
     */
    CHECK(again == ms || ms < INT64_C(-62167219200000) || ms > INT64_C(253402300799999));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *exact = malloc(size == 0 ? 1 : size);
    struct kms_uri uri;
    struct uuid id;
    int64_t ms;
    int r;

    CHECK(text != NULL && exact != NULL);
    if (size > 0) {
        memcpy(text, data, size);
        memcpy(exact, data, size);
    }
    text[size] = '\0';

    r = kms_uri_parse(&uri, exact, size, DOMAIN);
    CHECK(r == KMS_OK || r == KMS_ERR_SYNTAX || r == KMS_ERR_NOT_FOUND);
    if (r == KMS_OK)
        check_uri(&uri);
    if (uuid_parse(&id, exact, size) == KMS_OK) {
        char again[UUID_TEXT + 1];

        uuid_format(again, &id);
        CHECK(strncasecmp(again, exact, UUID_TEXT) == 0);
    }
    if (kms_date_parse(&ms, text) == KMS_OK)
        check_date(ms);
    if (size >= sizeof(ms)) {
        memcpy(&ms, exact, sizeof(ms));
        check_date(ms);
    }
    free(text);
    free(exact);
    return 0;
}
