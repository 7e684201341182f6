/*
 * static_key.h - the public half of the static key, as a certificate authority wants it.
 */
#ifndef KMS_STATIC_KEY_H
#define KMS_STATIC_KEY_H

#include <jansson.h>

struct hsm_info;

/* Sets o's member static_public_key, a PEM SubjectPublicKeyInfo; nothing when the token has no
 * static key yet. */
void static_key_put(json_t *o, const struct hsm_info *info);

#endif
