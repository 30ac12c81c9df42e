"""Looking up by name."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

import pytest

from tgeokd.errors import InputError
from tgeokd.names import EXTRA_OF, Lazy, check_names, look_up, unknown_name


def test_look_up_gives_the_entry():
    assert look_up("task", "b", {"a": 1, "b": 2}) == 2


def test_a_near_name_is_suggested():
    with pytest.raises(InputError) as caught:
        look_up("task", "cifar10", {"digits": 0, "cifar100": 1})
    assert str(caught.value) == "unknown task 'cifar10'; did you mean 'cifar100'? known: digits, cifar100"


def test_a_far_name_gets_the_list():
    assert unknown_name("task", "zzz", ["digits", "adult"]) == "unknown task 'zzz'; known: digits, adult"


def test_an_empty_registry_says_none():
    assert unknown_name("option", "x", []) == "unknown option 'x'; known: none"


def test_check_names_passes_known_ones_and_names_the_first_unknown():
    check_names("option", [], ["a"])
    check_names("option", ["a", "b"], iter(["a", "b", "c"]))
    with pytest.raises(InputError, match="unknown option 'alpa'; did you mean 'alpha'"):
        check_names("option", ["beta", "alpa", "zzz"], iter(["alpha", "beta"]))


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


# ---- registries that import on demand


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Modules that can be imported, written from text; what they imported is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_a_lazy_registry_imports_nothing_until_it_is_asked(on_disk):
    on_disk("lazy_one", "value = 'one'")
    on_disk("lazy_two", "raise RuntimeError('must not be imported')")
    registry = Lazy({"one": "lazy_one:value", "two": "lazy_two:value"})
    assert list(registry) == ["one", "two"]
    assert len(registry) == 2
    assert "two" in registry
    assert "three" not in registry
    assert "lazy_one" not in sys.modules
    assert registry["one"] == "one"
    assert look_up("thing", "one", registry) == "one"
    assert "lazy_two" not in sys.modules


def test_an_unknown_name_of_a_lazy_registry_is_refused_without_an_import(on_disk):
    on_disk("lazy_two", "raise RuntimeError('must not be imported')")
    with pytest.raises(InputError, match=r"^unknown thing 'tow'; did you mean 'two'\? known: two$"):
        look_up("thing", "tow", Lazy({"two": "lazy_two:value"}))


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torchvision", "vision"),
        ("timm", "vision"),
        ("transformers", "text"),
        ("polars", "tabular"),
        ("imblearn", "tabular"),
    ],
)
def test_a_missing_dependency_names_the_extra_that_brings_it(on_disk, monkeypatch, module, extra):
    on_disk("lazy_needs", f"import {module}.deeper\nvalue = 1")
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # Python then raises ModuleNotFoundError
    with pytest.raises(InputError, match=rf"^'mine' needs {module}[.a-z]*: pip install 'tgeokd\[{extra}\]'$"):
        look_up("task", "mine", Lazy({"mine": "lazy_needs:value"}))


def test_the_extras_that_are_named_exist():
    offered = metadata.metadata("tgeokd").get_all("Provides-Extra")
    assert set(EXTRA_OF.values()) <= set(offered)


def test_a_mistake_in_the_package_itself_is_not_taken_for_a_missing_dependency(on_disk):
    on_disk("lazy_wrong", "import no_such_module_anywhere\nvalue = 1")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        Lazy({"mine": "lazy_wrong:value"})["mine"]
