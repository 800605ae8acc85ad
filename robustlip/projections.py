"""Geometry of the balls: l-inf and l2, cut to the pixel box [0, 1].

Shared arguments: `points` and `centers` are [B, ...] float arrays of one
shape; `epsilon` is the radius in units of the pixel range, a number or one per
example ([B]), which may be traced; `norm` is 'linf' or 'l2'. A `key` is one
PRNG key or one per example ([B]); with the latter, the draws for an example
depend on its own key alone, not on its batch or device.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

NORMS = ('linf', 'l2')
ONE_NUMBER = np.zeros((), np.float32)
HALVINGS = 30  # bisection steps, enough for float32


def check_norm(norm: str) -> None:
  """Raises ValueError unless `norm` is one of `NORMS`."""
  if norm not in NORMS:
    raise ValueError(f'norm must be one of {NORMS}, got {norm!r}.')


def check_numbers(
  numbers: chex.Numeric,
  like: chex.Array = ONE_NUMBER,
  *,
  name: str,
  highest: float = math.inf,
) -> chex.Array:
  """A number or one per example as an array that broadcasts with `like`.

  Args:
    like: [B, ...], which fixes dtype and rank of the result; the default takes
      a single number.
    name: what the error message calls the numbers.
    highest: the largest number allowed.

  Returns:
    [] or [B, 1, ...]. Traced numbers out of range become NaN, so that whatever
    is computed from them is NaN too.

  Raises:
    ValueError: for another shape, or numbers that are not finite or outside
      [0, highest], unless they are traced.
  """
  shape = jnp.shape(numbers)
  if shape not in ((), like.shape[:1]):
    raise ValueError(
      f'{name} must be a number or one per example, {like.shape[:1]}, got '
      f'shape {shape}.'
    )
  if not isinstance(numbers, jax.core.Tracer):
    known = np.asarray(numbers)
    if not np.all((known >= 0) & (known <= highest) & np.isfinite(known)):
      limit = 'finite' if math.isinf(highest) else f'at most {highest:g}'
      raise ValueError(f'{name} must be at least 0 and {limit}, got {known}.')
  values = jnp.asarray(numbers).astype(like.dtype)
  right = (values >= 0) & (values <= highest) & jnp.isfinite(values)
  values = jnp.where(right, values, jnp.nan)
  return per_example(values, like) if shape else values


def check_radius(
  epsilon: chex.Numeric, centers: chex.Array, *, norm: str = 'linf'
) -> chex.Array:
  """`epsilon` as `check_numbers` returns it; at most 1 for l-inf.

  Raises:
    ValueError: if `norm` is unknown or `epsilon` out of range.
  """
  check_norm(norm)
  highest = 1.0 if norm == 'linf' else math.inf
  return check_numbers(epsilon, centers, name='epsilon', highest=highest)


def flat(images: chex.Array) -> chex.Array:
  """[B, ...] -> [B, D].

  On a CPU a loop over [B, D] with a number for each example is many times as
  fast as one over images whose last axis, the channels, is short.
  """
  return images.reshape(len(images), math.prod(images.shape[1:]))


def per_example(values: chex.Array, like: chex.Array) -> chex.Array:
  """[B] -> [B, 1, ..., 1] with the rank of `like`."""
  return values.reshape(values.shape + (1,) * (like.ndim - 1))


def choose(
  where: chex.Array, points: chex.Array, others: chex.Array
) -> chex.Array:
  """Each example of `points` where [B] is true, of `others` elsewhere."""
  return jnp.where(per_example(where, points), points, others)


def norms(deltas: chex.Array, *, norm: str = 'linf') -> chex.Array:
  """Norm of each example of `deltas`, [B, ...] -> [B]."""
  check_norm(norm)
  deltas = flat(deltas)
  if norm == 'linf':
    return jnp.abs(deltas).max(axis=1)
  return jnp.linalg.norm(deltas, axis=1)


def ball(
  points: chex.Array,
  centers: chex.Array,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
) -> chex.Array:
  """The Euclidean projection onto the ball of `centers` cut to the box.

  `centers` must lie in the box.

  Raises:
    ValueError: if `norm` is unknown or `epsilon` out of range.
  """
  radius = check_radius(epsilon, centers, norm=norm)
  chex.assert_equal_shape([points, centers])
  deltas = points - centers
  if norm == 'l2':
    scale = _scale_into_ball(deltas, centers, radius)
    deltas *= per_example(scale, deltas)
  else:
    deltas = jnp.clip(deltas, -radius, radius)
  return jnp.clip(centers + deltas, 0.0, 1.0)


def _scale_into_ball(deltas, centers, radius):
  """The largest s in [0, 1] with ||clip(c + s d) - c||_2 <= radius, [B].

  clip(c + s d) is then the projection onto ball and box, by the KKT conditions:
  the multiplier of the ball shrinks d, those of the box clip.
  """
  radius = radius.reshape(-1) if radius.ndim else radius

  def fits(scales):
    moved = centers + per_example(scales, deltas) * deltas
    lengths = norms(jnp.clip(moved, 0.0, 1.0) - centers, norm='l2')
    return lengths <= radius

  def halve(_, bracket):
    low, high = bracket
    middle = jnp.sqrt(low) * jnp.sqrt(high)  # geometric mean
    below = fits(middle)
    return jnp.where(below, middle, low), jnp.where(below, high, middle)

  lengths = jnp.maximum(norms(deltas, norm='l2'), 1e-30)
  low = jnp.minimum(1.0, radius / lengths)
  whole = jnp.ones_like(low)
  low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (low, whole))
  return jnp.where(fits(whole), whole, low)


def normalize_direction(
  gradients: chex.Array, *, norm: str = 'linf'
) -> chex.Array:
  """Direction of unit size that ascends fastest: the sign, or g / ||g||_2.

  An example whose gradient is zero does not move. A component that is NaN
  counts as zero, an infinite one as a very large number.
  """
  check_norm(norm)
  # Reciprocals of larger numbers are subnormal: some devices flush them to 0.
  gradients = jnp.clip(jnp.nan_to_num(gradients), -1e30, 1e30)
  if norm == 'linf':
    return jnp.sign(gradients)
  # The squares of small gradients would underflow, their directions do not.
  largest = per_example(norms(gradients), gradients)
  scaled = gradients / jnp.where(largest > 0, largest, 1.0)
  lengths = jnp.maximum(norms(scaled, norm='l2'), 1.0)
  return scaled / per_example(lengths, scaled)


def example_keys(key: chex.PRNGKey, num_examples: int) -> chex.PRNGKey:
  """One Threefry key per example: `key` split, or as it is if already [B].

  Raises:
    ValueError: for an old-style uint32 key, or another number of keys.
  """
  key = threefry(key)
  if key.shape not in ((), (num_examples,)):
    raise ValueError(
      f'key must be one jax.random.key or {num_examples}, one per example, got '
      f'shape {key.shape}.'
    )
  return key if key.ndim else jax.random.split(key, num_examples)


def other_keys(
  key: chex.PRNGKey, num_examples: int, numbers: chex.Numeric
) -> chex.PRNGKey:
  """One key per example, [B], with `numbers` (one or [B]) folded in."""
  keys = example_keys(key, num_examples)
  numbers = jnp.broadcast_to(jnp.asarray(numbers), num_examples)
  return jax.vmap(jax.random.fold_in)(keys, numbers)


def threefry(key: chex.PRNGKey) -> chex.PRNGKey:
  """Converts keys of any generator to Threefry: draws then ignore the batch.

  With JAX_DEFAULT_PRNG_IMPL=rbg, `vmap` over keys draws other numbers than each
  key does by itself.

  Raises:
    ValueError: for an old-style uint32 key (`jax.random.PRNGKey`).
  """
  dtype = getattr(key, 'dtype', type(key))
  if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise ValueError(f'key must be of jax.random.key, got {dtype}.')
  if jax.random.key_impl(key) == 'threefry2x32':
    return key
  words = jax.random.key_data(key)[..., :2]  # threefry's own for a fresh key
  return jax.random.wrap_key_data(words, impl='threefry2x32')


def random_start(
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
) -> chex.Array:
  """Uniform draws from the ball around each input, cut to the pixel box.

  Raises:
    ValueError: if `norm` is unknown or `epsilon` out of range.
  """
  radius = check_radius(epsilon, inputs, norm=norm)
  shape, dtype = inputs.shape[1:], inputs.dtype

  def draw(key):
    if norm == 'linf':
      return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
    return jax.random.ball(key, inputs[0].size, p=2, dtype=dtype).reshape(shape)

  noise = jax.vmap(draw)(example_keys(key, len(inputs)))
  return jnp.clip(inputs + radius * noise, 0.0, 1.0)
