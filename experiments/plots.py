"""How every figure begins and is saved, and the curves of a training run."""

import pathlib
from typing import Any


def figure(width: float, height: float, layout: str | None = 'constrained'):
  """An empty figure, in inches; matplotlib is imported where one is drawn.

  Args:
    layout: None where the axes are placed by hand.
  """
  import matplotlib.figure

  return matplotlib.figure.Figure((width, height), layout=layout)


def save(figure, path: pathlib.Path) -> None:
  """Writes `path`.png and .pdf, the same bytes whenever it is drawn."""
  path.parent.mkdir(parents=True, exist_ok=True)
  for suffix, metadata in (('.png', {}), ('.pdf', {'CreationDate': None})):
    target = path.with_name(path.name + suffix)
    figure.savefig(target, dpi=150, metadata=metadata)


def curves(metrics: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Loss and accuracies over epochs, to `path`.png and `path`.pdf."""
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
