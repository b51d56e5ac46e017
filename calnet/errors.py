"""The one exception tree. An exception's text is what the user reads: what is wrong, and what to do about it.

CalnetError                          exit 1, HTTP 500
├── LocalError                       something on this machine, or how Calnet was called
│   ├── UsageError                   exit 2, 400   wrong words or values
│   ├── ConfigError                  exit 1        a configuration file or setting is wrong
│   ├── StateError                   exit 1        a state file or store is damaged, locked or full
│   ├── HostError                    exit 1        this machine refuses: device, port, privilege, kernel
│   ├── UnreachableError             exit 3, 503   the daemon or the server can't be reached
│   ├── LoginNeededError             exit 4, 401   login or approval has to come first
│   ├── NotPermittedError            exit 5, 403   this user may not do that
│   ├── TimedOutError                exit 6, 504   no answer in time
│   └── StateMisuseError             exit 1        a machine was called in a state where that is not allowed
├── RemoteError                      what another party sent
│   ├── WireError                    400           bytes that do not parse; nothing was changed by them
│   ├── AuthenticationError          401           a seal, MAC or key that does not hold
│   └── ProtocolError                400           well-formed, authentic, but not allowed here or now
└── RefusedError                     exit 1        a request that was understood and can't be granted
    ├── InvalidError                 422           a value the request may not have
    ├── NotFoundError                404
    ├── ConflictError                409           taken, or changed meanwhile
    │   └── StaleError               412           decided on a state that is no longer the present one
    ├── ExhaustedError               409           no address, id or room left
    ├── UnauthorizedError            exit 5, 401   no credentials, or none that hold
    └── ForbiddenError               exit 5, 403   the key, user or node may not have it

Library exceptions never cross a layer: the layer that calls the library turns them into one of these.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # ClassVar is used in annotations alone; importing typing costs the CLI 4 ms
    from typing import ClassVar


class CalnetError(Exception):
    """Root of the tree. `code` names the error in JSON; it is stable."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "error"


class LocalError(CalnetError):
    """Something on this machine, or how Calnet was called."""


class UsageError(LocalError):
    """Wrong words or values on the command line or in a local request."""

    exit_code = 2
    http_status = 400
    code = "usage"


class ConfigError(LocalError):
    """A configuration file or setting is wrong."""

    code = "config"


class StateError(LocalError):
    """A state file or store is damaged, locked, or its disk is full."""

    http_status = 503
    code = "state"


class HostError(LocalError):
    """This machine refuses: a device, a port, a privilege, the kernel."""

    code = "host"


class UnreachableError(LocalError):
    """The daemon or the server can't be reached."""

    exit_code = 3
    http_status = 503
    code = "unreachable"


class LoginNeededError(LocalError):
    """Login or approval has to come first."""

    exit_code = 4
    http_status = 401
    code = "login-needed"


class NotPermittedError(LocalError):
    """This user may not do that."""

    exit_code = 5
    http_status = 403
    code = "not-permitted"


class TimedOutError(LocalError):
    """No answer in time."""

    exit_code = 6
    http_status = 504
    code = "timed-out"


class StateMisuseError(LocalError):
    """A machine was called in a state where that call is not allowed: a defect of the caller."""

    code = "misuse"


class RemoteError(CalnetError):
    """What another party sent is not acceptable."""

    http_status = 400
    code = "remote"


class WireError(RemoteError):
    """Bytes that do not parse. Nothing was changed by them."""

    code = "malformed"


class AuthenticationError(RemoteError):
    """A seal, MAC, proof or key that does not hold. Nothing was changed by it."""

    http_status = 401
    code = "authentication"


class ProtocolError(RemoteError):
    """Well-formed and authentic, but not allowed here or now."""

    code = "protocol"


class RefusedError(CalnetError):
    """A request that was understood and can't be granted."""

    http_status = 400
    code = "refused"


class InvalidError(RefusedError):
    """A value the request may not have."""

    http_status = 422
    code = "invalid"


class NotFoundError(RefusedError):
    """No such user, key, node or route."""

    http_status = 404
    code = "not-found"


class ConflictError(RefusedError):
    """Taken already, or changed meanwhile."""

    http_status = 409
    code = "conflict"


class StaleError(ConflictError):
    """Decided on a state that is no longer the present one: look again, then decide anew."""

    http_status = 412
    code = "stale"


class ExhaustedError(RefusedError):
    """No address, id or room left."""

    http_status = 409
    code = "exhausted"


class UnauthorizedError(RefusedError):
    """No credentials, or none that hold."""

    exit_code = 5
    http_status = 401
    code = "unauthorized"


class ForbiddenError(RefusedError):
    """The key, user or node may not have it."""

    exit_code = 5
    http_status = 403
    code = "forbidden"


def by_code(code: str, text: str) -> CalnetError:
    """The exception that `code` names (as sent over a local socket or a control session), with `text`; CalnetError for an unknown one."""
    kinds: list[type[CalnetError]] = [CalnetError]
    while kinds:
        kind = kinds.pop()
        if kind.code == code:
            return kind(text)
        kinds.extend(kind.__subclasses__())
    return CalnetError(text)
