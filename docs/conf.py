"""How Sphinx makes the site of these pages; `make docs` runs it.

The source is the whole checkout, so that a link in a page is the same file here
and where the pages are read as they are.
"""

import pathlib
import re
import sys

from docutils.utils.math import latex2mathml

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "saw_jax"
author = copyright = "The saw_jax authors"
extensions = [
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "myst_nb",
  "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = [
  "docs/**",
  "notebooks/*",
  "results/**",
  "benchmarks/results/*",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
]
exclude_patterns = ["**/.ipynb_checkpoints", "docs/household_episodes.html"]
highlight_language = "text"
# A table begins with the heading of its first part.
suppress_warnings = ["myst.header", "myst.xref_missing.py"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # They are shown as they were committed.

html_title = "saw_jax"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 79
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

_SECTION = re.compile(
  r"(Args|Returns|Raises|References|Yields|Attributes|Examples?|Note):$"
)


def setup(app):
  """What Sphinx calls."""
  app.add_html_math_renderer(
    "mathml", inline_renderers=(_math, None), block_renderers=(_display, None)
  )
  app.connect("autodoc-process-docstring", _to_rst, priority=100)
  app.connect("build-finished", _redirect)


# Browsers draw MathML themselves: no script, and none from another host.
def _math(self, node):
  self.body.append(_mathml(node, as_block=False))
  _skip()


def _display(self, node):
  self.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
  _skip()


def _mathml(node, as_block: bool) -> str:
  tree = latex2mathml.tex2mathml(node.astext(), as_block=as_block)
  return tree if isinstance(tree, str) else tree.toxml()


def _skip():
  from docutils import nodes

  raise nodes.SkipNode


def _to_rst(app, what, name, obj, options, lines):
  """Docstrings are written as one reads them; Sphinx reads reStructuredText.

  What is indented behind an empty line is a formula, and `code` is literal.
  """
  found, in_section, in_formula = [], False, False
  for number, line in enumerate(lines):
    indent = len(line) - len(line.lstrip())
    if line.strip() and not indent:
      in_section, in_formula = bool(_SECTION.match(line)), False
    after_gap = number and not lines[number - 1].strip()
    if indent and after_gap and not in_section and not in_formula:
      found += ["::", ""]
      in_formula = True
    is_code = in_formula or line.lstrip().startswith((">>>", "..."))
    found.append(line if is_code else _escape(line))
  lines[:] = found


def _escape(line: str) -> str:
  parts = re.split(r"`([^`]+)`", line)
  for number, part in enumerate(parts):
    if number % 2:
      joined = parts[number + 1][:1].isalnum()  # the plural of a name
      parts[number] = f"``{part}``" + ("\\ " if joined else "")
    else:
      parts[number] = re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part)
  return "".join(parts)


def _redirect(app, error):
  """The folder's own page leads to the first of the site."""
  if error is None and app.builder.format == "html":
    target = f"{root_doc}.html"
    (pathlib.Path(app.outdir) / "index.html").write_text(
      f'<meta charset="utf-8"><title>{project}</title>'
      f'<meta http-equiv="refresh" content="0; url={target}">'
      f'<a href="{target}">{project}</a>\n'
    )
