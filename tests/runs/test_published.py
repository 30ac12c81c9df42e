"""Published numbers: found where they are claimed, and nowhere else."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from tgeokd.core.metrics import higher_is_better
from tgeokd.data import TASKS
from tgeokd.methods import METHODS
from tgeokd.models import MODELS
from tgeokd.runs.config import override, preset, replace
from tgeokd.runs.plan import parse_method
from tgeokd.runs.published import Published, _load, claimed, claims
from tgeokd.runs.results import MethodSpec

DNN = {"name": "mlp", "hidden": [1000] * 5, "embedding": 16, "dropout": 0.2}
R34, R18 = "torchvision:resnet34", "torchvision:resnet18"


def find(task, teacher, student, method, options=None, metric=None):
    models = ({"name": model} if isinstance(model, str) else model for model in (teacher, student))
    metric = metric or ("auc" if task == "criteo" else "accuracy")
    return claimed(task, *models, MethodSpec(method, options or {}), metric)


def value(*row, **options):
    found = find(*row, **options)
    return None if found is None else found.value


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # from the READMEs of RepDistiller, mdistiller and logit-standardization-KD
        (("cifar100", "resnet56", "resnet20", "teacher"), 0.7234),
        (("cifar100", "resnet56", "resnet20", "ce"), 0.6906),
        (("cifar100", "resnet56", "resnet20", "kd"), 0.7066),
        (("cifar100", "resnet56", "resnet20", "dkd"), 0.7197),
        (("cifar100", "resnet56", "resnet20", "lskd"), 0.7143),
        (("cifar100", "resnet110", "resnet20", "kd"), 0.7067),
        (("cifar100", "resnet110", "resnet32", "dkd"), 0.7411),
        (("cifar100", "resnet32x4", "resnet8x4", "dkd"), 0.7632),
        (("cifar100", "wrn_40_2", "wrn_16_2", "ls"), 0.7611),
        (("cifar100", "wrn_40_2", "wrn_40_1", "kd"), 0.7354),
        (("cifar100", "vgg13", "vgg8", "dkd"), 0.7468),
        (("cifar100", "vgg13", "MobileNetV2", "kd"), 0.6737),
        (("cifar100", "ResNet50", "vgg8", "kd"), 0.7381),
        (("cifar100", "resnet32x4", "ShuffleV1", "dkd"), 0.7645),
        (("cifar100", "wrn_40_2", "ShuffleV1", "kd"), 0.7483),
        (("imagenet", R34, R18, "teacher"), 0.7331),
        (("imagenet", R34, R18, "ce"), 0.6975),
        (("imagenet", R34, R18, "kd"), 0.7103),
        (("imagenet", R34, R18, "wls"), 0.7204),
        (("criteo", DNN, "wide_deep", "teacher"), 0.81404),
        (("criteo", DNN, DNN | {"name": "wide_deep"}, "ce"), 0.81423),
    ],
)
def test_known_numbers(row, expected):
    assert value(*row) == pytest.approx(expected, abs=1e-9)


def test_an_entry_says_who_claims_it_and_how_it_was_measured():
    assert find("cifar100", "resnet56", "resnet20", "kd") == Published(
        task="cifar100",
        teacher="resnet56",
        student="resnet20",
        method="kd",
        metric="accuracy",
        value=0.7066,
        source="HobbitLong/RepDistiller, README",
        protocol="last epoch; trained on the whole training set",
        needs={},
    )
    assert "best epoch on the test set" in find("cifar100", "resnet56", "resnet20", "dkd").protocol


def test_dkd_on_standardised_logits_has_numbers_of_its_own():
    row = ("cifar100", "resnet56", "resnet20", "dkd")
    assert value(*row, {"standardise": True}) == pytest.approx(0.7232)
    assert value(*row, {"standardise": False, "beta": 2.0}) == pytest.approx(0.7197)


def test_a_model_may_come_with_its_options():
    teacher, student = {"name": R34, "pretrained": True}, {"name": R18}
    assert value("imagenet", teacher, student, "dkd") == pytest.approx(0.7170)


def test_a_network_of_another_size_has_no_claim():
    assert value("criteo", DNN, DNN, "ce") == pytest.approx(0.81404)
    assert find("criteo", DNN, DNN | {"hidden": [64]}, "ce") is None
    assert find("criteo", DNN, "mlp", "ce") is None


def test_the_metric_can_be_chosen():
    assert value("criteo", DNN, DNN, "ce", metric="nll") == pytest.approx(0.43802)
    assert value("criteo", DNN, DNN, "ce", metric="auc") == pytest.approx(0.81404)
    assert find("criteo", DNN, DNN, "ce", metric="accuracy") is None


@pytest.mark.parametrize(
    "row",
    [
        ("digits", "mlp", "mlp", "kd"),
        ("cifar10", "resnet56", "resnet20", "kd"),
        ("cifar100", "resnet20", "resnet56", "kd"),
        ("cifar100", "resnet56", "resnet8", "ce"),
        ("cifar100", "resnet56", "resnet20", "tgeo"),
        ("cifar100", "resnet56", "resnet20", "wls"),
        ("cifar100", "ResNet50", "vgg8", "dkd"),
        ("cifar100", {}, {}, "kd"),
    ],
)
def test_what_nobody_claims_is_none(row):
    assert find(*row) is None


# ---- the file


def test_every_name_of_the_file_is_one_of_ours():
    for entry in _load():
        assert entry.task in TASKS
        assert entry.method in {*METHODS, "lskd", "dkd+lskd", "teacher"}
        assert higher_is_better(entry.metric) == (entry.metric != "nll")
        for model in (entry.teacher, entry.student):
            assert model is None or model in MODELS or model.startswith(("torchvision:", "timm:"))


def test_no_row_is_listed_twice_and_every_number_is_possible():
    entries = _load()
    keys = [(e.task, e.teacher, e.student, e.method, e.metric) for e in entries]
    assert len(set(keys)) == len(keys)
    for entry in entries:
        assert 0.4 < entry.value < 0.9
        assert entry.source
        assert entry.protocol


def test_every_pair_improves_on_its_student_alone():
    # what distillation papers claim throughout; a slip of a digit or a row would show here
    for entry in _load():
        if entry.teacher and entry.student:
            alone = value(entry.task, entry.teacher, entry.student, "ce")
            assert 0 < entry.value - alone < 0.08, entry


def test_every_source_is_used_and_every_pair_has_models_with_numbers_alone():
    content = yaml.safe_load(resources.files("tgeokd.runs").joinpath("published.yaml").read_text())
    used = set()
    for table in content["tables"]:
        used |= {table["alone"]["source"], *table.get("methods", {}).values()}
        for teacher, student, *_ in table.get("pairs", []):
            assert {teacher, student} <= set(table["alone"]["values"])
    assert used == set(content["sources"])


def test_rows_of_an_unchanged_full_recipe_have_their_published_values():
    rows = [parse_method(text) for text in ("ce", "kd", "dkd", "dkd:standardise=true", "tgeo", "ce@train+val")]
    found = claims(preset("cifar100", "paper"), rows, "accuracy")
    values = {claim.row.label: claim.value for claim in found}
    # ResNet-56 -> ResNet-20 on CIFAR-100
    assert values == pytest.approx(
        {"ce": 0.6906, "kd": 0.7066, "dkd": 0.7197, "dkd (standardise=True)": 0.7232, "ce (train+val)": 0.6906}
    )


def test_a_tuple_and_a_list_of_sizes_are_the_same_network():
    config = preset("criteo", "paper")
    student = replace(config.student, model=DNN | {"hidden": (1000,) * 5})
    assert [claim.value for claim in claims(replace(config, student=student), [parse_method("ce")], "auc")] == [0.81404]


@pytest.mark.parametrize("setting", ["data.noise=human", "data.train=5000", "data.checksum=any", "data.labels=coarse"])
def test_other_data_than_the_published_have_none(setting):
    config = override(preset("cifar100", "paper"), [setting])
    assert claims(config, [parse_method("kd")], "accuracy") == []
