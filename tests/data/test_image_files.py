"""Image files of every kind as RGB, and folders with what operating systems and people leave in them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from tgeokd.data.images.folders import class_folders, inspect_images, say_what_was_found
from tgeokd.data.images.reader import read_rgb
from tgeokd.data.tasks.imagenet import imagenet

RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


def pixels(path):
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_ramp_of_16_bits_stays_a_ramp(tmp_path, suffix):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ..., 65535: 0 to 255 in 8 bits
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(ramp).save(path)
    found = pixels(path)
    assert found[..., 0].ravel().tolist() == list(range(256))
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photograph_is_applied(tmp_path, orientation):
    upright = np.zeros((2, 3, 3), dtype=np.uint8)
    upright[0, 0], upright[0, 2], upright[1, 0] = RED, GREEN, BLUE
    # what a camera stores: the transposition of the upright image that the tag undoes
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert (pixels(path) == upright).all()


def test_transparent_pixels_are_white_and_half_transparent_ones_mixed(tmp_path):
    layer = np.array([[(200, 10, 10, 255), (200, 10, 10, 0), (0, 0, 0, 51)]], dtype=np.uint8)
    Image.fromarray(layer).save(tmp_path / "layer.png")
    assert pixels(tmp_path / "layer.png")[0].tolist() == [list(RED), [255, 255, 255], [204, 204, 204]]
    grey = Image.fromarray(np.array([[(7, 255), (7, 0)]], dtype=np.uint8), mode="LA")
    grey.save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png")[0].tolist() == [[7, 7, 7], [255, 255, 255]]


def test_palettes_are_looked_up_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=1)
    assert pixels(tmp_path / "a.png")[0].tolist() == [list(RED), list(GREEN)]
    assert pixels(tmp_path / "b.png")[0].tolist() == [list(RED), [255, 255, 255]]


def test_inks_and_bits_become_colours(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "red.jpg").astype(int) - (255, 0, 0)).max() <= 4
    Image.new("1", (2, 2), 1).save(tmp_path / "white.png")
    assert (pixels(tmp_path / "white.png") == 255).all()


@pytest.mark.parametrize(
    ("array", "named"),
    [(np.full((2, 2), 1e6, dtype=np.int32), "1000000"), (np.full((2, 2), 0.5, dtype=np.float32), "floating-point")],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, array, named):
    Image.fromarray(array).save(tmp_path / "x.tif")
    with refused("x.tif", named):
        read_rgb(tmp_path / "x.tif")


# ---- folders


@pytest.fixture
def folder(tmp_path):
    """Three classes whose text order is not the order of numbers, and what does not belong there."""
    for name in ("1", "2", "10"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (3, 4), RED).save(tmp_path / name / f"{i}.png")
    for hidden in (".ipynb_checkpoints", "__MACOSX", "2/.thumbs"):
        (tmp_path / hidden).mkdir()
        Image.new("RGB", (1, 1)).save(tmp_path / hidden / "x.png")
    (tmp_path / "1" / "._a.jpg").write_bytes(b"resource fork")
    (tmp_path / "1" / "notes.txt").write_text("x")
    (tmp_path / "10" / "raw.heic").write_bytes(b"x")
    return tmp_path


def test_hidden_files_and_folders_do_not_count(folder):
    found = class_folders(folder)
    assert found.names == ("1", "10", "2")
    assert np.bincount(found.target).tolist() == [2, 2, 2]
    assert found.others == ["1/notes.txt", "10/raw.heic"]


def test_an_order_that_is_not_that_of_the_numbers_is_said(folder, caplog):
    caplog.set_level(logging.INFO, "tgeokd")
    say_what_was_found(class_folders(folder))
    records = {record.levelname: record.args for record in caplog.records}
    assert records["INFO"][-1] == "1, 10, 2"
    warned = [record.args for record in caplog.records if record.levelname == "WARNING"]
    assert warned[0][1:] == (1, "10", "2")
    assert warned[1][1] == 2  # files that are left out


@pytest.mark.parametrize("content", [["1", "2", "10"], {"10": 2, "1": 0, "2": 1}, "1\n2\n\n10\n"])
def test_a_class_map_sets_the_order(folder, content, caplog):
    path = folder / ("map.txt" if isinstance(content, str) else "map.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = class_folders(folder, path)
    assert found.names == ("1", "2", "10")
    for name, label in (("1", 0), ("2", 1), ("10", 2)):
        inside = [p.decode() for p in found.paths[found.target == label]]
        assert inside == [str(folder / name / f"{i}.png") for i in range(2)]
    say_what_was_found(found)
    assert [record.args[1] for record in caplog.records if record.levelname == "WARNING"] == [
        2
    ]  # files left out, no order


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (["1", "2"], "'10'"),
        (["1", "2", "10", "11"], "'11'"),
        (["1", "2", "10", "2"], "'2' twice"),
        ({"1": 0, "2": 1, "10": 1}, "0 to 2"),
        ([1, 2, 10], "list of class names"),
        ("{", "map.json"),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(folder, content, named):
    path = folder / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with refused("map.json", named):
        class_folders(folder, path)


def test_inspection_counts_everything(folder):
    (folder / "2" / "0.png").write_bytes(b"not an image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (5, 6)).save(folder / "10" / "turned.jpg", exif=exif)
    found = inspect_images(folder)
    assert json.loads(json.dumps(found)) == found
    assert found["images"] == {"1": 2, "10": 3, "2": 2}
    assert found["class_order"] == "text"
    assert list(found["unreadable"]) == [str(folder / "2" / "0.png")]
    assert found["modes"] == {"RGB": 5, "L": 1}
    assert found["sizes"] == {"3x4": 5, "5x6": 1}
    assert found["rotated"] == 1


def test_the_task_reads_through_all_of_this(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("task")
    for split in ("train", "val"):
        (root / split).symlink_to(folder)
    (root / "order.txt").write_text("10\n2\n1\n")
    data = imagenet(data_dir=root, held_out=3, crop=2, resize=2, workers=0, class_map="order.txt")
    assert data.class_names == ("10", "2", "1")
    assert data.notes["left_out"] == {"train": 2, "val": 2}
    image, target, _ = data.test[0]
    assert int(target) == 0
    expected = (np.array(RED) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(image.mean(dim=(1, 2)), expected, atol=1e-5)
