"""A network as a list of steps: its jaxpr, calls inlined, constants folded."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import (
  ClosedJaxpr,
  Jaxpr,
  Literal,
  Primitive,
  jaxpr_as_fun,
)


@dataclass(frozen=True, eq=False)
class Variable:
  """A value that depends on the input; two of them are never equal."""

  shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Condition(Variable):
  """Whether any of the comparisons (larger, smaller) holds."""

  comparisons: tuple[tuple[Any, Any], ...]


Operand = Variable | chex.Array
Function = Callable[[chex.Array], chex.Array]


class Step(NamedTuple):
  """One primitive, applied to at least one variable."""

  primitive: Primitive
  operands: tuple[Operand, ...]
  params: Mapping[str, Any]
  outputs: tuple[Variable, ...]
  where: str  # for errors: which module and line it comes from

  @property
  def name(self) -> str:
    """The primitive's."""
    return self.primitive.name

  @property
  def variables(self) -> list[Variable]:
    """The operands that depend on the input."""
    return [v for v in self.operands if isinstance(v, Variable)]

  def apply(self, values: Sequence[chex.Array]) -> list[chex.Array]:
    """Outputs for given values of the variables."""
    return evaluate(self.primitive, self.fill(values), self.params)

  def fill(
    self,
    values: Sequence[Any],
    constant: Callable[[chex.Array], Any] = lambda array: array,
  ) -> list[Any]:
    """The operands: `values` for variables, `constant(array)` for constants."""
    values = iter(values)
    return [
      next(values) if isinstance(v, Variable) else constant(v)
      for v in self.operands
    ]


class Network(NamedTuple):
  """Steps from one input to one output, each after those it needs."""

  input: Variable
  steps: list[Step]
  output: Variable


def evaluate(primitive, operands, params) -> list[chex.Array]:
  """A list of all outputs; computed eagerly if no operand is traced."""
  known = not any(isinstance(v, jax.core.Tracer) for v in operands)
  with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
    outputs = primitive.bind(*operands, **params)
  return list(outputs) if primitive.multiple_results else [outputs]


def trace(function: Function, shape: tuple[int, ...]) -> Network:
  """The steps of a function of one float32 array.

  Products are traced at full float32 precision: the bounds' arithmetic is
  that of these steps.

  Raises:
    ValueError: if a value that depends on the input is not float32, or the
      output does not depend on it.
  """
  with jax.default_matmul_precision('highest'):
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32))
  source, steps = Variable(shape), []
  (output,) = _inline(closed, [source], steps, 'the network')
  if not isinstance(output, Variable):
    raise ValueError('the logits do not depend on the images.')
  needed, kept = {output}, []
  for step in reversed(steps):
    if needed.intersection(step.outputs):
      needed.update(step.variables)
      kept.append(step)
  return Network(source, kept[::-1], output)


# Primitives that only call a jaxpr among their parameters.
_CALLS = set(
  'jit pjit closed_call core_call custom_jvp_call custom_vjp_call '
  'custom_vjp_call_jaxpr remat remat2 checkpoint'.split()
)

# Primitives whose operands may broadcast along axes of length 1. The broadcast
# becomes a step of its own, whose transpose sums cotangents over these axes.
_BROADCAST = {'add', 'sub', 'mul', 'div', 'max'}

# Increasing functions whose derivative is least at an end of any interval.
SMOOTH = set('tanh logistic erf exp expm1 log log1p sqrt'.split())
# Primitives of which each output component needs one of each operand.
ELEMENTWISE = SMOOTH | set(
  'add add_any sub mul div max abs neg copy copy_p convert_element_type'.split()
)

_RANDOM = {'random_bits', 'threefry2x32', 'rng_bit_generator', 'rng_uniform'}


def _inline(closed, operands, steps, prefix) -> list[Operand]:
  """Appends the steps of a jaxpr; returns its outputs."""
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values |= dict(zip(jaxpr.invars, operands, strict=True))

  def read(atom):
    return atom.val if isinstance(atom, Literal) else values[atom]

  for equation in jaxpr.eqns:
    inputs = [read(atom) for atom in equation.invars]
    where = _where(equation, prefix)
    outputs = _outputs(equation, inputs, steps, where)
    values |= dict(zip(equation.outvars, outputs, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _outputs(equation, inputs, steps, where) -> list[Operand]:
  name, params = equation.primitive.name, equation.params
  if name in _RANDOM:
    raise ValueError(
      f'bounds need a network in inference mode; this one draws by {name!r}, '
      f'in {where}.'
    )
  if name in _CALLS:
    return _inline(_called(params), inputs, steps, where)
  if not any(isinstance(value, Variable) for value in inputs):
    return evaluate(equation.primitive, inputs, params)
  condition = _condition(name, inputs, equation.outvars[0].aval.shape)
  if condition is not None:
    return [condition]
  if isinstance(inputs[0], Condition) and name == 'select_n':
    rewrite = functools.partial(_select, inputs[0].comparisons, where)
    return rewrite(inputs[1:], steps)
  if name == 'gather' and params['fill_value'] not in (None, 0):
    filled = functools.partial(_gather, equation.primitive, params, inputs[1])
    return rewritten(filled, {}, inputs[:1], steps, where)
  if name == 'scan':
    unrolled = functools.partial(_scan, equation)
    return rewritten(unrolled, {}, inputs, steps, where)
  # A quotient by constants and a product with constants are affine.
  features = {'div': inputs[1:], 'dot_general': inputs}.get(name, ())
  if name in REWRITES and all(isinstance(v, Variable) for v in features):
    return rewritten(REWRITES[name], params, inputs, steps, where)
  if any(isinstance(value, Condition) for value in inputs):
    raise ValueError(
      f'bounds need a rule for {name!r} of a comparison of features, '
      f'in {where}.'
    )
  if name == 'convolution':  # tiles round otherwise than sums of products
    params = {**params, 'tiles': False}
  avals = [v.aval for v in equation.outvars]
  shapes = {v.shape for v in inputs if isinstance(v, Variable)}
  if name in _BROADCAST and shapes != {avals[0].shape}:

    def spread(*values):
      same = (jnp.broadcast_to(x, avals[0].shape) for x in values)
      return equation.primitive.bind(*same, **params)

    return rewritten(spread, {}, inputs, steps, where)
  for aval in avals:
    if aval.dtype != jnp.float32:
      raise ValueError(
        f'bounds need float32 features; {name!r} gives {aval.dtype}, '
        f'in {where}.'
      )
  outputs = tuple(Variable(aval.shape) for aval in avals)
  steps.append(Step(equation.primitive, tuple(inputs), params, outputs, where))
  return list(outputs)


def _called(params) -> ClosedJaxpr:
  for name in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if isinstance(params.get(name), Jaxpr):
      return ClosedJaxpr(params[name], ())
    if isinstance(params.get(name), ClosedJaxpr):
      return params[name]
  raise ValueError(f'no jaxpr among the parameters {sorted(params)}.')


def rewritten(function, params, inputs, steps, where) -> list[Operand]:
  """Inlines a function of the operands in place of a primitive."""
  function = functools.partial(function, **params)
  kinds = [jax.ShapeDtypeStruct(jnp.shape(v), _dtype(v)) for v in inputs]
  return _inline(jax.make_jaxpr(function)(*kinds), inputs, steps, where)


def _dtype(operand):
  """float32, except for constants that select values: indices and masks."""
  if isinstance(operand, Variable) or is_float(operand):
    return jnp.float32
  return jnp.result_type(operand)


def is_float(array) -> bool:
  """Whether a constant holds values, not indices or a mask that select them."""
  return jnp.issubdtype(jnp.result_type(array), jnp.floating)


def _where(equation, prefix) -> str:
  scope = str(equation.source_info.name_stack)
  return '/'.join(part for part in (prefix, scope) if part)


def _condition(name, inputs, shape) -> Condition | None:
  """The condition that a comparison gives, None if it is another primitive.

  No value is taken to be NaN, so that `x != x` never holds.
  """
  match name, inputs:
    case 'ne', [a, b] if a is b:
      return Condition(shape, ())
    case (('gt' | 'ge'), [a, b]):
      return Condition(shape, ((a, b),))
    case (('lt' | 'le'), [a, b]):
      return Condition(shape, ((b, a),))
    case 'or', [Condition() as a, Condition() as b]:
      return Condition(shape, a.comparisons + b.comparisons)
  return None


def _select(comparisons, where, cases, steps) -> list[Operand]:
  """Rewrites `where(a > b, a, b)`, `where(x > 0, x, 0.1 * x)` and the like."""
  otherwise, chosen = cases
  if not comparisons:
    return [otherwise]
  match comparisons:
    case [(a, b)] if _same(a, chosen) and _same(b, otherwise):
      return rewritten(lax.max, {}, cases, steps, where)
    case [(a, b)] if _same(b, chosen) and _same(a, otherwise):
      return rewritten(REWRITES['min'], {}, cases, steps, where)
    case [(Variable() as x, place)] if not isinstance(place, Variable):
      found = _in_pieces(x, place, otherwise, chosen, steps)
    case [(place, Variable() as x)] if not isinstance(place, Variable):
      found = _in_pieces(x, place, chosen, otherwise, steps)
    case _:
      found = None
  if found:
    return rewritten(found, {}, [x], steps, where)
  raise ValueError(
    "bounds need a rule for 'select_n' by a comparison of features that is "
    'neither their maximum, their minimum nor two functions of one feature '
    f'that meet there, such as a kink at 0, in {where}.'
  )


def _in_pieces(x, place, below, above, steps) -> Function | None:
  """The function of `x` that is `below` up to a place and `above` from there.

  None unless both are elementwise functions of `x` that meet at the place.
  """
  slopes = _slope(below, x, steps), _slope(above, x, steps)
  if _same(place, 0.0) and not any(slope is None for slope in slopes):
    return functools.partial(_piecewise_linear, *slopes)
  functions = _function(below, x, steps), _function(above, x, steps)
  if None in functions or isinstance(place, jax.core.Tracer):
    return None
  place = np.broadcast_to(np.asarray(place, np.float32), x.shape)
  low, high = functions
  end = low(place)
  if not _same(end, high(place)):
    return None
  return lambda x: low(lax.min(x, place)) - end + high(lax.max(x, place))


def _piecewise_linear(below, above, x):
  """Slopes `below` and `above` a kink at 0; one maximum, for an exact chord."""
  return below * x + (above - below) * lax.max(x, jnp.zeros_like(x))


def _slope(value, x, steps) -> chex.Numeric | None:
  """The constant s if a step made value = s * x (1 if it is x), else None."""
  if value is x:
    return np.float32(1)  # 1.0 would be float64 under jax_enable_x64
  for step in steps:
    if step.name == 'mul' and step.outputs == (value,) and x in step.variables:
      known = [v for v in step.operands if not isinstance(v, Variable)]
      return known[0] if known else None
  return None


def _function(value, x, steps) -> Function | None:
  """`value` as a function of `x`, None unless elementwise steps made it so."""
  if value is x:
    return lambda x: x
  if not isinstance(value, Variable):
    return lambda x: value
  for step in steps:
    if value in step.outputs and step.name in ELEMENTWISE:
      parts = [_function(operand, x, steps) for operand in step.operands]
      if None not in parts:
        apply = functools.partial(evaluate, step.primitive, params=step.params)
        return lambda x: apply([part(x) for part in parts])[0]
  return None


def _same(a, b) -> bool:
  """Whether two operands are one variable, or known constants of one value."""
  if any(isinstance(x, Variable | jax.core.Tracer) for x in (a, b)):
    return a is b
  return bool((np.asarray(a) == np.asarray(b)).all())


def _reduce_max(x, *, axes, **_):
  kept = [axis for axis in range(x.ndim) if axis not in axes]
  rows = x.transpose(*axes, *kept)
  rows = rows.reshape(-1, *rows.shape[len(axes) :])
  while len(rows) > 1:  # a tree: few steps to compile
    half = len(rows) // 2
    larger = lax.max(rows[:half], rows[half : 2 * half])
    rows = jnp.concatenate([larger, rows[2 * half :]])
  return rows[0]


def _gather(gather, params, indices, x):
  """Gathers with fill value 0, then adds the constant fill values."""
  found = gather.bind(x, indices, **{**params, 'fill_value': 0})
  return found + gather.bind(jnp.zeros_like(x), indices, **params)


def _tile(x, *, reps):
  for axis, count in enumerate(reps):
    x = lax.concatenate([x] * count, axis)
  return x


def _window_max(
  x,
  *,
  window_dimensions,
  window_strides,
  padding,
  base_dilation,
  window_dilation,
):
  pads = [
    (before, after, dilation - 1)
    for (before, after), dilation in zip(padding, base_dilation, strict=True)
  ]
  padded = lax.pad(x, jnp.float32(-jnp.inf), pads)
  reach = np.subtract(window_dimensions, 1) * window_dilation
  views = []
  for offset in itertools.product(*map(range, window_dimensions)):
    start = np.multiply(offset, window_dilation)
    limit = (padded.shape - reach + start).tolist()
    views.append(lax.slice(padded, start.tolist(), limit, window_strides))
  return functools.reduce(lax.max, views)


def _dot(a, b, *, dimension_numbers, **_):
  """A product of features with features, as in attention."""
  contracted, shared = dimension_numbers
  count = len(shared[0])

  def ordered(x, last, first):
    free = [i for i in range(x.ndim) if i not in (*first, *last)]
    return x.transpose(*first, *free, *last), len(free)

  a, rows = ordered(a, contracted[0], shared[0])
  b, columns = ordered(b, contracted[1], shared[1])
  a = jnp.expand_dims(a, range(count + rows, count + rows + columns))
  b = jnp.expand_dims(b, range(count, count + rows))
  return (a * b).sum(range(count + rows + columns, a.ndim))


def _scan(equation, *operands):
  """A loop of known length, such as layers of one shape, written out."""
  params, body = equation.params, _called(equation.params)
  # Told by the axis that is looped over: other parameters depend on the version
  # of JAX.
  pairs = zip(equation.outvars, body.jaxpr.outvars, strict=True)
  num_carry = sum(whole.aval.ndim == one.aval.ndim for whole, one in pairs)
  pairs = zip(operands, body.jaxpr.invars, strict=True)
  first = sum(jnp.ndim(x) == one.aval.ndim for x, one in pairs)  # sliced one
  constants, inputs = operands[: first - num_carry], operands[first:]
  order = slice(None, None, -1 if params['reverse'] else 1)
  carry, found = operands[first - num_carry : first], []
  for turn in range(params['length'])[order]:
    slices = (lax.index_in_dim(x, turn, 0, False) for x in inputs)
    outputs = jaxpr_as_fun(body)(*constants, *carry, *slices)
    carry = outputs[:num_carry]
    found.append(outputs[num_carry:])
  stacked = zip(*found[order], strict=True)
  return [*carry, *map(jnp.stack, stacked)]


def _power(x, *, y):
  if y < 0:
    return 1.0 / _power(x, y=-y)
  return functools.reduce(lax.mul, [x] * y) if y else jnp.ones_like(x)


# Primitive -> the same function in terms of primitives that have rules.
REWRITES: dict[str, Callable[..., chex.Array]] = {
  'min': lambda a, b: -lax.max(-a, -b),
  'clamp': lambda low, x, high: -lax.max(-lax.max(x, low), -high),
  'div': lambda a, b: a * lax.exp(-lax.log(b)),  # b depends on the input, b > 0
  'dot_general': _dot,  # where both factors depend on the input
  'rsqrt': lambda x, **_: 1.0 / lax.sqrt(x),
  'stop_gradient': lambda x: x,
  'stack': lambda *arrays, axis: jnp.concatenate(
    [jnp.expand_dims(x, axis) for x in arrays], axis
  ),
  'tile': _tile,
  'reduce_min': lambda x, **params: -_reduce_max(-x, **params),
  'reduce_max': _reduce_max,
  'reduce_window_max': _window_max,
  'square': lambda x, **_: lax.mul(x, x),
  'integer_pow': _power,
  'erfc': lambda x, **_: 1.0 - lax.erf(x),  # newer ones have an `accuracy`
}
