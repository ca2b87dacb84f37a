"""Whether an engine that is silent is hung.  Pure.

Silence is counted in ticks of the worker's own loop and not by the clock: a worker that was suspended itself, or that got no
processor, sees one tick where the clock shows hours, and then reads what its engine has said meanwhile.
"""

#: Of a model, without any word of how far it is. A large file on a slow disk may stand still for minutes.
LOAD_SECONDS = 900.0
#: The first step waits for pages of the model's file, and on a GPU for programs that its driver compiles then.
FIRST_STEP_SECONDS = 600.0
#: Any other step. A processor that takes a second for a token reads no prompts of a large model that anybody would wait for.
STEP_SECONDS = 60.0
#: A step that reads much of a prompt takes so many times the longest so far, when all others were short.
PATIENCE = 30.0
#: A watch is no finer than this, and an engine that is at work reports more often.
TICK_SECONDS = 1.0


class Watchdog:
    """Told of every report and every tick."""

    def __init__(self, step_seconds: float = STEP_SECONDS) -> None:
        self._step_seconds = step_seconds
        self.tick_seconds = min(TICK_SECONDS, step_seconds / 4)
        self.limit_seconds = LOAD_SECONDS
        self._silent_ticks = 0
        self._longest_seconds = 0.0

    def heard(self) -> None:
        """The engine said something."""
        self._silent_ticks = 0

    def loaded(self) -> None:
        """The next step is the first."""
        self.limit_seconds = max(FIRST_STEP_SECONDS, self._step_seconds)

    def stepped(self, seconds: float) -> None:
        """A step took so long, to the engine's own clock."""
        self._longest_seconds = max(self._longest_seconds, seconds)
        self.limit_seconds = max(self._step_seconds, min(PATIENCE * self._longest_seconds, FIRST_STEP_SECONDS))

    def ticked(self) -> bool:
        """A tick passed without a word while the engine had something to do. Whether it is to be given up."""
        self._silent_ticks += 1
        return self._silent_ticks * self.tick_seconds >= self.limit_seconds
