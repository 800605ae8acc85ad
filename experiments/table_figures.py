"""The picture of a table of the paper: ours, the paper's, and the findings."""

import itertools
import pathlib
from typing import Any

import numpy as np

from experiments import findings, plots, report, table_rows
from robustlip import drawing

# End of a column's name -> label of the axes that such columns share.
KINDS = {
  '_acc': 'accuracy (%)',
  '_lipschitz': 'local Lipschitz constant',
  'gap': 'training minus test (points)',
  '': 'l-inf distance',
}


def kind(column: str) -> str:
  """The end of a column's name, one of `KINDS`."""
  return next(end for end in KINDS if column.endswith(end))


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
  """Writes to `path`.png one row of axes for each network and data set.

  Each row of the table has its own height, each column its colour; full marks
  are ours with the range over seeds, hollow ones the paper's. Above the axes
  are the findings that they decide.
  """
  others = {'5': tools, 'sizes': sizes}
  if other := others.get(record['table']):
    return other(record, path)
  panels = report.panels(record['rows'])
  names = {kind(column) for column in report.columns(record['rows'])}
  kinds = [end for end in KINDS if end in names]
  heights = [0.25 * len(rows) + 2.6 for rows in panels.values()]
  figure = drawing.figure(1.6 + 3.8 * len(kinds), sum(heights))
  axes = figure.subplots(
    len(panels), len(kinds), squeeze=False, height_ratios=heights
  )
  for line, (title, rows) in zip(axes, panels.items(), strict=True):
    for ax, end in zip(line, kinds, strict=True):
      shown = [c for c in report.columns(rows) if kind(c) == end]
      _points(ax, rows, shown)
      labels = [row['label'] for row in rows] if ax is line[0] else []
      ax.set_yticks(range(len(rows)), labels or [''] * len(rows))
      ax.set_xlabel(KINDS[end])
      found = record['findings'].get(title, {})
      _verdicts(ax, {k: v for k, v in found.items() if _deciding(k) == end})
    line[0].set_title(title, loc='left', fontweight='bold')
  plots.save(figure, path)


def tools(record: dict[str, Any], path: pathlib.Path) -> None:
  """Writes to `path`.png what tools change, one row of axes per panel.

  For each method, arrows lead from it alone to it with a tool: accuracy under
  attack on training and test examples; the gap is constant along the dotted
  line. The last axes show smoothness and gap of every run.
  """
  import matplotlib

  panels = report.panels(record['rows'])
  methods = list(dict.fromkeys(_parts(row)[0] for row in record['rows']))
  names = dict.fromkeys(_parts(row)[1] for row in record['rows'])
  figure = drawing.figure(4 * len(methods) + 5, 3.8 * len(panels))
  twenty = itertools.cycle(matplotlib.colormaps['tab20'].colors)
  colours = dict(zip(filter(None, names), twenty, strict=False))
  axes = figure.subplots(len(panels), len(methods) + 1, squeeze=False)
  for line, (title, rows) in zip(axes, panels.items(), strict=True):
    for i, method in enumerate(methods):
      shown = [row for row in rows if _parts(row)[0] == method]
      _arrows(line[i], shown, colours)
      line[i].set_title(f'{method}, {title}')
      runs = findings.runs(shown, ('eq3_lipschitz', 'adv_gap'))
      style = dict(c=f'C{i}', mfc='none', label=method)
      line[-1].plot(*np.reshape(runs, (-1, 2)).T, 'osDv^P'[i % 6], **style)
    line[-1].set(xlabel='local Lipschitz constant, Eq. (3)')
    line[-1].set(ylabel='gap under attack (points)')
    if 'adv_gap' in (found := record['correlations'][title]):
      correlation = f'rank correlation {found["adv_gap"]:.2f}'
      line[-1].set_title(f'{correlation}, robust methods')
    line[-1].legend(fontsize='small')
  for name, colour in colours.items():
    axes[0, 0].plot([], [], color=colour, label=name)
  axes[0, 0].plot([], [], ':', color='0.6', label='the same gap')
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside right center', frameon=False)
  plots.save(figure, path)


def sizes(record: dict[str, Any], path: pathlib.Path) -> None:
  """Writes to `path`.png accuracy and gap over numbers of training examples.

  One row of axes for each network and data set, a colour for each method; full
  lines are for clean images, dashed ones for attacked images, bars the range
  over seeds.
  """
  panels = report.panels(record['rows'])
  figure = drawing.figure(9, 3.8 * len(panels))
  axes = figure.subplots(len(panels), 2, squeeze=False)
  for line, (title, rows) in zip(axes, panels.items(), strict=True):
    for i, method in enumerate(dict.fromkeys(row['row'] for row in rows)):
      shown = [row for row in rows if row['row'] == method]
      counts = [row['settings']['train_examples'] for row in shown]
      label = table_rows.label(method)
      for ax, clean in zip(line, ('test_acc', 'gap'), strict=True):
        for column, style in ((clean, '-'), (f'adv_{clean}', '--')):
          means, ends = _spread([row['ours'][column] for row in shown])
          name = label if style == '-' else None
          ax.errorbar(counts, means, ends, fmt=f'C{i}.{style}', label=name)
    counts = sorted({row['settings']['train_examples'] for row in rows})
    for ax in line:
      ax.set(xscale='log', xlabel='training examples')
      ax.set_xticks(counts, [f'{count:,}' for count in counts])
      ax.minorticks_off()
    line[0].set(ylabel='test accuracy (%)')
    line[0].set_title(f'{title}; dashed: under attack', loc='left')
    line[1].set(ylabel='training minus test (points)')
    line[1].axhline(0, color='0.8', zorder=0)
    line[0].legend()
  plots.save(figure, path)


def _parts(row: dict[str, Any]) -> tuple[str, str]:
  """The labels of a row's method and of its tools."""
  method, _, names = row['label'].partition(' + ')
  return method, names


def _arrows(
  ax: Any, rows: list[dict[str, Any]], colours: dict[str, Any]
) -> None:
  places = {}
  for row in rows:
    test, gap = (np.mean(row['ours'][c]) for c in ('adv_test_acc', 'adv_gap'))
    places[_parts(row)[1]] = test + gap, test
  start = places.pop('', None)
  for name, end in places.items():
    ax.plot(*end, '.', color=colours[name])
    if start:
      style = dict(arrowstyle='->', color=colours[name], shrinkA=0, shrinkB=0)
      ax.annotate('', end, start, arrowprops=style)
  if start:
    ax.plot(*start, 'k.')
    ax.axline(start, slope=1, ls=':', color='0.6', zorder=0)
  ax.set(xlabel='adv. train acc. (%)', ylabel='adv. test acc. (%)')


def _deciding(finding: str) -> str:
  """The kind of number that decides a finding."""
  if finding == 'separated':
    return ''
  return '_lipschitz' if finding.startswith('smoother') else 'gap'


def _points(ax: Any, rows: list[dict[str, Any]], columns: list[str]) -> None:
  positive, known = True, any(row['paper'] for row in rows)
  for index, column in enumerate(columns):
    lines = [y for y, row in enumerate(rows) if column in row['ours']]
    means, ends = _spread([rows[y]['ours'][column] for y in lines])
    style = dict(color=f'C{index}', zorder=3)
    ax.errorbar(
      means, lines, xerr=ends, fmt='o', label=report.heading(column), **style
    )
    lines = [y for y in lines if column in rows[y]['paper']]
    theirs = [rows[y]['paper'][column] for y in lines]
    ax.plot(theirs, lines, 'D', mfc='none', ms=7, **style)
    positive &= bool((means > 0).all())
  if {'gap', 'adv_gap'} <= set(columns):  # what the attack does to it
    for y, row in enumerate(rows):
      ends = [np.mean(row['ours'].get(c, np.nan)) for c in ('gap', 'adv_gap')]
      ax.plot(ends, [y, y], color='0.75', lw=2)
  if known:
    ax.plot([], [], 'D', mfc='none', ms=7, color='0.3', label='paper')
  if columns and kind(columns[0]) == '_lipschitz' and positive:
    ax.set_xscale('log')
  ax.set_ylim(len(rows) - 0.5, -0.5)
  ax.grid(axis='y', color='0.9')
  if columns:
    ax.legend(
      loc='upper center',
      bbox_to_anchor=(0.5, 0),
      borderaxespad=5,
      fontsize='small',
    )


def _spread(values: list[list[float]]) -> tuple[Any, Any]:
  """Means over seeds, and the distances from them to minimum and maximum."""
  means = np.array([np.mean(x) for x in values])
  return means, [
    means - [min(x) for x in values],
    [max(x) for x in values] - means,
  ]


def _verdicts(ax: Any, findings: dict[str, dict[str, Any]]) -> None:
  for line, (name, found) in enumerate(reversed(findings.items())):
    ax.annotate(
      f'{"✓" if found["holds"] else "✗"} {report.FINDINGS[name]}',
      (0, 1),
      (0, 5 + 12 * line),
      xycoords='axes fraction',
      textcoords='offset points',
      color='C2' if found['holds'] else 'C3',
      fontsize='small',
    )
