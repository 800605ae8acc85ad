"""An attack on the distance classifier g: close the gap of class distances.

The subgradient of an l-inf distance is one pixel, and the nearest reference
changes on the way, so the attack alternates two steps. One searches, exactly,
the nearest reference of the own class and of any other class, and adds them to
the candidates of each example. The other ascends own minus other distance over
the candidates, with the gradient of a smooth stand-in (log-sum-exp over pixels
and over candidates) that moves every pixel: away from the own class, towards
the others. It starts from the point of the ball nearest to the nearest
reference of another class. The exact gaps of every search decide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustlip import attacks, separation
from robustlip.progress import bar

BLOCK = 64  # examples that ascend together
NUM_ROUNDS = 4  # searches after the first
NUM_STEPS = 20  # of a round, each a quarter of the radius
# Of the smooth distances, from the first round to the last, in pixel units.
TEMPERATURES = np.geomspace(0.1, 0.005, NUM_ROUNDS)


class Attacked(NamedTuple):
  """The best point found for each example, and its exact gap."""

  points: np.ndarray  # [N, ...], float32
  gaps: np.ndarray  # [N], other minus own class distance; g is wrong below 0


class Found(NamedTuple):
  """The nearest references of each example."""

  gaps: np.ndarray  # [N], other minus own class distance
  own: np.ndarray  # [N], index of the nearest reference of the own class
  other: np.ndarray  # [N], of another class


def search(
  points: np.ndarray,
  labels: np.ndarray,
  refs: np.ndarray,
  ref_labels: np.ndarray,
) -> Found:
  """Exact gaps, and the references that attain them.

  The same gaps as those of `theory.class_distances`, without the distances to
  the classes in between.
  """
  other = separation.nearest_opposite(points, labels, refs, ref_labels)
  distances = np.full(len(points), np.inf, np.float32)
  own = np.zeros(len(points), np.int32)
  for label in np.unique(labels):
    rows, columns = np.flatnonzero(labels == label), ref_labels == label
    if columns.any():
      found = separation.nearest(points[rows], refs[columns])
      distances[rows] = found.distances
      own[rows] = np.flatnonzero(columns)[found.indices]
  return Found(other.distances - distances, own, other.indices)


def _distances(points, candidates, temperature):
  """Exact and smooth distance to the nearest candidate, [B]."""
  moves = jnp.abs(points[:, None] - candidates)
  moves = moves.reshape(*moves.shape[:2], -1)
  exact = moves.max(axis=-1).min(axis=-1)
  smooth = jax.nn.logsumexp(moves / temperature, axis=-1)
  smooth = -temperature * jax.nn.logsumexp(-smooth, axis=-1)
  return exact, smooth


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


def _ascend_all(inputs, start, refs, own, other, **settings):
  """`_ascend` block by block, the last one filled up with repetitions."""
  points = np.empty_like(start)
  for rows in np.split(
    np.arange(len(inputs)), range(BLOCK, len(inputs), BLOCK)
  ):
    full = np.resize(rows, BLOCK)  # one shape, one compilation
    points[full] = _ascend(
      inputs[full], start[full], refs[own[full]], refs[other[full]], **settings
    )
  return points


def attack(
  inputs: np.ndarray,
  labels: np.ndarray,
  refs: np.ndarray,
  ref_labels: np.ndarray,
  *,
  epsilon: float,
) -> Attacked:
  """Attacks g within the l-inf ball of `epsilon` and the pixel box.

  Args:
    inputs: [N, ...] float32 in [0, 1].
    labels: [N], the classes that g should answer.
    refs: [M, ...] float32, the examples that define g.
    ref_labels: [M].
    epsilon: radius of the ball, in units of the pixel range.
  """
  found = search(inputs, labels, refs, ref_labels)
  points, best = inputs.copy(), found.gaps.copy()
  own = np.repeat(found.own[:, None], NUM_ROUNDS, axis=1)
  other = np.repeat(found.other[:, None], NUM_ROUNDS, axis=1)
  towards = np.clip(refs[found.other] - inputs, -epsilon, epsilon)
  current = np.clip(inputs + towards, 0, 1)
  with bar(NUM_ROUNDS, 'attack on g', unit='round') as progress:
    for turn, temperature in enumerate(TEMPERATURES):
      alive = np.flatnonzero(best > 0)
      if not len(alive):
        break
      current[alive] = _ascend_all(
        inputs[alive],
        current[alive],
        refs,
        own[alive],
        other[alive],
        epsilon=epsilon,
        temperature=temperature,
      )
      found = search(current[alive], labels[alive], refs, ref_labels)
      better = alive[found.gaps < best[alive]]
      points[better] = current[better]
      best[alive] = np.minimum(best[alive], found.gaps)
      own[alive, turn + 1 :] = found.own[:, None]
      other[alive, turn + 1 :] = found.other[:, None]
      progress.update()
  return Attacked(points, best)
