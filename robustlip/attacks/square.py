"""Square Attack: random search that needs only the network's outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import losses, projections
from robustlip.images import check_images, check_least
from robustlip.types import Batch, LogitsFn

FIRST_SHARE = 0.8  # fraction of the pixels that the first squares cover
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries


def square(
  logits_fn: LogitsFn,
  batch: Batch,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  num_queries: int = 5000,
  norm: str = 'linf',
) -> chex.Array:
  """Points of the ball with the largest margin that random search finds.

  It changes random squares of the image, which shrink over time, and keeps the
  changes that raise the margin. Takes no gradient; stops once all are fooled.

  Args:
    batch: its inputs must be [B, H, W, C].

  Raises:
    ValueError: if a number is out of range.

  Source: Andriushchenko et al. 2020, arXiv:1912.00049, with the sizes that
  AutoAttack gives to the squares.
  """
  inputs = check_images(batch.inputs)
  if inputs.ndim != 4:
    raise ValueError(f'squares need images [B, H, W, C], got {inputs.shape}.')
  check_least(1, num_queries=num_queries)
  radius = projections.check_radius(epsilon, inputs, norm=norm)
  radius = jnp.broadcast_to(radius.reshape(-1), len(inputs))
  search = _linf if norm == 'linf' else _l2
  shape = inputs.shape
  first, propose = search(shape[1:], num_queries)
  keys = projections.example_keys(key, len(inputs))
  inputs = projections.flat(inputs)

  def drawn(count):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, count)

  def query(state):
    """Evaluates the proposals, keeps the better points, makes new proposals."""
    count, proposed, points, margins, fooled = state
    proposed = projections.ball(proposed, inputs, epsilon=epsilon, norm=norm)
    logits = logits_fn(proposed.reshape(shape))
    new_margins = losses.margins(logits, batch.labels).astype(inputs.dtype)
    new_fooled = ~losses.correct(logits, batch.labels)
    better = ((new_margins > margins) | new_fooled) & ~fooled
    points = projections.choose(better, proposed, points)
    deltas = jax.vmap(propose, (0, 0, 0, None))(
      drawn(count + 1), points - inputs, radius, count
    )
    return (
      count + 1,
      inputs + deltas,
      points,
      jnp.where(better, new_margins, margins),
      fooled | new_fooled,
    )

  def unfinished(state):
    count, *_, fooled = state
    return (count <= num_queries) & ~fooled.all()

  start = inputs + jax.vmap(first)(drawn(0), radius)
  state = (
    jnp.zeros((), jnp.int32),
    start,
    projections.ball(start, inputs, epsilon=epsilon, norm=norm),
    jnp.full_like(inputs[:, 0], -jnp.inf),
    jnp.zeros_like(inputs[:, 0], bool),
  )
  points = jax.lax.while_loop(unfinished, query, state)[2]
  return jax.lax.stop_gradient(points.reshape(shape))


# The first perturbation, (key, radius) -> delta, and the next proposal,
# (key, delta, radius, query) -> delta; both for one image, delta flat
_Search = tuple[Callable[..., chex.Array], Callable[..., chex.Array]]


def _linf(shape: tuple[int, ...], num_queries: int) -> _Search:
  """The l-inf search: vertical stripes, then one-coloured squares."""
  height, width, channels = shape
  sides = jnp.asarray(_sides(height, width, num_queries))
  rows, columns, colours = np.indices(shape).reshape(3, -1)

  def first(key, radius):
    signs = jax.random.rademacher(key, (1, width, channels), radius.dtype)
    return radius * jnp.broadcast_to(signs, shape).ravel()

  def propose(key, delta, radius, query):
    drawn, side = jax.random.uniform(key, (2 + channels,)), sides[query]
    top = jnp.floor(drawn[0] * (height - side + 1))
    left = jnp.floor(drawn[1] * (width - side + 1))
    inside = (rows >= top) & (rows < top + side)
    inside &= (columns >= left) & (columns < left + side)
    change = 0.0
    for channel in range(channels):
      sign = jnp.where(drawn[2 + channel] < 0.5, -1.0, 1.0)
      change += jnp.where(inside & (colours == channel), sign, 0.0)
    return delta + 2 * radius * change

  return first, propose


def _window(key, height, width, side):
  """A random square: (row, column) within it of every pixel, -1 outside."""
  top, left = jax.random.randint(
    key, (2,), 0, jnp.array([height, width]) - side + 1
  )
  rows = jnp.arange(height)[:, None] - top
  columns = jnp.arange(width)[None] - left
  inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
  return jnp.where(inside, rows, -1), jnp.where(inside, columns, -1)


def _sides(height: int, width: int, num_queries: int) -> np.ndarray:
  """The side of the square of every query after the start, int32."""
  halvings = np.searchsorted(HALVED_AFTER, np.arange(1, num_queries + 1))
  sides = np.sqrt(FIRST_SHARE / 2.0**halvings * height * width)
  return np.clip(np.rint(sides), 1, min(height, width)).astype(np.int32)


def _l2(shape: tuple[int, ...], num_queries: int) -> _Search:
  """The l2 search: tiled bumps, then bumps that take another square's norm."""
  height, width, channels = shape
  sides = _sides(height, width, num_queries)
  most = min(height, width)
  sides = np.minimum(np.maximum(sides, 3) // 2 * 2 + 1, (most - 1) // 2 * 2 + 1)
  distinct, which = np.unique(sides, return_inverse=True)
  bumps = np.zeros((len(distinct), most, most), np.float32)
  for bump, side in zip(bumps, distinct, strict=True):
    bump[:side, :side] = _bump(side)
  bumps, sides, which = map(jnp.asarray, (bumps, sides, which))
  tile = max(most // 5, 1)
  count = height // tile, width // tile, channels

  def first(key, radius):
    signs = jax.random.rademacher(key, count, radius.dtype)
    tiles = jnp.kron(signs, _bump(tile)[..., None].astype(radius.dtype))
    rest = height - tiles.shape[0], width - tiles.shape[1]  # not perturbed
    edges = [(n // 2, n - n // 2) for n in rest]
    return _rescaled(jnp.pad(tiles, [*edges, (0, 0)]), radius).ravel()

  def propose(key, delta, radius, query):
    one, two, sign, turn = jax.random.split(key, 4)
    side, delta = sides[query], delta.reshape(shape)
    rows, columns = _window(one, height, width, side)
    target = (rows >= 0)[..., None]
    giver = (_window(two, height, width, side)[0] >= 0)[..., None]
    bump = bumps[which[query]][rows, columns][..., None]
    turned = bumps[which[query]][columns, rows][..., None]
    bump = jnp.where(jax.random.bernoulli(turn), turned, bump)
    colour = jax.random.rademacher(sign, (channels,), radius.dtype)
    per_channel = partial(jnp.sum, axis=(0, 1), keepdims=True)

    old = jnp.where(target, delta, 0.0)
    old /= jnp.sqrt(per_channel(old**2)) + 1e-12
    new = jnp.where(target, bump * colour[None, None] + old, 0.0)
    new /= jnp.sqrt(per_channel(new**2)) + 1e-12
    unused = jnp.maximum(radius**2 - (delta**2).sum(), 0.0) / channels
    budget = per_channel(jnp.where(target | giver, delta, 0.0) ** 2) + unused
    kept = jnp.where(target | giver, 0.0, delta)
    return _rescaled(kept + new * jnp.sqrt(budget), radius).ravel()

  return first, propose


def _rescaled(delta, radius):
  return radius * delta / jnp.maximum(jnp.sqrt((delta**2).sum()), 1e-12)


def _bump(side: int) -> np.ndarray:
  """Two peaks of opposite sign side by side, l2 norm 1, [side, side]."""
  half = side // 2
  bump = np.concatenate([_peak(half, side), -_peak(side - half, side)])
  return bump / np.linalg.norm(bump)


def _peak(height: int, width: int) -> np.ndarray:
  """A stack of concentric squares, l2 norm 1, [height, width].

  The k-th reaches k pixels from the middle and adds a height of 1 / (k + 1)^2.
  """
  if not height:
    return np.zeros((0, width))
  rows = np.abs(np.arange(height) - height // 2)
  columns = np.abs(np.arange(width) - width // 2)
  reach = np.maximum(rows[:, None], columns)
  count = max(height, width) // 2 + 1
  tails = np.cumsum(1.0 / np.arange(count, 0, -1) ** 2)[::-1]
  peak = tails[reach]
  return peak / np.linalg.norm(peak)
