"""Measured comparisons: `add` files one under results/, `page` writes docs/results.md from all of them.

    python tools/results.py add runs/compare-adult adult
    python tools/results.py page

A file results/NAME.md beside results/NAME.json is put under the table: why it came out as it did.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tgeokd.report.tables import comparison_table, formatted, title
from tgeokd.runs.config import preset, presets
from tgeokd.runs.results import DEFAULT_METHOD, ComparisonResults, MethodSpec, PairedDifference

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"
PLAIN = {"update_interval": 1, "hypergradient": "exact", "ema_decay": 0.0, "project_out_step_length": False}


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add_command = commands.add_parser("add", help="file a finished comparison")
    add_command.add_argument("folder", type=Path)
    add_command.add_argument("name")
    commands.add_parser("page", help="write the page")
    given = parser.parse_args()
    if given.command == "add":
        add(given.folder, given.name)
    else:
        PAGE.write_text(page())


def add(folder: Path, name: str) -> None:
    """File a comparison: its results, its settings, the command that runs it again, and the final ratios."""
    results = ComparisonResults.read(folder / "results.json")
    description = yaml.safe_load((folder / "comparison.yaml").read_text())
    description["config"]["data_dir"] = None  # the place of the data does not matter
    file = {
        "command": command_of(description),
        "description": description,
        "alpha": learned(folder, results),
        "results": results.to_dict(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(file, indent=1) + "\n")


def learned(folder: Path, results: ComparisonResults) -> list[dict[str, Any]]:
    """Mean alpha of the training samples in the last epoch of each run of the default method, by teacher and by known wrong
    labels; one entry per row.
    """
    found: dict[MethodSpec, list[dict[str, Any]]] = {}
    for run in results.runs:
        if run.method != DEFAULT_METHOD:
            continue
        place = run.spec.folder(folder, run.variant) / f"seed-{run.seed}"
        last = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
        record = {"seed": run.seed, "mean": last["alpha_mean"]}
        for name in ("teacher_right", "teacher_wrong"):
            groups = [group for key, group in last["alpha"].items() if key.startswith(name) and group["count"]]
            count = sum(group["count"] for group in groups)
            record[name] = sum(group["mean"] * group["count"] for group in groups) / count if count else None
        ratios = json.loads((place / "ratios.json").read_text())
        for name, wanted in (("wrong_label", True), ("right_label", False)):
            alpha = [a for a, wrong in zip(ratios["alpha"], ratios["corrupted"] or (), strict=False) if wrong == wanted]
            record[name] = sum(alpha) / len(alpha) if alpha and any(ratios["corrupted"]) else None
        found.setdefault(run.spec, []).append(record)
    return [{**dataclasses.asdict(row), "runs": records} for row, records in found.items()]


def command_of(description: dict[str, Any]) -> str:
    """The command line of a comparison, from the preset that is nearest to its config."""
    config = description["config"]
    changes = {name: list(_changes(preset(config["task"], name).to_dict(), config)) for name in presets(config["task"])}
    name = min(changes, key=lambda each: len(changes[each]))
    rows = [MethodSpec(**row) for row in description["rows"]]
    words = ["tgeokd", "compare", config["task"], "--preset", name, "--data-dir", "DATA"]
    words += ["--methods", ",".join(row.text for row in rows), "--seeds", str(len(description["seeds"]))]
    words += ["--tune", str(description["tune"])] if description["tune"] else []
    return shlex.join([*words, *(word for change in changes[name] for word in ("--set", change))])


def _changes(usual: dict[str, Any], given: dict[str, Any], path: str = "") -> Iterator[str]:
    """``key=value`` for each setting that is not the preset's."""
    for key, value in given.items():
        # a dictionary that lacks one of the preset's keys (another model) can only be given whole
        if isinstance(value, dict) and isinstance(usual.get(key), dict) and usual[key].keys() <= value.keys():
            yield from _changes(usual[key], value, f"{path}{key}.")
        elif key not in usual or value != usual[key]:
            yield f"{path}{key}={value if isinstance(value, str) else json.dumps(value)}"


def page() -> str:
    """The text of docs/results.md."""
    names = sorted(path.stem for path in RESULTS.glob("*.json"))
    parts = [HEAD]
    for name in names:
        content = shortened(json.loads((RESULTS / f"{name}.json").read_text()))
        parts += _section(name, content)
        why = RESULTS / f"{name}.md"
        if why.exists():
            parts.append(why.read_text().strip())
    return "\n\n".join(parts) + "\n"


HEAD = """# Results

Generated from the files in [`results/`](../results) by `make results`: nothing on this page is typed. Every number is of the
last epoch on the test set, mean ± standard deviation over the seeds (0, 1, ...); nothing was chosen on test data.

- "held-out": the held-out value of the primary metric, "best epoch" the epoch of its best; neither means anything for a row
  that trains on the held-out samples.
- "x kd": the ratio of mean training times to plain KD's. Runs shared the machine, so seconds are rough.
- `train+val`: controls that train on the held-out samples too, as `outer=union` does.
- "runs to tune": so many settings of each row were tried under a seed of their own, judged on the half of the held-out set
  that these trials did not see; the best one was then used for all seeds.
- `tgeo (plain=True, ...)`: without the extensions that are on by default now; the commands show the options. The sections
  `frozen-...` have the default of that time, which was chosen before any of them was run; see [why it works](why-it-works.md).
- All `tgeo` rows on this page were measured with defaults before version 0.2. To run them again, add
  `encoding=scalar:label=given:prior=false:penalty=0`. The results of the present default are in
  [`studies/frozen.md`](../studies/frozen.md).
- `DATA` is the folder of the data sets."""


def shortened(content: Any) -> Any:
    """Plain data of results with rows of the default method before its extensions shown as ``plain``."""
    if isinstance(content, list):
        return [shortened(each) for each in content]
    if not isinstance(content, dict):
        return content
    options = content.get("options")
    if "method" in content and isinstance(options, dict) and PLAIN.items() <= options.items():
        others = {key: value for key, value in options.items() if key not in PLAIN}
        content = content | {"options": {"plain": True, **others}}
    return {key: shortened(value) for key, value in content.items()}


def _section(name: str, content: dict[str, Any]) -> list[str]:
    """A comparison's heading, its command and settings, its table and its statistics."""
    results = ComparisonResults.from_dict(content["results"], name)
    (variant,) = results.variants
    metric, seeds, machine = results.primary_metric, content["description"]["seeds"], results.machine
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    teachers = [teacher.metrics[metric] for teacher in results.teachers if metric in teacher.metrics]
    lines = [
        f"    {content['command']}",
        f"{len(seeds)} seeds; {results.wall_seconds / 60:.0f} minutes of wall time on {machine['cores']} cores"
        + (f" and one {machine['gpu']}" if machine["gpu"] else "")
        + f"; {versions}. Teacher: {title(metric)} {formatted(metric, sum(teachers) / len(teachers))}."
        + (f" Settings chosen by held-out {title(results.chosen_by)}." if results.tuning else ""),
        _data(results.data),
        _markdown(*comparison_table(results, variant)),
        *_verdicts(results),
        *_learned(content["alpha"]),
    ]
    return [f"## {name}", *(line for line in lines if line)]


def _data(notes: dict[str, Any]) -> str:
    """What was noted about the data, shortened."""
    shown = [f"{key}: {_short(value)}" for key, value in notes.items() if value not in ({}, [], None)]
    return "Data (seed 0): " + "; ".join(shown) + "."


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{text[:12]}..." if len(text) >= 32 and text.isalnum() else text


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _verdicts(results: ComparisonResults) -> Iterator[str]:
    """For each row of the default method: the rows it is above, below, or not different from, by paired 95 % intervals."""
    metric = results.primary_metric
    for reference in dict.fromkeys(pair.reference for pair in results.pairs):
        pairs = [pair for pair in results.pairs if pair.reference == reference and pair.low is not None]
        groups = {
            "is above": [pair for pair in pairs if pair.low > 0],
            "cannot be told from": [pair for pair in pairs if pair.low <= 0 <= pair.high],
            "is below": [pair for pair in pairs if pair.high < 0],
        }
        said = [f"{verdict} {', '.join(map(_gain, group))}" for verdict, group in groups.items() if group]
        yield (
            f"`{reference.label}`, paired over the seeds ({title(metric)}, 95 % t interval, p corrected by Holm): "
            + "; ".join(said)
            + "."
        )


def _learned(alpha: list[dict[str, Any]]) -> Iterator[str]:
    """Mean alpha of each row of the default method."""
    for row in alpha:
        records = row["runs"]
        by_seed = ", ".join(f"{record['mean']:.2f}" for record in records)
        groups = {
            "where the teacher agrees with the label": "teacher_right",
            "where it does not": "teacher_wrong",
            "on wrong labels": "wrong_label",
            "on right ones": "right_label",
        }
        known = {text: [r[key] for r in records if r[key] is not None] for text, key in groups.items()}
        means = ", ".join(f"{text} {sum(values) / len(values):.2f}" for text, values in known.items() if values)
        label = MethodSpec(row["method"], row["options"], row["train_on"]).label
        yield f"`{label}`, the teacher's weight alpha in the last epoch, by seed: {by_seed}; mean {means}."


def _gain(pair: PairedDifference) -> str:
    gain, low, high = (formatted(pair.metric, value) for value in (pair.gain, pair.low, pair.high))
    return f"{pair.other.label} ({gain}, {low} to {high}, p {pair.p_holm:.3f})"


if __name__ == "__main__":
    main()
