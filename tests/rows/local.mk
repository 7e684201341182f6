# Rows that were changed do not open; tests/rows/run.sh runs it.
EXTRA_DIST += tests/rows/run.sh tests/rows/rows.mjs tests/rows/world.mjs tests/rows/server.mjs
check_PROGRAMS += tests/rows/open_changed
tests_rows_open_changed_SOURCES = tests/rows/open_changed.c
tests_rows_open_changed_LDADD = $(HSM_LIBS) $(PROTO_LIBS)
