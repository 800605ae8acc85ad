"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time

import tqdm
from absl import logging

SECONDS_BETWEEN_LINES = 10.0


class _Lines:
  """The three methods of a tqdm bar that we use, as log lines."""

  def __init__(self, total: int, description: str, initial: int):
    self.total, self.description, self.done = total, description, initial
    self.last, self.suffix = time.monotonic(), ''

  def update(self, amount: int = 1) -> None:
    self.done += amount
    now = time.monotonic()
    if self.done >= self.total or now - self.last > SECONDS_BETWEEN_LINES:
      self.last = now
      logging.info(
        '%s: %d of %d%s', self.description, self.done, self.total, self.suffix
      )

  def set_postfix_str(self, text: str, refresh: bool = False) -> None:
    del refresh
    self.suffix = f', {text}' if text else ''

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    return None


def bar(total: int, description: str, *, unit: str = 'it', initial: int = 0):
  """A context manager with `update(amount)` and `set_postfix_str(text)`."""
  if not sys.stderr.isatty():
    return _Lines(total, description, initial)
  return tqdm.tqdm(
    total=total,
    desc=description,
    unit=unit,
    initial=initial,
    dynamic_ncols=True,
    leave=False,
  )
