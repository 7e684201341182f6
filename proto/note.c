/* note.c - signed notes, checkpoints, cosignatures. */
#include "proto/note.h"

#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/uri.h"

#define DASH     "\xe2\x80\x94 " /* U+2014 and a space: how a signature line begins */
#define DASH_LEN 4

static uint32_t
get_u32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Key names must not hold any Unicode space, which white_space tells beyond ASCII by its UTF-8. */
static bool
is_name(const char *s, size_t len)
{
    static const char *const white_space[] = {
        "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
        "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
        "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
        "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

    if (len == 0 || len > NOTE_NAME_MAX || !kms_text_ok(s, len))
        return false;
    for (size_t i = 0; i < len; i++) {
        if (s[i] == ' ' || s[i] == '+')
            return false;
        for (size_t k = 0; k < sizeof(white_space) / sizeof(white_space[0]); k++) {
            size_t n = strlen(white_space[k]);

            if (i + n <= len && memcmp(s + i, white_space[k], n) == 0)
                return false;
        }
    }
    return true;
}

static bool
get_decimal(const char *s, size_t len, uint64_t *out)
{
    *out = 0;
    if (len == 0 || len > 19 || (s[0] == '0' && len > 1))
        return false;
    for (size_t i = 0; i < len; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        *out = *out * 10 + (uint64_t)(s[i] - '0');
    }
    return *out <= INT64_MAX;
}

/* --- keys --- */

int
note_key_init(struct note_key *k, const char *name, enum note_type type,
              const unsigned char pub[NOTE_PUBLIC_LEN])
{
    unsigned char in[NOTE_NAME_MAX + 2 + NOTE_PUBLIC_LEN], digest[32];
    size_t n = strlen(name);

    if (!is_name(name, n))
        return KMS_ERR_SYNTAX;
    memset(k, 0, sizeof(*k));
    memcpy(k->name, name, n);
    k->type = type;
    memcpy(k->pub, pub, NOTE_PUBLIC_LEN);
    memcpy(in, name, n);
    in[n] = '\n';
    in[n + 1] = (unsigned char)type;
    memcpy(in + n + 2, pub, NOTE_PUBLIC_LEN);
    if (EVP_Digest(in, n + 2 + NOTE_PUBLIC_LEN, digest, NULL, EVP_sha256(), NULL) != 1) {
        ERR_clear_error();
        return KMS_ERR_INTERNAL;
    }
    k->id = get_u32(digest);
    return KMS_OK;
}

int
note_key_parse(struct note_key *k, const char *text, size_t len)
{
    const char *plus = memchr(text, '+', len);
    struct buf bytes = BUF_INIT;
    char name[NOTE_NAME_MAX + 1], id[9];
    size_t n;
    int r;

    while (len > 0 && text[len - 1] == '\n')
        len--;
    if (plus == NULL || (n = (size_t)(plus - text)) > NOTE_NAME_MAX || len < n + 10 ||
        plus[9] != '+')
        return KMS_ERR_SYNTAX;
    memcpy(name, text, n);
    name[n] = '\0';
    if ((r = b64_get(&bytes, plus + 10, len - n - 10)) != KMS_OK)
        goto out;
    r = KMS_ERR_SYNTAX;
    if (bytes.len < 1)
        goto out;
    r = KMS_ERR_ALGORITHM;
    if ((bytes.data[0] != NOTE_ED25519 && bytes.data[0] != NOTE_COSIGNATURE) ||
        bytes.len != 1 + NOTE_PUBLIC_LEN)
        goto out;
    if ((r = note_key_init(k, name, (enum note_type)bytes.data[0], bytes.data + 1)) != KMS_OK)
        goto out;
    snprintf(id, sizeof(id), "%08" PRIx32, k->id);
    r = memcmp(id, plus + 1, 8) == 0 ? KMS_OK : KMS_ERR_KEY;
out:
    buf_release(&bytes);
    return r;
}

int
note_key_put(struct buf *out, const struct note_key *k)
{
    unsigned char bytes[1 + NOTE_PUBLIC_LEN];
    int r;

    bytes[0] = (unsigned char)k->type;
    memcpy(bytes + 1, k->pub, NOTE_PUBLIC_LEN);
    if ((r = buf_putf(out, "%s+%08" PRIx32 "+", k->name, k->id)) != KMS_OK)
        return r;
    return b64_put(out, bytes, sizeof(bytes));
}

/* --- notes --- */

/* DASH NAME SP BASE64, without its newline. */
static int
sig_parse(struct note_sig *s, const char *line, size_t len)
{
    const char *end = line + len, *space;
    struct buf bytes = BUF_INIT;
    int r;

    memset(s, 0, sizeof(*s));
    if (len < DASH_LEN || memcmp(line, DASH, DASH_LEN) != 0)
        return KMS_ERR_SYNTAX;
    s->name = line + DASH_LEN;
    if ((space = memchr(s->name, ' ', (size_t)(end - s->name))) == NULL)
        return KMS_ERR_SYNTAX;
    s->name_len = (size_t)(space - s->name);
    if (!is_name(s->name, s->name_len))
        return KMS_ERR_SYNTAX;
    r = b64_get(&bytes, space + 1, (size_t)(end - space - 1));
    if (r == KMS_OK && bytes.len < 5)
        r = KMS_ERR_SYNTAX;
    if (r == KMS_OK) {
        s->id = get_u32(bytes.data);
        if (bytes.len == 4 + NOTE_SIG_LEN || bytes.len == 12 + NOTE_SIG_LEN) {
            s->sig_len = bytes.len - 4;
            memcpy(s->sig, bytes.data + 4, s->sig_len);
        }
    }
    buf_release(&bytes);
    return r;
}

int
note_parse(struct note *note, const char *text, size_t len)
{
    size_t at;
    int r;

    memset(note, 0, sizeof(*note));
    if (len > NOTE_MAX)
        return KMS_ERR_LENGTH;
    if (len < 3 || text[len - 1] != '\n')
        return KMS_ERR_SYNTAX;
    for (size_t i = 0, line = 0; i < len; i++) {
        if (text[i] != '\n')
            continue;
        if (!kms_text_ok(text + line, i - line))
            return KMS_ERR_SYNTAX;
        line = i + 1;
    }
    /* The last empty line parts text and signatures. */
    for (at = len - 1; at > 0 && !(text[at] == '\n' && text[at - 1] == '\n'); at--)
        ;
    if (at < 2)
        return KMS_ERR_SYNTAX;
    note->text = text;
    note->text_len = at;
    for (at++; at < len;) {
        const char *line = text + at, *end = memchr(line, '\n', len - at);
        struct note_sig *s = &note->sig[note->n];

        if (note->n == NOTE_SIGS_MAX)
            return KMS_ERR_LIMIT;
        if ((r = sig_parse(s, line, (size_t)(end - line))) != KMS_OK)
            return r;
        s->line = line;
        s->line_len = (size_t)(end - line) + 1;
        at += s->line_len;
        note->n++;
    }
    return note->n > 0 ? KMS_OK : KMS_ERR_SYNTAX;
}

static int
ed25519_verify(const unsigned char pub[32], const unsigned char *sig, const void *msg, size_t len)
{
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, pub, 32);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int r = KMS_ERR_INTERNAL;

    if (key != NULL && ctx != NULL && EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) == 1)
        r = EVP_DigestVerify(ctx, sig, NOTE_SIG_LEN, msg, len) == 1 ? KMS_OK : KMS_ERR_CRYPTO;
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    ERR_clear_error();
    return r;
}

int
note_verify(const struct note *note, const struct note_key *key, uint64_t *time)
{
    size_t want = key->type == NOTE_COSIGNATURE ? 8 + NOTE_SIG_LEN : NOTE_SIG_LEN;
    struct buf msg = BUF_INIT;
    int r = KMS_ERR_NOT_FOUND;

    for (size_t i = 0; i < note->n; i++) {
        const struct note_sig *s = &note->sig[i];
        uint64_t when = 0;

        if (s->id != key->id || s->name_len != strlen(key->name) ||
            memcmp(s->name, key->name, s->name_len) != 0)
            continue;
        if (s->sig_len != want) {
            r = KMS_ERR_CRYPTO;
        } else if (key->type == NOTE_ED25519) {
            r = ed25519_verify(key->pub, s->sig, note->text, note->text_len);
        } else {
            when = (uint64_t)get_u32(s->sig) << 32 | get_u32(s->sig + 4);
            if (when > INT64_MAX)
                r = KMS_ERR_CRYPTO;
            else if ((r = note_put_cosigned(&msg, when, note->text, note->text_len)) == KMS_OK)
                r = ed25519_verify(key->pub, s->sig + 8, msg.data, msg.len);
            buf_reset(&msg);
        }
        /* One wrong signature of a known key spoils the note. */
        if (r != KMS_OK)
            break;
        if (time != NULL)
            *time = when;
    }
    buf_release(&msg);
    return r;
}

int
note_put_sig(struct buf *out, const struct note_key *key, const unsigned char *sig, size_t len)
{
    unsigned char bytes[12 + NOTE_SIG_LEN] = {
        (unsigned char)(key->id >> 24), (unsigned char)(key->id >> 16),
        (unsigned char)(key->id >> 8), (unsigned char)key->id};
    int r;

    if (len != (key->type == NOTE_COSIGNATURE ? 8 + NOTE_SIG_LEN : NOTE_SIG_LEN))
        return KMS_ERR_LENGTH;
    memcpy(bytes + 4, sig, len);
    if ((r = buf_putf(out, DASH "%s ", key->name)) != KMS_OK ||
        (r = b64_put(out, bytes, 4 + len)) != KMS_OK)
        return r;
    return buf_putc(out, '\n');
}

int
note_put_cosigned(struct buf *out, uint64_t time, const char *text, size_t len)
{
    int r = buf_putf(out, "cosignature/v1\ntime %" PRIu64 "\n", time);

    return r == KMS_OK ? buf_put(out, text, len) : r;
}

/* --- checkpoints --- */

int
checkpoint_put(struct buf *out, const struct checkpoint *c)
{
    int r;

    if ((r = buf_putf(out, "%s\n%" PRIu64 "\n", c->origin, c->size)) != KMS_OK ||
        (r = b64_put(out, c->root, sizeof(c->root))) != KMS_OK ||
        (r = buf_putc(out, '\n')) != KMS_OK)
        return r;
    return c->time >= 0 ? buf_putf(out, "time %" PRId64 "\n", c->time) : KMS_OK;
}

int
checkpoint_parse(struct checkpoint *c, const char *text, size_t len)
{
    struct buf root = BUF_INIT;
    const char *end = text + len;
    bool good = false;
    uint64_t time;

    memset(c, 0, sizeof(*c));
    c->time = -1;
    for (int line = 0; text < end; line++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t n = newline != NULL ? (size_t)(newline - text) : 0;

        if (n == 0)
            return KMS_ERR_SYNTAX;
        switch (line) {
        case 0:
            if (n > NOTE_NAME_MAX)
                return KMS_ERR_SYNTAX;
            memcpy(c->origin, text, n);
            break;
        case 1:
            if (!get_decimal(text, n, &c->size))
                return KMS_ERR_SYNTAX;
            break;
        case 2:
            if (b64_get(&root, text, n) == KMS_OK && root.len == sizeof(c->root)) {
                memcpy(c->root, root.data, sizeof(c->root));
                good = true;
            }
            buf_release(&root);
            if (!good)
                return KMS_ERR_SYNTAX;
            break;
        default:
            if (n > 5 && memcmp(text, "time ", 5) == 0 && get_decimal(text + 5, n - 5, &time))
                c->time = (int64_t)time;
        }
        text = newline + 1;
    }
    return good ? KMS_OK : KMS_ERR_SYNTAX;
}
