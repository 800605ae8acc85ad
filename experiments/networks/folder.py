"""The folder of a run: its lock, its settings, its checkpoints, its curve.

`config.json` has the settings, and others are refused; `checkpoints/` the
newest states, `best/` one more with a held-out set; `metrics.jsonl` a line per
epoch, which `curves.png` and `.pdf` draw; `result.json` ends the run, as does
`diverged.txt`, which says at which step its loss was not finite.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from experiments import common
from experiments.networks import config
from experiments.networks.config import Config
from robustlip import checkpoints


class Folder:
  """One run's files; a context in which no other process may touch them.

  Raises (on entering):
    ValueError: if the folder has a run of other settings, or is in use.
  """

  def __init__(self, path: pathlib.Path, settings: Config):
    self.path, self.config = path, settings
    self.result = path / 'result.json'
    self.diverged = path / 'diverged.txt'
    self.metrics = path / 'metrics.jsonl'
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> 'Folder':
    """Locks the folder and writes or compares the settings."""
    with self._stack:
      if jax.process_index() == 0:
        common.output_folder(self.path)
        self._check_own()
        self._lock()
        self._claim()
      multihost_utils.sync_global_devices(f'{self.path} is claimed')
      self.newest, self.best = (
        self._stack.enter_context(checkpoints.Store(self.path / name))
        for name in ('checkpoints', 'best')
      )
      self._stack = self._stack.pop_all()
    return self

  def __exit__(self, *exc):
    """Waits for the checkpoints and unlocks."""
    self._stack.close()

  def _lock(self) -> None:
    lock = self._stack.enter_context(open(self.path / '.lock', 'w'))
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f'{self.path} is in use by another process') from None

  def _check_own(self) -> None:
    names = {path.name for path in self.path.iterdir()}
    # A process may have ended before its settings were in place.
    names -= {'.lock', 'config.json.partial'}
    if names and 'config.json' not in names:
      raise ValueError(
        f'{self.path} has files but no config.json, so it is not the folder '
        'of a run; name another --workdir'
      )

  def _claim(self) -> None:
    path = self.path / 'config.json'
    if not path.exists():
      common.write_json(self.config.to_json(), path)
    found, asked = config.read(self.path).to_json(), self.config.to_json()
    name = common.difference(found, asked)
    if name == 'fingerprint':
      raise ValueError(
        f'{self.path} was trained on other arrays than {self.config.dataset} '
        'has now; name another --workdir'
      )
    if name:
      raise ValueError(
        f'{self.path} has a run with {name}={found[name]}, asked for '
        f'{name}={asked[name]}; name another --workdir'
      )

  def read_metrics(self) -> list[dict[str, Any]]:
    """The lines of the curve; a torn last line is left out."""
    if not self.metrics.exists():
      return []
    lines = []
    for line in self.metrics.read_text().splitlines():
      with contextlib.suppress(json.JSONDecodeError):
        lines.append(json.loads(line))
    return lines

  def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
    """Drops what was written after `step`; returns what remains."""
    lines = [line for line in self.read_metrics() if line['step'] <= step]
    if jax.process_index() == 0:
      common.write_text(
        ''.join(json.dumps(line) + '\n' for line in lines), self.metrics
      )
    return lines

  def append_metrics(self, line: dict[str, Any]) -> None:
    """Adds one line to the curve."""
    if jax.process_index() == 0:
      with open(self.metrics, 'a') as file:
        file.write(json.dumps(common.plain(line)) + '\n')

  def end_diverged(self, reason: str) -> None:
    """Ends a run that cannot go on; the same settings would end the same."""
    logging.warning('%s', reason)
    if jax.process_index() == 0:
      common.write_text(reason, self.diverged)


def newest_variables(path: str | os.PathLike) -> tuple[int, dict]:
  """The step and the variables of the newest checkpoint that can be read.

  Raises:
    FileNotFoundError: if there is none.
  """
  if os.path.isdir(path):
    with checkpoints.Store(path) as store:
      for step in reversed(store.numbers()):
        if (tree := store.restore(step)) is not None:
          state = tree['state']
          return step, {k: state[k] or {} for k in ('params', 'batch_stats')}
  raise FileNotFoundError(f'{path} has no checkpoint that can be read')
