/*
 * recording.c - keys of recordings into messages that node-scr reads.
 */
#include "kms/recording.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "kms/req.h"
#include "kms/worker.h"
#include "proto/err.h"
#include "proto/jwe.h"

/* Exactly len bytes, as SQL writes them. */
static bool
get_hex(unsigned char *out, size_t len, const json_t *from, const char *name)
{
    const char *text = json_string_value(json_object_get(from, name));
    size_t got;

    return text != NULL && strlen(text) == 2 * len &&
           OPENSSL_hexstr2buf_ex(out, len, &got, text, '\0') == 1 && got == len;
}

static bool
get_id(struct uuid *out, const json_t *from, const char *name)
{
    const char *text = json_string_value(json_object_get(from, name));

    return text != NULL && uuid_parse(out, text, strlen(text)) == KMS_OK;
}

/* Where a wrapped key stands in SQL's object. */
struct wrapped_names {
    const char *id, *blob, *generation, *root, *wrapped;
};
static const struct wrapped_names own_names = {"recording", "blob", "generation", "root",
                                               "wrapped"};
static const struct wrapped_names container_names = {"key", "key_blob", "key_generation",
                                                     "key_root", "key_wrapped"};

static bool
get_wrapped(struct released *k, const struct req *rq, const json_t *from,
            const struct wrapped_names *n)
{
    json_int_t generation = json_integer_value(json_object_get(from, n->generation));
    struct uuid root;

    memset(k, 0, sizeof(*k));
    if (!get_id(&k->key, from, n->id) || !get_hex(k->blob, HSM_BLOB_LEN, from, n->blob) ||
        generation < 1 || generation > INT32_MAX || !get_id(&root, from, n->root) ||
        !get_hex(k->wk.wrapped, HSM_WRAPPED_LEN, from, n->wrapped))
        return false;
    k->wk.generation = (uint32_t)generation;
    memcpy(k->wk.root, root.b, HSM_ID_LEN);
    memcpy(k->wk.org, rq->org.b, HSM_ID_LEN);
    return true;
}

/* The place in released of a container's key: the last recording's mostly. */
static size_t
place_of(struct req *rq, const struct released *key)
{
    size_t i = rq->n_released;

    while (i-- > 0)
        if (memcmp(&rq->released[i].key, &key->key, sizeof(key->key)) == 0)
            return i;
    rq->released[rq->n_released] = *key;
    return rq->n_released++;
}

static int
load_one(struct req *rq, const json_t *from)
{
    struct recording *r = &rq->recordings[rq->n_recordings];
    struct released container;

    /* rq->released has room for two keys a recording. */
    if (!get_wrapped(&container, rq, from, &container_names) ||
        !get_wrapped(&rq->released[rq->n_released], rq, from, &own_names) ||
        !get_hex(r->iv, sizeof(r->iv), from, "iv"))
        return KMS_ERR_PROTOCOL;
    r->own = rq->n_released++;
    r->container = place_of(rq, &container);
    r->json = from;
    rq->n_recordings++;
    return KMS_OK;
}

int
recordings_load(struct req *rq)
{
    const json_t *list = json_object_get(rq->result, "recordings");
    size_t i, n = list != NULL ? json_array_size(list) : 1;
    int r = KMS_OK;

    if (n == 0)
        return KMS_OK;
    if ((rq->recordings = calloc(n, sizeof(*rq->recordings))) == NULL ||
        (rq->released = calloc(2 * n, sizeof(*rq->released))) == NULL)
        return KMS_ERR_NOMEM;
    for (i = 0; i < n && r == KMS_OK; i++)
        r = load_one(rq, list != NULL ? json_array_get(list, i) : rq->result);
    return r;
}

/* The Secure Content Resource: where the file is, and all that opens it. */
static int
put_scr(struct buf *out, const struct recording *r, const struct secret *key)
{
    static const char *const texts[] = {"aad", "loc", "tag"};
    struct answer scr = {.out = out};
    const char *text;
    size_t i;

    answer_open(&scr, NULL, '{');
    answer_text(&scr, "enc", "A256GCM");
    answer_bytes(&scr, "key", key->b, SECRET_LEN);
    answer_bytes(&scr, "iv", r->iv, sizeof(r->iv));
    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if ((text = json_string_value(json_object_get(r->json, texts[i]))) != NULL)
            answer_text(&scr, texts[i], text);
    return answer_end(&scr);
}

static void
put_message(struct req *rq, struct answer *a, const struct recording *r)
{
    const struct released *container = &rq->released[r->container];
    struct buf scr = BUF_INIT, kid = BUF_INIT, message = BUF_INIT;
    int err;

    if ((err = put_scr(&scr, r, rq->released[r->own].secret)) == KMS_OK &&
        (err = kms_uri_put(&kid, rq->w->cfg->domain, "keys", &container->key)) == KMS_OK)
        err = jwe_seal_dir(&message, buf_str(&kid), container->secret->b, scr.data, scr.len);
    if (err == KMS_OK)
        answer_raw_text(a, "message", &message);
    else
        a->err = err;
    buf_release(&scr);
    buf_release(&kid);
    buf_release(&message);
}

/* The members that a recording has for ever. */
static void
put_recording(struct req *rq, struct answer *a, const json_t *from)
{
    const char *domain = rq->w->cfg->domain, *text;

    answer_id_uri(a, "uri", domain, "recordings", json_object_get(from, "recording"));
    if ((text = json_string_value(json_object_get(from, "type"))) != NULL)
        answer_text(a, "type", text);
    answer_id_uri(a, "resourceUri", domain, "resources", json_object_get(from, "resource"));
    if ((text = json_string_value(json_object_get(from, "loc"))) != NULL)
        answer_text(a, "loc", text);
    answer_date(a, "createDate", json_integer_value(json_object_get(from, "created")));
}

static void
put_whole(struct req *rq, struct answer *a, const char *name, const struct recording *r)
{
    const json_t *expires = json_object_get(r->json, "expires");

    answer_open(a, name, '{');
    put_recording(rq, a, r->json);
    if (json_is_integer(expires))
        answer_date(a, "expirationDate", json_integer_value(expires));
    answer_uri(a, "keyUri", rq->w->cfg->domain, "keys", &rq->released[r->container].key);
    put_message(rq, a, r);
    answer_close(a, '}');
}

void
write_recording(struct req *rq, struct answer *a)
{
    if (rq->n_recordings == 1)
        put_whole(rq, a, "recording", &rq->recordings[0]);
    else
        a->err = KMS_ERR_PROTOCOL;
}

void
write_recordings(struct req *rq, struct answer *a)
{
    size_t i;

    answer_open(a, "recordings", '[');
    for (i = 0; i < rq->n_recordings; i++)
        put_whole(rq, a, NULL, &rq->recordings[i]);
    answer_close(a, ']');
}

void
write_recording_end(struct req *rq, struct answer *a)
{
    answer_open(a, "recording", '{');
    put_recording(rq, a, rq->result);
    answer_close(a, '}');
}
