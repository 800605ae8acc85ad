"""Convolution and pooling against Flax, to every order of derivative."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from robustlip.models import convolution, layers
from robustlip.types import DEVICES

KEY = jax.random.key(0)
CONVOLUTIONS = [  # size, strides, padding, channels
  (3, 1, 0, 4),
  (3, 1, 1, 1),
  (3, 1, 1, 4),
  (3, 2, 1, 4),
  (1, 2, 0, 4),
  (5, 2, 2, 3),
  (3, 1, 0, 16),  # from here on by minimal filtering
  (3, 1, 1, 24),
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
  inputs = jax.random.normal(
    keys[0], (2, 18 if strides == 1 else 9, 8, channels)
  )
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


@pytest.mark.parametrize('setting', CONVOLUTIONS)
def test_convolution_and_its_derivatives(setting):
  ours, expected, arguments = case(*setting)
  for compute in (
    lambda f, *a: f(*a),
    lambda f, *a: jax.grad(energy(f), (0, 1))(*a),
  ):
    chex.assert_trees_all_close(
      jax.jit(compute, static_argnums=0)(ours, *arguments),
      jax.jit(compute, static_argnums=0)(expected, *arguments),
      atol=2e-4,
      rtol=1e-4,
    )


@pytest.mark.parametrize('height', range(3, 12))
def test_minimal_filtering_of_any_height(height):
  rng = np.random.default_rng(height)
  inputs = rng.normal(size=(2, height, 5, 16)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 16, 8)).astype(np.float32)
  expected = sum(
    np.einsum('bhwc,cd->bhwd', inputs[:, i : height - 2 + i, j : j + 3], matrix)
    for i, row in enumerate(kernel.astype(np.float64))
    for j, matrix in enumerate(row)
  )
  actual = convolution.minimal_filtering(inputs, jnp.asarray(kernel))
  np.testing.assert_allclose(actual, expected, atol=2e-4)


def test_minimal_filtering_rounds_little_more_than_a_sum():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(4, 34, 34, 64))
  kernel = rng.normal(size=(3, 3, 64, 64)) / 24

  def direct(inputs, kernel):
    return lax.conv_general_dilated(
      inputs,
      kernel,
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  with jax.enable_x64(True):
    exact = np.asarray(direct(jnp.asarray(inputs), jnp.asarray(kernel)))
  single = jnp.asarray(inputs, jnp.float32), jnp.asarray(kernel, jnp.float32)

  def error(convolve):
    return np.sqrt(np.mean((np.asarray(convolve(*single)) - exact) ** 2))

  assert error(convolution.minimal_filtering) < 3 * error(direct)
  assert error(convolution.minimal_filtering) < 2e-6


@pytest.mark.parametrize(
  'compute', [forward_over_reverse, reverse_over_forward]
)
def test_second_derivatives_of_convolution(compute):
  ours, expected, arguments = case(*CONVOLUTIONS[0])
  chex.assert_trees_all_close(
    jax.jit(compute, static_argnums=0)(ours, *arguments),
    jax.jit(compute, static_argnums=0)(expected, *arguments),
    atol=2e-4,
    rtol=1e-4,
  )


@pytest.mark.parametrize('setting', CONVOLUTIONS[:2])
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


def test_conv_has_the_parameters_of_flax():
  inputs = jax.random.normal(KEY, (2, 8, 8, 3))
  ours = layers.Conv(5, padding=((1, 1), (1, 1)))
  theirs = nn.Conv(5, (3, 3), padding=((1, 1), (1, 1)))
  variables = ours.init(KEY, inputs)
  chex.assert_trees_all_equal_shapes(variables, theirs.init(KEY, inputs))
  chex.assert_trees_all_close(
    ours.apply(variables, inputs), theirs.apply(variables, inputs), atol=1e-5
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


def test_devices_axis_is_seen_only_where_it_is_bound():
  seen = []

  def look(x):
    seen.append(layers.devices_axis())
    return x

  jax.vmap(look)(jnp.zeros(2))
  jax.vmap(look, axis_name=DEVICES)(jnp.zeros(2))
  assert seen == [None, DEVICES]
