"""The empirical local Lipschitz constant, the paper's Eq. (3).

Shared arguments: `logits_fn` maps [B, H, W, C] images in [0, 1] to logits and
should be in inference mode; `key` is one PRNG key or one per example; `norm` is
that of the ball and of x - x', the paper's 'linf' or 'l2'.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp

from robustlip import attacks, bounds, losses, projections
from robustlip.bounds import change, walk
from robustlip.images import check_images
from robustlip.types import LogitsFn


class Estimate(NamedTuple):
  """A lower bound on each local Lipschitz constant, and x' that attains it."""

  ratios: chex.Array  # [B], logit units per unit of the pixel range
  points: chex.Array  # [B, H, W, C]


def slope(
  clean: chex.Array,
  logits: chex.Array,
  deltas: chex.Array,
  *,
  norm: str = 'linf',
) -> chex.Array:
  """||clean - logits||_1 / ||deltas||, [B]; 0 where a delta is 0.

  A logit that is -inf in both, a class that is never predicted, adds nothing.

  Raises:
    ValueError: unless there are logits [B, C] for each of the deltas.
  """
  losses.check_logits(clean, fewest=1)
  if not len(clean) == len(logits) == len(deltas):
    raise ValueError(
      f'the network must return logits for each of {len(deltas)} images, got '
      f'{len(clean)} and {len(logits)}.'
    )
  same = (clean == logits) & (clean < jnp.inf)
  change = jnp.where(same, 0.0, clean) - jnp.where(same, 0.0, logits)
  rise = jnp.abs(change).sum(axis=-1)
  lengths = projections.norms(deltas)
  still = lengths == 0
  lengths = jnp.where(still, 1.0, lengths)
  if norm != 'linf':  # relative to the largest: small squares would underflow
    scaled = deltas / projections.per_example(lengths, deltas)
    scaled = jnp.where(projections.per_example(still, deltas), 1.0, scaled)
    lengths *= projections.norms(scaled, norm=norm)
  return jnp.where(still, 0.0, rise / lengths)


def ratio(
  logits_fn: LogitsFn,
  inputs: chex.Array,
  points: chex.Array,
  *,
  norm: str = 'linf',
) -> chex.Array:
  """||f(x) - f(x')||_1 / ||x - x'||, [B]; 0 where x' = x.

  Raises:
    ValueError: unless both are floats in [0, 1].

  Source: the paper's Eq. (3), inside the maximum.
  """
  chex.assert_equal_shape([inputs, points])
  inputs, points = check_images(inputs), check_images(points)
  return slope(logits_fn(inputs), logits_fn(points), inputs - points, norm=norm)


def estimate(
  logits_fn: LogitsFn,
  inputs: chex.Array,
  key: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  step_size: chex.Numeric | None = None,
  num_steps: int = 10,
  norm: str = 'linf',
  start: chex.Array | None = None,
  keep: str = 'best',
) -> Estimate:
  """Maximises the ratio over the ball by projected ascent.

  What is found is attained by a point of the ball, hence a lower bound on the
  maximum of Eq. (3); more steps only raise it when `keep` is 'best'.

  Args:
    epsilon: radius of the ball in units of the pixel range.
    step_size: None is the paper's epsilon / 5; see `attacks.ascend`.
    start: explicit first point, other than the input itself, where the ratio
      has no gradient; None draws it uniformly from the ball. It is projected.
    keep: 'best' or 'last' iterate, see `attacks.ascend`.

  Raises:
    ValueError: if a number or `keep` is out of range.

  Source: the paper's Eq. (3) and Section 5.1 (10 steps of epsilon / 5).
  """
  inputs = check_images(inputs)
  clean = logits_fn(inputs)

  def objective(points):
    return slope(clean, logits_fn(points), inputs - points, norm=norm)

  if start is None:
    start = projections.random_start(inputs, key, epsilon=epsilon, norm=norm)
    # In a corner of the box, clipping may return the input: start inwards then.
    still = projections.flat(start == inputs).all(axis=1)
    start = jnp.where(projections.per_example(still, start), 0.5, start)
  points = attacks.ascend(
    objective,
    inputs,
    key,
    epsilon=epsilon,
    step_size=epsilon / 5 if step_size is None else step_size,
    num_steps=num_steps,
    norm=norm,
    start=start,
    keep=keep,
  )
  return Estimate(objective(points), points)


def upper_bound(
  logits_fn: LogitsFn,
  inputs: chex.Array,
  *,
  epsilon: chex.Numeric,
  tighten: bool = False,
) -> chex.Array:
  """Upper bounds [B] of Eq. (3) in l-inf: no point has a larger ratio.

  They hold in exact arithmetic: as x' approaches x, rounding makes the ratio of
  float32 logits arbitrarily large. Tight for affine networks of at most 12
  classes where the pixel box does not cut the ball; see `bounds.change`. Takes
  some hundred times as long as the network.

  Args:
    epsilon: radius of the ball in units of the pixel range.
    tighten: whether units get linear bounds, see `bounds.linear`.

  Raises:
    ValueError: if a primitive of the network has no rule, see `bounds`.
  """
  inputs = check_images(inputs)
  lower, upper = bounds.ball(inputs, epsilon=epsilon)

  def one(image_and_box):
    image, *box = image_and_box
    network = walk.trace_one(logits_fn, inputs.shape)
    return change.rate(network, image, tuple(box), tighten=tighten)

  examples = inputs, lower, upper
  values = walk.over_examples(one, examples, tighten=tighten)
  unknown = jnp.isnan(lower).any(axis=tuple(range(1, lower.ndim)))
  return jnp.where(unknown, jnp.nan, values)
