"""Forms with a file: every split, every cut, and what is refused."""

import pytest

from features.files.gateway.rules.upload_form import UploadForm
from services.gateway.facts.bad_field import BadField

TYPE = b"multipart/form-data; boundary=xYz"
#: It looks like its own end.
CONTENT = b"a\r\n--xY\r\r\n-\r\n--xY\n\0\xff\r\n"
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


def part(name: str, value: bytes, file_name: str | None = None) -> bytes:
    named = "" if file_name is None else f'; filename="{file_name}"'
    return f'--xYz\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xYz--\r\n"


PURPOSE, FILE = part("purpose", b"batch"), part("file", CONTENT, "a.jsonl")


def read(*pieces: bytes, content_type: bytes = TYPE) -> tuple[UploadForm, bytes]:
    form = UploadForm(content_type, FIELDS)
    found = b"".join(data for piece in pieces for data in form.feed(piece))
    form.close()
    return form, found


def test_a_form_split_anywhere_reads_the_same() -> None:
    for parts in ((PURPOSE, FILE), (FILE, PURPOSE), (part("expires_after[seconds]", b"3600"), FILE, PURPOSE)):
        whole = body(*parts)
        splits = [(whole[:at], whole[at:]) for at in range(len(whole) + 1)]
        for pieces in (*splits, tuple(whole[at : at + 1] for at in range(len(whole)))):
            form, found = read(*pieces)
            assert (form.fields["purpose"], form.file_name, found) == ("batch", "a.jsonl", CONTENT)


def test_a_form_that_is_cut_anywhere_is_refused() -> None:
    whole = body(PURPOSE, FILE)
    for at in range(len(whole) - 2):
        with pytest.raises(BadField):
            read(whole[:at])
    with pytest.raises(BadField) as refused:
        read(whole[: whole.index(CONTENT) + 5])
    assert refused.value.field == "file"


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ("file", (PURPOSE, FILE, FILE)),
        ("purpose", (PURPOSE, PURPOSE, FILE)),
        ("extra", (PURPOSE, part("extra", b"x"), FILE)),
        ("", (part("", b"x"), FILE)),
        ("file", (PURPOSE,)),
        ("file", (PURPOSE, part("file", b"x"))),
        ("purpose", (part("purpose", b"batch", "a"), FILE)),
        ("purpose", (part("purpose", b"x" * 1025), FILE)),
        ("purpose", (part("purpose", b"\xff"), FILE)),
        *(("file", (part("file", b"x", name),)) for name in ("../a", "/etc/passwd", "a/b", "a\\\\b", "..", ".", "", "x" * 256, "a\tb")),
    ],
)  # fmt: skip
def test_wrong_parts_are_refused_by_their_names(field: str, parts: tuple[bytes, ...]) -> None:
    with pytest.raises(BadField) as refused:
        read(body(*parts))
    assert refused.value.field == field


def test_what_is_no_form_is_refused() -> None:
    for content_type in (
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/mixed; boundary=xYz",
        b"\xff",
    ):
        with pytest.raises(BadField, match="must be multipart/form-data"):
            read(body(FILE), content_type=content_type)
    for junk in (b"", b"junk" * 100, b"--xYz\r\n" + b"A: " + b"x" * 5000, b"--xYz\r\n" + b"A: b\r\n" * 9 + b"\r\n", b"--xYz\r\n\r\nx"):
        with pytest.raises(BadField):
            read(junk)


def test_names_in_other_languages_are_kept() -> None:
    form, _ = read(body(part("file", b"x", "größe 日本.jsonl")))
    assert form.file_name == "größe 日本.jsonl"


def test_old_browsers_name_their_path() -> None:
    form, _ = read(body(part("file", b"x", "C:\\Users\\ada\\a.jsonl")))
    assert form.file_name == "a.jsonl"
