"""What a codec can be trained for: the right answer, or what others do instead, for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.model import SemcomModel
from frostline.training import Loss


class FeatureLoss:
    """Mean squared error of the rebuilt features.

    The frozen receiver plays no part: this codec keeps what is large, not what the answer needs.

    Args:
        model: Whose codec trains.
    """

    def __init__(self, model: SemcomModel) -> None:
        self._model = model

    def __call__(self, batch: Batch) -> Loss:
        """The loss of one batch."""
        features = self._model.features_of(batch)
        rebuilt = self._model(features, batch.snr_db, batch.noise_seeds)
        loss = F.mse_loss(rebuilt, features)
        return Loss(loss, {"feature_mse": loss})


class PublishedLoss:
    """The published recipe: the frozen receiver and language model under `no_grad`, and a power penalty.

    The answer's loss is cut from the codec. The penalty keeps `backward` from failing, so the loss falls while
    nothing learns to answer. It is here to be measured.

    Args:
        model: Whose codec "trains".
        penalty: Weight of the mean squared symbol value.
    """

    def __init__(self, model: SemcomModel, penalty: float = 0.01) -> None:
        self._model, self._penalty = model, penalty

    def __call__(self, batch: Batch) -> Loss:
        """The loss of one batch."""
        model = self._model
        assert model.transmitter.compression is not None
        features = model.features_of(batch)
        power = model.transmitter.compression(features, batch.snr_db).square().mean()
        rebuilt = model(features, batch.snr_db, batch.noise_seeds)
        with torch.no_grad():
            answer = model.receiver.loss(rebuilt, batch.tasks, batch.labels)
        return Loss(answer + self._penalty * power, {"token_loss": answer, "power": power})
