/* fuzz_body.c - bodies of POSTs: what the quick way takes, the general one must take for the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/body.h"
#include "proto/err.h"
#include "proto/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
must_be_same(const struct kms_text *a, const struct kms_text *b)
{
    if (a->len != b->len || memcmp(a->p, b->p, a->len) != 0)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int begun;
    struct kms_body quick, tree;
    size_t i;
    int r, q;

    if (!begun++)
        kms_json_init();
    q = kms_body_parse_direct(&quick, (const char *)data, size);
    r = kms_body_parse_tree(&tree, (const char *)data, size);
    if (q == KMS_OK) {
        if (r != KMS_OK && r != KMS_ERR_LIMIT)
            abort();
        if (r == KMS_OK) {
            must_be_same(&quick.destination, &tree.destination);
            if (quick.n != tree.n)
                abort();
            for (i = 0; i < quick.n && i < KMS_MESSAGES_MAX; i++)
                must_be_same(&quick.messages[i], &tree.messages[i]);
        }
    }
    if (r == KMS_OK)
        kms_body_release(&tree);
    return 0;
}
