"""The systemd units of node and server: what they may do is all that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROGRAM: Final = "/usr/local/lib/calnet/current/calnet.pyz"


@dataclass(frozen=True, slots=True)
class Role:
    """What `install` and `uninstall` know of a role."""

    name: str
    unit: str
    state: str
    socket: str
    environment: str
    description: str
    rights: str


NODE: Final = Role(
    name="node",
    unit="calnet-node.service",
    state="calnet",
    socket="run/calnet/calnet.sock",
    environment="/etc/calnet/node.env",
    description="Calnet node",
    rights="""\
RuntimeDirectory=calnet
RuntimeDirectoryMode=0755
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
""",
)
SERVER: Final = Role(
    name="server",
    unit="calnet-server.service",
    state="calnet-server",
    socket="var/lib/calnet-server/admin.sock",
    environment="/etc/calnet/server.env",
    description="Calnet server: control, relay, STUN",
    rights="""\
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
DevicePolicy=closed
PrivateDevices=yes
LimitNOFILE=65536
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
ProtectKernelTunables=yes
""",
)
ROLES: Final = {role.name: role for role in (NODE, SERVER)}

_UNIT: Final = """\
# Written by `calnet.pyz install {role}`. Settings: CALNET_… lines in {environment}, or `systemctl edit {unit}`.
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
ExecStart={python} -IS {program} {role}
ExecReload=/bin/kill -HUP $MAINPID
EnvironmentFile=-{environment}
Restart=on-failure
RestartSec=2
TimeoutStopSec=20
StateDirectory={state}
StateDirectoryMode=0700
UMask=0077
{rights}AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome={home}
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
PrivateTmp=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def unit_text(role: Role, python: str) -> str:
    """The unit file. `python` is the interpreter's absolute path; one in a home directory has to be readable there."""
    home = "read-only" if python.startswith(("/root/", "/home/")) else "yes"
    text = _UNIT.format(
        role=role.name,
        unit=role.unit,
        description=role.description,
        environment=role.environment,
        state=role.state,
        rights=role.rights,
        python=python,
        program=PROGRAM,
        home=home,
    )
    return text if role is SERVER else text.replace("ExecReload=/bin/kill -HUP $MAINPID\n", "")
