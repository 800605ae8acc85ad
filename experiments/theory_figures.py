"""The paper's figures 2, 4 and 5 from computed functions, and a curve.

Each is a function of a seed that returns the numbers stated in the figure and a
function that draws it, so that numbers are recorded before anything is drawn.
The latter takes a path and writes `path`.png. Distances are l-inf; points are
[N, 2] float32.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import plots
from robustlip import drawing, separation, theory
from robustlip.datasets import synthetic

Figure = tuple[dict[str, Any], Callable[[pathlib.Path], None]]

COLORS = ('C0', 'C3')  # class 0, class 1
GRID = 240  # points per axis of a heat map


def spirals(seed: int) -> Figure:
  """Figure 4: f of Theorem 4.4 on two spirals of 1,000 points each.

  Accuracies are on the training points and on a second draw of as many.
  """
  random = np.random.RandomState(seed)  # 0: the published draw
  points, labels = synthetic.spirals(1000, random)
  test_points, test_labels = synthetic.spirals(1000, random)
  points = points.astype(np.float32)
  nearest = separation.nearest_opposite(points, labels).distances
  radius = nearest.min() / 2
  distances = _class_distances(test_points, points, labels)
  margins = theory.margins(distances, test_labels)
  numbers = {
    'separation': nearest.min(),
    'r': radius,
    'train_accuracy': np.mean(nearest > 0),
    'test_accuracy': np.mean(margins > 0),
    'test_certified_at_r': np.mean(margins / 2 >= radius),
  }

  def draw(path):
    figure = drawing.figure(6.4, 5.6)
    axes = figure.subplots()
    mesh = _heat_map(axes, points, labels, radius, (-15, 15, -15, 15))
    figure.colorbar(mesh, label='f(x)', extend='both')
    axes.set_title(
      f'f of Theorem 4.4, r = {radius:.3f}\n'
      f'accuracy {numbers["train_accuracy"]:.1%} on the points, '
      f'{numbers["test_accuracy"]:.1%} on new ones'
    )
    plots.save(figure, path)

  return numbers, draw


def existence(seed: int) -> Figure:
  """Figure 2: a robust classifier exists below the separation, not above.

  The same points with balls of radius 0.9 r, where g is certified everywhere,
  and of 1.6 r, where balls of different classes overlap and no classifier is
  astute.
  """
  points, labels = _separated_points(np.random.default_rng(seed), 40, 0.09)
  nearest = separation.nearest_opposite(points, labels).distances
  radius = nearest.min() / 2
  certified = {
    factor: np.mean(theory.certified(nearest, factor * radius))
    for factor in (0.9, 1.6)
  }
  numbers = {'separation': nearest.min(), 'r': radius}
  numbers |= {f'certified_at_{x}r': share for x, share in certified.items()}

  def draw(path):
    figure = drawing.figure(9, 4.8)
    for axes, factor in zip(figure.subplots(1, 2), certified, strict=True):
      _heat_map(axes, points, labels, radius, (0, 1, 0, 1))
      _balls(axes, points, labels, factor * radius)
      axes.set(xlim=(0, 1), ylim=(0, 1))
      axes.set_title(
        f'balls of {factor} r (r = {radius:.3f}, half the separation):\n'
        f'g is certified at {certified[factor]:.0%} of the points'
      )
    plots.save(figure, path)

  return numbers, draw


def two_classifiers(seed: int) -> Figure:
  """Figure 5: equal accuracy, small and large local Lipschitz constant.

  The binary f, and a function h with values +-1 on the points, whose decision
  boundary passes every point at a distance of 0.01. The constants are means
  over points of the largest ratio on a grid over the ball of radius r; astute
  means that the grid has no counterexample.
  """
  points, labels = _columns(np.random.default_rng(seed), 14)
  nearest = separation.nearest_opposite(points, labels).distances
  radius = nearest.min() / 2

  def f(inputs):
    distances = _class_distances(inputs.reshape(-1, 2), points, labels)
    values = theory.binary_values(distances, radius=radius)
    return values.reshape(inputs.shape[:-1])

  functions = {'f': f, 'h': _cutting_through(points, labels, 0.01)}
  numbers = {'r': radius, 'separation': nearest.min()}
  numbers |= {
    name: _local_behaviour(function, points, labels, radius)
    for name, function in functions.items()
  }

  def draw(path):
    figure = drawing.figure(7, 6)
    axes = figure.subplots()
    _balls(axes, points, labels, radius)
    for label, color in enumerate(COLORS):
      axes.plot(*points[labels == label].T, 'o', color=color)
    x = np.linspace(-0.08, 1.08, GRID)
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    lines = []
    for name, color in (('f', 'darkorange'), ('h', 'black')):
      values = functions[name](grid)
      axes.contour(x, x, values, [0.0], colors=color, linewidths=1.5)
      found = numbers[name]
      label = (
        f'{name} = 0: accuracy {found["accuracy"]:.0%}, local Lipschitz '
        f'constant {found["lipschitz"]:.0f}, astute at r = {radius:.3f}: '
        f'{found["astute_at_r"]:.0%}'
      )
      lines += axes.plot([], [], color=color, label=label)
    figure.legend(handles=lines, loc='outside upper center', frameon=False)
    axes.set(xlabel='x₁', ylabel='x₂', aspect='equal')
    axes.set(xlim=(-0.08, 1.08), ylim=(-0.05, 1.05))
    plots.save(figure, path)

  return numbers, draw


def not_separated(seed: int) -> Figure:
  """Separation of samples of Tsipras et al.'s distribution against their size.

  The mean of the weak features is 2 / sqrt(their number), as in the source,
  and the strong feature agrees with 95 % of the labels; if it agreed with all
  of them, the classes would be 2 apart. Means of three draws.
  """
  from scipy.spatial.distance import cdist

  sizes = np.geomspace(50, 10000, 12).astype(int)
  curves = {}
  for num_weak, agreement in ((4, 0.95), (16, 0.95), (64, 0.95), (4, 1.0)):
    minima = []
    for draw_index in range(3):
      inputs, labels = synthetic.one_strong_many_weak(
        int(sizes[-1]),
        np.random.default_rng([seed, draw_index]),
        num_weak=num_weak,
        mean=2 / np.sqrt(num_weak),
        agreement=agreement,
      )
      between = cdist(inputs[labels == 0], inputs[labels == 1], 'chebyshev')
      counts = [np.bincount(labels[:size], minlength=2) for size in sizes]
      minima.append([between[:a, :b].min() for a, b in counts])
    name = f'{num_weak} weak features, {agreement:.0%} agreement'
    curves[name] = np.mean(minima, axis=0)

  def draw(path):
    figure = drawing.figure(6.4, 4.2)
    axes = figure.subplots()
    for name, minima in curves.items():
      line = '--' if '100%' in name else '-'
      axes.loglog(sizes, minima, ls=line, marker='o', ms=3, label=name)
    axes.set(xlabel='examples', ylabel='smallest distance between the classes')
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2], ['0.1', '0.2', '0.5', '1', '2'])
    axes.minorticks_off()
    axes.legend()
    plots.save(figure, path)

  return {'sizes': sizes, 'num_draws': 3, **curves}, draw


FIGURES = {  # name of the file, and of the numbers in the record -> function
  'figure_2': existence,
  'figure_4': spirals,
  'figure_5': two_classifiers,
  'not_separated': not_separated,
}


def _class_distances(inputs, points, labels):
  return theory.class_distances(
    inputs.astype(np.float32), points, labels, num_classes=2
  )


def _heat_map(axes, points, labels, radius, extent):
  """Draws the binary f on a grid, its zero set, and the points."""
  x, y = np.linspace(*extent[:2], GRID), np.linspace(*extent[2:], GRID)
  grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
  distances = _class_distances(grid, points, labels)
  values = theory.binary_values(distances, radius=radius).reshape(GRID, GRID)
  mesh = axes.pcolormesh(x, y, values, cmap='RdBu_r', vmin=-4, vmax=4)
  axes.contour(x, y, values, [0.0], colors='black', linewidths=1.5)
  for label, color in enumerate(COLORS):
    chosen = points[labels == label]
    axes.plot(*chosen.T, 'o', color=color, ms=2.5, mec='white', mew=0.2)
  axes.set(xlabel='x₁', ylabel='x₂', aspect='equal')
  return mesh


def _balls(axes, points, labels, size):
  """The outline of the l-inf ball around every point."""
  corners = size * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
  for point, label in zip(points, labels, strict=True):
    axes.plot(*(point + corners).T, color=COLORS[label], lw=1)


def _separated_points(random, count, spacing):
  """Points of the unit square, `spacing` apart, labelled by sides of a wave."""

  def height(points):  # above the wave
    return points[..., 1] - 0.5 - 0.15 * np.sin(6 * points[..., 0])

  points = []
  while len(points) < count:
    point = random.uniform(0.06, 0.94, 2)
    near = any(np.abs(point - other).max() < spacing for other in points)
    if not near and abs(height(point)) > spacing:
      points.append(point)
  points = np.array(points, np.float32)
  return points, (height(points) > 0).astype(np.int32)


def _columns(random, count):
  """Points [count, 2] in equal columns, classes 0 0 1 1 0 0 ..., and labels."""
  labels = np.arange(count) // 2 % 2
  heights = 0.5 + (2 * labels - 1) * random.uniform(0.12, 0.4, count)
  points = np.stack([np.linspace(0.06, 0.94, count), heights], axis=1)
  return points.astype(np.float32), labels


def _cutting_through(points, labels, distance):
  """A function that is +-1 on the points, with a zero `distance` from each."""
  from scipy.interpolate import PchipInterpolator

  heights = points[:, 1] - (2 * labels - 1) * distance
  curve = PchipInterpolator(points[:, 0], heights)

  def function(inputs):
    x = np.clip(inputs[..., 0], *points[[0, -1], 0])
    return (inputs[..., 1] - curve(x)) / distance

  return function


def _local_behaviour(function, points, labels, radius) -> dict[str, float]:
  """Accuracy, mean of the largest ratios, astuteness; on grids over balls."""
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
