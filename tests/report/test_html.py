from __future__ import annotations

import base64
import html
import json
import re
import shutil
from io import BytesIO

import pytest
import yaml
from PIL import Image
from quick import short

from tgeokd.report.html import build_report
from tgeokd.runs.build import load_data
from tgeokd.runs.compare import compare
from tgeokd.runs.executors import InProcess
from tgeokd.runs.plan import DataVariant, parse_method
from tgeokd.runs.results import ComparisonResults, RunResults
from tgeokd.runs.single import run
from tgeokd.runs.teacher import build_teacher
from tgeokd.utils.errors import InputError

ROWS = ["ce", "kd:alpha=0.5", "rw", "tgeo", "tgeo:outer=holdout", "ce@train+val"]
LABELS = ["ce", "kd (alpha=0.5)", "rw", "tgeo", "tgeo (outer=holdout)", "ce (train+val)"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "comparison"
    variants = [DataVariant("clean", {"noise": 0.0}), DataVariant("noise 30 %", {"noise": 0.3})]
    rows = [parse_method(row) for row in ROWS]
    config = short("student.batch_size=400", "teacher.batch_size=400")
    compare(config, rows, [0, 1], out, variants=variants, executor=InProcess())
    return out


@pytest.fixture(scope="module")
def page(compared):
    """The report of the comparison."""
    assert build_report(compared) == compared / "report.html"
    return (compared / "report.html").read_text()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "run"
    config = short("data.noise=0.3")
    build_teacher(config, load_data(config), out / "teacher.safetensors")
    run(config, out / "teacher.safetensors", out)
    (out / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    return out


def images(page: str) -> dict[str, Image.Image]:
    """The pictures in the page by their alternative text."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', page)
    assert len(found) == page.count("<img")
    return {name: Image.open(BytesIO(base64.b64decode(data))) for name, data in found}


def cells(page: str) -> list[list[str]]:
    """All rows of all tables."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row, re.S)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)
    ]


def assert_is_self_contained(page: str):
    assert not re.search(r"<(script|link|iframe|object)", page)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(?!data:)[a-z/.]""", page)
    assert not re.search(r"https?://", page)
    assert "@import" not in page


@pytest.mark.slow
def test_the_report_of_a_comparison_names_every_row_and_holds_every_figure(compared, page):
    assert_is_self_contained(page)
    main, others = (
        [f"{row} - {other}" for other in LABELS if other != row] for row in ("tgeo", "tgeo (outer=holdout)")
    )
    assert [row[0] for row in cells(page)] == 2 * ["method", *LABELS, "", *main, "", *others]
    folded = re.findall(r"<details>(.*?)</details>", page, re.S)
    assert [[row[0] for row in cells(table)] for table in folded] == 2 * [["", *others]]
    pictures = images(page)
    assert set(pictures) == {figure.name for figure in (compared / "figures").iterdir()}
    assert sorted(pictures) == sorted(
        [
            "accuracy-clean.png",
            "accuracy-noise-30.png",
            *(
                f"alpha-by-group-{setting}-{row}.png"
                for setting in ("clean", "noise-30")
                for row in ("tgeo", "tgeo-outer=holdout")
            ),
            "alpha-by-label-noise-30-tgeo.png",
            "alpha-by-label-noise-30-tgeo-outer=holdout.png",
        ]
    )
    for name, picture in pictures.items():
        assert picture.width >= 600, name
        with Image.open(compared / "figures" / name) as on_disk:
            assert picture.tobytes() == on_disk.tobytes()


@pytest.mark.slow
def test_the_tables_of_a_comparison_are_its_results(compared, page):
    results = ComparisonResults.read(compared / "results.json")
    rows = cells(page)
    methods = [row for row in rows if row[0] in LABELS]
    for shown, row in zip(methods, results.summary, strict=True):
        accuracy, nll = row.metrics["accuracy"], row.metrics["nll"]
        assert shown[0] == row.label
        assert shown[1] == f"{100 * accuracy.mean:.2f} ± {100 * accuracy.sd:.2f}"
        assert shown[2] == f"{nll.mean:.4f} ± {nll.sd:.4f}"
    gains = {row[0]: row[1] for row in rows[len(rows) // 2 :] if " - " in row[0]}
    expected = [pair for pair in results.pairs if pair.variant == "noise 30 %"]
    assert gains == {f"{pair.reference.label} - {pair.other.label}": f"{100 * pair.gain:.2f}" for pair in expected}


@pytest.mark.slow
def test_the_report_of_a_comparison_holds_its_settings(page):
    assert html.escape("name: noise 30 %") in page
    assert "outer: holdout" in page


def test_the_report_of_a_run(ran):
    page = build_report(ran).read_text()
    assert_is_self_contained(page)
    record = RunResults.read(ran / "results.json").run
    rows = dict(row for row in cells(page) if len(row) == 2)
    for name, value in record.metrics.items():
        assert rows[name] == f"{value:.4f}"
    assert rows["epochs"] == "2"
    assert set(images(page)) == {"alpha-by-group.png", "alpha-by-label.png"}
    assert "digits: tgeo" in page
    assert "noise: 0.3" in page  # config.yaml


def test_a_report_can_be_built_again(ran, tmp_path):
    shutil.copytree(ran, tmp_path / "run")
    first = build_report(tmp_path / "run").read_text()
    (tmp_path / "run" / "report.html").unlink()
    shutil.rmtree(tmp_path / "run" / "figures")
    assert build_report(tmp_path / "run").read_text() == first


def test_a_run_without_ratios_has_no_figures(tmp_path):
    config = short("method=ce")
    build_teacher(config, load_data(config), tmp_path / "teacher.safetensors")
    run(config, tmp_path / "teacher.safetensors", tmp_path / "out")
    page = build_report(tmp_path / "out").read_text()
    assert images(page) == {}
    assert "digits: ce" in page


def test_names_are_text_not_markup(ran, tmp_path):
    shutil.copytree(ran, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    results = json.loads(path.read_text())
    results["run"]["method"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(results))
    with pytest.raises(InputError, match="checksum"):
        build_report(tmp_path / "run")
    path.with_name("results.json.sha256").unlink()
    page = build_report(tmp_path / "run").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


# ---- wrong folders


@pytest.mark.parametrize("name", ["empty", "nowhere", "file"])
def test_a_path_without_results_is_refused(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=name):
        build_report(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"{}", b'{"task": "digits"}', b'{"task": "digits", "runs": []}', b"\xff\xfe"],
)
def test_invalid_results_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json") as caught:
        build_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "ratios.json"])
def test_a_broken_file_beside_the_results_is_named(ran, tmp_path, name):
    shutil.copytree(ran, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=re.escape(name)):
        build_report(tmp_path / "run")
