"""Inputs from public reports that once gave a wrong number without a word.

Each is named for its kind; the right value is a closed form, or that of the
same function written safely. Those that need files or scripts are in
`field_files_test`.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustlip import attacks, evaluation, lipschitz, losses, methods, released
from robustlip.datasets import Split
from robustlip.types import Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 3, 3, 1), np.uint8)
INPUTS = jnp.float32(IMAGES) / 255
WEIGHTS = jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32)


def linear(inputs):
  return inputs.reshape(len(inputs), -1) @ WEIGHTS


LABELS = np.asarray(linear(INPUTS).argmax(-1), np.int32)
SPLIT, BATCH = Split(IMAGES, LABELS), Batch(INPUTS, jnp.asarray(LABELS))


def measure(network, epsilon=0.1, split=SPLIT, key=KEY, batch_size=40):
  """(robust [N], ratios [N]) of a network without variables."""
  evaluator = evaluation.Evaluator(
    lambda _: network,
    cascade=attacks.cascade('pgd', epsilon=epsilon, num_classes=3),
    ratios={
      'eq3': lambda *args: lipschitz.estimate(*args, epsilon=epsilon).ratios
    },
    batch_size=batch_size,
  )
  robust = evaluator.accuracies({}, split, key).robust
  return robust, evaluator.lipschitz({}, split, key)['eq3']


def srgb(values, safe):
  """A front end; unsafe, its unused branch has an infinite slope at 0."""
  dark = values <= 0.0031308
  base = jnp.where(dark, 1.0, values) if safe else values
  return jnp.where(dark, 12.92 * values, 1.055 * base ** (1 / 2.4) - 0.055)


def test_a_gradient_that_is_not_finite_is_not_charged_to_the_network():
  black = Split(np.where(IMAGES < 128, 0, IMAGES).astype(np.uint8), LABELS)
  found = {
    safe: measure(lambda x, s=safe: linear(srgb(x, s)), 0.005, black)
    for safe in (True, False)
  }
  assert np.isfinite(found[False][1]).all()
  # Where the gradient is NaN the pixel stays: no more than the safe attack.
  assert (found[False][0] >= found[True][0]).all()
  assert found[False][0].any()
  doubts = evaluation.doubts(
    lambda _: lambda x: linear(srgb(x, False)), {}, black, KEY
  )
  assert doubts['nonfinite_gradients'] > 0


@settings(max_examples=20, deadline=None)
@given(
  scale=st.floats(-30, 30),
  power=st.floats(0.1, 3.0),
  epsilon=st.floats(0.0, 1.0),
  norm=st.sampled_from(['linf', 'l2']),
)
def test_no_finite_network_moves_a_point_out_of_its_ball(
  scale, power, epsilon, norm
):
  def wild(inputs):  # infinite slopes at 0, huge ones elsewhere
    return linear(jnp.abs(inputs - 0.5) ** power * jnp.exp(scale))

  points = attacks.pgd(wild, BATCH, KEY, epsilon=epsilon, norm=norm)
  assert np.isfinite(points).all()
  moved = np.linalg.norm(
    np.reshape(points - INPUTS, (40, -1)),
    np.inf if norm == 'linf' else 2,
    axis=1,
  )
  assert (moved <= epsilon * (1 + 1e-5) + 1e-6).all()
  assert points.min() >= 0 and points.max() <= 1


def test_a_class_that_is_never_predicted_is_legal():
  def masked(inputs):
    return linear(inputs) + jnp.array([[0.0, 0.0, -jnp.inf]])

  def without(inputs):
    return linear(inputs)[:, :2]

  two = Split(IMAGES, np.asarray(without(INPUTS).argmax(-1), np.int32))
  chex.assert_trees_all_equal(
    measure(masked, split=two)[0], measure(without, split=two)[0]
  )
  batch = Batch(INPUTS, jnp.asarray(two.labels))
  points = attacks.pgd(without, batch, KEY, epsilon=0.1)
  chex.assert_trees_all_close(
    losses.trades(masked, batch, points, beta=2.0),
    losses.trades(without, batch, points, beta=2.0),
    rtol=1e-5,
  )
  chex.assert_trees_all_close(
    lipschitz.ratio(masked, INPUTS, points),
    lipschitz.ratio(without, INPUTS, points),
    rtol=1e-5,
  )


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf])
def test_logits_that_are_no_numbers_classify_nothing(value):
  def broken(inputs):
    return linear(inputs).at[:, 2].set(value)

  right = Split(IMAGES, np.full(40, 2, np.int32))
  assert not measure(broken, split=right)[0].any()
  ratios = lipschitz.ratio(broken, INPUTS, jnp.clip(INPUTS + 0.01, 0, 1))
  assert np.isnan(ratios).all()


def test_keys_of_another_generator_are_those_of_threefry():
  key = jax.random.key(3, impl='rbg')
  found = [measure(linear, key=key, batch_size=size)[0] for size in (40, 7, 1)]
  chex.assert_trees_all_equal(*found)
  one, many = (
    attacks.pgd(linear, Batch(*(x[:n] for x in BATCH)), keys[:n], epsilon=0.1)
    for n in (1, 40)
    for keys in [jax.random.split(key, 40)]
  )
  chex.assert_trees_all_close(one, many[:1], atol=1e-6)


def test_scaled_images_never_read_as_robust_or_smooth():
  standardised = (INPUTS - 0.5) / 0.25
  batch = Batch(standardised, BATCH.labels)
  attack = functools.partial(attacks.pgd, linear, epsilon=0.1)
  estimate = functools.partial(lipschitz.estimate, linear, epsilon=0.1)
  with pytest.raises(ValueError, match=r'in \[0, 1\]'):
    attack(batch, KEY)
  with pytest.raises(ValueError, match=r'in \[0, 1\]'):
    estimate(standardised, KEY)
  outside = np.asarray((standardised < 0) | (standardised > 1)).any((1, 2, 3))
  points = jax.jit(attack)(batch, KEY)
  assert np.isnan(points[outside]).all()
  assert not losses.correct(linear(points), batch.labels)[outside].any()
  assert np.isnan(jax.jit(estimate)(standardised, KEY).ratios[outside]).all()
  jitted = jax.jit(
    functools.partial(released.lipschitz_estimate, linear, epsilon=0.1)
  )
  assert np.isnan(jitted(standardised, KEY).ratios[outside]).all()


@pytest.mark.parametrize('labels', [LABELS + 1, 2 * LABELS - 1])
def test_labels_that_are_no_classes_are_refused(labels):
  with pytest.raises(ValueError, match='labels'):
    measure(linear, split=Split(IMAGES, labels.astype(np.int32)))
  loss = jax.jit(lambda labels: losses.cross_entropy(linear(INPUTS), labels))
  wrong = (labels < 0) | (labels > 2)
  assert (np.isnan(loss(jnp.asarray(labels))) == wrong).all()


def test_outputs_that_are_probabilities_are_said():
  def ends_in_softmax(inputs):
    return jax.nn.softmax(1000 * linear(inputs))

  doubts = evaluation.doubts(lambda _: ends_in_softmax, {}, SPLIT, KEY)
  assert doubts['probabilities'] == 1
  assert evaluation.doubts(lambda _: linear, {}, SPLIT, KEY) == {
    name: 0 for name in doubts
  }


def test_input_gradients_that_are_exactly_zero_are_said():
  def quantised(inputs):
    return linear(jnp.round(15 * inputs) / 15)

  doubts = evaluation.doubts(lambda _: quantised, {}, SPLIT, KEY)
  assert doubts['zero_gradients'] == 1


def test_a_network_that_draws_is_said():
  draws = iter(jax.random.split(KEY, 1000))

  def network(inputs):
    def noise(_):
      return np.asarray(
        jax.random.normal(next(draws), (len(inputs), 3)), np.float32
      )

    shape = jax.ShapeDtypeStruct((len(inputs), 3), jnp.float32)
    return linear(inputs) + jax.lax.stop_gradient(
      jax.pure_callback(noise, shape, jax.lax.stop_gradient(inputs))
    )

  doubts = evaluation.doubts(lambda _: network, {}, SPLIT, KEY)
  assert doubts['randomness'] > 0


@pytest.mark.parametrize('norm, largest', [('linf', 1.0), ('l2', 3.0)])
def test_a_radius_is_a_number_or_one_per_example(norm, largest):
  attack = functools.partial(attacks.pgd, linear, BATCH, KEY, norm=norm)
  if norm == 'linf':  # in l2 a radius may exceed the range of a pixel
    with pytest.raises(ValueError, match='at most'):
      attack(epsilon=1.01)
  with pytest.raises(ValueError, match='one per example'):
    attack(epsilon=jnp.full(3, 0.1))  # as many as classes
  radii = jnp.linspace(0, largest, 40)
  points = attack(epsilon=radii)
  for i in (0, 20, 39):
    single = attacks.pgd(
      linear,
      Batch(*(x[i : i + 1] for x in BATCH)),
      jax.random.split(KEY, 40)[i : i + 1],
      epsilon=float(radii[i]),
      norm=norm,
    )
    chex.assert_trees_all_close(points[i : i + 1], single, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_images_in_half_precision_are_refused(dtype):
  with pytest.raises(ValueError, match='float32'):
    attacks.pgd(
      linear, Batch(INPUTS.astype(dtype), BATCH.labels), KEY, epsilon=0.1
    )


def test_a_network_in_half_precision_is_said():
  half = lambda x: linear(x).astype(jnp.bfloat16)  # noqa: E731
  doubts = evaluation.doubts(lambda _: half, {}, SPLIT, KEY)
  assert doubts['half_precision'] == 1


@pytest.mark.parametrize('wrap', [lambda x: (x, x), lambda x: {'logits': x}])
def test_a_network_that_returns_more_than_logits_is_one_line(wrap):
  with pytest.raises(ValueError, match='must return logits'):
    attacks.pgd(lambda x: wrap(linear(x)), BATCH, KEY, epsilon=0.1)
  with pytest.raises(ValueError, match='must return logits'):
    lipschitz.estimate(lambda x: wrap(linear(x)), INPUTS, KEY, epsilon=0.1)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_an_empty_batch_is_one_line(norm):
  empty = Batch(INPUTS[:0], BATCH.labels[:0])
  with pytest.raises(ValueError, match='no images'):
    attacks.pgd(linear, empty, KEY, epsilon=0.1, norm=norm)
  with pytest.raises(ValueError, match='no images'):
    lipschitz.estimate(linear, empty.inputs, KEY, epsilon=0.1)


def test_the_value_out_of_range_is_seen_in_the_message():
  with pytest.raises(ValueError, match='1.0000001'):
    images = INPUTS.at[0, 0, 0, 0].set(np.float32(1.0000001))
    attacks.pgd(linear, Batch(images, BATCH.labels), KEY, epsilon=0.1)


@pytest.mark.parametrize('targets', [LABELS, LABELS + 3, LABELS - 4])
def test_targets_are_other_classes(targets):
  with pytest.raises(ValueError, match='target'):
    attacks.apgd(
      linear,
      BATCH,
      KEY,
      epsilon=0.1,
      targets=jnp.asarray(targets),
      num_steps=2,
    )


def test_a_step_size_may_be_a_numpy_number_under_x64():
  with jax.enable_x64():
    points = attacks.pgd(
      linear, BATCH, KEY, epsilon=np.float64(0.1), step_size=np.float64(0.02)
    )
  assert points.dtype == jnp.float32


def test_training_images_are_bytes():
  method = methods.at(epsilon=0.1)
  with pytest.raises(ValueError, match='float32'):
    method.maximize(linear, Batch(jnp.asarray(IMAGES), BATCH.labels), KEY)
