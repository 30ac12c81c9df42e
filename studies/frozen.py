"""The final comparison with pretrained teachers: every method on test data, with the settings frozen.

python studies/frozen.py run --data-dir data --jobs 2    # one file per run; runs that studies/frozen.json has are left out
python studies/frozen.py collect                         # adds the finished runs to studies/frozen.json
python studies/frozen.py table                           # prints the tables of studies/frozen.md
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frozen_rows import ROWS, SETS, Row, Set
from frozen_tables import summary, tables
from lightning_fabric.utilities import move_data_to_device
from ratio_variants import KnownWrong
from sklearn.metrics import roc_auc_score

from tgeokd.core.model_call import class_logits, module_device
from tgeokd.data import TaskData
from tgeokd.methods import Method, build_method
from tgeokd.runs.build import build_distiller, build_student, fit, load_data, use_threads
from tgeokd.runs.config import RunConfig, override, preset
from tgeokd.runs.executors import InProcess, Job, LocalProcesses
from tgeokd.runs.single import trial
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.teachers import StoredPredictions
from tgeokd.training.distiller import Distiller
from tgeokd.utils.files import write_json

COLLECTED = Path(__file__).parent / "frozen.json"
SATURATED = 0.02  # distance from 0 or 1


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the rows that have no file yet")
    run.add_argument("--data-dir", default=os.environ.get("TGEOKD_DATA"), help="folder of the data (or TGEOKD_DATA)")
    run.add_argument("--jobs", type=int, default=1, help="processes")
    run.add_argument("--seeds", type=int, help="how many; by default what the set has")
    run.add_argument("--first-seed", type=int, default=0)
    run.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    run.add_argument("--again", action="store_true", help="also what studies/frozen.json has")
    run.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    collect = commands.add_parser("collect", help="write studies/frozen.json")
    for command in (run, collect):
        command.add_argument("--out", type=Path, default=Path("runs/frozen"), help="folder of the runs")
    commands.add_parser("table", help="print the tables")
    given = parser.parse_args()
    if given.command == "run":
        jobs = [
            Job((name, seed), _group(given, name, seed))
            for name in given.sets
            for seed in range(given.first_seed, given.first_seed + (given.seeds or SETS[name].seeds))
        ]
        executor = InProcess() if given.jobs == 1 else LocalProcesses(given.jobs)
        executor.map(
            jobs, lambda job, done: print(f"{job.key[0]}, seed {job.key[1]}: {done} of {len(jobs)}", flush=True)
        )
    elif given.command == "collect":
        found = collected() | {_key(r): r for r in map(_read, sorted(given.out.glob("*/*.json")))}
        order = {name: i for i, name in enumerate([*SETS, *ROWS])}
        keys = sorted(found, key=lambda k: (order[k[0]], order[k[1]], k[2]))
        lines = ",\n".join(json.dumps(_rounded(found[key])) for key in keys)  # one line per run
        COLLECTED.write_text(f"[\n{lines}\n]\n")
    else:
        records = json.loads(COLLECTED.read_text())
        print(summary(records), tables(records), sep="\n\n")


def _group(given: argparse.Namespace, name: str, seed: int) -> Any:
    known = set() if given.again else collected().keys()
    rows = [label for label in given.rows if SETS[name].uses(label) and (name, label, seed) not in known]
    return lambda _: (run_group, (name, seed, rows, given.out, given.data_dir))


def collected() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The records of studies/frozen.json by set, row and seed."""
    return {_key(record): record for record in json.loads(COLLECTED.read_text())}


def _key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["set"], record["row"], record["seed"]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_group(name: str, seed: int, rows: list[str], out: Path, data_dir: str | None) -> None:
    """Train the rows of a set and seed that have no file yet; they share data, teacher and initial student."""
    files = {label: out / name / f"{label.replace(' ', '_')}-{seed}.json" for label in rows}
    missing = {label: path for label, path in files.items() if not path.exists()}
    if not missing:
        return
    entry = SETS[name]
    config = config_of(entry, seed, data_dir)
    use_threads(config)
    data = load_data(config)
    teacher = out / "teachers" / name / f"{seed}.safetensors"
    known = teacher.with_suffix(".metrics")
    if not known.exists():
        write_json(known, build_teacher(config, data, teacher))
    for label, path in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = run_row(ROWS[label], entry, config, data, teacher)
        accuracy = json.loads(known.read_text()).get(entry.metric)
        write_json(path, {"set": name, "row": label, "seed": seed, "teacher": accuracy, **found}, compact=True)


def config_of(entry: Set, seed: int, data_dir: str | None) -> RunConfig:
    """The preset with the set's settings."""
    return override(preset(entry.task, entry.preset), [*entry.settings, f"data_dir={data_dir}", f"seed={seed}"])


def run_row(row: Row, entry: Set, config: RunConfig, data: TaskData, teacher: Path) -> dict[str, Any]:
    """Train a row: its test metrics, its seconds (those of a search included), and what its ratios are like at the end."""
    started = time.perf_counter()
    if entry.rates and row.rate != 1.0:
        config = override(config, [f"student.optimizer.lr={config.student.optimizer.lr * row.rate}"])
    options, searched = dict(row.options), None
    if row.search:
        scores = []
        for value in row.search:
            tried = override(config, [f"method={row.method}", "train_on=train+val"])
            scores.append(trial(tried.model_copy(update={"options": {"alpha": value}}), teacher).value)
        better = np.argmax if entry.metric not in ("nll",) else np.argmin
        searched = options["alpha"] = row.search[int(better(scores))]
    method = _method(row, options, data)
    student = build_student(config, data)
    loaded = load_teacher(config, data, teacher)
    distiller = build_distiller(student, loaded, method, config, config.student, data, progress=False)
    both = row.train_on == "train+val" and method.outer is None  # others add the validation samples themselves
    fit(distiller, config.student, data, seed=config.seed, with_held_out=both)
    seconds = round(time.perf_counter() - started, 2)
    metrics = {key: float(value) for key, value in distiller.evaluate(data.ordered_loader(data.test)).items()}
    return {"metrics": metrics, "seconds": seconds, "searched": searched, **_ratios(distiller, data, loaded)}


def _method(row: Row, options: dict[str, Any], data: TaskData) -> Method:
    if row.method == "known":
        method = KnownWrong(**options)
        assert data.corrupted is not None
        ids = torch.cat([batch[2] for batch in data.ordered_loader(data.train)])
        method.wrong_ids = ids[data.corrupted]
        return method
    return build_method(row.method, **options)


def _ratios(distiller: Distiller, data: TaskData, teacher: Any) -> dict[str, Any]:
    """Of the training samples in the last state: mean ratio, whether all ratios are at one end, AUC for wrong labels."""
    try:
        alpha = distiller.fusion_ratios(data.ordered_loader(data.train))
    except NotImplementedError:
        return {}
    found: dict[str, Any] = {
        "alpha": float(alpha.mean()),
        "saturated": bool((alpha < SATURATED).all() or (alpha > 1 - SATURATED).all()),
    }
    if data.corrupted is not None and bool(data.corrupted.any()):
        found["auc"] = float(roc_auc_score(data.corrupted, alpha))
        found["auc_teacher"] = float(roc_auc_score(data.corrupted, -_label_log_probs(teacher, data)))
        logits, target = distiller.predict(data.ordered_loader(data.train))
        student = logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)
        found["auc_student"] = float(roc_auc_score(data.corrupted, -student))
    return found


def _label_log_probs(teacher: Any, data: TaskData) -> torch.Tensor:
    """The teacher's log probability of each training label, shape (N,)."""
    found = []
    with torch.no_grad():
        for inputs, target, ids in data.ordered_loader(data.train):
            if isinstance(teacher, StoredPredictions):
                logits = teacher.lookup(ids)
            else:
                logits = class_logits(teacher.eval(), move_data_to_device(inputs, module_device(teacher))).float().cpu()
            found.append(logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1))
    return torch.cat(found)


if __name__ == "__main__":
    main()
