"""The loss with a teacher against formulas in float64, and what a teacher must not change."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from pdp.config.compose import compose
from pdp.config.distill import own_weight
from pdp.config.schema import Config
from pdp.distill.distillation import Distilled, make_objective, matched_depths, matched_loss, soft_loss
from pdp.distill.objective import Objective
from pdp.distill.teacher import Teacher, weights_digest
from pdp.distill.teacher_cache import LogitsCache
from pdp.errors import Refusal
from pdp.tasks import build_task
from pdp.tasks.images import ImagesTask
from pdp.tasks.task import Outputs
from pdp.training.assembly import make_accelerator, make_model

pytestmark = pytest.mark.slow

COMMON = ["model=resnet20", "sparsity=0.5", "data.limit=64", "distill=teacher", "device=cpu"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def formula(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 * mean over rows of sum_c p_c log(p_c / q_c), p the teacher's and q the student's, in float64."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * float((p * np.log(p / q)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (40, 3)])
def test_the_soft_loss_is_the_formula(temperature, shape):
    generator = np.random.default_rng(3)
    student, teacher = (3 * generator.standard_normal(shape) for _ in range(2))
    loss = soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert loss.dim() == 0
    assert float(loss) == pytest.approx(formula(student, teacher, temperature), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_soft_losss_gradient_is_the_known_one_and_that_of_finite_differences(temperature):
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(soft_loss(student, teacher, temperature), student)
    difference = (student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)
    assert torch.allclose(gradient, temperature * difference / 6, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda one: soft_loss(one, teacher, temperature), student)


def test_the_soft_loss_is_zero_for_the_teacher_itself_and_mse_for_one_logit():
    logits = torch.randn(9, 4, dtype=torch.float64)
    assert float(soft_loss(logits, logits, 2.0)) == pytest.approx(0, abs=1e-15)
    student, teacher = torch.randn(9, 1, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    assert float(soft_loss(student, teacher, 4.0)) == pytest.approx(float(((student - teacher) ** 2).mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "depths"),
    [
        (6, 12, [1, 3, 5, 7, 9, 11]),
        (3, 3, [0, 1, 2]),
        (4, 6, [1, 2, 4, 5]),
        (1, 12, [11]),
        (4, 2, [0, 0, 1, 1]),
    ],
)
def test_depths_are_spread_evenly_and_the_last_meets_the_last(student, teacher, depths):
    assert matched_depths(student, teacher) == depths


def test_matched_states_are_compared_by_their_mean_squared_difference():
    student = tuple(torch.randn(2, 5, 8) for _ in range(2))
    teacher = tuple(torch.randn(2, 5, 8) for _ in range(4))
    squares = [np.square(student[i].double().numpy() - teacher[j].double().numpy()).mean() for i, j in ((0, 1), (1, 3))]
    assert float(matched_loss(student, teacher)) == pytest.approx(float(np.mean(squares)), rel=1e-6)


class ImagesWithStates(ImagesTask):
    """Images whose ResNet-20 shows its three stages as hidden states, and as attentions their products."""

    def outputs(self, model, batch, detailed=False):
        if not detailed:
            return super().outputs(model, batch)
        seen = []
        hooks = [stage.register_forward_hook(lambda module, given, made: seen.append(made)) for stage in stages(model)]
        logits = super().outputs(model, batch).logits
        for hook in hooks:
            hook.remove()
        return Outputs(logits, tuple(seen), tuple(one.flatten(2) @ one.flatten(2).mT for one in seen))


def stages(model: nn.Module) -> list[nn.Module]:
    return [getattr(model, name) for name in ("layer1", "layer2", "layer3")]


def parts(overrides: list[str], kind: type[ImagesTask] = ImagesTask) -> tuple[Config, ImagesTask, Accelerator]:
    config = compose([*COMMON, *overrides])
    task = kind(config)
    task.open_data()
    return config, task, make_accelerator(config)


def a_batch(task: ImagesTask) -> dict[str, torch.Tensor]:
    return next(iter(task.train_loader(16, 0, "none", 0)))


def teacher_for(task: ImagesTask) -> Teacher:
    torch.manual_seed(77)
    model = task.build_model().eval().requires_grad_(False)
    return Teacher(model, "another", weights_digest(model))


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ([], 0.95),
        (["distill.weight=0.3", "distill.temperature=4"], 0.3),
        (["method=gmp"], 0.9),
        (["distill.weight=1"], 1),
    ],
)
def test_the_whole_loss_is_the_weighted_sum(options, weight):
    config, task, accelerator = parts(["recipe.label_smoothing=0.1", *options])
    model, batch = make_model(config, task), a_batch(task)
    objective = Distilled(config, task, teacher_for(task), accelerator)
    model.eval()  # so that the two forwards are one
    loss = objective.loss(model, batch).detach()
    with torch.no_grad():
        ours, theirs = (one(batch["image"]).double().numpy() for one in (model, objective.teacher.model))
    logs = np.log(softmax(ours))
    labels = batch["label"].numpy()
    task_loss = -(0.9 * logs[np.arange(16), labels] + 0.1 * logs.mean(axis=1)).mean()
    temperature = config.distill.temperature
    assert float(loss) == pytest.approx(
        (1 - weight) * task_loss + weight * formula(ours, theirs, temperature), rel=1e-5
    )


@pytest.mark.parametrize(("key", "value"), [("hidden", 0.5), ("attention", 2.0)])
def test_states_are_added_where_asked(key, value):
    config, task, accelerator = parts([f"distill.{key}={value}"], ImagesWithStates)
    model, batch = make_model(config, task).eval(), a_batch(task)
    teacher = teacher_for(task)
    objective = Distilled(config, task, teacher, accelerator)
    objective.check_fit(model)
    plain = Distilled(compose(COMMON), task, teacher, accelerator).loss(model, batch).detach()
    with torch.no_grad():
        ours, theirs = (task.outputs(one, batch, True) for one in (model, teacher.model))
    field = {"hidden": "hidden", "attention": "attentions"}[key]
    pairs = zip(getattr(ours, field), getattr(theirs, field), strict=True)
    states = np.mean([np.square(mine.double().numpy() - other.double().numpy()).mean() for mine, other in pairs])
    assert float(objective.loss(model, batch).detach()) == pytest.approx(float(plain) + value * states, rel=1e-5)


def test_without_a_teacher_the_loss_is_the_tasks_own():
    config, task, accelerator = parts(["distill=none"])
    model, batch = make_model(config, task).eval(), a_batch(task)
    objective = make_objective(config, task, model, accelerator)
    assert type(objective) is Objective and objective.record() == {}
    own = functional.cross_entropy(model(batch["image"]), batch["label"])
    assert torch.equal(objective.loss(model, batch), own)


@pytest.fixture
def weights(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(5)
    task = build_task(compose(COMMON))
    path = tmp_path / "teacher.safetensors"
    save_file(task.build_model().state_dict(), path)
    return path


def test_the_teacher_is_loaded_from_its_file_and_training_leaves_it_as_it_was(weights):
    from safetensors.torch import load_file

    config, task, accelerator = parts([f"distill.teacher={weights}"])
    model = make_model(config, task)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    objective = make_objective(config, task, model, accelerator)
    assert torch.equal(torch.get_rng_state(), state), "a run draws what it would draw without a teacher"
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    teacher = objective.teacher
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in task.train_loader(16, 0, "none", 0):
        objective.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    stored = load_file(weights)
    assert all(torch.equal(value, stored[key]) for key, value in teacher.model.state_dict().items())
    assert weights_digest(teacher.model) == teacher.digest
    assert not teacher.model.training and all(one.grad is None for one in teacher.model.parameters())
    assert objective.state_dict() == {"teacher": teacher.digest}


def test_a_run_that_goes_on_finds_its_teacher_or_refuses(weights):
    config, task, accelerator = parts([f"distill.teacher={weights}"])
    objective = make_objective(config, task, make_model(config, task), accelerator)
    objective.load_state_dict(objective.state_dict())
    with pytest.raises(Refusal, match=r"have changed since this run began.*rerun=true"):
        objective.load_state_dict({"teacher": "0123456789abcdef"})


@pytest.mark.parametrize(("precision", "equal"), [("fp32", True), ("bf16", False)])
def test_the_teacher_computes_in_the_precision_of_the_student(precision, equal, weights):
    config, task, accelerator = parts([f"distill.teacher={weights}", f"recipe.precision={precision}"])
    objective = make_objective(config, task, make_model(config, task), accelerator)
    batch = a_batch(task)
    with torch.no_grad():
        exact = objective.teacher.model(batch["image"])
    assert torch.equal(objective.of_teacher(batch).logits, exact) is equal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["distill.hidden=1"], ["distill.hidden=1.0", "the student", "distill.hidden=0"]),
        (["distill.attention=0.5"], ["distill.attention=0.5", "the student", "distill.attention=0"]),
    ],
)
def test_states_that_images_do_not_have_are_refused(options, words, weights):
    config, task, accelerator = parts([f"distill.teacher={weights}", *options])
    with pytest.raises(Refusal) as caught:
        make_objective(config, task, make_model(config, task), accelerator)
    assert all(word in str(caught.value) for word in words), caught.value


def test_states_of_another_width_are_refused():
    config, task, accelerator = parts(["distill.hidden=1"], ImagesWithStates)
    model = make_model(config, task)
    teacher = teacher_for(task)
    narrow = copy.deepcopy(teacher.model)
    narrow.layer3 = nn.Sequential(narrow.layer3, nn.Conv2d(64, 32, 1))
    narrow.fc = nn.Linear(32, 10)
    objective = Distilled(config, task, Teacher(narrow.eval(), "narrow", ""), accelerator)
    with pytest.raises(Refusal, match=r"distill.hidden=1.0.*same width"):
        objective.check_fit(model)


def test_a_teacher_that_is_not_finite_is_refused(weights):
    config, task, accelerator = parts([])
    teacher = teacher_for(task)
    teacher.model.fc.bias[0] = float("nan")
    with pytest.raises(Refusal, match="not finite"):
        Distilled(config, task, teacher, accelerator).check_fit(make_model(config, task))


def test_the_weight_of_a_method_is_its_own():
    assert [own_weight(method) for method in ("pdp", "str", "gmp", "dense")] == [0.95, 0.75, 0.9, 0.9]


def test_cached_logits_are_those_of_each_sample_and_a_damaged_or_strange_file_is_made_again(tmp_path):
    config, task, accelerator = parts(["recipe.batch_size=10"])  # 64 samples: the last batch is shorter
    teacher = teacher_for(task)
    objective = Distilled(config, task, teacher, accelerator)
    told: list[str] = []

    def filled(digest: str) -> LogitsCache:
        cache = LogitsCache(tmp_path, config, task, digest, accelerator)
        cache.fill(lambda batch: objective.of_teacher(batch).logits, told.append)
        return cache

    cache = filled(teacher.digest)
    for batch in task.train_loader(7, 3, "none", 0):
        with torch.no_grad():
            assert torch.allclose(cache.rows(batch["index"]), teacher.model(batch["image"]), rtol=1e-4, atol=1e-5)
    filled(teacher.digest)
    assert "cached in" in told[0] and "cached already" in told[1]
    filled("another teacher")
    assert "cached in" in told[2]
    path = cache.path(0)
    path.write_bytes(path.read_bytes()[:-40])
    filled("another teacher")
    assert "cached in" in told[3] and sorted(one.suffix for one in tmp_path.iterdir()) == [".json", ".npy"]
