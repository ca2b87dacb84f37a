"""Decides when a silent engine hangs.  Pure.

It counts ticks of the worker's loop instead of time: a worker that was suspended sees one tick where the clock shows hours, and
then reads what its engine reported meanwhile.
"""

#: Without progress during a load; a large file on a slow disk may stall for minutes.
LOAD_SECONDS = 900.0
#: The first step reads the model's file into memory and compiles GPU programs.
FIRST_STEP_SECONDS = 600.0
STEP_SECONDS = 60.0
#: A step that reads much of a prompt may take this many times the longest step so far.
PATIENCE = 30.0
#: The resolution; a busy engine reports more often.
TICK_SECONDS = 1.0


class Watchdog:
    """Gets every report and every tick."""

    def __init__(self, step_seconds: float = STEP_SECONDS) -> None:
        self._step_seconds = step_seconds
        self.tick_seconds = min(TICK_SECONDS, step_seconds / 4)
        self.limit_seconds = LOAD_SECONDS
        self._silent_ticks = 0
        self._longest_seconds = 0.0

    def report_received(self) -> None:
        self._silent_ticks = 0

    def load_ended(self) -> None:
        """The next step is the first."""
        self.limit_seconds = max(FIRST_STEP_SECONDS, self._step_seconds)

    def step_ended(self, seconds: float) -> None:
        """A step ended; ``seconds`` is by the engine's clock."""
        self._longest_seconds = max(self._longest_seconds, seconds)
        self.limit_seconds = max(self._step_seconds, min(PATIENCE * self._longest_seconds, FIRST_STEP_SECONDS))

    def tick(self) -> bool:
        """A busy engine was silent for a tick. Return whether it hangs."""
        self._silent_ticks += 1
        return self._silent_ticks * self.tick_seconds >= self.limit_seconds
