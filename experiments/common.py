"""What the scripts share: flags, one-line errors, the JSON record.

Every script is `common.run(main)`. Of the flags of other modules it declares as
key flags those that it reads: `--help` shows them, all others are refused. A
`ValueError` or `OSError` that reaches the top is bad input, a `JaxRuntimeError`
a device that cannot go on: either is printed as one line and the exit code is 1
(`--verbosity=1` shows where it was raised). Anything else is a bug and keeps
its traceback.
"""

import fractions
import json
import math
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from logging import WARNING, Formatter
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

import experiments
import robustlip
from robustlip import datasets

DATASET = flags.DEFINE_string(
  'dataset',
  'mnist5k',
  'mnist5k, mnist, fashion_mnist, cifar10, svhn, restricted_imagenet, or the '
  'path of an .npz file with train_images, train_labels, test_images and '
  'test_labels.',
)
DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Folder with the published files of the data sets; prepared arrays are kept '
  'there too. Default: $ROBUSTLIP_DATA, else ~/.cache/robustlip.',
)
SEED = flags.DEFINE_integer(
  'seed', 0, 'Seed of everything that is random.', 0, 2**32 - 1
)


class _Fraction(flags.FloatParser):
  """Floats, and fractions such as 8/255."""

  def convert(self, argument):
    try:
      if isinstance(argument, str) and '/' in argument:
        return float(fractions.Fraction(argument))
    except ZeroDivisionError as error:
      raise ValueError(error) from None
    return super().convert(argument)


EPSILON = flags.DEFINE(
  _Fraction(lower_bound=0.0, upper_bound=1.0),
  'epsilon',
  None,
  'Radius of the l-inf ball in units of the pixel range, such as 0.1 or 8/255. '
  "Default: the paper's for the data set; in `evaluate` that of training.",
)
PROTOCOL = flags.DEFINE_enum(
  'protocol',
  'text',
  ['text', 'reference'],
  "`text` trains and measures as the papers say, `reference` as the authors' "
  'released code does; the published Lipschitz column and the gr and llr rows '
  'can only be compared with the latter. Default in `evaluate`: that of '
  'training.',
)
COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of process 0 when several processes train one run together.',
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', 1, 'Number of processes that train together.', lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', 0, 'Index of this process, from 0.', lower_bound=0
)


def run(main: Callable[[], Any]) -> None:
  """Parses the flags, calls `main()`, turns bad input into one line."""
  app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def radius(dataset: datasets.Dataset) -> float:
  """The radius that the flags say, else that of the data set.

  Raises:
    ValueError: if there is none.
  """
  chosen = dataset.epsilon if EPSILON.value is None else EPSILON.value
  if chosen is None:
    raise ValueError(f'--epsilon is needed: {dataset.name} has none of its own')
  return chosen


def fail(error: BaseException | str) -> None:
  """Prints one line to stderr and ends the process with exit code 1."""
  logging.debug('Raised here:', exc_info=True)
  _say(error)
  sys.exit(1)


def _say(error: BaseException | str) -> None:
  text = ' '.join(str(error).split())
  print(f'error: {text}', file=sys.stderr, flush=True)


def check_owner(path: pathlib.Path, owner: dict[str, Any]) -> None:
  """Refuses to replace a record that is of something else.

  Args:
    owner: keys and values that the record must have; None also accepts a
      missing key.

  Raises:
    ValueError: if `path` has a record of other values.
  """
  if not path.exists():
    return
  found = read_json(path)
  if name := difference(found, owner):
    raise ValueError(
      f'{path} is of {name}={found.get(name)}, not {owner[name]}; name another '
      'folder'
    )


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
  """The first key whose values differ, a missing key counting as None."""
  differing = (k for k, v in wanted.items() if found.get(k) != v)
  return next(differing, None)


def check_classes(dataset: datasets.Dataset) -> None:
  """Raises ValueError if there is nothing to tell apart."""
  if len(dataset.class_names) < 2:
    raise ValueError(f'{dataset.name} has one class; a classifier needs two')


def numbers(flag: flags.FlagHolder, kind: type) -> list[Any] | None:
  """The numbers of a list flag, None if it is not given.

  Raises:
    ValueError: unless each is a finite number of at least 0, and no two equal.
  """
  if flag.value is None:
    return None
  try:
    values = [kind(text) for text in flag.value]
  except ValueError:
    raise ValueError(
      f'--{flag.name} takes numbers separated by commas, got '
      f'{",".join(flag.value)!r}'
    ) from None
  if not all(0 <= value < float('inf') for value in values):
    raise ValueError(f'--{flag.name} must be at least 0 and finite: {values}')
  if len(set(values)) < len(values):
    raise ValueError(f'--{flag.name} names a number twice: {values}')
  return values


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv, known_only=False)
  except flags.Error as error:
    fail(f'{error} (see --help)')
  except SystemExit:  # absl has printed the help and calls that a failure
    sys.exit(0)


def _refuse_unread(main: Callable[[], Any]) -> None:
  """Refuses our flags that mean nothing to the script of `main`, and NaN."""
  script = sys.modules[main.__module__]
  read = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(script)}
  for name in flags.FLAGS:
    if flags.FLAGS[name].value != flags.FLAGS[name].value:  # NaN
      fail(f'--{name} must be a number')
    if flags.FLAGS[name].present and name not in read:
      module = flags.FLAGS.find_module_defining_flag(name)
      if module.startswith('experiments.'):
        fail(f'--{name} means nothing to this script (see --help)')


def _start_logging() -> None:
  """Our own progress and everybody's warnings, one plain line each."""
  logging.use_absl_handler()
  logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
  folders = tuple(os.path.dirname(m.__file__) for m in (experiments, robustlip))
  handler = logging.get_absl_handler()
  handler.addFilter(
    lambda record: (
      record.levelno >= WARNING or record.pathname.startswith(folders)
    )
  )
  handler.setFormatter(Formatter('%(asctime)s %(message)s', '%H:%M:%S'))


def _start_jax() -> None:
  """Compilation cache, the other processes, and a device to compute on."""
  if not jax.config.jax_compilation_cache_dir:
    folder = pathlib.Path('~/.cache/robustlip/compiled').expanduser()
    jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  try:
    if NUM_PROCESSES.value > 1 and not COORDINATOR.value:
      raise ValueError('--num_processes needs --coordinator=host:port')
    if COORDINATOR.value:
      jax.config.update('jax_cpu_collectives_implementation', 'gloo')
      jax.distributed.initialize(
        COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
      )
    jax.devices()
  except RuntimeError as error:
    raise ValueError(f'no device to compute on: {error}') from error


def _guarded(main: Callable[[], Any], argv: list[str]) -> None:
  _start_logging()
  if len(argv) > 1:  # absl drops stray arguments silently
    fail(f'unexpected arguments {argv[1:]}; flags look like --name=value')
  _refuse_unread(main)
  for name in ('workdir', 'output'):  # no shell expands --workdir=~/runs
    if name in flags.FLAGS and flags.FLAGS[name].value:
      flags.FLAGS[name].value = os.path.expanduser(flags.FLAGS[name].value)
  try:
    _start_jax()
    main()
    if COORDINATOR.value:
      jax.distributed.shutdown()  # waits for the others
  except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
    fail(error)  # JAX's own: out of memory, or another process ended
  except MemoryError as error:
    fail(f'out of memory: {error}')
  except KeyboardInterrupt:
    _say('interrupted; run the same command again to go on')
    sys.stdout.flush()
    os._exit(1)  # an ordinary end crashes while XLA compiles in a thread


def device_name() -> str:
  """Kind and number of the devices in use, as records name them."""
  devices = jax.devices()
  return f'{len(devices)} x {devices[0].device_kind}'


def versions() -> dict[str, Any]:
  """What a record has to say of the software and the machine."""
  return {
    'jax_version': jax.__version__,
    'flax_version': metadata.version('flax'),
    'numpy_version': np.__version__,
    'python_version': platform.python_version(),
    'device': device_name(),
  }


def plain(value: Any) -> Any:
  """`value` as strict JSON can hold it: NumPy unwrapped, no NaN or inf."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, np.ndarray | jax.Array):
    return plain(np.asarray(value).tolist())
  if isinstance(value, np.generic):
    return plain(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def output_folder(folder: str | os.PathLike) -> pathlib.Path:
  """Creates the folder of results, before the work that they come from.

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


def write_text(text: str, path: str | os.PathLike) -> None:
  """Writes a file under a temporary name and moves it in place."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text)
  partial.replace(path)


def write_json(record: dict[str, Any], path: str | os.PathLike) -> None:
  """Writes `record` on one line of `path`."""
  write_text(json.dumps(plain(record)) + '\n', path)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The record in `path`.

  Raises:
    ValueError: if the file is not one JSON object.
    FileNotFoundError: if there is no such file.
  """
  try:
    record = json.loads(pathlib.Path(path).read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from None
  if not isinstance(record, dict):
    raise ValueError(f'{path} does not hold a JSON object')
  return record


def print_json(record: dict[str, Any]) -> None:
  """Prints a record on one line, after whatever went to stderr."""
  sys.stderr.flush()
  print(json.dumps(plain(record)), flush=True)


def finish(record: dict[str, Any], path: str | os.PathLike) -> None:
  """Writes the record of a finished job to `path` and prints it, last."""
  write_json(record, path)
  print_json(record)


def draw(function: Callable[..., Any], *args: Any) -> None:
  """Calls a function that draws; a picture that fails is one warning.

  The record is written before, so that no picture costs a measurement.
  """
  try:
    function(*args)
  except Exception as error:
    text = ' '.join(str(error).split())
    logging.warning('no picture: %s: %s', type(error).__name__, text)
