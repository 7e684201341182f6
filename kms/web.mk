# The HTTPS server, the check of access tokens, and the HTTPS client that fetches key sets for it.
WEB_SOURCES = \
	kms/clock.c kms/clock.h \
	kms/web.c kms/web_tls.c kms/web.h \
	kms/token.c kms/token.h \
	kms/fetch.c kms/fetch.h
