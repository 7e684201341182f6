noinst_LIBRARIES += hsm/libhsm.a
# The client side, the log and the configuration reader: what kmsd links.  Nothing here knows PKCS#11.
hsm_libhsm_a_SOURCES = hsm/client.c hsm/hsm.h hsm/frame.c hsm/frame.h hsm/log.c hsm/log.h hsm/conf.c hsm/conf.h
HSM_LIBS = hsm/libhsm.a $(EVENT_LIBS) $(INIH_LIBS)
EXTRA_DIST += hsm/README.md
