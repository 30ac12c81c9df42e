"""The same hypergradient from this package, from TorchOpt and from higher: seconds, peak memory, and that they agree."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Figure, interleaved, ratios, threads
from torch import Tensor
from workloads import MLP, RESNET, Workload

from tgeokd.bilevel import FusedTerms, build_estimator
from tgeokd.bilevel.recorder import StepRecorder
from tgeokd.core.losses import fuse, gt_loss, kd_loss

__all__ = ["PEERS", "Problem", "figures"]

LR = 0.1  # plain SGD: the one optimizer that all three differentiate in the same way
AGREEMENT = 1e-5


class Problem:
    """One training batch with teacher logits and ratios, one validation batch; wanted is ``d L_val / d alpha`` of the step."""

    def __init__(self, work: Workload) -> None:
        teacher, self.student, _ = work.build()
        self.student.train()
        (first, self.target, _), (second, self.val_target, _) = work.batches(2)
        self.inputs, self.val_inputs = (x if isinstance(x, tuple) else (x,) for x in (first, second))
        with torch.no_grad():
            self.teacher_logits = teacher(*self.inputs)
        self.temperature = work.temperature
        self.start = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}

    def reset(self) -> None:
        """Back to the point before the step."""
        self.student.load_state_dict(self.start)
        self.student.zero_grad()

    def alpha(self) -> Tensor:
        """The ratios of the step, a fresh leaf."""
        return torch.linspace(0.1, 0.9, len(self.target)).requires_grad_()

    def fused(self, logits: Tensor, alpha: Tensor) -> Tensor:
        """The loss of the training batch."""
        kd = kd_loss(logits, self.teacher_logits, self.temperature)
        return fuse(kd, gt_loss(logits, self.target), alpha).mean()


def ours(problem: Problem) -> Callable[[], Tensor]:
    """Forward mode, on the step that the training takes."""
    student, alpha = problem.student, problem.alpha().detach()
    optimizer = torch.optim.SGD(student.parameters(), LR)
    estimator = build_estimator("forward")
    recorder = StepRecorder(student, optimizer, estimator, clip_norm=None, assume_sgd=False)
    terms = FusedTerms(problem.teacher_logits, problem.target, problem.temperature)

    def once() -> Tensor:
        with recorder.forward_pass(problem.inputs):
            logits = student(*problem.inputs)
        loss = problem.fused(logits, alpha)
        recorder.complete(logits, terms, alpha, loss)
        loss.backward()
        record = recorder.finish()
        optimizer.step()
        return estimator.estimate(record, (problem.val_inputs, problem.val_target))

    return once


def torchopt(problem: Problem) -> Callable[[], Tensor]:
    """Through a differentiable step of TorchOpt, as its tutorial on meta-optimizers does it."""
    import torchopt

    student, alpha = problem.student, problem.alpha()
    optimizer = torchopt.MetaSGD(student, lr=LR)

    def once() -> Tensor:
        before = [torchopt.extract_state_dict(part, by="reference") for part in (student, optimizer)]
        optimizer.step(problem.fused(student(*problem.inputs), alpha))
        student.eval()
        loss = F.cross_entropy(student(*problem.val_inputs), problem.val_target)
        (gradient,) = torch.autograd.grad(loss, alpha)
        student.train()
        for part, state in zip((student, optimizer), before, strict=True):
            torchopt.recover_state_dict(part, state)
        return gradient

    return once


def higher(problem: Problem) -> Callable[[], Tensor]:
    """Through a differentiable step of higher, as its README does it."""
    import higher

    student, alpha = problem.student, problem.alpha()
    optimizer = torch.optim.SGD(student.parameters(), LR)

    def once() -> Tensor:
        with higher.innerloop_ctx(student, optimizer, copy_initial_weights=False) as (functional, step):
            step.step(problem.fused(functional(*problem.inputs), alpha))
            functional.eval()
            loss = F.cross_entropy(functional(*problem.val_inputs), problem.val_target)
            (gradient,) = torch.autograd.grad(loss, alpha)
        return gradient

    return once


PEERS: dict[str, Callable[[Problem], Callable[[], Tensor]]] = {"tgeokd": ours, "TorchOpt": torchopt, "higher": higher}


def differences(work: Workload, dtype: torch.dtype) -> dict[str, float]:
    """The largest difference of each peer to ours, as a share of our largest entry."""
    torch.set_default_dtype(dtype)
    try:
        problem = Problem(work)
        found = {}
        for name, peer in PEERS.items():
            problem.reset()
            found[name] = peer(problem)().detach()
    finally:
        torch.set_default_dtype(torch.float32)
    own = found.pop("tgeokd")
    return {name: float((value - own).abs().max() / own.abs().max()) for name, value in found.items()}


def check_agreement(work: Workload) -> str:
    """Check in double precision, where rounding errors are small, that all give the same numbers."""
    for name, difference in differences(work, torch.float64).items():
        if difference > AGREEMENT:
            raise SystemExit(f"{name} gives another hypergradient: {difference:.2g} of its largest entry apart")
    single = differences(work, torch.float32)
    return ", ".join(f"{name} {difference:.0e}" for name, difference in single.items())


def _timed(work: Workload, peer: Callable[[Problem], Callable[[], Tensor]], repeats: int) -> Callable[[], float]:
    problem = Problem(work)
    once = peer(problem)

    def measure() -> float:
        seconds = 0.0
        for _ in range(repeats):
            problem.reset()
            started = time.perf_counter()
            once()
            seconds += time.perf_counter() - started
        return seconds / repeats

    return measure


def figures(runs: int) -> list[Figure]:
    """Exact hypergradient, the step included, beside the better of the two peers."""
    made = []
    for work, repeats in ((RESNET, 1), (MLP, 200)):
        with threads(work.threads):
            apart = check_agreement(work)
            values = interleaved({name: _timed(work, peer, repeats) for name, peer in PEERS.items()}, runs)
        best = min(("TorchOpt", "higher"), key=lambda name: sorted(values[name])[runs // 2])
        milliseconds = ", ".join(
            f"{name} {1e3 * sorted(seconds)[runs // 2]:.2f} ms" for name, seconds in values.items()
        )
        made.append(
            Figure.of(
                f"exact forward / the better of TorchOpt and higher ({work.name})",
                ratios(values, "tgeokd", best),
                limit=0.65,
                note=f"step included; the better is {best}; {milliseconds}; difference to ours in single precision: {apart}",
            )
        )
    return made
