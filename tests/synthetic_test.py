"""Draws against the published ones and against their distributions."""

import numpy as np
import pytest

from robustlip.datasets import synthetic


def smallest_distance(points, labels):
  rows = points[labels == 0][:, None] - points[labels == 1][None]
  return np.abs(rows).max(axis=-1).min()


def test_staircase_is_the_published_draw():
  np.random.seed(1)
  weights = np.r_[[0.2] * 5, [0.01] * 5]
  stairs = np.random.choice(10, size=40, p=weights / weights.sum())
  targets = stairs + 0.1 * np.random.randn(40)
  right = np.random.rand(40) < 0.5
  moved = np.random.rand(40) < 0.005
  inputs = stairs + moved * np.where(right, 1, -1) / 3
  got = synthetic.staircase(40, np.random.RandomState(1))
  np.testing.assert_array_equal(got[0], inputs)
  np.testing.assert_array_equal(got[1], targets)


def test_staircase_has_its_distribution():
  inputs, targets = synthetic.staircase(200_000, np.random.default_rng(0))
  stairs = np.round(inputs)
  shares = np.bincount(stairs.astype(int)) / len(inputs)
  np.testing.assert_allclose(shares[:5], 0.2 / 1.05, atol=5e-3)
  np.testing.assert_allclose(shares[5:], 0.01 / 1.05, atol=1e-3)
  assert abs(np.std(targets - stairs) - 0.1) < 1e-3
  shifts = inputs - stairs
  assert np.mean(shifts > 0) == pytest.approx(0.0025, abs=4e-4)
  assert np.mean(shifts < 0) == pytest.approx(0.0025, abs=4e-4)
  np.testing.assert_allclose(np.abs(shifts[shifts != 0]), 1 / 3, atol=1e-12)


def test_spirals_have_the_published_separation():
  points, labels = synthetic.spirals(1000, np.random.RandomState(0))
  assert round(smallest_distance(points, labels), 4) == 0.7052
  np.testing.assert_array_equal(points[labels == 0], -points[labels == 1])


def test_spirals_without_noise_have_radius_equal_to_angle():
  points, labels = synthetic.spirals(500, np.random.default_rng(0), noise=0.0)
  x, y = points[labels == 0].T
  radius = np.hypot(x, y)
  assert radius.max() <= np.deg2rad(780)
  np.testing.assert_allclose(np.cos(radius), -x / radius, atol=1e-9)
  np.testing.assert_allclose(np.sin(radius), y / radius, atol=1e-9)


def test_strong_feature_agrees_and_weak_features_hint():
  inputs, labels = synthetic.one_strong_many_weak(
    100_000, np.random.default_rng(0), num_weak=3, mean=0.5, agreement=0.9
  )
  assert inputs.shape == (100_000, 4)
  signs = 2 * labels - 1
  assert np.mean(inputs[:, 0] == signs) == pytest.approx(0.9, abs=5e-3)
  assert np.mean(labels) == pytest.approx(0.5, abs=5e-3)
  weak = inputs[:, 1:] * signs[:, None]
  np.testing.assert_allclose(weak.mean(axis=0), 0.5, atol=0.02)
  np.testing.assert_allclose(weak.std(axis=0), 1.0, atol=0.02)


def test_classes_stay_apart_only_if_the_strong_feature_never_lies():
  separations = []
  for agreement in (0.95, 1.0):
    inputs, labels = synthetic.one_strong_many_weak(
      2000, np.random.default_rng(0), num_weak=4, mean=1.0, agreement=agreement
    )
    separations.append(smallest_distance(inputs, labels))
  assert separations[0] < 0.5
  assert separations[1] >= 2
