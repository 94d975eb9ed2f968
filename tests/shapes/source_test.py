"""Options of the source: a split's scenes by count, size of their objects, and words of their prompts."""

from tests import opened


def _open(tmp_path, path, example, **options):
  return opened.source("shapes", path, example=example, render=str(tmp_path), index=str(tmp_path / "i"),
                       **options)


def test_objects_have_the_chosen_size(tmp_path):
  large = _open(tmp_path, "test", "understand", count=6, sizes=("large",))
  turns = [large[i].parts["turns"] for i in range(len(large))]
  assert len(turns) == 6
  assert all(b'"large"' in t and b'"small"' not in t for t in turns)


def test_prompts_are_templates_unless_paraphrased(tmp_path):
  plain = _open(tmp_path, "test", "t2i", count=5)
  paraphrased = _open(tmp_path, "test", "t2i", count=5, paraphrased=True)
  assert len(plain) == len(paraphrased) == 5
  assert paraphrased[0].parts["text"].startswith(b"please draw a")
  assert not plain[0].parts["text"].startswith(b"please")
  assert len(_open(tmp_path, "unseen", "t2i", paraphrased=True)) == 256
