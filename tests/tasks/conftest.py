import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `making`, whatever pytest's import mode
