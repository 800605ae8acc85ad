"""Convolution as each backend runs it fastest; results agree up to rounding.

XLA for CPUs has a fast convolution, that of Eigen, but inside a loop uses it
only for the layout below. JAX's own gradients relabel the axes of the kernel
instead of transposing it and take 8 to 50 times as long. So the gradients here
are convolutions in the fast layout; that of a kernel with strides is a product
with patches.

Each output is one sum of products in a fixed order: equal patches have equal
features (the last few pixels of a batch may round differently), and a pixel
that nothing depends on has a gradient of exactly 0. Max pooling and sign steps
rely on both. Where neither matters, as in residual networks, wide layers may be
computed by tiles (`winograd`), and so up to rounding.

Features are [B, H, W, C], kernels [h, w, C, D].
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustlip.models import winograd

Padding = Sequence[tuple[int, int]]  # before and after, for height and width

_WIDE = 8  # channels from which a convolution beats patches
# From so many channels, in and out, tiles beat both, if a batch has enough of
# them, since each call transforms the kernel, too, and they are nearly full.
_WIDEST = 64
_FEWEST_TILES = 100
_MOST_WASTE = 1.5  # pixels of the tiles for each pixel of the outputs


def enable_fast_cpu() -> None:
  """Makes XLA use Eigen's convolutions on a CPU; call it before JAX computes.

  By default XLA uses those of YNNPACK, which take up to ten times as long. This
  adds a flag to $XLA_FLAGS, only for JAX versions on which it was tried, since
  XLA aborts at an unknown flag. Without it the results are the same.
  """
  given = os.environ.get('XLA_FLAGS', '')
  tried = (0, 10, 2) <= jax.__version_info__ < (0, 12, 1)
  names_a_file = given.lstrip()[:1] not in ('', '-')
  flag = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'
  if tried and not names_a_file and flag not in given:
    os.environ['XLA_FLAGS'] = f'{flag} {given}'


def convolve(
  inputs: chex.Array,
  kernel: chex.Array,
  *,
  strides: int,
  padding: Padding,
  tiles: bool = False,
) -> chex.Array:
  """Convolution of [B, H, W, C] with [h, w, C, D] -> [B, H', W', D].

  Args:
    tiles: whether tiles may be used where they are faster.
  """
  padding = tuple(map(tuple, padding))
  settings = dict(
    window_strides=(strides, strides), padding=padding, lhs_dilation=(1, 1)
  )
  sharded = _is_sharded(inputs) or _is_sharded(kernel)
  if jax.default_backend() != 'cpu' or sharded:
    return xla(inputs, kernel, **settings)
  wide = inputs.shape[-1] >= _WIDE and inputs.dtype == jnp.float32
  if wide and max(kernel.shape[:2]) > 1:
    return _convolution.bind(inputs, kernel, **settings, tiles=tiles)
  return patches_product(inputs, kernel, strides=strides, padding=padding)


def _is_sharded(array: chex.Array) -> bool:
  """Whether its type is sharded, as in `jax.shard_map`; `pmap` hides that."""
  kind = jax.typeof(array)
  return not kind.manual_axis_type.empty or any(kind.sharding.spec)


def xla(inputs: chex.Array, kernel: chex.Array, **settings) -> chex.Array:
  """The same as one operation of XLA, with settings of that operation."""
  return lax.conv_general_dilated(
    inputs, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **settings
  )


def patches_product(
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """The same as one matrix product of all patches with the kernel."""
  height, width, _, features = kernel.shape
  patches = views(_padded(inputs, padding), height, width, strides)
  patches = jnp.concatenate(patches, axis=-1)
  flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
  return flat.reshape(*patches.shape[:-1], features)


def views(
  images: chex.Array, height: int, width: int, strides: int
) -> list[chex.Array]:
  """What each position in a window sees, [B, H', W', C] in reading order."""
  rows = (images.shape[1] - height) // strides * strides + 1
  columns = (images.shape[2] - width) // strides * strides + 1
  return [
    images[:, top : top + rows : strides, left : left + columns : strides]
    for top in range(height)
    for left in range(width)
  ]


def _padded(inputs, padding, dilation=(1, 1)):
  """The inputs with zeros around them and, for a dilation, between them."""
  sides = (
    (*pads, factor - 1) for pads, factor in zip(padding, dilation, strict=True)
  )
  none = (0, 0, 0)
  return lax.pad(inputs, jnp.zeros((), inputs.dtype), (none, *sides, none))


def _lowered(inputs, kernel, *, tiles, **settings):
  """`xla`, by tiles where they are faster and `tiles` allows them.

  Where the filter is larger than the image, XLA for CPUs would swap the two,
  and take up to a hundred times as long: then the inputs are padded first.
  """
  padding, dilation = settings['padding'], settings['lhs_dilation']
  padded = _padded(inputs, padding, dilation)
  dense = {*settings['window_strides'], *dilation} == {1}
  if tiles and dense and _suit_tiles(padded, kernel):
    return winograd.convolve(padded, kernel)
  sides = zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
  if any(image < window for image, window in sides):
    inputs = lax.optimization_barrier(padded)  # else XLA pads in the operation
    settings |= dict(padding=((0, 0), (0, 0)), lhs_dilation=(1, 1))
  return xla(inputs, kernel, **settings)


def _suit_tiles(padded, kernel):
  """Whether a convolution of stride 1 is faster by tiles."""
  window, tile = winograd.WINDOW, winograd.TILE
  if kernel.shape[:2] != (window, window):
    return False
  sides = [size - window + 1 for size in padded.shape[1:3]]
  count = math.prod(-(-side // tile) for side in sides)
  full = count * tile**2 <= _MOST_WASTE * math.prod(sides)
  enough = padded.shape[0] * count >= _FEWEST_TILES
  return full and enough and min(kernel.shape[2:]) >= _WIDEST


# `xla` with our gradients, of any order, forward and reverse mode.
_convolution = Primitive('convolution')
_SETTINGS = 'window_strides', 'padding', 'lhs_dilation', 'tiles'
_convolution.def_impl(jax.jit(_lowered, static_argnames=_SETTINGS))


@_convolution.def_abstract_eval
def _shape(inputs, kernel, *, window_strides, padding, lhs_dilation, tiles):
  del tiles
  chex.assert_equal(inputs.shape[-1], kernel.shape[2])
  batch, *sizes, _ = inputs.shape
  axes = sizes, kernel.shape[:2], window_strides, padding, lhs_dilation
  sizes = [
    ((size - 1) * dilation + 1 + sum(pads) - length) // stride + 1
    for size, length, stride, pads, dilation in zip(*axes, strict=True)
  ]
  return inputs.update(shape=(batch, *sizes, kernel.shape[-1]))


def _inputs_gradient(
  cotangent, inputs, kernel, *, window_strides, padding, lhs_dilation, tiles
):
  """Transpose in the inputs: the kernel turned, strides and dilation swapped.

  The padding restores the size of the inputs.
  """
  pads = []
  for axis, (before, _) in enumerate(padding):
    reach = (inputs.aval.shape[1 + axis] - 1) * lhs_dilation[axis]
    reach -= (cotangent.shape[1 + axis] - 1) * window_strides[axis]
    pads.append((kernel.shape[axis] - 1 - before, reach + before))
  turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
  return _convolution.bind(
    cotangent,
    # Without the barrier XLA would swap the axes of the convolution again.
    lax.optimization_barrier(turned),
    window_strides=lhs_dilation,
    padding=tuple(pads),
    lhs_dilation=window_strides,
    tiles=tiles,
  )


def _kernel_gradient(
  cotangent, inputs, kernel, *, window_strides, padding, lhs_dilation, tiles
):
  """Transpose in the kernel: the batch takes the role of the channels."""
  padded = _padded(inputs, padding, lhs_dilation)
  whole = (0, 0), (0, 0)
  if (stride := max(window_strides)) > 1:
    settings = dict(strides=stride, padding=whole)
    product = functools.partial(patches_product, padded, **settings)
    return jax.linear_transpose(product, kernel.aval)(cotangent)[0]
  images, filters = lax.optimization_barrier(
    (padded.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
  )
  settings = dict(padding=whole, window_strides=(1, 1), lhs_dilation=(1, 1))
  gradient = _convolution.bind(images, filters, **settings, tiles=tiles)
  return gradient.transpose(1, 2, 0, 3)


def _batching_rule(arguments, axes, **settings):
  """vmap: one larger batch for a shared kernel, else a loop over kernels."""
  (inputs, kernel), (inputs_axis, kernel_axis) = arguments, axes
  if kernel_axis is None:
    inputs = jnp.moveaxis(inputs, inputs_axis, 0)
    flat = inputs.reshape(-1, *inputs.shape[2:])
    outputs = _convolution.bind(flat, kernel, **settings)
    return outputs.reshape(*inputs.shape[:2], *outputs.shape[1:]), 0
  kernels = jnp.moveaxis(kernel, kernel_axis, 0)
  if inputs_axis is None:  # shared, and so not copied for each kernel
    bind = functools.partial(_convolution.bind, inputs, **settings)
    return lax.map(bind, kernels), 0
  pairs = jnp.moveaxis(inputs, inputs_axis, 0), kernels
  return lax.map(lambda pair: _convolution.bind(*pair, **settings), pairs), 0


ad.defbilinear(_convolution, _inputs_gradient, _kernel_gradient)
batching.primitive_batchers[_convolution] = _batching_rule
mlir.register_lowering(_convolution, mlir.lower_fun(_lowered, False))
