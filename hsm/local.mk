noinst_LIBRARIES += hsm/libhsm.a
# The client side, the log and the configuration reader: what kmsd links.  Nothing here knows PKCS#11.
hsm_libhsm_a_SOURCES = \
	hsm/client.c hsm/hsm.h \
	hsm/conf.c hsm/conf.h \
	hsm/frame.c hsm/frame.h \
	hsm/log.c hsm/log.h \
	hsm/wire.c hsm/wire.h
# libevent_core alone is used; libcrypto wipes.
HSM_LIBS = hsm/libhsm.a $(EVENT_LIBS) $(INIH_LIBS) $(OPENSSL_LIBS)

sbin_PROGRAMS += hsm/hsmd
hsm_hsmd_SOURCES = \
	hsm/blob.c hsm/blob.h \
	hsm/custodian.c hsm/setup.h \
	hsm/harden.c hsm/harden.h \
	hsm/hsmd.c \
	hsm/keyring.c hsm/keyring.h \
	hsm/keys.c hsm/life.c hsm/probe.c hsm/rsa.c hsm/token.c hsm/token.h \
	hsm/pool.c hsm/pool.h \
	hsm/server.c hsm/server.h
hsm_hsmd_CFLAGS = $(AM_CFLAGS) $(P11_CFLAGS) $(SECCOMP_CFLAGS) $(SYSTEMD_CFLAGS)
hsm_hsmd_LDADD = $(HSM_LIBS) $(JANSSON_LIBS) $(SECCOMP_LIBS) $(SYSTEMD_LIBS) -ldl
dist_man_MANS += hsm/hsmd.8
EXTRA_DIST += hsm/README.md
