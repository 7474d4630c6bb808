"""A model of the tests' own whose training steps take their time where Slurm runs it, and wait instead of computing.

So a run can be met in the middle, on a fast machine as on a busy one, and costs little; its weights are those of a run
that nothing delays.
"""

import os
import time

from torch import Tensor

from pdp.tasks.resnet20 import ResNet20


class Slowed(ResNet20):
    """ResNet-20; each forward pass in training lasts `seconds` longer."""

    def __init__(self, num_classes: int, seconds: float):
        super().__init__(num_classes)
        self.seconds = seconds

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the logits, (N, num_classes)."""
        if self.training and "SLURM_JOB_ID" in os.environ:
            time.sleep(self.seconds)
        return super().forward(images)
