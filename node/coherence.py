"""What one table of a manifest alone cannot show to be wrong: tables that contradict one another.

Reads the file as it stands, so that these faults come out together with those of the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from node.config import Document, Table, Where, build
from node.domain.condition import Condition
from node.domain.condition import faults as condition_faults
from node.domain.errors import ConfigError, Fault
from node.rules import rows


def rule_faults(document: Document) -> Iterator[Fault]:
    """Every contradiction with its place."""
    for series, where in rows(document, "series"):
        yield from _condition_faults(series, where.at("accepts"))
    for family, key in (
        ("series", "role"), ("input", "tensor"), ("finding", "label"), ("finding", "name"),
        ("member", "model"),
    ):  # fmt: skip
        yield from _repeated(document, family, key)
    yield from _role_faults(document)
    yield from _threshold_faults(document)
    yield from _activation_faults(document)
    yield from _member_faults(document)


def _condition_faults(series: Table, where: Where) -> Iterator[Fault]:
    accepts = series.get("accepts")
    for index, table in enumerate(accepts if isinstance(accepts, list) else ()):
        place = where.item(index)
        try:
            condition = build(Condition, table, place)
        except ConfigError:
            continue
        yield from (place.fault(message) for message in condition_faults(condition))


def _repeated(document: Document, family: str, key: str) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for table, where in rows(document, family):
        value, place = table.get(key), where.at(key)
        if value is None:
            continue
        if str(value) in seen:
            line = seen[str(value)]
            yield place.fault(f"another [[{family}]] has {value!r} already (line {line})")
        seen.setdefault(str(value), place.line)


def _role_faults(document: Document) -> Iterator[Fault]:
    """Roles that are named but not defined, and those that are defined but feed no tensor."""
    defined = {str(table.get("role")): where for table, where in rows(document, "series")}
    fed = dict(_named_roles(document, "input"))
    for role, where in (*_named_roles(document, "pre"), *fed.items()):
        if role not in defined:
            known = ", ".join(defined) or "none"
            yield where.fault(f"no [[series]] has the role {role!r} (known: {known})")
    for role, where in defined.items():
        if fed and role not in fed:
            yield where.at("role").fault(f"no [[input]] takes the role {role!r}")


def _named_roles(document: Document, family: str) -> Iterator[tuple[str, Where]]:
    for table, where in rows(document, family):
        named = table.get("roles")
        for index, role in enumerate(named if isinstance(named, list) else ()):
            yield str(role), where.at("roles").item(index)


def _threshold_faults(document: Document) -> Iterator[Fault]:
    """The operating point that results state is the one that the steps apply."""
    point = document.table.get("operating_point")
    stated = point.get("threshold") if isinstance(point, Mapping) else None
    applied = [
        table.get("value", 0.5)
        for table, _ in rows(document, "post")
        if table.get("kind") == "threshold"
    ]
    if stated is not None and applied and stated not in applied:
        where = document.where.at("operating_point").at("threshold")
        yield where.fault(f"is {stated}, but the threshold step applies {applied[0]}")


def _activation_faults(document: Document) -> Iterator[Fault]:
    """The window makes the probabilities, but one place says how: the output."""
    window, output = _table(document, "window"), _table(document, "output")
    where = document.where.at("window")
    if output and "logits" in window:
        yield where.at("logits").fault("is said by [output].activation; leave it out here")
    if output.get("activation") == "sigmoid" and window.get("exclusive"):
        yield where.at("exclusive").fault(
            "channels that exclude one another have activation softmax, not sigmoid"
        )
    yield from _late_activation_faults(document, window, output)


def _late_activation_faults(document: Document, window: Table, output: Table) -> Iterator[Fault]:
    """What goes only where blocks are blended as probabilities."""
    late = output.get("activated", "blocks")
    if late == "blocks":
        return
    if output.get("activation", "none") == "none":
        yield (
            document.where.at("output")
            .at("activated")
            .fault("says when, but [output].activation does not say which: sigmoid or softmax")
        )
    if window.get("skip_air"):
        yield (
            document.where.at("window")
            .at("skip_air")
            .fault(
                f"air that is skipped has a probability and no logit, and logits are blended here "
                f"([output].activated = {late!r}); leave one of the two out"
            )
        )


def _member_faults(document: Document) -> Iterator[Fault]:
    """An ensemble has several models, and each of them once."""
    first = _table(document, "engine").get("model")
    members = list(rows(document, "member"))
    for member, where in members:
        if first is not None and member.get("model") == first:
            yield where.at("model").fault(f"[engine] has {first!r} already, as the first member")
    if "ensemble" in document.table and not members:
        where = document.where.at("ensemble")
        yield where.fault("is one model alone: every further one stands in a [[member]] table")


def _table(document: Document, name: str) -> Table:
    """A table of the file; empty where there is none, or something else."""
    table = document.table.get(name)
    return table if isinstance(table, dict) else {}
