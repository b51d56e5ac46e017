"""Numbers of path finding. Times in seconds."""

from __future__ import annotations

from typing import Final

LONG_AGO: Final = float("-inf")
"""Of what never happened."""

# --- protocol: both sides should agree about these ---

PROBE_OFFSETS: Final = (0.0, 0.2, 0.5, 1.0, 2.0)
"""When an attempt probes all candidates, from its start; then every PROBE_INTERVAL."""
PROBE_INTERVAL: Final = 5.0
OPENING: Final = 1.9
"""An attempt that the peer does not know of yet probes public candidates so long with probes that end on their way…"""
OPENING_HOPS: Final = 2
"""…at the second router: beyond this side's, before the peer's."""
ATTEMPT_INTERVAL: Final = 60.0
"""While relayed with traffic a new attempt begins at least so often; while direct, all candidates are looked at again so often."""
ANSWER_DUE: Final = 0.4
"""While data is sent an authenticated packet is due so often; else the path is probed."""
ANSWER_RETRY: Final = 0.2
"""…and one more so long after it: the peer may not hear it, and has to learn that we don't hear it."""
DOUBT_AFTER: Final = 0.8
"""Without one for so long, data goes by relay too."""
CHECK_FOR: Final = 0.3
"""Where the peer asks while we send, hence seems not to hear us, an answer of ours is waited for so long."""
HEARTBEAT: Final = 3.0
"""A path that has no traffic is probed so long after its last answer."""
TRUST: Final = 6.5
"""A path is trusted so long after its last answer."""
IDLE_AFTER: Final = 45.0
"""Without data either way for so long, nothing is sent to a peer."""
STUN_INTERVAL_MIN: Final = 20.0
STUN_INTERVAL_MAX: Final = 26.0

# --- implementation ---

STUCK_AFTER: Final = 2.0
"""An attempt without an answer for so long: one side's NAT may be a hard one (spray.py)."""
FLOWS_WITHIN: Final = 5.0
"""Data as fresh as this flows now: guessing ports, which takes 20 s, is over before the peer counts as idle."""

ATTEMPT_LENGTH: Final = 27.0
"""An attempt gives up after so long and rests until the next; without a relay it goes on. The rest is longer than a Linux router remembers a packet that nobody
answered (30 s): where such memories keep two sides apart, the next attempt finds them gone."""
HEARTBEAT_RETRY: Final = 1.0
"""An unanswered heartbeat is repeated so often."""
EXCHANGE_GAP: Final = 5.0
"""Our candidates are told to one peer no more often than this in answer to its own."""
PROBE_GAP: Final = 0.15
"""One endpoint is probed no more often than this."""
PROBE_TIMEOUT: Final = 5.0
"""A later answer counts for nothing…"""
EXPLICIT_TIMEOUT: Final = 60.0
"""…nor one to a ping that somebody waits for."""
NO_DATA_AFTER: Final = 20.0
"""A path on which data was sent for so long without any coming back is left. More than WireGuard's passive keepalive (10 s) and re-handshake (15 s)."""
NO_DATA_SENDING: Final = 15.0
"""…and the sending has to have gone on for so long."""
AVOIDED_AFTER: Final = 20.0
"""A path on which data is sent while the peer's own comes by relay alone for so long is left, too: the peer has left it. Longer than a trial of the relay
(delivery.py), and than a search for the MTU, in which long packets go by relay."""
AVOIDED_GAP: Final = 3.0
"""…and comes at least so often."""
HOLD_FIRST: Final = 60.0
HOLD_LONGEST: Final = 600.0
"""A path left for carrying no data is not used for so long; doubled each time."""

MAX_TOLD: Final = 32
"""Candidates of one peer that it told."""
MAX_SEEN: Final = 8
"""Candidates of one peer that its packets came from."""
MAX_PER_HOST: Final = 4
"""Candidates of one peer with the same address."""
MAX_OWN: Final = 16
"""Candidates of our own that we publish."""
MAX_HANDSHAKE_TARGETS: Final = 8
MAX_PENDING: Final = 4_096
"""Probes awaiting an answer."""
PEER_PROBES_PER_S: Final = 25.0
PEER_PROBES_BURST: Final = 100.0
"""Probes to unproven endpoints of one peer: to those that were told, and as many to those that something came from."""
HOST_PROBES_PER_S: Final = 10.0
HOST_PROBES_BURST: Final = 40.0
"""Probes and handshakes to unproven endpoints on one host (an IPv4 address or an IPv6 /64) that were told; as many probes to those that something came from."""
TOLD_PER_S: Final = 1.0
TOLD_BURST: Final = 20.0
"""Lists of candidates taken in of one peer, by each of two ways; an honest one tells them each few seconds at most."""
QUESTIONS_PER_S: Final = 1.0
QUESTIONS_BURST: Final = 20.0
"""Questions of one peer that are answered by relay, and as many by UDP: a person asks them."""
MAX_BUCKETS: Final = 4_096
"""Peers, or hosts, that each limit remembers."""
MAX_STUN_SERVERS: Final = 4
STUN_GAP: Final = 5.0
"""A path in trouble starts a round no sooner than this after the last, and a new set of servers after the last new set's."""
STUN_RETRANSMITS: Final = (0.0, 0.5, 1.5, 3.5)
STUN_GIVE_UP: Final = 7.5
"""RFC 8489 section 6.2.1 with RTO 500 ms, and fewer retransmissions."""
