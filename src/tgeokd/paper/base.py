"""What an analysis is, and how it is run."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tgeokd.paper import ANALYSES
from tgeokd.runs.build import use_threads
from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.executors import LocalProcesses, call_all, machine
from tgeokd.runs.results import MethodSpec
from tgeokd.runs.single import check
from tgeokd.runs.statistics import PairedTest
from tgeokd.runs.stored import computed, result_key
from tgeokd.runs.teacher import is_network
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import check_writable, write_json

Differences = dict[str, PairedTest | None]
"""Mean and 95 % interval over the seeds of each compared quantity; None without data."""

KD = MethodSpec("kd", {"alpha": 0.5})
"""The baseline: the constant ratio that ``tgeo`` starts from."""
TGEO = MethodSpec("tgeo")
# The ratio alone, from the labels as they are: what an analysis of the geometry is about.
RATIO_ALONE = {"encoding": "scalar", "label": "given", "prior": False, "penalty": 0.0}


@dataclass(frozen=True)
class Findings:
    """The results of the analysis ``what``: plain data, compared quantities, and three sentences, made from the data alone."""

    what: str
    data: dict[str, Any]
    differences: Differences
    lines: list[str]


class Analysis(ABC):
    """One analysis. A subclass registers itself with ``@ANALYSES.register("name")``.

    Attributes:
        name: in the registry.
        task: the default task.
        settings: by task, the settings that precede the user's own. On ``digits`` 30 % of the training labels are replaced
            at random: with clean labels the teacher is rarely wrong, and the groups of samples do not differ.
        processes: the default number of processes; None for one per core.
        rows: the methods that are trained, by the names that the analysis uses for them.
    """

    name: ClassVar[str]
    task: ClassVar[str] = "digits"
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {"digits": ("data.noise=0.3",)}
    processes: ClassVar[int | None] = None
    rows: ClassVar[Mapping[str, MethodSpec]] = {"kd": KD, "tgeo": TGEO}

    @abstractmethod
    def measure(self, config: RunConfig, seeds: Sequence[int], out: Path, processes: int | None) -> dict[str, Any]:
        """Train, evaluate, and return the data. Invalid settings are refused before anything is written below ``out``."""

    @abstractmethod
    def differences(self, data: dict[str, Any]) -> Differences:
        """The compared quantities, paired by seed."""

    @abstractmethod
    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """Three sentences with the numbers."""


class SeedAnalysis(Analysis):
    """An analysis with one job per seed, whose result is stored in ``out/runs/seed-N.json``.

    Attributes:
        facts: data that does not depend on the seed.
        changes_inputs: whether the teacher is queried on changed inputs, for which no stored predictions exist.
    """

    facts: ClassVar[Mapping[str, Any]] = {}
    changes_inputs: ClassVar[bool] = False

    def validate(self, config: RunConfig) -> None:
        """Raise :class:`InputError` for a config that the analysis cannot be run with."""
        if self.changes_inputs and not is_network(config):
            raise InputError(f"{self.name} queries the teacher on changed inputs, so the teacher must be a network")
        for row in self.rows.values():
            check(row.apply(config))

    @abstractmethod
    def measure_seed(self, config: RunConfig) -> dict[str, Any]:
        """The data of the config's seed, as plain JSON."""

    def measure(self, config: RunConfig, seeds: Sequence[int], out: Path, processes: int | None) -> dict[str, Any]:
        """The data of every seed, in the order of the seeds."""
        self.validate(replace(config, seed=seeds[0]))
        jobs = [(replace(config, seed=seed), out / "runs" / f"seed-{seed}.json") for seed in seeds]
        return {**self.facts, "seeds": call_all(self.stored, jobs, LocalProcesses(processes))}

    def stored(self, config: RunConfig, path: Path) -> dict[str, Any]:
        """The data of a seed: read from the file of an earlier call with the same config, or measured and written to it."""
        use_threads(config)
        found: dict[str, Any] = computed(
            path, result_key(type(self).__name__, config), lambda: self.measure_seed(config)
        )
        return found


def run_analysis(name: str, config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Run an analysis and write ``OUT/NAME.json``. An interrupted analysis is continued by the same call.

    Args:
        name: key of :data:`tgeokd.paper.ANALYSES`.
        config: the run that the analysis varies.
        seeds: one repetition each, with its own split, label noise, weights and order of samples.
        out: folder of the analysis; intermediate results are written to ``out/runs``.
        jobs: number of processes; by default the analysis' own.
    """
    analysis = ANALYSES[name]()
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"an analysis needs at least one seed and no seed twice, got {list(seeds)}")
    if (out / f"{name}.json").exists():
        raise InputError(f"{out} already holds this analysis ({name}.json); choose another folder")
    check_writable(out, create=False)
    data = analysis.measure(config, seeds, out, jobs or analysis.processes)
    differences = analysis.differences(data)
    findings = Findings(name, data, differences, analysis.lines(data, differences))
    content = {
        "task": config.task,
        "seeds": list(seeds),
        **dataclasses.asdict(findings),
        "config": config.to_dict(),
        "machine": machine(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", content)
    return findings
