/*
 * metrics.h - /livez, /readyz and /metrics over plain HTTP, for an orchestrator and for Prometheus.
 *
 * Figures only: no name of a user, an organisation or a resource, since whoever reaches the address
 * may read them.
 */
#ifndef KMS_METRICS_H
#define KMS_METRICS_H

struct keeper;
struct metrics;

/* Serves listen_fd (taken over), which listens and does not block.  NULL: no memory. */
struct metrics *metrics_new(struct keeper *k, int listen_fd);
void metrics_free(struct metrics *m);

#endif
