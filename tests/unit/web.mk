# Unit tests of the HTTPS server and of the check of access tokens.
if UNIT_TESTS
check_PROGRAMS += tests/unit/test_web tests/unit/test_token
TESTS += tests/unit/test_web tests/unit/test_token
web_test_sources = tests/unit/certs.c tests/unit/certs.h kms/shared.c kms/shared.h $(WEB_SOURCES)
web_test_cflags = $(AM_CFLAGS) $(CURL_CFLAGS) $(CRITERION_CFLAGS)
web_test_libs = $(PROTO_LIBS) $(HSM_LIBS) $(EVENT_LIBS) $(CURL_LIBS) $(CRITERION_LIBS)
tests_unit_test_web_SOURCES = tests/unit/test_web.c $(web_test_sources)
tests_unit_test_web_CFLAGS = $(web_test_cflags)
tests_unit_test_web_LDADD = $(web_test_libs)
tests_unit_test_token_SOURCES = tests/unit/test_token.c $(web_test_sources)
tests_unit_test_token_CFLAGS = $(web_test_cflags)
tests_unit_test_token_LDADD = $(web_test_libs)
check_PROGRAMS += tests/unit/test_service
TESTS += tests/unit/test_service
tests_unit_test_service_SOURCES = tests/unit/test_service.c tests/unit/certs.c tests/unit/certs.h kms/service.c \
	kms/service_ca.c hsm/log.c
tests_unit_test_service_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_service_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
endif
