from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare
from torchvision import transforms
from torchvision.transforms import functional as VF

from tgeokd.data.augment import EvalTransform, TrainTransform, crop_and_flip, normalised

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
CODED = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)  # every pixel tells where it comes from


def random_images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@given(
    n=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_a_batch_is_cropped_and_mirrored_as_torchvision_does_it_image_by_image(n, height, width, padding, seed):
    images = random_images(n, height, width, seed)
    generator = torch.Generator().manual_seed(seed)
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    for result, image, t, o, f in zip(
        crop_and_flip(images, top, left, flip, padding), images, top.tolist(), left.tolist(), flip.tolist(), strict=True
    ):
        expected = VF.crop(VF.pad(image, [padding]), t, o, height, width)
        assert torch.equal(result, VF.hflip(expected) if f else expected)


def test_normalising_is_that_of_torchvision():
    images = random_images(7, 8, 8)
    by_image = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([by_image(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    for result in (normalised(images, MEAN, STD), EvalTransform(MEAN, STD)(images)):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_training_without_shift_and_mirroring_is_evaluation():
    images = random_images(9, 8, 8)
    assert torch.equal(TrainTransform(MEAN, STD, padding=0, flip=False)(images), EvalTransform(MEAN, STD)(images))


def found_shifts(padding: int, flip: bool, n: int = 6000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top, left and mirroring of each image, read off the pixels at its centre, which no shift brings to the border."""
    torch.manual_seed(5)
    result = TrainTransform((0.0,), (1 / 255,), padding, flip)(CODED.expand(n, 1, 16, 16)).round().long()
    here, right = result[:, 0, 8, 7], result[:, 0, 8, 8]
    mirrored = (here > right).numpy()
    columns = torch.where(here > right, right, here) % 16  # the source column of the left one of the two
    return (here // 16 - 8 + padding).numpy(), (columns - 7 + padding).numpy(), mirrored


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_shifts_are_uniform_and_independent_and_half_of_the_images_are_mirrored(padding):
    top, left, mirrored = found_shifts(padding, True)
    count = 2 * padding + 1
    assert min(top.min(), left.min()) == 0
    assert max(top.max(), left.max()) == 2 * padding
    assert chisquare(np.bincount((top * count + left) * 2 + mirrored, minlength=2 * count**2)).pvalue > 0.01


def test_no_image_is_mirrored_where_that_is_off():
    top, _, mirrored = found_shifts(2, False)
    assert not mirrored.any()
    assert len(set(top)) == 5


def test_what_comes_in_from_outside_is_black_before_normalising():
    torch.manual_seed(0)
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    result = TrainTransform(MEAN, STD, padding=2)(white)
    for channel in range(3):
        black, full = -MEAN[channel] / STD[channel], (1 - MEAN[channel]) / STD[channel]
        assert np.allclose(sorted(set(result[:, channel].flatten().tolist())), [black, full], atol=1e-5)


def test_torch_s_global_generator_alone_decides():
    images, transform = random_images(20, 8, 8), TrainTransform(MEAN, STD, padding=2)
    torch.manual_seed(1)
    first, second = transform(images), transform(images)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(transform(images), first)


def test_the_images_given_are_left_alone():
    images = random_images(4, 8, 8)
    before = images.clone()
    TrainTransform(MEAN, STD, padding=2)(images)
    EvalTransform(MEAN, STD)(images)
    assert torch.equal(images, before)
