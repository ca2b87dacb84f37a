"""Which engines compute the same, and whether the prebuilt variants of llama.cpp do on this processor."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import llama_cpp
import pytest

from services.inference import numerics
from services.inference.models.model_discovery import installed, packaged
from tests.services.inference import variant_bits
from tools.engine import wheel

MAPS = "7f00-7f01 r-xp 00000000 00:2f 51  /x/llama_cpp/lib/{}\n7f01-7f02 r-xp 00000000 00:2f 52  /x/llama_cpp/lib/libggml-base.so\n"
FULL, HALF = "offloaded 31/31 layers to GPU", "offloaded 12/31 layers to GPU"
GPU = "using device Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) (unknown id) - 11966 MiB free"


def group(library: str) -> str:
    groups = {variant: name for name, variants in wheel.NUMERIC_GROUPS.items() for variant in variants}
    return numerics.group(MAPS.format(library), groups, "AVX = 1")


def identify(processor: str = "avx512", gpu: tuple[str, ...] = (), context: tuple[int, ...] = (1, 30), build: str = "0.25.3 abc") -> str:
    return numerics.identify(build, processor, gpu, context)


def test_variants_that_compute_the_same_have_one_group_and_a_compiled_engine_has_its_own() -> None:
    assert group("libggml-cpu-icelake.so") == group("libggml-cpu-zen4.so") != group("libggml-cpu-haswell.so")
    assert group("libggml-cpu-x64.so") == "x64"
    assert group("libggml-cpu.so") == "AVX = 1"


def test_build_processor_precision_and_gpu_tell_engines_apart_but_not_what_changes_from_start_to_start() -> None:
    assert len({identify(), identify("avx2"), identify(context=(1, 1)), identify(build="0.25.3 def"), identify(gpu=(GPU, FULL))}) == 5
    assert identify(gpu=(GPU, FULL)) == identify(gpu=(GPU.replace("11966", "310").replace("unknown id", "0000:01:00.0"), FULL))
    assert identify(gpu=(GPU, FULL)) != identify(gpu=(GPU.replace("llvmpipe", "RTX"), FULL))
    # The processor matters only where it computes layers.
    assert identify("avx2", (GPU, FULL)) == identify("avx512", (GPU, FULL))
    assert identify("avx2", (GPU, HALF)) != identify("avx512", (GPU, HALF))


@pytest.mark.nightly("long")
@pytest.mark.parametrize("model", [packaged(), installed()], ids=lambda path: path.suffixes[-2])
def test_groups_are_those_of_equal_logits(model: Path) -> None:
    variants = sorted((Path(llama_cpp.__file__).parent / "lib").glob("libggml-cpu-*.so"))
    if not variants:
        pytest.skip("this engine was compiled and has no variants: run `make setup`")
    bits: dict[str, set[str]] = defaultdict(set)
    for variant in variants:
        program = (sys.executable, "-m", variant_bits.__name__, str(variant), str(model))
        if found := subprocess.run(program, check=True, capture_output=True, text=True, timeout=300).stdout.strip():
            has_bf16, *digests = found.splitlines()
            bits[group(variant.name)].add(digests[0])
            bits[f"{group(variant.name)}, keys in bf16, {has_bf16}"].add(digests[1])
    assert len(bits) > 1
    assert all(len(found) == 1 for found in bits.values()), bits
    by_default = [found for name, found in bits.items() if "bf16" not in name]
    assert len(set.union(*by_default)) == len(by_default), bits
