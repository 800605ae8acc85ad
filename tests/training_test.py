"""The training step: against itself on other devices, and against NumPy."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import linen as nn

from robustlip import methods, released, training
from robustlip.images import AUGMENTATIONS
from robustlip.models import layers
from robustlip.types import DEVICES

STEPS, BATCH, SHAPE = 10, 8, (4, 4, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (80, *SHAPE), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, 80).astype(np.int32)


class Normalised(nn.Module):
  """A small network with BatchNorm."""

  @nn.compact
  def __call__(self, inputs, train=False):
    features = nn.Dense(8)(inputs.reshape(len(inputs), -1))
    features = layers.batch_norm(features, train=train)
    return nn.Dense(3)(jax.nn.relu(features))


class Dropping(nn.Module):
  """A small network with dropout."""

  @nn.compact
  def __call__(self, inputs, train=False):
    features = jax.nn.relu(nn.Dense(32)(inputs.reshape(len(inputs), -1)))
    features = nn.Dropout(0.5, deterministic=not train)(features)
    return nn.Dense(3)(features)


class Linear(nn.Module):
  """An affine network."""

  @nn.compact
  def __call__(self, inputs, train=False):
    return nn.Dense(3)(inputs.reshape(len(inputs), -1))


def settings(*seeds, **others):
  numbers = dict(learning_rate=0.05, epsilon=0.1, lam=1.0, beta=2.0, mu=1.0)
  numbers |= others
  columns = {k: np.full(len(seeds), v, np.float32) for k, v in numbers.items()}
  return methods.Settings(seed=np.array(seeds, np.uint32), **columns)


def recipe(method, module=None, **others):
  return training.Recipe(
    module=module or Normalised(),
    method=method,
    optimizer=training.optimizer(
      'sgd', momentum=0.9, milestones=(1,), steps_per_epoch=STEPS // 2
    ),
    augment=AUGMENTATIONS['crop4_flip'],
    **others,
  )


def order(runs, devices):
  seeds = [int(seed) for seed in runs.seed]
  orders = np.stack(
    [
      training.epoch_order(s, 0, num_examples=80, batch_size=BATCH)
      for s in seeds
    ]
  )
  return np.stack(np.split(orders, devices, axis=-1))


def train(plan, runs, *, devices, chunks=((0, STEPS),), data=(IMAGES, LABELS)):
  """States after some steps, without the device axis."""
  states = training.initial_state(plan, runs, SHAPE)
  copies = training.replicate((states, *data))
  if devices < jax.device_count():
    copies = jax.tree.map(lambda x: x[:devices], copies)
  states, images, labels = copies
  epoch = training.Epoch(images, labels, order(runs, devices))
  program = training.trainer(plan)
  for first, last in chunks:
    states = program(states, runs, epoch, first, last)
  return jax.tree.map(lambda x: x[0], states)


class TrainingTest(chex.TestCase):
  @parameterized.parameters(
    *methods.METHODS.values(),
    *(released.METHODS[m] for m in ('gr', 'llr', 'trades')),
  )
  def test_two_devices_are_one(self, method):
    assert jax.device_count() >= 2
    plan = recipe(method)
    one, two = (train(plan, settings(3), devices=d) for d in (1, 2))
    chex.assert_trees_all_close(one, two, rtol=2e-4, atol=2e-5)

  @parameterized.parameters(('rst', True), ('llr', False))
  def test_runs_together_are_runs_alone(self, name, turns):
    plan = recipe(methods.METHODS[name])
    with mock.patch.object(training, '_take_turns', lambda: turns):
      together = train(plan, settings(0, 1, 2), devices=1)
    for run in range(3):
      alone = train(plan, settings(run), devices=1)
      part = jax.tree.map(lambda x, r=run: x[r], together)
      chex.assert_trees_all_close(
        part, jax.tree.map(lambda x: x[0], alone), rtol=2e-4, atol=2e-5
      )

  def test_dispatches_do_not_change_a_bit(self):
    plan = recipe(methods.METHODS['rst'])
    whole = train(plan, settings(0), devices=1)
    parts = train(
      plan, settings(0), devices=1, chunks=((0, 1), (1, 7), (7, STEPS))
    )
    chex.assert_trees_all_equal(whole, parts)

  def test_every_step_draws_anew(self):
    # One image, no learning: the losses differ by the crops alone.
    same = np.repeat(IMAGES[:1], 80, axis=0), np.zeros(80, np.int32)
    plan = recipe(methods.METHODS['natural'], Linear())
    still = settings(0, learning_rate=0.0)
    sums = [
      train(plan, still, devices=1, chunks=((0, last),), data=same).loss_sum[0]
      for last in range(4)
    ]
    assert len(set(np.round(np.diff(sums), 5))) == 3

  def test_one_compilation_serves_all_dispatches(self):
    method = chex.assert_max_traces(methods.METHODS['rst'], n=1)
    chunks = ((0, 1), (1, 4), (4, STEPS))
    train(
      recipe(method), settings(0), devices=jax.device_count(), chunks=chunks
    )

  def test_accumulation_without_batch_norm_is_the_whole_batch(self):
    plan = functools.partial(recipe, methods.METHODS['rst'], Linear())
    whole = train(plan(), settings(0), devices=1)
    sliced = train(plan(accumulate=4), settings(0), devices=1)
    chex.assert_trees_all_close(whole, sliced, rtol=1e-4, atol=1e-5)

  @parameterized.parameters('llr', 'trades')
  def test_a_loss_compares_the_network_with_itself(self, name):
    runs = settings(0, epsilon=0.0, learning_rate=0.01)
    still = methods.Method(methods.stay, methods.METHODS[name](runs).loss)
    natural, same, fresh = (
      train(recipe(lambda _, m=m: m, Dropping(), **others), runs, devices=1)
      for m, others in [
        (methods.METHODS['natural'](runs), {}),
        (still, {}),
        (still, {'fresh_masks': True}),
      ]
    )
    chex.assert_trees_all_close(same.params, natural.params, atol=1e-6)
    kernels = (x.params['Dense_0']['kernel'] for x in (fresh, natural))
    assert np.abs(np.subtract(*kernels)).max() > 1e-4

  def test_attack_in_training_mode_uses_the_batch(self):
    plan = functools.partial(recipe, methods.METHODS['at'])
    inference = train(plan(), settings(0), devices=1)
    batch = train(plan(attack_in_training_mode=True), settings(0), devices=1)
    gap = np.abs(
      inference.params['Dense_1']['kernel'] - batch.params['Dense_1']['kernel']
    )
    assert gap.max() > 1e-4

  def test_natural_linear_training_is_numpy_softmax_regression(self):
    plan = recipe(methods.METHODS['natural'], Linear())._replace(
      augment=AUGMENTATIONS['none']
    )
    runs = settings(0)
    fresh = training.initial_state(plan, runs, SHAPE)
    dense = jax.tree.map(lambda x: np.float64(x[0]), fresh.params)['Dense_0']
    weights = np.vstack([dense['kernel'], dense['bias'][None]])
    velocity = np.zeros_like(weights)
    for step, chosen in enumerate(order(runs, 1)[0, 0]):
      inputs = IMAGES[chosen].reshape(BATCH, -1) / 255
      inputs = np.hstack([inputs, np.ones((BATCH, 1))])
      p = np.exp(inputs @ weights)
      p /= p.sum(axis=1, keepdims=True)
      slope = inputs.T @ (p - np.eye(3)[LABELS[chosen]]) / BATCH
      velocity = 0.9 * velocity + slope
      weights -= (0.05 if step < STEPS // 2 else 0.005) * velocity
    trained = train(plan, runs, devices=1).params['Dense_0']
    found = np.vstack([trained['kernel'][0], trained['bias']])
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-5)

  def test_batch_statistics_follow_the_loss_inputs(self):
    plan = recipe(methods.METHODS['natural'])._replace(
      augment=AUGMENTATIONS['none']
    )
    runs = settings(0, learning_rate=0.0)
    state = train(plan, runs, devices=1, chunks=((0, 1),))
    dense = jax.tree.map(np.asarray, state.params)['Dense_0']
    inputs = IMAGES[order(runs, 1)[0, 0, 0]].reshape(BATCH, -1) / 255
    features = inputs @ dense['kernel'][0] + dense['bias']
    found = state.batch_stats['BatchNorm_0']
    np.testing.assert_allclose(
      found['mean'][0], 0.1 * features.mean(0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      found['var'][0], 0.9 + 0.1 * features.var(0), rtol=1e-4
    )

  def test_a_loss_not_finite_is_dated(self):
    plan = recipe(methods.METHODS['natural'])
    state = train(plan, settings(0, learning_rate=1e38), devices=1)
    assert 0 < state.bad_step[0] < STEPS

  def test_milestones(self):
    plan = training.optimizer(
      'sgd', momentum=0.0, milestones=(2, 4), steps_per_epoch=10
    )

    @jax.vmap
    def rates(rate):
      tx = plan(rate)
      state, out = tx.init(jnp.zeros(())), []
      for _ in range(50):
        update, state = tx.update(jnp.ones(()), state)
        out.append(-update)
      return jnp.stack(out)

    found = rates(jnp.array([0.5, 1.0]))[0][jnp.array([0, 19, 20, 39, 40, 49])]
    np.testing.assert_allclose(
      found, [0.5, 0.5, 0.05, 0.05, 5e-3, 5e-3], rtol=1e-6
    )

  def test_adam_is_adam_of_that_momentum(self):
    tx = training.optimizer(
      'adam', momentum=0.8, milestones=(), steps_per_epoch=1
    )(0.1)
    gradients = jnp.arange(1.0, 4.0), jnp.array([-1.0, 2.0, -3.0])
    state, first, second = tx.init(gradients[0]), 0.0, 0.0
    for count, gradient in enumerate(gradients, start=1):
      update, state = tx.update(gradient, state)
      first = 0.8 * first + 0.2 * gradient
      second = 0.999 * second + 0.001 * gradient**2
      length = jnp.sqrt(second / (1 - 0.999**count)) + 1e-8
      expected = -0.1 * first / (1 - 0.8**count) / length
      chex.assert_trees_all_close(update, expected, rtol=1e-4)


def test_batch_norm_averages_over_devices():
  module = Normalised()
  inputs = jnp.asarray(IMAGES[:8], jnp.float32) / 255
  variables = module.init(jax.random.key(0), inputs)

  def apply(inputs):
    return module.apply(variables, inputs, train=True, mutable=['batch_stats'])

  logits, stats = apply(inputs)
  halves = jax.vmap(apply, axis_name=DEVICES)(inputs.reshape(2, 4, *SHAPE))
  chex.assert_trees_all_close(
    halves[0].reshape(8, 3), logits, rtol=1e-4, atol=1e-5
  )
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: x[0], halves[1]), stats, rtol=1e-4, atol=1e-5
  )


def test_an_epoch_takes_every_example_at_most_once():
  found = training.epoch_order(0, 0, num_examples=23, batch_size=5)
  assert found.shape == (4, 5)
  assert len(set(found.ravel())) == 20 and found.max() < 23
  again = training.epoch_order(0, 1, num_examples=23, batch_size=5)
  assert (found != again).any()
  with pytest.raises(ValueError, match='a batch of 24 needs'):
    training.epoch_order(0, 0, num_examples=23, batch_size=24)
