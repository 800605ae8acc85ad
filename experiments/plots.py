"""How every figure is saved, and the figures of single networks."""

import pathlib
from typing import Any

from robustlip import drawing

# Columns over radii: found by attacks (dashed), proven by bounds (full lines).
ACCURACIES = ('adv_test_acc', 'certified_test_acc')
CONSTANTS = ('eq3_lipschitz', 'upper_lipschitz')


def save(figure, path: pathlib.Path) -> None:
  """Writes `path`.png without frames; the same figure gives the same bytes.

  Text is not parsed as maths, since names from data may have a `$`.
  """
  import matplotlib.text

  for text in figure.findobj(matplotlib.text.Text):
    text.set_parse_math(False)
  for axes in figure.axes:
    axes.spines[['top', 'right']].set_visible(False)
    if legend := axes.get_legend():
      legend.set_frame_on(False)
    for axis in (axes.xaxis, axes.yaxis):
      for label in axis.get_ticklabels(which='both'):
        label.set_parse_math(axis.get_scale() == 'log')  # powers of ten
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path.with_name(path.name + '.png'), dpi=150)


def curves(metrics: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Loss and accuracies over epochs, to `path`.png."""
  figure = drawing.figure(8, 3.2)
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
    right.legend(loc='lower right')
  for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
  save(figure, path)


def of_g(curve: dict[str, list[float]], largest: float) -> dict[str, Any]:
  """Certified accuracies of the paper's g up to a radius, for `both_sides`."""
  points = zip(curve['epsilons'], curve['certified'], strict=True)
  certified = {x: 100 * share for x, share in points if x <= largest + 1e-9}
  return {'test_acc': certified[0.0], 'certified_test_acc_at': certified}


def both_sides(runs: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Accuracies and Lipschitz constants over radii, to `path`.png.

  Args:
    runs: evaluations at several radii, with bounds or without, and a `label`.
  """
  import matplotlib

  few = len(runs) <= 10
  colors = matplotlib.colormaps['tab10' if few else 'tab20'].colors
  kinds = ACCURACIES, CONSTANTS
  kinds = [kind for kind in kinds if f'{kind[0]}_at' in runs[0]]
  figure = drawing.figure(4.5 * len(kinds), 4.2)
  left, *right = figure.subplots(1, len(kinds), squeeze=False)[0]
  for index, run in enumerate(runs):
    left.plot([], [], color=colors[index % 20], label=run['label'])
    for axes, names in zip((left, *right), kinds, strict=True):
      start = {0.0: run['test_acc']} if axes is left else {}
      for name, line in zip(names, ('--', '-'), strict=True):
        curve = {float(x): y for x, y in run.get(f'{name}_at', {}).items()}
        marker = 'v'  # a single radius is drawn as a point, not joined to 0
        if len(curve) > 1:
          curve, marker = start | curve, '.'
        if curve:
          points = zip(*curve.items(), strict=True)
          axes.plot(*points, line, color=colors[index % 20], marker=marker)
  left.set(xlabel='radius', ylabel='test accuracy (%)', ylim=(0, 101))
  left.set_title('dashed: under attack; full: certified')
  for axes in right:
    axes.set(xlabel='radius', ylabel='local Lipschitz constant', yscale='log')
    axes.set_title('dashed: found; full: upper bound')
  ncols = 6 if few else 5
  figure.legend(loc='outside lower center', ncols=ncols, frameon=False)
  save(figure, path)


def speeds(cases: dict[str, tuple[str, float]], path: pathlib.Path) -> None:
  """A bar for each case, how many times as fast as its peer, to `path`.png."""
  figure = drawing.figure(8, 0.8 + 0.2 * len(cases))
  axes = figure.subplots()
  ratios = [ratio for _, ratio in cases.values()]
  colours = ['C0' if ratio >= 1 else 'C3' for ratio in ratios]
  # Bars begin at 1, where both are as fast.
  axes.barh(list(cases), [x - 1 for x in ratios], left=1, color=colours)
  for place, (peer, ratio) in enumerate(cases.values()):
    text = f'{ratio:.3g}, {peer}'
    axes.text(
      1.05 * max(ratio, 1), place, text, va='center', fontsize='x-small'
    )
  axes.axvline(1, color='0.2', linewidth=0.8)
  axes.set(xscale='log', ylim=(len(cases), -1))
  axes.set_xlim(min(0.5, 0.8 * min(ratios)), 8 * max(ratios))
  axes.set_xlabel('times the rate of the fastest peer')
  axes.tick_params('y', labelsize='x-small')
  save(figure, path)
