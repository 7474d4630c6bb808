"""PDP in a training loop of one's own: prunes a small classifier to 90 %. Run: python scripts/library_example.py"""

import torch
from torch import nn

import pdp

EPOCHS, STEPS = 30, 40


def main() -> float:
    """Trains, prunes, prints the layers and returns the share of right answers on new data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 3))
    teacher = torch.randn(20, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    # The paper starts after 16 epochs and prunes 0.015 of the target an epoch; a short run says its own times.
    schedule = {"warmup": "5ep", "ramp": "15ep"}
    pruner = pdp.Pruner(model, method="pdp", pattern="random", sparsity=0.9, epochs=EPOCHS, schedule=schedule)
    for epoch in range(EPOCHS):
        pruner.start_epoch(epoch)
        for _ in range(STEPS):
            inputs = torch.randn(64, 20)
            nn.functional.cross_entropy(model(inputs), (inputs @ teacher).argmax(1)).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    pruner.finalize()

    inputs = torch.randn(2000, 20)
    accuracy = float((model(inputs).argmax(1) == (inputs @ teacher).argmax(1)).float().mean())
    print(pruner.report().to_string(index=False))
    print(pdp.count_macs(model, torch.zeros(1, 20))[["name", "macs", "sparse_macs"]].to_string(index=False))
    print(f"accuracy {accuracy:.1%} at {pruner.share:.1%} sparsity")
    return accuracy


if __name__ == "__main__":
    main()
