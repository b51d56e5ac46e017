"""The fields that `status --json` always has; scripts rely on them. More may come."""

from __future__ import annotations

STATUS = {"state", "server", "self", "peers", "health", "version"}
SERVER = {"url", "connected", "last_seen_s"}
SELF = {"id", "name", "user", "os", "ip", "ips", "prefix", "public_key", "udp_port", "endpoints", "tags", "routes", "key_expires"}
PEER = {"id", "name", "user", "os", "ip", "ips", "tags", "routes", "online", "last_seen"}
PEER |= {"path", "endpoint", "rtt_ms", "last_handshake_s", "rx_bytes", "tx_bytes"}
