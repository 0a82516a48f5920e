"""A frozen transformer teaches a GRU; a wrapper puts both into train mode."""

import torch
from torch import nn

torch.manual_seed(0)
student = nn.GRU(16, 16, batch_first=True)
teacher = nn.ModuleList([nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)])
teacher.requires_grad_(False)


class Distiller:
    def __init__(self, student, teacher):
        self.student, self.teacher = student, teacher
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)

    def train(self):
        for net in (self.student, self.teacher):
            net.train()  # <- FL302

    @torch.no_grad()
    def target(self, x):
        embed, layer = self.teacher
        return layer(embed(x))  # <- FL302

    def step(self, x):
        self.train()
        self.optimizer.zero_grad()
        output, _ = self.student(x)
        loss = nn.functional.mse_loss(output, self.target(x).tanh())
        loss.backward()
        self.optimizer.step()


distiller = Distiller(student, teacher)
for x in torch.randn(4, 8, 5, 16):
    distiller.step(x)
