"""Figures of the training scripts."""

import pathlib
from typing import Any


def curves(metrics: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Loss and accuracies over epochs, to `path`.png and `path`.pdf."""
  import matplotlib.figure

  figure = matplotlib.figure.Figure((8, 3.2), layout='constrained')
  left, right = figure.subplots(1, 2)
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
  for suffix in ('.png', '.pdf'):
    figure.savefig(path.with_suffix(suffix), dpi=150)
