include kms/admin.mk
include kms/client.mk
include kms/web.mk

# The daemon.  kmsd.c is the parent; worker.c and keeper.c are the processes that it starts.
sbin_PROGRAMS += kms/kmsd
kms_kmsd_SOURCES = \
	kms/kmsd.c \
	kms/answer.c kms/answer.h \
	kms/channel.c kms/channel.h \
	kms/db.c kms/db.h \
	kms/harden.c kms/harden.h \
	kms/mainkey_req.c kms/mainkey_req.h \
	kms/orgs.c kms/orgs.h \
	kms/post.c kms/post.h \
	kms/rate.c kms/rate.h \
	kms/recording.c kms/recording.h \
	kms/refusal.c kms/refusal.h \
	kms/req.c kms/req.h \
	kms/service.c kms/service.h \
	kms/shared.c kms/shared.h \
	kms/state.c kms/state.h \
	kms/waiters.c kms/waiters.h \
	kms/worker.c kms/worker.h \
	$(WEB_SOURCES) \
	$(KEEPER_SOURCES)
kms_kmsd_CFLAGS = $(AM_CFLAGS) $(PQ_CFLAGS) $(CURL_CFLAGS) $(INIH_CFLAGS) $(SECCOMP_CFLAGS) $(SYSTEMD_CFLAGS)
kms_kmsd_LDADD = $(PROTO_LIBS) $(HSM_LIBS) proto/libproto.a $(EVENT_LIBS) $(PQ_LIBS) $(CURL_LIBS) \
	$(SECCOMP_LIBS) $(SYSTEMD_LIBS) $(JANSSON_LIBS) $(OPENSSL_LIBS)
