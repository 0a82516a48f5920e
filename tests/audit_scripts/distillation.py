"""Knowledge distillation: a small network learns from labels, softened logits and a hint of a frozen teacher."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class ConvNet(nn.Module):
    def __init__(self, width, num_classes, dropout=0.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        features = self.body(self.stem(x))
        return self.classifier(self.dropout(features.mean((2, 3)))), features


class DistillationLoss(nn.Module):
    def __init__(self, temperature, alpha):
        super().__init__()
        self.temperature, self.alpha = temperature, alpha

    def forward(self, student_logits, teacher_logits, targets):
        t = self.temperature
        soft = F.kl_div(
            F.log_softmax(student_logits / t, dim=1),
            F.log_softmax(teacher_logits / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self.alpha * t * t * soft + (1 - self.alpha) * F.cross_entropy(student_logits, targets)


def fit_teacher(teacher, loader, epochs):
    optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    teacher.train()
    for _ in range(epochs):
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(teacher(images)[0], targets).backward()
            optimizer.step()
    teacher.eval()
    for p in teacher.parameters():
        p.requires_grad = False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--teacher-epochs", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--hint", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    targets = torch.randint(4, (96,))
    prototypes = torch.randn(4, 1, 10, 10)
    data = TensorDataset(prototypes[targets] + 0.7 * torch.randn(96, 1, 10, 10), targets)
    loader = DataLoader(data, batch_size=16, shuffle=True)

    teacher = ConvNet(16, 4, dropout=0.1)
    fit_teacher(teacher, loader, args.teacher_epochs)
    student = ConvNet(4, 4)
    regressor = nn.Conv2d(8, 32, 1)  # the student's features to the teacher's width
    optimizer = torch.optim.SGD([*student.parameters(), *regressor.parameters()], lr=0.05, momentum=0.9)
    criterion = DistillationLoss(args.temperature, args.alpha)
    for epoch in range(args.epochs):
        student.train()
        losses = []
        for images, labels in loader:
            with torch.no_grad():
                teacher_logits, teacher_features = teacher(images)
            student_logits, student_features = student(images)
            kd_loss = criterion(student_logits, teacher_logits, labels)
            hint_loss = F.mse_loss(regressor(student_features), teacher_features)
            loss = kd_loss + args.hint * hint_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        student.eval()
        with torch.inference_mode():
            hits = sum((student(images)[0].argmax(1) == labels).sum().item() for images, labels in loader)
        print(f"epoch {epoch} loss {sum(losses) / len(losses):.4f} accuracy {hits / len(data):.2f}")


if __name__ == "__main__":
    main()
