import pytest

from experiments import make_vocabularies


@pytest.mark.parametrize(
  "path", make_vocabularies.VOCABULARIES, ids=lambda path: path.stem
)
def test_making_it_again_gives_the_same_bytes(path):
  pytest.importorskip("tokenizers")
  texts, vocab_size, pattern = make_vocabularies.VOCABULARIES[path]
  again = make_vocabularies.train_bpe(texts(), vocab_size, pattern)
  assert path.read_text(encoding="utf-8") == again
