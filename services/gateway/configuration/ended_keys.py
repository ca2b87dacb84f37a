"""Removes the policies of keys that have ended: revoked, expired or deleted ones."""

from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import Bodies, LiveConfiguration
from shared.api import auth
from shared.config_documents import KEY_POLICY, ConfigKind
from shared.rpc import RpcClient

#: How long such a policy may stay.
SECONDS = 300


async def remove_policies(store: ConfigStore, live: LiveConfiguration, rpc: RpcClient) -> None:
    """Remove policies of ended keys, and delete those that were removed a day ago. Any number of gateways may do so at once. Raises
    PeerError and Unavailable."""
    keys = await store.policies_of_keys()
    for start in range(0, len(keys), auth.MAX_FOUND_KEYS):
        request = auth.FindEndedKeys(tuple(keys[start : start + auth.MAX_FOUND_KEYS]))
        if ended := (await rpc.call(auth.find_ended_keys, request)).keys:
            await _remove(store, live, [f"{KEY_POLICY}{key}" for key in ended])


async def _remove(store: ConfigStore, live: LiveConfiguration, names: list[str]) -> None:
    removals: Bodies = dict.fromkeys((ConfigKind.POLICY, name) for name in names)
    await live.change(lambda _revision, _current: removals, origin="applied", author=None, note="the key has ended")
    async with store.lock() as locked:
        await locked.delete_removed(names)
