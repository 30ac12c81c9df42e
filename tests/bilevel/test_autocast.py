"""Mixed precision: hypergradients under bfloat16 autocast beside those in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from students import N, estimate, loss_of, make_case, mlp, recorder_of, relative_error, terms_of
from torch.optim import SGD

from tgeokd.bilevel import FusedTerms, build_estimator, ratio_gradient
from tgeokd.bilevel.recorder import StepRecorder
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.data import InputSpec
from tgeokd.models import build_model

BF16 = torch.bfloat16


def in_float32(seed=0):
    case = make_case("mlp", "sgd", seed=seed)
    single = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.data.items()}
    torch.manual_seed(seed)
    case.student = mlp()
    case.optimizer = SGD(case.student.parameters(), lr=0.3, momentum=0.5)
    return case.with_(**single)


def autocast_step(case, recorder):
    """The forward pass and the loss under autocast, backward and step outside, as torch recommends."""
    with torch.autocast("cpu", dtype=BF16):
        with recorder.forward_pass(case.inputs):
            logits = case.student(case.inputs).float()
        loss = loss_of(case, logits, slice(None))
        recorder.complete(logits, terms_of(case), case.alpha, loss)
    loss.backward()
    record = recorder.finish()
    case.optimizer.step()
    torch.clear_autocast_cache()
    return record


@pytest.mark.parametrize("method", ["forward", "unrolled", "last_layer"])
def test_close_to_full_precision_and_further_passes_use_autocast_too(method):
    case = in_float32()
    expected = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    recorder = recorder_of(case, method)
    record = autocast_step(case, recorder)
    dtypes = []
    handle = case.student[2].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    found = estimate(case, recorder, record)  # outside of autocast
    handle.remove()
    assert dtypes, "no further pass was seen"
    assert set(dtypes) == {BF16}
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found.float(), expected, dim=0) > 0.99


@pytest.mark.parametrize("method", ["forward", "last_layer"])
def test_the_pure_function_under_autocast(method):
    case = in_float32()
    expected = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    with torch.autocast("cpu", dtype=BF16):
        found = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found.float(), expected, dim=0) > 0.99


def test_finite_differences_are_taken_in_full_precision():
    for seed in range(5):
        case = in_float32(seed)
        expected = ratio_gradient(case.student, case.optimizer, **case.data)
        recorder = recorder_of(case, "finite_difference")
        found = estimate(case, recorder, autocast_step(case, recorder))
        assert F.cosine_similarity(found.float(), expected, dim=0) > 0.99


@pytest.mark.parametrize("method", ["forward", "unrolled", "last_layer"])
def test_a_whole_loop_inside_one_autocast_block(method):
    case = in_float32()
    case.optimizer.param_groups[0]["lr"] = 3.0  # a step far larger than the rounding of bfloat16
    copied = case.copied()
    outside, inside = recorder_of(case, method), recorder_of(copied, method)
    expected = estimate(case, outside, autocast_step(case, outside))
    with torch.autocast("cpu", dtype=BF16):
        found = estimate(copied, inside, autocast_step(copied, inside))
    assert F.cosine_similarity(found.float(), expected.float(), dim=0) > 0.99


def test_float32_end_to_end():
    case = in_float32()
    found = ratio_gradient(case.student, case.optimizer, **case.data)
    assert found.dtype == torch.float32
    assert found.shape == (N,)
    unrolled = ratio_gradient(case.student, case.optimizer, **case.data, method="unrolled")
    assert relative_error(found, unrolled) <= 1e-5


# ---- students of the sizes that are trained in mixed precision

TRAINED = {
    "conv": ("resnet8", (3, 16, 16), {}),
    "mlp": ("mlp", (64,), {"hidden": [64, 32]}),
}


def of_trained_size(kind, method, *, autocast, samples=48, val_samples=32, classes=10, tau=4.0):
    torch.manual_seed(0)
    name, shape, options = TRAINED[kind]
    student = build_model(name, inputs=InputSpec("array", shape), num_classes=classes, **options)
    x, val_x = torch.randn(samples, *shape), torch.randn(val_samples, *shape)
    y, val_y = torch.randint(classes, (samples,)), torch.randint(classes, (val_samples,))
    teacher, alpha = 2 * torch.randn(samples, classes), torch.rand(samples)
    optimizer = SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    settings = {"clip_norm": None, "assume_sgd": False}
    recorder = StepRecorder(student, optimizer, build_estimator(method), **settings)
    for _ in range(3):  # momentum and batch statistics as in the middle of training
        with torch.autocast("cpu", dtype=BF16, enabled=autocast), recorder.forward_pass(x):
            logits = student(x)
        logits = logits.float()
        loss = fuse(kd_loss(logits, teacher, tau), gt_loss(logits, y), alpha).mean()
        recorder.complete(logits, FusedTerms(teacher, y, tau), alpha, loss)
        optimizer.zero_grad()
        loss.backward()
        record = recorder.finish()
        optimizer.step()
    found = recorder.estimator.estimate(record, (val_x, val_y))
    assert found.dtype == torch.float32
    return found


@pytest.mark.parametrize("kind", list(TRAINED))
def test_autocast_costs_no_more_than_its_own_rounding(kind):
    eps = torch.finfo(BF16).eps  # 0.0078: the error of one rounding
    exact = of_trained_size(kind, "unrolled", autocast=False)
    for method in ("forward", "unrolled", "finite_difference"):
        found = of_trained_size(kind, method, autocast=True)
        error = relative_error(found, exact)
        assert eps / 100 < error < 5 * eps  # autocast was on, and did little harm
        assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.999
