# Loads and measurements; tests/bench/run.sh runs them.
noinst_PROGRAMS += tests/bench/load
tests_bench_load_SOURCES = tests/bench/load.c kms/client.c kms/https.c kms/mint.c
tests_bench_load_LDADD = $(PROTO_LIBS)
