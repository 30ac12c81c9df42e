from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.report.figures import alpha_by_group, alpha_by_label, metric_by_row


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when they were saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def assert_is_a_picture(path, min_colours=3):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 600 <= image.width <= 2500
        assert 150 <= image.height <= 2500
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) >= min_colours


def record(epoch, **means):
    groups = {name: {"count": 0, "mean": None, "histogram": [0] * 10} for name in GROUPS}
    for name, mean in means.items():
        groups[name] = {"count": 3, "mean": mean, "histogram": [0] * 10}
    return {"epoch": epoch, "alpha": groups}


# ---- accuracy by method


def intervals(figure):
    """From name of the row to mean, low and high end of what is drawn."""
    axes = figure.axes[0]
    names = {round(y): label.get_text() for y, label in axis_labels(axes)}
    found = {}
    for container in axes.containers:
        line, _, bars = container
        y = round(line.get_ydata()[0])
        ends = sorted(bars[0].get_segments()[0][:, 0]) if bars else [None, None]
        found[names[y]] = (line.get_xdata()[0], *ends)
    return found


def test_the_interval_is_scipy_s_t_interval(tmp_path, drawn):
    values = {"ce": [0.90, 0.91, 0.93], "kd (alpha=0.5)": [0.8, 0.9], "tgeo": [0.95, 0.94, 0.955, 0.97, 0.95]}
    path = metric_by_row(values, "accuracy", tmp_path / "a.png", title="clean", highlighted=["tgeo"])
    found = intervals(drawn[0])
    assert set(found) == set(values)
    for method, sample in values.items():
        mean = np.mean(sample)
        low, high = stats.t.interval(0.95, len(sample) - 1, loc=mean, scale=stats.sem(sample))
        assert found[method] == pytest.approx((100 * mean, 100 * low, 100 * high))
    assert_is_a_picture(path)


def test_one_seed_has_no_interval_and_a_metric_has_its_own_unit(tmp_path, drawn):
    assert metric_by_row({"ce": [0.9]}, "auc", tmp_path / "a.png", title="x", highlighted=[]) == tmp_path / "a.png"
    assert intervals(drawn[0]) == {"ce": (0.9, None, None)}


def test_rows_are_drawn_from_the_top_and_chosen_ones_are_highlighted(tmp_path, drawn):
    rows = {"ce": [0.9, 0.91], "tgeo": [0.93, 0.95], "kd": [0.9, 0.92]}
    metric_by_row(rows, "accuracy", tmp_path / "a.png", title="clean labels", highlighted={"tgeo"})
    axes = drawn[0].axes[0]
    height = {label.get_text(): axes.transData.transform((0, y))[1] for y, label in axis_labels(axes)}
    assert sorted(rows, key=height.get, reverse=True) == list(rows)
    assert axes.get_title() == "clean labels"
    colour = {round(c[0].get_ydata()[0]): to_hex(c[0].get_color()) for c in axes.containers}
    assert colour[0] == colour[2] != colour[1]


def axis_labels(axes):
    return zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)


def test_many_rows_make_a_taller_figure(tmp_path):
    def height(count):
        rows = {f"method {i}": [0.9, 0.91] for i in range(count)}
        path = metric_by_row(rows, "accuracy", tmp_path / f"{count}.png", title="x", highlighted=[])
        with Image.open(path) as image:
            return image.height

    assert height(30) > height(5) + 500


@pytest.mark.parametrize(("metric", "bound"), [("accuracy", 101), ("auc", 1.01)])
def test_the_axis_ends_at_the_largest_possible_value(metric, bound, tmp_path, drawn):
    metric_by_row({"ce": [0.9, 0.99]}, metric, tmp_path / "a.png", title="x", highlighted=[])
    assert drawn[0].axes[0].get_xlim()[1] == pytest.approx(bound)


def test_the_axis_of_a_loss_covers_its_interval(tmp_path, drawn):
    metric_by_row({"ce": [2.0, 3.0]}, "nll", tmp_path / "a.png", title="x", highlighted=[])
    assert drawn[0].axes[0].get_xlim()[1] > 2.5


# ---- alpha by group


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def points(line) -> dict[float, float]:
    """What can be seen of a line."""
    pairs = zip(line.get_xdata(), np.ma.filled(np.ma.masked_invalid(line.get_ydata()), np.nan), strict=True)
    return {float(x): float(y) for x, y in pairs if not np.isnan(y)}


def test_each_group_s_line_is_its_mean_over_the_runs(tmp_path, drawn):
    first = [record(0, teacher_right_agree=0.4, teacher_wrong_disagree=0.1), record(1, teacher_right_agree=0.6)]
    second = [
        record(0, teacher_right_agree=0.6),
        record(1, teacher_right_agree=0.9),
        record(2, teacher_right_agree=1.0),
    ]
    path = alpha_by_group([first, second], tmp_path / "sub" / "g.png", title="tgeo")
    assert path == tmp_path / "sub" / "g.png"
    assert_is_a_picture(path)
    found = [points(line) for line in lines(drawn[0]).values()]
    assert len(found) == 2  # two of the four groups were never seen
    assert found[0] == pytest.approx({1: 0.5, 2: 0.75, 3: 1.0})  # epochs are counted from 1
    assert found[1] == pytest.approx({1: 0.1})


def test_a_group_of_a_handful_of_samples_is_not_drawn(tmp_path, drawn):
    history = [record(epoch, teacher_right_agree=0.9, teacher_wrong_agree=0.2) for epoch in range(3)]
    for epoch, count in enumerate((9, 10, 500)):  # of 1,000 samples
        history[epoch]["alpha"]["teacher_wrong_agree"]["count"] = count
        history[epoch]["alpha"]["teacher_right_agree"]["count"] = 1000 - count
    alpha_by_group([history], tmp_path / "g.png", title="tgeo")
    found = [points(line) for line in lines(drawn[0]).values()]
    assert found == [pytest.approx({1: 0.9, 2: 0.9, 3: 0.9}), pytest.approx({2: 0.2, 3: 0.2})]


def test_four_groups_have_four_lines_that_can_be_told_apart(tmp_path, drawn):
    history = [record(epoch, **{name: 0.1 + 0.2 * i for i, name in enumerate(GROUPS)}) for epoch in range(3)]
    alpha_by_group([history], tmp_path / "g.png", title="tgeo")
    found = lines(drawn[0])
    assert len(found) == 4
    assert len({(line.get_color(), line.get_linestyle()) for line in found.values()}) == 4
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(found)


def test_a_band_spans_the_runs(tmp_path, drawn):
    runs = [[record(0, teacher_right_agree=a), record(1, teacher_right_agree=a + 0.1)] for a in (0.2, 0.3, 0.7)]
    alpha_by_group(runs, tmp_path / "g.png", title="tgeo")
    corners = drawn[0].axes[0].collections[0].get_paths()[0].vertices
    for epoch, span in ((1, (0.2, 0.7)), (2, (0.3, 0.8))):
        heights = corners[corners[:, 0] == epoch, 1]
        assert (heights.min(), heights.max()) == pytest.approx(span)
    alpha_by_group(runs[:1], tmp_path / "g.png", title="tgeo")
    assert not drawn[1].axes[0].collections  # one run has no spread


@pytest.mark.parametrize(
    "histories",
    [[], [[]], [[{"epoch": 0, "alpha": None}]], [[{"epoch": 0}]], [[record(0), record(1)]]],
    ids=["no run", "no epoch", "no ratios", "no key", "empty groups"],
)
def test_without_ratios_there_is_no_figure(tmp_path, histories):
    assert alpha_by_group(histories, tmp_path / "g.png", title="ce") is None
    assert not list(tmp_path.iterdir())


def test_a_group_seen_in_one_epoch_alone_can_be_seen(tmp_path, drawn):
    alpha_by_group([[record(0, teacher_right_agree=0.4)]], tmp_path / "g.png", title="tgeo")
    (line,) = lines(drawn[0]).values()
    assert line.get_marker() not in (None, "None", "", " ")


def test_epochs_apart_from_each_other_can_be_seen(tmp_path, drawn):
    history = [
        record(epoch, teacher_right_agree=0.4, **({"teacher_wrong_agree": 0.7} if epoch in (0, 2) else {}))
        for epoch in range(4)
    ]
    alpha_by_group([history], tmp_path / "g.png", title="tgeo")
    _, apart = lines(drawn[0]).values()
    assert set(points(apart)) == {1, 3}
    assert apart.get_marker() not in (None, "None", "", " ")


def test_epochs_are_whole_numbers(tmp_path, drawn):
    history = [record(epoch, teacher_right_agree=0.4) for epoch in range(3)]
    alpha_by_group([history], tmp_path / "g.png", title="tgeo")
    low, high = drawn[0].axes[0].get_xlim()
    assert all(tick == round(tick) for tick in drawn[0].axes[0].get_xticks() if low <= tick <= high)


# ---- alpha by label


def test_the_histogram_shows_each_group_s_shares(tmp_path, drawn):
    alpha = [0.01, 0.02, 0.03, 0.51, 0.97, 0.98]
    corrupted = [False, False, False, False, True, True]
    path = alpha_by_label(alpha, corrupted, tmp_path / "l.png", title="tgeo")
    assert_is_a_picture(path)
    axes = drawn[0].axes[0]
    heights = [[bar.get_height() for bar in container] for container in axes.containers]
    clean = [0.0] * 20
    clean[0], clean[10] = 75.0, 25.0
    assert heights[0] == pytest.approx(clean)
    assert heights[1] == pytest.approx([0.0] * 19 + [100.0])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [
        f"clean labels (n = 4, mean {np.mean(alpha[:4]):.2f})",
        f"corrupted labels (n = 2, mean {np.mean(alpha[4:]):.2f})",
    ]


@pytest.mark.parametrize("corrupted", [[], [False] * 4, [True] * 4], ids=["none known", "all clean", "all corrupted"])
def test_with_one_kind_of_label_there_is_no_figure(tmp_path, corrupted):
    assert alpha_by_label([0.5] * len(corrupted), corrupted, tmp_path / "l.png", title="tgeo") is None
    assert not list(tmp_path.iterdir())
