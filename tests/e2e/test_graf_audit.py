"""`frostline audit graf` is silent, and finds each published fault when it is put back."""

from dataclasses import replace

import pytest
import torch

from frostline.cli.main import main
from frostline.records import AuditReport, from_json
from frostline.systems.graf import Generator, objective

SMALL = """
name: graf
data: {num_images: 16, num_test: 8}
system:
  camera: {image_size: 8}
  field: {depth: 2, width: 16, skip_layer: 0, point_frequencies: 2, direction_frequencies: 0, latent_size: 4,
    class_size: 4, mapping_width: 8}
  rendering: {num_samples: 4, chunk_rays: 128}
  ccsr: {latent_size: 4, width: 4, num_views: 4}
  discriminator: {channels: 4, max_channels: 8}
training: {batch_size: 4}
"""
COARSE = ("--system.rendering.coarse", "own", "--system.rendering.num-importance", "4")


@pytest.fixture
def audited(tmp_path, capsys):
    """The findings of `frostline audit` by code, and its exit code."""

    def audit(*words):
        path = tmp_path / "small.yaml"
        path.write_text(SMALL)
        code = main(["audit", str(path), *words, "--json"])
        report = from_json(capsys.readouterr().out)
        assert isinstance(report, AuditReport)
        return code, {finding.code: finding for finding in report.findings}

    return audit


@pytest.mark.parametrize("loss", ["adversarial", "consistency"])
@pytest.mark.parametrize("words", [(), (*COARSE, "--system.rendering.chunk-rays", "0")])
def test_nothing_is_found_in_graf(audited, words, loss):
    assert audited(*words, "--system.ccsr.loss", loss) == (0, {})


@pytest.mark.parametrize(
    ("loss", "who"), [("adversarial", "'generator.*' ("), ("consistency", "'generator.superres.*' (")]
)
def test_re_attached_super_resolution_is_found(audited, monkeypatch, loss, who):
    whole = Generator.super_resolve

    def re_attached(self, images, poses):
        with torch.no_grad():
            result = whole(self, images, poses)
        return result.requires_grad_(True) if torch.is_grad_enabled() else result

    monkeypatch.setattr(Generator, "super_resolve", re_attached)
    code, found = audited("--system.ccsr.loss", loss)
    assert code == 1 and set(found) == {"FL107"}
    assert found["FL107"].what.startswith(who) and "re-attached" in str(found["FL107"])


@pytest.mark.parametrize("recompute", ["none", "deferred"])
def test_a_coarse_field_that_no_loss_reads_is_found_in_bytes(audited, monkeypatch, recompute):
    """The published code returns the coarse picture among its extras; a loss that reads it there is what is missing."""
    rendered, extras = Generator.forward, {}

    def forward(self, draw, **options):
        rendering = rendered(self, draw, **options | {"read_coarse": True})
        extras["coarse"] = rendering.coarse
        return replace(rendering, coarse=None)

    monkeypatch.setattr(Generator, "forward", forward)
    code, found = audited(*COARSE, "--system.rendering.chunk-rays", "0", "--system.rendering.recompute", recompute)
    assert code == 1 and "'generator.coarse_field.*'" in found["FL101"].what
    dead = found["FL512"]
    assert "'generator.coarse_field.*'" in dead.what
    # 4 images of 64 rays of 4 samples: two layers' values and their modulation, of 16 and of 8 numbers, at least.
    samples = 4 * 64 * 4
    assert samples * (16 + 16) * 2 * 4 < dead.num_bytes < samples * (16 + 16 + 8 + 63) * 4 * 4
    assert f"{dead.num_bytes / 2**10:.1f} KiB" in dead.what


def test_a_penalty_averaged_over_rays_is_found(audited, monkeypatch):
    """A row is a ray there, and the published penalty was a mean over rows."""

    def published(score, images):
        rays = images.detach().permute(0, 2, 3, 1).reshape(-1, 3).requires_grad_()
        scores = score(rays.view(len(images), *images.shape[2:], 3).permute(0, 3, 1, 2))
        (gradient,) = torch.autograd.grad(scores.sum(), rays, create_graph=True)
        return gradient.pow(2).reshape(len(rays), -1).sum(1).mean()

    monkeypatch.setattr(objective, "r1_penalty", published)
    code, found = audited()
    assert code == 1 and set(found) == {"FL404"}
    assert "a mean over 1,024 rows, and the gradient is of 4 outputs: 256 rows" in found["FL404"].what
    assert {place.role for place in found["FL404"].places} == {"averaged", "gradient"}
