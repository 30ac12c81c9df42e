"""`posterior`: the corrected labels as the target, validation labels as they are, and the calibration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_training import Samples, TableTeacher
from torch import nn

from tgeokd import DistillationStep, LossInputs, PosteriorKD
from tgeokd.core.label_noise import LabelNoise
from tgeokd.utils.errors import InputError

N, C, TAU = 12, 5, 3.0


def inputs(known=None):
    generator = torch.Generator().manual_seed(0)
    z, t = (2 * torch.randn(N, C, generator=generator) for _ in range(2))
    return LossInputs(z, t, torch.randint(C, (N,), generator=generator), TAU, known=known)


def noise():
    rates = 0.7 * torch.eye(C) + 0.3 / C
    return LabelNoise(torch.tensor(1.5), 0.1 * torch.arange(C).float(), rates.log())


def test_posterior_trains_on_the_corrected_labels():
    given_ = inputs()
    method = PosteriorKD()
    method.prepare(C, None, label_noise=noise())
    result = method.loss(given_)
    q = noise().posterior(given_.teacher, given_.target).exp()
    torch.testing.assert_close(result.loss, -(q * given_.student_logits.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(result.alpha, 1 - q.gather(-1, given_.target[:, None]).squeeze(-1))


def test_posterior_takes_validation_labels_as_they_are():
    known = torch.arange(N) % 3 == 0
    given_ = inputs(known=known)
    method = PosteriorKD()
    method.prepare(C, None, label_noise=noise())
    result = method.loss(given_)
    torch.testing.assert_close(result.loss[known], given_.gt[known], rtol=2e-3, atol=2e-3)
    assert float(result.alpha[known].max()) < 1e-3


def test_posterior_calibrates_on_the_validation_set():
    torch.manual_seed(0)
    truth = torch.randint(C, (200,))
    train = Samples(torch.randn(200, 2), (truth + (torch.rand(200) < 0.3)) % C, 6.0 * F.one_hot(truth, C).float())
    clean = Samples(torch.randn(50, 2), truth[:50], train.teacher_logits[:50])
    student = nn.Linear(2, C)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    own = TableTeacher.numbered([clean], 200)
    step = DistillationStep(student, optimizer, PosteriorKD(), validation=own)
    found = step.prepare(TableTeacher.numbered([train]), TableTeacher([train, clean])).noise
    own_rate = float(found.log_rates.exp().diagonal().mean())
    assert own_rate == pytest.approx(0.7, abs=0.1)
    step.close()
    with pytest.raises(InputError, match="train"):
        PosteriorKD(outer="train")
