"""Geometry of the balls: l-inf and l2, cut to the pixel box [0, 1].

Shared arguments: `points` and `centers` are [B, ...] float arrays of one
shape, `epsilon` is the radius in units of the pixel range (a float or a traced
scalar), `norm` is 'linf' or 'l2'. A `key` is one PRNG key, or one key per
example ([B]): then what is drawn for an example depends on nothing but its own
key, not on the batch or the device that it sits in.
"""

import chex
import jax
import jax.numpy as jnp

NORMS = ('linf', 'l2')


def check_norm(norm: str) -> None:
  """Raises ValueError unless `norm` is one of `NORMS`."""
  if norm not in NORMS:
    raise ValueError(f'norm must be one of {NORMS}, got {norm!r}.')


def per_example(values: chex.Array, like: chex.Array) -> chex.Array:
  """[B] -> [B, 1, ..., 1] with the rank of `like`."""
  return values.reshape(values.shape + (1,) * (like.ndim - 1))


def norms(deltas: chex.Array, *, norm: str = 'linf') -> chex.Array:
  """Norm of each example of `deltas`, [B, ...] -> [B]."""
  check_norm(norm)
  flat = deltas.reshape(len(deltas), -1)
  if norm == 'linf':
    return jnp.abs(flat).max(axis=1)
  return jnp.linalg.norm(flat, axis=1)


def ball(
  points: chex.Array,
  centers: chex.Array,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
) -> chex.Array:
  """Points moved into the `epsilon`-ball of `centers` and the pixel box.

  For l-inf this is the Euclidean projection onto the intersection. For l2 the
  points are scaled into the ball and then clipped: since the centres lie in
  the box, clipping keeps them in the ball, but the result is the nearest point
  of each set in turn, not of the intersection.

  Raises:
    ValueError: if `norm` is unknown.
  """
  check_norm(norm)
  chex.assert_equal_shape([points, centers])
  deltas = points - centers
  if norm == 'linf':
    deltas = jnp.clip(deltas, -epsilon, epsilon)
  else:
    lengths = jnp.maximum(norms(deltas, norm='l2'), 1e-12)
    deltas *= per_example(jnp.minimum(1.0, epsilon / lengths), deltas)
  return jnp.clip(centers + deltas, 0.0, 1.0)


def normalize_direction(
  gradients: chex.Array, *, norm: str = 'linf'
) -> chex.Array:
  """Direction of unit size that ascends fastest: the sign, or g / ||g||_2.

  An example whose gradient is zero does not move.
  """
  check_norm(norm)
  if norm == 'linf':
    return jnp.sign(gradients)
  # The squares of small gradients would underflow, their directions do not.
  largest = per_example(norms(gradients), gradients)
  scaled = gradients / jnp.where(largest > 0, largest, 1.0)
  lengths = jnp.maximum(norms(scaled, norm='l2'), 1.0)
  return scaled / per_example(lengths, scaled)


def example_keys(key: chex.PRNGKey, num_examples: int) -> chex.PRNGKey:
  """One key per example: `key` split, or `key` itself if it already is [B].

  Raises:
    ValueError: for a key of the old kind, or another number of keys.
  """
  dtype, shape = (getattr(key, name, None) for name in ('dtype', 'shape'))
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not typed or shape not in ((), (num_examples,)):
    raise ValueError(
      f'key must be one jax.random.key or {num_examples}, one per example, got '
      f'{dtype} of shape {shape}.'
    )
  return key if key.ndim else jax.random.split(key, num_examples)


def random_start(
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
) -> chex.Array:
  """Uniform draws from the ball around each input, cut to the pixel box.

  Raises:
    ValueError: if `norm` is unknown.
  """
  check_norm(norm)
  shape, dtype = inputs.shape[1:], inputs.dtype

  def draw(key):
    if norm == 'linf':
      return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
    return jax.random.ball(key, inputs[0].size, p=2, dtype=dtype).reshape(shape)

  noise = jax.vmap(draw)(example_keys(key, len(inputs)))
  return jnp.clip(inputs + epsilon * noise, 0.0, 1.0)
