"""Units that came back above the cut, against masks kept of every step."""

import io

import pytest
import torch
from small_models import small_net, train_epoch

from pdp import Pruner
from pdp.pruner.revived import Revived

SCHEDULE = {"name": "linear", "warmup": "1ep", "ramp": "3ep"}


def make(method="pdp", sparsity=0.6):
    torch.manual_seed(1)
    model = small_net()
    return model, Pruner(model, method=method, sparsity=sparsity, epochs=6, schedule=SCHEDULE)


def shuffle_weights(model, seed):
    """Moves every weight far enough that many cross the cut."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)


@pytest.mark.parametrize("method", ["pdp", "gmp"])
def test_counts_are_those_of_masks_kept_whole(method):
    model, pruner = make(method)
    revived, before = Revived(), {}
    totals = []
    for epoch in range(6):
        pruner.start_epoch(epoch)
        shuffle_weights(model, epoch)
        pruner.step()
        found = revived.look(pruner)
        now = {layer.name: pruner.method.keep(layer).clone() for layer in pruner.layers}
        back = {name: int((keep & ~before[name]).sum()) if before else 0 for name, keep in now.items()}
        assert found["layer_revived"] == {layer.name: back[layer.name] / layer.units for layer in pruner.layers}
        assert found["revived"] == pytest.approx(sum(back.values()) / sum(layer.units for layer in pruner.layers))
        totals.append(found["revived"])
        before = now
    assert totals[0] == totals[1] == 0  # dense; then the first epoch with anything pruned
    assert all(total > 0 for total in totals[3:]) or method == "gmp"


def test_nothing_comes_back_where_the_weights_stay():
    _, pruner = make()
    revived = Revived()
    for epoch in range(4):
        pruner.start_epoch(epoch)
        assert revived.look(pruner)["revived"] == 0
    assert pruner.share > 0.5


def test_a_layer_that_is_dense_again_has_all_its_units_back():
    _, pruner = make()
    revived = Revived()
    pruner.start_epoch(5)
    revived.look(pruner)
    layer = pruner.layers[0]
    share = layer.pruned / layer.units
    assert share > 0
    layer.pruned, layer.active = 0, False
    found = revived.look(pruner)["layer_revived"]
    assert found[layer.name] == share and sum(found.values()) == share


def test_the_dense_method_has_none():
    model = small_net()
    pruner = Pruner(model, method="dense", epochs=2)
    pruner.start_epoch(0)
    assert Revived().look(pruner)["revived"] == 0


def test_a_resumed_count_is_that_of_one_never_stopped():
    def finish(stop):
        model, pruner = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        revived, found = Revived(), []
        for epoch in range(6):
            train_epoch(model, pruner, optimizer, epoch)
            if epoch == stop:
                file = io.BytesIO()
                torch.save(revived.state_dict(), file)
                file.seek(0)
                revived = Revived()
                revived.load_state_dict(torch.load(file, weights_only=True))
            found.append(revived.look(pruner))
        return found

    whole = finish(stop=None)
    assert finish(stop=4) == whole
    assert whole[4]["revived"] > 0


def test_a_mask_takes_one_bit_a_weight():
    model = torch.nn.Linear(1000, 80)
    pruner = Pruner(model, sparsity=0.5, epochs=2, schedule={"name": "oneshot", "warmup": "0ep"})
    pruner.start_epoch(0)
    revived = Revived()
    revived.look(pruner)
    (state,) = revived.state_dict().values()
    assert state["pruned"].dtype == torch.uint8 and state["pruned"].numel() == 1000 * 80 // 8
