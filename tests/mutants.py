"""Breaks the formulas one piece at a time, and asks their tests who noticed.

  python tests/mutants.py --number=150 --results=mutants.jsonl

A mutant is one change of one file in a copy of the repository: a sum for a
mean, a `<` for a `<=`, a term, a mask or a stopped gradient left away. It is
caught if the tests of the file fail. What is in the results is not tried again.
"""

import argparse
import ast
import copy
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
FILES = """reductions weighting advantages step_advantages losses stale_losses
world_model models/log_probs training/update rollout/staleness labels/voting
labels/replay labels/certainty labels/selection labels/probes labels/care
labels/gap""".split()
PAIRS = """Add Sub Mult Div BitAnd BitOr Lt LtE Gt GtE Eq NotEq all any sum mean
min max minimum maximum all_sum all_mean all_min all_max argmin argmax psum pmax
zeros_like ones_like""".split()
SWAPS = dict(zip(PAIRS[::2], PAIRS[1::2], strict=True))
SWAPS |= {b: a for a, b in SWAPS.items()}
MASKS = "where weights scored axis_name initial ddof".split()  # or left away
THROUGH = "stop_gradient select square_root square at_least_float32".split()


def changes(node: ast.AST) -> list[ast.AST]:
  """What a node may be replaced by."""
  found = []

  def put(**fields):
    found.append(copy.copy(node))
    vars(found[-1]).update(fields)

  (op,) = getattr(node, "ops", [getattr(node, "op", None)])[:1]
  if other := SWAPS.get(type(op).__name__):
    other = getattr(ast, other)()
    put(
      **(
        {"ops": [other, *node.ops[1:]]}
        if hasattr(node, "ops")
        else {"op": other}
      )
    )
  match node:
    case ast.BinOp(left, op, right):
      found += [left, right] if isinstance(op, ast.Add | ast.Mult) else [left]
    case ast.UnaryOp(operand=operand):
      found.append(operand)
    case ast.Attribute(attr=name) if name in SWAPS:
      put(attr=SWAPS[name])
    case ast.Constant(value=bool(x)):
      put(value=not x)
    case ast.Constant(value=int(x) | float(x)):
      put(value=2 * x if x and isinstance(x, float) else x + 1)
    case ast.If(test=test) | ast.IfExp(test=test):
      put(test=ast.UnaryOp(ast.Not(), test))
    case ast.Call(func=func, args=args, keywords=keywords):
      name = getattr(func, "attr", getattr(func, "id", ""))
      if name == "where" and len(args) == 3:
        put(args=[args[0], args[2], args[1]])
      found += args[:1] if name in THROUGH else []
      for key in keywords:
        if key.arg in MASKS:
          put(keywords=[x for x in keywords if x is not key])
  return found


def sites(node: ast.AST):
  """Every node of the formulas: no types, no checks and no messages."""
  for field, value in ast.iter_fields(node):
    for index, child in enumerate(value if type(value) is list else [value]):
      if field not in ("annotation", "returns", "decorator_list") and not (
        not isinstance(child, ast.AST)
        or isinstance(child, ast.Raise | ast.JoinedStr | ast.Subscript)
        or (isinstance(child, ast.Expr) and "assert" in ast.unparse(child))
      ):
        yield node, field, index, child
        yield from sites(child)


def mutants(file: str):
  """The name of each mutant of a file, and its text."""
  tree = ast.parse((ROOT / "saw_jax" / f"{file}.py").read_text())
  for parent, field, index, node in list(sites(tree)):
    for new in changes(node):
      old = getattr(parent, field)
      put = [*old[:index], new, *old[index + 1 :]] if type(old) is list else new
      where = f"{file}:{getattr(node, 'lineno', 0)}"
      what = f"{ast.unparse(node)[:60]} -> {ast.unparse(new)[:60]}"
      setattr(parent, field, put)
      yield f"{where} {what}", ast.unparse(ast.fix_missing_locations(tree))
      setattr(parent, field, old)


def is_caught(folder: pathlib.Path, file: str, text: str) -> bool:
  tests = [
    f"tests/{file}_test.py",
    f"tests/{file.split('/')[0]}/golden_test.py",
  ]
  tests = [one for one in tests if (ROOT / one).exists()]
  path = folder / "saw_jax" / f"{file}.py"
  before = path.read_text()
  path.write_text(text)
  command = [sys.executable, "-m", "pytest", "-xqp", "no:cacheprovider", *tests]
  how = dict(cwd=folder, capture_output=True, timeout=900)
  try:  # The slow tests only where the quick ones pass; 5: there are none.
    return any(
      subprocess.run([*command, "-m", marks], **how).returncode not in (0, 5)
      for marks in ("not slow", "slow")
    )
  except subprocess.TimeoutExpired:
    return True
  finally:
    path.write_text(before)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--number", type=int, default=150, help="mutants in all")
  parser.add_argument("--seed", type=int, default=0, help="of their choice")
  parser.add_argument("--files", nargs="*", default=FILES)
  parser.add_argument("--results", type=pathlib.Path, default="mutants.jsonl")
  given = parser.parse_args()
  made = [(file, *one) for file in given.files for one in mutants(file)]
  random.Random(given.seed).shuffle(made)
  chosen = made[: given.number]
  lines = given.results.read_text() if given.results.exists() else ""
  tried = dict(map(json.loads, lines.splitlines()))
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{ROOT}/.cache/mutants")
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place, "copy")
    skip = shutil.ignore_patterns(".*", "docs", "results", "notebooks")
    shutil.copytree(ROOT, folder, ignore=skip)
    os.environ["PYTHONPATH"] = str(folder)
    for file, name, text in chosen:
      if name not in tried:
        tried[name] = is_caught(folder, file, text)
        with given.results.open("a") as out:
          print(json.dumps([name, tried[name]], ensure_ascii=False), file=out)
        print("caught  " if tried[name] else "SURVIVED", name, flush=True)
  for file in (*given.files, ""):
    ones = [tried[name] for _, name, _ in chosen if name.startswith(file)]
    print(f"{file or 'all':20} {sum(ones):4} of {len(ones):4} caught")


if __name__ == "__main__":
  main()
