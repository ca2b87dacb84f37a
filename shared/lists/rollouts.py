"""The words and tones of a rollout's states."""

from shared.api.configuration import RolloutState
from shared.lists.columns import Tone

STATES = {
    RolloutState.RUNNING: ("Running", Tone.GOOD),
    RolloutState.HOLDING: ("Waiting for outcomes", Tone.WARN),
    RolloutState.PAUSED: ("Paused", Tone.WARN),
    RolloutState.ROLLED_BACK: ("Rolled back", Tone.BAD),
    RolloutState.PROMOTED: ("Promoted", Tone.GOOD),
    RolloutState.ENDED: ("Ended", Tone.GOOD),
}
