import pytest

from saw_jax.tasks import make_tokenizer


@pytest.mark.parametrize(
  "path", make_tokenizer.VOCABULARIES, ids=lambda path: path.stem
)
def test_making_it_again_gives_the_same_bytes(path):
  pytest.importorskip("tokenizers")
  texts, vocab_size, pattern = make_tokenizer.VOCABULARIES[path]
  again = make_tokenizer.train_bpe(texts(), vocab_size, pattern)
  assert path.read_text(encoding="utf-8") == again
