# kmsctl, the keeper's part of kmsd, and what is installed beside the programs.
KEEPER_SOURCES = \
	kms/admin.c kms/admin.h kms/admin_call.h \
	kms/audit.c kms/audit.h kms/audit_admin.c \
	kms/canary.c kms/canary.h \
	kms/destroy.c kms/destroy.h kms/destroy_admin.c \
	kms/control_admin.c kms/explain_admin.c kms/freeze_admin.c kms/backup_admin.c \
	kms/syslog.c kms/syslog.h \
	kms/config.c kms/config.h \
	kms/keeper.c kms/keeper.h \
	kms/mainkey.c kms/mainkey.h \
	kms/rotation.c kms/rotation.h kms/rotation_admin.c kms/fault.h \
	kms/metrics.c kms/metrics.h \
	kms/revoked.c kms/revoked.h \
	kms/service_ca.c kms/service_ca.h \
	kms/static_key.c kms/static_key.h

bin_PROGRAMS += kms/kmsctl
kms_kmsctl_SOURCES = \
	kms/kmsctl_main.c kms/kmsctl.h kms/kmsctl_audit.c kms/kmsctl_control.c \
	kms/kmsctl_explain.c kms/kmsctl_cmk.c kms/kmsctl_destroy.c kms/kmsctl_freeze.c kms/kmsctl_backup.c kms/kmsctl_restore.c kms/kmsctl_rotation.c kms/kmsctl_log.h \
	kms/audit_dir.c kms/audit_dir.h \
	kms/audit_verify.c kms/audit_verify.h \
	kms/clock.c kms/clock.h \
	kms/config.c kms/config.h \
	kms/static_key.c kms/static_key.h \
	kms/table.c kms/table.h
nodist_kms_kmsctl_SOURCES = kms/restore_db_sh.c
kms_kmsctl_CPPFLAGS = $(AM_CPPFLAGS) $(PQ_CFLAGS)
kms_kmsctl_LDADD = $(SQL_LIBS) $(HSM_LIBS) $(PROTO_LIBS) $(PQ_LIBS)

# A script that kmsctl carries.
kms/restore_db_sh.c: kms/restore-db.sh
	$(AM_V_GEN)$(MKDIR_P) kms && { echo 'extern const char restore_db_sh[];' && echo 'const char restore_db_sh[] = {' && \
		od -An -v -tu1 $(srcdir)/kms/restore-db.sh | sed 's/^ *//; s/  */, /g; s/$$/,/' && echo '0};'; } >$@.tmp && mv $@.tmp $@
CLEANFILES += kms/restore_db_sh.c kms/restore_db_sh.c.tmp
EXTRA_DIST += kms/restore-db.sh

dist_man_MANS += kms/kmsd.8 kms/kmsctl.8 kms/kms.conf.5
dist_doc_DATA += kms/kms.conf.sample kms/kmsd.service kms/hsmd.service
bashcompletiondir = $(datadir)/bash-completion/completions
dist_bashcompletion_DATA = kms/kmsctl.bash
EXTRA_DIST += kms/README.md kms/LOG.md kms/quickstart.sh
