/*
 * token.c - module, token, login and session of a custodian, and the AES operations on them.
 */
#include "hsm/token.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/log.h"
#include "proto/err.h"

#define PIN_MAX   256
#define SLOTS_MAX 64

static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;

void
token_complain(const struct token *t, const char *what)
{
    char code[24];

    snprintf(code, sizeof(code), "0x%lx", t->rv);
    log_warn(what, "call", t->call, "code", code, NULL);
}

static enum frame_state
trouble(struct token *t, enum frame_state state, const char *what)
{
    if (t->rv != CKR_OK && t->call != NULL)
        snprintf(t->trouble, sizeof(t->trouble), "%s (%s: 0x%lx)", what, t->call, t->rv);
    else
        snprintf(t->trouble, sizeof(t->trouble), "%s", what);
    return state;
}

static enum frame_state
module_load(struct token *t)
{
    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
    CK_C_GetFunctionList get;
    void *module = dlopen(t->setup->module, RTLD_NOW | RTLD_LOCAL);

    if (module == NULL) {
        snprintf(t->trouble, sizeof(t->trouble), "%.120s", dlerror());
        return FRAME_STATE_ABSENT;
    }
    /* ISO C has no cast from an object to a function; POSIX promises that the bits are the same. */
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL || get(&t->f) != CKR_OK || t->f == NULL)
        return trouble(t, FRAME_STATE_ABSENT, "the module is no PKCS#11 module");
    if (CALL(t, C_Initialize, &args))
        return FRAME_STATE_READY;
    if (t->rv == CKR_CANT_LOCK && CALL(t, C_Initialize, NULL))
        return FRAME_STATE_READY;
    t->f = NULL;
    return trouble(t, FRAME_STATE_ABSENT, "the module does not start");
}

/* Labels are padded with spaces and have no end. */
static bool
label_is(const unsigned char label[SETUP_LABEL_LEN], const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < SETUP_LABEL_LEN; i++)
        if (label[i] != (i < len ? (unsigned char)name[i] : ' '))
            return false;
    return true;
}

static enum frame_state
slot_find(struct token *t)
{
    CK_SLOT_ID slots[SLOTS_MAX];
    CK_ULONG n = SLOTS_MAX;
    unsigned found = 0;
    CK_TOKEN_INFO info;

    if (!CALL(t, C_GetSlotList, CK_TRUE, slots, &n))
        return trouble(t, FRAME_STATE_ABSENT, "the module does not list its tokens");
    for (CK_ULONG i = 0; i < n; i++) {
        if (!CALL(t, C_GetTokenInfo, slots[i], &info) || !label_is(info.label, t->setup->token))
            continue;
        t->slot = slots[i];
        t->info = info;
        found++;
    }
    t->rv = CKR_OK;
    if (found == 0)
        return trouble(t, FRAME_STATE_ABSENT, "no token has this label");
    if (found > 1)
        return trouble(t, FRAME_STATE_UNFIT, "more than one token has this label");
    return FRAME_STATE_READY;
}

/* KMS_OK: *len bytes, one line's end taken off. */
static int
pin_read(struct token *t, unsigned char pin[PIN_MAX], size_t *len)
{
    int fd = open(t->setup->pin_file, O_RDONLY | O_CLOEXEC);
    struct stat st;
    ssize_t n = -1;

    if (fd >= 0 && fstat(fd, &st) == 0 && (st.st_mode & S_IRWXO) != 0) {
        snprintf(t->trouble, sizeof(t->trouble), "others may read the PIN file: chmod o= it");
        close(fd);
        return KMS_ERR_CONFIG;
    }
    if (fd >= 0)
        n = read(fd, pin, PIN_MAX);
    if (n <= 0)
        snprintf(t->trouble, sizeof(t->trouble), "the PIN file cannot be read: %s",
                 n == 0 ? "it is empty" : strerror(errno));
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return KMS_ERR_SYSTEM;
    if (pin[n - 1] == '\n')
        n--;
    *len = (size_t)n;
    return KMS_OK;
}

/* Logs the anchor session in.  A wrong PIN costs one of few tries: each caller makes one call only,
 * ever. */
static enum frame_state
login(struct token *t)
{
    unsigned char pin[PIN_MAX];
    size_t len = 0;

    if (!CALL(t, C_GetTokenInfo, t->slot, &t->info))
        return trouble(t, FRAME_STATE_ABSENT, "the token does not answer");
    if (!(t->info.flags & CKF_LOGIN_REQUIRED))
        return FRAME_STATE_READY;
    if (t->info.flags & (CKF_USER_PIN_LOCKED | CKF_USER_PIN_FINAL_TRY))
        return trouble(t, FRAME_STATE_PIN_LOCKED,
                       t->info.flags & CKF_USER_PIN_LOCKED
                           ? "the token's PIN is locked"
                           : "one more wrong PIN would lock the token: log in by hand first");
    if (t->setup->pin_file[0] == '\0') {
        if (!(t->info.flags & CKF_PROTECTED_AUTHENTICATION_PATH))
            return trouble(t, FRAME_STATE_UNFIT, "the token wants a PIN: set pin_file");
        CALL(t, C_Login, t->anchor, CKU_USER, NULL, 0);
    } else {
        if (pin_read(t, pin, &len) != KMS_OK)
            return FRAME_STATE_UNFIT;
        CALL(t, C_Login, t->anchor, CKU_USER, pin, len);
        OPENSSL_cleanse(pin, sizeof(pin));
    }
    switch (t->rv) {
    case CKR_OK:
    case CKR_USER_ALREADY_LOGGED_IN:
        t->rv = CKR_OK;
        return FRAME_STATE_READY;
    case CKR_PIN_INCORRECT:
    case CKR_PIN_INVALID:
    case CKR_PIN_LEN_RANGE:
    case CKR_PIN_EXPIRED:
        return trouble(t, FRAME_STATE_PIN_REFUSED, "the token refused the PIN");
    case CKR_PIN_LOCKED:
        return trouble(t, FRAME_STATE_PIN_LOCKED, "the token's PIN is locked");
    default:
        return trouble(t, FRAME_STATE_ABSENT, "login failed");
    }
}

/* Finds the keys anew and makes the canary: what every new session needs. */
static int
session_fill(struct token *t)
{
    int err;

    if (!CALL(t, C_OpenSession, t->slot, CKF_SERIAL_SESSION, NULL, NULL, &t->session)) {
        t->session = 0;
        return KMS_ERR_UNAVAILABLE;
    }
    if ((err = keys_resolve(t)) != KMS_OK)
        return err;
    return canary_new(t);
}

int
token_new_session(struct token *t)
{
    if (t->session != 0)
        CALL(t, C_CloseSession, t->session);
    t->session = 0;
    t->known_key = t->canary = t->canary_root = 0;
    return session_fill(t);
}

int
token_login_again(struct token *t, enum frame_state *state)
{
    *state = FRAME_STATE_ABSENT;
    if (t->session != 0)
        CALL(t, C_CloseSession, t->session);
    CALL(t, C_CloseSession, t->anchor);
    t->session = t->anchor = 0;
    t->known_key = t->canary = t->canary_root = 0;
    if (!CALL(t, C_OpenSession, t->slot, CKF_SERIAL_SESSION, NULL, NULL, &t->anchor))
        return KMS_ERR_UNAVAILABLE;
    if ((*state = login(t)) != FRAME_STATE_READY)
        return KMS_ERR_UNAVAILABLE;
    return session_fill(t);
}

enum frame_state
token_open(struct token *t, const struct setup *setup)
{
    enum frame_state state;

    memset(t, 0, sizeof(*t));
    t->setup = setup;
    if ((state = module_load(t)) != FRAME_STATE_READY ||
        (state = slot_find(t)) != FRAME_STATE_READY)
        return state;
    if (!CALL(t, C_OpenSession, t->slot, CKF_SERIAL_SESSION, NULL, NULL, &t->anchor))
        return trouble(t, FRAME_STATE_ABSENT, "no session can be opened");
    if ((state = login(t)) != FRAME_STATE_READY)
        return state;
    if (!CALL(t, C_OpenSession, t->slot, CKF_SERIAL_SESSION, NULL, NULL, &t->session))
        return trouble(t, FRAME_STATE_ABSENT, "no second session can be opened");
    if (probe_token(t) != KMS_OK)
        return FRAME_STATE_UNFIT;
    if (keys_resolve(t) != KMS_OK || canary_new(t) != KMS_OK)
        return trouble(t, FRAME_STATE_ABSENT, "the token's keys cannot be used");
    if (t->static_key.handle != 0 && probe_static_key(t) != KMS_OK)
        return FRAME_STATE_UNFIT;
    return t->root != NULL && t->static_key.handle != 0 ? FRAME_STATE_READY : FRAME_STATE_EMPTY;
}

void
token_close(struct token *t)
{
    if (t->f == NULL)
        return;
    if (t->anchor != 0)
        CALL(t, C_Logout, t->anchor);
    CALL(t, C_Finalize, NULL);
    t->f = NULL;
}

int
token_unwrap_key(struct token *t, CK_OBJECT_HANDLE root,
                 const unsigned char wrapped[HSM_WRAPPED_LEN], enum key_use use,
                 CK_OBJECT_HANDLE *key)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_BBOOL hidden = use != USE_READ, wraps = use == USE_SEAL_AND_WRAP,
             seals = use == USE_SEAL || wraps, leaves = !seals;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)},
        {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &no, sizeof(no)},
        {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &hidden, sizeof(hidden)},
        {CKA_EXTRACTABLE, &leaves, sizeof(leaves)},
        {CKA_ENCRYPT, &seals, sizeof(seals)},
        {CKA_DECRYPT, &seals, sizeof(seals)},
        {CKA_WRAP, &wraps, sizeof(wraps)},
        {CKA_UNWRAP, &no, sizeof(no)},
    };
    CK_MECHANISM mechanism = {t->can.wrap, NULL, 0};
    unsigned char in[HSM_WRAPPED_LEN];

    memcpy(in, wrapped, sizeof(in)); /* modules take it without const */
    if (!CALL(t, C_UnwrapKey, t->session, &mechanism, root, in, sizeof(in), template,
              sizeof(template) / sizeof(template[0]), key))
        return KMS_ERR_CRYPTO;
    t->churn++;
    return KMS_OK;
}

void
token_destroy(struct token *t, CK_OBJECT_HANDLE object)
{
    CALL(t, C_DestroyObject, t->session, object);
}

int
token_generate_key(struct token *t, CK_OBJECT_HANDLE *key)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ULONG len = HSM_KEY_LEN;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof(class)}, {CKA_KEY_TYPE, &type, sizeof(type)},
        {CKA_TOKEN, &no, sizeof(no)},       {CKA_PRIVATE, &yes, sizeof(yes)},
        {CKA_SENSITIVE, &yes, sizeof(yes)}, {CKA_EXTRACTABLE, &yes, sizeof(yes)},
        {CKA_ENCRYPT, &yes, sizeof(yes)},   {CKA_DECRYPT, &yes, sizeof(yes)},
        {CKA_VALUE_LEN, &len, sizeof(len)},
    };
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};

    if (!CALL(t, C_GenerateKey, t->session, &mechanism, template,
              sizeof(template) / sizeof(template[0]), key))
        return KMS_ERR_UNAVAILABLE;
    t->churn++;
    return KMS_OK;
}

int
token_wrap_key(struct token *t, CK_OBJECT_HANDLE root, CK_OBJECT_HANDLE key,
               unsigned char wrapped[HSM_WRAPPED_LEN])
{
    CK_MECHANISM mechanism = {t->can.wrap, NULL, 0};
    CK_ULONG len = HSM_WRAPPED_LEN;

    if (!CALL(t, C_WrapKey, t->session, &mechanism, root, key, wrapped, &len) ||
        len != HSM_WRAPPED_LEN)
        return KMS_ERR_UNAVAILABLE;
    return KMS_OK;
}

int
token_random(struct token *t, unsigned char *p, size_t len)
{
    return CALL(t, C_GenerateRandom, t->session, p, len) ? KMS_OK : KMS_ERR_UNAVAILABLE;
}

/* Additional data is never empty: SoftHSM before 2.7 can abort on none. */
static CK_GCM_PARAMS
gcm_params(unsigned char nonce[GCM_NONCE_LEN], unsigned char *aad, size_t aad_len)
{
    return (CK_GCM_PARAMS){.iv_ptr = nonce,
                           .iv_len = GCM_NONCE_LEN,
                           .iv_bits = GCM_NONCE_LEN * 8,
                           .aad_ptr = aad,
                           .aad_len = aad_len,
                           .tag_bits = GCM_TAG_LEN * 8};
}

/* The nonce is taken from the buffer after the operation: some tokens write their own there. */
int
token_seal(struct token *t, CK_OBJECT_HANDLE key, const unsigned char *aad, size_t aad_len,
           const unsigned char in[HSM_KEY_LEN], unsigned char nonce[GCM_NONCE_LEN],
           unsigned char out[HSM_KEY_LEN + GCM_TAG_LEN])
{
    static const unsigned char zero[GCM_NONCE_LEN];
    unsigned char aad_copy[64], plain[HSM_KEY_LEN], ours[GCM_NONCE_LEN] = {0};
    CK_GCM_PARAMS params = gcm_params(nonce, aad_copy, aad_len);
    CK_MECHANISM mechanism = {CKM_AES_GCM, &params, sizeof(params)};
    CK_ULONG len = HSM_KEY_LEN + GCM_TAG_LEN;
    int err = KMS_ERR_UNAVAILABLE;

    if (aad_len > sizeof(aad_copy) ||
        (t->can.nonce != NONCE_ZEROED && RAND_bytes(ours, sizeof(ours)) != 1))
        return KMS_ERR_UNAVAILABLE;
    memcpy(nonce, ours, sizeof(ours));
    memcpy(aad_copy, aad, aad_len);
    memcpy(plain, in, sizeof(plain));
    if (!CALL(t, C_EncryptInit, t->session, &mechanism, key) ||
        !CALL(t, C_Encrypt, t->session, plain, sizeof(plain), out, &len) ||
        len != HSM_KEY_LEN + GCM_TAG_LEN)
        goto out;
    if (memcmp(nonce, zero, sizeof(zero)) == 0 ||
        memcmp(nonce, t->last_nonce, sizeof(t->last_nonce)) == 0) {
        /* A second use of a nonce gives the key away: nothing that was sealed so may leave. */
        log_error("token: repeated an AES-GCM nonce", NULL);
        OPENSSL_cleanse(out, HSM_KEY_LEN + GCM_TAG_LEN);
        goto out;
    }
    memcpy(t->last_nonce, nonce, sizeof(t->last_nonce));
    err = KMS_OK;
out:
    OPENSSL_cleanse(plain, sizeof(plain));
    return err;
}

int
token_open_sealed(struct token *t, CK_OBJECT_HANDLE key, const unsigned char *aad, size_t aad_len,
                  const unsigned char nonce[GCM_NONCE_LEN],
                  const unsigned char in[HSM_KEY_LEN + GCM_TAG_LEN], unsigned char out[HSM_KEY_LEN])
{
    unsigned char aad_copy[64], nonce_copy[GCM_NONCE_LEN], sealed[HSM_KEY_LEN + GCM_TAG_LEN];
    /* Room for the tag: some modules decrypt before they look at it. */
    unsigned char plain[HSM_KEY_LEN + GCM_TAG_LEN];
    CK_GCM_PARAMS params = gcm_params(nonce_copy, aad_copy, aad_len);
    CK_MECHANISM mechanism = {CKM_AES_GCM, &params, sizeof(params)};
    CK_ULONG len = sizeof(plain);
    int err = KMS_ERR_CRYPTO;

    if (aad_len > sizeof(aad_copy))
        return KMS_ERR_UNAVAILABLE;
    memcpy(aad_copy, aad, aad_len);
    memcpy(nonce_copy, nonce, sizeof(nonce_copy));
    memcpy(sealed, in, sizeof(sealed));
    if (!CALL(t, C_DecryptInit, t->session, &mechanism, key))
        err = KMS_ERR_UNAVAILABLE; /* nothing that a caller sent was looked at yet */
    else if (CALL(t, C_Decrypt, t->session, sealed, sizeof(sealed), plain, &len) &&
             len == HSM_KEY_LEN) {
        memcpy(out, plain, HSM_KEY_LEN);
        err = KMS_OK;
    }
    OPENSSL_cleanse(plain, sizeof(plain));
    return err;
}
