"""Against a NumPy brute force, bit for bit."""

from unittest import mock

import hypothesis
import jax
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies

from robustlip import separation
from robustlip.separation import search


def all_distances(inputs, labels, refs, ref_labels, norm='linf'):
  """Distances [N, M] straight from the definition, inf within a class."""
  integers = inputs.dtype == np.uint8
  work = np.int64 if integers else np.float32
  distances = np.zeros((len(inputs), len(refs)), np.float32)
  flat = refs.reshape(len(refs), np.prod(refs.shape[1:])).astype(work)
  for row, image in zip(distances, inputs, strict=True):
    apart = np.abs(flat - image.reshape(1, -1).astype(work))
    if norm == 'l2':
      apart = np.sqrt(np.square(apart, dtype=np.float64).sum(axis=1))
    else:
      apart = apart.max(axis=1)
    row[:] = apart / 255 if integers else apart
  distances[np.asarray(labels)[:, None] == np.asarray(ref_labels)] = np.inf
  return distances


def check(found, distances):
  smallest = distances.min(axis=1, initial=np.inf)
  indices = distances.argmin(axis=1) if distances.shape[1] else 0
  indices = np.where(np.isfinite(smallest), indices, -1)
  np.testing.assert_array_equal(found.distances, smallest)
  np.testing.assert_array_equal(found.indices, indices)
  assert found.distances.dtype == np.float32
  assert found.indices.dtype == np.int32


def random_set(rng, size, shape, levels, num_classes, dtype):
  images = rng.integers(0, levels, (size, *shape)).astype(dtype)
  if dtype == np.float32:
    images /= np.float32(levels)
  return images, rng.integers(0, num_classes, size) * 7 - 3


SHAPES = [(1, 1, 1), (3, 2, 1), (7, 5, 3), (64, 64, 3)]


@strategies.composite
def two_sets(draw):
  rng = np.random.default_rng(draw(strategies.integers(0, 2**32)))
  shape = draw(strategies.sampled_from(SHAPES))
  levels = draw(strategies.sampled_from([2, 5, 256]))
  dtype = draw(strategies.sampled_from([np.uint8, np.float32]))
  classes = draw(strategies.integers(1, 4))
  sizes = draw(strategies.tuples(*[strategies.integers(0, 40)] * 2))
  first, second = (
    random_set(rng, size, shape, levels, classes, dtype) for size in sizes
  )
  if draw(strategies.booleans()):
    shared = min(sizes) // 2
    second[0][:shared] = first[0][:shared]
  return *first, *second


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(
  two_sets(), strategies.sampled_from(['linf', 'l2']), strategies.booleans()
)
def test_small_sets_equal_brute_force(sets, norm, same):
  images, labels, *others = sets
  found = separation.nearest_opposite(
    images, labels, *others[: 0 if same else 2], norm=norm
  )
  refs = (images, labels) if same else others
  check(found, all_distances(images, labels, *refs, norm=norm))


class ManyTiles(parameterized.TestCase):
  """Several blocks, and so many features that the filter leaves some out."""

  def check(self, images, labels, norm):
    for size in (len(images), 1500):  # with itself, with other examples
      refs = images[:size], labels[:size]
      others = () if size == len(images) else refs
      with (
        mock.patch.object(search, 'BLOCK', 512),
        mock.patch.dict(search.SAMPLE, l2=128),  # else it is nearly all
      ):
        found = separation.nearest_opposite(images, labels, *others, norm=norm)
      part = slice(None, None, 17)
      check(
        separation.Neighbors(*(side[part] for side in found)),
        all_distances(images[part], labels[part], *refs, norm=norm),
      )

  @parameterized.parameters(
    (np.uint8, 256, True, 'linf'),
    (np.float32, 3, False, 'linf'),
    (np.uint8, 3, False, 'l2'),
    (np.float32, 256, True, 'l2'),
  )
  def test_equals_brute_force(self, dtype, levels, ordered, norm):
    rng = np.random.default_rng(1)
    images, labels = random_set(rng, 1600, (10, 20, 2), levels, 3, dtype)
    # Correlated features, as in pictures: some survive the filter.
    images = np.minimum(images, images.mean(axis=(2, 3), keepdims=True))
    images = images.astype(dtype)
    self.check(images, np.sort(labels) if ordered else labels, norm)

  @parameterized.parameters(1e2, 1e4)
  def test_far_clusters_do_not_round_near_opponents_away(self, apart):
    rng = np.random.default_rng(2)
    images = rng.random((1600, 390), np.float32)
    images[::2] += np.float32(apart)
    self.check(images, rng.integers(0, 2, 1600), 'l2')

  def test_what_accelerators_do_instead(self):
    rng = np.random.default_rng(3)
    images, labels = random_set(rng, 1600, (100,), 256, 3, np.uint8)
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.check(images, labels, 'linf')
      self.check(images, labels, 'l2')


def test_progress_counts_queries():
  done = []
  images = np.zeros((2100, 1), np.uint8)
  labels = np.arange(2100)
  with mock.patch.object(search, 'BLOCK', 1024):
    separation.nearest_opposite(images, labels, progress=done.append)
  assert done == [1024, 1024, 52]


def test_labels_of_two_integer_types_are_compared_exactly():
  images = np.array([[0], [10]], np.uint8)
  refs = np.array([[8], [7]], np.uint8)
  labels = np.array([2**53, 2**53 + 1])  # equal as float64
  found = separation.nearest_opposite(
    images, labels, refs, labels.astype(np.uint64)
  )
  np.testing.assert_array_equal(found.distances, np.float32([7, 2]) / 255)
  np.testing.assert_array_equal(found.indices, [1, 0])


def test_nearest_ignores_classes():
  rng = np.random.default_rng(3)
  images, refs = rng.random((2, 30, 5, 5, 1), np.float32)
  distances = all_distances(images, np.zeros(30), refs, np.ones(30))
  check(separation.nearest(images, refs), distances)


@pytest.mark.parametrize('levels', [2, 256])
@pytest.mark.parametrize('k', [1, 7, 2000])
@pytest.mark.parametrize('same', [True, False])
def test_closest_pairs_equal_brute_force(levels, k, same):
  rng = np.random.default_rng(4)
  images, labels = random_set(rng, 60, (3, 3, 1), levels, 3, np.uint8)
  refs, ref_labels = random_set(rng, 50, (3, 3, 1), levels, 3, np.uint8)
  if same:
    refs, ref_labels = images, labels
  distances = all_distances(images, labels, refs, ref_labels)
  if same:
    distances[np.tril_indices(60)] = np.inf
  rows, cols = np.nonzero(np.isfinite(distances))
  order = np.lexsort((cols, rows, distances[rows, cols]))[:k]
  others = () if same else (refs, ref_labels)
  found = separation.closest_pairs(images, labels, *others, k=k)
  np.testing.assert_array_equal(found.rows, rows[order])
  np.testing.assert_array_equal(found.cols, cols[order])
  np.testing.assert_array_equal(
    found.distances, distances[rows[order], cols[order]]
  )
  neighbors = separation.nearest_opposite(images, labels, *others)
  again = separation.closest_pairs(
    images, labels, *others, k=k, neighbors=neighbors
  )
  np.testing.assert_array_equal(again.cols, found.cols)


@pytest.mark.parametrize('same', [True, False])
def test_ties_are_not_all_compared(same):
  rng = np.random.default_rng(5)
  images, labels = random_set(rng, 300, (5, 5, 1), 2, 2, np.uint8)
  others = () if same else (images[::-1], labels[::-1])
  with (
    mock.patch.object(separation.search, 'BLOCK', 32),
    mock.patch.object(
      separation.kernels, 'exact_gaps', wraps=separation.kernels.exact_gaps
    ) as exact,
  ):
    nearest = separation.nearest_opposite(images, labels, *others)
    exact.reset_mock()
    found = separation.closest_pairs(
      images, labels, *others, k=3, neighbors=nearest
    )
  assert found.distances.max() == found.distances.min()  # as all others
  compared = sum(len(call.args[2]) for call in exact.call_args_list)
  assert compared < 300 + 3 * 32**2  # of 300**2 / 2


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_class_matrix_equals_brute_force(norm):
  rng = np.random.default_rng(5)
  images = rng.integers(0, 256, (80, 4, 4, 1)).astype(np.uint8)
  labels = rng.integers(0, 4, 80)
  distances = all_distances(images, labels, images, labels, norm)
  expected = np.full((5, 5), np.inf, np.float32)
  np.minimum.at(expected, (labels[:, None], labels[None]), distances)
  found = separation.class_matrix(images, labels, num_classes=5, norm=norm)
  np.testing.assert_array_equal(found, expected)


def test_duplicates_and_conflicts():
  images = np.array([[1], [2], [1], [3], [2], [1]], np.uint8)
  found = separation.duplicates(images, np.array([0, 1, 0, 0, 1, 2]))
  assert [g.tolist() for g in found.groups] == [[0, 2, 5], [1, 4]]
  assert [g.tolist() for g in found.conflicts] == [[0, 2, 5]]


def test_shared_images():
  images = np.array([[1], [2], [1], [3]], np.uint8)
  refs = np.array([[4], [3], [1], [1]], np.uint8)
  np.testing.assert_array_equal(
    separation.shared(images, refs), [[0, 2], [2, 2], [3, 1]]
  )
  assert separation.shared(images, refs[:1]).shape == (0, 2)


def test_signed_zeros_are_the_same_image():
  images = np.array([[0.0], [-0.0]], np.float32)
  assert len(separation.duplicates(images, np.array([0, 1])).conflicts) == 1
  found = separation.nearest_opposite(images, np.array([0, 1]))
  np.testing.assert_array_equal(found.distances, [0.0, 0.0])


IMAGES, LABELS = np.zeros((3, 4, 4, 1), np.uint8), np.arange(3)
NOT_FINITE = np.full((3, 4, 4, 1), np.nan, np.float32)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((NOT_FINITE, LABELS), 'finite'),
    ((IMAGES, LABELS[:2]), '3 images need as many labels'),
    ((IMAGES, LABELS[:, None]), '3 images need as many labels'),
    ((IMAGES, LABELS * 0.5), 'labels must be integers, got float64'),
    ((IMAGES.astype(np.float64), LABELS), 'uint8 or float32, got float64'),
    ((IMAGES, LABELS, NOT_FINITE * 0, LABELS), 'finite'),
    ((IMAGES - np.float32(3e17), LABELS), 'within 2e.17'),
    ((IMAGES, LABELS, IMAGES / np.float32(2), LABELS), 'both must be'),
    ((IMAGES, LABELS, IMAGES[:, :3], LABELS), 'shapes must agree'),
    ((LABELS.astype(np.uint8), LABELS), r'must be \[N, ...\]'),
  ],
)
def test_bad_input_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    separation.nearest_opposite(*arguments)


def test_bad_settings_are_named():
  with pytest.raises(ValueError, match='norm must be one of'):
    separation.nearest_opposite(IMAGES, LABELS, norm='l1')
  with pytest.raises(ValueError, match='k must be at least 1'):
    separation.closest_pairs(IMAGES, LABELS, k=0)
  with pytest.raises(ValueError, match=r'labels must be in \[0, 2\)'):
    separation.class_matrix(IMAGES, LABELS, num_classes=2)


def test_l2_ties_do_not_depend_on_the_order_of_summation():
  rng = np.random.default_rng(0)
  values = rng.uniform(size=30).astype(np.float32)
  refs = np.stack([rng.permutation(values) for _ in range(50)])
  found = separation.nearest(np.zeros((1, 30), np.float32), refs, norm='l2')
  np.testing.assert_array_equal(found.indices, [0])


MANY = np.random.default_rng(0).integers(0, 256, (30, 5), np.uint8)
THREE = np.arange(30) % 3  # their classes


@pytest.mark.parametrize('count', [6, 10])
def test_neighbors_of_another_set_are_refused(count):
  neighbors = separation.nearest_opposite(MANY[:count], THREE[:count])
  with pytest.raises(ValueError, match='not of these arrays'):
    others = MANY[: 16 - count], THREE[: 16 - count]
    separation.closest_pairs(*others, neighbors=neighbors)


def test_neighbors_in_another_norm_are_refused():
  neighbors = separation.nearest_opposite(MANY, THREE, norm='linf')
  with pytest.raises(ValueError, match='not of these arrays in l2'):
    separation.closest_pairs(MANY, THREE, norm='l2', neighbors=neighbors)


def test_neighbors_of_the_same_class_are_refused():
  nearest = separation.nearest(MANY, MANY)  # each is its own, at 0
  others = separation.nearest_opposite(MANY, np.arange(30) % 2)
  message = 'neighbors are not of these arrays'
  with pytest.raises(ValueError, match=message):
    separation.closest_pairs(MANY, THREE, MANY, THREE, neighbors=nearest)
  with pytest.raises(ValueError, match=message):
    separation.class_matrix(MANY, THREE, num_classes=3, neighbors=others)
