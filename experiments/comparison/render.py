"""A table record as Markdown, as CSV and as a picture."""

import csv
import io
import pathlib
from typing import Any

import numpy as np

from experiments import common, plots

HEADINGS = {
  'epsilon': 'radius',
  'train_train_min': 'train-train separation',
  'test_train_min': 'test-train separation',
  'train_acc': 'train acc.',
  'test_acc': 'test acc.',
  'adv_test_acc': 'adv. test acc.',
  'released_lipschitz': 'test Lipschitz, released procedure',
  'eq3_lipschitz': 'test Lipschitz, Eq. (3)',
  'gap': 'gap',
  'adv_gap': 'adv. gap',
  'mt_adv_test_acc': 'MT test acc.',
  'mt_adv_gap': 'MT gap',
  'released_mt_adv_test_acc': 'MT test acc., released attack',
  'released_mt_adv_gap': 'MT gap, released attack',
}
# Inches of the picture: labels, a column and the space between two, a row,
# and what a panel needs above and below.
_LEFT, _COLUMN, _APART, _ROW, _ABOVE, _BELOW = 1.7, 1.7, 0.25, 0.27, 0.45, 0.7
_DIGITS = {'epsilon': 3, 'train_train_min': 3, 'test_train_min': 3}


def columns(panel: dict[str, Any]) -> list[str]:
  """The columns that a panel has, in their order."""
  found = dict.fromkeys(
    c for row in panel['rows'].values() for c in row['columns']
  )
  return list(found)


def filled(record: dict[str, Any]) -> list[dict[str, Any]]:
  """The panels with at least one finished row."""
  return [panel for panel in record['panels'] if panel['rows']]


def _text(column: str, cell: dict[str, Any] | None, beside: bool) -> str:
  if cell is None:
    return ''
  digits = _DIGITS.get(column, 2)
  text = f'{cell["ours"]:.{digits}f}'
  if cell['std'] is not None:
    text += f' ± {cell["std"]:.{digits}f}'
  if not beside:
    return text
  if cell['published'] is None:
    return f'{text} / – / –'
  return (
    f'{text} / {cell["published"]:.{digits}f} / '
    f'{cell["difference"]:+.{digits}f}'
  )


def _published(panel: dict[str, Any], column: str) -> bool:
  """Whether any row has a published number in this column."""
  cells = (row['columns'].get(column) for row in panel['rows'].values())
  return any(cell and cell['published'] is not None for cell in cells)


def _title(panel: dict[str, Any]) -> str:
  return ' on '.join(x for x in (panel['arch'], panel['dataset']) if x)


def _notes(panel: dict[str, Any]) -> list[str]:
  lines = []
  if any(_published(panel, column) for column in columns(panel)):
    lines.append('Cells are ours / paper / difference; – where none is known.')
  elif panel.get('arch'):
    lines.append('The paper has no numbers for this network and data set.')
  if panel['departures']:
    lines.append(
      'Not the published experiment: ' + '; '.join(panel['departures']) + '.'
    )
  settings = panel['settings']
  if 'measured_test' in settings:
    lines.append(
      f'Radius {settings["epsilon"]:g}; {settings["measured_train"]} training '
      f'and {settings["measured_test"]} test examples measured.'
    )
  if 'released_lipschitz' in columns(panel):
    lines.append(
      'The published Lipschitz column is held against the released procedure '
      'alone, which descends the ratio; Eq. (3) is our maximization of it. '
      'Published GR and LLR are what the released code trains; the rows GR and '
      'LLR are what the text defines.'
    )
  return lines + panel.get('notes', [])


def _grid(panel: dict[str, Any]) -> list[list[str]]:
  names = columns(panel)
  beside = {name: _published(panel, name) for name in names}
  first = 'method' if panel['arch'] else 'data set'
  rows = [[first, *(HEADINGS[name] for name in names)]]
  for row in panel['rows'].values():
    cells = row['columns']
    rows.append(
      [row['label'], *(_text(x, cells.get(x), beside[x]) for x in names)]
    )
  return rows


def markdown(record: dict[str, Any]) -> str:
  """Title, notes and grid of each panel, then the findings."""
  lines = [f'## {record["title"]}', '']
  for panel in filled(record):
    if _title(panel):
      lines += [f'### {_title(panel)}', '']
    for note in _notes(panel):
      lines += [note, '']
    grid = _grid(panel)
    grid.insert(1, ['---', *['---:'] * (len(grid[0]) - 1)])
    lines += ['| ' + ' | '.join(row) + ' |' for row in grid]
    lines.append('')
  for finding in record['findings']:
    verdict = str(finding['holds']).lower()
    lines.append(f'- {verdict}: {finding["sentence"]} ({finding["where"]})')
  return '\n'.join(lines).rstrip() + '\n'


def comma_separated(record: dict[str, Any]) -> str:
  """One line per cell, every digit kept."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  numbers = ('ours', 'std', 'published', 'difference')
  writer.writerow(
    ['table', 'dataset', 'arch', 'row', 'column', 'seeds', *numbers]
  )
  for panel in record['panels']:
    for name, row in panel['rows'].items():
      for column, cell in row['columns'].items():
        place = (record['table'], panel['dataset'], panel['arch'], name, column)
        count = len(cell['values'])
        writer.writerow([*place, count, *(cell[x] for x in numbers)])
  return file.getvalue()


def picture(record: dict[str, Any], path: pathlib.Path) -> None:
  """Every column as a strip of points, ours beside the paper's."""
  panels = filled(record)
  if not panels:
    return
  count = max(len(columns(panel)) for panel in panels)
  heights = [_ROW * len(panel['rows']) for panel in panels]
  width = _LEFT + _COLUMN * count
  height = sum(heights) + (_ABOVE + _BELOW) * len(panels)
  figure = plots.figure(width, height, layout=None)
  top = height
  for panel, tall in zip(panels, heights, strict=True):
    bottom = top - _ABOVE - tall
    for index, name in enumerate(columns(panel)):
      left = _LEFT + _COLUMN * index
      size = (left, bottom, _COLUMN - _APART, tall)
      ax = figure.add_axes(size / np.array([width, height] * 2))
      _strip(ax, panel, name, first=index == 0)
      if index == 0:
        ax.set_title(_title(panel), loc='left', fontweight='bold')
    top = bottom - _BELOW
  found = [ax.get_legend_handles_labels() for ax in figure.axes]
  both = {
    label: handle for pair in found for handle, label in zip(*pair, strict=True)
  }
  if len(both) > 1:
    figure.legend(
      both.values(), both, loc='upper right', ncols=2, frameon=False
    )
  plots.save(figure, path)


def _strip(ax: Any, panel: dict[str, Any], column: str, *, first: bool) -> None:
  rows = list(panel['rows'].values())
  cells = [row['columns'].get(column) for row in rows]
  theirs = [
    (cell['published'], y)
    for y, cell in enumerate(cells)
    if cell and cell['published'] is not None
  ]
  if theirs:
    ax.plot(
      *zip(*theirs, strict=True), 'D', mfc='none', color='C3', label='paper'
    )
  ours = [(c['ours'], y, c['std'] or 0) for y, c in enumerate(cells) if c]
  x, y, spread = zip(*ours, strict=True)
  ax.errorbar(x, y, xerr=spread, fmt='o', ms=4, color='C0', label='ours')
  positive = [value for value, *_ in ours + theirs if value > 0] or [1]
  # Within a factor of three a logarithmic axis has no round numbers to show.
  if 'lipschitz' in column and max(positive) > 3 * min(positive):
    _logarithmic(ax, ours)
  else:
    ax.xaxis.get_major_locator().set_params(nbins=3)
  ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=_broken(HEADINGS[column]))
  ax.set_yticks(range(len(rows)), [r['label'] for r in rows] if first else [])
  ax.tick_params(axis='x', labelsize='small')
  ax.grid(axis='y', color='0.9')
  ax.spines[['top', 'right']].set_visible(False)


def _logarithmic(ax: Any, ours: list[tuple[float, int, float]]) -> None:
  """A logarithmic axis; what is 0 is written at its left end."""
  import matplotlib.ticker

  ax.set_xscale('log')
  ax.xaxis.get_major_locator().set_params(subs=(1, 3), numticks=5)
  ax.xaxis.set_major_formatter('{x:g}')
  ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
  place = {'xycoords': ('axes fraction', 'data'), 'va': 'center'}
  for value, row, _ in ours:
    if value <= 0:
      ax.annotate(f'← {value:g}', (0.02, row), color='C0', **place)


def _broken(heading: str) -> str:
  return heading.replace(', ', ',\n')


def write(record: dict[str, Any], path: pathlib.Path) -> str:
  """Writes `path`.md, .csv, .png and .pdf; returns the Markdown."""
  text = markdown(record)
  common.write_text(text, path.with_name(path.name + '.md'))
  common.write_text(comma_separated(record), path.with_name(path.name + '.csv'))
  picture(record, path)
  return text
