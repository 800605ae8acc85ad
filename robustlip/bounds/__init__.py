"""Bounds on what a network can output anywhere in a box of inputs.

Shared arguments: `logits_fn` maps [B, ...] float32 inputs to logits [B, C],
each example by itself: a network in inference mode. `lower` and `upper` are
the corners of one box for each example. The bounds hold for exact arithmetic
and for float32 at full precision alike (not for TF32 or bfloat16 products),
and are meant to be called under `jax.jit`. If a box is a single point, they
are the network's own float32 logits. Linear bounds replace a logit of -inf, a
class that is never predicted, by -2**125. If the interval of a divisor, or of
the argument of a logarithm or root, reaches 0 or below, bounds are NaN, and
nothing is certified.

`interval` propagates a box through the network (Gowal et al. 2018,
arXiv:1810.12715). `linear` propagates linear bounds, called lines here, from
the logits back to the inputs, which keeps track of terms that cancel (CROWN,
Zhang et al. 2018, arXiv:1811.00866).

A network may have affine layers, pooling, normalisation, attention, skip
connections, loops of known length (`jax.lax.scan`) and most activations of
`jax.nn`. A primitive without a rule raises a ValueError that names it and the
module it is in.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax

from robustlip import projections
from robustlip.bounds import walk
from robustlip.bounds.rules import UNIT, Bound
from robustlip.images import check_images, check_least, zero_or_nan
from robustlip.losses import check_labels, check_logits, correct, is_class
from robustlip.types import Batch, LogitsFn

METHODS = ('interval', 'linear', 'alpha', 'crown')  # cheapest first


def interval(
  logits_fn: LogitsFn, lower: chex.Array, upper: chex.Array
) -> Bound:
  """Bounds [B, C] of the logits by interval arithmetic.

  Raises:
    ValueError: if a primitive of the network has no rule, or if the boxes are
      not pairs of float32 arrays.
  """
  lower, upper = ordered(lower, upper)

  def one(*box):
    network = walk.trace_one(logits_fn, lower.shape)
    return walk.forward(network, box)[network.output]

  return _exact_at_points(logits_fn, lower, upper, jax.vmap(one)(lower, upper))


def linear(
  logits_fn: LogitsFn,
  lower: chex.Array,
  upper: chex.Array,
  *,
  weights: chex.Array | None = None,
  tighten: bool = False,
  num_steps: int = 0,
) -> Bound:
  """Linear bounds [B, K] of `weights` times the logits.

  Args:
    weights: [B, K, C]; None bounds the logits themselves.
    tighten: whether inputs of nonlinearities get linear bounds too, unit by
      unit and one example after the other: CROWN as published. Otherwise they
      get intervals: CROWN-IBP (Zhang et al. 2020, arXiv:1906.06316).
    num_steps: steps of Adam on the lower slopes of unstable maxima (ReLUs),
      for each output separately (alpha-CROWN, Xu et al. 2021,
      arXiv:2011.13824).

  Raises:
    ValueError: as `interval`.
  """
  lower, upper = ordered(lower, upper)
  logits = jax.eval_shape(logits_fn, lower)
  check_logits(logits, fewest=1)
  examples, classes = logits.shape
  if weights is None:
    weights = jnp.eye(classes, dtype=jnp.float32)
    weights = jnp.broadcast_to(weights, (examples, classes, classes))
  weights = jnp.asarray(weights, jnp.float32)
  if weights.ndim != 3 or weights.shape[::2] != logits.shape:
    raise ValueError(
      f'weights must be [{examples}, K, {classes}], got {weights.shape}.'
    )
  sides = jnp.concatenate([weights, -weights], axis=1)
  settings = dict(tighten=tighten, num_steps=num_steps)
  least = _lower_bounds(logits_fn, (lower, upper), sides, **settings)
  below, above = jnp.split(least, 2, axis=1)
  bound = below, -above
  return _exact_at_points(logits_fn, lower, upper, bound, weights)


def _lower_bounds(
  logits_fn, boxes, weights, *, lines=True, tighten=False, num_steps=0
):
  """Lower bounds [B, K] of `weights` [B, K, C] times the logits.

  Args:
    lines: False uses only the intervals of the last layer's inputs.
  """

  def one(box_and_weights):
    box, weights = box_and_weights
    network = walk.trace_one(logits_fn, boxes[0].shape)
    bounds = walk.forward(network, box, tighten=tighten)
    if lines:
      return walk.climb(network, bounds, weights, num_steps=num_steps)
    output = {network.output: weights}
    return walk.backward(network, bounds, output, lines=False)

  return walk.over_examples(one, (boxes, weights), tighten=tighten)


def margins(
  logits_fn: LogitsFn,
  batch: Batch,
  *,
  epsilon: chex.Numeric,
  method: str = 'linear',
  num_steps: int = 20,
) -> chex.Array:
  """Lower bounds [B, C] of the label's logit minus each other; 0 at the label.

  They hold on the l-inf ball of radius `epsilon` cut to the pixel box. The
  difference is merged into the last layer. NaN for a traced label that is no
  class.

  Args:
    method: 'interval', 'linear', 'alpha' (`linear` with `num_steps`) or
      'crown' (with `tighten` as well).
    num_steps: steps of Adam.

  Raises:
    ValueError: if the method is unknown, labels do not fit, or as `interval`.
  """
  if method not in METHODS:
    raise ValueError(f'method must be one of {METHODS}, got {method!r}.')
  check_least(0, num_steps=num_steps)
  logits = jax.eval_shape(logits_fn, batch.inputs)
  valid = check_labels(logits, batch.labels)
  classes = jnp.eye(logits.shape[-1], dtype=jnp.float32)
  own = is_class(batch.labels, len(classes))
  settings = dict(lines=False)
  if method != 'interval':
    steps = 0 if method == 'linear' else num_steps
    settings = dict(tighten=method == 'crown', num_steps=steps)
  boxes = ball(batch.inputs, epsilon=epsilon)
  weights = own[:, None] - classes[None]
  least = _lower_bounds(logits_fn, boxes, weights, **settings)
  return jnp.where(valid[:, None], jnp.where(own, 0.0, least), jnp.nan)


def certified(
  logits_fn: LogitsFn, batch: Batch, *, epsilon: chex.Numeric, **settings
) -> chex.Array:
  """Whether every point of the ball is provably classified as the label, [B].

  Settings and errors are those of `margins`. At `epsilon` 0 it is whether the
  prediction is the label.
  """
  least = margins(logits_fn, batch, epsilon=epsilon, **settings)
  own = is_class(batch.labels, least.shape[-1])
  safe = (own | (least > 0)).all(axis=-1)
  logits = logits_fn(check_images(batch.inputs))
  right = correct(logits, batch.labels)
  return jnp.where(jnp.asarray(epsilon) == 0, right, safe & right)


def cross_entropy(
  logits_fn: LogitsFn,
  batch: Batch,
  *,
  epsilon: chex.Numeric,
  lines: chex.Numeric | None = None,
) -> chex.Array:
  """Upper bound of the cross entropy over the ball, [B], for training.

  Args:
    lines: weight in [0, 1] of the linear margins, the rest goes to those of
      intervals; at 0 the linear ones are not computed. None is intervals alone.

  Raises:
    ValueError: if `lines` is out of range, or as `margins`; inside `jax.jit`
      the bound is NaN instead.

  Source: Gowal et al. 2018, arXiv:1810.12715; with `lines`, Zhang et al. 2020,
  arXiv:1906.06316, Eq. (9).
  """
  least = margins(logits_fn, batch, epsilon=epsilon, method='interval')
  if lines is not None:
    lines = projections.check_numbers(lines, name='lines', highest=1.0)
    other = lax.cond(
      jnp.asarray(lines) > 0,
      lambda: margins(logits_fn, batch, epsilon=epsilon, method='linear'),
      lambda: least,
    )
    least = (1 - lines) * least + lines * other
  unknown = jnp.isnan(least).any(axis=-1)
  # XLA for CPUs may turn the exponential of a constant NaN into any number.
  least = jnp.where(unknown[:, None], 0.0, least)
  return jnp.where(unknown, jnp.nan, jax.nn.logsumexp(-least, axis=-1))


def ball(inputs: chex.Array, *, epsilon: chex.Numeric) -> Bound:
  """Corners of the l-inf balls cut to the pixel box, rounded outwards.

  Raises:
    ValueError: unless images and radius are in [0, 1]; inside `jax.jit` the
      corners are NaN instead, and nothing is certified.
  """
  inputs = check_images(inputs)
  radius = projections.check_radius(epsilon, inputs)
  radius = jnp.where(radius > 0, radius + 4 * UNIT, radius)
  corners = inputs - radius, inputs + radius
  lower, upper = (jnp.clip(corner, 0.0, 1.0) for corner in corners)
  check_boxes(lower, upper)
  return lower, upper


def ordered(lower: chex.Array, upper: chex.Array) -> Bound:
  """The corners, checked for lower <= upper.

  Inside `jax.jit`, where this cannot raise an error, both corners of a box with
  lower > upper become NaN, and so do its bounds.

  Raises:
    ValueError: as `check_boxes`, or for lower > upper unless traced.
  """
  check_boxes(lower, upper)
  if isinstance(lower, jax.core.Tracer) or isinstance(upper, jax.core.Tracer):
    nothing = zero_or_nan(upper - lower)
    return lower + nothing, upper + nothing
  if not (lower <= upper).all():
    raise ValueError('boxes must have lower <= upper everywhere, without NaN.')
  return lower, upper


def check_boxes(lower: chex.Array, upper: chex.Array) -> None:
  """Raises ValueError unless they are float32 [B, ...] of one shape."""
  for corner in (lower, upper):
    if corner.shape != lower.shape or corner.ndim < 2:
      raise ValueError(
        'boxes must be two arrays [B, ...] of one shape, got '
        f'{lower.shape} and {upper.shape}.'
      )
    if corner.dtype != jnp.float32:
      raise ValueError(f'boxes must be float32, got {corner.dtype}.')
  if not lower.size:
    raise ValueError(f'there are no boxes: corners are {lower.shape}.')


def _exact_at_points(logits_fn, lower, upper, bound, weights=None) -> Bound:
  """Replaces the bounds of boxes that are single points by the plain output."""
  point = (lower == upper).reshape(len(lower), -1).all(axis=1)

  def plain():
    logits = logits_fn(lower)
    if weights is None:
      return logits
    return jnp.einsum('bkc,bc->bk', weights, logits, precision='highest')

  values = lax.cond(point.any(), plain, lambda: jnp.zeros_like(bound[0]))
  low, high = (jnp.where(point[:, None], values, end) for end in bound)
  return low, high
