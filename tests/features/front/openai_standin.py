"""A vLLM or an LM Studio without an engine: `python -m tests.features.front.openai_standin PORT KIND`.

Its model repeats the last message word by word. It prints a line once it listens, and ends with its stdin.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VLLM_MODEL, STUDIO_MODEL = "Qwen/Qwen3-8B", "qwen/qwen3-4b"
PAGES: dict[str, dict[str, Any]] = {
    "vllm": {
        "/version": {"version": "0.11.0"},
        "/v1/models": {"data": [{"id": VLLM_MODEL, "owned_by": "vllm", "max_model_len": 32768}]},
    },
    "lm_studio": {
        "/api/v0/models": {"data": [{"id": STUDIO_MODEL, "type": "llm", "quantization": "Q4_K_M", "loaded_context_length": 8192}]},
        "/v1/models": {"data": [{"id": STUDIO_MODEL, "owned_by": "organization_owner"}]},
    },
}


class OpenAIStandIn(BaseHTTPRequestHandler):
    pages: dict[str, Any]

    def do_GET(self) -> None:
        page = self.pages.get(self.path)
        self._answer(json.dumps(page or {"error": "not found"}), "application/json", 404 if page is None else 200)

    def do_POST(self) -> None:
        words = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"].split()
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words)}
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": f"{word} "}}]} for word in words]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
        self._answer("".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n", "text/event-stream", 200)

    def _answer(self, body: str, kind: str, status: int) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    OpenAIStandIn.pages = PAGES[sys.argv[2]]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), OpenAIStandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("listening", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
