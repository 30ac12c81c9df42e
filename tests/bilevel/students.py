"""Small students, their data, real optimizers, and the independent truth: a brute force that shares no code with tgeokd.

The brute force perturbs one fusion ratio, takes the real optimizer's step on a copy of student and optimizer, and measures
the validation loss. Everything is float64 unless a test needs another type.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from tgeokd.bilevel import Estimator, FusedTerms, StepRecord, build_estimator
from tgeokd.bilevel.recorder import StepRecorder
from tgeokd.methods import LossInputs, Method
from tgeokd.training.step import DistillationStep

N, M, C, WIDTH = 6, 5, 4, 5


# ---- students


class DropoutMLP(nn.Module):
    def __init__(self, rate: float = 0.4) -> None:
        super().__init__()
        self.body, self.dropout, self.head = nn.Linear(WIDTH, 8), nn.Dropout(rate), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.body(x))))


class BatchNormCNN(nn.Module):
    """The convolution before the batch norm has no bias: its true gradient would be 0, and Adam would amplify the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.conv(x))).flatten(1))


class EncoderLayerStudent(nn.Module):
    """``nn.TransformerEncoderLayer`` with dropout; GELU, because a difference quotient must not straddle ReLU's kink."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(dim=1))


class DirectAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 12), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v).squeeze(1).mean(dim=1))


class TiedWeights(nn.Module):
    """Two different modules hold one and the same Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, C)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class AliasedModule(nn.Module):
    """One module under two attribute names, called through both."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, C)
        self.alias = self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.alias(torch.tanh(self.body(x)))))


class StatefulBuffer(nn.Module):
    """The output depends on a count of training passes in a buffer: a pass run again must start from the same buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, 6), nn.Linear(6, C)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes.add_(1)
        return self.head(torch.tanh(self.body(x)) * (1 + 0.3 * self.passes))


class SparseEmbedding(nn.Module):
    """Gradients of the embedding are sparse tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 5, sparse=True), nn.Linear(5, C)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)).mean(dim=1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(7, 5), nn.Linear(5, C)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(tokens)))


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class CustomFunction(nn.Module):
    """A user's own autograd function, without a forward-mode derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, 6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Cube.apply(self.body(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Mixed(nn.Module):
    """Batch norm, dropout, frozen layers in eval mode, a tied weight; as in BatchNormCNN, no bias before the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(WIDTH), nn.Dropout(0.3), nn.Linear(WIDTH, C)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(self.frozen(x)))
        return self.head(self.dropout(torch.tanh(self.norm(self.second(h)))))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, C))


def frozen_layers() -> nn.Sequential:
    student = nn.Sequential(
        nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, C)
    )
    student[0].requires_grad_(False)
    student[4].bias.requires_grad_(False)
    return student


def _weight_norm() -> nn.Sequential:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 6))
    return nn.Sequential(normed, nn.Tanh(), nn.Linear(6, C))


def _vectors(n: int) -> Tensor:
    return torch.randn(n, WIDTH, dtype=torch.float64)


def _images(n: int) -> Tensor:
    return torch.randn(n, 1, 4, 4, dtype=torch.float64)


def _sequences(n: int) -> Tensor:
    return torch.randn(n, 3, 2, dtype=torch.float64)


def _tokens(n: int) -> Tensor:
    return torch.randint(7, (n, 3))


STUDENTS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "mlp": (mlp, _vectors),
    "batch_norm_cnn": (BatchNormCNN, _images),
    "encoder_layer": (EncoderLayerStudent, _sequences),
    "direct_attention": (DirectAttention, _sequences),
    "dropout": (DropoutMLP, _vectors),
    "tied": (TiedWeights, _vectors),
    "aliased": (AliasedModule, _vectors),
    "frozen": (frozen_layers, _vectors),
    "recurrent": (Recurrent, _sequences),
    "mixed": (Mixed, _vectors),
    "stateful": (StatefulBuffer, _vectors),
    "linear": (lambda: nn.Linear(WIDTH, C), _vectors),
    # sparse gradients: SGD alone supports them
    "sparse": (SparseEmbedding, _tokens),
    # without forward-mode AD
    "embedding_bag": (Bag, _tokens),
    "custom_function": (CustomFunction, _vectors),
    "weight_norm": (_weight_norm, _vectors),
}
NO_FORWARD_MODE = ("embedding_bag", "custom_function", "weight_norm")
FORWARD = tuple(name for name in STUDENTS if name not in (*NO_FORWARD_MODE, "sparse"))


# ---- optimizers

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.3),
    "momentum": lambda params: SGD(params, lr=0.2, momentum=0.8, dampening=0.3),
    "nesterov": lambda params: SGD(params, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda params: Adam(params, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda params: Adam(params, lr=0.05, betas=(0.8, 0.9), amsgrad=True),
    "adamw": lambda params: AdamW(params, lr=0.05, weight_decay=0.2),
    "maximize": lambda params: SGD(params, lr=0.2, momentum=0.5, maximize=True, weight_decay=0.05),
}


# ---- a student, its data and its optimizer


@dataclass
class Case:
    """A student about to take a step; ``data`` are the keyword arguments that ``ratio_gradient`` and brute force share."""

    student: nn.Module
    optimizer: Optimizer
    inputs: Any
    target: Tensor
    teacher_logits: Tensor
    alpha: Tensor
    val_inputs: Any
    val_target: Tensor
    temperature: float = 2.5

    @property
    def data(self) -> dict[str, Any]:
        names = ("inputs", "target", "teacher_logits", "alpha", "val_inputs", "val_target", "temperature")
        return {name: getattr(self, name) for name in names}

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def copied(self) -> Case:
        """Student and optimizer copied together, so that the optimizer holds the copy's parameters."""
        student, optimizer = copy.deepcopy((self.student, self.optimizer))
        return self.with_(student=student, optimizer=optimizer)


def make_case(
    student: str | nn.Module = "mlp",
    optimizer: str | Callable[[Any], Optimizer] = "sgd",
    *,
    steps: int = 0,
    seed: int = 0,
    n: int = N,
    classes: int = C,
    make_inputs: Callable[[int], Any] | None = None,
    first_eps: float = 0.03,
) -> Case:
    """A case after ``steps`` real training steps, so that the optimizer has a state.

    In Adam's first step the update is ``lr g / (|g| + eps)``: with a tiny eps its derivative is almost zero, and a difference
    quotient of it would be rounding. So ``first_eps`` replaces eps where no step came before.
    """
    torch.manual_seed(seed)
    if isinstance(student, str):
        build, default_inputs = STUDENTS[student]
        student = build().double()
    else:
        default_inputs = _vectors
    make_inputs = make_inputs or default_inputs
    build_optimizer = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    case = Case(
        student=student,
        optimizer=build_optimizer(student.parameters()),
        inputs=make_inputs(n),
        target=torch.randint(classes, (n,)),
        teacher_logits=2 * torch.randn(n, classes, dtype=torch.float64),
        alpha=0.1 + 0.8 * torch.rand(n, dtype=torch.float64),
        val_inputs=make_inputs(M),
        val_target=torch.randint(classes, (M,)),
    )
    for _ in range(steps):
        other = case.with_(
            inputs=make_inputs(n),
            target=torch.randint(classes, (n,)),
            teacher_logits=2 * torch.randn(n, classes, dtype=torch.float64),
        )
        plain_step(other)
    if not steps:
        for group in case.optimizer.param_groups:
            if "eps" in group:
                group["eps"] = first_eps
    torch.manual_seed(seed + 1000)  # the random state in which the step under test begins
    return case


# ---- the independent truth


def call(student: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        output = student(**inputs)
    elif isinstance(inputs, tuple):
        output = student(*inputs)
    else:
        output = student(inputs)
    output = getattr(output, "logits", output)
    if output.ndim == 1:
        output = output[:, None]
    return torch.cat([torch.zeros_like(output), output], dim=1) if output.shape[1] == 1 else output


def rows(inputs: Any, index: slice) -> Any:
    if isinstance(inputs, dict):
        return {key: value[index] for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value[index] for value in inputs)
    return inputs[index]


def pieces(total: int, accumulate: int) -> list[slice]:
    assert total % accumulate == 0
    size = total // accumulate
    return [slice(start, start + size) for start in range(0, total, size)]


def kd_of(z: Tensor, teacher: Tensor, tau: float) -> Tensor:
    p = F.softmax(teacher / tau, dim=1)
    return tau**2 * (p * (p.log() - F.log_softmax(z / tau, dim=1))).sum(dim=1)


def gt_of(z: Tensor, target: Tensor) -> Tensor:
    return -F.log_softmax(z, dim=1)[torch.arange(len(target)), target]


def plain_step(case: Case, *, clip_norm: float | None = None, accumulate: int = 1) -> None:
    """One ordinary step of distillation: forward, backward, clip, step."""
    case.optimizer.zero_grad()
    for index in pieces(len(case.target), accumulate):
        z = call(case.student, rows(case.inputs, index))
        (loss_of(case, z, index) / accumulate).backward()
    clip_gradients(case, clip_norm)
    case.optimizer.step()


def terms_of(case: Case, index: Any = slice(None)) -> FusedTerms:
    """How the loss of some samples depends on their ratios."""
    return FusedTerms(case.teacher_logits[index], case.target[index], case.temperature)


def loss_of(case: Case, z: Tensor, index: slice) -> Tensor:
    """Mean fused loss of some of the samples, from their logits."""
    alpha = case.alpha[index]
    kd, gt = kd_of(z, case.teacher_logits[index], case.temperature), gt_of(z, case.target[index])
    return (alpha * kd + (1 - alpha) * gt).mean()


def clip_gradients(case: Case, clip_norm: float | None) -> None:
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_([p for p in case.student.parameters() if p.requires_grad], clip_norm)


def validation_loss_after_step(case: Case, **settings: Any) -> float:
    """The validation loss after a real step on a copy; the random state is restored, so dropout masks repeat."""
    trial = case.copied()
    state = torch.get_rng_state()
    plain_step(trial, **settings)
    torch.set_rng_state(state)
    trial.student.eval()
    with torch.no_grad():
        return F.cross_entropy(call(trial.student, trial.val_inputs), trial.val_target).item()


def derivative(f: Callable[[float], float], h: float) -> float:
    """Derivative at 0 by the five-point central difference, error O(h^4)."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def brute_force(case: Case, *, h: float = 3e-5, **settings: Any) -> Tensor:
    """``d L_val / d alpha_i`` by perturbing one ratio at a time and taking the real step."""

    def at(i: int, shift: float) -> float:
        alpha = case.alpha.clone()
        alpha[i] += shift
        return validation_loss_after_step(case.with_(alpha=alpha), **settings)

    return torch.tensor([derivative(lambda s, i=i: at(i, s), h) for i in range(len(case.alpha))], dtype=torch.float64)


def gradient_norm(case: Case) -> float:
    """Norm of the gradient that the step will see, for a clipping bound that bites or does not."""
    trial = case.copied()
    state = torch.get_rng_state()
    trial.optimizer.step = lambda: None  # type: ignore[method-assign]
    plain_step(trial)
    torch.set_rng_state(state)
    gradients = [p.grad.flatten() for p in trial.student.parameters() if p.grad is not None and p.requires_grad]
    return torch.cat(gradients).norm().item()


def clip_bound(case: Case, clip: str) -> float | None:
    """A bound at half (``bites``) or twice (``loose``) the gradient's norm; None for ``none``."""
    if clip == "none":
        return None
    return gradient_norm(case) * {"bites": 0.5, "loose": 2.0}[clip]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Length of the difference as a share of the expected vector's length, which must not vanish."""
    assert found.shape == expected.shape
    assert expected.norm() > 1e-8, "nothing to compare: the expected gradient vanishes"
    return float((found - expected).norm() / expected.norm())


# ---- the code under test, in a training loop


def recorder_of(
    case: Case,
    method: str | Estimator = "forward",
    *,
    clip_norm: float | None = None,
    assume_sgd: bool = False,
    **options: Any,
) -> StepRecorder:
    """A recorder for an estimator, given by name with its options."""
    estimator = build_estimator(method, **options)
    settings = {"clip_norm": clip_norm, "assume_sgd": assume_sgd}
    return StepRecorder(case.student, case.optimizer, estimator, **settings)


def backward_passes(
    case: Case, recorder: StepRecorder, factors: Sequence[float] = (1.0,), *, zero_grad: bool = False
) -> None:
    """The recorded forward passes of a step, one for each factor, and their backward passes with the loss times the factor.

    With ``zero_grad`` the gradients are zeroed between the first forward and backward pass, as many loops do.
    """
    for index, factor in zip(pieces(len(case.target), len(factors)), factors, strict=True):
        inputs = rows(case.inputs, index)
        with recorder.forward_pass(inputs):
            z = call(case.student, inputs)
        loss = loss_of(case, z, index)
        recorder.complete(z, terms_of(case, index), case.alpha[index], loss)
        if zero_grad and not index.start:
            case.optimizer.zero_grad()
        (loss * factor).backward()


def recorded_step(case: Case, recorder: StepRecorder, *, accumulate: int = 1) -> StepRecord:
    """One ordinary step of distillation (:func:`plain_step`), recorded."""
    case.optimizer.zero_grad()
    backward_passes(case, recorder, [1 / accumulate] * accumulate)
    clip_gradients(case, recorder.clip_norm)
    record = recorder.finish()
    case.optimizer.step()
    return record


def estimate(case: Case, recorder: StepRecorder, record: StepRecord) -> Tensor:
    return recorder.estimator.estimate(record, (case.val_inputs, case.val_target))


def hypergradient(case: Case, method: str | Estimator = "forward", *, accumulate: int = 1, **options: Any) -> Tensor:
    """The hypergradient of one recorded step, which is taken."""
    recorder = recorder_of(case, method, **options)
    return estimate(case, recorder, recorded_step(case, recorder, accumulate=accumulate))


class GivenRatios(Method):
    """A method whose ratios are given, and which keeps the hypergradients that it gets."""

    name = "given"
    needs_teacher = False
    outer = "train"

    def __init__(self, alpha: Tensor, estimator: Estimator) -> None:
        self.given, self.estimator = alpha, estimator
        self.used = 0
        self.found: list[Tensor] = []

    def alpha(self, inputs: LossInputs) -> Tensor:
        start = self.used % len(self.given)
        self.used += len(inputs.target)
        return self.given[start : start + len(inputs.target)]

    def needs_hypergradient(self, step: int) -> bool:
        return True

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        assert torch.equal(alpha, self.given)
        self.found.append(gradient)


def distillation_step(
    case: Case, method: str | Estimator = "forward", *, clip_norm: float | None = None, **options: Any
) -> DistillationStep:
    """A step object with the case's ratios, ready for a loop. Its outer batches are the validation samples."""
    given = GivenRatios(case.alpha, build_estimator(method, **options))
    step = DistillationStep(case.student, case.optimizer, given, temperature=case.temperature, clip_norm=clip_norm)
    step.prepare([(case.val_inputs, case.val_target)])
    return step


def distilled_step(case: Case, step: DistillationStep, *, accumulate: int = 1) -> Tensor:
    """One step of a hand-written loop; returns the hypergradient that the method was given."""
    case.optimizer.zero_grad()
    for index in pieces(len(case.target), accumulate):
        inputs, target, teacher = rows(case.inputs, index), case.target[index], case.teacher_logits[index]
        with step.forward_pass(inputs, target, teacher):
            z = call(case.student, inputs)
        (step.loss_from_logits(z, target, teacher) / accumulate).backward()
    clip_gradients(case, step.clip_norm)
    case.optimizer.step()
    return step.method.found[-1]
