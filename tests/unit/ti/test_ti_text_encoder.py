import pytest
import torch

from frostline.errors import CheckpointError, ConfigError, StepError
from frostline.systems.ti.prompts import Slot, substitute
from frostline.systems.ti.text_encoder import PromptFeatures, TextEncoder, load_text_encoder
from ti_text_parts import WIDTH, encoder, official, saved_encoder, t5, tokenizer

TEXTS = ("a photo of a <s>, on grass", "the red <s>", "<s> on the <s>")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(saved_encoder(tmp_path_factory.mktemp("t5")))


def prompts_of(coder, texts=TEXTS):
    return [coder.rewrite(text, [Slot("<s>", "dog", 1)]) for text in texts]


def test_trimmed_features_are_the_padded_ones():
    coder = encoder()
    prompts = prompts_of(coder)
    kv, lens, ends, longest = coder.encode(prompts).official()
    expected = official([prompt.text for prompt in prompts])
    torch.testing.assert_close(kv, expected[0], atol=1e-5, rtol=0)
    assert (lens, ends.tolist(), longest) == (expected[1], expected[2].tolist(), expected[3])
    assert not kv.requires_grad and kv.dtype == torch.float32


def test_features_do_not_depend_on_the_batch_or_on_autocast():
    coder = encoder()
    prompts = prompts_of(coder)
    together = coder.encode(prompts).split()
    with torch.autocast("cpu", torch.bfloat16):
        alone = [coder.encode([prompt]).features for prompt in prompts]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_directory_is_loaded_when_it_is_needed_and_let_go(directory):
    coder = load_text_encoder(directory)
    prompts = prompts_of(coder)
    assert (coder.width, coder.is_loaded) == (WIDTH, False)
    found = coder.encode(prompts)
    assert torch.equal(found.features, encoder().encode(prompts).features)
    assert not any(parameter.requires_grad for parameter in coder.model.parameters())
    coder.release_()
    assert not coder.is_loaded
    assert torch.equal(coder.encode(prompts).features, found.features)


def test_every_prompt_is_encoded_once_also_by_the_next_run(directory, tmp_path, monkeypatch):
    calls = []
    encode = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, ps: calls.extend(p.text for p in ps) or encode(self, ps))
    coder = load_text_encoder(directory)
    prompts = prompts_of(coder)
    features = PromptFeatures(coder, prompts, directory=tmp_path)
    first = features.fetch([2, 0, 2])
    assert first.lengths == (5, 9, 5) and len(calls) == 3
    features.fill_()
    assert sorted(calls) == sorted([*(prompt.text for prompt in prompts), prompts[2].text])
    assert not coder.is_loaded
    assert torch.equal(first.features, encode(coder, [prompts[number] for number in (2, 0, 2)]).features)

    calls.clear()
    again = load_text_encoder(directory)
    assert torch.equal(PromptFeatures(again, prompts, directory=tmp_path).fetch([2, 0, 2]).features, first.features)
    assert not calls and not again.is_loaded
    assert len(list(tmp_path.iterdir())) == 1
    PromptFeatures(load_text_encoder(directory), prompts[:2], directory=tmp_path).fetch([0])
    PromptFeatures(load_text_encoder(directory, dtype=torch.bfloat16), prompts, directory=tmp_path).fetch([0])
    assert len(list(tmp_path.iterdir())) == 3 and len(calls) == 2


def test_another_model_has_another_identity(directory, tmp_path):
    saved_encoder(tmp_path)
    same = load_text_encoder(str(tmp_path)).identity
    assert same == load_text_encoder(directory).identity
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    assert load_text_encoder(str(tmp_path)).identity != same


def test_concepts_go_into_what_was_cached_and_leave_it_alone(tmp_path):
    coder = encoder()
    concept = coder.new_concept("<s>", carrier="dog")
    prompts = prompts_of(coder)
    features = PromptFeatures(coder, prompts, directory=tmp_path)
    features.fill_()
    kept = features.fetch([0, 1, 2]).features
    for _ in range(3):
        found = substitute(features.fetch([0, 1, 2]), prompts, [concept])
        found.features.square().sum().backward()
        found.features.detach().zero_()
    assert torch.equal(features.fetch([0, 1, 2]).features, kept)


def test_a_concept_starts_as_its_carriers_rows():
    coder = encoder()
    concept = coder.new_concept("<s>", carrier="dog")
    assert torch.equal(concept.vectors[0].detach(), coder.encode(prompts_of(coder, ["a photo of a <s>"])).features[4])
    two = coder.new_concept("<toy>", carrier="teapot", num_vectors=4)
    prompt = coder.rewrite("a photo of a <toy>", [two])
    assert prompt.text == "a photo of a teapot teapot"
    assert torch.equal(two.vectors.detach(), coder.encode([prompt]).features[4:8])
    inner = coder.new_concept("<i>", carrier="teapot", num_vectors=2, space="t5-input")
    ids = tokenizer()("teapot").input_ids[:-1]
    assert torch.equal(inner.vectors.detach(), t5().get_input_embeddings().weight[ids].detach())


def test_before_t5_a_concept_reads_as_its_carrier_and_learns_through_the_encoder():
    coder = encoder()
    inner = coder.new_concept("<i>", carrier="dog", space="t5-input")
    texts = [text.replace("<s>", "<i>") for text in TEXTS]
    prompts = [coder.rewrite(text, [inner]) for text in texts]
    found = coder.encode_through(prompts, [inner])
    torch.testing.assert_close(found.features, coder.encode(prompts_of(coder)).features, atol=1e-5, rtol=0)

    weights = torch.randn(found.features.shape, generator=torch.Generator().manual_seed(0))

    def value(vectors):
        with torch.no_grad():
            kept = inner.vectors.clone()
            inner.vectors.copy_(vectors)
            result = (coder.encode_through(prompts, [inner]).features.double() * weights).sum().item()
            inner.vectors.copy_(kept)
        return result

    (found.features * weights).sum().backward()
    direction = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    step = 1e-2 * direction / direction.norm()
    difference = (value(inner.vectors + step) - value(inner.vectors - step)) / 2
    assert (inner.vectors.grad * step).sum().item() == pytest.approx(difference, rel=2e-2)
    assert all(parameter.grad is None for parameter in coder.model.parameters())


def test_both_spaces_meet_in_one_prompt():
    coder = encoder()
    inner = coder.new_concept("<i>", carrier="cat", space="t5-input")
    outer = coder.new_concept("<s>", carrier="dog")
    prompts = [coder.rewrite("a <s> on a <i>", [inner, outer])]
    through = coder.encode_through(prompts, [inner, outer])
    found = substitute(through, prompts, [inner, outer])
    assert torch.equal(found.features[1], outer.vectors[0])
    found.features.square().sum().backward()
    assert inner.vectors.grad.abs().sum() > 0
    torch.testing.assert_close(outer.vectors.grad, 2 * outer.vectors)


def test_what_would_cut_the_gradient_is_refused():
    coder = encoder()
    inner = coder.new_concept("<i>", carrier="cat", space="t5-input")
    prompts = [coder.rewrite("a <i>", [inner])]
    with pytest.raises(StepError, match="<i> lives before the text encoder"):
        coder.encode(prompts)
    with pytest.raises(StepError, match="encode_through at every step"):
        PromptFeatures(coder, prompts)


def test_what_cannot_be_loaded_is_one_error(directory, tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        load_text_encoder(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="cannot load a T5 encoder from"):
        load_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(ConfigError, match="its model_type is 'bart'") as error:
        load_text_encoder(str(tmp_path))
    assert "google/flan-t5-xl" in str(error.value)
    saved_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot load a T5 encoder from"):
        load_text_encoder(str(tmp_path)).model  # noqa: B018
    with pytest.raises(ConfigError, match="cannot load a T5 encoder from 'frostline/not-a-model'"):
        load_text_encoder("frostline/not-a-model")


def test_a_damaged_cache_is_refused(tmp_path):
    coder = encoder()
    prompts = prompts_of(coder)
    PromptFeatures(coder, prompts, directory=tmp_path).fill_()
    next(tmp_path.iterdir()).write_bytes(b"0" * 100)
    with pytest.raises(CheckpointError, match="is not a feature cache"):
        PromptFeatures(coder, prompts, directory=tmp_path)
