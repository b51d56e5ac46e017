"""Those who mean ill: somebody who sees every datagram on the internet and sends it again, from anywhere, whole or changed; and members who name
hostile candidates.

Nobody of them can make what is sealed. So what they may achieve is bounded: data goes nowhere new, and nobody gets more than a trickle that was not paid for.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from calnet.model import Endpoint, NodeId
from calnet.sim.internet import Weather
from calnet.sim.node import Node
from calnet.sim.world import World

ADDRESS: Final = "198.51.100.66"
VICTIM: Final = "198.51.100.99"
HOSTILE: Final = tuple(
    Endpoint(host, port)
    for host, port in (
        ("127.0.0.1", 22),
        ("0.0.0.0", 1),
        ("224.0.0.1", 5353),
        ("255.255.255.255", 67),
        ("169.254.169.254", 80),
        ("::1", 22),
        ("ff02::1", 5353),
        ("fe80::1", 1),
        *((VICTIM, 1000 + port) for port in range(200)),
    )
)


class Adversary:
    """On the internet from its making on. `victim` counts what came to the victim, second by second."""

    def __init__(self, world: World, share: float = 0.05) -> None:
        self.world, self.share = world, share
        self.victim: Counter[int] = Counter()
        self.replayed = 0
        self._busy = False
        public = world.internet.public
        public.hosts[ADDRESS] = lambda to, source, datagram: None
        public.hosts[VICTIM] = self._struck
        world.internet.observe = self._seen

    def name_hostile_candidates(self, member: Node, peer: NodeId) -> None:
        """A member tells a peer of places that are not its own."""
        self.world.tell_candidates(member, peer, HOSTILE)

    def _struck(self, to: Endpoint, source: Endpoint, datagram: bytes) -> None:
        self.victim[int(self.world.now)] += 1

    def _seen(self, source: Endpoint, to: Endpoint, datagram: bytes) -> None:
        draw = self.world.random
        if self._busy or draw.random() >= self.share:
            return
        self._busy = True  # its own datagrams are not worth replaying
        try:
            self._send_again(source, to, datagram)
        finally:
            self._busy = False

    def _send_again(self, source: Endpoint, to: Endpoint, datagram: bytes) -> None:
        draw, own = self.world.random, Endpoint(ADDRESS, 666)
        self.replayed += 1
        changed = bytearray(datagram)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        choices: tuple[tuple[Endpoint, Endpoint, bytes], ...] = (
            (own, to, datagram),  # again, from elsewhere
            (source, to, datagram),  # again, under its sender's name
            (to, source, datagram),  # back to its sender
            (own, source, datagram),
            (Endpoint(VICTIM, 53), to, datagram),  # in the name of somebody to be flooded
            (source, to, bytes(changed)),
            (source, to, datagram * 20),
            (source, to, datagram[:4]),
        )
        spoofed, target, data = draw.choice(choices)
        self.world.agenda.after(
            draw.choice((0.0, 0.5, 5.0)), lambda: self.world.internet.send(self.world.internet.public, spoofed, target, data, Weather(mtu=65_507))
        )
