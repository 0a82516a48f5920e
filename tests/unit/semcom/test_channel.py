import math

import pytest
import torch
from scipy import stats

from frostline.errors import ConfigError, ShapeError
from frostline.systems.semcom.channel import Channel, Realisation, real_values, unit_power

SNRS_DB = (-6.0, 0.0, 6.0, 15.0)


def symbols_of(num_samples, num_symbols, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return unit_power(torch.randn(num_samples, 2 * num_symbols, generator=generator, dtype=dtype))[0]


@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_awgn_has_the_snr_that_was_asked_for(snr_db):
    sent = symbols_of(8, 20_000, dtype=torch.float32)
    realisation = Realisation.draw(sent.shape, range(8))
    received = Channel("awgn")(sent, torch.full((8,), snr_db), realisation)
    noise_power = (received - sent).abs().square().mean()
    measured = 10 * torch.log10(sent.abs().square().mean() / noise_power)
    assert measured.item() == pytest.approx(snr_db, abs=0.1)


def test_every_sample_has_its_own_snr():
    sent, snr_db = symbols_of(4, 40_000), torch.tensor(SNRS_DB)
    received = Channel("awgn")(sent, snr_db, Realisation.draw(sent.shape, range(4)))
    measured = -10 * torch.log10((received - sent).abs().square().mean(1))
    assert measured.tolist() == pytest.approx(snr_db.tolist(), abs=0.1)


def test_noise_is_circular_and_white():
    noise = Realisation.draw((4, 50_000), range(4)).noise
    real, imaginary = noise.real.flatten(), noise.imag.flatten()
    assert real.var().item() == pytest.approx(0.5, rel=0.02)
    assert imaginary.var().item() == pytest.approx(0.5, rel=0.02)
    assert (real * imaginary).mean().abs() < 0.01
    assert (noise[:, 1:] * noise[:, :-1].conj()).mean().abs() < 0.01
    assert stats.kstest(real.numpy(), "norm", (0, 0.5**0.5)).pvalue > 0.001


def test_rayleigh_gains_have_mean_power_1_an_exponential_law_and_any_phase():
    gain = Realisation.draw((20_000, 1), range(20_000)).gain
    power = gain.abs().square().numpy()
    assert power.mean() == pytest.approx(1.0, abs=0.03)
    assert stats.kstest(power, "expon").pvalue > 0.001
    assert stats.kstest(gain.angle().numpy(), "uniform", (-math.pi, 2 * math.pi)).pvalue > 0.001


def test_rayleigh_is_the_closed_form_of_mmse_with_one_gain_a_sample():
    sent, snr_db = symbols_of(3, 12).view(3, 4, 3), torch.tensor([-6.0, 3.0, 10.0], dtype=torch.float64)
    drawn = Realisation.draw(sent.shape, (5, 6, 7))
    realisation = Realisation(drawn.noise.to(torch.complex128), drawn.gain.to(torch.complex128))
    received = Channel("rayleigh")(sent, snr_db, realisation)
    for row in range(3):
        h, noise_power = complex(realisation.gain[row]), 10 ** (-snr_db[row].item() / 10)
        faded = h * sent[row] + noise_power**0.5 * realisation.noise[row]
        expected = h.conjugate() * faded / (abs(h) ** 2 + noise_power)
        assert torch.allclose(received[row], expected, rtol=1e-12, atol=1e-14)


def test_the_equaliser_s_error_is_that_of_mmse():
    generator = torch.Generator().manual_seed(0)
    sent = torch.randn(6, 100_000, generator=generator, dtype=torch.complex128)  # Gaussian: MMSE is linear
    snr_db = torch.full((6,), 3.0, dtype=torch.float64)
    realisation = Realisation.draw(sent.shape, range(6))
    received = Channel("rayleigh")(sent, snr_db, realisation)
    noise_power, power = 10**-0.3, realisation.gain.abs().square().double()
    error = (received - sent).abs().square().mean(1)
    assert error.tolist() == pytest.approx((noise_power / (power + noise_power)).tolist(), rel=0.02)
    for factor in (0.9, 1.1):  # no other scale does better
        assert ((received * factor - sent).abs().square().mean(1) > error).all()


def test_noiseless_is_the_identity():
    sent = symbols_of(2, 8)
    assert Channel("noiseless")(sent, torch.zeros(2)) is sent
    assert torch.equal(Channel("noiseless")(sent, torch.zeros(2), Realisation.draw(sent.shape, (1, 2))), sent)


def test_without_a_realisation_the_channel_draws_from_torch_s_generator():
    sent = symbols_of(2, 8)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = Channel("rayleigh")(sent, torch.zeros(2))
        again = Channel("rayleigh")(sent, torch.zeros(2))
        torch.manual_seed(3)
        assert torch.equal(first, Channel("rayleigh")(sent, torch.zeros(2)))
    assert not torch.equal(first, again)


def test_power_is_1_in_each_sample_whatever_its_neighbours_send():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 3, 8, generator=generator) * torch.tensor([1e-3, 1, 7, 1e4, 0.1])[:, None, None]
    symbols, amplitude = unit_power(values)
    assert torch.allclose(symbols.abs().square().mean((1, 2)), torch.ones(5))
    assert torch.allclose(real_values(symbols) * amplitude[:, None, None], values)
    for row in range(5):
        alone, amplitude_alone = unit_power(values[row : row + 1])
        assert torch.equal(alone[0], symbols[row])
        assert torch.equal(amplitude_alone[0], amplitude[row])


def test_half_precision_is_paired_in_float32():
    symbols, amplitude = unit_power(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).bfloat16())
    assert (symbols.dtype, amplitude.dtype) == (torch.complex64, torch.float32)
    assert unit_power(torch.randn(2, 4, dtype=torch.float64))[0].dtype == torch.complex128


def test_silence_has_no_power_and_no_nan_in_its_gradient():
    values = torch.zeros(2, 4, requires_grad=True)
    symbols, _ = unit_power(values)
    real_values(symbols).sum().backward()
    assert torch.equal(real_values(symbols), torch.zeros(2, 4))
    assert values.grad.isfinite().all()


def scale_derivative(kind, normalise):
    """|dL/dscale| / (|dL/dz| |z|) of a loss behind the channel, in float64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
    symbols = normalise(z)
    realisation = Realisation.draw(symbols.shape, range(4))
    received = Channel(kind)(symbols, torch.full((4,), 3.0, dtype=torch.float64), realisation)
    loss = (real_values(received) * weight).tanh().square().sum()
    (gradient,) = torch.autograd.grad(loss, z)
    along = (gradient * z).flatten(1).sum(1)  # dL/dscale of each sample
    return (along.abs() / (gradient.flatten(1).norm(dim=1) * z.flatten(1).norm(dim=1))).max().item()


def detached_power(z):
    values = torch.view_as_complex(z.unflatten(-1, (-1, 2)))
    return values / values.abs().square().mean((1, 2), keepdim=True).sqrt().detach()


@pytest.mark.parametrize("kind", ["noiseless", "awgn", "rayleigh"])
def test_the_power_is_in_the_graph_so_no_gradient_points_along_the_scale(kind):
    assert scale_derivative(kind, lambda z: unit_power(z)[0]) <= 1e-12
    assert scale_derivative(kind, detached_power) > 0.05, "this check could not fail"


def test_the_gradient_of_the_normalised_channel_is_right():
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    realisation = Realisation.draw((2, 3, 2), (1, 2))

    def sent(x):
        return real_values(Channel("rayleigh")(unit_power(x)[0], torch.tensor([0.0, 9.0]), realisation))

    assert torch.autograd.gradcheck(sent, values)


def test_realisations_depend_on_their_seeds_alone():
    seeds = (3, 1, 2**63 - 1, 0)
    together = Realisation.draw((4, 5, 2), seeds)
    for row, seed in enumerate(seeds):
        alone = Realisation.draw((1, 5, 2), (seed,))
        assert torch.equal(alone.noise[0], together.noise[row])
        assert torch.equal(alone.gain[0], together.gain[row])
    backwards = Realisation.draw((4, 5, 2), seeds[::-1])
    assert torch.equal(backwards.noise, together.noise.flip(0))
    assert len({complex(gain) for gain in together.gain}) == 4


def test_an_unknown_channel_is_refused():
    with pytest.raises(ConfigError) as raised:
        Channel("rician")  # type: ignore[arg-type]
    assert "rician" in raised.value.what
    assert raised.value.do == "choose noiseless, awgn or rayleigh"


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 5), (4,), ()])
def test_an_odd_number_of_values_is_refused_with_the_shape(shape):
    with pytest.raises(ShapeError) as raised:
        unit_power(torch.zeros(shape))
    assert raised.value.actual == shape
    assert "even" in str(raised.value)


def test_snr_and_noise_must_fit_the_symbols():
    sent = symbols_of(2, 4)
    with pytest.raises(ShapeError, match=r"snr_db must have shape \(2\), got \(1\)"):
        Channel("awgn")(sent, torch.zeros(1))
    with pytest.raises(ShapeError, match=r"the channel noise must have shape \(2, 4\), got \(2, 5\)"):
        Channel("awgn")(sent, torch.zeros(2), Realisation.draw((2, 5), (0, 1)))


@pytest.mark.filterwarnings("ignore")  # Sionna's own, at import
def test_sionna_agrees_about_awgn():
    channel = pytest.importorskip("sionna.phy.channel", reason="sionna-no-rt is not installed")
    sent = symbols_of(4, 50_000, dtype=torch.float32)
    for snr_db in SNRS_DB:
        theirs = channel.AWGN()(sent, 10 ** (-snr_db / 10)) - sent
        ours = Channel("awgn")(sent, torch.full((4,), snr_db), Realisation.draw(sent.shape, range(4))) - sent
        ratio_db = 10 * torch.log10(theirs.abs().square().mean() / ours.abs().square().mean())
        assert abs(ratio_db.item()) < 0.1
