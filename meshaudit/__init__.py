"""meshaudit: a Postgres-native, tamper-evident audit log for secrets."""

__version__ = "0.1.0"
