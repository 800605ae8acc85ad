"""Ctrl-C and SIGTERM, put off until what was computed is on disk."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from absl import logging

SIGNALS = signal.SIGINT, signal.SIGTERM


@contextlib.contextmanager
def postponed(asked: threading.Event) -> Iterator[None]:
  """Within it the first of the signals only sets `asked`; the next ones act.

  Signals that are ignored, as those of the terminal are by what a shell runs in
  the background, stay ignored. For the main thread, the only one that Python
  lets handle signals.
  """
  handlers = {number: signal.getsignal(number) for number in SIGNALS}
  handlers = {n: h for n, h in handlers.items() if h is not signal.SIG_IGN}

  def restore() -> None:
    for number, handler in handlers.items():
      signal.signal(number, handler)

  def ask(*_) -> None:
    asked.set()
    restore()
    logging.info('Stopping after these steps; interrupt again to stop at once.')

  for number in handlers:
    signal.signal(number, ask)
  try:
    yield
  finally:
    restore()
