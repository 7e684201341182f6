# Unit tests of the configuration, and of the files that are made from its table and from kmsctl's.
if UNIT_TESTS
check_PROGRAMS += tests/unit/test_config
TESTS += tests/unit/test_config
tests_unit_test_config_SOURCES = tests/unit/test_config.c kms/config.c kms/config.h
tests_unit_test_config_CPPFLAGS = $(AM_CPPFLAGS) $(PQ_CFLAGS) -DSOURCE_DIR='"$(abs_top_srcdir)"'
tests_unit_test_config_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_config_LDADD = $(HSM_LIBS) $(PROTO_LIBS) $(PQ_LIBS) $(CRITERION_LIBS)
endif
EXTRA_DIST += tests/admin/run.sh tests/admin/officers.sh
