# The keeper's part of kmsd, and kmsctl.
KEEPER_SOURCES = \
	kms/admin.c kms/admin.h \
	kms/config.c kms/config.h \
	kms/keeper.c kms/keeper.h \
	kms/metrics.c kms/metrics.h
