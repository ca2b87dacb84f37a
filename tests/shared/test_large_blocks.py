"""Blocks of the size of a file's part go back to the system when they are freed, whichever thread had them."""

import json
import subprocess
import sys

PROGRAM = """
import json, os, threading, zlib
from pathlib import Path
from shared import large_blocks
if {is_told}:
    large_blocks.give_back()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def work():
    for _ in range(3):
        parts = [bytearray(4 << 20) for _ in range(4)]
        kept.append(bytes(100_000))
        del parts

kept = []
before = resident()
for _ in range(6):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(json.dumps(resident() - before))
"""


def grown(*, is_told: bool) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(is_told=is_told)], capture_output=True, check=True, text=True)
    found: int = json.loads(done.stdout)
    return found


def test_large_blocks_that_are_freed_take_no_memory() -> None:
    assert grown(is_told=True) < 8 << 20
