from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from realdata import data_dir
from refusals import refused
from sklearn.datasets import load_sample_images
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset
from torchvision import transforms

from tgeokd.data.datasets import joined
from tgeokd.data.tasks.cifar import CIFAR100
from tgeokd.data.tasks.cifar_archive import find_archive, read_archive
from tgeokd.data.tasks.imagenet import imagenet

CLASSES, PER_CLASS, VAL_PER_CLASS = 6, 8, 2
N = CLASSES * PER_CLASS
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALL = {"held_out": 12, "crop": 24, "resize": 28, "workers": 0}


def photo(seed: int, height: int = 40, width: int = 56) -> Image.Image:
    """A piece of one of scikit-learn's two photographs."""
    generator = np.random.default_rng(seed)
    whole = load_sample_images().images[seed % 2]
    top, left = generator.integers(0, np.array(whole.shape[:2]) - (height, width))
    return Image.fromarray(np.ascontiguousarray(whole[top : top + height, left : left + width]))


def name(label: int) -> str:
    return f"n{label:04d}"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for label in range(CLASSES):
        for split, count in (("train", PER_CLASS), ("val", VAL_PER_CLASS)):
            folder = root / split / name(label)
            folder.mkdir(parents=True)
            for i in range(count):
                file = folder / f"{i}.{'png' if i % 2 else 'JPEG'}"
                photo(label * 100 + i + (50 if split == "val" else 0)).save(file)
    return root


@pytest.fixture
def folder(template, tmp_path) -> Path:
    """A copy that a test may change."""
    for file in template.rglob("*.*"):
        target = tmp_path / file.relative_to(template)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    return tmp_path


def load(root: Path, **options):
    return imagenet(data_dir=root, **SMALL | options)


def files(root: Path, split: str) -> list[Path]:
    return sorted((root / split).rglob("*.*"))


def evaluated(file: Path) -> torch.Tensor:
    """The standard evaluation of an image, worked out step by step."""
    image = Image.open(file).convert("RGB")
    width, height = image.size
    scaled = image.resize((round(width * 28 / height), 28), Image.Resampling.BILINEAR)
    left = round((scaled.width - 24) / 2)
    pixels = np.asarray(scaled.crop((left, 2, left + 24, 26))) / 255.0
    return torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)).float()


def test_splits_hold_every_file_once_with_its_class(template):
    data = load(template)
    order = files(template, "train")
    assert [len(split) for split in (data.train, data.held_out, data.test)] == [N - 12, 12, CLASSES * VAL_PER_CLASS]
    assert sorted([*data.train.ids.tolist(), *data.held_out.ids.tolist()]) == list(range(N))
    for split in (data.train, data.held_out):
        for path, target, row in zip(split.paths, split.target.tolist(), split.ids.tolist(), strict=True):
            assert path.decode() == str(order[row])
            assert name(target) == order[row].parent.name
    assert np.bincount(data.held_out.target).tolist() == [2] * CLASSES
    assert data.test.ids.tolist() == list(range(N, N + CLASSES * VAL_PER_CLASS))
    assert data.class_names == tuple(name(label) for label in range(CLASSES))
    assert (data.num_classes, data.inputs.shape, data.workers) == (CLASSES, (3, 24, 24), 0)
    assert data.corrupted is None
    assert data.notes["rows"] == {"train": N - 12, "held_out": 12, "test": CLASSES * VAL_PER_CLASS}


def test_held_out_and_test_images_are_scaled_cut_at_the_centre_and_normalised(template):
    data = load(template)
    for split, of in ((data.held_out, "train"), (data.test, "val")):
        order = files(template, of)
        for image, target, row in (split[i] for i in range(len(split))):
            file = order[row % N]
            assert image.shape == (3, 24, 24)
            torch.testing.assert_close(image, evaluated(file), rtol=0, atol=1e-5)
            assert name(int(target)) == file.parent.name


def test_training_images_are_random_parts_as_torchvision_cuts_them(template):
    data = load(template)
    standard = transforms.Compose(
        [
            transforms.RandomResizedCrop(24),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    torch.manual_seed(3)
    first = data.train[5][0]
    torch.manual_seed(3)
    assert torch.equal(first, standard(Image.open(files(template, "train")[data.train.ids[5]]).convert("RGB")))
    assert not torch.equal(first, data.train[5][0])


def test_batches_are_inputs_targets_and_ids(template):
    data = load(template)
    inputs, target, ids = next(iter(data.ordered_loader(data.test, 4)))
    assert (inputs.shape, inputs.dtype) == ((4, 3, 24, 24), torch.float32)
    assert (target.dtype, ids.dtype) == (torch.int64, torch.int64)
    assert ids.tolist() == [N, N + 1, N + 2, N + 3]
    seen = [row for _, _, batch in data.training_loader(16, with_held_out=True) for row in batch.tolist()]
    assert sorted(seen) == list(range(N))


def test_held_out_images_join_the_training_with_its_transform(template):
    data = load(template)
    both = joined(data.train, data.held_out)
    assert both.transform is data.train.transform
    torch.manual_seed(1)
    inside = both[len(data.train)]
    assert inside[2] == data.held_out.ids[0]
    assert not torch.equal(inside[0], data.held_out[0][0])
    other = TensorDataset(torch.zeros(2))
    assert isinstance(joined(data.train, other), ConcatDataset)


def test_the_seed_decides_the_held_out_images(template):
    first, again, other = (load(template, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.held_out.ids, again.held_out.ids)
    assert not torch.equal(first.held_out.ids, other.held_out.ids)


def test_a_folder_named_imagenet_is_found(template, tmp_path):
    (tmp_path / "imagenet").symlink_to(template)
    assert len(load(tmp_path).train) == N - 12


def test_only_the_first_classes_are_used_where_asked_for(template):
    data = load(template, classes=3, held_out=6)
    assert (len(data.train), len(data.held_out), len(data.test)) == (3 * PER_CLASS - 6, 6, 3 * VAL_PER_CLASS)
    assert data.num_classes == len(data.class_names) == 3
    assert max(int(split.target.max()) for split in (data.train, data.held_out, data.test)) == 2


@pytest.mark.parametrize(
    ("options", "mentioned"),
    [
        ({"crop": 30}, ("crop", "30", "resize=28")),
        ({"crop": 0}, ("crop", "not 0")),
        ({"workers": -1}, ("workers", "-1")),
        ({"classes": 1}, ("classes=1", "[2, 6]")),
        ({"classes": 7}, ("classes=7", "[2, 6]")),
        ({"held_out": 5}, ("held_out", "5 of 48")),
        ({"held_out": 10000}, ("train", "0 of 48")),
    ],
)
def test_impossible_options_are_refused(template, options, mentioned):
    with refused(*mentioned):
        load(template, **options)


def test_missing_folders_are_named(folder, tmp_path_factory):
    with refused("train/CLASS"):
        load(tmp_path_factory.mktemp("nothing"))
    (folder / "val").rename(folder / "validation")
    with refused("/val"):
        load(folder)


@pytest.mark.parametrize(("here", "there"), [("train", "val"), ("val", "train")])
def test_classes_of_train_and_val_must_agree(folder, here, there):
    (folder / here / "n0002b").mkdir()
    photo(1).save(folder / here / "n0002b" / "0.png")
    (folder / here / "z").mkdir()
    photo(1).save(folder / here / "z" / "0.png")
    with refused("'n0002b'", here, there):
        load(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_named(folder, split):
    for file in (folder / split / name(3)).iterdir():
        file.unlink()
    (folder / split / name(3) / "notes.txt").write_text("no image")
    with refused(f"{split}/{name(3)}"):
        load(folder)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
@pytest.mark.parametrize("file", ["0.JPEG", "1.png"])
def test_an_image_that_does_not_decode_is_named(folder, kind, file):
    path = folder / "val" / name(2) / file
    content = path.read_bytes()
    path.unlink()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"not an image", "empty": b""}[kind])
    with refused(f"val/{name(2)}/{file}"):
        data = load(folder)  # names a file without content; the others are noticed when they are read
        list(data.ordered_loader(data.test))
    data = load(folder, bad_files="skip")
    assert len(data.test) == CLASSES * VAL_PER_CLASS - 1
    assert len(list(data.ordered_loader(data.test, 1))) == len(data.test)


@pytest.mark.process
def test_the_error_of_a_worker_process_is_one_line_too(folder):
    path = folder / "val" / name(0) / "0.JPEG"
    path.unlink()
    path.write_bytes(b"not an image")
    with refused("val/n0000/0.JPEG"):
        list(DataLoader(load(folder).test, 4, num_workers=1))


@pytest.mark.slow
@pytest.mark.realdata
def test_cifar_images_written_as_a_folder_come_back(tmp_path):
    source = data_dir()
    archive = find_archive(CIFAR100.archive, source)
    if archive is None:
        pytest.skip("no CIFAR-100 among the real data")
    contents = read_archive(CIFAR100.archive, archive, "any")
    written = {}
    for label in range(CLASSES):
        of_class = torch.nonzero(contents.test_target == label).flatten()[:7].tolist()
        for i, row in enumerate(of_class):
            path = tmp_path / ("train" if i < 5 else "val") / contents.class_names[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(contents.test_images[row].permute(1, 2, 0).numpy()).save(path)
            written[str(path)] = contents.test_images[row]
    data = imagenet(data_dir=tmp_path, held_out=6, crop=32, resize=32, workers=0)
    assert data.class_names == contents.class_names[:CLASSES]
    for split in (data.held_out, data.test):
        for path, (image, _, _) in zip(split.paths, (split[i] for i in range(len(split))), strict=True):
            pixels = written[path.decode()].double() / 255
            expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            torch.testing.assert_close(image.double(), expected, rtol=0, atol=1e-5)
