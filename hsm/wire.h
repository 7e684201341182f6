/*
 * wire.h - one connected socket that carries frames, on a libevent loop.
 *
 * Bufferevents would leave keys behind in freed buffers, so here is the little that is needed of
 * them, with wiping.
 */
#ifndef HSM_WIRE_H
#define HSM_WIRE_H

#include <stdbool.h>
#include <stddef.h>

#include "hsm/frame.h"

struct event_base;
struct wire;

/* A whole frame with a checked head.  body (head not included) is wiped when the callback returns.
 */
typedef void wire_frame_cb(void *ctx, const struct frame_head *h, const unsigned char *body,
                           size_t len);
/*
 * The end: KMS_ERR_UNAVAILABLE (the peer closed, or died), KMS_ERR_PROTOCOL (what came was no
 * frame).  Nothing is read or written after it.  The owner calls wire_free.
 */
typedef void wire_closed_cb(void *ctx, int err);

/* Takes fd, which becomes non-blocking.  way: the frames that come in.  NULL: no memory, fd is
 * still the caller's. */
struct wire *wire_new(struct event_base *base, int fd, enum frame_way way, wire_frame_cb *frame,
                      wire_closed_cb *closed, void *ctx);
/* Closes; what was not written yet is wiped.  Good inside the wire's own callbacks.  NULL is fine.
 */
void wire_free(struct wire *w);

/* Memory for a frame of len bytes; NULL: none.  wire_frame_free wipes. */
unsigned char *wire_frame_new(size_t len);
void wire_frame_free(unsigned char *frame, size_t len);
/* Takes a frame from wire_frame_new and sends it when the socket lets it.  KMS_OK, or KMS_ERR_NOMEM
 * and the frame is gone. */
int wire_send(struct wire *w, unsigned char *frame, size_t len);
/* Bytes that wait to be written. */
size_t wire_backlog(const struct wire *w);
/* Stops reading, and goes on. */
void wire_pause(struct wire *w, bool pause);

#endif
