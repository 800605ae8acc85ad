"""Lipschitz estimates on networks whose constant is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from robustlip import lipschitz, reference
from robustlip.types import Batch

KEY = jax.random.key(0)
INPUTS = jnp.full((6, 2, 2, 1), 0.5)
WEIGHTS = jnp.array(
  [[1.0, -2.0], [0.5, 1.0], [-1.5, 0.25], [2.0, 1.0]], jnp.float32
)


def linear(inputs):
  return inputs.reshape(len(inputs), -1) @ WEIGHTS


def constant(weights):
  """max over the cube's corners of ||W^T s||_1: the l-inf to l1 norm."""
  corners = np.array(np.meshgrid(*[[-1, 1]] * len(weights))).reshape(
    len(weights), -1
  )
  return np.abs(corners.T @ np.asarray(weights)).sum(1).max()


class LipschitzTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(0.01, 0.1)
  def test_a_lower_bound_close_to_the_norm(self, epsilon):
    estimate = self.variant(
      lambda x, k: lipschitz.estimate(linear, x, k, epsilon=epsilon)
    )
    ratios = estimate(INPUTS, KEY).ratios
    assert (ratios <= constant(WEIGHTS) * (1 + 1e-4)).all()
    assert ratios.max() > 0.85 * constant(WEIGHTS)

  def test_exact_for_one_weight_sign(self):
    # |f(x) - f(x')| / max|x - x'| is largest where all pixels move alike.
    weights = jnp.abs(WEIGHTS)
    ratios = lipschitz.estimate(
      lambda x: x.reshape(len(x), -1) @ weights,
      INPUTS,
      KEY,
      epsilon=0.05,
      num_steps=30,
      start=INPUTS + 0.001,
    ).ratios
    np.testing.assert_allclose(ratios, weights.sum(), rtol=1e-4)

  def test_finds_the_steep_side_of_a_kink(self):
    def kinked(inputs):  # slope 1 below 0.5, slope 5 above, in every pixel
      x = inputs.reshape(len(inputs), -1) - 0.5
      return (x + 4 * jax.nn.relu(x)).sum(1, keepdims=True)

    ratios = lipschitz.estimate(
      kinked, INPUTS, KEY, epsilon=0.1, num_steps=20
    ).ratios
    # No pair of points rises faster than slope 5 in all four pixels.
    assert (ratios <= 20 * (1 + 1e-4)).all() and ratios.max() > 18

  def test_best_is_never_below_last_and_is_attained(self):
    run = dict(epsilon=0.1, num_steps=7)
    best = lipschitz.estimate(linear, INPUTS, KEY, **run)
    last = lipschitz.estimate(linear, INPUTS, KEY, keep='last', **run)
    assert (best.ratios >= last.ratios).all()
    rise = np.abs(linear(INPUTS) - linear(best.points)).sum(1)
    move = np.abs(INPUTS - best.points).max((1, 2, 3))
    np.testing.assert_allclose(best.ratios, rise / move, rtol=1e-5)

  def test_no_move_is_ratio_zero_with_zero_gradient(self):
    values, gradient = jax.value_and_grad(
      lambda x: lipschitz.ratio(linear, INPUTS, x).sum()
    )(INPUTS)
    assert values == 0
    chex.assert_tree_all_finite(gradient)

  def test_a_network_that_is_not_finite_has_no_ratio(self):
    def broken(inputs):
      return linear(inputs) * jnp.nan

    for keep in ('best', 'last'):
      found = lipschitz.estimate(broken, INPUTS, KEY, epsilon=0.1, keep=keep)
      assert np.isnan(found.ratios).all()

  def test_the_released_procedure_descends(self):
    start = jnp.clip(INPUTS + 0.02, 0, 1)
    before = lipschitz.ratio(linear, INPUTS, start)
    released = reference.lipschitz_estimate(linear, INPUTS, KEY, epsilon=0.1)
    ours = lipschitz.estimate(linear, INPUTS, KEY, epsilon=0.1)
    assert released.ratios.mean() < before.mean() < ours.ratios.mean()


def test_reference_multi_targeted_returns_the_best_scored_target():
  # Logit 1 is easy to raise by softmax, logit 2 is not: one step decides.
  weights = jnp.array([[0.0, 3.0, 1.0]])

  def logits_fn(inputs):
    return inputs.reshape(len(inputs), 1) @ weights

  batch = Batch(jnp.full((2, 1, 1, 1), 0.5), jnp.zeros(2, int))
  points = reference.multi_targeted(
    logits_fn, batch, KEY, epsilon=0.1, num_classes=3
  )
  chex.assert_trees_all_close(points, jnp.full((2, 1, 1, 1), 0.6), atol=1e-6)
