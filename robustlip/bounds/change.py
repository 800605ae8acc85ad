"""How fast the logits can change as the input leaves its place in a ball.

If x' is t away from x, by how much t each value of the network can have moved
is an interval that is carried forwards. Backwards, f(x') - f(x) is the Jacobian
at x, of which the norm from l-inf to l1 is known, and what each nonlinearity
adds to its own tangent, which the moves of its inputs bound: a maximum adds
nothing before another argument overtakes the largest. The nearer t is to the
radius, the less an overtaking weighs, so that shells of t are bounded apart.
"""

import functools
import itertools
from typing import NamedTuple

import chex
import jax.numpy as jnp
from jax import lax

from robustlip.bounds import rules, walk
from robustlip.bounds.graph import Network, Step, Variable
from robustlip.bounds.rules import TINY, Bound, gamma

_EXACT = 12  # classes up to which all sign vectors are tried
_BLOCK = 512  # columns at a time
_SHELLS = 8  # each to half the radius of the one before it, the last to 0
_LEAST = 1e-20  # radius
_FAR = 1e30  # further behind than any move


class Change(NamedTuple):
  """How an output changes, by the distance of the inputs."""

  slopes: list[chex.Array]  # of the variables, the tangent
  rest: Bound  # change of the output minus the tangent's
  moves: Bound  # change of the output


def rate(network: Network, inputs: chex.Array, box: Bound) -> chex.Array:
  """Upper bound of ||f(x) - f(x')||_1 / ||x - x'||_inf over x' in a box.

  Args:
    network: of one example.
    inputs: x, in the box.
  """
  here = walk.forward(network, (inputs, inputs))
  there = walk.forward(network, box)
  reach = jnp.maximum(box[1] - inputs, inputs - box[0]).max()
  outer = reach * (1 + gamma(1)) * 2.0 ** -jnp.arange(_SHELLS) + _LEAST
  inner = jnp.append(outer[1:], 0.0)

  def of(shell):
    changes, moves = {}, {network.input: _input_moves(inputs, box, *shell)}
    for step in network.steps:
      given = [moves[v] for v in step.variables]
      if rules.is_affine(step):
        outputs = rules.interval(rules.linear_part(step), given)
        moves |= dict(zip(step.outputs, outputs, strict=True))
        continue
      points, bounds = ([b[v] for v in step.variables] for b in (here, there))
      change = _change(step, points, bounds, given, shell)
      changes[step.outputs[0]] = change
      moves[step.outputs[0]] = change.moves
    sizes = rules.magnitude(moves[network.output])
    whole = sizes.sum() * (1 + gamma(len(sizes)))
    return jnp.minimum(whole, _norm(*_columns(network, changes, moves)))

  return lax.map(of, (inner, outer)).max()


def _input_moves(inputs, box, inner, outer) -> Bound:
  """Of pixels, which a shell and the box bound."""
  del outer
  room = jnp.maximum(inner, TINY)
  lower = (box[0] - inputs) / room * (1 + gamma(1))
  upper = (box[1] - inputs) / room * (1 + gamma(1))
  return jnp.maximum(lower, -1.0), jnp.minimum(upper, 1.0)


def _change(step: Step, points, bounds, given, shell) -> Change:
  if step.name == 'max':
    ends = step.fill(points, lambda array: (array, array))
    still = (jnp.float32(0.0),) * 2
    return _of_max(step, *ends, *step.fill(given, lambda _: still), shell)
  slopes, rests, moves = [], [], []
  for (low, high), (left, right) in zip(
    rules.slopes(step, points, bounds), given, strict=True
  ):
    slopes.append((low + high) / 2)
    rests.append((high - low) / 2 * jnp.maximum(-left, right))
    corners = low * left, low * right, high * left, high * right
    moves.append(
      (
        functools.reduce(jnp.minimum, corners),
        functools.reduce(jnp.maximum, corners),
      )
    )
  count = gamma(len(given) + 4)
  rest = sum(rests) * (1 + count)
  lower, upper = (sum(ends) for ends in zip(*moves, strict=True))
  slack = count * sum(rules.magnitude(m) for m in moves)
  return Change(slopes, (-rest, rest), (lower - slack, upper + slack))


def _of_max(step: Step, u, v, move_u, move_v, shell) -> Change:
  """Of max(u, v); the tangent is that of the larger, of both if they may tie.

  How far an argument is behind the maximum weighs 1 / t: for an upper bound
  least where t is most, for a lower one most where it is least.
  """
  inner, outer = (jnp.maximum(t, TINY) for t in shell)
  ahead_least, ahead_most = rules.difference(u, v)
  behind_u = jnp.maximum(-ahead_most, 0.0), jnp.maximum(-ahead_least, 0.0)
  behind_v = jnp.maximum(ahead_least, 0.0), jnp.maximum(ahead_most, 0.0)

  def after(move, behind, sign):
    lag = jnp.minimum(behind, _FAR)
    return move - lag + sign * gamma(4) * (jnp.abs(move) + lag)

  lower = jnp.maximum(
    after(move_u[0], behind_u[1] / inner, -1),
    after(move_v[0], behind_v[1] / inner, -1),
  )
  lower = jnp.maximum(lower, jnp.minimum(move_u[0], move_v[0]))
  upper = jnp.maximum(
    after(move_u[1], behind_u[0] / outer, 1),
    after(move_v[1], behind_v[0] / outer, 1),
  )
  first, second = ahead_least >= 0, ahead_most <= 0
  slope = jnp.where(first, 1.0, jnp.where(second, 0.0, 0.5))
  gain_u, gain_v = move_u[1] - move_v[0], move_v[1] - move_u[0]
  overtaken = jnp.where(
    first,
    after(gain_v, behind_v[0] / outer, 1),
    after(gain_u, behind_u[0] / outer, 1),
  )
  half = jnp.maximum(gain_u, gain_v) / 2 * (1 + gamma(2))
  known = first | second
  rest = (
    jnp.where(known, 0.0, -half),
    jnp.where(known, jnp.maximum(overtaken, 0.0), half),
  )
  return Change(_kept(step, (slope, 1 - slope)), rest, (lower, upper))


def _kept(step: Step, values):
  """Those of the operands that are variables."""
  pairs = zip(step.operands, values, strict=True)
  return [value for operand, value in pairs if isinstance(operand, Variable)]


def _columns(network, changes, moves):
  """Weights of what changes freely, and how it changes.

  Returns:
    Columns [C, ...] that numbers in [-1, 1] multiply, what is added to them
    [C], and what rounding adds to the norm.
  """
  (counts, pending), columns, drifts, slacks = walk.owed(network), [], [], []

  def free(rows, bound):
    lower, upper = bound
    columns.append(rows * ((upper - lower) / 2 * (1 + gamma(2)))[None])
    drifts.append(walk.total(rows * ((upper + lower) / 2)[None]))
    count = gamma(walk.total_terms(lower.shape) + len(rows))
    slacks.append(count * _sizes(rows * rules.magnitude(bound)[None]))

  def visit(_, step, received):
    given = [rules.magnitude(moves[v]) for v in step.variables]
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
    (rows,), change = received, changes[step.outputs[0]]
    free(rows, change.rest)
    size = sum(
      jnp.abs(slope) * move
      for slope, move in zip(change.slopes, given, strict=True)
    )
    slacks.append(gamma(rules.terms(step) + count) * _sizes(rows * size[None]))
    return [rows * slope[None] for slope in change.slopes]

  eye, output = jnp.eye(*network.output.shape * 2), network.output
  size = rules.magnitude(moves[output]).sum()
  slacks.append(gamma(pending[output] + len(eye)) * size)
  free(walk.pull(network, {output: eye}, visit), moves[network.input])
  slack = sum(slacks) * (1 + gamma(len(slacks)))
  return columns, sum(drifts), slack


def _sizes(rows) -> chex.Array:
  """Sum of all absolute values of rows [K, ...], rounded upwards."""
  count = gamma(walk.total_terms(rows.shape[1:]) + len(rows))
  return walk.total(jnp.abs(rows)).sum() * (1 + count)


def _norm(columns, drift, slack) -> chex.Array:
  """The largest l1 norm that columns and drift can have, rounded upwards.

  Exact for few classes, else the sum of all absolute values.
  """
  classes = len(drift)
  if classes > _EXACT:
    sizes = [_sizes(column) for column in (*columns, drift[:, None])]
    return slack + sum(sizes) * (1 + gamma(len(sizes)))
  rows = jnp.concatenate([c.reshape(classes, -1) for c in columns], axis=1).T
  rows = jnp.pad(rows, ((0, -len(rows) % _BLOCK), (0, 0)))
  blocks = rows.reshape(-1, _BLOCK, classes)
  left, right = _signs(classes - classes // 2), _signs(classes // 2)
  left = left[: len(left) // 2]  # the others are their negatives

  def signed(rows):  # [..., C] -> [..., L, R]; of each half a sum once
    first, last = rows[..., : left.shape[1]], rows[..., left.shape[1] :]
    first = jnp.matmul(first, left.T, precision='highest')[..., None]
    last = jnp.matmul(last, right.T, precision='highest')[..., None, :]
    return jnp.abs(first + last)

  values = lax.map(lambda block: signed(block).sum(0), blocks).sum(0)
  values = (values + signed(drift)).max()
  return slack + values * (1 + gamma(_BLOCK + len(blocks) + classes + 2))


def _signs(count: int) -> chex.Array:
  """All vectors of signs, those of the last component in turn."""
  return jnp.asarray(
    [*itertools.product((1.0, -1.0), repeat=count)], jnp.float32
  ).reshape(2**count, count)
