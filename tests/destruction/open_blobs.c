/*
 * open_blobs.c - does hsmd open what stands in an old backup?
 *
 *   open_blobs SOCKET <ROWS
 *
 * A row is: organisation, object, generation, root, wrapped, blob, all but the generation as
 * hexadecimal digits.  For each, in order, "opens" or why it does not.
 */
#include <event2/event.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/hsm.h"
#include "proto/err.h"

#define READY_S 10

static struct event_base *base;

static void
opened(void *ctx, uint64_t id, unsigned index, int err, const unsigned char *key,
       const unsigned char *blob)
{
    puts(err == KMS_OK ? "opens" : kms_strerror(err));
    event_base_loopbreak(base);
}

static void
ready(void *ctx, bool is)
{
    if (is)
        event_base_loopbreak(base);
}

static void
too_late(evutil_socket_t fd, short what, void *arg)
{
    fputs("open_blobs: hsmd does not answer\n", stderr);
    exit(1);
}

static void
read_hex(unsigned char *out, size_t len, const char *text)
{
    size_t n;

    if (OPENSSL_hexstr2buf_ex(out, len, &n, text, '\0') != 1 || n != len) {
        fprintf(stderr, "open_blobs: \"%s\" is not %zu bytes in hexadecimal digits\n", text, len);
        exit(2);
    }
}

int
main(int argc, char **argv)
{
    struct timeval limit = {READY_S, 0};
    char org[64], object[64], root[64], wrapped[128], blob[256];
    unsigned char id[HSM_ID_LEN], bytes[HSM_BLOB_LEN];
    struct hsm_wrapping_key wk;
    struct event *timer;
    struct hsm *h;

    if (argc != 2) {
        fputs("usage: open_blobs SOCKET <ROWS\n", stderr);
        return 2;
    }
    if ((base = event_base_new()) == NULL || (h = hsm_new(base, argv[1], HSM_USE, 5000)) == NULL ||
        (timer = evtimer_new(base, too_late, NULL)) == NULL)
        return 1;
    hsm_on_change(h, ready, NULL);
    evtimer_add(timer, &limit);
    while (!hsm_ready(h))
        event_base_dispatch(base);
    evtimer_del(timer);
    while (scanf("%63s %63s %u %63s %127s %255s", org, object, &wk.generation, root, wrapped,
                 blob) == 6) {
        read_hex(wk.org, sizeof(wk.org), org);
        read_hex(id, sizeof(id), object);
        read_hex(wk.root, sizeof(wk.root), root);
        read_hex(wk.wrapped, sizeof(wk.wrapped), wrapped);
        read_hex(bytes, sizeof(bytes), blob);
        if (hsm_unwrap(h, &wk, HSM_CONTENT_KEY, id, bytes, opened, NULL, 0, 0) != KMS_OK)
            return 1;
        event_base_dispatch(base);
    }
    event_free(timer);
    hsm_free(h);
    event_base_free(base);
    return 0;
}
