/*
 * web_tls.c - the server's TLS context: what is spoken, with which certificate, and whose
 * certificates are believed.
 *
 * TLS 1.3, and 1.2 with ECDHE and an AEAD.  No renegotiation, compression, tickets, resumption or
 * early data: a connection lasts long here, and what is not there needs no care.
 */
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>

#include "kms/config.h"
#include "kms/web.h"
#include "proto/err.h"

static int
no_passphrase(char *buf, int size, int rwflag, void *arg)
{
    return 0; /* a daemon has nobody to ask */
}

static int
select_alpn(SSL *ssl, const unsigned char **out, unsigned char *outlen, const unsigned char *in,
            unsigned int inlen, void *arg)
{
    static const unsigned char ours[] = "\x08http/1.1";

    /* RFC 7301 section 3.2: a client that speaks none of ours is told so, and cannot be led to take
     * us for something else. */
    if (SSL_select_next_proto((unsigned char **)(uintptr_t)out, outlen, ours, sizeof(ours) - 1, in,
                              inlen) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    return SSL_TLSEXT_ERR_OK;
}

/* OpenSSL's own words for what just failed; static, until the next call. */
static const char *
tls_why(const char *what)
{
    static char text[320];
    char reason[200] = "";
    unsigned long e = ERR_peek_last_error();

    if (e != 0)
        ERR_error_string_n(e, reason, sizeof(reason));
    snprintf(text, sizeof(text), "%s%s%s", what, e != 0 ? ": " : "", reason);
    ERR_clear_error();
    return text;
}

/* Whoever presents a certificate must present a good one; nobody has to. */
static int
tls_client_ca(SSL_CTX *ctx, const char *path)
{
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(path);

    if (names == NULL)
        return 0;
    SSL_CTX_set_client_CA_list(ctx, names);
    if (SSL_CTX_load_verify_file(ctx, path) != 1)
        return 0;
    /* What the operator named is an anchor, also where it is no root. */
    X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(ctx), X509_V_FLAG_PARTIAL_CHAIN);
    SSL_CTX_set_verify_depth(ctx, 4);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    return 1;
}

int
web_tls_new(SSL_CTX **out, const struct config *c, const char **why)
{
    static const unsigned char context[] = "kmsd";
    static char groups[] = "X25519:P-256:P-384"; /* not written to; the macro wants it so */
    const char *what = "TLS";
    SSL_CTX *ctx;

    *out = NULL;
    *why = "";
    ERR_clear_error();
    if ((ctx = SSL_CTX_new(TLS_server_method())) == NULL)
        goto fail;
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_security_level(ctx, 2);
    SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
    SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
    if (SSL_CTX_set_num_tickets(ctx, 0) != 1 || SSL_CTX_set_max_early_data(ctx, 0) != 1 ||
        SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20") != 1 ||
        SSL_CTX_set1_groups_list(ctx, groups) != 1 ||
        SSL_CTX_set_session_id_context(ctx, context, sizeof(context) - 1) != 1)
        goto fail;
    what = c->tls_certificate;
    if (SSL_CTX_use_certificate_chain_file(ctx, c->tls_certificate) != 1)
        goto fail;
    what = c->tls_key;
    if (SSL_CTX_use_PrivateKey_file(ctx, c->tls_key, SSL_FILETYPE_PEM) != 1)
        goto fail;
    what = "certificate and key do not belong together";
    if (SSL_CTX_check_private_key(ctx) != 1)
        goto fail;
    what = config_services_ca(c);
    if (what != NULL && what[0] != '\0' && tls_client_ca(ctx, what) != 1)
        goto fail;
    *out = ctx;
    return KMS_OK;
fail:
    *why = tls_why(what);
    SSL_CTX_free(ctx);
    return KMS_ERR_CONFIG;
}
