"""What backups add."""

from shared.features import Feature

FEATURE = Feature()
