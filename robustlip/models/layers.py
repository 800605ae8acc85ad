"""What the networks share; convolution as each backend runs it fastest.

Images and features are [B, H, W, C]. Parameters are float32 and have the names
and shapes of `flax.linen.Conv` on every backend; `dtype` is what is computed
in.
"""

import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from robustlip.types import DEVICES

Padding = Sequence[tuple[int, int]]  # before and after, for height and width
Initializer = Callable[..., chex.Array]

VALID = ((0, 0), (0, 0))

_TALL = 16  # rows above which two more of them cost less than wide patches


def devices_axis() -> str | None:
  """The mapped axis over devices if one is being traced, else None."""
  try:
    lax.axis_index(DEVICES)
  except NameError:
    return None
  return DEVICES


def uniform(bound: float) -> Initializer:
  """Uniform in [-bound, bound]."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Conv(nn.Module):
  """Two-dimensional convolution, [B, H, W, C] -> [B, H', W', features].

  Initial values are PyTorch's defaults unless given: uniform in
  +-1/sqrt(fan_in), kernel and bias.

  Raises:
    ValueError: if the images are smaller than the kernel.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: int = 1
  padding: Padding = VALID
  use_bias: bool = True
  kernel_init: Initializer | None = None
  bias_init: Initializer | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: chex.Array) -> chex.Array:
    """Applies the convolution."""
    shape = (*self.kernel_size, inputs.shape[-1], self.features)
    default = uniform(math.prod(shape[:-1]) ** -0.5)
    kernel = self.param('kernel', self.kernel_init or default, shape)
    _check_size(inputs, self.kernel_size, self.padding)
    outputs = convolve(
      inputs.astype(self.dtype),
      kernel.astype(self.dtype),
      strides=self.strides,
      padding=tuple(map(tuple, self.padding)),
    )
    if not self.use_bias:
      return outputs
    bias = self.param('bias', self.bias_init or default, (self.features,))
    return outputs + bias.astype(self.dtype).reshape(1, 1, 1, -1)


def _check_size(inputs, kernel_size, padding) -> None:
  sizes = inputs.shape[1:3]
  for size, kernel, pads in zip(sizes, kernel_size, padding, strict=True):
    if size + sum(pads) < kernel:
      raise ValueError(
        f'features of {sizes[0]} x {sizes[1]} are smaller than a kernel of '
        f'{kernel_size[0]} x {kernel_size[1]}: the images are too small for '
        'this network.'
      )


def convolve(
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """Convolution of [B, H, W, C] with [h, w, C, D] -> [B, H', W', D].

  One formulation for each backend, the same numbers up to rounding. XLA's own
  convolution is slow on the CPU, its gradients more so, and loops make it
  worse; matrix products are fast there.
  """
  if jax.default_backend() != 'cpu':
    return lax.conv_general_dilated(
      inputs,
      kernel,
      (strides, strides),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
  tall = padded.shape[1] >= _TALL
  if strides == 1 and tall and min(kernel.shape) >= 2:
    return _gather_and_add(padded, kernel)
  return _gather(padded, kernel, strides)


def _gather(padded, kernel, strides):
  """Patches times the kernel: the least arithmetic, the most memory."""
  height, width = kernel.shape[:2]
  rows = (padded.shape[1] - height) // strides * strides + 1
  columns = (padded.shape[2] - width) // strides * strides + 1
  patches = [
    padded[:, top : top + rows : strides, left : left + columns : strides]
    for top in range(height)
    for left in range(width)
  ]
  return _product(
    jnp.concatenate(patches, axis=-1), kernel.reshape(-1, kernel.shape[-1])
  )


def _gather_and_add(padded, kernel):
  """Columns gathered before the product, rows added up after it.

  Both intermediate arrays have 3 times the size of the features for a 3x3
  kernel, where patches have 9 times, and so have both of the gradient: its
  transpose does the same in the other order.
  """
  height, width, channels, features = kernel.shape
  rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
  shifted = [padded[:, :, left : left + columns] for left in range(width)]
  products = _product(
    jnp.concatenate(shifted, axis=-1),
    kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * features),
  )
  parts = lax.split(products, [features] * height, axis=3)
  return sum(part[:, top : top + rows] for top, part in enumerate(parts))


def _product(features, matrix):
  """[B, H, W, C] times [C, D], as one matrix product."""
  flat = features.reshape(-1, features.shape[-1]) @ matrix
  return flat.reshape(*features.shape[:-1], matrix.shape[-1])


def dense(
  inputs: chex.Array,
  features: int,
  *,
  kernel_init: Initializer | None = None,
  bias_init: Initializer | None = None,
  dtype: jnp.dtype = jnp.float32,
) -> chex.Array:
  """Affine map with PyTorch's initial values unless given, [B, C] -> [B, D].

  To be called in a compact method: it adds a submodule.
  """
  default = uniform(inputs.shape[-1] ** -0.5)
  return nn.Dense(
    features,
    kernel_init=kernel_init or default,
    bias_init=bias_init or default,
    dtype=dtype,
  )(inputs)


def batch_norm(
  inputs: chex.Array, *, train: bool, dtype: jnp.dtype = jnp.float32
) -> chex.Array:
  """Normalises with the statistics of the batch (if `train`) on all devices.

  As in PyTorch but for the running variance, which is that of the batch and
  not multiplied by n / (n - 1). To be called in a compact method.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    axis_name=devices_axis(),
  )(inputs)


def max_pool(
  inputs: chex.Array, *, size: int = 2, strides: int = 2, padding: int = 0
) -> chex.Array:
  """Maxima of windows, [B, H, W, C] -> [B, H', W', C].

  The gradient goes to the first maximum of a window in reading order, as in
  PyTorch: MNIST's flat background is nothing but ties.
  """
  pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(inputs, pads, constant_values=-jnp.inf)
  height, width = (
    (length - size) // strides + 1 for length in padded.shape[1:3]
  )
  rows, columns = (height - 1) * strides + 1, (width - 1) * strides + 1
  best = None
  for top in range(size):
    for left in range(size):
      other = padded[
        :, top : top + rows : strides, left : left + columns : strides
      ]
      best = other if best is None else jnp.where(other > best, other, best)
  return best
