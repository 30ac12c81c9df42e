"""The analyses of the TGeo-KD paper, and of what its reviewers asked: one file an analysis.

Reference:
    Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tgeokd.paper.base import Analysis, Findings
from tgeokd.runs.config import RunConfig
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import RunFolder
from tgeokd.utils.registry import Lazy, look_up

__all__ = ["ANALYSES", "Findings", "default_task", "run_analysis", "usual_settings"]

_HERE = "tgeokd.paper"

ANALYSES: Mapping[str, Analysis] = Lazy(
    {
        "fig1": f"{_HERE}.fig1:fig1",
        "fig3": f"{_HERE}.fig3:fig3",
        "fig4": f"{_HERE}.fig4:fig4",
        "fig5": f"{_HERE}.fig5:fig5",
        "ablation": f"{_HERE}.ablation:ablation",
        "alpha-over-epochs": f"{_HERE}.alpha_over_epochs:alpha_over_epochs",
        "oversampling": f"{_HERE}.oversampling:oversampling",
        "cost": f"{_HERE}.cost:cost",
    }
)


def default_task(what: str) -> str:
    """The task an analysis takes where none is named: ``digits``, which needs no data folder, if it has what it takes."""
    look_up("analysis", what, dict.fromkeys(ANALYSES))
    return "hil" if what == "oversampling" else "digits"


def usual_settings(what: str, task: str) -> list[str]:
    """Settings that an analysis starts from, before the user's own.

    On the clean digits a teacher is hardly ever wrong and no label is, so there is nothing to tell apart: 30 % of the training
    labels are replaced at random, except for ``cost``, which does not depend on it.
    """
    return ["data.noise=0.3"] if task == "digits" and what != "cost" else []


def run_analysis(what: str, config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Run an analysis and write ``OUT/WHAT.json`` and ``OUT/WHAT.png``.

    One that was interrupted goes on where it was when it is started again with the same config and seeds.

    Args:
        what: one of :data:`ANALYSES`.
        config: the run that the analysis varies.
        seeds: of the split, the noise, the weights and the order; one repetition each.
        out: folder of the analysis; what it is made from lies in ``out/runs``.
        jobs: processes; by default one a core (``cost``: one).

    Raises:
        InputError: for an unknown analysis, a config that does not suit it, no or repeated seeds, and a folder that holds its
            results already.
    """
    analysis = look_up("analysis", what, ANALYSES)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"an analysis needs at least one seed and each only once, not {list(seeds)}")
    if (out / f"{what}.json").exists():
        raise InputError(f"{out} already holds this analysis ({what}.json); choose another folder")
    findings = analysis(config, seeds, out, jobs)
    folder = RunFolder(out, resume=True, checkpoint_needed=False)
    findings.draw(out / f"{what}.png")
    content = {
        "what": what,
        "task": config.task,
        "seeds": list(seeds),
        "lines": findings.lines,
        "data": findings.data,
        "config": config.to_dict(),
    }
    folder.write_json(f"{what}.json", content)  # last: it marks the analysis as done
    return findings
