"""Runs in an object store (`gs://bucket/run`).

A store cannot rename, append or lock: it takes whole objects. So a run works in
a local folder, its mirror, which is filled from the store at the start and
copied back every few seconds and at the end. A checkpoint counts once every
host has listed the files that it sent. It writes that list after the files, and
the first host after the rows of the checkpoint's steps, too.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import platform
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

from etils import epath

LOG = logging.getLogger(__name__)
SEND_S, BEAT_S = 30.0, 10.0
_ARRAYS = ("state/", "arrays/")  # of a checkpoint: fetched only to restore it
# What belongs to this machine alone, or is sent in another way.
_OWN = ("lock", "*.tmp", "*-journal", "weights-*", "checkpoints")
_MIRRORS: dict[pathlib.Path, "Mirror"] = {}


class StoreError(ValueError):
  """A store cannot be used, or somebody else uses it."""


def is_store(place: str | os.PathLike) -> bool:
  return "://" in str(place)


def local(place: str | os.PathLike, *, writes: bool = False) -> pathlib.Path:
  """The local folder of a run: its own, or a mirror filled from its store.

  Raises a StoreError before anything is read if the store cannot be used.
  """
  if not is_store(place):
    return pathlib.Path(place)
  mirror = Mirror(str(place), writes=writes)
  mirror.bring()
  _MIRRORS[mirror.folder] = mirror
  LOG.info("%s is worked on in %s", mirror.address, mirror.folder)
  return mirror.folder


def folder_of(place: str | os.PathLike, flag: str) -> pathlib.Path:
  """The path of a folder; a StoreError if a store is given."""
  if is_store(place):
    raise StoreError(f"{flag}={place}: give a folder, not a store")
  return pathlib.Path(place)


@functools.cache
def copy_of(address: str) -> pathlib.Path:
  """A local copy of a folder or file in a store, such as a model."""
  root = open_root(address)
  copy = pathlib.Path(tempfile.mkdtemp(prefix="saw_jax_"), root.name)
  with _explained(address):
    _copy_all(list(_files(root)) or [""], root, copy)
  return copy


def of(folder: str | os.PathLike) -> "Folder":
  """What keeps a folder: its mirror, if it has one."""
  return _MIRRORS.get(pathlib.Path(folder).absolute(), Folder())


def named(text: Any) -> str:
  """A text with the addresses that the user knows in place of mirrors."""
  text = str(text)
  for folder, mirror in _MIRRORS.items():
    text = text.replace(str(folder), mirror.address)
  return text


def open_root(address: str, *, writes: bool = False) -> epath.Path:
  """Opens an address after checking that it can be read, or written to."""
  scheme, _, rest = address.partition("://")
  if "/" not in rest.strip("/"):
    raise StoreError(f"{address}: name a folder, as {scheme}://bucket/run")
  with _explained(address):
    import fsspec

    # See what others write.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    root = epath.Path(address.rstrip("/"))
    root.exists()
    if writes:
      probe = root / f"probe_{uuid.uuid4().hex}"
      probe.write_text("saw_jax")
      probe.unlink()
  return root


class Folder:
  """A folder that is kept as it is: the calls of a mirror do nothing."""

  is_shared = True  # between the hosts of a run

  def _nothing(self, *_) -> None:
    pass

  take = release = check = start = close = _nothing
  bring = bring_step = send = keep = forget = _nothing


class Mirror(Folder):
  """A local folder that is copied from a store and back."""

  is_shared = False

  def __init__(self, address: str, *, writes: bool = False):
    self.address = address.rstrip("/")
    self.root = open_root(address, writes=writes)
    self._scratch = tempfile.TemporaryDirectory(prefix="saw_jax_")
    self.folder = pathlib.Path(self._scratch.name).resolve() / self.root.name
    self.folder.mkdir()
    self._remote = self.root / "checkpoints"
    self._local = self.folder / "checkpoints"
    self._turn, self._host, self._num_hosts = threading.RLock(), 0, 1
    self._sent: dict[str, tuple[int, int]] = {}  # `_stat` of sent files
    self._kept: set[int] = set()  # checkpoints that the store has
    self._id, self._owner = uuid.uuid4().hex, ""
    self._stack = contextlib.ExitStack()  # ends the sending
    self._lease = contextlib.ExitStack()

  def bring(self) -> None:
    """Fetches everything but the arrays of checkpoints."""
    with self._turn, _explained(self.address):
      names = list(_files(self.root, but=("lock", "checkpoints")))
      _copy_all(names, self.root, self.folder)
      self._sent |= {name: _stat(self.folder / name) for name in names}
      self._kept = set(self._complete())
      for step in self._here() - self._kept:
        shutil.rmtree(self._local / str(step))
      for step in self._kept:
        self.bring_step(step, but=_ARRAYS)

  def bring_step(self, step: int, but: tuple[str, ...] = ()) -> None:
    """Fetches what is missing here of a checkpoint, whichever host sent it."""
    with _explained(self.address):
      folder, parts = self._local / str(step), self._complete().get(step, ())
      names = {name for part in parts for name in json.loads(part.read_text())}
      names = {name for name in names if not name.startswith(but)}
      new = [name for name in names if not (folder / name).exists()]
      _copy_all(new, self._remote / str(step), folder)

  def start(self, host: int, num_hosts: int) -> None:
    """Sends what is new every few seconds, until `close`."""
    self._host, self._num_hosts = host, num_hosts
    if host:  # The first has made sure that nobody else trains here.
      self.bring()
    self._stack.callback(self.send)
    self._stack.callback(_repeat(SEND_S, self.send))

  def close(self) -> None:
    self._stack.close()

  def send(self) -> None:
    """Sends what is new: this host's part of checkpoints; the first, all files.

    A process that is killed here leaves the checkpoints that the store had, and
    at least the rows of their steps.
    """
    with self._turn, _explained(self.address):
      self._check_owner()
      new = self._here() - self._kept
      parts = {step: self._send_step(step) for step in sorted(new)}
      if not self._host:
        self._send_files()
      for step, names in parts.items():
        name = f"{step}.{self._host}of{self._num_hosts}.json"
        (self._remote / name).write_text(json.dumps(names))
        self._kept.add(step)
      here, there = self._here(), self._complete() if new else {}
      if here and max(here) in there:  # The other hosts may not be done.
        self.forget(there.keys() - here)

  def keep(self, path: pathlib.Path) -> None:
    """Sends one file now."""
    with _explained(self.address):
      _copy(path, self.root / path.relative_to(self.folder))

  def forget(self, steps: Iterable[int]) -> None:
    """Deletes checkpoints, old ones or those that will be made again."""
    with self._turn, _explained(self.address):
      self._kept -= set(steps)
      for step in steps if not self._host else ():
        for path in _children(self._remote):
          if path.name.startswith(f"{step}."):
            path.unlink(missing_ok=True)  # It no longer counts.
        (self._remote / str(step)).rmtree(missing_ok=True)

  def check(self) -> None:
    """Raises if another process has taken the run over.

    Sends first where two checkpoints are unsent, since a third one would
    replace the first.
    """
    self._check_owner()
    if len(self._here() - self._kept) > 1:
      self.send()

  def take(self) -> None:
    """Keeps others from training here, as far as a store allows.

    A process that trains says so every few seconds. One that falls silent has
    been killed.
    """
    with _explained(self.address):
      told = now = self._heard()
      if told:
        end = time.monotonic() + 2.5 * BEAT_S
        what = "%s was in use by %s: looking for %.0f s whether it still is"
        LOG.warning(what, self.address, told["who"], 2.5 * BEAT_S)
        while now and time.monotonic() < end:
          time.sleep(BEAT_S / 10)
          if (now := self._heard()) not in (told, None):
            raise StoreError(
              f"{self.address} is in use: {told['who']} trains there; wait for "
              "it, stop it, or choose another --workdir"
            )
        self.bring()
      self._say()
      begun = {path.name.partition(".")[0] for path in _children(self._remote)}
      self.forget({int(x) for x in begun if x.isdigit()} - self._kept)
    self._lease.callback(self._leave)
    self._lease.callback(_repeat(BEAT_S, self._beat))

  def release(self) -> None:
    self._lease.close()

  def _check_owner(self) -> None:
    if self._owner:
      raise StoreError(f"{self.address} is in use: {self._owner} trains there")

  def _heard(self) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError):
      return json.loads((self.root / "lock").read_text())
    return None

  def _say(self) -> None:
    who = f"process {os.getpid()} on {platform.node()}"
    words = {"id": self._id, "who": who, "at": time.time()}
    (self.root / "lock").write_text(json.dumps(words))

  def _beat(self) -> None:
    told = self._heard()
    if told and told["id"] != self._id:
      self._owner = told["who"]
    else:
      self._say()

  def _leave(self) -> None:
    with _explained(self.address):
      if not self._owner:
        (self.root / "lock").unlink(missing_ok=True)

  def _here(self) -> set[int]:
    """Steps of the finished checkpoints in the folder."""
    names = [path.name for path in self._local.glob("*")]
    return {int(name) for name in names if name.isdigit()}

  def _complete(self) -> dict[int, list[epath.Path]]:
    """The hosts' lists of sent files, by step, of checkpoints that count."""
    found: dict[int, list[epath.Path]] = {}
    for path in _children(self._remote):  # such as 8.0of2.json and 8.1of2.json
      if path.suffix == ".json":
        found.setdefault(int(path.name.partition(".")[0]), []).append(path)
    return {
      step: parts
      for step, parts in found.items()
      if parts[0].name.endswith(f"of{len(parts)}.json")
    }

  def _send_step(self, step: int) -> list[str]:
    folder = self._local / str(step)
    names = [
      path.relative_to(folder).as_posix()
      for path in folder.rglob("*")
      if path.is_file()
    ]
    _copy_all(names, folder, self._remote / str(step))
    return names

  def _send_files(self) -> None:
    found = {}
    for path in self.folder.rglob("*"):
      name = path.relative_to(self.folder)
      is_own = any(pathlib.Path(name.parts[0]).match(x) for x in _OWN)
      if path.is_file() and not is_own:
        found[name.as_posix()] = _stat(path)
    for name in self._sent.keys() - found.keys():
      (self.root / name).unlink(missing_ok=True)
      del self._sent[name]
    new = {name: x for name, x in found.items() if self._sent.get(name) != x}
    _copy_all(new, self.folder, self.root)
    self._sent |= new


def _repeat(seconds: float, act: Callable[[], None]) -> Callable[[], Any]:
  """Calls `act` every few seconds in a thread; returns what stops it."""
  stop = threading.Event()

  def run() -> None:
    while not stop.wait(seconds):
      try:
        act()
      except Exception as error:  # The next call tries again.
        LOG.warning("%s", error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  return lambda: (stop.set(), thread.join())


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
  """Turns any failure of a store into one sentence with its address."""
  scheme = address.partition("://")[0]
  try:
    yield
  except StoreError:
    raise
  except Exception as error:  # Every store's library has its own errors.
    said = f"{type(error).__name__} {str(error).strip()}".splitlines()[0][:300]
    if isinstance(error, ImportError) and scheme == "gs":
      said += "; pip install 'saw_jax[gcs]'"
    if error.args == (f"{scheme}://",):
      said = "there is no such store; there are gs://, s3://, az://, hf://"
    raise StoreError(f"{address} cannot be used: {said}") from error


def _children(folder: epath.Path) -> list[epath.Path]:
  # A store may list a folder itself, and of a file the file.
  def is_own(path: epath.Path) -> bool:
    return path.name == folder.name and (path == folder or not path.exists())

  try:
    return [path for path in folder.iterdir() if not is_own(path)]
  except (FileNotFoundError, NotADirectoryError):
    return []


def _files(folder: epath.Path, but: tuple[str, ...] = ()) -> Iterator[str]:
  """Names of all files below a folder of a store."""
  for path in _children(folder):
    if path.name in but:
      continue
    if path.is_dir():
      yield from (f"{path.name}/{name}" for name in _files(path))
    else:
      yield path.name


def _stat(path: pathlib.Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_mtime_ns, found.st_size


def _copy_all(names: Iterable[str], source: Any, target: Any) -> None:
  with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda name: _copy(source / name, target / name), names))


def _copy(source: Any, target: Any) -> None:
  """Copies a file to an object, or an object to a file."""
  with contextlib.ExitStack() as stack:
    if isinstance(target, pathlib.Path):
      target.parent.mkdir(parents=True, exist_ok=True)
    elif source.suffix == ".sqlite":  # a snapshot between two transactions
      scratch = stack.enter_context(tempfile.TemporaryDirectory())
      whole = pathlib.Path(scratch, source.name)
      old, new = (
        stack.enter_context(contextlib.closing(sqlite3.connect(path)))
        for path in (source, whole)
      )
      old.backup(new)
      source = whole
    reads = stack.enter_context(source.open("rb"))
    shutil.copyfileobj(reads, stack.enter_context(target.open("wb")), 2**24)
