/*
 * keys.c - the lasting keys in the token: found by label, told apart by CKA_ID, made and proved by
 * hsm_init.
 *
 * A CKA_ID that is made here begins with 48 bits of milliseconds, so that the smallest is the
 * oldest; the rest is random.  Nothing here runs on a request's path.
 */
#include "hsm/token.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "hsm/blob.h"
#include "hsm/log.h"
#include "proto/err.h"

#define LABEL_ROOT   "kms-root"
#define LABEL_STATIC "kms-static"
#define LABEL_AUDIT  "kms-audit"

#define RSA_BITS_MIN 2048
#define RSA_BITS_MAX (HSM_RSA_MAX * 8)

static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;

/* The curve's name as an object identifier, 1.3.101.112. */
static unsigned char ed25519_oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};

struct found {
    CK_OBJECT_HANDLE handle;
    unsigned char id[HSM_ID_LEN];
};

/* The objects of a class, key type and label (and id, if not NULL) whose CKA_ID has our length,
 * oldest first. */
static int
find(struct token *t, CK_OBJECT_CLASS class, CK_KEY_TYPE type, const char *label,
     const unsigned char *id, struct found out[TOKEN_ROOTS_MAX], unsigned *n)
{
    char label_copy[32];
    unsigned char id_copy[HSM_ID_LEN];
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &yes, sizeof(yes)},     {CKA_LABEL, label_copy, strlen(label)},
        {CKA_ID, id_copy, sizeof(id_copy)},
    };
    CK_OBJECT_HANDLE handles[TOKEN_ROOTS_MAX];
    CK_ULONG got = 0;
    bool ok;

    *n = 0;
    memcpy(label_copy, label, strlen(label));
    if (id != NULL)
        memcpy(id_copy, id, sizeof(id_copy));
    if (!CALL(t, C_FindObjectsInit, t->session, template, id != NULL ? 5 : 4))
        return KMS_ERR_UNAVAILABLE;
    ok = CALL(t, C_FindObjects, t->session, handles, TOKEN_ROOTS_MAX, &got);
    if (!CALL(t, C_FindObjectsFinal, t->session) || !ok)
        return KMS_ERR_UNAVAILABLE;
    for (CK_ULONG i = 0; i < got; i++) {
        struct found f = {.handle = handles[i]};
        CK_ATTRIBUTE a = {CKA_ID, f.id, sizeof(f.id)};
        unsigned at = *n;

        if (!CALL(t, C_GetAttributeValue, t->session, f.handle, &a, 1) ||
            a.ulValueLen != HSM_ID_LEN)
            continue; /* not one of ours */
        for (; at > 0 && memcmp(out[at - 1].id, f.id, HSM_ID_LEN) > 0; at--)
            out[at] = out[at - 1];
        out[at] = f;
        (*n)++;
    }
    return KMS_OK;
}

static bool
flag_is(struct token *t, CK_OBJECT_HANDLE key, CK_ATTRIBUTE_TYPE type, bool want)
{
    CK_BBOOL value = want ? CK_FALSE : CK_TRUE;
    CK_ATTRIBUTE a = {type, &value, sizeof(value)};

    return CALL(t, C_GetAttributeValue, t->session, key, &a, 1) && (value == CK_TRUE) == want;
}

/* A key that could leave the token is none of ours, whatever its label says. */
static bool
is_kept(struct token *t, CK_OBJECT_HANDLE key, const char *label)
{
    if (flag_is(t, key, CKA_SENSITIVE, true) && flag_is(t, key, CKA_EXTRACTABLE, false))
        return true;
    log_error("token: a key could be taken out of it and is not used", "label", label, NULL);
    return false;
}

static int
roots_resolve(struct token *t)
{
    struct found found[TOKEN_ROOTS_MAX];
    unsigned n;
    int err;

    t->roots_n = 0;
    t->root = NULL;
    if ((err = find(t, CKO_SECRET_KEY, CKK_AES, LABEL_ROOT, NULL, found, &n)) != KMS_OK)
        return err;
    for (unsigned i = 0; i < n; i++) {
        struct root *r = &t->roots[t->roots_n];

        if (!is_kept(t, found[i].handle, LABEL_ROOT))
            continue;
        memset(r, 0, sizeof(*r));
        r->handle = found[i].handle;
        memcpy(r->id, found[i].id, HSM_ID_LEN);
        if (t->root == NULL &&
            (!t->setup->has_root || memcmp(r->id, t->setup->root, HSM_ID_LEN) == 0))
            t->root = r;
        t->roots_n++;
    }
    return KMS_OK;
}

static int
static_resolve(struct token *t)
{
    struct found found[TOKEN_ROOTS_MAX];
    CK_ATTRIBUTE a[] = {
        {CKA_MODULUS, t->static_n, sizeof(t->static_n)},
        {CKA_PUBLIC_EXPONENT, t->static_e, sizeof(t->static_e)},
    };
    unsigned n, i = 0;
    int err;

    t->static_key = 0;
    t->static_n_len = t->static_e_len = 0;
    if ((err = find(t, CKO_PRIVATE_KEY, CKK_RSA, LABEL_STATIC, NULL, found, &n)) != KMS_OK)
        return err;
    while (i < n && !is_kept(t, found[i].handle, LABEL_STATIC))
        i++;
    if (i == n)
        return KMS_OK;
    if (!CALL(t, C_GetAttributeValue, t->session, found[i].handle, a, 2))
        return KMS_ERR_UNAVAILABLE;
    t->static_key = found[i].handle;
    memcpy(t->static_id, found[i].id, HSM_ID_LEN);
    t->static_n_len = a[0].ulValueLen;
    t->static_e_len = a[1].ulValueLen;
    while (t->static_n_len > 0 && t->static_n[0] == 0)
        memmove(t->static_n, t->static_n + 1, --t->static_n_len);
    return KMS_OK;
}

/* CKA_EC_POINT: 32 bytes, in an OCTET STRING or bare. */
static int
audit_resolve(struct token *t)
{
    struct found found[TOKEN_ROOTS_MAX], public[TOKEN_ROOTS_MAX];
    unsigned char point[34];
    CK_ATTRIBUTE a = {CKA_EC_POINT, point, sizeof(point)};
    unsigned n, public_n;
    int err;

    t->audit_key = 0;
    if ((err = find(t, CKO_PRIVATE_KEY, CKK_EC_EDWARDS, LABEL_AUDIT, NULL, found, &n)) != KMS_OK)
        return t->can.eddsa ? err : KMS_OK;
    for (unsigned i = 0; i < n; i++) {
        if (!is_kept(t, found[i].handle, LABEL_AUDIT) ||
            find(t, CKO_PUBLIC_KEY, CKK_EC_EDWARDS, LABEL_AUDIT, found[i].id, public, &public_n) !=
                KMS_OK ||
            public_n == 0 || !CALL(t, C_GetAttributeValue, t->session, public[0].handle, &a, 1))
            continue;
        if (a.ulValueLen == sizeof(point) && point[0] == 0x04 && point[1] == 32)
            memcpy(t->audit_public, point + 2, 32);
        else if (a.ulValueLen == 32)
            memcpy(t->audit_public, point, 32);
        else
            continue;
        t->audit_key = found[i].handle;
        memcpy(t->audit_id, found[i].id, HSM_ID_LEN);
        return KMS_OK;
    }
    return KMS_OK;
}

int
keys_resolve(struct token *t)
{
    int err;

    if ((err = roots_resolve(t)) != KMS_OK || (err = static_resolve(t)) != KMS_OK)
        return err;
    return audit_resolve(t);
}

const struct root *
keys_root(const struct token *t, const unsigned char id[HSM_ID_LEN])
{
    for (unsigned i = 0; i < t->roots_n; i++)
        if (memcmp(t->roots[i].id, id, HSM_ID_LEN) == 0)
            return &t->roots[i];
    return NULL;
}

void
keys_to_info(const struct token *t, struct hsm_info *info)
{
    memset(info, 0, sizeof(*info));
    if (t->root != NULL) {
        info->has_root = true;
        memcpy(info->root, t->root->id, HSM_ID_LEN);
    }
    if (t->static_key != 0) {
        memcpy(info->static_n, t->static_n, t->static_n_len);
        info->static_n_len = t->static_n_len;
        memcpy(info->static_e, t->static_e, t->static_e_len);
        info->static_e_len = t->static_e_len;
    }
    if (t->audit_key != 0) {
        info->has_audit = true;
        memcpy(info->audit_public, t->audit_public, sizeof(info->audit_public));
    }
    info->oaep_sha256_native = t->can.oaep_sha256 && (t->setup->oaep_token || !t->can.raw_rsa);
}

int
keys_kcv(struct token *t, CK_OBJECT_HANDLE key, unsigned char kcv[HSM_KCV_LEN])
{
    unsigned char wrapped[HSM_WRAPPED_LEN];
    int err;

    memset(kcv, 0, HSM_KCV_LEN);
    if (t->known_key == 0)
        return KMS_OK;
    if ((err = token_wrap_key(t, key, t->known_key, wrapped)) == KMS_OK)
        memcpy(kcv, wrapped, HSM_KCV_LEN);
    return err;
}

void
public_kcv(const unsigned char *p, size_t len, unsigned char kcv[HSM_KCV_LEN])
{
    unsigned char hash[EVP_MAX_MD_SIZE];

    memset(hash, 0, HSM_KCV_LEN);
    EVP_Digest(p, len, hash, NULL, EVP_sha256(), NULL);
    memcpy(kcv, hash, HSM_KCV_LEN);
}

/* Milliseconds since 1970, then randomness. */
static int
new_id(unsigned char id[HSM_ID_LEN])
{
    struct timespec now;
    uint64_t ms;

    clock_gettime(CLOCK_REALTIME, &now);
    ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    for (int i = 5; i >= 0; i--, ms >>= 8)
        id[i] = (unsigned char)ms;
    return RAND_bytes(id + 6, HSM_ID_LEN - 6) == 1 ? KMS_OK : KMS_ERR_INTERNAL;
}

static int
trouble(struct token *t, const char *what, const char *why)
{
    if (t->rv != CKR_OK)
        snprintf(t->trouble, sizeof(t->trouble), "%s: %s (%s: 0x%lx)", what, why, t->call, t->rv);
    else
        snprintf(t->trouble, sizeof(t->trouble), "%s: %s", what, why);
    log_error("ceremony: failed", "why", t->trouble, NULL);
    return KMS_ERR_UNAVAILABLE;
}

/* Two keepers at once: whoever sees the other's key takes his own away again, so that there is
 * never a second one. */
static bool
is_alone(struct token *t, CK_OBJECT_CLASS class, CK_KEY_TYPE type, const char *label,
         const unsigned char id[HSM_ID_LEN])
{
    struct found found[TOKEN_ROOTS_MAX];
    unsigned n;

    return find(t, class, type, label, NULL, found, &n) == KMS_OK && n == 1 &&
           memcmp(found[0].id, id, HSM_ID_LEN) == 0;
}

/* Proves a new root by a wrapping key that goes there and back. */
static int
root_prove(struct token *t, const unsigned char id[HSM_ID_LEN])
{
    unsigned char wrapped[HSM_WRAPPED_LEN], kcv[HSM_KCV_LEN], again[HSM_KCV_LEN];
    int err;

    if ((err = roots_resolve(t)) != KMS_OK)
        return err;
    t->root = NULL;
    for (unsigned i = 0; i < t->roots_n; i++)
        if (memcmp(t->roots[i].id, id, HSM_ID_LEN) == 0)
            t->root = &t->roots[i];
    if (t->root == NULL)
        return KMS_ERR_UNAVAILABLE;
    if ((err = keys_kcv(t, t->root->handle, kcv)) != KMS_OK ||
        (err = keys_new_wrapping_key(t, wrapped, again)) != KMS_OK ||
        (err = keys_kcv(t, t->root->handle, again)) != KMS_OK)
        return err;
    return memcmp(kcv, again, sizeof(kcv)) == 0 ? KMS_OK : KMS_ERR_UNAVAILABLE;
}

static int
root_make(struct token *t, CK_SESSION_HANDLE rw)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ULONG len = HSM_KEY_LEN;
    char label[] = LABEL_ROOT;
    unsigned char id[HSM_ID_LEN];
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &yes, sizeof(yes)},     {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)}, {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_WRAP, &yes, sizeof(yes)},      {CKA_UNWRAP, &yes, sizeof(yes)},
        {CKA_ENCRYPT, &no, sizeof(no)},     {CKA_DECRYPT, &no, sizeof(no)},
        {CKA_SIGN, &no, sizeof(no)},        {CKA_VERIFY, &no, sizeof(no)},
        {CKA_LABEL, label, strlen(label)},  {CKA_ID, id, sizeof(id)},
        {CKA_VALUE_LEN, &len, sizeof(len)},
    };
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};
    CK_OBJECT_HANDLE key;

    if (t->setup->has_root) {
        t->rv = CKR_OK;
        return trouble(t, LABEL_ROOT, "the configuration names one that is not in the token");
    }
    if (new_id(id) != KMS_OK || !CALL(t, C_GenerateKey, rw, &mechanism, template,
                                      sizeof(template) / sizeof(template[0]), &key))
        return trouble(t, LABEL_ROOT, "cannot be made");
    if (!is_alone(t, CKO_SECRET_KEY, CKK_AES, LABEL_ROOT, id) || root_prove(t, id) != KMS_OK) {
        trouble(t, LABEL_ROOT, "the new one did not prove itself, or somebody else made one too");
        t->f->C_DestroyObject(rw, key);
        return KMS_ERR_UNAVAILABLE;
    }
    return KMS_OK;
}

/* Both halves of a new pair go together. */
static void
pair_destroy(struct token *t, CK_SESSION_HANDLE rw, CK_OBJECT_HANDLE public,
             CK_OBJECT_HANDLE private)
{
    t->f->C_DestroyObject(rw, public);
    t->f->C_DestroyObject(rw, private);
}

static int
static_make(struct token *t, CK_SESSION_HANDLE rw, unsigned rsa_bits)
{
    CK_ULONG bits = rsa_bits != 0 ? rsa_bits : t->setup->rsa_bits;
    unsigned char e[] = {1, 0, 1}, id[HSM_ID_LEN], digest[32] = {0}, sig[HSM_RSA_MAX];
    char label[] = LABEL_STATIC;
    size_t sig_len;
    CK_ATTRIBUTE public_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},
        {CKA_MODULUS_BITS, &bits, sizeof(bits)},
        {CKA_ENCRYPT, &yes, sizeof(yes)},
        {CKA_VERIFY, &yes, sizeof(yes)},
        {CKA_PUBLIC_EXPONENT, e, sizeof(e)},
        {CKA_LABEL, label, strlen(label)},
        {CKA_ID, id, sizeof(id)},
    };
    CK_ATTRIBUTE private_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},     {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)}, {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_SIGN, &yes, sizeof(yes)},      {CKA_DECRYPT, &yes, sizeof(yes)},
        {CKA_UNWRAP, &no, sizeof(no)},      {CKA_LABEL, label, strlen(label)},
        {CKA_ID, id, sizeof(id)},
    };
    CK_MECHANISM mechanism = {CKM_RSA_PKCS_KEY_PAIR_GEN, NULL, 0};
    CK_OBJECT_HANDLE public, private;

    t->rv = CKR_OK;
    if (bits < RSA_BITS_MIN || bits > RSA_BITS_MAX || bits % 8 != 0)
        return trouble(t, LABEL_STATIC, "write 2048 to 4096 bits");
    if (new_id(id) != KMS_OK ||
        !CALL(t, C_GenerateKeyPair, rw, &mechanism, public_template,
              sizeof(public_template) / sizeof(public_template[0]), private_template,
              sizeof(private_template) / sizeof(private_template[0]), &public, &private))
        return trouble(t, LABEL_STATIC, "cannot be made");
    if (!is_alone(t, CKO_PRIVATE_KEY, CKK_RSA, LABEL_STATIC, id) || static_resolve(t) != KMS_OK ||
        t->static_key == 0 || probe_static_key(t) != KMS_OK ||
        rsa_sign_pss(t, digest, sig, &sig_len) != KMS_OK) {
        trouble(t, LABEL_STATIC, "the new one did not prove itself, or somebody else made one too");
        pair_destroy(t, rw, public, private);
        return KMS_ERR_UNAVAILABLE;
    }
    return KMS_OK;
}

static int
audit_make(struct token *t, CK_SESSION_HANDLE rw)
{
    unsigned char id[HSM_ID_LEN], sig[64];
    char label[] = LABEL_AUDIT;
    CK_ATTRIBUTE public_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},  {CKA_EC_PARAMS, ed25519_oid, sizeof(ed25519_oid)},
        {CKA_VERIFY, &yes, sizeof(yes)}, {CKA_LABEL, label, strlen(label)},
        {CKA_ID, id, sizeof(id)},
    };
    CK_ATTRIBUTE private_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},     {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)}, {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_SIGN, &yes, sizeof(yes)},      {CKA_LABEL, label, strlen(label)},
        {CKA_ID, id, sizeof(id)},
    };
    CK_MECHANISM mechanism = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0};
    CK_OBJECT_HANDLE public, private;

    if (new_id(id) != KMS_OK ||
        !CALL(t, C_GenerateKeyPair, rw, &mechanism, public_template,
              sizeof(public_template) / sizeof(public_template[0]), private_template,
              sizeof(private_template) / sizeof(private_template[0]), &public, &private))
        return trouble(t, LABEL_AUDIT, "cannot be made");
    /* audit_sign verifies what it signs. */
    if (!is_alone(t, CKO_PRIVATE_KEY, CKK_EC_EDWARDS, LABEL_AUDIT, id) ||
        audit_resolve(t) != KMS_OK || t->audit_key == 0 ||
        audit_sign(t, id, sizeof(id), sig) != KMS_OK) {
        trouble(t, LABEL_AUDIT, "the new one did not prove itself, or somebody else made one too");
        pair_destroy(t, rw, public, private);
        return KMS_ERR_UNAVAILABLE;
    }
    return KMS_OK;
}

int
keys_make(struct token *t, unsigned rsa_bits)
{
    CK_SESSION_HANDLE rw;
    int err = KMS_OK;

    if (keys_resolve(t) != KMS_OK)
        return trouble(t, "token", "its keys cannot be read");
    if (!CALL(t, C_OpenSession, t->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &rw))
        return trouble(t, "token", "cannot be written to");
    if (t->root == NULL)
        err = root_make(t, rw);
    if (err == KMS_OK && t->static_key == 0)
        err = static_make(t, rw, rsa_bits);
    if (err == KMS_OK && t->audit_key == 0 && t->can.eddsa)
        err = audit_make(t, rw);
    CALL(t, C_CloseSession, rw);
    return err;
}

int
keys_new_wrapping_key(struct token *t, unsigned char wrapped[HSM_WRAPPED_LEN],
                      unsigned char kcv[HSM_KCV_LEN])
{
    CK_OBJECT_HANDLE key, back;
    unsigned char first[HSM_KCV_LEN];
    int err;

    /* A key that can be wrapped must not wrap others as well, so its check value comes from the
     * copy that cannot. */
    if ((err = token_generate_key(t, &key)) != KMS_OK)
        return err;
    err = token_wrap_key(t, t->root->handle, key, wrapped);
    token_destroy(t, key);
    for (int i = 0; i < 2 && err == KMS_OK; i++) {
        if (token_unwrap_key(t, t->root->handle, wrapped, USE_SEAL_AND_WRAP, &back) != KMS_OK)
            return KMS_ERR_UNAVAILABLE;
        err = keys_kcv(t, back, i == 0 ? first : kcv);
        token_destroy(t, back);
    }
    if (err == KMS_OK && memcmp(first, kcv, sizeof(first)) != 0)
        err = KMS_ERR_UNAVAILABLE;
    return err;
}
