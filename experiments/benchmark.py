r"""Measures our speed, and that of other libraries that do the same work.

  python -m experiments.benchmark --suite=train --peers

Suites: separation (pairs a second of the exact nearest example), train (images
a second of an RST step), attack (evaluation under PGD-10), lipschitz (the local
estimate), startup (command to first training step, with and without the
compilation cache), autoattack (each attack of the standard AutoAttack, all of
it and the cascade `strong`, on the networks of saved runs) and bounds (on the
logits and on the Lipschitz constant; a peer's must be as wide as ours, up to
our allowance for rounding). The candidates of a case take turns within one run,
so that other load on the machine affects all equally; a ratio is the median
over turns of their time to ours. `--peers` needs the extra `bench`. Columns:
"CPU" is the ratio of CPU seconds, "robust" the number of images not fooled (the
record lists those that were, `taken`), "passes" counts forward and backward
passes.

On two cores a suite takes 1 to 10 minutes, autoattack up to hours:

  python -m experiments.benchmark --suite=autoattack --peers \
    --workdir=runs/NAME,runs/OTHER --num_images=500

It saves the result of each batch under each attack in a folder of the run, and
resumes there.
"""

import inspect
import resource
import sys
import time
from typing import Any

import jax
from absl import flags

from experiments import common, report
from experiments.benchmarks import cases
from experiments.benchmarks.cases import SUITES

FLAGS = flags.FLAGS


def define() -> None:
  """The flags of this script."""
  common.define_data_dir()
  flags.DEFINE_enum('suite', 'train', list(SUITES), 'What to measure.')
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
    'Examples per batch. Default: 64; 32 to train a wide residual network; '
    f'{cases.BATCH_SIZE} for autoattack and our attack and lipschitz.',
    1,
  )
  flags.DEFINE_list(
    'attack', None, 'Attacks for autoattack, in order. Default: all and strong.'
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
    'Images that are measured. Default: 1000; 100 for autoattack and bounds. '
    'In separation: size of a synthetic set, which may exceed memory; the '
    'queries are a tenth of it, at most 50,000.',
    1,
  )
  flags.DEFINE_integer(
    'num_queries', 5000, 'Queries of the Square attack in autoattack.', 1
  )
  flags.DEFINE_enum(
    'precision',
    'float32',
    ['float32', 'bfloat16'],
    'Type that the networks compute in, the peers through autocast.',
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
    ValueError: for a flag that the suite does not read, an empty --arch, or
      peers that are not installed.
  """
  read = {name: inspect.signature(x).parameters for name, x in SUITES.items()}
  own = read[FLAGS.suite]
  for name in set().union(*read.values()) - set(own):
    if FLAGS[name].present:
      raise ValueError(f'--{name} means nothing to --suite={FLAGS.suite}')
  if FLAGS.suite == 'autoattack' and FLAGS['repeats'].present:
    raise ValueError('--repeats means nothing to --suite=autoattack: one turn')
  if FLAGS.arch == []:
    raise ValueError('--arch names no network')
  try:
    given = {name: FLAGS[name].value for name in own}
    given = {k: v for k, v in given.items() if v is not None}
    return SUITES[FLAGS.suite](**given)
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{error}: --peers needs `pip install -e '.[bench]'`."
    ) from None


def table(results: list[dict[str, Any]]) -> str:
  """The results as a Markdown table."""
  return report.grid(
    {
      'case': result['case'],
      'candidate': row['candidate'],
      'a second': f'{row["per_second"]:,.4g} {result["unit"]}',
      'ours is': f'{row["ratio_of_ours"]:.2f}x',
      'CPU': f'{row["cpu_ratio_of_ours"]:.2f}x',
      'robust': str(row.get('robust', '')),
      'passes': str(row.get('passes') or ''),
      'memory': f'{memory:,.0f} MiB' if (memory := row['program_mib']) else '',
    }
    for result in results
    for row in result['candidates']
  )


def peak_memory() -> dict[str, float]:
  """Peak memory so far in MiB: of the device, else of the process."""
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
    results += case(FLAGS.repeats)
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
