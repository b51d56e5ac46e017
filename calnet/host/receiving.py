"""Receiving UDP: batches as the kernel made them (UDP_GRO), and datagrams that come singly joined into such batches.

Hot path: plainer and longer than elsewhere. A call of the kernel for each datagram costs 1.9 µs here, and 45 of them, as one super-packet makes where cards,
drivers or senders have no offloads, as much as opening them; recvmmsg(2) takes all that wait in one call, 0.8 µs each. Python has it by ctypes alone.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from calnet.model import Endpoint

RECEIVE_SIZE: Final = 65536
MAX_SEGMENTS: Final = 64
"""Datagrams a batch may hold: UDP_MAX_SEGMENTS of kernels before 6.9."""
UDP_GRO: Final = 104
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(4)
_NAME_SIZE: Final = 32
"""Room for a sockaddr_in6 (28 bytes)."""
_WORDS: Final = 8
"""A struct mmsghdr in words (unsigned long), 4 or 8 bytes: name, its length, parts, their count, control, its length, flags; and the length of what came."""
_NAME_LENGTH, _CONTROL_LENGTH, _LENGTH = 1, 5, 7

_MAX_SOURCES: Final = 64
_new: Final = tuple.__new__
"""Makes a `Received` without a frame of Python."""
_MAX_OF_NEXT: Final = 4
"""So many at the end of a batch may be of the next group: a group that lost more is rare enough to be written in two."""


class Received(NamedTuple):
    """A batch: `length` bytes of datagrams of `segment` bytes each (the last may be shorter), all from one source."""

    length: int
    segment: int
    source: Endpoint


Receive = Callable[[memoryview], Received | None]
Behind = Callable[[memoryview], int]
"""`behind(datagram)`: how many that may come behind it are best taken with it, and no more. A function of the datagram alone."""
_Whole = tuple[bytes, int, Endpoint]
"""What was received, its segment size, its source."""


class Many:
    """Takes many datagrams of a socket in one call, each to its own slot behind the first one's in a buffer, what is longer than a slot to its own spill."""

    def __init__(self, file: int) -> None:
        """OSError where the machine's C library has no recvmmsg."""
        self._file = file
        try:
            self._call = ctypes.CDLL(None).recvmmsg
        except AttributeError as error:
            raise OSError("there is no recvmmsg") from error
        self._call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        word = struct.calcsize("L")
        self._spill = memoryview(mmap.mmap(-1, MAX_SEGMENTS * RECEIVE_SIZE))  # 4 MiB that no page is given for until something comes there
        self._names = memoryview(bytearray(MAX_SEGMENTS * _NAME_SIZE))
        self._controls = memoryview(bytearray(MAX_SEGMENTS * _ANCILLARY_SIZE))
        self._parts = memoryview(bytearray(MAX_SEGMENTS * 4 * word)).cast("L")
        self._heads = memoryview(bytearray(MAX_SEGMENTS * _WORDS * word)).cast("L")
        self._head_address = _address(self._heads)
        self._lengths = self._heads.cast("B").cast("I")[_LENGTH * word // 4 :: _WORDS * word // 4]
        for first, view, step in (
            (0, self._names, _NAME_SIZE),
            (2, self._parts, 4 * word),
            (4, self._controls, _ANCILLARY_SIZE),
        ):
            start = _address(view)
            self._heads[first::_WORDS] = array("L", range(start, start + MAX_SEGMENTS * step, step))
        self._heads[3::_WORDS] = array("L", (2,)) * MAX_SEGMENTS
        start = _address(self._spill)
        self._parts[2::4] = array("L", range(start, start + MAX_SEGMENTS * RECEIVE_SIZE, RECEIVE_SIZE))
        self._parts[3::4] = array("L", (RECEIVE_SIZE,)) * MAX_SEGMENTS
        self._name_lengths = array("L", (_NAME_SIZE,)) * MAX_SEGMENTS
        self._control_lengths = array("L", (_ANCILLARY_SIZE,)) * MAX_SEGMENTS
        self._none = memoryview(array("L", (0,)) * MAX_SEGMENTS)
        self._buffer, self._size, self._first = memoryview(b""), 0, 0
        self._sources: dict[bytes, Endpoint] = {}

    def receive(self, buffer: memoryview, size: int, first: int, most: int) -> int:
        """Take up to `most` datagrams, each to a slot of `size` bytes from number `first` of `buffer` on; how many came. `buffer` has room for them all."""
        if size != self._size or first != self._first or buffer is not self._buffer:
            start = _address(buffer) + size * first
            self._parts[::4] = array("L", range(start, start + MAX_SEGMENTS * size, size))
            self._parts[1::4] = array("L", (size,)) * MAX_SEGMENTS
            self._buffer, self._size, self._first = buffer, size, first
        heads, end = self._heads, most * _WORDS
        heads[_NAME_LENGTH:end:_WORDS] = memoryview(self._name_lengths)[:most]
        heads[_CONTROL_LENGTH:end:_WORDS] = memoryview(self._control_lengths)[:most]
        came: int = self._call(self._file, self._head_address, most, socket.MSG_DONTWAIT, None)
        return max(0, came)

    def fit(self, count: int, source: Endpoint) -> tuple[int, int]:
        """Of the `count` that came: how many, from the first on, are whole datagrams of this source with the size of a slot; and the length of the last of
        them if it is a shorter one, else 0."""
        lengths, size = self._lengths[:count].tolist(), self._size
        if lengths.count(size) == count and not self.has_batches(count) and self._one_source(count, source):
            return count, 0
        for k, length in enumerate(lengths):
            if not 0 < length <= size or self._heads[_CONTROL_LENGTH + k * _WORDS] or self._source(k) != source:
                return k, 0
            if length < size:
                return k + 1, length
        return count, 0

    def has_batches(self, count: int) -> bool:
        """Whether any of the `count` that came is more than one datagram."""
        return self._heads[_CONTROL_LENGTH : count * _WORDS : _WORDS] != self._none[:count]

    def whole(self, k: int) -> _Whole:
        """Number `k` of those that came."""
        length, size = self._lengths[k], self._size
        slot, spill = size * (self._first + k), k * RECEIVE_SIZE
        data = bytes(self._buffer[slot : slot + min(length, size)]) + bytes(self._spill[spill : spill + max(0, length - size)])
        segment = length
        if self._heads[_CONTROL_LENGTH + k * _WORDS]:
            control = k * _ANCILLARY_SIZE + socket.CMSG_LEN(0)
            segment = struct.unpack_from("=i", self._controls, control)[0]
        return data, segment, self._source(k)

    def _one_source(self, count: int, source: Endpoint) -> bool:
        names = self._names
        return self._source(0) == source and names[: count * _NAME_SIZE] == bytes(names[:_NAME_SIZE]) * count

    def _source(self, k: int) -> Endpoint:
        name = bytes(self._names[k * _NAME_SIZE : k * _NAME_SIZE + 28])
        found = self._sources.get(name)
        if found is None:
            if len(self._sources) >= _MAX_SOURCES:
                self._sources.clear()
            found = self._sources[name] = _endpoint(name)
        return found


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _endpoint(name: bytes) -> Endpoint:
    """Of a sockaddr_in or sockaddr_in6."""
    family, port = struct.unpack_from("=H", name)[0], struct.unpack_from("!H", name, 2)[0]
    address = name[4:8] if family == socket.AF_INET else name[8:24]
    return Endpoint(socket.inet_ntop(family, address), port)


class Receiver:
    """A `Receive` on one socket. An error that an earlier send left behind is skipped; any other leaves the socket to its next readiness.

    Datagrams that come singly are joined into the batch that GRO would have made: equal-sized ones of one source, the last perhaps shorter. Nothing waits for
    more to come: where the last one came alone, the next is given out before it is asked whether there are others. What doesn't fit is kept for the next call,
    which costs two copies: so joining begins with the second single one in a row, and ends where batches come between.
    """

    def __init__(self, one: socket.socket, behind: Behind | None = None) -> None:
        """`behind` bounds how many single datagrams are joined to one. Where as many came, but some of them, up to _MAX_OF_NEXT, belong to the next ones since
        others were lost, those are kept for them."""
        self._socket, self._behind = one, behind
        self._read, self._unpack = one.recvmsg_into, struct.Struct("=i").unpack
        self._many: Many | None = None
        self._address: object = None
        self._source = Endpoint("", 0)
        """What the last datagram came from, in two forms."""
        self._kept: deque[_Whole] = deque()
        self._dry = self._alone = self._asked = False
        self._singly = self._was_single = False
        """Datagrams come singly; the last one did."""

    def __call__(self, buffer: memoryview) -> Received | None:
        if self._kept:
            return self._from_kept(buffer)
        if self._dry:
            self._dry = False
            return None
        try:
            length, ancillary, _, address = self._read((buffer,), _ANCILLARY_SIZE)
        except OSError:
            self._asked = self._was_single = False
            return None
        if address != self._address:
            self._address, self._source = address, Endpoint(address[0], address[1])
        segment, source = length, self._source
        for _, kind, value in ancillary:
            if kind == UDP_GRO:
                segment = self._unpack(value[:4])[0]
        if segment != length or not length:
            self._was_single = False
            return _new(Received, (length, segment, source))
        self._singly = self._singly or self._was_single
        self._was_single = True
        if not self._singly:
            return _new(Received, (length, segment, source))
        if self._alone and not self._asked:
            self._asked = True
            return _new(Received, (length, segment, source))
        self._asked = False
        return Received(self._join(buffer, segment, source), segment, source)

    def _join(self, buffer: memoryview, size: int, source: Endpoint, first: int = 1) -> int:
        """Take what waits behind the `first` datagrams that were read; the length of the batch."""
        room = min(len(buffer) // size, MAX_SEGMENTS) - first
        together = room + 1 if self._behind is None else self._behind(buffer[(first - 1) * size : first * size])
        most = min(room, together)
        if most <= 0:
            self._alone = False
            return first * size
        if self._socket.fileno() < 0:  # closed since: its number may be another one's
            return first * size
        if self._many is None:
            self._many = Many(self._socket.fileno())
        many = self._many
        came = many.receive(buffer, size, first, most)
        self._dry, self._alone = came < most, not came
        if not came:
            return first * size
        fits, last = many.fit(came, source)
        self._singly = fits == came or not many.has_batches(came)
        if came == fits == together and self._behind is not None and not last:
            fits -= of_next(self._behind, buffer, size, first + came, came)
        if fits < came:
            self._kept.extend([many.whole(k) for k in range(fits, came)])
        return (first + fits) * size - (size - last if last else 0)

    def _from_kept(self, buffer: memoryview) -> Received:
        """The first of what was kept, with those behind that join it."""
        data, segment, source = self._kept.popleft()
        end = len(data)
        buffer[:end] = data
        if segment == end:
            most = min(len(buffer), MAX_SEGMENTS * segment)
            while self._kept and end + segment <= most:
                following, size, other = self._kept[0]
                if other != source or size != len(following) or not 0 < size <= segment:
                    break
                self._kept.popleft()
                buffer[end : end + size] = following
                end += size
                if size < segment:
                    break
            if not self._kept and not self._dry and self._behind is not None and segment and end % segment == 0:
                end = self._join(buffer, segment, source, end // segment)
        return Received(end, segment, source)


def of_next(behind: Behind, buffer: memoryview, size: int, count: int, came: int) -> int:
    """How many of the last `came` of the `count` datagrams in the buffer, at its end, are not to be taken with the first ones: behind each of one group there
    are fewer than behind the one before it."""
    left = behind(buffer[(count - 1) * size : count * size])
    for found in range(1, min(came, _MAX_OF_NEXT) + 1 if left else 0):
        before = behind(buffer[(count - found - 1) * size : (count - found) * size])
        if before <= left:
            return found
        left = before
    return 0
