"""Methods by their names."""

from __future__ import annotations

import pytest
from small_training import refused

import tgeokd
from tgeokd.methods import METHODS, Method, build_method
from tgeokd.utils.errors import InputError

CLASSES = {
    "ce": tgeokd.CrossEntropy,
    "kd": tgeokd.VanillaKD,
    "anl": tgeokd.AnnealingKD,
    "ada": tgeokd.AdaptiveKD,
    "wls": tgeokd.WeightedSoftLabelKD,
    "rw": tgeokd.ReweightingKD,
    "dkd": tgeokd.DecoupledKD,
    "lskd": tgeokd.LogitStandardizationKD,
    "posterior": tgeokd.PosteriorKD,
    "gce": tgeokd.GeneralizedCrossEntropy,
    "mwnet": tgeokd.MetaWeightNet,
    "rld": tgeokd.RefinedLogitKD,
    "eakd": tgeokd.EntropyAdaptiveKD,
    "tgeo": tgeokd.TGeoKD,
}


def test_every_promised_method_is_registered_under_its_name():
    assert set(METHODS) == set(CLASSES)
    for name, cls in CLASSES.items():
        built = build_method(name)
        assert type(built) is cls
        assert isinstance(built, Method)
        assert built.name == name


def test_the_earlier_name_of_lskd_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match="'ls'.*'lskd'"):
        assert METHODS["ls"] is tgeokd.LogitStandardizationKD
    with pytest.warns(DeprecationWarning, match="'lskd'"):
        assert build_method("ls", kd_weight=3.0).kd_weight == 3.0
    assert "ls" in METHODS
    assert "ls" not in list(METHODS)


def test_options_reach_the_constructor():
    assert build_method("kd", alpha=0.5).constant == 0.5
    assert build_method("anl", form="regression", steps=5).steps == 5
    assert build_method("tgeo", outer="union", update_interval=3).update_interval == 3


def test_instances_share_no_state():
    build_method("ada", level="class")
    assert not build_method("ada").needs_class_means


@pytest.mark.parametrize(("given", "nearest"), [("tgoe", "tgeo"), ("wsl", "wls"), ("adaa", "ada"), ("kdd", "kd")])
def test_an_unknown_method_is_refused_with_the_nearest_name(given, nearest):
    with refused(repr(given), repr(nearest)):
        build_method(given)


def test_a_name_unlike_any_other_is_refused_with_all_names():
    with pytest.raises(InputError) as caught:
        build_method("xyzzy")
    assert set(CLASSES) <= set(str(caught.value).replace(",", " ").split())


@pytest.mark.parametrize(("name", "given", "nearest"), [("kd", "alhpa", "alpha"), ("tgeo", "encodng", "encoding")])
def test_an_unknown_option_is_refused_with_the_nearest_name(name, given, nearest):
    with refused(repr(name), repr(given), repr(nearest)):
        build_method(name, **{given: 1})


def test_a_method_without_options_refuses_any():
    with refused("'ce'", "'x'"):
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
        ("lskd", {"kd_weight": "9 or so"}),
        ("rw", {"hypergradient": "last_layer"}),
        ("gce", {"q": 0.0}),
        ("rld", {"warmup": 2.5}),
        ("eakd", {"entropy_temperature": 0.0}),
        ("mwnet", {"hidden": 0}),
        ("mwnet", {"normalise": "batch"}),
        ("tgeo", {"encoding": "polar"}),
        ("tgeo", {"update_interval": 0}),
        ("tgeo", {"outer": "unoin"}),
        ("tgeo", {"vertices": False, "edges": False, "angles": False}),
    ],
)
def test_impossible_values_are_refused(name, options):
    option = next(iter(options))
    with refused(option):
        build_method(name, **options)


@pytest.mark.parametrize("cls", [tgeokd.TGeoKD, tgeokd.ReweightingKD])
def test_an_unknown_outer_source_is_refused_by_the_constructor_too(cls):
    with refused("outer", "unoin"):
        cls(outer="unoin")


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("every", "update_interval", 3),
        ("average", "ema_decay", 0.5),
        ("fixed_length", "project_out_step_length", False),
    ],
)
def test_earlier_names_of_the_options_of_tgeo_work_with_a_warning(old, new, value):
    with pytest.warns(DeprecationWarning, match=f"'{old}'.*'{new}'"):
        method = tgeokd.TGeoKD(**{old: value})
    assert getattr(method, new) == value == getattr(tgeokd.TGeoKD(**{new: value}), new)
    with pytest.raises(TypeError, match=f"'{new}'.*'{old}'"):
        tgeokd.TGeoKD(**{old: value, new: value})
