"""Tracks the runs listed in a JSON file one by one: python tracking_worker.py JOBS; prints a report for each."""

import json
import os
import signal
import sys
from pathlib import Path

import psutil

from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.runs.record import Record
from pdp.tracking.making import make_tracker


def work(job: dict) -> dict:
    said: list[str] = []
    try:
        tracker = make_tracker(compose(job["overrides"]), Path(job["directory"]), "0123abcd-0", said.append)
    except Refusal as refusal:
        return {"refused": str(refusal)}
    if job.get("state"):
        tracker.load_state_dict(job["state"])
    with tracker:
        tracker.start(job.get("step", 0))
        for number, line in enumerate(job["lines"]):
            if number == job.get("kill_service_before"):
                for child in psutil.Process().children(recursive=True):
                    child.send_signal(signal.SIGKILL)
                    child.wait()
            tracker.log(line)
        if job.get("record"):
            tracker.finish(Record(**job["record"]))
    return {"said": said, "state": tracker.state_dict()}


if __name__ == "__main__":
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    print(json.dumps([work(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
    # Each run of a sweep finds the environment as the first did.
    assert {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} == environment
