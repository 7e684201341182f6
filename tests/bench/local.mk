# Loads and measurements; tests/bench/run.sh runs them.
EXTRA_DIST += tests/bench/run.sh tests/bench/rotation.sh tests/bench/revocation.sh
noinst_PROGRAMS += tests/bench/load
tests_bench_load_SOURCES = tests/bench/load.c kms/client.c kms/clock.c kms/https.c kms/mint.c
tests_bench_load_LDADD = $(PROTO_LIBS)
