"""Augmentation of images: from seed, pass and example, and the same for image and mask."""

import numpy as np
from PIL import Image

from hf_accum.tasks.vision.augmentation import Augmentation, Augmenter


def test_an_augmentation_depends_on_seed_pass_and_example_only() -> None:
    augmenter = Augmenter(seed=3, crop_scale=0.5, mirror=True, color_jitter=0.3)
    drawn = {(epoch, name): augmenter.draw(epoch, name) for epoch in range(3) for name in ("0:1", "0:2", "1:1")}
    assert len(set(drawn.values())) == 9
    for key in sorted(drawn, reverse=True):
        assert augmenter.draw(*key) == drawn[key]
    assert Augmenter(4, 0.5, True, 0.3).draw(0, "0:1") != drawn[0, "0:1"]
    many = [augmenter.draw(0, str(index)) for index in range(300)]
    areas = [(a.box[2] - a.box[0]) * (a.box[3] - a.box[1]) for a in many]
    assert 0.5 <= min(areas) < 0.6
    assert all(0 <= a.box[0] < a.box[2] <= 1 and 0 <= a.box[1] < a.box[3] <= 1 for a in many)
    assert 0.4 < np.mean([a.mirrored for a in many]) < 0.6
    assert all(0.7 <= factor <= 1.3 for a in many for factor in (a.brightness, a.contrast, a.colour))
    assert not any(Augmenter(3, 0.5, False, 0.3).draw(0, str(index)).mirrored for index in range(100))


def test_image_and_mask_are_changed_alike() -> None:
    """A mask that has the image's own values is found where these are."""
    values = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8), 8, 0), 8, 1)
    mask = Image.fromarray(values.astype(np.int32))
    image = Image.fromarray(values).convert("RGB")
    augmentation = Augmentation(box=(0.125, 0.25, 0.875, 1.0), mirrored=True)
    seen = np.asarray(augmentation.image(image, 48, resample=0))[..., 0]
    assert np.array_equal(seen, np.asarray(augmentation.mask(mask, 48)))
    assert np.array_equal(seen, values[16:, 8:56][:, ::-1])
