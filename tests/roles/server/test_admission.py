"""Bounds on who may knock: the gate."""

from __future__ import annotations

from calnet.roles.server.admission import Gate, Place


class Door:
    """A gate, and who was cut off."""

    def __init__(self, limit: int, per_source: int) -> None:
        self.gate = Gate(limit, per_source)
        self.cut: list[str] = []

    def enter(self, name: str, source: bytes, *, trusted: bool = False) -> Place | None:
        return self.gate.enter(source, lambda: self.cut.append(name), trusted=trusted)


def test_gate_at_its_source_bound_refuses_that_source_alone() -> None:
    door = Door(limit=10, per_source=2)
    assert [door.enter("a", b"a") is not None for _ in range(3)] == [True, True, False]
    assert door.enter("b", b"b")
    assert door.enter("a", b"a", trusted=True)
    assert (len(door.gate), door.cut) == (4, [])


def test_gate_at_its_whole_bound_cuts_the_oldest_of_the_most_crowded_site() -> None:
    door = Door(limit=4, per_source=2)
    door.enter("alone", b"\x01\x02\x03\x04")
    site = bytes.fromhex("20010db80001")
    places = [door.enter(f"crowd {number}", site + bytes((0, number))) for number in range(3)]
    assert door.enter("new", b"\x01\x02\x03\x05")
    assert (len(door.gate), door.cut) == (4, ["crowd 0"])
    for place in places:
        assert place is not None
        door.gate.leave(place)
        door.gate.leave(place)
    assert len(door.gate) == 2


def test_gate_where_every_site_has_one_cuts_the_oldest() -> None:
    door = Door(limit=2, per_source=2)
    for name in "abc":
        assert door.enter(name, name.encode())
    assert (len(door.gate), door.cut) == (2, ["a"])
