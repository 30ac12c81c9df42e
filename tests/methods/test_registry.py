"""Methods by their names."""

from __future__ import annotations

import pytest

import tgeokd
from tgeokd.methods import METHODS, Method, build_method
from tgeokd.utils.errors import InputError


def test_every_promised_method_is_there_under_its_name():
    assert set(METHODS) == {"ce", "kd", "anl", "ada", "wls", "rw", "dkd", "ls", "tgeo"}
    promised = {
        "ce": tgeokd.CrossEntropy,
        "kd": tgeokd.VanillaKD,
        "anl": tgeokd.AnnealingKD,
        "ada": tgeokd.AdaptiveKD,
        "wls": tgeokd.WeightedSoftLabelKD,
        "rw": tgeokd.ReweightingKD,
        "dkd": tgeokd.DecoupledKD,
        "ls": tgeokd.LogitStandardizationKD,
        "tgeo": tgeokd.TGeoKD,
    }
    for name, cls in promised.items():
        built = build_method(name)
        assert type(built) is cls
        assert isinstance(built, Method)
        assert built.name == name


def test_options_reach_the_constructor():
    assert build_method("kd", alpha=0.5).constant == 0.5
    assert build_method("anl", form="regression", steps=5).steps == 5
    assert build_method("tgeo", outer="union", every=3).every == 3


def test_instances_share_nothing():
    build_method("ada", level="class")
    assert not build_method("ada").needs_class_means


@pytest.mark.parametrize(("given", "nearest"), [("tgoe", "tgeo"), ("wsl", "wls"), ("adaa", "ada"), ("kdd", "kd")])
def test_an_unknown_method_is_refused_with_the_nearest_name(given, nearest):
    with pytest.raises(InputError, match=f"unknown method '{given}'; did you mean '{nearest}'"):
        build_method(given)


def test_a_hopeless_name_is_refused_with_all_names():
    with pytest.raises(InputError, match="unknown method 'xyzzy'; known: ce, kd, anl, ada, wls, rw, dkd, ls, tgeo"):
        build_method("xyzzy")


def test_an_unknown_option_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="option of method 'kd' 'alhpa'; did you mean 'alpha'"):
        build_method("kd", alhpa=0.5)
    with pytest.raises(InputError, match="option of method 'tgeo' 'encodng'; did you mean 'encoding'"):
        build_method("tgeo", encodng="scalar")


def test_a_method_without_options_refuses_any():
    with pytest.raises(InputError, match="unknown option of method 'ce' 'x'; known: none"):
        build_method("ce", x=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kd", {"alpha": 2.0}),
        ("kd", {"alpha": "much"}),
        ("anl", {"steps": 2.5}),
        ("ada", {"level": "batch"}),
        ("wls", {"form": "linear"}),
        ("rw", {"delta": 0.0}),
        ("dkd", {"beta": -1.0}),
        ("dkd", {"standardise": 1}),
        ("ls", {"kd_weight": "9 or so"}),
        ("rw", {"hypergradient": "last_layer"}),
        ("tgeo", {"encoding": "polar"}),
        ("tgeo", {"every": 0}),
        ("tgeo", {"outer": "unoin"}),
        ("tgeo", {"vertices": False, "edges": False, "angles": False}),
    ],
)
def test_impossible_values_are_refused(name, options):
    option = next(iter(options))
    with pytest.raises(InputError, match=option):
        build_method(name, **options)


@pytest.mark.parametrize("cls", [tgeokd.TGeoKD, tgeokd.ReweightingKD])
def test_a_misspelt_outer_mode_is_refused_by_the_constructor_too(cls):
    with pytest.raises(InputError, match="outer"):
        cls(outer="unoin")
