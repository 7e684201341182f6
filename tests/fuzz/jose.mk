# Fuzz targets of JSON and JOSE; tests/fuzz/run.sh builds and runs all there are.
if FUZZERS
noinst_PROGRAMS += tests/fuzz/fuzz_json tests/fuzz/fuzz_jwe tests/fuzz/fuzz_jws tests/fuzz/fuzz_jwk \
	tests/fuzz/fuzz_proof
tests_fuzz_fuzz_json_SOURCES = tests/fuzz/fuzz_json.c
tests_fuzz_fuzz_json_LDADD = $(PROTO_LIBS)
tests_fuzz_fuzz_json_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
tests_fuzz_fuzz_jwe_SOURCES = tests/fuzz/fuzz_jwe.c
tests_fuzz_fuzz_jwe_LDADD = $(PROTO_LIBS)
tests_fuzz_fuzz_jwe_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
tests_fuzz_fuzz_jws_SOURCES = tests/fuzz/fuzz_jws.c
tests_fuzz_fuzz_jws_LDADD = $(PROTO_LIBS)
tests_fuzz_fuzz_jws_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
tests_fuzz_fuzz_jwk_SOURCES = tests/fuzz/fuzz_jwk.c
tests_fuzz_fuzz_jwk_LDADD = $(PROTO_LIBS)
tests_fuzz_fuzz_jwk_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
tests_fuzz_fuzz_proof_SOURCES = tests/fuzz/fuzz_proof.c
tests_fuzz_fuzz_proof_LDADD = $(PROTO_LIBS)
tests_fuzz_fuzz_proof_LDFLAGS = $(AM_LDFLAGS) -fsanitize=fuzzer
endif
