r"""Where the time of PGD goes on a CPU, by kind of operation.

  python -m experiments.profile --arch=cnn2

attacks one batch with JAX's profiler on, once for each way to write the
convolutions of the network: JAX's own, the product of patches with the kernel,
and what `robustlip.models.convolution` does. Eigen's threads do not tell the
profiler of a convolution: it is part of what the named operations leave of the
process's time. Writes the record and a picture beside it.
"""

import collections
import functools
import pathlib
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags

from experiments import common, plots, provenance
from experiments.suites import problem
from robustlip import attacks, models
from robustlip.models import convolution, layers
from robustlip.types import Batch

ARCH = flags.DEFINE_string('arch', 'cnn2', 'cnn1, cnn2 or wrn_<depth>_<width>.')
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 64, 'Images attacked at once.', lower_bound=1
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Where the record goes, and the picture beside it. Default: '
  'experiments/results/profile_<arch>.json.',
)

CONVOLUTION = 'convolution, and work without a name'
KINDS = {  # what is drawn -> what its operations have in their names
  CONVOLUTION: ('convolution', 'conv_general'),
  'matrix products': ('ynn', 'dot'),
  'gathering, joining and padding': ('concatenate', 'pad', 'copy', 'slice'),
  'the rest': ('',),
}
NOT_WORK = (  # events that hold, start or wait for others
  *('Thunk', 'end:', '$', 'Pjit', 'PjRt', 'Tfrt', 'Parse', 'while', 'call'),
  *('Wait', 'Threadpool', 'CpuClient', 'Slinky', 'xla::', 'conditional'),
)


def patches(inputs, kernel, *, strides, padding):
  """Every convolution as the product of its patches with the kernel."""
  padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
  return convolution.patches_product(padded, kernel, strides)


CONVOLUTIONS = {
  "JAX's convolution": convolution.xla,
  'patches, one product': patches,
  'own gradients': convolution.convolve,
}


def kind(name: str) -> str:
  """The kind of an operation, by its name in the compiled program."""
  return next(k for k, parts in KINDS.items() if any(p in name for p in parts))


def milliseconds(folder: str) -> collections.Counter:
  """Processor time of every kind in a profile."""
  (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
  spent = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        if 'Eigen' in line.name and not event.name.startswith(NOT_WORK):
          spent[kind(event.name)] += event.duration_ns / 1e6
  return spent


def profile(task: problem.Problem, convolve) -> dict[str, float]:
  """Milliseconds an image of PGD-10 with these convolutions."""
  inputs = task.split.images / jnp.float32(255)
  batch = Batch(inputs, task.split.labels)
  network = models.logits_fn(task.module, task.variables())
  with mock.patch.object(layers, 'convolve', convolve):
    attack = jax.jit(
      functools.partial(attacks.pgd, network, epsilon=problem.EPSILON)
    )
    attack(batch, jax.random.key(0)).block_until_ready()

  def run():
    start = time.process_time()
    attack(batch, jax.random.key(0)).block_until_ready()
    return 1e3 * (time.process_time() - start)

  total = min(run() for _ in range(3))  # the profiler takes time itself
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    spent = milliseconds(folder)
  del spent[CONVOLUTION]
  spent[CONVOLUTION] = max(0.0, total - spent.total())
  return {name: spent[name] / len(inputs) for name in KINDS}


def draw(record: dict, path: pathlib.Path) -> None:
  """One bar for each way to write the convolutions."""
  figure = plots.figure(8, 2.8)
  axes = figure.subplots()
  names = list(record['milliseconds'])[::-1]
  left = dict.fromkeys(names, 0.0)
  for name, color in zip(KINDS, ('C3', 'C0', 'C1', '0.55'), strict=True):
    widths = [record['milliseconds'][way][name] for way in names]
    axes.barh(names, widths, left=list(left.values()), color=color, label=name)
    left = {way: left[way] + w for way, w in zip(names, widths, strict=True)}
  for index, total in enumerate(left.values()):
    axes.annotate(f' {total:.1f} ms', (total, index), va='center')
  axes.set(
    xlabel='milliseconds of processor time to an image of PGD-10 '
    f'({record["arch"]}, batch {record["batch_size"]})',
    xlim=(0, 1.1 * max(left.values())),
  )
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize='small', loc='lower right')
  plots.save(figure, path.with_suffix(''))


def main() -> None:
  """Profiles one network on the CPU.

  Raises:
    ValueError: elsewhere, where there is one way to write a convolution.
  """
  if jax.default_backend() != 'cpu':
    raise ValueError('this profile is of a CPU; set JAX_PLATFORMS=cpu')
  models.build(ARCH.value, 10)
  path = provenance.destination(OUTPUT.value, f'profile_{ARCH.value}.json')
  task = problem.make(ARCH.value, BATCH_SIZE.value)
  record = {
    'arch': ARCH.value,
    'batch_size': BATCH_SIZE.value,
    **provenance.record(),
    'milliseconds': {
      name: profile(task, way) for name, way in CONVOLUTIONS.items()
    },
  }
  draw(record, path)
  common.finish(record, path)


if __name__ == '__main__':
  common.run(main)
