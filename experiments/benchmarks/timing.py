"""Candidates that do the same work take turns, and are compared in pairs."""

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


class Case(NamedTuple):
  """Candidates that do the same work; the first is ours."""

  name: str
  unit: str  # what `work` counts: images, pairs, ...
  candidates: dict[str, Candidate]
  flops: float | None = None  # floating-point operations to a unit, if known


def measure(
  case: Case, *, repeats: int, limit: float | None = None
) -> dict[str, Any]:
  """Rates of every candidate, and how ours compares with each of the rest.

  Each candidate runs once untimed, then in `repeats` turns. A ratio is the
  median over turns, so that what else the machine does slows both alike.

  Args:
    limit: floating-point operations a second to give the share of.
  """
  times = {name: [] for name in case.candidates}
  with progress.bar((repeats + 1) * len(times), case.name, unit='run') as bar:
    for turn in range(repeats + 1):
      for name in list(times):
        candidate = case.candidates[name]
        elapsed = _seconds(name, candidate)
        bar.update(1)
        if elapsed is None:
          del times[name]
        elif turn:
          times[name].append(elapsed / candidate.work)
  ours = next(iter(times.values()))
  share = (case.flops or 0) / (limit or float('inf'))  # of one unit a second
  rows = []
  for name, taken in times.items():
    rate = statistics.median(1 / seconds for seconds in taken)
    ratios = (theirs / mine for mine, theirs in zip(ours, taken, strict=True))
    row = {
      'candidate': name,
      'per_second': rate,
      'share_of_limit': rate * share or None,
      'ratio_of_ours': statistics.median(ratios),
      'program_mib': case.candidates[name].memory,
      'seconds': taken,
    }
    rows.append(row)
  return {'case': case.name, 'unit': case.unit, 'candidates': rows}


def _seconds(name: str, candidate: Candidate) -> float | None:
  """Wall time of one run; None if it failed and may."""
  start = time.perf_counter()
  try:
    candidate.run()
  except Exception as error:
    if not candidate.may_fail:
      raise
    logging.warning('%s left out: %s', name, str(error).split('\n')[0])
    return None
  return time.perf_counter() - start
