"""Crops and flips against every result that they may have."""

import jax
import numpy as np

from robustlip import images
from robustlip.images import AUGMENTATIONS

IMAGE = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
MANY = np.repeat(IMAGE, 300, axis=0)


def test_crops_are_the_windows_of_the_padded_image():
  crops = images.crop(MANY, jax.random.key(0), padding=1)
  padded = np.pad(IMAGE[0], ((1, 1), (1, 1), (0, 0)))
  windows = {
    padded[i : i + 3, j : j + 4].tobytes() for i in range(3) for j in range(3)
  }
  assert {np.asarray(c).tobytes() for c in crops} == windows


def test_flips_are_the_mirror_image_half_of_the_time():
  flips = np.asarray(images.flip(MANY, jax.random.key(0)))
  same = (flips == IMAGE).all(axis=(1, 2, 3))
  mirrored = (flips == IMAGE[:, :, ::-1]).all(axis=(1, 2, 3))
  assert (same ^ mirrored).all() and 110 < mirrored.sum() < 190


def test_the_published_paddings():
  image = np.zeros((2000, 40, 40, 1), np.uint8)
  image[:, 20, 20] = 1  # in the middle: never cut off
  for name, padding in (('crop4_flip', 4), ('crop8', 8)):
    out = AUGMENTATIONS[name](image, jax.random.key(0))
    _, rows, columns, _ = np.nonzero(np.asarray(out))
    offsets = set(range(20 - padding, 21 + padding))
    assert set(rows) == offsets
    mirrored = {39 - x for x in offsets} if 'flip' in name else set()
    assert set(columns) == offsets | mirrored


def test_augmentations_keep_shape_and_type():
  for augment in AUGMENTATIONS.values():
    out = augment(MANY, jax.random.key(0))
    assert out.shape == MANY.shape and out.dtype == np.uint8


def test_within_jit_an_image_out_of_range_is_nan():
  inputs = np.full((4, 2, 2, 1), 0.5, np.float32)
  inputs[1, 0, 0], inputs[2, 1, 1], inputs[3, 0, 1] = 1.01, -0.01, np.nan
  checked = jax.jit(images.check_images)(inputs)
  expected = np.where(np.arange(4) > 0, np.nan, 0.5)[:, None, None, None]
  np.testing.assert_array_equal(
    checked, np.broadcast_to(expected, inputs.shape)
  )
