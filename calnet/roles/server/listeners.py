"""The server's sockets: dual stack, IPv4 alone where IPv6 is off. What the host refuses becomes one clear HostError."""

from __future__ import annotations

import errno
import resource
import socket
from contextlib import suppress

from calnet.errors import HostError
from calnet.roles.server.settings import HostPort

BACKLOG = 1024
IP_PKTINFO = 8
"""ip(7); the socket module has no name for it."""
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def tcp_listener(where: HostPort, flag: str = "--listen") -> socket.socket:
    """A listening TCP socket on `where`, not blocking."""
    listener = _bound(where, socket.SOCK_STREAM, flag)
    listener.listen(BACKLOG)
    return listener


def udp_socket(where: HostPort, flag: str = "--stun-listen") -> socket.socket:
    """A bound UDP socket on `where`, not blocking, that tells the local address each datagram came to (IP_PKTINFO, IPV6_PKTINFO)."""
    bound = _bound(where, socket.SOCK_DGRAM, flag)
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    return bound


def raise_descriptor_limit() -> None:
    """One descriptor a connection: take all that the hard limit gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bound(where: HostPort, kind: socket.SocketKind, flag: str) -> socket.socket:
    try:
        return _bind(where, kind)
    except OSError as error:
        if where.host == "::" and error.errno in _NO_IPV6:
            return _bound(HostPort("0.0.0.0", where.port), kind, flag)
        raise HostError(f"can't listen on {where}: {_reason(error)}; choose another address with {flag}") from None


def _bind(where: HostPort, kind: socket.SocketKind) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(where.host, where.port, type=kind, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "that is no address of this machine, and no name that resolves to one"
    return {
        errno.EADDRINUSE: "the port is taken by another program",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0, error.strerror or str(error))
