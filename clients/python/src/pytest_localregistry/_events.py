"""The events of a registry."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Union


@dataclass(frozen=True)
class Request:
    """A request to the registry, logged when its response has ended."""

    time: float
    """When the response ended, in seconds since 1970 by the registry's clock."""
    peer: str
    """The client's address and port, such as ``10.1.0.7:40112``."""
    method: str
    """The HTTP method."""
    endpoint: str
    """``base``, ``manifest``, ``blob``, ``tags``, ``catalog``, ``referrers``, ``token``, ``health``, ``metrics``, ``ca`` or ``other``."""
    repository: str
    """The repository, behind the host of its upstream registry if it has one."""
    reference: str
    """The tag or digest in the request. containerd and dockerd ask for a tag by HEAD, and then for its digest."""
    digest: str
    """The digest of the content sent."""
    status: int
    """The HTTP status, or 0 if the client left before there was one."""
    bytes: int
    """The length of the body that was sent."""
    range: str
    """The value of the ``Range`` header."""
    duration: float
    """Time from the head of the request to the last byte of the response, in seconds."""
    user_agent: str
    """The value of the ``User-Agent`` header."""
    protocol: str
    """``HTTP/1.1`` or ``HTTP/2``."""
    complete: bool
    """False if the response was cut short or made wrong."""
    left_out: str
    """The platform of the content, if ``pack`` left it out."""
    fault: str
    """The rule of the plan of faults that acted."""

    @property
    def by(self) -> Union[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """The client's address."""
        address = ipaddress.ip_address(self.peer.rpartition(":")[0].strip("[]"))
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return mapped or address

    @property
    def ok(self) -> bool:
        """Whether the client got the whole content."""
        return self.complete and self.status in (200, 206)


@dataclass(frozen=True)
class Warning:
    """A problem that does not stop the registry."""

    code: str
    """A stable name, such as ``TLS_REFUSED`` or ``DROPPED_EVENTS``."""
    message: str
    """A description for people."""


@dataclass(frozen=True)
class FaultHit:
    """A rule of the plan of faults acted."""

    rule: str
    """The rule's id."""
    match: int
    """Which of the requests that matched the rule it was, counted from 1."""
    peer: str
    """The client's address and port."""
    action: str
    """What was done, for people."""
    bytes: int
    """The length of the body that was sent."""
    endpoint: str
    """As in the request."""
    repository: str
    """As in the request."""
    reference: str
    """As in the request."""


@dataclass(frozen=True)
class Event:
    """An event of the registry. Of its kinds, ``proto/JSON.md`` of the project has all fields."""

    time: float
    """When it happened, in seconds since 1970 by the registry's clock."""
    kind: str
    """Its kind, such as ``ready``, ``request``, ``warning``, ``fault`` or ``done``."""
    content: Dict[str, Any]
    """The fields of its kind."""
    request: Optional[Request] = None
    """Set for the kind ``request``."""
    warning: Optional[Warning] = None
    """Set for the kind ``warning``."""
    fault: Optional[FaultHit] = None
    """Set for the kind ``fault``."""


def parse(log: bytes) -> List[Event]:
    """Reads the lines of a log. A last line that is not complete is left out."""
    return [_event(json.loads(line)) for line in log.split(b"\n")[:-1]]


def _event(fields: Dict[str, Any]) -> Event:
    time = float(fields.pop("time", 0))
    nothing: Dict[str, Any] = {}
    kind, content = next(iter(fields.items()), ("", nothing))

    def text(name: str) -> str:
        return str(content.get(name, ""))

    def number(name: str) -> int:
        return int(content.get(name, 0))

    if kind == "request":
        request = Request(
            time=time,
            peer=text("peer"),
            method=text("method"),
            endpoint=text("endpoint"),
            repository=text("repository"),
            reference=text("reference"),
            digest=text("digest"),
            status=number("status"),
            bytes=number("bytes"),
            range=text("range"),
            duration=float(content.get("duration", 0)),
            user_agent=text("userAgent"),
            protocol=text("protocol"),
            complete=bool(content.get("complete", False)),
            left_out=text("leftOut"),
            fault=text("fault"),
        )
        return Event(time, kind, content, request=request)
    if kind == "warning":
        return Event(time, kind, content, warning=Warning(text("code"), text("message")))
    if kind == "fault":
        hit = FaultHit(
            text("rule"), number("match"), text("peer"), text("action"), number("bytes"), text("endpoint"), text("repository"), text("reference")
        )
        return Event(time, kind, content, fault=hit)
    return Event(time, kind, content)
