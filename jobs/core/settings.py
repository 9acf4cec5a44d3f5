"""Settings from a YAML file and the command line, checked against a dataclass.

Two class variables of a settings class make other names work:

    ALIASES: other names of its settings, `{"output_dir": "output"}`; names may be dotted, and a name of one letter is a
        short option (`-i`). A function, `{"use_gpu": ("num_gpus", gpus)}`, converts the value from its argument's type.
    IGNORED: options that mean nothing here, with the reason that is logged.
"""

import copy
import dataclasses
import difflib
import functools
import logging
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import get_type_hints, is_typeddict

from actors.core import storage
from actors.core.errors import UserError
from jobs.core.describe import REQUIRED, classes_in, default_of, is_literal, members, plain, settings_of, types_of
from jobs.core.shared_settings import SharedConfig, put_into_effect
from jobs.core.yaml_values import WORDS, one_line, parsed, typed

log = logging.getLogger(__name__)

Config = TypeVar("Config")
Tree = dict[str, Any]
_NAME = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"


class SettingsError(UserError):
    """A setting that does not exist or has a wrong value; the message names it by its dotted path."""


def load(
    config: type[Config], arguments: Sequence[str], base: Tree | None = None, positional: Sequence[str] = ()
) -> Config:
    """Read settings from the command line.

    Args:
        arguments: `key=value`, `--key value`, `--key=value` or `--flag`, where `-` and `_` are the same in a key; and
            at most one settings file (YAML; a path or s3://). A single setting overrides the file, wherever it stands.
            Values are YAML: `a.b=1`, `a.b=null`, `a={b: [x, y]}`.
        base: settings below all of these, such as those that an output was made with.
        positional: settings whose values may be given without their names, in this order.

    Raises:
        SettingsError: all that is wrong, each by its dotted path.
    """
    given, rest = read_arguments(config, arguments)
    for name in positional:
        if rest and not rest[0].endswith((".yaml", ".yml")):
            merge(given, {name: rest.pop(0)})
    if len(rest) > 1:
        raise SettingsError(f"Unexpected argument {rest[1]!r}. Write settings as key=value, as in output=results.")
    tree = modern(config, copy.deepcopy(base or {}))
    for file in rest:
        merge(tree, modern(config, read_yaml(file)))
    merge(tree, modern(config, given))
    _apply_shared(config, tree)
    # Only together they may say which member of a union it is, and so what its other names are.
    return check(config, modern(config, tree))


def _apply_shared(config: Any, tree: Tree) -> None:
    """Take the settings that every verb has out of a tree: they are of this process and its workers."""
    names = types_of(SharedConfig).keys() - types_of(config).keys()
    groups = {name: tree.pop(name) for name in names if name in tree}
    put_into_effect(check(SharedConfig, groups), list(groups))


def check(config: type[Config], tree: Tree) -> Config:
    """The settings of a tree; raises SettingsError where one does not exist or has a wrong value."""
    try:
        return _adapter(config).validate_python(_completed(config, typed(config, tree)), extra="forbid")
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(config, problem) for problem in error.errors())) from error


@functools.cache
def _adapter(config: type[Config]) -> TypeAdapter[Config]:
    """Made once: a verb of many settings takes it a tenth of a second."""
    return TypeAdapter(config)


def _completed(config: Any, tree: Tree, values: Any = None) -> Tree:
    """The tree with what a group's own default sets, where the tree gives a part of the group only.

    A field may have another default than its class, as `embeddings` with a batch size; one setting of the group must
    not bring back the class's defaults of all others. values: the default that the tree is a part of.
    """
    full = dict(tree)
    for field in dataclasses.fields(config):
        own = default_of(field)
        default = own if values is None else getattr(values, field.name)
        group = tree.get(field.name)
        if isinstance(group, dict) and dataclasses.is_dataclass(default) and _fits(type(default), group):
            full[field.name] = _completed(type(default), group, default)
        elif values is not None and field.name not in tree and default != own:
            full[field.name] = plain(default)
    return full


def read_yaml(uri: str) -> Tree:
    """A settings file as a tree, dotted keys resolved; an empty file has no settings."""
    try:
        tree = parsed(storage.read_bytes(uri)) or {}
    except (FileNotFoundError, IsADirectoryError) as error:
        raise SettingsError(f"{uri!r}: no such settings file. Write single settings as key=value.") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{uri} is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{uri} has no settings: write one `key: value` a line.")
    found: Tree = {}
    merge(found, tree)
    return found


def merge(tree: Tree, other: dict[Any, Any]) -> None:
    """Put settings over those of a tree; keys of the other may be dotted."""
    for dotted, value in other.items():
        key, dot, rest = str(dotted).partition(".")
        if dot:
            value = {rest: value}
        if isinstance(value, dict):
            group = tree.get(key)
            tree[key] = group if isinstance(group, dict) else {}
            merge(tree[key], value)
        else:
            tree[key] = value


# --------------------------------------------------------------------------------------------------- command line


def read_arguments(config: Any, arguments: Sequence[str]) -> tuple[Tree, list[str]]:
    """Options as a tree of settings, and the arguments that are no options."""
    tree: Tree = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        token = left.pop(0)
        option = re.fullmatch(rf"--?({_NAME})(?:=(.*))?|({_NAME})=(.*)", token, re.DOTALL)
        if option is None:
            rest.append(token)
            continue
        key = (option[1] or option[3]).replace("-", "_")
        kind = type_at(config, key)
        value = option[2] if option[1] else option[4]
        values = _following(left, kind) if value is None else [value]
        if not values:
            raise SettingsError(f"{token} needs a value.")
        merge(tree, {key: _value(token, kind, values)})
    return tree, rest


def _following(left: list[str], kind: Any) -> list[str]:
    """The values that belong to an option of this type; a flag without one is true, also one that may be text."""
    if bool in members(kind):
        text = left and str in members(kind) and not re.match(rf"--|-[A-Za-z]|{_NAME}=|.*\.ya?ml$", left[0])
        return [left.pop(0)] if text or (left and left[0].lower() in WORDS) else ["true"]
    values: list[str] = []
    while left and not re.match(r"--|-[A-Za-z]", left[0]) and not (values and re.match(rf"{_NAME}=", left[0])):
        values.append(left.pop(0))
        if not _is_list(kind):
            break
    return values


def _value(token: str, kind: Any, values: list[str]) -> Any:
    found = [_parse(token, kind, value) for value in values]
    several = len(found) > 1 or (_only_lists(kind) and isinstance(found[0], int | float | bool | str))
    return found if several else found[0]


def _parse(token: str, kind: Any, value: str) -> Any:
    """A value as YAML; where text is wanted and no mapping, text that YAML takes for one or cannot read stays."""
    try:
        found = parsed(value)
    except yaml.YAMLError as error:
        if _is_text(kind):
            return value
        raise SettingsError(f"{token!r}: the value is not YAML: {one_line(error)}") from error
    mistaken = isinstance(found, dict) or (found is None and value.lower() not in ("", "~", "null"))
    return value if mistaken and _is_text(kind) and not _is_mapping(kind) else found


def _is_mapping(kind: Any) -> bool:
    return any(typing.get_origin(one) is dict or dataclasses.is_dataclass(one) for one in members(kind))


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(one) in (list, tuple) for one in members(kind))


def _only_lists(kind: Any) -> bool:
    """Whether one value has to become a list: no other type of the setting could be it."""
    return _is_list(kind) and all(one is type(None) or typing.get_origin(one) in (list, tuple) for one in members(kind))


def _is_text(kind: Any) -> bool:
    return any(one is str or is_literal(one) for one in members(kind))


def type_at(config: Any, dotted: str) -> Any:
    """The type of a setting by its dotted path or another name; None where there is no such setting."""
    if dotted in getattr(config, "IGNORED", {}):
        return str
    match getattr(config, "ALIASES", {}).get(dotted):
        case str(target):
            return type_at(config, target)
        case (_, convert):
            return next(iter(typing.get_type_hints(convert).values()))
    name, _, rest = dotted.partition(".")
    kind = {**types_of(SharedConfig), **types_of(config)}.get(name)
    while rest and (inside := _inside(kind, rest.partition(".")[0])) is not None:
        kind, rest = inside, rest.partition(".")[2]
    inner = classes_in(kind)
    return type_at(inner[0], rest) if rest and inner else kind if not rest else None


def _inside(kind: Any, key: str) -> Any:
    """The type of what a mapping has under a key; None where the type is no mapping, or has no such key."""
    for one in members(kind):
        if typing.get_origin(one) is dict:
            return typing.get_args(one)[1]
        if is_typeddict(one):
            return get_type_hints(one).get(key)
    return None


# ----------------------------------------------------------------------------------------------------- other names


def modern(config: Any, tree: Tree) -> Tree:
    """The tree with today's names; options that mean nothing here are logged and left out."""
    for name, reason in getattr(config, "IGNORED", {}).items():
        if _pull(tree, name.split(".")) is not dataclasses.MISSING:
            log.warning("%s is ignored: %s", name, reason)
    for old, new in getattr(config, "ALIASES", {}).items():
        value = _pull(tree, old.split("."))
        if value is dataclasses.MISSING:
            continue
        target, convert = (new, None) if isinstance(new, str) else new
        merge(tree, {target: value if convert is None else convert(value)})
    for name, kind in types_of(config).items():
        if isinstance(tree.get(name), dict):
            tree[name] = _modern_value(kind, tree[name])
    return tree


def _modern_value(kind: Any, tree: Tree) -> Tree:
    inner = classes_in(kind)

    def group(tree: Tree) -> Tree:
        fitting = [one for one in inner if _fits(one, tree)]
        # Where the word that tells them apart is in a file, a single setting may fit several.
        return modern(fitting[0], tree) if len(fitting) == 1 else tree

    if any(one in inner for one in members(kind)):
        return group(tree)
    # A mapping from names to groups of settings.
    return {key: group(one) if inner and isinstance(one, dict) else one for key, one in tree.items()}


def _fits(config: Any, tree: Tree) -> bool:
    """Whether the words that tell one member of a union from another are this one's."""
    words = {name: typing.get_args(kind) for name, kind in types_of(config).items() if is_literal(kind)}
    return all(tree[name] in words[name] for name in words if name in tree)


def _pull(tree: Any, path: list[str]) -> Any:
    """Take a setting out of a tree, with the groups that this leaves empty; MISSING where it is not there."""
    key, *rest = path
    if not isinstance(tree, dict) or key not in tree:
        return dataclasses.MISSING
    if not rest:
        return tree.pop(key)
    found = _pull(tree[key], rest)
    if found is not dataclasses.MISSING and tree[key] == {}:
        del tree[key]
    return found


def _explain(config: Any, problem: Any) -> str:
    dotted = ".".join(_path(config, problem["loc"]))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(dotted, [one.path for one in settings_of(config)], 1)
        return f"{dotted}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"].startswith("union_tag"):
        about = problem["ctx"]
        dotted = f"{dotted}.{about['discriminator'].strip(chr(39))}"
        if "tag" in about:
            return f"{dotted}: '{about['tag']}' is none of {about['expected_tags']}"
        return f"{dotted}: this setting is required"
    required = {one.path for one in settings_of(config) if one.value is REQUIRED}
    if problem["type"] == "missing" or (problem["input"] is None and dotted in required):
        return f"{dotted}: this setting is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message}" if dotted else message


def _path(config: Any, location: Sequence[str | int]) -> list[str]:
    """A location of pydantic without the words by which it tells members of a union apart."""
    path: list[str] = []
    kind: Any = config
    for part in location:
        groups = [one for one in members(kind) if dataclasses.is_dataclass(one)]
        told = [one for one in groups if len(groups) > 1 and part in _words_of(one)]
        if told:
            kind = told[0]
            continue
        path.append(str(part))
        if groups:
            kind = types_of(groups[0]).get(str(part))
        else:
            kind = next((typing.get_args(one)[-1] for one in members(kind) if typing.get_origin(one) is dict), None)
    return path


def _words_of(config: Any) -> set[Any]:
    return {word for kind in types_of(config).values() if is_literal(kind) for word in typing.get_args(kind)}
