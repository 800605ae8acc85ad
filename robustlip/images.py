"""Images and labels: bytes to floats, and checks of what is given."""

from __future__ import annotations

import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np

_FLOATS = np.arange(256, dtype=np.float32) / np.float32(255)


def from_bytes(images: chex.Array) -> chex.Array:
  """uint8 images as float32 in [0, 1], bitwise equal on the host and compiled.

  XLA turns a division by 255 into a product with 1 / 255, which rounds
  differently.

  Raises:
    ValueError: for images of another type, which may be scaled already.
  """
  if images.dtype != jnp.uint8:
    raise ValueError(f'images must be uint8, 0 to 255, got {images.dtype}.')
  if isinstance(images, np.ndarray):
    return _FLOATS[images]
  return jnp.asarray(_FLOATS)[images]


def check_images(inputs: chex.Array) -> chex.Array:
  """The images [B, ...], checked to be float32 in [0, 1].

  Inside `jax.jit`, where values cannot raise an error, an example with a value
  out of range becomes NaN as a whole, so that it cannot count as robust or
  smooth.

  Raises:
    ValueError: for another dtype, no images, or untraced values out of range.
  """
  dtype = jnp.dtype(getattr(inputs, 'dtype', np.float64))
  if dtype not in (jnp.float32, jnp.float64):
    raise ValueError(
      f'inputs must be float32 in [0, 1], got {dtype}; images of bytes '
      'are divided by 255 first.'
    )
  if not np.size(inputs):
    raise ValueError(f'there are no images: inputs are {np.shape(inputs)}.')
  if isinstance(inputs, jax.core.Tracer):
    return inputs + zero_or_nan(jnp.minimum(inputs, 1 - inputs))
  known = np.asarray(inputs)
  lowest, highest = known.min(), known.max()
  if np.isnan(lowest):
    raise ValueError('inputs must be in [0, 1]; there are NaN among them.')
  if not (lowest >= 0 and highest <= 1):
    raise ValueError(
      f'inputs must be in [0, 1], got {lowest:.9g} to {highest:.9g}; a network '
      'that wants others has to scale them itself.'
    )
  return jnp.asarray(inputs)


def zero_or_nan(room: chex.Array) -> chex.Array:
  """For each example 0 if all of it is >= 0, else NaN: [B, ...] -> [B, 1, ...].

  No gradient flows through it. The NaN is that of a square root, since XLA for
  CPUs may turn the exponential of a constant NaN into any number.
  """
  least = room.min(axis=tuple(range(1, room.ndim)), keepdims=True)
  return jax.lax.stop_gradient(0 * jnp.sqrt(least))


def check_least(least: int, **numbers: int) -> None:
  """Raises a ValueError that names the first that is no integer >= `least`."""
  for name, number in numbers.items():
    try:
      number = operator.index(number)
    except TypeError:  # also for a traced one
      raise ValueError(f'{name} must be an integer, got {number!r}.') from None
    if number < least:
      raise ValueError(f'{name} must be at least {least}, got {number}.')


def check_labels(
  labels: chex.Array, count: int, num_classes: int, *, name: str = 'labels'
) -> chex.Array:
  """Which of `count` labels are classes, bool [count].

  All are, or it raises an error, unless labels are traced; losses then use the
  result to become NaN. The shape is checked since broadcasting would mix
  examples.

  Args:
    name: what the error message calls the labels.

  Raises:
    ValueError: unless labels are integers [count] in [0, num_classes).
  """
  known = not isinstance(labels, jax.core.Tracer)
  labels = np.asarray(labels) if known else labels
  integers = jnp.issubdtype(labels.dtype, jnp.integer)
  if labels.shape != (count,) or not integers:
    raise ValueError(
      f'{name} must be integers of shape {(count,)}, got '
      f'{labels.dtype} of shape {labels.shape}.'
    )
  # Compared in their own dtype: uint8 wraps, and JAX makes int32 of uint32.
  largest = min(num_classes - 1, jnp.iinfo(labels.dtype).max)
  valid = (labels >= 0) & (labels <= labels.dtype.type(largest))
  if known and not valid.all():
    raise ValueError(
      f'{name} must be in [0, {num_classes}), got {labels.min()} to '
      f'{labels.max()}.'
    )
  return valid
