"""Times candidates that do the same work in turns, and compares each turn."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from robustlip import progress


class Candidate(NamedTuple):
  """One way to do a piece of work."""

  run: Callable[[], object]  # does the work once, and returns when it is done
  work: float  # units of the case that one run does
  memory: float | None = None  # MiB that its program holds at most, if known
  may_fail: bool = False  # a peer that need not work here: left out if it fails
  # From the result of `run` to further fields of the record.
  found: Callable[[Any], dict[str, Any]] | None = None


class Case(NamedTuple):
  """Candidates that do the same work; the first is ours."""

  name: str
  unit: str  # what `work` counts: images, pairs, ...
  candidates: dict[str, Candidate]

  def __call__(self, repeats: int) -> list[dict[str, Any]]:
    """Rates of every candidate, and how ours compares with each of the rest.

    Each candidate runs once untimed, then in `repeats` turns. A ratio is the
    median over turns, so that other load on the machine slows both equally; CPU
    seconds, of all threads and of finished child processes, depend less on it.
    """
    times, facts = {name: [] for name in self.candidates}, {}
    turns = [(i, name) for i in range(repeats + 1) for name in times]
    with progress.bar(len(turns), self.name, unit='run') as bar:
      for turn, name in turns:
        candidate = self.candidates[name]
        if name not in times:  # left out
          continue
        start = clocks()
        try:
          result = candidate.run()
        except Exception as error:
          if not candidate.may_fail:
            raise
          logging.warning('%s left out: %s', name, str(error).split('\n')[0])
          del times[name]
          continue
        if turn:
          spent = np.subtract(clocks(), start)
          times[name].append(spent / candidate.work)
          facts[name] = candidate.found(result) if candidate.found else {}
        bar.update(1)
    ours = np.array(next(iter(times.values())))
    rows = []
    for name, taken in times.items():
      seconds, cpu_seconds = np.transpose(taken)
      ratio, cpu_ratio = np.median(taken / ours, axis=0)
      row = {
        'candidate': name,
        'per_second': np.median(1 / seconds),
        'ratio_of_ours': ratio,
        'cpu_ratio_of_ours': cpu_ratio,
        'program_mib': self.candidates[name].memory,
        'seconds': seconds,
        'cpu_seconds': cpu_seconds,
        **facts[name],
      }
      rows.append(row)
    return [{'case': self.name, 'unit': self.unit, 'candidates': rows}]


def memory(program: Any) -> float:
  """MiB of the arguments and the temporary arrays of a compiled program."""
  needs = program.memory_analysis()
  return (needs.argument_size_in_bytes + needs.temp_size_in_bytes) / 2**20


def clocks() -> tuple[float, float]:
  """Seconds of wall and of CPU time, of child processes too."""
  children = sum(os.times()[2:4])
  return time.perf_counter(), time.process_time() + children
