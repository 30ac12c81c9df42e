"""``DistillationStep`` in other people's loops: hypergradients against brute force, whatever the loop does around it."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from students import BatchNormCNN, DropoutMLP, derivative, gt_of, kd_of, mlp, relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import DistillationStep, Distiller, ReweightingKD, TGeoKD, VanillaKD
from tgeokd.bilevel import build_estimator
from tgeokd.methods import Method
from tgeokd.utils.errors import DivergenceError, InputError

TAU, C, WIDTH = 2.5, 4, 5
SIZES = (4, 2)  # of the microbatches: unequal, so that their weights matter


class Fixed(Method):
    """Ratios that are given, and the hypergradients that were learned from."""

    needs_teacher = True
    outer = "holdout"

    def __init__(self, ratios, estimator):
        self.ratios, self.estimator, self.learned = ratios, build_estimator(estimator), []
        self.place = 0

    def alpha(self, inputs):
        n = len(inputs.target)
        found = self.ratios[self.place : self.place + n]
        self.place = (self.place + n) % len(self.ratios)
        return found

    def needs_hypergradient(self, step):
        return True

    def learn(self, alpha, gradient):
        self.learned.append((alpha, gradient))


Fixed.name = "fixed"


class Setup:
    """Data, a student with an optimizer that has a state already, and a teacher."""

    def __init__(self, build=mlp, optimizer=lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1), images=False):
        torch.manual_seed(0)
        shape = (1, 4, 4) if images else (WIDTH,)
        self.student = build().double()
        self.optimizer = optimizer(self.student.parameters())
        self.inputs = [torch.randn(n, *shape, dtype=torch.float64) for n in SIZES]
        self.target = [torch.randint(C, (n,)) for n in SIZES]
        self.validation = [(torch.randn(5, *shape, dtype=torch.float64), torch.arange(5) % C)]
        self.ratios = 0.1 + 0.8 * torch.rand(sum(SIZES), dtype=torch.float64)
        weight = 2 * torch.randn(torch.tensor(shape).prod(), C, dtype=torch.float64)
        self.teacher = lambda x: x.flatten(1) @ weight
        for _ in range(2):  # the optimizer gets a state
            F.cross_entropy(self.student(self.inputs[0]), self.target[0]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def copied(self):
        other = copy.copy(self)
        other.student, other.optimizer = copy.deepcopy((self.student, self.optimizer))
        return other

    def plain_loss(self, k, ratios):
        """The loss of microbatch k by formulas that share no code with the package."""
        z, rows = self.student(self.inputs[k]), slice(sum(SIZES[:k]), sum(SIZES[: k + 1]))
        alpha = ratios[rows]
        kd, gt = kd_of(z, self.teacher(self.inputs[k]), TAU), gt_of(z, self.target[k])
        return (alpha * kd + (1 - alpha) * gt).mean()

    def brute_force(self, loop, samples=6, h=3e-5):
        """``d L_val / d alpha_i`` by running the loop on copies with one ratio changed."""

        def loss_after(i, shift):
            trial, ratios = self.copied(), self.ratios.clone()
            ratios[i] += shift
            torch.manual_seed(7)
            loop(trial.optimizer, trial.student, lambda k: trial.plain_loss(k, ratios))
            trial.student.eval()
            inputs, target = self.validation[0]
            with torch.no_grad():
                return F.cross_entropy(trial.student(inputs), target).item()

        return torch.tensor([derivative(lambda s, i=i: loss_after(i, s), h) for i in range(samples)]).double()

    def step(self, estimator="forward", **options):
        method = Fixed(self.ratios, estimator)
        step = DistillationStep(
            self.student, self.optimizer, method, temperature=TAU, validation=self.validation, **options
        )
        loader = [*zip(self.inputs, self.target, strict=True), (self.inputs[0], torch.arange(SIZES[0]) % C)]
        step.prepare(loader, self.teacher)
        return step


def plain(optimizer, student, loss_of):
    optimizer.zero_grad()
    loss_of(0).backward()
    optimizer.step()


def accumulated(optimizer, student, loss_of):
    optimizer.zero_grad()
    for k in range(2):
        (loss_of(k) / 2).backward()
    optimizer.step()


def summed(optimizer, student, loss_of):
    """One backward pass of both microbatches."""
    optimizer.zero_grad()
    (0.3 * loss_of(0) + 0.7 * loss_of(1)).backward()
    optimizer.step()


def clipped(optimizer, student, loss_of, max_norm=0.1):
    optimizer.zero_grad()
    loss_of(0).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), max_norm)
    optimizer.step()


def scaled(optimizer, student, loss_of):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(0)).backward()
    scaler.step(optimizer)
    scaler.update()


def scaled_accumulated_clipped(optimizer, student, loss_of, max_norm=0.1):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    for k in range(2):
        scaler.scale(loss_of(k) / 2).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(student.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()


def closure(optimizer, student, loss_of):
    def evaluate():
        optimizer.zero_grad()
        loss = loss_of(0)
        loss.backward()
        return loss

    optimizer.step(evaluate)


def keyword_closure(optimizer, student, loss_of):
    def evaluate():
        optimizer.zero_grad()
        loss = loss_of(0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.1)
        return loss

    optimizer.step(closure=evaluate)


LOOPS = {
    "plain": (plain, 1, {}),
    "accumulated": (accumulated, 2, {}),
    "summed": (summed, 2, {}),
    "clipped": (clipped, 1, {"clip_norm": 0.1}),
    "scaled": (scaled, 1, {}),
    "scaled, accumulated and clipped": (scaled_accumulated_clipped, 2, {"clip_norm": 0.1}),
    "closure": (closure, 1, {}),
    "closure with clipping": (keyword_closure, 1, {"clip_norm": 0.1}),
}


def learned_in(setup, loop, step):
    torch.manual_seed(7)
    batches = list(zip(setup.inputs, setup.target, strict=True))
    loop(setup.optimizer, setup.student, lambda k: step.loss(batches[k]))
    ((_, gradient),) = step.method.learned
    return gradient


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", LOOPS)
def test_the_hypergradient_is_that_of_the_loop_around_it(name, optimizer):
    loop, microbatches, options = LOOPS[name]
    sgd = {"sgd": lambda p: torch.optim.SGD(p, 0.2, momentum=0.9)}
    setup = Setup(**({"optimizer": sgd["sgd"]} if optimizer == "sgd" else {}))
    expected = setup.brute_force(loop, sum(SIZES[:microbatches]))
    found = learned_in(setup, loop, setup.step(**options))
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("estimator", ["finite_difference", "unrolled", "exact"])
@pytest.mark.parametrize("name", ["accumulated", "scaled, accumulated and clipped"])
def test_every_exact_estimator_agrees(name, estimator):
    loop, microbatches, options = LOOPS[name]
    setup = Setup()
    expected = setup.brute_force(loop, sum(SIZES[:microbatches]))
    found = learned_in(setup, loop, setup.step(estimator, **options))
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("build", [DropoutMLP, BatchNormCNN])
def test_dropout_masks_and_batch_statistics_are_those_of_the_step(build):
    setup = Setup(build, images=build is BatchNormCNN)
    expected = setup.brute_force(accumulated)
    assert relative_error(learned_in(setup, accumulated, setup.step()), expected) < 1e-5


def test_last_layer_is_exact_where_the_head_is_the_student():
    setup = Setup(lambda: nn.Linear(WIDTH, C))
    for name in ("accumulated", "scaled, accumulated and clipped"):
        loop, _, options = LOOPS[name]
        trial = setup.copied()
        expected = trial.brute_force(loop)
        assert relative_error(learned_in(trial, loop, trial.step("last_layer", **options)), expected) < 1e-6


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", ["forward", "last_layer"])
def test_a_compiled_student(backend, estimator):
    if backend == "inductor":
        from tgeokd.core.compiling import check_compiler

        try:
            check_compiler(torch.device("cpu"))
        except InputError as error:
            pytest.skip(str(error))
    build = (lambda: nn.Linear(WIDTH, C)) if estimator == "last_layer" else mlp
    setup = Setup(build)
    expected = setup.brute_force(accumulated)
    eager = setup.student
    setup.student = torch.compile(eager, backend=backend)
    found = learned_in(setup, accumulated, setup.step(estimator))
    assert relative_error(found, expected) < 1e-5
    torch._dynamo.reset()


def test_a_fused_optimizer_that_unscales_in_its_step():
    fused = Setup(optimizer=lambda p: torch.optim.SGD(p, 0.2, fused=True))
    expected = fused.brute_force(scaled, SIZES[0])
    assert relative_error(learned_in(fused, scaled, fused.step()), expected) < 1e-6


def test_a_caller_that_runs_the_student():
    setup = Setup()
    expected = setup.brute_force(plain, SIZES[0])
    step = setup.step()
    x, y = setup.inputs[0], setup.target[0]
    with step.forward_pass(x):
        logits = setup.student(x)
    step.loss_from_logits(logits, y, setup.teacher(x)).backward()
    setup.optimizer.step()
    ((_, found),) = step.method.learned
    assert relative_error(found, expected) < 1e-6


def test_a_forward_pass_outside_of_the_block_is_refused():
    setup = Setup()
    step = setup.step()
    x, y = setup.inputs[0], setup.target[0]
    with pytest.raises(InputError, match="forward_pass"):
        step.loss_from_logits(setup.student(x), y, setup.teacher(x))


def test_a_step_that_the_scaler_skips_leaves_nothing_behind():
    setup = Setup()
    expected = setup.brute_force(plain, SIZES[0])
    step = setup.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(step.loss((setup.inputs[1], setup.target[1])) * float("inf")).backward()
    scaler.step(setup.optimizer)
    scaler.update()
    assert step.index == 0
    assert step.method.learned == []
    step.method.place = 0
    assert relative_error(learned_in(setup, plain, step), expected) < 1e-6
    assert step.index == 1


def test_an_optimizer_of_two_steps_and_a_closed_one():
    setup = Setup()
    first, second = setup.step(), setup.step()
    learned_in(setup, plain, second)
    assert first.method.learned == []
    second.close()
    second.method.place = 0
    second.loss((setup.inputs[0], setup.target[0])).backward()
    setup.optimizer.step()
    assert len(second.method.learned) == 1


@pytest.mark.parametrize("method", [TGeoKD(outer="holdout"), ReweightingKD(), VanillaKD(alpha=0.3), TGeoKD(paper=True)])
def test_three_lines_in_a_loop_train_like_the_distiller(method):
    torch.manual_seed(1)
    x, y = torch.randn(48, 6), torch.randint(3, (48,))
    validation = DataLoader(TensorDataset(torch.randn(12, 6), torch.arange(12) % 3), 6)
    teacher = nn.Linear(6, 3)

    def parts():
        torch.manual_seed(2)
        student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=torch.Generator().manual_seed(3))
        return student, torch.optim.AdamW(student.parameters(), 0.01), loader

    expected, optimizer, loader = parts()
    distiller = Distiller(expected, teacher, copy.deepcopy(method), optimizer, progress=False, accelerator="cpu")
    distiller.fit(loader, validation, epochs=2, seed=5)

    student, optimizer, loader = parts()
    torch.manual_seed(5)
    step = DistillationStep(student, optimizer, copy.deepcopy(method), validation=validation, seed=5)
    step.prepare(loader, teacher)
    for epoch in range(2):
        step.start_epoch(epoch, 2)
        for batch in loader:
            loss = step.loss(batch, teacher)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, value), other in zip(expected.state_dict().items(), student.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_prepare_leaves_the_student_the_random_state_and_the_order_as_they_are():
    setup = Setup(DropoutMLP)
    loader = DataLoader(TensorDataset(torch.cat(setup.inputs), torch.arange(6) % C), 2, shuffle=True)
    loader.generator = torch.Generator().manual_seed(0)
    before = copy.deepcopy(setup.student.state_dict()), torch.get_rng_state(), loader.generator.get_state()
    step = DistillationStep(setup.student, setup.optimizer, TGeoKD(outer="holdout"), validation=setup.validation)
    found = step.prepare(loader, setup.teacher)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), setup.student.state_dict().values(), strict=True))
    assert torch.equal(before[1], torch.get_rng_state())
    assert torch.equal(before[2], loader.generator.get_state())
    assert setup.student.training
    probs = setup.teacher(torch.cat(setup.inputs)).softmax(1)
    for c in range(C):
        assert torch.allclose(found.class_means[c], probs[torch.arange(6) % C == c].mean(0))


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda s: DistillationStep(s.student, s.optimizer, "kd", temperature=0.0), "temperature"),
        (lambda s: DistillationStep(s.student, s.optimizer, "kd", clip_norm=-1.0), "clip_norm"),
        (lambda s: DistillationStep(s.student, torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), "kd"), "optimizer"),
        (lambda s: DistillationStep(s.student, torch.optim.Adagrad(s.student.parameters()), "tgeo"), "Adagrad"),
        (lambda s: DistillationStep(s.student, s.optimizer, "kd").prepare([(s.inputs[0], s.target[0])]), "kd"),
        (lambda s: DistillationStep(s.student, s.optimizer, "tgeo").prepare([], s.teacher), "validation"),
        (lambda s: DistillationStep(s.student, s.optimizer, "kd").prepare([], s.teacher), "training loader"),
        (lambda s: s.step().prepare([(s.inputs[0], s.target[0] + C)], s.teacher), str(C)),
        (lambda s: s.step().prepare([(s.inputs[0], s.target[0])], lambda x: x[:, :3]), "3"),
        (lambda s: s.step().loss(s.inputs[0]), "Tensor"),
        (lambda s: s.step().loss((s.inputs[0], s.target[0], torch.ones(4))), "float32"),
        (lambda s: _prepared(s, "anl").loss((s.inputs[0], s.target[0])), "start_epoch"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name(break_it, named):
    with pytest.raises(InputError, match=named):
        break_it(Setup())


def _prepared(setup, method):
    step = DistillationStep(setup.student, setup.optimizer, method)
    step.prepare([(setup.inputs[0], setup.target[0])], setup.teacher)
    return step


def test_a_student_that_is_not_finite_is_a_divergence():
    setup = Setup()
    step = setup.step()
    with torch.no_grad():
        next(setup.student.parameters()).fill_(float("nan"))
    with pytest.raises(DivergenceError, match="0"):
        step.loss((setup.inputs[0], setup.target[0]))


def test_the_state_continues_in_another_step():
    def run(steps, state=None):
        setup = Setup()
        torch.manual_seed(11)
        step = DistillationStep(
            setup.student, setup.optimizer, TGeoKD(outer="holdout", update_interval=1), validation=setup.validation * 3
        )
        loader = [(torch.cat(setup.inputs), torch.arange(6) % C)]
        step.prepare(loader, setup.teacher)
        if state is not None:
            setup.student.load_state_dict(state[0])
            setup.optimizer.load_state_dict(state[1])
            step.load_state_dict(state[2])
        for _ in range(steps):
            step.loss(loader[0]).backward()
            setup.optimizer.step()
            setup.optimizer.zero_grad()
        return copy.deepcopy((setup.student.state_dict(), setup.optimizer.state_dict(), step.state_dict()))

    whole, resumed = run(6), run(3, run(3))
    assert resumed[2]["index"] == 6
    for a, b in zip(whole[0].values(), resumed[0].values(), strict=True):
        assert torch.equal(a, b)
    networks = [state[2]["method"]["state"]["network"]["omega"] for state in (whole, resumed)]
    assert torch.equal(*networks)


def test_a_student_and_its_optimizer_are_freed():
    setup = Setup()
    step = setup.step()
    learned_in(setup, plain, step)
    gone = weakref.ref(setup.student)
    del setup, step
    gc.collect()
    assert gone() is None


def test_a_loss_without_a_gradient_is_only_looked_at():
    for method in (TGeoKD(outer="holdout"), ReweightingKD(), VanillaKD()):
        setup = Setup()
        step = DistillationStep(setup.student, setup.optimizer, method, validation=setup.validation)
        loader = [(torch.cat(setup.inputs), torch.arange(6) % C)]
        step.prepare(loader, setup.teacher)
        with torch.no_grad():
            looked_at = step.loss(loader[0])
        assert step.statistics.count == 0
        loss = step.loss(loader[0])
        if not isinstance(method, ReweightingKD):  # whose ratios depend on the outer batch
            assert torch.equal(loss.detach(), looked_at)
        loss.backward()
        setup.optimizer.step()
        assert step.index == 1


def test_half_precision_logits_of_the_caller_are_fused_in_single_precision():
    setup = Setup()
    setup.student.float()
    step = _prepared_float(setup)
    x, y = setup.inputs[0].float(), setup.target[0]
    with torch.autocast("cpu", dtype=torch.bfloat16), step.forward_pass(x):
        logits = setup.student(x)
    assert logits.dtype == torch.bfloat16
    teacher = setup.teacher(setup.inputs[0]).float()
    loss = step.loss_from_logits(logits, y, teacher)
    assert loss.dtype == torch.float32
    kd, gt = kd_of(logits.float(), teacher, 4.0), gt_of(logits.float(), y)
    assert loss.item() == pytest.approx((0.9 * kd + 0.1 * gt).mean().item(), rel=1e-5)


def _prepared_float(setup):
    step = DistillationStep(setup.student, setup.optimizer, "kd")
    step.prepare([(setup.inputs[0].float(), setup.target[0])], lambda x: setup.teacher(x.double()).float())
    return step


def test_parameters_outside_of_the_optimizer_do_not_count():
    """A body that is trainable but in no optimizer must not change what happens to the head."""

    def train(body_trains):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, C))
        student[0].requires_grad_(body_trains)
        optimizer = torch.optim.SGD(student[2].parameters(), 0.5)
        loader = [(torch.randn(6, WIDTH), torch.arange(6) % C)]
        Distiller(student, None, "ce", optimizer, progress=False, accelerator="cpu").fit(loader, epochs=20)
        return student[2].weight.detach(), student[0].weight.grad

    (trained, stale), (frozen, _) = train(True), train(False)
    assert torch.equal(trained, frozen)
    assert stale is not None  # of the last step alone


def test_methods_that_learn_refuse_several_processes(monkeypatch):
    setup = Setup()
    step = DistillationStep(setup.student, setup.optimizer, TGeoKD(outer="holdout"), validation=setup.validation)
    monkeypatch.setattr(step.parallel, "world_size", 2, raising=False)
    with pytest.raises(InputError, match="tgeo"):
        step.prepare([(torch.cat(setup.inputs), torch.arange(6) % C)], setup.teacher)


def test_learning_before_prepare_is_refused():
    setup = Setup()
    step = DistillationStep(setup.student, setup.optimizer, TGeoKD(outer="holdout"), validation=setup.validation)
    with pytest.raises(InputError, match="prepare"):
        step.loss((setup.inputs[0], setup.target[0]))
