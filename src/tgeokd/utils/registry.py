"""Named things that can be chosen in a config: methods, tasks, models, metrics, classifiers, analyses, estimators.

An entry is one file that registers itself with a decorator; nothing else in the package knows its name. Another package adds
entries through an entry point, or by calling :meth:`Registry.register`.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from importlib import import_module, metadata, resources
from importlib.resources.abc import Traversable
from typing import Any, Generic, TypeVar

from tgeokd.utils.errors import missing_package, unknown_name

T = TypeVar("T")
U = TypeVar("U")

_REGISTERED = re.compile(r'^@[A-Z_]+\.register\(\s*"([^"]+)"', re.MULTILINE)


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name. Names are listed without importing the files that define the entries.

    Args:
        kind: what the entries are called in messages, for example ``"method"``.
        package: whose files register entries with ``@NAME.register("...")`` at the start of a line. They are imported when
            one of their entries is first used.
        group: entry points of this group of installed packages are entries too.
        renamed: earlier names of entries and the names that replace them; used with a ``DeprecationWarning``.

    Example:
        >>> SHAPES: Registry[type] = Registry("shape")
        >>> @SHAPES.register("square")
        ... class Square:
        ...     pass
        >>> SHAPES["square"] is Square
        True
    """

    def __init__(
        self,
        kind: str,
        package: str | None = None,
        *,
        group: str | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.package, self.group, self.renamed = kind, package, group, renamed or {}
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """A decorator that adds a class or a function under a name. A class gets the name as its attribute ``name``.

        Raises:
            ValueError: from the decorator, where the name stands for something else already.
        """

        def add(entry: U) -> U:
            existing: Any = self._entries.get(name, entry)
            if existing is not entry and _place(existing) != _place(entry):
                raise ValueError(f"{self.kind} {name!r} is registered already, as {existing!r}")
            self._add(name, entry)
            return entry

        return add

    def _add(self, name: str, entry: Any) -> None:
        if isinstance(entry, type):
            with suppress(TypeError):  # a built-in class has no place for it
                entry.name = name  # type: ignore[attr-defined]
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The entry of a name.

        Raises:
            InputError: for a name that does not exist, with the nearest one; and where an optional library of the entry is
                not installed, with the extra to install.
        """
        if name in self.renamed:
            old, name = name, self.renamed[name]
            warnings.warn(f"{self.kind} {old!r} is now called {name!r}", DeprecationWarning, stacklevel=2)
        if name not in self._entries:
            if name not in self._loaders:
                raise unknown_name(self.kind, name, self)
            try:
                found = self._loaders[name]()
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("tgeokd"):
                    raise
                raise missing_package(f"{self.kind} {name!r}", error) from error
            if name not in self._entries:  # an entry point that does not register itself
                self._add(name, found)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._loaders or name in self.renamed

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._loaders, *self._entries}))

    def __len__(self) -> int:
        return len({*self._loaders, *self._entries})

    @cached_property
    def _loaders(self) -> dict[str, Callable[[], Any]]:
        """By name, what imports the entry."""
        points = metadata.entry_points(group=self.group) if self.group else ()
        own = _registered_in(resources.files(self.package), self.package) if self.package else ()
        found: dict[str, Callable[[], Any]] = {point.name: point.load for point in points}
        return found | {name: partial(import_module, module) for name, module in own}  # the package's own entries win


def _registered_in(folder: Traversable, package: str) -> Iterator[tuple[str, str]]:
    """Name and module of the entries that the files of a package register, read from their text."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir() and path.joinpath("__init__.py").is_file():
            yield from _registered_in(path, f"{package}.{path.name}")
        elif path.name.endswith(".py"):
            module = package if path.name == "__init__.py" else f"{package}.{path.name.removesuffix('.py')}"
            yield from ((name, module) for name in _REGISTERED.findall(path.read_text(encoding="utf-8")))


def _place(entry: Any) -> tuple[Any, Any]:
    """Where an entry is defined: a module that is imported twice registers its entries twice."""
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", id(entry))
