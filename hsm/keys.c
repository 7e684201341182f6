/*
 * keys.c - the lasting keys in the token: found by label, told apart by CKA_ID; the first ones made
 * and proved by hsm_init.  Those that come and go later are life.c's.
 *
 * A root's CKA_ID begins with 48 bits of milliseconds, so that the smallest is the oldest; the rest
 * is random.  Nothing here runs on a request's path, unless it names a key that is not known yet.
 */
#include "hsm/token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/blob.h"
#include "hsm/log.h"
#include "proto/err.h"

#define RSA_BITS_MIN 2048
#define RSA_BITS_MAX (HSM_RSA_MAX * 8)
#define FEW          8 /* of keys of which there is to be one */
#define LABEL_MAX    32

static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;

/* The curve's name as an object identifier, 1.3.101.112. */
static unsigned char ed25519_oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};

const char *
keys_label(enum hsm_kind kind)
{
    static const char *const labels[] = {
        [HSM_ROOT] = "kms-root",     [HSM_MAIN] = "kms-main",     [HSM_PERIOD] = "kms-period",
        [HSM_IMPORT] = "kms-import", [HSM_STATIC] = "kms-static", [HSM_AUDIT] = "kms-audit",
    };

    return labels[kind];
}

CK_OBJECT_CLASS
keys_class(enum hsm_kind kind)
{
    return kind <= HSM_PERIOD ? CKO_SECRET_KEY : CKO_PRIVATE_KEY;
}

static int
by_id(const void *a, const void *b)
{
    return memcmp(((const struct found *)a)->id, ((const struct found *)b)->id, HSM_ID_LEN);
}

/* The token's objects that fit. */
static int
search(struct token *t, CK_ATTRIBUTE *template, CK_ULONG template_n, CK_OBJECT_HANDLE *out,
       unsigned max, unsigned *n)
{
    CK_ULONG got;
    bool ok;

    *n = 0;
    if (!CALL(t, C_FindObjectsInit, t->session, template, template_n))
        return KMS_ERR_UNAVAILABLE;
    do {
        got = 0;
        ok = CALL(t, C_FindObjects, t->session, out + *n, max - *n, &got);
        *n += (unsigned)got;
    } while (ok && got > 0 && *n < max);
    if (!CALL(t, C_FindObjectsFinal, t->session) || !ok)
        return KMS_ERR_UNAVAILABLE;
    if (*n == max)
        log_warn("token: may hold more keys than are looked at", NULL);
    return KMS_OK;
}

int
keys_find(struct token *t, enum hsm_kind kind, CK_OBJECT_CLASS class, const unsigned char *id,
          struct found *out, unsigned max, unsigned *n)
{
    static CK_OBJECT_HANDLE handles[TOKEN_KEKS_MAX];
    CK_KEY_TYPE type = kind <= HSM_PERIOD ? CKK_AES : kind == HSM_AUDIT ? CKK_EC_EDWARDS : CKK_RSA;
    char label[LABEL_MAX];
    unsigned char id_copy[HSM_ID_LEN];
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &yes, sizeof(yes)},     {CKA_LABEL, label, strlen(keys_label(kind))},
        {CKA_ID, id_copy, sizeof(id_copy)},
    };
    unsigned all;
    int err;

    *n = 0;
    memcpy(label, keys_label(kind), strlen(keys_label(kind)));
    if (id != NULL)
        memcpy(id_copy, id, sizeof(id_copy));
    if ((err = search(t, template, id != NULL ? 5 : 4, handles, max, &all)) != KMS_OK)
        return err;
    for (unsigned i = 0; i < all; i++) {
        CK_ATTRIBUTE a = {CKA_ID, out[*n].id, HSM_ID_LEN};

        if (!CALL(t, C_GetAttributeValue, t->session, handles[i], &a, 1) ||
            a.ulValueLen != HSM_ID_LEN)
            continue; /* not one of ours, or one that was not finished */
        out[(*n)++].handle = handles[i];
    }
    qsort(out, *n, sizeof(*out), by_id);
    return KMS_OK;
}

bool
keys_is_kept(struct token *t, CK_OBJECT_HANDLE key)
{
    CK_BBOOL sensitive = CK_FALSE, extractable = CK_TRUE;
    CK_ATTRIBUTE a[] = {
        {CKA_SENSITIVE, &sensitive, sizeof(sensitive)},
        {CKA_EXTRACTABLE, &extractable, sizeof(extractable)},
    };

    return CALL(t, C_GetAttributeValue, t->session, key, a, 2) && sensitive == CK_TRUE &&
           extractable == CK_FALSE;
}

static void
complain_of_leak(enum hsm_kind kind)
{
    log_error("token: a key could be taken out of it and is not used", "label", keys_label(kind),
              NULL);
}

static bool
is_kept(struct token *t, CK_OBJECT_HANDLE key, enum hsm_kind kind)
{
    if (keys_is_kept(t, key))
        return true;
    complain_of_leak(kind);
    return false;
}

static int
by_kind_and_id(const void *a, const void *b)
{
    const struct kek *x = a, *y = b;

    return x->kind != y->kind ? (x->kind < y->kind ? -1 : 1) : memcmp(x->id, y->id, HSM_ID_LEN);
}

/* One of ours, if it is: all that there is to be known in one call, as tokens are slow at this. */
static bool
kek_read(struct token *t, CK_OBJECT_HANDLE handle, struct kek *out)
{
    char label[LABEL_MAX];
    CK_BBOOL sensitive = CK_FALSE, extractable = CK_TRUE;
    CK_ATTRIBUTE a[] = {
        {CKA_LABEL, label, sizeof(label)},
        {CKA_ID, out->id, sizeof(out->id)},
        {CKA_SENSITIVE, &sensitive, sizeof(sensitive)},
        {CKA_EXTRACTABLE, &extractable, sizeof(extractable)},
    };

    *out = (struct kek){.handle = handle};
    if (!CALL(t, C_GetAttributeValue, t->session, handle, a, 4) || a[1].ulValueLen != HSM_ID_LEN)
        return false; /* not one of ours, or one that was not finished */
    for (enum hsm_kind kind = HSM_ROOT; kind <= HSM_PERIOD; kind++)
        if (a[0].ulValueLen == strlen(keys_label(kind)) &&
            memcmp(label, keys_label(kind), a[0].ulValueLen) == 0)
            out->kind = kind;
    if (out->kind == 0)
        return false;
    if (sensitive == CK_TRUE && extractable == CK_FALSE)
        return true;
    complain_of_leak(out->kind);
    return false;
}

/* Two of one id: nobody knows which was meant, so neither. */
static void
drop_twins(struct token *t)
{
    unsigned n = 0, same;

    for (unsigned i = 0; i < t->keks_n; i += same) {
        for (same = 1; i + same < t->keks_n && by_kind_and_id(&t->keks[i], &t->keks[i + same]) == 0;
             same++)
            ;
        if (same > 1)
            log_error("token: keys have one id; none of them is used", "label",
                      keys_label(t->keks[i].kind), NULL);
        else
            t->keks[n++] = t->keks[i];
    }
    t->keks_n = n;
}

int
keks_resolve(struct token *t)
{
    static CK_OBJECT_HANDLE handles[TOKEN_KEKS_MAX];
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)},
        {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &yes, sizeof(yes)},
    };
    unsigned n;
    int err;

    t->root = NULL;
    t->keks_n = t->roots_n = 0;
    if ((err = search(t, template, 3, handles, TOKEN_KEKS_MAX, &n)) != KMS_OK)
        return err;
    for (unsigned i = 0; i < n; i++)
        if (kek_read(t, handles[i], &t->keks[t->keks_n]))
            t->keks_n++;
    qsort(t->keks, t->keks_n, sizeof(t->keks[0]), by_kind_and_id);
    drop_twins(t);
    while (t->roots_n < t->keks_n && t->keks[t->roots_n].kind == HSM_ROOT)
        t->roots_n++;
    for (unsigned i = 0; i < t->roots_n && t->root == NULL; i++)
        if (!t->setup->has_root || memcmp(t->keks[i].id, t->setup->root, HSM_ID_LEN) == 0)
            t->root = &t->keks[i];
    t->looked = true;
    return KMS_OK;
}

int
keks_forget(struct token *t, const unsigned char id[HSM_ID_LEN])
{
    for (unsigned i = 0; i < t->roots_n; i++)
        if (memcmp(t->keks[i].id, id, HSM_ID_LEN) == 0)
            return keks_resolve(t);
    for (unsigned i = t->roots_n; i < t->keks_n; i++)
        if (memcmp(t->keks[i].id, id, HSM_ID_LEN) == 0) {
            t->keks[i] = t->keks[--t->keks_n];
            break;
        }
    t->looked = false;
    return KMS_OK;
}

int
rsa_key_read(struct token *t, const struct found *f, struct rsa_key *out)
{
    CK_ATTRIBUTE a[] = {
        {CKA_MODULUS, out->n, sizeof(out->n)},
        {CKA_PUBLIC_EXPONENT, out->e, sizeof(out->e)},
    };

    memset(out, 0, sizeof(*out));
    if (!CALL(t, C_GetAttributeValue, t->session, f->handle, a, 2))
        return KMS_ERR_UNAVAILABLE;
    out->handle = f->handle;
    memcpy(out->id, f->id, HSM_ID_LEN);
    out->n_len = a[0].ulValueLen;
    out->e_len = a[1].ulValueLen;
    while (out->n_len > 0 && out->n[0] == 0)
        memmove(out->n, out->n + 1, --out->n_len);
    return KMS_OK;
}

static int
static_resolve(struct token *t)
{
    struct found found[FEW];
    unsigned n, i = 0;
    int err;

    memset(&t->static_key, 0, sizeof(t->static_key));
    if ((err = keys_find(t, HSM_STATIC, CKO_PRIVATE_KEY, NULL, found, FEW, &n)) != KMS_OK)
        return err;
    while (i < n && !is_kept(t, found[i].handle, HSM_STATIC))
        i++;
    return i < n ? rsa_key_read(t, &found[i], &t->static_key) : KMS_OK;
}

/* CKA_EC_POINT: 32 bytes, in an OCTET STRING or bare. */
static int
audit_resolve(struct token *t)
{
    struct found found[FEW], public[FEW];
    unsigned char point[34];
    CK_ATTRIBUTE a = {CKA_EC_POINT, point, sizeof(point)};
    unsigned n, public_n;
    int err;

    t->audit_key = 0;
    if ((err = keys_find(t, HSM_AUDIT, CKO_PRIVATE_KEY, NULL, found, FEW, &n)) != KMS_OK)
        return t->can.eddsa ? err : KMS_OK;
    for (unsigned i = 0; i < n; i++) {
        if (!is_kept(t, found[i].handle, HSM_AUDIT) ||
            keys_find(t, HSM_AUDIT, CKO_PUBLIC_KEY, found[i].id, public, FEW, &public_n) !=
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

    if ((err = keks_resolve(t)) != KMS_OK || (err = static_resolve(t)) != KMS_OK)
        return err;
    return audit_resolve(t);
}

/* Another custodian, or another node, may have made it since this one looked. */
int
keys_kek(struct token *t, const unsigned char id[HSM_ID_LEN], const struct kek **out)
{
    int err;

    for (;;) {
        for (unsigned i = 0; i < t->keks_n; i++)
            if (memcmp(t->keks[i].id, id, HSM_ID_LEN) == 0) {
                *out = &t->keks[i];
                return KMS_OK;
            }
        if (t->looked)
            return KMS_ERR_NOT_FOUND;
        if ((err = keks_resolve(t)) != KMS_OK)
            return err;
    }
}

void
keys_to_info(const struct token *t, struct hsm_info *info)
{
    const struct rsa_key *k = &t->static_key;

    memset(info, 0, sizeof(*info));
    if (t->root != NULL) {
        info->has_root = true;
        memcpy(info->root, t->root->id, HSM_ID_LEN);
    }
    if (k->handle != 0) {
        memcpy(info->static_n, k->n, k->n_len);
        info->static_n_len = k->n_len;
        memcpy(info->static_e, k->e, k->e_len);
        info->static_e_len = k->e_len;
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
is_alone(struct token *t, enum hsm_kind kind, const unsigned char id[HSM_ID_LEN])
{
    struct found found[FEW];
    unsigned n;

    return keys_find(t, kind, keys_class(kind), NULL, found, FEW, &n) == KMS_OK && n == 1 &&
           memcmp(found[0].id, id, HSM_ID_LEN) == 0;
}

bool
kek_make(struct token *t, CK_SESSION_HANDLE session, enum hsm_kind kind,
         const unsigned char id[HSM_ID_LEN], bool lasting, const struct kek_source *from,
         CK_OBJECT_HANDLE *key)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_BBOOL stays = lasting;
    CK_ULONG len = HSM_KEY_LEN, n;
    char label[32];
    unsigned char id_copy[HSM_ID_LEN], bytes[HSM_RSA_MAX];
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)},
        {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &stays, sizeof(stays)},
        {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)},
        {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_WRAP, &yes, sizeof(yes)},
        {CKA_UNWRAP, &yes, sizeof(yes)},
        {CKA_ENCRYPT, &no, sizeof(no)},
        {CKA_DECRYPT, &no, sizeof(no)},
        {CKA_SIGN, &no, sizeof(no)},
        {CKA_VERIFY, &no, sizeof(no)},
        {CKA_LABEL, label, strlen(keys_label(kind))},
        {CKA_ID, id_copy, sizeof(id_copy)},
        {0, NULL, 0}, /* length or value, where one is to be given */
    };
    CK_RSA_PKCS_OAEP_PARAMS oaep = {
        .hashAlg = CKM_SHA256, .mgf = CKG_MGF1_SHA256, .source = CKZ_DATA_SPECIFIED};
    CK_MECHANISM generate = {CKM_AES_KEY_GEN, NULL, 0};
    CK_MECHANISM unwrap = {CKM_RSA_PKCS_OAEP, &oaep, sizeof(oaep)};
    bool ok;

    n = sizeof(template) / sizeof(template[0]);
    memcpy(label, keys_label(kind), strlen(keys_label(kind)));
    memcpy(id_copy, id, sizeof(id_copy));
    if (from->how != KEK_GENERATED)
        memcpy(bytes, from->bytes, from->len);
    switch (from->how) {
    case KEK_GENERATED:
        template[n - 1] = (CK_ATTRIBUTE){CKA_VALUE_LEN, &len, sizeof(len)};
        ok = CALL(t, C_GenerateKey, session, &generate, template, n, key);
        break;
    case KEK_GIVEN:
        template[n - 1] = (CK_ATTRIBUTE){CKA_VALUE, bytes, from->len};
        ok = CALL(t, C_CreateObject, session, template, n, key);
        break;
    default:
        ok = CALL(t, C_UnwrapKey, session, &unwrap, from->pair, bytes, from->len, template, n - 1,
                  key);
        break;
    }
    if (from->how == KEK_GIVEN)
        OPENSSL_cleanse(bytes, from->len);
    return ok;
}

int
kek_prove(struct token *t, CK_OBJECT_HANDLE key, unsigned char kcv[HSM_KCV_LEN])
{
    unsigned char wrapped[HSM_WRAPPED_LEN], again[HSM_KCV_LEN];
    int err;

    if ((err = keys_kcv(t, key, kcv)) != KMS_OK ||
        (err = keys_new_wrapping_key(t, key, wrapped, again)) != KMS_OK ||
        (err = keys_kcv(t, key, again)) != KMS_OK)
        return err;
    return memcmp(kcv, again, HSM_KCV_LEN) == 0 ? KMS_OK : KMS_ERR_UNAVAILABLE;
}

static int
root_make(struct token *t, CK_SESSION_HANDLE rw)
{
    static const struct kek_source generated = {.how = KEK_GENERATED};
    const char *label = keys_label(HSM_ROOT);
    unsigned char id[HSM_ID_LEN], kcv[HSM_KCV_LEN];
    CK_OBJECT_HANDLE key;

    if (t->setup->has_root) {
        t->rv = CKR_OK;
        return trouble(t, label, "the configuration names one that is not in the token");
    }
    if (new_id(id) != KMS_OK || !kek_make(t, rw, HSM_ROOT, id, true, &generated, &key))
        return trouble(t, label, "cannot be made");
    if (!is_alone(t, HSM_ROOT, id) || keks_resolve(t) != KMS_OK || t->root == NULL ||
        memcmp(t->root->id, id, HSM_ID_LEN) != 0 || kek_prove(t, t->root->handle, kcv) != KMS_OK) {
        trouble(t, label, "the new one did not prove itself, or somebody else made one too");
        t->f->C_DestroyObject(rw, key);
        return KMS_ERR_UNAVAILABLE;
    }
    return KMS_OK;
}

void
pair_destroy(struct token *t, CK_SESSION_HANDLE rw, CK_OBJECT_HANDLE public,
             CK_OBJECT_HANDLE private)
{
    t->f->C_DestroyObject(rw, public);
    t->f->C_DestroyObject(rw, private);
}

bool
pair_make(struct token *t, CK_SESSION_HANDLE rw, enum hsm_kind kind,
          const unsigned char id[HSM_ID_LEN], CK_ULONG bits, CK_OBJECT_HANDLE *public,
          CK_OBJECT_HANDLE *private)
{
    CK_BBOOL signs = kind == HSM_STATIC, unwraps = kind == HSM_IMPORT;
    unsigned char e[] = {1, 0, 1}, id_copy[HSM_ID_LEN];
    char label[32];
    size_t label_len = strlen(keys_label(kind));
    CK_ATTRIBUTE public_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},        {CKA_MODULUS_BITS, &bits, sizeof(bits)},
        {CKA_ENCRYPT, &yes, sizeof(yes)},      {CKA_VERIFY, &signs, sizeof(signs)},
        {CKA_WRAP, &unwraps, sizeof(unwraps)}, {CKA_PUBLIC_EXPONENT, e, sizeof(e)},
        {CKA_LABEL, label, label_len},         {CKA_ID, id_copy, sizeof(id_copy)},
    };
    CK_ATTRIBUTE private_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},          {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)},      {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_SIGN, &signs, sizeof(signs)},       {CKA_DECRYPT, &yes, sizeof(yes)},
        {CKA_UNWRAP, &unwraps, sizeof(unwraps)}, {CKA_LABEL, label, label_len},
        {CKA_ID, id_copy, sizeof(id_copy)},
    };
    CK_MECHANISM mechanism = {CKM_RSA_PKCS_KEY_PAIR_GEN, NULL, 0};

    memcpy(label, keys_label(kind), label_len);
    memcpy(id_copy, id, sizeof(id_copy));
    return CALL(t, C_GenerateKeyPair, rw, &mechanism, public_template,
                sizeof(public_template) / sizeof(public_template[0]), private_template,
                sizeof(private_template) / sizeof(private_template[0]), public, private);
}

static int
static_make(struct token *t, CK_SESSION_HANDLE rw, unsigned rsa_bits)
{
    CK_ULONG bits = rsa_bits != 0 ? rsa_bits : t->setup->rsa_bits;
    const char *label = keys_label(HSM_STATIC);
    unsigned char id[HSM_ID_LEN], digest[32] = {0}, sig[HSM_RSA_MAX];
    size_t sig_len;
    CK_OBJECT_HANDLE public, private;

    t->rv = CKR_OK;
    if (bits < RSA_BITS_MIN || bits > RSA_BITS_MAX || bits % 8 != 0)
        return trouble(t, label, "write 2048 to 4096 bits");
    if (new_id(id) != KMS_OK || !pair_make(t, rw, HSM_STATIC, id, bits, &public, &private))
        return trouble(t, label, "cannot be made");
    if (!is_alone(t, HSM_STATIC, id) || static_resolve(t) != KMS_OK || t->static_key.handle == 0 ||
        probe_static_key(t) != KMS_OK || rsa_sign_pss(t, digest, sig, &sig_len) != KMS_OK) {
        trouble(t, label, "the new one did not prove itself, or somebody else made one too");
        pair_destroy(t, rw, public, private);
        return KMS_ERR_UNAVAILABLE;
    }
    return KMS_OK;
}

static int
audit_make(struct token *t, CK_SESSION_HANDLE rw)
{
    unsigned char id[HSM_ID_LEN], sig[64];
    char label[32];
    size_t label_len = strlen(keys_label(HSM_AUDIT));
    CK_ATTRIBUTE public_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},  {CKA_EC_PARAMS, ed25519_oid, sizeof(ed25519_oid)},
        {CKA_VERIFY, &yes, sizeof(yes)}, {CKA_LABEL, label, label_len},
        {CKA_ID, id, sizeof(id)},
    };
    CK_ATTRIBUTE private_template[] = {
        {CKA_TOKEN, &yes, sizeof(yes)},     {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)}, {CKA_EXTRACTABLE, &no, sizeof(no)},
        {CKA_SIGN, &yes, sizeof(yes)},      {CKA_LABEL, label, label_len},
        {CKA_ID, id, sizeof(id)},
    };
    CK_MECHANISM mechanism = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0};
    CK_OBJECT_HANDLE public, private;

    memcpy(label, keys_label(HSM_AUDIT), label_len);
    if (new_id(id) != KMS_OK ||
        !CALL(t, C_GenerateKeyPair, rw, &mechanism, public_template,
              sizeof(public_template) / sizeof(public_template[0]), private_template,
              sizeof(private_template) / sizeof(private_template[0]), &public, &private))
        return trouble(t, keys_label(HSM_AUDIT), "cannot be made");
    /* audit_sign verifies what it signs. */
    if (!is_alone(t, HSM_AUDIT, id) || audit_resolve(t) != KMS_OK || t->audit_key == 0 ||
        audit_sign(t, id, sizeof(id), sig) != KMS_OK) {
        trouble(t, keys_label(HSM_AUDIT),
                "the new one did not prove itself, or somebody else made one too");
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
    if (err == KMS_OK && t->static_key.handle == 0)
        err = static_make(t, rw, rsa_bits);
    if (err == KMS_OK && t->audit_key == 0 && t->can.eddsa)
        err = audit_make(t, rw);
    CALL(t, C_CloseSession, rw);
    return err;
}

int
keys_new_wrapping_key(struct token *t, CK_OBJECT_HANDLE kek, unsigned char wrapped[HSM_WRAPPED_LEN],
                      unsigned char kcv[HSM_KCV_LEN])
{
    CK_OBJECT_HANDLE key, back;
    unsigned char first[HSM_KCV_LEN];
    int err;

    /* A key that can be wrapped must not wrap others as well, so its check value comes from the
     * copy that cannot. */
    if ((err = token_generate_key(t, &key)) != KMS_OK)
        return err;
    err = token_wrap_key(t, kek, key, wrapped);
    token_destroy(t, key);
    for (int i = 0; i < 2 && err == KMS_OK; i++) {
        if (token_unwrap_key(t, kek, wrapped, USE_SEAL_AND_WRAP, &back) != KMS_OK)
            return KMS_ERR_UNAVAILABLE;
        err = keys_kcv(t, back, i == 0 ? first : kcv);
        token_destroy(t, back);
    }
    if (err == KMS_OK && memcmp(first, kcv, sizeof(first)) != 0)
        err = KMS_ERR_UNAVAILABLE;
    return err;
}
