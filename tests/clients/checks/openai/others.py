"""Completions, embeddings, models and moderations, and how errors look."""

import base64
import struct
from functools import partial
from typing import Any

import openai
from checklist import error_of
from openai.types import completion_create_params, embedding_create_params, file_create_params, moderation_create_params

from checks.openai.client import MODEL, SCRIPTED, checks, client, has_no_effect, is_refused, works

# --- completions, which only the model of the mesh's own engine continues --------------------------------------------------------

complete = client.completions.with_raw_response.create


def text(**fields: Any) -> Any:
    return works(complete, **{"model": MODEL, "prompt": "One, two,", "max_tokens": 3, "temperature": 0, **fields})


def _accepted(name: str, value: Any) -> None:
    assert text(**{name: value}).choices[0].text


for name, value in {
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": {"42": -50},
}.items():
    checks.add(f"completions.{name}", partial(_accepted, name, value))


@checks("completions.model", "completions.prompt")
def _() -> None:
    answer = text(prompt=["One, two,", "Red, green,"])
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert [choice.index for choice in answer.choices] == [0, 1]


@checks("completions.max_tokens")
def _() -> None:
    answer = text(max_tokens=2)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (2, "length")


@checks("completions.n", "completions.best_of")
def _() -> None:
    assert len(text(n=2, best_of=2).choices) == 2
    is_refused(complete, "n", model=MODEL, prompt="One", n=1, best_of=2, max_tokens=1, param="best_of")


@checks("completions.echo")
def _() -> None:
    assert text(echo=True).choices[0].text.startswith("One, two,")


@checks("completions.logprobs")
def _() -> None:
    found = text(logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 3
    assert len(found.top_logprobs[0]) >= 2


@checks("completions.seed")
def _() -> None:
    first, second = (text(seed=7, temperature=1, max_tokens=8).choices[0].text for _ in range(2))
    assert first == second


@checks("completions.stop")
def _() -> None:
    assert "," not in text(stop=[","], max_tokens=20).choices[0].text


@checks("completions.suffix")
def _() -> None:
    # The default model was not trained to fill gaps.
    is_refused(complete, "suffix: this model cannot fill gaps", model=MODEL, prompt="One", suffix="three", max_tokens=1)


@checks("completions.user")
def _() -> None:
    has_no_effect(complete, "user", model=MODEL, prompt="One", max_tokens=1, user="ada")


@checks("completions.stream", "completions.stream_options")
def _() -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3, "stream": True}
    *chunks, last = client.completions.create(**fields, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], 3)


checks.ensure_named("completions", completion_create_params.CompletionCreateParamsBase.__annotations__)

# --- embeddings -----------------------------------------------------------------------------------------------------------------

embed = client.embeddings.with_raw_response.create


@checks("embeddings.model", "embeddings.input")
def _() -> None:
    answer = works(embed, model=MODEL, input=["Rome", "Paris"])
    assert [each.index for each in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert works(embed, model=MODEL, input="Rome").data[0].embedding == answer.data[0].embedding


@checks("embeddings.input tokens")
def _() -> None:
    assert len(works(embed, model=MODEL, input=[[1, 2, 3], [4]]).data) == 2
    assert len(works(embed, model=MODEL, input=[1, 2, 3]).data) == 1


@checks("embeddings.encoding_format")
def _() -> None:
    numbers = works(embed, model=MODEL, input="Rome", encoding_format="float").data[0].embedding
    packed = base64.b64decode(works(embed, model=MODEL, input="Rome", encoding_format="base64").data[0].embedding)
    assert len(struct.unpack(f"<{len(packed) // 4}f", packed)) == len(numbers)


@checks("embeddings.dimensions")
def _() -> None:
    vector = works(embed, model=MODEL, input="Rome", dimensions=16).data[0].embedding
    assert len(vector) == 16
    assert abs(sum(number**2 for number in vector) - 1) < 1e-3


@checks("embeddings.user")
def _() -> None:
    has_no_effect(embed, "user", model=MODEL, input="Rome", user="ada")


checks.ensure_named("embeddings", embedding_create_params.EmbeddingCreateParams.__annotations__)

# --- moderations and models -----------------------------------------------------------------------------------------------------


@checks("moderations.model", "moderations.input")
def _() -> None:
    answer = client.moderations.create(model="moderation", input=["be kind", "hurt them"])
    assert [(each.flagged, each.categories.violence, each.category_scores.violence) for each in answer.results] == [
        (False, False, 0.0),
        (True, True, 1.0),
    ]
    assert client.moderations.create(input="be kind").results[0].flagged is False


@checks("moderations.input image_url")
def _() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert error_of(openai.BadRequestError, partial(client.moderations.create, input=[picture])).param == "input[0]"


checks.ensure_named("moderations", moderation_create_params.ModerationCreateParams.__annotations__)


@checks("models.list()")
def _() -> None:
    assert {MODEL, SCRIPTED} <= {model.id for model in client.models.list()}


@checks("models.retrieve()")
def _() -> None:
    found = client.models.retrieve(SCRIPTED)
    assert (found.id, found.object) == (SCRIPTED, "model")
    assert found.created > 0
    assert found.owned_by
    assert error_of(openai.NotFoundError, partial(client.models.retrieve, "gpt-9")).code == "model_not_found"


# --- files ----------------------------------------------------------------------------------------------------------------------


@checks("files.create()", "files.file", "files.purpose", "files.expires_after", "files.retrieve()", "files.content()", "files.delete()")
def _() -> None:
    made = client.files.create(
        file=("größe.txt", b"0123456789"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", 10, "größe.txt", "user_data")
    assert made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id) == client.files.wait_for_processing(made.id) == made
    assert client.files.content(made.id).read() == b"0123456789"
    assert client.files.content(made.id, extra_headers={"Range": "bytes=-3"}).read() == b"789"
    assert client.files.delete(made.id).deleted
    assert error_of(openai.NotFoundError, partial(client.files.retrieve, made.id)).code == "not_found"


@checks("files.list()")
def _() -> None:
    made = [client.files.create(file=f"{number}\n".encode() * 100_000, purpose="evals").id for number in range(3)]
    assert [file.id for file in client.files.list(purpose="evals", limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(purpose="evals", order="asc", after=made[0])] == made[1:]
    assert client.files.content(made[2]).read() == b"2\n" * 100_000
    for each in made:
        client.files.delete(each)


@checks("files.create() refused")
def _() -> None:
    create = client.files.create
    for fields in ({"file": b"x", "purpose": "fun"}, {"file": ("../a", b"x"), "purpose": "batch"}):
        assert error_of(openai.BadRequestError, partial(create, **fields)).param in fields
    ask = partial(client.uploads.create, bytes=1, filename="a", mime_type="text/plain", purpose="batch")
    assert "/v1/files" in error_of(openai.NotFoundError, ask).message


checks.ensure_named("files", file_create_params.FileCreateParams.__annotations__)


# --- errors and options of the client -------------------------------------------------------------------------------------------


@checks("AuthenticationError")
def _() -> None:
    error = error_of(openai.AuthenticationError, partial(client.with_options(api_key="wrong").models.list))
    assert error.code == "invalid_api_key"
    assert error.request_id


@checks("BadRequestError")
def _() -> None:
    error = error_of(openai.BadRequestError, partial(client.chat.completions.create, model=SCRIPTED, messages=[]))
    assert (error.param, error.type) == ("messages", "invalid_request_error")


@checks("context_length_exceeded")
def _() -> None:
    ask = partial(client.chat.completions.create, model=MODEL, messages=[{"role": "user", "content": "word " * 50_000}])
    assert error_of(openai.BadRequestError, ask).code == "context_length_exceeded"


@checks("default_headers")
def _() -> None:
    strict = client.with_options(default_headers={"x-aimesh-strict": "1"})
    ask = partial(strict.embeddings.create, model=MODEL, input="Rome", extra_body={"next_year": 1})
    assert error_of(openai.BadRequestError, ask).param == "next_year"


@checks("idempotency_key")
def _() -> None:
    fields: dict[str, Any] = {"model": SCRIPTED, "messages": [{"role": "user", "content": "Hi"}]}
    first, again = (
        client.chat.completions.with_raw_response.create(**fields, extra_headers={"Idempotency-Key": "openai-python-1"}) for _ in range(2)
    )
    assert again.headers["idempotent-replayed"] == "true"
    assert again.parse().choices == first.parse().choices


@checks("webhook and undocumented requests")
def _() -> None:
    assert client.get("/models", cast_to=dict[str, Any])["object"] == "list"
