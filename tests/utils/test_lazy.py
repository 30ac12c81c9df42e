"""Names of a package that are imported when first used."""

from __future__ import annotations

import sys

import pytest

from tgeokd.utils.lazy import lazy_attributes


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "lazy_example"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from tgeokd.utils.lazy import lazy_attributes\n"
        "places = {'answer': 'lazy_example.deep', 'deep': 'lazy_example.deep', 'gone': 'lazy_example.missing'}\n"
        "__getattr__, __dir__ = lazy_attributes(__name__, places)\n"
    )
    (folder / "deep.py").write_text("answer = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lazy_example

    yield lazy_example
    for name in [name for name in sys.modules if name.startswith("lazy_example")]:
        del sys.modules[name]


def test_a_name_is_imported_when_first_used(package):
    assert "lazy_example.deep" not in sys.modules
    assert {"answer", "deep", "places"} <= set(dir(package))
    assert "lazy_example.deep" not in sys.modules
    answer = package.answer
    assert answer is sys.modules["lazy_example.deep"].answer
    assert vars(package)["answer"] is answer


def test_a_submodule_stands_for_itself(package):
    assert package.deep is sys.modules["lazy_example.deep"]


def test_an_unknown_name_is_an_attribute_error_and_a_missing_module_an_import_error(package):
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
    with pytest.raises(ModuleNotFoundError, match="missing"):
        _ = package.gone


def test_all_names_are_listed_for_any_package():
    load, names = lazy_attributes(__name__, {"other": "json"})
    assert "other" in names()
    with pytest.raises(AttributeError, match="other"):
        load("other")
