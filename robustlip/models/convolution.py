"""Convolution as each backend runs it fastest; results agree up to rounding.

XLA for CPUs has a fast convolution, that of Eigen, but inside a loop uses it
only for the layout below. JAX's own gradients relabel the axes of the kernel
instead of transposing it and take 8 to 50 times as long. So the gradients here
are convolutions in the fast layout.

Each output is one sum of products in a fixed order: equal patches have equal
features (the last few pixels of a batch may round differently), and a pixel
that nothing depends on has a gradient of exactly 0. Max pooling and sign steps
rely on both.

Features are [B, H, W, C], kernels [h, w, C, D].
"""

import functools
import os
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Padding = Sequence[tuple[int, int]]  # before and after, for height and width

_WIDE = 8  # channels from which a convolution beats patches


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
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """Convolution of [B, H, W, C] with [h, w, C, D] -> [B, H', W', D]."""
  padding = tuple(map(tuple, padding))
  sharded = _is_sharded(inputs) or _is_sharded(kernel)
  if jax.default_backend() != 'cpu' or sharded:
    return xla(inputs, kernel, strides=strides, padding=padding)
  wide = inputs.shape[-1] >= _WIDE and inputs.dtype == jnp.float32
  if wide and max(kernel.shape[:2]) > 1:
    settings = dict(strides=strides, padding=padding, dilation=1)
    return _convolution.bind(inputs, kernel, **settings)
  return patches_product(inputs, kernel, strides=strides, padding=padding)


def _is_sharded(array: chex.Array) -> bool:
  """Whether its type is sharded, as in `jax.shard_map`; `pmap` hides that."""
  kind = jax.typeof(array)
  return not kind.manual_axis_type.empty or any(kind.sharding.spec)


def xla(
  inputs: chex.Array,
  kernel: chex.Array,
  *,
  strides: int = 1,
  padding: Padding,
  dilation: int = 1,
) -> chex.Array:
  """The same as one operation of XLA."""
  return lax.conv_general_dilated(
    inputs,
    kernel,
    (strides, strides),
    padding,
    (dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def patches_product(
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """The same as one matrix product of all patches with the kernel."""
  padded = _padded(inputs, padding)
  height, width, _, features = kernel.shape
  rows = (padded.shape[1] - height) // strides * strides + 1
  columns = (padded.shape[2] - width) // strides * strides + 1
  patches = [
    padded[:, top : top + rows : strides, left : left + columns : strides]
    for top in range(height)
    for left in range(width)
  ]
  patches = jnp.concatenate(patches, axis=-1)
  flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
  return flat.reshape(*patches.shape[:-1], features)


def _padded(inputs, padding, dilation=1):
  """The inputs with zeros around them and, for a dilation, between them."""
  sides = ((before, after, dilation - 1) for before, after in padding)
  none = (0, 0, 0)
  return lax.pad(inputs, jnp.zeros((), inputs.dtype), (none, *sides, none))


# `xla` with our gradients, of any order, forward and reverse mode.
_convolution = Primitive('convolution')
_STATIC = 'strides', 'padding', 'dilation'  # a dilation d: d - 1 zeros between
_convolution.def_impl(jax.jit(xla, static_argnames=_STATIC))


@_convolution.def_abstract_eval
def _shape(inputs, kernel, *, strides, padding, dilation):
  chex.assert_equal(inputs.shape[-1], kernel.shape[2])
  batch, *sizes, _ = inputs.shape
  sizes = [
    ((size - 1) * dilation + 1 + sum(pads) - length) // strides + 1
    for size, pads, length in zip(sizes, padding, kernel.shape[:2], strict=True)
  ]
  return inputs.update(shape=(batch, *sizes, kernel.shape[-1]))


def _inputs_gradient(cotangent, inputs, kernel, *, strides, padding, dilation):
  """Transpose in the inputs: the kernel turned, strides and dilation swapped.

  The padding restores the size of the inputs.
  """
  pads = []
  for axis, (before, _) in enumerate(padding):
    length = kernel.shape[axis]
    reach = (inputs.aval.shape[1 + axis] - 1) * dilation
    reach -= (cotangent.shape[1 + axis] - 1) * strides
    pads.append((length - 1 - before, reach + before))
  turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
  # Without the barrier XLA would swap the axes of the convolution again.
  turned = lax.optimization_barrier(turned)
  settings = dict(strides=dilation, padding=tuple(pads), dilation=strides)
  return _convolution.bind(cotangent, turned, **settings)


def _kernel_gradient(cotangent, inputs, kernel, *, strides, padding, dilation):
  """Transpose in the kernel: the batch takes the role of the channels."""
  # Padded here: XLA would swap an image and a filter that is larger than it.
  padded = _padded(inputs, padding, dilation)
  if strides > 1:
    settings = dict(strides=strides, padding=((0, 0), (0, 0)))
    product = functools.partial(patches_product, padded, **settings)
    return jax.linear_transpose(product, kernel.aval)(cotangent)[0]
  images, filters = lax.optimization_barrier(
    (padded.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
  )
  whole = dict(strides=1, padding=((0, 0), (0, 0)), dilation=1)
  gradient = _convolution.bind(images, filters, **whole)
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
    return lax.map(
      lambda kernel: _convolution.bind(inputs, kernel, **settings),
      kernels,
    ), 0
  return lax.map(
    lambda pair: _convolution.bind(*pair, **settings),
    (jnp.moveaxis(inputs, inputs_axis, 0), kernels),
  ), 0


ad.defbilinear(_convolution, _inputs_gradient, _kernel_gradient)
batching.primitive_batchers[_convolution] = _batching_rule
mlir.register_lowering(_convolution, mlir.lower_fun(xla, False))
