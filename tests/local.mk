include tests/unit/msg.mk
include tests/fuzz/msg.mk
