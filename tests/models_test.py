"""Sizes, initial values, modes and devices of the networks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustlip import models
from robustlip.models import resnet
from robustlip.types import DEVICES

KEY = jax.random.key(0)


def images(*shape):
  return jax.random.uniform(jax.random.key(1), shape)


@pytest.mark.parametrize(
  'name, shape, count',
  [
    ('cnn1', (28, 28, 1), 1_199_882),
    ('cnn2', (28, 28, 1), 312_202),
    ('wrn_40_10', (32, 32, 3), 55_841_754),
    ('wrn_28_10', (32, 32, 3), 36_479_194),
    ('resnet50', (64, 64, 3), 23_508_032 + 2048 * 10 + 10),
  ],
)
def test_published_number_of_parameters(name, shape, count):
  module = models.build(name, 10)
  variables = jax.eval_shape(module.init, KEY, jnp.zeros((1, *shape)))
  assert (
    sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == count
  )


@pytest.mark.parametrize(
  'name, shape',
  [
    ('cnn1', (28, 28, 1)),
    ('cnn2', (32, 32, 3)),
    ('wrn_10_1', (32, 32, 3)),
    ('resnet26', (64, 64, 3)),
  ],
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_logits_and_parameters_are_float32(name, shape, dtype):
  module = models.build(name, 7, dtype=dtype)
  inputs = jnp.zeros((2, *shape))
  variables = jax.eval_shape(module.init, KEY, inputs)
  logits = jax.eval_shape(module.apply, variables, inputs)
  assert logits.shape == (2, 7)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves((variables, logits))}
  assert dtypes == {jnp.dtype('float32')}


def test_cnn_initial_values():
  variables = models.build('cnn1', 10).init(KEY, images(1, 28, 28, 1))
  params = variables['params']
  for name, fan_in in (('Conv_1', 288), ('Dense_0', 9216)):
    for leaf in jax.tree.leaves(params[name]):
      assert abs(leaf).max() <= fan_in**-0.5
      np.testing.assert_allclose(leaf.std(), (3 * fan_in) ** -0.5, rtol=0.15)
  params = models.build('cnn2', 10).init(KEY, images(1, 28, 28, 1))['params']
  kernel = params['Conv_1']['kernel']
  np.testing.assert_allclose(kernel.std(), (2 / 288) ** 0.5, rtol=0.05)
  assert abs(kernel).max() > 3 * kernel.std()  # not truncated
  assert not params['Dense_2']['kernel'].any()
  assert not params['Conv_0']['bias'].any()


def test_wide_resnet_initial_values():
  params = models.build('wrn_10_1', 10).init(KEY, images(1, 8, 8, 3))['params']
  kernel = params['Block_2']['Conv_0']['kernel']
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.05)
  assert abs(kernel).max() > 3 * kernel.std()  # not truncated
  assert not params['Dense_0']['bias'].any()


@pytest.mark.parametrize(
  'name, message',
  [
    ('wrn_17_4', '6 n [+] 4'),
    ('wrn_4_4', '6 n [+] 4'),
    ('wrn_16_0', 'no network'),
    ('vgg', 'cnn1, cnn2'),
  ],
)
def test_wrong_names_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    models.build(name, 10)


@pytest.mark.parametrize(
  'build',
  [
    functools.partial(models.build, 'wrn_10_1', 3),
    functools.partial(resnet.ResNet, 3, stage_sizes=(1, 1)),
  ],
)
def test_recomputed_blocks_have_the_same_gradients(build):
  inputs = jax.random.uniform(KEY, (2, 16, 16, 1))
  whole, recomputed = (build(remat=remat) for remat in (False, True))
  variables = whole.init(KEY, inputs)
  chex.assert_trees_all_equal_structs(variables, recomputed.init(KEY, inputs))

  def gradients(module):
    def loss(params):
      logits, _ = module.apply(
        dict(variables, params=params),
        inputs,
        train=True,
        mutable=['batch_stats'],
      )
      return (logits**2).sum()

    return jax.jit(jax.grad(loss))(variables['params'])

  chex.assert_trees_all_close(
    gradients(whole), gradients(recomputed), rtol=1e-3, atol=1e-4
  )


def test_wrong_settings_are_refused():
  with pytest.raises(ValueError, match='num_classes'):
    models.build('cnn1', 1)
  with pytest.raises(ValueError, match='dropout_rate'):
    models.build('cnn1', 10, dropout_rate=1.0)
  with pytest.raises(ValueError, match='blocks'):
    models.build('cnn1', 10, remat=True)
  with pytest.raises(ValueError, match='too small'):
    models.build('cnn2', 10).init(KEY, images(1, 12, 12, 1))


def test_inference_is_deterministic_and_training_drops():
  module = models.build('cnn1', 10)
  inputs = images(4, 28, 28, 1)
  variables = module.init(KEY, inputs)
  logits_fn = models.logits_fn(module, variables)
  chex.assert_trees_all_equal(logits_fn(inputs), logits_fn(inputs))
  first, second = (
    module.apply(
      variables, inputs, train=True, rngs={'dropout': jax.random.key(seed)}
    )
    for seed in (1, 2)
  )
  assert abs(first - second).max() > 0
  plain = models.build('cnn1', 10, dropout_rate=0.0)
  chex.assert_trees_all_close(
    plain.apply(variables, inputs, train=True), logits_fn(inputs)
  )


def dropped_positions(name, shape):
  """Shapes of the masks that training draws, in order."""
  module = models.build(name, 10, dropout_rate=0.5)
  variables = jax.eval_shape(module.init, KEY, jnp.zeros((2, *shape)))

  def apply(variables, key):
    return module.apply(
      variables,
      jnp.zeros((2, *shape)),
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )

  jaxpr = jax.make_jaxpr(apply)(variables, KEY)
  return [
    equation.outvars[0].aval.shape
    for equation in flat_equations(jaxpr.jaxpr)
    if equation.primitive.name == 'random_bits'
  ]


def flat_equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', None)
      if inner is not None:
        yield from flat_equations(inner)


def test_dropout_sits_where_the_authors_put_it():
  assert dropped_positions('cnn1', (28, 28, 1)) == [(2, 1, 1, 64), (2, 128)]
  assert dropped_positions('cnn2', (28, 28, 1)) == [(2, 200)]
  assert dropped_positions('wrn_10_1', (32, 32, 3)) == [
    (2, 32, 32, 16),
    (2, 16, 16, 32),
    (2, 8, 8, 64),
  ]
  # The first of the two blocks of each stage does not drop.
  assert dropped_positions('resnet26', (64, 64, 3)) == [
    (2, 16, 16, 64),
    (2, 8, 8, 128),
    (2, 4, 4, 256),
    (2, 2, 2, 512),
  ]


def test_two_devices_normalize_like_one():
  module = models.build('wrn_10_1', 10)
  inputs = images(8, 8, 8, 3)
  variables = module.init(KEY, inputs)
  apply = functools.partial(
    module.apply, variables, train=True, mutable=['batch_stats']
  )
  logits, updates = apply(inputs)
  halves = inputs.reshape(2, 4, *inputs.shape[1:])
  many, many_updates = jax.pmap(apply, axis_name=DEVICES)(halves)
  chex.assert_trees_all_close(many.reshape(8, 10), logits, atol=1e-4)
  for device in range(2):
    chex.assert_trees_all_close(
      jax.tree.map(lambda leaf, i=device: leaf[i], many_updates),
      updates,
      atol=1e-5,
    )
  alone = jax.pmap(apply)(halves)[0].reshape(8, 10)
  assert abs(alone - logits).max() > 1e-3  # what the test could not miss


def test_running_statistics_move_by_a_tenth():
  module = models.build('wrn_10_1', 10)
  inputs = images(8, 8, 8, 3)
  variables = module.init(KEY, inputs)
  _, updates = module.apply(
    variables, inputs, train=True, mutable=['batch_stats']
  )
  stats = updates['batch_stats']['Block_0']['BatchNorm_0']
  kernel = variables['params']['Conv_0']['kernel']
  features = jax.lax.conv_general_dilated(
    inputs, kernel, (1, 1), ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  mean, variance = features.mean((0, 1, 2)), features.var((0, 1, 2))
  np.testing.assert_allclose(stats['mean'], 0.1 * mean, atol=1e-6)
  np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * variance, atol=1e-5)
