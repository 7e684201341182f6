/*
 * admin.h - the admin socket: JSON-RPC 2.0, one object a line, on a Unix stream socket (protocol
 * section 10).
 *
 * The peer's uid, and the groups of that uid, decide what it may call; they are asked of the kernel
 * once, when it connects.  A call is {"jsonrpc":"2.0","id":ID,"method":NAME,"params":{...}}. params
 * may have "op", a UUID of the caller's choice: a call that is repeated with the same op answers as
 * it did at first and changes nothing.  A connection's calls run one after the other.
 *
 * Errors: JSON-RPC's own codes for a call that cannot be read (-32700, -32600, -32601, -32602,
 * -32603), else the errorCodes of protocol section 6 (403004: the role is missing, 404001, 409002,
 * 503002, 503003, ...).
 */
#ifndef KMS_ADMIN_H
#define KMS_ADMIN_H

struct admin;
struct keeper;

#define ADMIN_LINE_MAX 65536 /* bytes of a call, with its newline */

/* Serves listen_fd (taken over), which listens and does not block.  NULL: no memory. */
struct admin *admin_new(struct keeper *k, int listen_fd);
/* Closes every connection.  Calls under way must have been answered: free database and HSM first.
 * NULL is fine. */
void admin_free(struct admin *a);

#endif
