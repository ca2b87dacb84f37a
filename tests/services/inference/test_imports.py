import subprocess
import sys


def test_worker_stays_small_because_only_the_engine_loads_llama_cpp() -> None:
    heavy = "{'llama_cpp', 'numpy', 'jinja2', 'httpx', 'litestar', 'sqlalchemy'}"
    code = f"import sys, services.inference.__main__\nprint(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
