import pytest
import torch

from frostline.errors import ConfigError, DataError, ShapeError
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.prompts import Slot, rewrite, substitute
from ti_text_parts import WIDTH, encoder, tokenizer

DOG, CAT = Slot("<s>", "dog", 1), Slot("<my-cat>", "cat", 3)
TOY = Slot("<toy>", "teapot", 2)


def words(prompt):
    return [token.removeprefix("▁") for token in tokenizer().convert_ids_to_tokens(list(prompt.ids))]


def test_carriers_fill_exactly_the_positions_of_their_vectors():
    prompt = rewrite("a <s>, a <my-cat> on the <toy>.", tokenizer(), [DOG, CAT, TOY])
    assert prompt.text == "a dog, a cat cat cat on the teapot."
    assert words(prompt) == ["a", "dog", ",", "a", "cat", "cat", "cat", "on", "the", "tea", "pot", ".", "</s>"]
    assert [(span.concept, span.start, span.length) for span in prompt.spans] == [
        ("<s>", 1, 1),
        ("<my-cat>", 4, 3),
        ("<toy>", 9, 2),
    ]


@pytest.mark.parametrize("text", ["<s>", "a <s>", "<s> a", "a  <s>  a", "<s>, <s>", "the red <s>'s toy"])
def test_anyone_who_tokenizes_the_text_gets_the_same_tokens(text):
    prompt = rewrite(text, tokenizer(), [DOG])
    assert prompt.ids == tuple(tokenizer()(prompt.text).input_ids)
    assert all(words(prompt)[span.start] == "dog" for span in prompt.spans)
    assert len(prompt.spans) == text.count("<s>")


def test_a_prompt_without_placeholders_is_left_alone_where_none_is_required():
    prompt = rewrite("a photo of a dog", tokenizer(), [DOG], required=False)
    assert prompt.text == "a photo of a dog" and prompt.spans == ()


@pytest.mark.parametrize(
    ("text", "concepts", "words"),
    [
        ("a photo of a dog", [DOG], "has none of the placeholders <s>"),
        ("a <S>", [DOG], "no concept is named <S>"),
        ("a re<s>", [DOG], "does not fill its 1 positions"),
        ("a <toy>", [Slot("<toy>", "teapot", 3)], "'teapot' has 2 tokens: it cannot fill 3 positions"),
        ("a <toy>", [Slot("<toy>", "teapot", 1)], "take 2 vectors, or a multiple"),
        ("a <toy>", [Slot("<toy>", "täpot", 4)], "does not know the carrier 'täpot'"),
        ("a photo of the red <s>", [DOG], "7 tokens, the model reads 6: <s> would be cut off"),
        ("<s> on the red red grass", [DOG], "7 tokens, the model reads 6: its end would be cut off"),
    ],
)
def test_a_placeholder_that_would_not_train_is_refused(text, concepts, words):
    with pytest.raises(DataError) as error:
        rewrite(text, tokenizer(), concepts, max_tokens=6)
    assert words in str(error.value)
    assert "\n  do     " in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Slot("s", "dog", 1), "'s' is no placeholder"),
        (lambda: Slot("<a b>", "dog", 1), "no placeholder"),
        (lambda: Slot("<s>", " ", 1), "is no carrier"),
        (lambda: Slot("<s>", "<t>", 1), "is no carrier"),
        (lambda: Slot("<s>", "dog", 0), "0 vectors"),
        (lambda: Slot("<s>", "dog", 1, "clip"), "lives in 'clip'"),
        (lambda: rewrite("<s>", tokenizer(), [DOG, Slot("<s>", "cat", 1)]), "two concepts are named <s>"),
        (lambda: rewrite("<s>", object(), [DOG]), "does not say where its tokens come from"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def concept(name="<s>", num=1, seed=0, width=WIDTH, **settings):
    rows = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    return Concept(name, rows, carrier="dog" if name == "<s>" else "cat", **settings)


def two_prompts(concepts):
    return [rewrite(text, tokenizer(), concepts) for text in ("a <s> on a <my-cat>", "the red <s>, a <s>")]


def test_vectors_take_their_rows_and_nothing_else_changes():
    s, cat = concept(), concept("<my-cat>", 3, 1)
    prompts = two_prompts([s, cat])
    features = encoder().encode(prompts)
    before = features.features.clone()
    found = substitute(features, prompts, [s, cat])
    assert torch.equal(features.features, before)
    assert found.lengths == features.lengths
    expected = before.clone()
    first = features.lengths[0]
    expected[[1, first + 2, first + 5]] = s.vectors.detach()
    expected[4:7] = cat.vectors.detach()
    assert torch.equal(found.features.detach(), expected)


def test_the_gradient_of_a_vector_is_the_sum_over_its_places():
    s, cat = concept(), concept("<my-cat>", 3, 1)
    prompts = two_prompts([s, cat])
    features = encoder().encode(prompts)
    weights = torch.randint(-9, 9, features.features.shape).float()  # sums of whole numbers are exact
    (substitute(features, prompts, [s, cat]).features * weights).sum().backward()
    first = features.lengths[0]
    assert torch.equal(s.vectors.grad[0], weights[1] + weights[first + 2] + weights[first + 5])
    assert torch.equal(cat.vectors.grad, weights[4:7])


def test_the_official_tuple_comes_and_goes():
    s, cat = concept(), concept("<my-cat>", 3, 1)
    prompts = two_prompts([s, cat])
    features = encoder().encode(prompts)
    again = CompactText.from_official(features.official())
    assert torch.equal(substitute(again, prompts, [s, cat]).features, substitute(features, prompts, [s, cat]).features)


def test_what_does_not_fit_is_refused():
    s, cat = concept(), concept("<my-cat>", 3, 1)
    prompts = two_prompts([s, cat])
    features = encoder().encode(prompts)
    with pytest.raises(ShapeError, match="prompts of these features"):
        substitute(features, prompts[:1], [s, cat])
    with pytest.raises(ShapeError, match="features of prompt 0") as error:
        substitute(features, prompts[::-1], [s, cat])
    assert "change it no more" in str(error.value)
    with pytest.raises(DataError, match="names <my-cat>, which is not given"):
        substitute(features, prompts, [s])
    with pytest.raises(ShapeError, match="vectors of <s>"):
        substitute(features, prompts, [concept(width=32), cat])
    with pytest.raises(ShapeError, match="vectors of <my-cat>"):
        substitute(features, prompts, [s, concept("<my-cat>", 2)])
