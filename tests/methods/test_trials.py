"""Details of a step that this project once did differently from the methods' authors, computed from the formulas."""

import numpy as np
import pytest
import torch
from by_hand import close, extras, gradients_of, stored, two_layers
from test_optg import rate

from pdp import Pruner
from pdp.methods.revisions import CHANGES, REVISIONS, conditions, named, revision_of
from pdp.schedule.shapes import make_schedule


def test_movements_clipping_counts_the_scores_too():
    """max_grad_norm over all of the optimizer's parameters: scores take part in the norm, and are scaled by it."""
    model = two_layers()
    pruner = Pruner(model, "movement", sparsity=0.5, epochs=2, schedule={"name": "constant"}, score_lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner.attach(optimizer)
    pruner.start_epoch(0)
    keeps = [layer.state["keep"].numpy().astype(float) for layer in pruner.layers]
    weights = stored(model)
    upstream = gradients_of([w * k for w, k in zip(weights, keeps, strict=True)], 0)
    of_weights = [g * k for g, k in zip(upstream, keeps, strict=True)]
    of_scores = [g * w for g, w in zip(upstream, weights, strict=True)]
    norm = np.sqrt(sum((g**2).sum() for g in of_weights + of_scores))
    from by_hand import loss_of

    loss_of(model, 0).backward()
    pruner.after_backward()
    clipped = [*model.parameters(), *pruner.method.clipped()]
    assert float(torch.nn.utils.clip_grad_norm_(clipped, 0.1)) == pytest.approx(norm)
    before = extras(pruner)
    optimizer.step()
    assert close(
        stored(model), [w - 0.05 * 0.1 / norm * g for w, g in zip(weights, of_weights, strict=True)], rtol=1e-4
    )
    assert close(extras(pruner), [s - 0.1 * 0.1 / norm * g for s, g in zip(before, of_scores, strict=True)], rtol=1e-4)


@pytest.mark.parametrize("method", ["pdp", "gmp", "str", "optg", "cs"])
def test_others_clip_the_models_own_weights(method):
    model = two_layers()
    pruner = Pruner(model, method, sparsity=0.5, epochs=100)
    pruner.attach(torch.optim.SGD(model.parameters(), lr=0.05))
    assert pruner.method.clipped() == []


@pytest.mark.parametrize("epochs", [3, 12, 30, 100])
def test_optg_cuts_a_hundred_times_a_run_whatever_its_length(epochs):
    """As often as the authors' hundred epochs have it, and the share between two cuts never moves by half of it."""
    steps = 100
    schedule = make_schedule("sigmoid", epochs, unit="step", steps_per_epoch=steps)
    every = round(0.01 * epochs * steps)
    shares = [schedule.fraction(step, 0) for step in range(0, epochs * steps, every)]
    assert len(shares) == 100 and max(np.diff(shares)) < (0.04 if epochs < 30 else 0.3) and shares[-1] == 1
    assert shares[50] == pytest.approx(rate(epochs / 2, epochs))


@pytest.mark.parametrize("epochs", [3, 12, 100])
def test_rigl_updates_as_often_in_every_run(epochs):
    """100 of 32,000 steps, until 25,000 of them."""
    model = two_layers()
    pruner = Pruner(model, "rigl", sparsity=0.5, epochs=epochs, steps_per_epoch=320)
    plan = pruner.method.plan
    assert plan.steps_of(pruner.method.options.update_every, "x") == epochs
    assert plan.steps_of(pruner.method.options.end, "x") == round(0.78 * 320 * epochs)


def test_revisions_are_named_where_the_code_has_a_later_one():
    assert set(CHANGES) == set(REVISIONS)
    floor, clip = conditions(0.01, "pruned", None), conditions(0.0, "pruned", 1.0)
    assert conditions(0.0, "pruned", None) == () and conditions(None, None, None) == ()
    followed = conditions(None, None, None, "convnext_atto", "channel")
    assert revision_of("pdp", "channel", followed) == 3 and revision_of("dense", "channel", followed) == 1
    reordered = conditions(None, None, None, "convnext_atto", "channel", True)
    assert revision_of("pdp", "channel", reordered) == 4 and revision_of("dense", "channel", reordered) == 1
    assert revision_of("pdp", "channel", conditions(None, None, None, "resnet20", "channel", True)) == 1
    for model, pattern in (("resnet50", "channel"), ("bert_base", "channel"), ("convnext_atto", "random")):
        assert revision_of("pdp", pattern, conditions(None, None, None, model, pattern)) == 1
    assert (revision_of("gmp", "random", floor), revision_of("str", "random"), revision_of("str", "random", floor)) == (
        1,
        1,
        2,
    )
    assert (revision_of("movement", "nm"), revision_of("movement", "nm", clip), revision_of("str", "random", clip)) == (
        1,
        2,
        1,
    )
    assert named("optg", "random", 1) == "optg (revision 1)" and named("optg", "2:4", 2) == "optg"
    assert named("str", "random", 1) == "str" and named("str", "random", 1, floor) == "str (revision 1)"
