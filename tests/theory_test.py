"""The theorems on random separated sets, with exact arithmetic.

Coordinates are multiples of 1/64, so that float32 differences, maxima and
halves are exact and the inequalities can be tested without a tolerance.
"""

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from robustlip import theory

GRID = 64


def brute_force(inputs, refs, labels, num_classes, norm):
  """Distances [N, C] from the definition, float64."""
  moves = inputs[:, None].astype(np.float64) - refs[None]
  moves = moves.reshape(len(inputs), len(refs), -1)
  if norm == 'linf':
    distances = np.abs(moves).max(axis=-1)
  else:
    distances = np.sqrt((moves**2).sum(axis=-1))
  columns = [
    distances[:, labels == c].min(axis=1, initial=np.inf)
    for c in range(num_classes)
  ]
  return np.stack(columns, axis=1)


@st.composite
def separated_sets(draw, num_classes=3):
  """Points, labels (every class present) and half their separation."""
  seed = draw(st.integers(0, 2**32 - 1))
  dimension = draw(st.sampled_from([1, 2, 6]))  # few shapes: few compilations
  random = np.random.default_rng(seed)
  labels = np.arange(5 * num_classes) % num_classes
  points = random.integers(0, GRID + 1, (len(labels), dimension)) / GRID
  points = points.astype(np.float32)
  distances = brute_force(points, points, labels, num_classes, 'linf')
  other = np.arange(num_classes) != labels[:, None]
  radius = distances[other].min() / 2
  hypothesis.assume(radius > 0)
  return points, labels, radius, random


def distances_to(inputs, points, labels, num_classes=3):
  return theory.class_distances(inputs, points, labels, num_classes=num_classes)


def corners(points, size, random):
  """Points moved by `size` along every axis, up or down, float32."""
  signs = random.choice([-1, 1], points.shape)
  return (points + size * signs).astype(np.float32)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_class_distances_equal_brute_force(norm, dtype):
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (70, 5, 5, 1)).astype(np.uint8)
  labels = random.integers(0, 3, 40)
  scaled = images if dtype == np.uint8 else (images / 255).astype(dtype)
  got = theory.class_distances(
    scaled[:30], scaled[30:], labels, num_classes=4, norm=norm
  )
  unit = 255 if dtype == np.uint8 else 1
  expected = brute_force(scaled[:30], scaled[30:], labels, 4, norm) / unit
  assert np.isinf(got[:, 3]).all()
  chex.assert_trees_all_close(got, expected.astype(np.float32), rtol=2e-6)


@hypothesis.given(separated_sets())
@hypothesis.settings(deadline=None, max_examples=40)
def test_theorem_4_2_on_separated_sets(separated):
  points, labels, radius, random = separated
  distances = distances_to(points, points, labels)
  assert (theory.margins(distances, labels) / radius >= 2).all()
  assert (theory.certified_radius(distances, labels) >= radius).all()
  before = theory.values(distances, radius=radius)
  for size in (radius * 0.99, radius / 2):
    moved = corners(points, size, random)
    after = distances_to(moved, points, labels)
    np.testing.assert_array_equal(theory.predict(after), labels)
    moves = np.abs(moved - points).max(axis=1)
    ratios = theory.lipschitz_ratio(
      before, theory.values(after, radius=radius), moves
    )
    assert (ratios <= (1 + 1e-5) / radius).all()


@hypothesis.given(separated_sets())
@hypothesis.settings(deadline=None, max_examples=40)
def test_no_other_point_of_the_certified_ball_changes_the_answer(separated):
  points, labels, _, random = separated
  inputs = random.integers(0, GRID + 1, points.shape) / GRID
  inputs = inputs.astype(np.float32)
  distances = distances_to(inputs, points, labels)
  guess = theory.predict(distances)
  radii = theory.certified_radius(distances, guess)
  towards = points[random.permutation(len(points))] - inputs
  limit = 0.999 * radii[:, None]
  moved = (inputs + np.clip(towards, -limit, limit)).astype(np.float32)
  after = distances_to(moved, points, labels)
  certain = radii > 0
  np.testing.assert_array_equal(theory.predict(after)[certain], guess[certain])


@hypothesis.given(separated_sets(num_classes=2))
@hypothesis.settings(deadline=None, max_examples=40)
def test_theorem_4_4_on_separated_sets(separated):
  points, labels, radius, random = separated
  signs = 2 * labels - 1
  distances = distances_to(points, points, labels, 2)
  before = theory.binary_values(distances, radius=radius)
  assert (signs * before >= 1).all()
  moved = corners(points, 0.99 * radius, random)
  after = theory.binary_values(
    distances_to(moved, points, labels, 2), radius=radius
  )
  assert (signs * after > 0).all()
  moves = np.abs(moved - points).max(axis=1)
  ratios = theory.lipschitz_ratio(before[:, None], after[:, None], moves)
  assert (ratios <= (1 + 1e-5) / radius).all()


def test_lemma_4_1_ties_on_the_boundary():
  """Margin 2 is enough inside the ball, and only ties on its boundary."""
  points = np.array([[0.0], [1.0]], np.float32)
  labels = np.array([0, 1])
  radius = 0.5
  own = distances_to(points, points, labels, 2)
  np.testing.assert_array_equal(theory.margins(own, labels) / radius, [2, 2])
  boundary = distances_to(
    np.array([[0.5], [0.5]], np.float32), points, labels, 2
  )
  values = theory.values(boundary, radius=radius)
  np.testing.assert_array_equal(values[:, 0], values[:, 1])
  # Both centres are at distance r from the tied point; g is right for one.
  np.testing.assert_array_equal(theory.predict(boundary), [0, 0])
  inside = distances_to(
    np.array([[0.499], [0.501]], np.float32), points, labels, 2
  )
  np.testing.assert_array_equal(theory.predict(inside), labels)


def test_a_tie_is_not_certified_however_it_is_rounded():
  # 51 / 255 is twice 0.1: half the margin is the radius.
  pixels = np.arange(205, dtype=np.float32) / np.float32(255)
  margins = (np.arange(51, 256, dtype=np.float32) / np.float32(255)) - pixels
  assert (margins / 2 > 0.1).any()  # what rounding alone would say
  assert not theory.certified(margins, 0.1).any()
  assert theory.certified(margins + np.float32(1 / 255), 0.1).all()


def test_nothing_is_certified_beyond_the_exact_radius_in_l2():
  rng = np.random.default_rng(0)  # distances of about 158, as of 224 x 224 x 3
  image, *refs = rng.random((61, 150_528), np.float32)
  exact = np.linalg.norm(np.float64(refs) - image, axis=1).reshape(30, 2)
  own = exact.argmin(axis=1)
  margins = theory.margins(np.float32(exact), own)
  half = np.ptp(exact, axis=1) / 2
  for margin, radius in zip(margins, half, strict=True):
    assert not theory.certified(margin[None], radius + 1e-9)[0]
    assert theory.certified(margin[None], max(radius - 1e-3, 0))[0]


def test_certified_radius_is_half_the_margin_or_nothing():
  distances = np.array([[0.1, 0.5, 0.9], [0.5, 0.1, 0.9], [0.3, 0.3, 0.4]])
  radii = theory.certified_radius(distances, np.zeros(3, int))
  np.testing.assert_allclose(radii, [0.2, 0.0, 0.0])
  alone = np.array([[0.1, np.inf]])
  assert np.isinf(theory.certified_radius(alone, np.array([0]))).all()
  assert theory.certified_radius(alone, np.array([1])) == 0


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: theory.values(np.ones((1, 2)), radius=0.0), 'positive'),
    (lambda: theory.values(np.ones((1, 2)), radius=np.inf), 'finite, got inf'),
    (lambda: theory.binary_values(np.ones((1, 3)), radius=1.0), 'two classes'),
    (lambda: theory.margins(np.ones((2, 3)), np.array([0])), r'shape \(2,\)'),
    (lambda: theory.margins(np.ones((1, 3)), np.array([3])), r'in \[0, 3\)'),
    (lambda: theory.margins(np.ones((1, 3)), np.array([0.5])), 'integers'),
    (
      lambda: theory.margins(np.full((1, 3), np.inf), np.array([0])),
      'any class',
    ),
    (lambda: theory.predict(np.full((1, 3), np.inf)), 'any class'),
    (lambda: theory.certified(np.ones(1), -0.1), 'negative'),
    (lambda: theory.certified(np.ones(1), np.nan), 'NaN'),
    (
      lambda: theory.lipschitz_ratio(
        np.ones((3, 2)), np.ones((1, 2)), np.ones(3)
      ),
      'fit together',
    ),
    (
      lambda: theory.lipschitz_ratio(
        np.ones((1, 2)), np.ones((1, 2)), np.zeros(1)
      ),
      'differ',
    ),
    (
      lambda: distances_to(
        np.ones((1, 2), np.float32), np.ones((2, 2), np.float32), np.zeros(3)
      ),
      r'integers of shape \(2,\)',
    ),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_class_without_a_reference_does_not_change():
  before = np.array([[0.5, np.inf, 1.0], [0.5, np.inf, 1.0]], np.float32)
  after = np.array([[0.6, np.inf, 0.8], [0.5, 0.25, 1.0]], np.float32)
  ratios = theory.lipschitz_ratio(before, after, np.full(2, 0.1))
  np.testing.assert_allclose(ratios, [2.0, np.inf], rtol=1e-5)
