# Unit tests of the audit log's tree and notes.
if UNIT_TESTS
check_PROGRAMS += tests/unit/test_merkle tests/unit/test_note
TESTS += tests/unit/test_merkle tests/unit/test_note
tests_unit_test_merkle_SOURCES = tests/unit/test_merkle.c
tests_unit_test_merkle_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_merkle_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
tests_unit_test_note_SOURCES = tests/unit/test_note.c
tests_unit_test_note_CFLAGS = $(AM_CFLAGS) $(CRITERION_CFLAGS)
tests_unit_test_note_LDADD = $(PROTO_LIBS) $(CRITERION_LIBS)
endif
