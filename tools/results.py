"""Measured comparisons: `add` files one under results/, `page` writes docs/results.md from all of them.

    python tools/results.py add runs/compare-adult adult
    python tools/results.py page

A file results/NAME.md beside results/NAME.json is put under the table: why it came out as it did.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tgeokd.report.tables import comparison_table, formatted, title
from tgeokd.runs.config import preset, presets
from tgeokd.runs.plan import MethodSpec
from tgeokd.utils.files import slug

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"


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
    """File a comparison: its results, what it was run with, and the command that runs it again."""
    content = json.loads((folder / "results.json").read_text())
    description = yaml.safe_load((folder / "comparison.yaml").read_text())
    description["config"]["data_dir"] = None  # where the data lay is nobody's business
    content |= {"command": command_of(description), "description": description, "alpha": learned(folder, content)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def learned(folder: Path, content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What alpha the rows of ours gave the training samples in the end, run by run: by teacher and by known wrong labels."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in content["runs"]:
        if not run["method"].startswith("tgeo"):
            continue
        place = folder / slug(run["setting"]) / slug(run["method"]) / f"seed-{run['seed']}"
        last = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
        record = {"seed": run["seed"], "mean": last["alpha_mean"]}
        for name in ("teacher_right", "teacher_wrong"):
            groups = [group for key, group in last["alpha"].items() if key.startswith(name) and group["count"]]
            count = sum(group["count"] for group in groups)
            record[name] = sum(group["mean"] * group["count"] for group in groups) / count if count else None
        ratios = json.loads((place / "ratios.json").read_text())
        for name, wanted in (("wrong_label", True), ("right_label", False)):
            alpha = [a for a, wrong in zip(ratios["alpha"], ratios["corrupted"] or (), strict=False) if wrong == wanted]
            record[name] = sum(alpha) / len(alpha) if alpha and any(ratios["corrupted"]) else None
        found.setdefault(run["method"], []).append(record)
    return found


def command_of(description: dict[str, Any]) -> str:
    """The command line of a comparison, from the preset that is nearest to its config."""
    config = description["config"]
    changes = {name: list(_changes(preset(config["task"], name).to_dict(), config)) for name in presets(config["task"])}
    name = min(changes, key=lambda each: len(changes[each]))
    rows = [MethodSpec(**entry) for entry in description["entries"]]
    words = ["tgeokd", "compare", config["task"], "--preset", name, "--data-dir", "DATA"]
    words += ["--methods", ",".join(map(_row, rows)), "--seeds", str(len(description["seeds"]))]
    words += ["--tune", str(description["tune"])] if description["tune"] else []
    return shlex.join([*words, *(word for change in changes[name] for word in ("--set", change))])


def _row(entry: MethodSpec) -> str:
    options = "".join(f":{key}={value}" for key, value in entry.options.items())
    return entry.method + options + ("@train+val" if entry.train_on == "train+val" else "")


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
        content = json.loads((RESULTS / f"{name}.json").read_text())
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
- `tgeo (plain)`: without the extensions that are on by default now; the commands say which options that is. The sections
  `frozen-...` have today's default, which was chosen before any of them was run; see [why it works](why-it-works.md).
- `DATA` is the folder of the data sets."""


def _section(name: str, content: dict[str, Any]) -> list[str]:
    """A comparison's heading, how it was made, its table and what it says."""
    (setting,) = {row["setting"] for row in content["summary"]}
    metric, seeds = content["primary_metric"], content["description"]["seeds"]
    versions = ", ".join(f"{package} {version}" for package, version in content["machine"]["versions"].items())
    teachers = [t["metrics"][metric] for t in content["teachers"] if metric in t["metrics"]]
    lines = [
        f"    {content['command']}",
        f"{len(seeds)} seeds; {content['wall_seconds'] / 60:.0f} minutes of wall time on {content['machine']['cores']} cores"
        + (f" and one {content['machine']['gpu']}" if content["machine"]["gpu"] else "")
        + f"; {versions}. Teacher: {title(metric)} {formatted(metric, sum(teachers) / len(teachers))}."
        + (f" Settings chosen by held-out {title(content['chosen_by'])}." if content["tuning"] else ""),
        _data(content["data"]),
        _markdown(*comparison_table(content, setting)),
        *_verdicts(content),
        *_learned(content),
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


def _verdicts(content: dict[str, Any]) -> Iterator[str]:
    """For each row of ours: what it beats, what beats it, and what cannot be told apart, by paired 95 % intervals."""
    metric = content["primary_metric"]
    for reference in dict.fromkeys(pair["reference"] for pair in content["paired"]):
        pairs = [pair for pair in content["paired"] if pair["reference"] == reference and pair["low"] is not None]
        groups = {
            "is above": [pair for pair in pairs if pair["low"] > 0],
            "cannot be told from": [pair for pair in pairs if pair["low"] <= 0 <= pair["high"]],
            "is below": [pair for pair in pairs if pair["high"] < 0],
        }
        said = [f"{verdict} {', '.join(_gain(metric, p) for p in group)}" for verdict, group in groups.items() if group]
        yield (
            f"`{reference}`, paired over the seeds ({title(metric)}, 95 % t interval, p corrected by Holm): "
            + "; ".join(said)
            + "."
        )


def _learned(content: dict[str, Any]) -> Iterator[str]:
    """What alpha came to, for each row of ours."""
    for method, records in content["alpha"].items():
        by_seed = ", ".join(f"{record['mean']:.2f}" for record in records)
        groups = {
            "where the teacher agrees with the label": "teacher_right",
            "where it does not": "teacher_wrong",
            "on wrong labels": "wrong_label",
            "on right ones": "right_label",
        }
        known = {text: [r[key] for r in records if r[key] is not None] for text, key in groups.items()}
        means = ", ".join(f"{text} {sum(values) / len(values):.2f}" for text, values in known.items() if values)
        yield f"`{method}`, the teacher's weight alpha in the last epoch, by seed: {by_seed}; mean {means}."


def _gain(metric: str, pair: dict[str, Any]) -> str:
    low, high = formatted(metric, pair["low"]), formatted(metric, pair["high"])
    return f"{pair['method']} ({formatted(metric, pair['gain'])}, {low} to {high}, p {pair['p_holm']:.3f})"


if __name__ == "__main__":
    main()
