"""Losses against values computed by hand and against each other."""

from functools import partial
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import special, stats

from robustlip import attacks, losses, methods, projections, released
from robustlip.types import Batch

WEIGHTS = np.random.default_rng(0).normal(size=(6, 3))
INPUTS = np.random.default_rng(1).uniform(0.3, 0.7, (5, 6, 1, 1))
POINTS = INPUTS + np.random.default_rng(2).uniform(-0.1, 0.1, INPUTS.shape)
LABELS = np.array([0, 1, 2, 1, 0])
BATCH = Batch(jnp.asarray(INPUTS, jnp.float32), jnp.asarray(LABELS))
MOVED = jnp.asarray(POINTS, jnp.float32)
KEY = jax.random.key(0)


def linear(inputs):
  return inputs.reshape(len(inputs), -1) @ WEIGHTS.astype(np.float32)


def quadratic(inputs):
  return linear(inputs) ** 2


def softmax(x):
  return special.softmax(x.reshape(5, 6) @ WEIGHTS, axis=1)


def cross_entropy(x):
  return -np.log(softmax(x)[np.arange(5), LABELS])


def slope():
  """The derivative of the cross entropy from INPUTS towards POINTS."""
  rise = softmax(INPUTS) - np.eye(3)[LABELS]
  return ((POINTS - INPUTS).reshape(5, 6) @ WEIGHTS * rise).sum(axis=1)


CLEAN, ATTACKED = cross_entropy(INPUTS), cross_entropy(POINTS)
EXPECTED = {
  'natural': CLEAN,
  'at': ATTACKED,
  'rst': CLEAN + 2 * ATTACKED,
  'trades': CLEAN + 2 * stats.entropy(softmax(INPUTS), softmax(POINTS), axis=1),
  'gr': CLEAN + ((ATTACKED - CLEAN) / 0.5) ** 2,
  'llr': CLEAN + 2 * np.abs(ATTACKED - CLEAN - slope()) + 3 * np.abs(slope()),
}
SETTINGS = {
  'natural': {},
  'at': {},
  'rst': dict(lam=2.0),
  'trades': dict(beta=2.0),
  'gr': dict(lam=2.0, step_size=0.5),
  'llr': dict(lam=2.0, mu=3.0),
}
EPSILON = 0.1


WEIGHTED = {
  'rst': dict(lam=2.0),
  'trades': dict(beta=5.0),
  'gr': dict(lam=2.0),
  'llr': dict(lam=2.0, mu=7.0),
}
BY_METHOD = EXPECTED | {
  'trades': CLEAN + 5 / 2 * (EXPECTED['trades'] - CLEAN),
  'gr': CLEAN + (ATTACKED - CLEAN) ** 2,  # a step of length 1
  'llr': EXPECTED['llr'] + 4 * np.abs(slope()),
}


def method(name, **weights):
  return released.METHODS[name](epsilon=EPSILON, **weights)


class MethodsTest(chex.TestCase):
  @parameterized.parameters(*BY_METHOD)
  def test_each_weight_is_its_own(self, name):
    loss = method(name, **WEIGHTED.get(name, {})).loss
    chex.assert_trees_all_close(
      loss(linear, BATCH, MOVED), BY_METHOD[name], rtol=1e-4
    )

  def test_the_probe_of_gr_is_as_long_as_its_divisor(self):
    points = method('gr').maximize(linear, BATCH, None)
    lengths = projections.norms(points - BATCH.inputs, norm='l2')
    chex.assert_trees_all_close(lengths, jnp.full(5, 1.0), rtol=1e-5)

  @parameterized.parameters(
    # Steps, and their length in units of the radius.
    ('at', 10, 1 / 5),
    ('rst', 10, 1 / 5),
    ('trades', 10, 1 / 5),
    ('llr', 2, 1 / 2),
  )
  def test_the_schedule_of_each_attack(self, name, num_steps, step):
    ascend = mock.Mock(wraps=attacks.ascend)
    with (
      mock.patch('robustlip.attacks.ascend', ascend),
      mock.patch('robustlip.attacks.gradient.ascend', ascend),
    ):
      method(name).maximize(linear, BATCH, KEY)
    settings = ascend.call_args.kwargs
    assert settings['num_steps'] == num_steps
    assert settings['epsilon'] == EPSILON
    np.testing.assert_allclose(settings['step_size'], EPSILON * step)


class LossesTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*EXPECTED)
  def test_value(self, name):
    loss = self.variant(
      lambda batch, points: getattr(losses, name)(
        linear, batch, points, **SETTINGS[name]
      )
    )
    chex.assert_trees_all_close(loss(BATCH, MOVED), EXPECTED[name], rtol=1e-4)

  def test_margins_by_hand(self):
    logits = jnp.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    margins = losses.margins(logits, jnp.array([1, 2]))
    chex.assert_trees_all_equal(margins, jnp.array([-2.0, 2.0]))

  def test_a_class_that_is_never_predicted_adds_nothing(self):
    def total(weight, loss, *never):
      def logits_fn(inputs):
        others = [jnp.full((len(inputs), 1), value) for value in never]
        return jnp.concatenate([weight * linear(inputs), *others], axis=1)

      return loss(logits_fn, BATCH, MOVED).sum()

    for name, settings in SETTINGS.items():
      loss = partial(getattr(losses, name), **settings)
      value_and_grad = jax.value_and_grad(total)
      masked = value_and_grad(jnp.float32(1.1), loss, -jnp.inf)
      plain = value_and_grad(jnp.float32(1.1), loss)
      chex.assert_trees_all_close(masked, plain, rtol=1e-5)

  def test_who_is_classified_correctly(self):
    nan, inf = np.nan, np.inf
    for row, expected in (
      ([1.0, 2.0, 3.0], True),
      ([-inf, -inf, 3.0], True),
      ([3.0, 2.0, -inf], False),
      ([nan, 2.0, 3.0], False),
      ([1.0, 2.0, inf], False),
      ([-inf, -inf, -inf], False),
    ):
      found = losses.correct(jnp.array([row]), jnp.array([2]))
      assert bool(found[0]) == expected, row

  def test_labels_out_of_range_make_a_traced_loss_nan(self):
    labels = jnp.array([0, 1, -1, 3, 2])
    expected = np.array([False, False, True, True, False])
    for loss in (losses.cross_entropy, losses.log_odds, losses.margins):
      values = jax.jit(loss)(linear(BATCH.inputs), labels)
      np.testing.assert_array_equal(np.isnan(values), expected)

  def test_gradient_step_has_its_length_and_direction(self):
    points = losses.gradient_step(linear, BATCH, step_size=0.25)
    rise = softmax(INPUTS) - np.eye(3)[LABELS]
    gradient = rise @ WEIGHTS.T
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    expected = INPUTS.reshape(5, 6) + 0.25 * gradient
    chex.assert_trees_all_close(points.reshape(5, 6), expected, atol=1e-5)

  def test_nonlinearity_is_the_remainder_of_the_expansion(self):
    objective = losses.nonlinearity(linear, BATCH)
    expected = np.abs(ATTACKED - CLEAN - slope())
    np.testing.assert_allclose(objective(MOVED), expected, atol=1e-5)

  def test_cross_entropy_is_softplus_of_the_log_odds(self):
    odds = losses.log_odds(linear(BATCH.inputs), BATCH.labels)
    chex.assert_trees_all_close(jax.nn.softplus(odds), CLEAN, rtol=1e-5)

  @parameterized.parameters(0.0, 30.0, 60.0, 200.0)
  def test_the_step_of_gr_has_its_length_however_certain(self, certainty):
    def certain(inputs):
      return linear(inputs) + certainty * jax.nn.one_hot(BATCH.labels, 3)

    points = losses.gradient_step(certain, BATCH, step_size=0.5)
    lengths = projections.norms(points - BATCH.inputs, norm='l2')
    chex.assert_trees_all_close(lengths, jnp.full(5, 0.5), rtol=1e-5)

  def test_the_inner_problem_of_trades_rises(self):
    objective = losses.divergence(quadratic, BATCH)
    points = method('trades').maximize(quadratic, BATCH, KEY)
    start = methods.gaussian_start(BATCH.inputs, KEY)
    assert (objective(points) > 5 * objective(start)).all()

  def test_the_inner_problem_of_llr_rises(self):
    objective = losses.nonlinearity(quadratic, BATCH)
    points = method('llr').maximize(quadratic, BATCH, KEY)
    start = projections.random_start(BATCH.inputs, KEY, epsilon=0.1)
    assert objective(points).mean() > 1.5 * objective(start).mean()

  def test_gradients_reach_both_distributions_of_trades(self):
    def divergence(weights):
      def logits_fn(inputs):
        return inputs.reshape(5, 6) @ weights

      whole = losses.trades(logits_fn, BATCH, MOVED, beta=1.0)
      return (whole - losses.natural(logits_fn, BATCH, MOVED)).sum()

    gradient = jax.grad(divergence)(jnp.asarray(WEIGHTS, jnp.float32))
    step = 1e-3 * np.random.default_rng(3).normal(size=WEIGHTS.shape)

    def exact(weights):
      p, q = (
        special.softmax(x.reshape(5, 6) @ weights, 1) for x in (INPUTS, POINTS)
      )
      return stats.entropy(p, q, axis=1).sum()

    rise = exact(WEIGHTS + step) - exact(WEIGHTS - step)
    np.testing.assert_allclose((gradient * step).sum() * 2, rise, rtol=1e-2)


class ReleasedTest(chex.TestCase):
  def test_llr_takes_two_steps_along_the_gradient_over_its_largest_part(self):
    weights = np.array([1.0, -0.5, 0.25, 0.0, 2.0, -1.0], np.float32)

    def two(inputs):  # the gradient of the label's cross entropy is along these
      score = inputs.reshape(5, 6) @ weights
      return jnp.stack([score, -score], axis=1)

    labels = jnp.array([0, 1, 0, 1, 0])
    points = method('llr_released').maximize(
      two, Batch(BATCH.inputs, labels), KEY
    )
    away = np.where(labels == 0, -1, 1)[:, None] * weights / 2  # by the largest
    start = methods.gaussian_start(BATCH.inputs, KEY) - BATCH.inputs
    moved = 0.1 * away + np.reshape(start, (5, 6))
    moved *= np.minimum(1, 0.1 / np.abs(moved).max(axis=1))[:, None]
    expected = INPUTS.reshape(5, 6) + moved
    chex.assert_trees_all_close(np.reshape(points, (5, 6)), expected, atol=1e-5)

  def test_trades_starts_outside_of_the_box(self):
    def divergence(points):
      p, q = (jax.nn.log_softmax(linear(x)) for x in (dark, points))
      return (jnp.exp(p) * (p - q)).sum()

    dark = jnp.zeros_like(BATCH.inputs)
    points = method('trades_released').maximize(
      linear, Batch(dark, BATCH.labels), KEY
    )
    expected = methods.gaussian_start(dark, KEY)
    for _ in range(10):
      expected += 0.02 * jnp.sign(jax.grad(divergence)(expected))
      expected = jnp.clip(expected, 0.0, 0.1)
    chex.assert_trees_all_close(points, expected, atol=1e-6)

  @parameterized.parameters('llr_released', 'trades_released')
  def test_an_inner_problem_has_a_radius_for_each_example(self, name):
    radii = np.array([0.0, 0.01, 0.1], np.float32)
    inputs = jnp.full((3, 2, 1, 3), 0.5)  # as many channels as examples

    def points(inputs, epsilon):
      maximize = released.METHODS[name](epsilon=epsilon).maximize
      return maximize(linear, Batch(inputs, BATCH.labels[:3]), KEY)

    moved = jnp.abs(points(inputs, radii) - inputs).max(axis=(1, 2))
    np.testing.assert_allclose(moved.max(axis=1), radii, atol=2e-3)
    for bad in ((inputs, 8.0), (inputs, -0.1), (inputs * 3, 0.1)):
      with pytest.raises(ValueError, match='must be'):
        points(*bad)

  def test_losses_call_the_network_as_the_released_code_does(self):
    called = []

    def recorded(inputs):
      called.append('x' if inputs is BATCH.inputs else "x'")
      return linear(inputs)

    loss = method('trades_released', beta=5.0).loss(recorded, BATCH, MOVED)
    divergence = (EXPECTED['trades'] - CLEAN) / SETTINGS['trades']['beta']
    chex.assert_trees_all_close(loss, CLEAN + 5 * divergence, rtol=1e-4)
    losses.rst(recorded, BATCH, MOVED, lam=1.0)
    assert called == ['x', "x'", 'x'] + ["x'", 'x']

  def test_gr_counts_the_clean_loss_twice(self):
    theirs = method('gr_released', lam=1.0)
    points = theirs.maximize(linear, BATCH, KEY)
    moved = cross_entropy(np.asarray(points, np.float64))
    expected = 2 * CLEAN + 0.5 * (moved - CLEAN) ** 2
    chex.assert_trees_all_close(
      theirs.loss(linear, BATCH, points), expected, rtol=1e-4
    )

  def test_llr_is_a_weighted_attack_loss(self):
    theirs = method('llr_released', lam=4.0)
    points = theirs.maximize(linear, BATCH, KEY)
    assert np.abs(points - INPUTS).max() <= 0.1 + 1e-6
    moved = cross_entropy(np.asarray(points, np.float64))
    assert (moved > CLEAN).all()
    chex.assert_trees_all_close(
      theirs.loss(linear, BATCH, points), CLEAN + 4 * moved, rtol=1e-4
    )


def test_smoothed_and_mixed_labels_weigh_the_cross_entropies():
  labels, others = np.array([0, 2, 1, 5]), np.array([1, 2, 0, 1])
  own = np.float32([0.75, 0.5, 1.0, 1.0])
  logits = jax.random.normal(KEY, (4, 3))
  shares = losses.shares_of_classes(
    labels, 3, others=others, own=own, smoothing=0.1
  )
  found = losses.cross_entropy(logits, shares)
  of_class = -np.asarray(jax.nn.log_softmax(logits))
  for i in range(3):
    mixed = own[i] * of_class[i, labels[i]]
    mixed += (1 - own[i]) * of_class[i, others[i]]
    expected = 0.9 * mixed + 0.1 * of_class[i].mean()
    assert found[i] == pytest.approx(expected, rel=1e-5)
  assert np.isnan(found[3])  # no class
  with pytest.raises(ValueError, match='integers'):
    losses.cross_entropy(logits, shares[:, :2])
  never = logits[:1].at[0, 2].set(-jnp.inf)  # a class that has no share
  found = losses.cross_entropy(never, jnp.float32([[0.75, 0.25, 0]]))
  of_class = -np.asarray(jax.nn.log_softmax(never[0, :2]))
  np.testing.assert_allclose(found, of_class @ [0.75, 0.25], rtol=1e-6)
