import copy
import json
from collections.abc import Mapping

import aimesh
import pytest
from aimesh import errors
from aimesh.errors import AimeshError

from shared import errors as theirs
from tests.cases import case


def of(status: int, body: object = None, **headers: str) -> AimeshError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return errors.from_response(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def error_body(code: str, **more: object) -> Mapping[str, object]:
    return {"error": {"message": "it went wrong", "code": code, "hint": "do this", "request_id": "r-1", "param": None, **more}}


def test_every_platform_code_has_the_class_of_its_status() -> None:
    for code in sorted(theirs.BY_CODE):
        with case(code):
            status = theirs.BY_CODE[code].status
            error = of(status, error_body(code))
            assert (error.code, error.status, error.message, error.hint, error.request_id) == (
                code,
                status,
                "it went wrong",
                "do this",
                "r-1",
            )
            assert isinstance(error, type(of(status)) if code not in errors.BY_CODE else errors.BY_CODE[code])
            # A handler of the general error catches this one, too.
            general = {409: aimesh.Conflict, 400: aimesh.BadRequest, 405: aimesh.BadRequest, 415: aimesh.BadRequest}.get(
                status, type(of(status))
            )
            assert isinstance(error, general)


def test_no_code_is_unknown_to_the_platform() -> None:
    # The ledger's code, which is not in the shared tree.
    assert set(errors.BY_CODE) - set(theirs.BY_CODE) <= {"ledger_unavailable"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, aimesh.BadRequest), (401, aimesh.NotAuthenticated), (402, aimesh.BudgetExhausted), (403, aimesh.NotAllowed),
        (404, aimesh.NotFound), (409, aimesh.Conflict), (410, aimesh.AnswerGone), (413, aimesh.TooLarge), (418, aimesh.BadRequest),
        (429, aimesh.RateLimited), (500, aimesh.ServerFailed), (502, aimesh.Unavailable), (503, aimesh.Unavailable),
        (504, aimesh.DeadlineExceeded), (599, aimesh.Unavailable), (302, aimesh.ProtocolError), (204, aimesh.ProtocolError),
    ],
)  # fmt: skip
def test_unknown_code_has_the_class_of_its_status_and_keeps_its_code(status: int, kind: type[AimeshError]) -> None:
    error = of(status, error_body("of_next_year"))
    assert type(error) is kind
    if kind is not aimesh.ProtocolError:
        assert error.code == "of_next_year"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>Bad gateway</html>", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'"text"', b'{"error": "text"}', b'{"error": null}',
        b'{"error": {"code": 7, "message": ["x"], "hint": {}, "request_id": 1, "param": true}}', b'{"error": {}}', b"NaN",
    ],
)  # fmt: skip
def test_foreign_error_body_is_classified_by_status(body: bytes) -> None:
    error = of(503, body, x_request_id="r-9")
    assert (type(error), error.code, error.message) == (aimesh.Unavailable, "unavailable", "the server answered 503")
    assert (error.hint, error.request_id, error.param) == ("", "r-9", None)


def test_very_long_message_is_truncated() -> None:
    assert len(of(400, error_body("bad_request", message="x" * 1_000_000)).message) == 2000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"retry_after": "3"}, 3.0, id="in seconds"),
        pytest.param({"retry_after": "3", "retry_after_ms": "2500"}, 2.5, id="milliseconds are more exact"),
        pytest.param({"retry_after_ms": "soon", "retry_after": "3"}, 3.0, id="what is no number is passed over"),
        pytest.param({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None, id="a date is passed over"),
        pytest.param({"retry_after": "-1"}, None, id="below zero"),
        pytest.param({"retry_after": "inf"}, None, id="never"),
        pytest.param({"retry_after": "nan"}, None, id="no number"),
        pytest.param({}, None, id="none"),
    ],
)
def test_when_to_retry(headers: dict[str, str], seconds: float | None) -> None:
    assert of(429, error_body("rate_limited"), **headers).retry_after == seconds


def test_error_can_be_copied_and_pickled() -> None:
    error = of(404, error_body("unknown_model", param="model"), retry_after="1")
    other = copy.deepcopy(error)
    assert (type(other), str(other), vars(other)) == (aimesh.UnknownModel, "it went wrong (do this)", vars(error))
    assert not copy.copy(aimesh.ConnectionFailed("refused", may_have_arrived=False)).may_have_arrived


def test_error_in_a_stream_has_no_status() -> None:
    error = errors.from_event({"code": "worker_lost", "message": "gone", "hint": "", "request_id": "r"})
    assert (type(error), error.code, error.status, str(error)) == (aimesh.Unavailable, "worker_lost", None, "gone")


def test_all_errors_are_exported_by_the_package() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AimeshError)}
    assert {kind.__name__ for kind in tree} <= set(aimesh.__all__)
