# What is destroyed does not open from an old backup; tests/destruction/run.sh runs it.
EXTRA_DIST += tests/destruction/run.sh
check_PROGRAMS += tests/destruction/open_blobs
tests_destruction_open_blobs_SOURCES = tests/destruction/open_blobs.c
tests_destruction_open_blobs_LDADD = $(HSM_LIBS) $(PROTO_LIBS)
