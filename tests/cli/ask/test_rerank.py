"""`aicli rerank`: which texts it sends, and how it shows their order."""

import json
from pathlib import Path
from uuid import UUID

from shared import errors
from shared.api import embedding
from shared.api.embedding import RankedDocument, Ranking, RankingNotice, RankingRequest, RequestRanking
from shared.types import ModelName, RequestId
from tests.cli.fake_mesh import Shell

FOUND = Ranking(RequestId(UUID(int=1)), ModelName("bge"), (RankedDocument(1, 0.9), RankedDocument(0, 0.125)), 12, 5)


NOTICES = [RankingNotice("loading bge: 40 %")]


async def refuse() -> None:
    raise errors.BadRequest("this model cannot rank texts")


def files(folder: Path) -> tuple[str, str]:
    (folder / "a.md").write_text("one\n\ntwo\n")
    (folder / "b.md").write_text("three\n")
    return str(folder / "a.md"), str(folder / "b.md")


def test_files_are_ranked(shell: Shell, tmp_path: Path) -> None:
    first, second = files(tmp_path)
    shell.mesh.stream_answer(embedding.request_ranking, NOTICES, FOUND)
    shown = shell("rerank", "-m", "bge", "--top", "2", "why", first, second)
    assert shown.exit_code == 0, shown.stderr
    assert [line.split() for line in shown.stdout.splitlines()] == [["SCORE", "TEXT"], ["0.9000", second], ["0.1250", first]]
    assert shown.stderr == "loading bge: 40 %\n"
    assert shell.mesh.calls[-1].request == RequestRanking(RankingRequest("why", ("one\n\ntwo\n", "three\n"), ModelName("bge"), 2))
    assert json.loads(shell("rerank", "why", first, second, "--json").stdout) == [
        {"index": 1, "relevance_score": 0.9, "name": second},
        {"index": 0, "relevance_score": 0.125, "name": first},
    ]


def test_lines_are_ranked(shell: Shell, tmp_path: Path) -> None:
    shell.mesh.stream_answer(embedding.request_ranking, NOTICES, FOUND)
    shown = shell("rerank", "--lines", "why", *files(tmp_path))
    assert [line.split() for line in shown.stdout.splitlines()][1:] == [["0.9000", "two"], ["0.1250", "one"]]
    assert shell.mesh.calls[-1].request == RequestRanking(RankingRequest("why", ("one", "two", "three")))


def test_a_refusal_names_the_reason(shell: Shell, tmp_path: Path) -> None:
    shell.mesh.stream_answer(embedding.request_ranking, NOTICES, FOUND, refuse)
    refused = shell("rerank", "why", *files(tmp_path))
    assert refused.exit_code != 0
    assert "this model cannot rank texts" in refused.stderr
