"""A strict fake of vLLM 0.11.0 or llama-server (llama.cpp of llama-cpp-python 0.3.36), as far as token ids go: it refuses undocumented
fields. A token is a byte, and the answer is always the same."""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.services.inference.fake_http import Answer, Answers

END = 0
FIRST = 10
MODEL = "m"
CONTEXT = 500

_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "ignore_eos", "presence_penalty", "frequency_penalty"}
_STREAM = {"stream", "stream_options"}
_CHAT = {"messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning_effort", "response_format", "logprobs", "n"}
FIELDS = {
    "vllm": {
        "/v1/chat/completions": {"model", "return_token_ids", "cache_salt", *_SAMPLING, *_STREAM, *_CHAT},
        "/v1/completions": {"model", "prompt", "return_token_ids", "cache_salt", *_SAMPLING, *_STREAM},
        "/tokenize": {"model", "messages", "tools", "chat_template_kwargs", "add_generation_prompt"},
        "/detokenize": {"model", "tokens"},
    },
    "llama_cpp": {
        "/v1/chat/completions": {"model", *_SAMPLING, *_STREAM, *_CHAT},
        "/completion": {"prompt", "return_tokens", "stream", *_SAMPLING},
        "/apply-template": {"model", *_SAMPLING, *_STREAM, *_CHAT},
        "/tokenize": {"content", "add_special", "parse_special", "with_pieces"},
        "/detokenize": {"model", "tokens"},
    },
}


#: Text Generation Inference 2.4.1.
TGI_FIELDS = {
    "model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty",
    "stop", "logprobs", "top_logprobs", "n", "logit_bias", "tools", "tool_choice", "tool_prompt", "response_format", "guideline",
}  # fmt: skip


_OPENAI_FIELDS = {"model", "messages", "top_logprobs", "logit_bias", *_SAMPLING, *_STREAM, *_CHAT}
#: Which of these fields SGLang 0.5.4, TensorRT-LLM 1.2 and mlx-lm 0.32.2 have. SGLang and mlx-lm ignore unknown fields.
SGLANG_FIELDS = {"repetition_penalty", "cache_salt", *_OPENAI_FIELDS}
TENSORRT_FIELDS = {"repetition_penalty", "cache_salt", *_OPENAI_FIELDS}
MLX_FIELDS = {
    "model", "messages", "tools", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "seed", "chat_template_kwargs", "stop",
}  # fmt: skip


def strict_pages(owner: str | None, known: set[str], more: dict[str, Answers]) -> dict[str, Answers]:
    """Return the pages of a server that has one model, refuses unknown fields, and answers \"Hello\"."""

    def chat(request: Any) -> Answer:
        if unknown := set(request) - known:
            return Answer([json.dumps({"error": {"message": f"unknown fields: {sorted(unknown)}", "code": 400}})], status=400)
        choice = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return Answer([_data({"choices": [choice]}), _data({"choices": [], "usage": usage}), "data: [DONE]\n\n"])

    listed = {"id": MODEL, **({} if owner is None else {"owned_by": owner})}
    return {"/v1/models": Answer([json.dumps({"data": [listed]})]), "/v1/chat/completions": chat, **more}


def ids_of(text: str) -> list[int]:
    return [FIRST + byte for byte in text.encode()]


def text_of(ids: list[int]) -> str:
    return bytes(token - FIRST for token in ids).decode("utf-8", "replace")


@dataclass
class TokenServer:
    kind: str
    answer: str
    thoughts: str = ""
    #: Die after this many tokens of an answer; None means never.
    dies_after: int | None = None
    #: Hang instead of dying. While ``is_up`` is False, /health hangs.
    hangs: bool = False
    is_up: bool = True
    #: The shortest answer; smaller limits are ignored.
    least_tokens: int = 0
    #: Added to each token id, to the answer's token count, and to the prompt's.
    wrong_ids: int = 0
    wrong_count: int = 0
    wrong_prompt: int = 0
    #: (path, request) of each generation, without probes.
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def pages(self) -> dict[str, Answers]:
        owner = "vllm" if self.kind == "vllm" else "llamacpp"
        identity = {"/version": Answer(['{"version": "0.11.0"}'])} if self.kind == "vllm" else {"/props": Answer(['{"total_slots": 4}'])}
        paths = {
            "/v1/chat/completions": self._chat, "/v1/completions": self._continue, "/completion": self._continue,
            "/tokenize": self._tokenize, "/detokenize": self._detokenize, "/apply-template": self._render,
        }  # fmt: skip
        known = {path: self._strictly(path, paths[path]) for path in FIELDS[self.kind]}
        models = Answer([json.dumps({"data": [{"id": MODEL, "owned_by": owner, "max_model_len": CONTEXT}]})])
        return {"/v1/models": models, "/health": self._health, **identity, **known}

    def _health(self, _: Any) -> Answer:
        return Answer(["{}"]) if self.is_up else Answer([], silent=True, hang=True)

    def _strictly(self, path: str, run: Any) -> Any:
        def answer(request: Any) -> Answer:
            unknown = set(request) - FIELDS[self.kind][path]
            if unknown:
                return Answer([json.dumps({"error": {"message": f"unknown fields: {sorted(unknown)}", "code": 400}})], status=400)
            if "ompletion" in path and request["max_tokens"] > 1:
                self.asked.append((path, request))
            return run(request)  # type: ignore[no-any-return]

        return answer

    def _prompt(self, request: Any) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in request["messages"]) + "<assistant>"

    def _render(self, request: Any) -> Answer:
        return Answer([json.dumps({"prompt": self._prompt(request)})])

    def _tokenize(self, request: Any) -> Answer:
        ids = ids_of(request["content"] if "content" in request else self._prompt(request))
        if not request.get("with_pieces"):
            return Answer([json.dumps({"tokens": ids, "count": len(ids)})])
        # Like sentencepiece, begin with a space.
        pieces = [{"id": token, "piece": [token - FIRST]} for token in [FIRST + 32, *ids]]
        return Answer([json.dumps({"tokens": pieces})])

    def _detokenize(self, request: Any) -> Answer:
        return Answer([json.dumps({"prompt" if self.kind == "vllm" else "content": text_of(request["tokens"])})])

    def _chat(self, request: Any) -> Answer:
        assert request["stream_options"] == {"include_usage": True}
        return self._generate(request, len(ids_of(self._prompt(request))), [], is_chat=True)

    def _continue(self, request: Any) -> Answer:
        rendered, _, written = text_of(request["prompt"]).rpartition("<assistant>")
        assert rendered
        return self._generate(request, len(request["prompt"]), ids_of(written), is_chat=False)

    def _generate(self, request: Any, prompt_tokens: int, written: list[int], *, is_chat: bool) -> Answer:
        whole = ids_of(self.thoughts + self.answer)
        assert written == whole[: len(written)], "it continues another answer"
        left = [*whole[len(written) :], END][: max(request["max_tokens"], self.least_tokens)]
        events, held = [], b""
        thoughts = len(self.thoughts.encode()) - len(written)
        for number, token in enumerate(left):
            held += b"" if token == END else bytes([token - FIRST])
            text = held.decode("utf-8", "ignore") if _is_whole(held) else ""
            is_thought = is_chat and number < thoughts
            held = b"" if text else held
            events.append(self._event(request, text, token + self.wrong_ids, number + 1, prompt_tokens, is_chat=is_chat, thinks=is_thought))
        parts = [event for event in events if event]
        # Probes get complete answers.
        if self.dies_after is not None and request["max_tokens"] > 1 and self.dies_after <= len(events):
            return Answer([event for event in events[: self.dies_after] if event], hang=self.hangs)
        return Answer(
            [*parts, *self._last(left[-1] == END, prompt_tokens + self.wrong_prompt, len(left) + self.wrong_count, is_chat=is_chat)]
        )

    def _event(self, request: Any, text: str, token: int, count: int, prompt_tokens: int, *, is_chat: bool, thinks: bool) -> str:
        if self.kind == "llama_cpp" and not is_chat:
            if not text and token != END:
                # llama-server sends nothing of an incomplete character, not even its tokens.
                return ""
            counts = {"tokens_predicted": count, "tokens_evaluated": prompt_tokens}
            return _data({"content": text, "tokens": [token], "stop": False, **counts})
        ids = {"token_ids": [token]} if request.get("return_token_ids") else {}
        if is_chat:
            return _data({"choices": [{"index": 0, "delta": {"reasoning" if thinks else "content": text}, "finish_reason": None, **ids}]})
        return _data({"choices": [{"index": 0, "text": text, "finish_reason": None, **ids}]})

    def _last(self, has_ended: bool, prompt_tokens: int, count: int, *, is_chat: bool) -> list[str]:
        if self.kind == "llama_cpp" and not is_chat:
            stop = {"stop": True, "stop_type": "eos" if has_ended else "limit"}
            return [_data({"content": "", "tokens": [], **stop, "tokens_predicted": count, "tokens_evaluated": prompt_tokens})]
        choice = {"index": 0, "finish_reason": "stop" if has_ended else "length", "stop_reason": None}
        choice |= {"delta": {}} if is_chat else {"text": ""}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
        return [_data({"choices": [choice]}), _data({"choices": [], "usage": usage}), "data: [DONE]\n\n"]


def _is_whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _data(event: Any) -> str:
    return f"data: {json.dumps(event)}\n\n"
