"""A store in a folder: whole objects, no rename, no append, and a fuse."""

import os
import pathlib
import runpy
import sys
import time

import fsspec
from etils.epath import backend
from fsspec.implementations import local

from tests import shared_programs


class FakeStore(local.LocalFileSystem):
  """What answers for `gs://` in place of gcsfs."""

  protocol = ("gs", "gcs")
  cachable = False
  root: pathlib.Path
  before_write = staticmethod(lambda name: None)  # raises, if it is to fail

  @classmethod
  def _strip_protocol(cls, path):
    name = str(path).removeprefix("gs://").removeprefix(str(cls.root))
    return str(cls.root / name.strip("/"))

  def _open(self, path, mode="rb", **options):
    if mode == "wb":
      name = pathlib.Path(path).relative_to(self.root).as_posix()
      self.before_write(name)
      pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    elif mode != "rb":
      raise NotImplementedError(f"a store has no mode {mode}")
    return super()._open(path, mode, **options)

  def makedirs(self, path, exist_ok=False):
    """There are no folders."""

  mkdir = makedirs

  def mv(self, *paths, **options):
    raise NotImplementedError("a store renames nothing")

  rename = move = mv_file = mv


def install(root):
  """Has `gs://` be a folder, in this process."""
  FakeStore.root = pathlib.Path(root)
  FakeStore.root.mkdir(exist_ok=True, parents=True)
  FakeStore.before_write = staticmethod(lambda name: None)
  fsspec.register_implementation("gcs", FakeStore, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()
  return FakeStore.root


def slow_second(make=os.mkdir):
  """Has the second host be late with the folder of the first checkpoint."""

  def late(path, *how, **options):
    if str(path).endswith("/1.orbax-checkpoint-tmp"):
      time.sleep(5 * ("--process_id=1" in sys.argv))
    make(path, *how, **options)

  os.mkdir = late


if __name__ == "__main__":  # python -m tests.store_fake ROOT python SCRIPT ...
  install(sys.argv[1])
  sys.argv = sys.argv[3:]
  slow_second()
  shared_programs.keep_all()
  sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
  runpy.run_path(sys.argv[0], run_name="__main__")
