"""The W&B workspace and report that compare PDP with its baselines, built with wandb-workspaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdp.errors import Refusal, Stopped
from pdp.runs.record import write_json

NAME = "PDP against its baselines"
GROUP = "config.cell.method"


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise Refusal('wandb-workspaces is not installed: pip install "pdp-pruning[cluster]"') from None
    return reports, workspaces


def panels(reports: Any) -> dict[str, list[Any]]:
    """Every view by its heading; the keys are those that the tracker sends."""
    summary, line, bar = reports.SummaryMetric, reports.LinePlot, reports.BarPlot

    def scatter(title: str, x: str, **more: Any) -> Any:
        return reports.ScatterPlot(title=title, x=summary(x), y=summary("metric"), **more)

    return {
        "Accuracy against sparsity": [
            scatter("hard metric against sparsity reached", "sparsity"),
            scatter("hard metric against parameters that are not zero", "params_nonzero", log_x=True),
        ],
        "Accuracy against MACs": [scatter("hard metric against sparse MACs", "macs_sparse", log_x=True)],
        "Training": [
            line(title="hard validation metric", x="epoch", y=["metric"]),
            line(title="sparsity", x="epoch", y=["sparsity"]),
            line(title="loss", x="epoch", y=["loss"]),
            line(title="weights that came back", x="epoch", y=["revived"]),
        ],
        "Per-layer shares": [
            line(title="pruned share of each layer", x="epoch", metric_regex="share/.*"),
            line(title="weights of each layer that came back", x="epoch", metric_regex="revived/.*"),
        ],
        "Training cost": [
            bar(title="seconds of training", metrics=["train_seconds"]),
            bar(title="milliseconds of a step, median", metrics=["step_ms_median"]),
            bar(title="milliseconds of the mask's part, median", metrics=["mask_ms_median"]),
            bar(title="peak memory, MB", metrics=["peak_memory_mb"]),
            bar(title="parameters of the method's own", metrics=["extra_parameters"]),
        ],
    }


def build_workspace(project: str, entity: str) -> Any:
    """The workspace of a project."""
    reports, workspaces = _library()
    sections = [workspaces.Section(name=name, panels=some, is_open=True) for name, some in panels(reports).items()]
    settings = workspaces.RunsetSettings(groupby=[workspaces.Config("cell.method")])
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=settings)


def build_report(project: str, entity: str, online: bool = True) -> Any:
    """The report of a project. Without `online` its run sets do not name the project, which would need a server."""
    reports, _ = _library()
    place = {"project": project, "entity": entity}
    blocks: list[Any] = [
        reports.P(
            "Every metric is of the hard model (exact zeros) on the test set, at the last epoch. MACs are multiply-adds"
            " of convolution and linear layers. Runs are grouped by method; those of one cell differ in their seed."
        ),
        reports.TableOfContents(),
    ]
    for name, some in panels(reports).items():
        blocks.append(reports.H1(name))
        runset = reports.Runset(**(place if online else {}), name="by method", groupby=[GROUP])
        blocks.append(reports.PanelGrid(runsets=[runset], panels=some))
    return reports.Report(
        **place,
        title=NAME,
        description="PDP, STR, GMP, OptG, dense: one training loop",
        blocks=blocks,
    )


def specification(project: str, entity: str) -> dict[str, Any]:
    """What would be sent, as plain values; needs no server and no key."""
    # The libraries have no public way to export these, so pyproject.toml pins their minor version.
    workspace = build_workspace(project, entity)._to_model().model_dump(mode="json", by_alias=True)
    report = build_report(project, entity, online=False)._to_model().model_dump(mode="json", by_alias=True)
    return {"workspace": workspace, "report": report}


def write_specification(path: Path, project: str, entity: str) -> None:
    """Writes `specification` as JSON; raises `Stopped` if it cannot."""
    try:
        write_json(path, specification(project, entity))
    except OSError as error:
        raise Stopped(f"{path} could not be written: {error.strerror}") from None


def save(project: str, entity: str) -> list[str]:
    """Saves workspace and report on the server and returns their addresses; raises `Stopped` with the reason."""
    from pdp.tracking.tracker import reason_of

    try:
        return [build_workspace(project, entity).save().url, build_report(project, entity).save(draft=False).url]
    except Refusal:
        raise
    except Exception as error:  # no key, no network, or no permission
        raise Stopped(f"W&B took no dashboard ({reason_of(error)}): --offline FILE writes it down instead") from None
