"""An Ollama without an engine, as its version 0.40.12 answers: `python -m tests.features.front.ollama_standin [PORT [HOST]]`.

Its models echo the last message word by word. It prints a line once it listens, and ends with its stdin.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "0.40.12"


def _model(name: str, digest: str, capabilities: tuple[str, ...], **more: Any) -> dict[str, Any]:
    return {"name": name, "digest": digest * 64, "capabilities": list(capabilities), "size": 5_200_000_000, **more}


#: Four that are shared at once, one for vectors, one made here, and one that runs elsewhere.
MODELS: tuple[dict[str, Any], ...] = (
    _model("qwen3:8b", "1", ("completion", "tools", "thinking")),
    _model("llama3.2:latest", "2", ("completion", "tools")),
    _model("gemma3:4b", "3", ("completion", "vision")),
    _model("hf.co/unsloth/Qwen3-4B-GGUF:Q4_K_M", "4", ("completion", "tools")),
    _model("bge-m3:latest", "5", ("embedding",)),
    _model("mine:latest", "6", ("completion",), parent_model="qwen3:8b"),
    _model("gpt-oss:120b-cloud", "7", ("completion", "tools"), remote_model="gpt-oss:120b", remote_host="https://ollama.com:443"),
)


class OllamaStandIn(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        match self.path:
            case "/api/version":
                self._answer({"version": VERSION})
            case "/api/tags":
                self._answer({"models": [_listed(model) for model in MODELS]})
            case "/api/ps":
                self._answer({"models": [{"name": "qwen3:8b", "context_length": 40960}]})
            case _:
                self._answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = next((model for model in MODELS if model["name"] == asked.get("model")), None)
        if found is None:
            self._answer({"error": f"model '{asked.get('model')}' not found"}, 404)
        elif self.path == "/api/show":
            details = {"parent_model": found.get("parent_model", ""), "format": "gguf", "quantization_level": "Q4_K_M"}
            self._answer({"capabilities": found["capabilities"], "details": details, "model_info": {"general.architecture": "qwen3"}})
        elif self.path == "/api/chat":
            self._chat(found["name"], asked["messages"][-1]["content"])
        else:
            self._answer({"error": "not found"}, 404)

    def _chat(self, model: str, text: str) -> None:
        words = [word + " " for word in text.split()]
        lines: list[dict[str, Any]] = [{"model": model, "message": {"role": "assistant", "content": word}, "done": False} for word in words]
        counts = {"prompt_eval_count": len(words) + 8, "eval_count": len(words)}
        lines.append({"model": model, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", **counts})
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for line in lines:
            written = json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(written), written))
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _listed(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "parent_model"} | {
        "details": {"family": "qwen3", "families": ["qwen3"]}
    }


def main() -> None:
    port, host = (*sys.argv[1:], *("11434", "127.0.0.1")[len(sys.argv) - 1 :])
    server = ThreadingHTTPServer((host, int(port)), OllamaStandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("listening", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
