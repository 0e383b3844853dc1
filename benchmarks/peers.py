"""saw_jax beside Tunix and TRL: speed, memory and compile time, in one run.

  python benchmarks/peers.py [--shape=M] [--only=ours,tunix,trl]
    [--jobs=forward,train,generate,memory,compile] [--repetitions=5]

Each library is a process in an environment of its own, made under .cache/peers
when it is not there; one that cannot be made is left out, and said so. All load
the same weights. Logits and log-probs are compared before anything is timed,
and losses and gradients at the first step. Writes
benchmarks/results/peers_<shape>.{json,md}.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import shared  # noqa: E402
from benchmarks.peer_workers import protocol  # noqa: E402
from saw_jax.reporting import tables  # noqa: E402

ENVIRONMENTS = ROOT / ".cache" / "peers"
# What each environment holds; ours is the one that runs this. torch in its CPU
# build: where the package index does not have that, PIP_EXTRA_INDEX_URL says
# where.
REQUIREMENTS = {
  "ours": (),
  "tunix": ("google-tunix==0.1.7",),
  "trl": ("torch==2.13.0+cpu", "trl==1.16.0"),
}
LABELS = {"ours": "saw_jax", "tunix": "Tunix", "trl": "TRL"}
JOBS = (*protocol.JOBS, "memory", "compile")
AT_ONCE = "train_at_once"  # whose memory is measured
TITLES = {
  "forward": "forward log-probs",
  "train": "train step",
  "generate": "generation",
  AT_ONCE: "train step, all rows at once",
}
# Of logits and log-probs, absolute; of a step's loss, entropy and gradient
# norm, as a share.
TOLERANCE, SHARE = 1e-4, 1e-3
# A probe below this share of the fastest one voids its repetition.
QUIET = 0.85
DEPTHS, COMPILED_ROWS = (6, 28), 4
NOTES = """\
All compute in float32 with the same weights of Qwen2's kind (tied head, biases
on queries, keys and values), on the same full rows, with the threads that they
take by themselves.

- forward: log-probs of the completions' tokens. saw_jax: `make_forward`. Tunix:
  `compute_per_token_logps`, which computes the logits of prompts as well. TRL:
  the trainer's `_get_per_token_logps_and_entropies` with its chunked head; it
  reads all positions too, and computes entropies whether asked for or not.
- train: one GRPO step on given advantages and old log-probs: clipped ratio, a
  mean over tokens, no KL, entropy as a metric, gradient clipped by its norm,
  AdamW; no layer is computed twice. saw_jax: `make_update` with the terms and
  diagnostics that a config has, state donated. Tunix: `grpo_loss_fn` in its
  trainer's jitted step. TRL: the trainer's `compute_loss` and optimizer,
  without gradient checkpointing, which is on by default and slower.
- forward and train: the rows pass through the model at once, in 8 or in 16
  parts, with the gradients added up, whichever is fastest for peer and job.
- generate: sampling at temperature 1 from the whole vocabulary. saw_jax reads a
  prompt once for all samples of its group, and records log-probs. Tunix:
  `VanillaRollout` with a cache of just the length needed, without log-probs,
  its default. TRL: the trainer's `_generate_single_turn` (transformers'
  `generate`).
- memory: the most that a fresh process held (VmHWM) while it loaded the weights
  and ran the job three times, compilation included; in brackets, how much of it
  came after loading. In as many parts as where it is timed; a train step also
  with all rows at once.
- compile: a first train step of 4 rows less what a later one takes, in a fresh
  process without a compilation cache.
"""


class PeerError(RuntimeError):
  """A worker could not do what it was asked for."""


class Peer:
  """A worker process."""

  def __init__(self, name: str, python: str, **variables: str) -> None:
    self.name = name
    self._log = tempfile.TemporaryFile("w+")
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "CUDA_VISIBLE_DEVICES": "",
      "HF_HUB_OFFLINE": "1",
      "TOKENIZERS_PARALLELISM": "false",
      "PYTHONPATH": str(ROOT),
    }
    # A program that is read is not compiled, and is not always as fast.
    for variable in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
      environment.pop(variable, None)
    environment |= variables
    self._process = subprocess.Popen(
      [python, "-m", f"benchmarks.peer_workers.{name}"],
      cwd=ROOT,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
    )

  def ask(self, op: str, **arguments) -> dict:
    """Waits for the answer to a request.

    Raises:
      PeerError: the worker failed or is gone; the message has the reason.
    """
    try:
      self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      self._log.seek(0)
      lines = self._log.read().strip().splitlines() or ["no message"]
      raise PeerError(f"{self.name} ended at {op!r}: {lines[-1]}")
    answer = json.loads(line)
    if "error" in answer:
      raise PeerError(f"{self.name} failed at {op!r}: {answer['error']}")
    return answer

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    try:
      self._process.wait(timeout=30)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._log.close()

  def __enter__(self) -> "Peer":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def prepare(
  name: str,
  requirements: tuple[str, ...] | None = None,
  *,
  python: str = sys.executable,
  lowest: bool = False,
) -> str:
  """Makes the environment of a peer unless it is there.

  Args:
    name: of its folder.
    requirements: what it holds, by default `REQUIREMENTS` of that name.
    python: what makes it.
    lowest: takes the lowest versions that are allowed (by uv).

  Returns:
    Its Python.

  Raises:
    PeerError: it cannot be made.
  """
  requirements = REQUIREMENTS[name] if requirements is None else requirements
  wanted = "\n".join(requirements)
  if not wanted:
    return sys.executable
  folder = ENVIRONMENTS / name
  own, stamp = str(folder / "bin" / "python"), folder / ".installed"
  if stamp.exists() and stamp.read_text() == wanted and os.path.exists(own):
    return own
  say(f"making an environment in {folder.relative_to(ROOT)}")
  commands = [[python, "-m", "venv", str(folder)]]
  install = [own, "-m", "pip", "install", "--quiet"]
  install += ["--disable-pip-version-check"]
  if lowest:
    commands.append([*install, "uv"])
    install = [own, "-m", "uv", "pip", "install", "--resolution=lowest"]
  # torch first: another requirement would bring its default build along.
  for count in range(1, len(requirements) + 1):
    commands.append([*install, *requirements[:count]])
  for command in commands:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
      raise PeerError(f"its environment cannot be made: {lines[-1]}")
  stamp.write_text(wanted)
  return own


def say(line: str) -> None:
  print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def probe(size: int = 1024, times: int = 12) -> float:
  """Measures a matmul. Returns GFLOP/s, float32."""
  a = np.ones((size, size), np.float32)
  b = np.ones((size, size), np.float32)
  a @ b
  begin = time.perf_counter()
  for _ in range(times):
    a @ b
  return 2e-9 * size**3 * times / (time.perf_counter() - begin)


def is_quiet(probes: list[float], best: float) -> bool:
  """Whether no probe of a repetition was slow."""
  return min(probes) >= QUIET * best


def ratios(repetitions: list[dict[str, float]], name: str) -> list[float]:
  """How many times as long as ours a peer took, by repetition."""
  return [
    repetition[name] / repetition["ours"]
    for repetition in repetitions
    if name in repetition and "ours" in repetition
  ]


def matmul_flops(shape: protocol.Shape) -> dict[str, float]:
  """Counts what a forward pass and a train step multiply at least.

  Attention counts whole rows of scores; a backward pass is twice a forward one.
  """
  heads = shape.num_heads * shape.head_size
  kv_heads = shape.num_kv_heads * shape.head_size
  weights = shape.width * (2 * heads + 2 * kv_heads + 3 * shape.mlp_size)
  tokens = shape.rows * shape.length
  layers = 2 * tokens * (weights + 2 * shape.length * heads)
  head = 2 * shape.rows * shape.new_tokens * shape.width * shape.vocab_size
  forward = shape.num_layers * layers + head
  return {"forward": forward, "train": 3 * forward}


def disagreement(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> float:
  """The largest difference of logits and log-probs; inf where shapes differ."""
  if any(ours[name].shape != theirs[name].shape for name in ours):
    return float("inf")
  # NumPy's: one NaN is a NaN, wherever it stands.
  return float(
    np.max([np.abs(ours[name] - theirs[name]).max() for name in ours])
  )


def differing(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
  """Names of the values that are further apart than `SHARE` of ours."""
  return [
    name
    for name, value in theirs.items()
    # A loss may be near 0: it is a mean of advantages, which are about 1.
    if not abs(value - ours[name]) <= SHARE * max(abs(ours[name]), 0.1)
  ]


def measure_job(
  peers: dict[str, Peer], job: str, repetitions: int, best: float
) -> tuple[dict, float]:
  """Times a job in all peers, in turn, until enough repetitions were quiet.

  A peer that cannot do the job, for want of memory say, is left out of it.

  Returns:
    What was measured, and the fastest probe so far.
  """
  first, failed = {}, {}
  for name, peer in peers.items():
    try:
      first[name] = peer.ask("run", job=job)
      # Who gets back another layout than it gave compiles a second time.
      peer.ask("run", job=job)
    except PeerError as error:
      if name == "ours":
        raise
      say(str(error))
      failed[name] = str(error)
  peers = {name: peer for name, peer in peers.items() if name in first}
  valid, void = [], []
  while len(valid) < repetitions and len(valid) + len(void) < 2 * repetitions:
    probes, seconds = [probe()], {}
    for name in shared.order(list(peers), len(valid) + len(void)):
      seconds[name] = peers[name].ask("run", job=job)["seconds"]
      probes.append(probe())
    best = max(best, *probes)
    seconds["probe"] = statistics.median(probes)
    (valid if is_quiet(probes, best) else void).append(seconds)
    say(
      f"{TITLES[job]}, {'quiet' if is_quiet(probes, best) else 'void'}: "
      + ", ".join(f"{LABELS[x]} {seconds[x]:.3f} s" for x in peers)
      + f"; probes {min(probes):.0f} to {max(probes):.0f} GFLOP/s"
    )
  return {
    "first": {name: answer["seconds"] for name, answer in first.items()},
    "values": {name: answer["values"] for name, answer in first.items()},
    "failed": failed,
    "valid": valid,
    "void": void,
  }, best


def choose_parts(
  peer: Peer,
  jobs: list[str],
  opening: dict[str, str],
  given: dict[str, int] | None,
) -> dict[str, int]:
  """Finds in how many parts a peer is fastest, and opens it with those.

  Args:
    peer: the worker.
    jobs: what is going to be measured.
    opening: what a worker is opened with.
    given: parts by job, in place of what is fastest.

  Returns:
    The parts of each job.

  Raises:
    PeerError: the worker is gone.
  """
  parts = given or dict.fromkeys(protocol.PARTED, 1)
  for job in protocol.PARTED:
    if job not in jobs or given:
      continue
    seconds = {}
    for count in protocol.PARTS:
      peer.ask("open", parts=parts | {job: count}, **opening)
      try:
        for _ in range(2):  # compiled, and maybe compiled again
          peer.ask("run", job=job)
        seconds[count] = min(
          peer.ask("run", job=job)["seconds"] for _ in range(2)
        )
      except PeerError as error:
        say(str(error))
    if seconds:
      parts[job] = min(seconds, key=seconds.get)
      say(
        f"{LABELS[peer.name]}, {TITLES[job]}: "
        + ", ".join(f"{x:.3f} s in {n} parts" for n, x in seconds.items())
      )
  peer.ask("open", parts=parts, **opening)
  return parts


def measure_memory(
  python: str,
  name: str,
  job: str,
  opening: dict[str, str],
  parts: dict[str, int],
) -> dict[str, int]:
  """Runs a job three times in a fresh process. Returns bytes by name."""
  with Peer(name, python) as peer:
    loaded = peer.ask("open", parts=parts, **opening)
    peer.ask("run", job=job)
    peer.ask("run", job=job)
    whole = peer.ask("memory")["peak"]
    peer.ask("forget_peak")
    peer.ask("run", job=job)
    steady = peer.ask("memory")["peak"]
    found = {
      "loaded": loaded["resident"],
      "peak": max(whole, steady),
      "steady": steady,
    }
    if name == "ours" and job == "train":
      found["temporary"] = peer.ask("temporary")["bytes"]
  return found


def summarise(job: dict, tokens: int) -> dict:
  """Medians of a job: seconds and tokens per second, ratios with their range.

  Quiet repetitions alone count; where there is none, all do, and `quiet` is 0.
  """
  used = job["valid"] or job["void"]
  rows = {}
  for name in used[0]:
    if name == "probe":
      continue
    seconds = statistics.median(repetition[name] for repetition in used)
    rows[name] = {"seconds": seconds, "tokens_per_second": tokens / seconds}
    found = ratios(used, name)
    if name != "ours" and found:
      rows[name]["ratio"] = statistics.median(found)
      rows[name]["range"] = [min(found), max(found)]
  return {"quiet": len(job["valid"]), "rows": rows}


def table(document: dict) -> str:
  """Writes what was measured as Markdown."""
  shape, peers = document["shape"], document["peers"]
  others = [name for name in peers if name != "ours"]
  lines = [f"### Beside Tunix and TRL, shape {document['name']}", ""]
  if document["summary"]:
    head = ["job", "saw_jax, s", "tokens/s"]
    for name in others:
      head += [f"{LABELS[name]}, s", "saw_jax is faster by", "range"]
    rows = []
    for job, found in document["summary"].items():
      ours = found["rows"]["ours"]
      quiet = "" if found["quiet"] else " (no quiet repetition)"
      speed = f"{ours['tokens_per_second']:,.0f}"
      rows.append([f"{TITLES[job]}{quiet}", f"{ours['seconds']:.3f}", speed])
      for name in others:
        row = found["rows"].get(name)
        rows[-1] += (
          [f"{row['seconds']:.3f}", f"{row['ratio']:.2f}"]
          + [shared.between(row["range"])]
          if row
          else ["-"] * 3
        )
    lines += [*tables.grid(head, rows), ""]
  if document.get("bound"):
    bound = document["bound"]
    lines += [
      f"The train step is at {100 * bound['share']:.0f} % of its matmul bound: "
      f"{bound['flops'] / 1e9:,.0f} GFLOP at {bound['gflops']:.0f} GFLOP/s.",
      "",
    ]
  if document["memory"]:
    head = ["peak memory, MB", *(LABELS[name] for name in peers)]
    rows = [
      [TITLES[job], *(_megabytes(found.get(name)) for name in peers)]
      for job, found in document["memory"].items()
    ]
    lines += [*tables.grid(head, rows), ""]
    temporary = document["memory"].get(AT_ONCE, {}).get("ours", {})
    if "temporary" in temporary:
      logits = 4 * shape["num_prompts"] * shape["group_size"]
      logits *= shape["new_tokens"] * shape["vocab_size"]
      lines += [
        f"Beside its arguments the train step of saw_jax, all rows at once, "
        f"needs {temporary['temporary'] / 1e6:,.0f} MB; all logits of the "
        f"completions, B x T x V, would be {logits / 1e6:,.0f} MB.",
        "",
      ]
  if document["compile"]:
    head = ["compile time of a train step, s"]
    head += [f"{depth} layers" for depth in DEPTHS]
    rows = [
      [name] + [f"{of[str(d)]:.1f}" if str(d) in of else "-" for d in DEPTHS]
      for name, of in document["compile"].items()
    ]
    lines += [*tables.grid(head, rows), ""]
  for name, reason in document["missing"].items():
    lines += [f"{LABELS[name]} is missing: {reason}.", ""]
  for job, measured in document["jobs"].items():
    for reason in measured["failed"].values():
      lines += [f"{TITLES[job]}: {reason}.", ""]
  lines += [
    f"Shape {document['name']}: "
    + ", ".join(f"{name} {value:,}" for name, value in shape.items())
    + ". Parts of a forward pass and of a train step: "
    + ", ".join(
      f"{LABELS[x]} {document['parts'][x]['forward']} and "
      f"{document['parts'][x]['train']}"
      for x in peers
    )
    + "".join(f"; {LABELS[x]}'s as given by --parts" for x in document["given"])
    + ". "
    f"{document['repetitions']} repetitions in turn, medians of ratios; "
    f"{document['void']} voided by the probe. Largest difference of logits and "
    "log-probs: "
    + (
      ", ".join(
        f"{LABELS[name]} {value:.1e}"
        for name, value in document["differences"].items()
      )
      or "nobody to compare with"
    )
    + ".",
    "",
    NOTES,
  ]
  for name, versions in document["versions"].items():
    lines.append(
      f"- {LABELS[name]}: "
      + ", ".join(f"{package} {x}" for package, x in versions.items())
    )
  lines += ["", f"{document['machine']}, commit {document['commit']}.", ""]
  return "\n".join(lines)


def _megabytes(cell: dict | None) -> str:
  """The peak of a process, and how much of it came after loading."""
  if cell is None:
    return "-"
  more = cell["peak"] - cell["loaded"]
  return f"{cell['peak'] / 1e6:,.0f} ({more / 1e6:,.0f})"


def open_peers(
  names: list[str], opening: dict[str, str], scratch: pathlib.Path
) -> tuple[dict[str, Peer], dict[str, str], dict]:
  """Starts workers and keeps those that agree with ours.

  Returns:
    The workers by name, Python of each, and what is known of them.
  """
  peers, pythons = {}, {}
  known = {"missing": {}, "versions": {}, "differences": {}}
  checked = {}
  for name in names:
    try:
      python = prepare(name)
      peer = peers[name] = Peer(name, python)
      if name == "ours":
        say("writing weights and batch")
        peer.ask("export", **opening)
      one = dict.fromkeys(protocol.PARTED, 1)
      opened = peer.ask("open", parts=one, **opening)
      known["versions"][name] = opened["versions"]
      path = scratch / f"{name}.npz"
      peer.ask("check", rows=2, path=str(path))
      checked[name] = dict(np.load(path))
      if name != "ours":
        found = disagreement(checked["ours"], checked[name])
        known["differences"][name] = found
        say(f"{LABELS[name]} and saw_jax differ by {found:.1e} at most")
        if not found <= TOLERANCE:
          raise PeerError(f"its logits differ by {found:.1e}")
      pythons[name] = python
    except PeerError as error:
      if name == "ours":
        raise
      say(f"{LABELS[name]} is left out: {error}")
      known["missing"][name] = str(error)
      known["versions"].pop(name, None)
      if name in peers:
        peers.pop(name).close()
  return peers, pythons, known


def measure_compile(pythons: dict[str, str], shape: str) -> dict:
  """Times compilation at each depth, each in a fresh process."""
  variants = [
    ("ours", "unrolled", "saw_jax, layers unrolled"),
    ("ours", "scanned", "saw_jax, layers scanned"),
    ("tunix", "unrolled", "Tunix"),
  ]
  found = {}
  for name, variant, title in variants:
    if name not in pythons:
      continue
    found[title] = {}
    for depth in DEPTHS:
      with Peer(name, pythons[name]) as peer:
        try:
          answer = peer.ask(
            "compile",
            shape=shape,
            layers=depth,
            rows=COMPILED_ROWS,
            variant=variant,
          )
        except PeerError as error:
          say(str(error))
          continue
      found[title][str(depth)] = answer["seconds"]
      say(f"{title}: {depth} layers compile in {answer['seconds']:.1f} s")
  return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Reads the flags, and refuses names that there are not."""
  parser = argparse.ArgumentParser(
    description="saw_jax beside Tunix and TRL: speed, memory, compile time."
  )

  def names(known):
    def read(text: str) -> list[str]:
      found = [word for word in text.split(",") if word]
      for word in found:
        if word not in known:
          raise argparse.ArgumentTypeError(
            f"{word!r} is not one of {', '.join(known)}"
          )
      return [word for word in known if word in found]

    return read

  def parts(text: str) -> dict[str, dict[str, int]]:
    found = dict(word.split(":") for word in text.split(","))
    names(list(REQUIREMENTS))(",".join(found))
    counts = {}
    for name, words in found.items():
      each = [int(word) for word in words.split("/")]
      if min(each) < 1:
        raise argparse.ArgumentTypeError("parts must be at least 1")
      if len(each) == 1:
        each *= len(protocol.PARTED)
      counts[name] = dict(zip(protocol.PARTED, each, strict=True))
    return counts

  parser.add_argument(
    "--shape", default="M", choices=list(protocol.SHAPES), help="sizes"
  )
  parser.add_argument(
    "--only",
    type=names(list(REQUIREMENTS)),
    default=list(REQUIREMENTS),
    help="libraries, by comma; ours is always among them",
  )
  parser.add_argument(
    "--jobs", type=names(JOBS), default=list(JOBS), help="by comma"
  )
  parser.add_argument(
    "--repetitions", type=int, default=5, help="quiet ones, of each job"
  )
  parser.add_argument(
    "--parts",
    type=parts,
    default={},
    metavar="NAME:N,NAME:N/M,...",
    help="in how many parts the rows pass through the model, N for both jobs, "
    "or N in forward passes and M in train steps; by default what is fastest",
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=ROOT / "benchmarks" / "results",
    help="folder of the results",
  )
  found = parser.parse_args(arguments)
  if found.repetitions < 1:
    parser.error("--repetitions must be at least 1")
  if "ours" not in found.only:
    found.only = ["ours", *found.only]
  return found


def run(flags: argparse.Namespace) -> dict:
  """Measures, and returns the document of the results."""
  shape = protocol.SHAPES[flags.shape]
  timed = [job for job in protocol.JOBS if job in flags.jobs]
  begin, best = time.perf_counter(), max(probe() for _ in range(5))
  document = {
    "name": flags.shape,
    "shape": dataclasses.asdict(shape),
    "repetitions": flags.repetitions,
    "parts": {},
    "given": list(flags.parts),  # whose parts were said, and not looked for
    "jobs": {},
    "summary": {},
    "memory": {},
    "compile": {},
  }
  with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    opening = {
      "directory": str(scratch / "model"),
      "data": str(scratch / "batch.npz"),
      "shape": flags.shape,
    }
    peers, pythons, known = open_peers(flags.only, opening, scratch)
    document |= known
    try:
      for name, peer in list(peers.items()):
        try:
          document["parts"][name] = choose_parts(
            peer, timed, opening, flags.parts.get(name)
          )
        except PeerError as error:
          if name == "ours":
            raise
          say(f"{LABELS[name]} is left out: {error}")
          document["missing"][name] = str(error)
          pythons.pop(name)
          peers.pop(name).close()
      for job in timed:
        measured, best = measure_job(peers, job, flags.repetitions, best)
        document["jobs"][job] = measured
        document["summary"][job] = summarise(measured, shape.tokens[job])
        for name, values in measured["values"].items():
          apart = differing(measured["values"]["ours"], values)
          if apart and job != "generate":
            measured["failed"][name] = (
              f"{LABELS[name]} computes another {', '.join(apart)}: the times "
              "do not compare"
            )
            say(measured["failed"][name])
    finally:
      for peer in peers.values():
        peer.close()
    document["peers"] = list(pythons)
    if "memory" in flags.jobs:
      jobs = {job: (job, document["parts"]) for job in timed or protocol.JOBS}
      if "train" in jobs:
        one = dict.fromkeys(protocol.PARTED, 1)
        jobs[AT_ONCE] = ("train", dict.fromkeys(pythons, one))
      for title, (job, parts) in jobs.items():
        document["memory"][title] = {}
        for name, python in pythons.items():
          try:
            found = measure_memory(python, name, job, opening, parts[name])
          except PeerError as error:
            say(str(error))
            continue
          document["memory"][title][name] = found
          say(
            f"{LABELS[name]}, {TITLES[title]}: {found['peak'] / 1e6:,.0f} MB "
            "at most"
          )
    if "compile" in flags.jobs:
      document["compile"] = measure_compile(pythons, flags.shape)
  document["void"] = sum(len(job["void"]) for job in document["jobs"].values())
  document["probe"] = best
  if "train" in document["summary"]:
    flops = matmul_flops(shape)["train"]
    seconds = document["summary"]["train"]["rows"]["ours"]["seconds"]
    document["bound"] = {
      "flops": flops,
      "gflops": best,
      "share": flops / (1e9 * best) / seconds,
    }
  document["minutes"] = (time.perf_counter() - begin) / 60
  return document


def main() -> None:
  flags = parse()
  document = run(flags)
  from saw_jax.run import metrics, run_directory

  document |= run_directory.environment()
  flags.out.mkdir(parents=True, exist_ok=True)
  stem = flags.out / f"peers_{flags.shape}"
  metrics.write_json(stem.with_suffix(".json"), document)
  stem.with_suffix(".md").write_text(table(document))
  print(table(document))


if __name__ == "__main__":
  main()
