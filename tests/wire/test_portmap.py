"""What goes to a router and comes from it: by RFC 6887, RFC 6886 and UPnP's documents, and nothing hostile passes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.model import Endpoint
from calnet.wire import portmap
from calnet.wire.portmap import Mapped, Service

GATEWAY = "192.168.1.1"
NONCE = bytes(range(12))
INTERNAL = 41641

DESCRIPTION = b"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/no</controlURL></service></serviceList>
<deviceList><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>%s</controlURL>
</service></serviceList></device></deviceList></device></root>"""


def pcp_answer(*, version: int = 2, opcode: int = 0x81, result: int = 0, nonce: bytes = NONCE, internal: int = INTERNAL, external: int = 5000) -> bytes:
    """As RFC 6887, sections 7.2 and 11.1, draw it."""
    head = bytes((version, opcode, 0, result)) + struct.pack("!II", 3600, 77) + bytes(12)
    address = bytes(10) + b"\xff\xff" + bytes((203, 0, 113, 9))
    return head + nonce + bytes((17, 0, 0, 0)) + struct.pack("!HH", internal, external) + address


def test_pcp_request_is_as_rfc_6887_draws_it() -> None:
    client, anything = bytes(10) + b"\xff\xff" + bytes((192, 168, 1, 7)), bytes(10) + b"\xff\xff" + bytes(4)
    wanted = b"\x02\x01\0\0" + struct.pack("!I", 7200) + client + NONCE + b"\x11\0\0\0" + struct.pack("!HH", INTERNAL, 0) + anything
    assert portmap.pcp_request("192.168.1.7", INTERNAL, 0, 7200, NONCE) == wanted
    assert len(wanted) == 60


def test_pcp_answer_is_read() -> None:
    assert portmap.parse_pcp(pcp_answer(), NONCE, INTERNAL) == Mapped(Endpoint("203.0.113.9", 5000), 5000, 3600)


@pytest.mark.parametrize(
    "answer",
    [
        pcp_answer(version=1),
        pcp_answer(opcode=1),
        pcp_answer(result=2),
        pcp_answer(nonce=bytes(12)),
        pcp_answer(internal=1),
        pcp_answer(external=0),
        pcp_answer()[:-1],
        pcp_answer()[:-16] + bytes(15) + b"\x01",
        b"",
    ],
)
def test_another_pcp_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(WireError):
        portmap.parse_pcp(answer, NONCE, INTERNAL)


def test_nat_pmp_is_as_rfc_6886_draws_it() -> None:
    assert portmap.pmp_address_request() == b"\0\0"
    assert portmap.pmp_map_request(INTERNAL, 5000, 7200) == b"\0\x01\0\0" + struct.pack("!HHI", INTERNAL, 5000, 7200)
    assert portmap.parse_pmp_address(b"\0\x80\0\0" + bytes(4) + bytes((203, 0, 113, 9))) == "203.0.113.9"
    assert portmap.parse_pmp_map(b"\0\x81\0\0" + bytes(4) + struct.pack("!HHI", INTERNAL, 5000, 60), INTERNAL) == Mapped(None, 5000, 60)


@pytest.mark.parametrize("answer", [b"", b"\0\x80\0\x03" + bytes(8), b"\0\x81\0\0" + bytes(8), b"\0\x80\0\0" + bytes(7), pcp_answer()])
def test_another_nat_pmp_address_is_refused(answer: bytes) -> None:
    with pytest.raises(WireError):
        portmap.parse_pmp_address(answer)


@pytest.mark.parametrize(
    ("opcode", "result", "internal", "external"), [(0x81, 2, INTERNAL, 5000), (0x82, 0, INTERNAL, 5000), (0x81, 0, 1, 5000), (0x81, 0, INTERNAL, 0)]
)
def test_another_nat_pmp_mapping_is_refused(opcode: int, result: int, internal: int, external: int) -> None:
    with pytest.raises(WireError):
        portmap.parse_pmp_map(bytes((0, opcode)) + struct.pack("!HIHHI", result, 0, internal, external, 60), INTERNAL)


def answered(url: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return f"{status}\r\nST: x\r\nLocation: {url}\r\n\r\n".encode()


def test_search_is_answered_with_a_url_of_the_gateway() -> None:
    assert b"ssdp:discover" in portmap.ssdp_search()
    assert portmap.parse_ssdp(answered("http://192.168.1.1:5000/root.xml"), GATEWAY) == "http://192.168.1.1:5000/root.xml"


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.2:5000/root.xml",
        "http://evil.example/",
        "https://192.168.1.1/root.xml",
        "file:///etc/passwd",
        "http://192.168.1.1@evil.example/",
        "http://192.168.1.1:99999/",
        "http://192.168.1.1:x/",
        "http://[192.168.1.1/",
        "http://192.168.1.1/" + "a" * 600,
        "http://192.168.1.1/\u00fc",
    ],
)
def test_search_leads_nowhere_else(url: str) -> None:
    with pytest.raises(WireError):
        portmap.parse_ssdp(answered(url), GATEWAY)


def test_answer_that_is_none_is_refused() -> None:
    for data in (answered("http://192.168.1.1/", "HTTP/1.1 404 No"), answered("http://192.168.1.1/", "NOTIFY * HTTP/1.1"), b"", b"HTTP/1.1 200 OK\r\n\r\n"):
        with pytest.raises(WireError):
            portmap.parse_ssdp(data, GATEWAY)


def test_description_names_the_service_that_maps_ports() -> None:
    found = portmap.parse_description(DESCRIPTION % b"/ctl/IPConn", "http://192.168.1.1:5000/root.xml", GATEWAY)
    assert found == Service("http://192.168.1.1:5000/ctl/IPConn", "urn:schemas-upnp-org:service:WANIPConnection:1")


@pytest.mark.parametrize(
    "document",
    [
        DESCRIPTION % b"http://evil.example/",
        DESCRIPTION % b"http://[",
        DESCRIPTION % "http://a\u2100b/".encode(),
        DESCRIPTION % b"/a b",
        DESCRIPTION.replace(b"WANIP", b"LANIP"),
        (DESCRIPTION % b"/a").replace(b"Connection:1", b"Connection:1\nx"),
        (DESCRIPTION % b"/a").replace(b"Connection:1", "Connection:\u2100".encode()),
        b"<",
        b"",
        b"<root/>",
    ],
)
def test_description_that_leads_elsewhere_or_nowhere_is_refused(document: bytes) -> None:
    with pytest.raises(WireError):
        portmap.parse_description(document, "http://192.168.1.1:5000/root.xml", GATEWAY)


def test_documents_that_grow_are_refused() -> None:
    address, growing = "<a><NewExternalIPAddress>%s</NewExternalIPAddress></a>", '<!DOCTYPE a [<!ENTITY b "203.0.113"><!ENTITY c "&b;.9">]>'
    for document in (address % "203.0.113.9" + " " * portmap.MAX_DOCUMENT, "<a>" * 20_000, growing + address % "&c;", "<!DOCTYPE a>" + address % "203.0.113.9"):
        with pytest.raises(WireError):
            portmap.parse_address(document.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-7"])
def test_definitions_are_refused_in_any_encoding(encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "203.0.113.9">]><a><NewExternalIPAddress>&b;</NewExternalIPAddress></a>'
    with pytest.raises(WireError):
        portmap.parse_address(text.encode(encoding))


def test_encoding_that_a_document_names_does_not_matter() -> None:
    for encoding in ("foo", "rot13", "utf-7", "idna", "ISO-8859-1"):
        head = f'<?xml version="1.0" encoding="{encoding}"?><a><name>K\xfcche</name>'.encode("latin-1")
        assert portmap.parse_address(head + b"<NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></a>") == "203.0.113.9"
        assert portmap.parse_fault(head + b"<errorCode>718</errorCode></a>") == portmap.PORT_TAKEN


def test_orders_are_escaped_and_answers_read() -> None:
    headers, body = portmap.add_mapping(Service("http://192.168.1.1/", 'urn:x"<&'), "192.168.1.7", INTERNAL, 5000, 7200)
    assert b"<NewExternalPort>5000</NewExternalPort>" in body
    assert b"<NewInternalClient>192.168.1.7</NewInternalClient>" in body
    assert b'xmlns:u="urn:x"<&' not in body
    assert headers["SOAPAction"].endswith('#AddPortMapping"')
    assert portmap.parse_address(b"<a xmlns='urn:x'><NewExternalIPAddress> 203.0.113.9 </NewExternalIPAddress></a>") == "203.0.113.9"
    assert portmap.parse_fault(b"<s><UPnPError><errorCode>718</errorCode></UPnPError></s>") == portmap.PORT_TAKEN
    for nothing in (b"", b"<s/>", b"<errorCode>-1</errorCode>", b"<errorCode>999999</errorCode>"):
        assert portmap.parse_fault(nothing) == 0
    for address in (b"::1", b"", b"evil.example"):
        with pytest.raises(WireError):
            portmap.parse_address(b"<a><NewExternalIPAddress>" + address + b"</NewExternalIPAddress></a>")


PARSERS: list[Callable[[bytes], object]] = [
    lambda data: portmap.parse_pcp(data, NONCE, INTERNAL),
    portmap.parse_pmp_address,
    lambda data: portmap.parse_pmp_map(data, INTERNAL),
    lambda data: portmap.parse_ssdp(data, GATEWAY),
    lambda data: portmap.parse_description(data, "http://192.168.1.1/", GATEWAY),
    portmap.parse_address,
    portmap.parse_fault,
]
GENUINE = [
    pcp_answer(),
    answered("http://192.168.1.1/"),
    DESCRIPTION % b"/a",
    b"<a><NewExternalIPAddress>1.2.3.4</NewExternalIPAddress></a>",
    b"<a><errorCode>718</errorCode></a>",
]


@given(st.sampled_from(PARSERS), st.one_of(st.binary(max_size=200), st.sampled_from(GENUINE)), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_whatever_a_router_says_raises_nothing_else(parse: Callable[[bytes], object], data: bytes, at: int, spoilt: bytes) -> None:
    mangled = data[:at] + spoilt + data[at + len(spoilt) :]
    for said in (data, mangled):
        try:
            parse(said)
        except WireError:
            continue


HOSTILE = ["", "/c", "//[", "http://[", "http://192.168.1.1/c", "http://192.168.1.1:\u00b2/", "http://\u2100/", "//x@:0"]
WORDS = st.one_of(st.text(max_size=20), st.sampled_from(HOSTILE))
DECLARED = ["utf-8", "utf-16", "utf-32", "latin-1", "utf-7", "foo", "rot13", "idna", "undefined", "unicode_escape", "hex", "cp037"]
REAL = ["utf-8", "utf-16", "utf-16-be", "cp037"]
DEFINITIONS = '<!DOCTYPE a [<!ENTITY b "c">]>'


@given(st.sampled_from(DECLARED), st.sampled_from(REAL), st.sampled_from(["", DEFINITIONS]), WORDS, WORDS, WORDS)
def test_whatever_a_description_says_gives_what_a_request_can_hold(declared: str, real: str, definitions: str, kind: str, url: str, base: str) -> None:
    document = f'<?xml version="1.0" encoding="{declared}"?>{definitions}<service>'
    document += f"<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1{escape(kind)}</serviceType><controlURL>{escape(url)}</controlURL></service>"
    said = document.encode(real, "replace")
    assert portmap.parse_fault(said) == 0
    try:
        service = portmap.parse_description(said, f"http://192.168.1.1/{base}", GATEWAY)
    except WireError:
        return
    assert not definitions
    assert service.control_url.startswith("http://192.168.1.1")
    for word in (service.kind, service.control_url):
        assert all("!" <= letter <= "~" for letter in word)
