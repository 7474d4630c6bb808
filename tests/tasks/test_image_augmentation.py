import numpy as np
import pytest
import torch

from pdp.errors import Refusal
from pdp.tasks.image_augmentation import Augmentation, check_augmentation

EPOCHS, INDICES = np.full(40, 3), np.arange(40)


def test_pad_crop_flip_is_each_image_padded_shifted_and_maybe_mirrored():
    images = torch.rand(40, 2, 6, 5)
    result = Augmentation("pad_crop_flip", 0).pad_crop_flip(images, EPOCHS, INDICES)
    assert result.shape == images.shape
    seen = set()
    for image, got in zip(images, result, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        found = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            for crop in [padded[:, top : top + 6, left : left + 5]]
            if torch.equal(crop.flip(-1) if flip else crop, got)
        ]
        assert found
        seen.update(found)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {flip for _, _, flip in seen} == {False, True}


def test_boxes_fit_and_have_the_areas_and_ratios_asked():
    heights, widths = np.full(2000, 60), np.full(2000, 90)
    boxes = Augmentation("random_resized_crop", 1).boxes(np.zeros(2000, dtype=int), np.arange(2000), heights, widths)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 60).all() and (left + width <= 90).all()
    area, ratio = height * width / 5400, width / height
    assert 0.06 < area.min() < 0.1 and area.max() > 0.85
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4


def test_a_box_that_never_fits_is_the_middle_of_the_image():
    box = Augmentation("random_resized_crop", 0).boxes(
        np.zeros(1, dtype=int), np.zeros(1, dtype=int), np.array([10]), np.array([4000])
    )
    assert box.tolist() == [[0, 1993, 10, 13]]


@pytest.mark.parametrize("name", ["pad_crop_flip", "resized_crop"])
def test_draws_know_nothing_of_the_batch_or_the_global_generators(name):
    images = torch.rand(40, 1, 8, 8)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state()
    whole = getattr(Augmentation("any", 5), name)(images, EPOCHS, INDICES)
    assert torch.equal(torch.get_rng_state(), before)
    order = np.random.default_rng(1).permutation(40)
    np.random.seed(1)
    torch.manual_seed(1)
    shuffled = getattr(Augmentation("any", 5), name)(images[order], EPOCHS, INDICES[order])
    assert torch.equal(shuffled, whole[order])
    assert not torch.equal(getattr(Augmentation("any", 6), name)(images, EPOCHS, INDICES), whole)
    assert not torch.equal(getattr(Augmentation("any", 5), name)(images, EPOCHS + 1, INDICES), whole)


def test_unknown_augmentation_is_refused():
    with pytest.raises(Refusal, match="recipe.augmentation=flip is unknown; it can be none"):
        check_augmentation("flip")
