/*
 * test_vectors_primitives.c - Wycheproof's vectors of single primitives, through our own functions:
 * what is valid and can be said in our formats must work, everything else must be refused.  Each
 * test also says how many vectors it really used, so that it cannot pass by skipping them all.
 */
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <string.h>

#include "proto/b64.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "proto/kdf.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

static void
setup(void)
{
    kms_json_init();
    cr_assert_neq(secret_heap_init(65536), KMS_ERR_NOMEM);
}

TestSuite(wycheproof, .init = setup);

static bool
is(const json_t *test, const char *result)
{
    return strcmp(text_of(test, "result"), result) == 0;
}

static int
id_of(const json_t *test)
{
    return (int)json_integer_value(json_object_get(test, "tcId"));
}

/* The bytes of a hexadecimal member, in place of what was there. */
static void
get_hex(struct buf *out, const json_t *test, const char *name)
{
    buf_reset(out);
    put_hex(out, text_of(test, name));
}

/* A P-256 JWK from a point in the uncompressed form. */
static json_t *
jwk_from_point(const unsigned char point[65])
{
    struct buf x = BUF_INIT, y = BUF_INIT;
    json_t *jwk;

    cr_assert_eq(b64url_put(&x, point + 1, 32), KMS_OK);
    cr_assert_eq(b64url_put(&y, point + 33, 32), KMS_OK);
    jwk =
        json_pack("{ss,ss,ss,ss}", "kty", "EC", "crv", "P-256", "x", buf_str(&x), "y", buf_str(&y));
    buf_release(&x);
    buf_release(&y);
    return jwk;
}

static void
gcm_vector(const json_t *test, size_t *valid)
{
    struct buf key = BUF_INIT, iv = BUF_INIT, aad = BUF_INIT, msg = BUF_INIT, ct = BUF_INIT,
               tag = BUF_INIT, text = BUF_INIT, plain = BUF_INIT;
    struct jwe jwe = {.alg = JWE_DIR};
    size_t bit;
    int r;

    get_hex(&key, test, "key");
    get_hex(&iv, test, "iv");
    get_hex(&aad, test, "aad");
    get_hex(&msg, test, "msg");
    get_hex(&ct, test, "ct");
    get_hex(&tag, test, "tag");
    cr_assert_eq(tag.len, JWE_TAG_LEN);
    cr_assert_eq(b64url_put(&text, ct.data, ct.len), KMS_OK);
    jwe.aad = buf_str(&aad);
    jwe.aad_len = aad.len;
    memcpy(jwe.iv, iv.data, JWE_IV_LEN);
    memcpy(jwe.tag, tag.data, JWE_TAG_LEN);
    jwe.ciphertext = buf_str(&text);
    jwe.ciphertext_len = text.len;

    r = jwe_open(&jwe, key.data, &plain);
    if (!is(test, "valid")) {
        cr_expect_eq(r, KMS_ERR_CRYPTO, "%d", id_of(test));
        cr_expect_eq(plain.len, 0);
        goto out;
    }
    ++*valid;
    cr_expect_eq(r, KMS_OK, "%d", id_of(test));
    cr_expect_eq(plain.len, msg.len);
    cr_expect(msg.len == 0 || memcmp(plain.data, msg.data, msg.len) == 0, "%d", id_of(test));
    for (bit = 0; bit < 8 * JWE_TAG_LEN; bit++) {
        jwe.tag[bit / 8] ^= (unsigned char)(1 << bit % 8);
        cr_expect_eq(jwe_open(&jwe, key.data, &plain), KMS_ERR_CRYPTO, "%d bit %zu", id_of(test),
                     bit);
        jwe.tag[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    cr_expect_eq(plain.len, msg.len, "nothing was added");
out:
    buf_release(&key);
    buf_release(&iv);
    buf_release(&aad);
    buf_release(&msg);
    buf_release(&ct);
    buf_release(&tag);
    buf_release(&text);
    buf_release(&plain);
}

/* 256-bit keys and 96-bit IVs; others have no place in a message (test_jwe.c: their lengths and
 * names are refused). */
Test(wycheproof, aes_gcm_opens_as_it_should_and_no_flipped_tag_bit_passes)
{
    json_t *file, *group, *test;
    size_t g, t, used = 0, valid = 0;

    NEED_VECTORS();
    file = vectors_load("wycheproof/aes_gcm_test.json");
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        if (json_integer_value(json_object_get(group, "keySize")) != 256 ||
            json_integer_value(json_object_get(group, "ivSize")) != 96)
            continue;
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            gcm_vector(test, &valid);
            used++;
        }
    }
    cr_expect_geq(used, 66, "%zu used", used);
    cr_expect_geq(valid, 39, "%zu valid", valid);
    json_decref(file);
}

/* Every plaintext sealed by us; then its tag cut to 0..15 bytes, lengthened by 1..16, and moved. */
static void
seal_vector(const json_t *test)
{
    struct buf key = BUF_INIT, msg = BUF_INIT, compact = BUF_INIT, changed = BUF_INIT,
               plain = BUF_INIT;
    unsigned char tag[2 * JWE_TAG_LEN] = {0};
    struct jwe jwe;
    size_t head, len;

    get_hex(&key, test, "key");
    get_hex(&msg, test, "msg");
    cr_assert_eq(jwe_seal_dir(&compact, "k", key.data, msg.data, msg.len), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    cr_assert_eq(jwe_open(&jwe, key.data, &plain), KMS_OK);
    cr_assert_eq(plain.len, msg.len);
    cr_assert(msg.len == 0 || memcmp(plain.data, msg.data, msg.len) == 0);
    memcpy(tag, jwe.tag, JWE_TAG_LEN);
    head = compact.len - B64URL_LEN(JWE_TAG_LEN);
    for (len = 0; len <= sizeof(tag); len++) {
        buf_reset(&changed);
        cr_assert_eq(buf_put(&changed, compact.data, head), KMS_OK);
        cr_assert_eq(b64url_put(&changed, tag, len), KMS_OK);
        cr_expect_eq(jwe_parse(&jwe, buf_str(&changed), changed.len),
                     len == JWE_TAG_LEN ? KMS_OK : KMS_ERR_LENGTH, "%d: a tag of %zu bytes",
                     id_of(test), len);
    }
    buf_release(&key);
    buf_release(&msg);
    buf_release(&compact);
    buf_release(&changed);
    buf_release(&plain);
}

Test(wycheproof, aes_gcm_messages_survive_sealing_and_only_with_a_tag_of_16_bytes)
{
    json_t *file, *group, *test;
    size_t g, t, used = 0;

    NEED_VECTORS();
    file = vectors_load("wycheproof/aes_gcm_test.json");
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        if (json_integer_value(json_object_get(group, "keySize")) != 256)
            continue;
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            seal_vector(test);
            used++;
        }
    }
    cr_expect_geq(used, 90, "%zu used", used);
    json_decref(file);
}

/* The channel's key from a shared secret, as the vector has it; the one that is all zero (x = 0) we
 * refuse to use. */
static void
check_channel(const json_t *test, EVP_PKEY *mine, EVP_PKEY *peer)
{
    static const unsigned char zero[32];
    struct buf shared = BUF_INIT;
    unsigned char want[SECRET_LEN];
    struct secret *got;
    int r;

    get_hex(&shared, test, "shared");
    cr_assert_eq(shared.len, 32);
    r = ecdh_channel_key(&got, mine, peer);
    if (memcmp(shared.data, zero, 32) == 0) {
        cr_expect_eq(r, KMS_ERR_KEY, "%d", id_of(test));
        cr_expect_null(got);
    } else {
        cr_assert_eq(hkdf_sha256(want, sizeof(want), shared.data, shared.len, NULL, 0, NULL, 0),
                     KMS_OK);
        cr_expect_eq(r, KMS_OK, "%d", id_of(test));
        cr_expect(got != NULL && memcmp(got->b, want, sizeof(want)) == 0, "%d", id_of(test));
    }
    secret_free(got);
    buf_release(&shared);
}

Test(wycheproof, ecdh_with_points_agrees_or_refuses_the_point)
{
    json_t *file, *group, *test, *jwk;
    struct buf point = BUF_INIT, d = BUF_INIT;
    size_t g, t, agreed = 0, refused = 0, unsayable = 0;
    EVP_PKEY *mine, *peer;
    int r;

    NEED_VECTORS();
    file = vectors_load("wycheproof/ecdh_secp256r1_ecpoint_test.json");
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            get_hex(&point, test, "public");
            get_hex(&d, test, "private");
            if (point.len != 65 || point.data[0] != 4) {
                unsayable++; /* compressed, or none: a JWK has two coordinates of 32 bytes */
                continue;
            }
            jwk = jwk_from_point(point.data);
            r = jwk_get_p256(&peer, jwk);
            json_decref(jwk);
            if (!is(test, "valid")) {
                cr_expect_neq(r, KMS_OK, "%d", id_of(test));
                EVP_PKEY_free(peer);
                refused++;
                continue;
            }
            cr_assert_eq(r, KMS_OK, "%d", id_of(test));
            mine = p256_from_scalar(d.data, d.len);
            check_channel(test, mine, peer);
            EVP_PKEY_free(mine);
            EVP_PKEY_free(peer);
            agreed++;
        }
    }
    cr_expect_geq(agreed, 330, "%zu agreed", agreed);
    cr_expect_geq(refused, 16, "%zu refused, %zu cannot be said", refused, unsayable);
    json_decref(file);
    buf_release(&point);
    buf_release(&d);
}

Test(wycheproof, ecdh_with_jwks_agrees_or_refuses_the_key)
{
    json_t *file, *group, *test;
    size_t g, t, agreed = 0, refused = 0;
    EVP_PKEY *mine, *peer;
    int r;

    NEED_VECTORS();
    file = vectors_load("wycheproof/ecdh_secp256r1_webcrypto_test.json");
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            r = jwk_get_p256(&peer, json_object_get(test, "public"));
            if (!is(test, "valid")) {
                cr_expect_neq(r, KMS_OK, "%d", id_of(test));
                EVP_PKEY_free(peer);
                refused++;
                continue;
            }
            cr_assert_eq(r, KMS_OK, "%d", id_of(test));
            mine = private_from_jwk(json_object_get(test, "private"));
            check_channel(test, mine, peer);
            EVP_PKEY_free(mine);
            EVP_PKEY_free(peer);
            agreed++;
        }
    }
    cr_expect_geq(agreed, 330, "%zu agreed", agreed);
    cr_expect_geq(refused, 23, "%zu refused", refused);
    json_decref(file);
}

Test(wycheproof, hkdf_sha256_gives_the_same_bytes)
{
    static unsigned char out[255 * 32];
    json_t *file, *group, *test;
    struct buf ikm = BUF_INIT, salt = BUF_INIT, info = BUF_INIT, okm = BUF_INIT;
    size_t g, t, size, used = 0;
    int r;

    NEED_VECTORS();
    file = vectors_load("wycheproof/hkdf_sha256_test.json");
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            get_hex(&ikm, test, "ikm");
            get_hex(&salt, test, "salt");
            get_hex(&info, test, "info");
            get_hex(&okm, test, "okm");
            size = (size_t)json_integer_value(json_object_get(test, "size"));
            r = hkdf_sha256(out, size, ikm.data, ikm.len, salt.data, salt.len, info.data, info.len);
            if (is(test, "valid")) {
                cr_expect_eq(r, KMS_OK, "%d", id_of(test));
                cr_expect_eq(memcmp(out, okm.data, size), 0, "%d", id_of(test));
            } else {
                cr_expect_eq(r, KMS_ERR_LENGTH, "%d", id_of(test));
            }
            used++;
        }
    }
    cr_expect_geq(used, 86, "%zu used", used);
    json_decref(file);
    buf_release(&ikm);
    buf_release(&salt);
    buf_release(&info);
    buf_release(&okm);
}

/* The key of a signature group: its JWK, or one made of its point. */
static int
group_key(EVP_PKEY **key, const json_t *group)
{
    const json_t *have = json_object_get(group, "publicKeyJwk");
    struct buf point = BUF_INIT;
    json_t *jwk;
    int r;

    if (have == NULL)
        have = json_object_get(group, "keyJwk");
    if (have != NULL)
        return jwk_get_public(key, have);
    put_hex(&point, text_of(json_object_get(group, "publicKey"), "uncompressed"));
    cr_assert_eq(point.len, 65);
    jwk = jwk_from_point(point.data);
    r = jwk_get_public(key, jwk);
    json_decref(jwk);
    buf_release(&point);
    return r;
}

static int
verify_vector(const json_t *test, enum jws_alg alg, EVP_PKEY *key)
{
    struct buf msg = BUF_INIT, sig = BUF_INIT;
    struct jws jws = {.alg = alg};
    int r = KMS_ERR_LENGTH; /* what jws_parse says to a longer one */

    get_hex(&msg, test, "msg");
    get_hex(&sig, test, "sig");
    if (sig.len > 0 && sig.len <= JWS_SIG_MAX) {
        jws.input = buf_str(&msg);
        jws.input_len = msg.len;
        memcpy(jws.sig, sig.data, sig.len);
        jws.sig_len = sig.len;
        r = jws_verify(&jws, key);
    }
    buf_release(&msg);
    buf_release(&sig);
    return r;
}

/* refused_keys: groups whose key our policy refuses. */
static void
signatures(const char *name, enum jws_alg alg, size_t want_good, size_t want_bad,
           size_t want_refused_keys)
{
    json_t *file = vectors_load(name), *group, *test;
    size_t g, t, good = 0, bad = 0, refused_keys = 0;
    EVP_PKEY *key;
    int r;

    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        if (group_key(&key, group) != KMS_OK) {
            refused_keys++;
            continue;
        }
        json_array_foreach(json_object_get(group, "tests"), t, test)
        {
            r = verify_vector(test, alg, key);
            if (is(test, "valid")) {
                cr_expect_eq(r, KMS_OK, "%s %d: %s", name, id_of(test), kms_strerror(r));
                good++;
            } else {
                /* "acceptable" is a PKCS #1 DigestInfo without its NULL: we take the one form only.
                 */
                cr_expect_neq(r, KMS_OK, "%s %d", name, id_of(test));
                bad++;
            }
        }
        EVP_PKEY_free(key);
    }
    cr_expect_geq(good, want_good, "%s: %zu good", name, good);
    cr_expect_geq(bad, want_bad, "%s: %zu bad", name, bad);
    cr_expect_eq(refused_keys, want_refused_keys, "%s: %zu keys refused", name, refused_keys);
    cr_expect_eq(ERR_peek_error(), 0);
    json_decref(file);
}

Test(wycheproof, es256_signatures)
{
    NEED_VECTORS();
    signatures("wycheproof/ecdsa_secp256r1_sha256_p1363_test.json", JWS_ES256, 170, 85, 0);
}

Test(wycheproof, ed25519_signatures)
{
    NEED_VECTORS();
    signatures("wycheproof/ed25519_test.json", JWS_EDDSA, 80, 60, 0);
}

Test(wycheproof, ps256_signatures)
{
    NEED_VECTORS();
    signatures("wycheproof/rsa_pss_2048_sha256_mgf1_32_test.json", JWS_PS256, 63, 45, 0);
    signatures("wycheproof/rsa_pss_3072_sha256_mgf1_32_test.json", JWS_PS256, 60, 40, 0);
    signatures("wycheproof/rsa_pss_4096_sha256_mgf1_32_test.json", JWS_PS256, 60, 40, 0);
}

/* The refused keys have e = 3. */
Test(wycheproof, rs256_signatures)
{
    NEED_VECTORS();
    signatures("wycheproof/rsa_signature_2048_sha256_test.json", JWS_RS256, 7, 250, 2);
    signatures("wycheproof/rsa_signature_3072_sha256_test.json", JWS_RS256, 7, 251, 1);
    signatures("wycheproof/rsa_signature_4096_sha256_test.json", JWS_RS256, 7, 251, 0);
}

/*
 * An OAEP vector's message is the content encryption key of a message that we make for it.  One of
 * 32 bytes without a label opens it; all else must fail at the tag, and in no other way.
 */
static void
oaep_vector(const json_t *test, enum jwe_alg alg, EVP_PKEY *priv, bool hashes_fit, size_t *opened,
            size_t *failed)
{
    struct buf msg = BUF_INIT, ct = BUF_INIT, compact = BUF_INIT, plain = BUF_INIT;
    unsigned char cek[32] = {0};
    struct jwe jwe;
    bool good;
    int r;

    get_hex(&msg, test, "msg");
    get_hex(&ct, test, "ct");
    good = hashes_fit && is(test, "valid") && msg.len == 32 && *text_of(test, "label") == '\0';
    if (msg.len > 0)
        memcpy(cek, msg.data, msg.len < 32 ? msg.len : 32);
    if (ct.len < 256 || ct.len > JWE_EK_MAX)
        goto out; /* jwe_parse refuses it by its length */
    cr_assert_eq(jwe_seal_dir(&compact, "k", cek, "text", 4), KMS_OK);
    cr_assert_eq(jwe_parse(&jwe, buf_str(&compact), compact.len), KMS_OK);
    jwe.alg = alg;
    jwe.ek_len = ct.len;
    memcpy(jwe.ek, ct.data, ct.len);
    r = jwe_open_rsa(&jwe, priv, &plain);
    cr_expect_eq(r, good ? KMS_OK : KMS_ERR_CRYPTO, "%d: %s", id_of(test), kms_strerror(r));
    cr_expect_str_eq(buf_str(&plain), good ? "text" : "");
    ++*(good ? opened : failed);
out:
    buf_release(&msg);
    buf_release(&ct);
    buf_release(&compact);
    buf_release(&plain);
}

static void
oaep(const char *name, size_t want_opened, size_t want_failed)
{
    json_t *file = vectors_load(name), *group, *test;
    struct buf der = BUF_INIT;
    const unsigned char *p;
    size_t g, t, opened = 0, failed = 0;
    const char *sha, *mgf;
    EVP_PKEY *priv;
    bool sha1;

    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        sha = text_of(group, "sha");
        mgf = text_of(group, "mgfSha");
        sha1 = strcmp(sha, "SHA-1") == 0;
        get_hex(&der, group, "privateKeyPkcs8");
        p = der.data;
        priv = d2i_AutoPrivateKey(NULL, &p, (long)der.len);
        cr_assert_not_null(priv);
        json_array_foreach(json_object_get(group, "tests"), t, test) oaep_vector(
            test, sha1 ? JWE_RSA_OAEP : JWE_RSA_OAEP_256, priv,
            strcmp(sha, mgf) == 0 && (sha1 || strcmp(sha, "SHA-256") == 0), &opened, &failed);
        EVP_PKEY_free(priv);
    }
    cr_expect_geq(opened, want_opened, "%s: %zu opened", name, opened);
    cr_expect_geq(failed, want_failed, "%s: %zu failed", name, failed);
    cr_expect_eq(ERR_peek_error(), 0);
    json_decref(file);
    buf_release(&der);
}

Test(wycheproof, rsa_oaep_keys_open_or_fail_at_the_tag, .timeout = 120)
{
    NEED_VECTORS();
    oaep("wycheproof/rsa_oaep_2048_sha1_mgf1sha1_test.json", 1, 30);
    oaep("wycheproof/rsa_oaep_2048_sha256_mgf1sha256_test.json", 1, 30);
    oaep("wycheproof/rsa_oaep_3072_sha256_mgf1sha256_test.json", 1, 30);
    oaep("wycheproof/rsa_oaep_4096_sha256_mgf1sha256_test.json", 1, 30);
}

/* Other hashes than the header says, labels, other sizes: none opens. */
Test(wycheproof, rsa_oaep_with_other_parameters_fails_at_the_tag, .timeout = 120)
{
    NEED_VECTORS();
    oaep("wycheproof/rsa_oaep_misc_test.json", 0, 200);
}
