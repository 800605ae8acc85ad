"""Against a NumPy brute force, bit for bit."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from robustlip import separation


def brute_force(inputs, labels, ref_inputs, ref_labels):
  """Distances and indices straight from the definition."""
  distances = np.full(len(inputs), np.inf, np.float32)
  indices = np.full(len(inputs), -1, np.int32)
  for i, (image, label) in enumerate(zip(inputs, labels, strict=True)):
    for j, (other, other_label) in enumerate(
      zip(ref_inputs, ref_labels, strict=True)
    ):
      if image.dtype == np.uint8:
        gap = np.abs(image.astype(np.int32) - other.astype(np.int32)).max()
        gap = np.float32(gap) / np.float32(255)
      else:
        gap = np.abs(image - other).max()
      if label != other_label and gap < distances[i]:
        distances[i], indices[i] = gap, j
  return distances, indices


@strategies.composite
def image_sets(draw):
  shape = draw(strategies.sampled_from([(1, 1, 1), (3, 2, 1), (5, 5, 3)]))
  dtype = draw(strategies.sampled_from([np.uint8, np.float32]))
  levels = draw(strategies.sampled_from([2, 5, 256]))
  rng = np.random.default_rng(draw(strategies.integers(0, 2**32)))
  sizes = draw(strategies.tuples(*[strategies.integers(1, 40)] * 2))
  classes = draw(strategies.integers(1, 4))
  images = [rng.integers(0, levels, (n, *shape)).astype(dtype) for n in sizes]
  if dtype == np.float32:
    images = [image / np.float32(levels) for image in images]
  labels = [rng.integers(0, classes, n) for n in sizes]
  return images[0], labels[0], images[1], labels[1]


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(image_sets())
def test_equals_brute_force_bit_for_bit(sets):
  found = separation.nearest_opposite(*sets)
  distances, indices = brute_force(*sets)
  np.testing.assert_array_equal(found.distances, distances)
  np.testing.assert_array_equal(found.indices, indices)
  assert found.distances.dtype == np.float32
  assert found.indices.dtype == np.int32


def test_one_class_has_no_opponent():
  images = np.zeros((3, 2, 2, 1), np.uint8)
  found = separation.nearest_opposite(images, np.zeros(3, int))
  np.testing.assert_array_equal(found.distances, [np.inf] * 3)
  np.testing.assert_array_equal(found.indices, [-1] * 3)


def test_unequal_lengths_are_named():
  with pytest.raises(ValueError, match='3 images need as many labels'):
    separation.nearest_opposite(np.zeros((3, 4), np.uint8), np.zeros(2))
