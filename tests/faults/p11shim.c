/* clang-format off */
/*
 * p11shim.c - a PKCS#11 module that passes everything on to SoftHSM, and misbehaves as a control
 * file says.
 *
 * SoftHSM behaves better than HSMs do.  This shows hsmd what they do: codes out of the blue, calls
 * that hang, sessions that are gone, nonces of their own.  For tests only.
 *
 * Environment: P11SHIM_MODULE, the module behind; P11SHIM_CONTROL, a file that is read again
 * whenever it changes; P11SHIM_CALLS, a file to which each watched call adds its name (logins, and
 * functions that a rule names).
 *
 * The control file has one rule a line; FUNCTION is a name as C_Encrypt:
 *   FUNCTION watch            nothing but that its calls are noted
 *   FUNCTION return CODE      fails with this code (hexadecimal)
 *   FUNCTION after N CODE     likewise, from the call after the Nth on (counted in each process
 *                             since the rule came)
 *   FUNCTION once CODE        fails one time, in one process
 *   FUNCTION delay MS         takes so long
 *   FUNCTION hang             never returns
 *   FUNCTION hang-once        does not return one time, in one process
 *   FUNCTION die-once         ends its process, one time
 *   any die N                 ends the process at its Nth call since the rule came, one time
 *   any die-all N             likewise, and the process that started it
 *   poison BYTE               ends the process that opens something whose object id begins with
 *                             this byte
 *   absent                    there is no token
 *   lose-sessions             all sessions of a process are closed behind its back, one time in
 *                             one process
 *   sessions N                so many sessions may be open in a process
 *   pin-flag HEX              added to the token's flags
 *   nonce its|zeroed|constant|hidden|counter   what becomes of an AES-GCM nonce
 *   no MECHANISM              the token does not have it (hexadecimal)
 *   oaep-sha256               it does OAEP with SHA-256: decrypts, and unwraps AES keys
 *   ghosts                    it says that it destroyed an object of the token, and did not
 */
/* clang-format on */
/* OpenSSL 3.0 has its padding check only under the name that it deprecates. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <dlfcn.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <p11-kit/pkcs11.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define RULES_MAX    16
#define SESSIONS_MAX 64
#define NONCE_LEN    12

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list);

static CK_FUNCTION_LIST *real, ours;

static struct rule {
    char subject[32], verb[16], argument[16], more[16];
    unsigned long calls;
} rules[RULES_MAX];
static unsigned rules_n;
static struct timespec read_at;
static unsigned sessions_open;
static CK_SLOT_ID slot_seen;

/* Of the operation that a DecryptInit or EncryptInit began. */
static unsigned char *nonce_buffer; /* the caller's */
static unsigned char hidden_nonce[NONCE_LEN];
static bool software_oaep;
static CK_ULONG software_len;

static void
read_rules(void)
{
    const char *path = getenv("P11SHIM_CONTROL");
    struct stat st;
    char line[160];
    FILE *f;

    if (path == NULL || stat(path, &st) != 0 ||
        (st.st_mtim.tv_sec == read_at.tv_sec && st.st_mtim.tv_nsec == read_at.tv_nsec))
        return;
    read_at = st.st_mtim;
    rules_n = 0;
    if ((f = fopen(path, "re")) == NULL)
        return;
    while (rules_n < RULES_MAX && fgets(line, sizeof(line), f) != NULL) {
        struct rule *r = &rules[rules_n];

        memset(r, 0, sizeof(*r));
        if (sscanf(line, "%31s %15s %15s %15s", r->subject, r->verb, r->argument, r->more) >= 1)
            rules_n++;
    }
    fclose(f);
}

static struct rule *
rule_of(const char *subject)
{
    read_rules();
    for (unsigned i = 0; i < rules_n; i++)
        if (strcmp(rules[i].subject, subject) == 0)
            return &rules[i];
    return NULL;
}

/* The first process that asks gets a yes. */
static bool
first_of_all(void)
{
    char path[256];
    int fd;

    snprintf(path, sizeof(path), "%s.once", getenv("P11SHIM_CONTROL"));
    if ((fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0)
        return false;
    close(fd);
    return true;
}

static void
note_call(const char *function)
{
    const char *path = getenv("P11SHIM_CALLS");
    char line[64];
    int fd, n;

    if (path == NULL || (fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0)
        return;
    n = snprintf(line, sizeof(line), "%s\n", function);
    if (write(fd, line, (size_t)n) != n)
        abort();
    close(fd);
}

/* true: the call fails with *rv. */
static bool
interfere(const char *function, CK_RV *rv)
{
    struct rule *r = rule_of(function), *any = rule_of("any");

    if (rule_of("lose-sessions") != NULL && first_of_all()) {
        real->C_CloseAllSessions(slot_seen);
        sessions_open = 0;
    }
    if (any != NULL && ++any->calls == strtoul(any->argument, NULL, 10) && first_of_all()) {
        if (strcmp(any->verb, "die-all") == 0)
            kill(getppid(), SIGKILL);
        _exit(97);
    }
    if (r == NULL)
        return false;
    note_call(function);
    r->calls++;
    if (strcmp(r->verb, "delay") == 0)
        usleep((useconds_t)atoi(r->argument) * 1000);
    else if (strcmp(r->verb, "hang") == 0 || (strcmp(r->verb, "hang-once") == 0 && first_of_all()))
        for (;;)
            pause();
    else if (strcmp(r->verb, "die-once") == 0 && first_of_all())
        _exit(99);
    else if (strcmp(r->verb, "return") == 0 || (strcmp(r->verb, "once") == 0 && first_of_all())) {
        *rv = strtoul(r->argument, NULL, 16);
        return true;
    } else if (strcmp(r->verb, "after") == 0 && r->calls > strtoul(r->argument, NULL, 10)) {
        *rv = strtoul(r->more, NULL, 16);
        return true;
    }
    return false;
}

#define INTERFERE(function)                                                                        \
    do {                                                                                           \
        CK_RV rv_;                                                                                 \
        if (interfere(function, &rv_))                                                             \
            return rv_;                                                                            \
    } while (0)

static bool
lacks(CK_MECHANISM_TYPE type)
{
    read_rules();
    for (unsigned i = 0; i < rules_n; i++)
        if (strcmp(rules[i].subject, "no") == 0 && strtoul(rules[i].verb, NULL, 16) == type)
            return true;
    return false;
}

static CK_RV
shim_get_slot_list(CK_BBOOL present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR n)
{
    INTERFERE("C_GetSlotList");
    if (rule_of("absent") != NULL) {
        *n = 0;
        return CKR_OK;
    }
    return real->C_GetSlotList(present, slots, n);
}

static CK_RV
shim_get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
    struct rule *r = rule_of("pin-flag");
    CK_RV rv;

    INTERFERE("C_GetTokenInfo");
    if (rule_of("absent") != NULL)
        return CKR_TOKEN_NOT_PRESENT;
    rv = real->C_GetTokenInfo(slot, info);
    if (rv == CKR_OK && r != NULL)
        info->flags |= strtoul(r->verb, NULL, 16);
    return rv;
}

static CK_RV
shim_get_mechanism_info(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info)
{
    if (lacks(type))
        return CKR_MECHANISM_INVALID;
    return real->C_GetMechanismInfo(slot, type, info);
}

static CK_RV
shim_open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *ctx, CK_NOTIFY notify,
                  CK_SESSION_HANDLE_PTR session)
{
    struct rule *r = rule_of("sessions");
    CK_RV rv;

    INTERFERE("C_OpenSession");
    if (rule_of("absent") != NULL)
        return CKR_TOKEN_NOT_PRESENT;
    if (r != NULL && sessions_open >= strtoul(r->verb, NULL, 10))
        return CKR_SESSION_COUNT;
    slot_seen = slot;
    rv = real->C_OpenSession(slot, flags, ctx, notify, session);
    if (rv == CKR_OK && sessions_open < SESSIONS_MAX)
        sessions_open++;
    return rv;
}

static CK_RV
shim_close_session(CK_SESSION_HANDLE session)
{
    CK_RV rv = real->C_CloseSession(session);

    if (rv == CKR_OK && sessions_open > 0)
        sessions_open--;
    return rv;
}

static CK_RV
shim_login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG len)
{
    note_call("C_Login");
    INTERFERE("C_Login");
    return real->C_Login(session, user, pin, len);
}

/* What an absent token makes of every operation. */
#define PRESENT()                                                                                  \
    do {                                                                                           \
        if (rule_of("absent") != NULL)                                                             \
            return CKR_DEVICE_REMOVED;                                                             \
    } while (0)

static CK_RV
shim_create_object(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR a, CK_ULONG n,
                   CK_OBJECT_HANDLE_PTR object)
{
    PRESENT();
    INTERFERE("C_CreateObject");
    return real->C_CreateObject(session, a, n, object);
}

static CK_RV
shim_destroy_object(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    CK_BBOOL lasting = CK_FALSE;
    CK_ATTRIBUTE a = {CKA_TOKEN, &lasting, sizeof(lasting)};

    PRESENT();
    INTERFERE("C_DestroyObject");
    if (rule_of("ghosts") != NULL && real->C_GetAttributeValue(session, object, &a, 1) == CKR_OK &&
        lasting == CK_TRUE)
        return CKR_OK;
    return real->C_DestroyObject(session, object);
}

static CK_RV
shim_get_attribute_value(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR a,
                         CK_ULONG n)
{
    PRESENT();
    INTERFERE("C_GetAttributeValue");
    return real->C_GetAttributeValue(session, object, a, n);
}

static CK_RV
shim_generate_key_pair(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR public,
                       CK_ULONG public_n, CK_ATTRIBUTE_PTR private, CK_ULONG private_n,
                       CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)
{
    PRESENT();
    INTERFERE("C_GenerateKeyPair");
    return real->C_GenerateKeyPair(session, m, public, public_n, private, private_n, public_key,
                                   private_key);
}

static CK_RV
shim_find_objects_init(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
    PRESENT();
    INTERFERE("C_FindObjectsInit");
    return real->C_FindObjectsInit(session, a, n);
}

static CK_RV
shim_generate_random(CK_SESSION_HANDLE session, CK_BYTE_PTR p, CK_ULONG n)
{
    PRESENT();
    INTERFERE("C_GenerateRandom");
    return real->C_GenerateRandom(session, p, n);
}

static CK_RV
shim_generate_key(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR a, CK_ULONG n,
                  CK_OBJECT_HANDLE_PTR key)
{
    PRESENT();
    INTERFERE("C_GenerateKey");
    return real->C_GenerateKey(session, m, a, n, key);
}

static CK_RV
shim_wrap_key(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE by,
              CK_OBJECT_HANDLE key, CK_BYTE_PTR out, CK_ULONG_PTR len)
{
    PRESENT();
    INTERFERE("C_WrapKey");
    if (lacks(m->mechanism))
        return CKR_MECHANISM_INVALID;
    return real->C_WrapKey(session, m, by, key, out, len);
}

/* What tokens that know SHA-256 do inside: the same result by other means. */
static CK_RV
software_unwrap(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE by, CK_BYTE_PTR in, CK_ULONG len,
                CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR key)
{
    CK_MECHANISM raw = {CKM_RSA_X_509, NULL, 0};
    unsigned char em[1024], value[1024];
    CK_ULONG em_len = sizeof(em);
    CK_ATTRIBUTE with_value[32];
    CK_RV rv;
    int plain;

    if (n >= 32)
        return CKR_TEMPLATE_INCONSISTENT;
    if ((rv = real->C_DecryptInit(session, &raw, by)) != CKR_OK ||
        (rv = real->C_Decrypt(session, in, len, em, &em_len)) != CKR_OK)
        return rv;
    plain = RSA_padding_check_PKCS1_OAEP_mgf1(value, sizeof(value), em, (int)em_len, (int)len, NULL,
                                              0, EVP_sha256(), EVP_sha256());
    if (plain < 0)
        return CKR_WRAPPED_KEY_INVALID;
    memcpy(with_value, a, n * sizeof(*a));
    with_value[n] = (CK_ATTRIBUTE){CKA_VALUE, value, (CK_ULONG)plain};
    return real->C_CreateObject(session, with_value, n + 1, key);
}

static CK_RV
shim_unwrap_key(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE by, CK_BYTE_PTR in,
                CK_ULONG len, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR key)
{
    PRESENT();
    INTERFERE("C_UnwrapKey");
    if (lacks(m->mechanism))
        return CKR_MECHANISM_INVALID;
    if (m->mechanism == CKM_RSA_PKCS_OAEP && rule_of("oaep-sha256") != NULL &&
        ((CK_RSA_PKCS_OAEP_PARAMS *)m->pParameter)->hashAlg == CKM_SHA256)
        return software_unwrap(session, by, in, len, a, n, key);
    return real->C_UnwrapKey(session, m, by, in, len, a, n, key);
}

/* The nonce that a token of this habit would use; NULL: it does as it is told. */
static const unsigned char *
nonce_by_habit(const char *habit, const unsigned char *given, CK_OBJECT_HANDLE key, CK_RV *rv)
{
    static unsigned char nonce[NONCE_LEN];
    static const unsigned char zero[NONCE_LEN];
    static CK_OBJECT_HANDLE last_key;
    static unsigned char count;

    *rv = CKR_OK;
    if (strcmp(habit, "zeroed") == 0 && memcmp(given, zero, NONCE_LEN) != 0) {
        *rv = CKR_MECHANISM_PARAM_INVALID;
        return NULL;
    }
    if (strcmp(habit, "constant") == 0) {
        memset(nonce, 0x77, NONCE_LEN);
    } else if (strcmp(habit, "counter") == 0) { /* begins anew with each object */
        count = key == last_key ? (unsigned char)(count + 1) : 1;
        last_key = key;
        memset(nonce, 0, NONCE_LEN);
        nonce[NONCE_LEN - 1] = count;
    } else if (getrandom(nonce, NONCE_LEN, 0) != NONCE_LEN) {
        abort();
    }
    return nonce;
}

static CK_RV
shim_encrypt_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
    struct rule *r = rule_of("nonce");
    CK_GCM_PARAMS params;
    CK_MECHANISM copy = {m->mechanism, &params, sizeof(params)};
    const unsigned char *nonce;
    CK_RV rv;

    PRESENT();
    INTERFERE("C_EncryptInit");
    if (m->mechanism != CKM_AES_GCM || r == NULL)
        return real->C_EncryptInit(session, m, key);
    memcpy(&params, m->pParameter, sizeof(params));
    if ((nonce = nonce_by_habit(r->verb, params.iv_ptr, key, &rv)) == NULL)
        return rv;
    nonce_buffer = strcmp(r->verb, "hidden") == 0 ? NULL : params.iv_ptr;
    memcpy(hidden_nonce, nonce, NONCE_LEN);
    params.iv_ptr = hidden_nonce;
    return real->C_EncryptInit(session, &copy, key);
}

static CK_RV
shim_encrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out,
             CK_ULONG_PTR len)
{
    PRESENT();
    INTERFERE("C_Encrypt");
    if (nonce_buffer != NULL)
        memcpy(nonce_buffer, hidden_nonce, NONCE_LEN);
    nonce_buffer = NULL;
    return real->C_Encrypt(session, in, n, out, len);
}

static CK_RV
shim_decrypt_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
    struct rule *poison = rule_of("poison");
    CK_MECHANISM raw = {CKM_RSA_X_509, NULL, 0};
    CK_GCM_PARAMS gcm;
    CK_RSA_PKCS_OAEP_PARAMS oaep;
    CK_ATTRIBUTE modulus = {CKA_MODULUS, NULL, 0};

    PRESENT();
    INTERFERE("C_DecryptInit");
    if (lacks(m->mechanism))
        return CKR_MECHANISM_INVALID;
    software_oaep = false;
    if (m->mechanism == CKM_AES_GCM && poison != NULL) {
        memcpy(&gcm, m->pParameter, sizeof(gcm));
        /* format, purpose, organisation, then the object */
        if (gcm.aad_len > 18 && gcm.aad_ptr[18] == strtoul(poison->verb, NULL, 16))
            _exit(98);
    }
    if (m->mechanism == CKM_RSA_PKCS_OAEP && rule_of("oaep-sha256") != NULL) {
        memcpy(&oaep, m->pParameter, sizeof(oaep));
        if (oaep.hashAlg == CKM_SHA256 &&
            real->C_GetAttributeValue(session, key, &modulus, 1) == CKR_OK) {
            software_oaep = true;
            software_len = modulus.ulValueLen;
            return real->C_DecryptInit(session, &raw, key);
        }
    }
    return real->C_DecryptInit(session, m, key);
}

static CK_RV
shim_decrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out,
             CK_ULONG_PTR len)
{
    unsigned char em[1024];
    CK_ULONG em_len = sizeof(em);
    CK_RV rv;
    int plain;

    PRESENT();
    INTERFERE("C_Decrypt");
    if (!software_oaep)
        return real->C_Decrypt(session, in, n, out, len);
    software_oaep = false;
    if ((rv = real->C_Decrypt(session, in, n, em, &em_len)) != CKR_OK)
        return rv;
    plain = RSA_padding_check_PKCS1_OAEP_mgf1(out, (int)*len, em, (int)em_len, (int)software_len,
                                              NULL, 0, EVP_sha256(), EVP_sha256());
    if (plain < 0)
        return CKR_ENCRYPTED_DATA_INVALID;
    *len = (CK_ULONG)plain;
    return CKR_OK;
}

static CK_RV
shim_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
    PRESENT();
    INTERFERE("C_SignInit");
    if (lacks(m->mechanism))
        return CKR_MECHANISM_INVALID;
    return real->C_SignInit(session, m, key);
}

static CK_RV
shim_sign(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR len)
{
    PRESENT();
    INTERFERE("C_Sign");
    return real->C_Sign(session, in, n, out, len);
}

CK_RV
C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
    const char *path = getenv("P11SHIM_MODULE");
    void *module = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    CK_C_GetFunctionList get;
    CK_RV rv;

    if (module == NULL)
        return CKR_GENERAL_ERROR;
    *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL || (rv = get(&real)) != CKR_OK)
        return CKR_GENERAL_ERROR;
    ours = *real;
    ours.C_GetSlotList = shim_get_slot_list;
    ours.C_GetTokenInfo = shim_get_token_info;
    ours.C_GetMechanismInfo = shim_get_mechanism_info;
    ours.C_OpenSession = shim_open_session;
    ours.C_CloseSession = shim_close_session;
    ours.C_Login = shim_login;
    ours.C_CreateObject = shim_create_object;
    ours.C_DestroyObject = shim_destroy_object;
    ours.C_GetAttributeValue = shim_get_attribute_value;
    ours.C_GenerateKeyPair = shim_generate_key_pair;
    ours.C_FindObjectsInit = shim_find_objects_init;
    ours.C_GenerateRandom = shim_generate_random;
    ours.C_GenerateKey = shim_generate_key;
    ours.C_WrapKey = shim_wrap_key;
    ours.C_UnwrapKey = shim_unwrap_key;
    ours.C_EncryptInit = shim_encrypt_init;
    ours.C_Encrypt = shim_encrypt;
    ours.C_DecryptInit = shim_decrypt_init;
    ours.C_Decrypt = shim_decrypt;
    ours.C_SignInit = shim_sign_init;
    ours.C_Sign = shim_sign;
    *list = &ours;
    return CKR_OK;
}
