from pathlib import Path

from cli.stack import logs


def test_a_short_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("one\n")
    assert not logs.rotate(file, max_bytes=4)
    assert file.read_text() == "one\n"


def test_a_long_file_is_put_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with file.open("a") as writer:
        writer.write("x" * 50 + "\nlast\n")
        writer.flush()
        assert logs.rotate(file, max_bytes=20)
        writer.write("next\n")
    assert file.read_text() == "next\n"
    assert (tmp_path / "a.log.1").read_text() == "x" * 14 + "\nlast\n"


def test_tail_is_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(10_000)))
    assert [line.split()[1] for line in logs.tail(file, 3)] == ["9997", "9998", "9999"]
    assert logs.tail(tmp_path / "none.log", 3) == []


def test_tail_can_begin_where_a_log_ended_before(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("one\ntwo\n")
    start = logs.ends(tmp_path)["a"]
    assert logs.tail(file, 3, start) == []
    with file.open("a") as writer:
        writer.write("three\n")
    assert logs.tail(file, 3, start) == ["three"]
    file.write_text("new\n")  # rotated
    assert logs.tail(file, 3, start) == ["new"]


def test_following_goes_on_after_a_rotation(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("zero\none\n")
    lines = logs.follow({"a": file}, 1)
    assert next(lines).text == "one"
    with file.open("a") as writer:
        writer.write("two\nhal")
        writer.flush()
        assert next(lines).text == "two"
        writer.write("f\n")
        writer.flush()
        assert next(lines).text == "half"
    logs.rotate(file, max_bytes=0)
    file.write_text("new\n")
    assert next(lines).text == "new"
