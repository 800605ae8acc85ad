"""An attack on the distance classifier g of `theory`: it lowers the margins.

The gradient of an l-inf distance is nonzero at one pixel only, and the nearest
reference changes as a point moves. So the attack alternates two steps. The
first finds, exactly, the nearest reference of the own class and of any other
class, and adds them to the candidates of each example. The second ascends the
own minus the other distance over the candidates. Its gradient is that of smooth
distances (log-sum-exp over pixels and over candidates), which moves every
pixel: away from the own class, towards the others. The start is the point of
the ball nearest to the nearest reference of another class. The exact margins of
each search decide which points are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import attacks, projections, separation
from robustlip.images import check_images
from robustlip.progress import bar

BLOCK = 64  # examples that ascend together
NUM_ROUNDS = 4  # of ascent and search, after the first search
NUM_STEPS = 20  # of ascent in a round, each a quarter of the radius long
# Temperatures of the smooth distances, one per round, in pixel units.
TEMPERATURES = np.geomspace(0.1, 0.005, NUM_ROUNDS)


class Attacked(NamedTuple):
  """The best point found for each example."""

  points: np.ndarray  # [N, ...], float32
  margins: np.ndarray  # [N], exact margins of the points; g is wrong below 0


class NearestReferences(NamedTuple):
  """The nearest references of each example, and the margin they give."""

  margins: np.ndarray  # [N], distance to `other` minus distance to `own`
  own: np.ndarray  # [N], index of the nearest reference of the own class
  other: np.ndarray  # [N], of the nearest reference of another class


def nearest_references(
  points: chex.Array,
  labels: chex.Array,
  ref_inputs: chex.Array,
  ref_labels: chex.Array,
) -> NearestReferences:
  """The margins of `theory.margins`, exact, and the references that give them.

  Takes what `separation.nearest_opposite` takes.
  """
  other = separation.nearest_opposite(points, labels, ref_inputs, ref_labels)
  distances = np.full(len(points), np.inf, np.float32)
  own = np.zeros(len(points), np.int32)
  for label in np.unique(labels):
    rows, columns = np.flatnonzero(labels == label), ref_labels == label
    if columns.any():
      found = separation.nearest(points[rows], ref_inputs[columns])
      distances[rows] = found.distances
      own[rows] = np.flatnonzero(columns)[found.indices]
  return NearestReferences(other.distances - distances, own, other.indices)


def attack(
  inputs: np.ndarray,
  labels: np.ndarray,
  ref_inputs: np.ndarray,
  ref_labels: np.ndarray,
  *,
  epsilon: float,
) -> Attacked:
  """Attacks g within the l-inf ball of `epsilon` and the pixel box.

  Args:
    inputs: [N, ...] float32 in [0, 1].
    labels: [N], the right answers.
    ref_inputs: [M, ...] float32 in [0, 1], the examples that define g.
    ref_labels: [M].
    epsilon: radius of the ball, in units of the pixel range.

  Raises:
    ValueError: if the radius or images are out of range, or there are no
      references.
  """
  projections.check_radius(epsilon, np.zeros(1, np.float32))
  if not len(ref_inputs):
    raise ValueError('g needs at least one example, got none.')
  epsilon = float(epsilon)
  inputs, ref_inputs = map(np.asarray, map(check_images, (inputs, ref_inputs)))
  labels, ref_labels = np.asarray(labels), np.asarray(ref_labels)
  found = nearest_references(inputs, labels, ref_inputs, ref_labels)
  points, margins = inputs.copy(), found.margins.copy()
  # Each round adds a candidate; until then its column repeats the newest one.
  own = np.repeat(found.own[:, None], NUM_ROUNDS, axis=1)
  other = np.repeat(found.other[:, None], NUM_ROUNDS, axis=1)
  towards = np.clip(ref_inputs[found.other] - inputs, -epsilon, epsilon)
  current = np.clip(inputs + towards, 0, 1)
  with bar(NUM_ROUNDS, 'attack on g', unit='round') as progress:
    for turn, temperature in enumerate(TEMPERATURES):
      right = np.flatnonzero(margins > 0)
      if not len(right):
        break
      current[right] = _ascend_in_blocks(
        inputs[right],
        current[right],
        ref_inputs,
        own[right],
        other[right],
        epsilon=epsilon,
        temperature=temperature,
      )
      found = nearest_references(
        current[right], labels[right], ref_inputs, ref_labels
      )
      better = right[found.margins < margins[right]]
      points[better] = current[better]
      margins[right] = np.minimum(margins[right], found.margins)
      own[right, turn + 1 :] = found.own[:, None]
      other[right, turn + 1 :] = found.other[:, None]
      progress.update()
  return Attacked(points, margins)


def _ascend_in_blocks(inputs, start, ref_inputs, own, other, **settings):
  """`_ascend` block by block; the last one is filled up with repetitions."""
  points = np.empty_like(start)
  for first in range(0, len(inputs), BLOCK):
    rows = np.arange(first, min(first + BLOCK, len(inputs)))
    rows = np.resize(rows, BLOCK)  # one shape, one compilation
    points[rows] = _ascend(
      inputs[rows],
      start[rows],
      ref_inputs[own[rows]],
      ref_inputs[other[rows]],
      **settings,
    )
  return points


@jax.jit
def _ascend(inputs, start, own, other, *, epsilon, temperature):
  def objective(points):
    exact_own, smooth_own = _distances(points, own, temperature)
    exact_other, smooth_other = _distances(points, other, temperature)
    smooth = smooth_own - smooth_other
    exact = exact_own - exact_other
    return smooth + jax.lax.stop_gradient(exact - smooth)

  return attacks.ascend(
    objective,
    inputs,
    jax.random.key(0),
    epsilon=epsilon,
    step_size=epsilon / 4,
    num_steps=NUM_STEPS,
    start=start,
    keep='best',
  )


def _distances(points, candidates, temperature):
  """Exact and smooth distance to the nearest candidate, [B]."""
  moves = jnp.abs(points[:, None] - candidates)
  moves = moves.reshape(*moves.shape[:2], -1)
  exact = moves.max(axis=-1).min(axis=-1)
  smooth = jax.nn.logsumexp(moves / temperature, axis=-1)
  smooth = -temperature * jax.nn.logsumexp(-smooth, axis=-1)
  return exact, smooth
