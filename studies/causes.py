"""Why learned fusion ratios may fail: seven suspected causes, each with what was expected of its cure before it was measured.

    python studies/causes.py run --data-dir data --jobs 2    # resumable
    python studies/causes.py collect                         # studies/causes.json of the finished runs
    python studies/causes.py table
    python studies/causes.py figure                          # docs/images/why-causes.png

Every row but those for reference is the method as it is by default with one thing changed (``default`` in the tables), and
is compared with it seed by seed: same split, teacher, initial student and order. Two rows have a control of their own, as
they do without some of the default: `delay 4` beside `delay 0`, `forward` beside `last layer`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import report
from tasks import TASKS
from training import Row, run_all, variant

ROOT = Path(__file__).parents[1]
COLLECTED, FIGURE = ROOT / "studies" / "causes.json", ROOT / "docs" / "images" / "why-causes.png"
STUDIED = ["digits30", "adult5k"]
SEEDS = [100, 101, 102, 103, 104]  # none of those that are reported on test data


@dataclass(frozen=True)
class Cause:
    """A suspected cause: what was expected, and the rows that tell."""

    title: str
    expected: str
    rows: dict[str, Row]


CAUSES = [
    Cause(
        "1. Short horizon",
        "The derivative of one step is greedy. A moving average of the validation gradient, a delayed validation gradient "
        "(some steps later) or training progress as an input should help.",
        {
            "no average": variant(average=0.0),
            "delay 4": variant(delay=4, fixed_length=False),
            "delay 0": variant(fixed_length=False),
            "progress": variant(progress=True),
        },
    ),
    Cause(
        "2. Alpha also sets the step size",
        "The gradients of kd_i and gt_i differ in length, so the outer gradient changes alpha to change the step's length. "
        "A fixed step length, a fixed batch mean (redistribution alone), equal norms or centring should help.",
        {
            "free length": variant(fixed_length=False),
            "centred": variant(centred=True, fixed_length=False),
            "equal norms": variant(equal_norms=True, fixed_length=False),
            "unit slopes": variant(unit_slopes=True, fixed_length=False),
            "kept mean .5": variant(ratio="kept_mean", fixed_length=False),
            "kept mean .3": variant(ratio="kept_mean", mean=(0.3, 0.3), fixed_length=False),
            "kept mean .9 to .1": variant(ratio="kept_mean", mean=(0.9, 0.1), fixed_length=False),
            "around .9 to .1": variant(ratio="around", mean=(0.9, 0.1)),
        },
    ),
    Cause(
        "3. Noise in the outer gradient",
        "A step uses few validation samples. Moving averages, class-balanced or larger outer batches and more frequent "
        "updates should help.",
        {
            "average .5": variant(average=0.5),
            "average .98": variant(average=0.98),
            "balanced outer": variant(balanced_outer=True),
            "every 1": variant(every=1),
            "every 2": variant(every=2),
            "every 8": variant(every=8),
            "outer 32": variant(outer_batch_size=32),
        },
    ),
    Cause(
        "4. The approximation",
        "The classifier head's part of the gradient should lose little compared with the whole gradient.",
        {
            "forward": variant(hypergradient="forward", average=0.0, fixed_length=False),
            "last layer": variant(average=0.0, fixed_length=False),
        },
    ),
    Cause(
        "5. The inputs",
        "Standardised features, log-probabilities and the student's history should help; most of the geometry should matter.",
        {
            "standardised": variant(standardised=True),
            "logs": variant(standardised=True, logs=True),
            "history": variant(history=True),
            "softened": variant(softened=True),
            # vertices, edges, angles, edge between student and teacher, class mean
            "vertices": variant(parts=(True, False, False, True, True)),
            "edges": variant(parts=(False, True, False, True, True)),
            "angles": variant(parts=(False, False, True, True, True)),
            "no class mean": variant(parts=(True, True, True, True, False)),
        },
    ),
    Cause(
        "6. The outer loss",
        "Cross-entropy should be sufficient; cross-entropy with kd, label smoothing or a margin might help.",
        {
            "outer ce + kd": variant(outer_loss="ce+kd"),
            "outer smoothed": variant(outer_loss="smoothed"),
            "outer margin": variant(outer_loss="margin"),
        },
    ),
    Cause(
        "7. Hyper-parameters",
        "The learning rate matters, weight decay of 0.05 pulls alpha to 0.5, the initial value matters little, the "
        "temperature matters.",
        {
            "lr .001": variant(lr=0.001),
            "lr .01": variant(lr=0.01),
            "lr .03": variant(lr=0.03),
            "decay .05": variant(weight_decay=0.05),
            "start .27": variant(start=-1.0),
            "start .73": variant(start=1.0),
            "tau 1": variant(temperature=1.0),
            "tau 4": variant(temperature=4.0),
        },
    ),
    Cause(
        "For reference",
        "The method without its extensions; without training on the validation samples; the methods without learned ratios "
        "on the same samples; and ratios that know which labels are wrong.",
        {
            "plain": variant(average=0.0, fixed_length=False, lr=0.01, every=8),
            "holdout": variant(outer="holdout"),
            "kd .3": Row("kd", {"alpha": 0.3}, "train+val"),
            "kd .5": Row("kd", {"alpha": 0.5}, "train+val"),
            "ce": Row("ce", {}, "train+val"),
            "wls": Row("wls", {}, "train+val"),
            "known wrong .0/1": Row("oracle", {"right": 0.0}),
            "known wrong .3/1": Row("oracle", {"right": 0.3}),
        },
    ),
]
ROWS = {report.REFERENCE: variant()} | {label: row for cause in CAUSES for label, row in cause.rows.items()}


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the runs that have no file yet")
    run.add_argument("--data-dir", default=os.environ.get("TGEOKD_DATA"), help="folder of the data (or TGEOKD_DATA)")
    run.add_argument("--jobs", type=int, default=1, help="processes")
    run.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    run.add_argument("--tasks", nargs="+", default=STUDIED, choices=TASKS)
    run.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    collect = commands.add_parser("collect", help="write studies/causes.json")
    for command in (run, collect):
        command.add_argument("--out", type=Path, default=Path("runs/causes"), help="folder of the runs")
    commands.add_parser("table", help="print a table for every cause")
    commands.add_parser("figure", help="write docs/images/why-causes.png")
    given = parser.parse_args()
    if given.command == "run":
        rows = {label: ROWS[label] for label in given.rows}
        for line in run_all(rows, given.tasks, given.seeds, given.out, given.data_dir, given.jobs):
            print(line, flush=True)
    elif given.command == "collect":
        report.collect(given.out, STUDIED, ROWS, COLLECTED)
    elif given.command == "table":
        print(report.tables(CAUSES, report.read(COLLECTED)))
    else:
        report.figure(CAUSES, report.read(COLLECTED), FIGURE)


if __name__ == "__main__":
    main()
