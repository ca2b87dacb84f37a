"""A publisher, an administrator and a person with signed models, at their terminals, on a whole stack."""

import json
from pathlib import Path

import pytest

from tests import stacks
from tests.services.gateway.models import registries
from tests.shared.models.publishers import Publisher
from tests.stacks import RunningStack


@pytest.mark.nightly("stacks")
async def test_with_enforce_version_1_is_loaded_and_2_is_refused_with_a_reason(tmp_path: Path) -> None:
    publisher, key, public = Publisher(), tmp_path / "publisher.key", tmp_path / "publisher.pub"
    key.write_bytes(publisher.private)
    public.write_text(publisher.public)
    async with stacks.stack(HYPERSWARM="off", MODEL_MEMORY="1GiB") as stack:

        async def aicli(*words: str, fails: str = "") -> str:
            done = await stack.aicli(*words)
            assert bool(done.status) is bool(fails), done
            assert fails in done.err
            return done.out

        for seed in (1, 2):
            model = tmp_path / f"{seed}.gguf"
            model.write_bytes(registries.gguf(tmp_path, seed, layers=1))
            assert f"tiny@{seed} is ready" in await aicli("models", "push", str(model), "tiny")
        assert "Signed tiny@1 (sha256:" in await aicli("models", "sign", "tiny@1", "--key", str(key))
        await aicli("models", "trust", "set", "tiny*", "--mode", "enforce", "--key", str(public))
        assert "enforce" in await aicli("models", "trust", "show")
        assert "A trusted key has signed tiny@1" in await aicli("models", "verify", "tiny@1")
        await aicli("models", "verify", "tiny@2", fails="tiny@2 is not trusted: nobody has signed it")
        await aicli("models", "deploy", "tiny@1", "--preload", "--wait")
        await aicli("models", "deploy", "tiny@2", "--preload")
        await stacks.until(
            lambda: _is_refused(stack, "tiny@2", "nobody has signed it"), seconds=60, what="the copy of version 2 is refused"
        )
        await aicli("infer", "hi", "--model", "tiny@1", "--max-tokens", "5")
        await aicli("infer", "hi", "--model", "tiny@2", fails="tiny@2")
        assert "tiny@2: nobody has signed it" in (await stack.aicli("models")).err
        # Its publisher signs it, and it is loaded.
        await aicli("models", "sign", "tiny@2", "--key", str(key))
        await aicli("models", "deploy", "tiny@2", "--preload", "--wait")
        await aicli("infer", "hi", "--model", "tiny@2", "--max-tokens", "5")
        # It must not run any more.
        await aicli("models", "revoke", "tiny@2", "--reason", "it leaks")
        assert "it leaks" in await aicli("models", "versions", "tiny")
        await stacks.until(lambda: _is_gone(stack, "tiny@2"), seconds=60, what="version 2 is gone")
        await aicli("infer", "hi", "--model", "tiny@1", "--max-tokens", "5")


async def _is_refused(stack: RunningStack, name: str, why: str) -> bool:
    copies = json.loads((await stack.aicli("models", "copies", name, "--json")).out)
    return any(copy["state"] == "refused" and why in copy["reason"] for copy in copies)


async def _is_gone(stack: RunningStack, name: str) -> bool:
    return bool((await stack.aicli("infer", "hi", "--model", name, "--max-tokens", "5")).status)
