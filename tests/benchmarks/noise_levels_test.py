"""The captions of the noise levels fit their scenes."""

from benchmarks import noise_levels


def test_examples_are_captions_of_their_scenes():
  for scene, caption in noise_levels._examples(5):
    assert len(scene.blocks) == 2
    assert caption.category == "colour_attribution"
    assert noise_levels.captions.fits(caption, scene)
