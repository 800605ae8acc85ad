"""An upper bound on how fast the logits change between x and x' in a ball.

For x' in a box around x, f(x') - f(x) is a product of affine maps and of the
difference quotients of the nonlinearities, each known to lie in an interval.
With their midpoints it is linear in x' - x; the error of a midpoint is at most
half the width of its interval times how much the nonlinearity's input changes.
The linear part and these errors are the columns of one matrix, whose operator
norm from l-inf to l1 is the bound.
"""

from __future__ import annotations

import itertools

import chex
import jax.numpy as jnp
from jax import lax

from robustlip.bounds import rules, walk
from robustlip.bounds.graph import Network, Step, Variable
from robustlip.bounds.rules import Bound, gamma

_EXACT = 12  # classes up to which all sign vectors are tried
_BLOCK = 512  # columns at a time


def rate(
  network: Network, inputs: chex.Array, box: Bound, *, tighten: bool = False
) -> chex.Array:
  """Upper bound of ||f(x) - f(x')||_1 / ||x - x'||_inf over x' in a box.

  Args:
    network: for one example, see `walk.trace_one`.
    inputs: x, in the box.
    tighten: see `walk.forward`.
  """
  here = walk.forward(network, (inputs, inputs))
  there = walk.forward(network, box, tighten=tighten)
  slopes = {
    step.outputs[0]: rules.slopes(
      step,
      [here[v] for v in step.variables],
      [there[v] for v in step.variables],
    )
    for step in network.steps
    if not rules.is_affine(step)
  }
  rates = _rates(network, slopes)
  columns, slack = _columns(network, slopes, rates)
  return _norm(columns) + slack


def _rates(network, slopes) -> dict[Variable, chex.Array]:
  """Largest change of each variable per unit of l-inf change of the input."""
  rates = {network.input: jnp.ones(network.input.shape, jnp.float32)}
  for step in network.steps:
    given = [rates[v] for v in step.variables]
    if rules.is_affine(step):
      outputs = rules.absolute(step, given, linear=True)
    else:
      outputs = [_steepest(step, slopes[step.outputs[0]], given)]
    growth = 1 + gamma(rules.terms(step))
    rates |= {
      v: growth * rate for v, rate in zip(step.outputs, outputs, strict=True)
    }
  return rates


def _steepest(step: Step, slopes, rates) -> chex.Array:
  if step.name == 'max' and len(rates) == 2:  # the two slopes sum to 1
    (a, b), (left, right) = slopes, rates
    return jnp.maximum(a[0] * left + b[1] * right, a[1] * left + b[0] * right)
  return sum(
    rules.magnitude(slope) * rate
    for slope, rate in zip(slopes, rates, strict=True)
  )


def _columns(network, slopes, rates):
  """The columns [C, ...] of the matrix, and an allowance for rounding."""
  (counts, pending), columns, slacks = walk.deferred_roundings(network), [], []

  def visit(_, step, received):
    given = [rates[v] for v in step.variables]
    count = counts[step.outputs[0]]
    if rules.is_exact(step) and not count:
      return rules.transpose(step, received)
    if rules.is_affine(step):
      sizes = rules.absolute(step, given, linear=True)
      slacks.extend(
        gamma(rules.roundings(step, count)) * _sizes(rows * size[None])
        for rows, size in zip(received, sizes, strict=True)
      )
      return rules.transpose(step, received)
    (rows,), bounds = received, slopes[step.outputs[0]]
    pairs = list(zip(bounds, given, strict=True))
    spread = sum((high - low) / 2 * rate for (low, high), rate in pairs)
    size = sum(rules.magnitude(bound) * rate for bound, rate in pairs)
    columns.append(rows * spread[None])
    slacks.append(gamma(rules.terms(step) + count) * _sizes(rows * size[None]))
    return [rows * ((low + high) / 2)[None] for low, high in bounds]

  eye = jnp.eye(*network.output.shape, dtype=jnp.float32)
  slacks.append(gamma(pending[network.output]) * rates[network.output].sum())
  columns.append(walk.pull(network, {network.output: eye}, visit))
  # Roundings of the sums over classes in `_norm`.
  slacks += [gamma(len(eye)) * _sizes(column) for column in columns]
  return columns, sum(slacks) * (1 + gamma(len(slacks)))


def _sizes(rows) -> chex.Array:
  """Sum of all absolute values of rows [K, ...], rounded upwards."""
  count = gamma(walk.total_terms(rows.shape[1:]) + len(rows))
  return walk.total(jnp.abs(rows)).sum() * (1 + count)


def _norm(columns) -> chex.Array:
  """Norm from l-inf to l1 of the matrix of all columns, rounded upwards.

  Exact for few classes, else the sum of all absolute values.
  """
  classes = len(columns[0])
  if classes > _EXACT:
    return sum(_sizes(column) for column in columns) * (1 + gamma(len(columns)))
  columns = lax.optimization_barrier(columns)  # else XLA fuses it all
  rows = jnp.concatenate([c.reshape(classes, -1) for c in columns], axis=1).T
  left, right = _signs(classes - classes // 2), _signs(classes // 2)
  left = left[: len(left) // 2]  # the others are their negatives

  def absolute_sums(row):  # [..., C]; each half is summed only once
    first, last = row[..., : left.shape[1]], row[..., left.shape[1] :]
    first = jnp.matmul(first, left.T, precision='highest')[..., None]
    last = jnp.matmul(last, right.T, precision='highest')[..., None, :]
    return jnp.abs(first + last)

  rows = jnp.pad(rows, ((0, -len(rows) % _BLOCK), (0, 0)))
  blocks = rows.reshape(-1, _BLOCK, classes)
  values = lax.map(lambda block: absolute_sums(block).sum(0), blocks).sum(0)
  return values.max() * (1 + gamma(_BLOCK + len(blocks) + classes))


def _signs(count: int) -> chex.Array:
  """All vectors of signs, [2 ** count, count]; the first half begins with 1."""
  signs = [*itertools.product((1.0, -1.0), repeat=count)]
  return jnp.asarray(signs, jnp.float32).reshape(2**count, count)
