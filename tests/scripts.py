"""Runs the scripts in processes that start with everything imported."""

import concurrent.futures
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(
  ['robustlip.training', 'robustlip.separation', 'orbax.checkpoint', 'scipy']
)


def after(seconds):
  """A condition that holds from so many seconds from now on."""
  end = time.monotonic() + seconds
  return lambda: time.monotonic() > end


class Finished(NamedTuple):
  code: int  # negative: the signal that ended it
  out: str
  err: str


def _child(module, arguments, folder):
  for descriptor, name in ((1, 'out'), (2, 'err')):
    target = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, descriptor)
  sys.stdout = os.fdopen(1, 'w')
  sys.stderr = os.fdopen(2, 'w')
  sys.argv = [module, *arguments]
  script = importlib.import_module(module)
  script.common.run(script.main, script.define)


def run(module, *arguments, folder, stop=signal.SIGKILL, when=None):
  """The script's exit code and output; stopped once `when()` holds."""
  process = _CONTEXT.Process(target=_child, args=(module, arguments, folder))
  process.start()
  if when is not None:
    while process.is_alive() and not when():
      time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
      os.kill(process.pid, stop)
  process.join()
  out, err = (
    (folder / name).read_text() if (folder / name).exists() else ''
    for name in ('out', 'err')
  )
  return Finished(process.exitcode, out, err)


def tiny_arrays(**changes):
  """Three easy classes of 8x8 images, as the arrays of an .npz file."""
  rng = np.random.default_rng(0)
  labels = np.arange(120, dtype=np.int32) % 3
  means = rng.uniform(60, 200, (3, 8, 8, 1))
  images = np.clip(means[labels] + rng.normal(0, 25, (120, 8, 8, 1)), 0, 255)
  images = images.astype(np.uint8)
  arrays = {
    'train_images': images[:90],
    'train_labels': labels[:90],
    'test_images': images[90:],
    'test_labels': labels[90:],
  }
  return arrays | changes


def tiny(folder, **changes):
  """The path of an .npz file with `tiny_arrays`."""
  path = folder / 'tiny.npz'
  np.savez(path, **tiny_arrays(**changes))
  return str(path)


def settings(folder, *others):
  """The flags of a short training run on `tiny` data."""
  return (
    f'--dataset={tiny(folder)}',
    '--epsilon=0.02',
    '--arch=cnn1',
    '--method=natural',
    '--epochs=8',
    '--learning_rate=0.03',
    '--schedule=milestones',
    '--milestones=1000',
    '--batch_size=30',
    '--curve_examples=0',
    '--eval_batch_size=15',  # one program for both splits
    *others,
  )


def last_json(finished):
  """The record that a script has printed last."""
  assert finished.code == 0, finished.err
  return json.loads(finished.out.splitlines()[-1])


def two_processes(folder, module, *arguments):
  """The records of a script in two processes that work together."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]

  def start(index):
    own = folder / f'{module}{index}'
    own.mkdir()
    return run(
      module,
      *arguments,
      f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2',
      f'--process_id={index}',
      folder=own,
    )

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return list(pool.map(start, range(2)))


def here(module, *arguments):
  """Like `run`, in this process: for what ends by itself."""
  script = importlib.import_module(module)
  with (
    mock.patch.object(sys, 'argv', [module, *arguments]),
    contextlib.redirect_stdout(io.StringIO()) as out,
    contextlib.redirect_stderr(io.StringIO()) as err,
    pytest.raises(SystemExit) as ended,
  ):
    script.common.run(script.main, script.define)
  return Finished(ended.value.code or 0, out.getvalue(), err.getvalue())


def error(finished):
  """The one line in which a script has refused its arguments."""
  assert finished.code == 1, (finished.code, finished.err)
  (line,) = (x for x in finished.err.splitlines() if x.startswith('error: '))
  assert 'Traceback' not in finished.err and finished.out == ''
  return line
