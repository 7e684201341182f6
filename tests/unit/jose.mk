# Unit tests of what is under the messages: base64, JSON, JOSE, tokens, key agreement; and other people's vectors.
if UNIT_TESTS
jose_tests = \
	tests/unit/test_b64 \
	tests/unit/test_json \
	tests/unit/test_jwk \
	tests/unit/test_jwe \
	tests/unit/test_jws \
	tests/unit/test_jwt \
	tests/unit/test_kdf \
	tests/unit/test_proof \
	tests/unit/test_wipe \
	tests/unit/test_vectors_cjose \
	tests/unit/test_vectors_jose \
	tests/unit/test_vectors_json \
	tests/unit/test_vectors_primitives
check_PROGRAMS += $(jose_tests) tests/bench/bench_jose
TESTS += $(jose_tests)
jose_cppflags = $(AM_CPPFLAGS) \
	-DVECTORS_DIR='"$(abs_top_srcdir)/../shared/vectors"' \
	-DDATA_DIR='"$(abs_top_srcdir)/tests/unit/data"'
jose_cflags = $(AM_CFLAGS) $(CRITERION_CFLAGS)
jose_libs = $(PROTO_LIBS) $(CRITERION_LIBS)
jose_vectors = tests/unit/vectors.c tests/unit/vectors.h

tests_unit_test_b64_SOURCES = tests/unit/test_b64.c
tests_unit_test_b64_CPPFLAGS = $(jose_cppflags)
tests_unit_test_b64_CFLAGS = $(jose_cflags)
tests_unit_test_b64_LDADD = $(jose_libs)
tests_unit_test_json_SOURCES = tests/unit/test_json.c
tests_unit_test_json_CPPFLAGS = $(jose_cppflags)
tests_unit_test_json_CFLAGS = $(jose_cflags)
tests_unit_test_json_LDADD = $(jose_libs)
tests_unit_test_jwk_SOURCES = tests/unit/test_jwk.c
tests_unit_test_jwk_CPPFLAGS = $(jose_cppflags)
tests_unit_test_jwk_CFLAGS = $(jose_cflags)
tests_unit_test_jwk_LDADD = $(jose_libs)
tests_unit_test_jwe_SOURCES = tests/unit/test_jwe.c $(jose_vectors)
tests_unit_test_jwe_CPPFLAGS = $(jose_cppflags)
tests_unit_test_jwe_CFLAGS = $(jose_cflags)
tests_unit_test_jwe_LDADD = $(jose_libs)
tests_unit_test_jws_SOURCES = tests/unit/test_jws.c $(jose_vectors)
tests_unit_test_jws_CPPFLAGS = $(jose_cppflags)
tests_unit_test_jws_CFLAGS = $(jose_cflags)
tests_unit_test_jws_LDADD = $(jose_libs)
tests_unit_test_jwt_SOURCES = tests/unit/test_jwt.c
tests_unit_test_jwt_CPPFLAGS = $(jose_cppflags)
tests_unit_test_jwt_CFLAGS = $(jose_cflags)
tests_unit_test_jwt_LDADD = $(jose_libs)
tests_unit_test_kdf_SOURCES = tests/unit/test_kdf.c $(jose_vectors)
tests_unit_test_kdf_CPPFLAGS = $(jose_cppflags)
tests_unit_test_kdf_CFLAGS = $(jose_cflags)
tests_unit_test_kdf_LDADD = $(jose_libs)
tests_unit_test_proof_SOURCES = tests/unit/test_proof.c
tests_unit_test_proof_CPPFLAGS = $(jose_cppflags)
tests_unit_test_proof_CFLAGS = $(jose_cflags)
tests_unit_test_proof_LDADD = $(jose_libs)
tests_unit_test_wipe_SOURCES = tests/unit/test_wipe.c
tests_unit_test_wipe_CPPFLAGS = $(jose_cppflags)
tests_unit_test_wipe_CFLAGS = $(jose_cflags)
tests_unit_test_wipe_LDADD = $(jose_libs)
tests_unit_test_vectors_cjose_SOURCES = tests/unit/test_vectors_cjose.c $(jose_vectors)
tests_unit_test_vectors_cjose_CPPFLAGS = $(jose_cppflags)
tests_unit_test_vectors_cjose_CFLAGS = $(jose_cflags) $(CJOSE_CFLAGS)
tests_unit_test_vectors_cjose_LDADD = $(jose_libs) $(CJOSE_LIBS)
tests_unit_test_vectors_jose_SOURCES = tests/unit/test_vectors_jose.c $(jose_vectors)
tests_unit_test_vectors_jose_CPPFLAGS = $(jose_cppflags)
tests_unit_test_vectors_jose_CFLAGS = $(jose_cflags)
tests_unit_test_vectors_jose_LDADD = $(jose_libs)
tests_unit_test_vectors_json_SOURCES = tests/unit/test_vectors_json.c $(jose_vectors)
tests_unit_test_vectors_json_CPPFLAGS = $(jose_cppflags)
tests_unit_test_vectors_json_CFLAGS = $(jose_cflags)
tests_unit_test_vectors_json_LDADD = $(jose_libs)
tests_unit_test_vectors_primitives_SOURCES = tests/unit/test_vectors_primitives.c $(jose_vectors)
tests_unit_test_vectors_primitives_CPPFLAGS = $(jose_cppflags)
tests_unit_test_vectors_primitives_CFLAGS = $(jose_cflags)
tests_unit_test_vectors_primitives_LDADD = $(jose_libs)

tests_bench_bench_jose_SOURCES = tests/bench/bench_jose.c
tests_bench_bench_jose_LDADD = $(PROTO_LIBS)
endif
EXTRA_DIST += \
	tests/unit/data/README.md \
	tests/unit/data/channel.json \
	tests/unit/data/jwe_dir.json \
	tests/unit/data/jwe_rsa.json \
	tests/unit/data/jwe_to.json \
	tests/unit/data/rfc_jwe.json \
	tests/unit/data/rfc_jws.json
