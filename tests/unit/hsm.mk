# Unit tests of hsm/: the small parts, and real hsmds on fresh SoftHSM tokens, with and without a module that misbehaves.
if UNIT_TESTS
check_PROGRAMS += \
	tests/faults/p11shim.so \
	tests/unit/test_conf tests/unit/test_frame tests/unit/test_hsm_keys tests/unit/test_hsmd tests/unit/test_log
TESTS += tests/unit/test_conf tests/unit/test_frame tests/unit/test_hsm_keys tests/unit/test_hsmd tests/unit/test_log
tests_unit_test_conf_SOURCES = tests/unit/test_conf.c
tests_unit_test_conf_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_conf_LDADD = $(HSM_LIBS) $(CRITERION_LIBS)
tests_unit_test_frame_SOURCES = tests/unit/test_frame.c
tests_unit_test_frame_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_frame_LDADD = $(HSM_LIBS) $(CRITERION_LIBS)
tests_unit_test_log_SOURCES = tests/unit/test_log.c
tests_unit_test_log_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_log_LDADD = $(HSM_LIBS) $(CRITERION_LIBS)
tests_unit_test_hsmd_SOURCES = \
	tests/unit/test_hsmd.c kms/harden.c kms/harden.h \
	tests/faults/hsmd_fixture.c tests/faults/hsmd_fixture.h
tests_unit_test_hsmd_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_hsmd_LDADD = $(HSM_LIBS) $(SECCOMP_LIBS) $(CRITERION_LIBS)
tests_unit_test_hsm_keys_SOURCES = \
	tests/unit/test_hsm_keys.c \
	tests/faults/hsmd_fixture.c tests/faults/hsmd_fixture.h
tests_unit_test_hsm_keys_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS) $(P11_CFLAGS)
tests_unit_test_hsm_keys_LDADD = $(HSM_LIBS) $(CRITERION_LIBS) -ldl
# A module, not a program; without sanitizers, as it is loaded into whatever hsmd there is.
tests_faults_p11shim_so_SOURCES = tests/faults/p11shim.c
tests_faults_p11shim_so_CFLAGS = $(C_STANDARD) $(WARNINGS) $(OPENSSL_CFLAGS) $(P11_CFLAGS) -fPIC
tests_faults_p11shim_so_LDFLAGS = -shared
tests_faults_p11shim_so_LDADD = $(OPENSSL_LIBS) -ldl
endif
