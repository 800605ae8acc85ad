r"""How fast it is, beside other libraries that do the same work.

  python -m experiments.benchmark --suite=train --peers

Suites: separation (pairs a second of the exact nearest example), train (images
a second of an RST step), attack (evaluation under PGD-10), lipschitz (the
local estimate), startup (command to first training step, with and without the
compilation cache), autoattack (each attack of the standard AutoAttack, all of
it and the cascade `strong`, on the networks of saved runs) and bounds (on the
logits and on the Lipschitz constant; a peer's must be as wide as ours, but for
the room that ours leave for rounding). The candidates
of a case take turns within one run, so that a busy machine is equally busy for
all; a ratio is the median over turns of theirs to ours. `--peers` needs the
extra `bench`. "CPU" is that of CPU seconds, "robust" how many images withstand
(the record has which are `taken`), "passes" the forward and backward ones.

On two cores a suite takes 1 to 10 minutes, autoattack up to hours:

  python -m experiments.benchmark --suite=autoattack --peers \
    --workdir=runs/NAME,runs/OTHER --num_images=500

It keeps each batch under each attack in a folder of the run, and goes on there.
"""

import inspect
import resource
import sys
import time
from typing import Any

import jax
from absl import flags

from experiments import common
from experiments.benchmarks import cases
from robustlip import models

FLAGS = flags.FLAGS


def define() -> None:
  """The flags of this script."""
  common.define_data_dir()
  flags.DEFINE_enum('suite', 'train', list(cases.SUITES), 'What to measure.')
  flags.DEFINE_bool('peers', False, 'Measure other libraries too.')
  flags.DEFINE_list(
    'arch',
    None,
    'Networks: cnn1, cnn2 or wrn_<depth>_<width>. Default: '
    f'{",".join(cases.ARCHS)}.',
  )
  flags.DEFINE_integer(
    'batch_size',
    None,
    'Examples to a step. Default: 64; 32 to train a wide residual network; '
    f'{cases.BATCH_SIZE} for autoattack and our attack and lipschitz.',
    1,
  )
  flags.DEFINE_list(
    'attack', None, 'Attacks of autoattack in turn, and `strong`. Default: all.'
  )
  flags.DEFINE_string(
    'workdir', None, 'Folders of saved runs for autoattack, with commas.'
  )
  flags.DEFINE_bool(
    'compile_peer', True, 'Measure PyTorch with torch.compile as well.'
  )
  flags.DEFINE_integer(
    'num_images',
    None,
    'Images that are measured. Default: 1000; 100 for autoattack and bounds.',
    1,
  )
  flags.DEFINE_integer(
    'num_queries', 5000, 'Queries of the Square attack in autoattack.', 1
  )
  flags.DEFINE_enum(
    'precision',
    'float32',
    ['float32', 'bfloat16'],
    'What the networks compute in, the peers through autocast.',
  )
  flags.DEFINE_integer(
    'num_runs',
    1,
    'Networks to train at once; with more, one at a time is measured too.',
    1,
  )
  flags.DEFINE_integer('repeats', 3, 'Turns of every candidate.', 1)
  flags.DEFINE_string(
    'output',
    None,
    'Where the record goes. Default: runs/benchmarks/benchmark_<suite>.json.',
  )


def chosen() -> list[Any]:
  """The cases of the suite that the flags name.

  Raises:
    ValueError: for a flag that the suite does not read, a network that no peer
      could build, or without the peers.
  """
  suite = cases.SUITES[FLAGS.suite]
  read = inspect.signature(suite).parameters
  for name in (
    *inspect.signature(cases.train).parameters,
    *('num_images', 'num_queries', 'attack', 'workdir'),
  ):
    if FLAGS[name].present and name not in read:
      raise ValueError(f'--{name} means nothing to --suite={FLAGS.suite}')
  for arch in FLAGS.arch or ():
    if FLAGS.suite == 'bounds' and arch.startswith('plain_'):
      continue
    models.build(arch, 10)
    if arch.startswith('resnet'):
      raise ValueError(f'no benchmark for {arch}; there are cnn1, cnn2, wrn_')
  if FLAGS.arch == []:
    raise ValueError('--arch names no network')
  try:
    given = {name: FLAGS[name].value for name in read}
    return suite(**{k: v for k, v in given.items() if v is not None})
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{error}: --peers needs `pip install -e '.[bench]'`."
    ) from None


def table(results: list[dict[str, Any]]) -> str:
  """The results as people read them."""
  header = f'{"case":<40}{"candidate":<20}{"a second":>14}{"ours is":>10}'
  lines = [header + f'{"CPU":>10}{"robust":>8}{"passes":>12}{"memory":>12}']
  for result in results:
    for row in result['candidates']:
      rate = f'{row["per_second"]:,.4g} {result["unit"]}'
      memory = row['program_mib']
      lines.append(
        f'{result["case"]:<40}{row["candidate"]:<20}{rate:>14}'
        f'{row["ratio_of_ours"]:>9.2f}x{row["cpu_ratio_of_ours"]:>9.2f}x'
        f'{row.get("robust", ""):>8}{row.get("passes") or "":>12}'
        + (f'{memory:>8,.0f} MiB' if memory else '')
      )
  return '\n'.join(lines)


def peak_memory() -> dict[str, float]:
  """Most memory held so far, in MiB: the device's, else the process's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return {'device_peak_mib': stats['peak_bytes_in_use'] / 2**20}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {'host_peak_mib': peak / (2**20 if sys.platform == 'darwin' else 1024)}


def main() -> None:
  """Measures one suite."""
  start = time.perf_counter()
  name = f'benchmark_{FLAGS.suite}.json'
  path = common.output_file(FLAGS.output or f'runs/benchmarks/{name}')
  results = []
  for case in chosen():
    results += case.results(FLAGS.repeats)
    record = {
      'suite': FLAGS.suite,
      **common.provenance(),
      **peak_memory(),
      'total_seconds': time.perf_counter() - start,
      'cases': results,
    }
    common.write_json(record, path)
  print(table(results))
  common.print_json(record)


if __name__ == '__main__':
  common.run(main, define)
