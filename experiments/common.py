"""What all scripts share: how `main` is run, records and their provenance.

Every script is `common.run(main, define)`; `define` defines its flags, so that
importing a script defines none. A `ValueError` or `OSError` that reaches the
top is bad input, a `JaxRuntimeError` a failed device: either is printed as one
line and the exit code is 1 (`--verbosity=1` shows where it was raised).
Anything else is a bug and keeps its traceback.
"""

import contextlib
import datetime
import fractions
import functools
import json
import math
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from logging import WARNING, Formatter
from typing import Any, BinaryIO

import jax
import numpy as np
from absl import app, flags, logging

import robustlip
from robustlip import datasets
from robustlip.models import convolution

convolution.enable_fast_cpu()

FLAGS = flags.FLAGS
RADIUS = (  # help of --epsilon
  'Radius of the l-inf ball in units of the pixel range, such as 0.1 or 8/255. '
  "Default: the paper's for the data set."
)
ORIGIN = ('command', 'commit', 'date', 'machine')  # shown on the pages
RESULTS = pathlib.Path(__file__).with_name('results')  # published records


class Number(flags.FloatParser):
  """Parser of a flag for a finite float, between bounds: also 8/255."""

  def convert(self, argument):
    """The number that a text names."""
    try:
      if isinstance(argument, str) and '/' in argument:
        return float(fractions.Fraction(argument))
    except ZeroDivisionError:
      raise ValueError(f'{argument} divides by 0') from None
    value = super().convert(argument)
    if not math.isfinite(value):
      raise ValueError(f'{argument} must be a number')
    return value


def define_dataset(note: str = '') -> None:
  """Defines the flags of `load_dataset`; `note` is added to the help."""
  flags.DEFINE_string(
    'dataset',
    'mnist5k',
    f'{", ".join(datasets.NAMES)}, or the path of an .npz file, or '
    'of a folder of .npy files, with train_images, train_labels, test_images '
    f'and test_labels. {note}'.rstrip(),
  )
  define_data_dir()


def define_data_dir() -> None:
  """Defines `--data_dir`."""
  flags.DEFINE_string(
    'data_dir',
    None,
    'Folder with the published files of the data sets; prepared arrays are '
    'kept there too. Default: $ROBUSTLIP_DATA, else ~/.cache/robustlip.',
  )


def define_seed() -> None:
  """Defines `--seed`."""
  flags.DEFINE_integer(
    'seed', 0, 'Seed of everything that is random.', 0, 2**32 - 1
  )


def define_epsilon() -> None:
  """Defines `--epsilon`, which `radius` reads."""
  flags.DEFINE(Number(0.0, 1.0), 'epsilon', None, RADIUS)


def define_processes() -> None:
  """Defines the flags of several processes that work on one job."""
  flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0 when several work together.'
  )
  flags.DEFINE_integer('num_processes', 1, 'How many work together.', 1)
  flags.DEFINE_integer('process_id', 0, 'Index of this process, from 0.', 0)


def load_dataset(name: str | None = None) -> datasets.Dataset:
  """The data set that the flags name, or `name`."""
  return datasets.load(name or FLAGS.dataset, data_dir=FLAGS.data_dir)


def radius(dataset: datasets.Dataset) -> float:
  """The radius given by `--epsilon`, else that of the data set.

  Raises:
    ValueError: if there is none.
  """
  chosen = dataset.epsilon if FLAGS.epsilon is None else FLAGS.epsilon
  if chosen is None:
    raise ValueError(f'--epsilon is needed: {dataset.name} has none of its own')
  return chosen


_ours: list[str] = []  # names of the flags of this process's script


def define_flags(define: Callable[[], Any]) -> None:
  """Defines the flags of a script, and removes those of the script before."""
  FLAGS.remove_flag_values(_ours)
  before = set(FLAGS)
  define()
  _ours[:] = set(FLAGS) - before


def run(main: Callable[[], Any], define: Callable[[], Any]) -> None:
  """Defines and parses flags, calls `main()`, reports bad input as one line."""
  define_flags(define)
  for name in _ours:  # what --help shows
    FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
  app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  if '--version' in argv:
    print('robustlip', robustlip.__version__)
    sys.exit(0)
  try:
    return FLAGS(['--help' if word == '-h' else word for word in argv])
  except flags.Error as error:
    fail(f'{error} (see --help)')
  except (SystemExit, BrokenPipeError):
    # absl has printed the help, which it calls a failure; --help | head
    try:
      sys.stdout.flush()
    except BrokenPipeError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _guarded(main: Callable[[], Any], argv: list[str]) -> None:
  _start_logging()
  if len(argv) > 1:  # absl drops stray arguments silently
    fail(f'unexpected arguments {argv[1:]}; flags look like --name=value')
  for name in ('workdir', 'output'):  # no shell expands --workdir=~/runs
    if name in FLAGS and FLAGS[name].value:
      FLAGS[name].value = os.path.expanduser(FLAGS[name].value)
  commit()  # cached now: the checkout may change while the script runs
  try:
    _start_jax()
    main()
    if jax.process_count() > 1:
      jax.distributed.shutdown()  # waits for the others
  except (
    ValueError,
    OverflowError,  # a number that no array can have
    OSError,
    jax.errors.JaxRuntimeError,  # out of memory, or another process ended
  ) as error:
    fail(error)
  except MemoryError as error:
    fail(f'out of memory: {error}')
  except KeyboardInterrupt:
    _say('interrupted; run the same command again to go on')
    sys.stdout.flush()
    os._exit(1)  # an ordinary end crashes while XLA compiles in a thread


def fail(error: BaseException | str) -> None:
  """Prints one line to stderr and ends the process with exit code 1."""
  logging.debug('Raised here:', exc_info=True)
  _say(error)
  sys.exit(1)


def _say(error: BaseException | str) -> None:
  text = ' '.join(str(error).split())
  print(f'error: {text}', file=sys.stderr, flush=True)


def _start_logging() -> None:
  """Logs our own progress and everybody's warnings, one plain line each."""
  logging.use_absl_handler()
  logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
  ours = tuple(os.path.dirname(file) for file in (__file__, robustlip.__file__))
  handler = logging.get_absl_handler()
  handler.addFilter(
    lambda record: record.levelno >= WARNING or record.pathname.startswith(ours)
  )
  handler.setFormatter(Formatter('%(asctime)s %(message)s', '%H:%M:%S'))


def _start_jax() -> None:
  """Sets up the compilation cache, joins other processes, finds a device."""
  if not jax.config.jax_compilation_cache_dir:
    folder = pathlib.Path('~/.cache/robustlip/compiled').expanduser()
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  try:
    if 'coordinator' in FLAGS:
      _start_processes()
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # jax#37668: a bare assert
    wanted = os.environ.get('JAX_PLATFORMS')
    where = f' (JAX_PLATFORMS={wanted})' if wanted else ''
    raise ValueError(f'no device to compute on{where}: {error}') from error


def _start_processes() -> None:
  if FLAGS.num_processes > 1 and not FLAGS.coordinator:
    raise ValueError('--num_processes needs --coordinator=host:port')
  if FLAGS.coordinator:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(
      FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    )


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
  """The first key whose values differ, a missing key counting as None."""
  differing = (k for k, v in wanted.items() if found.get(k) != v)
  return next(differing, None)


def owner(dataset: datasets.Dataset, path: pathlib.Path) -> dict[str, Any]:
  """The fields of a record that identify `dataset`.

  Raises:
    ValueError: if there is a record in `path` and it is of another data set.
  """
  wanted = {'dataset': dataset.name, 'fingerprint': dataset.fingerprint}
  found = read_json(path) if path.exists() else wanted
  if name := difference(found, wanted):
    raise ValueError(
      f'{path} is of {name}={found.get(name)}, not {wanted[name]}; name '
      'another folder'
    )
  return wanted


def draw(function: Callable[..., Any], *args: Any) -> None:
  """Calls a function that draws a picture; any error is only a warning."""
  try:
    function(*args)
  except Exception as error:  # matplotlib, fonts, backends, full disks
    text = ' '.join(str(error).split())
    logging.warning('No picture: %s: %s', type(error).__name__, text)


def output_folder(folder: str | os.PathLike) -> pathlib.Path:
  """Creates a folder for results, before the work starts.

  Raises:
    ValueError: if no file can be written there.
  """
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      return folder
  except OSError as error:
    raise ValueError(
      f'cannot write to {folder}: {error.strerror}; name another folder'
    ) from error


def output_file(path: str | os.PathLike) -> pathlib.Path:
  """A .json file whose folder can be written, see `output_folder`.

  A picture that is drawn beside it has the same name but for the ending.

  Raises:
    ValueError: if no file can be written there.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise ValueError(f'--output={path} is a folder; name a file')
  if path.suffix != '.json':
    raise ValueError(f'--output={path}: name a .json file')
  output_folder(path.parent)
  return path


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Writes a file atomically: under a temporary name, then moved in place.

  It is synced to disk before it is moved: a crash of the machine leaves the old
  file or the new one, not an empty one.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  with open(partial, 'wb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def write_text(text: str, path: str | os.PathLike) -> None:
  """Writes a text atomically, see `whole`."""
  with whole(path) as file:
    file.write(text.encode())


def plain(value: Any) -> Any:
  """`value` as strict JSON gives it back: arrays as lists, no NaN or inf."""
  text = json.dumps(value, default=lambda array: np.asarray(array).tolist())
  return json.loads(text, parse_constant=lambda _: None)


def write_json(record: dict[str, Any], path: str | os.PathLike) -> None:
  """Writes `record` as one line to `path`; prints it if that fails."""
  try:
    write_text(json.dumps(plain(record)) + '\n', path)
  except OSError:  # a full disk: what was measured is not lost
    print_json(record)
    raise


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The record in `path`.

  Raises:
    ValueError: if the file is not one JSON object.
    FileNotFoundError: if there is no such file.
  """
  try:
    record = json.loads(pathlib.Path(path).read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} is not JSON: {error}') from None
  if not isinstance(record, dict):
    raise ValueError(f'{path} does not hold a JSON object')
  return record


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
  """Context in which an unexpected record is bad input, not a bug.

  Raises:
    ValueError: if the code inside finds a key missing, or another type.
  """
  try:
    yield
  except KeyError as error:
    raise ValueError(f'{path} is another record: it has no {error}') from None
  except (AttributeError, IndexError, TypeError) as error:
    kind = type(error).__name__
    raise ValueError(f'{path} is another record: {kind}: {error}') from None


def print_json(record: dict[str, Any]) -> None:
  """Prints a record on one line, after whatever went to stderr."""
  sys.stderr.flush()
  print(json.dumps(plain(record)), flush=True)


def finish(record: dict[str, Any], path: str | os.PathLike) -> None:
  """Writes the record of a finished job to `path` and prints it, last."""
  write_json(record, path)
  print_json(record)


def provenance() -> dict[str, Any]:
  """Where a number comes from: command, commit, machine, date, software."""
  devices = jax.devices()
  return {
    'command': command(),
    'commit': commit(),
    'date': datetime.date.today().isoformat(),
    'machine': machine(),
    'jax_version': jax.__version__,
    'flax_version': metadata.version('flax'),
    'numpy_version': np.__version__,
    'python_version': platform.python_version(),
    'device': f'{len(devices)} x {devices[0].device_kind}',
    'matmul_precision': jax.config.jax_default_matmul_precision or 'default',
    'x64': jax.config.jax_enable_x64,
  }


NAMED = ('dataset', 'output', 'start', 'theory')  # flags that may be files


def command() -> str:
  """How this script was started, without the folders of this machine.

  `NAMED` flags keep the last part of their path; `--records` keep it all.
  """
  script = pathlib.Path(sys.argv[0]).name.removesuffix('.py').split('.')[-1]
  words, given = [], iter(sys.argv[1:])
  for word in given:
    name, equals, value = word.lstrip('-').partition('=')
    if name not in ('data_dir', 'workdir', *NAMED):
      words.append(word)
      continue
    if not equals:
      value = next(given, '')  # a word of its own
    if name in NAMED:
      words.append(f'--{name}={pathlib.Path(value).name}')
  return shlex.join(['python', '-m', f'experiments.{script}', *words])


@functools.cache
def commit() -> str | None:
  """The commit that a script began with; None outside of a checkout.

  It ends in `-dirty` if tracked files other than published results differed.
  """
  root = pathlib.Path(__file__).resolve().parents[1]

  def git(*words: str) -> list[str]:
    result = subprocess.run(
      ['git', *words], cwd=root, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()

  try:
    top, name = git('rev-parse', '--show-toplevel', '--short', 'HEAD')
    if pathlib.Path(top) != root:  # another project's
      return None
    code = ('.', ':!experiments/results')
    changed = git('status', '--porcelain', '--untracked-files=no', '--', *code)
  except (OSError, subprocess.CalledProcessError):
    return None
  return f'{name}-dirty' if changed else name


def machine() -> str:
  """Processors and memory, as far as the system tells."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():  # virtual machines leave generations out of the name
    fields = dict(
      re.findall(r'^([\w ]+?)\s*: (.*)$', cpuinfo.read_text(), re.MULTILINE)
    )
    model = fields.get('model name', model)
    if 'cpu family' in fields:
      model += f' (family {fields["cpu family"]}, model {fields["model"]})'
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return f'{os.cpu_count()} cores of {model}, {memory:.0f} GB'
