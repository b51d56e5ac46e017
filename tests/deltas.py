"""The delta between two netmaps, as plainly as can be."""

from __future__ import annotations

from calnet.model import Netmap
from calnet.wire.control import NetmapDelta
from calnet.wire.netmap import delta, wire_peer


def difference(old: Netmap, new: Netmap) -> NetmapDelta:
    """What `apply` turns `old` into `new` with."""
    put = tuple(wire_peer(peer) for peer in new.peers if peer not in old.peers)
    removed = {peer.id for peer in old.peers} - {peer.id for peer in new.peers}
    return delta(old, new, since=old.version, version=new.version, put=put, removed=tuple(sorted(removed)))
