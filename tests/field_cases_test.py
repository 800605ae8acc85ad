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
import optax
import pytest
from evaluation_test import evaluator, of_stages
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from training_test import Linear, Normalised

from robustlip import (
  attacks,
  bounds,
  doubts,
  lipschitz,
  losses,
  methods,
  released,
  separation,
  training,
)
from robustlip.datasets import Dataset, Split
from robustlip.images import check_labels
from robustlip.models import layers
from robustlip.types import DEVICES, Batch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 3, 3, 1), np.uint8)
INPUTS = jnp.float32(IMAGES) / 255
WEIGHTS = jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32)


def linear(inputs):
  return inputs.reshape(len(inputs), -1) @ WEIGHTS


LABELS = np.asarray(linear(INPUTS).argmax(-1), np.int32)
CHANNELS_FIRST = np.zeros((40, 3, 16, 16), np.uint8)
SPLIT, BATCH = Split(IMAGES, LABELS), Batch(INPUTS, jnp.asarray(LABELS))


def measure(network, epsilon=0.1, split=SPLIT, key=KEY):
  """(robust [N], ratios [N]) of a network without variables."""
  num_classes = jax.eval_shape(network, INPUTS).shape[-1]
  settings = dict(epsilon=epsilon, num_classes=num_classes, batch_size=40)
  both = evaluator(network, **settings)
  robust = both.accuracies({}, split, key).robust
  return robust, both.lipschitz({}, split, key)['eq3']


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
  facts = doubts.facts(
    lambda _: lambda x: linear(srgb(x, False)), {}, black, KEY
  )
  assert facts['nonfinite_gradients'] > 0


FEW = Batch(INPUTS[:4], BATCH.labels[:4])
NEXT = (FEW.labels + 1) % 3


def every_point(network, inputs, epsilon, norm):
  """What each attack returns, [attacks, 4, 3, 3, 1]."""
  run, settings = (network, Batch(inputs, FEW.labels), KEY), {'norm': norm}
  settings['epsilon'] = epsilon
  return jnp.stack(
    [
      attacks.pgd(*run, num_steps=3, num_restarts=2, **settings),
      attacks.multi_targeted(*run, num_classes=3, num_steps=3, **settings),
      attacks.apgd(*run, num_steps=5, **settings),
      attacks.apgd(*run, num_steps=5, objective='dlr', **settings),
      attacks.apgd(*run, num_steps=5, targets=NEXT, **settings),
      attacks.fab(*run, num_steps=3, targets=NEXT, **settings),
      attacks.square(*run, num_queries=5, **settings),
      lipschitz.estimate(
        network, inputs, KEY, epsilon=jnp.minimum(epsilon, 1.0), num_steps=3
      ).points
      if norm == 'linf'
      else inputs,
    ]
  )


@functools.partial(jax.jit, static_argnames='norm')
def wild_points(inputs, scale, power, epsilon, norm):
  def wild(inputs):  # infinite slopes where a pixel is its image's, huge ones
    return linear(jnp.abs(inputs - FEW.inputs) ** power * jnp.exp(scale))

  return every_point(wild, inputs, epsilon, norm)


@settings(max_examples=25, deadline=None)
@given(
  scale=st.floats(-80, 80),
  power=st.floats(0.05, 3.0),
  epsilon=st.floats(0.0, 1.0),
  norm=st.sampled_from(['linf', 'l2']),
)
def test_no_finite_network_moves_a_point_out_of_its_ball(
  scale, power, epsilon, norm
):
  found = wild_points(FEW.inputs, scale, power, epsilon, norm)
  for points in np.asarray(found):
    assert np.isfinite(points).all()
    moved = np.linalg.norm(
      np.reshape(points - FEW.inputs, (4, -1)),
      np.inf if norm == 'linf' else 2,
      axis=1,
    )
    assert (moved <= epsilon * (1 + 1e-5) + 1e-6).all()
    assert points.min() >= 0 and points.max() <= 1


@jax.jit
def every_number(inputs, epsilon):
  """Ratios and bounds, with a row for each example."""
  batch = Batch(inputs, FEW.labels)
  settings = {'epsilon': epsilon}
  numbers = [
    lipschitz.estimate(linear, inputs, KEY, num_steps=2, **settings).ratios,
    lipschitz.upper_bound(linear, inputs, **settings),
    released.lipschitz_estimate(linear, inputs, KEY, **settings).ratios,
    bounds.cross_entropy(linear, batch, lines=0.5, **settings),
    bounds.margins(linear, batch, method='interval', **settings).sum(axis=1),
  ]
  sure = [
    bounds.certified(linear, batch, method=method, num_steps=1, **settings)
    for method in bounds.METHODS
  ]
  return jnp.stack(numbers), jnp.stack(sure)


@settings(max_examples=25, deadline=None)
@given(
  scale=st.sampled_from([1.0, 1.00001, 2.0, 255.0, np.nan]),
  shift=st.sampled_from([0.0, -1e-6, 0.5, -3.0, np.inf]),
  epsilon=st.sampled_from([0.0, 0.05, 1.0, 1.5, 8.0, -0.1, np.nan]),
)
def test_within_jit_nothing_out_of_range_yields_a_number(scale, shift, epsilon):
  inputs = np.asarray(FEW.inputs * scale + shift, np.float32)
  inside = ((inputs >= 0) & (inputs <= 1)).all(axis=(1, 2, 3))
  numbers, sure = every_number(inputs, epsilon)
  for norm in ('linf', 'l2'):
    points = wild_points(inputs, 0.0, 2.0, epsilon, norm)[:-1]
    found = np.isfinite(points).all(axis=(-3, -2, -1))
    legal = epsilon >= 0 and (norm == 'l2' or epsilon <= 1)
    np.testing.assert_array_equal(
      found, np.broadcast_to(inside & legal, (7, 4))
    )
  legal = inside & (0 <= epsilon <= 1)
  np.testing.assert_array_equal(
    np.isfinite(numbers), np.broadcast_to(legal, (5, 4))
  )
  assert not sure[:, ~legal].any()


def test_within_jit_an_exponential_of_what_is_out_of_range_is_no_number():
  # XLA for CPUs makes any number of the exponential of a NaN that it knows.
  def network(inputs):
    return jnp.exp(inputs.reshape(len(inputs), -1)[:, :3])

  @jax.jit
  def numbers(inputs, epsilon):
    batch, settings = Batch(inputs, FEW.labels), dict(epsilon=epsilon)
    margins = [
      bounds.margins(network, batch, method=method, **settings).sum(axis=1)
      for method in ('interval', 'linear', 'crown')
    ]
    entropy = bounds.cross_entropy(network, batch, **settings)
    boxes = bounds.interval(network, inputs, 0 * inputs + 1)
    return jnp.stack([*margins, entropy]), boxes[0].sum(axis=1)

  inputs = FEW.inputs.at[1].set(2.0)
  found, lower = numbers(inputs, 0.05)
  np.testing.assert_array_equal(np.isnan(found).all(axis=0), [0, 1, 0, 0])
  np.testing.assert_array_equal(np.isnan(found).any(axis=0), [0, 1, 0, 0])
  np.testing.assert_array_equal(np.isnan(lower), [0, 1, 0, 0])
  assert np.isnan(numbers(inputs, 1.5)[0]).all()


def test_logits_that_are_no_numbers_classify_nothing():
  def broken(inputs):
    bright = inputs.mean((1, 2, 3)) > 0.5
    return linear(inputs).at[:, 2].set(jnp.where(bright, jnp.nan, jnp.inf))

  right = Split(IMAGES, np.full(40, 2, np.int32))
  assert not measure(broken, split=right)[0].any()
  ratios = lipschitz.ratio(broken, INPUTS, jnp.clip(INPUTS + 0.01, 0, 1))
  assert np.isnan(ratios).all()


def test_keys_of_another_generator_are_those_of_threefry():
  key = jax.random.key(3, impl='rbg')
  found = [measure(linear, key=k) for k in (key, jax.random.key(3))]
  chex.assert_trees_all_close(*found, rtol=1e-5)
  one, many = (
    attacks.pgd(linear, Batch(*(x[:n] for x in BATCH)), keys[:n], epsilon=0.1)
    for n in (1, 40)
    for keys in [jax.random.split(key, 40)]
  )
  chex.assert_trees_all_close(one, many[:1], atol=1e-6)


RECIPE = training.Recipe(Normalised(), methods.natural(), optax.sgd(1.0))


@pytest.mark.parametrize('check_vma', [True, False])
def test_shard_map_trains_as_one_device_does(check_vma):
  state = training.initial_state(RECIPE, KEY, IMAGES.shape[1:])
  one = training.step(RECIPE, state, IMAGES, BATCH.labels, KEY)
  mesh = jax.make_mesh(
    (2,), (DEVICES,), axis_types=(jax.sharding.AxisType.Auto,)
  )
  whole, shared = PartitionSpec(), PartitionSpec(DEVICES)
  step = jax.shard_map(
    lambda *args: training.step(RECIPE, *args, KEY, axis_name=DEVICES),
    mesh=mesh,
    in_specs=(whole, shared, shared),
    out_specs=whole,
    check_vma=check_vma,
  )
  two = jax.jit(step)(state, IMAGES, BATCH.labels)
  chex.assert_trees_all_close(two, one, rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="axis_name must be 'devices', got 'i'"):
    training.step(RECIPE, state, IMAGES, BATCH.labels, KEY, axis_name='i')


def test_shard_map_attacks_as_one_device_does():
  def points(inputs, labels, keys):
    run = linear, Batch(inputs, labels), keys
    settings = dict(epsilon=0.1)
    found = lipschitz.estimate(linear, inputs, keys, num_steps=3, **settings)
    return [
      attacks.apgd(*run, num_steps=3, **settings),
      attacks.square(*run, num_queries=3, **settings),
      found.points,
    ]

  mesh = jax.make_mesh((2,), 'i', axis_types=(jax.sharding.AxisType.Auto,))
  shared = PartitionSpec('i')
  given = *BATCH, jax.random.split(KEY, 40)
  two = jax.shard_map(points, mesh=mesh, in_specs=shared, out_specs=shared)
  chex.assert_trees_all_close(jax.jit(two)(*given), points(*given), atol=1e-5)


def test_training_draws_from_threefry_whatever_the_key():
  keys = [jax.random.key(5, impl=impl) for impl in ('threefry2x32', 'rbg')]
  states = [
    training.step(
      RECIPE,
      training.initial_state(RECIPE, key, IMAGES.shape[1:]),
      IMAGES,
      BATCH.labels,
      key,
    )
    for key in keys
  ]
  chex.assert_trees_all_equal(*states)


def test_a_network_whose_examples_mix_is_said():
  def in_training_mode(inputs):
    return linear(inputs - inputs.mean(axis=0, keepdims=True))

  facts = doubts.facts(lambda _: in_training_mode, {}, SPLIT, KEY)
  assert facts['mixed_examples'] > 0.1


def test_a_gradient_for_what_has_none_finds_the_exact_worst_case():
  def quantise(inputs):
    return jnp.round(15 * inputs) / 15

  def network(inputs):
    return linear(attacks.straight_through(quantise)(inputs))[:, :2]

  chex.assert_trees_all_equal(network(INPUTS), linear(quantise(INPUTS))[:, :2])
  split = Split(IMAGES, np.asarray(network(INPUTS).argmax(-1), np.int32))
  corners = [np.clip(INPUTS + sign * 0.1, 0, 1) for sign in (-1, 1)]
  low, high = (np.reshape(quantise(x), (40, 9)) for x in corners)
  slopes = np.asarray(WEIGHTS[:, 1 - split.labels] - WEIGHTS[:, split.labels]).T
  stands = (slopes * np.where(slopes > 0, high, low)).sum(axis=1) < 0
  robust, _ = measure(network, split=split)
  np.testing.assert_array_equal(robust, stands)
  assert 0 < stands.sum() < 40


@pytest.mark.parametrize(
  'shape, norm', [((20, 2, 1), 'linf'), ((6, 11, 3), 'l2')]
)
def test_squares_fit_images_that_are_none(shape, norm):
  inputs = jnp.asarray(RNG.uniform(0.3, 0.7, (2, *shape)), jnp.float32)
  batch = Batch(inputs, jnp.zeros(2, jnp.int32))

  def never_fooled(inputs):
    mean = inputs.reshape(2, -1).mean(axis=1)
    return jnp.stack([2 + mean, mean - mean**2], axis=1)

  points = attacks.square(
    never_fooled, batch, KEY, epsilon=0.1, num_queries=30, norm=norm
  )
  lengths = np.linalg.norm(
    np.reshape(points - inputs, (2, -1)), np.inf if norm == 'linf' else 2, 1
  )
  np.testing.assert_allclose(lengths, 0.1, rtol=0.02)


def test_no_images_have_no_logits():
  pooled = layers.max_pool(jnp.zeros((0, 8, 6, 3)))
  assert pooled.shape == (0, 4, 3, 3)


def test_labels_may_be_a_list_and_of_any_integer_type():
  expected = losses.cross_entropy(linear(INPUTS), LABELS)
  for labels in (LABELS.tolist(), LABELS.astype(np.uint8)):
    chex.assert_trees_all_equal(
      losses.cross_entropy(linear(INPUTS), labels), expected
    )
  targets, batch = (LABELS + 1) % 2, Batch(INPUTS, LABELS)
  settings = dict(epsilon=0.1, num_steps=0)
  found, expected = (
    attacks.targeted(linear, batch, KEY, targets=x, **settings)
    for x in (targets.tolist(), targets)
  )
  chex.assert_trees_all_equal(found, expected)
  many = jnp.array([199], jnp.uint8)  # 199 + 198 does not fit a byte
  others = attacks.gradient.wrong_classes(many, 200)
  np.testing.assert_array_equal(others[:, 0], np.arange(199))


def test_a_byte_is_one_class_of_300():
  label, logits = np.array([5], np.uint8), jnp.arange(300.0)[None]
  assert losses.margins(logits, label) == 299 - 5
  assert losses.shares_of_classes(label, 300).sum() == 1
  assert attacks.gradient.likely_wrong(logits, label, 298) == 0
  batch = Batch(jnp.array([[0.55, 0.5]]), label)
  pair = jnp.zeros((2, 300)).at[0, 5].set(1.0).at[1, 5 + 256].set(1.0)
  for epsilon, safe in ((0.02, True), (0.03, False)):
    found = bounds.certified(lambda x: x @ pair, batch, epsilon=epsilon)
    assert found == safe


@pytest.mark.parametrize(
  'dtype', ['uint8', 'int8', 'uint16', 'int32', 'uint32']
)
@pytest.mark.parametrize('count', [2, 128, 256, 300, 1000])
def test_which_labels_are_classes_does_not_depend_on_their_type(dtype, count):
  info = np.iinfo(dtype)
  labels = [0, 1, 5, 100, 127, min(info.max, 999), info.min, info.max]
  labels = np.array(labels, dtype)
  expected = [0 <= label < count for label in labels.tolist()]
  found = jax.jit(lambda x: check_labels(x, len(labels), count))(labels)
  np.testing.assert_array_equal(found, expected)
  logits = jnp.zeros((len(labels), count))
  for loss in (losses.cross_entropy, losses.margins):
    known = ~np.isnan(jax.jit(loss)(logits, labels))
    np.testing.assert_array_equal(known, expected)
  shares = losses.shares_of_classes(labels, count)
  np.testing.assert_array_equal(~jnp.isnan(shares).any(axis=1), expected)


def test_steps_may_be_written_out():
  looped, unrolled = (
    attacks.pgd(linear, BATCH, KEY, epsilon=0.1, unroll=unroll)
    for unroll in (False, True)
  )
  chex.assert_trees_all_close(looped, unrolled, atol=1e-6)


@pytest.mark.parametrize('name', ['multi_targeted', 'apgd_dlr'])
def test_a_cascade_of_other_classes_than_the_network_is_refused(name):
  stages = attacks.cascade(name, epsilon=0.1, num_classes=2)
  measures = of_stages(stages, linear)
  with pytest.raises(ValueError, match='num_classes is 2, the network has 3'):
    measures.accuracies({}, SPLIT, KEY)


def test_a_slope_outside_of_what_is_defined_has_no_bound():
  def network(inputs):  # log1p of -0.9 x, of which intervals know less
    return jnp.log1p(-0.9 * (3 * inputs - 2 * inputs))

  inputs = jnp.array([[0.9, 0.9]])
  upper = lipschitz.upper_bound(network, inputs, epsilon=0.1)
  attained = lipschitz.ratio(network, inputs, jnp.ones((1, 2)))
  assert attained > 12 and not upper < attained  # nor is it a number


def test_images_of_two_types_share_nothing():
  whole = np.full((1, 2, 2, 1), 255, np.uint8)
  with pytest.raises(ValueError, match='both must be uint8'):
    separation.shared(whole, np.ones((1, 2, 2, 1), np.float32))
  empty = np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, int)
  matrix = separation.class_matrix(*empty, num_classes=2)
  np.testing.assert_array_equal(matrix, np.full((2, 2), np.inf))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(key=jax.random.PRNGKey(0)), 'key must be of jax.random.key'),
    (dict(split=Split(IMAGES, LABELS + 7)), r'labels must be in \[0, 3\)'),
    (dict(split=Split(IMAGES[:8], LABELS)), '8 images but 40 labels'),
    (dict(split=Split(CHANNELS_FIRST, LABELS)), 'channels first'),
    (dict(batch_size=39), 'does not split evenly'),
    (dict(split=BATCH), 'must be a datasets.Split .* got Batch'),
    (dict(split=Split(IMAGES[:0], LABELS[:0])), 'no examples'),
    (dict(split=Split(IMAGES[..., 0], LABELS)), r'images\[..., None\]'),
    (dict(split=Split(IMAGES // 255, LABELS)), 'divided by 255 before'),
    (dict(split=Split(INPUTS, LABELS)), r'np.round\(255 \* images'),
    (dict(split=Split(255 * INPUTS, LABELS)), r'np.round\(images'),
    (dict(split=Split(INPUTS - 1, LABELS)), 'these are from -1 to 0'),
  ],
)
def test_what_cannot_be_trained_on_is_one_line(changes, message):
  given = dict(split=SPLIT, key=KEY, batch_size=20, epochs=1) | changes
  with pytest.raises(ValueError, match=message):
    training.fit(RECIPE, **given)


@pytest.mark.parametrize(
  'wrong',
  [
    lambda losses: losses[:, None] * losses[None],
    lambda losses: losses[:, None],
    lambda losses: losses.mean(),
  ],
)
def test_a_loss_that_is_no_number_for_each_example_is_refused(wrong):
  def loss(*arguments):
    return wrong(losses.natural(*arguments))

  recipe = RECIPE._replace(method=methods.Method(methods.unmoved, loss))
  with pytest.raises(ValueError, match=r'for each example, \(\d+,\), got'):
    training.fit(recipe, SPLIT, KEY, batch_size=20, epochs=1)


@pytest.mark.parametrize('name', ['ibp', 'crown_ibp'])
def test_what_certified_training_cannot_take_is_said(name):
  method = released.METHODS[name]
  with pytest.raises(ValueError, match='kappa must be .* at most 1, got 2'):
    method(epsilon=0.1, kappa=2.0)
  with pytest.raises(ValueError, match='epsilon must be .* at most 1, got 8'):
    method(epsilon=8.0, progress=0.1).loss(linear, BATCH, INPUTS)


@pytest.mark.parametrize('name', released.METHODS)
def test_what_is_trained_is_float32_in_a_session_of_doubles(name):
  recipe = RECIPE._replace(method=released.METHODS[name](epsilon=0.1))
  if 'ibp' in name:  # of one label for each image, without BatchNorm
    recipe = recipe._replace(module=Linear())
  else:
    recipe = recipe._replace(cutmix=0.5, label_smoothing=0.1)
  with jax.enable_x64(True):
    drawn = functools.partial(
      training.initial_state, recipe, image_shape=(3, 3, 1)
    )
    before = jax.eval_shape(drawn, KEY)
    step = functools.partial(training.step, recipe)
    after = jax.eval_shape(step, before, IMAGES, LABELS, KEY)
    attack = functools.partial(recipe.method.maximize, linear)
    points = jax.eval_shape(attack, BATCH, KEY)
  chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
  assert before.loss_sum.dtype == points.dtype == jnp.float32


@pytest.mark.parametrize(
  'activation', [jax.nn.relu, jax.nn.leaky_relu, jax.nn.celu]
)
def test_bounds_are_float32_in_a_session_of_doubles(activation):
  def network(inputs):
    return linear(activation(inputs - 0.5))

  def bounded(inputs):
    batch = BATCH._replace(inputs=inputs)
    found = [
      bounds.margins(network, batch, epsilon=0.1, method=method)
      for method in bounds.METHODS
    ]
    found += bounds.linear(network, inputs, inputs + 0.1)
    return found, lipschitz.upper_bound(network, inputs, epsilon=0.1)

  with jax.enable_x64(True):
    found = jax.eval_shape(bounded, INPUTS)
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype('float32')}


def test_a_set_with_both_splits_is_not_measured():
  measures = of_stages((), linear)
  with pytest.raises(ValueError, match='must be a datasets.Split .* got Data'):
    measures.accuracies((), Dataset('a', SPLIT, SPLIT, (), None), KEY)


def test_a_restart_whose_logits_are_no_numbers_counts():
  def broken_above(inputs):
    logits = linear(inputs)
    return jnp.where(inputs.mean((1, 2, 3))[:, None] > 0.5, jnp.nan, logits)

  candidates = jnp.stack([jnp.full_like(INPUTS, x) for x in (0.4, 0.6)])
  batch = Batch(INPUTS, linear(candidates[0]).argmax(-1))  # the first is right
  points = attacks.gradient.worst(broken_above, batch, candidates)
  np.testing.assert_array_equal(points, candidates[1])
