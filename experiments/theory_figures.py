"""Figures 2, 4 and 5 of the paper, drawn from computed functions.

Every function writes `path`.png and .pdf and returns what it measured, which
is also what the figure says. Distances are l-inf; points are [N, 2] float32.
"""

import pathlib
from typing import Any

import matplotlib.lines
import matplotlib.patches
import numpy as np

from experiments import plots
from robustlip import separation, theory
from robustlip.datasets import synthetic

COLORS = ('C0', 'C3')  # class 0, class 1
GRID = 240  # points per axis of a heat map


def _distances(inputs, points, labels):
  return theory.class_distances(
    inputs.astype(np.float32), points, labels, num_classes=2
  )


def _heat_map(axes, points, labels, radius, extent):
  """The binary f on a grid, its zero, and the points."""
  x, y = np.linspace(*extent[:2], GRID), np.linspace(*extent[2:], GRID)
  grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
  distances = _distances(grid, points, labels)
  values = theory.binary_values(distances, radius=radius).reshape(GRID, GRID)
  mesh = axes.pcolormesh(
    x, y, values, cmap='RdBu_r', vmin=-4, vmax=4, rasterized=True
  )
  axes.contour(x, y, values, [0.0], colors='black', linewidths=1.5)
  for label, color in enumerate(COLORS):
    chosen = points[labels == label]
    axes.plot(*chosen.T, 'o', color=color, ms=2.5, mec='white', mew=0.2)
  axes.set(xlabel='$x_1$', ylabel='$x_2$', aspect='equal')
  return mesh


def _balls(axes, points, labels, size, **style):
  for point, label in zip(points, labels, strict=True):
    axes.add_patch(
      matplotlib.patches.Rectangle(
        point - size, 2 * size, 2 * size, ec=COLORS[label], **style
      )
    )


def spirals(path: pathlib.Path, seed: int) -> dict[str, Any]:
  """Figure 4: f of Theorem 4.4 on two spirals of 1,000 points each.

  Accuracy on the training points and on a second draw of as many.
  """
  random = np.random.RandomState(seed)  # 0: the published draw
  points, labels = synthetic.spirals(1000, random)
  test_points, test_labels = synthetic.spirals(1000, random)
  points = points.astype(np.float32)
  nearest = separation.nearest_opposite(points, labels).distances
  radius = nearest.min() / 2
  test_gaps = theory.gaps(_distances(test_points, points, labels), test_labels)
  result = {
    'separation': nearest.min(),
    'r': radius,
    'train_accuracy': np.mean(nearest > 0),
    'test_accuracy': np.mean(test_gaps > 0),
    'test_certified_at_r': np.mean(test_gaps / 2 >= radius),
  }
  figure = plots.figure(6.4, 5.6)
  axes = figure.subplots()
  mesh = _heat_map(axes, points, labels, radius, (-15, 15, -15, 15))
  figure.colorbar(mesh, label='f(x)', extend='both')
  axes.set_title(
    f'f of Theorem 4.4, r = {radius:.3f}\n'
    f'accuracy {result["train_accuracy"]:.1%} on the points, '
    f'{result["test_accuracy"]:.1%} on new ones'
  )
  plots.save(figure, path)
  return result


def _wave(points: np.ndarray) -> np.ndarray:
  """Signed height above a wave through the unit square, [N]."""
  return points[..., 1] - 0.5 - 0.15 * np.sin(6 * points[..., 0])


def _separated_points(random, count, spacing):
  """Points of the unit square, labelled by the wave, that keep `spacing`."""
  points = []
  while len(points) < count:
    point = random.uniform(0.06, 0.94, 2)
    near = any(np.abs(point - other).max() < spacing for other in points)
    if not near and abs(_wave(point)) > spacing:
      points.append(point)
  points = np.array(points, np.float32)
  return points, (_wave(points) > 0).astype(np.int32)


def existence(path: pathlib.Path, seed: int) -> dict[str, Any]:
  """Figure 2: a robust classifier exists below the separation, not above.

  The same points with balls of 0.9 r, where g is certified everywhere, and of
  1.6 r, where balls of different classes meet and no classifier is astute.
  """
  points, labels = _separated_points(np.random.default_rng(seed), 40, 0.09)
  nearest = separation.nearest_opposite(points, labels).distances
  radius = nearest.min() / 2
  figure = plots.figure(9, 4.8)
  result = {'separation': nearest.min(), 'r': radius}
  for axes, factor in zip(figure.subplots(1, 2), (0.9, 1.6), strict=True):
    size = factor * radius
    _heat_map(axes, points, labels, radius, (0, 1, 0, 1))
    _balls(axes, points, labels, size, fc='none', lw=1)
    certified = np.mean(theory.certified(nearest, size))
    result[f'certified_at_{factor}r'] = certified
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title(
      f'balls of {factor} r (r = {radius:.3f}, half the separation):\n'
      f'g is certified at {certified:.0%} of the points'
    )
  plots.save(figure, path)
  return result


def _columns(random, count):
  """One point per column, two of each class in turn, [count, 2]."""
  labels = np.arange(count) // 2 % 2
  heights = 0.5 + (2 * labels - 1) * random.uniform(0.12, 0.4, count)
  points = np.stack([np.linspace(0.06, 0.94, count), heights], axis=1)
  return points.astype(np.float32), labels


def _cutting_through(points, labels, distance):
  """A function that is 1 or -1 on the points, and 0 `distance` from them."""
  from scipy.interpolate import PchipInterpolator

  heights = points[:, 1] - (2 * labels - 1) * distance
  curve = PchipInterpolator(points[:, 0], heights)

  def function(inputs):
    x = np.clip(inputs[..., 0], *points[[0, -1], 0])
    return (inputs[..., 1] - curve(x)) / distance

  return function


def _local_behaviour(function, points, labels, radius) -> dict[str, float]:
  """Accuracy, mean of the largest ratios, astuteness, all on grids of balls."""
  steps = np.linspace(-0.999 * radius, 0.999 * radius, 41, dtype=np.float32)
  moves = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
  moves = moves[np.abs(moves).max(axis=1) > 0]
  signs, center = 2 * labels - 1, function(points)
  around = function(points[:, None] + moves)
  ratios = np.abs(around - center[:, None]) / np.abs(moves).max(axis=1)
  return {
    'accuracy': np.mean(signs * center > 0),
    'lipschitz': ratios.max(axis=1).mean(),
    'astute_at_r': np.mean((signs[:, None] * around > 0).all(axis=1)),
  }


def _describe(name, numbers, radius) -> str:
  return (
    f'{name} = 0: accuracy {numbers["accuracy"]:.0%}, local Lipschitz '
    f'constant {numbers["lipschitz"]:.0f}, astute at r = {radius:.3f}: '
    f'{numbers["astute_at_r"]:.0%}'
  )


def two_classifiers(path: pathlib.Path, seed: int) -> dict[str, Any]:
  """Figure 5: equal accuracy, small and large local Lipschitz constant.

  The binary f, and a function h of the same size on the points whose boundary
  passes every point at a distance of 0.01. The constants are means over the
  points of the largest ratio on a grid over the ball of radius r; astute means
  that the grid has no counterexample.
  """
  points, labels = _columns(np.random.default_rng(seed), 14)
  nearest = separation.nearest_opposite(points, labels).distances
  radius = nearest.min() / 2

  def f(inputs):
    distances = _distances(inputs.reshape(-1, 2), points, labels)
    values = theory.binary_values(distances, radius=radius)
    return values.reshape(inputs.shape[:-1])

  figure = plots.figure(7, 6)
  axes = figure.subplots()
  _balls(axes, points, labels, radius, fc='none', lw=1)
  for label, color in enumerate(COLORS):
    axes.plot(*points[labels == label].T, 'o', color=color)
  x = np.linspace(-0.08, 1.08, GRID)
  grid = np.stack(np.meshgrid(x, x), axis=-1)
  result, lines = {'r': radius, 'separation': nearest.min()}, []
  for name, color, function in (
    ('f', 'darkorange', f),
    ('h', 'black', _cutting_through(points, labels, 0.01)),
  ):
    result[name] = numbers = _local_behaviour(function, points, labels, radius)
    axes.contour(x, x, function(grid), [0.0], colors=color, linewidths=1.5)
    text = _describe(name, numbers, radius)
    lines.append(matplotlib.lines.Line2D([], [], color=color, label=text))
  figure.legend(handles=lines, loc='outside upper center', frameon=False)
  axes.set(xlabel='$x_1$', ylabel='$x_2$', aspect='equal')
  axes.set(xlim=(-0.08, 1.08), ylim=(-0.05, 1.05))
  plots.save(figure, path)
  return result
