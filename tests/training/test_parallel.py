"""What several processes count together, against one process that sees all samples."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_training import data, distiller_of, mlp
from torch import nn

from tgeokd import LossInputs, VanillaKD
from tgeokd.teachers.network import as_teacher
from tgeokd.training.batches import BatchReader
from tgeokd.training.parallel import DistributedContext, ParallelContext, current_context
from tgeokd.training.statistics import EpochStatistics
from tgeokd.training.survey import survey

CPU = torch.device("cpu")
PROCESSES = 2


def test_one_process_is_the_main_one_and_returns_its_own_values():
    context = current_context()
    assert type(context) is ParallelContext
    assert (context.rank, context.world_size, context.is_main) == (0, 1, True)
    values = torch.tensor([1.0, 2.0])
    assert context.all_reduce(values) is values
    assert context.gather_objects("a") == ["a"]
    context.barrier()


def count(context, batches):
    """Class means and statistics of an epoch over some batches."""
    teacher = as_teacher(mlp(2))
    reader = BatchReader(CPU)
    reader.num_classes = 3
    method = distiller_of("tgeo").method
    x, y = data(12, 7)
    rows = slice(None) if context.world_size == 1 else slice(6 * context.rank, 6 * context.rank + 6)
    validation = [(x[rows], y[rows])]
    found = survey(method, 3, batches, validation, teacher, reader, context, validation_teacher=teacher)
    statistics = EpochStatistics(CPU, context)
    for batch in reader.read_all(batches, "loader"):
        student_logits, teacher_logits = 2 * batch.inputs[:, :3], teacher.logits(batch)
        given = LossInputs(student_logits, teacher_logits, batch.target, 2.0)
        statistics.update(VanillaKD(alpha=0.25).loss(given), given, 0)
    return found.class_means, found.label_noise, statistics.summary()


def batches_of(rank):
    """The processes see different numbers of samples."""
    x, y = data(30)
    return [(x[:18], y[:18])] if rank == 0 else [(x[18:24], y[18:24]), (x[24:], y[24:])]


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    context = current_context()
    assert isinstance(context, DistributedContext)
    assert (context.rank, context.world_size, context.is_main) == (rank, PROCESSES, rank == 0)
    values = torch.tensor([1.0, 10.0 * rank])
    assert context.all_reduce(values).tolist() == [2.0, 10.0]
    assert values.tolist() == [1.0, 10.0 * rank]  # the argument is left as it is
    assert context.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    torch.save(count(context, batches_of(rank)), f"{folder}/{rank}.pt")
    context.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.process
@pytest.mark.slow
def test_class_means_and_statistics_are_those_of_all_samples(tmp_path):
    mp.spawn(run, (str(tmp_path),), nprocs=PROCESSES)
    means, noise, statistics = count(ParallelContext(), batches_of(0) + batches_of(1))
    for rank in range(PROCESSES):
        found_means, found_noise, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found_means, means)
        torch.testing.assert_close(found_noise, noise)
        assert found["train_loss"] == pytest.approx(statistics["train_loss"])
        assert found["alpha_mean"] == pytest.approx(0.25)
        assert found["alpha"] == statistics["alpha"]
        assert sum(group["count"] for group in found["alpha"].values()) == 30


def test_class_means_and_counts_by_hand():
    means, _, statistics = count(ParallelContext(), batches_of(0) + batches_of(1))
    x, y = data(30)
    with torch.no_grad():
        probs = mlp(2)(x).softmax(dim=-1)
    torch.testing.assert_close(means, torch.stack([probs[y == label].mean(dim=0) for label in range(3)]))
    student, teacher = 2 * x[:, :3], probs.log()
    ce = nn.functional.cross_entropy(student, y)
    soft_student, soft_teacher = (student / 2).log_softmax(dim=-1), (teacher / 2).log_softmax(dim=-1)
    kl = nn.functional.kl_div(soft_student, soft_teacher, log_target=True, reduction="batchmean")
    assert statistics["train_loss"] == pytest.approx(float(0.25 * 4 * kl + 0.75 * ce), rel=1e-5)
