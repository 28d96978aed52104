"""What one table alone cannot show to be wrong: names, references, addresses.

Every rule reads the tables as they stand in the file and steps over what has a wrong shape (the
frame tells that), so that all faults of a file come out together.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from node.document import Document, Table, Where
from node.domain.errors import Fault
from node.tables import meant

NAMED = ("peer", "trigger", "output", "destination")
"""The arrays of tables whose elements are called by name."""

CALLING = ("trigger", "output", "destination")
"""Families whose members may have an option ``peer``: a peer that they call."""


def ae_title_reason(title: str) -> str:
    """Why this is no AE title (PS3.5 Table 6.2-1: 1 to 16 characters, no backslash), or ""."""
    if not title.strip():
        return "an AE title has at least one character that is not a space"
    if title != title.strip():
        return "spaces around an AE title do not count; leave them out"
    if len(title) > 16:
        return f"an AE title has at most 16 characters, not {len(title)}"
    if not (title.isascii() and title.isprintable()) or "\\" in title:
        return "an AE title has printable ASCII characters only, and no backslash"
    return ""


def rule_faults(document: Document) -> Iterator[Fault]:
    """Every broken rule of a configuration."""
    for family in NAMED:
        yield from _name_faults(document, family)
    for peer, where in rows(document, "peer"):
        yield from _peer_faults(peer, where)
    yield from _caller_faults(document)
    yield from _package_faults(document)
    for engine, where in rows(document, "engine"):
        yield from _reference_faults(engine, where, document)
    for family in CALLING:
        for table, where in rows(document, family):
            yield from _called_faults(table, where, document)


def rows(document: Document, family: str) -> Iterator[tuple[Table, Where]]:
    """The tables of an array of tables, each with its place."""
    tables = document.table.get(family)
    for index, table in enumerate(tables if isinstance(tables, list) else ()):
        if isinstance(table, dict):
            yield table, document.where.at(family).item(index)


def _name(table: Table, family: str) -> object:
    # Only triggers may go without a name: nothing refers to them.
    return table.get("name", table.get("kind") if family == "trigger" else None)


def _name_faults(document: Document, family: str) -> Iterator[Fault]:
    seen: dict[object, Where] = {}
    for table, where in rows(document, family):
        name = _name(table, family)
        if name is None and family != "trigger":
            yield where.at("name").fault("is missing, and it has no default")
        elif isinstance(name, str) and name in seen:
            line = seen[name].line
            yield where.at("name").fault(
                f"another {family} is called {name!r} already (line {line}); give each its own name"
            )
        elif isinstance(name, str):
            seen[name] = where


def _package_faults(document: Document) -> Iterator[Fault]:
    """One engine of a package runs at a time; a spare table of it may stand by."""
    seen: dict[object, Where] = {}
    for engine, where in rows(document, "engine"):
        package = engine.get("package")
        if not isinstance(package, str) or engine.get("enabled") is False:
            continue
        if package in seen:
            message = f"the engine of line {seen[package].line} is {package!r} too; disable one"
            yield where.at("package").fault(message)
        seen.setdefault(package, where)


def _peer_faults(peer: Table, where: Where) -> Iterator[Fault]:
    title, port, host = peer.get("ae_title"), peer.get("port", 0), peer.get("host", "")
    if isinstance(title, str) and (reason := ae_title_reason(title)):
        yield where.at("ae_title").fault(reason)
    if isinstance(port, int) and not 0 <= port <= 65535:
        yield where.at("port").fault(f"must be 0 to 65535, got {port}")
    elif port and host == "":
        yield where.at("host").fault("is missing; a peer with a port is called at its host")
    for key in ("quiet_period_s", "deadline_s"):
        seconds = peer.get(key)
        if isinstance(seconds, int | float) and not 0 < seconds < float("inf"):
            yield where.at(key).fault(f"must be greater than 0, got {seconds}")
    for index, address in enumerate(_texts(peer.get("hosts"))):
        if "/" in address and not _is_network(address):
            place = where.at("hosts").item(index)
            yield place.fault(f"{address!r} is no network; write it as 192.0.2.0/24")


def _caller_faults(document: Document) -> Iterator[Fault]:
    """A caller is known by AE title and address: two peers with both the same are one."""
    seen: dict[tuple[str, str], Where] = {}
    for peer, where in rows(document, "peer"):
        title, host = peer.get("ae_title"), peer.get("host", "")
        for address in _texts(peer.get("hosts")) or _texts([host]):
            caller = (str(title), address)
            if address and caller in seen:
                line = seen[caller].line
                yield where.at("ae_title").fault(
                    f"the peer of line {line} calls as {title!r} from {address} too; "
                    "a caller must be one peer"
                )
            seen.setdefault(caller, where)


def _reference_faults(engine: Table, where: Where, document: Document) -> Iterator[Fault]:
    for key in ("output", "destination"):
        known = _texts([_name(table, key) for table, _ in rows(document, key)])
        names = engine.get(f"{key}s")
        for index, name in enumerate(names if isinstance(names, list) else ()):
            if isinstance(name, str) and name not in known:
                listed = ", ".join(known) or "none; add one with a [[" + key + "]] table"
                place = where.at(f"{key}s").item(index)
                yield place.fault(
                    f"no {key} is called {name!r}{meant(name, known)} (known: {listed})"
                )


def _called_faults(table: Table, where: Where, document: Document) -> Iterator[Fault]:
    """An option ``peer`` names a peer, and one that can be called."""
    name = table.get("peer")
    peers = {str(_name(peer, "peer")): peer for peer, _ in rows(document, "peer")}
    if not isinstance(name, str):
        return
    if name not in peers:
        listed = ", ".join(peers) or "none; add one with a [[peer]] table"
        yield where.at("peer").fault(
            f"no peer is called {name!r}{meant(name, peers)} (known: {listed})"
        )
    elif peers[name].get("port", 0) == 0:
        yield where.at("peer").fault(f"the peer {name!r} has no port, so it cannot be called")


def _texts(values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
