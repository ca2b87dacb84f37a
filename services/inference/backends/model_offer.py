"""Finds a model for a machine that joined without one: `python -m services.inference.backends.model_offer`.

It prints a StarterOffer as JSON for `aicli worker --join`, or nothing if the machine has models or none of the list fits.
"""

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from services.inference.backends import backend_selection
from services.inference.models import load_plan, memory_bandwidth, model_discovery, model_store
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings, free_cores
from shared import config, errors
from shared.api.inference import StarterOffer


@dataclass(frozen=True, slots=True)
class StarterModel:
    source: str
    #: The size of the file in that repository.
    file_bytes: int
    #: For a token's keys and values in 16 bits: 2 x 2 bytes x layers x heads of keys x 128, of its config.json.
    token_bytes: int
    #: The share of its weights that it reads for each token; less than 1 if it has experts.
    active_share: float = 1.0

    @property
    def read_bytes(self) -> float:
        """What is read of the file for each token."""
        return self.file_bytes * self.active_share

    @property
    def memory_bytes(self) -> int:
        # The context that it gets on a processor.
        return self.file_bytes + load_plan.CPU_CONTEXT_TOKENS * self.token_bytes


#: The worst first. Qwen publishes these files under Apache-2.0. The sizes are those of the hub's LFS metadata, in November 2026.
MODELS = (
    StarterModel("hf:Qwen/Qwen3-0.6B-GGUF:Q8_0", 639_446_688, 4 * 28 * 8 * 128),
    StarterModel("hf:Qwen/Qwen3-1.7B-GGUF:Q8_0", 1_834_426_016, 4 * 28 * 8 * 128),
    StarterModel("hf:Qwen/Qwen3-4B-GGUF:Q4_K_M", 2_497_280_256, 4 * 36 * 8 * 128),
    StarterModel("hf:Qwen/Qwen3-8B-GGUF:Q4_K_M", 5_027_783_488, 4 * 36 * 8 * 128),
    StarterModel("hf:Qwen/Qwen3-14B-GGUF:Q4_K_M", 9_001_752_960, 4 * 40 * 8 * 128),
    # 3.3 of 30.5 billion parameters.
    StarterModel("hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M", 18_556_685_824, 4 * 48 * 4 * 128, 0.11),
)
#: As fast as people read.
TOKENS_PER_SECOND = 8


def find_best(memory_bytes: int, disk_bytes: int, bandwidth: float | None = None) -> StarterModel | None:
    """Return the best model that fits, with ``bandwidth`` the best that also answers fast enough, or else the smallest."""
    fitting = [model for model in MODELS if model.memory_bytes <= memory_bytes and model.file_bytes <= disk_bytes]
    fast = [model for model in fitting if bandwidth is None or TOKENS_PER_SECOND * model.read_bytes <= bandwidth]
    found = fast or fitting[:1]
    return found[-1] if found else None


async def find_offer(settings: InferenceSettings) -> StarterOffer | None:
    """Raises BadSettings."""
    defaults, pulls = settings.model_defaults(), bool(settings.models_pull)
    catalog = model_discovery.find(settings.models, settings.models_yaml, settings.models_dir, defaults, pulls=pulls)
    has_models = catalog.entries or pulls or model_discovery.in_store(ModelStore(settings.store_path), defaults)
    if settings.backend != "llama" or has_models:
        return None
    _, _, budget = await backend_selection.find_devices(settings)
    free_disk = shutil.disk_usage(settings.state_file.parent).free - model_store.RESERVED_BYTES
    # A processor waits for its memory: each token reads all weights. GPUs read what they have room for fast enough.
    threads = settings.threads or free_cores()
    bandwidth = None if budget.vram else await asyncio.to_thread(memory_bandwidth.measure, threads)
    best = find_best(budget.fast_bytes, free_disk, bandwidth)
    if best is None:
        return None
    expected = None if bandwidth is None else bandwidth / best.read_bytes
    return StarterOffer(best.source, best.file_bytes, budget.fast_bytes, tokens_per_second=expected)


def main() -> None:
    # The worker itself will report what is wrong with its settings.
    with suppress(errors.BadSettings):
        if offer := asyncio.run(find_offer(config.load(InferenceSettings, os.environ))):
            sys.stdout.buffer.write(msgspec.json.encode(offer))


if __name__ == "__main__":
    main()
