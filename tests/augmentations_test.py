"""Augmentations against every result that they may have."""

import jax
import numpy as np
import pytest

from robustlip import augmentations
from robustlip.augmentations import AUGMENTATIONS

IMAGE = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
MANY = np.repeat(IMAGE, 300, axis=0)


def test_crops_are_the_windows_of_the_padded_image():
  crops = augmentations.crop(MANY, jax.random.key(0), padding=1)
  padded = np.pad(IMAGE[0], ((1, 1), (1, 1), (0, 0)))
  windows = {
    padded[i : i + 3, j : j + 4].tobytes() for i in range(3) for j in range(3)
  }
  assert {np.asarray(c).tobytes() for c in crops} == windows


def test_flips_are_the_mirror_image_half_of_the_time():
  flips = np.asarray(augmentations.flip(MANY, jax.random.key(0)))
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


WHITE = np.full((400, 12, 10, 2), 255, np.uint8)


def sides(taken):
  """Height and width of the rectangle that is True in each [H, W], or 0."""
  rows, columns = taken.any(axis=2), taken.any(axis=1)
  size = rows.sum(axis=1), columns.sum(axis=1)
  np.testing.assert_array_equal(taken.sum(axis=(1, 2)), size[0] * size[1])
  for lines in (rows, columns):  # one piece: one line begins it
    begins = lines & ~np.pad(lines, ((0, 0), (1, 0)))[:, :-1]
    assert (begins.sum(axis=1) == lines.any(axis=1)).all()
  return size


def test_cutout_takes_a_square_that_may_hang_over_the_edge():
  out = np.asarray(augmentations.cutout(WHITE, jax.random.key(0)))
  assert set(np.unique(out)) == {0, 255}
  size = sides((out == 0).all(axis=-1))
  assert set(size[0]) == set(size[1]) == {3, 4, 5, 6}
  # Of centres in N pixels three at the one and two at the other end lose some.
  expected = [(3 + 4 + 5 + 6 * (n - 5) + 5 + 4) / n for n in (12, 10)]
  np.testing.assert_allclose(np.mean(size, axis=1), expected, atol=0.2)


def test_erasing_replaces_a_part_of_every_second_image_by_noise():
  out = np.asarray(augmentations.erase(WHITE, jax.random.key(0)))
  gone = (out != 255).any(axis=-1)
  height, width = sides(gone)
  share = height * width / 120
  assert 160 < (share > 0).sum() < 240
  assert share[share > 0].min() < 0.06 and 0.3 < share.max() < 0.5
  large = share > 0.2
  skew = np.log(height[large] / width[large])
  assert -1.5 < skew.min() < -0.7 and 0.7 < skew.max() < 1.5  # 0.3 to 3.3
  assert 115 < out[gone].mean() < 140 and out[gone].std() > 65


def test_a_window_is_put_down_anywhere():
  image = np.arange(1, 225, dtype=np.uint8).reshape(1, 16, 14, 1)
  out = augmentations.crop_shift(
    np.repeat(image, 500, axis=0), jax.random.key(0)
  )
  height, width = sides(np.asarray(out)[..., 0] > 0)
  assert set(16 - height + 14 - width) == set(range(11))
  assert set(16 - height) == set(14 - width) == set(range(11))
  moves = set()
  for each, *size in zip(np.asarray(out)[..., 0], height, width, strict=True):
    top, left = np.argwhere(each)[0]
    row, column = divmod(int(each[top, left]) - 1, 14)
    window = image[0, row:, column:, 0][: size[0], : size[1]]
    put = each[top:, left:][: size[0], : size[1]]
    np.testing.assert_array_equal(put, window)
    moves.add((top - row, left - column))
  assert {0, 5, -5} <= {move[0] for move in moves}


def test_a_window_of_a_small_image_is_never_empty():
  small = np.full((300, 4, 5, 1), 7, np.uint8)
  out = np.asarray(augmentations.crop_shift(small, jax.random.key(0)))
  assert set((out > 0).sum(axis=(1, 2, 3))) >= {20, 5, 8}
  assert (out > 0).any(axis=(1, 2, 3)).all()


def test_cutmix_shows_a_rectangle_of_the_neighbour_and_says_how_much():
  pair = np.stack([WHITE[0] - 1, WHITE[0]])
  mixed, own = augmentations.cutmix(
    np.concatenate([pair] * 200), jax.random.key(0), probability=0.5
  )
  foreign = (np.asarray(mixed) != np.concatenate([pair] * 200)).all(axis=-1)
  np.testing.assert_allclose(own, 1 - foreign.mean(axis=(1, 2)), atol=1e-6)
  sides(foreign)
  assert 160 < (own < 1).sum() < 240 and own.min() < 0.2
  np.testing.assert_array_equal(augmentations.swapped(own)[::2], own[1::2])
  with pytest.raises(ValueError, match='even'):
    augmentations.cutmix(pair[:1], jax.random.key(0), probability=1.0)


def test_augmentations_in_turn():
  both = augmentations.augmentation('cutout,flip')
  out = np.asarray(both(np.repeat(IMAGE, 300, axis=0), jax.random.key(0)))
  assert ((out == 0) | (out == IMAGE) | (out == IMAGE[:, :, ::-1])).all()
  assert len({one.tobytes() for one in out}) == 24
  with pytest.raises(ValueError, match='no augmentation magic; there are'):
    augmentations.augmentation('cutout,magic')


def test_augmentations_keep_shape_and_type():
  for augment in AUGMENTATIONS.values():
    out = jax.eval_shape(augment, MANY, jax.random.key(0))
    assert out.shape == MANY.shape and out.dtype == np.uint8
