# Unit tests of the HTTP parser, the URIs and the KMS messages.
if UNIT_TESTS
check_PROGRAMS += tests/unit/test_http tests/unit/test_uri tests/unit/test_msg
TESTS += tests/unit/test_http tests/unit/test_uri tests/unit/test_msg
tests_unit_test_http_SOURCES = tests/unit/test_http.c
tests_unit_test_http_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_http_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
tests_unit_test_uri_SOURCES = tests/unit/test_uri.c
tests_unit_test_uri_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_uri_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
tests_unit_test_msg_SOURCES = tests/unit/test_msg.c
tests_unit_test_msg_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_msg_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
endif
