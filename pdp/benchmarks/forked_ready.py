"""Imported by the server that forks short runs: everything that such a run imports, and nothing that starts threads."""

from __future__ import annotations

from pdp.importing import uncollected

with uncollected():
    import timm.utils  # noqa: F401
    import torch
    import transformers.models.bert.modeling_bert
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import pdp.kernels.cpu
    import pdp.reports.run_figures  # noqa: F401
    import pdp.tasks.image_data
    import pdp.training.run  # noqa: F401

torch.set_num_threads(1)
pdp.kernels.cpu.found_groups(), pdp.kernels.cpu.found_units()  # compiled once for all runs
pdp.tasks.image_data.read_digits()
