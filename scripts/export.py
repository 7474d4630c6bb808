"""Exports a finished run's model for use elsewhere.

    python scripts/export.py run=results/runs/<run>/seed0 format=slim          # channel pruning: physically smaller
    python scripts/export.py run=... format=onnx output=exported               # any pattern, checked with onnxruntime
    python scripts/export.py run=... format=nm                                 # 2:4 in torch's semi-structured format
    python scripts/export.py run=... format=safetensors                        # hard weights under their dense names
    python scripts/export.py run=... format=torch                              # a torch.export program

Of a quantized run (quantize=int8, int4w) the ONNX file is in QDQ form, the others hold integers and scales. Its weights
of 8 bits have no sign (weights=uint8), which onnxruntime computes exactly on every processor. weights=int8 gives them
one: for its kernels where the processor has VNNI and for OpenVINO's sparse weights, and wrong on other x86 processors
unless the session has session.x64quantprecision=1. Each format prints
what it takes on the disk and a forward of one sample beside the dense float32 model's, in turn.

Without output= the files are written to <run>/export/<format>. Exit codes: 0 done, 2 refused, 3 the exported model did
not compute the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal, Stopped

KEYS = ("run", "format", "output", "weights")


def main(arguments: list[str]) -> int:
    """Exports, prints what was measured, and returns the exit code."""
    if not arguments or any(one in ("-h", "--help") for one in arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        values = dict(_read(one) for one in arguments)
        for key in ("run", "format"):
            if not values.get(key):
                raise Refusal(
                    f"{key} must be given: {key}=<{'directory of a finished run' if key == 'run' else 'slim'}>"
                )
        from pdp.training.export_run import FORMATS, ExportedRun, export

        if values["format"] not in FORMATS:
            raise Refusal(f"format={values['format']}: no such format; known: {', '.join(FORMATS)}")
        path = Path(values["run"]).expanduser()
        if not path.is_dir():
            raise Refusal(f"run={path} is no directory: give the directory of a finished run")
        folder = Path(values.get("output") or path / "export" / values["format"]).expanduser()
        for label, value in export(ExportedRun(path), values["format"], folder, values.get("weights")):
            print(f"{label}: {value}")
        print(f"written to {folder}")
    except (Refusal, Stopped) as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _read(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or key not in KEYS:
        raise Refusal(f"{argument} is not one of {', '.join(f'{one}=' for one in KEYS)}")
    return key, value


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
