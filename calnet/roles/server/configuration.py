"""What admins may change while the server runs: one setting record of JSON, each value with its bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from calnet.crypto.hash import blake2s
from calnet.errors import InvalidError
from calnet.roles.server.founding import SETTINGS
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Change, Put, SettingRecord

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """The values in force."""

    node_key_lifetime_s: float = 180 * _DAY_S
    """After a login, until a node's key expires."""
    require_approval: bool = False
    """A node that a user signs in for waits for an admin all the same."""


def configuration_of(state: Snapshot) -> Configuration:
    """The stored values, and the defaults of those that were never changed."""
    stored = state.settings.get(SETTINGS)
    return Configuration() if stored is None else Configuration(**json.loads(stored))


def etag_of(values: Configuration) -> str:
    """Another one after each change."""
    return blake2s(json.dumps(asdict(values)).encode()).hex()[:24]


def plan_configure(state: Snapshot, wishes: Mapping[str, object]) -> tuple[Sequence[Change], Configuration]:
    """InvalidError names the setting that does not exist or the value that can't be."""
    before = configuration_of(state)
    after = before
    for name, value in wishes.items():
        after = replace(after, **{name: _checked(name, value)})  # type: ignore[arg-type]
    return ([] if after == before else [Put(SettingRecord(SETTINGS, json.dumps(asdict(after)).encode()))]), after


def _checked(name: str, value: object) -> object:
    if name == "node_key_lifetime_s":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 60 <= value <= 3660 * _DAY_S:
            raise InvalidError("node_key_lifetime_s is a number of seconds, between a minute and ten years")
        return float(value)
    if name == "require_approval":
        if not isinstance(value, bool):
            raise InvalidError("require_approval is true or false")
        return value
    raise InvalidError(f"there is no setting {name!r}: there are node_key_lifetime_s and require_approval")
