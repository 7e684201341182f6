noinst_LIBRARIES += proto/libproto.a
proto_libproto_a_SOURCES = \
	proto/b64.c proto/b64.h \
	proto/body.c proto/body.h \
	proto/buf.c proto/buf.h \
	proto/err.c proto/err.h \
	proto/http.c proto/http.h \
	proto/jose.c proto/jose.h \
	proto/json.c proto/json.h \
	proto/jwe.c proto/jwe.h \
	proto/jwk.c proto/jwk.h \
	proto/jws.c proto/jws.h \
	proto/jwt.c proto/jwt.h \
	proto/kdf.c proto/kdf.h \
	proto/merkle.c proto/merkle.h \
	proto/msg.c proto/msg.h \
	proto/note.c proto/note.h \
	proto/proof.c proto/proof.h \
	proto/secret.c proto/secret.h \
	proto/uri.c proto/uri.h
# What a program that links libproto.a needs besides.
PROTO_LIBS = proto/libproto.a $(JANSSON_LIBS) $(OPENSSL_LIBS)
EXTRA_DIST += proto/README.md
