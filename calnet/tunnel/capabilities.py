"""Protocol extensions by the names that nodes announce them with (`Peer.capabilities`; docs/protocol.md, section 3)."""

from __future__ import annotations

from typing import Final

CHUNKS: Final = "chunks"
"""It takes super-packets as chunks (chunks.py)."""
AES: Final = "aes-256-gcm"
"""It has fast hardware for AES: handshakes between two such nodes are of that AEAD."""
