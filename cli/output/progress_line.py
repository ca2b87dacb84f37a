"""Shows how far a command is."""

import shutil
import sys

from cli.output import printing
from shared import amounts
from shared.api.inference import PullProgress


class ProgressLine:
    """A line on a terminal that is written again and again; elsewhere a line per step."""

    def __init__(self) -> None:
        self._steps: dict[str, str] = {}
        self._is_open = False

    def __call__(self, progress: PullProgress, who: str = "") -> None:
        shown = amounts.show_progress(progress.done_bytes, progress.total_bytes, progress.bytes_per_second)
        self.write(f"{who}{progress.step}: {shown}", progress.step, who)

    def write(self, text: str, step: str, who: str = "") -> None:
        text = printing.printable(text)
        self._is_open = sys.stderr.isatty()
        if self._is_open:
            sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        elif self._steps.get(who) != step:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        self._steps[who] = step

    def close(self) -> None:
        """End the line on the terminal."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False
