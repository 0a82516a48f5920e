from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.systems.graf.config import FieldConfig
from frostline.systems.graf.field import Field, encode
from frostline.systems.graf.reference import PlainField
from graf_parts import SMALL


def build(**keys):
    torch.manual_seed(0)
    sizes = {name: getattr(SMALL.field, name) for name in FieldConfig.__dataclass_fields__}
    return Field(FieldConfig(**{**sizes, **keys})).double()


def asked(field, latents, classes):
    torch.manual_seed(1)
    points, directions = torch.randn(2, 3, 4, 3).double(), torch.randn(2, 3, 3).double()
    return field(points, directions, field.styles(latents, classes))


LATENTS = torch.randn(2, 6, generator=torch.Generator().manual_seed(5)).double()


def test_the_encoding_by_hand():
    encoded = encode(torch.tensor([[0.5, -1.0, 2.0]]).double(), 2)
    expected = [0.5, -1, 2, *map(math.sin, (0.5, -1, 2, 1, -2, 4)), *map(math.cos, (0.5, -1, 2, 1, -2, 4))]
    assert encoded[0].tolist() == pytest.approx(expected)
    assert torch.equal(encode(encoded, 0), encoded)


@pytest.mark.parametrize("conditioning", ["film", "adaln"])
def test_latent_code_and_class_reach_every_layer(conditioning):
    """Each layer's output moves with each of them, even where all layers before it are told to stand still."""
    field = build(conditioning=conditioning)
    seen = {}
    modulated = field.layer

    def record(inputs, scale, shift):
        seen[len(seen)] = modulated([(linear, values * 0 + 1) for linear, values in inputs], scale, shift)
        return modulated(inputs, scale, shift)

    field.layer = record
    outputs = []
    for latents, classes in ((LATENTS, [0, 1]), (LATENTS + 1, [0, 1]), (LATENTS, [2, 3])):
        seen.clear()
        asked(field, latents, torch.tensor(classes))
        outputs.append(dict(seen))
    plain, other_latents, other_classes = outputs
    assert len(plain) == field.config.depth + 1
    for layer, values in plain.items():
        assert not torch.allclose(values, other_latents[layer])
        assert not torch.allclose(values, other_classes[layer])


def test_one_images_class_changes_that_image_alone():
    field = build()
    before, after = (asked(field, LATENTS, torch.tensor([0, other])) for other in (1, 2))
    assert torch.equal(before.colour[0], after.colour[0]) and torch.equal(before.density[0], after.density[0])
    assert not torch.allclose(before.colour[1], after.colour[1])
    assert not torch.allclose(before.density[1], after.density[1])


@pytest.mark.parametrize("conditioning", ["film", "adaln"])
def test_the_field_against_its_definition(conditioning):
    field = build(conditioning=conditioning)
    torch.manual_seed(1)
    points, directions = torch.randn(2, 3, 4, 3).double(), torch.randn(2, 3, 3).double()
    classes = torch.tensor([3, 1])
    found = field(points, directions, field.styles(LATENTS, classes))
    for image in range(2):
        flat = field.mapping(torch.cat([LATENTS[image], field.classes.weight[classes[image]]]))
        scales, shifts = (part.split(field.widths) for part in flat.chunk(2))

        def layer(values, at, scales=scales, shifts=shifts):
            if conditioning == "adaln":
                centred = values - values.mean(-1, keepdim=True)
                values = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return nn.functional.leaky_relu(values * (1 + scales[at]) + shifts[at], 0.2)

        for ray in range(3):
            where = encode(points[image, ray], field.config.point_frequencies)
            hidden = where
            for at, linear in enumerate(field.layers):
                skipped = field.skip(where) if at == field.config.skip_layer else 0
                hidden = layer(linear(hidden) + skipped, at)
            whither = field.direction(encode(directions[image, ray], field.config.direction_frequencies))
            colour = field.colour(layer(field.feature(hidden) + whither, -1))
            torch.testing.assert_close(found.colour[image, ray], colour, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.density[image, ray], field.density(hidden)[:, 0], rtol=1e-10, atol=1e-12)


def test_density_does_not_depend_on_the_direction_and_colour_does():
    field = build()
    points, styles = torch.randn(2, 3, 4, 3).double(), field.styles(LATENTS, torch.tensor([0, 1]))
    one, other = (field(points, torch.randn(2, 3, 3).double(), styles) for _ in range(2))
    assert torch.equal(one.density, other.density) and not torch.allclose(one.colour, other.colour)


def test_every_parameter_trains_and_half_precision_is_close():
    field = build()
    matter = asked(field, LATENTS, torch.tensor([0, 1]))
    (matter.colour.sum() + matter.density.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in field.parameters())
    single = field.float()
    points, directions = torch.randn(2, 3, 4, 3), torch.randn(2, 3, 3)
    styles = single.styles(LATENTS.float(), torch.tensor([0, 1]))
    plain = single(points, directions, styles)
    single.precision = "bf16-mixed"
    half = single(points, directions, styles)
    assert half.colour.dtype == half.density.dtype == torch.float32
    assert not torch.equal(half.colour, plain.colour)
    torch.testing.assert_close(half.colour, plain.colour, rtol=0, atol=0.03)


def test_a_skip_layer_that_is_not_there():
    with pytest.raises(ConfigError, match=r"layer 3 of 3 has none behind it(.|\n)*at most 2"):
        build(skip_layer=3)
    assert build(skip_layer=0).skip is None


@pytest.mark.parametrize("conditioning", ["film", "adaln"])
def test_the_plain_field_has_the_same_values_and_gradients(conditioning):
    lean = build(conditioning=conditioning)
    plain = PlainField(lean.config).double()
    plain.load_state_dict(lean.state_dict())
    classes = torch.tensor([3, 1])
    gradients = []
    for field in (lean, plain):
        made = asked(field, LATENTS, classes)
        (made.colour.square().sum() + made.density.square().sum()).backward()
        gradients.append(dict(field.named_parameters()))
    for name, parameter in gradients[0].items():
        torch.testing.assert_close(parameter.grad, gradients[1][name].grad, rtol=1e-12, atol=1e-14)
