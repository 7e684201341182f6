noinst_PROGRAMS += tests/bench/bench_hsm
tests_bench_bench_hsm_SOURCES = \
	tests/bench/bench_hsm.c hsm/blob.c hsm/blob.h \
	tests/faults/hsmd_fixture.c tests/faults/hsmd_fixture.h
tests_bench_bench_hsm_CFLAGS = $(AM_CFLAGS) $(P11_CFLAGS)
tests_bench_bench_hsm_LDADD = $(HSM_LIBS) -ldl
