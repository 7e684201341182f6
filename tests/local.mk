include tests/unit/msg.mk
