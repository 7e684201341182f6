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
EXTRA_DIST += hsm/README.md
