"""Progress of long work: a bar in a terminal or a notebook, lines in a log."""

import sys

import tqdm.auto
import tqdm.notebook


class _Lines:
  """A file for tqdm that shows each state of a bar on a line of its own."""

  last = ''

  def write(self, text: str) -> None:
    text = text.strip()
    if text and text != self.last:  # tqdm repeats the last one
      self.last = text
      print(text, file=sys.stderr, flush=True)

  def flush(self) -> None:
    """Every line is flushed as it is written."""


# A line every ten seconds and at the end, but none when a short task starts.
_LOG = {
  'file': _Lines(),
  'mininterval': 10,
  'miniters': 1,
  'delay': 1e-9,
  'bar_format': '{desc}: {n_fmt} of {total_fmt}, {elapsed} spent, '
  '{remaining} left{postfix}',
}


def bar(total: int, description: str, *, unit: str = 'it', initial: int = 0):
  """A tqdm bar: a context manager with `update` and `set_postfix_str`."""
  in_notebook = issubclass(tqdm.auto.tqdm, tqdm.notebook.tqdm_notebook)
  if in_notebook or sys.stderr.isatty():
    style = {'dynamic_ncols': True, 'leave': False}
  else:
    style = _LOG
  return tqdm.auto.tqdm(
    total=total, desc=description, unit=unit, initial=initial, **style
  )
