include tests/unit/msg.mk
include tests/fuzz/msg.mk
include tests/unit/client.mk
