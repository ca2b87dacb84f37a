from contextlib import suppress

import msgspec
import pytest

from features.remote_servers.worker.rules.dialects import DIALECTS, ServerLoad
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from features.remote_servers.worker.upstreams import Dialect

#: From the documentation of vLLM 0.9.1, with two engines.
VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} 7"} 300.0
vllm:num_requests_running{engine="1",model_name="a} 7"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a} 7"} 5.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 5.0
vllm:request_success_total{engine="0",finished_reason="stop"} 1.0e+06
"""
LLAMA_METRICS = b"llamacpp:requests_processing 3\nllamacpp:requests_deferred 2\nllamacpp:prompt_tokens_total 9\n"
LLAMA_SLOTS = b'[{"id": 0, "n_ctx": 2048, "is_processing": true, "params": {"n": 1}}, {"id": 1, "is_processing": false}]'
#: From the source of SGLang 0.5.4, with two engines.
SGLANG = b'sglang:num_running_reqs{model_name="m",tp_rank="0"} 3.0\nsglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0\n'
SGLANG_LOAD = b"""[
    {"rid": null, "dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 900},
    {"rid": null, "dp_rank": 1, "num_reqs": 1, "num_waiting_reqs": 0, "num_tokens": 9}
]"""
TGI = b"# TYPE tgi_queue_size gauge\ntgi_queue_size 4\n# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 8\n"


#: Dialects with a version page; its path and the models' owner tell them apart.
VERSIONED = {Dialect.VLLM: 0, Dialect.TENSORRT_LLM: 0, Dialect.OLLAMA: 0}


def test_every_dialect_has_a_row() -> None:
    assert DIALECTS.keys() == set(Dialect)


@pytest.mark.parametrize(
    ("dialect", "path", "page", "load"),
    [
        (Dialect.VLLM, "/metrics", VLLM, ServerLoad(302, 5)),
        (Dialect.LLAMA_CPP, "/metrics", LLAMA_METRICS, ServerLoad(3, 2)),
        (Dialect.LLAMA_CPP, "/slots", LLAMA_SLOTS, ServerLoad(1, slots=2)),
        (Dialect.TGI, "/metrics", TGI, ServerLoad(8, 4)),
        (Dialect.SGLANG, "/metrics", SGLANG, ServerLoad(3, 2)),
        (Dialect.SGLANG, "/get_load", SGLANG_LOAD, ServerLoad(4, 2)),
    ],
)
def test_the_load_on_a_page(dialect: Dialect, path: str, page: bytes, load: ServerLoad) -> None:
    (read,) = [found.read for found in DIALECTS[dialect].load_pages if found.path == path]
    assert read(page) == load


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"vllm:num_requests_waiting 1\n",
        b"vllm:num_requests_running -1\n",
        b"vllm:num_requests_running NaN\n",
        b"vllm:num_requests_running 1e30\n",
        b"vllm:num_requests_running many\n",
        b"\xff\x00" * 1000,
    ],
)
def test_a_page_without_a_load_is_refused(page: bytes) -> None:
    with pytest.raises((BadStream, ValueError), match=r"usable|convert"):
        DIALECTS[Dialect.VLLM].load_pages[0].read(page)


@pytest.mark.parametrize("page", [b"", b"{}", b'{"error": 501}', b"[1]", b"[" * 100_000, b"\xff"])
def test_other_slots_are_refused(page: bytes) -> None:
    with pytest.raises(UNREADABLE, match=r"\w"):
        DIALECTS[Dialect.LLAMA_CPP].load_pages[1].read(page)


@pytest.mark.parametrize(
    ("page", "dialects"),
    [
        (b'{"default_generation_settings": {}, "total_slots": 300, "model_path": "m.gguf"}', {Dialect.LLAMA_CPP: 300}),
        (b'{"version": "0.9.1"}', {**VERSIONED}),
        (b'{"model_id": "m", "max_concurrent_requests": 128, "version": "3.3.5"}', {**VERSIONED, Dialect.TGI: 128}),
        (b'{"model_path": "m", "max_running_requests": 48, "status": "ready", "version": "0.5.4"}', {**VERSIONED, Dialect.SGLANG: 48}),
        (b'{"model_path": "m", "max_running_requests": null, "version": "0.5.4"}', {**VERSIONED, Dialect.SGLANG: 0}),
        (b'{"detail": "Not Found"}', {}),
        (b"<html>", {}),
    ],
)
def test_what_a_page_tells_of_its_server(page: bytes, dialects: dict[Dialect, int]) -> None:
    found = {}
    for dialect, row in DIALECTS.items():
        if row.identity_path:
            with suppress(msgspec.MsgspecError):
                found[dialect] = row.read_identity(page)
    assert {dialect: slots for dialect, slots in found.items() if slots is not None} == dialects
