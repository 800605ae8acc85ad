"""What is saved is restored; what is damaged is moved aside."""

import numpy as np
import optax
import pytest

from robustlip import checkpoints

TREE = {
  'a': np.arange(5, dtype=np.float32),
  'empty': {},
  'state': optax.adam(0.1).init({'w': np.ones((300, 7), np.float32)}),
}


def saved(folder, *numbers):
  with checkpoints.Store(folder) as store:
    for number in numbers:
      store.save(number, TREE | {'a': TREE['a'] + number})


def damage(folder, number):
  for path in (folder / str(number)).rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_three_are_kept(tmp_path):
  left_by_a_kill = tmp_path / '2.orbax-checkpoint-tmp'
  left_by_a_kill.mkdir()
  saved(tmp_path, 1, 2, 3, 4)
  assert not left_by_a_kill.exists()
  with checkpoints.Store(tmp_path) as store:
    assert store.numbers() == [2, 3, 4]
    tree = store.restore(4, TREE)
    np.testing.assert_array_equal(tree['a'], TREE['a'] + 4)
    np.testing.assert_array_equal(
      tree['state'][0].mu['w'], TREE['state'][0].mu['w']
    )


def test_a_damaged_newest_falls_back_and_says_so(tmp_path, caplog):
  saved(tmp_path, 1, 2)
  damage(tmp_path, 2)
  with checkpoints.Store(tmp_path) as store:
    tree = store.newest(TREE)
    np.testing.assert_array_equal(tree['a'], TREE['a'] + 1)
    store.save(2, TREE)
  assert 'Checkpoint 2 cannot be read' in caplog.text
  assert (tmp_path / 'damaged-2').is_dir()
  with checkpoints.Store(tmp_path) as store:
    np.testing.assert_array_equal(store.restore(2, TREE)['a'], TREE['a'])


def test_what_may_not_be_read_is_not_damaged(tmp_path, monkeypatch):
  saved(tmp_path, 1)

  def denied(path):
    raise PermissionError(path)

  with checkpoints.Store(tmp_path) as store:
    monkeypatch.setattr(store._orbax, 'restore', denied)
    with pytest.raises(PermissionError):
      store.newest(TREE)
    assert store.numbers() == [1]


def test_a_path_that_orbax_could_not_read_again_is_refused(tmp_path):
  for write in (checkpoints.Store, lambda path: checkpoints.save(path, TREE)):
    with pytest.raises(ValueError, match=r'where a name has a \['):
      write(tmp_path / 'a [x]')
  assert list(tmp_path.iterdir()) == []


def test_an_empty_store_has_no_newest(tmp_path):
  with checkpoints.Store(tmp_path) as store:
    assert store.newest(TREE) is None


def test_variables_are_saved_and_loaded(tmp_path):
  variables = {'params': {0: np.arange(3.0)}, 'batch_stats': {}}
  checkpoints.save(tmp_path / 'network', variables)
  found = checkpoints.load(tmp_path / 'network')
  np.testing.assert_array_equal(found['params']['0'], np.arange(3.0))
  with pytest.raises(FileNotFoundError):
    checkpoints.load(tmp_path / 'nothing')


def test_the_newest_variables_of_a_run(tmp_path):
  for step in (1, 2):
    with checkpoints.Store(tmp_path) as store:
      state = {'params': {'w': np.full(2, step)}, 'batch_stats': None}
      store.save(step, {'state': state})
  step, variables = checkpoints.newest_variables(tmp_path)
  assert step == 2 and variables['batch_stats'] == {}
  np.testing.assert_array_equal(variables['params']['w'], [2, 2])
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    checkpoints.newest_variables(tmp_path / 'elsewhere')


def test_reading_leaves_a_save_under_way_alone(tmp_path):
  saved(tmp_path, 1)
  written = tmp_path / '2.orbax-checkpoint-tmp'
  written.mkdir()
  with checkpoints.Store(tmp_path) as store:
    assert store.numbers() == [1]
  assert written.exists()


def test_arrays_that_changed_places_are_refused(tmp_path):
  one, other = np.zeros((3, 5), np.float32), np.zeros((5, 3), np.float32)
  with checkpoints.Store(tmp_path) as store:
    store.save(1, {'a': one, 'b': other})
    store.wait()
    with pytest.raises(ValueError, match='other arrays'):
      store.restore(1, {'a': other, 'b': one})


@pytest.mark.parametrize(
  'like',
  [{'b': np.zeros(5, np.float32)}, TREE | {'a': np.zeros(6, np.float32)}],
)
def test_another_tree_is_refused_and_kept(tmp_path, like):
  saved(tmp_path, 1, 2)
  with checkpoints.Store(tmp_path) as store:
    with pytest.raises(ValueError, match='other arrays'):
      store.newest(like)
    assert store.numbers() == [1, 2]
    assert store.restore(3) is None
