"""Convolution and pooling against Flax, to every order of derivative."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from robustlip.models import convolution, layers, winograd
from robustlip.types import DEVICES

KEY = jax.random.key(0)
CONVOLUTIONS = [  # size, strides, padding, channels
  (3, 1, 0, 4),
  (3, 2, 1, 4),
  (1, 2, 0, 4),
  (5, 2, 2, 3),
  (3, 1, 1, 24),
  (3, 2, 1, 24),
]


def case(size, strides, padding, channels):
  """Ours, XLA's, and arguments for both."""
  pads = ((padding, padding),) * 2

  def ours(inputs, kernel):
    return convolution.convolve(inputs, kernel, strides=strides, padding=pads)

  def expected(inputs, kernel):
    return lax.conv_general_dilated(
      inputs,
      kernel,
      (strides, strides),
      pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  keys = jax.random.split(KEY)
  inputs = jax.random.normal(keys[0], (2, 9, 8, channels))
  kernel = jax.random.normal(keys[1], (size, size, channels, 6)) / size
  return ours, expected, (inputs, kernel)


def energy(convolve):
  return lambda *arguments: jnp.sin(convolve(*arguments)).sum()


def forward_over_reverse(convolve, inputs, kernel):
  gradient = jax.grad(energy(convolve), (0, 1))
  return jax.jvp(gradient, (inputs, kernel), (inputs, kernel))


def reverse_over_forward(convolve, inputs, kernel):
  def slope(inputs, kernel):
    return jax.jvp(lambda x: energy(convolve)(x, kernel), (inputs,), (inputs,))

  return jax.grad(lambda *a: slope(*a)[1], (0, 1))(inputs, kernel)


def check_as_xla_does(compute, setting):
  """What is computed of our convolution is what is of XLA's."""
  ours, expected, arguments = case(*setting)
  compiled = jax.jit(compute, static_argnums=0)
  found, wanted = (compiled(f, *arguments) for f in (ours, expected))
  chex.assert_trees_all_close(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('setting', CONVOLUTIONS)
def test_convolution_and_its_derivatives(setting):
  def both(f, *arguments):
    return f(*arguments), jax.grad(energy(f), (0, 1))(*arguments)

  check_as_xla_does(both, setting)


@pytest.mark.parametrize('channels', [4, 16])  # patches, convolution
def test_equal_patches_have_equal_features_and_dead_pixels_no_gradient(
  channels,
):
  # What pooling at ties and sign steps rely on: no rounding noise around zero.
  # The last features of a batch are those that matrix kernels round otherwise,
  # where their number is no multiple of a vector: nothing is asked of them.
  kernel = jax.random.normal(KEY, (3, 3, channels, 24))
  flat = jnp.full((2, 15, 15, channels), 0.3)

  def convolve(inputs):
    pads = ((0, 0), (0, 0))
    return convolution.convolve(inputs, kernel, strides=1, padding=pads)

  features, pullback = jax.vjp(convolve, flat)
  first = features[:1]
  np.testing.assert_array_equal(first, first[:, :1, :1] + 0 * first)
  cotangent = jnp.zeros_like(features).at[:, 12, 12].set(1.0)
  (gradient,) = pullback(cotangent)
  reached = np.zeros(gradient.shape, bool)
  reached[:, 12:15, 12:15] = True
  assert (np.asarray(gradient)[~reached] == 0).all()
  assert (np.asarray(gradient)[reached] != 0).all()


@pytest.mark.parametrize('shape', [(3, 9, 8, 5), (1, 4, 13, 7), (2, 3, 3, 2)])
@pytest.mark.parametrize('pads', [((0, 0), (0, 0)), ((2, 1), (3, -1))])
def test_tiles_are_the_sums_of_products(shape, pads):
  keys = jax.random.split(KEY)
  inputs = jax.random.normal(keys[0], shape)
  kernel = jax.random.normal(keys[1], (3, 3, shape[-1], 6))
  (top, bottom), (left, right) = pads
  padded = np.pad(np.float64(inputs), ((0, 0), (3, 3), (3, 3), (0, 0)))
  padded = padded[:, 3 - top : shape[1] + 3 + bottom]
  padded = padded[:, :, 3 - left : shape[2] + 3 + right]
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  expected = np.einsum('bhwcij,ijcd->bhwd', windows, np.float64(kernel))
  found = winograd.convolve(jnp.float32(padded), kernel)
  chex.assert_trees_all_close(found, jnp.float32(expected), atol=1e-4)


on_a_cpu = pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='other backends have one convolution'
)


@on_a_cpu
@pytest.mark.parametrize(
  'shape, tiles, count',
  [
    ((2, 29, 28), True, 0),
    ((2, 29, 28), False, 2),
    ((1, 29, 28), True, 2),  # fewer than a hundred tiles
    ((30, 6, 6), True, 2),  # tiles that are half empty
  ],
)
def test_wide_layers_are_computed_by_tiles(shape, tiles, count):
  # Forward and for the inputs, where they are allowed and faster.
  _, expected, _ = case(3, 1, 1, 64)
  keys = jax.random.split(KEY)
  inputs = jax.random.normal(keys[0], (*shape, 64))
  kernel = jax.random.normal(keys[1], (3, 3, 64, 64)) / 30

  def ours(inputs, kernel):
    settings = dict(strides=1, padding=((1, 1), (1, 1)), tiles=tiles)
    return convolution.convolve(inputs, kernel, **settings)

  def both(convolve):
    return jax.jit(jax.value_and_grad(energy(convolve), (0, 1)))

  found = both(ours)(inputs, kernel)
  chex.assert_trees_all_close(
    found, both(expected)(inputs, kernel), rtol=1e-4, atol=1e-3
  )
  program = both(ours).lower(inputs, kernel).compile().as_text()
  assert len(kinds_of_convolutions(program)) == count + 1  # that of the kernel


@on_a_cpu
def test_gradients_in_a_loop_are_convolutions_of_the_fast_kind():
  ours, _, (inputs, kernel) = case(3, 1, 1, 24)

  def descend(_, arguments):
    gradients = jax.grad(energy(ours), (0, 1))(*arguments)
    return jax.tree.map(lambda x, g: x - 0.1 * g, arguments, gradients)

  def descent(*arguments):
    return lax.fori_loop(0, 3, descend, arguments)

  program = jax.jit(descent).lower(inputs, kernel).compile().as_text()
  assert kinds_of_convolutions(program) == ['b01f_01io->b01f'] * 3
  assert 'ynn_fusion' not in program  # see robustlip/__init__.py


def kinds_of_convolutions(program):
  return re.findall(r'convolution\(.*dim_labels=([^,\s]+)', program)


@on_a_cpu
@pytest.mark.parametrize('pad', [0, 1, 2])
def test_kernel_gradients_of_a_transpose_are_of_the_fast_kind(pad):
  # As bounds by lines have them, where a filter is larger than its image.
  ours, _, (inputs, kernel) = case(3, 1, pad, 24)
  cotangent = ours(inputs, kernel)

  def pulled(kernel):
    (back,) = jax.vjp(lambda x: ours(x, kernel), inputs)[1](cotangent)
    return jnp.vdot(back, inputs)

  program = jax.jit(jax.grad(pulled)).lower(kernel).compile().as_text()
  assert set(kinds_of_convolutions(program)) == {'b01f_01io->b01f'}


@pytest.mark.parametrize('strides', [1, 2])
def test_a_filter_larger_than_its_image_is_of_the_fast_kind(strides):
  # As in the last stage of a residual network on small images.
  ours, expected, (inputs, kernel) = case(3, strides, 1, 24)
  inputs = inputs[:, :2, :2]

  def both(convolve):
    return jax.jit(jax.value_and_grad(energy(convolve), (0, 1)))

  found = both(ours)(inputs, kernel)
  chex.assert_trees_all_close(
    found, both(expected)(inputs, kernel), atol=2e-4, rtol=1e-4
  )
  if jax.default_backend() == 'cpu':
    program = both(ours).lower(inputs, kernel).compile().as_text()
    assert set(kinds_of_convolutions(program)) == {'b01f_01io->b01f'}


@pytest.mark.parametrize('setting', [(3, 1, 0, 4), (3, 1, 1, 16)])
@pytest.mark.parametrize(
  'compute', [forward_over_reverse, reverse_over_forward]
)
def test_second_derivatives_of_convolution(compute, setting):
  check_as_xla_does(compute, setting)


@pytest.mark.parametrize('setting', [(3, 1, 0, 4), (3, 1, 1, 16)])
def test_convolution_over_a_run_axis(setting):
  ours, expected, arguments = case(*setting)
  stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), arguments)
  many = jax.jit(jax.vmap(jax.grad(energy(ours), (0, 1))))(*stacked)
  for run in range(2):
    one = jax.grad(energy(expected), (0, 1))(
      *jax.tree.map(lambda x, i=run: x[i], stacked)
    )
    chex.assert_trees_all_close(
      jax.tree.map(lambda x, i=run: x[i], many), one, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize('axes', [(1, None), (None, 1)])
def test_convolution_with_one_argument_for_all_runs(axes):
  ours, expected, arguments = case(3, 1, 1, 16)
  stacked = [
    x if axis is None else jnp.stack([x, 2 * x], axis)
    for x, axis in zip(arguments, axes, strict=True)
  ]
  outputs = jax.jit(jax.vmap(ours, axes))(*stacked)
  once = expected(*arguments)
  chex.assert_trees_all_close(outputs, jnp.stack([once, 2 * once]), atol=1e-4)


def test_convolution_in_shard_map():
  ours, expected, arguments = case(3, 1, 1, 16)
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((2,), (DEVICES,), axis_types=kinds)
  shares = jax.sharding.PartitionSpec(DEVICES), jax.sharding.PartitionSpec()

  def loss(*arguments):
    return lax.psum(energy(ours)(*arguments), DEVICES)

  sharded = jax.shard_map(
    loss, mesh=mesh, in_specs=shares, out_specs=jax.sharding.PartitionSpec()
  )
  chex.assert_trees_all_close(
    jax.jit(jax.grad(sharded, 1))(*arguments),
    jax.grad(energy(expected), 1)(*arguments),
    atol=2e-4,
  )


class Ours(nn.Module):
  @nn.compact
  def __call__(self, inputs):
    return layers.conv(inputs, 5, strides=2, padding=1)


def test_conv_is_that_of_flax():
  inputs = jax.random.normal(KEY, (2, 8, 8, 3))
  theirs = nn.Conv(5, (3, 3), strides=2, padding=((1, 1), (1, 1)))
  variables = theirs.init(KEY, inputs)['params']
  variables = {'params': {'Conv_0': variables}}
  chex.assert_trees_all_close(
    Ours().apply(variables, inputs),
    theirs.apply({'params': variables['params']['Conv_0']}, inputs),
    atol=1e-5,
  )


def first_maximum_gradient(inputs, weights, size, strides):
  """NumPy: each weight goes to the first maximum of its window."""
  gradient = np.zeros_like(inputs)
  for index in np.ndindex(weights.shape):
    example, row, column, channel = index
    window = inputs[
      example,
      row * strides : row * strides + size,
      column * strides : column * strides + size,
      channel,
    ]
    top, left = np.unravel_index(window.argmax(), window.shape)
    place = example, row * strides + top, column * strides + left, channel
    gradient[place] += weights[index]
  return gradient


@pytest.mark.parametrize('size, strides', [(2, 2), (3, 2)])
@pytest.mark.parametrize('length', [8, 9])
def test_pooling_sends_its_gradient_to_the_first_maximum(size, strides, length):
  # Small whole numbers: ties almost everywhere.
  inputs = jax.random.randint(KEY, (2, length, length, 3), 0, 3) * 1.0
  pooled, pullback = jax.vjp(
    lambda x: layers.max_pool(x, size=size, strides=strides), inputs
  )
  chex.assert_trees_all_equal(
    pooled, nn.max_pool(inputs, (size, size), (strides, strides))
  )
  weights = jax.random.normal(KEY, pooled.shape)
  expected = first_maximum_gradient(
    np.asarray(inputs), np.asarray(weights), size, strides
  )
  np.testing.assert_allclose(pullback(weights)[0], expected, atol=1e-6)


def test_pooling_pads_with_less_than_anything():
  inputs = -1.0 - jax.random.uniform(KEY, (1, 6, 6, 2))
  chex.assert_trees_all_equal(
    layers.max_pool(inputs, size=3, strides=2, padding=1),
    nn.max_pool(inputs, (3, 3), (2, 2), ((1, 1), (1, 1))),
  )


def test_images_too_small_to_pool_are_named():
  with pytest.raises(ValueError, match='images are too small'):
    layers.max_pool(jnp.zeros((2, 1, 1, 3)))


def test_devices_axis_is_seen_only_where_it_is_bound():
  seen = []

  def look(x):
    seen.append(layers.devices_axis())
    return x

  jax.vmap(look)(jnp.zeros(2))
  jax.vmap(look, axis_name=DEVICES)(jnp.zeros(2))
  assert seen == [None, DEVICES]
