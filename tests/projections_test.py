"""Balls and steps against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import optimize

from robustlip import projections

KEY = jax.random.key(0)
CENTERS = jax.random.uniform(jax.random.key(1), (5, 4, 3, 2))
POINTS = CENTERS + jax.random.normal(jax.random.key(2), CENTERS.shape)


class ProjectionsTest(chex.TestCase):
  def test_linf_ball_is_two_clips(self):
    project = jax.jit(projections.ball)
    x, c = np.asarray(POINTS, np.float64), np.asarray(CENTERS, np.float64)
    for epsilon in (0.0, 0.03, 0.3, 1.0):
      found = project(POINTS, CENTERS, epsilon=epsilon)
      expected = np.clip(np.clip(x, c - epsilon, c + epsilon), 0, 1)
      chex.assert_trees_all_close(found, expected, atol=1e-6)

  @parameterized.parameters(0.1, 1.0, 3.0)
  def test_l2_ball_without_the_box_is_the_scaled_difference(self, epsilon):
    centers = jnp.full((6, 10), 0.5)
    points = centers + 0.05 * jax.random.normal(KEY, centers.shape)
    moved = projections.ball(points, centers, epsilon=epsilon, norm='l2')
    delta = np.asarray(points - centers, np.float64)
    length = np.linalg.norm(delta, axis=1, keepdims=True)
    expected = 0.5 + delta * np.minimum(1, epsilon / length)
    chex.assert_trees_all_close(moved, expected, atol=1e-6)

  @parameterized.parameters('linf', 'l2')
  def test_random_start_fills_the_ball(self, norm):
    centers = jnp.full((4000, 3), 0.5)
    start = projections.random_start(centers, KEY, epsilon=0.1, norm=norm)
    sizes = np.sort(projections.norms(start - centers, norm=norm)) / 0.1
    # Of a uniform draw from a ball in three dimensions, P(size <= s) = s^3.
    quantiles = (np.arange(4000) + 0.5) / 4000
    np.testing.assert_allclose(sizes**3, quantiles, atol=0.03)

  def test_a_draw_depends_on_its_own_key_alone(self):
    keys = jax.random.split(KEY, 5)
    whole = projections.random_start(CENTERS, keys, epsilon=0.1)
    part = projections.random_start(CENTERS[3:], keys[3:], epsilon=0.1)
    chex.assert_trees_all_equal(whole[3:], part)

  @parameterized.parameters(1e-37, 1e-25, 1e-10, 1.0, 1e25)
  def test_steepest_has_unit_size_whatever_the_gradient(self, scale):
    gradients = np.float32(scale) * np.array([[3.0, -4.0]], np.float32)
    steps = projections.normalize_direction(jnp.asarray(gradients), norm='l2')
    chex.assert_trees_all_close(steps, jnp.array([[0.6, -0.8]]), rtol=1e-6)


@pytest.mark.parametrize(
  'key, message',
  [
    (jax.random.PRNGKey(0), 'of jax.random.key, got uint32'),
    (jax.random.split(KEY, 4), '5, one per example'),
  ],
)
def test_wrong_keys_are_named(key, message):
  with pytest.raises(ValueError, match=message):
    projections.random_start(CENTERS, key, epsilon=0.1)


@pytest.mark.parametrize('binary', [True, False])
def test_the_l2_projection_is_the_nearest_point_of_ball_and_box(binary):
  generator = np.random.default_rng(0)
  centers = generator.uniform(size=(6, 8)).astype(np.float32)
  centers = np.round(centers) if binary else centers
  points = centers + generator.normal(size=(6, 8)).astype(np.float32)
  points[0] = centers[0] + 0.01
  moved = projections.ball(
    jnp.asarray(points), jnp.asarray(centers), epsilon=0.8, norm='l2'
  )
  for center, point, found in zip(centers, points, moved, strict=True):
    center, point = np.float64(center), np.float64(point)
    solved = optimize.minimize(
      lambda x, point=point: ((x - point) ** 2).sum(),
      center,
      jac=lambda x, point=point: 2 * (x - point),
      bounds=[(0, 1)] * 8,
      constraints={
        'type': 'ineq',
        'fun': lambda x, c=center: 0.64 - ((x - c) ** 2).sum(),
        'jac': lambda x, c=center: -2 * (x - c),
      },
      method='SLSQP',
      options={'ftol': 1e-14, 'maxiter': 500},
    )
    np.testing.assert_allclose(found, solved.x, atol=1e-4)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_directions_of_gradients_that_are_zero_or_not_finite(norm):
  nan, inf = jnp.nan, jnp.inf
  gradients = jnp.array([[nan, 1.0, 0.0], [inf, 1.0, nan], [0.0, 0.0, 0.0]])
  steps = projections.normalize_direction(gradients, norm=norm)
  second = 1.0 if norm == 'linf' else 0.0
  expected = jnp.array([[0.0, 1.0, 0.0], [1.0, second, 0.0], [0.0] * 3])
  chex.assert_trees_all_close(steps, expected, atol=1e-6)


@pytest.mark.parametrize('impl', ['rbg', 'unsafe_rbg'])
def test_keys_of_another_generator_become_threefry(impl):
  key = jax.random.key(7, impl=impl)
  keys = projections.example_keys(key, 5)
  assert jax.random.key_impl(keys) == 'threefry2x32'
  expected = projections.example_keys(jax.random.key(7), 5)
  chex.assert_trees_all_equal(
    jax.random.key_data(keys), jax.random.key_data(expected)
  )
