"""models.yaml: what is accepted, and how mistakes are reported."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.engine_messages import KvMode, KvType, KvTypes, SplitMode
from services.inference.models import models_file, yaml_tree
from services.inference.models.catalog import (
    MAX_CHARACTERS,
    CatalogAdapter,
    CatalogEntry,
    CatalogReading,
    Defaults,
    ModelProgram,
    RemoteModel,
)
from shared import features
from shared.types import LoadPurpose, ModelName

FOLDER = Path("/srv/models")
DEFAULTS = Defaults()


#: As the documents that ordered this platform have them.
REGISTRY = """apiVersion: v1
kind: ConfigMap
metadata:
  name: model-registry
  namespace: ai-gateway
data:
  models.yaml: |
    - name: llm-gptq
      service: llm-gptq-service.ai-models.svc.cluster.local
      path: /infer
    - name: embeddings
      service: embedding-service.ai-models.svc.cluster.local
      path: /infer
"""
INFERENCE_BLOCK = """inference:
  engine: vllm
  models:
    - name: llama-2-7b
      replicas: 3
      gpu_memory: 16GB
      max_batch_size: 32
    - name: mistral-7b
      replicas: 2
      gpu_memory: 16GB
      max_batch_size: 16
"""


def read(text: str, found: dict[str, Path] | None = None, defaults: Defaults = DEFAULTS) -> CatalogReading:
    return models_file.read(text, source="models.yaml", folder=FOLDER, found=found or {}, defaults=defaults)


def entries(text: str, found: dict[str, Path] | None = None) -> list[CatalogEntry]:
    reading = read(text, found)
    assert not reading.mistakes
    return reading.entries


def entry(name: str = "a", file: str = "a.gguf", **fields: Any) -> CatalogEntry:
    return CatalogEntry(name=ModelName(name), file=FOLDER / file, **fields)


def adapter(name: str, file: Path, scale: float = 1.0) -> CatalogAdapter:
    return CatalogAdapter(ModelName(name), file, scale)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        pytest.param("", {}, id="name and file are enough"),
        pytest.param(f"digest: sha256:{'AB' * 32}", {"digest": "ab" * 32}, id="a digest, however it is written"),
        pytest.param("aliases: [b, c]", {"aliases": ("b", "c")}, id="several aliases"),
        pytest.param("aliases: b", {"aliases": ("b",)}, id="one alias"),
        pytest.param("context: 8192", {"context_tokens": 8192}, id="context"),
        pytest.param("slots: 8", {"slots": 8}, id="slots"),
        pytest.param("memory: 4GiB", {"memory_bytes": 4 * 2**30}, id="memory with its unit"),
        pytest.param("memory: 4000000000", {"memory_bytes": 4 * 10**9}, id="memory in bytes"),
        pytest.param("replicas: 2", {"replicas": 2}, id="replicas"),
        pytest.param("gpu_layers: 0", {"gpu_layers": 0}, id="no layer on the GPU"),
        pytest.param("keep_alive: 5m", {"keep_alive_seconds": 300.0}, id="keep-alive"),
        pytest.param("keep_alive: forever", {"keep_alive_seconds": None}, id="for ever"),
        pytest.param("pin: yes\n  preload: true", {"pinned": True, "preload": True}, id="pinned and loaded at start"),
        pytest.param(
            "kv_mode: shared\n  kv_type: q8_0", {"kv_mode": KvMode.SHARED, "kv_type": KvTypes(KvType.Q8_0)}, id="how its memory is kept"
        ),
        pytest.param("kv_type: q8_0/q4_0", {"kv_type": KvTypes(KvType.Q8_0, KvType.Q4_0)}, id="keys and values"),
        pytest.param("speculation: off", {"speculates": False}, id="no drafts"),
        pytest.param("speculation: auto", {"speculates": True}, id="drafts where they pay"),
        pytest.param("replicas: auto", {"replicas": None}, id="a replica for each GPU"),
        pytest.param("cpu_experts: all", {"cpu_experts": 512}, id="all experts"),
        pytest.param("cpu_experts: 7", {"cpu_experts": 7}, id="the experts of 7 layers"),
        pytest.param("split_mode: row", {"split_mode": SplitMode.ROW}, id="how GPUs share it"),
        pytest.param(
            "override_tensor: ['blk\\.(1|2)\\.ffn.*=CPU', a=CUDA0]",
            {"override_tensor": ("blk\\.(1|2)\\.ffn.*=CPU", "a=CUDA0")},
            id="tensors",
        ),
        pytest.param(
            "adapters: {sql: {file: sql.gguf, scale: 0.5}, law-2: {file: /l.gguf}}",
            {"adapters": (adapter("a:sql", FOLDER / "sql.gguf", 0.5), adapter("a:law-2", Path("/l.gguf")))},
            id="adapters",
        ),
        pytest.param("device: 1", {"device": 1}, id="one GPU"),
        pytest.param("tensor_split: [3, 1.5]", {"tensor_split": (3.0, 1.5)}, id="shares of two GPUs"),
        pytest.param(
            "temperature: 0\n  top_p: 0.9\n  repeat_penalty: 1.1",
            {"temperature": 0.0, "top_p": 0.9, "repeat_penalty": 1.1},
            id="how it draws tokens",
        ),
        pytest.param("slots:\n  digest: ~", {}, id="a field without a value is as if it were not there"),
    ],
)
def test_field_values(field: str, expected: dict[str, Any]) -> None:
    assert entries(f"models:\n- name: a\n  file: a.gguf\n  {field}\n") == [entry(**expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("- {name: a, file: a.gguf}", [entry()], id="a bare list"),
        pytest.param("models: [{name: a, file: /x/b.gguf}]", [entry(file="/x/b.gguf")], id="an absolute path stays"),
        pytest.param("- {name: a}", [entry(file="found.gguf")], id="without a file, the one of its name in the folder"),
        pytest.param("- &x {name: a, file: a.gguf}\n- {name: b, file: a.gguf}", [entry(), entry("b")], id="anchors are YAML"),
        pytest.param("- {name: 7, file: a.gguf}", [entry("7")], id="a name that looks like a number is a name"),
    ],
)
def test_file_forms(text: str, expected: list[CatalogEntry]) -> None:
    assert entries(text, {"a": FOLDER / "found.gguf"}) == expected


def test_registry_of_services_is_accepted_as_is() -> None:
    text = """
    - name: llm-gptq
      service: llm-gptq-service.ai-models.svc.cluster.local
      path: /infer
    - name: embeddings
      service: embedding-service.ai-models.svc.cluster.local
      path: /infer
    """
    reading = read(text, {"embeddings": FOLDER / "embeddings.gguf"})
    assert not reading.mistakes
    assert reading.elsewhere == [RemoteModel(ModelName("llm-gptq"), "llm-gptq-service.ai-models.svc.cluster.local", "/infer")]
    assert reading.entries == [entry("embeddings", "embeddings.gguf")]


def test_an_entry_of_a_registry_with_its_options() -> None:
    text = "- {name: a, service: 'http://h:8080', answer: /out/0, aliases: [b], context: 512, slots: 2, device: 1}"
    assert read(text).elsewhere == [
        RemoteModel(ModelName("a"), "http://h:8080", "/infer", "/out/0", aliases=(ModelName("b"),), context_tokens=512, slots=2)
    ]


def test_the_registry_of_a_source_document_loads_as_it_stands() -> None:
    reading = read(REGISTRY)
    assert not reading.mistakes
    assert reading.elsewhere == [
        RemoteModel(ModelName("llm-gptq"), "llm-gptq-service.ai-models.svc.cluster.local", "/infer"),
        RemoteModel(ModelName("embeddings"), "embedding-service.ai-models.svc.cluster.local", "/infer"),
    ]


def test_nested_config_map_is_not_opened() -> None:
    inner = "kind: ConfigMap\\ndata: {a: '- {name: a, file: b}'}"
    (mistake, *_) = read(f'kind: ConfigMap\ndata: {{x: "{inner}"}}').mistakes
    assert "the text in data" in mistake


def test_files_here_replace_the_program_of_a_source_document() -> None:
    found = {"llama-2-7b": FOLDER / "llama.gguf", "mistral-7b": FOLDER / "mistral.gguf"}
    assert entries(INFERENCE_BLOCK, found) == [
        entry("llama-2-7b", "llama.gguf", replicas=3, memory_bytes=16 * 10**9, slots=32),
        entry("mistral-7b", "mistral.gguf", replicas=2, memory_bytes=16 * 10**9, slots=16),
    ]


def test_the_inference_block_of_a_source_document_loads_as_it_stands() -> None:
    first, second = entries(INFERENCE_BLOCK)
    for found, name, replicas, slots in ((first, "llama-2-7b", 3, 32), (second, "mistral-7b", 2, 16)):
        command = f"vllm serve {name} --served-model-name {name} --max-num-seqs {slots} --host 127.0.0.1 --port {{port}}"
        program = ModelProgram(tuple(command.split()))
        assert found == Defaults().entry(
            name=ModelName(name), file=Path("vllm"), program=program, replicas=replicas, memory_bytes=16 * 10**9, slots=slots
        )
    assert [found.program is None for found in entries(INFERENCE_BLOCK, {"mistral-7b": FOLDER / "mistral.gguf"})] == [False, True]


@pytest.mark.parametrize("purpose", LoadPurpose)
def test_a_purpose(purpose: LoadPurpose) -> None:
    first, second = entries(f"- {{name: a, file: a, for: {purpose}}}\n- {{name: b, file: b}}")
    assert (first.purpose, second.purpose) == (purpose, LoadPurpose.CHATS)


@pytest.fixture
def dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a feature of the test."""
    part = SimpleNamespace(__name__="features.hello.worker.part", DIALECTS={"vllm": "vllm", "llama_cpp": "llama_cpp"})
    monkeypatch.setattr(features, "modules", lambda _place: [part])


@pytest.mark.usefixtures("dialects")
def test_a_program() -> None:
    (found,) = entries(f"""
    - name: a
      program: run 'the server' --port={{port}}
      memory: 1GB
      dialect: llama_cpp
      ready_timeout: 2m
      tools: true
      digest: {"ab" * 32}
    """)
    assert found.program == ModelProgram(("run", "the server", "--port={port}"), "llama_cpp", 120.0, tools=True)
    assert (found.memory_bytes, found.digest) == (10**9, "ab" * 32)


@pytest.mark.usefixtures("dialects")
@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ("program: serve, memory: 1GB", "needs {port}"),
        ("program: serve {port}", "needs `memory`"),
        ("program: serve {port}, memory: 1GB, kv_type: q8_0", "kv_type: is not for a program"),
        ("program: serve {port}, memory: 1GB, speculation: off", "speculation: is not for a program"),
        ("program: serve {port}, memory: 1GB, file: a.gguf", "file: is not for a program"),
        ("program: serve {port}, memory: 1GB, adapters: {b: {file: x}}", "adapters: is not for a program"),
        ("dialect: vllm, memory: 1GB", "dialect: needs `program`"),
        ("program: serve {port}, memory: 1GB, for: agents", "for: is not for a program"),
        ("program: serve {port}, memory: 1GB, dialect: klingon", "dialect: 'klingon' is not one of"),
        ("program: 'serve \"{port}', memory: 1GB", "No closing quotation"),
    ],
)
def test_mistakes_in_programs(fields: str, mistake: str) -> None:
    (found,) = read("\n  ".join(["- name: a", *fields.split(", ")])).mistakes
    assert mistake in found


def test_projector_is_relative_to_the_file() -> None:
    (found,) = entries("- {name: a, file: a.gguf, projector: mmproj-a.gguf}")
    assert found.projector == found.file.with_name("mmproj-a.gguf")
    assert not found.projector_is_optional


def test_worker_settings_are_the_defaults() -> None:
    defaults = Defaults(slots=7, context_tokens=512, gpu_layers=3, keep_alive_seconds=60.0)
    reading = read("- {name: a, file: a.gguf}\n- {name: b, file: b.gguf, slots: 1, keep_alive: forever}", defaults=defaults)
    assert reading.entries == [
        entry(slots=7, context_tokens=512, gpu_layers=3, keep_alive_seconds=60.0),
        entry("b", "b.gguf", slots=1, context_tokens=512, gpu_layers=3, keep_alive_seconds=None),
    ]


def test_example_is_valid_and_explains_every_field() -> None:
    text = (Path(__file__).parents[4] / "deploy/models.example.yaml").read_text()
    assert [found.name for found in entries(text)] == ["gemma3-4b", "llama3", "mistral", "qwen3"]
    explained = {line.removeprefix("#   ").partition(":")[0] for line in text.splitlines() if line.startswith("#   ")}
    assert explained == {*models_file.FIELDS} - {"gpu_memory", "max_batch_size"}


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        pytest.param("- name: a\n  file: a\n  slots: 0", "line 3, models[0].slots: '0' is not a whole number from 1 to 256", id="place"),
        pytest.param("- {name: a, file: a, slots: 4.5}", "models[0].slots: '4.5' is not a whole number", id="half a slot"),
        pytest.param("- {name: a, file: a, slots: [4]}", "models[0].slots: must be one value", id="a list for a number"),
        pytest.param(
            "- {name: a, file: a, slot: 4}", "models[0].slot: is not a field; did you mean slots?", id="a field that is nearly right"
        ),
        pytest.param("- {name: a, file: a, keep-alive: 4}", "is not a field; did you mean keep_alive?", id="a dash"),
        pytest.param("- {name: a, file: a, colour: red}", "models[0].colour: is not a field; the fields are name, file", id="unknown"),
        pytest.param("- {name: a, file: a, slots: 1, slots: 2}", "models[0].slots: appears twice", id="a field twice"),
        pytest.param("- {name: a, file: a, slots: 1, max_batch_size: 2}", "means the same as slots", id="two names of one field"),
        pytest.param("- {name: a, file: a, for: agent}", "models[0].for: 'agent' is not one of chats, agents", id="no purpose"),
        pytest.param("- {file: a}", "models[0]: has no name", id="no name"),
        pytest.param("- {name: a}", "has no `file:`, and there is no a.gguf in MODELS_DIR", id="no file"),
        pytest.param("- {name: a, file: ''}", "models[0].file: is empty", id="an empty file"),
        pytest.param("- {name: a, service: s, path: y}", "path: must be a path such as /infer", id="a relative path"),
        pytest.param("- {name: a, service: s, path: '/a b'}", "path: must be a path such as /infer", id="a path with a blank"),
        pytest.param("- {name: a, service: s, answer: text}", "answer: must be a JSON pointer", id="no pointer"),
        pytest.param("- {name: a, file: x, answer: /y}", "answer: needs `service`", id="an answer of a file"),
        pytest.param("- {name: a, file: x, port: 81}", "port: needs `service`", id="port for file"),
        pytest.param("- {name: a, service: s, port: 0}", "port: '0' is not a whole number from 1 to 65535", id="a port that is none"),
        pytest.param("- {name: a, file: x, path: /y}", "path: needs `service`; the model's file is `file:`", id="path for file"),
        pytest.param(
            "- {name: a, file: ~nobody-here/x}", "file: '~nobody-here/x' starts with the home of an unknown user", id="no such home"
        ),
        pytest.param('- {name: "a\\tb", file: x}', "models[0].name: 'a\\tb': a name must not contain", id="a tab in a name"),
        pytest.param('- {name: "\\ud800", file: x}', "models[0].name: '\\ud800': a name must not contain", id="half a character"),
        pytest.param(f"- {{name: {'a' * 101}, file: x}}", "a name has 1 to 100 characters", id="a long name"),
        pytest.param("- {name: a, file: x, digest: abc}", "models[0].digest: must be a SHA-256", id="a short digest"),
        pytest.param("- {name: a, file: x, memory: lots}", "models[0].memory: 'lots' is not a size", id="no size"),
        pytest.param("- {name: a, file: x, keep_alive: a while}", "models[0].keep_alive: 'a while' is not a duration", id="no duration"),
        pytest.param(
            "- {name: a, file: x, pin: perhaps}", "models[0].pin: 'perhaps' is not one of true, yes, on, false, no, off", id="no flag"
        ),
        pytest.param("- {name: a, file: x, kv_mode: best}", "models[0].kv_mode: 'best' is not one of exact, shared", id="no mode"),
        pytest.param("- {name: a, file: x, kv_type: q8_0/f32}", "'q8_0/f32' must be one of f16, bf16, q8_0, q4_0", id="no type"),
        pytest.param("- {name: a, file: x, kv_type: f16/f16/f16}", "must be one of f16", id="three types"),
        pytest.param("- {name: a, file: x, speculation: draft}", "speculation: 'draft' is not one of auto, off", id="no speculation"),
        pytest.param("- {name: a, file: x, replicas: some}", "'some' is not a whole number from 1 to 16", id="no number of replicas"),
        pytest.param("- {name: a, file: x, split_mode: tensor}", "'tensor' is not one of layer, row, none", id="no split"),
        pytest.param("- {name: a, file: x, override_tensor: '(=CPU'}", "'(' is not a regular expression: missing )", id="no pattern"),
        pytest.param("- {name: a, file: x, adapters: [b]}", "adapters: must have a field for each adapter", id="a list of adapters"),
        pytest.param("- {name: a, file: x, adapters: {b: b.gguf}}", "b: an adapter has the fields `file` and `scale`", id="no fields"),
        pytest.param("- {name: a, file: x, adapters: {b: {scale: 1}}}", "b: an adapter has the fields `file` and `scale`", id="no adapter"),
        pytest.param("- {name: a, file: x, adapters: {b: {file: x, scale: 0}}}", "'0' is not a number from 0.001 to 100", id="no scale"),
        pytest.param("- {name: a, file: x, adapters: {'b:c': {file: x}}}", "'b:c': the name of an adapter has letters", id="a colon"),
        pytest.param("- {name: a, file: x, adapters: {latest: {file: x}}}", "and isn't `latest`", id="the latest adapter"),
        pytest.param("- {name: a, file: x, adapters: {b: {file: x}, b: {file: y}}}", "has an adapter twice", id="an adapter twice"),
        pytest.param(
            f"- {{name: a, file: x, adapters: {{{', '.join(f'b{at}: {{file: x}}' for at in range(17))}}}}}",
            "has 17 adapters; at most 16 are allowed",
            id="too many adapters",
        ),
        pytest.param(
            f"- {{name: a, file: x, adapters: {{{'b' * 100}: {{file: x}}}}}}",
            "adapters: a name has 1 to 100 characters",
            id="a long adapter",
        ),
        pytest.param("- {name: a, file: x, override_tensor: blk}", "must be up to 16 patterns of tensors with a device", id="no device"),
        pytest.param("- {name: a, file: x, tensor_split: [a]}", "models[0].tensor_split: must be up to 16 numbers", id="no share"),
        pytest.param("- {name: a, file: x, tensor_split: [0, 0]}", "must have a share above 0", id="no shares"),
        pytest.param("- {name: a, file: x, temperature: 2.1}", "temperature: '2.1' is not a number from 0 to 2", id="too hot"),
        pytest.param("- {name: a, file: x, top_p: 0}", "models[0].top_p: '0' is not a number from 0.01 to 1", id="no token left"),
        pytest.param("- a", "models[0]: must have fields", id="an entry that is a word"),
        pytest.param("a: 1", "a: is not a field; the fields are models", id="not a catalogue"),
        pytest.param("models: {a: 1}", "there is no list of models", id="models that are no list"),
        pytest.param("", "there is no list of models", id="an empty file"),
        pytest.param("inference: {models: 3}", "there is no list of models", id="inference without a list"),
        pytest.param("- {name: a", "models.yaml: line 1: ", id="no YAML"),
        pytest.param("- [a]: 1", "a field's name must be a single value", id="a list for a name"),
        pytest.param("--- a\n--- b", "another document", id="two documents"),
        pytest.param("kind: ConfigMap\ndata: {}", "a ConfigMap must contain exactly one text", id="an empty ConfigMap"),
        pytest.param("- !!python/object/apply:os.system [rm]", "models[0]: must have fields", id="tags construct nothing"),
        pytest.param("x" * (MAX_CHARACTERS + 1), f"at most {MAX_CHARACTERS} are allowed", id="a text without end"),
    ],
)
def test_mistake_is_reported_with_its_line(text: str, mistake: str) -> None:
    reading = read(text)
    assert mistake in "\n".join(reading.mistakes)
    assert all(mistake.startswith("models.yaml") for mistake in reading.mistakes)


def test_all_mistakes_are_reported_together() -> None:
    reading = read("models:\n- {name: a, file: x, slots: 0, memory: 0}\n- {name: b, colour: 3}\n")
    assert [mistake.partition(":")[0] for mistake in reading.mistakes] == [
        "models.yaml line 2, models[0].slots",
        "models.yaml line 2, models[0].memory",
        "models.yaml line 3, models[1].colour",
        "models.yaml line 3, models[1]",
    ]


def test_too_many_mistakes_are_counted() -> None:
    reading = read("- {}\n" * 500)
    assert len(reading.mistakes) == models_file.MAX_MISTAKES + 1
    assert "450 more mistakes" in reading.mistakes[-1]


_LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(_LAUGHS, id="aliases of aliases"),
        pytest.param("&a [*a]", id="an alias of itself"),
        pytest.param("[" * 100_000, id="brackets"),
        pytest.param("- " * 100_000, id="dashes"),
        pytest.param("? " * 100_000, id="question marks"),
        pytest.param("- {name: a}\n" * 80_000, id="entries"),
    ],
)
def test_yaml_bomb_is_refused(text: str) -> None:
    with pytest.raises(yaml_tree.NotReadable, match=r"more than 10000 values|more than 32 levels deep"):
        yaml_tree.read(text)


@given(st.text(max_size=200) | st.text("[]{}:,-?&*!|>'\"#%@` \n\tab<", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    reading = read(text)
    assert all(mistake.startswith("models.yaml") for mistake in reading.mistakes)
    assert all(found.name.isprintable() for found in reading.entries)
