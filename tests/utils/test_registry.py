"""The registry: names without imports, entries on use, entry points, errors."""

from __future__ import annotations

import sys

import pytest

from tgeokd.utils.errors import InputError, check_names, unknown_name
from tgeokd.utils.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with two entries in two files, one of which needs a library that is not installed."""
    folder = tmp_path / "shapes"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        'from tgeokd.utils.registry import Registry\nSHAPES = Registry("shape", __name__, group="tgeokd.shapes", '
        'renamed={"quad": "square"})\n'
    )
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "square.py").write_text(
        'from shapes import SHAPES\n\n\n@SHAPES.register("square")\ndef square():\n    return 4\n'
    )
    (folder / "star.py").write_text(
        'import imblearn_that_is_missing\nfrom shapes import SHAPES\n\n\n@SHAPES.register("star")\ndef star():\n    return 5\n'
    )
    outside = tmp_path / "outside.py"
    outside.write_text("def circle():\n    return 0\n")
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tgeokd.shapes]\ncircle = outside:circle\nsquare = outside:circle\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shapes", "outside")]:
        del sys.modules[name]


def test_names_are_known_without_importing_the_files_that_define_them(package):
    from shapes import SHAPES

    assert list(SHAPES) == ["circle", "square", "star"]
    assert len(SHAPES) == 3
    assert not {"shapes.inner.square", "shapes.star", "outside"} & set(sys.modules)


def test_an_entry_is_imported_when_it_is_used(package):
    from shapes import SHAPES

    assert SHAPES["square"]() == 4
    assert "shapes.inner.square" in sys.modules
    assert "shapes.star" not in sys.modules


def test_an_entry_point_of_another_package_is_an_entry(package):
    from shapes import SHAPES

    assert SHAPES["circle"]() == 0
    assert SHAPES["square"]() == 4  # the package's own entries win


def test_a_missing_library_is_named(package):
    from shapes import SHAPES

    with pytest.raises(InputError, match="imblearn_that_is_missing"):
        SHAPES["star"]


def test_an_earlier_name_is_accepted_with_a_warning(package):
    from shapes import SHAPES

    with pytest.warns(DeprecationWarning, match="square"):
        assert SHAPES["quad"]() == 4
    assert "quad" in SHAPES


def test_an_unknown_name_gets_the_nearest_one(package):
    from shapes import SHAPES

    with pytest.raises(InputError, match="square"):
        SHAPES["sqare"]
    assert "sqare" not in SHAPES


def test_one_name_stands_for_one_thing():
    registry: Registry[type] = Registry("shape")

    @registry.register("a")
    class First:
        pass

    assert registry["a"] is First
    assert First.name == "a"
    registry.register("a")(First)
    registry.register("b")(int)  # a built-in class cannot be given the attribute
    assert registry["b"] is int
    same_place = type("First", (), {"__qualname__": First.__qualname__, "__module__": First.__module__})
    registry.register("a")(same_place)  # its module was imported again
    assert registry["a"] is same_place
    with pytest.raises(ValueError, match="'a'"):
        registry.register("a")(type("Second", (), {}))


def test_a_near_name_is_suggested_and_all_are_listed():
    text = str(unknown_name("task", "cifar10", ["digits", "cifar100"]))
    assert all(name in text for name in ("'cifar10'", "'cifar100'", "digits"))


def test_check_names_accepts_known_ones_and_names_the_first_unknown():
    check_names("option", ["a", "b"], ["a", "b", "c"])
    with pytest.raises(InputError, match="'x'"):
        check_names("option", ["a", "x", "y"], ["a"])
