"""Candidates that do the same work take turns, and are compared in pairs."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging

from robustlip import progress


class Candidate(NamedTuple):
  """One way to do a piece of work."""

  run: Callable[[], object]  # does it once and returns when it is done
  work: float  # units of the case that one run does
  memory: float | None = None  # MiB that its program holds at most, if known
  may_fail: bool = False  # a peer that need not work here: left out if it fails
  prepare: Callable[[], object] | None = None  # untimed; None: `run`
  # What `run` returned, as the record has it.
  found: Callable[[Any], dict[str, Any]] | None = None


class Case(NamedTuple):
  """Candidates that do the same work; the first is ours."""

  name: str
  unit: str  # what `work` counts: images, pairs, ...
  candidates: dict[str, Candidate]

  def results(self, repeats: int) -> list[dict[str, Any]]:
    """What the record of a suite has of it."""
    return [measure(self, repeats=repeats)]


def measure(case: Case, *, repeats: int) -> dict[str, Any]:
  """Rates of every candidate, and how ours compares with each of the rest.

  Each candidate runs once untimed (or what it has to prepare), then in
  `repeats` turns. A ratio is the median over turns, so that what else the
  machine does slows both alike; CPU seconds, of all threads and of finished
  child processes, depend on it less.
  """
  times = {name: [] for name in case.candidates}
  facts = {}
  with progress.bar((repeats + 1) * len(times), case.name, unit='run') as bar:
    for turn in range(repeats + 1):
      for name in list(times):
        candidate = case.candidates[name]
        work = candidate.run
        if not turn and candidate.prepare:
          work = candidate.prepare
        elapsed, result = _measured(name, work, candidate.may_fail)
        bar.update(1)
        if elapsed is None:
          del times[name]
        elif turn:
          times[name].append([x / candidate.work for x in elapsed])
          facts[name] = candidate.found(result) if candidate.found else {}
  ours = next(iter(times.values()))
  rows = []
  for name, taken in times.items():
    seconds, cpu_seconds = zip(*taken, strict=True)
    rate = statistics.median(1 / x for x in seconds)
    ratio, cpu_ratio = (
      statistics.median(y / x for x, y in zip(mine, theirs, strict=True))
      for mine, theirs in zip(
        zip(*ours, strict=True), (seconds, cpu_seconds), strict=True
      )
    )
    row = {
      'candidate': name,
      'per_second': rate,
      'ratio_of_ours': ratio,
      'cpu_ratio_of_ours': cpu_ratio,
      'program_mib': case.candidates[name].memory,
      'seconds': list(seconds),
      'cpu_seconds': list(cpu_seconds),
      **facts[name],
    }
    rows.append(row)
  return {'case': case.name, 'unit': case.unit, 'candidates': rows}


def _measured(
  name: str, work: Callable[[], object], may_fail: bool
) -> tuple[list[float] | None, object]:
  """Seconds of wall and of CPU time, None if it failed and may; the result."""
  start = clocks()
  try:
    result = work()
  except Exception as error:
    if not may_fail:
      raise
    logging.warning('%s left out: %s', name, str(error).split('\n')[0])
    return None, None
  return [b - a for a, b in zip(start, clocks(), strict=True)], result


def memory(program: Any) -> float:
  """MiB of the arguments and the temporary arrays of a compiled program."""
  needs = program.memory_analysis()
  return (needs.argument_size_in_bytes + needs.temp_size_in_bytes) / 2**20


def clocks() -> tuple[float, float]:
  """Seconds of wall and of CPU time, of child processes too."""
  children = sum(os.times()[2:4])
  return time.perf_counter(), time.process_time() + children
