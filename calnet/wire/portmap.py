"""Asking a router for a port: PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP's Internet Gateway Device (WANIPConnection), as bytes and texts. Pure.

    PCP MAP      version 2 | opcode 1 (answer: 81) | … | lifetime u32 | client's address 16 | nonce 12 | protocol u8 | 0 3 | internal port u16 |
                 external port u16 | external address 16
    NAT-PMP      version 0 | opcode (0 address, 1 map UDP; answer: + 128) | …
    UPnP         SSDP over UDP finds a description, whose control URL takes SOAP over HTTP

A router is no friend: whatever it says is parsed within bounds. Parsers raise WireError and nothing else.
"""

from __future__ import annotations

import contextlib
import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from calnet.errors import WireError
from calnet.model import Endpoint

PORT: Final = 5351
"""PCP's and NAT-PMP's."""
NONCE_SIZE: Final = 12
UDP: Final = 17
MAX_DOCUMENT: Final = 65_536
"""Bytes of a UPnP description or answer."""
PORT_TAKEN: Final = 718
PERMANENT_ONLY: Final = 725
"""UPnP's ConflictInMappingEntry and OnlyPermanentLeasesSupported."""
SSDP: Final = Endpoint("239.255.255.250", 1900)
_PCP: Final = struct.Struct("!BBHI16s12sB3xHH16s")
_PCP_ANSWER: Final = struct.Struct("!BBBBII12x12sB3xHH16s")
_PMP_MAP: Final = struct.Struct("!BBHHHI")
_PMP_MAPPED: Final = struct.Struct("!BBHIHHI")
_PRINTABLE: Final = re.compile(r"[!-~]+")
"""What of a router's words goes into a request: no space, no control character, nothing beyond ASCII."""
_SERVICES: Final = ("urn:schemas-upnp-org:service:WANIPConnection:", "urn:schemas-upnp-org:service:WANPPPConnection:")


@dataclass(frozen=True, slots=True)
class Mapped:
    """The router leads this endpoint to our port for so long. `endpoint` None: it says no address (NAT-PMP's map answer)."""

    endpoint: Endpoint | None
    port: int
    lifetime_s: int


def _mapped_form(address: str) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + IPv4Address(address).packed


# --- PCP


def pcp_request(client: str, internal: int, external: int, lifetime_s: int, nonce: bytes) -> bytes:
    """Map UDP port `internal` of `client` (its IPv4 address) to `external`, or any (0), for so long; a lifetime of 0 ends it."""
    return _PCP.pack(2, 1, 0, lifetime_s, _mapped_form(client), nonce, UDP, internal, external, _mapped_form("0.0.0.0"))


def parse_pcp(data: bytes, nonce: bytes, internal: int) -> Mapped:
    """The answer to the request with this nonce; WireError where it is none, or a refusal."""
    if len(data) < _PCP_ANSWER.size:
        raise WireError("too short for PCP")
    version, opcode, _, result, lifetime, _, got_nonce, protocol, got_internal, external, address = _PCP_ANSWER.unpack_from(data)
    if (version, opcode, got_nonce, protocol, got_internal) != (2, 0x81, nonce, UDP, internal):
        raise WireError("not the answer to our PCP request")
    if result:
        raise WireError(f"the router refuses (PCP result {result})")
    mapped = IPv6Address(address).ipv4_mapped
    if mapped is None or external == 0:
        raise WireError("a PCP answer without an IPv4 endpoint")
    return Mapped(Endpoint(str(mapped), external), external, lifetime)


# --- NAT-PMP


def pmp_address_request() -> bytes:
    """What is the router's address outside?"""
    return b"\0\0"


def pmp_map_request(internal: int, external: int, lifetime_s: int) -> bytes:
    """Map a UDP port; a lifetime of 0 ends it."""
    return _PMP_MAP.pack(0, 1, 0, internal, external, lifetime_s)


def parse_pmp_address(data: bytes) -> str:
    """The router's address outside."""
    if len(data) < 12 or data[:2] != b"\x00\x80":
        raise WireError("not an answer to our NAT-PMP request")
    if data[2:4] != b"\0\0":
        raise WireError(f"the router refuses (NAT-PMP result {int.from_bytes(data[2:4], 'big')})")
    return str(IPv4Address(data[8:12]))


def parse_pmp_map(data: bytes, internal: int) -> Mapped:
    """The mapping, without its address."""
    if len(data) < _PMP_MAPPED.size:
        raise WireError("too short for NAT-PMP")
    version, opcode, result, _, got_internal, external, lifetime = _PMP_MAPPED.unpack_from(data)
    if (version, opcode, got_internal) != (0, 0x81, internal):
        raise WireError("not the answer to our NAT-PMP request")
    if result or external == 0:
        raise WireError(f"the router refuses (NAT-PMP result {result})")
    return Mapped(None, external, lifetime)


# --- UPnP


@dataclass(frozen=True, slots=True)
class Service:
    """Where the router takes orders: the URL to post to, and the service's type."""

    control_url: str
    kind: str


def ssdp_search() -> bytes:
    """Who here is an Internet gateway?"""
    lines = ("M-SEARCH * HTTP/1.1", "HOST: 239.255.255.250:1900", 'MAN: "ssdp:discover"', "MX: 1", "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_ssdp(data: bytes, gateway: str) -> str:
    """The description's URL, which has to be the gateway's own: nobody else may send us anywhere."""
    text = data[:4096].decode("latin-1")
    found = re.search(r"^location:[ \t]*(http://\S+)[ \t]*\r?$", text, re.IGNORECASE | re.MULTILINE)
    if not text.startswith("HTTP/1.1 200") or found is None:
        raise WireError("not an answer to our search")
    return _of_gateway(found[1], gateway)


def parse_description(data: bytes, base: str, gateway: str) -> Service:
    """The service that maps ports."""
    for service in _xml(data).iter():
        if _name(service) == "service":
            values = {_name(child): (child.text or "").strip() for child in service}
            kind = values.get("serviceType", "")
            if kind.startswith(_SERVICES) and len(kind) < 100 and _PRINTABLE.fullmatch(kind):
                return Service(_of_gateway(values.get("controlURL", ""), gateway, base), kind)
    raise WireError("the router's description names no service that maps ports")


def soap(service: Service, action: str, arguments: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """(headers, body) of an order."""
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f'<s:Body><u:{action} xmlns:u="{escape(service.kind)}">{inner}</u:{action}></s:Body></s:Envelope>'
    )
    return {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{service.kind}#{action}"'}, body.encode()


def add_mapping(service: Service, client: str, internal: int, external: int, lifetime_s: int) -> tuple[dict[str, str], bytes]:
    """Lead UDP port `external` to us."""
    arguments = {
        "NewRemoteHost": "",
        "NewExternalPort": str(external),
        "NewProtocol": "UDP",
        "NewInternalPort": str(internal),
        "NewInternalClient": client,
        "NewEnabled": "1",
        "NewPortMappingDescription": "calnet",
        "NewLeaseDuration": str(lifetime_s),
    }
    return soap(service, "AddPortMapping", arguments)


def delete_mapping(service: Service, external: int) -> tuple[dict[str, str], bytes]:
    """Lead it nowhere any more."""
    return soap(service, "DeletePortMapping", {"NewRemoteHost": "", "NewExternalPort": str(external), "NewProtocol": "UDP"})


def parse_address(data: bytes) -> str:
    """The address in the answer to GetExternalIPAddress."""
    for element in _xml(data).iter():
        if _name(element) == "NewExternalIPAddress":
            try:
                return str(IPv4Address((element.text or "").strip()))
            except ValueError as error:
                raise WireError("the router names no IPv4 address of its own") from error
    raise WireError("the router did not say its address")


def parse_fault(data: bytes) -> int:
    """Why an order was refused: UPnP's errorCode, 0 where there is none."""
    with contextlib.suppress(WireError):
        for element in _xml(data).iter():
            text = (element.text or "").strip()
            if _name(element) == "errorCode" and text.isascii() and text.isdigit() and len(text) < 6:
                return int(text)
    return 0


def _of_gateway(reference: str, gateway: str, base: str = "") -> str:
    """The whole URL of a reference in the document at `base`."""
    try:
        url = urljoin(base, reference)
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise WireError("not a URL") from error
    if parts.scheme != "http" or parts.hostname != gateway or not 0 < port < 65_536 or len(url) > 500 or not _PRINTABLE.fullmatch(url):
        raise WireError("a URL that is not the router's own")
    return url


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Called before the first definition is read."""
        raise WireError("a document with definitions")


def _xml(data: bytes) -> ElementTree.Element:
    """A small document without entities of its own, which could grow without bound.

    It is read as UTF-8, as UPnP wants it, whatever it says of itself: a router has no choice of codecs, and what matters in its answers is ASCII.
    """
    if len(data) > MAX_DOCUMENT:
        raise WireError("too large a document")
    try:
        return ElementTree.fromstring(data.decode("utf-8", "replace"), ElementTree.XMLParser(target=_Builder()))
    except ElementTree.ParseError as error:
        raise WireError("the router's answer is no XML") from error


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
