"""Averages and the perturbation of parameters, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustlip import parameters

UPDATES = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
PATH = 1 + np.cumsum(UPDATES, axis=0)  # what the parameters become of ones


def averages(transformation):
  """The average after each update, [T, 3]."""
  optimizer = optax.chain(optax.scale(1.0), transformation)
  params, found = {'w': jnp.ones(3)}, []
  state = optimizer.init(params)
  for update in UPDATES:
    updates, state = optimizer.update({'w': jnp.asarray(update)}, state, params)
    params = optax.apply_updates(params, updates)
    found.append(parameters.average(state)['w'])
  np.testing.assert_allclose(params['w'], PATH[-1], rtol=1e-5)
  return np.stack(found)


@pytest.mark.parametrize('decay', [0.6, 0.99])
def test_ema_by_hand(decay):
  average, expected = np.ones(3), []
  for t, params in enumerate(PATH, start=1):
    kept = min(decay, (1 + t) / (10 + t))
    average = kept * average + (1 - kept) * params
    expected.append(average)
  found = averages(parameters.ema(decay))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('first, every', [(0, 1), (10, 4), (12, 4), (40, 4)])
def test_swa_is_the_mean_of_those_taken(first, every):
  found = averages(parameters.swa(first, every=every))
  for t in range(1, len(PATH) + 1):
    taken = [PATH[s - 1] for s in range(first + 1, t + 1) if s % every == 0]
    expected = np.mean(taken, axis=0) if taken else PATH[t - 1]
    np.testing.assert_allclose(found[t - 1], expected, rtol=1e-5, atol=1e-6)


def test_numbers_that_average_nothing_are_refused():
  for decay in (-0.1, 1.0):
    with pytest.raises(ValueError, match='decay must be at least 0'):
      parameters.ema(decay)
  with pytest.raises(ValueError, match='every at least 1, got 10, 0'):
    parameters.swa(10, every=0)
  with pytest.raises(ValueError, match='first must be at least 0'):
    parameters.swa(-5)


def test_an_optimizer_without_an_average_has_none():
  state = optax.sgd(0.1, momentum=0.9).init({'average': jnp.ones(3)})
  assert parameters.average(state) is None


def test_the_perturbation_is_the_steepest_of_its_length():
  key = jax.random.key(0)
  shapes = {'conv': (3, 3, 2, 4), 'dense': (5, 6), 'bias': (6,), 'flat': (2, 2)}
  draw = lambda key: {k: jax.random.normal(key, s) for k, s in shapes.items()}  # noqa: E731
  params, slopes = (draw(jax.random.fold_in(key, i)) for i in range(2))
  slopes['flat'] = jnp.zeros((2, 2))
  moves = jax.tree.map(
    np.float64, parameters.perturbation(params, slopes, gamma=0.01)
  )
  for name in ('conv', 'dense'):
    size, slope = np.linalg.norm(moves[name]), np.float64(slopes[name])
    assert size == pytest.approx(0.01 * np.linalg.norm(params[name]), rel=1e-5)
    rise = (moves[name] * slope).sum()
    assert rise == pytest.approx(size * np.linalg.norm(slope), rel=1e-5)
  chex.assert_trees_all_equal(
    [moves['bias'], moves['flat']], [np.zeros(6), np.zeros((2, 2))]
  )
  tiny = jax.tree.map(lambda x: 1e-25 * x, slopes)  # its squares are 0
  found = parameters.perturbation(params, tiny, gamma=0.01)
  chex.assert_trees_all_close(found['dense'], moves['dense'], rtol=1e-5)


def test_an_average_of_half_precision_is_kept_in_float32():
  params = {'w': jnp.ones(3, jnp.bfloat16)}
  optimizer = optax.chain(optax.sgd(0.1), parameters.ema(0.9))
  state = optimizer.init(params)
  _, again = optimizer.update(params, state, params)
  chex.assert_trees_all_equal_dtypes(again, state)
  assert parameters.average(again)['w'].dtype == jnp.float32
