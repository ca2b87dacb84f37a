"""What channels of alerts add: nothing that every program has to know."""

from shared.features import Feature

FEATURE = Feature()
