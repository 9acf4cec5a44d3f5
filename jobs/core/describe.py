"""What a settings class offers: its settings with type, default and meaning, as YAML, JSON schema and Markdown.

A settings class is a frozen dataclass; what stands below a field says what the setting is.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union

import yaml
from pydantic import TypeAdapter

REQUIRED = object()
"""The default of a setting that has none."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting, or a group of them."""

    path: str
    kind: str
    """Its type, in words."""
    value: Any
    """Its default, or REQUIRED."""
    doc: str
    group: bool


@cache
def types_of(config: Any) -> dict[str, Any]:
    """Types of a settings class by field."""
    hints = typing.get_type_hints(config)
    return {one.name: hints[one.name] for one in dataclasses.fields(config)}


def members(kind: Any) -> list[Any]:
    """The types of a union, or the type itself."""
    return list(typing.get_args(kind)) if typing.get_origin(kind) in (Union, types.UnionType) else [kind]


def classes_in(kind: Any) -> list[Any]:
    """The settings classes that a value of this type may have, also inside lists and mappings."""
    found = [one for one in members(kind) if dataclasses.is_dataclass(one)]
    inner = [one for one in members(kind) if typing.get_origin(one) in (list, tuple, dict)]
    return [*found, *(deep for one in inner for arg in typing.get_args(one) for deep in classes_in(arg))]


def is_literal(kind: Any) -> bool:
    """Whether a type is a choice of words."""
    return typing.get_origin(kind) is Literal


def settings_of(config: Any, prefix: str = "", values: Any = None) -> Iterator[Setting]:
    """All settings of a class, each group before what it holds; values: an instance whose values go before defaults."""
    docs, kinds = docs_of(config), types_of(config)
    for field in dataclasses.fields(config):
        value = default_of(field) if values is None else getattr(values, field.name)
        path, group = prefix + field.name, dataclasses.is_dataclass(value)
        yield Setting(path, kind_text(kinds[field.name]), value, docs[field.name], group)
        if group:
            yield from settings_of(type(value), f"{path}.", value)


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a field; REQUIRED where there is none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return REQUIRED if field.default_factory is dataclasses.MISSING else field.default_factory()


@cache
def docs_of(config: Any) -> dict[str, str]:
    """What stands below each field of a class; a class that only changes a default keeps the words of the first."""
    docs: dict[str, str] = {}
    for base in reversed(inspect.getmro(config)):
        if not (isinstance(base, type) and dataclasses.is_dataclass(base)):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, below in itertools.pairwise([*tree.body, ast.Pass()]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = ""
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    text = inspect.cleandoc(str(below.value.value))
                docs[node.target.id] = text or docs.get(node.target.id, "")
    return docs


def kind_text(kind: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, args))
    if len(members(kind)) > 1:
        return " or ".join(kind_text(one) for one in members(kind))
    if kind is type(None):
        return "null"
    if origin in (list, tuple):
        return "list of " + ", ".join(dict.fromkeys(kind_text(one) for one in args if one is not Ellipsis))
    if origin is dict:
        return f"mapping of {kind_text(args[0])} to {kind_text(args[1])}"
    return getattr(kind, "__name__", str(kind))


def plain(value: Any) -> Any:
    """A value as YAML and JSON know it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return value


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1 << 30, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def as_yaml(config: Any, values: Any = None) -> str:
    """All settings as a settings file, with meaning and type as comments."""
    lines: list[str] = []
    for one in settings_of(config, values=values):
        depth = one.path.count(".")
        indent, name = "  " * depth, one.path.rpartition(".")[2]
        if depth == 0:
            lines.append("")
        lines += [f"{indent}# {line}" for line in one.doc.splitlines()]
        if one.group:
            lines.append(f"{indent}{name}:")
        elif one.value is REQUIRED:
            lines.append(f"{indent}{name}:  # required; {one.kind}")
        else:
            lines.append(f"{indent}{name}: {inline(one.value)}  # {one.kind}")
    return "\n".join(lines).strip() + "\n"


def as_markdown(config: Any) -> str:
    """All settings as a table."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for one in settings_of(config):
        default = "" if one.group else "required" if one.value is REQUIRED else f"`{inline(one.value)}`"
        cells = (f"`{one.path}`", "group" if one.group else one.kind, default, " ".join(one.doc.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def as_schema(config: Any, *others: Any) -> dict[str, Any]:
    """A JSON schema by which an editor completes and checks a settings file; others: classes that add settings."""
    schema, *more = (TypeAdapter(one).json_schema() for one in (config, *others))
    for one, added in zip((config, *others), (schema, *more), strict=True):
        _describe(one, added, added.get("$defs", {}), set())
    for added in more:
        for part in ("properties", "$defs"):
            schema[part] = {**added.get(part, {}), **schema.get(part, {})}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _describe(config: Any, schema: dict[str, Any], definitions: dict[str, Any], seen: set[Any]) -> None:
    """Add to a class's schema what its settings mean, and that there are no others."""
    if config in seen:
        return
    seen.add(config)
    schema["additionalProperties"] = False
    for name, kind in types_of(config).items():
        about = schema["properties"][name]
        if doc := docs_of(config)[name]:
            about["description"] = " ".join(doc.split())
        for inner in classes_in(kind):
            for reference in _references(about):
                if definitions[reference]["title"] == inner.__name__:
                    _describe(inner, definitions[reference], definitions, seen)


def _references(schema: Any) -> Iterator[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            yield from _references(one)
