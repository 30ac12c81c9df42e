from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from realdata import data_dir
from refusals import refused

from tgeokd.data.tasks import cifar, cifar_archive
from tgeokd.data.tasks.cifar import CIFAR10, CIFAR100, cifar10, cifar100

CLASSES, PER_CLASS, TEST_PER_CLASS = 5, 20, 6
N, N_TEST = CLASSES * PER_CLASS, CLASSES * TEST_PER_CLASS
OFFICIAL_MD5 = "16019d7e3df5f24257cddd939b257f8d"


def some_images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def some_labels(per_class: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(CLASSES), per_class)).tolist()


IMAGES, LABELS = some_images(N, 1), some_labels(PER_CLASS, 2)
TEST_IMAGES, TEST_LABELS = some_images(N_TEST, 3), some_labels(TEST_PER_CLASS, 4)
NAMES = [f"class {c}" for c in range(CLASSES)]


def members(**changes) -> dict[str, bytes]:
    """The files of a small archive in CIFAR-100's layout; ``changes`` replace what a file holds (None leaves it out)."""
    content = {
        "meta": {"fine_label_names": NAMES},
        "test": {"data": TEST_IMAGES.reshape(N_TEST, -1), "fine_labels": TEST_LABELS},
        "train": {"data": IMAGES.reshape(N, -1), "fine_labels": LABELS},
    }
    content |= changes
    return {
        name: value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
        for name, value in content.items()
        if value is not None
    }


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write(folder: Path, **changes) -> Path:
    """A folder of data with a small archive in it."""
    write_tar(folder / "cifar-100-python.tar.gz", "cifar-100-python", members(**changes))
    return folder


@pytest.fixture
def small(tmp_path):
    return write(tmp_path)


@pytest.fixture
def official(monkeypatch):
    """Makes the small archive the official one."""

    def md5(name: str) -> str:
        return hashlib.md5(members()[name]).hexdigest()

    archive = dataclasses.replace(
        CIFAR100.archive, train=(("train", md5("train")),), test=(("test", md5("test")),), meta=("meta", md5("meta"))
    )
    monkeypatch.setattr(cifar, "CIFAR100", dataclasses.replace(CIFAR100, archive=archive))


def load(folder: Path, **options):
    return cifar100(data_dir=folder, **{"checksum": "any", "held_out": 30} | options)


def pixels(images: np.ndarray) -> torch.Tensor:
    """What a model sees of images as they are, in other words than the code's: float64 and numpy."""
    mean, std = (np.array(value)[:, None, None] for value in (CIFAR100.mean, CIFAR100.std))
    return torch.from_numpy((images / 255.0 - mean) / std)


# ---- splits


def test_every_split_has_its_rows_images_and_labels(small):
    data = load(small, augment=False)
    for split, size in ((data.train, N - 30), (data.held_out, 30)):
        assert len(split) == size
        images, target, ids = split.__getitems__(list(range(size)))[0]
        assert images.dtype == torch.float32
        assert torch.allclose(images.double(), pixels(IMAGES[ids]), atol=1e-5)
        assert target.tolist() == [LABELS[i] for i in ids]
    images, target, ids = data.test.__getitems__(list(range(N_TEST)))[0]
    assert ids.tolist() == list(range(N, N + N_TEST))
    assert torch.allclose(images.double(), pixels(TEST_IMAGES), atol=1e-5)
    assert target.tolist() == TEST_LABELS
    assert sorted([*data.train.ids.tolist(), *data.held_out.ids.tolist()]) == list(range(N))
    assert data.num_classes == CLASSES
    assert data.class_names == tuple(NAMES)
    assert data.inputs.shape == (3, 32, 32)
    assert data.inputs.kind == "array"
    assert not data.corrupted.any()


def test_every_class_has_its_share_of_every_split(small):
    data = load(small, held_out=25, train=40, test=10)
    for split, share in ((data.train, 8), (data.held_out, 5), (data.test, 2)):
        assert np.bincount(split.target).tolist() == [share] * CLASSES


def test_the_held_out_part_does_not_depend_on_how_many_images_are_trained_on(small):
    whole, part = load(small), load(small, train=20)
    assert torch.equal(whole.held_out.ids, part.held_out.ids)
    assert set(part.train.ids.tolist()) < set(whole.train.ids.tolist())
    assert len(part.train) == len(part.corrupted) == 20


def test_the_seed_decides_the_splits_but_not_the_test_images(small):
    first, again, other = (load(small, seed=seed, train=20, test=10) for seed in (1, 1, 2))
    assert torch.equal(first.train.ids, again.train.ids)
    assert not torch.equal(first.train.ids, other.train.ids)
    assert not torch.equal(first.held_out.ids, other.held_out.ids)
    assert torch.equal(first.test.ids, other.test.ids)


def test_training_images_are_augmented_and_no_others(small):
    data, plain = load(small), load(small, augment=False)
    torch.manual_seed(0)
    rows = list(range(30))
    assert not torch.equal(data.train.__getitems__(rows)[0][0], plain.train.__getitems__(rows)[0][0])
    for ours, theirs in ((data.held_out, plain.held_out), (data.test, plain.test)):
        assert torch.equal(ours.__getitems__(rows)[0][0], theirs.__getitems__(rows)[0][0])


def test_half_the_size_averages_blocks_of_pixels(small):
    data = load(small, size=16, augment=False)
    images, _, ids = data.train.__getitems__(list(range(len(data.train))))[0]
    blocks = IMAGES[ids].reshape(-1, 3, 16, 2, 16, 2).mean(axis=(3, 5))
    assert images.shape[1:] == data.inputs.shape == (3, 16, 16)
    assert (images.double() - pixels(blocks)).abs().max() <= 0.5 / 255 / min(
        CIFAR100.std
    ) + 1e-5  # rounding of the pixels


@pytest.mark.parametrize(
    ("options", "mentioned"),
    [
        ({"held_out": 4}, ("held_out", "4 of 100", "5")),
        ({"held_out": 97}, ("train", "3 of 100", "5")),
        ({"train": 4}, ("train=4", "[5, 65]", "70")),
        ({"train": 71}, ("train=71", "[5, 65]", "70")),
        ({"test": 26}, ("test=26", "[5, 25]", "30")),
        ({"noise_rate": 0.2}, ("noise_rate=0.2", "symmetric")),
        ({"noise": "symmetric", "noise_rate": 1.5}, ("noise_rate", "1.5")),
    ],
)
def test_impossible_options_are_refused(small, options, mentioned):
    with refused(*mentioned):
        load(small, **options)


# ---- noise


def wrong(split) -> torch.Tensor:
    return split.target != torch.tensor(LABELS)[split.ids]


def test_symmetric_noise_is_in_the_training_labels_alone_and_marked(small):
    data = load(small, noise="symmetric", noise_rate=0.5)
    assert torch.equal(data.corrupted, wrong(data.train))
    assert 15 <= int(data.corrupted.sum()) <= 35  # of the 35 replaced, one in five is drawn as it was
    assert not wrong(data.held_out).any()
    assert data.test.target.tolist() == TEST_LABELS
    assert data.notes["wrong_labels"] == pytest.approx(int(data.corrupted.sum()) / 70)
    assert data.notes["held_out_wrong_labels"] == 0


def test_held_out_labels_are_noisy_where_asked_for(small):
    clean, noisy = (load(small, noise="symmetric", noise_rate=0.5, held_out_noise=on) for on in (False, True))
    assert torch.equal(clean.train.target, noisy.train.target)
    assert 5 <= int(wrong(noisy.held_out).sum()) <= 15
    assert noisy.notes["held_out_wrong_labels"] == pytest.approx(int(wrong(noisy.held_out).sum()) / 30)
    assert noisy.test.target.tolist() == TEST_LABELS


def people(folder: Path, name: str = "CIFAR-100_human.pt", clean=LABELS, **labels) -> None:
    (folder / "cifar-n").mkdir(exist_ok=True)
    content = {"clean_label": clean, "noisy_label": [(label + 1) % CLASSES for label in clean], **labels}
    torch.save({key: np.asarray(value) for key, value in content.items()}, folder / "cifar-n" / name)


def test_human_noise_is_drawn_from_how_people_confuse_classes(small):
    people(small)
    data = load(small, noise="human", held_out_noise=True)
    for split in (data.train, data.held_out):  # these people take every class for the next one
        assert split.target.tolist() == [(LABELS[i] + 1) % CLASSES for i in split.ids]
    assert data.corrupted.all()
    assert data.notes["wrong_labels"] == data.notes["held_out_wrong_labels"] == 1


def test_a_table_of_counts_goes_before_the_labels(small):
    people(small)
    counts = np.roll(np.eye(CLASSES, dtype=int), 2, axis=1)
    np.savetxt(small / "cifar100n_confusion_counts.csv", counts, fmt="%d", delimiter=",")
    data = load(small, noise="human")
    assert data.train.target.tolist() == [(LABELS[i] + 2) % CLASSES for i in data.train.ids]


def test_cifar_n_gives_each_image_its_own_label(small, official):
    own = np.random.default_rng(0).integers(0, CLASSES, N)
    people(small, noisy_label=own)
    data = load(small, noise="cifar_n", checksum="official", held_out_noise=True)
    for split in (data.train, data.held_out):
        assert np.array_equal(split.target, own[split.ids])
    assert torch.equal(data.corrupted, wrong(data.train))
    assert data.notes["official"] is True


def test_cifar_n_is_refused_where_the_rows_are_not_in_the_official_order(small):
    people(small)
    with refused("'train'", OFFICIAL_MD5):
        load(small, noise="cifar_n")


def test_cifar_n_is_refused_where_its_clean_labels_are_others(small, official):
    clean = [*LABELS[:7], (LABELS[7] + 1) % CLASSES, *LABELS[8:]]
    people(small, clean=clean)
    with refused("clean_label", "row 7", clean[7], LABELS[7]):
        load(small, noise="cifar_n")
    people(small, clean=LABELS[:-1])
    with refused("99", "100"):
        load(small, noise="cifar_n")


@pytest.mark.parametrize("noise", ["human", "cifar_n"])
def test_missing_labels_by_people_are_named(small, official, noise):
    with refused(noise, "CIFAR-100_human.pt"):
        load(small, noise=noise)


# ---- the archive


def test_the_notes_say_which_file_it_was(small):
    notes = load(small, train=20).notes
    file = small / "cifar-100-python.tar.gz"
    assert json.loads(json.dumps(notes)) == notes
    assert notes["official"] is False
    assert notes["file"] == file.name
    assert notes["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert notes["md5"] == {name: hashlib.md5(data).hexdigest() for name, data in members().items()}
    assert notes["rows"] == {"train": 20, "held_out": 30, "test": 30}


def test_an_archive_is_found_beside_and_in_its_folder_and_unpacked(small, tmp_path_factory):
    expected = load(small)
    inner, unpacked = tmp_path_factory.mktemp("inner"), tmp_path_factory.mktemp("unpacked")
    for folder in (inner, unpacked):
        (folder / "cifar-100-python").mkdir()
    write_tar(inner / "cifar-100-python" / "cifar-100-python.tar.gz", "cifar-100-python", members())
    for name, data in members().items():
        (unpacked / "cifar-100-python" / name).write_bytes(data)
    for folder in (inner, unpacked):
        data = load(folder)
        assert torch.equal(data.train.inputs, expected.train.inputs)
        assert data.notes["md5"] == expected.notes["md5"]
    (unpacked / "cifar-100-python" / "test").unlink()
    with refused("cifar-100-python/test"):
        load(unpacked)


def test_another_checksum_is_refused_unless_any_will_do(small):
    with refused("'train'", "md5", OFFICIAL_MD5, "checksum=any"):
        cifar100(data_dir=small)


def test_no_data_at_all_is_one_line_with_the_names_looked_for(tmp_path):
    with refused("CIFAR-100", "cifar-100-python.tar.gz", "download=true"):
        cifar100(data_dir=tmp_path)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_archive_is_named(small, share):
    file = small / "cifar-100-python.tar.gz"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with refused("cifar-100-python.tar.gz"):
        load(small)


def damaged(**labels_or_data) -> dict:
    return {"data": IMAGES.reshape(N, -1), "fine_labels": LABELS} | labels_or_data


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"train": damaged(fine_labels=[*LABELS[:17], 5, *LABELS[18:]])}, ("'train'", "row 17", "label 5")),
        ({"train": damaged(fine_labels=[*LABELS[:-1], -1])}, ("'train'", "row 99", "-1")),
        ({"train": damaged(fine_labels=[*LABELS[:-1], "cat"])}, ("'train'", "row 99", "'cat'")),
        ({"train": damaged(fine_labels=LABELS[:-1])}, ("'train'", "100", "'fine_labels'", "99")),
        ({"train": damaged(fine_labels=None)}, ("'train'", "100", "'fine_labels'")),
        ({"train": damaged(data=IMAGES)}, ("'data'", "(N, 3072)", "(100, 3, 32, 32)")),
        ({"train": damaged(data=IMAGES.reshape(N, -1)[:2] / 1.0)}, ("'data'", "float64", "(2, 3072)")),
        ({"train": {"fine_labels": LABELS}}, ("'train'", "'data'", "(N, 3072)")),
        ({"train": [1, 2]}, ("'train'", "list")),
        ({"train": b"\x80\x02}"}, ("'train'",)),
        ({"train": b""}, ("'train'",)),
        ({"test": None}, ("cifar-100-python/test",)),
        ({"meta": {"names": []}}, ("'meta'", "'fine_label_names'")),
    ],
)  # fmt: skip
def test_bad_contents_are_named_with_file_and_row(tmp_path, changes, mentioned):
    with refused("cifar-100-python.tar.gz", *mentioned):
        load(write(tmp_path, **changes))


class Trap:
    sprung = 0

    def __reduce__(self):
        return (spring, ())


def spring() -> dict:
    Trap.sprung += 1
    return {}


@pytest.mark.parametrize("call", [b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", None])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, call):
    with refused("cifar-100-python.tar.gz", "'train'"):
        load(write(tmp_path, train=call or {"data": Trap(), "fine_labels": LABELS}))
    assert not Trap.sprung


def test_a_file_of_another_checksum_is_not_unpickled_at_all(small, monkeypatch):
    monkeypatch.setattr(cifar_archive, "_content", lambda *_: pytest.fail("unpickled"))
    with refused(OFFICIAL_MD5):
        cifar100(data_dir=small)


def test_an_archive_is_read_once_and_again_when_it_has_changed(small, monkeypatch):
    reads = []
    unpack = cifar_archive._unpack
    monkeypatch.setattr(cifar_archive, "_unpack", lambda *given: reads.append(1) or unpack(*given))
    for seed in range(3):
        load(small, seed=seed)
    assert len(reads) == 1
    write(small, train=damaged(data=255 - IMAGES.reshape(N, -1)))
    data = load(small)
    assert len(reads) == 2
    assert torch.equal(data.train.inputs, 255 - torch.from_numpy(IMAGES)[data.train.ids])


# ---- download


def downloader(monkeypatch, get):
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", get)


def test_torchvision_downloads_what_is_not_there(tmp_path, monkeypatch):
    calls = []

    def get(root, download):
        calls.append((root, download))
        write(Path(root))

    downloader(monkeypatch, get)
    assert len(load(tmp_path, download=True).train) == 70
    load(tmp_path, download=True)  # now it is there
    assert calls == [(str(tmp_path), True)]


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def get(root, download):
        raise RuntimeError("File not found\nor corrupted.")

    downloader(monkeypatch, get)
    with refused("CIFAR-100", str(tmp_path), "File not found"):
        load(tmp_path, download=True)


@pytest.mark.parametrize(
    ("spec", "theirs"), [(CIFAR100, torchvision.datasets.CIFAR100), (CIFAR10, torchvision.datasets.CIFAR10)]
)
def test_names_and_checksums_are_torchvision_s(spec, theirs):
    archive = spec.archive
    assert (archive.file, archive.folder) == (theirs.filename, theirs.base_folder)
    assert [list(pair) for pair in archive.train] == theirs.train_list
    assert [list(pair) for pair in archive.test] == theirs.test_list
    assert archive.meta == (theirs.meta["filename"], theirs.meta["md5"])
    assert archive.keys[1] == theirs.meta["key"]


# ---- CIFAR-10


@pytest.fixture
def ten(tmp_path):
    """A small archive in CIFAR-10's layout: five training batches, keys in bytes as Python 2 wrote them."""
    files = {"batches.meta": {b"label_names": [name.encode() for name in NAMES]}}
    for i, rows in enumerate(np.split(np.arange(N), 5)):
        files[f"data_batch_{i + 1}"] = {
            b"data": IMAGES.reshape(N, -1)[rows],
            b"labels": [LABELS[row] for row in rows],
        }
    files["test_batch"] = {b"data": TEST_IMAGES.reshape(N_TEST, -1), b"labels": TEST_LABELS}
    content = {name: pickle.dumps(value, protocol=2) for name, value in files.items()}
    write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", content)
    return tmp_path


def test_the_batches_of_cifar10_come_one_after_the_other(ten):
    data = cifar10(data_dir=ten, held_out=30, checksum="any", augment=False)
    assert torch.equal(data.train.inputs, torch.from_numpy(IMAGES)[data.train.ids])
    assert data.train.target.tolist() == [LABELS[i] for i in data.train.ids]
    assert data.class_names == tuple(NAMES)


@pytest.mark.parametrize(("labels", "shift"), [("worse_label", 1), ("aggre_label", 2), ("random_label3", 3)])
def test_the_label_set_of_cifar10n_is_a_choice(ten, labels, shift):
    people(ten, "CIFAR-10_human.pt", **{labels: [(label + shift) % CLASSES for label in LABELS]})
    data = cifar10(data_dir=ten, held_out=30, checksum="any", noise="human", cifar_n_labels=labels)
    assert data.train.target.tolist() == [(LABELS[i] + shift) % CLASSES for i in data.train.ids]


# ---- the real archive


@pytest.mark.slow
@pytest.mark.realdata
def test_the_real_images_and_human_confusion():
    folder = data_dir()
    if cifar_archive.find_archive(CIFAR100.archive, folder) is None or not (folder / "cifar-n").is_dir():
        pytest.skip("no CIFAR-100 with human labels among the real data")
    data = cifar100(data_dir=folder, checksum="any", noise="human")
    assert [len(data.train), len(data.held_out), len(data.test)] == [45000, 5000, 10000]
    assert np.bincount(data.held_out.target).tolist() == [50] * 100
    assert np.bincount(data.test.target).tolist() == [100] * 100
    assert data.class_names[:3] == ("apple", "aquarium_fish", "baby")
    everything, values = torch.cat([data.train.inputs, data.held_out.inputs]), np.arange(256) / 255
    for channel in range(3):
        shares = np.bincount(everything[:, channel].flatten(), minlength=256) / everything[:, channel].numel()
        mean = shares @ values
        assert mean == pytest.approx(CIFAR100.mean[channel], abs=1e-4)
        assert (shares @ (values - mean) ** 2) ** 0.5 == pytest.approx(CIFAR100.std[channel], abs=1e-4)
    assert data.notes["wrong_labels"] == pytest.approx(0.402, abs=0.01)  # the share of CIFAR-100N
    assert data.notes["official"] is False


@pytest.mark.slow
@pytest.mark.realdata
def test_the_superclasses_are_those_of_the_archive():
    folder = data_dir()
    if cifar_archive.find_archive(CIFAR100.archive, folder) is None or not (folder / "cifar-n").is_dir():
        pytest.skip("no CIFAR-100 archive and labels by people")
    options = {"data_dir": folder, "checksum": "any", "size": 16, "train": 200, "held_out": 200}
    fine, coarse = cifar100(**options), cifar100(**options, labels="coarse")
    assert coarse.num_classes == len(coarse.class_names) == 20
    assert torch.equal(coarse.test.ids, fine.test.ids)
    pairs = set(zip(fine.test.target.tolist(), coarse.test.target.tolist(), strict=True))
    assert len(pairs) == 100  # a class has one superclass ...
    assert np.bincount([superclass for _, superclass in pairs]).tolist() == [5] * 20  # ... which has five
    assert not coarse.corrupted.any()
    assert cifar100(**options, labels="coarse", noise="human").corrupted.any()
