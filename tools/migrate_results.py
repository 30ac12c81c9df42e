"""Convert results.json files of schema version 1 (tgeokd 0.1), whose rows are only labels, to the present version.

    python tools/migrate_results.py results/*.json           # files of tools/results.py
    python tools/migrate_results.py runs/*/results.json      # comparisons, with comparison.yaml beside them

Files are replaced; files of the present version are left alone. Values are kept, and options and methods that were renamed
since have their present names.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tgeokd.runs.results import (
    SCHEMA_VERSION,
    Claim,
    ComparisonResults,
    MethodSpec,
    PairedDifference,
    RunRecord,
    TeacherRecord,
    TuningRecord,
)
from tgeokd.runs.statistics import summarise
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import replace_file

METHODS = {"ls": "lskd"}
OPTIONS = {"every": "update_interval", "average": "ema_decay", "fixed_length": "project_out_step_length"}


def main() -> None:
    """Convert the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        try:
            print(f"{path}: {'converted' if convert(path) else 'already of the present version'}")
        except InputError as error:
            parser.error(str(error))


def convert(path: Path) -> bool:
    """Convert a file; returns False where that has been done before."""
    content = json.loads(path.read_text())
    if "schema_version" in content or content.get("results", {}).get("schema_version") == SCHEMA_VERSION:
        return False
    if not {"runs", "paired", "teachers"} <= content.keys():
        raise InputError(f"{path} holds no results of a comparison of schema version 1")
    filed = "description" in content
    beside = path.with_name("comparison.yaml")
    if not filed and not beside.exists():
        raise InputError(f"{path} needs comparison.yaml beside it, for the methods and options of its rows")
    description = described(content["description"] if filed else yaml.safe_load(beside.read_text()))
    rows = rows_by_label(content, description)
    results = migrated(content, rows).to_dict()
    if filed:
        words = shlex.split(content["command"])
        words[words.index("--methods") + 1] = ",".join(row.text for row in rows.values())
        alpha = [{**fields(rows[label]), "runs": records} for label, records in content["alpha"].items()]
        file = {"command": shlex.join(words), "description": description, "alpha": alpha, "results": results}
        text = json.dumps(file, indent=1) + "\n"
    else:
        text = json.dumps(results, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text) and None)
    return True


def described(old: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a comparison (comparison.yaml) in present names."""
    config = {**old["config"], **renamed(old["config"]["method"], old["config"]["options"])}
    rows = [{**renamed(row["method"], row["options"]), "train_on": row["train_on"]} for row in old["entries"]]
    return {"config": config, "rows": rows, "seeds": old["seeds"], "variants": old["settings"], "tune": old["tune"]}


def renamed(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Method and options in present names."""
    return {
        "method": METHODS.get(method, method),
        "options": {OPTIONS.get(name, name): value for name, value in options.items()},
    }


def rows_by_label(content: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, MethodSpec]:
    """The rows by their labels: a comparison has both in the same order."""
    labels = list(dict.fromkeys(run["method"] for run in content["runs"]))
    rows = [MethodSpec(**row) for row in description["rows"]]
    if len(labels) != len(rows):
        raise InputError(f"the comparison has {len(rows)} rows, and its runs have {len(labels)} labels")
    return dict(zip(labels, rows, strict=True))


def fields(row: MethodSpec) -> dict[str, Any]:
    """The fields of a row."""
    return {"method": row.method, "options": row.options, "train_on": row.train_on}


def migrated(content: Mapping[str, Any], rows: Mapping[str, MethodSpec]) -> ComparisonResults:
    """The results of a comparison of schema version 1."""
    kept = ("seed", "metrics", "seconds", "epochs", "best_epoch", "peak_memory_mb")
    runs = [
        RunRecord(
            variant=run["setting"],
            **fields(rows[run["method"]]),
            **{name: run[name] for name in kept},
            trains_on_validation=run["trains_on_held_out"],
        )
        for run in content["runs"]
    ]
    tuning = [
        TuningRecord(
            variant=old["setting"],
            **fields(rows[old["method"]]),
            chosen=old["chosen"] | {"options": renamed("", old["chosen"]["options"])["options"]},
            trials=[trial | {"options": renamed("", trial["options"])["options"]} for trial in old["trials"]],
        )
        for old in content["tuning"]
    ]
    numbers = ("metric", "gain", "low", "high", "p", "p_holm", "n")
    pairs = [
        PairedDifference(
            variant=old["setting"],
            reference=rows[old["reference"]],
            other=rows[old["method"]],
            **{name: old[name] for name in numbers},
        )
        for old in content["paired"]
    ]
    claims = [
        Claim(row=rows[label], **{name: old[name] for name in ("value", "source", "protocol")})
        for label, old in content["claimed"].items()
    ]
    return ComparisonResults(
        task=content["task"],
        primary_metric=content["primary_metric"],
        chosen_by=content.get("chosen_by", content["primary_metric"]),
        runs=runs,
        summary=summarise(runs, tuning),
        pairs=pairs,
        teachers=[
            TeacherRecord(variant=t["setting"], seed=t["seed"], metrics=t["metrics"]) for t in content["teachers"]
        ],
        tuning=tuning,
        claims=claims,
        data=content["data"],
        wall_seconds=content["wall_seconds"],
        machine=content["machine"],
    )


if __name__ == "__main__":
    main()
