"""Forwards and backwards through the network of one example."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from robustlip.bounds import crop, rules
from robustlip.bounds.graph import Network, Step, Variable, trace
from robustlip.bounds.rules import TINY, Bound, gamma
from robustlip.losses import check_logits
from robustlip.types import LogitsFn

Bounds = dict[Variable, Bound]

LANES = 64  # partial sums that a processor adds up in parallel


def trace_one(logits_fn: LogitsFn, shape: tuple[int, ...]) -> Network:
  """Traces the network for one example, [...] -> [C]: examples cannot mix.

  Args:
    shape: that of all examples, [B, ...].

  Raises:
    ValueError: if it returns something else than logits [B, C], or other
      classes for all examples than for one.
  """

  def one(inputs):
    logits = logits_fn(inputs[None])
    check_logits(logits, fewest=1)
    return logits[0]

  network = trace(one, shape[1:])
  every = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(shape, jnp.float32))
  if every.shape != (shape[0], *network.output.shape):
    raise ValueError(
      f'logits of all examples are {every.shape}, those of one '
      f'{network.output.shape}: bounds need a network that takes each example '
      'by itself.'
    )
  return network


def over_examples(
  one: Callable[[Any], chex.Array], examples: Any, *, tighten: bool
) -> chex.Array:
  """Maps `one` over examples; one by one if it tightens, to save memory."""
  return lax.map(one, examples) if tighten else jax.vmap(one)(examples)


def forward(network: Network, box: Bound, *, tighten: bool = False) -> Bounds:
  """Bounds of every variable, each from those before it.

  Args:
    tighten: whether inputs of nonlinearities get linear bounds where intervals
      are not exact.
  """
  bounds = {network.input: box}
  dependent = set()  # variables whose components do not vary independently
  loose = set()  # sums of such components, whose intervals are not exact
  for step in network.steps:
    variables = step.variables
    if tighten and not rules.is_affine(step):
      for variable in variables:
        if variable in loose:
          bounds[variable] = _tightened(network, bounds, variable)
          loose.remove(variable)
    outputs = rules.interval(step, [bounds[v] for v in variables])
    bounds |= dict(zip(step.outputs, outputs, strict=True))
    sums = step.name != 'max' and max(rules.terms(step), len(variables)) > 1
    if sums or dependent.intersection(variables):
      dependent.update(step.outputs)
    if (dependent if sums else loose).intersection(variables):
      loose.update(step.outputs)
  return bounds


_UNITS = 64  # units of one variable that are bounded at once


def _tightened(network, bounds, variable) -> Bound:
  """Linear bounds of every unit, in the windows that a few depend on."""
  part = crop.part(network, variable, _UNITS)
  if part is None:
    return _bounded(network, bounds, variable)

  def bounded(index, ends):
    origin = jnp.asarray(part.origins)[index]
    cropped, known = part.at(bounds, origin)
    found = _bounded(cropped, known, cropped.output)
    return tuple(
      lax.dynamic_update_slice(end, new, tuple(origin))
      for end, new in zip(ends, found, strict=True)
    )

  return lax.fori_loop(0, len(part.origins), bounded, bounds[variable])


def _bounded(network, bounds, variable) -> Bound:
  """For every unit the tighter of its linear and its known bounds."""
  lower, upper = bounds[variable]
  shape, size = lower.shape, lower.size
  count = min(_UNITS, size)

  def least(units):
    rows = jax.nn.one_hot(units, size, dtype=jnp.float32)
    rows = jnp.concatenate([rows, -rows]).reshape(-1, *shape)
    return backward(network, bounds, {variable: rows}).reshape(2, count)

  units = jnp.arange(size + -size % count) % size
  below, above = jnp.moveaxis(lax.map(least, units.reshape(-1, count)), 1, 0)
  below, above = (x.reshape(-1)[:size].reshape(shape) for x in (below, above))
  return _better(lower, below), -_better(-upper, above)


def deferred_roundings(
  network: Network,
) -> tuple[dict[Variable, int], dict[Variable, int]]:
  """How many roundings to count for the sums of cotangents, and where.

  The cotangent of a variable that n steps use is a sum with n - 1 roundings.
  They are counted at the next steps that round anyway, and passed on by steps
  that only move values.

  Returns:
    For each variable, the number to count at the step that gives it, and the
    number passed on there.
  """
  uses = collections.Counter(v for s in network.steps for v in s.variables)
  counts, pending = {}, {}
  for step in network.steps:
    count = max(pending.get(v, 0) + uses[v] - 1 for v in step.variables)
    exact = rules.is_exact(step)
    for variable in step.outputs:
      counts[variable] = 0 if exact else count
      pending[variable] = count if exact else 0
  return counts, pending


# (index, step, cotangents [K, ...] of its outputs) -> those of its variables,
# or None to go back no further
Visit = Callable[[int, Step, list[chex.Array]], Sequence[chex.Array] | None]


def pull(
  network: Network, cotangents: dict[Variable, chex.Array], visit: Visit
) -> chex.Array | None:
  """Visits, last first, the steps that cotangents reach.

  Returns:
    The input's cotangent [K, ...], None if none reaches it.
  """
  cotangents = dict(cotangents)
  rows = len(next(iter(cotangents.values())))
  for index, step in reversed(list(enumerate(network.steps))):
    if not any(v in cotangents for v in step.outputs):
      continue
    received = [
      cotangents.pop(v, jnp.zeros((rows, *v.shape), jnp.float32))
      for v in step.outputs
    ]
    sent = visit(index, step, received)
    for variable, cotangent in zip(step.variables, sent or (), strict=False):
      if variable in cotangents:
        cotangent += cotangents[variable]
      cotangents[variable] = cotangent
  return cotangents.get(network.input)


def backward(
  network: Network,
  bounds: Bounds,
  cotangents: dict[Variable, chex.Array],
  *,
  lines: bool = True,
  alphas: dict[int, chex.Array] | None = None,
) -> chex.Array:
  """Lower bounds [K] of the sum of cotangents [K, ...] times variables.

  Args:
    lines: False stops at the last nonlinearities and takes their bounds.
    alphas: step -> slopes of the lines below its maxima, see `rules.lines`.
  """
  # Terms are pairs of rows and the bounds of what they multiply.
  (counts, pending), terms = deferred_roundings(network), []
  for variable, rows in cotangents.items():
    if pending.get(variable):
      slack = gamma(pending[variable]) * rules.magnitude(bounds[variable])
      terms.append((rows, (-slack, slack)))

  def visit(index, step, received):
    given = [bounds[v] for v in step.variables]
    count = counts[step.outputs[0]]
    if rules.is_affine(step):
      offsets = rules.offset(step, given, count) or ()
      terms.extend(zip(received, offsets, strict=False))
      return rules.transpose(step, received)
    (received,) = received
    if not lines:
      terms.append((received, bounds[step.outputs[0]]))
      return None
    line = rules.lines(step, given, count, (alphas or {}).get(index))
    terms.append((received, (line.lower, line.upper)))
    return [
      received * jnp.where(received > 0, low[None], high[None])
      for low, high in zip(line.lower_slopes, line.upper_slopes, strict=True)
    ]

  rest = pull(network, cotangents, visit)
  if rest is not None:
    terms.append((rest, bounds[network.input]))
  parts = jnp.stack([_least(rows, *bound) for rows, bound in _joined(terms)])
  return parts.sum(0) - gamma(len(parts)) * jnp.abs(parts).sum(0)


def _joined(terms):
  """Merges terms that share a rows array: reading it takes most of the time."""
  sums = {}
  for rows, bound in terms:
    if id(rows) in sums:
      bound = rules.plus(sums[id(rows)][1], bound)
    sums[id(rows)] = rows, bound
  return sums.values()


def _least(rows, lower, upper) -> chex.Array:
  """Lower bounds [K] of rows [K, ...] times any x with lower <= x <= upper."""
  count = gamma(total_terms(rows.shape[1:]))
  lower = lower - count * jnp.abs(lower)
  upper = upper + count * jnp.abs(upper)
  # Flat: XLA for CPUs is slow where the last of several axes is short.
  rows = rows.reshape(len(rows), -1)
  lower, upper = lower.reshape(1, -1), upper.reshape(1, -1)
  return total(_least_products(rows, lower, upper)) - TINY


@jax.custom_jvp
def _least_products(rows, lower, upper):
  """Elementwise minimum of rows * x over lower <= x <= upper.

  The value is a minimum, since XLA for CPUs does not vectorize a `where` of
  broadcast arrays; the derivatives are those of a `where`, which take less
  memory and time.
  """
  return jnp.minimum(rows * lower, rows * upper)


_least_products.defjvps(
  lambda t, _, rows, lower, upper: t * jnp.where(rows > 0, lower, upper),
  lambda t, _, rows, *bound: t * jnp.maximum(rows, 0.0),
  lambda t, _, rows, *bound: t * jnp.minimum(rows, 0.0),
)


def total(rows: chex.Array) -> chex.Array:
  """Sums of rows, [K, ...] -> [K], in two stages for fewer roundings."""
  sums = rows.reshape(len(rows), *_stages(rows.shape[1:])).sum(1)
  return lax.optimization_barrier(sums).sum(-1)


def total_terms(shape: tuple[int, ...]) -> int:
  """How many terms `total` adds up, over both stages."""
  return sum(_stages(shape))


def _stages(shape: tuple[int, ...]) -> tuple[int, int]:
  """Terms of the first and of the second stage of a sum."""
  count = math.prod(shape)
  lanes = math.gcd(count, LANES)
  return count // lanes, lanes


def climb(
  network: Network, bounds: Bounds, weights: chex.Array, *, num_steps: int
) -> chex.Array:
  """Lower bounds [K] of weights [K, C] times the outputs.

  Linear bounds, or those from the last layer's intervals if these are tighter.

  Args:
    num_steps: steps of Adam on the lower slopes of unstable maxima, which each
      row has to itself.
  """
  output = network.output
  start = {output: weights}
  last = backward(network, bounds, start, lines=False)
  best = _better(last, backward(network, bounds, start))
  if not num_steps:
    return best

  @jax.vmap
  def least(row, alphas):
    return backward(network, bounds, {output: row[None]}, alphas=alphas)[0]

  alphas = {
    index: jnp.full((len(weights), *step.outputs[0].shape), 0.5, jnp.float32)
    for index, step in enumerate(network.steps)
    if step.name in ('max', 'abs')
  }
  optimizer = optax.adam(0.1)

  def step(_, carry):
    alphas, state, best = carry
    values, pullback = jax.vjp(lambda alphas: least(weights, alphas), alphas)
    (gradients,) = pullback(-jnp.ones_like(values))
    updates, state = optimizer.update(gradients, state)
    alphas = optax.apply_updates(alphas, updates)
    alphas = jax.tree.map(lambda a: jnp.clip(a, 0.0, 1.0), alphas)
    return alphas, state, _better(best, values)

  carry = alphas, optimizer.init(alphas), best
  # An iteration evaluates the slopes of the one before, hence one more.
  *_, best = lax.fori_loop(0, num_steps + 1, step, carry)
  return best


def _better(best, values) -> chex.Array:
  """The higher lower bound; `values` that are NaN (from infinities) lose."""
  return jnp.where(jnp.isnan(values), best, jnp.maximum(best, values))
