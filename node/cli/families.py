"""All families in one place, for the commands that must know every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from node.config import Registries

_VALIDATION: Literal["validation"] = "validation"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def registries() -> Registries:
    """Family -> kind -> member, named as the TOML tables are."""
    from node.destinations import DESTINATIONS
    from node.outputs import OUTPUTS
    from node.runtimes import RUNTIMES
    from node.triggers import TRIGGERS

    return {
        "trigger": TRIGGERS,
        "output": OUTPUTS,
        "destination": DESTINATIONS,
        "runtime": RUNTIMES,
    }


def schema(families: Registries) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a whole configuration file."""
    from pydantic import TypeAdapter

    from node.config import Config

    kinds = [(family, kind) for family, members in families.items() for kind in members]
    adapters = [
        ((family, kind), _VALIDATION, TypeAdapter(families[family][kind])) for family, kind in kinds
    ]
    frame = [(("", ""), _VALIDATION, TypeAdapter[Any](Config))]
    references, whole = TypeAdapter.json_schemas([*frame, *adapters])
    definitions = whole["$defs"]
    names = {key: place["$ref"].rpartition("/")[2] for (key, _), place in references.items()}
    for family, members in families.items():
        definitions[family] = {
            "oneOf": [_entry(definitions[names[family, kind]], family, kind) for kind in members]
        }
    root = _framed(definitions.pop(names["", ""]), definitions)
    return {"$schema": _DRAFT, **root, "title": "ai-node", "$defs": definitions}


def _entry(member: dict[str, Any], family: str, kind: str) -> dict[str, Any]:
    """A member's table as it stands in the file: with its kind and, where it has one, its name."""
    own: dict[str, Any] = {"kind": {"const": kind}}
    required = ["kind", *member.get("required", ())]
    if family != "runtime":
        own["name"] = {"type": "string", "minLength": 1}
    if family in ("output", "destination"):
        required.insert(1, "name")
    return {
        **member,
        "title": f"{family} {kind}",
        "properties": {**own, **member.get("properties", {})},
        "required": required,
    }


def _framed(root: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The frame, whose entries are now those of the families."""
    for family in ("trigger", "output", "destination"):
        root["properties"][family] |= {"items": {"$ref": f"#/$defs/{family}"}}
    root["properties"]["trigger"]["default"] = [{"kind": "push"}]
    engine = definitions["EngineSection"]["properties"]
    engine["runtime"] = {"$ref": "#/$defs/runtime", "default": {"kind": "onnx"}}
    engine["fallback"] |= {"items": {"$ref": "#/$defs/runtime"}}
    definitions.pop("_EntryTable")
    return root
