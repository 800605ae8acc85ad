"""How every figure begins and is saved, and the curves of a training run."""

import contextlib
import os
import pathlib
from typing import Any


def figure(width: float, height: float, layout: str | None = 'constrained'):
  """An empty figure, in inches; matplotlib is imported where one is drawn.

  Args:
    layout: None where the axes are placed by hand.
  """
  # What a notebook asks for need not be installed here: a figure needs none.
  backend = os.environ.pop('MPLBACKEND', None)
  import matplotlib.figure

  if backend:
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
  return matplotlib.figure.Figure((width, height), layout=layout)


def colours(names: list[str]) -> dict[str, Any]:
  """A colour for each name; twenty differ."""
  import matplotlib

  return {n: matplotlib.colormaps['tab20'](i % 20) for i, n in enumerate(names)}


def save(figure, path: pathlib.Path) -> None:
  """Writes `path`.png, the same bytes whenever it is drawn.

  Every text is shown as it is: names from data may have a `$` in them.
  """
  import matplotlib.text

  for text in figure.findobj(matplotlib.text.Text):
    text.set_parse_math(False)
  for axes in figure.axes:
    for axis in (axes.xaxis, axes.yaxis):
      for label in axis.get_ticklabels(which='both'):
        label.set_parse_math(axis.get_scale() == 'log')  # powers of ten
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path.with_name(path.name + '.png'), dpi=150)


def curves(metrics: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Loss and accuracies over epochs, to `path`.png."""
  canvas = figure(8, 3.2)
  left, right = canvas.subplots(1, 2)
  epochs = [line['epoch'] for line in metrics]
  left.plot(epochs, [line['loss'] for line in metrics], '.-', color='0.2')
  left.set(xlabel='epoch', ylabel='training loss', yscale='log')
  names = {
    'test_acc': ('C0-', 'test'),
    'test_adv_acc': ('C3-', 'test, attacked'),
    'holdout_acc': ('C0--', 'held out'),
    'holdout_adv_acc': ('C3--', 'held out, attacked'),
  }
  for name, (style, label) in names.items():
    points = [(x['epoch'], x[name]) for x in metrics if name in x]
    if points:
      right.plot(*zip(*points, strict=True), style, marker='.', label=label)
  right.set(xlabel='epoch', ylabel='accuracy (%)', ylim=(0, 101))
  if right.lines:
    right.legend(loc='lower right', frameon=False)
  for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[['top', 'right']].set_visible(False)
  save(canvas, path)


def accuracy_curve(record: dict[str, Any], path: pathlib.Path) -> None:
  """Accuracy under attack, and certified, over radii, to `path`.png."""
  canvas = figure(5, 3.2)
  axes = canvas.subplots()
  names = {
    'adv_train_acc_at': ('C0--', 'train, attacked'),
    'adv_test_acc_at': ('C3--', 'test, attacked'),
    'certified_test_acc_at': ('C3-', 'test, certified'),
  }
  for name, (style, label) in names.items():
    if curve := record.get(name):
      radii = [float(radius) for radius in curve]
      axes.plot(radii, list(curve.values()), style, marker='.', label=label)
  axes.set(xlabel='epsilon', ylabel='accuracy (%)', ylim=(0, 101))
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  save(canvas, path)
