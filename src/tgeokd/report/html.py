"""The report of a folder: its figures, and one HTML page that contains them."""

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from tgeokd.methods.registry import DEFAULT_METHOD
from tgeokd.report.figures import alpha_by_group, alpha_by_label, metric_by_row
from tgeokd.report.tables import Table, comparison_table, paired_differences
from tgeokd.runs.results import ComparisonResults, RunResults, read
from tgeokd.utils.documents import parse_json, read_json
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.files import slug, write_text


class Section(NamedTuple):
    """A heading of the page with a table and figures; ``folded`` shows the heading alone until it is clicked."""

    title: str
    table: Table
    figures: Sequence[Path] = ()
    folded: bool = False

    def images(self) -> list[tuple[str, str]]:
        """File name and base64 of each figure."""
        return [(figure.name, base64.b64encode(figure.read_bytes()).decode()) for figure in self.figures]


def build_report(folder: Path) -> Path:
    """Draw the figures of a finished run or comparison into ``figures/``, and write ``report.html``, the path returned."""
    results = read(folder / "results.json")
    if isinstance(results, RunResults):
        title, config, sections = results.run.method, folder / "config.yaml", [_run(folder, results)]
    else:
        title, config, sections = "comparison", folder / "comparison.yaml", _comparison(folder, results)
    source = resources.files("tgeokd.report").joinpath("templates", "page.html.jinja").read_text(encoding="utf-8")
    settings = config.read_text(encoding="utf-8") if config.exists() else ""
    template = jinja2.Environment(autoescape=True).from_string(source)
    page = template.render(title=f"{results.task}: {title}", sections=sections, config=settings)
    path = folder / "report.html"
    write_text(path, page)
    return path


def _run(folder: Path, results: RunResults) -> Section:
    run = results.run
    rows = [[name, f"{value:.4f}"] for name, value in run.metrics.items()]
    rows += [["epochs", str(run.epochs)], ["seconds of training", f"{run.seconds:.1f}"]]
    figures = _ratio_figures([folder], folder / "figures", "", run.method)
    return Section(f"{run.method}, seed {run.seed}", Table(["metric", "value"], rows), figures)


def _comparison(folder: Path, results: ComparisonResults) -> list[Section]:
    metric, figures, sections = results.primary_metric, folder / "figures", []
    main = results.main_pairs
    for variant in results.variants:
        values: dict[str, list[float]] = {}
        for run in results.runs:
            if run.variant == variant:
                values.setdefault(run.label, []).append(run.metrics[metric])
        own = [row.spec for row in results.summary if row.variant == variant and row.method == DEFAULT_METHOD]
        path = figures / f"{metric}-{slug(variant)}.png"
        drawn = [metric_by_row(values, metric, path, title=variant, highlighted=[row.label for row in own])]
        for row in own:
            folders = sorted(row.folder(folder, variant).glob("seed-*"))
            drawn += _ratio_figures(folders, figures, f"-{slug(variant)}-{slug(row.label)}", f"{row.label}, {variant}")
        sections.append(Section(variant, comparison_table(results, variant), drawn))
        others = [pair for pair in results.pairs if pair not in main]
        for name, pairs in (("", main), ("other ", others)):
            table = paired_differences(pairs, variant)
            if table is not None:
                title = f"{variant}: {name}paired differences over the seeds, p corrected by Holm"
                sections.append(Section(title, table, folded=pairs is others))
    return sections


def _ratio_figures(folders: list[Path], target: Path, suffix: str, title: str) -> list[Path]:
    """The figures of alpha, over all runs in ``folders``."""
    histories = [_lines(path) for path in _existing(folders, "metrics.jsonl")]
    ratios = [
        found for path in _existing(folders, "ratios.json") if (found := read_json(path))["corrupted"] is not None
    ]
    alpha, corrupted = ([value for found in ratios for value in found[key]] for key in ("alpha", "corrupted"))
    made = [
        alpha_by_group(histories, target / f"alpha-by-group{suffix}.png", title=title),
        alpha_by_label(alpha, corrupted, target / f"alpha-by-label{suffix}.png", title=title),
    ]
    return [path for path in made if path is not None]


def _existing(folders: list[Path], name: str) -> list[Path]:
    return [folder / name for folder in folders if (folder / name).exists()]


def _lines(path: Path) -> list[Any]:
    """The values in a file with one JSON text per line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from error
    return [parse_json(line, path) for line in text.splitlines()]
