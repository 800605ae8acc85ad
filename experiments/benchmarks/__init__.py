"""What `experiments.benchmark` measures: one module for each suite.

A suite is a function `cases(peers)` that returns the cases to time, or
`case(arch, peers, ...)` where there is one for each network; `peers` says
whether other libraries take part. `experiments.benchmark` runs the
candidates of a case in turns and reports work per second and paired ratios.
"""

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


def batches(count: int, batch_size: int) -> list[slice]:
  """Slices that cover `count` examples."""
  firsts = range(0, count, batch_size)
  return [slice(first, first + batch_size) for first in firsts]


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


def measure(
  case: Case, *, repeats: int, limit: float | None = None
) -> dict[str, Any]:
  """Rates of every candidate, and how ours compares with each of the rest.

  Every candidate runs once before the clock does.

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
  first = next(iter(times))
  shares = (case.flops or 0) / (limit or float('inf'))  # of one a second
  rates = {
    name: statistics.median(1 / t for t in x) for name, x in times.items()
  }
  rows = [
    {
      'candidate': name,
      'per_second': rates[name],
      'share_of_limit': rates[name] * shares or None,
      'ratio_of_ours': statistics.median(
        theirs / ours for ours, theirs in zip(times[first], taken, strict=True)
      ),
      'program_mib': case.candidates[name].memory,
      'seconds': taken,
    }
    for name, taken in times.items()
  ]
  return {'case': case.name, 'unit': case.unit, 'candidates': rows}
