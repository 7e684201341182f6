# kms-client, a small client of the protocol.
bin_PROGRAMS += kms/kms-client
kms_kms_client_SOURCES = \
	kms/client.c kms/client.h \
	kms/client_main.c \
	kms/clock.c kms/clock.h \
	kms/https.c kms/https.h \
	kms/mint.c kms/mint.h \
	kms/scr.c kms/scr.h
kms_kms_client_LDADD = $(PROTO_LIBS)
dist_man_MANS += kms/kms-client.1
