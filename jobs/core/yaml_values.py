"""YAML as people write it: a value is text where a setting wants text, whatever else it looks like."""

import re
import typing
from dataclasses import is_dataclass
from typing import Any

import yaml

from jobs.core.describe import is_literal, members, types_of


class Integer(int):
    """A whole number, with the text that it was written as."""

    text: str


class Number(float):
    """A number, with the text that it was written as."""

    text: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 2026-11-28, 1:30 and no are text, 010 is ten, 1e3 a number; a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, its keys as text; raise ConstructorError where a key stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = f"{key.value!r} stands twice" if isinstance(key, yaml.ScalarNode) else "a key must be a word"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
            key.tag = _TEXT
        return super().construct_mapping(node, deep)


_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
_INTEGER, _NUMBER = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def _integer(loader: Any, node: Any) -> Integer:
    found = Integer(node.value.replace("_", ""), 16 if "x" in node.value else 10)
    found.text = node.value
    return found


def _number(loader: Any, node: Any) -> Number:
    found = Number(node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    found.text = node.value
    return found


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor(_INTEGER, _integer)
_Loader.add_constructor(_NUMBER, _number)
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INTEGER, r"[-+]?[0-9][0-9_]*|[-+]?0x[0-9a-fA-F]+", list("-+0123456789")),
    (_NUMBER, r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_NUMBER, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    (_MERGE, "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)


def parsed(text: str | bytes) -> Any:
    """A value of YAML; numbers are Integer and Number. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def one_line(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and in which line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else problem


def typed(kind: Any, value: Any) -> Any:
    """A value of `parsed` as its setting's type wants it: numbers as their text, or as plain numbers."""
    if isinstance(value, dict):
        own = [types_of(one) for one in members(kind) if is_dataclass(one)]
        values = [typing.get_args(one)[1] for one in members(kind) if typing.get_origin(one) is dict]
        return {
            key: typed(next((types[key] for types in own if key in types), values[0] if values else Any), one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        items = [typing.get_args(one)[0] for one in members(kind) if typing.get_origin(one) in (list, tuple)]
        return [typed(items[0] if items else Any, one) for one in value]
    if isinstance(value, Integer | Number):
        text = any(one is str or is_literal(one) for one in members(kind)) and not {int, float} & set(members(kind))
        return value.text if text else int(value) if isinstance(value, Integer) else float(value)
    if isinstance(value, str) and {bool, str} <= set(members(kind)) and value.lower() in WORDS:
        return WORDS[value.lower()]
    return value


WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words for true and false."""
