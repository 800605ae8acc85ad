"""What each primitive does to intervals, to lines and to slopes.

All bounds hold for the network in exact arithmetic and in float32, with sums in
any order: every rounding, the network's and ours, is counted, and the bounds
are widened by the largest error that so many roundings can make. Bounds are
pairs (lower, upper) of the shape of what they bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from robustlip.bounds.graph import SMOOTH, Step, Variable, evaluate, is_float

Bound = tuple[chex.Array, chex.Array]

UNIT = 2.0**-24  # relative error of one float32 rounding
TINY = 1e-30  # more than any one sum can lose by underflow
_NARROW = 1e-8  # width up to which the slope of a line does not matter
_HUGE = 2.0**125  # replaces infinities, such as the padding of a max pooling


def gamma(count: int) -> float:
  """Relative error of `count` roundings, and of computing a bound from it."""
  return 1.05 * (count + 12) * UNIT


def outward(bound: Bound, *, count: int = 4, absolute: float = TINY) -> Bound:
  """Moves both ends outwards by `count` roundings."""

  def slack(end):  # an infinite end stays where it is
    return count * UNIT * jnp.abs(jnp.where(jnp.isinf(end), 0, end)) + absolute

  return bound[0] - slack(bound[0]), bound[1] + slack(bound[1])


def _not_infinite(constant: chex.Array) -> chex.Array:
  return jnp.nan_to_num(constant, nan=jnp.nan, posinf=_HUGE, neginf=-_HUGE)


def magnitude(bound: Bound) -> chex.Array:
  """The largest absolute value within a bound."""
  return jnp.maximum(jnp.abs(bound[0]), jnp.abs(bound[1]))


# --- Affine steps -----------------------------------------------------------


def _dot_terms(step):
  (left, right), (batch, _) = step.params['dimension_numbers']
  shapes = [v.shape for v in step.operands]
  constant = int(isinstance(step.operands[0], Variable))
  inner = math.prod(shapes[0][axis] for axis in left)
  shared = math.prod(shapes[0][axis] for axis in batch)
  return inner, math.prod(shapes[constant]) // max(inner * shared, 1)


def _conv_terms(step):
  kernel = step.operands[1].shape
  if 'dimension_numbers' in step.params:
    out_axis, in_axis, *_ = step.params['dimension_numbers'].rhs_spec
  else:
    out_axis, in_axis = 3, 2
  size = math.prod(kernel)
  return size // kernel[out_axis], size // kernel[in_axis]


def _ratio(many, few):
  """How many values of one array belong to a value of another, at least 1."""
  return max(math.prod(many.shape) // max(math.prod(few.shape), 1), 1)


def _broadcast_terms(step):
  return 0, _ratio(step.outputs[0], step.variables[0])


def _sum_terms(step):
  return _ratio(step.variables[0], step.outputs[0]), 1


def _window(step):
  size = math.prod(step.params['window_dimensions'])
  return size, size


_MOVES = set(
  'concatenate convert_element_type copy copy_p dynamic_slice neg '
  'optimization_barrier pad reshape rev select_n slice split squeeze '
  'expand_dims transpose'.split()
)
# Primitive -> terms in the sum for one output, and for one cotangent.
_AFFINE = {
  **dict.fromkeys(_MOVES, lambda step: (0, 0)),
  **dict.fromkeys(('add', 'add_any', 'sub', 'mul', 'div'), lambda step: (1, 1)),
  'broadcast_in_dim': _broadcast_terms,
  # One input may be every output.
  'gather': lambda step: (0, math.prod(step.outputs[0].shape)),
  'reduce_sum': _sum_terms,
  'reduce_window_sum': _window,
  'dot_general': _dot_terms,
  'conv_general_dilated': _conv_terms,
  'convolution': _conv_terms,  # that of robustlip.models
}
_BILINEAR = {'mul', 'div', 'dot_general', 'conv_general_dilated', 'convolution'}
# Affine only if the first operand is the variable.
_FIRST_ONLY = {'div', 'conv_general_dilated', 'convolution'}
# Constant operands are added to the variable or placed next to it.
_PLACED = {'add', 'add_any', 'sub', 'pad', 'concatenate', 'select_n'}


def is_affine(step: Step) -> bool:
  """Whether the outputs are affine in the variables."""
  if step.name not in _AFFINE:
    return False
  if step.name not in _BILINEAR:
    return True
  if len(step.variables) != 1:
    return False
  first = isinstance(step.operands[0], Variable)
  return first or step.name not in _FIRST_ONLY


def absolute(
  step: Step, values: Sequence[chex.Array], *, linear: bool = False
) -> list[chex.Array]:
  """Applies an affine step with absolute constants, and + in place of -.

  Args:
    linear: whether to leave out constants that are added.
  """

  def constant(array):
    if not is_float(array):
      return array
    if step.name not in _PLACED:
      return jnp.abs(array)
    return jnp.zeros_like(array) if linear else jnp.abs(_not_infinite(array))

  if step.name == 'neg':
    return list(values)
  operands = step.fill(values, constant)
  if step.name == 'sub':
    return [operands[0] + operands[1]]
  return evaluate(step.primitive, operands, step.params)


def _finite(step) -> Step:
  """The step, with a large number in place of an infinite padding value."""
  if step.name != 'pad':
    return step
  inputs, value = step.operands
  if not isinstance(value, Variable):
    value = _not_infinite(value)
  return step._replace(operands=(inputs, value))


def _affine_interval(step, bounds) -> list[Bound]:
  step = _finite(step)
  fan_in, _ = _AFFINE[step.name](step)
  if step.name in ('add', 'add_any', 'sub', 'neg'):
    found = _signed_sum(
      step.name, *step.fill(bounds, lambda array: (array, array))
    )
    # A sum with a constant is NaN only where the variable is.
    several = all(isinstance(v, Variable) for v in step.operands)
    return [_nan_if_unbounded(found) if several else found]
  lowers, uppers = zip(*bounds, strict=True)
  if not fan_in:
    ends = step.apply(lowers), step.apply(uppers)
    return list(zip(*ends, strict=True))
  ((lower, upper),) = bounds
  center, radius = lower / 2 + upper / 2, upper / 2 - lower / 2
  reach = radius + gamma(3 * fan_in) * (jnp.abs(center) + radius)
  (middle,), (spread,) = step.apply([center]), absolute(step, [reach])
  middle += 0 * spread  # NaN if spread is infinite, as in `_nan_if_unbounded`
  return [(middle - (spread + TINY), middle + (spread + TINY))]


def _signed_sum(name, a, b=None) -> Bound:
  if name == 'neg':
    return -a[1], -a[0]
  if name == 'sub':
    b = -b[1], -b[0]
  return plus(a, b)


def _nan_if_unbounded(bound: Bound) -> Bound:
  """Bounds of -inf and inf become NaN.

  If operands may overflow to either side, their sum or product may be NaN.
  """
  lower, upper = bound
  anything = (lower == -jnp.inf) & (upper == jnp.inf)
  # Computed, since XLA for CPUs gets exponentials of a constant NaN wrong.
  return tuple(jnp.where(anything, lower + upper, end) for end in bound)


def plus(a: Bound, b: Bound) -> Bound:
  """Bounds of a sum."""
  return outward((a[0] + b[0], a[1] + b[1]))


def terms(step: Step) -> int:
  """How many terms are summed in one output of a step."""
  return _AFFINE[step.name](step)[0] if is_affine(step) else len(step.operands)


def is_exact(step: Step) -> bool:
  """Whether a step and its transpose only move values, and round nothing."""
  return step.name in _MOVES


def roundings(step: Step, deferred: int) -> int:
  """How many roundings a term passes in an affine step and its transpose.

  Args:
    deferred: roundings counted here, see `walk.deferred_roundings`.
  """
  return sum(_AFFINE[step.name](step)) + deferred


def offset(
  step: Step, bounds: Sequence[Bound], deferred: int
) -> list[Bound] | None:
  """Bounds of what an affine step adds to its linear part, with its rounding.

  Args:
    bounds: of the variables.
    deferred: as in `roundings`.

  Returns:
    Bounds of the shape of each output; None if it adds nothing.
  """
  step = _finite(step)
  count = roundings(step, deferred)
  placed = step.name in _PLACED and any(
    is_float(v) for v in step.operands if not isinstance(v, Variable)
  )
  if not count and not placed:
    return None
  sizes = absolute(step, [magnitude(bound) for bound in bounds])
  slacks = [gamma(count) * size + TINY for size in sizes]
  if not placed:
    return [(-slack, slack) for slack in slacks]
  zeros = [jnp.zeros(v.shape, jnp.float32) for v in step.variables]
  # A logit may be -inf, a class never predicted: 0 times it would be NaN.
  constants = [_not_infinite(x) for x in step.apply(zeros)]
  return [
    (constant - slack, constant + slack)
    for constant, slack in zip(constants, slacks, strict=True)
  ]


def transpose(step: Step, cotangents: Sequence[chex.Array]) -> list[chex.Array]:
  """Cotangents [K, ...] of outputs -> of variables, for the linear part.

  A sum returns the same array object for all variables: `walk.backward` merges
  terms by identity.
  """
  if step.name in ('add', 'add_any'):
    (rows,), (output,) = cotangents, step.outputs
    if all(v.shape == output.shape for v in step.variables):
      return [rows] * len(step.variables)

  def linear(*values):
    def constant(array):
      placed = step.name in _PLACED and is_float(array)
      return jnp.zeros_like(array) if placed else array

    return evaluate(step.primitive, step.fill(values, constant), step.params)

  types = [jax.ShapeDtypeStruct(v.shape, jnp.float32) for v in step.variables]
  pull = jax.linear_transpose(linear, *types)
  return list(jax.vmap(lambda *values: pull(list(values)))(*cotangents))


# --- The other steps --------------------------------------------------------

_LIBRARY = 32  # roundings allowed for an elementary function


class Lines(NamedTuple):
  """Lines below and above an output: a slope per variable, and intercepts."""

  lower_slopes: list[chex.Array]
  lower: chex.Array
  upper_slopes: list[chex.Array]
  upper: chex.Array


def interval(step: Step, bounds: Sequence[Bound]) -> list[Bound]:
  """Bounds of the outputs from those of the variables.

  Raises:
    ValueError: if the step's primitive has no rule.
  """
  if is_affine(step):
    return _affine_interval(step, bounds)
  ends = step.fill(bounds, lambda array: (array, array))
  if step.name == 'max':
    (a, b) = ends
    return [(jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1]))]
  if step.name == 'abs':
    ((lower, upper),) = bounds
    least = jnp.maximum(jnp.maximum(lower, -upper), 0.0)
    return [(least, magnitude((lower, upper)))]
  if step.name == 'mul':
    (a, b) = ends
    corners = jnp.stack([x * y for x in a for y in b])
    least = corners.min(axis=0)
    if step.operands[0] is step.operands[1]:  # a square
      least = jnp.maximum(least, 0.0)
    return [_nan_if_unbounded(outward((least, corners.max(axis=0))))]
  if step.name in SMOOTH:
    ((lower, upper),) = bounds
    image = step.apply([lower])[0], step.apply([upper])[0]
    outside = jnp.isnan(image[0]) | jnp.isnan(image[1])  # of its domain
    image = [jnp.where(outside, jnp.nan, end) for end in image]
    return [outward(image, count=_LIBRARY, absolute=_LIBRARY * UNIT)]
  raise ValueError(
    f'bounds have no rule for {step.name!r} of '
    f'{[v.shape for v in step.variables]} in {step.where}.'
  )


def lines(
  step: Step,
  bounds: Sequence[Bound],
  deferred: int,
  alpha: chex.Array | None = None,
) -> Lines:
  """Lines below and above a step that is not affine, rounding included.

  Args:
    deferred: as in `roundings`.
    alpha: slopes in [0, 1] of the lower lines of unstable maxima; None is 0 or
      1, whichever leaves the smaller area between the lines.
  """
  # Max pooling pads with -inf: a slope of 0 times it would be NaN.
  ends = step.fill(bounds, lambda x: (_not_infinite(x),) * 2)
  if step.name == 'max':
    low, high, shift = _max_lines(*ends, alpha)
    slopes = [low, 1 - low], [high, 1 - high]
    intercepts = 0.0, shift
  elif step.name == 'abs':  # max(x, -x)
    low, high, shift = _max_lines(ends[0], _signed_sum('neg', ends[0]), alpha)
    slopes = [2 * low - 1], [2 * high - 1]
    intercepts = 0.0, shift
  elif step.name == 'mul':
    (a, b) = ends
    slopes = [b[0], a[0]], [b[1], a[0]]
    intercepts = -a[0] * b[0], -a[0] * b[1]
  else:
    ((lower, upper),) = bounds
    slope = _derivatives(step, lower, upper)[0]
    slopes = [slope], [slope]
    values = step.apply([lower])[0], step.apply([upper])[0]
    intercepts = values[0] - slope * lower, values[1] - slope * upper
  # The largest magnitude that is rounded, here and in the transpose.
  size = sum(
    jnp.maximum(jnp.abs(low), jnp.abs(high)) * magnitude(end)
    for low, high, end in zip(*slopes, ends, strict=True)
  )
  size += jnp.abs(intercepts[0]) + jnp.abs(intercepts[1])
  slack = gamma(deferred) * size + TINY
  if step.name in SMOOTH:
    slack += _LIBRARY * UNIT * (1 + magnitude(values))

  def line(slopes, intercept):
    """Moves constant operands into the intercept."""
    kept = []
    for slope, operand, end in zip(slopes, step.operands, ends, strict=True):
      if isinstance(operand, Variable):
        kept.append(slope)
      else:
        intercept += slope * end[0]
    return kept, intercept

  below = line(slopes[0], intercepts[0] - slack)
  return Lines(*below, *line(slopes[1], intercepts[1] + slack))


def _difference(a, b) -> Bound:
  """Bounds of a - b, for max(a, b) = b + max(a - b, 0)."""
  return outward((a[0] - b[1], a[1] - b[0]))


def _max_lines(a, b, alpha):
  """Slopes in `a` below and above max(a, b), and the upper line's shift."""
  lower, upper = _difference(a, b)
  undecided = (lower < 0) & (upper > 0)
  # Any slope is sound; that of the chord has a gradient of 1 / width.
  wide = undecided & (upper - lower > _NARROW)
  chord = jnp.where(wide, upper / jnp.where(wide, upper - lower, 1.0), 0.5)
  decided = jnp.where(lower >= 0, 1.0, 0.0)
  high = jnp.where(undecided, jnp.clip(chord, 0.0, 1.0), decided)
  shift = jnp.maximum(-high * lower, (1 - high) * upper)
  if alpha is None:
    alpha = jnp.where(upper + lower > 0, 1.0, 0.0)
  low = jnp.where(undecided, alpha, decided)
  return low, high, jnp.where(undecided, shift, 0.0)


def _derivatives(step, lower, upper) -> Bound:
  """Least and largest derivative of a smooth step over an interval."""

  def derivative(x):
    return jax.jvp(lambda x: step.apply([x])[0], (x,), (jnp.ones_like(x),))[1]

  peak = derivative(jnp.clip(0.0, lower, upper))
  ends = derivative(lower), derivative(upper)
  least = jnp.minimum(*ends) * (1 - 2 * _LIBRARY * UNIT)
  least = jnp.maximum(least - 2 * _LIBRARY * UNIT, 0.0)
  most = jnp.maximum(jnp.maximum(*ends), peak)
  outside = jnp.isnan(step.apply([lower])[0])  # of what it is defined on
  most = jnp.where(outside, jnp.inf, most)
  return least, most + 2 * _LIBRARY * UNIT * (1 + most)


def slopes(
  step: Step, points: Sequence[Bound], bounds: Sequence[Bound]
) -> list[Bound]:
  """Bounds of difference quotients, one for each variable.

  If the variables move from within `points` to within `bounds`, the output
  changes by the sum of slopes within these bounds times their changes.
  """
  here = step.fill(points, lambda array: (array, array))
  there = step.fill(bounds, lambda array: (array, array))
  if step.name == 'max':
    low, high = _max_slopes(_difference(*here), _difference(*there))
    every = [(low, high), (1 - high, 1 - low)]
  elif step.name == 'abs':
    # Of max(2 x, 0), twice that of max(x, 0), less 1.
    low, high = _max_slopes(points[0], bounds[0])
    every = [(2 * low - 1, 2 * high - 1)]
  elif step.name == 'mul':
    every = [there[1], here[0]]
  else:
    every = [_derivatives(step, *bounds[0])]
  return [
    slope
    for slope, operand in zip(every, step.operands, strict=True)
    if isinstance(operand, Variable)
  ]


def _max_slopes(here, there) -> Bound:
  """Bounds of the slope of max(d, 0) from a d in `here` to one in `there`."""
  lower, upper = there
  left = here[0] - lower
  right = upper - here[1]
  least = jnp.where(here[0] > 0, here[0] / jnp.where(left > 0, left, 1.0), 0.0)
  most = jnp.where(here[1] < 0, upper / jnp.where(right > 0, right, 1.0), 1.0)
  least = jnp.clip(least * (1 - 8 * UNIT), 0.0, 1.0)
  most = jnp.clip(most * (1 + 8 * UNIT), 0.0, 1.0)
  return (
    jnp.where(lower >= 0, 1.0, least),
    jnp.where(upper <= 0, 0.0, most),
  )
