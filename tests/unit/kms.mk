# Unit tests of kmsd's own small parts.
if UNIT_TESTS
check_PROGRAMS += tests/unit/test_body tests/unit/test_kms
TESTS += tests/unit/test_body tests/unit/test_kms
tests_unit_test_body_SOURCES = tests/unit/test_body.c
tests_unit_test_body_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_body_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
tests_unit_test_kms_SOURCES = tests/unit/test_kms.c kms/answer.c kms/rate.c
tests_unit_test_kms_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_kms_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
check_PROGRAMS += tests/unit/test_refusal
TESTS += tests/unit/test_refusal
tests_unit_test_refusal_SOURCES = tests/unit/test_refusal.c kms/refusal.c kms/waiters.c kms/answer.c hsm/log.c
tests_unit_test_refusal_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_refusal_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
endif
