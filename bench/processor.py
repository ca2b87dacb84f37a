"""What a process has had of the processors."""

import os
from pathlib import Path


def spent_ms(pid: int) -> float:
    """Since it began, itself and the kernel for it."""
    # proc_pid_stat(5): behind the name, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
