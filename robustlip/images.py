"""Images and labels: bytes to floats, and checks of what is given."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

_FLOATS = np.arange(256, dtype=np.float32) / np.float32(255)


def from_bytes(images: chex.Array) -> chex.Array:
  """uint8 images as float32 in [0, 1], the same on the host and compiled.

  XLA would divide by 255 as it multiplies by 1 / 255, which rounds otherwise.

  Raises:
    ValueError: for images of another type, which may be scaled already.
  """
  if images.dtype != jnp.uint8:
    raise ValueError(f'images must be uint8, 0 to 255, got {images.dtype}.')
  if isinstance(images, np.ndarray):
    return _FLOATS[images]
  return jnp.asarray(_FLOATS)[images]


def check_images(inputs: chex.Array) -> chex.Array:
  """The images [B, ...] if they are float32 in [0, 1].

  Values are refused where they are known. Within `jax.jit` they are not: there
  an example with a value out of range becomes NaN as a whole, which no later
  step can take for a robust or a smooth one.

  Raises:
    ValueError: for another type, no images, or known values out of range.
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
  """0 for an example of [B, ...] with nothing below 0, else NaN: [B, 1, ...].

  No gradient flows through it. By a root, since XLA for CPUs makes any number
  of the exponential of a NaN that it knows.
  """
  least = room.min(axis=tuple(range(1, room.ndim)), keepdims=True)
  return jax.lax.stop_gradient(0 * jnp.sqrt(least))


def check_labels(
  labels: chex.Array, count: int, num_classes: int, *, name: str = 'labels'
) -> chex.Array:
  """Which of `count` labels are classes, bool [count].

  Labels that broadcast would mix examples. Values are refused where they are
  known; within `jax.jit`, where they are not, a loss is NaN instead.

  Args:
    name: what the message of an error calls the labels.

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
  # In their own type: bytes wrap around, and JAX makes int32 of uint32.
  largest = min(num_classes - 1, jnp.iinfo(labels.dtype).max)
  valid = (labels >= 0) & (labels <= labels.dtype.type(largest))
  if known and not valid.all():
    raise ValueError(
      f'{name} must be in [0, {num_classes}), got {labels.min()} to '
      f'{labels.max()}.'
    )
  return valid
