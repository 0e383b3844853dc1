"""Asks for every page outside that README and the pages here link to.

  python docs/links.py

It needs a network, so that neither `make docs` nor a test runs it. Ends with
status 1 if a page is not there; one that could not be asked for is only named.
"""

import pathlib
import re
import sys
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\((https?://[^\s)]+)\)|<(https?://[^\s>]+)>")
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{5})")
_TIMEOUT_S = 20


def links() -> dict[str, list[str]]:
  """The pages that have each link, papers by their numbers included."""
  found: dict[str, list[str]] = {}
  for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
    text = path.read_text(encoding="utf-8")
    papers = [f"https://arxiv.org/abs/{x}" for x in _PAPER.findall(text)]
    for link in {"".join(x) for x in _LINK.findall(text)} | {*papers}:
      found.setdefault(link, []).append(path.relative_to(ROOT).as_posix())
  return found


def answer(link: str) -> str:
  """What a server says, or why there was no answer."""
  request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0"})
  try:
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as page:
      return f"{page.status}"
  except urllib.error.HTTPError as error:
    return f"{error.code}"
  except OSError as error:
    return f"not asked: {error}"


def main() -> int:
  answers = {link: answer(link) for link in links()}
  for link, pages in links().items():
    print(f"{answers[link]:<5} {link} ({', '.join(pages)})")
  return int(any(said in ("404", "410") for said in answers.values()))


if __name__ == "__main__":
  sys.exit(main())
