# SPDX-License-Identifier: Apache-2.0
"""Parse the text of a spec file, JSON or YAML, into a tree of Python values."""

from __future__ import annotations

import json
import sys

from .. import paths
from ..errors import ChError
from .records import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# The largest depth of YAML: far more than a spec needs, and far less than overflows a stack of 8 MiB.
_DEEP = 1000


def load_json(text: str, file: str) -> object:
    """Return the tree of a JSON text; Malformed names line and column."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in items:
            if name in found:
                raise Malformed(f"{file}: the key {name!r} is there twice")
            found[name] = value
        return found

    def constant(word: str) -> NoReturn:
        raise Malformed(f"{file}: {word} is not JSON")

    try:
        tree: object = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Malformed(f"{file}: not JSON: {error.msg}: line {error.lineno} column {error.colno}") from None
    except (ValueError, RecursionError):
        raise Malformed(f"{file}: not JSON: a number too long, or nested too deep") from None
    return tree


def load_yaml(text: str, file: str) -> object:
    """Return the tree of a YAML text, with all scalars as str; Malformed names line and column."""
    yaml = import_yaml(file)
    # Scalars stay str: a device may be named 0, and 1.1 is a version, not a number.
    base: type = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: object, deep: bool = False) -> dict[object, object]:
            seen = set()
            for key, _ in node.value:  # type: ignore[attr-defined]
                name = key.value if isinstance(key.value, str) else id(key)
                if name in seen:
                    raise Malformed(f"{file}: the key {name!r} is there twice: line {key.start_mark.line + 1}")
                seen.add(name)
            return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    try:
        _check_depth(yaml, base, text, file)
        # A BaseLoader creates only str, lists and dicts.
        tree: object = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or "can't be read"
        where = f": line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise Malformed(f"{file}: not YAML: {why}{where}") from None
    except (RecursionError, ValueError, TypeError):
        raise Malformed(f"{file}: not YAML: nested too deep, or a character that isn't allowed") from None
    return tree


def _check_depth(yaml: Any, loader: type, text: str, file: str) -> None:
    """Raise Malformed if the text is nested so deep that the C loader's recursion could overflow the stack.

    Each level takes a bracket or at least half a column, so an ordinary file need not be parsed twice.
    """
    if 2 * max(map(len, text.split("\n"))) + text.count("[") + text.count("{") < _DEEP:
        return
    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEP:
            raise Malformed(f"{file}: not YAML: exceeded maximum nesting depth")


def import_yaml(file: str) -> Any:
    """Return the module yaml; ChError if it isn't installed.

    The launcher's sys.path has only the package's parent directory. Here, the directories
    with slurm_ch's dependencies are searched too, last.
    """
    before = list(sys.path)
    sys.path += paths.library_directories()
    try:
        import yaml
    except ImportError:
        raise ChError(f"{file}: reading YAML needs PyYAML, which is not installed; JSON doesn't") from None
    finally:
        sys.path[:] = before
    return yaml
