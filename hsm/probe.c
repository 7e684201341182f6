/*
 * probe.c - asks the token what it can do, by doing it: what modules say of themselves and what
 * they do differ.
 *
 * The canary is the other half: once the token was found fit, one operation with a known result
 * tells whether it still is, whatever codes it returned for what callers sent.
 */
#include "hsm/token.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#include "hsm/blob.h"
#include "hsm/log.h"
#include "proto/err.h"

static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;

/* RFC 3394, 4.6: 256 bits of key data under a 256-bit key. */
static const unsigned char kat_kek[] = {
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f};
static const unsigned char kat_data[] = {
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f};
static const unsigned char kat_wrapped[] = {
    0x28, 0xc9, 0xf4, 0x04, 0xc4, 0xb8, 0x10, 0xf4, 0xcb, 0xcc, 0xb3, 0x5c, 0xfb, 0x87,
    0xf8, 0x26, 0x3f, 0x57, 0x86, 0xe2, 0xd8, 0x0e, 0xd3, 0x26, 0xcb, 0xc7, 0xf0, 0xe7,
    0x1a, 0x99, 0xf4, 0x3b, 0xfb, 0x98, 0x8b, 0x9b, 0x7a, 0x02, 0xdd, 0x21};

/* The numbers under which RFC 3394 may be had, the standard's first. */
static const CK_MECHANISM_TYPE wrap_numbers[] = {CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_PAD};

static bool
has(struct token *t, CK_MECHANISM_TYPE type, CK_FLAGS flags)
{
    CK_MECHANISM_INFO info;

    return CALL(t, C_GetMechanismInfo, t->slot, type, &info) && (info.flags & flags) == flags;
}

/* A session object with a value that everybody knows.  Tokens in FIPS mode do not take one. */
static int
known_object(struct token *t, const unsigned char value[HSM_KEY_LEN], bool wraps,
             CK_OBJECT_HANDLE *key)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_BBOOL may_wrap = wraps, wrappable = !wraps;
    unsigned char copy[HSM_KEY_LEN];
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)},
        {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &no, sizeof(no)},
        {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_VALUE, copy, sizeof(copy)},
        {CKA_WRAP, &may_wrap, sizeof(may_wrap)},
        {CKA_EXTRACTABLE, &wrappable, sizeof(wrappable)},
    };

    memcpy(copy, value, sizeof(copy));
    return CALL(t, C_CreateObject, t->session, template, sizeof(template) / sizeof(template[0]),
                key)
               ? KMS_OK
               : KMS_ERR_UNAVAILABLE;
}

/* A key of this session that wraps others. */
static int
temporary_kek(struct token *t, CK_OBJECT_HANDLE *kek)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ULONG len = HSM_KEY_LEN;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &no, sizeof(no)},       {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)}, {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_WRAP, &yes, sizeof(yes)},      {CKA_UNWRAP, &yes, sizeof(yes)},
        {CKA_VALUE_LEN, &len, sizeof(len)},
    };
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};

    return CALL(t, C_GenerateKey, t->session, &mechanism, template,
                sizeof(template) / sizeof(template[0]), kek)
               ? KMS_OK
               : KMS_ERR_UNAVAILABLE;
}

static int
unfit(struct token *t, const char *why)
{
    if (t->rv != CKR_OK)
        snprintf(t->trouble, sizeof(t->trouble), "%s (%s: 0x%lx)", why, t->call, t->rv);
    else
        snprintf(t->trouble, sizeof(t->trouble), "%s", why);
    return KMS_ERR_CONFIG;
}

/* Which wrap number gives RFC 3394's known answer. */
static bool
wrap_known_answer(struct token *t)
{
    CK_OBJECT_HANDLE kek = 0, data = 0;
    unsigned char wrapped[HSM_WRAPPED_LEN];

    if (known_object(t, kat_kek, true, &kek) == KMS_OK &&
        known_object(t, kat_data, false, &data) == KMS_OK)
        for (size_t i = 0; i < sizeof(wrap_numbers) / sizeof(wrap_numbers[0]); i++) {
            t->can.wrap = wrap_numbers[i];
            if (token_wrap_key(t, kek, data, wrapped) == KMS_OK &&
                memcmp(wrapped, kat_wrapped, sizeof(wrapped)) == 0) {
                t->can.wrap_proven = true;
                break;
            }
        }
    if (kek != 0)
        token_destroy(t, kek);
    if (data != 0)
        token_destroy(t, data);
    return t->can.wrap_proven;
}

/* Two objects of one new key, by a wrap and two unwraps: proves the round trip, and serves the
 * nonce probe. */
static int
two_of_a_key(struct token *t, CK_OBJECT_HANDLE kek, CK_OBJECT_HANDLE key[2])
{
    CK_OBJECT_HANDLE first;
    unsigned char wrapped[HSM_WRAPPED_LEN];
    int err;

    if ((err = token_generate_key(t, &first)) != KMS_OK)
        return err;
    err = token_wrap_key(t, kek, first, wrapped);
    token_destroy(t, first);
    for (int i = 0; i < 2 && err == KMS_OK; i++)
        err = token_unwrap_key(t, kek, wrapped, USE_SEAL, &key[i]);
    return err;
}

/*
 * What becomes of the nonce.  The same key is used through two objects: a token that counts from
 * nought for each object would repeat itself every time a wrapping key is loaded.
 */
static int
probe_nonce(struct token *t, const CK_OBJECT_HANDLE key[2])
{
    static const unsigned char plain[HSM_KEY_LEN], aad[BLOB_AAD_LEN] = "kms nonce probe";
    unsigned char nonce[4][GCM_NONCE_LEN], out[4][HSM_KEY_LEN + GCM_TAG_LEN], back[HSM_KEY_LEN];
    unsigned char given[GCM_NONCE_LEN];
    CK_GCM_PARAMS params;
    CK_MECHANISM mechanism = {CKM_AES_GCM, &params, sizeof(params)};
    unsigned char aad_copy[BLOB_AAD_LEN], plain_copy[HSM_KEY_LEN] = {0};
    CK_ULONG len = sizeof(out[0]);

    /* One by hand, with a nonce that we know: does it come back as it was? */
    memcpy(aad_copy, aad, sizeof(aad));
    memset(given, 0xa5, sizeof(given));
    params = (CK_GCM_PARAMS){.iv_ptr = given,
                             .iv_len = sizeof(given),
                             .iv_bits = sizeof(given) * 8,
                             .aad_ptr = aad_copy,
                             .aad_len = sizeof(aad_copy),
                             .tag_bits = GCM_TAG_LEN * 8};
    if (CALL(t, C_EncryptInit, t->session, &mechanism, key[0]) &&
        CALL(t, C_Encrypt, t->session, plain_copy, sizeof(plain_copy), out[0], &len)) {
        t->can.nonce = NONCE_OURS;
        for (size_t i = 0; i < sizeof(given); i++)
            if (given[i] != 0xa5)
                t->can.nonce = NONCE_ITS;
    } else {
        t->can.nonce = NONCE_ZEROED;
    }
    for (int i = 0; i < 4; i++) {
        if (token_seal(t, key[i / 2], aad, sizeof(aad), plain, nonce[i], out[i]) != KMS_OK)
            return unfit(t, "AES-GCM: no fit nonce; try custody = process");
        for (int j = 0; j < i; j++)
            if (memcmp(nonce[i], nonce[j], GCM_NONCE_LEN) == 0 ||
                memcmp(out[i], out[j], sizeof(out[i])) == 0)
                return unfit(t, "AES-GCM: the token repeats its nonce; set custody = process");
        /* Through the other object: what was read back is what was used. */
        if (token_open_sealed(t, key[1 - i / 2], aad, sizeof(aad), nonce[i], out[i], back) !=
                KMS_OK ||
            memcmp(back, plain, sizeof(back)) != 0)
            return unfit(t, "AES-GCM: the nonce that was used is not told; set custody = process");
    }
    out[0][HSM_KEY_LEN + GCM_TAG_LEN - 1] ^= 1;
    if (token_open_sealed(t, key[0], aad, sizeof(aad), nonce[0], out[0], back) == KMS_OK)
        return unfit(t, "AES-GCM: the token does not check the tag");
    return KMS_OK;
}

int
probe_token(struct token *t)
{
    CK_OBJECT_HANDLE kek = 0, key[2] = {0, 0};
    int err;

    memset(&t->can, 0, sizeof(t->can));
    t->can.aes_generate = has(t, CKM_AES_KEY_GEN, CKF_GENERATE);
    t->can.rsa_generate = has(t, CKM_RSA_PKCS_KEY_PAIR_GEN, CKF_GENERATE_KEY_PAIR);
    t->can.pss = has(t, CKM_RSA_PKCS_PSS, CKF_SIGN);
    t->can.eddsa =
        has(t, CKM_EDDSA, CKF_SIGN) && has(t, CKM_EC_EDWARDS_KEY_PAIR_GEN, CKF_GENERATE_KEY_PAIR);
    t->can.gcm = has(t, CKM_AES_GCM, CKF_ENCRYPT | CKF_DECRYPT);
    if (!t->can.pss)
        return unfit(t, "the token has no CKM_RSA_PKCS_PSS");
    if (!t->can.gcm && !t->setup->custody_process)
        return unfit(t, "the token has no CKM_AES_GCM: set custody = process");
    if (!t->can.aes_generate || temporary_kek(t, &kek) != KMS_OK)
        return unfit(t, "the token makes no AES keys");
    if (!wrap_known_answer(t))
        t->can.wrap = CKM_AES_KEY_WRAP;
    if ((err = two_of_a_key(t, kek, key)) != KMS_OK)
        err = unfit(t, "AES key wrap: no round trip");
    else if (!t->setup->custody_process)
        err = probe_nonce(t, key);
    token_destroy(t, kek);
    for (int i = 0; i < 2; i++)
        if (key[i] != 0)
            token_destroy(t, key[i]);
    if (err == KMS_OK && !t->can.wrap_proven)
        log_warn("token: its AES key wrap could not be proved to be RFC 3394", NULL);
    return err;
}

int
probe_static_key(struct token *t)
{
    bool raw1 = rsa_probe(t, &t->static_key, HSM_OAEP_SHA1, true) == KMS_OK;
    bool raw256 = rsa_probe(t, &t->static_key, HSM_OAEP_SHA256, true) == KMS_OK;

    t->can.raw_rsa = raw1 && raw256;
    t->can.oaep_sha1 = rsa_probe(t, &t->static_key, HSM_OAEP_SHA1, false) == KMS_OK;
    t->can.oaep_sha256 = rsa_probe(t, &t->static_key, HSM_OAEP_SHA256, false) == KMS_OK;
    if (!t->can.raw_rsa && (!t->can.oaep_sha1 || !t->can.oaep_sha256))
        return unfit(t, "the static key opens neither RSA-OAEP with both hashes nor raw RSA");
    return KMS_OK;
}

static const unsigned char canary_aad[BLOB_AAD_LEN] = "kms canary";
static const unsigned char canary_plain[HSM_KEY_LEN] = "it lives";

int
canary_new(struct token *t)
{
    CK_OBJECT_HANDLE key;
    int err;

    if (t->canary != 0)
        token_destroy(t, t->canary);
    t->canary = 0;
    t->canary_root = t->root != NULL ? t->root->handle : 0;
    if (t->known_key == 0 && known_object(t, kat_data, false, &t->known_key) != KMS_OK)
        t->known_key = 0;
    for (unsigned i = 0; i < t->roots_n; i++)
        if (keys_kcv(t, t->keks[i].handle, t->keks[i].kcv) != KMS_OK)
            t->known_key = 0; /* it takes a known key, and does not wrap it: no check values then */
    if ((err = token_generate_key(t, &key)) != KMS_OK)
        return err;
    if (t->canary_root != 0) {
        err = token_wrap_key(t, t->canary_root, key, t->canary_wrapped);
        token_destroy(t, key);
        if (err != KMS_OK || (err = token_unwrap_key(t, t->canary_root, t->canary_wrapped, USE_SEAL,
                                                     &key)) != KMS_OK)
            return KMS_ERR_UNAVAILABLE;
    }
    t->canary = key;
    if (t->setup->custody_process)
        return KMS_OK;
    return token_seal(t, t->canary, canary_aad, sizeof(canary_aad), canary_plain, t->canary_nonce,
                      t->canary_ct);
}

bool
canary_sings(struct token *t, bool full)
{
    const char *call = t->call;
    CK_RV rv = t->rv;
    CK_OBJECT_HANDLE key;
    unsigned char back[HSM_KEY_LEN];
    bool ok = true;

    if (!t->setup->custody_process)
        ok = token_open_sealed(t, t->canary, canary_aad, sizeof(canary_aad), t->canary_nonce,
                               t->canary_ct, back) == KMS_OK &&
             memcmp(back, canary_plain, sizeof(back)) == 0;
    if (ok && t->canary_root != 0 && (full || t->setup->custody_process)) {
        ok = token_unwrap_key(t, t->canary_root, t->canary_wrapped, USE_SEAL, &key) == KMS_OK;
        if (ok)
            token_destroy(t, key);
    }
    if (ok) { /* what was asked about is still what the log wants */
        t->call = call;
        t->rv = rv;
    }
    return ok;
}
