"""What a node trusts of its netmap, leads into the tunnel, and may advertise."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from calnet.errors import InvalidError
from calnet.model import Netmap, NodeId, NodeKey, Peer, PeerKind, Prefix, SelfNode
from calnet.roles.node.routes import check_advertised, key_changes, plan_routes, rerouted, routers_of, trusted, unfit
from calnet.roles.node.state import Pin

OVERLAY = (ip_network("100.70.0.0/24"), ip_network("fd12:3456::/64"))


def net(*texts: str) -> tuple[Prefix, ...]:
    return tuple(ip_network(text) for text in texts)


def peer(number: int, *routes: str, key: bytes = b"", name: str = "") -> Peer:
    return Peer(NodeId(number), name or f"node{number}", NodeKey(key or bytes((number,)) * 32), (ip_address(f"100.70.0.{number}"),), routes=net(*routes))


def netmap(*peers: Peer, own: tuple[Prefix, ...] = ()) -> Netmap:
    return Netmap(1, SelfNode(NodeId(1), "me", (ip_address("100.70.0.1"),), routes=own), OVERLAY, peers)


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ("0.0.0.0/0", "default route"),
        ("::/0", "default route"),
        ("100.70.0.0/24", "overlay"),
        ("100.70.0.2/32", "overlay"),
        ("100.64.0.0/10", "overlay"),
        ("fd12:3456::7/128", "overlay"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("fe80::/64", "link-local"),
    ],
)
def test_unfit_route_is_named(route: str, why: str) -> None:
    assert why in (unfit(ip_network(route), OVERLAY) or "")


@pytest.mark.parametrize("route", ["10.0.0.0/8", "192.168.7.0/24", "fd99::/48", "100.71.0.0/16", "203.0.113.9/32"])
def test_unfit_of_an_ordinary_prefix_is_none(route: str) -> None:
    assert unfit(ip_network(route), OVERLAY) is None


def test_trusted_netmap_loses_routes_no_peer_may_have_and_says_so() -> None:
    kept, findings = trusted(netmap(peer(2, "0.0.0.0/0", "10.0.0.0/8", "100.70.0.3/32"), peer(3)), ())
    assert kept.peers[0].routes == net("10.0.0.0/8")
    assert kept.peers[1] == peer(3)
    assert [finding.code for finding in findings] == ["route-refused", "route-refused"]


@pytest.mark.parametrize(
    "impostor",
    [
        peer(2, key=b"x" * 32),
        peer(9, key=b"x" * 32, name="node2"),
        replace(peer(9, key=b"x" * 32), addresses=(ip_address("100.70.0.2"),)),
    ],
)
def test_trusted_netmap_loses_a_pinned_peer_with_another_key(impostor: Peer) -> None:
    pin = Pin(2, "node2", ("100.70.0.2",), bytes((2,)) * 32)
    kept, findings = trusted(netmap(impostor, peer(3)), (pin,))
    assert [other.id for other in kept.peers] == [3]
    assert findings[0].code == "pinned-key-changed"
    assert trusted(netmap(peer(2)), (pin,)) == (netmap(peer(2)), ())


def test_plan_without_accept_routes_holds_the_overlay_alone() -> None:
    plan = plan_routes(netmap(peer(2, "10.0.0.0/8")), (), accept_routes=False)
    assert (plan.routes, plan.excepted, plan.findings) == (OVERLAY, (), ())


def test_plan_never_leads_an_attached_subnet_into_the_tunnel() -> None:
    attached = net("10.1.2.0/24", "192.168.1.0/24")
    plan = plan_routes(netmap(peer(2, "10.0.0.0/8", "192.168.1.0/24", "192.168.1.128/25", "172.16.0.0/12")), attached, accept_routes=True)
    assert plan.routes == (*OVERLAY, *net("10.0.0.0/8", "172.16.0.0/12"))
    assert plan.excepted == net("10.1.2.0/24")
    assert [finding.code for finding in plan.findings] == ["route-attached", "route-attached"]


@pytest.mark.parametrize(
    ("attached", "routed", "excepted"),
    [
        (net("100.70.0.0/26"), OVERLAY, net("100.70.0.0/26")),
        (net("100.70.0.0/24"), OVERLAY[1:], ()),
        (net("100.0.0.0/8"), OVERLAY[1:], ()),
    ],
)
def test_plan_never_leads_an_attached_subnet_into_the_tunnel_for_the_overlay_either(
    attached: tuple[Prefix, ...], routed: tuple[Prefix, ...], excepted: tuple[Prefix, ...]
) -> None:
    plan = plan_routes(netmap(), attached, accept_routes=False)
    assert (plan.routes, plan.excepted) == (routed, excepted)
    assert [finding.code for finding in plan.findings] == ["overlay-attached"]


def test_plan_in_a_providers_shared_address_space_routes_an_overlay_within_it() -> None:
    plan = plan_routes(netmap(), net("100.64.0.0/10"), accept_routes=False)
    assert (plan.routes, plan.excepted, plan.findings) == (OVERLAY, (), ())


def test_plan_leaves_out_what_this_node_routes_itself_and_duplicates() -> None:
    plan = plan_routes(netmap(peer(2, "10.0.0.0/8", "10.9.0.0/16"), peer(3, "10.9.0.0/16"), own=net("10.0.0.0/8")), (), accept_routes=True)
    assert plan.routes == (*OVERLAY, *net("10.9.0.0/16"))


def test_routers_of_a_prefix_are_the_servers_choice_and_then_the_others() -> None:
    first, second, third = net("10.0.0.0/8", "10.9.0.0/16", "fd99::/48")
    peers = (
        replace(peer(2), backup_routes=(first, third)),
        replace(peer(3), backup_routes=(first,), kind=PeerKind.WIREGUARD),
        peer(4, str(first), str(second)),
        replace(peer(5), backup_routes=(first,)),
    )
    assert routers_of(peers) == {first: (NodeId(4), NodeId(2), NodeId(5)), second: (NodeId(4),)}


def test_rerouted_names_what_another_router_carries() -> None:
    first, second = net("10.0.0.0/8", "10.9.0.0/16")
    peers = (peer(2, str(first), str(second)), replace(peer(3), backup_routes=(first, second)))
    assert rerouted(peers, {NodeId(2): (first, second), NodeId(3): ()}.__getitem__) == []
    [finding] = rerouted(peers, {NodeId(2): (second,), NodeId(3): (first,)}.__getitem__)
    assert finding.code == "router-silent"
    assert finding.text == "10.0.0.0/8 is reached through node3: its router node2 did not answer"


def test_check_advertised_gives_canonical_texts_once() -> None:
    assert check_advertised(["192.168.7.0/24", "FD99:0::/48", "192.168.7.0/24"]) == ("192.168.7.0/24", "fd99::/48")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.168.7.1/24", "did you mean 192.168.7.0/24"),
        ("lan", "is not a prefix"),
        ("0.0.0.0/0", "default route"),
        ("100.70.0.0/25", "overlay"),
    ],
)
def test_check_advertised_of_a_bad_prefix_says_what_was_meant(text: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        check_advertised([text], OVERLAY)


def test_check_advertised_of_too_many_is_refused() -> None:
    with pytest.raises(InvalidError, match="at most 64"):
        check_advertised([f"10.{number}.0.0/16" for number in range(65)])


def test_key_changes_tell_a_renewal_from_another_key() -> None:
    old = netmap(peer(2), peer(3), peer(4))
    new = netmap(replace(peer(2, key=b"n" * 32), previous_node_key=NodeKey(bytes((2,)) * 32)), peer(3, key=b"m" * 32), peer(4), peer(5))
    assert [(other.id, renewal) for other, _, renewal in key_changes(old, new)] == [(2, True), (3, False)]
    assert key_changes(None, new) == ()
