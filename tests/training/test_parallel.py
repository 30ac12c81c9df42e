"""What is counted or averaged over samples is the same in one process and in two."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tgeokd.training.parallel import DistributedContext, ParallelContext, current_context

PROGRAM = """
import json, os, sys
import torch
import torch.distributed as dist
from tgeokd import TGeoKD
from tgeokd.methods import SampleLoss
from tgeokd.teachers.network import as_teacher
from tgeokd.training.batches import BatchReader
from tgeokd.training.parallel import current_context
from tgeokd.training.statistics import EpochStatistics
from tgeokd.training.survey import survey

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
context = current_context()
torch.manual_seed(0)
x, y = torch.randn(23, 4, dtype=torch.float64), torch.arange(23) % 3
weight = torch.randn(4, 3, dtype=torch.float64)
mine = range(rank, 23, world)  # shards of different sizes
batches = [(x[i : i + 1], y[i : i + 1]) for i in mine]
reader = BatchReader(torch.device("cpu"))
validation = [(x[:6], y[:6])] if rank == 0 else []  # only one process sees every class
found = survey(TGeoKD(outer="holdout"), 3, batches, validation, as_teacher(lambda x: x @ weight), reader, context)
statistics = EpochStatistics(torch.device("cpu"), context)
for x_i, y_i in batches:
    logits = x_i @ weight.flip(0)
    loss = torch.nn.functional.cross_entropy(logits, y_i, reduction="none")
    statistics.update(SampleLoss(loss, logits.softmax(1)[:, 0]), logits, x_i @ weight, y_i, 0)
result = {"means": found.class_means.tolist(), **statistics.summary(), "ranks": context.gather_objects(rank)}
if context.is_main:
    print(json.dumps(result))
context.barrier()
"""


def results(folder, world):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * world, ended
    return json.loads(ended[0][0])


@pytest.mark.distributed
def test_two_processes_find_what_one_does(tmp_path):
    one, two = results(tmp_path, 1), results(tmp_path, 2)
    assert two.pop("ranks") == [0, 1]
    assert one.pop("ranks") == [0]
    torch.testing.assert_close(torch.tensor(two.pop("means")), torch.tensor(one.pop("means")))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-12)
    assert two["alpha_mean"] == pytest.approx(one["alpha_mean"], rel=1e-12)
    for name, group in one["alpha"].items():
        assert two["alpha"][name]["histogram"] == group["histogram"]


def test_one_process_reduces_nothing():
    context = current_context()
    assert type(context) is ParallelContext
    assert not isinstance(context, DistributedContext)
    value = torch.arange(3)
    assert context.all_reduce(value) is value
    assert context.gather_objects("a") == ["a"]
    assert (context.rank, context.world_size, context.is_main) == (0, 1, True)
