"""What the feature list claims of autoscaling, for tests/test_docs.py."""

from features.autoscaling.rules.snapshot_reader import GATEWAY_SERIES
from shared.telemetry.answer_instruments import AnswerInstruments

CLAIMS = {
    ("Auto-scaling triggers", "the time to first text, not that of"): lambda: f"{AnswerInstruments.ttft_seconds.name}_sum" in GATEWAY_SERIES
}
