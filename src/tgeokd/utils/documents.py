"""YAML and JSON files, which may be damaged, of another kind, or made to exhaust the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.integrity import verify_checksum
from tgeokd.utils.limits import Limits, too_large


def parse_yaml(text: str, source: object) -> Any:
    """The plain values in a YAML text.

    Raises:
        InputError: for what is not YAML, has tags of other types, contains itself, or is beyond a limit.
    """
    limits = Limits.current()
    if len(text) > limits.document_kib * 1024:
        raise too_large(source, f"has {len(text) / 1024:,.0f} KiB", f"{limits.document_kib} KiB", "document_kib")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if _size(root, {}, 0, limits, source) > limits.nodes:
            raise too_large(source, "has many entries through its aliases", f"{limits.nodes:,}", "nodes")
        return loader.construct_document(root)
    except RecursionError as error:
        raise too_large(source, "is nested deeply", f"{limits.nesting} levels", "nesting") from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that does not exist, a key that is a list
        raise InputError(f"{source} is not YAML: {one_line(error)}") from error


def _size(node: yaml.Node, known: dict[int, int], depth: int, limits: Limits, source: object) -> int:
    """The number of values of a node with its aliases written out."""
    if depth > limits.nesting:
        raise too_large(source, "is nested deeply", f"{limits.nesting} levels", "nesting")
    if id(node) not in known:
        known[id(node)] = limits.nodes + 1  # of a node that contains itself
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        known[id(node)] = 1 + sum(_size(child, known, depth + 1, limits, source) for child in children)
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file, see :func:`parse_yaml`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: {one_line(error)}") from error
    return parse_yaml(text, path)


def parse_json(text: str | bytes, source: object) -> Any:
    """The values in a JSON text; InputError for anything else, and for one that is nested too deeply for Python."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON: {one_line(error)}") from error


def read_json(path: Path) -> Any:
    """The values in a JSON file, see :func:`parse_json`, compared with its checksum if it has one."""
    verify_checksum(path, "the file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return parse_json(content, path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The entries of a JSON file that holds one object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content
