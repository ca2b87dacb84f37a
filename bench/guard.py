"""Measure the processor time that guardrails take: for whole texts, streamed answers, and texts made to be slow.

All kinds are on, for five countries; the texts have no matches, as most have none. The rival of the slow texts is as much prose.
"""

import itertools
import re
import time
from collections.abc import Callable, Sequence
from statistics import median

from bench import report
from bench.report import Options, Rows
from services.gateway.guard import guard_rules
from services.gateway.guard.guard_rules import GuardScan
from services.gateway.guard.guarded_text import GuardedText, GuardMatches
from shared.config_documents import GuardAction, GuardDocument, GuardKind

TOKENS = 1_000
BOMB_CHARACTERS = 1024 * 1024
PROSE = (
    "The committee met on 14 March 2024 in room 312 and agreed, after a long discussion, to postpone the vote until version 2.1 of the "
    "report is ready. Nobody objected; Ms. Okafor asked how the 35 % in table 4 had been computed, and whether the NASA figures of 2019 "
    "were still valid. "
)
SLOW = {
    "digits": "7",
    "@": "@",
    "one letter": "a",
    "numbers of one digit": "1 2 3 4 ",
    "phone numbers": "".join(f"212-555-{number:04} " for number in range(10_000)),
    "email addresses": "bob@example.com ",
}


def _scan() -> GuardScan:
    actions: dict[GuardKind, GuardAction] = {kind: GuardAction.MASK for kind in GuardKind if kind is not GuardKind.OWN}
    document = GuardDocument(prompt=actions, countries=("DE", "ES", "FR", "IT", "US"))
    return guard_rules.combine([("mesh", document)]).prompt


def _read(pieces: Sequence[str], scan: GuardScan) -> None:
    guarded = GuardedText(scan, GuardMatches())
    for piece in pieces:
        guarded.feed(piece)
    guarded.end()


def _spent_ms(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    scan = _scan()
    words = re.findall(r"\s?\w+|[^\w\s]", PROSE)
    tokens = list(itertools.islice(itertools.cycle(words), TOKENS))
    text = "".join(tokens)
    _read([text], scan)
    whole = [_spent_ms(lambda: _read([text], scan)) for _ in range(50 * options.rounds)]
    streamed = [_spent_ms(lambda: _read(tokens, scan)) for _ in range(20 * options.rounds)]
    rows.alone(f"a whole text of {TOKENS} tokens", median(whole), "ms", at_most=1.0)
    rows.alone(f"{TOKENS} chunks of one token", median(streamed), "ms", at_most=3.0)
    prose = (PROSE * (BOMB_CHARACTERS // len(PROSE) + 1))[:BOMB_CHARACTERS]
    plain = [_spent_ms(lambda: _read([prose], scan)) for _ in range(options.rounds)]
    for name, piece in SLOW.items():
        bomb = (piece * (BOMB_CHARACTERS // len(piece) + 1))[:BOMB_CHARACTERS]
        spent = [_spent_ms(lambda bomb=bomb: _read([bomb], scan)) for _ in range(options.rounds)]  # type: ignore[misc]
        rows.paired(f"1 MiB of {name}", spent, "ms", "prose", plain, at_most=50)


if __name__ == "__main__":
    report.run(__doc__, {"guard": _measure}, limits=(300.0, 60.0), rounds=(3, 1))
