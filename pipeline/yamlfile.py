"""YAML as users write it: plain data, every value with its line, nothing that runs or unfolds.

YAML 1.2 booleans (so `on: pair` is a key named on), `1e-4` is a number, and what makes YAML dangerous or surprising
(tags, anchors and aliases, duplicate keys) is refused with its line.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError, where

MAX_BYTES = 32 * 2**20

Lines = dict[tuple[str | int, ...], int]
"""Path of keys and indices -> line number, from 1."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path, strings: bool = False) -> tuple[Any, Lines]:
    """A YAML file's data and the line of each value. With `strings`, every scalar stays the text that was written
    (so `1513.10` and `no` are not turned into something else).

    Raises RecipeError (FILE:LINE: what is wrong and what to do).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{path}: has {len(raw):,} bytes; a YAML file here has at most {MAX_BYTES:,}.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{where(path, line)}: is not UTF-8 text. Save the file as UTF-8.") from None
    return parse_yaml(text, path, strings)


def parse_yaml(text: str, path: Path | str, strings: bool = False) -> tuple[Any, Lines]:
    """As `read_yaml`, from text; `path` only names it in messages."""
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                name = getattr(event, "anchor", "")
                line = event.start_mark.line + 1
                raise RecipeError(
                    f"{where(path, line)}: anchors and aliases (&{name}, *{name}) are not read. Write the value out, "
                    "or put it in quotes if it is text."
                )
            tag = getattr(event, "tag", None)
            if tag and tag != "!" and not isinstance(event, yaml.DocumentStartEvent):
                raise RecipeError(
                    f"{where(path, event.start_mark.line + 1)}: the tag {tag} is not read. Remove it, or put the "
                    "value in quotes if it is text."
                )
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: Lines = {}
            return (None if node is None else _build(loader, node, (), lines, path, strings)), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(
            f"{where(path, mark.line + 1 if mark else None)}: is not valid YAML: {problem}. Look at the indentation, "
            "colons and quotes there and just before."
        ) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise RecipeError(f"{path}: is nested too deeply.") from None


def _build(
    loader: Any, node: yaml.Node, at: tuple[str | int, ...], lines: Lines, path: Path | str, strings: bool
) -> Any:
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{where(path, line)}: a key must be a plain word, not a list or a mapping.")
            key = key_node.value
            if key in mapping:
                raise RecipeError(f"{where(path, line, key)}: is given twice. Keep one of the two.")
            mapping[key] = _build(loader, value_node, (*at, key), lines, path, strings)
            lines[(*at, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*at, i), lines, path, strings) for i, child in enumerate(node.value)]
    if strings:
        return node.value
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise RecipeError(f"{where(path, node.start_mark.line + 1)}: {node.value!r}: {error}.") from None
