"""The attack on the distance classifier, where its answer is known."""

import numpy as np
import pytest
from theory_test import brute_force

from robustlip import distance_attack, theory
from robustlip.images import from_bytes


def test_attack_succeeds_exactly_beyond_half_the_margin():
  """On a line both references can be approached and left at full speed."""
  inputs = np.linspace(0.3, 0.49, 20, dtype=np.float32)[:, None]
  labels = np.zeros(20, np.int32)
  refs = np.array([[0.25], [0.75]], np.float32)
  epsilon = 0.065
  found = distance_attack.attack(
    inputs, labels, refs, np.array([0, 1]), epsilon=epsilon
  )
  moved = np.abs(found.points - inputs).max()
  assert moved <= epsilon * (1 + 1e-5)
  half_margins = 0.5 - inputs[:, 0]
  np.testing.assert_array_equal(found.margins > 0, half_margins > epsilon)


def test_attack_leaves_several_references_of_the_own_class():
  """Three pixels must move at once, away from a reference each."""
  inputs = np.full((1, 4), 0.5, np.float32)
  own = inputs + 0.1 * np.eye(4, dtype=np.float32)[:3]
  other = inputs + 0.13 * np.eye(4, dtype=np.float32)[3:]
  refs = np.concatenate([own, other])
  found = distance_attack.attack(
    inputs, np.array([0]), refs, np.array([0, 0, 0, 1]), epsilon=0.02
  )
  assert found.margins[0] == pytest.approx(0.13 - 0.1 - 0.04, abs=2e-3)


def test_nearest_references_have_the_margins_of_the_class_distances(dataset):
  images, labels = dataset.test
  found = distance_attack.nearest_references(images, labels, *dataset.train)
  distances = theory.class_distances(images, *dataset.train, num_classes=3)
  np.testing.assert_array_equal(
    found.margins, theory.margins(distances, labels)
  )
  np.testing.assert_array_equal(dataset.train.labels[found.own], labels)
  assert np.all(dataset.train.labels[found.other] != labels)


def test_reported_margins_are_those_of_the_points(dataset):
  images = from_bytes(dataset.test.images)
  refs = from_bytes(dataset.train.images)
  labels = dataset.test.labels
  found = distance_attack.attack(
    images, labels, refs, dataset.train.labels, epsilon=0.02
  )
  assert found.points.min() >= 0 and found.points.max() <= 1
  assert np.abs(found.points - images).max() <= 0.02 * (1 + 1e-5)
  distances = brute_force(found.points, refs, dataset.train.labels, 3, 'linf')
  expected = theory.margins(distances, labels)
  np.testing.assert_allclose(found.margins, expected, atol=1e-6)


def test_attack_finds_the_lowest_margin_of_most_squares():
  """Three classes in the plane, against every point of a fine grid."""
  random = np.random.default_rng(0)
  refs = random.uniform(size=(12, 2)).astype(np.float32)
  ref_labels = np.arange(12) % 3
  inputs = random.uniform(size=(40, 2)).astype(np.float32)
  epsilon, steps = 0.05, np.linspace(-0.05, 0.05, 101)
  labels = brute_force(inputs, refs, ref_labels, 3, 'linf').argmin(axis=1)
  moves = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
  around = np.clip(inputs[:, None] + moves, 0, 1)
  own = np.arange(3) == labels[:, None, None]
  grid = brute_force(around.reshape(-1, 2), refs, ref_labels, 3, 'linf')
  grid = grid.reshape(own.shape[0], -1, 3)
  margins = np.where(own, np.inf, grid).min(-1) - np.where(own, grid, 0).sum(-1)
  found = distance_attack.attack(
    inputs, labels, refs, ref_labels, epsilon=epsilon
  )
  lowest = margins.min(axis=1)
  robust = lowest > 0
  assert 10 < robust.sum() < 30
  # An ascent may end in a local maximum, and never below the lowest margin.
  assert np.all(found.margins[robust] >= lowest[robust] - 1e-6)
  assert np.isclose(found.margins, lowest, atol=1e-6)[robust].mean() > 0.7
  assert np.mean(found.margins[~robust] <= 0) > 0.9


def test_what_the_attack_refuses():
  images, labels = np.full((1, 2), 0.5, np.float32), np.zeros(1, int)
  for epsilon in (2.0, -0.1):
    with pytest.raises(ValueError, match='epsilon must be at least 0'):
      distance_attack.attack(images, labels, images, labels, epsilon=epsilon)
  with pytest.raises(ValueError, match='at least one example'):
    none = images[:0], labels[:0]
    distance_attack.attack(images, labels, *none, epsilon=0.1)
