"""Images or texts replaced by features of a frozen pretrained network, each sample's computed once and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tgeokd.bilevel.estimators.last_layer import capture, find_head
from tgeokd.bilevel.record import MicroBatch
from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.tables.counter import below, random_bits
from tgeokd.teachers.cache.key import row_digests, teacher_digest
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.integrity import remove_with_checksum, verify_checksum, write_with_checksum

logger = logging.getLogger(__name__)

BATCH = 128
SHARD = 4096  # images a file


@dataclass(frozen=True)
class AnyView:
    """One of the V versions of each sample, inputs of shape (N, V, F): random by call, by sample id and number as a view."""

    seed: int
    random: ClassVar[bool] = True

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features (N, F)."""
        return self._pick(inputs, torch.randint(inputs.shape[1], (len(inputs),)))

    def view(self, inputs: Tensor, ids: Tensor, view: int) -> Tensor:
        """As a call, with the version a function of seed, sample ids (N,) and view."""
        return self._pick(inputs, below(random_bits(ids, self.seed, view), 0, inputs.shape[1]))

    @staticmethod
    def _pick(inputs: Tensor, chosen: Tensor) -> Tensor:
        return inputs[torch.arange(len(inputs), device=inputs.device), chosen.to(inputs.device)]


@dataclass(frozen=True)
class FirstView:
    """The first version of each sample: that of the image as it is."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features (N, F) of inputs (N, V, F)."""
        return inputs[:, 0]


def featurised(data: TaskData, network: nn.Module, *, components: int, mirrored: bool, seed: int) -> TaskData:
    """The same task on principal components of the features of its samples, in decreasing order of variance.

    Features are what goes into the last ``nn.Linear`` of the network, in eval mode. Mean and components are those of the
    training samples; one common factor gives the components a mean variance of 1.

    Args:
        data: a task whose samples are images or texts held in memory.
        network: takes these samples; it is not trained.
        components: features per sample, K; fewer where the network or the training set has fewer.
        mirrored: of images, train on the features of the mirrored ones too: in each epoch on one of the two, at random.
        seed: of this choice as views.

    Returns:
        Data with inputs of shape (N, K), float32.
    """
    splits = {"training set": data.train, "validation set": data.held_out, "test set": data.test}
    for name, split in splits.items():
        if data.inputs.kind == "table" or not isinstance(split, ArrayDataset) or not isinstance(split.inputs, Tensor):
            raise InputError(f"features need images or texts held in memory, which the {name} of this task is not")
    train, held_out, test = (split for split in splits.values() if isinstance(split, ArrayDataset))
    plain = held_out.transform
    mirrored = mirrored and len(data.inputs.shape) == 3
    store = FeatureStore(network, plain, train.inputs[:2])  # type: ignore[arg-type]
    raw = [store.features(split.inputs, mirrored and split is not test) for split in (train, held_out, test)]  # type: ignore[arg-type]
    basis = _principal_components(raw[0][:, 0], components)
    projected = [basis(features) for features in raw]
    random = AnyView(seed) if mirrored else FirstView()
    sets = [
        ArrayDataset(inputs, split.target, split.ids, transform)
        for inputs, split, transform in zip(
            projected, (train, held_out, test), (random, FirstView(), FirstView()), strict=True
        )
    ]
    notes = {**data.notes, "features": {"width": raw[0].shape[-1], "components": projected[0].shape[-1]}}
    inputs = InputSpec("array", (projected[0].shape[-1],))
    return dataclasses.replace(data, train=sets[0], held_out=sets[1], test=sets[2], inputs=inputs, notes=notes)


@dataclass(frozen=True)
class _Basis:
    mean: Tensor  # shape (F,)
    directions: Tensor  # shape (F, K), scaled

    def __call__(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) @ self.directions


def _principal_components(features: Tensor, components: int) -> _Basis:
    features = features.double()
    mean = features.mean(dim=0)
    variances, directions = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
    variances, directions = variances.flip(0)[:components], directions.flip(1)[:, :components]
    # The sign of an eigenvector is arbitrary: the largest entry is made positive, so that machines agree.
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    return _Basis(mean.float(), (directions * signs / variances.mean().clamp_min(1e-12).sqrt()).float())


class FeatureStore:
    """Features of samples by the samples' content, in a folder of the user's cache; shared by runs, seeds and processes.

    The folder is ``TGEOKD_CACHE``, or ``~/.cache/tgeokd``. Features are stored in half precision.
    """

    def __init__(self, network: nn.Module, transform: Any, example: Tensor) -> None:
        self.network, self.transform = network.eval(), transform or torch.clone
        self.head = find_head(network, MicroBatch.begin(network, self.transform(example)))
        nn.init.zeros_(self.head.weight)  # features do not depend on it, and so the digest must not
        nn.init.zeros_(self.head.bias)
        digest = hashlib.sha256(f"{teacher_digest(network)} {transform!r}".encode()).hexdigest()[:16]
        self.folder = cache_folder() / "features" / digest

    def features(self, images: Tensor, mirrored: bool = False) -> Tensor:
        """Features of samples and, where wanted, of mirrored images (N, C, H, W): float16, shape (N, 1 or 2, F)."""
        both = [images, images.flip(3)] if mirrored else [images]
        return torch.stack([self._of(one) for one in both], dim=1)

    def _of(self, images: Tensor) -> Tensor:
        digests = row_digests([images])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):  # one process computes, the others wait and read
                known, stored = self._read()
                missing = (~torch.isin(digests, known)).nonzero().squeeze(1)
                for start in range(0, len(missing), SHARD):
                    rows = missing[start : start + SHARD]
                    logger.info("features of %d samples to compute, kept in %s", len(missing) - start, self.folder)
                    self._write(digests[rows], self._compute(images[rows]))
                if len(missing):
                    known, stored = self._read()
        except OSError as error:
            raise InputError(f"cannot keep features in {self.folder}: {error.strerror}; set TGEOKD_CACHE") from error
        order = known.argsort()
        return stored[order[torch.searchsorted(known[order], digests)]]

    @torch.inference_mode()
    def _compute(self, images: Tensor) -> Tensor:
        found = []
        for chunk in images.split(BATCH):
            with capture(self.head) as features:
                self.network(self.transform(chunk))
            found.append(features[0].half())
        return torch.cat(found)

    def _read(self) -> tuple[Tensor, Tensor]:
        shards = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                verify_checksum(path, "the file of features")
                shards.append(load_file(path))
            except (InputError, OSError, SafetensorError) as error:
                logger.warning("%s: it is computed again", one_line(error))
                remove_with_checksum(path)
        if not shards:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        return torch.cat([shard["digests"] for shard in shards]), torch.cat([shard["features"] for shard in shards])

    def _write(self, digests: Tensor, features: Tensor) -> None:
        name = f"{int(digests[0]) & (1 << 63) - 1:016x}.safetensors"
        content = {"digests": digests.contiguous(), "features": features.contiguous()}
        write_with_checksum(self.folder / name, lambda path: save_file(content, path))


def cache_folder() -> Path:
    """``TGEOKD_CACHE``, or ``~/.cache/tgeokd``."""
    return Path(os.environ.get("TGEOKD_CACHE") or Path.home() / ".cache" / "tgeokd")
