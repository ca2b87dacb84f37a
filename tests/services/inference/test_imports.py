"""What a worker imports, and what Ctrl-C does meanwhile."""

import signal
import subprocess
import sys


def test_worker_stays_small_because_only_the_engine_loads_llama_cpp() -> None:
    heavy = "{'llama_cpp', 'numpy', 'jinja2', 'httpx', 'litestar', 'sqlalchemy'}"
    code = f"import sys, services.inference.__main__\nprint(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_ctrl_c_while_a_worker_starts_prints_no_traceback() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "services.inference"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        next(line for line in started.stderr if line.split()[-1] == "msgspec")
        started.send_signal(signal.SIGINT)
        rest = started.stderr.read()
    assert started.returncode == -signal.SIGINT
    assert "Traceback" not in rest
