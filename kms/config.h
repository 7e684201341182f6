/*
 * config.h - the configuration of kmsd, kmsctl and kms-client's server side: one INI file for all
 * (see kms.conf(5)).
 *
 * Read as a whole before anything starts; a reload reads a new struct and swaps it in only when all
 * of it is right. Nothing in it is a secret: passwords, PINs and private keys are files that it
 * names.
 */
#ifndef KMS_CONFIG_H
#define KMS_CONFIG_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>

struct conf_setting;

struct config {
    /* [kms] */
    char *domain;      /* of kms: URIs, lower case */
    char *listen;      /* address:port; [::]:port */
    char *node;        /* this node's name in entries and logs; default: the host's */
    char *user;        /* to become when started as root; "" stays */
    char *pid_file;    /* "" none */
    long long workers; /* 0: one a core */
    long long drain;   /* seconds that SIGTERM waits for requests under way */
    char *
        static_certificate; /* PEM chain of the static key's certificate, leaf first: becomes x5c */
    /* [tls] */
    char *tls_certificate; /* PEM chain */
    char *tls_key;         /* PEM */
    char *tls_client_ca;   /* another name of services_ca, older */
    /* [services] */
    char *services_ca;  /* PEM of the CAs of service certificates; "" none is asked for */
    char *services_crl; /* PEM of their revocation lists; "" none */
    /* [admin] */
    char *admin_socket;
    char *admin_group;                     /* the socket's group; "" the process's own */
    char *operators, *officers, *auditors; /* user names, uids, @groups of each role */
    long long approvals; /* officers that an action needs at least, who asks for it included */
    /* [audit] */
    char *audit_witnesses; /* a file of verifier keys, one a line */
    char *audit_syslog;    /* address:port of a collector; "" none */
    char *audit_syslog_name, *audit_syslog_ca, *audit_syslog_certificate, *audit_syslog_key;
    /* [metrics] */
    char *metrics_listen; /* address:port; "" off */
    /* [database] */
    char *worker_url;         /* a libpq connection string for role kms_worker */
    char *keeper_url;         /* for role kms_keeper */
    long long db_connections; /* a worker */
    long long db_deadline;    /* seconds until a call that was not sent is given up */
    bool db_require_durable;  /* refuse a server with fsync, full_page_writes or synchronous_commit
                                 off */
    /* [hsm] */
    char *hsm_socket;
    long long hsm_deadline; /* seconds */
    /* [token] */
    char *issuer, *audience, *scope, *org_claim, *roles_claim;
    char *compliance_role, *admin_role;
    char *key_set_file; /* one of these two, and/or introspection */
    char *key_set_url;
    char *key_set_ca;           /* PEM for the https URLs; "" the system's */
    long long key_set_refresh;  /* seconds between regular fetches */
    long long key_set_cooldown; /* at least so many between fetches for an unknown kid */
    long long key_set_keep;     /* how long a set is good when it cannot be fetched again */
    char *introspection_url, *introspection_client, *introspection_secret_file;
    long long introspection_cache; /* seconds */
    long long leeway, max_lifetime;
    /* [keys] */
    long long waiting;     /* seconds that a command to destroy waits, and can be undone */
    long long rewrap_rate; /* keys a second that the keeper moves in the background */
    bool byok;             /* customers may have main keys of their own */
    bool main_key_128;     /* which may have 128 bits */
    /* [lifetimes], all seconds */
    long long channel, unbound_key, bound_key, ttl_min, ttl_max;
    long long wrapping_key;       /* age at which a wrapping key is replaced */
    long long wrapping_key_wraps; /* use at which it is */
    /* [limits] */
    long long connections;        /* a worker */
    long long connections_source; /* a source address and worker */
    long long handshakes;         /* unfinished ones, a worker */
    long long messages_inflight;  /* a worker; beyond: 503 */
    long long rate_source;        /* messages a second from one address, 0 off */
    long long rate_subject;       /* messages a second of one user, 0 off */
    long long rate_open; /* static-key operations a second a worker (each costs the HSM an RSA
                            operation), 0 off */
    long long head_timeout, body_timeout, answer_timeout, idle_timeout,
        handshake_timeout;   /* seconds */
    long long resource_keys; /* keys in one answer */
    long long channel_cache; /* channels in a worker's memory */
    /* [log] */
    char *log_level;
};

/*
 * Reads and checks path; errors go to `errors`, one a line, with file, line and what to write
 * instead.  KMS_OK: *out is the caller's (config_free).  KMS_ERR_CONFIG: nothing to free.
 */
int config_read(struct config **out, const char *path, FILE *errors);
/* The same for tools, which want a socket's path: nothing is required, and no file that it names is
 * looked at; an administrator need not be able to read the daemon's keys. */
int config_look(struct config **out, const char *path, FILE *errors);
void config_free(struct config *c);
/* A commented sample of every setting, to standard output. */
void config_print_sample(void);
/* The table of all settings (hsm/conf.h); static. */
const struct conf_setting *config_settings(size_t *n);

/* The CAs of service certificates, by either name; "" or NULL: nobody is a service. */
static inline const char *
config_services_ca(const struct config *c)
{
    return c->services_ca != NULL && c->services_ca[0] != '\0' ? c->services_ca : c->tls_client_ca;
}

/* "192.0.2.1:8443", "[::]:8443" as a socket address; nothing is looked up.  KMS_OK, KMS_ERR_SYNTAX.
 */
int config_address(const char *text, struct sockaddr_storage *out, socklen_t *len);
/* A user's name or number, a group's (without '@').  KMS_OK, KMS_ERR_NOT_FOUND. */
int config_user(const char *word, uid_t *uid);
int config_group(const char *word, gid_t *gid);

#endif
