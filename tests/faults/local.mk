# What proves the promises by breaking things; tests/faults/run.sh runs it.
EXTRA_DIST += tests/faults/README.md tests/faults/run.sh tests/faults/lifecycle.sh tests/faults/main_keys.sh \
	tests/faults/rotation.sh tests/valgrind/run.sh
noinst_PROGRAMS += tests/faults/storm
tests_faults_storm_SOURCES = tests/faults/storm.c kms/client.c kms/clock.c kms/https.c kms/mint.c
tests_faults_storm_LDADD = $(PROTO_LIBS)
