# Unit tests of kms-client's parts.
if UNIT_TESTS
check_PROGRAMS += tests/unit/test_client tests/unit/test_scr
TESTS += tests/unit/test_client tests/unit/test_scr
tests_unit_test_client_SOURCES = tests/unit/test_client.c tests/unit/certs.c tests/unit/certs.h \
	kms/client.c kms/client.h \
	kms/clock.c kms/clock.h \
	kms/https.c kms/https.h \
	kms/mint.c kms/mint.h
tests_unit_test_client_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_client_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
tests_unit_test_scr_SOURCES = tests/unit/test_scr.c kms/scr.c kms/scr.h
tests_unit_test_scr_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_scr_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
endif
