"""Kills, limits and damage, aimed at real runs: a release runs it, pytest not.

  python -m tests.storm --workdir=runs/storm [--only="care killed"]

A run is killed when it has come to a point, and goes on; it ends as the run
that nobody killed, or not. What has a result in `results.jsonl` is not tried
again; the table of all comes at the end.
"""

import argparse
import collections
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import sys

from saw_jax.run import build, run_directory
from tests import helpers
from tests.run import script_runs
from tests.run.script_runs import checkpoints, wait_for

AHEAD = "asynchronous.protocol=fixed_lag asynchronous.lag=1 asynchronous.actors"
RUNS = {
  "sync": "evaluation.num_examples=16",  # long enough to be killed there
  "threads": f"{AHEAD}=2",
  "processes": f"{AHEAD}=1 asynchronous.actor_kind=process",
  "care": "config=configs/care/knights.py:row=care,fraction=0.2,scale=tiny "
  "loop.num_minibatches=1 loop.num_microbatches=1",
  "paw": "config=configs/paw/household.py:row=gigpo_paw,scale=tiny "
  "task.options.max_steps=3",
  "start": "warm_start.num_steps=40",
}
SAID = collections.deque(maxlen=9)  # warnings of the runs in this process
LOOSE = ("groups/running", "groups/queued", "groups/lost")


def start(name, workdir, **changes):
  fields = dict(word.split("=", 1) for word in RUNS[name].split()) | changes
  return script_runs.start_small(workdir, **fields)


def lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def half_saved(workdir, done):
  halves = (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*")
  return done in checkpoints(workdir) and list(halves)


# When a run is killed: whether it is time, by its folder.
MOMENTS = {
  "in a step": lambda d: lines(d) >= 7,
  "in a save": lambda d: half_saved(d, 2),
  "in the last save": lambda d: half_saved(d, 6),
  "in the final evaluation": lambda d: (
    8 in checkpoints(d) and not (d / "final.json").exists()
  ),
}
PARTS = {
  "sync: its grader": "workers",
  "care: its grader": "workers",
  "paw: its environments": "workers",
  "processes: its actor": "spawn_main",
}
ROOMS = {
  "no file above 16 kB": 'ulimit -f 16; exec "$@"',
  "a disk of 400 kB": 'mount -t tmpfs -o size=400k none "$DIR" || exit 0\n'
  '"$@"; status=$?; umount "$DIR"; exit $status',
}
DAMAGES = {
  "gone": pathlib.Path.unlink,
  "empty": lambda path: path.write_bytes(b""),
  "half": helpers.halve,
  "a flipped byte": helpers.flip_a_byte,
  "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def compare(whole, other):
  try:
    helpers.assert_same_run(whole, other, *LOOSE)
    return "the whole run, to the bit"
  except (AssertionError, OSError, ValueError) as error:
    if any("is damaged" in line or "is gone" in line for line in SAID):
      return "a warning, and the rest of the run"
    return f"DIFFERS: {str(error).strip()[:100]!r}"


def end(process):
  output = process.communicate(timeout=1200)[0].strip()
  said = "TRACEBACK" if "Traceback" in output else "said"
  return f"{said}: {output[-160:]!r}" if process.returncode else ""


def whole_run(folder, name):
  workdir = folder / name
  if not (workdir / "final.json").exists():
    assert not (problem := end(start(name, workdir))), problem
  return workdir


def kill(folder, name, moment, part=None, **changes):
  """Kills a run, which then goes on, or a part of it."""
  whole, workdir = whole_run(folder, name), folder / "killed"
  for path in (workdir, folder / "compiled"):
    shutil.rmtree(path, ignore_errors=True)
  process = start(name, workdir, **changes)
  wait_for([process], lambda: moment(workdir))
  if part:
    tasks = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [pid for path in tasks for pid in path.read_text().split()]
    commands = [pathlib.Path(f"/proc/{x}/cmdline").read_text() for x in pids]
    place = [part in command for command in commands].index(True)
    os.kill(int(pids[place]), signal.SIGKILL)
  else:
    script_runs.kill(process)
    process = start(name, workdir)
  return end(process) or compare(whole, workdir)


def limit(folder, script):
  """Starts a run where it cannot write all, and then where it can."""
  whole, workdir = whole_run(folder, "sync"), folder / "limited"
  shutil.rmtree(workdir, ignore_errors=True)
  workdir.mkdir()
  how = {"before": ("bash", "-c", script, "bash"), "env": {"DIR": str(workdir)}}
  said = end(start("sync", workdir, **how)) or "MISSED"
  then = end(start("sync", workdir)) or compare(whole, workdir)
  return f"{said}; then {then}"


def damage(folder, spoil):
  """Damages each file of a run that was killed, which then goes on."""
  whole, stopped = whole_run(folder, "sync"), folder / "stopped"
  if not (stopped / "checkpoints" / "6").exists():
    process = start("sync", stopped)
    wait_for([process], lambda: 6 in checkpoints(stopped))
    script_runs.kill(process)
  ends, workdir = collections.Counter(), folder / "damaged"
  for path in sorted(p for p in stopped.rglob("*") if p.is_file()):
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(stopped, workdir)
    if path.stat().st_size or spoil is not helpers.flip_a_byte:
      spoil(workdir / path.relative_to(stopped))
    ends[go_on(whole, workdir)] += 1
  return "; ".join(f"{count} x {found}" for found, count in ends.items())


def go_on(whole, workdir, step=None):
  """In this process, which is faster; once more at the step that is advised."""
  run, seeds = run_directory.read_config(whole)
  SAID.clear()
  try:
    made = build.build(run, seeds, workdir)
    build.train(made, seeds, directory=workdir, resume_step=step)
    return compare(whole, workdir)
  except (ValueError, OSError) as error:
    advised = re.search("--resume_step=([0-9]+)", str(error))
    if step is not None or not advised:
      return "a sentence"
    return f"as advised: {go_on(whole, workdir, int(advised[1]))}"
  except Exception as error:
    return f"TRACEBACK: {error!r:.100}"


def cases(folder):
  found, partial = {}, functools.partial
  for what, word in PARTS.items():
    how = what.partition(":")[0], lambda d: lines(d) >= 5, word
    found[f"{what} killed"] = partial(kill, folder, *how)
  for name in list(RUNS)[:-1]:
    for when, at in MOMENTS.items():
      found[f"{name}: killed {when}"] = partial(kill, folder, name, at)
  # The update has been compiled, and is trained by for long.
  at = lambda d: list(d.with_name("compiled").glob("jit_update*"))  # noqa: E731
  env = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
  env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  how = {"env": env, "warm_start.num_steps": 100_000}
  found["start: killed in it"] = partial(kill, folder, "start", at, **how)
  for what, script in ROOMS.items():
    found[f"sync: {what}"] = partial(limit, folder, script)
  for what, spoil in DAMAGES.items():
    found[f"sync: each file in turn: {what}"] = partial(damage, folder, spoil)
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--only", default="", help="words in a case's name")
  given = parser.parse_args()
  given.workdir.mkdir(parents=True, exist_ok=True)
  path = given.workdir / "results.jsonl"
  path.touch()
  hears = logging.Handler(logging.WARNING)
  hears.emit = lambda record: SAID.append(record.getMessage())
  logging.getLogger("saw_jax").addHandler(hears)
  done = dict(map(json.loads, path.read_text().splitlines()))
  for case, trial in cases(given.workdir).items():
    if case not in done and all(w in case for w in given.only.split()):
      try:
        done[case] = trial()
      except (AssertionError, ValueError) as error:  # It was over before.
        done[case] = f"MISSED: {str(error).strip()[-100:]!r}"
      with path.open("a") as file:
        print(json.dumps([case, done[case]]), file=file)
  print("| tried | result |", "| --- | --- |", sep="\n")
  print(*(f"| {case} | {found} |" for case, found in done.items()), sep="\n")
  return any(re.search("DIFFERS|TRACEBACK|MISSED", x) for x in done.values())


if __name__ == "__main__":
  sys.exit(main())
