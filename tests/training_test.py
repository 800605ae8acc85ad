"""The training step: against itself on other devices, and against NumPy."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax import linen as nn

from robustlip import (
  augmentations,
  checkpoints,
  feed,
  losses,
  methods,
  parameters,
  released,
  training,
)
from robustlip.augmentations import AUGMENTATIONS
from robustlip.datasets import Split
from robustlip.feed import Epoch, Feed, epoch_order, replicate
from robustlip.models import layers

STEPS, BATCH, SHAPE = 10, 8, (4, 4, 1)
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (80, *SHAPE), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, 80).astype(np.int32)
SPLIT = Split(IMAGES, LABELS)


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


def number(**others):
  numbers = dict(
    learning_rate=0.05, epsilon=0.1, lam=1.0, beta=2.0, mu=1.0, kappa=0.5
  )
  return {k: np.float32(v) for k, v in (numbers | others).items()}


def factory(method, module=None, **others):
  """numbers -> the recipe of a method, or of a factory of methods."""

  def make(numbers):
    chosen = method
    if not isinstance(method, methods.Method):
      names = methods.weights(method)
      chosen = method(
        epsilon=numbers['epsilon'], **{k: numbers[k] for k in names}
      )
    recipe = training.Recipe(
      module=module or Normalised(),
      method=chosen,
      optimizer=optax.sgd(numbers['learning_rate'], momentum=0.9),
      augment=AUGMENTATIONS['crop4_flip'],
    )
    return recipe._replace(**others)

  return make


def tooled(module, **others):
  """numbers -> a recipe with every tool."""
  return factory(
    methods.rst,
    module,
    optimizer=optax.chain(
      optax.add_decayed_weights(1e-3),
      optax.sgd(0.05, momentum=0.9),
      parameters.ema(0.9),
    ),
    augment=augmentations.augmentation('crop4_flip,cutout'),
    cutmix=0.5,
    label_smoothing=0.1,
    awp=0.01,
    **others,
  )


def order(seed=0):
  return epoch_order(seed, 0, num_examples=80, batch_size=BATCH)


def train(
  make,
  numbers=None,
  *,
  seed=0,
  devices=1,
  chunks=((0, STEPS),),
  data=(IMAGES, LABELS),
):
  """The state after some steps, without the device axis."""
  numbers, key = numbers or number(), jax.random.key(seed)
  state = training.initial_state(make(numbers), key, SHAPE)
  copies = replicate((state, *data))
  if devices < jax.device_count():
    copies = jax.tree.map(lambda x: x[:devices], copies)
  state, images, labels = copies
  orders = np.stack(np.split(order(seed), devices, axis=-1))
  program = training.trainer(make)
  for first, last in chunks:
    epoch = Epoch(images, labels, orders)
    state = program(state, numbers, key, epoch, first, last)
  return jax.tree.map(lambda x: x[0], state)


def apart(one, other, layer):
  """The largest difference of two states in the kernel of a layer."""
  kernels = (state.params[layer]['kernel'] for state in (one, other))
  return np.abs(np.subtract(*kernels)).max()


def fit(recipe, split=SPLIT, **settings):
  """The state after one epoch."""
  settings = dict(batch_size=BATCH, epochs=1) | settings
  return training.fit(recipe, split, KEY, **settings)


class TrainingTest(chex.TestCase):
  @parameterized.parameters('llr', 'ibp', 'trades_released')
  def test_two_devices_are_one(self, name):
    assert jax.device_count() >= 2
    method, module = released.METHODS[name], None
    if name == 'ibp':  # a batch has no bounds
      method, module = functools.partial(method, progress=0.5), Linear()
    make = factory(method, module)
    one, two = (train(make, seed=3, devices=d) for d in (1, 2))
    chex.assert_trees_all_close(one, two, rtol=2e-4, atol=2e-5)

  def test_steps_mapped_over_seeds_and_weights_are_steps_alone(self):
    make = factory(methods.llr)
    seeds, lams = jnp.arange(2), jnp.float32([0.5, 2.0])
    chosen = jnp.stack([jnp.asarray(order(int(seed))) for seed in seeds])

    @jax.vmap
    def run(seed, lam, chosen):
      recipe, key = make(number() | {'lam': lam}), jax.random.key(seed)
      state = training.initial_state(recipe, key, SHAPE)

      def advance(state, batch):
        images, labels = jnp.asarray(IMAGES)[batch], jnp.asarray(LABELS)[batch]
        return training.step(recipe, state, images, labels, key), None

      return jax.lax.scan(advance, state, chosen)[0]

    together = run(seeds, lams, chosen)
    for i, lam in enumerate(lams):
      alone = train(make, number(lam=lam), seed=i)
      part = jax.tree.map(lambda x, i=i: x[i], together)
      chex.assert_trees_all_close(part, alone, rtol=2e-4, atol=2e-5)

  def test_fit_is_the_steps_of_its_epochs(self):
    make = factory(methods.METHODS['rst'])
    fitted = fit(make(number()))
    chex.assert_trees_all_close(
      fitted, train(make, devices=jax.device_count()), rtol=1e-5, atol=1e-6
    )
    on = fit(make(number()), state=fitted)
    chex.assert_trees_all_equal(on, fit(make(number()), epochs=2))

  def test_a_method_may_change_with_the_step(self):
    def schedule(step):
      return methods.rst(epsilon=0.1, lam=jnp.where(step < 5, 0.0, 1.0))

    make = factory(methods.Method(methods.unmoved, losses.natural))

    def changing(numbers):
      return make(numbers)._replace(method=schedule)

    changed = train(changing)
    first = train(factory(methods.rst), number(lam=0.0), chunks=((0, 5),))
    half = train(changing, chunks=((0, 5),))
    chex.assert_trees_all_close(first, half, rtol=1e-5, atol=1e-6)
    always = train(factory(methods.rst), number(lam=0.0))
    assert apart(changed, always, 'Dense_1') > 1e-4

  def test_dispatches_do_not_change_a_bit(self):
    make = factory(methods.rst)
    whole = train(make)
    parts = train(make, chunks=((0, 1), (1, 7), (7, STEPS)))
    chex.assert_trees_all_equal(whole, parts)

  def test_every_step_draws_anew(self):
    # One image, no learning: the losses differ by the crops alone.
    same = np.repeat(IMAGES[:1], 80, axis=0), np.zeros(80, np.int32)
    make, still = factory(methods.natural, Linear()), number(learning_rate=0.0)
    sums = [
      train(make, still, chunks=((0, last),), data=same).loss_sum
      for last in range(4)
    ]
    assert len(set(np.round(np.diff(sums), 5))) == 3

  def test_one_compilation_serves_all_dispatches(self):
    make = factory(methods.rst)
    program = training.trainer(chex.assert_max_traces(make, n=1))
    orders = np.stack(np.split(order(), jax.device_count(), axis=-1))
    epoch = Epoch(*replicate((IMAGES, LABELS)), orders)
    for seed, lam in ((0, 1.0), (1, 2.0)):
      numbers, key = number(lam=lam), jax.random.key(seed)
      state = replicate(training.initial_state(make(numbers), key, SHAPE))
      for first, last in ((0, 1), (1, 4), (4, STEPS)):
        state = program(state, numbers, key, epoch, first, last)

  def test_all_tools_on_two_devices_are_those_on_one(self):
    one, two = (train(tooled(Normalised()), devices=d) for d in (1, 2))
    chex.assert_trees_all_close(one, two, rtol=2e-4, atol=2e-5)

  def test_parts_of_a_batch_and_tools_of_no_strength_change_nothing(self):
    plain = train(factory(methods.rst, Linear()))
    for tools in ({}, dict(cutmix=0.0, label_smoothing=0.0, awp=0.0)):
      make = factory(methods.rst, Linear(), accumulate=4, **tools)
      chex.assert_trees_all_close(train(make), plain, rtol=1e-4, atol=1e-5)

  def test_no_two_draws_of_a_step_have_one_key(self):
    seen = []

    def spy(images, keys):
      seen.extend(map(tuple, np.asarray(jax.random.key_data(keys))))
      return images

    def mixed(images, keys, **_):
      return spy(images, keys), jnp.ones(len(images))

    augment = augmentations.in_turn(spy, spy, spy)
    make = factory(methods.natural, Linear(), augment=augment, cutmix=0.5)
    recipe = make(number())
    state = training.initial_state(recipe, KEY, SHAPE)
    with mock.patch.object(training, 'cutmix', mixed):
      training.step(recipe, state, IMAGES[:4], jnp.asarray(LABELS[:4]), KEY)
    assert len(set(seen)) == len(seen) == 16

  def test_averaged_statistics_are_of_the_averaged_parameters(self):
    recipe = factory(methods.natural, augment=AUGMENTATIONS['none'])(number())
    keeping = optax.chain(recipe.optimizer, parameters.ema(0.9))
    without, plain = recipe, fit(recipe)
    recipe = recipe._replace(optimizer=keeping)
    state = fit(recipe)
    chex.assert_trees_all_close(state.params, plain.params, rtol=1e-5)
    found = training.averaged(recipe, state, SPLIT, KEY, batch_size=BATCH)
    chex.assert_trees_all_equal(
      found.params, parameters.average(state.opt_state)
    )
    dense = found.params['Dense_0']
    inputs = IMAGES[order()].reshape(STEPS, BATCH, -1) / 255
    features = inputs @ dense['kernel'] + dense['bias']
    mean = state.batch_stats['BatchNorm_0']['mean']
    for step in range(training.SETTLING_STEPS):
      mean = 0.9 * mean + 0.1 * features[step % STEPS].mean(axis=0)
    np.testing.assert_allclose(
      found.batch_stats['BatchNorm_0']['mean'], mean, rtol=1e-3, atol=1e-4
    )
    found = training.averaged(without, plain, SPLIT, KEY, batch_size=BATCH)
    chex.assert_trees_all_equal(found, plain)
    with pytest.raises(ValueError, match='not one of this recipe'):
      training.averaged(recipe, plain, SPLIT, KEY, batch_size=BATCH)

  def test_awp_descends_from_where_the_loss_is_highest(self):
    make = factory(
      methods.natural,
      Linear(),
      augment=AUGMENTATIONS['none'],
      awp=0.1,
      optimizer=optax.sgd(0.5),
      label_smoothing=0.3,
      accumulate=2,
    )
    fresh = training.initial_state(make(number()), KEY, SHAPE)
    kernel = np.float64(fresh.params['Dense_0']['kernel'])
    chosen = order()[0]
    inputs = IMAGES[chosen].reshape(BATCH, -1) / 255
    targets = 0.7 * np.eye(3)[LABELS[chosen]] + 0.1

    def slope(kernel):  # the bias starts at 0
      p = np.exp(inputs @ kernel)
      return inputs.T @ (p / p.sum(axis=1, keepdims=True) - targets) / BATCH

    steep = slope(kernel)
    steep *= 0.1 * np.linalg.norm(kernel) / np.linalg.norm(steep)
    expected = kernel - 0.5 * slope(kernel + steep)
    found = train(make, chunks=((0, 1),)).params['Dense_0']['kernel']
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters('llr', 'trades')
  def test_a_loss_compares_the_network_with_itself(self, name):
    numbers = number(epsilon=0.0, learning_rate=0.01)
    loss = methods.METHODS[name](epsilon=0.0).loss
    still = methods.Method(methods.unmoved, loss)
    natural, same, fresh = (
      train(factory(method, Dropping()), numbers)
      for method in (
        methods.natural(),
        still,
        still._replace(fresh_masks=True),
      )
    )
    chex.assert_trees_all_close(same.params, natural.params, atol=1e-6)
    assert apart(fresh, natural, 'Dense_0') > 1e-4

  def test_attack_in_training_mode_uses_the_batch(self):
    inference = train(factory(methods.at))
    batch = train(factory(methods.at, attack_in_training_mode=True))
    assert apart(inference, batch, 'Dense_1') > 1e-4

  def test_certified_training_starts_where_intervals_keep_their_width(self):
    recipe = factory(methods.ibp, Dropping())(number())
    state = training.initial_state(recipe, KEY, (16, 16, 1))
    plain = factory(methods.at, Dropping())(number())
    drawn = training.initial_state(plain, KEY, (16, 16, 1))
    for layer, fan_in in (('Dense_0', 256), ('Dense_1', 32)):
      kernel, other = (x.params[layer]['kernel'] for x in (state, drawn))
      chex.assert_trees_all_close(
        np.sqrt((kernel**2).mean()), np.sqrt(2 * np.pi) / fan_in, rtol=1e-4
      )
      sums = np.abs(kernel).sum(axis=0)  # twice what a ReLU leaves
      np.testing.assert_allclose(sums.mean(), 2, rtol=0.2)
      scaled = other * (kernel.std() / other.std())
      np.testing.assert_allclose(kernel, scaled, atol=1e-6)

  def test_narrow_kernels_of_one_value_stay_finite(self):
    drawn = {'params': {'one': jnp.ones((1, 1, 1, 1))}}
    kernel = methods.narrow_kernels(drawn)['params']['one']
    np.testing.assert_allclose(kernel, np.sqrt(2 * np.pi), rtol=1e-6)

  def test_natural_linear_training_is_numpy_softmax_regression(self):
    make = factory(methods.natural, Linear(), augment=AUGMENTATIONS['none'])
    fresh = training.initial_state(make(number()), KEY, SHAPE)
    dense = jax.tree.map(np.float64, fresh.params)['Dense_0']
    weights = np.vstack([dense['kernel'], dense['bias'][None]])
    velocity = np.zeros_like(weights)
    for chosen in order():
      inputs = IMAGES[chosen].reshape(BATCH, -1) / 255
      inputs = np.hstack([inputs, np.ones((BATCH, 1))])
      p = np.exp(inputs @ weights)
      p /= p.sum(axis=1, keepdims=True)
      slope = inputs.T @ (p - np.eye(3)[LABELS[chosen]]) / BATCH
      velocity = 0.9 * velocity + slope
      weights -= 0.05 * velocity
    trained = train(make).params['Dense_0']
    found = np.vstack([trained['kernel'], trained['bias'][None]])
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-5)

  def test_batch_statistics_follow_the_loss_inputs(self):
    make = factory(methods.natural, augment=AUGMENTATIONS['none'])
    state = train(make, number(learning_rate=0.0), chunks=((0, 1),))
    dense = jax.tree.map(np.asarray, state.params)['Dense_0']
    inputs = IMAGES[order()[0]].reshape(BATCH, -1) / 255
    features = inputs @ dense['kernel'] + dense['bias'][None]
    found = state.batch_stats['BatchNorm_0']
    np.testing.assert_allclose(
      found['mean'], 0.1 * features.mean(0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      found['var'], 0.9 + 0.1 * features.var(0), rtol=1e-4
    )

  def test_a_loss_not_finite_is_dated(self):
    # The last update has no loss.
    for count, rate in ((len(LABELS), 1e38), (BATCH, np.inf)):
      with pytest.raises(ValueError, match=r'not finite at step [1-9]\b'):
        recipe = factory(methods.natural)(number(learning_rate=rate))
        fit(recipe, Split(IMAGES[:count], LABELS[:count]))

  def test_statistics_of_one_device_of_several_are_refused(self):
    class Plain(nn.Module):
      @nn.compact
      def __call__(self, inputs, train=False):
        features = inputs.reshape(len(inputs), -1)
        return nn.Dense(3)(nn.BatchNorm(not train)(features))

    with pytest.raises(ValueError, match='axis_name'):
      train(factory(methods.natural, Plain()), devices=2)

  def test_what_takes_too_much_memory_is_streamed(self):
    for memory, streamed in ((IMAGES.nbytes, True), (3 * IMAGES.nbytes, False)):
      with mock.patch.object(feed, '_device_memory', lambda m=memory: m):
        (first, *_) = Feed(SPLIT).dispatches(order())
      assert (first[0].images.shape[1] < len(IMAGES)) == streamed

  @parameterized.parameters(True, False)
  def test_streamed_examples_are_those_of_the_order(self, stream):
    examples = Feed(SPLIT, stream=stream)
    seen = []
    for epoch, first, last in examples.dispatches(order(), 1):
      for step in range(first, last):
        shares = [
          np.asarray(epoch.images)[device][epoch.order[device, step]]
          for device in range(jax.device_count())
        ]
        seen.append(np.concatenate(shares))
    np.testing.assert_array_equal(np.stack(seen), IMAGES[order()[1:]])


def test_an_epoch_takes_every_example_at_most_once():
  found = epoch_order(0, 0, num_examples=23, batch_size=5)
  assert found.shape == (4, 5)
  assert len(set(found.ravel())) == 20 and found.max() < 23
  again = epoch_order(0, 1, num_examples=23, batch_size=5)
  assert (found != again).any()
  with pytest.raises(ValueError, match='a batch of 24 needs'):
    epoch_order(0, 0, num_examples=23, batch_size=24)


def test_a_state_is_made_within_a_program_too():
  def draw(rate, seed=None):
    recipe = factory(methods.natural)(number())
    recipe = recipe._replace(optimizer=optax.sgd(rate))
    key = KEY if seed is None else jax.random.key(seed)
    return training.initial_state(recipe, key, SHAPE)

  for seed in ((), (0,)):  # known to the program, and given
    found, expected = (f(0.1, *seed) for f in (jax.jit(draw), draw))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'label_smoothing': 1.5}, 'label_smoothing must be .* at most 1'),
    ({'cutmix': 7.0}, 'cutmix must be .* at most 1'),
    ({'awp': -0.01}, 'awp must be at least 0'),
    ({'accumulate': 0}, 'accumulate must be at least 1'),
    ({'optimizer': optax.add_noise(0.01, 0.55, 0)}, 'PRNG key'),
  ],
)
def test_recipes_that_cannot_be_followed_are_refused(changes, message):
  recipe = factory(methods.natural)(number())._replace(**changes)
  with pytest.raises(ValueError, match=message):
    fit(recipe)


def test_a_state_of_another_recipe_is_refused(tmp_path):
  keeping = optax.chain(optax.sgd(0.1), parameters.ema(0.9))
  recipe = training.Recipe(Linear(), methods.natural(), keeping)
  state = fit(recipe, epochs=0)
  checkpoints.save(tmp_path / 'state', state)
  read = training.TrainState(**checkpoints.load(tmp_path / 'state'))
  other = recipe._replace(optimizer=optax.sgd(0.1))
  for asked, given in ((recipe, read), (other, state)):
    with pytest.raises(ValueError, match='not one of this recipe'):
      fit(asked, state=given)
    with pytest.raises(ValueError, match='not one of this recipe'):
      training.averaged(asked, given, SPLIT, KEY, batch_size=BATCH)


def test_an_average_of_what_the_optimizer_has_yet_to_change_is_refused():
  early = optax.chain(parameters.ema(0.9), optax.sgd(0.1))
  recipe = training.Recipe(Linear(), methods.natural(), early)
  with pytest.raises(ValueError, match='must be the last part'):
    fit(recipe)
