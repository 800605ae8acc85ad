"""Lipschitz estimates on networks whose constant is known."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from robustlip import attacks, lipschitz, methods, projections, released
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
  def test_a_lower_bound_close_to_the_norm(self):
    estimate = jax.jit(functools.partial(lipschitz.estimate, linear))
    for epsilon in (0.01, 0.1):
      ratios = estimate(INPUTS, KEY, epsilon=epsilon).ratios
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

  def test_l2_of_one_logit_is_the_length_of_its_weights(self):
    weights = np.random.default_rng(3).normal(size=INPUTS[0].size)
    weights = weights.astype(np.float32)

    def one(inputs):
      return inputs.reshape(len(inputs), -1) @ weights[:, None]

    found = lipschitz.estimate(one, INPUTS, KEY, epsilon=0.3, norm='l2')
    length = np.linalg.norm(weights)
    assert (found.ratios <= length * (1 + 1e-5)).all()
    np.testing.assert_allclose(found.ratios, length, rtol=0.01)
    assert (projections.norms(found.points - INPUTS, norm='l2') < 0.3001).all()

  def test_l2_of_moves_whose_squares_underflow(self):
    black = jnp.zeros_like(INPUTS)
    near = black.at[:, 0, 0].set(3e-25).at[:, 0, 1].set(4e-25)
    rise = np.abs(3e-25 * WEIGHTS[0] + 4e-25 * WEIGHTS[1]).sum()
    found = lipschitz.ratio(linear, black, near, norm='l2')
    np.testing.assert_allclose(found, rise / 5e-25, rtol=1e-5)

  @parameterized.parameters('linf', 'l2')
  def test_no_move_is_ratio_zero_with_zero_gradient(self, norm):
    values, gradient = jax.value_and_grad(
      lambda x: lipschitz.ratio(linear, INPUTS, x, norm=norm).sum()
    )(INPUTS)
    assert values == 0
    chex.assert_tree_all_finite(gradient)

  def test_a_network_that_is_not_finite_has_no_ratio(self):
    def broken(inputs):
      return linear(inputs) * jnp.nan

    for keep in ('best', 'last'):
      found = lipschitz.estimate(broken, INPUTS, KEY, epsilon=0.1, keep=keep)
      assert np.isnan(found.ratios).all()

  def test_the_published_schedule(self):
    pixel = INPUTS[:, :1, :1]
    points = lipschitz.estimate(
      lambda x: x.reshape(len(x), 1) ** 2,  # the ratio is x + x'
      pixel,
      KEY,
      epsilon=0.1,
      num_steps=1,
      start=pixel + 0.01,
    ).points
    chex.assert_trees_all_close(points, pixel + 0.03, atol=1e-6)
    defaults = inspect.signature(lipschitz.estimate).parameters
    assert defaults['num_steps'].default == 10

  def test_images_of_bytes_are_refused(self):
    pixels = jnp.full(INPUTS.shape, 10, jnp.uint8)
    with pytest.raises(ValueError, match='uint8; images of bytes'):
      lipschitz.ratio(linear, pixels, pixels + 10)

  def test_logits_of_other_images_are_refused(self):
    with pytest.raises(ValueError, match='each of . images, got 1 and 1'):
      lipschitz.ratio(lambda x: linear(x[:1]), INPUTS, 1 - INPUTS)

  def test_the_released_procedure_descends(self):
    start = jnp.clip(INPUTS + 0.02, 0, 1)
    before = lipschitz.ratio(linear, INPUTS, start)
    theirs = released.lipschitz_estimate(linear, INPUTS, KEY, epsilon=0.1)
    ours = lipschitz.estimate(linear, INPUTS, KEY, epsilon=0.1)
    assert theirs.ratios.mean() < before.mean() < ours.ratios.mean()

  @parameterized.parameters(0.5, 0.0)  # black: half the start is out of the box
  def test_the_released_procedure_takes_ten_short_steps(self, level):
    def shallow(inputs):  # the ratio falls along every pixel, however far
      return -jnp.exp(-5 * inputs.reshape(len(inputs), -1)) @ jnp.abs(WEIGHTS)

    def ratio(points):
      rise = jnp.abs(shallow(inputs) - shallow(points)).sum(1)
      return rise / jnp.abs(inputs - points + 1e-6).reshape(6, 4).max(1)

    inputs = jnp.full_like(INPUTS, level)
    found = released.lipschitz_estimate(shallow, inputs, KEY, epsilon=0.1)
    points = methods.gaussian_start(inputs, KEY)
    for _ in range(10):
      slope = jax.grad(lambda points: ratio(points).sum())(points)
      points = jnp.clip(points - 0.003 * jnp.sign(slope), 0.0, 1.0)
    chex.assert_trees_all_close(found.points, points, atol=1e-6)
    chex.assert_trees_all_close(found.ratios, ratio(points), rtol=1e-5)


def test_released_multi_targeted_returns_the_best_scored_target():
  # Towards class 1 the pixel brightens: its softmax grows, no logit passes that
  # of the label. Towards 2 it darkens, and class 3 passes the label instead.
  def logits_fn(inputs):
    x = inputs.reshape(len(inputs), 1) - 0.5
    return jnp.concatenate(
      [0 * x, 5 * x - 1.0, -x - 3.0, -15 * x - 1.2, -15 * x - 1.2], axis=1
    )

  batch = Batch(jnp.full((2, 1, 1, 1), 0.5), jnp.zeros(2, int))
  run = dict(epsilon=0.1, num_classes=5)
  theirs = released.multi_targeted(logits_fn, batch, KEY, **run)
  worst = attacks.multi_targeted(logits_fn, batch, KEY, **run)
  chex.assert_trees_all_close(worst, jnp.full((2, 1, 1, 1), 0.4), atol=1e-6)
  chex.assert_trees_all_close(theirs, jnp.full((2, 1, 1, 1), 0.6), atol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_an_image_in_a_corner_of_the_box_has_a_constant_too(norm):
  corners = jnp.array([[0.0, 0.0], [1.0, 0.0]] * 100).reshape(200, 1, 1, 2)

  def two_logits(inputs):
    return inputs.reshape(len(inputs), 2) @ jnp.array([[3.0, -1.0], [1.0, 2.0]])

  found = lipschitz.estimate(two_logits, corners, KEY, epsilon=0.1, norm=norm)
  assert (found.ratios > 0).all()
  moves = np.reshape(found.points - corners, (200, 2))
  lengths = np.linalg.norm(moves, axis=1, ord=np.inf if norm == 'linf' else 2)
  assert lengths.max() <= 0.1 * (1 + 1e-6)
  assert ((found.points >= 0) & (found.points <= 1)).all()
