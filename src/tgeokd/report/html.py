"""The report of a folder: its figures, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from tgeokd.report.figures import alpha_by_group, alpha_by_label, metric_by_method
from tgeokd.report.tables import comparison_table, paired_differences
from tgeokd.runs.results import DEFAULT_METHOD, ComparisonResults, RunResults, read
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import slug

__all__ = ["build_report"]


@dataclass(frozen=True)
class _Section:
    """A heading of the page with a table and figures under it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    figures: list[Path]

    def images(self) -> list[tuple[str, str]]:
        """File name and base64 of each figure."""
        return [(figure.name, base64.b64encode(figure.read_bytes()).decode()) for figure in self.figures]


def build_report(folder: Path) -> Path:
    """Draw the figures of a run or a comparison and write ``report.html``.

    Args:
        folder: of a run (`tgeokd distill`) or of a comparison (`tgeokd compare`, `tgeokd demo`).

    Returns:
        The path of the page; the figures lie in ``figures/`` beside it.

    Raises:
        InputError: where the folder holds no finished run or comparison.
    """
    results = read(folder / "results.json")
    config_file = "config.yaml" if isinstance(results, RunResults) else "comparison.yaml"
    sections = [_single(folder, results)] if isinstance(results, RunResults) else _comparison(folder, results)
    template = jinja2.Environment(autoescape=True).from_string(
        resources.files("tgeokd.report").joinpath("templates", "page.html.jinja").read_text()
    )
    config = folder / config_file
    page = template.render(
        title=f"{results.task}: {results.run.method if isinstance(results, RunResults) else 'comparison'}",
        sections=sections,
        config=config.read_text() if config.exists() else "",
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def _single(folder: Path, results: RunResults) -> _Section:
    run = results.run
    rows = [[name, f"{value:.4f}"] for name, value in run.metrics.items()]
    rows += [["epochs", str(run.epochs)], ["seconds of training", f"{run.seconds:.1f}"]]
    figures = _ratio_figures([folder], folder / "figures", "", run.method)
    return _Section(f"{run.method}, seed {run.seed}", ["metric", "value"], rows, figures)


def _comparison(folder: Path, results: ComparisonResults) -> list[_Section]:
    sections = []
    for variant in results.variants:
        summary = [row for row in results.summary if row.variant == variant]
        drawings = folder / "figures"
        primary = results.primary_metric
        figures = [metric_by_method(summary, primary, drawings / f"{primary}-{slug(variant)}.png", title=variant)]
        for row in summary:
            if row.method == DEFAULT_METHOD:
                folders = sorted((folder / slug(variant) / slug(row.label)).glob("seed-*"))
                suffix = f"-{slug(variant)}-{slug(row.label)}"
                figures += _ratio_figures(folders, drawings, suffix, f"{row.label}, {variant}")
        sections.append(_Section(variant, *comparison_table(results, variant), figures))
        paired = paired_differences(results.pairs, variant)
        if paired is not None:
            sections.append(_Section(f"{variant}: paired differences over the seeds, p corrected by Holm", *paired, []))
    return sections


def _ratio_figures(folders: list[Path], target: Path, suffix: str, title: str) -> list[Path]:
    """The figures of alpha, pooled over the runs in ``folders``."""
    histories = [_read_lines(folder / "metrics.jsonl") for folder in folders if (folder / "metrics.jsonl").exists()]
    made = [alpha_by_group(histories, target / f"alpha-by-group{suffix}.png", title=title)]
    ratios = [_read(folder / "ratios.json") for folder in folders if (folder / "ratios.json").exists()]
    known = [r for r in ratios if r["corrupted"] is not None]
    alpha = [a for r in known for a in r["alpha"]]
    corrupted = [c for r in known for c in r["corrupted"]]
    made.append(alpha_by_label(alpha, corrupted, target / f"alpha-by-label{suffix}.png", title=title))
    return [path for path in made if path is not None]


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path.parent} holds no finished run or comparison: {path.name} cannot be read") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise InputError(f"a line of {path} is not JSON: {error}") from error
