"""What every TunDevice does: run on a real interface and on its twin."""

from __future__ import annotations

import asyncio

import pytest

from calnet.errors import HostError
from calnet.host.tun import TunDevice
from calnet.wire.ip import NO_VIRTIO
from tests.ip_packets import udp

BOUND_S = 10.0


class TunLab:
    """The kernel's side of a device."""

    async def sends(self, packet: bytes) -> None:
        """The kernel routes this UDP packet into the device."""
        raise NotImplementedError

    async def got(self) -> bytes:
        """The next packet that the kernel took from the device."""
        raise NotImplementedError


async def check_contract(device: TunDevice, lab: TunLab, ends: tuple[str, str]) -> None:
    """`ends` are the kernel's own address and a peer's behind the device."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(70_000))
    before = len(NO_VIRTIO) if device.offloads.vnet_header else 0
    ready = asyncio.Event()
    device.watch(loop, ready.set)
    sent = udp(b"from the kernel" * 5, ends)
    await lab.sends(sent)
    async with asyncio.timeout(BOUND_S):
        await ready.wait()
    read = b""
    while not read.endswith(b"from the kernel" * 5):
        length = device.read_into(buffer)
        assert length
        read = bytes(buffer[before:length])
    assert read[12:20] == sent[12:20]
    assert len(read) == len(sent)
    while device.read_into(buffer):
        pass
    assert device.read_into(buffer) == 0
    packet = udp(b"to the kernel", (ends[1], ends[0]))
    parts = [NO_VIRTIO] if before else []
    assert device.write([*parts, packet[:20], memoryview(packet)[20:]])
    assert (await lab.got())[20:] == packet[20:]
    assert not device.write([*parts, b"\0 neither IPv4 nor IPv6"])
    device.unwatch(loop)
    device.unwatch(loop)
    device.close()
    device.close()
    device.unwatch(loop)
    with pytest.raises(HostError, match="gone"):
        device.read_into(buffer)
    assert not device.write([*parts, packet])
