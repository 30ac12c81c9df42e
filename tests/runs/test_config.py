from __future__ import annotations

import math

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.data import TASKS
from tgeokd.runs.build import load_data
from tgeokd.runs.config import (
    OptimizerConfig,
    Recipe,
    RunConfig,
    TeacherRecipe,
    load_config,
    override,
    preset,
    presets,
    replace,
)
from tgeokd.runs.single import check
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import validate_config


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe_that_names_it(task):
    config = preset(task)
    assert config.task == task
    assert config.method == "tgeo"


def test_the_digits_recipe_can_be_built():
    check(preset("digits"))
    data = load_data(preset("digits"))
    assert (len(data.train), len(data.held_out), len(data.test)) == (600, 200, 997)


def test_a_recipe_for_an_unknown_task_is_refused():
    with pytest.raises(InputError, match=r"'digit'.*'digits'"):
        preset("digit")


# ---- to plain data and back

optimizers = st.builds(
    OptimizerConfig,
    name=st.sampled_from(["sgd", "adam", "adamw"]),
    lr=st.floats(1e-12, 1e3),
    nesterov=st.booleans(),
    weight_decay=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "steps"]),
    milestones=st.lists(st.integers(1, 300), max_size=3).map(tuple),
)
recipes = st.builds(
    Recipe,
    model=st.fixed_dictionaries({"name": st.just("mlp"), "hidden": st.lists(st.integers(1, 9), max_size=2)}),
    epochs=st.integers(1, 500),
    batch_size=st.integers(1, 500),
    optimizer=optimizers,
    patience=st.none() | st.integers(1, 50),
    clip_norm=st.none() | st.floats(1e-9, 10),
)
teachers = st.builds(
    TeacherRecipe,
    model=st.fixed_dictionaries({"name": st.just("mlp")}),
    epochs=st.integers(0, 500),
    optimizer=optimizers,
    weights=st.none() | st.text(max_size=9),
) | st.builds(TeacherRecipe, predictions=st.text(max_size=9))
configs = st.builds(
    RunConfig,
    task=st.just("digits"),
    teacher=teachers,
    student=recipes,
    data=st.dictionaries(st.sampled_from(["noise", "train"]), st.floats(0, 1)),
    data_dir=st.none() | st.text(max_size=9),
    method=st.sampled_from(["kd", "tgeo"]),
    options=st.dictionaries(st.sampled_from(["outer", "hidden"]), st.text(max_size=9) | st.lists(st.integers())),
    train_on=st.sampled_from(["train", "train+val"]),
    temperature=st.floats(1e-3, 100),
    checkpoint_every=st.integers(1, 50),
    seed=st.integers(0, 2**31 - 1),
)


@given(configs)
def test_a_config_comes_back_from_yaml_text_as_it_was(config):
    plain = config.to_dict()
    assert validate_config(RunConfig, yaml.safe_load(yaml.safe_dump(plain, sort_keys=False))) == config
    assert validate_config(RunConfig, plain) == config


def test_a_config_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(preset("digits").to_dict()))
    assert load_config(path) == preset("digits")


def test_a_config_file_may_leave_out_what_has_a_default(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: digits\n"
        "teacher: {model: {name: mlp}, epochs: 3}\n"
        "student: {model: {name: mlp}, epochs: 4, optimizer: {lr: 1e-3}}\n"
    )
    teacher = TeacherRecipe(model={"name": "mlp"}, epochs=3)
    student = Recipe(model={"name": "mlp"}, epochs=4, optimizer=OptimizerConfig(lr=0.001))
    assert load_config(path) == RunConfig(task="digits", teacher=teacher, student=student)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"mine\.yaml"),
        ("a: [1", r"mine\.yaml"),
        ("- 1\n", r"mine\.yaml.*\[1\]"),
        ("", r"mine\.yaml"),
        ("just text", r"mine\.yaml.*'just text'"),
        ("task: digits\n", "'teacher'"),
        ("tusk: digits\n", "'tusk'.*'task'"),
        ("task: 3\nteacher: {}\nstudent: {}\n", "task.*3"),
        ("task: digits\nteacher: {epochs: 3}\nstudent: {}\n", r"teacher\.model.*teacher\.predictions"),
        (
            "task: d\nteacher: {model: {name: mlp}, optimizer: {name: lion}}\nstudent: {}\n",
            r"teacher\.optimizer\.name.*sgd, adam, adamw.*'lion'",
        ),
        ("task: d\nteacher: {model: {name: mlp}, epoch: 1}\nstudent: {}\n", r"'teacher\.epoch'.*'teacher\.epochs'"),
    ],
)
def test_a_wrong_config_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        load_config(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\x80\x02\xff\xfe")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_config(path)


def test_a_wrong_number_of_epochs_or_samples_is_refused():
    for name in ("epochs", "batch_size"):
        with pytest.raises(InputError, match=f"{name}.*0"):
            Recipe(**{"model": {}, "epochs": 1, name: 0})


def test_a_changed_config_is_validated_like_a_new_one():
    config = preset("digits")
    assert replace(config, seed=3).seed == 3
    assert config.seed == 0
    for changes in ({"seed": -1}, {"seeds": 1}, {"student": {"model": {}, "epochs": 0}}):
        with pytest.raises(InputError, match=next(iter(changes))):
            replace(config, **changes)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def test_a_config_file_of_the_version_before_is_read(tmp_path):
    # written by version 0.1 for: tgeokd distill digits --set teacher_cache={} --set student.optimizer.schedule=steps
    content = preset("digits").to_dict()
    content["teacher_cache"] = {"views": None, "dtype": None, "top_k": None, "folder": "/somewhere"}
    content["student"]["optimizer"] |= {"schedule": "steps", "milestones": [3, 5]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    config = load_config(path)
    assert config.student.optimizer.milestones == (3, 5)
    assert config.teacher_cache.folder == "/somewhere"
    assert config.to_dict() == content


def test_the_config_has_a_json_schema():
    schema = RunConfig.model_json_schema()
    assert set(schema["required"]) == {"task", "teacher", "student"}
    assert schema["$defs"]["OptimizerConfig"]["properties"]["name"]["enum"] == ["sgd", "adam", "adamw"]
    assert schema["$defs"]["Recipe"]["properties"]["epochs"]["minimum"] == 1


# ---- --set key=value

BASE = RunConfig(
    task="digits",
    teacher=TeacherRecipe(model={"name": "mlp", "hidden": [9]}, epochs=8, patience=5),
    student=Recipe(model={"name": "mlp", "hidden": [3]}, epochs=6),
    data={"noise": 0.1, "train": 300},
)


@pytest.mark.parametrize(
    ("setting", "value_of", "expected"),
    [
        ("temperature=3", lambda c: c.temperature, 3.0),
        ("seed=7", lambda c: c.seed, 7),
        ("student.epochs=2", lambda c: c.student.epochs, 2),
        ("student.optimizer.lr=1e-3", lambda c: c.student.optimizer.lr, 0.001),
        ("student.optimizer.milestones=[3, 5]", lambda c: c.student.optimizer.milestones, (3, 5)),
        ("teacher.patience=null", lambda c: c.teacher.patience, None),
        ("student.optimizer.nesterov=true", lambda c: c.student.optimizer.nesterov, True),
        ("data.noise=0.3", lambda c: c.data, {"noise": 0.3, "train": 300}),
        ("data.new=a=b", lambda c: c.data["new"], "a=b"),
        ("options.outer=union", lambda c: c.options, {"outer": "union"}),
        ("options={outer: union, every: 2}", lambda c: c.options, {"outer": "union", "update_interval": 2}),
        ("student.model.hidden=[8, 4]", lambda c: c.student.model, {"name": "mlp", "hidden": [8, 4]}),
        ("student.model.dropout=0.1", lambda c: c.student.model["dropout"], 0.1),
        (" student.epochs =2", lambda c: c.student.epochs, 2),
        ("precision=bf16-mixed", lambda c: c.precision, "bf16-mixed"),
    ],
)
def test_one_setting_is_changed_and_no_other(setting, value_of, expected):
    before = BASE.to_dict()
    changed = override(BASE, [setting])
    assert value_of(changed) == expected
    assert changed != BASE
    assert BASE.to_dict() == before
    # putting the old value back gives the old config: nothing else has moved
    *path, last = setting.split("=")[0].strip().split(".")
    now, then = changed.to_dict(), BASE.to_dict()
    place, old = now, then
    for name in path:
        place, old = place[name], old[name]
    place.pop(last)
    old.pop(last, None)
    assert now == then


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.positive=yes", "yes"),
        ("data.positive=no", "no"),
        ("data.label=on", "on"),
        ("data.label=2024", "2024"),
        ("data.label=007", "007"),
        ("data.label=1e3", "1e3"),
        ("data.label=2024-01-01", "2024-01-01"),
        ("data.label=null", None),
        ('data.label="null"', "null"),
        ("data.drop=[on, 2024, 007, y]", ["on", "2024", "007", "y"]),
        ("data.missing=[NA, -, -999]", ["NA", "-", "-999"]),
        ("data.missing=[]", []),
        ("data.separator=;", ";"),
        ("data.separator=|", "|"),
        ("data.decimal=,", ","),
        ("data.seed=3", 3),
        ("data.noise=0.5", 0.5),
        ("data.oversample=yes", True),
    ],
)
def test_words_are_taken_as_typed_where_the_setting_is_text(setting, value):
    config = override(preset("tabular"), [setting])
    name = setting.partition("=")[0].partition(".")[2]
    assert config.data[name] == value
    assert type(config.data[name]) is type(value)
    again = yaml.safe_load(yaml.safe_dump(config.to_dict()))  # and so is the file of the run
    assert again["data"][name] == value


def test_words_are_taken_as_typed_in_settings_of_the_config():
    assert override(BASE, ["data_dir=2024"]).data_dir == "2024"
    assert (
        override(preset("tabular"), ["teacher.data={}", "teacher.data.positive=yes"]).teacher.data["positive"] == "yes"
    )


def test_settings_are_taken_in_order():
    assert override(BASE, ["seed=1", "seed=2"]).seed == 2
    assert override(BASE, []) == BASE


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=3", "'epochs'"),
        ("temprature=3", "'temprature'.*'temperature'"),
        ("student.epoch=3", r"'student\.epoch'.*'student\.epochs'"),
        ("studnet.epochs=3", "'studnet'.*'student'"),
        ("student.optimizer.learning_rate=3", r"'student\.optimizer\.learning_rate'"),
        ("student.optimiser.lr=3", r"'student\.optimiser'.*'student\.optimizer'"),
        ("seed.x=3", "'seed'"),
        ("teacher_cache.view=3", r"'teacher_cache\.view'.*'teacher_cache\.views'"),
        ("teacher_cache.views=many", r"teacher_cache\.views.*'many'"),
        ("teacher_cache.views=0", "views.*0"),
        ("student.epochs", r"'student\.epochs'"),
        ("=3", "''"),
        ("student.epochs=[1", r"'student\.epochs=\[1'"),
        ("student.epochs=three", r"student\.epochs.*'three'"),
        ("student.epochs=2.5", r"student\.epochs.*2\.5"),
        ("student.epochs=0", r"student\.epochs.*0"),
        ("student.epochs=", r"student\.epochs.*None"),
        ("student.optimizer.lr=fast", r"student\.optimizer\.lr.*'fast'"),
        ("student.optimizer.lr=0", r"student\.optimizer\.lr.*0"),
        ("student.optimizer.schedule=linear", "constant, cosine, steps.*'linear'"),
        ("train_on=all", r"train_on.*train, train\+val.*'all'"),
        ("data=3", "data.*3"),
        ("student=3", "student.*3"),
        ("compile=1", "compile.*1"),
        ("seed=true", "seed.*True"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting, message):
    with pytest.raises(InputError, match=message) as caught:
        override(BASE, [setting])
    assert "\n" not in str(caught.value)


# ---- optimizers and schedules


def parameters():
    return [torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]


@pytest.mark.parametrize(
    ("config", "rate_after"),
    [
        (OptimizerConfig(lr=0.2, schedule="cosine"), lambda k: 0.2 * (1 + math.cos(math.pi * k / 12)) / 2),
        (OptimizerConfig(lr=0.2, schedule="steps", milestones=(3, 8)), lambda k: 0.2 * 0.1 ** ((k >= 3) + (k >= 8))),
        (OptimizerConfig(lr=0.2), lambda k: 0.2),
    ],
    ids=["cosine", "steps", "constant"],
)
def test_the_learning_rate_follows_its_schedule(config, rate_after):
    optimizer, scheduler = config.build(parameters(), epochs=12)
    for k in range(13):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate_after(k), abs=1e-12)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    assert (scheduler is None) == (config.schedule == "constant")


def two_steps(config: OptimizerConfig) -> torch.Tensor:
    """Where two steps under the gradients 1 and 3 lead from 1."""
    weights = parameters()
    optimizer, _ = config.build(weights, epochs=1)
    for gradient in (1.0, 3.0):
        weights[0].grad = torch.full((3,), gradient, dtype=torch.float64)
        optimizer.step()
    return weights[0].detach()


def test_sgd_has_the_momentum_and_the_decay_asked_for():
    lr, mu, decay = 0.1, 0.8, 0.05
    for nesterov in (False, True):
        w, v = 1.0, 0.0
        for gradient in (1.0, 3.0):
            g = gradient + decay * w
            v = mu * v + g
            w -= lr * (g + mu * v if nesterov else v)
        config = OptimizerConfig(name="sgd", lr=lr, momentum=mu, nesterov=nesterov, weight_decay=decay)
        assert two_steps(config).tolist() == pytest.approx([w] * 3, abs=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_s_decay_is_coupled_and_adamw_s_is_not(name):
    lr, decay, w, m, v = 0.1, 0.2, 1.0, 0.0, 0.0
    for k, gradient in enumerate((1.0, 3.0), start=1):
        g = gradient + (decay * w if name == "adam" else 0.0)
        w -= lr * decay * w if name == "adamw" else 0.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= lr * (m / (1 - 0.9**k)) / (math.sqrt(v / (1 - 0.999**k)) + 1e-8)
    assert two_steps(OptimizerConfig(name=name, lr=lr, weight_decay=decay)).tolist() == pytest.approx(
        [w] * 3, abs=1e-10
    )


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_learning_rate_that_is_not_positive_is_refused(name, lr):
    with pytest.raises(InputError, match=f"lr.*{lr}"):
        OptimizerConfig(name=name, lr=lr)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": -1.0},
        {"weight_decay": -1.0},
        {"nesterov": True, "momentum": 0.0},
        {"name": "adam", "weight_decay": -1.0},
    ],
)
def test_impossible_momentum_and_decay_are_refused(options):
    with pytest.raises(InputError):
        OptimizerConfig(**options).build(parameters(), 1)


# ---- recipes by task and name


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in presets(task)])
def test_every_shipped_recipe_can_be_read_and_names_its_task(task, name):
    config = preset(task, name)
    assert config.task == task
    assert config.data_dir is None  # that is the user's


def test_every_task_has_a_small_recipe_and_it_is_the_usual_one():
    for task in TASKS:
        assert "lite" in presets(task)
        assert preset(task) == preset(task, "lite")
    assert presets("digits") == ["lite"]


def test_an_unknown_recipe_is_refused_with_the_nearest_one():
    with pytest.raises(
        InputError, match=r"^unknown preset of adult 'papr'; did you mean 'paper'\? known: lite, paper$"
    ):
        preset("adult", "papr")
    with pytest.raises(InputError, match=r"'adlut'.*'adult'"):
        presets("adlut")


@pytest.mark.parametrize("name", ["../digits/lite", "lite.yaml", "", "."])
def test_a_recipe_is_a_name_not_a_path(name):
    with pytest.raises(InputError, match="preset of adult"):
        preset("adult", name)


# ---- teachers


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, r"teacher\.model.*teacher\.predictions"),
        ({"weights": "x.pth"}, r"teacher\.model.*teacher\.predictions"),
        ({"predictions": "x.npz", "model": {"name": "mlp"}}, r"teacher\.predictions"),
        ({"predictions": "x.npz", "weights": "x.pth"}, r"teacher\.predictions"),
        ({"model": {"name": "mlp"}, "epochs": -1}, "epochs.*-1"),
        ({"model": {"name": "mlp"}, "batch_size": 0}, "batch_size.*0"),
        ({"model": {"name": "mlp"}, "patience": 0}, "patience.*0"),
    ],
)
def test_a_teacher_that_cannot_be_made_is_refused(recipe, message):
    with pytest.raises(InputError, match=message):
        TeacherRecipe(**recipe)


def test_teachers_that_take_no_training_need_no_epochs():
    assert TeacherRecipe(predictions="x.npz").epochs == 0
    assert TeacherRecipe(model={"name": "lightgbm"}).epochs == 0


def test_predictions_take_the_place_of_a_model_from_the_command_line():
    given = ["teacher.model={}", "teacher.predictions=theirs.npz"]
    with pytest.raises(InputError, match=r"teacher\.predictions.*teacher\.model=\{\}"):
        override(preset("digits"), given[1:])
    teacher = override(preset("digits"), given).teacher
    assert (teacher.model, teacher.predictions) == ({}, "theirs.npz")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("threads=0", "threads.*0"),
        ("seed=2147483648", "seed.*2147483648"),
        ("student.held_out_batch_size=0", "held_out_batch_size.*0"),
        ("temperature=true", "temperature.*True"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        override(BASE, [setting])
